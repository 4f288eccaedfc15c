//! Structure of a convolution as the kernels walk it, built once: its non-zeros as (offset, value) in the order output
//! channel, input-channel block, input channel, kernel row, kernel column; and how its planes are cut into patches.
//!
//! Forward and weight gradient read values and write gradients in the flat store's own order. The data gradient is the
//! same kernel over the transposed structure, with a gathered copy of the values.

use super::layout::LANES;
use super::plan::LayerPlan;
use super::source::Window;
use super::workers::{Shared, Workers};
use crate::backend::{ConvSpec, Spec};
use crate::error::{Error, Result};
use crate::shape::ConvGeom;
use std::ops::Range;
use std::sync::Arc;

/// Distances of channels and rows in floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strides {
    pub(super) chan: usize,
    pub(super) row: usize,
}

impl Strides {
    /// Of a patch of so many rows and columns. An odd number of pixels a channel keeps channels out of each other's cache
    /// sets.
    fn patch(rows: usize, cols: usize) -> Self {
        Strides { chan: (rows * cols | 1) * LANES, row: cols * LANES }
    }
}

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

/// Pixels of a plane: rows and columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl Rect {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() || self.cols.is_empty()
    }
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
    /// How it runs; input and output planes are cut alike.
    pub(super) how: LayerPlan,
    /// Strides of the largest input patch (with its halo) and of the largest patch of the output's gradient.
    pub(super) x_patch: Strides,
    pub(super) dy_patch: Strides,
}

impl ConvPlan {
    /// Builds the structure as `how` says, or by default.
    pub(super) fn new(spec: &Spec, conv: &ConvSpec, how: Option<LayerPlan>) -> Result<Self> {
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
        let lists = || Lists { blocks: 1, starts: vec![], offs: vec![0; entries], strides: Strides::default() };
        let st = g.stride as usize;
        let mut plan = ConvPlan {
            geom: g,
            weight: weight.range.clone(),
            bias,
            kept: weight.kept.clone(),
            forward: lists(),
            transposed: lists(),
            classes: (0..st * st).map(|i| Class { at: [i / st, i % st] }).collect(),
            perm: vec![0; entries],
            values_t: vec![0.0; entries],
            stale: true,
            how: how.unwrap_or_else(|| LayerPlan::default_for(&g, entries)),
            x_patch: Strides::default(),
            dy_patch: Strides::default(),
        };
        plan.size_patches();
        plan.build_forward(entries);
        plan.build_transposed(entries);
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
        let per = self.how.channels[0];
        self.forward.blocks = (g.c as usize).div_ceil(per);
        let mut starts = vec![0u32; g.k as usize * self.forward.blocks + 1];
        for e in 0..entries {
            let [k, c, ..] = self.position(e);
            starts[k * self.forward.blocks + c / per + 1] += 1;
        }
        accumulate(&mut starts);
        self.forward.starts = starts;
        self.read_input(self.x_patch);
    }

    fn build_transposed(&mut self, entries: usize) {
        let g = self.geom;
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
        self.read_gradient(self.dy_patch);
    }

    /// Makes forward offsets those of an input with these strides; allocates nothing.
    pub(super) fn read_input(&mut self, at: Strides) {
        if self.forward.strides != at {
            for e in 0..self.entries() {
                let [_, c, r, s] = self.position(e);
                self.forward.offs[e] = (c * at.chan + r * at.row + s * LANES) as u32;
            }
            self.forward.strides = at;
        }
    }

    /// Makes transposed offsets those of an output gradient with these strides; allocates nothing.
    pub(super) fn read_gradient(&mut self, at: Strides) {
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
        for t in 0..self.entries() {
            let [k, _, r, s] = self.position(self.perm[t] as usize);
            self.transposed.offs[t] = (k * at.chan + tap(r) * at.row + tap(s) * LANES) as u32;
        }
        self.transposed.strides = at;
    }

    /// How far before output pixel `i` the data gradient of input pixel `stride * i + a` reads, over all classes a.
    pub(super) fn low_tap(&self) -> isize {
        let g = &self.geom;
        let side = |kernel: u32| (kernel as isize - 1 - g.pad as isize).max(0).div_euclid(g.stride as isize);
        side(g.r).max(side(g.s))
    }

    fn size_patches(&mut self) {
        let items = 0..self.items();
        let most = |windows: &dyn Fn(usize) -> Window| {
            let sizes = items.clone().map(|i| windows(i)).map(|w| (w.rows, w.cols));
            sizes.fold((0, 0), |m, s| (m.0.max(s.0), m.1.max(s.1)))
        };
        let (rows, cols) = most(&|i| self.input_window(&self.output_rect(i)));
        self.x_patch = Strides::patch(rows, cols);
        let (rows, cols) = most(&|i| self.gradient_window(&self.output_rect(i), &self.input_rect(i)));
        self.dy_patch = Strides::patch(rows, cols);
    }

    /// Patches of a plane.
    pub(super) fn items(&self) -> usize {
        self.how.cut[0] * self.how.cut[1]
    }

    fn rect(&self, item: usize, rows: u32, cols: u32) -> Rect {
        let [parts, across] = self.how.cut;
        let rows = part(rows as usize, parts, item / across);
        Rect { rows, cols: part(cols as usize, across, item % across) }
    }

    /// Output pixels of patch `item`.
    pub(super) fn output_rect(&self, item: usize) -> Rect {
        self.rect(item, self.geom.p(), self.geom.q())
    }

    /// Input pixels of patch `item`.
    pub(super) fn input_rect(&self, item: usize) -> Rect {
        self.rect(item, self.geom.h, self.geom.w)
    }

    /// Input that these outputs read.
    pub(super) fn input_window(&self, out: &Rect) -> Window {
        let g = &self.geom;
        let side = |r: &Range<usize>, kernel: u32| {
            let first = (r.start * g.stride as usize) as isize - g.pad as isize;
            (first, if r.is_empty() { 0 } else { (r.len() - 1) * g.stride as usize + kernel as usize })
        };
        let ((row, rows), (col, cols)) = (side(&out.rows, g.r), side(&out.cols, g.s));
        Window { row, col, rows, cols }
    }

    /// Output gradient that these outputs' weight gradient and these inputs' data gradient read.
    pub(super) fn gradient_window(&self, out: &Rect, input: &Rect) -> Window {
        let g = &self.geom;
        let side = |out: &Range<usize>, input: &Range<usize>| {
            let (mut first, mut end) = (out.start as isize, out.end as isize);
            if !input.is_empty() {
                let st = g.stride as usize;
                first = first.min((input.start / st) as isize - self.low_tap());
                // The highest tap is that of kernel row 0.
                let high = ((st - 1 + g.pad as usize) / st) as isize;
                end = end.max(((input.end - 1) / st) as isize + high + 1);
            }
            (first, (end - first) as usize)
        };
        let ((row, rows), (col, cols)) = (side(&out.rows, &input.rows), side(&out.cols, &input.cols));
        Window { row, col, rows, cols }
    }

    /// Floats of the largest patches.
    pub(super) fn patch_floats(&self) -> [usize; 2] {
        let size = |s: Strides, channels: u32| s.chan * channels as usize;
        [size(self.x_patch, self.geom.c), size(self.dy_patch, self.geom.k)]
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

/// Part `i` of `0..len` cut into `parts`.
pub(super) fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    len * i / parts..len * (i + 1) / parts
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
