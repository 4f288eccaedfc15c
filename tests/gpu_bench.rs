//! `bench` and `selftest` on the emulated GPU: what they measure and print, that a device with a planted fault has no time,
//! and that a graph which does not what its operations do has none either.

use assert_cmd::Command;
use serde_json::Value;
use sparse_engine::Result;
use sparse_engine::backend::Spec;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{self, Arg, Driver, GpuBackend, Launch, LossScale, Precision};
use sparse_engine::bench::gpu::step::{self, GpuConfig, Twins};
use sparse_engine::bench::kernels::{self, Case, GpuCase, Op};
use sparse_engine::bench::step::{Config, Report};
use sparse_engine::graph::Net;
use sparse_engine::models;
use sparse_engine::report::write_gpu_plan;
use sparse_engine::shape::{BlockShape, ConvGeom};
use sparse_engine::sparsity::{Density, Draw, Method, Pattern, draw_patterns};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// When a kernel is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Skip {
    Never,
    Always(&'static str),
    /// Only from graphs.
    Recorded(&'static str),
}

/// An emulated device that leaves out the kernels whose names begin so.
struct Faulty {
    inner: Emulated,
    skip: Skip,
    recording: AtomicBool,
}

impl Faulty {
    fn open(skip: Skip) -> Result<Self> {
        Ok(Faulty { inner: Emulated::new(Order::Descending)?, skip, recording: AtomicBool::new(false) })
    }
}

impl Driver for Faulty {
    type Buf = <Emulated as Driver>::Buf;
    type Graph = <Emulated as Driver>::Graph;

    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn capability(&self) -> (i32, i32) {
        self.inner.capability()
    }
    fn sm_count(&self) -> u32 {
        self.inner.sm_count()
    }
    fn max_shared_bytes(&self) -> u32 {
        self.inner.max_shared_bytes()
    }
    fn alloc(&self, bytes: usize) -> Result<Self::Buf> {
        self.inner.alloc(bytes)
    }
    fn address(&self, buf: &Self::Buf) -> u64 {
        self.inner.address(buf)
    }
    fn bytes(&self, buf: &Self::Buf) -> usize {
        self.inner.bytes(buf)
    }
    fn upload_at(&self, dst: &mut Self::Buf, at: usize, src: &[u8]) -> Result<()> {
        self.inner.upload_at(dst, at, src)
    }
    fn download_at(&self, src: &Self::Buf, at: usize, dst: &mut [u8]) -> Result<()> {
        self.inner.download_at(src, at, dst)
    }
    fn fill_at(&self, dst: &mut Self::Buf, at: usize, bytes: usize, value: u8) -> Result<()> {
        self.inner.fill_at(dst, at, bytes, value)
    }
    fn allow_shared(&self, kernel: &'static str, bytes: u32) -> Result<()> {
        self.inner.allow_shared(kernel, bytes)
    }
    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        let recording = self.recording.load(Ordering::Relaxed);
        match self.skip {
            Skip::Always(name) if kernel.starts_with(name) => Ok(()),
            Skip::Recorded(name) if recording && kernel.starts_with(name) => Ok(()),
            // SAFETY: the caller's promise.
            _ => unsafe { self.inner.launch(kernel, launch, args) },
        }
    }
    fn launches(&self) -> u64 {
        self.inner.launches()
    }
    fn synchronise(&self) -> Result<()> {
        self.inner.synchronise()
    }
    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph> {
        self.recording.store(true, Ordering::Relaxed);
        let graph = self.inner.capture(record);
        self.recording.store(false, Ordering::Relaxed);
        graph
    }
    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        self.inner.replay(graph)
    }
}

fn small() -> Config {
    Config {
        model: "resnet8".into(),
        width: Some(4),
        channels: 3,
        image_size: 8,
        classes: 5,
        method: Method::Erk,
        density: Density::from_density(0.2).unwrap(),
        pattern: Pattern::Unstructured,
        batch: 5,
        steps: 2,
        warmup: 1,
        seed: 3,
        check: true,
    }
}

fn measure(config: &Config, precision: Precision, gpu: GpuConfig, skip: Skip, dense: bool) -> Result<Report> {
    let make = |spec: Spec| GpuBackend::new(Faulty::open(skip)?, spec, precision, None);
    step::run(config, gpu, &make, &Twins { dense: dense.then_some(&make as _), vendor: None })
}

#[test]
fn steps_are_checked_captured_and_timed() {
    // Enough steps for a graph of three, and a warm-up that ends within one.
    let config = Config { steps: 30, warmup: 4, ..small() };
    for (precision, dense) in [(Precision::F16, true), (Precision::F32, false)] {
        let scale = LossScale::default_for(precision);
        let report = measure(&config, precision, GpuConfig::new(scale), Skip::Never, dense).unwrap();
        let gpu = report.gpu.as_ref().unwrap();
        assert_eq!((gpu.steps_a_graph, gpu.samples, gpu.checked_batch), (3, 10, Some(5)));
        assert!(report.backend.starts_with("emulated gpu") && gpu.vendor.is_none(), "{}", report.backend);
        assert_eq!((report.dense.is_some(), report.ratio.is_some()), (dense, dense));
        for figures in std::iter::once(&report.sparse).chain(&report.dense) {
            let verified = figures.verified.unwrap();
            assert!(verified.values > 1000 && verified.worst < 0.9, "{verified:?}");
            let own = figures.gpu.as_ref().unwrap();
            assert_eq!((own.graph_steps_verified, own.held_steps), (Some(3), 0));
            // Each operation is a kernel at least.
            assert!(own.launches > verified.operations && own.launches < 200, "{}", own.launches);
            assert!(own.launched_ms.min > 0.0 && figures.step_ms.min > 0.0 && figures.bytes.total() > 0);
            assert_eq!(own.data_bytes, 3 * 5 * (3 * 64 + 8));
            assert!(own.loss_scale >= 1.0 && own.loss_scale.log2().fract() == 0.0, "{}", own.loss_scale);
            let names: Vec<_> = figures.phases_ms.iter().map(|(phase, _)| phase.name()).collect();
            assert!(names.contains(&"conv_backward") && names.contains(&"sgd"), "{names:?}");
        }
    }
}

#[test]
fn a_loss_scale_that_overflows_is_let_settle() {
    // Nothing is checked: only the scale matters.
    let config = Config { check: false, steps: 1, ..small() };
    let report = measure(&config, Precision::F16, GpuConfig::new(LossScale::Dynamic), Skip::Never, false).unwrap();
    let (figures, gpu) = (report.sparse.gpu.unwrap(), report.gpu.unwrap());
    assert_eq!((figures.held_steps, figures.graph_steps_verified, gpu.checked_batch), (0, None, None));
    assert!(report.sparse.verified.is_none() && !report.sparse.phases_ms.is_empty());
}

#[test]
fn large_batches_are_checked_in_part() {
    let gpu = GpuConfig { checked_numbers: 1, ..GpuConfig::new(LossScale::Static(1.0)) };
    let report = measure(&small(), Precision::Bf16, gpu, Skip::Never, false).unwrap();
    // The graph is compared with the operations on the whole batch all the same.
    let checked = report.gpu.unwrap().checked_batch.unwrap();
    assert!((1..5).contains(&checked), "{checked}");
    assert_eq!(report.sparse.gpu.unwrap().graph_steps_verified, Some(1));
}

#[test]
fn a_fault_has_no_time() {
    let gpu = GpuConfig::new(LossScale::Static(1.0));
    for (skip, word) in [
        (Skip::Always("conv_patch"), "loss"), // what memory starts with is NaN
        (Skip::Always("conv_weight"), "gradient"),
        (Skip::Always("norm_sums"), "conv_backward"),
        (Skip::Always("sgd_step"), "sgd"),
        (Skip::Recorded("sgd_step"), "captured steps"),
        (Skip::Recorded("norm_running_update"), "captured steps"),
        (Skip::Recorded("join_forward"), "captured steps"),
        (Skip::Recorded("augment"), "captured steps"),
    ] {
        let error = measure(&small(), Precision::Bf16, gpu, skip, false).err();
        let error = error.unwrap_or_else(|| panic!("{skip:?} has a time"));
        let text = error.to_string();
        assert_eq!(error.exit_code(), 1, "{skip:?}: {text}");
        assert!(text.contains(word) && text.contains("no time is given"), "{skip:?}: {text}");
    }
}

fn case(op: Op, geom: ConvGeom, pattern: Pattern) -> Case {
    Case {
        op,
        geom,
        batch: 3,
        density: Density::from_density(0.25).unwrap(),
        pattern,
        plain: false,
        time: Duration::from_micros(1),
        crossover: false,
        seed: 1,
    }
}

const GEOM: ConvGeom = ConvGeom { c: 32, h: 6, w: 5, k: 32, r: 3, s: 3, stride: 1, pad: 1 };

#[test]
fn kernels_are_checked_captured_and_timed() {
    let odd = ConvGeom { c: 3, h: 9, w: 7, k: 5, r: 3, s: 3, stride: 2, pad: 1 };
    let blocks = Pattern::Block(BlockShape { r: 16, c: 16 });
    for (i, (name, op)) in Op::ALL.into_iter().enumerate() {
        for (geom, pattern) in [(odd, Pattern::Unstructured), (GEOM, blocks)] {
            let linear = ConvGeom { h: 1, w: 1, r: 1, s: 1, stride: 1, pad: 0, ..geom };
            let case = case(op, if op == Op::Linear { linear } else { geom }, pattern);
            let precision = [Precision::F16, Precision::F32, Precision::Bf16, Precision::Tf32][i % 4];
            // Three copies; two images of three are checked.
            let planes = 2 * case.geom.c * case.geom.h * case.geom.w + 3 * case.geom.k * case.geom.p() * case.geom.q();
            let element = precision.element().bytes();
            let rotated_bytes = 2 * 3 * planes as usize * element + element;
            let gpu = GpuCase { precision, rotated_bytes, checked_numbers: 2 * planes as usize };
            let make = |spec: Spec| GpuBackend::new(Emulated::new(Order::Descending)?, spec, precision, None);
            let report = kernels::run_on_gpu(&case, gpu, &make).unwrap_or_else(|e| panic!("{name} {geom:?}: {e}"));
            assert!(report.ms.min > 0.0 && report.bytes > 0 && report.verified.values > 10, "{name}: {report:?}");
            assert_eq!(report.dense_ms.is_some(), op != Op::Bn);
            let own = report.gpu.unwrap();
            let conv = !matches!(op, Op::Bn | Op::Sgd);
            assert_eq!(own.plan.is_some(), conv, "{name}");
            if conv {
                // A linear layer of four blocks cannot keep one: each row and column has one at least.
                let wanted = pattern == blocks && op != Op::Linear;
                assert_eq!(report.block.is_some(), wanted, "{name} {geom:?}");
                assert!((2..=3).contains(&own.copies) && own.checked_batch == 2, "{name}: {own:?}");
            }
            assert!((1..20).contains(&own.launches) && own.vendor_ms.is_none(), "{name}: {own:?}");
        }
    }
}

#[test]
fn a_kernel_with_a_fault_has_no_time() {
    for (op, skip) in [
        (Op::ConvFwd, "conv_"),
        (Op::ConvDgrad, "norm_sums"),
        (Op::ConvWgrad, "conv_weight"),
        (Op::Bn, "join_forward"),
        (Op::Sgd, "sgd_step"),
    ] {
        let make = |spec: Spec| GpuBackend::new(Faulty::open(Skip::Always(skip))?, spec, Precision::F16, None);
        let gpu = GpuCase::new(Precision::F16, 0);
        let error = kernels::run_on_gpu(&case(op, GEOM, Pattern::Unstructured), gpu, &make).err();
        let error = error.unwrap_or_else(|| panic!("{op:?} without {skip} has a time"));
        assert!(error.exit_code() == 1 && error.to_string().contains("no time is given"), "{op:?}: {error}");
    }
}

/// The program: exit code, standard output, standard error.
fn program(args: &str) -> (i32, String, String) {
    let out = Command::cargo_bin("sparse-engine").unwrap().args(args.split_whitespace()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(out.stdout), text(out.stderr));
    assert!(!stderr.contains("panicked"), "{args}: {stderr}");
    (out.status.code().unwrap(), stdout, stderr)
}

fn json(args: &str) -> Value {
    let (code, stdout, stderr) = program(args);
    assert_eq!((code, stderr.as_str()), (0, ""), "{args}");
    serde_json::from_str(&stdout).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const TINY: &str = "bench step --model resnet8 --width 16 --image-size 8 --batch 3 --warmup 1 --steps 1";

#[test]
fn json_has_the_keys_of_the_cpu_and_more() {
    let cpu = json(&format!("{TINY} --threads 1 --json"));
    let all = json(&format!("{TINY} --device emulated --precision tf32 --pattern block:16x16 --method uniform --json"));
    let more = ["device", "precision", "loss_scale", "steps_a_graph", "samples", "checked_batch"];
    let each = ["launches", "launched_ms_median", "launched_ms_q1", "launched_ms_q3", "launched_ms_min"];
    let each: Vec<_> = each.into_iter().chain(["graph_steps_verified", "last_loss_scale", "held_steps"]).collect();
    let got = keys(&all);
    assert_eq!(got[..keys(&cpu).len()], keys(&cpu), "all keys of the CPU, in their order");
    assert!(more.iter().all(|key| got.contains(key) && !keys(&cpu).contains(key)), "{got:?}");
    for key in &each {
        for prefix in ["", "dense_"] {
            assert!(all[format!("{prefix}{key}")].as_f64().is_some_and(|v| v >= 0.0), "{prefix}{key}");
        }
        assert!(all[format!("vendor_{key}")].is_null() && got.contains(&format!("vendor_{key}").as_str()));
    }
    assert_eq!(
        (&all["device"], &all["precision"], &all["pattern"]),
        (&"emulated".into(), &"tf32".into(), &"block:16x16".into())
    );
    assert_eq!((&all["threads"], &all["loss_scale"], &all["checked"]), (&Value::Null, &"1".into(), &true.into()));
    assert!(all["backend"].as_str().unwrap().starts_with("emulated gpu"));
    assert!(all["sparse_over_dense"]["median"].as_f64().unwrap() > 0.0 && all["dense_peak_rss_bytes"].is_null());
    assert_eq!(all["vendor_step_ms_median"], Value::Null);

    let (code, text, _) = program(&format!("{TINY} --device emulated --no-dense --no-check --loss-scale 128"));
    assert_eq!(code, 0);
    for word in
        ["not checked (--no-check)", "kernel by kernel", "1 replays of a graph of 1 step", "on the device", "fp16"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_plan_file_is_used_and_must_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan-cuda.json");
    let graph = models::by_name("resnet8", Some(16), 3, 10, 8).unwrap();
    let density = Density::from_sparsity(0.9).unwrap();
    let masks = draw_patterns(&graph.maskable(), Method::Erk, density, Pattern::Unstructured, Draw::Exact, 0).unwrap();
    let make = |spec: Spec| GpuBackend::new(Emulated::new(Order::Ascending)?, spec, Precision::Bf16, None);
    write_gpu_plan(&path, Net::new(&graph, &masks, 3, make).unwrap().backend().plan()).unwrap();
    let args = format!("{TINY} --device emulated --no-dense --no-check --plan {}", path.display());
    let all = json(&format!("{args} --json"));
    assert_eq!((&all["precision"], &all["plan"]), (&"bf16".into(), &path.to_str().unwrap().into()));
    for (more, code, word) in [
        ("--precision fp16", 2, "the plan is for bf16"),
        ("--sparsity 0.8", 1, "plan-cuda.json"),
        ("--device cpu", 2, "--device"),
    ] {
        let (got, stdout, stderr) = program(&format!("{args} {more}"));
        assert_eq!((got, stdout.as_str()), (code, ""), "{more}: {stderr}");
        assert!(stderr.contains(word), "{more}: {stderr}");
    }
}

#[test]
fn kernels_beside_what_memory_can_do() {
    let args = "bench kernels --device emulated --shape 32,5,5,32,3,1 --batch 2 --density 0.25 --time 1";
    let all = json(&format!("{args} --pattern block:16x16 --json"));
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v}"));
    assert_eq!(
        (&all["device"], &all["precision"], &all["threads"]),
        (&"emulated".into(), &"fp16".into(), &Value::Null)
    );
    let peaks = &all["peaks"];
    assert!(number(&peaks["copy_gb_s"]) > 0.0 && number(&peaks["fill_gb_s"]) > 0.0 && peaks["tensor_gflops"].is_null());
    let results = all["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    let cpu = json("bench kernels --shape 32,5,5,32,3,1 --op conv_fwd --batch 2 --time 1 --threads 1 --json");
    for r in results {
        let (got, on_cpu) = (keys(r), keys(&cpu["results"][0]));
        assert_eq!(got[..on_cpu.len()], on_cpu, "all keys of the CPU, in their order");
        assert_eq!((&r["block"], &r["vendor_ms_median"]), (&"16x16".into(), &Value::Null));
        assert!(number(&r["percent_of_copy_peak"]) > 0.0 && number(&r["launches"]) >= 1.0 && r["plan"].is_object());
    }
    let (x, y, nnz) = (2 * 32 * 25, 2 * 32 * 25, 32 * 32 * 9 / 4);
    assert_eq!(results[0]["bytes"], 2 * (x + y) + 6 * nnz, "halves, and an index of 4 bytes");
    assert_eq!(results[2]["bytes"], 2 * (x + 2 * y) + 8 * nnz, "gradients are f32");

    let (code, text, _) = program("bench kernels --device emulated --op linear,sgd --set resnet8 --batch 2 --time 1");
    assert_eq!(code, 0);
    for word in ["emulated gpu, fp16", "copy", "of copy", "64 to 10 (1 of resnet8)", "checked in f64"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn selftest_names_what_it_checked() {
    for (device, rows) in [("emulated", 20), ("cpu", 5)] {
        let all = json(&format!("selftest --device {device} --json"));
        let cases = all["cases"].as_array().unwrap();
        assert_eq!((cases.len(), &all["schema"]), (rows, &1.into()));
        assert!(all["device"].as_str().unwrap().contains(device) && all["version"].is_string(), "{}", all["device"]);
        for c in cases {
            let (values, worst) = (c["verified"]["values"].as_u64(), c["verified"]["worst"].as_f64());
            assert!(values.unwrap() > 1000 && worst.unwrap() <= 1.0, "{c}");
            assert_eq!(c["precision"].is_null(), device == "cpu");
        }
        assert!(cases.iter().any(|c| c["case"].as_str().unwrap().contains("block:16x16")));
    }
    let (code, text, _) = program("selftest --device emulated --precision bf16");
    assert_eq!((code, text.lines().count()), (0, 7), "{text}");
    assert!(text.starts_with("emulated gpu; ") && text.ends_with("all right\n") && !text.contains("fp16"), "{text}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (args, word) in [
        ("bench step --device emulated --precision f16", "fp16"),
        ("bench step --device emulated --loss-scale 3", "power of two"),
        ("bench step --device cpu --loss-scale 2", "--loss-scale is for GPUs"),
        ("bench step --device emulated --memory-only", "--memory-only"),
        ("bench kernels --device emulated --loss-scale 2", "no loss"),
        ("selftest --device emulated --loss-scale 2", "without a loss scale"),
        ("selftest --device cpu --precision fp16", "for GPUs"),
    ] {
        let (code, stdout, stderr) = program(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args}: {stderr}");
        assert!(stderr.contains(word), "{args}: {stderr}");
    }
    if gpu::find_device().is_err() {
        for args in ["bench step", "bench kernels", "selftest"] {
            let (code, stdout, stderr) = program(&format!("{args} --device cuda"));
            assert_eq!((code, stdout.as_str()), (69, ""), "{args}: {stderr}");
            assert!(stderr.contains("no usable GPU") && stderr.contains("--device cpu"), "{args}: {stderr}");
        }
    }
}
