//! Gradients of the weights, the bias and the input.

use super::super::cuts::{Rect, part};
use super::super::epilogue::{Area, Finisher, From, Made, finish};
use super::super::kernels::patch::{Grid, Out, Patch, Start};
use super::super::kernels::sparse::{Segments, sparse};
use super::super::kernels::{dense::dense, dots};
use super::super::layout::{LANES, View, blocks, valid};
use super::super::plan::Kernel;
use super::super::simd::{Isa, V16, entry_points, fence, lane_mask};
use super::super::source::{Eval, Source, Window, with_grad};
use super::super::structure::ConvPlan;
use super::super::workers::{Shared, Workers};
use super::reach::{Near, Reach};
use super::tasks::out_parts;
use super::{Ctx, Scratch};
use crate::backend::Write;
use std::ops::Range;

/// The gradient of the input: where to, how, and what completes it.
#[derive(Clone, Copy)]
pub(in super::super) struct DataGrad<'a> {
    pub(in super::super) dx: View,
    pub(in super::super) write: Write,
    pub(in super::super) finish: Finisher<'a>,
}

/// Overwrites the weight's and the bias' part of `grads`, if the input `x` is given, and writes the data gradient, whose sums
/// of each (block, patch, channel) are left in the scratch. The transposed values must be fresh.
pub(in super::super) fn backward(
    mut ctx: Ctx,
    plan: &mut ConvPlan,
    grads: &mut [f32],
    x: Option<Source>,
    dy: Source,
    data: Option<DataGrad>,
) {
    plan.fit(ctx.isa, x.as_ref(), Some(&dy));
    let (plan, g) = (&*plan, plan.geom);
    assert_eq!((dy.t.plane.c, dy.t.plane.h, dy.t.plane.w), (g.k, g.p(), g.q()), "gradient of another shape than {g:?}");
    if let Some(d) = &data {
        let plane = d.dx.plane;
        assert_eq!((plane.c, plane.h, plane.w), (g.c, g.h, g.w), "data gradient of another shape than {g:?}");
    }
    if let (Some(bias), Some(_)) = (&plan.bias, x) {
        bias_gradient(&ctx, &mut grads[bias.clone()], dy);
    }
    let weights = x.map(|x| (x, Shared::new(&mut grads[plan.weight.clone()])));
    if plan.is_shared() {
        apart(&mut ctx, plan, weights, dy, data)
    } else {
        together(&mut ctx, plan, weights, dy, data)
    }
}

/// What the weight gradient reads, and where it goes.
type Weights<'a> = Option<(Source<'a>, Shared<f32>)>;

/// Both gradients patch by patch: a part of all images' patches a task.
fn together(ctx: &mut Ctx, plan: &ConvPlan, weights: Weights, dy: Source, data: Option<DataGrad>) {
    let (nbs, items, entries) = (blocks(ctx.n), plan.items(), plan.entries());
    let parts = plan.parts(nbs);
    let (isa, n) = (ctx.isa, ctx.n);
    let Scratch { floats, at, each, parts: part_sums, sums: partials, shared, .. } = &mut *ctx.scratch;
    let (floats, at, each, partials) = (floats.base, *at, *each, Shared::new(partials));
    let (whole_x, whole_dy) = plan.whole();
    let reach_x = |x: &Source| Reach::new(plan.reads_input(x), false, shared.base, plan.x_patch, whole_x);
    let reach_dy = Reach::new(plan.reads_gradient(&dy), false, shared.base, plan.dy_patch, whole_dy);
    let summed = Shared::new(part_sums);
    let work = (2 * entries + dy.t.channels()) * dy.t.pixels() * nbs;
    ctx.workers.run(parts, work, |worker, p| {
        // SAFETY: scratch is the worker's own; each part owns its sums and its patches of dx; operands are only read, and
        // offsets fit them (`fit`); `isa` is available.
        unsafe {
            let (scratch, outs) = (floats.at(worker * each), 0..plan.geom.k as usize);
            let sums = std::slice::from_raw_parts_mut(scratch.add(at[2]), plan.sums_of(&outs));
            if weights.is_some() {
                sums.fill(0.0);
            }
            for item in part(nbs * items, parts, p) {
                let (nb, patch) = (item / items, item % items);
                let rect = plan.output_rect(patch);
                let input = if data.is_some() { plan.input_rect(patch) } else { Rect { rows: 0..0, cols: 0..0 } };
                let w = plan.gradient_window(&rect, &input);
                let dy = reach_dy.near(isa, dy, nb, 0..dy.t.channels(), w, scratch.add(at[1]));
                if let Some((x, _)) = weights.filter(|_| entries > 0 && !rect.is_empty()) {
                    let x = reach_x(&x).near(isa, x, nb, 0..x.t.channels(), plan.input_window(&rect), scratch);
                    weight_patch(isa, plan, &x, &dy, w, &rect, outs.clone(), valid(n, nb), sums);
                }
                if let Some(d) = data {
                    let channels = 0..d.dx.channels();
                    data_patch(isa, plan, &d, &dy, w, scratch, &input, channels.clone());
                    let area = Area { nb, ch: 0, rows: input.rows, cols: input.cols, lanes: valid(n, nb) };
                    write_patch(isa, plan, &d, scratch, area, channels, partials, item, d.dx.is_large(nbs));
                }
            }
            if let Some((_, dw)) = weights {
                let out = if parts == 1 { dw } else { summed };
                add_sums(plan, &outs, out.slice(p * entries, entries), sums, true);
            }
        }
    });
    if let Some((_, dw)) = weights {
        add_parts(ctx.workers, dw, part_sums, parts, entries);
    }
}

/// The weight gradient by groups of outputs, then the data gradient by parts of the inputs, over shared patches, block of
/// images after block.
fn apart(ctx: &mut Ctx, plan: &ConvPlan, weights: Weights, dy: Source, data: Option<DataGrad>) {
    let (nbs, items, entries) = (blocks(ctx.n), plan.items(), plan.entries());
    let (parts, groups) = (plan.parts(nbs), plan.groups());
    let (isa, n, workers) = (ctx.isa, ctx.n, ctx.workers);
    let Scratch { floats, at, each, parts: part_sums, sums: partials, shared, shared_dy, .. } = &mut *ctx.scratch;
    let (floats, at, each, partials) = (floats.base, *at, *each, Shared::new(partials));
    let (whole_x, whole_dy) = plan.whole();
    // SAFETY: inside the shared patches.
    let common_dy = Shared::from_ptr(unsafe { shared.base.at(*shared_dy) });
    let reach_x = |x: &Source| Reach::new(plan.reads_input(x), true, shared.base, plan.x_patch, whole_x);
    let reach_dy = Reach::new(plan.reads_gradient(&dy), true, common_dy, plan.dy_patch, whole_dy);
    let summed = Shared::new(part_sums);
    let work = entries * dy.t.pixels();
    for nb in 0..nbs {
        reach_dy.share(isa, workers, dy, nb);
        if let Some((x, dw)) = weights {
            let (reach_x, out) = (reach_x(&x), if parts == 1 { dw } else { summed });
            reach_x.share(isa, workers, x, nb);
            workers.run(parts * groups, work, |worker, task| {
                let (p, outs) = (task / groups, plan.group(task % groups));
                let range = plan.entries_of(&outs);
                // SAFETY: scratch is the worker's own; each (part, group) owns its sums; operands are only read, and
                // offsets fit them (`fit`); `isa` is available.
                unsafe {
                    let scratch = floats.at(worker * each);
                    let sums = std::slice::from_raw_parts_mut(scratch.add(at[2]), plan.sums_of(&outs));
                    sums.fill(0.0);
                    for patch in part(items, parts, p) {
                        let rect = plan.output_rect(patch);
                        if !range.is_empty() && !rect.is_empty() {
                            let w = plan.gradient_window(&rect, &Rect { rows: 0..0, cols: 0..0 });
                            let dy = reach_dy.near(isa, dy, nb, 0..dy.t.channels(), w, scratch);
                            let x = reach_x.near(isa, x, nb, 0..x.t.channels(), plan.input_window(&rect), scratch);
                            weight_patch(isa, plan, &x, &dy, w, &rect, outs.clone(), valid(n, nb), sums);
                        }
                    }
                    let out = out.slice(p * entries * usize::from(parts > 1) + range.start, range.len());
                    add_sums(plan, &outs, out, sums, nb == 0);
                }
            });
        }
        let Some(d) = data else { continue };
        let channels = d.dx.channels();
        let out_parts = out_parts(workers, items, channels, true);
        workers.run(items * out_parts, work, |worker, task| {
            let (patch, channels) = (task / out_parts, part(channels, out_parts, task % out_parts));
            let input = plan.input_rect(patch);
            let w = plan.gradient_window(&plan.output_rect(patch), &input);
            // SAFETY: scratch is the worker's own; each task writes its own channels of its own patch of dx, which is no
            // operand; offsets fit the operand (`fit`); `isa` is available.
            unsafe {
                let scratch = floats.at(worker * each);
                let dy = reach_dy.near(isa, dy, nb, 0..dy.t.channels(), w, scratch);
                data_patch(isa, plan, &d, &dy, w, scratch, &input, channels.clone());
                let area = Area { nb, ch: 0, rows: input.rows, cols: input.cols, lanes: valid(n, nb) };
                let item = nb * items + patch;
                write_patch(isa, plan, &d, scratch, area, channels, partials, item, d.dx.is_large(nbs));
            }
        });
    }
    if let Some((_, dw)) = weights {
        add_parts(workers, dw, part_sums, parts, entries);
    }
}

/// Adds the products of one patch to the sums of the entries of some outputs.
#[allow(clippy::too_many_arguments)]
unsafe fn weight_patch(
    isa: Isa,
    plan: &ConvPlan,
    x: &Near,
    dy: &Near,
    w: Window,
    rect: &Rect,
    outs: Range<usize>,
    lanes: usize,
    sums: &mut [f32],
) {
    let st = plan.geom.stride as usize;
    let (row, col) = (rect.rows.start as isize - w.row, rect.cols.start as isize - w.col);
    let grid = Grid { rows: rect.rows.len(), cols: rect.cols.len(), src_row: st * x.at.row, src_step: st * LANES };
    // SAFETY: as the caller's.
    unsafe {
        let dy = Patch { ptr: dy.ptr.add(row as usize * dy.at.row + col as usize * LANES), ..dy.patch() };
        match plan.how.weight {
            Kernel::Sparse => {
                dots::sparse::sparse(isa, &plan.segments(), x.patch(), dy, grid, lanes, outs, plan.how.tile, sums)
            }
            Kernel::Dense => dots::dense::dense(isa, plan.packed.taps(), x.patch(), dy, grid, lanes, outs, sums),
        }
    }
}

/// Writes or adds the sums of some outputs to their stored weights' places.
fn add_sums(plan: &ConvPlan, outs: &Range<usize>, out: &mut [f32], sums: &[f32], first: bool) {
    let put = |o: &mut f32, s: f32| *o = if first { s } else { *o + s };
    match plan.kept().filter(|_| plan.how.weight == Kernel::Dense) {
        None => out.iter_mut().zip(sums).for_each(|(o, s)| put(o, *s)),
        Some(kept) => {
            let origin = outs.start * plan.geom.weights() / plan.geom.k as usize;
            let kept = &kept[plan.entries_of(outs)];
            out.iter_mut().zip(kept).for_each(|(o, &p)| put(o, sums[p as usize - origin]));
        }
    }
}

/// Adds the parts in order.
fn add_parts(workers: &Workers, dw: Shared<f32>, part_sums: &[f32], parts: usize, entries: usize) {
    if parts == 1 {
        return;
    }
    const CHUNK: usize = 1 << 14;
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

/// The data gradient of some channels of one patch, class by class, into scratch.
#[allow(clippy::too_many_arguments)]
unsafe fn data_patch(
    isa: Isa,
    plan: &ConvPlan,
    d: &DataGrad,
    dy: &Near,
    w: Window,
    made: *mut f32,
    rect: &Rect,
    channels: Range<usize>,
) {
    let (l, st, low) = (&plan.transposed, plan.geom.stride as usize, plan.low_tap());
    let segments = d.dx.channels() * l.blocks;
    for (i, class) in plan.classes.iter().enumerate() {
        // Rows and columns of the class: `stride * i + at` inside the patch.
        let side = |r: &Range<usize>, at: usize| {
            let first = r.start.saturating_sub(at).div_ceil(st);
            first..r.end.saturating_sub(at).div_ceil(st).max(first)
        };
        let (rows, cols) = (side(&rect.rows, class.at[0]), side(&rect.cols, class.at[1]));
        if rows.is_empty() || cols.is_empty() {
            continue;
        }
        // SAFETY: as the caller's; the window holds what the class reads, the scratch the patch.
        unsafe {
            let row = (rows.start as isize - low - w.row) as usize * dy.at.row;
            let col = (cols.start as isize - low - w.col) as usize * LANES;
            let first =
                [st * rows.start + class.at[0] - rect.rows.start, st * cols.start + class.at[1] - rect.cols.start];
            let src = Patch { ptr: dy.ptr.add(row + col), ..dy.patch() };
            let to = plan.dx_made;
            let ptr = made.add(first[0] * to.row + first[1] * LANES);
            let dst = Out { ptr, chan: to.chan, row: st * to.row, step: st * LANES };
            let grid = Grid { rows: rows.len(), cols: cols.len(), src_row: dy.at.row, src_step: LANES };
            let outs = channels.clone();
            match plan.how.data {
                Kernel::Sparse => {
                    let starts = &l.starts[i * segments..=(i + 1) * segments];
                    let s = Segments { blocks: l.blocks, starts, offs: &l.offs };
                    sparse(isa, &s, &plan.values_t, src, dst, grid, outs, Start::Zero, plan.how.tile)
                }
                Kernel::Dense => {
                    let (taps, weights) = (&plan.packed.classes[i], plan.packed.class_weights(i));
                    dense(isa, taps, weights, src, dst, grid, outs, Start::Zero)
                }
            }
        }
    }
}

/// Writes a patch of the data gradient from scratch and completes it.
#[allow(clippy::too_many_arguments)]
unsafe fn write_patch(
    isa: Isa,
    plan: &ConvPlan,
    d: &DataGrad,
    scratch: *const f32,
    area: Area,
    channels: Range<usize>,
    partials: Shared<[[f64; 2]; 2]>,
    item: usize,
    large: bool,
) {
    for ch in channels {
        // SAFETY: as the caller's.
        unsafe {
            let around = large && d.write == Write::Overwrite;
            let made = Made { ptr: scratch.add(ch * plan.dx_made.chan), row: plan.dx_made.row, around };
            let from = if d.write == Write::Overwrite { From::Patch(made) } else { From::Both(made) };
            let sums = finish(isa, d.finish, d.dx, Area { ch, ..area.clone() }, from);
            if !d.finish.is_empty() {
                *partials.at(item * d.dx.channels() + ch) = sums;
            }
        }
    }
    if large {
        fence();
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
