//! Layer-wise densities and random masks. No device here, no layers: shapes in, kept positions out.

use crate::error::Result;
use std::sync::Arc;

/// A maskable tensor: every convolution weight (the first and the 1x1 shortcuts too) and the last linear weight
/// (paper code; biases and batch norm are never masked).
#[derive(Clone, Debug, PartialEq)]
pub struct Maskable {
    /// Parameter name, such as "segment1.block0.conv1.weight".
    pub name: String,
    /// K,C,R,S or out,in.
    pub shape: Vec<usize>,
}

/// Kept positions of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// Parameter name.
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// What the method's formula wants, kept/size before rounding.
    pub density: f64,
    /// Kept positions of the flattened tensor, strictly ascending; `None`: the tensor is dense and stores no index.
    pub kept: Option<Arc<[u32]>>,
}

/// How layers share the density.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// No mask at all.
    Dense,
    /// The same density in every layer.
    Uniform,
    /// Erdos-Renyi-Kernel, power scale 1 (paper section 3.1; Evci et al. 2020).
    Erk,
}

/// How positions are drawn given layer densities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Draw {
    /// Exact counts: the budget round(density x N), by largest remainder over the layers.
    Exact,
    /// Each position independently with its layer's density, as the paper's code draws.
    Bernoulli,
}

/// A density in (0, 1] kept as the decimal the user wrote, so that budgets are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density {
    /// density = numerator / 10^scale.
    numerator: u128,
    scale: u32,
}

impl Density {
    /// From a density as written; errors name what is allowed.
    pub fn from_density(_written: f64) -> Result<Self> {
        todo!()
    }
    /// From a sparsity as written: density = 1 - sparsity, exactly.
    pub fn from_sparsity(_written: f64) -> Result<Self> {
        todo!()
    }
    /// Nearest f64.
    pub fn value(&self) -> f64 {
        self.numerator as f64 / 10f64.powi(self.scale as i32)
    }
    /// round-half-up(density x n), exactly.
    pub fn budget(&self, _n: u64) -> u64 {
        todo!()
    }
}

/// Draws the masks of all maskable tensors, in their order.
pub fn draw_masks(
    _layers: &[Maskable],
    _method: Method,
    _density: Density,
    _draw: Draw,
    _seed: u64,
) -> Result<Vec<Mask>> {
    todo!()
}
