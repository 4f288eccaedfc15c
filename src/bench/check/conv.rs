//! Single outputs and gradients of a convolution, each a sum over the kept weights or pixels that it depends on.

use super::operand::{Gradient, Num, Value};
use crate::backend::Real;
use crate::shape::ConvGeom;
use std::ops::Range;

/// A convolution's kept weights.
pub(super) struct Taps<'a, R> {
    pub(super) geom: ConvGeom,
    /// Kept positions in [K,C,R,S], ascending; `None`: all.
    pub(super) kept: Option<&'a [u32]>,
    /// Their values.
    pub(super) values: &'a [R],
    pub(super) bias: Option<&'a [R]>,
}

impl<R: Real> Taps<'_, R> {
    /// Kernel sides R and S.
    fn window(&self) -> usize {
        (self.geom.r * self.geom.s) as usize
    }

    /// Stored weights at positions `from..to`.
    fn stored(&self, from: usize, to: usize) -> Range<usize> {
        match self.kept {
            Some(kept) => kept.partition_point(|&p| (p as usize) < from)..kept.partition_point(|&p| (p as usize) < to),
            None => from..to,
        }
    }

    /// Stored weight `i` as [k, c, r, s].
    fn coordinates(&self, i: usize) -> [usize; 4] {
        let at = self.kept.map_or(i, |kept| kept[i] as usize);
        let (c, window, s) = (self.geom.c as usize, self.window(), self.geom.s as usize);
        [at / (c * window), at / window % c, at / s % self.geom.r as usize, at % s]
    }

    /// Input row or column that output `o` meets at kernel offset `r`, if it is no padding.
    fn input(&self, o: usize, r: usize, len: u32) -> Option<usize> {
        let at = (o * self.geom.stride as usize + r).checked_sub(self.geom.pad as usize)?;
        (at < len as usize).then_some(at)
    }

    /// Output row or column that input `i` meets at kernel offset `r`.
    fn output(&self, i: usize, r: usize, len: u32) -> Option<usize> {
        let (at, stride) = ((i + self.geom.pad as usize).checked_sub(r)?, self.geom.stride as usize);
        (at.is_multiple_of(stride) && at / stride < len as usize).then(|| at / stride)
    }

    /// Output [image, k, row, column] and the number of its terms.
    pub(super) fn y(&self, x: &Value<R>, [n, k, p, q]: [usize; 4]) -> (Num, usize) {
        let filter = self.geom.c as usize * self.window();
        let range = self.stored(k * filter, (k + 1) * filter);
        let mut sum = self.bias.map_or(Num::default(), |b| Num::exact(b[k].to_f64()));
        for i in range.clone() {
            let [_, c, r, s] = self.coordinates(i);
            if let (Some(h), Some(w)) = (self.input(p, r, self.geom.h), self.input(q, s, self.geom.w)) {
                sum = sum.plus(x.at([n, c, h, w]).scaled(self.values[i].to_f64()));
            }
        }
        (sum, range.len())
    }

    /// Data gradient at [image, c, row, column] and the number of its terms.
    pub(super) fn dx(&self, dy: &Gradient<R>, [n, c, h, w]: [usize; 4]) -> (Num, usize) {
        let (channels, window) = (self.geom.c as usize, self.window());
        let (mut sum, mut terms) = (Num::default(), 0);
        for k in 0..self.geom.k as usize {
            let from = (k * channels + c) * window;
            for i in self.stored(from, from + window) {
                let [_, _, r, s] = self.coordinates(i);
                if let (Some(p), Some(q)) = (self.output(h, r, self.geom.p()), self.output(w, s, self.geom.q())) {
                    sum = sum.plus(dy.at([n, k, p, q]).scaled(self.values[i].to_f64()));
                    terms += 1;
                }
            }
        }
        (sum, terms)
    }

    /// Gradient of stored weight `i`.
    pub(super) fn dw(&self, x: &Value<R>, dy: &Gradient<R>, i: usize, images: usize) -> Num {
        let [k, c, r, s] = self.coordinates(i);
        let mut sum = Num::default();
        for n in 0..images {
            for p in 0..self.geom.p() as usize {
                let Some(h) = self.input(p, r, self.geom.h) else { continue };
                for q in 0..self.geom.q() as usize {
                    if let Some(w) = self.input(q, s, self.geom.w) {
                        sum = sum.plus(x.at([n, c, h, w]).times(dy.at([n, k, p, q])));
                    }
                }
            }
        }
        sum
    }

    /// Gradient of bias `k`.
    pub(super) fn db(&self, dy: &Gradient<R>, k: usize, images: usize) -> Num {
        let mut sum = Num::default();
        for n in 0..images {
            for p in 0..self.geom.p() as usize {
                (0..self.geom.q() as usize).for_each(|q| sum = sum.plus(dy.at([n, k, p, q])));
            }
        }
        sum
    }
}
