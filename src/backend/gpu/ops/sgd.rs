//! Launchers of `kernels/sgd.cu`. What steers a step is a [`StepState`](super::state::StepState) on the device.

use super::super::driver::{Arg, Driver, Launch};
use super::operand::Element;
use crate::error::Result;

/// The master values with what mirrors them, device addresses; same layout as `SgdStore` in `kernels/sgd.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SgdStore {
    /// f32 `[n]`.
    pub values: u64,
    /// [`Place`] `[n]`; 0: no operand copies.
    pub map: u64,
    /// First operand copy of all layers.
    pub w: u64,
    /// Second operand copy of all layers.
    pub wt: u64,
    /// Stored parameters of all layers.
    pub n: u64,
}

/// Where a parameter's value is copied to: index of the element in each copy, or [`Place::NOWHERE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Place {
    /// In [`SgdStore::w`].
    pub w: u32,
    /// In [`SgdStore::wt`].
    pub wt: u32,
}

impl Place {
    /// Not copied.
    pub const NOWHERE: u32 = u32::MAX;
}

/// By value; same layout as `SgdArgs` in `kernels/sgd.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SgdArgs {
    store: SgdStore,
    grads: u64,
    momentum: u64,
    exempt: u64,
    state: u64,
    vectors: u64,
}

const _: () = assert!(size_of::<SgdArgs>() == 80 && size_of::<SgdStore>() == 40 && size_of::<Place>() == 8);

/// Threads a block, the kernels' launch bound.
const BLOCK: u32 = 256;
/// Most blocks of the check of all gradients: a few for each multiprocessor there is.
const CHECK_BLOCKS: u32 = 1024;

/// One step over the stored parameters of all layers, in place; the operand copies, of type `element`, follow. 128-bit
/// accesses where values, grads and momentum are at multiples of 16. Nothing is written in a step that `state` holds, nor
/// after a broken one. `exempt`: a bit a parameter, u32 `[ceil(n / 32)]`, set where weight decay does not apply; 0: it does
/// everywhere.
///
/// # Safety
/// `grads` and `momentum` must each be the address of `n` f32, `state` that of a [`StepState`](super::state::StepState), in
/// live buffers of `driver`; `exempt` and `store` as its fields say, the map's indices inside the copies and no two alike. No two
/// overlap, and nothing else uses them until [`Driver::synchronise`].
pub unsafe fn sgd_step<D: Driver>(
    driver: &D,
    element: Element,
    store: &SgdStore,
    grads: u64,
    momentum: u64,
    exempt: u64,
    state: u64,
) -> Result<()> {
    if store.n == 0 {
        return Ok(());
    }
    let vectors = if (store.values | grads | momentum).is_multiple_of(16) { store.n / 4 } else { 0 };
    let args = SgdArgs { store: *store, grads, momentum, exempt, state, vectors };
    let launch = Launch::linear(store.n - 3 * vectors, BLOCK)?;
    let kernel = element.pick(["sgd_step_f32", "sgd_step_f16", "sgd_step_bf16"]);
    // SAFETY: one struct as in the kernel, which touches n elements behind each address and what the map names.
    unsafe { driver.launch(kernel, launch, &[Arg::new(&args)]) }
}

/// Writes the operand copies, of type `element`, from the values: after the host has replaced these.
///
/// # Safety
/// `store` as in [`sgd_step`].
pub unsafe fn copy_values<D: Driver>(driver: &D, element: Element, store: &SgdStore) -> Result<()> {
    if store.n == 0 || store.map == 0 {
        return Ok(());
    }
    let kernel = element.pick(["copy_values_f32", "copy_values_f16", "copy_values_bf16"]);
    // SAFETY: as in `sgd_step`.
    unsafe { driver.launch(kernel, Launch::linear(store.n, BLOCK)?, &[Arg::new(store)]) }
}

/// Holds the step if one of `n` gradients is infinite or NaN.
///
/// # Safety
/// `grads` and `state` as in [`sgd_step`].
pub unsafe fn grads_check<D: Driver>(driver: &D, grads: u64, n: u64, state: u64) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    let mut launch = Launch::linear(n.div_ceil(4), BLOCK)?;
    launch.grid[0] = launch.grid[0].min(CHECK_BLOCKS);
    // SAFETY: types and order as in the kernel; the rest is the caller's promise.
    unsafe { driver.launch("grads_check", launch, &[Arg::new(&grads), Arg::new(&n), Arg::new(&state)]) }
}
