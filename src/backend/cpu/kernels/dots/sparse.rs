//! Over a list of non-zeros, in any pattern.
//!
//! A tile of dy pixels of one output channel stays in registers while the non-zeros of that channel pass by; four dot
//! products at a time are reduced to four floats.
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use crate::backend::cpu::kernels::patch::{Grid, Patch, part};
use crate::backend::cpu::kernels::sparse::Segments;
use crate::backend::cpu::layout::LANES;
use crate::backend::cpu::simd::{Eight, Isa, V16, entry_points, lane_mask, load_masked};
use std::ops::Range;

/// Adds to `sums[e]`, counted from the first entry of `outs`, the dot product of entry e for the pixels given, with
/// register tiles of up to `tile` pixels (at most what the instruction set has room for). The tile shape decides the order
/// of additions.
///
/// SAFETY: `isa` is available; segments, offsets and the grid stay inside the lists, `x` and `dy`, which hold floats in all
/// 16 lanes.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn sparse(
    isa: Isa,
    s: &Segments,
    x: Patch,
    dy: Patch,
    grid: Grid,
    lanes: usize,
    outs: Range<usize>,
    tile: usize,
    sums: &mut [f32],
) {
    if outs.is_empty() {
        return;
    }
    let entries = s.starts[outs.end * s.blocks] - s.starts[outs.start * s.blocks];
    assert!(sums.len() >= entries as usize, "a sum an entry");
    unsafe { kernel(isa, &Call { s, x, dy, grid, lanes }, outs, tile, sums) }
}

/// A call's operands.
pub(crate) struct Call<'a> {
    pub(crate) s: &'a Segments<'a>,
    pub(crate) x: Patch,
    pub(crate) dy: Patch,
    pub(crate) grid: Grid,
    pub(crate) lanes: usize,
}

entry_points!(kernel = tiles(c: &Call, outs: Range<usize>, tile: usize, sums: &mut [f32]));

#[inline(always)]
pub(crate) unsafe fn tiles<V: V16>(c: &Call, outs: Range<usize>, tile: usize, sums: &mut [f32]) {
    // SAFETY: as the caller's.
    unsafe {
        match (c.grid.src_step, c.lanes >= LANES) {
            (16, true) => strips::<V, 16, false>(c, outs, tile, sums),
            (32, true) => strips::<V, 32, false>(c, outs, tile, sums),
            (_, true) => strips::<V, 0, false>(c, outs, tile, sums),
            (_, false) => strips::<V, 0, true>(c, outs, tile, sums),
        }
    }
}

/// Channel block by channel block, so that a tile's pixels and sums stay near.
#[inline(always)]
unsafe fn strips<V: V16, const STEP: usize, const MASK: bool>(
    c: &Call,
    outs: Range<usize>,
    tile: usize,
    sums: &mut [f32],
) {
    let tiles = c.grid.cols.div_ceil(tile.clamp(1, V::DOTS));
    for b in 0..c.s.blocks {
        for row in 0..c.grid.rows {
            for tile in 0..tiles {
                let cols = part(c.grid.cols, tiles, tile);
                // SAFETY: inside the grid.
                unsafe {
                    let x = c.x.ptr.add(row * c.grid.src_row + cols.start * c.grid.src_step);
                    let dy = c.dy.ptr.add(row * c.dy.row + cols.start * LANES);
                    match cols.len() {
                        1 => tile_outs::<V, STEP, MASK, 1>(c, b, x, dy, &outs, sums),
                        2 => tile_outs::<V, STEP, MASK, 2>(c, b, x, dy, &outs, sums),
                        3 => tile_outs::<V, STEP, MASK, 3>(c, b, x, dy, &outs, sums),
                        4 if V::DOTS >= 4 => tile_outs::<V, STEP, MASK, 4>(c, b, x, dy, &outs, sums),
                        5 if V::DOTS >= 5 => tile_outs::<V, STEP, MASK, 5>(c, b, x, dy, &outs, sums),
                        6 if V::DOTS >= 6 => tile_outs::<V, STEP, MASK, 6>(c, b, x, dy, &outs, sums),
                        7 if V::DOTS >= 7 => tile_outs::<V, STEP, MASK, 7>(c, b, x, dy, &outs, sums),
                        8 if V::DOTS >= 8 => tile_outs::<V, STEP, MASK, 8>(c, b, x, dy, &outs, sums),
                        9 if V::DOTS >= 9 => tile_outs::<V, STEP, MASK, 9>(c, b, x, dy, &outs, sums),
                        10 if V::DOTS >= 10 => tile_outs::<V, STEP, MASK, 10>(c, b, x, dy, &outs, sums),
                        11 if V::DOTS >= 11 => tile_outs::<V, STEP, MASK, 11>(c, b, x, dy, &outs, sums),
                        12 if V::DOTS >= 12 => tile_outs::<V, STEP, MASK, 12>(c, b, x, dy, &outs, sums),
                        13 if V::DOTS >= 13 => tile_outs::<V, STEP, MASK, 13>(c, b, x, dy, &outs, sums),
                        14 if V::DOTS >= 14 => tile_outs::<V, STEP, MASK, 14>(c, b, x, dy, &outs, sums),
                        _ => unreachable!("tiles are not wider than V::DOTS"),
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_outs<V: V16, const STEP: usize, const MASK: bool, const T: usize>(
    c: &Call,
    b: usize,
    x: *const f32,
    dy: *const f32,
    outs: &Range<usize>,
    sums: &mut [f32],
) {
    let step = if STEP == 0 { c.grid.src_step } else { STEP };
    let offs = c.s.offs.as_ptr();
    // SAFETY: segments lie inside the lists, entries and pixels inside the patches, sums hold a float an entry.
    unsafe {
        let mask = lane_mask::<V>(if MASK { c.lanes } else { LANES });
        let origin = *c.s.starts.get_unchecked(outs.start * c.s.blocks) as usize;
        for k in outs.clone() {
            let begin = *c.s.starts.get_unchecked(k * c.s.blocks + b) as usize;
            let end = *c.s.starts.get_unchecked(k * c.s.blocks + b + 1) as usize;
            if begin == end {
                continue;
            }
            let dy = dy.add(k * c.dy.chan);
            let mut grad = [V::splat(0.0); T];
            for t in 0..T {
                grad[t] = pixel::<V, MASK>(dy.add(t * LANES), mask);
            }
            let mut sum = sums.as_mut_ptr().add(begin - origin);
            let mut e = begin;
            while e + 4 <= end {
                let a = dot::<V, MASK, T>(&grad, x.add(*offs.add(e) as usize), step, mask).folded();
                let b = dot::<V, MASK, T>(&grad, x.add(*offs.add(e + 1) as usize), step, mask).folded();
                let c = dot::<V, MASK, T>(&grad, x.add(*offs.add(e + 2) as usize), step, mask).folded();
                let d = dot::<V, MASK, T>(&grad, x.add(*offs.add(e + 3) as usize), step, mask).folded();
                Eight::add_sums([a, b, c, d], sum);
                sum = sum.add(4);
                e += 4;
            }
            while e < end {
                let a = dot::<V, MASK, T>(&grad, x.add(*offs.add(e) as usize), step, mask).folded();
                *sum += a.sum();
                sum = sum.add(1);
                e += 1;
            }
        }
    }
}

/// Lane by lane, over the pixels of a tile.
#[inline(always)]
unsafe fn dot<V: V16, const MASK: bool, const T: usize>(grad: &[V; T], x: *const f32, step: usize, mask: V) -> V {
    // SAFETY: as the caller's.
    unsafe {
        let mut dot = grad[0].mul(pixel::<V, MASK>(x, mask));
        for t in 1..T {
            dot = grad[t].fma(pixel::<V, MASK>(x.add(t * step), mask), dot);
        }
        dot
    }
}

#[inline(always)]
unsafe fn pixel<V: V16, const MASK: bool>(p: *const f32, mask: V) -> V {
    // SAFETY: as the caller's.
    unsafe { if MASK { load_masked(p, mask) } else { V::load(p) } }
}
