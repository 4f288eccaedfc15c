//! What a layer keeps: single weights or whole blocks; and which layers can keep blocks.
//!
//! A layer in blocks keeps the whole number of blocks nearest to the formula's share, at least one in each block row
//! (its R output channels; candidates: all input channels at all taps) and in each block column (its C input channels).
//! A layer stays unstructured where its channels do not divide by the block, or where whole blocks would move its
//! density by more than a tenth. Unstructured layers share what whole blocks leave of the budget, in proportion to the
//! formula's shares and by largest remainder, so the budget is met exactly. No layer's density moves by more than a
//! tenth for that either (but by one weight: they keep whole ones). While it would, or while no layer is unstructured
//! and the blocks miss the budget, a layer in blocks is made unstructured too: the smallest one with which the budget
//! is met, or else the one moved furthest by its own blocks in the direction of the miss. With none left in blocks the
//! counts are those of unstructured masks, so shares exist wherever unstructured ones do. A layer whose density the ratio
//! gives by itself ([`Ratio`]: pinned) keeps blocks by the same rule, but takes no part in the sharing: unstructured, it
//! keeps its density x size, rounded.

use super::densities::Shares;
use super::{Density, Draw, Maskable, Ratio, advice, layer_densities};
use crate::error::{Error, Result};
use crate::shape::BlockShape;
use std::fmt;
use std::str::FromStr;

/// What masks are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Single weights (the paper).
    #[default]
    Unstructured,
    /// Whole blocks, in the layers that can keep them.
    Block(BlockShape),
}

impl Pattern {
    /// What [`Pattern::from_str`] takes, for messages.
    pub const WANTED: &'static str = "\"unstructured\", or \"block:RxC\" (blocks of R output x C input channels, 1 to 4096 \
                                      each, such as block:16x16)";

    /// Its blocks, if it has any.
    pub fn block(self) -> Option<BlockShape> {
        match self {
            Pattern::Unstructured => None,
            Pattern::Block(block) => Some(block),
        }
    }

    /// Its blocks, if these kept positions of a tensor of `shape` consist of them. So a mask read from a file, where there are
    /// positions and no blocks, is known again.
    pub fn block_of(self, shape: &[usize], kept: Option<&[u32]>) -> Option<BlockShape> {
        self.block().filter(|block| kept.is_some_and(|kept| block.blocks(shape, kept).is_some()))
    }

    /// # Errors
    /// Blocks that are to be tossed.
    pub fn check(self, draw: Draw) -> Result<()> {
        match (self, draw) {
            (Pattern::Block(_), Draw::Bernoulli) => Err(Error::Usage(format!(
                "{self} needs exact counts, a Bernoulli draw tosses single weights: choose the exact mask draw, or the \
                 unstructured pattern"
            ))),
            _ => Ok(()),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let side = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|n| digits && (1..=BlockShape::MAX_SIDE).contains(n))
        };
        let block = |text: &str| {
            let (r, c) = text.split_once('x')?;
            Some(Pattern::Block(BlockShape { r: side(r)?, c: side(c)? }))
        };
        match name {
            "unstructured" => Ok(Pattern::Unstructured),
            _ => name.strip_prefix("block:").and_then(block).ok_or_else(|| {
                let shown: String = name.chars().take(40).collect();
                Error::Usage(format!("unknown pattern {shown:?}: wanted {}", Pattern::WANTED))
            }),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.pad("unstructured"),
            Pattern::Block(block) => f.pad(&format!("block:{block}")),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

/// Why a layer is unstructured although blocks were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// Its channels do not divide by the block.
    Channels,
    /// Whole blocks, or one in each block row and column, would move its density by more than a tenth.
    Density,
    /// It helps to meet the budget, which the other layers' whole blocks miss.
    Budget,
}

impl Fallback {
    /// One word, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Fallback::Channels => "channels",
            Fallback::Density => "density",
            Fallback::Budget => "budget",
        }
    }
}

/// What one layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Every weight.
    Dense,
    /// Single weights, `None` where nothing else was asked for.
    Unstructured(Option<Fallback>),
    /// Whole blocks.
    Blocks {
        /// Their shape.
        block: BlockShape,
        /// How many are kept.
        kept: usize,
        /// Of how many.
        of: usize,
    },
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Dense => f.pad("dense"),
            Form::Unstructured(_) => Pattern::Unstructured.fmt(f),
            Form::Blocks { block, .. } => Pattern::Block(*block).fmt(f),
        }
    }
}

/// What a layer is to keep, before positions are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerShare {
    /// The formula's density.
    pub density: f64,
    /// Weights kept.
    pub nnz: usize,
    /// In which form.
    pub form: Form,
}

/// What each layer keeps, in layer order, by the rules at the head of this file. The sum is [`Density::budget`] exactly.
/// A layer that would keep nothing is an error that names it.
pub fn layer_shares(layers: &[Maskable], ratio: &Ratio, density: Density, pattern: Pattern) -> Result<Vec<LayerShare>> {
    let densities = layer_densities(layers, ratio, density)?;
    let shares = Shares::new(layers, ratio, density)?;
    let mut forms: Vec<Form> = layers.iter().enumerate().map(|(l, layer)| form(layer, &shares, l, pattern)).collect();
    let counts = loop {
        if let Some(counts) = counts(&shares, &forms) {
            break counts;
        }
        match to_the_budget(&shares, &forms, &densities) {
            Some(l) => forms[l] = BUDGET,
            None => {
                let counts = shares.counts().unwrap_or_default();
                let l = counts.iter().position(|&count| count == 0).unwrap_or(0);
                return Err(advice::starved(layers, l, ratio, density));
            }
        }
    };
    let share = |((layer, density), (form, nnz)): ((&Maskable, f64), (Form, u64))| {
        let (nnz, size) = (nnz as usize, layer.size());
        LayerShare { density, nnz, form: if nnz == size { Form::Dense } else { form } }
    };
    Ok(layers.iter().zip(densities).zip(forms.into_iter().zip(counts)).map(share).collect())
}

/// The form a layer has by itself.
fn form(layer: &Maskable, shares: &Shares, l: usize, pattern: Pattern) -> Form {
    let Pattern::Block(block) = pattern else { return Form::Unstructured(None) };
    if shares.settled[l] == Some(shares.sizes[l]) {
        return Form::Dense;
    }
    let Some([rows, cols, taps]) = block.grid(&layer.shape) else {
        return Form::Unstructured(Some(Fallback::Channels));
    };
    let (target, weights) = (shares.target(l), block.weights() as u64);
    let kept = target.pieces(weights).max(rows.max(cols) as u64);
    match target.is_near(kept * weights, 0) {
        true => Form::Blocks { block, kept: kept as usize, of: rows * cols * taps },
        false => Form::Unstructured(Some(Fallback::Density)),
    }
}

const BUDGET: Form = Form::Unstructured(Some(Fallback::Budget));

/// The layer in blocks that is made unstructured for the budget: of those with which it can be met, the smallest; if
/// there is none, the one that its own blocks move furthest in the direction in which all blocks together miss the
/// budget.
fn to_the_budget(shares: &Shares, forms: &[Form], densities: &[f64]) -> Option<usize> {
    let excess = |l: usize| match forms[l] {
        Form::Blocks { block, kept, .. } => {
            Some((kept * block.weights()) as f64 - densities[l] * shares.sizes[l] as f64)
        }
        _ => None,
    };
    let mut in_blocks: Vec<usize> = (0..forms.len()).filter(|&l| excess(l).is_some()).collect();
    in_blocks.sort_by_key(|&l| (shares.weights[l], shares.sizes[l])); // stable: ties stay in layer order
    let alike = |a: usize, b: usize| shares.sizes[a] == shares.sizes[b] && forms[a] == forms[b];
    for (i, &l) in in_blocks.iter().enumerate() {
        let mut trial = forms.to_vec();
        trial[l] = BUDGET;
        if (i == 0 || !alike(l, in_blocks[i - 1])) && counts(shares, &trial).is_some() {
            return Some(l);
        }
    }
    let direction = in_blocks.iter().filter_map(|&l| excess(l)).sum::<f64>().signum();
    let moved = |l: usize| direction * excess(l).unwrap_or(0.0) / (densities[l] * shares.sizes[l] as f64);
    in_blocks.into_iter().rev().max_by(|&a, &b| moved(a).total_cmp(&moved(b))) // the last of equals: the smallest, first one
}

/// Weights each layer keeps; `None` if that moves an unstructured layer too far, or leaves it nothing.
fn counts(shares: &Shares, forms: &[Form]) -> Option<Vec<u64>> {
    let settled = |l: usize| match forms[l] {
        Form::Blocks { block, kept, .. } => Some((kept * block.weights()) as u64),
        _ => shares.settled[l],
    };
    // With none left to share in it, the rounded budget counts, which may be more than what is shared.
    if let Some(counts) = (0..forms.len()).map(settled).collect::<Option<Vec<u64>>>() {
        return (counts.iter().sum::<u64>() == shares.budget).then_some(counts);
    }
    let mut rest = shares.clone();
    let in_blocks = |&l: &usize| matches!(forms[l], Form::Blocks { .. });
    let blocks: Vec<_> = (0..forms.len()).filter(in_blocks).filter_map(|l| Some((l, settled(l)?))).collect();
    if !rest.settle(&blocks) {
        return None;
    }
    rest.saturate();
    let counts = rest.counts()?;
    let unstructured = |l: &usize| matches!(forms[*l], Form::Unstructured(_));
    let fits = |l: usize| counts[l] > 0 && shares.target(l).is_near(counts[l], 1);
    shares.open().filter(unstructured).all(fits).then_some(counts)
}
