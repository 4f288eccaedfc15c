//! The backward operations: a walk over the nodes from the last to the first.
//!
//! A gradient is written by the readers of its node; the first overwrites, later ones accumulate, and the last one also
//! finishes it (ReLU mask, sums for the batch norm), which is why finishes are entered into operations after the fact.
//! An addition hands its gradient on without a copy: its operands then share one tensor, which is copied only if one of
//! them must change it while the other still needs it.

use super::lower::{Backward, Plan, Wanted};
use super::{Graph, Op};
use crate::backend::{ConvId, Finish, Grad, GradDst, Input, Mask, NormId, Normed, PoolId, TensorId, Write};
use std::collections::{HashMap, HashSet};

/// Gradient of the logits, the operations from there, and the gradient of the images if it is wanted.
pub(super) fn backward(
    plan: &mut Plan,
    readers: &[Vec<usize>],
    values: &[Input],
    wanted: Wanted,
) -> (TensorId, Vec<Backward>, Option<TensorId>) {
    let graph = plan.graph;
    let last = graph.nodes().len() - 1;
    let dlogits = plan.tensor(last);
    let mut walk = Walk {
        plan,
        ops: vec![],
        needs: needs(graph, wanted),
        pending: vec![None; graph.nodes().len()],
        owners: HashMap::from([(dlogits, 1)]),
        writer: HashMap::new(),
        shared: HashSet::new(),
    };
    walk.pending[last] = Some(Grad::plain(dlogits));
    for i in (1..=last).rev() {
        walk.node(i, readers, values);
    }
    // Every node feeds the logits (`lower_for`), and a gradient through a norm waits at convolutions only.
    let dinput = (wanted == Wanted::ParametersAndImages).then(|| {
        let grad = walk.take(0);
        assert!(grad.norm.is_none(), "the gradient of the images is stored as it is");
        grad.t
    });
    (dlogits, walk.ops, dinput)
}

/// Whether each node depends on something whose gradient is wanted.
fn needs(graph: &Graph, wanted: Wanted) -> Vec<bool> {
    let mut needs: Vec<bool> = Vec::new();
    for node in graph.nodes() {
        let own = match node.op {
            Op::Conv(_) | Op::Norm(_) => true,
            Op::Input => wanted == Wanted::ParametersAndImages,
            _ => false,
        };
        needs.push(own || node.inputs.iter().any(|id| needs[id.0]));
    }
    needs
}

struct Walk<'a, 'g> {
    plan: &'a mut Plan<'g>,
    ops: Vec<Backward>,
    needs: Vec<bool>,
    /// The gradient of each node's value, as far as it is written.
    pending: Vec<Option<Grad>>,
    /// Nodes whose gradient lies in a tensor and that were not walked yet.
    owners: HashMap<TensorId, usize>,
    /// Operation that wrote a tensor last; none for the gradient of the logits.
    writer: HashMap<TensorId, usize>,
    /// Tensors that two nodes have shared since they were written last.
    shared: HashSet<TensorId>,
}

impl Walk<'_, '_> {
    fn node(&mut self, i: usize, readers: &[Vec<usize>], values: &[Input]) {
        let node = &self.plan.graph.nodes()[i];
        if self.pending[i].is_none() {
            return;
        }
        let inputs: Vec<usize> = node.inputs.iter().map(|id| id.0).collect();
        let x = inputs[0];
        match node.op {
            Op::Input => {}
            Op::Relu => {
                self.finish(i, true, |f| {
                    let free = f.mask == Mask::All && f.reduce == [None; 2];
                    f.mask = Mask::Positive(values[i]);
                    free
                });
                let grad = self.take(i);
                self.give(x, grad);
            }
            Op::Add if inputs[1] == x => {
                let grad = self.take(i);
                let t = self.fresh(x);
                for write in [Write::Overwrite, Write::Accumulate] {
                    self.push(Backward::Copy { dy: grad, dx: GradDst { t, write, finish: Finish::default() } });
                }
                self.release(grad.t);
                self.give(x, Grad::plain(t));
            }
            Op::Add => {
                let grad = self.take(i);
                if self.needs[x] && self.needs[inputs[1]] {
                    *self.owners.get_mut(&grad.t).expect("owned") += 1;
                    self.shared.insert(grad.t);
                    self.give(x, grad);
                    self.give(inputs[1], grad);
                } else {
                    self.give(if self.needs[x] { x } else { inputs[1] }, grad);
                }
            }
            Op::Norm(m) => {
                let normed = Normed { norm: NormId(m as u32), x: values[i].t };
                self.finish(i, false, |f| match f.reduce.iter_mut().find(|r| r.is_none()) {
                    Some(free) => {
                        *free = Some(normed);
                        true
                    }
                    None => false,
                });
                let grad = Grad { norm: Some(normed), ..self.take(i) };
                let conv = matches!(self.plan.graph.nodes()[x].op, Op::Conv(_));
                if conv && readers[x].len() == 1 {
                    self.pending[x] = Some(grad);
                } else {
                    self.add(x, grad);
                }
            }
            Op::Conv(c) => {
                let dy = self.pending[i].expect("checked");
                let dx = self.needs[x].then(|| self.dst(x));
                self.push(Backward::Conv { conv: ConvId(c as u32), x: values[x], dy, dx });
                self.done(i);
            }
            Op::Pool => {
                let dy = self.pending[i].expect("checked");
                if self.needs[x] {
                    let dx = self.dst(x);
                    self.push(Backward::Pool { dy, dx });
                }
                self.done(i);
            }
            Op::MaxPool(p) => {
                let dy = self.pending[i].expect("checked");
                if self.needs[x] {
                    let dx = self.dst(x);
                    self.push(Backward::MaxPool { pool: PoolId(p as u32), x: values[x], dy, dx });
                }
                self.done(i);
            }
        }
    }

    fn push(&mut self, mut op: Backward) {
        if let Some(dx) = op.dst() {
            self.writer.insert(dx.t, self.ops.len());
            self.shared.remove(&dx.t);
        }
        self.ops.push(op);
    }

    fn fresh(&mut self, node: usize) -> TensorId {
        let t = self.plan.tensor(node);
        self.owners.insert(t, 1);
        t
    }

    fn release(&mut self, t: TensorId) {
        *self.owners.get_mut(&t).expect("owned") -= 1;
    }

    fn take(&mut self, node: usize) -> Grad {
        self.pending[node].take().expect("a gradient")
    }

    fn done(&mut self, node: usize) {
        let grad = self.take(node);
        self.release(grad.t);
    }

    /// Where an operation adds to the gradient of `node`.
    fn dst(&mut self, node: usize) -> GradDst {
        let finish = Finish::default();
        match self.pending[node] {
            None => {
                let t = self.fresh(node);
                self.pending[node] = Some(Grad::plain(t));
                GradDst { t, write: Write::Overwrite, finish }
            }
            Some(grad) => {
                if grad.norm.is_some() || self.owners[&grad.t] > 1 {
                    self.copy(node, finish);
                }
                GradDst { t: self.pending[node].expect("a gradient").t, write: Write::Accumulate, finish }
            }
        }
    }

    /// Moves the gradient of `node` to a tensor of its own.
    fn copy(&mut self, node: usize, finish: Finish) {
        let dy = self.take(node);
        let t = self.fresh(node);
        self.push(Backward::Copy { dy, dx: GradDst { t, write: Write::Overwrite, finish } });
        self.release(dy.t);
        self.pending[node] = Some(Grad::plain(t));
    }

    /// Adds a gradient that its owner gives away.
    fn give(&mut self, node: usize, grad: Grad) {
        match self.pending[node] {
            _ if !self.needs[node] => self.release(grad.t),
            None => self.pending[node] = Some(grad),
            Some(_) => self.add(node, grad),
        }
    }

    fn add(&mut self, node: usize, dy: Grad) {
        if self.needs[node] {
            let dx = self.dst(node);
            self.push(Backward::Copy { dy, dx });
        }
        self.release(dy.t);
    }

    /// Enters a finish into the operation that wrote the gradient of `node` last; `enter` says whether it could. A finish
    /// that `changes` the gradient must not reach another node that shares it.
    fn finish(&mut self, node: usize, changes: bool, enter: impl Fn(&mut Finish) -> bool) {
        let grad = self.pending[node].expect("a gradient");
        let alone = grad.norm.is_none() && !(changes && self.shared.contains(&grad.t));
        if let Some(&writer) = self.writer.get(&grad.t).filter(|_| alone) {
            let dst = self.ops[writer].dst().expect("a writer");
            let mut finish = dst.finish;
            if enter(&mut finish) {
                dst.finish = finish;
                return;
            }
        }
        let mut finish = Finish::default();
        assert!(enter(&mut finish), "an empty finish takes anything");
        self.copy(node, finish);
    }
}
