//! Launcher of `kernels/copy.cu`.

use super::super::driver::{Arg, Driver};
use super::operand::{Element, Finish, Operand};
use super::rows;
use crate::error::Result;

/// By value; same layout as `CopyArgs` in `kernels/copy.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CopyArgs {
    dy: Operand,
    finish: Finish,
    rows: u64,
    cp: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<CopyArgs>() == 144);

/// `dx = or += dy`, then what `finish` says; partial sums of each 128 rows: `ceil(rows / 128)` blocks.
///
/// # Safety
/// The addresses in `dy` and `finish` must be of live buffers of `driver` of `[rows][cp]` numbers of type `element`
/// (coefficients and partials: see there), which nothing else uses until [`Driver::synchronise`]; what is written overlaps
/// nothing that is read.
pub unsafe fn copy_backward<D: Driver>(
    driver: &D,
    element: Element,
    dy: Operand,
    finish: Finish,
    rows: u64,
    cp: u32,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let args = CopyArgs { dy, finish, rows, cp, reserved: 0 };
    let kernel = element.pick(["copy_backward_f32", "copy_backward_f16", "copy_backward_bf16"]);
    // SAFETY: one struct as in the kernel, which reads and writes within the sizes that the caller vouches for.
    unsafe { driver.launch(kernel, rows::by_block_rows(rows, cp)?, &[Arg::new(&args)]) }
}
