//! Weight gradient.

use super::super::dots;
use super::*;
use crate::backend::cpu::simd::Portable;
use std::ops::Range;

#[test]
fn weight_gradients_mask_lanes_and_add_up() {
    let more = [([6, 3, 3, 3], [3, 65, 1]), ([5, 4, 1, 1], [9, 14, 1])];
    for ((shape, grid), flush) in SHAPES.into_iter().chain(more).flat_map(|s| Flush::BOTH.map(|f| (s, f))) {
        for (lanes, density) in [(16, 1.0), (16, 0.3), (1, 1.0), (9, 0.5), (15, 0.7), (7, 0.0)] {
            let l = Layer::new(shape, grid, density, flush);
            let (x, dy) = (l.source(lanes), Buf::new(10, [l.outputs(), l.rows, l.cols], lanes, flush));
            let (lists, want) = (l.lists(&x), wants(&l, &x, &dy, lanes));
            let case = Case { l, x, dy, want, lanes };
            for way in ways() {
                let (all, cut) = (case.l.outputs(), case.l.outputs() / 2);
                for outs in [0..cut, cut..all] {
                    for i in 0..15 {
                        case.sparse(way, outs.clone(), &lists[i % 3], i + 1);
                    }
                    if density == 1.0 {
                        for block in [1, 3, 100] {
                            case.dense(way, outs.clone(), block);
                        }
                    }
                }
            }
        }
    }
}

/// Value and sum of magnitudes of the gradient of every weight, kept or not.
fn wants(l: &Layer, x: &Buf, dy: &Buf, lanes: usize) -> Vec<(f64, f64)> {
    let want = |i: usize| {
        let (o, c, [r, s]) = (i / l.taps.len() / l.channels, i / l.taps.len() % l.channels, l.taps[i % l.taps.len()]);
        let mut sum = (0.0, 0.0);
        for i in 0..l.rows * l.cols * lanes {
            let (row, col, lane) = (i / lanes / l.cols, i / lanes % l.cols, i % lanes);
            let a = f64::from(x.data[x.at(c, row * l.stride + r, col * l.stride + s, lane)]);
            let p = a * f64::from(dy.data[dy.at(o, row, col, lane)]);
            sum = (sum.0 + p, sum.1 + p.abs());
        }
        sum
    };
    (0..l.weights.len()).map(want).collect()
}

/// The same, added to `old`.
fn added((value, mag): (f64, f64), old: f32) -> (f64, f64) {
    (value + f64::from(old), mag + f64::from(old).abs())
}

/// A layer's operands, and its gradient as [`wants`] has it.
struct Case {
    l: Layer,
    x: Buf,
    dy: Buf,
    want: Vec<(f64, f64)>,
    lanes: usize,
}

impl Case {
    fn sparse(&self, way: Way, outs: Range<usize>, lists: &Lists, tile: usize) {
        let (Case { l, x, dy, want, .. }, lanes) = (self, self.lanes);
        let (s, block) = (lists.segments(), lists.block);
        let entries: Vec<(usize, [usize; 2])> =
            outs.clone().flat_map(|o| l.kept[o].iter().map(move |e| (o, *e))).collect();
        let old = noise(11, entries.len());
        let mut sums = Guarded::new(l.flush, &old);
        // SAFETY: buffers were built for the layer.
        unsafe {
            match way {
                Way::Isa(isa) => {
                    dots::sparse::sparse(isa, &s, x.patch(), dy.patch(), l.grid(x), lanes, outs, tile, &mut sums);
                }
                Way::Wide => {
                    let call = dots::sparse::Call { s: &s, x: x.patch(), dy: dy.patch(), grid: l.grid(x), lanes };
                    dots::sparse::tiles::<Portable<true>>(&call, outs, tile, &mut sums);
                }
            }
        }
        for (i, (o, e)) in entries.into_iter().enumerate() {
            let want = added(want[(o * l.channels + e[0]) * l.taps.len() + e[1]], old[i]);
            close(format_args!("{way:?} block {block} tile {tile} lanes {lanes} {o} {e:?}"), sums[i], want);
        }
    }

    fn dense(&self, way: Way, outs: Range<usize>, block: usize) {
        let (Case { l, x, dy, want, .. }, lanes) = (self, self.lanes);
        let taps = &l.taps(x, block);
        let old = noise(12, outs.len() * taps.weights());
        let mut sums = Guarded::new(l.flush, &old);
        // SAFETY: buffers were built for the layer.
        unsafe {
            match way {
                Way::Isa(isa) => {
                    dots::dense::dense(isa, taps, x.patch(), dy.patch(), l.grid(x), lanes, outs.clone(), &mut sums);
                }
                Way::Wide => {
                    let call = dots::dense::Call { taps, x: x.patch(), dy: dy.patch(), grid: l.grid(x), lanes };
                    dots::dense::blocks::<Portable<true>>(&call, outs.clone(), &mut sums);
                }
            }
        }
        for (i, old) in old.iter().enumerate() {
            let (o, rest) = (outs.start + i / taps.weights(), i % taps.weights());
            let want = added(want[o * taps.weights() + rest], *old);
            close(format_args!("{way:?} dense block {block} lanes {lanes} {o} {rest}"), sums[i], want);
        }
    }
}
