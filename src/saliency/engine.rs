//! Loss and weight gradients of a network on one batch, in the numbers of [`Number`]: node by node as the graph has them,
//! with batch statistics. Nothing is fused; norms and ReLUs are computed while reading and stored nowhere.

use super::conv::Job;
use super::number::Number;
use super::pool::winners;
use crate::graph::{Graph, Op};
use rayon::prelude::*;
use std::ops::Range;

/// A network, its parameters, and what the forward pass left for the backward pass.
pub(super) struct Engine<'g, T> {
    graph: &'g Graph,
    /// Dense, in [`Graph::params`]' order.
    params: Vec<Vec<T>>,
    /// Added to the variance, a norm.
    eps: Vec<f64>,
    /// Images.
    n: usize,
    /// Output of each node that is stored, C,N,H,W; empty for norms and ReLUs.
    values: Vec<Vec<T>>,
    /// Of each norm, a channel.
    moments: Vec<Vec<Moments<T>>>,
}

/// Statistics of one channel.
#[derive(Clone, Copy)]
struct Moments<T> {
    mean: T,
    /// 1 / sqrt(variance + eps).
    rstd: T,
}

/// Of a batch.
pub(super) struct Gradients {
    /// Mean over the images.
    pub loss: f64,
    /// What is wanted of the gradient of each convolution's weight ([`Number::weight_gradient`]), in [`Graph::convs`]' order.
    pub weights: Vec<Vec<f64>>,
}

impl<'g, T: Number> Engine<'g, T> {
    pub fn new(graph: &'g Graph, eps: Vec<f64>, params: Vec<Vec<T>>) -> Self {
        Engine { graph, params, eps, n: 0, values: vec![], moments: vec![] }
    }

    /// Gradient of the mean over the images of the cross-entropy of `logits / temperature`.
    pub fn run(mut self, images: &[f32], labels: &[u32], temperature: f64) -> Gradients {
        self.n = labels.len();
        self.forward(images);
        let (loss, dlogits) = self.cross_entropy(labels, temperature);
        Gradients { loss, weights: self.backward(dlogits) }
    }

    /// Channels and pixels of a node's output.
    fn size(&self, node: usize) -> (usize, usize) {
        let (c, h, w) = self.graph.nodes()[node].chw;
        (c as usize, h as usize * w as usize)
    }

    fn operand(&self, node: usize, i: usize) -> usize {
        self.graph.nodes()[node].inputs[i].0
    }

    /// Output of `node` in channel `c` for a range of images.
    fn row(&self, node: usize, c: usize, images: Range<usize>, out: &mut [T]) {
        match self.graph.nodes()[node].op {
            Op::Norm(m) => {
                self.row(self.operand(node, 0), c, images, out);
                let (norm, Moments { mean, rstd }) = (&self.graph.norms()[m], self.moments[m][c]);
                let (scale, shift) = (self.params[norm.gamma][c] * rstd, self.params[norm.beta][c]);
                out.iter_mut().for_each(|v| *v = (*v - mean) * scale + shift);
            }
            Op::Relu => {
                self.row(self.operand(node, 0), c, images, out);
                // NaN comes through: a diverged network must show.
                out.iter_mut().filter(|v| v.value() <= 0.0).for_each(|v| *v = T::default());
            }
            _ => {
                let (_, pixels) = self.size(node);
                let from = (c * self.n + images.start) * pixels;
                out.copy_from_slice(&self.values[node][from..from + out.len()]);
            }
        }
    }

    /// The same for all images.
    fn channel(&self, node: usize, c: usize) -> Vec<T> {
        let mut out = vec![T::default(); self.n * self.size(node).1];
        self.row(node, c, 0..self.n, &mut out);
        out
    }

    /// The same for all channels.
    fn images(&self, node: usize, images: Range<usize>) -> Vec<T> {
        let (c, pixels) = self.size(node);
        let mut out = vec![T::default(); c * images.len() * pixels];
        let rows = out.chunks_mut(images.len() * pixels).enumerate();
        rows.for_each(|(c, row)| self.row(node, c, images.clone(), row));
        out
    }

    /// A tensor of the shape of `node`'s output, made channel by channel.
    fn channels(&self, node: usize, make: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
        let (c, pixels) = self.size(node);
        let mut out = vec![T::default(); c * self.n * pixels];
        out.par_chunks_mut(self.n * pixels).enumerate().for_each(|(c, row)| make(c, row));
        out
    }

    fn forward(&mut self, images: &[f32]) {
        self.moments = vec![vec![]; self.graph.norms().len()];
        for (node, op) in self.graph.nodes().iter().map(|n| &n.op).enumerate() {
            let x = |i| self.operand(node, i);
            let value = match *op {
                Op::Input => {
                    let (channels, pixels) = self.size(node);
                    self.channels(node, |c, row| {
                        for (image, row) in row.chunks_mut(pixels).enumerate() {
                            let from = &images[(image * channels + c) * pixels..];
                            row.iter_mut().zip(from).for_each(|(to, &v)| *to = T::constant(f64::from(v)));
                        }
                    })
                }
                Op::Conv(i) => {
                    let conv = &self.graph.convs()[i];
                    let bias = conv.bias.map(|b| &self.params[b][..]);
                    let (job, x) = (Job { geom: conv.geom, n: self.n }, x(0));
                    job.forward(|images| self.images(x, images), &self.params[conv.weight], bias)
                }
                Op::Norm(m) => {
                    let (channels, _) = self.size(node);
                    let moments = |c| moments(&self.channel(x(0), c), self.eps[m]);
                    self.moments[m] = (0..channels).into_par_iter().map(moments).collect();
                    vec![]
                }
                Op::Relu => vec![],
                Op::Add => self.channels(node, |c, row| {
                    self.row(x(0), c, 0..self.n, row);
                    row.iter_mut().zip(self.channel(x(1), c)).for_each(|(a, b)| *a += b);
                }),
                Op::Pool => self.channels(node, |c, row| {
                    let (_, pixels) = self.size(x(0));
                    let images = self.channel(x(0), c);
                    let means = images.chunks(pixels).map(|p| sum(p.iter().copied()) / T::constant(pixels as f64));
                    row.iter_mut().zip(means).for_each(|(to, mean)| *to = mean);
                }),
                Op::MaxPool(p) => self.channels(node, |c, row| {
                    let x = self.channel(x(0), c);
                    let from = winners(self.graph.pools()[p], &x);
                    row.iter_mut().zip(from).for_each(|(to, from)| *to = x[from]);
                }),
            };
            self.values.push(value);
        }
    }

    /// Mean loss, and the gradient of the logits, C,N.
    fn cross_entropy(&self, labels: &[u32], temperature: f64) -> (f64, Vec<T>) {
        let last = self.values.len() - 1;
        let (classes, n) = (self.size(last).0, self.n);
        let logits = self.images(last, 0..n);
        let (mut loss, mut dlogits) = (0.0, vec![T::default(); classes * n]);
        for (image, &label) in labels.iter().enumerate() {
            let at = |class: usize| logits[class * n + image];
            let largest = (0..classes).map(|class| at(class).value()).fold(f64::NEG_INFINITY, f64::max);
            let shifted = |class| (at(class) - T::constant(largest)) / T::constant(temperature);
            let total = sum((0..classes).map(|class| shifted(class).exp()));
            loss += total.value().ln() - shifted(label as usize).value();
            for class in 0..classes {
                let wanted = T::constant(f64::from(u8::from(class == label as usize)));
                let p = shifted(class).exp() / total;
                dlogits[class * n + image] = (p - wanted) / T::constant(temperature * n as f64);
            }
        }
        (loss / n as f64, dlogits)
    }

    fn backward(&mut self, dlogits: Vec<T>) -> Vec<Vec<f64>> {
        let nodes = self.graph.nodes();
        let mut gradients = vec![vec![]; self.graph.convs().len()];
        // Whether a weight lies before a node: no other gradient is wanted.
        let mut needed: Vec<bool> = vec![];
        for node in nodes {
            needed.push(matches!(node.op, Op::Conv(_)) || node.inputs.iter().any(|x| needed[x.0]));
        }
        let mut pending: Vec<Option<Vec<T>>> = vec![None; nodes.len()];
        pending[nodes.len() - 1] = Some(dlogits);
        for node in (0..nodes.len()).rev().filter(|&node| needed[node]) {
            let dy = pending[node].take().expect("every node feeds the logits");
            self.values[node] = vec![]; // its readers are through
            let x = |i| self.operand(node, i);
            let give = |pending: &mut [Option<Vec<T>>], to: usize, dx: Vec<T>| match &mut pending[to] {
                _ if !needed[to] => {}
                Some(sum) => sum.par_iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx),
                none => *none = Some(dx),
            };
            let dx = match nodes[node].op {
                Op::Input => continue,
                Op::Conv(i) => {
                    let conv = &self.graph.convs()[i];
                    let (job, x) = (Job { geom: conv.geom, n: self.n }, x(0));
                    let weight = &self.params[conv.weight];
                    let (dw, dx) = job.backward(|images| self.images(x, images), weight, &dy, needed[x]);
                    gradients[i] = dw;
                    let Some(dx) = dx else { continue };
                    dx
                }
                Op::Norm(m) => self.through(node, dy, |c, row| self.norm_backward(m, x(0), c, row)),
                Op::Relu => self.through(node, dy, |c, row| {
                    let x = self.channel(x(0), c);
                    row.iter_mut().zip(x).filter(|(_, x)| x.value() <= 0.0).for_each(|(g, _)| *g = T::default());
                }),
                Op::Add => {
                    give(&mut pending, x(1), dy.clone());
                    dy
                }
                Op::Pool => self.channels(x(0), |c, row| {
                    let (_, pixels) = self.size(x(0));
                    let images = row.chunks_mut(pixels).zip(&dy[c * self.n..]);
                    images.for_each(|(plane, &g)| plane.fill(g / T::constant(pixels as f64)));
                }),
                Op::MaxPool(p) => self.channels(x(0), |c, row| {
                    let len = dy.len() / self.size(node).0;
                    let x = self.channel(x(0), c);
                    let to = winners(self.graph.pools()[p], &x);
                    to.zip(&dy[c * len..]).for_each(|(to, &g)| row[to] += g);
                }),
            };
            give(&mut pending, x(0), dx);
        }
        gradients
    }

    /// Changes a gradient in place, channel by channel.
    fn through(&self, node: usize, mut g: Vec<T>, change: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
        let len = self.n * self.size(node).1;
        g.par_chunks_mut(len).enumerate().for_each(|(c, row)| change(c, row));
        g
    }

    /// The gradient of a norm's input, of which mean and variance depend on every value, from that of its output.
    fn norm_backward(&self, m: usize, x: usize, c: usize, g: &mut [T]) {
        let Moments { mean, rstd } = self.moments[m][c];
        let xhat: Vec<T> = self.channel(x, c).into_iter().map(|x| (x - mean) * rstd).collect();
        let count = T::constant(g.len() as f64);
        let of_g = sum(g.iter().copied()) / count;
        let of_both = sum(g.iter().zip(&xhat).map(|(&g, &xhat)| g * xhat)) / count;
        let scale = self.params[self.graph.norms()[m].gamma][c] * rstd;
        g.iter_mut().zip(xhat).for_each(|(g, xhat)| *g = scale * (*g - of_g - xhat * of_both));
    }
}

/// Whether the forward pass stores what such a node gives.
pub(super) fn is_stored(op: &Op) -> bool {
    !matches!(op, Op::Norm(_) | Op::Relu)
}

fn moments<T: Number>(x: &[T], eps: f64) -> Moments<T> {
    let count = T::constant(x.len() as f64);
    let mean = sum(x.iter().copied()) / count;
    let variance = sum(x.iter().map(|&x| (x - mean) * (x - mean))) / count;
    Moments { mean, rstd: T::constant(1.0) / (variance + T::constant(eps)).sqrt() }
}

fn sum<T: Number>(values: impl Iterator<Item = T>) -> T {
    values.fold(T::default(), |a, b| a + b)
}
