//! Gradients and Hessian products against central differences, on networks that are no ResNets too.

use super::{Lists, images, normal, small_vgg, values};
use sparse_engine::graph::{Graph, NodeId};
use sparse_engine::models;
use sparse_engine::saliency::{Batch, Gradient, ScoreNet};

const LABELS: [u32; 5] = [0, 2, 1, 1, 2];

/// A graph that ends in three logits of the mean over what `build` made.
fn with_head(name: &'static str, build: impl FnOnce(&mut Graph, NodeId) -> NodeId) -> (&'static str, Graph) {
    let mut g = Graph::new(2, 7, 6);
    let x = g.input();
    let x = build(&mut g, x);
    let x = g.pool(x);
    g.linear("fc", x, 3).unwrap();
    (name, g)
}

/// Graphs that each have a reason to go wrong.
fn graphs() -> Vec<(&'static str, Graph)> {
    let conv = |g: &mut Graph, name: &str, x: NodeId| g.conv(name, x, 3, 3, 1, 1).unwrap();
    let mut headless = Graph::new(2, 7, 6);
    let x = headless.input();
    let x = headless.conv("a", x, 4, 3, 2, 1).unwrap();
    let x = headless.pool(x);
    let x = headless.linear("b", x, 5).unwrap();
    let x = headless.norm("n", x);
    let x = headless.relu(x);
    let x = headless.linear("c", x, 3).unwrap();
    headless.norm("last", x);
    vec![
        ("two linear layers, a norm between and one last", headless),
        with_head("norm(norm)", |g, x| {
            let x = conv(g, "c", x);
            let x = g.norm("n", x);
            let m = g.norm("m", x);
            g.add(x, m).unwrap()
        }),
        with_head("x + x, and x", |g, x| {
            let x = conv(g, "c", x);
            let twice = g.add(x, x).unwrap();
            let n = g.norm("n", twice);
            let r = g.relu(n);
            let d = conv(g, "d", r);
            g.add(d, x).unwrap()
        }),
        with_head("norm and ReLU on the images, added to a convolution", |g, x| {
            let n = g.norm("n", x);
            let r = g.relu(n);
            let c = g.conv("c", x, 2, 1, 1, 0).unwrap();
            let sum = g.add(r, c).unwrap();
            conv(g, "d", sum)
        }),
        with_head("overlapping max pools of a norm without ReLU", |g, x| {
            let x = conv(g, "c", x);
            let x = g.norm("n", x);
            let x = g.max_pool(x, 3, 1, 1).unwrap();
            let x = conv(g, "d", x);
            g.max_pool(x, 2, 3, 1).unwrap()
        }),
        with_head("strides beyond the kernel, padding beyond it, a 5x5", |g, x| {
            let x = g.conv("c", x, 3, 1, 2, 0).unwrap();
            let x = g.norm("n", x);
            let x = g.relu(x);
            let x = g.conv("d", x, 4, 1, 1, 2).unwrap();
            let x = g.norm("m", x);
            g.conv("e", x, 3, 5, 3, 2).unwrap()
        }),
        ("resnet8", models::resnet(8, 3, 2, 3, 8).unwrap()),
        ("vgg", small_vgg()),
    ]
}

/// `values` with `step` of `direction` added to the weights.
fn moved(graph: &Graph, values: &Lists, direction: &Lists, step: f64) -> Lists {
    let mut moved = values.clone();
    let weights = graph.params().iter().zip(&mut moved).filter(|(p, _)| p.maskable);
    for ((_, values), direction) in weights.zip(direction) {
        values.iter_mut().zip(direction).for_each(|(v, d)| *v += step * d);
    }
    moved
}

fn dot(a: &Lists, b: &Lists) -> f64 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a * b).sum()
}

fn length(a: &Lists) -> f64 {
    dot(a, a).sqrt()
}

fn minus(a: &Lists, b: &Lists) -> Lists {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a - b).collect()).collect()
}

#[test]
fn derivatives_are_those_of_differences() {
    const STEP: f64 = 1e-5;
    let (mut tried, mut kinks) = (0, 0);
    for (what, graph) in graphs() {
        for (seed, temperature) in [(1, 1.0), (2, 0.5), (3, 7.0), (4, 1.0)] {
            let values = values(&graph, seed);
            let images = images(&graph, seed, LABELS.len());
            let batch = Batch { images: &images, labels: &LABELS };
            let of = |m: &sparse_engine::sparsity::Maskable| normal(seed, &m.name, m.size());
            let direction: Lists = graph.maskable().iter().map(of).collect();
            let at = |step: f64| -> Gradient {
                let values = moved(&graph, &values, &direction, step);
                ScoreNet::new(&graph, &values, 1).unwrap().gradient(batch, temperature).unwrap()
            };
            let net = ScoreNet::new(&graph, &values, 1).unwrap();
            let (here, product) = (at(0.0), net.hessian_product(batch, temperature, &direction).unwrap());
            let difference = |step: f64| -> Lists {
                let (right, left) = (at(step).weights, at(-step).weights);
                minus(&right, &left).iter().map(|d| d.iter().map(|d| d / (2.0 * step)).collect()).collect()
            };
            // Where the gradient is smooth, halving the step changes its slope little.
            let (wide, narrow) = (difference(STEP), difference(STEP / 2.0));
            let scale = length(&product);
            assert!(scale > 1e-6, "{what}, seed {seed}: a Hessian product of length {scale}");
            tried += 1;
            if length(&minus(&wide, &narrow)) > 1e-5 * scale {
                kinks += 1;
                continue;
            }
            let error = length(&minus(&product, &narrow)) / scale;
            assert!(error <= 1e-6, "{what}, seed {seed}: Hessian product off by {error:e}");
            let slope = (at(STEP).loss - at(-STEP).loss) / (2.0 * STEP);
            let want = dot(&here.weights, &direction);
            // Central differences of the loss err by step^2 times its third derivative.
            let error = (slope - want).abs() / length(&here.weights);
            assert!(error <= 1e-6, "{what}, seed {seed}: loss slope {slope}, wanted {want}");
        }
    }
    assert!(4 * kinks <= tried, "{kinks} of {tried} directions have a kink");
}

#[test]
fn the_hessian_is_symmetric() {
    for (what, graph) in graphs() {
        let (values, images) = (values(&graph, 9), images(&graph, 9, LABELS.len()));
        let batch = Batch { images: &images, labels: &LABELS };
        let net = ScoreNet::new(&graph, &values, 1).unwrap();
        let along = |seed: u64| -> Lists { graph.maskable().iter().map(|m| normal(seed, &m.name, m.size())).collect() };
        let (a, b) = (along(1), along(2));
        let (ha, hb) = (net.hessian_product(batch, 1.0, &a).unwrap(), net.hessian_product(batch, 1.0, &b).unwrap());
        let scale = length(&a) * length(&hb);
        let error = (dot(&a, &hb) - dot(&b, &ha)).abs();
        assert!(error <= 1e-12 * scale, "{what}: off by {error:e} of {scale:e}");
    }
}

#[test]
fn threads_change_no_bit() {
    // Some groups of images a layer: 70 images of 12x12, 6x6, 3x3 and 1x1.
    let graph = models::resnet(8, 5, 3, 4, 12).unwrap();
    let (values, images) = (values(&graph, 3), images(&graph, 3, 70));
    let labels: Vec<u32> = (0..70).map(|i| i % 4).collect();
    let parts = [(0, 41), (41, 70)];
    let parts = parts.map(|(a, b)| Batch { images: &images[a * 432..b * 432], labels: &labels[a..b] });
    let scores =
        [1, 2, 7].map(|threads| ScoreNet::new(&graph, &values, threads).unwrap().grasp(&parts, 200.0).unwrap());
    let bits = |lists: &Lists| lists.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(scores.iter().all(|s| bits(s) == bits(&scores[0])));
}
