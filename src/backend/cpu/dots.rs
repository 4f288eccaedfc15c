//! The sparse kernel of the weight gradient: one dot product a non-zero, `dw = sum over images and pixels of dy * x`.
//!
//! A tile of up to 7 pixels of dy stays in registers while the non-zeros of its output channel pass by; each adds its
//! products to 8 partial sums.
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use super::layout::LANES;
use super::simd::{Isa, V16, entry_points, lane_mask, load_masked};
use std::ops::Range;

/// The two operands over a grid of output pixels; strides in floats.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub(super) x: *const f32,
    pub(super) x_row: usize,
    pub(super) x_step: usize,
    pub(super) dy: *const f32,
    pub(super) dy_chan: usize,
    pub(super) dy_row: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Pixels of a register tile, at most.
    pub(super) tile: usize,
    /// Images in the block; the other lanes of both operands may hold anything.
    pub(super) lanes: usize,
}

/// Segments as in [`super::structure::Lists`].
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    pub(super) starts: &'a [u32],
    pub(super) blocks: usize,
    pub(super) offs: &'a [u32],
}

/// Adds to `sums`, 8 floats for each entry of the outputs `outs`. Channel 0 of `p.dy` is output `outs.start`.
pub(super) unsafe fn dots(isa: Isa, p: Pair, l: Places, outs: Range<usize>, sums: &mut [f32]) {
    // SAFETY: as the caller's.
    unsafe { entry(isa, p, l, outs, sums) }
}

entry_points!(entry = grid(p: Pair, l: Places, outs: Range<usize>, sums: &mut [f32]));

#[inline(always)]
unsafe fn grid<V: V16>(p: Pair, l: Places, outs: Range<usize>, sums: &mut [f32]) {
    // SAFETY: as the caller's.
    unsafe {
        match (p.x_step, p.lanes == LANES) {
            (16, true) => block::<V, 16, false>(&p, &l, &outs, sums),
            (32, true) => block::<V, 32, false>(&p, &l, &outs, sums),
            (_, true) => block::<V, 0, false>(&p, &l, &outs, sums),
            (_, false) => block::<V, 0, true>(&p, &l, &outs, sums),
        }
    }
}

/// Channel block by channel block, so that a tile's pixels and sums stay near.
#[inline(always)]
unsafe fn block<V: V16, const STEP: usize, const MASK: bool>(
    p: &Pair,
    l: &Places,
    outs: &Range<usize>,
    sums: &mut [f32],
) {
    let tiles = p.cols.div_ceil(V::TILE.min(p.tile));
    for b in 0..l.blocks {
        for row in 0..p.rows {
            for tile in 0..tiles {
                let (from, to) = (p.cols * tile / tiles, p.cols * (tile + 1) / tiles);
                // SAFETY: inside x and dy.
                unsafe {
                    let x = p.x.add(row * p.x_row + from * p.x_step);
                    let dy = p.dy.add(row * p.dy_row + from * LANES);
                    match to - from {
                        1 => tile_outs::<V, STEP, MASK, 1>(p, l, b, x, dy, outs, sums),
                        2 => tile_outs::<V, STEP, MASK, 2>(p, l, b, x, dy, outs, sums),
                        3 => tile_outs::<V, STEP, MASK, 3>(p, l, b, x, dy, outs, sums),
                        4 => tile_outs::<V, STEP, MASK, 4>(p, l, b, x, dy, outs, sums),
                        5 => tile_outs::<V, STEP, MASK, 5>(p, l, b, x, dy, outs, sums),
                        6 => tile_outs::<V, STEP, MASK, 6>(p, l, b, x, dy, outs, sums),
                        _ => tile_outs::<V, STEP, MASK, 7>(p, l, b, x, dy, outs, sums),
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_outs<V: V16, const STEP: usize, const MASK: bool, const T: usize>(
    p: &Pair,
    l: &Places,
    b: usize,
    x: *const f32,
    dy: *const f32,
    outs: &Range<usize>,
    sums: &mut [f32],
) {
    let step = if STEP == 0 { p.x_step } else { STEP };
    let offs = l.offs.as_ptr();
    // SAFETY: segments lie inside the lists, entries and pixels inside x, sums hold 8 floats an entry.
    unsafe {
        let mask = lane_mask::<V>(if MASK { p.lanes } else { LANES });
        let origin = *l.starts.get_unchecked(outs.start * l.blocks) as usize;
        for k in outs.clone() {
            let begin = *l.starts.get_unchecked(k * l.blocks + b) as usize;
            let end = *l.starts.get_unchecked(k * l.blocks + b + 1) as usize;
            if begin == end {
                continue;
            }
            let dy = dy.add((k - outs.start) * p.dy_chan);
            let mut grad = [V::splat(0.0); T];
            for t in 0..T {
                grad[t] = pixel::<V, MASK>(dy.add(t * LANES), mask);
            }
            let mut sum = sums.as_mut_ptr().add((begin - origin) * 8);
            for e in begin..end {
                let p = x.add(*offs.add(e) as usize);
                let mut dot = grad[0].mul(pixel::<V, MASK>(p, mask));
                for t in 1..T {
                    dot = grad[t].fma(pixel::<V, MASK>(p.add(t * step), mask), dot);
                }
                dot.add_folded(sum);
                sum = sum.add(8);
            }
        }
    }
}

#[inline(always)]
unsafe fn pixel<V: V16, const MASK: bool>(p: *const f32, mask: V) -> V {
    // SAFETY: as the caller's.
    unsafe { if MASK { load_masked(p, mask) } else { V::load(p) } }
}
