//! Networks written as TOML: what they become, what is refused, and that they train, go on and are evaluated like others.

#[path = "data_support/mod.rs"]
mod data_support;
mod support;

use sparse_engine::graph::Graph;
use sparse_engine::models::{self, own_network};
use support::{Lab, program, run};

/// ResNet-8 of width 16 as a user may write it.
const RESNET8: &str = r#"
layers = [
    { op = "conv", name = "conv", channels = 16, kernel = 3 },
    { op = "bn" },
    { op = "relu" },
    { op = "conv", name = "a1", kernel = 3 },
    { op = "bn" },
    { op = "relu" },
    { op = "conv", name = "a2", kernel = 3 },
    { op = "bn", name = "a3" },
    { op = "add", with = "relu1" },
    { op = "relu", name = "a" },
    { op = "repeat", name = "segment", times = 2, layers = [
        { op = "conv", channels = [32, 64], kernel = 3, stride = 2 },
        { op = "bn" },
        { op = "relu" },
        { op = "conv", kernel = 3 },
        { op = "bn", name = "main" },
        { op = "conv", name = "shortcut", input = "input", channels = [32, 64], kernel = 1, stride = 2 },
        { op = "bn" },
        { op = "add", with = "main" },
        { op = "relu" },
    ] },
    { op = "pool" },
    { op = "linear", name = "fc" },
]
"#;

fn own(text: &str) -> sparse_engine::Result<Graph> {
    own_network(text, "mine.toml", [3, 32, 32], 10)
}

#[test]
fn a_resnet_written_as_toml_is_that_resnet() {
    let (own, built_in) = (own(RESNET8).unwrap(), models::by_name("resnet8", None, 3, 10, 32).unwrap());
    let count = |g: &Graph| {
        let mut convs: Vec<_> = g.convs().iter().map(|c| (c.geom, c.bias.is_some())).collect();
        convs.sort_by_key(|(g, bias)| (g.c, g.k, g.r, g.h, *bias));
        (g.param_count(), convs, g.norms().len(), g.macs().iter().sum::<u64>())
    };
    assert_eq!(count(&own), count(&built_in));
    let names: Vec<_> = own.params().iter().map(|p| p.name.as_str()).collect();
    for name in ["conv.weight", "bn1.bias", "segment0.conv1.weight", "segment1.shortcut.weight", "fc.bias"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}

#[test]
fn sizes_names_and_references_follow_the_words() {
    let text = r#"layers = [
        { op = "conv", channels = 4, kernel = 5, stride = 2, pad = 0, bias = true },
        { op = "pool", kind = "max", size = 3, stride = 2, pad = 1 },
        { op = "repeat", name = "outer", times = 2, layers = [
            { op = "repeat", name = "inner", times = 2, layers = [ { op = "conv", kernel = [1, 3] }, { op = "bn" } ] },
            { op = "add", with = "input" },
        ] },
        { op = "pool" },
        { op = "linear", outputs = 12, name = "hidden" },
        { op = "relu" },
        { op = "linear" },
    ]"#;
    let g = own_network(text, "mine.toml", [2, 21, 30], 7).unwrap();
    let convs: Vec<_> = g.convs().iter().map(|c| (c.name.as_str(), c.geom.k, c.geom.r, c.geom.h, c.geom.w)).collect();
    assert_eq!(
        convs,
        [
            ("conv1", 4, 5, 21, 30),
            ("outer0.inner0.conv1", 4, 1, 5, 7),
            ("outer0.inner1.conv1", 4, 3, 5, 7),
            ("outer1.inner0.conv1", 4, 1, 5, 7),
            ("outer1.inner1.conv1", 4, 3, 5, 7),
            ("hidden", 12, 1, 1, 1),
            ("linear2", 7, 1, 1, 1),
        ]
    );
    assert!(g.convs()[0].bias.is_some() && g.convs()[1].bias.is_none());
    assert_eq!(g.nodes().last().unwrap().chw, (7, 1, 1));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let list = |layers: &str| format!("layers = [{layers}]");
    let end = r#"{ op = "pool" }, { op = "linear" }"#;
    let deep =
        (0..12).fold(end.to_string(), |inner, _| format!("{{ op = \"repeat\", times = 1, layers = [{inner}] }}"));
    let many =
        r#"{ op = "repeat", times = 1000, layers = [{ op = "repeat", times = 1000, layers = [{ op = "relu" }] }] }"#;
    for (text, wanted) in [
        ("layers = [", "line 1: not valid TOML"),
        ("a = 1\nlayers = []", "unknown key \"a\""),
        ("", "no layers"),
        ("layers = 3", "layers: wanted a list"),
        (&list(""), "layers: wanted a list of layers, at least one"),
        (&list("3"), "layers[0]: wanted a table"),
        (&list("{ op = \"conv2d\" }"), "layers[0]: unknown op \"conv2d\": wanted one of conv, bn"),
        (&list("{ name = \"x\" }"), "layers[0]: wanted op"),
        (
            &list("{ op = \"conv\", chanels = 3 }"),
            "layers[0] (conv): unknown word \"chanels\" (allowed: name, input, channels",
        ),
        (&list("{ op = \"conv\", channels = 0 }"), "channels: wanted a whole number from 1 to 65536, got 0"),
        (&list("{ op = \"conv\", channels = -1 }"), "got -1"),
        (&list("{ op = \"conv\", channels = 9223372036854775807 }"), "from 1 to 65536"),
        (&list("{ op = \"conv\", channels = [1, 2] }"), "a list belongs into a repeat"),
        (&list("{ op = \"conv\", kernel = 33, pad = 0 }"), "layers[0] (conv): layer conv1: a 33x33 convolution"),
        (
            &list("{ op = \"relu\", input = \"x\" }"),
            "layers[0] (relu): no layer \"x\" before this one (there are: input)",
        ),
        (&list("{ op = \"bn\", name = \"a b\" }"), "name: wanted a word of letters"),
        (&list("{ op = \"bn\", name = \"input\" }"), "choose another"),
        (
            &list(&format!("{{ op = \"bn\", name = \"a\" }}, {{ op = \"bn\", name = \"a\" }}, {end}")),
            "layers[1] (bn): a second layer is named \"a\"",
        ),
        (
            &list("{ op = \"conv\", channels = 4, name = \"a\" }, { op = \"add\", with = \"input\" }"),
            "layers[1] (add): an addition wants operands of one shape",
        ),
        (&list("{ op = \"add\" }"), "wanted with = \"NAME\""),
        (&list("{ op = \"linear\" }"), "layers[0] (linear): layer linear1: a linear layer"),
        (&list("{ op = \"pool\", kind = \"avg\" }"), "kind \"avg\": wanted \"mean\" or \"max\""),
        (&list("{ op = \"pool\", size = 2 }"), "size belongs to kind = \"max\""),
        (&list("{ op = \"pool\", kind = \"max\", size = 40 }"), "40x40 maximum pooling"),
        (&list("{ op = \"repeat\", layers = [] }"), "wanted times = N"),
        (&list("{ op = \"repeat\", times = 2 }"), "wanted layers"),
        (
            &list("{ op = \"repeat\", times = 2, layers = [{ op = \"conv\", channels = [1, 2, 3] }] }"),
            "layers[0].layers[0] (conv): channels: 3 numbers for 2 times",
        ),
        (&list("{ op = \"conv\", channels = 10 }"), "the last layer gives 10x32x32, wanted 10x1x1"),
        (&list("{ op = \"pool\" }, { op = \"linear\", outputs = 9 }"), "the last layer gives 9x1x1, wanted 10x1x1"),
        (
            &list(&format!("{{ op = \"conv\", name = \"a\" }}, {{ op = \"relu\", input = \"input\" }}, {end}")),
            "layers[0] (conv): a: nothing reads what it gives",
        ),
        (
            &list(&format!(
                "{{ op = \"repeat\", times = 2, layers = [{{ op = \"bn\" }}, {{ op = \"relu\", input = \"input\" }}] }}, {end}"
            )),
            "layers[0].layers[0] (bn): repeat10.bn1: nothing reads",
        ),
        (&list(&deep), "more than 8 repeats inside each other"),
        (&list(many), "more than 20000 layers"),
    ] {
        let e = own(text).expect_err(text);
        assert_eq!(e.exit_code(), 2, "{text}");
        let e = e.to_string();
        assert!(e.starts_with("mine.toml: ") && e.contains(wanted) && e.lines().count() == 1, "{text}: {e}");
    }
}

#[test]
fn a_run_needs_the_file_once() {
    let lab = Lab::new();
    let file = lab.path("mine.toml");
    std::fs::write(&file, RESNET8.replace("channels = 16", "channels = 6")).unwrap();
    let model = format!("model={}", file.display());
    run(lab.train("run").args(["--set", &model, "--epochs", "2"])).ok();
    std::fs::remove_file(&file).unwrap();
    let eval = run(program(&["eval", "--json"]).arg(lab.path("run"))).ok();
    let json: serde_json::Value = serde_json::from_str(&eval.out).unwrap();
    assert!(json["accuracy"].as_f64().unwrap() > 0.25, "{json}");
    let config = lab.path("run").join("config.toml");
    run(program(&["train", "--config"]).arg(&config).arg("--out").arg(lab.path("again"))).ok();
    lab.assert_same_end("again", "run", "from the resolved configuration");
    run(lab.train("none").args(["--set", "model=nowhere.toml"])).refused(2, &["nowhere.toml: cannot read the network"]);
    run(lab.train("none").args(["--set", &model])).refused(2, &["mine.toml: cannot read the network"]);
    std::fs::write(&file, RESNET8).unwrap();
    run(lab.train("none").args(["--set", &model, "--set", "width=8"])).refused(2, &["width: a network of your own"]);
    std::fs::write(&file, RESNET8.replace("op = \"linear\"", "op = \"line\"")).unwrap();
    run(lab.train("none").args(["--set", &model])).refused(2, &["mine: layers[12]: unknown op \"line\""]);
    assert!(!lab.path("none").exists());
}
