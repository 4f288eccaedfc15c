//! `bench step` on a GPU: steps as `train` runs them there. Images, labels, order, rates and losses lie on the device, several
//! steps are captured in a graph, and a sample is a replay of it between two synchronisations.
//!
//! Beside it the same steps launched kernel by kernel, which says what the graph gains; and op by op, each waited for, which
//! says where the time goes. Before anything is timed the operations are checked in f64, and the graph must leave, to the bit,
//! what the operations one by one leave.

use super::runner::Runner;
use crate::backend::Backend;
use crate::backend::gpu::vendor::Pass;
use crate::backend::gpu::{Driver, GpuBackend, LossScale};
use crate::bench::memory::{self, Memory};
use crate::bench::stats::Spread;
use crate::bench::step::{BLOCK, Config, Figures, Make, Network, Report};
use crate::error::Result;
use crate::graph::OnGpu;
use crate::sparsity::{Density, Method};

/// What a GPU is told beside [`Config`].
#[derive(Clone, Copy, Debug)]
pub struct GpuConfig {
    /// Factor of the loss's gradient.
    pub scale: LossScale,
    /// Numbers in all tensors together of the images that are checked in f64, as far as batch norms allow it.
    pub checked_numbers: usize,
}

impl GpuConfig {
    /// With as many numbers to check as the host takes about a minute for.
    pub fn new(scale: LossScale) -> Self {
        GpuConfig { scale, checked_numbers: 100_000_000 }
    }
}

/// How steps were timed.
#[derive(Clone, Debug)]
pub struct GpuReport {
    /// Steps of a graph.
    pub steps_a_graph: usize,
    /// Timed replays of each network.
    pub samples: usize,
    /// Images of the step that was checked in f64: fewer than the batch where that would take too long.
    pub checked_batch: Option<usize>,
    /// The dense network through the vendor's libraries, or why there is no such thing; `None`: not asked for.
    pub vendor: Option<std::result::Result<VendorReport, String>>,
}

/// The dense network through the vendor's libraries.
#[derive(Clone, Debug)]
pub struct VendorReport {
    /// Device, precision, libraries.
    pub backend: String,
    /// Products that the libraries make, of all, three a layer; our kernels make the rest.
    pub products: [usize; 2],
    /// Its figures.
    pub figures: Figures,
    /// Sparse step / this step, over pairs of neighbouring blocks.
    pub ratio: Option<Spread>,
}

/// What a GPU has beside the figures of any device.
#[derive(Clone, Debug)]
pub struct GpuFigures {
    /// Kernels a step.
    pub launches: u64,
    /// Milliseconds of a step whose kernels are launched one by one.
    pub launched_ms: Spread,
    /// Steps of the graph that left, to the bit, what the operations one by one left; `None` if nothing was checked.
    pub graph_steps_verified: Option<usize>,
    /// Loss scale at the end.
    pub loss_scale: f32,
    /// Timed steps whose update was left out, because a gradient overflowed.
    pub held_steps: u64,
    /// Bytes of images, labels and order on the device.
    pub data_bytes: u64,
}

/// Networks to be measured beside the sparse one.
pub struct Twins<'a, D: Driver> {
    /// The dense network with this engine's kernels.
    pub dense: Option<Make<'a, GpuBackend<D>>>,
    /// The dense network through cuBLASLt and cuDNN: [`GpuPlan::through_vendor`](crate::backend::gpu::GpuPlan::through_vendor).
    /// If it fails or is wrong, that is reported, and the others are measured all the same.
    pub vendor: Option<Make<'a, GpuBackend<D>>>,
}

/// Measures `config` on the backend that `make` builds.
///
/// # Errors
/// A configuration that no network fits, a device that fails or has no memory; a wrong result, or a graph that does not what
/// its operations do, in which case there is no time; a loss that is not finite.
pub fn run<D: Driver>(config: &Config, gpu: GpuConfig, make: Make<GpuBackend<D>>, twins: &Twins<D>) -> Result<Report> {
    let start = memory::resident();
    let network = Network::new(config, config.method, config.density)?;
    let mut sparse = Runner::new("sparse", &network, config, gpu, make)?;
    sparse.warm_up()?;
    let memory =
        start.zip(memory::peak()).map(|(start_rss_bytes, peak_rss_bytes)| Memory { start_rss_bytes, peak_rss_bytes });
    sparse.prepare(&network)?;
    let twin = |name, make: Make<GpuBackend<D>>| -> Result<Runner<D>> {
        let dense = Network::new(config, Method::Dense, Density::ONE)?;
        let mut runner = Runner::new(name, &dense, config, gpu, make)?;
        runner.warm_up()?;
        runner.prepare(&dense)?;
        Ok(runner)
    };
    let mut dense = twins.dense.map(|make| twin("dense", make)).transpose()?;
    let mut vendor = twins.vendor.map(|make| twin("vendor's dense", make).map_err(|e| e.to_string()));
    let samples = config.steps.div_ceil(sparse.data.steps);
    let (mut left, mut ratios, mut vendor_ratios) = (samples, vec![], vec![]);
    while left > 0 {
        let samples = left.min(BLOCK);
        let ours = sparse.block(samples)?;
        if let Some(dense) = &mut dense {
            ratios.push(ours / dense.block(samples)?);
        }
        sparse.launched_block(samples)?;
        if let Some(dense) = &mut dense {
            dense.launched_block(samples)?;
        }
        // Last: what fails there must not cost the others their time.
        vendor = vendor.map(|runner| {
            let mut runner = runner?;
            let theirs = runner.block(samples).and_then(|ms| runner.launched_block(samples).map(|()| ms));
            vendor_ratios.push(ours / theirs.map_err(|e| e.to_string())?);
            Ok(runner)
        });
        left -= samples;
    }
    let vendor = match vendor {
        None => None,
        Some(Err(why)) => Some(Err(why)),
        Some(Ok(runner)) => {
            let (backend, plan) = (runner.net.backend().describe(), runner.net.backend().gpu().plan().clone());
            let products = [plan.vendor_products(), Pass::ALL.len() * plan.layers.len()];
            Some(Ok(VendorReport {
                backend,
                products,
                figures: runner.figures(None)?,
                ratio: Spread::of(&vendor_ratios),
            }))
        }
    };
    let report = GpuReport { steps_a_graph: sparse.data.steps, samples, checked_batch: sparse.checked_batch, vendor };
    Ok(Report {
        backend: sparse.net.backend().describe(),
        maskable: network.masks.iter().map(|m| m.size() as u64).sum(),
        nnz: network.masks.iter().map(|m| m.nnz() as u64).sum(),
        macs_dense: network.graph.macs().iter().sum(),
        sparse: sparse.figures(memory)?,
        dense: dense.map(|runner| runner.figures(None)).transpose()?,
        ratio: Spread::of(&ratios),
        gpu: Some(report),
    })
}
