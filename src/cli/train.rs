//! `sparse-engine train`.

use super::configured::Configured;
use super::device::DeviceArgs;
use super::progress::Progress;
use super::signals;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::report::RunDir;
use crate::train::{self, Options};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Trains a network; with no arguments, a sparse ResNet-20 on built-in images.
///
/// That is a ResNet-20 with 90 % of its weights pruned, on Fashion-MNIST images inside this program. The
/// configuration is a recipe, then --config, then the options here; each overrides the one before.
///
/// Ctrl-C, SIGTERM or SIGUSR1 finish the step, write a checkpoint and end with exit code 75; a second one ends at once.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    configured: Configured,
    /// How each layer runs: a plan of sparse-engine tune for the CPU, a run's plan-cuda.json for a GPU; results change in
    /// rounding [default: by rule]
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Worker threads; they change no result [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Run directory, new or empty [default: runs/RECIPE-METHOD-SPARSITY-sSEED]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in this directory; "auto": with the one in --out if it has a checkpoint, else start it
    #[arg(long, value_name = "RUN|auto")]
    resume: Option<PathBuf>,
    /// Write a checkpoint this often, besides at the end of each epoch
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    checkpoint_every: Option<Duration>,
    /// Print the result only
    #[arg(long, short)]
    quiet: bool,
}

const AFTER_HELP: &str = "Examples:
  sparse-engine train --epochs 10 --set sparsity=0.95 --seed 1
  sparse-engine train --set method=dense
  sparse-engine train --recipe cifar10-resnet20 --data cifar-10-batches-bin --out runs/c10 --resume auto
  sparse-engine train --set model=my-network.toml

sparse-engine recipes lists what --recipe takes. Keys of the configuration: docs/config.md; networks of your own:
docs/networks.md; files of a run: docs/formats.md.";

fn minutes(text: &str) -> std::result::Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "wanted a number of minutes".to_string())?;
    if !(minutes > 0.0 && minutes <= 1e6) {
        return Err("wanted a number of minutes above 0 and up to 1000000".into());
    }
    Ok(Duration::from_secs_f64(60.0 * minutes))
}

/// Where runs go that were given no directory.
const RUNS: &str = "runs";

/// What to run, where, and from which state.
struct Job {
    config: Config,
    run: RunDir,
    resume: bool,
    /// Whether the directory was made here, and goes again if the run leaves nothing in it.
    new: bool,
}

pub(super) fn run(args: TrainArgs) -> Result<()> {
    let Job { config, run, resume, new } = job(&args)?;
    let options = Options {
        out: run.path().to_path_buf(),
        resume: resume.then(|| run.path().to_path_buf()),
        plan: args.plan.clone(),
        on: args.device.resolve()?,
        threads: super::threads(args.threads),
        checkpoint_every: args.checkpoint_every,
        watch_every: Options::WATCH_EVERY,
        command_line: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
    };
    let _lock = run.lock()?;
    let done = signals::stop_flag().and_then(|stop| {
        let mut progress = Progress::new(args.quiet, stop);
        train::train(&config, &options, &mut progress).map(drop)
    });
    if done.is_err() && new {
        // Both succeed only on what is empty.
        let gone = std::fs::remove_dir(run.path());
        if gone.is_ok() && args.out.is_none() {
            let _ = std::fs::remove_dir(RUNS);
        }
    }
    done
}

fn job(args: &TrainArgs) -> Result<Job> {
    match (&args.resume, &args.out) {
        (Some(word), Some(out)) if word.as_os_str() == "auto" => {
            let run = RunDir::at(out);
            let config = args.configured.resolve()?.config;
            if !run.last().exists() {
                let new = run.prepare(true)?;
                return Ok(Job { config, run, resume: false, new });
            }
            let old = run.load_config()?;
            let differences = old.differences(&config)?;
            if differences.is_empty() {
                return Ok(Job { config: old, run, resume: true, new: false });
            }
            let head =
                format!("{}: the run there has another configuration (its value, the one asked for)", out.display());
            Err(Error::Usage(std::iter::once(head).chain(differences).collect::<Vec<_>>().join("\n")))
        }
        (Some(word), None) if word.as_os_str() == "auto" => {
            Err(Error::Usage("--resume auto needs --out DIR, the run to go on with or to start".into()))
        }
        (Some(run), _) => {
            args.refuse_changes(run)?;
            let run = RunDir::at(run);
            if !run.last().is_file() {
                let what = "no such checkpoint to go on from; --resume wants the directory of a run";
                return Err(Error::data(run.last(), what));
            }
            Ok(Job { config: run.load_config()?, run, resume: true, new: false })
        }
        (None, out) => {
            let resolved = args.configured.resolve()?;
            let run = match out {
                Some(out) => RunDir::at(out),
                None => RunDir::unused(Path::new(RUNS), &resolved.run_name()),
            };
            let new = run.prepare(false)?;
            Ok(Job { config: resolved.config, run, resume: false, new })
        }
    }
}

impl TrainArgs {
    /// A run goes on as it began.
    fn refuse_changes(&self, run: &Path) -> Result<()> {
        let mut names = self.configured.given();
        names.extend(self.out.is_some().then_some("--out"));
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "{} cannot be given with --resume {}: a run goes on as it began (--threads, --checkpoint-every and --quiet may \
             change, and --device; numbers on a GPU are those of plan-cuda.json)",
            names.join(", "),
            run.display()
        )))
    }
}
