//! The recipes inside the binary: families of complete configurations, each of which names its source
//! (`recipes/families.toml`).

use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use toml::{Table, Value};

/// A built-in configuration.
#[derive(Debug)]
pub struct Recipe {
    /// Name for `--recipe`: family, network and variant.
    pub name: String,
    /// Family, such as "cifar10".
    pub family: &'static str,
    /// What the family trains on.
    pub family_about: String,
    /// Network, such as "resnet20", or "resnet20-8" where the width is not 16.
    pub model: String,
    /// How it differs from the family's first recipes, such as "dense"; empty for those.
    pub variant: String,
    /// One line for people.
    pub about: String,
    /// Where its settings come from.
    pub source: String,
    /// Test accuracy to expect, with where it was published.
    pub expect: String,
    /// The family's configuration: TOML, comments included.
    pub text: &'static str,
    /// What this recipe says otherwise.
    pub set: Table,
}

/// What is trained when nothing is asked for.
pub const DEFAULT: &str = "fashion-mnist-resnet20";

/// All built-in recipes, the default one first.
pub fn recipes() -> &'static [Recipe] {
    static ALL: LazyLock<Vec<Recipe>> = LazyLock::new(build);
    &ALL
}

/// Families by name.
const TEXTS: [(&str, &str); 4] = [
    ("fashion-mnist", include_str!("../../recipes/fashion-mnist.toml")),
    ("cifar10", include_str!("../../recipes/cifar10.toml")),
    ("cifar100", include_str!("../../recipes/cifar100.toml")),
    ("imagenet", include_str!("../../recipes/imagenet.toml")),
];

/// `recipes/families.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Families {
    family: Vec<Family>,
    expect: BTreeMap<String, BTreeMap<String, Expect>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    name: String,
    about: String,
    source: String,
    models: Vec<String>,
    /// Networks for which the paper shows results and states no settings.
    #[serde(default)]
    inferred: Vec<String>,
    variant: Vec<Variant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    about: String,
    #[serde(default)]
    set: Table,
}

/// Published test accuracies in percent.
#[derive(Default, Deserialize)]
struct Expect {
    dense: Option<f64>,
    axis: Option<String>,
    text: Option<String>,
    /// By method: at sparsities 0.1 to 0.9.
    #[serde(flatten)]
    rows: BTreeMap<String, [f64; 9]>,
}

impl Expect {
    /// What is known of a recipe that says `set` over ERK.
    fn describe(&self, dense: bool) -> String {
        let mut parts = Vec::new();
        if let Some(accuracy) = self.dense {
            parts.push(format!("dense {accuracy:.2} %"));
        }
        if !dense {
            for method in ["erk", "snip", "uniform", "uniform-plus"] {
                let Some(row) = self.rows.get(method) else { continue };
                let at = [5, 7, 9].map(|tenth| format!("{:.2} at 0.{tenth}", row[tenth - 1]));
                parts.push(format!("{method} {}", at.join(", ")));
            }
        }
        parts.extend(self.text.clone().filter(|_| !dense));
        let known = if parts.is_empty() { None } else { Some(parts.join("; ")) };
        let axis = self.axis.as_ref().map(|axis| format!("between the ends of the axis, {axis}"));
        known.or(axis).unwrap_or_else(|| "no published number".into())
    }
}

fn build() -> Vec<Recipe> {
    let families: Families = toml::from_str(include_str!("../../recipes/families.toml"))
        .expect("recipes/families.toml, a part of this program");
    let mut all = Vec::new();
    for family in &families.family {
        let (name, text) = TEXTS.iter().find(|(name, _)| *name == family.name).expect("a family with a configuration");
        let none = Expect::default();
        for model in &family.models {
            let expect = families.expect.get(*name).and_then(|f| f.get(model)).unwrap_or(&none);
            for variant in &family.variant {
                let mut set = variant.set.clone();
                // "resnet20-8" is a width, "wrn50-2" a name.
                let (network, width) = match model.rsplit_once('-') {
                    Some((network, width)) if network.starts_with("resnet") => (network, width.parse().ok()),
                    _ => (model.as_str(), None),
                };
                set.insert("model".into(), Value::String(network.into()));
                if let Some(width) = width {
                    set.insert("width".into(), Value::Integer(width));
                }
                let mut words = vec![*name, model];
                words.extend((!variant.name.is_empty()).then_some(variant.name.as_str()));
                let inferred = if family.inferred.contains(model) { "; inferred: same settings" } else { "" };
                let dense = set.get("method").and_then(Value::as_str) == Some("dense");
                all.push(Recipe {
                    name: words.join("-"),
                    family: name,
                    family_about: family.about.clone(),
                    model: model.clone(),
                    variant: variant.name.clone(),
                    about: variant.about.clone(),
                    source: format!("{}{inferred}", family.source),
                    expect: expect.describe(dense),
                    text,
                    set,
                });
            }
        }
    }
    all
}

/// The recipe of that name; the error lists those there are.
pub(super) fn find(name: &str) -> Result<&'static Recipe, String> {
    recipes().iter().find(|r| r.name == name).ok_or_else(|| {
        let near = crate::error::nearest(name, recipes().iter().map(|r| r.name.as_str()));
        let hint = near.map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default();
        format!("unknown recipe {name:?}{hint} (sparse-engine recipes lists them)")
    })
}
