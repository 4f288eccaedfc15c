//! Every answer of the GPU probe, and the CUDA driver's bookkeeping, against a counterfeit libcuda.so.1 on the
//! LD_LIBRARY_PATH of a child process. What a real driver and a real GPU do, this cannot show.
#![cfg(target_os = "linux")]

use sparse_engine::Error;
use sparse_engine::backend::gpu::ops::{operand::Element, sgd::SgdStore, sgd::sgd_step, state::StepState};
use sparse_engine::backend::gpu::{self, Driver, GpuBackend, Precision, cuda::Cuda};
use sparse_engine::backend::{Plane, SgdStep, Spec, TensorSpec};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// This machine's own driver, or none, is answered and never a panic. The other tests start it in a child process with a
/// counterfeit driver and read the answer; with ACT=train that of a step on the device.
#[test]
fn child() {
    let answer = match std::env::var("ACT").as_deref() {
        Ok("train") => train(),
        Ok("graph") => graph(),
        Ok("find") => gpu::find_device().map(|d| format!("{d:?}")),
        _ => gpu::probe().map(|d| format!("{d:?}")),
    };
    match answer {
        Ok(said) => println!("ANSWER ok: {said}"),
        Err(Error::NoGpu(why)) => println!("ANSWER no gpu: {why}"),
        Err(other) if std::env::var_os("ACT").is_some() => println!("ANSWER other: {other}"),
        Err(other) => panic!("the probe says that there is no usable GPU, and nothing else: {other}"),
    }
}

fn train() -> sparse_engine::Result<String> {
    // The second file is the one that holds the kernel.
    let driver = Cuda::open_with(gpu::find_device()?, &[("other", b"odd"), ("sgd", b"code")])?;
    assert!(driver.alloc(2 << 30).err().expect("too large").to_string().contains("no memory for 2147483648 bytes"));
    let large = Spec {
        batch: 1 << 16,
        tensors: vec![TensorSpec::lasting(Plane { c: 64, h: 64, w: 64 }, 0)],
        ..Spec::default()
    };
    let huge = GpuBackend::new(Cuda::open_with(gpu::find_device()?, &[])?, large, Precision::F16, None);
    assert!(huge.err().expect("too large").to_string().contains("no memory for 34359738368 bytes"));
    drop(driver.alloc(0)?);
    const N: usize = 1029;
    let (mut values, mut grads, mut momentum) = (driver.alloc(4 * N)?, driver.alloc(4 * N)?, driver.alloc(4 * N)?);
    driver.upload(&mut values, bytemuck::cast_slice(&[2f32; N]))?;
    driver.upload(&mut grads, bytemuck::cast_slice(&[3f32; N]))?;
    driver.upload(&mut momentum, bytemuck::cast_slice(&[4f32; N]))?;
    assert!(driver.upload(&mut grads, &[0; 4 * N + 1]).is_err());
    let mut state = driver.alloc(size_of::<StepState>())?;
    let step = SgdStep { lr: 0.5, momentum: 0.25, weight_decay: 0.125, nesterov: true };
    driver.upload(&mut state, bytemuck::bytes_of(&StepState::from(step)))?;
    // From a thread on which no context is current.
    std::thread::scope(|s| {
        s.spawn(|| {
            let driver = &driver; // a driver may move between threads; here it is lent to one at a time
            let [values, g, m, s] = [&values, &grads, &momentum, &state].map(|b| driver.address(b));
            let store = SgdStore { values, n: N as u64, ..SgdStore::default() };
            // SAFETY: three buffers of N floats and a state.
            unsafe { sgd_step(driver, Element::F32, &store, g, m, 0, s) }?;
            driver.synchronise()
        })
        .join()
        .expect("no panic")
    })?;
    let mut got = [0f32; N];
    driver.download(&values, bytemuck::cast_slice_mut(&mut got))?;
    // g1 = 3.25, m = 4.25, d = 4.3125, v = 2 - 2.15625
    assert_eq!(got, [-0.15625; N]);
    driver.download(&momentum, bytemuck::cast_slice_mut(&mut got))?;
    assert_eq!(got, [4.25; N]);
    let description = driver.describe();
    drop(driver); // the buffers must keep the session alive
    drop((values, grads, momentum, state));
    Ok(description)
}

/// Copies at offsets, fills, shared memory, and graphs with their refusals.
fn graph() -> sparse_engine::Result<String> {
    let driver = Cuda::open_with(gpu::find_device()?, &[("other", b"odd"), ("sgd", b"code")])?;
    assert_eq!((driver.capability(), driver.sm_count(), driver.max_shared_bytes()), ((9, 0), 132, 232_448));
    let mut bytes = driver.alloc(8)?;
    driver.upload(&mut bytes, &[1, 2, 3, 4, 5, 6, 7, 8])?;
    driver.upload_at(&mut bytes, 2, &[30, 40])?;
    driver.fill_at(&mut bytes, 5, 2, 0xAB)?;
    driver.fill_at(&mut bytes, 8, 0, 1)?;
    let mut got = [0; 7];
    driver.download_at(&bytes, 1, &mut got)?;
    assert_eq!(got, [2, 30, 40, 5, 0xAB, 0xAB, 8]);
    for outside in [driver.upload_at(&mut bytes, 7, &[0; 2]), driver.fill_at(&mut bytes, 9, 0, 0)] {
        assert!(outside.unwrap_err().to_string().contains("device buffer of 8 bytes"));
    }

    driver.allow_shared("sgd_step_f32", 232_448)?;
    driver.allow_shared("sgd_step_f32", 1)?; // lowers nothing
    assert!(driver.allow_shared("sgd_step_f32", 232_449).unwrap_err().to_string().contains("at most 232448"));
    assert!(driver.allow_shared("absent", 1).is_err());

    let (mut values, mut grads, mut momentum) = (driver.alloc(16)?, driver.alloc(16)?, driver.alloc(16)?);
    for buf in [&mut values, &mut grads, &mut momentum] {
        driver.upload(buf, bytemuck::cast_slice(&[1f32; 4]))?;
    }
    let [v, g, m] = [&values, &grads, &momentum].map(|b| driver.address(b));
    let step = SgdStep { lr: 1.0, momentum: 1.0, weight_decay: 0.0, nesterov: false };
    let mut state = driver.alloc(size_of::<StepState>())?;
    driver.upload(&mut state, bytemuck::bytes_of(&StepState::from(step)))?;
    let (store, s) = (SgdStore { values: v, n: 4, ..SgdStore::default() }, driver.address(&state));
    // SAFETY: three buffers of 4 floats and a state, alive as long as the graph.
    let launch = || unsafe { sgd_step(&driver, Element::F32, &store, g, m, 0, s) };
    let read = || {
        let mut got = [0f32; 4];
        driver.download(&values, bytemuck::cast_slice_mut(&mut got)).map(|()| got[3])
    };
    let twice = driver.capture(&mut || launch().and_then(|()| launch()))?;
    assert_eq!(read()?, 1.0, "recorded, not run");
    driver.replay(&twice)?;
    driver.replay(&twice)?;
    assert_eq!(read()?, 1.0 - 2.0 - 3.0 - 4.0 - 5.0);

    // A capture that fails leaves the device as it was; what it refused counts even if nobody looked.
    type Refused<'a> = (&'a str, Box<dyn FnMut() -> sparse_engine::Result<()> + 'a>);
    let mut lost = vec![driver.alloc(64)?];
    let refusals: [Refused; 6] = [
        ("allocation", Box::new(|| drop_result(driver.alloc(4)))),
        (
            "freeing",
            Box::new(|| {
                lost.pop();
                Ok(())
            }),
        ),
        ("synchronisation", Box::new(|| driver.synchronise())),
        ("download", Box::new(|| driver.download(&values, &mut [0]))),
        ("replay", Box::new(|| driver.replay(&twice))),
        ("capture", Box::new(|| drop_result(driver.capture(&mut || Ok(()))))),
    ];
    for (what, mut call) in refusals {
        let said = driver
            .capture(&mut || {
                let _ = call();
                launch()
            })
            .err()
            .expect(what)
            .to_string();
        assert!(said.contains(what) && said.contains("capture of a graph"), "{what}: {said}");
    }
    let failed = driver.capture(&mut || Err(Error::Failed("of its own".into())));
    assert!(failed.err().expect("fails").to_string().contains("of its own"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = driver.capture(&mut || std::panic::resume_unwind(Box::new(1)));
    }));
    assert!(panicked.is_err());
    launch()?;
    assert_eq!(read()?, -19.0, "nothing of the failed captures ran");
    let empty = driver.capture(&mut || Ok(()))?;
    driver.replay(&empty)?;
    drop(driver);
    drop((values, grads, momentum, bytes, twice, empty));
    Ok("graphs".into())
}

fn drop_result<T>(outcome: sparse_engine::Result<T>) -> sparse_engine::Result<()> {
    outcome.map(drop)
}

/// The folder with the counterfeit and, below it, one that lacks a function. `None` without a C++ compiler.
fn counterfeit() -> Option<&'static Path> {
    static BUILT: OnceLock<bool> = OnceLock::new();
    let dir = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/fake_cuda"));
    let built = BUILT.get_or_init(|| {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        for (folder, define) in [("", "-DFAKE"), ("incomplete", "-DFAKE_WITHOUT_LAUNCH")] {
            let folder = dir.join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let unfinished = folder.join(format!("{}.tmp", std::process::id()));
            let run = Command::new(&compiler)
                .args(["-std=c++17", "-O1", "-shared", "-fPIC", define, "tests/gpu_fake_cuda.cpp", "-o"])
                .arg(&unfinished)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .output();
            match run {
                Ok(run) => assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr)),
                Err(_) => return false,
            }
            // cudarc asks for the first name first, and a machine with a real driver may have it.
            std::fs::copy(&unfinished, folder.join("libcuda.so")).unwrap();
            std::fs::rename(&unfinished, folder.join("libcuda.so.1")).unwrap();
        }
        true
    });
    if !built {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: no C++ compiler\n")));
    }
    built.then_some(dir)
}

/// What the child answers with these settings, and what the counterfeit printed.
fn ask(folder: &str, settings: &[(&str, &str)]) -> Option<(String, String)> {
    let dir = counterfeit()?.join(folder);
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("LD_LIBRARY_PATH", dir)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&run.stdout).into_owned();
    let err = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "the child failed: {out}{err}");
    assert!(!err.contains("panicked"), "{err}");
    let answer = out.lines().find_map(|l| l.split_once("ANSWER ").map(|(_, a)| a.to_string())).expect("an answer");
    Some((answer, out))
}

#[track_caller]
fn refused(folder: &str, settings: &[(&str, &str)], parts: &[&str]) {
    let Some((answer, _)) = ask(folder, settings) else { return };
    assert!(answer.starts_with("no gpu: no usable GPU: "), "{answer}");
    for part in parts.iter().chain(&["use --device cpu"]) {
        assert!(answer.contains(part), "{part:?} is missing in: {answer}");
    }
}

#[test]
fn each_refusal_says_why_and_what_to_do() {
    refused("", &[("FAKE_CUDA_INIT", "100")], &["finds no device", "nvidia-smi"]);
    refused("", &[("FAKE_CUDA_INIT", "100"), ("CUDA_VISIBLE_DEVICES", "7")], &["CUDA_VISIBLE_DEVICES is \"7\""]);
    refused("", &[("FAKE_CUDA_INIT", "34")], &["stub", "install the NVIDIA driver"]);
    refused("", &[("FAKE_CUDA_INIT", "803")], &["different releases", "restart"]);
    refused("", &[("FAKE_CUDA_INIT", "999")], &["CUDA_ERROR_UNKNOWN", "nvidia-smi"]);
    refused("", &[("FAKE_CUDA_VERSION", "11080")], &["too old", "CUDA 11.8", "update the driver"]);
    refused("", &[("FAKE_CUDA_DEVICES", "0")], &["finds no device"]);
    refused("", &[("FAKE_CUDA_CAPABILITY", "75")], &["compute capability 8.0 or higher", "Counterfeit 0 has 7.5"]);
    refused("incomplete", &[], &["cuLaunchKernel", "update the driver"]);
}

#[test]
fn a_driver_must_know_the_compiler_that_made_the_kernels() {
    let Some((major, _)) = gpu::NVCC else {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: no kernels in this binary\n")));
        return;
    };
    let older = format!("{}0{}0", major - 1, 9);
    refused("", &[("FAKE_CUDA_VERSION", &older)], &["too old", &format!("want {major}.0")]);
}

#[test]
fn each_kernel_file_is_embedded_if_any_is() {
    let Some(version) = gpu::NVCC else {
        assert!(gpu::FATBINS.is_empty() && gpu::ARCHS.is_empty());
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: no kernels in this binary\n")));
        return;
    };
    assert!(version >= (12, 0));
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let files = std::fs::read_dir(kernels).unwrap().map(|entry| entry.unwrap().path());
    let mut stems: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    stems.sort();
    assert_eq!(gpu::FATBINS.iter().map(|f| f.0).collect::<Vec<_>>(), stems);
    for (stem, code) in gpu::FATBINS {
        assert!(code.starts_with(&0xBA55_ED50u32.to_le_bytes()), "{stem} is no fatbin");
    }
}

#[test]
fn without_a_driver() {
    if !matches!(gpu::probe(), Err(Error::NoGpu(why)) if why.contains("libcuda.so.1 cannot be loaded")) {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: this machine has a driver\n")));
        return;
    }
    refused("absent", &[], &["no NVIDIA driver", "install"]);
}

#[test]
fn a_good_device_is_found_and_kernels_are_asked_for() {
    let Some((found, _)) = ask("", &[("ACT", "find"), ("FAKE_CUDA_CAPABILITY", "75"), ("FAKE_CUDA_DEVICES", "2")])
    else {
        return;
    };
    // The first of the two is too old.
    for part in
        ["ok: ", "Counterfeit 1", "ordinal: 1", "capability: (9, 0)", "85899345920", "sm_count: 132", "driver: (13, 0)"]
    {
        assert!(found.contains(part), "{part:?} is missing in: {found}");
    }
    if gpu::FATBINS.is_empty() {
        refused("", &[], &["no GPU kernels", "built without nvcc", "scripts/install_nvcc.sh", "build again"]);
    } else {
        let Some((answer, _)) = ask("", &[]) else { return };
        assert!(answer.starts_with("ok: ") && answer.contains("Counterfeit 0"), "{answer}");
    }
}

#[test]
fn the_driver_trains_and_gives_everything_back() {
    let Some((answer, out)) = ask("", &[("ACT", "train")]) else { return };
    assert_eq!(answer, "ok: cuda Counterfeit 0");
    assert!(out.contains("FAKE released: 0 contexts, 0 streams, 0 modules, 0 buffers, 0 graphs left"), "{out}");
}

#[test]
fn graphs_are_recorded_replayed_and_given_back() {
    let Some((answer, out)) = ask("", &[("ACT", "graph")]) else { return };
    assert_eq!(answer, "ok: graphs");
    assert!(out.contains("FAKE released: 0 contexts, 0 streams, 0 modules, 0 buffers, 0 graphs left"), "{out}");
    let Some((answer, _)) = ask("", &[("ACT", "graph"), ("FAKE_CUDA_CAPTURE", "900")]) else { return };
    assert!(answer.starts_with("other: GPU: cuStreamBeginCapture fails with CUDA_ERROR_STREAM_CAPTURE"), "{answer}");
}

#[test]
fn a_device_that_cannot_be_opened_is_no_usable_gpu() {
    refused("", &[("ACT", "train"), ("FAKE_CUDA_RETAIN", "2")], &["Counterfeit 0 refuses", "OUT_OF_MEMORY"]);
    refused(
        "",
        &[("ACT", "train"), ("FAKE_CUDA_LOAD", "209")],
        &["cannot load kernels/other.cu", "NO_BINARY_FOR_GPU", "SPARSE_ENGINE_CUDA_ARCHS=sm_90"],
    );
    let Some((answer, out)) = ask("", &[("ACT", "train"), ("FAKE_CUDA_LOAD", "209")]) else { return };
    assert!(
        out.contains("FAKE released: 0 contexts, 0 streams, 0 modules, 0 buffers, 0 graphs left"),
        "{answer}: {out}"
    );
    // Later failures are errors too, not refusals.
    let Some((answer, _)) = ask("", &[("ACT", "train"), ("FAKE_CUDA_SYNC", "700")]) else { return };
    assert!(answer.starts_with("other: GPU: cuStreamSynchronize fails with CUDA_ERROR_ILLEGAL_ADDRESS"), "{answer}");
}
