//! Operands that are computed while an op reads them: their data, their values, and what their error may be.
//!
//! Error of xhat = (x - mean) * rstd for a sum of m numbers: the mean is off by eps * sqrt(m) * mean|x|, so a channel far
//! from zero has a large but honest bound. A variance from E[x^2] - mean^2 exceeds it there.

use super::rig::{Out, Place, Rig, normal};
use sparse_engine::backend::{Backend, Grad, Input, NormId, Normed, ParamId, Plane, Real, Store, TensorId};
use sparse_engine::graph::lower::Forward;

/// What is known of one channel of a norm.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    gamma: f64,
    beta: f64,
    mean: f64,
    var: f64,
    rstd: f64,
    /// The mean's error in units of eps, but for `root`.
    mean_error: f64,
    /// Error of a sum, relative to its terms, in units of eps.
    root: f64,
    /// Whether the statistics are the running ones.
    frozen: bool,
}

impl Channel {
    fn xhat(&self, x: f64) -> f64 {
        (x - self.mean) * self.rstd
    }

    /// Error of [`Channel::xhat`] in units of eps, but for `root`.
    fn xhat_error(&self, x: f64) -> f64 {
        self.rstd * (self.mean_error + (x - self.mean).abs())
    }
}

/// What a channel holds: integers about 0, in steps from an offset.
fn scale(channel: usize, hostile: bool, eps: f64) -> (f64, f64) {
    match channel {
        1 if hostile => (300.0, f64::max(0.1, 512.0 * eps)), // far from zero, on numbers that can be stored
        2 if hostile => (0.0, 0.0),                          // what a convolution without weights gives
        3 if hostile => (0.3, 0.0),
        c => (1.0 + 0.5 * (c % 4) as f64, 0.5),
    }
}

pub fn channel_of(p: Plane, i: usize) -> usize {
    i / (p.h * p.w) as usize % p.c as usize
}

/// The numbers of channel `c` of an N,C,H,W tensor.
pub fn of_channel(x: &[f64], p: Plane, c: usize) -> Vec<f64> {
    x.chunks((p.h * p.w) as usize).skip(c).step_by(p.c as usize).flatten().copied().collect()
}

impl<B: Backend> Rig<B> {
    pub fn affine(&self, norm: NormId) -> (ParamId, ParamId) {
        let spec = self.exact.spec().norms[norm.0 as usize];
        (spec.gamma, spec.beta)
    }

    fn param(&self, p: ParamId) -> Vec<f64> {
        self.store(Store::Values)[self.exact.spec().params[p.0 as usize].range.clone()].to_vec()
    }

    /// Numbers on a grid in `x`, so that equals and neighbours are far apart for any precision, and the batch statistics
    /// of `norm` of them. Its shifts are moved so that zero lies between two points of the grid.
    pub fn set_normed(&mut self, x: TensorId, norm: NormId, n: usize, name: &str, hostile: bool) {
        let (p, eps) = (self.plane(x), self.dev.rounding().eps);
        let grid = |(i, z): (usize, f64)| {
            let (offset, step) = scale(channel_of(p, i), hostile, eps);
            offset + step * (4.0 * z).round()
        };
        let data: Vec<f64> = normal(name, self.len(x, n)).into_iter().enumerate().map(grid).collect();
        self.set(x, n, &data);
        let channels = self.batch_channels(norm, x, n);
        let shift = |(c, channel): (usize, &Channel)| {
            let (offset, step) = scale(c, hostile, eps);
            if channel.var * channel.gamma * step == 0.0 {
                return if c % 2 == 0 { 0.5 } else { -0.5 };
            }
            let between = ((channel.mean - offset) / step).round() + 0.5 + (c % 3) as f64 - 1.0;
            -channel.gamma * channel.xhat(offset + step * between)
        };
        let beta = channels.iter().enumerate().map(shift).collect();
        self.set_params(Store::Values, &[(self.affine(norm).1, beta)]);
        self.preparing = true;
        self.forward("norm_stats", Forward::Stats { norm, x }, n, 1);
        self.preparing = false;
    }

    /// The statistics of the reference's `x`.
    fn batch_channels(&self, norm: NormId, x: TensorId, n: usize) -> Vec<Channel> {
        let (p, x) = (self.plane(x), self.exact.read_tensor(x, n));
        let [gamma, beta] = <[ParamId; 2]>::from(self.affine(norm)).map(|id| self.param(id));
        let channel = |c: usize| {
            let x = of_channel(&x, p, c);
            let m = x.len() as f64;
            let average = |f: &dyn Fn(f64) -> f64| x.iter().map(|&v| f(v)).sum::<f64>() / m;
            let mean = average(&|v| v);
            let var = average(&|v| (v - mean) * (v - mean));
            let (rstd, mean_error) = ((var + 1e-5).powf(-0.5), average(&|v| v.abs()));
            Channel { gamma: gamma[c], beta: beta[c], mean, var, rstd, mean_error, root: 2.0 * m.sqrt(), frozen: false }
        };
        (0..p.c as usize).map(channel).collect()
    }

    /// The running statistics that the backend under test must have after those of `x`, which it has in common with the
    /// reference; notes the coefficients.
    pub fn statistics_taken(&mut self, norm: NormId, x: TensorId, n: usize) -> Out {
        let spec = self.exact.spec().norms[norm.0 as usize];
        let channels = self.batch_channels(norm, x, n);
        let p = self.plane(x);
        let (c, m) = (channels.len(), f64::from(n as u32 * p.h * p.w));
        let old = &self.store(Store::Running)[spec.running..];
        let eps = B::Real::EPS;
        let (mut want, mut bound) = (vec![0.0; 2 * c], vec![0.0; 2 * c]);
        for (i, ch) in channels.iter().enumerate() {
            let var = ch.var * m / (m - 1.0);
            want[i] = 0.9 * old[i] + 0.1 * ch.mean;
            want[c + i] = 0.9 * old[c + i] + 0.1 * var;
            bound[i] = ch.root * (old[i].abs() + 0.1 * ch.mean_error);
            let of_mean = eps * m * ch.mean_error * ch.mean_error; // the mean's own error, squared
            bound[c + i] = ch.root * (old[c + i].abs() + 0.1 * var) + 0.2 * of_mean;
        }
        self.channels[norm.0 as usize] = channels;
        Out { place: Place::Running(norm), want, bound, coarse: vec![] }
    }

    /// Coefficients from the running statistics.
    pub fn use_running(&mut self, norm: NormId, n: usize) {
        let running = self.store(Store::Running).to_vec();
        self.set_store(Store::Running, &running); // the same for all
        self.dev.norm_running(norm);
        self.exact.norm_running(norm);
        self.check("norm_running", n, &[]);
        let spec = self.exact.spec().norms[norm.0 as usize];
        let [gamma, beta] = <[ParamId; 2]>::from(self.affine(norm)).map(|id| self.param(id));
        let (mean, var) = running[spec.running..][..2 * spec.c as usize].split_at(spec.c as usize);
        let channel = |c: usize| {
            let (mean, var) = (mean[c], var[c]);
            let (rstd, mean_error) = ((var + 1e-5).powf(-0.5), 2.0 * mean.abs());
            Channel { gamma: gamma[c], beta: beta[c], mean, var, rstd, mean_error, root: 4.0, frozen: true }
        };
        self.channels[norm.0 as usize] = (0..mean.len()).map(channel).collect();
    }

    /// The value of an operand and, in units of eps, its error.
    pub fn value(&self, x: Input, n: usize) -> (Vec<f64>, Vec<f64>) {
        let p = self.plane(x.t);
        let data = self.exact.read_tensor(x.t, n);
        let element = |(i, &v): (usize, &f64)| {
            let (v, error) = match x.norm {
                None => (v, 0.0),
                Some(norm) => {
                    let c = &self.channels[norm.0 as usize][channel_of(p, i)];
                    let error = c.root * (c.gamma.abs() * c.xhat_error(v) + c.beta.abs());
                    (c.gamma * c.xhat(v) + c.beta, error)
                }
            };
            (if x.relu { v.max(0.0) } else { v }, error)
        };
        data.iter().enumerate().map(element).unzip()
    }

    /// The value of a gradient and, in units of eps, its error.
    pub fn grad_value(&self, dy: Grad, n: usize) -> (Vec<f64>, Vec<f64>) {
        let g = self.exact.read_tensor(dy.t, n);
        let Some(through) = dy.norm else { return (g.clone(), vec![0.0; g.len()]) };
        let (p, x) = (self.plane(through.x), self.exact.read_tensor(through.x, n));
        let channels = &self.channels[through.norm.0 as usize];
        let m = (g.len() / channels.len()) as f64;
        let [sum, sum_xhat] = self.sums(through, &g, n);
        let element = |i: usize| {
            let at = channel_of(p, i);
            let c = &channels[at];
            if c.frozen {
                let value = c.gamma * c.rstd * g[i];
                return (value, c.root * value.abs());
            }
            let (xhat, xhat_error) = (c.xhat(x[i]), c.xhat_error(x[i]));
            let slope = (xhat.abs() * sum_xhat.bound[at] + c.root * xhat_error * sum_xhat.want[at].abs()) / m;
            let error = c.root * g[i].abs() + sum.bound[at] / m + slope;
            let value = c.gamma * c.rstd * (g[i] - sum.want[at] / m - xhat * sum_xhat.want[at] / m);
            (value, c.gamma.abs() * c.rstd * error)
        };
        (0..g.len()).map(element).unzip()
    }

    /// sum(g) and sum(g * xhat) a channel: the gradients of beta and gamma.
    pub fn sums(&self, normed: Normed, g: &[f64], n: usize) -> [Out; 2] {
        let (p, x) = (self.plane(normed.x), self.exact.read_tensor(normed.x, n));
        let channels = &self.channels[normed.norm.0 as usize];
        let (gamma, beta) = self.affine(normed.norm);
        let [mut sum, mut sum_xhat] = [beta, gamma].map(|param| Out {
            place: Place::Grad(param),
            want: vec![0.0; channels.len()],
            bound: vec![0.0; channels.len()],
            coarse: vec![],
        });
        for i in 0..g.len() {
            let at = channel_of(p, i);
            let c = &channels[at];
            let xhat = c.xhat(x[i]);
            // Running statistics bring errors of their own; the sum has that of its terms all the same.
            let root = c.root.max(2.0 * (g.len() as f64 / channels.len() as f64).sqrt());
            sum.want[at] += g[i];
            sum.bound[at] += root * g[i].abs();
            sum_xhat.want[at] += g[i] * xhat;
            sum_xhat.bound[at] += root * g[i].abs() * (xhat.abs() + c.xhat_error(x[i]));
        }
        [sum, sum_xhat]
    }
}
