//! `sparse-engine eval`.

use super::device::DeviceArgs;
use super::format;
use crate::checkpoint::{Checkpoint, Meta};
use crate::config::Selection;
use crate::error::{Error, Result};
use crate::metrics::{DEFAULT_BINS, Epsilon, MOST_BINS, Space};
use crate::report::{RunDir, Split};
use crate::train::{Asked, Evaluation, InsideClasses, Measured};
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
    /// Bins of the expected calibration error: equal widths, each without its lower edge
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BINS as u32, value_parser = clap::value_parser!(u32).range(1..=MOST_BINS as i64))]
    ece_bins: u32,
    /// Images out of distribution, told apart by the largest softmax probability: a data set, a folder of images or one SVHN
    /// .mat file; or noise: "gaussian(SIGMA)" on the images themselves, "hein" (low-pass filtered), "uniform"; repeatable
    #[arg(long, value_name = "PATH|NOISE")]
    ood: Vec<String>,
    /// Seed of noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    ood_seed: u64,
    /// Compare --ood with images of some classes only: "folders", those that its class folders are named after
    /// (ImageNet-O's 200), or a file of class indices, one a line [default: with all images]
    #[arg(long, value_name = "folders|FILE", requires = "ood")]
    ood_classes: Option<PathBuf>,
    /// Accuracy under the fast gradient sign method with these epsilons, such as 8/255 or 2/255,4/255
    #[arg(long, value_name = "EPSILON,...", allow_hyphen_values = true)]
    fgsm: Option<String>,
    /// Unit of epsilon: pixels from 0 to 1, or normalised values (the paper does not say)
    #[arg(long, value_enum, default_value_t = SpaceArg::Pixel)]
    fgsm_space: SpaceArg,
    /// Write all logits with labels and indices of their images, for numpy.load
    #[arg(long, value_name = "FILE.npz")]
    save_logits: Option<PathBuf>,
    /// Print one JSON object, with the data of the reliability diagram
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum SpaceArg {
    /// Pixels from 0 to 1
    Pixel,
    /// Normalised values
    Normalised,
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
    let asked = Asked {
        ece_bins: args.ece_bins as usize,
        ood: args.ood,
        ood_seed: args.ood_seed,
        inside_classes: args.ood_classes.map(|which| match which.to_str() {
            Some("folders") => InsideClasses::OfFolders,
            _ => InsideClasses::Listed(which),
        }),
        fgsm: args.fgsm.as_deref().map(Epsilon::list).transpose()?.unwrap_or_default(),
        fgsm_space: match args.fgsm_space {
            SpaceArg::Pixel => Space::Pixel,
            SpaceArg::Normalised => Space::Normalised,
        },
        save_logits: args.save_logits,
    };
    let evaluation = Evaluation {
        checkpoint: &path,
        data: args.data.as_deref(),
        split,
        batch: args.batch_size as usize,
        threads: super::threads(args.threads),
        plan: args.plan.as_deref(),
        on,
        asked: &asked,
    };
    let evaluated = evaluation.run()?;
    let Measured { score: s, classification: c, ood, fgsm } = &evaluated.measured;
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
            "top5": c.top5,
            "nll": c.nll,
            "ece": c.ece,
            "ood": ood,
            "fgsm": fgsm,
            "selected_on_test": selected_on_test,
            "device": evaluated.device,
            "precision": evaluated.precision,
        });
        return super::print(&format!("{object}\n"));
    }
    let mut more = format!(
        "top-5 {}, NLL {:.4}, ECE {:.4} ({} bins)\n",
        format::percent(c.top5, 2),
        c.nll,
        c.ece.value,
        c.ece.bins
    );
    for o in ood {
        let against = if o.inside == s.n { String::new() } else { format!(" against {}", format::count(o.inside)) };
        more +=
            &format!("out of distribution, {}: AUROC {:.4}, {} images{against}\n", o.kind, o.auroc, format::count(o.n));
        if !o.rule.starts_with("none") {
            more += &format!("  brought to the network's shape: {}\n", o.rule);
        }
    }
    for f in fgsm {
        let space = if f.space == Space::Pixel { "pixels" } else { "normalised values" };
        let (accuracy, zeros) = (format::percent(f.accuracy, 2), format::percent(f.zero_gradient_share, 2));
        more += &format!("FGSM {} in {space}: accuracy {accuracy}; {zeros} of the gradient is zero\n", f.epsilon);
    }
    let name = serde_json::to_value(split).map_err(|e| Error::Failed(e.to_string()))?;
    super::print(&format!(
        "accuracy {}, loss {:.4} on {} images ({} split of {}){}; {}\n{more}",
        format::percent(s.accuracy, 2),
        s.loss,
        format::count(s.n),
        name.as_str().unwrap_or_default(),
        args.data.as_deref().unwrap_or("its own data"),
        if selected_on_test { ", the epoch selected on test images" } else { "" },
        evaluated.device,
    ))
}
