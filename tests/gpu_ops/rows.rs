//! Kernels over rows, join and copy, against f64.

use super::finish::{Dst, Wanted};
use super::held::{ELEMENTS, EPS, Held, close, padded, store_error};
use super::operand::{KINDS, Op};
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::copy::copy_backward;
use sparse_engine::backend::gpu::ops::join::{Join, join_forward};
use sparse_engine::backend::gpu::ops::operand::{Element, Operand};

on_every_device!(join, copy, empty);

/// Rows and channels; 264 channels are two tiles, the last not full.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (2, 3), (127, 5), (128, 17), (129, 16), (1000, 3), (130, 24), (9, 64), (130, 264)];

fn join<D: Driver>(driver: &D) {
    for (s, shape) in SHAPES.into_iter().enumerate() {
        for element in ELEMENTS {
            for (i, a) in KINDS.into_iter().enumerate() {
                // Each kind beside each other one, spread over the shapes, and none.
                for b in [None, Some(KINDS[(i + s) % 6])] {
                    for (relu, wide) in [(false, false), (true, false), (i % 2 == 0, true)] {
                        join_case(driver, [element, if wide { Element::F32 } else { element }], shape, a, b, relu);
                    }
                }
            }
        }
    }
}

fn join_case<D: Driver>(
    driver: &D,
    [element, written]: [Element; 2],
    shape: (usize, usize),
    a: (u32, bool),
    b: Option<(u32, bool)>,
    relu: bool,
) {
    let (rows, c) = shape;
    let a = Op::new(driver, element, "a", shape, a);
    let b = b.map(|kind| Op::new(driver, element, "b", shape, kind));
    let y = Held::room(driver, written, rows * padded(c));
    let args = Join {
        a: a.operand(),
        b: b.as_ref().map_or(Operand::default(), Op::operand),
        y: y.at(),
        rows: rows as u64,
        cp: padded(c) as u32,
        relu: u32::from(relu),
    };
    // SAFETY: buffers of exactly these sizes.
    unsafe { join_forward(driver, element, written == Element::F32, &args) }.unwrap();
    let (mut want, mut bound) = a.values();
    if let Some(b) = b {
        let (values, errors) = b.values();
        for (i, (v, e)) in values.into_iter().zip(errors).enumerate() {
            bound[i] += e + EPS * (want[i].abs() + v.abs());
            want[i] += v;
        }
    }
    for (w, e) in want.iter_mut().zip(&mut bound) {
        *w = if relu { w.max(0.0) } else { *w };
        if *w != 0.0 || *e > 0.0 {
            *e += store_error(written, *w);
        }
    }
    close(&format!("join {element:?} {args:?}"), &y.f64s(written), &want, &bound);
}

fn copy<D: Driver>(driver: &D) {
    for (s, shape) in SHAPES.into_iter().enumerate() {
        let (rows, c) = shape;
        for element in ELEMENTS {
            for (i, wanted) in Wanted::all().into_iter().enumerate() {
                let dy = Op::new(driver, element, "dy", shape, KINDS[(i + s) % 6]);
                let dst = Dst::new(driver, element, shape, rows.div_ceil(128), wanted);
                // SAFETY: buffers of exactly these sizes.
                unsafe { copy_backward(driver, element, dy.operand(), dst.finish(), rows as u64, padded(c) as u32) }
                    .unwrap();
                let (g, error) = dy.values();
                dst.check("copy", &g, &error, |row| row / 128);
            }
        }
    }
}

/// NaN passes ReLU and sums, and no rows are no launch.
fn empty<D: Driver>(driver: &D) {
    let mut a = vec![0.5; 3 * 8];
    a[9] = f64::NAN;
    for element in ELEMENTS {
        let op = Op::with(driver, element, "nan", a.clone(), 8, (Operand::PLAIN, true));
        let y = Held::room(driver, element, 24);
        let mut args = Join { a: op.operand(), y: y.at(), rows: 0, cp: 8, relu: 1, ..Join::default() };
        // SAFETY: buffers of 3 rows.
        unsafe { join_forward(driver, element, false, &args) }.unwrap();
        assert!(y.f64s(element).iter().all(|v| v.is_nan()), "nothing to write");
        args.rows = 3;
        // SAFETY: as above.
        unsafe { join_forward(driver, element, false, &args) }.unwrap();
        close("NaN", &y.f64s(element), &a, &[0.0; 24]);
        args.cp = 12;
        // SAFETY: as above; it must be refused.
        assert!(unsafe { join_forward(driver, element, false, &args) }.is_err());
    }
}
