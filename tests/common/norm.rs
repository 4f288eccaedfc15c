//! Batch norm: coefficients from batch and running statistics, sums of a finished gradient, the gradient through it, all
//! seen through the ops that do nothing else: join and copy.

use super::COUNTS;
use super::rig::{Build, Rig, normal};
use sparse_engine::backend::{
    Backend, Finish, Grad, GradDst, Input, Mask, NormId, Normed, Spec, Store, TensorId, Write,
};
use sparse_engine::graph::lower::{Backward, Forward};

struct Case<B: Backend> {
    rig: Rig<B>,
    norm: NormId,
    other: NormId,
    /// Inputs of the two norms.
    x: TensorId,
    x2: TensorId,
    y: TensorId,
    dy: TensorId,
    source: TensorId,
    dx: TensorId,
}

/// All planes, batch sizes, kinds of statistics, finishes and write rules.
pub fn check<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for chw in [[6, 5, 5], [17, 4, 3], [1, 8, 8], [5, 1, 1], [4, 1, 2]] {
        let mut case = Case::new(make, chw);
        for n in COUNTS {
            let batch = n as u32 * chw[1] * chw[2] >= 2; // a batch has statistics
            if batch {
                case.forward(n);
                case.copies(n);
                case.backward(n);
            }
            case.frozen(n);
            if batch {
                case.thawed(n);
            }
        }
    }
}

impl<B: Backend> Case<B> {
    fn new(make: &dyn Fn(Spec) -> B, chw: [u32; 3]) -> Self {
        let mut build = Build::new(33);
        build.norm(2); // its parameters and statistics must stay as they are
        let norm = build.norm(chw[0]);
        build.norm(3);
        let other = build.norm(chw[0]);
        let gamma = build.0.norms[norm.0 as usize].gamma;
        let [x, x2, y, dy, source, dx] = build.tensors(chw);
        let mut rig = Rig::new(build, make, format!("CHW {chw:?}"));
        let range = rig.exact.spec().params[gamma.0 as usize].range.clone();
        let mut values = normal("values", rig.exact.spec().stored());
        if chw[0] > 1 {
            values[range.end - 1] = 0.0; // a scale of zero kills dx of its channel, and nothing else
        }
        rig.set_store(Store::Values, &values);
        Case { rig, norm, other, x, x2, y, dy, source, dx }
    }

    fn forward(&mut self, n: usize) {
        let Case { rig, norm, x, y, .. } = self;
        for turn in 0..2 {
            rig.set_normed(*x, *norm, n, &format!("x {n} {turn}"), true);
            // Statistics of the batch, then the running ones.
            for op in ["norm_stats", "norm_running"] {
                if op == "norm_running" {
                    rig.use_running(*norm, n);
                }
                for relu in [false, true] {
                    rig.poison(*y);
                    let a = Input { t: *x, norm: Some(*norm), relu };
                    let join = Forward::Join { a, b: None, relu: false, y: *y };
                    rig.forward(&format!("join_forward after {op} relu {relu}"), join, n, 1);
                }
            }
        }
    }

    /// Every finish of a plain gradient.
    fn copies(&mut self, n: usize) {
        let Case { rig, norm, other, x, x2, y, dx, source, .. } = self;
        let normed = [Normed { norm: *norm, x: *x }, Normed { norm: *other, x: *x2 }];
        for r in normed {
            rig.set_normed(r.x, r.norm, n, &format!("x {r:?} {n}"), true);
        }
        rig.set_normal(*y, n, &format!("y {n}"));
        let mut half = rig.exact.read_tensor(*y, n);
        half.iter_mut().for_each(|v| *v = v.max(0.0)); // a ReLU's output: at zero the gradient is zero
        rig.set(*y, n, &half);
        let computed = |relu| Input { t: *x, norm: Some(*norm), relu };
        for write in [Write::Overwrite, Write::Accumulate] {
            for (kind, mask) in [
                ("none", Mask::All),
                ("stored", Mask::Positive(Input::plain(*y))),
                ("norm", Mask::Positive(computed(false))),
                ("relu", Mask::Positive(computed(true))),
            ] {
                for reduce in [[None; 2], [Some(normed[0]), None], normed.map(Some)] {
                    let dx = GradDst { t: *dx, write, finish: Finish { mask, reduce } };
                    rig.set_normal(*source, n, &format!("dy {n}"));
                    rig.prepare(dx, n);
                    let sums = reduce.iter().flatten().count();
                    let what = format!("copy_backward {write:?} mask {kind} sums {sums}");
                    rig.backward(&what, Backward::Copy { dy: Grad::plain(*source), dx }, n, 1, 1, &[]);
                }
            }
        }
    }

    /// Through a norm, and through two that share a gradient.
    fn backward(&mut self, n: usize) {
        let Case { rig, norm, other, x, x2, dy, source, dx, .. } = self;
        let normed = [Normed { norm: *norm, x: *x }, Normed { norm: *other, x: *x2 }];
        for write in [Write::Overwrite, Write::Accumulate] {
            rig.set_grad(Grad { t: *dy, norm: Some(normed[0]) }, *source, n, &format!("dy {n}"));
            let both = Finish { reduce: normed.map(Some), ..Finish::default() };
            for (turn, shared) in [(normed[0], false), (normed[1], true), (normed[0], true)] {
                if shared {
                    let dst = GradDst { t: *dy, write: Write::Overwrite, finish: both };
                    rig.poison(*dy);
                    let op = Backward::Copy { dy: Grad::plain(*source), dx: dst };
                    rig.backward("copy_backward for two norms", op, n, 1, 1, &[]);
                }
                // The other norm's sums are those of the gradient that is written here.
                let rest = if turn == normed[0] { normed[1] } else { normed[0] };
                let mask = Mask::Positive(Input { t: rest.x, norm: Some(rest.norm), relu: true });
                let finish = Finish { mask, reduce: [None, Some(rest)] };
                let dx = GradDst { t: *dx, write, finish: if shared { finish } else { Finish::default() } };
                rig.prepare(dx, n);
                let op = Backward::Copy { dy: Grad { t: *dy, norm: Some(turn) }, dx };
                rig.backward(&format!("copy_backward through a norm {write:?}"), op, n, 1, 1, &[]);
            }
        }
    }

    /// Norms with running statistics: their sums, and the gradient through them, which needs none.
    fn frozen(&mut self, n: usize) {
        let Case { rig, norm, other, x, x2, dy, source, dx, .. } = self;
        let normed = [Normed { norm: *norm, x: *x }, Normed { norm: *other, x: *x2 }];
        for r in normed {
            rig.set_normal(r.x, n, &format!("x {r:?} {n}"));
            rig.use_running(r.norm, n);
        }
        for write in [Write::Overwrite, Write::Accumulate] {
            rig.set_normal(*source, n, &format!("dy {n}"));
            let taken = GradDst { t: *dy, write, finish: Finish { reduce: normed.map(Some), ..Finish::default() } };
            rig.prepare(taken, n);
            let op = Backward::Copy { dy: Grad::plain(*source), dx: taken };
            rig.backward(&format!("copy_backward for two frozen norms {write:?}"), op, n, 1, 1, &[]);
            for (through, gradient) in [(normed[0], *dy), (normed[1], *dy), (normed[0], *source)] {
                let mask = Mask::Positive(Input { t: *x2, norm: Some(*other), relu: true });
                let dx = GradDst { t: *dx, write, finish: Finish { mask, ..Finish::default() } };
                rig.prepare(dx, n);
                let op = Backward::Copy { dy: Grad { t: gradient, norm: Some(through) }, dx };
                rig.backward(&format!("copy_backward through a frozen norm {write:?}"), op, n, 1, 1, &[]);
            }
        }
    }

    /// The next statistics of a batch end it.
    fn thawed(&mut self, n: usize) {
        let Case { rig, norm, x, dy, source, dx, .. } = self;
        rig.set_normed(*x, *norm, n, &format!("x again {n}"), false);
        let grad = Grad { t: *dy, norm: Some(Normed { norm: *norm, x: *x }) };
        rig.set_grad(grad, *source, n, &format!("dy again {n}"));
        let dx = GradDst { t: *dx, write: Write::Overwrite, finish: Finish::default() };
        rig.prepare(dx, n);
        rig.backward("copy_backward through a norm that was frozen", Backward::Copy { dy: grad, dx }, n, 1, 1, &[]);
    }
}
