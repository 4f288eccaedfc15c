//! Where the time of a step goes: a backend that times each operation of the one inside it. Two looks at the clock an
//! operation, some 50 ns: below a thousandth of the smallest step measured.

use crate::backend::{Backend, BatchLoss, Bytes, ConvId, Dst, NormId, SgdStep, Spec, Store, TensorId};
use std::time::Instant;

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The batch, from host order into the backend's.
    Upload,
    /// Convolutions and linear layers, forward; with statistics and what is computed while reading, where fused.
    ConvForward,
    /// Batch norm forward, where not part of a neighbour.
    NormForward,
    /// Additions and ReLUs forward, likewise.
    JoinForward,
    /// Pooling forward.
    PoolForward,
    /// Cross-entropy and its gradient.
    Loss,
    /// Pooling backward.
    PoolBackward,
    /// Additions and ReLUs backward, where not part of a neighbour.
    JoinBackward,
    /// Batch norm backward, likewise.
    NormBackward,
    /// Gradients of convolutions and linear layers, of data and weights; with ReLU masks and sums, where fused.
    ConvBackward,
    /// Momentum and update.
    Sgd,
    /// The rest of the step, between the operations.
    Other,
}

impl Phase {
    /// Every phase, in the order of a step and of the discriminants.
    pub const ALL: [Phase; 12] = [
        Phase::Upload,
        Phase::ConvForward,
        Phase::NormForward,
        Phase::JoinForward,
        Phase::PoolForward,
        Phase::Loss,
        Phase::PoolBackward,
        Phase::JoinBackward,
        Phase::NormBackward,
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
            Phase::NormBackward => "norm_backward",
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

/// Times what its inner backend does.
pub(super) struct Timed<B> {
    inner: B,
    seconds: [f64; Phase::ALL.len()],
}

impl<B: Backend> Timed<B> {
    pub(super) fn new(inner: B) -> Self {
        Timed { inner, seconds: [0.0; Phase::ALL.len()] }
    }

    /// Seconds in each phase since the last call, in the order of [`Phase::ALL`].
    pub(super) fn take(&mut self) -> [f64; Phase::ALL.len()] {
        std::mem::replace(&mut self.seconds, [0.0; Phase::ALL.len()])
    }

    fn timed<R>(&mut self, phase: Phase, op: impl FnOnce(&mut B) -> R) -> R {
        let start = Instant::now();
        let result = op(&mut self.inner);
        self.seconds[phase as usize] += start.elapsed().as_secs_f64();
        result
    }
}

impl<B: Backend> Backend for Timed<B> {
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
    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[B::Real]) {
        self.timed(Phase::Upload, |b| b.write_tensor(t, n, nchw));
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

    fn conv_forward(&mut self, conv: ConvId, x: TensorId, y: TensorId, n: usize) {
        self.timed(Phase::ConvForward, |b| b.conv_forward(conv, x, y, n));
    }
    fn conv_backward_data(&mut self, conv: ConvId, dy: TensorId, dx: Dst, n: usize) {
        self.timed(Phase::ConvBackward, |b| b.conv_backward_data(conv, dy, dx, n));
    }
    fn conv_backward_weight(&mut self, conv: ConvId, x: TensorId, dy: TensorId, n: usize) {
        self.timed(Phase::ConvBackward, |b| b.conv_backward_weight(conv, x, dy, n));
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
        self.timed(Phase::NormForward, |b| b.norm_forward(norm, x, residual, relu, y, n));
    }
    fn norm_infer(&mut self, norm: NormId, x: TensorId, residual: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.timed(Phase::NormForward, |b| b.norm_infer(norm, x, residual, relu, y, n));
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
        self.timed(Phase::NormBackward, |b| b.norm_backward(norm, x, y, relu, dy, dx, dres, n));
    }
    fn join_forward(&mut self, a: TensorId, b: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.timed(Phase::JoinForward, |inner| inner.join_forward(a, b, relu, y, n));
    }
    fn join_backward(&mut self, y: TensorId, relu: bool, dy: TensorId, da: Dst, db: Option<Dst>, n: usize) {
        self.timed(Phase::JoinBackward, |b| b.join_backward(y, relu, dy, da, db, n));
    }
    fn pool_forward(&mut self, x: TensorId, y: TensorId, n: usize) {
        self.timed(Phase::PoolForward, |b| b.pool_forward(x, y, n));
    }
    fn pool_backward(&mut self, dy: TensorId, dx: Dst, n: usize) {
        self.timed(Phase::PoolBackward, |b| b.pool_backward(dy, dx, n));
    }
    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss {
        self.timed(Phase::Loss, |b| b.cross_entropy(logits, labels, smoothing, dlogits, n))
    }
    fn sgd(&mut self, step: SgdStep) {
        self.timed(Phase::Sgd, |b| b.sgd(step));
    }
}
