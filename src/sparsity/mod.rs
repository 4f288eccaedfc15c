//! Layer-wise densities and random masks. No device here, no layers: shapes in, kept positions out.
//!
//! [`Density`] (budgets), [`Ratio`] -> [`layer_densities`] and [`layer_counts`] (how layers share it) -> [`layer_shares`] (in
//! single weights or in blocks) -> [`draw_masks`] and [`draw_patterns`] (positions). Beside that path: [`top_scores`] ->
//! [`scored_masks`] (a score of each weight decides what each layer keeps), and [`given_masks`] (from a file).

mod advice;
mod blocks;
mod budget;
mod custom;
mod densities;
mod draw;
mod given;
mod pattern;
mod ratio;
mod scores;

pub use crate::shape::BlockShape;
pub use budget::Density;
pub use densities::{layer_counts, layer_densities};
pub use draw::{draw_masks, draw_patterns};
pub use given::{GivenMask, given_masks};
pub use pattern::{Fallback, Form, LayerShare, Pattern, layer_shares};
pub use ratio::{Method, Ratio, Rest};
pub use scores::{Positions, scored_masks, top_scores};

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A maskable tensor: every convolution weight (the first and the 1x1 shortcuts too) and the last linear weight
/// (paper code; biases and batch norm are never masked).
#[derive(Clone, Debug, PartialEq)]
pub struct Maskable {
    /// Parameter name, such as "segment1.block0.conv1.weight".
    pub name: String,
    /// K,C,R,S or out,in.
    pub shape: Vec<usize>,
    /// Where in the network its layer is.
    pub role: Role,
}

/// Whether a layer is one of those that some methods treat by themselves, by the network's structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It reads the images, with no other convolution or linear layer between.
    First,
    /// Neither.
    #[default]
    Inner,
    /// Its output is the logits, with no other such layer between: one of these, where a layer is both.
    Last,
}

impl Role {
    /// What a layer of this role does, for messages.
    fn meaning(self) -> &'static str {
        match self {
            Role::First => "reads the images and leads to another layer",
            Role::Inner => "lies between first and last",
            Role::Last => "gives the logits",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::First => "first",
            Role::Inner => "inner",
            Role::Last => "last",
        })
    }
}

impl Maskable {
    /// A layer between first and last.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Maskable { name: name.into(), shape: shape.into(), role: Role::Inner }
    }

    /// Weights of the dense tensor.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Kept positions of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// Parameter name.
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// What the method's formula wants, kept/size before rounding.
    pub density: f64,
    /// Kept positions of the flattened tensor, strictly ascending; `None`: all of them are kept, the tensor is dense and
    /// stores no index. A mask that keeps every position is always `None`.
    pub kept: Option<Arc<[u32]>>,
    /// Blocks that the kept positions consist of, where the pattern of the masks has blocks and they do: a statement about
    /// `kept` for those who want to use it, see [`Pattern::block_of`].
    pub block: Option<BlockShape>,
}

impl Mask {
    /// Weights of the dense tensor.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Kept weights.
    pub fn nnz(&self) -> usize {
        self.kept.as_ref().map_or(self.size(), |kept| kept.len())
    }
}

/// SHA-256 of a mask as 64 hex digits: over the bytes "sparse-engine mask 1", the name's length and bytes, the number of
/// dimensions and each of them, then the number of kept positions and each position, or 2^64 - 1 alone for a dense tensor.
/// All numbers are 64-bit little-endian. The formula's density is left out: masks that keep the same positions are equal.
pub fn mask_hash(mask: &Mask) -> String {
    let mut bytes = b"sparse-engine mask 1".to_vec();
    let number = |bytes: &mut Vec<u8>, v: usize| bytes.extend_from_slice(&(v as u64).to_le_bytes());
    number(&mut bytes, mask.name.len());
    bytes.extend_from_slice(mask.name.as_bytes());
    number(&mut bytes, mask.shape.len());
    mask.shape.iter().for_each(|&side| number(&mut bytes, side));
    match &mask.kept {
        None => bytes.extend_from_slice(&u64::MAX.to_le_bytes()),
        Some(kept) => {
            number(&mut bytes, kept.len());
            kept.iter().for_each(|&position| number(&mut bytes, position as usize));
        }
    }
    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How positions are drawn given layer densities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Draw {
    /// Exact counts: the budget round(density x N), by largest remainder over the layers.
    Exact,
    /// Each position independently with its layer's density, as the paper's code draws.
    Bernoulli,
}

impl Draw {
    /// Every draw with its name in configurations.
    pub const ALL: [(&'static str, Draw); 2] = [("exact", Draw::Exact), ("bernoulli", Draw::Bernoulli)];
}

impl FromStr for Draw {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        by_name("mask draw", &Draw::ALL, name)
    }
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(&Draw::ALL, *self))
    }
}

fn by_name<T: Copy>(what: &str, all: &[(&str, T)], name: &str) -> Result<T> {
    all.iter().find(|(known, _)| *known == name).map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|&(known, _)| known).collect();
        Error::Usage(format!("unknown {what} {name:?}: choose one of {}", names.join(", ")))
    })
}

fn name_of<T: PartialEq>(all: &[(&'static str, T)], value: T) -> &'static str {
    all.iter().find(|(_, known)| *known == value).map_or("", |&(name, _)| name)
}
