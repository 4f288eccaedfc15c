//! Layers with a density of their own: custom maps, and what they leave to the others.

use super::{close, density, resnet};
use sparse_engine::sparsity::{Density, Maskable, Ratio, Rest, Role, layer_counts, layer_densities};

fn map(pairs: &[(&str, f64)], rest: Rest) -> Ratio {
    Ratio::Custom { layers: pairs.iter().map(|&(pattern, d)| (pattern.into(), density(d))).collect(), rest }
}

fn refused(layers: &[Maskable], ratio: &Ratio, d: f64) -> String {
    let e = layer_counts(layers, ratio, density(d)).unwrap_err();
    let text = e.to_string();
    assert!(e.exit_code() == 2 && !text.contains('\n') && text.len() < 1000, "{text}");
    text
}

/// The number after `before` in a message.
fn advised(text: &str, before: &str) -> Density {
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{text}"));
    density(rest.split([' ', ',']).next().unwrap().parse().unwrap())
}

#[test]
fn a_custom_map_on_resnet20() {
    let net = resnet(20, 16, 3, 10, 32);
    let all: u64 = net.layers.iter().map(|l| l.size() as u64).sum();
    let pairs = [
        ("@first", 1.0),
        ("@last", 0.75),
        ("segment0.*", 0.5),
        ("segment0.block1.conv2", 0.123),
        ("*.shortcut.conv", 0.9),
        ("se*t2.*1", 0.05),
    ];
    for rest in [Rest::Uniform, Rest::Er, Rest::Erk] {
        let (ratio, d) = (map(&pairs, rest), density(0.1));
        let densities = layer_densities(&net.layers, &ratio, d).unwrap();
        let counts = layer_counts(&net.layers, &ratio, d).unwrap();
        assert_eq!(counts.iter().sum::<usize>() as u64, d.budget(all));
        let (mut open, mut kept) = (Vec::new(), 0.0);
        for ((layer, &got), count) in net.layers.iter().zip(&densities).zip(counts) {
            kept += got * layer.size() as f64;
            let want = match layer.name.strip_suffix(".weight").unwrap() {
                "conv" => 1.0,
                "fc" => 0.75,
                "segment0.block1.conv2" => 0.123,
                name if name.starts_with("segment0.") => 0.5,
                name if name.ends_with("shortcut.conv") => 0.9,
                name if name.starts_with("segment2.") && name.ends_with('1') => 0.05,
                _ => {
                    let score = match rest {
                        Rest::Uniform => 1.0,
                        Rest::Er => (layer.shape[0] + layer.shape[1]) as f64 / (layer.shape[0] * layer.shape[1]) as f64,
                        Rest::Erk => layer.shape.iter().sum::<usize>() as f64 / layer.size() as f64,
                    };
                    open.push(got / score);
                    continue;
                }
            };
            assert_eq!(got, want, "{}", layer.name);
            assert_eq!(count as u64, density(want).budget(layer.size() as u64), "{}", layer.name);
        }
        close(kept, 0.1 * all as f64, 1e-6, "density x size");
        assert!(open.len() > 5 && open.iter().all(|e| (e / open[0] - 1.0).abs() < 1e-12), "{rest}: {open:?}");
    }
    // Names beat roles, roles beat wildcards.
    let ratio = map(&[("*", 0.1), ("@first", 1.0), ("fc", 0.3), ("@last", 0.6)], Rest::Erk);
    let budget = (net.layers.iter().map(|l| match l.role {
        Role::First => l.size() as u64,
        Role::Last => density(0.3).budget(l.size() as u64),
        Role::Inner => density(0.1).budget(l.size() as u64),
    }))
    .sum();
    let d = Density::of_budget(budget, all).unwrap();
    let densities = layer_densities(&net.layers, &ratio, d).unwrap();
    assert_eq!([densities[0], densities[1], *densities.last().unwrap()], [1.0, 0.1, 0.3]);
    // An empty map leaves all to the rest; equal densities of two patterns are no contradiction.
    let same = |a: &Ratio, b: &Ratio| {
        assert_eq!(
            layer_counts(&net.layers, a, density(0.07)).unwrap(),
            layer_counts(&net.layers, b, density(0.07)).unwrap()
        )
    };
    same(&map(&[], Rest::Erk), &Ratio::ERK);
    same(&map(&[], Rest::Er), &Ratio::Er);
    same(&map(&[], Rest::Uniform), &Ratio::Uniform);
    same(&map(&[("@last", 0.2)], Rest::Erk), &Ratio::ErkPlus { power: 1.0, last: density(0.2) });
    same(&map(&[("conv", 1.0), ("@last", 0.2)], Rest::Uniform), &Ratio::UniformPlus);
    same(&map(&[("f*", 0.2), ("*c", 0.2)], Rest::Erk), &map(&[("fc", 0.2)], Rest::Erk));
}

#[test]
fn patterns_that_cannot_be_meant() {
    let net = resnet(56, 16, 3, 10, 32);
    let text = |pairs: &[(&str, f64)]| refused(&net.layers, &map(pairs, Rest::Erk), 0.1);
    let e = text(&[("segment0.*", 0.5), ("*.conv1", 0.4)]);
    assert!(e.contains("layer segment0.block0.conv1: \"segment0.*\" gives it density 0.5, \"*.conv1\" 0.4"), "{e}");
    let e = text(&[("fc", 0.5), ("fc", 0.4)]);
    assert!(e.contains("layer fc: \"fc\" gives it density 0.5"), "{e}");
    // An exact name settles what wildcards say differently.
    let settled = map(&[("f*", 0.5), ("*c", 0.4), ("fc", 0.3)], Rest::Erk);
    assert_eq!(*layer_densities(&net.layers, &settled, density(0.1)).unwrap().last().unwrap(), 0.3);
    let e = text(&[("segment0.block0.cnov1", 0.5)]);
    assert!(e.contains("names no layer; did you mean \"segment0.block0.conv1\"?"), "{e}");
    let e = text(&[("@frist", 0.5)]);
    assert!(e.contains("did you mean \"@first\"?"), "{e}");
    for unknown in ["layer4.*", "", "fc.weight", "FC", &"x".repeat(5000)] {
        let e = text(&[(unknown, 0.5)]);
        assert!(e.contains("names no layer") && e.contains("* stands for any characters"), "{e}");
    }
    assert!(text(&[("nothing like it", 0.5)]).contains("layers: conv, segment0.block0.conv1, "));
    let inner = [Maskable::new("a", [4, 4]), Maskable::new("b", [4, 4])];
    for (role, meaning) in [("@first", "reads the images"), ("@last", "gives the logits")] {
        let e = refused(&inner, &map(&[(role, 0.5)], Rest::Erk), 0.5);
        assert!(e.contains(&format!("pattern {role:?}: no layer of this network {meaning}")), "{e}");
    }
}

#[test]
fn maps_that_do_not_meet_the_budget_say_what_would() {
    let layers = [("a", [10, 100]), ("b", [10, 50]), ("c", [1, 10])].map(|(name, shape)| Maskable::new(name, shape));
    // All named: 100 + 250 + 5 of 1510.
    let whole = map(&[("a", 0.1), ("b", 0.5), ("c", 0.5)], Rest::Erk);
    for d in [0.1, 0.3] {
        let e = refused(&layers, &whole, d);
        assert!(e.contains("every layer is given a density, together 355 of 1510 weights"), "{e}");
        let fits = advised(&e, "set density ");
        assert_eq!((fits, fits.budget(1510)), (density(0.235), 355));
        assert_eq!(layer_counts(&layers, &whole, fits).unwrap(), [100, 250, 5]);
        assert_eq!(layer_densities(&layers, &whole, fits).unwrap(), [0.1, 0.5, 0.5]);
    }
    // Too much: 900 + 450 of a budget of 755.
    let e = refused(&layers, &map(&[("a", 0.9), ("b", 0.9)], Rest::Erk), 0.5);
    assert!(e.contains("gives layers 1350 weights by themselves (a 900 of 1000, b 450 of 500)"), "{e}");
    assert!(e.contains("the budget of density 0.5 is 755"), "{e}");
    let least = advised(&e, "from density ");
    assert!(least.budget(1510) == 1351 && least < density(0.894703), "{least}"); // 1351 / 1510 = 0.8947019...
    // Too little: the others are dense, and there is budget left.
    let e = refused(&layers, &map(&[("a", 0.1)], Rest::Uniform), 0.5);
    assert!(e.contains("610 of 1510 weights are kept, the budget of density 0.5 is 755"), "{e}");
    let most = advised(&e, "highest density ");
    assert_eq!(layer_counts(&layers, &map(&[("a", 0.1)], Rest::Uniform), most).unwrap(), [100, 500, 10]);
    // A pinned layer that keeps nothing; others that do.
    let e = refused(&layers, &map(&[("c", 0.01)], Rest::Erk), 0.5);
    assert!(e.contains("layer c [1, 10] would keep none of its 10 weights at the density 0.01 given to it"), "{e}");
    let e = refused(&layers, &map(&[("a", 0.1)], Rest::Uniform), 0.068);
    assert!(e.contains("layer c [1, 10] would keep none of its 10 weights"), "{e}");
    let least = advised(&e, "from density ");
    assert_eq!(least, density(0.100000)); // 100 + 51 of 1510: a tenth of b and c
    assert_eq!(layer_counts(&layers, &map(&[("a", 0.1)], Rest::Uniform), least).unwrap(), [100, 50, 1]);
    // No density at all: b and c are never alone.
    let e = refused(&layers, &map(&[("a", 1.0), ("b", 1.0), ("c", 0.04)], Rest::Erk), 0.5);
    assert!(e.contains("at the density 0.04 given to it"), "{e}");
}

#[test]
fn many_pinned_layers_make_no_long_message() {
    let net = resnet(110, 16, 3, 10, 32);
    let e = refused(&net.layers, &map(&[("segment*", 0.5)], Rest::Erk), 0.1);
    assert!(e.contains("1152 of 2304") && e.contains("106 more)"), "{e}");
}

#[test]
fn uniform_plus_says_the_least_density_there_is() {
    let net = resnet(8, 4, 3, 10, 8);
    let all: u64 = net.layers.iter().map(|l| l.size() as u64).sum();
    let e = refused(&net.layers, &Ratio::UniformPlus, 0.02);
    assert!(e.contains("conv.weight 108 of 108, fc.weight 32 of 160"), "{e}");
    let least = advised(&e, "from density ");
    let counts = layer_counts(&net.layers, &Ratio::UniformPlus, least).unwrap();
    assert!(counts.iter().all(|&count| count > 0) && counts.iter().sum::<usize>() as u64 == least.budget(all));
    let smallest = net.layers.iter().map(Maskable::size).min().unwrap() as f64;
    let inner = (all - 108 - 160) as f64;
    close(least.value(), (140.0 + inner / smallest) / all as f64, 1e-6, "least density");
}
