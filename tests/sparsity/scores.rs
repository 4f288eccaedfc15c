//! Masks from scores, and masks that a file gives.

use super::{density, nets, resnet};
use proptest::prelude::*;
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::sparsity::{
    BlockShape, Draw, Form, GivenMask, Mask, Maskable, Pattern, Positions, Ratio, draw_masks, given_masks,
    layer_counts, layer_densities, layer_shares, mask_hash, scored_masks, top_scores,
};

fn random_scores(layers: &[Maskable], seed: u64) -> Vec<Vec<f64>> {
    let scores = |l: &Maskable| {
        let stream = Stream::new(seed, Purpose::Data, &l.name);
        (0..l.size() as u64).map(|i| stream.uniform(i) * 10f64.powi((i % 7) as i32 - 300)).collect()
    };
    layers.iter().map(scores).collect()
}

/// All pairs sorted.
fn by_sorting(scores: &[Vec<f64>], budget: usize) -> Vec<Vec<u32>> {
    let mut all: Vec<(usize, usize)> =
        scores.iter().enumerate().flat_map(|(l, s)| (0..s.len()).map(move |i| (l, i))).collect();
    all.sort_by(|&(l, i), &(m, j)| scores[m][j].partial_cmp(&scores[l][i]).unwrap()); // stable
    let mut kept = vec![Vec::new(); scores.len()];
    all.into_iter().take(budget).for_each(|(l, i)| kept[l].push(i as u32));
    kept.iter_mut().for_each(|kept| kept.sort());
    kept
}

#[test]
fn ties_go_to_the_first() {
    let layers = [Maskable::new("a", [2, 2]), Maskable::new("b", [3])];
    let scores = [vec![1.0, 0.0, -0.0, 1.0], vec![1.0, -2.0, 0.0]];
    for (budget, want) in [
        (0, [&[][..], &[]]),
        (1, [&[0], &[]]),
        (2, [&[0, 3], &[]]),
        (3, [&[0, 3], &[0]]),
        (4, [&[0, 1, 3], &[0]]),
        (5, [&[0, 1, 2, 3], &[0]]),
        (6, [&[0, 1, 2, 3], &[0, 2]]),
        (7, [&[0, 1, 2, 3], &[0, 1, 2]]),
    ] {
        assert_eq!(top_scores(&layers, &scores, budget).unwrap(), want, "{budget}");
    }
    let extremes = [vec![f64::MIN, f64::MIN_POSITIVE, -5e-324, 5e-324], vec![f64::MAX, 0.0, -f64::MIN_POSITIVE]];
    assert_eq!(top_scores(&layers, &extremes, 3).unwrap(), [vec![1, 3], vec![0]]);
    assert_eq!(top_scores(&layers, &extremes, 6).unwrap(), [vec![1, 2, 3], vec![0, 1, 2]]);
    assert_eq!(top_scores(&[], &[], 0).unwrap(), Vec::<Vec<u32>>::new());
}

#[test]
fn scores_that_rank_nothing() {
    let layers = [Maskable::new("a", [2, 2]), Maskable::new("b", [3])];
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let e = top_scores(&layers, &[vec![0.0; 4], vec![0.0, bad, 0.0]], 2).unwrap_err();
        assert_eq!(e.exit_code(), 1);
        assert!(e.to_string().contains(&format!("layer b [3]: the score of weight 1 is {bad}")), "{e}");
    }
    for (scores, part) in [
        (vec![vec![0.0; 4]], "wanted those of 2 layers, got 1"),
        (vec![vec![0.0; 4], vec![0.0; 4]], "layer b [3]: wanted 3 scores, got 4"),
        (vec![vec![0.0; 4], vec![0.0; 3]], "the best 8 of 7 weights"),
    ] {
        let e = top_scores(&layers, &scores, 8).unwrap_err();
        assert!(e.to_string().contains(part), "{e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_by_sorting(
        scores in prop::collection::vec(prop::collection::vec(
            prop_oneof![(-3i32..4).prop_map(f64::from), any::<f64>().prop_filter("finite", |x| x.is_finite())], 1..20), 1..6),
        share in 0.0..1.0f64,
    ) {
        let layers: Vec<_> = (0..).zip(&scores).map(|(l, s)| Maskable::new(format!("layer{l}"), [s.len()])).collect();
        let budget = (share * (scores.iter().map(Vec::len).sum::<usize>() + 1) as f64) as usize;
        let kept = top_scores(&layers, &scores, budget as u64).unwrap();
        prop_assert_eq!(&kept, &by_sorting(&scores, budget));

        let masks = scored_masks(&layers, &kept, Positions::Keep, Pattern::Unstructured, Draw::Exact, 0);
        let Some(dead) = kept.iter().position(Vec::is_empty) else {
            for (mask, kept) in masks.unwrap().iter().zip(&kept) {
                prop_assert_eq!(mask.nnz(), kept.len());
                prop_assert_eq!(mask.density, kept.len() as f64 / mask.size() as f64);
                prop_assert_eq!(mask.kept.as_deref(), (kept.len() < mask.size()).then_some(&kept[..]));
            }
            return Ok(());
        };
        let text = masks.unwrap_err().to_string();
        prop_assert!(budget == 0 || text.contains(&format!("layer layer{dead} ")), "{}", text);
    }
}

#[test]
fn a_score_decides_counts_and_the_draw_decides_positions() {
    let net = resnet(20, 16, 3, 10, 32);
    let (scores, d) = (random_scores(&net.layers, 1), density(0.1));
    let kept = top_scores(&net.layers, &scores, d.budget(270_896)).unwrap();
    assert_eq!(kept, by_sorting(&scores, 27_090));
    let masks = |positions, pattern, draw, seed| scored_masks(&net.layers, &kept, positions, pattern, draw, seed);
    let single = Pattern::Unstructured;
    let drawn = masks(Positions::Draw, single, Draw::Exact, 3).unwrap();
    let own = masks(Positions::Keep, single, Draw::Exact, 3).unwrap();
    assert_eq!(own, masks(Positions::Keep, single, Draw::Exact, 4).unwrap());
    for ((drawn, own), kept) in drawn.iter().zip(&own).zip(&kept) {
        assert_eq!((drawn.nnz(), own.nnz()), (kept.len(), kept.len()));
        assert_eq!(own.kept.as_deref(), Some(&kept[..]));
        assert!((drawn.density, &drawn.name) == (own.density, &own.name) && drawn.kept != own.kept);
    }
    // A layer's drawn positions are those of any other ratio with that count: nested with ERK's of the same seed.
    let erk = draw_masks(&net.layers, &Ratio::ERK, d, Draw::Exact, 3).unwrap();
    for (a, b) in drawn.iter().zip(&erk) {
        let (inner, outer) = if a.nnz() <= b.nnz() { (a, b) } else { (b, a) };
        assert!(nets::contains(outer, inner), "{}", a.name);
    }
    // Tossed with each layer's share; in blocks near it.
    let tossed = masks(Positions::Draw, single, Draw::Bernoulli, 3).unwrap();
    for (tossed, kept) in tossed.iter().zip(&kept) {
        let sigma = (kept.len() as f64 * (1.0 - tossed.density)).sqrt();
        assert!((tossed.nnz() as f64 - kept.len() as f64).abs() <= 5.0 * sigma + 1.0, "{}", tossed.name);
    }
    let blocks = Pattern::Block(BlockShape { r: 4, c: 4 });
    let in_blocks = masks(Positions::Draw, blocks, Draw::Exact, 3).unwrap();
    assert_eq!(in_blocks.iter().map(Mask::nnz).sum::<usize>(), 27_090);
    assert!(in_blocks.iter().filter(|m| m.block.is_some()).count() > 10);
    for (mask, kept) in in_blocks.iter().zip(&kept) {
        assert!(mask.nnz().abs_diff(kept.len()) <= kept.len() / 10 + 1, "{}", mask.name);
    }
    for (pattern, draw, part) in
        [(blocks, Draw::Exact, "pattern block:4x4"), (single, Draw::Bernoulli, "bernoulli mask draw")]
    {
        let e = masks(Positions::Keep, pattern, draw, 3).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(part) && e.to_string().contains("positions draw"), "{e}");
    }
}

#[test]
fn a_layer_that_no_score_reaches_is_named() {
    let net = resnet(20, 16, 3, 10, 32);
    let mut scores = random_scores(&net.layers, 2);
    scores[5].fill(-1.0);
    let kept = top_scores(&net.layers, &scores, 27_090).unwrap();
    for positions in [Positions::Draw, Positions::Keep] {
        let e = scored_masks(&net.layers, &kept, positions, Pattern::Unstructured, Draw::Exact, 0).unwrap_err();
        let text = e.to_string();
        assert!(e.exit_code() == 2 && text.contains(&format!("layer {} [16, 16, 3, 3]", net.layers[5].name)), "{text}");
        assert!(text.contains("2304") && text.contains("density of 0.1 all"), "{text}");
        assert!(text.contains("use a higher density, more samples, or another method"), "{text}");
    }
    let none = vec![Vec::new(); net.layers.len()];
    assert!(scored_masks(&net.layers, &none, Positions::Draw, Pattern::Unstructured, Draw::Exact, 0).is_err());
    assert!(scored_masks(&net.layers, &kept[1..], Positions::Draw, Pattern::Unstructured, Draw::Exact, 0).is_err());
}

#[test]
fn given_counts_are_a_ratio() {
    let layers = [Maskable::new("a", [4, 5]), Maskable::new("b", [10]), Maskable::new("c", [3, 3])];
    let counts = |a, b, c| Ratio::Counts(vec![a, b, c]);
    let d = density(18.0 / 39.0);
    assert_eq!(layer_counts(&layers, &counts(4, 10, 4), d).unwrap(), [4, 10, 4]);
    assert_eq!(layer_densities(&layers, &counts(4, 10, 4), d).unwrap(), [0.2, 1.0, 4.0 / 9.0]);
    let shares = layer_shares(&layers, &counts(4, 10, 4), d, Pattern::Unstructured).unwrap();
    assert_eq!(shares[1].form, Form::Dense);
    for (ratio, part) in [
        (counts(4, 10, 5), "keep 19 weights, but density"),
        (counts(0, 10, 8), "layer a [4, 5] would keep none of its 20 weights"),
        (counts(4, 11, 3), "layer b [10]: wanted 1 to 10 weights kept, got 11"),
        (Ratio::Counts(vec![18]), "wanted one for each of 3 layers, got 1"),
    ] {
        let e = layer_counts(&layers, &ratio, d).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(part), "{e}");
    }
}

fn given(name: &str, shape: &[usize], kept: &[u32]) -> GivenMask {
    GivenMask { name: name.into(), shape: shape.to_vec(), kept: kept.to_vec() }
}

#[test]
fn masks_of_a_file() {
    let layers =
        [Maskable::new("a.weight", [2, 4]), Maskable::new("b.weight", [3, 1]), Maskable::new("c.weight", [2, 2])];
    let pattern = Pattern::Block(BlockShape { r: 2, c: 1 });
    // In any order; not named is dense, and so is all kept.
    let file = [given("c.weight", &[2, 2], &[0, 1, 2, 3]), given("a.weight", &[2, 4], &[1, 3, 5, 7])];
    let masks = given_masks(&layers, &file, pattern).unwrap();
    let kept: Vec<_> = masks.iter().map(|m| m.kept.as_deref()).collect();
    assert_eq!(kept, [Some(&[1, 3, 5, 7][..]), None, None]);
    assert_eq!(masks.iter().map(|m| m.density).collect::<Vec<_>>(), [0.5, 1.0, 1.0]);
    assert_eq!(masks.iter().map(|m| m.block).collect::<Vec<_>>(), [pattern.block(), None, None]);
    let plain = given_masks(&layers, &file, Pattern::Unstructured).unwrap();
    assert!(plain.iter().all(|m| m.block.is_none()));
    assert!(plain.iter().zip(&masks).all(|(a, b)| mask_hash(a) == mask_hash(b)));
    // What was drawn is given back.
    let net = resnet(20, 16, 3, 10, 32);
    let drawn = draw_masks(&net.layers, &Ratio::ERK, density(0.1), Draw::Exact, 7).unwrap();
    let file: Vec<_> = drawn.iter().filter_map(|m| Some(given(&m.name, &m.shape, m.kept.as_deref()?))).collect();
    assert!(file.len() > 10 && file.len() < drawn.len());
    let back = given_masks(&net.layers, &file, Pattern::Unstructured).unwrap();
    assert!(back.iter().zip(&drawn).all(|(a, b)| mask_hash(a) == mask_hash(b)));

    let a = |kept: &[u32]| vec![given("a.weight", &[2, 4], kept)];
    for (file, part) in [
        (vec![given("a.wieght", &[2, 4], &[0])], "no such maskable tensor; did you mean a.weight?"),
        (
            vec![given("layer4.0.conv1", &[2, 4], &[0])],
            "mask \"layer4.0.conv1\": the network has no such maskable tensor",
        ),
        (vec![given("a.weight", &[4, 2], &[0])], "wanted shape [2, 4], got [4, 2]"),
        (vec![given("a.weight", &[2, 4], &[0]), given("a.weight", &[2, 4], &[1])], "a.weight stands twice"),
        (a(&[]), "layer a.weight [2, 4] would keep none of its 8 weights"),
        (a(&[0, 8]), "kept position 8 is outside its 8 weights"),
        (a(&[0, 3, 3]), "must ascend, got 3 before 3"),
        (a(&[0, 3, 1]), "must ascend, got 3 before 1"),
        (a(&[0, 1, 2, 3, 4, 5, 6, 7, 7]), "must ascend"),
    ] {
        let e = given_masks(&layers, &file, Pattern::Unstructured).unwrap_err();
        assert!(e.contains(part) && !e.contains('\n'), "{e}");
    }
}
