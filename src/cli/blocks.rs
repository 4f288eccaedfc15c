//! What is printed about a run, as text: the block at its start, a line an epoch, the block at its end.

use super::format::{bytes, clock, count, percent, share, si, time};
use crate::config::Selection;
use crate::report::{EpochScore, Score, Summary};
use crate::sparsity::Method;
use crate::train::{EpochInfo, StartInfo, StepInfo};
use std::fmt::Write as _;

/// Beside the bar; with it within 80 columns.
pub(super) fn step_line(p: &StepInfo) -> String {
    let rate = p.images_per_s.max(0.0).round() as u64;
    let (accuracy, left) = (percent(p.accuracy, 1), clock(p.eta_s));
    format!("step {}/{} {rate} img/s loss {:.3} acc {accuracy} {left} left", p.step, p.steps, p.loss)
}

/// What is known before the first step.
pub(super) fn start_block(i: &StartInfo) -> String {
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
                format!(
                    "{}, {} asked for: {kept} of {of} weights kept, {}",
                    i.method,
                    i.density_target,
                    short(i.density)
                )
            }
        },
    );
    if let Some(pattern) = &i.pattern {
        let (blocks, masked, weights) = i.in_blocks;
        line(
            "pattern",
            match (masked, blocks) {
                (0, _) => format!("{pattern}, nothing to keep in blocks"),
                (_, 0) => format!("{pattern} fits no layer: all are unstructured"),
                _ => format!(
                    "{pattern} in {blocks} of {masked} masked layers, {} of the kept weights",
                    share(weights, i.nnz)
                ),
            },
        );
    }
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
    if let (layers, changed @ 1..) = i.planned {
        line("plan", format!("{changed} of {layers} layers run otherwise than by default"));
    }
    line("run", i.out.display().to_string());
    text + "\n"
}

/// One finished epoch.
pub(super) fn epoch_line(e: &EpochInfo) -> String {
    let width = e.epochs.to_string().len();
    let mut text = format!("epoch {:width$}/{}", e.epoch, e.epochs);
    let mut score = |name: &str, s: &Score| {
        let _ = write!(text, "  {name} loss {:.4} acc {}", s.loss, percent(s.accuracy, 2));
    };
    score("train", &e.train);
    if let Some(val) = &e.val {
        score("val", val);
    }
    if let Some(test) = &e.test {
        score("test", test);
    }
    let rate = count(e.images_per_s.max(0.0).round() as u64);
    let _ = writeln!(text, "  lr {}  {rate} img/s  {}", short(e.lr), clock(e.elapsed_s));
    text
}

/// At most five significant digits: 0.1 * 0.1 * 0.1 is not written 0.0010000000000000002.
fn short(v: f64) -> String {
    format!("{v:.4e}").parse::<f64>().map_or_else(|_| v.to_string(), |v| v.to_string())
}

/// Each result with how its epoch was chosen, the one that the configuration selects first.
fn results(s: &Summary) -> Vec<String> {
    let r = &s.results;
    let mut all = [
        (Selection::Last, "at the last epoch,", Some(r.test_last)),
        (Selection::BestVal, "at the best validation accuracy, epoch", r.test_at_best_val),
        (Selection::BestTest, "SELECTED ON THE TEST IMAGES, epoch", r.test_at_best_test),
    ];
    all.sort_by_key(|(selection, ..)| *selection != s.config.selection);
    let line = |how: &str, e: EpochScore| {
        let Score { accuracy, loss, .. } = e.score;
        format!("test accuracy {}, loss {loss:.4} ({how} {} of {})", percent(accuracy, 2), e.epoch, s.epochs)
    };
    all.into_iter().filter_map(|(_, how, e)| Some(line(how, e?))).collect()
}

/// The result alone.
pub(super) fn result_line(s: &Summary) -> String {
    format!("{}  {}\n", results(s).remove(0), s.run.display())
}

/// The result, and sparse against dense.
pub(super) fn end_block(s: &Summary) -> String {
    let mut text = String::from("\n");
    for line in results(s) {
        text += &line;
        text += "\n";
    }
    let images = count(s.results.test_last.score.n);
    let _ = writeln!(text, "on {images} test images, {}, seed {}", s.data.source, seeds(s));
    if s.held_steps > 0 {
        let (held, steps) = (count(s.held_steps), count(s.steps));
        let _ =
            writeln!(text, "{held} of {steps} steps left out: a gradient overflowed; a smaller --loss-scale avoids it");
    }
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
    row("FLOPs an image, forward", s.flops.flops_sparse, s.flops.flops_dense, si);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn start() -> StartInfo {
        StartInfo {
            model: "resnet20".into(),
            device: "cpu avx2, 2 threads".into(),
            planned: (22, 0),
            data: "builtin:fashion-mnist (npz)".into(),
            out: "runs/x".into(),
            method: "erk".into(),
            density_target: 0.1,
            density: 27_061.0 / 270_608.0,
            params: 272_186,
            stored: 28_639,
            maskable: 270_608,
            nnz: 27_061,
            pattern: None,
            in_blocks: (0, 20, 0),
            flops_dense: 62_000_000,
            flops_sparse: 10_700_000,
            image: crate::data::ImageShape { c: 1, h: 28, w: 28 },
            classes: 10,
            train_images: 7000,
            val_images: 1000,
            test_images: 2000,
            epochs: 20,
            steps_per_epoch: 55,
            resumed_at_step: None,
        }
    }

    #[test]
    fn the_start_says_what_is_trained_on_what() {
        let text = start_block(&start());
        for part in [
            "resnet20: 272,186 parameters; images of 1 x 28 x 28, 10 classes",
            "erk, 0.1 asked for: 27,061 of 270,608 weights kept, 0.1\n",
            "28,639 stored of 272,186 (10.5 %)",
            "10.7 M of 62.0 M an image, forward (17.3 %)",
            "7,000 training, 1,000 validation, 2,000 test images",
            "20 epochs of 55 steps",
            "cpu avx2, 2 threads",
            "runs/x",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("resumed") && !text.contains("\nplan ") && !text.contains("\npattern "));
        let blocks = |layers, masked| {
            let in_blocks = (layers, masked, 25_600);
            start_block(&StartInfo { pattern: Some("block:16x16".into()), in_blocks, ..start() })
        };
        let wanted = "\npattern    block:16x16 in 5 of 20 masked layers, 94.6 % of the kept weights\n";
        assert!(blocks(5, 20).contains(wanted), "{}", blocks(5, 20));
        assert!(blocks(0, 20).contains("\npattern    block:16x16 fits no layer: all are unstructured\n"));
        assert!(blocks(0, 0).contains("\npattern    block:16x16, nothing to keep in blocks\n"));
        let text = start_block(&StartInfo { planned: (22, 5), ..start() });
        assert!(text.contains("\nplan       5 of 22 layers run otherwise than by default\n"), "{text}");
        let text = start_block(&StartInfo { resumed_at_step: Some(100), val_images: 0, nnz: 270_608, ..start() });
        assert!(text.contains("at step 100 of 1,100") && !text.contains("validation"), "{text}");
        assert!(text.contains("nothing pruned"), "{text}");
    }

    #[test]
    fn lines_while_it_runs() {
        let score = |accuracy| Score { loss: 0.5, accuracy, n: 10 };
        let e = EpochInfo {
            epoch: 3,
            epochs: 20,
            lr: 0.1 * 0.1 * 0.1,
            train: score(0.5),
            val: None,
            test: Some(score(0.869)),
            elapsed_s: 75.0,
            images_per_s: 1420.4,
        };
        let line = "epoch  3/20  train loss 0.5000 acc 50.00 %  test loss 0.5000 acc 86.90 %  lr 0.001  \
                    1,420 img/s  1:15\n";
        assert_eq!(epoch_line(&e), line);
        let p = StepInfo {
            epoch: 1,
            epochs: 2,
            step: 7,
            steps: 126,
            images_per_s: f64::INFINITY,
            loss: 2.3,
            accuracy: 0.1,
            eta_s: f64::NAN,
        };
        assert!(step_line(&p).starts_with("step 7/126 ") && step_line(&p).ends_with("? left"), "{}", step_line(&p));
    }

    #[test]
    fn the_end_puts_sparse_beside_dense() {
        let text = end_block(&sample());
        let row = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
            line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(row("parameters"), ["parameters", "28,639", "272,186", "10.5 %"]);
        assert_eq!(row("FLOPs"), ["FLOPs an image, forward", "10.7 M", "62.0 M", "17.3 %"]);
        assert_eq!(row("operand copies"), ["operand copies", "5.00 KiB", "5.00 MiB", "0.1 %"]);
        assert_eq!(row("memory, total"), ["memory, total", "21.0 KiB", "21.0 MiB", "0.1 %"]);
        assert_eq!(row("time in"), ["time in training steps", "1 min 43 s", "not measured", "-"]);
        assert!(text.contains("--set method=dense") && text.contains("run directory: runs/x\n"), "{text}");
        assert!(text.contains("test accuracy 86.90 %, loss 0.3333 (at the last epoch, 20 of 20)\n"), "{text}");
        let mut dense = sample();
        dense.config.method = Method::Dense;
        assert!(!end_block(&dense).contains("not measured"));
    }

    #[test]
    fn what_was_selected_comes_first_and_test_selection_is_marked() {
        let mut s = sample();
        assert!(result_line(&s).starts_with("test accuracy 86.90 %, loss 0.3333 (at the last epoch, 20 of 20)"));
        let at = |epoch, accuracy| EpochScore { epoch, score: Score { loss: 0.4, accuracy, n: 2000 } };
        s.results.test_at_best_val = Some(at(17, 0.87));
        assert!(result_line(&s).contains("last epoch"), "validation alone selects nothing");
        s.config.selection = Selection::BestVal;
        assert!(result_line(&s).contains("87.00 %, loss 0.4000 (at the best validation accuracy, epoch 17 of 20)"));
        assert_eq!(results(&s).len(), 2);
        s.results.test_at_best_test = Some(at(18, 0.88));
        s.config.selection = Selection::BestTest;
        assert!(result_line(&s).contains("88.00 %, loss 0.4000 (SELECTED ON THE TEST IMAGES, epoch 18 of 20)"));
    }
}
