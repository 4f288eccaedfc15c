//! Every backend operation: the reference against finite differences and small examples worked by hand, the other
//! backends against the reference, and the suite against planted faults.

#[path = "common/broken.rs"]
mod broken;
mod common;
#[path = "common/differences.rs"]
mod differences;
#[path = "common/fault.rs"]
mod fault;

use broken::Broken;
use common::{conv, norm, pool, small, step};
use fault::Fault;
use sparse_engine::backend::cpu::{CpuBackend, Isa};
#[cfg(feature = "emu")]
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{self, GpuBackend, Precision, cuda::Cuda};
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{Backend, Spec};
use std::panic::{AssertUnwindSafe, catch_unwind};

// A backend is added here: its suite, and the planted faults on top of it.
#[test]
fn reference() {
    common::suite(&RefBackend::new);
}

#[test]
fn cpu() {
    let sets = Isa::ALL.into_iter().filter(|i| i.available()).map(|isa| (2, isa));
    for (threads, isa) in sets.chain([(1, Isa::detect())]) {
        common::suite(&|spec| CpuBackend::with_isa(spec, threads, isa).unwrap());
    }
}

#[cfg(feature = "emu")]
fn emulated_gpu(order: Order, precision: Precision) {
    common::suite(&|spec| GpuBackend::new(Emulated::new(order).unwrap(), spec, precision, None).unwrap());
}

// Each kernel that the precisions share runs in both orders of the threads; so do the tensor cores' kernels of one of them.
#[test]
#[cfg(feature = "emu")]
fn emulated_gpu_f32() {
    emulated_gpu(Order::Ascending, Precision::F32);
}

#[test]
#[cfg(feature = "emu")]
fn emulated_gpu_f16() {
    Order::BOTH.into_iter().for_each(|order| emulated_gpu(order, Precision::F16));
}

#[test]
#[cfg(feature = "emu")]
fn emulated_gpu_bf16() {
    emulated_gpu(Order::Descending, Precision::Bf16);
}

#[test]
#[cfg(feature = "emu")]
fn emulated_gpu_tf32() {
    emulated_gpu(Order::Descending, Precision::Tf32);
}

/// The same on a real GPU, where there is one.
#[test]
fn real_gpu() {
    match gpu::probe() {
        Ok(_) => {
            for precision in Precision::ALL {
                common::suite(&|spec| GpuBackend::new(Cuda::open().unwrap(), spec, precision, None).unwrap());
            }
        }
        Err(why) => drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {why}\n"))),
    }
}

#[test]
fn faults_on_cpu() {
    planted_faults_are_found(&|spec| CpuBackend::new(spec, 2).unwrap());
}

#[test]
fn faults_on_the_reference() {
    planted_faults_are_found(&RefBackend::new);
}

type Check<B> = fn(&dyn Fn(Spec) -> Broken<B>);

/// Each fault, the part of the suite that must find it, and how the message begins.
fn faults<B: Backend>() -> Vec<(Fault, Check<B>, &'static str)> {
    vec![
        (Fault::WeightDropsLastImage, conv::check, "conv_backward"),
        (Fault::WeightReadsWholeBatch, conv::check, "conv_backward"),
        (Fault::OverwriteAdds, conv::check, "conv_backward overwrite"),
        (Fault::AccumulateOverwrites, conv::check, "conv_backward accumulate"),
        (Fault::ForwardImprecise, conv::check, "conv_forward"),
        (Fault::BiasOnce, conv::check, "conv_forward"),
        (Fault::PaddingNormalised, conv::check, "conv_forward norm true"),
        (Fault::ReluSkipped, conv::check, "conv_forward norm true relu true"),
        (Fault::StatsDropLastImage, conv::check, "conv_forward"),
        (Fault::RunningVarianceBiased, norm::check, "norm_stats"),
        (Fault::RunningMoves, norm::check, "norm_running"),
        (Fault::RunningIgnored, norm::check, "join_forward after norm_running"),
        (Fault::MaskSkipped, norm::check, "copy_backward Overwrite mask stored"),
        (Fault::MaskSkipped, conv::check, "conv_backward"),
        (Fault::MaskOfStored, norm::check, "copy_backward Overwrite mask norm"),
        (Fault::ReducedBeforeAdded, norm::check, "copy_backward Accumulate mask none sums 1"),
        (Fault::ReducedBeforeAdded, conv::check, "conv_backward accumulate"),
        (Fault::ReducedBeforeMasked, norm::check, "copy_backward Overwrite mask stored sums 1"),
        (Fault::ReducedBeforeMasked, conv::check, "conv_backward"),
        (Fault::SecondReduceSkipped, norm::check, "copy_backward Overwrite mask none sums 2"),
        (Fault::AffineWithoutXhat, norm::check, "copy_backward through a norm Overwrite"),
        (Fault::JoinForgetsTwin, small::join, "join_forward"),
        (Fault::PoolScale, pool::mean, "pool_backward overwrite"),
        (Fault::MaxTiesToLast, pool::max, "max_pool_backward overwrite"),
        (Fault::MaxPadsZero, pool::max, "max_pool_forward"),
        (Fault::NoSmoothing, small::cross_entropy, "cross_entropy smoothing 0.1"),
        (Fault::SummedLoss, small::cross_entropy, "cross_entropy smoothing 0"),
        (Fault::NoNesterov, small::sgd, "sgd"),
        (Fault::DecayedGradient, small::sgd, "sgd"),
        (Fault::ExemptDecays, small::sgd, "sgd"),
        (Fault::FrozenAsBatch, norm::check, "copy_backward through a frozen norm Overwrite"),
        (Fault::DataWritesWeights, conv::check, "conv_data_backward"),
        (Fault::ReluSwallowsNan, step::nan_is_kept, "join_forward with NaN"),
        (Fault::WeightReadsWholeBatch, step::earlier_batches_leave_no_trace, "a step with 5 images"),
        (Fault::StaleCopy, step::updates_reach_the_kernels, "evaluation after a restored state"),
    ]
}

/// Each fault on top of a good backend, at that backend's precision.
fn planted_faults_are_found<B: Backend>(make: &dyn Fn(Spec) -> B) {
    common::suite(&|spec| Broken::new(make(spec), Fault::None));
    for (fault, check, message) in faults() {
        let run = || check(&|spec| Broken::new(make(Broken::<B>::told(spec, fault)), fault));
        let panic = catch_unwind(AssertUnwindSafe(run)).expect_err(&format!("{fault:?} passed"));
        let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
        let got = literal.or(panic.downcast_ref::<String>().cloned()).expect("a message");
        assert!(got.starts_with(message), "{fault:?} should fail in {message}, failed with: {got}");
    }
}
