//! Steps on a GPU that has everything: several are captured in a graph and replayed, and the host looks at their losses now
//! and then.

use super::setup::Setup;
use super::trainer::{Position, Stretch, Trainer, until_logged};
use crate::backend::gpu::{Crops, DeviceImages, Driver, Feed, GpuBackend, LossScale, StepState};
use crate::checkpoint::{Running, Scaling};
use crate::data::{PadMode, Split, epoch_crops, epoch_order};
use crate::error::Result;
use crate::graph::{Net, StepKind};
use crate::optim::LearningRate;
use crate::report::Score;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Most steps of a graph: more make no launch cheaper, and take longer to capture.
const STEPS_A_GRAPH: usize = 16;

/// What a graph holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    training: bool,
    /// Which of the splits on the device.
    split: usize,
    images: usize,
    steps: usize,
}

/// Trains and evaluates a network whose data lie on the device.
pub(super) struct DeviceFed<'a, D: Driver> {
    setup: &'a Setup,
    net: Net<GpuBackend<D>>,
    feed: Feed<D>,
    /// Splits on the device; the first is that of training.
    splits: Vec<(Split, DeviceImages<D>)>,
    graphs: HashMap<Key, D::Graph>,
    scale: LossScale,
    /// Where the device stands: the epoch that was entered, and its next batch.
    at: Option<Position>,
    /// How long the device computes before the host waits for the losses.
    watch_every: Duration,
    /// Seconds of a step, from the launch to the loss, of the last stretch.
    pace: Option<f64>,
}

impl<'a, D: Driver> DeviceFed<'a, D> {
    /// # Errors
    /// No memory for the data set.
    pub fn new(setup: &'a Setup, net: Net<GpuBackend<D>>, scale: LossScale, watch_every: Duration) -> Result<Self> {
        let driver = net.backend().driver().clone();
        let splits = [Some(&setup.train), setup.val.as_ref(), Some(&setup.data.test)];
        let most = splits.iter().flatten().map(|s| s.len()).max().unwrap_or(0);
        let feed = Feed::new(&*driver, most, setup.config.batch_size, &setup.preprocess.tables())?;
        let mut device = DeviceFed {
            setup,
            net,
            feed,
            splits: vec![],
            graphs: HashMap::new(),
            scale,
            at: None,
            watch_every,
            pace: None,
        };
        device.resident(&setup.train)?;
        Ok(device)
    }

    /// The number of a split on the device, where it goes if it is not there.
    fn resident(&mut self, split: &Split) -> Result<usize> {
        if let Some(i) = self.splits.iter().position(|(s, _)| s.same(split)) {
            return Ok(i);
        }
        let labels: Vec<u32> = (0..split.len()).map(|i| split.label(i)).collect();
        let base = if split.is_empty() { 0 } else { split.position(0) };
        let driver = self.net.backend().driver();
        let images = DeviceImages::new(&**driver, &split.planes(), &labels, base)?;
        self.splits.push((split.clone(), images));
        Ok(self.splits.len() - 1)
    }

    /// Enters the epoch of `at` and all that steers its steps from there on.
    fn enter(&mut self, at: Position, rate: &LearningRate, scaling: Option<Scaling>) -> Result<()> {
        let config = &self.setup.config;
        let first_step = at.step - at.batch;
        let order = epoch_order(config.seed.data, at.epoch, self.setup.train.len());
        let crops = epoch_crops(config.seed.data, at.epoch);
        let rates: Vec<f32> =
            (first_step..first_step + rate.steps_per_epoch).map(|step| rate.at(step) as f32).collect();
        let driver = self.net.backend().driver().clone();
        self.feed.begin_epoch(&*driver, &order, crops, &rates)?;
        let first = Scaling { scale: self.scale.first(), good: 0, held: scaling.map_or(0, |s| s.held) };
        let scaling = scaling.filter(|_| self.scale == LossScale::Dynamic).unwrap_or(first);
        self.net.backend_mut().set_state(&StepState {
            lr: 0.0, // the first step takes its own
            momentum: config.momentum as f32,
            weight_decay: config.weight_decay as f32,
            nesterov: u32::from(config.nesterov),
            loss_scale: scaling.scale,
            unscale: 1.0 / scaling.scale,
            good: scaling.good,
            hold: 0,
            broken: 0,
            step: at.step,
            first: first_step,
            batch: at.batch,
            held: scaling.held,
            ..StepState::default()
        })
    }

    fn crops(&self) -> Crops {
        let a = self.setup.config.augment;
        Crops { pad: a.pad as u32, reflect: a.pad_mode == PadMode::Reflect, flip: a.flip }
    }

    /// Captures a graph unless it is there, and starts it.
    fn replay(&mut self, key: Key) -> Result<()> {
        let driver = self.net.backend().driver().clone();
        if !self.graphs.contains_key(&key) {
            let kind =
                StepKind { crops: self.crops(), smoothing: self.setup.config.label_smoothing, scale: self.scale };
            let (feed, images, net) = (&self.feed, &self.splits[key.split].1, &mut self.net);
            let graph = driver.capture(&mut || {
                (0..key.steps).try_for_each(|_| match key.training {
                    true => net.start_training_step(feed, images, kind, key.images),
                    false => net.start_evaluation_step(feed, images, key.images),
                })
            })?;
            self.graphs.insert(key, graph);
        }
        driver.replay(&self.graphs[&key])
    }

    /// Starts batches `from..` of `count` images: graphs of many full ones, then of one, then the ragged last one, until all
    /// are started, or `most`. Returns the next batch.
    fn start(&mut self, training: bool, split: usize, from: usize, most: usize) -> Result<usize> {
        let (size, count) = (self.setup.config.batch_size, self.splits[split].1.count());
        let (full, mut next) = (count / size, from);
        while next < full {
            let left = most - (next - from);
            if left == 0 {
                return Ok(next);
            }
            let steps = if left.min(full - next) >= STEPS_A_GRAPH { STEPS_A_GRAPH } else { 1 };
            self.replay(Key { training, split, images: size, steps })?;
            next += steps;
        }
        if next * size < count && next - from < most {
            self.replay(Key { training, split, images: count - next * size, steps: 1 })?;
            next += 1;
        }
        Ok(next)
    }
}

impl<D: Driver> Trainer for DeviceFed<'_, D> {
    type Device = GpuBackend<D>;

    fn net(&self) -> &Net<GpuBackend<D>> {
        &self.net
    }

    fn net_mut(&mut self) -> &mut Net<GpuBackend<D>> {
        &mut self.net
    }

    fn train(&mut self, at: Position, rate: &LearningRate, scaling: Option<Scaling>) -> Result<Stretch> {
        if self.at != Some(at) {
            self.enter(at, rate, scaling)?;
        }
        let (size, count) = (self.setup.config.batch_size, self.setup.train.len());
        // A launch does not wait: how much is launched at once follows from how long the last steps took.
        let most =
            self.pace.map_or(1.0, |step| (self.watch_every.as_secs_f64() / step.max(1e-9)).clamp(1.0, 1e6)) as usize;
        let most = most.min(until_logged(self.setup.config.gradient_norm_every, at.step) as usize);
        let began = Instant::now();
        let next = self.start(true, 0, at.batch as usize, most)?;
        let state = self.net.backend().state()?;
        let driver = self.net.backend().driver().clone();
        let losses = self.feed.losses(&*driver, at.batch as usize..next)?;
        self.pace = Some(began.elapsed().as_secs_f64() / losses.len().max(1) as f64);
        let good = if state.broken == 0 { losses.len() } else { (state.broken - 1 - at.step) as usize };
        let images = |batch: usize| size.min(count - batch * size);
        let steps = losses.iter().take(good).enumerate().map(|(i, &l)| (l, images(at.batch as usize + i)));
        let steps: Vec<_> = steps.collect();
        self.at = Some(Position { batch: next as u64, step: at.step + (next as u64 - at.batch), ..at });
        let scaling = Scaling { scale: state.loss_scale, good: state.good, held: state.held };
        let scaling = self.scale.overflows(self.net.backend().precision()).then_some(scaling);
        Ok(Stretch { steps, diverged: losses.get(good).map(|l| l.loss_sum), scaling })
    }

    fn sound(&mut self) -> Result<bool> {
        // What this overwrites, the loss of the epoch's first batch, was read.
        self.net.backend().begin_evaluation(&mut self.feed, 0)?;
        self.start(false, 0, 0, 1)?;
        let driver = self.net.backend().driver().clone();
        Ok(self.feed.losses(&*driver, 0..1)?.iter().all(|loss| loss.loss_sum.is_finite()))
    }

    fn score(&mut self, images: &Split) -> Result<Score> {
        let split = self.resident(images)?;
        self.net.backend().begin_evaluation(&mut self.feed, 0)?;
        let batches = self.start(false, split, 0, usize::MAX)?;
        let driver = self.net.backend().driver().clone();
        let (size, count) = (self.setup.config.batch_size, images.len());
        let mut sums = Running::default();
        for (i, loss) in self.feed.losses(&*driver, 0..batches)?.into_iter().enumerate() {
            sums.add(loss.loss_sum, loss.correct, size.min(count - i * size) as u64);
        }
        Ok(sums.score())
    }
}
