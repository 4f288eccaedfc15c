//! What keys do to each other: derivation, replacement, scaling.

use super::*;

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
    // All but those that files of an earlier engine lack.
    let newer =
        ["pattern", "erk_power", "init_mode", "init_scale", "weight_decay_exempt", "warmup_by", "gradient_norm_every"];
    let text = with(&[]).to_toml().unwrap();
    let names: Vec<_> = text.lines().filter_map(|l| l.split_once(" = ").map(|(k, _)| k.to_string())).collect();
    assert!(names.len() > 20, "{text}");
    for name in names.into_iter().filter(|name| !newer.contains(&name.as_str())) {
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
    let page = include_str!("../../docs/config.md");
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
