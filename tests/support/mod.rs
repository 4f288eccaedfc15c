//! A tiny network on tiny learnable images, and the program run on them as a user runs it.
#![allow(dead_code)] // each test binary uses a part

use super::data_support::{idx, npy, npz};
use sparse_engine::config::{Config, Overrides, resolve};
use sparse_engine::report::{Record, Score, Split, Summary, read_metrics};
use sparse_engine::train::{Asked, Device, EpochInfo, Evaluation, Observer, OnDevice, Options, StartInfo, StepInfo};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Textures that neither a flip nor a shift turns into each other.
pub const CLASSES: usize = 4;
/// Rows and columns of an image.
pub const SIDE: usize = 8;

/// 64 bits that look random, a function of `n` alone.
pub fn hash(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `n` grey images and their labels: stripes along rows, along columns, a checkerboard, or nothing, under noise.
pub fn images(n: usize, seed: u64) -> (Vec<u8>, Vec<u8>) {
    let labels: Vec<u8> = (0..n).map(|i| (hash(seed + 31 * i as u64) % CLASSES as u64) as u8).collect();
    let pixel = |i: usize, p: usize| {
        let (row, column) = (p / SIDE, p % SIDE);
        let bright = match labels[i] {
            0 => row % 2 == 0,
            1 => column % 2 == 0,
            2 => (row + column) % 2 == 0,
            _ => false,
        };
        let noise = hash(seed ^ ((i * SIDE * SIDE + p) as u64) << 8) % 80;
        if bright { 120 + noise as u8 } else { 40 + noise as u8 }
    };
    let pixels = (0..n).flat_map(|i| (0..SIDE * SIDE).map(move |p| (i, p))).map(|(i, p)| pixel(i, p)).collect();
    (pixels, labels)
}

/// An .npz of square grey images.
pub fn npz_of(train: &(Vec<u8>, Vec<u8>), test: &(Vec<u8>, Vec<u8>), h: usize, w: usize) -> Vec<u8> {
    let x = |set: &(Vec<u8>, Vec<u8>)| npy("|u1", &format!("({}, {h}, {w})", set.1.len()), &set.0);
    let y = |set: &(Vec<u8>, Vec<u8>)| npy("|u1", &format!("({},)", set.1.len()), &set.1);
    npz(&[("x_train", x(train)), ("y_train", y(train)), ("x_test", x(test)), ("y_test", y(test))], false)
}

/// The same as four IDX files in `folder`.
pub fn write_idx(folder: &Path, train: &(Vec<u8>, Vec<u8>), test: &(Vec<u8>, Vec<u8>)) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, (x, y)) in [("train", train), ("t10k", test)] {
        let dims = [y.len() as u32, SIDE as u32, SIDE as u32];
        std::fs::write(folder.join(format!("{name}-images-idx3-ubyte")), idx(&dims, x)).unwrap();
        std::fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), idx(&dims[..1], y)).unwrap();
    }
}

/// Training images of [`Lab`], its validation images among them.
pub const TRAIN: usize = 270;
/// Validation images.
pub const VAL: usize = 40;
/// Test images.
pub const TEST: usize = 75;
/// Steps of a run: 5 epochs of 230 images in batches of 32, the last one ragged.
pub const STEPS: u64 = 5 * STEPS_PER_EPOCH;
pub const STEPS_PER_EPOCH: u64 = 8;

/// A folder with images and a configuration, in which runs are made.
pub struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Lab { folder: tempfile::tempdir().unwrap() };
        std::fs::write(lab.data(), npz_of(&images(TRAIN, 1), &images(TEST, 2), SIDE, SIDE)).unwrap();
        let text = format!(
            "model = \"resnet8\"\nwidth = 4\ndata = {:?}\nvalidation = {VAL}\nselection = \"best-val\"\nmethod = \"erk\"\n\
             sparsity = 0.7\nepochs = 5\nbatch_size = 32\nlr = 0.1\nlabel_smoothing = 0.05\nwarmup_epochs = 0.5\nseed = 3\n\
             [schedule]\nkind = \"multi-step\"\nmilestones = [3]\ngamma = 0.1\n\
             [augment]\npad = 1\npad_mode = \"reflect\"\nflip = true\n",
            lab.data()
        );
        std::fs::write(lab.config_file(), text).unwrap();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data.npz")
    }

    pub fn config_file(&self) -> PathBuf {
        self.path("tiny.toml")
    }

    /// `sparse-engine train` with the configuration, into `out`.
    pub fn train(&self, out: &str) -> Command {
        let mut c = program(&["train", "--config"]);
        c.arg(self.config_file()).arg("--out").arg(self.path(out)).current_dir(self.folder.path());
        c
    }

    /// `sparse-engine train --resume RUN`.
    pub fn resume(&self, run: &str) -> Command {
        let mut c = program(&["train", "--resume"]);
        c.arg(self.path(run)).current_dir(self.folder.path());
        c
    }

    /// The configuration with more settings, as the program resolves it.
    pub fn config(&self, set: &[&str]) -> Config {
        let overrides = Overrides { set: set.iter().map(|s| s.to_string()).collect(), ..Overrides::default() };
        resolve(None, Some(&self.config_file()), &overrides).unwrap().config
    }

    /// Accuracy and loss of a run's last checkpoint on its own data, with the plan of its run.
    pub fn evaluate(&self, run: &str, split: Split, batch: usize, threads: usize, on: OnDevice) -> Score {
        let path = self.path(run).join("last.safetensors");
        let asked = &Asked::default();
        let evaluation = Evaluation { checkpoint: &path, data: None, split, batch, threads, plan: None, on, asked };
        evaluation.run().unwrap().measured.score
    }

    /// Options for the library; the directory is made.
    pub fn options(&self, out: &str, threads: usize) -> Options {
        let out = self.path(out);
        std::fs::create_dir_all(&out).unwrap();
        let on = OnDevice { device: Device::Cpu, ..OnDevice::default() };
        Options {
            out,
            resume: None,
            plan: None,
            on,
            threads,
            checkpoint_every: None,
            watch_every: Options::WATCH_EVERY,
            command_line: vec![],
        }
    }

    /// Options to go on with the run in `out`.
    pub fn resume_options(&self, out: &str, threads: usize) -> Options {
        Options { resume: Some(self.path(out)), ..self.options(out, threads) }
    }

    pub fn bytes(&self, file: &str) -> Vec<u8> {
        let path = self.path(file);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn metrics(&self, run: &str) -> Vec<Record> {
        read_metrics(&self.path(run).join("metrics.jsonl")).unwrap()
    }

    pub fn summary(&self, run: &str) -> Summary {
        Summary::load(&self.path(run).join("summary.json")).unwrap()
    }

    /// Names of the files of a run, sorted.
    pub fn files(&self, run: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(run)).unwrap();
        let names: BTreeSet<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.into_iter().collect()
    }

    /// Checkpoints and results of `run` are those of the uninterrupted run `whole`, no step is recorded twice on one split,
    /// none that `whole` recorded is missing or different, and no temporary file is left.
    pub fn assert_same_end(&self, run: &str, whole: &str, what: &str) {
        for file in ["last.safetensors", "best.safetensors", "plan.json"] {
            let same = self.bytes(&format!("{run}/{file}")) == self.bytes(&format!("{whole}/{file}"));
            assert!(same, "{what}: {file} differs from the uninterrupted run's");
        }
        assert_eq!(self.summary(run).results, self.summary(whole).results, "{what}");
        assert_eq!(self.files(run), self.files(whole), "{what}");
        let records = self.metrics(run);
        let mut seen = BTreeSet::new();
        for r in &records {
            assert!(seen.insert((r.step, format!("{:?}", r.split))), "{what}: recorded twice: {r:?}");
        }
        assert!(records.is_sorted_by_key(|r| (r.step, r.epoch)), "{what}: records out of order");
        assert!(records.is_sorted_by(|a, b| a.time_s <= b.time_s), "{what}: time runs backwards");
        for w in self.metrics(whole) {
            let found = records.iter().find(|r| (r.step, r.split) == (w.step, w.split));
            let same = found.is_some_and(|r| (r.epoch, r.score(), r.lr) == (w.epoch, w.score(), w.lr));
            assert!(same, "{what}: wanted {w:?}, got {found:?}");
        }
    }
}

/// `--set` each of these.
pub fn set_all<S: AsRef<str>>(c: &mut Command, set: &[S]) {
    for s in set {
        c.args(["--set", s.as_ref()]);
    }
}

/// The program, with nothing of this machine's terminal or GPUs.
pub fn program(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_sparse-engine"));
    c.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c.env_remove("NO_COLOR").env("CUDA_VISIBLE_DEVICES", "");
    c
}

/// How the program ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn run(c: &mut Command) -> Outcome {
    finish(c.spawn().unwrap())
}

/// Waits for the end; a hang is a failure, not a hang.
pub fn finish(mut child: Child) -> Outcome {
    let read = |from: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            from.map(|mut from| from.read_to_end(&mut text));
            String::from_utf8(text).expect("output is no UTF-8")
        })
    };
    let out = read(child.stdout.take().map(|s| Box::new(s) as _));
    let err = read(child.stderr.take().map(|s| Box::new(s) as _));
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > Duration::from_secs(60) => {
                child.kill().unwrap();
                panic!("the program hangs");
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let outcome = Outcome { code: status.code(), out: out.join().unwrap(), err: err.join().unwrap() };
    assert!(!outcome.err.contains("panicked"), "{outcome:?}");
    outcome
}

impl Outcome {
    pub fn ok(self) -> Self {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self
    }

    /// A refusal: this exit code, each fault one line after "error: ", and every one of `wanted` in it.
    pub fn refused(self, code: i32, wanted: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.err.is_empty() && self.err.lines().all(|l| l.starts_with("error: ")), "{self:?}");
        wanted.iter().for_each(|w| assert!(self.err.contains(w), "no {w:?} in {self:?}"));
        self
    }
}

/// Watches nothing; asks to stop at a step.
#[derive(Default)]
pub struct Watch {
    pub stop_at: Option<u64>,
    pub step: u64,
    pub epochs: u64,
}

impl Watch {
    pub fn stopping_at(step: u64) -> Self {
        Watch { stop_at: Some(step), ..Watch::default() }
    }
}

impl Observer for Watch {
    fn start(&mut self, info: &StartInfo) {
        self.step = info.resumed_at_step.unwrap_or(0);
    }
    fn step(&mut self, p: &StepInfo) {
        assert_eq!(p.step, self.step + 1, "steps are counted one by one");
        self.step = p.step;
    }
    fn epoch(&mut self, _: &EpochInfo) {
        self.epochs += 1;
    }
    fn finish(&mut self, _: &Summary) {}
    fn stop_requested(&self) -> bool {
        self.stop_at == Some(self.step)
    }
}
