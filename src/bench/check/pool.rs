//! Poolings.

use super::operand::{Num, Value};
use super::ops::PLACES;
use super::{Check, held, limit, place, poison};
use crate::backend::{Backend, Grad, GradDst, Input, Plane, PoolId, PoolSpec, Real, TensorId};
use std::ops::Range;

/// Pixels of window `o` along one side.
fn window(p: PoolSpec, o: usize, len: u32) -> Range<usize> {
    let from = o * p.stride as usize;
    let pad = p.pad as usize;
    from.saturating_sub(pad)..(from + p.size as usize).saturating_sub(pad).min(len as usize)
}

/// The pixels of a window in row order.
fn pixels(pool: PoolSpec, plane: Plane, [n, c, p, q]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    let cols = window(pool, q, plane.w);
    window(pool, p, plane.h).flat_map(move |h| cols.clone().map(move |w| [n, c, h, w]))
}

/// A window's maximum: where, and whether rounding could have chosen another.
fn maximum<R: Real>(x: &Value<R>, pool: PoolSpec, window: [usize; 4]) -> ([usize; 4], Num, bool) {
    let (mut best, mut close) = (None::<([usize; 4], Num)>, false);
    for at in pixels(pool, x.t.plane, window) {
        let v = x.at(at);
        match best {
            Some((_, b)) => {
                // Values of a norm are rounded; stored ones and zeros behind a ReLU are what they are.
                let blur = if x.norm.is_some() { limit(v, 0) + limit(b, 0) } else { 0.0 };
                let both_zero = x.relu && v.v + limit(v, 0) <= 0.0 && b.v + limit(b, 0) <= 0.0;
                close |= blur > 0.0 && !both_zero && (v.v - b.v).abs() <= blur;
                if v.v > b.v {
                    best = Some((at, v));
                }
            }
            None => best = Some((at, v)),
        }
    }
    let (at, v) = best.unwrap_or((window, Num::default()));
    (at, v, close)
}

impl<R: Real> Check<R> {
    pub(crate) fn pool_forward<B: Backend<Real = R>>(&mut self, b: &mut B, x: Input, y: TensorId, n: usize) {
        self.operation();
        let value = self.value(b, x, n);
        poison(b, y, n);
        b.pool_forward(x, y, n);
        let y = held(b, y, n);
        self.finite(&y, "pool_forward");
        let Plane { h, w, .. } = value.t.plane;
        for at in self.points(y.plane, n, PLACES) {
            let all = (0..h as usize).flat_map(|r| (0..w as usize).map(move |c| [at[0], at[1], r, c]));
            let sum = all.fold(Num::default(), |sum, i| sum.plus(value.at(i)));
            let pixels = (h * w) as usize;
            self.tally.compare(y.at(at), sum.scaled(1.0 / pixels as f64), pixels, || place("pool_forward", at));
        }
    }

    pub(crate) fn pool_backward<B: Backend<Real = R>>(&mut self, b: &mut B, dy: Grad, dx: GradDst, n: usize) {
        self.operation();
        let (gradient, target) = (self.gradient(b, dy, n), self.target(b, dx, n));
        b.pool_backward(dy, dx, n);
        let Plane { h, w, .. } = b.spec().tensors[dx.t.0 as usize].plane;
        let share = 1.0 / f64::from(h * w);
        let base = |[n, c, _, _]: [usize; 4]| Some((gradient.at([n, c, 0, 0]).scaled(share), 1));
        self.check_target(b, target, n, PLACES, "pool_backward", base);
    }

    pub(crate) fn max_pool_forward<B: Backend<Real = R>>(
        &mut self,
        b: &mut B,
        pool: PoolId,
        x: Input,
        y: TensorId,
        n: usize,
    ) {
        self.operation();
        let (value, spec) = (self.value(b, x, n), b.spec().pools[pool.0 as usize]);
        poison(b, y, n);
        b.max_pool_forward(pool, x, y, n);
        let y = held(b, y, n);
        self.finite(&y, "max_pool_forward");
        for at in self.points(y.plane, n, PLACES) {
            let want = maximum(&value, spec, at).1;
            self.tally.compare(y.at(at), want, 1, || place("max_pool_forward", at));
        }
    }

    pub(crate) fn max_pool_backward<B: Backend<Real = R>>(
        &mut self,
        b: &mut B,
        pool: PoolId,
        x: Input,
        dy: Grad,
        dx: GradDst,
        n: usize,
    ) {
        self.operation();
        let (value, spec) = (self.value(b, x, n), b.spec().pools[pool.0 as usize]);
        let (gradient, target) = (self.gradient(b, dy, n), self.target(b, dx, n));
        b.max_pool_backward(pool, x, dy, dx, n);
        let out = gradient.t.plane;
        // Windows whose maximum is the place; none where it cannot be told.
        let base = |at: [usize; 4]| {
            let (mut sum, mut terms) = (Num::default(), 0);
            for p in 0..out.h as usize {
                let rows = window(spec, p, value.t.plane.h);
                for q in (0..out.w as usize).filter(|_| rows.contains(&at[2])) {
                    if window(spec, q, value.t.plane.w).contains(&at[3]) {
                        let w = [at[0], at[1], p, q];
                        let (best, _, close) = maximum(&value, spec, w);
                        if close {
                            return None;
                        }
                        if best == at {
                            sum = sum.plus(gradient.at(w));
                            terms += 1;
                        }
                    }
                }
            }
            Some((sum, terms))
        };
        self.check_target(b, target, n, PLACES, "max_pool_backward", base);
    }
}
