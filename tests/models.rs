//! Networks: counts of the paper, shapes at any image size, where strides and poolings sit, initial values, names.
#![allow(clippy::neg_cmp_op_on_partial_ord)] // so that NaN fails

use sparse_engine::backend::{Plane, PoolSpec};
use sparse_engine::graph::{Exempt, Graph, Op};
use sparse_engine::models::{self, Network};
use sparse_engine::sparsity::{Density, Maskable, Ratio, layer_densities};

/// On the images that the published counts are for.
fn build(name: &str, width: Option<usize>) -> Graph {
    let (channels, size, classes) = models::default_image(name).unwrap();
    models::by_name(name, width, channels, classes, size).unwrap()
}

fn densities(maskable: &[Maskable], ratio: &Ratio, sparsity: f64) -> Vec<f64> {
    layer_densities(maskable, ratio, Density::from_sparsity(sparsity).unwrap()).unwrap()
}

fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * (1.0 + 1e-9), "{what}: got {got}, want {want} +- {tolerance}");
}

fn gflops(g: &Graph, ratio: &Ratio, sparsity: f64) -> f64 {
    let densities = densities(&g.maskable(), ratio, sparsity);
    2e-9 * densities.iter().zip(g.macs()).map(|(d, macs)| d * macs as f64).sum::<f64>()
}

#[test]
fn counts_are_the_papers() {
    // Section 2.4: name, width, parameters, maskable, tensors, MMAC as published and the half of its last digit.
    // ResNet-152 is not in it: 60,192,808 parameters and 11.51 GMACs are torchvision's. Tensors of the large ones: stem, 2
    // or 3 a block, 3 or 4 shortcuts, linear.
    for (name, width, params, maskable, tensors, mmac, half) in [
        ("resnet20", None, 272_474, 270_896, 22, 40.81, 0.005),
        ("resnet20", Some(16), 272_474, 270_896, 22, 40.81, 0.005),
        ("resnet32", None, 466_906, 464_432, 34, 69.12, 0.005),
        ("resnet44", None, 661_338, 657_968, 46, 97.44, 0.005),
        ("resnet56", None, 855_770, 851_504, 58, 125.75, 0.005),
        ("resnet110", None, 1_730_714, 1_722_416, 112, 253.15, 0.005),
        ("resnet20", Some(8), 68_786, 67_992, 22, 10.31, 0.005),
        ("resnet20", Some(24), 611_074, 608_712, 22, 91.50, 0.005),
        ("resnet20", Some(32), 1_084_586, 1_081_440, 22, 162.37, 0.005),
        ("resnet20", Some(40), 1_693_010, 1_689_080, 22, 253.42, 0.005),
        ("resnet20", Some(56), 3_314_594, 3_309_096, 22, 496.09, 0.005),
        ("vgg11", None, 9_228_362, 9_222_848, 9, 152.77, 0.005),
        ("vgg13", None, 9_413_066, 9_407_168, 11, 228.27, 0.005),
        ("vgg16", None, 14_724_042, 14_715_584, 14, 313.20, 0.005),
        ("vgg19", None, 20_035_018, 20_024_000, 17, 398.14, 0.005),
        ("resnet18", None, 11_689_512, 11_678_912, 21, 1814.0, 0.25),
        ("resnet34", None, 21_797_672, 21_779_648, 37, 3664.0, 0.25),
        ("resnet50", None, 25_557_032, 25_502_912, 54, 4089.0, 0.25),
        ("resnet101", None, 44_549_160, 44_442_816, 105, 7801.5, 0.25),
        ("resnet152", None, 60_192_808, 60_040_384, 156, 11_514.0, 5.0),
        ("wrn50-2", None, 68_883_240, 68_814_016, 54, 11_398.0, 0.25),
        ("wrn101-2", None, 126_886_696, 126_747_840, 105, 22_753.0, 0.25),
    ] {
        let (g, what) = (build(name, width), format!("{name} {width:?}"));
        assert_eq!(g.param_count(), params, "{what}");
        let layers = g.maskable();
        assert_eq!(layers.iter().map(Maskable::size).sum::<usize>(), maskable, "{what}");
        assert_eq!((layers.len(), g.macs().len()), (tensors, tensors), "{what}");
        close(g.macs().iter().sum::<u64>() as f64 / 1e6, mmac, half, &what);
        let mut names: Vec<_> = g.params().iter().map(|p| &p.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), g.params().len(), "{what}: each parameter has a name of its own");
    }
}

#[test]
fn erk_and_uniform_gflops_of_section_6() {
    // At sparsity 0.3, 0.5, 0.7: uniform, ERK, and the density of the linear layer under ERK.
    for (name, uniform, erk, fc) in [
        ("resnet18", [2.540, 1.814, 1.088], [3.285, 2.889, 2.248], [1.0, 1.0, 1.0]),
        ("resnet34", [5.129, 3.664, 2.198], [6.644, 5.588, 4.119], [1.0, 1.0, 1.0]),
        ("resnet50", [5.725, 4.089, 2.454], [6.943, 5.841, 4.354], [0.859, 0.452, 0.232]),
        ("resnet101", [10.922, 7.801, 4.681], [12.218, 9.798, 6.616], [0.809, 0.370, 0.194]),
        ("wrn50-2", [15.957, 11.398, 6.839], [19.824, 15.309, 10.905], [1.0, 1.0, 0.496]),
    ] {
        let g = build(name, None);
        for (i, s) in [0.3, 0.5, 0.7].into_iter().enumerate() {
            close(gflops(&g, &Ratio::Uniform, s), uniform[i], 0.0005, &format!("{name} uniform {s}"));
            close(gflops(&g, &Ratio::ERK, s), erk[i], 0.0005, &format!("{name} ERK {s}"));
            let last = *densities(&g.maskable(), &Ratio::ERK, s).last().unwrap();
            close(last, fc[i], 0.0005, &format!("{name} fc under ERK {s}"));
        }
    }
}

#[test]
fn erk_epsilons_and_flop_ratios_of_section_6() {
    let epsilon = |name: &str, s: f64| {
        let layers = build(name, None).maskable();
        let found = densities(&layers, &Ratio::ERK, s).into_iter().zip(&layers).find(|(d, _)| *d < 1.0);
        let (d, layer) = found.unwrap();
        d * layer.size() as f64 / layer.shape.iter().sum::<usize>() as f64
    };
    for (s, want) in [(0.5, 303.9519), (0.8, 99.5612), (0.9, 48.7861), (0.95, 24.3716)] {
        close(epsilon("resnet50", s), want, 0.5e-4, &format!("resnet50 {s}"));
    }
    for (s, want) in [(0.5, 722.8816), (0.6, 507.4614), (0.7, 333.4054), (0.8, 213.8442), (0.85, 156.2305)] {
        close(epsilon("wrn50-2", s), want, 0.5e-4, &format!("wrn50-2 {s}"));
    }
    let ratio = |g: &Graph, s: f64| gflops(g, &Ratio::ERK, s) / gflops(g, &Ratio::Dense, 0.0);
    let vgg = build("vgg16", None);
    for (s, want) in [(0.5, 0.7540), (0.8, 0.4423), (0.9, 0.2435), (0.95, 0.1240)] {
        close(ratio(&vgg, s), want, 0.5e-4, &format!("vgg16 {s}"));
    }
    let resnet = build("resnet50", None);
    for (s, want) in [(0.8, 0.414), (0.9, 0.242), (0.95, 0.122)] {
        close(ratio(&resnet, s), want, 0.0005, &format!("resnet50 {s}"));
    }
}

#[test]
fn strides_sit_where_version_1_5_has_them() {
    for name in ["resnet18", "resnet34", "resnet50", "resnet101", "wrn50-2"] {
        let g = build(name, None);
        let strided: Vec<_> = g.convs().iter().filter(|c| c.geom.stride == 2).map(|c| c.name.as_str()).collect();
        let (conv, shortcuts) = if name.ends_with("18") || name.ends_with("34") { (1, 3) } else { (2, 4) };
        let mut want = vec!["conv".to_string()];
        for segment in 1..4 {
            want.push(format!("segment{segment}.block0.conv{conv}"));
            want.push(format!("segment{segment}.block0.shortcut.conv"));
        }
        assert_eq!(strided, want, "{name}");
        assert!(g.convs().iter().filter(|c| c.geom.stride == 2 && c.geom.r == 1).all(|c| c.name.contains("shortcut")));
        assert_eq!(g.convs().iter().filter(|c| c.name.contains("shortcut")).count(), shortcuts, "{name}");
        let plane = Plane { c: 64, h: 112, w: 112 };
        assert_eq!(g.pools(), [PoolSpec { plane, size: 3, stride: 2, pad: 1 }], "{name}");
        let ops: Vec<_> = g.nodes().iter().take(6).map(|n| (n.op.clone(), n.chw)).collect();
        let stem = (64, 112, 112);
        let want = [
            (Op::Input, (3, 224, 224)),
            (Op::Conv(0), stem),
            (Op::Norm(0), stem),
            (Op::Relu, stem),
            (Op::MaxPool(0), (64, 56, 56)),
        ];
        assert_eq!(ops[..5], want, "{name}");
        assert_eq!(g.nodes()[g.nodes().len() - 3].chw.1, 7, "{name}");
    }
}

#[test]
fn any_image_size_ends_in_logits() {
    for name in ["resnet8", "resnet18", "resnet50", "wrn50-2", "vgg11", "vgg19"] {
        for size in [4, 15, 16, 17, 28, 33, 64, 224, 225] {
            let built = models::by_name(name, None, 1, 7, size);
            if name.starts_with("vgg") && size < 16 {
                let e = built.unwrap_err().to_string();
                assert!(e.contains("image size: wanted 16 to 1024") && e.contains(&size.to_string()), "{e}");
                continue;
            }
            let g = built.unwrap();
            let nodes = g.nodes();
            assert_eq!(nodes.last().unwrap().chw, (7, 1, 1), "{name} {size}");
            let halves = if name == "resnet8" { 2 } else { 5 };
            let last = nodes[nodes.len() - 3].chw.1;
            let side = if name.starts_with("vgg") {
                (0..4).fold(size, |s, _| s / 2) // rest dropped
            } else {
                (0..halves).fold(size, |s, _| s.div_ceil(2)) // rest padded
            };
            assert_eq!(last as usize, side, "{name} {size}");
        }
    }
}

#[test]
fn vgg_is_segments_of_3x3_between_poolings() {
    for (name, want) in [
        ("vgg11", "64 M 128 M 256 256 M 512 512 M 512 512"),
        ("vgg13", "64 64 M 128 128 M 256 256 M 512 512 M 512 512"),
        ("vgg16", "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512"),
        ("vgg19", "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512"),
    ] {
        let g = build(name, None);
        let body = &g.nodes()[..g.nodes().len() - 2]; // average pooling and the linear layer
        let words: Vec<_> = body
            .iter()
            .filter_map(|n| match n.op {
                Op::Conv(_) => Some(n.chw.0.to_string()),
                Op::MaxPool(_) => Some("M".into()),
                _ => None,
            })
            .collect();
        assert_eq!(words.join(" "), want, "{name}");
        let windows: Vec<_> = g.pools().iter().map(|p| (p.size, p.stride, p.pad)).collect();
        assert_eq!(windows, [(2, 2, 0); 4], "{name}");
        assert!(g.convs().iter().all(|c| (c.geom.r, c.geom.pad) == (3, 1) || c.name == "fc"), "{name}");
        let biased: Vec<_> = g.convs().iter().filter(|c| c.bias.is_some()).map(|c| c.name.as_str()).collect();
        assert_eq!(biased, ["fc"], "{name}");
    }
}

#[test]
fn max_pool_shapes_and_faults() {
    let mut g = Graph::new(2, 7, 10);
    let x = g.input();
    for ([size, stride, pad], (p, q)) in
        [([2, 2, 0], (3, 5)), ([3, 2, 1], (4, 5)), ([3, 1, 2], (9, 12)), ([7, 9, 0], (1, 1)), ([1, 1, 0], (7, 10))]
    {
        let y = g.max_pool(x, size, stride, pad).unwrap();
        let node = g.nodes().last().unwrap();
        assert_eq!(node.chw, (2, p, q), "{size} {stride} {pad}");
        assert_eq!((&node.op, node.inputs.as_slice()), (&Op::MaxPool(g.pools().len() - 1), &[x][..]));
        assert_ne!(x, y);
    }
    let nodes = g.nodes().len();
    for [size, stride, pad] in [
        [0, 1, 0],
        [2, 0, 0],
        [2, 2, 2],
        [8, 1, 0],
        [12, 1, 2],
        [usize::MAX, 1, usize::MAX - 1],
        [3, usize::MAX, 1],
        [1 << 40, 1, (1 << 40) - 1],
    ] {
        let e = g.max_pool(x, size, stride, pad).unwrap_err();
        let text = e.to_string();
        assert!(e.exit_code() == 2 && text.contains("2x7x10") && !text.contains('\n'), "{text}");
    }
    assert_eq!((g.nodes().len(), g.pools().len()), (nodes, 5), "a refused pooling leaves nothing behind");
}

/// Mean, standard deviation and largest magnitude of a parameter's first 20,000 initial values.
fn start(g: &Graph, param: &str) -> (f64, f64, f64) {
    let i = g.params().iter().position(|p| p.name == param).unwrap_or_else(|| panic!("no {param}"));
    let kept: Vec<u32> = (0..g.params()[i].size().min(20_000) as u32).collect();
    let values = g.init_values(i, Some(&kept), 3);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt(), values.iter().fold(0.0, |m, v| m.max(v.abs())))
}

#[test]
fn initial_values_follow_the_papers_code() {
    // Standard deviations to 5 %: of at least 4,608 values, 4.8 sigma.
    let normal = |g: &Graph, param: &str, std: f64| {
        let (mean, got, largest) = start(g, param);
        close(mean, 0.0, 0.07 * std, param);
        close(got, std, 0.05 * std, param);
        assert!(largest > 3.0 * std, "{param}: {largest}, too flat for a normal distribution");
    };
    let uniform = |g: &Graph, param: &str, bound: f64| {
        let (mean, got, largest) = start(g, param);
        close(mean, 0.0, 0.15 * bound, param);
        close(got, bound / 3f64.sqrt(), 0.05 * bound, param);
        assert!(largest <= bound && largest > 0.98 * bound, "{param}: {largest}");
    };
    let constant = |g: &Graph, param: &str, value: f64| {
        let (mean, std, largest) = start(g, param);
        assert_eq!((mean, std, largest), (value, 0.0, value), "{param}");
    };
    let g = build("vgg11", None);
    normal(&g, "segment1.conv1.weight", (2.0f64 / (128.0 * 9.0)).sqrt()); // fan_in would be 64 x 9
    normal(&g, "segment2.conv1.weight", (2.0f64 / (256.0 * 9.0)).sqrt());
    normal(&g, "fc.weight", 0.01);
    constant(&g, "fc.bias", 0.0);
    constant(&g, "segment1.bn1.weight", 1.0);
    constant(&g, "segment1.bn1.bias", 0.0);
    let g = build("resnet50", None);
    normal(&g, "conv.weight", (2.0f64 / (3.0 * 49.0)).sqrt());
    normal(&g, "segment1.block0.shortcut.conv.weight", (2.0f64 / 256.0).sqrt());
    normal(&g, "segment3.block2.conv3.weight", (2.0f64 / 512.0).sqrt());
    uniform(&g, "fc.weight", 1.0 / 2048f64.sqrt());
    uniform(&g, "fc.bias", 1.0 / 2048f64.sqrt());
    constant(&g, "segment0.block0.bn3.weight", 1.0); // no zero start of the last scale
    let g = build("resnet18", None);
    uniform(&g, "fc.weight", 1.0 / 512f64.sqrt());
    let g = build("resnet20", Some(32));
    normal(&g, "segment1.block0.conv1.weight", (2.0f64 / (32.0 * 9.0)).sqrt());
    let mut g = models::by_name("resnet8", 512, 3, 10, 8).unwrap();
    normal(&g, "fc.weight", (2.0f64 / 2048.0).sqrt()); // Kaiming, unlike the large networks
    let e = g.set_init("fc.wait", sparse_engine::graph::Init::Constant(0.0)).unwrap_err();
    assert!(e.to_string().contains("fc.wait"), "{e}");
}

#[test]
fn names_tell_networks_apart() {
    let params = |name: &str| build(name, None).param_count();
    assert_eq!(params("resnet50"), 25_557_032);
    assert_eq!(params("cifar-resnet50"), params("resnet44") + 97_216); // one block more a segment
    assert_eq!(params("cifar-resnet20"), params("resnet20"));
    assert_eq!(params("wide-resnet50-2"), params("wrn50-2"));
    assert_eq!(models::parse("resnet56").unwrap(), Network::CifarResnet { depth: 56 });
    assert_eq!(models::default_image("vgg19").unwrap(), (3, 32, 10));
    assert_eq!(models::default_image("cifar-resnet50").unwrap(), (3, 32, 10));
    assert_eq!(models::default_image("resnet50").unwrap(), (3, 224, 1000));
    for name in ["resnet21", "resnet+20", "resnet020", "resnet2", "vgg12", "resnet", "resnet-20", "", "wrn50"] {
        for e in [models::default_image(name).unwrap_err(), models::by_name(name, 16, 3, 10, 32).unwrap_err()] {
            let text = e.to_string();
            assert!(e.exit_code() == 2 && !text.contains('\n'), "{text}");
            for allowed in ["resnet20", "6D+2", "resnet50", "wrn50-2", "vgg16", "cifar-resnetN"] {
                assert!(text.contains(allowed), "no {allowed} in {text}");
            }
        }
    }
}

#[test]
fn sizes_out_of_range_are_named() {
    let e = models::resnet(20, 0, 3, 1, 2).unwrap_err().to_string();
    assert!(e.contains("width") && e.contains("classes") && e.contains("image size"), "{e}");
    for name in ["resnet50", "vgg16", "wrn50-2"] {
        let e = models::by_name(name, 16, 3, 10, 32).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        assert!(e.to_string().starts_with(&format!("width: {name} has one width only")), "{e}");
        let e = models::by_name(name, None, 0, 1, 1025).unwrap_err().to_string();
        assert!(e.contains("channels") && e.contains("classes") && e.contains("image size"), "{e}");
        assert!(!e.contains("width"), "{e}");
    }
    for (depth, factor) in [(18, 2), (34, 2), (50, 0), (50, 3), (20, 1), (0, 1)] {
        let e = models::imagenet_resnet(depth, factor, 3, 10, 64).unwrap_err().to_string();
        assert!(e.contains(&format!("got {depth} and {factor}")), "{e}");
    }
    assert!(models::vgg(12, 3, 10, 32).unwrap_err().to_string().contains("11, 13, 16 or 19, got 12"));
    assert!(models::resnet(21, 16, 3, 10, 32).unwrap_err().to_string().contains("6D+2"));
}

#[test]
fn weight_decay_exemptions() {
    let decayed = |g: &Graph| -> Vec<String> {
        g.params().iter().filter(|p| p.decay && !p.maskable).map(|p| p.name.clone()).collect()
    };
    for name in ["resnet20", "vgg11", "resnet18", "resnet50"] {
        let mut g = build(name, None);
        assert!(g.params().iter().all(|p| p.decay), "{name}: every parameter without a choice");
        g.set_weight_decay(Exempt::ByKind);
        assert_eq!(decayed(&g), [""; 0], "{name}");
        g.set_weight_decay(Exempt::Released);
        // That code's names of what decays: "downsample.1.weight", "downsample.1.bias", "fc.bias".
        let shortcuts = g.convs().iter().filter(|c| c.name.contains("shortcut")).count();
        let got = decayed(&g);
        assert_eq!(got.len(), 2 * shortcuts + 1, "{name}: {got:?}");
        assert!(got.iter().all(|p| p.contains(".shortcut.bn.") || p == "fc.bias"), "{name}: {got:?}");
        assert!(g.params().iter().all(|p| p.decay || !p.maskable), "{name}: every weight");
        g.set_weight_decay(Exempt::None);
        assert!(g.params().iter().all(|p| p.decay), "{name}");
    }
    // By name, as there: a norm of another name decays, and so does what comes after the choice.
    let mut g = Graph::new(3, 8, 8);
    let x = g.norm("scale", g.input());
    let x = g.norm("x.bn3", x);
    g.set_weight_decay(Exempt::Released);
    g.norm("bn", x);
    let decay: Vec<bool> = g.params().iter().map(|p| p.decay).collect();
    assert_eq!(decay, [true, true, false, false, true, true]);
    for (exempt, name) in [(Exempt::None, "none"), (Exempt::ByKind, "by-kind"), (Exempt::Released, "released")] {
        assert_eq!(serde_json::to_value(exempt).unwrap(), name);
    }
}
