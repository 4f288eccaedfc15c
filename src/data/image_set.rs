//! Images to evaluate, brought to a network's shape: of a split, of a folder of image files, or noise made from them.

use super::files::in_folder;
use super::fit::{Fit, Scratch};
use super::image_folder::ImageFolder;
use super::loader::{AHEAD, Prefetch};
use super::noise::Noise;
use super::{Batch, ImageShape, Preprocess, Split, open, svhn};
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// Most bytes of batches that wait or are being made, as far as one worker is enough for it.
const AHEAD_BYTES: usize = 1 << 30;

/// Images of one shape, in a fixed order, for evaluation; they may have labels. Cheap to clone.
///
/// Images of a split stay in memory as stored; files of a folder are decoded batch by batch.
#[derive(Clone)]
pub struct ImageSet {
    name: String,
    rule: String,
    shape: ImageShape,
    stored: Arc<Stored>,
    /// Made of the stored images.
    noise: Option<Noise>,
    /// A label each stored image, or none.
    labels: Arc<[u32]>,
    classes: Arc<[String]>,
    /// Positions of the images it is restricted to, ascending.
    kept: Option<Arc<[u32]>>,
}

enum Stored {
    Split(Split, Fit),
    Folder(ImageFolder, Fit),
}

impl ImageSet {
    /// The images of `split`, brought to `shape` (a network's input). `name` is for reports.
    pub fn of_split(name: impl Into<String>, split: Split, shape: ImageShape) -> Result<Self> {
        let (name, fit) = (name.into(), Fit::new(shape, false)?);
        fit.check(split.shape().c).map_err(|what| Error::data(&name, what))?;
        let rule = if split.shape() == shape { "none: images of the network's shape".into() } else { fit.rule() };
        let labels = (0..split.len()).map(|i| split.label(i)).collect();
        Ok(Self::new(name, rule, shape, Stored::Split(split, fit), labels, Vec::new()))
    }

    /// The images at `path`, brought to `shape`:
    ///
    /// * what [`open`] knows: its test split, with its labels;
    /// * one SVHN `.mat` file: all its images, with their labels;
    /// * any other folder: all JPEG and PNG files below it, at any depth, in order of path. Where it has a folder `train`
    ///   beside `test` or `val`, the latter's. Where each lies in a folder of the root, those folders in order of name are
    ///   the classes (ImageNet's validation set, ImageNet-O).
    ///
    /// Errors: those of [`open`], folders without images, images of a kind that is not read, classes without images.
    pub fn open(path: &str, shape: ImageShape) -> Result<Self> {
        let at = Path::new(path);
        if Self::is_folder(path)? {
            let folder = ImageFolder::open(at)?;
            let fit = Fit::new(shape, true)?;
            fit.check(3).map_err(|what| Error::data(at, what))?;
            let name = format!("image folder {}", folder.root().display());
            let (labels, classes) = (folder.labels.clone().into(), folder.classes.clone());
            return Ok(Self::new(name, fit.rule(), shape, Stored::Folder(folder, fit), labels, classes));
        }
        if at.is_file()
            && let Some(split) = svhn::single(at)?
        {
            return Self::of_split(format!("svhn-mat {path}"), split, shape);
        }
        let data = open(path)?;
        Self::of_split(format!("{} {path}, test split", data.kind), data.test, shape)
    }

    /// Whether `path` is a folder of image files, and none of the data sets that [`open`] knows.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn is_folder(path: &str) -> Result<bool> {
        Ok(Path::new(path).is_dir() && in_folder(Path::new(path))?.is_none())
    }

    fn new(
        name: String,
        rule: String,
        shape: ImageShape,
        stored: Stored,
        labels: Arc<[u32]>,
        classes: Vec<String>,
    ) -> Self {
        let (stored, classes) = (Arc::new(stored), classes.into());
        ImageSet { name, rule, shape, stored, noise: None, labels, classes, kept: None }
    }

    /// Noise made of these images, which must be none themselves: as many, in their order.
    pub(super) fn with_noise(&self, noise: Noise) -> Result<Self> {
        if self.noise.is_some() {
            return Err(Error::Usage(format!("noise made of \"{}\": wanted images, not noise", self.name)));
        }
        let name = format!("{noise} of {}", self.name);
        let labels = if noise.keeps_labels() { self.labels.clone() } else { [].into() };
        Ok(ImageSet { name, labels, noise: Some(noise), ..self.clone() })
    }

    /// What it is, for reports: "cifar100-bin /data/cifar-100, test split", "gaussian(0.1) of ...".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How images were brought to the shape, for reports; one line.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Shape of every image.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Number of images, at least 1.
    pub fn len(&self) -> usize {
        self.kept.as_ref().map_or(self.stored.len(), |kept| kept.len())
    }

    /// Never: a set has an image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes, where folders have them; else empty.
    pub fn class_names(&self) -> &[String] {
        &self.classes
    }

    /// Whether its images have labels; those of a set that is out of distribution count in its own classes.
    pub fn has_labels(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Position of image `i < len()` in the set before it was restricted.
    pub fn position(&self, i: usize) -> usize {
        assert!(i < self.len(), "image {i} of {}", self.len());
        self.kept.as_ref().map_or(i, |kept| kept[i] as usize)
    }

    /// Label of image `i < len()`.
    pub fn label(&self, i: usize) -> Option<u32> {
        self.labels.get(self.position(i)).copied()
    }

    /// The images whose labels are among `classes`, in their order. An error where it has no labels or none is left.
    pub fn of_classes(&self, classes: &[u32]) -> Result<Self> {
        if !self.has_labels() {
            return Err(Error::data(&self.name, "has no labels, so it cannot be restricted to classes"));
        }
        let wanted = |i: &usize| self.label(*i).is_some_and(|label| classes.contains(&label));
        let kept: Arc<[u32]> = (0..self.len()).filter(wanted).map(|i| self.position(i) as u32).collect();
        if kept.is_empty() {
            let what = format!("none of its {} images is of the {} wanted classes", self.len(), classes.len());
            return Err(Error::data(&self.name, what));
        }
        let name = format!("{}, {} classes", self.name, classes.len());
        Ok(ImageSet { name, kept: Some(kept), ..self.clone() })
    }

    /// All images in order, `batch` at a time (the last one may be ragged), normalised by `preprocess`, N,C,H,W; labels
    /// where there are some. The same for any number of `threads`, which work ahead (0: none does). Of large batches fewer
    /// threads work, so that no more than 1 GiB waits.
    ///
    /// An item is an error where a file cannot be read or decoded; it names the file.
    pub fn batches(
        &self,
        batch: usize,
        preprocess: &Preprocess,
        threads: usize,
    ) -> Result<impl Iterator<Item = Result<Batch>> + use<>> {
        if batch == 0 {
            return Err(Error::Usage("batch = 0: wanted at least 1".into()));
        }
        preprocess.check(self.shape.c)?;
        let batch = batch.min(self.len());
        let bytes = self.shape.numel().saturating_mul(batch).saturating_mul(size_of::<f32>());
        // A worker holds one batch and `AHEAD` more wait.
        let threads = threads.min((AHEAD_BYTES / bytes.max(1)).saturating_sub(AHEAD).max(1));
        let (set, preprocess, tables) = (self.clone(), preprocess.clone(), preprocess.tables());
        let make = move |index: usize| {
            let (from, size) = (index * batch, set.shape.numel());
            let n = batch.min(set.len() - from);
            let mut out = Batch { n, images: vec![0.0; n * size], labels: Vec::new() };
            let mut work = Work { scratch: Scratch::default(), raw: Vec::new(), pixels: vec![0; size] };
            for (k, image) in out.images.chunks_exact_mut(size).enumerate() {
                set.image(from + k, &mut work, &preprocess, &tables, image)?;
                out.labels.extend(set.label(from + k));
            }
            Ok(out)
        };
        Ok(Prefetch::new(0, self.len().div_ceil(batch), threads, make))
    }

    fn image(
        &self,
        i: usize,
        work: &mut Work,
        preprocess: &Preprocess,
        tables: &[[f32; 256]],
        out: &mut [f32],
    ) -> Result<()> {
        let (position, plane) = (self.position(i), self.shape.h * self.shape.w);
        let planes = out.chunks_exact_mut(plane);
        let Some(noise) = &self.noise else {
            self.stored.read(position, self.shape, work)?;
            for ((out, pixels), table) in planes.zip(work.pixels.chunks_exact(plane)).zip(tables) {
                out.iter_mut().zip(pixels).for_each(|(o, &p)| *o = table[usize::from(p)]);
            }
            return Ok(());
        };
        if noise.reads(position) {
            self.stored.read(position, self.shape, work)?;
        }
        let numbers = noise.image(position, self.shape, &work.pixels);
        let constants = preprocess.mean.iter().zip(&preprocess.std);
        for ((out, numbers), (m, s)) in planes.zip(numbers.chunks_exact(plane)).zip(constants) {
            out.iter_mut().zip(numbers).for_each(|(o, v)| *o = ((v - m) / s) as f32);
        }
        Ok(())
    }
}

/// Buffers kept from image to image.
struct Work {
    scratch: Scratch,
    /// An image as stored.
    raw: Vec<u8>,
    /// An image of the set's shape.
    pixels: Vec<u8>,
}

impl Stored {
    fn len(&self) -> usize {
        match self {
            Stored::Split(split, _) => split.len(),
            Stored::Folder(folder, _) => folder.len(),
        }
    }

    /// Image `i` of `shape` to `work.pixels`.
    fn read(&self, i: usize, shape: ImageShape, work: &mut Work) -> Result<()> {
        match self {
            Stored::Split(split, _) if split.shape() == shape => split.image(i, &mut work.pixels),
            Stored::Split(split, fit) => {
                work.raw.resize(split.shape().numel(), 0);
                split.image(i, &mut work.raw);
                fit.apply(split.shape(), &work.raw, &mut work.scratch, &mut work.pixels).map_err(Error::Failed)?;
            }
            Stored::Folder(folder, fit) => {
                let image = folder.image(i)?;
                let from = ImageShape { c: 3, h: image.h, w: image.w };
                fit.apply(from, &image.planes, &mut work.scratch, &mut work.pixels)
                    .map_err(|what| Error::data(folder.path(i), what))?;
            }
        }
        Ok(())
    }
}
