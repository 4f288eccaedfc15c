//! Every kernel against f64 loops and against each other, on every instruction set of this machine and with the tiles of
//! AVX-512 in portable code. NaN lies in what must not be read, in outputs, in lanes of images beyond the batch; every
//! operand lies flush against a page that may not be touched, behind it and then before it.

mod forward;
mod weights;

use super::patch::{Grid, Patch, Taps};
use super::sparse::Segments;
use crate::backend::cpu::layout::LANES;
use crate::backend::cpu::simd::Isa;
use crate::backend::cpu::tests::guard::{Flush, Guarded};
use crate::backend::cpu::tests::noise;

/// Kernels as compiled for an instruction set, or portable ones with wide tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Isa(Isa),
    Wide,
}

fn ways() -> Vec<Way> {
    Isa::ALL.into_iter().filter(|i| i.available()).map(Way::Isa).chain([Way::Wide]).collect()
}

/// Ways that must give the same bytes.
fn kin(w: Way) -> bool {
    matches!(w, Way::Isa(Isa::Avx2 | Isa::Avx512))
}

/// `[channels][rows][cols][16]` with odd strides, NaN between; begins with the first pixel and ends with the last.
struct Buf {
    data: Guarded<f32>,
    chan: usize,
    row: usize,
}

impl Buf {
    fn new(seed: u64, [channels, rows, cols]: [usize; 3], lanes: usize, flush: Flush) -> Buf {
        let row = (cols + 2) * LANES;
        let chan = row * rows + LANES;
        let numbers = noise(seed, channels * rows * cols * LANES);
        let len = if numbers.is_empty() { 0 } else { channels * chan - 3 * LANES };
        let mut b = Buf { data: Guarded::new(flush, &vec![f32::NAN; len]), chan, row };
        for (i, v) in numbers.into_iter().enumerate().filter(|(i, _)| i % LANES < lanes) {
            let (px, lane) = (i / LANES, i % LANES);
            let at = b.at(px / (rows * cols), px / cols % rows, px % cols, lane);
            b.data[at] = v;
        }
        b
    }

    fn at(&self, c: usize, row: usize, col: usize, lane: usize) -> usize {
        c * self.chan + row * self.row + col * LANES + lane
    }

    fn patch(&self) -> Patch {
        Patch { ptr: self.data.as_ptr(), chan: self.chan, row: self.row }
    }
}

/// Entry lists for channel blocks of some size.
struct Lists {
    block: usize,
    blocks: usize,
    starts: Guarded<u32>,
    offs: Guarded<u32>,
    values: Guarded<f32>,
}

impl Lists {
    fn segments(&self) -> Segments<'_> {
        Segments { blocks: self.blocks, starts: &self.starts, offs: &self.offs }
    }
}

/// A layer on one patch. `taps`: row and column of each in the patch, in summing order; `kept[o]`: channel and tap of
/// each weight of an output, ascending.
struct Layer {
    channels: usize,
    taps: Vec<[usize; 2]>,
    rows: usize,
    cols: usize,
    stride: usize,
    weights: Guarded<f32>,
    kept: Vec<Vec<[usize; 2]>>,
    /// Where its operands lie.
    flush: Flush,
}

impl Layer {
    /// `density` of the weights kept; one output in three has none unless all are.
    fn new(
        [outputs, channels, r, s]: [usize; 4],
        [rows, cols, stride]: [usize; 3],
        density: f32,
        flush: Flush,
    ) -> Layer {
        let taps: Vec<_> = (0..r * s).map(|t| [t / s, t % s]).collect();
        let draw = noise(3, outputs * channels * r * s);
        let keep = |o: usize, i: usize| {
            density == 1.0 || (o % 3 != 1 && (draw[o * channels * r * s + i] + 1.0) / 2.0 < density)
        };
        let each = 0..channels * r * s;
        let kept: Vec<Vec<_>> = (0..outputs)
            .map(|o| each.clone().filter(|&i| keep(o, i)).map(|i| [i / (r * s), i % (r * s)]).collect())
            .collect();
        let mut weights = vec![0.0; outputs * channels * r * s];
        let values = noise(4, weights.len());
        for (o, kept) in kept.iter().enumerate() {
            kept.iter().map(|[c, t]| (o * channels + c) * r * s + t).for_each(|i| weights[i] = values[i]);
        }
        Layer { channels, taps, rows, cols, stride, weights: Guarded::new(flush, &weights), kept, flush }
    }

    fn outputs(&self) -> usize {
        self.kept.len()
    }

    fn source(&self, lanes: usize) -> Buf {
        let far = |i: usize| self.taps.iter().map(|t| t[i]).max().unwrap_or(0) + 1;
        let rows = (self.rows.max(1) - 1) * self.stride + far(0);
        Buf::new(5, [self.channels, rows, (self.cols.max(1) - 1) * self.stride + far(1)], lanes, self.flush)
    }

    fn grid(&self, src: &Buf) -> Grid {
        Grid { rows: self.rows, cols: self.cols, src_row: self.stride * src.row, src_step: self.stride * LANES }
    }

    fn taps(&self, src: &Buf, block: usize) -> Taps {
        let offs: Vec<u32> = self.taps.iter().map(|[r, s]| (r * src.row + s * LANES) as u32).collect();
        Taps::new(self.channels, src.chan, &offs, block)
    }

    /// Lists with channel blocks of 1, 2 and more channels than there are.
    fn lists(&self, src: &Buf) -> [Lists; 3] {
        [1, 2, 100].map(|block| self.list(src, block))
    }

    fn list(&self, src: &Buf, block: usize) -> Lists {
        let blocks = self.channels.div_ceil(block).max(1);
        let (mut starts, mut offs, mut values) = (vec![0], vec![], vec![]);
        for (o, kept) in self.kept.iter().enumerate() {
            for b in 0..blocks {
                for [c, t] in kept.iter().filter(|[c, _]| c / block == b) {
                    offs.push((c * src.chan + self.taps[*t][0] * src.row + self.taps[*t][1] * LANES) as u32);
                    values.push(self.weights[(o * self.channels + c) * self.taps.len() + t]);
                }
                starts.push(offs.len() as u32);
            }
        }
        let [starts, offs] = [starts, offs].map(|v| Guarded::new(self.flush, &v));
        Lists { block, blocks, starts, offs, values: Guarded::new(self.flush, &values) }
    }

    /// Value and sum of magnitudes of output `o` at a pixel and lane.
    fn want(&self, src: &Buf, o: usize, [row, col, lane]: [usize; 3], start: f32) -> (f64, f64) {
        let mut sum = (f64::from(start), f64::from(start).abs());
        for [c, t] in &self.kept[o] {
            let [r, s] = self.taps[*t];
            let x = src.data[src.at(*c, row * self.stride + r, col * self.stride + s, lane)];
            let p = f64::from(self.weights[(o * self.channels + c) * self.taps.len() + t]) * f64::from(x);
            sum = (sum.0 + p, sum.1 + p.abs());
        }
        sum
    }
}

fn close(what: std::fmt::Arguments, got: f32, (want, mag): (f64, f64)) {
    let err = (f64::from(got) - want).abs();
    assert!(err <= 1e-6 * mag + 1e-30, "{what}: got {got}, want {want}, sum of magnitudes {mag}");
}

/// Shapes [K, C, R, S], [rows, cols, stride].
const SHAPES: [([usize; 4], [usize; 3]); 9] = [
    ([1, 1, 1, 1], [1, 1, 1]),
    ([5, 3, 3, 3], [3, 7, 1]),
    ([2, 17, 3, 3], [2, 8, 2]),
    ([9, 5, 1, 1], [5, 5, 1]),
    ([70, 4, 1, 2], [1, 15, 1]),
    ([3, 2, 7, 7], [2, 3, 2]),
    ([4, 6, 2, 3], [3, 29, 3]),
    ([7, 1, 3, 3], [13, 1, 1]),
    ([3, 4, 3, 3], [0, 4, 1]),
];
