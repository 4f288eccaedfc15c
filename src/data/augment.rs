//! What happens to images on the way to the network: pad, crop, flip, normalise (paper section 3).

use super::{ImageShape, PixelOrder, Split};
use crate::error::{Error, Result};

/// What is done to images before the network sees them; stored in the resolved config and in each checkpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Mean a channel, of pixel/255.
    pub mean: Vec<f64>,
    /// Standard deviation a channel, of pixel/255.
    pub std: Vec<f64>,
}

/// Normalisation constants published for a family (paper section 3): "cifar10", "cifar100" or "mnist".
pub fn published(family: &str) -> Option<Preprocess> {
    let (mean, std): (&[f64], &[f64]) = match family {
        "cifar10" => (&[0.4914, 0.4822, 0.4465], &[0.2023, 0.1994, 0.2010]),
        "cifar100" => (&[0.50707516, 0.48654887, 0.44091784], &[0.26733429, 0.25643846, 0.27615047]),
        "mnist" => (&[0.1307], &[0.3081]),
        _ => return None,
    };
    Some(Preprocess { mean: mean.to_vec(), std: std.to_vec() })
}

impl Preprocess {
    /// Mean and deviation of exactly this split; an error where a channel is constant.
    pub(super) fn of(split: &Split) -> std::result::Result<Self, String> {
        let (mean, std) = split.mean_std();
        match std.iter().position(|&s| !(s > 0.0)) {
            Some(channel) => Err(format!(
                "channel {channel} has the same value in every training image, so its deviation is zero; \
                 set preprocess.mean and preprocess.std in the config"
            )),
            None => Ok(Preprocess { mean, std }),
        }
    }

    /// Whether it fits images of `channels` channels: as many finite means and finite positive deviations.
    pub fn check(&self, channels: usize) -> Result<()> {
        let fault = |what: String| Err(Error::Usage(what));
        if self.mean.len() != channels || self.std.len() != channels {
            let (m, s) = (self.mean.len(), self.std.len());
            return fault(format!("preprocess: {m} means and {s} deviations for images of {channels} channel(s)"));
        }
        for (c, (&m, &s)) in self.mean.iter().zip(&self.std).enumerate() {
            if !m.is_finite() || !(s > 0.0) || !s.is_finite() {
                return fault(format!(
                    "preprocess: mean {m} and std {s} of channel {c}: wanted finite, std above zero"
                ));
            }
        }
        Ok(())
    }

    /// The normalised value of each of 256 pixel values, a table a channel: f32((p / 255 - mean) / std) from f64.
    fn tables(&self) -> Vec<[f32; 256]> {
        let table = |(&m, &s): (&f64, &f64)| std::array::from_fn(|p| ((p as f64 / 255.0 - m) / s) as f32);
        self.mean.iter().zip(&self.std).map(table).collect()
    }
}

/// Padding of the random crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PadMode {
    /// Mirror without repeating the edge pixel (torchvision "reflect").
    Reflect,
    /// Black pixels (value 0 before normalisation, as torchvision pads the PIL image).
    Zero,
}

/// Training-time augmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Pixels added on each side before a random crop back to the original size; 0: no crop.
    pub pad: usize,
    /// How they are filled.
    pub pad_mode: PadMode,
    /// Horizontal flip with probability 1/2.
    pub flip: bool,
}

impl Augment {
    /// Whether it fits images of `shape`: reflection needs more pixels than it adds, and a crop must keep some of the image.
    pub fn check(&self, shape: ImageShape) -> Result<()> {
        if self.pad > 0 && self.pad >= shape.h.min(shape.w) {
            let what = format!("augment.pad = {}: wanted less than height and width of images of {shape}", self.pad);
            return Err(Error::Usage(what));
        }
        Ok(())
    }

    /// What is drawn for one sample from four random words: a crop offset a direction, in `0..=2 * pad`, and the flip.
    pub(super) fn draw(&self, words: [u32; 4]) -> Crop {
        // Multiply-shift: bias below (2 * pad + 1) / 2^32.
        let below = |word: u32, n: usize| ((u64::from(word) * n as u64) >> 32) as usize;
        let choices = 2 * self.pad + 1;
        Crop {
            top: below(words[0], choices) as isize - self.pad as isize,
            left: below(words[1], choices) as isize - self.pad as isize,
            flip: self.flip && words[2] >> 31 == 1,
            pad_mode: self.pad_mode,
        }
    }
}

/// A crop of the image's own size whose upper left corner lies at (top, left) of the image, flipped afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crop {
    pub top: isize,
    pub left: isize,
    pub flip: bool,
    pub pad_mode: PadMode,
}

impl Crop {
    /// Row or column of the image at `at`, which may lie outside of `0..n` by less than n; `None`: black.
    fn source(&self, at: isize, n: usize) -> Option<usize> {
        let last = n as isize - 1;
        let inside = (0..=last).contains(&at);
        match self.pad_mode {
            PadMode::Zero if !inside => None,
            PadMode::Reflect if at < 0 => Some((-at) as usize),
            PadMode::Reflect if at > last => Some((2 * last - at) as usize),
            _ => Some(at as usize),
        }
    }
}

/// Preprocess, with the tables made.
pub(super) struct Normalise {
    shape: ImageShape,
    tables: Vec<[f32; 256]>,
}

impl Normalise {
    pub(super) fn new(preprocess: &Preprocess, shape: ImageShape) -> Result<Self> {
        preprocess.check(shape.c)?;
        Ok(Normalise { shape, tables: preprocess.tables() })
    }

    /// Writes C*H*W numbers to `out`; `columns` is scratch, kept between images.
    pub(super) fn apply(
        &self,
        (pixels, order): (&[u8], PixelOrder),
        crop: Option<Crop>,
        columns: &mut Vec<Option<usize>>,
        out: &mut [f32],
    ) {
        let ImageShape { c, h, w } = self.shape;
        let (channel_step, row_step, step) = match order {
            PixelOrder::Chw => (h * w, w, 1),
            PixelOrder::Hwc => (1, w * c, c),
        };
        let crop = crop.unwrap_or(Crop { top: 0, left: 0, flip: false, pad_mode: PadMode::Zero });
        columns.clear();
        columns.extend((0..w).map(|x| {
            let x = if crop.flip { w - 1 - x } else { x };
            crop.source(crop.left + x as isize, w).map(|x| x * step)
        }));
        let planes = out.chunks_exact_mut(h * w).zip(&self.tables).enumerate();
        for (channel, (plane, table)) in planes {
            for (y, row) in plane.chunks_exact_mut(w).enumerate() {
                let Some(source) = crop.source(crop.top + y as isize, h) else {
                    row.fill(table[0]);
                    continue;
                };
                let stored = &pixels[channel * channel_step + source * row_step..];
                for (out, column) in row.iter_mut().zip(&*columns) {
                    *out = table[column.map_or(0, |x| usize::from(stored[x]))];
                }
            }
        }
    }
}
