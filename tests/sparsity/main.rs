//! Densities, budgets and counts against published figures. `golden.rs`: all ratios on many networks against an independent
//! script; `pinned.rs`: layers with a density of their own; `scores.rs`: masks from scores and given ones; `laws.rs`: an
//! independent f64 loop, and laws that must hold for any network.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // so that NaN fails

mod golden;
mod laws;
#[path = "../nets/mod.rs"]
mod nets;
mod pinned;
mod scores;

use nets::resnet;
use sparse_engine::sparsity::{
    Density, Draw, Mask, Maskable, Method, Positions, Ratio, Rest, draw_masks, layer_counts, layer_densities, mask_hash,
};

fn density(written: f64) -> Density {
    Density::from_density(written).unwrap()
}

fn sparsity(written: f64) -> Density {
    Density::from_sparsity(written).unwrap()
}

fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance, "{what}: got {got}, want {want} +- {tolerance}");
}

/// Epsilon as seen in any layer that is not dense.
fn epsilon(layers: &[Maskable], densities: &[f64]) -> f64 {
    let l = densities.iter().position(|&d| d < 1.0).unwrap();
    densities[l] * layers[l].size() as f64 / layers[l].shape.iter().sum::<usize>() as f64
}

const GRID: [f64; 4] = [0.5, 0.8, 0.9, 0.95];

#[test]
fn erk_epsilons_of_section_6() {
    for (depth, want) in [
        (20, [101.0553, 36.0023, 16.9860, 8.2040]),
        (56, [105.3333, 38.6882, 18.9665, 9.3584]),
        (110, [106.3275, 39.3411, 19.4770, 9.6731]),
    ] {
        let net = resnet(depth, 16, 3, 10, 32);
        for (s, want) in GRID.into_iter().zip(want) {
            let densities = layer_densities(&net.layers, &Ratio::ERK, sparsity(s)).unwrap();
            close(epsilon(&net.layers, &densities), want, 0.5e-4 + 1e-9, &format!("ResNet-{depth} at {s}"));
        }
    }
}

#[test]
fn erk_densities_of_resnet20() {
    let table: [(&[usize], [f64; 4]); 9] = [
        (&[16, 3, 3, 3], [1.0, 1.0, 0.982985, 0.474768]),
        (&[16, 16, 3, 3], [1.0, 0.593788, 0.280151, 0.135309]),
        (&[32, 16, 3, 3], [1.0, 0.421902, 0.199055, 0.096141]),
        (&[32, 32, 3, 3], [0.767564, 0.273455, 0.129017, 0.062313]),
        (&[32, 16, 1, 1], [1.0, 1.0, 1.0, 0.801172]),
        (&[64, 32, 3, 3], [0.559225, 0.199231, 0.093998, 0.045400]),
        (&[64, 64, 3, 3], [0.367334, 0.130868, 0.061744, 0.029821]),
        (&[64, 32, 1, 1], [1.0, 1.0, 0.812806, 0.392574]),
        (&[10, 64], [1.0, 1.0, 1.0, 0.948587]),
    ];
    let net = resnet(20, 16, 3, 10, 32);
    for (column, s) in GRID.into_iter().enumerate() {
        for (layer, got) in net.layers.iter().zip(layer_densities(&net.layers, &Ratio::ERK, sparsity(s)).unwrap()) {
            let (_, want) = table.iter().find(|(shape, _)| *shape == layer.shape).unwrap();
            close(got, want[column], 0.5e-6 + 1e-9, &format!("{} at {s}", layer.name));
        }
    }
}

#[test]
fn erk_flop_ratios_of_section_6() {
    for (depth, want) in [
        (20, [0.7372, 0.3580, 0.1773, 0.0866]),
        (56, [0.7355, 0.3659, 0.1822, 0.0905]),
        (110, [0.7352, 0.3678, 0.1834, 0.0914]),
    ] {
        let net = resnet(depth, 16, 3, 10, 32);
        let dense: u64 = net.macs.iter().sum();
        for (s, want) in GRID.into_iter().zip(want) {
            let by_formula = layer_densities(&net.layers, &Ratio::ERK, sparsity(s)).unwrap();
            let by_formula: f64 = by_formula.iter().zip(&net.macs).map(|(d, &m)| d * m as f64).sum();
            close(by_formula / dense as f64, want, 0.5e-4 + 1e-9, &format!("ResNet-{depth} at {s}, formula"));
            let counts = layer_counts(&net.layers, &Ratio::ERK, sparsity(s)).unwrap();
            let realised: u64 =
                counts.iter().zip(&net.layers).zip(&net.macs).map(|((&n, l), m)| m / l.size() as u64 * n as u64).sum();
            // Each layer's count is less than one weight from its target.
            let slack: u64 = net.macs.iter().zip(&net.layers).map(|(m, l)| m / l.size() as u64).sum();
            close(realised as f64, by_formula, slack as f64, &format!("ResNet-{depth} at {s}, realised"));
        }
    }
}

#[test]
fn budgets_hold_exactly_for_any_decimal() {
    let all = 270_896u64; // ResNet-20, paper section 2.4
    let net = resnet(20, 16, 3, 10, 32);
    for (d, want) in [
        (sparsity(0.9), 27_090),  // 27,089.6
        (sparsity(0.95), 13_545), // 13,544.8
        (density(0.1), 27_090),
        (density(0.005), 1_354),      // 1,354.48
        (density(1.0 / 3.0), 90_299), // 90,298.67
        (sparsity(1.0 / 3.0), 180_597),
        (density(0.30000000000000004), 81_269), // 81,268.8
        (sparsity(0.000001), 270_896),          // 270,895.73
        (sparsity(0.00001), 270_893),           // 270,893.29
        (Density::ONE, all),
    ] {
        assert_eq!(d.budget(all), want, "{d}");
        for ratio in [Ratio::Uniform, Ratio::ERK] {
            let masks = draw_masks(&net.layers, &ratio, d, Draw::Exact, 3).unwrap();
            assert_eq!(masks.iter().map(|m| m.nnz() as u64).sum::<u64>(), want, "{ratio:?} {d}");
        }
    }
}

#[test]
fn largest_remainder_by_hand_with_ties_in_layer_order() {
    let layer = |name: &str, n: usize| Maskable::new(name, [n]);
    // Targets 0.5 * (5, 3, 9, 4) = 2.5, 1.5, 4.5, 2; 10.5 of 21 rounds to 11: two of the three halves, the first ones.
    let layers = [layer("a", 5), layer("b", 3), layer("c", 9), layer("d", 4)];
    assert_eq!(layer_counts(&layers, &Ratio::Uniform, density(0.5)).unwrap(), [3, 2, 4, 2]);
    // 0.1 * (27, 37, 13, 23): remainders 0.7, 0.7, 0.3, 0.3, equal in decimal though not in binary; 10 = 2+3+1+2 + 2.
    let layers = [layer("a", 27), layer("b", 37), layer("c", 13), layer("d", 23)];
    assert_eq!(layer_counts(&layers, &Ratio::Uniform, density(0.1)).unwrap(), [3, 4, 1, 2]);
    // 0.1 * 2304 and 0.1 * 36864 both leave 0.4, which f64 tells apart; 18 * 0.4 + 0.4 = 7.6 -> 8.
    let layers: Vec<_> = (0..19).map(|l| layer(&l.to_string(), if l % 2 == 0 { 2304 } else { 36_864 })).collect();
    let counts = layer_counts(&layers, &Ratio::Uniform, density(0.1)).unwrap();
    for (l, count) in counts.into_iter().enumerate() {
        let floor = if l % 2 == 0 { 230 } else { 3686 };
        assert_eq!(count, floor + usize::from(l < 8), "layer {l}");
    }
}

#[test]
fn degenerate_networks() {
    let net = resnet(8, 4, 1, 10, 28);
    // Density 1, and all but 1, make every layer dense without an index.
    for d in [Density::ONE, sparsity(1e-20), density(0.9999999999999999)] {
        for ratio in [Ratio::Dense, Ratio::Uniform, Ratio::ERK] {
            for draw in [Draw::Exact, Draw::Bernoulli] {
                let masks = draw_masks(&net.layers, &ratio, d, draw, 0).unwrap();
                assert!(masks.iter().all(|m| m.kept.is_none() && m.nnz() == m.size()), "{ratio:?} {draw}");
            }
        }
    }
    // The dense method ignores the density; one layer takes it all; equal scores become dense together.
    assert!(
        draw_masks(&net.layers, &Ratio::Dense, density(0.001), Draw::Exact, 0)
            .unwrap()
            .iter()
            .all(|m| { m.kept.is_none() && m.density == 1.0 })
    );
    let one = [Maskable::new("fc", [10, 64])];
    assert_eq!(layer_densities(&one, &Ratio::ERK, density(0.25)).unwrap(), [0.25]);
    assert_eq!(layer_counts(&one, &Ratio::ERK, density(0.25)).unwrap(), [160]);
    assert!(draw_masks(&[], &Ratio::ERK, density(0.5), Draw::Exact, 0).unwrap().is_empty());
    // Nothing that is no tensor, nothing that stands twice, nothing that 32-bit positions do not reach.
    for shape in [vec![], vec![3, 0], vec![1 << 16, 1 << 16], vec![usize::MAX, usize::MAX]] {
        let e = layer_counts(&[Maskable::new("odd", shape)], &Ratio::ERK, density(0.5)).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("odd"), "{e}");
    }
    let e = layer_counts(&[one[0].clone(), one[0].clone()], &Ratio::ERK, density(0.5)).unwrap_err();
    assert!(e.to_string().contains("fc stands twice"), "{e}");
}

#[test]
fn a_layer_that_would_die_is_named() {
    let net = resnet(20, 16, 3, 10, 32);
    for (ratio, d, target) in [(Ratio::Uniform, 0.0005, "5.00e-4"), (Ratio::ERK, 0.0001, "9.50e-4")] {
        let e = draw_masks(&net.layers, &ratio, density(d), Draw::Exact, 0).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        let text = e.to_string();
        assert!(
            text.contains("layer conv.weight [16, 3, 3, 3]") && text.contains("432") && !text.contains('\n'),
            "{text}"
        );
        assert!(text.contains(target) && text.contains(&format!("density of {d};")), "{text}");
    }
    let text = layer_counts(&net.layers, &Ratio::Uniform, density(0.0005)).unwrap_err().to_string();
    assert!(text.contains("from density 0.002315 (sparsity 0.997685) on"), "{text}"); // 1/432, rounded up
    assert!(layer_counts(&net.layers, &Ratio::Uniform, density(0.002315)).is_ok());

    let failures = (0..200)
        .filter_map(|seed| draw_masks(&net.layers, &Ratio::Uniform, density(0.01), Draw::Bernoulli, seed).err());
    let failures: Vec<_> = failures.map(|e| e.to_string()).collect();
    // P(432, 512 or 640 positions all pruned at 1 %) = 1.3 + 0.6 + 0.2 %: about 4 of 200.
    assert!((1..15).contains(&failures.len()), "{failures:?}");
    assert!(failures.iter().all(|text| text.contains("seed") && text.contains("weight [")), "{failures:?}");
}

#[test]
fn hashes_tell_positions_names_and_shapes_apart() {
    let mask = |name: &str, shape: &[usize], kept: Option<&[u32]>, density| Mask {
        name: name.into(),
        shape: shape.to_vec(),
        density,
        kept: kept.map(Into::into),
        block: None,
    };
    // Fixed for good: sha256(b"sparse-engine mask 1" + struct.pack("<Q4sQQQQQQ", 4, b"conv", 2, 2, 3, 2, 1, 4)).
    let reference = mask_hash(&mask("conv", &[2, 3], Some(&[1, 4]), 0.3));
    assert_eq!(reference, "bf8852e1b9b534e1ff503b4e118695b7b56356e682b86a6b12300a9ffa79da35");
    assert_eq!(reference, mask_hash(&mask("conv", &[2, 3], Some(&[1, 4]), 0.4)));
    let others = [
        mask("conw", &[2, 3], Some(&[1, 4]), 0.3),
        mask("conv", &[3, 2], Some(&[1, 4]), 0.3),
        mask("conv", &[6], Some(&[1, 4]), 0.3),
        mask("conv", &[2, 3], Some(&[1, 5]), 0.3),
        mask("conv", &[2, 3], Some(&[1]), 0.3),
        mask("conv", &[2, 3], None, 0.3),
        mask("con", &[2, 3], Some(&[1, 4]), 0.3),
    ];
    let mut hashes: Vec<_> = others.iter().map(mask_hash).collect();
    hashes.push(reference);
    assert!(hashes.iter().all(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit())));
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 8);
}

#[test]
fn names_parse_and_print() {
    for (name, method) in Method::ALL {
        assert_eq!(name.parse::<Method>().unwrap(), method);
        assert_eq!(method.to_string(), name);
        assert_eq!(serde_json::to_value(method).unwrap(), name);
    }
    for (name, draw) in Draw::ALL {
        assert_eq!(name.parse::<Draw>().unwrap(), draw);
        assert_eq!(draw.to_string(), name);
        assert_eq!(serde_json::to_value(draw).unwrap(), name);
    }
    for (name, rest) in Rest::ALL {
        assert_eq!((name.parse::<Rest>().unwrap(), rest.to_string().as_str()), (rest, name));
        assert_eq!(serde_json::to_value(rest).unwrap(), name);
    }
    for (name, positions) in Positions::ALL {
        assert_eq!((name.parse::<Positions>().unwrap(), positions.to_string().as_str()), (positions, name));
        assert_eq!(serde_json::to_value(positions).unwrap(), name);
    }
    let e = "ER".parse::<Method>().unwrap_err();
    let all = "dense, uniform, uniform-plus, er, erk, erk-plus, snip, grasp, global-magnitude, custom, file";
    assert_eq!((e.exit_code(), e.to_string()), (2, format!("unknown method \"ER\": choose one of {all}")));
    assert_eq!("".parse::<Draw>().unwrap_err().to_string(), "unknown mask draw \"\": choose one of exact, bernoulli");
    let scored: Vec<_> = Method::ALL.iter().filter(|(_, m)| m.is_scored()).map(|(name, _)| *name).collect();
    assert_eq!(scored, ["snip", "grasp", "global-magnitude"]);
    for (name, method) in Method::ALL {
        let without = ["snip", "grasp", "global-magnitude", "custom", "file"].contains(&name);
        match Ratio::try_from(method) {
            Ok(_) => assert!(!without, "{name}"),
            Err(e) => {
                let e = e.to_string();
                assert!(without && e.contains(&format!("method {name} is not available here")), "{e}");
                assert!(e.ends_with("choose one of dense, uniform, uniform-plus, er, erk, erk-plus"), "{e}");
            }
        }
    }
}
