//! Checkpoints: all that training changes, and all that going on needs, in one safetensors file. Documented in
//! `docs/formats.md`.

mod file;
mod given;

use crate::config::Config;
pub use crate::graph::{NetState, NormState, ParamState};
use crate::report::{DataInfo, Engine, Score};
pub use given::{GivenWeights, read_masks, read_weights, write_masks, write_weights};
use serde::{Deserialize, Serialize};

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
    /// The loss scale of a run in fp16, or of any with a dynamic one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// Where the loss scale of a run stands, whose gradients may overflow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Factor of the next step's loss.
    pub scale: f32,
    /// Steps in a row, the last ones, without an overflow; of a static scale 0.
    pub good: u32,
    /// Steps of the run whose update was left out, because a gradient overflowed.
    #[serde(default)]
    pub held: u64,
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
