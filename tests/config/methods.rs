//! Methods with their own keys: defaults, what replaces what, and what is refused.

use super::{faults, file, sets, with};
use sparse_engine::config::{Config, Halves, Overrides, ScoreInit, resolve};
use sparse_engine::sparsity::{Density, Method, Positions, Ratio, Rest};

#[test]
fn each_method_has_its_keys_explicit_and_no_others() {
    let snip = with(&["method=snip", "batch_size=64"]);
    assert_eq!(
        (snip.positions, snip.score_init, snip.score_samples),
        (Some(Positions::Draw), Some(ScoreInit::Own), Some(64))
    );
    assert_eq!((snip.score_augment, snip.score_temperature, snip.erk_power), (Some(true), None, None));
    let grasp = with(&["method=grasp", "score_init=xavier", "score_halves=alternate"]);
    assert_eq!((grasp.score_samples_per_class, grasp.score_temperature), (Some(25), Some(200.0)));
    assert_eq!((grasp.score_halves, grasp.score_init), (Some(Halves::Alternate), Some(ScoreInit::Xavier)));
    assert_eq!((grasp.score_samples, grasp.positions), (None, Some(Positions::Draw)));
    let magnitude = with(&["method=global-magnitude"]);
    assert_eq!((magnitude.positions, magnitude.score_init), (Some(Positions::Keep), None));
    let plus = with(&["method=erk-plus", "last_density=0.5", "erk_power=2"]);
    assert_eq!(plus.ratio().unwrap(), Some(Ratio::ErkPlus { power: 2.0, last: Density::from_density(0.5).unwrap() }));
    assert_eq!(with(&[]).erk_power, Some(1.0));
    for c in [snip, grasp, magnitude, plus] {
        let text = c.to_toml().unwrap();
        assert_eq!(Config::from_toml(&text, "again").unwrap(), c, "{text}");
    }
}

#[test]
fn densities_by_hand_come_from_files_and_the_command_line() {
    let f =
        file("method = \"custom\"\n[custom]\nrest = \"erk\"\n[custom.layers]\n\"@first\" = 1\n\"segment2.*\" = 0.05\n");
    let c = resolve(None, Some(f.path()), &Overrides::default()).unwrap().config;
    let half = |d: f64| Density::from_density(d).unwrap();
    let layers = vec![("@first".to_string(), half(1.0)), ("segment2.*".to_string(), half(0.05))];
    assert_eq!(c.ratio().unwrap(), Some(Ratio::Custom { layers, rest: Rest::Erk }));
    assert_eq!(Config::from_toml(&c.to_toml().unwrap(), "again").unwrap(), c);
    let set = with(&["method=custom", "custom.layers={\"a\" = 0.5}"]);
    assert_eq!(set.custom.unwrap().rest, Rest::Uniform);
    for (list, wanted) in [
        (&["method=custom"][..], "custom.layers: method custom needs densities of layers"),
        (&["method=custom", "custom.layers={}"], "custom.layers: wanted a table of numbers in (0, 1]"),
        (
            &["method=custom", "custom.layers={b=1, a=0}"],
            "numbers in (0, 1], such as { \"@first\" = 1.0 }, got \"a\" = 0",
        ),
        (&["method=custom", "custom.layers={a=\"b\"}"], "custom.layers: wanted a table"),
        (&["method=custom", "custom.layer={a=1}"], "did you mean custom.layers?"),
    ] {
        assert!(faults(None, list).iter().any(|f| f.contains(wanted)), "{list:?}: {:?}", faults(None, list));
    }
}

#[test]
fn keys_of_other_methods_are_refused_and_earlier_ones_dropped() {
    let f = file("method = \"grasp\"\nscore_temperature = 100\n");
    let c = resolve(None, Some(f.path()), &sets(&["method=uniform"])).unwrap().config;
    assert_eq!((c.method, c.score_temperature, c.erk_power), (Method::Uniform, None, None));
    for (list, wanted) in [
        (
            &["method=uniform", "erk_power=2"][..],
            "erk_power: method uniform has no such key, it belongs to erk, erk-plus",
        ),
        (&["positions=keep"], "positions: method erk has no such key, it belongs to snip, grasp, global-magnitude"),
        (&["method=snip", "score_temperature=1"], "score_temperature: method snip has no such key"),
        (&["method=file"], "mask: method file needs a file of masks"),
        (&["method=file", "mask=m.safetensors", "sparsity=0.5"], "sparsity: method file has the density of its file"),
        (&["method=erk+"], "method: wanted one of \"dense\", \"uniform\", \"uniform-plus\""),
        (&["method=snip", "score_init=random"], "score_init: wanted one of \"own\", \"xavier\""),
        (&["weight_decay_exempt=bn"], "weight_decay_exempt: wanted one of \"none\", \"by-kind\", \"released\""),
        (&["erk_power=-0.5"], "erk_power: wanted a number from 0 to 8, got -0.5"),
    ] {
        let found = faults(None, list);
        assert!(found.len() == 1 && found[0].contains(wanted), "{list:?}: {found:?}");
    }
    let c = with(&["method=file", "mask=m.safetensors"]);
    assert_eq!((c.density, c.sparsity, c.mask.as_deref()), (None, None, Some("m.safetensors")));
}

#[test]
fn configurations_of_before_these_keys_still_read() {
    let c = with(&[]);
    let old: String = c
        .to_toml()
        .unwrap()
        .lines()
        .filter(|l| {
            let new = ["init_", "weight_decay_exempt", "warmup_by", "gradient_norm_every", "erk_power"];
            !new.iter().any(|key| l.starts_with(key))
        })
        .map(|l| format!("{l}\n"))
        .collect();
    assert_eq!(Config::from_toml(&old, "old").unwrap(), c);
}
