//! The run directory: which file is where, and that no run overwrites another.

use super::{read_plan, write_gpu_plan, write_plan};
use crate::backend::cpu::plan::Plan;
use crate::backend::gpu::GpuPlan;
use crate::config::Config;
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The run directory at `path`, whether or not it exists.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        RunDir { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.toml`: the resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// `plan.json`: how the layers run on the CPU.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.json")
    }

    /// `plan-cuda.json`: how they run on a GPU, once they did.
    pub fn gpu_plan(&self) -> PathBuf {
        self.path.join("plan-cuda.json")
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `gradients.jsonl`, where gradient norms are logged.
    pub fn gradients(&self) -> PathBuf {
        self.path.join("gradients.jsonl")
    }

    /// `summary.json`, written at the end.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// `last.safetensors`: the newest checkpoint.
    pub fn last(&self) -> PathBuf {
        self.path.join("last.safetensors")
    }

    /// `best.safetensors`: the checkpoint of the selected epoch.
    pub fn best(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// Writes what a new run is: its configuration and its plans. Where one does not fit on the disk, none stays. Without a
    /// plan for a GPU, that of a run which was killed at its start goes: a run goes on where its plans say it was.
    pub fn begin(&self, config: &Config, plan: &Plan, gpu_plan: Option<&GpuPlan>) -> Result<()> {
        let path = self.gpu_plan();
        if gpu_plan.is_none() && path.exists() {
            fs::remove_file(&path).map_err(Error::io(&path, "cannot remove the plan of an earlier run"))?;
        }
        self.save_config(config)?;
        let gpu_plan = || gpu_plan.map_or(Ok(()), |plan| write_gpu_plan(&path, plan));
        write_plan(&self.plan(), plan).and_then(|()| gpu_plan()).inspect_err(|_| {
            // The failure above is the one to report.
            let _ = fs::remove_file(self.config());
            let _ = fs::remove_file(self.plan());
        })
    }

    /// Reads the plan back.
    pub fn load_plan(&self) -> Result<Plan> {
        read_plan(&self.plan())
    }

    /// Writes the resolved configuration.
    pub fn save_config(&self, config: &Config) -> Result<()> {
        let head = "# Every key of this run. `sparse-engine train --config THIS_FILE` repeats it.\n\n";
        let text = config.to_toml()?;
        super::files::replace(&self.config(), "cannot write the configuration", |w| {
            w.write_all(head.as_bytes())?;
            w.write_all(text.as_bytes())
        })
    }

    /// Reads it back.
    pub fn load_config(&self) -> Result<Config> {
        let path = self.config();
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "cannot read the run's configuration"))?;
        Config::from_toml(&text, &path.display().to_string())
    }

    /// Makes the directory for a new run and makes sure that files can be written there. Whatever lies there already is
    /// refused, unless `restart` and it is what a run leaves that was killed before its first `last.safetensors` (the best
    /// checkpoint is written before it). Tells whether the directory is new.
    pub fn prepare(&self, restart: bool) -> Result<bool> {
        let fail = || Error::io(&self.path, "cannot write into the output directory");
        let new = !self.path.exists();
        fs::create_dir_all(&self.path).map_err(fail())?;
        for entry in fs::read_dir(&self.path).map_err(fail())? {
            let name = entry.map_err(fail())?.file_name();
            let name = name.to_string_lossy();
            let debris =
                ["config.toml", "plan.json", "plan-cuda.json", "metrics.jsonl", "gradients.jsonl", "best.safetensors"]
                    .contains(&&*name)
                    || name.ends_with(".tmp");
            if !(restart && debris) {
                return Err(Error::Usage(format!(
                    "{}: the output directory is not empty (it holds {name:?}); choose another --out, or add \
                     --resume auto to go on with its run",
                    self.path.display()
                )));
            }
        }
        let probe = self.path.join("probe.tmp");
        fs::write(&probe, "").and_then(|()| fs::remove_file(&probe)).map_err(fail())?;
        Ok(new)
    }

    /// Keeps other processes from writing the same run while the answer is held; it goes with the process, however that
    /// ends. A file system that knows no such locks gives `None`.
    pub fn lock(&self) -> Result<Option<fs::File>> {
        let Ok(folder) = fs::File::open(&self.path) else { return Ok(None) };
        match folder.try_lock() {
            Ok(()) => Ok(Some(folder)),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Failed(format!(
                "{}: another process is writing this run; wait for it, or end it first",
                self.path.display()
            ))),
            Err(fs::TryLockError::Error(_)) => Ok(None),
        }
    }

    /// `runs/NAME`, or `runs/NAME-2` and so on where that is taken.
    pub fn unused(runs: &Path, name: &str) -> Self {
        let counted = std::iter::once(name.to_string()).chain((2u64..).map(|i| format!("{name}-{i}")));
        let free = counted.map(|n| runs.join(n)).find(|p| fs::symlink_metadata(p).is_err());
        RunDir::at(free.unwrap_or_else(|| runs.join(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_get_names_of_their_own() {
        let runs = tempfile::tempdir().unwrap();
        let unused = || RunDir::unused(runs.path(), "a-erk-0.9-s0");
        for name in ["a-erk-0.9-s0", "a-erk-0.9-s0-2", "a-erk-0.9-s0-3"] {
            let run = unused();
            assert_eq!(run.path(), runs.path().join(name));
            assert!(run.prepare(false).unwrap(), "a new directory");
            assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0, "nothing left behind");
        }
    }

    #[test]
    fn what_lies_there_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        assert!(!run.prepare(false).unwrap());
        fs::write(run.metrics(), "").unwrap();
        let error = run.prepare(false).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("not empty (it holds \"metrics.jsonl\")"), "{error}");
        fs::write(folder.path().join("last.safetensors.tmp"), "").unwrap();
        fs::write(run.best(), "").unwrap();
        assert!(!run.prepare(true).unwrap());
        for name in ["last.safetensors", "summary.json", "thesis.tex"] {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            assert!(run.prepare(true).unwrap_err().to_string().contains(name));
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path().to_path_buf(), file.path().join("below")] {
            let error = RunDir::at(&path).prepare(false).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains("cannot write into the output directory"), "{error}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn one_process_writes_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let lock = RunDir::at(folder.path()).lock().unwrap().expect("this file system has locks");
        let error = RunDir::at(folder.path()).lock().unwrap_err();
        assert!(error.exit_code() == 1 && error.to_string().contains("another process is writing this run"), "{error}");
        drop(lock);
        assert!(RunDir::at(folder.path()).lock().unwrap().is_some());
    }

    #[test]
    fn the_configuration_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        let config = crate::config::resolve(None, None, &Default::default()).unwrap().config;
        run.save_config(&config).unwrap();
        assert_eq!(run.load_config().unwrap(), config);
    }
}
