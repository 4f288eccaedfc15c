//! A backend with one planted fault, in the arguments it passes on or in what it leaves behind.

use sparse_engine::backend::{
    Backend, BatchLoss, Bytes, ConvId, Grad, GradDst, Input, Mask, NormId, PoolId, Real, Rounding, SgdStep, Spec,
    Store, TensorId, Write,
};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    UploadSwapsImages,
    ForwardImprecise,
    ForwardForgetsLastImage,
    ForwardReadsStaleWeights,
    InputForgetsRelu,
    StatisticsMoveNothing,
    JoinForgetsRelu,
    WeightDropsLastImage,
    GradientForgetsNorm,
    MaskIgnored,
    SumsForgotten,
    AccumulateOverwrites,
    NothingWritten,
    MaxPoolForgetsRelu,
    MaxPoolGradientElsewhere,
    SummedLoss,
    WrongCorrect,
    NoNesterov,
    MomentumForgotten,
}

/// A good backend with the fault on top.
pub struct Broken<B: Backend> {
    inner: B,
    fault: Fault,
    first_values: Vec<B::Real>,
}

impl<B: Backend> Broken<B> {
    pub fn new(inner: B, fault: Fault) -> Self {
        Broken { inner, fault, first_values: vec![] }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn edit(&mut self, t: TensorId, n: usize, f: impl FnOnce(&mut [f64])) {
        let mut data: Vec<f64> = self.inner.read_tensor(t, n).into_iter().map(Real::to_f64).collect();
        f(&mut data);
        let data: Vec<B::Real> = data.into_iter().map(B::Real::from_f64).collect();
        self.inner.write_tensor(t, n, &data);
    }

    fn input(&self, x: Input) -> Input {
        Input { relu: x.relu && !self.is(Fault::InputForgetsRelu), ..x }
    }

    fn target(&self, mut dx: GradDst) -> GradDst {
        match self.fault {
            Fault::MaskIgnored => dx.finish.mask = Mask::All,
            Fault::SumsForgotten => dx.finish.reduce = [None; 2],
            Fault::AccumulateOverwrites => dx.write = Write::Overwrite,
            _ => {}
        }
        dx
    }
}

impl<B: Backend> Backend for Broken<B> {
    type Real = B::Real;

    fn spec(&self) -> &Spec {
        self.inner.spec()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn bytes(&self) -> Bytes {
        self.inner.bytes()
    }
    fn rounding(&self) -> Rounding {
        self.inner.rounding()
    }
    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<B::Real> {
        self.inner.read_tensor(t, n)
    }
    fn read_store(&self, store: Store) -> Vec<B::Real> {
        self.inner.read_store(store)
    }
    fn write_store(&mut self, store: Store, data: &[B::Real]) {
        if store == Store::Values {
            self.first_values = data.to_vec();
        }
        self.inner.write_store(store, data);
    }
    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[B::Real]) {
        self.inner.write_tensor(t, n, nchw);
        if self.is(Fault::UploadSwapsImages) {
            let image = nchw.len() / n;
            self.edit(t, n, |data| (0..image).for_each(|i| data.swap(i, (n - 1) * image + i)));
        }
    }
    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        let running = self.inner.read_store(Store::Running);
        self.inner.norm_stats(norm, x, n);
        if self.is(Fault::StatisticsMoveNothing) {
            self.inner.write_store(Store::Running, &running);
        }
    }
    fn norm_running(&mut self, norm: NormId) {
        self.inner.norm_running(norm);
    }
    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        let (running, values) = (self.inner.read_store(Store::Running), self.inner.read_store(Store::Values));
        if self.is(Fault::ForwardReadsStaleWeights) {
            let first = self.first_values.clone();
            self.inner.write_store(Store::Values, &first);
        }
        if !self.is(Fault::NothingWritten) {
            self.inner.conv_forward(conv, self.input(x), y, stats, n);
        }
        match self.fault {
            Fault::ForwardImprecise => self.edit(y, n, |data| data.iter_mut().for_each(|v| *v *= 1.0 + 3e-4)),
            Fault::ForwardForgetsLastImage => self.edit(y, n, |data| {
                let (all, image) = (data.len(), data.len() / n);
                data[all - image..].fill(0.0);
            }),
            Fault::StatisticsMoveNothing => self.inner.write_store(Store::Running, &running),
            Fault::ForwardReadsStaleWeights => self.inner.write_store(Store::Values, &values),
            _ => {}
        }
    }
    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        let dy = if self.is(Fault::GradientForgetsNorm) { Grad::plain(dy.t) } else { dy };
        self.inner.conv_backward(conv, self.input(x), dy, dx.map(|dx| self.target(dx)), n);
        if self.is(Fault::WeightDropsLastImage) && n > 1 {
            self.inner.conv_backward(conv, x, dy, None, n - 1);
        }
    }
    fn conv_data_backward(&mut self, conv: ConvId, dy: Grad, dx: GradDst, n: usize) {
        self.inner.conv_data_backward(conv, dy, dx, n);
    }
    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        self.inner.join_forward(a, b, relu && !self.is(Fault::JoinForgetsRelu), y, n);
    }
    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        let dx = self.target(dx);
        self.inner.copy_backward(dy, dx, n);
    }
    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        self.inner.pool_forward(x, y, n);
    }
    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        let dx = self.target(dx);
        self.inner.pool_backward(dy, dx, n);
    }
    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        let x = Input { relu: x.relu && !self.is(Fault::MaxPoolForgetsRelu), ..x };
        self.inner.max_pool_forward(pool, x, y, n);
    }
    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        let dx = self.target(dx);
        self.inner.max_pool_backward(pool, x, dy, dx, n);
        if self.is(Fault::MaxPoolGradientElsewhere) {
            self.edit(dx.t, n, |data| data.rotate_left(1));
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
        let mut loss = self.inner.cross_entropy(logits, labels, smoothing, dlogits, n);
        if let (true, Some(d)) = (self.is(Fault::SummedLoss), dlogits) {
            self.edit(d, n, |data| data.iter_mut().for_each(|v| *v *= n as f64));
        }
        if self.is(Fault::WrongCorrect) {
            loss.correct += 1;
        }
        loss
    }
    fn sgd(&mut self, step: SgdStep) {
        let momentum = self.inner.read_store(Store::Momentum);
        self.inner.sgd(SgdStep { nesterov: step.nesterov && !self.is(Fault::NoNesterov), ..step });
        if self.is(Fault::MomentumForgotten) {
            self.inner.write_store(Store::Momentum, &momentum);
        }
    }
}
