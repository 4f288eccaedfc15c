//! The command line.

use crate::program::{json, program};
use serde_json::Value;
use sparse_engine::backend::Spec;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{self, GpuBackend, Precision};
use sparse_engine::graph::Net;
use sparse_engine::models;
use sparse_engine::report::write_gpu_plan;
use sparse_engine::sparsity::{Density, Draw, Pattern, Ratio, draw_patterns};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const TINY: &str = "bench step --model resnet8 --width 16 --image-size 8 --batch 3 --warmup 1 --steps 1";

#[test]
fn json_has_the_keys_of_the_cpu_and_more() {
    let cpu = json(&format!("{TINY} --threads 1 --json"));
    let all = json(&format!("{TINY} --device emulated --precision tf32 --pattern block:16x16 --method uniform --json"));
    let more = ["device", "precision", "loss_scale", "steps_a_graph", "samples", "checked_batch"];
    let each = ["launches", "launched_ms_median", "launched_ms_q1", "launched_ms_q3", "launched_ms_min"];
    let each: Vec<_> = each.into_iter().chain(["graph_steps_verified", "last_loss_scale", "held_steps"]).collect();
    let got = keys(&all);
    assert_eq!(got[..keys(&cpu).len()], keys(&cpu), "all keys of the CPU, in their order");
    assert!(more.iter().all(|key| got.contains(key) && !keys(&cpu).contains(key)), "{got:?}");
    for key in &each {
        for prefix in ["", "dense_", "vendor_"] {
            assert!(all[format!("{prefix}{key}")].as_f64().is_some_and(|v| v >= 0.0), "{prefix}{key}");
        }
    }
    assert_eq!((&all["vendor_products"], &all["vendor_missing"]), (&vec![30, 30].into(), &Value::Null));
    assert!(all["vendor_backend"].as_str().unwrap().ends_with("host loops"));
    assert!(all["sparse_over_vendor"]["median"].as_f64().unwrap() > 0.0 && all["vendor_bytes"]["total"].is_u64());
    assert_eq!(
        (&all["device"], &all["precision"], &all["pattern"]),
        (&"emulated".into(), &"tf32".into(), &"block:16x16".into())
    );
    assert_eq!((&all["threads"], &all["loss_scale"], &all["checked"]), (&Value::Null, &"1".into(), &true.into()));
    assert!(all["backend"].as_str().unwrap().starts_with("emulated gpu"));
    assert!(all["sparse_over_dense"]["median"].as_f64().unwrap() > 0.0 && all["dense_peak_rss_bytes"].is_null());
    let alone = json(&format!("{TINY} --device emulated --no-dense --no-check --json"));
    assert_eq!(keys(&alone), got);
    for key in ["vendor_step_ms_median", "vendor_launches", "vendor_products", "vendor_missing", "dense_launches"] {
        assert_eq!(alone[key], Value::Null, "{key}");
    }

    let (code, text, _) = program(&format!("{TINY} --device emulated --no-dense --no-check --loss-scale 128"));
    assert_eq!(code, 0);
    for word in
        ["not checked (--no-check)", "kernel by kernel", "1 replays of a graph of 1 step", "on the device", "fp16"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_plan_file_is_used_and_must_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan-cuda.json");
    let graph = models::by_name("resnet8", Some(16), 3, 10, 8).unwrap();
    let density = Density::from_sparsity(0.9).unwrap();
    let masks = draw_patterns(&graph.maskable(), &Ratio::ERK, density, Pattern::Unstructured, Draw::Exact, 0).unwrap();
    let make = |spec: Spec| GpuBackend::new(Emulated::new(Order::Ascending)?, spec, Precision::Bf16, None);
    write_gpu_plan(&path, Net::new(&graph, &masks, 3, make).unwrap().backend().plan()).unwrap();
    let args = format!("{TINY} --device emulated --no-dense --no-check --plan {}", path.display());
    let all = json(&format!("{args} --json"));
    assert_eq!((&all["precision"], &all["plan"]), (&"bf16".into(), &path.to_str().unwrap().into()));
    for (more, code, word) in [
        ("--precision fp16", 2, "plan-cuda.json is for bf16"),
        ("--sparsity 0.8", 1, "plan-cuda.json"),
        ("--device cpu", 2, "--device"),
    ] {
        let (got, stdout, stderr) = program(&format!("{args} {more}"));
        assert_eq!((got, stdout.as_str()), (code, ""), "{more}: {stderr}");
        assert!(stderr.contains(word), "{more}: {stderr}");
    }
}

#[test]
fn kernels_beside_what_memory_can_do() {
    let args = "bench kernels --device emulated --shape 32,5,5,32,3,1 --batch 2 --density 0.25 --time 1";
    let all = json(&format!("{args} --pattern block:16x16 --json"));
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v}"));
    assert_eq!(
        (&all["device"], &all["precision"], &all["threads"]),
        (&"emulated".into(), &"fp16".into(), &Value::Null)
    );
    let peaks = &all["peaks"];
    assert!(
        number(&peaks["copy_gb_s"]) > 0.0 && number(&peaks["fill_gb_s"]) > 0.0 && number(&peaks["mma_gflops"]) > 0.0
    );
    let results = all["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    let cpu = json("bench kernels --shape 32,5,5,32,3,1 --op conv_fwd --batch 2 --time 1 --threads 1 --json");
    for r in results {
        let (got, on_cpu) = (keys(r), keys(&cpu["results"][0]));
        assert_eq!(got[..on_cpu.len()], on_cpu, "all keys of the CPU, in their order");
        assert_eq!((&r["block"], &r["vendor_missing"]), (&"16x16".into(), &Value::Null));
        assert!(number(&r["vendor_ms_median"]) > 0.0 && number(&r["sparse_over_vendor"]) > 0.0);
        assert!(number(&r["percent_of_mma_peak"]) > 0.0);
        assert!(number(&r["percent_of_copy_peak"]) > 0.0 && number(&r["launches"]) >= 1.0 && r["plan"].is_object());
    }
    let (x, y, nnz) = (2 * 32 * 25, 2 * 32 * 25, 32 * 32 * 9 / 4);
    assert_eq!(results[0]["bytes"], 2 * (x + y) + 6 * nnz, "halves, and an index of 4 bytes");
    assert_eq!(results[2]["bytes"], 2 * (x + 2 * y) + 8 * nnz, "gradients are f32");

    let (code, text, _) = program("bench kernels --device emulated --op linear,sgd --set resnet8 --batch 2 --time 1");
    assert_eq!(code, 0);
    for word in ["emulated gpu, fp16", "copy", "of copy", "64 to 10 (1 of resnet8)", "checked in f64"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn selftest_names_what_it_checked() {
    for (device, rows) in [("emulated", 20), ("cpu", 5)] {
        let all = json(&format!("selftest --device {device} --json"));
        let cases = all["cases"].as_array().unwrap();
        assert_eq!((cases.len(), &all["schema"]), (rows, &1.into()));
        assert!(all["device"].as_str().unwrap().contains(device) && all["version"].is_string(), "{}", all["device"]);
        for c in cases {
            let (values, worst) = (c["verified"]["values"].as_u64(), c["verified"]["worst"].as_f64());
            assert!(values.unwrap() > 1000 && worst.unwrap() <= 1.0, "{c}");
            assert_eq!(c["precision"].is_null(), device == "cpu");
        }
        assert!(cases.iter().any(|c| c["case"].as_str().unwrap().contains("block:16x16")));
    }
    let (code, text, _) = program("selftest --device emulated --precision bf16");
    assert_eq!((code, text.lines().count()), (0, 7), "{text}");
    assert!(text.starts_with("emulated gpu; ") && text.ends_with("all right\n") && !text.contains("fp16"), "{text}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (args, word) in [
        ("bench step --device emulated --precision f16", "fp16"),
        ("bench step --device emulated --loss-scale 3", "power of two"),
        ("bench step --device cpu --loss-scale 2", "--loss-scale is for GPUs"),
        ("bench step --device emulated --memory-only", "--memory-only"),
        ("bench kernels --device emulated --loss-scale 2", "no loss"),
        ("selftest --device emulated --loss-scale 2", "without a loss scale"),
        ("selftest --device cpu --precision fp16", "for GPUs"),
    ] {
        let (code, stdout, stderr) = program(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args}: {stderr}");
        assert!(stderr.contains(word), "{args}: {stderr}");
    }
    if gpu::find_device().is_err() {
        for args in ["bench step", "bench kernels", "selftest"] {
            let (code, stdout, stderr) = program(&format!("{args} --device cuda"));
            assert_eq!((code, stdout.as_str()), (69, ""), "{args}: {stderr}");
            assert!(stderr.contains("no usable GPU") && stderr.contains("--device cpu"), "{args}: {stderr}");
        }
    }
}
