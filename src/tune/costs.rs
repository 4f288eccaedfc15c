//! Where the dense kernel of a pass begins to be faster than the sparse one: the measurement behind the cost table of
//! [`crate::backend::cpu::plan`].

use super::layer::{Layer, Rig, interleave};
use super::{Config, groups};
use crate::backend::ConvId;
use crate::backend::cpu::plan::{Kernel, LayerPlan};
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::lower::lower;
use crate::shape::ConvGeom;
use crate::sparsity::{Density, Draw, Maskable, Ratio, draw_masks};
use std::time::Instant;

/// Densities that are measured, uniformly random masks.
pub const DENSITIES: [f64; 6] = [0.15, 0.3, 0.45, 0.6, 0.75, 0.9];

/// The density at which two kernels are even.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crossover {
    /// The dense kernel is faster at every density measured.
    Below,
    /// Here.
    At(f64),
    /// The sparse kernel is faster at every density measured.
    Above,
}

/// A geometry's crossovers.
#[derive(Clone, Debug)]
pub struct Costs {
    /// Names of the layers that have it.
    pub names: Vec<String>,
    /// The geometry.
    pub geom: ConvGeom,
    /// Forward, data gradient (`None`: the layer has none), weight gradient.
    pub passes: [Option<Crossover>; 3],
}

impl Costs {
    /// What each pass' entry in the cost table would be for this layer alone; `None` without a crossover.
    pub fn even_costs(&self) -> [Option<f64>; 3] {
        std::array::from_fn(|pass| match self.passes[pass] {
            Some(Crossover::At(density)) => {
                let stored = (density * self.geom.weights() as f64).round().max(1.0);
                Some(LayerPlan::even_cost(&self.geom, stored as usize, pass))
            }
            _ => None,
        })
    }
}

/// Measures each distinct geometry of `graph`.
///
/// # Errors
/// A graph that cannot be lowered; a batch no norm is defined for.
pub fn costs(graph: &Graph, config: &Config, progress: &mut dyn FnMut(usize, usize, &str)) -> Result<Vec<Costs>> {
    let program = lower(graph, &[], config.batch)?;
    program.check_batch(config.batch, |norm| &graph.norms()[norm].name)?;
    let layers = graph.convs().iter().enumerate().map(|(i, c)| Layer::of(&program, ConvId(i as u32), &c.name));
    let groups = groups(layers.collect::<Result<Vec<_>>>()?);
    let end = Instant::now() + config.budget;
    let mut all = Vec::with_capacity(groups.len());
    for (i, (layer, members)) in groups.iter().enumerate() {
        progress(i, groups.len(), &layer.name);
        let weight = Maskable::new(layer.name.clone(), [layer.geom.weights()]);
        let mut points = vec![];
        for (d, &density) in DENSITIES.iter().enumerate() {
            let cells = (groups.len() - i) * DENSITIES.len() - d;
            let until = Instant::now() + end.saturating_duration_since(Instant::now()) / cells as u32;
            let density = Density::from_density(density)?;
            let masks = draw_masks(std::slice::from_ref(&weight), &Ratio::Uniform, density, Draw::Exact, 0)?;
            points.push(excess(&layer.with_kept(masks[0].kept.clone()), config, until)?);
        }
        let crossover = |pass: usize| crossing(&DENSITIES, &points.iter().map(|p| p[pass]).collect::<Vec<_>>());
        let passes = [0, 1, 2].map(|pass| (pass != 1 || layer.has_data_gradient()).then(|| crossover(pass)));
        let names = members.iter().map(|&m| graph.convs()[m].name.clone()).collect();
        all.push(Costs { names, geom: layer.geom, passes });
    }
    Ok(all)
}

/// Sparse less dense milliseconds of the three passes. Both gradients are one operation, so one changes its kernel at a
/// time while the other one is sparse.
fn excess(layer: &Layer, config: &Config, until: Instant) -> Result<[f64; 3]> {
    let default = LayerPlan::default_for(&layer.geom, layer.weights());
    let plan = |[forward, data, weight]: [Kernel; 3]| LayerPlan { forward, data, weight, ..default };
    let (s, d) = (Kernel::Sparse, Kernel::Dense);
    let rig = |kernels| Rig::new(layer, plan(kernels), config);
    let mut rigs = [rig([s, s, s])?, rig([d, d, s])?, rig([d, s, d])?];
    let [sparse, data, weight] = interleave(&mut rigs, |_| Instant::now() > until);
    Ok([sparse[0] - data[0].min(weight[0]), sparse[1] - data[1], sparse[1] - weight[1]])
}

/// Where the line through (density, excess) is zero: least squares, because each time has its noise.
fn crossing(densities: &[f64], excess: &[f64]) -> Crossover {
    let n = densities.len() as f64;
    let mean = |v: &[f64]| v.iter().sum::<f64>() / n;
    let (x, y) = (mean(densities), mean(excess));
    let (mut xx, mut xy) = (0.0, 0.0);
    for (d, e) in densities.iter().zip(excess) {
        xx += (d - x) * (d - x);
        xy += (d - x) * (e - y);
    }
    let (first, last) = (densities[0], densities[densities.len() - 1]);
    // A line that does not rise tells nothing of where it would be zero.
    let zero = if xy > 0.0 { x - y * xx / xy } else { f64::NAN };
    match zero {
        z if z >= first && z <= last => Crossover::At(z),
        z if z < first || (z.is_nan() && y > 0.0) => Crossover::Below,
        _ => Crossover::Above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crossing_of_a_noisy_line() {
        let line = |zero: f64, noise: f64| -> Vec<f64> {
            DENSITIES.iter().enumerate().map(|(i, d)| 3.0 * (d - zero) + noise * [1.0, -1.0][i % 2]).collect()
        };
        for zero in [0.16, 0.4, 0.89] {
            assert!(
                matches!(crossing(&DENSITIES, &line(zero, 0.0)), Crossover::At(z) if (z - zero).abs() < 1e-9),
                "{zero}"
            );
        }
        assert!(matches!(crossing(&DENSITIES, &line(0.5, 0.05)), Crossover::At(z) if (z - 0.5).abs() < 0.03));
        assert_eq!(crossing(&DENSITIES, &line(0.1, 0.0)), Crossover::Below);
        assert_eq!(crossing(&DENSITIES, &line(1.2, 0.0)), Crossover::Above);
        assert_eq!(crossing(&DENSITIES, &[0.0; 6]), Crossover::Above);
        assert_eq!(crossing(&DENSITIES, &[1.0; 6]), Crossover::Below);
        assert_eq!(crossing(&DENSITIES, &[-1.0; 6]), Crossover::Above);
    }
}
