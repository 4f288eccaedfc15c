//! Which blocks a layer keeps: balanced, random, a function of seed, name and count.

use super::*;
use std::collections::HashMap;

/// What is wrong with a mask that should keep `kept` blocks.
pub fn unbalanced(mask: &Mask, shape: BlockShape, kept: usize) -> Option<String> {
    let positions = mask.kept.as_ref().unwrap();
    let [rows, cols, taps] = shape.grid(&mask.shape).unwrap();
    let Some(blocks) = shape.blocks(&mask.shape, positions) else { return Some("no whole blocks".into()) };
    if blocks.len() != kept || mask.nnz() != kept * shape.weights() || mask.block != Some(shape) {
        return Some(format!("{} blocks, {kept} wanted", blocks.len()));
    }
    let (mut of_row, mut of_col) = (vec![0; rows], vec![0; cols]);
    for b in blocks {
        of_row[b as usize / taps / cols] += 1;
        of_col[b as usize / taps % cols] += 1;
    }
    let even = |counts: &[usize], n: usize| counts.iter().all(|&count| count == kept / n || count == kept.div_ceil(n));
    let some = |counts: &[usize]| counts.iter().all(|&count| count > 0);
    let good = even(&of_row, rows) && even(&of_col, cols) && some(&of_row) && some(&of_col);
    (!good).then(|| format!("rows {of_row:?} columns {of_col:?}"))
}

#[test]
fn drawn_masks_keep_what_was_shared_in_balanced_blocks() {
    let mut cases = Vec::new();
    for seed in 0..12 {
        let nets = [(Some(32), Ratio::Uniform), (Some(32), Ratio::ERK), (Some(64), Ratio::ERK)];
        cases
            .extend(nets.map(|(w, m)| (network("resnet20", w), m, [0.1, 0.2, 0.5][seed as usize % 3], (16, 16), seed)));
        cases.push((network("resnet20", None), Ratio::ERK, 0.2, (8, 4), seed));
    }
    cases.push((network("vgg19", None), Ratio::Uniform, 0.1, (16, 16), 1));
    cases.push((network("resnet50", None), Ratio::ERK, 0.1, (32, 32), 2));
    cases.push((network("wrn50-2", None), Ratio::Uniform, 0.05, (8, 8), 3));
    let mut in_blocks = 0;
    for (layers, ratio, d, (r, c), seed) in cases {
        let shares = layer_shares(&layers, &ratio, density(d), block(r, c)).unwrap();
        let masks = draw(&layers, &ratio, d, block(r, c), seed);
        for ((mask, share), layer) in masks.iter().zip(&shares).zip(&layers) {
            assert_eq!((mask.nnz(), mask.density), (share.nnz, share.density), "{}", mask.name);
            match share.form {
                Form::Blocks { block, kept, .. } => {
                    assert_eq!(unbalanced(mask, block, kept), None, "{} {:?}", layer.name, layer.shape);
                    in_blocks += 1;
                }
                form => assert_eq!((mask.block, mask.kept.is_none()), (None, form == Form::Dense)),
            }
        }
    }
    assert!(in_blocks > 500, "{in_blocks}");
}

#[test]
fn a_mask_is_a_function_of_seed_name_and_count() {
    let layers = network("resnet20", Some(64));
    let hashes = |masks: &[Mask]| masks.iter().map(mask_hash).collect::<Vec<_>>();
    let masks = draw(&layers, &Ratio::ERK, 0.1, block(16, 16), 5);
    assert_eq!(hashes(&masks), hashes(&draw(&layers, &Ratio::ERK, 0.1, block(16, 16), 5)));
    let backwards: Vec<_> = layers.iter().rev().cloned().collect();
    let mut again = draw(&backwards, &Ratio::ERK, 0.1, block(16, 16), 5);
    again.reverse();
    for (a, b) in masks.iter().zip(&again).filter(|(a, b)| a.nnz() == b.nnz() && a.block == b.block) {
        assert_eq!(mask_hash(a), mask_hash(b), "{}: the order of the layers counts", a.name);
    }
    // Alone, with the same count.
    let share = masks.iter().position(|m| m.block.is_some()).unwrap();
    let [of, kept] = [masks[share].size() / 256, masks[share].nnz() / 256];
    let alone = draw(&layers[share..share + 1], &Ratio::Uniform, kept as f64 / of as f64, block(16, 16), 5);
    assert_eq!(mask_hash(&alone[0]), mask_hash(&masks[share]));
    // Other seeds and names give other blocks.
    let other = draw(&layers, &Ratio::ERK, 0.1, block(16, 16), 6);
    assert!(masks.iter().zip(&other).all(|(a, b)| a.kept.is_none() || mask_hash(a) != mask_hash(b)));
    let twins: Vec<_> = masks.iter().filter(|m| m.block.is_some() && m.shape == [256, 256, 3, 3]).collect();
    assert!(twins.len() > 2 && twins.windows(2).all(|w| w[0].kept != w[1].kept));
    // Fixed for good: another sampler would be another experiment.
    assert_eq!(hashes(&masks)[share], "8d90a9cf2ddf0108ffa910b6cc5285d90ed7c43359c6e28f5ba1eb5d62c99c85");
}

#[test]
fn unstructured_masks_are_those_of_before_and_fallen_back_layers_have_them() {
    // The default recipe's masks, as the engine drew them before it knew blocks (commit 02f47b4).
    let layers = models::by_name("resnet20", None, 1, 10, 28).unwrap().maskable();
    let masks = draw_masks(&layers, &Ratio::ERK, density(0.1), Draw::Exact, 0).unwrap();
    assert!(masks.iter().all(|mask| mask.block.is_none()));
    assert_eq!(mask_hash(&masks[1]), "05092232a784ffdcc53e79706b685fb96ed420378311eb8aca96f1c47893f9d4");
    assert_eq!(mask_hash(&masks[20]), "b0303aeb61ba8cc9cded90f03910986c3c7f3aa6be386992fbdcaff2cbec892a");
    for draw in [Draw::Exact, Draw::Bernoulli] {
        let again = draw_patterns(&layers, &Ratio::ERK, density(0.1), Pattern::Unstructured, draw, 0).unwrap();
        assert_eq!(again, draw_masks(&layers, &Ratio::ERK, density(0.1), draw, 0).unwrap());
    }
    // Where no layer takes blocks, all is as without.
    let narrow = network("resnet20", Some(10));
    let without = draw_masks(&narrow, &Ratio::ERK, density(0.1), Draw::Exact, 0).unwrap();
    assert_eq!(draw(&narrow, &Ratio::ERK, 0.1, block(16, 16), 0), without);
    // A layer that fell back nests with its unstructured mask of another count.
    let blocks = draw(&layers, &Ratio::ERK, 0.1, block(16, 16), 0);
    let (some, more) = (&blocks[1], &masks[1]);
    assert!(some.block.is_none() && some.nnz() < more.nnz());
    let more = more.kept.as_ref().unwrap();
    assert!(some.kept.as_ref().unwrap().iter().all(|p| more.binary_search(p).is_ok()));
}

/// Sum of squares of standardised figures, in sigmas from what `free` degrees of freedom give.
fn chi_square(times: &[u32], expected: f64, free: f64) -> f64 {
    let sum: f64 = times.iter().map(|&t| (f64::from(t) - expected).powi(2) / expected).sum();
    (sum - free) / (2.0 * free).sqrt()
}

/// Each set of blocks that can be drawn from a tiny layer is drawn equally often, all counts of rows and columns included.
#[test]
fn all_balanced_sets_of_blocks_are_equally_likely() {
    const DRAWS: u32 = 20_000;
    for (grid, kept) in [([2, 2, 2], 3), ([3, 3, 1], 4), ([2, 3, 2], 4), ([2, 3, 2], 8), ([1, 3, 4], 5), ([3, 3, 1], 3)]
    {
        let [rows, cols, taps] = grid;
        let all = rows * cols * taps;
        let counts = |set: u32, of: &dyn Fn(usize) -> usize, n: usize| {
            let mut counts = vec![0; n];
            (0..all).filter(|b| set >> b & 1 == 1).for_each(|b| counts[of(b)] += 1);
            counts.iter().all(|&count| count == kept / n || count == kept.div_ceil(n))
        };
        let balanced = |set: &u32| {
            set.count_ones() as usize == kept
                && counts(*set, &|b| b / taps / cols, rows)
                && counts(*set, &|b| b / taps % cols, cols)
        };
        let mut times: HashMap<u32, u32> = (0..1u32 << all).filter(balanced).map(|set| (set, 0)).collect();
        let tiny = [layer("tiny", &[2 * rows, cols, taps])];
        let d = (1e6 * kept as f64 / all as f64).round() / 1e6; // near enough: the budget is the same
        for seed in 0..DRAWS {
            let mask = draw(&tiny, &Ratio::Uniform, d, block(2, 1), u64::from(seed)).remove(0);
            let blocks = BlockShape { r: 2, c: 1 }.blocks(&mask.shape, mask.kept.as_ref().unwrap()).unwrap();
            *times.get_mut(&blocks.iter().map(|b| 1 << b).sum()).expect("a balanced set") += 1;
        }
        let (sets, times) = (times.len(), times.into_values().collect::<Vec<_>>());
        let sigmas = chi_square(&times, f64::from(DRAWS) / sets as f64, sets as f64 - 1.0);
        assert!(sets > 5 && sigmas.abs() <= 4.0, "{grid:?}, {kept} kept, {sets} sets: {sigmas:.1} sigma");
    }
}

#[test]
fn blocks_of_a_real_layer_are_kept_equally_often_and_alone() {
    const DRAWS: usize = 4000;
    for (kept, name) in [(20, "sparse"), (86, "dense")] {
        let layers = [layer(name, &[64, 48, 3, 3])];
        let (shape, blocks) = (BlockShape { r: 16, c: 16 }, 4 * 3 * 9);
        let sets: Vec<Vec<u32>> = (0..DRAWS as u64)
            .map(|seed| {
                let d = (1e6 * f64::from(kept) / blocks as f64).round() / 1e6;
                let mask = draw(&layers, &Ratio::Uniform, d, Pattern::Block(shape), seed).remove(0);
                shape.blocks(&mask.shape, mask.kept.as_ref().unwrap()).unwrap()
            })
            .collect();
        let p = f64::from(kept) / blocks as f64;
        let mut times = vec![0u32; blocks];
        let mut pairs = vec![0u32; blocks * blocks];
        for set in &sets {
            assert_eq!(set.len(), kept as usize);
            for &a in set {
                times[a as usize] += 1;
                set.iter().filter(|&&b| b > a).for_each(|&b| pairs[a as usize * blocks + b as usize] += 1);
            }
        }
        let z = |times: u32, p: f64| (f64::from(times) - DRAWS as f64 * p) / (DRAWS as f64 * p * (1.0 - p)).sqrt();
        let worst = times.iter().map(|&t| z(t, p).abs()).fold(0.0, f64::max);
        assert!(worst <= 4.5, "{name}: a block is {worst:.1} sigma off");
        // Two blocks in different rows, columns and taps meet as often as any such two: 4 * 3 * 3 * 2 / 2 * 72 of them.
        let apart = |a: usize, b: usize| a / 27 != b / 27 && a / 9 % 3 != b / 9 % 3 && a % 9 != b % 9;
        let far: Vec<u32> = (0..blocks * blocks)
            .filter(|i| i / blocks < i % blocks && apart(i / blocks, i % blocks))
            .map(|i| pairs[i])
            .collect();
        let mean = far.iter().map(|&t| f64::from(t)).sum::<f64>() / far.len() as f64 / DRAWS as f64;
        let worst = far.iter().map(|&t| z(t, mean).abs()).fold(0.0, f64::max);
        assert!(far.len() == 36 * 72 && worst <= 5.0, "{name}: {} pairs, one {worst:.1} sigma off", far.len());
        // Whoever forgets to mix keeps diagonals: the same sets again and again.
        let mut distinct = sets.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), DRAWS, "{name}");
    }
}
