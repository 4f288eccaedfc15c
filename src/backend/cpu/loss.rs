//! Softmax cross-entropy with label smoothing, in f64: a few thousand exponentials a step.

use super::layout::{LANES, View, blocks};
use super::workers::{Shared, Workers};
use crate::backend::BatchLoss;

/// Loss of `n` images; `images` is scratch of at least `n`. Overwrites `dlogits` with the gradient of the mean loss, and
/// with zeros in the lanes beyond `n`.
pub(super) fn cross_entropy(
    workers: &Workers,
    logits: View,
    labels: &[u32],
    smoothing: f64,
    dlogits: Option<View>,
    images: &mut [(f64, bool)],
    n: usize,
) -> BatchLoss {
    let classes = logits.channels();
    let out = Shared::new(images);
    workers.run(blocks(n), n * classes, |_, nb| {
        for lane in 0..LANES {
            let i = nb * LANES + lane;
            // SAFETY: a task reads and writes its own block and images.
            unsafe {
                let gradient = |c: usize| dlogits.map(|d| d.plane_at(nb, c).add(lane));
                if i < n {
                    let logit = |c: usize| f64::from(*logits.plane_at(nb, c).add(lane));
                    *out.at(i) = image(classes, logit, labels[i], smoothing, |c, g| {
                        if let Some(p) = gradient(c) {
                            *p = (g / n as f64) as f32;
                        }
                    });
                } else {
                    (0..classes).filter_map(gradient).for_each(|p| *p = 0.0);
                }
            }
        }
    });
    images[..n].iter().fold(BatchLoss::default(), |sum, &(loss, correct)| BatchLoss {
        loss_sum: sum.loss_sum + loss,
        correct: sum.correct + u64::from(correct),
    })
}

/// Loss of one image and whether its label is the (first) largest logit; hands each class' gradient to `put`.
fn image(
    classes: usize,
    logit: impl Fn(usize) -> f64,
    label: u32,
    smoothing: f64,
    mut put: impl FnMut(usize, f64),
) -> (f64, bool) {
    let label = label as usize;
    assert!(label < classes, "label {label} of {classes} classes");
    let (mut best, mut any_nan) = (0, false);
    for c in 0..classes {
        any_nan |= logit(c).is_nan();
        if logit(c) > logit(best) {
            best = c;
        }
    }
    let top = logit(best);
    let sum: f64 = (0..classes).map(|c| (logit(c) - top).exp()).sum();
    let log_sum = sum.ln();
    let even = smoothing / classes as f64;
    let mut loss = 0.0;
    for c in 0..classes {
        let log_p = logit(c) - top - log_sum;
        let target = even + if c == label { 1.0 - smoothing } else { 0.0 };
        if target != 0.0 {
            loss -= target * log_p;
        }
        put(c, log_p.exp() - target);
    }
    (loss, best == label && !any_nan)
}
