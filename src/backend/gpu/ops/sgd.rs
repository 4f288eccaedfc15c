//! Launcher of `kernels/sgd.cu`.

use super::super::driver::{Arg, Driver, Launch};
use crate::backend::SgdStep;
use crate::error::Result;

/// By value; same layout as `SgdArgs` in `kernels/sgd.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SgdArgs {
    n: u64,
    vectors: u64,
    lr: f32,
    momentum: f32,
    weight_decay: f32,
    nesterov: u32,
}

const _: () = assert!(size_of::<SgdArgs>() == 32);

/// Threads a block, the kernel's launch bound.
const BLOCK: u32 = 256;

/// One step over `n` stored parameters of all layers, in place: values, grads and momentum are device
/// addresses of f32. 128-bit accesses where all three addresses are multiples of 16. The step's factors are rounded
/// to f32 first.
///
/// # Safety
/// `values`, `grads` and `momentum` must each be the address of `n` f32 in live buffers of `driver`, without overlap,
/// that nothing else uses until [`Driver::synchronise`].
pub unsafe fn sgd_step<D: Driver>(
    driver: &D,
    values: u64,
    grads: u64,
    momentum: u64,
    n: usize,
    step: SgdStep,
) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    let n = n as u64;
    let vectors = if (values | grads | momentum).is_multiple_of(16) { n / 4 } else { 0 };
    let args = SgdArgs {
        n,
        vectors,
        lr: step.lr as f32,
        momentum: step.momentum as f32,
        weight_decay: step.weight_decay as f32,
        nesterov: u32::from(step.nesterov),
    };
    let launch = Launch::linear(n - 3 * vectors, BLOCK)?;
    // SAFETY: types and order as in the kernel; it touches n elements behind each address, which the caller vouches for.
    unsafe {
        driver.launch("sgd_step", launch, &[Arg::new(&values), Arg::new(&grads), Arg::new(&momentum), Arg::new(&args)])
    }
}
