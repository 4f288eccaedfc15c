//! The gradient of the images through whole networks in evaluation, against the reference.

use super::rig::{f64s, normal, reals};
use super::step::{BATCH, STEP, graph, masks, odd_graph};
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{Backend, Spec, Store};
use sparse_engine::graph::{Graph, Net};

const CLASSES: usize = 10;
const STORES: [Store; 4] = [Store::Values, Store::Momentum, Store::Grads, Store::Running];

/// Without a ReLU or a maximum: nothing turns within rounding.
fn smooth() -> Graph {
    let mut g = Graph::new(3, 9, 7);
    let x = g.conv("a", g.input(), 17, 3, 2, 1).unwrap();
    let x = g.norm("a.bn", x);
    let x = g.conv("b", x, 8, 3, 1, 1).unwrap();
    let y = g.norm("b.bn", x);
    let x = g.add(x, y).unwrap();
    let x = g.pool(x);
    g.linear("fc", x, CLASSES).unwrap();
    g
}

/// A batch norm and a maximum of the images themselves.
fn several_readers() -> Graph {
    let mut g = Graph::new(3, 8, 9);
    let x = g.norm("bn", g.input());
    let a = g.conv("a", x, 6, 3, 1, 1).unwrap();
    let a = g.relu(a);
    let m = g.max_pool(g.input(), 3, 1, 1).unwrap();
    let b = g.conv("b", m, 6, 1, 1, 0).unwrap();
    let x = g.add(a, b).unwrap();
    let x = g.relu(x);
    let [x, images] = [x, g.input()].map(|x| g.pool(x));
    let (x, y) = (g.linear("fc", x, CLASSES).unwrap(), g.linear("skip", images, CLASSES).unwrap());
    g.add(x, y).unwrap();
    g
}

fn net<B: Backend>(graph: &Graph, make: &dyn Fn(Spec) -> B) -> Net<B> {
    let mut net = Net::with_input_gradient(graph, &masks(graph), BATCH, |spec| Ok(make(spec))).unwrap();
    net.init(graph, 1);
    net
}

fn bytes<B: Backend>(net: &Net<B>) -> Vec<Vec<u8>> {
    let bytes = |s| bytemuck::cast_slice(&net.backend().read_store(s)).to_vec();
    STORES.map(bytes).to_vec()
}

/// Largest relative error in L2. Smooth: some roundings of a gradient, and of the weights and values that it meets, a layer
/// (the longest path has six). Otherwise a ReLU or maximum turns where its value lies within rounding of its kink: a share of
/// 0.8 * 3 eps of the units of each of up to nine layers loses or gains its gradient, at least one unit in a hundred of a
/// small layer.
fn tolerance<B: Backend>(net: &Net<B>, smooth: bool) -> f64 {
    let eps = net.backend().rounding().eps;
    if smooth { 12.0 * eps } else { 1e-2 + (9.0 * 0.8 * 3.0 * eps).sqrt() }
}

/// Logits and gradients, of batches of several sizes, before and after a training step; nothing else moves.
pub fn gradients_agree_with_the_reference<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let graphs = [("smooth", smooth()), ("resnet8", graph()), ("odd", odd_graph()), ("several", several_readers())];
    for (name, graph) in graphs {
        let (mut dev, mut exact, mut untouched) = (net(&graph, make), net(&graph, &RefBackend::new), net(&graph, make));
        let (c, h, w) = graph.nodes()[0].chw;
        for (turn, n) in [BATCH, 4, 16, 1].into_iter().enumerate() {
            let images: Vec<B::Real> = reals(&normal(&format!("images {n}"), n * (c * h * w) as usize));
            if n > 1 {
                let labels: Vec<u32> = (0..n).map(|i| (i * 7 % CLASSES) as u32).collect();
                for net in [&mut dev, &mut untouched] {
                    net.forward_backward(&images, &labels, 0.0);
                    net.sgd(STEP);
                }
                assert!(
                    bytes(&dev) == bytes(&untouched),
                    "{name}, turn {turn}: an input gradient changes a later step"
                );
            }
            for store in [Store::Values, Store::Running] {
                exact.backend_mut().write_store(store, &f64s(&dev.backend().read_store(store)));
            }
            let before = bytes(&dev);
            let seed = normal(&format!("dlogits {n}"), n * CLASSES);
            let (logits, got) = dev.input_gradient(&images, n, |logits| {
                assert_eq!(logits.len(), n * CLASSES);
                reals(&seed)
            });
            assert!(bytes(&dev) == before, "{name}, n = {n}: parameters, momentum, gradients and statistics stay");
            let again = dev.input_gradient(&images, n, |_| reals(&seed));
            assert!(again == (logits.clone(), got.clone()), "{name}, n = {n}: not the same bytes twice");
            let (want_logits, want) = exact.input_gradient(&f64s(&images), n, |_| seed.clone());
            for (what, got, want) in [("logits", f64s(&logits), want_logits), ("gradient", f64s(&got), want)] {
                // Logits are continuous: what turns, turns at zero.
                let tol = tolerance(&dev, name == "smooth" || what == "logits");
                let length = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
                let error = length(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / length(&mut want.iter().copied());
                assert!(
                    got.len() == want.len() && error <= tol,
                    "{name}, n = {n}, {what}: error {error}, wanted {tol}"
                );
            }
        }
    }
}
