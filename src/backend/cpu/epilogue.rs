//! What happens to a finished patch of a tensor while it is near: statistics forward, ReLU mask and sums backward.
//!
//! Lanes are summed apart, in f32 over some hundred pixels, and join in f64; lanes without an image are left out there.
//! Partials go to one place a (block, patch, channel) and are merged in that order, so nothing depends on the threads.

use super::layout::{LANES, View};
use super::simd::{Isa, V16, entry_points};
use super::source::{AHEAD_PIXELS, Eval, Source, with_input};
use std::ops::Range;

/// Part of one channel of one block of images.
#[derive(Clone)]
pub(super) struct Area {
    pub(super) nb: usize,
    pub(super) ch: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
    /// Images in the block.
    pub(super) lanes: usize,
}

/// Chan et al.: (count, mean, M2) of the union of two sets.
#[inline(always)]
pub(super) fn chan(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    if a[0] == 0.0 {
        return b;
    }
    let count = a[0] + b[0];
    let d = b[1] - a[1];
    [count, a[1] + d * (b[0] / count), a[2] + b[2] + d * d * (a[0] * b[0] / count)]
}

/// A finished patch in scratch, and where it goes: the area's pixels of channel `ch`, rows `row` floats apart.
#[derive(Clone, Copy)]
pub(super) struct Made {
    pub(super) ptr: *const f32,
    pub(super) row: usize,
    /// Whether to write around the caches: the tensor is too large to stay in them.
    pub(super) around: bool,
}

/// (count, mean, M2) of an area of `x`; with `made`, which is copied there on the way.
pub(super) unsafe fn stats(isa: Isa, x: View, a: Area, made: Option<Made>) -> [f64; 3] {
    // SAFETY: as the caller's.
    unsafe {
        match made {
            None => stats_there(isa, x, a, Made { ptr: std::ptr::null(), row: 0, around: false }),
            Some(made) if made.around => stats_around(isa, x, a, made),
            Some(made) => stats_copied(isa, x, a, made),
        }
    }
}

entry_points!(stats_there = area_stats_there(x: View, a: Area, made: Made) -> [f64; 3]);
entry_points!(stats_copied = area_stats_copied(x: View, a: Area, made: Made) -> [f64; 3]);
entry_points!(stats_around = area_stats_around(x: View, a: Area, made: Made) -> [f64; 3]);

#[inline(always)]
unsafe fn area_stats_there<V: V16>(x: View, a: Area, made: Made) -> [f64; 3] {
    // SAFETY: as the caller's.
    unsafe { area_stats::<V, false, false>(x, a, made) }
}
#[inline(always)]
unsafe fn area_stats_copied<V: V16>(x: View, a: Area, made: Made) -> [f64; 3] {
    // SAFETY: as the caller's.
    unsafe { area_stats::<V, true, false>(x, a, made) }
}
#[inline(always)]
unsafe fn area_stats_around<V: V16>(x: View, a: Area, made: Made) -> [f64; 3] {
    // SAFETY: as the caller's.
    unsafe { area_stats::<V, true, true>(x, a, made) }
}

/// Stores a vector, around the caches or not.
#[inline(always)]
pub(super) unsafe fn emit<V: V16, const AROUND: bool>(v: V, p: *mut f32) {
    // SAFETY: as the caller's; tensors are aligned to 64 bytes.
    unsafe { if AROUND { v.store_around(p) } else { v.store(p) } }
}

/// Pixels that are summed in f32 before f64 takes over.
const F32_PIXELS: usize = 256;

/// Rows of a patch are too short for the hardware to see them coming: the same place some channels ahead is asked for.
#[inline(always)]
fn ahead(a: &Area, v: &View) -> usize {
    AHEAD_PIXELS.div_ceil((a.rows.len() * a.cols.len()).max(1)) * v.chan
}

/// Sums of distances from the area's first number, lane by lane: one pass, and no cancellation beyond the spread itself.
#[inline(always)]
unsafe fn area_stats<V: V16, const COPY: bool, const AROUND: bool>(x: View, a: Area, made: Made) -> [f64; 3] {
    let mut all = [0.0; 3];
    let step = (F32_PIXELS / a.cols.len().max(1)).max(1);
    // SAFETY: inside the tensor.
    unsafe {
        let plane = x.plane_at(a.nb, a.ch).add(a.cols.start * LANES);
        let ahead = ahead(&a, &x);
        for from in a.rows.clone().step_by(step) {
            let rows = from..a.rows.end.min(from + step);
            let count = (rows.len() * a.cols.len()) as f64;
            let first = if COPY { made.ptr.add((from - a.rows.start) * made.row) } else { plane.add(from * x.row) };
            let origin = *first;
            let base = V::splat(origin);
            let (mut s0, mut s1, mut q0, mut q1) = (V::splat(0.0), V::splat(0.0), V::splat(0.0), V::splat(0.0));
            for row in rows {
                let to = plane.add(row * x.row);
                let p = if COPY { made.ptr.add((row - a.rows.start) * made.row) } else { to };
                for two in 0..a.cols.len() / 2 {
                    let at = [2 * two * LANES, (2 * two + 1) * LANES];
                    let v = [V::load(p.add(at[0])), V::load(p.add(at[1]))];
                    if COPY && !AROUND {
                        V::prefetch(to.wrapping_add(at[0] + ahead));
                        V::prefetch(to.wrapping_add(at[1] + ahead));
                    }
                    if COPY {
                        emit::<V, AROUND>(v[0], to.add(at[0]));
                        emit::<V, AROUND>(v[1], to.add(at[1]));
                    }
                    let (d0, d1) = (v[0].sub(base), v[1].sub(base));
                    s0 = s0.add(d0);
                    s1 = s1.add(d1);
                    q0 = d0.fma(d0, q0);
                    q1 = d1.fma(d1, q1);
                }
                if a.cols.len() % 2 == 1 {
                    let at = (a.cols.len() - 1) * LANES;
                    let v = V::load(p.add(at));
                    if COPY && !AROUND {
                        V::prefetch(to.wrapping_add(at + ahead));
                    }
                    if COPY {
                        emit::<V, AROUND>(v, to.add(at));
                    }
                    let d = v.sub(base);
                    s0 = s0.add(d);
                    q0 = d.fma(d, q0);
                }
            }
            let (s, q) = (lanes_sum(s0.add(s1), a.lanes), lanes_sum(q0.add(q1), a.lanes));
            let n = count * a.lanes as f64;
            let mean = s / n;
            let m2 = q - s * mean;
            let m2 = if m2 < 0.0 { 0.0 } else { m2 }; // NaN stays
            all = chan(all, [n, f64::from(origin) + mean, m2]);
        }
    }
    all
}

/// What the last writer of a gradient does to it.
#[derive(Clone, Copy, Default)]
pub(super) struct Finisher<'a> {
    /// Passes where this value is positive.
    pub(super) mask: Option<Source<'a>>,
    /// For sum(g) and sum(g * (x - mean)): x and its means.
    pub(super) reduce: [Option<(View, &'a [f32])>; 2],
}

impl Finisher<'_> {
    /// Whether it does nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.mask.is_none() && self.reduce[0].is_none()
    }

    /// All tensors have the shape of `g`.
    pub(super) fn check(&self, g: &View) {
        let views = self.mask.iter().map(|m| m.t).chain(self.reduce.iter().flatten().map(|r| r.0));
        assert!(views.into_iter().all(|v| v.plane == g.plane), "finish of tensors of other shapes than {:?}", g.plane);
    }
}

/// Where the numbers of an area of a gradient come from.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// They are there.
    There,
    /// A patch in scratch.
    Patch(Made),
    /// The sum of what is there and a patch.
    Both(Made),
}

/// Masks an area of `g` and returns, for each norm, sum(g) and sum(g * (x - mean)).
pub(super) unsafe fn finish(isa: Isa, f: Finisher, g: View, a: Area, from: From) -> [[f64; 2]; 2] {
    // SAFETY: as the caller's.
    unsafe {
        match from {
            From::There => finish_there(isa, f, g, a, Made { ptr: std::ptr::null(), row: 0, around: false }),
            From::Patch(made) if made.around => finish_around(isa, f, g, a, made),
            From::Patch(made) => finish_patch(isa, f, g, a, made),
            From::Both(made) => finish_both(isa, f, g, a, made),
        }
    }
}

entry_points!(finish_there = area_there(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2]);
entry_points!(finish_patch = area_patch(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2]);
entry_points!(finish_around = area_around(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2]);
entry_points!(finish_both = area_both(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2]);

// SAFETY of the four: as the caller's.
#[inline(always)]
unsafe fn area_there<V: V16>(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2] {
    unsafe { area_finish::<V, THERE>(f, g, a, made) }
}
#[inline(always)]
unsafe fn area_patch<V: V16>(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2] {
    unsafe { area_finish::<V, PATCH>(f, g, a, made) }
}
#[inline(always)]
unsafe fn area_around<V: V16>(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2] {
    unsafe { area_finish::<V, AROUND>(f, g, a, made) }
}
#[inline(always)]
unsafe fn area_both<V: V16>(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2] {
    unsafe { area_finish::<V, BOTH>(f, g, a, made) }
}

const THERE: u8 = 0;
const PATCH: u8 = 1;
const AROUND: u8 = 2;
const BOTH: u8 = 3;

#[inline(always)]
unsafe fn area_finish<V: V16, const FROM: u8>(f: Finisher, g: View, a: Area, made: Made) -> [[f64; 2]; 2] {
    // SAFETY: as the caller's.
    unsafe {
        match f.reduce {
            [None, _] => finish_masked::<V, FROM, 0>(f, g, a, made),
            [_, None] => finish_masked::<V, FROM, 1>(f, g, a, made),
            _ => finish_masked::<V, FROM, 2>(f, g, a, made),
        }
    }
}

#[inline(always)]
unsafe fn finish_masked<V: V16, const FROM: u8, const R: usize>(
    f: Finisher,
    g: View,
    a: Area,
    made: Made,
) -> [[f64; 2]; 2] {
    // SAFETY: as the caller's.
    unsafe {
        match f.mask {
            None => finish_rows::<V, FROM, R, false, _>(f, g, a, made, super::source::eval::plain(), g.plane_at(0, 0)),
            Some(mask) => {
                with_input!(V, mask, a.nb, a.ch, |eval, t, _x| finish_rows::<V, FROM, R, true, _>(
                    f, g, a, made, eval, t
                ))
            }
        }
    }
}

#[inline(always)]
unsafe fn finish_rows<V: V16, const FROM: u8, const R: usize, const MASK: bool, E: Eval<V>>(
    f: Finisher,
    g: View,
    a: Area,
    made: Made,
    mask: E,
    t: *const f32,
) -> [[f64; 2]; 2] {
    let mut all = [[0.0; 2]; 2];
    let step = (F32_PIXELS / a.cols.len().max(1)).max(1);
    // SAFETY: inside the tensors, which have one shape and so one layout.
    unsafe {
        let plane = g.plane_at(a.nb, a.ch);
        let mut x = [plane.cast_const(); 2];
        let mut mean = [V::splat(0.0); 2];
        for r in 0..R {
            if let Some((view, means)) = f.reduce[r] {
                x[r] = view.plane_at(a.nb, a.ch);
                mean[r] = V::splat(means[a.ch]);
            }
        }
        let ahead = ahead(&a, &g);
        for from in a.rows.clone().step_by(step) {
            let mut sum = V::splat(0.0);
            let mut dot = [V::splat(0.0); 2];
            for row in from..a.rows.end.min(from + step) {
                for col in a.cols.clone() {
                    let i = row * g.row + col * LANES;
                    let next = i + ahead;
                    if FROM == BOTH || FROM == PATCH {
                        V::prefetch(plane.wrapping_add(next));
                    }
                    if FROM != THERE {
                        if MASK {
                            V::prefetch(t.wrapping_add(next));
                        }
                        for x in &x[..R] {
                            V::prefetch(x.wrapping_add(next));
                        }
                    }
                    let near = made.ptr.wrapping_add((row - a.rows.start) * made.row + (col - a.cols.start) * LANES);
                    let mut v = V::load(if FROM == THERE { plane.add(i) } else { near });
                    if FROM == BOTH {
                        v = v.add(V::load(plane.add(i)));
                    }
                    if MASK {
                        v = v.where_positive(mask.at(t.add(i), t.add(i)));
                    }
                    if FROM == AROUND {
                        v.store_around(plane.add(i));
                    } else if MASK || FROM != THERE {
                        v.store(plane.add(i));
                    }
                    if R > 0 {
                        sum = sum.add(v);
                    }
                    for r in 0..R {
                        dot[r] = v.fma(V::load(x[r].add(i)).sub(mean[r]), dot[r]);
                    }
                }
            }
            if R > 0 {
                let sum = lanes_sum(sum, a.lanes);
                for r in 0..R {
                    all[r][0] += sum;
                    all[r][1] += lanes_sum(dot[r], a.lanes);
                }
            }
        }
    }
    all
}

/// Sum of the first `lanes` lanes, in f64.
#[inline(always)]
unsafe fn lanes_sum<V: V16>(v: V, lanes: usize) -> f64 {
    let mut l = [0f32; LANES];
    // SAFETY: 16 floats.
    unsafe { v.store(l.as_mut_ptr()) };
    let mut wide = [0f64; LANES];
    for i in 0..LANES {
        wide[i] = f64::from(l[i]);
    }
    sum_of(&wide, lanes)
}

/// Sum of the first `lanes` numbers, in four chains where all count.
#[inline(always)]
fn sum_of(v: &[f64; LANES], lanes: usize) -> f64 {
    if lanes < LANES {
        return v[..lanes].iter().sum();
    }
    let mut four = [v[0], v[1], v[2], v[3]];
    for i in 1..LANES / 4 {
        for j in 0..4 {
            four[j] += v[4 * i + j];
        }
    }
    (four[0] + four[1]) + (four[2] + four[3])
}
