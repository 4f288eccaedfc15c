//! Residual join with ReLU, average pooling, and the SGD step.

use super::layout::{LANES, View, blocks};
use super::simd::{Isa, V16, entry_points, put};
use super::workers::{Shared, Workers};
use crate::backend::{SgdStep, Write};

/// Runs `f(nb, channel)` for every plane of `v`.
fn planes(workers: &Workers, v: View, n: usize, f: impl Fn(usize, usize) + Sync) {
    let c = v.channels();
    workers.run(blocks(n) * c, blocks(n) * c * v.pixels(), |_, task| f(task / c, task % c));
}

/// `y = relu?(a + b?)`.
pub(super) fn join_forward(isa: Isa, workers: &Workers, a: View, b: Option<View>, relu: bool, y: View, n: usize) {
    // SAFETY: a task writes its plane of y; `isa` is available.
    planes(workers, y, n, |nb, ch| unsafe { plane_join(isa, a, b, relu, y, nb, ch) });
}

entry_points!(plane_join = join(a: View, b: Option<View>, relu: bool, y: View, nb: usize, ch: usize));

#[inline(always)]
unsafe fn join<V: V16>(a: View, b: Option<View>, relu: bool, y: View, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        for row in 0..y.rows() {
            let a = a.plane_at(nb, ch).add(row * a.row);
            let b = b.map(|b| b.plane_at(nb, ch).add(row * b.row));
            let out = y.plane_at(nb, ch).add(row * y.row);
            for i in (0..y.cols() * LANES).step_by(LANES) {
                let mut v = V::load(a.add(i));
                if let Some(b) = b {
                    v = v.add(V::load(b.add(i)));
                }
                if relu {
                    v = v.relu();
                }
                v.store(out.add(i));
            }
        }
    }
}

/// A destination and its rule.
pub(super) type Out = (View, Write);

/// `da = or += dz`, `db = or += dz`; one tensor may be both.
#[allow(clippy::too_many_arguments)]
pub(super) fn join_backward(
    isa: Isa,
    workers: &Workers,
    y: View,
    relu: bool,
    dy: View,
    da: Out,
    db: Option<Out>,
    n: usize,
) {
    // SAFETY: a task writes its plane of da and db; `isa` is available.
    planes(workers, dy, n, |nb, ch| unsafe { plane_join_back(isa, y, relu, dy, da, db, nb, ch) });
}

entry_points!(plane_join_back =
    join_back(y: View, relu: bool, dy: View, da: Out, db: Option<Out>, nb: usize, ch: usize));

#[inline(always)]
unsafe fn join_back<V: V16>(y: View, relu: bool, dy: View, da: Out, db: Option<Out>, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        for row in 0..dy.rows() {
            let y = y.plane_at(nb, ch).add(row * y.row);
            let dy_row = dy.plane_at(nb, ch).add(row * dy.row);
            let at = |(v, write): Out| (v.plane_at(nb, ch).add(row * v.row), write);
            let (da, db) = (at(da), db.map(at));
            for i in (0..dy.cols() * LANES).step_by(LANES) {
                let mut dz = V::load(dy_row.add(i));
                if relu {
                    dz = dz.where_positive(V::load(y.add(i)));
                }
                put(dz, da.0.add(i), da.1 == Write::Accumulate);
                if let Some((p, write)) = db {
                    put(dz, p.add(i), write == Write::Accumulate); // after da's store: both may be one tensor
                }
            }
        }
    }
}

/// `y = mean of x over H, W`.
pub(super) fn pool_forward(isa: Isa, workers: &Workers, x: View, y: View, n: usize) {
    // SAFETY: a task writes its pixel of y; `isa` is available.
    planes(workers, x, n, |nb, ch| unsafe { plane_pool(isa, x, y, nb, ch) });
}

entry_points!(plane_pool = pool(x: View, y: View, nb: usize, ch: usize));

#[inline(always)]
unsafe fn pool<V: V16>(x: View, y: View, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        let mut sum = V::splat(0.0);
        for row in 0..x.rows() {
            let p = x.plane_at(nb, ch).add(row * x.row);
            let mut line = V::splat(0.0);
            for col in 0..x.cols() {
                line = line.add(V::load(p.add(col * LANES)));
            }
            sum = sum.add(line);
        }
        sum.mul(V::splat(1.0 / x.pixels() as f32)).store(y.plane_at(nb, ch));
    }
}

/// `dx = or += dy / (H*W)`.
pub(super) fn pool_backward(isa: Isa, workers: &Workers, dy: View, dx: Out, n: usize) {
    // SAFETY: a task writes its plane of dx; `isa` is available.
    planes(workers, dx.0, n, |nb, ch| unsafe { plane_pool_back(isa, dy, dx, nb, ch) });
}

entry_points!(plane_pool_back = pool_back(dy: View, dx: Out, nb: usize, ch: usize));

#[inline(always)]
unsafe fn pool_back<V: V16>(dy: View, dx: Out, nb: usize, ch: usize) {
    let (dx, write) = dx;
    // SAFETY: inside the planes.
    unsafe {
        let share = V::load(dy.plane_at(nb, ch)).mul(V::splat(1.0 / dx.pixels() as f32));
        for row in 0..dx.rows() {
            let p = dx.plane_at(nb, ch).add(row * dx.row);
            for i in (0..dx.cols() * LANES).step_by(LANES) {
                put(share, p.add(i), write == Write::Accumulate);
            }
        }
    }
}

/// One step over all parameters; every operation rounds by itself (no fused multiply-add), as on every f32 backend.
pub(super) fn sgd(workers: &Workers, step: SgdStep, values: &mut [f32], grads: &[f32], momentum: &mut [f32]) {
    const CHUNK: usize = 1 << 14;
    let (lr, mu, wd) = (step.lr as f32, step.momentum as f32, step.weight_decay as f32);
    let n = values.len();
    let (values, momentum) = (Shared::new(values), Shared::new(momentum));
    workers.run(n.div_ceil(CHUNK), n / 2, |_, task| {
        let at = task * CHUNK;
        let len = CHUNK.min(n - at);
        // SAFETY: chunks are disjoint.
        let (values, momentum) = unsafe { (values.slice(at, len), momentum.slice(at, len)) };
        for ((v, m), g) in values.iter_mut().zip(momentum).zip(&grads[at..at + len]) {
            let g = *g + wd * *v;
            *m = mu * *m + g;
            let d = if step.nesterov { g + mu * *m } else { *m };
            *v -= lr * d;
        }
    });
}
