//! What a person sees of a run: a bar on a terminal, plain lines elsewhere, or the result only.

use super::format::{bytes, clock, count, percent, share, si, time};
use crate::report::{EpochScore, Score, Summary};
use crate::sparsity::Method;
use crate::train::{EpochInfo, Observer, StartInfo, StepInfo};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shows a run on standard output.
pub(super) struct Progress {
    style: Style,
    bar: Option<ProgressBar>,
    stop: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// A bar below lines: a terminal.
    Bar,
    /// A line an epoch: a file or a pipe.
    Lines,
    /// The result.
    Quiet,
}

impl Progress {
    /// Looks at where standard output goes. `stop` is what [`Observer::stop_requested`] answers.
    pub(super) fn new(quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let style = match std::io::stdout().is_terminal() {
            _ if quiet => Style::Quiet,
            true if !dumb => Style::Bar,
            _ => Style::Lines,
        };
        Progress { style, bar: None, stop }
    }

    /// Prints above the bar. A reader that went away or a full disk must not end a long run.
    fn say(&self, text: &str) {
        let print = || {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Progress {
    /// A run that stopped or failed leaves no half-drawn bar.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn start(&mut self, info: &StartInfo) {
        if self.style == Style::Quiet {
            return;
        }
        self.say(&start_block(info));
        if self.style == Style::Bar {
            let bar = ProgressBar::with_draw_target(
                Some(info.epochs.saturating_mul(info.steps_per_epoch)),
                ProgressDrawTarget::stdout(),
            );
            bar.set_style(bar_style());
            bar.set_position(info.resumed_at_step.unwrap_or(0));
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, p: &StepInfo) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("epoch {}/{}", p.epoch, p.epochs));
            bar.set_message(step_line(p));
            bar.set_position(p.step);
        }
    }

    fn epoch(&mut self, e: &EpochInfo) {
        if self.style != Style::Quiet {
            self.say(&epoch_line(e));
        }
    }

    fn finish(&mut self, s: &Summary) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let text = if self.style == Style::Quiet { result_line(s) } else { end_block(s) };
        self.say(&text);
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn bar_style() -> ProgressStyle {
    // https://no-color.org: any non-empty value.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let template = if plain { "{prefix} {bar:20} {wide_msg}" } else { "{prefix} {bar:20.green} {wide_msg}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

fn step_line(p: &StepInfo) -> String {
    format!(
        "step {}/{}  {} images/s  loss {:.4}  accuracy {}  {} left",
        p.step,
        p.steps,
        count(p.images_per_s.max(0.0).round() as u64),
        p.loss,
        percent(p.accuracy, 2),
        clock(p.eta_s)
    )
}

fn start_block(i: &StartInfo) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:11}{value}");
    };
    line("model", format!("{}: {} parameters; images of {}, {} classes", i.model, count(i.params), i.image, i.classes));
    let (kept, of) = (count(i.nnz), count(i.maskable));
    line(
        "density",
        match i.nnz == i.maskable {
            true => format!("{}, nothing pruned: {of} weights", i.method),
            false => {
                format!("{}, {} asked for: {kept} of {of} weights kept, {}", i.method, i.density_target, i.density)
            }
        },
    );
    line("parameters", format!("{} stored of {} ({})", count(i.stored), count(i.params), share(i.stored, i.params)));
    let flops = (si(i.flops_sparse), si(i.flops_dense), share(i.flops_sparse, i.flops_dense));
    line("FLOPs", format!("{} of {} an image, forward ({})", flops.0, flops.1, flops.2));
    let val = if i.val_images == 0 { String::new() } else { format!(", {} validation", count(i.val_images as u64)) };
    let (train, test) = (count(i.train_images as u64), count(i.test_images as u64));
    line("data", format!("{}: {train} training{val}, {test} test images", i.data));
    line("training", format!("{} epochs of {} steps", i.epochs, count(i.steps_per_epoch)));
    if let Some(step) = i.resumed_at_step {
        line("resumed", format!("at step {} of {}", count(step), count(i.epochs.saturating_mul(i.steps_per_epoch))));
    }
    line("device", i.device.clone());
    line("run", i.out.display().to_string());
    text + "\n"
}

fn epoch_line(e: &EpochInfo) -> String {
    let width = e.epochs.to_string().len();
    let mut text = format!("epoch {:width$}/{}", e.epoch, e.epochs);
    let mut score = |name: &str, s: &Score| {
        let _ = write!(text, "  {name} loss {:.4} accuracy {}", s.loss, percent(s.accuracy, 2));
    };
    score("train", &e.train);
    if let Some(val) = &e.val {
        score("val", val);
    }
    if let Some(test) = &e.test {
        score("test", test);
    }
    let rate = count(e.images_per_s.max(0.0).round() as u64);
    let _ = writeln!(text, "  lr {}  {rate} images/s  {}", short(e.lr), clock(e.elapsed_s));
    text
}

/// At most four significant digits: 0.1 * 0.1 * 0.1 is not written 0.0010000000000000002.
fn short(v: f64) -> String {
    format!("{v:.3e}").parse::<f64>().map_or_else(|_| v.to_string(), |v| v.to_string())
}

fn score_text(s: &EpochScore) -> String {
    format!("test accuracy {}, loss {:.4}", percent(s.score.accuracy, 2), s.score.loss)
}

/// Each result with how its epoch was chosen, the one that the configuration selects first.
fn results(s: &Summary) -> Vec<String> {
    let r = &s.results;
    let of = |name: &str, e: &EpochScore| format!("{} ({name}, epoch {} of {})", score_text(e), e.epoch, s.epochs);
    let mut lines = vec![of("last epoch", &r.test_last)];
    if let Some(e) = &r.test_at_best_val {
        lines.insert(0, of("best validation", e));
    }
    if let Some(e) = &r.test_at_best_test {
        lines.insert(0, of("SELECTED ON THE TEST IMAGES", e));
    }
    let selected = of("", &s.selected());
    if let Some(at) = lines.iter().position(|l| l.split('(').next() == selected.split('(').next()) {
        lines[..=at].rotate_right(1);
    }
    lines
}

fn result_line(s: &Summary) -> String {
    format!("{}  {}\n", results(s).remove(0), s.run.display())
}

fn end_block(s: &Summary) -> String {
    let mut text = String::from("\n");
    for line in results(s) {
        text += &line;
        text += "\n";
    }
    let images = count(s.results.test_last.score.n);
    let _ = writeln!(text, "on {images} test images, {}, seed {}", s.data.source, seeds(s));
    text += "\n";
    text += &cost_table(s);
    let _ = write!(text, "\nrun directory: {}\n", s.run.display());
    text
}

fn seeds(s: &Summary) -> String {
    let seed = s.config.seed;
    if seed.init == seed.mask && seed.init == seed.data {
        return seed.init.to_string();
    }
    format!("{} (initial values), {} (masks), {} (data)", seed.init, seed.mask, seed.data)
}

/// Sparse against dense.
fn cost_table(s: &Summary) -> String {
    let dense_run = s.config.method == Method::Dense;
    let mut rows: Vec<[String; 4]> = vec![["".into(), "sparse".into(), "dense".into(), "sparse/dense".into()]];
    let mut row = |name: &str, sparse: u64, dense: u64, show: fn(u64) -> String| {
        rows.push([name.into(), show(sparse), show(dense), share(sparse, dense)]);
    };
    row("parameters", s.params_sparse, s.params_dense, count);
    row("FLOPs an image, forward", s.flops_sparse, s.flops_dense, si);
    let (a, b) = (&s.bytes_sparse, &s.bytes_dense);
    row("values", a.values, b.values, bytes);
    row("indices", a.indices, b.indices, bytes);
    row("gradients", a.gradients, b.gradients, bytes);
    row("momentum", a.momentum, b.momentum, bytes);
    row("operand copies", a.operand_copies, b.operand_copies, bytes);
    row("activations", a.activations, b.activations, bytes);
    row("memory, total", a.total(), b.total(), bytes);
    let took = time(s.train_time_s);
    let dense_time = if dense_run { took.clone() } else { "not measured".into() };
    rows.push(["time in training steps".into(), took, dense_time, "-".into()]);
    let widths = [0, 1, 2, 3].map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for r in &rows {
        let line = format!(
            "{:w0$}  {:>w1$}  {:>w2$}  {:>w3$}",
            r[0],
            r[1],
            r[2],
            r[3],
            w0 = widths[0],
            w1 = widths[1],
            w2 = widths[2],
            w3 = widths[3]
        );
        text += line.trim_end();
        text += "\n";
    }
    if !dense_run {
        text += "(a dense run measures its time: sparse-engine train --set method=dense)\n";
    }
    text
}
