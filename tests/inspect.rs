//! `inspect` through the library and through the parser: figures, sums, faults, closed pipes.

mod nets;

use clap::Parser;
use nets::resnet;
use serde_json::Value;
use sparse_engine::cli::inspect::{InspectArgs, write};
use sparse_engine::{Error, models};
use std::io;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: InspectArgs,
}

fn inspect(arguments: &str) -> Result<String, Error> {
    let cli = Cli::try_parse_from(["inspect"].into_iter().chain(arguments.split_whitespace())).unwrap();
    let mut out = Vec::new();
    let result = write(&cli.args, &mut out);
    assert!(result.is_ok() || out.is_empty(), "nothing is printed before a fault");
    result.map(|()| String::from_utf8(out).unwrap())
}

fn json(arguments: &str) -> Value {
    serde_json::from_str(&inspect(&format!("--json {arguments}")).unwrap()).unwrap()
}

fn sum(report: &Value, key: &str) -> u64 {
    report["layers"].as_array().unwrap().iter().map(|l| l[key].as_u64().unwrap()).sum()
}

#[test]
fn figures_of_the_paper() {
    // Depth, width, parameters, maskable, tensors, MMAC of paper section 2.4; ERK FLOP ratio at 90 % of section 6.
    for (depth, width, params, maskable, tensors, mmac, ratio) in [
        (20, 16, 272_474, 270_896, 22, 40.81, Some(0.1773)),
        (32, 16, 466_906, 464_432, 34, 69.12, None),
        (44, 16, 661_338, 657_968, 46, 97.44, None),
        (56, 16, 855_770, 851_504, 58, 125.75, Some(0.1822)),
        (110, 16, 1_730_714, 1_722_416, 112, 253.15, Some(0.1834)),
        (20, 8, 68_786, 67_992, 22, 10.31, None),
        (20, 24, 611_074, 608_712, 22, 91.50, None),
        (20, 32, 1_084_586, 1_081_440, 22, 162.37, None),
        (20, 40, 1_693_010, 1_689_080, 22, 253.42, None),
        (20, 56, 3_314_594, 3_309_096, 22, 496.09, None),
    ] {
        let name = format!("resnet{depth}");
        let report = json(&format!("--model {name} --width {width} --method erk --sparsity 0.9"));
        assert_eq!(report["params"], params, "{name}-{width}");
        assert_eq!(report["maskable"], maskable, "{name}-{width}");
        assert_eq!(report["layers"].as_array().unwrap().len(), tensors, "{name}-{width}");
        assert_eq!(report["nnz"].as_u64().unwrap(), (maskable + 5) / 10, "{name}-{width}");
        let macs = report["macs_dense"].as_f64().unwrap();
        assert!((macs / 1e6 - mmac).abs() <= 0.005 + 1e-9, "{name}-{width}: {macs}");
        if let Some(ratio) = ratio {
            let got = report["flops_formula"].as_f64().unwrap() / report["flops_dense"].as_f64().unwrap();
            assert!((got - ratio).abs() <= 0.5e-4, "{name}-{width}: {got}, to the printed digit");
            let got = report["flops_sparse"].as_f64().unwrap() / report["flops_dense"].as_f64().unwrap();
            assert!((got - ratio).abs() <= 1e-4, "{name}-{width}: {got}");
        }
        // The test's own 6D+2 rule agrees, names included.
        let net = resnet(depth, width, 3, 10, 32);
        let graph = models::by_name(&name, width, 3, 10, 32).unwrap();
        assert_eq!((graph.maskable(), graph.macs(), graph.param_count() as u64), (net.layers, net.macs, net.params));
    }
}

#[test]
fn json_has_the_documented_keys_and_its_sums_agree() {
    for arguments in [
        "--method erk --sparsity 0.9",
        "--model resnet56 --method erk --sparsity 0.5",
        "--method uniform --density 0.333 --width 5 --classes 7 --channels 1 --image-size 28",
        "--method erk --density 0.05 --mask-draw bernoulli --seed 3",
        "--method dense",
        "--method dense --sparsity 0",
        "--method uniform --density 1",
    ] {
        let report = json(arguments);
        let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
        let wanted = "model width classes channels image_size method density mask_draw pattern seed params maskable nnz \
                      macs_dense macs_sparse flops_dense flops_sparse flops_formula train_flops_dense train_flops_sparse \
                      train_flops_formula layers";
        assert_eq!(keys, wanted.split_whitespace().collect::<Vec<_>>(), "{arguments}");
        for layer in report["layers"].as_array().unwrap() {
            let keys: Vec<_> = layer.as_object().unwrap().keys().map(String::as_str).collect();
            let number = |key: &str| layer[key].as_u64().unwrap();
            let wanted = "name shape size density realised nnz macs macs_sparse macs_formula pattern";
            assert_eq!(keys, wanted.split(' ').collect::<Vec<_>>());
            assert_eq!(layer["macs_formula"], number("macs") as f64 * layer["density"].as_f64().unwrap());
            let shape = layer["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap());
            assert_eq!(shape.product::<u64>(), number("size"));
            assert_eq!(layer["realised"].as_f64().unwrap(), number("nnz") as f64 / number("size") as f64);
            assert_eq!(number("macs") * number("nnz"), number("macs_sparse") * number("size"), "{arguments}");
            assert!((1..=number("size")).contains(&number("nnz")), "{arguments}");
            let pattern = if number("nnz") == number("size") { "dense" } else { "unstructured" };
            assert_eq!(layer["pattern"], pattern, "{arguments}");
        }
        assert_eq!(report["maskable"], sum(&report, "size"), "{arguments}");
        assert_eq!(report["nnz"], sum(&report, "nnz"), "{arguments}");
        assert_eq!(report["macs_dense"], sum(&report, "macs"), "{arguments}");
        assert_eq!(report["macs_sparse"], sum(&report, "macs_sparse"), "{arguments}");
        let formula = |key: &str| report[key].as_f64().unwrap();
        let macs = report["layers"].as_array().unwrap().iter().map(|l| l["macs_formula"].as_f64().unwrap());
        assert!((formula("flops_formula") / (2.0 * macs.sum::<f64>()) - 1.0).abs() <= 1e-12, "{arguments}");
        assert!((formula("train_flops_formula") / formula("flops_formula") - 3.0).abs() <= 1e-12, "{arguments}");
        for kind in ["dense", "sparse"] {
            let macs = report[format!("macs_{kind}")].as_u64().unwrap();
            assert_eq!(report[format!("flops_{kind}")], 2 * macs);
            assert_eq!(report[format!("train_flops_{kind}")], 6 * macs);
        }
    }
    let report = json("--method uniform --sparsity 0.7 --width 5 --classes 7 --channels 1 --image-size 28");
    for (key, want) in [("width", 5), ("classes", 7), ("channels", 1), ("image_size", 28), ("seed", 0)] {
        assert_eq!(report[key], want);
    }
    assert_eq!((&report["model"], &report["method"]), (&"resnet20".into(), &"uniform".into()));
    assert_eq!(report["density"].as_f64().unwrap(), 0.3, "the decimal, not 1 - 0.7 in binary");
    assert_eq!(json("--method dense")["macs_sparse"], json("--method dense")["macs_dense"]);
    let bernoulli = |seed| json(&format!("--density 0.1 --mask-draw bernoulli --seed {seed}"))["nnz"].clone();
    assert_eq!(bernoulli(1), bernoulli(1));
    assert_ne!(bernoulli(1), bernoulli(2));
}

#[test]
fn the_table_is_aligned_and_complete() {
    let text = inspect("--model resnet20 --method erk --sparsity 0.9").unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "resnet20, width 16, on 3x32x32 images of 10 classes");
    assert_eq!(lines[1], "erk, density 0.1, exact counts");
    assert_eq!(lines.iter().filter(|line| line.contains(".weight ")).count(), 22);
    let table = &lines[3..27];
    assert!(table.iter().all(|line| line.len() == table[0].len()), "flush right:\n{text}");
    let total: Vec<_> = table[23].split_whitespace().collect();
    assert_eq!(total[..7], ["total", "22", "tensors", "270,896", "0.100000", "0.100001", "27,090"]);
    assert_eq!(total[7], "40,813,184");
    assert!(text.contains("272,474") && text.contains("28,668"), "{text}"); // all parameters: dense, stored
    assert!(text.contains("81,626,368") && text.contains("244,879,104"), "{text}"); // FLOPs: forward, training
    assert!(text.is_ascii() && text.lines().all(|line| line == line.trim_end() && line.len() <= 120));
    // The widest network of the paper keeps its columns.
    let text = inspect("--model resnet110 --width 56 --density 0.5").unwrap();
    let lengths: Vec<_> = text.lines().skip(3).take(114).map(str::len).collect();
    assert!(lengths.iter().all(|length| *length == lengths[0]));
}

#[test]
fn bad_arguments_say_what_is_allowed() {
    for (arguments, allowed) in [
        ("--model vgg12 --density 0.1", "vgg13"),
        ("--model vgg16 --width 16 --density 0.1", "width: vgg16 has one width only"),
        ("--model vgg16 --image-size 15 --density 0.1", "image size: wanted 16"),
        ("--model resnet21 --density 0.1", "6D+2"),
        ("--method ERK_plus --density 0.1", "dense, uniform, uniform-plus, er, erk, erk-plus, snip"),
        ("--mask-draw random --density 0.1", "exact, bernoulli"),
        ("--erk-power -1 --density 0.1", "--erk-power: wanted a number from 0 to 8, got -1"),
        ("--erk-power NaN --density 0.1", "--erk-power: wanted a number from 0 to 8, got NaN"),
        ("--pattern block --density 0.1", "unknown pattern \"block\": wanted \"unstructured\", or \"block:RxC\""),
        ("--pattern block:16 --density 0.1", "such as block:16x16"),
        ("--pattern block:0x16 --density 0.1", "1 to 4096 each"),
        ("--pattern block:x --density 0.1", "1 to 4096 each"),
        ("--pattern block:+1x1 --density 0.1", "1 to 4096 each"),
        ("--pattern block:16x16x16 --density 0.1", "1 to 4096 each"),
        ("--pattern block:99999999999x1 --density 0.1", "1 to 4096 each"),
        ("--pattern block:4097x1 --density 0.1", "1 to 4096 each"),
        ("--pattern Block:16x16 --density 0.1", "unknown pattern"),
        ("--pattern block:4x4 --mask-draw bernoulli --density 0.1", "block:4x4 needs exact counts"),
        ("--pattern block:4x4 --method uniform --density 0.0001", "layer conv.weight"),
        ("--sparsity 1.0", "below 1"),
        ("--sparsity -0.1", "at least 0"),
        ("--sparsity NaN", "at least 0"),
        ("--sparsity 90", "below 1"),
        ("--density 0", "above 0"),
        ("--density -0.5", "above 0"),
        ("--density nan", "at most 1"),
        ("--density inf", "at most 1"),
        ("--sparsity 0.9 --density 0.1", "one of them"),
        ("--method erk", "--sparsity"),
        ("--method dense --sparsity 0.9", "uniform or erk"),
        ("--width 0 --density 0.1", "width: wanted 1"),
        ("--classes 0 --density 0.1", "classes: wanted"),
        ("--channels 0 --density 0.1", "channels: wanted"),
        ("--image-size 1 --density 0.1", "image size: wanted"),
        ("--method uniform --density 0.0001", "layer conv.weight"),
        ("--width 99999999999 --density 0.1", "width: wanted"),
    ] {
        for format in ["", "--json"] {
            let e = inspect(&format!("{arguments} {format}")).unwrap_err();
            assert_eq!(e.exit_code(), 2, "{arguments}");
            assert!(e.to_string().contains(allowed), "{arguments}: {e}");
            assert!(!e.to_string().contains('\n'), "{arguments}: {e}");
        }
    }
}

#[test]
fn large_networks_have_their_own_images_and_no_width() {
    for (name, width, image) in [
        ("resnet50", Value::Null, [3, 224, 1000]),
        ("wide-resnet50-2", Value::Null, [3, 224, 1000]),
        ("vgg11", Value::Null, [3, 32, 10]),
        ("cifar-resnet50", 16.into(), [3, 32, 10]),
    ] {
        let report = json(&format!("--model {name} --sparsity 0.9"));
        assert_eq!(report["width"], width, "{name}");
        assert_eq!(["channels", "image_size", "classes"].map(|key| report[key].as_u64().unwrap()), image, "{name}");
        assert_eq!(report["model"].as_str().unwrap(), name.replace("wide-resnet", "wrn"));
    }
    let text = inspect("--model resnet18 --sparsity 0.9 --classes 7 --image-size 64").unwrap();
    assert!(text.starts_with("resnet18, on 3x64x64 images of 7 classes\nerk, density 0.1, exact counts\n"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains(".weight ")).count(), 21);
}

#[test]
fn blocks_show_layer_by_layer() {
    let arguments = "--model vgg19 --method uniform --sparsity 0.9 --pattern block:16x16";
    let text = inspect(arguments).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1], "uniform, density 0.1, exact counts, block:16x16");
    let layer =
        |name: &str| lines.iter().find(|line| line.starts_with(name)).unwrap().split("  ").last().unwrap().trim();
    assert_eq!(layer("segment0.conv1"), "unstructured: channels");
    assert_eq!(layer("segment0.conv2"), "block:16x16, 14 of 144");
    assert_eq!(layer("segment1.conv1"), "unstructured: budget");
    assert_eq!(layer("segment4.conv4"), "block:16x16, 922 of 9,216");
    assert_eq!(layer("fc.weight"), "unstructured: channels");
    for line in [
        "block:16x16 in 14 of 17 masked layers, 99.6 % of the kept weights",
        "  2 unstructured, channels: they do not divide by the block",
        "  1 unstructured, budget: takes up what whole blocks elsewhere leave of it",
    ] {
        assert!(lines.contains(&line), "{line}\n{text}");
    }
    assert!(text.is_ascii() && text.lines().all(|line| line == line.trim_end()));

    let report = json(arguments);
    assert_eq!((&report["pattern"], sum(&report, "nnz")), (&"block:16x16".into(), 2_002_400));
    let layer = |l: usize| &report["layers"][l];
    assert_eq!((&layer(1)["pattern"], &layer(1)["fallback"]), (&"block:16x16".into(), &Value::Null));
    assert_eq!((layer(1)["blocks"].to_string(), &layer(1)["nnz"]), ("[14,144]".into(), &3584.into()));
    assert_eq!((layer(1)["density"].as_f64(), layer(1)["realised"].as_f64()), (Some(0.1), Some(14.0 / 144.0)));
    assert_eq!((&layer(2)["pattern"], &layer(2)["fallback"]), (&"unstructured".into(), &"budget".into()));
    assert!(layer(2).get("blocks").is_none());

    // No layer divides: what is kept is what unstructured masks keep, and it is said.
    let none = inspect("--model resnet20 --width 10 --sparsity 0.9 --pattern block:16x16").unwrap();
    assert!(none.contains("\nblock:16x16 fits none of 20 masked layers: all are unstructured\n"), "{none}");
    assert!(none.contains("\n  20 unstructured, channels: they do not divide by the block\n"), "{none}");
    let counts = |pattern: &str| {
        let report = json(&format!("--model resnet20 --width 10 --sparsity 0.9 --pattern {pattern}"));
        report["layers"].as_array().unwrap().iter().map(|l| l["nnz"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(counts("block:16x16"), counts("unstructured"));
    let dense = inspect("--method dense --pattern block:16x16").unwrap();
    assert!(dense.contains("\nblock:16x16, nothing to keep in blocks\n"), "{dense}");
}

/// A writer that fails after `room` bytes.
struct Full {
    room: usize,
    kind: io::ErrorKind,
}

impl io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        if taken == 0 { Err(self.kind.into()) } else { Ok(taken) }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_is_no_failure_and_a_full_disk_is() {
    let cli = Cli::try_parse_from(["inspect", "--density", "0.1"]).unwrap();
    for room in [0, 100] {
        write(&cli.args, &mut Full { room, kind: io::ErrorKind::BrokenPipe }).unwrap();
        let e = write(&cli.args, &mut Full { room, kind: io::ErrorKind::StorageFull }).unwrap_err();
        assert_eq!(e.exit_code(), 1);
        assert!(e.to_string().starts_with("standard output: cannot write: "), "{e}");
    }
}
