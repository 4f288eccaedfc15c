//! Expected calibration error (Naeini et al. 2015, Guo et al. 2017) and the reliability diagram's data.

use super::logits::Logits;
use crate::error::{Error, Result};

/// Bins where none are asked for: Guo et al. 2017; the paper does not say how many it has.
pub const DEFAULT_BINS: usize = 15;
/// The most bins: with more, hardly any has two images.
pub const MOST_BINS: usize = 10_000;

/// How well confidence, the largest softmax probability, tells accuracy.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Calibration {
    /// Bins of equal width.
    pub bins: usize,
    /// Expected calibration error, a fraction: the mean over all images of |accuracy - mean confidence| of their bin.
    pub value: f64,
    /// The bins from low to high.
    pub reliability: Vec<ConfidenceBin>,
}

/// Images whose confidence lies in (lo, hi].
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ConfidenceBin {
    /// Lower edge, which belongs to the bin below: bin i of n has f64(i / n).
    pub lo: f64,
    /// Upper edge: f64((i + 1) / n).
    pub hi: f64,
    /// Images.
    pub count: u64,
    /// Their mean confidence; none of no images.
    pub confidence: Option<f64>,
    /// The share of them that is right; none of no images.
    pub accuracy: Option<f64>,
}

/// The calibration of the answers by `bins` bins (lo, hi] of equal width over (0, 1]. An answer is the class of the largest
/// logit, of equal ones the lowest.
///
/// # Errors
/// No images; a logit that is not finite: the network diverged; no bins, or more than [`MOST_BINS`].
///
/// ```
/// use sparse_engine::metrics::{Logits, calibration};
///
/// let mut logits = Logits::new(2);
/// logits.push(&[0.0, 0.0, 0.0, 200.0], &[1, 1], &[0, 1])?; // confidence 0.5 and wrong, 1 and right
/// let c = calibration(&logits, 2)?;
/// assert_eq!(c.value, 0.25);
/// assert_eq!((c.reliability[0].count, c.reliability[0].accuracy), (1, Some(0.0))); // 0.5 belongs to (0, 0.5]
/// # Ok::<(), sparse_engine::Error>(())
/// ```
pub fn calibration(logits: &Logits, bins: usize) -> Result<Calibration> {
    let n = logits.not_empty()?;
    if !(1..=MOST_BINS).contains(&bins) {
        return Err(Error::Usage(format!("{bins} confidence bins: wanted 1 to {MOST_BINS}, such as {DEFAULT_BINS}")));
    }
    let edges: Vec<f64> = (0..=bins).map(|i| i as f64 / bins as f64).collect();
    let mut sums = vec![(0u64, 0.0f64, 0u64); bins];
    for row in logits.softmaxes() {
        let (softmax, _, label) = row?;
        let confidence = softmax.confidence(); // at most 1, the last edge
        let (count, sum, correct) = &mut sums[edges[1..].partition_point(|&hi| hi < confidence)];
        *count += 1;
        *sum += confidence;
        *correct += u64::from(softmax.top == label);
    }
    let gaps: f64 = sums.iter().map(|&(_, sum, correct)| (correct as f64 - sum).abs()).sum();
    let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
    let bin = |(edges, &(count, sum, correct)): (&[f64], &(u64, f64, u64))| ConfidenceBin {
        lo: edges[0],
        hi: edges[1],
        count,
        confidence: mean(sum, count),
        accuracy: mean(correct as f64, count),
    };
    Ok(Calibration { bins, value: gaps / n, reliability: edges.windows(2).zip(&sums).map(bin).collect() })
}
