//! Forward pass and data gradient.

use super::super::pack::Packing;
use super::super::patch::{Out, Start};
use super::super::{dense, sparse};
use super::*;
use crate::backend::cpu::simd::Portable;
use crate::shape::ConvGeom;

#[derive(Clone, Copy)]
enum Kernel<'a> {
    Dense { block: usize },
    Sparse { lists: &'a Lists, tile: usize },
}

impl std::fmt::Debug for Kernel<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kernel::Dense { block } => write!(f, "dense, blocks of {block},"),
            Kernel::Sparse { lists, tile } => write!(f, "sparse, blocks of {}, tile {tile},", lists.block),
        }
    }
}

/// Outputs `[o][row][col][16]` with steps of 2 pixels; begins with the first pixel and ends with the last.
struct Output {
    data: Guarded<f32>,
    chan: usize,
    row: usize,
    /// Of each number.
    places: Vec<usize>,
}

const STEP: usize = 2 * LANES;

impl Output {
    fn new(l: &Layer) -> Output {
        let row = STEP * l.cols + LANES;
        let chan = row * l.rows + LANES;
        let place = |i: usize| {
            let (px, lane) = (i / LANES, i % LANES);
            px / (l.rows * l.cols) * chan + px / l.cols % l.rows * row + px % l.cols * STEP + lane
        };
        let places: Vec<usize> = (0..l.outputs() * l.rows * l.cols * LANES).map(place).collect();
        let len = places.last().map_or(0, |p| p + 1);
        Output { data: Guarded::new(l.flush, &vec![0.0; len]), chan, row, places }
    }
}

/// The outputs, from old content `old` or NaN; checks that nothing else was written.
#[allow(clippy::too_many_arguments)]
fn forward(
    l: &Layer,
    src: &Buf,
    y: &mut Output,
    way: Way,
    kernel: Kernel,
    cuts: &[usize],
    start: Start,
    old: &[f32],
) -> Vec<f32> {
    y.data.fill(f32::NAN);
    old.iter().zip(&y.places).for_each(|(v, &at)| y.data[at] = *v);
    let dst = Out { ptr: y.data.as_mut_ptr(), chan: y.chan, row: y.row, step: STEP };
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
                Kernel::Sparse { lists, tile } => {
                    let (s, values, src) = (&lists.segments(), &lists.values[..], src.patch());
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
    let out: Vec<f32> = y.places.iter().map(|&at| y.data[at]).collect();
    y.places.iter().for_each(|&at| y.data[at] = f32::NAN);
    assert!(y.data.iter().all(|v| v.is_nan()), "{way:?} {kernel:?} wrote beside its pixels");
    out
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn forward_kernels_agree_with_f64_and_byte_for_byte_with_each_other() {
    for ((shape, grid), flush) in SHAPES.into_iter().flat_map(|s| Flush::BOTH.map(|f| (s, f))) {
        for density in [1.0, 0.3, 0.0] {
            let l = Layer::new(shape, grid, density, flush);
            let src = l.source(LANES);
            let (lists, mut y) = (l.lists(&src), Output::new(&l));
            let n = l.outputs() * l.rows * l.cols * LANES;
            let (bias, old) = (Guarded::new(flush, &noise(6, l.outputs())), noise(7, n));
            for (start, old) in [(Start::Zero, &[][..]), (Start::Bias(&bias), &[]), (Start::Old, &old)] {
                let mut seen: Vec<(bool, Vec<u32>)> = vec![];
                for way in ways() {
                    let dense = [1, 2, 3, 100].map(|block| Kernel::Dense { block });
                    let sparse = (1..=15).map(|tile| Kernel::Sparse { lists: &lists[tile % 3], tile });
                    for (i, kernel) in dense.into_iter().chain(sparse).enumerate() {
                        let cuts = if i % 2 == 0 { vec![] } else { vec![l.outputs() / 3, l.outputs() / 2] };
                        let got = forward(&l, &src, &mut y, way, kernel, &cuts, start, old);
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
                            close(format_args!("{way:?} {kernel:?} {shape:?} {grid:?} {density} [{i}]"), *v, want);
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
        for ((kept, values, weights), flush) in [(None, &weights, &weights), (Some(&kept[..]), &values, &pruned)]
            .into_iter()
            .flat_map(|w| Flush::BOTH.map(|f| (w, f)))
        {
            let [mut packed, mut plain] = [(); 2].map(|()| Guarded::new(flush, &vec![0.0; packing.len()]));
            for ks in [0..1, 1..k as usize] {
                // SAFETY: both arrays have `len` floats.
                unsafe {
                    packing.transposed(values, kept, ks.clone(), packed.as_mut_ptr());
                    packing.forward(values, kept, ks, plain.as_mut_ptr());
                }
            }
            assert!(*plain == **weights, "forward packing of {g:?}");
            for way in ways() {
                data_gradient(&g, weights, &packing, &packed, way, flush);
            }
        }
    }
}

/// All classes from one dy with a halo just as wide as the taps reach, against f64.
fn data_gradient(g: &ConvGeom, weights: &[f32], packing: &Packing, packed: &[f32], way: Way, flush: Flush) {
    let [c, h, w, k, r, st, pad] = [g.c, g.h, g.w, g.k, g.r, g.stride, g.pad].map(|v| v as usize);
    let (p, q) = (g.p() as usize, g.q() as usize);
    let size = |extent: usize, first: usize| extent.saturating_sub(first).div_ceil(st);
    let reach =
        |tap: i64, size: usize, out: usize| if size == 0 { 0 } else { (-tap).max(size as i64 + tap - out as i64) };
    let reaches = packing.classes().iter().enumerate().flat_map(|(i, class)| {
        let sizes = [size(h, i / st), size(w, i % st)];
        class.taps.iter().map(move |t| reach(t[0], sizes[0], p).max(reach(t[1], sizes[1], q)))
    });
    let halo = reaches.max().unwrap_or(0).max(0) as usize;
    let mut dy = Buf::new(9, [k, p + 2 * halo, q + 2 * halo], LANES, flush);
    let inside = |y: usize, x: usize| (halo..halo + p).contains(&y) && (halo..halo + q).contains(&x);
    for i in 0..k * (p + 2 * halo) * (q + 2 * halo) {
        let (y, x) = (i / (q + 2 * halo) % (p + 2 * halo), i % (q + 2 * halo));
        if !inside(y, x) {
            let at = dy.at(i / (q + 2 * halo) / (p + 2 * halo), y, x, 0);
            dy.data[at..at + LANES].fill(0.0);
        }
    }
    let mut dx = Guarded::new(flush, &vec![f32::NAN; c * h * w * LANES]);
    for (i, class) in packing.classes().iter().enumerate() {
        let (row, col) = (i / st, i % st);
        let place = |t: &[i64; 2]| (t[0] + halo as i64) * dy.row as i64 + (t[1] + halo as i64) * LANES as i64;
        let offs: Vec<u32> = class.taps.iter().map(|t| place(t).try_into().unwrap_or(u32::MAX)).collect();
        let taps = &Taps::new(k, dy.chan, &offs, 2);
        let grid = Grid { rows: size(h, row), cols: size(w, col), src_row: dy.row, src_step: LANES };
        let at = (row * w + col) * LANES;
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
        close(format_args!("{way:?} {g:?} dx[{i}]"), *got, want);
    }
}
