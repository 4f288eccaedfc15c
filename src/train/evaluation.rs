//! The metrics of a checkpoint.

use super::masks::mask_of;
use super::measure::{Measured, Measuring};
use super::on_device::{Device, OnDevice};
use super::plan::{GpuPlanFile, PlanFile};
use super::setup;
use super::workers;
use crate::backend::cpu::{CpuBackend, Isa};
use crate::backend::gpu::{self, Driver, GpuBackend, Precision, cuda::Cuda};
use crate::backend::{Backend, Spec};
use crate::checkpoint::{Checkpoint, Meta, NetState};
use crate::data::{self, ImageSet, Preprocess};
use crate::error::{Error, Result};
use crate::graph::{Graph, Net};
use crate::metrics::{DEFAULT_BINS, Epsilon, Space};
use crate::report::Split;
use crate::sparsity::Mask;
use std::path::{Path, PathBuf};

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
    /// Metrics beyond accuracy, likelihood and calibration.
    pub asked: &'a Asked,
}

/// Metrics that are asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Bins of the expected calibration error.
    pub ece_bins: usize,
    /// Sets out of distribution, as [`ood::open`](crate::data::ood::open) reads them.
    pub ood: Vec<String>,
    /// Seed of noise.
    pub ood_seed: u64,
    /// Compare with in-distribution images of some classes only; `None`: with all.
    pub inside_classes: Option<InsideClasses>,
    /// Attacks by the fast gradient sign method.
    pub fgsm: Vec<Epsilon>,
    /// Unit of their epsilons.
    pub fgsm_space: Space,
    /// File for all logits.
    pub save_logits: Option<PathBuf>,
}

/// Which in-distribution images a set is compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum InsideClasses {
    /// Those of the classes that the set's folders are named after.
    OfFolders,
    /// Those of the classes whose indices a file lists.
    Listed(PathBuf),
}

impl InsideClasses {
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            InsideClasses::OfFolders => None,
            InsideClasses::Listed(path) => Some(path),
        }
    }
}

impl Default for Asked {
    /// Nothing more.
    fn default() -> Self {
        Asked {
            ece_bins: DEFAULT_BINS,
            ood: vec![],
            ood_seed: 0,
            inside_classes: None,
            fgsm: vec![],
            fgsm_space: Space::Pixel,
            save_logits: None,
        }
    }
}

/// The in-distribution images.
pub(super) struct Inside {
    pub set: ImageSet,
    /// Positions in the data set's own split.
    positions: Option<data::Split>,
}

impl Inside {
    /// Position of image `i` in the data set's own split.
    pub fn index(&self, i: usize) -> u32 {
        self.positions.as_ref().map_or(i, |split| split.position(i)) as u32
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// What was measured.
    pub measured: Measured,
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
    inside: Inside,
    preprocess: Preprocess,
    batch: usize,
}

impl Prepared {
    fn measure<B: Backend<Real = f32>>(
        &self,
        of: &Evaluation,
        make: impl FnOnce(Spec) -> Result<B>,
    ) -> Result<(Measured, String)> {
        let new = if of.asked.fgsm.is_empty() { Net::new } else { Net::with_input_gradient };
        let mut net = new(&self.graph, &self.masks, self.batch, make)?;
        net.load(&self.state)?;
        let classes = self.graph.nodes().last().map_or(0, |n| n.chw.0 as usize);
        let (preprocess, batch, threads) = (&self.preprocess, self.batch, workers(of.threads));
        let mut measuring = Measuring { net: &mut net, preprocess, batch, threads, classes };
        Ok((measuring.run(&self.inside, of.asked, of.checkpoint)?, net.backend().describe()))
    }
}

/// Whether a file can be put there: what is wrong must show before the first pass.
fn check_target(path: &Path) -> Result<()> {
    if path.exists() {
        return Err(Error::Usage(format!("{}: it is there already; choose another --save-logits", path.display())));
    }
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::metadata(folder).map_err(Error::io(path, "cannot write"))?.is_dir() {
        true => Ok(()),
        false => Err(Error::data(path, format!("cannot write: {} is no folder", folder.display()))),
    }
}

impl Evaluation<'_> {
    /// Evaluates.
    ///
    /// # Errors
    /// A checkpoint, plan or data that cannot be read; images of another shape, or labels the network has no class for; a
    /// device that is not there.
    pub fn run(&self) -> Result<Evaluated> {
        if let Some(path) = &self.asked.save_logits {
            check_target(path)?;
        }
        let prepared = self.prepare()?;
        match self.on.of_evaluation(self.checkpoint, self.plan)? {
            Device::Auto | Device::Cpu => {
                let file = PlanFile::of_checkpoint(self.plan, self.checkpoint)?;
                let (measured, device) = prepared.measure(self, |spec| {
                    let plan = file.as_ref().map(|f| f.fit(&spec)).transpose()?;
                    CpuBackend::with_plan(spec, workers(self.threads), Isa::detect(), plan)
                })?;
                Ok(Evaluated { measured, device, precision: None })
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
        let (measured, device) = prepared.measure(self, |spec| {
            let plan = file.as_ref().map(|f| f.fit(&spec)).transpose()?;
            GpuBackend::new(open()?, spec, precision, plan)
        })?;
        Ok(Evaluated { measured, device, precision: Some(precision) })
    }

    fn prepare(&self) -> Result<Prepared> {
        let Checkpoint { net: state, meta } = Checkpoint::load(self.checkpoint)?;
        let source = self.data.unwrap_or(&meta.config.data);
        let preprocess = meta.config.preprocess.clone();
        let preprocess = preprocess.ok_or_else(|| Error::data(self.checkpoint, "no preprocessing stored"))?;
        preprocess.check(meta.data.image.c)?;
        let inside = self.inside(source, &meta)?;
        let graph = setup::network(&meta.config, meta.data.image, meta.data.classes)?;
        let batch = self.batch.min(inside.set.len()).max(1);
        let mask = |p| mask_of(p, meta.config.pattern);
        let masks = state.params.iter().filter(|p| p.kept.is_some()).map(mask).collect();
        Ok(Prepared { graph, masks, state, inside, preprocess, batch })
    }

    /// The images that accuracy is taken on.
    fn inside(&self, source: &str, meta: &Meta) -> Result<Inside> {
        let (image, known) = (meta.data.image, meta.data.classes);
        if ImageSet::is_folder(source)? {
            let set = ImageSet::open(source, image)?;
            let most = (0..set.len()).filter_map(|i| set.label(i)).max();
            return match most {
                _ if self.split != Split::Test => {
                    Err(Error::data(source, "a folder of images has no such split; leave --split out"))
                }
                None => {
                    Err(Error::data(source, "images without class folders have no labels; they can be given to --ood"))
                }
                Some(label) if label as usize >= known => {
                    let what = format!("images of {} classes; the checkpoint was trained on {known}", label + 1);
                    Err(Error::data(source, what))
                }
                Some(_) => Ok(Inside { set, positions: None }),
            };
        }
        let data = data::open(source)?;
        if data.shape != image || data.classes > known {
            let (got, classes) = (data.shape, data.classes);
            let what =
                format!("images of {got} in {classes} classes; the checkpoint was trained on {image} in {known}");
            return Err(Error::data(&data.source, what));
        }
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
        let name = format!("{} {}", data.kind, data.source);
        Ok(Inside { set: ImageSet::of_split(name, images.clone(), image)?, positions: Some(images) })
    }
}
