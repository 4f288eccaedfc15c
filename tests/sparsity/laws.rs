//! Laws for any network, and where they end.

use super::{density, sparsity};
use crate::nets::{self, resnet};
use proptest::prelude::*;
use sparse_engine::sparsity::{Draw, Maskable, Ratio, Rest, Role, draw_masks, layer_counts, layer_densities};

/// The loop of paper section 1.4 in plain f64, written a second time; `None` where pinned layers leave nothing.
fn in_f64(layers: &[Maskable], ratio: &Ratio, d: f64) -> Option<Vec<f64>> {
    let score = |l: &Maskable| {
        let (sum, size) = (l.shape.iter().sum::<usize>() as f64, l.size() as f64);
        let er = match l.shape[..] {
            [a, b, ..] => 1.0 / a as f64 + 1.0 / b as f64,
            _ => 1.0,
        };
        match ratio {
            Ratio::Er | Ratio::Custom { rest: Rest::Er, .. } => er,
            Ratio::Erk { power } | Ratio::ErkPlus { power, .. } => (sum / size).powf(*power),
            Ratio::Custom { rest: Rest::Erk, .. } => sum / size,
            _ => 1.0,
        }
    };
    let given = pins(layers, ratio, d);
    let size: Vec<f64> = layers.iter().map(|l| l.size() as f64).collect();
    let score: Vec<f64> = layers.iter().map(score).collect();
    let mut found = given.clone();
    loop {
        let (mut rest, mut divisor, mut top) = (0.0, 0.0, 0.0f64);
        for l in 0..layers.len() {
            rest += size[l] * (d - found[l].unwrap_or(0.0));
            if found[l].is_none() {
                divisor += score[l] * size[l];
                top = top.max(score[l]);
            }
        }
        let epsilon = rest / divisor;
        if found.iter().all(Option::is_some) || epsilon * top <= 1.0 + 1e-12 {
            return (found.iter().all(Option::is_some) || rest > 0.0)
                .then(|| (0..layers.len()).map(|l| found[l].unwrap_or(epsilon * score[l])).collect());
        }
        for l in 0..layers.len() {
            if found[l].is_none() && score[l] >= top * (1.0 - 1e-12) {
                found[l] = Some(1.0);
            }
        }
    }
}

/// Densities that a ratio gives by itself.
fn pins(layers: &[Maskable], ratio: &Ratio, d: f64) -> Vec<Option<f64>> {
    let pin = |l: &Maskable| match (ratio, l.role) {
        (Ratio::UniformPlus, Role::First) => Some(1.0),
        (Ratio::UniformPlus, Role::Last) => Some(d.max(0.2)),
        (Ratio::ErkPlus { last, .. }, Role::Last) => Some(last.value()),
        (Ratio::Custom { layers, .. }, _) => layers.iter().find(|(name, _)| *name == l.name).map(|(_, d)| d.value()),
        _ => None,
    };
    layers.iter().map(pin).collect()
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
        let mut layers: Vec<_> =
            shapes.enumerate().map(|(l, shape)| Maskable::new(format!("layer{l}"), shape)).collect();
        layers[0].role = Role::First;
        layers.last_mut().unwrap().role = Role::Last;
        layers
    })
}

/// A ratio of any kind for any network. Some maps have names that it lacks.
fn ratios() -> impl Strategy<Value = Ratio> {
    let power = || prop_oneof![Just(1.0), Just(0.5), 0.0..2.5f64];
    let part = || prop_oneof![decimals(), Just(1.0)].prop_map(density);
    let map = prop::collection::vec((0usize..8, part()), 0..4).prop_map(|pairs| {
        let mut pairs: Vec<_> = pairs.into_iter().map(|(l, d)| (format!("layer{l}"), d)).collect();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|a, b| a.0 == b.0);
        pairs
    });
    prop_oneof![
        Just(Ratio::Uniform),
        Just(Ratio::UniformPlus),
        Just(Ratio::Er),
        power().prop_map(|power| Ratio::Erk { power }),
        (power(), part()).prop_map(|(power, last)| Ratio::ErkPlus { power, last }),
        (map, prop_oneof![Just(Rest::Uniform), Just(Rest::Er), Just(Rest::Erk)])
            .prop_map(|(layers, rest)| Ratio::Custom { layers, rest }),
    ]
}

/// Without the names that the network lacks; `None` where it lacks a role.
fn fitted(layers: &[Maskable], mut ratio: Ratio) -> Option<Ratio> {
    if let Ratio::Custom { layers: map, .. } = &mut ratio {
        map.retain(|(name, _)| layers.iter().any(|l| l.name == *name));
    }
    (ratio != Ratio::UniformPlus || layers.len() > 2).then_some(ratio)
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
        layer_counts(layers, ratio, density(d)).unwrap()
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
    fn densities_follow_the_formula(layers in networks(), ratio in ratios(), d in decimals()) {
        let Some(ratio) = fitted(&layers, ratio) else { return Ok(()) };
        let Ok(got) = layer_densities(&layers, &ratio, density(d)) else {
            prop_assert!(pins(&layers, &ratio, d).iter().any(Option::is_some), "only pinned layers can be impossible");
            return Ok(());
        };
        let all: f64 = layers.iter().map(|l| l.size() as f64).sum();
        let want = in_f64(&layers, &ratio, d).expect("possible");
        for ((got, want), layer) in got.iter().zip(want).zip(&layers) {
            let tolerance = 1e-8 * want + 1e-12 * all;
            prop_assert!((got - want).abs() <= tolerance, "{}: got {}, want {}", layer.name, got, want);
            prop_assert!(*got > 0.0 && *got <= 1.0);
        }
        let given = pins(&layers, &ratio, d);
        let kept: f64 = got.iter().zip(&layers).map(|(d, l)| d * l.size() as f64).sum();
        // Where nobody takes up the rest, roundings stay.
        let shared = given.iter().zip(&got).any(|(given, d)| given.is_none() && *d < 1.0);
        let slack = if shared { 1e-9 * all } else { 0.5 + given.iter().flatten().count() as f64 / 2.0 };
        prop_assert!((kept - d * all).abs() <= slack, "{} of {} kept at {}", kept, all, d);
    }

    #[test]
    fn counts_meet_the_budget_and_their_targets(layers in networks(), ratio in ratios(), d in decimals()) {
        let Some(ratio) = fitted(&layers, ratio) else { return Ok(()) };
        let all: u64 = layers.iter().map(|l| l.size() as u64).sum();
        let given = pins(&layers, &ratio, d);
        let rounded = given.iter().flatten().count() as f64 / 2.0;
        match layer_counts(&layers, &ratio, density(d)) {
            Ok(counts) => {
                prop_assert_eq!(counts.iter().sum::<usize>() as u64, density(d).budget(all));
                let densities = layer_densities(&layers, &ratio, density(d)).unwrap();
                for ((l, layer), &count) in layers.iter().enumerate().zip(&counts) {
                    prop_assert!((1..=layer.size()).contains(&count));
                    if let Some(pin) = given[l] {
                        prop_assert_eq!(count as u64, density(pin).budget(layer.size() as u64));
                        continue;
                    }
                    let d = densities[l];
                    prop_assert!((count as f64 - d * layer.size() as f64).abs() < 1.0 + rounded + 1e-6);
                    prop_assert!(d < 1.0 || rounded > 0.0 || count == layer.size());
                }
                for draw in [Draw::Exact, Draw::Bernoulli] {
                    let masks = match draw_masks(&layers, &ratio, density(d), draw, 11) {
                        Ok(masks) => masks,
                        Err(_) => {
                            prop_assert!(draw == Draw::Bernoulli);
                            continue;
                        }
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
            Err(e) => refusal(&layers, &ratio, d, &e.to_string()),
        }
    }

    /// What the documentation of `draw_masks` says about nesting.
    #[test]
    fn nesting(layers in networks(), a in decimals(), b in decimals(), ratio in ratios(), seed: u64) {
        let Some(ratio) = fitted(&layers, ratio) else { return Ok(()) };
        let (low, high) = (a.min(b), a.max(b));
        let few = layer_densities(&layers, &ratio, density(low));
        let many = layer_densities(&layers, &ratio, density(high));
        let (Ok(few), Ok(many)) = (few, many) else { return Ok(()) };
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

/// Fails unless a message names what is wrong and its advice helps.
fn refusal(layers: &[Maskable], ratio: &Ratio, d: f64, text: &str) {
    let given = pins(layers, ratio, d);
    let rounded = given.iter().flatten().count() as f64 / 2.0;
    let after =
        |words: &str| text.split(words).nth(1).map(|rest| rest.split([' ', ',']).next().unwrap().parse().unwrap());
    let starved =
        layers.iter().position(|l| text.contains(&format!("layer {} ", l.name)) && text.contains("keep none"));
    if let Some(l) = starved {
        let wanted = given[l].or_else(|| in_f64(layers, ratio, d).map(|densities| densities[l])).unwrap_or(0.0);
        assert!(wanted * (layers[l].size() as f64) < 1.0 + rounded, "{text}");
    } else {
        assert!(rounded > 0.0, "{text}");
    }
    for exact in [after("set density "), after("highest density ")].into_iter().flatten() {
        let again = layer_counts(layers, ratio, density(exact));
        assert!(again.is_ok() || again.unwrap_err().to_string().contains("given to it"), "{text}");
    }
    let least: Option<f64> = after("from density ");
    if let Some(least) = least {
        assert!(layer_counts(layers, ratio, density(least)).is_ok(), "{text}");
        // A little less and some layer's target is less than a weight.
        let less = in_f64(layers, ratio, least - 1e-6).filter(|_| least > 1e-6);
        let below = |less: Vec<f64>| less.iter().zip(layers).any(|(d, l)| d * (l.size() as f64) < 1.0 + rounded + 1e-6);
        assert!(less.is_none_or(below), "{text}");
    }
    if text.contains("no density leaves") {
        for d in [0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0] {
            assert!(layer_counts(layers, ratio, density(d)).is_err(), "{d}: {text}");
        }
    }
}
