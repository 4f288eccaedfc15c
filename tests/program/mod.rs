//! The program, run as a user would.

use assert_cmd::Command;
use serde_json::Value;

/// Exit code, standard output, standard error.
pub fn program(args: &str) -> (i32, String, String) {
    let out = Command::cargo_bin("sparse-engine").unwrap().args(args.split_whitespace()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(out.stdout), text(out.stderr));
    assert!(!stderr.contains("panicked"), "{args}: {stderr}");
    (out.status.code().unwrap(), stdout, stderr)
}

/// What it prints with `--json`, and nothing else.
pub fn json(args: &str) -> Value {
    let (code, stdout, stderr) = program(args);
    assert_eq!((code, stderr.as_str()), (0, ""), "{args}");
    serde_json::from_str(&stdout).unwrap()
}
