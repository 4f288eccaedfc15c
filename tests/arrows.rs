//! Imports point down only: cli -> train -> graph -> backend -> shape. A forbidden arrow fails here, with its file and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What each module may name with `crate::`. Itself is always allowed.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let rows = [
        ("error", ""),
        ("shape", ""),
        ("rng", ""),
        ("memory", "error"),
        ("backend", "error memory shape"),
        ("sparsity", "error memory rng shape"),
        ("data", "error rng"),
        ("metrics", "error"),
        ("config", "data error shape sparsity"),
        ("optim", "config error"),
        ("bench", "backend error graph models rng shape sparsity"),
        ("tune", "backend error graph rng shape sparsity"),
        ("checkpoint", "config error graph report sparsity"),
        ("report", "backend config data error metrics"),
        ("graph", "backend error rng shape sparsity"),
        ("models", "error graph shape"),
        ("saliency", "backend error graph memory rng shape sparsity"),
        ("train", "backend checkpoint config data error graph memory metrics models optim report saliency sparsity"),
        ("cli", "backend bench checkpoint config data error graph metrics models report shape sparsity train tune"),
    ];
    rows.map(|(module, named)| (module, named.split_whitespace().collect())).into()
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Modules that a line of code names after `crate::`, a braced list included.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or("");
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, key) in code.match_indices("crate::") {
        let rest = &code[at + key.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(list.split(',').map(|part| word(part.trim()))),
            None => found.push(word(rest)),
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let allowed = allowed();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 10, "found the sources");
    let mut bad = Vec::new();
    let mut arrows = 0;
    for file in &files {
        let inside = file.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let tests = inside.to_str().unwrap().ends_with("tests.rs");
        if tests || matches!(module, "lib" | "main") {
            continue;
        }
        let text = std::fs::read_to_string(file).unwrap();
        // Unit tests may look further up.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            for target in named(line).iter().filter(|t| allowed.contains_key(t.as_str())) {
                arrows += 1;
                let ok = target == module || allowed.get(module).is_some_and(|to| to.contains(&target.as_str()));
                if !ok {
                    bad.push(format!("{}:{}: {module} -> {target}", inside.display(), number + 1));
                }
            }
            if !allowed.contains_key(module) {
                bad.push(format!("{}: module {module} has no entry in tests/arrows.rs", inside.display()));
                break;
            }
        }
    }
    assert!(arrows > 20, "read the imports: {arrows}");
    assert!(bad.is_empty(), "forbidden arrows:\n{}", bad.join("\n"));
}

#[test]
fn the_reader_sees_braces_and_ignores_comments() {
    assert_eq!(named("use crate::{graph::Net, error::Result};"), ["graph", "error"]);
    assert_eq!(named("let x = crate::train::train(a); // crate::cli"), ["train"]);
}
