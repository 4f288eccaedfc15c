//! How images of any size and channels are brought to a network's shape.

use super::ImageShape;
use crate::error::{Error, Result};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

/// Shorter side, in pixels, from which images of a folder are first made larger than the network sees.
const LARGE: usize = 64;

/// The rule. First channels: grey is repeated, RGB becomes luma (ITU-R 601-2 in 16-bit fixed point, rounded, as Pillow). Then
/// size: the image is scaled, its proportions kept, until it just covers the wanted size (files, and a shorter side of 64
/// or more: that size * 256 / 224, rounded down, as the paper evaluates ImageNet), by a bilinear filter widened when
/// scaling down (antialiased), rounded to 8 bits after each direction; the other side is rounded down; the centre is cut
/// out, half pixels rounded to even. Sizes and filter are those of torchvision's `Resize` and `CenterCrop` on PIL images.
/// An image of the wanted size is left as it is.
#[derive(Clone, Copy)]
pub(super) struct Fit {
    to: ImageShape,
    /// Height and width to cover before the centre is cut out.
    cover: [usize; 2],
}

/// Buffers kept from image to image.
#[derive(Default)]
pub(super) struct Scratch {
    resizer: Resizer,
    luma: Vec<u8>,
}

impl Fit {
    /// `from_files`: the images come from a folder of image files.
    pub(super) fn new(to: ImageShape, from_files: bool) -> Result<Self> {
        let side = u32::from(u16::MAX) as usize;
        if !(1..=side).contains(&to.h) || !(1..=side).contains(&to.w) {
            return Err(Error::Usage(format!("images of {to} (C x H x W): wanted height and width of 1 to {side}")));
        }
        let large = from_files && to.h.min(to.w) >= LARGE;
        let cover = [to.h, to.w].map(|side| if large { side * 256 / 224 } else { side });
        Ok(Fit { to, cover })
    }

    /// Whether images of `from` channels can be brought to the wanted ones.
    pub(super) fn check(&self, from: usize) -> std::result::Result<(), String> {
        match (from, self.to.c) {
            (a, b) if a == b => Ok(()),
            (1, 3) | (3, 1) => Ok(()),
            (a, b) => {
                Err(format!("images of {a} channel(s) for a network of {b}: wanted {b}, or 1 and 3 of each other"))
            }
        }
    }

    /// One line for reports.
    pub(super) fn rule(&self) -> String {
        let ImageShape { c, h, w } = self.to;
        let channels = match c {
            1 => "RGB to luma (ITU-R 601), alpha dropped",
            3 => "grey repeated to RGB, alpha dropped",
            _ => "channels as they are",
        };
        let [cover_h, cover_w] = self.cover;
        let size = if h == w && cover_h == cover_w {
            format!("shorter side to {cover_h}")
        } else {
            format!("scaled to cover {cover_h} x {cover_w}")
        };
        format!("{channels}; {size}, bilinear, antialiased, centre {h} x {w}; images of {h} x {w} keep their pixels")
    }

    /// Brings an image, planes of `from`, to the wanted shape. `check` has passed.
    pub(super) fn apply(
        &self,
        from: ImageShape,
        planes: &[u8],
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> std::result::Result<(), String> {
        let (size, wanted) = (from.h * from.w, self.to.h * self.to.w);
        let luma = from.c == 3 && self.to.c == 1;
        if luma {
            let [r, g, b] = [0, 1, 2].map(|c| &planes[c * size..(c + 1) * size]);
            scratch.luma.clear();
            scratch.luma.extend(r.iter().zip(g).zip(b).map(|((&r, &g), &b)| to_luma(r, g, b)));
        }
        let planes = if luma { &scratch.luma } else { planes };
        for (from_plane, out) in planes.chunks_exact(size).zip(out.chunks_exact_mut(wanted)) {
            if (from.h, from.w) == (self.to.h, self.to.w) {
                out.copy_from_slice(from_plane);
            } else {
                self.resize(from, from_plane, &mut scratch.resizer, out).map_err(|e| {
                    format!("cannot resize {} x {} pixels to {} x {}: {e}", from.h, from.w, self.to.h, self.to.w)
                })?;
            }
        }
        if from.c == 1 && self.to.c == 3 {
            let (first, rest) = out.split_at_mut(wanted);
            rest.chunks_exact_mut(wanted).for_each(|plane| plane.copy_from_slice(first));
        }
        Ok(())
    }

    /// Only the pixels that are cut out are computed: a strip of 1 x 100,000 pixels costs no more than its size.
    fn resize(
        &self,
        from: ImageShape,
        plane: &[u8],
        resizer: &mut Resizer,
        out: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let scaled = covering([from.h, from.w], self.cover);
        let [(top, height), (left, width)] =
            [(from.h, scaled[0], self.to.h), (from.w, scaled[1], self.to.w)].map(|(from, scaled, to)| {
                let step = from as f64 / scaled as f64;
                (centre(scaled - to) as f64 * step, to as f64 * step)
            });
        let source = ImageRef::new(u32::try_from(from.w)?, u32::try_from(from.h)?, plane, PixelType::U8)?;
        let mut target = Image::from_slice_u8(self.to.w as u32, self.to.h as u32, out, PixelType::U8)?;
        // Rounding must not put the box outside of the image.
        let (width, height) = (width.min(from.w as f64 - left), height.min(from.h as f64 - top));
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .crop(left, top, width, height);
        resizer.resize(&source, &mut target, &options)?;
        Ok(())
    }
}

/// Height and width of an image of `from` scaled until it just covers `cover`, the side that sticks out rounded down.
fn covering(from: [usize; 2], cover: [usize; 2]) -> [usize; 2] {
    let scaled =
        |along: usize, other: usize| (from[other] as u128 * cover[along] as u128 / from[along] as u128) as usize;
    // The height binds where cover_h / h >= cover_w / w.
    if cover[0] as u128 * from[1] as u128 >= cover[1] as u128 * from[0] as u128 {
        [cover[0], scaled(0, 1).max(cover[1])]
    } else {
        [scaled(1, 0).max(cover[0]), cover[1]]
    }
}

/// Pixels to cut off in front of the centre, of `over` in all: half of them, rounded to even.
fn centre(over: usize) -> usize {
    let half = over / 2;
    half + (over % 2) * (half % 2)
}

fn to_luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_torchvisions() {
        // (image, shorter side, Resize's answer) by int(side * long / short).
        for (from, side, wanted) in [
            ([375, 500], 256, [256, 341]),
            ([500, 375], 256, [341, 256]),
            ([333, 500], 256, [256, 384]),
            ([28, 28], 32, [32, 32]),
            ([1, 7], 32, [32, 224]),
            ([1000, 999], 256, [256, 256]),
        ] {
            assert_eq!(covering(from, [side, side]), wanted, "{from:?}");
        }
        assert_eq!(covering([10, 10], [4, 8]), [8, 8]);
        assert_eq!(covering([10, 40], [4, 8]), [4, 16]);
        // Python: int(round(over / 2.0)).
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 85].map(centre), [0, 0, 1, 2, 2, 2, 3, 4, 42]);
        let cover = |h, w, files| Fit::new(ImageShape { c: 3, h, w }, files).unwrap().cover;
        assert_eq!(cover(224, 224, true), [256, 256]);
        assert_eq!(cover(299, 299, true), [341, 341]);
        assert_eq!((cover(224, 224, false), cover(63, 80, true)), ([224, 224], [63, 80]));
    }

    #[test]
    fn luma_of_grey_is_grey() {
        assert!((0..=255).all(|v| to_luma(v, v, v) == v));
        assert_eq!([to_luma(255, 0, 0), to_luma(0, 255, 0), to_luma(0, 0, 255)], [76, 150, 29]);
    }
}
