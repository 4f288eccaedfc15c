//! Whole runs on the emulated GPU: steps that are captured and replayed, what they leave in the run directory, and what a
//! run may go on with elsewhere.

mod data_support;
mod support;

use sparse_engine::backend::gpu::{LossScale, Precision};
use sparse_engine::checkpoint::Checkpoint;
use sparse_engine::config::Config;
use sparse_engine::report::{Split, Summary};
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
