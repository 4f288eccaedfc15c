//! `sparse-engine train`.

use super::device::DeviceArgs;
use super::progress::Progress;
use super::signals;
use crate::config::{self, Config, Overrides, RECIPES};
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
#[command(after_help = after_help())]
pub(super) struct TrainArgs {
    /// Built-in recipe to start from [default: fashion-mnist-resnet20]
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// TOML file over the recipe; RUN/config.toml repeats a run
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One key of the configuration, such as sparsity=0.95 or schedule.kind=cosine; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Data set: a file or a folder (IDX, CIFAR-10, CIFAR-100, .npz); its kind is recognised [default: the recipe's]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// What masks are made of: unstructured, or block:RxC, blocks of R output x C input channels; on a GPU
    /// pruned blocks are skipped if R and C are multiples of 16 [default: the recipe's]
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,
    /// Epochs; milestones and warm-up scale with them [default: the recipe's]
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Seed of initial values, masks and data order [default: the recipe's]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
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

fn after_help() -> String {
    let mut text = String::from("Recipes:\n");
    for recipe in RECIPES {
        text.push_str(&format!("  {:24}{}\n", recipe.name, recipe.about));
    }
    text.push_str(
        "\nExamples:\n  sparse-engine train --epochs 10 --set sparsity=0.95 --seed 1\n  \
         sparse-engine train --set method=dense\n  \
         sparse-engine train --recipe cifar10-resnet20 --data cifar-10-batches-bin --out runs/c10 --resume auto\n\n\
         Keys of the configuration: docs/config.md. Files of a run: docs/formats.md.",
    );
    text
}

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
            let config = args.resolve()?.config;
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
            let resolved = args.resolve()?;
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
    fn resolve(&self) -> Result<config::Resolved> {
        let overrides = Overrides {
            set: self.set.clone(),
            data: self.data.clone(),
            pattern: self.pattern.clone(),
            epochs: self.epochs,
            seed: self.seed,
        };
        let mut resolved = config::resolve(self.recipe.as_deref(), self.config.as_deref(), &overrides)?;
        // A run is evaluated and resumed from any folder.
        let data = &mut resolved.config.data;
        if !data.starts_with("builtin:")
            && let Ok(path) = std::path::absolute(&*data)
        {
            *data = path.to_string_lossy().into_owned();
        }
        Ok(resolved)
    }

    /// A run goes on as it began.
    fn refuse_changes(&self, run: &Path) -> Result<()> {
        let given = [
            ("--recipe", self.recipe.is_some()),
            ("--config", self.config.is_some()),
            ("--set", !self.set.is_empty()),
            ("--data", self.data.is_some()),
            ("--pattern", self.pattern.is_some()),
            ("--epochs", self.epochs.is_some()),
            ("--seed", self.seed.is_some()),
            ("--out", self.out.is_some()),
        ];
        let names: Vec<_> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
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
