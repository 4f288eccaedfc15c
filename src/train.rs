//! The training loop: a resolved configuration in, a run directory and a summary out. It prints nothing; whoever calls it
//! watches through an [`Observer`].

mod device;
mod evaluation;
mod masks;
mod measure;
mod on_device;
mod plan;
mod resumed;
mod run;
mod setup;
mod trainer;

use crate::backend::cpu::plan::Plan;
use crate::backend::cpu::{CpuBackend, Isa};
use crate::backend::gpu::{self, Driver, GpuBackend, GpuPlan, SizesOnly, cuda::Cuda};
use crate::backend::{Backend, Spec};
use crate::checkpoint::GivenWeights;
use crate::config::Config;
use crate::data::ImageShape;
use crate::error::Result;
use crate::graph::{Graph, Net};
use crate::report::{Score, Summary};
use crate::sparsity::Mask;
use device::DeviceFed;
use plan::{GpuPlanFile, PlanFile};
use resumed::{resumed, saved_masks};
use run::{Prepared, Run};
use setup::Setup;
use std::path::PathBuf;
use std::time::Duration;
use trainer::HostFed;

pub use evaluation::{Asked, Evaluated, Evaluation, InsideClasses};
pub use measure::{FgsmResult, Measured, OodResult};
pub use on_device::{Device, OnDevice};

/// What a run needs beside its configuration. Plan and device change a result, in rounding; the rest changes none.
#[derive(Clone, Debug)]
pub struct Options {
    /// Run directory; it exists and holds nothing, or the run that is resumed.
    pub out: PathBuf,
    /// The run directory whose `last.safetensors` is gone on from; `None`: a fresh run.
    pub resume: Option<PathBuf>,
    /// Plan file for the device; `None`: the default plan, or that of the run that is gone on with, which another one is not
    /// allowed to replace.
    pub plan: Option<PathBuf>,
    /// Device.
    pub on: OnDevice,
    /// Worker threads; 0: one a core.
    pub threads: usize,
    /// Time between checkpoints inside an epoch; `None`: at the end of each epoch only.
    pub checkpoint_every: Option<Duration>,
    /// How long a device that has everything goes on by itself before losses, stop requests and the clock are looked at:
    /// long beside a wait for it, short for whoever watches. At least a step; no result depends on it.
    pub watch_every: Duration,
    /// The command line, for the summary.
    pub command_line: Vec<String>,
}

impl Options {
    /// What a person wants of [`Options::watch_every`].
    pub const WATCH_EVERY: Duration = Duration::from_millis(100);
}

/// What is known before the first step.
#[derive(Clone, Debug)]
pub struct StartInfo {
    /// Network, such as "resnet20", or "resnet20-32" where the width is not 16.
    pub model: String,
    /// Device, such as "cpu avx2, 2 threads".
    pub device: String,
    /// Convolutions, and how many of them run otherwise than by default.
    pub planned: (usize, usize),
    /// Data source and kind.
    pub data: String,
    /// Run directory.
    pub out: PathBuf,
    /// Layer-wise ratio, as the configuration names it.
    pub method: String,
    /// Density asked for, over the maskable weights.
    pub density_target: f64,
    /// Density realised, `nnz / maskable`.
    pub density: f64,
    /// Parameters of the dense network.
    pub params: u64,
    /// Parameters stored.
    pub stored: u64,
    /// Maskable weights.
    pub maskable: u64,
    /// Maskable weights kept.
    pub nnz: u64,
    /// Pattern of the masks, as the configuration names it, if it has blocks.
    pub pattern: Option<String>,
    /// Layers in blocks, masked layers, and weights kept in blocks.
    pub in_blocks: (usize, usize, u64),
    /// FLOPs (2 x MAC) of one image, forward, of the dense network at this input size.
    pub flops_dense: u64,
    /// FLOPs (2 x MAC) of one image, forward, of the sparse network at this input size.
    pub flops_sparse: u64,
    /// Channels, rows, columns of an image.
    pub image: ImageShape,
    /// Classes.
    pub classes: usize,
    /// Training images.
    pub train_images: usize,
    /// Validation images, 0 without such a split.
    pub val_images: usize,
    /// Test images.
    pub test_images: usize,
    /// Epochs of the run.
    pub epochs: u64,
    /// Steps an epoch, the ragged last batch counted.
    pub steps_per_epoch: u64,
    /// Steps already done by the checkpoint the run goes on from.
    pub resumed_at_step: Option<u64>,
}

/// One training step.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo {
    /// Epoch, counted from 1.
    pub epoch: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Steps done in all.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Training images a second, recently.
    pub images_per_s: f64,
    /// Running mean loss of the epoch.
    pub loss: f64,
    /// Running accuracy of the epoch, a fraction.
    pub accuracy: f64,
    /// Seconds left, estimated.
    pub eta_s: f64,
}

/// One finished epoch.
#[derive(Clone, Copy, Debug)]
pub struct EpochInfo {
    /// Epoch, counted from 1.
    pub epoch: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Over the training images as they were seen (augmented, weights moving).
    pub train: Score,
    /// Validation split, if any.
    pub val: Option<Score>,
    /// Test split, where it was evaluated.
    pub test: Option<Score>,
    /// Seconds since the start of the run, those before a resume counted.
    pub elapsed_s: f64,
    /// Training images a second over the epoch.
    pub images_per_s: f64,
}

/// Watches a run.
pub trait Observer {
    /// Before the first step.
    fn start(&mut self, info: &StartInfo);
    /// After each step, or some at once on a device that has everything: how things stand after the last.
    fn step(&mut self, p: &StepInfo);
    /// After each epoch.
    fn epoch(&mut self, e: &EpochInfo);
    /// At the end of a run that was not stopped.
    fn finish(&mut self, s: &Summary);
    /// Asked after each [`Observer::step`]: whether to write a checkpoint and return [`crate::Error::Stopped`].
    fn stop_requested(&self) -> bool;
}

/// Runs `config` to its end and leaves the run directory behind.
///
/// # Errors
/// Data, network or masks that cannot be had; a loss that is not finite (the last checkpoint stays); a stop request
/// ([`crate::Error::Stopped`], after a checkpoint); a folder that cannot be written.
pub fn train(config: &Config, options: &Options, observer: &mut dyn Observer) -> Result<Summary> {
    let threads = workers(options.threads);
    let options = &Options { threads, ..options.clone() };
    match options.on.of_run(options)? {
        Device::Auto | Device::Cpu => {
            let cpu = |spec: Spec, plan: Option<&Plan>| CpuBackend::with_plan(spec, threads, Isa::detect(), plan);
            let setup = Setup::new(config, saved_masks(config, options)?.as_ref(), threads)?;
            let state = resumed(&setup, options)?;
            Run::new(&setup, options, state, host_fed(&setup, options, cpu)?)?.finish(observer)
        }
        Device::Cuda => {
            gpu::probe()?;
            on_gpu(config, options, &Cuda::open, observer)
        }
        #[cfg(feature = "emu")]
        Device::Emulated => {
            use crate::backend::gpu::emu::{Emulated, Order};
            on_gpu(config, options, &|| Emulated::new(Order::Ascending), observer)
        }
    }
}

/// Runs on the device that `open` opens.
fn on_gpu<D: Driver>(
    config: &Config,
    options: &Options,
    open: &dyn Fn() -> Result<D>,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let setup = Setup::new(config, saved_masks(config, options)?.as_ref(), options.threads)?;
    let state = resumed(&setup, options)?;
    let file = plan::gpu_plan_of_run(options)?;
    let (precision, scale) = options.on.numbers(file.as_ref().map(GpuPlanFile::named))?;
    let resident = plan::fits_device(setup.train.len() * setup.data.shape.numel(), precision, scale)?;
    let batch = setup.largest_batch();
    let net = Net::new(&setup.graph, &setup.masks, batch, |spec| {
        let plan = file.as_ref().map(|f| f.fit(&spec)).transpose()?;
        GpuBackend::new(open()?, spec, precision, plan)
    })?;
    // There need not be room for the dense network.
    let sizes = |spec| GpuBackend::new(SizesOnly::of(&**net.backend().driver()), spec, precision, None);
    let bytes_dense = Net::new(&setup.graph, &[], batch, sizes)?.backend().bytes();
    let gpu_plan = Some(GpuPlan { loss_scale: Some(scale), ..net.backend().plan().clone() });
    let names = setup.graph.convs().iter().map(|c| c.name.as_str());
    let plan = Plan::default_for(&net.program().spec, names);
    let planned = (plan.layers.len(), 0);
    if !resident {
        let trainer = HostFed::new(&setup, options.threads, net);
        return Run::new(&setup, options, state, Prepared { trainer, bytes_dense, plan, gpu_plan, planned })?
            .finish(observer);
    }
    let trainer = DeviceFed::new(&setup, net, scale, options.watch_every)?;
    Run::new(&setup, options, state, Prepared { trainer, bytes_dense, plan, gpu_plan, planned })?.finish(observer)
}

/// The network on what `make` builds for it with a plan, or without for the default one.
fn host_fed<'a, B: Backend<Real = f32>>(
    setup: &'a Setup,
    options: &Options,
    make: impl Fn(Spec, Option<&Plan>) -> Result<B>,
) -> Result<Prepared<HostFed<'a, B>>> {
    let file = PlanFile::of_run(options)?;
    // Now, and gone before the network is there: at the end of a long run there might be no room for both.
    let bytes_dense = Net::new(&setup.graph, &[], setup.largest_batch(), |spec| make(spec, None))?.backend().bytes();
    let net = Net::new(&setup.graph, &setup.masks, setup.largest_batch(), |spec| {
        let plan = file.as_ref().map(|f| f.fit(&spec)).transpose()?;
        make(spec, plan)
    })?;
    let names = setup.graph.convs().iter().map(|c| c.name.as_str());
    let default = Plan::default_for(&net.program().spec, names);
    let plan = file.map_or_else(|| default.clone(), |f| f.plan);
    let planned = (plan.layers.len(), plan.differences(&default).count());
    let trainer = HostFed::new(setup, options.threads, net);
    Ok(Prepared { trainer, bytes_dense, plan, gpu_plan: None, planned })
}

/// A network as [`train`] would begin with it.
pub struct Beginning {
    /// The network.
    pub graph: Graph,
    /// Its masks, in the order of [`Graph::maskable`].
    pub masks: Vec<Mask>,
    given: Option<GivenWeights>,
    seed: u64,
}

impl Beginning {
    /// Draws masks and looks at the data, where there are scores at the images.
    ///
    /// # Errors
    /// Data, network, masks or initial values that cannot be had.
    pub fn of(config: &Config, threads: usize) -> Result<Self> {
        let Setup { graph, masks, given, .. } = Setup::new(config, None, workers(threads))?;
        Ok(Beginning { graph, masks, given, seed: config.seed.init })
    }

    /// Initial values of all parameters, dense: those of pruned weights too.
    ///
    /// # Errors
    /// A file of initial values that lacks those of pruned weights.
    pub fn values(&self) -> Result<Vec<Vec<f32>>> {
        masks::initial(&self.graph, self.given.as_ref(), self.seed)
    }
}

/// Threads asked for, or one a core: the loader takes a 0 for "none".
fn workers(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, |n| n.get()) }
}
