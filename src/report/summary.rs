//! `summary.json`: what a run was and what came of it. Documented in `docs/formats.md`.

use super::{Engine, Machine, Score, files};
use crate::backend::Bytes;
use crate::config::{Config, Selection};
use crate::data::ImageShape;
use crate::error::{Error, Result};
use crate::metrics::FlopsKeys;
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
    /// FLOPs (2 x MAC) of one image.
    #[serde(flatten)]
    pub flops: FlopsKeys,
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
    /// Steps whose update was left out, because a gradient overflowed: in fp16, and with a dynamic loss scale.
    #[serde(default)]
    pub held_steps: u64,
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
    /// Blocks they consist of, such as "16x16"; `None`: single weights, or a dense tensor.
    #[serde(default)]
    pub block: Option<String>,
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

/// A summary with a different number in each place.
#[cfg(test)]
pub(crate) fn sample() -> Summary {
    let score = |epoch, accuracy| EpochScore { epoch, score: Score { loss: 1.0 / 3.0, accuracy, n: 2000 } };
    let mut config = crate::config::resolve(None, None, &Default::default()).unwrap().config;
    config.preprocess = Some(crate::data::Preprocess { mean: vec![0.1 + 0.2], std: vec![0.3] });
    let bytes = |n: u64| Bytes {
        values: n,
        indices: 2 * n,
        gradients: 3 * n,
        momentum: 4 * n,
        operand_copies: 5 * n,
        activations: 6 * n,
    };
    Summary {
        schema: SUMMARY_SCHEMA,
        engine: Engine::this(),
        command_line: vec!["sparse-engine".into(), "train".into()],
        run: "runs/x".into(),
        config,
        data: DataInfo {
            source: "builtin:fashion-mnist".into(),
            kind: "npz".into(),
            checksum: "ab".repeat(32),
            image: ImageShape { c: 1, h: 28, w: 28 },
            classes: 10,
            train: 8000,
            val: 0,
            test: 2000,
        },
        masks: vec![MaskInfo {
            name: "conv.weight".into(),
            shape: vec![16, 1, 3, 3],
            nnz: 144,
            block: None,
            hash: "cd".repeat(32),
        }],
        machine: Machine::this(),
        device: "cpu avx2, 2 threads".into(),
        threads: 2,
        params_dense: 272_186,
        params_sparse: 28_639,
        maskable: 270_608,
        nnz: 27_061,
        density_target: 0.1,
        density: 27_061.0 / 270_608.0,
        flops: FlopsKeys {
            flops_dense: 62_000_000,
            flops_sparse: 10_700_000,
            flops_formula: 10_700_000.5,
            train_flops_dense: 186_000_000,
            train_flops_sparse: 32_100_000,
            train_flops_formula: 32_100_001.5,
        },
        bytes_dense: bytes(1 << 20),
        bytes_sparse: bytes(1 << 10),
        epochs: 20,
        steps: 1260,
        train_time_s: 102.5,
        total_time_s: 110.25,
        images_per_s: 1560.0,
        held_steps: 0,
        results: Results { test_last: score(20, 0.869), test_at_best_val: None, test_at_best_test: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_other_schemas_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        let mut s = sample();
        s.save(&path).unwrap();
        assert_eq!(Summary::load(&path).unwrap(), s);
        s.results.test_at_best_val = Some(EpochScore { epoch: 17, ..s.results.test_last });
        s.save(&path).unwrap();
        assert_eq!(Summary::load(&path).unwrap(), s);
        let text = std::fs::read_to_string(&path).unwrap().replace("\"schema\": 1", "\"schema\": 2");
        std::fs::write(&path, text).unwrap();
        let error = Summary::load(&path).unwrap_err().to_string();
        assert!(error.ends_with("summary.json: schema 2, this engine reads 1"), "{error}");
        std::fs::write(&path, "{}").unwrap();
        assert!(Summary::load(&path).is_err());
    }

    #[test]
    fn every_key_is_documented_and_no_result_is_there_unasked() {
        let value = serde_json::to_value(sample()).unwrap();
        let page = include_str!("../../docs/formats.md");
        let mut keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        for part in ["engine", "data", "machine", "bytes_sparse"] {
            keys.extend(value[part].as_object().unwrap().keys());
        }
        keys.extend(value["masks"][0].as_object().unwrap().keys());
        assert!(keys.len() > 40, "{keys:?}");
        for key in keys {
            assert!(page.contains(&format!("`{key}`")), "{key} is not in docs/formats.md");
        }
        let results: Vec<_> = value["results"].as_object().unwrap().keys().collect();
        assert_eq!(results, ["test_last"]);
        let keys: Vec<_> = value["results"]["test_last"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["epoch", "loss", "accuracy", "n"]);
        assert_eq!(value["bytes_sparse"]["total"], 21 << 10);
        assert_eq!(value["config"]["seed"]["mask"], 0);
    }

    #[test]
    fn the_selection_decides_which_result_counts() {
        let mut s = sample();
        s.results.test_at_best_val = Some(EpochScore { epoch: 17, ..s.results.test_last });
        s.results.test_at_best_test = Some(EpochScore { epoch: 18, ..s.results.test_last });
        for (selection, epoch) in [(Selection::Last, 20), (Selection::BestVal, 17), (Selection::BestTest, 18)] {
            s.config.selection = selection;
            assert_eq!(s.selected().epoch, epoch);
        }
    }
}
