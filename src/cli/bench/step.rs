//! `bench step`: training steps of a network, sparse and dense in turn.

use super::step_text::text;
use crate::backend::cpu::{CpuBackend, Isa};
use crate::backend::gpu::cuda::Cuda;
use crate::backend::gpu::{self, Driver, GpuBackend, GpuPlan, LossScale, Precision};
use crate::backend::{Bytes, Spec};
use crate::bench::gpu::step::{self as gpu_step, GpuConfig, Twins};
use crate::bench::memory::Memory;
use crate::bench::step::{self, Config, Dense, Figures, Report};
use crate::cli::device::DeviceArgs;
use crate::error::{Error, Result};
use crate::models;
use crate::report::{Engine, Machine, read_gpu_plan, read_plan};
use crate::sparsity::{Density, Method};
use crate::train::{Device, OnDevice};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

/// Version of the JSON object; it changes when a key changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Times training steps of a sparse network beside the same network dense.
///
/// A step is the batch into the backend, forward, loss, backward and SGD on random images in memory. The two networks take
/// turns, five steps each. Before anything is timed each operation of a step of each is checked in f64: exit code 1 and no
/// time if one is wrong. --no-check leaves that out.
///
/// On a GPU the images lie on the device, and several steps are captured in a graph and replayed, as train does.
#[derive(clap::Args)]
#[command(mut_arg("device", |device| device.default_value("cpu")))]
#[command(mut_arg("precision", |kind| kind.help("Numbers on the GPU: fp16, bf16, tf32 or f32 [default: fp16, or those of --plan]")))]
#[command(after_help = "Examples:\n  sparse-engine bench step --sparsity 0.95 --threads 1\n  \
                        sparse-engine bench step --model resnet56 --method uniform --json\n  \
                        sparse-engine bench step --device cuda --pattern block:16x16\n\n\
                        Keys of the JSON object: docs/bench.md.")]
pub(super) struct StepArgs {
    /// Network: resnetN (N = 6D+2) or vgg11 to vgg19 for small images; resnet18, 34, 50, 101, 152, wrn50-2 or wrn101-2; or a
    /// file that ends in .toml: one of your own
    #[arg(long, default_value = "resnet20")]
    model: String,
    /// Channels of the first segment, for networks that have a choice [default: 16]
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// Channels of an image [default: 3]
    #[arg(long, value_name = "N")]
    channels: Option<usize>,
    /// Rows and columns of an image [default: 32; 224 for ImageNet networks]
    #[arg(long, value_name = "N")]
    image_size: Option<usize>,
    /// Classes [default: 10; 1000 for ImageNet networks]
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
    /// How layers share the density: dense, uniform, uniform-plus, er, erk or erk-plus
    #[arg(long, default_value = "erk")]
    method: String,
    /// Share of the maskable weights that is pruned, in [0, 1) [default: 0.9]
    #[arg(long, allow_hyphen_values = true)]
    sparsity: Option<f64>,
    /// What masks are made of: unstructured, or block:RxC, blocks of R output x C input channels; on a GPU
    /// pruned blocks are skipped if R and C are multiples of 16
    #[arg(long, default_value = "unstructured")]
    pattern: String,
    /// Images a step [default: 128; 16 for ImageNet networks]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: Option<u32>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Worker threads, on the CPU [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Timed steps of each network [default: 30; 10 for ImageNet networks; on a GPU 200 and 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: Option<u32>,
    /// Steps before them
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    warmup: u32,
    /// Seed of images, labels, masks and initial values
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How each layer of the sparse network runs: a file that tune wrote, or a run's plan-cuda.json [default: by rule]
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Leave the dense network out, also the one through the vendor's libraries that a GPU has beside it
    #[arg(long)]
    no_dense: bool,
    /// Leave the check out, which takes minutes for large networks: for more timings of what this program has checked before
    #[arg(long)]
    no_check: bool,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Print what memory this network takes, in a process that does nothing else
    #[arg(long, hide = true)]
    memory_only: bool,
}

/// Where and how a report came about.
struct On {
    /// "cuda" or "emulated"; `None`: the CPU.
    device: Option<&'static str>,
    /// Worker threads, on the CPU.
    threads: Option<usize>,
    /// Numbers, on a GPU.
    numbers: Option<(Precision, LossScale)>,
}

pub(super) fn run(args: StepArgs) -> Result<()> {
    let on = args.device.resolve()?;
    let found = on.found()?;
    let config = args.config(found != Device::Cpu)?;
    let (report, on) = match found {
        Device::Auto | Device::Cpu => {
            let threads = crate::cli::threads(args.threads);
            let Some(report) = on_cpu(&args, &config, threads)? else { return Ok(()) };
            (report, On { device: None, threads: Some(threads), numbers: None })
        }
        Device::Cuda => {
            gpu::probe()?;
            on_gpu(&args, &config, on, "cuda", &Cuda::open)?
        }
        #[cfg(feature = "emu")]
        Device::Emulated => {
            use crate::backend::gpu::emu::{Emulated, Order};
            on_gpu(&args, &config, on, "emulated", &|| Ok(Emulated::new(Order::Ascending)?.with_vendor()))?
        }
    };
    crate::cli::print(&if args.json {
        format!("{:#}\n", object(&args, &config, &on, &report))
    } else {
        text(&config, args.plan.as_deref(), &report)
    })
}

/// Nothing to report where only memory was asked for.
fn on_cpu(args: &StepArgs, config: &Config, threads: usize) -> Result<Option<Report>> {
    let dense = |spec: Spec| CpuBackend::new(spec, threads);
    if args.memory_only {
        let memory = step::memory_alone(config, &dense)?;
        crate::cli::print(&format!("{}\n", json!(memory)))?;
        return Ok(None);
    }
    let plan = args.plan.as_deref().map(|path| Ok::<_, Error>((path, read_plan(path)?))).transpose()?;
    let sparse = |spec: Spec| {
        if let Some((path, plan)) = &plan {
            plan.check_spec(&spec).map_err(|what| Error::data(path, what))?;
        }
        CpuBackend::with_plan(spec, threads, Isa::detect(), plan.as_ref().map(|(_, plan)| plan))
    };
    let memory = || dense_memory(config, threads);
    let beside = if args.no_dense { Dense::Skip } else { Dense::Beside { make: &dense, memory: &memory } };
    step::run(config, &sparse, beside).map(Some)
}

/// On the device that `open` opens.
fn on_gpu<D: Driver>(
    args: &StepArgs,
    config: &Config,
    on: OnDevice,
    device: &'static str,
    open: &dyn Fn() -> Result<D>,
) -> Result<(Report, On)> {
    if args.memory_only {
        return Err(Error::Usage("--memory-only is for the CPU: leave it out".into()));
    }
    let plan = args.plan.as_deref().map(|path| Ok::<_, Error>((path, read_gpu_plan(path)?))).transpose()?;
    let (precision, scale) = on.numbers(plan.as_ref().map(|(path, plan)| (*path, plan)))?;
    let dense = |spec: Spec| GpuBackend::new(open()?, spec, precision, None);
    let sparse = |spec: Spec| {
        if let Some((path, plan)) = &plan {
            plan.check_spec(&spec).map_err(|what| Error::data(path, what))?;
        }
        GpuBackend::new(open()?, spec, precision, plan.as_ref().map(|(_, plan)| plan))
    };
    let vendor = |spec: Spec| {
        let driver = open()?;
        let plan = GpuPlan::through_vendor(&driver, &spec, precision)?;
        GpuBackend::new(driver, spec, precision, Some(&plan))
    };
    let beside = !args.no_dense;
    let twins = Twins { dense: beside.then_some(&dense as _), vendor: beside.then_some(&vendor as _) };
    let report = gpu_step::run(config, GpuConfig::new(scale), &sparse, &twins)?;
    Ok((report, On { device: Some(device), threads: None, numbers: Some((precision, scale)) }))
}

impl StepArgs {
    fn config(&self, gpu: bool) -> Result<Config> {
        let method: Method = self.method.parse()?;
        let density = match (method, self.sparsity) {
            (Method::Dense, None | Some(0.0)) => Density::ONE,
            (Method::Dense, Some(sparsity)) => {
                return Err(Error::Usage(format!(
                    "method dense keeps every weight, got sparsity {sparsity}: leave --sparsity out, or choose --method \
                     uniform or erk"
                )));
            }
            (_, sparsity) => Density::from_sparsity(sparsity.unwrap_or(0.9))?,
        };
        let (channels, image_size, classes) = models::default_image(&self.model)?;
        let (batch, steps) = match (image_size < 100, gpu) {
            (true, false) => (128, 30),
            (true, true) => (128, 200),
            (false, false) => (16, 10),
            (false, true) => (16, 20),
        };
        Ok(Config {
            model: self.model.clone(),
            width: self.width,
            channels: self.channels.unwrap_or(channels),
            image_size: self.image_size.unwrap_or(image_size),
            classes: self.classes.unwrap_or(classes),
            method,
            density,
            pattern: self.pattern.parse()?,
            batch: self.batch.map_or(batch, |b| b as usize),
            steps: self.steps.map_or(steps, |s| s as usize),
            warmup: self.warmup as usize,
            seed: self.seed,
            check: !self.no_check,
        })
    }
}

/// Memory of the dense network in a process of its own; `None` if that fails.
fn dense_memory(config: &Config, threads: usize) -> Option<Memory> {
    let numbers = [
        ("--channels", config.channels as u64),
        ("--image-size", config.image_size as u64),
        ("--classes", config.classes as u64),
        ("--batch", config.batch as u64),
        ("--threads", threads as u64),
        ("--warmup", config.warmup as u64),
        ("--seed", config.seed),
    ];
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["bench", "step", "--memory-only", "--method", "dense", "--model", &config.model]);
    command.args(numbers.iter().flat_map(|(name, value)| [name.to_string(), value.to_string()]));
    command.args(config.width.iter().flat_map(|w| ["--width".to_string(), w.to_string()]));
    let out = command.output().ok().filter(|out| out.status.success())?;
    serde_json::from_slice(&out.stdout).ok()?
}

/// The JSON object.
fn object(args: &StepArgs, config: &Config, on: &On, report: &Report) -> Value {
    let Report { sparse, dense, .. } = report;
    let engine = Engine::this();
    let mut all = json!({
        "schema": SCHEMA,
        "bench": "step",
        "version": engine.version,
        "commit": engine.commit,
        "dirty": engine.dirty,
        "machine": Machine::this(),
        "backend": report.backend,
        "model": config.model,
        "width": width(config),
        "channels": config.channels,
        "image_size": config.image_size,
        "classes": config.classes,
        "batch": config.batch,
        "threads": on.threads,
        "method": config.method,
        "sparsity": sparsity(config),
        "pattern": config.pattern,
        "maskable": report.maskable,
        "nnz": report.nnz,
        "density": report.nnz as f64 / report.maskable as f64,
        "density_flops": sparse.macs as f64 / report.macs_dense as f64,
        "macs": sparse.macs,
        "dense_macs": report.macs_dense,
        "warmup": config.warmup,
        "steps": config.steps,
        "seed": config.seed,
        "plan": args.plan,
        "checked": config.check,
    });
    let networks = [("", Some(sparse)), ("dense_", dense.as_ref())];
    networks.iter().for_each(|(prefix, figures)| network(&mut all, prefix, config, *figures, report.macs_dense));
    all["sparse_over_dense"] = json!(report.ratio);
    if let Some(gpu) = &report.gpu {
        all["device"] = json!(on.device);
        all["precision"] = json!(on.numbers.map(|(precision, _)| precision));
        all["loss_scale"] = json!(on.numbers.map(|(_, scale)| scale.to_string()));
        all["steps_a_graph"] = json!(gpu.steps_a_graph);
        all["samples"] = json!(gpu.samples);
        all["checked_batch"] = json!(gpu.checked_batch);
        networks.iter().for_each(|(prefix, figures)| launches(&mut all, prefix, *figures));
        let vendor = gpu.vendor.as_ref().and_then(|vendor| vendor.as_ref().ok());
        let figures = vendor.map(|vendor| &vendor.figures);
        network(&mut all, "vendor_", config, figures, report.macs_dense);
        launches(&mut all, "vendor_", figures);
        all["vendor_backend"] = json!(vendor.map(|vendor| &vendor.backend));
        all["vendor_products"] = json!(vendor.map(|vendor| vendor.products));
        all["sparse_over_vendor"] = json!(vendor.map(|vendor| vendor.ratio));
        all["vendor_missing"] = json!(gpu.vendor.as_ref().and_then(|vendor| vendor.as_ref().err()));
    }
    all
}

/// The keys of one network that GPUs have; null without it.
fn launches(all: &mut Value, prefix: &str, figures: Option<&Figures>) {
    let gpu = figures.and_then(|f| f.gpu.as_ref());
    let mut put = |key: &str, value: Value| all[format!("{prefix}{key}")] = value;
    put("launches", json!(gpu.map(|g| g.launches)));
    put("launched_ms_median", json!(gpu.map(|g| g.launched_ms.median)));
    put("launched_ms_q1", json!(gpu.map(|g| g.launched_ms.q1)));
    put("launched_ms_q3", json!(gpu.map(|g| g.launched_ms.q3)));
    put("launched_ms_min", json!(gpu.map(|g| g.launched_ms.min)));
    put("graph_steps_verified", json!(gpu.and_then(|g| g.graph_steps_verified)));
    put("last_loss_scale", json!(gpu.map(|g| g.loss_scale)));
    put("held_steps", json!(gpu.map(|g| g.held_steps)));
    put("data_bytes", json!(gpu.map(|g| g.data_bytes)));
}

/// The share that is pruned, without what the subtraction loses in binary.
pub(super) fn sparsity(config: &Config) -> f64 {
    ((1.0 - config.density.value()) * 1e12).round() / 1e12
}

/// The width in use; `None` for networks that have one only.
pub(super) fn width(config: &Config) -> Option<usize> {
    config.width.or(models::parse(&config.model).ok()?.standard_width())
}

/// The keys of one network; null without it.
fn network(all: &mut Value, prefix: &str, config: &Config, figures: Option<&Figures>, macs_dense: u64) {
    let mut put = |key: &str, value: Option<Value>| all[format!("{prefix}{key}")] = json!(value);
    let of = |f: &dyn Fn(&Figures) -> Value| figures.map(f);
    put("step_ms_median", of(&|f| json!(f.step_ms.median)));
    put("step_ms_q1", of(&|f| json!(f.step_ms.q1)));
    put("step_ms_q3", of(&|f| json!(f.step_ms.q3)));
    put("step_ms_min", of(&|f| json!(f.step_ms.min)));
    let phases = |f: &Figures| f.phases_ms.iter().map(|(p, ms)| (p.name().to_string(), json!(ms))).collect();
    put("phases_ms", of(&|f| Value::Object(phases(f))));
    put("images_per_s", of(&|f| json!(f.images_per_s(config.batch))));
    put("gflops_effective", of(&|f| json!(f.gflops(f.macs, config.batch))));
    put("gflops_nominal", of(&|f| json!(f.gflops(macs_dense, config.batch))));
    let memory = figures.and_then(|f| f.memory);
    put("start_rss_bytes", memory.map(|m| json!(m.start_rss_bytes)));
    put("peak_rss_bytes", memory.map(|m| json!(m.peak_rss_bytes)));
    put("bytes", of(&|f| bytes_object(&f.bytes)));
    put("verified", figures.and_then(|f| f.verified).map(|v| json!(v)));
}

fn bytes_object(b: &Bytes) -> Value {
    let Bytes { values, indices, gradients, momentum, operand_copies, activations } = *b;
    json!({
        "values": values, "indices": indices, "gradients": gradients, "momentum": momentum,
        "operand_copies": operand_copies, "activations": activations, "total": b.total(),
    })
}
