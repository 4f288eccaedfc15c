//! A network's answers to a set of images, and the softmax of one of them.

use crate::error::{Error, Result};

/// Logits of images whose labels are known.
///
/// ```
/// use sparse_engine::metrics::{Classification, DEFAULT_BINS, Logits};
///
/// let mut logits = Logits::new(3);
/// logits.push(&[2.0, 0.0, 1.0, 0.5, 0.5, 0.0], &[0, 1], &[0, 1])?; // a batch of two images
/// logits.push(&[0.0, 0.0, 9.0], &[2], &[2])?; // a ragged last one
/// let scores = Classification::of(&logits, DEFAULT_BINS)?;
/// assert_eq!((scores.n, scores.accuracy, scores.top5), (3, 2.0 / 3.0, 1.0)); // the tie of image 1 goes to class 0
/// # Ok::<(), sparse_engine::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    classes: usize,
    data: Vec<f32>,
    labels: Vec<u32>,
    indices: Vec<u32>,
}

impl Logits {
    /// Of no image yet, in `classes` classes.
    pub fn new(classes: usize) -> Self {
        Logits { classes, data: Vec::new(), labels: Vec::new(), indices: Vec::new() }
    }

    /// Appends a batch: `logits` [n, classes] row by row, `labels` [n], `indices` [n] of the images in their data set.
    ///
    /// # Errors
    /// Lengths that do not fit each other; a label that is no class. Nothing is appended then.
    pub fn push(&mut self, logits: &[f32], labels: &[u32], indices: &[u32]) -> Result<()> {
        let (n, classes) = (labels.len(), self.classes);
        if Some(logits.len()) != n.checked_mul(classes) || indices.len() != n {
            let (l, i) = (logits.len(), indices.len());
            let what =
                format!("{l} logits and {i} indices for {n} labels: wanted {classes} logits and an index a label");
            return Err(Error::Failed(what));
        }
        if let Some(i) = labels.iter().position(|&label| label as usize >= classes) {
            let (index, label) = (indices[i], labels[i]);
            let what = format!("image {index} has label {label}, the network has {classes} classes, counted from 0");
            return Err(Error::Failed(what));
        }
        self.data.extend_from_slice(logits);
        self.labels.extend_from_slice(labels);
        self.indices.extend_from_slice(indices);
        Ok(())
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits [n, classes], row by row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Labels [n].
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Indices [n] of the images in their data set.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// (logits, label) of each image.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&[f32], usize)> {
        // A network of no class has no label, so no row either.
        self.data.chunks_exact(self.classes.max(1)).zip(self.labels.iter().map(|&label| label as usize))
    }

    /// The softmax of each image, with its logits and label.
    pub(super) fn softmaxes(&self) -> impl Iterator<Item = Result<(Softmax, &[f32], usize)>> {
        let softmax = |((row, label), &index)| Ok((Softmax::of(row, index as usize)?, row, label));
        self.rows().zip(&self.indices).map(softmax)
    }

    /// An error if there is no image: no metric has a value then.
    pub(super) fn not_empty(&self) -> Result<f64> {
        match self.len() {
            0 => Err(Error::Failed("no images to evaluate: wanted at least one".into())),
            n => Ok(n as f64),
        }
    }
}

/// A softmax, kept as what does not saturate.
pub(super) struct Softmax {
    /// The class of the largest logit; of equal ones, the lowest.
    pub top: usize,
    /// The largest logit.
    pub max: f64,
    /// Sum of exp(logit - max) over all other classes: the odds against `top`.
    pub rest: f64,
}

impl Softmax {
    /// Of one image; `image` is its number in messages.
    pub fn of(row: &[f32], image: usize) -> Result<Self> {
        if let Some(class) = row.iter().position(|z| !z.is_finite()) {
            return Err(diverged(row[class], image, class));
        }
        let top = argmax(row.iter().enumerate()).unwrap_or(0);
        let max = row.get(top).map_or(0.0, |&z| f64::from(z));
        let others = row.iter().enumerate().filter(|&(class, _)| class != top);
        let mut odds: Vec<f64> = others.map(|(_, &z)| (f64::from(z) - max).exp()).collect();
        // In ascending order: the same logits in another order of the classes are a tie to the last bit.
        odds.sort_unstable_by(f64::total_cmp);
        Ok(Softmax { top, max, rest: odds.iter().fold(0.0, |sum, odd| sum + odd) })
    }

    /// The largest probability, in [1 / classes, 1].
    pub fn confidence(&self) -> f64 {
        1.0 / (1.0 + self.rest)
    }

    /// -ln of the probability of a class with logit `z`.
    pub fn surprise(&self, z: f64) -> f64 {
        // max - z first: exact where both are equal, and then ln_1p keeps what 1 + rest would round away.
        (self.max - z) + self.rest.ln_1p()
    }
}

/// The class of the largest logit, of equal ones the first; none of no classes. Logits are finite.
pub(super) fn argmax<'a>(row: impl Iterator<Item = (usize, &'a f32)>) -> Option<usize> {
    row.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(class, _)| class)
}

/// Of a logit that is not finite.
pub(super) fn diverged(logit: f32, image: usize, class: usize) -> Error {
    Error::Failed(format!(
        "image {image}: the logit of class {class} is {logit}, wanted a finite number: the network diverged; \
         take an earlier checkpoint, or train with a lower learning rate"
    ))
}

/// The largest softmax probability of each image, in f64, of `logits` [n, classes]: the score by which in-distribution images
/// are told from others (Hendrycks and Gimpel 2017; the paper's figures 4, 5 and 15 by all that is known of them).
///
/// Probabilities within 2^-54 of 1, margins of about 37 and more, are 1 exactly: ties as real as any other for [`auroc`]. So
/// are equal logits in another order of the classes.
///
/// # Errors
/// A logit that is not finite: the network diverged. A number of logits that is no multiple of the classes.
///
/// ```
/// use sparse_engine::metrics::max_softmax;
///
/// assert_eq!(max_softmax(&[0.0, 0.0, 200.0, 0.0], 2)?, [0.5, 1.0]);
/// # Ok::<(), sparse_engine::Error>(())
/// ```
///
/// [`auroc`]: super::auroc
pub fn max_softmax(logits: &[f32], classes: usize) -> Result<Vec<f64>> {
    let rows = whole_rows(logits, classes)?;
    rows.enumerate().map(|(image, row)| Ok(Softmax::of(row, image)?.confidence())).collect()
}

/// The rows of [n, classes].
pub(super) fn whole_rows(logits: &[f32], classes: usize) -> Result<impl Iterator<Item = &[f32]>> {
    if classes == 0 || !logits.len().is_multiple_of(classes) {
        let what = format!("{} logits: wanted a multiple of the {classes} classes, at least one class", logits.len());
        return Err(Error::Failed(what));
    }
    Ok(logits.chunks_exact(classes))
}
