//! The SGD kernel against the documented order of f32 operations, byte for byte, and against f64. One test body, on
//! the emulated device in both fibre orders and on a real GPU where there is one.

use sparse_engine::backend::SgdStep;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::ops::operand::Element;
use sparse_engine::backend::gpu::ops::sgd::{Place, SgdStore, copy_values, grads_check, sgd_step};
use sparse_engine::backend::gpu::ops::state::StepState;
use sparse_engine::backend::gpu::{self, Driver};

/// A step on the device of `n` elements behind three addresses, without copies.
fn step_once<D: Driver>(driver: &D, addresses: [u64; 3], n: usize, state: StepState) {
    step_exempt(driver, addresses, n, 0, state);
}

/// The same, `exempt` the address of bits.
fn step_exempt<D: Driver>(driver: &D, [values, grads, momentum]: [u64; 3], n: usize, exempt: u64, state: StepState) {
    let mut held = driver.alloc(size_of::<StepState>()).unwrap();
    driver.upload(&mut held, bytemuck::bytes_of(&state)).unwrap();
    let store = SgdStore { values, n: n as u64, ..SgdStore::default() };
    // SAFETY: the callers' buffers hold n elements and more.
    unsafe { sgd_step(driver, Element::F32, &store, grads, momentum, exempt, driver.address(&held)) }.unwrap();
    driver.synchronise().unwrap();
}

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
        step_once(driver, [v, g, m], n, step.into());

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
    for n in [1, 3, 4, 31, 32, 33, 35, 64, 127, 255, 1023, 1028, 4097] {
        for (which, exempt) in EXEMPT.into_iter().enumerate() {
            exempted(driver, n, which, exempt);
        }
    }
    for n in [1, 5, 1028, 2051] {
        held_and_broken(driver, n);
        unscaled(driver, n);
        check_finite(driver, n);
        for element in [Element::F32, Element::F16, Element::Bf16] {
            copies(driver, n, element);
        }
    }
}

fn buffer<D: Driver, T: bytemuck::Pod>(driver: &D, data: &[T]) -> D::Buf {
    let mut buf = driver.alloc(size_of_val(data)).unwrap();
    driver.upload(&mut buf, bytemuck::cast_slice(data)).unwrap();
    buf
}

fn content<D: Driver, T: bytemuck::Pod>(driver: &D, buf: &D::Buf, n: usize) -> Vec<T> {
    driver.synchronise().unwrap();
    let mut data = vec![T::zeroed(); n];
    driver.download(buf, bytemuck::cast_slice_mut(&mut data)).unwrap();
    data
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Which of `n` parameters have no weight decay.
const EXEMPT: [fn(usize, usize) -> bool; 5] =
    [|_, _| true, |i, _| i % 3 == 1, |i, n| i + 1 == n, |i, _| (30..37).contains(&i), |i, n| i > n / 2];

/// Exempt parameters step as without weight decay, the others as ever; bits behind the last parameter say nothing. The
/// values are at an address that allows 128-bit accesses, and then are not.
fn exempted<D: Driver>(driver: &D, n: usize, which: usize, exempt: fn(usize, usize) -> bool) {
    let step = STEPS[3];
    let words: Vec<u32> = (0..n.div_ceil(32))
        .map(|w| (0..32).map(|bit| u32::from(32 * w + bit >= n || exempt(32 * w + bit, n)) << bit).sum())
        .collect();
    let bits_held = buffer(driver, &words);
    for offset in [0, 1] {
        let mut host = [1u64, 2, 3].map(|seed| numbers(seed + n as u64, n + offset));
        let bufs = host.each_ref().map(|d| buffer(driver, d));
        let addresses = bufs.each_ref().map(|b| driver.address(b) + 4 * offset as u64);
        step_exempt(driver, addresses, n, driver.address(&bits_held), step.into());
        let [v, g, m] = &mut host;
        for i in 0..n {
            let weight_decay = if exempt(i, n) { 0.0 } else { step.weight_decay };
            let at = i + offset..i + offset + 1;
            reference_f32(&mut v[at.clone()], &g[at.clone()], &mut m[at], SgdStep { weight_decay, ..step });
        }
        for (buf, want) in bufs.iter().zip(&host) {
            assert!(bits(&content(driver, buf, n + offset)) == bits(want), "case {which}, n {n}, offset {offset}");
        }
    }
    assert_eq!(content::<D, u32>(driver, &bits_held, words.len()), words);
}

/// Nothing is written in a step that is held, nor after a broken one.
fn held_and_broken<D: Driver>(driver: &D, n: usize) {
    let data = [1u64, 2, 3].map(|seed| numbers(seed, n));
    let bufs = data.each_ref().map(|d| buffer(driver, d));
    let map = buffer(driver, &vec![Place { w: 0, wt: 0 }; n]);
    let copy = buffer(driver, &[7f32]);
    let [values, grads, momentum] = bufs.each_ref().map(|b| driver.address(b));
    let (w, map) = (driver.address(&copy), driver.address(&map));
    let store = SgdStore { values, map, w, wt: w, n: n as u64 };
    for (hold, broken) in [(1, 0), (0, 1), (2, u64::MAX)] {
        let state = buffer(driver, &[StepState { hold, broken, ..STEPS[0].into() }]);
        // SAFETY: buffers of n elements; nothing is written to the copy that all would share.
        unsafe { sgd_step(driver, Element::F32, &store, grads, momentum, 0, driver.address(&state)) }.unwrap();
        for (buf, want) in bufs.iter().zip(&data) {
            assert_eq!(bits(&content(driver, buf, n)), bits(want), "hold {hold} broken {broken}");
        }
        assert_eq!(content::<D, f32>(driver, &copy, 1), [7.0]);
    }
}

/// Gradients scaled by a power of two give the same step.
fn unscaled<D: Driver>(driver: &D, n: usize) {
    let step = STEPS[0];
    let [mut v, mut g, mut m] = [1u64, 2, 3].map(|seed| numbers(seed, n));
    // Neither subnormal nor near the largest, so that scaling is exact.
    g.iter_mut().for_each(|g| *g = if g.abs() < 1e-20 || g.abs() > 1e20 { 0.25 } else { *g });
    let scaled: Vec<f32> = g.iter().map(|g| g * 1024.0).collect();
    let bufs = [&v, &scaled, &m].map(|d| buffer(driver, d));
    let state = StepState { loss_scale: 1024.0, unscale: 1.0 / 1024.0, ..step.into() };
    step_once(driver, bufs.each_ref().map(|b| driver.address(b)), n, state);
    reference_f32(&mut v, &g, &mut m, step);
    assert_eq!(bits(&content(driver, &bufs[0], n)), bits(&v));
    assert_eq!(bits(&content(driver, &bufs[1], n)), bits(&scaled));
    assert_eq!(bits(&content(driver, &bufs[2], n)), bits(&m));
}

/// Rounds to the nearest number of 8 or 11 significant bits (f16: a multiple of 2^-24), for numbers that are not too large;
/// exactly for f32.
fn rounded(v: f32, element: Element) -> f64 {
    let digits = match element {
        Element::F32 => return f64::from(v),
        Element::F16 => 11,
        Element::Bf16 => 8,
    };
    if v == 0.0 {
        return 0.0;
    }
    let least = if element == Element::F16 { -24 } else { -133 };
    let unit = 2f64.powi((f64::from(v.abs()).log2().floor() as i32 + 1 - digits).max(least));
    (f64::from(v) / unit).round_ties_even() * unit
}

fn stored_numbers<D: Driver>(driver: &D, buf: &D::Buf, n: usize, element: Element) -> Vec<f64> {
    let half = |b: u16| match element {
        Element::Bf16 => f64::from(f32::from_bits(u32::from(b) << 16)),
        _ => {
            let (exponent, rest) = (i32::from(b >> 10 & 31), f64::from(b & 1023));
            let whole = if exponent > 0 { 1024.0 + rest } else { rest };
            whole * 2f64.powi(exponent.max(1) - 25) * if b >> 15 == 1 { -1.0 } else { 1.0 }
        }
    };
    match element {
        Element::F32 => content::<D, f32>(driver, buf, n).into_iter().map(f64::from).collect(),
        _ => content::<D, u16>(driver, buf, n).into_iter().map(half).collect(),
    }
}

/// The copies hold the rounded values where the map says, and what they held elsewhere.
fn copies<D: Driver>(driver: &D, n: usize, element: Element) {
    // w: every third place, from the end on; wt: two apart; some have no place in one or both.
    let map: Vec<Place> = (0..n as u32)
        .map(|i| Place {
            w: if i % 5 == 1 { Place::NOWHERE } else { 3 * (n as u32 - 1 - i) },
            wt: if i % 7 < 2 { Place::NOWHERE } else { 2 * i + 1 },
        })
        .collect();
    let middling = |seed: u64| -> Vec<f32> {
        numbers(seed, n).into_iter().map(|v| if v.abs() < 1e-3 || v.abs() > 1e3 { 0.3 } else { v }).collect()
    };
    let [mut v, g, mut m] = [1u64, 2, 3].map(middling);
    let bufs = [&v, &g, &m].map(|d| buffer(driver, d));
    let held_map = buffer(driver, &map);
    let [values, grads, momentum] = bufs.each_ref().map(|b| driver.address(b));
    let sizes = [3 * n - 2, 2 * n];
    for turn in 0..3 {
        // Ones of the type, which no result is by chance.
        let one: &[u8] = match element {
            Element::F32 => &1f32.to_ne_bytes(),
            Element::F16 => &0x3C00u16.to_ne_bytes(),
            Element::Bf16 => &0x3F80u16.to_ne_bytes(),
        };
        let copies = sizes.map(|len| buffer(driver, &one.repeat(len)));
        let [w, wt] = copies.each_ref().map(|c| driver.address(c));
        let store = SgdStore { values, map: driver.address(&held_map), w, wt, n: n as u64 };
        if turn < 2 {
            let state = buffer(driver, &[StepState::from(STEPS[1])]);
            // SAFETY: buffers of n elements, places inside the copies and no two alike.
            unsafe { sgd_step(driver, element, &store, grads, momentum, 0, driver.address(&state)) }.unwrap();
            reference_f32(&mut v, &g, &mut m, STEPS[1]);
        } else {
            // SAFETY: as above.
            unsafe { copy_values(driver, element, &store) }.unwrap();
        }
        assert_eq!(bits(&content(driver, &bufs[0], n)), bits(&v));
        let mut want = sizes.map(|len| vec![1.0; len]);
        for (place, v) in map.iter().zip(&v) {
            for (at, want) in [place.w, place.wt].into_iter().zip(&mut want) {
                if at != Place::NOWHERE {
                    want[at as usize] = rounded(*v, element);
                }
            }
        }
        for (copy, want) in copies.iter().zip(&want) {
            let got = stored_numbers(driver, copy, want.len(), element);
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert!(got == want, "{element:?} n {n} turn {turn}: copy {i}: got {got:e}, want {want:e}");
            }
        }
    }
}

/// One bad gradient anywhere holds the step; the largest finite ones do not.
fn check_finite<D: Driver>(driver: &D, n: usize) {
    let hold_after = |grads: &[f32]| {
        let (grads, state) = (buffer(driver, grads), buffer(driver, &[StepState::from(STEPS[0])]));
        // SAFETY: buffers of these sizes.
        unsafe { grads_check(driver, driver.address(&grads), n as u64, driver.address(&state)) }.unwrap();
        content::<D, StepState>(driver, &state, 1)[0]
    };
    let mut grads = vec![f32::MAX; n];
    grads.iter_mut().step_by(2).for_each(|v| *v = f32::MIN);
    assert_eq!(hold_after(&grads), STEPS[0].into());
    for at in [0, n / 2, n - 1] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut grads = grads.clone();
            grads[at] = bad;
            assert_eq!(hold_after(&grads), StepState { hold: 1, ..STEPS[0].into() }, "{bad} at {at} of {n}");
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
            step_once(&driver, [v, g, m], n, STEPS[0].into());
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
