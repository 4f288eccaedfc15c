//! The f64 reference backend: slow, simple, one plain loop nest an op, one thread, logical N,C,H,W storage.
//!
//! It defines what every other backend must compute, and it runs the whole graph in f64, which meets PyTorch to 1e-9.
//! It panics on a malformed [`Spec`] or call, one op's tensors sharing a slot for instance, which would pass unseen here and
//! not on a faster backend: those are bugs of the caller, never user input.

mod conv;
mod norm;

use super::{Backend, BatchLoss, Bytes, ConvId, Dst, NormId, ParamId, Plane, SgdStep, Spec, Store, TensorId, Write};
use norm::Stats;

/// The reference backend. Storage of tensor `t` is slot `t.slot`: `batch` images of `c*h*w` numbers, no halo.
pub struct RefBackend {
    spec: Spec,
    slots: Vec<Vec<f64>>,
    values: Vec<f64>,
    grads: Vec<f64>,
    momentum: Vec<f64>,
    running: Vec<f64>,
    stats: Vec<Stats>,
}

impl RefBackend {
    /// Allocates for `spec`, everything zero (running variances too: the host writes the initial state).
    pub fn new(spec: Spec) -> RefBackend {
        for (i, t) in spec.tensors.iter().enumerate() {
            assert_eq!(t.plane, spec.slots[t.slot as usize], "tensor {i} must have the plane of its slot {}", t.slot);
        }
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
        let stats = |c: u32| Stats { mean: vec![f64::NAN; c as usize], rstd: vec![f64::NAN; c as usize] };
        RefBackend {
            slots: spec.slots.iter().map(|&p| vec![0.0; spec.batch * image(p)]).collect(),
            values: vec![0.0; spec.stored()],
            grads: vec![0.0; spec.stored()],
            momentum: vec![0.0; spec.stored()],
            running: vec![0.0; spec.running()],
            stats: spec.norms.iter().map(|n| stats(n.c)).collect(),
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
        self.slots[t.slot as usize][..n * image(t.plane)].to_vec()
    }

    fn store(&mut self, dst: Dst, data: &[f64]) {
        let t = self.spec.tensors[dst.t.0 as usize];
        assert_eq!(data.len() % image(t.plane), 0, "tensor {} holds {:?}", dst.t.0, t.plane);
        let slot = &mut self.slots[t.slot as usize][..data.len()];
        for (old, new) in slot.iter_mut().zip(data) {
            *old = match dst.write {
                Write::Overwrite => *new,
                Write::Accumulate => *old + *new,
            };
        }
    }

    /// What an op writes must not lie in the slot of anything else that it reads or writes.
    fn no_overlap(&self, reads: &[TensorId], writes: &[TensorId]) {
        let slot = |t: &TensorId| self.spec.tensors[t.0 as usize].slot;
        for (i, w) in writes.iter().enumerate() {
            let overlap = reads.iter().chain(&writes[..i]).find(|t| slot(t) == slot(w));
            assert!(overlap.is_none(), "tensors {w:?} and {overlap:?} of one op share slot {}", slot(w));
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

fn over(t: TensorId) -> Dst {
    Dst { t, write: Write::Overwrite }
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
        let stats: usize = self.stats.iter().map(|s| 2 * s.mean.len()).sum();
        let arena: usize = self.slots.iter().map(Vec::len).sum();
        Bytes {
            values: stored,
            indices: 4 * kept as u64,
            gradients: stored,
            momentum: stored,
            operand_copies: 0,
            activations: 8 * (arena + stats + self.running.len()) as u64,
        }
    }

    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[f64]) {
        assert_eq!(nchw.len(), n * image(self.plane(t)), "tensor {}: numbers for {n} images", t.0);
        self.store(over(t), nchw);
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

    fn conv_forward(&mut self, conv: ConvId, x: TensorId, y: TensorId, n: usize) {
        self.no_overlap(&[x], &[y]);
        self.conv_y(conv, x, y, n);
    }

    fn conv_backward_data(&mut self, conv: ConvId, dy: TensorId, dx: Dst, n: usize) {
        self.no_overlap(&[dy], &[dx.t]);
        self.conv_dx(conv, dy, dx, n);
    }

    fn conv_backward_weight(&mut self, conv: ConvId, x: TensorId, dy: TensorId, n: usize) {
        self.conv_dw(conv, x, dy, n);
    }

    fn norm_forward(
        &mut self,
        norm: NormId,
        x: TensorId,
        residual: Option<TensorId>,
        relu: bool,
        y: TensorId,
        n: usize,
    ) {
        self.no_overlap(&[x, residual.unwrap_or(x)], &[y]);
        self.norm_train(norm, x, residual, relu, y, n);
    }

    fn norm_infer(&mut self, norm: NormId, x: TensorId, residual: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.no_overlap(&[x, residual.unwrap_or(x)], &[y]);
        self.norm_eval(norm, x, residual, relu, y, n);
    }

    fn norm_backward(
        &mut self,
        norm: NormId,
        x: TensorId,
        y: TensorId,
        relu: bool,
        dy: TensorId,
        dx: Dst,
        dres: Option<Dst>,
        n: usize,
    ) {
        let writes: Vec<TensorId> = std::iter::once(dx).chain(dres).map(|d| d.t).collect();
        self.no_overlap(&[x, y, dy], &writes);
        self.norm_grad(norm, x, y, relu, dy, dx, dres, n);
    }

    fn join_forward(&mut self, a: TensorId, b: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.no_overlap(&[a, b.unwrap_or(a)], &[y]);
        let mut out = self.load(a, n);
        if let Some(b) = b {
            out.iter_mut().zip(self.load(b, n)).for_each(|(o, b)| *o += b);
        }
        if relu {
            out.iter_mut().for_each(|v| *v = rectify(*v));
        }
        self.store(over(y), &out);
    }

    fn join_backward(&mut self, y: TensorId, relu: bool, dy: TensorId, da: Dst, db: Option<Dst>, n: usize) {
        let both_add = da.write == Write::Accumulate && db.is_some_and(|d| d.write == Write::Accumulate);
        let second = db.filter(|d| !(both_add && d.t == da.t)); // one destination twice: only if both accumulate
        let writes: Vec<TensorId> = std::iter::once(da).chain(second).map(|d| d.t).collect();
        self.no_overlap(&[y, dy], &writes);
        let dz = through_relu(relu, &self.load(y, n), self.load(dy, n));
        self.store(da, &dz);
        if let Some(db) = db {
            self.store(db, &dz);
        }
    }

    fn pool_forward(&mut self, x: TensorId, y: TensorId, n: usize) {
        self.no_overlap(&[x], &[y]);
        let p = self.plane(x);
        let pixels = (p.h * p.w) as usize;
        let out: Vec<f64> = self.load(x, n).chunks(pixels).map(|c| c.iter().sum::<f64>() / pixels as f64).collect();
        self.store(over(y), &out);
    }

    fn pool_backward(&mut self, dy: TensorId, dx: Dst, n: usize) {
        self.no_overlap(&[dy], &[dx.t]);
        let p = self.plane(dx.t);
        let pixels = (p.h * p.w) as usize;
        let out: Vec<f64> =
            self.load(dy, n).iter().flat_map(|d| std::iter::repeat_n(d / pixels as f64, pixels)).collect();
        self.store(dx, &out);
    }

    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        self.no_overlap(&[logits], dlogits.as_slice());
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
            self.store(over(dlogits), &grad);
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
