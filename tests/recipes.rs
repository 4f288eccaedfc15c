//! Every recipe loads, resolves, draws its masks and trains three steps, on images of a reduced size.

#[path = "data_support/mod.rs"]
mod data_support;

use data_support::{npy, npz};
use sparse_engine::backend::SgdStep;
use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::config::{Overrides, recipes, resolve};
use sparse_engine::graph::Net;
use sparse_engine::train::Beginning;

const BATCH: usize = 4;
const SIDE: usize = 16;

/// 24 training images of two classes, enough for a batch, three images to validate and GraSP's samples.
fn data(folder: &std::path::Path, channels: usize) -> String {
    let pixels: Vec<u8> = (0..24 * channels * SIDE * SIDE).map(|i| (i * i / 7 % 251) as u8).collect();
    let images =
        |n: usize| npy("|u1", &format!("({n}, {SIDE}, {SIDE}, {channels})"), &pixels[..n * channels * SIDE * SIDE]);
    let labels = |n: usize| npy("|u1", &format!("({n},)"), &(0..n).map(|i| i as u8 % 2).collect::<Vec<_>>());
    let path = folder.join(format!("{channels}.npz"));
    let arrays = [("x_train", images(24)), ("y_train", labels(24)), ("x_test", images(8)), ("y_test", labels(8))];
    std::fs::write(&path, npz(&arrays, false)).unwrap();
    path.display().to_string()
}

fn three_steps(family: &str, channels: usize) {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path(), channels);
    let of_family: Vec<_> = recipes().iter().filter(|r| r.family == family).collect();
    assert!(!of_family.is_empty());
    for recipe in of_family {
        let mut set = vec![format!("batch_size={BATCH}"), "epochs=100".into()];
        if recipe.text.contains("validation = 5000") && !recipe.name.contains("50k") {
            set.push("validation=3".into());
        }
        match recipe.set.get("method").and_then(|m| m.as_str()) {
            Some("snip") => set.push("score_samples=8".into()),
            Some("grasp") => set.push("score_samples_per_class=4".into()),
            _ => {}
        }
        let overrides = Overrides { set, data: Some(data.clone()), ..Overrides::default() };
        let name = &recipe.name;
        let config = resolve(Some(name), None, &overrides).unwrap_or_else(|e| panic!("{name}: {e}")).config;
        let begun = Beginning::of(&config, 1).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut net = Net::new(&begun.graph, &begun.masks, BATCH, |spec| CpuBackend::new(spec, 1)).unwrap();
        net.init(&begun.graph, config.seed.init);
        let labels: Vec<u32> = (0..BATCH as u32).map(|i| i % 2).collect();
        let images: Vec<f32> = (0..BATCH * channels * SIDE * SIDE).map(|i| (i as f32 * 0.7).sin()).collect();
        for step in 0..3 {
            let loss = net.forward_backward(&images, &labels, config.label_smoothing).loss_sum;
            assert!(loss.is_finite() && loss > 0.0, "{}: loss {loss} at step {step}", recipe.name);
            let (momentum, weight_decay, nesterov) = (config.momentum, config.weight_decay, config.nesterov);
            net.sgd(SgdStep { lr: 0.01 * config.lr, momentum, weight_decay, nesterov });
        }
        let dense = config.ratio().unwrap() == Some(sparse_engine::sparsity::Ratio::Dense);
        let (nnz, size) = begun.masks.iter().fold((0, 0), |(n, s), m| (n + m.nnz() as u64, s + m.size() as u64));
        let budget = if dense { size } else { config.target().unwrap().budget(size) };
        assert_eq!(nnz, budget, "{}", recipe.name);
    }
}

#[test]
fn fashion_mnist() {
    three_steps("fashion-mnist", 1);
}

#[test]
fn cifar10() {
    three_steps("cifar10", 3);
}

#[test]
fn cifar100() {
    three_steps("cifar100", 3);
}

#[test]
fn imagenet() {
    three_steps("imagenet", 3);
}
