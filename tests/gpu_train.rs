//! Whole runs on the emulated GPU: steps that are captured and replayed, what they leave in the run directory, and what a
//! run may go on with elsewhere.

mod data_support;
mod support;

use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{Crops, DeviceImages, Driver, Feed, GpuBackend, LossScale, Precision, StepState};
use sparse_engine::backend::{Backend, Store};
use sparse_engine::checkpoint::Checkpoint;
use sparse_engine::config::Config;
use sparse_engine::graph::{Net, StepKind};
use sparse_engine::models;
use sparse_engine::report::{Split, Summary};
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::sparsity::{Density, Draw, Method, draw_masks};
use sparse_engine::train::{Device, EpochInfo, Observer, OnDevice, Options, StartInfo, StepInfo, evaluate, train};
use support::*;

/// Watches steps, which come several at a time, and asks to stop once `stop_at` is reached.
#[derive(Default)]
struct Far {
    stop_at: Option<u64>,
    steps: Vec<u64>,
    device: String,
}

impl Observer for Far {
    fn start(&mut self, info: &StartInfo) {
        self.device = info.device.clone();
    }
    fn step(&mut self, p: &StepInfo) {
        assert!(self.steps.last().is_none_or(|&s| s < p.step), "steps go forward");
        self.steps.push(p.step);
    }
    fn epoch(&mut self, _: &EpochInfo) {}
    fn finish(&mut self, _: &Summary) {}
    fn stop_requested(&self) -> bool {
        self.stop_at.is_some_and(|at| self.steps.last().is_some_and(|&s| s >= at))
    }
}

fn on(precision: Precision) -> OnDevice {
    OnDevice { device: Device::Emulated, precision: Some(precision), loss_scale: None }
}

fn options(lab: &Lab, out: &str, precision: Precision) -> Options {
    Options { on: on(precision), ..lab.options(out, 1) }
}

/// Two epochs of the little network.
fn short(lab: &Lab) -> Config {
    lab.config(&["epochs=2", "schedule.milestones=[1]"])
}

#[test]
fn learns_as_the_cpu_does() {
    let lab = Lab::new();
    let config = short(&lab);
    let cpu = train(&config, &lab.options("cpu", 1), &mut Watch::default()).unwrap();
    for precision in [Precision::F32, Precision::F16] {
        let name = precision.to_string();
        let mut far = Far::default();
        let gpu = train(&config, &options(&lab, &name, precision), &mut far).unwrap();
        assert!(far.device.contains("emulated") && far.device.contains(&name), "{}", far.device);
        assert_eq!(gpu.steps, cpu.steps);
        let (a, b) = (lab.metrics("cpu"), lab.metrics(&name));
        let of = |records: &[sparse_engine::report::Record], split| {
            records.iter().filter(|r| r.split == split).map(|r| (r.step, r.n, r.loss)).collect::<Vec<_>>()
        };
        for split in [Split::Train, Split::Val, Split::Test] {
            let (a, b) = (of(&a, split), of(&b, split));
            assert_eq!(a.len(), b.len(), "{split:?}");
            for ((step, n, want), (step_b, n_b, got)) in a.into_iter().zip(b) {
                assert_eq!((step, n), (step_b, n_b), "{split:?}");
                // Free runs drift apart: a step early in training moves a loss by much more than this.
                let tol = if precision == Precision::F32 { 0.02 } else { 0.1 };
                assert!((got - want).abs() <= tol * want, "{name} {split:?} step {step}: {got}, wanted {want}");
            }
        }
        for file in ["config.toml", "plan.json", "plan-cuda.json", "last.safetensors", "summary.json"] {
            assert!(lab.path(&name).join(file).exists(), "{file}");
        }
    }
}

#[test]
fn the_same_bytes_again_and_after_a_stop() {
    let lab = Lab::new();
    let config = short(&lab);
    let precision = Precision::F16;
    for run in ["a", "b"] {
        train(&config, &options(&lab, run, precision), &mut Far::default()).unwrap();
    }
    for file in ["last.safetensors", "best.safetensors", "plan-cuda.json"] {
        assert!(lab.bytes(&format!("a/{file}")) == lab.bytes(&format!("b/{file}")), "{file} differs in a second run");
    }
    for stop_at in [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 3] {
        let run = format!("stopped {stop_at}");
        let mut far = Far { stop_at: Some(stop_at), ..Far::default() };
        let stopped = train(&config, &options(&lab, &run, precision), &mut far).unwrap_err();
        assert_eq!(stopped.exit_code(), 75, "{stopped}");
        // The precision is the run's own.
        let resume = Options { resume: Some(lab.path(&run)), ..options(&lab, &run, precision) };
        let resume = Options { on: OnDevice { precision: None, ..resume.on }, ..resume };
        train(&config, &resume, &mut Far::default()).unwrap();
        lab.assert_same_end(&run, "a", &run);
    }
}

#[test]
fn runs_move_between_devices() {
    let lab = Lab::new();
    let config = short(&lab);
    let stop = || Far { stop_at: Some(STEPS_PER_EPOCH), ..Far::default() };
    train(&config, &lab.options("cpu first", 1), &mut stop()).unwrap_err();
    let resume = Options { resume: Some(lab.path("cpu first")), ..options(&lab, "cpu first", Precision::F32) };
    train(&config, &resume, &mut Far::default()).unwrap();
    assert!(lab.path("cpu first/plan-cuda.json").exists());
    train(&config, &options(&lab, "gpu first", Precision::F16), &mut stop()).unwrap_err();
    train(&config, &lab.resume_options("gpu first", 1), &mut Far::default()).unwrap();

    // A checkpoint's accuracy is the same wherever it is measured.
    let path = lab.path("gpu first/last.safetensors");
    let on_cpu = OnDevice { device: Device::Cpu, ..OnDevice::default() };
    let eval = |on| evaluate(&path, None, Split::Test, 13, 1, None, on).unwrap();
    let (cpu, gpu) = (eval(on_cpu), eval(on(Precision::F32)));
    assert!(cpu.accuracy == gpu.accuracy && (cpu.loss - gpu.loss).abs() <= 1e-5 * cpu.loss, "{cpu:?} {gpu:?}");

    // Another precision than the run's is refused before anything is written.
    let other = Options { resume: Some(lab.path("cpu first")), ..options(&lab, "cpu first", Precision::Bf16) };
    let refused = train(&config, &other, &mut Far::default()).unwrap_err();
    assert!(refused.exit_code() == 2 && refused.to_string().contains("--precision bf16"), "{refused}");
}

#[test]
fn a_loss_that_is_no_number_leaves_the_state_before_it() {
    let lab = Lab::new();
    // So large a rate breaks the network within a few steps.
    let config = lab.config(&["lr=1e30", "warmup_epochs=0", "schedule.milestones=[1]", "epochs=2"]);
    let error = train(&config, &options(&lab, "nan", Precision::Bf16), &mut Far::default()).unwrap_err();
    assert!(error.exit_code() == 1 && error.to_string().contains("the loss became"), "{error}");
}

#[test]
fn a_dynamic_scale_is_found_and_kept() {
    let lab = Lab::new();
    let config = short(&lab);
    let with = |name: &str, loss_scale| {
        let o = options(&lab, name, Precision::F16);
        let o = Options { on: OnDevice { loss_scale, ..o.on }, ..o };
        train(&config, &o, &mut Far::default()).unwrap();
        Checkpoint::load(&lab.path(name).join("last.safetensors")).unwrap().meta.progress.scaling
    };
    let scaling = with("dynamic", None).expect("fp16 has a dynamic scale");
    assert!(scaling.scale >= 1.0 && scaling.scale.log2().fract() == 0.0, "{scaling:?}");
    assert_eq!(with("static", Some(LossScale::Static(128.0))), None);
}

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
        let masks = draw_masks(&graph.maskable(), Method::Erk, density, Draw::Exact, 0).unwrap();
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
        feed.begin_epoch(&*driver, &order, &Stream::new(0, Purpose::Data, "crops"), rates).unwrap();
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
    assert_eq!((end.hold, end.loss_scale, end.unscale), (1, 8388608.0, 1.0 / 8388608.0));
    assert!(after[..2] == before[..2], "values and momentum stay");
    assert!(after[2] != before[2], "running statistics are of the forward pass");
    let (before, after, end) = run(64.0, 2);
    assert_eq!((end.hold, end.loss_scale, end.good, end.broken, end.step), (0, 64.0, 2, 0, 2));
    assert!(after[0] != before[0] && after[1] != before[1]);
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
