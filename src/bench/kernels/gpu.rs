//! Operations on a GPU: calls on all copies in turn are captured in a graph, and replays of it timed between two
//! synchronisations.

use super::layer::{CONV, Copies, Layer, Tensors, UPDATE};
use super::{Built, Case, Op, Report, Timed, Widths, measure};
use crate::backend::Spec;
use crate::backend::gpu::ops::conv::ConvPlan;
use crate::backend::gpu::{Driver, GpuBackend, Precision, StepState};
use crate::bench::stats::Spread;
use crate::error::{Error, Result};
use crate::graph::OnGpu;
use crate::sparsity::Density;
use std::time::Instant;

/// Copies at most: beyond that a layer is so small that a network finds it in a cache too.
const COPIES: usize = 64;
/// How long a sample takes at least, so that its synchronisation does not count.
const SAMPLE_S: f64 = 0.005;
/// Replays in a sample at most.
const REPLAYS: usize = 1000;

/// What a GPU is told beside [`Case`].
#[derive(Clone, Copy, Debug)]
pub struct GpuCase {
    /// Numbers.
    pub precision: Precision,
    /// What the copies of the tensors should hold together: beyond the device's caches.
    pub rotated_bytes: usize,
    /// Numbers that are checked in f64, in the first copy: as many of its images as have them.
    pub checked_numbers: usize,
}

impl GpuCase {
    /// With as many numbers to check as the host takes well under a second for: a network has dozens of layers.
    pub fn new(precision: Precision, rotated_bytes: usize) -> Self {
        GpuCase { precision, rotated_bytes, checked_numbers: 1 << 20 }
    }
}

/// What a GPU has beside the figures of any device.
#[derive(Clone, Debug)]
pub struct GpuReport {
    /// How the convolution runs; `None` for what has none.
    pub plan: Option<ConvPlan>,
    /// Kernels a call.
    pub launches: u64,
    /// Copies of the tensors, which take turns.
    pub copies: usize,
    /// Images that were checked.
    pub checked_batch: usize,
    /// The dense layer through the vendor's libraries.
    pub vendor_ms: Option<Spread>,
    /// Why there is no such time, where it was asked for.
    pub vendor_missing: Option<String>,
}

/// Builds a layer's backend on a GPU.
pub type Make<'a, D> = &'a dyn Fn(Spec) -> Result<GpuBackend<D>>;

/// Measures `case` on the GPU of the backends that `make` builds. The data gradient is timed by itself. `vendor` builds the
/// dense layer through the vendor's libraries: if that fails or is wrong, the report says so and has the rest all the same.
///
/// # Errors
/// A layer the device does not take or has no memory for; a wrong result, in which case there is no time.
pub fn run<D: Driver>(case: &Case, gpu: GpuCase, make: Make<D>, vendor: Option<Make<D>>) -> Result<Report> {
    let element = gpu.precision.element().bytes();
    let copies = Copies { numbers: gpu.rotated_bytes / element, most: COPIES, checked: Some(gpu.checked_numbers) };
    // The update also reads where a weight's two copies lie, and writes them.
    let widths = Widths { tensor: element, weight: element + 4, gradient: 8, update: 20 + 8 + 2 * element };
    let build = |density, make| {
        let mut layer = Layer::new(case, density, copies, make)?;
        let verified = layer.verify()?;
        let (nnz, block) = (layer.nnz, layer.block);
        let replayed = Replayed::new(layer)?;
        let gpu = Some(replayed.report());
        Ok::<Built, Error>(Built { nnz, block, verified, gpu, timed: Box::new(replayed) })
    };
    // Which kernel runs does not depend on the density: none has to be forced.
    let ours = |density, _| build(density, make);
    match vendor.filter(|_| !matches!(case.op, Op::Bn | Op::Sgd)) {
        None => measure(case, widths, &ours, None),
        Some(vendor) => measure(case, widths, &ours, Some(&|| build(Density::ONE, vendor))),
    }
}

/// A layer whose calls were captured.
struct Replayed<D: Driver> {
    layer: Layer<GpuBackend<D>>,
    graph: D::Graph,
    launches: u64,
    /// Replays in a sample.
    replays: usize,
}

impl<D: Driver> Replayed<D> {
    fn new(mut layer: Layer<GpuBackend<D>>) -> Result<Self> {
        layer.b.unwatch(true);
        layer.b.gpu_mut().set_state(&StepState::from(UPDATE))?;
        let driver = layer.b.gpu().driver().clone();
        let before = driver.launches();
        let graph = driver.capture(&mut || (0..layer.copies).try_for_each(|copy| start(&mut layer, copy)))?;
        let launches = (driver.launches() - before) / layer.copies as u64;
        let mut replayed = Replayed { layer, graph, launches, replays: 1 };
        let _warm_up = replayed.sample()?;
        replayed.replays = (SAMPLE_S / replayed.sample()?.max(1e-9)).ceil().clamp(1.0, REPLAYS as f64) as usize;
        Ok(replayed)
    }

    /// Seconds of all replays of a sample.
    fn sample(&mut self) -> Result<f64> {
        let driver = self.layer.b.gpu().driver();
        driver.synchronise()?;
        let start = Instant::now();
        (0..self.replays).try_for_each(|_| driver.replay(&self.graph))?;
        driver.synchronise()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn report(&self) -> GpuReport {
        GpuReport {
            plan: self.layer.b.gpu().plan().layers.first().map(|layer| layer.plan),
            launches: self.launches,
            copies: self.layer.copies,
            checked_batch: self.layer.checked_batch(),
            vendor_ms: None,
            vendor_missing: None,
        }
    }
}

/// Starts the operation on a copy.
fn start<D: Driver>(layer: &mut Layer<GpuBackend<D>>, copy: usize) -> Result<()> {
    match layer.op {
        Op::ConvDgrad => {
            let (dy, dx) = layer.gradients(Tensors::of(copy));
            layer.b.gpu().start_data_gradient(CONV, dy, dx, layer.batch)
        }
        Op::Sgd => layer.b.gpu().update(),
        _ => {
            layer.operate(copy, true);
            Ok(())
        }
    }
}

impl<D: Driver> Timed for Replayed<D> {
    fn call(&mut self) -> Result<f64> {
        Ok(self.sample()? / (self.replays * self.layer.copies) as f64)
    }
}
