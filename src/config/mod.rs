//! The configuration of a run: TOML, unknown keys refused, all faults reported at once.
//!
//! Three sources, each laid over the one before: a built-in recipe, a file, the command line. [`resolve`] makes a
//! [`Config`] of them, in which every key is explicit; it is written into the run directory, and read again it gives the
//! same struct. The keys are described in `docs/config.md`.

mod choices;
mod keys;
mod layers;
mod method;
mod recipes;
mod resolve;

pub use choices::{Custom, Halves, Schedule, ScoreInit, Seeds, Selection, WarmupBy};
pub use recipes::{DEFAULT as DEFAULT_RECIPE, Recipe, recipes};

use crate::data::{Augment, Preprocess};
use crate::error::{Error, Result};
use crate::shape::{Exempt, Fan, InitScale};
use crate::sparsity::{Density, Draw, Method, Pattern, Positions, Ratio};
use layers::{Layer, Merged};
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::Value;

/// A fully resolved run: every key explicit. This is what `config.toml` in a run directory holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A network by its name, see [`crate::shape::Network`].
    pub model: String,
    /// Width of the first segment (paper's ResNet-A-B: B); 16 is the standard network. `None` for networks that have one
    /// width only: all but the ResNets for small images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// A network of your own, as TOML ([`crate::models::own_network`]); `model` is its name then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_toml: Option<String>,
    /// "builtin:fashion-mnist" or a path.
    pub data: String,
    /// Training images held back for validation, from the end of the training split.
    pub validation: usize,
    /// What `best` selects on.
    pub selection: Selection,
    /// Layer-wise ratio.
    pub method: Method,
    /// Density as written (exactly one of density and sparsity in a file; resolved configs keep the one written).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// Sparsity as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// ERK's power scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erk_power: Option<f64>,
    /// Density of the last layer, of ERK+.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_density: Option<f64>,
    /// Densities of layers, of method custom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
    /// File of masks, of method file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// What becomes of the positions that a score chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Positions>,
    /// Weights that SNIP and GraSP score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_init: Option<ScoreInit>,
    /// Images that SNIP takes, in one batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_samples: Option<usize>,
    /// Images of each class that GraSP takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_samples_per_class: Option<usize>,
    /// How GraSP halves them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_halves: Option<Halves>,
    /// What GraSP divides the logits by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_temperature: Option<f64>,
    /// Whether images for scores are augmented as those for training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_augment: Option<bool>,
    /// Exact or Bernoulli.
    pub mask_draw: Draw,
    /// Single weights or blocks; single weights in files of before there were blocks.
    #[serde(default)]
    pub pattern: Pattern,
    /// File of initial weights; where it has none for a parameter, that one starts as always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Fan of Kaiming-normal weights.
    #[serde(default)]
    pub init_mode: Fan,
    /// How masks widen the start.
    #[serde(default)]
    pub init_scale: InitScale,
    /// Epochs.
    pub epochs: u64,
    /// Images a step.
    pub batch_size: usize,
    /// Base learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
    /// Weight decay on every parameter that is not exempt.
    pub weight_decay: f64,
    /// Parameters without weight decay.
    #[serde(default)]
    pub weight_decay_exempt: Exempt,
    /// Label smoothing in [0, 1).
    pub label_smoothing: f64,
    /// Epochs of linear warm-up.
    pub warmup_epochs: f64,
    /// When the rate rises in it.
    #[serde(default)]
    pub warmup_by: WarmupBy,
    /// Steps from one logged gradient norm to the next; 0: none is logged.
    #[serde(default)]
    pub gradient_norm_every: u64,
    /// Schedule after warm-up.
    pub schedule: Schedule,
    /// Training augmentation.
    pub augment: Augment,
    /// Normalisation; resolved from published constants or from the training split when absent in the file.
    pub preprocess: Option<Preprocess>,
    /// Seeds.
    pub seed: Seeds,
}

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `key=value` assignments, dotted keys; a later one of the same key wins.
    pub set: Vec<String>,
    /// `--data`.
    pub data: Option<String>,
    /// `--pattern`.
    pub pattern: Option<String>,
    /// `--epochs`.
    pub epochs: Option<u64>,
    /// `--seed`.
    pub seed: Option<u64>,
}

impl Overrides {
    /// Whether it says anything.
    pub fn is_empty(&self) -> bool {
        let Overrides { set, data, pattern, epochs, seed } = self;
        set.is_empty() && data.is_none() && pattern.is_none() && epochs.is_none() && seed.is_none()
    }

    /// One source, so that `--epochs 10 --set schedule.milestones=[5]` means epoch 5 of 10, and `--seed 1 --set
    /// seed.mask=2` keeps its mask seed.
    fn layer(&self, faults: &mut Vec<String>) -> Layer {
        let mut layer = Layer::new("command line");
        for assignment in &self.set {
            layer.set(assignment, faults);
        }
        let count = |v: u64| i64::try_from(v).map_or_else(|_| Value::String(v.to_string()), Value::Integer);
        if let Some(data) = &self.data {
            layer.add("data", &Value::String(data.clone()), faults);
        }
        if let Some(pattern) = &self.pattern {
            layer.add("pattern", &Value::String(pattern.clone()), faults);
        }
        if let Some(epochs) = self.epochs {
            layer.add("epochs", &count(epochs), faults);
        }
        if let Some(seed) = self.seed {
            layer.add("seed", &count(seed), faults);
        }
        layer
    }
}

/// A configuration and a name for its run.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Every key explicit.
    pub config: Config,
    /// The recipe's name while network and data are the recipe's, else the network's.
    pub name: String,
}

impl Resolved {
    /// A folder name for the run: name, method, sparsity, blocks and seed, such as "fashion-mnist-resnet20-erk-0.9-s0". A
    /// density is written "d0.1"; blocks "block16x16"; three different seeds "s1.2.3" (initial values, masks, data).
    pub fn run_name(&self) -> String {
        let c = &self.config;
        let amount = match (c.method, c.sparsity, c.density) {
            (Method::Dense, ..) | (_, None, None) => String::new(),
            (_, Some(sparsity), _) => format!("-{sparsity}"),
            (_, None, Some(density)) => format!("-d{density}"),
        };
        let blocks = match c.pattern.block() {
            Some(block) if c.method != Method::Dense => format!("-block{block}"),
            _ => String::new(),
        };
        let s = c.seed;
        let seed = if s.init == s.mask && s.init == s.data {
            s.init.to_string()
        } else {
            format!("{}.{}.{}", s.init, s.mask, s.data)
        };
        let name = format!("{}-{}{amount}{blocks}-s{seed}", self.name, c.method);
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' }).collect()
    }
}

/// Lays `recipe` ([`DEFAULT_RECIPE`] if `None`), `file` and `overrides` over each other. All faults are reported in one
/// [`Error::Usage`], one a line.
///
/// ```
/// use sparse_engine::config::{Overrides, Schedule, resolve};
///
/// let short = Overrides { epochs: Some(10), set: vec!["density=0.25".into()], ..Overrides::default() };
/// let config = resolve(None, None, &short)?.config;
/// assert_eq!((config.density, config.sparsity), (Some(0.25), None));
/// assert!(matches!(config.schedule, Schedule::MultiStep { milestones, .. } if milestones.iter().all(|m| *m < 10.0)));
/// # Ok::<(), sparse_engine::Error>(())
/// ```
pub fn resolve(recipe: Option<&str>, file: Option<&Path>, overrides: &Overrides) -> Result<Resolved> {
    let mut faults = Vec::new();
    let mut merged = Merged::default();
    let recipe = match recipes::find(recipe.unwrap_or(DEFAULT_RECIPE)) {
        Ok(found) => found,
        Err(what) => {
            faults.push(what);
            &recipes()[0] // the other sources are still checked
        }
    };
    let source = format!("recipe {}", recipe.name);
    merged.lay(Layer::parse(&source, recipe.text, &mut faults), &mut faults);
    merged.lay(Layer::of(&source, &recipe.set, &mut faults), &mut faults);
    let of_recipe = |merged: &Merged| ["model", "width", "data"].map(|key| merged.value(key).cloned());
    let original = of_recipe(&merged);
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot read the configuration"))?;
        merged.lay(Layer::parse(path.display().to_string(), &text, &mut faults), &mut faults);
    }
    merged.lay(overrides.layer(&mut faults), &mut faults);
    merged.fill_width();
    let config = finish(&merged, faults)?;
    let same = of_recipe(&merged).iter().zip(&original).all(|(new, old)| old.is_none() || new == old);
    let name = if same { recipe.name.to_string() } else { config.network() };
    Ok(Resolved { config, name })
}

fn finish(merged: &Merged, mut faults: Vec<String>) -> Result<Config> {
    match resolve::resolve(merged, &mut faults) {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(Error::Usage(faults.join("\n"))),
    }
}

impl Config {
    /// Reads a complete configuration, such as a run's `config.toml`, with no recipe below it. `source` names it in errors.
    pub fn from_toml(text: &str, source: &str) -> Result<Config> {
        let (mut faults, mut merged) = (Vec::new(), Merged::default());
        merged.lay(Layer::parse(source, text, &mut faults), &mut faults);
        finish(&merged, faults)
    }

    /// As TOML; [`Config::from_toml`] gives the same struct back.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Usage(format!("configuration: {}", one_line(&e.to_string()))))
    }

    /// Checks a configuration that was built or changed in code by the rules that files are checked by.
    pub fn check(&self) -> Result<()> {
        Config::from_toml(&self.to_toml()?, "configuration").map(drop)
    }

    /// How layers share the density; `None` where scores or a file say so.
    ///
    /// # Errors
    /// A density of a layer that is none.
    pub fn ratio(&self) -> Result<Option<Ratio>> {
        let power = self.erk_power.unwrap_or(1.0);
        Ok(Some(match self.method {
            Method::Dense => Ratio::Dense,
            Method::Uniform => Ratio::Uniform,
            Method::UniformPlus => Ratio::UniformPlus,
            Method::Er => Ratio::Er,
            Method::Erk => Ratio::Erk { power },
            Method::ErkPlus => Ratio::ErkPlus { power, last: Density::from_density(self.last_density.unwrap_or(1.0))? },
            Method::Custom => {
                let Some(custom) = &self.custom else {
                    return Err(Error::Usage("custom.layers: method custom needs densities of layers".into()));
                };
                let named = custom.layers.iter().map(|(name, &d)| Ok((name.clone(), Density::from_density(d)?)));
                Ratio::Custom { layers: named.collect::<Result<_>>()?, rest: custom.rest }
            }
            Method::Snip | Method::Grasp | Method::GlobalMagnitude | Method::File => return Ok(None),
        }))
    }

    /// The density of the maskable weights, exactly as written; 1 for method dense.
    pub fn target(&self) -> Result<Density> {
        match (self.method, self.density, self.sparsity) {
            (Method::Dense, ..) | (_, None, None) => Density::from_density(1.0),
            (_, Some(density), _) => Density::from_density(density),
            (_, None, Some(sparsity)) => Density::from_sparsity(sparsity),
        }
    }

    /// The network as one word, such as "resnet20", or "resnet20-32" where the width is not the standard 16.
    pub fn network(&self) -> String {
        match self.width {
            None | Some(16) => self.model.clone(),
            Some(width) => format!("{}-{width}", self.model),
        }
    }

    /// The keys in which `other` differs, as "key: this, that". Normalisation that one of them leaves open is no difference.
    pub fn differences(&self, other: &Config) -> Result<Vec<String>> {
        let table = |config: &Config| {
            let mut config = config.clone();
            if self.preprocess.is_none() || other.preprocess.is_none() {
                config.preprocess = None;
            }
            Value::try_from(config).map_err(|e| Error::Usage(format!("configuration: {}", one_line(&e.to_string()))))
        };
        let mut lines = Vec::new();
        compare("", Some(&table(self)?), Some(&table(other)?), &mut lines);
        Ok(lines)
    }

    fn deserialize_table(table: toml::Table) -> std::result::Result<Config, String> {
        Config::deserialize(Value::Table(table)).map_err(|e| one_line(e.message()))
    }
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', ", ")
}

fn compare(name: &str, a: Option<&Value>, b: Option<&Value>, lines: &mut Vec<String>) {
    match (a, b) {
        (Some(Value::Table(a)), Some(Value::Table(b))) => {
            let only_b = b.keys().filter(|k| !a.contains_key(*k));
            for key in a.keys().chain(only_b) {
                let dotted = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                compare(&dotted, a.get(key), b.get(key), lines);
            }
        }
        (a, b) if a != b => {
            let show = |v: Option<&Value>| v.map_or("nothing".to_string(), |v| one_line(&v.to_string()));
            lines.push(format!("{name}: {}, {}", show(a), show(b)));
        }
        _ => {}
    }
}
