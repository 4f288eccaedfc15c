//! Plans: the default is a pure function, blocking changes no byte, patches change rounding only, and no thread count
//! changes anything; what is not a plan for a network is refused.

use sparse_engine::backend::cpu::plan::{Kernel, LayerPlan, Plan};
use sparse_engine::backend::cpu::{CpuBackend, Isa};
use sparse_engine::backend::{Backend, SgdStep, Spec, Store};
use sparse_engine::graph::lower::lower;
use sparse_engine::graph::{Graph, Net};
use sparse_engine::models;
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::shape::ConvGeom;
use sparse_engine::sparsity::{Density, Draw, Mask, Ratio, draw_masks};

const BATCH: usize = 19;
/// Planes of 10x10, 5x5 and 3x3: nothing divides anything.
const SIDE: usize = 10;

fn masks(graph: &Graph, sparsity: f64, seed: u64) -> Vec<Mask> {
    let density = Density::from_sparsity(sparsity).unwrap();
    draw_masks(&graph.maskable(), &Ratio::ERK, density, Draw::Exact, seed).unwrap()
}

fn default_plan(graph: &Graph, spec: &Spec) -> Plan {
    Plan::default_for(spec, graph.convs().iter().map(|c| c.name.as_str()))
}

/// A network of dense and of sparse layers, small ones and such whose weight gradient goes in groups of outputs (more than
/// 32,768 weights).
struct Lab {
    graph: Graph,
    masks: Vec<Mask>,
    plan: Plan,
}

impl Lab {
    fn new() -> Self {
        let graph = models::by_name("resnet8", 24, 3, 10, SIDE).unwrap();
        let masks = masks(&graph, 0.35, 1);
        let plan = default_plan(&graph, &lower(&graph, &masks, BATCH).unwrap().spec);
        let kernels: Vec<Kernel> = plan.layers.iter().map(|l| l.plan.forward).collect();
        assert!(kernels.contains(&Kernel::Sparse) && kernels.contains(&Kernel::Dense), "{kernels:?}");
        // What the weight gradient's sums are cut by: stored weights, and with the dense kernel all of them.
        let has = |what: fn(usize, usize) -> bool| plan.layers.iter().any(|l| what(l.weights, l.geom().weights()));
        assert!(has(|stored, _| stored > 32_768) && has(|stored, all| stored < 32_768 && all > 32_768));
        Lab { graph, masks, plan }
    }

    /// The default plan after `change`, within what each layer allows.
    fn plan(&self, change: impl Fn(&mut LayerPlan, &ConvGeom)) -> Plan {
        let mut plan = self.plan.clone();
        for l in &mut plan.layers {
            let (g, p) = (l.geom(), &mut l.plan);
            change(p, &g);
            p.cut = [p.cut[0].min(g.p() as usize), p.cut[1].min(g.q() as usize)];
            p.channels = [p.channels[0].min(g.c as usize), p.channels[1].min(g.k as usize)];
        }
        plan
    }

    /// Two training steps.
    fn train(&self, isa: Isa, threads: usize, plan: &Plan) -> Trained {
        let make = |spec: Spec| CpuBackend::with_plan(spec, threads, isa, Some(plan));
        let mut net = Net::new(&self.graph, &self.masks, BATCH, make).unwrap();
        net.init(&self.graph, 3);
        let noise = Stream::new(5, Purpose::Data, "images");
        let mut trained = Trained::default();
        for (n, step) in [(BATCH, 0), (17, 1)] {
            let images: Vec<f32> = (0..(n * 3 * SIDE * SIDE) as u64).map(|i| noise.normal(i + step) as f32).collect();
            let labels: Vec<u32> = (0..n as u32).map(|i| i % 10).collect();
            let poison = vec![f32::NAN; net.program().spec.stored()];
            net.backend_mut().write_store(Store::Grads, &poison);
            let loss = net.forward_backward(&images, &labels, 0.1);
            let b = net.backend();
            trained.forward.push(("logits", net.logits(n)));
            trained.forward.push(("running statistics", b.read_store(Store::Running)));
            trained.forward.push(("loss", vec![loss.loss_sum as f32, loss.correct as f32]));
            let grads = b.read_store(Store::Grads);
            let params = net.program().spec.params.iter().zip(self.graph.params());
            trained.grads.extend(params.map(|(p, names)| (names.name.clone(), grads[p.range.clone()].to_vec())));
            net.sgd(SgdStep { lr: 0.05, momentum: 0.9, weight_decay: 1e-3, nesterov: true });
            trained.values = net.backend().read_store(Store::Values);
        }
        trained
    }
}

/// What training left, in order.
#[derive(Default)]
struct Trained {
    forward: Vec<(&'static str, Vec<f32>)>,
    /// By parameter.
    grads: Vec<(String, Vec<f32>)>,
    values: Vec<f32>,
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

impl Trained {
    /// Every byte, NaN excluded: a number that was never written is no result.
    fn assert_same(&self, other: &Trained, what: &str) {
        for ((name, a), (_, b)) in self.forward.iter().zip(&other.forward) {
            assert!(bits(a) == bits(b), "{what}: {name}");
        }
        for ((name, a), (_, b)) in self.grads.iter().zip(&other.grads) {
            assert!(a.iter().all(|v| v.is_finite()) && bits(a) == bits(b), "{what}: gradient of {name}");
        }
        assert!(bits(&self.values) == bits(&other.values), "{what}: values");
    }

    /// Forward pass and gradients of the first step, to rounding. In L2: rounding may move a value across a ReLU's zero, and
    /// that changes single terms of a sum.
    fn assert_close(&self, other: &Trained, what: &str) {
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let close = |name: &str, a: &[f32], b: &[f32], share: f64| {
            let distance = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
            let size = norm(&mut a.iter().map(|a| f64::from(*a)));
            assert!(distance <= share * size, "{what}: {name} moved by {distance:.2e} of {size:.2e}");
        };
        let half = |len: usize| 0..len / 2;
        for i in half(self.forward.len()) {
            close(self.forward[i].0, &self.forward[i].1, &other.forward[i].1, 1e-5);
        }
        for i in half(self.grads.len()) {
            close(&self.grads[i].0, &self.grads[i].1, &other.grads[i].1, 1e-3);
        }
    }
}

fn sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

#[test]
fn channel_blocks_and_the_other_kernels_change_no_byte() {
    let lab = Lab::new();
    for isa in sets() {
        let wanted = lab.train(isa, 1, &lab.plan);
        for channels in [[1, 1], [3, 5], [1000, 1000]] {
            let plan = lab.plan(|p, _| p.channels = channels);
            lab.train(isa, 2, &plan).assert_same(&wanted, &format!("{isa:?}, channels {channels:?}"));
        }
        // Forward pass and data gradient sum in one order; a zero that a dense kernel adds is nothing.
        let flip = |k| if k == Kernel::Sparse { Kernel::Dense } else { Kernel::Sparse };
        let plan = lab.plan(|p, _| (p.forward, p.data) = (flip(p.forward), flip(p.data)));
        lab.train(isa, 2, &plan).assert_same(&wanted, &format!("{isa:?}, the other kernels"));
    }
}

#[test]
fn tiles_change_nothing_but_the_rounding_of_sparse_weight_gradients() {
    let lab = Lab::new();
    for isa in sets() {
        let dense = |tile: usize| {
            let plan = lab.plan(|p, _| {
                (p.forward, p.data, p.weight, p.tile) = (Kernel::Sparse, Kernel::Sparse, Kernel::Dense, tile)
            });
            lab.train(isa, 2, &plan)
        };
        let wanted = dense(7);
        for tile in [1, 3, 5, 14] {
            dense(tile).assert_same(&wanted, &format!("{isa:?}, tile {tile}"));
        }
        let sparse = |tile: usize| {
            let plan = lab.plan(|p, _| {
                (p.forward, p.data, p.weight, p.tile) = (Kernel::Sparse, Kernel::Sparse, Kernel::Sparse, tile)
            });
            lab.train(isa, 2, &plan)
        };
        let (wanted, got) = (sparse(5), sparse(3));
        let what = format!("{isa:?}, tiles of 3 and 5");
        got.assert_close(&wanted, &what);
        let steps = got.grads.len() / 2;
        for ((name, a), (_, b)) in got.grads.iter().zip(&wanted.grads).take(steps) {
            let conv = name.ends_with(".weight") && (name.contains("conv") || name.contains("fc"));
            assert!(conv || bits(a) == bits(b), "{what}: gradient of {name}");
        }
        for ((name, a), (_, b)) in got.forward.iter().zip(&wanted.forward).take(3) {
            assert!(bits(a) == bits(b), "{what}: {name}");
        }
    }
}

#[test]
fn patches_change_rounding_only() {
    let lab = Lab::new();
    for isa in sets() {
        let wanted = lab.train(isa, 2, &lab.plan);
        for cut in [[1, 1], [1000, 1], [1, 1000], [2, 3]] {
            let plan = lab.plan(|p, _| p.cut = cut);
            lab.train(isa, 2, &plan).assert_close(&wanted, &format!("{isa:?}, cut {cut:?}"));
        }
        for kernel in [Kernel::Sparse, Kernel::Dense] {
            let plan = lab.plan(|p, _| (p.forward, p.data, p.weight) = (kernel, kernel, kernel));
            lab.train(isa, 2, &plan).assert_close(&wanted, &format!("{isa:?}, all {kernel}"));
        }
    }
}

#[test]
fn an_odd_plan_gives_the_same_bytes_for_any_number_of_threads() {
    let lab = Lab::new();
    let plan = lab.plan(|p, _| (p.cut, p.tile, p.channels) = ([3, 2], 5, [3, 3]));
    for isa in sets() {
        let wanted = lab.train(isa, 1, &plan);
        for threads in [2, 3] {
            lab.train(isa, threads, &plan).assert_same(&wanted, &format!("{isa:?}, {threads} threads"));
        }
    }
}

#[test]
fn the_default_is_a_function_of_geometry_and_weights() {
    let graph = models::by_name("resnet20", None, 3, 10, 32).unwrap();
    let plan = |seed, batch| default_plan(&graph, &lower(&graph, &masks(&graph, 0.9, seed), batch).unwrap().spec);
    let wanted = plan(0, 128);
    assert_eq!(wanted, plan(1, 1), "neither the positions nor the batch");
    let counts = wanted.layers.iter().map(|l| l.weights);
    let layers = graph.convs().iter().zip(counts).map(|(c, n)| (c.name.as_str(), c.geom, n));
    assert_eq!(wanted, Plan::of(layers), "nothing else of the network");
    assert!(wanted.check(graph.convs().iter().zip(&wanted.layers).map(|(c, l)| (c.geom, l.weights))).is_ok());
    // Results of runs without a plan file depend on these. Who changes the rule or the cost table changes them here.
    let shown: Vec<String> = [0, 1, 8, 9, 15, 20, 21]
        .iter()
        .map(|&i| format!("{}: {}", wanted.layers[i].layer, wanted.layers[i].plan))
        .collect();
    assert_eq!(shown.join("\n"), GOLDEN.trim());
}

const GOLDEN: &str = "
conv: dense, dense, dense; cut 11x1, channels 3 and 8, tile 7
segment0.block0.conv1: sparse, sparse, sparse; cut 11x1, channels 8 and 8, tile 7
segment1.block0.conv2: sparse, sparse, sparse; cut 8x1, channels 16 and 16, tile 7
segment1.block0.shortcut.conv: dense, dense, dense; cut 4x1, channels 16 and 32, tile 4
segment2.block0.conv2: sparse, sparse, sparse; cut 4x1, channels 32 and 32, tile 7
segment2.block2.conv2: sparse, sparse, sparse; cut 4x1, channels 32 and 32, tile 7
fc: dense, dense, dense; cut 1x1, channels 64 and 10, tile 4
";

#[test]
fn the_default_of_large_and_of_small_planes() {
    let layer = |[c, h, k, r, stride]: [u32; 5], weights| {
        ("layer", ConvGeom { c, h, w: h, k, r, s: r, stride, pad: r / 2 }, weights)
    };
    let plan = Plan::of([
        layer([64, 56, 64, 3, 1], 3_686),
        layer([128, 28, 128, 3, 1], 14_746),
        layer([128, 56, 128, 3, 2], 14_746),
        layer([256, 14, 1024, 1, 1], 26_214),
        layer([512, 7, 2048, 1, 1], 104_858),
        layer([512, 7, 2048, 1, 1], 10_486),
        layer([64, 8, 64, 3, 1], 25_600),
        layer([64, 8, 64, 3, 1], 26_000),
        layer([64, 8, 64, 3, 1], 27_700),
    ]);
    let shown: Vec<String> = plan.layers.iter().map(|l| l.plan.to_string()).collect();
    // A row of 64 or 128 channels does not fit: squarer patches. Shared copies of 7x7 pixels: one patch. The last three lie
    // around the densities at which the dense kernels begin to be faster.
    let wanted = "
sparse, sparse, sparse; cut 14x8, channels 32 and 32, tile 7
sparse, sparse, sparse; cut 7x4, channels 32 and 32, tile 7
sparse, sparse, sparse; cut 28x2, channels 32 and 128, tile 7
sparse, sparse, sparse; cut 14x1, channels 256 and 256, tile 4
sparse, sparse, sparse; cut 1x1, channels 256 and 293, tile 4
sparse, sparse, sparse; cut 7x1, channels 512 and 2048, tile 4
sparse, sparse, sparse; cut 4x1, channels 13 and 13, tile 7
sparse, dense, sparse; cut 4x1, channels 13 and 13, tile 7
dense, dense, dense; cut 4x1, channels 13 and 13, tile 7
";
    assert_eq!(shown.join("\n"), wanted.trim());
}

/// A change of a plan, and what the refusal says.
type Fault<'a> = (&'a dyn Fn(&mut Plan), &'a [&'a str]);

#[test]
fn a_plan_for_something_else_is_refused() {
    let lab = Lab::new();
    let spec = lower(&lab.graph, &lab.masks, BATCH).unwrap().spec;
    assert!(lab.plan.check_spec(&spec).is_ok());
    let cases: &[Fault] = &[
        (&|p| p.version = 2, &["version 2, this engine reads 1"]),
        (&|p| drop(p.layers.pop()), &["wanted 10 layers, got 9", "another network", "sparse-engine tune"]),
        (&|p| p.layers.clear(), &["got 0"]),
        (&|p| p.layers.push(p.layers[0].clone()), &["got 11"]),
        (
            &|p| p.layers.swap(3, 5),
            &["layer 4", "wanted geometry [24, 10, 10, 48, 3, 3, 2, 1], got [24, 10, 10, 48, 1, 1, 2, 0]"],
        ),
        (&|p| p.layers[1].weights += 1, &["layer 2", "weights, got", "another sparsity"]),
        (&|p| p.layers[2].plan.cut[0] = 0, &["layer 3 \"segment0.block0.conv2\"", "cut[0]", "wanted 1 to 10, got 0"]),
        (&|p| p.layers[2].plan.cut[1] = 11, &["cut[1]", "wanted 1 to 10, got 11"]),
        (&|p| p.layers[9].plan.cut = [2, 1], &["layer 10 \"fc\"", "wanted 1 to 1, got 2"]),
        (&|p| p.layers[2].plan.channels[0] = 25, &["channels[0]", "wanted 1 to 24, got 25"]),
        (&|p| p.layers[2].plan.channels[1] = usize::MAX, &["channels[1]", "wanted 1 to 24, got 18446744073709551615"]),
        (&|p| p.layers[2].plan.tile = 0, &["tile: wanted 1 to 14, got 0"]),
        (&|p| p.layers[2].plan.tile = 15, &["tile: wanted 1 to 14, got 15"]),
        (&|p| (p.layers[2].layer, p.layers[2].plan.tile) = ("a\n\x1b[31m".into(), 0), &["a\\n\\u{1b}[31m"]),
    ];
    for (change, wanted) in cases {
        let mut plan = lab.plan.clone();
        change(&mut plan);
        let fault = plan.check_spec(&spec).unwrap_err();
        assert!(wanted.iter().all(|w| fault.contains(w)) && fault.lines().count() == 1, "{wanted:?}: {fault}");
        let made = CpuBackend::with_plan(spec.clone(), 1, Isa::detect(), Some(&plan));
        assert_eq!(made.err().map(|e| e.to_string()), Some(format!("plan: {fault}")));
    }
}
