//! Places and shapes that all kernels share. Strides are in floats; a pixel is 16 floats, one an image.

use crate::backend::cpu::layout::LANES;
use std::ops::Range;

/// Where a kernel reads: `[channels][rows][cols][16]` floats.
///
/// Channels a multiple of 4 KB apart share cache sets, so that 8 of them fill these: a patch does best with `chan / 16`
/// odd.
#[derive(Clone, Copy)]
pub(crate) struct Patch {
    pub(crate) ptr: *const f32,
    pub(crate) chan: usize,
    pub(crate) row: usize,
}

/// Where it writes, and reads when it adds: `ptr` is the first pixel of output channel 0.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub(crate) ptr: *mut f32,
    pub(crate) chan: usize,
    pub(crate) row: usize,
    /// From one output column to the next.
    pub(crate) step: usize,
}

/// Output pixels of one call, and how far the source moves from one row or column to the next.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) src_row: usize,
    /// `16 * stride` for forward pass and weight gradient, 16 for the data gradient.
    pub(crate) src_step: usize,
}

/// What an output's sum starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    Zero,
    /// One number an output channel.
    Bias(&'a [f32]),
    /// The old content, as between channel blocks.
    #[cfg(test)]
    Old,
}

/// The taps of a dense layer in summing order.
pub(crate) struct Taps {
    /// Input channels.
    pub(super) channels: usize,
    /// Taps a channel.
    pub(super) each: usize,
    /// Channels a block: what a register block of outputs walks before the next output's turn.
    pub(super) block: usize,
    /// Offsets of all taps of the first block.
    pub(super) offs: Vec<u32>,
}

impl Taps {
    /// `taps`: offsets of one channel's taps from the pixel's place in the patch, in summing order; `chan`: the patch's
    /// channel stride; `block`: as of [`dense::block`](super::dense::block).
    pub(crate) fn new(channels: usize, chan: usize, taps: &[u32], block: usize) -> Self {
        let block = block.clamp(1, channels.max(1));
        let offs = (0..block).flat_map(|c| taps.iter().map(move |t| (c * chan) as u32 + t)).collect();
        Taps { channels, each: taps.len(), block, offs }
    }

    /// Weights an output.
    pub(crate) fn weights(&self) -> usize {
        self.channels * self.each
    }

    /// Bytes of the offsets.
    pub(crate) fn bytes(&self) -> usize {
        4 * self.offs.len()
    }
}

/// Part `i` of `0..len` cut into `parts` of nearly equal length.
#[inline(always)]
pub(crate) fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    len * i / parts..len * (i + 1) / parts
}

/// A place in a grid, walked row by row.
#[derive(Clone, Copy)]
pub(super) struct Pixel {
    pub(super) row: usize,
    pub(super) col: usize,
}

impl Pixel {
    #[inline(always)]
    pub(super) fn next(&mut self, g: &Grid) {
        self.col += 1;
        if self.col == g.cols {
            (self.row, self.col) = (self.row + 1, 0);
        }
    }
}

const _: () = assert!(LANES == 16);
