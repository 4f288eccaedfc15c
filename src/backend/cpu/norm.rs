//! Coefficients of the batch norms: from statistics forward, from the sums of the gradient backward.

use crate::backend::NormSpec;

/// What a norm keeps from forward to backward, a channel.
pub(super) struct Coefs {
    /// Mean, of the batch or running.
    pub(super) mean: Vec<f32>,
    /// 1/sqrt(var + eps) of the same statistics.
    rstd: Vec<f32>,
    /// Whether they are the running statistics, which no gradient passes through.
    frozen: bool,
    /// Forward: `y = x * [0] + [1]`.
    pub(super) affine: Vec<[f32; 2]>,
    /// Backward: `dx = g * [0] + x * [1] + [2]`.
    pub(super) back: Vec<[f32; 3]>,
}

impl Coefs {
    pub(super) fn new(c: usize) -> Self {
        Coefs {
            mean: vec![0.0; c],
            rstd: vec![0.0; c],
            frozen: false,
            affine: vec![[0.0; 2]; c],
            back: vec![[0.0; 3]; c],
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.mean.len() as u64 * 28
    }

    fn set(&mut self, ch: usize, gamma: f32, beta: f32, mean: f64, rstd: f64) {
        (self.mean[ch], self.rstd[ch]) = (mean as f32, rstd as f32);
        let scale = (f64::from(gamma) * rstd) as f32;
        self.affine[ch] = [scale, (f64::from(beta) - mean * f64::from(scale)) as f32];
    }

    /// From the batch: `stats(ch)` is (count, mean, M2). `running` is the norm's part: means, then variances.
    pub(super) fn train(
        &mut self,
        spec: &NormSpec,
        gamma: &[f32],
        beta: &[f32],
        running: &mut [f32],
        stats: impl Fn(usize) -> [f64; 3],
    ) {
        self.frozen = false;
        let (means, vars) = running.split_at_mut(spec.c as usize);
        for ch in 0..spec.c as usize {
            let [count, mean, m2] = stats(ch);
            let rstd = 1.0 / (m2 / count + spec.eps).sqrt();
            self.set(ch, gamma[ch], beta[ch], mean, rstd);
            let blend =
                |old: &mut f32, new: f64| *old = (f64::from(*old) + spec.momentum * (new - f64::from(*old))) as f32;
            blend(&mut means[ch], mean);
            blend(&mut vars[ch], m2 / (count - 1.0));
        }
    }

    /// From the running statistics.
    pub(super) fn infer(&mut self, spec: &NormSpec, gamma: &[f32], beta: &[f32], running: &[f32]) {
        self.frozen = true;
        let (means, vars) = running.split_at(spec.c as usize);
        for ch in 0..spec.c as usize {
            let rstd = 1.0 / (f64::from(vars[ch]) + spec.eps).sqrt();
            self.set(ch, gamma[ch], beta[ch], f64::from(means[ch]), rstd);
            self.back[ch] = [self.affine[ch][0], 0.0, 0.0];
        }
    }

    /// From the finished gradient of the output: `sums(ch)` is sum(g), sum(g * (x - mean)) over `count` numbers. Overwrites
    /// the gradients of gamma and beta.
    pub(super) fn backward(
        &mut self,
        gamma: &[f32],
        dgamma: &mut [f32],
        dbeta: &mut [f32],
        count: f64,
        sums: impl Fn(usize) -> [f64; 2],
    ) {
        for ch in 0..gamma.len() {
            let [sum, dot] = sums(ch);
            let rstd = f64::from(self.rstd[ch]);
            let (scale, mean) = (f64::from(gamma[ch]) * rstd, f64::from(self.mean[ch]));
            dbeta[ch] = sum as f32;
            dgamma[ch] = (dot * rstd) as f32;
            if self.frozen {
                continue; // `infer` has set the rest
            }
            // scale * (g - sum/count - xhat * dot*rstd/count), xhat = (x - mean) * rstd
            let slope = (-scale * rstd * rstd * dot / count) as f32;
            let rest = -scale * sum / count - mean * f64::from(slope);
            self.back[ch] = [scale as f32, slope, rest as f32];
        }
    }
}
