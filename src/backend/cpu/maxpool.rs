//! Maximum pooling. The winner of a window is found again in the backward pass: it costs one read of what is read anyway,
//! and saves an index a window.

use super::conv::DataGrad;
use super::elementwise::{complete, planes};
use super::layout::{LANES, View};
use super::simd::{Isa, V16, entry_points, put};
use super::source::{Eval, Source, with_grad, with_input};
use super::workers::{Shared, Workers};
use crate::backend::{PoolSpec, Write};
use std::ops::Range;

/// `y = maximum of x over windows`; NaN wins.
pub(super) fn forward(isa: Isa, workers: &Workers, p: PoolSpec, x: Source, y: View, n: usize) {
    // SAFETY: a task writes its plane of y; `isa` is available.
    planes(workers, y, n, |nb, ch| unsafe { plane_max(isa, p, x, y, nb, ch) });
}

/// Pixels of window `i` inside an image of `len`.
fn window(p: &PoolSpec, i: usize, len: usize) -> Range<usize> {
    let first = i * p.stride as usize;
    let pad = p.pad as usize;
    first.saturating_sub(pad)..(first + p.size as usize - pad).min(len)
}

entry_points!(plane_max = max(p: PoolSpec, x: Source, y: View, nb: usize, ch: usize));

#[inline(always)]
unsafe fn max<V: V16>(p: PoolSpec, x: Source, y: View, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        let out = y.plane_at(nb, ch);
        with_input!(V, x, nb, ch, |eval, t, z| {
            for row in 0..y.rows() {
                for col in 0..y.cols() {
                    let (rows, cols) = (window(&p, row, x.t.rows()), window(&p, col, x.t.cols()));
                    let best = largest::<V, _>(eval, t, z, &x.t, rows, cols);
                    best.store(out.add(row * y.row + col * LANES));
                }
            }
        })
    }
}

#[inline(always)]
unsafe fn largest<V: V16, E: Eval<V>>(
    eval: E,
    t: *const f32,
    z: *const f32,
    x: &View,
    rows: Range<usize>,
    cols: Range<usize>,
) -> V {
    // SAFETY: inside the plane.
    unsafe {
        let mut best = V::splat(f32::NEG_INFINITY);
        for i in rows {
            for j in cols.clone() {
                let at = i * x.row + j * LANES;
                best = best.larger(eval.at(t.add(at), z.add(at)));
            }
        }
        best
    }
}

/// `dx = or += dy` at each window's first maximum.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    isa: Isa,
    workers: &Workers,
    p: PoolSpec,
    x: Source,
    dy: Source,
    d: DataGrad,
    partials: &mut [[[f64; 2]; 2]],
    n: usize,
) {
    let partials = Shared::new(partials);
    planes(workers, d.dx, n, |nb, ch| {
        // SAFETY: a task writes its plane of dx and its partial; `isa` is available.
        unsafe {
            plane_max_back(isa, p, x, dy, d.dx, d.write, nb, ch);
            complete(isa, &d, partials, nb, ch, n);
        }
    });
}

entry_points!(plane_max_back =
    max_back(p: PoolSpec, x: Source, dy: Source, dx: View, write: Write, nb: usize, ch: usize));

#[inline(always)]
unsafe fn max_back<V: V16>(p: PoolSpec, x: Source, dy: Source, dx: View, write: Write, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        let out = dx.plane_at(nb, ch);
        if write == Write::Overwrite {
            let zero = V::splat(0.0);
            for i in (0..dx.pixels() * LANES).step_by(LANES) {
                zero.store(out.add(i));
            }
        }
        with_input!(V, x, nb, ch, |eval, t, z| {
            with_grad!(V, dy, nb, ch, |grad, u, v| {
                for row in 0..dy.t.rows() {
                    for col in 0..dy.t.cols() {
                        let (rows, cols) = (window(&p, row, dx.rows()), window(&p, col, dx.cols()));
                        let at = row * dy.t.row + col * LANES;
                        let g: V = grad.at(u.add(at), v.add(at));
                        let best = largest::<V, _>(eval, t, z, &x.t, rows.clone(), cols.clone());
                        let mut taken = V::splat(0.0);
                        for i in rows {
                            for j in cols.clone() {
                                let at = i * dx.row + j * LANES;
                                let v: V = eval.at(t.add(at), z.add(at));
                                let hit = v.hits(best).and_not(taken);
                                taken = taken.or(hit);
                                put(g.masked(hit), out.add(at), true);
                            }
                        }
                    }
                }
            })
        })
    }
}
