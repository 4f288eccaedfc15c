//! Noise images to tell from real ones. Every number comes from a stream of its own (seed, Data, name) at the image's
//! position, so threads, batch size and a restriction to some images change nothing. Pixels are not rounded to 8 bits.

use super::ImageShape;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};
use std::fmt;

/// The kinds, for messages.
pub(super) const KINDS: &str = "gaussian(SIGMA), uniform or hein";

/// Widths of hein's filter, in pixels.
const WIDTHS: [f64; 2] = [1.0, 2.5];

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Noise {
    /// x + sigma * z, z standard normal, clipped to [0, 1]; x = pixel / 255.
    Gaussian { sigma: f64, seed: u64 },
    /// Every number uniform in [0, 1).
    Uniform { seed: u64 },
    /// Low-pass filtered noise after Hein, Andriushchenko and Bitterwolf (CVPR 2019): see [`Noise::hein`].
    Hein { seed: u64 },
}

impl Noise {
    /// `None`: no noise is meant.
    pub(super) fn parse(spec: &str, seed: u64) -> Result<Option<Self>> {
        match spec {
            "uniform" => return Ok(Some(Noise::Uniform { seed })),
            "hein" => return Ok(Some(Noise::Hein { seed })),
            _ => {}
        }
        let Some(sigma) = spec.strip_prefix("gaussian") else { return Ok(None) };
        let number = sigma.strip_prefix('(').and_then(|s| s.strip_suffix(')'));
        let number = number.and_then(|s| s.trim().parse().ok()).filter(|s: &f64| (0.0..=100.0).contains(s));
        match number {
            Some(sigma) => Ok(Some(Noise::Gaussian { sigma, seed })),
            None if sigma.is_empty() || sigma.starts_with('(') => Err(Error::Usage(format!(
                "\"{spec}\": wanted gaussian(SIGMA), SIGMA the deviation as a share of the pixel range, 0 to 100, such as \
                 gaussian(0.1)"
            ))),
            None => Ok(None), // a path
        }
    }

    /// Whether the image at `position` is made of the stored one.
    pub(super) fn reads(&self, position: usize) -> bool {
        match self {
            Noise::Gaussian { .. } => true,
            Noise::Uniform { .. } => false,
            Noise::Hein { .. } => position.is_multiple_of(2),
        }
    }

    /// Whether an image still shows what the stored one shows.
    pub(super) fn keeps_labels(&self) -> bool {
        matches!(self, Noise::Gaussian { .. })
    }

    /// C*H*W numbers in [0, 1]; `pixels` counts only where [`Noise::reads`].
    pub(super) fn image(&self, position: usize, shape: ImageShape, pixels: &[u8]) -> Vec<f64> {
        match *self {
            Noise::Gaussian { sigma, seed } => {
                let stream = Stream::new(seed, Purpose::Data, "gaussian noise");
                let first = position as u64 * shape.numel() as u64;
                let one = |(i, &p): (u64, &u8)| (f64::from(p) / 255.0 + sigma * stream.normal(i)).clamp(0.0, 1.0);
                (first..).zip(pixels).map(one).collect()
            }
            Noise::Uniform { seed } => uniform(seed, "uniform noise", position, shape),
            Noise::Hein { seed } => self.hein(seed, position, shape, pixels),
        }
    }

    /// Even positions: the pixels of the stored image permuted (all channels of a pixel together); odd ones: numbers uniform
    /// in [0, 1). Then a Gaussian filter on each channel, of a width uniform in [1, 2.5] pixels an image, cut off at 4
    /// widths, the image mirrored at its edges; then the image's contrast is stretched to [0, 1], one minimum and maximum
    /// over all channels. An image of one value stays.
    fn hein(&self, seed: u64, position: usize, shape: ImageShape, pixels: &[u8]) -> Vec<f64> {
        let plane = shape.h * shape.w;
        let mut image = if self.reads(position) {
            let name = format!("hein noise, permutation of {position}");
            let order = Stream::new(seed, Purpose::Data, &name).permutation(plane);
            let permuted = |from: &[u8]| order.iter().map(|&i| f64::from(from[i as usize]) / 255.0).collect::<Vec<_>>();
            pixels.chunks_exact(plane).flat_map(permuted).collect()
        } else {
            uniform(seed, "hein noise, uniform", position, shape)
        };
        let at = Stream::new(seed, Purpose::Data, "hein noise, widths").uniform(position as u64);
        let width = WIDTHS[0] + (WIDTHS[1] - WIDTHS[0]) * at;
        image.chunks_exact_mut(plane).for_each(|plane| gaussian_filter(plane, shape.h, shape.w, width));
        let (min, max) = image.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
        if max - min > 1e-9 {
            image.iter_mut().for_each(|v| *v = (*v - min) / (max - min));
        }
        image
    }
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Noise::Gaussian { sigma, .. } => write!(f, "gaussian({sigma})"),
            Noise::Uniform { .. } => f.write_str("uniform"),
            Noise::Hein { .. } => f.write_str("hein"),
        }
    }
}

fn uniform(seed: u64, name: &str, position: usize, shape: ImageShape) -> Vec<f64> {
    let stream = Stream::new(seed, Purpose::Data, name);
    let first = position as u64 * shape.numel() as u64;
    (first..first + shape.numel() as u64).map(|i| stream.uniform(i)).collect()
}

/// In place, columns then rows, as scipy.ndimage.gaussian_filter with its defaults ("reflect", truncate 4).
fn gaussian_filter(plane: &mut [f64], h: usize, w: usize, sigma: f64) {
    let radius = (4.0 * sigma + 0.5) as isize;
    let raw: Vec<f64> = (-radius..=radius).map(|k| (-0.5 * (k as f64 / sigma).powi(2)).exp()).collect();
    let sum: f64 = raw.iter().sum();
    let taps: Vec<f64> = raw.into_iter().map(|v| v / sum).collect();
    let mut line = Vec::new();
    let mut along = |start: usize, step: usize, n: usize| {
        line.clear();
        line.extend((0..n).map(|i| plane[start + i * step]));
        for i in 0..n {
            let value = (-radius..).zip(&taps).map(|(k, t)| t * line[mirrored(i as isize + k, n)]).sum();
            plane[start + i * step] = value;
        }
    };
    (0..w).for_each(|x| along(x, w, h));
    (0..h).for_each(|y| along(y * w, 1, w));
}

/// `at` brought into 0..n by mirroring with the edge repeated (c b a | a b c | c b a), as often as it takes.
fn mirrored(at: isize, n: usize) -> usize {
    let at = at.rem_euclid(2 * n as isize) as usize;
    if at < n { at } else { 2 * n - 1 - at }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy.ndimage.gaussian_filter(x, s), x[i, j] = (7 i + 3 j) % 11 / 10 of 5 x 4 (tests/fixtures/data/make_images.py).
    #[test]
    fn the_filter_is_scipys() {
        let fixture = include_str!("../../tests/fixtures/data/images/gaussian_filter.txt");
        let mut lines = 0;
        for line in fixture.lines() {
            let numbers: Vec<f64> = line.split(' ').map(|v| v.parse().unwrap()).collect();
            let (sigma, wanted) = (numbers[0], &numbers[1..]);
            let mut plane: Vec<f64> = (0..20).map(|k| ((7 * (k / 4) + 3 * (k % 4)) % 11) as f64 / 10.0).collect();
            gaussian_filter(&mut plane, 5, 4, sigma);
            assert_eq!(wanted.len(), 20);
            assert!(plane.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-14), "{sigma}: {plane:?} {wanted:?}");
            lines += 1;
        }
        assert_eq!(lines, 3);
    }

    #[test]
    fn what_is_noise_and_what_a_path() {
        let parse = |spec| Noise::parse(spec, 1).unwrap();
        assert_eq!(parse("gaussian(0.1)"), Some(Noise::Gaussian { sigma: 0.1, seed: 1 }));
        assert_eq!(parse("gaussian( 1e-2 )").unwrap().to_string(), "gaussian(0.01)");
        assert!(parse("hein").is_some() && parse("uniform").is_some());
        assert!(["gaussian-images", "./hein", "heins", "", "Gaussian(1)"].map(parse).iter().all(Option::is_none));
        for bad in
            ["gaussian", "gaussian()", "gaussian(-1)", "gaussian(nan)", "gaussian(inf)", "gaussian(0.1", "gaussian(a)"]
        {
            let error = Noise::parse(bad, 1).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("gaussian(0.1)"), "{error}");
        }
    }
}
