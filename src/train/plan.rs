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
    match given.filter(|given| (given.plan.precision, &given.plan.layers) != (own.plan.precision, &own.plan.layers)) {
        None => Ok(Some(own)),
        Some(given) => Err(Error::Usage(format!(
            "{}: not the plan of the run in {}; a run goes on as it began: leave --plan out",
            given.path.display(),
            own.path.display()
        ))),
    }
}

/// Precision and loss scale of a run: those asked for, if they are not at odds with the plan.
pub(super) fn numbers(options: &Options, file: Option<&GpuPlanFile>) -> Result<(Precision, LossScale)> {
    let precision = match (options.on.precision, file) {
        (Some(asked), Some(file)) if asked != file.plan.precision => {
            let planned = file.plan.precision;
            return Err(Error::Usage(format!(
                "--precision {asked}: the plan in {} is for {planned}; leave --precision out, or give another --plan",
                file.path.display()
            )));
        }
        (asked, file) => asked.or(file.map(|f| f.plan.precision)).unwrap_or(Precision::F16),
    };
    let planned = file.and_then(|f| Some((f, f.plan.loss_scale?)));
    let scale = match (options.on.loss_scale, planned) {
        (Some(asked), Some((file, planned))) if asked != planned => {
            return Err(Error::Usage(format!(
                "--loss-scale {asked}: the plan in {} is of a run with {planned}; leave --loss-scale out, or give another \
                 --plan",
                file.path.display()
            )));
        }
        (asked, planned) => asked.or(planned.map(|(_, scale)| scale)).unwrap_or(LossScale::default_for(precision)),
    };
    Ok((precision, scale))
}
