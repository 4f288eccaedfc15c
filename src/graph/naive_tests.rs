//! A second way to run a graph, forward only: node by node in f64, every value stored, nothing fused, sharing no code
//! with the lowering or a backend.

use crate::graph::{Graph, Op};

pub(super) struct Naive<'g> {
    pub(super) graph: &'g Graph,
    /// Dense values of each parameter, pruned weights zero.
    pub(super) params: Vec<Vec<f64>>,
}

/// Mean and variance (biased for a batch) a channel.
type Moments = Vec<(f64, f64)>;

impl Naive<'_> {
    /// Logits of `n` images, and the moments that each norm used: those of the batch, or those `given`.
    pub(super) fn forward(&self, images: &[f64], n: usize, given: Option<&[Moments]>) -> (Vec<f64>, Vec<Moments>) {
        let mut values: Vec<Vec<f64>> = vec![];
        let mut used = vec![vec![]; self.graph.norms().len()];
        for node in self.graph.nodes() {
            let operand = |i: usize| &values[node.inputs[i].0];
            let shape = |i: usize| {
                let (c, h, w) = self.graph.nodes()[node.inputs[i].0].chw;
                (c as usize, h as usize, w as usize)
            };
            let value: Vec<f64> = match node.op {
                Op::Input => images.to_vec(),
                Op::Conv(c) => self.conv(c, operand(0), n),
                Op::Norm(m) => {
                    let (c, h, w) = shape(0);
                    used[m] = given.map_or_else(|| moments(operand(0), c, h * w), |g| g[m].clone());
                    let norm = &self.graph.norms()[m];
                    let (gamma, beta) = (&self.params[norm.gamma], &self.params[norm.beta]);
                    let norm = |(i, x): (usize, &f64)| {
                        let c = i / (h * w) % c;
                        let (mean, var) = used[m][c];
                        gamma[c] * (x - mean) / (var + 1e-5).sqrt() + beta[c]
                    };
                    operand(0).iter().enumerate().map(norm).collect()
                }
                Op::Relu => operand(0).iter().map(|v| v.max(0.0)).collect(),
                Op::Add => operand(0).iter().zip(operand(1)).map(|(a, b)| a + b).collect(),
                Op::Pool => {
                    let (_, h, w) = shape(0);
                    operand(0).chunks(h * w).map(|p| p.iter().sum::<f64>() / p.len() as f64).collect()
                }
                Op::MaxPool(p) => {
                    let (_, h, w) = shape(0);
                    let pool = self.graph.pools()[p];
                    let [size, stride, pad] = [pool.size, pool.stride, pool.pad].map(|v| v as usize);
                    operand(0).chunks(h * w).flat_map(|plane| max_pool(plane, h, w, size, stride, pad)).collect()
                }
            };
            values.push(value);
        }
        (values.pop().unwrap(), used)
    }

    /// Sum over the images of the cross-entropy, with the smoothing's share of the mean over the classes.
    pub(super) fn loss(logits: &[f64], labels: &[u32], smoothing: f64) -> f64 {
        let classes = logits.len() / labels.len();
        let image = |(z, &label): (&[f64], &u32)| {
            let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            let nll: Vec<f64> = z.iter().map(|z| log_sum - z).collect();
            (1.0 - smoothing) * nll[label as usize] + smoothing * nll.iter().sum::<f64>() / classes as f64
        };
        logits.chunks(classes).zip(labels).map(image).sum()
    }

    fn conv(&self, conv: usize, x: &[f64], n: usize) -> Vec<f64> {
        let conv = &self.graph.convs()[conv];
        let g = conv.geom;
        let [c, h, w, k, r, s, p, q] = [g.c, g.h, g.w, g.k, g.r, g.s, g.p(), g.q()].map(|v| v as usize);
        let weight = &self.params[conv.weight];
        let mut y = vec![];
        for out in 0..n * k * p * q {
            let (image, filter, row, col) = (out / (k * p * q), out / (p * q) % k, out / q % p, out % q);
            let mut sum = conv.bias.map_or(0.0, |b| self.params[b][filter]);
            for tap in 0..c * r * s {
                let (channel, dr, ds) = (tap / (r * s), tap / s % r, tap % s);
                let (at_r, at_c) = (row * g.stride as usize + dr, col * g.stride as usize + ds);
                let (at_r, at_c) = (at_r.wrapping_sub(g.pad as usize), at_c.wrapping_sub(g.pad as usize));
                if at_r < h && at_c < w {
                    sum += weight[filter * c * r * s + tap] * x[((image * c + channel) * h + at_r) * w + at_c];
                }
            }
            y.push(sum);
        }
        y
    }
}

fn moments(x: &[f64], c: usize, pixels: usize) -> Moments {
    let of = |channel: usize| {
        let values: Vec<f64> = x.chunks(pixels).skip(channel).step_by(c).flatten().copied().collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (mean, values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len() as f64)
    };
    (0..c).map(of).collect()
}

fn max_pool(x: &[f64], h: usize, w: usize, size: usize, stride: usize, pad: usize) -> Vec<f64> {
    let starts = |len: usize| (0..).map(move |i| i * stride).take_while(move |start| start + size <= len + 2 * pad);
    let inside = |start: usize, len: usize| start.saturating_sub(pad)..(start + size - pad).min(len);
    let mut y = vec![];
    for row in starts(h) {
        for col in starts(w) {
            let window = inside(row, h).flat_map(|r| inside(col, w).map(move |c| x[r * w + c]));
            y.push(window.fold(f64::NEG_INFINITY, f64::max));
        }
    }
    y
}
