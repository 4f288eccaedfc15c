//! Bad input through the program: the exit code, one line a fault, no panic, nothing half-written.

mod data_support;
mod support;

use data_support::{gzip, idx};
use sparse_engine::checkpoint::Checkpoint;
use sparse_engine::train::train;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::*;

/// A refused `train`: the output directory that it would have made is not there.
fn refused(lab: &Lab, args: &[&str], code: i32, wanted: &[&str]) {
    let o = run(lab.train("refused").args(args)).refused(code, wanted);
    assert!(!lab.path("refused").exists(), "{args:?} leaves an output directory: {o:?}");
    assert_eq!(o.out, "", "{args:?} prints although it never starts");
}

/// The four files of a good IDX set after `change`, in a folder of their own.
fn idx_set(lab: &Lab, name: &str, change: impl FnOnce(&Path)) -> String {
    let folder = lab.path(name);
    write_idx(&folder, &images(60, 5), &images(20, 6));
    change(&folder);
    folder.to_str().unwrap().to_string()
}

fn rewrite(file: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&file).unwrap();
    change(&mut bytes);
    fs::write(&file, bytes).unwrap();
}

const TRAIN_X: &str = "train-images-idx3-ubyte";
const TEST_Y: &str = "t10k-labels-idx1-ubyte";

#[test]
fn data_files() {
    let lab = Lab::new();
    run(lab.train("good").args(["--set", "validation=20", "--data", &idx_set(&lab, "good-data", |_| ())])).ok();
    let cases = [
        (lab.path("nowhere").to_str().unwrap().to_string(), vec!["nowhere: no such file or folder"]),
        (idx_set(&lab, "missing", |f| fs::remove_file(f.join(TEST_Y)).unwrap()), vec![TEST_Y]),
        (idx_set(&lab, "cut", |f| rewrite(f.join(TRAIN_X), |b| b.truncate(b.len() - 9))), vec![TRAIN_X, "truncated"]),
        (idx_set(&lab, "empty", |f| fs::write(f.join(TRAIN_X), "").unwrap()), vec![TRAIN_X]),
        (idx_set(&lab, "claims", |f| rewrite(f.join(TRAIN_X), |b| b[4] = 0x7f)), vec![TRAIN_X, "claims"]),
        (idx_set(&lab, "magic", |f| rewrite(f.join(TRAIN_X), |b| b[2] = 0x0d)), vec![TRAIN_X, "not an IDX file"]),
        (
            idx_set(&lab, "counts", |f| fs::write(f.join(TEST_Y), idx(&[19], &[0; 19])).unwrap()),
            vec![TEST_Y, "19 labels for the 20 images"],
        ),
        (
            idx_set(&lab, "label", |f| rewrite(f.join(TEST_Y), |b| *b.last_mut().unwrap() = 4)),
            vec![TEST_Y, "label 4 of test image 19: wanted 0 to 3"],
        ),
        (
            idx_set(&lab, "gz", |f| {
                let mut packed = gzip(&fs::read(f.join(TRAIN_X)).unwrap());
                let middle = packed.len() / 2;
                packed[middle] ^= 0x55;
                fs::write(f.join(format!("{TRAIN_X}.gz")), packed).unwrap();
                fs::remove_file(f.join(TRAIN_X)).unwrap();
            }),
            vec!["train-images-idx3-ubyte.gz", "gzip"],
        ),
    ];
    for (path, wanted) in &cases {
        refused(&lab, &["--set", "validation=20", "--data", path], 1, wanted);
    }
    let npz = lab.bytes("data.npz");
    for (name, bytes) in [("cut", &npz[..npz.len() / 2]), ("empty", b""), ("text", b"x_train = 3")] {
        let path = lab.path(&format!("{name}.npz"));
        fs::write(&path, bytes).unwrap();
        refused(&lab, &["--data", path.to_str().unwrap()], 1, &[&format!("{name}.npz")]);
    }
    refused(&lab, &["--set", "data=builtin:mnist"], 2, &["builtin:fashion-mnist"]);
    refused(&lab, &["--recipe", "cifar10-resnet20", "--data", ""], 2, &["data: wanted a string"]);
}

#[test]
fn images_that_the_network_cannot_take() {
    let lab = Lab::new();
    let write = |name: &str, n: usize, h: usize, w: usize, classes: u8| {
        let set = |n: usize| {
            ((0..n * h * w).map(|i| hash(i as u64) as u8).collect(), (0..n).map(|i| i as u8 % classes).collect())
        };
        fs::write(lab.path(name), npz_of(&set(n), &set(10), h, w)).unwrap();
        lab.path(name).to_str().unwrap().to_string()
    };
    let data = write("oblong.npz", 40, 8, 10, 3);
    refused(&lab, &["--data", &data, "--set", "validation=9"], 1, &["oblong.npz", "square", "1 x 8 x 10"]);
    let data = write("small.npz", 40, 3, 3, 3);
    refused(&lab, &["--data", &data, "--set", "validation=9"], 2, &["image size: wanted 4 to 1024, got 3"]);
    let data = write("one-class.npz", 40, 8, 8, 1);
    refused(&lab, &["--data", &data, "--set", "validation=9"], 2, &["classes: wanted 2 to"]);
    // 33 images in batches of 32: the last batch is one image, and the last planes of a 4x4 image are 1x1.
    let data = write("dot.npz", 33, 4, 4, 3);
    let last: Vec<&str> = vec!["--data", &data, "--set", "validation=0", "--set", "selection=last"];
    refused(&lab, &last, 2, &["batch norm segment2.block0.bn1", "batch of 1 image with a 1x1 plane", "batch_size"]);
    run(lab.train("ragged").args(&last).args(["--set", "batch_size=31"])).ok();
    refused(&lab, &["--set", "validation=270"], 2, &["validation = 270", "270 training images"]);
    refused(&lab, &["--set", "validation=9999"], 2, &["validation = 9999"]);
    refused(&lab, &["--set", "augment.pad=8"], 2, &["augment.pad = 8", "1 x 8 x 8"]);
    refused(
        &lab,
        &["--set", "preprocess.mean=[0.1,0.2]", "--set", "preprocess.std=[1,1]"],
        2,
        &["preprocess", "1 channel"],
    );
    let flat = (vec![7; 40 * 64], (0..40).map(|i| i % 3).collect());
    fs::write(lab.path("flat.npz"), npz_of(&flat, &flat, 8, 8)).unwrap();
    let flat = lab.path("flat.npz").to_str().unwrap().to_string();
    refused(
        &lab,
        &["--data", &flat, "--set", "validation=9"],
        1,
        &["flat.npz", "deviation is zero", "preprocess.mean"],
    );
}

#[test]
fn configuration() {
    let lab = Lab::new();
    let set = |text: &str, wanted: &[&str]| refused(&lab, &["--set", text], 2, wanted);
    set("model=vgg12", &["unknown model \"vgg12\"", "resnetN"]);
    set("model=resnet9", &["unknown model \"resnet9\"", "resnet8"]);
    set("method=erq", &["method: wanted one of", "\"erk\"", "did you mean"]);
    set("sparsty=0.9", &["sparsty: unknown key; did you mean sparsity?", "allowed"]);
    for bad in ["1.0", "1", "-0.1", "nan", "inf", "lots"] {
        set(&format!("sparsity={bad}"), &["sparsity: wanted a number in [0, 1), got"]);
    }
    for bad in ["0.0", "1.1", "-1", "nan"] {
        set(&format!("density={bad}"), &["density: wanted a number in (0, 1], got"]);
    }
    set("sparsity=0.9999", &["layer conv.weight [4, 1, 3, 3] would keep none of its 36 weights"]);
    set("lr=nan", &["lr: wanted a number above 0"]);
    set("schedule.milestones=[3, 5]", &["milestone 5 is epoch 5 of 5", "would never be reached"]);
}

#[test]
fn settings_of_several_sources() {
    let lab = Lab::new();
    refused(&lab, &["--set", "sparsity=0.5", "--set", "density=0.5"], 2, &["sparsity and density are both given"]);
    refused(&lab, &["--recipe", "cifar"], 2, &["unknown recipe \"cifar\"", "sparse-engine recipes lists them"]);
    // All faults at once, a line each.
    let all = [
        "--recipe",
        "no",
        "--set",
        "method=x",
        "--set",
        "foo=1",
        "--set",
        "sparsity=2",
        "--set",
        "epochs=0",
        "--set",
        "x",
    ];
    let o =
        run(lab.train("refused").args(all)).refused(2, &["recipe", "method", "foo", "sparsity", "epochs", "key=value"]);
    assert_eq!(o.err.lines().count(), 6, "{o:?}");
    let toml = lab.path("bad.toml");
    for (text, wanted) in [
        ("sparsity = 0.5\ndensity = 0.5\n", "both given"),
        ("momentun = 0.5\n", "momentun: unknown key; did you mean momentum?"),
        ("[augment]\npadd = 1\n", "augment.padd: unknown key; did you mean augment.pad?"),
        ("lr = 0.1\nlr = 0.2\n", "line 2: not valid TOML"),
        ("= =", "line 1: not valid TOML"),
        ("epochs = \"many\"\n", "epochs: wanted a whole number"),
    ] {
        fs::write(&toml, text).unwrap();
        let mut c = program(&["train", "--config"]);
        run(c.arg(&toml).arg("--out").arg(lab.path("refused"))).refused(2, &["bad.toml", wanted]);
    }
    for (path, wanted) in [("nowhere.toml", "No such file"), ("data.npz", "UTF-8"), (".", "directory")] {
        let mut c = program(&["train", "--config"]);
        run(c.arg(lab.path(path)).arg("--out").arg(lab.path("refused")))
            .refused(1, &["cannot read the configuration", wanted]);
    }
    assert!(!lab.path("refused").exists());
    // Refused by the argument parser, in its own words.
    for args in [
        &["--epochs", "many"][..],
        &["--threads", "0"],
        &["--device", "tpu"],
        &["--checkpoint-every", "0"],
        &["--checkpoint-every", "nan"],
        &["--no-such-option"],
        &["stray"],
        &["--out", ""],
    ] {
        let mut c = program(&["train"]);
        let o = run(c.args(args).current_dir(lab.path("")));
        assert!(o.code == Some(2) && o.err.starts_with("error: ") && o.out.is_empty(), "{args:?}: {o:?}");
    }
    assert!(!lab.path("runs").exists());
}

#[test]
fn output_directories_that_cannot_be_written() {
    let lab = Lab::new();
    fs::write(lab.path("file"), "mine").unwrap();
    for out in [lab.path("file"), lab.path("file/below"), "/proc/nope/run".into()] {
        let mut c = program(&["train", "--config"]);
        run(c.arg(lab.config_file()).arg("--out").arg(&out)).refused(1, &[out.to_str().unwrap(), "output directory"]);
    }
    assert_eq!(lab.bytes("file"), b"mine");
    fs::create_dir(lab.path("full")).unwrap();
    fs::write(lab.path("full/thesis.tex"), "mine").unwrap();
    run(&mut lab.train("full")).refused(2, &["not empty (it holds \"thesis.tex\")", "--out"]);
    run(lab.train("full").args(["--resume", "auto"])).refused(2, &["thesis.tex"]);
    assert_eq!(lab.files("full"), ["thesis.tex"]);
    // An empty directory that was there stays there, empty.
    fs::create_dir(lab.path("mine")).unwrap();
    run(lab.train("mine").args(["--set", "model=resnet9"])).refused(2, &["resnet9"]);
    assert!(lab.files("mine").is_empty());
}

#[test]
fn checkpoints_to_evaluate() {
    let lab = Lab::new();
    run(&mut lab.train("run")).ok();
    let eval = |args: &[&str]| {
        let mut c = program(&["eval"]);
        run(c.args(args).current_dir(lab.path("")))
    };
    eval(&["run"]).ok();
    eval(&["data.npz"]).refused(1, &["data.npz: not a whole safetensors file"]);
    eval(&["nowhere"]).refused(1, &["nowhere: cannot read the checkpoint"]);
    eval(&["."]).refused(1, &["last.safetensors: cannot read the checkpoint"]);
    fs::write(lab.path("empty"), "").unwrap();
    eval(&["empty"]).refused(1, &["empty: not a whole safetensors file"]);
    fs::write(lab.path("foreign"), b"\x08\0\0\0\0\0\0\0{}      ").unwrap();
    eval(&["foreign"]).refused(1, &["foreign: wanted the format \"sparse-engine checkpoint 1\""]);
    eval(&["run", "--data", "nowhere.npz"]).refused(1, &["nowhere.npz: no such file"]);
    eval(&["run", "--data", "builtin:fashion-mnist"]).refused(1, &["1 x 28 x 28", "trained on 1 x 8 x 8"]);
    let more = |n| {
        let (x, y) = images(n, 1);
        (x, y.iter().enumerate().map(|(i, _)| i as u8 % 6).collect())
    };
    fs::write(lab.path("six.npz"), npz_of(&more(60), &more(20), SIDE, SIDE)).unwrap();
    eval(&["run", "--data", "six.npz"]).refused(1, &["six.npz", "in 6 classes", "in 4"]);
    run(lab.train("plain").args(["--set", "validation=0", "--set", "selection=last"])).ok();
    eval(&["plain", "--split", "val"]).refused(1, &["without a validation split"]);
    fs::remove_file(lab.data()).unwrap();
    eval(&["run"]).refused(1, &["data.npz: no such file"]);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint() {
    let lab = Lab::new();
    // From the start: nothing good to keep.
    for (n, more) in
        [&["--set", "lr=1e30"][..], &["--set", "lr=1e30", "--checkpoint-every", "0.000001"]].iter().enumerate()
    {
        let run_name = format!("start{n}");
        let o = run(lab.train(&run_name).args(*more))
            .refused(1, &["the loss became NaN at step 2 (epoch 1)", "no checkpoint", "lower lr"]);
        assert_eq!(o.err.lines().count(), 1);
        assert_eq!(lab.files(&run_name), ["config.toml", "metrics.jsonl", "plan.json"]);
    }
    // A whole epoch in one step: the evaluation sees it first.
    let args = ["--set", "batch_size=512", "--set", "lr=1e30"];
    run(lab.train("whole").args(args))
        .refused(1, &["the validation loss became", "at step 1 (epoch 1)", "no checkpoint"]);
    let args = [&args[..], &["--set", "validation=0", "--set", "selection=last"]].concat();
    run(lab.train("test").args(args)).refused(1, &["the test loss became", "at step 1 (epoch 1)", "no checkpoint"]);

    // After three good epochs: their checkpoints stay, byte for byte, and load.
    run(&mut lab.train("good")).ok();
    for (name, more) in [("later", &[][..]), ("timed", &["--checkpoint-every", "0.000001"])] {
        let c = &mut lab.train(name);
        let last = format!("{name}/last.safetensors");
        run(c.args(["--set", "schedule.gamma=1e30"]).args(more))
            .refused(1, &["became", "at step 26 (epoch 4)", "the last good checkpoint is", &last, "1e29 at that step"]);
        let kept = Checkpoint::load(&lab.path(&last)).unwrap().meta.progress;
        assert_eq!((kept.step, kept.epoch), (24, 3), "{name}");
        let o = run(program(&["eval"]).arg(lab.path(name))).ok();
        assert!(o.out.starts_with("accuracy "), "{o:?}");
        assert!(!lab.files(name).iter().any(|f| f == "summary.json" || f.ends_with(".tmp")), "{:?}", lab.files(name));
        assert!(lab.metrics(name).iter().all(|r| r.loss.is_finite()));
        // Going on from it ends at the same step.
        run(&mut lab.resume(name)).refused(1, &["at step 26 (epoch 4)", "the last good checkpoint is"]);
    }
}

#[test]
#[cfg(unix)]
fn a_full_disk_keeps_the_older_checkpoint() {
    let lab = Lab::new();
    run(&mut lab.train("whole")).ok();
    let stopped = train(&lab.config(&[]), &lab.options("run", 1), &mut Watch::stopping_at(11)).unwrap_err();
    assert_eq!(stopped.exit_code(), 75);
    let before = lab.bytes("run/last.safetensors");
    let blocks = before.len() / 512 - 8;
    assert!(lab.bytes("run/metrics.jsonl").len() + 4000 < blocks * 512, "the checkpoint is what does not fit");
    // A limit on the size of files stands for the disk: the write that goes beyond it fails, as it does on a full disk.
    let limited = |blocks: usize, args: &[&std::ffi::OsStr]| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut c = Command::new("sh");
        c.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_sparse-engine")).args(args);
        c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        run(&mut c)
    };
    let dir = lab.path("run");
    let o = limited(blocks, &["train".as_ref(), "--resume".as_ref(), dir.as_os_str()])
        .refused(1, &["best.safetensors: cannot write the checkpoint: File too large"]);
    assert_eq!(o.err.lines().count(), 1, "{o:?}");
    assert_eq!(lab.bytes("run/last.safetensors"), before);
    assert!(!lab.files("run").iter().any(|f| f.ends_with(".tmp")), "{:?}", lab.files("run"));
    let o = limited(
        blocks,
        &["train", "--checkpoint-every", "0.000001", "--resume"]
            .map(AsRef::as_ref)
            .iter()
            .copied()
            .chain([dir.as_os_str()])
            .collect::<Vec<_>>(),
    )
    .refused(1, &["last.safetensors: cannot write the checkpoint: File too large"]);
    assert!(o.err.lines().count() == 1 && lab.bytes("run/last.safetensors") == before, "{o:?}");
    run(program(&["eval"]).arg(&dir)).ok();
    run(&mut lab.resume("run")).ok();
    lab.assert_same_end("run", "whole", "resumed once there is room");

    // No room for the first file: nothing is left at all.
    let (config, out) = (lab.config_file(), lab.path("none"));
    let args = ["train".as_ref(), "--config".as_ref(), config.as_os_str(), "--out".as_ref(), out.as_os_str()];
    limited(0, &args).refused(1, &["config.toml: cannot write the configuration: File too large"]);
    assert!(!out.exists());
}
