//! Launcher of `kernels/augment.cu`.

use super::super::driver::{Arg, Driver, Launch};
use super::operand::{Element, padded};
use crate::error::{Error, Result};

/// Groups of 8 channels of one image that a block takes.
const CHUNK: u32 = 1024;

/// Arguments of [`augment`]; same layout as `Augment` in `kernels/augment.cu`. Addresses are device addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augment {
    /// Data set, u8 `[count][c * h * w]`.
    pub images: u64,
    /// Its labels, u32 `[count]`.
    pub all_labels: u64,
    /// Order of the epoch, u32 `[count]`, each below `count`; 0: as they lie.
    pub order: u64,
    /// u64: index of the batch in the epoch; 0: the first one.
    pub batch: u64,
    /// u32 `[4]`: `rng::Stream::words` of the epoch's augmentation; 0: neither crop nor flip.
    pub stream: u64,
    /// f32 `[c][256]`: what each pixel value becomes.
    pub tables: u64,
    /// The batch, `[n][h * w][cp]`; written for images that exist.
    pub x: u64,
    /// Its labels, u32 `[n]`; likewise.
    pub labels: u64,
    /// Images of the data set.
    pub count: u64,
    /// Position of image 0 in the random stream.
    pub base: u64,
    /// Images of this batch.
    pub n: u32,
    /// Images of a full batch.
    pub batch_size: u32,
    /// Channels.
    pub c: u32,
    /// [`padded`]`(c)`.
    pub cp: u32,
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
    /// Pixels around the image that a random crop may show, less than `h` and `w`.
    pub pad: u32,
    /// 1: the padding mirrors the image without repeating its edge; 0: it is black.
    pub reflect: u32,
    /// 1: every image is flipped with probability 1/2.
    pub flip: u32,
    /// Order of an image's bytes: 1: rows, columns, channels; 0: channels, rows, columns.
    pub hwc: u32,
}

const _: () = assert!(size_of::<Augment>() == 120);

/// Images `batch * batch_size ..` of the epoch, `n` of them or as many as there are, cropped, flipped, normalised; and their
/// labels.
///
/// # Safety
/// The addresses in `args` must be 0 where that is allowed, or of live buffers of `driver` of the sizes said there (x: of
/// type `element`), without overlap, which nothing else uses until [`Driver::synchronise`].
pub unsafe fn augment<D: Driver>(driver: &D, element: Element, args: &Augment) -> Result<()> {
    let Augment { n, c, cp, h, w, pad, .. } = *args;
    let items = [w, cp / 8].iter().try_fold(h, |v, &f| v.checked_mul(f)).filter(|&v| v > 0 && v <= i32::MAX as u32);
    let Some(items) = items.filter(|_| c > 0 && cp == padded(c) && (pad == 0 || pad < h.min(w))) else {
        return Err(Error::Failed(format!(
            "images of {c}x{h}x{w} in rows of {cp} channels, cropped out of {pad} pixels around: wanted {} channels, less \
             around than height and width, and fewer pixels",
            c.div_ceil(8).saturating_mul(8)
        )));
    };
    if n == 0 {
        return Ok(());
    }
    let blocks = u64::from(n) * u64::from(items.div_ceil(CHUNK));
    let threads = items.min(256).next_multiple_of(32);
    let launch = Launch::linear(blocks * u64::from(threads), threads)?;
    let kernel = element.pick(["augment_f32", "augment_f16", "augment_bf16"]);
    // SAFETY: one struct as in the kernel, which reads and writes within the sizes that the caller vouches for.
    unsafe { driver.launch(kernel, launch, &[Arg::new(args)]) }
}
