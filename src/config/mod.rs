//! The configuration of a run: TOML, unknown keys refused, all faults reported at once.

use crate::data::{Augment, Preprocess};
use crate::sparsity::{Draw, Method};
use serde::{Deserialize, Serialize};

/// Learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// `lr * gamma^(milestones passed)`, changed at the start of an epoch.
    MultiStep {
        /// Epochs, counted for `epochs` of the file it stands in; scaled with `--epochs`.
        milestones: Vec<f64>,
        /// Factor at each milestone.
        gamma: f64,
    },
    /// Half a cosine from lr to zero over the run, changed every step.
    Cosine,
}

/// What `best` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Nothing is selected: the last epoch is the result.
    Last,
    /// The epoch of best validation accuracy (needs a validation split).
    BestVal,
    /// The epoch of best *test* accuracy: by name only, and marked in every table.
    BestTest,
}

/// Seeds after derivation: three separate streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeds {
    /// Initial values.
    pub init: u64,
    /// Masks.
    pub mask: u64,
    /// Data order and augmentation.
    pub data: u64,
}

/// A fully resolved run: every key explicit. This is what `config.toml` in a run directory holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// "resnetN" with N = 6D+2, for small images.
    pub model: String,
    /// Width of the first segment (paper's ResNet-A-B: B); 16 is the standard network.
    pub width: usize,
    /// "builtin:fashion-mnist" or a path.
    pub data: String,
    /// Training images held back for validation, from the end of the training split.
    pub validation: usize,
    /// What `best` selects on.
    pub selection: Selection,
    /// Layer-wise ratio.
    pub method: Method,
    /// Density as written (exactly one of density and sparsity in a file; resolved configs keep the one written).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// Sparsity as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// Exact or Bernoulli.
    pub mask_draw: Draw,
    /// Epochs.
    pub epochs: u64,
    /// Images a step.
    pub batch_size: usize,
    /// Base learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
    /// Weight decay on every parameter.
    pub weight_decay: f64,
    /// Label smoothing in [0, 1).
    pub label_smoothing: f64,
    /// Epochs of linear warm-up, per step.
    pub warmup_epochs: f64,
    /// Schedule after warm-up.
    pub schedule: Schedule,
    /// Training augmentation.
    pub augment: Augment,
    /// Normalisation; resolved from published constants or from the training split when absent in the file.
    pub preprocess: Option<Preprocess>,
    /// Seeds.
    pub seed: Seeds,
}
