//! The CPU backend: f32, blocks of 16 images side by side, zero halos, sparse kernels for any mask.
//!
//! `conv.rs` (forward, data gradient) and `wgrad.rs` walk the entry lists of `structure.rs`; `norm.rs`,
//! `elementwise.rs` and `loss.rs` are the rest of a step; `layout.rs`, `simd.rs` and `workers.rs` are the ground.
//! All buffers are planned at construction. Every result is the same bytes for any number of threads.

mod conv;
mod elementwise;
mod layout;
mod loss;
mod norm;
pub(crate) mod probe;
mod simd;
mod structure;
#[cfg(test)]
mod tests;
mod wgrad;
mod workers;

use super::*;
use crate::error::{Error, Result};
use layout::{Arena, View, blocks};
use norm::{Affine, Stats};
pub use simd::Isa;
use structure::ConvPlan;
use workers::{Shared, Workers};

/// A network's storage and kernels on this machine's CPU.
pub struct CpuBackend {
    spec: Spec,
    isa: Isa,
    workers: Workers,
    arena: Arena,
    values: Vec<f32>,
    grads: Vec<f32>,
    momentum: Vec<f32>,
    running: Vec<f32>,
    convs: Vec<ConvPlan>,
    stats: Vec<Stats>,
    partials: Vec<[f64; 2]>,
    images: Vec<(f64, bool)>,
    wgrad: wgrad::Scratch,
}

impl CpuBackend {
    /// Storage and plans for `spec` on `threads` threads (0: all cores), with the best instruction set of this machine.
    /// All stores are zero.
    pub fn new(spec: Spec, threads: usize) -> Result<Self> {
        Self::with_isa(spec, threads, Isa::detect())
    }

    /// The same with a given instruction set; an error if this machine lacks it.
    pub fn with_isa(spec: Spec, threads: usize, isa: Isa) -> Result<Self> {
        if !isa.available() {
            return Err(Error::Failed(format!(
                "cpu backend: this machine has no {}; use {}",
                isa.name(),
                Isa::detect().name()
            )));
        }
        check(&spec)?;
        let workers = Workers::new(threads)?;
        let convs = spec.convs.iter().map(|c| ConvPlan::new(&spec, c)).collect::<Result<Vec<_>>>()?;
        let widest = spec.norms.iter().map(|n| n.c as usize).max().unwrap_or(0);
        Ok(CpuBackend {
            isa,
            arena: Arena::new(&spec.slots, spec.batch)?,
            values: vec![0.0; spec.stored()],
            grads: vec![0.0; spec.stored()],
            momentum: vec![0.0; spec.stored()],
            running: vec![0.0; spec.running()],
            stats: spec.norms.iter().map(|n| Stats::new(n.c as usize)).collect(),
            partials: vec![[0.0; 2]; widest * blocks(spec.batch)],
            images: vec![(0.0, false); spec.batch],
            wgrad: wgrad::Scratch::new(&convs, spec.batch, workers.threads()),
            convs,
            workers,
            spec,
        })
    }

    fn view(&mut self, t: TensorId) -> View {
        let spec = self.spec.tensors[t.0 as usize];
        self.arena.view(&spec)
    }

    fn dst(&mut self, d: Dst) -> (View, Write) {
        (self.view(d.t), d.write)
    }

    fn check_n(&self, n: usize) {
        assert!((1..=self.spec.batch).contains(&n), "{n} images, wanted 1..={}", self.spec.batch);
    }

    fn norm(&self, norm: NormId) -> (NormSpec, Affine<Range<usize>>) {
        let spec = self.spec.norms[norm.0 as usize];
        let range = |p: ParamId| self.spec.params[p.0 as usize].range.clone();
        (spec, Affine { gamma: range(spec.gamma), beta: range(spec.beta) })
    }

    fn store(&self, store: Store) -> &Vec<f32> {
        match store {
            Store::Values => &self.values,
            Store::Grads => &self.grads,
            Store::Momentum => &self.momentum,
            Store::Running => &self.running,
        }
    }
}

/// What the ops rely on, beyond what `ConvPlan::new` checks.
fn check(spec: &Spec) -> Result<()> {
    let fault = |what: String| Err(Error::Failed(format!("cpu backend: {what}")));
    if spec.batch == 0 {
        return fault("batch 0; wanted at least 1".into());
    }
    for (i, t) in spec.tensors.iter().enumerate() {
        if spec.slots.get(t.slot as usize) != Some(&t.plane) {
            return fault(format!("tensor {i} {:?} does not match its slot {}", t.plane, t.slot));
        }
    }
    let mut at = 0;
    for (i, p) in spec.params.iter().enumerate() {
        if p.range.start != at || p.range.end < at || p.range.end > u32::MAX as usize {
            return fault(format!("parameter {i} lies at {:?}, wanted from {at} on", p.range));
        }
        at = p.range.end;
    }
    for (i, n) in spec.norms.iter().enumerate() {
        let fits = |p: ParamId| spec.params.get(p.0 as usize).is_some_and(|p| p.range.len() == n.c as usize);
        if !fits(n.gamma) || !fits(n.beta) || n.running + 2 * n.c as usize > spec.running() {
            return fault(format!("norm {i} of {} channels: gamma, beta or running store of another length", n.c));
        }
    }
    Ok(())
}

/// Tensors of one elementwise op.
fn assert_same(views: &[View]) {
    assert!(views.iter().all(|v| v.same_shape(&views[0])), "tensors of different shapes in one op");
}

impl Backend for CpuBackend {
    type Real = f32;

    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn describe(&self) -> String {
        let threads = self.workers.threads();
        format!("cpu {}, {threads} thread{}", self.isa.name(), if threads == 1 { "" } else { "s" })
    }

    fn bytes(&self) -> Bytes {
        let f32s = |v: &Vec<f32>| 4 * v.len() as u64;
        let stats: u64 = self.stats.iter().map(|s| f32s(&s.mean) + f32s(&s.rstd)).sum();
        let scratch = size_of_val(&self.partials[..]) + size_of_val(&self.images[..]);
        Bytes {
            values: f32s(&self.values),
            indices: self.convs.iter().map(ConvPlan::index_bytes).sum(),
            gradients: f32s(&self.grads),
            momentum: f32s(&self.momentum),
            operand_copies: self.convs.iter().map(|c| f32s(&c.values_t)).sum(),
            activations: self.arena.bytes() + stats + f32s(&self.running) + scratch as u64 + self.wgrad.bytes(),
        }
    }

    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[f32]) {
        self.check_n(n);
        let v = self.view(t);
        assert_eq!(nchw.len(), n * v.channels() * v.pixels(), "numbers for {n} images of {:?}", v.plane);
        layout::pack(&self.workers, v, n, nchw);
    }

    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<f32> {
        self.check_n(n);
        layout::unpack(self.arena.view_ref(&self.spec.tensors[t.0 as usize]), n)
    }

    fn read_store(&self, store: Store) -> Vec<f32> {
        self.store(store).clone()
    }

    fn write_store(&mut self, store: Store, data: &[f32]) {
        match store {
            Store::Values => {
                self.values.copy_from_slice(data);
                self.convs.iter_mut().for_each(|c| c.stale = true);
            }
            Store::Grads => self.grads.copy_from_slice(data),
            Store::Momentum => self.momentum.copy_from_slice(data),
            Store::Running => self.running.copy_from_slice(data),
        }
    }

    fn conv_forward(&mut self, conv: ConvId, x: TensorId, y: TensorId, n: usize) {
        self.check_n(n);
        let (x, y) = (self.view(x), self.view(y));
        let plan = &mut self.convs[conv.0 as usize];
        plan.fit(&x, &y, structure::Reads::Input);
        conv::forward(self.isa, &self.workers, plan, &self.values, x, y, n);
    }

    fn conv_backward_data(&mut self, conv: ConvId, dy: TensorId, dx: Dst, n: usize) {
        self.check_n(n);
        let (dy, (dx, write)) = (self.view(dy), self.dst(dx));
        let plan = &mut self.convs[conv.0 as usize];
        plan.fit(&dx, &dy, structure::Reads::OutputGradient);
        plan.refresh(&self.workers, &self.values);
        conv::backward_data(self.isa, &self.workers, plan, dy, dx, write, n);
    }

    fn conv_backward_weight(&mut self, conv: ConvId, x: TensorId, dy: TensorId, n: usize) {
        self.check_n(n);
        let (x, dy) = (self.view(x), self.view(dy));
        let plan = &mut self.convs[conv.0 as usize];
        plan.fit(&x, &dy, structure::Reads::Input);
        wgrad::backward_weight(self.isa, &self.workers, plan, &mut self.wgrad, &mut self.grads, x, dy, n);
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
        self.check_n(n);
        let f = norm::Forward { x: self.view(x), residual: residual.map(|r| self.view(r)), relu, y: self.view(y), n };
        let (spec, range) = self.norm(norm);
        f.check(spec.c);
        let affine = Affine { gamma: &self.values[range.gamma], beta: &self.values[range.beta] };
        let stats = &mut self.stats[norm.0 as usize];
        norm::forward(self.isa, &self.workers, &spec, affine, &mut self.running, stats, &mut self.partials, f);
    }

    fn norm_infer(&mut self, norm: NormId, x: TensorId, residual: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.check_n(n);
        let f = norm::Forward { x: self.view(x), residual: residual.map(|r| self.view(r)), relu, y: self.view(y), n };
        let (spec, range) = self.norm(norm);
        f.check(spec.c);
        let affine = Affine { gamma: &self.values[range.gamma], beta: &self.values[range.beta] };
        norm::infer(self.isa, &self.workers, &spec, affine, &self.running, f);
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
        self.check_n(n);
        let (dx, dres) = (self.dst(dx), dres.map(|d| self.dst(d)));
        let b = norm::Backward { x: self.view(x), y: self.view(y), relu, dy: self.view(dy), dx, dres, n };
        let (spec, range) = self.norm(norm);
        b.check(spec.c);
        let gamma = &self.values[range.gamma.clone()];
        let grads = Shared::new(&mut self.grads);
        // SAFETY: both ranges lie inside the store (`check`).
        let grads = unsafe { Affine { gamma: grads.offset(range.gamma.start), beta: grads.offset(range.beta.start) } };
        let stats = &self.stats[norm.0 as usize];
        norm::backward(self.isa, &self.workers, gamma, stats, grads, &mut self.partials, b);
    }

    fn join_forward(&mut self, a: TensorId, b: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.check_n(n);
        let (a, b, y) = (self.view(a), b.map(|b| self.view(b)), self.view(y));
        assert_same(&[a, b.unwrap_or(a), y]);
        elementwise::join_forward(self.isa, &self.workers, a, b, relu, y, n);
    }

    fn join_backward(&mut self, y: TensorId, relu: bool, dy: TensorId, da: Dst, db: Option<Dst>, n: usize) {
        self.check_n(n);
        let (y, dy, da, db) = (self.view(y), self.view(dy), self.dst(da), db.map(|d| self.dst(d)));
        assert_same(&[y, dy, da.0, db.unwrap_or(da).0]);
        elementwise::join_backward(self.isa, &self.workers, y, relu, dy, da, db, n);
    }

    fn pool_forward(&mut self, x: TensorId, y: TensorId, n: usize) {
        self.check_n(n);
        let (x, y) = (self.view(x), self.view(y));
        assert_eq!((y.channels(), y.pixels()), (x.channels(), 1), "pooled tensor's shape");
        elementwise::pool_forward(self.isa, &self.workers, x, y, n);
    }

    fn pool_backward(&mut self, dy: TensorId, dx: Dst, n: usize) {
        self.check_n(n);
        let (dy, dx) = (self.view(dy), self.dst(dx));
        assert_eq!((dy.channels(), dy.pixels()), (dx.0.channels(), 1), "pooled gradient's shape");
        elementwise::pool_backward(self.isa, &self.workers, dy, dx, n);
    }

    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        self.check_n(n);
        let (logits, dlogits) = (self.view(logits), dlogits.map(|d| self.view(d)));
        assert!(labels.len() >= n && logits.pixels() == 1, "{} labels for {n} images", labels.len());
        assert_same(&[logits, dlogits.unwrap_or(logits)]);
        loss::cross_entropy(&self.workers, logits, labels, smoothing, dlogits, &mut self.images, n)
    }

    fn sgd(&mut self, step: SgdStep) {
        elementwise::sgd(&self.workers, step, &mut self.values, &self.grads, &mut self.momentum);
        self.convs.iter_mut().for_each(|c| c.stale = true);
    }
}
