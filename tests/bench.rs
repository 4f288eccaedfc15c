//! `bench`: what it prints, what it refuses, and that a step or an operation with a planted fault has no time.

mod bench_faults;

use assert_cmd::Command;
use bench_faults::{Broken, Fault};
use serde_json::Value;
use sparse_engine::Result;
use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{Backend, Spec};
use sparse_engine::bench::kernels::{self, Case, CheckedConv, Op, Pass};
use sparse_engine::bench::step::{self, CheckedStep, Config, Dense};
use sparse_engine::shape::ConvGeom;
use sparse_engine::sparsity::{Density, Method, Pattern};
use std::time::Duration;

fn small(model: &str, batch: usize) -> Config {
    Config {
        model: model.into(),
        width: (model == "resnet8").then_some(4),
        channels: 3,
        image_size: if model == "resnet8" { 8 } else { 32 },
        classes: 5,
        method: Method::Erk,
        density: Density::from_density(0.2).unwrap(),
        pattern: Pattern::Unstructured,
        batch,
        steps: 2,
        warmup: 2,
        seed: 3,
        check: true,
    }
}

/// What a bench of `config` says with `fault` in the backend.
fn with_fault<B: Backend>(config: &Config, fault: Fault, make: &dyn Fn(Spec) -> Result<B>) -> Result<step::Report> {
    let make = |spec: Spec| Ok(Broken::new(make(spec)?, fault));
    step::run(config, &make, Dense::Skip)
}

#[test]
fn a_step_with_a_fault_has_no_time() {
    use Fault::*;
    let cpu = |spec: Spec| CpuBackend::new(spec, 2);
    let config = small("resnet8", 17);
    let good = with_fault(&config, None, &cpu).unwrap();
    let verified = good.sparse.verified.unwrap();
    assert!(verified.worst <= 0.5, "the limits have room: {verified:?}");
    for (fault, op) in [
        (UploadSwapsImages, "upload"),
        (ForwardImprecise, "conv_forward of conv"),
        (ForwardForgetsLastImage, "conv_forward of conv"),
        (ForwardReadsStaleWeights, "conv_forward of conv"),
        (InputForgetsRelu, "conv_forward of segment0.block0.conv1"),
        (StatisticsMoveNothing, "running mean of bn"),
        (JoinForgetsRelu, "join_forward"),
        (WeightDropsLastImage, "weight's gradient of fc"),
        (GradientForgetsNorm, "conv_backward of segment2"),
        (MaskIgnored, "pool_backward"),
        (SumsForgotten, "segment2"),
        (NothingWritten, "conv_forward of conv"),
        (SummedLoss, "gradient of the loss"),
        (WrongCorrect, "correct images"),
        (NoNesterov, "sgd: value"),
        (MomentumForgotten, "sgd: momentum"),
    ] {
        let error = with_fault(&config, fault, &cpu).err().unwrap_or_else(|| panic!("{fault:?} has a time"));
        let text = error.to_string();
        assert_eq!(error.exit_code(), 1, "{fault:?}: {text}");
        assert!(text.contains(op) && text.contains("no time"), "{fault:?}: {text}");
    }
}

#[test]
fn a_check_can_be_left_out_but_not_by_default() {
    let cpu = |spec: Spec| CpuBackend::new(spec, 2);
    let config = Config { check: false, ..small("resnet8", 17) };
    // The fault shows that nothing is checked, of either network: the test above finds it.
    let make = |spec: Spec| Ok(Broken::new(cpu(spec)?, Fault::ForwardImprecise));
    let report = step::run(&config, &make, Dense::Beside { make: &make, memory: &|| None }).unwrap();
    assert_eq!((report.sparse.verified, report.dense.unwrap().verified), (None, None));
    assert!(report.sparse.step_ms.min > 0.0);
}

#[test]
fn faults_of_other_networks_are_found_too() {
    let cpu = |spec: Spec| CpuBackend::new(spec, 1);
    let config = Config { steps: 1, warmup: 1, ..small("resnet18", 2) };
    with_fault(&config, Fault::None, &cpu).unwrap();
    for (fault, op) in [
        (Fault::MaxPoolForgetsRelu, "max_pool_forward"),
        (Fault::MaxPoolGradientElsewhere, "max_pool_backward"),
        (Fault::AccumulateOverwrites, "backward"),
    ] {
        let text = with_fault(&config, fault, &cpu).err().unwrap_or_else(|| panic!("{fault:?} has a time")).to_string();
        assert!(text.contains(op), "{fault:?}: {text}");
    }
}

#[test]
fn the_reference_passes_its_own_check() {
    for batch in [1, 5] {
        let report = with_fault(&small("resnet8", batch), Fault::None, &|spec| Ok(RefBackend::new(spec))).unwrap();
        let verified = report.sparse.verified.unwrap();
        assert!(verified.values > 1000 && verified.worst < 1e-6, "f64 is far within what f32 may do: {verified:?}");
    }
}

#[test]
fn every_operation_is_checked_alone() {
    let geom = |c, h, w, k, r, stride| ConvGeom { c, h, w, k, r, s: r, stride, pad: r / 2 };
    let shapes = [geom(3, 9, 7, 5, 3, 2), geom(20, 5, 5, 33, 1, 1), geom(2, 11, 13, 3, 7, 2)];
    for ((name, op), geom) in Op::ALL.into_iter().flat_map(|op| shapes.map(|g| (op, g))) {
        let geom = if op == Op::Linear { ConvGeom { h: 1, w: 1, r: 1, s: 1, stride: 1, pad: 0, ..geom } } else { geom };
        let case = Case {
            op,
            geom,
            batch: 17,
            density: Density::from_density(0.3).unwrap(),
            pattern: Pattern::Unstructured,
            plain: geom.stride == 1,
            time: Duration::from_micros(1),
            crossover: geom.stride == 1,
            seed: 1,
        };
        let run = |fault| {
            let make = |spec: Spec| Ok(Broken::new(CpuBackend::new(spec, 2)?, fault));
            kernels::run(&case, &make, &make)
        };
        let report = run(Fault::None).unwrap_or_else(|e| panic!("{name} {geom:?}: {e}"));
        assert!(report.ms.max > 0.0 && report.bytes > 0 && report.verified.values > 50, "{name}: {report:?}");
        assert_eq!(report.dense_ms.is_some(), op != Op::Bn);
        assert_eq!(report.crossover.is_some(), case.crossover && !matches!(op, Op::Bn | Op::Sgd));
        let fault = match op {
            Op::ConvFwd => Fault::ForwardForgetsLastImage,
            Op::ConvDgrad | Op::Linear | Op::ConvWgrad => Fault::WeightDropsLastImage,
            Op::Bn => Fault::SumsForgotten,
            Op::Sgd => Fault::NoNesterov,
        };
        let error = run(fault).err().unwrap_or_else(|| panic!("{name} with {fault:?} has a time"));
        assert!(error.exit_code() == 1 && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_other_harnesses_time_is_checked() {
    let make = |fault| move |spec: Spec| Ok(Broken::new(CpuBackend::new(spec, 2)?, fault));
    let config = Config { check: false, ..small("resnet8", 5) };
    let mut good = CheckedStep::new(&config, &make(Fault::None)).unwrap();
    good.step().unwrap();
    assert!(CheckedStep::new(&config, &make(Fault::ForwardImprecise)).is_err());
    let report = with_fault(&config, Fault::None, &|spec| CpuBackend::new(spec, 2)).unwrap();
    assert_eq!(config.flops().unwrap(), 6 * 5 * report.sparse.macs);

    let case = |density| Case {
        op: Op::Sgd,
        geom: ConvGeom { c: 5, h: 9, w: 7, k: 6, r: 3, s: 3, stride: 2, pad: 1 },
        batch: 17,
        density: Density::from_density(density).unwrap(),
        pattern: Pattern::Unstructured,
        plain: false,
        time: Duration::ZERO,
        crossover: false,
        seed: 1,
    };
    for density in [0.3, 1.0] {
        let case = case(density);
        let mut good = CheckedConv::new(&case, &make(Fault::None)).unwrap();
        Pass::ALL.iter().for_each(|&(_, pass)| good.call(pass));
        for fault in [Fault::ForwardForgetsLastImage, Fault::WeightDropsLastImage, Fault::MaskIgnored] {
            assert!(CheckedConv::new(&case, &make(fault)).is_err(), "{fault:?} at density {density}");
        }
        let (nnz, x, y) = ((270.0 * density) as u64, 17 * 5 * 63, 17 * 6 * 20);
        let flops = 2 * nnz * 17 * 20;
        assert_eq!(case.work(Pass::Forward), (flops, 4 * (x + y + 2 * nnz)));
        assert_eq!(case.work(Pass::WeightGradient), (flops, 4 * (x + 2 * y + 2 * nnz)));
        assert_eq!(case.work(Pass::BothGradients), (2 * flops, 4 * (2 * x + 2 * y + 3 * nnz)));
    }
}

#[test]
fn the_twin_and_its_memory_are_reported() {
    let cpu = |spec: Spec| CpuBackend::new(spec, 2);
    let memory = sparse_engine::bench::memory::Memory { start_rss_bytes: 1, peak_rss_bytes: 3 };
    let measure = || Some(memory);
    let config = Config { steps: 7, ..small("resnet8", 6) };
    let report = step::run(&config, &cpu, Dense::Beside { make: &cpu, memory: &measure }).unwrap();
    let dense = report.dense.unwrap();
    assert_eq!(dense.memory, Some(memory));
    assert_eq!((dense.macs, report.sparse.macs < dense.macs), (report.macs_dense, true));
    let ratio = report.ratio.unwrap();
    assert!(ratio.min > 0.0 && ratio.min <= ratio.median && ratio.median <= ratio.max, "{ratio:?}");
    for figures in [&report.sparse, &dense] {
        // Minima of the phases add up to at most the fastest step.
        let least: f64 = figures.phases_ms.iter().map(|(_, ms)| ms.min).sum();
        assert!(least <= figures.step_ms.min * 1.001, "{least} of {:?}", figures.step_ms);
        assert!(figures.phases_ms.iter().all(|(_, ms)| ms.min >= 0.0));
        assert!(
            (figures.gflops(figures.macs, 6) * figures.step_ms.median * 1e6 / 36.0 - figures.macs as f64).abs() < 1.0
        );
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

const TINY: &str = "bench step --model resnet8 --width 4 --image-size 8 --batch 17 --warmup 1 --threads 2";

#[test]
fn json_has_what_is_promised() {
    let all = json(&format!("{TINY} --steps 6 --sparsity 0.8 --json"));
    assert_eq!((&all["model"], &all["batch"], &all["threads"]), (&"resnet8".into(), &17.into(), &2.into()));
    assert_eq!((&all["method"], all["sparsity"].as_f64().unwrap()), (&"erk".into(), 0.8));
    let inspect = json("inspect --model resnet8 --width 4 --image-size 8 --sparsity 0.8 --json");
    let share = inspect["macs_sparse"].as_f64().unwrap() / inspect["macs_dense"].as_f64().unwrap();
    assert!((all["density_flops"].as_f64().unwrap() - share).abs() < 1e-12);
    assert_eq!((&all["nnz"], &all["maskable"]), (&inspect["nnz"], &inspect["maskable"]));
    let number = |key: &str| all[key].as_f64().unwrap_or_else(|| panic!("{key}: {}", all[key]));
    for prefix in ["", "dense_"] {
        let [min, q1, median, q3] = ["min", "q1", "median", "q3"].map(|of| number(&format!("{prefix}step_ms_{of}")));
        assert!(0.0 < min && min <= q1 && q1 <= median && median <= q3, "{prefix}");
        assert!((number(&format!("{prefix}images_per_s")) - 17e3 / median).abs() < 1e-6);
        let ratio = number(&format!("{prefix}gflops_effective")) / number(&format!("{prefix}gflops_nominal"));
        assert!((ratio - if prefix.is_empty() { share } else { 1.0 }).abs() < 1e-9, "{prefix}: {ratio}");
        assert!(all[format!("{prefix}verified")]["values"].as_u64().unwrap() > 1000);
        for phase in [
            "upload",
            "conv_forward",
            "join_forward",
            "pool_forward",
            "loss",
            "pool_backward",
            "conv_backward",
            "sgd",
            "other",
        ] {
            assert!(all[format!("{prefix}phases_ms")][phase]["median"].as_f64().unwrap() >= 0.0, "{phase}");
        }
        let bytes = all[format!("{prefix}bytes")].as_object().unwrap();
        let parts: u64 = bytes.iter().filter(|(k, _)| *k != "total").map(|(_, v)| v.as_u64().unwrap()).sum();
        assert_eq!(bytes["total"], parts);
        if cfg!(target_os = "linux") {
            let above = number(&format!("{prefix}peak_rss_bytes")) - number(&format!("{prefix}start_rss_bytes"));
            assert!(above > 0.0 && above < 200e6, "{prefix}: {above}");
        }
    }
    assert_eq!((&all["checked"], &all["pattern"]), (&true.into(), &"unstructured".into()));
    assert!(all["sparse_over_dense"]["median"].as_f64().unwrap() > 0.0);
    assert!(all["machine"]["cores"].as_u64().unwrap() >= 1 && all.as_object().unwrap().contains_key("commit"));
}

#[test]
fn without_the_twin_its_keys_are_null() {
    let all = json(&format!("{TINY} --steps 2 --no-dense --method dense --json"));
    let nulls: Vec<_> = all.as_object().unwrap().iter().filter(|(_, v)| v.is_null()).map(|(k, _)| k.as_str()).collect();
    let expected = |k: &&str| k.starts_with("dense_") || ["sparse_over_dense", "commit", "dirty", "plan"].contains(k);
    assert!(nulls.iter().all(expected) && nulls.contains(&"dense_step_ms_median"), "{nulls:?}");
    assert_eq!((&all["sparsity"], &all["density_flops"]), (&0.0.into(), &1.0.into()));
}

#[test]
fn no_check_is_told() {
    let all = json(&format!("{TINY} --steps 2 --no-check --json"));
    assert_eq!(all["checked"], false);
    for prefix in ["", "dense_"] {
        assert!(all[format!("{prefix}verified")].is_null() && all[format!("{prefix}step_ms_min")].is_number());
    }
    let (code, text, _) = program(&format!("{TINY} --steps 2 --no-dense --no-check"));
    assert!(code == 0 && text.contains("not checked (--no-check)") && !text.contains("checked in f64"), "{text}");
    let (_, help, _) = program("bench step --help");
    assert!(help.contains("--no-check"), "{help}");
}

#[test]
fn a_plan_is_used_and_must_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let path = path.to_str().unwrap();
    let args = "--model resnet8 --width 4 --image-size 8 --sparsity 0.9 --batch 17 --threads 2";
    let (code, _, stderr) = program(&format!("tune {args} --budget 0.1 --out {path}"));
    assert_eq!(code, 0, "{stderr}");
    let all = json(&format!("{TINY} --steps 1 --plan {path} --json"));
    assert_eq!(all["plan"], path);
    let (_, text, _) = program(&format!("{TINY} --steps 1 --plan {path} --no-check"));
    assert!(text.contains(&format!("; plan {path};")), "{text}");
    for (more, word) in [("--sparsity 0.8", "another sparsity"), ("--image-size 16", "another network")] {
        let args = TINY.replace("--image-size 8", if more.starts_with("--image") { "" } else { "--image-size 8" });
        let (code, stdout, stderr) = program(&format!("{args} {more} --plan {path}"));
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        assert!(stderr.contains(word) && stderr.contains("plan.json"), "{stderr}");
    }
    let (code, _, stderr) = program(&format!("{TINY} --plan nowhere.json"));
    assert!(code == 1 && stderr.contains("nowhere.json"), "{stderr}");
}

#[test]
fn people_get_a_table() {
    let (code, with, _) = program(&format!("{TINY} --steps 2"));
    let (_, without, _) = program(&format!("{TINY} --steps 2 --no-dense"));
    assert_eq!(code, 0);
    for word in
        ["resnet8, width 4", "erk, 90 % pruned", "checked in f64", "conv backward", "images a second", "peak memory"]
    {
        assert!(with.contains(word) && without.contains(word), "{word}: {with}\n{without}");
    }
    assert!(with.contains("sparse/dense") && !without.contains("sparse/dense"), "{with}\n{without}");
}

#[test]
fn wrong_arguments_are_refused() {
    for (args, code, word) in [
        ("bench", 2, "step"),
        ("bench step --model resnet21", 2, "resnet21"),
        ("bench step --method best", 2, "uniform"),
        ("bench step --pattern block:4", 2, "block:16x16"),
        ("bench step --sparsity 1", 2, "sparsity"),
        ("bench step --method dense --sparsity 0.5", 2, "dense"),
        ("bench step --batch 0", 2, "batch"),
        ("bench step --steps 0", 2, "steps"),
        ("bench step --warmup 0", 2, "warmup"),
        ("bench step --threads 0", 2, "threads"),
        ("bench step --device gpu", 2, "cuda"),
        ("bench step --precision fp16", 2, "--precision is for GPUs"),
        ("bench kernels --precision bf16", 2, "--precision is for GPUs"),
        ("bench kernels --pattern block:0x4", 2, "block"),
        ("bench step --model resnet50 --width 8", 2, "width"),
        ("bench step --model resnet8 --image-size 1", 2, "image size"),
        ("bench step --model resnet8 --image-size 4 --batch 1", 2, "batch norm"),
        ("bench kernels --op conv", 2, "conv_fwd"),
        ("bench kernels --shape 1,2,3", 2, "STRIDE"),
        ("bench kernels --shape 3,4,4,8,9,1,0", 2, "fits"),
        ("bench kernels --shape 3,4,4,8,3,0", 2, "at least 1"),
        ("bench kernels --density 0", 2, "density"),
        ("bench kernels --set resnet21", 2, "resnet21"),
        ("bench kernels --shape 3,4,4,8,3,1 --set resnet20", 2, "--set"),
        ("bench kernels --op linear --shape 16777216,16777216", 2, "weights"),
        ("bench kernels --op linear --shape 60000,60000", 2, "at most 268435456 weights"),
        ("bench kernels --shape 3,4,4,8,3,65", 2, "at most 64"),
        ("bench kernels --shape 3,4,4,8,3,16777216", 2, "at most 64"),
        ("bench step --image-size 1024 --batch 1000000", 1, "lower"),
        ("tune --model resnet8 --image-size 4 --batch 1 --sparsity 0.5", 2, "batch norm"),
        ("tune --costs --model resnet8 --image-size 4 --batch 1", 2, "batch norm"),
    ] {
        let (got, stdout, stderr) = program(args);
        assert_eq!((got, stdout.as_str()), (code, ""), "{args}: {stderr}");
        assert!(stderr.contains(word), "{args}: {stderr}");
    }
}

#[test]
fn kernels_beside_the_peaks() {
    let ops = ["conv_fwd", "conv_dgrad", "conv_wgrad"];
    let all =
        json("bench kernels --shape 8,6,6,4,3,1 --batch 17 --density 0.5 --threads 1 --time 1 --crossover --json");
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v}"));
    assert!(number(&all["peaks"]["fma_gflops"]) > 0.0 && number(&all["peaks"]["copy_gb_s"]) > 0.0);
    let results = all["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["op"].as_str().unwrap()).collect::<Vec<_>>(), ops);
    for r in results {
        assert_eq!((&r["nnz"], &r["shape"]["pad"], &r["model"]), (&144.into(), &1.into(), &Value::Null));
        assert_eq!(r["flops"], 2 * 144 * 36 * 17);
        let crossover = number(&r["crossover_density"]);
        assert!(crossover > 0.0 && crossover <= 1.0 && (crossover * 32.0).fract() == 0.0, "{crossover}");
        assert!(r["plan"]["forward"].is_string() && number(&r["dense_ms_median"]) != 0.0);
        assert!(number(&r["verified"]["values"]) > 100.0);
    }
    let (x, y) = (8 * 36 * 17, 4 * 36 * 17);
    assert_eq!(results[0]["bytes"], 4 * (x + y + 2 * 144), "input, output, value and index");

    let all = json("bench kernels --set resnet8 --op bn,sgd --batch 2 --threads 3 --time 1 --density 0.5 --json");
    assert_eq!(all["threads"], 3, "as asked; the peaks are measured on one a core at most");
    for r in all["results"].as_array().unwrap() {
        let number = |key: &str| r["shape"][key].as_u64().unwrap();
        let wanted = match r["op"].as_str().unwrap() {
            "bn" => 18 * number("c") * number("h") * number("w") * 2,
            _ => 8 * r["nnz"].as_u64().unwrap(),
        };
        assert_eq!(r["flops"], wanted, "{r}");
        assert!(r["gflops"].as_f64().unwrap() > 0.0);
    }

    let (code, text, _) = program("bench kernels --set resnet8 --op bn,sgd,linear --batch 2 --threads 1 --time 1");
    assert_eq!(code, 0);
    for word in
        ["peaks:", "16x32x32 (3 of resnet8)", "64 to 10 (1 of resnet8)", "weights (1 of resnet8)", "checked in f64"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}
