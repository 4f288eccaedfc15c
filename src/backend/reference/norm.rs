//! Batch norm: coefficients from batch or running statistics, the sums of the backward pass, and the gradient.

use super::{RefBackend, channel};
use crate::backend::{NormId, Normed, TensorId};

/// What a norm holds from one op to the next.
#[derive(Clone, Default)]
pub(super) struct State {
    statistics: Option<Statistics>,
    /// sum(g) and sum(g * xhat) a channel, of the last finished gradient of the norm's output.
    sums: Option<[Vec<f64>; 2]>,
}

/// Mean and 1 / sqrt(variance + eps) a channel.
#[derive(Clone)]
struct Statistics {
    /// The tensor they were taken of; `None`: the running statistics.
    of: Option<TensorId>,
    mean: Vec<f64>,
    rstd: Vec<f64>,
}

impl State {
    /// Numbers held.
    pub(super) fn len(&self) -> usize {
        let statistics = self.statistics.as_ref().map_or(0, |s| 2 * s.mean.len());
        statistics + self.sums.iter().flatten().map(Vec::len).sum::<usize>()
    }
}

impl RefBackend {
    pub(super) fn batch_statistics(&mut self, norm: NormId, x: TensorId, n: usize) {
        let spec = self.spec.norms[norm.0 as usize];
        let (plane, input) = (self.plane(x), self.read(x, n));
        let c = spec.c as usize;
        assert_eq!(plane.c, spec.c, "norm {} of tensor {}", norm.0, x.0);
        let count = (input.len() / c) as f64;
        assert!(count >= 2.0, "norm {} needs two values a channel", norm.0);
        let mut mean = vec![0.0; c];
        input.iter().enumerate().for_each(|(i, v)| mean[channel(plane, i)] += v);
        mean.iter_mut().for_each(|m| *m /= count);
        let mut var = vec![0.0; c];
        input.iter().enumerate().for_each(|(i, v)| var[channel(plane, i)] += (v - mean[channel(plane, i)]).powi(2));
        var.iter_mut().for_each(|v| *v /= count);

        let (keep, new) = (1.0 - spec.momentum, spec.momentum);
        for i in 0..c {
            let (m, v) = (spec.running + i, spec.running + c + i);
            self.running[m] = keep * self.running[m] + new * mean[i];
            self.running[v] = keep * self.running[v] + new * (var[i] * count / (count - 1.0));
        }
        let rstd = var.iter().map(|v| 1.0 / (v + spec.eps).sqrt()).collect();
        let statistics = Some(Statistics { of: Some(x), mean, rstd });
        self.norms[norm.0 as usize] = State { statistics, sums: None };
    }

    pub(super) fn running_statistics(&mut self, norm: NormId) {
        let spec = self.spec.norms[norm.0 as usize];
        let (mean, var) = self.running[spec.running..][..2 * spec.c as usize].split_at(spec.c as usize);
        let rstd = var.iter().map(|v| 1.0 / (v + spec.eps).sqrt()).collect();
        let statistics = Some(Statistics { of: None, mean: mean.to_vec(), rstd });
        self.norms[norm.0 as usize] = State { statistics, sums: None };
    }

    /// The statistics that `norm` of `x` uses.
    fn statistics(&self, norm: NormId, x: TensorId) -> &Statistics {
        let state = &self.norms[norm.0 as usize];
        let Some(s) = &state.statistics else { panic!("norm {} is used before it has coefficients", norm.0) };
        assert!(s.of.is_none_or(|t| t == x), "norm {} has the statistics of {:?}, wanted {x:?}", norm.0, s.of);
        assert_eq!(s.mean.len(), self.plane(x).c as usize, "norm {} of tensor {}", norm.0, x.0);
        s
    }

    /// `x` to `gamma * xhat + beta`.
    pub(super) fn normalise(&self, norm: NormId, x: TensorId, values: &mut [f64]) {
        let (plane, s) = (self.plane(x), self.statistics(norm, x));
        let spec = self.spec.norms[norm.0 as usize];
        let (gamma, beta) = (self.dense_param(spec.gamma), self.dense_param(spec.beta));
        for (i, v) in values.iter_mut().enumerate() {
            let c = channel(plane, i);
            *v = gamma[c] * ((*v - s.mean[c]) * s.rstd[c]) + beta[c];
        }
    }

    fn xhat(&self, normed: Normed, n: usize) -> Vec<f64> {
        let (plane, s) = (self.plane(normed.x), self.statistics(normed.norm, normed.x));
        let hat = |(i, v): (usize, f64)| (v - s.mean[channel(plane, i)]) * s.rstd[channel(plane, i)];
        self.read(normed.x, n).into_iter().enumerate().map(hat).collect()
    }

    /// Takes the sums of `g`, the gradient of the norm's output: the gradients of beta and gamma.
    pub(super) fn reduce(&mut self, normed: Normed, g: &[f64], n: usize) {
        let spec = self.spec.norms[normed.norm.0 as usize];
        let plane = self.plane(normed.x);
        let mut sums = [vec![0.0; spec.c as usize], vec![0.0; spec.c as usize]];
        for (i, (g, xhat)) in g.iter().zip(self.xhat(normed, n)).enumerate() {
            sums[0][channel(plane, i)] += g;
            sums[1][channel(plane, i)] += g * xhat;
        }
        for (param, sum) in [spec.beta, spec.gamma].into_iter().zip(&sums) {
            let range = self.spec.params[param.0 as usize].range.clone();
            self.grads[range].copy_from_slice(sum);
        }
        self.norms[normed.norm.0 as usize].sums = Some(sums);
    }

    /// The gradient of the norm's input: `gamma * rstd * (g - sum(g) / count - xhat * sum(g * xhat) / count)`, and `gamma *
    /// rstd * g` with running statistics, which do not depend on it.
    pub(super) fn through_norm(&self, normed: Normed, g: &[f64], n: usize) -> Vec<f64> {
        let plane = self.plane(normed.x);
        let Statistics { of, rstd, .. } = self.statistics(normed.norm, normed.x);
        let gamma = self.dense_param(self.spec.norms[normed.norm.0 as usize].gamma);
        let channels = (0..g.len()).map(|i| channel(plane, i));
        if of.is_none() {
            return g.iter().zip(channels).map(|(g, c)| gamma[c] * rstd[c] * g).collect();
        }
        let Some([sum, sum_xhat]) = &self.norms[normed.norm.0 as usize].sums else {
            panic!("a gradient through norm {} is read before its sums were taken", normed.norm.0)
        };
        let count = (g.len() / plane.c as usize) as f64;
        let xhat = self.xhat(normed, n);
        let element =
            |(i, c): (usize, usize)| gamma[c] * rstd[c] * (g[i] - sum[c] / count - xhat[i] * sum_xhat[c] / count);
        channels.enumerate().map(element).collect()
    }
}
