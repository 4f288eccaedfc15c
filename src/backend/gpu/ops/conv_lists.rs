//! What kernels read of a mask: where the weight gradient's non-zeros are, and which blocks there are.

use super::conv_plan::{ConvPlan, Tile, WeightTile};
use super::operand::{Precision, padded};
use crate::shape::ConvGeom;

/// Row and column: of a tap, of a class of pixels, of a source pixel.
type Pair = (i32, i32);

/// Where a list lies in [`Lists::words`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Two words an active group of 16 channels at a tap.
    pub(super) entries: usize,
    /// First entry of each column tile, and their number.
    pub(super) ptr: usize,
}

/// The tiles of a weight gradient that hold non-zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WeightTiles {
    pub(super) count: u32,
    /// Index of each.
    pub(super) tiles: usize,
    /// First entry of each, and their number.
    pub(super) ptr: usize,
    /// Two words a non-zero: position in the tile, index in the layer.
    pub(super) entries: usize,
    /// Two words a tile with a bit for each 16x16 block that holds one, if the mask has blocks.
    pub(super) active: Option<usize>,
}

/// The lists of one convolution, to be uploaded in one piece.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// What the device needs; its address must be a multiple of 8. Empty without a mask.
    pub words: Vec<u32>,
    pub(super) forward: Option<Blocks>,
    pub(super) data: Option<Blocks>,
    pub(super) weight: Option<WeightTiles>,
}

impl Lists {
    /// `kept`: positions in [K,C,R,S], ascending; `None`: all, which needs no lists. `block`: output and input channels of
    /// the blocks that the mask consists of, if it does.
    pub(super) fn build(
        geom: &ConvGeom,
        precision: Precision,
        plan: &ConvPlan,
        kept: Option<&[u32]>,
        block: Option<(u32, u32)>,
    ) -> Self {
        let mut lists = Lists::default();
        let Some(kept) = kept else { return lists };
        let blocks = Self::usable(geom, precision, block);
        lists.weight = Some(lists.weight_tiles(geom, precision, plan.weight, kept, blocks));
        if blocks {
            let taps: Vec<Pair> = (0..geom.r as i32).flat_map(|r| (0..geom.s as i32).map(move |s| (r, s))).collect();
            let (stride, pad) = (geom.stride as i32, geom.pad as i32);
            let forward = |(r, s): Pair, _: Pair| Some((r - pad, s - pad));
            let positions = |i: u32| {
                let (k, rest) = (i / (geom.c * geom.r * geom.s), i % (geom.c * geom.r * geom.s));
                (k, rest / (geom.r * geom.s), rest % (geom.r * geom.s))
            };
            let by_output = kept.iter().map(|&i| positions(i));
            lists.forward = Some(lists.blocks(plan.forward, geom.k, geom.c, &taps, 1, &forward, by_output));
            let data = |(r, s): Pair, (i, j): Pair| {
                let (y, x) = (i + pad - r, j + pad - s);
                (y % stride == 0 && x % stride == 0).then_some((y / stride, x / stride))
            };
            let by_input = kept.iter().map(|&i| positions(i)).map(|(k, c, tap)| (c, k, tap));
            lists.data = Some(lists.blocks(plan.data, geom.c, geom.k, &taps, stride, &data, by_input));
        }
        lists
    }

    /// Whether kernels leave out what lies outside the blocks.
    pub(super) fn usable(geom: &ConvGeom, precision: Precision, block: Option<(u32, u32)>) -> bool {
        let whole = |n: u32| n.is_multiple_of(16);
        precision != Precision::F32
            && block.is_some_and(|(k, c)| whole(k) && whole(c) && k > 0 && c > 0)
            && whole(geom.k)
            && whole(geom.c)
    }

    /// Appends, at an even place.
    fn push(&mut self, words: impl IntoIterator<Item = u32>) -> usize {
        let at = self.words.len().next_multiple_of(2);
        self.words.resize(at, 0);
        self.words.extend(words);
        at
    }

    fn weight_tiles(
        &mut self,
        g: &ConvGeom,
        precision: Precision,
        plan: WeightTile,
        kept: &[u32],
        blocks: bool,
    ) -> WeightTiles {
        let (columns, [_, column_tiles]) = (plan.columns(precision), plan.tiles(g, precision));
        let taps = g.r * g.s;
        let place = |i: u32| {
            let (k, c, tap) = (i / (g.c * taps), i / taps % g.c, i % taps);
            let column = tap * padded(g.c) + c;
            let tile = k / plan.tile * column_tiles + column / columns;
            (tile, k % plan.tile * columns + column % columns)
        };
        let mut places: Vec<(u32, u32, u32)> =
            kept.iter().enumerate().map(|(n, &i)| (place(i).0, place(i).1, n as u32)).collect();
        places.sort_unstable();
        let (mut tiles, mut ptr, mut active) = (vec![], vec![], vec![]);
        for (n, &(tile, position, _)) in places.iter().enumerate() {
            if tiles.last() != Some(&tile) {
                tiles.push(tile);
                ptr.push(n as u32);
                active.push(0u64);
            }
            let bit = position / columns / 16 * (columns / 16) + position % columns / 16;
            if let Some(last) = active.last_mut() {
                *last |= 1 << bit;
            }
        }
        ptr.push(places.len() as u32);
        WeightTiles {
            count: tiles.len() as u32,
            tiles: self.push(tiles),
            ptr: self.push(ptr),
            entries: self.push(places.iter().flat_map(|&(_, position, n)| [position, n])),
            active: blocks.then(|| self.push(active.iter().flat_map(|&a| [a as u32, (a >> 32) as u32]))),
        }
    }

    /// `kept`: column, channel and tap of each non-zero. `source(tap, class)`: the tap's source pixel, if the class has it.
    #[allow(clippy::too_many_arguments)]
    fn blocks(
        &mut self,
        tile: Tile,
        columns: u32,
        channels: u32,
        taps: &[Pair],
        stride: i32,
        source: &dyn Fn(Pair, Pair) -> Option<Pair>,
        kept: impl Iterator<Item = (u32, u32, u32)>,
    ) -> Blocks {
        let groups = channels / 16;
        let column_tiles = columns.div_ceil(tile.columns) as usize;
        let mut active = vec![0u8; column_tiles * taps.len() * groups as usize];
        for (column, channel, tap) in kept {
            let group = (tap * groups + channel / 16) as usize;
            let at = (column / tile.columns) as usize * taps.len() * groups as usize + group;
            active[at] |= 1 << (column % tile.columns / 16);
        }
        let (mut entries, mut ptr) = (vec![], vec![0u32]);
        for class in (0..stride).flat_map(|i| (0..stride).map(move |j| (i, j))) {
            for column_tile in active.chunks_exact(taps.len() * groups as usize) {
                for (group, &mask) in column_tile.iter().enumerate().filter(|(_, mask)| **mask != 0) {
                    if let Some((y, x)) = source(taps[group / groups as usize], class) {
                        entries.extend([
                            (group as u32) << 8 | u32::from(mask),
                            u32::from(y as u16) | u32::from(x as u16) << 16,
                        ]);
                    }
                }
                ptr.push(entries.len() as u32 / 2);
            }
        }
        Blocks { entries: self.push(entries), ptr: self.push(ptr) }
    }
}
