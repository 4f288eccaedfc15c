//! `sparse-engine eval`.

use super::device::DeviceArgs;
use super::format;
use crate::checkpoint::{Checkpoint, Meta};
use crate::config::Selection;
use crate::error::{Error, Result};
use crate::report::{RunDir, Split};
use crate::train::Evaluation;
use serde_json::json;
use std::path::PathBuf;

/// Version of the object that `--json` prints.
const EVAL_SCHEMA: u32 = 1;

/// Shows accuracy and loss of a checkpoint.
///
/// Images are always normalised with the constants stored in the checkpoint, whatever data set they come from.
#[derive(clap::Args)]
#[command(mut_arg("loss_scale", |scale| scale.hide(true)))]
#[command(mut_arg("precision", |kind| kind.help("Numbers on the GPU: fp16, bf16, tf32 or f32 [default: as in its run, else fp16]")))]
#[command(after_help = "Example:\n  sparse-engine eval runs/fashion-mnist-resnet20-erk-0.9-s0/last.safetensors --json")]
pub(super) struct EvalArgs {
    /// Checkpoint file, or a run directory: its last checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Data set: a file or a folder [default: the one it was trained on]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Which images
    #[arg(long, value_enum, default_value_t = SplitArg::Test)]
    split: SplitArg,
    /// Images at a time; it changes nothing but speed and memory
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch_size: u32,
    #[command(flatten)]
    device: DeviceArgs,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How each layer runs: a plan of tune, or a run's plan-cuda.json for a GPU [default: as in its run, or by rule]
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum SplitArg {
    /// Test images
    Test,
    /// Training images that were held back
    Val,
    /// The images it was trained on
    Train,
}

pub(super) fn run(args: EvalArgs) -> Result<()> {
    let path = if args.checkpoint.is_dir() { RunDir::at(&args.checkpoint).last() } else { args.checkpoint };
    let split = match args.split {
        SplitArg::Test => Split::Test,
        SplitArg::Val => Split::Val,
        SplitArg::Train => Split::Train,
    };
    let on = args.device.resolve()?;
    if on.loss_scale.is_some() {
        return Err(Error::Usage("eval has no gradient to scale: leave --loss-scale out".into()));
    }
    let evaluation = Evaluation {
        checkpoint: &path,
        data: args.data.as_deref(),
        split,
        batch: args.batch_size as usize,
        threads: super::threads(args.threads),
        plan: args.plan.as_deref(),
        on,
    };
    let evaluated = evaluation.run()?;
    let s = evaluated.score;
    if !s.loss.is_finite() {
        return Err(Error::Failed(format!(
            "{}: the loss on these images is {}: the network diverged",
            path.display(),
            s.loss
        )));
    }
    // Every figure of an epoch that was chosen by test accuracy says so.
    let Meta { config, progress, .. } = Checkpoint::load(&path)?.meta;
    let chosen = config.selection == Selection::BestTest && progress.best.is_some_and(|b| b.epoch == progress.epoch);
    let selected_on_test = chosen && split == Split::Test;
    if args.json {
        let object = json!({
            "schema": EVAL_SCHEMA,
            "checkpoint": path,
            "data": args.data,
            "split": split,
            "accuracy": s.accuracy,
            "loss": s.loss,
            "n": s.n,
            "selected_on_test": selected_on_test,
            "device": evaluated.device,
            "precision": evaluated.precision,
        });
        return super::print(&format!("{object}\n"));
    }
    let name = serde_json::to_value(split).map_err(|e| Error::Failed(e.to_string()))?;
    super::print(&format!(
        "accuracy {}, loss {:.4} on {} images ({} split of {}){}; {}\n",
        format::percent(s.accuracy, 2),
        s.loss,
        format::count(s.n),
        name.as_str().unwrap_or_default(),
        args.data.as_deref().unwrap_or("its own data"),
        if selected_on_test { ", the epoch selected on test images" } else { "" },
        evaluated.device,
    ))
}
