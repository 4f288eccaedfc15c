//! `bench kernels`: one operation of a backend at a time, as a network calls it, sparse beside dense.
//!
//! A bench is a network of one layer: a batch norm and ReLU before it, a batch norm behind it, all computed where they are
//! read, unless `plain` leaves them out. Tensors exist several times over and take turns, so that a call finds them in
//! memory rather than in a cache, as in a network. Every operation is checked first (`check/mod.rs`), at the batch that is
//! timed; on a GPU at as many of its images as the host checks quickly.

mod checked;
mod gpu;
mod layer;

use super::check::Verified;
use super::stats::Spread;
use crate::backend::{Backend, Plane, Spec};
use crate::error::{Error, Result};
use crate::shape::{BlockShape, ConvGeom, MAX_STRIDE};
use crate::sparsity::{Density, Pattern};
use layer::{Copies, Layer};
use std::time::{Duration, Instant};

pub use checked::{CheckedConv, Pass};
pub use gpu::{GpuCase, GpuReport, run as run_on_gpu};

/// Densities between which the crossover is looked for.
const GRID: usize = 32;
/// Most weights: a gigabyte of them.
const MAX_WEIGHTS: u32 = 1 << 28;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Convolution forward, with the statistics of what it writes.
    ConvFwd,
    /// Data gradient: both gradients less the weight gradient, which the backend computes in one operation.
    ConvDgrad,
    /// Weight gradient.
    ConvWgrad,
    /// Linear layer, forward and both gradients.
    Linear,
    /// A batch norm with ReLU by itself: statistics, values, masked gradient with its sums, gradient of its input.
    Bn,
    /// Update of the weights with momentum.
    Sgd,
}

impl Op {
    /// Every operation with its name.
    pub const ALL: [(&'static str, Op); 6] = [
        ("conv_fwd", Op::ConvFwd),
        ("conv_dgrad", Op::ConvDgrad),
        ("conv_wgrad", Op::ConvWgrad),
        ("linear", Op::Linear),
        ("bn", Op::Bn),
        ("sgd", Op::Sgd),
    ];

    /// Name, such as "conv_fwd".
    pub fn name(self) -> &'static str {
        Op::ALL.iter().find(|(_, op)| *op == self).map_or("", |(name, _)| name)
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The operation.
    pub op: Op,
    /// The layer. A batch norm uses its input only; a linear layer is a 1x1 convolution of a 1x1 plane.
    pub geom: ConvGeom,
    /// Images.
    pub batch: usize,
    /// Share of the weights that is kept.
    pub density: Density,
    /// What the mask is made of.
    pub pattern: Pattern,
    /// Without batch norms and ReLUs around the layer.
    pub plain: bool,
    /// How long each side is timed at least.
    pub time: Duration,
    /// Whether to look for the density from which dense is not slower.
    pub crossover: bool,
    /// Seed of mask and numbers.
    pub seed: u64,
}

/// Figures of one operation.
#[derive(Clone, Debug)]
pub struct Report {
    /// Kept weights.
    pub nnz: u64,
    /// Blocks that the mask consists of, if it does.
    pub block: Option<BlockShape>,
    /// Milliseconds a call.
    pub ms: Spread,
    /// The same with every weight kept; `None` where there are no weights to keep.
    pub dense_ms: Option<Spread>,
    /// FLOPs of a call: 2 a multiply-accumulate of a kept weight, padding counted; 18 a value of a batch norm, 8 a weight of
    /// SGD.
    pub flops: u64,
    /// Bytes of operands and results, each once, with a value and an index for each kept weight.
    pub bytes: u64,
    /// Smallest density, in 32nds, at which the dense layer is not slower than the sparse kernel; 1 if it always is.
    pub crossover: Option<f64>,
    /// What was checked.
    pub verified: Verified,
    /// What a GPU has beside these.
    pub gpu: Option<GpuReport>,
}

/// An operation that can be called.
trait Timed {
    /// Seconds of a call.
    fn call(&mut self) -> Result<f64>;
}

/// An operation that was checked.
struct Built<'a> {
    timed: Box<dyn Timed + 'a>,
    nnz: usize,
    block: Option<BlockShape>,
    verified: Verified,
    gpu: Option<GpuReport>,
}

/// Builds the operation at a density; whether it must take the sparse kernel at any.
type Build<'a> = &'a dyn Fn(Density, bool) -> Result<Built<'a>>;

/// Measures `case` on backends that `make` builds; for the crossover on those of `forced`, which must take the sparse kernel
/// at any density.
///
/// # Errors
/// A layer no backend takes; a wrong result, in which case there is no time.
pub fn run<B: Backend>(
    case: &Case,
    make: &dyn Fn(Spec) -> Result<B>,
    forced: &dyn Fn(Spec) -> Result<B>,
) -> Result<Report> {
    let build = |density, must: bool| {
        let mut layer = Layer::new(case, density, Copies::CPU, if must { forced } else { make })?;
        let verified = layer.verify()?;
        Ok(Built { nnz: layer.nnz, block: layer.block, verified, gpu: None, timed: Box::new(layer) })
    };
    measure(case, Widths::CPU, &build, None)
}

/// Builds the dense layer through a vendor's library.
type Rival<'a> = &'a dyn Fn() -> Result<Built<'a>>;

/// `vendor`: timed in turn with the others where there is one. It is built last: it must not cost the others their memory.
fn measure<'a>(case: &Case, widths: Widths, build: Build<'a>, vendor: Option<Rival<'a>>) -> Result<Report> {
    let mut sparse = build(case.density, false)?;
    let weights = !matches!(case.op, Op::Bn);
    let mut dense = weights.then(|| build(Density::ONE, false)).transpose()?;
    let (mut vendor, missing) = match vendor.map(|build| build()).transpose() {
        Ok(vendor) => (vendor, None),
        Err(why) => (None, Some(why.to_string())),
    };
    let ms = in_turn([Some(&mut sparse), dense.as_mut(), vendor.as_mut()], case.time)?;
    let mut report = Report {
        nnz: sparse.nnz as u64,
        block: sparse.block,
        ms: ms[0],
        dense_ms: ms.get(1).copied(),
        flops: case.flops(sparse.nnz),
        bytes: case.bytes(sparse.nnz, widths),
        crossover: None,
        verified: sparse.verified,
        gpu: sparse.gpu.take(),
    };
    if let Some(gpu) = &mut report.gpu {
        gpu.vendor_ms = ms.get(2).copied();
        gpu.vendor_missing = missing;
    }
    drop((sparse, vendor));
    if let (Some(dense), true) = (&mut dense, case.crossover && !matches!(case.op, Op::Bn | Op::Sgd)) {
        // Up to `low` sparse is faster, or keeps no weight at all; from `high` on dense is not slower.
        let [k, c, r, s] = [case.geom.k, case.geom.c, case.geom.r, case.geom.s].map(|v| v as usize);
        let (mut low, mut high) = ((GRID / (k * c * r * s)).min(GRID - 1), GRID);
        while high - low > 1 {
            let middle = (low + high) / 2;
            let density = Density::from_density(middle as f64 / GRID as f64)?;
            let mut layer = build(density, true)?;
            let ms = in_turn([Some(&mut layer), Some(&mut *dense), None], case.time / 3)?;
            if ms[1].median <= ms[0].median { high = middle } else { low = middle }
        }
        report.crossover = Some(high as f64 / GRID as f64);
    }
    Ok(report)
}

/// Bytes that operations move, for each number.
#[derive(Clone, Copy, Debug)]
struct Widths {
    /// A number of a tensor.
    tensor: usize,
    /// A kept weight as a convolution reads it, with its index.
    weight: usize,
    /// Its gradient as it is written, with its index.
    gradient: usize,
    /// All that the update of a weight reads and writes.
    update: usize,
}

impl Widths {
    /// f32 with indices of 32 bits.
    const CPU: Widths = Widths { tensor: 4, weight: 8, gradient: 8, update: 20 };
}

impl Case {
    /// Whether there is such a layer.
    ///
    /// # Errors
    /// Sizes of zero, a kernel larger than its input, a stride above [`MAX_STRIDE`], more than [`MAX_WEIGHTS`] weights, images
    /// that exceed memory, or a batch norm over a single value.
    pub fn check(&self) -> Result<()> {
        let g = &self.geom;
        let sizes = [g.c, g.h, g.w, g.k, g.r, g.s, g.stride];
        let fits = |side: u32, kernel: u32| u64::from(side) + 2 * u64::from(g.pad) >= u64::from(kernel);
        if self.batch == 0 || sizes.contains(&0) || !fits(g.h, g.r) || !fits(g.w, g.s) {
            return Err(Error::Usage(format!(
                "no such layer: {g:?} with {} images; wanted sizes of at least 1 and a kernel that fits the padded input",
                self.batch
            )));
        }
        if g.stride > MAX_STRIDE {
            return Err(Error::Usage(format!("no such layer: {g:?}; wanted a stride of at most {MAX_STRIDE}")));
        }
        let largest =
            [self.batch, g.c.max(g.k) as usize, g.h as usize + 2 * g.pad as usize, g.w as usize + 2 * g.pad as usize];
        let numbers = largest.iter().try_fold(64usize, |n, &v| n.checked_mul(v));
        let weights = sizes[3..6].iter().try_fold(g.c, |n, &v| n.checked_mul(v));
        if weights.is_none_or(|n| n > MAX_WEIGHTS) {
            return Err(Error::Usage(format!("no such layer: {g:?}; wanted at most {MAX_WEIGHTS} weights")));
        }
        if numbers.is_none_or(|n| n > 1 << 40) {
            return Err(Error::Usage(format!("{g:?} with {} images exceeds memory; use a smaller layer", self.batch)));
        }
        let norm = !self.plain && !matches!(self.op, Op::Linear | Op::Sgd);
        let one = |p: Plane| self.batch == 1 && p.h == 1 && p.w == 1;
        if norm && (one(input(g)) || one(output(g))) {
            return Err(Error::Usage(
                "a batch norm over one value a channel is not defined; use more images, or --plain".into(),
            ));
        }
        Ok(())
    }

    fn flops(&self, nnz: usize) -> u64 {
        let once = 2 * nnz as u64 * u64::from(self.geom.p()) * u64::from(self.geom.q()) * self.batch as u64;
        match self.op {
            Op::ConvFwd | Op::ConvDgrad | Op::ConvWgrad => once,
            Op::Linear => 3 * once,
            // A value: 4 for the statistics, 3 for scale, shift and ReLU, 7 for the mask (scale, shift, comparison) and the
            // two sums, 4 for the gradient a*g + b*x + c.
            Op::Bn => 18 * (input(&self.geom).len() * self.batch) as u64,
            // A weight: four multiplications and additions (weight decay, momentum, Nesterov, update).
            Op::Sgd => 8 * nnz as u64,
        }
    }

    fn bytes(&self, nnz: usize, widths: Widths) -> u64 {
        let g = &self.geom;
        let (x, y) = (input(g).len() * self.batch, output(g).len() * self.batch);
        let y_of_norm = if self.plain { 0 } else { y }; // read for the gradient through it
        let x_of_norm = if self.plain { 0 } else { x }; // read for mask and sums
        let (numbers, weights) = match self.op {
            Op::ConvFwd => (x + y, widths.weight),
            Op::ConvDgrad => (y + y_of_norm + x + x_of_norm, widths.weight),
            Op::ConvWgrad => (x + y + y_of_norm, widths.gradient),
            Op::Linear => (3 * (x + y), 2 * widths.weight + widths.gradient),
            Op::Bn => (x + 2 * x + 3 * x + 3 * x, 0),
            Op::Sgd => (0, widths.update),
        };
        (widths.tensor * numbers + weights * nnz) as u64
    }
}

fn input(g: &ConvGeom) -> Plane {
    Plane { c: g.c, h: g.h, w: g.w }
}

fn output(g: &ConvGeom) -> Plane {
    Plane { c: g.k, h: g.p(), w: g.q() }
}

/// Times operations in turn.
fn in_turn(sides: [Option<&mut Built>; 3], time: Duration) -> Result<Vec<Spread>> {
    let mut layers: Vec<_> = sides.into_iter().flatten().map(|built| &mut built.timed).collect();
    let mut ms = vec![vec![]; layers.len()];
    for layer in &mut layers {
        let _warm_up = [layer.call()?, layer.call()?];
    }
    let mut spent = vec![0.0; layers.len()];
    while spent.iter().any(|&s| s < time.as_secs_f64()) || ms.iter().any(|m: &Vec<f64>| m.len() < 5) {
        for ((layer, ms), spent) in layers.iter_mut().zip(&mut ms).zip(&mut spent) {
            // A few calls in a row, so that a short one does not always follow the other layer's traffic.
            let (mut turn, mut calls) = (0.0, 0);
            while turn < 0.01 && calls < 8 {
                let start = Instant::now();
                ms.push(1e3 * layer.call()?);
                turn += start.elapsed().as_secs_f64();
                calls += 1;
            }
            *spent += turn;
        }
    }
    let of = |ms: &Vec<f64>| Spread::of(ms).ok_or_else(|| Error::Failed("bench kernels: nothing was timed".into()));
    ms.iter().map(of).collect()
}
