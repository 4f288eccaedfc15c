//! Metrics against scikit-learn, PyTorch and NumPy (`scripts/make_metrics_fixture.py`), and by hand where these have no rule.
#![allow(clippy::neg_cmp_op_on_partial_ord)] // so that NaN fails

mod attack;
mod classes;
mod flops;
mod gradients;
mod npz;
mod ranks;
mod script;

use sparse_engine::metrics::Logits;

/// tests/fixtures/metrics.json.
#[derive(serde::Deserialize)]
struct Fixture {
    classification: Vec<classes::Case>,
    auroc: Vec<ranks::Case>,
    fgsm: attack::Case,
    gradient_norms: gradients::Case,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../fixtures/metrics.json")).unwrap()
}

#[track_caller]
fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance, "{what}: got {got}, want {want} +- {tolerance}");
}

/// Images numbered from 0.
fn logits(classes: usize, data: &[f32], labels: &[u32]) -> Logits {
    let indices: Vec<u32> = (0..labels.len() as u32).collect();
    let mut logits = Logits::new(classes);
    logits.push(data, labels, &indices).unwrap();
    logits
}

/// Numbers that look random and are the same everywhere: bits of a linear congruence, in [0, 1).
fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}
