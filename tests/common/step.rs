//! Whole training steps of a small sparse network: state that one call leaves behind for the next.

use super::rig::{Build, f64s, normal, over, reals};
use sparse_engine::backend::{Backend, BatchLoss, SgdStep, Spec, Store, TensorId};
use sparse_engine::graph::{Graph, Net};
use sparse_engine::models;
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::shape::ConvGeom;
use sparse_engine::sparsity::Mask;

const BATCH: usize = 33;
const STEP: SgdStep = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: true };

/// A NaN reaches the output through a ReLU too: otherwise a diverged network would go on with a finite loss.
pub fn nan_is_kept<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let mut build = Build::new(17);
    let [x, y] = [0, 1].map(|halo| build.tensor([3, 4, 4], halo));
    let norm = build.norm(3);
    let stored = build.0.stored();
    let mut dev = make(build.0);
    dev.write_store(Store::Values, &reals(&vec![1.0; stored]));
    for n in [17, 3] {
        dev.write_store(Store::Running, &reals(&[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
        let mut data = normal("x", n * 48);
        data[17] = f64::NAN; // image 0, channel 1
        let wanted = |i: usize, whole: bool| if whole { i / 16 % 3 == 1 } else { i == 17 };
        dev.write_tensor(x, n, &reals(&data));
        for op in ["join_forward", "norm_infer", "norm_forward"] {
            match op {
                "join_forward" => dev.join_forward(x, None, true, y, n),
                "norm_infer" => dev.norm_infer(norm, x, None, true, y, n),
                _ => dev.norm_forward(norm, x, None, true, y, n),
            }
            for (i, v) in f64s(&dev.read_tensor(y, n)).into_iter().enumerate() {
                let ok = v.is_nan() == wanted(i, op == "norm_forward");
                assert!(ok, "{op} with NaN at 17, n = {n}: element {i} = {v}");
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

fn graph() -> Graph {
    models::resnet(8, 5, 3, 10, 9).unwrap()
}

/// A network with about a third of its weights and a given state.
fn net<B: Backend>(make: &dyn Fn(Spec) -> B) -> Net<B> {
    let graph = graph();
    let masks: Vec<Mask> = graph
        .maskable()
        .into_iter()
        .map(|m| {
            let stream = Stream::new(1, Purpose::Mask, &m.name);
            let size: usize = m.shape.iter().product();
            let kept: Vec<u32> = (0..size as u32).filter(|&i| stream.uniform(u64::from(i)) < 0.35).collect();
            Mask { name: m.name, shape: m.shape, density: 0.35, kept: Some(kept.into()) }
        })
        .collect();
    let mut net = Net::new(&graph, &masks, BATCH, |spec| Ok(make(spec))).unwrap();
    net.init(&graph, 1);
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
    let wanted = step(&mut net(make), 5);
    assert!(wanted.loss.loss_sum.is_finite() && wanted.grads.iter().any(|&g| g != 0.0));
    let mut used = net(make);
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
    let mut run = net(make);
    (0..3).for_each(|_| drop(step(&mut run, 17)));
    let mut fresh = net(make);
    for store in [Store::Values, Store::Momentum, Store::Running] {
        let data = run.backend().read_store(store);
        fresh.backend_mut().write_store(store, &data);
    }
    let (images, labels) = batch::<B>(16);
    assert!(run.infer(&images, &labels) == fresh.infer(&images, &labels), "evaluation after a restored state");
    assert!(f64s(&run.logits(16)) == f64s(&fresh.logits(16)), "evaluation logits after a restored state");
    assert!(step(&mut run, 16) == step(&mut fresh, 16), "a step after a restored state");
}

/// Tensors of one slot hold the same numbers, and the zero halo around them outlives every use of the slot.
pub fn slots_are_shared<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let geom = ConvGeom { c: 2, h: 3, w: 4, k: 3, r: 3, s: 3, stride: 1, pad: 1 };
    let mut build = Build::new(17);
    let conv = build.conv(geom, None, false);
    let weights = build.0.stored();
    let chw = [2, 3, 4];
    let [plain, shared] = [0, 1].map(|halo| build.tensor(chw, halo));
    let y = build.tensor([3, 3, 4], 1);
    let twin = build.0.tensors[shared.0 as usize];
    build.0.tensors.push(twin);
    let other = TensorId(build.0.tensors.len() as u32 - 1);

    let run = |earlier: bool| {
        let mut dev = make(build.0.clone());
        dev.write_store(Store::Values, &reals(&normal("weights", weights)));
        dev.write_tensor(plain, 17, &reals(&normal("x", 17 * 24)));
        if earlier {
            dev.write_tensor(shared, 17, &reals(&vec![f64::NAN; 17 * 24]));
            dev.write_tensor(y, 17, &reals(&vec![f64::NAN; 17 * 36]));
            dev.conv_backward_data(conv, y, over(other), 17);
            dev.write_tensor(y, 17, &reals(&normal("dy", 17 * 36)));
            dev.conv_backward_data(conv, y, over(other), 17);
        }
        dev.join_forward(plain, None, false, shared, 17);
        dev.conv_forward(conv, other, y, 17);
        (f64s(&dev.read_tensor(other, 17)), f64s(&dev.read_tensor(y, 17)))
    };
    let (held, result) = run(false);
    assert!(held == f64s::<B::Real>(&reals(&normal("x", 17 * 24))), "two tensors of one slot hold the same numbers");
    assert!(run(true) == (held, result), "what a slot held before shows in a later convolution");
}
