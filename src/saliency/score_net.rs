//! A network in f64 for its first and second derivatives.

use super::conv::Job;
use super::engine::{Engine, Gradients, is_stored};
use super::number::{Dual, Number};
use super::{Batch, check_loss, check_values, finite};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::graph::lower::lower;
use crate::memory;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A dense network in f64, with batch statistics in every batch norm. Results are the same bits for any number of threads.
pub struct ScoreNet<'a> {
    graph: &'a Graph,
    values: &'a [Vec<f64>],
    threads: ThreadPool,
}

/// Loss and gradient of one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradient {
    /// Mean over the images.
    pub loss: f64,
    /// Its gradient, one list a maskable tensor in [`Graph::maskable`]'s order.
    pub weights: Vec<Vec<f64>>,
}

impl<'a> ScoreNet<'a> {
    /// `values`: one list a parameter, dense, in [`Graph::params`]' order. `threads`: 0 for all cores.
    ///
    /// # Errors
    /// Values that do not fit the graph; threads that the system refuses.
    pub fn new(graph: &'a Graph, values: &'a [Vec<f64>], threads: usize) -> Result<Self> {
        check_values(graph, values)?;
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let threads = pool.map_err(|e| Error::Failed(format!("saliency: cannot start {threads} threads: {e}")))?;
        Ok(ScoreNet { graph, values, threads })
    }

    /// The gradient of the mean cross-entropy of `logits / temperature`.
    ///
    /// # Errors
    /// A graph that cannot be lowered, images that do not fit, a batch norm with one value a channel, a temperature that is
    /// not a positive number; a loss or gradients that are not finite.
    pub fn gradient(&self, batch: Batch, temperature: f64) -> Result<Gradient> {
        let Gradients { loss, weights } = self.run(batch, temperature, self.values.to_vec())?;
        Ok(Gradient { loss, weights: finite(self.graph, weights)? })
    }

    /// The Hessian of the same loss in all maskable weights, times `direction` (one list a maskable tensor): exact, the
    /// derivative of the gradient with respect to a step in that direction. Biases and batch norm's scales and shifts are
    /// constants. Where a ReLU or a maximum has a kink, its derivative is that of one side.
    ///
    /// # Errors
    /// As [`ScoreNet::gradient`]; a direction of other lengths.
    pub fn hessian_product(&self, batch: Batch, temperature: f64, direction: &[Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        let wanted = self.weights().map(|i| self.values[i].len());
        if !wanted.clone().eq(direction.iter().map(Vec::len)) {
            let [wanted, got] = [wanted.collect::<Vec<_>>(), direction.iter().map(Vec::len).collect()];
            return Err(Error::Usage(format!(
                "direction of a Hessian product: wanted lengths {wanted:?}, got {got:?}"
            )));
        }
        let constants = |values: &Vec<f64>| values.iter().map(|&v| Dual::constant(v)).collect();
        let mut params: Vec<Vec<Dual>> = self.values.iter().map(constants).collect();
        for (i, direction) in self.weights().zip(direction) {
            params[i].iter_mut().zip(direction).for_each(|(p, &d)| p.d = d);
        }
        finite(self.graph, self.run(batch, temperature, params)?.weights)
    }

    /// SNIP: see [`snip`](super::snip), which a backend computes.
    ///
    /// # Errors
    /// As [`ScoreNet::gradient`].
    pub fn snip(&self, batch: Batch) -> Result<Vec<Vec<f64>>> {
        let gradient = self.gradient(batch, 1.0)?.weights;
        finite(self.graph, self.times_weights(gradient, |w, g| (w * g).abs()))
    }

    /// GraSP (Wang et al. 2020; paper section 3.1): w * Hg of each weight, where g is the sum over `parts` of the gradients of
    /// their mean cross-entropies of `logits / temperature`, and Hg the sum of their Hessians' products with g. Removing a
    /// weight of low score costs the least gradient flow, so the highest are kept: the paper's code removes the highest of
    /// -w * Hg / sum, an order that the sum does not change. `parts`: the two halves of [`grasp_samples`]; batch norm
    /// normalises each by itself.
    ///
    /// [`grasp_samples`]: super::grasp_samples
    ///
    /// # Errors
    /// As [`ScoreNet::gradient`]; no parts.
    pub fn grasp(&self, parts: &[Batch], temperature: f64) -> Result<Vec<Vec<f64>>> {
        let largest = parts.iter().map(|part| part.labels.len()).max().unwrap_or(0);
        memory::check(
            self.grasp_bytes(largest),
            &format!("GraSP on {largest} images at a time"),
            "take fewer (score_samples_per_class), or images of fewer pixels",
        )?;
        let g = sum(parts.iter().map(|&part| Ok(self.gradient(part, temperature)?.weights)))?;
        let hg = sum(parts.iter().map(|&part| self.hessian_product(part, temperature, &g)))?;
        finite(self.graph, self.times_weights(hg, |w, hg| w * hg))
    }

    /// Bytes that [`ScoreNet::grasp`] allocates for parts of at most `images`, about: values and gradients of the weights,
    /// what the forward pass stores, and the gradients on their way. All of it for numbers with a derivative.
    pub fn grasp_bytes(&self, images: usize) -> u64 {
        let number = size_of::<Dual>() as u64;
        let threads = self.threads.current_num_threads();
        let params: u64 = self.graph.params().iter().map(|p| p.size() as u64 * (number + 3 * 8)).sum();
        let jobs = self.graph.convs().iter().map(|conv| Job { geom: conv.geom, n: images });
        let scratch = jobs.map(|job| job.scratch::<Dual>(threads)).max().unwrap_or(0);
        let sizes = self.graph.nodes().iter().map(|node| {
            let (c, h, w) = node.chw;
            u64::from(c) * u64::from(h) * u64::from(w) * images as u64 * number
        });
        let stored = self.graph.nodes().iter().zip(sizes.clone()).filter(|(node, _)| is_stored(&node.op));
        // Of the largest: a gradient, that of its operand in parts and whole, and one that waits for an addition.
        params + scratch + stored.map(|(_, size)| size).sum::<u64>() + 4 * sizes.max().unwrap_or(0)
    }

    /// Indices of the maskable parameters.
    fn weights(&self) -> impl Iterator<Item = usize> + Clone {
        let params = self.graph.params().iter().enumerate();
        params.filter(|(_, p)| p.maskable).map(|(i, _)| i)
    }

    fn times_weights(&self, mut other: Vec<Vec<f64>>, score: impl Fn(f64, f64) -> f64) -> Vec<Vec<f64>> {
        for (i, other) in self.weights().zip(&mut other) {
            other.iter_mut().zip(&self.values[i]).for_each(|(v, &w)| *v = score(w, *v));
        }
        other
    }

    fn run<T: Number>(&self, batch: Batch, temperature: f64, params: Vec<Vec<T>>) -> Result<Gradients> {
        batch.check(self.graph)?;
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::Usage(format!("temperature: wanted a number above 0, got {temperature}")));
        }
        let program = lower(self.graph, &[], batch.labels.len())?;
        program.check_batch(batch.labels.len(), |norm| &self.graph.norms()[norm].name)?;
        let eps = program.spec.norms.iter().map(|norm| norm.eps).collect();
        let engine = Engine::new(self.graph, eps, params);
        let gradients = self.threads.install(|| engine.run(batch.images, batch.labels, temperature));
        check_loss(gradients.loss)?;
        Ok(gradients)
    }
}

/// The sum of lists of the same lengths.
fn sum(mut lists: impl Iterator<Item = Result<Vec<Vec<f64>>>>) -> Result<Vec<Vec<f64>>> {
    let first = lists.next().ok_or_else(|| Error::Usage("GraSP: wanted images, got none".into()))??;
    lists.try_fold(first, |mut sum, list| {
        sum.iter_mut().flatten().zip(list?.into_iter().flatten()).for_each(|(a, b)| *a += b);
        Ok(sum)
    })
}
