//! Batch norm with residual and ReLU: statistics, then everything in one pass; backward in two.
//!
//! Statistics are (mean, M2) partials of one channel in one block of images, merged by Chan's formula in block order in
//! f64, so the result does not depend on the threads.
#![allow(clippy::needless_range_loop)] // index loops of constant length become registers

use super::layout::{LANES, View, blocks, valid};
use super::simd::{Isa, V16, entry_points, lane_mask, load_masked, put};
use super::workers::{Shared, Workers};
use crate::backend::{NormSpec, Write};

/// Pixels that a reduction adds in f32 (16 KB: the second pass over them hits L1) before it goes on in f64.
const CHUNK_PIXELS: usize = 256;

/// What a norm keeps from forward to backward.
pub(super) struct Stats {
    /// Batch mean and 1/sqrt(var + eps) of each channel.
    pub(super) mean: Vec<f32>,
    pub(super) rstd: Vec<f32>,
}

impl Stats {
    pub(super) fn new(c: usize) -> Self {
        Stats { mean: vec![0.0; c], rstd: vec![0.0; c] }
    }
}

/// Gamma and beta of a norm, or their gradients.
pub(super) struct Affine<T> {
    pub(super) gamma: T,
    pub(super) beta: T,
}

/// Operands of a forward pass.
#[derive(Clone, Copy)]
pub(super) struct Forward {
    pub(super) x: View,
    pub(super) residual: Option<View>,
    pub(super) relu: bool,
    pub(super) y: View,
    pub(super) n: usize,
}

/// Operands of a backward pass.
#[derive(Clone, Copy)]
pub(super) struct Backward {
    pub(super) x: View,
    pub(super) y: View,
    pub(super) relu: bool,
    pub(super) dy: View,
    pub(super) dx: (View, Write),
    pub(super) dres: Option<(View, Write)>,
    pub(super) n: usize,
}

impl Forward {
    /// Shapes of the operands.
    pub(super) fn check(&self, c: u32) {
        let same = self.x.same_shape(&self.y) && self.residual.is_none_or(|r| r.same_shape(&self.x));
        assert!(same && self.x.plane.c == c, "norm of {c} channels: tensors of other or different shapes");
    }
}

impl Backward {
    /// Shapes of the operands.
    pub(super) fn check(&self, c: u32) {
        let same = [self.y, self.dy, self.dx.0, self.dres.unwrap_or(self.dx).0].iter().all(|v| v.same_shape(&self.x));
        assert!(same && self.x.plane.c == c, "norm of {c} channels: tensors of other or different shapes");
    }
}

/// `y = (x - mean) * scale + shift` of one channel.
#[derive(Clone, Copy)]
struct Coef {
    mean: f32,
    scale: f32,
    shift: f32,
}

/// Coefficients of one channel in the backward pass:
/// `dx = scale * (dz - mean_dz - xhat * mean_dz_xhat)`, `xhat = (x - mean) * rstd`.
#[derive(Clone, Copy)]
struct BackCoef {
    mean: f32,
    rstd: f32,
    scale: f32,
    mean_dz: f32,
    mean_dz_xhat: f32,
}

/// Runs reduction, finish and application of every channel. Where channels suffice for all threads, one task does a
/// whole channel, whose planes are then still cached when they are applied.
fn per_channel(
    workers: &Workers,
    c: usize,
    n: usize,
    work: usize,
    reduce: impl Fn(usize, usize) + Sync,
    finish: impl Fn(usize) + Sync,
    apply: impl Fn(usize, usize) + Sync,
) {
    let nbs = blocks(n);
    if c >= 2 * workers.threads() || nbs == 1 {
        workers.run(c, work, |_, ch| {
            (0..nbs).for_each(|nb| reduce(nb, ch));
            finish(ch);
            (0..nbs).for_each(|nb| apply(nb, ch));
        });
    } else {
        workers.run(nbs * c, work, |_, task| reduce(task / c, task % c));
        workers.run(c, c * nbs, |_, ch| finish(ch));
        workers.run(nbs * c, work, |_, task| apply(task / c, task % c));
    }
}

/// Training forward; `partials` holds `blocks(n) * C` pairs.
#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    isa: Isa,
    workers: &Workers,
    spec: &NormSpec,
    affine: Affine<&[f32]>,
    running: &mut [f32],
    stats: &mut Stats,
    partials: &mut [[f64; 2]],
    f: Forward,
) {
    let (c, px, nbs) = (f.x.channels(), f.x.pixels(), blocks(f.n));
    let (running, partials) = (Shared::new(&mut running[spec.running..spec.running + 2 * c]), Shared::new(partials));
    let (mean, rstd) = (Shared::new(&mut stats.mean), Shared::new(&mut stats.rstd));
    // SAFETY of the three: element (nb, ch) or ch is one task's own at a time, planes lie inside their tensors, `isa` is
    // available.
    let reduce = |nb: usize, ch: usize| unsafe {
        *partials.at(ch * nbs + nb) = plane_stats(isa, f.x, nb, ch, valid(f.n, nb));
    };
    let finish = |ch: usize| unsafe {
        let (mut count, mut m, mut m2) = (0.0, 0.0, 0.0);
        for nb in 0..nbs {
            let more = (valid(f.n, nb) * px) as f64;
            (count, m, m2) =
                chan((count, m, m2), (more, (*partials.at(ch * nbs + nb))[0], (*partials.at(ch * nbs + nb))[1]));
        }
        *mean.at(ch) = m as f32;
        *rstd.at(ch) = (1.0 / (m2 / count + spec.eps).sqrt()) as f32;
        let blend = |old: *mut f32, new: f64| *old = (f64::from(*old) + spec.momentum * (new - f64::from(*old))) as f32;
        blend(running.at(ch), m);
        blend(running.at(c + ch), m2 / (count - 1.0));
    };
    let apply = |nb: usize, ch: usize| unsafe {
        let scale = affine.gamma[ch] * *rstd.at(ch);
        plane_apply(isa, f, Coef { mean: *mean.at(ch), scale, shift: affine.beta[ch] }, nb, ch);
    };
    per_channel(workers, c, f.n, nbs * c * px, reduce, finish, apply);
}

/// Forward with the running statistics.
pub(super) fn infer(isa: Isa, workers: &Workers, spec: &NormSpec, affine: Affine<&[f32]>, running: &[f32], f: Forward) {
    let c = f.x.channels();
    let (mean, var) = running[spec.running..spec.running + 2 * c].split_at(c);
    workers.run(blocks(f.n) * c, blocks(f.n) * c * f.x.pixels(), |_, task| {
        let ch = task % c;
        let rstd = 1.0 / (f64::from(var[ch]) + spec.eps).sqrt();
        let scale = (f64::from(affine.gamma[ch]) * rstd) as f32;
        // SAFETY: a task writes one plane of y; `isa` is available.
        unsafe { plane_apply(isa, f, Coef { mean: mean[ch], scale, shift: affine.beta[ch] }, task / c, ch) };
    });
}

/// Backward; overwrites `grads`.
pub(super) fn backward(
    isa: Isa,
    workers: &Workers,
    gamma: &[f32],
    stats: &Stats,
    grads: Affine<Shared<f32>>,
    partials: &mut [[f64; 2]],
    b: Backward,
) {
    let (c, px, nbs) = (b.x.channels(), b.x.pixels(), blocks(b.n));
    let partials = Shared::new(partials);
    let (mean, rstd) = (&stats.mean, &stats.rstd);
    // SAFETY of the three: as in `forward`.
    let reduce = |nb: usize, ch: usize| unsafe {
        *partials.at(ch * nbs + nb) = plane_sums(isa, b, mean[ch], rstd[ch], nb, ch);
    };
    let totals = |ch: usize| unsafe {
        (0..nbs).map(|nb| *partials.at(ch * nbs + nb)).fold([0.0, 0.0], |t, p| [t[0] + p[0], t[1] + p[1]])
    };
    let finish = |ch: usize| unsafe {
        let [dz, dz_xhat] = totals(ch);
        *grads.beta.at(ch) = dz as f32;
        *grads.gamma.at(ch) = dz_xhat as f32;
    };
    let count = (b.n * px) as f64;
    let apply = |nb: usize, ch: usize| unsafe {
        let [dz, dz_xhat] = totals(ch);
        let scale = gamma[ch] * rstd[ch];
        let (mean_dz, mean_dz_xhat) = ((dz / count) as f32, (dz_xhat / count) as f32);
        plane_back(isa, b, BackCoef { mean: mean[ch], rstd: rstd[ch], scale, mean_dz, mean_dz_xhat }, nb, ch);
    };
    per_channel(workers, c, b.n, 3 * nbs * c * px, reduce, finish, apply);
}

/// Chan et al.: (count, mean, M2) of the union of two sets.
#[inline(always)]
fn chan(a: (f64, f64, f64), b: (f64, f64, f64)) -> (f64, f64, f64) {
    let count = a.0 + b.0;
    let d = b.1 - a.1;
    (count, a.1 + d * (b.0 / count), a.2 + b.2 + d * d * (a.0 * b.0 / count))
}

entry_points!(plane_stats = stats(x: View, nb: usize, ch: usize, lanes: usize) -> [f64; 2]);

/// Mean and M2 of one plane, by chunks of rows: their mean first, then the deviations from it.
#[inline(always)]
unsafe fn stats<V: V16>(x: View, nb: usize, ch: usize, lanes: usize) -> [f64; 2] {
    let (rows, cols) = (x.rows(), x.cols());
    let step = (CHUNK_PIXELS / cols).clamp(1, rows);
    let mut all = (0.0, 0.0, 0.0);
    // SAFETY: inside the plane.
    unsafe {
        let mask = lane_mask::<V>(lanes);
        let p = x.plane_at(nb, ch);
        for from in (0..rows).step_by(step) {
            let to = (from + step).min(rows);
            let count = ((to - from) * cols * lanes) as f64;
            let mut sum = [V::splat(0.0); 4];
            for row in from..to {
                let p = p.add(row * x.row);
                for four in 0..cols / 4 {
                    for i in 0..4 {
                        sum[i] = sum[i].add(load_masked(p.add((4 * four + i) * LANES), mask));
                    }
                }
                for col in cols / 4 * 4..cols {
                    sum[0] = sum[0].add(load_masked(p.add(col * LANES), mask));
                }
            }
            let total = f64::from(sum[0].add(sum[1]).sum()) + f64::from(sum[2].add(sum[3]).sum());
            let centre = (total / count) as f32;
            let at = V::splat(centre);
            let (mut dev, mut sq) = ([V::splat(0.0); 2], [V::splat(0.0); 2]);
            for row in from..to {
                let p = p.add(row * x.row);
                for two in 0..cols / 2 {
                    for i in 0..2 {
                        let d = V::load(p.add((2 * two + i) * LANES)).sub(at).masked(mask);
                        dev[i] = dev[i].add(d);
                        sq[i] = d.fma(d, sq[i]);
                    }
                }
                if cols % 2 == 1 {
                    let d = V::load(p.add((cols - 1) * LANES)).sub(at).masked(mask);
                    dev[0] = dev[0].add(d);
                    sq[0] = d.fma(d, sq[0]);
                }
            }
            // The centre was rounded to f32: correct by what the deviations still sum to.
            let dev = f64::from(dev[0].add(dev[1]).sum());
            let m2 = f64::from(sq[0].add(sq[1]).sum()) - dev * dev / count;
            let m2 = if m2 < 0.0 { 0.0 } else { m2 }; // NaN stays
            all = chan(all, (count, f64::from(centre) + dev / count, m2));
        }
    }
    [all.1, all.2]
}

entry_points!(plane_apply = apply(f: Forward, coef: Coef, nb: usize, ch: usize));

#[inline(always)]
unsafe fn apply<V: V16>(f: Forward, coef: Coef, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        let (mean, scale, shift) = (V::splat(coef.mean), V::splat(coef.scale), V::splat(coef.shift));
        for row in 0..f.x.rows() {
            let x = f.x.plane_at(nb, ch).add(row * f.x.row);
            let y = f.y.plane_at(nb, ch).add(row * f.y.row);
            let residual = f.residual.map(|r| r.plane_at(nb, ch).add(row * r.row));
            for i in (0..f.x.cols() * LANES).step_by(LANES) {
                let mut v = V::load(x.add(i)).sub(mean).fma(scale, shift);
                if let Some(r) = residual {
                    v = v.add(V::load(r.add(i)));
                }
                if f.relu {
                    v = v.relu();
                }
                v.store(y.add(i));
            }
        }
    }
}

entry_points!(plane_sums = sums(b: Backward, mean: f32, rstd: f32, nb: usize, ch: usize) -> [f64; 2]);

/// Sums of dz and dz * xhat over one plane.
#[inline(always)]
unsafe fn sums<V: V16>(b: Backward, mean: f32, rstd: f32, nb: usize, ch: usize) -> [f64; 2] {
    let (rows, cols) = (b.x.rows(), b.x.cols());
    let step = (CHUNK_PIXELS / cols).clamp(1, rows);
    let mut all = [0.0, 0.0];
    // SAFETY: inside the planes.
    unsafe {
        let mask = lane_mask::<V>(valid(b.n, nb));
        let (mean, rstd) = (V::splat(mean), V::splat(rstd));
        for from in (0..rows).step_by(step) {
            let (mut s, mut sx) = (V::splat(0.0), V::splat(0.0));
            for row in from..(from + step).min(rows) {
                let x = b.x.plane_at(nb, ch).add(row * b.x.row);
                let y = b.y.plane_at(nb, ch).add(row * b.y.row);
                let dy = b.dy.plane_at(nb, ch).add(row * b.dy.row);
                for col in 0..cols {
                    let i = col * LANES;
                    let mut dz = load_masked(dy.add(i), mask);
                    if b.relu {
                        dz = dz.where_positive(V::load(y.add(i)));
                    }
                    let xhat = V::load(x.add(i)).sub(mean).mul(rstd).masked(mask);
                    s = s.add(dz);
                    sx = dz.fma(xhat, sx);
                }
            }
            all[0] += f64::from(s.sum());
            all[1] += f64::from(sx.sum());
        }
    }
    all
}

entry_points!(plane_back = back(b: Backward, coef: BackCoef, nb: usize, ch: usize));

#[inline(always)]
unsafe fn back<V: V16>(b: Backward, coef: BackCoef, nb: usize, ch: usize) {
    // SAFETY: inside the planes.
    unsafe {
        let (mean, scale) = (V::splat(coef.mean), V::splat(coef.scale));
        // dx = scale * (dz - mean_dz) - (x - mean) * slope
        let (mean_dz, slope) = (V::splat(coef.mean_dz), V::splat(-coef.scale * coef.rstd * coef.mean_dz_xhat));
        let (dx_view, dx_write) = b.dx;
        for row in 0..b.x.rows() {
            let x = b.x.plane_at(nb, ch).add(row * b.x.row);
            let y = b.y.plane_at(nb, ch).add(row * b.y.row);
            let dy = b.dy.plane_at(nb, ch).add(row * b.dy.row);
            let dx = dx_view.plane_at(nb, ch).add(row * dx_view.row);
            let dres = b.dres.map(|(v, write)| (v.plane_at(nb, ch).add(row * v.row), write));
            for i in (0..b.x.cols() * LANES).step_by(LANES) {
                let mut dz = V::load(dy.add(i));
                if b.relu {
                    dz = dz.where_positive(V::load(y.add(i)));
                }
                if let Some((p, write)) = dres {
                    put(dz, p.add(i), write == Write::Accumulate);
                }
                let mut v = dz.sub(mean_dz).mul(scale);
                v = V::load(x.add(i)).sub(mean).fma(slope, v);
                put(v, dx.add(i), dx_write == Write::Accumulate);
            }
        }
    }
}
