//! What is fused, and the memory plan. Whether the operations compute the network's gradients: `gradients`.

use super::*;
use crate::backend::{Mask as Open, Write};

#[path = "gradient_tests.rs"]
mod gradients;
#[path = "test_graphs.rs"]
mod graphs;
#[path = "input_gradient_tests.rs"]
mod input_gradient;
#[path = "naive_tests.rs"]
mod naive;

/// Every tensor that an operation names. From its debug text, so that no use can be forgotten.
fn named(op: &impl std::fmt::Debug) -> Vec<TensorId> {
    let text = format!("{op:?}");
    let ids = text.split("TensorId(").skip(1);
    ids.map(|rest| TensorId(rest[..rest.find(')').unwrap()].parse().unwrap())).collect()
}

/// Replays who holds each part of the arena: every read must find the tensor it names.
struct Arena<'a> {
    spec: &'a Spec,
    held: Vec<TensorId>,
}

impl Arena<'_> {
    fn overlap(&self, a: TensorId, b: TensorId) -> bool {
        let [a, b] = [a, b].map(|t| self.spec.tensors[t.0 as usize]);
        a.at < b.at + b.plane.room() && b.at < a.at + a.plane.room()
    }

    fn write(&mut self, t: TensorId) {
        let mut held = std::mem::take(&mut self.held);
        held.retain(|&h| !self.overlap(h, t));
        held.push(t);
        self.held = held;
    }

    /// An operation that writes `dst` and reads everything else that it names.
    fn op(&mut self, op: &impl std::fmt::Debug, dst: Option<TensorId>, accumulate: bool) {
        let reads = named(op).into_iter().filter(|&t| Some(t) != dst);
        for t in reads.chain(dst.filter(|_| accumulate)) {
            assert!(self.held.contains(&t), "{op:?} reads {t:?}, which is gone or was never written");
            assert!(dst.is_none_or(|d| d == t || !self.overlap(d, t)), "{op:?} writes over what it reads");
        }
        let times = named(op).into_iter().filter(|&t| Some(t) == dst).count();
        assert_eq!(times, dst.iter().count(), "{op:?} reads what it writes");
        dst.into_iter().for_each(|t| self.write(t));
    }
}

fn check_storage(p: &Program) {
    for (i, t) in p.spec.tensors.iter().enumerate() {
        assert!(t.at + t.plane.room() <= p.spec.arena, "tensor {i} ends beyond the arena");
    }
    let mut arena = Arena { spec: &p.spec, held: vec![] };
    arena.write(p.input);
    for op in &p.forward {
        let y = match *op {
            Forward::Conv { y, .. } | Forward::Join { y, .. } => Some(y),
            Forward::Pool { y, .. } | Forward::MaxPool { y, .. } => Some(y),
            Forward::Stats { .. } => None,
        };
        arena.op(op, y, false);
    }
    arena.op(&p.logits, None, false);
    arena.write(p.dlogits);
    for op in &p.backward {
        let dx = match *op {
            Backward::Conv { dx, .. } => dx,
            Backward::ConvData { dx, .. } => Some(dx),
            Backward::Copy { dx, .. } | Backward::Pool { dx, .. } | Backward::MaxPool { dx, .. } => Some(dx),
        };
        arena.op(op, dx.map(|d| d.t), dx.is_some_and(|d| d.write == Write::Accumulate));
    }
    arena.op(&(p.logits, p.dinput), None, false); // the host reads them after the step
}

#[test]
fn resnet_is_fused_and_its_memory_plan_holds() {
    let g = crate::models::resnet(20, 16, 3, 10, 32).unwrap();
    let p = lower(&g, &[], 16).unwrap();
    check_storage(&p);
    let count = |f: fn(&Forward) -> bool| p.forward.iter().filter(|x| f(x)).count();
    assert_eq!(count(|f| matches!(f, Forward::Conv { .. })), 22);
    assert_eq!(count(|f| matches!(f, Forward::Conv { stats: Some(_), .. })), 21, "each norm in its convolution");
    assert_eq!(count(|f| matches!(f, Forward::Conv { x: Input { norm: Some(_), relu: true, .. }, .. })), 10);
    assert_eq!(count(|f| matches!(f, Forward::Join { relu: true, b: Some(_), .. })), 9, "each residual join");
    assert_eq!(p.forward.len(), 22 + 9 + 1, "convolutions, joins, a pool, and nothing else");

    let convs = p.backward.iter().filter(|b| matches!(b, Backward::Conv { .. })).count();
    assert_eq!((convs, p.backward.len()), (22, 23), "convolutions, a pool, and no copies");
    let dsts: Vec<GradDst> = p.backward.iter().filter_map(|b| b.uses().1).collect();
    assert_eq!(dsts.len(), 22, "no gradient for the images");
    let masks = dsts.iter().filter(|d| matches!(d.finish.mask, Open::Positive(_))).count();
    let sums: usize = dsts.iter().map(|d| d.finish.reduce.iter().flatten().count()).sum();
    assert_eq!((masks, sums), (19, 21), "each ReLU and each batch norm in some gradient's finish");

    // Saved: the images, each raw convolution, each join; all of them are alive when the backward pass begins.
    let saved: usize = std::iter::once(p.input)
        .chain(p.forward.iter().filter_map(|f| f.uses().1))
        .map(|t| p.spec.tensors[t.0 as usize].plane.room())
        .sum();
    let over = p.spec.arena as f64 / saved as f64;
    assert!((1.0..1.05).contains(&over), "{} numbers an image for {saved} saved", p.spec.arena);
}

#[test]
fn masks_must_fit() {
    let g = crate::models::resnet(8, 4, 1, 3, 8).unwrap();
    let mask = |name: &str, shape: Vec<usize>| Mask {
        name: name.into(),
        shape,
        density: 0.5,
        kept: Some(vec![0, 1].into()),
        block: None,
    };
    let p = lower(&g, &[mask("conv.weight", vec![4, 1, 3, 3])], 4).unwrap();
    assert_eq!(p.spec.params[0].range, 0..2, "only kept weights are stored");
    assert_eq!(p.spec.stored(), g.param_count() - 34);
    for bad in [mask("conv.weight", vec![4, 9]), mask("bn.weight", vec![4]), mask("nowhere", vec![4])] {
        assert_eq!(lower(&g, &[bad], 4).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn graphs_without_logits_or_with_dead_ends_are_refused() {
    let mut g = Graph::new(2, 4, 4);
    assert_eq!(lower(&g, &[], 1).unwrap_err().exit_code(), 2, "images only");
    let c = g.conv("c", g.input(), 3, 1, 1, 0).unwrap();
    assert!(lower(&g, &[], 1).unwrap_err().to_string().contains("3x4x4"));
    g.relu(c);
    let p = g.pool(c);
    g.linear("fc", p, 2).unwrap();
    assert!(lower(&g, &[], 1).unwrap_err().to_string().contains("node 2, a ReLU, feeds nothing"));
}
