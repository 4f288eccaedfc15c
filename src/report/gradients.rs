//! `gradients.jsonl`: the effective gradient norm while a run goes on. Documented in `docs/formats.md`.

use super::lines::Line;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the record below.
pub const GRADIENTS_SCHEMA: u32 = 1;

/// One line: norms of the gradient of a training batch's mean loss, before weight decay and momentum, over the kept weights of
/// the maskable tensors (paper section 4; Tessera et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradientRecord {
    /// [`GRADIENTS_SCHEMA`].
    pub schema: u32,
    /// The step whose gradient it is, counted from 1.
    pub step: u64,
    /// Its epoch, counted from 1.
    pub epoch: u64,
    /// Mean over the layers of their L2 norms.
    pub mean: f64,
    /// L2 norm over all layers.
    pub global: f64,
    /// L2 norm of each maskable tensor.
    pub layers: BTreeMap<String, f64>,
}

impl Line for GradientRecord {
    const SCHEMA: u32 = GRADIENTS_SCHEMA;
    const WHAT: &'static str = "the gradient norms";

    fn schema(&self) -> u32 {
        self.schema
    }
    fn step(&self) -> u64 {
        self.step
    }
    fn is_finite(&self) -> bool {
        [self.mean, self.global].iter().chain(self.layers.values()).all(|v| v.is_finite())
    }
}
