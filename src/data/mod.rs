//! Images with labels: recognised, checked, memory-mapped where raw, split explicitly, augmented and prefetched.

use crate::error::Result;
use std::sync::Arc;

/// Name under which the built-in images are addressed instead of a path.
pub const BUILTIN: &str = "builtin:fashion-mnist";

/// Raw bytes of images, shared with the loader's threads.
#[derive(Clone)]
pub enum Bytes {
    /// A mapped file.
    Mapped(Arc<memmap2::Mmap>),
    /// Decoded into memory (compressed sources).
    Owned(Arc<[u8]>),
    /// Inside the binary.
    Static(&'static [u8]),
}

/// How pixels of one image lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelOrder {
    /// Channel planes.
    Chw,
    /// Interleaved channels.
    Hwc,
}

/// Channels, height, width of every image of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageShape {
    /// Channels.
    pub c: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

/// One split: images that may be spread over several files, with labels.
#[derive(Clone)]
pub struct Split {
    // Filled by the data helper: (bytes, byte offset of the first image, stride between images, count) a part, order, labels, index list.
}

/// A data set as found at a path.
pub struct Dataset {
    /// Where it came from: the path, or [`BUILTIN`].
    pub source: String,
    /// Recognised kind, such as "idx", "cifar10-bin", "cifar100-python", "npz".
    pub kind: &'static str,
    /// Family whose published normalisation constants apply: "cifar10", "cifar100", "mnist", or None.
    pub family: Option<&'static str>,
    /// Shape of every image.
    pub shape: ImageShape,
    /// Number of classes.
    pub classes: usize,
    /// SHA-256 over images and labels of both splits, hex.
    pub checksum: String,
    /// Training images.
    pub train: Split,
    /// Held-out images.
    pub test: Split,
}

impl Split {
    /// Images in it.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Splits off the last `count` images (CIFAR-10's validation split: the last 5,000 training images): (rest, last).
    pub fn split_last(&self, _count: usize) -> Result<(Split, Split)> {
        todo!()
    }
    /// Per-channel mean and standard deviation (population) of pixel/255, in f64, over this split.
    pub fn mean_std(&self) -> (Vec<f64>, Vec<f64>) {
        todo!()
    }
}

/// Opens a path (file or folder) or [`BUILTIN`]; the kind is recognised.
pub fn open(_source: &str) -> Result<Dataset> {
    todo!()
}

/// What is done to images before the network sees them; stored in the resolved config and in each checkpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Mean a channel, of pixel/255.
    pub mean: Vec<f64>,
    /// Standard deviation a channel, of pixel/255.
    pub std: Vec<f64>,
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

/// One batch on the host, normalised, N,C,H,W.
pub struct Batch {
    /// Images in it; the last batch of an epoch may be ragged.
    pub n: usize,
    /// `n*C*H*W` numbers.
    pub images: Vec<f32>,
    /// `n` labels.
    pub labels: Vec<u32>,
}

/// Makes batches on worker threads, the same for any thread count.
pub struct Loader {}

impl Loader {
    /// `augment`: None for evaluation (file order, no shuffle); else shuffled by the stream (seed, Data, "epoch E").
    pub fn new(
        _split: Split,
        _batch: usize,
        _preprocess: Preprocess,
        _augment: Option<Augment>,
        _seed: u64,
        _threads: usize,
    ) -> Self {
        todo!()
    }
    /// Batches an epoch, the ragged last one counted.
    pub fn batches(&self) -> usize {
        todo!()
    }
    /// Batches `first_batch..` of epoch `epoch` in order, prefetched; a pure function of (split, seed, epoch, batch index).
    pub fn epoch(&self, _epoch: u64, _first_batch: usize) -> impl Iterator<Item = Batch> + '_ {
        std::iter::empty()
    }
}
