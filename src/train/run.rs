//! The loop: steps, evaluation, metrics, checkpoints, stop and resume.

mod summary;

use super::setup::Setup;
use super::trainer::{Position, Trainer};
use super::{EpochInfo, Observer, Options, StepInfo};
use crate::backend::Bytes;
use crate::backend::cpu::plan::Plan;
use crate::backend::gpu::GpuPlan;
use crate::checkpoint::{Best, Checkpoint, Meta, NetState, Progress};
use crate::config::Selection;
use crate::data;
use crate::error::{Error, Result};
use crate::metrics::GradientNorms;
use crate::optim::LearningRate;
use crate::report::{
    Engine, GRADIENTS_SCHEMA, GradientRecord, Lines, METRICS_SCHEMA, MetricsWriter, Record, RunDir, Score, Split,
    Summary, write_gpu_plan,
};
use std::path::Path;
use std::time::Instant;

/// A network on its device, not yet begun.
pub(super) struct Prepared<T> {
    pub trainer: T,
    /// What the dense network would hold.
    pub bytes_dense: Bytes,
    pub plan: Plan,
    /// How it runs on a GPU, where it does.
    pub gpu_plan: Option<GpuPlan>,
    /// Convolutions, and how many of them run otherwise than by default.
    pub planned: (usize, usize),
}

/// A run between two steps.
pub(super) struct Run<'a, T: Trainer> {
    setup: &'a Setup,
    options: &'a Options,
    dir: RunDir,
    planned: (usize, usize),
    bytes_dense: Bytes,
    trainer: T,
    rate: LearningRate,
    metrics: MetricsWriter,
    /// Where gradient norms are logged, if they are.
    gradients: Option<Lines<GradientRecord>>,
    progress: Progress,
    /// Test score of the newest epoch, where it was measured.
    test: Option<Score>,
    clock: Clock,
}

/// Time over all sessions of a run.
struct Clock {
    started: Instant,
    /// Seconds of earlier sessions, in all and in training steps.
    before_s: f64,
    train_s: f64,
    saved: Instant,
}

impl Clock {
    fn elapsed_s(&self) -> f64 {
        self.before_s + self.started.elapsed().as_secs_f64()
    }
}

impl<'a, T: Trainer> Run<'a, T> {
    /// Gives the network its state, a fresh one or that of the checkpoint it goes on from, and opens the run's files.
    pub fn new(
        setup: &'a Setup,
        options: &'a Options,
        state: Option<Checkpoint>,
        prepared: Prepared<T>,
    ) -> Result<Self> {
        let Prepared { mut trainer, bytes_dense, plan, gpu_plan, planned } = prepared;
        let config = &setup.config;
        let dir = RunDir::at(&options.out);
        let net = trainer.net_mut();
        let steps_per_epoch = setup.train.len().div_ceil(config.batch_size) as u64;
        net.check_batch(setup.train.len() - (steps_per_epoch as usize - 1) * config.batch_size)?;
        let rate = LearningRate {
            lr: config.lr,
            schedule: config.schedule.clone(),
            steps_per_epoch,
            epochs: config.epochs,
            warmup_epochs: config.warmup_epochs,
            warmup_by: config.warmup_by,
        };
        rate.check()?;
        let progress = match state {
            None => {
                net.init(&setup.graph, config.seed.init);
                setup.give_values(net)?;
                Progress::default()
            }
            Some(Checkpoint { net: state, meta }) => {
                net.load(&state).map_err(|e| Error::data(dir.last(), e.to_string()))?;
                meta.progress
            }
        };
        // What the run is comes first: where it does not fit on the disk, nothing is left behind.
        match options.resume {
            None => dir.begin(config, &plan, gpu_plan.as_ref())?,
            Some(_) => {
                dir.save_config(config)?;
                // A run that comes from another device.
                if let Some(plan) = gpu_plan.filter(|_| !dir.gpu_plan().exists()) {
                    write_gpu_plan(&dir.gpu_plan(), &plan)?;
                }
            }
        }
        let metrics = match progress.step {
            0 => MetricsWriter::create(&dir.metrics())?,
            step => MetricsWriter::resume(&dir.metrics(), step)?,
        };
        let gradients = match (config.gradient_norm_every, progress.step) {
            (0, _) => None,
            (_, 0) => Some(Lines::create(&dir.gradients())?),
            (_, step) => Some(Lines::resume(&dir.gradients(), step)?.0),
        };
        let (now, (before_s, train_s)) = (Instant::now(), metrics.times_s());
        let clock = Clock { started: now, before_s, train_s, saved: now };
        Ok(Run {
            setup,
            options,
            dir,
            planned,
            bytes_dense,
            trainer,
            rate,
            metrics,
            gradients,
            progress,
            test: None,
            clock,
        })
    }

    /// Trains to the last epoch, evaluates, and writes the summary.
    pub fn finish(mut self, observer: &mut dyn Observer) -> Result<Summary> {
        observer.start(&self.start_info());
        if observer.stop_requested() {
            self.save(&self.dir.last())?;
            return Err(self.stopped());
        }
        while self.progress.epoch < self.setup.config.epochs {
            let images_per_s = self.epoch(observer)?;
            self.close_epoch(images_per_s, observer)?;
        }
        let summary = self.summary()?;
        summary.save(&self.dir.summary())?;
        observer.finish(&summary);
        Ok(summary)
    }

    /// The steps of the current epoch from the current batch on; gives images a second.
    fn epoch(&mut self, observer: &mut dyn Observer) -> Result<f64> {
        let config = &self.setup.config;
        let steps = config.epochs * self.rate.steps_per_epoch;
        let (mut images, mut seconds, mut images_per_s) = (0, 0.0, 0.0);
        let mut mark = Instant::now();
        while self.progress.batch < self.rate.steps_per_epoch {
            let Progress { epoch, batch, step, scaling, .. } = self.progress;
            let stretch = self.trainer.train(Position { epoch, batch, step }, &self.rate, scaling)?;
            self.progress.scaling = stretch.scaling;
            for (loss, n) in stretch.steps {
                self.progress.step += 1;
                self.progress.batch += 1;
                self.progress.running.add(loss.loss_sum, loss.correct, n as u64);
                images += n;
            }
            if let Some(loss) = stretch.diverged {
                return Err(self.diverged(&format!("the loss became {loss}"), self.progress.step + 1));
            }
            let every = config.gradient_norm_every;
            if every > 0 && (self.progress.step - 1).is_multiple_of(every) {
                self.log_gradients()?;
            }
            let took = mark.elapsed().as_secs_f64();
            seconds += took;
            self.clock.train_s += took;
            images_per_s = images as f64 / seconds;
            let Score { loss, accuracy, .. } = self.progress.running.score();
            let (epoch, epochs, step) = (self.progress.epoch + 1, config.epochs, self.progress.step);
            let eta_s = (steps - step) as f64 * config.batch_size as f64 / images_per_s;
            observer.step(&StepInfo { epoch, epochs, step, steps, images_per_s, loss, accuracy, eta_s });
            let stop = observer.stop_requested();
            let due = self.options.checkpoint_every.is_some_and(|every| self.clock.saved.elapsed() >= every);
            // The loss tells of a diverging update a step late; until then the last good checkpoint is not replaced.
            if stop || (due && self.trainer.sound()?) {
                self.record(Split::Train, self.progress.running.score(), images_per_s)?;
                self.save(&self.dir.last())?;
            }
            if stop {
                return Err(self.stopped());
            }
            mark = Instant::now(); // observers and checkpoints are no training
        }
        Ok(images_per_s)
    }

    /// Records the norms of the newest step's gradient. A step of fp16 whose gradient overflowed has none.
    fn log_gradients(&mut self) -> Result<()> {
        let Some(log) = &mut self.gradients else { return Ok(()) };
        let gradients = self.trainer.net().gradients();
        let maskable: Vec<_> = gradients.iter().filter(|g| g.maskable).collect();
        let norms = GradientNorms::of(maskable.iter().map(|g| &g.values[..]), 1.0);
        if !norms.global.is_finite() {
            return Ok(());
        }
        let layers = maskable.iter().zip(norms.layers).map(|(g, norm)| (g.name.to_string(), norm)).collect();
        log.write(&GradientRecord {
            schema: GRADIENTS_SCHEMA,
            step: self.progress.step,
            epoch: self.progress.epoch + 1,
            mean: norms.mean,
            global: norms.global,
            layers,
        })
    }

    /// Evaluation, metrics, selection and the checkpoints at the end of an epoch.
    fn close_epoch(&mut self, images_per_s: f64, observer: &mut dyn Observer) -> Result<()> {
        let setup = self.setup;
        let config = &setup.config;
        let (epoch, epochs, lr) = (self.progress.epoch + 1, config.epochs, self.rate.at(self.progress.step - 1));
        let train = self.progress.running.score();
        self.record(Split::Train, train, images_per_s)?;
        let val = setup.val.as_ref().map(|images| self.measure(Split::Val, images)).transpose()?;
        // With a validation split the test set is looked at once, at the end; without one its curve is shown, and nothing
        // is chosen by it unless the selection says so by name.
        let looked_at = epoch == epochs || val.is_none();
        let test = looked_at.then(|| self.measure(Split::Test, &setup.data.test)).transpose()?;

        let Progress { step, best, scaling, .. } = self.progress;
        self.progress = Progress { step, epoch, best, scaling, ..Progress::default() };
        let candidate = if config.selection == Selection::BestTest { test } else { val };
        // A tie keeps the earlier epoch.
        let better = candidate.filter(|c| self.progress.best.is_none_or(|b| c.accuracy > b.score.accuracy));
        if let Some(score) = better {
            self.progress.best = Some(Best { epoch, score });
        }
        // Where nothing is selected, the last epoch is the best there is.
        if better.is_some() || (candidate.is_none() && epoch == epochs) {
            self.save(&self.dir.best())?;
        }
        self.save(&self.dir.last())?;
        self.test = test;
        let elapsed_s = self.clock.elapsed_s();
        observer.epoch(&EpochInfo { epoch, epochs, lr, train, val, test, elapsed_s, images_per_s });
        Ok(())
    }

    fn stopped(&self) -> Error {
        Error::Stopped { step: self.progress.step, path: self.dir.last(), run: self.dir.path().into() }
    }

    fn measure(&mut self, split: Split, images: &data::Split) -> Result<Score> {
        let started = Instant::now();
        let score = self.trainer.score(images)?;
        if !score.loss.is_finite() {
            let name = if split == Split::Val { "validation" } else { "test" };
            let what = format!("the {name} loss became {}", score.loss);
            return Err(self.diverged(&what, self.progress.step));
        }
        self.record(split, score, images.len() as f64 / started.elapsed().as_secs_f64())?;
        Ok(score)
    }

    fn record(&mut self, split: Split, score: Score, images_per_s: f64) -> Result<()> {
        self.metrics.write(&Record {
            schema: METRICS_SCHEMA,
            time_s: self.clock.elapsed_s(),
            train_time_s: self.clock.train_s,
            step: self.progress.step,
            epoch: self.progress.epoch + 1,
            split,
            loss: score.loss,
            accuracy: score.accuracy,
            n: score.n,
            lr: self.rate.at(self.progress.step - 1),
            images_per_s,
        })
    }

    /// Why the run ends: `what` stopped being a finite number at `step`.
    fn diverged(&self, what: &str, step: u64) -> Error {
        let kept = match self.dir.last().exists() {
            true => format!("the last good checkpoint is {}", self.dir.last().display()),
            false => "no checkpoint had been written yet".into(),
        };
        let (epoch, lr) = ((step - 1) / self.rate.steps_per_epoch + 1, self.rate.at(step - 1));
        Error::Failed(format!(
            "{what} at step {step} (epoch {epoch}); {kept}; lower lr ({lr:?} at that step) or raise warmup_epochs"
        ))
    }

    /// The state, if it can be gone on from: a checkpoint never holds a number that is not finite.
    fn finite_state(&self) -> Result<NetState> {
        let state = self.trainer.net().state();
        let params = state.params.iter().flat_map(|p| [(&p.name, &p.values), (&p.name, &p.momentum)]);
        let norms = state.norms.iter().flat_map(|n| [(&n.name, &n.mean), (&n.name, &n.var)]);
        let bad = params.chain(norms).find_map(|(name, v)| Some((name, v.iter().find(|v| !v.is_finite())?)));
        let fault = bad.map(|(name, v)| self.diverged(&format!("{name} became {v}"), self.progress.step));
        fault.map_or(Ok(state), Err)
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        let net = self.finite_state()?;
        self.metrics.sync()?; // a checkpoint never knows more than the metrics
        self.gradients.as_mut().map_or(Ok(()), Lines::sync)?;
        let meta = Meta {
            engine: Engine::this(),
            config: self.setup.config.clone(),
            data: self.setup.data_info(),
            progress: self.progress,
        };
        Checkpoint { net, meta }.save(path)?;
        self.clock.saved = Instant::now();
        Ok(())
    }
}
