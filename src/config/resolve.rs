//! From the merged keys to a [`Config`]: what ties keys together is checked and derived here.

use super::layers::{Faults, Merged};
use super::method::METHOD_KEYS;
use super::{Config, keys};
use crate::shape::Network;
use crate::sparsity::{Draw, Pattern, Positions};
use toml::{Table, Value};

/// The configuration, or `None` with the reasons added to `faults`.
pub(super) fn resolve(merged: &Merged, faults: &mut Faults) -> Option<Config> {
    require(merged, faults);
    ties(merged, faults);
    let milestones = milestones(merged, faults);
    let warmup = warmup(merged, faults);
    let of_method = super::method::fill(merged, faults);
    if !faults.is_empty() {
        return None;
    }
    let mut table = Table::new();
    for (name, value) in merged.good() {
        put(&mut table, name, value.clone());
    }
    if let Some(list) = milestones {
        put(&mut table, "schedule.milestones", Value::Array(list.into_iter().map(Value::Float).collect()));
    }
    if let Some(epochs) = warmup {
        put(&mut table, "warmup_epochs", Value::Float(epochs));
    }
    for (key, value) in of_method {
        put(&mut table, key, value);
    }
    seeds(merged, &mut table);
    if let Some(network) = merged.network() {
        put(&mut table, "model", Value::String(network.to_string())); // one name a network in files and tables
    }
    match Config::deserialize_table(table) {
        Ok(config) => match config.target() {
            Ok(_) => Some(config),
            Err(e) => {
                faults.push(format!(
                    "{}: {e}",
                    merged.source(if config.density.is_some() { "density" } else { "sparsity" })
                ));
                None
            }
        },
        Err(what) => {
            faults.push(format!("configuration: {what}"));
            None
        }
    }
}

fn put(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        None => {
            table.insert(name.to_string(), value);
        }
        Some((section, rest)) => {
            let entry = table.entry(section.to_string()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = entry {
                inner.insert(rest.to_string(), value);
            }
        }
    }
}

/// Each of the three seeds is its own value, or else the base: their streams are separated by purpose already.
fn seeds(merged: &Merged, table: &mut Table) {
    let base = merged.value("seed.base").cloned();
    let mut seeds = Table::new();
    for purpose in ["init", "mask", "data"] {
        if let Some(v) = merged.value(&format!("seed.{purpose}")).cloned().or_else(|| base.clone()) {
            seeds.insert(purpose.to_string(), v);
        }
    }
    table.insert("seed".to_string(), Value::Table(seeds));
}

/// Keys that must be there. Recipes are complete but for `data`, so in practice this speaks of that one, and of resolved
/// files from which a line was deleted.
fn require(merged: &Merged, faults: &mut Faults) {
    let multi_step = merged.text("schedule.kind") == Some("multi-step");
    let any_width = merged.network().is_some_and(|n| n.standard_width().is_some());
    for key in keys::KEYS {
        let needed = match key.name {
            "density" | "sparsity" | "pattern" | "preprocess.mean" | "preprocess.std" | "seed.base" => false,
            "network_toml" | "init" | "init_mode" | "init_scale" | "weight_decay_exempt" | "warmup_by" => false,
            "gradient_norm_every" => false,
            name if METHOD_KEYS.iter().any(|(key, _)| *key == name) => false,
            "schedule.milestones" | "schedule.gamma" => multi_step,
            "width" => any_width,
            "seed.init" | "seed.mask" | "seed.data" => !merged.has("seed.base"),
            _ => true,
        };
        if needed && !merged.has(key.name) {
            faults.push(match key.name {
                "data" => "data: no data set is named; give --data PATH".to_string(),
                name => format!("{name}: missing; wanted {}", key.wanted()),
            });
        }
    }
}

fn ties(merged: &Merged, faults: &mut Faults) {
    let mut fault = |key: &str, what: String| faults.push(format!("{}: {key}: {what}", merged.source(key)));
    match merged.text("method") {
        Some("dense") => {
            if merged.number("sparsity").is_some_and(|s| s != 0.0) {
                fault("sparsity", "method dense keeps every weight; leave sparsity out, or set method=erk".into());
            }
            if merged.number("density").is_some_and(|d| d != 1.0) {
                fault("density", "method dense keeps every weight; leave density out, or set method=erk".into());
            }
        }
        Some("file") => {
            for key in ["sparsity", "density"].into_iter().filter(|key| merged.has(key)) {
                fault(key, "method file has the density of its file; leave it out".into());
            }
        }
        Some(method) if !merged.has("sparsity") && !merged.has("density") => {
            fault("method", format!("{method} needs a sparsity or a density, such as sparsity = 0.9"));
        }
        _ => {}
    }
    let pattern = merged.text("pattern").and_then(|p| p.parse::<Pattern>().ok());
    let draw = merged.text("mask_draw").and_then(|d| d.parse::<Draw>().ok());
    if let (Some(pattern), Some(draw)) = (pattern, draw)
        && let Err(e) = pattern.check(draw)
    {
        fault("pattern", e.to_string());
    }
    // Its default is that of the method.
    let keeps = merged.text("positions").or(merged.text("method").filter(|m| *m == "global-magnitude").map(|_| "keep"));
    if let (Some(pattern), Some(draw)) = (pattern, draw)
        && let Err(e) = keeps.map_or(Ok(()), |p| p.parse::<Positions>()?.check(pattern, draw))
    {
        let key = ["positions", "method"].into_iter().find(|key| merged.has(key)).unwrap_or("method");
        fault(key, e.to_string());
    }
    let nesterov = merged.value("nesterov").and_then(Value::as_bool);
    if nesterov == Some(true) && merged.number("momentum") == Some(0.0) {
        fault("nesterov", "needs a momentum above 0; set nesterov=false, or a momentum".into());
    }
    match merged.text("model").map(str::parse::<Network>) {
        _ if merged.has("network_toml") && merged.value("width").is_some() => {
            fault("width", "a network of your own has the widths of its file; leave width out".into());
        }
        Some(Ok(network)) if merged.has("network_toml") => {
            let what =
                format!("model {network} is a network of the engine's; for one of your own set model = \"FILE.toml\"");
            fault("network_toml", what);
        }
        _ if merged.has("network_toml") => {}
        Some(Err(what)) => fault("model", format!("{what}; or a file that ends in .toml, a network of your own")),
        Some(Ok(network)) if network.standard_width().is_none() && merged.value("width").is_some() => {
            fault("width", network.no_width());
        }
        _ => {}
    }
    if merged.text("selection") == Some("best-test") && merged.number("validation").is_some_and(|v| v > 0.0) {
        fault("selection", "best-test beside a validation split: use best-val, or set validation=0".into());
    }
    if merged.text("selection") == Some("best-val") && merged.number("validation") == Some(0.0) {
        fault("selection", "best-val needs a validation split; set validation=N, or selection=last".into());
    }
    if merged.text("schedule.kind") == Some("cosine") {
        for key in ["schedule.milestones", "schedule.gamma"].into_iter().filter(|k| merged.has(k)) {
            fault(
                key,
                "belongs to kind multi-step, not to cosine; leave it out, or set schedule.kind=multi-step".into(),
            );
        }
    }
    match (merged.has("preprocess.mean"), merged.has("preprocess.std")) {
        (true, false) => fault("preprocess.mean", "needs preprocess.std beside it".into()),
        (false, true) => fault("preprocess.std", "needs preprocess.mean beside it".into()),
        _ => {}
    }
    if let (Some(mean), Some(std)) = (merged.numbers("preprocess.mean"), merged.numbers("preprocess.std"))
        && (mean.is_empty() || mean.len() != std.len())
    {
        let what = format!("wanted one number a channel in mean and in std, got {} and {}", mean.len(), std.len());
        fault("preprocess.mean", what);
    }
}

/// Milestones in epochs of this run: scaled from the epochs they were written for. A fraction of an epoch is some step of it.
fn milestones(merged: &Merged, faults: &mut Faults) -> Option<Vec<f64>> {
    const KEY: &str = "schedule.milestones";
    let (written, epochs, of) = (merged.numbers(KEY)?, merged.number("epochs")?, merged.epochs_of(KEY)?);
    let scaled: Vec<f64> = written.iter().map(|m| if of == epochs { *m } else { m * epochs / of }).collect();
    let mut before = 0.0;
    for (m, s) in written.iter().zip(&scaled) {
        let why = if *s >= epochs {
            Some("it would never be reached".to_string())
        } else if *s <= 0.0 {
            Some("the rate before it would never be used".to_string())
        } else if *s <= before {
            Some(format!("that is not after epoch {before}, the milestone before it"))
        } else {
            None
        };
        if let Some(why) = why {
            let scaling = if of == epochs { String::new() } else { format!(" (epoch {m} of {of}, scaled)") };
            faults.push(format!(
                "{}: {KEY}: milestone {m} is epoch {s} of {epochs}{scaling}: {why}; change epochs or {KEY}",
                merged.source(KEY)
            ));
        }
        before = *s;
    }
    Some(scaled)
}

/// Warm-up in epochs of this run; it ends at a step, so it is not rounded.
fn warmup(merged: &Merged, faults: &mut Faults) -> Option<f64> {
    const KEY: &str = "warmup_epochs";
    let (written, epochs, of) = (merged.number(KEY)?, merged.number("epochs")?, merged.epochs_of(KEY)?);
    let scaled = if of == epochs { written } else { written * epochs / of };
    if scaled >= epochs {
        faults.push(format!(
            "{}: {KEY}: the end of the warm-up, epoch {scaled} of {epochs}, would never be reached; change epochs or {KEY}",
            merged.source(KEY)
        ));
    }
    Some(scaled)
}
