//! Configuration: sources and their order, faults (each, and all at once), derivation, round trip.
//! Past 400 lines in one file: the cases share one base file and the tables of faults read best side by side.

use proptest::prelude::*;
use sparse_engine::Error;
use sparse_engine::config::{Config, DEFAULT_RECIPE, Overrides, RECIPES, Schedule, Seeds, Selection, resolve};
use sparse_engine::data::PadMode;
use sparse_engine::sparsity::{Draw, Method};
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
    let hostile = faults(None, &["model=../x y"]);
    assert!(hostile[0].contains("unknown model \"../x y\""), "{hostile:?}");
}

#[test]
fn each_fault_says_what_is_wrong() {
    let cases: &[(&str, &str)] = &[
        ("momentun=0.9", "momentun: unknown key; did you mean momentum? (allowed: model, width, data"),
        ("weight-decay=0", "did you mean weight_decay?"),
        ("pad=2", "unknown key"),
        ("augment.pads=2", "did you mean augment.pad? (allowed in augment: pad, pad_mode, flip)"),
        ("optim.lr=1", "optim.lr: unknown key"),
        ("augment=3", "augment: wanted a table"),
        ("lr={a=1}", "lr: wanted a number above 0, got a table"),
        ("lr", "wanted key=value"),
        ("lr=fast", "lr: wanted a number above 0, got the string \"fast\""),
        ("lr=0", "lr: wanted a number above 0, got 0"),
        ("lr=nan", "lr: wanted"),
        ("lr=inf", "lr: wanted"),
        ("momentum=1", "momentum: wanted a number in [0, 1)"),
        ("momentum=-0.1", "momentum: wanted"),
        ("weight_decay=-1e-9", "weight_decay: wanted a number of at least 0"),
        ("label_smoothing=1.0", "label_smoothing: wanted"),
        ("batch_size=0", "batch_size: wanted a whole number from 1"),
        ("batch_size=12.5", "batch_size: wanted a whole number"),
        ("epochs=0", "epochs: wanted a whole number from 1"),
        ("width=0", "width: wanted"),
        ("validation=-1", "validation: wanted"),
        ("sparsity=1.0", "sparsity: wanted a number in [0, 1), got 1.0"),
        ("sparsity=-0.1", "sparsity: wanted"),
        ("sparsity=nan", "sparsity: wanted a number in [0, 1), got nan"),
        ("density=0", "density: wanted a number in (0, 1], got 0"),
        ("density=1.1", "density: wanted"),
        ("density=nan", "density: wanted"),
        (
            "method=ekr",
            "method: wanted one of \"dense\", \"uniform\", \"erk\", got the string \"ekr\"; did you mean \"erk\"?",
        ),
        ("mask_draw=random", "mask_draw: wanted one of \"exact\", \"bernoulli\""),
        ("selection=best", "selection: wanted one of \"last\", \"best-val\", \"best-test\""),
        ("schedule.kind=step", "schedule.kind: wanted one of \"multi-step\", \"cosine\""),
        ("augment.pad_mode=edge", "augment.pad_mode: wanted one of \"reflect\", \"zero\""),
        ("nesterov=1", "nesterov: wanted true or false, got 1"),
        ("momentum=0", "nesterov: needs a momentum above 0"),
        ("selection=best-val", "selection: best-val needs a validation split"),
        ("schedule.milestones=[1,2", "schedule.milestones: wanted a list of numbers above 0, got the string \"[1,2\""),
        ("schedule.milestones=[0, 3]", "schedule.milestones: wanted a list of numbers above 0"),
        ("schedule.milestones=[5, 20]", "milestone 20 is epoch 20 of 20: it would never be reached"),
        ("schedule.milestones=[5, 5]", "milestone 5 is epoch 5 of 20: that is not after epoch 5"),
        ("schedule.milestones=[7, 5]", "milestone 5 is epoch 5 of 20: that is not after epoch 7"),
        ("warmup_epochs=20", "warmup_epochs: the end of the warm-up, epoch 20 of 20, would never be reached"),
        ("preprocess.mean=[0.5]", "preprocess.mean: needs preprocess.std"),
        ("preprocess={mean=[0.5, 0.5], std=[1]}", "wanted one number a channel in mean and in std, got 2 and 1"),
        ("preprocess={mean=[0],std=[0]}", "preprocess.std: wanted a list of numbers above 0, got [0"),
        ("seed=-1", "seed: wanted a whole number from 0"),
        ("seed.masks=1", "did you mean seed.mask?"),
        ("seed=one", "seed: wanted a whole number"),
        ("data=", "data: wanted a string"),
        ("a\u{1b}[31m=1", "unknown key"),
    ];
    for (set, wanted) in cases {
        let lines = faults(Some(BASE), &[set]);
        assert_eq!(lines.len(), 1, "{set}: {lines:?}");
        assert!(lines[0].contains(wanted), "{set}: {lines:?}");
        assert!(lines[0].starts_with("command line: ") || lines[0].contains(".toml: nesterov: "), "{set}: {lines:?}");
    }
}

#[test]
fn every_method_and_draw_can_be_named() {
    for (name, method) in Method::ALL {
        assert_eq!(with(&[&format!("method={name}")]).method, method);
    }
    for (name, draw) in Draw::ALL {
        assert_eq!(with(&[&format!("mask_draw={name}")]).mask_draw, draw);
    }
}

#[test]
fn a_decimal_too_long_to_be_exact_is_refused() {
    let lines = faults(None, &["density=1e-300"]);
    assert!(lines.len() == 1 && lines[0].starts_with("command line: density 1e-300"), "{lines:?}");
}

#[test]
fn all_faults_show_at_once_each_with_its_source() {
    let lines = faults(
        Some("momentun = 0.9\nlr = \"high\"\nsparsity = 0.5\ndensity = 0.5\n[optimiser]\nlr = 1\n"),
        &["epochs=0", "method=erc", "nonsense"],
    );
    let wanted =
        ["momentun: unknown", "lr: wanted", "optimiser: unknown", "both given", "epochs:", "method:", "\"nonsense\""];
    assert_eq!(lines.len(), wanted.len(), "{lines:#?}");
    for part in wanted {
        assert!(lines.iter().any(|l| l.contains(part)), "{part}: {lines:#?}");
    }
    assert_eq!(lines.iter().filter(|l| l.starts_with("command line: ")).count(), 3);
    assert_eq!(lines.iter().filter(|l| l.contains(".toml: ")).count(), 4);
}

#[test]
fn a_refused_value_hides_no_good_one_and_invents_no_fault() {
    // Were the earlier method (erk) checked in place of the refused one, or the refused sparsity taken for absent, a
    // second line would appear.
    assert_eq!(faults(Some("method = \"dense\"\n"), &["method=ekr", "sparsity=0.9"]).len(), 1);
    assert_eq!(faults(None, &["sparsity=2"]).len(), 1);
    assert_eq!(faults(None, &["schedule.kind=steps"]).len(), 1);
    assert_eq!(faults(None, &["epochs=none"]).len(), 1);
}

#[test]
fn broken_toml_names_the_line() {
    let lines = faults(Some("lr = 0.1\nmomentum = = 2\n"), &[]);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains(".toml: line 2: not valid TOML"), "{lines:?}");
    let lines = faults(Some("lr = 0.1\nlr = 0.2\n"), &["momentum=2"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("line 2"), "{lines:?}");
}

#[test]
fn a_missing_file_is_a_failure_not_a_usage_error() {
    let error = resolve(None, Some("no/such.toml".as_ref()), &Overrides::default()).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().starts_with("no/such.toml: cannot read the configuration"), "{error}");
}

#[test]
fn sparsity_and_density_replace_each_other_across_sources_only() {
    assert_eq!((with(&["density=0.2"]).density, with(&["density=0.2"]).sparsity), (Some(0.2), None));
    let f = file("density = 0.2\n");
    let c = resolve(None, Some(f.path()), &sets(&["sparsity=0.95"])).unwrap().config;
    assert_eq!((c.density, c.sparsity), (None, Some(0.95)));
    assert!(faults(None, &["density=0.2", "sparsity=0.8"])[0].contains("both given"));
    assert!(faults(Some("density = 0.2\nsparsity = 0.8\n"), &[])[0].contains("both given"));
}

#[test]
fn dense_needs_no_sparsity_and_refuses_one() {
    let c = with(&["method=dense"]);
    assert_eq!((c.method, c.sparsity, c.density), (Method::Dense, None, None));
    assert_eq!(Config::from_toml(&c.to_toml().unwrap(), "again").unwrap(), c);
    assert_eq!(with(&["method=dense", "sparsity=0"]).sparsity, Some(0.0));
    assert!(faults(None, &["method=dense", "sparsity=0.5"])[0].contains("sparsity: method dense keeps every weight"));
    assert!(faults(None, &["method=dense", "density=0.5"])[0].contains("density: method dense keeps every weight"));
    let lines = faults(Some("method = \"dense\"\n"), &["method=erk"]);
    assert!(lines[0].contains("method: erk needs a sparsity or a density"), "{lines:?}");
}

#[test]
fn seeds_derive_from_the_base_and_each_can_be_set_alone() {
    let seeds = |file_text: &str, o: Overrides| resolve(None, Some(file(file_text).path()), &o).unwrap().config.seed;
    let seed = |n| Overrides { seed: Some(n), ..Overrides::default() };
    assert_eq!(seeds("seed = 3", Overrides::default()), Seeds { init: 3, mask: 3, data: 3 });
    assert_eq!(seeds("[seed]\nbase = 3\nmask = 5", Overrides::default()), Seeds { init: 3, mask: 5, data: 3 });
    assert_eq!(
        seeds("[seed]\ninit = 1\nmask = 2\ndata = 4", Overrides::default()),
        Seeds { init: 1, mask: 2, data: 4 }
    );
    assert_eq!(seeds("seed = 3", sets(&["seed.mask=5"])), Seeds { init: 3, mask: 5, data: 3 });
    // A new base replaces what earlier sources said of single seeds, but not what stands beside it.
    assert_eq!(seeds("[seed]\ninit = 1\nmask = 2\ndata = 4", seed(9)), Seeds { init: 9, mask: 9, data: 9 });
    assert_eq!(seeds("", Overrides { seed: Some(9), ..sets(&["seed.mask=5"]) }), Seeds { init: 9, mask: 5, data: 9 });
    assert_eq!(with(&["seed=9223372036854775807"]).seed.init, i64::MAX as u64);
    let error = resolve(None, None, &seed(u64::MAX)).unwrap_err().to_string();
    assert!(error.contains("seed: wanted a whole number from 0 to 2^63-1"), "{error}");
}

#[test]
fn milestones_and_warmup_scale_with_epochs() {
    let f = file("epochs = 160\nwarmup_epochs = 5\n[schedule]\nmilestones = [80, 120]\n");
    let run = |n| resolve(None, Some(f.path()), &Overrides { epochs: Some(n), ..Overrides::default() });
    let scaled = |n| run(n).unwrap().config;
    assert_eq!((milestones(&scaled(160)), scaled(160).warmup_epochs), (&[80.0, 120.0][..], 5.0));
    assert_eq!((milestones(&scaled(320)), scaled(320).warmup_epochs), (&[160.0, 240.0][..], 10.0));
    assert_eq!((milestones(&scaled(10)), scaled(10).warmup_epochs), (&[5.0, 7.5][..], 0.3125));
    assert_eq!(milestones(&scaled(1)), [0.5, 0.75], "a short try of a long recipe");
}

#[test]
fn a_milestone_that_is_never_reached_is_named() {
    let lines = |set: &[&str]| faults(Some(BASE), set);
    let lost = lines(&["epochs=10", "schedule.milestones=[5, 10]"]);
    assert_eq!(lost.len(), 1);
    assert!(lost[0].contains("milestone 10 is epoch 10 of 10: it would never be reached"), "{lost:?}");
    let scaled = faults(Some("epochs = 100\n[schedule]\nmilestones = [50, 120]\n"), &["epochs=10"]);
    assert!(scaled[0].contains("milestone 120 is epoch 12 of 10 (epoch 120 of 100, scaled)"), "{scaled:?}");
    assert!(faults(Some("warmup_epochs = 3000\n"), &[])[0].contains("warmup_epochs"));
    assert_eq!(milestones(&with(&["epochs=2", "schedule.milestones=[1]"])), [1.0]);
}

#[test]
fn milestones_count_for_the_epochs_of_their_own_source() {
    let recipe = with(&[]);
    let twice = Overrides { epochs: Some(2 * recipe.epochs), ..Overrides::default() };
    let f = file("[schedule]\nmilestones = [4]\n"); // no epochs of its own: the recipe's
    assert_eq!(milestones(&resolve(None, Some(f.path()), &twice).unwrap().config), [8.0]);
    let f = file(&format!("epochs = {}\n", 2 * recipe.epochs)); // no milestones of its own: the recipe's
    let doubled: Vec<_> = milestones(&recipe).iter().map(|m| 2.0 * m).collect();
    assert_eq!(milestones(&resolve(None, Some(f.path()), &Overrides::default()).unwrap().config), doubled);
    let beside = Overrides { epochs: Some(40), ..sets(&["schedule.milestones=[4]"]) };
    assert_eq!(milestones(&resolve(None, None, &beside).unwrap().config), [4.0]);
}

#[test]
fn cosine_drops_the_milestones_below_it_and_refuses_those_beside_it() {
    assert_eq!(with(&["schedule.kind=cosine", "epochs=1"]).schedule, Schedule::Cosine);
    let lines = faults(None, &["schedule.kind=cosine", "schedule.gamma=0.5"]);
    assert!(lines[0].contains("schedule.gamma: belongs to kind multi-step"), "{lines:?}");
    let lines = faults(Some("[schedule]\nkind = \"cosine\"\n"), &["schedule.kind=multi-step"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|l| l.contains("missing")), "{lines:?}");
}

#[test]
fn normalisation_stays_with_its_data() {
    let f = file("data = \"a\"\n[preprocess]\nmean = [0.5]\nstd = [0.25]\n");
    let run = |o: &Overrides| resolve(None, Some(f.path()), o).unwrap().config.preprocess;
    assert_eq!(run(&Overrides::default()).unwrap().mean, [0.5]);
    assert!(run(&Overrides { data: Some("a".into()), ..Overrides::default() }).is_some());
    assert!(run(&Overrides { data: Some("b".into()), ..Overrides::default() }).is_none());
}

#[test]
fn a_resolved_file_lacking_a_key_is_refused() {
    let text = with(&[]).to_toml().unwrap();
    let names: Vec<_> = text.lines().filter_map(|l| l.split_once(" = ").map(|(k, _)| k.to_string())).collect();
    assert!(names.len() > 20, "{text}");
    for name in names {
        let cut: String =
            text.lines().filter(|l| !l.starts_with(&format!("{name} = "))).map(|l| format!("{l}\n")).collect();
        let error = Config::from_toml(&cut, "config.toml").expect_err(&name).to_string();
        assert!(
            error.contains(&name) || (name == "sparsity" && error.contains("method: erk needs")),
            "{name}: {error}"
        );
    }
    assert!(Config::from_toml("", "empty").is_err());
}

#[test]
fn differences_name_the_key() {
    let (a, b) = (with(&[]), with(&["lr=0.2", "schedule.milestones=[3]", "density=0.5"]));
    assert!(a.differences(&a).unwrap().is_empty());
    let lines = a.differences(&b).unwrap();
    let keys: Vec<_> = lines.iter().map(|l| l.split(':').next().unwrap()).collect();
    assert_eq!(keys, ["sparsity", "lr", "schedule.milestones", "density"], "{lines:?}");
    let filled = with(&["preprocess={mean=[0.5],std=[0.1]}"]);
    assert!(a.differences(&filled).unwrap().is_empty());
    assert_eq!(filled.differences(&with(&["preprocess={mean=[0.5],std=[0.2]}"])).unwrap().len(), 1);
}

#[test]
fn code_can_check_what_it_changed() {
    let mut config = with(&[]);
    config.check().unwrap();
    config.lr = f64::NAN;
    assert!(config.check().unwrap_err().to_string().contains("lr: wanted"));
    config.lr = 0.1;
    config.seed.mask = u64::MAX;
    assert!(config.check().is_err());
}

#[test]
fn every_key_is_documented() {
    let page = include_str!("../docs/config.md");
    let error = faults(None, &["no_such_key_at_all=1"]).remove(0);
    let allowed = error.split("(allowed: ").nth(1).unwrap().trim_end_matches(')');
    for key in allowed.split(", ") {
        let inner =
            match faults(None, &[&format!("{key}.zzzz=1")]).remove(0).split_once(&format!("(allowed in {key}: ")) {
                Some((_, list)) => list.trim_end_matches(')').split(", ").map(|k| format!("`{key}.{k}`")).collect(),
                None => vec![format!("`{key}`")],
            };
        for name in inner {
            assert!(page.contains(&name), "{name} is not in docs/config.md");
        }
    }
}

proptest! {
    #[test]
    fn any_good_configuration_reads_back(
        lr in 1e-300f64..1e300, momentum in 1e-9f64..0.999, wd in 0.0f64..1.0, warm in 0.0f64..1.0, seed in 0..i64::MAX as u64,
        density in 1e-9f64..1.0, epochs in 4u64..1000,
    ) {
        let overrides = Overrides {
            epochs: Some(epochs),
            seed: Some(seed),
            ..sets(&[&format!("lr={lr:e}"), &format!("momentum={momentum}"), &format!("weight_decay={wd:e}"),
                &format!("warmup_epochs={warm:e}"), &format!("density={density:e}"), &format!("seed.mask={}", seed / 2)])
        };
        let config = resolve(None, None, &overrides).unwrap().config;
        prop_assert_eq!((config.lr, config.momentum, config.density), (lr, momentum, Some(density)));
        prop_assert_eq!(Config::from_toml(&config.to_toml().unwrap(), "again").unwrap(), config.clone());
        let f = file(&config.to_toml().unwrap());
        prop_assert_eq!(resolve(None, Some(f.path()), &Overrides::default()).unwrap().config, config);
    }

    #[test]
    fn no_assignment_panics(text in "\\PC{0,40}", key in "[a-z._]{0,12}") {
        let _ = resolve(None, None, &sets(&[&text, &format!("{key}={text}")]));
        let _ = Config::from_toml(&text, "any");
    }
}

#[test]
fn test_images_are_not_selected_on_beside_a_validation_split() {
    let both = faults(Some("validation = 10\nselection = \"best-test\"\n"), &[]);
    assert!(both.len() == 1 && both[0].contains("best-test beside a validation split"), "{both:?}");
}

#[test]
fn the_network_is_checked_with_everything_else() {
    let all = faults(Some("model = \"vgg12\"\nlr = -1.0\nwidth = 2000\n"), &["foo=2"]).join("\n");
    for wanted in ["unknown model \"vgg12\": allowed are resnetN", "lr", "width", "foo"] {
        assert!(all.contains(wanted), "no {wanted:?} in {all}");
    }
}

#[test]
fn a_width_belongs_to_the_networks_that_have_several() {
    // The recipe's width goes with its network.
    let c = with(&["model=vgg16"]);
    assert_eq!((c.model.as_str(), c.width), ("vgg16", None));
    assert!(!c.to_toml().unwrap().contains("width"));
    assert_eq!(Config::from_toml(&c.to_toml().unwrap(), "again").unwrap(), c);
    assert_eq!(resolve(None, None, &sets(&["model=resnet50"])).unwrap().name, "resnet50");
    // One that is asked for beside it, or later, is a fault, and one fault alone.
    for (text, list) in [
        (None, &["model=resnet50", "width=16"][..]),
        (Some("model = \"resnet50\"\n"), &["width=64"]),
        (Some("model = \"resnet50\"\nwidth = 64\n"), &[]),
    ] {
        let lines = faults(text, list);
        assert!(lines.len() == 1 && lines[0].contains(": width: resnet50 has one width only; leave"), "{lines:?}");
    }
    assert_eq!(faults(None, &["model=resnet50", "width=0"]).len(), 1);
    // Back to a network that has several, the standard one; between two such, the width stays.
    let f = file("model = \"resnet50\"\n");
    let back = |list: &[&str]| resolve(None, Some(f.path()), &sets(list)).unwrap().config;
    assert_eq!(back(&["model=resnet56"]).width, Some(16));
    assert_eq!(back(&["model=resnet56", "width=8"]).width, Some(8));
    let f = file("width = 24\n");
    assert_eq!(resolve(None, Some(f.path()), &sets(&["model=resnet56"])).unwrap().name, "resnet56-24");
}

#[test]
fn a_network_has_one_name_in_a_resolved_configuration() {
    for (given, name) in [
        ("cifar-resnet20", "resnet20"),
        ("resnet50", "resnet50"),
        ("cifar-resnet50", "cifar-resnet50"),
        ("wide-resnet50-2", "wrn50-2"),
    ] {
        assert_eq!(with(&[&format!("model={given}")]).model, name);
    }
}
