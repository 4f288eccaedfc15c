//! Accuracy, top-k accuracy and negative log-likelihood.

use super::calibration::{Calibration, calibration};
use super::logits::Logits;
use crate::error::{Error, Result};

/// The metrics of labelled images (paper section 5).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Classification {
    /// Images.
    pub n: u64,
    /// Share of images whose label has the largest logit: [`top_k`] of 1.
    pub accuracy: f64,
    /// [`top_k`] of 5.
    pub top5: f64,
    /// [`nll`].
    pub nll: f64,
    /// [`calibration`].
    pub ece: Calibration,
}

impl Classification {
    /// All of them, the calibration with `bins` bins.
    ///
    /// # Errors
    /// No images; a logit that is not finite: the network diverged; bins beyond [`MOST_BINS`](super::MOST_BINS), or none.
    pub fn of(logits: &Logits, bins: usize) -> Result<Self> {
        let (nll, ece) = (nll(logits)?, calibration(logits, bins)?);
        Ok(Classification { n: logits.len() as u64, accuracy: top_k(logits, 1)?, top5: top_k(logits, 5)?, nll, ece })
    }
}

/// Share of images whose label is among the `k` classes of the largest logits, in [0, 1]. Of equal logits the lowest classes
/// come first. An image with a NaN among its logits counts as wrong; with `k` of all classes or more every other one is right.
///
/// # Errors
/// No images; `k` = 0.
///
/// ```
/// use sparse_engine::metrics::{Logits, top_k};
///
/// let mut logits = Logits::new(3);
/// logits.push(&[7.0, 7.0, 1.0, 7.0, 7.0, f32::NAN], &[1, 1], &[0, 1])?;
/// assert_eq!([1, 2, 9].map(|k| top_k(&logits, k).unwrap()), [0.0, 0.5, 0.5]);
/// # Ok::<(), sparse_engine::Error>(())
/// ```
pub fn top_k(logits: &Logits, k: usize) -> Result<f64> {
    let n = logits.not_empty()?;
    if k == 0 {
        return Err(Error::Usage("top-0 accuracy: wanted at least the first class, top-1".into()));
    }
    let correct = logits.rows().filter(|&(row, label)| !row.iter().any(|z| z.is_nan()) && rank(row, label) < k);
    Ok(correct.count() as f64 / n)
}

/// How many classes come before the label's.
fn rank(row: &[f32], label: usize) -> usize {
    let z = row[label];
    row[..label].iter().filter(|&&other| other >= z).count() + row[label..].iter().filter(|&&other| other > z).count()
}

/// Mean negative log-likelihood of the labels: mean cross-entropy an image, natural logarithm, without label smoothing.
/// Exact to f64 rounding at any margin: a right answer with a margin of 200 adds e^-200, a wrong one 200.
///
/// # Errors
/// No images; a logit that is not finite: the network diverged.
///
/// ```
/// use sparse_engine::metrics::{Logits, nll};
///
/// let mut logits = Logits::new(2);
/// logits.push(&[0.0, 200.0], &[0], &[0])?;
/// assert_eq!(nll(&logits)?, 200.0);
/// # Ok::<(), sparse_engine::Error>(())
/// ```
pub fn nll(logits: &Logits) -> Result<f64> {
    let n = logits.not_empty()?;
    let mut sum = 0.0;
    for row in logits.softmaxes() {
        let (softmax, row, label) = row?;
        sum += softmax.surprise(f64::from(row[label]));
    }
    Ok(sum / n)
}
