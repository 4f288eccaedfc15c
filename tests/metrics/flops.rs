//! FLOPs by the formula, to the printed digits of the published tables, and realised.

use super::close;
use sparse_engine::graph::Graph;
use sparse_engine::metrics::{Flops, LayerWork};
use sparse_engine::models;
use sparse_engine::sparsity::{Density, Maskable, Method, Ratio, layer_counts, layer_densities};

fn build(name: &str) -> Graph {
    let (channels, size, classes) = models::default_image(name).unwrap();
    models::by_name(name, None, channels, classes, size).unwrap()
}

fn density(sparsity: f64) -> Density {
    Density::from_sparsity(sparsity).unwrap()
}

fn flops(graph: &Graph, densities: &[f64], counts: &[usize]) -> Flops {
    let layers = graph.maskable();
    assert!(layers.len() == densities.len() && layers.len() == counts.len());
    Flops::of(layers.iter().zip(graph.macs()).zip(densities).zip(counts).map(|(((layer, macs), &density), &kept)| {
        LayerWork { macs, size: layer.size() as u64, density, kept: kept as u64 }
    }))
}

fn by_method(graph: &Graph, method: Method, sparsity: f64) -> Flops {
    let (layers, ratio) = (graph.maskable(), Ratio::try_from(method).unwrap());
    let densities = layer_densities(&layers, &ratio, density(sparsity)).unwrap();
    flops(graph, &densities, &layer_counts(&layers, &ratio, density(sparsity)).unwrap())
}

/// The counts that a formula's densities are near to.
fn nearest(graph: &Graph, densities: &[f64]) -> Vec<usize> {
    graph.maskable().iter().zip(densities).map(|(l, d)| (l.size() as f64 * d).round() as usize).collect()
}

/// ERK+ (paper section 1.4), computed here: the last layer dense, ERK shares what is left of the budget by bisection.
fn erk_plus(layers: &[Maskable], density: f64) -> Vec<f64> {
    let (last, inner) = layers.split_last().unwrap();
    let budget = density * layers.iter().map(Maskable::size).sum::<usize>() as f64 - last.size() as f64;
    let score = |l: &Maskable| l.shape.iter().sum::<usize>() as f64 / l.size() as f64;
    let kept = |e: f64| inner.iter().map(|l| (e * score(l)).min(1.0) * l.size() as f64).sum::<f64>();
    let (mut low, mut high) = (0.0, 1e9);
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if kept(middle) < budget { low = middle } else { high = middle }
    }
    let mut densities: Vec<f64> = inner.iter().map(|l| (low * score(l)).min(1.0)).collect();
    densities.push(1.0);
    densities
}

#[test]
fn gflops_of_section_6() {
    // At sparsity 0.3, 0.5, 0.7: uniform, ERK, ERK+.
    for (name, uniform, erk, plus) in [
        ("resnet18", [2.540, 1.814, 1.088], [3.285, 2.889, 2.248], [3.285, 2.889, 2.248]),
        ("resnet34", [5.129, 3.664, 2.198], [6.644, 5.588, 4.119], [6.644, 5.588, 4.119]),
        ("resnet50", [5.725, 4.089, 2.454], [6.943, 5.841, 4.354], [6.865, 5.557, 3.747]),
        ("resnet101", [10.922, 7.801, 4.681], [12.218, 9.798, 6.616], [12.077, 9.367, 5.968]),
        ("wrn50-2", [15.957, 11.398, 6.839], [19.824, 15.309, 10.905], [19.824, 15.309, 10.506]),
    ] {
        let graph = build(name);
        for (i, sparsity) in [0.3, 0.5, 0.7].into_iter().enumerate() {
            for (method, want) in [(Method::Uniform, uniform[i]), (Method::Erk, erk[i])] {
                let got = by_method(&graph, method, sparsity);
                close(got.total.formula / 1e9, want, 0.5e-3 + 1e-9, &format!("{name} {method} {sparsity}"));
                // Each count is less than a weight from its target, the largest plane has 112x112 pixels.
                let slack = 2.0 * 112.0 * 112.0 * got.layers.len() as f64;
                close(got.total.realised as f64, got.total.formula, slack, &format!("{name} {method}: realised"));
                let train = got.training();
                assert_eq!((train.dense, train.realised), (3 * got.total.dense, 3 * got.total.realised));
                assert_eq!(train.formula, 3.0 * got.total.formula);
            }
            let densities = erk_plus(&graph.maskable(), 1.0 - sparsity);
            let got = flops(&graph, &densities, &nearest(&graph, &densities));
            close(got.total.formula / 1e9, plus[i], 0.5e-3 + 1e-9, &format!("{name} ERK+ {sparsity}"));
        }
    }
    // Section 2.4: dense.
    for (name, want) in [("resnet18", 3.628), ("resnet50", 8.178), ("wrn50-2", 22.796), ("wrn101-2", 45.506)] {
        let got = by_method(&build(name), Method::Dense, 0.0).total;
        close(got.dense as f64 / 1e9, want, 0.5e-3 + 1e-9, name);
        assert_eq!((got.formula, got.realised), (got.dense as f64, got.dense), "{name}");
    }
}

#[test]
fn erk_flop_ratios_of_section_6() {
    for (name, want) in [
        ("resnet20", [0.7372, 0.3580, 0.1773, 0.0866]),
        ("resnet56", [0.7355, 0.3659, 0.1822, 0.0905]),
        ("resnet110", [0.7352, 0.3678, 0.1834, 0.0914]),
        ("vgg16", [0.7540, 0.4423, 0.2435, 0.1240]),
    ] {
        let graph = build(name);
        for (sparsity, want) in [0.5, 0.8, 0.9, 0.95].into_iter().zip(want) {
            let got = by_method(&graph, Method::Erk, sparsity).total;
            close(got.formula / got.dense as f64, want, 0.5e-4 + 1e-9, &format!("{name} at {sparsity}"));
        }
    }
}

#[test]
fn layers_by_hand() {
    let layers = [
        LayerWork { macs: 27 * 64, size: 27, density: 1.0, kept: 27 },
        LayerWork { macs: 144 * 16, size: 144, density: 0.1, kept: 15 },
        LayerWork { macs: 10, size: 10, density: 0.05, kept: 0 },
        LayerWork { macs: 0, size: 0, density: 1.0, kept: 0 },
    ];
    let got = Flops::of(layers);
    assert_eq!(got.layers.iter().map(|l| l.dense).collect::<Vec<_>>(), [3456, 4608, 20, 0]);
    assert_eq!(got.layers.iter().map(|l| l.realised).collect::<Vec<_>>(), [3456, 480, 0, 0]);
    assert_eq!(got.layers.iter().map(|l| l.formula).collect::<Vec<_>>(), [3456.0, 460.8, 1.0, 0.0]);
    assert_eq!((got.total.dense, got.total.realised, got.total.formula), (8084, 3936, 3456.0 + 460.8 + 1.0));
    let none = Flops::of([]).total;
    assert_eq!((none.dense, none.realised, none.formula), (0, 0, 0.0));
}
