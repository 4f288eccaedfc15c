//! From a graph to operations: fusion, gradients, and the memory plan.
//!
//! Fusion is decided here and nowhere else. A batch norm or ReLU is never stored: whoever reads it computes it while
//! reading ([`Input`]). Stored are the images, each convolution's raw output, each addition (with its ReLU, if nobody
//! else reads the sum) and each pooling; saved for the backward pass is nothing else.

use super::backward::backward;
use super::{Graph, NodeId, Op};
use crate::backend::{
    ConvId, ConvSpec, Finish, Grad, GradDst, Input, NormId, NormSpec, ParamId, ParamSpec, Plane, PoolId, Spec,
    TensorId, TensorSpec, place,
};
use crate::error::{Error, Result};
use crate::shape::BlockShape;
use crate::sparsity::Mask;
use std::collections::HashMap;

/// A forward operation on tensors.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the fields are the arguments of the backend operation of the same name
pub enum Forward {
    Conv { conv: ConvId, x: Input, y: TensorId, stats: Option<NormId> },
    Stats { norm: NormId, x: TensorId },
    Join { a: Input, b: Option<Input>, relu: bool, y: TensorId },
    Pool { x: Input, y: TensorId },
    MaxPool { pool: PoolId, x: Input, y: TensorId },
}

/// A backward operation on tensors, in execution order.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // as above
pub enum Backward {
    Conv { conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst> },
    ConvData { conv: ConvId, dy: Grad, dx: GradDst },
    Copy { dy: Grad, dx: GradDst },
    Pool { dy: Grad, dx: GradDst },
    MaxPool { pool: PoolId, x: Input, dy: Grad, dx: GradDst },
}

/// What the backward pass ends in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The gradients of the parameters.
    #[default]
    Parameters,
    /// Those, and the gradient of the images ([`Program::dinput`]).
    ParametersAndImages,
}

/// A lowered network: what the backend allocates, and what it runs.
#[derive(Clone, Debug)]
pub struct Program {
    /// Storage.
    pub spec: Spec,
    /// Forward pass.
    pub forward: Vec<Forward>,
    /// Backward pass, from `dlogits`.
    pub backward: Vec<Backward>,
    /// The images.
    pub input: TensorId,
    /// The network's output.
    pub logits: TensorId,
    /// Its gradient.
    pub dlogits: TensorId,
    /// The gradient of the images, if it was wanted: complete when the backward pass is.
    pub dinput: Option<TensorId>,
}

impl Program {
    /// Whether a training step with `n` images is defined: batch norm needs two values a channel. `name` of a norm's number.
    ///
    /// # Errors
    /// Names the batch norm and what to do.
    pub fn check_batch<'a>(&self, n: usize, name: impl Fn(usize) -> &'a str) -> Result<()> {
        for f in &self.forward {
            let (norm, x) = match *f {
                Forward::Conv { stats: Some(norm), y, .. } => (norm, y),
                Forward::Stats { norm, x } => (norm, x),
                _ => continue,
            };
            let plane = self.spec.tensors[x.0 as usize].plane;
            if n * (plane.h * plane.w) as usize == 1 {
                return Err(Error::Usage(format!(
                    "batch norm {}: a training batch of {n} image with a {}x{} plane has one value a channel, whose \
                     variance is not defined; use another batch_size or larger images",
                    name(norm.0 as usize),
                    plane.h,
                    plane.w
                )));
            }
        }
        Ok(())
    }
}

impl Forward {
    /// Tensors read, and the tensor written.
    pub(super) fn uses(&self) -> (Vec<TensorId>, Option<TensorId>) {
        match *self {
            Forward::Conv { x, y, .. } | Forward::Pool { x, y } | Forward::MaxPool { x, y, .. } => (vec![x.t], Some(y)),
            Forward::Stats { x, .. } => (vec![x], None),
            Forward::Join { a, b, y, .. } => (std::iter::once(a).chain(b).map(|i| i.t).collect(), Some(y)),
        }
    }
}

impl Backward {
    /// The gradient written.
    pub(super) fn dst(&mut self) -> Option<&mut GradDst> {
        match self {
            Backward::Conv { dx, .. } => dx.as_mut(),
            Backward::ConvData { dx, .. } | Backward::Copy { dx, .. } => Some(dx),
            Backward::Pool { dx, .. } | Backward::MaxPool { dx, .. } => Some(dx),
        }
    }

    /// What is left of it where the gradient of the images alone is wanted, through norms with running statistics: no
    /// parameter's gradient, and no sums.
    pub(super) fn of_images(self) -> Option<Backward> {
        let bare = |dx: GradDst| GradDst { finish: Finish { reduce: [None; 2], ..dx.finish }, ..dx };
        Some(match self {
            Backward::Conv { conv, dy, dx, .. } => Backward::ConvData { conv, dy, dx: bare(dx?) },
            Backward::ConvData { conv, dy, dx } => Backward::ConvData { conv, dy, dx: bare(dx) },
            Backward::Copy { dy, dx } => Backward::Copy { dy, dx: bare(dx) },
            Backward::Pool { dy, dx } => Backward::Pool { dy, dx: bare(dx) },
            Backward::MaxPool { pool, x, dy, dx } => Backward::MaxPool { pool, x, dy, dx: bare(dx) },
        })
    }

    /// Tensors read, those of the finish included, and the gradient written.
    pub(super) fn uses(&self) -> (Vec<TensorId>, Option<GradDst>) {
        let (x, dy, dx) = match *self {
            Backward::Conv { x, dy, dx, .. } => (Some(x), dy, dx),
            Backward::MaxPool { x, dy, dx, .. } => (Some(x), dy, Some(dx)),
            Backward::ConvData { dy, dx, .. } => (None, dy, Some(dx)),
            Backward::Copy { dy, dx } | Backward::Pool { dy, dx } => (None, dy, Some(dx)),
        };
        let mut reads = vec![dy.t];
        reads.extend(x.map(|x| x.t));
        reads.extend(dy.norm.map(|n| n.x));
        if let Some(GradDst { finish, .. }) = dx {
            reads.extend(finish.reduce.iter().flatten().map(|n| n.x));
            if let crate::backend::Mask::Positive(x) = finish.mask {
                reads.push(x.t);
            }
        }
        (reads, dx)
    }
}

/// Lowers `graph` with `masks` (by parameter name; weights without one are dense) for at most `batch` images.
///
/// # Errors
/// A mask that names no maskable parameter, or has another shape; a graph without logits of 1x1.
pub fn lower(graph: &Graph, masks: &[Mask], batch: usize) -> Result<Program> {
    lower_for(graph, masks, batch, Wanted::Parameters)
}

/// The same with a choice of what the backward pass ends in.
///
/// # Errors
/// Those of [`lower`].
pub fn lower_for(graph: &Graph, masks: &[Mask], batch: usize, wanted: Wanted) -> Result<Program> {
    let last = graph.nodes().len() - 1;
    let (classes, h, w) = graph.nodes()[last].chw;
    if (h, w) != (1, 1) || matches!(graph.nodes()[last].op, Op::Input) || batch == 0 {
        return Err(Error::Usage(format!(
            "a network ends in logits of Cx1x1 and takes at least one image a batch; got {classes}x{h}x{w} and {batch}"
        )));
    }
    let readers = readers(graph);
    if let Some(dead) = graph.unused() {
        let (i, what) = (dead.index(), graph.describe(dead));
        return Err(Error::Usage(format!("node {i}, {what}, feeds nothing: remove it, or use its output")));
    }
    let mut plan = Plan { graph, spec: storage(graph, masks, batch)? };
    let (values, mut forward) = forward(&mut plan, &readers);
    let (input, logits) = (values[0].t, logits(&mut plan, &mut forward, last, values[last]));
    let (dlogits, backward, dinput) = backward(&mut plan, &readers, &values, wanted);
    let mut program = Program { spec: plan.spec, forward, backward, input, logits, dlogits, dinput };
    let alive = program.lifetimes();
    let rooms: Vec<usize> = program.spec.tensors.iter().map(|t| t.plane.room()).collect();
    let (at, arena) = place(&rooms, &alive);
    program.spec.arena = arena;
    for (t, (at, alive)) in program.spec.tensors.iter_mut().zip(at.into_iter().zip(alive)) {
        (t.at, t.alive) = (at, alive);
    }
    program.spec.tensors[logits.0 as usize].exact = true;
    Ok(program)
}

impl Program {
    /// From first write to last use of each tensor, in operations: the images' arrival, the forward pass, the loss, the
    /// backward pass. Logits and the images' gradient live to the end: the host reads them.
    fn lifetimes(&self) -> Vec<(usize, usize)> {
        let mut alive: Vec<Option<(usize, usize)>> = vec![None; self.spec.tensors.len()];
        let mut touch = |t: TensorId, at: usize| {
            let span = alive[t.0 as usize].get_or_insert((at, at));
            span.1 = at;
        };
        touch(self.input, 0);
        for (i, op) in self.forward.iter().enumerate() {
            let (reads, y) = op.uses();
            reads.into_iter().chain(y).for_each(|t| touch(t, 1 + i));
        }
        let loss = 1 + self.forward.len();
        touch(self.logits, loss);
        touch(self.dlogits, loss);
        for (i, op) in self.backward.iter().enumerate() {
            let (reads, dx) = op.uses();
            reads.into_iter().chain(dx.map(|d| d.t)).for_each(|t| touch(t, loss + 1 + i));
        }
        let end = loss + 1 + self.backward.len();
        [Some(self.logits), self.dinput].into_iter().flatten().for_each(|t| touch(t, end));
        alive.into_iter().map(|span| span.expect("every tensor is used")).collect()
    }
}

/// Nodes that read each node; the caller, who reads the logits, counts as the node after the last.
fn readers(graph: &Graph) -> Vec<Vec<usize>> {
    let mut readers = vec![vec![]; graph.nodes().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        node.inputs.iter().for_each(|id| readers[id.0].push(i));
    }
    let last = graph.nodes().len() - 1;
    readers[last].push(last + 1);
    readers
}

/// The value of each node, and the operations that make the stored ones.
fn forward(plan: &mut Plan, readers: &[Vec<usize>]) -> (Vec<Input>, Vec<Forward>) {
    let graph = plan.graph;
    let nodes = graph.nodes();
    let mut values: Vec<Input> = Vec::new();
    let mut ops = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let operand = node.inputs.first().map(|id| values[id.0]);
        let value = match (&node.op, operand) {
            (Op::Conv(c), Some(x)) => {
                let norm = |&r: &usize| match nodes.get(r).map(|n| &n.op) {
                    Some(Op::Norm(m)) => Some(NormId(*m as u32)),
                    _ => None,
                };
                let y = plan.tensor(i);
                ops.push(Forward::Conv { conv: ConvId(*c as u32), x, y, stats: readers[i].iter().find_map(norm) });
                Input::plain(y)
            }
            (Op::Norm(m), Some(x)) => {
                let (t, norm) = (stored(plan, &mut ops, node.inputs[0].0, x), NormId(*m as u32));
                if !ops.iter().any(|op| matches!(op, Forward::Conv { stats, .. } if *stats == Some(norm))) {
                    ops.push(Forward::Stats { norm, x: t });
                }
                Input { t, norm: Some(norm), relu: false }
            }
            (Op::Relu, Some(x)) if fused_relu(graph, readers, node.inputs[0]) => x,
            (Op::Relu, Some(x)) => Input { relu: true, ..x },
            (Op::Add, Some(a)) => {
                let y = plan.tensor(i);
                let relu = fused_relu(graph, readers, NodeId(i));
                ops.push(Forward::Join { a, b: Some(values[node.inputs[1].0]), relu, y });
                Input::plain(y)
            }
            (Op::Pool, Some(x)) => {
                let y = plan.tensor(i);
                ops.push(Forward::Pool { x, y });
                Input::plain(y)
            }
            (Op::MaxPool(p), Some(x)) => {
                let y = plan.tensor(i);
                ops.push(Forward::MaxPool { pool: PoolId(*p as u32), x, y });
                Input::plain(y)
            }
            (Op::Input, _) | (_, None) => Input::plain(plan.tensor(i)),
        };
        values.push(value);
    }
    (values, ops)
}

/// The tensor that holds the value of node `i` as it is.
fn stored(plan: &mut Plan, ops: &mut Vec<Forward>, i: usize, value: Input) -> TensorId {
    if value == Input::plain(value.t) {
        return value.t;
    }
    let y = plan.tensor(i);
    ops.push(Forward::Join { a: value, b: None, relu: false, y });
    y
}

/// The tensor of the logits, which a device may keep in a wider number type than others ([`TensorSpec::exact`]): one that a
/// convolution writes, or a copy, which nothing else reads or writes.
///
/// [`TensorSpec::exact`]: crate::backend::TensorSpec::exact
fn logits(plan: &mut Plan, ops: &mut Vec<Forward>, last: usize, value: Input) -> TensorId {
    if value == Input::plain(value.t) && matches!(plan.graph.nodes()[last].op, Op::Conv(_)) {
        return value.t;
    }
    let y = plan.tensor(last);
    ops.push(Forward::Join { a: value, b: None, relu: false, y });
    y
}

/// Whether `node` is an addition that its only reader, a ReLU, is fused into.
pub(super) fn fused_relu(graph: &Graph, readers: &[Vec<usize>], node: NodeId) -> bool {
    let relu = |&r: &usize| graph.nodes().get(r).is_some_and(|n| n.op == Op::Relu);
    graph.nodes()[node.0].op == Op::Add && readers[node.0].len() == 1 && readers[node.0].iter().all(relu)
}

/// Parameters and layers of the spec, with the masks' kept positions.
fn storage(graph: &Graph, masks: &[Mask], batch: usize) -> Result<Spec> {
    let mut by_name: HashMap<&str, &Mask> = masks.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut spec = Spec { batch, pools: graph.pools().to_vec(), ..Spec::default() };
    for p in graph.params() {
        let mask = if p.maskable { by_name.remove(p.name.as_str()) } else { None };
        if let Some(m) = mask.filter(|m| m.shape != p.shape) {
            return Err(Error::Usage(format!("mask of {}: wanted shape {:?}, got {:?}", p.name, p.shape, m.shape)));
        }
        let (kept, block) = mask.map_or((None, None), |m| (m.kept.clone(), m.block));
        let whole = |b: BlockShape| kept.as_ref().is_some_and(|kept| b.blocks(&p.shape, kept).is_some());
        if let Some(b) = block.filter(|&b| !whole(b)) {
            return Err(Error::Usage(format!("mask of {}: its kept positions are no whole blocks of {b}", p.name)));
        }
        let start = spec.stored();
        let len = kept.as_ref().map_or(p.size(), |k| k.len());
        spec.params.push(ParamSpec { shape: p.shape.clone(), kept, decay: p.decay, block, range: start..start + len });
    }
    if let Some(name) = by_name.keys().min() {
        return Err(Error::Usage(format!("mask of {name}: the network has no maskable parameter of that name")));
    }
    for c in graph.convs() {
        let bias = c.bias.map(|b| ParamId(b as u32));
        spec.convs.push(ConvSpec { geom: c.geom, weight: ParamId(c.weight as u32), bias });
    }
    for n in graph.norms() {
        let [gamma, beta] = [n.gamma, n.beta].map(|i| ParamId(i as u32));
        let running = spec.running();
        spec.norms.push(NormSpec { c: n.c, gamma, beta, running, eps: 1e-5, momentum: 0.1 });
    }
    Ok(spec)
}

/// The spec as it grows.
pub(super) struct Plan<'g> {
    pub(super) graph: &'g Graph,
    pub(super) spec: Spec,
}

impl Plan<'_> {
    /// A tensor of the shape of a node's output; its place comes last.
    pub(super) fn tensor(&mut self, node: usize) -> TensorId {
        let (c, h, w) = self.graph.nodes()[node].chw;
        self.spec.tensors.push(TensorSpec::lasting(Plane { c, h, w }, 0));
        TensorId(self.spec.tensors.len() as u32 - 1)
    }
}

#[cfg(test)]
#[path = "lower_tests.rs"]
mod tests;
