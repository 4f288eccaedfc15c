//! Batch norm: training and evaluation forward, backward.

use super::{RefBackend, channel, over, rectify, through_relu};
use crate::backend::{Dst, NormId, TensorId};

/// Batch statistics of one norm's last forward pass, one number a channel.
#[derive(Clone)]
pub(super) struct Stats {
    pub(super) mean: Vec<f64>,
    pub(super) rstd: Vec<f64>,
}

impl RefBackend {
    /// `y = relu?(scale * (x - shift) + beta + residual?)`, the common part of both norm forwards.
    #[allow(clippy::too_many_arguments)]
    fn normalise(
        &mut self,
        norm: NormId,
        x: TensorId,
        residual: Option<TensorId>,
        relu: bool,
        y: TensorId,
        n: usize,
        stats: &Stats,
    ) {
        let spec = self.spec.norms[norm.0 as usize];
        let (gamma, beta) = (self.dense_param(spec.gamma), self.dense_param(spec.beta));
        let mut out = self.load(x, n);
        let res = residual.map(|t| self.load(t, n));
        for (i, v) in out.iter_mut().enumerate() {
            let c = channel(self.plane(x), i);
            *v = gamma[c] * ((*v - stats.mean[c]) * stats.rstd[c]) + beta[c] + res.as_ref().map_or(0.0, |r| r[i]);
            if relu {
                *v = rectify(*v);
            }
        }
        self.store(over(y), &out);
    }
    pub(super) fn norm_train(
        &mut self,
        norm: NormId,
        x: TensorId,
        residual: Option<TensorId>,
        relu: bool,
        y: TensorId,
        n: usize,
    ) {
        let spec = self.spec.norms[norm.0 as usize];
        let (plane, input) = (self.plane(x), self.load(x, n));
        let c = spec.c as usize;
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
        let stats = Stats { mean, rstd };
        self.normalise(norm, x, residual, relu, y, n, &stats);
        self.stats[norm.0 as usize] = stats;
    }

    pub(super) fn norm_eval(
        &mut self,
        norm: NormId,
        x: TensorId,
        residual: Option<TensorId>,
        relu: bool,
        y: TensorId,
        n: usize,
    ) {
        let spec = self.spec.norms[norm.0 as usize];
        let (mean, var) = self.running[spec.running..][..2 * spec.c as usize].split_at(spec.c as usize);
        let rstd = var.iter().map(|v| 1.0 / (v + spec.eps).sqrt()).collect();
        let stats = Stats { mean: mean.to_vec(), rstd };
        self.normalise(norm, x, residual, relu, y, n, &stats);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn norm_grad(
        &mut self,
        norm: NormId,
        x: TensorId,
        y: TensorId,
        relu: bool,
        dy: TensorId,
        dx: Dst,
        dres: Option<Dst>,
        n: usize,
    ) {
        let spec = self.spec.norms[norm.0 as usize];
        let (plane, c) = (self.plane(x), spec.c as usize);
        let Stats { mean, rstd } = self.stats[norm.0 as usize].clone();
        let dz = through_relu(relu, &self.load(y, n), self.load(dy, n));
        let xhat: Vec<f64> = (self.load(x, n).iter().enumerate())
            .map(|(i, v)| (v - mean[channel(plane, i)]) * rstd[channel(plane, i)])
            .collect();

        let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
        for i in 0..dz.len() {
            dgamma[channel(plane, i)] += dz[i] * xhat[i];
            dbeta[channel(plane, i)] += dz[i];
        }
        let gamma = self.dense_param(spec.gamma);
        let count = (dz.len() / c) as f64;
        let dinput: Vec<f64> = (0..dz.len())
            .map(|i| {
                let c = channel(plane, i);
                gamma[c] * rstd[c] * (dz[i] - dbeta[c] / count - xhat[i] * dgamma[c] / count)
            })
            .collect();
        self.store(dx, &dinput);
        if let Some(dres) = dres {
            self.store(dres, &dz);
        }
        for (param, grad) in [(spec.gamma, dgamma), (spec.beta, dbeta)] {
            let range = self.spec.params[param.0 as usize].range.clone();
            self.grads[range].copy_from_slice(&grad);
        }
    }
}
