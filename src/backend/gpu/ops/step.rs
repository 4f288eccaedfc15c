//! Launchers of `kernels/step.cu`. `state`: device address of a [`StepState`](super::state::StepState).

use super::super::driver::{Arg, Driver, Launch};
use crate::error::Result;

const ONE: Launch = Launch { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };

/// Begins a step: counts it, lets it update, and takes its learning rate from `rates`, f32 `[count]` on the device, of which
/// the first is that of step `StepState::first + 1`; beyond the last one it stays. `count` 0: the rate is left as it is.
///
/// # Safety
/// `state` and `rates` must be addresses of live buffers of `driver` of these sizes, which nothing else uses until
/// [`Driver::synchronise`].
pub unsafe fn step_begin<D: Driver>(driver: &D, state: u64, rates: u64, count: u64) -> Result<()> {
    // SAFETY: types and order as in the kernel; the rest is the caller's promise.
    unsafe { driver.launch("step_begin", ONE, &[Arg::new(&state), Arg::new(&rates), Arg::new(&count)]) }
}

/// Ends a step: the next batch, one more in `held` if it was, and with `growth` above 0 a dynamic loss scale: halved (not below
/// 1) after a step that was held, doubled (not above 2^24) after `growth` in a row that were not.
///
/// # Safety
/// `state` as in [`step_begin`].
pub unsafe fn step_end<D: Driver>(driver: &D, state: u64, growth: u32) -> Result<()> {
    // SAFETY: as in `step_begin`.
    unsafe { driver.launch("step_end", ONE, &[Arg::new(&state), Arg::new(&growth)]) }
}

/// Adds 1 to the u64 at `batch`: the batch index of an evaluation, which has no step.
///
/// # Safety
/// `batch` must be the address of a u64 in a live buffer of `driver`, which nothing else uses until
/// [`Driver::synchronise`].
pub unsafe fn step_next_batch<D: Driver>(driver: &D, batch: u64) -> Result<()> {
    // SAFETY: as in `step_begin`.
    unsafe { driver.launch("step_next_batch", ONE, &[Arg::new(&batch)]) }
}
