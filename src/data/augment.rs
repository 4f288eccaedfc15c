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

/// Normalisation constants published for a family: "cifar10", "cifar100" or "mnist" (paper section 3), or "svhn" (mean and
/// deviation of its 73,257 training images, as widely quoted).
pub fn published(family: &str) -> Option<Preprocess> {
    let (mean, std): (&[f64], &[f64]) = match family {
        "cifar10" => (&[0.4914, 0.4822, 0.4465], &[0.2023, 0.1994, 0.2010]),
        "cifar100" => (&[0.50707516, 0.48654887, 0.44091784], &[0.26733429, 0.25643846, 0.27615047]),
        "svhn" => (&[0.4376821, 0.4437697, 0.47280442], &[0.19803012, 0.20101562, 0.19703614]),
        "mnist" => (&[0.1307], &[0.3081]),
        _ => return None,
    };
    Some(Preprocess { mean: mean.to_vec(), std: std.to_vec() })
}

impl Preprocess {
    /// Mean and deviation of exactly this split; an error where a channel is constant.
    pub(super) fn of(split: &Split) -> std::result::Result<Self, String> {
        let (mean, std) = split.mean_std();
        match std.iter().position(|&s| s == 0.0) {
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
            if !m.is_finite() || !s.is_finite() || s <= 0.0 {
                return fault(format!(
                    "preprocess: mean {m} and std {s} of channel {c}: wanted finite, std above zero"
                ));
            }
        }
        Ok(())
    }

    /// The normalised value of each of 256 pixel values, a table a channel: f32((p / 255 - mean) / std) from f64.
    pub(crate) fn tables(&self) -> Vec<[f32; 256]> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One channel of 3 x 4 pixels, 1 to 12 row by row, not normalised but for the division by 255.
    fn cropped(top: isize, left: isize, flip: bool, pad_mode: PadMode) -> Vec<u8> {
        let shape = ImageShape { c: 1, h: 3, w: 4 };
        let normalise = Normalise::new(&Preprocess { mean: vec![0.0], std: vec![1.0] }, shape).unwrap();
        let pixels: Vec<u8> = (1..=12).collect();
        let mut out = vec![f32::NAN; 12];
        let crop = Crop { top, left, flip, pad_mode };
        normalise.apply((&pixels, PixelOrder::Chw), Some(crop), &mut Vec::new(), &mut out);
        out.iter().map(|v| (v * 255.0).round() as u8).collect()
    }

    #[test]
    #[rustfmt::skip]
    fn crops_by_hand() {
        use PadMode::{Reflect, Zero};
        //  1  2  3  4
        //  5  6  7  8
        //  9 10 11 12
        assert_eq!(cropped(0, 0, false, Zero), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(cropped(0, 0, true, Zero), [4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9]);
        assert_eq!(cropped(-1, -2, false, Zero), [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 5, 6]);
        assert_eq!(cropped(2, 1, false, Zero), [10, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        // Mirrored about the edge pixel, which is not repeated: rows 1 | 0 1, columns 2 1 | 0 1.
        assert_eq!(cropped(-1, -2, false, Reflect), [7, 6, 5, 6, 3, 2, 1, 2, 7, 6, 5, 6]);
        assert_eq!(cropped(2, 3, false, Reflect), [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        // The crop is flipped, not the image: column order of the case before the last, turned round.
        assert_eq!(cropped(-1, -2, true, Reflect), [6, 5, 6, 7, 2, 1, 2, 3, 6, 5, 6, 7]);
    }

    #[test]
    fn interleaved_channels_give_the_same_numbers() {
        let shape = ImageShape { c: 3, h: 3, w: 4 };
        let preprocess = Preprocess { mean: vec![0.5, 0.25, 0.0], std: vec![0.5, 2.0, 0.125] };
        let normalise = Normalise::new(&preprocess, shape).unwrap();
        let chw: Vec<u8> = (0..36).map(|v| v * 7).collect();
        let hwc: Vec<u8> = (0..36).map(|k| chw[k % 3 * 12 + k / 3]).collect();
        let crop = Some(Crop { top: -1, left: 2, flip: true, pad_mode: PadMode::Zero });
        let run = |pixels: &[u8], order| {
            let mut out = vec![f32::NAN; 36];
            normalise.apply((pixels, order), crop, &mut Vec::new(), &mut out);
            out
        };
        let (a, b) = (run(&chw, PixelOrder::Chw), run(&hwc, PixelOrder::Hwc));
        assert_eq!(a, b);
        // Padding is black, which is not zero after normalisation.
        assert_eq!([a[0], a[12], a[24]], [-1.0, -0.125, 0.0]);
    }

    #[test]
    fn normalised_values_are_the_formula_in_f64() {
        let p = published("cifar10").unwrap();
        let tables = p.tables();
        for (c, (m, s)) in [(0.4914, 0.2023), (0.4822, 0.1994), (0.4465, 0.2010)].into_iter().enumerate() {
            for (v, got) in tables[c].iter().enumerate() {
                assert_eq!(*got, ((v as f64 / 255.0 - m) / s) as f32);
            }
        }
    }

    #[test]
    fn draws_cover_all_offsets_evenly() {
        let augment = Augment { pad: 4, pad_mode: PadMode::Reflect, flip: true };
        let stream = crate::rng::Stream::new(3, crate::rng::Purpose::Data, "epoch 0 augment");
        let (mut tops, mut lefts, mut flips) = ([0; 9], [0; 9], 0);
        let n = 9000;
        for i in 0..n {
            let crop = augment.draw(stream.block(i));
            tops[(crop.top + 4) as usize] += 1;
            lefts[(crop.left + 4) as usize] += 1;
            flips += i32::from(crop.flip);
        }
        // 1000 expected, deviation 30; 4500 flips expected, deviation 47: 5 sigma.
        assert!(tops.iter().chain(&lefts).all(|&c| (850..=1150).contains(&c)), "{tops:?} {lefts:?}");
        assert!((4263..=4737).contains(&flips), "{flips}");
        let never = Augment { flip: false, pad: 0, ..augment };
        assert!((0..n).all(|i| {
            let crop = never.draw(stream.block(i));
            (crop.top, crop.left, crop.flip) == (0, 0, false)
        }));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let shape = ImageShape { c: 1, h: 8, w: 5 };
        let pad = |pad| Augment { pad, pad_mode: PadMode::Reflect, flip: false }.check(shape);
        assert!(pad(4).is_ok() && pad(0).is_ok());
        assert!(pad(5).is_err() && pad(usize::MAX).is_err());
        let check = |mean: &[f64], std: &[f64]| Preprocess { mean: mean.into(), std: std.into() }.check(1);
        assert!(check(&[0.0], &[1.0]).is_ok());
        for (mean, std) in [
            (&[0.0][..], &[0.0][..]),
            (&[0.0], &[-1.0]),
            (&[0.0], &[f64::NAN]),
            (&[0.0], &[f64::INFINITY]),
            (&[f64::NAN], &[1.0]),
            (&[0.0, 0.0], &[1.0, 1.0]),
            (&[0.0], &[]),
        ] {
            assert!(check(mean, std).is_err(), "{mean:?} {std:?}");
        }
    }
}
