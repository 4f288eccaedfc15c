//! Convolutions of ResNet-20 (batch 128) and ResNet-50 (batch 16) on the CPU, dense and sparse: forward, weight gradient,
//! both gradients. Called as a network calls them (`src/bench/kernels/`), and checked in f64 before they are timed.
//!
//! `cargo bench --bench conv` takes some minutes; `cargo bench --bench conv -- resnet20/3x3_16x32x32` one layer's part.
//! Throughput is in FLOPs of the kept weights (elements) and in bytes of operands and results.

mod common;

use common::{criterion, is_test, or_exit, threads};
use criterion::{BenchmarkId, Criterion, Throughput};
use sparse_engine::backend::Spec;
use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::bench::kernels::{Case, CheckedConv, Op, Pass};
use sparse_engine::shape::ConvGeom;
use sparse_engine::sparsity::{Density, Pattern};
use std::time::Duration;

/// Network, batch, and layer as C, side, K, kernel, stride: those with most of the time, each kind once or twice.
const LAYERS: [(&str, usize, [u32; 5]); 9] = [
    ("resnet20", 128, [16, 32, 16, 3, 1]),
    ("resnet20", 128, [16, 32, 32, 3, 2]),
    ("resnet20", 128, [32, 16, 32, 3, 1]),
    ("resnet20", 128, [64, 8, 64, 3, 1]),
    ("resnet50", 16, [64, 56, 64, 3, 1]),
    ("resnet50", 16, [256, 56, 64, 1, 1]),
    ("resnet50", 16, [128, 56, 128, 3, 2]),
    ("resnet50", 16, [256, 14, 1024, 1, 1]),
    ("resnet50", 16, [512, 7, 512, 3, 1]),
];

const DENSITIES: [f64; 4] = [1.0, 0.2, 0.1, 0.05];

fn main() {
    let mut criterion = criterion(10, Duration::from_secs(1));
    for layer in LAYERS {
        bench(&mut criterion, layer);
    }
    criterion.final_summary();
}

fn bench(criterion: &mut Criterion, (model, batch, [c, side, k, r, stride]): (&str, usize, [u32; 5])) {
    let down = if stride == 1 { "" } else { "_stride2" };
    let mut group = criterion.benchmark_group(format!("{model}/{r}x{r}_{c}x{side}x{side}_to_{k}{down}"));
    // As a test: the least that still runs every kernel, since nothing is timed; planes in full take minutes to check.
    let (side, batch) = if is_test() { (side.min(7), 1) } else { (side, batch) };
    let geom = ConvGeom { c, h: side, w: side, k, r, s: r, stride, pad: r / 2 };
    for density in DENSITIES {
        let case = Case {
            op: Op::ConvDgrad,
            geom,
            batch,
            density: or_exit(Density::from_density(density)),
            pattern: Pattern::Unstructured,
            plain: false,
            time: Duration::ZERO,
            crossover: false,
            seed: 0,
        };
        // Made by the first bench that runs: a filter may leave all of them out. One check serves the three.
        let mut conv = None;
        for (name, pass) in Pass::ALL {
            let (elements, bytes) = case.work(pass);
            group.throughput(Throughput::ElementsAndBytes { elements, bytes });
            group.bench_function(BenchmarkId::new(name, density), |b| {
                let make = |spec: Spec| CpuBackend::new(spec, threads());
                let conv = conv.get_or_insert_with(|| or_exit(CheckedConv::new(&case, &make)));
                b.iter(|| conv.call(pass));
            });
        }
    }
    group.finish();
}
