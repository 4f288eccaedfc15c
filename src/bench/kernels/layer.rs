//! The network of one layer that a bench runs.

use super::{Case, Op, Pass, Timed, input, output};
use crate::backend::{
    Backend, ConvId, ConvSpec, Finish, Grad, GradDst, Input, Mask, NormId, NormSpec, Normed, ParamId, ParamSpec, Plane,
    Real, SgdStep, Spec, Store, TensorId, TensorSpec, Write,
};
use crate::bench::check::{Names, Verified};
use crate::bench::phases::Watched;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};
use crate::shape::BlockShape;
use crate::sparsity::{Density, Draw, Maskable, Ratio, draw_patterns};
use std::sync::Arc;
use std::time::Instant;

/// How often tensors exist, and what of them is checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copies {
    /// Numbers that all copies should hold together, so that no cache holds them.
    pub numbers: usize,
    /// Copies at most.
    pub most: usize,
    /// Numbers that are checked, in the first copy; `None`: all, in every copy.
    pub checked: Option<usize>,
}

impl Copies {
    /// 64 MiB, beyond most caches.
    pub const CPU: Copies = Copies { numbers: 16 << 20, most: 8, checked: None };
}

/// Random numbers that are not checked repeat after so many.
const POOL: usize = (1 << 20) + 7;

/// The update that is timed.
pub(super) const UPDATE: SgdStep = SgdStep { lr: 1e-3, momentum: 0.9, weight_decay: 5e-4, nesterov: true };

/// A network of one layer, several times over.
pub(super) struct Layer<B: Backend> {
    pub(super) b: Watched<B>,
    pub(super) op: Op,
    plain: bool,
    pub(super) batch: usize,
    pub(super) nnz: usize,
    pub(super) block: Option<BlockShape>,
    pub(super) copies: usize,
    checked: Option<usize>,
    next: usize,
    seed: u64,
}

/// Tensors of one copy, from `5 * copy` on.
#[derive(Clone, Copy)]
pub(super) struct Tensors {
    x: TensorId,
    y: TensorId,
    /// Gradient of what follows the layer.
    g: TensorId,
    /// Finished gradient of the norm behind the layer.
    dy: TensorId,
    dx: TensorId,
    /// Norms before and behind the layer.
    before: NormId,
    behind: NormId,
}

impl Tensors {
    pub(super) fn of(copy: usize) -> Self {
        let t = |i: usize| TensorId((5 * copy + i) as u32);
        let norm = |i: usize| NormId((2 * copy + i) as u32);
        Tensors { x: t(0), y: t(1), g: t(2), dy: t(3), dx: t(4), before: norm(0), behind: norm(1) }
    }
}

pub(super) const CONV: ConvId = ConvId(0);

impl<B: Backend> Layer<B> {
    pub(super) fn new(case: &Case, density: Density, copies: Copies, make: &dyn Fn(Spec) -> Result<B>) -> Result<Self> {
        let g = case.geom;
        case.check()?;
        let (x, y) = (input(&g), output(&g));
        // A batch norm by itself has its input on both sides.
        let y = if case.op == Op::Bn { x } else { y };
        let planes = [x, y, y, y, x];
        let each: usize = planes.iter().map(Plane::room).sum::<usize>() * case.batch;
        let Copies { numbers, most, checked } = copies;
        let copies = if case.op == Op::Sgd { 1 } else { numbers.div_ceil(each).clamp(1, most) };
        let mut spec = Spec { batch: case.batch, ..Spec::default() };
        let mut param = |shape: Vec<usize>, kept: Option<Arc<[u32]>>, block: Option<BlockShape>| {
            let start = spec.params.last().map_or(0, |p: &ParamSpec| p.range.end);
            let len = kept.as_ref().map_or(shape.iter().product(), |k| k.len());
            spec.params.push(ParamSpec { shape, kept, decay: true, block, range: start..start + len });
            ParamId(spec.params.len() as u32 - 1)
        };
        let shape = [g.k, g.c, g.r, g.s].map(|v| v as usize).to_vec();
        let tensor = Maskable::new("layer", shape.clone());
        let mask = draw_patterns(&[tensor], &Ratio::Uniform, density, case.pattern, Draw::Exact, case.seed)?.remove(0);
        let block = mask.block;
        let weight = param(shape, mask.kept, block);
        let bias = (case.op == Op::Linear).then(|| param(vec![g.k as usize], None, None));
        let norms: Vec<_> = (0..if case.op == Op::Sgd { 0 } else { 2 * copies })
            .map(|i| {
                let c = if i % 2 == 0 { x.c } else { y.c };
                let mut vector = || param(vec![c as usize], None, None);
                (c, vector(), vector())
            })
            .collect();
        for (c, gamma, beta) in norms {
            spec.norms.push(NormSpec { c, gamma, beta, running: spec.running(), eps: 1e-5, momentum: 0.1 });
        }
        if !matches!(case.op, Op::Bn | Op::Sgd) {
            spec.convs.push(ConvSpec { geom: g, weight, bias });
        }
        for plane in (0..copies).flat_map(|_| planes) {
            spec.tensors.push(TensorSpec::lasting(plane, spec.arena));
            spec.arena += plane.room();
        }
        let (batch, nnz) = (case.batch, spec.params[0].range.len());
        let b = Watched::new(make(spec)?);
        let plain = case.plain || case.op == Op::Linear;
        Ok(Layer { b, op: case.op, plain, batch, nnz, block, copies, checked, next: 0, seed: case.seed })
    }

    /// Images that are checked: all, or as many of the first copy as [`Copies::checked`] allows.
    pub(super) fn checked_batch(&self) -> usize {
        let tensors = &self.b.spec().tensors;
        let an_image: usize = tensors.iter().take(5).map(|t| t.plane.len()).sum();
        // A batch norm wants two values a channel.
        self.checked.map_or(self.batch, |numbers| (numbers / an_image.max(1)).max(2).min(self.batch))
    }

    /// Random numbers everywhere; every operation once in every copy, checked as far as [`Copies::checked`] says.
    pub(super) fn verify(&mut self) -> Result<Verified> {
        let spec = self.b.spec().clone();
        let stream = Stream::new(self.seed, Purpose::Data, "bench kernels");
        let mut drawn = 0;
        let mut draw = |n: usize, scale: f64| -> Vec<B::Real> {
            drawn += n as u64;
            (drawn - n as u64..drawn).map(|i| B::Real::from_f64(scale * stream.normal(i))).collect()
        };
        let fan_in = (self.nnz / spec.params[0].shape[0]).max(1) as f64;
        let mut values = draw(spec.stored(), (2.0 / fan_in).sqrt());
        for n in &spec.norms {
            let gamma = spec.params[n.gamma.0 as usize].range.clone();
            values[gamma].iter_mut().for_each(|v| *v = B::Real::from_f64(1.0 + 0.1 * v.to_f64().clamp(-1.0, 1.0)));
        }
        self.b.write_store(Store::Values, &values);
        self.b.write_store(Store::Momentum, &draw(spec.stored(), 0.01));
        self.b.write_store(Store::Running, &vec![B::Real::from_f64(1.0); spec.running()]);
        self.b.begin_check(Names { convs: vec!["the layer".into()], norms: vec![] });
        let checked_batch = self.checked_batch();
        let batch = std::mem::replace(&mut self.batch, checked_batch);
        let (n, nan) = (self.batch, vec![B::Real::from_f64(f64::NAN); spec.stored()]);
        let copies = if self.checked.is_some() { 1 } else { self.copies };
        for copy in 0..if self.op == Op::Sgd { 0 } else { copies } {
            let t = Tensors::of(copy);
            let numbers = |t: TensorId| n * spec.tensors[t.0 as usize].plane.len();
            let (x, g) = (draw(numbers(t.x), 1.0), draw(numbers(t.g), 0.1));
            self.b.write_tensor(t.x, n, &x);
            self.b.write_tensor(t.g, n, &g);
            self.prepare(copy);
            for whole in [false, true] {
                self.b.settle_check();
                self.b.write_store(Store::Grads, &nan);
                self.operate(copy, whole);
            }
            self.b.settle_check();
        }
        if self.op == Op::Sgd {
            self.b.write_store(Store::Grads, &draw(spec.stored(), 0.1));
            self.operate(0, true);
        }
        let name = self.op.name();
        let wrong = |what| Error::Failed(format!("bench kernels: {name} is wrong, so no time is given: {what}"));
        let verified = self.b.end_check().map_err(wrong)?;
        self.batch = batch;
        if self.checked.is_some() && self.op != Op::Sgd {
            self.fill(&draw(POOL, 1.0));
        }
        Ok(verified)
    }

    /// Every copy whole, unchecked: `pool` over and over in images and gradients, the rest computed.
    fn fill(&mut self, pool: &[B::Real]) {
        let spec = self.b.spec().clone();
        let small: Vec<B::Real> = pool.iter().map(|v| B::Real::from_f64(0.1 * v.to_f64())).collect();
        for copy in 0..self.copies {
            let t = Tensors::of(copy);
            for (t, pool) in [(t.x, pool), (t.g, &small)] {
                let numbers = self.batch * spec.tensors[t.0 as usize].plane.len();
                let data: Vec<B::Real> = pool.iter().copied().cycle().skip(copy).take(numbers).collect();
                self.b.write_tensor(t, self.batch, &data);
            }
            self.prepare(copy);
            self.operate(copy, true);
        }
    }

    /// What the operations of a copy need beside the images and gradients.
    fn prepare(&mut self, copy: usize) {
        let (t, n) = (Tensors::of(copy), self.batch);
        if self.op == Op::Bn {
            return;
        }
        if !self.plain {
            self.b.norm_stats(t.before, t.x, n);
        }
        self.forward(t);
        let reduce = if self.plain { [None; 2] } else { [Some(Normed { norm: t.behind, x: t.y }), None] };
        let finish = Finish { mask: Mask::All, reduce };
        self.b.copy_backward(Grad::plain(t.g), GradDst { t: t.dy, write: Write::Overwrite, finish }, n);
    }

    fn x(&self, t: Tensors) -> Input {
        if self.plain { Input::plain(t.x) } else { Input { t: t.x, norm: Some(t.before), relu: true } }
    }

    pub(super) fn forward(&mut self, t: Tensors) {
        let stats = (!self.plain).then_some(t.behind);
        self.b.conv_forward(CONV, self.x(t), t.y, stats, self.batch);
    }

    /// What a data gradient reads and writes.
    pub(super) fn gradients(&self, t: Tensors) -> (Grad, GradDst) {
        let x = self.x(t);
        let (mut dy, mut finish) = (Grad::plain(t.dy), Finish::default());
        if !self.plain {
            dy.norm = Some(Normed { norm: t.behind, x: t.y });
            finish = Finish { mask: Mask::Positive(x), reduce: [Some(Normed { norm: t.before, x: t.x }), None] };
        }
        (dy, GradDst { t: t.dx, write: Write::Overwrite, finish })
    }

    fn backward(&mut self, t: Tensors, data: bool) {
        let (dy, dx) = self.gradients(t);
        self.b.conv_backward(CONV, self.x(t), dy, data.then_some(dx), self.batch);
    }

    /// The operation; of a data gradient that is not `whole` only what a difference takes off.
    pub(super) fn operate(&mut self, copy: usize, whole: bool) {
        let (t, n) = (Tensors::of(copy), self.batch);
        match self.op {
            Op::ConvFwd => self.forward(t),
            Op::ConvDgrad => self.backward(t, whole),
            Op::ConvWgrad => self.backward(t, false),
            Op::Linear => {
                self.forward(t);
                self.backward(t, true);
            }
            Op::Bn => {
                let value = Input { t: t.x, norm: Some(t.before), relu: true };
                let normed = Normed { norm: t.before, x: t.x };
                let finish = Finish { mask: Mask::Positive(value), reduce: [Some(normed), None] };
                let to = |t, finish| GradDst { t, write: Write::Overwrite, finish };
                self.b.norm_stats(t.before, t.x, n);
                self.b.join_forward(value, None, false, t.y, n);
                self.b.copy_backward(Grad::plain(t.g), to(t.dy, finish), n);
                self.b.copy_backward(Grad { t: t.dy, norm: Some(normed) }, to(t.dx, Finish::default()), n);
            }
            Op::Sgd => self.b.sgd(UPDATE),
        }
    }

    /// One pass of a convolution, on the next copy.
    pub(super) fn pass(&mut self, pass: Pass) {
        let t = Tensors::of(self.next);
        self.next = (self.next + 1) % self.copies;
        match pass {
            Pass::Forward => self.forward(t),
            Pass::WeightGradient => self.backward(t, false),
            Pass::BothGradients => self.backward(t, true),
        }
    }
}

impl<B: Backend> Timed for Layer<B> {
    /// One call, on the next copy. A difference of two calls may come out below zero where it is small.
    fn call(&mut self) -> Result<f64> {
        let (op, copy, copies) = (self.op, self.next, self.copies);
        self.next = (copy + 1) % copies;
        let mut time = |copy, whole| {
            let start = Instant::now();
            self.operate(copy, whole);
            start.elapsed().as_secs_f64()
        };
        Ok(match op {
            // The other half of the copies, so that neither finds what the other has just read.
            Op::ConvDgrad => time(copy, true) - time((copy + copies.div_ceil(2)) % copies, false),
            _ => time(copy, true),
        })
    }
}
