//! Initial values, each a pure function of (seed, parameter name, position): masks cannot change them.

use super::{Graph, Init};
use crate::rng::{Purpose, Stream};

impl Graph {
    /// Initial values of parameter `param` at the kept positions (`None`: all), from the initial-value stream of `seed`.
    pub fn init_values(&self, param: usize, kept: Option<&[u32]>, seed: u64) -> Vec<f64> {
        let p = &self.params()[param];
        let stream = Stream::new(seed, Purpose::Init, &p.name);
        let value = |i: u64| match p.init {
            Init::KaimingNormal { fan } => (2.0 / fan as f64).sqrt() * stream.normal(i),
            Init::Normal { std } => std * stream.normal(i),
            Init::Uniform { fan_in } => (2.0 * stream.uniform(i) - 1.0) / (fan_in as f64).sqrt(),
            Init::Constant(v) => v,
        };
        match kept {
            Some(kept) => kept.iter().map(|&i| value(u64::from(i))).collect(),
            None => (0..p.size() as u64).map(value).collect(),
        }
    }
}
