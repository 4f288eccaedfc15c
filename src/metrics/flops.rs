//! Floating-point operations: 2 x multiply-accumulates, of convolutions and linear layers (paper section 6).

/// A static mask trains at three forward passes an image: the forward one, the data gradient, the weight gradient.
pub const TRAINING_PASSES: u64 = 3;

/// A maskable layer, of which FLOPs follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerWork {
    /// Multiply-accumulates of the dense layer for one image: weights x output pixels.
    pub macs: u64,
    /// Weights of the dense layer.
    pub size: u64,
    /// What the method's formula wants, kept / size before rounding.
    pub density: f64,
    /// Weights kept.
    pub kept: u64,
}

/// FLOPs of one image, forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct LayerFlops {
    /// Of the dense layer.
    pub dense: u64,
    /// By the formula's density: dense x density. The published tables have these.
    pub formula: f64,
    /// Of the weights that are kept.
    pub realised: u64,
}

/// FLOPs of one image, forward, of a network. Training costs [`TRAINING_PASSES`] times as much.
///
/// ```
/// use sparse_engine::metrics::{Flops, LayerWork, TRAINING_PASSES};
///
/// // A 3x3 convolution of 16 to 32 channels on 8x8 output pixels at a density of 1/3.
/// let flops = Flops::of([LayerWork { macs: 4608 * 64, size: 4608, density: 1.0 / 3.0, kept: 1536 }]);
/// assert_eq!((flops.total.dense, flops.total.realised), (2 * 4608 * 64, 2 * 1536 * 64));
/// assert_eq!(flops.training().realised, TRAINING_PASSES * flops.total.realised);
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Flops {
    /// Of each layer, in the order given.
    pub layers: Vec<LayerFlops>,
    /// Of all of them.
    pub total: LayerFlops,
}

impl Flops {
    /// Of these layers.
    pub fn of(layers: impl IntoIterator<Item = LayerWork>) -> Self {
        let layers: Vec<LayerFlops> = layers.into_iter().map(LayerFlops::of).collect();
        let total = layers.iter().fold(LayerFlops::default(), |sum, l| LayerFlops {
            dense: sum.dense + l.dense,
            formula: sum.formula + l.formula,
            realised: sum.realised + l.realised,
        });
        Flops { layers, total }
    }

    /// Of a training step, an image.
    pub fn training(&self) -> LayerFlops {
        self.total.training()
    }
}

/// FLOPs of one image as the files of a network name them.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FlopsKeys {
    /// Forward, dense.
    pub flops_dense: u64,
    /// Forward, of the kept weights.
    pub flops_sparse: u64,
    /// Forward, by the formula's densities.
    pub flops_formula: f64,
    /// Of a training step, dense.
    pub train_flops_dense: u64,
    /// Of a training step, of the kept weights.
    pub train_flops_sparse: u64,
    /// Of a training step, by the formula's densities.
    pub train_flops_formula: f64,
}

impl From<&Flops> for FlopsKeys {
    fn from(flops: &Flops) -> Self {
        let (forward, training) = (flops.total, flops.training());
        FlopsKeys {
            flops_dense: forward.dense,
            flops_sparse: forward.realised,
            flops_formula: forward.formula,
            train_flops_dense: training.dense,
            train_flops_sparse: training.realised,
            train_flops_formula: training.formula,
        }
    }
}

impl LayerFlops {
    fn of(work: LayerWork) -> Self {
        let dense = 2 * work.macs;
        // Exact, as macs = size x pixels; a layer without weights does nothing.
        let realised = dense / work.size.max(1) * work.kept;
        LayerFlops { dense, formula: dense as f64 * work.density, realised }
    }

    /// Of a training step, an image.
    pub fn training(&self) -> Self {
        let times = TRAINING_PASSES;
        LayerFlops { dense: times * self.dense, formula: times as f64 * self.formula, realised: times * self.realised }
    }
}
