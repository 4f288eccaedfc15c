//! Structure of a convolution as the kernels walk it: its non-zeros as (offset, value) in the order output
//! channel, input-channel block, input channel, kernel row, kernel column. How its planes are cut is in `cuts.rs`.
//!
//! Forward and weight gradient read values and write gradients in the flat store's own order. The data gradient is the
//! same kernel over the transposed structure, with a gathered copy of the values.

use super::cuts::Strides;
use super::layout::LANES;
use super::packed::Packed;
use super::plan::{Kernel, LayerPlan};
use super::simd::Isa;
use super::workers::{Shared, Workers};
use crate::backend::{ConvSpec, ParamId, Spec};
use crate::error::{Error, Result};
use crate::shape::{ConvGeom, MAX_STRIDE};
use std::ops::Range;
use std::sync::Arc;

/// Entries up to which one task computes both gradients of a patch, its sums in L2 beside the patches (128 KB).
pub(super) const SHARED_ENTRIES: usize = 32768;

/// Entry lists: segment `o * blocks + b` holds the entries of output `o` whose input channel is in block `b`.
pub(super) struct Lists {
    /// Input-channel blocks.
    pub(super) blocks: usize,
    /// First entry of each segment, and the end.
    pub(super) starts: Vec<u32>,
    /// Offset of each entry in floats.
    pub(super) offs: Vec<u32>,
    /// Strides that `offs` are for.
    strides: Strides,
}

/// Input pixels `stride * i + row`, `stride * j + col` of a data gradient: they see the same kernel taps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    /// First row and first column.
    pub(super) at: [usize; 2],
}

/// A convolution's structure.
pub(super) struct ConvPlan {
    pub(super) geom: ConvGeom,
    /// The weight's part of the flat stores.
    pub(super) weight: Range<usize>,
    /// The bias' part of the flat stores.
    pub(super) bias: Option<Range<usize>>,
    kept: Option<Arc<[u32]>>,
    /// First stored weight of each output channel, and the end.
    outs: Vec<u32>,
    /// For forward (outputs K) and weight gradient; empty if neither runs sparse.
    pub(super) forward: Lists,
    /// For the data gradient; outputs are `class * C + c`. Empty if it runs dense.
    pub(super) transposed: Lists,
    /// Pixel classes of the data gradient, stride * stride of them.
    pub(super) classes: Vec<Class>,
    /// Entry of the weight for each transposed entry.
    perm: Vec<u32>,
    /// Values in transposed order, as of the last refresh.
    pub(super) values_t: Vec<f32>,
    /// For the passes that run dense.
    pub(super) packed: Packed,
    /// Whether the copies are older than the values.
    pub(super) stale: bool,
    /// How it runs; input and output planes are cut alike.
    pub(super) how: LayerPlan,
    /// Strides of the largest input patch (with its halo) and of the largest patch of the output's gradient.
    pub(super) x_patch: Strides,
    pub(super) dy_patch: Strides,
    /// Strides of what a task makes: a patch of the output, or of the input's gradient.
    pub(super) y_made: Strides,
    pub(super) dx_made: Strides,
}

impl ConvPlan {
    /// Builds the structure as `how` says, or by default.
    pub(super) fn new(isa: Isa, spec: &Spec, conv: &ConvSpec, how: Option<LayerPlan>) -> Result<Self> {
        let g = conv.geom;
        let fault = |what: &str| Error::Failed(format!("cpu backend: convolution {g:?}: {what}"));
        if g.stride == 0 || g.h + 2 * g.pad < g.r || g.w + 2 * g.pad < g.s || g.weights() == 0 {
            return Err(fault("wanted sizes and stride above 0 and a kernel inside the padded image"));
        }
        if g.stride > MAX_STRIDE {
            return Err(fault(&format!("wanted a stride of at most {MAX_STRIDE}")));
        }
        let param = |what: &str, id: ParamId| {
            let (i, count) = (id.0, spec.params.len());
            spec.params.get(i as usize).ok_or_else(|| fault(&format!("no such {what}: parameter {i} of {count}")))
        };
        let weight = param("weight", conv.weight)?;
        let entries = weight.kept.as_ref().map_or(g.weights(), |k| k.len());
        let (stored, shape) = (weight.range.len(), &weight.shape);
        if stored != entries || shape.iter().product::<usize>() != g.weights() {
            let wanted = format!("wanted {} weights, {entries} of them stored", g.weights());
            return Err(fault(&format!("{wanted}, got shape {shape:?} and {stored} stored")));
        }
        let kept = weight.kept.as_deref().unwrap_or_default();
        let bad = |i: &usize| kept[*i] as usize >= g.weights() || *i > 0 && kept[*i] <= kept[*i - 1];
        if let Some(i) = (0..kept.len()).find(bad) {
            let wanted = format!("wanted kept positions that ascend below {}", g.weights());
            return Err(fault(&format!(
                "{wanted}, got {:?} from number {} on",
                &kept[i.saturating_sub(1)..=i],
                i.max(1)
            )));
        }
        let bias = match conv.bias {
            None => None,
            Some(id) => {
                let b = param("bias", id)?;
                if b.range.len() != g.k as usize {
                    let got = b.range.len();
                    return Err(fault(&format!(
                        "wanted a bias of {} stored values, one an output channel, got {got}",
                        g.k
                    )));
                }
                Some(b.range.clone())
            }
        };
        let how = how.unwrap_or_else(|| LayerPlan::default_for(&g, entries));
        let lists = || Lists { blocks: 1, starts: vec![], offs: vec![], strides: Strides::default() };
        let st = g.stride as usize;
        let mut plan = ConvPlan {
            geom: g,
            weight: weight.range.clone(),
            bias,
            kept: weight.kept.clone(),
            forward: lists(),
            transposed: lists(),
            classes: (0..st * st).map(|i| Class { at: [i / st, i % st] }).collect(),
            outs: vec![0; g.k as usize + 1],
            perm: vec![],
            values_t: vec![],
            packed: Packed::new(&g, &how, weight.kept.is_some()),
            stale: true,
            how,
            x_patch: Strides::default(),
            dy_patch: Strides::default(),
            y_made: Strides::default(),
            dx_made: Strides::default(),
        };
        for e in 0..entries {
            let k = plan.position(e)[0];
            plan.outs[k + 1] += 1;
        }
        accumulate(&mut plan.outs);
        plan.size_patches();
        if let Some(floats) = plan.patch_floats().into_iter().find(|&f| u32::try_from(f).is_err()) {
            let advice = if plan.is_shared() { "shrink the images" } else { "cut them finer" };
            return Err(fault(&format!("wanted patches of less than 2^32 numbers, got {floats}; {advice}")));
        }
        if plan.how.forward == Kernel::Sparse || plan.how.weight == Kernel::Sparse {
            plan.build_forward();
        }
        if plan.how.data == Kernel::Sparse {
            plan.build_transposed();
        }
        plan.read_input(isa, plan.x_patch);
        plan.read_gradient(isa, plan.dy_patch);
        Ok(plan)
    }

    /// Stored weights.
    pub(super) fn entries(&self) -> usize {
        self.outs[self.geom.k as usize] as usize
    }

    /// Stored weights of some output channels.
    pub(super) fn entries_of(&self, outs: &Range<usize>) -> Range<usize> {
        self.outs[outs.start] as usize..self.outs[outs.end] as usize
    }

    /// Kept positions; none: all.
    pub(super) fn kept(&self) -> Option<&[u32]> {
        self.kept.as_deref()
    }

    /// Bytes of every index array.
    pub(super) fn index_bytes(&self) -> u64 {
        let words = |l: &Lists| l.starts.len() + l.offs.len();
        let kept = self.kept.as_ref().map_or(0, |k| k.len());
        let words = words(&self.forward) + words(&self.transposed) + self.outs.len() + self.perm.len() + kept;
        4 * words as u64 + size_of_val(self.classes.as_slice()) as u64 + self.packed.bytes()[1]
    }

    /// Position of entry `e` as k, c, r, s.
    fn position(&self, e: usize) -> [usize; 4] {
        let g = &self.geom;
        let p = self.kept.as_ref().map_or(e, |k| k[e] as usize);
        let (s, r, c) = (g.s as usize, g.r as usize, g.c as usize);
        [p / (s * r * c), p / (s * r) % c, p / s % r, p % s]
    }

    fn build_forward(&mut self) {
        let (g, entries) = (self.geom, self.entries());
        self.forward.offs = vec![0; entries];
        let per = self.how.channels[0];
        self.forward.blocks = (g.c as usize).div_ceil(per);
        let mut starts = vec![0u32; g.k as usize * self.forward.blocks + 1];
        for e in 0..entries {
            let [k, c, ..] = self.position(e);
            starts[k * self.forward.blocks + c / per + 1] += 1;
        }
        accumulate(&mut starts);
        self.forward.starts = starts;
    }

    fn build_transposed(&mut self) {
        let (g, entries) = (self.geom, self.entries());
        self.transposed.offs = vec![0; entries];
        self.perm = vec![0; entries];
        self.values_t = vec![0.0; entries];
        let outs = self.classes.len() * g.c as usize;
        let per = self.how.channels[1];
        let blocks = (g.k as usize).div_ceil(per);
        let segment = |[k, c, r, s]: [usize; 4]| {
            let class = parity(r, g.pad, g.stride) * g.stride as usize + parity(s, g.pad, g.stride);
            (class * g.c as usize + c) * blocks + k / per
        };
        let mut starts = vec![0u32; outs * blocks + 1];
        for e in 0..entries {
            starts[segment(self.position(e)) + 1] += 1;
        }
        accumulate(&mut starts);
        let mut next = starts.clone();
        for e in 0..entries {
            let at = &mut next[segment(self.position(e))];
            self.perm[*at as usize] = e as u32;
            *at += 1;
        }
        self.transposed.blocks = blocks;
        self.transposed.starts = starts;
    }

    /// Makes forward offsets those of an input with these strides.
    pub(super) fn read_input(&mut self, isa: Isa, at: Strides) {
        if self.forward.strides != at {
            for e in 0..self.forward.offs.len() {
                let [_, c, r, s] = self.position(e);
                self.forward.offs[e] = (c * at.chan + r * at.row + s * LANES) as u32;
            }
            if self.how.forward == Kernel::Dense || self.how.weight == Kernel::Dense {
                self.packed.read_input(isa, at);
            }
            self.forward.strides = at;
        }
    }

    /// Makes transposed offsets those of an output gradient with these strides.
    pub(super) fn read_gradient(&mut self, isa: Isa, at: Strides) {
        if self.transposed.strides == at {
            return;
        }
        let g = self.geom;
        // Input pixel `stride * i + a` and tap r meet in output pixel `i + tap`; offsets count from the lowest tap.
        let low = self.low_tap();
        let tap = |r: usize| {
            let a = parity(r, g.pad, g.stride) as isize;
            ((a + g.pad as isize - r as isize) / g.stride as isize + low) as usize
        };
        for t in 0..self.perm.len() {
            let [k, _, r, s] = self.position(self.perm[t] as usize);
            self.transposed.offs[t] = (k * at.chan + tap(r) * at.row + tap(s) * LANES) as u32;
        }
        if self.how.data == Kernel::Dense {
            self.packed.read_gradient(isa, at, low);
        }
        self.transposed.strides = at;
    }

    /// How far before output pixel `i` the data gradient of input pixel `stride * i + a` reads, over all classes a.
    pub(super) fn low_tap(&self) -> isize {
        let g = &self.geom;
        let side = |kernel: u32| (kernel as isize - 1 - g.pad as isize).max(0).div_euclid(g.stride as isize);
        side(g.r).max(side(g.s))
    }

    /// Renews the copies of the values if they changed.
    pub(super) fn refresh(&mut self, workers: &Workers, values: &[f32]) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        const CHUNK: usize = 1 << 14;
        let (n, values, perm) = (self.perm.len(), &values[self.weight.clone()], &self.perm);
        self.packed.refresh(workers, values, self.kept.as_deref());
        let out = Shared::new(&mut self.values_t);
        workers.run(n.div_ceil(CHUNK), n, |_, task| {
            let at = task * CHUNK;
            let len = CHUNK.min(n - at);
            // SAFETY: chunks are disjoint.
            let out = unsafe { out.slice(at, len) };
            out.iter_mut().zip(&perm[at..at + len]).for_each(|(o, &e)| *o = values[e as usize]);
        });
    }
}

/// Which class of input rows (or columns) kernel row `r` reaches: `row + pad - r` divisible by the stride.
fn parity(r: usize, pad: u32, stride: u32) -> usize {
    (r as i64 - i64::from(pad)).rem_euclid(i64::from(stride)) as usize
}

fn accumulate(starts: &mut [u32]) {
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
}
