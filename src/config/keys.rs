//! The table of configuration keys: the one place that knows which keys there are, their types and their ranges.
//! A key is checked here alone; what ties keys together is in `resolve.rs`.

use crate::error::nearest;
use crate::sparsity::{Pattern, Ratio};
use toml::Value;

/// One key.
pub(super) struct Key {
    /// Dotted name.
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    Text,
    Switch,
    Choice(&'static [&'static str]),
    Pattern,
    Count {
        min: i64,
        max: i64,
    },
    Number(Range),
    Numbers(Range),
    /// A table of numbers under names that are the user's.
    Named(Range),
}

/// Finite numbers for which `ok` holds.
struct Range {
    wanted: &'static str,
    ok: fn(f64) -> bool,
}

const ABOVE_0: Range = Range { wanted: "above 0", ok: |v| v > 0.0 };
const FROM_0: Range = Range { wanted: "of at least 0", ok: |v| v >= 0.0 };
const FROM_0_BELOW_1: Range = Range { wanted: "in [0, 1)", ok: |v| (0.0..1.0).contains(&v) };
const ABOVE_0_TO_1: Range = Range { wanted: "in (0, 1]", ok: |v| v > 0.0 && v <= 1.0 };
const POWER: Range = Range { wanted: "from 0 to 8", ok: |v| (0.0..=Ratio::MAX_POWER).contains(&v) };
const ANY: Range = Range { wanted: "that are finite", ok: |_| true };

/// [`crate::sparsity::Method`] by its names.
const METHODS: &[&str] = &[
    "dense",
    "uniform",
    "uniform-plus",
    "er",
    "erk",
    "erk-plus",
    "snip",
    "grasp",
    "global-magnitude",
    "custom",
    "file",
];

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

/// TOML integers end here, and so do seeds.
const SEED: Kind = Kind::Count { min: 0, max: i64::MAX };

/// Every key. `seed = N` is short for `seed.base = N`. The upper ends of counts are far beyond any sensible run: they keep
/// later arithmetic from overflowing, nothing else.
pub(super) static KEYS: &[Key] = &[
    key("model", Kind::Text),
    key("network_toml", Kind::Text),
    key("width", Kind::Count { min: 1, max: crate::shape::MAX_WIDTH as i64 }),
    key("data", Kind::Text),
    key("validation", Kind::Count { min: 0, max: u32::MAX as i64 }),
    key("selection", Kind::Choice(&["last", "best-val", "best-test"])),
    key("method", Kind::Choice(METHODS)),
    key("density", Kind::Number(ABOVE_0_TO_1)),
    key("sparsity", Kind::Number(FROM_0_BELOW_1)),
    key("erk_power", Kind::Number(POWER)),
    key("last_density", Kind::Number(ABOVE_0_TO_1)),
    key("custom.rest", Kind::Choice(&["uniform", "er", "erk"])),
    key("custom.layers", Kind::Named(ABOVE_0_TO_1)),
    key("mask", Kind::Text),
    key("positions", Kind::Choice(&["draw", "keep"])),
    key("score_init", Kind::Choice(&["own", "xavier"])),
    key("score_samples", Kind::Count { min: 1, max: 1_000_000 }),
    key("score_samples_per_class", Kind::Count { min: 1, max: 1_000_000 }),
    key("score_halves", Kind::Choice(&["class", "alternate"])),
    key("score_temperature", Kind::Number(ABOVE_0)),
    key("score_augment", Kind::Switch),
    key("mask_draw", Kind::Choice(&["exact", "bernoulli"])),
    key("pattern", Kind::Pattern),
    key("init", Kind::Text),
    key("init_mode", Kind::Choice(&["standard", "fan-in", "fan-out"])),
    key("init_scale", Kind::Choice(&["none", "density", "layer-density"])),
    key("epochs", Kind::Count { min: 1, max: 1_000_000 }),
    key("batch_size", Kind::Count { min: 1, max: 1_000_000 }),
    key("lr", Kind::Number(ABOVE_0)),
    key("momentum", Kind::Number(FROM_0_BELOW_1)),
    key("nesterov", Kind::Switch),
    key("weight_decay", Kind::Number(FROM_0)),
    key("weight_decay_exempt", Kind::Choice(&["none", "by-kind", "released"])),
    key("label_smoothing", Kind::Number(FROM_0_BELOW_1)),
    key("warmup_epochs", Kind::Number(FROM_0)),
    key("warmup_by", Kind::Choice(&["step", "epoch"])),
    key("gradient_norm_every", Kind::Count { min: 0, max: 1_000_000_000 }),
    key("schedule.kind", Kind::Choice(&["multi-step", "cosine"])),
    key("schedule.milestones", Kind::Numbers(ABOVE_0)),
    key("schedule.gamma", Kind::Number(ABOVE_0)),
    key("augment.pad", Kind::Count { min: 0, max: 65_536 }),
    key("augment.pad_mode", Kind::Choice(&["reflect", "zero"])),
    key("augment.flip", Kind::Switch),
    key("preprocess.mean", Kind::Numbers(ANY)),
    key("preprocess.std", Kind::Numbers(ABOVE_0)),
    key("seed.base", SEED),
    key("seed.init", SEED),
    key("seed.mask", SEED),
    key("seed.data", SEED),
];

/// The key of that dotted name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// Whether `name` is a table of keys, such as "augment".
pub(super) fn is_section(name: &str) -> bool {
    members(name).next().is_some()
}

fn members(section: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(move |k| k.name.strip_prefix(section)?.strip_prefix('.'))
}

/// What to say about a key that does not exist: the near miss, if any, and those that are allowed beside it.
pub(super) fn unknown(name: &str) -> String {
    let (section, last) = name.rsplit_once('.').unwrap_or(("", name));
    let (allowed, place): (Vec<&str>, String) = if is_section(section) {
        (members(section).collect(), format!(" in {section}"))
    } else {
        let mut top: Vec<&str> = KEYS.iter().map(|k| k.name.split('.').next().unwrap_or(k.name)).collect();
        top.dedup();
        (top, String::new())
    };
    let near = if is_section(section) {
        nearest(last, allowed.iter().copied()).map(|n| format!("{section}.{n}"))
    } else {
        nearest(name, KEYS.iter().map(|k| k.name).chain(allowed.iter().copied())).map(str::to_string)
    };
    let hint = near.map(|n| format!("; did you mean {n}?")).unwrap_or_default();
    format!("unknown key{hint} (allowed{place}: {})", allowed.join(", "))
}

impl Key {
    /// What a value must be, for error messages.
    pub(super) fn wanted(&self) -> String {
        match &self.kind {
            Kind::Text => "a string that is not empty".into(),
            Kind::Switch => "true or false".into(),
            Kind::Pattern => Pattern::WANTED.into(),
            Kind::Choice(names) => format!("one of \"{}\"", names.join("\", \"")),
            Kind::Count { min, max: i64::MAX } => format!("a whole number from {min} to 2^63-1"),
            Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Number(range) => format!("a number {}", range.wanted),
            Kind::Numbers(range) => format!("a list of numbers {}", range.wanted),
            Kind::Named(range) => format!("a table of numbers {}, such as {{ \"@first\" = 1.0 }}", range.wanted),
        }
    }

    /// Whether a bare word on the command line is its value even where TOML would read a number or a date.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Choice(_) | Kind::Pattern)
    }

    /// The value in its canonical type (integers become floats where numbers are wanted), or what is wrong with it.
    pub(super) fn check(&self, value: &Value) -> Result<Value, String> {
        let number = |v: &Value, range: &Range| {
            let v = match v {
                Value::Integer(i) => *i as f64,
                Value::Float(f) => *f,
                _ => return None,
            };
            (v.is_finite() && (range.ok)(v)).then_some(Value::Float(v))
        };
        let good = match (&self.kind, value) {
            (Kind::Text, Value::String(s)) => (!s.is_empty()).then(|| value.clone()),
            (Kind::Switch, Value::Boolean(_)) => Some(value.clone()),
            (Kind::Choice(names), Value::String(s)) => names.contains(&s.as_str()).then(|| value.clone()),
            (Kind::Pattern, Value::String(s)) => s.parse().ok().map(|p: Pattern| Value::String(p.to_string())),
            (Kind::Count { min, max }, Value::Integer(i)) => (min..=max).contains(&i).then(|| value.clone()),
            (Kind::Number(range), v) => number(v, range),
            (Kind::Numbers(range), Value::Array(list)) => {
                list.iter().map(|v| number(v, range)).collect::<Option<Vec<_>>>().map(Value::Array)
            }
            (Kind::Named(range), Value::Table(table)) => {
                let numbers = table.iter().map(|(name, v)| Some((name.clone(), number(v, range)?)));
                numbers.collect::<Option<toml::Table>>().filter(|t| !t.is_empty()).map(Value::Table)
            }
            _ => None,
        };
        good.ok_or_else(|| {
            let near = match (&self.kind, value) {
                (Kind::Choice(names), Value::String(s)) => nearest(s, names.iter().copied()),
                _ => None,
            };
            let hint = near.map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default();
            let wrong = match (&self.kind, value) {
                (Kind::Named(range), Value::Table(table)) => table.iter().find(|(_, v)| number(v, range).is_none()),
                _ => None,
            };
            let got = wrong.map_or(show(value), |(name, v)| format!("{name:?} = {}", show(v)));
            format!("wanted {}, got {got}{hint}", self.wanted())
        })
    }
}

/// A value as one short line.
fn show(value: &Value) -> String {
    let text = match value {
        Value::String(s) => format!("the string {s:?}"),
        Value::Table(_) => "a table".into(),
        other => other.to_string().replace('\n', " "),
    };
    if text.chars().count() > 80 { text.chars().take(77).chain("...".chars()).collect() } else { text }
}
