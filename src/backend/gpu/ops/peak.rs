//! Launcher of `kernels/peak.cu`.

use super::super::driver::{Arg, Driver, Launch};
use super::operand::Precision;
use crate::error::Result;

/// Threads of a block.
pub const THREADS: u32 = 256;

/// `blocks` blocks multiply ones, `rounds` times, in registers; each thread writes the total of its 32 sums.
///
/// # Safety
/// `out` must be the address of a live buffer of `driver` of `blocks *` [`THREADS`] f32, which nothing else uses until
/// [`Driver::synchronise`].
pub unsafe fn peak<D: Driver>(driver: &D, precision: Precision, out: u64, blocks: u32, rounds: u32) -> Result<()> {
    let launch = Launch { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
    let kernel = precision.pick(["peak_f32", "peak_tf32", "peak_f16", "peak_bf16"]);
    let one = 1.0f32;
    // SAFETY: types and order as in the kernel; the rest is the caller's promise.
    unsafe { driver.launch(kernel, launch, &[Arg::new(&out), Arg::new(&one), Arg::new(&rounds)]) }
}

/// Products that a round adds to each of a thread's 32 sums.
pub fn products(precision: Precision) -> u32 {
    match precision {
        Precision::F32 => 1,
        Precision::Tf32 => 8,
        Precision::F16 | Precision::Bf16 => 16,
    }
}

/// FLOPs of a block's round: 2 a product.
pub fn flops(precision: Precision) -> u64 {
    2 * u64::from(THREADS * 32 * products(precision))
}
