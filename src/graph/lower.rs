//! From a graph to operations: fusion, gradients, and the memory plan.
//!
//! Fusion is decided here and nowhere else: batch norm takes the addition and the ReLU behind it, an addition takes its
//! ReLU, whenever the value in between has no other reader.

use super::{Graph, NodeId, Op};
use crate::backend::{
    ConvId, ConvSpec, Dst, NormId, NormSpec, ParamId, ParamSpec, Plane, Spec, TensorId, TensorSpec, Write,
};
use crate::error::{Error, Result};
use crate::sparsity::Mask;
use std::collections::{BTreeMap, HashMap};

/// A forward operation on tensors.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the fields are the arguments of the backend operation of the same name
pub enum Forward {
    Conv { conv: ConvId, x: TensorId, y: TensorId },
    Norm { norm: NormId, x: TensorId, residual: Option<TensorId>, relu: bool, y: TensorId },
    Join { a: TensorId, b: Option<TensorId>, relu: bool, y: TensorId },
    Pool { x: TensorId, y: TensorId },
}

/// A backward operation on tensors, in execution order.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // as above
pub enum Backward {
    ConvData { conv: ConvId, dy: TensorId, dx: Dst },
    ConvWeight { conv: ConvId, x: TensorId, dy: TensorId },
    Norm { norm: NormId, x: TensorId, y: TensorId, relu: bool, dy: TensorId, dx: Dst, dres: Option<Dst> },
    Join { y: TensorId, relu: bool, dy: TensorId, da: Dst, db: Option<Dst> },
    Pool { dy: TensorId, dx: Dst },
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
}

/// A node after fusion, at the place of the last node it took in.
struct Fused {
    op: Op,
    /// Node whose value `op` reads first.
    x: NodeId,
    residual: Option<NodeId>,
    relu: bool,
    /// Node whose value this is.
    out: NodeId,
}

/// Lowers `graph` with `masks` (by parameter name; weights without one are dense) for at most `batch` images.
///
/// # Errors
/// A mask that names no maskable parameter, or has another shape; a graph without logits of 1x1.
pub fn lower(graph: &Graph, masks: &[Mask], batch: usize) -> Result<Program> {
    let last = graph.nodes().len() - 1;
    let (classes, h, w) = graph.nodes()[last].chw;
    if (h, w) != (1, 1) || matches!(graph.nodes()[last].op, Op::Input) || batch == 0 {
        return Err(Error::Usage(format!(
            "a network ends in logits of Cx1x1 and takes at least one image a batch; got {classes}x{h}x{w} and {batch}"
        )));
    }
    if !graph.pools().is_empty() {
        return Err(Error::Usage("maximum pooling does not run yet: choose a network without one".into()));
    }
    let fused = fuse(graph);
    if let Some(dead) = (1..last).find(|&i| graph.nodes().iter().all(|n| !n.inputs.contains(&NodeId(i)))) {
        return Err(Error::Usage(format!("node {dead} ({:?}) feeds nothing: remove it", graph.nodes()[dead].op)));
    }
    let mut plan = Plan { graph, spec: storage(graph, masks, batch)?, free: HashMap::new() };

    let mut tensor: BTreeMap<usize, TensorId> = BTreeMap::new();
    tensor.insert(0, plan.tensor(plan.plane(0, input_halo(graph, &fused, 0))));
    for f in &fused {
        let halo = input_halo(graph, &fused, f.out.0);
        tensor.insert(f.out.0, plan.tensor(plan.plane(f.out.0, halo)));
    }
    let t = |id: NodeId| tensor[&id.0];
    let forward = fused.iter().map(|f| match f.op {
        Op::Conv(c) => Forward::Conv { conv: ConvId(c as u32), x: t(f.x), y: t(f.out) },
        Op::Norm(m) => {
            Forward::Norm { norm: NormId(m as u32), x: t(f.x), residual: f.residual.map(t), relu: f.relu, y: t(f.out) }
        }
        Op::Pool => Forward::Pool { x: t(f.x), y: t(f.out) },
        Op::Relu | Op::Add | Op::Input | Op::MaxPool(_) => {
            Forward::Join { a: t(f.x), b: f.residual.map(t), relu: f.relu, y: t(f.out) }
        }
    });
    let forward = forward.collect();

    // Gradients: walk back; the first writer of a node's gradient overwrites, later ones accumulate; freed after its reader.
    let mut needs = vec![false; graph.nodes().len()];
    for f in &fused {
        let own = matches!(f.op, Op::Conv(_) | Op::Norm(_));
        needs[f.out.0] = own || needs[f.x.0] || f.residual.is_some_and(|r| needs[r.0]);
    }
    let mut grads: HashMap<usize, TensorId> = HashMap::new();
    let dlogits = plan.grad(last, &fused);
    grads.insert(last, dlogits);
    let mut backward = Vec::new();
    for f in fused.iter().rev() {
        let Some(dy) = grads.remove(&f.out.0) else { continue };
        let mut dst = |plan: &mut Plan, id: NodeId| {
            needs[id.0].then(|| match grads.get(&id.0) {
                Some(&t) => Dst { t, write: Write::Accumulate },
                None => {
                    let t = plan.grad(id.0, &fused);
                    grads.insert(id.0, t);
                    Dst { t, write: Write::Overwrite }
                }
            })
        };
        match f.op {
            Op::Conv(c) => {
                let conv = ConvId(c as u32);
                backward.push(Backward::ConvWeight { conv, x: t(f.x), dy });
                if let Some(dx) = dst(&mut plan, f.x) {
                    backward.push(Backward::ConvData { conv, dy, dx });
                }
            }
            Op::Norm(m) => {
                let dx = dst(&mut plan, f.x).ok_or_else(|| frozen("batch norm"))?;
                let dres = f.residual.and_then(|r| dst(&mut plan, r));
                let norm = NormId(m as u32);
                backward.push(Backward::Norm { norm, x: t(f.x), y: t(f.out), relu: f.relu, dy, dx, dres });
            }
            Op::Pool => {
                if let Some(dx) = dst(&mut plan, f.x) {
                    backward.push(Backward::Pool { dy, dx });
                }
            }
            Op::Relu | Op::Add | Op::Input | Op::MaxPool(_) => {
                let da = dst(&mut plan, f.x);
                let db = f.residual.and_then(|r| dst(&mut plan, r));
                let (da, db) = if da.is_some() { (da, db) } else { (db, None) };
                let (y, relu) = (t(f.out), f.relu);
                match (da, db) {
                    (Some(da), Some(db)) if da.t == db.t => {
                        backward.push(Backward::Join { y, relu, dy, da, db: None });
                        backward.push(Backward::Join { y, relu, dy, da: db, db: None });
                    }
                    (Some(da), db) => backward.push(Backward::Join { y, relu, dy, da, db }),
                    (None, _) => {}
                }
            }
        }
        plan.release(dy);
    }
    Ok(Program { forward, backward, input: tensor[&0], logits: tensor[&last], dlogits, spec: plan.spec })
}

fn frozen(what: &str) -> Error {
    Error::Usage(format!("a {what} directly on the images is not supported: put a convolution before it"))
}

/// Parameters and layers of the spec, with the masks' kept positions.
fn storage(graph: &Graph, masks: &[Mask], batch: usize) -> Result<Spec> {
    let mut by_name: HashMap<&str, &Mask> = masks.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut spec = Spec { batch, ..Spec::default() };
    for p in graph.params() {
        let mask = if p.maskable { by_name.remove(p.name.as_str()) } else { None };
        if let Some(m) = mask.filter(|m| m.shape != p.shape) {
            return Err(Error::Usage(format!("mask of {}: wanted shape {:?}, got {:?}", p.name, p.shape, m.shape)));
        }
        let kept = mask.and_then(|m| m.kept.clone());
        let start = spec.stored();
        let len = kept.as_ref().map_or(p.size(), |k| k.len());
        spec.params.push(ParamSpec { shape: p.shape.clone(), kept, range: start..start + len });
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

fn fuse(graph: &Graph) -> Vec<Fused> {
    let nodes = graph.nodes();
    let mut readers = vec![0; nodes.len()];
    for id in nodes.iter().flat_map(|n| &n.inputs) {
        readers[id.0] += 1;
    }
    readers[nodes.len() - 1] += 1; // the caller reads the logits
    let mut taken = vec![false; nodes.len()];
    let mut fused: Vec<Fused> = Vec::new();
    // From the end, so that a ReLU takes its addition before the addition looks for its batch norm.
    for (i, node) in nodes.iter().enumerate().rev() {
        if taken[i] || matches!(node.op, Op::Input) {
            continue;
        }
        let mut f = Fused {
            op: node.op.clone(),
            x: node.inputs[0],
            residual: node.inputs.get(1).copied(),
            relu: matches!(node.op, Op::Relu),
            out: NodeId(i),
        };
        let alone = |id: NodeId, taken: &[bool]| readers[id.0] == 1 && !taken[id.0];
        if matches!(f.op, Op::Relu) && matches!(nodes[f.x.0].op, Op::Add) && alone(f.x, &taken) {
            taken[f.x.0] = true;
            f.op = Op::Add;
            f.residual = Some(nodes[f.x.0].inputs[1]);
            f.x = nodes[f.x.0].inputs[0];
        }
        if matches!(f.op, Op::Relu | Op::Add) {
            let is_norm = |id: NodeId| matches!(nodes[id.0].op, Op::Norm(_)) && alone(id, &taken);
            if let Some(r) = f.residual.filter(|&r| !is_norm(f.x) && is_norm(r)) {
                f.residual = Some(f.x);
                f.x = r;
            }
            // x + norm(x) stays apart: one operation must not have the same tensor as two destinations.
            if is_norm(f.x) && f.residual != Some(nodes[f.x.0].inputs[0]) {
                taken[f.x.0] = true;
                f.op = nodes[f.x.0].op.clone();
                f.x = nodes[f.x.0].inputs[0];
            }
        }
        fused.push(f);
    }
    fused.reverse();
    fused
}

/// Halo that the convolutions reading `node` need.
fn input_halo(graph: &Graph, fused: &[Fused], node: usize) -> u32 {
    let reads = fused.iter().filter(|f| f.x.0 == node);
    let convs = reads.filter_map(|f| if let Op::Conv(c) = f.op { Some(c) } else { None });
    convs.map(|c| graph.convs()[c].geom.input_halo()).max().unwrap_or(0)
}

struct Plan<'g> {
    graph: &'g Graph,
    spec: Spec,
    /// Released gradient slots by plane: reused only by equal planes, so that zero halos stay zero.
    free: HashMap<Plane, Vec<u32>>,
}

impl Plan<'_> {
    fn plane(&self, node: usize, halo: u32) -> Plane {
        let (c, h, w) = self.graph.nodes()[node].chw;
        Plane { c, h, w, halo }
    }

    fn tensor(&mut self, plane: Plane) -> TensorId {
        let slot = self.free.get_mut(&plane).and_then(Vec::pop).unwrap_or_else(|| {
            self.spec.slots.push(plane);
            self.spec.slots.len() as u32 - 1
        });
        self.spec.tensors.push(TensorSpec { plane, slot });
        TensorId(self.spec.tensors.len() as u32 - 1)
    }

    /// The gradient of a node's value, with the halo that the data gradient of the convolution that made it reads.
    fn grad(&mut self, node: usize, fused: &[Fused]) -> TensorId {
        let halo = match fused.iter().find(|f| f.out.0 == node).map(|f| (&f.op, f.x)) {
            Some((&Op::Conv(c), x)) if x.0 != 0 => self.graph.convs()[c].geom.output_halo(),
            _ => 0,
        };
        self.tensor(self.plane(node, halo))
    }

    fn release(&mut self, t: TensorId) {
        let TensorSpec { plane, slot } = self.spec.tensors[t.0 as usize];
        self.free.entry(plane).or_default().push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replays who last wrote each slot: every read must find the tensor it names.
    fn check_storage(p: &Program) -> usize {
        let mut holder: HashMap<u32, TensorId> = HashMap::new();
        let slot = |t: TensorId| p.spec.tensors[t.0 as usize].slot;
        for t in &p.spec.tensors {
            assert_eq!(p.spec.slots[t.slot as usize], t.plane, "a slot holds one kind of plane");
        }
        let read = |holder: &HashMap<u32, TensorId>, t: TensorId| assert_eq!(holder.get(&slot(t)), Some(&t), "{t:?}");
        holder.insert(slot(p.input), p.input);
        for f in &p.forward {
            let (reads, y) = match *f {
                Forward::Conv { x, y, .. } | Forward::Pool { x, y } => (vec![x], y),
                Forward::Norm { x, residual, y, .. } => (std::iter::once(x).chain(residual).collect(), y),
                Forward::Join { a, b, y, .. } => (std::iter::once(a).chain(b).collect(), y),
            };
            reads.into_iter().for_each(|t| read(&holder, t));
            holder.insert(slot(y), y);
        }
        read(&holder, p.logits);
        holder.insert(slot(p.dlogits), p.dlogits);
        for b in &p.backward {
            let (reads, dsts) = match *b {
                Backward::ConvData { dy, dx, .. } | Backward::Pool { dy, dx } => (vec![dy], vec![dx]),
                Backward::ConvWeight { x, dy, .. } => (vec![x, dy], vec![]),
                Backward::Norm { x, y, dy, dx, dres, .. } => {
                    (vec![x, y, dy], std::iter::once(dx).chain(dres).collect())
                }
                Backward::Join { y, dy, da, db, .. } => (vec![y, dy], std::iter::once(da).chain(db).collect()),
            };
            reads.iter().for_each(|&t| read(&holder, t));
            for d in dsts {
                assert!(reads.iter().all(|&r| slot(r) != slot(d.t)), "{b:?} overwrites what it reads");
                if d.write == Write::Accumulate {
                    read(&holder, d.t);
                }
                holder.insert(slot(d.t), d.t);
            }
        }
        p.spec.slots.len()
    }

    #[test]
    fn resnet_is_fused_and_its_memory_plan_holds() {
        let g = crate::models::resnet(20, 16, 3, 10, 32).unwrap();
        let p = lower(&g, &[], 16).unwrap();
        let count = |f: fn(&Forward) -> bool| p.forward.iter().filter(|x| f(x)).count();
        assert_eq!(count(|f| matches!(f, Forward::Conv { .. })), 22);
        assert_eq!(count(|f| matches!(f, Forward::Norm { .. })), 21, "each batch norm once");
        assert_eq!(
            count(|f| matches!(f, Forward::Norm { residual: Some(_), relu: true, .. })),
            9,
            "each residual join"
        );
        assert_eq!(count(|f| matches!(f, Forward::Join { .. })), 0, "nothing left to join");
        let data = p.backward.iter().filter(|b| matches!(b, Backward::ConvData { .. })).count();
        assert_eq!(data, 21, "no data gradient for the images");
        let slots = check_storage(&p);
        assert!(slots <= p.forward.len() + 1 + 14, "gradient slots are reused: {slots}");
    }

    #[test]
    fn graphs_that_are_no_resnets_lower_too() {
        let mut g = Graph::new(2, 6, 6);
        let a = g.conv("a", g.input(), 4, 3, 1, 1).unwrap();
        let n = g.norm("n", a);
        let twice = g.add(n, n).unwrap(); // two reads of one value
        let r = g.relu(twice);
        let m = g.norm("m", r);
        let own = g.add(m, r).unwrap(); // x + norm(x)
        let c = g.conv("c", own, 4, 1, 1, 0).unwrap();
        let s = g.add(c, own).unwrap();
        let p = g.pool(s);
        g.linear("fc", p, 3).unwrap();
        check_storage(&lower(&g, &[], 4).unwrap());
    }

    #[test]
    fn masks_must_fit() {
        let g = crate::models::resnet(8, 4, 1, 3, 8).unwrap();
        let mask = |name: &str, shape: Vec<usize>| Mask {
            name: name.into(),
            shape,
            density: 0.5,
            kept: Some(vec![0, 1].into()),
        };
        let p = lower(&g, &[mask("conv.weight", vec![4, 1, 3, 3])], 4).unwrap();
        assert_eq!(p.spec.params[0].range, 0..2, "only kept weights are stored");
        assert_eq!(p.spec.stored(), g.param_count() - 34);
        for bad in [mask("conv.weight", vec![4, 9]), mask("bn.weight", vec![4]), mask("nowhere", vec![4])] {
            assert_eq!(lower(&g, &[bad], 4).unwrap_err().exit_code(), 2);
        }
    }
}
