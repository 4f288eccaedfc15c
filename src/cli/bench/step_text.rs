//! What `bench step` says to people.

use super::step::{sparsity, width};
use crate::backend::Bytes;
use crate::bench::gpu::step::{GpuReport, VendorReport};
use crate::bench::step::{Config, Figures, Report};
use crate::bench::{Phase, Spread, Verified};
use crate::cli::format::{bytes, count, percent};
use crate::cli::table::{aligned, digits};
use crate::report::{Engine, Machine};
use std::path::Path;

/// What was measured, the times, and what follows from them.
pub(super) fn text(config: &Config, plan: Option<&Path>, report: &Report) -> String {
    let ratio = report.ratio.map_or(String::new(), |r| {
        let [median, q1, q3, min, max] = [r.median, r.q1, r.q3, r.min, r.max].map(digits);
        format!("\nsparse / dense, blocks in pairs: {median} (quartiles {q1} and {q3}, from {min} to {max})\n")
    });
    format!(
        "{}\n{}\n{}{ratio}{}",
        head(config, plan, report),
        aligned(&times(report), |c| c == 0),
        aligned(&rest(config, report), |c| c == 0),
        report.gpu.as_ref().and_then(|gpu| gpu.vendor.as_ref()).map(vendor).unwrap_or_default()
    )
}

/// The dense network through the vendor's libraries.
fn vendor(vendor: &std::result::Result<VendorReport, String>) -> String {
    let VendorReport { backend, products: [made, all], figures, ratio } = match vendor {
        Ok(report) => report,
        Err(why) => return format!("\ndense through the vendor's libraries: not measured: {why}\n"),
    };
    let Spread { median, q1, q3, min, .. } = figures.step_ms;
    let [median, q1, q3, min] = [median, q1, q3, min].map(digits);
    let ratio = ratio.map_or(String::new(), |r| {
        let [median, q1, q3] = [r.median, r.q1, r.q3].map(digits);
        format!("; sparse / this, blocks in pairs: {median} (quartiles {q1} and {q3})")
    });
    format!(
        "\ndense through {backend}, which makes {made} of {all} products: {median} ms a step (quartiles {q1} and {q3}, min \
         {min}){ratio}\n"
    )
}

fn head(config: &Config, plan: Option<&Path>, report: &Report) -> String {
    let Config { model, batch, channels, image_size, classes, method, .. } = config;
    let machine = Machine::this();
    let width = width(config).map(|w| format!(", width {w}")).unwrap_or_default();
    let pruned = (sparsity(config) * 1e12).round() / 1e10;
    let blocks = config.pattern.block().map(|_| format!(", {}", config.pattern)).unwrap_or_default();
    let kept = percent(report.nnz as f64 / report.maskable as f64, 1);
    let macs = percent(report.sparse.macs as f64 / report.macs_dense as f64, 1);
    format!(
        "{model}{width}, batch {batch} of {channels}x{image_size}x{image_size}, {classes} classes\n\
         {method}, {pruned} % pruned{blocks}: {kept} of the weights left, {macs} of the multiply-accumulates\n\
         {} on {}, {} cores{}; sparse-engine {}\n\
         {}\n{}",
        report.backend,
        machine.cpu,
        machine.cores,
        plan.map(|path| format!("; plan {}", path.display())).unwrap_or_default(),
        Engine::this(),
        checked(report.sparse.verified),
        report.gpu.as_ref().map(|gpu| graphs(config, gpu)).unwrap_or_default()
    )
}

/// How steps were timed on a GPU.
fn graphs(config: &Config, gpu: &GpuReport) -> String {
    let few = gpu.checked_batch.filter(|&n| n < config.batch);
    let few = few.map(|n| format!("; checked with {n} images: more take the host too long")).unwrap_or_default();
    format!(
        "timed: {} replays of a graph of {} step(s), data on the device; phases: operations one by one, each waited for{few}\n",
        gpu.samples, gpu.steps_a_graph
    )
}

/// What was checked, or that nothing was.
fn checked(verified: Option<Verified>) -> String {
    let Some(Verified { operations, values, worst }) = verified else {
        return "not checked (--no-check): these are times of results that nobody has looked at".into();
    };
    let (values, worst) = (count(values), percent(worst, 0));
    format!(
        "checked in f64: {operations} operations of a step, {values} numbers; the largest error is {worst} of what rounding may do"
    )
}

/// The step and its phases.
fn times(report: &Report) -> Vec<Vec<String>> {
    let cells = |s: Option<Spread>| match s {
        Some(s) => [digits(s.median), format!("{} - {}", digits(s.q1), digits(s.q3)), digits(s.min)],
        None => ["-"; 3].map(String::from),
    };
    let row = |name: String, of: &dyn Fn(&Figures) -> Option<Spread>| {
        let mut row = vec![name];
        let sparse = of(&report.sparse);
        row.extend(cells(sparse));
        if let Some(dense) = &report.dense {
            let dense = of(dense);
            row.extend(cells(dense));
            row.push(ratio(sparse.map_or(0.0, |s| s.median), dense.map_or(0.0, |d| d.median)));
        }
        row
    };
    let mut head = vec!["ms", "sparse", "quartiles", "min"];
    if report.dense.is_some() {
        head.extend(["dense", "quartiles", "min", "sparse/dense"]);
    }
    let mut rows = vec![head.into_iter().map(String::from).collect(), row("step".into(), &|f| Some(f.step_ms))];
    if report.gpu.is_some() {
        let launched = |f: &Figures| f.gpu.as_ref().map(|g| g.launched_ms);
        rows.push(row("step, kernel by kernel".into(), &launched));
    }
    for phase in Phase::ALL {
        let of = |f: &Figures| f.phases_ms.iter().find(|(p, _)| *p == phase).map(|(_, ms)| *ms);
        if of(&report.sparse).is_some() || report.dense.as_ref().and_then(of).is_some() {
            rows.push(row(format!("  {}", phase.name().replace('_', " ")), &of));
        }
    }
    rows
}

/// Rates and memory.
fn rest(config: &Config, report: &Report) -> Vec<Vec<String>> {
    let row = |name: &str, show: fn(f64) -> String, of: &dyn Fn(&Figures) -> Option<f64>| {
        let cell = |v: Option<f64>| v.map_or("-".into(), show);
        let mut row = vec![name.to_string(), cell(of(&report.sparse))];
        if let Some(dense) = &report.dense {
            row.push(cell(of(dense)));
            row.push(ratio(of(&report.sparse).unwrap_or(0.0), of(dense).unwrap_or(0.0)));
        }
        row
    };
    let mut head = vec!["", "sparse"];
    if report.dense.is_some() {
        head.extend(["dense", "sparse/dense"]);
    }
    let size: fn(f64) -> String = |v| bytes(v as u64);
    let (memory, held) = match report.gpu {
        Some(_) => ("peak memory of the host above the start", "bytes held on the device"),
        None => ("peak memory above the start", "bytes held"),
    };
    let mut rows = vec![
        head.into_iter().map(String::from).collect(),
        row("images a second", digits, &|f| Some(f.images_per_s(config.batch))),
        row("GFLOP/s, of the kept weights", digits, &|f| Some(f.gflops(f.macs, config.batch))),
        row("GFLOP/s, as if dense", digits, &|f| Some(f.gflops(report.macs_dense, config.batch))),
        row(memory, size, &|f| f.memory.map(|m| m.above_start() as f64)),
    ];
    if report.gpu.is_some() {
        rows.push(row("kernels a step", digits, &|f| f.gpu.as_ref().map(|g| g.launches as f64)));
    }
    rows.extend([row(held, size, &|f| Some(f.bytes.total() as f64))]);
    type Part = fn(&Bytes) -> u64;
    let kinds: [(&str, Part); 6] = [
        ("  values", |b| b.values),
        ("  indices", |b| b.indices),
        ("  gradients", |b| b.gradients),
        ("  momentum", |b| b.momentum),
        ("  copies of values for the kernels", |b| b.operand_copies),
        ("  activations and scratch", |b| b.activations),
    ];
    rows.extend(kinds.iter().map(|(name, kind)| row(name, size, &|f| Some(kind(&f.bytes) as f64))));
    rows
}

/// `a / b`, or a dash where there is nothing to compare.
fn ratio(a: f64, b: f64) -> String {
    if a > 0.0 && b > 0.0 { digits(a / b) } else { "-".into() }
}
