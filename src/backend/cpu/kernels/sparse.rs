//! Forward pass and data gradient over a list of non-zeros, in any pattern.
//!
//! A register tile holds some pixels of one output row; a loop over the non-zeros of the output channel broadcasts each
//! and multiplies it with the pixels at its offset, straight from memory: one load a multiply-add, 84 of 100 GFLOP/s from
//! L1 (Zen 3, AVX2, 2026-11).
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use super::patch::{Grid, Out, Patch, Start, part};
use crate::backend::cpu::simd::{Isa, V16, entry_points};
use std::ops::Range;

/// Outputs whose pixels of one tile (14 KB with 7 pixels, 8 KB with 4) wait for the next channel block. 64 were 5-12 %
/// slower over a step of ResNet-50 (Zen 3, 2026-11): they and the block's input leave L1.
const OUTPUTS: usize = 32;

/// Non-zeros. Segment `o * blocks + b` holds those of output `o` whose input channel is in block `b`, in summing order.
#[derive(Clone, Copy)]
pub(crate) struct Segments<'a> {
    pub(crate) blocks: usize,
    /// First entry of each segment, and the end.
    pub(crate) starts: &'a [u32],
    /// Offset of each entry from the pixel's place in the patch.
    pub(crate) offs: &'a [u32],
}

/// `dst[o][row][col] = start + sum over the entries of output o of value * src[offset + row, col]` for the outputs and
/// pixels given, with register tiles of up to `tile` pixels (at most what the instruction set has room for).
///
/// SAFETY: `isa` is available; segments, offsets and the grid stay inside the lists, `src` and `dst`, which do not
/// overlap; nobody else uses the pixels written.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn sparse(
    isa: Isa,
    s: &Segments,
    values: &[f32],
    src: Patch,
    dst: Out,
    grid: Grid,
    outs: Range<usize>,
    start: Start,
    tile: usize,
) {
    let w = Walk { s, values, src, dst, grid, start };
    unsafe { kernel(isa, &w, outs, tile) }
}

/// A call's operands.
pub(super) struct Walk<'a> {
    pub(super) s: &'a Segments<'a>,
    pub(super) values: &'a [f32],
    pub(super) src: Patch,
    pub(super) dst: Out,
    pub(super) grid: Grid,
    pub(super) start: Start<'a>,
}

entry_points!(kernel = gather(w: &Walk, outs: Range<usize>, tile: usize));

#[inline(always)]
pub(super) unsafe fn gather<V: V16>(w: &Walk, outs: Range<usize>, tile: usize) {
    // A constant step makes the pixel's place part of the instruction.
    unsafe {
        match w.grid.src_step {
            16 => strips::<V, 16>(w, outs, tile),
            32 => strips::<V, 32>(w, outs, tile),
            _ => strips::<V, 0>(w, outs, tile),
        }
    }
}

#[inline(always)]
unsafe fn strips<V: V16, const STEP: usize>(w: &Walk, outs: Range<usize>, tile: usize) {
    let tiles = w.grid.cols.div_ceil(tile.clamp(1, V::GATHER));
    for row in 0..w.grid.rows {
        for tile in 0..tiles {
            let cols = part(w.grid.cols, tiles, tile);
            // SAFETY: inside the grid.
            unsafe {
                let src = w.src.ptr.add(row * w.grid.src_row + cols.start * w.grid.src_step);
                let dst = w.dst.ptr.add(row * w.dst.row + cols.start * w.dst.step);
                match cols.len() {
                    1 => tile_outs::<V, STEP, 1>(w, src, dst, &outs),
                    2 => tile_outs::<V, STEP, 2>(w, src, dst, &outs),
                    3 => tile_outs::<V, STEP, 3>(w, src, dst, &outs),
                    4 if V::GATHER >= 4 => tile_outs::<V, STEP, 4>(w, src, dst, &outs),
                    5 if V::GATHER >= 5 => tile_outs::<V, STEP, 5>(w, src, dst, &outs),
                    6 if V::GATHER >= 6 => tile_outs::<V, STEP, 6>(w, src, dst, &outs),
                    7 if V::GATHER >= 7 => tile_outs::<V, STEP, 7>(w, src, dst, &outs),
                    8 if V::GATHER >= 8 => tile_outs::<V, STEP, 8>(w, src, dst, &outs),
                    9 if V::GATHER >= 9 => tile_outs::<V, STEP, 9>(w, src, dst, &outs),
                    10 if V::GATHER >= 10 => tile_outs::<V, STEP, 10>(w, src, dst, &outs),
                    11 if V::GATHER >= 11 => tile_outs::<V, STEP, 11>(w, src, dst, &outs),
                    12 if V::GATHER >= 12 => tile_outs::<V, STEP, 12>(w, src, dst, &outs),
                    13 if V::GATHER >= 13 => tile_outs::<V, STEP, 13>(w, src, dst, &outs),
                    14 if V::GATHER >= 14 => tile_outs::<V, STEP, 14>(w, src, dst, &outs),
                    _ => unreachable!("tiles are not wider than V::GATHER"),
                }
            }
        }
    }
}

/// All outputs of one tile, channel block by channel block, so that the block's pixels stay in L1.
#[inline(always)]
unsafe fn tile_outs<V: V16, const STEP: usize, const T: usize>(
    w: &Walk,
    src: *const f32,
    dst: *mut f32,
    outs: &Range<usize>,
) {
    for first in outs.clone().step_by(OUTPUTS) {
        for b in 0..w.s.blocks {
            for o in first..outs.end.min(first + OUTPUTS) {
                // SAFETY: as the caller's.
                unsafe { segment::<V, STEP, T>(w, src, dst.add(o * w.dst.chan), o, b) }
            }
        }
    }
}

/// Adds the entries of output `o` in channel block `b` to one tile; block 0 starts it.
#[inline(always)]
unsafe fn segment<V: V16, const STEP: usize, const T: usize>(
    w: &Walk,
    src: *const f32,
    dst: *mut f32,
    o: usize,
    b: usize,
) {
    let step = if STEP == 0 { w.grid.src_step } else { STEP };
    let (offs, values) = (w.s.offs.as_ptr(), w.values.as_ptr());
    // SAFETY: segments lie inside the lists, entries and pixels inside the patch.
    unsafe {
        let begin = *w.s.starts.get_unchecked(o * w.s.blocks + b) as usize;
        let end = *w.s.starts.get_unchecked(o * w.s.blocks + b + 1) as usize;
        if begin == end && b > 0 {
            return;
        }
        let mut acc = [V::splat(0.0); T];
        match w.start {
            Start::Bias(bias) if b == 0 => acc = [V::splat(*bias.get_unchecked(o)); T],
            Start::Zero if b == 0 => {}
            _ => {
                for t in 0..T {
                    acc[t] = V::load(dst.add(t * w.dst.step));
                }
            }
        }
        for e in begin..end {
            let v = V::splat(*values.add(e));
            let p = src.add(*offs.add(e) as usize);
            for t in 0..T {
                acc[t] = v.fma(V::load(p.add(t * step)), acc[t]);
            }
        }
        for t in 0..T {
            acc[t].store(dst.add(t * w.dst.step));
        }
    }
}
