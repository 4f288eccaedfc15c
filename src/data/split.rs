//! A split: images that may be spread over several files, with labels; cheap to clone and to cut.

use super::{Bytes, ImageShape, PixelOrder};
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// One split: images that may be spread over several files, with labels. A clone shares the bytes.
#[derive(Clone)]
pub struct Split {
    shared: Arc<Shared>,
    /// Which images of the data set's own split these are.
    range: Range<usize>,
}

struct Shared {
    shape: ImageShape,
    parts: Vec<Part>,
    /// Index of the first image of each part.
    starts: Vec<usize>,
    labels: Vec<u32>,
}

/// Images that lie at equal distances in one file.
pub(super) struct Part {
    pub bytes: Bytes,
    /// Byte offset of the first image.
    pub offset: usize,
    /// Bytes from one image to the next.
    pub stride: usize,
    pub count: usize,
    pub order: PixelOrder,
}

impl Split {
    /// `path` is named in errors. Fails where a part reaches past its bytes or images and labels differ in number.
    pub(super) fn new(path: &Path, shape: ImageShape, parts: Vec<Part>, labels: Vec<u32>) -> Result<Self> {
        let size = shape.c.checked_mul(shape.h).and_then(|v| v.checked_mul(shape.w));
        let size = size
            .filter(|&v| v > 0)
            .ok_or_else(|| Error::data(path, format!("images of {shape}: no pixel or too many")))?;
        let mut starts = Vec::with_capacity(parts.len());
        let mut count = 0usize;
        for p in &parts {
            starts.push(count);
            let end = p.count.checked_sub(1).map_or(Some(0), |last| last.checked_mul(p.stride)?.checked_add(size));
            if end.and_then(|e| e.checked_add(p.offset)).is_none_or(|e| e > p.bytes.len()) {
                let (n, len) = (p.count, p.bytes.len());
                return Err(Error::data(path, format!("{n} images of {shape} do not fit into its {len} bytes")));
            }
            count = count.saturating_add(p.count);
        }
        if count != labels.len() {
            let what = format!("{} labels for {count} images: wanted a label for each image", labels.len());
            return Err(Error::data(path, what));
        }
        if u32::try_from(count).is_err() {
            return Err(Error::data(path, format!("{count} images: at most {} are supported", u32::MAX)));
        }
        Ok(Split { shared: Arc::new(Shared { shape, parts, starts, labels }), range: 0..count })
    }

    /// Images made in memory: `labels.len()` images of `shape`, one after the other in `order`.
    pub fn from_memory(
        shape: ImageShape,
        order: PixelOrder,
        images: impl Into<Arc<[u8]>>,
        labels: Vec<u32>,
    ) -> Result<Self> {
        let path = Path::new("images in memory");
        let bytes = Bytes::Owned(images.into());
        let count = labels.len();
        let stride = shape.c.saturating_mul(shape.h).saturating_mul(shape.w);
        if bytes.len() != stride.saturating_mul(count) {
            let what = format!("{} bytes for {count} labels and images of {shape}", bytes.len());
            return Err(Error::data(path, what));
        }
        Split::new(path, shape, vec![Part { bytes, offset: 0, stride, count, order }], labels)
    }

    /// Images in it.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of every image.
    pub fn shape(&self) -> ImageShape {
        self.shared.shape
    }

    /// Position of image `i` in the file's own split: what augmentation is keyed by, so that cutting a split leaves the
    /// random crops of its images as they were.
    pub fn position(&self, i: usize) -> usize {
        assert!(i < self.len(), "image {i} of {}", self.len());
        self.range.start + i
    }

    /// Label of image `i < len()`.
    pub fn label(&self, i: usize) -> u32 {
        self.shared.labels[self.position(i)]
    }

    pub(super) fn largest_label(&self) -> u32 {
        self.shared.labels[self.range.clone()].iter().copied().max().unwrap_or(0)
    }

    /// Whether both are the same images.
    pub(crate) fn same(&self, other: &Split) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) && self.range == other.range
    }

    /// All images, one after the other, in C,H,W order.
    pub(crate) fn planes(&self) -> Vec<u8> {
        let ImageShape { c, h, w } = self.shape();
        let mut out = Vec::with_capacity(self.len() * c * h * w);
        for i in 0..self.len() {
            match self.stored(i) {
                (pixels, PixelOrder::Chw) => out.extend_from_slice(pixels),
                (pixels, PixelOrder::Hwc) => {
                    (0..c).for_each(|channel| out.extend(pixels.iter().skip(channel).step_by(c)));
                }
            }
        }
        out
    }

    /// Bytes of image `i < len()` as stored.
    pub(super) fn stored(&self, i: usize) -> (&[u8], PixelOrder) {
        let at = self.position(i);
        let part = self.shared.starts.partition_point(|&s| s <= at) - 1;
        let p = &self.shared.parts[part];
        let from = p.offset + (at - self.shared.starts[part]) * p.stride;
        (&p.bytes[from..from + self.shape().numel()], p.order)
    }

    /// Copies image `i < len()` into `out` (C*H*W bytes) in C, H, W order.
    pub fn image(&self, i: usize, out: &mut [u8]) {
        let (stored, order) = self.stored(i);
        let ImageShape { c, h, w } = self.shape();
        match order {
            PixelOrder::Chw => out.copy_from_slice(stored),
            PixelOrder::Hwc => {
                for (plane, out) in out.chunks_exact_mut(h * w).enumerate() {
                    out.iter_mut().zip(stored[plane..].iter().step_by(c)).for_each(|(o, &v)| *o = v);
                }
            }
        }
    }

    /// Splits off the last `count` images (CIFAR-10's validation split: the last 5,000 training images): (rest, last).
    /// At least one image must be left.
    pub fn split_last(&self, count: usize) -> Result<(Split, Split)> {
        let n = self.len();
        if count >= n {
            let what =
                format!("validation = {count}: there are {n} training images, at least 1 must be left to train on");
            return Err(Error::Usage(what));
        }
        let cut = self.range.end - count;
        let part = |range| Split { shared: self.shared.clone(), range };
        Ok((part(self.range.start..cut), part(cut..self.range.end)))
    }

    /// Per-channel mean and standard deviation (population) of pixel/255, over exactly this split: sums are exact
    /// integers, so the order of images cannot matter. Zeros for an empty split.
    pub fn mean_std(&self) -> (Vec<f64>, Vec<f64>) {
        let ImageShape { c, h, w } = self.shape();
        let mut sums = vec![(0u64, 0u64); c];
        let mut image = vec![0; c * h * w];
        for i in 0..self.len() {
            self.image(i, &mut image);
            for (sum, plane) in sums.iter_mut().zip(image.chunks_exact(h * w)) {
                for &v in plane {
                    sum.0 += u64::from(v);
                    sum.1 += u64::from(v) * u64::from(v);
                }
            }
        }
        let n = (self.len() * h * w).max(1) as u128;
        let mean = |&(sum, _): &(u64, u64)| sum as f64 / (n as f64 * 255.0);
        let std = |&(sum, squares): &(u64, u64)| {
            let n2_var = n * u128::from(squares) - u128::from(sum) * u128::from(sum);
            (n2_var as f64).sqrt() / (n as f64 * 255.0)
        };
        (sums.iter().map(mean).collect(), sums.iter().map(std).collect())
    }
}
