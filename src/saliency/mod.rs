//! Saliency of each weight of the dense network at initialisation, on real images: SNIP and GraSP (paper section 3.1). Layer
//! ratios follow from it in [`sparsity`](crate::sparsity), as the share of a layer's weights among the highest scores.
//!
//! - [`snip`]: the weight times its gradient, through the network as a backend runs it, in f32 on a CPU or a GPU.
//! - [`ScoreNet`]: the same in f64 without a backend, and GraSP, which wants the exact product of the Hessian and the
//!   gradient. It runs the graph in numbers that carry a derivative along (`number.rs`), so that each operation of the forward
//!   and the backward pass is written once, and the derivatives of batch norm's statistics can't be forgotten.
//! - [`snip_samples`], [`grasp_samples`]: which images. [`xavier`]: other weights for scoring only.
//!
//! Scores come as one list a maskable tensor, in [`Graph::maskable`]'s order, one number a weight of the dense tensor; the
//! highest are to be kept. Batch norm uses batch statistics. All of it works on a network of its own: nothing of a run changes.
//!
//! ```
//! use sparse_engine::{models, saliency::{Batch, ScoreNet}};
//! let graph = models::resnet(8, 4, 3, 2, 8)?;
//! let values: Vec<Vec<f64>> = (0..graph.params().len()).map(|i| graph.init_values(i, None, 1)).collect();
//! let images: Vec<f32> = (0..4 * 3 * 8 * 8).map(|i| (i as f32).sin()).collect();
//! let (first, second) = images.split_at(images.len() / 2);
//! let halves = [Batch { images: first, labels: &[0, 0] }, Batch { images: second, labels: &[1, 1] }];
//! let scores = ScoreNet::new(&graph, &values, 0)?.grasp(&halves, 200.0)?;
//! assert_eq!(scores.len(), graph.maskable().len());
//! # Ok::<(), sparse_engine::Error>(())
//! ```

mod conv;
mod engine;
mod number;
mod pool;
mod samples;
mod score_net;

pub use samples::{Halves, grasp_samples, snip_samples};
pub use score_net::{Gradient, ScoreNet};

use crate::backend::{Backend, Real, Store};
use crate::error::{Error, Result};
use crate::graph::{Graph, Net};
use crate::rng::{Purpose, Stream};

/// Images that are normalised together.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// N,C,H,W, normalised as for training.
    pub images: &'a [f32],
    /// N classes.
    pub labels: &'a [u32],
}

impl Batch<'_> {
    /// Whether `graph` can run it.
    fn check(&self, graph: &Graph) -> Result<()> {
        let n = self.labels.len();
        let (c, h, w) = graph.nodes()[0].chw;
        let wanted = n * (c * h * w) as usize;
        if n == 0 || self.images.len() != wanted {
            return Err(Error::Usage(format!(
                "images to score weights on: wanted at least one, {c}x{h}x{w} numbers each, got {n} labels and {} numbers",
                self.images.len()
            )));
        }
        let classes = graph.nodes()[graph.nodes().len() - 1].chw.0;
        match self.labels.iter().find(|&&label| label >= classes) {
            Some(label) => Err(Error::Usage(format!(
                "images to score weights on: a label is {label}, the network has the classes 0 to {}",
                classes - 1
            ))),
            None => Ok(()),
        }
    }
}

/// SNIP (Lee et al. 2019; paper section 3.1): |w * dL/dw| of the mean cross-entropy of `batch`, without label smoothing.
/// Where each weight has a factor of 1, this is the gradient of that factor: with weights of [`xavier`] the score is what the
/// paper's code computes for CIFAR.
///
/// `net`: the network of `graph` without masks, for scoring only: its values become `values` (one list a parameter, dense, in
/// [`Graph::params`]' order), its running statistics those of the batch. Its backend should compute in f32 or better: half
/// precision loses small gradients.
///
/// # Errors
/// A net with masks or of another graph, values or images that do not fit, more images than the net has room for, a batch
/// norm with one value a channel; scores that are not finite.
pub fn snip<B: Backend>(net: &mut Net<B>, graph: &Graph, values: &[Vec<f64>], batch: Batch) -> Result<Vec<Vec<f64>>> {
    check_values(graph, values)?;
    batch.check(graph)?;
    let spec = net.backend().spec();
    let whole = spec.params.iter().map(|p| (&p.shape, p.kept.is_none()));
    if !whole.eq(graph.params().iter().map(|p| (&p.shape, true))) {
        return Err(Error::Usage("SNIP scores all weights: wanted a network of this graph without masks".into()));
    }
    let n = batch.labels.len();
    if n > spec.batch {
        return Err(Error::Usage(format!("SNIP on {n} images: the network has room for {}", spec.batch)));
    }
    net.check_batch(n)?;
    let real = |v: f64| B::Real::from_f64(v);
    let flat: Vec<B::Real> = values.iter().flatten().map(|&v| real(v)).collect();
    net.backend_mut().write_store(Store::Values, &flat);
    let images: Vec<B::Real> = batch.images.iter().map(|&v| real(f64::from(v))).collect();
    let loss = net.forward_backward(&images, batch.labels, 0.0).loss_sum / n as f64;
    check_loss(loss)?;
    let grads = net.backend().read_store(Store::Grads);
    let params = net.backend().spec().params.iter().zip(graph.params()).filter(|(_, p)| p.maskable);
    let score = |(w, g): (&B::Real, &B::Real)| (w.to_f64() * g.to_f64()).abs();
    let scores = params.map(|(p, _)| flat[p.range.clone()].iter().zip(&grads[p.range.clone()]).map(score).collect());
    finite(graph, scores.collect())
}

/// Draws every maskable tensor of `values` (one list a parameter, in [`Graph::params`]' order) anew: normal with standard
/// deviation sqrt(2 / (fan_in + fan_out)), fans with the kernel's area (Glorot and Bengio 2010). The paper's code for CIFAR
/// scores such weights instead of those that it trains. The streams are of `seed` and belong to no parameter.
pub fn xavier(graph: &Graph, values: &mut [Vec<f64>], seed: u64) {
    for (p, values) in graph.params().iter().zip(values).filter(|(p, _)| p.maskable) {
        let taps: usize = p.shape[2..].iter().product();
        let std = (2.0 / (taps * (p.shape[0] + p.shape[1])) as f64).sqrt();
        // Parameters are called LAYER.weight or LAYER.bias.
        let stream = Stream::new(seed, Purpose::Init, &format!("{} xavier", p.name));
        *values = (0..p.size() as u64).map(|i| std * stream.normal(i)).collect();
    }
}

fn check_values(graph: &Graph, values: &[Vec<f64>]) -> Result<()> {
    let (got, wanted) = (values.len(), graph.params().len());
    if got != wanted {
        return Err(Error::Usage(format!("weights to score: wanted {wanted} parameters, got {got}")));
    }
    match graph.params().iter().zip(values).find(|(p, v)| p.size() != v.len()) {
        Some((p, v)) => {
            Err(Error::Usage(format!("weights to score: wanted {} values of {}, got {}", p.size(), p.name, v.len())))
        }
        None => Ok(()),
    }
}

fn check_loss(loss: f64) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "saliency: the loss is {loss}: the initial network diverges on these images; check their normalisation and the \
         initial values"
    )))
}

/// `scores`, if all are finite.
fn finite(graph: &Graph, scores: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
    for (p, scores) in graph.params().iter().filter(|p| p.maskable).zip(&scores) {
        if let Some(at) = scores.iter().position(|s| !s.is_finite()) {
            return Err(Error::Failed(format!(
                "saliency of {}: the score of weight {at} is {}: the initial network diverges on these images; check their \
                 normalisation and the initial values",
                p.name, scores[at]
            )));
        }
    }
    Ok(scores)
}
