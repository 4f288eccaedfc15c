//! Masks from a score of each weight, such as SNIP's, GraSP's or the weight's size: the best of the whole network are kept, or
//! only how many of them each layer has.

use super::{Density, Draw, Mask, Maskable, Pattern, Ratio, by_name, draw_patterns, given, name_of};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What becomes of the positions that a score selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Only their number in each layer is kept, new ones are drawn (the paper, section 3.1).
    #[default]
    Draw,
    /// They are the mask (the released ImageNet code).
    Keep,
}

impl Positions {
    /// Both with their names in configurations.
    pub const ALL: [(&'static str, Positions); 2] = [("draw", Positions::Draw), ("keep", Positions::Keep)];
}

impl Positions {
    /// # Errors
    /// Positions that are kept, and a pattern of blocks or a Bernoulli draw, which choose other ones.
    pub fn check(self, pattern: Pattern, draw: Draw) -> Result<()> {
        if self == Positions::Draw || (pattern, draw) == (Pattern::Unstructured, Draw::Exact) {
            return Ok(());
        }
        let other =
            if pattern == Pattern::Unstructured { format!("{draw} mask draw") } else { format!("pattern {pattern}") };
        Err(Error::Usage(format!(
            "positions keep: a score's own positions cannot be had with {other}, which chooses other ones; choose \
             positions draw, or the unstructured pattern and exact mask draw"
        )))
    }
}

impl FromStr for Positions {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        by_name("positions", &Positions::ALL, name)
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(&Positions::ALL, *self))
    }
}

/// The positions of the `budget` highest scores of the whole network, layer by layer, ascending; of equal scores the first
/// ones, in layer order, then by position. `scores`: one a weight of each layer, in the layers' order. A layer may get none.
///
/// # Errors
/// A score that is NaN or infinite, with its layer; lengths that differ from the layers'; more positions than weights.
pub fn top_scores(layers: &[Maskable], scores: &[Vec<f64>], budget: u64) -> Result<Vec<Vec<u32>>> {
    if scores.len() != layers.len() {
        return Err(Error::Usage(format!("scores: wanted those of {} layers, got {}", layers.len(), scores.len())));
    }
    let mut all = 0;
    for (layer, scores) in layers.iter().zip(scores) {
        if scores.len() != layer.size() {
            return Err(Error::Usage(format!(
                "layer {} {:?}: wanted {} scores, got {}",
                layer.name,
                layer.shape,
                layer.size(),
                scores.len()
            )));
        }
        if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
            return Err(Error::Failed(format!(
                "layer {} {:?}: the score of weight {at} is {}; check the initial values and images, or use other ones",
                layer.name, layer.shape, scores[at]
            )));
        }
        all += scores.len() as u64;
    }
    if budget > all {
        return Err(Error::Usage(format!("scores: the best {budget} of {all} weights were wanted; there are no more")));
    }
    let (limit, mut ties) = kth_largest(scores, budget);
    let select = |scores: &Vec<f64>| {
        let mut kept = Vec::new();
        for (i, key) in scores.iter().map(|&score| key(score)).enumerate() {
            let tie = key == limit && ties > 0;
            ties -= u64::from(tie);
            if key > limit || tie {
                kept.push(i as u32);
            }
        }
        kept
    };
    Ok(scores.iter().map(select).collect())
}

/// Masks of what [`top_scores`] selected, by [`Positions`]. A mask's density is kept / size.
///
/// # Errors
/// A layer that keeps nothing, with its name and what to do; what [`Positions::check`] refuses; positions out of range or
/// order.
pub fn scored_masks(
    layers: &[Maskable],
    kept: &[Vec<u32>],
    positions: Positions,
    pattern: Pattern,
    draw: Draw,
    seed: u64,
) -> Result<Vec<Mask>> {
    positions.check(pattern, draw)?;
    if kept.len() != layers.len() {
        return Err(Error::Usage(format!("positions: wanted those of {} layers, got {}", layers.len(), kept.len())));
    }
    let counts: Vec<u64> = kept.iter().map(|kept| kept.len() as u64).collect();
    let density = Density::of_budget(counts.iter().sum(), layers.iter().map(|l| l.size() as u64).sum())?;
    let ratio = Ratio::Counts(counts);
    match positions {
        Positions::Draw => draw_patterns(layers, &ratio, density, pattern, draw, seed),
        Positions::Keep => {
            super::layer_counts(layers, &ratio, density)?; // an empty layer
            let mask = |(layer, kept): (&Maskable, &Vec<u32>)| given::mask(layer, kept, pattern).map_err(Error::Usage);
            layers.iter().zip(kept).map(mask).collect()
        }
    }
}

/// Ascending in the score, the same for both zeros.
fn key(score: f64) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0 + 0 is 0
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

/// The key of the `k`-th largest score, and how many of that key are among the `k` largest. Sixteen bits a pass, from
/// the top: a copy to sort would take as much memory as the scores, half a gigabyte for Wide ResNet-50-2.
fn kth_largest(scores: &[Vec<f64>], k: u64) -> (u64, u64) {
    let (mut prefix, mut wanted) = (0u64, k);
    for shift in [48, 32, 16, 0] {
        let above = |key: u64| key.checked_shr(shift + 16).unwrap_or(0);
        let mut counts = vec![0u64; 1 << 16];
        for key in scores.iter().flatten().map(|&score| key(score)).filter(|&key| above(key) == prefix) {
            counts[(key >> shift & 0xffff) as usize] += 1;
        }
        let mut digit = 0xffff;
        while digit > 0 && counts[digit] < wanted {
            wanted -= counts[digit];
            digit -= 1;
        }
        prefix = prefix << 16 | digit as u64;
    }
    (prefix, wanted)
}
