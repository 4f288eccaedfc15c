//! Every kernel against f64 loops and against each other, on every instruction set of this machine and with the tiles of
//! AVX-512 in portable code, between NaN: in what must not be read, in outputs, in lanes of images beyond the batch.

use super::patch::{Grid, Out, Patch, Start, Taps};
use super::sparse::Segments;
use super::{dense, dots, pack::Packing, sparse};
use crate::backend::cpu::layout::LANES;
use crate::backend::cpu::simd::{Isa, Portable};
use crate::shape::ConvGeom;
use std::ops::Range;

/// Repeatable numbers in [-1, 1).
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 40) as f32 - 8388608.0) / 8388608.0
    };
    (0..len).map(|_| next()).collect()
}

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

/// `[channels][rows][cols][16]` with odd strides, NaN between and around.
struct Buf {
    data: Vec<f32>,
    chan: usize,
    row: usize,
}

const AROUND: usize = 64;

impl Buf {
    fn new(seed: u64, [channels, rows, cols]: [usize; 3], lanes: usize) -> Buf {
        let row = (cols + 2) * LANES;
        let chan = row * rows + LANES;
        let mut b = Buf { data: vec![f32::NAN; 2 * AROUND + channels * chan], chan, row };
        let numbers = noise(seed, channels * rows * cols * LANES);
        for (i, v) in numbers.into_iter().enumerate().filter(|(i, _)| i % LANES < lanes) {
            let (px, lane) = (i / LANES, i % LANES);
            let at = b.at(px / (rows * cols), px / cols % rows, px % cols, lane);
            b.data[at] = v;
        }
        b
    }

    fn at(&self, c: usize, row: usize, col: usize, lane: usize) -> usize {
        AROUND + c * self.chan + row * self.row + col * LANES + lane
    }

    fn patch(&self) -> Patch {
        Patch { ptr: self.data[AROUND..].as_ptr(), chan: self.chan, row: self.row }
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
    weights: Vec<f32>,
    kept: Vec<Vec<[usize; 2]>>,
}

impl Layer {
    /// `density` of the weights kept; one output in three has none unless all are.
    fn new([outputs, channels, r, s]: [usize; 4], [rows, cols, stride]: [usize; 3], density: f32) -> Layer {
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
        Layer { channels, taps, rows, cols, stride, weights, kept }
    }

    fn outputs(&self) -> usize {
        self.kept.len()
    }

    fn source(&self, lanes: usize) -> Buf {
        let far = |i: usize| self.taps.iter().map(|t| t[i]).max().unwrap_or(0) + 1;
        let rows = (self.rows.max(1) - 1) * self.stride + far(0);
        Buf::new(5, [self.channels, rows, (self.cols.max(1) - 1) * self.stride + far(1)], lanes)
    }

    fn grid(&self, src: &Buf) -> Grid {
        Grid { rows: self.rows, cols: self.cols, src_row: self.stride * src.row, src_step: self.stride * LANES }
    }

    fn taps(&self, src: &Buf, block: usize) -> Taps {
        let offs: Vec<u32> = self.taps.iter().map(|[r, s]| (r * src.row + s * LANES) as u32).collect();
        Taps::new(self.channels, src.chan, &offs, block)
    }

    /// Lists with channel blocks of `block`: starts, offsets, values.
    fn lists(&self, src: &Buf, block: usize) -> (usize, Vec<u32>, Vec<u32>, Vec<f32>) {
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
        (blocks, starts, offs, values)
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

fn close(what: &str, got: f32, (want, mag): (f64, f64)) {
    let err = (f64::from(got) - want).abs();
    assert!(err <= 1e-6 * mag + 1e-30, "{what}: got {got}, want {want}, sum of magnitudes {mag}");
}

#[derive(Clone, Copy, Debug)]
enum Kernel {
    Dense { block: usize },
    Sparse { block: usize, tile: usize },
}

/// Outputs `[o][row][col][16]` with steps of 2 pixels, old content `old` or NaN; checks that nothing else was written.
fn forward(l: &Layer, src: &Buf, way: Way, kernel: Kernel, cuts: &[usize], start: Start, old: &[f32]) -> Vec<f32> {
    let (step, row) = (2 * LANES, 2 * LANES * l.cols + LANES);
    let chan = row * l.rows + LANES;
    let mut y = vec![f32::NAN; 2 * AROUND + l.outputs() * chan];
    let place = |i: usize| {
        let (px, lane) = (i / LANES, i % LANES);
        AROUND + px / (l.rows * l.cols) * chan + px / l.cols % l.rows * row + px % l.cols * step + lane
    };
    old.iter().enumerate().for_each(|(i, v)| y[place(i)] = *v);
    let dst = Out { ptr: y[AROUND..].as_mut_ptr(), chan, row, step };
    let (grid, ends) = (l.grid(src), cuts.iter().copied().chain([l.outputs()]));
    let mut from = 0;
    for to in ends {
        let outs = from..to;
        // SAFETY: buffers were built for the layer.
        unsafe {
            match kernel {
                Kernel::Dense { block } => {
                    let (taps, weights, src) = (&l.taps(src, block), &l.weights[..], src.patch());
                    match way {
                        Way::Isa(isa) => dense::dense(isa, taps, weights, src, dst, grid, outs, start),
                        Way::Wide => {
                            dense::blocks::<Portable<true>>(&dense::Walk { taps, weights, src, dst, grid, start }, outs)
                        }
                    }
                }
                Kernel::Sparse { block, tile } => {
                    let (blocks, starts, offs, values) = l.lists(src, block);
                    let (s, values, src) =
                        (&Segments { blocks, starts: &starts, offs: &offs }, &values[..], src.patch());
                    match way {
                        Way::Isa(isa) => sparse::sparse(isa, s, values, src, dst, grid, outs, start, tile),
                        Way::Wide => sparse::gather::<Portable<true>>(
                            &sparse::Walk { s, values, src, dst, grid, start },
                            outs,
                            tile,
                        ),
                    }
                }
            }
        }
        from = to;
    }
    let out: Vec<f32> = (0..l.outputs() * l.rows * l.cols * LANES).map(|i| y[place(i)]).collect();
    (0..out.len()).for_each(|i| y[place(i)] = f32::NAN);
    assert!(y.iter().all(|v| v.is_nan()), "{way:?} {kernel:?} wrote beside its pixels");
    out
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
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

#[test]
fn forward_kernels_agree_with_f64_and_byte_for_byte_with_each_other() {
    for (shape, grid) in SHAPES {
        for density in [1.0, 0.3, 0.0] {
            let l = Layer::new(shape, grid, density);
            let src = l.source(LANES);
            let n = l.outputs() * l.rows * l.cols * LANES;
            let (bias, old) = (noise(6, l.outputs()), noise(7, n));
            for (start, old) in [(Start::Zero, &[][..]), (Start::Bias(&bias), &[]), (Start::Old, &old)] {
                let mut seen: Vec<(bool, Vec<u32>)> = vec![];
                for way in ways() {
                    let dense = [1, 2, 3, 100].map(|block| Kernel::Dense { block });
                    let sparse = (1..=15).map(|tile| Kernel::Sparse { block: [1, 2, 100][tile % 3], tile });
                    for (i, kernel) in dense.into_iter().chain(sparse).enumerate() {
                        let cuts = if i % 2 == 0 { vec![] } else { vec![l.outputs() / 3, l.outputs() / 2] };
                        let got = forward(&l, &src, way, kernel, &cuts, start, old);
                        if let Some((_, want)) = seen.iter().find(|(k, _)| *k == kin(way)) {
                            assert!(*want == bits(&got), "{way:?} {kernel:?} {shape:?} {grid:?} {density} {start:?}");
                            continue;
                        }
                        for (i, v) in got.iter().enumerate() {
                            let px = i / LANES;
                            let o = px / (l.rows * l.cols);
                            let first = match start {
                                Start::Zero => 0.0,
                                Start::Bias(b) => b[o],
                                Start::Old => old[i],
                            };
                            let want = l.want(&src, o, [px / l.cols % l.rows, px % l.cols, i % LANES], first);
                            close(&format!("{way:?} {kernel:?} {shape:?} {grid:?} {density} [{i}]"), *v, want);
                        }
                        seen.push((kin(way), bits(&got)));
                    }
                }
            }
        }
    }
}

#[test]
fn data_gradient_through_packed_classes() {
    for (c, h, w, k, r, stride, pad) in [
        (3, 5, 6, 4, 3, 1, 1),
        (2, 7, 7, 5, 3, 2, 1),
        (5, 6, 4, 3, 1, 2, 0),
        (1, 9, 8, 2, 7, 2, 3),
        (2, 5, 5, 3, 2, 3, 0),
    ] {
        let g = ConvGeom { c, h, w, k, r, s: r, stride, pad };
        let weights = noise(8, g.weights());
        let kept: Vec<u32> = (0..g.weights() as u32).filter(|i| i % 3 != 1).collect();
        let values: Vec<f32> = kept.iter().map(|&i| weights[i as usize]).collect();
        let pruned: Vec<f32> = (0..weights.len()).map(|i| if i % 3 == 1 { 0.0 } else { weights[i] }).collect();
        let packing = Packing::new(&g);
        for (kept, values, weights) in [(None, &weights, &weights), (Some(&kept[..]), &values, &pruned)] {
            let (mut packed, mut plain) = (vec![0.0; packing.len()], vec![0.0; packing.len()]);
            for ks in [0..1, 1..k as usize] {
                // SAFETY: both arrays have `len` floats.
                unsafe {
                    packing.transposed(values, kept, ks.clone(), packed.as_mut_ptr());
                    packing.forward(values, kept, ks, plain.as_mut_ptr());
                }
            }
            assert!(plain == *weights, "forward packing of {g:?}");
            for way in ways() {
                data_gradient(&g, weights, &packing, &packed, way);
            }
        }
    }
}

/// All classes from one dy with a halo that fits all taps, against f64.
fn data_gradient(g: &ConvGeom, weights: &[f32], packing: &Packing, packed: &[f32], way: Way) {
    let [c, h, w, k, r, st, pad] = [g.c, g.h, g.w, g.k, g.r, g.stride, g.pad].map(|v| v as usize);
    let (p, q) = (g.p() as usize, g.q() as usize);
    let halo = g.output_halo() as usize;
    let mut dy = Buf::new(9, [k, p + 2 * halo, q + 2 * halo], LANES);
    let inside = |y: usize, x: usize| (halo..halo + p).contains(&y) && (halo..halo + q).contains(&x);
    for i in 0..k * (p + 2 * halo) * (q + 2 * halo) {
        let (y, x) = (i / (q + 2 * halo) % (p + 2 * halo), i % (q + 2 * halo));
        if !inside(y, x) {
            let at = dy.at(i / (q + 2 * halo) / (p + 2 * halo), y, x, 0);
            dy.data[at..at + LANES].fill(0.0);
        }
    }
    let mut dx = vec![f32::NAN; c * h * w * LANES];
    for class in packing.classes() {
        let place = |t: &[i64; 2]| (t[0] + halo as i64) * dy.row as i64 + (t[1] + halo as i64) * LANES as i64;
        let offs: Vec<u32> = class.taps.iter().map(|t| place(t).try_into().unwrap_or(u32::MAX)).collect();
        let taps = &Taps::new(k, dy.chan, &offs, 2);
        let grid = Grid { rows: class.size[0], cols: class.size[1], src_row: dy.row, src_step: LANES };
        let at = (class.at[0] * w + class.at[1]) * LANES;
        let dst =
            Out { ptr: dx.as_mut_ptr().wrapping_add(at), chan: h * w * LANES, row: st * w * LANES, step: st * LANES };
        let (weights, src, start) = (&packed[class.weights.clone()], dy.patch(), Start::Zero);
        // SAFETY: dx has all pixels of the classes, dy all that their taps reach.
        unsafe {
            match way {
                Way::Isa(isa) => dense::dense(isa, taps, weights, src, dst, grid, 0..c, start),
                Way::Wide => {
                    dense::blocks::<Portable<true>>(&dense::Walk { taps, weights, src, dst, grid, start }, 0..c)
                }
            }
        }
    }
    let mut want = vec![(0f64, 0f64); dx.len()];
    for (i, weight) in weights.iter().enumerate() {
        let (ko, ci, tr, ts) = (i / (c * r * r), i / (r * r) % c, i / r % r, i % r);
        for (y, x) in (0..p).flat_map(|y| (0..q).map(move |x| (y, x))) {
            let (iy, ix) = ((y * st + tr).wrapping_sub(pad), (x * st + ts).wrapping_sub(pad));
            if iy < h && ix < w {
                for lane in 0..LANES {
                    let v = f64::from(*weight) * f64::from(dy.data[dy.at(ko, y + halo, x + halo, lane)]);
                    let sum = &mut want[((ci * h + iy) * w + ix) * LANES + lane];
                    *sum = (sum.0 + v, sum.1 + v.abs());
                }
            }
        }
    }
    for (i, (got, want)) in dx.iter().zip(want).enumerate() {
        close(&format!("{way:?} {g:?} dx[{i}]"), *got, want);
    }
}

#[test]
fn weight_gradients_mask_lanes_and_add_up() {
    let more = [([6, 3, 3, 3], [3, 65, 1]), ([5, 4, 1, 1], [9, 14, 1])];
    for (shape, grid) in SHAPES.into_iter().chain(more) {
        for (lanes, density) in [(16, 1.0), (16, 0.3), (1, 1.0), (9, 0.5), (7, 0.0)] {
            let l = Layer::new(shape, grid, density);
            let (x, dy) = (l.source(lanes), Buf::new(10, [l.outputs(), l.rows, l.cols], lanes));
            for way in ways() {
                let cut = l.outputs() / 2;
                for outs in [0..cut, cut..l.outputs()] {
                    for i in 0..15 {
                        sparse_dots(&l, &x, &dy, lanes, way, outs.clone(), [1, 2, 100][i % 3], i + 1);
                    }
                    if density == 1.0 {
                        for block in [1, 3, 100] {
                            dense_dots(&l, &x, &dy, lanes, way, outs.clone(), block);
                        }
                    }
                }
            }
        }
    }
}

/// Value and sum of magnitudes of a weight's gradient, added to `start`.
fn want_dot(l: &Layer, x: &Buf, dy: &Buf, lanes: usize, o: usize, [c, t]: [usize; 2], start: f32) -> (f64, f64) {
    let mut sum = (f64::from(start), f64::from(start).abs());
    for i in 0..l.rows * l.cols * lanes {
        let (px, lane) = (i / lanes, i % lanes);
        let ([r, s], [row, col]) = (l.taps[t], [px / l.cols, px % l.cols]);
        let a = f64::from(x.data[x.at(c, row * l.stride + r, col * l.stride + s, lane)]);
        let p = a * f64::from(dy.data[dy.at(o, row, col, lane)]);
        sum = (sum.0 + p, sum.1 + p.abs());
    }
    sum
}

#[allow(clippy::too_many_arguments)]
fn sparse_dots(l: &Layer, x: &Buf, dy: &Buf, lanes: usize, way: Way, outs: Range<usize>, block: usize, tile: usize) {
    let (blocks, starts, offs, _) = l.lists(x, block);
    let s = Segments { blocks, starts: &starts, offs: &offs };
    let entries: Vec<(usize, [usize; 2])> = outs.clone().flat_map(|o| l.kept[o].iter().map(move |e| (o, *e))).collect();
    let old = noise(11, entries.len());
    let mut sums = old.clone();
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
        let want = want_dot(l, x, dy, lanes, o, e, old[i]);
        close(&format!("{way:?} block {block} tile {tile} lanes {lanes} {o} {e:?}"), sums[i], want);
    }
}

fn dense_dots(l: &Layer, x: &Buf, dy: &Buf, lanes: usize, way: Way, outs: Range<usize>, block: usize) {
    let taps = &l.taps(x, block);
    let old = noise(12, outs.len() * taps.weights());
    let mut sums = old.clone();
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
        let want = want_dot(l, x, dy, lanes, o, [rest / l.taps.len(), rest % l.taps.len()], *old);
        close(&format!("{way:?} dense block {block} lanes {lanes} {o} {rest}"), sums[i], want);
    }
}
