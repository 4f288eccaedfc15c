//! Weight gradient: one dot product a non-zero, `dw = sum over images and pixels of dy * x`.
//!
//! A tile of up to 7 pixels of dy stays in registers while the non-zeros of its output channel pass by; each adds its
//! products to 8 partial sums in scratch. The rows of all images are cut into at most [`PARTS`] parts, whatever the
//! threads; the parts' sums are added in order. Both operands are masked in the last block of a ragged batch.
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use super::layout::{LANES, View, blocks, valid};
use super::simd::{Isa, V16, entry_points, lane_mask, load_masked, sum8};
use super::structure::ConvPlan;
use super::workers::{Shared, Workers};
use std::ops::Range;

/// Parts that rows of images are cut into: the parallelism that needs no second read of them.
const PARTS: usize = 8;
/// Most sums of all parts (4 MB): large layers have output channels enough to keep all threads busy.
const PART_SUMS: usize = 1 << 20;
/// Entries a task keeps partial sums for (8 floats each: 256 KB, half of a small L2), plus those of one output channel.
const GROUP_ENTRIES: usize = 8192;

/// Parts for so many entries and rows of blocks.
fn parts(entries: usize, rows: usize) -> usize {
    (PART_SUMS / entries.max(1)).clamp(1, PARTS).min(rows)
}

/// Buffers, sized for the largest convolution.
pub(super) struct Scratch {
    /// For each worker, 8 floats an entry of a group.
    sums: Vec<f32>,
    sums_each: usize,
    /// For each part, one float an entry.
    parts: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(plans: &[ConvPlan], batch: usize, threads: usize) -> Self {
        let widest = |p: &ConvPlan| {
            let l = &p.forward;
            let ends: Vec<u32> = l.starts.iter().step_by(l.blocks).copied().collect();
            ends.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
        };
        let part_sums = |p: &ConvPlan| match parts(p.entries(), p.geom.p() as usize * blocks(batch)) {
            1 => 0,
            n => n * p.entries(),
        };
        let group = plans.iter().map(|p| (GROUP_ENTRIES + widest(p)).min(p.entries())).max().unwrap_or(0);
        let sums_each = group * 8 + LANES; // a gap, so that two workers never write one cache line
        let parts = vec![0.0; plans.iter().map(part_sums).max().unwrap_or(0)];
        Scratch { sums: vec![0.0; sums_each * threads], sums_each, parts }
    }

    pub(super) fn bytes(&self) -> u64 {
        4 * (self.sums.len() + self.parts.len()) as u64
    }
}

/// What a task needs of the convolution.
struct Dots<'a> {
    x: View,
    dy: View,
    stride: usize,
    starts: &'a [u32],
    blocks: usize,
    offs: &'a [u32],
    n: usize,
}

/// Overwrites the weight's and the bias' part of `grads`.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward_weight(
    isa: Isa,
    workers: &Workers,
    plan: &ConvPlan,
    scratch: &mut Scratch,
    grads: &mut [f32],
    x: View,
    dy: View,
    n: usize,
) {
    let l = &plan.forward;
    let d = Dots { x, dy, stride: plan.geom.stride as usize, starts: &l.starts, blocks: l.blocks, offs: &l.offs, n };
    let (entries, outs, nbs) = (plan.entries(), dy.channels(), blocks(n));
    let rows = nbs * dy.rows();
    let parts = parts(entries, rows);
    let groups = entries.div_ceil(GROUP_ENTRIES).max(workers.threads().div_ceil(parts));
    // Group `i`: outputs from the first whose entries begin at or after the i-th share of all entries.
    let first = |i: usize| {
        let share = (entries * i / groups) as u32;
        let (mut low, mut high) = (0, outs);
        while low < high {
            let mid = (low + high) / 2;
            if l.starts[mid * l.blocks] < share { low = mid + 1 } else { high = mid }
        }
        if i == groups { outs } else { low }
    };

    let dw = Shared::new(&mut grads[plan.weight.clone()]);
    let (sums, sums_each) = (Shared::new(&mut scratch.sums), scratch.sums_each);
    let part_sums = if parts == 1 { dw } else { Shared::new(&mut scratch.parts) };
    workers.run(parts * groups, entries * dy.pixels() * nbs, |worker, task| {
        let (part, group) = (task / groups, task % groups);
        let range = first(group)..first(group + 1);
        let begin = l.starts[range.start * l.blocks] as usize;
        let len = l.starts[range.end * l.blocks] as usize - begin;
        if len == 0 {
            return;
        }
        debug_assert!(len * 8 <= sums_each);
        // SAFETY: `sums` of this worker are used by no other task now; each (part, group) owns its part sums; x and dy
        // fit the lists (`ConvPlan::fit`) and are only read; `isa` is available.
        unsafe {
            let sums = sums.slice(worker * sums_each, len * 8);
            let out = part_sums.slice(part * entries + begin, len);
            kernel(isa, &d, rows * part / parts..rows * (part + 1) / parts, range, sums, out);
        }
    });
    if parts > 1 {
        const CHUNK: usize = 1 << 14;
        let part_sums = &scratch.parts;
        workers.run(entries.div_ceil(CHUNK), entries * parts / LANES, |_, task| {
            let at = task * CHUNK;
            let len = CHUNK.min(entries - at);
            // SAFETY: chunks are disjoint.
            let out = unsafe { dw.slice(at, len) };
            out.copy_from_slice(&part_sums[at..at + len]);
            for part in 1..parts {
                let from = part * entries + at;
                out.iter_mut().zip(&part_sums[from..from + len]).for_each(|(o, p)| *o += p);
            }
        });
    }

    if let Some(bias) = &plan.bias {
        let db = Shared::new(&mut grads[bias.clone()]);
        workers.run(outs, outs * dy.pixels() * nbs, |_, k| {
            // SAFETY: task k writes element k and reads channel k of dy.
            unsafe { *db.at(k) = channel_sum(isa, dy, k, n) };
        });
    }
}

entry_points!(channel_sum = sum_channel(dy: View, k: usize, n: usize) -> f32);

/// Sum of a channel over images and pixels: f32 along a row, f64 over rows.
#[inline(always)]
unsafe fn sum_channel<V: V16>(dy: View, k: usize, n: usize) -> f32 {
    let mut total = 0f64;
    for nb in 0..blocks(n) {
        // SAFETY: inside dy.
        unsafe {
            let mask = lane_mask::<V>(valid(n, nb));
            for row in 0..dy.rows() {
                let p = dy.plane_at(nb, k).add(row * dy.row);
                let mut sum = V::splat(0.0);
                for col in 0..dy.cols() {
                    sum = sum.add(load_masked(p.add(col * LANES), mask));
                }
                total += f64::from(sum.sum());
            }
        }
    }
    total as f32
}

entry_points!(kernel = dots(d: &Dots, rows: Range<usize>, outs: Range<usize>, sums: &mut [f32], out: &mut [f32]));

#[inline(always)]
unsafe fn dots<V: V16>(d: &Dots, rows: Range<usize>, outs: Range<usize>, sums: &mut [f32], out: &mut [f32]) {
    sums.fill(0.0);
    let each = d.dy.rows();
    for nb in rows.start / each..rows.end.div_ceil(each) {
        let lanes = valid(d.n, nb);
        let rows = rows.start.max(nb * each) - nb * each..rows.end.min((nb + 1) * each) - nb * each;
        // SAFETY: as the caller's.
        unsafe {
            match (d.stride, lanes == LANES) {
                (1, true) => block::<V, 16, false>(d, nb, rows, lanes, &outs, sums),
                (2, true) => block::<V, 32, false>(d, nb, rows, lanes, &outs, sums),
                (_, true) => block::<V, 0, false>(d, nb, rows, lanes, &outs, sums),
                (_, false) => block::<V, 0, true>(d, nb, rows, lanes, &outs, sums),
            }
        }
    }
    for (o, s) in out.iter_mut().zip(sums.chunks_exact(8)) {
        *o = sum8(s.try_into().expect("8 floats"));
    }
}

/// Rows of one block of images: channel block by channel block, so that a tile's pixels and sums stay near.
#[inline(always)]
unsafe fn block<V: V16, const STEP: usize, const MASK: bool>(
    d: &Dots,
    nb: usize,
    rows: Range<usize>,
    lanes: usize,
    outs: &Range<usize>,
    sums: &mut [f32],
) {
    let tiles = d.dy.cols().div_ceil(V::TILE);
    for b in 0..d.blocks {
        for row in rows.clone() {
            for tile in 0..tiles {
                let (from, to) = (d.dy.cols() * tile / tiles, d.dy.cols() * (tile + 1) / tiles);
                // SAFETY: inside the padded planes of x and the interior of dy.
                unsafe {
                    let x = d.x.padded().add(nb * d.x.block + row * d.stride * d.x.row + from * d.stride * LANES);
                    let dy = d.dy.plane_at(nb, 0).add(row * d.dy.row + from * LANES);
                    match to - from {
                        1 => tile_outs::<V, STEP, MASK, 1>(d, b, x, dy, lanes, outs, sums),
                        2 => tile_outs::<V, STEP, MASK, 2>(d, b, x, dy, lanes, outs, sums),
                        3 => tile_outs::<V, STEP, MASK, 3>(d, b, x, dy, lanes, outs, sums),
                        4 => tile_outs::<V, STEP, MASK, 4>(d, b, x, dy, lanes, outs, sums),
                        5 => tile_outs::<V, STEP, MASK, 5>(d, b, x, dy, lanes, outs, sums),
                        6 => tile_outs::<V, STEP, MASK, 6>(d, b, x, dy, lanes, outs, sums),
                        _ => tile_outs::<V, STEP, MASK, 7>(d, b, x, dy, lanes, outs, sums),
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_outs<V: V16, const STEP: usize, const MASK: bool, const T: usize>(
    d: &Dots,
    b: usize,
    x: *const f32,
    dy: *const f32,
    lanes: usize,
    outs: &Range<usize>,
    sums: &mut [f32],
) {
    let step = if STEP == 0 { d.stride * LANES } else { STEP };
    let offs = d.offs.as_ptr();
    // SAFETY: segments lie inside the lists, entries and pixels inside the block, sums hold 8 floats an entry.
    unsafe {
        let mask = lane_mask::<V>(if MASK { lanes } else { LANES });
        let origin = *d.starts.get_unchecked(outs.start * d.blocks) as usize;
        for k in outs.clone() {
            let begin = *d.starts.get_unchecked(k * d.blocks + b) as usize;
            let end = *d.starts.get_unchecked(k * d.blocks + b + 1) as usize;
            if begin == end {
                continue;
            }
            let dy = dy.add(k * d.dy.chan);
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
