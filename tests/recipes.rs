//! Every recipe loads, resolves and trains three steps as `train` does it: masks, loader, augmentation, warm-up, schedule and
//! checkpoint; on images of a reduced size.

#[path = "data_support/mod.rs"]
mod data_support;

use data_support::{npy, npz};
use sparse_engine::config::{Overrides, recipes, resolve};
use sparse_engine::report::Summary;
use sparse_engine::sparsity::Ratio;
use sparse_engine::train::{Device, EpochInfo, Observer, OnDevice, Options, StartInfo, StepInfo, train};
use std::path::Path;

const SIDE: usize = 16;

/// 16 training images of two classes: three batches and more, without four images to validate, too, and GraSP's samples.
fn data(folder: &Path, channels: usize) -> String {
    let pixels: Vec<u8> = (0..16 * channels * SIDE * SIDE).map(|i| (i * i / 7 % 251) as u8).collect();
    let images =
        |n: usize| npy("|u1", &format!("({n}, {SIDE}, {SIDE}, {channels})"), &pixels[..n * channels * SIDE * SIDE]);
    let labels = |n: usize| npy("|u1", &format!("({n},)"), &(0..n).map(|i| i as u8 % 2).collect::<Vec<_>>());
    let path = folder.join(format!("{channels}.npz"));
    let arrays = [("x_train", images(16)), ("y_train", labels(16)), ("x_test", images(4)), ("y_test", labels(4))];
    std::fs::write(&path, npz(&arrays, false)).unwrap();
    path.display().to_string()
}

/// Stops a run after its third step.
#[derive(Default)]
struct ThreeSteps {
    /// Weights kept, and how many there are to prune.
    kept: (u64, u64),
    losses: Vec<f64>,
}

impl Observer for ThreeSteps {
    fn start(&mut self, info: &StartInfo) {
        self.kept = (info.nnz, info.maskable);
    }
    fn step(&mut self, p: &StepInfo) {
        self.losses.push(p.loss);
    }
    fn epoch(&mut self, _: &EpochInfo) {}
    fn finish(&mut self, _: &Summary) {}
    fn stop_requested(&self) -> bool {
        self.losses.len() == 3
    }
}

fn three_steps(family: &str, channels: usize) {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path(), channels);
    let of_family: Vec<_> = recipes().iter().filter(|r| r.family == family).collect();
    assert!(!of_family.is_empty());
    for recipe in of_family {
        let name = &recipe.name;
        let mut set = vec!["batch_size=4".to_string()];
        let validates = recipe.text.contains("validation = 5000") && !name.contains("50k");
        if validates {
            set.push("validation=4".into());
        }
        match recipe.set.get("method").and_then(|m| m.as_str()) {
            Some("snip") => set.push("score_samples=4".into()),
            Some("grasp") => set.push("score_samples_per_class=2".into()),
            _ => {}
        }
        let overrides = Overrides { set, data: Some(data.clone()), ..Overrides::default() };
        let config = resolve(Some(name), None, &overrides).unwrap_or_else(|e| panic!("{name}: {e}")).config;
        let out = folder.path().join(name);
        std::fs::create_dir(&out).unwrap();
        let options = Options {
            out: out.clone(),
            resume: None,
            plan: None,
            on: OnDevice { device: Device::Cpu, ..OnDevice::default() },
            threads: 1,
            checkpoint_every: None,
            watch_every: Options::WATCH_EVERY,
            command_line: vec![],
        };
        let mut watch = ThreeSteps::default();
        let stopped = train(&config, &options, &mut watch).expect_err(name);
        assert_eq!(stopped.exit_code(), 75, "{name}: {stopped}");
        assert!(watch.losses.len() == 3 && watch.losses.iter().all(|loss| *loss > 0.0), "{name}: {:?}", watch.losses);
        let (nnz, maskable) = watch.kept;
        let dense = config.ratio().unwrap() == Some(Ratio::Dense);
        let budget = if dense { maskable } else { config.target().unwrap().budget(maskable) };
        assert_eq!(nnz, budget, "{name}");
        assert!(out.join("last.safetensors").exists(), "{name}");
        std::fs::remove_dir_all(out).unwrap();
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
