//! A convolution's passes: tasks, patches, kernels, epilogues.
//!
//! A task takes a patch of the output (forward) or of the input (data gradient) of one block of 16 images, or some
//! channels of it; backward, where both gradients are one task, several patches. It copies what the patch reads into
//! scratch, halo and zeros included, computing operands on the way, unless they can be read where they lie or all tasks
//! share one copy; runs the kernel; and works on the result while it is near. What the patches are depends on the plan
//! only, so results do not depend on the threads.

mod backward;
mod reach;
mod tasks;

pub(super) use backward::{DataGrad, backward};

use super::cuts::{Rect, part};
use super::epilogue::{Area, Made, stats};
use super::kernels::dense::dense;
use super::kernels::patch::{Grid, Out, Start};
use super::kernels::sparse::sparse;
use super::layout::{LANES, Mapped, View, blocks, valid};
use super::plan::Kernel;
use super::simd::{Isa, fence};
use super::source::Source;
use super::structure::ConvPlan;
use super::workers::{Shared, Workers};
use crate::error::Result;
use reach::{Reach, for_blocks};
use tasks::out_parts;

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
        let gap = 1024; // floats that keep workers out of each other's lines and prefetches
        let own = |p: &ConvPlan, i: usize| if p.is_shared() { 0 } else { p.patch_floats()[i] };
        let x = most(&|p| own(p, 0).max(p.patch_floats()[2])) + gap;
        let dy = most(&|p| own(p, 1).max(p.patch_floats()[2])) + gap;
        let shared = |i: usize| most(&|p| if p.is_shared() { p.patch_floats()[i] } else { 0 });
        let sums = (most(&|p| p.group_sums()) + gap).next_multiple_of(LANES);
        let part_sums = |p: &ConvPlan| match p.parts(nbs) {
            1 => 0,
            n => n * p.entries(),
        };
        let items = |p: &ConvPlan| p.items() * nbs;
        // Else vectors straddle lines, and the second thread's tasks take a sixth longer (Zen 3, AVX2, 2026-11).
        let aligned = |floats: usize| floats.is_multiple_of(LANES);
        assert!(
            [x, dy, sums, shared(0)].into_iter().all(aligned),
            "scratch out of line: {x} {dy} {sums} {}",
            shared(0)
        );
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

/// `y = conv(x) + bias`; with `keep_stats`, (count, mean, M2) of each (block, patch, channel) in the scratch.
pub(super) fn forward(ctx: Ctx, plan: &mut ConvPlan, values: &[f32], x: Source, y: View, keep_stats: bool) {
    plan.fit(ctx.isa, Some(&x), None);
    let (plan, g, nbs) = (&*plan, plan.geom, blocks(ctx.n));
    assert_eq!((y.plane.c, y.plane.h, y.plane.w), (g.k, g.p(), g.q()), "output of another shape than {g:?}");
    let (items, outs, st) = (plan.items(), y.channels(), g.stride as usize);
    let shared = plan.is_shared();
    let out_parts = out_parts(ctx.workers, if shared { items } else { nbs * items }, outs, shared);
    let weights = &values[plan.weight.clone()];
    let packed = if plan.packed.forward.is_empty() { weights } else { &plan.packed.forward };
    let start = plan.bias.as_ref().map_or(Start::Zero, |b| Start::Bias(&values[b.clone()]));
    let Scratch { floats, at, each, stats: partials, shared: common, .. } = ctx.scratch;
    let (floats, at, each, partials) = (floats.base, *at, *each, Shared::new(partials));
    let reach =
        Reach::new(plan.reads_input(&x), shared, common.base, plan.x_patch, plan.whole().0).fetched(g.stride == 1);
    let around = y.is_large(nbs);
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
