//! Mean and maximum pooling kernels against f64.

use super::finish::{Dst, Wanted};
use super::held::{ELEMENTS, EPS, Held, close, padded, store_error, tensor};
use super::operand::{KINDS, Op};
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::maxpool::{MaxPool, max_pool_backward, max_pool_forward};
use sparse_engine::backend::gpu::ops::operand::{Element, Finish, Operand};
use sparse_engine::backend::gpu::ops::pool::{pool_backward, pool_forward};

on_every_device!(mean_forward, mean_backward, max_forward, max_backward, ties_and_nan, what_does_not_fit);

/// Images, pixels, channels.
const MEANS: [(usize, usize, usize); 7] =
    [(1, 1, 1), (2, 64, 3), (5, 49, 17), (3, 16, 64), (2, 300, 5), (130, 1, 24), (2, 9, 264)];

fn mean_forward<D: Driver>(driver: &D) {
    for (n, pixels, c) in MEANS {
        for element in ELEMENTS {
            for kind in KINDS {
                let (x, cp) = (Op::new(driver, element, "x", (n * pixels, c), kind), padded(c));
                let y = Held::room(driver, element, n * cp);
                // SAFETY: buffers of exactly these sizes.
                unsafe {
                    pool_forward(driver, element, x.operand(), y.at(), n as u64, pixels as u32, cp as u32).unwrap()
                };
                let (values, errors) = x.values();
                let (mut want, mut bound) = (vec![0.0; n * cp], vec![0.0; n * cp]);
                for (i, (v, e)) in values.iter().zip(errors).enumerate() {
                    let at = i / cp / pixels * cp + i % cp;
                    want[at] += v / pixels as f64;
                    // At most 128 lanes: rows of a lane, levels of the tree, the division.
                    bound[at] += (e + v.abs() * EPS * (pixels.div_ceil(8) + 9) as f64 / 2.0) / pixels as f64;
                }
                let bound: Vec<f64> = bound.iter().zip(&want).map(|(b, w)| b + store_error(element, *w)).collect();
                close(
                    &format!("pool_forward {n} x {pixels} x {c}, {kind:?}, {element:?}"),
                    &y.f64s(element),
                    &want,
                    &bound,
                );
            }
        }
    }
}

fn mean_backward<D: Driver>(driver: &D) {
    for (s, (n, pixels, c)) in MEANS.into_iter().enumerate() {
        for element in ELEMENTS {
            for (i, wanted) in Wanted::all().into_iter().enumerate() {
                let (cp, rows) = (padded(c), n * pixels);
                let dy = Op::new(driver, element, "dy", (n, c), KINDS[(i + s) % 6]);
                let dst = Dst::new(driver, element, (rows, c), rows.div_ceil(128), wanted);
                // SAFETY: buffers of exactly these sizes.
                unsafe {
                    pool_backward(driver, element, dy.operand(), dst.finish(), n as u64, pixels as u32, cp as u32)
                        .unwrap()
                };
                let all = (0..rows * cp).map(|i| dy.value(i / cp / pixels, i % cp));
                let (g, error): (Vec<f64>, Vec<f64>) =
                    all.map(|(v, e)| (v / pixels as f64, (e + EPS * v.abs()) / pixels as f64)).unzip();
                dst.check("pool_backward", &g, &error, |row| row / 128);
            }
        }
    }
}

/// Geometry, images and channels: overlap, gaps, padding, tiles of the backward pass that are cut, a window as large as the
/// image, several channel tiles.
fn pools() -> Vec<(MaxPool, usize)> {
    let of =
        |n, (h, w), (size, stride, pad), c: usize| (MaxPool { n, h, w, size, stride, pad, cp: padded(c) as u32 }, c);
    vec![
        of(2, (12, 17), (3, 2, 1), 3),
        of(1, (1, 1), (1, 1, 0), 1),
        of(3, (8, 16), (2, 2, 0), 5),
        of(2, (5, 4), (3, 1, 1), 17),
        of(1, (11, 33), (2, 3, 1), 8),
        of(2, (9, 7), (5, 3, 4), 3),
        of(1, (7, 7), (7, 1, 0), 24),
        of(1, (9, 18), (3, 2, 1), 72),
    ]
}

/// The cells of a window, in row order.
fn cells(pool: &MaxPool, image: usize, p: usize, q: usize) -> Vec<usize> {
    let [h, w, size, stride, pad] = [pool.h, pool.w, pool.size, pool.stride, pool.pad].map(|v| v as isize);
    let mut rows = vec![];
    for y in p as isize * stride - pad..p as isize * stride - pad + size {
        for x in q as isize * stride - pad..q as isize * stride - pad + size {
            if (0..h).contains(&y) && (0..w).contains(&x) {
                rows.push((image as isize * h * w + y * w + x) as usize);
            }
        }
    }
    rows
}

/// All windows with their cells.
fn windows(pool: &MaxPool) -> Vec<Vec<usize>> {
    let [p, q] = pool.output().map(|v| v as usize);
    (0..pool.n as usize * p * q).map(|i| cells(pool, i / (p * q), i / q % p, i % q)).collect()
}

fn max_forward<D: Driver>(driver: &D) {
    for (pool, c) in pools() {
        let (rows, cp) = ((pool.n * pool.h * pool.w) as usize, padded(c));
        for element in ELEMENTS {
            for kind in KINDS {
                let x = Op::new(driver, element, "x", (rows, c), kind);
                let windows = windows(&pool);
                let y = Held::room(driver, element, windows.len() * cp);
                // SAFETY: buffers of exactly these sizes.
                unsafe { max_pool_forward(driver, element, x.operand(), y.at(), &pool) }.unwrap();
                let (mut want, mut bound) = (vec![], vec![]);
                for cells in &windows {
                    for ch in 0..cp {
                        let values = cells.iter().map(|&row| x.value(row, ch));
                        let (v, e) = values.fold((f64::MIN, 0.0), |(v, e): (f64, f64), c| (v.max(c.0), e.max(c.1)));
                        want.push(v);
                        bound.push(if e == 0.0 { 0.0 } else { e + store_error(element, v) });
                    }
                }
                close(&format!("max_pool_forward {pool:?}, {kind:?}, {element:?}"), &y.f64s(element), &want, &bound);
            }
        }
    }
}

/// The winner of a window and channel, and cells so near to it that rounding may choose them.
fn winner<D: Driver>(x: &Op<D>, cells: &[usize], ch: usize) -> (usize, Vec<usize>) {
    let value = |row: usize| x.value(row, ch);
    let mut best = cells[0];
    for &row in &cells[1..] {
        let (v, b) = (value(row).0, value(best).0);
        if v > b || (v.is_nan() && !b.is_nan()) {
            best = row;
        }
    }
    let (b, e) = value(best);
    // Zeros of a ReLU and results of equal numbers are equal; others are unsure within their bounds.
    let near = |row: &usize| b != value(*row).0 && (b - value(*row).0).abs() <= e + value(*row).1;
    (best, cells.iter().copied().filter(near).collect())
}

fn max_backward<D: Driver>(driver: &D) {
    for (s, (pool, c)) in pools().into_iter().enumerate() {
        let (rows, cp) = ((pool.n * pool.h * pool.w) as usize, padded(c));
        let windows = windows(&pool);
        for element in ELEMENTS {
            for (i, wanted) in Wanted::all().into_iter().enumerate() {
                let x = Op::new(driver, element, "x", (rows, c), KINDS[(i + s) % 6]);
                let dy = Op::new(driver, element, "dy", (windows.len(), c), KINDS[(i / 2 + s) % 6]);
                let dst = Dst::new(driver, element, (rows, c), pool.blocks() as usize, wanted);
                // SAFETY: buffers of exactly these sizes.
                unsafe { max_pool_backward(driver, element, x.operand(), dy.operand(), dst.finish(), &pool) }.unwrap();
                let (mut g, mut error, mut size) = (vec![0.0; rows * cp], vec![0.0; rows * cp], vec![0.0; rows * cp]);
                let mut unsure = 0;
                for (at, cells) in windows.iter().enumerate() {
                    for ch in 0..cp {
                        let (best, near) = winner(&x, cells, ch);
                        let (v, e) = dy.value(at, ch);
                        for row in near.iter().chain(near.first().map(|_| &best)) {
                            error[row * cp + ch] += v.abs() + e;
                            unsure += 1;
                        }
                        g[best * cp + ch] += v;
                        size[best * cp + ch] += v.abs();
                        // Each addition rounds once, at most size^2 of them.
                        error[best * cp + ch] += e + EPS / 2.0 * size[best * cp + ch];
                    }
                }
                assert!(unsure <= 4, "the data decides: {pool:?} {element:?}");
                let [h, w] = [pool.h, pool.w].map(|v| v as usize);
                let block = |row: usize| {
                    let (y, x) = (row / w % h, row % w);
                    (row / (h * w) * h.div_ceil(8) + y / 8) * w.div_ceil(16) + x / 16
                };
                dst.check(&format!("max_pool_backward {pool:?}"), &g, &error, block);
            }
        }
    }
}

/// Among equals the first wins, before all the first NaN; with a ReLU many are equal.
fn ties_and_nan<D: Driver>(driver: &D) {
    for (pool, c) in pools() {
        let (rows, cp) = ((pool.n * pool.h * pool.w) as usize, padded(c));
        for (element, relu) in ELEMENTS.into_iter().flat_map(|e| [(e, false), (e, true)]) {
            let coarse = tensor(element, "x", rows, c);
            let value = |(i, v): (usize, &f64)| {
                let nan = i % cp < c && (i / cp).is_multiple_of(5) && (i % cp).is_multiple_of(3);
                if nan { f64::NAN } else { v.round() } // -2 to 2: ties everywhere, both zeros
            };
            let data: Vec<f64> = coarse.iter().enumerate().map(value).collect();
            let x = Op::with(driver, element, "x", data.clone(), c, (Operand::PLAIN, relu));
            let windows = windows(&pool);
            let (y, dx) = (Held::room(driver, element, windows.len() * cp), Held::room(driver, element, rows * cp));
            // Small whole numbers: sums are exact.
            let ones: Vec<f64> =
                (0..windows.len() * cp).map(|i| if i % cp < c { (i % 3) as f64 + 1.0 } else { 0.0 }).collect();
            let dy = Op::with(driver, element, "dy", ones.clone(), c, (Operand::PLAIN, false));
            let finish = Finish { dx: dx.at(), ..Finish::default() };
            // SAFETY: buffers of exactly these sizes.
            unsafe {
                max_pool_forward(driver, element, x.operand(), y.at(), &pool).unwrap();
                max_pool_backward(driver, element, x.operand(), dy.operand(), finish, &pool).unwrap();
            }
            let (mut top, mut g) = (vec![], vec![0.0; rows * cp]);
            for (at, cells) in windows.iter().enumerate() {
                for ch in 0..cp {
                    let v = |row: usize| if relu && data[row * cp + ch] < 0.0 { 0.0 } else { data[row * cp + ch] };
                    let nan = cells.iter().copied().find(|&row| v(row).is_nan());
                    let most = cells.iter().map(|&row| v(row)).fold(f64::MIN, f64::max);
                    let won = nan.unwrap_or_else(|| cells.iter().copied().find(|&row| v(row) == most).unwrap());
                    top.push(v(won));
                    g[won * cp + ch] += ones[at * cp + ch];
                }
            }
            let what = format!("{pool:?} {element:?} relu {relu}");
            close(&format!("forward {what}"), &y.f64s(element), &top, &vec![0.0; top.len()]);
            close(&format!("backward {what}"), &dx.f64s(element), &g, &vec![0.0; g.len()]);
        }
    }
}

fn what_does_not_fit<D: Driver>(driver: &D) {
    let good = MaxPool { n: 0, h: 9, w: 9, size: 3, stride: 2, pad: 1, cp: 8 };
    let launch = |pool: MaxPool| {
        let (x, finish) = (Operand::default(), Finish::default());
        // SAFETY: no images, or refused: nothing is launched.
        unsafe {
            max_pool_forward(driver, Element::F32, x, 0, &pool).and(max_pool_backward(
                driver,
                Element::F32,
                x,
                x,
                finish,
                &pool,
            ))
        }
    };
    launch(good).unwrap();
    for bad in [
        MaxPool { size: 0, pad: 0, ..good },
        MaxPool { size: 256, h: 300, w: 300, ..good },
        MaxPool { stride: 0, ..good },
        MaxPool { pad: 3, ..good },
        MaxPool { size: 12, ..good },
        MaxPool { h: 0, ..good },
        MaxPool { size: 100, stride: 1, pad: 0, h: 300, w: 300, ..good }, // winners beyond shared memory
    ] {
        assert!(!launch(bad).unwrap_err().to_string().contains('\n'), "{bad:?}");
    }
    // SAFETY: refused.
    assert!(unsafe { pool_forward(driver, Element::F32, Operand::default(), 0, 1, 0, 8) }.is_err());
}
