//! Laws for any network, and where they end.

use super::{density, sparsity};
use crate::nets::{self, resnet};
use proptest::prelude::*;
use sparse_engine::sparsity::{Draw, Maskable, Method, Ratio, draw_masks, layer_counts, layer_densities};

/// The loop of paper section 1.4 in plain f64, written a second time.
fn erk_in_f64(layers: &[Maskable], d: f64) -> Vec<f64> {
    let size: Vec<f64> = layers.iter().map(|l| l.size() as f64).collect();
    let score: Vec<f64> = layers.iter().zip(&size).map(|(l, n)| l.shape.iter().sum::<usize>() as f64 / n).collect();
    let mut dense = vec![false; layers.len()];
    loop {
        let (mut rest, mut divisor, mut top) = (0.0, 0.0, 0.0f64);
        for l in 0..layers.len() {
            if dense[l] {
                rest -= size[l] * (1.0 - d);
            } else {
                rest += size[l] * d;
                divisor += score[l] * size[l];
                top = top.max(score[l]);
            }
        }
        let epsilon = rest / divisor;
        if dense.iter().all(|&is| is) || epsilon * top <= 1.0 + 1e-12 {
            return (0..layers.len()).map(|l| if dense[l] { 1.0 } else { epsilon * score[l] }).collect();
        }
        for l in 0..layers.len() {
            dense[l] |= score[l] == top;
        }
    }
}

fn networks() -> impl Strategy<Value = Vec<Maskable>> {
    let shape = prop_oneof![
        prop::collection::vec(1usize..40, 2),
        (1usize..40, 1usize..40, prop_oneof![Just(1usize), Just(3)]).prop_map(|(k, c, r)| vec![k, c, r, r]),
        prop::collection::vec(1usize..7, 1..5),
    ];
    // Each shape up to three times, so that equal scores and equal remainders are common.
    prop::collection::vec((shape, 1usize..4), 1..7).prop_map(|shapes| {
        let shapes = shapes.into_iter().flat_map(|(shape, times)| vec![shape; times]);
        shapes.enumerate().map(|(l, shape)| Maskable { name: format!("layer{l}"), shape }).collect()
    })
}

fn decimals() -> impl Strategy<Value = f64> {
    (1u32..8, 1u64..10_000_000).prop_map(|(places, digits)| {
        let unit = 10u64.pow(places);
        format!("{}e-{places}", digits % unit + 1).parse().unwrap()
    })
}

/// Counts of neighbouring densities, layer by layer: how many fell, and by how much at most.
fn falls(layers: &[Maskable], ratio: &Ratio, steps_per_one: u32, steps: std::ops::Range<u32>) -> (usize, usize) {
    let counts = |k: u32| {
        let d: f64 = format!("{}e-8", u64::from(k) * (100_000_000 / u64::from(steps_per_one))).parse().unwrap();
        layer_counts(layers, &ratio, density(d)).unwrap()
    };
    let (mut number, mut most) = (0, 0);
    let mut before = counts(steps.start);
    for k in steps.start + 1..=steps.end {
        let now = counts(k);
        for (before, now) in before.iter().zip(&now).filter(|(before, now)| now < before) {
            number += 1;
            most = most.max(before - now);
        }
        before = now;
    }
    (number, most)
}

#[test]
fn resnet20_nests_on_every_grid_that_is_not_finer_than_a_weight_a_layer() {
    let net = resnet(20, 16, 3, 10, 32);
    assert_eq!(falls(&net.layers, &Ratio::ERK, 4000, 4..4000), (0, 0)); // 0.00025 apart
    assert_eq!(falls(&net.layers, &Ratio::Uniform, 400, 1..400), (0, 0)); // 0.0025 apart
    let few = draw_masks(&net.layers, &Ratio::ERK, sparsity(0.95), Draw::Exact, 5).unwrap();
    let many = draw_masks(&net.layers, &Ratio::ERK, sparsity(0.9), Draw::Exact, 5).unwrap();
    assert!(few.iter().zip(&many).all(|(few, many)| nets::contains(many, few)));
    assert!(few.iter().zip(&many).any(|(few, many)| !nets::contains(few, many)));
}

#[test]
fn budgets_one_weight_apart_show_the_alabama_paradox() {
    // Why the documentation of `draw_masks` promises no more than it does.
    let net = resnet(20, 16, 3, 10, 32);
    for ratio in [Ratio::Uniform, Ratio::ERK] {
        let (number, most) = falls(&net.layers, &ratio, 1_000_000, 100_000..101_000);
        assert!(number > 0 && most == 1, "{ratio:?}: {number} falls, by {most} at most");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn densities_follow_the_formula(layers in networks(), d in decimals()) {
        let got = layer_densities(&layers, &Ratio::ERK, density(d)).unwrap();
        for ((got, want), layer) in got.iter().zip(erk_in_f64(&layers, d)).zip(&layers) {
            prop_assert!((got - want).abs() <= 1e-9 * want, "{}: got {}, want {}", layer.name, got, want);
        }
        let all: f64 = layers.iter().map(|l| l.size() as f64).sum();
        let kept: f64 = got.iter().zip(&layers).map(|(d, l)| d * l.size() as f64).sum();
        prop_assert!((kept - d * all).abs() <= 1e-9 * all);
    }

    #[test]
    fn counts_meet_the_budget_and_their_targets(layers in networks(), d in decimals(), erk: bool) {
        let ratio = if erk { Ratio::ERK } else { Ratio::Uniform };
        let all: u64 = layers.iter().map(|l| l.size() as u64).sum();
        let densities = layer_densities(&layers, &ratio, density(d)).unwrap();
        match layer_counts(&layers, &ratio, density(d)) {
            Ok(counts) => {
                prop_assert_eq!(counts.iter().sum::<usize>() as u64, density(d).budget(all));
                for ((&count, &d), layer) in counts.iter().zip(&densities).zip(&layers) {
                    prop_assert!((1..=layer.size()).contains(&count));
                    prop_assert!((count as f64 - d * layer.size() as f64).abs() < 1.0 + 1e-6);
                    prop_assert!(d < 1.0 || count == layer.size());
                }
                for draw in [Draw::Exact, Draw::Bernoulli] {
                    let Ok(masks) = draw_masks(&layers, &ratio, density(d), draw, 11) else {
                        prop_assert!(draw == Draw::Bernoulli);
                        continue;
                    };
                    for ((mask, layer), &count) in masks.iter().zip(&layers).zip(&counts) {
                        prop_assert!(mask.name == layer.name && mask.shape == layer.shape);
                        prop_assert!(draw == Draw::Bernoulli || mask.nnz() == count);
                        prop_assert_eq!(mask.kept.is_none(), mask.nnz() == mask.size());
                        if let Some(kept) = &mask.kept {
                            prop_assert!(kept.is_sorted_by(|a, b| a < b) && kept.len() < layer.size());
                            prop_assert!(!kept.is_empty() && (kept[kept.len() - 1] as usize) < layer.size());
                        }
                    }
                }
            }
            Err(e) => {
                let text = e.to_string();
                let named = layers.iter().position(|l| text.contains(&format!("layer {} ", l.name)));
                prop_assert!(named.is_some_and(|l| densities[l] * (layers[l].size() as f64) < 1.0), "{}", text);
                let enough = text.split("from density ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
                prop_assert!(layer_counts(&layers, &ratio, density(enough)).is_ok(), "{}", text);
            }
        }
    }

    /// What the documentation of `draw_masks` says about nesting.
    #[test]
    fn nesting(layers in networks(), a in decimals(), b in decimals(), erk: bool, seed: u64) {
        let ratio = if erk { Ratio::ERK } else { Ratio::Uniform };
        let (low, high) = (a.min(b), a.max(b));
        let few = layer_densities(&layers, &ratio, density(low)).unwrap();
        let many = layer_densities(&layers, &ratio, density(high)).unwrap();
        prop_assert!(few.iter().zip(&many).all(|(f, m)| *f <= m * (1.0 + 1e-12)));
        for draw in [Draw::Exact, Draw::Bernoulli] {
            let few = draw_masks(&layers, &ratio, density(low), draw, seed);
            let many = draw_masks(&layers, &ratio, density(high), draw, seed);
            let (Ok(few), Ok(many)) = (few, many) else { continue };
            for (few, many) in few.iter().zip(&many) {
                let rise = (many.density - few.density) * few.size() as f64;
                prop_assert!(few.nnz() <= many.nnz() || (draw == Draw::Exact && rise < 1.0 + 1e-6
                    && few.nnz() == many.nnz() + 1));
                let (inner, outer) = if few.nnz() <= many.nnz() { (few, many) } else { (many, few) };
                prop_assert!(nets::contains(outer, inner));
            }
        }
    }
}
