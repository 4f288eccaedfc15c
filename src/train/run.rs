//! The loop: steps, evaluation, metrics, checkpoints, stop and resume.

use super::setup::Setup;
use super::{EpochInfo, Observer, Options, StartInfo, StepInfo};
use crate::backend::{Backend, BatchLoss, SgdStep, Spec};
use crate::checkpoint::{Best, Checkpoint, Meta, Position, Sums};
use crate::config::Selection;
use crate::data::Loader;
use crate::error::{Error, Result};
use crate::graph::Net;
use crate::optim::LearningRate;
use crate::report::{self, Metrics, Record, Score, Split, Summary};
use std::path::PathBuf;
use std::time::Instant;

/// A run between two steps.
pub(super) struct Run<'a, B: Backend<Real = f32>, M> {
    setup: &'a Setup,
    options: &'a Options,
    make: M,
    net: Net<B>,
    rate: LearningRate,
    metrics: Metrics,
    position: Position,
    /// Loss and accuracy of the epoch so far.
    sums: Sums,
    best: Option<Best>,
    clock: Clock,
}

/// Time over all sessions of a run.
struct Clock {
    started: Instant,
    /// Seconds of earlier sessions.
    before_s: f64,
    saved: Instant,
}

impl Clock {
    fn elapsed_s(&self) -> f64 {
        self.before_s + self.started.elapsed().as_secs_f64()
    }
}

impl<'a, B: Backend<Real = f32>, M: Fn(Spec) -> Result<B>> Run<'a, B, M> {
    /// Allocates the network; a fresh one, or the state of the checkpoint the run goes on from.
    pub fn new(setup: &'a Setup, options: &'a Options, make: M) -> Result<Self> {
        let config = &setup.config;
        let mut net = Net::new(&setup.graph, &setup.masks, config.batch_size, &make)?;
        let steps_per_epoch = setup.train.len().div_ceil(config.batch_size) as u64;
        let last = setup.train.len() - (steps_per_epoch as usize - 1) * config.batch_size;
        net.check_batch(last)?;
        let rate = LearningRate {
            lr: config.lr,
            schedule: config.schedule.clone(),
            steps_per_epoch,
            epochs: config.epochs,
            warmup_epochs: config.warmup_epochs,
        };
        let mut run = Run {
            setup,
            options,
            make,
            rate,
            metrics: Metrics::open(&options.out.join("metrics.jsonl"))?,
            position: Position::default(),
            sums: Sums::default(),
            best: None,
            clock: Clock { started: Instant::now(), before_s: 0.0, saved: Instant::now() },
            net,
        };
        match &options.resume {
            None => run.net.init(&setup.graph, config.seed.init),
            Some(from) => run.go_on(&from.join("last.safetensors"))?,
        }
        Ok(run)
    }

    fn go_on(&mut self, path: &std::path::Path) -> Result<()> {
        let Checkpoint { net, meta } = Checkpoint::load(path)?;
        let data = &self.setup.data;
        if meta.data_checksum != data.checksum {
            let what = format!("its run used other data than {} holds now (checksums differ)", data.source);
            return Err(Error::data(path, what));
        }
        if let Some(difference) = meta.config.differences(&self.setup.config)?.first() {
            return Err(Error::data(path, format!("it belongs to another configuration: {difference}")));
        }
        self.net.load(&net).map_err(|e| Error::data(path, e.to_string()))?;
        self.position = meta.position;
        self.sums = meta.sums;
        self.best = meta.best;
        self.clock.before_s = self.metrics.keep_until(meta.position.step)?;
        Ok(())
    }

    /// Trains to the last epoch, evaluates, and writes the summary.
    pub fn to_end(mut self, observer: &mut dyn Observer) -> Result<Summary> {
        observer.start(&self.start_info());
        while self.position.epoch < self.setup.config.epochs {
            let rate = self.epoch(observer)?;
            self.close_epoch(rate, observer)?;
        }
        let summary = self.summary()?;
        summary.save(&self.options.out.join("summary.json"))?;
        observer.finish(&summary);
        Ok(summary)
    }

    /// The steps of the current epoch from the current batch on; gives images a second.
    fn epoch(&mut self, observer: &mut dyn Observer) -> Result<f64> {
        let (config, per_epoch) = (&self.setup.config, self.rate.steps_per_epoch);
        let loader = self.setup.train_loader(self.options.threads);
        let (started, mut images) = (Instant::now(), 0);
        for batch in loader.epoch(self.position.epoch, self.position.batch as usize) {
            let loss = self.net.forward_backward(&batch.images, &batch.labels, config.label_smoothing);
            if !loss.loss_sum.is_finite() {
                return Err(self.diverged(loss));
            }
            self.net.sgd(SgdStep {
                lr: self.rate.at(self.position.step),
                momentum: config.momentum,
                weight_decay: config.weight_decay,
                nesterov: config.nesterov,
            });
            self.position.step += 1;
            self.position.batch += 1;
            self.sums.add(loss, batch.n);
            images += batch.n;
            let images_per_s = images as f64 / started.elapsed().as_secs_f64();
            let steps = config.epochs * per_epoch;
            let left = (steps - self.position.step) as f64 * config.batch_size as f64;
            let score = self.sums.score();
            observer.step(&StepInfo {
                epoch: self.position.epoch + 1,
                epochs: config.epochs,
                step: self.position.step,
                steps,
                images_per_s,
                loss: score.loss,
                accuracy: score.accuracy,
                eta_s: left / images_per_s,
            });
            if observer.stop_requested() {
                let path = self.save("last")?;
                return Err(Error::Stopped { step: self.position.step, path, run: self.options.out.clone() });
            }
            if self.options.checkpoint_every.is_some_and(|every| self.clock.saved.elapsed() >= every) {
                self.save("last")?;
            }
        }
        Ok(images as f64 / started.elapsed().as_secs_f64())
    }

    /// Evaluation, metrics, selection and the checkpoint at the end of an epoch.
    fn close_epoch(&mut self, images_per_s: f64, observer: &mut dyn Observer) -> Result<()> {
        let config = &self.setup.config;
        let threads = self.options.threads;
        let lr = self.rate.at(self.position.step - 1);
        let train = self.sums.score();
        let val = self.setup.val.as_ref().map(|v| score(&mut self.net, &self.setup.eval_loader(v, threads)));
        // With a validation split the test set is looked at once, at the end; without one its curve is shown, and
        // nothing is chosen by it unless the selection says so by name.
        let last = self.position.epoch + 1 == config.epochs;
        let test = (last || val.is_none() || config.selection == Selection::BestTest)
            .then(|| score(&mut self.net, &self.setup.eval_loader(&self.setup.data.test, threads)));
        let (epoch, elapsed_s) = (self.position.epoch + 1, self.clock.elapsed_s());
        let seen = [(Split::Train, Some(train)), (Split::Val, val), (Split::Test, test)];
        for (split, score) in seen.into_iter().filter_map(|(split, score)| score.map(|s| (split, s))) {
            let training = (split == Split::Train).then_some((lr, images_per_s));
            self.metrics.write(&Record::new(elapsed_s, self.position.step, epoch, split, score, training))?;
        }
        self.position = Position { epoch, batch: 0, step: self.position.step };
        self.sums = Sums::default();
        let candidate = match config.selection {
            Selection::Last => None,
            Selection::BestVal => val,
            Selection::BestTest => test,
        };
        // Ties keep the earlier epoch.
        let better = candidate.filter(|c| self.best.is_none_or(|b| c.accuracy > b.accuracy));
        if let Some(c) = better {
            self.best = Some(Best { epoch, accuracy: c.accuracy });
        }
        if better.is_some() || (last && config.selection == Selection::Last) {
            self.save("best")?;
        }
        self.save("last")?;
        observer.epoch(&EpochInfo { epoch, epochs: config.epochs, lr, train, val, test, elapsed_s, images_per_s });
        Ok(())
    }

    fn diverged(&self, loss: BatchLoss) -> Error {
        let Position { epoch, step, .. } = self.position;
        let last = self.options.out.join("last.safetensors");
        let kept = if last.exists() { format!("; the last good checkpoint is {}", last.display()) } else { String::new() };
        Error::Failed(format!(
            "the loss became {} at step {} (epoch {}): lower lr (now {}) or add warmup_epochs{kept}",
            loss.loss_sum, step + 1, epoch + 1, self.rate.at(step)
        ))
    }

    fn save(&mut self, name: &str) -> Result<PathBuf> {
        let path = self.options.out.join(format!("{name}.safetensors"));
        let meta = Meta {
            position: self.position,
            sums: self.sums,
            best: self.best,
            config: self.setup.config.clone(),
            data_checksum: self.setup.data.checksum.clone(),
            image: self.setup.data.shape,
            classes: self.setup.data.classes,
        };
        Checkpoint { net: self.net.state(), meta }.save(&path)?;
        self.clock.saved = Instant::now();
        Ok(path)
    }
}

/// Mean loss and accuracy over all batches of `loader`, with the running statistics.
pub(super) fn score<B: Backend<Real = f32>>(net: &mut Net<B>, loader: &Loader) -> Score {
    let mut sums = Sums::default();
    for batch in loader.epoch(0, 0) {
        sums.add(net.infer(&batch.images, &batch.labels), batch.n);
    }
    sums.score()
}
