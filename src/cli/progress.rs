//! What a person sees of a run: a bar on a terminal, plain lines elsewhere, or the result only.

use super::blocks::{end_block, epoch_line, result_line, start_block, step_line};
use crate::report::Summary;
use crate::train::{EpochInfo, Observer, StartInfo, StepInfo};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
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
    let template = if plain { "{prefix} {bar:8} {wide_msg}" } else { "{prefix} {bar:8.green} {wide_msg}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
