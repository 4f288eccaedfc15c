//! `summary.json`: what a run was and what came of it. Documented in `docs/formats.md`.

use super::{Engine, Machine, Score, files};
use crate::backend::Bytes;
use crate::config::{Config, Selection};
use crate::data::ImageShape;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Version of the summary; it changes when a key changes its meaning or goes.
pub const SUMMARY_SCHEMA: u32 = 1;

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`SUMMARY_SCHEMA`].
    pub schema: u32,
    /// What made it.
    pub engine: Engine,
    /// The command line, of the last leg if the run was resumed.
    pub command_line: Vec<String>,
    /// The run directory.
    pub run: PathBuf,
    /// Every key of the configuration, seeds and normalisation included.
    pub config: Config,
    /// The data set.
    pub data: DataInfo,
    /// Each mask.
    pub masks: Vec<MaskInfo>,
    /// Machine of the last leg.
    pub machine: Machine,
    /// Device and instruction set, such as "cpu avx2, 2 threads".
    pub device: String,
    /// Worker threads.
    pub threads: usize,
    /// Parameters of the dense network.
    pub params_dense: u64,
    /// Parameters stored.
    pub params_sparse: u64,
    /// Weights that can be pruned.
    pub maskable: u64,
    /// Of these, kept.
    pub nnz: u64,
    /// Density asked for.
    pub density_target: f64,
    /// Density realised, nnz / maskable.
    pub density: f64,
    /// FLOPs (2 x MAC) of one image, forward, of the dense network.
    pub flops_dense: u64,
    /// FLOPs (2 x MAC) of one image, forward, of the kept weights.
    pub flops_sparse: u64,
    /// Bytes that the dense network would hold.
    #[serde(with = "bytes_json")]
    pub bytes_dense: Bytes,
    /// Bytes held.
    #[serde(with = "bytes_json")]
    pub bytes_sparse: Bytes,
    /// Epochs done.
    pub epochs: u64,
    /// Steps done.
    pub steps: u64,
    /// Seconds in training steps, all legs; evaluation, loading and checkpoints left out.
    pub train_time_s: f64,
    /// Seconds from start to end, all legs.
    pub total_time_s: f64,
    /// Training images a second, over `train_time_s`.
    pub images_per_s: f64,
    /// What came of it.
    pub results: Results,
}

/// The data set of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataInfo {
    /// Path, or the name of the built-in images.
    pub source: String,
    /// Recognised kind, such as "idx".
    pub kind: String,
    /// SHA-256 over images and labels, hex.
    pub checksum: String,
    /// Channels, rows, columns.
    pub image: ImageShape,
    /// Number of classes.
    pub classes: usize,
    /// Training images, validation split taken off.
    pub train: usize,
    /// Validation images.
    pub val: usize,
    /// Test images.
    pub test: usize,
}

/// One mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskInfo {
    /// Parameter.
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// Weights kept.
    pub nnz: usize,
    /// Hash of the mask, hex.
    pub hash: String,
}

/// Loss and accuracy on the test images at the end of some epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochScore {
    /// Epoch, counted from 1.
    pub epoch: u64,
    /// The score.
    #[serde(flatten)]
    pub score: Score,
}

/// Test scores, each named by how its epoch was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// After the last epoch: nothing was selected.
    pub test_last: EpochScore,
    /// At the epoch of best validation accuracy; only where there is a validation split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_at_best_val: Option<EpochScore>,
    /// At the epoch of best *test* accuracy: selected on the data it is measured on; only with selection "best-test".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_at_best_test: Option<EpochScore>,
}

impl Summary {
    /// The score that the configuration's `selection` names.
    pub fn selected(&self) -> EpochScore {
        let chosen = match self.config.selection {
            Selection::Last => None,
            Selection::BestVal => self.results.test_at_best_val,
            Selection::BestTest => self.results.test_at_best_test,
        };
        chosen.unwrap_or(self.results.test_last)
    }

    /// Writes it, replacing an older one only when it is whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text =
            serde_json::to_string_pretty(self).map_err(|e| Error::Failed(format!("{}: {e}", path.display())))?;
        text.push('\n');
        files::replace(path, "cannot write the summary", |w| w.write_all(text.as_bytes()))
    }

    /// Reads one.
    pub fn load(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot read the summary"))?;
        let bad = |e: serde_json::Error| Error::data(path, e.to_string());
        let Version { schema } = serde_json::from_str(&text).map_err(bad)?;
        if schema != SUMMARY_SCHEMA {
            return Err(Error::data(path, format!("schema {schema}, this engine reads {SUMMARY_SCHEMA}")));
        }
        serde_json::from_str(&text).map_err(bad)
    }
}

/// [`Bytes`] as an object with its sum.
mod bytes_json {
    use crate::backend::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Parts {
        values: u64,
        indices: u64,
        gradients: u64,
        momentum: u64,
        operand_copies: u64,
        activations: u64,
        total: u64,
    }

    pub(super) fn serialize<S: Serializer>(b: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        let Bytes { values, indices, gradients, momentum, operand_copies, activations } = *b;
        Parts { values, indices, gradients, momentum, operand_copies, activations, total: b.total() }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let Parts { values, indices, gradients, momentum, operand_copies, activations, .. } = Parts::deserialize(from)?;
        Ok(Bytes { values, indices, gradients, momentum, operand_copies, activations })
    }
}
