//! Launchers of `kernels/gather.cu`: what surrounds a dense product of a vendor's library.

use super::super::driver::{Arg, Driver, Launch};
use super::operand::Element;
use super::rows;
use crate::error::Result;

/// Threads a block.
const BLOCK: u32 = 256;
/// Rows a thread of [`conv_add_bias`] takes.
const BIAS_ROWS: u32 = 4;
/// Most blocks of [`zero_fill`]: a few for each multiprocessor there is.
const ZERO_BLOCKS: u32 = 1024;

/// Arguments of [`conv_gather_grads`]; same layout as `GatherArgs` in `kernels/gather.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gather {
    /// Device address of a [`Place`](super::sgd::Place) a non-zero.
    pub places: u64,
    /// Device address of the dense gradient, in the order of the layer's first operand copy.
    pub dense: u64,
    /// Device address of the result, f32 `[n]`.
    pub grads: u64,
    /// Non-zeros.
    pub n: u64,
    /// Where the layer's operand copy begins, in numbers: its least [`Place::w`](super::sgd::Place::w) without a mask.
    pub first: u32,
    /// Nothing.
    pub reserved: u32,
}

/// By value; same layout as `BiasArgs` in `kernels/gather.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct BiasArgs {
    y: u64,
    bias: u64,
    rows: u64,
    k: u32,
    cp: u32,
}

const _: () = assert!(size_of::<Gather>() == 40 && size_of::<BiasArgs>() == 32);

/// `grads[i] = dense[places[i].w - first]`; `element`: what `dense` is stored as.
///
/// # Safety
/// The addresses in `args` must be of live buffers of `driver` that hold what is said there and what the places name, which
/// nothing else uses until [`Driver::synchronise`].
pub unsafe fn conv_gather_grads<D: Driver>(driver: &D, element: Element, args: &Gather) -> Result<()> {
    if args.n == 0 {
        return Ok(());
    }
    let kernel = element.pick(["conv_gather_grads_f32", "conv_gather_grads_f16", "conv_gather_grads_bf16"]);
    // SAFETY: one struct as in the kernel, which reads and writes within the sizes that the caller vouches for.
    unsafe { driver.launch(kernel, Launch::linear(args.n, BLOCK)?, &[Arg::new(args)]) }
}

/// `y += bias` in each row; padding channels stay.
///
/// # Safety
/// `y` must be the address of `[rows][cp]` numbers of type `element`, `bias` of `k` f32, `k <= cp`, in live buffers of
/// `driver`, which nothing else uses until [`Driver::synchronise`].
pub unsafe fn conv_add_bias<D: Driver>(
    driver: &D,
    element: Element,
    y: u64,
    bias: u64,
    rows: u64,
    [k, cp]: [u32; 2],
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let args = BiasArgs { y, bias, rows, k, cp };
    let kernel = element.pick(["conv_add_bias_f32", "conv_add_bias_f16", "conv_add_bias_bf16"]);
    // SAFETY: as in `conv_gather_grads`.
    unsafe { driver.launch(kernel, rows::by_lanes(rows, cp, BIAS_ROWS)?, &[Arg::new(&args)]) }
}

/// `words` times 16 zero bytes at `at`; unlike [`Driver::fill`] it may be recorded in a graph.
///
/// # Safety
/// `at`, a multiple of 16, must be the address of as many bytes in a live buffer of `driver`, which nothing else uses until
/// [`Driver::synchronise`].
pub unsafe fn zero_fill<D: Driver>(driver: &D, at: u64, words: u64) -> Result<()> {
    if words == 0 {
        return Ok(());
    }
    let blocks = words.div_ceil(BLOCK.into()).min(ZERO_BLOCKS.into()) as u32;
    let launch = Launch { grid: [blocks, 1, 1], block: [BLOCK, 1, 1], shared_bytes: 0 };
    // SAFETY: types and order as in the kernel; the rest is the caller's promise.
    unsafe { driver.launch("zero_fill", launch, &[Arg::new(&at), Arg::new(&words)]) }
}
