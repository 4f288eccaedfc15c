//! Residual join, gradient copies and average pooling, one plane of one block of images a task; and the SGD step.

use super::conv::DataGrad;
use super::epilogue::{Area, From, emit, finish, stats};
use super::layout::{LANES, View, blocks, valid};
use super::simd::{Isa, V16, entry_points, fence, put};
use super::source::{Eval, Source, with_grad, with_input};
use super::workers::{Shared, Workers};
use crate::backend::{SgdStep, Write};

/// Runs `f(nb, channel)` for every plane of `v`.
pub(super) fn planes(workers: &Workers, v: View, n: usize, f: impl Fn(usize, usize) + Sync) {
    let c = v.channels();
    workers.run(blocks(n) * c, blocks(n) * c * v.pixels(), |_, task| f(task / c, task % c));
}

/// All of a plane.
fn area(v: &View, nb: usize, ch: usize, n: usize) -> Area {
    Area { nb, ch, rows: 0..v.rows(), cols: 0..v.cols(), lanes: valid(n, nb) }
}

/// (count, mean, M2) of each (block, channel) of x.
pub(super) fn plane_stats(isa: Isa, workers: &Workers, x: View, out: &mut [[f64; 3]], n: usize) {
    let out = Shared::new(out);
    // SAFETY: a task writes its element; `isa` is available.
    planes(workers, x, n, |nb, ch| unsafe {
        *out.at(nb * x.channels() + ch) = stats(isa, x, area(&x, nb, ch, n), None)
    });
}

/// Completes a plane of a gradient; sums go to `partials[nb * C + ch]`.
pub(super) unsafe fn complete(isa: Isa, d: &DataGrad, partials: Shared<[[f64; 2]; 2]>, nb: usize, ch: usize, n: usize) {
    if !d.finish.is_empty() {
        // SAFETY: as the caller's.
        unsafe {
            *partials.at(nb * d.dx.channels() + ch) = finish(isa, d.finish, d.dx, area(&d.dx, nb, ch, n), From::There)
        };
    }
}

/// `y = relu?(a + b?)`.
pub(super) fn join_forward(isa: Isa, workers: &Workers, a: Source, b: Option<Source>, relu: bool, y: View, n: usize) {
    let join = Join { a, b, relu, y, around: y.is_large(blocks(n)) };
    // SAFETY: a task writes its plane of y; `isa` is available.
    planes(workers, y, n, |nb, ch| unsafe { join.plane(isa, nb, ch) });
}

/// `y = relu?(a + b?)`, written around the caches or not.
pub(super) struct Join<'a> {
    pub(super) a: Source<'a>,
    pub(super) b: Option<Source<'a>>,
    pub(super) relu: bool,
    pub(super) y: View,
    pub(super) around: bool,
}

impl Join<'_> {
    /// One plane. SAFETY: nobody else uses it; the operands are as large as y, and no task writes them; `isa` is available.
    pub(super) unsafe fn plane(&self, isa: Isa, nb: usize, ch: usize) {
        let Join { a, b, relu, y, around } = *self;
        // SAFETY: as the caller's.
        unsafe {
            if around {
                plane_join_around(isa, a, b, relu, y, nb, ch);
                fence();
            } else {
                plane_join(isa, a, b, relu, y, nb, ch);
            }
        }
    }
}

entry_points!(plane_join = join_near(a: Source, b: Option<Source>, relu: bool, y: View, nb: usize, ch: usize));
entry_points!(plane_join_around = join_around(a: Source, b: Option<Source>, relu: bool, y: View, nb: usize, ch: usize));

// SAFETY of both: as the caller's.
#[inline(always)]
unsafe fn join_near<V: V16>(a: Source, b: Option<Source>, relu: bool, y: View, nb: usize, ch: usize) {
    unsafe { join::<V, false>(a, b, relu, y, nb, ch) }
}
#[inline(always)]
unsafe fn join_around<V: V16>(a: Source, b: Option<Source>, relu: bool, y: View, nb: usize, ch: usize) {
    unsafe { join::<V, true>(a, b, relu, y, nb, ch) }
}

#[inline(always)]
unsafe fn join<V: V16, const AROUND: bool>(a: Source, b: Option<Source>, relu: bool, y: View, nb: usize, ch: usize) {
    // SAFETY: inside the planes, which have one layout.
    unsafe {
        let out = y.plane_at(nb, ch);
        let len = y.pixels() * LANES;
        match b {
            None => with_input!(V, a, nb, ch, |eval, t, x| {
                for i in (0..len).step_by(LANES) {
                    let v: V = eval.at(t.add(i), x.add(i));
                    emit::<V, AROUND>(if relu { v.relu() } else { v }, out.add(i));
                }
            }),
            Some(b) => with_input!(V, a, nb, ch, |eval, t, x| {
                with_input!(V, b, nb, ch, |other, u, z| {
                    for i in (0..len).step_by(LANES) {
                        let v: V = eval.at(t.add(i), x.add(i));
                        let v = v.add(other.at(u.add(i), z.add(i)));
                        emit::<V, AROUND>(if relu { v.relu() } else { v }, out.add(i));
                    }
                })
            }),
        }
    }
}

/// `dx = or += dy`.
pub(super) fn copy_backward(
    isa: Isa,
    workers: &Workers,
    dy: Source,
    d: DataGrad,
    partials: &mut [[[f64; 2]; 2]],
    n: usize,
) {
    let partials = Shared::new(partials);
    planes(workers, d.dx, n, |nb, ch| {
        // SAFETY: a task writes its plane of dx and its partial; `isa` is available.
        unsafe {
            plane_copy(isa, dy, d.dx, d.write, nb, ch);
            complete(isa, &d, partials, nb, ch, n);
        }
    });
}

entry_points!(plane_copy = copy(dy: Source, dx: View, write: Write, nb: usize, ch: usize));

#[inline(always)]
unsafe fn copy<V: V16>(dy: Source, dx: View, write: Write, nb: usize, ch: usize) {
    // SAFETY: inside the planes, which have one layout.
    unsafe {
        let out = dx.plane_at(nb, ch);
        with_grad!(V, dy, nb, ch, |eval, t, x| {
            for i in (0..dx.pixels() * LANES).step_by(LANES) {
                let v: V = eval.at(t.add(i), x.add(i));
                put(v, out.add(i), write == Write::Accumulate);
            }
        })
    }
}

/// `y = mean of x over H, W`.
pub(super) fn pool_forward(isa: Isa, workers: &Workers, x: Source, y: View, n: usize) {
    // SAFETY: a task writes its pixel of y; `isa` is available.
    planes(workers, x.t, n, |nb, ch| unsafe { plane_pool(isa, x, y, nb, ch) });
}

entry_points!(plane_pool = pool(x: Source, y: View, nb: usize, ch: usize));

#[inline(always)]
unsafe fn pool<V: V16>(x: Source, y: View, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        let mut sum = V::splat(0.0);
        with_input!(V, x, nb, ch, |eval, t, z| {
            for row in 0..x.t.rows() {
                let mut line = V::splat(0.0);
                for col in 0..x.t.cols() {
                    let i = row * x.t.row + col * LANES;
                    line = line.add(eval.at(t.add(i), z.add(i)));
                }
                sum = sum.add(line);
            }
        });
        sum.mul(V::splat(1.0 / x.t.pixels() as f32)).store(y.plane_at(nb, ch));
    }
}

/// `dx = or += dy / (H*W)`.
pub(super) fn pool_backward(
    isa: Isa,
    workers: &Workers,
    dy: Source,
    d: DataGrad,
    partials: &mut [[[f64; 2]; 2]],
    n: usize,
) {
    let partials = Shared::new(partials);
    planes(workers, d.dx, n, |nb, ch| {
        // SAFETY: a task writes its plane of dx and its partial; `isa` is available.
        unsafe {
            plane_pool_back(isa, dy, d.dx, d.write, nb, ch);
            complete(isa, &d, partials, nb, ch, n);
        }
    });
}

entry_points!(plane_pool_back = pool_back(dy: Source, dx: View, write: Write, nb: usize, ch: usize));

#[inline(always)]
unsafe fn pool_back<V: V16>(dy: Source, dx: View, write: Write, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        with_grad!(V, dy, nb, ch, |eval, t, x| {
            let g: V = eval.at(t, x);
            let share = g.mul(V::splat(1.0 / dx.pixels() as f32));
            let out = dx.plane_at(nb, ch);
            for i in (0..dx.pixels() * LANES).step_by(LANES) {
                put(share, out.add(i), write == Write::Accumulate);
            }
        })
    }
}

/// One step over all parameters; every operation rounds by itself (no fused multiply-add), as on every f32 backend.
/// `flips`: see [`Spec::decay_flips`](crate::backend::Spec::decay_flips).
pub(super) fn sgd(
    workers: &Workers,
    step: SgdStep,
    flips: &[usize],
    values: &mut [f32],
    grads: &[f32],
    momentum: &mut [f32],
) {
    const CHUNK: usize = 1 << 14;
    let (lr, mu, wd) = (step.lr as f32, step.momentum as f32, step.weight_decay as f32);
    let n = values.len();
    let (values, momentum) = (Shared::new(values), Shared::new(momentum));
    workers.run(n.div_ceil(CHUNK), n / 2, |_, task| {
        let (mut at, end) = (task * CHUNK, n.min((task + 1) * CHUNK));
        while at < end {
            let passed = flips.partition_point(|&f| f <= at);
            let wd = if passed.is_multiple_of(2) { wd } else { 0.0 };
            let len = flips.get(passed).map_or(end, |&f| f.min(end)) - at;
            // SAFETY: chunks, and their parts, are disjoint.
            let (values, momentum) = unsafe { (values.slice(at, len), momentum.slice(at, len)) };
            for ((v, m), g) in values.iter_mut().zip(momentum).zip(&grads[at..at + len]) {
                let g = *g + wd * *v;
                *m = mu * *m + g;
                let d = if step.nesterov { g + mu * *m } else { *m };
                *v -= lr * d;
            }
            at += len;
        }
    });
}
