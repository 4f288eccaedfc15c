//! All ratios that need no data on the networks of the paper: densities of scripts/make_density_fixture.py, exact budgets, the
//! figures of section 6, roles by structure.

use super::{close, density, sparsity};
use sparse_engine::graph::Graph;
use sparse_engine::models;
use sparse_engine::sparsity::{Density, Draw, Maskable, Ratio, Role, draw_masks, layer_counts, layer_densities};
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct Network {
    maskable: u64,
    layers: Vec<usize>,
    kinds: Vec<(Vec<usize>, String)>,
    densities: BTreeMap<String, BTreeMap<String, Option<Vec<f64>>>>,
}

fn graph(name: &str) -> Graph {
    let (network, width) = name.strip_suffix("-8").map_or((name, None), |name| (name, Some(8)));
    let (channels, size, classes) = models::default_image(network).unwrap();
    models::by_name(network, width, channels, classes, size).unwrap()
}

fn ratio(method: &str) -> Ratio {
    let number = |text: &str| text.parse::<f64>().unwrap();
    match (method, method.strip_prefix("erk-plus-"), method.strip_prefix("erk-")) {
        ("uniform", ..) => Ratio::Uniform,
        ("uniform-plus", ..) => Ratio::UniformPlus,
        ("er", ..) => Ratio::Er,
        (_, Some(last), _) => Ratio::ErkPlus { power: 1.0, last: density(number(last)) },
        (_, _, power) => Ratio::Erk { power: number(power.unwrap()) },
    }
}

#[test]
fn densities_and_budgets_of_every_network() {
    let text = std::fs::read_to_string("tests/fixtures/densities.json").unwrap();
    let networks: BTreeMap<String, Network> = serde_json::from_str(&text).unwrap();
    let (mut compared, mut impossible) = (0, Vec::new());
    for (name, net) in &networks {
        let layers = graph(name).maskable();
        let kinds: Vec<_> = layers.iter().map(|l| (l.shape.clone(), l.role.to_string())).collect();
        assert_eq!(kinds, net.layers.iter().map(|&k| net.kinds[k].clone()).collect::<Vec<_>>(), "{name}");
        for (method, column) in &net.densities {
            for (written, want) in column {
                let (what, d) = (format!("{name} {method} {written}"), density(written.parse().unwrap()));
                let got = layer_densities(&layers, &ratio(method), d);
                let Some(want) = want else {
                    impossible.push(what);
                    let e = got.unwrap_err();
                    let text = e.to_string();
                    assert!(e.exit_code() == 2 && text.contains("fc.weight 2048000 of 2048000"), "{text}");
                    assert!(text.contains("the budget of density 0.05 is 1275146"), "{text}");
                    continue;
                };
                let got = got.unwrap();
                for ((layer, got), &kind) in layers.iter().zip(&got).zip(&net.layers) {
                    close(*got, want[kind], 1e-6 * want[kind], &format!("{what} {}", layer.name));
                }
                let counts = layer_counts(&layers, &ratio(method), d).unwrap();
                assert_eq!(counts.iter().sum::<usize>() as u64, d.budget(net.maskable), "{what}");
                for ((layer, count), &kind) in layers.iter().zip(counts).zip(&net.layers) {
                    let target = want[kind] * layer.size() as f64;
                    // Less than a weight from its target, and half a one for each pinned layer that was rounded.
                    close(count as f64, target, 1.5 + 1e-6 * target, &format!("{what} {}", layer.name));
                    assert!((1..=layer.size()).contains(&count), "{what} {}", layer.name);
                }
                compared += 1;
            }
        }
    }
    assert_eq!((networks.len(), compared), (13, 13 * 9 * 7 - 1));
    assert_eq!(impossible, ["resnet50 erk-plus-1 0.05"]);
}

#[test]
fn pinned_layers_keep_their_rounded_share() {
    for name in ["resnet20", "vgg16", "resnet18", "resnet50", "wrn50-2"] {
        let layers = graph(name).maskable();
        let (first, last) = (&layers[0], layers.last().unwrap());
        assert_eq!((first.role, last.role), (Role::First, Role::Last), "{name}");
        assert_eq!(layers.iter().filter(|l| l.role != Role::Inner).count(), 2, "{name}");
        for d in [0.051, 0.1999, 0.2, 0.2001, 0.33333, 0.9] {
            let counts = layer_counts(&layers, &Ratio::UniformPlus, density(d)).unwrap();
            let of_last = density(f64::max(d, 0.2)).budget(last.size() as u64) as usize;
            assert_eq!((counts[0], *counts.last().unwrap()), (first.size(), of_last), "{name} {d}");
        }
        for (last_density, d) in [(0.777, 0.3), (0.01, 0.3), (0.123456789, 0.2), (1.0, 0.2)] {
            let given = density(last_density);
            let counts = layer_counts(&layers, &Ratio::ErkPlus { power: 1.0, last: given }, density(d)).unwrap();
            assert_eq!(*counts.last().unwrap() as u64, given.budget(last.size() as u64), "{name} {d}");
        }
    }
}

#[test]
fn erk_plus_figures_of_section_6() {
    let plus = Ratio::ErkPlus { power: 1.0, last: Density::ONE };
    let layers = graph("wrn50-2").maskable();
    for (s, want) in [(0.6, 0.381595), (0.7, 0.278528), (0.8, 0.175461), (0.85, 0.123927)] {
        let densities = layer_densities(&layers, &plus, sparsity(s)).unwrap();
        assert_eq!(densities[densities.len() - 1], 1.0);
        let (mut kept, mut all) = (0.0, 0.0);
        for (layer, d) in layers.iter().zip(densities).filter(|(l, _)| l.role != Role::Last) {
            (kept, all) = (kept + d * layer.size() as f64, all + layer.size() as f64);
        }
        close(kept / all, want, 0.5e-6 + 1e-9, &format!("inner density at {s}"));
    }
    // GFLOPs at sparsity 0.3, 0.5, 0.7; density of the last layer under ERK.
    for (name, gflops, last) in [
        ("resnet18", [3.285, 2.889, 2.248], [1.0, 1.0, 1.0]),
        ("resnet34", [6.644, 5.588, 4.119], [1.0, 1.0, 1.0]),
        ("resnet50", [6.865, 5.557, 3.747], [0.859, 0.452, 0.232]),
        ("resnet101", [12.077, 9.367, 5.968], [0.809, 0.370, 0.194]),
        ("wrn50-2", [19.824, 15.309, 10.506], [1.0, 1.0, 0.496]),
    ] {
        let graph = graph(name);
        let layers = graph.maskable();
        for (i, s) in [0.3, 0.5, 0.7].into_iter().enumerate() {
            let densities = layer_densities(&layers, &plus, sparsity(s)).unwrap();
            let flops: f64 = densities.iter().zip(graph.macs()).map(|(d, macs)| 2e-9 * d * macs as f64).sum();
            close(flops, gflops[i], 0.0005 + 1e-9, &format!("{name} {s}: GFLOPs"));
            let erk = layer_densities(&layers, &Ratio::ERK, sparsity(s)).unwrap();
            close(erk[erk.len() - 1], last[i], 0.0005 + 1e-9, &format!("{name} {s}: last layer"));
            if last[i] == 1.0 {
                assert_eq!(densities, erk, "{name} {s}");
                let counts = |ratio| layer_counts(&layers, ratio, sparsity(s)).unwrap();
                assert_eq!(counts(&plus), counts(&Ratio::ERK), "{name} {s}");
            }
        }
    }
}

#[test]
fn powers_between_uniform_and_erk() {
    let layers = graph("resnet20").maskable();
    let of = |power| layer_densities(&layers, &Ratio::Erk { power }, density(0.1)).unwrap();
    let counts = |power| layer_counts(&layers, &Ratio::Erk { power }, density(0.1)).unwrap();
    assert_eq!(counts(0.0), layer_counts(&layers, &Ratio::Uniform, density(0.1)).unwrap());
    for (got, want) in of(1.0 + 1e-12).into_iter().zip(of(1.0)) {
        close(got, want, 1e-9, "power 1");
    }
    for (got, want) in of(1e-12).into_iter().zip(of(0.0)) {
        close(got, want, 1e-9, "power 0");
    }
    // Largest layers lose as the power grows, and layers of one shape stay equal.
    let large = layers.iter().position(|l| l.shape == [64, 64, 3, 3]).unwrap();
    assert!([0.0, 0.3, 0.5, 1.0, 1.7, 2.0].windows(2).all(|p| of(p[0])[large] > of(p[1])[large]));
    for power in [0.3, 0.5, 1.7, Ratio::MAX_POWER] {
        for (a, b) in layers.iter().enumerate().flat_map(|(i, a)| layers.iter().skip(i).map(move |b| (a, b))) {
            let at = |l: &Maskable| layers.iter().position(|k| k.name == l.name).unwrap();
            assert!(a.shape != b.shape || of(power)[at(a)] == of(power)[at(b)], "{power} {}", a.name);
        }
    }
    for power in [-0.1, 8.1, f64::NAN, f64::INFINITY] {
        let e = layer_counts(&layers, &Ratio::Erk { power }, density(0.1)).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("power scale of ERK: wanted 0 to 8"), "{e}");
    }
}

#[test]
fn a_wide_resnet_is_drawn_in_seconds() {
    let layers = graph("wrn50-2").maskable();
    let (start, d) = (std::time::Instant::now(), density(0.2));
    let masks = draw_masks(&layers, &Ratio::ErkPlus { power: 0.5, last: Density::ONE }, d, Draw::Exact, 1).unwrap();
    assert_eq!(masks.iter().map(|m| m.nnz() as u64).sum::<u64>(), d.budget(68_814_016));
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

fn roles(g: &Graph) -> Vec<(String, Role)> {
    g.maskable().into_iter().map(|l| (l.name.replace(".weight", ""), l.role)).collect()
}

#[test]
fn roles_by_structure() {
    use Role::{First, Inner, Last};
    let want = |roles: &[(&str, Role)]| roles.iter().map(|&(name, role)| (name.to_string(), role)).collect::<Vec<_>>();
    // Two stems, through norm, ReLU and pooling; the logits are a sum of two 1x1 convolutions, pooled.
    let mut g = Graph::new(3, 9, 9);
    let x = g.norm("bn0", g.input());
    let y = g.max_pool(x, 3, 2, 1).unwrap();
    let y = g.relu(y);
    let a = g.conv("stem.a", y, 8, 3, 1, 1).unwrap();
    let b = g.conv("stem.b", y, 8, 1, 1, 0).unwrap();
    let x = g.add(a, b).unwrap();
    let x = g.relu(x);
    let x = g.conv("middle", x, 8, 3, 1, 1).unwrap();
    let a = g.conv("head.a", x, 10, 1, 1, 0).unwrap();
    let b = g.conv("head.b", x, 10, 1, 1, 0).unwrap();
    let b = g.norm("bn1", b);
    let x = g.add(a, b).unwrap();
    g.pool(x);
    let split = [("stem.a", First), ("stem.b", First), ("middle", Inner), ("head.a", Last), ("head.b", Last)];
    assert_eq!(roles(&g), want(&split));
    let d = density(0.5);
    let uniform = layer_densities(&g.maskable(), &Ratio::UniformPlus, d).unwrap();
    assert_eq!([uniform[0], uniform[1], uniform[3], uniform[4]], [1.0, 1.0, 0.5, 0.5]);
    let plus = layer_densities(&g.maskable(), &Ratio::ErkPlus { power: 1.0, last: density(0.9) }, d).unwrap();
    assert_eq!([plus[3], plus[4]], [0.9, 0.9]);

    // A layer that reads the images beside others' outputs is not first; of a perceptron the first layer is linear.
    let mut g = Graph::new(8, 1, 1);
    let x = g.linear("one", g.input(), 8).unwrap();
    let x = g.add(x, g.input()).unwrap();
    let x = g.linear("two", x, 8).unwrap();
    g.linear("three", x, 4).unwrap();
    assert_eq!(roles(&g), want(&[("one", First), ("two", Inner), ("three", Last)]));

    // One layer that is both is last; without layers or maskable weights there is nothing.
    let mut g = Graph::new(3, 4, 4);
    let x = g.pool(g.input());
    g.linear("fc", x, 10).unwrap();
    assert_eq!(roles(&g), want(&[("fc", Last)]));
    assert!(roles(&Graph::new(3, 4, 4)).is_empty());
    let e = layer_counts(&g.maskable(), &Ratio::UniformPlus, d).unwrap_err();
    let wanted =
        "method uniform-plus gives the first layer a density of its own, but no layer of this network reads the images";
    assert!(e.exit_code() == 2 && e.to_string().starts_with(wanted), "{e}");
    let two = [Role::First, Role::Last].map(|role| Maskable { role, ..Maskable::new(role.to_string(), [4, 4]) });
    let e = layer_counts(&two, &Ratio::UniformPlus, d).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("no layer between them to meet the budget"), "{e}");
    let inner = [Maskable::new("a", [4, 4])];
    let e = layer_counts(&inner, &Ratio::ErkPlus { power: 1.0, last: d }, d).unwrap_err();
    let wanted =
        "method erk-plus gives the last layer a density of its own, but no layer of this network gives the logits";
    assert!(e.exit_code() == 2 && e.to_string().starts_with(wanted), "{e}");
}
