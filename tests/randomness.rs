//! Masks are random, and independent of layers, seeds and the values they select.
//!
//! Seeds are fixed, so each test always passes or always fails. Single figures are held to 4 sigma; the largest of `m`
//! figures to the bound that chance alone passes as rarely as one figure passes 4 sigma ([`widest`]), and their squares as
//! a whole to 4 sigma of chi-square, which also fails masks that are too regular. Each statistic is shown to catch a fault.
//! Of 300 other sets of seeds, 3 failed a test, by a little: chance, and the skew of binomial counts.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // so that NaN fails

use sparse_engine::graph::Graph;
use sparse_engine::models;
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::sparsity::{Density, Draw, Mask, Maskable, Ratio, draw_masks, layer_densities, mask_hash};

const SEEDS: u64 = 1000;

fn net() -> Graph {
    models::by_name("resnet20", 16, 3, 10, 32).unwrap()
}

fn draw(layers: &[Maskable], ratio: &Ratio, density: f64, draw: Draw, seed: u64) -> Vec<Mask> {
    draw_masks(layers, ratio, Density::from_density(density).unwrap(), draw, seed).unwrap()
}

/// Sigmas that the largest of `m` normal figures passes as rarely as one passes 4, by the union bound and Mills' ratio.
fn widest(m: usize) -> f64 {
    let tail = |z: f64| (-z * z / 2.0).exp() / z;
    let mut z = 4.0;
    while m as f64 * tail(z) > tail(4.0) {
        z += 0.001;
    }
    z
}

/// What is wrong with standardised figures that should be standard normal, with squares that sum to about `free`.
fn fault(figures: &[f64], free: f64) -> Option<String> {
    let largest = figures.iter().fold(0.0, |m: f64, z| if z.is_nan() { f64::NAN } else { m.max(z.abs()) });
    let bound = widest(figures.len());
    let squares = (figures.iter().map(|z| z * z).sum::<f64>() - free) / (2.0 * free).sqrt();
    if !(largest <= bound) {
        return Some(format!("largest of {}: {largest:.2} sigma, bound {bound:.2}", figures.len()));
    }
    if !(squares.abs() <= 4.0) {
        return Some(format!("squares of {} figures: {squares:.2} sigma from chi-square", figures.len()));
    }
    None
}

/// How often each position is kept, standardised, over masks of one layer and density `d`.
fn position_figures<'a>(masks: impl Iterator<Item = &'a [u32]>, size: usize, d: f64) -> Vec<f64> {
    let (mut times, mut drawn) = (vec![0u32; size], 0.0);
    for kept in masks {
        drawn += 1.0;
        kept.iter().for_each(|&position| times[position as usize] += 1);
    }
    times.into_iter().map(|t| (f64::from(t) - drawn * d) / (drawn * d * (1.0 - d)).sqrt()).collect()
}

/// One layer of each shape of ResNet-20 that ERK at 90 % prunes and that has at most 2,304 weights.
fn small_layers() -> Vec<Maskable> {
    let small = |name: &str| {
        matches!(name, "conv.weight" | "segment0.block0.conv1.weight") || name == "segment2.block0.shortcut.conv.weight"
    };
    net().maskable().into_iter().filter(|l| small(&l.name)).collect()
}

#[test]
fn every_position_is_kept_with_its_density() {
    let layers = small_layers();
    assert_eq!(layers.len(), 3);
    for (ratio, density) in [(Ratio::ERK, 0.3), (Ratio::Uniform, 0.1)] {
        for how in [Draw::Exact, Draw::Bernoulli] {
            let drawn: Vec<_> = (0..SEEDS).map(|seed| draw(&layers, &ratio, density, how, seed)).collect();
            for l in (0..layers.len()).filter(|&l| drawn[0][l].kept.is_some()) {
                let size = layers[l].size();
                // An exact count is the same for every seed; its density is what positions are kept with.
                let d = if how == Draw::Exact { drawn[0][l].nnz() as f64 / size as f64 } else { drawn[0][l].density };
                let kept = || drawn.iter().map(|masks| &masks[l].kept.as_ref().unwrap()[..]);
                let figures = position_figures(kept(), size, d);
                let squares = size as f64; // exact counts too: n/(n-1) times chi-square of n-1 degrees
                assert_eq!(fault(&figures, squares), None, "{ratio:?} {how} {}", layers[l].name);
                let all = figures.iter().sum::<f64>() / (size as f64).sqrt();
                let bound = if how == Draw::Exact { 1e-6 } else { 4.0 };
                assert!(all.abs() <= bound, "{ratio:?} {how} {}: {all:.2} sigma over all positions", layers[l].name);

                // Faults: a position never kept, or all seeds alike.
                for position in [0, size as u32 - 1] {
                    let without: Vec<Vec<u32>> =
                        kept().map(|k| k.iter().copied().filter(|&p| p != position).collect()).collect();
                    assert!(fault(&position_figures(without.iter().map(|k| &k[..]), size, d), squares).is_some());
                }
                let alike = std::iter::repeat_n(kept().next().unwrap(), SEEDS as usize);
                assert!(fault(&position_figures(alike, size, d), squares).is_some());
            }
        }
    }
}

/// Too even is a fault as well: every position kept in turn.
#[test]
fn the_statistic_catches_masks_that_are_too_regular() {
    let turns: Vec<Vec<u32>> =
        (0..SEEDS as u32).map(|seed| (0..432).filter(|p| (p + seed) % 10 == 0).collect()).collect();
    assert!(fault(&position_figures(turns.iter().map(|k| &k[..]), 432, 0.1), 432.0).is_some());
    assert!(fault(&[f64::NAN, 0.0], 2.0).is_some());
}

/// Common positions of two masks of one size, standardised as those of independent masks: hypergeometric.
fn overlap(a: &[u32], b: &[u32], size: usize) -> f64 {
    let common = a.iter().filter(|position| b.binary_search(position).is_ok()).count() as f64;
    let (a, b, n) = (a.len() as f64, b.len() as f64, size as f64);
    let variance = a * b * (n - a) * (n - b) / (n * n * (n - 1.0));
    (common - a * b / n) / variance.sqrt()
}

fn kept(mask: &Mask) -> &[u32] {
    mask.kept.as_ref().unwrap()
}

#[test]
fn layers_of_one_shape_overlap_like_independent_masks() {
    let layers = net().maskable();
    for how in [Draw::Exact, Draw::Bernoulli] {
        let mut figures = Vec::new();
        for seed in 0..10 {
            let masks = draw(&layers, &Ratio::ERK, 0.1, how, seed);
            for (a, b) in (0..masks.len()).flat_map(|b| (0..b).map(move |a| (a, b))) {
                if masks[a].shape == masks[b].shape {
                    figures.push(overlap(kept(&masks[a]), kept(&masks[b]), masks[a].size()));
                }
            }
        }
        assert_eq!(figures.len(), 10 * (15 + 10 + 10)); // pairs of 6 layers of 16x16, 5 of 32x32, 5 of 64x64
        check_overlaps(&figures, &format!("{how}"));
    }
}

#[test]
fn seeds_overlap_like_independent_masks() {
    let layers = small_layers();
    // Neighbours, single bits of the key, and both ends of the range.
    let seeds = [0, 1, 2, 3, 4, 7, 8, 1 << 16, 1 << 31, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX];
    for how in [Draw::Exact, Draw::Bernoulli] {
        let drawn: Vec<_> = seeds.iter().map(|&seed| draw(&layers, &Ratio::Uniform, 0.2, how, seed)).collect();
        let mut figures = Vec::new();
        for (a, b) in (0..drawn.len()).flat_map(|b| (0..b).map(move |a| (a, b))) {
            for (a, b) in drawn[a].iter().zip(&drawn[b]) {
                figures.push(overlap(kept(a), kept(b), a.size()));
            }
        }
        check_overlaps(&figures, &format!("{how}"));
    }
    let mask = &draw(&layers, &Ratio::Uniform, 0.2, Draw::Exact, 0)[0];
    let next: Vec<u32> = kept(mask).iter().map(|p| (p + 1) % mask.size() as u32).collect();
    assert!(overlap(kept(mask), kept(mask), mask.size()) > 10.0, "one mask twice is caught");
    assert!(overlap(kept(mask), &next, mask.size()).abs() < 4.0, "neighbouring positions are independent");
}

fn check_overlaps(figures: &[f64], what: &str) {
    assert_eq!(fault(figures, figures.len() as f64), None, "{what}");
    let mean = figures.iter().sum::<f64>() / (figures.len() as f64).sqrt();
    assert!(mean.abs() <= 4.0, "{what}: mean overlap {mean:.2} sigma from independent");
}

#[test]
fn bernoulli_counts_scatter_as_they_should_and_exact_counts_do_not() {
    let layers = small_layers();
    let density = Density::from_density(0.3).unwrap();
    let wanted = layer_densities(&layers, &Ratio::ERK, density).unwrap();
    let (mut figures, mut totals) = (Vec::new(), Vec::new());
    for seed in 0..SEEDS {
        let masks = draw(&layers, &Ratio::ERK, 0.3, Draw::Bernoulli, seed);
        let (mut off, mut variance) = (0.0, 0.0);
        for (mask, d) in masks.iter().zip(&wanted).filter(|(_, d)| **d < 1.0) {
            let (count, n) = (mask.nnz() as f64, mask.size() as f64);
            figures.push((count - n * d) / (n * d * (1.0 - d)).sqrt());
            off += count - n * d;
            variance += n * d * (1.0 - d);
        }
        totals.push(off / variance.sqrt());
    }
    assert_eq!(fault(&figures, figures.len() as f64), None);
    assert_eq!(fault(&totals, totals.len() as f64), None);
    // The same test refuses counts that do not scatter.
    let exact = draw(&layers, &Ratio::ERK, 0.3, Draw::Exact, 0);
    let size = |m: &Mask| m.size() as f64;
    let still = exact
        .iter()
        .filter(|m| m.kept.is_some())
        .map(|m| (m.nnz() as f64 - size(m) * m.density) / (size(m) * m.density * (1.0 - m.density)).sqrt());
    let still: Vec<_> = still.cycle().take(figures.len()).collect();
    assert!(fault(&still, still.len() as f64).is_some());
}

/// Two-sample Kolmogorov-Smirnov: probability of a distance at least this large if both are drawn alike.
fn kolmogorov_smirnov(a: &mut [f64], b: &mut [f64]) -> f64 {
    a.sort_by(f64::total_cmp);
    b.sort_by(f64::total_cmp);
    let (mut i, mut j, mut distance) = (0, 0, 0.0f64);
    while i < a.len() && j < b.len() {
        if a[i] <= b[j] {
            i += 1
        } else {
            j += 1
        } // no two normal values are equal
        distance = distance.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    let effective = (a.len() as f64 * b.len() as f64 / (a.len() + b.len()) as f64).sqrt();
    let x = (effective + 0.12 + 0.11 / effective) * distance; // Stephens' correction for finite samples
    let sum: f64 = (1..101)
        .map(f64::from)
        .map(|k| {
            let sign = if k % 2.0 == 1.0 { 1.0 } else { -1.0 };
            sign * (-2.0 * k * k * x * x).exp()
        })
        .sum();
    if x < 0.2 { 1.0 } else { (2.0 * sum).clamp(0.0, 1.0) }
}

/// What is wrong with p-values that should be uniform: too many small ones, one far too small, or their own distribution.
fn p_fault(p: &[f64]) -> Option<String> {
    let n = p.len() as f64;
    for level in [0.001, 0.01, 0.05, 0.25, 0.5] {
        let below = p.iter().filter(|p| **p <= level).count() as f64;
        let bound = n * level + 4.0 * (n * level * (1.0 - level)).sqrt() + 1.0;
        if below > bound {
            return Some(format!("{below} of {n} p-values up to {level}, bound {bound:.1}"));
        }
    }
    let least = p.iter().fold(1.0, |m: f64, p| if p.is_nan() { f64::NAN } else { m.min(*p) });
    (!(least * n > 6.3e-5)).then(|| format!("least p-value of {n}: {least:e}"))
}

#[test]
fn kept_and_pruned_initial_values_are_distributed_alike() {
    let graph = net();
    let names = ["conv.weight", "segment0.block1.conv2.weight", "segment1.block0.conv1.weight"];
    let layers: Vec<_> = graph.maskable().into_iter().filter(|l| names.contains(&l.name.as_str())).collect();
    let (mut by_mask, mut by_size) = (Vec::new(), Vec::new());
    for seed in 0..100 {
        for mask in draw(&layers, &Ratio::Uniform, 0.1, Draw::Exact, seed) {
            let param = graph.params().iter().position(|p| p.name == mask.name).unwrap();
            let values = graph.init_values(param, None, seed); // one seed for both, as a run derives them
            assert_eq!(values.len(), mask.size());
            let stored = graph.init_values(param, mask.kept.as_deref(), seed);
            let split = |keep: &dyn Fn(usize) -> bool| -> (Vec<f64>, Vec<f64>) {
                let (a, b): (Vec<_>, Vec<_>) = (0..values.len()).partition(|&i| keep(i));
                (a.iter().map(|&i| values[i]).collect(), b.iter().map(|&i| values[i]).collect())
            };
            let (mut in_mask, mut out) = split(&|i| kept(&mask).binary_search(&(i as u32)).is_ok());
            assert_eq!(in_mask, stored, "{}: a kept position starts at its dense value", mask.name);
            by_mask.push(kolmogorov_smirnov(&mut in_mask, &mut out));
            // What must be caught: a mask that leans on the values, here by preferring large ones slightly.
            let lean = Stream::new(seed, Purpose::Mask, "lean");
            let spread = values.iter().map(|v| v * v).sum::<f64>().sqrt() / (values.len() as f64).sqrt();
            let (mut large, mut rest) = split(&|i| lean.uniform(i as u64) < 0.1 + 0.03 * (values[i] / spread));
            by_size.push(kolmogorov_smirnov(&mut large, &mut rest));
        }
    }
    assert_eq!(by_mask.len(), 300);
    assert_eq!(p_fault(&by_mask), None);
    assert!(p_fault(&by_size).is_some());
}

#[test]
fn streams_are_keyed_by_purpose_name_and_seed_alone() {
    let graph = net();
    let layers = graph.maskable();
    let hashes = |layers: &[Maskable], seed| -> Vec<String> {
        draw(layers, &Ratio::Uniform, 0.1, Draw::Bernoulli, seed).iter().map(mask_hash).collect()
    };
    // Other layers and their order do not change a layer's mask; another seed changes every mask.
    let all = hashes(&layers, 5);
    let backwards: Vec<_> = layers.iter().rev().cloned().collect();
    assert!(hashes(&backwards, 5).iter().rev().eq(all.iter()));
    assert_eq!(hashes(&layers[3..4], 5)[0], all[3]);
    assert!(hashes(&layers, 6).iter().zip(&all).all(|(a, b)| a != b));
    // Masks of two seeds select from the same initial values: where both keep a position, it starts at the same value.
    let (a, b) = (draw(&layers, &Ratio::ERK, 0.5, Draw::Exact, 1), draw(&layers, &Ratio::ERK, 0.5, Draw::Exact, 2));
    let mut common = 0;
    for (a, b) in a.iter().zip(&b).filter(|(a, _)| a.kept.is_some()) {
        let param = graph.params().iter().position(|p| p.name == a.name).unwrap();
        let (values_a, values_b) =
            (graph.init_values(param, a.kept.as_deref(), 9), graph.init_values(param, b.kept.as_deref(), 9));
        for (position, value) in kept(a).iter().zip(values_a) {
            if let Ok(at) = kept(b).binary_search(position) {
                assert_eq!(value.to_bits(), values_b[at].to_bits());
                common += 1;
            }
        }
    }
    assert!(common > 30_000, "{common}");
}
