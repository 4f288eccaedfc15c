//! A backend with one planted fault: the suite must reject each, with a message that names the op at fault.

use super::common::operand::{channel_of, of_channel};
use super::common::rig::{f64s, reals};
use super::fault::Fault;
use sparse_engine::backend::{
    Backend, BatchLoss, Bytes, ConvId, Grad, GradDst, Input, Mask, NormId, ParamId, PoolId, Rounding, SgdStep, Spec,
    Store, TensorId, Write,
};

/// A good backend with the fault on top.
pub struct Broken<B: Backend> {
    inner: B,
    fault: Fault,
    copy: Vec<B::Real>,
    /// Norms with running statistics.
    frozen: Vec<NormId>,
}

impl<B: Backend> Broken<B> {
    pub fn new(inner: B, fault: Fault) -> Self {
        Broken { inner, fault, copy: vec![], frozen: vec![] }
    }

    /// What the inner backend is told.
    pub fn told(mut spec: Spec, fault: Fault) -> Spec {
        spec.params.iter_mut().for_each(|p| p.decay |= fault == Fault::ExemptDecays);
        spec
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn edit(&mut self, t: TensorId, n: usize, f: impl FnMut(&mut f64)) {
        let mut data = f64s(&self.inner.read_tensor(t, n));
        data.iter_mut().for_each(f);
        self.inner.write_tensor(t, n, &reals(&data));
    }

    fn edit_store(&mut self, store: Store, f: impl FnOnce(&mut [f64])) {
        let mut data = f64s(&self.inner.read_store(store));
        f(&mut data);
        self.inner.write_store(store, &reals(&data));
    }

    fn param(&self, p: ParamId) -> Vec<f64> {
        f64s(&self.inner.read_store(Store::Values)[self.inner.spec().params[p.0 as usize].range.clone()])
    }

    /// The weight gradient alone, or the `wrong` one.
    fn weights(&mut self, conv: ConvId, x: Input, dy: Grad, n: usize, wrong: Option<Vec<f64>>) {
        match wrong {
            None => self.inner.conv_backward(conv, x, dy, None, n),
            Some(wrong) => self.edit_store(Store::Grads, |g| g.copy_from_slice(&wrong)),
        }
    }

    /// Runs `op` with the faults of finishing a gradient.
    fn finishing(&mut self, mut dx: GradDst, n: usize, op: impl FnOnce(&mut B, GradDst)) {
        let finish = dx.finish;
        match self.fault {
            Fault::MaskSkipped => dx.finish.mask = Mask::All,
            Fault::MaskOfStored => {
                if let Mask::Positive(x) = finish.mask {
                    dx.finish.mask = Mask::Positive(Input::plain(x.t));
                }
            }
            Fault::SecondReduceSkipped => dx.finish.reduce[1] = None,
            Fault::ReducedBeforeMasked if finish.reduce != [None; 2] => {
                dx.finish.mask = Mask::All;
                op(&mut self.inner, dx);
                let mut open = self.open(finish.mask, n);
                return self.edit(dx.t, n, |v| *v = if open() { *v } else { 0.0 });
            }
            Fault::ReducedBeforeAdded if dx.write == Write::Accumulate && finish.reduce != [None; 2] => {
                let mut old = f64s(&self.inner.read_tensor(dx.t, n)).into_iter();
                dx.write = Write::Overwrite;
                op(&mut self.inner, dx);
                let mut open = self.open(finish.mask, n);
                return self.edit(dx.t, n, |v| *v += old.next().filter(|_| open()).unwrap_or(0.0));
            }
            _ => {}
        }
        op(&mut self.inner, dx);
    }

    /// Mean and 1 / sqrt(variance + eps) of a channel of the batch.
    fn moments(&self, x: TensorId, n: usize, c: usize) -> (f64, f64) {
        let plane = self.inner.spec().tensors[x.0 as usize].plane;
        let data = f64s(&self.inner.read_tensor(x, n));
        let of = of_channel(&data, plane, c);
        let mean = of.iter().sum::<f64>() / of.len() as f64;
        let var = of.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / of.len() as f64;
        (mean, 1.0 / (var + 1e-5).sqrt())
    }

    /// Whether the mask passes the first, the second, ... element, its norm being of the batch.
    fn open(&self, mask: Mask, n: usize) -> impl FnMut() -> bool + use<B> {
        let mut open = vec![];
        if let Mask::Positive(x) = mask {
            open = f64s(&self.inner.read_tensor(x.t, n));
            if let Some(norm) = x.norm {
                let plane = self.inner.spec().tensors[x.t.0 as usize].plane;
                let spec = self.inner.spec().norms[norm.0 as usize];
                let (gamma, beta) = (self.param(spec.gamma), self.param(spec.beta));
                let moments: Vec<_> = (0..plane.c as usize).map(|c| self.moments(x.t, n, c)).collect();
                for (i, v) in open.iter_mut().enumerate() {
                    let c = channel_of(plane, i);
                    *v = gamma[c] * (*v - moments[c].0) * moments[c].1 + beta[c];
                }
            }
        }
        let mut open = open.into_iter();
        move || open.next().is_none_or(|v| v > 0.0)
    }

    /// Adds to `y` what taps in the padding give if it holds the norm of zero.
    fn normalise_padding(&mut self, conv: ConvId, norm: NormId, x: Input, y: TensorId, n: usize) {
        let (conv, norm) = (self.inner.spec().convs[conv.0 as usize], self.inner.spec().norms[norm.0 as usize]);
        let (gamma, beta, weight) = (self.param(norm.gamma), self.param(norm.beta), self.param(conv.weight));
        let g = conv.geom;
        let kept = self.inner.spec().params[conv.weight.0 as usize].kept.clone();
        let padding: Vec<f64> = (0..g.c as usize)
            .map(|c| {
                let (mean, rstd) = self.moments(x.t, n, c);
                let v = beta[c] - gamma[c] * mean * rstd;
                if x.relu { v.max(0.0) } else { v }
            })
            .collect();
        let mut data = f64s(&self.inner.read_tensor(y, n));
        let (p, q, taps) = (g.p(), g.q(), g.r * g.s);
        for (i, w) in weight.iter().enumerate() {
            let flat = kept.as_ref().map_or(i as u32, |k| k[i]);
            let (k, c, r, s) = (flat / (g.c * taps), flat / taps % g.c, flat / g.s % g.r, flat % g.s);
            for out in (0..n as u32 * g.k * p * q).filter(|out| out / (p * q) % g.k == k) {
                let (row, col) = (out / q % p * g.stride + r, out % q * g.stride + s);
                if !(g.pad..g.pad + g.h).contains(&row) || !(g.pad..g.pad + g.w).contains(&col) {
                    data[out as usize] += w * padding[c as usize];
                }
            }
        }
        self.inner.write_tensor(y, n, &reals(&data));
    }
}

impl<B: Backend> Backend for Broken<B> {
    type Real = B::Real;

    fn spec(&self) -> &Spec {
        self.inner.spec()
    }
    fn describe(&self) -> String {
        format!("{:?}", self.fault)
    }
    fn bytes(&self) -> Bytes {
        self.inner.bytes()
    }
    fn rounding(&self) -> Rounding {
        self.inner.rounding()
    }
    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[B::Real]) {
        self.inner.write_tensor(t, n, nchw);
    }
    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<B::Real> {
        self.inner.read_tensor(t, n)
    }
    fn read_store(&self, store: Store) -> Vec<B::Real> {
        self.inner.read_store(store)
    }
    fn write_store(&mut self, store: Store, data: &[B::Real]) {
        self.inner.write_store(store, data);
        if store == Store::Values {
            self.copy = data.to_vec();
        }
    }

    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        self.frozen.retain(|&f| f != norm);
        let before = f64s(&self.inner.read_store(Store::Running));
        self.inner.norm_stats(norm, x, n);
        if self.is(Fault::RunningVarianceBiased) {
            let spec = self.inner.spec().norms[norm.0 as usize];
            let plane = self.inner.spec().tensors[x.0 as usize].plane;
            let m = (n as u32 * plane.h * plane.w) as f64;
            let c = spec.c as usize;
            self.edit_store(Store::Running, |running| {
                for i in spec.running + c..spec.running + 2 * c {
                    let kept = (1.0 - spec.momentum) * before[i];
                    running[i] = kept + (running[i] - kept) * (m - 1.0) / m;
                }
            });
        }
    }
    fn norm_running(&mut self, norm: NormId) {
        self.frozen.push(norm);
        if !self.is(Fault::RunningIgnored) {
            self.inner.norm_running(norm);
        }
        if self.is(Fault::RunningMoves) {
            self.edit_store(Store::Running, |r| r[0] += 1e-3);
        }
    }

    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        let skipped = self.is(Fault::ReluSkipped) && x.norm.is_some();
        let x = Input { relu: x.relu && !skipped, ..x };
        let short = self.is(Fault::StatsDropLastImage) && n > 2;
        let now = stats.filter(|_| !short);
        if self.is(Fault::StaleCopy) {
            let values = self.inner.read_store(Store::Values);
            self.inner.write_store(Store::Values, &self.copy);
            self.inner.conv_forward(conv, x, y, now, n);
            self.inner.write_store(Store::Values, &values);
        } else {
            self.inner.conv_forward(conv, x, y, now, n);
        }
        if let Some(norm) = stats.filter(|_| short) {
            self.inner.norm_stats(norm, y, n - 1);
        }
        if self.is(Fault::ForwardImprecise) {
            self.edit(y, n, |v| *v *= 1.0 + 1e-5);
        }
        let spec = self.inner.spec().convs[conv.0 as usize];
        if let (true, Some(bias)) = (self.is(Fault::BiasOnce), spec.bias) {
            let bias = self.param(bias);
            let pixels = (spec.geom.p() * spec.geom.q()) as usize;
            let mut i = 0;
            self.edit(y, n, |v| {
                if i >= bias.len() * pixels {
                    *v -= bias[i / pixels % bias.len()];
                }
                i += 1;
            });
        }
        if let (true, Some(norm)) = (self.is(Fault::PaddingNormalised), x.norm) {
            self.normalise_padding(conv, norm, x, y, n);
        }
    }
    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        let images = match self.fault {
            Fault::WeightDropsLastImage if n > 1 => n - 1,
            Fault::WeightReadsWholeBatch => self.inner.spec().batch,
            _ => n,
        };
        let wrong = (images != n).then(|| {
            self.inner.conv_backward(conv, x, dy, None, images);
            f64s(&self.inner.read_store(Store::Grads))
        });
        let dx = dx.map(|dx| match dx.write {
            Write::Overwrite if self.is(Fault::OverwriteAdds) => GradDst { write: Write::Accumulate, ..dx },
            Write::Accumulate if self.is(Fault::AccumulateOverwrites) => GradDst { write: Write::Overwrite, ..dx },
            _ => dx,
        });
        let Some(dx) = dx else { return self.weights(conv, x, dy, n, wrong) };
        self.finishing(dx, n, |b, dx| b.conv_backward(conv, x, dy, Some(dx), n));
        let range = self.inner.spec().params[self.inner.spec().convs[conv.0 as usize].weight.0 as usize].range.clone();
        if let Some(wrong) = wrong {
            self.edit_store(Store::Grads, |g| g[range.clone()].copy_from_slice(&wrong[range]));
        }
    }

    fn conv_data_backward(&mut self, conv: ConvId, dy: Grad, dx: GradDst, n: usize) {
        self.finishing(dx, n, |b, dx| b.conv_data_backward(conv, dy, dx, n));
        if self.is(Fault::DataWritesWeights) {
            let range =
                self.inner.spec().params[self.inner.spec().convs[conv.0 as usize].weight.0 as usize].range.clone();
            self.edit_store(Store::Grads, |g| g[range].fill(0.0));
        }
    }

    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        let b = b.filter(|b| !(self.is(Fault::JoinForgetsTwin) && b.t == a.t));
        self.inner.join_forward(a, b, relu, y, n);
        if self.is(Fault::ReluSwallowsNan) && (relu || a.relu) {
            self.edit(y, n, |v| *v = v.max(0.0));
        }
    }
    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        let held = self.inner.read_tensor(dy.t, n);
        if self.is(Fault::FrozenAsBatch) && dy.norm.is_some_and(|through| self.frozen.contains(&through.norm)) {
            let (g, plane) = (f64s(&held), self.inner.spec().tensors[dy.t.0 as usize].plane);
            let mean = |c| of_channel(&g, plane, c).iter().sum::<f64>() / (g.len() / plane.c as usize) as f64;
            let means: Vec<f64> = (0..plane.c as usize).map(mean).collect();
            let mut channels = (0..g.len()).map(|i| channel_of(plane, i));
            self.edit(dy.t, n, |v| *v -= means[channels.next().unwrap()]);
            self.inner.copy_backward(dy, dx, n);
            return self.inner.write_tensor(dy.t, n, &held);
        }
        let (true, Some(through)) = (self.is(Fault::AffineWithoutXhat), dy.norm) else {
            return self.finishing(dx, n, |b, dx| b.copy_backward(dy, dx, n));
        };
        let spec = self.inner.spec().norms[through.norm.0 as usize];
        let (gamma, plane) = (self.param(spec.gamma), self.inner.spec().tensors[dy.t.0 as usize].plane);
        let g = f64s(&held);
        let wrong: Vec<(f64, f64)> = (0..plane.c as usize)
            .map(|c| {
                let of = of_channel(&g, plane, c);
                (gamma[c] * self.moments(through.x, n, c).1, of.iter().sum::<f64>() / of.len() as f64)
            })
            .collect();
        let mut i = 0;
        self.edit(dy.t, n, |v| {
            let (scale, mean) = wrong[channel_of(plane, i)];
            *v = scale * (*v - mean);
            i += 1;
        });
        self.inner.copy_backward(Grad::plain(dy.t), dx, n);
        self.inner.write_tensor(dy.t, n, &held);
    }
    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        self.inner.pool_forward(x, y, n);
    }
    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.inner.pool_backward(dy, dx, n);
        if self.is(Fault::PoolScale) && dx.write == Write::Overwrite {
            let plane = self.inner.spec().tensors[dx.t.0 as usize].plane;
            let pixels = f64::from(plane.h * plane.w);
            self.edit(dx.t, n, |v| *v *= pixels / (pixels + 1.0));
        }
    }
    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        self.inner.max_pool_forward(pool, x, y, n);
        if self.is(Fault::MaxPadsZero) && self.inner.spec().pools[pool.0 as usize].pad > 0 {
            let q = self.inner.spec().tensors[y.0 as usize].plane.w as usize;
            let mut i = 0;
            self.edit(y, n, |v| {
                *v = if i % q == 0 { v.max(0.0) } else { *v };
                i += 1;
            });
        }
    }
    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        let held = self.inner.read_tensor(x.t, n);
        if self.is(Fault::MaxTiesToLast) {
            let len = self.inner.spec().tensors[x.t.0 as usize].plane.len();
            let mut i = 0;
            self.edit(x.t, n, |v| {
                *v += 1e-4 * (i % len) as f64; // far below the distance of different numbers
                i += 1;
            });
        }
        self.inner.max_pool_backward(pool, x, dy, dx, n);
        self.inner.write_tensor(x.t, n, &held);
    }

    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        let smoothing = if self.is(Fault::NoSmoothing) { 0.0 } else { smoothing };
        let loss = self.inner.cross_entropy(logits, labels, smoothing, dlogits, n);
        if let (Some(t), true) = (dlogits, self.is(Fault::SummedLoss)) {
            self.edit(t, n, |v| *v *= n as f64);
        }
        loss
    }

    fn sgd(&mut self, step: SgdStep) {
        let values = f64s(&self.inner.read_store(Store::Values));
        self.inner.sgd(SgdStep { nesterov: step.nesterov && !self.is(Fault::NoNesterov), ..step });
        if self.is(Fault::DecayedGradient) {
            let decay = step.weight_decay;
            self.edit_store(Store::Grads, |g| g.iter_mut().zip(values).for_each(|(g, v)| *g += decay * v));
        }
    }
}
