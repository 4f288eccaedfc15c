//! Launch geometry of the kernels over rows, `kernels/rows.cuh`.

use super::super::driver::Launch;
use super::operand::BLOCK_ROWS;
use crate::error::{Error, Result};

/// Most threads of a block.
const THREADS: u32 = 256;
/// Most groups of 8 channels that a block takes: a warp then reads 512 bytes of one row and more.
pub(super) const GROUPS: u32 = 32;

/// How channels and lanes over rows share a block.
pub(super) struct Tile {
    /// Groups of 8 channels a block.
    pub(super) groups: u32,
    /// Lanes, a power of two.
    pub(super) lanes: u32,
    /// Blocks that all channels take.
    pub(super) tiles: u32,
}

impl Tile {
    /// With at most `groups` groups a block. An error unless `cp` is a multiple of 8 above zero.
    pub(super) fn new(cp: u32, groups: u32) -> Result<Tile> {
        if cp == 0 || !cp.is_multiple_of(8) {
            return Err(Error::Failed(format!("{cp} channels with padding: wanted a multiple of 8")));
        }
        let tiles = (cp / 8).div_ceil(groups.clamp(1, GROUPS));
        let groups = (cp / 8).div_ceil(tiles);
        // BLOCK_ROWS lanes have a row each.
        let lanes = (1 << (THREADS / groups).ilog2()).min(BLOCK_ROWS as u32);
        Ok(Tile { groups, lanes, tiles })
    }

    /// `blocks` blocks a channel tile.
    pub(super) fn launch(&self, blocks: u64, shared_bytes: u32) -> Result<Launch> {
        let x = u32::try_from(blocks).ok().filter(|x| *x <= Launch::MAX_GRID[0]);
        let x = x.ok_or_else(|| Error::Failed(format!("{blocks} blocks of rows are more than a grid has")))?;
        Ok(Launch { grid: [x, self.tiles, 1], block: [self.groups, self.lanes, 1], shared_bytes })
    }
}

/// Blocks of `BLOCK_ROWS` rows.
pub(super) fn by_block_rows(rows: u64, cp: u32) -> Result<Launch> {
    Tile::new(cp, GROUPS)?.launch(rows.div_ceil(BLOCK_ROWS), 0)
}

/// Blocks in which each lane takes `each` rows.
pub(super) fn by_lanes(rows: u64, cp: u32, each: u32) -> Result<Launch> {
    let tile = Tile::new(cp, GROUPS)?;
    tile.launch(rows.div_ceil(u64::from(tile.lanes * each)), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_a_thread_and_blocks_are_small_enough() {
        for cp in (8..=4096).step_by(8) {
            let t = Tile::new(cp, GROUPS).unwrap();
            assert!(t.groups * t.tiles * 8 >= cp && t.groups <= GROUPS, "{cp}");
            assert!(t.lanes.is_power_of_two() && t.groups * t.lanes <= THREADS && t.lanes <= 128, "{cp}");
            assert!((t.tiles - 1) * t.groups * 8 < cp, "{cp}: an empty tile");
        }
        for bad in [0, 4, 12] {
            assert!(Tile::new(bad, GROUPS).is_err());
        }
    }

    #[test]
    fn too_many_rows_are_an_error() {
        assert_eq!(by_block_rows(129, 8).unwrap().grid, [2, 1, 1]);
        assert!(by_block_rows(1 << 38, 8).is_err()); // 2^31 blocks
        by_block_rows((1 << 38) - 128, 8).unwrap().check("k", 0).unwrap();
    }
}
