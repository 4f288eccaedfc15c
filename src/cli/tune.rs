//! `sparse-engine tune`.

use super::network::NetworkArgs;
use super::plan_text::{changes, geometry};
use super::table::{aligned, digits};
use crate::backend::cpu::Isa;
use crate::backend::cpu::plan::{PASSES, Plan, Tuned as MadeOn};
use crate::config::{self, Overrides};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::models;
use crate::report::{Machine, write_plan};
use crate::sparsity::Mask;
use crate::train::Beginning;
use crate::tune::costs::{Costs, Crossover, DENSITIES, costs};
use crate::tune::{Config, Report, Tuned, tune};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of a network; a configuration says the same.
const NETWORK: [&str; 11] = [
    "model",
    "width",
    "classes",
    "channels",
    "image_size",
    "method",
    "sparsity",
    "density",
    "seed",
    "mask_draw",
    "pattern",
];

/// Measures how each layer runs fastest on this machine's CPU and writes a plan for train --plan.
///
/// A plan is for one network at one sparsity and one image size, and for this machine and instruction set; elsewhere it is
/// right, but slower. Results of a run with another plan differ in rounding. Measure while nothing else runs.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  sparse-engine tune --model resnet20 --sparsity 0.9 --out plan.json\n  \
                        sparse-engine tune --recipe cifar10-resnet20 --data cifar-10-batches-bin --budget 600\n  \
                        sparse-engine tune --costs --model resnet50 --batch 16\n\n\
                        Plans and their files: docs/plan.md.")]
pub(super) struct TuneArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// The network of this built-in recipe, in place of the options above
    #[arg(long, value_name = "NAME", conflicts_with_all = NETWORK)]
    recipe: Option<String>,
    /// The network of this configuration; RUN/config.toml makes a plan for a run like that one
    #[arg(long, value_name = "FILE", conflicts_with_all = NETWORK)]
    config: Option<PathBuf>,
    /// One key of the configuration; repeatable
    #[arg(long, value_name = "KEY=VALUE", conflicts_with_all = NETWORK)]
    set: Vec<String>,
    /// Data set of the configuration: the network takes its images
    #[arg(long, value_name = "PATH", conflicts_with_all = NETWORK)]
    data: Option<String>,
    /// Images a step [default: the configuration's batch_size, or 128; 16 for networks of ImageNet]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Option<u32>,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Time to measure in all; more of it tries more and trusts less to chance
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    budget: Duration,
    /// Plan file to write
    #[arg(long, value_name = "FILE", default_value = "plan.json")]
    out: PathBuf,
    /// Instead of a plan, print at which density the dense kernels begin to be faster: for the table in the source that
    /// default plans follow
    #[arg(long, conflicts_with = "out")]
    costs: bool,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "wanted a number of seconds".to_string())?;
    if !(seconds > 0.0 && seconds <= 1e6) {
        return Err("wanted a number of seconds above 0 and up to 1000000".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// What to measure.
struct Job {
    /// Lines about the network.
    head: String,
    graph: Graph,
    masks: Vec<Mask>,
    batch: usize,
}

pub(super) fn run(args: TuneArgs) -> Result<()> {
    if !args.costs {
        writable(&args.out)?;
    }
    let job = args.job()?;
    let (isa, batch) = (Isa::detect(), args.batch.map_or(job.batch, |b| b as usize));
    let config = Config { batch, threads: super::threads(args.threads), isa, budget: args.budget };
    let (cpu, s) = (Machine::this().cpu, if config.threads == 1 { "" } else { "s" });
    let on = format!("batch {batch}, {} thread{s}, {}, {cpu}", config.threads, isa.name());
    if args.costs {
        let found = costs(&job.graph, &config, &mut watch)?;
        return super::print(&format!("{}{on}\n\n{}", job.head, costs_text(&found)));
    }
    let report = tune(&job.graph, &job.masks, &config, &mut watch)?;
    let made = MadeOn { machine: cpu, isa: isa.name().into(), threads: config.threads, batch };
    write_plan(&args.out, &Plan { tuned: Some(made), ..report.plan.clone() })?;
    let head = format!("{}{on}: a plan for this machine and instruction set\n\n", job.head);
    super::print(&format!("{head}{}\nplan written to {}\n", text(&report), args.out.display()))
}

/// Says which layer is measured, to somebody who watches.
fn watch(done: usize, of: usize, layer: &str) {
    let mut out = std::io::stderr().lock();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[Klayer {} of {of}: {layer} ", done + 1);
        let _ = if done + 1 == of { writeln!(out) } else { out.flush() };
    }
}

/// Minutes of measuring are not spent on a plan that cannot be written.
fn writable(out: &Path) -> Result<()> {
    let mut probe = out.as_os_str().to_os_string();
    probe.push(".tmp");
    if out.is_dir() {
        return Err(Error::data(out, "cannot write the plan: it is a folder; choose another --out"));
    }
    let wrote = std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe));
    wrote.map_err(Error::io(out, "cannot write the plan"))
}

impl TuneArgs {
    fn job(&self) -> Result<Job> {
        let asked = Overrides { set: self.set.clone(), data: self.data.clone(), ..Overrides::default() };
        if self.recipe.is_some() || self.config.is_some() || !asked.is_empty() {
            let c = config::resolve(self.recipe.as_deref(), self.config.as_deref(), &asked)?.config;
            let Beginning { graph, masks, .. } = Beginning::of(&c, 0)?;
            let (network, method, density) = (c.network(), c.method, c.target()?);
            let head = format!("{network}, on images of {}\n{method}, density {density}\n", c.data);
            return Ok(Job { head, graph, masks, batch: c.batch_size });
        }
        let network = if self.costs { self.network.dense() } else { self.network.clone() }.resolve()?;
        let large = models::default_image(&self.network.model)?.1 > 100;
        let (head, masks) = (network.describe(), network.masks()?);
        Ok(Job { head, graph: network.graph, masks, batch: if large { 16 } else { 128 } })
    }
}

fn total(ms: [f64; 2]) -> f64 {
    ms[0] + ms[1]
}

fn text(report: &Report) -> String {
    let head = ["layer", "", "times", "density", "default ms", "", "tuned ms", "", "gain", "changed"];
    let mut rows = vec![head.map(String::from)];
    let mut sums = [[0.0; 2]; 2];
    for l in &report.layers {
        let count = l.names.len() as f64;
        for (sum, ms) in sums.iter_mut().zip([l.default_ms, l.ms]) {
            *sum = [0, 1].map(|i| sum[i] + count * ms[i]);
        }
        let density = l.weights as f64 / l.geom.weights() as f64;
        let row = (name(l), geometry(&l.geom), l.names.len().to_string(), format!("{density:.4}"));
        rows.push(row_of(row, [l.default_ms, l.ms], changes(&l.default, &l.plan, &l.geom)));
    }
    let layers = report.plan.layers.len().to_string();
    rows.push(row_of(("total".into(), String::new(), layers, String::new()), sums, String::new()));
    let mut text = aligned(&rows, |c| matches!(c, 0 | 1 | 9));
    text += "milliseconds forward and backward, minima; gain: default / tuned\n";
    if report.layers.iter().any(|l| !l.complete) {
        text += "* the time was over before every neighbouring plan was tried: a longer --budget may find more\n";
    }
    text
}

/// The first layer's name, marked where the search was cut short.
fn name(l: &Tuned) -> String {
    format!("{}{}", l.names[0], if l.complete { "" } else { " *" })
}

fn row_of(first: (String, String, String, String), [old, new]: [[f64; 2]; 2], changed: String) -> [String; 10] {
    let (name, geometry, times, density) = first;
    let [a, b, c, d] = [old[0], old[1], new[0], new[1]].map(digits);
    [name, geometry, times, density, a, b, c, d, format!("{:.2}", total(old) / total(new)), changed]
}

fn costs_text(found: &[Costs]) -> String {
    let [lowest, highest] = [DENSITIES[0], DENSITIES[DENSITIES.len() - 1]];
    let shown = |c: &Option<Crossover>| match c {
        None => "-".into(),
        Some(Crossover::Below) => format!("below {lowest}"),
        Some(Crossover::Above) => format!("above {highest}"),
        Some(Crossover::At(density)) => format!("{density:.2}"),
    };
    let cost = |c: Option<f64>| c.map_or("-".into(), |c| format!("{c:.2}"));
    let head = ["layer", "", "times", "forward", "data", "weight", "cost:", "", ""];
    let mut rows = vec![head.map(String::from)];
    for c in found {
        let ([a, b, d], [e, f, g]) = (c.passes.each_ref().map(shown), c.even_costs().map(cost));
        rows.push([c.names[0].clone(), geometry(&c.geom), c.names.len().to_string(), a, b, d, e, f, g]);
    }
    let median = [0, 1, 2].map(|pass| {
        let mut all: Vec<f64> = found.iter().filter_map(|c| c.even_costs()[pass]).collect();
        all.sort_by(f64::total_cmp);
        cost(all.get(all.len() / 2).copied())
    });
    let [a, b, c] = median;
    let empty = String::new;
    rows.push(["median".into(), empty(), empty(), empty(), empty(), empty(), a, b, c]);
    let passes = PASSES.join(", ");
    format!(
        "{}density at which the dense kernel of a pass ({passes}) is as fast as the sparse one,\n\
         and what a stored weight would then cost the sparse kernel in the cost table of src/backend/cpu/plan.rs\n",
        aligned(&rows, |c| c < 2)
    )
}
