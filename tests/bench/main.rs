//! `bench`: what it prints, what it refuses, and that a step or an operation with a planted fault has no time.

mod cli;
mod faults;
#[path = "../program/mod.rs"]
mod program;

use faults::{Broken, Fault};
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
