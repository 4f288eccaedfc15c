//! Learning-rate schedules. The SGD step itself is a backend operation ([`crate::backend::Backend::sgd`]).

use crate::config::{Schedule, WarmupBy};
use crate::error::{Error, Result};

/// The learning rate of every step of a run.
#[derive(Clone, Debug)]
pub struct LearningRate {
    /// Base rate.
    pub lr: f64,
    /// Shape after warm-up.
    pub schedule: Schedule,
    /// Steps an epoch.
    pub steps_per_epoch: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Epochs of linear warm-up; may be fractional.
    pub warmup_epochs: f64,
    /// When the rate rises in it.
    pub warmup_by: WarmupBy,
}

impl LearningRate {
    /// First step after milestone `m`, in epochs.
    fn milestone_step(&self, m: f64) -> u64 {
        (m * self.steps_per_epoch as f64).round() as u64
    }

    /// Whether each milestone comes before the last step.
    ///
    /// # Errors
    /// Names the one that would never be reached.
    pub fn check(&self) -> Result<()> {
        let Schedule::MultiStep { milestones, .. } = &self.schedule else { return Ok(()) };
        let steps = self.epochs * self.steps_per_epoch;
        match milestones.iter().find(|&&m| self.milestone_step(m) >= steps) {
            None => Ok(()),
            Some(m) => Err(Error::Usage(format!(
                "schedule.milestones: milestone {m} is the end of the run, {steps} steps (epochs: {}), so it would never be \
                 reached; change epochs or schedule.milestones",
                self.epochs
            ))),
        }
    }

    /// Rate of step `step`, counted from 0. During a warm-up of W steps, the schedule's rate times (step + 1) / (W + 1),
    /// so that step W is the first with the full rate; by epochs, as the released ImageNet code, the same of epochs.
    pub fn at(&self, step: u64) -> f64 {
        let base = match &self.schedule {
            Schedule::MultiStep { milestones, gamma } => {
                let passed = milestones.iter().filter(|&&m| self.milestone_step(m) <= step).count();
                self.lr * gamma.powi(passed as i32)
            }
            Schedule::Cosine => {
                let share = step as f64 / (self.epochs * self.steps_per_epoch) as f64;
                self.lr * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        };
        let (at, warmup) = match self.warmup_by {
            WarmupBy::Step => (step, (self.warmup_epochs * self.steps_per_epoch as f64).round()),
            WarmupBy::Epoch => (step / self.steps_per_epoch, self.warmup_epochs),
        };
        if (at as f64) < warmup { base * (at + 1) as f64 / (warmup + 1.0) } else { base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule, warmup_epochs: f64) -> LearningRate {
        LearningRate { lr: 0.1, schedule, steps_per_epoch: 10, epochs: 160, warmup_epochs, warmup_by: WarmupBy::Step }
    }

    #[test]
    fn multi_step_drops_at_the_start_of_its_epochs() {
        let r = rate(Schedule::MultiStep { milestones: vec![80.0, 120.0], gamma: 0.1 }, 0.0);
        let near = |a: f64, b: f64| assert!(((a - b).abs() <= 1e-15), "{a} {b}");
        near(r.at(0), 0.1);
        near(r.at(799), 0.1);
        near(r.at(800), 0.01);
        near(r.at(1199), 0.01);
        near(r.at(1200), 0.001);
        let r = rate(Schedule::MultiStep { milestones: vec![0.5], gamma: 0.1 }, 0.0);
        near(r.at(4), 0.1);
        near(r.at(5), 0.01);
        assert!(r.check().is_ok());
        let never = LearningRate { epochs: 1, ..rate(Schedule::MultiStep { milestones: vec![0.96], gamma: 0.1 }, 0.0) };
        assert!(never.check().unwrap_err().to_string().contains("milestone 0.96"));
    }

    #[test]
    fn cosine_and_warm_up() {
        let r = rate(Schedule::Cosine, 0.5);
        assert!((r.at(0) - 0.1 / 6.0).abs() <= 1e-12);
        assert!((r.at(4) - r.lr * 5.0 / 6.0).abs() <= 1e-4);
        assert!((r.at(800) - 0.05).abs() <= 1e-12);
        assert!(r.at(1599) > 0.0 && r.at(1599) < 1e-6);
    }
    #[test]
    fn a_warm_up_by_epochs_is_that_of_the_released_code() {
        let r = LearningRate { warmup_by: WarmupBy::Epoch, ..rate(Schedule::Cosine, 5.0) };
        for epoch in 0..5 {
            for step in [10 * epoch, 10 * epoch + 9] {
                let full = LearningRate { warmup_epochs: 0.0, ..r.clone() }.at(step);
                assert!((r.at(step) - full * (epoch + 1) as f64 / 6.0).abs() <= 1e-15, "step {step}");
            }
        }
        assert_eq!(r.at(50), LearningRate { warmup_epochs: 0.0, ..r.clone() }.at(50));
    }
}
