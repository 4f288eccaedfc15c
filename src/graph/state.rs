//! Everything of a network that training changes, by name: what a checkpoint holds.

use crate::error::{Error, Result};
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
