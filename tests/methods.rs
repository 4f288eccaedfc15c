//! Every method through the program: masks meet their budget, scoring changes nothing of a run, masks and weights go out to
//! files and come back, and runs go on.

#[path = "data_support/mod.rs"]
mod data_support;
mod support;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sparse_engine::checkpoint::{Checkpoint, NetState};
use sparse_engine::sparsity::Density;
use sparse_engine::train::train;
use std::path::Path;
use support::{Lab, Watch, program, run, set_all};

fn state(path: impl AsRef<Path>) -> NetState {
    Checkpoint::load(path.as_ref()).unwrap().net
}

fn kept(state: &NetState) -> Vec<(String, usize, usize)> {
    let maskable = state.params.iter().filter(|p| p.shape.len() > 1);
    maskable.map(|p| (p.name.clone(), p.values.len(), p.shape.iter().product())).collect()
}

const SHORT: [&str; 4] = ["--epochs", "1", "--set", "warmup_epochs=0"];

#[test]
fn every_method_meets_the_budget() {
    let lab = Lab::new();
    let methods: &[(&str, &[&str])] = &[
        ("uniform", &[]),
        ("uniform-plus", &[]),
        ("er", &[]),
        ("erk", &["erk_power=0.5"]),
        ("erk-plus", &["last_density=0.9"]),
        ("snip", &["score_samples=50"]),
        ("snip", &["score_init=xavier", "score_augment=false"]),
        ("snip", &["positions=keep"]),
        ("grasp", &["score_samples_per_class=10"]),
        ("grasp", &["score_samples_per_class=10", "score_halves=alternate", "score_temperature=1", "positions=keep"]),
        ("global-magnitude", &[]),
        ("global-magnitude", &["positions=draw"]),
        ("custom", &["custom.layers={\"@first\" = 1, \"segment0.*\" = 0.5}"]),
    ];
    for (i, (method, set)) in methods.iter().enumerate() {
        let out = format!("run{i}");
        let mut c = lab.train(&out);
        c.args(SHORT).args(["--set", &format!("method={method}"), "--set", "sparsity=0.5"]);
        set_all(&mut c, set);
        run(&mut c).ok();
        let kept = kept(&state(lab.path(&out).join("last.safetensors")));
        let (nnz, size) = kept.iter().fold((0, 0), |(a, b), (_, kept, size)| (a + kept, b + size));
        let budget = Density::from_sparsity(0.5).unwrap().budget(size as u64) as usize;
        assert_eq!(nnz, budget, "{method} {set:?}");
        let density = |name: &str| kept.iter().find(|k| k.0 == name).map(|k| k.1 as f64 / k.2 as f64).unwrap();
        match *method {
            "uniform-plus" | "custom" => assert_eq!(density("conv.weight"), 1.0),
            "erk-plus" => assert!((density("fc.weight") - 0.9).abs() < 0.02),
            _ => {}
        }
    }
}

/// The run of a scored method, and one that takes its masks from a file, end in the same bytes: values, momentum, running
/// statistics and the order of images are untouched by the scoring.
#[test]
fn scoring_leaves_no_trace_and_files_repeat_a_run() {
    let lab = Lab::new();
    for (method, more) in [("snip", "score_samples=40"), ("grasp", "score_samples_per_class=6")] {
        let set = ["--set", &format!("method={method}") as &str, "--set", more].map(String::from);
        let scored = format!("scored-{method}");
        run(lab.train(&scored).args(&set)).ok();
        let ticket = lab.path(&format!("ticket-{method}"));
        let mut mask = program(&["mask", "--config"]);
        mask.arg(lab.config_file()).args(&set).arg("--out").arg(&ticket).current_dir(lab.path(""));
        let said = run(&mut mask).ok().out;
        assert!(said.contains("conv.weight") && said.contains("mask.safetensors"), "{said}");
        let from_file = format!("file-{method}");
        let arg = |key: &str, file: &str| format!("{key}={}", ticket.join(file).display());
        let files = ["method=file".to_string(), arg("mask", "mask.safetensors"), arg("init", "init.safetensors")];
        let mut c = lab.train(&from_file);
        set_all(&mut c, &files);
        run(&mut c).ok();
        let [a, b] = [&scored, &from_file].map(|out| state(lab.path(out).join("last.safetensors")));
        assert_eq!(a, b, "{method}");
        assert!(a.params.iter().any(|p| p.kept.is_some()));
        // A checkpoint is a file of masks and of weights, too; its values begin without momentum.
        let last = lab.path(&scored).join("last.safetensors");
        let mut c = lab.train(&format!("again-{method}"));
        c.args(SHORT).args(["--set", "method=file"]);
        for key in ["mask", "init"] {
            c.args(["--set", &format!("{key}={}", last.display())]);
        }
        run(&mut c).ok();
        assert_eq!(kept(&state(lab.path(&format!("again-{method}")).join("last.safetensors"))), kept(&a));
        run(&mut mask).refused(2, &["mask.safetensors: it is there already"]);
    }
}

#[test]
fn a_scored_run_goes_on_with_its_masks() {
    let lab = Lab::new();
    for set in
        [&["method=snip", "score_samples=40"][..], &["method=grasp", "score_samples_per_class=5", "positions=keep"]]
    {
        let config = lab.config(set);
        let [whole, cut] = ["whole", "cut"].map(|name| format!("{name}-{}", config.method));
        train(&config, &lab.options(&whole, 2), &mut Watch::default()).unwrap();
        let stopped = train(&config, &lab.options(&cut, 1), &mut Watch::stopping_at(11)).unwrap_err();
        assert_eq!(stopped.exit_code(), 75);
        train(&config, &lab.resume_options(&cut, 2), &mut Watch::default()).unwrap();
        lab.assert_same_end(&cut, &whole, &config.method.to_string());
    }
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let lab = Lab::new();
    let ticket = lab.path("ticket");
    let mut mask = program(&["mask", "--config"]);
    run(mask.arg(lab.config_file()).arg("--out").arg(&ticket)).ok();
    let [masks, init] = ["mask.safetensors", "init.safetensors"].map(|f| ticket.join(f));
    let other = |name: &str, bytes: &[u8]| {
        let path = lab.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let whole = std::fs::read(&masks).unwrap();
    let cut = other("cut.safetensors", &whole[..whole.len() / 2]);
    let huge = other("huge.safetensors", &[0xff; 64]);
    let mut twos = whole.clone();
    *twos.last_mut().unwrap() = 2;
    let twos = other("twos.safetensors", &twos);
    for (set, code, wanted) in [
        (vec![("mask", lab.path("nowhere"))], 1, "nowhere: cannot read"),
        (vec![("mask", lab.path(""))], 1, "wanted a safetensors file, got something else"),
        (vec![("mask", cut)], 1, "not a whole safetensors file"),
        (vec![("mask", huge)], 1, "not a whole safetensors file"),
        (vec![("mask", twos)], 1, "a mask has zeros and ones, got 2"),
        (vec![("mask", init.clone())], 1, "a mask has zeros and ones, got"),
        (vec![("mask", masks.clone()), ("init", masks.clone())], 1, "no tensor \"bn.weight\": wanted all parameters"),
        (vec![("mask", masks.clone()), ("init", lab.data())], 1, "not a whole safetensors file"),
    ] {
        let mut c = lab.train("none");
        c.args(["--set", "method=file"]);
        for (key, path) in set {
            c.args(["--set", &format!("{key}={}", path.display())]);
        }
        run(&mut c).refused(code, &[wanted]);
        assert!(!lab.path("none").exists(), "{wanted}");
    }
    // A header of others, and files that lack something.
    let values = std::fs::read(&init).unwrap();
    let values = SafeTensors::deserialize(&values).unwrap();
    let ones = [0u8, 0, 128, 63].repeat(4);
    let statistic = |name: &str| (name.to_string(), TensorView::new(Dtype::F32, vec![4], &ones).unwrap());
    let write = |name: &str, tensors: Vec<(String, TensorView)>| {
        let by_pytorch = [("format".to_string(), "pt".to_string())].into();
        other(name, &safetensors::serialize(tensors, Some(by_pytorch)).unwrap())
    };
    let mut all = values.tensors();
    let init_pt = write("init-pt.safetensors", all.clone());
    let mask_pt = write("mask-pt.safetensors", SafeTensors::deserialize(&whole).unwrap().tensors());
    let no_mask = write("empty.safetensors", vec![]);
    all.push(statistic("bn.running_mean"));
    let no_variance = write("no-variance.safetensors", all.clone());
    all.push(statistic("bn.running_var"));
    let first_alone = write("first-alone.safetensors", all);
    let from = |out: &str, mask: &Path, init: &Path| {
        let mut c = lab.train(out);
        c.args(SHORT).args(["--set", "method=file"]);
        c.args(["--set", &format!("mask={}", mask.display()), "--set", &format!("init={}", init.display())]);
        run(&mut c)
    };
    from("pytorch", &mask_pt, &init_pt).ok();
    from("none", &no_mask, &init).refused(1, &["empty.safetensors: no tensors: wanted a mask"]);
    let all = "wanted running statistics of all batch norms, or of none";
    from("none", &masks, &no_variance).refused(1, &["no tensor \"bn.running_var\": ", all]);
    from("none", &masks, &first_alone).refused(1, &["no tensor \"segment0.block0.bn1.running_mean\": ", all]);
    let mut wider = lab.train("none");
    wider.args(["--set", "method=file", "--set", "width=8", "--set", &format!("mask={}", masks.display())]);
    run(&mut wider).refused(1, &["mask.safetensors: mask conv.weight: wanted shape"]);
    for (set, wanted) in [
        (&["method=snip", "score_samples=100000"][..], "score_samples: images for SNIP"),
        (&["method=grasp", "score_samples_per_class=1000"], "score_samples_per_class: "),
        (&["method=snip", "positions=keep", "mask_draw=bernoulli"], "positions: positions keep"),
        (&["method=global-magnitude", "mask_draw=bernoulli"], "method: positions keep"),
        (&["method=grasp", "positions=keep", "pattern=block:4x4"], "positions: positions keep"),
        (&["method=erk", "erk_power=8.1"], "erk_power: wanted a number from 0 to 8"),
        (&["method=global-magnitude", "sparsity=0.999"], "would keep none"),
        (&["method=custom", "custom.layers={\"nowhere\" = 0.5}"], "nowhere"),
    ] {
        let mut c = lab.train("none");
        set_all(&mut c, set);
        run(&mut c).refused(2, &[wanted]);
        assert!(!lab.path("none").exists(), "{wanted}");
    }
}

#[test]
fn initial_values_follow_their_options() {
    let lab = Lab::new();
    let values = |name: &str, set: &[&str]| {
        let mut c = program(&["mask", "--config"]);
        c.arg(lab.config_file()).arg("--out").arg(lab.path(name));
        c.args(set);
        run(&mut c).ok();
        let bytes = std::fs::read(lab.path(name).join("init.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        // conv2 of segment 1, and the shortcut of segment 2: 1x1 from 8 to 16 channels at width 4.
        [read("segment1.block0.conv2.weight"), read("segment2.block0.shortcut.conv.weight"), read("fc.weight")]
    };
    let plain = values("plain", &[]);
    let same_but = |other: &[Vec<f32>; 3], factors: [f64; 3], what: &str| {
        for ((a, b), factor) in plain.iter().zip(other).zip(factors) {
            for (a, b) in a.iter().zip(b) {
                let want = f64::from(*a) * factor;
                assert!((f64::from(*b) - want).abs() <= 1e-6 * want.abs(), "{what}: {a} {b} {factor}");
            }
        }
    };
    let out = values("out", &["--set", "init_mode=fan-out"]);
    // fan_in over fan_out: equal channels; 8 to 16; 16 to 4 classes.
    same_but(&out, [1.0, 0.5f64.sqrt(), 2.0], "fan-out");
    let scaled = values("scaled", &["--scaled"]);
    let gain = (1.0 / (1.0 + 0.01f64 * 0.01) / 0.3).sqrt();
    same_but(&scaled, [gain; 3], "--scaled");
    let fan = values("fan", &["--scale-fan", "--set", "method=uniform"]);
    let ratio = |i: usize| f64::from(fan[i][0]) / f64::from(plain[i][0]);
    assert!((ratio(0) - (1.0f64 / 0.3).sqrt()).abs() < 0.02, "{}", ratio(0));
    same_but(&fan, [ratio(0), ratio(1), 1.0], "--scale-fan");
    let mut both = program(&["mask", "--scaled", "--scale-fan", "--out"]);
    assert_eq!(run(both.arg(lab.path("both"))).code, Some(2));
}
