//! Checkpoints: all that training changes, and all that going on needs, in one safetensors file. Documented in
//! `docs/formats.md`.

mod file;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::report::{DataInfo, Engine, Score};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A parameter as stored: named, with its kept positions, values and momentum.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamState {
    /// Name, such as "segment1.block0.conv1.weight".
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// Kept positions, strictly ascending; `None`: all.
    pub kept: Option<Arc<[u32]>>,
    /// Stored values.
    pub values: Vec<f32>,
    /// Momentum of the stored values.
    pub momentum: Vec<f32>,
}

/// Running statistics of one batch norm.
#[derive(Clone, Debug, PartialEq)]
pub struct NormState {
    /// Name, such as "segment1.block0.bn1".
    pub name: String,
    /// Running mean a channel.
    pub mean: Vec<f32>,
    /// Running (unbiased) variance a channel.
    pub var: Vec<f32>,
}

/// The state of a network: all that training changes.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct NetState {
    /// Parameters in store order.
    pub params: Vec<ParamState>,
    /// Batch norms in graph order.
    pub norms: Vec<NormState>,
}

/// What was trained, on what, and how far.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// The engine that wrote it.
    pub engine: Engine,
    /// The resolved configuration, normalisation included.
    pub config: Config,
    /// The data set: checksum, image shape, classes, images of each split.
    pub data: DataInfo,
    /// How far.
    pub progress: Progress,
}

/// Where training goes on. Schedule, order of the images and augmentation are functions of step, epoch and batch. No times
/// are in it (they are in the metrics), so that a run that was resumed ends in the same file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done in all.
    pub step: u64,
    /// Epochs finished: the index, counted from 0, of the epoch that goes on.
    pub epoch: u64,
    /// Batches of that epoch done.
    pub batch: u64,
    /// Sums over these batches.
    pub running: Running,
    /// The best epoch so far, by the configuration's `selection`.
    pub best: Option<Best>,
}

/// Sums over the batches of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// Sum of the losses of the images.
    pub loss_sum: f64,
    /// Images classified correctly.
    pub correct: u64,
    /// Images.
    pub n: u64,
}

impl Running {
    /// Adds a batch of `n` images.
    pub fn add(&mut self, loss_sum: f64, correct: u64, n: u64) {
        self.loss_sum += loss_sum;
        self.correct += correct;
        self.n += n;
    }

    /// Means over the images so far; zeros where there are none.
    pub fn score(&self) -> Score {
        Score::from_sums(self.loss_sum, self.correct, self.n)
    }
}

/// The best epoch so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Epoch, counted from 1.
    pub epoch: u64,
    /// The score it was chosen by.
    pub score: Score,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The network.
    pub net: NetState,
    /// Everything else.
    pub meta: Meta,
}

impl NetState {
    /// Names the first difference of `other`, a checkpoint's state, in names, shapes or kept positions.
    ///
    /// # Errors
    /// The other state belongs to another network or other masks.
    pub fn check_same_layout(&self, other: &NetState) -> Result<()> {
        let fail = |what: String| Err(Error::Failed(format!("the checkpoint is of another network: {what}")));
        for (i, (a, b)) in self.params.iter().zip(&other.params).enumerate() {
            if a.name != b.name {
                return fail(format!("parameter {i}: wanted {:?}, got {:?}", a.name, b.name));
            }
            if a.shape != b.shape {
                return fail(format!("{}: wanted shape {:?}, got {:?}", a.name, a.shape, b.shape));
            }
            if let Some(what) = mask_difference(a.kept.as_deref(), b.kept.as_deref()) {
                return fail(format!("{}: {what}; masks follow from method, density and seed.mask", a.name));
            }
            for (what, want, got) in
                [("values", a.values.len(), b.values.len()), ("momenta", a.momentum.len(), b.momentum.len())]
            {
                if want != got {
                    return fail(format!("{}: wanted {want} {what}, got {got}", a.name));
                }
            }
        }
        if self.params.len() != other.params.len() {
            return fail(format!("wanted {} parameters, got {}", self.params.len(), other.params.len()));
        }
        for (i, (a, b)) in self.norms.iter().zip(&other.norms).enumerate() {
            if a.name != b.name {
                return fail(format!("batch norm {i}: wanted {:?}, got {:?}", a.name, b.name));
            }
            for (want, got) in [(a.mean.len(), b.mean.len()), (a.var.len(), b.var.len())] {
                if want != got {
                    return fail(format!("{}: wanted {want} channels, got {got}", a.name));
                }
            }
        }
        if self.norms.len() != other.norms.len() {
            return fail(format!("wanted {} batch norms, got {}", self.norms.len(), other.norms.len()));
        }
        Ok(())
    }
}

fn mask_difference(want: Option<&[u32]>, got: Option<&[u32]>) -> Option<String> {
    match (want, got) {
        (None, None) => None,
        (Some(_), None) => Some("wanted a mask, got a dense tensor".into()),
        (None, Some(_)) => Some("wanted a dense tensor, got a mask".into()),
        (Some(a), Some(b)) if a.len() != b.len() => Some(format!("wanted {} kept weights, got {}", a.len(), b.len())),
        (Some(a), Some(b)) => {
            let (want, got) = a.iter().zip(b).find(|(a, b)| a != b)?;
            Some(format!("wanted position {want} kept, got {got}"))
        }
    }
}
