//! Of a layer with all its weights, or nearly all.
//!
//! A register block of 4 outputs x 3 taps (6 on AVX-512) adds up all pixels of a chunk, one register a weight, and is then
//! reduced to one float each: 7 loads for 12 multiply-adds (AVX2).
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use crate::backend::cpu::kernels::patch::{Grid, Patch, Taps, part};
use crate::backend::cpu::layout::LANES;
use crate::backend::cpu::simd::{Eight, Isa, Reg, V16, entry_points};
use std::ops::Range;

/// Pixels that a register block adds up before it is reduced: their 4 outputs of dy (16 KB) stay in L1 while all taps
/// pass by. 32 were 5-10 % slower (more reductions), 128 up to 10 % for 1x1 (L1 too small) and 3 % faster for 3x3.
const PIXELS: usize = 64;
/// Outputs of a register block.
const OUTPUTS: usize = 4;

/// Adds to `sums[(o - outs.start) * taps.weights() + w]` the dot product of weight w of output o for the pixels given.
///
/// SAFETY: `isa` is available; taps and the grid stay inside `x` and `dy`, which hold floats in all 16 lanes.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn dense(
    isa: Isa,
    taps: &Taps,
    x: Patch,
    dy: Patch,
    grid: Grid,
    lanes: usize,
    outs: Range<usize>,
    sums: &mut [f32],
) {
    assert!(sums.len() >= outs.len() * taps.weights(), "a sum a weight");
    unsafe { kernel(isa, &Call { taps, x, dy, grid, lanes }, outs, sums) }
}

/// A call's operands.
pub(crate) struct Call<'a> {
    pub(crate) taps: &'a Taps,
    pub(crate) x: Patch,
    pub(crate) dy: Patch,
    pub(crate) grid: Grid,
    pub(crate) lanes: usize,
}

entry_points!(kernel = blocks(c: &Call, outs: Range<usize>, sums: &mut [f32]));

#[inline(always)]
pub(crate) unsafe fn blocks<V: V16>(c: &Call, outs: Range<usize>, sums: &mut [f32]) {
    // SAFETY: as the caller's.
    unsafe {
        match (c.grid.src_step, c.lanes >= LANES) {
            (16, true) => chunks::<V, 16, false>(c, outs, sums),
            (_, true) => chunks::<V, 0, false>(c, outs, sums),
            (_, false) => chunks::<V, 0, true>(c, outs, sums),
        }
    }
}

/// Pixels added up in one go.
struct Chunk {
    rows: Range<usize>,
    cols: Range<usize>,
}

#[inline(always)]
unsafe fn chunks<V: V16, const STEP: usize, const MASK: bool>(c: &Call, outs: Range<usize>, sums: &mut [f32]) {
    let (g, t) = (&c.grid, c.taps);
    if g.rows * g.cols == 0 {
        return;
    }
    let col_parts = g.cols.div_ceil(PIXELS);
    let row_parts = g.rows.div_ceil((PIXELS / g.cols.div_ceil(col_parts)).max(1));
    for i in 0..row_parts * col_parts {
        let rows = part(g.rows, row_parts, i / col_parts);
        let chunk = Chunk { rows, cols: part(g.cols, col_parts, i % col_parts) };
        for b in 0..t.channels.div_ceil(t.block) {
            let mut k = outs.start;
            while k < outs.end {
                let n = OUTPUTS.min(outs.end - k);
                // SAFETY: as the caller's.
                unsafe {
                    let sums = sums.as_mut_ptr().add((k - outs.start) * t.weights() + b * t.block * t.each);
                    match n {
                        1 => taps_of::<V, STEP, MASK, 1>(c, b, &chunk, k, sums),
                        2 => taps_of::<V, STEP, MASK, 2>(c, b, &chunk, k, sums),
                        3 => taps_of::<V, STEP, MASK, 3>(c, b, &chunk, k, sums),
                        _ => taps_of::<V, STEP, MASK, OUTPUTS>(c, b, &chunk, k, sums),
                    }
                }
                k += n;
            }
        }
    }
}

/// All taps of channel block `b` for O outputs from `k` on.
#[inline(always)]
unsafe fn taps_of<V: V16, const STEP: usize, const MASK: bool, const O: usize>(
    c: &Call,
    b: usize,
    chunk: &Chunk,
    k: usize,
    sums: *mut f32,
) {
    let t = c.taps;
    let entries = (t.channels - b * t.block).min(t.block) * t.each;
    let mut e = 0;
    // SAFETY: as the caller's.
    unsafe {
        let x = c.x.ptr.add(b * t.block * c.x.chan);
        let dy = c.dy.ptr.add(k * c.dy.chan);
        while e < entries {
            let n = V::TAPS.min(entries - e);
            let sums = sums.add(e);
            let offs = &t.offs[e..e + n];
            match n {
                1 => block_of::<V, STEP, MASK, O, 1>(c, chunk, x, dy, offs, sums),
                2 => block_of::<V, STEP, MASK, O, 2>(c, chunk, x, dy, offs, sums),
                3 => block_of::<V, STEP, MASK, O, 3>(c, chunk, x, dy, offs, sums),
                4 if V::TAPS >= 4 => block_of::<V, STEP, MASK, O, 4>(c, chunk, x, dy, offs, sums),
                5 if V::TAPS >= 5 => block_of::<V, STEP, MASK, O, 5>(c, chunk, x, dy, offs, sums),
                6 if V::TAPS >= 6 => block_of::<V, STEP, MASK, O, 6>(c, chunk, x, dy, offs, sums),
                _ => unreachable!("blocks are not wider than V::TAPS"),
            }
            e += n;
        }
    }
}

/// One register block: O outputs x T taps.
#[inline(always)]
unsafe fn block_of<V: V16, const STEP: usize, const MASK: bool, const O: usize, const T: usize>(
    c: &Call,
    chunk: &Chunk,
    x: *const f32,
    dy: *const f32,
    offs: &[u32],
    sums: *mut f32,
) {
    let step = if STEP == 0 { c.grid.src_step } else { STEP };
    let lanes = <V::Reg as Reg>::LANES;
    // SAFETY: as the caller's.
    unsafe {
        let bits: [f32; LANES] = std::array::from_fn(|i| f32::from_bits(if i < c.lanes { !0 } else { 0 }));
        let mut acc = [[V::Reg::zero(); T]; O];
        for row in chunk.rows.clone() {
            let mut from = [x; T];
            for t in 0..T {
                from[t] = x.add(offs[t] as usize + row * c.grid.src_row + chunk.cols.start * step);
            }
            let dy = dy.add(row * c.dy.row + chunk.cols.start * LANES);
            for col in 0..chunk.cols.len() {
                for h in 0..LANES / lanes {
                    let mut taps = [V::Reg::zero(); T];
                    for t in 0..T {
                        taps[t] = V::Reg::load(from[t].add(col * step + h * lanes));
                        if MASK {
                            taps[t] = taps[t].masked(V::Reg::load(bits.as_ptr().add(h * lanes)));
                        }
                    }
                    for o in 0..O {
                        let mut grad = V::Reg::load(dy.add(o * c.dy.chan + col * LANES + h * lanes));
                        if MASK {
                            grad = grad.masked(V::Reg::load(bits.as_ptr().add(h * lanes)));
                        }
                        for t in 0..T {
                            acc[o][t] = grad.fma(taps[t], acc[o][t]);
                        }
                    }
                }
            }
        }
        let weights = c.taps.weights();
        for t in 0..T {
            if O == OUTPUTS {
                let four = Eight::sums([
                    acc[0][t].eight(),
                    acc[1 % O][t].eight(),
                    acc[2 % O][t].eight(),
                    acc[3 % O][t].eight(),
                ]);
                for o in 0..O {
                    *sums.add(o * weights + t) += four[o];
                }
            } else {
                for o in 0..O {
                    *sums.add(o * weights + t) += acc[o][t].eight().sum();
                }
            }
        }
    }
}
