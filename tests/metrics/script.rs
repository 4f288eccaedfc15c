//! `scripts/check_eval.py` on figures of the library: it agrees with them, and finds those that are wrong.
//! Runs where SPARSE_ENGINE_PYTHON names a Python with NumPy and scikit-learn, as in `.ci/run`; skipped elsewhere.

use super::{logits, numbers};
use serde_json::{Value, json};
use sparse_engine::metrics::{Classification, auroc, max_softmax, top_k};
use sparse_engine::report::{NpzArray, Numbers, write_npz};
use std::path::Path;
use std::process::Command;

const CLASSES: usize = 10;

/// Logits of `n` images, some of them tied, some with margins that saturate.
fn drawn(n: usize, seed: u64) -> Vec<f32> {
    let mut number = numbers(seed);
    let row = |number: &mut dyn FnMut() -> f64| {
        let scale = [1.0, 4.0, 40.0, 200.0][(number() * 4.0) as usize];
        (0..CLASSES).map(|_| ((number() * 8.0).round() / 8.0 * scale) as f32).collect::<Vec<_>>()
    };
    (0..n).flat_map(|_| row(&mut number)).collect()
}

fn check(python: &str, npz: &Path, said: &Value) -> (bool, String) {
    let path = npz.with_extension("json");
    std::fs::write(&path, said.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check_eval.py");
    let output = Command::new(python).arg(script).arg(npz).arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

#[test]
fn the_script_agrees_and_finds_what_is_wrong() {
    let Ok(python) = std::env::var("SPARSE_ENGINE_PYTHON") else {
        eprintln!("skipped: SPARSE_ENGINE_PYTHON names no Python with NumPy and scikit-learn");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eval.npz");
    let n = 1_037;
    let [clean, attacked, others] = [(n, 1), (n, 2), (311, 3)].map(|(n, seed)| drawn(n, seed));
    let labels: Vec<u32> = {
        let mut number = numbers(9);
        (0..n).map(|_| (number() * CLASSES as f64) as u32).collect()
    };
    let (clean, attacked) = (logits(CLASSES, &clean, &labels), logits(CLASSES, &attacked, &labels));
    let (rows, row) = ([n, CLASSES], [n]);
    let array = |name, shape, numbers| NpzArray { name, shape, numbers };
    let arrays = [
        array("logits", &rows[..], Numbers::F32(clean.data())),
        array("labels", &row, Numbers::I64(&labels)),
        array("indices", &row, Numbers::I64(clean.indices())),
        array("ood0_logits", &rows, Numbers::F32(clean.data())),
        array("ood1_logits", &[311, CLASSES], Numbers::F32(&others)),
        array("fgsm0_logits", &rows, Numbers::F32(attacked.data())),
    ];
    write_npz(&path, &arrays).unwrap();
    let score = |logits: &[f32]| max_softmax(logits, CLASSES).unwrap();
    let auroc = |others: &[f32]| auroc(&score(clean.data()), &score(others)).unwrap();
    let mut said = serde_json::to_value(Classification::of(&clean, 15).unwrap()).unwrap();
    said["ood"] = json!([
        {"n": n, "inside": n, "auroc": auroc(clean.data())},
        {"n": 311, "inside": n, "auroc": auroc(&others)},
    ]);
    said["fgsm"] = json!([{"accuracy": top_k(&attacked, 1).unwrap(), "zero_gradient_share": 0.25}]);
    assert_eq!(said["ood"][0]["auroc"], 0.5);
    let (good, text) = check(&python, &path, &said);
    assert!(good && text.contains("figures agree to 1e-06"), "{text}");

    // Each of these alone makes one line, and so do they together.
    let figures = [
        ("/n", "n"),
        ("/accuracy", "accuracy"),
        ("/top5", "top5"),
        ("/nll", "nll"),
        ("/ece/reliability/4/lo", "ece.reliability[4].lo"),
        ("/ece/reliability/14/count", "ece.reliability[14].count"),
        ("/ece/reliability/14/confidence", "ece.reliability[14].confidence"),
        ("/ece/reliability/14/accuracy", "ece.reliability[14].accuracy"),
        ("/ece/value", "ece.value"),
        ("/ood/1/n", "ood[1].n"),
        ("/ood/1/inside", "ood[1].inside"),
        ("/ood/1/auroc", "ood[1].auroc"),
        ("/fgsm/0/accuracy", "fgsm[0].accuracy"),
    ];
    let mut wrong = said.clone();
    for (pointer, _) in figures {
        let figure = wrong.pointer_mut(pointer).unwrap();
        *figure = match figure.as_u64() {
            Some(count) => json!(count + 1),
            None => json!(figure.as_f64().unwrap() + 2e-6),
        };
    }
    let (good, text) = check(&python, &path, &wrong);
    let named: Vec<_> = text.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!((good, named), (false, figures.map(|(_, name)| name).to_vec()), "{text}");
    let mut diverged = said.clone();
    diverged["nll"] = Value::Null; // what JSON has for NaN
    let (good, text) = check(&python, &path, &diverged);
    assert!(!good && text.starts_with("nll: the JSON says None"), "{text}");
    let mut missing = said.clone();
    missing.as_object_mut().unwrap().remove("nll");
    let (good, text) = check(&python, &path, &missing);
    assert!(!good && text.contains("missing: nll"), "{text}");
    let mut unsaved = said;
    unsaved["ood"].as_array_mut().unwrap().push(json!({"n": 1, "inside": n, "auroc": 0.5}));
    let (good, text) = check(&python, &path, &unsaved);
    assert!(!good && text.contains("ood2_logits"), "{text}");
}
