//! Configuration: sources and their order, faults (each, and all at once), derivation, round trip.
//! `faults.rs` has what is refused, `derived.rs` what keys do to each other.

mod derived;
mod faults;

use proptest::prelude::*;
use sparse_engine::Error;
use sparse_engine::config::{Config, DEFAULT_RECIPE, Overrides, RECIPES, Schedule, Seeds, Selection, resolve};
use sparse_engine::data::PadMode;
use sparse_engine::sparsity::{BlockShape, Draw, Method, Pattern, Ratio};
use std::io::Write;

fn sets(list: &[&str]) -> Overrides {
    Overrides { set: list.iter().map(|s| s.to_string()).collect(), ..Overrides::default() }
}

fn with(list: &[&str]) -> Config {
    resolve(None, None, &sets(list)).unwrap_or_else(|e| panic!("{list:?}: {e}")).config
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut f = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    f.write_all(text.as_bytes()).unwrap();
    f
}

/// Pins what the tests count with, so that tuning a recipe breaks none of them.
const BASE: &str = "epochs = 20\nmomentum = 0.9\nnesterov = true\nvalidation = 0\nwarmup_epochs = 0\n\
                    [schedule]\nkind = \"multi-step\"\nmilestones = [10, 15]\ngamma = 0.1\n";

/// The fault lines of a configuration that must be refused with exit code 2.
fn faults(text: Option<&str>, list: &[&str]) -> Vec<String> {
    let file = text.map(file);
    let error = resolve(None, file.as_ref().map(|f| f.path()), &sets(list)).expect_err(&format!("{text:?} {list:?}"));
    assert!(matches!(error, Error::Usage(_)));
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    text.lines().map(str::to_string).collect()
}

fn milestones(config: &Config) -> &[f64] {
    match &config.schedule {
        Schedule::MultiStep { milestones, .. } => milestones,
        Schedule::Cosine => panic!("cosine"),
    }
}

#[test]
fn the_default_is_the_recipe_as_written() {
    let run = resolve(None, None, &Overrides::default()).unwrap();
    let c = &run.config;
    assert_eq!(run.name, DEFAULT_RECIPE);
    assert_eq!((c.model.as_str(), c.width, c.data.as_str()), ("resnet20", Some(16), "builtin:fashion-mnist"));
    assert_eq!((c.method, c.sparsity, c.density, c.mask_draw), (Method::Erk, Some(0.9), None, Draw::Exact));
    assert_eq!((c.batch_size, c.lr, c.momentum, c.nesterov, c.weight_decay), (128, 0.1, 0.9, true, 5e-4));
    assert_eq!(c.pattern, Pattern::Unstructured);
    assert_eq!((c.selection, c.validation), (Selection::Last, 0));
    assert_eq!(milestones(c), [c.epochs as f64 / 2.0, c.epochs as f64 * 0.75]);
    assert_eq!(c.seed, Seeds { init: 0, mask: 0, data: 0 });
    assert!(c.preprocess.is_none());
}

#[test]
fn every_recipe_resolves_and_reads_back_to_itself() {
    for recipe in RECIPES {
        let overrides = Overrides { data: Some("some/where".into()), ..Overrides::default() };
        let run = resolve(Some(recipe.name), None, &overrides).unwrap();
        assert!(recipe.text.contains("arXiv"), "{} cites no source", recipe.name);
        let text = run.config.to_toml().unwrap();
        assert_eq!(Config::from_toml(&text, "again").unwrap(), run.config);
    }
    let cifar = resolve(Some("cifar10-resnet20"), None, &Overrides { data: Some("c".into()), ..Default::default() });
    let cifar = cifar.unwrap();
    assert_eq!(cifar.name, "cifar10-resnet20");
    assert_eq!((cifar.config.epochs, milestones(&cifar.config)), (160, &[80.0, 120.0][..]));
    assert_eq!((cifar.config.validation, cifar.config.selection), (5000, Selection::BestVal));
    assert_eq!((cifar.config.augment.pad, cifar.config.augment.pad_mode), (4, PadMode::Reflect));
}

#[test]
fn a_recipe_without_data_asks_for_it() {
    let error = resolve(Some("cifar10-resnet20"), None, &Overrides::default()).unwrap_err().to_string();
    assert_eq!(error, "data: no data set is named; give --data PATH");
}

#[test]
fn an_unknown_recipe_lists_recipes_and_other_faults_still_show() {
    let error = resolve(Some("fashion-mnist-resnet2"), None, &sets(&["lr=-1"])).unwrap_err().to_string();
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines.len(), 2, "{error}");
    assert!(lines[0].contains("did you mean \"fashion-mnist-resnet20\""), "{error}");
    assert!(RECIPES.iter().all(|r| lines[0].contains(r.name)), "{error}");
    assert!(lines[1].contains("lr: wanted a number above 0, got -1"), "{error}");
}

#[test]
fn later_sources_win_key_by_key() {
    let f = file("lr = 0.5\nmomentum = 0.8\n[augment]\npad = 1\n");
    let overrides = Overrides { epochs: Some(40), ..sets(&["lr=0.25", "lr=0.2", "epochs=30", "augment.flip=false"]) };
    let c = resolve(None, Some(f.path()), &overrides).unwrap().config;
    assert_eq!((c.lr, c.momentum, c.epochs), (0.2, 0.8, 40));
    assert_eq!((c.augment.pad, c.augment.flip, c.augment.pad_mode), (1, false, with(&[]).augment.pad_mode));
    assert_eq!(c.weight_decay, with(&[]).weight_decay);
}

#[test]
fn bare_words_are_strings_and_values_are_toml() {
    let c = with(&["data=/data/cifar", "method = uniform", "weight_decay=1", "seed={base=1,mask=7}"]);
    assert_eq!((c.data.as_str(), c.method, c.weight_decay), ("/data/cifar", Method::Uniform, 1.0));
    assert_eq!(c.seed, Seeds { init: 1, mask: 7, data: 1 });
    assert_eq!(with(&["data=2024"]).data, "2024");
    assert_eq!(with(&["data=\"with space\""]).data, "with space");
    assert_eq!(with(&["data=a=b"]).data, "a=b");
}

#[test]
fn the_name_of_a_run_does_not_lie() {
    let name = |o: &Overrides| resolve(None, None, o).unwrap().name;
    assert_eq!(name(&sets(&["lr=0.2"])), DEFAULT_RECIPE);
    assert_eq!(name(&sets(&["model=resnet56"])), "resnet56");
    assert_eq!(name(&sets(&["width=32"])), "resnet20-32");
    assert_eq!(name(&Overrides { data: Some("x".into()), ..Default::default() }), "resnet20");
}

#[test]
fn folder_names_tell_method_amount_and_seeds() {
    let name = |list: &[&str]| resolve(None, None, &sets(list)).unwrap().run_name();
    assert_eq!(name(&["sparsity=0.95", "seed=7"]), format!("{DEFAULT_RECIPE}-erk-0.95-s7"));
    assert_eq!(
        name(&["method=uniform", "density=0.1", "seed=1", "seed.mask=2"]),
        format!("{DEFAULT_RECIPE}-uniform-d0.1-s1.2.1")
    );
    assert_eq!(name(&["pattern=block:16x8"]), format!("{DEFAULT_RECIPE}-erk-0.9-block16x8-s0"));
    assert_eq!(name(&["pattern=block:16x8", "method=dense"]), format!("{DEFAULT_RECIPE}-dense-s0"));
    let hostile = faults(None, &["model=../x y"]);
    assert!(hostile[0].contains("unknown model \"../x y\""), "{hostile:?}");
}

#[test]
fn the_pattern_of_a_file_and_of_the_command_line() {
    let block = Pattern::Block(BlockShape { r: 16, c: 8 });
    let f = file("pattern = \"block:016x8\"\n");
    let from_file = resolve(None, Some(f.path()), &Overrides::default()).unwrap().config;
    assert_eq!(from_file.pattern, block);
    let asked = |name: &str| Overrides { pattern: Some(name.into()), ..sets(&["pattern=block:2x2"]) };
    let given = resolve(None, Some(f.path()), &asked("unstructured")).unwrap().config;
    assert_eq!(given, with(&[]), "--pattern wins over --set, and that over the file");
    assert!(!asked("unstructured").is_empty() && !Overrides { set: vec![], ..asked("unstructured") }.is_empty());
    let error = resolve(None, None, &asked("block:3")).unwrap_err().to_string();
    assert!(
        error.starts_with("command line: pattern: wanted \"unstructured\"") && error.contains("block:3"),
        "{error}"
    );

    // It is written, read again, and counts as a difference; a file of before there were blocks is unstructured.
    let text = from_file.to_toml().unwrap();
    assert!(text.contains("pattern = \"block:16x8\"\n"), "{text}");
    assert_eq!(Config::from_toml(&text, "again").unwrap(), from_file);
    assert_eq!(from_file.differences(&given).unwrap(), ["pattern: \"block:16x8\", \"unstructured\""]);
    let old = text.replace("pattern = \"block:16x8\"\n", "");
    assert_eq!(Config::from_toml(&old, "old").unwrap(), given);
}
