//! `bench kernels`: one operation at a time, beside the machine's limits.

use super::cases::{Entry, entries};
use crate::backend::Spec;
use crate::backend::cpu::plan::{Kernel, LayerPlan, Plan, PlannedLayer};
use crate::backend::cpu::{CpuBackend, Isa};
use crate::backend::gpu::cuda::Cuda;
use crate::backend::gpu::{self, Driver, GpuBackend, GpuPlan, Precision};
use crate::bench::gpu::peaks::{self as gpu_peaks, GpuPeaks};
use crate::bench::kernels::{self, Case, GpuCase, Op, Report};
use crate::bench::peaks::{self, Peaks};
use crate::cli::device::DeviceArgs;
use crate::cli::format::percent;
use crate::cli::table::{aligned, digits};
use crate::error::{Error, Result};
use crate::report::{Engine, Machine};
use crate::shape::ConvGeom;
use crate::sparsity::{Density, Pattern};
use crate::train::Device;
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
#[command(mut_arg("device", |device| device.default_value("cpu")))]
#[command(mut_arg("precision", |kind| kind.help("Numbers on the GPU: fp16, bf16, tf32 or f32 [default: fp16]")))]
#[command(mut_arg("loss_scale", |scale| scale.hide(true)))]
#[command(after_help = "Examples:\n  sparse-engine bench kernels --set resnet20 --op conv_fwd --crossover\n  \
                        sparse-engine bench kernels --shape 64,56,56,64,3,1 --density 0.2 --batch 16 --json\n  \
                        sparse-engine bench kernels --device cuda --set vgg19 --pattern block:16x16\n\n\
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
    /// What masks are made of: unstructured, or block:RxC, blocks of R output x C input channels; on a GPU
    /// pruned blocks are skipped if R and C are multiples of 16
    #[arg(long, default_value = "unstructured")]
    pattern: String,
    #[command(flatten)]
    device: DeviceArgs,
    /// Look for the density from which the dense layer is not slower
    #[arg(long)]
    crossover: bool,
    /// Leave out the batch norms and ReLUs around the layer
    #[arg(long)]
    plain: bool,
    /// Worker threads, on the CPU [default: one a core]
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

/// Where operations ran, and what it can do at most.
enum On {
    Cpu { threads: usize, peaks: Peaks },
    Gpu { device: &'static str, precision: Precision, peaks: GpuPeaks },
}

/// Bytes that the copies of an operation's tensors hold together, and what the peaks are measured with.
struct Sizes {
    rotated: usize,
    peaks: gpu_peaks::Sizes,
}

impl Sizes {
    /// Twice the 50 MB of the largest cache, an H100's.
    const CUDA: Sizes = Sizes {
        rotated: 2 * 50_000_000,
        peaks: gpu_peaks::Sizes { bytes: 512 << 20, blocks_an_sm: 4, rounds: 1 << 14 },
    };
    /// There is no cache whose size would matter.
    #[cfg(feature = "emu")]
    const EMULATED: Sizes =
        Sizes { rotated: 1 << 16, peaks: gpu_peaks::Sizes { bytes: 1 << 16, blocks_an_sm: 1, rounds: 1 } };
}

pub(super) fn run(args: KernelsArgs) -> Result<()> {
    let on = args.device.resolve()?;
    if on.loss_scale.is_some() {
        return Err(Error::Usage("bench kernels has no loss to scale: leave --loss-scale out".into()));
    }
    let pattern: Pattern = args.pattern.parse()?;
    let density = Density::from_density(args.density)?;
    let entries = entries(&args)?;
    let case = |entry: &Entry| Case {
        op: entry.op,
        geom: entry.geom,
        batch: entry.batch,
        density,
        pattern,
        plain: args.plain,
        time: Duration::from_millis(args.time.into()),
        crossover: args.crossover,
        seed: args.seed,
    };
    entries.iter().try_for_each(|entry| case(entry).check())?;
    let precision = on.precision.unwrap_or(Precision::F16);
    let (on, rows) = match on.found()? {
        Device::Auto | Device::Cpu => on_cpu(entries, &case, crate::cli::threads(args.threads))?,
        Device::Cuda => {
            gpu::probe()?;
            on_gpu(entries, &case, precision, Sizes::CUDA, "cuda", &Cuda::open)?
        }
        #[cfg(feature = "emu")]
        Device::Emulated => {
            use crate::backend::gpu::emu::{Emulated, Order};
            let open = || Ok(Emulated::new(Order::Ascending)?.with_vendor());
            on_gpu(entries, &case, precision, Sizes::EMULATED, "emulated", &open)?
        }
    };
    crate::cli::print(&if args.json {
        format!("{:#}\n", object(&args, pattern, &on, &rows))
    } else {
        table(&args, pattern, &on, &rows)
    })
}

fn on_cpu(entries: Vec<Entry>, case: &dyn Fn(&Entry) -> Case, threads: usize) -> Result<(On, Vec<Row>)> {
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
    Ok((On::Cpu { threads, peaks }, entries.into_iter().map(measure).collect::<Result<_>>()?))
}

/// On the device that `open` opens.
fn on_gpu<D: Driver>(
    entries: Vec<Entry>,
    case: &dyn Fn(&Entry) -> Case,
    precision: Precision,
    sizes: Sizes,
    device: &'static str,
    open: &dyn Fn() -> Result<D>,
) -> Result<(On, Vec<Row>)> {
    let peaks = gpu_peaks::measure(&open()?, precision, sizes.peaks)?;
    let make = |spec: Spec| GpuBackend::new(open()?, spec, precision, None);
    let vendor = |spec: Spec| {
        let driver = open()?;
        let plan = GpuPlan::through_vendor(&driver, &spec, precision)?;
        GpuBackend::new(driver, spec, precision, Some(&plan))
    };
    let measure = |entry| {
        let gpu = GpuCase::new(precision, sizes.rotated);
        let report = kernels::run_on_gpu(&case(&entry), gpu, &make, Some(&vendor))?;
        Ok(Row { report, entry })
    };
    Ok((On::Gpu { device, precision, peaks }, entries.into_iter().map(measure).collect::<Result<_>>()?))
}

/// 10^9 FLOP a second, and 10^9 bytes a second, in the median call.
fn rates(r: &Report) -> [f64; 2] {
    [r.flops, r.bytes].map(|n| n as f64 / (1e6 * r.ms.median))
}

fn object(args: &KernelsArgs, pattern: Pattern, on: &On, rows: &[Row]) -> Value {
    let engine = Engine::this();
    let results: Vec<Value> = rows.iter().map(|row| result(on, row)).collect();
    let (threads, peaks) = match on {
        On::Cpu { threads, peaks } => (Some(threads), json!(peaks)),
        On::Gpu { peaks, .. } => (None, json!(peaks)),
    };
    let mut all = json!({
        "schema": SCHEMA,
        "bench": "kernels",
        "version": engine.version,
        "commit": engine.commit,
        "dirty": engine.dirty,
        "machine": Machine::this(),
        "threads": threads,
        "density": args.density,
        "pattern": pattern,
        "plain": args.plain,
        "seed": args.seed,
        "peaks": peaks,
        "results": results,
    });
    if let On::Gpu { device, precision, .. } = on {
        all["device"] = json!(device);
        all["precision"] = json!(precision);
    }
    all
}

fn result(on: &On, Row { entry, report }: &Row) -> Value {
    let ConvGeom { c, h, w, k, r, s, stride, pad } = entry.geom;
    let ([gflops, gb_s], conv) = (rates(report), !matches!(entry.op, Op::Bn | Op::Sgd));
    let cpu = match on {
        On::Cpu { peaks, .. } => Some(peaks),
        On::Gpu { .. } => None,
    };
    let plan = match &report.gpu {
        Some(gpu) => json!(gpu.plan),
        None => json!(conv.then(|| LayerPlan::default_for(&entry.geom, report.nnz as usize))),
    };
    let mut all = json!({
        "op": entry.op.name(),
        "model": entry.model,
        "layers": entry.layers,
        "shape": {"c": c, "h": h, "w": w, "k": k, "r": r, "s": s, "stride": stride, "pad": pad},
        "batch": entry.batch,
        "nnz": report.nnz,
        "block": report.block.map(|block| block.to_string()),
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
        "percent_of_fma_peak": cpu.map(|peaks| 100.0 * gflops / peaks.fma_gflops),
        "percent_of_read_peak": cpu.map(|peaks| 100.0 * gb_s / peaks.read_gb_s),
        "crossover_density": report.crossover,
        "plan": plan,
        "verified": report.verified,
    });
    if let (On::Gpu { peaks, .. }, Some(gpu)) = (on, &report.gpu) {
        all["percent_of_mma_peak"] = json!(100.0 * gflops / peaks.mma_gflops);
        all["percent_of_copy_peak"] = json!(100.0 * gb_s / peaks.copy_gb_s);
        all["launches"] = json!(gpu.launches);
        all["copies"] = json!(gpu.copies);
        all["checked_batch"] = json!(gpu.checked_batch);
        all["vendor_ms_median"] = json!(gpu.vendor_ms.map(|ms| ms.median));
        all["vendor_ms_min"] = json!(gpu.vendor_ms.map(|ms| ms.min));
        all["sparse_over_vendor"] = json!(gpu.vendor_ms.map(|ms| report.ms.median / ms.median));
        all["vendor_missing"] = json!(gpu.vendor_missing);
    }
    all
}

/// The machine and its limits.
fn head(on: &On) -> String {
    match on {
        On::Cpu { threads, peaks } => {
            let fed: Vec<_> = peaks.load_fma.iter().map(|f| format!("{} {}", f.from, digits(f.gflops))).collect();
            format!(
                "{} on {}, {} thread(s); sparse-engine {}\n\
                 peaks: {} GFLOP/s in registers; a load each multiply-add: {}; memory: read {} GB/s, copy {} GB/s\n",
                peaks.isa,
                Machine::this().cpu,
                threads,
                Engine::this(),
                digits(peaks.fma_gflops),
                fed.join(", "),
                digits(peaks.read_gb_s),
                digits(peaks.copy_gb_s),
            )
        }
        On::Gpu { precision, peaks, .. } => format!(
            "{}, {precision}; sparse-engine {}\npeaks: {} GFLOP/s in registers; memory: copy {} GB/s, fill {} GB/s\n",
            peaks.device,
            Engine::this(),
            digits(peaks.mma_gflops),
            digits(peaks.copy_gb_s),
            digits(peaks.fill_gb_s),
        ),
    }
}

fn table(args: &KernelsArgs, pattern: Pattern, on: &On, rows: &[Row]) -> String {
    // Limits of arithmetic and of memory.
    let (flop_peak, byte_peak, of_bytes) = match on {
        On::Cpu { peaks, .. } => (peaks.fma_gflops, peaks.read_gb_s, "of read"),
        On::Gpu { peaks, .. } => (peaks.mma_gflops, peaks.copy_gb_s, "of copy"),
    };
    let mut text = format!(
        "{}density {}{}; {}\n\n",
        head(on),
        args.density,
        pattern.block().map(|_| format!(", {pattern}")).unwrap_or_default(),
        if args.plain { "layers by themselves" } else { "batch norm and ReLU before each layer, batch norm behind it" },
    );
    let mut head =
        vec!["op", "layer", "batch", "ms", "min", "GFLOP/s", "of peak", "GB/s", of_bytes, "dense ms", "ratio"];
    let vendor = matches!(on, On::Gpu { .. });
    if vendor {
        head.extend(["vendor ms", "ratio"]);
    }
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
            percent(gflops / flop_peak, 0),
            digits(gb_s),
            percent(gb_s / byte_peak, 0),
            dense.map_or_else(dash, digits),
            dense.map_or_else(dash, |d| digits(report.ms.median / d)),
        ];
        if vendor {
            let ms = report.gpu.as_ref().and_then(|gpu| gpu.vendor_ms).map(|ms| ms.median);
            line.push(ms.map_or_else(dash, digits));
            line.push(ms.map_or_else(dash, |ms| digits(report.ms.median / ms)));
        }
        if args.crossover {
            line.push(report.crossover.map_or_else(dash, digits));
        }
        lines.push(line);
    }
    text += &aligned(&lines, |c| c == 0);
    text += "\nchecked in f64 before they were timed; ratio: sparse / dense\n";
    if vendor {
        text +=
            "vendor: dense, by the vendor's libraries and what our kernels do around them; ratio: sparse / vendor\n";
    }
    if let Some(why) = rows.iter().find_map(|row| row.report.gpu.as_ref()?.vendor_missing.as_ref()) {
        text += &format!("vendor's libraries, where there is no time: {why}\n");
    }
    if matches!(on, On::Cpu { .. }) && rows.iter().any(|r| r.entry.op == Op::ConvDgrad) {
        text += "conv_dgrad is both gradients less the weight gradient: the backend computes them in one operation\n";
    }
    text
}
