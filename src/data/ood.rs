//! Out-of-distribution sets: other images, or noise (paper section 4: CIFAR-100, SVHN, ImageNet-O, Gaussian noise).

use super::noise::{KINDS, Noise};
use super::{BUILTIN, ImageSet};
use crate::error::{Error, Result};
use std::path::Path;

/// Opens what `spec` names, brought to the shape of `inside`, the in-distribution images:
///
/// * `gaussian(SIGMA)`: the images of `inside` with noise N(0, SIGMA^2) added to pixel / 255, clipped to [0, 1];
/// * `uniform`: as many images of numbers uniform in [0, 1);
/// * `hein`: low-pass filtered noise (Hein et al., CVPR 2019). Images at even positions are those of `inside` with their
///   pixels permuted, at odd positions numbers uniform in [0, 1); each is then smoothed by a Gaussian filter of a random
///   width in [1, 2.5] pixels and its contrast stretched to [0, 1];
/// * else a path, as [`ImageSet::open`]. A file of one of the names above is written `./hein`.
///
/// Noise is a function of `seed` and the position of an image, and is not rounded to 8 bits.
///
/// Errors: a path that is not there; a deviation that is not a number of at least 0 ([`Error::Usage`]).
pub fn open(spec: &str, inside: &ImageSet, seed: u64) -> Result<ImageSet> {
    if let Some(noise) = Noise::parse(spec, seed)? {
        return inside.with_noise(noise);
    }
    if !spec.starts_with("builtin:") && !Path::new(spec).exists() {
        let what = format!("no such file or folder; wanted one, or \"{BUILTIN}\", or noise: {KINDS}");
        return Err(Error::data(spec, what));
    }
    ImageSet::open(spec, inside.shape())
}
