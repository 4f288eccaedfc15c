//! Where the time of a step goes: a backend that times each operation of the one inside it. Two looks at the clock an
//! operation, some 50 ns: below a thousandth of the smallest step measured. On a device that computes beside the host each
//! operation is waited for. The same backend has operations checked.

use super::check::{Check, Names, Verified};
use crate::backend::gpu::GpuBackend;
use crate::backend::{
    Backend, BatchLoss, Bytes, ConvId, Grad, GradDst, Input, NormId, PoolId, Rounding, SgdStep, Spec, Store, TensorId,
};
use crate::graph::OnGpu;
use std::time::Instant;

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The batch, from host order into the backend's.
    Upload,
    /// Convolutions and linear layers, forward: with the batch norms and ReLUs that they read through, and the statistics of
    /// what they write.
    ConvForward,
    /// Statistics of batch norms that no convolution takes.
    NormForward,
    /// Additions, with the batch norms and ReLUs that they read through.
    JoinForward,
    /// Pooling forward.
    PoolForward,
    /// Cross-entropy and its gradient.
    Loss,
    /// Pooling backward.
    PoolBackward,
    /// Gradients of additions.
    JoinBackward,
    /// Gradients of convolutions and linear layers, of data and weights, through the batch norms behind them and with the ReLU
    /// masks and sums of those before them.
    ConvBackward,
    /// Momentum and update.
    Sgd,
    /// The rest of the step, between the operations.
    Other,
}

impl Phase {
    /// Every phase, in the order of a step and of the discriminants.
    pub const ALL: [Phase; 11] = [
        Phase::Upload,
        Phase::ConvForward,
        Phase::NormForward,
        Phase::JoinForward,
        Phase::PoolForward,
        Phase::Loss,
        Phase::PoolBackward,
        Phase::JoinBackward,
        Phase::ConvBackward,
        Phase::Sgd,
        Phase::Other,
    ];

    /// Name in JSON, such as "conv_forward".
    pub fn name(self) -> &'static str {
        match self {
            Phase::Upload => "upload",
            Phase::ConvForward => "conv_forward",
            Phase::ConvBackward => "conv_backward",
            Phase::NormForward => "norm_forward",
            Phase::JoinForward => "join_forward",
            Phase::JoinBackward => "join_backward",
            Phase::PoolForward => "pool_forward",
            Phase::PoolBackward => "pool_backward",
            Phase::Loss => "loss",
            Phase::Sgd => "sgd",
            Phase::Other => "other",
        }
    }
}

/// Times what its inner backend does, or checks it.
pub(super) struct Watched<B: Backend> {
    inner: B,
    seconds: [f64; Phase::ALL.len()],
    check: Option<Check<B::Real>>,
    /// Neither timed nor waited for.
    unwatched: bool,
}

impl<B: Backend> Watched<B> {
    pub(super) fn new(inner: B) -> Self {
        Watched { inner, seconds: [0.0; Phase::ALL.len()], check: None, unwatched: false }
    }

    /// Whether operations are left alone from now on, so that they can be captured, or started without a wait.
    pub(super) fn unwatch(&mut self, unwatched: bool) {
        self.unwatched = unwatched;
    }

    /// Seconds in each phase since the last call, in the order of [`Phase::ALL`].
    pub(super) fn take(&mut self) -> [f64; Phase::ALL.len()] {
        std::mem::replace(&mut self.seconds, [0.0; Phase::ALL.len()])
    }

    /// From now on operations are checked, not timed.
    pub(super) fn begin_check(&mut self, names: Names) {
        self.check = Some(Check::new(&mut self.inner, names));
    }

    /// Checks the gradients written up to now, before others take their place.
    pub(super) fn settle_check(&mut self) {
        if let Some(check) = &mut self.check {
            check.settle(&self.inner);
        }
    }

    /// What the check found; from now on operations are timed.
    ///
    /// # Errors
    /// The first number that is wrong.
    pub(super) fn end_check(&mut self) -> Result<Verified, String> {
        self.check.take().map_or(Ok(Verified::default()), |check| check.finish(&self.inner))
    }

    fn run<R>(
        &mut self,
        phase: Phase,
        op: impl FnOnce(&mut B) -> R,
        checked: impl FnOnce(&mut Check<B::Real>, &mut B) -> R,
    ) -> R {
        if let Some(check) = &mut self.check {
            return checked(check, &mut self.inner);
        }
        if self.unwatched {
            return op(&mut self.inner);
        }
        let start = Instant::now();
        let result = op(&mut self.inner);
        self.inner.wait();
        self.seconds[phase as usize] += start.elapsed().as_secs_f64();
        result
    }
}

/// `watch!(self, phase, operation(arguments))`: the operation, timed or checked.
macro_rules! watch {
    ($self:ident, $phase:ident, $op:ident($($arg:expr),*)) => {
        $self.run(Phase::$phase, |inner| inner.$op($($arg),*), |check, inner| check.$op(inner, $($arg),*))
    };
}

impl<B: Backend> Backend for Watched<B> {
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
        self.inner.write_store(store, data);
    }
    fn norm_running(&mut self, norm: NormId) {
        self.inner.norm_running(norm); // no part of a step
    }
    fn conv_data_backward(&mut self, conv: ConvId, dy: Grad, dx: GradDst, n: usize) {
        self.inner.conv_data_backward(conv, dy, dx, n); // likewise
    }
    fn gradient_scale(&self) -> f64 {
        self.inner.gradient_scale()
    }
    fn wait(&self) {
        self.inner.wait();
    }

    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[B::Real]) {
        watch!(self, Upload, write_tensor(t, n, nchw));
    }
    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        watch!(self, NormForward, norm_stats(norm, x, n));
    }
    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        watch!(self, ConvForward, conv_forward(conv, x, y, stats, n));
    }
    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        watch!(self, ConvBackward, conv_backward(conv, x, dy, dx, n));
    }
    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        watch!(self, JoinForward, join_forward(a, b, relu, y, n));
    }
    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        watch!(self, JoinBackward, copy_backward(dy, dx, n));
    }
    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        watch!(self, PoolForward, pool_forward(x, y, n));
    }
    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        watch!(self, PoolBackward, pool_backward(dy, dx, n));
    }
    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        watch!(self, PoolForward, max_pool_forward(pool, x, y, n));
    }
    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        watch!(self, PoolBackward, max_pool_backward(pool, x, dy, dx, n));
    }
    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        watch!(self, Loss, cross_entropy(logits, labels, smoothing, dlogits, n))
    }
    fn sgd(&mut self, step: SgdStep) {
        watch!(self, Sgd, sgd(step));
    }
}

impl<B: OnGpu> OnGpu for Watched<B> {
    type Driver = B::Driver;

    fn gpu(&self) -> &GpuBackend<B::Driver> {
        self.inner.gpu()
    }
    fn gpu_mut(&mut self) -> &mut GpuBackend<B::Driver> {
        self.inner.gpu_mut()
    }
}
