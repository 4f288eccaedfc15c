//! cuDNN and cuBLASLt as a CUDA device uses them, against counterfeit libraries in a child process: where they are looked
//! for, what is refused, and that descriptors and arguments say what the contract says, since the counterfeits compute by
//! them. What the real ones do, this cannot show.
#![cfg(target_os = "linux")]

use half::{bf16, f16};
use sparse_engine::backend::gpu::cuda::Cuda;
use sparse_engine::backend::gpu::ops::operand::{Element, padded};
use sparse_engine::backend::gpu::vendor::{Pass, Product};
use sparse_engine::backend::gpu::{self, Driver, GpuBackend, Precision};
use sparse_engine::backend::{ConvSpec, ParamId, ParamSpec, Spec};
use sparse_engine::shape::ConvGeom;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const fn geom(c: u32, [h, w]: [u32; 2], k: u32, r: u32, stride: u32, pad: u32) -> ConvGeom {
    ConvGeom { c, h, w, k, r, s: r, stride, pad }
}

const CONV: ConvGeom = geom(5, [6, 4], 9, 3, 1, 1);
const MATRIX: ConvGeom = geom(12, [3, 5], 20, 1, 1, 0);

/// This machine's own libraries multiply, or one line says why not. The other tests start it in a child process with
/// counterfeit libraries and read the answer.
#[test]
fn child() {
    let answer = match std::env::var("ACT").as_deref() {
        Ok("multiply") => multiply(),
        Ok("plan") => plan(),
        Ok("matrix") => prepare(MATRIX),
        _ => prepare(CONV),
    };
    match answer {
        Ok(said) => println!("ANSWER ok: {said}"),
        Err(why) => {
            assert!(!why.to_string().contains('\n'), "{why}");
            println!("ANSWER no: {why}");
        }
    }
}

fn open() -> sparse_engine::Result<Cuda> {
    Cuda::open_with(gpu::find_device()?, &[])
}

/// All three passes get ready and run.
fn prepare(geom: ConvGeom) -> sparse_engine::Result<String> {
    let driver = open()?;
    for pass in Pass::ALL {
        check(&driver, Product { pass, geom, images: 2, precision: Precision::F16 })?;
    }
    Ok(driver.vendor().expect("a CUDA device has one").describe())
}

fn multiply() -> sparse_engine::Result<String> {
    let driver = open()?;
    let vendor = driver.vendor().expect("a CUDA device has one");
    assert_eq!(vendor.describe(), "", "nothing is opened before it is asked for");
    for geom in [
        CONV,
        MATRIX,
        geom(16, [5, 7], 8, 3, 2, 1),
        geom(3, [9, 6], 4, 7, 2, 3),
        geom(9, [4, 5], 3, 1, 2, 0),
        geom(64, [1, 1], 10, 1, 1, 0),
    ] {
        for (images, precision) in
            [(1, Precision::F32), (3, Precision::Tf32), (2, Precision::F16), (3, Precision::Bf16)]
        {
            for pass in Pass::ALL {
                check(&driver, Product { pass, geom, images, precision })?;
            }
        }
    }
    let said = vendor.describe();
    let kept = vendor.prepare(&Product { pass: Pass::Forward, geom: CONV, images: 1, precision: Precision::F16 })?;
    drop(driver); // the product keeps its library, and the device, alive
    drop(kept);
    Ok(said)
}

/// A plan that asks for libraries is refused where there are none, and taken where there are.
fn plan() -> sparse_engine::Result<String> {
    let weights = CONV.weights();
    let shape = [CONV.k, CONV.c, CONV.r, CONV.s].map(|v| v as usize).to_vec();
    let spec = Spec {
        batch: 2,
        params: vec![ParamSpec { shape, kept: None, decay: true, block: None, range: 0..weights }],
        convs: vec![ConvSpec { geom: CONV, weight: ParamId(0), bias: None }],
        ..Spec::default()
    };
    let own = GpuBackend::new(open()?, spec.clone(), Precision::F16, None)?;
    let backend = GpuBackend::new(open()?, spec, Precision::F16, Some(&own.plan().vendor()))?;
    Ok(sparse_engine::backend::Backend::describe(&backend))
}

/// Small numbers that every type holds exactly.
fn numbers(len: u64, seed: u64) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + seed * 13 + i / 5) % 17) as f32 / 8.0 - 1.0).collect()
}

fn bytes(numbers: &[f32], element: Element) -> Vec<u8> {
    let of = |v: &f32| match element {
        Element::F32 => v.to_le_bytes().to_vec(),
        Element::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
        Element::Bf16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
    };
    numbers.iter().flat_map(of).collect()
}

/// Makes a product ready, runs it and compares with sums over all pairs of pixels.
fn check(driver: &Cuda, product: Product) -> sparse_engine::Result<()> {
    let ready = driver.vendor().expect("a CUDA device has one").prepare(&product)?;
    let (g, [x, y, w]) = (product.geom, product.sizes());
    let (in_a, in_b, out) = match product.pass {
        Pass::Forward => (x, w, y),
        Pass::Data => (y, w, x),
        Pass::Weight => (x, y, w),
    };
    let (a, b) = (numbers(in_a, 1), numbers(in_b, 2));
    let element = product.precision.element();
    let matrix_gradient = product.is_matrix() && product.pass == Pass::Weight;
    assert_eq!(ready.output(), if matrix_gradient { Element::F32 } else { element }, "{product:?}");
    let upload = |data: &[f32]| -> sparse_engine::Result<_> {
        let mut buf = driver.alloc(data.len() * element.bytes())?;
        driver.upload(&mut buf, &bytes(data, element))?;
        Ok(buf)
    };
    let (left, right) = (upload(&a)?, upload(&b)?);
    let (result, workspace) =
        (driver.alloc(out as usize * ready.output().bytes())?, driver.alloc(ready.workspace_bytes())?);
    let [l, r, o, s] = [&left, &right, &result, &workspace].map(|buf| driver.address(buf));
    // SAFETY: buffers of the sizes that the product says.
    unsafe { ready.run(l, r, o, s)? };
    let mut got = vec![0; driver.bytes(&result)];
    driver.download(&result, &mut got)?;

    let (c, k) = (u64::from(padded(g.c)), u64::from(padded(g.k)));
    let (mut want, mut size) = (vec![0f64; out as usize], vec![0f64; out as usize]);
    for (i, yy, xx) in triples(product.images, g.p(), g.q()) {
        for (r, s) in (0..g.r).flat_map(|r| (0..g.s).map(move |s| (r, s))) {
            let (h, v) = ((yy * g.stride + r) as i64 - i64::from(g.pad), (xx * g.stride + s) as i64 - i64::from(g.pad));
            if h < 0 || v < 0 || h >= i64::from(g.h) || v >= i64::from(g.w) {
                continue;
            }
            let pixel = (u64::from(i) * u64::from(g.h) + h as u64) * u64::from(g.w) + v as u64;
            let row = (u64::from(i) * u64::from(g.p()) + u64::from(yy)) * u64::from(g.q()) + u64::from(xx);
            for (n, m) in (0..k).flat_map(|n| (0..c).map(move |m| (n, m))) {
                let at = (pixel * c + m, row * k + n, (n * u64::from(g.r * g.s) + u64::from(r * g.s + s)) * c + m);
                let (l, r, o) = match product.pass {
                    Pass::Forward => (at.0, at.2, at.1),
                    Pass::Data => (at.1, at.2, at.0),
                    Pass::Weight => (at.0, at.1, at.2),
                };
                let term = f64::from(a[l as usize]) * f64::from(b[r as usize]);
                want[o as usize] += term;
                size[o as usize] += term.abs();
            }
        }
    }
    let eps = match ready.output() {
        Element::F32 => 1e-6,
        Element::F16 => 1e-3,
        Element::Bf16 => 8e-3,
    };
    for (i, v) in got.chunks_exact(ready.output().bytes()).enumerate() {
        let v = f64::from(match *v {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b] if element == Element::F16 => f16::from_le_bytes([a, b]).to_f32(),
            [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!(),
        });
        let tol = eps * size[i] + 1e-4 * f64::from(u8::from(element == Element::F16));
        assert!((v - want[i]).abs() <= tol, "{product:?}: element {i} is {v}, wanted {} +- {tol}", want[i]);
    }
    Ok(())
}

fn triples(n: u32, h: u32, w: u32) -> impl Iterator<Item = (u32, u32, u32)> {
    (0..n).flat_map(move |i| (0..h).flat_map(move |y| (0..w).map(move |x| (i, y, x))))
}

const PARTS: [&str; 5] = ["graph", "ops", "cnn", "engines_precompiled", "heuristic"];

/// The folder of the counterfeits, with one below it for each way in which they can be broken. `None` without a compiler.
fn counterfeits() -> Option<&'static Path> {
    static BUILT: OnceLock<bool> = OnceLock::new();
    let dir = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/fake_vendor"));
    let built = BUILT.get_or_init(|| {
        let parts = || PARTS.map(|part| format!("libcudnn_{part}.so.9")).into_iter();
        let good = [("libcudnn.so.9", "-DFAKE_CUDNN"), ("libcublasLt.so.13", "-DFAKE_BLASLT")];
        let good = || good.into_iter().map(|(file, define)| (file.to_string(), define));
        let python = "python/lib/python3.12/site-packages/nvidia";
        compile(&dir.join("cuda"), "libcuda.so.1", "tests/gpu_fake_cuda.cpp", &["-DFAKE"])
            && good().chain(parts().map(|part| (part, "-DFAKE_PART"))).all(|(file, define)| {
                let folder = if file.contains("cudnn") { "cudnn" } else { "cu13" };
                [dir.join("good"), dir.join(python).join(folder).join("lib")]
                    .iter()
                    .all(|folder| compile(folder, &file, "tests/gpu_fake_vendor.cpp", &[define]))
            })
            && parts().all(|part| compile(&dir.join("less"), &part, "tests/gpu_fake_vendor.cpp", &["-DFAKE_PART"]))
            && good().all(|(file, define)| {
                let less = [define, "-DFAKE_WITHOUT_GRADIENTS"];
                compile(&dir.join("less"), &file, "tests/gpu_fake_vendor.cpp", &less)
                    && compile(&dir.join("alone"), &file, "tests/gpu_fake_vendor.cpp", &[define])
            })
            && good().all(|(file, _)| {
                std::fs::create_dir_all(dir.join("junk")).unwrap();
                std::fs::write(dir.join("junk").join(file), "no library").is_ok()
            })
            // What the system's loader takes first.
            && compile(&dir.join("other"), "libcudnn.so", "tests/gpu_fake_vendor.cpp", &["-DFAKE_CUDNN"])
            && std::fs::copy(dir.join("cuda/libcuda.so.1"), dir.join("cuda/libcuda.so")).is_ok()
    });
    if !built {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: no C++ compiler\n")));
    }
    built.then_some(dir)
}

/// Whether there is a compiler. Fails if it fails.
fn compile(folder: &Path, file: &str, source: &str, defines: &[&str]) -> bool {
    std::fs::create_dir_all(folder).unwrap();
    let unfinished = folder.join(format!("{}.tmp", std::process::id()));
    let run = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".into()))
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", source, &format!("-Wl,-soname,{file}"), "-o"])
        .arg(&unfinished)
        .args(defines)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let Ok(run) = run else { return false };
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    std::fs::rename(&unfinished, folder.join(file)).unwrap();
    true
}

/// Where the child looks.
#[derive(Clone, Copy)]
enum Through {
    /// SPARSE_ENGINE_CUDA_LIBS.
    Told,
    /// LD_LIBRARY_PATH.
    Loader,
    /// A virtual environment.
    Python,
}

/// What the child answers with these settings, and all that it printed.
fn ask(through: Through, folder: &str, settings: &[(&str, &str)]) -> Option<(String, String)> {
    let dir = counterfeits()?;
    let place = dir.join(folder);
    let paths = |paths: &[PathBuf]| -> OsString { std::env::join_paths(paths).unwrap() };
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "child", "--nocapture"])
        .env_clear()
        .env("HOME", dir)
        .env("LD_LIBRARY_PATH", dir.join("cuda"))
        .envs(settings.iter().copied());
    match through {
        Through::Told => child.env("SPARSE_ENGINE_CUDA_LIBS", paths(&["/nowhere".into(), place])),
        Through::Loader => child.env("LD_LIBRARY_PATH", paths(&[dir.join("cuda"), place])),
        Through::Python => child.env("VIRTUAL_ENV", place),
    };
    let run = child.output().unwrap();
    let out = String::from_utf8_lossy(&run.stdout).into_owned();
    let err = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !err.contains("panicked"), "the child failed: {out}{err}");
    let answer = out.lines().find_map(|l| l.split_once("ANSWER ").map(|(_, a)| a.to_string())).expect("an answer");
    Some((answer, out))
}

#[track_caller]
fn refused(folder: &str, settings: &[(&str, &str)], parts: &[&str]) {
    let Some((answer, out)) = ask(Through::Told, folder, settings) else { return };
    assert!(answer.starts_with("no: ") && out.matches("ANSWER").count() == 1, "{answer}");
    for part in parts {
        assert!(answer.contains(part), "{part:?} is missing in: {answer}");
    }
}

#[test]
fn products_are_what_the_contract_says() {
    for (through, folder) in [(Through::Told, "good"), (Through::Loader, "good"), (Through::Python, "python")] {
        let Some((answer, out)) = ask(through, folder, &[("ACT", "multiply")]) else { return };
        assert_eq!(answer, "ok: cuBLASLt 13.0.2, cuDNN 9.10.2");
        for gone in [
            "cudnn released: 0 descriptors, 0 handles left",
            "cublasLt released: 0 descriptors, 0 handles left",
            "FAKE released: 0 contexts, 0 streams, 0 modules, 0 buffers, 0 graphs left",
        ] {
            assert!(out.contains(gone), "{gone}: {out}");
        }
    }
}

/// Without the library's best way there is another that gives the same bytes each time.
#[test]
fn forward_passes_have_a_second_choice() {
    let Some((answer, _)) = ask(Through::Told, "good", &[("FAKE_CUDNN_NO_PRECOMP", "1")]) else { return };
    assert_eq!(answer, "ok: cuDNN 9.10.2");
}

#[test]
fn each_refusal_says_why_and_what_to_do() {
    let set = "set SPARSE_ENGINE_CUDA_LIBS or LD_LIBRARY_PATH to the folder of libcudnn.so.9";
    refused("good", &[("FAKE_CUDNN_VERSION", "8907")], &["cuDNN 8.9.7 is too old: wanted 9 or newer", set]);
    refused("less", &[], &["cuDNN has no cudnnConvolutionBackwardData", set]);
    refused("alone", &[], &["cuDNN is incomplete: libcudnn_graph.so.9 cannot be loaded", set]);
    refused("junk", &[], &["cuDNN cannot be loaded", "junk/libcudnn.so.9", set]);
    refused("good", &[("FAKE_CUDNN_CREATE", "1001")], &["9.10.2 refuses cudnnCreate: CUDNN_STATUS_NOT_INITIALIZED"]);
    refused("good", &[("FAKE_CUDNN_ALGORITHM", "3000")], &["no deterministic forward pass", "NOT_SUPPORTED"]);
    refused("good", &[("FAKE_CUDNN_RUN", "5000")], &["GPU: cudnnConvolutionForward fails with", "EXECUTION_FAILED"]);

    let matrix = |setting| [("ACT", "matrix"), setting];
    let set = "SPARSE_ENGINE_CUDA_LIBS or LD_LIBRARY_PATH to the folder of libcublasLt.so.13";
    refused("good", &matrix(("FAKE_BLASLT_VERSION", "111103")), &["cuBLASLt 11.11.3 is too old: wanted 12", set]);
    refused("less", &matrix(("NOTHING", "set")), &["cuBLASLt has no cublasLtMatmul", set]);
    refused("junk", &matrix(("NOTHING", "set")), &["cuBLASLt cannot be loaded", "junk/libcublasLt.so.13", set]);
    refused("good", &matrix(("FAKE_BLASLT_CREATE", "1")), &["13.0.2 refuses cublasLtCreate: CUBLAS_STATUS_NOT_INIT"]);
    refused("good", &matrix(("FAKE_BLASLT_NONE", "1")), &["no deterministic forward pass", "NOT_SUPPORTED"]);
    refused("good", &matrix(("FAKE_BLASLT_ALGORITHM", "7")), &["no deterministic forward pass", "INVALID_VALUE"]);
    refused("good", &matrix(("FAKE_BLASLT_RUN", "13")), &["GPU: cublasLtMatmul fails with", "EXECUTION_FAILED"]);
}

/// Else the version that was checked would not be the one that runs.
#[test]
fn a_library_that_the_loader_prefers_is_told() {
    let Some(dir) = counterfeits() else { return };
    let loader = std::env::join_paths([dir.join("cuda"), dir.join("other")]).unwrap();
    refused(
        "good",
        &[("LD_LIBRARY_PATH", loader.to_str().unwrap())],
        &["loader prefers another cuDNN", "set LD_LIBRARY_PATH"],
    );
}

#[test]
fn a_plan_that_asks_for_what_is_not_there_is_refused() {
    let Some((answer, _)) = ask(Through::Told, "good", &[("ACT", "plan")]) else { return };
    assert_eq!(answer, "ok: cuda Counterfeit 0, fp16, cuDNN 9.10.2");
    let Some((answer, _)) = ask(Through::Told, "nowhere", &[("ACT", "plan")]) else { return };
    if answer.starts_with("ok: ") {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: this machine has cuDNN\n")));
        return;
    }
    for part in ["no: ", "the plan sends the forward pass of layer 0 to a vendor's library: cuDNN", "nvidia-cudnn-cu13"]
    {
        assert!(answer.contains(part), "{part:?} is missing in: {answer}");
    }
}
