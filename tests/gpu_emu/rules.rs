//! What a device would refuse or answer with rubbish, as the emulation reports it.

use super::*;
use sparse_engine::backend::gpu::Resource;
use sparse_engine::backend::gpu::emu::Limits;

fn grid(blocks: [u32; 3]) -> Launch {
    Launch { grid: blocks, ..one_block(1, 0) }
}

#[test]
fn shared_memory_beyond_48_kb_must_be_allowed_and_fit_the_device() {
    for (limits, most) in [(Limits::SM_80, 166_912), (Limits::SM_90, 232_448)] {
        let d = Emulated::with_limits(Order::Ascending, limits).unwrap();
        assert_eq!((d.capability(), d.max_shared_bytes()), (limits.capability, most));
        assert!(d.sm_count() > 100);
        let out = d.alloc(4).unwrap();
        let go = |bytes| run(&d, "selftest_large_static", one_block(64, bytes), &[&out], &[]);
        refused(go(49_156), &["selftest_large_static", "49156", "49152", "allow_shared"]);
        let allow = |bytes| d.allow_shared("selftest_large_static", bytes).map_err(|e| e.to_string());
        refused(allow(most + 1), &["selftest_large_static", &(most + 1).to_string(), &most.to_string()]);
        refused(d.allow_shared("selftest_absent", 1).map_err(|e| e.to_string()), &["selftest_absent"]);
        // 40 KB are static: together too much, although the dynamic part alone is below the limit.
        allow(most).unwrap();
        allow(1).unwrap(); // lowers nothing
        refused(go(most), &["40960 bytes static", &format!("{most} dynamic"), &format!("at most {most} together")]);
        refused(go(most - 40_956), &["together"]);
        go(most - 40_960).unwrap();
        assert_eq!(download::<f32>(&d, &out, 1), [1.0]);
        // Another kernel was allowed nothing.
        let x = upload(&d, &ramp(64));
        refused(run(&d, "selftest_reverse", one_block(64, 49_156), &[&x], &[Arg::new(&1i32)]), &["49152"]);
    }
}

#[test]
fn a_small_allowance_counts_beside_static_shared_memory() {
    let d = device(Order::Ascending);
    let out = d.alloc(4).unwrap();
    let go = |bytes| run(&d, "selftest_large_static", one_block(64, bytes), &[&out], &[]);
    refused(go(10_000), &["40960 bytes static", "10000 dynamic", "49152"]);
    d.allow_shared("selftest_large_static", 10_000).unwrap();
    go(10_000).unwrap();
}

#[test]
fn threads_times_registers() {
    const TABLE: &[Resource] = &[Resource {
        kernel: "selftest_reverse",
        target: "sm_90a",
        registers: 65, // given out as 72
        shared_bytes: 0,
        stack_bytes: 0,
        spill_store_bytes: 0,
        spill_load_bytes: 0,
    }];
    let go = |limits, threads: u32| {
        let d = Emulated::with_limits(Order::Ascending, limits).unwrap().with_resources(TABLE);
        let x = upload(&d, &ramp(threads as usize));
        run(&d, "selftest_reverse", one_block(threads, 4 * threads), &[&x], &[Arg::new(&1i32)])
    };
    go(Limits::SM_90, 896).unwrap(); // 28 warps * 32 * 72 = 64,512
    refused(go(Limits::SM_90, 897), &["selftest_reverse", "897 threads", "65 registers", "73728", "sm_90a", "65536"]);
    refused(go(Limits::SM_90, 1024), &["1024 threads"]);
    go(Limits::SM_80, 1024).unwrap(); // no code for it in the table
}

#[test]
fn grids_are_limited_in_y_and_z() {
    let d = device(Order::Ascending);
    let x = upload(&d, &[0f32]);
    let go = |blocks| run(&d, "selftest_step", grid(blocks), &[&x], &[Arg::new(&1f32)]);
    go([70_000, 1, 1]).unwrap();
    go([1, 65_535, 1]).unwrap();
    go([1, 1, 65_535]).unwrap();
    refused(go([1, 65_536, 1]), &["selftest_step", "grid", "65536", "65535"]);
    refused(go([1, 1, 65_536]), &["selftest_step", "grid", "65536", "65535"]);
}

#[test]
fn arguments_are_limited_to_4_kb() {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Large<const N: usize>(u64, [u32; N]);
    let d = device(Order::Ascending);
    let out = d.alloc(4 * 1022).unwrap();
    let mut arg = Large(d.address(&out), [0; 1022]);
    (0..1022).for_each(|i| arg.1[i] = i as u32 * 7);
    // SAFETY: the kernel writes 1022 numbers.
    unsafe { d.launch("selftest_large_argument", one_block(32, 0), &[Arg::new(&arg)]) }.unwrap();
    assert_eq!(download::<u32>(&d, &out, 1022), arg.1);
    let larger = Large(d.address(&out), [0; 1024]);
    // SAFETY: refused.
    let outcome = unsafe { d.launch("selftest_large_argument", one_block(32, 0), &[Arg::new(&larger)]) };
    refused(outcome.map_err(|e| e.to_string()), &["4104 bytes of arguments", "4096"]);
}

#[test]
fn async_copies_arrive_after_wait_and_barrier_and_not_before() {
    const T: usize = 64;
    let x: Vec<f32> = (0..4 * T).map(|i| i as f32).collect();
    let right: Vec<f32> = (0..4 * T).map(|i| x[4 * (T - 1 - i / 4) + i % 4]).collect();
    for order in Order::BOTH {
        let d = device(order);
        let go = |fault: i32| {
            let (xs, out) = (upload(&d, &x), d.alloc(16 * T).unwrap());
            let l = one_block(T as u32, 16 * T as u32);
            run(&d, "selftest_async", l, &[&xs, &out], &[Arg::new(&fault)]).map(|()| download::<f32>(&d, &out, 4 * T))
        };
        assert_eq!(go(0).unwrap(), right, "{order:?}");
        // Without the wait for their group, all see poison; without the barrier, those whose partner comes later.
        for fault in [1, 5] {
            assert!(go(fault).unwrap().iter().all(|v| v.is_nan()), "{order:?} {fault}");
        }
        let early = go(2).unwrap();
        let half = 2 * T;
        let (early, late) =
            if order == Order::Ascending { early.split_at(half) } else { (&early[half..], &early[..half]) };
        assert!(early.iter().all(|v| v.is_nan()) && late.iter().all(|v| !v.is_nan()), "{order:?}");
        refused(go(3).map(drop), &["selftest_async", "returns with 1 cp.async pending, the first of line"]);
        refused(go(4).map(drop), &["pending", "never committed"]);
        refused(go(6).map(drop), &["written while the cp.async of line", "pending"]);
        assert_eq!(go(0).unwrap(), right, "{order:?}: nothing is left of a failed launch");
    }
}

#[test]
fn async_copies_in_a_ring_with_zeros_at_the_end() {
    const T: usize = 32;
    for order in Order::BOTH {
        let d = device(order);
        for (steps, valid) in [(1usize, 1usize), (2, 1), (5, 5), (7, 4), (3, 0)] {
            // No more than the valid groups are there: the rest must not be read.
            let x: Vec<f32> = (0..valid * 4 * T).map(|i| (i % 23) as f32).collect();
            let (xs, out) = (upload(&d, &x), d.alloc(4 * T).unwrap());
            let args = (steps as i32, valid as i32);
            let l = one_block(T as u32, 48 * T as u32);
            run(&d, "selftest_pipeline", l, &[&xs, &out], &[Arg::new(&args.0), Arg::new(&args.1)]).unwrap();
            let sum = |t: usize| -> f32 {
                let group = |s: usize| x[4 * (s * T + (t + 1) % T)..][..4].iter().sum::<f32>() * (s + 1) as f32;
                (0..valid).map(group).sum()
            };
            assert_eq!(download::<f32>(&d, &out, T), (0..T).map(sum).collect::<Vec<_>>(), "{order:?} {steps} {valid}");
        }
    }
}

#[test]
fn async_copies_and_matrix_rows_want_16_byte_addresses_in_shared_memory() {
    let d = device(Order::Ascending);
    let x = upload(&d, &ramp(8));
    let copy = |dst: i32, src: i32, kind: i32| {
        let args = [Arg::new(&dst), Arg::new(&src), Arg::new(&kind)];
        run(&d, "selftest_async_address", one_block(1, 32), &[&x], &args)
    };
    copy(16, 16, 0).unwrap();
    refused(copy(8, 0, 0), &["cp.async to a misaligned address", "selftest_rules.cu:"]);
    refused(copy(0, 4, 0), &["cp.async from a misaligned address", "selftest_rules.cu:"]);
    refused(copy(0, 0, 1), &["not in the block's shared memory", "selftest_rules.cu:"]);
    refused(copy(32, 0, 0), &["not in the block's shared memory"]);
    let out = d.alloc(512).unwrap();
    for trans in [0, 1] {
        let row = |off: i32, in_device: i32| {
            let args = [Arg::new(&trans), Arg::new(&off), Arg::new(&in_device)];
            run(&d, "selftest_row_address", one_block(32, 512), &[&x, &out], &args)
        };
        // Matrix j: words 32 j to 32 j + 31 of the rows, number i of row r is 8 r + i.
        let number = |j: u32, row: u32, i: u32| (8 * j + row) * 8 + i;
        let word = |lane: u32, j: u32| match (trans, lane / 4, lane % 4 * 2) {
            (0, g, t) => number(j, g, t) | number(j, g, t + 1) << 16,
            (_, g, t) => number(j, t, g) | number(j, t + 1, g) << 16,
        };
        row(0, 0).unwrap();
        let want: Vec<u32> = (0..128).map(|i| word(i / 4, i % 4)).collect();
        assert_eq!(download::<u32>(&d, &out, 128), want, "{trans}");
        let lane = "thread (19, 0, 0)";
        refused(row(4, 0), &[lane, "misaligned 16-byte access", "mma.cuh:"]);
        refused(row(0, 1), &[lane, "16 bytes at", "not in the block's shared memory", "mma.cuh:"]);
        refused(row(16 * 13, 0), &[lane, "not in the block's shared memory"]); // 16 bytes past its end
    }
}

#[test]
fn undefined_behaviour_ends_the_launch_with_place_and_kind() {
    for order in Order::BOTH {
        let d = device(order);
        let x = upload(&d, &[2f32, 0.0, 0.0, f32::from_bits(u32::MAX)]);
        let go =
            |kind: i32, v: i32| run(&d, "selftest_undefined", one_block(1, 0), &[&x], &[Arg::new(&kind), Arg::new(&v)]);
        let cases: [(i32, i32, i32, &[&str]); 8] = [
            (0, 3, 4, &["index 4 out of bounds", "int [4]"]),
            (1, 30, 32, &["shift of 1", "by 32"]),
            (2, 0, 1, &["overflow: ", "2147483647", "int"]),
            (3, 2, 0, &["overflow: 7 / 0"]),
            (4, 1 << 29, 1 << 30, &["float", "int", "cannot hold"]),
            (5, 8, 4, &["misaligned", "double", "no multiple of 8"]),
            (6, -1, 0, &["null pointer", "int"]),
            (7, 2, 3, &["load of 255", "bool"]),
        ];
        for (kind, good, bad, parts) in cases {
            if good >= 0 {
                go(kind, good).unwrap();
            }
            let place = ["selftest_undefined", "thread (0, 0, 0)", "undefined behaviour", "selftest_rules.cu:"];
            refused(go(kind, bad), parts);
            refused(go(kind, bad), &place);
        }
    }
}

#[test]
fn votes_counting_barriers_and_atomics() {
    const T: usize = 80; // two warps and a half
    let x: Vec<i32> = (0..T as i32).map(|i| (i * 7 + 3) % 13 - 6).collect();
    let bits = |lanes: &mut dyn Iterator<Item = usize>, f: &dyn Fn(i32) -> bool| -> u32 {
        lanes.filter(|&t| t < T && f(x[t])).fold(0, |all, t| all | 1 << (t % 32))
    };
    for order in Order::BOTH {
        let d = device(order);
        let (xs, out) = (upload(&d, &x), d.alloc(4 * 6 * T).unwrap());
        let start: [u32; 8] = [0, i32::MAX as u32, 1 << 31, u32::MAX, 0xFF00, 5, 999, 1];
        let counters = upload(&d, &start);
        run(&d, "selftest_votes", one_block(T as u32, 0), &[&xs, &out, &counters], &[]).unwrap();
        let got = download::<i32>(&d, &out, 6 * T);
        let count = x.iter().filter(|&&v| v > 0).count() as i32;
        for t in 0..T {
            let warp = t / 32 * 32;
            assert_eq!(got[t], count);
            assert_eq!(got[T + t], i32::from(x.iter().any(|&v| v > 5)) + 2 * i32::from(x.iter().all(|&v| v > -9)));
            assert_eq!(got[2 * T + t] as u32, bits(&mut (warp..warp + 32), &|v| v > 0));
            let mine = &x[warp..(warp + 32).min(T)];
            assert_eq!(got[3 * T + t], i32::from(mine.iter().any(|&v| v > 5)) + 2);
            let half = t / 16 * 16;
            let odd = t % 32 < 16;
            assert_eq!(got[4 * T + t] as u32, bits(&mut (half..half + 16), &|v| (v % 2 != 0) == odd), "{t}");
        }
        let end = download::<u32>(&d, &counters, 8);
        let sum: u32 = (0..T as u32).sum();
        let xor = (0..T as u32).fold(0xFF00, |a, t| a ^ t);
        assert_eq!(end[0], x.iter().map(|&v| v as u32).max().unwrap());
        assert_eq!(end[1] as i32, *x.iter().min().unwrap());
        assert_eq!(end[2..6], [u32::MAX, 0, xor, 5u32.wrapping_sub(T as u32)]);
        assert_eq!(end[7], 1 + sum);
        // Every value that was exchanged went round: the first got 999, the last one's is there.
        let mut went: Vec<i32> = got[5 * T..].to_vec();
        went.push(end[6] as i32);
        went.sort_unstable();
        assert_eq!(went, (0..T as i32).chain([999]).collect::<Vec<_>>());
    }
}

#[test]
fn conversions_saturate_as_on_a_gpu() {
    let x = [0.0f32, -0.0, 0.5, 1.5, 2.5, -2.5, 3e9, -3e9, 5e9, f32::NAN, f32::INFINITY, -7.9, 2147483520.0, 0.25];
    let d = device(Order::Ascending);
    let (xs, out) = (upload(&d, &x), d.alloc(32 * x.len()).unwrap());
    run(&d, "selftest_conversions", one_block(4, 0), &[&xs, &out], &[Arg::new(&(x.len() as i32))]).unwrap();
    let got = download::<i32>(&d, &out, 8 * x.len());
    for (i, &v) in x.iter().enumerate() {
        // Rust's casts saturate and turn NaN to 0 too.
        let bits = v.to_bits();
        let clamped = if v.is_nan() { 2.0f32 } else { v.clamp(-2.0, 2.0) };
        let saturated = if v > 0.0 { v.min(1.0) } else { 0.0 };
        let want = [
            v.round_ties_even() as i32,
            v as i32,
            v.round_ties_even() as u32 as i32,
            bits.count_ones() as i32,
            bits.leading_zeros() as i32,
            bits.reverse_bits() as i32,
            saturated.to_bits() as i32,
            clamped.to_bits() as i32,
        ];
        assert_eq!(got[8 * i..8 * i + 8], want, "{v}");
    }
}

#[test]
fn writes_beside_shared_memory_are_reported() {
    let d = device(Order::Ascending);
    for (kind, said) in [
        (0i32, "past the end of its static shared memory (100 bytes)"),
        (1, "before the start of its dynamic shared memory"),
        (2, "past the end of its dynamic shared memory (20 bytes)"),
    ] {
        let go = |kind: i32| run(&d, "selftest_shared_gap", one_block(1, 20), &[], &[Arg::new(&kind)]);
        refused(go(kind), &["selftest_shared_gap, block (0, 0, 0)", said]);
        go(3).unwrap(); // nothing is left of it
    }
}

/// Runs `body` in a child process, in which it must fault, and tell where and why on stderr.
#[track_caller]
fn faults(test: &str, parts: &[&str], body: impl FnOnce(&Emulated) -> Result<(), String>) {
    let Some(child) = in_child(test) else {
        let d = device(Order::Ascending);
        println!("about to fault");
        println!("no fault: {:?}", body(&d));
        return;
    };
    #[cfg(unix)]
    faulted(&child);
    let said = String::from_utf8_lossy(&child.stderr);
    let line = said.lines().find(|l| l.starts_with("emulated GPU: ")).expect("a message");
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing in: {line}");
    }
}

#[test]
fn a_stack_that_overflows_says_so() {
    faults(
        "rules::a_stack_that_overflows_says_so",
        &["selftest_stack", "thread (0, 0, 0)", "stack", "overflows"],
        |d| {
            let x = upload(d, &[1f32]);
            let go = |depth: i32, wide: i32| {
                run(d, "selftest_stack", one_block(2, 0), &[&x], &[Arg::new(&depth), Arg::new(&wide)])
            };
            go(50, 0)?;
            go(100_000, 0)
        },
    );
}

#[test]
fn a_frame_larger_than_the_stack_says_so() {
    let test = "rules::a_frame_larger_than_the_stack_says_so";
    faults(test, &["selftest_stack", "thread (1, 0, 0)", "stack", "overflows"], |d| {
        // Not to be found by luck: the frame reaches over whole stacks of other threads, which are in use.
        let x = upload(d, &[1f32]);
        let descending = Emulated::new(Order::Descending).unwrap();
        run(&descending, "selftest_stack", one_block(2, 0), &[&x], &[Arg::new(&100i32), Arg::new(&1i32)])
    });
}

#[test]
fn faults_name_the_nearest_buffer() {
    faults(
        "rules::faults_name_the_nearest_buffer",
        &["selftest_write", "0 bytes past the end of a device buffer of 16"],
        |d| {
            let x = upload(d, &[0f32; 4]);
            write(d, d.address(&x), 4)
        },
    );
}

#[test]
fn faults_name_a_freed_buffer() {
    faults("rules::faults_name_a_freed_buffer", &["8 bytes into a freed device buffer of 16 bytes"], |d| {
        let address = d.address(&upload(d, &[0f32; 4]));
        write(d, address, 2)
    });
}

#[test]
fn faults_name_dynamic_shared_memory() {
    let parts =
        ["selftest_reverse", "thread (60, 0, 0)", "0 bytes past the end of its dynamic shared memory (240 bytes)"];
    faults("rules::faults_name_dynamic_shared_memory", &parts, |d| {
        let x = upload(d, &ramp(64));
        run(d, "selftest_reverse", one_block(64, 240), &[&x], &[Arg::new(&1i32)])
    });
}
