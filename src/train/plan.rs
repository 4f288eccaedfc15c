//! Which plan a run or an evaluation uses.

use super::{OnDevice, Options};
use crate::backend::Spec;
use crate::backend::cpu::plan::Plan;
use crate::backend::gpu::{GpuPlan, LossScale, Precision};
use crate::error::{Error, Result};
use crate::report::{RunDir, read_gpu_plan, read_plan};
use std::path::{Path, PathBuf};

/// A plan and where it comes from.
pub(super) struct PlanFile {
    pub plan: Plan,
    path: PathBuf,
}

impl PlanFile {
    fn read(path: &Path) -> Result<Self> {
        Ok(PlanFile { plan: read_plan(path)?, path: path.into() })
    }

    /// The plan, if it is one for `spec`.
    pub fn fit(&self, spec: &Spec) -> Result<&Plan> {
        self.plan.check_spec(spec).map_err(|what| Error::data(&self.path, what))?;
        Ok(&self.plan)
    }

    /// The plan given, or that of the run that is gone on with; `None`: the default.
    pub fn of_run(options: &Options) -> Result<Option<Self>> {
        let given = options.plan.as_deref().map(PlanFile::read).transpose()?;
        let Some(run) = &options.resume else { return Ok(given) };
        let own = PlanFile::read(&RunDir::at(run).plan())?;
        let change = given.and_then(|given| Some((own.change(&given.plan)?, given.path)));
        match change {
            None => Ok(Some(own)),
            Some((what, path)) => Err(Error::Usage(format!(
                "{}: not the plan of the run in {}: {what}; a run goes on as it began: leave --plan out",
                path.display(),
                run.display()
            ))),
        }
    }

    /// How `given` differs.
    fn change(&self, given: &Plan) -> Option<String> {
        let layers = |p: &Plan| p.layers.iter().map(|l| (l.geometry, l.weights)).collect::<Vec<_>>();
        if layers(&self.plan) != layers(given) {
            return Some("it is for another network or sparsity".into());
        }
        let (layer, own, given) = self.plan.differences(given).next()?;
        Some(format!("layer {layer:?} runs as {own} there, and as {given} here"))
    }

    /// The plan given, or that of the run directory that the checkpoint lies in; `None`: the default.
    pub fn of_checkpoint(given: Option<&Path>, checkpoint: &Path) -> Result<Option<Self>> {
        let run = checkpoint.parent().map(RunDir::at).filter(|run| run.config().exists() && run.plan().exists());
        given.map(Path::to_path_buf).or(run.map(|run| run.plan())).map(|path| PlanFile::read(&path)).transpose()
    }
}

/// A plan for a GPU and where it comes from.
pub(super) struct GpuPlanFile {
    pub plan: GpuPlan,
    path: PathBuf,
}

impl GpuPlanFile {
    fn read(path: &Path) -> Result<Self> {
        Ok(GpuPlanFile { plan: read_gpu_plan(path)?, path: path.into() })
    }

    /// The plan, if it is one for `spec`.
    pub fn fit(&self, spec: &Spec) -> Result<&GpuPlan> {
        self.plan.check_spec(spec).map_err(|what| Error::data(&self.path, what))?;
        Ok(&self.plan)
    }

    /// With its file, for messages.
    pub fn named(&self) -> (&Path, &GpuPlan) {
        (&self.path, &self.plan)
    }

    /// The plan given, or that of the run directory that the checkpoint lies in, if it has the precision asked for.
    pub fn of_checkpoint(given: Option<&Path>, checkpoint: &Path, on: OnDevice) -> Result<Option<Self>> {
        let run = checkpoint.parent().map(|run| RunDir::at(run).gpu_plan()).filter(|path| path.exists());
        let file = given.map(Path::to_path_buf).or(run).map(|path| GpuPlanFile::read(&path)).transpose()?;
        Ok(file.filter(|f| given.is_some() || on.precision.is_none_or(|p| p == f.plan.precision)))
    }
}

/// Whether a file is a plan for the CPU.
pub(super) fn is_cpu_plan(path: &Path) -> bool {
    read_plan(path).is_ok()
}

/// The plan given, or that of the run that is gone on with, if it ran on a GPU before; `None`: the default.
pub(super) fn gpu_plan_of_run(options: &Options) -> Result<Option<GpuPlanFile>> {
    let given = options.plan.as_deref().map(GpuPlanFile::read).transpose()?;
    let own = options.resume.as_ref().map(|run| RunDir::at(run).gpu_plan()).filter(|path| path.exists());
    let Some(own) = own.map(|path| GpuPlanFile::read(&path)).transpose()? else { return Ok(given) };
    let differs = |given: &GpuPlan| {
        let scale = given.loss_scale.is_some() && given.loss_scale != own.plan.loss_scale;
        scale || (given.precision, &given.layers) != (own.plan.precision, &own.plan.layers)
    };
    match given.filter(|given| differs(&given.plan)) {
        None => Ok(Some(own)),
        Some(given) => Err(Error::Usage(format!(
            "{}: not the plan of the run in {}; a run goes on as it began: leave --plan out",
            given.path.display(),
            own.path.display()
        ))),
    }
}

/// Largest data set that is kept on the device.
const MOST_RESIDENT_BYTES: usize = 16 << 30;

/// Whether a training set of `bytes` bytes is kept on the device; else its batches come from the host, which has no loss scale.
pub(super) fn fits_device(bytes: usize, precision: Precision, scale: LossScale) -> Result<bool> {
    if bytes <= MOST_RESIDENT_BYTES {
        return Ok(true);
    }
    if scale == LossScale::Static(1.0) && precision != Precision::F16 {
        return Ok(false);
    }
    Err(Error::Usage(format!(
        "{precision} with loss scale {scale}: the training images are {bytes} bytes, more than the {} GiB that are kept on a \
         GPU, and batches from the host have no loss scale; use --precision bf16 --loss-scale 1",
        MOST_RESIDENT_BYTES >> 30
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_the_device_has_no_loss_scale() {
        let (one, many) = (LossScale::Static(1.0), LossScale::Static(2.0));
        for (precision, scale) in [(Precision::F16, LossScale::Dynamic), (Precision::Bf16, one), (Precision::F32, many)]
        {
            assert!(fits_device(16 << 30, precision, scale).unwrap(), "{precision} {scale}");
        }
        assert!(!fits_device((16 << 30) + 1, Precision::Bf16, one).unwrap());
        let refused = [
            (Precision::F16, LossScale::Dynamic),
            (Precision::F16, one),
            (Precision::Bf16, LossScale::Dynamic),
            (Precision::F32, many),
        ];
        for (precision, scale) in refused {
            let said = fits_device((16 << 30) + 1, precision, scale).unwrap_err().to_string();
            assert!(said.contains(&format!("{precision} with loss scale {scale}")) && said.contains("bf16"), "{said}");
        }
    }
}
