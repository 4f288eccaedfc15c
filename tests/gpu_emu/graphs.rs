//! Copies, fills and graphs of the emulated device; the CUDA driver's are in gpu_probe.rs.

use super::*;
use sparse_engine::{Error, Result as Outcome};

#[test]
fn copies_at_offsets_and_fills() {
    let d = device(Order::Ascending);
    let mut buf = d.alloc(10).unwrap();
    assert_eq!(d.bytes(&buf), 10);
    d.fill(&mut buf, 7).unwrap();
    d.upload_at(&mut buf, 2, &[1, 2, 3]).unwrap();
    d.fill_at(&mut buf, 8, 2, 0xAB).unwrap();
    d.fill_at(&mut buf, 10, 0, 1).unwrap();
    assert_eq!(download::<u8>(&d, &buf, 10), [7, 7, 1, 2, 3, 7, 7, 7, 0xAB, 0xAB]);
    let mut got = [0; 3];
    d.download_at(&buf, 7, &mut got).unwrap();
    assert_eq!(got, [7, 0xAB, 0xAB]);
    for outcome in [
        d.upload_at(&mut buf, 8, &[0; 3]),
        d.download_at(&buf, 11, &mut []),
        d.download_at(&buf, usize::MAX, &mut [0; 2]),
        d.fill_at(&mut buf, 1, 10, 0),
    ] {
        refused(outcome.map_err(|e| e.to_string()), &["device buffer of 10 bytes"]);
    }
}

/// Launches x = x * by + 1, with an argument that is gone when it returns.
fn step(d: &Emulated, x: &EmulatedBuf, by: f32) -> Outcome<()> {
    let (address, argument) = (d.address(x), Box::new(by));
    // SAFETY: one float, which every test keeps while its graphs are replayed.
    unsafe { d.launch("selftest_step", one_block(32, 0), &[Arg::new(&address), Arg::new(&*argument)]) }
}

#[test]
fn a_graph_replays_its_launches_in_order_with_the_arguments_of_then() {
    for order in Order::BOTH {
        let d = device(order);
        let mut x = upload(&d, &[1f32]);
        let graph = d.capture(&mut || [2.0, 3.0].into_iter().try_for_each(|by| step(&d, &x, by))).unwrap();
        assert_eq!(download::<f32>(&d, &x, 1), [1.0], "recorded, not run");
        d.replay(&graph).unwrap();
        assert_eq!(download::<f32>(&d, &x, 1), [10.0]); // (1 * 2 + 1) * 3 + 1
        d.upload(&mut x, bytemuck::bytes_of(&0f32)).unwrap();
        d.replay(&graph).unwrap();
        d.replay(&graph).unwrap();
        assert_eq!(download::<f32>(&d, &x, 1), [28.0]); // 4, then 9 * 3 + 1
        step(&d, &x, 0.0).unwrap();
        assert_eq!(download::<f32>(&d, &x, 1), [1.0], "launches run again");
        d.synchronise().unwrap();
        let other = device(order);
        refused(other.replay(&graph).map_err(|e| e.to_string()), &["another device"]);
        d.replay(&d.capture(&mut || Ok(())).unwrap()).unwrap();
    }
}

#[test]
fn a_capture_holds_launches_only() {
    let d = device(Order::Ascending);
    let x = upload(&d, &[1f32]);
    let graph = d.capture(&mut || step(&d, &x, 2.0)).unwrap();
    let mut scratch = d.alloc(4).unwrap();
    let mut lost = Some(d.alloc(4).unwrap());
    type Call<'a> = Box<dyn FnMut() -> Outcome<()> + 'a>;
    let calls: [(&str, Call); 8] = [
        ("allocation", Box::new(|| d.alloc(4).map(drop))),
        (
            "freeing device memory",
            Box::new(|| {
                drop(lost.take());
                Ok(())
            }),
        ),
        ("synchronisation", Box::new(|| d.synchronise())),
        ("download", Box::new(|| d.download(&x, &mut [0]))),
        ("replay", Box::new(|| d.replay(&graph))),
        ("capture", Box::new(|| d.capture(&mut || Ok(())).map(drop))),
        ("upload", Box::new(|| d.upload(&mut d.alloc(0)?, &[]))), // its allocation is refused first
        ("its own", Box::new(|| Err(Error::Failed("its own".into())))),
    ];
    for (what, mut call) in calls {
        for look in [true, false] {
            if what == "its own" && !look || what == "freeing device memory" && look {
                continue;
            }
            let outcome = d.capture(&mut || {
                step(&d, &x, 2.0)?;
                let outcome = call();
                if look { outcome } else { Ok(()) }
            });
            let said = outcome.err().expect(what).to_string();
            let what = if what == "upload" { "allocation" } else { what };
            assert!(said.contains(what), "{what}: {said}");
            assert!(what == "its own" || said.contains("inside the capture of a graph"), "{said}");
        }
    }
    for fill in [true, false] {
        let outcome = d.capture(&mut || {
            let _ = if fill { d.fill(&mut scratch, 0) } else { d.upload(&mut scratch, &[0]) };
            Ok(())
        });
        let said = outcome.err().expect("refused").to_string();
        assert!(said.contains(if fill { "fill" } else { "upload" }), "{said}");
    }
    assert_eq!(download::<f32>(&d, &x, 1), [1.0], "nothing ran");
    let graph = d.capture(&mut || step(&d, &x, 3.0)).unwrap();
    d.replay(&graph).unwrap();
    assert_eq!(download::<f32>(&d, &x, 1), [4.0], "nothing of the failed captures is left");
}

#[test]
fn launches_are_checked_when_recorded_and_a_panic_ends_the_capture() {
    let d = device(Order::Ascending);
    let x = upload(&d, &[1f32]);
    let outcome = d.capture(&mut || run(&d, "selftest_step", one_block(1025, 0), &[&x], &[]).map_err(Error::Failed));
    refused(outcome.map(drop).map_err(|e| e.to_string()), &["1025"]);
    let outcome = d.capture(&mut || run(&d, "selftest_step", one_block(1, 0), &[&x], &[]).map_err(Error::Failed));
    refused(outcome.map(drop).map_err(|e| e.to_string()), &["[8, 4]"]);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = d.capture(&mut || std::panic::resume_unwind(Box::new(1)));
    }));
    assert!(panicked.is_err());
    step(&d, &x, 5.0).unwrap();
    assert_eq!(download::<f32>(&d, &x, 1), [6.0]);
}
