//! `inspect`: what a network costs dense and sparse, layer by layer, without drawing a batch or training.

use super::format::{count, share};
use super::network::{Network, NetworkArgs};
use super::plan_text;
use super::table::aligned;
use crate::backend::cpu::plan::{LayerPlan, Plan};
use crate::error::{Error, Result};
use crate::metrics::{Flops, FlopsKeys, LayerWork};
use crate::report::read_plan;
use crate::sparsity::{Draw, Fallback, Form, LayerShare, Mask, Maskable, Method, Pattern, layer_shares};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Shows layer densities, counts and costs of a network, or how its layers run on the CPU.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// Which network
    #[command(flatten)]
    pub network: NetworkArgs,
    /// How each layer runs on the CPU: by default, or as this plan file says
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    pub plan: Option<Option<PathBuf>>,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Prints to the standard output. A reader that stops early, such as `head`, is no failure.
pub fn run(args: InspectArgs) -> Result<()> {
    write(&args, &mut std::io::stdout().lock())
}

/// Prints to `out`; nothing is written if an argument is wrong.
pub fn write(args: &InspectArgs, out: &mut dyn Write) -> Result<()> {
    let report = Report::new(args)?;
    let text = if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|e| Error::Failed(format!("inspect: {e}")))?;
        json + "\n"
    } else {
        report.table()
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", "cannot write")(e)),
        _ => Ok(()),
    }
}

/// The JSON object. Multiply-accumulates and FLOPs are those of one image (`crate::metrics::Flops`): `sparse` ones of the
/// weights kept, `formula` ones by the layers' densities before they are rounded to counts.
#[derive(Serialize)]
struct Report {
    model: String,
    /// Null for networks that have one width only.
    width: Option<usize>,
    classes: usize,
    channels: usize,
    image_size: usize,
    method: Method,
    density: f64,
    mask_draw: Draw,
    pattern: Pattern,
    seed: u64,
    params: usize,
    maskable: usize,
    nnz: usize,
    macs_dense: u64,
    macs_sparse: u64,
    #[serde(flatten)]
    flops: FlopsKeys,
    layers: Vec<Layer>,
    #[serde(skip)]
    head: String,
    #[serde(skip)]
    plan: Option<Plan>,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    shape: Vec<usize>,
    size: usize,
    /// The formula's value.
    density: f64,
    /// nnz / size.
    realised: f64,
    nnz: usize,
    macs: u64,
    macs_sparse: u64,
    /// macs x density.
    macs_formula: f64,
    /// "dense", "unstructured" or the blocks it keeps, such as "block:16x16".
    pattern: String,
    /// How many blocks it keeps, of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<[usize; 2]>,
    /// Why it is unstructured although blocks were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<Fallback>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Planned>,
}

/// A layer's plan with what follows from it.
#[derive(Serialize)]
struct Planned {
    #[serde(flatten)]
    plan: LayerPlan,
    /// Rows and columns of output pixels of the largest patch.
    patch: [usize; 2],
    /// Patches of a plane.
    patches: usize,
}

impl Report {
    fn new(args: &InspectArgs) -> Result<Self> {
        let network = args.network.resolve()?;
        let Network { method, ref ratio, density, draw, pattern, ref graph, .. } = network;
        let maskable = graph.maskable();
        let shares = match draw {
            Draw::Exact => layer_shares(&maskable, ratio, density, pattern)?, // without the cost of drawing
            Draw::Bernoulli => drawn(&network)?,
        };
        let convs = || graph.convs().iter().zip(shares.iter().map(|share| share.nnz));
        let plan = match &args.plan {
            None => None,
            Some(None) => Some(Plan::of(convs().map(|(c, weights)| (c.name.as_str(), c.geom, weights)))),
            Some(Some(path)) => {
                let mut plan = read_plan(path)?;
                plan.check(convs().map(|(c, weights)| (c.geom, weights))).map_err(|what| Error::data(path, what))?;
                plan.layers.iter_mut().zip(graph.convs()).for_each(|(l, c)| l.layer.clone_from(&c.name));
                Some(plan)
            }
        };
        let mut layers = Vec::with_capacity(maskable.len());
        let planned = |l: usize| {
            let plan = plan.as_ref()?.layers[l].plan;
            Some(Planned { plan, patch: plan.patch(&graph.convs()[l].geom), patches: plan.cut[0] * plan.cut[1] })
        };
        let work = |((tensor, macs), share): ((&Maskable, u64), &LayerShare)| {
            let (size, kept) = (tensor.size() as u64, share.nnz as u64);
            LayerWork { macs, size, density: share.density, kept }
        };
        let flops = Flops::of(maskable.iter().zip(graph.macs()).zip(&shares).map(work));
        for (l, ((tensor, cost), share)) in maskable.into_iter().zip(&flops.layers).zip(&shares).enumerate() {
            let (size, LayerShare { density, nnz, form }) = (tensor.size(), *share);
            layers.push(Layer {
                name: tensor.name,
                shape: tensor.shape,
                size,
                density,
                realised: nnz as f64 / size as f64,
                nnz,
                macs: cost.dense / 2,
                macs_sparse: cost.realised / 2,
                macs_formula: cost.formula / 2.0,
                pattern: form.to_string(),
                blocks: if let Form::Blocks { kept, of, .. } = form { Some([kept, of]) } else { None },
                fallback: if let Form::Unstructured(why) = form { why } else { None },
                plan: planned(l),
            });
        }
        let flops = FlopsKeys::from(&flops);
        Ok(Report {
            model: network.model.clone(),
            width: network.width,
            classes: network.classes,
            channels: network.channels,
            image_size: network.image_size,
            method,
            density: density.value(),
            mask_draw: draw,
            pattern,
            seed: network.seed,
            params: graph.param_count(),
            maskable: layers.iter().map(|l| l.size).sum(),
            nnz: layers.iter().map(|l| l.nnz).sum(),
            macs_dense: flops.flops_dense / 2,
            macs_sparse: flops.flops_sparse / 2,
            flops,
            layers,
            head: network.describe(),
            plan,
        })
    }

    fn table(&self) -> String {
        let stored = self.params - self.maskable + self.nnz;
        let mut text = format!("{}\n", self.head);
        if let Some(plan) = &self.plan {
            let head = [plan_text::HEAD.map(String::from)].into_iter();
            let rows: Vec<_> = head.chain(plan.layers.iter().map(plan_text::row)).collect();
            return text + plan_text::LEGEND + &aligned(&rows, |c| matches!(c, 0 | 1 | 4));
        }
        let head = ["layer", "shape", "size", "density", "realised", "kept", "dense MACs", "sparse MACs"];
        let mut rows = vec![head.map(String::from).to_vec()];
        for l in &self.layers {
            let shape: Vec<_> = l.shape.iter().map(usize::to_string).collect();
            let numbers = (l.size, l.density, l.realised, l.nnz, l.macs, l.macs_sparse);
            rows.push(row(&l.name, shape.join("x"), numbers));
        }
        if self.pattern.block().is_some() {
            rows[0].push("pattern".into());
            rows.iter_mut().skip(1).zip(&self.layers).for_each(|(row, l)| row.push(l.form()));
        }
        let realised = self.nnz as f64 / self.maskable as f64;
        let totals = (self.maskable, self.density, realised, self.nnz, self.macs_dense, self.macs_sparse);
        rows.push(row("total", format!("{} tensors", self.layers.len()), totals));
        text += &aligned(&rows, |c| c < 2 || c == head.len());
        text += &self.fallbacks();

        let ratio = |sparse: u64, dense: u64| format!("{:.4}", sparse as f64 / dense as f64);
        let line =
            |name: &str, dense: u64, sparse: u64| [name.to_string(), count(dense), count(sparse), ratio(sparse, dense)];
        let formula = |dense: u64, sparse: f64| line("  by the densities, not rounded", dense, sparse.round() as u64);
        let f = &self.flops;
        text += "\n";
        text += &aligned(
            &[
                ["", "dense", "sparse", "ratio"].map(String::from),
                line("parameters, batch norm and biases too", self.params as u64, stored as u64),
                line("FLOPs of one image, 2 x MAC", f.flops_dense, f.flops_sparse),
                formula(f.flops_dense, f.flops_formula),
                line("FLOPs to train on one image, 3 x forward", f.train_flops_dense, f.train_flops_sparse),
                formula(f.train_flops_dense, f.train_flops_formula),
            ],
            |c| c == 0,
        );
        text
    }
}

impl Report {
    /// What became of the blocks that were asked for.
    fn fallbacks(&self) -> String {
        if self.pattern.block().is_none() {
            return String::new();
        }
        let of = |why| self.layers.iter().filter(move |l| l.fallback == Some(why)).count();
        let in_blocks = || self.layers.iter().filter(|l| l.blocks.is_some());
        let masked = self.layers.iter().filter(|l| l.nnz < l.size).count();
        let kept: usize = in_blocks().map(|l| l.nnz).sum();
        let (layers, percent) = (in_blocks().count(), share(kept as u64, self.nnz as u64));
        let mut text = match layers {
            0 if masked == 0 => format!("\n{}, nothing to keep in blocks\n", self.pattern),
            0 => format!("\n{} fits none of {masked} masked layers: all are unstructured\n", self.pattern),
            _ => format!("\n{} in {layers} of {masked} masked layers, {percent} of the kept weights\n", self.pattern),
        };
        for (why, meaning) in [
            (Fallback::Channels, "channels: they do not divide by the block"),
            (Fallback::Density, "density: whole blocks would move it by more than a tenth"),
            (Fallback::Budget, "budget: takes up what whole blocks elsewhere leave of it"),
        ] {
            if of(why) > 0 {
                text += &format!("  {} unstructured, {meaning}\n", of(why));
            }
        }
        text
    }
}

impl Layer {
    fn form(&self) -> String {
        match (self.blocks, self.fallback) {
            (Some([kept, of]), _) => format!("{}, {} of {}", self.pattern, count(kept as u64), count(of as u64)),
            (None, Some(why)) => format!("{}: {}", self.pattern, why.name()),
            (None, None) => self.pattern.clone(),
        }
    }
}

/// What a Bernoulli draw keeps: known once it is drawn.
fn drawn(network: &Network) -> Result<Vec<LayerShare>> {
    let share = |mask: Mask| {
        let form = if mask.kept.is_none() { Form::Dense } else { Form::Unstructured(None) };
        LayerShare { density: mask.density, nnz: mask.nnz(), form }
    };
    Ok(network.masks()?.into_iter().map(share).collect())
}

fn row(name: &str, shape: String, numbers: (usize, f64, f64, usize, u64, u64)) -> Vec<String> {
    let (size, density, realised, nnz, macs, macs_sparse) = numbers;
    vec![
        name.to_string(),
        shape,
        count(size as u64),
        format!("{density:.6}"),
        format!("{realised:.6}"),
        count(nnz as u64),
        count(macs),
        count(macs_sparse),
    ]
}
