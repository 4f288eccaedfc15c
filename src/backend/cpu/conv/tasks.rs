//! How the passes of a convolution are cut into tasks.

use super::super::cuts::Strides;
use super::super::kernels::sparse::Segments;
use super::super::layout::View;
use super::super::plan::Kernel;
use super::super::simd::Isa;
use super::super::source::Source;
use super::super::structure::ConvPlan;
use super::super::workers::Workers;
use std::ops::Range;

/// Tasks of the weight gradient: parts of the images' patches, whose sums are added in order, times groups of outputs.
const PARTS: usize = 32;

/// Sums of a group of outputs of the weight gradient (32 KB).
const GROUP_SUMS: usize = 8192;

impl ConvPlan {
    /// Sums that the weight gradient of some outputs adds up: one a stored weight, or a weight of the dense kernel.
    pub(super) fn sums_of(&self, outs: &Range<usize>) -> usize {
        let dense = self.geom.weights() / self.geom.k as usize;
        if self.how.weight == Kernel::Dense { outs.len() * dense } else { self.entries_of(outs).len() }
    }

    /// Outputs are grouped so that a group's sums stay near and every thread finds work; where both gradients are one task
    /// there is one group, however many weights the dense kernel sums up for the few that are stored.
    pub(super) fn groups(&self) -> usize {
        let outs = self.geom.k as usize;
        if self.is_shared() { self.sums_of(&(0..outs)).div_ceil(GROUP_SUMS).clamp(1, outs) } else { 1 }
    }

    /// Group `i`: outputs from the first whose entries begin at or after the i-th share of all entries.
    pub(super) fn group(&self, i: usize) -> Range<usize> {
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
    pub(super) fn group_sums(&self) -> usize {
        (0..self.groups()).map(|i| self.sums_of(&self.group(i))).max().unwrap_or(0)
    }

    /// The entry lists of forward pass and weight gradient.
    pub(super) fn segments(&self) -> Segments<'_> {
        let l = &self.forward;
        Segments { blocks: l.blocks, starts: &l.starts, offs: &l.offs }
    }

    /// Parts of the weight gradient for so many blocks of images.
    pub(super) fn parts(&self, nbs: usize) -> usize {
        if self.is_shared() { (PARTS / self.groups()).clamp(1, self.items()) } else { PARTS.min(nbs * self.items()) }
    }

    /// Whether the input is read where it lies.
    pub(super) fn reads_input(&self, x: &Source) -> bool {
        x.is_plain() && self.geom.pad == 0
    }

    /// Whether the output's gradient is read where it lies.
    pub(super) fn reads_gradient(&self, dy: &Source) -> bool {
        dy.is_plain() && self.geom.pad == 0 && (self.geom.r, self.geom.s) == (1, 1)
    }

    /// Makes the entries' offsets fit the operands.
    pub(super) fn fit(&mut self, isa: Isa, x: Option<&Source>, dy: Option<&Source>) {
        let g = self.geom;
        let at = |v: &View| Strides { chan: v.chan, row: v.row };
        if let Some(x) = x {
            assert_eq!((x.t.plane.c, x.t.plane.h, x.t.plane.w), (g.c, g.h, g.w), "input of another shape than {g:?}");
            self.read_input(isa, if self.reads_input(x) { at(&x.t) } else { self.x_patch });
        }
        if let Some(dy) = dy {
            self.read_gradient(isa, if self.reads_gradient(dy) { at(&dy.t) } else { self.dy_patch });
        }
    }
}

/// Parts of the outputs where there are too few patches to keep all threads busy. Tasks that share patches may be small;
/// others fill theirs once a part.
pub(super) fn out_parts(workers: &Workers, items: usize, outs: usize, shared: bool) -> usize {
    let wanted = if shared { 16 } else { 4 } * workers.threads();
    if workers.threads() == 1 || items >= wanted { 1 } else { wanted.div_ceil(items).min(outs) }
}
