//! What the dense kernels need of a convolution: weights in their order, and the offsets of its taps.

use super::cuts::Strides;
use super::kernels::dense::block;
use super::kernels::pack::Packing;
use super::kernels::patch::Taps;
use super::layout::LANES;
use super::plan::{Kernel, LayerPlan};
use super::simd::Isa;
use super::workers::{Shared, Workers};
use crate::shape::ConvGeom;

/// Built for the passes that run dense; the rest stays empty.
pub(super) struct Packed {
    geom: ConvGeom,
    packing: Packing,
    taps: Option<Taps>,
    /// Taps of each class of the data gradient.
    pub(super) classes: Vec<Taps>,
    /// `[K][C][R][S]` with zeros where weights are pruned; empty where none is, or the pass runs sparse.
    pub(super) forward: Vec<f32>,
    /// As [`Packing::transposed`].
    pub(super) transposed: Vec<f32>,
}

impl Packed {
    pub(super) fn new(g: &ConvGeom, how: &LayerPlan, masked: bool) -> Self {
        let packing = Packing::new(g);
        let zeros = |needed: bool| vec![0.0; if needed { packing.len() } else { 0 }];
        let forward = zeros(masked && how.forward == Kernel::Dense);
        let transposed = zeros(how.data == Kernel::Dense);
        Packed { geom: *g, packing, taps: None, classes: vec![], forward, transposed }
    }

    /// Offsets for an input with these strides.
    pub(super) fn read_input(&mut self, isa: Isa, at: Strides) {
        let g = &self.geom;
        let (r, s) = (g.r as usize, g.s as usize);
        let taps: Vec<u32> = (0..r * s).map(|t| (t / s * at.row + t % s * LANES) as u32).collect();
        let block = block(isa, g.c as usize, [r, s], g.stride as usize);
        self.taps = Some(Taps::new(g.c as usize, at.chan, &taps, block));
    }

    /// Offsets for an output gradient with these strides, from `low` pixels above and left of the pixel.
    pub(super) fn read_gradient(&mut self, isa: Isa, at: Strides, low: isize) {
        let (k, st) = (self.geom.k as usize, self.geom.stride);
        let extent = |kernel: u32| kernel.div_ceil(st) as usize;
        let block = block(isa, k, [extent(self.geom.r), extent(self.geom.s)], 1);
        let taps = |taps: &[[i64; 2]]| -> Vec<u32> {
            let offset =
                |&[y, x]: &[i64; 2]| (y as isize + low) as usize * at.row + (x as isize + low) as usize * LANES;
            taps.iter().map(|t| offset(t) as u32).collect()
        };
        self.classes = self.packing.classes().iter().map(|c| Taps::new(k, at.chan, &taps(&c.taps), block)).collect();
    }

    /// Taps of forward pass and weight gradient.
    pub(super) fn taps(&self) -> &Taps {
        self.taps.as_ref().expect("built for the passes that run dense")
    }

    /// Weights of one class of the data gradient, `[C][K][taps]`.
    pub(super) fn class_weights(&self, class: usize) -> &[f32] {
        &self.transposed[self.packing.classes()[class].weights.clone()]
    }

    /// Copies the values to their places.
    pub(super) fn refresh(&mut self, workers: &Workers, values: &[f32], kept: Option<&[u32]>) {
        let (k, packing) = (self.geom.k as usize, &self.packing);
        let work = values.len();
        if !self.forward.is_empty() {
            let out = Shared::new(&mut self.forward);
            // SAFETY: each output channel's places are written by one task.
            workers.run(k, work, |_, i| unsafe { packing.forward(values, kept, i..i + 1, out.at(0)) });
        }
        if !self.transposed.is_empty() {
            let out = Shared::new(&mut self.transposed);
            // SAFETY: as above.
            workers.run(k, work, |_, i| unsafe { packing.transposed(values, kept, i..i + 1, out.at(0)) });
        }
    }

    /// Bytes of the copies, and of the offsets.
    pub(super) fn bytes(&self) -> [u64; 2] {
        let offs: usize = self.taps.iter().chain(&self.classes).map(Taps::bytes).sum();
        [4 * (self.forward.len() + self.transposed.len()) as u64, offs as u64]
    }
}
