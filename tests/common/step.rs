//! Whole training steps of a small sparse network: state that one call leaves behind for the next.

use super::rig::{Build, f64s, normal, reals};
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{
    Backend, BatchLoss, Finish, Grad, GradDst, Input, Plane, Real, SgdStep, Spec, Store, TensorId, TensorSpec, Write,
};
use sparse_engine::graph::{Graph, Net};
use sparse_engine::models;
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::shape::ConvGeom;
use sparse_engine::sparsity::Mask;

pub const BATCH: usize = 33;
pub const STEP: SgdStep = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: true };

/// A NaN reaches the output through a ReLU too: otherwise a diverged network would go on with a finite loss.
pub fn nan_is_kept<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let mut build = Build::new(17);
    let [x, y] = build.tensors([3, 4, 4]);
    let out = build.tensor([3, 1, 1]);
    let norm = build.norm(3);
    let conv =
        build.conv(ConvGeom { c: 3, h: 4, w: 4, k: 3, r: 1, s: 1, stride: 1, pad: 0 }, Some(vec![0, 4, 8]), false);
    let stored = build.0.stored();
    let mut dev = make(build.0);
    dev.write_store(Store::Values, &reals(&vec![1.0; stored]));
    for n in [17, 3] {
        dev.write_store(Store::Running, &reals(&[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
        let mut data = normal("x", n * 48);
        data[17] = f64::NAN; // image 0, channel 1
        dev.write_tensor(x, n, &reals(&data));
        for op in ["join_forward", "conv_forward", "pool_forward", "norm_running", "norm_stats"] {
            let mut input = Input { t: x, norm: None, relu: true };
            match op {
                "norm_running" => dev.norm_running(norm),
                "norm_stats" => dev.norm_stats(norm, x, n),
                _ => {}
            }
            match op {
                "conv_forward" => dev.conv_forward(conv, input, y, None, n), // the identity
                "pool_forward" => dev.pool_forward(input, out, n),
                "join_forward" => dev.join_forward(Input::plain(x), None, true, y, n),
                _ => {
                    input.norm = Some(norm);
                    dev.join_forward(input, None, false, y, n);
                }
            }
            let got = f64s(&dev.read_tensor(if op == "pool_forward" { out } else { y }, n));
            for (i, v) in got.into_iter().enumerate() {
                let wanted = match op {
                    "norm_stats" => i / 16 % 3 == 1, // the whole channel
                    "pool_forward" => i == 1,
                    _ => i == 17,
                };
                // A dense kernel multiplies pruned weights too: its NaN may reach the pixel's other channels, no other pixel.
                let may = op == "conv_forward" && i < 48 && i % 16 == 1;
                assert!(v.is_nan() == wanted || may, "{op} with NaN at 17, n = {n}: element {i} = {v}");
            }
        }
    }
}

/// Everything a step leaves that the host can see.
#[derive(Debug, PartialEq)]
struct Trace {
    loss: BatchLoss,
    logits: Vec<f64>,
    grads: Vec<f64>,
    values: Vec<f64>,
    running: Vec<f64>,
}

pub fn graph() -> Graph {
    models::resnet(8, 5, 3, 10, 9).unwrap()
}

/// Masks that keep about a third of the weights.
pub fn masks(graph: &Graph) -> Vec<Mask> {
    graph
        .maskable()
        .into_iter()
        .map(|m| {
            let stream = Stream::new(1, Purpose::Mask, &m.name);
            let size: usize = m.shape.iter().product();
            let kept: Vec<u32> = (0..size as u32).filter(|&i| stream.uniform(u64::from(i)) < 0.35).collect();
            Mask { name: m.name, shape: m.shape, density: 0.35, kept: Some(kept.into()), block: None }
        })
        .collect()
}

/// A network with about a third of its weights and a given state.
fn net<B: Backend>(graph: &Graph, make: &dyn Fn(Spec) -> B) -> Net<B> {
    let mut net = Net::new(graph, &masks(graph), BATCH, |spec| Ok(make(spec))).unwrap();
    net.init(graph, 1);
    net
}

fn batch<B: Backend>(n: usize) -> (Vec<B::Real>, Vec<u32>) {
    (reals(&normal(&format!("images {n}"), n * 3 * 81)), (0..n).map(|i| (i * 3 % 10) as u32).collect())
}

fn step<B: Backend>(net: &mut Net<B>, n: usize) -> Trace {
    let (images, labels) = batch::<B>(n);
    let loss = net.forward_backward(&images, &labels, 0.1);
    let grads = f64s(&net.backend().read_store(Store::Grads));
    net.sgd(STEP);
    let [values, running] = [Store::Values, Store::Running].map(|s| f64s(&net.backend().read_store(s)));
    Trace { loss, logits: f64s(&net.logits(n)), grads, values, running }
}

/// After 33 images, 5 images give bit for bit what they give on a fresh backend.
pub fn earlier_batches_leave_no_trace<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let wanted = step(&mut net(&graph(), make), 5);
    assert!(wanted.loss.loss_sum.is_finite() && wanted.grads.iter().any(|&g| g != 0.0));
    let mut used = net(&graph(), make);
    step(&mut used, BATCH);
    used.init(&graph(), 1);
    assert!(step(&mut used, 5) == wanted, "a step with 5 images depends on an earlier one with {BATCH}");

    // The same with NaN: an earlier batch that diverged.
    let (mut images, labels) = batch::<B>(BATCH);
    images.fill(reals::<B::Real>(&[f64::NAN])[0]);
    used.init(&graph(), 1);
    let loss = used.forward_backward(&images, &labels, 0.0).loss_sum;
    assert!(loss.is_nan(), "NaN images: loss {loss}");
    used.init(&graph(), 1);
    assert!(step(&mut used, 5) == wanted, "a step with 5 images depends on an earlier one with {BATCH} that held NaN");
}

/// The kernels see what `sgd` and `write_store` wrote, also where they keep copies of the values.
pub fn updates_reach_the_kernels<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let mut run = net(&graph(), make);
    (0..3).for_each(|_| drop(step(&mut run, 17)));
    let mut fresh = net(&graph(), make);
    for store in [Store::Values, Store::Momentum, Store::Running] {
        let data = run.backend().read_store(store);
        fresh.backend_mut().write_store(store, &data);
    }
    let (images, labels) = batch::<B>(16);
    assert!(run.infer(&images, &labels) == fresh.infer(&images, &labels), "evaluation after a restored state");
    assert!(f64s(&run.logits(16)) == f64s(&fresh.logits(16)), "evaluation logits after a restored state");
    assert!(step(&mut run, 16) == step(&mut fresh, 16), "a step after a restored state");
}

/// What a place held before, for a tensor of another shape, does not show in what later tensors hold there.
pub fn tensors_share_places<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let geom = ConvGeom { c: 2, h: 3, w: 4, k: 3, r: 3, s: 3, stride: 1, pad: 1 };
    let mut build = Build::new(17);
    let conv = build.conv(geom, None, false);
    let weights = build.0.stored();
    let x = build.tensor([2, 3, 4]);
    let y = build.tensor([3, 3, 4]);
    let dx = build.tensor([2, 3, 4]);
    build.0.tensors.iter_mut().for_each(|t| t.alive = (1, 2));
    let mut over = |at: TensorId, offset: usize, [c, h, w]: [u32; 3]| {
        let at = build.0.tensors[at.0 as usize].at + offset;
        build.0.tensors.push(TensorSpec { alive: (0, 0), ..TensorSpec::lasting(Plane { c, h, w }, at) });
        TensorId(build.0.tensors.len() as u32 - 1)
    };
    let earlier = [over(x, 1, [1, 2, 11]), over(y, 0, [36, 1, 1]), over(dx, 5, [19, 1, 1])];

    let run = |fouled: bool| {
        let mut dev = make(build.0.clone());
        dev.write_store(Store::Values, &reals(&normal("weights", weights)));
        if fouled {
            for t in earlier {
                let nan = vec![f64::NAN; 17 * dev.spec().tensors[t.0 as usize].plane.len()];
                dev.write_tensor(t, 17, &reals(&nan));
            }
        }
        dev.write_tensor(x, 5, &reals(&normal("x", 5 * 24)));
        let input = Input { t: x, norm: None, relu: true };
        dev.conv_forward(conv, input, y, None, 5);
        let dst = GradDst { t: dx, write: Write::Overwrite, finish: Finish::default() };
        dev.conv_backward(conv, input, Grad::plain(y), Some(dst), 5);
        let grads = f64s(&dev.read_store(Store::Grads));
        [x, y, dx].map(|t| f64s(&dev.read_tensor(t, 5))).into_iter().chain([grads]).collect::<Vec<_>>()
    };
    let clean = run(false);
    assert!(clean.iter().flatten().all(|v| v.is_finite()));
    assert!(run(true) == clean, "what a place held before shows in a later convolution");
}

/// A network with what ResNets for small images have not: large kernels, a maximum, a bottleneck, a lone addition.
pub fn odd_graph() -> Graph {
    let mut g = Graph::new(3, 17, 15);
    let x = g.conv("stem", g.input(), 6, 7, 2, 3).unwrap();
    let x = g.norm("bn", x);
    let x = g.relu(x);
    let x = g.max_pool(x, 3, 2, 1).unwrap();
    let y = g.conv("narrow", x, 4, 1, 1, 0).unwrap();
    let y = g.norm("narrow.bn", y);
    let y = g.relu(y);
    let y = g.conv("wide", y, 6, 3, 1, 1).unwrap();
    let y = g.norm("wide.bn", y);
    let x = g.add(x, y).unwrap();
    let y = g.conv("down", x, 5, 5, 2, 2).unwrap();
    let y = g.norm("down.bn", y);
    let z = g.norm("again", y);
    let x = g.add(y, z).unwrap();
    let x = g.pool(x);
    g.linear("fc", x, 10).unwrap();
    g
}

/// Logits that no convolution writes: a mean (Network in Network), and a ReLU of a sum.
fn pooled_graph() -> Graph {
    let mut g = Graph::new(3, 8, 8);
    let x = g.conv("stem", g.input(), 12, 3, 1, 1).unwrap();
    let x = g.norm("bn", x);
    let x = g.relu(x);
    let x = g.conv("classes", x, 10, 1, 1, 0).unwrap();
    g.pool(x);
    g
}

fn summed_graph() -> Graph {
    let mut g = Graph::new(3, 8, 8);
    let x = g.conv("stem", g.input(), 12, 3, 2, 1).unwrap();
    let x = g.norm("bn", x);
    let x = g.relu(x);
    let x = g.pool(x);
    let (a, b) = (g.linear("a", x, 10).unwrap(), g.linear("b", x, 10).unwrap());
    let x = g.add(a, b).unwrap();
    g.relu(x);
    g
}

/// Loss and gradients of a step, against the reference. A mask may turn within rounding of zero: hence L2 norms.
pub fn nets_agree_with_the_reference<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for (name, graph) in
        [("resnet8", graph()), ("odd", odd_graph()), ("pooled", pooled_graph()), ("summed", summed_graph())]
    {
        let mut dev = net(&graph, make);
        let mut exact = net(&graph, &RefBackend::new);
        let (c, h, w) = graph.nodes()[0].chw;
        for n in [BATCH, 4] {
            for store in [Store::Values, Store::Running] {
                let same = f64s(&dev.backend().read_store(store));
                exact.backend_mut().write_store(store, &same);
            }
            let images: Vec<B::Real> = reals(&normal(&format!("images {n}"), n * (c * h * w) as usize));
            let labels: Vec<u32> = (0..n).map(|i| (i * 7 % 10) as u32).collect();
            let got = dev.forward_backward(&images, &labels, 0.1).loss_sum;
            let want = exact.forward_backward(&f64s(&images), &labels, 0.1).loss_sum;
            let coarse = dev.backend().rounding().eps > B::Real::EPS;
            let tol = if coarse { 5e-3 } else { 1e3 * B::Real::EPS };
            assert!((got - want).abs() <= tol * want, "{name}, n = {n}: loss {got}, wanted {want}");
            let [got, want] = [f64s(&dev.backend().read_store(Store::Grads)), exact.backend().read_store(Store::Grads)];
            for (p, param) in exact.backend().spec().params.iter().zip(graph.params()) {
                let length = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
                let (got, want) = (&got[p.range.clone()], &want[p.range.clone()]);
                let error = length(&mut got.iter().zip(want).map(|(g, w)| g - w));
                // Of a norm of a norm only the second scale matters: a gradient of zero, but for rounding.
                let size = length(&mut want.iter().copied()) + if coarse { 1e-2 } else { 1e-3 };
                // A third: a cosine of 0.95. One ReLU that turns in a small network moves a small gradient that far.
                let tol = if coarse { 0.33 } else { 1e5 * B::Real::EPS };
                assert!(error <= tol * size, "{name}, n = {n}: {}: {error} of {size}", param.name);
            }
            dev.sgd(STEP);
        }
    }
}
