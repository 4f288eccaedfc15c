//! A convolution's passes: tasks, patches, kernels, epilogues.
//!
//! A task takes a patch of the output (forward) or of the input (data gradient) of one block of 16 images: it copies what
//! the patch reads into scratch, halo and zeros included, computing operands on the way; runs the kernel; and works on the
//! result while it is near. What the patches are depends on the plan only, so results do not depend on the threads.

use super::epilogue::{Area, Finisher, From, Made, finish, stats};
use super::kernels::patch::{Grid, Out, Patch, Start};
use super::kernels::sparse::{Segments, sparse};
use super::kernels::{dense::dense, dots};
use super::layout::{LANES, Mapped, View, blocks, valid};
use super::plan::Kernel;
use super::simd::{Isa, V16, entry_points, fence, lane_mask};
use super::source::{Eval, Source, Window, fill, with_grad};
use super::structure::{ConvPlan, Rect, Strides, part};
use super::workers::{Shared, Workers};
use crate::backend::Write;
use crate::error::Result;
use std::ops::Range;

/// Tasks of the weight gradient: parts of the images' patches, whose sums are added in order, times groups of outputs.
const PARTS: usize = 32;

/// Sums of a group of outputs of the weight gradient (128 KB).
const GROUP_SUMS: usize = 32768;
/// Tensors beyond this are written around the caches: half of a common L3.
const LARGE_BYTES: usize = 16 << 20;

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
    /// For each worker: input patch (later the patch made of its gradient), gradient patch (or the patch made of the
    /// output), sums of a group.
    floats: Mapped,
    at: [usize; 3],
    each: usize,
    /// Patches of whole planes, of the input and of the output's gradient, that all workers share.
    shared: Mapped,
    shared_dy: usize,
    /// For each part, one float an entry.
    parts: Vec<f32>,
    /// Statistics of each (block, patch, channel).
    pub(super) stats: Vec<[f64; 3]>,
    /// Sums for up to two norms of each (block, patch, channel).
    pub(super) sums: Vec<[[f64; 2]; 2]>,
}

impl Scratch {
    /// `planes`: most channels of any tensor.
    pub(super) fn new(plans: &[ConvPlan], planes: usize, batch: usize, threads: usize) -> Result<Self> {
        let nbs = blocks(batch);
        let most = |f: &dyn Fn(&ConvPlan) -> usize| plans.iter().map(f).max().unwrap_or(0);
        let gap = 1024; // bytes that keep workers out of each other's lines and prefetches
        let own = |p: &ConvPlan, i: usize| if p.is_shared() { 0 } else { p.patch_floats()[i] };
        let x = most(&|p| own(p, 0).max(p.patch_floats()[2])) + gap;
        let dy = most(&|p| own(p, 1).max(p.patch_floats()[2])) + gap;
        let shared = |i: usize| most(&|p| if p.is_shared() { p.patch_floats()[i] } else { 0 });
        let sums = most(&|p| p.group_sums()) + gap;
        let part_sums = |p: &ConvPlan| match p.parts(nbs) {
            1 => 0,
            n => n * p.entries(),
        };
        let items = |p: &ConvPlan| p.items() * nbs;
        Ok(Scratch {
            floats: Mapped::new((x + dy + sums) * threads, "patches")?,
            at: [0, x, x + dy],
            each: x + dy + sums,
            shared: Mapped::new(shared(0) + shared(1), "patches")?,
            shared_dy: shared(0),
            parts: vec![0.0; most(&part_sums)],
            stats: vec![[0.0; 3]; most(&|p| items(p) * p.geom.k as usize).max(nbs * planes)],
            sums: vec![[[0.0; 2]; 2]; most(&|p| items(p) * p.geom.c as usize).max(nbs * planes)],
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        let partials = size_of_val(&self.stats[..]) + size_of_val(&self.sums[..]) + 4 * self.parts.len();
        self.floats.bytes() + self.shared.bytes() + partials as u64
    }
}

impl ConvPlan {
    /// Sums that the weight gradient of some outputs adds up: one a stored weight, or a weight of the dense kernel.
    fn sums_of(&self, outs: &Range<usize>) -> usize {
        let dense = self.geom.weights() / self.geom.k as usize;
        if self.how.weight == Kernel::Dense { outs.len() * dense } else { self.entries_of(outs).len() }
    }

    /// Outputs are grouped so that a group's sums stay in L2; where both gradients are one task there is one group, however
    /// many weights the dense kernel sums up for the few that are stored.
    fn groups(&self) -> usize {
        let outs = self.geom.k as usize;
        if self.is_shared() { self.sums_of(&(0..outs)).div_ceil(GROUP_SUMS).clamp(1, outs) } else { 1 }
    }

    /// Group `i`: outputs from the first whose entries begin at or after the i-th share of all entries.
    fn group(&self, i: usize) -> Range<usize> {
        let (groups, outs) = (self.groups(), self.geom.k as usize);
        let first = |i: usize| {
            let share = self.entries() * i / groups;
            let (mut low, mut high) = (0, outs);
            while low < high {
                let mid = (low + high) / 2;
                if self.entries_of(&(0..mid)).end < share { low = mid + 1 } else { high = mid }
            }
            if i == groups { outs } else { low }
        };
        if i == 0 { 0..first(1) } else { first(i)..first(i + 1) }
    }

    /// Most sums of a group.
    fn group_sums(&self) -> usize {
        (0..self.groups()).map(|i| self.sums_of(&self.group(i))).max().unwrap_or(0)
    }

    /// The entry lists of forward pass and weight gradient.
    fn segments(&self) -> Segments<'_> {
        let l = &self.forward;
        Segments { blocks: l.blocks, starts: &l.starts, offs: &l.offs }
    }

    /// Parts of the weight gradient for so many blocks of images.
    fn parts(&self, nbs: usize) -> usize {
        if self.is_shared() { (PARTS / self.groups()).clamp(1, self.items()) } else { PARTS.min(nbs * self.items()) }
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
    fn fit(&mut self, isa: Isa, x: &Source, dy: Option<&Source>) {
        let g = self.geom;
        assert_eq!((x.t.plane.c, x.t.plane.h, x.t.plane.w), (g.c, g.h, g.w), "input of another shape than {g:?}");
        x.check();
        let at = |v: &View| Strides { chan: v.chan, row: v.row };
        self.read_input(isa, if self.reads_input(x) { at(&x.t) } else { self.x_patch });
        if let Some(dy) = dy {
            dy.check();
            self.read_gradient(isa, if self.reads_gradient(dy) { at(&dy.t) } else { self.dy_patch });
        }
    }
}

/// Where an operand's window lies: its first pixel of channel 0 of the channels asked for.
struct Near {
    ptr: *const f32,
    at: Strides,
}

impl Near {
    fn patch(&self) -> Patch {
        Patch { ptr: self.ptr, chan: self.at.chan, row: self.at.row }
    }
}

/// How the tasks of a pass get at an operand.
#[derive(Clone, Copy)]
enum Reach {
    /// In the tensor itself.
    Direct,
    /// Copied to the worker's scratch, of these strides.
    Own(Strides),
    /// In a patch of all channels of this window, filled by [`share`].
    Shared(Shared<f32>, Strides, Window),
}

impl Reach {
    fn new(direct: bool, shared: bool, patch: Shared<f32>, at: Strides, whole: Window) -> Self {
        match (direct, shared) {
            (true, _) => Reach::Direct,
            (_, true) => Reach::Shared(patch, at, whole),
            _ => Reach::Own(at),
        }
    }

    /// The window of some channels.
    unsafe fn near(self, isa: Isa, s: Source, nb: usize, channels: Range<usize>, w: Window, own: *mut f32) -> Near {
        let inside = |row: isize, col: isize, at: Strides| row as usize * at.row + col as usize * LANES;
        // SAFETY: as the caller's; a window that is read directly lies inside the tensor.
        unsafe {
            match self {
                Reach::Direct => {
                    let at = Strides { chan: s.t.chan, row: s.t.row };
                    Near { ptr: s.t.plane_at(nb, channels.start).add(inside(w.row.max(0), w.col.max(0), at)), at }
                }
                Reach::Own(at) => {
                    fill(isa, s, nb, channels, w, own, at.chan, at.row);
                    Near { ptr: own, at }
                }
                Reach::Shared(patch, at, whole) => {
                    let first = channels.start * at.chan + inside(w.row - whole.row, w.col - whole.col, at);
                    Near { ptr: patch.at(first), at }
                }
            }
        }
    }

    /// Fills the shared patch, if there is one, from one block of images.
    fn share(self, isa: Isa, workers: &Workers, s: Source, nb: usize) {
        if let Reach::Shared(patch, at, w) = self {
            const CHANNELS: usize = 8;
            let c = s.t.channels();
            workers.run(c.div_ceil(CHANNELS), c * w.rows * w.cols, |_, task| {
                let channels = task * CHANNELS..c.min((task + 1) * CHANNELS);
                // SAFETY: each task fills its own channels; `isa` is available.
                unsafe { fill(isa, s, nb, channels.clone(), w, patch.at(channels.start * at.chan), at.chan, at.row) };
            });
        }
    }
}

/// Runs `f(worker, task)` for the tasks `0..tasks` of each block of images. Where patches are shared, block after block,
/// each behind `share(block)`; else all at once.
fn for_blocks(
    workers: &Workers,
    shared: bool,
    nbs: usize,
    tasks: usize,
    work: usize,
    share: impl Fn(usize),
    f: impl Fn(usize, usize, usize) + Sync,
) {
    if shared {
        for nb in 0..nbs {
            share(nb);
            workers.run(tasks, work / nbs, |worker, task| f(worker, nb, task));
        }
    } else {
        workers.run(nbs * tasks, work, |worker, task| f(worker, task / tasks, task % tasks));
    }
}

/// `y = conv(x) + bias`; with `keep_stats`, (count, mean, M2) of each (block, patch, channel) in the scratch.
pub(super) fn forward(ctx: Ctx, plan: &mut ConvPlan, values: &[f32], x: Source, y: View, keep_stats: bool) {
    plan.fit(ctx.isa, &x, None);
    let (plan, g, nbs) = (&*plan, plan.geom, blocks(ctx.n));
    assert_eq!((y.plane.c, y.plane.h, y.plane.w), (g.k, g.p(), g.q()), "output of another shape than {g:?}");
    let (items, outs, st) = (plan.items(), y.channels(), g.stride as usize);
    let shared = plan.is_shared();
    let out_parts = out_parts(ctx.workers, if shared { items } else { nbs * items }, outs);
    let weights = &values[plan.weight.clone()];
    let packed = if plan.packed.forward.is_empty() { weights } else { &plan.packed.forward };
    let start = plan.bias.as_ref().map_or(Start::Zero, |b| Start::Bias(&values[b.clone()]));
    let Scratch { floats, at, each, stats: partials, shared: common, .. } = ctx.scratch;
    let (floats, at, each, partials) = (floats.base, *at, *each, Shared::new(partials));
    let reach = Reach::new(plan.reads_input(&x), shared, common.base, plan.x_patch, plan.whole().0);
    let around = is_large(&y, nbs);
    let work = (plan.entries() + 2 * outs) * y.pixels() * nbs;
    let share = |nb: usize| reach.share(ctx.isa, ctx.workers, x, nb);
    for_blocks(ctx.workers, shared, nbs, items * out_parts, work, share, |worker, nb, task| {
        let (patch, outs) = (task / out_parts, part(outs, out_parts, task % out_parts));
        let item = nb * items + patch;
        let rect = plan.output_rect(patch);
        // SAFETY: scratch is the worker's own; each task writes its own outputs of its own patch of y, which is no operand;
        // offsets fit the operand (`fit`); `isa` is available.
        unsafe {
            let scratch = floats.at(worker * each);
            let x = reach.near(ctx.isa, x, nb, 0..x.t.channels(), plan.input_window(&rect), scratch);
            let (rows, cols) = (rect.rows.len(), rect.cols.len());
            let grid = Grid { rows, cols, src_row: st * x.at.row, src_step: st * LANES };
            let dst = Out { ptr: scratch.add(at[1]), chan: plan.y_made.chan, row: plan.y_made.row, step: LANES };
            match plan.how.forward {
                Kernel::Sparse => {
                    let tile = plan.how.tile;
                    sparse(ctx.isa, &plan.segments(), weights, x.patch(), dst, grid, outs.clone(), start, tile)
                }
                Kernel::Dense => dense(ctx.isa, plan.packed.taps(), packed, x.patch(), dst, grid, outs.clone(), start),
            }
            for ch in outs {
                let Rect { rows, cols } = rect.clone();
                let area = Area { nb, ch, rows, cols, lanes: valid(ctx.n, nb) };
                let made = Made { ptr: dst.ptr.add(ch * dst.chan), row: dst.row, around };
                let sums = stats(ctx.isa, y, area, Some(made));
                if keep_stats {
                    *partials.at(item * y.channels() + ch) = sums;
                }
            }
            if around {
                fence();
            }
        }
    });
}

/// Whether a tensor is too large to stay in the caches until it is read again.
fn is_large(v: &View, nbs: usize) -> bool {
    v.block * nbs * 4 > LARGE_BYTES
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
    plan.fit(ctx.isa, &x, Some(&dy));
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
    if plan.is_shared() { apart(&mut ctx, plan, dw, x, dy, data) } else { together(&mut ctx, plan, dw, x, dy, data) }
}

/// Both gradients patch by patch: a part of all images' patches a task.
fn together(ctx: &mut Ctx, plan: &ConvPlan, dw: Shared<f32>, x: Source, dy: Source, data: Option<DataGrad>) {
    let (nbs, items, entries) = (blocks(ctx.n), plan.items(), plan.entries());
    let parts = plan.parts(nbs);
    let (isa, n) = (ctx.isa, ctx.n);
    let Scratch { floats, at, each, parts: part_sums, sums: partials, shared, .. } = &mut *ctx.scratch;
    let (floats, at, each, partials) = (floats.base, *at, *each, Shared::new(partials));
    let (whole_x, whole_dy) = plan.whole();
    let reach_x = Reach::new(plan.reads_input(&x), false, shared.base, plan.x_patch, whole_x);
    let reach_dy = Reach::new(plan.reads_gradient(&dy), false, shared.base, plan.dy_patch, whole_dy);
    let out = if parts == 1 { dw } else { Shared::new(part_sums) };
    let work = (2 * entries + dy.t.channels()) * dy.t.pixels() * nbs;
    ctx.workers.run(parts, work, |worker, p| {
        // SAFETY: scratch is the worker's own; each part owns its sums and its patches of dx; operands are only read, and
        // offsets fit them (`fit`); `isa` is available.
        unsafe {
            let (scratch, outs) = (floats.at(worker * each), 0..plan.geom.k as usize);
            let sums = std::slice::from_raw_parts_mut(scratch.add(at[2]), plan.sums_of(&outs));
            sums.fill(0.0);
            for item in part(nbs * items, parts, p) {
                let (nb, patch) = (item / items, item % items);
                let rect = plan.output_rect(patch);
                let input = if data.is_some() { plan.input_rect(patch) } else { Rect { rows: 0..0, cols: 0..0 } };
                let w = plan.gradient_window(&rect, &input);
                let dy = reach_dy.near(isa, dy, nb, 0..dy.t.channels(), w, scratch.add(at[1]));
                if entries > 0 && !rect.is_empty() {
                    let x = reach_x.near(isa, x, nb, 0..x.t.channels(), plan.input_window(&rect), scratch);
                    weight_patch(isa, plan, &x, &dy, w, &rect, outs.clone(), valid(n, nb), sums);
                }
                if let Some(d) = data {
                    let channels = 0..d.dx.channels();
                    data_patch(isa, plan, &d, &dy, w, scratch, &input, channels.clone());
                    let area = Area { nb, ch: 0, rows: input.rows, cols: input.cols, lanes: valid(n, nb) };
                    write_patch(isa, plan, &d, scratch, area, channels, partials, item, is_large(&d.dx, nbs));
                }
            }
            add_sums(plan, &outs, out.slice(p * entries, entries), sums, true);
        }
    });
    add_parts(ctx.workers, dw, part_sums, parts, entries);
}

/// The weight gradient by groups of outputs, then the data gradient by parts of the inputs, over shared patches, block of
/// images after block.
fn apart(ctx: &mut Ctx, plan: &ConvPlan, dw: Shared<f32>, x: Source, dy: Source, data: Option<DataGrad>) {
    let (nbs, items, entries) = (blocks(ctx.n), plan.items(), plan.entries());
    let (parts, groups) = (plan.parts(nbs), plan.groups());
    let (isa, n, workers) = (ctx.isa, ctx.n, ctx.workers);
    let Scratch { floats, at, each, parts: part_sums, sums: partials, shared, shared_dy, .. } = &mut *ctx.scratch;
    let (floats, at, each, partials) = (floats.base, *at, *each, Shared::new(partials));
    let (whole_x, whole_dy) = plan.whole();
    // SAFETY: inside the shared patches.
    let common_dy = Shared::from_ptr(unsafe { shared.base.at(*shared_dy) });
    let reach_x = Reach::new(plan.reads_input(&x), true, shared.base, plan.x_patch, whole_x);
    let reach_dy = Reach::new(plan.reads_gradient(&dy), true, common_dy, plan.dy_patch, whole_dy);
    let out = if parts == 1 { dw } else { Shared::new(part_sums) };
    let work = entries * dy.t.pixels();
    for nb in 0..nbs {
        reach_x.share(isa, workers, x, nb);
        reach_dy.share(isa, workers, dy, nb);
        workers.run(parts * groups, work, |worker, task| {
            let (p, outs) = (task / groups, plan.group(task % groups));
            let range = plan.entries_of(&outs);
            // SAFETY: scratch is the worker's own; each (part, group) owns its sums; operands are only read, and offsets
            // fit them (`fit`); `isa` is available.
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
        let Some(d) = data else { continue };
        let channels = d.dx.channels();
        let out_parts = out_parts(workers, items, channels);
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
                write_patch(isa, plan, &d, scratch, area, channels, partials, item, is_large(&d.dx, nbs));
            }
        });
    }
    add_parts(workers, dw, part_sums, parts, entries);
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
