//! What a device must be able to do: the [`Backend`] trait, and the [`Spec`] it is built from.
//!
//! A backend knows tensors, parameters, convolutions and norms by index; it knows no layers, recipes or files.
//! It owns all storage: one arena of activations and gradients, and one flat parameter store
//! (values, gradients, momentum: one number per *stored* parameter, so pruned weights do not exist).
//! Layout is private: the graph speaks logical N, C, H, W.

pub mod cpu;
pub mod gpu;
pub mod reference;

use crate::shape::ConvGeom;
use std::ops::Range;
use std::sync::Arc;

/// The number type a backend exchanges with the host: `f32`, or `f64` for the reference backend.
pub trait Real: bytemuck::Pod + Default + PartialOrd + Send + Sync + std::fmt::Debug + 'static {
    /// Rounds to this type.
    fn from_f64(v: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn from_f64(v: f64) -> Self {
        v as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn from_f64(v: f64) -> Self {
        v
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// Index into [`Spec::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub u32);
/// Index into [`Spec::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub u32);
/// Index into [`Spec::convs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConvId(pub u32);
/// Index into [`Spec::norms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NormId(pub u32);

/// Logical shape of one image's tensor. Two tensors may share a slot only if their `Plane`s are equal,
/// so that a zero halo, never written by any op, stays zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plane {
    /// Channels.
    pub c: u32,
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
    /// Zeros that some convolution reads on each side of each row and column. A backend that stores halos
    /// zeroes them once and writes only the interior.
    pub halo: u32,
}

/// A tensor: its logical plane and the arena slot that holds it.
#[derive(Clone, Copy, Debug)]
pub struct TensorSpec {
    /// Shape of one image.
    pub plane: Plane,
    /// Index into [`Spec::slots`].
    pub slot: u32,
}

/// A parameter tensor in the flat store.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Logical shape: K,C,R,S for a convolution, out,in for a linear layer, one length for a vector.
    pub shape: Vec<usize>,
    /// Kept positions in the flattened logical shape, strictly ascending; `None`: all of them (nothing is stored for them).
    pub kept: Option<Arc<[u32]>>,
    /// Its part of each flat store (values, gradients, momentum), in ascending order of position.
    pub range: Range<usize>,
}

/// A convolution, or a linear layer as a 1x1 convolution on a 1x1 plane.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// Geometry of one image.
    pub geom: ConvGeom,
    /// Weight, [K,C,R,S] or [K,C].
    pub weight: ParamId,
    /// Bias [K], if any.
    pub bias: Option<ParamId>,
}

/// A batch norm over N,H,W.
#[derive(Clone, Copy, Debug)]
pub struct NormSpec {
    /// Channels C.
    pub c: u32,
    /// Scale [C].
    pub gamma: ParamId,
    /// Shift [C].
    pub beta: ParamId,
    /// First element in the running store: C means, then C variances.
    pub running: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Weight of the new batch in the running statistics (PyTorch's `momentum`).
    pub momentum: f64,
}

/// Maximum over square windows; padding never wins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolSpec {
    /// Rows and columns of a window.
    pub size: u32,
    /// Distance of windows.
    pub stride: u32,
    /// Cells around the image that belong to no pixel; less than `size`.
    pub pad: u32,
}

/// Everything a backend allocates for: nothing is allocated in a step.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Largest batch; every op takes the number of images actually present, `1..=batch`.
    pub batch: usize,
    /// All activations and activation gradients.
    pub tensors: Vec<TensorSpec>,
    /// Arena slots; a slot holds one plane kind for `batch` images.
    pub slots: Vec<Plane>,
    /// Parameters, in store order.
    pub params: Vec<ParamSpec>,
    /// Convolutions and linear layers.
    pub convs: Vec<ConvSpec>,
    /// Batch norms.
    pub norms: Vec<NormSpec>,
}

impl Spec {
    /// Stored parameters: the length of values, gradients and momentum.
    pub fn stored(&self) -> usize {
        self.params.last().map_or(0, |p| p.range.end)
    }

    /// Length of the running store: two numbers (mean, variance) per norm channel.
    pub fn running(&self) -> usize {
        self.norms.iter().map(|n| 2 * n.c as usize).sum()
    }
}

/// How an op writes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The old content is lost (it may be anything, NaN included).
    Overwrite,
    /// Added to the old content.
    Accumulate,
}

/// A destination with its write rule.
#[derive(Clone, Copy, Debug)]
pub struct Dst {
    /// Tensor written.
    pub t: TensorId,
    /// Write rule.
    pub write: Write,
}

/// The flat stores that the host can read and replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Parameter values, length [`Spec::stored`].
    Values,
    /// Parameter gradients of the last backward pass, length [`Spec::stored`].
    Grads,
    /// Momentum buffers, length [`Spec::stored`].
    Momentum,
    /// Running means and variances, length [`Spec::running`].
    Running,
}

/// Result of the loss over one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchLoss {
    /// Sum over the images of the cross-entropy (with label smoothing, if any), natural log.
    pub loss_sum: f64,
    /// Images whose largest logit (ties: lowest class) is the label's.
    pub correct: u64,
}

/// One SGD step as PyTorch defines it: `g += wd*v; m = mu*m + g; v -= lr * (nesterov ? g + mu*m : m)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Momentum factor mu.
    pub momentum: f64,
    /// Weight decay wd, on every stored parameter.
    pub weight_decay: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
}

/// Bytes held, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Parameter values.
    pub values: u64,
    /// Indices, in every order kept.
    pub indices: u64,
    /// Parameter gradients.
    pub gradients: u64,
    /// Momentum.
    pub momentum: u64,
    /// Copies of values kept in another order or precision for the kernels.
    pub operand_copies: u64,
    /// Activations and their gradients (the arena), statistics, and the scratch of the kernels.
    pub activations: u64,
}

impl Bytes {
    /// Sum of all parts.
    pub fn total(&self) -> u64 {
        self.values + self.indices + self.gradients + self.momentum + self.operand_copies + self.activations
    }
}

/// A device that can run one network. All tensors given to one op are distinct unless it says otherwise.
/// `n` is the number of images, `1..=spec.batch`; images beyond `n` never influence a result. A ReLU lets NaN through, so
/// that a diverged network cannot keep a finite loss.
pub trait Backend: Send {
    /// Number type exchanged with the host.
    type Real: Real;

    /// What it was built from.
    fn spec(&self) -> &Spec;
    /// Name for people and for the summary, such as "cpu avx2, 2 threads".
    fn describe(&self) -> String;
    /// Bytes held.
    fn bytes(&self) -> Bytes;

    /// Writes `n*C*H*W` numbers in N,C,H,W order.
    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[Self::Real]);
    /// Reads `n*C*H*W` numbers in N,C,H,W order.
    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<Self::Real>;
    /// Reads a flat store.
    fn read_store(&self, store: Store) -> Vec<Self::Real>;
    /// Replaces a flat store.
    fn write_store(&mut self, store: Store, data: &[Self::Real]);

    /// `y = conv(x, weight) + bias`, overwriting y.
    fn conv_forward(&mut self, conv: ConvId, x: TensorId, y: TensorId, n: usize);
    /// `dx = or += conv_transposed(dy, weight)`.
    fn conv_backward_data(&mut self, conv: ConvId, dy: TensorId, dx: Dst, n: usize);
    /// Overwrites the weight's gradient (kept positions only) and the bias' gradient in the gradient store.
    fn conv_backward_weight(&mut self, conv: ConvId, x: TensorId, dy: TensorId, n: usize);

    /// `y = relu?(gamma * (x - mean) * rstd + beta + residual?)` with batch statistics (biased variance), which it keeps
    /// for the backward pass; updates the running mean and (unbiased) variance. The host guarantees `n*H*W >= 2`.
    fn norm_forward(
        &mut self,
        norm: NormId,
        x: TensorId,
        residual: Option<TensorId>,
        relu: bool,
        y: TensorId,
        n: usize,
    );
    /// The same with the running statistics, changing none.
    fn norm_infer(&mut self, norm: NormId, x: TensorId, residual: Option<TensorId>, relu: bool, y: TensorId, n: usize);
    /// With `dz = relu ? dy where y > 0 else 0 : dy`: `dres = or += dz`, dx = or += batch-norm gradient of dz,
    /// and overwrites gamma's and beta's gradients. Uses the statistics of the last `norm_forward` of this norm.
    #[allow(clippy::too_many_arguments)]
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
    );

    /// `y = relu?(a + b?)`; `a` and `b` may be one tensor.
    fn join_forward(&mut self, a: TensorId, b: Option<TensorId>, relu: bool, y: TensorId, n: usize);
    /// With dz as in `norm_backward`: `da = or += dz`, `db = or += dz`. `da` and `db` may be one tensor only if both accumulate.
    fn join_backward(&mut self, y: TensorId, relu: bool, dy: TensorId, da: Dst, db: Option<Dst>, n: usize);

    /// Mean over H,W: x [C,H,W] -> y [C,1,1].
    fn pool_forward(&mut self, x: TensorId, y: TensorId, n: usize);
    /// `dx = or += dy / (H*W)`.
    fn pool_backward(&mut self, dy: TensorId, dx: Dst, n: usize);

    /// Softmax cross-entropy of logits [C,1,1] with label smoothing `s`: `(1-s)*nll + s*mean over classes of -log p`.
    /// The loss is the same bits whether or not `dlogits` is given. If it is, overwrites it with the gradient of the *mean* loss over the `n` images.
    fn cross_entropy(
        &mut self,
        logits: TensorId,
        labels: &[u32],
        smoothing: f64,
        dlogits: Option<TensorId>,
        n: usize,
    ) -> BatchLoss;

    /// One step over all stored parameters; gradients stay as they are.
    fn sgd(&mut self, step: SgdStep);
}
