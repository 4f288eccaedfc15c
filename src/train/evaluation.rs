//! Accuracy and loss of a checkpoint.

use super::masks::mask_of;
use super::on_device::{Device, OnDevice};
use super::plan::{GpuPlanFile, PlanFile};
use super::setup;
use super::trainer::score;
use super::workers;
use crate::backend::cpu::{CpuBackend, Isa};
use crate::backend::gpu::{self, Driver, GpuBackend, Precision, cuda::Cuda};
use crate::backend::{Backend, Spec};
use crate::checkpoint::{Checkpoint, NetState};
use crate::data::{self, Loader};
use crate::error::{Error, Result};
use crate::graph::{Graph, Net};
use crate::report::{Score, Split};
use crate::sparsity::Mask;
use std::path::Path;

/// What to evaluate, and how: always with the preprocessing stored in the checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation<'a> {
    /// Checkpoint file.
    pub checkpoint: &'a Path,
    /// Data set; `None`: the one it was trained on.
    pub data: Option<&'a str>,
    /// Which images.
    pub split: Split,
    /// Images at a time, which changes no result beyond rounding.
    pub batch: usize,
    /// Worker threads; 0: one a core.
    pub threads: usize,
    /// Plan file; `None`: the plan of the run directory that the checkpoint lies in, or else the default one.
    pub plan: Option<&'a Path>,
    /// Device; its loss scale does not matter.
    pub on: OnDevice,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Accuracy and loss.
    pub score: Score,
    /// Device, such as "cpu avx2, 2 threads" or "cuda NVIDIA H100 80GB HBM3, fp16".
    pub device: String,
    /// Numbers on a GPU.
    pub precision: Option<Precision>,
}

/// A checkpoint's network, and the images that it is to see.
struct Prepared {
    graph: Graph,
    masks: Vec<Mask>,
    state: NetState,
    loader: Loader,
    batch: usize,
}

impl Prepared {
    fn score<B: Backend<Real = f32>>(&self, make: impl FnOnce(Spec) -> Result<B>) -> Result<(Score, String)> {
        let mut net = Net::new(&self.graph, &self.masks, self.batch, make)?;
        net.load(&self.state)?;
        Ok((score(&mut net, &self.loader), net.backend().describe()))
    }
}

impl Evaluation<'_> {
    /// Evaluates.
    ///
    /// # Errors
    /// A checkpoint, plan or data that cannot be read; images of another shape, or labels the network has no class for; a
    /// device that is not there.
    pub fn run(&self) -> Result<Evaluated> {
        let prepared = self.prepare()?;
        match self.on.of_evaluation(self.checkpoint, self.plan)? {
            Device::Auto | Device::Cpu => {
                let file = PlanFile::of_checkpoint(self.plan, self.checkpoint)?;
                let (score, device) = prepared.score(|spec| {
                    let plan = file.as_ref().map(|f| f.fit(&spec)).transpose()?;
                    CpuBackend::with_plan(spec, workers(self.threads), Isa::detect(), plan)
                })?;
                Ok(Evaluated { score, device, precision: None })
            }
            Device::Cuda => {
                gpu::probe()?;
                self.on_gpu(&prepared, Cuda::open)
            }
            #[cfg(feature = "emu")]
            Device::Emulated => {
                use crate::backend::gpu::emu::{Emulated, Order};
                self.on_gpu(&prepared, || Emulated::new(Order::Ascending))
            }
        }
    }

    fn on_gpu<D: Driver>(&self, prepared: &Prepared, open: impl FnOnce() -> Result<D>) -> Result<Evaluated> {
        let file = GpuPlanFile::of_checkpoint(self.plan, self.checkpoint, self.on)?;
        let (precision, _) = self.on.numbers(file.as_ref().map(GpuPlanFile::named))?;
        let (score, device) = prepared.score(|spec| {
            let plan = file.as_ref().map(|f| f.fit(&spec)).transpose()?;
            GpuBackend::new(open()?, spec, precision, plan)
        })?;
        Ok(Evaluated { score, device, precision: Some(precision) })
    }

    fn prepare(&self) -> Result<Prepared> {
        let Checkpoint { net: state, meta } = Checkpoint::load(self.checkpoint)?;
        let data = data::open(self.data.unwrap_or(&meta.config.data))?;
        if data.shape != meta.data.image || data.classes > meta.data.classes {
            let (got, wanted) = (data.shape, meta.data.image);
            let (classes, known) = (data.classes, meta.data.classes);
            let what =
                format!("images of {got} in {classes} classes; the checkpoint was trained on {wanted} in {known}");
            return Err(Error::data(&data.source, what));
        }
        let preprocess = meta.config.preprocess.clone();
        let preprocess = preprocess.ok_or_else(|| Error::data(self.checkpoint, "no preprocessing stored"))?;
        preprocess.check(data.shape.c)?;
        let images = match (self.split, meta.config.validation) {
            (Split::Test, _) => data.test,
            (Split::Train, 0) => data.train,
            (Split::Val, 0) => {
                let what = "it was trained without a validation split; use --split test or --split train";
                return Err(Error::data(self.checkpoint, what));
            }
            (split, count) => {
                data.train.split_last(count).map(|(train, val)| if split == Split::Val { val } else { train })?
            }
        };
        let graph = setup::network(&meta.config, meta.data.image, meta.data.classes)?;
        let batch = self.batch.min(images.len()).max(1);
        let mask = |p| mask_of(p, meta.config.pattern);
        let masks = state.params.iter().filter(|p| p.kept.is_some()).map(mask).collect();
        let loader = Loader::new(images, batch, preprocess, None, 0, workers(self.threads))?;
        Ok(Prepared { graph, masks, state, loader, batch })
    }
}
