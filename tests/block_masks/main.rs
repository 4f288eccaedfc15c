//! Masks of blocks. Here: names, and laws for any small network. `shares.rs`: budgets and which layers fall back; `draw.rs`:
//! balance and randomness; `training.rs`: a run with them.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // so that NaN fails

#[path = "../data_support/mod.rs"]
mod data_support;
mod draw;
mod shares;
#[path = "../support/mod.rs"]
mod support;
mod training;

use draw::unbalanced;
use proptest::prelude::*;
use shares::broken;
use sparse_engine::models;
use sparse_engine::sparsity::{
    BlockShape, Density, Draw, Fallback, Form, LayerShare, Mask, Maskable, Method, Pattern, Ratio, Rest, Role,
    draw_masks, draw_patterns, layer_counts, layer_densities, layer_shares, mask_hash,
};

fn density(written: f64) -> Density {
    Density::from_density(written).unwrap()
}

fn block(r: u32, c: u32) -> Pattern {
    Pattern::Block(BlockShape { r, c })
}

fn layer(name: &str, shape: &[usize]) -> Maskable {
    Maskable::new(name, shape)
}

fn network(name: &str, width: Option<usize>) -> Vec<Maskable> {
    let (channels, image, classes) = models::default_image(name).unwrap();
    models::by_name(name, width, channels, classes, image).unwrap().maskable()
}

fn networks() -> Vec<(&'static str, Vec<Maskable>)> {
    let mut all: Vec<_> = ["resnet20", "resnet110", "vgg19", "resnet18", "resnet50", "wrn50-2"]
        .into_iter()
        .map(|name| (name, network(name, None)))
        .collect();
    all.extend([("resnet20-32", network("resnet20", Some(32))), ("resnet20-64", network("resnet20", Some(64)))]);
    all
}

fn draw(layers: &[Maskable], ratio: &Ratio, d: f64, pattern: Pattern, seed: u64) -> Vec<Mask> {
    draw_patterns(layers, ratio, density(d), pattern, Draw::Exact, seed).unwrap()
}

#[test]
fn patterns_by_name() {
    for (name, pattern) in
        [("unstructured", Pattern::Unstructured), ("block:16x16", block(16, 16)), ("block:1x4096", block(1, 4096))]
    {
        assert_eq!(name.parse::<Pattern>().unwrap(), pattern);
        assert_eq!((pattern.to_string().as_str(), serde_json::to_value(pattern).unwrap()), (name, name.into()));
        assert_eq!(serde_json::from_value::<Pattern>(name.into()).unwrap(), pattern);
    }
    for bad in ["", "block", "block:", "block:16", "block:x", "block:0x16", "block:16x", "block:4097x1", "block:-1x1"] {
        let e = bad.parse::<Pattern>().unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("1 to 4096 each, such as block:16x16"), "{e}");
    }
    for bad in
        ["block:99999999999x1", "block:16x16x16", "block:1.5x2", "block:+1x1", "BLOCK:1x1", "block: 1x1", "16x16"]
    {
        assert!(bad.parse::<Pattern>().is_err(), "{bad}");
    }
    let e = draw_patterns(&[], &Ratio::ERK, density(0.5), block(2, 2), Draw::Bernoulli, 0).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("block:2x2 needs exact counts"), "{e}");
}

#[test]
fn blocks_of_positions() {
    let shape = BlockShape { r: 2, c: 1 };
    // [4, 2, 2]: 2 x 2 x 2 blocks; block 1 is row 0, column 0, tap 1: positions 1 and 5.
    assert_eq!(shape.blocks(&[4, 2, 2], &[1, 5]), Some(vec![1]));
    assert_eq!(shape.blocks(&[4, 2, 2], &[1, 5, 10, 14]), Some(vec![1, 6]));
    for bad in [&[1][..], &[1, 4], &[5, 1], &[1, 1], &[1, 5, 10, 11], &[13, 17]] {
        assert_eq!(shape.blocks(&[4, 2, 2], bad), None, "{bad:?}");
    }
    assert_eq!(shape.blocks(&[3, 2, 2], &[]), None);
    assert_eq!(shape.grid(&[4]), None);
    assert_eq!(BlockShape { r: 0, c: 1 }.grid(&[4, 4]), None);
    assert_eq!(BlockShape { r: 2, c: 4 }.grid(&[4, 4]), Some([2, 1, 1]));
}

fn small_networks() -> impl Strategy<Value = Vec<Maskable>> {
    let shape = prop_oneof![
        (1usize..7, 1usize..7, 1usize..4).prop_map(|(k, c, r)| vec![2 * k, 2 * c, r, r]),
        (1usize..3, 1usize..40).prop_map(|(k, c)| vec![k, c]),
        (1usize..40, 1usize..3, 1usize..3).prop_map(|(k, c, r)| vec![k, c, r, 1]),
        prop::collection::vec(1usize..7, 1..5),
    ];
    prop::collection::vec((shape, 1usize..4), 1..6).prop_map(|shapes| {
        let shapes = shapes.into_iter().flat_map(|(shape, times)| vec![shape; times]);
        let mut layers: Vec<_> = shapes.enumerate().map(|(l, shape)| layer(&format!("layer{l}"), &shape)).collect();
        layers[0].role = Role::First;
        layers.last_mut().unwrap().role = Role::Last;
        layers
    })
}

/// Those with pinned layers too. The first layer of a small network always has the name.
fn ratios() -> impl Strategy<Value = Ratio> {
    let part = || (1u32..1001).prop_map(|thousandths| density(f64::from(thousandths) / 1000.0));
    let rest = prop_oneof![Just(Rest::Uniform), Just(Rest::Er), Just(Rest::Erk)];
    prop_oneof![
        Just(Ratio::Uniform),
        Just(Ratio::ERK),
        Just(Ratio::UniformPlus),
        Just(Ratio::Er),
        (0.0..2.0f64).prop_map(|power| Ratio::Erk { power }),
        part().prop_map(|last| Ratio::ErkPlus { power: 1.0, last }),
        (part(), rest).prop_map(|(d, rest)| Ratio::Custom { layers: vec![("layer0".into(), d)], rest }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_small_network(
        layers in small_networks(),
        thousandths in 1u32..1001,
        ratio in ratios(),
        (r, c) in prop_oneof![(1u32..4, 1u32..4), Just((2, 2)), Just((1, 1))],
        seed: u64,
    ) {
        let d = f64::from(thousandths) / 1000.0;
        let shares = layer_shares(&layers, &ratio, density(d), block(r, c));
        let Ok(shares) = shares else {
            let e = layer_counts(&layers, &ratio, density(d)).unwrap_err();
            prop_assert_eq!(e.to_string(), shares.unwrap_err().to_string());
            return Ok(());
        };
        prop_assert_eq!(broken(&layers, &ratio, d, block(r, c), &shares), None);
        for (mask, share) in draw(&layers, &ratio, d, block(r, c), seed).iter().zip(&shares) {
            prop_assert_eq!(mask.nnz(), share.nnz);
            prop_assert_eq!(mask.kept.is_none(), share.form == Form::Dense);
            if let Form::Blocks { block, kept, .. } = share.form {
                prop_assert_eq!(unbalanced(mask, block, kept), None);
            }
        }
    }
}
