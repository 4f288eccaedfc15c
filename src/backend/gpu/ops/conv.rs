//! Launchers of `kernels/conv_*.cu`: a convolution's forward pass and its gradients. A linear layer is a 1x1 convolution of
//! 1x1 planes.
//!
//! Tensors are NHWC with channels padded to 8 ([`padded`]); every op writes the padding channels as zero. Weights are dense
//! copies, zero where pruned and in padding: `w` [K][R*S][padded(C)] and `wt` [C][R*S][padded(K)], in the storage type.

pub use super::conv_lists::Lists;
pub use super::conv_plan::{ConvPlan, Kind, Tile, WeightTile, data_tiles, forward_tiles};

use super::super::driver::{Arg, Driver, Launch};
use super::conv_kernels::{multiply_kernel, weight_kernel};
pub(in super::super) use super::conv_plan::check_geometry;
use super::conv_plan::{BIAS_CHANNELS, pixels};
use super::operand::{Element, Finish, Operand, Precision, padded};
use crate::error::{Error, Result};
use crate::shape::ConvGeom;

/// A convolution, its kernels and its lists.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Geometry of one image.
    pub geom: ConvGeom,
    /// What it computes with.
    pub precision: Precision,
    /// Its kernels.
    pub plan: ConvPlan,
    /// What they read of its mask.
    pub lists: Lists,
    /// Device address of a copy of [`Lists::words`], a multiple of 8; set by the owner of that buffer.
    pub lists_at: u64,
    /// Non-zeros of the weight.
    pub stored: u64,
}

/// What [`forward`] reads and writes. Addresses; 0: none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward {
    /// Input, [images*H*W][padded(C)].
    pub x: Operand,
    /// Weights, [K][R*S][padded(C)].
    pub w: u64,
    /// K f32, or 0.
    pub bias: u64,
    /// Output, [images*P*Q][padded(K)].
    pub y: u64,
    /// Whether the output is stored as f32 whatever the precision is: logits.
    pub y_f32: bool,
    /// Pairs of f32 (mean, M2), [forward_tiles][padded(K)], of each 128 rows as stored; or 0.
    pub statistics: u64,
}

/// What [`data_gradient`] reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct DataGradient {
    /// Gradient of the output, [images*P*Q][padded(K)].
    pub dy: Operand,
    /// Transposed weights, [C][R*S][padded(K)].
    pub wt: u64,
    /// Writes the gradient of the input; partial sums are [data_tiles][padded(C)].
    pub finish: Finish,
}

/// What [`weight_gradient`] reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightGradient {
    /// Input, as in the forward pass.
    pub x: Operand,
    /// Gradient of the output.
    pub dy: Operand,
    /// One f32 a non-zero, in the order of their positions in [K,C,R,S]. Overwritten.
    pub grads: u64,
    /// [`Conv::weight_scratch`] bytes, overwritten.
    pub scratch: u64,
}

/// By value; same layout as `ConvArgs` in `kernels/conv.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ConvArgs {
    input: Operand,
    weights: u64,
    bias: u64,
    out: u64,
    statistics: u64,
    finish: Finish,
    blocks: u64,
    blocks_ptr: u64,
    backward: u32,
    out_f32: u32,
    images: u32,
    source: [u32; 3],
    destination: [u32; 4],
    kernel: [u32; 4],
    row_tiles: u32,
    col_tiles: u32,
}

/// By value; same layout as `ConvWeightArgs` in `kernels/conv_weight.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ConvWeightArgs {
    x: Operand,
    dy: Operand,
    out: u64,
    stored: u64,
    tiles: u64,
    ptr: u64,
    entries: u64,
    active: u64,
    images: u32,
    input: [u32; 4],
    output: [u32; 4],
    kernel: [u32; 4],
    column_tiles: u32,
    splits: u32,
    reserved: u32,
}

/// By value; same layout as `ConvBiasArgs` in `kernels/conv_weight.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ConvBiasArgs {
    dy: Operand,
    out: u64,
    rows: u64,
    k: u32,
    cpk: u32,
    part_rows: u32,
    parts: u32,
}

/// By value; same layout as `ConvSumArgs` in `kernels/conv_weight.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ConvSumArgs {
    parts: u64,
    out: u64,
    count: u64,
    pitch: u64,
    n: u64,
}

const _: () = assert!(size_of::<ConvArgs>() == 240 && size_of::<ConvWeightArgs>() == 176);
const _: () = assert!(size_of::<ConvBiasArgs>() == 64 && size_of::<ConvSumArgs>() == 40);

/// Rows that one block of a bias gradient sums.
const BIAS_ROWS: u64 = 4096;

impl Conv {
    /// With the default plan for up to `batch` images. `kept`: positions of the non-zeros in [K,C,R,S], ascending; `None`:
    /// all. `block`: output and input channels of the blocks, each at one tap, that the mask consists of, if it does.
    pub fn new(
        geom: ConvGeom,
        precision: Precision,
        batch: u32,
        kept: Option<&[u32]>,
        block: Option<(u32, u32)>,
    ) -> Result<Self> {
        check_geometry(&geom)?;
        let blocks = kept.is_some() && Lists::usable(&geom, precision, block);
        Self::with_plan(geom, precision, ConvPlan::new(&geom, batch, precision, blocks), kept, block)
    }

    /// With a plan of the caller's. An error if the kernels can't do it.
    pub fn with_plan(
        geom: ConvGeom,
        precision: Precision,
        plan: ConvPlan,
        kept: Option<&[u32]>,
        block: Option<(u32, u32)>,
    ) -> Result<Self> {
        plan.check(&geom, precision, kept.is_some() && Lists::usable(&geom, precision, block))?;
        let lists = Lists::build(&geom, precision, &plan, kept, block);
        let stored = kept.map_or(geom.weights(), <[u32]>::len) as u64;
        Ok(Conv { geom, precision, plan, lists, lists_at: 0, stored })
    }

    /// Bytes that [`weight_gradient`] needs beside the gradients.
    pub fn weight_scratch(&self) -> u64 {
        if self.plan.weight.splits == 1 { 0 } else { 4 * u64::from(self.plan.weight.splits) * self.stored }
    }

    /// Bytes that [`bias_gradient`] of up to `batch` images needs beside the gradients.
    pub fn bias_scratch(&self, batch: u32) -> u64 {
        let parts = pixels(batch, self.geom.p(), self.geom.q()).div_ceil(BIAS_ROWS);
        if parts == 1 { 0 } else { 4 * parts * u64::from(padded(self.geom.k)) }
    }

    fn list(&self, word: usize) -> u64 {
        self.lists_at + 4 * word as u64
    }

    /// Rows must be counted in 31 bits.
    pub(in super::super) fn check_images(&self, images: u32) -> Result<()> {
        let g = &self.geom;
        let rows = pixels(images, g.h.max(g.p()) + g.stride, g.w.max(g.q()) + g.stride);
        if images > 0 && rows < 1 << 31 {
            return Ok(());
        }
        Err(Error::Failed(format!("convolution {g:?} of {images} images on a GPU: pixels must be 1 to 2^31")))
    }
}

/// `y = conv(x, w) + bias`, padding channels zero.
///
/// # Safety
/// Each address not 0 must be that of a live buffer of `driver` of the stated size, which nothing else writes until
/// [`Driver::synchronise`]; what is written overlaps nothing else. `conv.lists_at` holds its lists.
pub unsafe fn forward<D: Driver>(driver: &D, conv: &Conv, images: u32, a: &Forward) -> Result<()> {
    conv.check_images(images)?;
    let g = &conv.geom;
    let args = ConvArgs {
        input: a.x,
        weights: a.w,
        bias: a.bias,
        out: a.y,
        statistics: a.statistics,
        out_f32: u32::from(a.y_f32),
        images,
        source: [g.h, g.w, padded(g.c)],
        destination: [g.p(), g.q(), g.k, padded(g.k)],
        row_tiles: forward_tiles(g, images) as u32,
        ..ConvArgs::default()
    };
    // SAFETY: the caller's promise.
    unsafe { multiply(driver, conv, conv.plan.forward, conv.lists.forward, args) }
}

/// The gradient of the input, finished.
///
/// # Safety
/// As [`forward`]; what `finish` reads may be what it writes.
pub unsafe fn data_gradient<D: Driver>(driver: &D, conv: &Conv, images: u32, a: &DataGradient) -> Result<()> {
    conv.check_images(images)?;
    let g = &conv.geom;
    let args = ConvArgs {
        input: a.dy,
        weights: a.wt,
        finish: a.finish,
        backward: 1,
        images,
        source: [g.p(), g.q(), padded(g.k)],
        destination: [g.h, g.w, g.c, padded(g.c)],
        row_tiles: data_tiles(g, images) as u32,
        ..ConvArgs::default()
    };
    // SAFETY: the caller's promise.
    unsafe { multiply(driver, conv, conv.plan.data, conv.lists.data, args) }
}

/// # Safety
/// As [`forward`].
unsafe fn multiply<D: Driver>(
    driver: &D,
    conv: &Conv,
    tile: Tile,
    blocks: Option<super::conv_lists::Blocks>,
    mut args: ConvArgs,
) -> Result<()> {
    let g = &conv.geom;
    args.kernel = [g.r, g.s, g.stride, g.pad];
    args.col_tiles = args.destination[3].div_ceil(tile.columns);
    if let Some(blocks) = blocks {
        args.blocks = conv.list(blocks.entries);
        args.blocks_ptr = conv.list(blocks.ptr);
    }
    let grid = u64::from(args.row_tiles) * u64::from(args.col_tiles);
    let grid = u32::try_from(grid).ok().filter(|&n| n <= Launch::MAX_GRID[0]).ok_or_else(|| {
        Error::Failed(format!("convolution {g:?} of {} images on a GPU: {grid} blocks are too many", args.images))
    })?;
    let threads = if tile.columns == 128 { 256 } else { 128 };
    let shared_bytes = if tile.kind == Kind::Patch { Tile::patch_bytes(tile.columns, g.w) } else { 0 };
    let launch = Launch { grid: [grid, 1, 1], block: [threads, 1, 1], shared_bytes };
    // SAFETY: layout as in the kernel; the sizes behind the addresses are the caller's promise.
    unsafe { driver.launch(multiply_kernel(conv.precision, tile, blocks.is_some()), launch, &[Arg::new(&args)]) }
}

/// The gradient of the weight's non-zeros.
///
/// # Safety
/// As [`forward`].
pub unsafe fn weight_gradient<D: Driver>(driver: &D, conv: &Conv, images: u32, a: &WeightGradient) -> Result<()> {
    conv.check_images(images)?;
    if conv.stored == 0 {
        return Ok(());
    }
    let (g, plan) = (&conv.geom, conv.plan.weight);
    let [row_tiles, column_tiles] = plan.tiles(g, conv.precision);
    let mut args = ConvWeightArgs {
        x: a.x,
        dy: a.dy,
        out: if plan.splits == 1 { a.grads } else { a.scratch },
        stored: conv.stored,
        tiles: 0,
        ptr: 0,
        entries: 0,
        active: 0,
        images,
        input: [g.h, g.w, g.c, padded(g.c)],
        output: [g.p(), g.q(), g.k, padded(g.k)],
        kernel: [g.r, g.s, g.stride, g.pad],
        column_tiles,
        splits: plan.splits,
        reserved: 0,
    };
    let mut tiles = row_tiles * column_tiles;
    if let Some(list) = conv.lists.weight {
        tiles = list.count;
        args.tiles = conv.list(list.tiles);
        args.ptr = conv.list(list.ptr);
        args.entries = conv.list(list.entries);
        args.active = list.active.map_or(0, |at| conv.list(at));
    }
    let kernel = weight_kernel(conv.precision, plan.tile, args.active != 0);
    let threads = if conv.precision == Precision::F32 || plan.tile == 128 { 256 } else { 128 };
    let launch = Launch { grid: [tiles, plan.splits, 1], block: [threads, 1, 1], shared_bytes: 0 };
    // SAFETY: layout as in the kernel; the rest is the caller's promise.
    unsafe { driver.launch(kernel, launch, &[Arg::new(&args)])? };
    if plan.splits == 1 {
        return Ok(());
    }
    // SAFETY: `splits` parts of `stored` sums were just written.
    unsafe { sum_parts(driver, a.scratch, a.grads, conv.stored, conv.stored, plan.splits.into()) }
}

/// The gradient of the bias: K f32 at `grads`, overwritten. `scratch` has [`Conv::bias_scratch`] bytes.
///
/// # Safety
/// As [`forward`].
pub unsafe fn bias_gradient<D: Driver>(
    driver: &D,
    conv: &Conv,
    images: u32,
    dy: &Operand,
    grads: u64,
    scratch: u64,
) -> Result<()> {
    conv.check_images(images)?;
    let g = &conv.geom;
    let rows = pixels(images, g.p(), g.q());
    let parts = rows.div_ceil(BIAS_ROWS) as u32;
    let args = ConvBiasArgs {
        dy: *dy,
        out: if parts == 1 { grads } else { scratch },
        rows,
        k: g.k,
        cpk: padded(g.k),
        part_rows: BIAS_ROWS as u32,
        parts,
    };
    let element: Element = conv.precision.element();
    let launch = Launch { grid: [parts, padded(g.k).div_ceil(BIAS_CHANNELS), 1], block: [128, 1, 1], shared_bytes: 0 };
    // SAFETY: layout as in the kernel; the rest is the caller's promise.
    unsafe {
        driver.launch(element.pick(["conv_bias_f32", "conv_bias_f16", "conv_bias_bf16"]), launch, &[Arg::new(&args)])?
    };
    if parts == 1 {
        return Ok(());
    }
    // SAFETY: the parts were just written.
    unsafe { sum_parts(driver, scratch, grads, g.k.into(), padded(g.k).into(), parts.into()) }
}

/// `out[i] = sum of parts[p * pitch + i]`, in order.
///
/// # Safety
/// `out` has `count` f32, `parts` `n` times `pitch`.
unsafe fn sum_parts<D: Driver>(driver: &D, parts: u64, out: u64, count: u64, pitch: u64, n: u64) -> Result<()> {
    let args = ConvSumArgs { parts, out, count, pitch, n };
    // SAFETY: layout as in the kernel; the rest is the caller's promise.
    unsafe { driver.launch("conv_sum_f32", Launch::linear(count, 256)?, &[Arg::new(&args)]) }
}
