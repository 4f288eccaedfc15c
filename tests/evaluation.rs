//! `eval` with all its metrics through the program, and the gradient norms that `train` logs.

#[path = "data_support/mod.rs"]
mod data_support;
mod support;

use data_support::{npy, npz};
use serde_json::Value;
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::checkpoint::Checkpoint;
use sparse_engine::data::{self, Loader};
use sparse_engine::graph::Net;
use sparse_engine::models;
use sparse_engine::report::{GradientRecord, read_lines};
use sparse_engine::sparsity::Mask;
use sparse_engine::train::train;
use std::io::Read;
use std::path::Path;
use support::{Lab, TEST, Watch, program, run, set_all};

/// A lab with a run of two epochs in "run".
fn trained(set: &[&str]) -> Lab {
    let lab = Lab::new();
    let mut c = lab.train("run");
    c.args(["--epochs", "2", "--set", "warmup_epochs=0"]);
    set_all(&mut c, set);
    run(&mut c).ok();
    lab
}

fn eval(lab: &Lab, args: &[&str]) -> Value {
    let mut c = program(&["eval", "--json"]);
    serde_json::from_str(&run(c.arg(lab.path("run")).args(args)).ok().out).unwrap()
}

/// The array `name` of an .npz, as bytes behind its header, and the header.
fn array(path: &Path, name: &str) -> (String, Vec<u8>) {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    archive.by_name(&format!("{name}.npy")).unwrap().read_to_end(&mut bytes).unwrap();
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    (String::from_utf8_lossy(&bytes[10..end]).into_owned(), bytes[end..].to_vec())
}

#[test]
fn all_metrics_at_once_agree_with_each_other() {
    let lab = trained(&[]);
    let logits = lab.path("logits.npz");
    let (own, logits_arg) = (lab.data().display().to_string(), logits.display().to_string());
    let args = ["--ood", &own, "--ood", "gaussian(0.3)", "--ood", "hein", "--ood", "uniform"];
    let more = ["--fgsm", "0,8/255,0.5", "--save-logits", &logits_arg, "--ece-bins", "7", "--batch-size", "32"];
    let e = eval(&lab, &[&args[..], &more].concat());
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v}"));
    assert_eq!(e["n"], TEST as u64);
    assert!((number(&e["nll"]) - number(&e["loss"])).abs() <= 1e-5 * number(&e["loss"]), "{e}");
    assert!(number(&e["top5"]) == 1.0, "four classes");
    let bins = e["ece"]["reliability"].as_array().unwrap();
    assert_eq!((bins.len(), &e["ece"]["bins"]), (7, &7.into()));
    let count: u64 = bins.iter().map(|b| b["count"].as_u64().unwrap()).sum();
    assert_eq!(count, TEST as u64);
    let right: f64 =
        bins.iter().filter(|b| b["count"] != 0).map(|b| number(&b["accuracy"]) * number(&b["count"])).sum();
    assert!((right - number(&e["accuracy"]) * TEST as f64).abs() < 1e-9);

    let ood = e["ood"].as_array().unwrap();
    assert_eq!(ood.len(), 4);
    assert_eq!(number(&ood[0]["auroc"]), 0.5, "the test images against themselves, exactly");
    for o in ood {
        assert_eq!((&o["n"], &o["inside"]), (&(TEST as u64).into(), &(TEST as u64).into()), "{o}");
        assert!(number(&o["auroc"]) > 0.0 && number(&o["auroc"]) < 1.0, "{o}");
    }
    assert_eq!((&ood[1]["source"], &ood[2]["source"]), (&"gaussian(0.3)".into(), &"hein".into()));
    assert!(ood[1]["kind"].as_str().unwrap().starts_with("gaussian(0.3) of npz "), "{}", ood[1]);

    let fgsm = e["fgsm"].as_array().unwrap();
    assert_eq!(fgsm[0]["accuracy"], e["accuracy"], "epsilon 0 is no attack");
    assert_eq!((&fgsm[1]["epsilon"], &fgsm[1]["space"]), (&"8/255".into(), &"pixel".into()));
    assert!(number(&fgsm[2]["accuracy"]) < number(&fgsm[0]["accuracy"]), "half the range of a pixel changes something");
    assert!(fgsm.iter().all(|f| number(&f["zero_gradient_share"]) < 0.5), "{e}");

    let (header, data) = array(&logits, "logits");
    assert!(header.contains("<f4") && header.contains(&format!("({TEST}, 4,)")), "{header}");
    let rows: Vec<f32> = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let labels: Vec<i64> =
        array(&logits, "labels").1.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let best = |row: &[f32]| (0..4).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    let correct = rows.chunks(4).zip(&labels).filter(|(row, l)| best(row) == **l).count();
    assert_eq!(correct as f64 / TEST as f64, number(&e["accuracy"]));
    assert_eq!(array(&logits, "ood0_logits").1, data);
    assert_eq!(array(&logits, "fgsm0_logits").1, data);
    assert_ne!(array(&logits, "fgsm1_logits").1, data);

    // Batch size and threads change nothing but rounding; the seed changes noise.
    let again = eval(&lab, &["--ood", "gaussian(0.3)", "--batch-size", "7", "--threads", "1"]);
    assert!((number(&again["ood"][0]["auroc"]) - number(&ood[1]["auroc"])).abs() < 1e-3, "{again}");
    let seeded = eval(&lab, &["--ood", "gaussian(0.3)", "--ood-seed", "1"]);
    assert_ne!(seeded["ood"][0]["auroc"], again["ood"][0]["auroc"]);
    let text = run(program(&["eval"]).arg(lab.path("run")).args(args).args(["--fgsm", "8/255"])).ok().out;
    for word in ["top-5", "NLL", "ECE", "AUROC 0.5000", "FGSM 8/255 in pixels: accuracy"] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}

#[test]
fn normalised_space_is_another_attack() {
    let lab = trained(&[]);
    let [pixel, normalised] = ["pixel", "normalised"].map(|s| eval(&lab, &["--fgsm", "0.2", "--fgsm-space", s]));
    assert_eq!((&pixel["fgsm"][0]["space"], &normalised["fgsm"][0]["space"]), (&"pixel".into(), &"normalised".into()));
    let accuracy = |e: &Value| e["fgsm"][0]["accuracy"].as_f64().unwrap();
    // A deviation is below 1, so that 0.2 of it is less than 0.2 of a pixel.
    assert!(accuracy(&normalised) >= accuracy(&pixel), "{pixel} {normalised}");
}

#[test]
fn other_images_are_brought_to_the_network() {
    let lab = trained(&[]);
    // Twelve by twelve pixels in three channels.
    let numbers: Vec<u8> = (0..40 * 12 * 12 * 3).map(|i| support::hash(i) as u8).collect();
    let set = |n: usize| {
        (npy("|u1", &format!("({n}, 12, 12, 3)"), &numbers[..n * 432]), npy("|u1", &format!("({n},)"), &vec![0; n]))
    };
    let ((x, y), (x_test, y_test)) = (set(8), set(40));
    let other = lab.path("other.npz");
    std::fs::write(&other, npz(&[("x_train", x), ("y_train", y), ("x_test", x_test), ("y_test", y_test)], false))
        .unwrap();
    let e = eval(&lab, &["--ood", &other.display().to_string()]);
    assert_eq!(e["ood"][0]["n"], 40);
    let rule = e["ood"][0]["rule"].as_str().unwrap();
    assert!(rule.contains("luma") && rule.contains('8'), "{rule}");
}

#[test]
fn bad_requests_are_refused_before_anything_is_written() {
    let lab = trained(&[]);
    let file = lab.path("never.npz").display().to_string();
    let there = lab.data().display().to_string();
    for (args, code, wanted) in [
        (&["--fgsm", "8/0"][..], 2, "epsilon"),
        (&["--fgsm", "-1"], 2, "epsilon \"-1\""),
        (&["--fgsm", ""], 2, "epsilon"),
        (&["--ood", "nowhere"], 1, "nowhere: no such file or folder"),
        (&["--ood", "gaussian(-1)"], 2, "gaussian"),
        (&["--ood", "gaussian(x)"], 2, "gaussian"),
        (&["--ece-bins", "0"], 2, "ece-bins"),
        (&["--ood-classes", "folders"], 2, "--ood"),
        (&["--ood", "uniform", "--ood-classes", "folders"], 1, "no class folders"),
        (&["--ood", "gaussian(1e308)"], 2, "gaussian"),
        (&["--ood", "uniform", "--ood", "nowhere"], 1, "nowhere: no such file or folder"),
        (&["--save-logits", "/nowhere/at/all.npz"], 1, "/nowhere/at/all.npz"),
        (&["--save-logits", "/dev/null/all.npz"], 1, "/dev/null/all.npz"),
        (&["--save-logits", &there], 2, "it is there already"),
    ] {
        let mut c = program(&["eval"]);
        let o = run(c
            .arg(lab.path("run"))
            .args(args)
            .args((args[0] != "--save-logits").then_some(["--save-logits", &file]).into_iter().flatten()));
        assert_eq!(o.code, Some(code), "{args:?}: {o:?}");
        assert!(o.err.contains(wanted), "{args:?}: {o:?}");
        assert!(!Path::new(&file).exists(), "{args:?}");
    }
}

#[test]
fn a_checkpoint_without_preprocessing_is_an_error() {
    let lab = trained(&[]);
    let path = lab.path("run").join("last.safetensors");
    let mut checkpoint = Checkpoint::load(&path).unwrap();
    checkpoint.meta.config.preprocess = None;
    let bare = lab.path("bare.safetensors");
    checkpoint.save(&bare).unwrap();
    run(program(&["eval"]).arg(&bare)).refused(1, &["bare.safetensors: no preprocessing stored"]);
}

#[test]
fn gradient_norms_are_those_of_the_mean_loss_at_kept_weights() {
    let lab = Lab::new();
    let set =
        ["gradient_norm_every=5", "label_smoothing=0.1", "weight_decay=0.1", "augment.flip=false", "augment.pad=0"];
    let config = lab.config(&set);
    train(&config, &lab.options("run", 2), &mut Watch::default()).unwrap();
    let lines: Vec<GradientRecord> = read_lines(&lab.path("run").join("gradients.jsonl")).unwrap();
    let steps: Vec<u64> = lines.iter().map(|l| l.step).collect();
    assert_eq!(steps, (0..8).map(|i| 1 + 5 * i).collect::<Vec<_>>(), "the first of 40 steps, and each fifth after it");

    // The first step again, in f64 without the training loop.
    let data = data::open(&config.data).unwrap();
    let (train_split, _) = data.train.split_last(config.validation).unwrap();
    let state = Checkpoint::load(&lab.path("run").join("last.safetensors")).unwrap().net;
    let graph = models::by_name(&config.model, config.width, 1, data.classes, 8).unwrap();
    let masked = state.params.iter().filter(|p| p.kept.is_some());
    let mask = |p: &sparse_engine::graph::ParamState| Mask {
        name: p.name.clone(),
        shape: p.shape.clone(),
        density: 1.0,
        kept: p.kept.clone(),
        block: None,
    };
    let masks: Vec<Mask> = masked.map(mask).collect();
    let preprocess = data.preprocess(&train_split).unwrap();
    let loader = Loader::new(train_split, 32, preprocess, Some(config.augment), config.seed.data, 0).unwrap();
    let batch = loader.epoch(0, 0).next().unwrap();
    let mut net = Net::new(&graph, &masks, 32, |spec| Ok(RefBackend::new(spec))).unwrap();
    net.init(&graph, config.seed.init);
    let images: Vec<f64> = batch.images.iter().map(|&v| f64::from(v)).collect();
    net.forward_backward(&images, &batch.labels, 0.1);
    let gradients = net.gradients();
    let norms: Vec<(&str, f64)> = gradients
        .iter()
        .filter(|g| g.maskable)
        .map(|g| (g.name, g.values.iter().map(|v| v * v).sum::<f64>().sqrt()))
        .collect();
    assert_eq!(lines[0].layers.len(), norms.len());
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-3 * b, "{a} {b}");
    for (name, norm) in &norms {
        near(lines[0].layers[*name], *norm);
    }
    near(lines[0].mean, norms.iter().map(|n| n.1).sum::<f64>() / norms.len() as f64);
    near(lines[0].global, norms.iter().map(|n| n.1 * n.1).sum::<f64>().sqrt());

    // A run that goes on logs the same, and one that logs trains the same.
    train(&config, &lab.options("cut", 1), &mut Watch::stopping_at(13)).unwrap_err();
    train(&config, &lab.resume_options("cut", 2), &mut Watch::default()).unwrap();
    assert_eq!(lab.bytes("cut/gradients.jsonl"), lab.bytes("run/gradients.jsonl"));
    let silent = lab.config(&[&set[1..], &["gradient_norm_every=0"]].concat());
    train(&silent, &lab.options("silent", 2), &mut Watch::default()).unwrap();
    let [a, b] = ["run", "silent"].map(|r| Checkpoint::load(&lab.path(r).join("last.safetensors")).unwrap().net);
    assert_eq!(a, b);
    assert!(!lab.path("silent").join("gradients.jsonl").exists());
    // Dense networks have the same tensors.
    let dense = lab.config(&["method=dense", "gradient_norm_every=1000"]);
    train(&dense, &lab.options("dense", 2), &mut Watch::default()).unwrap();
    let lines: Vec<GradientRecord> = read_lines(&lab.path("dense").join("gradients.jsonl")).unwrap();
    assert_eq!(lines[0].layers.len(), norms.len());
}
