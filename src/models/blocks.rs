//! Parts that the networks share. Parameter names are "BLOCK.conv1.weight", "BLOCK.bn1.bias", "BLOCK.shortcut.conv.weight".

use crate::error::Result;
use crate::graph::{Graph, NodeId};

/// Convolution, named `name` + "conv" + `i`, that keeps rows and columns at stride 1, and batch norm, `name` + "bn" + `i`.
pub(super) fn conv_norm(g: &mut Graph, name: &str, i: &str, x: NodeId, geom: [usize; 3]) -> Result<NodeId> {
    let [k, r, stride] = geom;
    let y = g.conv(&format!("{name}conv{i}"), x, k, r, stride, r / 2)?;
    Ok(g.norm(&format!("{name}bn{i}"), y))
}

/// relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), both convolutions 3x3 to `k` channels.
pub(super) fn basic_block(g: &mut Graph, name: &str, x: NodeId, k: usize, stride: usize) -> Result<NodeId> {
    let name = format!("{name}.");
    let y = conv_norm(g, &name, "1", x, [k, 3, stride])?;
    let y = g.relu(y);
    let y = conv_norm(g, &name, "2", y, [k, 3, 1])?;
    join(g, &name, x, y, stride)
}

/// 1x1 to `inner` channels, 3x3 with the stride, 1x1 to `k` channels, each with batch norm, plus the shortcut. The stride on
/// the 3x3 instead of the first 1x1 is what "v1.5" means.
pub(super) fn bottleneck(
    g: &mut Graph,
    name: &str,
    x: NodeId,
    inner: usize,
    k: usize,
    stride: usize,
) -> Result<NodeId> {
    let name = format!("{name}.");
    let y = conv_norm(g, &name, "1", x, [inner, 1, 1])?;
    let y = g.relu(y);
    let y = conv_norm(g, &name, "2", y, [inner, 3, stride])?;
    let y = g.relu(y);
    let y = conv_norm(g, &name, "3", y, [k, 1, 1])?;
    join(g, &name, x, y, stride)
}

/// relu(y + shortcut(x)): x itself, or where the block changes its shape a 1x1 convolution with the stride and batch norm.
fn join(g: &mut Graph, name: &str, x: NodeId, y: NodeId, stride: usize) -> Result<NodeId> {
    let [from, to] = [x, y].map(|node| g.nodes()[node.0].chw);
    let shortcut =
        if from == to { x } else { conv_norm(g, &format!("{name}shortcut."), "", x, [to.0 as usize, 1, stride])? };
    let y = g.add(y, shortcut)?;
    Ok(g.relu(y))
}
