//! Same seed, same bytes: for any number of threads, and however often a run is stopped or killed and gone on with.

mod data_support;
mod support;

use sparse_engine::Error;
use sparse_engine::checkpoint::Checkpoint;
use sparse_engine::report::Split;
use sparse_engine::train::{EpochInfo, Observer, StartInfo, StepInfo, train};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use support::*;

const LAST: &str = "last.safetensors";

fn stopped(result: sparse_engine::Result<sparse_engine::report::Summary>) -> u64 {
    match result {
        Err(Error::Stopped { step, path, .. }) => {
            assert_eq!(Checkpoint::load(&path).unwrap().meta.progress.step, step);
            step
        }
        other => panic!("wanted a stop, got {other:?}"),
    }
}

#[test]
fn any_number_of_threads_gives_the_same_files() {
    let lab = Lab::new();
    for threads in ["1", "2", "3"] {
        run(lab.train(threads).args(["--threads", threads, "--quiet"])).ok();
        lab.assert_same_end(threads, "1", &format!("{threads} threads"));
    }
    // The masks matter, the runs above are no constant: another seed is another file.
    run(lab.train("other").args(["--threads", "1", "--set", "seed.mask=4"])).ok();
    assert_ne!(lab.bytes("other/last.safetensors"), lab.bytes("1/last.safetensors"));
}

#[test]
fn stopped_at_each_step_and_resumed_with_other_threads() {
    let lab = Lab::new();
    let config = lab.config(&["epochs=2", "schedule.milestones=[1]"]);
    train(&config, &lab.options("whole", 1), &mut Watch::default()).unwrap();
    for k in 1..=2 * STEPS_PER_EPOCH {
        let run = format!("stop{k}");
        let threads = [2, 3, 1];
        assert_eq!(stopped(train(&config, &lab.options(&run, 1), &mut Watch::stopping_at(k))), k);
        assert_eq!(lab.metrics(&run).iter().filter(|r| r.step == k && r.split == Split::Train).count(), 1, "step {k}");
        let mut watch = Watch::default();
        train(&config, &lab.resume_options(&run, threads[k as usize % 3]), &mut watch).unwrap();
        assert_eq!(watch.epochs, 2 - (k - 1) / STEPS_PER_EPOCH, "each epoch ends once");
        lab.assert_same_end(&run, "whole", &format!("stopped at step {k}"));
    }
    // Stopped at every single step, one after the other.
    stopped(train(&config, &lab.options("crawl", 1), &mut Watch::stopping_at(1)));
    for k in 2..=2 * STEPS_PER_EPOCH {
        assert_eq!(stopped(train(&config, &lab.resume_options("crawl", 2), &mut Watch::stopping_at(k))), k);
    }
    train(&config, &lab.resume_options("crawl", 1), &mut Watch::default()).unwrap();
    lab.assert_same_end("crawl", "whole", "stopped at every step");
}

/// Ends the run without a word at a step, or at the end of an epoch: after its checkpoints and before the next step.
struct Crash {
    at_step: u64,
    at_epoch: u64,
}

impl Observer for Crash {
    fn start(&mut self, _: &StartInfo) {}
    fn step(&mut self, p: &StepInfo) {
        if p.step == self.at_step {
            resume_unwind(Box::new("crash")); // a panic without the message on stderr
        }
    }
    fn epoch(&mut self, e: &EpochInfo) {
        if e.epoch == self.at_epoch {
            resume_unwind(Box::new("crash"));
        }
    }
    fn finish(&mut self, _: &sparse_engine::report::Summary) {}
    fn stop_requested(&self) -> bool {
        false
    }
}

#[test]
fn a_crash_goes_on_from_the_newest_checkpoint() {
    let lab = Lab::new();
    let config = lab.config(&["epochs=3", "schedule.milestones=[2]"]);
    train(&config, &lab.options("whole", 2), &mut Watch::default()).unwrap();
    let epochs = [1, 2, 3].map(|e| (0, e, e * STEPS_PER_EPOCH));
    for (at_step, at_epoch, newest) in [(9, 0, 8), (16, 0, 8), (17, 0, 16), (24, 0, 16)].into_iter().chain(epochs) {
        let run = format!("crash{at_step}-{at_epoch}");
        let crash = AssertUnwindSafe(|| train(&config, &lab.options(&run, 2), &mut Crash { at_step, at_epoch }));
        catch_unwind(crash).map(drop).unwrap_err();
        let checkpoint = Checkpoint::load(&lab.path(&run).join(LAST)).unwrap();
        assert_eq!(checkpoint.meta.progress.step, newest, "{run}");
        // A best checkpoint newer than the last one: killed between the two. The epoch runs again and makes it anew.
        std::fs::write(lab.path(&run).join("best.safetensors.tmp"), "cut off").unwrap();
        train(&config, &lab.resume_options(&run, 1), &mut Watch::default()).unwrap();
        let _ = std::fs::remove_file(lab.path(&run).join("best.safetensors.tmp"));
        lab.assert_same_end(&run, "whole", &run);
    }
}

/// A run that writes a checkpoint after each step.
fn spawn_slow(lab: &Lab, out: &str, threads: &str) -> Child {
    lab.train(out).args(["--threads", threads, "--checkpoint-every", "0.000001"]).spawn().unwrap()
}

/// Waits until the run has recorded `step`.
fn wait_for(lab: &Lab, out: &str, step: u64, child: &mut Child) {
    let path = lab.path(out).join("metrics.jsonl");
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if step == 0 || text.contains(&format!("\"step\":{step},")) || child.try_wait().unwrap().is_some() {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "step {step} never comes");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A run that `signal` met after step `step` and some microseconds: it is sent again to a fresh run where the first one had
/// ended before, as it may on a busy machine.
fn interrupted(lab: &Lab, out: &str, threads: &str, step: u64, delay_us: u64, signal: &str) -> Outcome {
    for _ in 0..10 {
        let _ = std::fs::remove_dir_all(lab.path(out));
        let mut child = spawn_slow(lab, out, threads);
        wait_for(lab, out, step, &mut child);
        std::thread::sleep(Duration::from_micros(delay_us));
        send(&child, signal);
        let outcome = finish(child);
        if outcome.code != Some(0) {
            return outcome;
        }
    }
    panic!("ten runs ended before the signal reached them")
}

fn send(child: &Child, signal: &str) {
    let done = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).output().unwrap();
    assert!(done.status.success() || String::from_utf8_lossy(&done.stderr).contains("No such process"), "{done:?}");
}

#[test]
fn killed_at_random_steps_and_resumed() {
    let lab = Lab::new();
    run(lab.train("whole").args(["--threads", "1"])).ok();
    for k in 0..20 {
        let (out, threads) = (format!("kill{k}"), ["1", "2", "3"][k as usize % 3]);
        let (step, delay_us) = (hash(k) % (STEPS - 4), hash(k + 100) % 5000);
        let outcome = interrupted(&lab, &out, threads, step, delay_us, "KILL");
        assert_eq!(outcome.code, None, "{outcome:?}");
        let what = format!("killed after step {step} and {delay_us} us");
        if lab.path(&out).join(LAST).exists() {
            Checkpoint::load(&lab.path(&out).join(LAST)).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        let other = ["2", "3", "1"][k as usize % 3];
        run(lab.train(&out).args(["--resume", "auto", "--threads", other])).ok();
        lab.assert_same_end(&out, "whole", &what);
    }
}

#[test]
#[cfg(unix)]
fn signals_stop_with_a_checkpoint() {
    let lab = Lab::new();
    run(lab.train("whole").args(["--threads", "1"])).ok();
    for (signal, step) in [("TERM", 3), ("USR1", 15), ("INT", 21)] {
        let o = interrupted(&lab, signal, "2", step, 0, signal);
        assert_eq!(o.code, Some(75), "{o:?}");
        let at = Checkpoint::load(&lab.path(signal).join(LAST)).unwrap().meta.progress.step;
        assert!(at >= step && o.err.starts_with(&format!("stopped at step {at}; checkpoint written to ")), "{o:?}");
        let advice = format!("--resume {}\n", lab.path(signal).display());
        assert!(o.err.ends_with(&advice) && o.err.lines().count() == 1, "{o:?}");
        assert!(!lab.path(signal).join("summary.json").exists(), "a summary of a run that has not ended");
        run(lab.resume(signal).args(["--threads", "3"])).ok();
        lab.assert_same_end(signal, "whole", signal);
    }
}

#[test]
#[cfg(unix)]
fn a_second_signal_aborts() {
    let lab = Lab::new();
    // One step of this takes long enough for two signals.
    let big = (vec![100; 600 * 784].into_iter().enumerate().map(|(i, v): (usize, u8)| v + (i % 97) as u8).collect(), {
        (0..600).map(|i| (i % 10) as u8).collect::<Vec<u8>>()
    });
    std::fs::write(lab.path("big.npz"), npz_of(&big, &big, 28, 28)).unwrap();
    let sets = ["model=resnet20", "width=32", "method=dense", "batch_size=512"].map(|s| format!("--set={s}"));
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut c = lab.train(signal);
        let child = c.args(&sets).arg("--data").arg(lab.path("big.npz")).spawn().unwrap();
        let started = Instant::now();
        while !lab.path(signal).join("metrics.jsonl").exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "no run begins");
            std::thread::sleep(Duration::from_millis(1));
        }
        send(&child, signal);
        std::thread::sleep(Duration::from_millis(20));
        send(&child, signal);
        let o = finish(child);
        assert_eq!(o.code, Some(code), "{o:?}");
        assert!(!lab.path(signal).join(LAST).exists(), "it ended at once, before any step");
    }
}

#[test]
fn auto_starts_goes_on_and_repeats_nothing() {
    let lab = Lab::new();
    run(lab.train("whole").args(["--threads", "1", "--resume", "auto"])).ok();
    assert_eq!(lab.summary("whole").steps, STEPS);
    // What a run leaves that was killed before its first checkpoint is begun anew.
    std::fs::create_dir(lab.path("debris")).unwrap();
    std::fs::write(lab.path("debris/config.toml"), "# of an interrupted start").unwrap();
    std::fs::write(lab.path("debris/metrics.jsonl"), lab.bytes("whole/metrics.jsonl")).unwrap();
    std::fs::write(lab.path("debris/last.safetensors.tmp"), "cut off").unwrap();
    let fresh = run(lab.train("debris").args(["--resume", "auto"])).ok();
    assert!(!fresh.out.contains("resumed"), "{fresh:?}");
    lab.assert_same_end("debris", "whole", "begun anew");

    // A finished run has nothing left to do: its results are measured anew and stay.
    let (last, metrics) = (lab.bytes("whole/last.safetensors"), lab.bytes("whole/metrics.jsonl"));
    let results = lab.summary("whole").results;
    for again in [&mut lab.resume("whole"), lab.train("whole").args(["--resume", "auto"])] {
        let o = run(again).ok();
        assert!(o.out.contains(&format!("resumed    at step {STEPS} of {STEPS}")), "{o:?}");
        assert_eq!(
            (lab.bytes("whole/last.safetensors"), lab.bytes("whole/metrics.jsonl")),
            (last.clone(), metrics.clone())
        );
        assert_eq!((lab.summary("whole").results, lab.summary("whole").steps), (results, STEPS));
    }
    let s = lab.summary("whole");
    assert!(s.train_time_s > 0.0 && s.images_per_s.is_finite(), "{s:?}");
}

#[test]
fn resume_is_refused_where_the_run_would_not_be_the_same() {
    let lab = Lab::new();
    let config = lab.config(&[]);
    stopped(train(&config, &lab.options("run", 1), &mut Watch::stopping_at(10)));
    let before: Vec<_> = lab.files("run").iter().map(|f| lab.bytes(&format!("run/{f}"))).collect();
    let unchanged = || lab.files("run").iter().map(|f| lab.bytes(&format!("run/{f}"))).collect::<Vec<_>>() == before;

    run(lab.train("run").args(["--resume", "auto", "--set", "lr=0.2", "--seed", "4"]))
        .refused(2, &["another configuration", "lr: 0.1, 0.2", "seed.init: 3, 4"]);
    run(lab.resume("run").args(["--set", "lr=0.2"])).refused(2, &["--set", "a run goes on as it began"]);
    run(&mut lab.resume("nothing")).refused(1, &["no such checkpoint", "--resume wants the directory of a run"]);
    run(&mut lab.train("run")).refused(2, &["not empty", "--resume"]);
    run(program(&["train", "--resume", "auto"]).current_dir(lab.path(""))).refused(2, &["--resume auto needs --out"]);
    assert!(unchanged());

    // Other images at the same path.
    let data = lab.bytes("data.npz");
    std::fs::write(lab.data(), npz_of(&images(TRAIN, 1), &images(TEST, 3), SIDE, SIDE)).unwrap();
    run(&mut lab.resume("run")).refused(1, &["last.safetensors", "other images", "checksums differ"]);
    std::fs::remove_file(lab.data()).unwrap();
    run(&mut lab.resume("run")).refused(1, &["data.npz: no such file"]);
    std::fs::write(lab.data(), data).unwrap();
    assert!(unchanged());

    // Another network or other masks under this run's name: the checkpoint of another run, copied in.
    for (name, set) in [("wider", "width=8"), ("deeper", "model=resnet14"), ("masked", "seed.mask=9")] {
        stopped(train(&lab.config(&[set]), &lab.options(name, 1), &mut Watch::stopping_at(2)));
        std::fs::copy(lab.path(name).join(LAST), lab.path("run").join(LAST)).unwrap();
        run(&mut lab.resume("run"))
            .refused(1, &["last.safetensors", "another configuration", set.split('=').next().unwrap()]);
    }
    // A damaged one, a cut one, none at all.
    let good = &before[lab.files("run").iter().position(|f| f == LAST).unwrap()];
    let mut damaged = good.clone();
    let at = damaged.len() - 5;
    damaged[at] ^= 1;
    for (bytes, why) in [(&damaged[..], "checksum"), (&good[..good.len() / 2], "not a whole"), (b"", "not a whole")] {
        std::fs::write(lab.path("run").join(LAST), bytes).unwrap();
        run(&mut lab.resume("run")).refused(1, &["last.safetensors: ", why]);
    }
    std::fs::write(lab.path("run").join(LAST), good).unwrap();
    assert!(unchanged());
    run(&mut lab.resume("run")).ok();
    assert_eq!(lab.summary("run").steps, STEPS);
}
