//! Statistics and finished gradients of areas: what they read, what they write, lanes without an image.

use super::super::epilogue::{Area, Finisher, From, Made, finish, stats};
use super::super::simd::fence;
use super::super::source::{Kind, Source};
use super::guard::{Flush, Guarded};
use super::*;
use std::ops::Range;

/// Tensors (one of more pixels than are summed in f32), rows and columns of an area.
const AREAS: [([usize; 3], Range<usize>, Range<usize>); 7] = [
    ([2, 1, 1], 0..1, 0..1),
    ([3, 4, 5], 0..4, 0..5),
    ([3, 4, 5], 2..4, 4..5),
    ([1, 5, 4], 1..5, 1..4),
    ([1, 3, 3], 1..1, 0..3),
    ([2, 20, 17], 0..20, 0..17),
    ([1, 300, 1], 3..299, 0..1),
];

/// Every area on both sides of a guard, with each number of images: `f(shape, area, flush)`.
fn for_areas(f: impl Fn([usize; 3], &Area, Flush)) {
    for (chw, rows, cols) in AREAS {
        for (lanes, flush) in [1, 15, 16].into_iter().flat_map(|l| Flush::BOTH.map(|f| (l, f))) {
            for ch in 0..chw[0] {
                f(chw, &Area { nb: 0, ch, rows: rows.clone(), cols: cols.clone(), lanes }, flush);
            }
        }
    }
}

/// A patch for an area with a pixel of NaN between rows; lanes without an image hold NaN.
struct Fresh {
    data: Guarded<f32>,
    row: usize,
}

impl Fresh {
    fn new(a: &Area, flush: Flush) -> Self {
        let row = (a.cols.len() + 1) * LANES;
        let numbers = noise(9, a.rows.len() * row);
        let len = (a.rows.len() * row).saturating_sub(LANES);
        let keep = |i: usize| i % row / LANES < a.cols.len() && i % LANES < a.lanes;
        let data: Vec<f32> = (0..len).map(|i| if keep(i) { numbers[i] } else { f32::NAN }).collect();
        Fresh { data: Guarded::new(flush, &data), row }
    }

    fn made(&self, around: bool) -> Made {
        Made { ptr: self.data.as_ptr(), row: self.row, around }
    }

    fn at(&self, [row, col, lane]: [usize; 3]) -> f32 {
        self.data[row * self.row + col * LANES + lane]
    }
}

fn name(a: &Area) -> String {
    format!("channel {} rows {:?} cols {:?} lanes {}", a.ch, a.rows, a.cols, a.lanes)
}

/// Place in the area (row, column, lane) of number `i` of the tensor.
fn inside(a: &Area, v: &View, i: usize) -> Option<[usize; 3]> {
    let px = i / LANES;
    let (ch, row, col) = (px / v.pixels(), px / v.cols() % v.rows(), px % v.cols());
    let there = ch == a.ch && a.rows.contains(&row) && a.cols.contains(&col);
    there.then(|| [row - a.rows.start, col - a.cols.start, i % LANES])
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Numbers, but NaN in lanes without an image.
fn images(seed: u64, chw: [usize; 3], lanes: usize, flush: Flush) -> Tensor {
    let mut t = Tensor::noise(seed, chw, flush);
    t.fill(|i, v| if i % LANES < lanes { v } else { f32::NAN });
    t
}

#[test]
fn statistics_of_areas() {
    for_areas(|chw, a, flush| {
        let fresh = Fresh::new(a, flush);
        for (isa, from) in sets().flat_map(|isa| [None, Some(false), Some(true)].map(|f| (isa, f))) {
            let what = format!("{isa:?} {chw:?} {} {flush:?} around {from:?}", name(a));
            let x = if from.is_none() { images(1, chw, a.lanes, flush) } else { Tensor::new(chw, flush) };
            let old = x.read();
            // SAFETY: the area lies inside the tensor, the patch is as large; `isa` is available.
            let [count, mean, m2] = unsafe { stats(isa, x.view, a.clone(), from.map(|around| fresh.made(around))) };
            fence();
            let mut of = vec![];
            for (i, (got, old)) in x.read().into_iter().zip(old).enumerate() {
                let at = inside(a, &x.view, i);
                let want = at.filter(|_| from.is_some()).map_or(old, |at| fresh.at(at));
                assert!(same(got, want), "{what}: number {i} is {got}, wanted {want}");
                of.extend(at.filter(|at| at[2] < a.lanes).map(|_| f64::from(want)));
            }
            assert_eq!(count, of.len() as f64, "{what}");
            let sum = |f: &dyn Fn(f64) -> f64| of.iter().map(|&v| f(v)).sum::<f64>();
            let wanted = if of.is_empty() { 0.0 } else { sum(&|v| v) / count };
            close(&format!("{what}: mean"), mean, wanted, 4.0);
            close(&format!("{what}: M2"), m2, sum(&|v| (v - wanted).powi(2)), 8.0 * count);
        }
    });
}

#[test]
fn finished_gradients_of_areas() {
    for_areas(|chw, a, flush| {
        let fresh = Fresh::new(a, flush);
        let [y, x0, x1] = [2, 3, 4].map(|seed| images(seed, chw, a.lanes, flush));
        let coef: Vec<[f32; 2]> = noise(5, 2 * chw[0]).chunks(2).map(|c| [c[0], c[1]]).collect();
        let means = [6, 7].map(|seed| noise(seed, chw[0]));
        let reduces = [(x0.view, &means[0][..]), (x1.view, &means[1][..])].map(Some);
        let affine = Kind::Affine { coef: &coef, relu: false };
        let masks = [None, Some(Kind::Plain), Some(Kind::Relu), Some(affine)].map(|m| m.map(|kind| (kind, y.view)));
        let ways = ["there", "patch", "around", "both"];
        for (isa, (way, mask)) in
            sets().flat_map(|i| ways.map(|w| (i, w))).flat_map(|(i, w)| masks.map(|m| (i, (w, m))))
        {
            for reduce in [[None, None], [reduces[0], None], reduces] {
                let terms = reduce.iter().flatten().count();
                let what = format!("{isa:?} {chw:?} {} {flush:?} {way} mask {} sums {terms}", name(a), mask.is_some());
                let adds = way == "there" || way == "both";
                let g = if adds { images(8, chw, a.lanes, flush) } else { Tensor::new(chw, flush) };
                let old = g.read();
                let from = match way {
                    "there" => From::There,
                    "both" => From::Both(fresh.made(false)),
                    _ => From::Patch(fresh.made(way == "around")),
                };
                let f = Finisher { mask: mask.map(|(kind, t)| Source { t, kind }), reduce };
                // SAFETY: the area lies inside the tensors, the patch is as large; `isa` is available.
                let sums = unsafe { finish(isa, f, g.view, a.clone(), from) };
                fence();
                let mut wanted = [[(0.0, 0.0); 2]; 2];
                for (i, (got, old)) in g.read().into_iter().zip(old).enumerate() {
                    let Some(at) = inside(a, &g.view, i) else {
                        assert!(same(got, old), "{what}: number {i} beside the area written");
                        continue;
                    };
                    if at[2] >= a.lanes {
                        continue; // anything
                    }
                    let full = match way {
                        "there" => old,
                        "both" => fresh.at(at) + old,
                        _ => fresh.at(at),
                    };
                    let value = |t: &Tensor| {
                        // SAFETY: inside the tensor.
                        f64::from(unsafe { *t.place(i) })
                    };
                    let of = mask.map_or(1.0, |(kind, _)| match kind {
                        Kind::Affine { coef, .. } => value(&y) * f64::from(coef[a.ch][0]) + f64::from(coef[a.ch][1]),
                        _ => value(&y),
                    });
                    let want = if of > 0.0 { full } else { 0.0 };
                    let unclear = of.abs() < 1e-6 && (same(got, full) || got == 0.0);
                    assert!(same(got, want) || unclear, "{what}: number {i} is {got}, wanted {want}");
                    for (r, x) in [&x0, &x1].into_iter().enumerate().take(terms) {
                        let dot = f64::from(got) * (value(x) - f64::from(means[r][a.ch]));
                        for (sum, v) in wanted[r].iter_mut().zip([f64::from(got), dot]) {
                            *sum = (sum.0 + v, sum.1 + v.abs());
                        }
                    }
                }
                for (i, (want, mag)) in wanted.into_iter().flatten().enumerate() {
                    close(&format!("{what}: sum {i}"), sums[i / 2][i % 2], want, 4.0 * mag);
                }
            }
        }
    });
}
