//! How each convolution runs: which kernel a pass, how planes are cut into patches, how channels are blocked, how many
//! pixels a register tile holds.
//!
//! The default is a pure function of geometry, stored weights and the cost table below, never of the threads, of the
//! instruction set or of a timing, so that a run can be repeated; `sparse-engine tune` measures and writes a plan of its
//! own. Channel blocks and the tile of `forward` and `data` change no bit of a result (sums keep their order); the
//! patches and the weight gradient's tile do, in rounding.

use super::simd::{Isa, V16, entry_points};
use super::structure::SHARED_ENTRIES;
use crate::backend::Spec;
use crate::error::{Error, Result};
use crate::shape::ConvGeom;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A kernel for one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// One FMA a stored weight and pixel, by entry lists.
    Sparse,
    /// All weights, zeros included, in register blocks of outputs and pixels.
    Dense,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kernel::Sparse => "sparse",
            Kernel::Dense => "dense",
        })
    }
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

impl fmt::Display for LayerPlan {
    /// One line: "sparse, sparse, dense; cut 2x1, channels 16 and 32, tile 7".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LayerPlan { forward, data, weight, cut, channels, tile } = self;
        let (rows, columns, input, output) = (cut[0], cut[1], channels[0], channels[1]);
        write!(f, "{forward}, {data}, {weight}; cut {rows}x{columns}, channels {input} and {output}, tile {tile}")
    }
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

impl PlannedLayer {
    /// The geometry by name.
    pub fn geom(&self) -> ConvGeom {
        let [c, h, w, k, r, s, stride, pad] = self.geometry;
        ConvGeom { c, h, w, k, r, s, stride, pad }
    }
}

/// What a plan was measured on, for people: no engine reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// Processor.
    pub machine: String,
    /// Instruction set, as [`Isa::name`] has it.
    pub isa: String,
    /// Worker threads.
    pub threads: usize,
    /// Images a step.
    pub batch: usize,
}

/// Version of the format of plans.
pub const PLAN_VERSION: u32 = 1;

/// A plan for a network: one layer a convolution, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// What it was measured on, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
    /// Layers in the order of [`Spec::convs`].
    pub layers: Vec<PlannedLayer>,
}

/// Pixels of a register tile on AVX2: 14 accumulators and one broadcast of its 16 registers.
pub(super) const TILE: usize = 7;
/// The same for 1x1 kernels, whose pixels share no input: fewer pixels make room for more channels in L1, so that segments
/// are longer. With blocks of twice as many entries, 4-11 % of a step of ResNet-50 at 90 and 80 % (Zen 3, 2026-11).
const POINT_TILE: usize = 4;
/// Input that one register tile walks before the next channel block: it must stay in L1 (32 KB) beside the entries.
const L1_TILE_BYTES: usize = 24 << 10;
/// Entries that a segment should have at least, to pay for its accumulator traffic and its mispredicted end.
const SEGMENT_ENTRIES: usize = 32;
/// A patch, generously counted: two of them and the gradient sums should stay in L2.
const PATCH_BYTES: usize = 224 << 10;
/// Rows and columns of a patch of a kernel wider than a pixel, stride 1, where rows are cut: a row alone has twice the
/// halo (3x3: 3.4 pixels read for one, here 1.9), which costs more than leaving L2.
const SQUARE: [usize; 2] = [4, 7];
/// Planes of so few pixels are one patch where patches are windows into one copy anyway: fewer statistics to join.
const WHOLE_PIXELS: usize = 56;

/// Cost of a stored weight in the sparse kernels against a weight in the dense ones: forward, data and weight gradient.
struct Costs {
    sparse: [f64; 3],
    /// Of starting and ending one segment, in dense weights.
    segment: f64,
}

/// Medians of `sparse-engine tune --costs` on a Zen 3 with AVX2, two threads, 2026-11-23: resnet20 at batch 128 1.23, 1.23
/// and 1.24, resnet50 at batch 16 1.38, 1.52 and 1.31. The default lies between them.
const COSTS: Costs = Costs { sparse: [1.3, 1.4, 1.3], segment: 3.0 };

/// Passes of a convolution, in the order of [`LayerPlan::kernels`].
pub const PASSES: [&str; 3] = ["forward", "data gradient", "weight gradient"];

impl LayerPlan {
    /// The default for a layer with `stored` weights.
    pub fn default_for(g: &ConvGeom, stored: usize) -> Self {
        let tile = if (g.r, g.s) == (1, 1) { POINT_TILE } else { TILE };
        let wide = |tile: usize| (tile - 1) * g.stride as usize + g.s as usize;
        let (c, k, st) = (g.c as usize, g.k as usize, g.stride as usize);
        let input = channel_block(c, g.r as usize * wide(tile), stored / k);
        let taps = |kernel: u32| (kernel as usize).div_ceil(st);
        let output = channel_block(k, taps(g.r) * (tile - 1 + taps(g.s)), stored / (c * st * st));
        let channels = [input, output];
        let [forward, data, weight] = [0, 1, 2].map(|pass| {
            let sparse = COSTS.sparse[pass] * stored as f64 + COSTS.segment * segments(g, channels, pass);
            if sparse < g.weights() as f64 { Kernel::Sparse } else { Kernel::Dense }
        });
        LayerPlan { forward, data, weight, cut: default_cut(g, stored), channels, tile }
    }

    /// Kernels of forward, data gradient and weight gradient.
    pub fn kernels(&self) -> [Kernel; 3] {
        [self.forward, self.data, self.weight]
    }

    /// Rows and columns of output pixels of the largest patch.
    pub fn patch(&self, g: &ConvGeom) -> [usize; 2] {
        [(g.p() as usize).div_ceil(self.cut[0]), (g.q() as usize).div_ceil(self.cut[1])]
    }

    /// What the sparse kernel of a pass (0 to 2, see [`PASSES`]) would have to cost a stored weight, as [`LayerPlan::default_for`]
    /// counts it, for the two kernels to be even at `stored` weights: how a measured crossover becomes a line of the cost
    /// table.
    pub fn even_cost(g: &ConvGeom, stored: usize, pass: usize) -> f64 {
        let channels = Self::default_for(g, stored).channels;
        (g.weights() as f64 - COSTS.segment * segments(g, channels, pass)) / stored as f64
    }

    /// Whether the layer can run so: what is wrong.
    fn fault(&self, g: &ConvGeom) -> Option<String> {
        let bad = |what: &str, got: usize, most: u32| {
            (got == 0 || got > most as usize).then(|| format!("{what}: wanted 1 to {most}, got {got}"))
        };
        bad("cut[0], parts of the rows", self.cut[0], g.p())
            .or(bad("cut[1], parts of the columns", self.cut[1], g.q()))
            .or(bad("channels[0], input channels a block", self.channels[0], g.c))
            .or(bad("channels[1], output channels a block", self.channels[1], g.k))
            .or(bad("tile", self.tile, 14))
    }
}

/// Segments that the sparse kernel of a pass walks for a tile.
fn segments(g: &ConvGeom, channels: [usize; 2], pass: usize) -> f64 {
    let (c, k, st) = (g.c as usize, g.k as usize, g.stride as usize);
    let count = if pass == 1 { c * st * st * k.div_ceil(channels[1]) } else { k * c.div_ceil(channels[0]) };
    count as f64
}

/// Pixels of a register tile that `isa`, which this machine has, holds at most: of forward pass and data gradient, and of
/// the weight gradient. A plan's `tile` above it is as good as this.
pub fn widest_tiles(isa: Isa) -> [usize; 2] {
    assert!(isa.available(), "no {} here", isa.name());
    // SAFETY: just checked.
    unsafe { widest(isa) }
}

entry_points!(widest = tiles_of() -> [usize; 2]);

#[inline(always)]
unsafe fn tiles_of<V: V16>() -> [usize; 2] {
    [V::GATHER, V::DOTS]
}

/// Geometry as a plan file writes it.
fn numbers(g: &ConvGeom) -> [u32; 8] {
    [g.c, g.h, g.w, g.k, g.r, g.s, g.stride, g.pad]
}

impl Plan {
    /// The default plan of a network; `names` in the order of [`Spec::convs`].
    pub fn default_for<'a>(spec: &Spec, names: impl IntoIterator<Item = &'a str>) -> Self {
        Plan::of(names.into_iter().zip(layers(spec)).map(|(name, (geom, weights))| (name, geom, weights)))
    }

    /// The default plan of layers, each a name, a geometry and the number of stored weights.
    pub fn of<'a>(layers: impl IntoIterator<Item = (&'a str, ConvGeom, usize)>) -> Self {
        let layers = layers.into_iter().map(|(name, g, weights)| {
            let plan = LayerPlan::default_for(&g, weights);
            PlannedLayer { layer: name.into(), geometry: numbers(&g), weights, plan }
        });
        Plan { version: PLAN_VERSION, tuned: None, layers: layers.collect() }
    }

    /// The layers' plans, if they are for this network.
    ///
    /// # Errors
    /// Names the first layer that does not fit, and how.
    pub fn for_spec(&self, spec: &Spec) -> Result<Vec<LayerPlan>> {
        self.check_spec(spec).map_err(|what| Error::Failed(format!("plan: {what}")))?;
        Ok(self.layers.iter().map(|l| l.plan).collect())
    }

    /// [`Plan::check`] against a network's convolutions.
    pub fn check_spec(&self, spec: &Spec) -> std::result::Result<(), String> {
        self.check(layers(spec))
    }

    /// Whether it is one for these layers, each a geometry and the number of stored weights: what is wrong, in one line.
    pub fn check(&self, layers: impl IntoIterator<Item = (ConvGeom, usize)>) -> std::result::Result<(), String> {
        const ADVICE: &str = "make one for this network with sparse-engine tune, or leave --plan out";
        if self.version != PLAN_VERSION {
            return Err(format!("version {}, this engine reads {PLAN_VERSION}", self.version));
        }
        let wanted: Vec<_> = layers.into_iter().collect();
        if self.layers.len() != wanted.len() {
            let got = self.layers.len();
            return Err(format!("wanted {} layers, got {got}: a plan for another network; {ADVICE}", wanted.len()));
        }
        for (i, (l, (g, weights))) in self.layers.iter().zip(wanted).enumerate() {
            let name = format!("layer {} {:?}", i + 1, l.layer);
            let want = numbers(&g);
            if l.geometry != want {
                let got = l.geometry;
                return Err(format!("{name}: wanted geometry {want:?}, got {got:?}: another network; {ADVICE}"));
            }
            if l.weights != weights {
                let got = l.weights;
                return Err(format!("{name}: wanted {weights} weights, got {got}: another sparsity; {ADVICE}"));
            }
            if let Some(fault) = l.plan.fault(&g) {
                return Err(format!("{name}: {fault}; correct it, or {ADVICE}"));
            }
        }
        Ok(())
    }

    /// The layers that run otherwise in `other`, a plan for the same network: name, plan here, plan there.
    pub fn differences<'a>(&'a self, other: &'a Plan) -> impl Iterator<Item = (&'a str, LayerPlan, LayerPlan)> {
        let pairs = self.layers.iter().zip(&other.layers);
        pairs.filter(|(a, b)| a.plan != b.plan).map(|(a, b)| (a.layer.as_str(), a.plan, b.plan))
    }
}

/// Geometry and stored weights of each convolution.
fn layers(spec: &Spec) -> impl Iterator<Item = (ConvGeom, usize)> {
    spec.convs.iter().map(|c| (c.geom, spec.params[c.weight.0 as usize].range.len()))
}

/// Input channels a block: as many as stay in L1 while a tile reads `pixels` pixels of each, more where segments would
/// become too short, and blocks of equal size.
fn channel_block(channels: usize, pixels: usize, entries_per_output: usize) -> usize {
    let cache = L1_TILE_BYTES / (pixels * super::layout::LANES * 4);
    let long = (SEGMENT_ENTRIES * channels).div_ceil(entries_per_output.max(1));
    let per = cache.max(long).clamp(1, channels);
    channels.div_ceil(channels.div_ceil(per))
}

/// Full rows where one fits, as many rows as fit, and never fewer than 4 patches if there are rows; else part of one row,
/// or a [`SQUARE`]. Small planes that all tasks share are one patch.
fn default_cut(g: &ConvGeom, stored: usize) -> [usize; 2] {
    let (p, q, st) = (g.p() as usize, g.q() as usize, g.stride as usize);
    if stored > SHARED_ENTRIES && p * q <= WHOLE_PIXELS {
        return [1, 1];
    }
    let bytes = |rows: usize, cols: usize| {
        let x = g.c as usize * ((rows - 1) * st + g.r as usize) * ((cols - 1) * st + g.s as usize);
        let dy = g.k as usize * (rows + g.r as usize / st) * (cols + g.s as usize / st);
        x.max(dy) * super::layout::LANES * 4
    };
    let across = (1..=q).find(|n| bytes(1, q.div_ceil(*n)) <= PATCH_BYTES || q.div_ceil(*n) <= 14).unwrap_or(q);
    if across > 1 && st == 1 && (g.r, g.s) != (1, 1) {
        return [p.div_ceil(SQUARE[0]), q.div_ceil(SQUARE[1])];
    }
    let cols = q.div_ceil(across);
    let rows = (1..=p).rev().find(|&rows| bytes(rows, cols) <= PATCH_BYTES).unwrap_or(1);
    [p.div_ceil(rows).max(p.min(4)), across]
}
