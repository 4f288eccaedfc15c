//! Plan files through the program: train, resume, eval, inspect and tune.

mod data_support;
mod support;

use serde_json::Value;
use sparse_engine::Error;
use sparse_engine::backend::cpu::Isa;
use sparse_engine::backend::cpu::plan::{Kernel, Plan};
use sparse_engine::report::{read_plan, write_plan};
use sparse_engine::train::{Options, train};
use std::path::PathBuf;
use std::process::Command;
use support::*;

/// The default plan of the lab's network, as a run stores it.
fn stored(lab: &Lab) -> Plan {
    run(lab.train("base").args(["--threads", "1"])).ok();
    read_plan(&lab.path("base/plan.json")).unwrap()
}

/// A plan that is the default in no layer with more than one pixel.
fn odd(lab: &Lab, plan: &Plan, name: &str) -> PathBuf {
    let mut plan = plan.clone();
    for l in &mut plan.layers {
        let (g, p) = (l.geom(), &mut l.plan);
        p.cut = [3.min(g.p() as usize), 2.min(g.q() as usize)];
        p.channels = [3.min(g.c as usize), 3.min(g.k as usize)];
        p.tile = 5;
    }
    write_plan(&lab.path(name), &plan).unwrap();
    lab.path(name)
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_string()
}

#[test]
fn a_run_has_its_plan_and_goes_on_with_it() {
    let lab = Lab::new();
    let default = stored(&lab);
    assert_eq!((default.version, default.layers.len(), &default.tuned), (1, 10, &None));
    run(lab.train("threads").args(["--threads", "3"])).ok();
    assert_eq!(lab.bytes("threads/plan.json"), lab.bytes("base/plan.json"), "the default knows no threads");

    let file = odd(&lab, &default, "odd.json");
    let plan = text(file.clone());
    let o = run(lab.train("whole").args(["--plan", &plan])).ok();
    assert!(o.out.contains("plan       10 of 10 layers run otherwise than by default"), "{o:?}");
    assert_eq!(read_plan(&lab.path("whole/plan.json")).unwrap(), read_plan(&file).unwrap());
    assert_ne!(lab.bytes("whole/last.safetensors"), lab.bytes("base/last.safetensors"), "the plan is used");
    run(lab.train("three").args(["--plan", &plan, "--threads", "3"])).ok();
    lab.assert_same_end("three", "whole", "3 threads");

    // Stopped and gone on with, without the file: the run has its own copy.
    let options = |name: &str| Options { plan: Some(file.clone()), ..lab.options(name, 1) };
    for k in [1, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 3] {
        let name = format!("stop{k}");
        let stopped = train(&lab.config(&[]), &options(&name), &mut Watch::stopping_at(k));
        assert!(matches!(stopped, Err(Error::Stopped { step, .. }) if step == k), "{stopped:?}");
        std::fs::rename(&file, lab.path("away.json")).unwrap();
        let o = run(lab.resume(&name).args(["--threads", "2"])).ok();
        assert!(o.out.contains("10 of 10 layers"), "{o:?}");
        std::fs::rename(lab.path("away.json"), &file).unwrap();
        lab.assert_same_end(&name, "whole", &format!("stopped at {k}"));
    }
    // Begun anew where there was no checkpoint yet.
    std::fs::create_dir(lab.path("debris")).unwrap();
    std::fs::copy(lab.path("base/plan.json"), lab.path("debris/plan.json")).unwrap();
    run(lab.train("debris").args(["--resume", "auto", "--plan", &plan])).ok();
    lab.assert_same_end("debris", "whole", "begun anew");
}

#[test]
fn a_run_is_not_gone_on_with_by_another_plan() {
    let lab = Lab::new();
    let default = stored(&lab);
    let file = odd(&lab, &default, "odd.json");
    let (odd, own) = (text(file.clone()), text(lab.path("base/plan.json")));
    let first = || Options { plan: Some(file.clone()), ..lab.options("run", 1) };
    train(&lab.config(&[]), &first(), &mut Watch::stopping_at(9)).unwrap_err();
    let files = || lab.files("run").iter().map(|f| lab.bytes(&format!("run/{f}"))).collect::<Vec<_>>();
    let before = files();
    let wanted = ["base/plan.json: not the plan of the run in", "layer \"conv\" runs as", "leave --plan out"];
    run(lab.resume("run").args(["--plan", &own])).refused(2, &wanted);
    run(lab.train("run").args(["--resume", "auto", "--plan", &own])).refused(2, &wanted);
    let mut other = read_plan(&file).unwrap();
    other.layers[3].weights += 1;
    write_plan(&lab.path("other.json"), &other).unwrap();
    run(lab.resume("run").args(["--plan", &text(lab.path("other.json"))])).refused(2, &["for another network"]);
    run(lab.resume("run").args(["--plan", "nowhere.json"])).refused(1, &["nowhere.json: cannot read the plan"]);
    // Damaged or gone: what the run was cannot be known.
    let plan = lab.path("run/plan.json");
    let good = std::fs::read(&plan).unwrap();
    std::fs::write(&plan, &good[..good.len() / 2]).unwrap();
    run(&mut lab.resume("run")).refused(1, &["run/plan.json: no plan"]);
    std::fs::remove_file(&plan).unwrap();
    run(&mut lab.resume("run")).refused(1, &["run/plan.json: cannot read the plan"]);
    std::fs::write(&plan, good).unwrap();
    assert!(files() == before, "a refusal changes nothing");
    // The same plan is no other plan.
    run(lab.train("run").args(["--resume", "auto", "--plan", &odd])).ok();
    run(lab.train("whole").args(["--plan", &odd])).ok();
    lab.assert_same_end("run", "whole", "the same plan named again");
    run(lab.resume("run").args(["--plan", &odd])).ok();
}

#[test]
fn hostile_plans_end_in_one_line_and_leave_nothing() {
    let lab = Lab::new();
    let default = stored(&lab);
    let good = std::fs::read_to_string(lab.path("base/plan.json")).unwrap();
    let geometry = "[1,8,8,4,3,3,1,1]";
    let first = good.lines().find(|l| l.contains("\"layer\":")).unwrap();
    let cases: [(String, &[&str]); 10] = [
        (String::new(), &["no plan"]),
        (good[..good.len() / 3].into(), &["no plan"]),
        ("{\"version\": 1, \"layers\": 3}".into(), &["no plan", "invalid type: integer `3`"]),
        ("{\"version\": 1, \"layers\": []}".into(), &["wanted 10 layers, got 0", "sparse-engine tune"]),
        (good.replacen("\"version\": 1", "\"version\": 7", 1), &["version 7, this engine reads 1"]),
        (good.replacen("\"layers\"", "\"notes\": 1, \"layers\"", 1), &["unknown field `notes`"]),
        (good.replacen(geometry, "[1,16,16,4,3,3,1,1]", 1), &["layer 1 \"conv\"", "wanted geometry [1, 8, 8, 4,"]),
        (
            good.replacen(first, &first.replace("\"tile\":7", "\"tile\":0"), 1),
            &["layer 1 \"conv\"", "tile: wanted 1 to 14"],
        ),
        (good.replacen(first, &cut(first, "[0,1]"), 1), &["layer 1 \"conv\"", "cut[0]", "wanted 1 to 8, got 0"]),
        (good.replacen(first, &cut(first, "[1,18446744073709551615]"), 1), &["cut[1]", "got 18446744073709551615"]),
    ];
    for (i, (content, wanted)) in cases.iter().enumerate() {
        let name = format!("case{i}.json");
        std::fs::write(lab.path(&name), content).unwrap();
        let o = run(lab.train("refused").args(["--plan", &name])).refused(1, wanted);
        assert!(o.err.contains(&name) && o.err.lines().count() == 1 && o.out.is_empty(), "{o:?}");
        assert!(!lab.path("refused").exists());
        let o = run(program(&["eval", "base", "--plan", &name]).current_dir(lab.path(""))).refused(1, wanted);
        assert!(o.err.contains(&name) && o.err.lines().count() == 1, "{o:?}");
    }
    // A plan for other masks: another sparsity of the same network.
    let o = run(lab.train("refused").args(["--set", "sparsity=0.5", "--plan", "base/plan.json"]));
    o.refused(1, &["base/plan.json", "weights, got", "another sparsity"]);
    run(lab.train("refused").args(["--plan", "nowhere.json"])).refused(1, &["nowhere.json: cannot read the plan"]);
    assert_eq!(stored_again(&lab), default);
}

fn cut(line: &str, to: &str) -> String {
    let at = line.find("\"cut\":").unwrap() + 6;
    format!("{}{to}{}", &line[..at], &line[at + line[at..].find(']').unwrap() + 1..])
}

fn stored_again(lab: &Lab) -> Plan {
    read_plan(&lab.path("base/plan.json")).unwrap()
}

#[test]
#[cfg(unix)]
fn no_room_for_the_plan_leaves_nothing() {
    let lab = Lab::new();
    let default = stored(&lab);
    let sizes = ["config.toml", "plan.json"].map(|f| lab.bytes(&format!("base/{f}")).len());
    // The limit is counted in blocks of 512 bytes; the default plan of 10 layers takes more of them than the configuration.
    let blocks = sizes[0].div_ceil(512);
    assert!(blocks * 512 < sizes[1], "{sizes:?}, {default:?}");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut c = Command::new("sh");
    c.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_sparse-engine")).args(["train", "--config"]).arg(lab.config_file());
    c.arg("--out").arg(lab.path("none")).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    run(&mut c).refused(1, &["plan.json: cannot write the plan: File too large"]);
    assert!(!lab.path("none").exists());
}

/// `eval --json`'s loss and accuracy.
fn eval(lab: &Lab, args: &[&str]) -> (f64, f64) {
    let o = run(program(&["eval", "--json", "--batch-size", "32"]).args(args).current_dir(lab.path(""))).ok();
    let v: Value = serde_json::from_str(&o.out).unwrap();
    (v["loss"].as_f64().unwrap(), v["accuracy"].as_f64().unwrap())
}

#[test]
fn eval_runs_as_the_run_did() {
    let lab = Lab::new();
    let default = stored(&lab);
    let mut plan = default.clone();
    plan.layers.iter_mut().for_each(|l| l.plan.forward = Kernel::Dense);
    write_plan(&lab.path("p.json"), &plan).unwrap();
    run(lab.train("run").args(["--plan", "p.json"])).ok();
    let wanted = lab.summary("run").results.test_last.score;
    let wanted = (wanted.loss, wanted.accuracy);
    assert_eq!(eval(&lab, &["run/last.safetensors"]), wanted);
    assert_eq!(eval(&lab, &["run", "--plan", "p.json"]), wanted);
    // The plan of the run is what is read, so a bad one is seen; but a plan beside a stray checkpoint is none of its own.
    std::fs::create_dir(lab.path("stray")).unwrap();
    std::fs::copy(lab.path("run/last.safetensors"), lab.path("stray/last.safetensors")).unwrap();
    for folder in ["run", "stray"] {
        std::fs::write(lab.path(folder).join("plan.json"), "{").unwrap();
    }
    assert_eq!(eval(&lab, &["stray"]).1, wanted.1);
    run(program(&["eval", "run"]).current_dir(lab.path(""))).refused(1, &["run/plan.json: no plan"]);
    assert_eq!(eval(&lab, &["run", "--plan", "p.json"]), wanted);
}

/// Options of `inspect` and `tune` for the lab's network.
const NETWORK: [&str; 14] = [
    "--model",
    "resnet8",
    "--width",
    "4",
    "--channels",
    "1",
    "--image-size",
    "8",
    "--classes",
    "4",
    "--sparsity",
    "0.7",
    "--seed",
    "3",
];

#[test]
fn inspect_shows_plans() {
    let lab = Lab::new();
    let default = stored(&lab);
    let inspect = |args: &[&str]| run(program(&["inspect"]).args(NETWORK).args(args).current_dir(lab.path("")));
    let o = inspect(&["--plan"]).ok();
    assert_eq!(inspect(&["--plan", "base/plan.json"]).ok().out, o.out, "the default is the default");
    let lines: Vec<&str> = o.out.lines().collect();
    assert_eq!(lines[..2], ["resnet8, width 4, on 1x8x8 images of 4 classes", "erk, density 0.3, exact counts"]);
    assert_eq!(lines[2], "");
    let table: Vec<Vec<&str>> =
        lines.iter().map(|l| l.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
    let head = table.iter().position(|row| row[..].first() == Some(&"layer")).unwrap();
    assert_eq!(table[head], ["layer", "weights", "density", "kernels", "patches", "channels", "tile"]);
    let p = &default.layers[0];
    let rows = &table[head + 1..];
    assert_eq!((rows.len(), &rows[0][..3]), (10, &["conv", "1x8x8 3x3/1 4", p.weights.to_string().as_str()][..]));
    assert!(lines[head..].iter().all(|l| l.len() <= lines[head].len() && l.len() <= 120), "{}", o.out);

    odd(&lab, &default, "odd.json");
    let o = inspect(&["--plan", "odd.json"]).ok();
    let row = o.out.lines().find(|l| l.starts_with("segment1.block0.conv1")).unwrap();
    assert!(
        row.contains("4x8x8 3x3/2 8") && row.contains("2x2 x6") && row.contains(" 3/3 ") && row.ends_with(" 5"),
        "{row}"
    );
    let v: Value = serde_json::from_str(&inspect(&["--plan", "odd.json", "--json"]).ok().out).unwrap();
    for (layer, planned) in
        v["layers"].as_array().unwrap().iter().zip(&read_plan(&lab.path("odd.json")).unwrap().layers)
    {
        let got = &layer["plan"];
        let keys: Vec<_> = got.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["forward", "data", "weight", "cut", "channels", "tile", "patch", "patches"]);
        assert_eq!(got["patches"], planned.plan.cut[0] * planned.plan.cut[1]);
        assert_eq!(got["patch"][0], planned.plan.patch(&planned.geom())[0]);
    }
    let v: Value = serde_json::from_str(&inspect(&["--json"]).ok().out).unwrap();
    assert!(v["layers"][0].get("plan").is_none(), "unasked");
    run(program(&["inspect", "--sparsity", "0.9", "--plan", "odd.json"]).current_dir(lab.path("")))
        .refused(1, &["odd.json: wanted 22 layers, got 10", "another network"]);
    inspect(&["--plan", "nowhere.json"]).refused(1, &["nowhere.json: cannot read the plan"]);
}

#[test]
fn tune_writes_a_plan_that_trains() {
    let lab = Lab::new();
    let default = stored(&lab);
    let tune = |args: &[&str]| run(program(&["tune"]).args(args).current_dir(lab.path("")));
    let by_options =
        [&NETWORK[..], &["--batch", "17", "--threads", "2", "--budget", "0.4", "--out", "a.json"]].concat();
    for (args, out, batch) in [
        (&by_options[..], "a.json", 17),
        (&["--config", "tiny.toml", "--budget", "0.2", "--threads", "1"], "plan.json", 32),
    ] {
        let o = tune(args).ok();
        assert!(o.out.contains(&format!("plan written to {out}\n")), "{o:?}");
        assert!(o.out.contains(&format!("batch {batch}, ")) && o.out.contains(Isa::detect().name()), "{o:?}");
        assert!(o.out.contains("a plan for this machine and instruction set"), "{o:?}");
        let total = o.out.lines().find(|l| l.starts_with("total ")).unwrap();
        assert_eq!(total.split_whitespace().nth(1), Some("10"), "{o:?}");
        let plan = read_plan(&lab.path(out)).unwrap();
        let tuned = plan.tuned.as_ref().unwrap();
        assert_eq!((tuned.isa.as_str(), tuned.batch), (Isa::detect().name(), batch));
        let what = |p: &Plan| p.layers.iter().map(|l| (l.layer.clone(), l.geometry, l.weights)).collect::<Vec<_>>();
        assert_eq!(what(&plan), what(&default));
        run(lab.train(&format!("with-{out}")).args(["--plan", out])).ok();
        assert_eq!(lab.bytes(&format!("with-{out}/plan.json")), lab.bytes(out));
    }
    let o = tune(&[
        "--costs",
        "--model",
        "resnet8",
        "--width",
        "4",
        "--image-size",
        "8",
        "--batch",
        "4",
        "--budget",
        "0.1",
    ])
    .ok();
    assert!(o.out.lines().any(|l| l.starts_with("segment2.block0.conv2")) && o.out.contains("\nmedian"), "{o:?}");
    assert_eq!(o.out.lines().filter(|l| l.starts_with("fc ")).count(), 1, "{o:?}");
}

#[test]
fn tune_refuses_before_it_measures() {
    let lab = Lab::new();
    let tune = |args: &[&str]| run(program(&["tune"]).args(args).current_dir(lab.path("")));
    for (args, code, wanted) in [
        (&["--method", "erk"][..], 2, "--sparsity"),
        (&["--model", "vgg12", "--sparsity", "0.9"], 2, "vgg13"),
        (&["--recipe", "cifar"], 2, "unknown recipe"),
        (&["--config", "tiny.toml", "--set", "sparsity=2"], 2, "sparsity: wanted"),
        (&["--config", "none.toml"], 1, "none.toml"),
        (&["--data", "none.npz"], 1, "none.npz"),
        (&["--sparsity", "0.9", "--out", "no/plan.json"], 1, "no/plan.json: cannot write the plan"),
        (&["--sparsity", "0.9", "--out", "."], 1, "it is a folder"),
    ] {
        tune(args).refused(code, &[wanted]);
    }
    for args in [
        &["--sparsity", "0.9", "--recipe", "cifar10-resnet20"][..],
        &["--costs", "--out", "x.json"],
        &["--sparsity", "0.9", "--budget", "0"],
        &["--sparsity", "0.9", "--budget", "nan"],
        &["--sparsity", "0.9", "--batch", "0"],
        &["--sparsity", "0.9", "--threads", "0"],
    ] {
        assert_eq!(tune(args).code, Some(2), "{args:?}");
    }
    assert!(!lab.path("plan.json").exists() && !lab.path("plan.json.tmp").exists());
}
