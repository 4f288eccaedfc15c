//! The CPU backend: f32, blocks of 16 images side by side, sparse kernels for any mask.
//!
//! `conv/` cuts planes into patches, fills them (`source.rs`), runs the kernels (`kernels/`) over the
//! structure (`structure.rs`), and works on what they made while it is near (`epilogue.rs`); `norm.rs`, `elementwise.rs`,
//! `maxpool.rs` and `loss.rs` are the rest of a step; `layout.rs`, `simd/` and `workers.rs` are the ground.
//! Tensors and scratch are planned at construction. Every result is the same bytes for any number of threads.

mod check;
mod conv;
mod cuts;
mod elementwise;
mod epilogue;
mod kernels;
mod layout;
mod loss;
mod maxpool;
mod norm;
mod packed;
pub mod plan;
pub(crate) mod probe;
mod simd;
mod source;
mod structure;
#[cfg(test)]
mod tests;
mod workers;

use super::*;
use crate::error::{Error, Result};
use crate::memory;
use check::{assert_same, check, check_pool};
use conv::{Ctx, DataGrad, Scratch};
use epilogue::{Finisher, chan};
use layout::{Arena, LANES, View, blocks};
use norm::Coefs;
use plan::Plan;
pub use simd::Isa;
use source::{Kind, Source};
use std::ops::Range;
use structure::ConvPlan;
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
    /// [`Spec::decay_flips`].
    decay_flips: Vec<usize>,
    running: Vec<f32>,
    convs: Vec<ConvPlan>,
    norms: Vec<Coefs>,
    scratch: Scratch,
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
        Self::with_plan(spec, threads, isa, None)
    }

    /// The same with a given plan; an error if it is not one for `spec`.
    pub fn with_plan(spec: Spec, threads: usize, isa: Isa, plan: Option<&Plan>) -> Result<Self> {
        if !isa.available() {
            return Err(Error::Failed(format!(
                "cpu backend: this machine has no {}; use {}",
                isa.name(),
                Isa::detect().name()
            )));
        }
        check(&spec)?;
        let activations = (spec.arena as u64).saturating_mul((blocks(spec.batch) * LANES) as u64);
        let floats = activations.saturating_add(3 * spec.stored() as u64);
        let what = format!("the network and its activations of {} images", spec.batch);
        memory::check(floats.saturating_mul(4), &what, "lower the batch size (or score_samples)")?;
        let workers = Workers::new(threads)?;
        let how = plan.map(|p| p.for_spec(&spec)).transpose()?;
        let layer = |i: usize| how.as_ref().map(|h| h[i]);
        let convs = spec.convs.iter().enumerate().map(|(i, c)| ConvPlan::new(isa, &spec, c, layer(i)));
        let convs = convs.collect::<Result<Vec<_>>>()?;
        let widest = spec.tensors.iter().map(|t| t.plane.c as usize).max().unwrap_or(0);
        Ok(CpuBackend {
            isa,
            arena: Arena::new(&spec)?,
            values: vec![0.0; spec.stored()],
            grads: vec![0.0; spec.stored()],
            momentum: vec![0.0; spec.stored()],
            decay_flips: spec.decay_flips(),
            running: vec![0.0; spec.running()],
            norms: spec.norms.iter().map(|n| Coefs::new(n.c as usize)).collect(),
            scratch: Scratch::new(&convs, widest, spec.batch, workers.threads())?,
            convs,
            images: vec![(0.0, false); spec.batch],
            workers,
            spec,
        })
    }

    fn view(&self, t: TensorId) -> View {
        self.arena.view(&self.spec.tensors[t.0 as usize])
    }

    fn check_n(&self, n: usize) {
        assert!((1..=self.spec.batch).contains(&n), "{n} images, wanted 1..={}", self.spec.batch);
    }

    /// A norm's spec, and where its gamma and beta lie.
    fn norm(&self, norm: NormId) -> (NormSpec, [Range<usize>; 2]) {
        let spec = self.spec.norms[norm.0 as usize];
        (spec, [spec.gamma, spec.beta].map(|p| self.spec.params[p.0 as usize].range.clone()))
    }

    /// Coefficients from the statistics of `items` parts in the scratch.
    fn norm_from_stats(&mut self, norm: NormId, items: usize) {
        let (spec, [gamma, beta]) = self.norm(norm);
        let (c, stats) = (spec.c as usize, &self.scratch.stats);
        let running = &mut self.running[spec.running..][..2 * c];
        let merged = |ch: usize| (0..items).map(|i| stats[i * c + ch]).fold([0.0; 3], chan);
        self.norms[norm.0 as usize].train(&spec, &self.values[gamma], &self.values[beta], running, merged);
    }

    /// Backward coefficients, and the gradients of gamma and beta, of the norms that `dx` reduces for, from the sums of
    /// `items` parts in the scratch.
    fn norms_from_sums(&mut self, dx: GradDst, items: usize, n: usize) {
        for (r, normed) in dx.finish.reduce.iter().flatten().enumerate() {
            let (spec, [gamma, beta]) = self.norm(normed.norm);
            let (c, sums) = (spec.c as usize, &self.scratch.sums);
            let plane = self.spec.tensors[dx.t.0 as usize].plane;
            let merged =
                |ch: usize| (0..items).map(|i| sums[i * c + ch][r]).fold([0.0; 2], |t, s| [t[0] + s[0], t[1] + s[1]]);
            let count = n as f64 * f64::from(plane.h) * f64::from(plane.w);
            let mut grads = [vec![0.0; c], vec![0.0; c]];
            let [dgamma, dbeta] = &mut grads;
            self.norms[normed.norm.0 as usize].backward(&self.values[gamma.clone()], dgamma, dbeta, count, merged);
            self.grads[gamma].copy_from_slice(&grads[0]);
            self.grads[beta].copy_from_slice(&grads[1]);
        }
    }

    /// The gradients of a convolution: of its parameters if `x`, its input, is given, and of that input.
    fn conv_gradients(&mut self, conv: ConvId, x: Option<Input>, dy: Grad, dx: Option<GradDst>, n: usize) {
        self.check_n(n);
        let plan = &mut self.convs[conv.0 as usize];
        let items = blocks(n) * plan.items();
        plan.refresh(&self.workers, &self.values);
        let x = x.map(|x| self.arena.input(&self.spec, &self.norms, x));
        let dy = self.arena.grad(&self.spec, &self.norms, dy);
        let data = dx.map(|d| self.arena.data_grad(&self.spec, &self.norms, d));
        let ctx = Ctx { isa: self.isa, workers: &self.workers, scratch: &mut self.scratch, n };
        conv::backward(ctx, plan, &mut self.grads, x, dy, data);
        if let Some(dx) = dx {
            self.norms_from_sums(dx, items, n);
        }
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

impl Arena {
    fn input<'a>(&self, spec: &Spec, norms: &'a [Coefs], i: Input) -> Source<'a> {
        let kind = match i.norm {
            Some(norm) => Kind::Affine { coef: &norms[norm.0 as usize].affine, relu: i.relu },
            None if i.relu => Kind::Relu,
            None => Kind::Plain,
        };
        let source = Source { t: self.view(&spec.tensors[i.t.0 as usize]), kind };
        source.check();
        source
    }

    fn grad<'a>(&self, spec: &Spec, norms: &'a [Coefs], g: Grad) -> Source<'a> {
        let view = |t: TensorId| self.view(&spec.tensors[t.0 as usize]);
        let kind = match g.norm {
            Some(n) => Kind::Back { x: view(n.x), coef: &norms[n.norm.0 as usize].back },
            None => Kind::Plain,
        };
        let source = Source { t: view(g.t), kind };
        source.check();
        source
    }

    fn data_grad<'a>(&self, spec: &Spec, norms: &'a [Coefs], d: GradDst) -> DataGrad<'a> {
        let view = |t: TensorId| self.view(&spec.tensors[t.0 as usize]);
        let mask = match d.finish.mask {
            Mask::All => None,
            Mask::Positive(i) => Some(self.input(spec, norms, Input { relu: false, ..i })),
        };
        let mut finish = Finisher { mask, reduce: [None; 2] };
        for (to, n) in finish.reduce.iter_mut().zip(d.finish.reduce.iter().flatten()) {
            *to = Some((view(n.x), &norms[n.norm.0 as usize].mean));
        }
        let dx = view(d.t);
        finish.check(&dx);
        DataGrad { dx, write: d.write, finish }
    }
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
        let coefs: u64 = self.norms.iter().map(Coefs::bytes).sum();
        let images = size_of_val(&self.images[..]) as u64;
        let flips = size_of_val(&self.decay_flips[..]) as u64;
        Bytes {
            values: f32s(&self.values),
            indices: self.convs.iter().map(ConvPlan::index_bytes).sum::<u64>() + flips,
            gradients: f32s(&self.grads),
            momentum: f32s(&self.momentum),
            operand_copies: self.convs.iter().map(|c| f32s(&c.values_t) + c.packed.bytes()[0]).sum(),
            activations: self.arena.bytes() + coefs + f32s(&self.running) + images + self.scratch.bytes(),
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
        layout::unpack(self.arena.view(&self.spec.tensors[t.0 as usize]), n)
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

    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        self.check_n(n);
        let x = self.view(x);
        elementwise::plane_stats(self.isa, &self.workers, x, &mut self.scratch.stats, n);
        self.norm_from_stats(norm, blocks(n));
    }

    fn norm_running(&mut self, norm: NormId) {
        let (spec, [gamma, beta]) = self.norm(norm);
        let running = &self.running[spec.running..][..2 * spec.c as usize];
        self.norms[norm.0 as usize].infer(&spec, &self.values[gamma], &self.values[beta], running);
    }

    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        self.check_n(n);
        let y = self.view(y);
        let x = self.arena.input(&self.spec, &self.norms, x);
        let plan = &mut self.convs[conv.0 as usize];
        plan.refresh(&self.workers, &self.values);
        let ctx = Ctx { isa: self.isa, workers: &self.workers, scratch: &mut self.scratch, n };
        conv::forward(ctx, plan, &self.values, x, y, stats.is_some());
        if let Some(norm) = stats {
            let items = blocks(n) * self.convs[conv.0 as usize].items();
            self.norm_from_stats(norm, items);
        }
    }

    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        self.conv_gradients(conv, Some(x), dy, dx, n);
    }

    fn conv_data_backward(&mut self, conv: ConvId, dy: Grad, dx: GradDst, n: usize) {
        self.conv_gradients(conv, None, dy, Some(dx), n);
    }

    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        self.check_n(n);
        let y = self.view(y);
        let input = |i| self.arena.input(&self.spec, &self.norms, i);
        let (a, b) = (input(a), b.map(input));
        assert_same(&[a.t, b.unwrap_or(a).t, y]);
        elementwise::join_forward(self.isa, &self.workers, a, b, relu, y, n);
    }

    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.check_n(n);
        let dy = self.arena.grad(&self.spec, &self.norms, dy);
        let d = self.arena.data_grad(&self.spec, &self.norms, dx);
        assert_same(&[dy.t, d.dx]);
        elementwise::copy_backward(self.isa, &self.workers, dy, d, &mut self.scratch.sums, n);
        self.norms_from_sums(dx, blocks(n), n);
    }

    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        self.check_n(n);
        let y = self.view(y);
        let x = self.arena.input(&self.spec, &self.norms, x);
        assert_eq!((y.channels(), y.pixels()), (x.t.channels(), 1), "pooled tensor's shape");
        elementwise::pool_forward(self.isa, &self.workers, x, y, n);
    }

    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.check_n(n);
        let dy = self.arena.grad(&self.spec, &self.norms, dy);
        let d = self.arena.data_grad(&self.spec, &self.norms, dx);
        assert_eq!((dy.t.channels(), dy.t.pixels()), (d.dx.channels(), 1), "pooled gradient's shape");
        elementwise::pool_backward(self.isa, &self.workers, dy, d, &mut self.scratch.sums, n);
        self.norms_from_sums(dx, blocks(n), n);
    }

    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        self.check_n(n);
        let (y, p) = (self.view(y), self.spec.pools[pool.0 as usize]);
        let x = self.arena.input(&self.spec, &self.norms, x);
        check_pool(p, x.t, y);
        maxpool::forward(self.isa, &self.workers, p, x, y, n);
    }

    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        self.check_n(n);
        let p = self.spec.pools[pool.0 as usize];
        let x = self.arena.input(&self.spec, &self.norms, x);
        let dy = self.arena.grad(&self.spec, &self.norms, dy);
        let d = self.arena.data_grad(&self.spec, &self.norms, dx);
        check_pool(p, x.t, dy.t);
        assert_same(&[x.t, d.dx]);
        maxpool::backward(self.isa, &self.workers, p, x, dy, d, &mut self.scratch.sums, n);
        self.norms_from_sums(dx, blocks(n), n);
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
        elementwise::sgd(&self.workers, step, &self.decay_flips, &mut self.values, &self.grads, &mut self.momentum);
        self.convs.iter_mut().for_each(|c| c.stale = true);
    }
}
