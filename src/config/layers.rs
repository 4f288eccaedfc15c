//! Sources of configuration laid over each other, key by key: recipe, file, command line.

use super::keys::{self, Key};
use super::method::METHOD_KEYS;
use crate::shape::Network;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// What one source says. A key whose value was refused is there without a value: its fault is noted, and checks that
/// would need it are left out rather than done on the value of an earlier source.
#[derive(Default)]
pub(super) struct Layer {
    source: String,
    entries: BTreeMap<&'static str, Option<Value>>,
}

/// Faults, one line each.
pub(super) type Faults = Vec<String>;

impl Layer {
    pub(super) fn new(source: impl Into<String>) -> Self {
        Layer { source: source.into(), entries: BTreeMap::new() }
    }

    /// A TOML document.
    pub(super) fn parse(source: impl Into<String>, text: &str, faults: &mut Faults) -> Self {
        let mut layer = Layer::new(source);
        match text.parse::<Table>() {
            Ok(table) => layer.add_table("", &table, faults),
            Err(e) => {
                let before = e.span().map_or("", |s| text.get(..s.start).unwrap_or(text));
                let line = before.matches('\n').count() + 1;
                let what = e.message().replace('\n', ", ");
                faults.push(format!("{}: line {line}: not valid TOML: {what}", layer.source));
            }
        }
        layer
    }

    /// A table of keys.
    pub(super) fn of(source: impl Into<String>, table: &Table, faults: &mut Faults) -> Self {
        let mut layer = Layer::new(source);
        layer.add_table("", table, faults);
        layer
    }

    /// One `--set key=value`: the value as TOML, and as a string where TOML cannot read it.
    pub(super) fn set(&mut self, assignment: &str, faults: &mut Faults) {
        let Some((name, text)) = assignment.split_once('=').filter(|(name, _)| !name.trim().is_empty()) else {
            faults.push(format!("{}: {assignment:?}: wanted key=value", self.source));
            return;
        };
        let (name, text) = (name.trim(), text.trim());
        let parsed = text.parse::<Value>().ok();
        let bare = || Value::String(text.to_string());
        let value = match (keys::find(name), parsed) {
            (Some(key), Some(v)) if key.is_text() && !v.is_str() => bare(), // a folder named 2024 is no number
            (_, Some(v)) => v,
            (_, None) => bare(),
        };
        self.add(name, &value, faults);
    }

    /// One key and its value; tables are descended into.
    pub(super) fn add(&mut self, name: &str, value: &Value, faults: &mut Faults) {
        if let Some(key) = keys::find(name) {
            self.insert(key, value, faults);
        } else if name == "seed" && !value.is_table() {
            self.insert(keys::find("seed.base").expect("a key of the table"), value, faults);
        } else if !keys::is_section(name) {
            faults.push(format!("{}: {}: {}", self.source, short(name), keys::unknown(name)));
        } else if let Value::Table(table) = value {
            self.add_table(name, table, faults);
        } else {
            faults.push(format!("{}: {name}: wanted a table, such as [{name}]", self.source));
        }
    }

    fn add_table(&mut self, section: &str, table: &Table, faults: &mut Faults) {
        for (name, value) in table {
            let name = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            self.add(&name, value, faults);
        }
    }

    fn insert(&mut self, key: &'static Key, value: &Value, faults: &mut Faults) {
        let checked = key.check(value);
        if let Err(what) = &checked {
            let name = if key.name == "seed.base" { "seed" } else { key.name };
            faults.push(format!("{}: {name}: {what}", self.source));
        }
        self.entries.insert(key.name, checked.ok());
        if key.name == "model" {
            self.read_network(faults);
        }
    }

    /// A model that is a file of layers: its text becomes part of the configuration, so that a run needs no other file.
    fn read_network(&mut self, faults: &mut Faults) {
        let model = self.entries.get("model").and_then(|m| m.as_ref()?.as_str()).map(str::to_string);
        let Some(path) = model.as_deref().map(Path::new).filter(|p| p.extension().is_some_and(|e| e == "toml")) else {
            return;
        };
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match std::fs::read_to_string(path) {
            Ok(text) => {
                self.entries.insert("model", Some(Value::String(name)));
                self.entries.insert("network_toml", Some(Value::String(text)));
            }
            Err(e) => {
                faults.push(format!("{}: model: {}: cannot read the network: {e}", self.source, path.display()));
                self.entries.insert("model", None);
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
}

/// A key as part of an error line: one line, of bounded length.
fn short(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if name.chars().count() > 60 { name.chars().take(57).chain("...".chars()).collect() } else { name }
}

/// The last value of a key, and where it stood.
struct Entry {
    value: Option<Value>,
    source: String,
    /// The epochs in force in that source: what milestones and warm-up are counted for.
    epochs: Option<f64>,
}

/// All sources laid over each other.
#[derive(Default)]
pub(super) struct Merged {
    entries: BTreeMap<&'static str, Entry>,
}

impl Merged {
    /// Lays `layer` over what is there. Keys that say the same thing in other words replace each other: a sparsity an
    /// earlier density, a base seed the earlier single ones, `method = "dense"` an earlier sparsity, another kind of
    /// schedule the earlier milestones, other data the earlier normalisation, a network that has no width the earlier one.
    pub(super) fn lay(&mut self, layer: Layer, faults: &mut Faults) {
        if layer.has("sparsity") && layer.has("density") {
            faults.push(format!("{}: sparsity and density are both given; give one", layer.source));
        }
        let changes = |name: &str, new: &Layer| {
            new.entries.get(name).is_some_and(|v| self.entries.get(name).is_none_or(|old| old.value != *v))
        };
        let mut replaced: Vec<&str> = Vec::new();
        if layer.has("sparsity") {
            replaced.push("density");
        }
        if layer.has("density") {
            replaced.push("sparsity");
        }
        if layer.entries.get("method").is_some_and(|m| m.as_ref().is_some_and(|m| m.as_str() == Some("dense"))) {
            replaced.extend(["density", "sparsity"]);
        }
        if changes("method", &layer) {
            replaced.extend(METHOD_KEYS.iter().map(|(key, _)| *key));
        }
        if layer.entries.get("method").is_some_and(|m| m.as_ref().is_some_and(|m| m.as_str() == Some("file"))) {
            replaced.extend(["density", "sparsity"]);
        }
        if layer.has("model") {
            replaced.push("network_toml");
        }
        if layer.has("seed.base") {
            replaced.extend(["seed.init", "seed.mask", "seed.data"]);
        }
        if changes("schedule.kind", &layer) {
            replaced.extend(["schedule.milestones", "schedule.gamma"]);
        }
        if changes("data", &layer) {
            replaced.extend(["preprocess.mean", "preprocess.std"]);
        }
        let network = layer.entries.get("model").and_then(|m| m.as_ref()?.as_str()?.parse::<Network>().ok());
        if network.is_some_and(|n| n.standard_width().is_none()) || layer.has("network_toml") {
            replaced.push("width");
        }
        for name in replaced {
            self.entries.remove(name);
        }
        let epochs = match layer.entries.get("epochs") {
            Some(value) => value.as_ref().and_then(Value::as_integer).map(|e| e as f64),
            None => self.number("epochs"),
        };
        for (name, value) in layer.entries {
            self.entries.insert(name, Entry { value, source: layer.source.clone(), epochs });
        }
    }

    /// Gives a network that can have any width the standard one where no source names it: a source below may have named a
    /// network that has none.
    pub(super) fn fill_width(&mut self) {
        if let (Some(width), false) = (self.network().and_then(Network::standard_width), self.has("width")) {
            let source = self.source("model").to_string();
            self.entries.insert("width", Entry { value: Some(Value::Integer(width as i64)), source, epochs: None });
        }
    }

    /// The network, if it is a built-in one and its name is good.
    pub(super) fn network(&self) -> Option<Network> {
        if self.has("network_toml") {
            return None;
        }
        self.text("model")?.parse().ok()
    }

    /// Whether any source has the key, with a good value or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The value of a key, if it has a good one.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.entries.get(name)?.value.as_ref()
    }

    /// The value of a number or a count.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        match self.value(name)? {
            Value::Integer(i) => Some(*i as f64),
            Value::Float(f) => Some(*f),
            _ => None,
        }
    }

    /// The value of a string.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.value(name)?.as_str()
    }

    /// The value of a list of numbers.
    pub(super) fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        self.value(name)?.as_array()?.iter().map(Value::as_float).collect()
    }

    /// The source that a key comes from.
    pub(super) fn source(&self, name: &str) -> &str {
        self.entries.get(name).map_or("configuration", |e| e.source.as_str())
    }

    /// The epochs that a key's source counts for.
    pub(super) fn epochs_of(&self, name: &str) -> Option<f64> {
        self.entries.get(name)?.epochs
    }

    /// Keys with good values.
    pub(super) fn good(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.entries.iter().filter_map(|(k, e)| Some((*k, e.value.as_ref()?)))
    }
}
