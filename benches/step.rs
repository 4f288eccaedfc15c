//! A training step of ResNet-20 at batch 128 on the CPU, dense and with 90 % of the weights pruned (ERK): the batch into the
//! backend, forward, loss, backward, SGD. Each network's step is checked in f64 before it is timed.
//!
//! `cargo bench --bench step`. Throughput is in FLOPs of the kept weights (elements).

mod common;

use common::{criterion, is_test, or_exit, threads};
use criterion::{BenchmarkId, Throughput};
use sparse_engine::backend::Spec;
use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::bench::step::{CheckedStep, Config};
use sparse_engine::sparsity::{Density, Method, Pattern};
use std::time::Duration;

fn main() {
    let mut criterion = criterion(20, Duration::from_secs(5));
    let mut group = criterion.benchmark_group("resnet20");
    for (name, method, density) in [("dense", Method::Dense, 1.0), ("erk", Method::Erk, 0.1)] {
        let config = Config {
            model: "resnet20".into(),
            width: None,
            channels: 3,
            image_size: 32,
            classes: 10,
            method,
            density: or_exit(Density::from_density(density)),
            pattern: Pattern::Unstructured,
            batch: if is_test() { 2 } else { 128 },
            steps: 1,
            warmup: 1,
            seed: 0,
            check: true,
        };
        group.throughput(Throughput::Elements(or_exit(config.flops())));
        let mut net = None;
        group.bench_function(BenchmarkId::new(name, density), |b| {
            let make = |spec: Spec| CpuBackend::new(spec, threads());
            let net = net.get_or_insert_with(|| or_exit(CheckedStep::new(&config, &make)));
            b.iter(|| or_exit(net.step()));
        });
    }
    group.finish();
    criterion.final_summary();
}
