//! Whole runs on the emulated GPU: what they leave in the run directory, and what a run may go on with elsewhere. `cli.rs`: the
//! same from the command line; `resident.rs`: single steps that are captured and replayed.

mod cli;
#[path = "../data_support/mod.rs"]
mod data_support;
mod metrics;
mod resident;
#[path = "../support/mod.rs"]
mod support;

use sparse_engine::backend::Backend;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{GpuBackend, LossScale, Precision, SizesOnly};
use sparse_engine::checkpoint::Checkpoint;
use sparse_engine::config::Config;
use sparse_engine::graph::Net;
use sparse_engine::models;
use sparse_engine::report::{Split, Summary, read_gpu_plan};
use sparse_engine::train::{Device, EpochInfo, Observer, OnDevice, Options, StartInfo, StepInfo, train};
use std::time::Duration;
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
    let on_cpu = OnDevice { device: Device::Cpu, ..OnDevice::default() };
    let eval = |on| lab.evaluate("gpu first", Split::Test, 13, 1, on);
    let (cpu, gpu) = (eval(on_cpu), eval(on(Precision::F32)));
    assert!(cpu.accuracy == gpu.accuracy && (cpu.loss - gpu.loss).abs() <= 1e-5 * cpu.loss, "{cpu:?} {gpu:?}");

    // Another precision than the run's is refused before anything is written.
    let other = Options { resume: Some(lab.path("cpu first")), ..options(&lab, "cpu first", Precision::Bf16) };
    let refused = train(&config, &other, &mut Far::default()).unwrap_err();
    assert!(refused.exit_code() == 2 && refused.to_string().contains("--precision bf16"), "{refused}");
}

/// Steps of an epoch in graphs of 16, of one and of the ragged last batch, as the host looks at them often or never: the same
/// bytes, also after a stop between two of them.
#[test]
fn how_steps_are_put_into_graphs_changes_nothing() {
    let lab = Lab::new();
    let config = lab.config(&["epochs=2", "schedule.milestones=[1]", "batch_size=12"]);
    let with = |run: &str, watch_every| Options { watch_every, ..options(&lab, run, Precision::F16) };
    let (hour, mut rare) = (Duration::from_secs(3600), Far::default());
    train(&config, &with("rare", hour), &mut rare).unwrap();
    assert_eq!(rare.steps, [1, 20, 40], "one to learn how long a step takes: then 16, three of one, and a ragged one");
    let mut often = Far::default();
    train(&config, &with("often", Duration::ZERO), &mut often).unwrap();
    assert_eq!(often.steps, (1..=40).collect::<Vec<_>>());
    lab.assert_same_end("often", "rare", "often");
    let mut far = Far { stop_at: Some(3), ..Far::default() };
    assert_eq!(train(&config, &with("stopped", Duration::ZERO), &mut far).unwrap_err().exit_code(), 75);
    let resume = Options { resume: Some(lab.path("stopped")), ..with("stopped", hour) };
    train(&config, &resume, &mut Far::default()).unwrap();
    lab.assert_same_end("stopped", "rare", "stopped");
}

/// An update that ruins the network, which only the next loss tells, is in no checkpoint.
#[test]
fn what_diverges_leaves_the_last_good_state() {
    let lab = Lab::new();
    // The second epoch's rate breaks the network within a few steps.
    let config = lab.config(&["epochs=2", "schedule.milestones=[1]", "schedule.gamma=1e26", "warmup_epochs=0"]);
    let options = options(&lab, "nan", Precision::Bf16);
    let options = Options { checkpoint_every: Some(Duration::ZERO), watch_every: Duration::ZERO, ..options };
    let error = train(&config, &options, &mut Far::default()).unwrap_err();
    assert!(error.exit_code() == 1 && error.to_string().contains("the loss became"), "{error}");
    let progress = Checkpoint::load(&lab.path("nan/last.safetensors")).unwrap().meta.progress;
    assert!(progress.step >= STEPS_PER_EPOCH, "{progress:?}");
    let score = lab.evaluate("nan", Split::Test, 32, 1, on(Precision::F32));
    assert!(score.loss.is_finite() && score.loss < 100.0, "{score:?}");
}

#[test]
fn a_loss_scale_is_the_runs_own() {
    let lab = Lab::new();
    let config = short(&lab);
    let with = |name: &str, loss_scale| {
        let o = options(&lab, name, Precision::F16);
        Options { on: OnDevice { loss_scale, ..o.on }, ..o }
    };
    let scaling =
        |name: &str| Checkpoint::load(&lab.path(name).join("last.safetensors")).unwrap().meta.progress.scaling;
    train(&config, &with("dynamic", None), &mut Far::default()).unwrap();
    let found = scaling("dynamic").expect("fp16 has a loss scale");
    assert!(found.scale >= 1.0 && found.scale.log2().fract() == 0.0, "{found:?}");

    let fixed = Some(LossScale::Static(128.0));
    train(&config, &with("static", fixed), &mut Far::default()).unwrap();
    let end = scaling("static").unwrap();
    assert_eq!((end.scale, end.good, end.held), (128.0, 0, 0));
    assert_eq!(read_gpu_plan(&lab.path("static/plan-cuda.json")).unwrap().loss_scale, fixed);
    // It goes on with it, told or not, and with no other.
    let mut far = Far { stop_at: Some(STEPS_PER_EPOCH + 1), ..Far::default() };
    train(&config, &with("stopped", fixed), &mut far).unwrap_err();
    let resume = |loss_scale| Options { resume: Some(lab.path("stopped")), ..with("stopped", loss_scale) };
    let refused = train(&config, &resume(Some(LossScale::Static(64.0))), &mut Far::default()).unwrap_err();
    assert!(
        refused.exit_code() == 2 && refused.to_string().contains("is for 128; leave --loss-scale out"),
        "{refused}"
    );
    train(&config, &resume(None), &mut Far::default()).unwrap();
    lab.assert_same_end("stopped", "static", "stopped");

    // So large a scale overflows in every step: each is left out, and counted.
    let summary = train(&config, &with("held", Some(LossScale::Static(16777216.0))), &mut Far::default()).unwrap();
    assert_eq!((summary.held_steps, summary.steps), (2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH));
    // They stay counted where nothing overflows, and the scale waits for the run's return.
    let mut far = Far { stop_at: Some(STEPS_PER_EPOCH), ..Far::default() };
    train(&config, &with("moved", Some(LossScale::Static(16777216.0))), &mut far).unwrap_err();
    let left = scaling("moved").unwrap();
    let summary = train(&config, &lab.resume_options("moved", 1), &mut Far::default()).unwrap();
    assert_eq!((summary.held_steps, left.held, scaling("moved")), (STEPS_PER_EPOCH, STEPS_PER_EPOCH, Some(left)));
}

/// What a network would hold is known without a device that has room for it.
#[test]
fn sizes_without_memory() {
    let graph = models::resnet(8, 4, 1, CLASSES, SIDE).unwrap();
    let open = || Emulated::new(Order::Ascending).unwrap();
    for precision in Precision::ALL {
        let real = Net::new(&graph, &[], 8, |spec| GpuBackend::new(open(), spec, precision, None)).unwrap();
        let sizes =
            Net::new(&graph, &[], 8, |spec| GpuBackend::new(SizesOnly::of(&open()), spec, precision, None)).unwrap();
        assert_eq!(sizes.backend().bytes(), real.backend().bytes());
        assert_eq!(sizes.backend().plan(), real.backend().plan());
        assert!(sizes.backend().update().is_err(), "nothing runs");
    }
}
