//! What would not fit into memory is refused, and what GraSP announces is what it takes.

#[path = "data_support/mod.rs"]
mod data_support;
mod support;

use peak_alloc::PeakAlloc;
use sparse_engine::models;
use sparse_engine::saliency::{Batch, ScoreNet};
use support::{Lab, program, run};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

#[test]
fn too_much_is_refused_before_it_is_tried() {
    let lab = Lab::new();
    let file = lab.path("vast.toml");
    let vast = "layers = [{ op = \"repeat\", times = 900, layers = [{ op = \"conv\", channels = 60000, kernel = 1 }] }, \
                { op = \"pool\" }, { op = \"linear\" }]";
    std::fs::write(&file, vast).unwrap();
    let model = format!("model={}", file.display());
    for method in ["method=erk", "method=snip", "method=grasp"] {
        let mut mask = program(&["mask", "--config"]);
        mask.arg(lab.config_file()).args(["--set", &model, "--set", method]).arg("--out").arg(lab.path("none"));
        run(&mut mask).refused(1, &["out of memory: ", " GiB are free: make the"]);
        assert!(!lab.path("none").exists());
    }
    run(lab.train("none").args(["--set", &model])).refused(1, &["out of memory: "]);
    // Few weights, endless activations.
    let deep = "layers = [{ op = \"conv\", channels = 20000 }, { op = \"repeat\", times = 900, layers = [ \
                { op = \"repeat\", times = 10, layers = [{ op = \"bn\" }, { op = \"add\", with = \"input\" }] }] }, \
                { op = \"pool\" }, { op = \"linear\" }]";
    std::fs::write(&file, deep).unwrap();
    for (method, advice) in [("method=grasp", "score_samples_per_class"), ("method=erk", "batch size")] {
        run(lab.train("none").args(["--set", &model, "--set", method])).refused(1, &["out of memory: ", advice]);
        assert!(!lab.path("none").join("last.safetensors").exists());
    }
}

/// Everything else of this file runs in processes of its own, or holds little.
#[test]
fn grasp_takes_what_it_announces() {
    // Mostly activations; mostly weights.
    for (model, width, side, images) in [("resnet20", Some(16), 32, 24), ("resnet18", None, 32, 2)] {
        let graph = models::by_name(model, width, 3, 10, side).unwrap();
        let values: Vec<Vec<f64>> = (0..graph.params().len()).map(|i| graph.init_values(i, None, 1)).collect();
        let pixels: Vec<f32> = (0..images * 3 * side * side).map(|i| (i as f32).sin()).collect();
        let labels: Vec<u32> = (0..images as u32).map(|i| i % 10).collect();
        let net = ScoreNet::new(&graph, &values, 2).unwrap();
        let part = Batch { images: &pixels, labels: &labels };
        let held = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        net.grasp(&[part, part], 200.0).unwrap();
        let (taken, announced) = (MEMORY.peak_usage() - held, net.grasp_bytes(images) as usize);
        assert!(taken <= announced && announced < 2 * taken, "{model}: took {taken}, announced {announced}");
    }
}
