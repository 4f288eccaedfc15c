//! The keys that belong to some methods only: which, and what they are where they are not given.

use super::layers::{Faults, Merged};
use toml::Value;

/// Keys with the methods that have them.
pub(super) const METHOD_KEYS: &[(&str, &[&str])] = &[
    ("erk_power", &["erk", "erk-plus"]),
    ("last_density", &["erk-plus"]),
    ("custom.rest", &["custom"]),
    ("custom.layers", &["custom"]),
    ("mask", &["file"]),
    ("positions", &["snip", "grasp", "global-magnitude"]),
    ("score_init", &["snip", "grasp"]),
    ("score_samples", &["snip"]),
    ("score_samples_per_class", &["grasp"]),
    ("score_halves", &["grasp"]),
    ("score_temperature", &["grasp"]),
    ("score_augment", &["snip", "grasp"]),
];

/// What a key of `method` is where no source gives it (paper section 1.4); `None`: it must be given.
fn default(key: &str, method: &str, merged: &Merged) -> Option<Value> {
    let text = |word: &str| Some(Value::String(word.into()));
    match key {
        "erk_power" | "last_density" => Some(Value::Float(1.0)),
        "custom.rest" => text("uniform"),
        // The positions of magnitudes are kept by the released code, too; those of SNIP and GraSP are drawn anew by the paper.
        "positions" => text(if method == "global-magnitude" { "keep" } else { "draw" }),
        "score_init" => text("own"),
        "score_samples" => merged.value("batch_size").cloned(),
        "score_samples_per_class" => Some(Value::Integer(25)),
        "score_halves" => text("class"),
        "score_temperature" => Some(Value::Float(200.0)),
        "score_augment" => Some(Value::Boolean(true)),
        _ => None,
    }
}

/// The keys of the method that no source gives, with their values. Keys of other methods, and those without which the method
/// is nothing, are faults.
pub(super) fn fill(merged: &Merged, faults: &mut Faults) -> Vec<(&'static str, Value)> {
    let Some(method) = merged.text("method") else { return vec![] };
    let mut filled = Vec::new();
    for &(key, methods) in METHOD_KEYS {
        match (methods.contains(&method), merged.has(key)) {
            (true, false) => match default(key, method, merged) {
                Some(value) => filled.push((key, value)),
                None if key == "mask" => faults.push(format!(
                    "{}: mask: method file needs a file of masks: mask = \"FILE.safetensors\"",
                    merged.source("method")
                )),
                None if key == "custom.layers" => faults.push(format!(
                    "{}: custom.layers: method custom needs densities of layers, such as [custom.layers] with \"@first\" = 1.0",
                    merged.source("method")
                )),
                None => {}
            },
            (false, true) => faults.push(format!(
                "{}: {key}: method {method} has no such key, it belongs to {}; leave it out, or set method",
                merged.source(key),
                methods.join(", ")
            )),
            _ => {}
        }
    }
    filled
}
