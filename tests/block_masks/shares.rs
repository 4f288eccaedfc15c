//! What each layer keeps: budgets, and which layers fall back.

use super::*;
use std::collections::HashMap;

/// What is wrong with the shares of a network: every rule, with targets from the formula's densities in f64.
pub fn broken(layers: &[Maskable], ratio: &Ratio, d: f64, pattern: Pattern, shares: &[LayerShare]) -> Option<String> {
    let all: u64 = layers.iter().map(|l| l.size() as u64).sum();
    let kept: u64 = shares.iter().map(|s| s.nnz as u64).sum();
    if kept != density(d).budget(all) {
        return Some(format!("{kept} of {all} kept"));
    }
    let densities = layer_densities(layers, ratio, density(d)).unwrap();
    let shape = pattern.block().unwrap();
    // Pinned layers keep whole weights, which moves the others' targets off their densities by no more than this together.
    let pinned = match ratio {
        Ratio::UniformPlus | Ratio::ErkPlus { .. } => 1,
        Ratio::Custom { layers: map, .. } => densities.iter().filter(|d| **d == map[0].1.value()).count(),
        _ => 0,
    };
    let moved = pinned as f64 / 2.0;
    let turned = shares.iter().any(|s| s.form == Form::Unstructured(Some(Fallback::Budget)));
    for ((l, share), wanted) in layers.iter().zip(shares).zip(densities) {
        let target = wanted * l.size() as f64;
        let near = |weights: usize, slack: f64| (weights as f64 - target).abs() <= 0.1 * target + slack + 1e-6;
        let whole = |[rows, cols, _]: [usize; 3], target: f64| {
            let half_up = (target / shape.weights() as f64 + 0.5 + 1e-9).floor() as usize;
            half_up.max(rows).max(cols)
        };
        let grid = shape.grid(&l.shape);
        let good = share.density == wanted
            && match share.form {
                Form::Dense => share.nnz == l.size() && near(share.nnz, 1.0 + moved),
                Form::Blocks { block, kept, of } => {
                    let fits = |grid: [usize; 3]| {
                        let range = whole(grid, target - moved)..=whole(grid, target + moved);
                        range.contains(&kept) && of == grid.iter().product::<usize>()
                    };
                    block == shape
                        && grid.is_some_and(fits)
                        && share.nnz == kept * shape.weights()
                        && near(share.nnz, 1.1 * moved)
                }
                Form::Unstructured(Some(why)) => {
                    let by_itself = match (why, grid) {
                        (Fallback::Channels, grid) => grid.is_none(),
                        (Fallback::Density, Some(grid)) => [-moved, 0.0, moved]
                            .iter()
                            .any(|by| !near(whole(grid, target + by) * shape.weights(), -1.1 * moved - 1e-5)),
                        (Fallback::Budget, Some(grid)) => [-moved, 0.0, moved]
                            .iter()
                            .any(|by| near(whole(grid, target + by) * shape.weights(), 1.1 * moved)),
                        _ => false,
                    };
                    by_itself && share.nnz >= 1 && share.nnz < l.size() && near(share.nnz, 1.0 + 1.1 * moved)
                }
                Form::Unstructured(None) => false,
            };
        if !good {
            return Some(format!("{} {:?}: {share:?}, target {target}; turned {turned}", l.name, l.shape));
        }
    }
    None
}

#[test]
fn every_network_meets_its_budget_and_every_layer_its_rule() {
    let mut forms = HashMap::new();
    for (name, layers) in networks() {
        let plus = Ratio::ErkPlus { power: 1.0, last: density(0.1) };
        let custom = Ratio::Custom { layers: vec![("*conv1".into(), density(0.01))], rest: Rest::Er };
        let all: &[f64] = &[0.5, 0.2, 0.1, 0.05, 0.02, 1.0 / 3.0, 0.123456];
        let some: &[f64] = &[0.2, 0.05];
        let uniform_plus = (Ratio::UniformPlus, some);
        for (ratio, densities) in [(Ratio::Uniform, all), (Ratio::ERK, all), uniform_plus, (plus, some), (custom, some)]
        {
            for &d in densities {
                for (r, c) in [(16, 16), (8, 8), (32, 32), (16, 8), (4, 64), (1, 16), (64, 1)] {
                    let shares = layer_shares(&layers, &ratio, density(d), block(r, c)).unwrap();
                    let fault = broken(&layers, &ratio, d, block(r, c), &shares);
                    assert_eq!(fault, None, "{name} {ratio:?} {d} {r}x{c}");
                    for share in shares {
                        let form = if let Form::Blocks { .. } = share.form { "blocks" } else { "other" };
                        *forms.entry((name, form)).or_insert(0) += 1;
                    }
                }
            }
        }
    }
    assert!(networks().iter().all(|(name, _)| forms[&(*name, "blocks")] > 100), "{forms:?}");
}

#[test]
fn fallbacks_by_hand() {
    let forms = |layers: &[Maskable], d: f64, pattern: Pattern| -> Vec<(Form, usize)> {
        let shares = layer_shares(layers, &Ratio::Uniform, density(d), pattern).unwrap();
        shares.into_iter().map(|s| (s.form, s.nnz)).collect()
    };
    let shape = BlockShape { r: 16, c: 16 };
    let of = |kept, of| Form::Blocks { block: shape, kept, of };
    let single = |why| Form::Unstructured(Some(why));
    let (conv, fc) = (layer("conv", &[64, 64, 3, 3]), layer("fc", &[10, 640]));
    // 18 of 144 blocks are an eighth; 14.4 are not whole, and nobody takes up the rest: 3686 single weights, 0.1 * 36864.
    assert_eq!(forms(std::slice::from_ref(&conv), 0.125, block(16, 16)), [(of(18, 144), 4608)]);
    assert_eq!(forms(std::slice::from_ref(&conv), 0.1, block(16, 16)), [(single(Fallback::Budget), 3686)]);
    // 6400 * 0.1 = 640 weights may become 704; 14 blocks leave 102.4 of 4326.4 over: too many.
    let layers = [conv.clone(), fc.clone()];
    assert_eq!(
        forms(&layers, 0.1, block(16, 16)),
        [(single(Fallback::Budget), 3686), (single(Fallback::Channels), 640)]
    );
    // With 12,800 weights they are not.
    let layers = [conv.clone(), layer("fc", &[10, 1280])];
    assert_eq!(forms(&layers, 0.1, block(16, 16)), [(of(14, 144), 3584), (single(Fallback::Channels), 1382)]);
    // One in each block row and column: 4 blocks of 16 are a quarter, so a density of 0.23 moves by 8.7 % and 0.22 by 13.6 %.
    let layers = [layer("a", &[64, 64]), layer("b", &[1000, 10])];
    assert_eq!(forms(&layers, 0.23, block(16, 16))[0].0, of(4, 16));
    assert_eq!(forms(&layers, 0.22, block(16, 16))[0].0, single(Fallback::Density));
    // A tenth exactly is allowed: 10 blocks wanted, 11 block columns.
    let layers = [layer("a", &[16, 176, 4, 5]), layer("b", &[1000, 100])];
    assert_eq!(forms(&layers, 10.0 / 220.0, block(16, 16))[0].0, of(11, 220)); // 0.045454545454545456 is a little more
    assert_eq!(forms(&layers, 0.0454545454545, block(16, 16))[0].0, single(Fallback::Density));
    // Rounded up to all of its blocks a layer is dense, and rounding never takes all of another's.
    let layers = [layer("a", &[32, 32]), layer("b", &[1000, 10])];
    assert_eq!(forms(&layers, 0.96, block(16, 16))[0], (Form::Dense, 1024));
    // No channels, no blocks; density 1 and method dense are dense.
    assert_eq!(forms(&[layer("v", &[256])], 0.5, block(16, 1))[0], (single(Fallback::Channels), 128));
    assert_eq!(forms(std::slice::from_ref(&conv), 1.0, block(16, 16))[0], (Form::Dense, 36_864));
    let dense = layer_shares(&layers, &Ratio::Dense, density(0.1), block(16, 16)).unwrap();
    assert!(dense.iter().all(|s| s.form == Form::Dense && s.density == 1.0));
    assert!(layer_shares(&[], &Ratio::ERK, density(0.1), block(16, 16)).unwrap().is_empty());
}
