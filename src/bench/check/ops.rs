//! Each operation: copies before, the operation, comparison after.

use super::conv::Taps;
use super::operand::Num;
use super::{Check, Later, held, place, poison};
use crate::backend::{Backend, BatchLoss, ConvId, Grad, GradDst, Input, NormId, Real, SgdStep, Spec, Store, TensorId};

/// Places looked at in a tensor that is computed place by place.
pub(super) const PLACES: usize = 512;
/// Terms spent on the sampled outputs of one convolution, and the places those may be.
const TERMS: usize = 1 << 20;
const OUTPUTS: (usize, usize) = (64, 512);
/// Terms spent on the sampled weight gradients of one convolution, and how many those may be.
const WEIGHT_TERMS: usize = 2 << 20;
const WEIGHTS: (usize, usize) = (8, 64);

fn taps<'a, R: Real>(spec: &'a Spec, values: &'a [R], conv: ConvId) -> Taps<'a, R> {
    let c = spec.convs[conv.0 as usize];
    let weight = &spec.params[c.weight.0 as usize];
    let bias = c.bias.map(|b| &values[spec.params[b.0 as usize].range.clone()]);
    Taps { geom: c.geom, kept: weight.kept.as_deref(), values: &values[weight.range.clone()], bias }
}

fn within((low, high): (usize, usize), budget: usize, each: usize) -> usize {
    (budget / each.max(1)).clamp(low, high)
}

impl<R: Real> Check<R> {
    pub(crate) fn write_tensor<B: Backend<Real = R>>(&mut self, b: &mut B, t: TensorId, n: usize, nchw: &[R]) {
        self.operation();
        poison(b, t, n);
        b.write_tensor(t, n, nchw);
        for (i, (got, want)) in held(b, t, n).data.iter().zip(nchw).enumerate() {
            self.tally.compare(got.to_f64(), Num::exact(want.to_f64()), 0, || format!("upload: number {i}"));
        }
    }

    pub(crate) fn norm_stats<B: Backend<Real = R>>(&mut self, b: &mut B, norm: NormId, x: TensorId, n: usize) {
        self.operation();
        b.norm_stats(norm, x, n);
        let x = held(b, x, n);
        self.take_statistics(b, norm, &x);
    }

    pub(crate) fn conv_forward<B: Backend<Real = R>>(
        &mut self,
        b: &mut B,
        conv: ConvId,
        x: Input,
        y: TensorId,
        stats: Option<NormId>,
        n: usize,
    ) {
        self.operation();
        let value = self.value(b, x, n);
        poison(b, y, n);
        b.conv_forward(conv, x, y, stats, n);
        let y = held(b, y, n);
        let what = format!("conv_forward of {}", self.conv_name(conv));
        self.finite(&y, &what);
        let stored = taps(b.spec(), &self.values, conv).values.len();
        let points = self.points(y.plane, n, within(OUTPUTS, TERMS, stored / y.plane.c as usize));
        let taps = taps(b.spec(), &self.values, conv);
        for at in points {
            let (want, terms) = taps.y(&value, at);
            self.tally.compare(y.at(at), want, terms, || place(&what, at));
        }
        if let Some(norm) = stats {
            self.take_statistics(b, norm, &y);
        }
    }

    pub(crate) fn conv_backward<B: Backend<Real = R>>(
        &mut self,
        b: &mut B,
        conv: ConvId,
        x: Input,
        dy: Grad,
        dx: Option<GradDst>,
        n: usize,
    ) {
        self.operation();
        let (value, gradient) = (self.value(b, x, n), self.gradient(b, dy, n));
        let target = dx.map(|dx| self.target(b, dx, n));
        b.conv_backward(conv, x, dy, dx, n);

        let (name, spec) = (self.conv_name(conv), b.spec().clone());
        let (c, values) = (spec.convs[conv.0 as usize], std::mem::take(&mut self.values));
        let taps = taps(&spec, &values, conv);
        let (weights, stored) = (spec.params[c.weight.0 as usize].range.clone(), taps.values.len());
        let pixels = c.geom.p() as usize * c.geom.q() as usize;
        let mut later = |at: usize, want, terms, what| {
            self.later.push(Later { at, want, terms, what, name: name.clone() });
        };
        // Evenly spread, the first and the last among them.
        let looked_at = within(WEIGHTS, WEIGHT_TERMS, n * pixels).min(stored);
        for i in (0..looked_at).map(|i| i * (stored - 1) / (looked_at - 1).max(1)) {
            later(weights.start + i, taps.dw(&value, &gradient, i, n), n * pixels, "weight's gradient");
        }
        self.written.push(weights);
        if let Some(bias) = c.bias.map(|b| spec.params[b.0 as usize].range.clone()) {
            for i in 0..bias.len() {
                later(bias.start + i, taps.db(&gradient, i, n), n * pixels, "bias' gradient");
            }
            self.written.push(bias);
        }
        if let Some(target) = target {
            let what = format!("conv_backward of {name}");
            let points = within(OUTPUTS, TERMS, stored / c.geom.c as usize + c.geom.k as usize * 16);
            self.check_target(b, target, n, points, &what, |at| Some(taps.dx(&gradient, at)));
        }
        self.values = values;
    }

    pub(crate) fn join_forward<B: Backend<Real = R>>(
        &mut self,
        b: &mut B,
        left: Input,
        right: Option<Input>,
        relu: bool,
        y: TensorId,
        n: usize,
    ) {
        self.operation();
        let (p, q) = (self.value(b, left, n), right.map(|r| self.value(b, r, n)));
        poison(b, y, n);
        b.join_forward(left, right, relu, y, n);
        let y = held(b, y, n);
        self.finite(&y, "join_forward");
        for at in self.points(y.plane, n, PLACES) {
            let sum = p.at(at).plus(q.as_ref().map_or(Num::default(), |q| q.at(at)));
            let want = if relu { sum.relu() } else { sum };
            self.tally.compare(y.at(at), want, 1, || place("join_forward", at));
        }
    }

    pub(crate) fn copy_backward<B: Backend<Real = R>>(&mut self, b: &mut B, dy: Grad, dx: GradDst, n: usize) {
        self.operation();
        let (gradient, target) = (self.gradient(b, dy, n), self.target(b, dx, n));
        b.copy_backward(dy, dx, n);
        self.check_target(b, target, n, PLACES, "copy_backward", |at| Some((gradient.at(at), 1)));
    }

    pub(crate) fn cross_entropy<B: Backend<Real = R>>(
        &mut self,
        b: &mut B,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        self.operation();
        let z = held(b, logits, n);
        if let Some(d) = dlogits {
            poison(b, d, n);
        }
        let got = b.cross_entropy(logits, labels, smoothing, dlogits, n);
        let d = dlogits.map(|d| held(b, d, n));
        let classes = z.plane.c as usize;
        let (mut loss, mut correct) = (Num::default(), 0);
        for (image, &label) in labels.iter().enumerate() {
            let row: Vec<f64> = (0..classes).map(|c| z.at([image, c, 0, 0])).collect();
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + row.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            // What exp and ln lose is relative to the largest logit.
            let size = row.iter().fold(1.0, |m: f64, z| m.max(z.abs()));
            let mean = row.iter().map(|z| lse - z).sum::<f64>() / classes as f64;
            let one = (1.0 - smoothing) * (lse - row[label as usize]) + smoothing * mean;
            loss = loss.plus(Num { v: one, size: size + one.abs() });
            correct += u64::from(row.iter().position(|&z| z == max) == Some(label as usize));
            for (class, z) in d.iter().flat_map(|_| row.iter().enumerate()) {
                let hit = if class == label as usize { 1.0 - smoothing } else { 0.0 };
                let v = ((z - lse).exp() - hit - smoothing / classes as f64) / n as f64;
                let want = Num { v, size: size * ((z - lse).exp() + hit + smoothing) / n as f64 };
                let got = d.as_ref().map_or(f64::NAN, |d| d.at([image, class, 0, 0]));
                self.tally.compare(got, want, classes, || place("gradient of the loss", [image, class, 0, 0]));
            }
        }
        self.tally.compare(got.loss_sum, loss, n, || "sum of the losses".into());
        if got.correct != correct {
            self.tally.fail(|| format!("correct images: {}, wanted {correct}", got.correct));
        }
        got
    }

    pub(crate) fn sgd<B: Backend<Real = R>>(&mut self, b: &mut B, step: SgdStep) {
        self.operation();
        self.settle(b);
        let stores = [Store::Values, Store::Momentum, Store::Grads];
        let [values, momentum, grads] = stores.map(|s| b.read_store(s));
        b.sgd(step);
        let [new_values, new_momentum, new_grads] = stores.map(|s| b.read_store(s));
        let SgdStep { lr, momentum: mu, weight_decay, nesterov } = step;
        let params = b.spec().params.iter();
        for (i, decay) in params.flat_map(|p| p.range.clone().map(|i| (i, if p.decay { weight_decay } else { 0.0 }))) {
            let [v, m, g] = [&values, &momentum, &grads].map(|s| Num::exact(s[i].to_f64()));
            let g = g.plus(v.scaled(decay));
            let m = m.scaled(mu).plus(g);
            let v = v.plus(if nesterov { g.plus(m.scaled(mu)) } else { m }.scaled(-lr));
            self.tally.compare(new_momentum[i].to_f64(), m, 2, || format!("sgd: momentum {i}"));
            self.tally.compare(new_values[i].to_f64(), v, 2, || format!("sgd: value {i}"));
        }
        let changed = |(old, new): (&R, &R)| bytemuck::bytes_of(old) != bytemuck::bytes_of(new);
        if grads.iter().zip(&new_grads).any(changed) {
            self.tally.fail(|| "sgd: it changed the gradients".into());
        }
        self.values = new_values;
    }
}
