//! What a run leaves behind and prints: the documented formats, honest results, a configuration that repeats the run.

mod data_support;
mod support;

use serde_json::Value;
use sparse_engine::backend::cpu::{CpuBackend, Isa};
use sparse_engine::checkpoint::{Checkpoint, NetState};
use sparse_engine::data::{Batch, Loader, open};
use sparse_engine::graph::Net;
use sparse_engine::report::{Score, Split, Summary};
use sparse_engine::train::{Device, OnDevice, train};
use sparse_engine::{models, sparsity};
use std::fs;
use std::process::{Command, Stdio};
use support::*;

const CPU: OnDevice = OnDevice { device: Device::Cpu, precision: None, loss_scale: None };
const FORMATS: &str = include_str!("../docs/formats.md");

/// Keys of the first column of the table below a heading.
fn documented(heading: &str) -> Vec<&'static str> {
    let (_, section) = FORMATS.split_once(heading).unwrap_or_else(|| panic!("no {heading:?} in docs/formats.md"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|l| l.starts_with("| `"));
    let keys: Vec<_> = rows.flat_map(|l| l.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
    assert!(keys.len() > 3, "{heading}: {keys:?}");
    keys
}

fn keys(v: &Value) -> Vec<&str> {
    v.as_object().unwrap().keys().map(String::as_str).collect()
}

fn json(lab: &Lab, file: &str) -> Value {
    serde_json::from_slice(&lab.bytes(file)).unwrap()
}

/// `eval --json` of a checkpoint.
fn eval(lab: &Lab, args: &[&str]) -> (f64, f64, u64) {
    let o = run(program(&["eval", "--json", "--batch-size", "32"]).args(args).current_dir(lab.path(""))).ok();
    let v: Value = serde_json::from_str(&o.out).unwrap();
    (v["loss"].as_f64().unwrap(), v["accuracy"].as_f64().unwrap(), v["n"].as_u64().unwrap())
}

fn triple(s: &Score) -> (f64, f64, u64) {
    (s.loss, s.accuracy, s.n)
}

#[test]
fn files_follow_their_documentation() {
    let lab = Lab::new();
    run(lab.train("run").args(["--set", "epochs=6", "--set", "schedule.milestones=[4]"])).ok();
    assert_eq!(
        lab.files("run"),
        ["best.safetensors", "config.toml", "last.safetensors", "metrics.jsonl", "plan.json", "summary.json"]
    );

    let text = String::from_utf8(lab.bytes("run/metrics.jsonl")).unwrap();
    let mut wanted = documented("## metrics.jsonl");
    wanted.sort();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 6 + 6 + 1, "train and val each epoch, test once");
    for line in &lines {
        let mut got = keys(line);
        got.sort();
        assert_eq!(got, wanted);
        assert_eq!(line["schema"], 1);
        let (accuracy, n) = (line["accuracy"].as_f64().unwrap(), line["n"].as_u64().unwrap());
        assert!((0.0..=1.0).contains(&accuracy), "{line}");
        let correct = accuracy * n as f64;
        assert!(((correct - correct.round()).abs() <= 1e-9), "{line}: no fraction of n images");
        assert_eq!(line["step"].as_u64().unwrap(), STEPS_PER_EPOCH * line["epoch"].as_u64().unwrap());
        let of = match line["split"].as_str().unwrap() {
            "train" => TRAIN - VAL,
            "val" => VAL,
            "test" => TEST,
            other => panic!("split {other:?}"),
        };
        assert_eq!(n, of as u64);
        let dropped = line["epoch"].as_u64().unwrap() > 4;
        assert!(((line["lr"].as_f64().unwrap() - if dropped { 0.01 } else { 0.1 }).abs() <= 1e-12), "{line}");
        assert!(line["train_time_s"].as_f64().unwrap() <= line["time_s"].as_f64().unwrap());
    }

    let s = json(&lab, "run/summary.json");
    // Tables of the section: the summary's own keys, and those of results.
    let all = documented("## summary.json");
    let (results, own): (Vec<_>, Vec<_>) = all.iter().partition(|k| k.starts_with("test_"));
    let nested = ["version", "commit", "dirty"];
    let mut got = keys(&s);
    got.sort();
    let mut own: Vec<&str> = own.into_iter().copied().filter(|k| !nested.contains(k)).collect();
    own.sort();
    assert_eq!(got, own);
    assert_eq!(results, ["test_last", "test_at_best_val", "test_at_best_test"].iter().collect::<Vec<_>>());
    assert_eq!(keys(&s["results"]), ["test_last", "test_at_best_val"]);
    assert_eq!(keys(&s["engine"]), nested);
    assert_eq!(keys(&s["data"]), ["source", "kind", "checksum", "image", "classes", "train", "val", "test"]);
    assert_eq!(keys(&s["machine"]), ["cpu", "cores", "os", "arch"]);
    for bytes in [&s["bytes_sparse"], &s["bytes_dense"]] {
        let kinds = ["values", "indices", "gradients", "momentum", "operand_copies", "activations"];
        assert_eq!(kinds.iter().map(|k| bytes[*k].as_u64().unwrap()).sum::<u64>(), bytes["total"].as_u64().unwrap());
    }
    let nnz: u64 = s["masks"].as_array().unwrap().iter().map(|m| m["nnz"].as_u64().unwrap()).sum();
    assert_eq!(nnz, s["nnz"].as_u64().unwrap());
    assert_eq!(nnz, (0.3 * s["maskable"].as_f64().unwrap()).round() as u64);
    assert_eq!(s["bytes_sparse"]["values"], 4 * s["params_sparse"].as_u64().unwrap());
    assert_eq!(s["bytes_sparse"]["momentum"], 4 * s["params_sparse"].as_u64().unwrap());
    assert!(s["masks"][0]["hash"].as_str().is_some_and(|h| h.len() == 64));
    assert_eq!((s["epochs"].as_u64(), s["steps"].as_u64()), (Some(6), Some(6 * STEPS_PER_EPOCH)));
    assert_eq!(s["command_line"][1], "train");
    assert_eq!(s["config"]["seed"]["mask"], 3);
    assert!(s["config"]["preprocess"]["mean"][0].as_f64().is_some());
    assert!(s["train_time_s"].as_f64().unwrap() <= s["total_time_s"].as_f64().unwrap());
}

#[test]
fn results_are_those_of_the_checkpoints() {
    let lab = Lab::new();
    // Validation labels that are all wrong: what is best by them is an early epoch, and worst on the test images. Two
    // validation images: epochs that tie.
    let mut train = images(TRAIN, 1);
    train.1[TRAIN - VAL..].iter_mut().for_each(|label| *label = (*label + 1) % CLASSES as u8);
    fs::write(lab.path("wrong.npz"), npz_of(&train, &images(TEST, 2), SIDE, SIDE)).unwrap();
    let (mut earlier, mut tie) = (false, false);
    for (name, more) in [("wrong", "data=wrong.npz"), ("tied", "validation=2")] {
        run(lab.train(name).args(["--set", more])).ok();
        let (s, records) = (lab.summary(name), lab.metrics(name));
        let best = s.results.test_at_best_val.unwrap();
        let (best_file, last_file) = (format!("{name}/best.safetensors"), format!("{name}/last.safetensors"));
        assert_eq!(eval(&lab, &[&best_file]), triple(&best.score));
        assert_eq!(eval(&lab, &[&last_file]), triple(&s.results.test_last.score));
        assert_eq!(eval(&lab, &[name]), triple(&s.results.test_last.score), "a directory means its last checkpoint");
        assert_eq!(s.selected(), best);
        // Chosen by validation accuracy, the earliest of equals, and never by the test images.
        let val: Vec<_> = records.iter().filter(|r| r.split == Split::Val).collect();
        let top = val.iter().map(|r| r.accuracy).fold(0.0, f64::max);
        let chosen = val.iter().find(|r| r.accuracy == top).unwrap();
        assert_eq!(best.epoch, chosen.epoch);
        assert_eq!(eval(&lab, &[&best_file, "--split", "val"]), triple(&chosen.score()));
        assert_eq!(Checkpoint::load(&lab.path(&best_file)).unwrap().meta.progress.epoch, best.epoch);
        assert_eq!(records.iter().filter(|r| r.split == Split::Test).count(), 1, "the test images are looked at once");
        tie |= val.iter().filter(|r| r.accuracy == top).count() > 1;
        earlier |= best.epoch < s.results.test_last.epoch && best.score != s.results.test_last.score;
    }
    assert!(tie, "no run with two epochs of the same validation accuracy: the test shows nothing");
    assert!(earlier, "no run whose best epoch was not its last: the test shows nothing");

    // Without a validation split nothing is selected, and the best checkpoint is the last.
    let plain = ["--set", "validation=0", "--set", "selection=last"];
    run(lab.train("plain").args(plain)).ok();
    let r = lab.summary("plain").results;
    assert!(r.test_at_best_val.is_none() && r.test_at_best_test.is_none());
    assert_eq!(keys(&json(&lab, "plain/summary.json")["results"]), ["test_last"]);
    assert_eq!(lab.bytes("plain/best.safetensors"), lab.bytes("plain/last.safetensors"));
    // Selected on the test images: by name only, and every table says so.
    let o = run(lab.train("tested").args(["--set", "selection=best-test", "--set", "validation=0"])).ok();
    let r = lab.summary("tested").results;
    assert!(r.test_at_best_val.is_none() && o.out.contains("SELECTED ON THE TEST IMAGES"), "{o:?}");
    assert_eq!(eval(&lab, &["tested/best.safetensors"]), triple(&r.test_at_best_test.unwrap().score));
}

#[test]
fn the_resolved_configuration_repeats_the_run() {
    let lab = Lab::new();
    run(lab.train("first").args(["--set", "label_smoothing=0.1", "--seed", "7", "--set", "seed.data=1"])).ok();
    let mut again = program(&["train", "--threads", "3", "--config"]);
    run(again.arg(lab.path("first/config.toml")).arg("--out").arg(lab.path("again"))).ok();
    assert_eq!(lab.bytes("first/config.toml"), lab.bytes("again/config.toml"));
    lab.assert_same_end("again", "first", "repeated from its configuration");
    // Every key is in it, so a recipe below it changes nothing.
    let mut other = program(&["train", "--recipe", "cifar10-resnet20", "--config"]);
    run(other.arg(lab.path("first/config.toml")).arg("--out").arg(lab.path("other"))).ok();
    lab.assert_same_end("other", "first", "another recipe below it");
}

#[test]
fn normalisation_comes_from_the_training_images_alone_and_stays_with_the_checkpoint() {
    let lab = Lab::new();
    run(lab.train("run").args(["--epochs", "5"])).ok();
    let constants = lab.summary("run").config.preprocess.unwrap();
    // By hand, over the training images less the last 40.
    let (pixels, _) = images(TRAIN, 1);
    let train: Vec<f64> = pixels[..(TRAIN - VAL) * SIDE * SIDE].iter().map(|&p| f64::from(p) / 255.0).collect();
    let mean = train.iter().sum::<f64>() / train.len() as f64;
    let std = (train.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / train.len() as f64).sqrt();
    assert!(((constants.mean[0] - mean).abs() <= 1e-12 && (constants.std[0] - std).abs() <= 1e-12), "{constants:?}");

    // Other test and validation images: the same constants. Another training image: others.
    let changed = |what: &str, at: usize| {
        let (mut train, mut test) = (images(TRAIN, 1), images(TEST, 2));
        let image = if what == "test" { &mut test.0 } else { &mut train.0 };
        image[at * SIDE * SIDE..][..SIDE * SIDE].fill(255);
        let path = lab.path(&format!("{what}.npz"));
        fs::write(&path, npz_of(&train, &test, SIDE, SIDE)).unwrap();
        run(lab.train(what).args(["--quiet", "--data", path.to_str().unwrap()])).ok();
        lab.summary(what).config.preprocess.unwrap()
    };
    assert_eq!(changed("test", 0), constants);
    assert_eq!(changed("val", TRAIN - VAL), constants);
    assert_ne!(changed("train", TRAIN - VAL - 1), constants);

    // eval normalises other data with the stored constants: brighter images must not be brought back to the mean. The
    // library's loader with the stored constants, and the network by hand, give what eval gives.
    let bright = |(x, y): (Vec<u8>, Vec<u8>)| (x.iter().map(|v| v.saturating_add(60)).collect::<Vec<u8>>(), y);
    fs::write(lab.path("bright.npz"), npz_of(&bright(images(TRAIN, 1)), &bright(images(TEST, 2)), SIDE, SIDE)).unwrap();
    let got = eval(&lab, &["run", "--data", "bright.npz"]);
    let state = Checkpoint::load(&lab.path("run/last.safetensors")).unwrap();
    let test = open(lab.path("bright.npz").to_str().unwrap()).unwrap().test;
    let with = |constants| {
        let graph = models::resnet(8, 4, 1, CLASSES, SIDE).unwrap();
        let c = &state.meta.config;
        let ratio = c.method.try_into().unwrap();
        let masks = sparsity::draw_masks(&graph.maskable(), &ratio, c.target().unwrap(), c.mask_draw, c.seed.mask);
        let mut net = Net::new(&graph, &masks.unwrap(), 32, |spec| CpuBackend::new(spec, 1)).unwrap();
        net.load(&state.net).unwrap();
        let loader = Loader::new(test.clone(), 32, constants, None, 0, 1).unwrap();
        loader.epoch(0, 0).map(|b| net.infer(&b.images, &b.labels).loss_sum).sum::<f64>() / TEST as f64
    };
    assert_eq!(with(constants), got.0);
    let bright = open(lab.path("bright.npz").to_str().unwrap()).unwrap();
    assert_ne!(with(bright.preprocess(&bright.train).unwrap()), got.0);
    assert_eq!(state.meta.config.preprocess, lab.summary("run").config.preprocess);
}

#[test]
fn seeds_and_densities_by_any_name() {
    let lab = Lab::new();
    let short = ["epochs=1", "schedule.milestones=[]", "warmup_epochs=0"];
    let go = |name: &str, more: &[&str]| -> (Summary, NetState) {
        let config = lab.config(&[&short[..], more].concat());
        let s = train(&config, &lab.options(name, 1), &mut Watch::default()).unwrap();
        (s, Checkpoint::load(&lab.path(name).join("last.safetensors")).unwrap().net)
    };
    let (sparsity, by_sparsity) = go("sparsity", &["sparsity=0.9"]);
    let (density, by_density) = go("density", &["density=0.1"]);
    assert_eq!(sparsity.masks, density.masks);
    assert!(by_sparsity == by_density, "the same masks, other weights");
    assert_ne!(go("denser", &["density=0.11"]).0.masks, density.masks);
    let one = go("one", &["method=dense"]);
    assert_eq!((one.0.nnz, one.0.density), (one.0.maskable, 1.0));
    assert!(one.1.params.iter().all(|p| p.kept.is_none()));

    // Another mask seed: the initial values of a weight that both keep, and every batch, are the same bytes.
    let other = lab.config(&["seed.mask=99"]);
    let base = lab.config(&[]);
    assert_eq!((other.seed.init, other.seed.data), (base.seed.init, base.seed.data));
    let graph = models::resnet(8, 4, 1, CLASSES, SIDE).unwrap();
    let initial = |c: &sparse_engine::config::Config| {
        let ratio = c.method.try_into().unwrap();
        let masks =
            sparsity::draw_masks(&graph.maskable(), &ratio, c.target().unwrap(), c.mask_draw, c.seed.mask).unwrap();
        let mut net = Net::new(&graph, &masks, 4, |spec| CpuBackend::new(spec, 1)).unwrap();
        net.init(&graph, c.seed.init);
        net.state()
    };
    let (a, b) = (initial(&base), initial(&other));
    let (mut both, mut apart) = (0, 0);
    for (p, q) in a.params.iter().zip(&b.params) {
        match (&p.kept, &q.kept) {
            (Some(k), Some(l)) => {
                for (at, value) in k.iter().zip(&p.values) {
                    match l.binary_search(at) {
                        Ok(i) => {
                            assert_eq!(value.to_bits(), q.values[i].to_bits(), "{}[{at}]", p.name);
                            both += 1;
                        }
                        Err(_) => apart += 1,
                    }
                }
            }
            _ => assert!(p.values.len() != q.values.len() || p.values == q.values, "{}", p.name),
        }
    }
    assert!(both > 300 && apart > 300, "{both} kept by both masks, {apart} by one");
    let data = open(lab.data().to_str().unwrap()).unwrap();
    let batches = |c: &sparse_engine::config::Config, threads| -> Vec<Batch> {
        let constants = data.preprocess(&data.train).unwrap();
        let loader = Loader::new(data.train.clone(), 32, constants, Some(c.augment), c.seed.data, threads).unwrap();
        (0..2).flat_map(|e| loader.epoch(e, 0).collect::<Vec<_>>()).collect()
    };
    assert_eq!(batches(&base, 1), batches(&other, 3));
    assert_ne!(batches(&base, 1), batches(&lab.config(&["seed.data=99"]), 1));
}

#[test]
fn it_learns() {
    let lab = Lab::new();
    for (name, more) in [
        ("erk", &[][..]),
        ("uniform", &["method=uniform"]),
        ("dense", &["method=dense"]),
        ("tossed", &["mask_draw=bernoulli"]),
    ] {
        let s = train(&lab.config(more), &lab.options(name, 2), &mut Watch::default()).unwrap();
        let score = s.results.test_last.score;
        assert!(score.accuracy >= 0.8 && score.loss < 0.8, "{name}: {score:?}, chance is 0.25");
        // Another batch size and another number of threads change no result beyond rounding.
        let again = lab.evaluate(name, Split::Test, 7, 3, CPU);
        assert_eq!(again.accuracy, score.accuracy);
        assert!(((again.loss - score.loss).abs() <= 1e-6 * score.loss), "{again:?} {score:?}");
    }
    // Images without a pattern teach nothing that holds for others: the accuracy above is no accident of the counting.
    let noise = |n: usize, seed: u64| {
        let x: Vec<u8> = (0..n * SIDE * SIDE).map(|i| hash(seed * 1_000_003 + i as u64) as u8).collect();
        (x, images(n, seed).1)
    };
    fs::write(lab.path("noise.npz"), npz_of(&noise(TRAIN, 1), &noise(TEST, 2), SIDE, SIDE)).unwrap();
    let data = format!("data={}", lab.path("noise.npz").display());
    let s = train(&lab.config(&[&data]), &lab.options("noise", 1), &mut Watch::default()).unwrap();
    assert!(s.results.test_last.score.accuracy < 0.5, "{:?}", s.results);
}

#[test]
fn what_is_printed() {
    let lab = Lab::new();
    let quiet = run(lab.train("quiet").arg("--quiet")).ok();
    assert_eq!(quiet.out.lines().count(), 1, "{quiet:?}");
    assert!(
        quiet.out.contains("test accuracy") && quiet.out.contains("(at the best validation accuracy, epoch "),
        "{quiet:?}"
    );
    assert!(quiet.out.trim_end().ends_with(lab.path("quiet").to_str().unwrap()), "{quiet:?}");

    let plain = run(&mut lab.train("plain")).ok();
    // Rounding depends on the instruction set.
    let device = lab.summary("plain").device;
    assert!(device.starts_with(&format!("cpu {}, ", Isa::detect().name())), "{device}");
    for wanted in [
        "model      resnet8-4",
        "density    erk, 0.3 asked for",
        &format!("device     {device}"),
        "epoch 1/5  train loss",
        "epoch 5/5",
        "run directory: ",
        "indices",
        "operand copies",
    ] {
        assert!(plain.out.contains(wanted), "no {wanted:?} in {}", plain.out);
    }
    let no_color = run(lab.train("no-color").env("NO_COLOR", "1")).ok();
    for o in [&quiet, &plain, &no_color] {
        assert!(!o.out.contains('\x1b') && !o.out.contains('\r'), "escape codes off a terminal: {o:?}");
    }
}

/// Through `script`, which Linux has; elsewhere this says that it was skipped.
#[test]
#[cfg(target_os = "linux")]
fn on_a_terminal_there_is_a_bar_and_colour_only_where_wanted() {
    let lab = Lab::new();
    // Colours are the sequences that end in m; the others move the cursor.
    let colours = |text: &str| {
        text.split("\x1b[")
            .skip(1)
            .any(|t| t.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
    };
    for (name, no_color) in [("coloured", ""), ("plain", "1")] {
        let (bin, config, out) = (env!("CARGO_BIN_EXE_sparse-engine"), lab.config_file(), lab.path(name));
        let command = format!("'{bin}' train --config '{}' --out '{}'", config.display(), out.display());
        let mut c = Command::new("script");
        c.args(["-qec", &command, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::null());
        if !no_color.is_empty() {
            c.env("NO_COLOR", no_color);
        }
        let Ok(o) = c.output() else {
            return drop(std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("skipped: there is no `script` to make a terminal with\n"),
            ));
        };
        let text = String::from_utf8(o.stdout).unwrap();
        assert!(o.status.success() && text.contains("step ") && text.contains("epoch 5/5"), "{text}");
        assert!(text.contains('\r'), "no bar that is drawn over: {text:?}");
        assert_eq!(colours(&text), no_color.is_empty(), "{name}: {text:?}");
    }
}

#[test]
fn no_gpu_is_said_and_nothing_is_written() {
    let lab = Lab::new();
    let mut c = lab.train("gpu");
    let o = run(c.args(["--device", "cuda"])).refused(69, &["no usable GPU", "use --device cpu"]);
    assert_eq!((o.err.lines().count(), o.out.as_str()), (1, ""), "{o:?}");
    assert!(!lab.path("gpu").exists());
    // Even where something else is wrong too, and where the directory was there before.
    fs::create_dir(lab.path("there")).unwrap();
    run(lab.train("there").args(["--device", "cuda", "--data", "nowhere"])).refused(69, &["no usable GPU"]);
    assert!(lab.files("there").is_empty());
}
