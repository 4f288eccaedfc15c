//! The arena and the blocked layout `[ceil(n/16)][C][H][W][16]`: 16 images of one pixel side by side, so one weight is one
//! broadcast and every operation a full vector whatever the mask. Channels lie an odd number of pixels apart.
//!
//! Lanes of images beyond `n` hold anything: lanes never mix except in reductions, and every reduction masks them.

use super::workers::{Shared, Workers};
use crate::backend::{Plane, Spec, TensorSpec};
use crate::error::{Error, Result};

/// Tensors beyond this are written around the caches: half of a common L3. Tests, which have debug assertions, have tensors
/// on both sides of a smaller bound.
const LARGE_BYTES: usize = if cfg!(debug_assertions) { 32 << 10 } else { 16 << 20 };

/// Images side by side.
pub(super) const LANES: usize = 16;

/// Blocks that hold `n` images.
pub(super) fn blocks(n: usize) -> usize {
    n.div_ceil(LANES)
}

/// Images of `0..n` in block `nb`.
pub(super) fn valid(n: usize, nb: usize) -> usize {
    (n - nb * LANES).min(LANES)
}

/// Zeroed floats in one anonymous mapping, in huge pages where the system agrees: kernels jump between channels, and with
/// small pages each jump is a miss of the translation cache.
pub(super) struct Mapped {
    map: memmap2::MmapMut,
    /// The first float.
    pub(super) base: Shared<f32>,
}

impl Mapped {
    pub(super) fn new(floats: usize, what: &str) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::Failed(format!("cpu backend: no memory for {floats} floats of {what}: {e}; lower batch_size"))
        };
        let bytes = floats.checked_mul(4).ok_or_else(|| failed(&"more than can be addressed"))?;
        let mut map = memmap2::MmapMut::map_anon(bytes.max(1)).map_err(|e| failed(&e))?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage); // a hint; without it only the page size differs
        let base = Shared::from_ptr(map.as_mut_ptr().cast());
        Ok(Mapped { map, base })
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

/// The mapping that holds every tensor.
pub(super) struct Arena {
    map: Mapped,
    blocks: usize,
}

impl Arena {
    /// Room for `spec.batch` images.
    pub(super) fn new(spec: &Spec) -> Result<Self> {
        let batch = spec.batch;
        let too_big =
            || Error::Failed(format!("cpu backend: activations of {batch} images exceed memory; lower batch"));
        // Kernels address inside one block of 16 images with u32.
        if let Some(t) = spec.tensors.iter().find(|t| u32::try_from(t.plane.room() * LANES).is_err()) {
            return Err(Error::Failed(format!(
                "cpu backend: a plane of {:?} is too large; shrink the images",
                t.plane
            )));
        }
        let floats = spec.arena.checked_mul(blocks(batch) * LANES).ok_or_else(too_big)?;
        Ok(Arena { map: Mapped::new(floats, "activations")?, blocks: blocks(batch) })
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.map.bytes()
    }

    /// The tensor's place. Views of one arena may be used by several tasks as [`View`] says.
    pub(super) fn view(&self, t: &TensorSpec) -> View {
        // SAFETY: the spec was checked: every tensor lies inside the arena.
        View::new(unsafe { self.map.base.at(t.at * self.blocks * LANES) }, t.plane)
    }
}

/// Where a tensor lies; strides in floats. SAFETY: valid while its arena lives; tasks that run at once write disjoint
/// planes or rows.
#[derive(Clone, Copy)]
pub(super) struct View {
    base: *mut f32,
    pub(super) plane: Plane,
    /// From row to row.
    pub(super) row: usize,
    /// From channel to channel.
    pub(super) chan: usize,
    /// From block to block.
    pub(super) block: usize,
}

unsafe impl Send for View {}
unsafe impl Sync for View {}

impl View {
    fn new(base: *mut f32, plane: Plane) -> Self {
        let row = plane.w as usize * LANES;
        let chan = ((plane.w as usize * plane.h as usize) | 1) * LANES;
        View { base, plane, row, chan, block: chan * plane.c as usize }
    }

    /// Whether a tensor of so many blocks is too large to stay in the caches until it is read again.
    pub(super) fn is_large(&self, nbs: usize) -> bool {
        self.block * nbs * 4 > LARGE_BYTES
    }

    /// Pixel (0, 0) of channel `c` in block `nb`, which must exist.
    pub(super) unsafe fn plane_at(&self, nb: usize, c: usize) -> *mut f32 {
        debug_assert!(c < self.plane.c as usize);
        unsafe { self.base.add(nb * self.block + c * self.chan) }
    }

    pub(super) fn channels(&self) -> usize {
        self.plane.c as usize
    }

    pub(super) fn rows(&self) -> usize {
        self.plane.h as usize
    }

    pub(super) fn cols(&self) -> usize {
        self.plane.w as usize
    }

    pub(super) fn pixels(&self) -> usize {
        self.rows() * self.cols()
    }
}

/// N,C,H,W to blocks; zeros in the lanes beyond `n`.
pub(super) fn pack(workers: &Workers, v: View, n: usize, nchw: &[f32]) {
    let (c, px) = (v.channels(), v.pixels());
    workers.run(blocks(n) * c, nchw.len(), |_, task| {
        let (nb, ch) = (task / c, task % c);
        for row in 0..v.rows() {
            // SAFETY: a task writes one plane of one block, which the arena holds.
            let line = unsafe { std::slice::from_raw_parts_mut(v.plane_at(nb, ch).add(row * v.row), v.cols() * LANES) };
            for lane in 0..LANES {
                let out = line.iter_mut().skip(lane).step_by(LANES);
                if lane < valid(n, nb) {
                    let at = ((nb * LANES + lane) * c + ch) * px + row * v.cols();
                    out.zip(&nchw[at..at + v.cols()]).for_each(|(o, i)| *o = *i);
                } else {
                    out.for_each(|o| *o = 0.0);
                }
            }
        }
    });
}

/// Blocks to N,C,H,W.
pub(super) fn unpack(v: View, n: usize) -> Vec<f32> {
    let (c, px) = (v.channels(), v.pixels());
    let mut out = vec![0.0; n * c * px];
    for nb in 0..blocks(n) {
        for (ch, row) in (0..c * v.rows()).map(|i| (i / v.rows(), i % v.rows())) {
            // A row at a time: all its images read the same cache lines. SAFETY: inside the tensor.
            let line = unsafe { std::slice::from_raw_parts(v.plane_at(nb, ch).add(row * v.row), v.cols() * LANES) };
            for lane in 0..valid(n, nb) {
                let at = ((nb * LANES + lane) * c + ch) * px + row * v.cols();
                let to = out[at..at + v.cols()].iter_mut();
                to.zip(line.iter().skip(lane).step_by(LANES)).for_each(|(o, i)| *o = *i);
            }
        }
    }
    out
}
