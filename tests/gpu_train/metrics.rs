//! Scores, gradient norms and attacks of runs on a GPU, in half precision.

use crate::support::*;
use serde_json::Value;
use sparse_engine::report::{GradientRecord, read_lines};

#[test]
fn norms_and_attacks_in_half_precision_are_those_of_the_processor() {
    let lab = Lab::new();
    let set =
        ["method=snip", "score_samples=40", "gradient_norm_every=3", "schedule.milestones=[1]", "warmup_epochs=0"];
    let train = |out: &str, device: &[&str]| {
        let mut c = lab.train(out);
        c.args(["--epochs", "2"]).args(device);
        set_all(&mut c, &set);
        run(&mut c).ok();
        read_lines::<GradientRecord>(&lab.path(out).join("gradients.jsonl")).unwrap()
    };
    let [gpu, cpu] = [("gpu", &["--device", "emulated"][..]), ("cpu", &["--device", "cpu"])].map(|(o, d)| train(o, d));
    let hashes = |out: &str| lab.summary(out).masks.into_iter().map(|m| m.hash).collect::<Vec<_>>();
    assert_eq!(hashes("gpu"), hashes("cpu"), "a mask does not depend on the device");
    // A dynamic scale may leave out the first steps, whose gradients overflow.
    let steps = |lines: &[GradientRecord]| lines.iter().map(|l| l.step).collect::<Vec<_>>();
    assert_eq!(steps(&cpu), [1, 4, 7, 10, 13, 16]);
    assert!(steps(&gpu).iter().all(|s| steps(&cpu).contains(s)) && gpu.len() >= 4, "{:?}", steps(&gpu));
    let held = lab.summary("gpu").held_steps;
    for line in gpu.iter().filter(|l| l.step == 1 && held == 0) {
        for (name, norm) in &line.layers {
            let want = cpu[0].layers[name];
            assert!((norm - want).abs() <= 0.05 * want, "{name}: {norm}, on the processor {want}");
        }
    }
    let eval = |device: &[&str]| -> Value {
        let mut c = program(&["eval", "--json", "--fgsm", "0,8/255,0.3", "--ood", "gaussian(0.5)"]);
        serde_json::from_str(&run(c.arg(lab.path("gpu")).args(device)).ok().out).unwrap()
    };
    let half = eval(&["--device", "emulated"]);
    let full = eval(&["--device", "cpu"]);
    assert_eq!(half["precision"], "fp16");
    assert_eq!(half["fgsm"][0]["accuracy"], half["accuracy"]);
    for i in 1..3 {
        let [a, b] = [&half, &full].map(|e| e["fgsm"][i]["accuracy"].as_f64().unwrap());
        assert!((a - b).abs() <= 0.1, "epsilon {i}: {a}, on the processor {b}");
        let [a, b] = [&half, &full].map(|e| e["fgsm"][i]["zero_gradient_share"].as_f64().unwrap());
        assert!((a - b).abs() <= 0.02, "zeros: {a}, on the processor {b}");
    }
    let [a, b] = [&half, &full].map(|e| e["ood"][0]["auroc"].as_f64().unwrap());
    assert!((a - b).abs() <= 0.02, "AUROC {a}, on the processor {b}");
}
