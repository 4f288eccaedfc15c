//! The f64 reference backend: slow, simple, one plain loop nest an op, one thread, logical N,C,H,W storage.
//!
//! It defines what every other backend must compute, and it runs the whole graph in f64, which meets PyTorch to 1e-9.
//! It panics on a malformed [`Spec`] or call, one op's tensors sharing a slot for instance, which would pass unseen here and
//! not on a faster backend: those are bugs of the caller, never user input.

use super::{
    Backend, BatchLoss, Bytes, ConvId, Grad, GradDst, Input, NormId, ParamId, Plane, PoolId, SgdStep, Spec, Store,
    TensorId, Write,
};

/// The reference backend. Storage of tensor `t` is slot `t.slot`: `batch` images of `c*h*w` numbers, no halo.
pub struct RefBackend {
    spec: Spec,
    arena: Vec<f64>,
    values: Vec<f64>,
    grads: Vec<f64>,
    momentum: Vec<f64>,
    running: Vec<f64>,
}

impl RefBackend {
    /// Allocates for `spec`, everything zero (running variances too: the host writes the initial state).
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
        RefBackend {
            arena: vec![0.0; spec.batch * spec.arena],
            values: vec![0.0; spec.stored()],
            grads: vec![0.0; spec.stored()],
            momentum: vec![0.0; spec.stored()],
            running: vec![0.0; spec.running()],
            spec,
        }
    }

    fn plane(&self, t: TensorId) -> Plane {
        self.spec.tensors[t.0 as usize].plane
    }

    /// The first `n` images of `t`.
    fn load(&self, t: TensorId, n: usize) -> Vec<f64> {
        assert!((1..=self.spec.batch).contains(&n), "{n} images, wanted 1 to {}", self.spec.batch);
        let t = self.spec.tensors[t.0 as usize];
        self.arena[self.spec.batch * t.at..][..n * image(t.plane)].to_vec()
    }

    fn store(&mut self, t: TensorId, write: Write, data: &[f64]) {
        let t = self.spec.tensors[t.0 as usize];
        assert_eq!(data.len() % image(t.plane), 0, "tensor holds {:?}", t.plane);
        let place = &mut self.arena[self.spec.batch * t.at..][..data.len()];
        for (old, new) in place.iter_mut().zip(data) {
            *old = match write {
                Write::Overwrite => *new,
                Write::Accumulate => *old + *new,
            };
        }
    }

    /// The stored numbers of `param` in `values`, with nothing pruned in between.
    fn dense_param(&self, param: ParamId) -> &[f64] {
        let p = &self.spec.params[param.0 as usize];
        assert!(p.kept.is_none(), "parameter {} must be dense", param.0);
        &self.values[p.range.clone()]
    }
}

/// Numbers in one image.
fn image(p: Plane) -> usize {
    (p.c * p.h * p.w) as usize
}

/// The channel of element `i` of an N,C,H,W tensor.
fn channel(p: Plane, i: usize) -> usize {
    i / (p.h * p.w) as usize % p.c as usize
}

/// ReLU that lets NaN through, as PyTorch's: a diverged network must show in the loss.
fn rectify(v: f64) -> f64 {
    if v < 0.0 { 0.0 } else { v }
}

/// `dy`, or with `relu` only where `y > 0`.
fn through_relu(relu: bool, y: &[f64], dy: Vec<f64>) -> Vec<f64> {
    dy.into_iter().zip(y).map(|(d, &y)| if !relu || y > 0.0 { d } else { 0.0 }).collect()
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
        Bytes {
            values: stored,
            indices: 4 * kept as u64,
            gradients: stored,
            momentum: stored,
            operand_copies: 0,
            activations: 8 * (self.arena.len() + self.running.len()) as u64,
        }
    }

    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[f64]) {
        assert_eq!(nchw.len(), n * image(self.plane(t)), "tensor {}: numbers for {n} images", t.0);
        self.store(t, Write::Overwrite, nchw);
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
        todo!("{norm:?} {x:?} {n}")
    }

    fn norm_running(&mut self, norm: NormId) {
        todo!("{norm:?}")
    }

    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        todo!("{conv:?} {x:?} {y:?} {stats:?} {n}")
    }

    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        todo!("{conv:?} {x:?} {dy:?} {dx:?} {n}")
    }

    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        todo!("{a:?} {b:?} {relu} {y:?} {n}")
    }

    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        todo!("{dy:?} {dx:?} {n}")
    }

    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        todo!("{x:?} {y:?} {n}")
    }

    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        todo!("{dy:?} {dx:?} {n}")
    }

    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        todo!("{pool:?} {x:?} {y:?} {n}")
    }

    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        todo!("{pool:?} {x:?} {dy:?} {dx:?} {n}")
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
        let classes = image(self.plane(logits));
        let mut result = BatchLoss::default();
        let mut grad = Vec::new();
        for (row, &label) in self.load(logits, n).chunks(classes).zip(labels) {
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
            self.store(dlogits, Write::Overwrite, &grad);
        }
        result
    }

    fn sgd(&mut self, step: SgdStep) {
        for ((v, m), &grad) in self.values.iter_mut().zip(&mut self.momentum).zip(&self.grads) {
            let g = grad + step.weight_decay * *v;
            *m = step.momentum * *m + g;
            *v -= step.lr * if step.nesterov { g + step.momentum * *m } else { *m };
        }
    }
}
