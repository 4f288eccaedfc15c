//! What a run leaves behind: the run directory, `metrics.jsonl`, `summary.json` and the plan.
//! The formats are versioned and described in `docs/formats.md` and `docs/plan.md`.

pub mod files;
mod gradients;
mod lines;
mod machine;
mod metrics;
mod npz;
mod plan_file;
mod run_dir;
mod summary;
mod version;

pub use gradients::{GRADIENTS_SCHEMA, GradientRecord};
pub use lines::{Line, Lines, read_lines};
pub use machine::Machine;
pub use metrics::{METRICS_SCHEMA, MetricsWriter, Record, read_metrics};
pub use npz::{NpzArray, Numbers, write_npz};
pub use plan_file::{read_gpu_plan, read_plan, write_gpu_plan, write_plan};
pub use run_dir::RunDir;
pub use summary::{DataInfo, EpochScore, MaskInfo, Results, SUMMARY_SCHEMA, Summary};
pub use version::Engine;

#[cfg(test)]
pub(crate) use summary::sample;

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

impl Score {
    /// From sums over `n` images; zeros where there are none.
    pub fn from_sums(loss_sum: f64, correct: u64, n: u64) -> Self {
        let images = n.max(1) as f64;
        Score { loss: loss_sum / images, accuracy: correct as f64 / images, n }
    }
}
