//! What runs the steps of a run: batches made by the host and fed one by one ([`HostFed`]), or a device that has them all.

use super::setup::Setup;
use crate::backend::{Backend, BatchLoss, SgdStep};
use crate::checkpoint::{Running, Scaling};
use crate::config::Config;
use crate::data::{Batch, Loader, Split};
use crate::error::Result;
use crate::graph::Net;
use crate::optim::LearningRate;
use crate::report::Score;

/// The next batch of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Position {
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Batch of the epoch, counted from 0.
    pub batch: u64,
    /// Steps done.
    pub step: u64,
}

/// Some training steps, done.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretch {
    /// Loss and number of images of each step, in order.
    pub steps: Vec<(BatchLoss, usize)>,
    /// The loss that was not finite, of the step after these: it was not done.
    pub diverged: Option<f64>,
    /// The loss scale of fp16 after them.
    pub scaling: Option<Scaling>,
}

/// Runs the training steps and evaluations of one network.
pub(super) trait Trainer {
    /// Where the network lies.
    type Device: Backend<Real = f32>;

    fn net(&self) -> &Net<Self::Device>;
    fn net_mut(&mut self) -> &mut Net<Self::Device>;
    /// Trains on at least one batch, from `at` on, never beyond the end of its epoch nor the next step whose gradient is
    /// logged ([`until_logged`]). `scaling`: what the last stretch left,
    /// which the run may have from a checkpoint.
    fn train(&mut self, at: Position, rate: &LearningRate, scaling: Option<Scaling>) -> Result<Stretch>;
    /// Whether the loss of a batch of training images is finite with the weights as they are now.
    fn sound(&mut self) -> Result<bool>;
    /// Loss and accuracy over a split, with the running statistics.
    fn score(&mut self, images: &Split) -> Result<Score>;
}

/// Steps from `done` to the next one whose gradient norm is logged, itself included: the first one, and every `every`-th
/// after it; 0: none is.
pub(super) fn until_logged(every: u64, done: u64) -> u64 {
    if every == 0 { u64::MAX } else { (every - done % every) % every + 1 }
}

/// The SGD step of a configuration.
pub(super) fn sgd_step(config: &Config, lr: f64) -> SgdStep {
    SgdStep { lr, momentum: config.momentum, weight_decay: config.weight_decay, nesterov: config.nesterov }
}

/// Batches are made by worker threads and given to the network one a step.
pub(super) struct HostFed<'a, B: Backend<Real = f32>> {
    setup: &'a Setup,
    threads: usize,
    net: Net<B>,
    /// The epoch being run, and the number of its next batch.
    epoch: Option<(u64, u64, Box<dyn Iterator<Item = Batch>>)>,
    newest: Option<Batch>,
}

impl<'a, B: Backend<Real = f32>> HostFed<'a, B> {
    pub fn new(setup: &'a Setup, threads: usize, net: Net<B>) -> Self {
        HostFed { setup, threads, net, epoch: None, newest: None }
    }
}

impl<B: Backend<Real = f32>> Trainer for HostFed<'_, B> {
    type Device = B;

    fn net(&self) -> &Net<B> {
        &self.net
    }

    fn net_mut(&mut self) -> &mut Net<B> {
        &mut self.net
    }

    fn train(&mut self, at: Position, rate: &LearningRate, scaling: Option<Scaling>) -> Result<Stretch> {
        let config = &self.setup.config;
        if self.epoch.as_ref().is_none_or(|&(epoch, batch, _)| (epoch, batch) != (at.epoch, at.batch)) {
            self.epoch = None; // its workers end before others begin
            let batches = self.setup.train_loader(self.threads)?.epoch(at.epoch, at.batch as usize);
            self.epoch = Some((at.epoch, at.batch, Box::new(batches)));
        }
        // There is no loss scale here: that of a run which comes from a GPU waits for its return.
        let none = Stretch { scaling, ..Stretch::default() };
        let Some((_, next, batches)) = &mut self.epoch else { return Ok(none) };
        let Some(batch) = batches.next() else { return Ok(none) };
        *next += 1;
        let loss = self.net.forward_backward(&batch.images, &batch.labels, config.label_smoothing);
        if !loss.loss_sum.is_finite() {
            return Ok(Stretch { diverged: Some(loss.loss_sum), ..none });
        }
        self.net.sgd(sgd_step(config, rate.at(at.step)));
        let n = batch.n;
        self.newest = Some(batch);
        Ok(Stretch { steps: vec![(loss, n)], ..none })
    }

    fn sound(&mut self) -> Result<bool> {
        let loss = self.newest.as_ref().map(|batch| self.net.infer(&batch.images, &batch.labels));
        Ok(loss.is_none_or(|loss| loss.loss_sum.is_finite()))
    }

    fn score(&mut self, images: &Split) -> Result<Score> {
        Ok(score(&mut self.net, &self.setup.eval_loader(images, self.threads)?))
    }
}

/// Mean loss and accuracy over all batches of `loader`, with the running statistics.
pub(super) fn score<B: Backend<Real = f32>>(net: &mut Net<B>, loader: &Loader) -> Score {
    let mut sums = Running::default();
    for batch in loader.epoch(0, 0) {
        let loss = net.infer(&batch.images, &batch.labels);
        sums.add(loss.loss_sum, loss.correct, batch.n as u64);
    }
    sums.score()
}
