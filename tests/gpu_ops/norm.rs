//! Kernels of batch norm against f64: statistics, their merge, running statistics, the merge of a gradient's sums.

use super::held::{ELEMENTS, EPS, Held, close, normal, pad, padded, stored, tensor};
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::norm::{
    NormCoefs, NormEntry, NormSums, STATE_ROWS, norm_coefs, norm_running, norm_running_update, norm_stats, norm_sums,
};
use sparse_engine::backend::gpu::ops::operand::Element;
use sparse_engine::backend::gpu::ops::state::StepState;

on_every_device!(statistics, far_from_zero, merge, thousands_of_blocks, sums, running);

const F32: Element = Element::F32;
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (2, 3), (127, 5), (128, 17), (129, 16), (1000, 3), (130, 24), (9, 64), (130, 264)];

/// Mean and sum of squared deviations.
fn moments(x: impl Iterator<Item = f64> + Clone) -> (f64, f64, f64) {
    let n = x.clone().count() as f64;
    let mean = x.clone().sum::<f64>() / n;
    (n, mean, x.map(|v| (v - mean).powi(2)).sum())
}

/// Blocks' means and M2, `[blocks][cp][2]`.
fn statistics<D: Driver>(driver: &D) {
    for (rows, c) in SHAPES {
        for element in ELEMENTS {
            check_statistics(driver, element, &tensor(element, "x", rows, c), c, 1.0);
        }
    }
}

/// A tenth beside 300, and a first row that is an outlier: differences from it must not cost the others' digits.
fn far_from_zero<D: Driver>(driver: &D) {
    for (rows, c) in [(2, 3), (128, 17), (1000, 5), (129, 64)] {
        for element in ELEMENTS {
            let mut x: Vec<f64> = normal("x", rows * c).iter().map(|v| 300.0 + 0.1 * v).collect();
            check_statistics(driver, element, &pad(&stored(element, &x), c), c, 0.1);
            x[..c].fill(-500.0);
            check_statistics(driver, element, &pad(&stored(element, &x), c), c, 800.0);
            // Equal values have no variance at all.
            check_statistics(driver, element, &pad(&vec![300.0; rows * c], c), c, 0.0);
        }
    }
}

/// `spread`: the size of deviations, which errors of the sums scale with.
fn check_statistics<D: Driver>(driver: &D, element: Element, x: &[f64], c: usize, spread: f64) {
    let cp = padded(c);
    let rows = x.len() / cp;
    let blocks = rows.div_ceil(128);
    let (input, partials) = (Held::numbers(driver, element, x), Held::poisoned(driver, 8 * blocks * cp));
    // SAFETY: buffers of exactly these sizes.
    unsafe { norm_stats(driver, element, input.at(), partials.at(), rows as u64, cp as u32) }.unwrap();
    let (mut want, mut bound) = (vec![], vec![]);
    for block in x.chunks(128 * cp) {
        for ch in 0..cp {
            let (n, mean, m2) = moments(block.iter().copied().skip(ch).step_by(cp));
            want.extend([mean, m2]);
            // A mean is rounded once where it is large; what is added up are deviations, at most 16 a thread and 7 levels.
            let deviation = 10.0 * EPS * (m2 / n).sqrt().max(spread * f64::from(n > 1.0 && m2 > 0.0));
            bound.extend([EPS * mean.abs() + deviation, 50.0 * EPS * m2]);
        }
    }
    close(&format!("norm_stats {element:?} {rows} rows, c {c}"), &partials.f64s(F32), &want, &bound);
}

/// Rows 0 to 4 of the state from the statistics of whole tensors.
fn merge<D: Driver>(driver: &D) {
    for (rows, c) in SHAPES {
        for (offset, spread) in [(0.0, 1.0), (300.0, 0.1)] {
            let x: Vec<f64> = normal("x", rows * c).iter().map(|v| offset + spread * v).collect();
            let x = pad(&stored(F32, &x), c);
            let cp = padded(c);
            let input = Held::numbers(driver, F32, &x);
            let partials = Held::poisoned(driver, 8 * rows.div_ceil(128) * cp);
            // SAFETY: buffers of exactly these sizes.
            unsafe { norm_stats(driver, F32, input.at(), partials.at(), rows as u64, cp as u32) }.unwrap();
            let want: Vec<_> = (0..c).map(|ch| moments(x.iter().copied().skip(ch).step_by(cp))).collect();
            check_merge(driver, &partials, rows, c, &want, EPS);
        }
    }
}

/// More blocks than lanes, with a ragged last one; the statistics are made up.
fn thousands_of_blocks<D: Driver>(driver: &D) {
    for (blocks, c, last) in [(7, 3, 1), (9, 8, 128), (255, 5, 128), (257, 9, 3), (5000, 3, 127)] {
        let (cp, rows) = (padded(c), 128 * (blocks - 1) + last);
        let numbers = stored(F32, &normal("blocks", 2 * blocks * c));
        let mut partials = vec![f64::NAN; 2 * blocks * cp]; // padding is not to be read into a result
        let mut want = vec![];
        for ch in 0..c {
            let at = |b: usize| (300.0 + f64::from(numbers[b * c + ch] as f32), numbers[(blocks + b) * c + ch].abs());
            let at = |b: usize| (f64::from(at(b).0 as f32), at(b).1);
            let n = |b: usize| if b + 1 < blocks { 128.0 } else { last as f64 };
            let mean = (0..blocks).map(|b| n(b) * at(b).0).sum::<f64>() / rows as f64;
            let m2 = (0..blocks).map(|b| at(b).1 + n(b) * (at(b).0 - mean).powi(2)).sum::<f64>();
            want.push((rows as f64, mean, m2));
            for b in 0..blocks {
                partials[2 * (b * cp + ch)] = at(b).0;
                partials[2 * (b * cp + ch) + 1] = at(b).1;
            }
        }
        check_merge(driver, &Held::numbers(driver, F32, &partials), rows, c, &want, 0.0);
    }
}

const NORM_EPS: f64 = 1e-5;

/// `want`: count, mean and M2 a channel, which the partials give but for relative errors `lost` of means and M2.
fn check_merge<D: Driver>(driver: &D, partials: &Held<D>, rows: usize, c: usize, want: &[(f64, f64, f64)], lost: f64) {
    let cp = padded(c);
    let [gamma, beta] = ["gamma", "beta"].map(|name| stored(F32, &normal(name, c)));
    let [g, b] = [&gamma, &beta].map(|v| Held::numbers(driver, F32, v));
    let state = Held::room(driver, F32, STATE_ROWS as usize * cp);
    let args = NormCoefs {
        partials: partials.at(),
        rows: rows as u64,
        gamma: g.at(),
        beta: b.at(),
        state: state.at(),
        eps: NORM_EPS,
        c: c as u32,
        cp: cp as u32,
    };
    // SAFETY: buffers of exactly these sizes.
    unsafe { norm_coefs(driver, &args) }.unwrap();
    let got = state.f64s(F32);
    assert!(got[5 * cp..].iter().all(|v| v.is_nan()), "only five rows are its own");
    for ch in 0..cp {
        let got: Vec<f64> = (0..5).map(|row| got[row * cp + ch]).collect();
        if ch >= c {
            assert_eq!(got, [0.0; 5], "padding");
            continue;
        }
        let (n, mean, m2) = want[ch];
        let (var, rstd) = (m2 / n, 1.0 / (m2 / n + NORM_EPS).sqrt());
        let scale = gamma[ch] * rstd;
        // A rounding of a block's mean moves its distance from the others'; M2 has seen a few.
        let mean_error = EPS * mean.abs() + lost * 20.0 * var.sqrt();
        let var_error = lost * (60.0 * var + (mean.abs() + 20.0 * var.sqrt()) * var.sqrt() + EPS * mean * mean);
        let rstd_error = EPS * rstd + 0.5 * rstd.powi(3) * var_error;
        let scale_error = gamma[ch].abs() * rstd_error + EPS * scale.abs();
        let unbiased = m2 / (n - 1.0).max(1.0);
        close(
            &format!("norm_coefs {rows} rows, channel {ch} of {c}"),
            &got,
            &[scale, beta[ch] - mean * scale, mean, rstd, unbiased],
            &[
                scale_error,
                // The shift belongs to the scale that was stored.
                EPS * (beta[ch].abs() + (mean * scale).abs()) + mean.abs() * scale_error + scale.abs() * mean_error,
                mean_error + EPS * mean.abs(),
                rstd_error,
                2.0 * var_error + EPS * unbiased,
            ],
        );
        // Whatever the scale's rounding, the mean comes out as beta.
        let middle = got[0] * mean + got[1];
        let error = EPS * (beta[ch].abs() + (mean * scale).abs()) + scale.abs() * mean_error;
        close("the mean normalised", &[middle], &[beta[ch]], &[error]);
    }
}

/// Gradients of gamma and beta, and k0, k1, k2.
fn sums<D: Driver>(driver: &D) {
    for (blocks, c) in [(1, 1), (2, 3), (8, 17), (9, 16), (300, 5), (5000, 3)] {
        let (cp, rows) = (padded(c), 100 * blocks);
        let partials = tensor(F32, "sums", 2 * blocks, c);
        // From [2][blocks][cp] to pairs.
        let pairs: Vec<f64> = (0..blocks * cp).flat_map(|i| [partials[i], 100.0 + partials[blocks * cp + i]]).collect();
        let pairs = stored(F32, &pairs);
        let gamma = stored(F32, &normal("gamma", c));
        let [mean, rstd] = [("mean", 3.0), ("rstd", 1.0)].map(|(name, by)| {
            let v: Vec<f64> = normal(name, c).iter().map(|v| by * v.abs() + 0.1).collect();
            pad(&stored(F32, &v), c)
        });
        // Statistics of a batch have a variance; running ones -1 in its place, and keep the gradient's coefficients.
        for variance in [f64::NAN, 0.0, -1.0] {
            let mut state = vec![f64::NAN; 8 * cp];
            state[2 * cp..3 * cp].copy_from_slice(&mean);
            state[3 * cp..4 * cp].copy_from_slice(&rstd);
            state[4 * cp..5 * cp].fill(variance);
            state[5 * cp..].fill(7.0);
            let frozen = variance < 0.0;
            let held = [&pairs, &gamma, &state].map(|v| Held::numbers(driver, F32, v));
            let grads = [(); 2].map(|()| Held::room(driver, F32, c));
            let args = NormSums {
                partials: held[0].at(),
                blocks: blocks as u64,
                rows: rows as u64,
                gamma: held[1].at(),
                dgamma: grads[0].at(),
                dbeta: grads[1].at(),
                state: held[2].at(),
                c: c as u32,
                cp: cp as u32,
            };
            // SAFETY: buffers of exactly these sizes.
            unsafe { norm_sums(driver, &args) }.unwrap();
            let (dgamma, dbeta, got) = (grads[0].f64s(F32), grads[1].f64s(F32), held[2].f64s(F32));
            assert!(got[..2 * cp].iter().all(|v| v.is_nan()), "other rows stay");
            for ch in 0..cp {
                let k: Vec<f64> = (5..8).map(|row| got[row * cp + ch]).collect();
                if ch >= c {
                    assert_eq!(k, [0.0; 3], "padding");
                    continue;
                }
                assert!(got[4 * cp + ch] == variance || variance.is_nan(), "the variance is only read");
                let s: Vec<f64> = (0..2).map(|i| (0..blocks).map(|b| pairs[2 * (b * cp + ch) + i]).sum()).collect();
                let size = (0..blocks).map(|b| pairs[2 * (b * cp + ch)].abs()).sum::<f64>() * 1e-10;
                let (m, r, n) = (mean[ch], rstd[ch], rows as f64);
                let k0 = gamma[ch] * r;
                let k1 = -k0 * r * r * s[1] / n;
                let mut want = [s[0], s[1] * r, k0, k1, -k0 * s[0] / n - m * k1];
                if frozen {
                    want[2..].fill(7.0);
                }
                // Sums are exact to double; a result is rounded once, k1 once more in k2.
                let bound = [0, 1, 2, 3, 4].map(|i| match i {
                    0 => EPS * s[0].abs() + size,
                    4 => EPS * ((k0 * s[0] / n).abs() + 2.0 * (m * k1).abs()),
                    i => EPS * want[i].abs(),
                });
                close(
                    &format!("norm_sums {blocks} blocks, channel {ch} of {c}"),
                    &[dbeta[ch], dgamma[ch], k[0], k[1], k[2]],
                    &want,
                    &bound,
                );
            }
        }
    }
}

/// Both kernels over a table of norms of several widths.
fn running<D: Driver>(driver: &D) {
    let widths = [1usize, 17, 3, 300, 8];
    let held: Vec<_> = widths
        .iter()
        .map(|&c| {
            let state = tensor(F32, &format!("state {c}"), 8, c);
            let mut running = stored(F32, &normal(&format!("running {c}"), 2 * c));
            running[c..].iter_mut().for_each(|v| *v = v.abs());
            let [gamma, beta] = ["gamma", "beta"].map(|name| stored(F32, &normal(name, c)));
            [state, running, gamma, beta].map(|v| (Held::numbers(driver, F32, &v), v))
        })
        .collect();
    let entries: Vec<NormEntry> = widths
        .iter()
        .zip(&held)
        .map(|(&c, h)| {
            let [state, running, gamma, beta] = h.each_ref().map(|h| h.0.at());
            let momentum = 0.1 + 0.01 * c as f64;
            NormEntry { state, running, gamma, beta, eps: 1e-3, momentum, c: c as u32, cp: padded(c) as u32 }
        })
        .collect();
    let table = Held::of(driver, &entries);
    let mut steps = Held::of(driver, &[StepState { broken: 3, ..StepState::default() }]);
    let (norms, widest) = (widths.len() as u32, 304);
    let update = |steps: u64| {
        // SAFETY: the table names buffers of the sizes it says.
        unsafe { norm_running_update(driver, table.at(), norms, widest, steps) }.unwrap();
    };
    update(steps.at());
    let mut want: Vec<Vec<f64>> = held.iter().map(|h| h[1].1.clone()).collect();
    for (h, w) in held.iter().zip(&want) {
        assert_eq!(h[1].0.f64s(F32), *w, "nothing moves after a broken step");
    }
    steps.put(&[StepState { hold: 1, step: 7, ..StepState::default() }]);
    for address in [0, steps.at()] {
        update(address);
        for (i, &c) in widths.iter().enumerate() {
            let (h, cp) = (&held[i], padded(c));
            let before = want[i].clone();
            for (j, old) in want[i].iter_mut().enumerate() {
                let new = h[0].1[if j < c { 2 * cp + j } else { 4 * cp + j - c }];
                *old += entries[i].momentum * (new - *old);
            }
            let bound: Vec<f64> = before.iter().map(|v| EPS * (v.abs() + 3.0)).collect();
            close("running statistics", &h[1].0.f64s(F32), &want[i], &bound);
            want[i] = h[1].0.f64s(F32);
            assert_eq!(h[0].0.f64s(F32), h[0].1, "the state is only read");
        }
    }
    // Variances are positive for what follows.
    let mut held = held;
    for (h, w) in held.iter_mut().zip(&mut want) {
        let c = w.len() / 2;
        w[c..].iter_mut().for_each(|v| *v = v.abs() + 0.01);
        *w = stored(F32, w);
        h[1].0.put(&w.iter().map(|v| *v as f32).collect::<Vec<_>>());
    }
    // SAFETY: as above.
    unsafe { norm_running(driver, table.at(), norms, widest) }.unwrap();
    for (i, &c) in widths.iter().enumerate() {
        let (h, cp) = (&held[i], padded(c));
        let got = h[0].0.f64s(F32);
        for ch in 0..cp {
            let row = |row: usize| got[row * cp + ch];
            if ch >= c {
                assert!((0..8).all(|r| row(r) == 0.0), "padding");
                continue;
            }
            assert_eq!([2, 4, 5, 6, 7].map(row), [want[i][ch], -1.0, row(0), 0.0, 0.0], "mean, no variance, k0 to k2");
            let rstd = 1.0 / (want[i][c + ch] + 1e-3).sqrt();
            close("1/sqrt", &[row(3)], &[rstd], &[EPS * rstd]);
            let got = [row(0), row(1)];
            let scale = h[2].1[ch] * rstd;
            let (beta, mean) = (h[3].1[ch], want[i][ch]);
            let bound = [EPS * scale.abs(), EPS * (beta.abs() + 2.0 * (mean * scale).abs())];
            close(&format!("norm_running, channel {ch} of {c}"), &got, &[scale, beta - mean * scale], &bound);
        }
    }
}
