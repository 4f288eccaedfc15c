//! The CPU backend: f32, blocks of 16 images side by side, zero halos, sparse kernels for any mask.
//!
//! `conv.rs` (forward, data gradient) and `wgrad.rs` walk the entry lists of `structure.rs`; `norm.rs`,
//! `elementwise.rs` and `loss.rs` are the rest of a step; `layout.rs`, `simd.rs` and `workers.rs` are the ground.
//! All buffers are planned at construction. Every result is the same bytes for any number of threads.

mod layout;
mod loss;
mod simd;
mod workers;

use super::*;
use crate::error::{Error, Result};
use layout::{Arena, View};
pub use simd::Isa;
use workers::Workers;

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
    images: Vec<(f64, bool)>,
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
        Ok(CpuBackend {
            isa,
            arena: Arena::new(&spec)?,
            values: vec![0.0; spec.stored()],
            grads: vec![0.0; spec.stored()],
            momentum: vec![0.0; spec.stored()],
            running: vec![0.0; spec.running()],
            images: vec![(0.0, false); spec.batch],
            workers,
            spec,
        })
    }

    fn view(&mut self, t: TensorId) -> View {
        let spec = self.spec.tensors[t.0 as usize];
        self.arena.view(&spec)
    }

    fn check_n(&self, n: usize) {
        assert!((1..=self.spec.batch).contains(&n), "{n} images, wanted 1..={}", self.spec.batch);
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
        if t.at + t.plane.len() > spec.arena {
            return fault(format!("tensor {i} {:?} lies at {}, beyond the arena of {}", t.plane, t.at, spec.arena));
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
    assert!(views.iter().all(|v| v.plane == views[0].plane), "tensors of different shapes in one op");
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
        Bytes {
            values: f32s(&self.values),
            indices: 0,
            gradients: f32s(&self.grads),
            momentum: f32s(&self.momentum),
            operand_copies: 0,
            activations: self.arena.bytes() + f32s(&self.running),
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
            }
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
        self.check_n(n);
        let (logits, dlogits) = (self.view(logits), dlogits.map(|d| self.view(d)));
        assert!(labels.len() >= n && logits.pixels() == 1, "{} labels for {n} images", labels.len());
        assert_same(&[logits, dlogits.unwrap_or(logits)]);
        loss::cross_entropy(&self.workers, logits, labels, smoothing, dlogits, &mut self.images, n)
    }

    fn sgd(&mut self, step: SgdStep) {
        todo!("{step:?}")
    }
}
