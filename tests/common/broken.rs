//! A backend with one planted fault: the suite must reject each, with a message that names the op at fault.

use crate::common::rig::{f64s, reals};
use sparse_engine::backend::{Backend, BatchLoss, Bytes, ConvId, Dst, NormId, SgdStep, Spec, Store, TensorId, Write};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// The weight gradient leaves out the last image.
    WeightDropsLastImage,
    /// The weight gradient takes all images there is room for, whatever lies behind the last one.
    WeightReadsWholeBatch,
    /// Overwriting the data gradient adds.
    OverwriteAdds,
    /// Accumulating the data gradient overwrites.
    AccumulateOverwrites,
    /// A relative error of 1e-5 in a convolution's output.
    ForwardImprecise,
    /// The bias reaches the first image only.
    BiasOnce,
    /// The running variance takes the biased variance.
    RunningVarianceBiased,
    /// Evaluation statistics change.
    InferMovesStatistics,
    /// The batch-norm gradient ignores the ReLU.
    NormIgnoresRelu,
    /// The residual's gradient always overwrites.
    ResidualOverwrites,
    /// The second destination of a join is left out.
    JoinForgetsSecond,
    /// Pooling's gradient is the mean over one pixel too many.
    PoolScale,
    /// ReLU turns NaN into zero, as a plain maximum does.
    ReluSwallowsNan,
    /// The loss ignores the smoothing.
    NoSmoothing,
    /// The gradient is that of the summed loss.
    SummedLoss,
    /// SGD without the look-ahead.
    NoNesterov,
    /// SGD writes the decayed gradient back.
    DecayedGradient,
    /// The kernels' copy of the values is made by `write_store` and not renewed by `sgd`.
    StaleCopy,
}

/// A good backend with the fault on top.
pub struct Broken<B: Backend> {
    inner: B,
    fault: Fault,
    copy: Vec<B::Real>,
}

impl<B: Backend> Broken<B> {
    pub fn new(inner: B, fault: Fault) -> Self {
        Broken { inner, fault, copy: vec![] }
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

    fn conv_forward(&mut self, conv: ConvId, x: TensorId, y: TensorId, n: usize) {
        if self.is(Fault::StaleCopy) {
            let values = self.inner.read_store(Store::Values);
            self.inner.write_store(Store::Values, &self.copy);
            self.inner.conv_forward(conv, x, y, n);
            self.inner.write_store(Store::Values, &values);
        } else {
            self.inner.conv_forward(conv, x, y, n);
        }
        if self.is(Fault::ForwardImprecise) {
            self.edit(y, n, |v| *v *= 1.0 + 1e-5);
        }
        let spec = &self.inner.spec().convs[conv.0 as usize];
        if let (true, Some(bias)) = (self.is(Fault::BiasOnce), spec.bias) {
            let range = self.inner.spec().params[bias.0 as usize].range.clone();
            let bias = f64s(&self.inner.read_store(Store::Values)[range]);
            let pixels = (spec.geom.p() * spec.geom.q()) as usize;
            let mut i = 0;
            self.edit(y, n, |v| {
                if i >= bias.len() * pixels {
                    *v -= bias[i / pixels % bias.len()];
                }
                i += 1;
            });
        }
    }
    fn conv_backward_data(&mut self, conv: ConvId, dy: TensorId, dx: Dst, n: usize) {
        let write = match dx.write {
            Write::Overwrite if self.is(Fault::OverwriteAdds) => Write::Accumulate,
            Write::Accumulate if self.is(Fault::AccumulateOverwrites) => Write::Overwrite,
            as_asked => as_asked,
        };
        self.inner.conv_backward_data(conv, dy, Dst { write, ..dx }, n);
    }
    fn conv_backward_weight(&mut self, conv: ConvId, x: TensorId, dy: TensorId, n: usize) {
        let images = match self.fault {
            Fault::WeightDropsLastImage if n > 1 => n - 1,
            Fault::WeightReadsWholeBatch => self.inner.spec().batch,
            _ => n,
        };
        self.inner.conv_backward_weight(conv, x, dy, images);
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
        let before = f64s(&self.inner.read_store(Store::Running));
        self.inner.norm_forward(norm, x, residual, relu, y, n);
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
        if self.is(Fault::ReluSwallowsNan) && relu {
            self.edit(y, n, |v| *v = v.max(0.0));
        }
    }
    fn norm_infer(&mut self, norm: NormId, x: TensorId, residual: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.inner.norm_infer(norm, x, residual, relu, y, n);
        if self.is(Fault::InferMovesStatistics) {
            self.edit_store(Store::Running, |r| r[0] += 1e-3);
        }
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
        let relu = relu && !self.is(Fault::NormIgnoresRelu);
        let overwrite = self.is(Fault::ResidualOverwrites);
        let dres = dres.map(|d| if overwrite { Dst { write: Write::Overwrite, ..d } } else { d });
        self.inner.norm_backward(norm, x, y, relu, dy, dx, dres, n);
    }

    fn join_forward(&mut self, a: TensorId, b: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.inner.join_forward(a, b, relu, y, n);
    }
    fn join_backward(&mut self, y: TensorId, relu: bool, dy: TensorId, da: Dst, db: Option<Dst>, n: usize) {
        let db = db.filter(|_| !self.is(Fault::JoinForgetsSecond));
        self.inner.join_backward(y, relu, dy, da, db, n);
    }
    fn pool_forward(&mut self, x: TensorId, y: TensorId, n: usize) {
        self.inner.pool_forward(x, y, n);
    }
    fn pool_backward(&mut self, dy: TensorId, dx: Dst, n: usize) {
        self.inner.pool_backward(dy, dx, n);
        if self.is(Fault::PoolScale) && dx.write == Write::Overwrite {
            let plane = self.inner.spec().tensors[dx.t.0 as usize].plane;
            let pixels = f64::from(plane.h * plane.w);
            self.edit(dx.t, n, |v| *v *= pixels / (pixels + 1.0));
        }
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
