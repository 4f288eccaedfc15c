//! Weights as the dense kernel wants them, `[outputs][channels][taps]`, and the taps of the data gradient.
//!
//! For the forward pass that is the dense `[K][C][R][S]`: the flat store itself where nothing is pruned. The data gradient's
//! outputs are input channels and its channels are output channels; its pixels fall into stride * stride classes, each
//! with the taps that reach it: `[class][C][K][taps of the class]`.

use crate::shape::ConvGeom;
use std::ops::Range;

/// Taps of the input pixels `stride * i + row parity`, `stride * j + column parity`.
#[derive(Clone, Debug)]
pub(crate) struct TapClass {
    /// Row and column of the output gradient that tap t meets in row and column 0 of the class: negative means above or
    /// left of it. In summing order: ascending kernel row, then kernel column.
    pub(crate) taps: Vec<[i64; 2]>,
    /// Its weights in the packed array.
    pub(crate) weights: Range<usize>,
}

/// Where weights go.
pub(crate) struct Packing {
    k: usize,
    c: usize,
    taps: usize,
    classes: Vec<TapClass>,
    /// Of kernel tap `r * S + s`.
    place: Vec<Place>,
}

/// A kernel tap in the transposed array.
#[derive(Clone, Copy)]
struct Place {
    /// First weight of its class.
    begin: usize,
    /// Taps of its class.
    taps: usize,
    /// Its place among them.
    tap: usize,
}

impl Packing {
    /// For a geometry with all sizes above 0.
    pub(crate) fn new(g: &ConvGeom) -> Self {
        let [k, c, st] = [g.k, g.c, g.stride].map(|v| v as usize);
        let (stride, pad) = (i64::from(g.stride), i64::from(g.pad));
        let mut classes = vec![TapClass { taps: vec![], weights: 0..0 }; st * st];
        let mut class_of = vec![];
        for (r, s) in (0..i64::from(g.r)).flat_map(|r| (0..i64::from(g.s)).map(move |s| (r, s))) {
            // Row h of the input and tap r meet where h + pad - r is a multiple of the stride.
            let [y, x] = [r, s].map(|tap| (tap - pad).rem_euclid(stride));
            let i = (y * stride + x) as usize;
            class_of.push((i, classes[i].taps.len()));
            classes[i].taps.push([(y + pad - r) / stride, (x + pad - s) / stride]);
        }
        let mut at = 0;
        for class in &mut classes {
            class.weights = at..at + k * c * class.taps.len();
            at = class.weights.end;
        }
        let place =
            |(i, tap): (usize, usize)| Place { begin: classes[i].weights.start, taps: classes[i].taps.len(), tap };
        let place: Vec<Place> = class_of.into_iter().map(place).collect();
        Packing { k, c, taps: place.len(), classes, place }
    }

    /// Classes of the data gradient, `stride * stride` of them, row parity first.
    pub(crate) fn classes(&self) -> &[TapClass] {
        &self.classes
    }

    /// Floats of either packed array: all weights of the dense layer.
    pub(crate) fn len(&self) -> usize {
        self.k * self.c * self.taps
    }

    /// Writes the values of output channels `ks` to their places in `[K][C][R][S]`. Places of pruned weights are left
    /// alone: zero them once.
    ///
    /// SAFETY: `out` has [`Packing::len`] floats, of which no other task uses those of `ks`.
    pub(crate) unsafe fn forward(&self, values: &[f32], kept: Option<&[u32]>, ks: Range<usize>, out: *mut f32) {
        self.each(values, kept, ks, |[k, c, tap], v| {
            // SAFETY: as above.
            unsafe { *out.add((k * self.c + c) * self.taps + tap) = v }
        });
    }

    /// The same to `[class][C][K][taps]`.
    ///
    /// SAFETY: as [`Packing::forward`].
    pub(crate) unsafe fn transposed(&self, values: &[f32], kept: Option<&[u32]>, ks: Range<usize>, out: *mut f32) {
        self.each(values, kept, ks, |[k, c, tap], v| {
            let Place { begin, taps, tap } = self.place[tap];
            // SAFETY: as above.
            unsafe { *out.add(begin + (c * self.k + k) * taps + tap) = v }
        });
    }

    /// `f([k, c, tap], value)` for all stored weights of output channels `ks`; `kept` ascends.
    #[inline(always)]
    fn each(&self, values: &[f32], kept: Option<&[u32]>, ks: Range<usize>, mut f: impl FnMut([usize; 3], f32)) {
        let row = self.c * self.taps;
        assert!(ks.end <= self.k && values.len() == kept.map_or(self.len(), |p| p.len()), "values of another layer");
        let Some(kept) = kept else {
            for k in ks {
                for (c, values) in values[k * row..(k + 1) * row].chunks_exact(self.taps).enumerate() {
                    values.iter().enumerate().for_each(|(tap, v)| f([k, c, tap], *v));
                }
            }
            return;
        };
        // Positions ascend, so that the channel is found without a division.
        let mut e = kept.partition_point(|&p| (p as usize) < ks.start * row);
        let mut end = ks.start * row;
        for k in ks {
            for c in 0..self.c {
                let begin = end;
                end += self.taps;
                while let Some(&p) = kept.get(e).filter(|&&p| (p as usize) < end) {
                    f([k, c, p as usize - begin], values[e]);
                    e += 1;
                }
            }
        }
    }
}
