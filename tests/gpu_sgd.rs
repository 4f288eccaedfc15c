//! The SGD kernel against the documented order of f32 operations, byte for byte, and against f64. One test body, on
//! the emulated device in both fibre orders and on a real GPU where there is one.

use sparse_engine::backend::SgdStep;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{self, Driver, ops::sgd::sgd_step};

/// Numbers that expose rounding, contraction and flushing of subnormals: mixed magnitudes, zeros, subnormals.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..n)
        .map(|i| match i % 97 {
            5 => 0.0,
            6 => -0.0,
            7 => f32::from_bits((next() % 5000) as u32), // subnormal
            8 => (next() as i32 as f32) * 1e20,
            _ => (next() as i32 as f32) * 2f32.powi(-31 - (next() % 12) as i32),
        })
        .collect()
}

/// The documented order, each operation rounded (Rust never contracts).
fn reference_f32(v: &mut [f32], g: &[f32], m: &mut [f32], s: SgdStep) {
    let (lr, mu, wd) = (s.lr as f32, s.momentum as f32, s.weight_decay as f32);
    for ((v, g), m) in v.iter_mut().zip(g).zip(m) {
        let g1 = g + wd * *v;
        *m = mu * *m + g1;
        let d = if s.nesterov { g1 + mu * *m } else { *m };
        *v -= lr * d;
    }
}

/// One step in f64 from the f32 state, and for each value and momentum the sum of the magnitudes that went in.
fn reference_f64(v: f32, g: f32, m: f32, s: SgdStep) -> [(f64, f64); 2] {
    let (v, g, m) = (f64::from(v), f64::from(g), f64::from(m));
    let [lr, mu, wd] = [s.lr, s.momentum, s.weight_decay];
    let g1 = g + wd * v;
    let m1 = mu * m + g1;
    let size_m = (mu * m).abs() + g.abs() + (wd * v).abs();
    let (d, size_d) = if s.nesterov { (g1 + mu * m1, g.abs() + (wd * v).abs() + mu * size_m) } else { (m1, size_m) };
    [(v - lr * d, v.abs() + lr * size_d), (m1, size_m)]
}

const STEPS: [SgdStep; 4] = [
    SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: true },
    SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: false },
    SgdStep { lr: 0.037, momentum: 0.0, weight_decay: 0.0, nesterov: false },
    SgdStep { lr: 1.5, momentum: 0.99, weight_decay: 0.3, nesterov: true },
];

/// `offset` elements lie before each store, `n` in it and some behind: the neighbours must not change.
fn check<D: Driver>(driver: &D, n: usize, offset: usize, step: SgdStep) {
    const BEHIND: usize = 3;
    let place = format!("{}: n {n}, offset {offset}, {step:?}", driver.describe());
    let total = offset + n + BEHIND;
    let mut host = [1u64, 2, 3].map(|seed| numbers(seed + 10 * n as u64, total));
    let mut bufs = [0; 3].map(|_| driver.alloc(4 * total).unwrap());
    for (buf, data) in bufs.iter_mut().zip(&host) {
        driver.upload(buf, bytemuck::cast_slice(data)).unwrap();
    }
    for turn in 0..4 {
        // New gradients each time, as in training.
        host[1] = numbers(100 * turn + n as u64, total);
        driver.upload(&mut bufs[1], bytemuck::cast_slice(&host[1])).unwrap();
        let before = host.clone();

        let [v, g, m] = [0, 1, 2].map(|i| driver.address(&bufs[i]) + 4 * offset as u64);
        // SAFETY: three buffers of n and more elements from there on.
        unsafe { sgd_step(driver, v, g, m, n, step) }.unwrap();
        driver.synchronise().unwrap();

        let (body, [v, g, m]) = (offset..offset + n, &mut host);
        reference_f32(&mut v[body.clone()], &g[body.clone()], &mut m[body.clone()], step);
        for (which, (buf, want)) in bufs.iter().zip(&host).enumerate() {
            let mut got = vec![0f32; total];
            driver.download(buf, bytemuck::cast_slice_mut(&mut got)).unwrap();
            let differs = (0..total).find(|&i| got[i].to_bits() != want[i].to_bits());
            assert!(
                differs.is_none(),
                "{place}, turn {turn}, store {which}: element {differs:?} of {total}: got {:?}, want {:?}",
                differs.map(|i| got[i]),
                differs.map(|i| want[i])
            );
        }
        for i in body {
            let exact = reference_f64(before[0][i], before[1][i], before[2][i], step);
            for ((want, size), got) in exact.into_iter().zip([host[0][i], host[2][i]]) {
                // At most 9 roundings (three of them of the factors), and one subnormal unit each.
                let tolerance = 9.0 * f64::from(f32::EPSILON) * size + 9.0 * f64::from(f32::from_bits(1));
                let error = (f64::from(got) - want).abs();
                assert!(error <= tolerance, "{place}: element {i}: {got} instead of {want}, off by {error:e}");
            }
        }
    }
}

fn check_all<D: Driver>(driver: &D) {
    for step in STEPS {
        for n in [0, 1, 3, 4, 5, 7, 8, 255, 256, 257, 1023, 1024, 1025, 4096, 4097] {
            check(driver, n, 0, step);
        }
        for offset in [1, 2, 3, 4] {
            check(driver, 1023, offset, step); // 4: aligned again
        }
    }
}

#[test]
fn emulated_in_both_fibre_orders() {
    for order in Order::BOTH {
        check_all(&Emulated::new(order).unwrap());
    }
}

/// Whole stores end at the guard page: here a read or write past the end is a fault, not a changed neighbour.
#[test]
fn stores_without_neighbours() {
    for order in Order::BOTH {
        let driver = Emulated::new(order).unwrap();
        for n in [1usize, 4, 6, 1028, 2051] {
            let mut host = [1u64, 2, 3].map(|seed| numbers(seed, n));
            let mut bufs = [0; 3].map(|_| driver.alloc(4 * n).unwrap());
            for (buf, data) in bufs.iter_mut().zip(&host) {
                driver.upload(buf, bytemuck::cast_slice(data)).unwrap();
            }
            let [v, g, m] = [0, 1, 2].map(|i| driver.address(&bufs[i]));
            // SAFETY: three buffers of n elements.
            unsafe { sgd_step(&driver, v, g, m, n, STEPS[0]) }.unwrap();
            let [v, g, m] = &mut host;
            reference_f32(v, g, m, STEPS[0]);
            for (buf, want) in bufs.iter().zip(&host) {
                let mut got = vec![0f32; n];
                driver.download(buf, bytemuck::cast_slice_mut(&mut got)).unwrap();
                assert_eq!(bytemuck::cast_slice::<f32, u32>(&got), bytemuck::cast_slice::<f32, u32>(want), "{n}");
            }
        }
    }
}

#[test]
fn on_a_real_gpu() {
    match gpu::probe() {
        Ok(info) => {
            let driver = gpu::cuda::Cuda::open().unwrap();
            println!("on {} (compute capability {:?})", info.name, info.capability);
            check_all(&driver);
        }
        Err(why) => drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {why}\n"))),
    }
}
