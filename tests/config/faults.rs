//! What is refused, and how: each fault, and all at once.

use super::*;

#[test]
fn each_fault_says_what_is_wrong() {
    let cases: &[(&str, &str)] = &[
        ("momentun=0.9", "momentun: unknown key; did you mean momentum? (allowed: model, network_toml, width, data"),
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
        ("method=erkk", "\"global-magnitude\", \"custom\", \"file\", got the string \"erkk\"; did you mean \"erk\"?"),
        ("mask_draw=random", "mask_draw: wanted one of \"exact\", \"bernoulli\""),
        ("pattern=blocks", "pattern: wanted \"unstructured\", or \"block:RxC\""),
        (
            "pattern=block:16",
            "(blocks of R output x C input channels, 1 to 4096 each, such as block:16x16), got the string",
        ),
        ("pattern=block:0x16", "pattern: wanted"),
        ("pattern=block:x", "pattern: wanted"),
        ("pattern=block:99999999999x1", "pattern: wanted"),
        ("pattern=16", "pattern: wanted \"unstructured\", or \"block:RxC\""),
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
        ("data=", "data: wanted a string that is not empty"),
        ("=3", "\"=3\": wanted key=value"),
        ("network_toml=x", "network_toml: model resnet20 is a network of the engine's"),
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
    for (name, method) in Method::ALL.into_iter().filter(|(_, m)| ![Method::Custom, Method::File].contains(m)) {
        assert_eq!(with(&[&format!("method={name}")]).method, method);
    }
    for (name, draw) in Draw::ALL {
        assert_eq!(with(&[&format!("mask_draw={name}")]).mask_draw, draw);
    }
}

#[test]
fn blocks_are_not_tossed() {
    let lines = faults(None, &["pattern=block:16x16", "mask_draw=bernoulli"]);
    let wanted = "command line: pattern: block:16x16 needs exact counts, a Bernoulli draw tosses single weights";
    assert!(lines.len() == 1 && lines[0].starts_with(wanted), "{lines:?}");
    assert_eq!(faults(None, &["pattern=block:16x16", "mask_draw=toss"]).len(), 1);
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
    assert_eq!(faults(Some("method = \"dense\"\n"), &["method=erkk", "sparsity=0.9"]).len(), 1);
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
