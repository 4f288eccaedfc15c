//! Convolution and gradients as loops over their definition, in f64, with the sums of magnitudes that errors scale with.

use sparse_engine::shape::ConvGeom;

/// A result and for each number the sum of |a * b|.
#[derive(Clone)]
pub struct Sums {
    pub v: Vec<f64>,
    pub size: Vec<f64>,
}

impl Sums {
    fn new(n: usize) -> Self {
        Sums { v: vec![0.0; n], size: vec![0.0; n] }
    }
    fn add(&mut self, at: usize, v: f64) {
        self.v[at] += v;
        self.size[at] += v.abs();
    }
}

/// Output, gradient of the input, gradient of the dense weight in [K,C,R,S].
pub fn convolve(g: &ConvGeom, images: usize, x: &[f64], w: &[f64], dy: &[f64]) -> [Sums; 3] {
    let [c, h, wd, k, r, s, p, q] = [g.c, g.h, g.w, g.k, g.r, g.s, g.p(), g.q()].map(|v| v as usize);
    let mut out = [images * p * q * k, images * h * wd * c, k * c * r * s].map(Sums::new);
    let [y, dx, dw] = &mut out;
    for image in 0..images {
        for (i, j) in (0..p).flat_map(|i| (0..q).map(move |j| (i, j))) {
            for (a, b) in (0..r).flat_map(|a| (0..s).map(move |b| (a, b))) {
                let row = (i * g.stride as usize + a).checked_sub(g.pad as usize).filter(|&v| v < h);
                let column = (j * g.stride as usize + b).checked_sub(g.pad as usize).filter(|&v| v < wd);
                let (Some(row), Some(column)) = (row, column) else { continue };
                let (from, to) = (((image * h + row) * wd + column) * c, ((image * p + i) * q + j) * k);
                for (o, e) in (0..k).flat_map(|o| (0..c).map(move |e| (o, e))) {
                    let at = ((o * c + e) * r + a) * s + b;
                    y.add(to + o, x[from + e] * w[at]);
                    dx.add(from + e, dy[to + o] * w[at]);
                    dw.add(at, dy[to + o] * x[from + e]);
                }
            }
        }
    }
    out
}
