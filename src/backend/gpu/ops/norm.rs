//! Launchers of `kernels/norm.cu`. A norm's state is [`STATE_ROWS`] rows of `cp` f32 at one device address: scale, shift,
//! mean, 1/sqrt(variance + eps), unbiased variance (-1: the statistics are the running ones), k0, k1, k2.

use super::super::driver::{Arg, Driver, Launch};
use super::operand::{BLOCK_ROWS, Element, padded};
use super::rows;
use crate::error::{Error, Result};

/// Rows of a norm's state.
pub const STATE_ROWS: u64 = 8;

/// By value; same layout as `NormStats` in `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormStats {
    x: u64,
    partials: u64,
    rows: u64,
    cp: u32,
    reserved: u32,
}

/// Arguments of [`norm_coefs`]; same layout as `NormCoefs` in `kernels/norm.cu`. Addresses are device addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NormCoefs {
    /// Mean and M2 of each 128 rows, pairs of f32 `[ceil(rows / 128)][cp]`.
    pub partials: u64,
    /// Rows of the tensor: images times pixels.
    pub rows: u64,
    /// f32 `[c]`.
    pub gamma: u64,
    /// f32 `[c]`.
    pub beta: u64,
    /// The norm's state; its first five rows are overwritten.
    pub state: u64,
    /// Added to the variance.
    pub eps: f64,
    /// Channels.
    pub c: u32,
    /// [`padded`]`(c)`.
    pub cp: u32,
}

/// Arguments of [`norm_sums`]; same layout as `NormSums` in `kernels/norm.cu`. Addresses are device addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NormSums {
    /// sum(g) and sum(g * (x - mean)), pairs of f32 `[blocks][cp]`.
    pub partials: u64,
    /// Blocks that left partial sums.
    pub blocks: u64,
    /// Rows of the tensor: images times pixels.
    pub rows: u64,
    /// f32 `[c]`.
    pub gamma: u64,
    /// Gradient of gamma, f32 `[c]`, overwritten.
    pub dgamma: u64,
    /// Gradient of beta, f32 `[c]`, overwritten.
    pub dbeta: u64,
    /// The norm's state; mean and 1/sqrt are read, the last three rows overwritten unless the statistics are the running ones.
    pub state: u64,
    /// Channels.
    pub c: u32,
    /// [`padded`]`(c)`.
    pub cp: u32,
}

/// A norm in the device table that [`norm_running_update`] and [`norm_running`] read; same layout as `NormEntry` in
/// `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct NormEntry {
    /// The norm's state.
    pub state: u64,
    /// Running means, then variances, f32 `[2][c]`.
    pub running: u64,
    /// f32 `[c]`.
    pub gamma: u64,
    /// f32 `[c]`.
    pub beta: u64,
    /// Added to the variance.
    pub eps: f64,
    /// Weight of the batch in the running statistics.
    pub momentum: f64,
    /// Channels.
    pub c: u32,
    /// [`padded`]`(c)`.
    pub cp: u32,
}

const _: () = assert!(size_of::<NormStats>() == 32 && size_of::<NormCoefs>() == 56);
const _: () = assert!(size_of::<NormSums>() == 64 && size_of::<NormEntry>() == 56);

/// Mean and M2 a channel of each 128 rows of `x` `[rows][cp]`, as stored, to `partials`, pairs of f32
/// `[ceil(rows / 128)][cp]`.
///
/// # Safety
/// `x` and `partials` must be addresses of live buffers of `driver` of that size, which nothing else uses until
/// [`Driver::synchronise`].
pub unsafe fn norm_stats<D: Driver>(
    driver: &D,
    element: Element,
    x: u64,
    partials: u64,
    rows: u64,
    cp: u32,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let args = NormStats { x, partials, rows, cp, reserved: 0 };
    let kernel = element.pick(["norm_stats_f32", "norm_stats_f16", "norm_stats_bf16"]);
    // SAFETY: one struct as in the kernel, which reads and writes within the sizes that the caller vouches for.
    unsafe { driver.launch(kernel, rows::by_block_rows(rows, cp)?, &[Arg::new(&args)]) }
}

/// Lanes over `blocks` row blocks for four channels a block: as many as there is work for.
fn merge(c: u32, cp: u32, blocks: u64) -> Result<Launch> {
    if cp != padded(c) || c == 0 {
        return Err(Error::Failed(format!("norm of {c} channels in rows of {cp}")));
    }
    let lanes = blocks.clamp(8, 256).next_power_of_two() as u32;
    Ok(Launch { grid: [cp / 4, 1, 1], block: [4, lanes, 1], shared_bytes: 0 })
}

/// Merges the partials of [`norm_stats`] (or of a convolution that takes them) into scale, shift, mean, 1/sqrt and unbiased
/// variance of the norm's state.
///
/// # Safety
/// The addresses in `args` must be of live buffers of `driver` of the sizes said there, which nothing else uses until
/// [`Driver::synchronise`].
pub unsafe fn norm_coefs<D: Driver>(driver: &D, args: &NormCoefs) -> Result<()> {
    let blocks = args.rows.div_ceil(BLOCK_ROWS);
    if args.rows == 0 || u32::try_from(blocks).is_err() {
        return Err(Error::Failed(format!("norm over {} rows", args.rows)));
    }
    // SAFETY: as in `norm_stats`.
    unsafe { driver.launch("norm_coefs", merge(args.c, args.cp, blocks)?, &[Arg::new(args)]) }
}

/// Merges the partial sums that finished a gradient into the gradients of gamma and beta, and into k0, k1, k2 of the norm's
/// state.
///
/// # Safety
/// As of [`norm_coefs`].
pub unsafe fn norm_sums<D: Driver>(driver: &D, args: &NormSums) -> Result<()> {
    if args.rows == 0 {
        return Err(Error::Failed("norm over no rows".into()));
    }
    // SAFETY: as in `norm_stats`.
    unsafe { driver.launch("norm_sums", merge(args.c, args.cp, args.blocks)?, &[Arg::new(args)]) }
}

fn over_table(norms: u32, widest: u32) -> Result<Launch> {
    let launch = Launch::linear(u64::from(widest), 128)?;
    if norms > Launch::MAX_GRID[1] {
        return Err(Error::Failed(format!("{norms} norms, at most {}", Launch::MAX_GRID[1])));
    }
    Ok(Launch { grid: [launch.grid[0], norms, 1], ..launch })
}

/// Moves the running statistics of `norms` norms towards those of the batch, in one launch. `table`: device address of a
/// [`NormEntry`] each; `widest`: most padded channels of one. `steps`: device address of a
/// [`StepState`](super::state::StepState), after whose first broken step nothing is written; 0: always write.
///
/// # Safety
/// The table and what its entries and `steps` name must be live buffers of `driver`, which nothing else uses until
/// [`Driver::synchronise`].
pub unsafe fn norm_running_update<D: Driver>(
    driver: &D,
    table: u64,
    norms: u32,
    widest: u32,
    steps: u64,
) -> Result<()> {
    if norms == 0 {
        return Ok(());
    }
    let launch = over_table(norms, widest)?;
    // SAFETY: types and order as in the kernel; the rest is the caller's promise.
    unsafe { driver.launch("norm_running_update", launch, &[Arg::new(&table), Arg::new(&steps)]) }
}

/// The states of `norms` norms from their running statistics, in one launch; `table` and `widest` as in
/// [`norm_running_update`].
///
/// # Safety
/// As of [`norm_running_update`].
pub unsafe fn norm_running<D: Driver>(driver: &D, table: u64, norms: u32, widest: u32) -> Result<()> {
    if norms == 0 {
        return Ok(());
    }
    // SAFETY: as in `norm_running_update`.
    unsafe { driver.launch("norm_running", over_table(norms, widest)?, &[Arg::new(&table)]) }
}
