//! Everything a run is made of before the first step: data, network, masks. A pure function of the configuration.

use super::masks::{self, Images};
use crate::backend::Backend;
use crate::checkpoint::{GivenWeights, NetState, read_weights};
use crate::config::Config;
use crate::data::{self, Dataset, ImageShape, Loader, Preprocess, Split};
use crate::error::{Error, Result};
use crate::graph::{Graph, InitScale, Net};
use crate::metrics::{Flops, LayerWork};
use crate::models;
use crate::report::DataInfo;
use crate::sparsity::{Density, Mask, Method};
use std::path::Path;

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
    /// Initial values from a file.
    pub given: Option<GivenWeights>,
}

impl Setup {
    /// Opens the data, splits it, resolves the normalisation, builds the network, draws the masks. `saved`: the run that is
    /// gone on with, whose masks stay where they come from scores or a file. `threads`: for scores.
    pub fn new(config: &Config, saved: Option<&NetState>, threads: usize) -> Result<Self> {
        config.check()?;
        let data = data::open(&config.data)?;
        let mut graph = network(config, data.shape, data.classes)?;
        let given = config.init.as_ref().filter(|_| saved.is_none());
        let given = given.map(|path| read_weights(Path::new(path), &graph)).transpose()?;
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
        let images = Images { train: &train, preprocess: &preprocess, classes: data.classes, threads };
        // What follows from the density alone comes first: scores are of the weights that are trained.
        let early = config.init_scale == InitScale::Density && config.method != Method::File;
        if early {
            graph.scale_init(config.init_scale, config.target()?.value(), &[]);
        }
        let masks = masks::of_run(config, &graph, &images, given.as_ref(), saved)?;
        let (maskable, nnz) = count(&masks);
        let density = match config.method {
            Method::File => Density::from_density(nnz as f64 / maskable as f64)?,
            _ => config.target()?,
        };
        if !early {
            graph.scale_init(config.init_scale, density.value(), &masks);
        }
        let config = Config { preprocess: Some(preprocess.clone()), ..config.clone() };
        Ok(Setup { config, preprocess, data, train, val, graph, density, masks, given })
    }

    /// Puts the initial values of a file into a network that has just begun.
    ///
    /// # Errors
    /// A kept weight that the file does not give.
    pub fn give_values<B: Backend<Real = f32>>(&self, net: &mut Net<B>) -> Result<()> {
        let Some(given) = &self.given else { return Ok(()) };
        let mut state = net.state();
        for (i, param) in state.params.iter_mut().enumerate() {
            let size = param.shape.iter().product();
            param.values = given.values(i, param.kept.as_deref(), size).ok_or_else(|| {
                let file = self.config.init.as_deref().unwrap_or_default();
                let what = format!("it has no value for some weights of {} that the mask keeps", param.name);
                Error::data(file, what)
            })?;
        }
        if let Some(norms) = &given.norms {
            state.norms.clone_from(norms);
        }
        net.load(&state)
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
        count(&self.masks)
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

/// Maskable weights, and how many are kept.
fn count(masks: &[Mask]) -> (u64, u64) {
    let sum = |count: fn(&Mask) -> usize| masks.iter().map(|m| count(m) as u64).sum();
    (sum(Mask::size), sum(Mask::nnz))
}

/// The network of a configuration for images of `shape`.
pub(super) fn network(config: &Config, shape: ImageShape, classes: usize) -> Result<Graph> {
    let mut graph = match &config.network_toml {
        Some(text) => models::own_network(text, &config.model, [shape.c, shape.h, shape.w], classes)?,
        None if shape.h != shape.w => {
            let what = format!("{} takes square images, got {shape} (C x H x W)", config.model);
            return Err(Error::data(&config.data, what));
        }
        None => models::by_name(&config.model, config.width, shape.c, classes, shape.h)?,
    };
    graph.set_fan(config.init_mode);
    graph.set_weight_decay(config.weight_decay_exempt);
    Ok(graph)
}
