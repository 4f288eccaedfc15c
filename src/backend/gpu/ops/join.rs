//! Launcher of `kernels/join.cu`.

use super::super::driver::{Arg, Driver};
use super::operand::{Element, Operand};
use super::rows;
use crate::error::Result;

/// Rows a thread takes.
const JOIN_ROWS: u32 = 4;

/// Arguments of [`join_forward`]; same layout as `Join` in `kernels/join.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Join {
    /// First operand.
    pub a: Operand,
    /// Second operand; [`Operand::default`]: none.
    pub b: Operand,
    /// Device address of the result, `[rows][cp]`.
    pub y: u64,
    /// Rows of each.
    pub rows: u64,
    /// Channels with padding.
    pub cp: u32,
    /// 1: ReLU of the sum.
    pub relu: u32,
}

const _: () = assert!(size_of::<Join>() == 88);

/// `y = relu?(a + b?)`, operands of type `element`; `y` too, or `wide`: in f32.
///
/// # Safety
/// The addresses in `args` must be of live buffers of `driver` of `[rows][cp]` numbers of these types (coefficients: see
/// [`Operand`]), which nothing else uses until [`Driver::synchronise`]; `y` overlaps none of the others.
pub unsafe fn join_forward<D: Driver>(driver: &D, element: Element, wide: bool, args: &Join) -> Result<()> {
    if args.rows == 0 {
        return Ok(());
    }
    let kernel = match wide {
        false => element.pick(["join_forward_f32", "join_forward_f16", "join_forward_bf16"]),
        true => element.pick(["join_forward_f32", "join_widen_f16", "join_widen_bf16"]),
    };
    // SAFETY: one struct as in the kernel, which reads and writes within the sizes that the caller vouches for.
    unsafe { driver.launch(kernel, rows::by_lanes(args.rows, args.cp, JOIN_ROWS)?, &[Arg::new(args)]) }
}
