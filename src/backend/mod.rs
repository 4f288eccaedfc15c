//! What a device must be able to do: the [`Backend`] trait, and the [`Spec`] it is built from.
//!
//! A backend knows tensors, parameters, convolutions and norms by index; it knows no layers, recipes or files.
//! It owns all storage: one arena of activations and gradients, and one flat parameter store
//! (values, gradients, momentum: one number per *stored* parameter, so pruned weights do not exist).
//! Layout is private: the graph speaks logical N, C, H, W.

pub mod cpu;
pub mod gpu;
pub mod reference;
mod spec;

pub use spec::{
    ConvId, ConvSpec, NormId, NormSpec, ParamId, ParamSpec, Plane, PoolId, PoolSpec, Spec, TensorId, TensorSpec, place,
};

/// The number type a backend exchanges with the host: `f32`, or `f64` for the reference backend.
pub trait Real: bytemuck::Pod + Default + PartialOrd + Send + Sync + std::fmt::Debug + 'static {
    /// Distance from 1 to the next number.
    const EPS: f64;
    /// Rounds to this type.
    fn from_f64(v: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    const EPS: f64 = f32::EPSILON as f64;
    fn from_f64(v: f64) -> Self {
        v as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const EPS: f64 = f64::EPSILON;
    fn from_f64(v: f64) -> Self {
        v
    }
    fn to_f64(self) -> f64 {
        self
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

/// What an op reads: `relu?(norm?(t))`, computed while reading and stored nowhere. The norm's coefficients are those that
/// [`Backend::norm_stats`], [`Backend::conv_forward`] or [`Backend::norm_running`] last gave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Input {
    /// The stored tensor.
    pub t: TensorId,
    /// Batch norm of it.
    pub norm: Option<NormId>,
    /// ReLU behind it.
    pub relu: bool,
}

impl Input {
    /// The tensor as it is.
    pub fn plain(t: TensorId) -> Self {
        Input { t, norm: None, relu: false }
    }
}

/// A batch norm with the tensor that it normalises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normed {
    /// The batch norm.
    pub norm: NormId,
    /// Its input.
    pub x: TensorId,
}

/// A gradient that an op reads. Without `norm`: `t`. With: the gradient of `norm.x`, computed while reading from `t`, the
/// finished gradient of the norm's output. With the statistics of a batch, whose own gradient is a part of it,
/// [`Finish::reduce`] has taken the sums of `t`; after [`Backend::norm_running`] it is `gamma / sqrt(variance + eps) * t`, and
/// no sums are needed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grad {
    /// The stored gradient.
    pub t: TensorId,
    /// Batch norm to go back through.
    pub norm: Option<Normed>,
}

impl Grad {
    /// The tensor as it is.
    pub fn plain(t: TensorId) -> Self {
        Grad { t, norm: None }
    }
}

/// Where a gradient passes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mask {
    /// Everywhere.
    #[default]
    All,
    /// Where this value is positive: `relu` of an [`Input`] or a stored tensor behind a ReLU.
    Positive(Input),
}

/// What the last writer of a gradient does to it when it is complete, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Finish {
    /// Zero where the mask does not pass.
    pub mask: Mask,
    /// For each batch norm whose output has this gradient: sum(g) and sum(g * xhat) a channel over images and pixels, xhat
    /// by the statistics that the norm has. They overwrite the gradients of beta and gamma, and a later [`Grad`] through
    /// the norm uses them.
    pub reduce: [Option<Normed>; 2],
}

/// Where a gradient is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradDst {
    /// Tensor written.
    pub t: TensorId,
    /// Write rule.
    pub write: Write,
    /// What completes it; `Finish::default()`: nothing (a later writer does).
    pub finish: Finish,
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
    /// Weight decay wd, on every stored parameter of a [`ParamSpec::decay`]; wd is 0 for the others.
    pub weight_decay: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
}

/// Bytes held, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Parameter values.
    pub values: u64,
    /// Indices, in every order kept, and who has no weight decay.
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

/// How numbers are rounded that a backend stores in tensors, or multiplies in convolutions. Sums, statistics and parameters
/// have the precision of [`Real`] everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// Distance from 1 to the next number.
    pub eps: f64,
    /// Smallest positive number.
    pub tiny: f64,
}

/// A device that can run one network. What an op writes overlaps nothing else that it reads or writes.
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
    /// How it rounds.
    fn rounding(&self) -> Rounding {
        Rounding { eps: Self::Real::EPS, tiny: 0.0 }
    }

    /// Writes `n*C*H*W` numbers in N,C,H,W order.
    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[Self::Real]);
    /// Reads `n*C*H*W` numbers in N,C,H,W order.
    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<Self::Real>;
    /// Reads a flat store.
    fn read_store(&self, store: Store) -> Vec<Self::Real>;
    /// Replaces a flat store.
    fn write_store(&mut self, store: Store, data: &[Self::Real]);

    /// Coefficients of the norm from the batch statistics (biased variance) of `x`; updates the running mean and (unbiased)
    /// variance. The host guarantees `n*H*W >= 2`.
    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize);
    /// Coefficients of the norm from the running statistics, changing none. Until the next [`Backend::norm_stats`] the norm
    /// is a fixed affine map, forward and backward ([`Grad`]).
    fn norm_running(&mut self, norm: NormId);

    /// `y = conv(x, weight) + bias`, overwriting y; with `stats`, [`Backend::norm_stats`] of y.
    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize);
    /// Overwrites the weight's gradient (kept positions only) and the bias' gradient in the gradient store, and
    /// `dx = or += conv_transposed(dy, weight)`. dx may not overlap anything read, but for what its finish reads.
    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize);

    /// The data gradient of [`Backend::conv_backward`] alone: no parameter's gradient is written.
    fn conv_data_backward(&mut self, conv: ConvId, dy: Grad, dx: GradDst, n: usize);

    /// `y = relu?(a + b?)`; `a` and `b` may read one tensor.
    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize);
    /// `dx = or += dy`.
    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize);

    /// Mean over H,W: x [C,H,W] -> y [C,1,1].
    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize);
    /// `dx = or += dy / (H*W)`.
    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize);
    /// Maximum over windows: x [C,H,W] -> y [C,P,Q]; NaN wins.
    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize);
    /// `dx = or += dy` at each window's maximum, the first one in row order among equals.
    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize);

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

    /// What [`Store::Grads`] is multiplied by against the gradient of the mean loss: the loss scale of the step that it is
    /// of, on a device that scales its losses. Waits for that step.
    fn gradient_scale(&self) -> f64 {
        1.0
    }

    /// Waits until all of the above has finished, on a device that computes while the host goes on. Whatever is read waits
    /// by itself: this is for those who look at the clock.
    fn wait(&self) {}
}
