//! Non-zeros of a convolution as the kernels walk them, built once: (offset into the padded image block, value) in the
//! order output channel, input-channel block, then input channel, kernel row, kernel column.
//!
//! Forward and weight gradient read values and write gradients in the flat store's own order. The data gradient is the
//! same kernel over the transposed structure, with a gathered copy of the values.

use super::layout::{LANES, View};
use super::workers::{Shared, Workers};
use crate::backend::{ConvSpec, Plane, Spec};
use crate::error::{Error, Result};
use crate::shape::ConvGeom;
use std::ops::Range;
use std::sync::Arc;

/// Input that one register tile walks before the next channel block: it must stay in L1 (32 KB) beside the entries.
const L1_TILE_BYTES: usize = 24 << 10;
/// Entries that a segment should have at least, to pay for its accumulator traffic and its mispredicted end.
const SEGMENT_ENTRIES: usize = 16;

/// Entry lists: segment `o * blocks + b` holds the entries of output `o` whose input channel is in block `b`.
pub(super) struct Lists {
    /// Input-channel blocks.
    pub(super) blocks: usize,
    /// First entry of each segment, and the end.
    pub(super) starts: Vec<u32>,
    /// Offset of each entry in floats.
    pub(super) offs: Vec<u32>,
    /// Halo of the tensor that `offs` are for.
    halo: u32,
}

/// Input pixels `stride * i + row`, `stride * j + col` of a data gradient: they see the same kernel taps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    /// First row and first column.
    pub(super) at: [usize; 2],
    /// Rows and columns of the class.
    pub(super) size: [usize; 2],
}

/// Which tensor a kernel reads at offsets, halo included.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Forward and weight gradient.
    Input,
    /// Data gradient.
    OutputGradient,
}

/// A convolution's structure.
pub(super) struct ConvPlan {
    pub(super) geom: ConvGeom,
    /// The weight's part of the flat stores.
    pub(super) weight: Range<usize>,
    /// The bias' part of the flat stores.
    pub(super) bias: Option<Range<usize>>,
    kept: Option<Arc<[u32]>>,
    /// For forward (outputs K) and weight gradient.
    pub(super) forward: Lists,
    /// For the data gradient; outputs are `class * C + c`.
    pub(super) transposed: Lists,
    /// Pixel classes of the data gradient, stride * stride of them.
    pub(super) classes: Vec<Class>,
    /// Entry of the weight for each transposed entry.
    perm: Vec<u32>,
    /// Values in transposed order, as of the last refresh.
    pub(super) values_t: Vec<f32>,
    /// Whether `values_t` is older than the values.
    pub(super) stale: bool,
}

impl ConvPlan {
    /// Builds the lists for the tensors of `spec` that fit the geometry.
    pub(super) fn new(spec: &Spec, conv: &ConvSpec) -> Result<Self> {
        let g = conv.geom;
        let fault = |what: &str| Error::Failed(format!("cpu backend: convolution {g:?}: {what}"));
        if g.stride == 0 || g.h + 2 * g.pad < g.r || g.w + 2 * g.pad < g.s || g.weights() == 0 {
            return Err(fault("kernel larger than the padded image, or a zero size"));
        }
        let weight = spec.params.get(conv.weight.0 as usize).ok_or_else(|| fault("no such weight"))?;
        let entries = weight.kept.as_ref().map_or(g.weights(), |k| k.len());
        if weight.range.len() != entries || weight.shape.iter().product::<usize>() != g.weights() {
            return Err(fault("weight of another shape or length"));
        }
        if let Some(k) = &weight.kept
            && (!k.is_sorted_by(|a, b| a < b) || k.last().is_some_and(|&p| p as usize >= g.weights()))
        {
            return Err(fault("kept positions not ascending or out of range"));
        }
        let bias = match conv.bias {
            None => None,
            Some(id) => {
                let b = spec.params.get(id.0 as usize).ok_or_else(|| fault("no such bias"))?;
                if b.range.len() != g.k as usize {
                    return Err(fault("bias of another length than K, or masked"));
                }
                Some(b.range.clone())
            }
        };

        let mut plan = ConvPlan {
            geom: g,
            weight: weight.range.clone(),
            bias,
            kept: weight.kept.clone(),
            forward: Lists { blocks: 1, starts: vec![], offs: vec![0; entries], halo: 0 },
            transposed: Lists { blocks: 1, starts: vec![], offs: vec![0; entries], halo: 0 },
            classes: classes(&g),
            perm: vec![0; entries],
            values_t: vec![0.0; entries],
            stale: true,
        };
        plan.build_forward(entries);
        plan.build_transposed(entries);
        // A tensor of another halo at run time only costs a rebuild of the offsets.
        let fits = |c: u32, h: u32, w: u32, halo: u32| {
            let plane = |p: &Plane| (p.c, p.h, p.w) == (c, h, w) && p.halo >= halo;
            spec.tensors.iter().map(|t| t.plane).find(plane).map_or(halo, |p| p.halo)
        };
        plan.fit_input(fits(g.c, g.h, g.w, g.input_halo()));
        plan.fit_output(fits(g.k, g.p(), g.q(), g.output_halo()));
        Ok(plan)
    }

    /// Stored weights.
    pub(super) fn entries(&self) -> usize {
        self.perm.len()
    }

    /// Bytes of every index array.
    pub(super) fn index_bytes(&self) -> u64 {
        let words = |l: &Lists| l.starts.len() + l.offs.len();
        let kept = self.kept.as_ref().map_or(0, |k| k.len());
        4 * (words(&self.forward) + words(&self.transposed) + self.perm.len() + kept) as u64
            + size_of_val(self.classes.as_slice()) as u64
    }

    /// Position of entry `e` as k, c, r, s.
    fn position(&self, e: usize) -> [usize; 4] {
        let g = &self.geom;
        let p = self.kept.as_ref().map_or(e, |k| k[e] as usize);
        let (s, r, c) = (g.s as usize, g.r as usize, g.c as usize);
        [p / (s * r * c), p / (s * r) % c, p / s % r, p % s]
    }

    fn build_forward(&mut self, entries: usize) {
        let g = self.geom;
        let wide = |tile: u32| (tile - 1) * g.stride + g.s;
        let per = channel_block(g.c as usize, (g.r * wide(7)) as usize, entries / g.k as usize);
        self.forward.blocks = (g.c as usize).div_ceil(per);
        let mut starts = vec![0u32; g.k as usize * self.forward.blocks + 1];
        for e in 0..entries {
            let [k, c, ..] = self.position(e);
            starts[k * self.forward.blocks + c / per + 1] += 1;
        }
        accumulate(&mut starts);
        self.forward.starts = starts;
    }

    fn build_transposed(&mut self, entries: usize) {
        let g = self.geom;
        let outs = self.classes.len() * g.c as usize;
        let taps = |kernel: u32| kernel.div_ceil(g.stride);
        let per = channel_block(g.k as usize, (taps(g.r) * (6 + taps(g.s))) as usize, entries / outs);
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

    /// Makes forward offsets those of an input with this halo; allocates nothing.
    pub(super) fn fit_input(&mut self, halo: u32) {
        let g = self.geom;
        let (row, chan) = strides(g.h, g.w, halo);
        let shift = (halo - g.pad) as usize;
        for e in 0..self.entries() {
            let [_, c, r, s] = self.position(e);
            self.forward.offs[e] = (c * chan + (r + shift) * row + (s + shift) * LANES) as u32;
        }
        self.forward.halo = halo;
    }

    /// Makes transposed offsets those of an output gradient with this halo; allocates nothing.
    pub(super) fn fit_output(&mut self, halo: u32) {
        let g = self.geom;
        let (row, chan) = strides(g.p(), g.q(), halo);
        // Input pixel `stride * i + a` and tap r meet in output pixel `i + tap`.
        let tap = |r: usize| {
            let a = parity(r, g.pad, g.stride) as i64;
            (a + i64::from(g.pad) - r as i64) / i64::from(g.stride) + i64::from(halo)
        };
        for t in 0..self.entries() {
            let [k, _, r, s] = self.position(self.perm[t] as usize);
            // Negative only in a class without pixels (image smaller than the stride), which no kernel runs.
            let at = (k * chan) as i64 + tap(r).max(0) * row as i64 + tap(s).max(0) * LANES as i64;
            self.transposed.offs[t] = at as u32;
        }
        self.transposed.halo = halo;
    }

    /// Checks the tensors (or gradients) of a call and refits offsets where a halo changed.
    pub(super) fn fit(&mut self, x: &View, y: &View, reads: Reads) {
        let g = self.geom;
        assert_eq!((x.plane.c, x.plane.h, x.plane.w), (g.c, g.h, g.w), "input tensor of another shape than {g:?}");
        assert_eq!((y.plane.c, y.plane.h, y.plane.w), (g.k, g.p(), g.q()), "output tensor of another shape than {g:?}");
        let (halo, wanted, have) = match reads {
            Reads::Input => (x.plane.halo, g.input_halo(), self.forward.halo),
            Reads::OutputGradient => (y.plane.halo, g.output_halo(), self.transposed.halo),
        };
        assert!(halo >= wanted, "halo {halo}, wanted at least {wanted} for {g:?}");
        match reads {
            _ if halo == have => {}
            Reads::Input => self.fit_input(halo),
            Reads::OutputGradient => self.fit_output(halo),
        }
    }

    /// Gathers the transposed values if they changed.
    pub(super) fn refresh(&mut self, workers: &Workers, values: &[f32]) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        const CHUNK: usize = 1 << 14;
        let (n, values, perm) = (self.entries(), &values[self.weight.clone()], &self.perm);
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

/// Input channels a block: as many as stay in L1 while a tile reads `pixels` pixels of each, more where segments would
/// become too short, and blocks of equal size.
fn channel_block(channels: usize, pixels: usize, entries_per_output: usize) -> usize {
    let cache = L1_TILE_BYTES / (pixels * LANES * 4);
    let long = (SEGMENT_ENTRIES * channels).div_ceil(entries_per_output.max(1));
    let per = cache.max(long).clamp(1, channels);
    channels.div_ceil(channels.div_ceil(per))
}

fn strides(h: u32, w: u32, halo: u32) -> (usize, usize) {
    let row = (w + 2 * halo) as usize * LANES;
    (row, row * (h + 2 * halo) as usize)
}

/// Which class of input rows (or columns) kernel row `r` reaches: `row + pad - r` divisible by the stride.
fn parity(r: usize, pad: u32, stride: u32) -> usize {
    (r as i64 - i64::from(pad)).rem_euclid(i64::from(stride)) as usize
}

fn classes(g: &ConvGeom) -> Vec<Class> {
    let st = g.stride as usize;
    let size = |extent: u32, at: usize| (extent as usize).saturating_sub(at).div_ceil(st);
    (0..st * st).map(|i| [i / st, i % st]).map(|at| Class { at, size: [size(g.h, at[0]), size(g.w, at[1])] }).collect()
}

fn accumulate(starts: &mut [u32]) {
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
}
