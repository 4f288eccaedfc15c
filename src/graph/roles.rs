//! The first and the last layers of a network, by its structure.

use super::{Graph, Op};
use crate::sparsity::Role;

/// The role of each convolution and linear layer, in [`Graph::convs`]'s order.
pub(super) fn roles(graph: &Graph) -> Vec<Role> {
    let nodes = graph.nodes();
    let mut roles = vec![Role::Inner; graph.convs().len()];
    let mut images = vec![false; nodes.len()]; // whether it is made of the images alone
    let mut logits = vec![false; nodes.len()]; // whether the logits are made of it, with no layer between
    for (i, node) in nodes.iter().enumerate() {
        match node.op {
            Op::Input => images[i] = true,
            Op::Conv(conv) if images[node.inputs[0].0] => roles[conv] = Role::First,
            Op::Conv(_) => {}
            _ => images[i] = node.inputs.iter().all(|x| images[x.0]),
        }
    }
    if let Some(last) = logits.last_mut() {
        *last = true;
    }
    for (i, node) in nodes.iter().enumerate().rev() {
        match node.op {
            _ if !logits[i] => {}
            Op::Conv(conv) => roles[conv] = Role::Last,
            _ => node.inputs.iter().for_each(|x| logits[x.0] = true),
        }
    }
    roles
}
