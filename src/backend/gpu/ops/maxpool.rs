//! Launchers of `kernels/maxpool.cu`.

use super::super::driver::{Arg, Driver};
use super::operand::{Element, Finish, Operand, padded};
use super::rows::{self, Tile};
use crate::backend::{Plane, PoolSpec};
use crate::error::{Error, Result};

/// Rows of the output that a lane of the forward pass takes.
const MAX_POOL_ROWS: u32 = 2;
/// Pixels of a block's tile of the backward pass.
const TILE: [u32; 2] = [8, 16];
/// Most dynamic shared memory of the backward pass; its sums have 16 KB beside it.
const WINNER_BYTES: u32 = 32 << 10;

/// Geometry of a maximum pooling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxPool {
    /// Images.
    pub n: u32,
    /// Input rows.
    pub h: u32,
    /// Input columns.
    pub w: u32,
    /// Rows and columns of a window, at most 255.
    pub size: u32,
    /// Distance of windows.
    pub stride: u32,
    /// Cells around the image that belong to no pixel; less than `size`.
    pub pad: u32,
    /// Channels with padding.
    pub cp: u32,
}

/// By value; same layout as `MaxPool` in `kernels/maxpool.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Geom {
    n: u32,
    h: u32,
    w: u32,
    p: u32,
    q: u32,
    size: u32,
    stride: u32,
    pad: u32,
    cp: u32,
    reserved: u32,
}

/// By value; same layout as `MaxPoolForward` in `kernels/maxpool.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MaxPoolForward {
    x: Operand,
    y: u64,
    geom: Geom,
}

/// By value; same layout as `MaxPoolBackward` in `kernels/maxpool.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MaxPoolBackward {
    x: Operand,
    dy: Operand,
    finish: Finish,
    geom: Geom,
}

const _: () = assert!(size_of::<Geom>() == 40);
const _: () = assert!(size_of::<MaxPoolForward>() == 80 && size_of::<MaxPoolBackward>() == 200);

impl MaxPool {
    /// Of `n` images.
    pub fn of(pool: &PoolSpec, n: usize) -> Self {
        let Plane { c, h, w } = pool.plane;
        MaxPool { n: n as u32, h, w, size: pool.size, stride: pool.stride, pad: pool.pad, cp: padded(c) }
    }

    /// Rows and columns of the output.
    pub fn output(&self) -> [u32; 2] {
        [self.h, self.w].map(|len| (len + 2 * self.pad).saturating_sub(self.size) / self.stride.max(1) + 1)
    }

    /// Blocks of the backward pass, each of which leaves a row of partial sums.
    pub fn blocks(&self) -> u64 {
        u64::from(self.n) * u64::from(self.h.div_ceil(TILE[0])) * u64::from(self.w.div_ceil(TILE[1]))
    }

    /// Whether the kernels can do it.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn check(&self) -> Result<()> {
        self.geom().and_then(|geom| self.backward_tile(&geom)).map(drop)
    }

    fn geom(&self) -> Result<Geom> {
        let MaxPool { n, h, w, size, stride, pad, cp } = *self;
        let windows = (1..=255).contains(&size) && stride > 0 && pad < size;
        // Sums of coordinates are 32 bits.
        let sides = [h, w].iter().all(|&len| len > 0 && len < 1 << 24 && len + 2 * pad >= size);
        if !windows || !sides || stride >= 1 << 24 {
            return Err(Error::Failed(format!(
                "maximum over windows of {size} every {stride} with {pad} around {h} x {w}: wanted windows of 1 to 255 \
                 that fit, and less than a window around"
            )));
        }
        let [p, q] = self.output();
        Ok(Geom { n, h, w, p, q, size, stride, pad, cp, reserved: 0 })
    }

    /// Channel tile and dynamic shared memory of the backward pass: as many groups of channels as fit, up to 8.
    fn backward_tile(&self, geom: &Geom) -> Result<(Tile, u32)> {
        let touched = |tile: u32, len: u32, most: u32| {
            u64::from((tile.min(len) + self.size - 2) / self.stride + 1).min(u64::from(most))
        };
        let windows = touched(TILE[0], self.h, geom.p) * touched(TILE[1], self.w, geom.q);
        let groups = (u64::from(WINNER_BYTES) / (16 * windows)).min(8) as u32;
        if groups == 0 {
            return Err(Error::Failed(format!(
                "maximum over windows of {} every {}: {windows} windows touch a tile of {} x {} pixels, at most {} fit \
                 into shared memory",
                self.size,
                self.stride,
                TILE[0],
                TILE[1],
                WINNER_BYTES / 16
            )));
        }
        let tile = Tile::new(self.cp, groups)?;
        let bytes = windows as u32 * 16 * tile.groups;
        Ok((tile, bytes))
    }
}

/// Maximum of each window of x `[n * h * w][cp]`, to y `[n * p * q][cp]`; NaN wins.
///
/// # Safety
/// `y` and the addresses in `x` must be of live buffers of `driver` of these sizes in numbers of type `element`
/// (coefficients: see [`Operand`]), which nothing else uses until [`Driver::synchronise`]; y overlaps nothing that is read.
pub unsafe fn max_pool_forward<D: Driver>(
    driver: &D,
    element: Element,
    x: Operand,
    y: u64,
    pool: &MaxPool,
) -> Result<()> {
    let geom = pool.geom()?;
    if pool.n == 0 {
        return Ok(());
    }
    let rows = u64::from(geom.n) * u64::from(geom.p) * u64::from(geom.q);
    let args = MaxPoolForward { x, y, geom };
    let kernel = element.pick(["max_pool_forward_f32", "max_pool_forward_f16", "max_pool_forward_bf16"]);
    // SAFETY: one struct as in the kernel, which reads and writes within the sizes that the caller vouches for.
    unsafe { driver.launch(kernel, rows::by_lanes(rows, pool.cp, MAX_POOL_ROWS)?, &[Arg::new(&args)]) }
}

/// `dx = or += dy` at each window's maximum, the first one among equals; x as in the forward pass, dy `[n * p * q][cp]`, dx
/// `[n * h * w][cp]`. Then what `finish` says; partial sums of [`MaxPool::blocks`] blocks.
///
/// # Safety
/// As of [`max_pool_forward`]; what is written overlaps nothing that is read.
pub unsafe fn max_pool_backward<D: Driver>(
    driver: &D,
    element: Element,
    x: Operand,
    dy: Operand,
    finish: Finish,
    pool: &MaxPool,
) -> Result<()> {
    let geom = pool.geom()?;
    let (tile, shared_bytes) = pool.backward_tile(&geom)?;
    if pool.n == 0 {
        return Ok(());
    }
    let args = MaxPoolBackward { x, dy, finish, geom };
    let kernel = element.pick(["max_pool_backward_f32", "max_pool_backward_f16", "max_pool_backward_bf16"]);
    // SAFETY: as in `max_pool_forward`.
    unsafe { driver.launch(kernel, tile.launch(pool.blocks(), shared_bytes)?, &[Arg::new(&args)]) }
}
