//! Initial values, each a pure function of (seed, parameter name, position): masks cannot change them.

use super::{Fan, Graph, Init, InitScale};
use crate::rng::{Purpose, Stream};
use crate::sparsity::Mask;

impl Graph {
    /// Sets the fan of all Kaiming-normal weights.
    pub fn set_fan(&mut self, mode: Fan) {
        for p in &mut self.params {
            let (Init::KaimingNormal { fan }, [k, c, taps @ ..]) = (&mut p.init, &p.shape[..]) else { continue };
            let area: usize = taps.iter().product();
            match mode {
                Fan::Standard => {}
                Fan::FanIn => *fan = c * area,
                Fan::FanOut => *fan = k * area,
            }
        }
    }

    /// Widens the start of all Kaiming-normal weights for `masks`, which together keep the share `density` of the maskable
    /// weights.
    pub fn scale_init(&mut self, scale: InitScale, density: f64, masks: &[Mask]) {
        for p in &mut self.params {
            let Init::KaimingNormal { fan } = p.init else { continue };
            let fan = fan as f64;
            let std = match scale {
                InitScale::None => continue,
                InitScale::Density => (2.0 / (1.0 + 0.01 * 0.01) / (fan * density)).sqrt(),
                InitScale::LayerDensity => {
                    let mask = masks.iter().find(|m| m.name == p.name && m.kept.is_some());
                    let Some(mask) = mask.filter(|_| p.shape.len() == 4) else { continue };
                    (2.0 / (fan * mask.nnz() as f64 / mask.size() as f64)).sqrt()
                }
            };
            p.init = Init::Normal { std };
        }
    }

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
