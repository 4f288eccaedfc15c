//! Your own network, written as TOML: layers in order, each of which takes the output of the one before.
//!
//! ```
//! use sparse_engine::models::own_network;
//! let text = r#"
//!     layers = [
//!         { op = "conv", channels = 16, kernel = 3 },
//!         { op = "bn" },
//!         { op = "relu" },
//!         { op = "repeat", name = "block", times = 2, layers = [
//!             { op = "conv", channels = [16, 32], kernel = 3, stride = [1, 2] },
//!             { op = "bn" },
//!             { op = "relu" },
//!         ] },
//!         { op = "pool" },
//!         { op = "linear" },
//!     ]
//! "#;
//! let graph = own_network(text, "mine.toml", [1, 28, 28], 10)?;
//! let names: Vec<_> = graph.convs().iter().map(|c| c.name.as_str()).collect();
//! assert_eq!(names, ["conv1", "block0.conv1", "block1.conv1", "linear1"]);
//! # Ok::<(), sparse_engine::Error>(())
//! ```
//!
//! What the words mean: `docs/networks.md`.

use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId};
use std::collections::{HashMap, HashSet};
use toml::{Table, Value};

/// Far beyond any sensible network; keeps a slip of the pen from filling the memory.
const MOST_NODES: usize = 20_000;
const MOST_REPEATS: i64 = 1_000;
const DEEPEST: usize = 8;
/// Largest number of channels or outputs.
const MOST_CHANNELS: i64 = 65_536;
/// Largest kernel, window, stride or padding.
const LARGEST: i64 = 1_024;

/// Builds the network that `text` describes for images of `[channels, rows, columns]` and `classes` classes. `source` names
/// the file in errors.
///
/// # Errors
/// Text that is no TOML, an unknown operation or word, a layer that does not fit what it reads, or whose output nothing reads,
/// an output that is not `classes` logits: with the place of the layer in the list.
pub fn own_network(text: &str, source: &str, image: [usize; 3], classes: usize) -> Result<Graph> {
    let usage = |what: String| Error::Usage(format!("{source}: {what}"));
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text.get(..s.start).unwrap_or("").matches('\n').count() + 1);
        usage(format!("line {line}: not valid TOML: {}", e.message().replace('\n', ", ")))
    })?;
    if let Some(key) = table.keys().find(|key| *key != "layers") {
        return Err(usage(format!("unknown key {key:?}: a network has one, layers, a list of tables")));
    }
    let layers = table.get("layers").ok_or_else(|| usage("no layers: wanted layers = [ { op = ... }, ... ]".into()))?;
    if image.contains(&0) || classes < 2 {
        return Err(usage(format!(
            "images of {image:?} in {classes} classes: wanted a pixel and two classes at least"
        )));
    }
    let [c, h, w] = image;
    let graph = Graph::new(c, h, w);
    let last = graph.input();
    let places = vec!["the images".to_string()];
    let mut build = Build { graph, last, names: HashSet::new(), classes, places };
    build.list(layers, &Scope::default(), "layers").map_err(usage)?;
    let Build { graph, last, places, .. } = build;
    let got = graph.nodes()[last.index()].chw;
    if graph.nodes().len() == 1 || got != (classes as u32, 1, 1) {
        let (c, h, w) = got;
        return Err(usage(format!(
            "the last layer gives {c}x{h}x{w}, wanted {classes}x1x1, a logit a class; end with {{ op = \"pool\" }} and \
             {{ op = \"linear\" }}"
        )));
    }
    match graph.unused() {
        Some(node) => Err(usage(format!(
            "{}: nothing reads what it gives: remove it, or name it as an input",
            places[node.index()]
        ))),
        None => Ok(graph),
    }
}

/// What a layer's words refer to.
#[derive(Default)]
struct Scope {
    /// Before each name: "block0.".
    prefix: String,
    /// Which repetition of the list this is, and of how many.
    turn: Option<(usize, usize)>,
    /// Names of the lists around this one.
    outer: HashMap<String, NodeId>,
    depth: usize,
}

struct Build {
    graph: Graph,
    last: NodeId,
    /// Layer names given so far.
    names: HashSet<String>,
    classes: usize,
    /// Where each node comes from: "layers[0] (conv)".
    places: Vec<String>,
}

/// One layer: its table, where it stands, and the words that were looked at.
struct Words<'a> {
    table: &'a Table,
    at: String,
    turn: Option<(usize, usize)>,
}

type Found<T> = std::result::Result<T, String>;

impl Build {
    /// Builds a list of layers; inside, "input" is what the list reads.
    fn list(&mut self, layers: &Value, scope: &Scope, at: &str) -> Found<()> {
        let layers = layers.as_array().filter(|l| !l.is_empty());
        let layers = layers.ok_or_else(|| format!("{at}: wanted a list of layers, at least one"))?;
        let mut known = scope.outer.clone();
        known.insert("input".into(), self.last);
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for (i, layer) in layers.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let table = layer.as_table().ok_or_else(|| format!("{at}: wanted a table such as {{ op = \"relu\" }}"))?;
            let words = Words { table, at, turn: scope.turn };
            let op = words.op()?;
            let count = counts.entry(op).or_default();
            *count += 1;
            let name = match words.text("name")? {
                Some("input") => return Err(words.fault("name \"input\" is what the list reads: choose another")),
                Some(name) => name.to_string(),
                None => format!("{op}{count}"),
            };
            let from = words.text("input")?.map(|name| words.find(&known, name)).transpose()?;
            let x = from.unwrap_or(self.last);
            self.layer(op, &words, &format!("{}{name}", scope.prefix), x, &known, scope)?;
            self.places.resize_with(self.graph.nodes().len(), || words.fault(&format!("{}{name}", scope.prefix)));
            if self.graph.nodes().len() > MOST_NODES {
                return Err(words.fault(&format!("more than {MOST_NODES} layers")));
            }
            known.insert(name, self.last);
        }
        Ok(())
    }

    fn layer(
        &mut self,
        op: &str,
        words: &Words,
        name: &str,
        x: NodeId,
        known: &HashMap<String, NodeId>,
        scope: &Scope,
    ) -> Found<()> {
        words.only(op)?;
        let channels = i64::from(self.graph.nodes()[x.index()].chw.0);
        let told = |e: Error| words.fault(&e.to_string());
        if matches!(op, "conv" | "bn" | "linear") && !self.names.insert(name.to_string()) {
            return Err(words.fault(&format!("a second layer is named {name:?}: give each its own name")));
        }
        self.last = match op {
            "conv" => {
                let k = words.number("channels", 1, MOST_CHANNELS)?.unwrap_or(channels as usize);
                let kernel = words.number("kernel", 1, LARGEST)?.unwrap_or(3);
                let stride = words.number("stride", 1, LARGEST)?.unwrap_or(1);
                let pad = words.number("pad", 0, LARGEST)?.unwrap_or(kernel / 2);
                match words.switch("bias")? {
                    true => self.graph.conv_with_bias(name, x, k, kernel, stride, pad),
                    false => self.graph.conv(name, x, k, kernel, stride, pad),
                }
                .map_err(told)?
            }
            "bn" => self.graph.norm(name, x),
            "relu" => self.graph.relu(x),
            "linear" => {
                let out = words.number("outputs", 1, MOST_CHANNELS)?.unwrap_or(self.classes);
                self.graph.linear(name, x, out).map_err(told)?
            }
            "pool" => match words.text("kind")?.unwrap_or("mean") {
                "mean" => {
                    if let Some(word) = ["size", "stride", "pad"].into_iter().find(|w| words.table.contains_key(*w)) {
                        let what = format!("{word} belongs to kind = \"max\": a mean pool takes the whole plane");
                        return Err(words.fault(&what));
                    }
                    self.graph.pool(x)
                }
                "max" => {
                    let size = words.number("size", 1, LARGEST)?.unwrap_or(2);
                    let stride = words.number("stride", 1, LARGEST)?.unwrap_or(size);
                    let pad = words.number("pad", 0, LARGEST)?.unwrap_or(0);
                    self.graph.max_pool(x, size, stride, pad).map_err(told)?
                }
                other => return Err(words.fault(&format!("kind {other:?}: wanted \"mean\" or \"max\""))),
            },
            "add" => {
                let with = words.text("with")?;
                let with = with.ok_or_else(|| words.fault("wanted with = \"NAME\", the other operand"))?;
                let other = words.find(known, with)?;
                self.graph.add(x, other).map_err(told)?
            }
            _ => {
                self.last = x;
                let times = words.number("times", 1, MOST_REPEATS)?;
                let times = times.ok_or_else(|| words.fault("wanted times = N, how often"))?;
                let layers = words.table.get("layers");
                let layers = layers.ok_or_else(|| words.fault("wanted layers = [ ... ], what is repeated"))?;
                if scope.depth == DEEPEST {
                    return Err(words.fault(&format!("more than {DEEPEST} repeats inside each other")));
                }
                for turn in 0..times {
                    let prefix = format!("{name}{turn}.");
                    let inner =
                        Scope { prefix, turn: Some((turn, times)), outer: known.clone(), depth: scope.depth + 1 };
                    self.list(layers, &inner, &format!("{}.layers", words.at))?;
                }
                self.last
            }
        };
        Ok(())
    }
}

/// Each operation and its words, "op", "name" and "input" aside.
const OPS: &[(&str, &[&str])] = &[
    ("conv", &["channels", "kernel", "stride", "pad", "bias"]),
    ("bn", &[]),
    ("relu", &[]),
    ("pool", &["kind", "size", "stride", "pad"]),
    ("linear", &["outputs"]),
    ("add", &["with"]),
    ("repeat", &["times", "layers"]),
];

impl Words<'_> {
    fn fault(&self, what: &str) -> String {
        let op = self.table.get("op").and_then(Value::as_str).unwrap_or("?");
        format!("{} ({op}): {what}", self.at)
    }

    fn op(&self) -> Found<&'static str> {
        let given = self.table.get("op").and_then(Value::as_str);
        let names = || OPS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let given = given.ok_or_else(|| format!("{}: wanted op = one of {}", self.at, names()))?;
        OPS.iter()
            .find(|(name, _)| *name == given)
            .map(|(name, _)| *name)
            .ok_or_else(|| format!("{}: unknown op {given:?}: wanted one of {}", self.at, names()))
    }

    /// Refuses words that the operation does not have.
    fn only(&self, op: &str) -> Found<()> {
        let own = OPS.iter().find(|(name, _)| *name == op).map_or(&[][..], |(_, own)| own);
        let known = |word: &&String| ["op", "name", "input"].iter().chain(own).any(|k| k == word);
        match self.table.keys().find(|word| !known(word)) {
            None => Ok(()),
            Some(word) => {
                let allowed = ["name", "input"].iter().chain(own).copied().collect::<Vec<_>>().join(", ");
                Err(self.fault(&format!("unknown word {word:?} (allowed: {allowed})")))
            }
        }
    }

    fn text(&self, word: &str) -> Found<Option<&str>> {
        match self.table.get(word) {
            None => Ok(None),
            Some(Value::String(text)) if is_name(text) => Ok(Some(text)),
            Some(value) => {
                Err(self.fault(&format!("{word}: wanted a word of letters, digits, '_', '-' and '.', got {value}")))
            }
        }
    }

    fn switch(&self, word: &str) -> Found<bool> {
        match self.table.get(word) {
            None => Ok(false),
            Some(Value::Boolean(on)) => Ok(*on),
            Some(value) => Err(self.fault(&format!("{word}: wanted true or false, got {value}"))),
        }
    }

    /// A number, or in a repeat a list of them, one for each time.
    fn number(&self, word: &str, min: i64, max: i64) -> Found<Option<usize>> {
        let Some(value) = self.table.get(word) else { return Ok(None) };
        let one = match (value, self.turn) {
            (Value::Array(list), Some((turn, times))) => {
                if list.len() != times {
                    let what = format!("{word}: {} numbers for {times} times: wanted one for each", list.len());
                    return Err(self.fault(&what));
                }
                &list[turn]
            }
            (Value::Array(_), None) => {
                return Err(self.fault(&format!("{word}: a list belongs into a repeat, one number for each time")));
            }
            _ => value,
        };
        match one.as_integer() {
            Some(v) if (min..=max).contains(&v) => Ok(Some(v as usize)),
            _ => Err(self.fault(&format!("{word}: wanted a whole number from {min} to {max}, got {one}"))),
        }
    }

    fn find(&self, known: &HashMap<String, NodeId>, name: &str) -> Found<NodeId> {
        known.get(name).copied().ok_or_else(|| {
            let mut names: Vec<_> = known.keys().map(String::as_str).collect();
            names.sort_unstable();
            names.truncate(30);
            self.fault(&format!("no layer {name:?} before this one (there are: {})", names.join(", ")))
        })
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=100).contains(&text.len()) && text.chars().all(allowed)
}
