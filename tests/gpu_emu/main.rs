//! The emulated GPU finds what it promises to find: each rule is broken once by a kernel of
//! `kernels/emu/selftest*.cu`, and kept once by one that must then work.

mod graphs;
mod rules;

use sparse_engine::backend::gpu::emu::{Emulated, EmulatedBuf, Order};
use sparse_engine::backend::gpu::{Arg, Driver, Launch};
use std::process::{Command, Output};

fn device(order: Order) -> Emulated {
    Emulated::new(order).unwrap()
}

fn one_block(threads: u32, shared_bytes: u32) -> Launch {
    Launch { grid: [1, 1, 1], block: [threads, 1, 1], shared_bytes }
}

fn upload<T: bytemuck::Pod>(d: &Emulated, data: &[T]) -> EmulatedBuf {
    let mut buf = d.alloc(size_of_val(data)).unwrap();
    d.upload(&mut buf, bytemuck::cast_slice(data)).unwrap();
    buf
}

fn download<T: bytemuck::Pod>(d: &Emulated, buf: &EmulatedBuf, n: usize) -> Vec<T> {
    let mut data = vec![T::zeroed(); n];
    d.download(buf, bytemuck::cast_slice_mut(&mut data)).unwrap();
    data
}

/// Launches with the addresses of `bufs` first, then `rest`.
fn run(d: &Emulated, kernel: &'static str, l: Launch, bufs: &[&EmulatedBuf], rest: &[Arg]) -> Result<(), String> {
    let addresses: Vec<u64> = bufs.iter().map(|b| d.address(b)).collect();
    let args: Vec<Arg> = addresses.iter().map(Arg::new).chain(rest.iter().copied()).collect();
    // SAFETY: the tests keep the contracts, or break them on purpose where the emulation must notice.
    unsafe { d.launch(kernel, l, &args) }.map_err(|e| e.to_string())
}

#[track_caller]
fn refused(outcome: Result<(), String>, parts: &[&str]) {
    let said = outcome.expect_err("must be refused");
    assert!(!said.contains('\n'), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * i % 37) as f32 - 11.0).collect()
}

#[test]
fn block_reduction_with_static_shared_memory_and_barriers() {
    for order in Order::BOTH {
        let d = device(order);
        for threads in [1usize, 2, 64, 256] {
            let x = ramp(3 * threads);
            let (xs, out) = (upload(&d, &x), d.alloc(12).unwrap());
            let l = Launch { grid: [3, 1, 1], ..one_block(threads as u32, 0) };
            run(&d, "selftest_block_sum", l, &[&xs, &out], &[]).unwrap();
            let want: Vec<f32> = x.chunks(threads).map(|c| c.iter().sum()).collect();
            assert_eq!(download::<f32>(&d, &out, 3), want, "{order:?} {threads}");
        }
    }
}

#[test]
fn shuffles() {
    for order in Order::BOTH {
        let d = device(order);
        for width in [1i32, 2, 8, 32] {
            let x = ramp(96);
            let (xs, out, down) = (upload(&d, &x), d.alloc(4 * 96).unwrap(), d.alloc(4 * 96).unwrap());
            let l = one_block(96, 0);
            run(&d, "selftest_warp_sum", l, &[&xs, &out, &down], &[Arg::new(&width)]).unwrap();
            let sums: Vec<f32> = (0..96).map(|t| x[t / 32 * 32..][..32].iter().sum()).collect();
            assert_eq!(download::<f32>(&d, &out, 96), sums, "{order:?} {width}");
            let w = width as usize;
            let tails: Vec<f32> = (0..96).map(|t| x[t..(t / w + 1) * w].iter().sum()).collect();
            assert_eq!(download::<f32>(&d, &down, 96), tails, "{order:?} {width}");

            // 8-byte values; the second warp is partial, which a full mask allows.
            let y: Vec<f64> = (0..40).map(|i| 1.0 / (1.0 + f64::from(i))).collect();
            let (ys, out) = (upload(&d, &y), d.alloc(16 * 40).unwrap());
            run(&d, "selftest_shuffles", one_block(40, 0), &[&ys, &out], &[Arg::new(&width)]).unwrap();
            let first = |t: usize| y[t / w * w + 1 % w];
            let up = |t: usize| y[if t.is_multiple_of(w) { t } else { t - 1 }];
            let want: Vec<f64> = (0..40).flat_map(|t| [first(t), up(t)]).collect();
            assert_eq!(download::<f64>(&d, &out, 80), want, "{order:?} {width}");
        }
    }
}

#[test]
fn a_lane_that_gave_nothing_gives_poison() {
    let d = device(Order::Ascending);
    let x = [1.0f64];
    let (xs, out) = (upload(&d, &x), d.alloc(16).unwrap());
    run(&d, "selftest_shuffles", one_block(1, 0), &[&xs, &out], &[Arg::new(&32i32)]).unwrap();
    let got = download::<f64>(&d, &out, 2);
    assert!(got[0].is_nan() && got[1] == 1.0, "{got:?}"); // lane 1 does not exist
}

#[test]
fn a_missing_barrier_shows_in_one_of_the_orders() {
    let x = ramp(64);
    let reversed: Vec<f32> = x.iter().rev().copied().collect();
    let result = |order, with_barrier: i32| {
        let d = device(order);
        let xs = upload(&d, &x);
        run(&d, "selftest_reverse", one_block(64, 256), &[&xs], &[Arg::new(&with_barrier)]).unwrap();
        download::<u32>(&d, &xs, 64)
    };
    let right: Vec<u32> = reversed.iter().map(|v| v.to_bits()).collect();
    for order in Order::BOTH {
        assert_eq!(result(order, 1), right, "{order:?}");
    }
    let (up, down) = (result(Order::Ascending, 0), result(Order::Descending, 0));
    assert_ne!(up, down);
    assert!(up != right && down != right);
    // What a thread reads before its partner wrote is poison, never a plausible number.
    assert_eq!(up[..32], [u32::MAX; 32]);
}

#[test]
fn divergence_is_reported_not_a_hang() {
    for order in Order::BOTH {
        let d = device(order);
        let try_it = |split: u32, kind: i32| {
            run(&d, "selftest_diverge", one_block(64, 0), &[], &[Arg::new(&split), Arg::new(&kind)])
        };
        try_it(64, 0).unwrap();
        try_it(0, 0).unwrap();
        let start = "selftest_diverge, block (0, 0, 0): divergent barrier";
        refused(try_it(32, 0), &[start, "thread 0 waits at a barrier at line", "thread 32 waits at a barrier at line"]);
        refused(try_it(63, 1), &[start, "thread 0 waits", "thread 63 has returned"]);
        // Lanes 16 to 31 name the others in their mask, which never come.
        refused(try_it(16, 2), &["divergent", "thread 0 waits at a barrier", "thread 16 waits in a shuffle"]);
        // A whole warp may be elsewhere; it then returns, which the barrier of the other does not forgive.
        refused(try_it(32, 2), &["divergent barrier", "thread 32 has returned"]);
        try_it(64, 0).unwrap(); // an abandoned launch leaves nothing behind
    }
}

#[test]
fn shared_memory_is_poisoned_for_each_block() {
    let d = device(Order::Ascending);
    let out = d.alloc(8).unwrap();
    let l = Launch { grid: [2, 1, 1], ..one_block(1, 4) };
    run(&d, "selftest_uninitialised", l, &[&out], &[]).unwrap();
    assert_eq!(download::<u32>(&d, &out, 2), [u32::MAX; 2]);
}

#[test]
fn launch_limits() {
    let d = device(Order::Ascending);
    let out = d.alloc(4).unwrap();
    let go = |l| run(&d, "selftest_large_static", l, &[&out], &[]);
    go(one_block(1024, 8 << 10)).unwrap();
    refused(go(one_block(1024, (8 << 10) + 4)), &["shared memory", "40960 bytes static", "8196 dynamic", "49152"]);
    refused(go(one_block(1025, 0)), &["selftest_large_static", "1025"]);
    refused(go(one_block(1, (48 << 10) + 1)), &["49153", "49152"]);
    refused(go(Launch { grid: [1, 65_536, 1], ..one_block(1, 0) }), &["grid", "65535"]);
    refused(go(Launch { grid: [1, 1, 65_536], ..one_block(1, 0) }), &["grid", "65535"]);
    refused(go(Launch { grid: [0, 1, 1], ..one_block(1, 0) }), &["grid"]);
}

#[test]
fn kernels_are_found_by_name_and_arguments_compared_with_the_signature() {
    let d = device(Order::Ascending);
    let x = upload(&d, &[0f32]);
    refused(run(&d, "selftest_absent", one_block(1, 0), &[], &[]), &["selftest_absent", "EXPORT_KERNEL"]);
    let (at, v) = (0i64, 1f32);
    run(&d, "selftest_write", one_block(1, 0), &[&x], &[Arg::new(&at), Arg::new(&v)]).unwrap();
    assert_eq!(download::<f32>(&d, &x, 1), [1.0]);
    let sizes = ["[8, 8, 4]"];
    refused(run(&d, "selftest_write", one_block(1, 0), &[&x], &[Arg::new(&at)]), &sizes);
    refused(run(&d, "selftest_write", one_block(1, 0), &[&x], &[Arg::new(&at), Arg::new(&at)]), &sizes);
    refused(run(&d, "selftest_write", one_block(1, 0), &[&x], &[Arg::new(&v), Arg::new(&at)]), &sizes);
}

#[test]
fn indices_order_and_atomics() {
    for order in Order::BOTH {
        let d = device(order);
        let l = Launch { grid: [2, 3, 2], block: [4, 2, 3], shared_bytes: 0 };
        let n = 12 * 24;
        let (counts, seen) = (upload(&d, &[0u64; 2]), d.alloc(4 * n).unwrap());
        run(&d, "selftest_indices", l, &[&counts, &seen], &[]).unwrap();
        assert_eq!(download::<u64>(&d, &counts, 2), [n as u64, (n * (n - 1) / 2) as u64]);
        let mut want: Vec<u32> = (0..n as u32).collect();
        if order == Order::Descending {
            want.reverse();
        }
        assert_eq!(download::<u32>(&d, &seen, n), want);
    }
}

#[test]
fn multiplication_and_addition_round_separately() {
    let d = device(Order::Ascending);
    let (a, b, c) = (1.0f32 + f32::EPSILON, 1.0f32 - f32::EPSILON, -1.0f32);
    let out = d.alloc(8).unwrap();
    run_rounding(&d, &out, a, b, c);
    let got = download::<f32>(&d, &out, 2);
    assert_eq!(got, [a * b + c, a.mul_add(b, c)]);
    assert_ne!(got[0], got[1]); // the factors tell the two apart
}

fn run_rounding(d: &Emulated, out: &EmulatedBuf, a: f32, b: f32, c: f32) {
    let address = d.address(out);
    let args = [Arg::new(&a), Arg::new(&b), Arg::new(&c), Arg::new(&address)];
    // SAFETY: three floats and two floats of output, as the kernel wants.
    unsafe { d.launch("selftest_rounding", one_block(1, 0), &args) }.unwrap();
}

#[test]
fn wide_loads_must_be_aligned() {
    let d = device(Order::Ascending);
    let (x, out) = (upload(&d, &ramp(12)), d.alloc(16).unwrap());
    let load = |offset: u32| {
        let (from, to) = (d.address(&x), d.address(&out));
        // SAFETY: at most elements 8 to 11 of 12 are read.
        unsafe {
            d.launch("selftest_load4", one_block(1, 0), &[Arg::new(&from), Arg::new(&offset), Arg::new(&to)])
                .map_err(|e| e.to_string())
        }
    };
    load(4).unwrap();
    assert_eq!(download::<f32>(&d, &out, 4), ramp(12)[4..8]);
    refused(load(5), &["misaligned 16-byte access", "thread (0, 0, 0)"]);
}

#[test]
fn copies_must_fit_and_fresh_memory_is_poison() {
    let d = device(Order::Ascending);
    let mut buf = d.alloc(8).unwrap();
    assert_eq!(download::<u32>(&d, &buf, 2), [u32::MAX; 2]);
    assert!(d.upload(&mut buf, &[0; 9]).unwrap_err().to_string().contains("9 bytes"));
    assert!(d.download(&buf, &mut [0; 9]).unwrap_err().to_string().contains("8 bytes"));
    d.upload(&mut buf, &[]).unwrap();
    let empty = d.alloc(0).unwrap();
    d.download(&empty, &mut []).unwrap();
}

#[test]
fn a_write_into_the_alignment_slack_is_reported() {
    let d = device(Order::Ascending);
    let x = upload(&d, &[0f32; 5]); // 12 bytes up to the guard page
    refused(write(&d, d.address(&x), 5), &["selftest_write", "past the end", "20 bytes"]);
}

fn write(d: &Emulated, address: u64, at: i64) -> Result<(), String> {
    let v = 1f32;
    // SAFETY: none: the emulation must catch it.
    unsafe { d.launch("selftest_write", one_block(1, 0), &[Arg::new(&address), Arg::new(&at), Arg::new(&v)]) }
        .map_err(|e| e.to_string())
}

/// Runs the rest of the calling test in a child process, as `CHILD=name`; returns how that ended, or in the child
/// nothing.
fn in_child(test: &str) -> Option<Output> {
    const CHILD: &str = "SPARSE_ENGINE_TEST_CHILD";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return None;
    }
    let me = std::env::current_exe().unwrap();
    Some(Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, test).output().unwrap())
}

#[cfg(unix)]
#[track_caller]
fn faulted(child: &Output) {
    use std::os::unix::process::ExitStatusExt;
    const SIGBUS_BSD: i32 = 10;
    let (said, signal) = (String::from_utf8_lossy(&child.stdout), child.status.signal());
    assert!(matches!(signal, Some(11 | SIGBUS_BSD)), "wanted a fault, got {:?}: {said}", child.status);
    assert!(said.contains("about to fault"), "it fell too early: {said}");
}

#[test]
fn a_write_past_a_buffer_hits_the_guard_page() {
    let Some(child) = in_child("a_write_past_a_buffer_hits_the_guard_page") else {
        let d = device(Order::Ascending);
        let x = upload(&d, &[0f32; 4]); // no slack: element 4 lies in the guard page
        write(&d, d.address(&x), 3).unwrap();
        println!("about to fault");
        let outcome = write(&d, d.address(&x), 4);
        println!("no fault: {outcome:?}");
        return;
    };
    faulted(&child);
}

#[test]
fn a_write_far_before_a_buffer_hits_the_other_guard_page() {
    let Some(child) = in_child("a_write_far_before_a_buffer_hits_the_other_guard_page") else {
        let d = device(Order::Ascending);
        let x = upload(&d, &vec![0f32; 65_536 / 4]); // whole pages: element -1 lies in the guard page
        println!("about to fault");
        let outcome = write(&d, d.address(&x), -1);
        println!("no fault: {outcome:?}");
        return;
    };
    faulted(&child);
}

#[test]
fn use_after_free_faults() {
    let Some(child) = in_child("use_after_free_faults") else {
        let d = device(Order::Ascending);
        let x = upload(&d, &[0f32; 4]);
        let address = d.address(&x);
        write(&d, address, 0).unwrap();
        drop(x);
        let _other = upload(&d, &[0f32; 4]); // must not come to lie at the same address
        println!("about to fault");
        let outcome = write(&d, address, 0);
        println!("no fault: {outcome:?}");
        return;
    };
    faulted(&child);
}

#[test]
fn a_write_past_dynamic_shared_memory_faults() {
    let Some(child) = in_child("a_write_past_dynamic_shared_memory_faults") else {
        let d = device(Order::Ascending);
        let xs = upload(&d, &ramp(64));
        println!("about to fault");
        let outcome = run(&d, "selftest_reverse", one_block(64, 240), &[&xs], &[Arg::new(&1i32)]);
        println!("no fault: {outcome:?}");
        return;
    };
    faulted(&child);
}
