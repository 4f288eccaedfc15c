//! Launchers of `kernels/loss.cu`.

use super::super::driver::{Arg, Driver, Launch};
use super::operand::{Element, padded};
use crate::error::{Error, Result};

/// Images a block.
const IMAGES: u32 = 8;

/// Loss of one image, and whether the network was right (1) or not (0): what `CrossEntropy::rows` holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct RowLoss {
    /// Natural log.
    pub loss: f64,
    /// 0 or 1.
    pub correct: u64,
}

/// Sums over images; same layout as `LossOut` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct LossOut {
    /// Sum of the losses.
    pub loss_sum: f64,
    /// Images whose largest logit is the label's.
    pub correct: u64,
}

/// Arguments of [`cross_entropy`]. Addresses are device addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// f32 `[n][cp]`.
    pub logits: u64,
    /// u32 `[n]`, each below `classes` (else the loss is NaN).
    pub labels: u64,
    /// Gradient of the mean loss times the loss scale, `[n][cp]`, overwritten; 0: none.
    pub dlogits: u64,
    /// Scratch, [`RowLoss`] `[n]`.
    pub rows: u64,
    /// Sum over the batch: [`LossOut`] `[..]`, one of which is overwritten; 0: none.
    pub out: u64,
    /// u64: which of `out`; 0: the first.
    pub index: u64,
    /// [`StepState`](super::state::StepState): its loss scale is applied, its `broken` set if the sum is not finite; 0: no
    /// scale, nothing set.
    pub state: u64,
    /// Label smoothing.
    pub smoothing: f64,
    /// Images.
    pub n: u32,
    /// Classes: channels of the logits.
    pub classes: u32,
}

/// By value; same layout as `LossArgs` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LossArgs {
    logits: u64,
    labels: u64,
    dlogits: u64,
    rows: u64,
    state: u64,
    smoothing: f64,
    n: u32,
    classes: u32,
    cp: u32,
    reserved: u32,
}

/// By value; same layout as `LossSumArgs` in `kernels/loss.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LossSumArgs {
    rows: u64,
    out: u64,
    index: u64,
    state: u64,
    n: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<LossArgs>() == 64 && size_of::<LossSumArgs>() == 40);
const _: () = assert!(size_of::<RowLoss>() == 16 && size_of::<LossOut>() == 16);

/// Softmax cross-entropy with label smoothing of logits `[n][padded(classes)]`; dlogits are of type `element`.
///
/// # Safety
/// The addresses in `args` must be 0 where that is allowed, or of live buffers of `driver` of the sizes said there, without
/// overlap, which nothing else uses until [`Driver::synchronise`].
pub unsafe fn cross_entropy<D: Driver>(driver: &D, element: Element, args: &CrossEntropy) -> Result<()> {
    let CrossEntropy { logits, labels, dlogits, rows, out, index, state, smoothing, n, classes } = *args;
    if n == 0 || classes == 0 {
        return Err(Error::Failed(format!("loss of {n} images over {classes} classes")));
    }
    let cp = padded(classes);
    let each = LossArgs { logits, labels, dlogits, rows, state, smoothing, n, classes, cp, reserved: 0 };
    let sum = LossSumArgs { rows, out, index, state, n, reserved: 0 };
    let images = IMAGES.min(n);
    let launch = Launch { grid: [n.div_ceil(images), 1, 1], block: [32, images, 1], shared_bytes: 0 };
    let one = Launch { grid: [1, 1, 1], block: [n.clamp(32, 256).next_power_of_two(), 1, 1], shared_bytes: 0 };
    let kernel = element.pick(["cross_entropy_f32", "cross_entropy_f16", "cross_entropy_bf16"]);
    // SAFETY: one struct each as in the kernels, which read and write within the sizes that the caller vouches for.
    unsafe {
        driver.launch(kernel, launch, &[Arg::new(&each)])?;
        driver.launch("cross_entropy_sum", one, &[Arg::new(&sum)])
    }
}
