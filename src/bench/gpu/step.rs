//! `bench step` on a GPU: steps as `train` runs them there. Images, labels, order, rates and losses lie on the device, several
//! steps are captured in a graph, and a sample is a replay of it between two synchronisations.
//!
//! Beside it the same steps launched kernel by kernel, which says what the graph gains; and op by op, each waited for, which
//! says where the time goes. Before anything is timed the operations are checked in f64, and the graph must leave, to the bit,
//! what the operations one by one leave.

use crate::backend::gpu::{Crops, DeviceImages, Driver, Feed, GpuBackend, LossScale, StepState};
use crate::backend::{Backend, BatchLoss, Store};
use crate::bench::check::{Names, Verified};
use crate::bench::memory::{self, Memory};
use crate::bench::phases::{Phase, Watched};
use crate::bench::stats::Spread;
use crate::bench::step::{BLOCK, Config, Figures, Make, Network, Report, UPDATE, spread};
use crate::error::{Error, Result};
use crate::graph::{Net, OnGpu, StepKind};
use crate::rng::{Purpose, Stream};
use crate::sparsity::{Density, Method};
use std::time::Instant;

/// Most steps of a graph, as in training.
const STEPS_A_GRAPH: usize = 16;
/// Samples that there should be at least: fewer steps make a graph where there are few.
const SAMPLES: usize = 10;
/// Most bytes of images: fewer steps make a graph where they are large.
const IMAGE_BYTES: usize = 256 << 20;
/// Numbers in all tensors together that are checked: the host takes about a minute for them.
const CHECKED_NUMBERS: usize = 100_000_000;
/// Most samples until a dynamic loss scale overflows no more.
const SETTLING: usize = 16;
/// Random bytes that the images are made of.
const POOL: usize = (1 << 20) + 7;
/// What the state consists of that the graph must leave as the operations do.
const STORES: [Store; 3] = [Store::Values, Store::Momentum, Store::Running];

/// How steps were timed.
#[derive(Clone, Debug)]
pub struct GpuReport {
    /// Steps of a graph.
    pub steps_a_graph: usize,
    /// Timed replays of each network.
    pub samples: usize,
    /// Images of the step that was checked in f64: fewer than the batch where that would take too long.
    pub checked_batch: Option<usize>,
    /// The dense network through the vendor's libraries.
    pub vendor: Option<Figures>,
}

/// What a GPU has beside the figures of any device.
#[derive(Clone, Debug)]
pub struct GpuFigures {
    /// Kernels a step.
    pub launches: u64,
    /// Milliseconds of a step whose kernels are launched one by one.
    pub launched_ms: Spread,
    /// Steps of the graph that left, to the bit, what the operations one by one left; `None` if nothing was checked.
    pub graph_steps_verified: Option<usize>,
    /// Loss scale at the end.
    pub loss_scale: f32,
    /// Timed steps whose update was left out, because a gradient overflowed.
    pub held_steps: u64,
    /// Bytes of images, labels and order on the device.
    pub data_bytes: u64,
}

/// Networks to be measured beside the sparse one.
pub struct Twins<'a, D: Driver> {
    /// The dense network with this engine's kernels.
    pub dense: Option<Make<'a, GpuBackend<D>>>,
    /// The dense network through cuBLAS and cuDNN: a backend whose plan says so.
    pub vendor: Option<Make<'a, GpuBackend<D>>>,
}

/// Measures `config` on the backend that `make` builds.
///
/// # Errors
/// A configuration that no network fits, a device that fails or has no memory; a wrong result, or a graph that does not what
/// its operations do, in which case there is no time; a loss that is not finite.
pub fn run<D: Driver>(
    config: &Config,
    scale: LossScale,
    make: Make<GpuBackend<D>>,
    twins: &Twins<D>,
) -> Result<Report> {
    let start = memory::resident();
    let network = Network::new(config, config.method, config.density)?;
    let mut sparse = Runner::new("sparse", &network, config, scale, make)?;
    sparse.warm_up()?;
    let memory =
        start.zip(memory::peak()).map(|(start_rss_bytes, peak_rss_bytes)| Memory { start_rss_bytes, peak_rss_bytes });
    sparse.prepare(&network)?;
    let twin = |name, make: Option<Make<GpuBackend<D>>>| {
        let runner = make.map(|make| {
            let dense = Network::new(config, Method::Dense, Density::ONE)?;
            let mut runner = Runner::new(name, &dense, config, scale, make)?;
            runner.warm_up()?;
            runner.prepare(&dense)?;
            Ok::<_, Error>(runner)
        });
        runner.transpose()
    };
    let mut others = [twin("dense", twins.dense)?, twin("vendor's dense", twins.vendor)?];
    let samples = config.steps.div_ceil(sparse.data.steps);
    let (mut left, mut ratios) = (samples, vec![]);
    while left > 0 {
        let samples = left.min(BLOCK);
        let ours = sparse.block(samples)?;
        let theirs: Vec<Option<f64>> =
            others.iter_mut().map(|r| r.as_mut().map(|r| r.block(samples)).transpose()).collect::<Result<_>>()?;
        ratios.extend(theirs[0].map(|dense| ours / dense));
        sparse.launched_block(samples)?;
        others.iter_mut().flatten().try_for_each(|r| r.launched_block(samples))?;
        left -= samples;
    }
    let [dense, vendor] = others.map(|r| r.map(|r| r.figures(None)).transpose());
    let gpu =
        GpuReport { steps_a_graph: sparse.data.steps, samples, checked_batch: sparse.checked_batch, vendor: vendor? };
    Ok(Report {
        backend: sparse.net.backend().describe(),
        maskable: network.masks.iter().map(|m| m.size() as u64).sum(),
        nnz: network.masks.iter().map(|m| m.nnz() as u64).sum(),
        macs_dense: network.graph.macs().iter().sum(),
        sparse: sparse.figures(memory)?,
        dense: dense?,
        ratio: Spread::of(&ratios),
        gpu: Some(gpu),
    })
}

/// Random images as bytes, a batch for each step of a graph, with labels.
struct Data {
    steps: usize,
    batch: usize,
    /// Bytes of an image.
    image: usize,
    /// Bytes of one of its channels.
    plane: usize,
    pixels: Vec<u8>,
    labels: Vec<u32>,
    tables: Vec<[f32; 256]>,
}

impl Data {
    fn new(config: &Config) -> Self {
        let plane = config.image_size * config.image_size;
        let image = config.channels * plane;
        let fits = IMAGE_BYTES / (config.batch * image).max(1);
        let steps = (config.steps / SAMPLES).min(STEPS_A_GRAPH).min(fits).max(1);
        let bytes = Stream::new(config.seed, Purpose::Data, "bench images");
        let labels = Stream::new(config.seed, Purpose::Data, "bench labels");
        let images = steps * config.batch;
        let pool: Vec<u8> = (0..POOL.min(images * image) as u64).map(|i| bytes.below(i, 256) as u8).collect();
        // Of mean 0 and variance 1, as a data set is normalised.
        let table = std::array::from_fn(|v| (v as f32 - 127.5) / 73.9);
        Data {
            steps,
            batch: config.batch,
            image,
            plane,
            pixels: pool.iter().copied().cycle().take(images * image).collect(),
            labels: (0..images as u64).map(|i| labels.below(i, config.classes as u64) as u32).collect(),
            tables: vec![table; config.channels],
        }
    }

    /// The first `n` images of a step's batch as the device sees them, and their labels.
    fn batch(&self, step: usize, n: usize) -> (Vec<f32>, &[u32]) {
        let first = step * self.batch;
        let pixels = &self.pixels[first * self.image..][..n * self.image];
        let value = |(i, &v): (usize, &u8)| self.tables[i % self.image / self.plane][usize::from(v)];
        (pixels.iter().enumerate().map(value).collect(), &self.labels[first..][..n])
    }

    fn bytes(&self) -> u64 {
        (self.pixels.len() + 8 * self.labels.len()) as u64
    }
}

/// A network in training.
struct Runner<'a, D: Driver> {
    name: &'static str,
    config: &'a Config,
    net: Net<Watched<GpuBackend<D>>>,
    macs: u64,
    data: Data,
    feed: Feed<D>,
    images: DeviceImages<D>,
    kind: StepKind,
    /// Loss scale of the next step.
    scale: f32,
    graph: Option<D::Graph>,
    launches: u64,
    held_steps: u64,
    steps_done: usize,
    step_ms: Vec<f64>,
    launched_ms: Vec<f64>,
    phases_ms: Vec<Vec<f64>>,
    verified: Option<Verified>,
    checked_batch: Option<usize>,
    graph_steps_verified: Option<usize>,
}

impl<'a, D: Driver> Runner<'a, D> {
    fn new(
        name: &'static str,
        network: &Network,
        config: &'a Config,
        scale: LossScale,
        make: Make<GpuBackend<D>>,
    ) -> Result<Self> {
        // The network first: it refuses what memory does not hold.
        let make = |spec| Ok(Watched::new(make(spec)?));
        let mut net = Net::new(&network.graph, &network.masks, config.batch, make)?;
        net.check_batch(config.batch)?;
        net.init(&network.graph, config.seed);
        net.backend_mut().unwatch(true);
        let data = Data::new(config);
        let driver = gpu(&net).driver().clone();
        let count = data.labels.len();
        let mut feed = Feed::new(&*driver, count, config.batch, &data.tables)?;
        let order: Vec<u32> = (0..count as u32).collect();
        let crops = Stream::new(config.seed, Purpose::Data, "bench crops");
        feed.begin_epoch(&*driver, &order, &crops, &vec![UPDATE.lr as f32; data.steps])?;
        Ok(Runner {
            name,
            config,
            net,
            macs: network.macs,
            images: DeviceImages::new(&*driver, &data.pixels, &data.labels, 0)?,
            data,
            feed,
            kind: StepKind { crops: Crops::default(), smoothing: 0.0, scale },
            scale: scale.first(),
            graph: None,
            launches: 0,
            held_steps: 0,
            steps_done: 0,
            step_ms: vec![],
            launched_ms: vec![],
            phases_ms: vec![vec![]; Phase::ALL.len()],
            verified: None,
            checked_batch: None,
            graph_steps_verified: None,
        })
    }

    /// Goes back to the first batch; no step was held or has broken the network.
    fn begin(&mut self, scale: f32) -> Result<()> {
        let state = StepState { loss_scale: scale, unscale: 1.0 / scale, ..StepState::from(UPDATE) };
        self.net.backend_mut().gpu_mut().set_state(&state)
    }

    /// Starts `steps` steps kernel by kernel.
    fn launch(&mut self, steps: usize) -> Result<()> {
        let Runner { net, feed, images, kind, config, .. } = self;
        (0..steps).try_for_each(|_| net.start_training_step(feed, images, *kind, config.batch))
    }

    fn replay(&self) -> Result<()> {
        self.graph.as_ref().map_or(Ok(()), |graph| gpu(&self.net).driver().replay(graph))
    }

    /// Waits, and looks at the losses of `steps` steps. Returns them, and the steps of a dynamic scale that were held.
    fn end(&mut self, steps: usize) -> Result<(Vec<BatchLoss>, u64)> {
        let losses = self.feed.losses(&**gpu(&self.net).driver(), 0..steps)?;
        losses.iter().try_for_each(|loss| self.finite(loss))?;
        let state = gpu(&self.net).state()?;
        let held =
            if self.kind.scale == LossScale::Dynamic { (steps as u64).saturating_sub(state.good.into()) } else { 0 };
        Ok((losses, held))
    }

    fn finite(&mut self, loss: &BatchLoss) -> Result<()> {
        self.steps_done += 1;
        if loss.loss_sum.is_finite() {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "bench step: the loss of the {} network became {} in step {}: no time is given",
            self.name, loss.loss_sum, self.steps_done
        )))
    }

    fn warm_up(&mut self) -> Result<()> {
        let mut left = self.config.warmup;
        while left > 0 {
            let steps = left.min(self.data.steps);
            self.begin(self.scale)?;
            self.launch(steps)?;
            self.end(steps)?;
            self.scale = gpu(&self.net).state()?.loss_scale;
            left -= steps;
        }
        Ok(())
    }

    /// Checks the operations, captures the graph, checks that it does the same, and lets the loss scale settle.
    fn prepare(&mut self, network: &Network) -> Result<()> {
        if self.config.check {
            self.verify(network)?;
        }
        let driver = gpu(&self.net).driver().clone();
        let before = driver.launches();
        let steps = self.data.steps;
        self.graph = Some(driver.capture(&mut || self.launch(steps))?);
        self.launches = (driver.launches() - before) / steps as u64;
        self.one_by_one()?;
        for _ in 0..SETTLING {
            if self.sample(|r| r.replay())?.1 == 0 {
                break;
            }
        }
        Ok(())
    }

    /// One step, checked operation by operation, on as many images of the batch as that is quick for.
    fn verify(&mut self, network: &Network) -> Result<()> {
        let an_image: usize = self.net.program().spec.tensors.iter().map(|t| t.plane.len()).sum();
        let mut images = (CHECKED_NUMBERS / an_image.max(1)).clamp(1, self.config.batch);
        while images < self.config.batch && self.net.check_batch(images).is_err() {
            images += 1;
        }
        self.begin(1.0)?;
        let backend = self.net.backend_mut();
        backend.unwatch(false);
        backend.begin_check(Names::of(&network.graph));
        let done = self.operations(0, images);
        let backend = self.net.backend_mut();
        backend.unwatch(true);
        let name = self.name;
        let wrong = |what| {
            Error::Failed(format!("bench step: the {name} network's result is wrong, so no time is given: {what}"))
        };
        self.verified = Some(backend.end_check().map_err(wrong)?);
        self.checked_batch = Some(images);
        done.map(drop)
    }

    /// The operations of a step one by one, with images from the host.
    fn operations(&mut self, step: usize, n: usize) -> Result<(BatchLoss, f64)> {
        let (images, labels) = self.data.batch(step, n);
        let start = Instant::now();
        let loss = self.net.forward_backward(&images, labels, 0.0);
        self.net.sgd(UPDATE);
        let seconds = start.elapsed().as_secs_f64();
        self.finite(&loss)?;
        Ok((loss, seconds))
    }

    /// The steps of the graph, operation by operation, each waited for: its phases. Then the graph from the same state, which
    /// must leave the same bytes; without a loss scale, as the operations have none.
    fn one_by_one(&mut self) -> Result<()> {
        let before = self.stores();
        self.begin(1.0)?;
        self.net.backend_mut().unwatch(false);
        let mut losses = vec![];
        for step in 0..self.data.steps {
            self.net.backend_mut().take();
            let (loss, whole) = self.operations(step, self.config.batch)?;
            let mut seconds = self.net.backend_mut().take();
            seconds[Phase::Other as usize] = (whole - seconds.iter().sum::<f64>()).max(0.0);
            self.phases_ms.iter_mut().zip(seconds).for_each(|(all, s)| all.push(1e3 * s));
            losses.push(loss);
        }
        self.net.backend_mut().unwatch(true);
        if !self.config.check {
            return Ok(());
        }
        let wanted = self.stores();
        for (store, data) in STORES.into_iter().zip(&before) {
            self.net.backend_mut().write_store(store, data);
        }
        self.begin(1.0)?;
        self.replay()?;
        let (got_losses, _) = self.end(self.data.steps)?;
        let got = self.stores();
        let fault = |what: String| {
            Error::Failed(format!(
                "bench step: the captured steps of the {} network do not what their operations do one by one, so no time \
                 is given: {what}",
                self.name
            ))
        };
        if let Some(i) = (0..losses.len()).find(|&i| losses[i] != got_losses[i]) {
            return Err(fault(format!("the loss of step {i} is {:?}, wanted {:?}", got_losses[i], losses[i])));
        }
        for ((store, got), wanted) in STORES.into_iter().zip(got).zip(wanted) {
            let differs = (0..got.len()).find(|&i| got[i].to_bits() != wanted[i].to_bits());
            if let Some(i) = differs {
                return Err(fault(format!("{store:?} {i} is {:e}, wanted {:e}", got[i], wanted[i])));
            }
        }
        self.graph_steps_verified = Some(self.data.steps);
        Ok(())
    }

    fn stores(&self) -> [Vec<f32>; 3] {
        STORES.map(|store| self.net.backend().read_store(store))
    }

    /// Milliseconds a step, and steps held: `start` starts all steps of a graph.
    fn sample(&mut self, start: impl FnOnce(&mut Self) -> Result<()>) -> Result<(f64, u64)> {
        let driver = gpu(&self.net).driver().clone();
        self.begin(self.scale)?;
        driver.synchronise()?;
        let began = Instant::now();
        start(self)?;
        driver.synchronise()?;
        let ms = 1e3 * began.elapsed().as_secs_f64() / self.data.steps as f64;
        let (_, held) = self.end(self.data.steps)?;
        self.scale = gpu(&self.net).state()?.loss_scale;
        Ok((ms, held))
    }

    /// Timed replays after one that is not; their median in milliseconds a step.
    fn block(&mut self, samples: usize) -> Result<f64> {
        self.sample(|r| r.replay())?;
        let before = self.step_ms.len();
        for _ in 0..samples {
            let (ms, held) = self.sample(|r| r.replay())?;
            self.step_ms.push(ms);
            self.held_steps += held;
        }
        Ok(spread(&self.step_ms[before..])?.median)
    }

    /// The same steps launched kernel by kernel.
    fn launched_block(&mut self, samples: usize) -> Result<()> {
        let steps = self.data.steps;
        self.sample(|r| r.launch(steps))?;
        for _ in 0..samples {
            let (ms, _) = self.sample(|r| r.launch(steps))?;
            self.launched_ms.push(ms);
        }
        Ok(())
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
            gpu: Some(GpuFigures {
                launches: self.launches,
                launched_ms: spread(&self.launched_ms)?,
                graph_steps_verified: self.graph_steps_verified,
                loss_scale: self.scale,
                held_steps: self.held_steps,
                data_bytes: self.data.bytes(),
            }),
        })
    }
}

/// The backend inside.
fn gpu<D: Driver>(net: &Net<Watched<GpuBackend<D>>>) -> &GpuBackend<D> {
    net.backend().gpu()
}
