//! Images with labels: recognised, checked, memory-mapped where raw, split explicitly, augmented and prefetched.
//! And images to evaluate only, out-of-distribution ones above all: an [`ImageSet`] brings any of them to a network's shape.
//!
//! [`open`] recognises what a path holds; every reader checks each header against what the file really holds before it
//! allocates, and ends in one [`Dataset`] of two [`Split`]s. A [`Loader`] makes [`Batch`]es of a split.

mod augment;
mod builtin;
mod cifar;
mod cifar_python;
mod classes;
mod files;
mod fit;
mod idx;
mod image_file;
mod image_folder;
mod image_set;
mod loader;
mod mat;
mod noise;
mod npz;
pub mod ood;
mod pickle;
mod split;
mod svhn;

pub use augment::{Augment, PadMode, Preprocess, published};
pub use classes::{class_subset, classes_by_name, read_class_list};
pub use files::open;
pub use image_set::ImageSet;
pub use loader::{Batch, Loader, epoch_crops, epoch_order};
pub use split::Split;

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name under which the built-in images are addressed instead of a path: 8,000 training and 2,000 held-out images of
/// Fashion-MNIST, 28 x 28, class-balanced (`scripts/draw_fashion_mnist.py`).
pub const BUILTIN: &str = "builtin:fashion-mnist";

/// Most classes a data set may have; ImageNet-22k has 21,841. A larger label is taken for a fault of the file.
pub const MAX_CLASSES: usize = 1 << 16;

/// Raw bytes of images, shared with the loader's threads.
#[derive(Clone)]
pub enum Bytes {
    /// A mapped file. It must not be changed while it is in use: a file cut short then ends the process (SIGBUS).
    Mapped(Arc<memmap2::Mmap>),
    /// Decoded into memory (compressed sources).
    Owned(Arc<[u8]>),
    /// Inside the binary.
    Static(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
        }
    }
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

impl ImageShape {
    /// Numbers of one image, C*H*W. The shape of a [`Split`] never overflows here: its bytes are there.
    pub fn numel(&self) -> usize {
        self.c * self.h * self.w
    }
}

impl std::fmt::Display for ImageShape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} x {} x {}", self.c, self.h, self.w)
    }
}

/// A data set as found at a path.
pub struct Dataset {
    /// Where it came from: the path, or [`BUILTIN`].
    pub source: String,
    /// Recognised kind: "idx", "cifar10-bin", "cifar10-python", "cifar100-bin", "cifar100-python", "svhn-mat", "npz",
    /// "memory".
    pub kind: &'static str,
    /// Family whose published normalisation constants apply (see [`published`]): "cifar10", "cifar100" or "svhn". `None`
    /// for IDX and npz, which hold MNIST, Fashion-MNIST or anything else under the same names.
    pub family: Option<&'static str>,
    /// Shape of every image.
    pub shape: ImageShape,
    /// Number of classes.
    pub classes: usize,
    /// SHA-256, hex, over shape, labels and images (in C, H, W order) of both splits: the same for the same data in any
    /// container.
    pub checksum: String,
    /// Training images.
    pub train: Split,
    /// Held-out images.
    pub test: Split,
}

/// A split as a reader found it, with the file that its labels came from, for messages.
struct Found {
    split: Split,
    labels: PathBuf,
}

impl Dataset {
    /// A data set of two splits made in memory (see [`Split::from_memory`]). Classes: the largest training label + 1.
    pub fn from_splits(source: &str, train: Split, test: Split) -> Result<Self> {
        let found = |split| Found { split, labels: source.into() };
        Self::assemble(Path::new(source), "memory", None, None, found(train), found(test))
    }

    /// What every reader ends in: checks both splits against each other and takes the checksum.
    /// `classes`: fixed by the format, or `None` for the largest training label + 1.
    fn assemble(
        source: &Path,
        kind: &'static str,
        family: Option<&'static str>,
        classes: Option<usize>,
        train: Found,
        test: Found,
    ) -> Result<Self> {
        for (name, found) in [("training", &train), ("test", &test)] {
            if found.split.is_empty() {
                return Err(Error::data(&found.labels, format!("no {name} images: at least 1 is wanted")));
            }
        }
        let shape = train.split.shape();
        if test.split.shape() != shape {
            let what = format!("test images of {} but training images of {shape} (C x H x W)", test.split.shape());
            return Err(Error::data(&test.labels, what));
        }
        let limit = classes.unwrap_or(MAX_CLASSES);
        check_labels(&train, "training", limit, "")?;
        let classes = classes.unwrap_or_else(|| train.split.largest_label() as usize + 1);
        check_labels(&test, "test", classes, if limit == classes { "" } else { " (largest training label + 1)" })?;
        let checksum = checksum(shape, [&train.split, &test.split]);
        let source = source.to_string_lossy().into_owned();
        Ok(Dataset { source, kind, family, shape, classes, checksum, train: train.split, test: test.split })
    }

    /// Normalisation for training on `train`, a part of this set's training split: the family's published constants, else
    /// mean and deviation of exactly `train`.
    pub fn preprocess(&self, train: &Split) -> Result<Preprocess> {
        match self.family.and_then(published) {
            Some(constants) => Ok(constants),
            None => Preprocess::of(train).map_err(|what| Error::data(&self.source, what)),
        }
    }
}

fn check_labels(found: &Found, name: &str, classes: usize, why: &str) -> Result<()> {
    let bad = (0..found.split.len()).find(|&i| found.split.label(i) as usize >= classes);
    bad.map_or(Ok(()), |i| {
        let label = found.split.label(i);
        Err(Error::data(&found.labels, format!("label {label} of {name} image {i}: wanted 0 to {}{why}", classes - 1)))
    })
}

fn checksum(shape: ImageShape, splits: [&Split; 2]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"sparse-engine images 1\n");
    let numbers = |hash: &mut Sha256, v: &[usize]| v.iter().for_each(|&v| hash.update((v as u64).to_le_bytes()));
    numbers(&mut hash, &[shape.c, shape.h, shape.w]);
    let mut image = vec![0; shape.numel()];
    for split in splits {
        numbers(&mut hash, &[split.len()]);
        (0..split.len()).for_each(|i| hash.update(split.label(i).to_le_bytes()));
        for i in 0..split.len() {
            split.image(i, &mut image);
            hash.update(&image);
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
