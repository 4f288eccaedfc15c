//! The command line.

use crate::program::{json, program};
use serde_json::Value;

const TINY: &str = "bench step --model resnet8 --width 4 --image-size 8 --batch 17 --warmup 1 --threads 2";

#[test]
fn json_has_what_is_promised() {
    let all = json(&format!("{TINY} --steps 6 --sparsity 0.8 --json"));
    assert_eq!((&all["model"], &all["batch"], &all["threads"]), (&"resnet8".into(), &17.into(), &2.into()));
    assert_eq!((&all["method"], all["sparsity"].as_f64().unwrap()), (&"erk".into(), 0.8));
    let inspect = json("inspect --model resnet8 --width 4 --image-size 8 --sparsity 0.8 --json");
    let share = inspect["macs_sparse"].as_f64().unwrap() / inspect["macs_dense"].as_f64().unwrap();
    assert!((all["density_flops"].as_f64().unwrap() - share).abs() < 1e-12);
    assert_eq!((&all["nnz"], &all["maskable"]), (&inspect["nnz"], &inspect["maskable"]));
    let number = |key: &str| all[key].as_f64().unwrap_or_else(|| panic!("{key}: {}", all[key]));
    for prefix in ["", "dense_"] {
        let [min, q1, median, q3] = ["min", "q1", "median", "q3"].map(|of| number(&format!("{prefix}step_ms_{of}")));
        assert!(0.0 < min && min <= q1 && q1 <= median && median <= q3, "{prefix}");
        assert!((number(&format!("{prefix}images_per_s")) - 17e3 / median).abs() < 1e-6);
        let ratio = number(&format!("{prefix}gflops_effective")) / number(&format!("{prefix}gflops_nominal"));
        assert!((ratio - if prefix.is_empty() { share } else { 1.0 }).abs() < 1e-9, "{prefix}: {ratio}");
        assert!(all[format!("{prefix}verified")]["values"].as_u64().unwrap() > 1000);
        for phase in [
            "upload",
            "conv_forward",
            "join_forward",
            "pool_forward",
            "loss",
            "pool_backward",
            "conv_backward",
            "sgd",
            "other",
        ] {
            assert!(all[format!("{prefix}phases_ms")][phase]["median"].as_f64().unwrap() >= 0.0, "{phase}");
        }
        let bytes = all[format!("{prefix}bytes")].as_object().unwrap();
        let parts: u64 = bytes.iter().filter(|(k, _)| *k != "total").map(|(_, v)| v.as_u64().unwrap()).sum();
        assert_eq!(bytes["total"], parts);
        if cfg!(target_os = "linux") {
            let above = number(&format!("{prefix}peak_rss_bytes")) - number(&format!("{prefix}start_rss_bytes"));
            assert!(above > 0.0 && above < 200e6, "{prefix}: {above}");
        }
    }
    assert_eq!((&all["checked"], &all["pattern"]), (&true.into(), &"unstructured".into()));
    assert!(all["sparse_over_dense"]["median"].as_f64().unwrap() > 0.0);
    assert!(all["machine"]["cores"].as_u64().unwrap() >= 1 && all.as_object().unwrap().contains_key("commit"));
}

#[test]
fn without_the_twin_its_keys_are_null() {
    let all = json(&format!("{TINY} --steps 2 --no-dense --method dense --json"));
    let nulls: Vec<_> = all.as_object().unwrap().iter().filter(|(_, v)| v.is_null()).map(|(k, _)| k.as_str()).collect();
    let expected = |k: &&str| k.starts_with("dense_") || ["sparse_over_dense", "commit", "dirty", "plan"].contains(k);
    assert!(nulls.iter().all(expected) && nulls.contains(&"dense_step_ms_median"), "{nulls:?}");
    assert_eq!((&all["sparsity"], &all["density_flops"]), (&0.0.into(), &1.0.into()));
}

#[test]
fn no_check_is_told() {
    let all = json(&format!("{TINY} --steps 2 --no-check --json"));
    assert_eq!(all["checked"], false);
    for prefix in ["", "dense_"] {
        assert!(all[format!("{prefix}verified")].is_null() && all[format!("{prefix}step_ms_min")].is_number());
    }
    let (code, text, _) = program(&format!("{TINY} --steps 2 --no-dense --no-check"));
    assert!(code == 0 && text.contains("not checked (--no-check)") && !text.contains("checked in f64"), "{text}");
    let (_, help, _) = program("bench step --help");
    assert!(help.contains("--no-check"), "{help}");
}

#[test]
fn a_plan_is_used_and_must_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let path = path.to_str().unwrap();
    let args = "--model resnet8 --width 4 --image-size 8 --sparsity 0.9 --batch 17 --threads 2";
    let (code, _, stderr) = program(&format!("tune {args} --budget 0.1 --out {path}"));
    assert_eq!(code, 0, "{stderr}");
    let all = json(&format!("{TINY} --steps 1 --plan {path} --json"));
    assert_eq!(all["plan"], path);
    let (_, text, _) = program(&format!("{TINY} --steps 1 --plan {path} --no-check"));
    assert!(text.contains(&format!("; plan {path};")), "{text}");
    for (more, word) in [("--sparsity 0.8", "another sparsity"), ("--image-size 16", "another network")] {
        let args = TINY.replace("--image-size 8", if more.starts_with("--image") { "" } else { "--image-size 8" });
        let (code, stdout, stderr) = program(&format!("{args} {more} --plan {path}"));
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        assert!(stderr.contains(word) && stderr.contains("plan.json"), "{stderr}");
    }
    let (code, _, stderr) = program(&format!("{TINY} --plan nowhere.json"));
    assert!(code == 1 && stderr.contains("nowhere.json"), "{stderr}");
}

#[test]
fn people_get_a_table() {
    let (code, with, _) = program(&format!("{TINY} --steps 2"));
    let (_, without, _) = program(&format!("{TINY} --steps 2 --no-dense"));
    assert_eq!(code, 0);
    for word in
        ["resnet8, width 4", "erk, 90 % pruned", "checked in f64", "conv backward", "images a second", "peak memory"]
    {
        assert!(with.contains(word) && without.contains(word), "{word}: {with}\n{without}");
    }
    assert!(with.contains("sparse/dense") && !without.contains("sparse/dense"), "{with}\n{without}");
}

#[test]
fn wrong_arguments_are_refused() {
    for (args, code, word) in [
        ("bench", 2, "step"),
        ("bench step --model resnet21", 2, "resnet21"),
        ("bench step --method best", 2, "uniform"),
        ("bench step --pattern block:4", 2, "block:16x16"),
        ("bench step --sparsity 1", 2, "sparsity"),
        ("bench step --method dense --sparsity 0.5", 2, "dense"),
        ("bench step --batch 0", 2, "batch"),
        ("bench step --steps 0", 2, "steps"),
        ("bench step --warmup 0", 2, "warmup"),
        ("bench step --threads 0", 2, "threads"),
        ("bench step --device gpu", 2, "cuda"),
        ("bench step --precision fp16", 2, "--precision is for GPUs"),
        ("bench kernels --precision bf16", 2, "--precision is for GPUs"),
        ("bench kernels --pattern block:0x4", 2, "block"),
        ("bench step --model resnet50 --width 8", 2, "width"),
        ("bench step --model resnet8 --image-size 1", 2, "image size"),
        ("bench step --model resnet8 --image-size 4 --batch 1", 2, "batch norm"),
        ("bench kernels --op conv", 2, "conv_fwd"),
        ("bench kernels --shape 1,2,3", 2, "STRIDE"),
        ("bench kernels --shape 3,4,4,8,9,1,0", 2, "fits"),
        ("bench kernels --shape 3,4,4,8,3,0", 2, "at least 1"),
        ("bench kernels --density 0", 2, "density"),
        ("bench kernels --set resnet21", 2, "resnet21"),
        ("bench kernels --shape 3,4,4,8,3,1 --set resnet20", 2, "--set"),
        ("bench kernels --op linear --shape 16777216,16777216", 2, "weights"),
        ("bench kernels --op linear --shape 60000,60000", 2, "at most 268435456 weights"),
        ("bench kernels --shape 3,4,4,8,3,65", 2, "at most 64"),
        ("bench kernels --shape 3,4,4,8,3,16777216", 2, "at most 64"),
        ("bench step --image-size 1024 --batch 1000000", 1, "lower"),
        ("tune --model resnet8 --image-size 4 --batch 1 --sparsity 0.5", 2, "batch norm"),
        ("tune --costs --model resnet8 --image-size 4 --batch 1", 2, "batch norm"),
    ] {
        let (got, stdout, stderr) = program(args);
        assert_eq!((got, stdout.as_str()), (code, ""), "{args}: {stderr}");
        assert!(stderr.contains(word), "{args}: {stderr}");
    }
}

#[test]
fn kernels_beside_the_peaks() {
    let ops = ["conv_fwd", "conv_dgrad", "conv_wgrad"];
    let all =
        json("bench kernels --shape 8,6,6,4,3,1 --batch 17 --density 0.5 --threads 1 --time 1 --crossover --json");
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v}"));
    assert!(number(&all["peaks"]["fma_gflops"]) > 0.0 && number(&all["peaks"]["copy_gb_s"]) > 0.0);
    let results = all["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["op"].as_str().unwrap()).collect::<Vec<_>>(), ops);
    for r in results {
        assert_eq!((&r["nnz"], &r["shape"]["pad"], &r["model"]), (&144.into(), &1.into(), &Value::Null));
        assert_eq!(r["flops"], 2 * 144 * 36 * 17);
        let crossover = number(&r["crossover_density"]);
        assert!(crossover > 0.0 && crossover <= 1.0 && (crossover * 32.0).fract() == 0.0, "{crossover}");
        assert!(r["plan"]["forward"].is_string() && number(&r["dense_ms_median"]) != 0.0);
        assert!(number(&r["verified"]["values"]) > 100.0);
    }
    let (x, y) = (8 * 36 * 17, 4 * 36 * 17);
    assert_eq!(results[0]["bytes"], 4 * (x + y + 2 * 144), "input, output, value and index");

    let all = json("bench kernels --set resnet8 --op bn,sgd --batch 2 --threads 3 --time 1 --density 0.5 --json");
    assert_eq!(all["threads"], 3, "as asked; the peaks are measured on one a core at most");
    for r in all["results"].as_array().unwrap() {
        let number = |key: &str| r["shape"][key].as_u64().unwrap();
        let wanted = match r["op"].as_str().unwrap() {
            "bn" => 18 * number("c") * number("h") * number("w") * 2,
            _ => 8 * r["nnz"].as_u64().unwrap(),
        };
        assert_eq!(r["flops"], wanted, "{r}");
        assert!(r["gflops"].as_f64().unwrap() > 0.0);
    }

    let (code, text, _) = program("bench kernels --set resnet8 --op bn,sgd,linear --batch 2 --threads 1 --time 1");
    assert_eq!(code, 0);
    for word in
        ["peaks:", "16x32x32 (3 of resnet8)", "64 to 10 (1 of resnet8)", "weights (1 of resnet8)", "checked in f64"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}
