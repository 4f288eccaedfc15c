//! Launchers of `kernels/pool.cu`.

use super::super::driver::{Arg, Driver, Launch};
use super::operand::{Element, Finish, Operand};
use super::rows::{self, Tile};
use crate::error::{Error, Result};

/// By value; same layout as `PoolForward` in `kernels/pool.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PoolForward {
    x: Operand,
    y: u64,
    pixels: u64,
    cp: u32,
    reserved: u32,
}

/// By value; same layout as `PoolBackward` in `kernels/pool.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PoolBackward {
    dy: Operand,
    finish: Finish,
    rows: u64,
    pixels: u32,
    cp: u32,
}

const _: () = assert!(size_of::<PoolForward>() == 56 && size_of::<PoolBackward>() == 144);

fn check(n: u64, pixels: u32) -> Result<()> {
    if pixels == 0 || n > u64::from(Launch::MAX_GRID[0]) {
        return Err(Error::Failed(format!("mean over {pixels} pixels of {n} images")));
    }
    Ok(())
}

/// Mean over the `pixels` pixels of each of `n` images: x `[n * pixels][cp]` to y `[n][cp]`.
///
/// # Safety
/// `y` and the addresses in `x` must be of live buffers of `driver` of these sizes in numbers of type `element`
/// (coefficients: see [`Operand`]), which nothing else uses until [`Driver::synchronise`]; y overlaps nothing that is read.
pub unsafe fn pool_forward<D: Driver>(
    driver: &D,
    element: Element,
    x: Operand,
    y: u64,
    n: u64,
    pixels: u32,
    cp: u32,
) -> Result<()> {
    check(n, pixels)?;
    if n == 0 {
        return Ok(());
    }
    let args = PoolForward { x, y, pixels: u64::from(pixels), cp, reserved: 0 };
    let launch = Tile::new(cp, rows::GROUPS)?.launch(n, 0)?;
    let kernel = element.pick(["pool_forward_f32", "pool_forward_f16", "pool_forward_bf16"]);
    // SAFETY: one struct as in the kernel, which reads and writes within the sizes that the caller vouches for.
    unsafe { driver.launch(kernel, launch, &[Arg::new(&args)]) }
}

/// `dx = or += dy / pixels`: dy `[n][cp]`, dx `[n * pixels][cp]`, then what `finish` says; partial sums of each 128 rows of
/// dx: `ceil(n * pixels / 128)` blocks.
///
/// # Safety
/// As of [`pool_forward`]; what is written overlaps nothing that is read.
pub unsafe fn pool_backward<D: Driver>(
    driver: &D,
    element: Element,
    dy: Operand,
    finish: Finish,
    n: u64,
    pixels: u32,
    cp: u32,
) -> Result<()> {
    check(n, pixels)?;
    if n == 0 {
        return Ok(());
    }
    let rows = n * u64::from(pixels);
    let args = PoolBackward { dy, finish, rows, pixels, cp };
    let kernel = element.pick(["pool_backward_f32", "pool_backward_f16", "pool_backward_bf16"]);
    // SAFETY: as in `pool_forward`.
    unsafe { driver.launch(kernel, rows::by_block_rows(rows, cp)?, &[Arg::new(&args)]) }
}
