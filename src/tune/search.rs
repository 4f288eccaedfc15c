//! Coordinate descent from the default plan.

use super::layer::{Equal, Layer, Rig, interleave};
use super::{Config, Tuned};
use crate::backend::cpu::plan::{Kernel, LayerPlan, widest_tiles};
use crate::error::{Error, Result};
use crate::shape::ConvGeom;
use std::time::{Duration, Instant};

/// A plan must be this much faster to replace another one.
const WIN: f64 = 0.98;
/// After a few repetitions, a candidate this much slower is given up.
const HOPELESS: f64 = 1.15;

/// One change of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// The other kernel for a pass.
    Kernel(usize),
    /// Twice or half as many patches along rows (0) or columns (1).
    Cut { side: usize, finer: bool },
    /// Channel blocks half or twice as large: input (0) or output channels (1).
    Channels { side: usize, finer: bool },
    /// Another register tile.
    Tile(usize),
}

impl Move {
    fn all(widest: usize) -> Vec<Move> {
        let both =
            |make: fn(usize, bool) -> Move| [(0, true), (0, false), (1, true), (1, false)].map(|(s, f)| make(s, f));
        let mut all: Vec<Move> = (0..3).map(Move::Kernel).collect();
        all.extend(both(|side, finer| Move::Cut { side, finer }));
        all.extend(both(|side, finer| Move::Channels { side, finer }));
        all.extend((4.min(widest)..=widest).rev().map(Move::Tile));
        all
    }

    /// The plan after it; the same plan where there is nothing to change.
    fn apply(self, mut plan: LayerPlan, g: &ConvGeom) -> LayerPlan {
        let step = |v: usize, up: bool, most: u32| if up { (2 * v).min(most as usize) } else { v.div_ceil(2) };
        match self {
            Move::Kernel(pass) => {
                let kernel = match pass {
                    0 => &mut plan.forward,
                    1 => &mut plan.data,
                    _ => &mut plan.weight,
                };
                *kernel = if *kernel == Kernel::Sparse { Kernel::Dense } else { Kernel::Sparse };
            }
            Move::Cut { side, finer } => plan.cut[side] = step(plan.cut[side], finer, [g.p(), g.q()][side]),
            Move::Channels { side, finer } => plan.channels[side] = step(plan.channels[side], !finer, [g.c, g.k][side]),
            Move::Tile(tile) => plan.tile = tile,
        }
        plan
    }
}

/// What a plan comes to for a layer: blocks and tiles are the sparse kernels' own, tiles may cut every row alike, and there
/// may be no data gradient.
fn essence(plan: LayerPlan, layer: &Layer, widest: [usize; 2]) -> (LayerPlan, Vec<usize>) {
    let (g, mut short) = (layer.geom, LayerPlan { tile: 0, ..plan });
    if !layer.has_data_gradient() {
        short.data = Kernel::Dense;
    }
    let [forward, data, weight] = short.kernels().map(|k| k == Kernel::Sparse);
    short.channels = [if forward || weight { plan.channels[0] } else { 0 }, if data { plan.channels[1] } else { 0 }];
    let tiles = |used: bool, len: u32, step: u32, most: usize| {
        let (len, cut, tile) = (len as usize, plan.cut[1], plan.tile.min(most));
        [len / cut, len.div_ceil(cut)].map(|w| if used { w.div_ceil(step as usize).div_ceil(tile) } else { 0 })
    };
    let [gather, dots] = widest;
    let tiles = [tiles(forward, g.q(), 1, gather), tiles(data, g.w, g.stride, gather), tiles(weight, g.q(), 1, dots)];
    (short, tiles.concat())
}

/// How equal the results of two plans must be.
pub(super) fn equality(a: &LayerPlan, b: &LayerPlan) -> Equal {
    let tiles = a.weight == Kernel::Dense || a.tile == b.tile;
    Equal { patches: a.cut == b.cut, weights: a.cut == b.cut && a.weight == b.weight && tiles }
}

/// Milliseconds of the two rigs, forward and backward; ends early where the second one is hopeless.
fn duel(rigs: &mut [Rig; 2], slice: Duration) -> [[f64; 2]; 2] {
    let start = Instant::now();
    interleave(rigs, |ms| start.elapsed() > slice || total(ms[1]) > HOPELESS * total(ms[0]))
}

fn total(ms: [f64; 2]) -> f64 {
    ms[0] + ms[1]
}

/// The fastest plan found for `layer` by the time `until`; its name alone is in `names`.
pub(super) fn search(layer: &Layer, config: &Config, until: Instant) -> Result<Tuned> {
    let (g, widest) = (layer.geom, widest_tiles(config.isa));
    // For the last comparison.
    let slice = until.saturating_duration_since(Instant::now()) / 10;
    let until = until - slice;
    let default = LayerPlan::default_for(&g, layer.weights());
    let mut best = default;
    let mut rig = Rig::new(layer, default, config)?;
    let wanted = rig.results();
    let mut tried = vec![essence(default, layer, widest)];
    let mut complete = true;
    let moves = Move::all(widest[0].max(widest[1]));
    // Moves since the last one that won.
    let (mut at, mut idle) = (0, 0);
    while idle < moves.len() {
        let plan = moves[at].apply(best, &g);
        let form = essence(plan, layer, widest);
        let mut won = false;
        if !tried.contains(&form) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                complete = false;
                break;
            }
            tried.push(form);
            let other = Rig::new(layer, plan, config)?;
            if let Some(fault) = wanted.fault(&other.results(), equality(&default, &plan)) {
                return Err(Error::Failed(format!(
                    "layer {}: run as {plan}, not as by default ({default}): {fault}: a fault of this engine, please report it",
                    layer.name
                )));
            }
            let mut both = [rig, other];
            let [old, new] = duel(&mut both, left / 10);
            won = total(new) < WIN * total(old);
            let [old, new] = both;
            (best, rig) = if won { (plan, new) } else { (best, old) };
        }
        // What won is tried once more: twice as fine may be better still.
        (at, idle) = if won { (at, 0) } else { ((at + 1) % moves.len(), idle + 1) };
    }
    // The winner of many comparisons was also lucky: it counts only if it wins against the default now.
    let [default_ms, ms] = duel(&mut [Rig::new(layer, default, config)?, rig], slice);
    let wins = best != default && total(ms) < WIN * total(default_ms);
    let (plan, ms) = if wins { (best, ms) } else { (default, default_ms) };
    let (names, weights) = (vec![layer.name.clone()], layer.weights());
    Ok(Tuned { names, geom: g, weights, default, plan, default_ms, ms, tried: tried.len(), complete })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ConvId;
    use crate::graph::{Graph, lower::lower};

    /// A convolution without a data gradient, and one with.
    fn layers() -> [Layer; 2] {
        let mut g = Graph::new(3, 16, 16);
        let x = g.input();
        let x = g.conv("first", x, 8, 3, 1, 1).unwrap();
        let x = g.norm("bn", x);
        let x = g.relu(x);
        let x = g.conv("second", x, 16, 3, 2, 1).unwrap();
        let x = g.pool(x);
        g.linear("fc", x, 10).unwrap();
        let program = lower(&g, &[], 17).unwrap();
        ["first", "second"].map(|n| Layer::of(&program, ConvId(u32::from(n == "second")), n).unwrap())
    }

    fn plan() -> LayerPlan {
        let (forward, data, weight) = (Kernel::Sparse, Kernel::Sparse, Kernel::Dense);
        LayerPlan { forward, data, weight, cut: [2, 1], channels: [4, 4], tile: 7 }
    }

    #[test]
    fn moves_stay_inside_the_layer_and_lead_back() {
        let [_, layer] = layers();
        for widest in [1, 3, 7, 14] {
            let moves = Move::all(widest);
            let mut plan = plan();
            // Any walk is a plan that the layer can run with.
            for i in 0..200 {
                plan = moves[(i * i + i / 7) % moves.len()].apply(plan, &layer.geom);
                assert!(plan.cut[0] <= 8 && plan.cut[1] <= 8 && plan.channels[0] <= 8 && plan.channels[1] <= 16);
                assert!(
                    plan.cut.iter().chain(&plan.channels).all(|v| *v >= 1) && (1..=14).contains(&plan.tile),
                    "{plan}"
                );
            }
        }
        for pass in 0..3 {
            let there = Move::Kernel(pass).apply(plan(), &layer.geom);
            assert!(there != plan() && Move::Kernel(pass).apply(there, &layer.geom) == plan());
        }
    }

    #[test]
    fn plans_that_come_to_the_same_are_not_measured_twice() {
        let [first, second] = layers();
        let same = |layer: &Layer, a: LayerPlan, b: LayerPlan| essence(a, layer, [7, 5]) == essence(b, layer, [7, 5]);
        let with = |change: fn(&mut LayerPlan)| {
            let mut p = plan();
            change(&mut p);
            p
        };
        let p = plan();
        assert!(same(&second, p, with(|p| p.tile = 14)), "the instruction set has 7");
        assert!(same(&second, p, with(|p| p.tile = 6)), "rows of 8 and of 16 by class: 2 tiles");
        assert!(!same(&second, p, with(|p| p.tile = 3)));
        assert!(!same(&second, p, with(|p| p.channels[1] = 8)));
        assert!(same(&first, p, with(|p| p.channels[1] = 8)), "no data gradient");
        assert!(same(&first, p, with(|p| p.data = Kernel::Dense)));
        assert!(!same(&first, p, with(|p| p.channels[0] = 2)));
        let dense = LayerPlan { forward: Kernel::Dense, data: Kernel::Dense, ..p };
        assert!(same(&second, dense, LayerPlan { tile: 1, channels: [1, 1], ..dense }), "the sparse kernels' own");
        assert!(!same(&second, dense, LayerPlan { cut: [1, 1], ..dense }));
    }

    #[test]
    fn what_must_be_the_same_bytes() {
        let equal = |change: fn(&mut LayerPlan)| {
            let mut p = plan();
            p.weight = Kernel::Sparse;
            let old = p;
            change(&mut p);
            let Equal { patches, weights } = equality(&old, &p);
            (patches, weights)
        };
        assert_eq!(equal(|p| p.channels = [1, 2]), (true, true));
        assert_eq!(equal(|p| (p.forward, p.data) = (Kernel::Dense, Kernel::Dense)), (true, true));
        assert_eq!(equal(|p| p.tile = 5), (true, false));
        assert_eq!(equal(|p| p.weight = Kernel::Dense), (true, false));
        assert_eq!(equal(|p| p.cut = [1, 1]), (false, false));
    }

    #[test]
    fn a_wrong_result_is_seen() {
        let [_, layer] = layers();
        let config = Config { batch: 17, threads: 1, isa: crate::backend::cpu::Isa::detect(), budget: Duration::ZERO };
        let results = || Rig::new(&layer, plan(), &config).unwrap().results();
        let (wanted, all, none) =
            (results(), Equal { patches: true, weights: true }, Equal { patches: false, weights: false });
        assert_eq!(wanted.fault(&results(), all), None);
        let cut = Rig::new(&layer, LayerPlan { cut: [3, 2], ..plan() }, &config).unwrap().results();
        assert!(wanted.fault(&cut, all).is_some(), "another rounding");
        assert_eq!(wanted.fault(&cut, none), None);
        for part in 0..wanted.parts() {
            for wrong in [f32::NAN, 1.0] {
                let mut got = results();
                if !got.spoil(part, wrong) {
                    continue; // nothing there: no bias
                }
                assert!(wanted.fault(&got, none).is_some(), "part {part}");
            }
        }
    }
}
