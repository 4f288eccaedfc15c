//! A convolution's passes: tasks, patches, kernels, epilogues. The kernels are in `gather.rs` and `dots.rs`.
//!
//! A task takes a patch of the output (forward) or of the input (data gradient) of one block of 16 images: it copies what
//! the patch reads into scratch, halo and zeros included, computing operands on the way; runs the kernel; and works on the
//! result while it is near. What the patches are depends on the plan only, so results do not depend on the threads.

use super::dots::{Pair, Places, dots};
use super::epilogue::{Area, Finisher, finish, stats};
use super::gather::{Entries, Grid, gather};
use super::layout::{LANES, View, blocks, valid};
use super::simd::{Isa, V16, entry_points, lane_mask, sum8};
use super::source::{Eval, Source, Window, fill, with_grad};
use super::structure::{ConvPlan, Rect, Strides, part};
use super::workers::{Shared, Workers};
use crate::backend::Write;
use std::ops::Range;

/// Entries up to which one task computes both gradients of a patch, its sums in L2 beside the patches (256 KB).
const JOINT_ENTRIES: usize = 8192;
/// Parts that the patches of all images are cut into for the weight gradient; their sums are added in order.
const PARTS: usize = 32;
/// Most sums of all parts (4 MB): large layers have output channels enough to keep all threads busy.
const PART_SUMS: usize = 1 << 20;

/// What every pass needs.
pub(super) struct Ctx<'a> {
    pub(super) isa: Isa,
    pub(super) workers: &'a Workers,
    pub(super) scratch: &'a mut Scratch,
    /// Images.
    pub(super) n: usize,
}

/// Buffers, sized for the largest convolution.
pub(super) struct Scratch {
    /// For each worker: input patch, gradient patch, 8 floats an entry of a group.
    floats: Vec<f32>,
    at: [usize; 3],
    each: usize,
    /// For each part, one float an entry.
    parts: Vec<f32>,
    /// Statistics of each (block, patch, channel).
    pub(super) stats: Vec<[f64; 3]>,
    /// Sums for up to two norms of each (block, patch, channel).
    pub(super) sums: Vec<[[f64; 2]; 2]>,
}

impl Scratch {
    /// `planes`: most channels of any tensor.
    pub(super) fn new(plans: &[ConvPlan], planes: usize, batch: usize, threads: usize) -> Self {
        let nbs = blocks(batch);
        let most = |f: &dyn Fn(&ConvPlan) -> usize| plans.iter().map(f).max().unwrap_or(0);
        let gap = 1024; // bytes that keep workers out of each other's lines and prefetches
        let x = most(&|p| p.patch_floats()[0]) + gap;
        let dy = most(&|p| p.patch_floats()[1]) + gap;
        let sums = most(&|p| p.group_entries()) * 8 + gap;
        let part_sums = |p: &ConvPlan| match p.parts(nbs) {
            1 => 0,
            n => n * p.entries(),
        };
        let items = |p: &ConvPlan| p.items() * nbs;
        Scratch {
            floats: vec![0.0; (x + dy + sums) * threads],
            at: [0, x, x + dy],
            each: x + dy + sums,
            parts: vec![0.0; most(&part_sums)],
            stats: vec![[0.0; 3]; most(&|p| items(p) * p.geom.k as usize).max(nbs * planes)],
            sums: vec![[[0.0; 2]; 2]; most(&|p| items(p) * p.geom.c as usize).max(nbs * planes)],
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let floats = 4 * (self.floats.len() + self.parts.len());
        (floats + size_of_val(&self.stats[..]) + size_of_val(&self.sums[..])) as u64
    }
}

impl ConvPlan {
    /// Outputs are grouped so that a group's sums stay in L2.
    fn groups(&self) -> usize {
        self.entries().div_ceil(JOINT_ENTRIES).max(1)
    }

    /// Group `i`: outputs from the first whose entries begin at or after the i-th share of all entries.
    fn group(&self, i: usize) -> Range<usize> {
        let (l, groups, outs) = (&self.forward, self.groups(), self.geom.k as usize);
        let first = |i: usize| {
            let share = (self.entries() * i / groups) as u32;
            let (mut low, mut high) = (0, outs);
            while low < high {
                let mid = (low + high) / 2;
                if l.starts[mid * l.blocks] < share { low = mid + 1 } else { high = mid }
            }
            if i == groups { outs } else { low }
        };
        if i == 0 { 0..first(1) } else { first(i)..first(i + 1) }
    }

    fn entries_of(&self, outs: &Range<usize>) -> Range<usize> {
        let l = &self.forward;
        l.starts[outs.start * l.blocks] as usize..l.starts[outs.end * l.blocks] as usize
    }

    /// Most entries of a group.
    fn group_entries(&self) -> usize {
        (0..self.groups()).map(|i| self.entries_of(&self.group(i)).len()).max().unwrap_or(0)
    }

    /// Parts of the weight gradient for so many blocks of images.
    fn parts(&self, nbs: usize) -> usize {
        (PART_SUMS / self.entries().max(1)).clamp(1, PARTS).min(nbs * self.items())
    }

    /// Whether the input is read where it lies.
    fn reads_input(&self, x: &Source) -> bool {
        x.is_plain() && self.geom.pad == 0
    }

    /// Whether the output's gradient is read where it lies.
    fn reads_gradient(&self, dy: &Source) -> bool {
        dy.is_plain() && self.geom.pad == 0 && (self.geom.r, self.geom.s) == (1, 1)
    }

    /// Makes the entries' offsets fit the operands.
    fn fit(&mut self, x: &Source, dy: Option<&Source>) {
        let g = self.geom;
        assert_eq!((x.t.plane.c, x.t.plane.h, x.t.plane.w), (g.c, g.h, g.w), "input of another shape than {g:?}");
        x.check();
        let at = |v: &View| Strides { chan: v.chan, row: v.row };
        self.read_input(if self.reads_input(x) { at(&x.t) } else { self.x_patch });
        if let Some(dy) = dy {
            dy.check();
            self.read_gradient(if self.reads_gradient(dy) { at(&dy.t) } else { self.dy_patch });
        }
    }
}

/// Where an operand's window lies: its first pixel of channel 0 of the channels asked for.
struct Near {
    ptr: *const f32,
    at: Strides,
}

/// The window in the tensor itself, or copied to `patch`.
#[allow(clippy::too_many_arguments)]
unsafe fn near(
    isa: Isa,
    direct: bool,
    s: Source,
    nb: usize,
    channels: Range<usize>,
    w: Window,
    patch: *mut f32,
    at: Strides,
) -> Near {
    // SAFETY: as the caller's; a window that is read directly lies inside the tensor.
    unsafe {
        if direct {
            let first = w.row.max(0) as usize * s.t.row + w.col.max(0) as usize * LANES;
            Near { ptr: s.t.plane_at(nb, channels.start).add(first), at: Strides { chan: s.t.chan, row: s.t.row } }
        } else {
            fill(isa, s, nb, channels, w, patch, at.chan, at.row);
            Near { ptr: patch, at }
        }
    }
}

/// `y = conv(x) + bias`; with `keep_stats`, (count, mean, M2) of each (block, patch, channel) in the scratch.
pub(super) fn forward(ctx: Ctx, plan: &mut ConvPlan, values: &[f32], x: Source, y: View, keep_stats: bool) {
    plan.fit(&x, None);
    let (plan, g, nbs) = (&*plan, plan.geom, blocks(ctx.n));
    assert_eq!((y.plane.c, y.plane.h, y.plane.w), (g.k, g.p(), g.q()), "output of another shape than {g:?}");
    let (items, outs, st) = (plan.items(), y.channels(), g.stride as usize);
    let out_parts = out_parts(ctx.workers, nbs * items, outs);
    let direct = plan.reads_input(&x);
    let l = &plan.forward;
    let entries = Entries { starts: &l.starts, blocks: l.blocks, offs: &l.offs, values: &values[plan.weight.clone()] };
    let bias = plan.bias.as_ref().map(|b| &values[b.clone()]);
    let Scratch { floats, each, stats: partials, .. } = ctx.scratch;
    let (floats, each, partials) = (Shared::new(floats), *each, Shared::new(partials));
    let work = (plan.entries() + 2 * outs) * y.pixels() * nbs;
    ctx.workers.run(nbs * items * out_parts, work, |worker, task| {
        let (item, outs) = (task / out_parts, part(outs, out_parts, task % out_parts));
        let (nb, patch) = (item / items, item % items);
        let rect = plan.output_rect(patch);
        // SAFETY: scratch is the worker's own; each task writes its own outputs of its own patch of y, which is no operand;
        // offsets fit the operand (`fit`); `isa` is available.
        unsafe {
            let scratch = floats.at(worker * each);
            let w = plan.input_window(&rect);
            let x = near(ctx.isa, direct, x, nb, 0..x.t.channels(), w, scratch, plan.x_patch);
            let grid = Grid {
                src: x.ptr,
                src_row: st * x.at.row,
                src_step: st * LANES,
                dst: y.plane_at(nb, 0).add(rect.rows.start * y.row + rect.cols.start * LANES),
                dst_chan: y.chan,
                dst_row: y.row,
                dst_step: LANES,
                rows: rect.rows.len(),
                cols: rect.cols.len(),
                tile: plan.how.tile,
            };
            gather(ctx.isa, grid, entries, outs.clone(), bias, Write::Overwrite);
            if keep_stats {
                for ch in outs {
                    let Rect { rows, cols } = rect.clone();
                    let area = Area { nb, ch, rows, cols, lanes: valid(ctx.n, nb) };
                    *partials.at(item * y.channels() + ch) = stats(ctx.isa, y, area);
                }
            }
        }
    });
}

/// Parts of the outputs where there are too few patches to keep all threads busy.
fn out_parts(workers: &Workers, items: usize, outs: usize) -> usize {
    let wanted = 4 * workers.threads();
    if workers.threads() == 1 || items >= wanted { 1 } else { wanted.div_ceil(items).min(outs) }
}

/// The gradient of the input: where to, how, and what completes it.
#[derive(Clone, Copy)]
pub(super) struct DataGrad<'a> {
    pub(super) dx: View,
    pub(super) write: Write,
    pub(super) finish: Finisher<'a>,
}

/// Overwrites the weight's and the bias' part of `grads`, and writes the data gradient, whose sums of each (block, patch,
/// channel) are left in the scratch. The transposed values must be fresh.
pub(super) fn backward(
    mut ctx: Ctx,
    plan: &mut ConvPlan,
    grads: &mut [f32],
    x: Source,
    dy: Source,
    data: Option<DataGrad>,
) {
    plan.fit(&x, Some(&dy));
    let (plan, g) = (&*plan, plan.geom);
    assert_eq!((dy.t.plane.c, dy.t.plane.h, dy.t.plane.w), (g.k, g.p(), g.q()), "gradient of another shape than {g:?}");
    if let Some(d) = &data {
        assert_eq!(d.dx.plane, x.t.plane, "data gradient of another shape than {g:?}");
        d.finish.check(&d.dx);
    }
    if let Some(bias) = &plan.bias {
        bias_gradient(&ctx, &mut grads[bias.clone()], dy);
    }
    let dw = Shared::new(&mut grads[plan.weight.clone()]);
    if plan.groups() == 1 {
        weight(&mut ctx, plan, dw, x, dy, data);
    } else {
        weight(&mut ctx, plan, dw, x, dy, None);
        if let Some(d) = data {
            data_gradient(&mut ctx, plan, dy, d);
        }
    }
}

/// The weight gradient; with `data` (one group only), both gradients patch by patch.
fn weight(ctx: &mut Ctx, plan: &ConvPlan, dw: Shared<f32>, x: Source, dy: Source, data: Option<DataGrad>) {
    let (nbs, items, entries) = (blocks(ctx.n), plan.items(), plan.entries());
    let (parts, groups, st) = (plan.parts(nbs), plan.groups(), plan.geom.stride as usize);
    let (direct_x, direct_dy) = (plan.reads_input(&x), plan.reads_gradient(&dy));
    let l = &plan.forward;
    let places = Places { starts: &l.starts, blocks: l.blocks, offs: &l.offs };
    let (isa, n) = (ctx.isa, ctx.n);
    let Scratch { floats, at, each, parts: part_sums, sums: partials, .. } = &mut *ctx.scratch;
    let (floats, at, each, partials) = (Shared::new(floats), *at, *each, Shared::new(partials));
    let out = if parts == 1 { dw } else { Shared::new(part_sums) };
    let work = (2 * entries + dy.t.channels()) * dy.t.pixels() * nbs;
    ctx.workers.run(parts * groups, work, |worker, task| {
        let (p, outs) = (task / groups, plan.group(task % groups));
        let range = plan.entries_of(&outs);
        // SAFETY: scratch is the worker's own; each (part, group) owns its part sums and its patches of dx; operands are
        // only read, and offsets fit them (`fit`); `isa` is available.
        unsafe {
            let scratch = floats.at(worker * each);
            let sums = std::slice::from_raw_parts_mut(scratch.add(at[2]), range.len() * 8);
            sums.fill(0.0);
            for item in part(nbs * items, parts, p) {
                let (nb, patch) = (item / items, item % items);
                let (rect, none) = (plan.output_rect(patch), Rect { rows: 0..0, cols: 0..0 });
                let input = if data.is_some() { plan.input_rect(patch) } else { none };
                let w = plan.gradient_window(&rect, &input);
                let dy = near(isa, direct_dy, dy, nb, outs.clone(), w, scratch.add(at[1]), plan.dy_patch);
                if !range.is_empty() && !rect.is_empty() {
                    let xw = plan.input_window(&rect);
                    let x = near(isa, direct_x, x, nb, 0..x.t.channels(), xw, scratch, plan.x_patch);
                    let (row, col) = (rect.rows.start as isize - w.row, rect.cols.start as isize - w.col);
                    let pair = Pair {
                        x: x.ptr,
                        x_row: st * x.at.row,
                        x_step: st * LANES,
                        dy: dy.ptr.add(row as usize * dy.at.row + col as usize * LANES),
                        dy_chan: dy.at.chan,
                        dy_row: dy.at.row,
                        rows: rect.rows.len(),
                        cols: rect.cols.len(),
                        tile: plan.how.tile,
                        lanes: valid(n, nb),
                    };
                    dots(isa, pair, places, outs.clone(), sums);
                }
                if let Some(d) = data {
                    let channels = 0..d.dx.channels();
                    data_patch(isa, plan, d, &dy, w, nb, input, channels.clone());
                    finish_patch(isa, d, nb, plan.input_rect(patch), channels, valid(n, nb), partials, item);
                }
            }
            let out = out.slice(p * entries * usize::from(parts > 1) + range.start, range.len());
            for (o, s) in out.iter_mut().zip(sums.chunks_exact(8)) {
                *o = sum8(s.try_into().expect("8 floats"));
            }
        }
    });
    if parts > 1 {
        const CHUNK: usize = 1 << 14;
        let part_sums = &*part_sums;
        ctx.workers.run(entries.div_ceil(CHUNK), entries * parts / LANES, |_, task| {
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
}

/// The data gradient alone.
fn data_gradient(ctx: &mut Ctx, plan: &ConvPlan, dy: Source, d: DataGrad) {
    let (nbs, items, outs) = (blocks(ctx.n), plan.items(), d.dx.channels());
    let out_parts = out_parts(ctx.workers, nbs * items, outs);
    let direct = plan.reads_gradient(&dy);
    let (isa, n) = (ctx.isa, ctx.n);
    let Scratch { floats, at, each, sums: partials, .. } = &mut *ctx.scratch;
    let (floats, at, each, partials) = (Shared::new(floats), *at, *each, Shared::new(partials));
    let work = plan.entries() * dy.t.pixels() * nbs;
    ctx.workers.run(nbs * items * out_parts, work, |worker, task| {
        let (item, channels) = (task / out_parts, part(outs, out_parts, task % out_parts));
        let (nb, patch) = (item / items, item % items);
        let rect = plan.input_rect(patch);
        // The window of both rectangles: patches are sized for it.
        let w = plan.gradient_window(&plan.output_rect(patch), &rect);
        // SAFETY: scratch is the worker's own; each task writes its own channels of its own patch of dx, which is no
        // operand; offsets fit the operand (`fit`); `isa` is available.
        unsafe {
            let scratch = floats.at(worker * each).add(at[1]);
            let dy = near(isa, direct, dy, nb, 0..dy.t.channels(), w, scratch, plan.dy_patch);
            data_patch(isa, plan, d, &dy, w, nb, rect.clone(), channels.clone());
            finish_patch(isa, d, nb, rect, channels, valid(n, nb), partials, item);
        }
    });
}

/// The data gradient of some channels of one patch, class by class.
#[allow(clippy::too_many_arguments)]
unsafe fn data_patch(
    isa: Isa,
    plan: &ConvPlan,
    d: DataGrad,
    dy: &Near,
    w: Window,
    nb: usize,
    rect: Rect,
    channels: Range<usize>,
) {
    let (l, st, low) = (&plan.transposed, plan.geom.stride as usize, plan.low_tap());
    let segments = d.dx.channels() * l.blocks;
    for (i, class) in plan.classes.iter().enumerate() {
        let starts = &l.starts[i * segments..=(i + 1) * segments];
        // Rows and columns of the class: `stride * i + at` inside the patch.
        let side = |r: &Range<usize>, at: usize| {
            let first = r.start.saturating_sub(at).div_ceil(st);
            first..r.end.saturating_sub(at).div_ceil(st).max(first)
        };
        let (rows, cols) = (side(&rect.rows, class.at[0]), side(&rect.cols, class.at[1]));
        let nothing = d.write == Write::Accumulate && starts[0] == starts[segments];
        if rows.is_empty() || cols.is_empty() || nothing {
            continue;
        }
        // SAFETY: as the caller's; the window holds what the class reads.
        unsafe {
            let row = (rows.start as isize - low - w.row) as usize * dy.at.row;
            let col = (cols.start as isize - low - w.col) as usize * LANES;
            let first = (st * rows.start + class.at[0]) * d.dx.row + (st * cols.start + class.at[1]) * LANES;
            let grid = Grid {
                src: dy.ptr.add(row + col),
                src_row: dy.at.row,
                src_step: LANES,
                dst: d.dx.plane_at(nb, 0).add(first),
                dst_chan: d.dx.chan,
                dst_row: st * d.dx.row,
                dst_step: st * LANES,
                rows: rows.len(),
                cols: cols.len(),
                tile: plan.how.tile,
            };
            let entries = Entries { starts, blocks: l.blocks, offs: &l.offs, values: &plan.values_t };
            gather(isa, grid, entries, channels.clone(), None, d.write);
        }
    }
}

#[allow(clippy::too_many_arguments)]
unsafe fn finish_patch(
    isa: Isa,
    d: DataGrad,
    nb: usize,
    rect: Rect,
    channels: Range<usize>,
    lanes: usize,
    partials: Shared<[[f64; 2]; 2]>,
    item: usize,
) {
    if d.finish.is_empty() {
        return;
    }
    for ch in channels {
        let Rect { rows, cols } = rect.clone();
        // SAFETY: as the caller's.
        unsafe {
            *partials.at(item * d.dx.channels() + ch) = finish(isa, d.finish, d.dx, Area { nb, ch, rows, cols, lanes })
        };
    }
}

fn bias_gradient(ctx: &Ctx, db: &mut [f32], dy: Source) {
    let (isa, n, db) = (ctx.isa, ctx.n, Shared::new(db));
    ctx.workers.run(dy.t.channels(), dy.t.channels() * dy.t.pixels() * blocks(n), |_, k| {
        // SAFETY: task k writes element k and reads channel k of dy; `isa` is available.
        unsafe { *db.at(k) = channel_sum(isa, dy, k, n) };
    });
}

entry_points!(channel_sum = sum_channel(dy: Source, k: usize, n: usize) -> f32);

/// Sum of a channel over images and pixels: f32 along a row, f64 over rows.
#[inline(always)]
unsafe fn sum_channel<V: V16>(dy: Source, k: usize, n: usize) -> f32 {
    let mut total = 0f64;
    for nb in 0..blocks(n) {
        // SAFETY: inside dy.
        unsafe {
            let mask = lane_mask::<V>(valid(n, nb));
            with_grad!(V, dy, nb, k, |eval, t, x| {
                for row in 0..dy.t.rows() {
                    let mut sum = V::splat(0.0);
                    for col in 0..dy.t.cols() {
                        let i = row * dy.t.row + col * LANES;
                        let v: V = eval.at(t.add(i), x.add(i));
                        sum = sum.add(v.masked(mask));
                    }
                    total += f64::from(sum.sum());
                }
            });
        }
    }
    total as f32
}
