//! Operands in f64, from copies of what the backend stores: value, and the size of what was added up to it, which bounds
//! the rounding that an f32 backend may have done.

use crate::backend::{NormSpec, Plane, Real};
use std::sync::Arc;

/// A number, and the sum of the magnitudes of its terms.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Num {
    pub(super) v: f64,
    pub(super) size: f64,
}

impl Num {
    pub(super) fn exact(v: f64) -> Self {
        Num { v, size: v.abs() }
    }

    pub(super) fn plus(self, o: Num) -> Self {
        Num { v: self.v + o.v, size: self.size + o.size }
    }

    pub(super) fn times(self, o: Num) -> Self {
        Num { v: self.v * o.v, size: self.size * o.size }
    }

    pub(super) fn scaled(self, by: f64) -> Self {
        Num { v: self.v * by, size: self.size * by.abs() }
    }

    /// 0 where negative; NaN stays NaN.
    pub(super) fn relu(self) -> Self {
        Num { v: if self.v < 0.0 { 0.0 } else { self.v }, ..self }
    }
}

/// What a tensor holds: image, channel, row, column.
pub(super) struct Held<R> {
    pub(super) plane: Plane,
    pub(super) n: usize,
    pub(super) data: Vec<R>,
}

impl<R: Real> Held<R> {
    pub(super) fn at(&self, [n, c, h, w]: [usize; 4]) -> f64 {
        let Plane { c: cs, h: hs, w: ws } = self.plane;
        self.data[((n * cs as usize + c) * hs as usize + h) * ws as usize + w].to_f64()
    }

    /// The numbers of each channel of one image after the other, with the channel.
    pub(super) fn planes(&self) -> impl Iterator<Item = (usize, &[R])> {
        let (pixels, c) = (self.plane.h as usize * self.plane.w as usize, self.plane.c as usize);
        self.data.chunks_exact(pixels).enumerate().map(move |(i, plane)| (i % c, plane))
    }

    /// Values of one channel.
    pub(super) fn count(&self) -> f64 {
        self.n as f64 * f64::from(self.plane.h) * f64::from(self.plane.w)
    }
}

/// A batch norm's statistics of one channel, and after the backward reduction its sums, as means over the channel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Channel {
    pub(super) mean: f64,
    pub(super) mean_size: f64,
    pub(super) var: f64,
    pub(super) rstd: f64,
    pub(super) gamma: f64,
    pub(super) beta: f64,
    /// Means of g and of g * xhat.
    pub(super) g: Num,
    pub(super) gx: Num,
}

impl Channel {
    pub(super) fn xhat(&self, x: f64) -> Num {
        Num { v: (x - self.mean) * self.rstd, size: (x.abs() + self.mean_size) * self.rstd }
    }

    fn forward(&self, x: f64) -> Num {
        self.xhat(x).scaled(self.gamma).plus(Num::exact(self.beta))
    }

    fn backward(&self, g: f64, x: f64) -> Num {
        let through = self.xhat(x).times(self.gx);
        Num::exact(g).plus(self.g.scaled(-1.0)).plus(through.scaled(-1.0)).scaled(self.gamma * self.rstd)
    }
}

/// Statistics of each channel of `x`, in f64.
pub(super) fn statistics<R: Real>(spec: &NormSpec, x: &Held<R>, gamma: &[R], beta: &[R]) -> Vec<Channel> {
    let mut channels = vec![Channel::default(); spec.c as usize];
    let count = x.count();
    for (c, plane) in x.planes() {
        for v in plane.iter().map(|v| v.to_f64()) {
            channels[c].mean += v;
            channels[c].mean_size += v.abs();
        }
    }
    for ((c, gamma), beta) in channels.iter_mut().zip(gamma).zip(beta) {
        (c.mean, c.mean_size) = (c.mean / count, c.mean_size / count);
        (c.gamma, c.beta) = (gamma.to_f64(), beta.to_f64());
    }
    for (c, plane) in x.planes() {
        let mean = channels[c].mean;
        channels[c].var += plane.iter().map(|v| (v.to_f64() - mean).powi(2)).sum::<f64>();
    }
    for c in &mut channels {
        c.var /= count;
        c.rstd = 1.0 / (c.var + spec.eps).sqrt();
    }
    channels
}

/// Adds the means of g and g * xhat to the channels of a norm of `x`.
pub(super) fn sums<R: Real>(channels: &mut [Channel], g: &Held<R>, x: &Held<R>) {
    channels.iter_mut().for_each(|c| (c.g, c.gx) = (Num::default(), Num::default()));
    let count = g.count();
    for ((c, g), (_, x)) in g.planes().zip(x.planes()) {
        let ch = &mut channels[c];
        for (g, x) in g.iter().zip(x) {
            let g = Num::exact(g.to_f64());
            (ch.g, ch.gx) = (ch.g.plus(g), ch.gx.plus(g.times(ch.xhat(x.to_f64()))));
        }
    }
    channels.iter_mut().for_each(|c| (c.g, c.gx) = (c.g.scaled(1.0 / count), c.gx.scaled(1.0 / count)));
}

/// A [`crate::backend::Input`].
pub(super) struct Value<R> {
    pub(super) t: Arc<Held<R>>,
    pub(super) norm: Option<Vec<Channel>>,
    pub(super) relu: bool,
}

impl<R: Real> Value<R> {
    pub(super) fn at(&self, i: [usize; 4]) -> Num {
        let t = self.t.at(i);
        let v = self.norm.as_ref().map_or(Num::exact(t), |n| n[i[1]].forward(t));
        if self.relu { v.relu() } else { v }
    }
}

/// A [`crate::backend::Grad`].
pub(super) struct Gradient<R> {
    pub(super) t: Arc<Held<R>>,
    pub(super) norm: Option<(Vec<Channel>, Arc<Held<R>>)>,
}

impl<R: Real> Gradient<R> {
    pub(super) fn at(&self, i: [usize; 4]) -> Num {
        let t = self.t.at(i);
        self.norm.as_ref().map_or(Num::exact(t), |(n, x)| n[i[1]].backward(t, x.at(i)))
    }
}
