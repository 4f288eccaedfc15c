//! The sparse kernel of forward pass and data gradient: a sum over non-zeros.
//!
//! A register tile holds up to 7 pixels (of 16 images each) of one output row; a loop over the non-zeros of the output
//! channel broadcasts the value and multiplies it with the pixels at the entry's offset, straight from memory.
//! Every output's additions have one order, whatever the tiles, tasks and threads.
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use super::simd::{Isa, V16, entry_points};
use crate::backend::Write;
use std::ops::Range;

/// A grid of output pixels and the pixels they read: `dst[o][row][col]` reads `src` at
/// `row * src_row + col * src_step + offset`. Strides in floats.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) src: *const f32,
    pub(super) src_row: usize,
    pub(super) src_step: usize,
    pub(super) dst: *mut f32,
    pub(super) dst_chan: usize,
    pub(super) dst_row: usize,
    pub(super) dst_step: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Pixels of a register tile, at most.
    pub(super) tile: usize,
}

/// Entries by output and channel block: segment `o * blocks + b` is `starts[..]..starts[.. + 1]`.
#[derive(Clone, Copy)]
pub(super) struct Entries<'a> {
    pub(super) starts: &'a [u32],
    pub(super) blocks: usize,
    pub(super) offs: &'a [u32],
    pub(super) values: &'a [f32],
}

/// `dst[o] = or += bias[o]? + sum over entries of value * src` for the outputs `outs`.
pub(super) unsafe fn gather(isa: Isa, g: Grid, l: Entries, outs: Range<usize>, bias: Option<&[f32]>, write: Write) {
    // SAFETY: as the caller's.
    unsafe { entry(isa, g, l, outs, bias, write) }
}

entry_points!(entry = strips(g: Grid, l: Entries, outs: Range<usize>, bias: Option<&[f32]>, write: Write));

#[inline(always)]
unsafe fn strips<V: V16>(g: Grid, l: Entries, outs: Range<usize>, bias: Option<&[f32]>, write: Write) {
    // A constant step makes the pixel's place part of the instruction.
    unsafe {
        match g.src_step {
            16 => rows::<V, 16>(g, l, outs, bias, write),
            32 => rows::<V, 32>(g, l, outs, bias, write),
            _ => rows::<V, 0>(g, l, outs, bias, write),
        }
    }
}

#[inline(always)]
unsafe fn rows<V: V16, const STEP: usize>(g: Grid, l: Entries, outs: Range<usize>, bias: Option<&[f32]>, write: Write) {
    let tiles = g.cols.div_ceil(V::TILE.min(g.tile));
    for row in 0..g.rows {
        for tile in 0..tiles {
            let (from, to) = (g.cols * tile / tiles, g.cols * (tile + 1) / tiles);
            // SAFETY: inside source and destination.
            unsafe {
                let src = g.src.add(row * g.src_row + from * g.src_step);
                let dst = g.dst.add(row * g.dst_row + from * g.dst_step);
                match to - from {
                    1 => tile_outs::<V, STEP, 1>(&g, &l, src, dst, &outs, bias, write),
                    2 => tile_outs::<V, STEP, 2>(&g, &l, src, dst, &outs, bias, write),
                    3 => tile_outs::<V, STEP, 3>(&g, &l, src, dst, &outs, bias, write),
                    4 => tile_outs::<V, STEP, 4>(&g, &l, src, dst, &outs, bias, write),
                    5 => tile_outs::<V, STEP, 5>(&g, &l, src, dst, &outs, bias, write),
                    6 => tile_outs::<V, STEP, 6>(&g, &l, src, dst, &outs, bias, write),
                    _ => tile_outs::<V, STEP, 7>(&g, &l, src, dst, &outs, bias, write),
                }
            }
        }
    }
}

/// Outputs whose pixels of one tile (28 KB) wait for the next channel block.
const OUT_BLOCK: usize = 64;

/// All outputs of one tile, channel block by channel block, so that the block's pixels stay in L1.
#[inline(always)]
unsafe fn tile_outs<V: V16, const STEP: usize, const T: usize>(
    g: &Grid,
    l: &Entries,
    src: *const f32,
    dst: *mut f32,
    outs: &Range<usize>,
    bias: Option<&[f32]>,
    write: Write,
) {
    for first in outs.clone().step_by(OUT_BLOCK) {
        for b in 0..l.blocks {
            for o in first..outs.end.min(first + OUT_BLOCK) {
                let start = match (b, write, bias) {
                    (0, Write::Overwrite, Some(bias)) => Start::Value(bias[o]),
                    (0, Write::Overwrite, None) => Start::Value(0.0),
                    _ => Start::Old,
                };
                // SAFETY: as the caller's.
                unsafe { segment::<V, STEP, T>(g, l, src, dst.add(o * g.dst_chan), o * l.blocks + b, start) }
            }
        }
    }
}

/// What a tile's sums start from.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    Value(f32),
    Old,
}

/// Adds one segment's entries to one tile.
#[inline(always)]
unsafe fn segment<V: V16, const STEP: usize, const T: usize>(
    g: &Grid,
    l: &Entries,
    src: *const f32,
    dst: *mut f32,
    segment: usize,
    start: Start,
) {
    let step = if STEP == 0 { g.src_step } else { STEP };
    let (offs, values) = (l.offs.as_ptr(), l.values.as_ptr());
    // SAFETY: segments lie inside the lists, entries and pixels inside the source.
    unsafe {
        let begin = *l.starts.get_unchecked(segment) as usize;
        let end = *l.starts.get_unchecked(segment + 1) as usize;
        if begin == end && start == Start::Old {
            return;
        }
        let mut acc = [V::splat(0.0); T];
        match start {
            Start::Value(v) => {
                acc = [V::splat(v); T];
                for t in 0..T {
                    V::prefetch_write(dst.wrapping_add((T + t) * g.dst_step));
                }
            }
            Start::Old => {
                for t in 0..T {
                    acc[t] = V::load(dst.add(t * g.dst_step));
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
            acc[t].store(dst.add(t * g.dst_step));
        }
    }
}
