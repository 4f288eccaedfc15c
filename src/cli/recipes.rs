//! `sparse-engine recipes`.

use crate::config::{self, DEFAULT_RECIPE, Overrides, Recipe, recipes};
use crate::error::Result;
use serde_json::json;

/// Version of the list that `--json` prints.
const RECIPES_SCHEMA: u32 = 1;

/// Lists the built-in recipes, or shows one: every key, its sources, and the accuracy to expect.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  sparse-engine recipes\n  sparse-engine recipes cifar10-resnet56\n  \
                        sparse-engine train --recipe cifar10-resnet56 --data cifar-10-batches-bin --set sparsity=0.5")]
pub(super) struct RecipesArgs {
    /// One recipe: its configuration, ready for --config
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "name")]
    json: bool,
}

pub(super) fn run(args: RecipesArgs) -> Result<()> {
    if let Some(name) = &args.name {
        return super::print(&show(name)?);
    }
    if args.json {
        let list: Vec<_> = recipes()
            .iter()
            .map(|r| json!({ "name": r.name, "family": r.family, "network": r.model, "variant": r.variant, "about": r.about, "source": r.source, "expect": r.expect }))
            .collect();
        return super::print(&format!(
            "{}\n",
            json!({ "schema": RECIPES_SCHEMA, "default": DEFAULT_RECIPE, "recipes": list })
        ));
    }
    let mut text =
        String::from("A recipe is named FAMILY-NETWORK, and -VARIANT where it is one: cifar10-resnet20-dense\n");
    let firsts = |same: fn(&Recipe, &Recipe) -> bool, of: &str| {
        let mut list: Vec<&Recipe> = Vec::new();
        for recipe in recipes().iter().filter(|r| of.is_empty() || r.family == of) {
            if !list.iter().any(|known| same(known, recipe)) {
                list.push(recipe);
            }
        }
        list
    };
    for family in firsts(|a, b| a.family == b.family, "") {
        text.push_str(&format!("\n{}: {}\n", family.family, family.family_about));
        let models: Vec<_> =
            firsts(|a, b| a.model == b.model, family.family).iter().map(|r| r.model.as_str()).collect();
        for (i, line) in models.chunks(10).enumerate() {
            text.push_str(&format!("  {:10}  {}\n", if i == 0 { "networks" } else { "" }, line.join(" ")));
        }
        for recipe in firsts(|a, b| a.variant == b.variant, family.family) {
            let variant = if recipe.variant.is_empty() { "" } else { "-" };
            text.push_str(&format!("  {:10}  {}\n", format!("{variant}{}", recipe.variant), recipe.about));
        }
    }
    text.push_str(&format!(
        "\nsparse-engine recipes NAME shows every key, the sources and the accuracy to expect; without --recipe, train takes\n\
         {DEFAULT_RECIPE}. Any method and sparsity: --set method=snip --set sparsity=0.5.\n"
    ));
    super::print(&text)
}

/// The configuration of a recipe, behind what is known about it.
fn show(name: &str) -> Result<String> {
    // A recipe may leave the data open, a configuration may not.
    let open = Overrides { data: Some("PATH".into()), ..Overrides::default() };
    let given = config::resolve(Some(name), None, &Overrides::default());
    let resolved = given.or_else(|_| config::resolve(Some(name), None, &open))?;
    let recipe = recipes().iter().find(|r| r.name == name);
    let head = recipe.map_or(String::new(), |r| {
        format!(
            "# {}: {}; {}\n# source: {}\n# test accuracy to expect: {}\n\n",
            r.name, r.family_about, r.about, r.source, r.expect
        )
    });
    Ok(head + &resolved.config.to_toml()?)
}
