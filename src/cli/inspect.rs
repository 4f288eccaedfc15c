//! `inspect`: what a network costs dense and sparse, layer by layer, without drawing a batch or training.

use super::format::count;
use crate::error::{Error, Result};
use crate::models;
use crate::sparsity::{Density, Draw, Method, draw_masks, layer_counts, layer_densities};
use serde::Serialize;
use std::io::Write;

/// Shows layer densities, counts and costs of a network.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// Network: resnetN (N = 6D+2) or vgg11 to vgg19 for small images; resnet18, 34, 50, 101, 152, wrn50-2 or wrn101-2
    #[arg(long, default_value = "resnet20")]
    pub model: String,
    /// Channels of the first segment of a resnetN for small images (the paper's ResNet-A-B: B) [default: 16]
    #[arg(long)]
    pub width: Option<usize>,
    /// Number of classes [default: 10 for small images, else 1000]
    #[arg(long)]
    pub classes: Option<usize>,
    /// Channels of an input image [default: 3]
    #[arg(long)]
    pub channels: Option<usize>,
    /// Rows and columns of an input image [default: 32 for small images, else 224]
    #[arg(long)]
    pub image_size: Option<usize>,
    /// How layers share the density: dense, uniform or erk
    #[arg(long, default_value = "erk")]
    pub method: String,
    /// Share of the maskable weights that is pruned, in [0, 1); this or --density
    #[arg(long, allow_hyphen_values = true)]
    pub sparsity: Option<f64>,
    /// Share of the maskable weights that is kept, in (0, 1]; this or --sparsity
    #[arg(long, allow_hyphen_values = true)]
    pub density: Option<f64>,
    /// Mask seed; only the counts of a Bernoulli draw depend on it
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How positions are drawn: exact or bernoulli
    #[arg(long, default_value = "exact")]
    pub mask_draw: String,
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

/// The JSON object. Multiply-accumulates and FLOPs are those of one image; FLOPs = 2 x MAC, and a training step costs
/// three forward passes (paper section 6).
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
    seed: u64,
    params: usize,
    maskable: usize,
    nnz: usize,
    macs_dense: u64,
    macs_sparse: u64,
    flops_dense: u64,
    flops_sparse: u64,
    train_flops_dense: u64,
    train_flops_sparse: u64,
    layers: Vec<Layer>,
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
}

impl Report {
    fn new(args: &InspectArgs) -> Result<Self> {
        let (method, draw): (Method, Draw) = (args.method.parse()?, args.mask_draw.parse()?);
        let density = density(method, args.density, args.sparsity)?;
        let network = models::parse(&args.model)?;
        let default = models::default_image(&args.model)?;
        let channels = args.channels.unwrap_or(default.0);
        let image_size = args.image_size.unwrap_or(default.1);
        let classes = args.classes.unwrap_or(default.2);
        let graph = models::by_name(&args.model, args.width, channels, classes, image_size)?;
        let maskable = graph.maskable();
        let densities = layer_densities(&maskable, method, density)?;
        let counts = match draw {
            Draw::Exact => layer_counts(&maskable, method, density)?, // without the cost of drawing
            Draw::Bernoulli => {
                draw_masks(&maskable, method, density, draw, args.seed)?.iter().map(|mask| mask.nnz()).collect()
            }
        };
        let mut layers = Vec::with_capacity(maskable.len());
        for (((tensor, macs), density), nnz) in maskable.into_iter().zip(graph.macs()).zip(densities).zip(counts) {
            let size = tensor.size();
            layers.push(Layer {
                name: tensor.name,
                shape: tensor.shape,
                size,
                density,
                realised: nnz as f64 / size as f64,
                nnz,
                macs,
                macs_sparse: macs / size as u64 * nnz as u64, // exact: macs = size x output pixels
            });
        }
        let macs_dense = layers.iter().map(|l| l.macs).sum();
        let macs_sparse = layers.iter().map(|l| l.macs_sparse).sum();
        Ok(Report {
            model: network.to_string(),
            width: args.width.or(network.standard_width()),
            classes,
            channels,
            image_size,
            method,
            density: density.value(),
            mask_draw: draw,
            seed: args.seed,
            params: graph.param_count(),
            maskable: layers.iter().map(|l| l.size).sum(),
            nnz: layers.iter().map(|l| l.nnz).sum(),
            macs_dense,
            macs_sparse,
            flops_dense: 2 * macs_dense,
            flops_sparse: 2 * macs_sparse,
            train_flops_dense: 6 * macs_dense,
            train_flops_sparse: 6 * macs_sparse,
            layers,
        })
    }

    fn table(&self) -> String {
        let stored = self.params - self.maskable + self.nnz;
        let size = self.image_size;
        let width = self.width.map(|w| format!(", width {w}")).unwrap_or_default();
        let draw = match self.mask_draw {
            Draw::Exact => "exact counts".to_string(),
            Draw::Bernoulli => format!("Bernoulli draw of mask seed {}", self.seed),
        };
        let mut text = format!(
            "{}{width}, on {}x{size}x{size} images of {} classes\n{}, density {}, {draw}\n\n",
            self.model, self.channels, self.classes, self.method, self.density
        );
        let head = ["layer", "shape", "size", "density", "realised", "kept", "dense MACs", "sparse MACs"];
        let mut rows = vec![head.map(String::from)];
        for l in &self.layers {
            let shape: Vec<_> = l.shape.iter().map(usize::to_string).collect();
            let numbers = (l.size, l.density, l.realised, l.nnz, l.macs, l.macs_sparse);
            rows.push(row(&l.name, shape.join("x"), numbers));
        }
        let realised = self.nnz as f64 / self.maskable as f64;
        let totals = (self.maskable, self.density, realised, self.nnz, self.macs_dense, self.macs_sparse);
        rows.push(row("total", format!("{} tensors", self.layers.len()), totals));
        text += &aligned(&rows, 2);

        let ratio = |sparse: u64, dense: u64| format!("{:.4}", sparse as f64 / dense as f64);
        let line =
            |name: &str, dense: u64, sparse: u64| [name.to_string(), count(dense), count(sparse), ratio(sparse, dense)];
        text += "\n";
        text += &aligned(
            &[
                ["", "dense", "sparse", "ratio"].map(String::from),
                line("parameters, batch norm and biases too", self.params as u64, stored as u64),
                line("FLOPs of one image, 2 x MAC", self.flops_dense, self.flops_sparse),
                line("FLOPs to train on one image, 3 x forward", self.train_flops_dense, self.train_flops_sparse),
            ],
            1,
        );
        text
    }
}

fn density(method: Method, density: Option<f64>, sparsity: Option<f64>) -> Result<Density> {
    let given = match (density, sparsity) {
        (Some(_), Some(_)) => {
            return Err(Error::Usage("--density and --sparsity say the same thing twice: give one of them".into()));
        }
        (Some(density), None) => Density::from_density(density)?,
        (None, Some(sparsity)) => Density::from_sparsity(sparsity)?,
        (None, None) if method == Method::Dense => Density::ONE,
        (None, None) => {
            return Err(Error::Usage(format!(
                "method {method} needs --sparsity in [0, 1) or --density in (0, 1], such as --sparsity 0.9"
            )));
        }
    };
    if method == Method::Dense && given != Density::ONE {
        return Err(Error::Usage(format!(
            "method dense keeps every weight, got density {given}: leave --density and --sparsity out, or choose \
             --method uniform or erk"
        )));
    }
    Ok(given)
}

fn row(name: &str, shape: String, numbers: (usize, f64, f64, usize, u64, u64)) -> [String; 8] {
    let (size, density, realised, nnz, macs, macs_sparse) = numbers;
    [
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

/// Rows of equal column widths, two spaces apart; the first `left` columns flush left, numbers flush right.
fn aligned<const N: usize>(rows: &[[String; N]], left: usize) -> String {
    let widths: [usize; N] = std::array::from_fn(|c| rows.iter().map(|row| row[c].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(c, (cell, width))| if c < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}
