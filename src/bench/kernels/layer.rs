//! The network of one layer that a bench runs.

use super::{Case, Op, Pass, input, output};
use crate::backend::{
    Backend, ConvId, ConvSpec, Finish, Grad, GradDst, Input, Mask, NormId, NormSpec, Normed, ParamId, ParamSpec, Plane,
    Real, SgdStep, Spec, Store, TensorId, TensorSpec, Write,
};
use crate::bench::check::{Names, Verified};
use crate::bench::phases::Watched;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};
use crate::sparsity::{Density, Draw, Maskable, Method, draw_masks};
use std::sync::Arc;
use std::time::Instant;

/// Numbers that all copies of the tensors should hold together: 64 MiB, beyond most caches.
const FLOATS: usize = 16 << 20;
/// Copies at most.
const COPIES: usize = 8;

/// A network of one layer, several times over.
pub(super) struct Layer<B: Backend> {
    b: Watched<B>,
    op: Op,
    plain: bool,
    batch: usize,
    pub(super) nnz: usize,
    copies: usize,
    next: usize,
    seed: u64,
}

/// Tensors of one copy, from `5 * copy` on.
#[derive(Clone, Copy)]
struct Tensors {
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
    fn of(copy: usize) -> Self {
        let t = |i: usize| TensorId((5 * copy + i) as u32);
        let norm = |i: usize| NormId((2 * copy + i) as u32);
        Tensors { x: t(0), y: t(1), g: t(2), dy: t(3), dx: t(4), before: norm(0), behind: norm(1) }
    }
}

const CONV: ConvId = ConvId(0);

impl<B: Backend> Layer<B> {
    pub(super) fn new(case: &Case, density: Density, make: &dyn Fn(Spec) -> Result<B>) -> Result<Self> {
        let g = case.geom;
        case.check()?;
        let (x, y) = (input(&g), output(&g));
        // A batch norm by itself has its input on both sides.
        let y = if case.op == Op::Bn { x } else { y };
        let planes = [x, y, y, y, x];
        let each: usize = planes.iter().map(Plane::room).sum::<usize>() * case.batch;
        let copies = if case.op == Op::Sgd { 1 } else { FLOATS.div_ceil(each).clamp(1, COPIES) };
        let mut spec = Spec { batch: case.batch, ..Spec::default() };
        let mut param = |shape: Vec<usize>, kept: Option<Arc<[u32]>>| {
            let start = spec.params.last().map_or(0, |p: &ParamSpec| p.range.end);
            let len = kept.as_ref().map_or(shape.iter().product(), |k| k.len());
            spec.params.push(ParamSpec { shape, kept, block: None, range: start..start + len });
            ParamId(spec.params.len() as u32 - 1)
        };
        let shape = [g.k, g.c, g.r, g.s].map(|v| v as usize).to_vec();
        let tensor = Maskable { name: "layer".into(), shape: shape.clone() };
        let method = if density == Density::ONE { Method::Dense } else { Method::Uniform };
        let mask = draw_masks(&[tensor], method, density, Draw::Exact, case.seed)?.remove(0);
        let weight = param(shape, mask.kept);
        let bias = (case.op == Op::Linear).then(|| param(vec![g.k as usize], None));
        let norms: Vec<_> = (0..if case.op == Op::Sgd { 0 } else { 2 * copies })
            .map(|i| {
                let c = if i % 2 == 0 { x.c } else { y.c };
                (c, param(vec![c as usize], None), param(vec![c as usize], None))
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
        Ok(Layer { b, op: case.op, plain, batch, nnz, copies, next: 0, seed: case.seed })
    }

    /// Random numbers everywhere; every operation once in every copy, checked.
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
        let (n, nan) = (self.batch, vec![B::Real::from_f64(f64::NAN); spec.stored()]);
        for copy in 0..if self.op == Op::Sgd { 0 } else { self.copies } {
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
        self.b.end_check().map_err(wrong)
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

    fn forward(&mut self, t: Tensors) {
        let stats = (!self.plain).then_some(t.behind);
        self.b.conv_forward(CONV, self.x(t), t.y, stats, self.batch);
    }

    fn backward(&mut self, t: Tensors, data: bool) {
        let x = self.x(t);
        let (mut dy, mut finish) = (Grad::plain(t.dy), Finish::default());
        if !self.plain {
            dy.norm = Some(Normed { norm: t.behind, x: t.y });
            finish = Finish { mask: Mask::Positive(x), reduce: [Some(Normed { norm: t.before, x: t.x }), None] };
        }
        let dx = data.then_some(GradDst { t: t.dx, write: Write::Overwrite, finish });
        self.b.conv_backward(CONV, x, dy, dx, self.batch);
    }

    /// The operation; of a data gradient that is not `whole` only what a difference takes off.
    fn operate(&mut self, copy: usize, whole: bool) {
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
            Op::Sgd => self.b.sgd(SgdStep { lr: 1e-3, momentum: 0.9, weight_decay: 5e-4, nesterov: true }),
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

    /// Seconds of one call, on the next copy. A difference of two calls may come out below zero where it is small.
    pub(super) fn call(&mut self) -> f64 {
        let (op, copy, copies) = (self.op, self.next, self.copies);
        self.next = (copy + 1) % copies;
        let mut time = |copy, whole| {
            let start = Instant::now();
            self.operate(copy, whole);
            start.elapsed().as_secs_f64()
        };
        match op {
            // The other half of the copies, so that neither finds what the other has just read.
            Op::ConvDgrad => time(copy, true) - time((copy + copies.div_ceil(2)) % copies, false),
            _ => time(copy, true),
        }
    }
}
