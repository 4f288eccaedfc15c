//! Forward pass and data gradient: one kernel, a sum over non-zeros.
//!
//! A register tile holds up to 7 pixels (of 16 images each) of one output row; a loop over the non-zeros of the output
//! channel broadcasts the value and multiplies it with the pixels at the entry's offset, straight from memory.
//! Every output's additions have one order, whatever the tiles, tasks and threads.
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use super::layout::{LANES, View, blocks};
use super::simd::{Isa, V16, entry_points};
use super::structure::{ConvPlan, Lists};
use super::workers::Workers;
use crate::backend::Write;
use std::ops::Range;

/// One grid of output pixels: `dst[o][row][col] = start + sum over entries of value * src[offset + row, col]`.
/// Strides in floats; `src` and `dst` point at block 0.
struct Gather<'a> {
    src: View,
    /// Source strides of one output row and one output column.
    src_row: usize,
    src_step: usize,
    dst: View,
    /// First output pixel from the padded start, and strides of one output row and column.
    dst_at: usize,
    dst_row: usize,
    dst_step: usize,
    rows: usize,
    cols: usize,
    /// Segments of output 0 onwards.
    starts: &'a [u32],
    blocks: usize,
    offs: &'a [u32],
    values: &'a [f32],
    bias: Option<&'a [f32]>,
    write: Write,
}

/// `y = conv(x) + bias`.
pub(super) fn forward(isa: Isa, workers: &Workers, plan: &ConvPlan, values: &[f32], x: View, y: View, n: usize) {
    let st = plan.geom.stride as usize;
    let Lists { blocks, starts, offs, .. } = &plan.forward;
    let g = Gather {
        src: x,
        src_row: st * x.row,
        src_step: st * LANES,
        dst: y,
        dst_at: y.interior(),
        dst_row: y.row,
        dst_step: LANES,
        rows: y.rows(),
        cols: y.cols(),
        starts,
        blocks: *blocks,
        offs,
        values: &values[plan.weight.clone()],
        bias: plan.bias.as_ref().map(|b| &values[b.clone()]),
        write: Write::Overwrite,
    };
    run(isa, workers, &g, n);
}

/// `dx = or += conv_transposed(dy)`; the transposed values must be fresh.
pub(super) fn backward_data(isa: Isa, workers: &Workers, plan: &ConvPlan, dy: View, dx: View, write: Write, n: usize) {
    let st = plan.geom.stride as usize;
    let Lists { blocks, starts, offs, .. } = &plan.transposed;
    let segments = dx.channels() * blocks;
    for (i, class) in plan.classes.iter().enumerate() {
        let starts = &starts[i * segments..=(i + 1) * segments];
        if write == Write::Accumulate && starts[0] == starts[segments] {
            continue;
        }
        let g = Gather {
            src: dy,
            src_row: dy.row,
            src_step: LANES,
            dst: dx,
            dst_at: dx.interior() + class.at[0] * dx.row + class.at[1] * LANES,
            dst_row: st * dx.row,
            dst_step: st * LANES,
            rows: class.size[0],
            cols: class.size[1],
            starts,
            blocks: *blocks,
            offs,
            values: &plan.values_t,
            bias: None,
            write,
        };
        run(isa, workers, &g, n);
    }
}

/// Splits into tasks of some rows of one block, and of some outputs where rows are too few to keep all threads busy.
fn run(isa: Isa, workers: &Workers, g: &Gather, n: usize) {
    let outs = g.dst.channels();
    let (nbs, wanted) = (blocks(n), 4 * workers.threads());
    if g.rows * g.cols == 0 {
        return;
    }
    let row_parts = wanted.div_ceil(nbs).min(g.rows);
    let out_parts = if nbs * row_parts >= workers.threads() { 1 } else { wanted.div_ceil(nbs * row_parts).min(outs) };
    let entries = g.starts[outs * g.blocks] - g.starts[0];
    let work = (entries as usize + outs) * g.rows * g.cols * nbs;
    workers.run(nbs * row_parts * out_parts, work, |_, task| {
        let (nb, rest) = (task / (row_parts * out_parts), task % (row_parts * out_parts));
        let (row, out) = (rest / out_parts, rest % out_parts);
        // SAFETY: offsets were built for these views' geometry (`ConvPlan::fit`); each task writes its own outputs,
        // rows and block of dst, which is another tensor than src; `isa` is available.
        unsafe { kernel(isa, g, nb, part(g.rows, row_parts, row), part(outs, out_parts, out)) };
    });
}

/// Part `i` of `0..len` cut into `parts`.
fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    len * i / parts..len * (i + 1) / parts
}

entry_points!(kernel = gather(g: &Gather, nb: usize, rows: Range<usize>, outs: Range<usize>));

#[inline(always)]
unsafe fn gather<V: V16>(g: &Gather, nb: usize, rows: Range<usize>, outs: Range<usize>) {
    // A constant step makes the pixel's place part of the instruction.
    unsafe {
        match g.src_step {
            16 => strips::<V, 16>(g, nb, rows, outs),
            32 => strips::<V, 32>(g, nb, rows, outs),
            _ => strips::<V, 0>(g, nb, rows, outs),
        }
    }
}

#[inline(always)]
unsafe fn strips<V: V16, const STEP: usize>(g: &Gather, nb: usize, rows: Range<usize>, outs: Range<usize>) {
    let tiles = g.cols.div_ceil(V::TILE);
    for row in rows {
        for tile in 0..tiles {
            let cols = part(g.cols, tiles, tile);
            // SAFETY: inside the padded planes of src and dst.
            unsafe {
                let src = g.src.padded().add(nb * g.src.block + row * g.src_row + cols.start * g.src_step);
                let dst = g.dst.padded().add(nb * g.dst.block + g.dst_at + row * g.dst_row + cols.start * g.dst_step);
                match cols.len() {
                    1 => tile_outs::<V, STEP, 1>(g, src, dst, &outs),
                    2 => tile_outs::<V, STEP, 2>(g, src, dst, &outs),
                    3 => tile_outs::<V, STEP, 3>(g, src, dst, &outs),
                    4 => tile_outs::<V, STEP, 4>(g, src, dst, &outs),
                    5 => tile_outs::<V, STEP, 5>(g, src, dst, &outs),
                    6 => tile_outs::<V, STEP, 6>(g, src, dst, &outs),
                    _ => tile_outs::<V, STEP, 7>(g, src, dst, &outs),
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
    g: &Gather,
    src: *const f32,
    dst: *mut f32,
    outs: &Range<usize>,
) {
    for first in outs.clone().step_by(OUT_BLOCK) {
        for b in 0..g.blocks {
            for o in first..outs.end.min(first + OUT_BLOCK) {
                // SAFETY: as the caller's.
                unsafe { segment::<V, STEP, T>(g, src, dst.add(o * g.dst.chan), o, b) }
            }
        }
    }
}

/// Adds the entries of output `o` in channel block `b` to one tile; block 0 starts it.
#[inline(always)]
unsafe fn segment<V: V16, const STEP: usize, const T: usize>(
    g: &Gather,
    src: *const f32,
    dst: *mut f32,
    o: usize,
    b: usize,
) {
    let step = if STEP == 0 { g.src_step } else { STEP };
    let (offs, values) = (g.offs.as_ptr(), g.values.as_ptr());
    // SAFETY: segments lie inside the lists, entries and pixels inside the source block.
    unsafe {
        let begin = *g.starts.get_unchecked(o * g.blocks + b) as usize;
        let end = *g.starts.get_unchecked(o * g.blocks + b + 1) as usize;
        if begin == end && b > 0 {
            return;
        }
        let mut acc = [V::splat(0.0); T];
        if b > 0 || g.write == Write::Accumulate {
            for t in 0..T {
                acc[t] = V::load(dst.add(t * g.dst_step));
            }
        } else if let Some(bias) = g.bias {
            acc = [V::splat(*bias.get_unchecked(o)); T];
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
