//! How the tasks of a pass get at an operand.

use super::super::cuts::Strides;
use super::super::kernels::patch::Patch;
use super::super::layout::LANES;
use super::super::simd::Isa;
use super::super::source::{Source, Window, fetch, fill};
use super::super::workers::{Shared, Workers};
use std::ops::Range;

/// Where an operand's window lies: its first pixel of channel 0 of the channels asked for.
pub(super) struct Near {
    pub(super) ptr: *const f32,
    pub(super) at: Strides,
}

impl Near {
    pub(super) fn patch(&self) -> Patch {
        Patch { ptr: self.ptr, chan: self.at.chan, row: self.at.row }
    }
}

/// How the tasks of a pass get at an operand.
#[derive(Clone, Copy)]
pub(super) enum Reach {
    /// In the tensor itself, whose lines are asked for in order before the kernels jump between channels, or not.
    Direct { fetch: bool },
    /// Copied to the worker's scratch, of these strides.
    Own(Strides),
    /// In a patch of all channels of this window, filled by [`share`].
    Shared(Shared<f32>, Strides, Window),
}

impl Reach {
    pub(super) fn new(direct: bool, shared: bool, patch: Shared<f32>, at: Strides, whole: Window) -> Self {
        match (direct, shared) {
            (true, _) => Reach::Direct { fetch: false },
            (_, true) => Reach::Shared(patch, at, whole),
            _ => Reach::Own(at),
        }
    }

    /// With the lines fetched first if `yes`: for tensors of which every line is read.
    pub(super) fn fetched(self, yes: bool) -> Self {
        if let Reach::Direct { .. } = self { Reach::Direct { fetch: yes } } else { self }
    }

    /// The window of some channels.
    pub(super) unsafe fn near(
        self,
        isa: Isa,
        s: Source,
        nb: usize,
        channels: Range<usize>,
        w: Window,
        own: *mut f32,
    ) -> Near {
        let inside = |row: isize, col: isize, at: Strides| row as usize * at.row + col as usize * LANES;
        // SAFETY: as the caller's; a window that is read directly lies inside the tensor.
        unsafe {
            match self {
                Reach::Direct { fetch: ahead } => {
                    if ahead {
                        fetch(isa, s.t, nb, channels.clone(), w);
                    }
                    let at = Strides { chan: s.t.chan, row: s.t.row };
                    Near { ptr: s.t.plane_at(nb, channels.start).add(inside(w.row.max(0), w.col.max(0), at)), at }
                }
                Reach::Own(at) => {
                    fill(isa, s, nb, channels, w, own, at.chan, at.row);
                    Near { ptr: own, at }
                }
                Reach::Shared(patch, at, whole) => {
                    let first = channels.start * at.chan + inside(w.row - whole.row, w.col - whole.col, at);
                    Near { ptr: patch.at(first), at }
                }
            }
        }
    }

    /// Fills the shared patch, if there is one, from one block of images.
    pub(super) fn share(self, isa: Isa, workers: &Workers, s: Source, nb: usize) {
        if let Reach::Shared(patch, at, w) = self {
            const CHANNELS: usize = 8;
            let c = s.t.channels();
            workers.run(c.div_ceil(CHANNELS), c * w.rows * w.cols, |_, task| {
                let channels = task * CHANNELS..c.min((task + 1) * CHANNELS);
                // SAFETY: each task fills its own channels; `isa` is available.
                unsafe { fill(isa, s, nb, channels.clone(), w, patch.at(channels.start * at.chan), at.chan, at.row) };
            });
        }
    }
}

/// Runs `f(worker, task)` for the tasks `0..tasks` of each block of images. Where patches are shared, block after block,
/// each behind `share(block)`; else all at once.
pub(super) fn for_blocks(
    workers: &Workers,
    shared: bool,
    nbs: usize,
    tasks: usize,
    work: usize,
    share: impl Fn(usize),
    f: impl Fn(usize, usize, usize) + Sync,
) {
    if shared {
        for nb in 0..nbs {
            share(nb);
            workers.run(tasks, work / nbs, |worker, task| f(worker, nb, task));
        }
    } else {
        workers.run(nbs * tasks, work, |worker, task| f(worker, task / tasks, task % tasks));
    }
}
