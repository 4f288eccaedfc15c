//! How well a score tells two sets apart.

use crate::error::{Error, Result};

/// Area under the ROC curve: the probability that a score of `positive` (in-distribution images) is above one of `negative`
/// (others), equal scores counted half, which is what mid-ranks give. Pairs are counted in integers, so two equal sets give
/// 0.5 exactly and no order of the scores changes a bit.
///
/// # Errors
/// An empty set; a NaN.
///
/// ```
/// use sparse_engine::metrics::auroc;
///
/// assert_eq!(auroc(&[0.9, 0.8, 0.5], &[0.5, 0.4])?, 5.5 / 6.0);
/// # Ok::<(), sparse_engine::Error>(())
/// ```
pub fn auroc(positive: &[f64], negative: &[f64]) -> Result<f64> {
    let (positive, negative) = (sorted(positive, "in-distribution")?, sorted(negative, "out-of-distribution")?);
    // Twice the pairs won: the sum over positives of negatives below, plus that of negatives below or equal.
    let (mut below, mut not_above, mut twice) = (0, 0, 0u128);
    for &score in &positive {
        while negative.get(below).is_some_and(|&other| other < score) {
            below += 1;
        }
        while negative.get(not_above).is_some_and(|&other| other <= score) {
            not_above += 1;
        }
        twice += (below + not_above) as u128;
    }
    Ok(twice as f64 / (2 * positive.len() as u128 * negative.len() as u128) as f64)
}

fn sorted(scores: &[f64], set: &str) -> Result<Vec<f64>> {
    if scores.is_empty() {
        return Err(Error::Failed(format!("no {set} scores: wanted at least one image of each set")));
    }
    if let Some(i) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::Failed(format!("{set} score {i} is NaN, wanted a number: the network diverged")));
    }
    let mut scores = scores.to_vec();
    scores.sort_unstable_by(f64::total_cmp); // 0 and -0 stay apart and still compare as equal above
    Ok(scores)
}
