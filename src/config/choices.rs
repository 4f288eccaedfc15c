//! The kinds of values that keys of the configuration have.

use crate::sparsity::Rest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// `lr * gamma^(milestones passed)`, changed at the step nearest to the milestone.
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

/// When a warm-up raises the rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WarmupBy {
    /// At every step.
    #[default]
    Step,
    /// At the start of each epoch, as the released ImageNet code: epoch e of W has (e + 1) / (W + 1) of it.
    Epoch,
}

/// Weights whose scores SNIP and GraSP take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreInit {
    /// Those that will be trained.
    Own,
    /// Others, drawn Xavier-normal for the scores alone, as the released CIFAR code does.
    Xavier,
}

/// How GraSP's images are halved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Halves {
    /// The lower half of the classes, and the upper one.
    Class,
    /// Every other image of each class.
    Alternate,
}

/// Densities by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// How the layers that are not named share the rest.
    pub rest: Rest,
    /// Density of each layer that a pattern names ([`crate::sparsity::Ratio::Custom`]).
    pub layers: BTreeMap<String, f64>,
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
