//! Steps that are captured and replayed, on data that lie on the device.

use crate::support::{CLASSES, SIDE, images};
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{Crops, DeviceImages, Driver, Feed, GpuBackend, LossScale, Precision, StepState};
use sparse_engine::backend::{Backend, Store};
use sparse_engine::graph::{Net, StepKind};
use sparse_engine::models;
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::sparsity::{Density, Draw, Ratio, draw_masks};

/// A little network with eight images a batch on the emulated device, its images there too.
struct Resident {
    net: Net<GpuBackend<Emulated>>,
    feed: Feed<Emulated>,
    images: DeviceImages<Emulated>,
}

const BATCH: usize = 8;

impl Resident {
    fn new(precision: Precision, rates: &[f32]) -> Self {
        let graph = models::resnet(8, 4, 1, CLASSES, SIDE).unwrap();
        let density = Density::from_sparsity(0.5).unwrap();
        let masks = draw_masks(&graph.maskable(), &Ratio::ERK, density, Draw::Exact, 0).unwrap();
        let mut net = Net::new(&graph, &masks, BATCH, |spec| {
            GpuBackend::new(Emulated::new(Order::Descending)?, spec, precision, None)
        })
        .unwrap();
        net.init(&graph, 0);
        let (pixels, labels) = images(rates.len() * BATCH, 9);
        let labels: Vec<u32> = labels.into_iter().map(u32::from).collect();
        let driver = net.backend().driver().clone();
        let table = std::array::from_fn(|p| p as f32 / 128.0 - 1.0);
        let mut feed = Feed::new(&*driver, labels.len(), BATCH, &[table]).unwrap();
        let order: Vec<u32> = (0..labels.len() as u32).rev().collect();
        feed.begin_epoch(&*driver, &order, Stream::new(0, Purpose::Data, "crops").words(), rates).unwrap();
        let images = DeviceImages::new(&*driver, &pixels, &labels, 0).unwrap();
        Resident { net, feed, images }
    }

    fn steps(&mut self, steps: usize, scale: LossScale) {
        let kind = StepKind { crops: Crops { pad: 1, reflect: true, flip: true }, smoothing: 0.1, scale };
        let driver = self.net.backend().driver().clone();
        let Resident { net, feed, images } = self;
        let graph = driver
            .capture(&mut || (0..steps).try_for_each(|_| net.start_training_step(feed, images, kind, BATCH)))
            .unwrap();
        driver.replay(&graph).unwrap();
    }

    /// Bits of all that training changes.
    fn stores(&self) -> Vec<Vec<u32>> {
        let stores = [Store::Values, Store::Momentum, Store::Running];
        let bits = |s| self.net.backend().read_store(s).iter().map(|v: &f32| v.to_bits()).collect();
        stores.into_iter().map(bits).collect()
    }
}

fn state(loss_scale: f32) -> StepState {
    StepState {
        momentum: 0.9,
        weight_decay: 5e-4,
        nesterov: 1,
        loss_scale,
        unscale: 1.0 / loss_scale,
        ..Default::default()
    }
}

/// From the step on whose loss is not finite, nothing is updated any more: what is kept is what the step before left.
#[test]
fn nothing_is_updated_once_a_loss_is_not_finite() {
    // The third rate breaks the network, which the fourth step sees.
    let rates = [0.1, 0.1, 1e38, 0.1, 0.1, 0.1];
    let after = |steps: usize| {
        let mut r = Resident::new(Precision::Bf16, &rates);
        r.net.backend_mut().set_state(&state(1.0)).unwrap();
        r.steps(steps, LossScale::Static(1.0));
        let broken = r.net.backend().state().unwrap().broken;
        let losses = r.feed.losses(&**r.net.backend().driver(), 0..steps).unwrap();
        let finite = losses.iter().filter(|l| l.loss_sum.is_finite()).count();
        (r.stores(), broken, finite)
    };
    let (kept, broken, finite) = after(3);
    assert_eq!((broken, finite), (0, 3));
    let (end, broken, finite) = after(6);
    assert_eq!((broken, finite), (4, 3), "the fourth loss is the first that is not finite");
    assert!(end == kept, "values, momentum and running statistics are those after the third step");
}

/// The gradients that can be read are those of the last step, without the scale that it had: not of the next one's, and not
/// of what an evaluation or a new epoch leaves.
#[test]
fn gradients_of_the_last_step_are_read_without_its_scale() {
    let rates = [0.1; 4];
    let two_steps = |precision, scale: f32, kind| {
        let mut r = Resident::new(precision, &rates);
        // The second of these steps is the one after which a dynamic scale grows.
        r.net.backend_mut().set_state(&StepState { good: LossScale::GROWTH_INTERVAL - 2, ..state(scale) }).unwrap();
        r.steps(2, kind);
        r
    };
    let values = |r: &Resident| -> Vec<f64> { r.net.gradients().into_iter().flat_map(|g| g.values).collect() };
    for precision in [Precision::F32, Precision::F16] {
        let want = values(&two_steps(precision, 1.0, LossScale::Static(1.0)));
        let mut r = two_steps(precision, 64.0, LossScale::Dynamic);
        let end = r.net.backend().state().unwrap();
        assert_eq!((end.loss_scale, end.held, end.grads_scale), (128.0, 0, 64.0), "{precision}");
        let got = values(&r);
        let length = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let error = length(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / length(&mut want.iter().copied());
        // Powers of two change no digit of f32; small gradients lose some in f16.
        let tol = if precision == Precision::F32 { 0.0 } else { 2e-2 };
        assert!(error <= tol, "{precision}: {error}");

        let Resident { net, feed, images } = &mut r;
        net.backend().begin_evaluation(feed, 0).unwrap();
        net.start_evaluation_step(feed, images, BATCH).unwrap();
        net.backend_mut().set_state(&state(4096.0)).unwrap();
        assert!(values(&r) == got, "{precision}: an evaluation and a new epoch change no gradient");
        assert_eq!(r.net.backend().state().unwrap().loss_scale, 4096.0);

        // A pass that the host starts has no scale, and none of the last step's.
        let pixels = vec![0.5; BATCH * SIDE * SIDE];
        r.net.forward_backward(&pixels, &[1; BATCH], 0.0);
        let store: Vec<f64> = r.net.backend().read_store(Store::Grads).into_iter().map(f64::from).collect();
        assert!(values(&r) == store, "{precision}");
    }
}

/// A gradient that overflows leaves its step out and halves the scale; good steps go on.
#[test]
fn an_overflow_leaves_its_step_out_and_halves_the_scale() {
    let rates = [0.1; 4];
    let run = |scale: f32, steps: usize| {
        let mut r = Resident::new(Precision::F16, &rates);
        let before = r.stores();
        r.net.backend_mut().set_state(&state(scale)).unwrap();
        r.steps(steps, LossScale::Dynamic);
        (before, r.stores(), r.net.backend().state().unwrap())
    };
    let (before, after, end) = run(16777216.0, 1);
    assert_eq!((end.hold, end.held, end.loss_scale, end.unscale), (1, 1, 8388608.0, 1.0 / 8388608.0));
    assert!(after[..2] == before[..2], "values and momentum stay");
    assert!(after[2] != before[2], "running statistics are of the forward pass");
    let (before, after, end) = run(64.0, 2);
    assert_eq!((end.hold, end.loss_scale, end.good, end.broken, end.step), (0, 64.0, 2, 0, 2));
    assert!(after[0] != before[0] && after[1] != before[1]);
}

/// A static scale does not move, but what overflows is left out all the same.
#[test]
fn a_static_scale_that_overflows_leaves_steps_out() {
    let mut r = Resident::new(Precision::F16, &[0.1; 3]);
    let before = r.stores();
    r.net.backend_mut().set_state(&state(16777216.0)).unwrap();
    r.steps(3, LossScale::Static(16777216.0));
    let (after, end) = (r.stores(), r.net.backend().state().unwrap());
    assert_eq!((end.held, end.loss_scale, end.broken), (3, 16777216.0, 0));
    assert!(after[..2] == before[..2], "values and momentum stay");
}

/// Captured steps give the bytes that the same launches give one by one.
#[test]
fn a_graph_changes_nothing() {
    let rates = [0.1; 3];
    for precision in [Precision::F32, Precision::F16] {
        let begin = || {
            let mut r = Resident::new(precision, &rates);
            r.net.backend_mut().set_state(&state(32.0)).unwrap();
            r
        };
        let (mut a, mut b) = (begin(), begin());
        a.steps(3, LossScale::Static(32.0));
        let kind = StepKind {
            crops: Crops { pad: 1, reflect: true, flip: true },
            smoothing: 0.1,
            scale: LossScale::Static(32.0),
        };
        for _ in 0..3 {
            b.net.start_training_step(&b.feed, &b.images, kind, BATCH).unwrap();
        }
        assert!(a.stores() == b.stores(), "{precision}");
    }
}
