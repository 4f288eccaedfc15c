//! Forward pass and data gradient of a layer with all its weights, or nearly all.
//!
//! A register block of outputs x pixels shares each pixel and each weight it loads: 8 loads for 12 multiply-adds (AVX2),
//! 95 % of the machine's peak from L2. Pixels of a block may lie in two rows. Weights are `[outputs][channels][taps]`, which
//! for the forward pass of a full layer is the flat store itself.
//!
//! A zero weight is multiplied like any other: where the source is not finite, a layer with pruned weights gets NaN that
//! the sparse kernel would not meet.
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use super::patch::{Grid, Out, Patch, Pixel, Start, Taps, part};
use crate::backend::cpu::simd::{Isa, V16, entry_points};
use std::ops::Range;

/// Outputs that take their turns in a channel block before the next one: their weights (36 KB with 16 channels of 3x3)
/// and pixels stay in L2.
const OUTPUTS: usize = 64;
/// Source bytes of a register block's channel block, which stay in L1 (32 KB) while all outputs take their turns.
const L1_BYTES: usize = 16 << 10;

/// Channels a block for [`Taps::new`]: as many as keep a register block's pixels in L1, in blocks of equal size.
/// `kernel`: rows and columns of taps, `stride`: columns of the source from one output column to the next.
pub(crate) fn block(isa: Isa, channels: usize, kernel: [usize; 2], stride: usize) -> usize {
    let pixels = if isa == Isa::Avx512 { 6 } else { 3 };
    let bytes = kernel[0] * ((pixels - 1) * stride.min(kernel[1]) + kernel[1]) * 64;
    let most = (L1_BYTES / bytes.max(1)).clamp(1, channels.max(1));
    channels.div_ceil(channels.div_ceil(most).max(1))
}

/// `dst[o][row][col] = start + sum over channels and taps of weight * src[tap + row, col]` for the outputs and pixels
/// given.
///
/// SAFETY: `isa` is available; `weights` holds `taps.weights()` of every output up to `outs.end`; taps and the grid stay
/// inside `src` and `dst`, which do not overlap; nobody else uses the pixels written.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn dense(
    isa: Isa,
    taps: &Taps,
    weights: &[f32],
    src: Patch,
    dst: Out,
    grid: Grid,
    outs: Range<usize>,
    start: Start,
) {
    assert!(weights.len() >= outs.end * taps.weights(), "a weight a tap");
    unsafe { kernel(isa, &Walk { taps, weights, src, dst, grid, start }, outs) }
}

/// A call's operands.
pub(super) struct Walk<'a> {
    pub(super) taps: &'a Taps,
    pub(super) weights: &'a [f32],
    pub(super) src: Patch,
    pub(super) dst: Out,
    pub(super) grid: Grid,
    pub(super) start: Start<'a>,
}

entry_points!(kernel = blocks(w: &Walk, outs: Range<usize>));

#[inline(always)]
pub(super) unsafe fn blocks<V: V16>(w: &Walk, outs: Range<usize>) {
    let pixels = w.grid.rows * w.grid.cols;
    let tiles = pixels.div_ceil(V::BLOCK.1);
    let t = w.taps;
    for first in outs.clone().step_by(OUTPUTS) {
        let outs = first..outs.end.min(first + OUTPUTS);
        // One turn at least, so that a layer without inputs is its start.
        for b in 0..t.channels.div_ceil(t.block).max(1) {
            let mut at = Pixel { row: 0, col: 0 };
            for tile in 0..tiles {
                // SAFETY: as the caller's.
                unsafe {
                    match part(pixels, tiles, tile).len() {
                        1 => tile_outs::<V, 1>(w, b, &mut at, &outs),
                        2 => tile_outs::<V, 2>(w, b, &mut at, &outs),
                        3 => tile_outs::<V, 3>(w, b, &mut at, &outs),
                        4 if V::BLOCK.1 >= 4 => tile_outs::<V, 4>(w, b, &mut at, &outs),
                        5 if V::BLOCK.1 >= 5 => tile_outs::<V, 5>(w, b, &mut at, &outs),
                        6 if V::BLOCK.1 >= 6 => tile_outs::<V, 6>(w, b, &mut at, &outs),
                        _ => unreachable!("tiles are not wider than V::BLOCK"),
                    }
                }
            }
        }
    }
}

/// All outputs of one tile, which begins at `at` and moves it on, in channel block `b`.
#[inline(always)]
unsafe fn tile_outs<V: V16, const T: usize>(w: &Walk, b: usize, at: &mut Pixel, outs: &Range<usize>) {
    let mut src = [w.src.ptr; T];
    let mut dst = [w.dst.ptr; T];
    // SAFETY: inside the grid.
    unsafe {
        for t in 0..T {
            src[t] = w.src.ptr.add(b * w.taps.block * w.src.chan + at.row * w.grid.src_row + at.col * w.grid.src_step);
            dst[t] = w.dst.ptr.add(at.row * w.dst.row + at.col * w.dst.step);
            at.next(&w.grid);
        }
        let mut o = outs.start;
        while o < outs.end {
            let n = V::BLOCK.0.min(outs.end - o);
            match n {
                1 => block_of::<V, 1, T>(w, b, src, dst, o),
                2 => block_of::<V, 2, T>(w, b, src, dst, o),
                3 if V::BLOCK.0 >= 3 => block_of::<V, 3, T>(w, b, src, dst, o),
                4 if V::BLOCK.0 >= 4 => block_of::<V, 4, T>(w, b, src, dst, o),
                _ => unreachable!("blocks are not higher than V::BLOCK"),
            }
            o += n;
        }
    }
}

/// Adds channel block `b` to outputs `o..o + O` of T pixels; block 0 starts them.
#[inline(always)]
unsafe fn block_of<V: V16, const O: usize, const T: usize>(
    w: &Walk,
    b: usize,
    src: [*const f32; T],
    dst: [*mut f32; T],
    o: usize,
) {
    let t = w.taps;
    let each = t.weights();
    let entries = (t.channels - b * t.block).min(t.block) * t.each;
    // SAFETY: as the caller's.
    unsafe {
        let mut acc = [[V::splat(0.0); T]; O];
        match w.start {
            Start::Bias(bias) if b == 0 => {
                for i in 0..O {
                    acc[i] = [V::splat(*bias.get_unchecked(o + i)); T];
                }
            }
            Start::Zero if b == 0 => {}
            _ => {
                for i in 0..O {
                    for t in 0..T {
                        acc[i][t] = V::load(dst[t].add((o + i) * w.dst.chan));
                    }
                }
            }
        }
        let weights = w.weights.as_ptr().add(o * each + b * t.block * t.each);
        for e in 0..entries {
            let off = *t.offs.get_unchecked(e) as usize;
            let mut v = [V::splat(0.0); O];
            for i in 0..O {
                v[i] = V::splat(*weights.add(i * each + e));
            }
            for t in 0..T {
                let x = V::load(src[t].add(off));
                for i in 0..O {
                    acc[i][t] = v[i].fma(x, acc[i][t]);
                }
            }
        }
        for i in 0..O {
            for t in 0..T {
                acc[i][t].store(dst[t].add((o + i) * w.dst.chan));
            }
        }
    }
}
