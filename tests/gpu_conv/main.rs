//! The convolution kernels against loops in f64 over the operands as the multiply takes them: geometries, tiles, masks,
//! operands, epilogues. One test body, on the emulated device in both fibre orders and on a real GPU where there is one.

mod device;
mod limits;
mod number;
mod reference;
mod skipping;

use device::{Device, compare, numbers, operand, pad, store_error, sum_error, unpad};
use number::{decode, encode, rounded};
use reference::{Sums, convolve};
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::ops::conv::{self, Conv, ConvPlan, Kind, Tile, WeightTile, data_tiles, forward_tiles};
use sparse_engine::backend::gpu::ops::operand::{BLOCK_ROWS, Element, Finish, Operand, Precision, Reduce, padded};
use sparse_engine::backend::gpu::{self, Driver};
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::shape::ConvGeom;

const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16];

#[derive(Clone, Debug)]
enum Mask {
    Dense,
    /// Each weight with this probability.
    Part(f64),
    /// The last weight.
    One,
    Nothing,
    /// Whole blocks of output x input channels at a tap, each with this probability.
    Blocks(u32, u32, f64),
}

#[derive(Clone, Debug)]
struct Case {
    geom: ConvGeom,
    images: u32,
    precision: Precision,
    mask: Mask,
    plan: ConvPlan,
    /// Operands, coefficients and epilogues: a number whose digits choose.
    turn: usize,
}

impl Case {
    fn kept(&self) -> Option<Vec<u32>> {
        let g = self.geom;
        let all = 0..g.weights() as u32;
        let stream = Stream::new(6, Purpose::Mask, "kept");
        match self.mask {
            Mask::Dense => None,
            Mask::Part(p) => Some(all.filter(|&i| stream.uniform(i.into()) < p).collect()),
            Mask::One => Some(vec![g.weights() as u32 - 1]),
            Mask::Nothing => Some(vec![]),
            Mask::Blocks(rows, columns, p) => {
                let taps = g.r * g.s;
                let block = |i: u32| (i / (g.c * taps) / rows * 1000 + i / taps % g.c / columns) * 1000 + i % taps;
                Some(all.filter(|&i| stream.uniform(block(i).into()) < p).collect())
            }
        }
    }

    fn block(&self) -> Option<(u32, u32)> {
        if let Mask::Blocks(rows, columns, _) = self.mask { Some((rows, columns)) } else { None }
    }

    /// What the copies hold in pruned places: zeros in a run; NaN here where nobody may multiply by them.
    fn pruned(&self) -> f32 {
        let skipped = self.block().is_some_and(|(k, c)| k % 16 == 0 && c % 16 == 0);
        if skipped && self.precision != Precision::F32 { f32::NAN } else { 0.0 }
    }
}

/// What a pass needs of a case.
struct Setting<'a, D: Driver> {
    d: Device<'a, D>,
    case: &'a Case,
    conv: Conv,
    name: String,
}

impl<D: Driver> Setting<'_, D> {
    fn element(&self) -> Element {
        self.case.precision.element()
    }

    fn forward(&mut self, x: Operand, w: u64, mut want: Sums) {
        let (g, images, turn) = (self.case.geom, self.case.images, self.case.turn);
        let (bias, statistics, y_f32) = (turn % 2 == 1, turn / 2 % 3 > 0, turn / 6 % 4 == 3);
        let stored = if y_f32 { Element::F32 } else { self.element() };
        let (rows, cp) = ((images * g.p() * g.q()) as usize, padded(g.k) as usize);
        let mut a = conv::Forward { x, w, y_f32, ..conv::Forward::default() };
        if bias {
            // Far from zero: statistics that cancel would lose all digits.
            let bias: Vec<f32> = numbers("bias", g.k as usize).iter().map(|b| b * 64.0).collect();
            a.bias = self.d.floats(&bias);
            for (i, v) in want.v.iter_mut().enumerate() {
                *v += f64::from(bias[i % g.k as usize]);
                want.size[i] += f64::from(bias[i % g.k as usize].abs());
            }
        }
        let tiles = forward_tiles(&g, images) as usize;
        let (y, at) = self.d.poisoned(rows * cp * stored.bytes());
        a.y = at;
        let (partials, at) = self.d.poisoned(8 * tiles * cp);
        a.statistics = if statistics { at } else { 0 };
        // SAFETY: buffers of the stated sizes, used by nothing else.
        unsafe { conv::forward(self.d.0, &self.conv, images, &a) }.unwrap_or_else(|e| panic!("{}: {e}", self.name));
        self.d.0.synchronise().unwrap();

        let what = format!("{}: forward, bias {bias}, statistics {statistics}, f32 {y_f32}", self.name);
        let got = unpad(&decode(stored, &self.d.get(y, rows * cp * stored.bytes())), g.k, &what);
        let terms = (padded(g.c) * g.r * g.s) as usize + 1;
        compare(&what, &got, &want.v, |i| {
            let error = sum_error(terms, want.size[i]);
            error + store_error(stored, want.v[i].abs() + error)
        });
        if !statistics {
            return;
        }
        let partials = decode(Element::F32, &self.d.get(partials, 8 * tiles * cp));
        for tile in 0..tiles {
            let from = tile * BLOCK_ROWS as usize;
            let to = rows.min(from + BLOCK_ROWS as usize);
            for k in 0..cp {
                let value = |r: usize| if k < g.k as usize { got[r * g.k as usize + k] } else { 0.0 };
                let count = (to - from) as f64;
                let (mean, size) = (from..to).fold((0.0, 0.0), |(m, s), r| (m + value(r), s + value(r).abs()));
                let (mean, size) = (mean / count, size / count);
                let m2: f64 = (from..to).map(|r| (value(r) - mean).powi(2)).sum();
                let unit = 2f64.powi(-24);
                let error = 16.0 * unit * size;
                let want = [mean, m2];
                let got = [0, 1].map(|i| f64::from(partials[(tile * cp + k) * 2 + i]));
                let bounds =
                    [error, 32.0 * unit * m2 + count * error * error + 4.0 * unit * (m2 * count).sqrt() * size];
                compare(&format!("{what}: tile {tile}, channel {k}, (mean, M2)"), &got, &want, |i| bounds[i]);
            }
        }
    }

    fn data_gradient(&mut self, dy: Operand, wt: u64, mut want: Sums) {
        let (g, images, turn) = (self.case.geom, self.case.images, self.case.turn);
        let (accumulate, mask, reduces) = (turn % 2 == 1, turn / 2 % 4, turn / 8 % 3);
        let (e, rows, cp) = (self.element(), (images * g.h * g.w) as usize, padded(g.c) as usize);
        let tiles = data_tiles(&g, images) as usize;
        let mut finish = Finish { accumulate: accumulate.into(), has_mask: (mask > 0).into(), ..Finish::default() };
        let old = numbers("old", rows * g.c as usize);
        let (dx, at) =
            if accumulate { self.d.put(&encode(e, &pad(&old, g.c))) } else { self.d.poisoned(rows * cp * e.bytes()) };
        finish.dx = at;
        if accumulate {
            for (i, &old) in old.iter().enumerate() {
                want.v[i] += f64::from(old);
                want.size[i] += f64::from(old.abs());
            }
        }
        if mask > 0 {
            // Plain, of a norm, the same behind a ReLU.
            let (operand, open) = operand(&mut self.d, e, "mask", rows, g.c, [0, 1, 4][mask - 1]);
            finish.mask = operand;
            for (i, open) in open.iter().enumerate() {
                if *open <= 0.0 {
                    (want.v[i], want.size[i]) = (0.0, 0.0);
                }
            }
        }
        let norms: Vec<_> = (0..reduces)
            .map(|i| {
                let (x, mean) = (numbers(&format!("norm {i}"), rows * g.c as usize), numbers("mean", g.c as usize));
                let (partials, at) = self.d.poisoned(8 * tiles * cp);
                // The second place first: either may be used alone.
                finish.reduce[1 - i] = Reduce {
                    x: self.d.at(&encode(e, &pad(&x, g.c))),
                    mean: self.d.floats(&pad(&mean, g.c)),
                    partials: at,
                };
                (x, mean, partials)
            })
            .collect();
        // SAFETY: buffers of the stated sizes, used by nothing else.
        unsafe { conv::data_gradient(self.d.0, &self.conv, images, &conv::DataGradient { dy, wt, finish }) }
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        self.d.0.synchronise().unwrap();

        let what = format!("{}: data gradient, add {accumulate}, mask {mask}, sums {reduces}", self.name);
        let got = unpad(&decode(e, &self.d.get(dx, rows * cp * e.bytes())), g.c, &what);
        let terms = (padded(g.k) * g.r * g.s) as usize + 1;
        compare(&what, &got, &want.v, |i| {
            let error = sum_error(terms, want.size[i]);
            if want.size[i] == 0.0 { 0.0 } else { error + store_error(e, want.v[i].abs() + error) }
        });
        for (n, (x, mean, partials)) in norms.iter().enumerate() {
            let partials = decode(Element::F32, &self.d.get(*partials, 8 * tiles * cp));
            for (c, which) in (0..cp).flat_map(|c| [(c, 0), (c, 1)]) {
                let (mut want, mut size) = (0.0, 0.0);
                for r in (0..rows).filter(|_| c < g.c as usize) {
                    let at = r * g.c as usize + c;
                    let by = if which == 0 { 1.0 } else { f64::from(x[at]) - f64::from(mean[c]) };
                    want += got[at] * by;
                    size += (got[at] * by).abs();
                }
                let sum: f64 = (0..tiles).map(|t| f64::from(partials[(t * cp + c) * 2 + which])).sum();
                compare(&format!("{what}: norm {n}, channel {c}, sum {which}"), &[sum], &[want], |_| {
                    2f64.powi(-24) * 16.0 * size
                });
            }
        }
    }

    fn weight_gradient(&mut self, x: Operand, dy: Operand, want: Sums) {
        let (g, images) = (self.case.geom, self.case.images);
        let kept = self.case.kept().unwrap_or_else(|| (0..g.weights() as u32).collect());
        let (grads, at) = self.d.poisoned(4 * kept.len());
        let (_, scratch) = self.d.poisoned(self.conv.weight_scratch() as usize);
        let a = conv::WeightGradient { x, dy, grads: at, scratch };
        // SAFETY: buffers of the stated sizes, used by nothing else.
        unsafe { conv::weight_gradient(self.d.0, &self.conv, images, &a) }
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        self.d.0.synchronise().unwrap();
        let got: Vec<_> =
            decode(Element::F32, &self.d.get(grads, 4 * kept.len())).iter().map(|&v| f64::from(v)).collect();
        let pick = |v: &[f64]| -> Vec<f64> { kept.iter().map(|&i| v[i as usize]).collect() };
        let (want, size) = (pick(&want.v), pick(&want.size));
        let rows = (images * g.p() * g.q()) as usize;
        compare(&format!("{}: weight gradient", self.name), &got, &want, |i| sum_error(rows, size[i]));
    }

    fn bias_gradient(&mut self, dy: Operand, value: &[f32]) {
        let (g, images) = (self.case.geom, self.case.images);
        let (grads, at) = self.d.poisoned(4 * g.k as usize);
        let (_, scratch) = self.d.poisoned(self.conv.bias_scratch(images) as usize);
        // SAFETY: buffers of the stated sizes, used by nothing else.
        unsafe { conv::bias_gradient(self.d.0, &self.conv, images, &dy, at, scratch) }.unwrap();
        self.d.0.synchronise().unwrap();
        let got: Vec<_> =
            decode(Element::F32, &self.d.get(grads, 4 * g.k as usize)).iter().map(|&v| f64::from(v)).collect();
        let (mut want, mut size) = (vec![0.0; got.len()], vec![0.0; got.len()]);
        for (i, &v) in value.iter().enumerate() {
            want[i % g.k as usize] += f64::from(v);
            size[i % g.k as usize] += f64::from(v.abs());
        }
        let rows = value.len() / g.k as usize;
        compare(&format!("{}: bias gradient", self.name), &got, &want, |i| sum_error(rows, size[i]));
    }
}

fn check<D: Driver>(driver: &D, case: &Case) {
    let g = case.geom;
    let kept = case.kept();
    let mut conv = Conv::with_plan(g, case.precision, case.plan, kept.as_deref(), case.block()).unwrap();
    let (e, taps) = (case.precision.element(), g.r * g.s);
    let mut d = Device(driver, vec![]);
    conv.lists_at = d.at(bytemuck::cast_slice(&conv.lists.words));

    let mut w = vec![0.0; g.weights()];
    let values = numbers("w", g.weights());
    let kept = kept.unwrap_or_else(|| (0..g.weights() as u32).collect());
    kept.iter().for_each(|&i| w[i as usize] = values[i as usize]);
    let mut copied = vec![case.pruned(); g.weights()];
    kept.iter().for_each(|&i| copied[i as usize] = w[i as usize]);
    let at = |k: u32, c: u32, tap: u32| copied[((k * g.c + c) * taps + tap) as usize];
    let copy = |outer: u32, inner: u32, transposed: bool| -> Vec<f32> {
        let rows = (0..outer).flat_map(|o| (0..taps).map(move |tap| (o, tap)));
        rows.flat_map(|(o, tap)| (0..inner).map(move |i| if transposed { (i, o, tap) } else { (o, i, tap) }))
            .map(|(k, c, tap)| at(k, c, tap))
            .collect()
    };
    let w_at = d.at(&encode(e, &pad(&copy(g.k, g.c, false), g.c)));
    let wt_at = d.at(&encode(e, &pad(&copy(g.c, g.k, true), g.k)));
    let inner = (case.images * g.h * g.w) as usize;
    let outer = (case.images * g.p() * g.q()) as usize;
    let (x, x_value) = operand(&mut d, e, "x", inner, g.c, case.turn % 6);
    let (dy, dy_value) = operand(&mut d, e, "dy", outer, g.k, case.turn / 6 % 6);
    let round = |v: &[f32]| -> Vec<f64> { v.iter().map(|&v| rounded(case.precision, v)).collect() };
    let weights: Vec<f64> = w.iter().map(|&w| w.into()).collect();
    let [y, dx, dw] = convolve(&g, case.images as usize, &round(&x_value), &weights, &round(&dy_value));

    let name = format!("{}: {case:?}", driver.describe());
    let mut setting = Setting { d, case, conv, name };
    setting.forward(x, w_at, y);
    setting.data_gradient(dy, wt_at, dx);
    setting.weight_gradient(x, dy, dw);
    setting.bias_gradient(dy, &dy_value);
}

/// C, H, W, K, R, S, stride, padding, images, mask.
type Row = (u32, u32, u32, u32, u32, u32, u32, u32, u32, Mask);

/// All geometries; operands, epilogues, tiles and splits go on from case to case.
fn cases() -> Vec<Case> {
    use Mask::*;
    let rows: Vec<Row> = vec![
        (16, 8, 8, 16, 3, 3, 1, 1, 3, Dense),
        (5, 5, 7, 10, 3, 3, 1, 1, 3, Part(0.4)),
        (3, 8, 8, 17, 7, 7, 2, 3, 3, Part(0.5)),
        (17, 5, 7, 40, 3, 3, 2, 1, 3, Part(0.1)),
        (32, 8, 8, 16, 1, 1, 1, 0, 3, Part(0.2)),
        (64, 5, 7, 70, 1, 1, 2, 0, 3, Part(0.05)),
        (1, 8, 8, 1, 5, 5, 1, 2, 3, Dense),
        (3, 8, 5, 10, 2, 3, 1, 1, 1, Part(0.5)),
        (5, 7, 8, 16, 3, 2, 3, 0, 3, Dense),
        (16, 2, 2, 17, 3, 3, 1, 1, 1, Part(0.3)),
        (32, 1, 1, 10, 1, 1, 1, 0, 3, Dense),
        (17, 1, 1, 40, 1, 1, 1, 0, 3, Part(0.3)),
        (64, 1, 1, 16, 3, 3, 1, 1, 1, Part(0.2)),
        (3, 2, 2, 10, 3, 3, 5, 4, 3, Dense), // classes of pixels that have no tap, padding wider than the kernel
        (1, 13, 9, 10, 11, 1, 4, 2, 1, One),
        (16, 5, 7, 17, 3, 3, 1, 1, 3, Nothing),
        (16, 8, 8, 16, 3, 3, 1, 1, 3, One),
        (64, 4, 3, 70, 3, 3, 1, 1, 1, Part(0.02)),
        (32, 8, 8, 32, 3, 3, 1, 1, 1, Blocks(16, 16, 0.3)),
        (64, 5, 7, 64, 3, 3, 2, 1, 3, Blocks(32, 16, 0.3)),
        (16, 5, 7, 160, 1, 1, 1, 0, 3, Blocks(16, 16, 0.4)),
        (48, 3, 3, 144, 1, 1, 2, 0, 3, Blocks(16, 16, 0.0)),
        (80, 1, 1, 48, 1, 1, 1, 0, 3, Blocks(16, 16, 0.5)),
        (32, 4, 5, 32, 3, 3, 1, 1, 2, Blocks(8, 16, 0.3)), // no whole tiles: multiplied in full
        (34, 3, 64, 10, 3, 3, 1, 1, 1, Dense),             // the widest patch, in more than one chunk of channels
        (130, 3, 3, 136, 1, 1, 1, 0, 3, Part(0.3)),
        (5, 1, 1, 10_000, 1, 1, 1, 0, 3, Part(0.3)), // more channels than a plane may have rows
        (1, 65, 64, 1, 1, 1, 1, 0, 1, Dense),        // a bias gradient in more than one part
    ];
    let mut cases = vec![];
    for (row, (c, h, w, k, r, s, stride, pad, images, mask)) in rows.into_iter().enumerate() {
        let geom = ConvGeom { c, h, w, k, r, s, stride, pad };
        for (n, precision) in PRECISIONS.into_iter().enumerate() {
            let i = 4 * row + n;
            let blocks = matches!(mask, Mask::Blocks(..));
            let mut plan = ConvPlan::new(&geom, images, precision, blocks);
            if precision != Precision::F32 {
                let columns = |i: usize| if blocks { [32, 64, 128][i % 3] } else { [16, 32, 64, 128][i % 4] };
                plan.forward = Tile { columns: columns(row + n), ..plan.forward };
                plan.data = Tile { columns: columns(row / 4 + n + 1), ..plan.data };
                for tile in [&mut plan.forward, &mut plan.data] {
                    if (row + n) % 3 == 2 || Tile::patch_bytes(tile.columns, w) > 48 << 10 {
                        tile.kind = Kind::Gather;
                    }
                }
                plan.weight = WeightTile { tile: [16, 32, 64, 128][(row + n) % 4], splits: 1 };
            }
            plan.weight.splits = [1, 3, 7][row % 3];
            // 77 has no factor in common with the number of turns, so neighbours are as different as can be.
            cases.push(Case { geom, images, precision, mask: mask.clone(), plan, turn: i * 77 % TURNS });
        }
    }
    // One geometry with every turn, and every tile.
    let geom = ConvGeom { c: 17, h: 5, w: 6, k: 18, r: 3, s: 3, stride: 1, pad: 1 };
    for turn in 0..TURNS {
        let precision = PRECISIONS[turn % 4];
        let mut plan = ConvPlan::new(&geom, 5, precision, false);
        plan.weight.splits = 1 + turn as u32 % 2;
        if precision != Precision::F32 && turn / 4 % 2 == 1 {
            (plan.forward.kind, plan.data.kind) = (Kind::Gather, Kind::Gather);
        }
        cases.push(Case { geom, images: 5, precision, mask: Mask::Part(0.5), plan, turn });
    }
    cases
}

/// Least number that all the choices divide: 6 x 6 operands, 24 forward epilogues, 24 finishes.
const TURNS: usize = 72;

#[test]
fn emulated_ascending() {
    let driver = Emulated::new(Order::Ascending).unwrap();
    cases().iter().for_each(|case| check(&driver, case));
}

#[test]
fn emulated_descending() {
    let driver = Emulated::new(Order::Descending).unwrap();
    cases().iter().for_each(|case| check(&driver, case));
}

#[test]
fn on_a_real_gpu() {
    match gpu::probe() {
        Ok(_) => {
            let driver = gpu::cuda::Cuda::open().unwrap();
            cases().iter().for_each(|case| check(&driver, case));
        }
        Err(why) => drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {why}\n"))),
    }
}
