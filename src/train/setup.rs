//! Everything a run is made of before the first step: data, network, masks. A pure function of the configuration.

use crate::config::Config;
use crate::data::{self, Dataset, ImageShape, Loader, Preprocess, Split};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::metrics::{Flops, LayerWork};
use crate::models;
use crate::report::DataInfo;
use crate::sparsity::{Density, Mask, draw_patterns};

/// A run's parts.
pub(super) struct Setup {
    /// With `preprocess` resolved.
    pub config: Config,
    pub preprocess: Preprocess,
    pub data: Dataset,
    /// Training images less the validation split.
    pub train: Split,
    pub val: Option<Split>,
    pub graph: Graph,
    pub density: Density,
    pub masks: Vec<Mask>,
}

impl Setup {
    /// Opens the data, splits it, resolves the normalisation, builds the network, draws the masks.
    pub fn new(config: &Config) -> Result<Self> {
        config.check()?;
        let data = data::open(&config.data)?;
        let graph = network(config, data.shape, data.classes)?;
        let (train, val) = match config.validation {
            0 => (data.train.clone(), None),
            count => data.train.split_last(count).map(|(train, val)| (train, Some(val)))?,
        };
        let preprocess = match &config.preprocess {
            Some(given) => given.clone(),
            None => data.preprocess(&train)?,
        };
        preprocess.check(data.shape.c)?;
        config.augment.check(data.shape)?;
        let (density, masks) = (config.target()?, draw_masks(config, &graph)?);
        let config = Config { preprocess: Some(preprocess.clone()), ..config.clone() };
        Ok(Setup { config, preprocess, data, train, val, graph, density, masks })
    }

    /// Training batches: shuffled, augmented.
    pub fn train_loader(&self, threads: usize) -> Result<Loader> {
        let (batch, augment) = (self.config.batch_size, Some(self.config.augment));
        Loader::new(self.train.clone(), batch, self.preprocess.clone(), augment, self.config.seed.data, threads)
    }

    /// Evaluation batches: in file order, normalised only.
    pub fn eval_loader(&self, split: &Split, threads: usize) -> Result<Loader> {
        Loader::new(split.clone(), self.config.batch_size, self.preprocess.clone(), None, 0, threads)
    }

    /// Images a pass at most: a batch_size beyond the data takes no memory.
    pub fn largest_batch(&self) -> usize {
        let val = self.val.as_ref().map_or(0, Split::len);
        self.config.batch_size.min(self.train.len().max(val).max(self.data.test.len()))
    }

    /// What the data is, for checkpoints and the summary.
    pub fn data_info(&self) -> DataInfo {
        let d = &self.data;
        DataInfo {
            source: d.source.clone(),
            kind: d.kind.into(),
            checksum: d.checksum.clone(),
            image: d.shape,
            classes: d.classes,
            train: self.train.len(),
            val: self.val.as_ref().map_or(0, Split::len),
            test: d.test.len(),
        }
    }

    /// Maskable weights, and how many are kept.
    pub fn weights(&self) -> (u64, u64) {
        let sum = |count: fn(&Mask) -> usize| self.masks.iter().map(|m| count(m) as u64).sum();
        (sum(Mask::size), sum(Mask::nnz))
    }

    /// Layers in blocks, masked layers, and weights kept in blocks.
    pub fn in_blocks(&self) -> (usize, usize, u64) {
        let blocks = || self.masks.iter().filter(|m| m.block.is_some());
        let masked = self.masks.iter().filter(|m| m.kept.is_some()).count();
        (blocks().count(), masked, blocks().map(|m| m.nnz() as u64).sum())
    }

    /// FLOPs of one image forward at this input size.
    pub fn flops(&self) -> Flops {
        let work = |(macs, mask): (u64, &Mask)| {
            let (size, kept) = (mask.size() as u64, mask.nnz() as u64);
            LayerWork { macs, size, density: mask.density, kept }
        };
        Flops::of(self.graph.macs().into_iter().zip(&self.masks).map(work))
    }
}

/// The masks of a configuration's network.
pub(super) fn draw_masks(c: &Config, graph: &Graph) -> Result<Vec<Mask>> {
    draw_patterns(&graph.maskable(), c.method, c.target()?, c.pattern, c.mask_draw, c.seed.mask)
}

/// The network of a configuration for images of `shape`.
pub(super) fn network(config: &Config, shape: ImageShape, classes: usize) -> Result<Graph> {
    if shape.h != shape.w {
        let what = format!("{} takes square images, got {shape} (C x H x W)", config.model);
        return Err(Error::data(&config.data, what));
    }
    models::by_name(&config.model, config.width, shape.c, classes, shape.h)
}
