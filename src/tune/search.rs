//! Coordinate descent from the default plan.

use super::layer::{Equal, Layer, Rig, interleave};
use super::{Config, Tuned};
use crate::backend::cpu::plan::{Kernel, LayerPlan, widest_tile};
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
        let sparse = plan.kernels().map(|k| k == Kernel::Sparse);
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
            // Blocks and tiles are the sparse kernels' own.
            Move::Channels { side, finer } if if side == 0 { sparse[0] || sparse[2] } else { sparse[1] } => {
                plan.channels[side] = step(plan.channels[side], !finer, [g.c, g.k][side]);
            }
            Move::Tile(tile) if sparse.contains(&true) => plan.tile = tile,
            Move::Channels { .. } | Move::Tile(_) => {}
        }
        plan
    }
}

/// What a plan comes to: plans that differ in the tile alone may cut every row alike.
fn essence(plan: LayerPlan, g: &ConvGeom, widest: usize) -> (LayerPlan, Vec<usize>) {
    let tile = plan.tile.min(widest);
    let parts = |len: u32, step: u32| {
        let (len, cut) = (len as usize, plan.cut[1]);
        [len / cut, len.div_ceil(cut)].map(|w| w.div_ceil(step as usize).div_ceil(tile))
    };
    (LayerPlan { tile: 0, ..plan }, [parts(g.q(), 1), parts(g.w, g.stride)].concat())
}

/// How equal the results of two plans must be.
pub(super) fn equality(a: &LayerPlan, b: &LayerPlan) -> Equal {
    match (a.kernels() == b.kernels() && a.cut == b.cut, a.tile == b.tile) {
        (true, true) => Equal::Bytes,
        (true, false) => Equal::BytesButWeights,
        (false, _) => Equal::Rounding,
    }
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
    let (g, widest) = (layer.geom, widest_tile(config.isa));
    // For the last comparison.
    let slice = until.saturating_duration_since(Instant::now()) / 10;
    let until = until - slice;
    let default = LayerPlan::default_for(&g, layer.weights());
    let mut best = default;
    let mut rig = Rig::new(layer, default, config)?;
    let wanted = rig.results();
    let mut tried = vec![essence(default, &g, widest)];
    let mut complete = true;
    let moves = Move::all(widest);
    // Moves since the last one that won.
    let (mut at, mut idle) = (0, 0);
    while idle < moves.len() {
        let plan = moves[at].apply(best, &g);
        let form = essence(plan, &g, widest);
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
