//! `bench kernels`: one operation at a time, beside the machine's limits.

use super::cases::{Entry, entries};
use crate::backend::Spec;
use crate::backend::cpu::plan::{Kernel, LayerPlan, Plan, PlannedLayer};
use crate::backend::cpu::{CpuBackend, Isa};
use crate::bench::kernels::{self, Case, Op, Report};
use crate::bench::peaks::{self, Peaks};
use crate::cli::format::percent;
use crate::cli::table::{aligned, digits};
use crate::error::Result;
use crate::report::{Engine, Machine};
use crate::shape::ConvGeom;
use crate::sparsity::Density;
use serde_json::{Value, json};
use std::time::Duration;

/// Version of the JSON object; it changes when a key changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Times single operations beside the same ones dense and the machine's measured peaks.
///
/// Without --shape: every distinct layer of ResNet-20 (batch 128) and ResNet-50 (batch 16). Operations run as a network
/// calls them, with the batch norms and ReLUs around a layer computed where they are read. Before anything is timed each is
/// checked in f64: exit code 1 and no time if it is wrong.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  sparse-engine bench kernels --set resnet20 --op conv_fwd --crossover\n  \
                        sparse-engine bench kernels --shape 64,56,56,64,3,1 --density 0.2 --batch 16 --json\n\n\
                        Keys of the JSON object: docs/bench.md.")]
pub(super) struct KernelsArgs {
    /// Operations, with commas: conv_fwd, conv_dgrad, conv_wgrad, linear, bn, sgd [default: the three of convolutions]
    #[arg(long, value_name = "OP", value_delimiter = ',', value_parser = op)]
    pub(super) op: Vec<Op>,
    /// A layer: C,H,W,K,R,STRIDE[,PAD] (same padding where it is left out); C,K for linear; C,H,W for bn; N for sgd
    #[arg(long, value_name = "SHAPE", conflicts_with = "set")]
    pub(super) shape: Option<String>,
    /// All distinct layers of a network; repeatable [default: resnet20 and resnet50]
    #[arg(long, value_name = "MODEL")]
    pub(super) set: Vec<String>,
    /// Images [default: 128 for networks of small images, else 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) batch: Option<u32>,
    /// Share of the weights that is kept, in (0, 1]
    #[arg(long, default_value_t = 0.1, allow_hyphen_values = true)]
    density: f64,
    /// Look for the density from which the dense layer is not slower
    #[arg(long)]
    crossover: bool,
    /// Leave out the batch norms and ReLUs around the layer
    #[arg(long)]
    plain: bool,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Milliseconds that each operation is timed at least
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=600_000))]
    time: u32,
    /// Seed of masks and numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
}

fn op(text: &str) -> std::result::Result<Op, String> {
    let names: Vec<_> = Op::ALL.iter().map(|(name, _)| *name).collect();
    let known = Op::ALL.iter().find(|(name, _)| *name == text).map(|(_, op)| *op);
    known.ok_or_else(|| format!("choose one of {}", names.join(", ")))
}

/// An operation with what came of it.
struct Row {
    entry: Entry,
    report: Report,
}

pub(super) fn run(args: KernelsArgs) -> Result<()> {
    let threads = crate::cli::threads(args.threads);
    let density = Density::from_density(args.density)?;
    let entries = entries(&args)?;
    let case = |entry: &Entry| Case {
        op: entry.op,
        geom: entry.geom,
        batch: entry.batch,
        density,
        plain: args.plain,
        time: Duration::from_millis(args.time.into()),
        crossover: args.crossover,
        seed: args.seed,
    };
    entries.iter().try_for_each(|entry| case(entry).check())?;
    let peaks = peaks::measure(threads);
    let make = |spec: Spec| CpuBackend::new(spec, threads);
    let sparse = |spec: Spec| {
        let mut plan = Plan::default_for(&spec, spec.convs.iter().map(|_| "layer"));
        for PlannedLayer { plan, .. } in &mut plan.layers {
            (plan.forward, plan.data, plan.weight) = (Kernel::Sparse, Kernel::Sparse, Kernel::Sparse);
        }
        CpuBackend::with_plan(spec, threads, Isa::detect(), Some(&plan))
    };
    let measure = |entry| Ok(Row { report: kernels::run(&case(&entry), &make, &sparse)?, entry });
    let rows: Vec<Row> = entries.into_iter().map(measure).collect::<Result<_>>()?;
    crate::cli::print(&if args.json {
        format!("{:#}\n", object(&args, threads, &peaks, &rows))
    } else {
        table(&args, threads, &peaks, &rows)
    })
}

/// 10^9 FLOP a second, and 10^9 bytes a second, in the median call.
fn rates(r: &Report) -> [f64; 2] {
    [r.flops, r.bytes].map(|n| n as f64 / (1e6 * r.ms.median))
}

fn object(args: &KernelsArgs, threads: usize, peaks: &Peaks, rows: &[Row]) -> Value {
    let engine = Engine::this();
    let results: Vec<Value> = rows.iter().map(|row| result(peaks, row)).collect();
    json!({
        "schema": SCHEMA,
        "bench": "kernels",
        "version": engine.version,
        "commit": engine.commit,
        "dirty": engine.dirty,
        "machine": Machine::this(),
        "threads": threads,
        "density": args.density,
        "plain": args.plain,
        "seed": args.seed,
        "peaks": peaks,
        "results": results,
    })
}

fn result(peaks: &Peaks, Row { entry, report }: &Row) -> Value {
    let ConvGeom { c, h, w, k, r, s, stride, pad } = entry.geom;
    let ([gflops, gb_s], conv) = (rates(report), !matches!(entry.op, Op::Bn | Op::Sgd));
    json!({
        "op": entry.op.name(),
        "model": entry.model,
        "layers": entry.layers,
        "shape": {"c": c, "h": h, "w": w, "k": k, "r": r, "s": s, "stride": stride, "pad": pad},
        "batch": entry.batch,
        "nnz": report.nnz,
        "ms_median": report.ms.median,
        "ms_min": report.ms.min,
        "ms_q1": report.ms.q1,
        "ms_q3": report.ms.q3,
        "dense_ms_median": report.dense_ms.map(|d| d.median),
        "dense_ms_min": report.dense_ms.map(|d| d.min),
        "sparse_over_dense": report.dense_ms.map(|d| report.ms.median / d.median),
        "flops": report.flops,
        "bytes": report.bytes,
        "gflops": gflops,
        "gb_s": gb_s,
        "percent_of_fma_peak": 100.0 * gflops / peaks.fma_gflops,
        "percent_of_read_peak": 100.0 * gb_s / peaks.read_gb_s,
        "crossover_density": report.crossover,
        "plan": conv.then(|| LayerPlan::default_for(&entry.geom, report.nnz as usize)),
        "verified": report.verified,
    })
}

fn table(args: &KernelsArgs, threads: usize, peaks: &Peaks, rows: &[Row]) -> String {
    let fed: Vec<_> = peaks.load_fma.iter().map(|f| format!("{} {}", f.from, digits(f.gflops))).collect();
    let mut text = format!(
        "{} on {}, {} thread(s); sparse-engine {}\n\
         peaks: {} GFLOP/s in registers; a load each multiply-add: {}; memory: read {} GB/s, copy {} GB/s\n\
         density {}; {}\n\n",
        peaks.isa,
        Machine::this().cpu,
        threads,
        Engine::this(),
        digits(peaks.fma_gflops),
        fed.join(", "),
        digits(peaks.read_gb_s),
        digits(peaks.copy_gb_s),
        args.density,
        if args.plain { "layers by themselves" } else { "batch norm and ReLU before each layer, batch norm behind it" },
    );
    let mut head =
        vec!["op", "layer", "batch", "ms", "min", "GFLOP/s", "of peak", "GB/s", "of read", "dense ms", "ratio"];
    if args.crossover {
        head.push("crossover");
    }
    let mut lines: Vec<Vec<String>> = vec![head.into_iter().map(String::from).collect()];
    for Row { entry, report } in rows {
        let ([gflops, gb_s], dash) = (rates(report), || "-".to_string());
        let dense = report.dense_ms.map(|d| d.median);
        let mut line = vec![
            entry.op.name().into(),
            entry.label(),
            entry.batch.to_string(),
            digits(report.ms.median),
            digits(report.ms.min),
            digits(gflops),
            percent(gflops / peaks.fma_gflops, 0),
            digits(gb_s),
            percent(gb_s / peaks.read_gb_s, 0),
            dense.map_or_else(dash, digits),
            dense.map_or_else(dash, |d| digits(report.ms.median / d)),
        ];
        if args.crossover {
            line.push(report.crossover.map_or_else(dash, digits));
        }
        lines.push(line);
    }
    text += &aligned(&lines, |c| c == 0);
    text += "\nchecked in f64 before they were timed; ratio: sparse / dense\n";
    if rows.iter().any(|r| r.entry.op == Op::ConvDgrad) {
        text += "conv_dgrad is both gradients less the weight gradient: the backend computes them in one operation\n";
    }
    text
}
