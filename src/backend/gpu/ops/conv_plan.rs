//! Which kernel a convolution takes, from its geometry alone, and what the kernels can't do.

use super::super::driver::Launch;
use super::super::vendor::Pass;
use super::operand::{BLOCK_ROWS, Precision, padded};
use crate::error::{Error, Result};
use crate::shape::{ConvGeom, MAX_STRIDE};

/// How a tile reads its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// Every tap from memory: any geometry.
    Gather,
    /// All taps from one patch in shared memory: 3x3, stride 1, padding 1, planes whose patch fits ([`Tile::patch_bytes`]).
    Patch,
    /// Not a kernel of ours: a [`Vendor`](super::super::vendor::Vendor)'s dense product, between kernels that write the
    /// operands out and finish the result. An output in f32 among halves (logits) is made by [`Kind::Gather`] all the same.
    Vendor,
}

/// The kernel of a forward pass or data gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// How it reads.
    pub kind: Kind,
    /// Output channels of a block: 16, 32, 64 or 128. Without tensor cores 32.
    pub columns: u32,
}

/// The kernel of a weight gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightTile {
    /// Output channels of a block: 16, 32, 64 or 128. Without tensor cores 16.
    pub tile: u32,
    /// Parts that the pixels are cut into, each summed by blocks of its own.
    pub splits: u32,
}

/// The kernels of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvPlan {
    /// Forward.
    pub forward: Tile,
    /// Data gradient.
    pub data: Tile,
    /// Weight gradient.
    pub weight: WeightTile,
    /// Whether a vendor's library makes the weight gradient in place of `weight`: all of it, of which the non-zeros are kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weight_by_vendor: bool,
}

/// Blocks that keep a large device busy, about two for each of an H100's multiprocessors.
const BUSY: u64 = 264;

impl Tile {
    /// Shared memory of a block of [`Kind::Patch`] with that many columns on a plane of that width.
    pub fn patch_bytes(columns: u32, width: u32) -> u32 {
        let stage = if columns == 128 { 32 } else { columns };
        let epilogue = columns.div_ceil(64) * (128 * (stage + 4) + 512) * 4;
        epilogue.max((2 * width + 130) * 128 + 64 + columns * 128)
    }

    /// Columns are fewer where that keeps a large device busy, or makes a patch fit.
    fn choose(rows: u64, columns: u32, patch: Option<&ConvGeom>) -> Self {
        let mut tile = [16, 32, 64].into_iter().find(|&t| columns <= t).unwrap_or(128);
        while tile > 32 && rows.div_ceil(BLOCK_ROWS) * u64::from(columns.div_ceil(tile)) < BUSY {
            tile /= 2;
        }
        let fits = |&t: &u32| patch.is_some_and(|g| can_patch(g, t));
        match [tile, tile.min(64)].into_iter().find(fits) {
            Some(columns) => Tile { kind: Kind::Patch, columns },
            None => Tile { kind: Kind::Gather, columns: tile },
        }
    }
}

impl WeightTile {
    /// Columns (tap and input channel) of a block.
    pub(super) fn columns(self, precision: Precision) -> u32 {
        if precision == Precision::F32 { 16 } else { self.tile.max(64) }
    }

    /// Tiles of the output channels and of the columns.
    pub(super) fn tiles(self, geom: &ConvGeom, precision: Precision) -> [u32; 2] {
        [geom.k.div_ceil(self.tile), (geom.r * geom.s * padded(geom.c)).div_ceil(self.columns(precision))]
    }
}

impl ConvPlan {
    /// A plan for `batch` images: a pure function of its arguments. `blocks`: the mask consists of whole blocks, which the
    /// gathering kernels leave out.
    pub fn new(geom: &ConvGeom, batch: u32, precision: Precision, blocks: bool) -> Self {
        let (inner, outer) = (pixels(batch, geom.h, geom.w), pixels(batch, geom.p(), geom.q()));
        if precision == Precision::F32 {
            let tile = Tile { kind: Kind::Gather, columns: 32 };
            let tiles = geom.k.div_ceil(16) * (geom.r * geom.s * padded(geom.c)).div_ceil(16);
            return ConvPlan {
                forward: tile,
                data: tile,
                weight: WeightTile { tile: 16, splits: splits(outer, tiles) },
                weight_by_vendor: false,
            };
        }
        let patch = (!blocks).then_some(geom);
        let mut plan = ConvPlan {
            forward: Tile::choose(outer, geom.k, patch),
            data: Tile::choose(inner, geom.c, patch),
            weight: WeightTile {
                tile: match geom.k {
                    0..=16 => 16,
                    17..=32 => 32,
                    128.. if geom.c >= 128 => 128,
                    _ => 64,
                },
                splits: 1,
            },
            weight_by_vendor: false,
        };
        if blocks {
            plan.forward.columns = plan.forward.columns.max(32);
            plan.data.columns = plan.data.columns.max(32);
        }
        plan.weight.splits = splits(outer, plan.weight.tiles(geom, precision).iter().product());
        plan
    }

    /// The same with all three passes by a vendor's library.
    pub fn vendor(self) -> Self {
        Pass::ALL.into_iter().fold(self, ConvPlan::with_vendor)
    }

    /// The same with this pass by a vendor's library.
    pub(in super::super) fn with_vendor(mut self, pass: Pass) -> Self {
        match pass {
            Pass::Forward => self.forward.kind = Kind::Vendor,
            Pass::Data => self.data.kind = Kind::Vendor,
            Pass::Weight => self.weight_by_vendor = true,
        }
        self
    }

    /// Whether a vendor's library makes a pass.
    pub fn by_vendor(&self, pass: Pass) -> bool {
        match pass {
            Pass::Forward => self.forward.kind == Kind::Vendor,
            Pass::Data => self.data.kind == Kind::Vendor,
            Pass::Weight => self.weight_by_vendor,
        }
    }

    /// Whether the kernels can do this: one line that says why not.
    pub(super) fn check(&self, geom: &ConvGeom, precision: Precision, blocks: bool) -> Result<()> {
        let fault = |what: String| Err(Error::Failed(format!("convolution {geom:?} on a GPU: {what}")));
        check_geometry(geom)?;
        let g = geom;
        for (what, tile) in [("forward", self.forward), ("data gradient", self.data)] {
            let allowed: &[u32] = match (precision, blocks) {
                (Precision::F32, _) => &[32],
                (_, true) => &[32, 64, 128],
                (_, false) => &[16, 32, 64, 128],
            };
            if !allowed.contains(&tile.columns) {
                return fault(format!("{what} tiles have {allowed:?} columns, got {}", tile.columns));
            }
            if tile.kind == Kind::Patch && (!can_patch(g, tile.columns) || blocks || precision == Precision::F32) {
                return fault(format!(
                    "{what} by patches needs a 3x3 kernel, stride 1, padding 1, a plane of at most 64 pixels width (62 \
                     with 128 columns), tensor cores and no block mask"
                ));
            }
        }
        let allowed: &[u32] = if precision == Precision::F32 { &[16] } else { &[16, 32, 64, 128] };
        if !allowed.contains(&self.weight.tile) {
            return fault(format!("weight gradient tiles are {allowed:?}, got {}", self.weight.tile));
        }
        if !(1..=MAX_SPLITS).contains(&self.weight.splits) {
            return fault(format!("weight gradient splits are 1 to {MAX_SPLITS}, got {}", self.weight.splits));
        }
        Ok(())
    }
}

/// Rows and columns of planes and kernels are kept in 16 bits, with room for a pixel's distance to a tap.
const MAX_SIZE: u32 = 8191;
/// Bias gradients have a block in y for each [`BIAS_CHANNELS`]. Nothing counts channels in fewer than 32 bits.
const MAX_CHANNELS: u32 = Launch::MAX_GRID[1] * BIAS_CHANNELS;
/// Largest grid in y.
const MAX_SPLITS: u32 = Launch::MAX_GRID[1];
/// Channels of a block of a bias gradient.
pub(super) const BIAS_CHANNELS: u32 = 64;

/// Whether there is such a convolution and the kernels can count it: one line that says why not. Before a plan is made.
pub(in super::super) fn check_geometry(g: &ConvGeom) -> Result<()> {
    let fault = |what: String| Err(Error::Failed(format!("convolution {g:?} on a GPU: {what}")));
    if [g.c, g.h, g.w, g.k, g.r, g.s, g.stride].contains(&0) {
        return fault("a size is 0".into());
    }
    if [g.h, g.w, g.r, g.s, g.pad].iter().any(|&s| s > MAX_SIZE) {
        return fault(format!("sizes and padding are at most {MAX_SIZE}"));
    }
    if g.c.max(g.k) > MAX_CHANNELS {
        return fault(format!("channels are at most {MAX_CHANNELS}"));
    }
    if g.h + 2 * g.pad < g.r || g.w + 2 * g.pad < g.s {
        return fault("the kernel is larger than the padded image".into());
    }
    if g.stride > MAX_STRIDE {
        return fault(format!("the stride is at most {MAX_STRIDE}"));
    }
    let weights = [padded(g.k), padded(g.c), g.r, g.s].into_iter().fold(1, |all, n| u64::saturating_mul(all, n.into()));
    if weights >= 1 << 31 {
        return fault("more than 2^31 weights".into());
    }
    Ok(())
}

fn can_patch(g: &ConvGeom, columns: u32) -> bool {
    (g.r, g.s, g.stride, g.pad) == (3, 3, 1, 1)
        && g.w <= 64
        && Tile::patch_bytes(columns, g.w) <= Launch::MAX_SHARED_BYTES
}

pub(super) fn pixels(images: u32, h: u32, w: u32) -> u64 {
    u64::from(images) * u64::from(h) * u64::from(w)
}

/// Enough parts to keep the device busy, none of fewer than 512 pixels.
fn splits(rows: u64, tiles: u32) -> u32 {
    let wanted = (2 * BUSY).div_ceil(u64::from(tiles.max(1)));
    wanted.min(rows / 512).clamp(1, 256) as u32
}

/// Row tiles of a forward pass: each gives one partial sum a channel.
pub fn forward_tiles(geom: &ConvGeom, images: u32) -> u64 {
    pixels(images, geom.p(), geom.q()).div_ceil(BLOCK_ROWS)
}

/// Row tiles of a data gradient. With a stride a tile's pixels have the same residues.
pub fn data_tiles(geom: &ConvGeom, images: u32) -> u64 {
    let sizes = |n: u32| (0..geom.stride).map(move |d| if d < n { (n - d).div_ceil(geom.stride) } else { 0 });
    let of = |h: u32| sizes(geom.w).map(move |w| pixels(images, h, w).div_ceil(BLOCK_ROWS)).sum::<u64>();
    sizes(geom.h).map(of).sum()
}
