//! What a run leaves behind: `metrics.jsonl` and `summary.json`.

use serde::{Deserialize, Serialize};

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Training images.
    Train,
    /// Training images held back.
    Val,
    /// Test images.
    Test,
}

/// Loss and accuracy over some images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean cross-entropy an image, natural logarithm.
    pub loss: f64,
    /// Correct / n, a fraction.
    pub accuracy: f64,
    /// Images.
    pub n: u64,
}

/// The end of a run. Its fields follow.
#[derive(Clone, Debug)]
pub struct Summary {}
