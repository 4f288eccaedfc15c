//! Is the step that will be timed right? One step of the very network, batch and threads is compared with the f64 reference.
//!
//! The reference is too slow for a whole batch, so the batch is made of copies of few images: `d` distinct ones, as many as a
//! bounded number of multiply-accumulates allows, each as often as the others, in random order. Batch statistics, the mean
//! loss and every gradient are then those of the `d` images alone, which the reference computes; each of the copies must
//! give the logits of its original. So every image lane, block and thread of the timed step takes part, and an image that
//! ends up in another's place shows.

use super::phases::Timed;
use super::step::{Batch, UPDATE};
use crate::backend::reference::RefBackend;
use crate::backend::{Backend, Real, Store};
use crate::graph::{Graph, Net};
use crate::rng::{Purpose, Stream};
use crate::sparsity::Mask;

/// Multiply-accumulates that the reference may spend: about a second.
const MACS: u64 = 300_000_000;
/// Distinct images at most: a whole block of 16 and one more.
const DISTINCT: u64 = 17;

/// Largest relative errors. A ReLU whose input is within rounding of zero may open or close in f32, and a part of a gradient
/// with it: hence a wide limit for one tensor and a narrow one for the median.
const LOGITS: f64 = 1e-4;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 3e-2;
const GRADIENT_MEDIAN: f64 = 5e-3;

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Verified {
    /// Images of the step that was compared: the batch, or the largest part of it that is a multiple of `distinct`.
    pub images: usize,
    /// Distinct ones among them.
    pub distinct: usize,
    /// Largest error of a logit, relative to the largest logit.
    pub logits_error: f64,
    /// Largest error of a parameter's gradient, relative, both in the L2 norm.
    pub gradient_error: f64,
}

/// Compares one step of `net`, which it advances by that step. `macs`: of one image forward.
///
/// # Errors
/// What differs, wanted and got.
pub(super) fn step<B: Backend>(
    net: &mut Net<Timed<B>>,
    graph: &Graph,
    masks: &[Mask],
    macs: u64,
    batch: &Batch<B::Real>,
) -> Result<Verified, String> {
    let size = batch.labels.len();
    let distinct = distinct(size, (MACS / (3 * macs).max(1)).clamp(1, DISTINCT) as usize);
    let images = size / distinct * distinct;
    let chosen: Vec<usize> = Stream::new(macs, Purpose::Data, "bench verify")
        .permutation(images)
        .into_iter()
        .map(|i| i as usize % distinct)
        .collect();
    let image_len = batch.images.len() / size;
    let labels: Vec<u32> = chosen.iter().map(|&i| batch.labels[i]).collect();
    let data: Vec<B::Real> =
        chosen.iter().flat_map(|&i| &batch.images[i * image_len..][..image_len]).copied().collect();

    let mut reference =
        Net::new(graph, masks, distinct, |spec| Ok(RefBackend::new(spec))).map_err(|e| e.to_string())?;
    reference.load(&net.state()).map_err(|e| e.to_string())?;
    let few: Vec<f64> = batch.images[..distinct * image_len].iter().map(|v| v.to_f64()).collect();
    reference.check_batch(distinct).map_err(|e| e.to_string())?;
    let want_loss = reference.forward_backward(&few, &batch.labels[..distinct], 0.0).loss_sum / distinct as f64;
    let want_logits = reference.logits(distinct);

    let nan = vec![B::Real::from_f64(f64::NAN); net.backend().spec().stored()];
    net.backend_mut().write_store(Store::Grads, &nan);
    let loss = net.forward_backward(&data, &labels, 0.0).loss_sum / images as f64;
    let logits = f64s(&net.logits(images));
    let classes = want_logits.len() / distinct;
    let want_logits: Vec<f64> = chosen.iter().flat_map(|&i| &want_logits[i * classes..][..classes]).copied().collect();
    within("loss", relative(&[loss], &[want_loss]), LOSS)?;
    let logits_error = within("logits", relative(&logits, &want_logits), LOGITS)?;

    let mut errors = compare(graph, net, &reference, Store::Grads, "gradient")?;
    net.sgd(UPDATE);
    reference.sgd(UPDATE);
    compare(graph, net, &reference, Store::Values, "value after the step")?;
    compare(graph, net, &reference, Store::Momentum, "momentum after the step")?;
    errors.sort_by(f64::total_cmp);
    within("median of the gradients", errors[errors.len() / 2], GRADIENT_MEDIAN)?;
    Ok(Verified { images, distinct, logits_error, gradient_error: errors[errors.len() - 1] })
}

/// A store, parameter by parameter; the relative errors.
fn compare<B: Backend>(
    graph: &Graph,
    net: &Net<Timed<B>>,
    reference: &Net<RefBackend>,
    store: Store,
    what: &str,
) -> Result<Vec<f64>, String> {
    let (got, want) = (f64s(&net.backend().read_store(store)), reference.backend().read_store(store));
    let params = net.backend().spec().params.iter().zip(graph.params());
    params
        .map(|(p, param)| {
            let error = relative_l2(&got[p.range.clone()], &want[p.range.clone()]);
            within(&format!("{what} of {}", param.name), error, GRADIENT)
        })
        .collect()
}

/// The largest divisor of `size` from half of `most` to `most`; `most`, at most `size`, if there is none.
fn distinct(size: usize, most: usize) -> usize {
    let most = most.min(size);
    (most.div_ceil(2)..=most).rev().find(|&d| size.is_multiple_of(d)).unwrap_or(most)
}

fn within(what: &str, error: f64, limit: f64) -> Result<f64, String> {
    // NaN is no good either.
    if error <= limit {
        Ok(error)
    } else {
        Err(format!("{what} is off by {error:.1e} (relative), wanted at most {limit:.0e}"))
    }
}

fn f64s<R: Real>(data: &[R]) -> Vec<f64> {
    data.iter().map(|v| v.to_f64()).collect()
}

/// Largest difference, relative to the largest number wanted. NaN if any difference is.
fn relative(got: &[f64], want: &[f64]) -> f64 {
    let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let differences = got.iter().zip(want).map(|(g, w)| (g - w).abs());
    let worst = differences.fold(0.0, |m: f64, e| if m.is_nan() || e <= m { m } else { e });
    if worst == 0.0 { 0.0 } else { worst / largest }
}

/// Relative difference in the L2 norm.
fn relative_l2(got: &[f64], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}
