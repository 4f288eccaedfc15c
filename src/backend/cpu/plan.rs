//! How each convolution runs: which kernel a pass, how planes are cut into patches, how channels are blocked, how many
//! pixels a register tile holds.
//!
//! The default is a pure function of geometry, stored weights and the cost table below, never of the threads, of the
//! instruction set or of a timing, so that a run can be repeated; `sparse-engine tune` measures and writes a plan of its
//! own. Channel blocks and the tile of `forward` and `data` change no bit of a result (sums keep their order); the
//! patches and the weight gradient's tile do, in rounding.

use crate::backend::Spec;
use crate::error::{Error, Result};
use crate::shape::ConvGeom;
use serde::{Deserialize, Serialize};

/// A kernel for one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// One FMA a stored weight and pixel, by entry lists.
    Sparse,
    /// All weights, zeros included, in register blocks of outputs and pixels.
    Dense,
}

/// How one convolution runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerPlan {
    /// Kernel of the forward pass.
    pub forward: Kernel,
    /// Kernel of the data gradient.
    pub data: Kernel,
    /// Kernel of the weight gradient.
    pub weight: Kernel,
    /// Parts that rows and columns are cut into: patches.
    pub cut: [usize; 2],
    /// Input channels a block of the sparse forward kernel and weight gradient, output channels a block of the sparse
    /// data gradient.
    pub channels: [usize; 2],
    /// Pixels of a register tile of the sparse kernels, at most; the instruction set may allow fewer.
    pub tile: usize,
}

/// A layer of a plan file: what it is for, and how it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedLayer {
    /// Name of the layer, for people.
    pub layer: String,
    /// C, H, W, K, R, S, stride, padding.
    pub geometry: [u32; 8],
    /// Stored weights.
    pub weights: usize,
    /// How it runs.
    pub plan: LayerPlan,
}

/// A plan for a network: one layer a convolution, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the format: 1.
    pub version: u32,
    /// Layers in the order of [`Spec::convs`].
    pub layers: Vec<PlannedLayer>,
}

/// Pixels of a register tile on AVX2: 14 accumulators and one broadcast of its 16 registers.
pub(super) const TILE: usize = 7;
/// Input that one register tile walks before the next channel block: it must stay in L1 (32 KB) beside the entries.
const L1_TILE_BYTES: usize = 24 << 10;
/// Entries that a segment should have at least, to pay for its accumulator traffic and its mispredicted end.
const SEGMENT_ENTRIES: usize = 16;
/// A patch with its halo: two of them and the gradient sums must stay in L2.
const PATCH_BYTES: usize = 224 << 10;

/// Cost of a stored weight in the sparse kernels against a weight in the dense ones: forward, data and weight gradient.
struct Costs {
    sparse: [f64; 3],
    /// Of starting and ending one segment, in dense weights.
    segment: f64,
}

const COSTS: Costs = Costs { sparse: [1.4, 1.4, 1.6], segment: 3.0 };

impl LayerPlan {
    /// The default for a layer with `stored` weights.
    pub fn default_for(g: &ConvGeom, stored: usize) -> Self {
        let wide = |tile: usize| (tile - 1) * g.stride as usize + g.s as usize;
        let (c, k, st) = (g.c as usize, g.k as usize, g.stride as usize);
        let input = channel_block(c, g.r as usize * wide(TILE), stored / k);
        let taps = |kernel: u32| (kernel as usize).div_ceil(st);
        let output = channel_block(k, taps(g.r) * (TILE - 1 + taps(g.s)), stored / (c * st * st));
        let kernel = |pass: usize, segments: usize| {
            let sparse = COSTS.sparse[pass] * stored as f64 + COSTS.segment * segments as f64;
            if sparse < g.weights() as f64 { Kernel::Sparse } else { Kernel::Dense }
        };
        let (inputs, outputs) = (k * c.div_ceil(input), c * st * st * k.div_ceil(output));
        LayerPlan {
            forward: kernel(0, inputs),
            data: kernel(1, outputs),
            weight: kernel(2, inputs),
            cut: default_cut(g),
            channels: [input, output],
            tile: TILE,
        }
    }

    /// Whether the layer can run so: what is wrong.
    fn fault(&self, g: &ConvGeom) -> Option<String> {
        let bad = |what: &str, got: usize, most: usize| {
            (got == 0 || got > most).then(|| format!("{what}: wanted 1 to {most}, got {got}"))
        };
        bad("cut[0]", self.cut[0], g.p() as usize)
            .or(bad("cut[1]", self.cut[1], g.q() as usize))
            .or(bad("channels[0]", self.channels[0], g.c as usize))
            .or(bad("channels[1]", self.channels[1], g.k as usize))
            .or(bad("tile", self.tile, 14))
    }
}

/// Geometry as a plan file writes it.
fn numbers(g: &ConvGeom) -> [u32; 8] {
    [g.c, g.h, g.w, g.k, g.r, g.s, g.stride, g.pad]
}

impl Plan {
    /// The default plan of a network; `names` in the order of [`Spec::convs`].
    pub fn default_for<'a>(spec: &Spec, names: impl IntoIterator<Item = &'a str>) -> Self {
        let layers = spec.convs.iter().zip(names).map(|(c, name)| {
            let weights = spec.params[c.weight.0 as usize].range.len();
            let plan = LayerPlan::default_for(&c.geom, weights);
            PlannedLayer { layer: name.into(), geometry: numbers(&c.geom), weights, plan }
        });
        Plan { version: 1, layers: layers.collect() }
    }

    /// The layers' plans, if they are for this network.
    ///
    /// # Errors
    /// Names the first layer that does not fit, and how.
    pub fn for_spec(&self, spec: &Spec) -> Result<Vec<LayerPlan>> {
        let fail = |what: String| Err(Error::Failed(format!("plan: {what}; make one for this network with tune")));
        if self.version != 1 || self.layers.len() != spec.convs.len() {
            let got = (self.version, self.layers.len());
            return fail(format!(
                "wanted version 1 with {} layers, got version {} with {}",
                spec.convs.len(),
                got.0,
                got.1
            ));
        }
        for (l, c) in self.layers.iter().zip(&spec.convs) {
            let weights = spec.params[c.weight.0 as usize].range.len();
            if l.geometry != numbers(&c.geom) || l.weights != weights {
                let want = numbers(&c.geom);
                let got = (&l.geometry, l.weights);
                return fail(format!(
                    "layer {}: wanted {want:?} with {weights} weights, got {:?} with {}",
                    l.layer, got.0, got.1
                ));
            }
            if let Some(fault) = l.plan.fault(&c.geom) {
                return fail(format!("layer {}: {fault}", l.layer));
            }
        }
        Ok(self.layers.iter().map(|l| l.plan).collect())
    }
}

/// Input channels a block: as many as stay in L1 while a tile reads `pixels` pixels of each, more where segments would
/// become too short, and blocks of equal size.
fn channel_block(channels: usize, pixels: usize, entries_per_output: usize) -> usize {
    let cache = L1_TILE_BYTES / (pixels * super::layout::LANES * 4);
    let long = (SEGMENT_ENTRIES * channels).div_ceil(entries_per_output.max(1));
    let per = cache.max(long).clamp(1, channels);
    channels.div_ceil(channels.div_ceil(per))
}

/// Full rows where one row of patches fits, as many rows as fit, and never fewer than 4 patches if there are rows.
fn default_cut(g: &ConvGeom) -> [usize; 2] {
    let (p, q, st) = (g.p() as usize, g.q() as usize, g.stride as usize);
    let bytes = |rows: usize, cols: usize| {
        let x = g.c as usize * ((rows - 1) * st + g.r as usize) * ((cols - 1) * st + g.s as usize);
        let dy = g.k as usize * (rows + g.r as usize / st) * (cols + g.s as usize / st);
        x.max(dy) * super::layout::LANES * 4
    };
    let across = (1..=q).find(|n| bytes(1, q.div_ceil(*n)) <= PATCH_BYTES || q.div_ceil(*n) <= 14).unwrap_or(q);
    let cols = q.div_ceil(across);
    let rows = (1..=p).rev().find(|&rows| bytes(rows, cols) <= PATCH_BYTES).unwrap_or(1);
    [p.div_ceil(rows).max(p.min(4)), across]
}
