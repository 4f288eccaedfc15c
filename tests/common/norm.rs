//! Batch norm: training and evaluation forward, backward.
//!
//! Error of xhat = (x - mean) * rstd for a sum of m numbers: the mean is off by eps * sqrt(m) * mean|x|, so a channel far
//! from zero has a large but honest bound. A variance from E[x^2] - mean^2 exceeds it there.

use super::COUNTS;
use super::rig::{Build, Out, Place, Rig, add, all, normal, over};
use sparse_engine::backend::{Backend, NormId, ParamId, Plane, Spec, Store, TensorId, Write};

/// What the bounds need to know of one channel.
struct Channel {
    gamma: f64,
    beta: f64,
    mean: f64,
    var: f64,
    rstd: f64,
    mean_abs: f64,
}

struct Case<B: Backend> {
    rig: Rig<B>,
    norm: NormId,
    gamma: ParamId,
    beta: ParamId,
    x: TensorId,
    y: TensorId,
    res: TensorId,
    dy: TensorId,
    dx: TensorId,
    dres: TensorId,
}

/// All planes, batch sizes, ReLU, residual and write rules.
pub fn check<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for chw in [[6, 5, 5], [17, 4, 3], [1, 8, 8], [5, 1, 1], [4, 1, 2]] {
        let mut case = Case::new(make, chw);
        for n in COUNTS {
            if n as u32 * chw[1] * chw[2] < 2 {
                continue;
            }
            for (relu, residual) in [(false, false), (true, false), (false, true), (true, true)] {
                case.forward(n, relu, residual);
                case.infer(n, relu, residual);
                case.backward(n, relu, residual);
            }
        }
    }
}

fn channel_of(p: Plane, i: usize) -> usize {
    i / (p.h * p.w) as usize % p.c as usize
}

impl<B: Backend> Case<B> {
    fn new(make: &dyn Fn(Spec) -> B, chw: [u32; 3]) -> Self {
        let mut build = Build::new(33);
        build.norm(2); // its parameters and statistics must stay as they are
        let norm = build.norm(chw[0]);
        build.norm(3);
        let spec = build.0.norms[norm.0 as usize];
        let [x, y, res, dy, dx, dres] = [0, 1, 1, 0, 2, 1].map(|halo| build.tensor(chw, halo));
        let mut rig = Rig::new(build, make, format!("CHW {chw:?}"));
        let range = rig.exact.spec().params[spec.gamma.0 as usize].range.clone();
        let mut values = normal("values", rig.exact.spec().stored());
        if chw[0] > 1 {
            values[range.end - 1] = 0.0; // a scale of zero kills dx of its channel, and nothing else
        }
        rig.set_store(Store::Values, &values);
        Case { rig, norm, gamma: spec.gamma, beta: spec.beta, x, y, res, dy, dx, dres }
    }

    fn name(&self, op: &str, relu: bool, residual: bool) -> String {
        format!("{op} relu {relu} residual {residual}")
    }

    /// Ordinary channels, one far from zero, one all zero (what a convolution without weights gives), one constant.
    fn set_x(&mut self, n: usize, name: &str) {
        let p = self.rig.plane(self.x);
        let mut x = normal(name, self.rig.len(self.x, n));
        for (i, v) in x.iter_mut().enumerate() {
            *v = match channel_of(p, i) {
                1 => 300.0 + 0.1 * *v,
                2 => 0.0,
                3 => 0.3,
                c => 1.0 + 0.5 * c as f64 + 2.0 * *v,
            };
        }
        self.rig.set(self.x, n, &x);
    }

    fn channels(&self, n: usize) -> Vec<Channel> {
        let p = self.rig.plane(self.x);
        let x = self.rig.exact.read_tensor(self.x, n);
        let values = self.rig.exact.read_store(Store::Values);
        let param = |id: ParamId, c: usize| values[self.rig.exact.spec().params[id.0 as usize].range.start + c];
        (0..p.c as usize)
            .map(|c| {
                let x: Vec<f64> = (0..x.len()).filter(|&i| channel_of(p, i) == c).map(|i| x[i]).collect();
                let average = |f: &dyn Fn(f64) -> f64| x.iter().map(|&v| f(v)).sum::<f64>() / x.len() as f64;
                let mean = average(&|v| v);
                let var = average(&|v| (v - mean) * (v - mean));
                let (gamma, beta) = (param(self.gamma, c), param(self.beta, c));
                Channel { gamma, beta, mean, var, rstd: (var + 1e-5).powf(-0.5), mean_abs: average(&|v| v.abs()) }
            })
            .collect()
    }

    /// Values a channel.
    fn count(&self, n: usize) -> f64 {
        let p = self.rig.plane(self.x);
        (n as u32 * p.h * p.w).into()
    }

    fn forward(&mut self, n: usize, relu: bool, residual: bool) {
        let rig = &mut self.rig;
        rig.set_normal(self.res, n, &format!("res {n}"));
        rig.poison(self.y);
        self.set_x(n, &format!("x {n} {relu}"));
        let Case { rig, norm, x, y, .. } = self;
        let before = rig.exact.read_store(Store::Running);
        let res = residual.then_some(self.res);
        all!(rig.norm_forward(*norm, *x, res, relu, *y, n));

        let (m, channels) = (self.count(n), self.channels(n));
        let (p, input) = (self.rig.plane(self.x), self.rig.exact.read_tensor(self.x, n));
        let shift = res.map(|t| self.rig.exact.read_tensor(t, n));
        let bound = (0..input.len()).map(|i| {
            let c = &channels[channel_of(p, i)];
            let xhat = c.rstd * (c.mean_abs + (input[i] - c.mean).abs());
            2.0 * m.sqrt() * ((c.gamma * xhat).abs() + c.beta.abs() + shift.as_ref().map_or(0.0, |s| s[i].abs()))
        });
        let y = Out { place: Place::Tensor(self.y), bound: bound.collect() };

        let spec = self.rig.exact.spec().norms[self.norm.0 as usize];
        let old = |i: usize| before[spec.running + i].abs();
        let eps = super::rig::eps::<B::Real>();
        let means = channels.iter().enumerate().map(|(i, c)| 2.0 * m.sqrt() * (old(i) + 0.1 * c.mean_abs));
        let vars = channels.iter().enumerate().map(|(i, c)| {
            let of_mean = eps * m * c.mean_abs * c.mean_abs; // the mean's own error, squared
            2.0 * (m.sqrt() * (old(i + channels.len()) + 0.1 * c.var * m / (m - 1.0)) + 0.1 * of_mean)
        });
        let running = Out { place: Place::Running(self.norm), bound: means.chain(vars).collect() };
        let name = self.name("norm_forward", relu, residual);
        self.rig.check(&name, n, &[y, running]);
    }

    /// Stands between forward and backward, whose batch statistics it must not disturb.
    fn infer(&mut self, n: usize, relu: bool, residual: bool) {
        let stats = self.rig.dev.read_store(Store::Running);
        self.rig.set_store(Store::Running, &super::rig::f64s(&stats)); // the same old statistics for all
        self.rig.poison(self.y);
        let Case { rig, norm, x, y, .. } = self;
        let res = residual.then_some(self.res);
        all!(rig.norm_infer(*norm, *x, res, relu, *y, n));

        let channels = self.channels(n);
        let spec = self.rig.exact.spec().norms[self.norm.0 as usize];
        let running = &self.rig.exact.read_store(Store::Running)[spec.running..];
        let (mean, var) = running.split_at(channels.len());
        let (p, input) = (self.rig.plane(self.x), self.rig.exact.read_tensor(self.x, n));
        let shift = res.map(|t| self.rig.exact.read_tensor(t, n));
        let bound = (0..input.len()).map(|i| {
            let at = channel_of(p, i);
            let c = &channels[at];
            let scale = c.gamma.abs() / (var[at] + 1e-5).sqrt();
            let xhat = scale * (input[i].abs() + mean[at].abs());
            4.0 * (xhat + c.beta.abs() + shift.as_ref().map_or(0.0, |s| s[i].abs()))
        });
        let y = Out { place: Place::Tensor(self.y), bound: bound.collect() };
        let name = self.name("norm_infer", relu, residual);
        self.rig.check(&name, n, &[y]);
    }

    fn backward(&mut self, n: usize, relu: bool, residual: bool) {
        // One y for all backends: near zero their own could differ in sign.
        let y = self.rig.exact.read_tensor(self.y, n);
        self.rig.set(self.y, n, &y);
        self.rig.set_normal(self.dy, n, &format!("dy {n}"));
        let stored = self.rig.exact.spec().stored();
        for (dx, dres) in
            [(over(self.dx), over(self.dres)), (add(self.dx), add(self.dres)), (over(self.dx), add(self.dres))]
        {
            let mut old = vec![];
            for dst in [dx, dres] {
                if dst.write == Write::Accumulate {
                    self.rig.set_normal(dst.t, n, &format!("old {dst:?} {n}"));
                    old.push(self.rig.exact.read_tensor(dst.t, n));
                } else {
                    self.rig.poison(dst.t);
                    old.push(vec![0.0; self.rig.len(dst.t, n)]);
                }
            }
            self.rig.set_store(Store::Grads, &vec![f64::NAN; stored]);
            let Case { rig, norm, x, y, dy, .. } = self;
            all!(rig.norm_backward(*norm, *x, *y, relu, *dy, dx, residual.then_some(dres), n));
            let mut outs = self.backward_bounds(n, relu, &old);
            outs.truncate(if residual { 4 } else { 3 });
            let name = self.name("norm_backward", relu, residual);
            self.rig.check(&format!("{name} dx {:?} dres {:?}", dx.write, dres.write), n, &outs);
        }
    }

    /// Bounds of dgamma, dbeta, dx, dres, the latter two with what they held before.
    fn backward_bounds(&self, n: usize, relu: bool, old: &[Vec<f64>]) -> Vec<Out> {
        let (m, channels) = (self.count(n), self.channels(n));
        let p = self.rig.plane(self.x);
        let [x, y, dy] = [self.x, self.y, self.dy].map(|t| self.rig.exact.read_tensor(t, n));
        let dz: Vec<f64> = (0..x.len()).map(|i| if !relu || y[i] > 0.0 { dy[i] } else { 0.0 }).collect();
        let xhat = |c: &Channel, i: usize| (x[i] - c.mean) * c.rstd;
        let xhat_bound = |c: &Channel, i: usize| c.rstd * (c.mean_abs + (x[i] - c.mean).abs());

        let sum = |f: &dyn Fn(&Channel, usize) -> f64| -> Vec<f64> {
            let mut sums = vec![0.0; channels.len()];
            (0..x.len()).for_each(|i| sums[channel_of(p, i)] += f(&channels[channel_of(p, i)], i));
            sums
        };
        let dz_abs = sum(&|_, i| dz[i].abs());
        let dgamma_abs = sum(&|c, i| dz[i].abs() * (xhat(c, i).abs() + xhat_bound(c, i)));
        let dgamma = sum(&|c, i| dz[i] * xhat(c, i));
        let root = 2.0 * m.sqrt();
        let dx = (0..x.len()).map(|i| {
            let at = channel_of(p, i);
            let c = &channels[at];
            let mean_part = dz[i].abs() + dz_abs[at] / m;
            let slope = (xhat(c, i).abs() * dgamma_abs[at] + xhat_bound(c, i) * dgamma[at].abs()) / m;
            root * (c.gamma.abs() * c.rstd * (mean_part + slope) + old[0][i].abs())
        });
        let scaled = |v: &[f64]| v.iter().map(|v| root * v).collect();
        vec![
            Out { place: Place::Grad(self.gamma), bound: scaled(&dgamma_abs) },
            Out { place: Place::Grad(self.beta), bound: scaled(&dz_abs) },
            Out { place: Place::Tensor(self.dx), bound: dx.collect() },
            Out {
                place: Place::Tensor(self.dres),
                bound: dz.iter().zip(&old[1]).map(|(d, o)| d.abs() + o.abs()).collect(),
            },
        ]
    }
}
