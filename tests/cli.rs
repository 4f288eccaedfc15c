//! The command line as far as no network is trained: help, faults, exit codes, run directories.

use assert_cmd::Command;
use std::path::Path;

/// The program in `folder`, and what it says: exit code, standard output, standard error.
fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let out = Command::cargo_bin("sparse-engine").unwrap().current_dir(folder).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(out.stdout), text(out.stderr));
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    (out.status.code().unwrap(), stdout, stderr)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A run that must be refused with `code`, leaving nothing behind; its error lines.
fn refused(args: &[&str], code: i32) -> Vec<String> {
    let folder = folder();
    let (got, stdout, stderr) = run(folder.path(), args);
    assert_eq!(got, code, "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?} left something behind");
    let lines: Vec<_> = stderr.lines().map(str::to_string).collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| l.starts_with("error: ")), "{args:?}: {stderr}");
    lines
}

#[test]
fn help_tells_a_newcomer_what_to_do() {
    let folder = folder();
    let (code, stdout, _) = run(folder.path(), &["--help"]);
    assert_eq!(code, 0);
    assert!(["train", "eval", "inspect", "Start with:  sparse-engine train"].iter().all(|w| stdout.contains(w)));
    let (code, stdout, _) = run(folder.path(), &["train", "--help"]);
    assert_eq!(code, 0);
    let words = [
        "--recipe",
        "--config",
        "--set",
        "--data",
        "--pattern",
        "--device",
        "--epochs",
        "--seed",
        "--threads",
        "--out",
        "--resume",
        "--checkpoint-every",
        "--quiet",
        "[default: fashion-mnist-resnet20]",
        "[default: one a core]",
        "Examples:",
        "cifar10-resnet20",
        "docs/config.md",
        "auto",
        "cpu",
        "cuda",
        "75",
    ];
    for word in words {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    let (code, stdout, _) = run(folder.path(), &["eval", "--help"]);
    assert_eq!(code, 0);
    for word in
        ["CHECKPOINT", "--data", "--split", "--batch-size", "--threads", "--json", "Example:", "[default: test]"]
    {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    let (code, stdout, stderr) = run(folder.path(), &[]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("Usage:"), "{stderr}");
    let (code, stdout, _) = run(folder.path(), &["--version"]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with(concat!("sparse-engine ", env!("CARGO_PKG_VERSION"))), "{stdout}");
}

#[test]
fn wrong_arguments_exit_with_2() {
    let folder = folder();
    for args in [
        &["trane"][..],
        &["train", "--epoch", "3"],
        &["train", "--epochs", "many"],
        &["train", "--device", "gpu"],
        &["train", "--threads", "0"],
        &["train", "--checkpoint-every", "0"],
        &["train", "--checkpoint-every", "nan"],
        &["train", "--checkpoint-every", "-1"],
        &["train", "stray"],
        &["eval"],
        &["eval", "x", "--split", "testing"],
        &["eval", "x", "--batch-size", "0"],
        &["inspect", "--method", "magic", "--sparsity", "0.9"],
    ] {
        let (code, stdout, stderr) = run(folder.path(), args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_unknown_recipe_lists_those_there_are() {
    let lines = refused(&["train", "--recipe", "cifar"], 2);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("unknown recipe \"cifar\"") && lines[0].contains("sparse-engine recipes lists them"));
}

#[test]
fn all_faults_are_reported_at_once_one_a_line() {
    let lines = refused(
        &["train", "--set", "sparsity=1.0", "--set", "momentun=0.9", "--set", "method=magic", "--epochs", "0"],
        2,
    );
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for part in [
        "sparsity: wanted",
        "did you mean momentum?",
        "\"dense\", \"uniform\", \"uniform-plus\", \"er\", \"erk\"",
        "epochs: wanted",
    ] {
        assert!(lines.iter().any(|l| l.contains(part)), "{part}: {lines:#?}");
    }
    let lines = refused(&["train", "--pattern", "block:16", "--set", "mask_draw=toss"], 2);
    assert!(lines.len() == 2 && lines.iter().any(|l| l.contains("pattern: wanted \"unstructured\"")), "{lines:?}");
    for bad in ["sparsity=-0.5", "sparsity=nan", "density=0", "sparsity=1.0"] {
        assert_eq!(refused(&["train", "--set", bad], 2).len(), 1, "{bad}");
    }
    let lines = refused(&["train", "--set", "sparsity=0.9", "--set", "density=0.1"], 2);
    assert!(lines[0].contains("sparsity and density are both given"), "{lines:?}");
}

#[test]
fn an_unknown_model_is_refused_and_leaves_no_run() {
    let lines = refused(&["train", "--set", "model=resnet21"], 2);
    assert!(lines[0].contains("resnet21") && lines[0].contains("6D+2"), "{lines:?}");
}

#[test]
fn files_that_are_not_there_exit_with_1() {
    assert!(refused(&["train", "--config", "no.toml"], 1)[0].contains("no.toml: cannot read the configuration"));
    assert!(refused(&["train", "--data", "no/data"], 1)[0].contains("no/data"));
    assert!(refused(&["train", "--data", "no/data", "--out", "out"], 1)[0].contains("no/data"));
    assert!(refused(&["train", "--resume", "no/run"], 1)[0].contains("no/run/last.safetensors: no such checkpoint"));
    assert!(refused(&["eval", "no.safetensors"], 1)[0].contains("no.safetensors: cannot read the checkpoint"));
}

#[test]
fn a_run_goes_on_as_it_began() {
    let lines = refused(&["train", "--resume", "run", "--epochs", "3", "--set", "lr=1", "--out", "x"], 2);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("--set, --epochs, --out cannot be given with --resume run"), "{lines:?}");
    let lines = refused(&["train", "--resume", "auto"], 2);
    assert!(lines[0].contains("--resume auto needs --out"), "{lines:?}");
}

#[test]
fn another_configuration_in_the_resumed_run_is_named() {
    let folder = folder();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let config = sparse_engine::config::resolve(None, None, &Default::default()).unwrap().config;
    std::fs::write(out.join("config.toml"), config.to_toml().unwrap()).unwrap();
    std::fs::write(out.join("last.safetensors"), "not one").unwrap();
    let auto = ["train", "--out", "out", "--resume", "auto", "--set", "lr=0.7"];
    let (code, _, stderr) = run(folder.path(), &auto);
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains("another configuration") && stderr.contains(&format!("error: lr: {}, 0.7", config.lr)),
        "{stderr}"
    );
    let (code, _, stderr) = run(folder.path(), &auto[..5]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("last.safetensors: not a whole safetensors file"), "{stderr}");
    let (code, _, stderr) = run(folder.path(), &["train", "--resume", "out"]);
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(std::fs::read(out.join("last.safetensors")).unwrap(), b"not one");
}

#[test]
fn an_output_directory_that_cannot_be_used_is_refused_before_training() {
    let folder = folder();
    std::fs::write(folder.path().join("file"), "kept").unwrap();
    for out in ["file", "file/below"] {
        let (code, _, stderr) = run(folder.path(), &["train", "--out", out]);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains(&format!("error: {out}: cannot write into the output directory")), "{stderr}");
    }
    std::fs::create_dir(folder.path().join("full")).unwrap();
    std::fs::write(folder.path().join("full/summary.json"), "kept").unwrap();
    for args in [&["train", "--out", "full"][..], &["train", "--out", "full", "--resume", "auto"]] {
        let (code, _, stderr) = run(folder.path(), args);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("full: the output directory is not empty (it holds \"summary.json\")"), "{stderr}");
    }
    assert_eq!(std::fs::read(folder.path().join("full/summary.json")).unwrap(), b"kept");
}

#[test]
#[cfg(target_os = "linux")]
fn a_reader_that_left_is_no_failure_and_a_full_disk_is_one() {
    use std::process::{Command, Stdio};
    let program = assert_cmd::cargo::cargo_bin("sparse-engine");
    let args = ["inspect", "--model", "resnet110", "--method", "erk", "--sparsity", "0.9"];
    let mut child = Command::new(&program).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out = Command::new(&program).args(args).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("error: standard output: cannot write"));
}
