//! A network in training on a GPU, checked, captured and timed.

use super::data::Data;
use super::step::{GpuConfig, GpuFigures};
use crate::backend::gpu::{Crops, DeviceImages, Driver, Feed, GpuBackend, StepState};
use crate::backend::{Backend, BatchLoss, Store};
use crate::bench::check::{Names, Verified};
use crate::bench::memory::Memory;
use crate::bench::phases::{Phase, Watched};
use crate::bench::step::{Config, Figures, Make, Network, UPDATE, spread};
use crate::error::{Error, Result};
use crate::graph::{Net, OnGpu, StepKind};
use crate::rng::{Purpose, Stream};
use std::time::Instant;

/// Most samples until a dynamic loss scale overflows no more.
const SETTLING: usize = 16;
/// What the state consists of that the graph must leave as the operations do.
const STORES: [Store; 3] = [Store::Values, Store::Momentum, Store::Running];

/// A network in training.
pub(super) struct Runner<'a, D: Driver> {
    name: &'static str,
    config: &'a Config,
    pub net: Net<Watched<GpuBackend<D>>>,
    macs: u64,
    pub data: Data,
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
    checked_numbers: usize,
    /// Images that were checked.
    pub checked_batch: Option<usize>,
    graph_steps_verified: Option<usize>,
}

impl<'a, D: Driver> Runner<'a, D> {
    pub fn new(
        name: &'static str,
        network: &Network,
        config: &'a Config,
        gpu_config: GpuConfig,
        make: Make<GpuBackend<D>>,
    ) -> Result<Self> {
        let GpuConfig { scale, checked_numbers } = gpu_config;
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
        feed.begin_epoch(&*driver, &order, crops.words(), &vec![UPDATE.lr as f32; data.steps])?;
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
            checked_numbers,
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

    /// Waits, and looks at the losses of `steps` steps. Returns them, and the steps whose update was left out.
    fn end(&mut self, steps: usize) -> Result<(Vec<BatchLoss>, u64)> {
        let losses = self.feed.losses(&**gpu(&self.net).driver(), 0..steps)?;
        losses.iter().try_for_each(|loss| self.finite(loss))?;
        let state = gpu(&self.net).state()?;
        Ok((losses, state.held))
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

    pub fn warm_up(&mut self) -> Result<()> {
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
    pub fn prepare(&mut self, network: &Network) -> Result<()> {
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
        let mut images = (self.checked_numbers / an_image.max(1)).clamp(1, self.config.batch);
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
        // The last images are still there: the graph must bring its own.
        let (x, n) = (self.net.program().input, self.config.batch);
        let poison = vec![f32::NAN; n * self.net.program().spec.tensors[x.0 as usize].plane.len()];
        self.net.backend_mut().write_tensor(x, n, &poison);
        self.begin(1.0)?;
        self.replay()?;
        let got_losses = self.feed.losses(&**gpu(&self.net).driver(), 0..self.data.steps)?;
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
    pub fn block(&mut self, samples: usize) -> Result<f64> {
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
    pub fn launched_block(&mut self, samples: usize) -> Result<()> {
        let steps = self.data.steps;
        self.sample(|r| r.launch(steps))?;
        for _ in 0..samples {
            let (ms, _) = self.sample(|r| r.launch(steps))?;
            self.launched_ms.push(ms);
        }
        Ok(())
    }

    pub fn figures(self, memory: Option<Memory>) -> Result<Figures> {
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
