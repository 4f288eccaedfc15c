//! The f64 reference backend: slow, simple, one plain loop nest an op, one thread, logical N,C,H,W storage.
//!
//! It defines what every other backend must compute, and it runs the whole graph in f64, which meets PyTorch to 1e-9.
//! Every operand is computed in full before an op begins, every result before it is stored: nothing is fused here.
//!
//! It panics on a malformed [`Spec`] or call: those are bugs of the caller, never user input, and a faster backend would
//! compute nonsense in silence. Refused are an op that writes over its own operands, a tensor read after another one
//! took its place, coefficients or sums of a norm that were never taken, and shapes that do not fit.

mod conv;
mod norm;
mod pool;

use super::{
    Backend, BatchLoss, Bytes, ConvId, Grad, GradDst, Input, Mask, NormId, ParamId, Plane, PoolId, SgdStep, Spec,
    Store, TensorId, Write,
};
use std::ops::Range;

/// The reference backend. Tensor `t` lies at `batch * t.at` in N,C,H,W order; what was never written is NaN.
pub struct RefBackend {
    spec: Spec,
    arena: Vec<f64>,
    /// Whether each tensor was written, and nothing else over it since.
    held: Vec<bool>,
    values: Vec<f64>,
    grads: Vec<f64>,
    momentum: Vec<f64>,
    running: Vec<f64>,
    norms: Vec<norm::State>,
}

impl RefBackend {
    /// Allocates for `spec`, the stores zero (running variances too: the host writes the initial state).
    pub fn new(spec: Spec) -> RefBackend {
        let mut end = 0;
        for (i, p) in spec.params.iter().enumerate() {
            let size: usize = p.shape.iter().product();
            let stored = p.kept.as_ref().map_or(size, |kept| kept.len());
            assert_eq!((p.range.start, p.range.len()), (end, stored), "parameter {i}: range against shape and kept");
            if let Some(kept) = &p.kept {
                assert!(kept.windows(2).all(|w| w[0] < w[1]), "parameter {i}: kept positions must ascend");
                assert!(kept.iter().all(|&at| (at as usize) < size), "parameter {i}: kept position beyond {size}");
            }
            end = p.range.end;
        }
        for (i, t) in spec.tensors.iter().enumerate() {
            assert!(!t.plane.is_empty(), "tensor {i} is empty: {:?}", t.plane);
            assert!(t.at + t.plane.room() <= spec.arena, "tensor {i} ends beyond the arena of {}", spec.arena);
        }
        RefBackend {
            arena: vec![f64::NAN; spec.batch * spec.arena],
            held: vec![false; spec.tensors.len()],
            values: vec![0.0; spec.stored()],
            grads: vec![0.0; spec.stored()],
            momentum: vec![0.0; spec.stored()],
            running: vec![0.0; spec.running()],
            norms: vec![norm::State::default(); spec.norms.len()],
            spec,
        }
    }

    fn plane(&self, t: TensorId) -> Plane {
        self.spec.tensors[t.0 as usize].plane
    }

    /// Numbers an image that `t` owns in the arena.
    fn place(&self, t: TensorId) -> Range<usize> {
        let t = self.spec.tensors[t.0 as usize];
        t.at..t.at + t.plane.room()
    }

    fn overlap(&self, a: TensorId, b: TensorId) -> bool {
        let (a, b) = (self.place(a), self.place(b));
        a.start < b.end && b.start < a.end
    }

    /// The first `n` images of `t`.
    fn load(&self, t: TensorId, n: usize) -> Vec<f64> {
        assert!((1..=self.spec.batch).contains(&n), "{n} images, wanted 1 to {}", self.spec.batch);
        self.arena[self.spec.batch * self.place(t).start..][..n * self.plane(t).len()].to_vec()
    }

    /// As [`RefBackend::load`], for an op: `t` must hold what was written to it.
    fn read(&self, t: TensorId, n: usize) -> Vec<f64> {
        assert!(self.held[t.0 as usize], "tensor {} is read, but was never written or has been overwritten", t.0);
        self.load(t, n)
    }

    fn store(&mut self, t: TensorId, data: &[f64]) {
        assert_eq!(data.len() % self.plane(t).len(), 0, "tensor {} holds {:?}", t.0, self.plane(t));
        for other in 0..self.spec.tensors.len() {
            if self.overlap(t, TensorId(other as u32)) {
                self.held[other] = other == t.0 as usize;
            }
        }
        let start = self.spec.batch * self.place(t).start;
        self.arena[start..][..data.len()].copy_from_slice(data);
    }

    /// Refuses an op that writes `t` over one of `reads`.
    fn no_overlap(&self, t: TensorId, reads: impl IntoIterator<Item = TensorId>) {
        for r in reads {
            assert!(!self.overlap(t, r), "tensor {} is written and overlaps tensor {}, which is read", t.0, r.0);
        }
    }

    /// The value of an operand.
    fn input(&self, x: Input, n: usize) -> Vec<f64> {
        let mut value = self.read(x.t, n);
        if let Some(norm) = x.norm {
            self.normalise(norm, x.t, &mut value);
        }
        if x.relu {
            value.iter_mut().for_each(|v| *v = rectify(*v));
        }
        value
    }

    /// The value of a gradient.
    fn grad(&self, dy: Grad, n: usize) -> Vec<f64> {
        let value = self.read(dy.t, n);
        match dy.norm {
            Some(through) => {
                assert_eq!(self.plane(dy.t), self.plane(through.x), "gradient {} through a norm", dy.t.0);
                self.through_norm(through, &value, n)
            }
            None => value,
        }
    }

    /// Adds or writes `data`, then completes the gradient: mask, store, sums of what is stored.
    fn write(&mut self, dx: GradDst, mut data: Vec<f64>, n: usize) {
        if dx.write == Write::Accumulate {
            data.iter_mut().zip(self.read(dx.t, n)).for_each(|(new, old)| *new += old);
        }
        if let Mask::Positive(x) = dx.finish.mask {
            assert_eq!(self.plane(dx.t), self.plane(x.t), "mask of tensor {}", dx.t.0);
            let open = self.input(x, n).into_iter().map(|v| v > 0.0);
            data.iter_mut().zip(open).for_each(|(g, open)| *g = if open { *g } else { 0.0 });
        }
        self.store(dx.t, &data);
        for normed in dx.finish.reduce.into_iter().flatten() {
            assert_eq!(self.plane(dx.t), self.plane(normed.x), "sums of tensor {}", dx.t.0);
            self.reduce(normed, &data, n);
        }
    }

    /// The stored numbers of `param` in `values`, with nothing pruned in between.
    fn dense_param(&self, param: ParamId) -> &[f64] {
        let p = &self.spec.params[param.0 as usize];
        assert!(p.kept.is_none(), "parameter {} must be dense", param.0);
        &self.values[p.range.clone()]
    }
}

/// Tensors that an op with these operands reads.
fn reads(x: Option<Input>, dy: Grad, dx: GradDst) -> impl Iterator<Item = TensorId> {
    let mask = if let Mask::Positive(x) = dx.finish.mask { Some(x.t) } else { None };
    let normed = dx.finish.reduce.into_iter().flatten().chain(dy.norm).map(|n| n.x);
    x.map(|x| x.t).into_iter().chain([dy.t]).chain(mask).chain(normed)
}

/// The channel of element `i` of an N,C,H,W tensor.
fn channel(p: Plane, i: usize) -> usize {
    i / (p.h * p.w) as usize % p.c as usize
}

/// ReLU that lets NaN through, as PyTorch's: a diverged network must show in the loss.
fn rectify(v: f64) -> f64 {
    if v < 0.0 { 0.0 } else { v }
}

impl Backend for RefBackend {
    type Real = f64;

    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn describe(&self) -> String {
        "reference f64, 1 thread".into()
    }

    fn bytes(&self) -> Bytes {
        let stored = 8 * self.spec.stored() as u64;
        let kept: usize = self.spec.params.iter().flat_map(|p| &p.kept).map(|k| k.len()).sum();
        let norms: usize = self.norms.iter().map(norm::State::len).sum();
        Bytes {
            values: stored,
            indices: 4 * kept as u64,
            gradients: stored,
            momentum: stored,
            operand_copies: 0,
            activations: 8 * (self.arena.len() + norms + self.running.len()) as u64,
        }
    }

    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[f64]) {
        assert_eq!(nchw.len(), n * self.plane(t).len(), "tensor {}: numbers for {n} images", t.0);
        self.store(t, nchw);
    }

    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<f64> {
        self.load(t, n)
    }

    fn read_store(&self, store: Store) -> Vec<f64> {
        match store {
            Store::Values => self.values.clone(),
            Store::Grads => self.grads.clone(),
            Store::Momentum => self.momentum.clone(),
            Store::Running => self.running.clone(),
        }
    }

    fn write_store(&mut self, store: Store, data: &[f64]) {
        match store {
            Store::Values => self.values.copy_from_slice(data),
            Store::Grads => self.grads.copy_from_slice(data),
            Store::Momentum => self.momentum.copy_from_slice(data),
            Store::Running => self.running.copy_from_slice(data),
        }
    }

    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        self.batch_statistics(norm, x, n);
    }

    fn norm_running(&mut self, norm: NormId) {
        self.running_statistics(norm);
    }

    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        self.no_overlap(y, [x.t]);
        let out = self.conv_y(conv, x, y, n);
        self.store(y, &out);
        if let Some(norm) = stats {
            self.batch_statistics(norm, y, n);
        }
    }

    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        self.conv_dw(conv, x, dy, n);
        if let Some(dx) = dx {
            self.no_overlap(dx.t, reads(Some(x), dy, dx));
            let out = self.conv_dx(conv, dy, dx.t, n);
            self.write(dx, out, n);
        }
    }

    fn conv_data_backward(&mut self, conv: ConvId, dy: Grad, dx: GradDst, n: usize) {
        self.no_overlap(dx.t, reads(None, dy, dx));
        let out = self.conv_dx(conv, dy, dx.t, n);
        self.write(dx, out, n);
    }

    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        self.no_overlap(y, [a].into_iter().chain(b).map(|x| x.t));
        let mut out = self.input(a, n);
        assert_eq!(self.plane(y), self.plane(a.t), "join of tensor {}", a.t.0);
        if let Some(b) = b {
            assert_eq!(self.plane(y), self.plane(b.t), "join of tensor {}", b.t.0);
            out.iter_mut().zip(self.input(b, n)).for_each(|(o, b)| *o += b);
        }
        if relu {
            out.iter_mut().for_each(|v| *v = rectify(*v));
        }
        self.store(y, &out);
    }

    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.no_overlap(dx.t, reads(None, dy, dx));
        assert_eq!(self.plane(dy.t), self.plane(dx.t), "copy of tensor {}", dy.t.0);
        let out = self.grad(dy, n);
        self.write(dx, out, n);
    }

    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        self.no_overlap(y, [x.t]);
        let out = self.mean_y(x, y, n);
        self.store(y, &out);
    }

    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.no_overlap(dx.t, reads(None, dy, dx));
        let out = self.mean_dx(dy, dx.t, n);
        self.write(dx, out, n);
    }

    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        self.no_overlap(y, [x.t]);
        let out = self.max_y(pool, x, y, n);
        self.store(y, &out);
    }

    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        self.no_overlap(dx.t, reads(Some(x), dy, dx));
        let out = self.max_dx(pool, x, dy, dx.t, n);
        self.write(dx, out, n);
    }

    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        assert_eq!(labels.len(), n, "one label an image");
        let classes = self.plane(logits).len();
        let mut result = BatchLoss::default();
        let mut grad = Vec::new();
        for (row, &label) in self.read(logits, n).chunks(classes).zip(labels) {
            let label = label as usize;
            assert!(label < classes, "label {label}, wanted below {classes}");
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max); // passes over NaN; the sum does not
            let lse = max + row.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            result.loss_sum += (1.0 - smoothing) * (lse - row[label]);
            if smoothing > 0.0 {
                result.loss_sum += smoothing * row.iter().map(|z| lse - z).sum::<f64>() / classes as f64;
            }
            // Ties: the first of the largest is the lowest class. A row with a NaN has no largest.
            let best = row.iter().position(|&z| z == max);
            result.correct += u64::from(best == Some(label) && !row.iter().any(|z| z.is_nan()));
            for (class, z) in row.iter().enumerate() {
                let hit = if class == label { 1.0 - smoothing } else { 0.0 };
                grad.push(((z - lse).exp() - hit - smoothing / classes as f64) / n as f64);
            }
        }
        if let Some(dlogits) = dlogits {
            self.no_overlap(dlogits, [logits]);
            assert_eq!(self.plane(dlogits), self.plane(logits), "gradient of the logits");
            self.store(dlogits, &grad);
        }
        result
    }

    fn sgd(&mut self, step: SgdStep) {
        for p in &self.spec.params {
            let decay = if p.decay { step.weight_decay } else { 0.0 };
            for i in p.range.clone() {
                let (v, m) = (&mut self.values[i], &mut self.momentum[i]);
                let g = self.grads[i] + decay * *v;
                *m = step.momentum * *m + g;
                *v -= step.lr * if step.nesterov { g + step.momentum * *m } else { *m };
            }
        }
    }
}
