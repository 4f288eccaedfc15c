//! Which plan a run or an evaluation uses.

use super::Options;
use crate::backend::Spec;
use crate::backend::cpu::plan::Plan;
use crate::error::{Error, Result};
use crate::report::{RunDir, read_plan};
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
