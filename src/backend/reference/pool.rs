//! Mean and maximum pooling.

use super::{RefBackend, channel};
use crate::backend::{Grad, Input, Plane, PoolId, TensorId};

impl RefBackend {
    /// Checks that `y` is the mean of `x`.
    fn mean_planes(&self, x: TensorId, y: TensorId) -> Plane {
        let (x, y) = (self.plane(x), self.plane(y));
        assert_eq!(y, Plane { c: x.c, h: 1, w: 1 }, "mean of {x:?}");
        x
    }

    pub(super) fn mean_y(&self, x: Input, y: TensorId, n: usize) -> Vec<f64> {
        let plane = self.mean_planes(x.t, y);
        let pixels = (plane.h * plane.w) as usize;
        self.input(x, n).chunks(pixels).map(|c| c.iter().sum::<f64>() / pixels as f64).collect()
    }

    pub(super) fn mean_dx(&self, dy: Grad, dx: TensorId, n: usize) -> Vec<f64> {
        let plane = self.mean_planes(dx, dy.t);
        let pixels = (plane.h * plane.w) as usize;
        let grad = self.grad(dy, n);
        (0..n * plane.len()).map(|i| grad[i / pixels] / pixels as f64).collect()
    }

    pub(super) fn max_y(&self, pool: PoolId, x: Input, y: TensorId, n: usize) -> Vec<f64> {
        let input = self.input(x, n);
        self.winners(pool, &input, self.plane(x.t), self.plane(y)).into_iter().map(|i| input[i]).collect()
    }

    pub(super) fn max_dx(&self, pool: PoolId, x: Input, dy: Grad, dx: TensorId, n: usize) -> Vec<f64> {
        assert_eq!(self.plane(dx), self.plane(x.t), "gradient of the maximum");
        let (input, grad) = (self.input(x, n), self.grad(dy, n));
        let mut out = vec![0.0; input.len()];
        let winners = self.winners(pool, &input, self.plane(x.t), self.plane(dy.t));
        winners.into_iter().zip(grad).for_each(|(i, g)| out[i] += g);
        out
    }

    /// The element of `x` that each window's maximum comes from: the first NaN in row order, or the first of the largest.
    fn winners(&self, pool: PoolId, x: &[f64], px: Plane, py: Plane) -> Vec<usize> {
        let spec = self.spec.pools[pool.0 as usize];
        let side = |len: u32| (len + 2 * spec.pad - spec.size) / spec.stride + 1;
        assert_eq!(py, Plane { c: px.c, h: side(px.h), w: side(px.w) }, "{spec:?} of {px:?}");
        let [size, stride, pad] = [spec.size, spec.stride, spec.pad].map(|v| v as usize);
        let [h, w, p, q] = [px.h, px.w, py.h, py.w].map(|v| v as usize);
        let images = x.len() / px.len();
        let winner = |out: usize| {
            let (row, col) = (out / q % p, out % q);
            let start = (out / py.len() * px.c as usize + channel(py, out)) * h * w;
            let cells = (0..size * size).map(|i| (row * stride + i / size, col * stride + i % size));
            let inside = cells.filter(|&(r, c)| (pad..pad + h).contains(&r) && (pad..pad + w).contains(&c));
            let better = |a: usize, b: usize| x[b] > x[a] || (x[b].is_nan() && !x[a].is_nan());
            inside
                .map(|(r, c)| start + (r - pad) * w + c - pad)
                .reduce(|a, b| if better(a, b) { b } else { a })
                .expect("padding is smaller than a window")
        };
        (0..images * py.len()).map(winner).collect()
    }
}
