//! The fast gradient sign method (Goodfellow et al. 2015): x + epsilon * sign(gradient of the loss with respect to x).
//!
//! Here are its two ends; between them the network's backward pass takes [`gradient_seeds`] from the logits to the images.

use super::logits::{argmax, diverged, whole_rows};
use crate::error::{Error, Result};

/// What the network's backward pass starts from: the direction of each image's gradient of the plain cross-entropy with
/// respect to its logits, [n, classes] as `logits`, scaled so that its largest magnitude, the label's, is 1.
///
/// The gradient is softmax(z) - onehot(y) = (1 - p_y) * (softmax over the other classes - onehot(y)). The first factor is
/// positive, so it changes no sign further down; it is left out, as it underflows where an image is right with a large
/// margin and would take the gradient with it: softmax - onehot is 0 at the label from a margin of 17 on in f32, of 37 in
/// f64. Half precision then needs no loss scale for confident images more than for others.
///
/// With one class the loss is constant: all zeros.
///
/// # Errors
/// A logit that is not finite: the network diverged; a label that is no class; lengths that do not fit.
///
/// ```
/// use sparse_engine::metrics::gradient_seeds;
///
/// assert_eq!(gradient_seeds(&[200.0, 0.0, 0.0], 3, &[0])?, [-1.0, 0.5, 0.5]);
/// # Ok::<(), sparse_engine::Error>(())
/// ```
pub fn gradient_seeds(logits: &[f32], classes: usize, labels: &[u32]) -> Result<Vec<f32>> {
    let rows = whole_rows(logits, classes)?;
    if logits.len() / classes != labels.len() {
        let (n, l) = (logits.len() / classes, labels.len());
        return Err(Error::Failed(format!("{l} labels for the logits of {n} images: wanted one an image")));
    }
    let mut seeds = Vec::with_capacity(logits.len());
    for (image, (row, &label)) in rows.zip(labels).enumerate() {
        let label = label as usize;
        if label >= classes {
            let what = format!("image {image} has label {label}, the network has {classes} classes, counted from 0");
            return Err(Error::Failed(what));
        }
        if let Some(class) = row.iter().position(|z| !z.is_finite()) {
            return Err(diverged(row[class], image, class));
        }
        let others = || row.iter().enumerate().filter(|&(class, _)| class != label);
        let Some(top) = argmax(others()) else {
            seeds.push(0.0);
            continue;
        };
        let exp = |z: f32| (f64::from(z) - f64::from(row[top])).exp();
        let sum: f64 = others().map(|(_, &z)| exp(z)).sum();
        let seed = |(class, &z): (usize, &f32)| if class == label { -1.0 } else { (exp(z) / sum) as f32 };
        seeds.extend(row.iter().enumerate().map(seed));
    }
    Ok(seeds)
}

/// Where epsilon is measured; the paper does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Space {
    /// In pixels from 0 to 1: 8/255 is 8 steps of an 8-bit image. The paper's robust accuracies fit this one.
    Pixel,
    /// In normalised values, as an attack that knows nothing of the normalisation.
    Normalised,
}

/// A perturbation of images that are normalised as (pixel / 255 - mean) / std a channel.
#[derive(Clone, Copy, Debug)]
pub struct Fgsm<'a> {
    /// The most that a pixel moves, in `space`; finite, not negative.
    pub epsilon: f64,
    /// Its unit.
    pub space: Space,
    /// Mean a channel.
    pub mean: &'a [f64],
    /// Standard deviation a channel.
    pub std: &'a [f64],
}

/// Images, perturbed.
#[derive(Clone, Debug, PartialEq)]
pub struct Perturbed {
    /// Normalised, N,C,H,W.
    pub images: Vec<f32>,
    /// Elements whose gradient is zero: they stay as they are.
    pub zero_gradients: u64,
}

impl Fgsm<'_> {
    /// Perturbs normalised `images` (N,C,H,W with `plane` = H x W, C as many as there are means) along the signs of the
    /// loss's `gradient` with respect to them; sign(0) is 0. Results are clipped to the normalised values of pixels 0 and 1,
    /// or to the original where that lies further out.
    ///
    /// No pixel moves by more than epsilon: in f64, |result - image| (times std in pixel space) is at most epsilon, since a
    /// result that rounds beyond is moved back towards the original. Epsilon 0 changes no bit.
    ///
    /// # Errors
    /// A gradient or an image that is not finite, named by its position; lengths that do not fit; an epsilon, mean or
    /// deviation without meaning.
    ///
    /// ```
    /// use sparse_engine::metrics::{Fgsm, Space};
    ///
    /// let fgsm = Fgsm { epsilon: 0.25, space: Space::Pixel, mean: &[0.5], std: &[0.5] };
    /// let got = fgsm.perturb(&[0.0, 0.0, 0.0, 0.75], &[1e-30, -3.0, 0.0, 1.0], 4)?;
    /// assert_eq!((got.images, got.zero_gradients), (vec![0.5, -0.5, 0.0, 1.0], 1));
    /// # Ok::<(), sparse_engine::Error>(())
    /// ```
    pub fn perturb(&self, images: &[f32], gradient: &[f32], plane: usize) -> Result<Perturbed> {
        self.check(images.len(), gradient.len(), plane)?;
        let mut result = Perturbed { images: images.to_vec(), zero_gradients: 0 };
        let planes = result.images.chunks_exact_mut(plane).zip(gradient.chunks_exact(plane)).enumerate();
        for (p, (pixels, gradient)) in planes {
            let channel = Channel::new(self, p % self.mean.len());
            for (i, (x, &g)) in pixels.iter_mut().zip(gradient).enumerate() {
                if !g.is_finite() || !x.is_finite() {
                    let (image, channel) = (p / self.mean.len(), p % self.mean.len());
                    return Err(Error::Failed(format!(
                        "image {image}, channel {channel}, pixel {i}: value {x}, gradient {g}, wanted finite numbers: \
                         the network diverged, or overflowed in half precision (try --precision f32)"
                    )));
                }
                if g == 0.0 {
                    result.zero_gradients += 1;
                } else if self.epsilon > 0.0 {
                    *x = channel.moved(*x, g > 0.0);
                }
            }
        }
        Ok(result)
    }

    fn check(&self, images: usize, gradient: usize, plane: usize) -> Result<()> {
        let channels = self.mean.len();
        if !self.epsilon.is_finite() || self.epsilon < 0.0 {
            return Err(Error::Usage(format!("epsilon {}: wanted a number from 0 on, such as 8/255", self.epsilon)));
        }
        let fits = |(m, s): (&f64, &f64)| m.is_finite() && s.is_finite() && *s > 0.0;
        if channels == 0 || channels != self.std.len() || !self.mean.iter().zip(self.std).all(fits) {
            let (m, s) = (self.mean, self.std);
            let what =
                format!("means {m:?} and deviations {s:?}: wanted one of each a channel, finite, std above zero");
            return Err(Error::Usage(what));
        }
        let image = plane.checked_mul(channels).filter(|&size| size > 0);
        if images != gradient || image.is_none_or(|size| !images.is_multiple_of(size)) {
            return Err(Error::Failed(format!(
                "{images} image values and {gradient} gradients: wanted as many of both, a multiple of {channels} \
                 channels x {plane} pixels"
            )));
        }
        Ok(())
    }
}

/// What happens to a value of one channel.
struct Channel {
    epsilon: f64,
    /// What a difference of normalised values is times this in the space of epsilon.
    unit: f64,
    /// Normalised values of pixels 0 and 1.
    valid: [f32; 2],
}

impl Channel {
    fn new(fgsm: &Fgsm, c: usize) -> Self {
        let unit = if fgsm.space == Space::Pixel { fgsm.std[c] } else { 1.0 };
        // Rounded as the loader rounds them.
        let valid = [0.0, 1.0].map(|pixel| ((pixel - fgsm.mean[c]) / fgsm.std[c]) as f32);
        Channel { epsilon: fgsm.epsilon, unit, valid }
    }

    fn moved(&self, x: f32, up: bool) -> f32 {
        let [lo, hi] = [x.min(self.valid[0]), x.max(self.valid[1])];
        let step = if up { self.epsilon / self.unit } else { -self.epsilon / self.unit };
        let mut moved = ((f64::from(x) + step) as f32).clamp(lo, hi);
        // Rounding to nearest went past by less than one f32 step: back by one, or by two where f64 rounded too.
        while (f64::from(moved) - f64::from(x)).abs() * self.unit > self.epsilon {
            moved = if up { moved.next_down() } else { moved.next_up() };
        }
        moved
    }
}
