//! `train` and `eval` with `--device`.

use crate::support::*;
use serde_json::Value;

#[test]
fn a_run_and_its_evaluation() {
    let lab = Lab::new();
    let emulated = ["--device", "emulated", "--set", "schedule.milestones=[1]", "--epochs", "2"];
    let done = run(lab.train("run").args(emulated).args(["--precision", "bf16"])).ok();
    assert!(done.out.contains("emulated gpu, bf16"), "{}", done.out);
    let summary = lab.summary("run");
    assert!(summary.device.contains("emulated gpu, bf16") && summary.held_steps == 0, "{}", summary.device);
    let eval = |more: &[&str]| {
        let mut command = program(&["eval", "--json"]);
        run(command.arg(lab.path("run")).args(more))
    };
    // Numbers as in the run, unless others are asked for.
    let of = |more: &[&str]| -> Value { serde_json::from_str(&eval(more).ok().out).unwrap() };
    let own = of(&["--device", "emulated"]);
    assert_eq!((&own["precision"], &own["n"]), (&"bf16".into(), &TEST.into()));
    assert_eq!(own["accuracy"], summary.results.test_last.score.accuracy);
    let other = of(&["--device", "emulated", "--precision", "f32"]);
    assert!(other["precision"] == "f32" && other["device"].as_str().unwrap().contains("emulated gpu, f32"), "{other}");
    let cpu = of(&["--device", "cpu"]);
    assert!(cpu["precision"].is_null() && cpu["device"].as_str().unwrap().starts_with("cpu"), "{cpu}");

    eval(&["--loss-scale", "2"]).refused(2, &["no gradient to scale"]);
    eval(&["--device", "cpu", "--precision", "fp16"]).refused(2, &["--precision is for GPUs"]);
    eval(&["--precision", "fp16"]).refused(2, &["--precision is for GPUs", "no usable GPU here"]);

    // A run on a GPU goes on on a GPU, unless told otherwise.
    run(&mut lab.resume("run")).refused(69, &["was on a GPU", "--device cpu"]);
    run(lab.resume("run").args(["--device", "cpu"])).ok();

    // A plan that is given says in which precision, and where.
    let plan = lab.path("run/plan-cuda.json");
    let with_plan = |more: &[&str]| eval(&[&["--plan", plan.to_str().unwrap()], more].concat());
    with_plan(&["--device", "emulated", "--precision", "f32"]).refused(2, &["plan-cuda.json is for bf16"]);
    with_plan(&["--device", "emulated"]).ok();
    let plan = lab.path("run/plan.json");
    eval(&["--plan", plan.to_str().unwrap(), "--precision", "bf16"]).refused(2, &["--plan is for the processor"]);
    eval(&["--plan", plan.to_str().unwrap()]).ok();
}

/// A run that was killed at its start, and is begun anew elsewhere, was never on a GPU.
#[test]
fn what_a_killed_run_left_says_nothing_of_the_next() {
    let lab = Lab::new();
    let few = ["--set", "schedule.milestones=[1]", "--epochs", "2"];
    run(lab.train("run").args(few).args(["--device", "emulated"])).ok();
    for gone in ["last.safetensors", "best.safetensors", "summary.json"] {
        std::fs::remove_file(lab.path("run").join(gone)).unwrap();
    }
    run(lab.train("run").args(few).args(["--device", "cpu", "--resume", "auto"])).ok();
    assert!(!lab.path("run/plan-cuda.json").exists());
    run(&mut lab.resume("run")).ok();
    assert!(lab.summary("run").device.starts_with("cpu"));
}

#[test]
fn a_plan_for_the_processor_says_where_to_compute() {
    let lab = Lab::new();
    let few = ["--set", "schedule.milestones=[1]", "--epochs", "2"];
    run(lab.train("cpu").args(few).args(["--device", "cpu"])).ok();
    let plan = lab.path("cpu/plan.json");
    let with_plan = |more: &[&str]| run(lab.train("again").args(few).arg("--plan").arg(&plan).args(more));
    with_plan(&["--precision", "fp16"]).refused(2, &["--plan is for the processor", "--device cuda"]);
    with_plan(&[]).ok();
    assert!(lab.summary("again").device.starts_with("cpu"));
    // Nor does a run on the processor move by itself.
    run(lab.resume("again").args(["--loss-scale", "8"])).refused(2, &["--loss-scale", "the run was on the processor"]);
}
