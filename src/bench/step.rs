//! `bench step`: training steps of a sparse network and of the same network dense, block by block in turn, so that whatever
//! else the machine does hits both alike.
//!
//! A step is what a training loop pays for: the batch into the backend, forward, loss, backward, SGD. Images and labels are
//! random, from the seed, in memory. Before anything is timed every operation of a step is checked (`check/mod.rs`), unless
//! the caller has had the very same checked before.

use super::check::{Names, Verified};
use super::gpu::step::{GpuFigures, GpuReport};
use super::memory::{self, Memory};
use super::phases::{Phase, Watched};
use super::stats::Spread;
use crate::backend::{Backend, Bytes, Real, SgdStep, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Net};
use crate::models;
use crate::rng::{Purpose, Stream};
use crate::sparsity::{Density, Draw, Mask, Method, Pattern, Ratio, draw_patterns};
use std::time::Instant;

/// Timed steps of one network before the other has its turn. One more in front of them is not timed: it finds the caches
/// full of the other network's numbers.
pub(super) const BLOCK: usize = 5;

/// The update that is timed: Nesterov momentum and weight decay as in training, a rate at which no network diverges.
pub(super) const UPDATE: SgdStep = SgdStep { lr: 0.01, momentum: 0.9, weight_decay: 5e-4, nesterov: true };

/// What to measure.
#[derive(Clone, Debug)]
pub struct Config {
    /// Network, as [`models::by_name`] knows it.
    pub model: String,
    /// Its width; `None`: its standard one, or the only one it has.
    pub width: Option<usize>,
    /// Channels of an image.
    pub channels: usize,
    /// Rows and columns of an image.
    pub image_size: usize,
    /// Classes.
    pub classes: usize,
    /// How layers share the density.
    pub method: Method,
    /// Share of the maskable weights that is kept.
    pub density: Density,
    /// What masks are made of.
    pub pattern: Pattern,
    /// Images a step.
    pub batch: usize,
    /// Timed steps of each network, at least 1.
    pub steps: usize,
    /// Steps before them, at least 1; the peak of memory is read after these.
    pub warmup: usize,
    /// Seed of images, labels, masks and initial values.
    pub seed: u64,
    /// Whether a step of each network is checked in f64 before it is timed. Only what was checked before, by the same
    /// program with the same configuration, may go without: a check of ResNet-50 at batch 16 takes minutes.
    pub check: bool,
}

impl Config {
    /// FLOPs of a training step, of the kept weights: 2 a multiply-accumulate, three times forward (paper section 6).
    ///
    /// # Errors
    /// A configuration that no network fits.
    pub fn flops(&self) -> Result<u64> {
        Ok(6 * Network::new(self, self.method, self.density)?.macs * self.batch as u64)
    }
}

/// Builds the backend of a network.
pub type Make<'a, B> = &'a dyn Fn(Spec) -> Result<B>;

/// What is measured beside the sparse network.
pub enum Dense<'a, B> {
    /// Nothing.
    Skip,
    /// The same network without masks.
    Beside {
        /// Its backend.
        make: Make<'a, B>,
        /// Measures its memory in a process of its own, if it can.
        memory: &'a dyn Fn() -> Option<Memory>,
    },
}

/// One network's figures.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Milliseconds of a step.
    pub step_ms: Spread,
    /// Milliseconds in each phase of a step; a phase the network does not have is left out.
    pub phases_ms: Vec<(Phase, Spread)>,
    /// Memory of a process that trains this network alone; `None` where it cannot be measured.
    pub memory: Option<Memory>,
    /// Bytes that the backend holds, by kind.
    pub bytes: Bytes,
    /// Multiply-accumulates of one image forward, of the kept weights.
    pub macs: u64,
    /// What was verified; `None` if the check was left out.
    pub verified: Option<Verified>,
    /// What a GPU has beside these.
    pub gpu: Option<GpuFigures>,
}

impl Figures {
    /// Images a second in the median step.
    pub fn images_per_s(&self, batch: usize) -> f64 {
        1e3 * batch as f64 / self.step_ms.median
    }

    /// 10^9 FLOP a second of a training step that needs `macs` an image forward: 2 FLOP each, and three times that for the
    /// step (paper section 6).
    pub fn gflops(&self, macs: u64, batch: usize) -> f64 {
        6.0 * macs as f64 * batch as f64 / (1e6 * self.step_ms.median)
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Device, instruction set, threads.
    pub backend: String,
    /// Weights that can be pruned.
    pub maskable: u64,
    /// Of these, kept.
    pub nnz: u64,
    /// Multiply-accumulates of one image forward in the dense network.
    pub macs_dense: u64,
    /// The network as asked for.
    pub sparse: Figures,
    /// The same network dense.
    pub dense: Option<Figures>,
    /// Sparse step / dense step, over pairs of neighbouring blocks (medians within a block).
    pub ratio: Option<Spread>,
    /// How steps were timed on a GPU.
    pub gpu: Option<GpuReport>,
}

/// Measures `config` on the backend that `make` builds.
///
/// # Errors
/// A configuration that no network fits; a wrong result, in which case there is no time; a loss that is not finite, checked
/// or not.
pub fn run<B: Backend>(config: &Config, make: Make<B>, dense: Dense<B>) -> Result<Report> {
    let start = memory::resident();
    let network = Network::new(config, config.method, config.density)?;
    // The network first: it refuses what memory does not hold.
    let mut sparse = Runner::new("sparse", &network, config, make)?;
    let batch = Batch::<B::Real>::new(config);
    sparse.warm_up(&batch, config.warmup)?;
    let memory =
        start.zip(memory::peak()).map(|(start_rss_bytes, peak_rss_bytes)| Memory { start_rss_bytes, peak_rss_bytes });
    // From here on memory does not matter any more.
    if config.check {
        sparse.verify(&network, &batch)?;
    }
    let mut other = match dense {
        Dense::Skip => None,
        Dense::Beside { make, memory } => {
            let memory = memory();
            let network = Network::new(config, Method::Dense, Density::ONE)?;
            let mut runner = Runner::new("dense", &network, config, make)?;
            runner.warm_up(&batch, config.warmup)?;
            if config.check {
                runner.verify(&network, &batch)?;
            }
            Some((runner, memory))
        }
    };
    let mut ratios = vec![];
    let mut left = config.steps;
    while left > 0 {
        let steps = left.min(BLOCK);
        let a = sparse.block(&batch, steps)?;
        if let Some((dense, _)) = &mut other {
            ratios.push(a / dense.block(&batch, steps)?);
        }
        left -= steps;
    }
    Ok(Report {
        backend: sparse.net.backend().describe(),
        maskable: network.masks.iter().map(|m| m.size() as u64).sum(),
        nnz: network.masks.iter().map(|m| m.nnz() as u64).sum(),
        macs_dense: network.graph.macs().iter().sum(),
        sparse: sparse.figures(memory)?,
        dense: other.map(|(runner, memory)| runner.figures(memory)).transpose()?,
        ratio: Spread::of(&ratios),
        gpu: None,
    })
}

/// A network in training of which a step was checked, to be timed by other means than [`run`], such as the Criterion benches.
pub struct CheckedStep<B: Backend> {
    runner: Runner<B>,
    batch: Batch<B::Real>,
}

impl<B: Backend> CheckedStep<B> {
    /// The network of `config`, warmed up and then checked, whatever `check` says; `steps` does not matter.
    ///
    /// # Errors
    /// As [`run`].
    pub fn new(config: &Config, make: Make<B>) -> Result<Self> {
        let network = Network::new(config, config.method, config.density)?;
        let mut runner = Runner::new("timed", &network, config, make)?;
        let batch = Batch::new(config);
        runner.warm_up(&batch, config.warmup)?;
        runner.verify(&network, &batch)?;
        Ok(CheckedStep { runner, batch })
    }

    /// One training step.
    ///
    /// # Errors
    /// A loss that is not finite.
    pub fn step(&mut self) -> Result<()> {
        self.runner.step(&self.batch).map(drop)
    }
}

/// Memory of this process while it trains `config`: nothing else must have been done in it.
///
/// # Errors
/// As [`run`], but nothing is verified.
pub fn memory_alone<B: Backend>(config: &Config, make: Make<B>) -> Result<Option<Memory>> {
    let start = memory::resident();
    let network = Network::new(config, config.method, config.density)?;
    let mut runner = Runner::new("dense", &network, config, make)?;
    runner.warm_up(&Batch::new(config), config.warmup)?;
    Ok(start.zip(memory::peak()).map(|(start_rss_bytes, peak_rss_bytes)| Memory { start_rss_bytes, peak_rss_bytes }))
}

/// A network with its masks.
pub(super) struct Network {
    pub(super) graph: Graph,
    pub(super) masks: Vec<Mask>,
    /// Multiply-accumulates of one image forward, of the kept weights.
    pub(super) macs: u64,
}

impl Network {
    pub(super) fn new(config: &Config, method: Method, density: Density) -> Result<Self> {
        let Config { width, channels, classes, image_size, .. } = *config;
        let graph = models::by_name(&config.model, width, channels, classes, image_size)?;
        let (layers, ratio) = (graph.maskable(), Ratio::try_from(method)?);
        let masks = draw_patterns(&layers, &ratio, density, config.pattern, Draw::Exact, config.seed)?;
        // Exact: a layer's multiply-accumulates are its weights times its output pixels.
        let macs = graph.macs().iter().zip(&masks).map(|(&m, mask)| m / mask.size() as u64 * mask.nnz() as u64).sum();
        Ok(Network { graph, masks, macs })
    }
}

/// Random images and labels.
pub(super) struct Batch<R> {
    pub(super) images: Vec<R>,
    pub(super) labels: Vec<u32>,
}

impl<R: Real> Batch<R> {
    fn new(config: &Config) -> Self {
        let images = Stream::new(config.seed, Purpose::Data, "bench images");
        let labels = Stream::new(config.seed, Purpose::Data, "bench labels");
        let numbers = (config.batch * config.channels * config.image_size * config.image_size) as u64;
        Batch {
            images: (0..numbers).map(|i| R::from_f64(images.normal(i))).collect(),
            labels: (0..config.batch as u64).map(|i| labels.below(i, config.classes as u64) as u32).collect(),
        }
    }
}

/// A network in training.
struct Runner<B: Backend> {
    name: &'static str,
    net: Net<Watched<B>>,
    macs: u64,
    steps_done: usize,
    step_ms: Vec<f64>,
    phases_ms: Vec<Vec<f64>>,
    verified: Option<Verified>,
}

impl<B: Backend> Runner<B> {
    fn new(name: &'static str, network: &Network, config: &Config, make: Make<B>) -> Result<Self> {
        let make = |spec| Ok(Watched::new(make(spec)?));
        let mut net = Net::new(&network.graph, &network.masks, config.batch, make)?;
        net.check_batch(config.batch)?;
        net.init(&network.graph, config.seed);
        let phases_ms = vec![vec![]; Phase::ALL.len()];
        Ok(Runner { name, net, macs: network.macs, steps_done: 0, step_ms: vec![], phases_ms, verified: None })
    }

    /// One training step; its milliseconds.
    fn step(&mut self, batch: &Batch<B::Real>) -> Result<f64> {
        let start = Instant::now();
        let loss = self.net.forward_backward(&batch.images, &batch.labels, 0.0);
        self.net.sgd(UPDATE);
        let ms = 1e3 * start.elapsed().as_secs_f64();
        self.steps_done += 1;
        if !loss.loss_sum.is_finite() {
            return Err(Error::Failed(format!(
                "bench step: the loss of the {} network became {} in step {}: no time is given",
                self.name, loss.loss_sum, self.steps_done
            )));
        }
        Ok(ms)
    }

    fn warm_up(&mut self, batch: &Batch<B::Real>, steps: usize) -> Result<()> {
        (0..steps).try_for_each(|_| self.step(batch).map(drop))
    }

    /// One step, checked operation by operation.
    fn verify(&mut self, network: &Network, batch: &Batch<B::Real>) -> Result<()> {
        self.net.backend_mut().begin_check(Names::of(&network.graph));
        let done = self.step(batch);
        let name = self.name;
        let wrong = |what| {
            Error::Failed(format!("bench step: the {name} network's result is wrong, so no time is given: {what}"))
        };
        self.verified = Some(self.net.backend_mut().end_check().map_err(wrong)?);
        done.map(drop)
    }

    /// Timed steps after one that is not; their median in milliseconds.
    fn block(&mut self, batch: &Batch<B::Real>, steps: usize) -> Result<f64> {
        self.step(batch)?;
        self.net.backend_mut().take();
        let before = self.step_ms.len();
        for _ in 0..steps {
            let ms = self.step(batch)?;
            let mut seconds = self.net.backend_mut().take();
            seconds[Phase::Other as usize] = ms / 1e3 - seconds.iter().sum::<f64>();
            self.step_ms.push(ms);
            self.phases_ms.iter_mut().zip(seconds).for_each(|(all, s)| all.push(1e3 * s));
        }
        Ok(spread(&self.step_ms[before..])?.median)
    }

    fn figures(self, memory: Option<Memory>) -> Result<Figures> {
        let phases = Phase::ALL.iter().zip(&self.phases_ms).filter(|(_, ms)| ms.iter().any(|&v| v > 0.0));
        Ok(Figures {
            step_ms: spread(&self.step_ms)?,
            phases_ms: phases.map(|(&phase, ms)| Ok((phase, spread(ms)?))).collect::<Result<_>>()?,
            memory,
            bytes: self.net.backend().bytes(),
            macs: self.macs,
            verified: self.verified,
            gpu: None,
        })
    }
}

pub(super) fn spread(ms: &[f64]) -> Result<Spread> {
    Spread::of(ms).ok_or_else(|| Error::Failed("bench step: no step was timed; --steps wants at least 1".into()))
}
