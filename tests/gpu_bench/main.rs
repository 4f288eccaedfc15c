//! `bench` and `selftest` on the emulated GPU: what they measure and print, that a device with a planted fault has no time,
//! and that a graph which does not what its operations do has none either.

mod cli;
mod faulty;
#[path = "../program/mod.rs"]
mod program;

use faulty::{Faulty, Skip};
use sparse_engine::Result;
use sparse_engine::backend::Spec;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{GpuBackend, GpuPlan, LossScale, Precision};
use sparse_engine::bench::gpu::step::{self, GpuConfig, Twins};
use sparse_engine::bench::kernels::{self, Case, GpuCase, Op};
use sparse_engine::bench::step::{Config, Make, Report};
use sparse_engine::shape::{BlockShape, ConvGeom};
use sparse_engine::sparsity::{Density, Method, Pattern};
use std::time::Duration;

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

/// The dense network through host loops, on a device that leaves out the kernels whose names begin with `skip`.
fn vendor(spec: Spec, precision: Precision, skip: Skip) -> Result<GpuBackend<Faulty>> {
    let device = Faulty::open(skip)?;
    let plan = GpuPlan::through_vendor(&device, &spec, precision)?;
    GpuBackend::new(device, spec, precision, Some(&plan))
}

#[test]
fn the_vendor_is_measured_beside_or_said_to_be_missing() {
    let config = Config { steps: 4, ..small() };
    let (precision, gpu) = (Precision::F16, GpuConfig::new(LossScale::Static(1.0)));
    let make = |spec: Spec| GpuBackend::new(Faulty::open(Skip::Never)?, spec, precision, None);
    let run = |vendor: Make<GpuBackend<Faulty>>| {
        let report = step::run(&config, gpu, &make, &Twins { dense: None, vendor: Some(vendor) }).unwrap();
        assert!(report.sparse.step_ms.min > 0.0);
        report.gpu.unwrap().vendor.unwrap()
    };
    let report = run(&|spec| vendor(spec, precision, Skip::Never)).unwrap();
    let figures = &report.figures;
    assert!(report.backend.ends_with("host loops") && report.ratio.unwrap().min > 0.0, "{}", report.backend);
    // Seven convolutions, two shortcuts and the linear layer.
    assert_eq!(report.products, [30, 30]);
    assert!(figures.verified.is_some() && figures.step_ms.min > 0.0 && figures.gpu.as_ref().unwrap().launches > 30);
    // One that makes nothing right has no time; nor has one that is not there. The rest has.
    let wrong = run(&|spec| vendor(spec, precision, Skip::Always("conv_gather_grads"))).unwrap_err();
    assert!(wrong.contains("vendor's dense network's result is wrong"), "{wrong}");
    let none = run(&|spec| {
        let plan = GpuPlan::through_vendor(&Emulated::new(Order::Ascending)?, &spec, precision)?;
        GpuBackend::new(Faulty::open(Skip::Never)?, spec, precision, Some(&plan))
    });
    let none = none.unwrap_err();
    assert!(none.starts_with("no dense product through a vendor's library: emulated gpu"), "{none}");
}

#[test]
fn a_loss_scale_that_overflows_is_let_settle() {
    // Nothing is checked: only the scale matters.
    let config = Config { check: false, steps: 1, batch: 1, ..small() };
    let report = measure(&config, Precision::F16, GpuConfig::new(LossScale::Dynamic), Skip::Never, false).unwrap();
    let (figures, gpu) = (report.sparse.gpu.unwrap(), report.gpu.unwrap());
    assert_eq!((figures.held_steps, figures.graph_steps_verified, gpu.checked_batch), (0, None, None));
    assert!(figures.loss_scale < LossScale::FIRST, "it did overflow: {}", figures.loss_scale);
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
            let vendor = |spec: Spec| {
                let device = Emulated::new(Order::Descending)?.with_vendor();
                let plan = GpuPlan::through_vendor(&device, &spec, precision)?;
                GpuBackend::new(device, spec, precision, Some(&plan))
            };
            let report = kernels::run_on_gpu(&case, gpu, &make, Some(&vendor));
            let report = report.unwrap_or_else(|e| panic!("{name} {geom:?}: {e}"));
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
            assert!((1..20).contains(&own.launches) && own.vendor_missing.is_none(), "{name}: {own:?}");
            assert_eq!(own.vendor_ms.is_some(), conv, "{name}: {own:?}");
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
        let error = kernels::run_on_gpu(&case(op, GEOM, Pattern::Unstructured), gpu, &make, None).err();
        let error = error.unwrap_or_else(|| panic!("{op:?} without {skip} has a time"));
        assert!(error.exit_code() == 1 && error.to_string().contains("no time is given"), "{op:?}: {error}");
    }
}

#[test]
fn a_vendor_with_a_fault_leaves_the_rest_its_time() {
    let make = |spec: Spec| GpuBackend::new(Faulty::open(Skip::Never)?, spec, Precision::F16, None);
    let faulty = |spec| vendor(spec, Precision::F16, Skip::Always("conv_gather_grads"));
    let gpu = GpuCase::new(Precision::F16, 0);
    let case = case(Op::ConvWgrad, GEOM, Pattern::Unstructured);
    let report = kernels::run_on_gpu(&case, gpu, &make, Some(&faulty)).unwrap();
    let own = report.gpu.unwrap();
    let why = own.vendor_missing.unwrap();
    assert!(report.ms.min > 0.0 && own.vendor_ms.is_none() && why.contains("conv_wgrad is wrong"), "{why}");
}
