//! Weights as the dense kernel wants them, `[outputs][channels][taps]`, and the taps of the data gradient.
//!
//! For the forward pass that is the dense `[K][C][R][S]`: the flat store itself where nothing is pruned. The data gradient's
//! outputs are input channels and its channels are output channels; its pixels fall into stride * stride classes, each
//! with the taps that reach it: `[class][C][K][taps of the class]`.

use crate::shape::ConvGeom;
use std::ops::Range;

/// Input pixels `stride * i + at`, which see the same taps.
#[derive(Clone, Debug)]
pub(in crate::backend::cpu) struct TapClass {
    /// First row and first column.
    pub(in crate::backend::cpu) at: [usize; 2],
    /// Rows and columns of the class; may be 0.
    pub(in crate::backend::cpu) size: [usize; 2],
    /// Row and column of the output gradient that tap t meets in row and column 0 of the class: negative means above or
    /// left of it. In summing order: ascending kernel row, then kernel column.
    pub(in crate::backend::cpu) taps: Vec<[i64; 2]>,
    /// Its weights in the packed array.
    pub(in crate::backend::cpu) weights: Range<usize>,
}

/// Where weights go.
pub(in crate::backend::cpu) struct Packing {
    k: usize,
    c: usize,
    taps: usize,
    classes: Vec<TapClass>,
    /// Class of kernel tap `r * S + s`, and the place among its taps.
    place: Vec<(usize, usize)>,
}

impl Packing {
    /// For a geometry with all sizes above 0.
    pub(in crate::backend::cpu) fn new(g: &ConvGeom) -> Self {
        let [k, c, st] = [g.k, g.c, g.stride].map(|v| v as usize);
        let (stride, pad) = (i64::from(g.stride), i64::from(g.pad));
        let size = |extent: u32, at: usize| (extent as usize).saturating_sub(at).div_ceil(st);
        let ats = (0..st * st).map(|i| [i / st, i % st]);
        let class =
            |at: [usize; 2]| TapClass { at, size: [size(g.h, at[0]), size(g.w, at[1])], taps: vec![], weights: 0..0 };
        let mut classes: Vec<TapClass> = ats.map(class).collect();
        let mut place = vec![];
        for (r, s) in (0..i64::from(g.r)).flat_map(|r| (0..i64::from(g.s)).map(move |s| (r, s))) {
            // Row h of the input and tap r meet where h + pad - r is a multiple of the stride.
            let [y, x] = [r, s].map(|tap| (tap - pad).rem_euclid(stride));
            let i = (y * stride + x) as usize;
            place.push((i, classes[i].taps.len()));
            classes[i].taps.push([(y + pad - r) / stride, (x + pad - s) / stride]);
        }
        let mut at = 0;
        for class in &mut classes {
            class.weights = at..at + k * c * class.taps.len();
            at = class.weights.end;
        }
        Packing { k, c, taps: place.len(), classes, place }
    }

    /// Classes of the data gradient, `stride * stride` of them, row parity first.
    pub(in crate::backend::cpu) fn classes(&self) -> &[TapClass] {
        &self.classes
    }

    /// Floats of either packed array: all weights of the dense layer.
    pub(in crate::backend::cpu) fn len(&self) -> usize {
        self.k * self.c * self.taps
    }

    /// Writes the values of output channels `ks` to their places in `[K][C][R][S]`. Places of pruned weights are left
    /// alone: zero them once.
    ///
    /// SAFETY: `out` has [`Packing::len`] floats, of which no other task uses those of `ks`.
    pub(in crate::backend::cpu) unsafe fn forward(
        &self,
        values: &[f32],
        kept: Option<&[u32]>,
        ks: Range<usize>,
        out: *mut f32,
    ) {
        self.each(values, kept, ks, |k, rest, v| {
            // SAFETY: as above.
            unsafe { *out.add(k * self.c * self.taps + rest) = v }
        });
    }

    /// The same to `[class][C][K][taps]`.
    ///
    /// SAFETY: as [`Packing::forward`].
    pub(in crate::backend::cpu) unsafe fn transposed(
        &self,
        values: &[f32],
        kept: Option<&[u32]>,
        ks: Range<usize>,
        out: *mut f32,
    ) {
        self.each(values, kept, ks, |k, rest, v| {
            let (class, tap) = self.place[rest % self.taps];
            let class = &self.classes[class];
            let at = class.weights.start + (rest / self.taps * self.k + k) * class.taps.len() + tap;
            // SAFETY: as above.
            unsafe { *out.add(at) = v }
        });
    }

    /// `f(k, position within k, value)` for all stored weights of output channels `ks`; `kept` ascends.
    fn each(&self, values: &[f32], kept: Option<&[u32]>, ks: Range<usize>, mut f: impl FnMut(usize, usize, f32)) {
        let row = self.c * self.taps;
        assert!(ks.end <= self.k && values.len() == kept.map_or(self.len(), |p| p.len()), "values of another layer");
        let Some(kept) = kept else {
            for k in ks {
                values[k * row..(k + 1) * row].iter().enumerate().for_each(|(rest, v)| f(k, rest, *v));
            }
            return;
        };
        let mut e = kept.partition_point(|&p| (p as usize) < ks.start * row);
        for k in ks {
            while let Some(&p) = kept.get(e).filter(|&&p| (p as usize) < (k + 1) * row) {
                f(k, p as usize - k * row, values[e]);
                e += 1;
            }
        }
    }
}
