//! Convolutions: three loop nests over the kept weights and the pairs of output and input elements each connects.

use super::{RefBackend, channel};
use crate::backend::{ConvId, ConvSpec, Grad, Input, TensorId};
use crate::shape::ConvGeom;

/// One stored weight: its coordinates in [K,C,R,S] and its place in the flat store.
struct Tap {
    k: usize,
    c: usize,
    r: usize,
    s: usize,
    at: usize,
}

impl RefBackend {
    /// The kept weights of `conv`, in store order.
    fn taps(&self, conv: &ConvSpec) -> Vec<Tap> {
        let p = &self.spec.params[conv.weight.0 as usize];
        let g = conv.geom;
        let [c, r, s] = [g.c, g.r, g.s].map(|v| v as usize);
        assert_eq!(p.shape.iter().product::<usize>(), g.weights(), "weight shape {:?} against {g:?}", p.shape);
        p.range
            .clone()
            .enumerate()
            .map(|(i, at)| {
                let flat = p.kept.as_ref().map_or(i, |kept| kept[i] as usize);
                Tap { k: flat / (c * r * s), c: flat / (r * s) % c, r: flat / s % r, s: flat % s, at }
            })
            .collect()
    }

    /// Checks that `x` and `y` are the input and output of `conv`.
    fn conv(&self, conv: ConvId, x: TensorId, y: TensorId) -> ConvSpec {
        let conv = self.spec.convs[conv.0 as usize];
        let (g, px, py) = (conv.geom, self.plane(x), self.plane(y));
        assert_eq!((px.c, px.h, px.w), (g.c, g.h, g.w), "input of {g:?}");
        assert_eq!((py.c, py.h, py.w), (g.k, g.p(), g.q()), "output of {g:?}");
        conv
    }

    pub(super) fn conv_y(&self, conv: ConvId, x: Input, y: TensorId, n: usize) -> Vec<f64> {
        let conv = self.conv(conv, x.t, y);
        let input = self.input(x, n);
        let mut out = vec![0.0; n * self.plane(y).len()];
        if let Some(bias) = conv.bias {
            let bias = self.dense_param(bias);
            out.iter_mut().enumerate().for_each(|(i, v)| *v = bias[channel(self.plane(y), i)]);
        }
        for tap in self.taps(&conv) {
            for_pairs(conv.geom, &tap, n, |o, i| out[o] += self.values[tap.at] * input[i]);
        }
        out
    }

    pub(super) fn conv_dx(&self, conv: ConvId, dy: Grad, dx: TensorId, n: usize) -> Vec<f64> {
        let conv = self.conv(conv, dx, dy.t);
        let grad = self.grad(dy, n);
        let mut out = vec![0.0; n * self.plane(dx).len()];
        for tap in self.taps(&conv) {
            for_pairs(conv.geom, &tap, n, |o, i| out[i] += self.values[tap.at] * grad[o]);
        }
        out
    }

    pub(super) fn conv_dw(&mut self, conv: ConvId, x: Input, dy: Grad, n: usize) {
        let conv = self.conv(conv, x.t, dy.t);
        let (input, grad) = (self.input(x, n), self.grad(dy, n));
        for tap in self.taps(&conv) {
            let mut sum = 0.0;
            for_pairs(conv.geom, &tap, n, |o, i| sum += grad[o] * input[i]);
            self.grads[tap.at] = sum;
        }
        if let Some(bias) = conv.bias {
            let range = self.spec.params[bias.0 as usize].range.clone();
            let plane = self.plane(dy.t);
            let db = &mut self.grads[range];
            db.fill(0.0);
            grad.iter().enumerate().for_each(|(i, d)| db[channel(plane, i)] += d);
        }
    }
}

/// Calls `f` with each pair (output element, input element) that weight `tap` connects, over `n` images; padding is left
/// out.
fn for_pairs(g: ConvGeom, tap: &Tap, n: usize, mut f: impl FnMut(usize, usize)) {
    let [c, h, w, k, p, q] = [g.c, g.h, g.w, g.k, g.p(), g.q()].map(|v| v as usize);
    let (stride, pad) = (g.stride as usize, g.pad as usize);
    for image in 0..n {
        for row in 0..p {
            for col in 0..q {
                let (y, x) = (row * stride + tap.r, col * stride + tap.s); // in the padded input
                if (pad..pad + h).contains(&y) && (pad..pad + w).contains(&x) {
                    let output = ((image * k + tap.k) * p + row) * q + col;
                    f(output, ((image * c + tap.c) * h + y - pad) * w + x - pad);
                }
            }
        }
    }
}
