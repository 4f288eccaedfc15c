//! Learning-rate schedules. The SGD step itself is a backend operation ([`crate::backend::Backend::sgd`]).

use crate::config::Schedule;

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
}

impl LearningRate {
    /// Rate of step `step`, counted from 0. During a warm-up of W steps, the schedule's rate times (step + 1) / (W + 1),
    /// so that step W is the first with the full rate (the reference ramps by epochs in the same way).
    pub fn at(&self, step: u64) -> f64 {
        let base = match &self.schedule {
            Schedule::MultiStep { milestones, gamma } => {
                let epoch = (step / self.steps_per_epoch) as f64;
                let passed = milestones.iter().filter(|&&m| m <= epoch).count();
                self.lr * gamma.powi(passed as i32)
            }
            Schedule::Cosine => {
                let share = step as f64 / (self.epochs * self.steps_per_epoch) as f64;
                self.lr * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        };
        let warmup = (self.warmup_epochs * self.steps_per_epoch as f64).round();
        if (step as f64) < warmup { base * (step + 1) as f64 / (warmup + 1.0) } else { base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule, warmup_epochs: f64) -> LearningRate {
        LearningRate { lr: 0.1, schedule, steps_per_epoch: 10, epochs: 160, warmup_epochs }
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
    }

    #[test]
    fn cosine_and_warm_up() {
        let r = rate(Schedule::Cosine, 0.5);
        assert!((r.at(0) - 0.1 / 6.0).abs() <= 1e-12);
        assert!((r.at(4) - r.lr * 5.0 / 6.0).abs() <= 1e-4);
        assert!((r.at(800) - 0.05).abs() <= 1e-12);
        assert!(r.at(1599) > 0.0 && r.at(1599) < 1e-6);
    }
}
