//! Everything a run is made of before the first step: data, network, masks. Pure functions of the configuration.

use crate::config::Config;
use crate::data::{self, Dataset, Loader, Preprocess, Split};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::models;
use crate::sparsity::{self, Density, Mask};

/// A run's parts.
pub(super) struct Setup {
    /// With `preprocess` resolved.
    pub config: Config,
    pub data: Dataset,
    /// Training images less the validation split.
    pub train: Split,
    pub val: Option<Split>,
    pub graph: Graph,
    pub density: Density,
    pub masks: Vec<Mask>,
}

impl Setup {
    /// Opens the data, draws the masks, resolves the normalisation.
    pub fn new(config: &Config) -> Result<Self> {
        let data = data::open(&config.data)?;
        let graph = build(config, &data)?;
        let (train, val) = match config.validation {
            0 => (data.train.clone(), None),
            count => data.train.split_last(count).map(|(train, val)| (train, Some(val)))?,
        };
        let preprocess = match &config.preprocess {
            Some(p) => p.clone(),
            None => data.family.and_then(data::published).unwrap_or_else(|| {
                let (mean, std) = train.mean_std();
                Preprocess { mean, std }
            }),
        };
        check_preprocess(&preprocess, data.shape.c)?;
        let density = config.density()?;
        let masks = sparsity::draw_masks(&graph.maskable(), config.method, density, config.mask_draw, config.seed.mask)?;
        let config = Config { preprocess: Some(preprocess), ..config.clone() };
        Ok(Setup { config, data, train, val, graph, density, masks })
    }

    /// Training batches: shuffled, augmented.
    pub fn train_loader(&self, threads: usize) -> Loader {
        let augment = Some(self.config.augment);
        Loader::new(self.train.clone(), self.config.batch_size, self.preprocess(), augment, self.config.seed.data, threads)
    }

    /// Evaluation batches: in file order, normalised only.
    pub fn eval_loader(&self, split: &Split, threads: usize) -> Loader {
        Loader::new(split.clone(), self.config.batch_size, self.preprocess(), None, 0, threads)
    }

    fn preprocess(&self) -> Preprocess {
        self.config.preprocess.clone().expect("resolved in new")
    }

    /// FLOPs (2 x MAC) of one image forward: dense, and of the kept weights.
    pub fn flops(&self) -> (u64, u64) {
        let macs = self.graph.macs();
        let sparse = macs.iter().zip(&self.masks).map(|(&m, mask)| m / mask.size() as u64 * mask.nnz() as u64);
        (2 * macs.iter().sum::<u64>(), 2 * sparse.sum::<u64>())
    }
}

/// The network of a configuration for the images of a data set.
pub(super) fn build(config: &Config, data: &Dataset) -> Result<Graph> {
    let shape = data.shape;
    if shape.h != shape.w {
        return Err(Error::data(&data.source, format!("wanted square images, got {}x{} pixels", shape.h, shape.w)));
    }
    models::by_name(&config.model, config.width, shape.c, data.classes, shape.h)
}

/// Constants fit the data: one finite mean and one positive deviation a channel.
pub(super) fn check_preprocess(p: &Preprocess, channels: usize) -> Result<()> {
    let fits = p.mean.len() == channels && p.std.len() == channels;
    if !fits || !p.mean.iter().all(|m| m.is_finite()) || !p.std.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(Error::Usage(format!(
            "preprocess: wanted {channels} finite means and {channels} positive standard deviations, got mean {:?} and \
             std {:?} (images of one value have none: give preprocess.mean and preprocess.std)",
            p.mean, p.std
        )));
    }
    Ok(())
}
