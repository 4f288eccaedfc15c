//! Convolutions as matrix products over a few images at a time.
//!
//! Activations lie in C,N,H,W order, so that a channel is one run of numbers and a range of images a block of columns.
//! How images are grouped depends on shapes alone, and groups are summed in order: threads change no bit.

use super::number::{Matrix, Number, Rows};
use crate::shape::ConvGeom;
use rayon::prelude::*;
use std::ops::Range;

/// Output pixels of a group of images, at least: a product reads the weight once a group.
const COLUMNS: usize = 256;
/// Weight gradients that groups sum into before they are added up, each group of images into one: as many as have this many
/// numbers together, and how many at most.
const PARTIALS: usize = 1 << 25;
const MOST_PARTIALS: usize = 64;

/// A convolution and the images that it runs over.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub geom: ConvGeom,
    pub n: usize,
}

/// Gives the values of a range of images, in C,N,H,W order.
pub(super) trait Images<T>: Fn(Range<usize>) -> Vec<T> + Sync {}
impl<T, F: Fn(Range<usize>) -> Vec<T> + Sync> Images<T> for F {}

impl Job {
    /// Output pixels of an image.
    fn pixels(&self) -> usize {
        self.geom.p() as usize * self.geom.q() as usize
    }

    /// Input channels times taps.
    fn depth(&self) -> usize {
        (self.geom.c * self.geom.r * self.geom.s) as usize
    }

    /// Images, in groups of about the same size.
    fn groups(&self) -> Vec<Range<usize>> {
        let most = (COLUMNS / self.pixels()).max(1);
        let count = self.n.div_ceil(most);
        (0..count).map(|i| i * self.n / count..(i + 1) * self.n / count).collect()
    }

    /// `y = conv(x, weight) + bias`.
    pub fn forward<T: Number>(&self, x: impl Images<T>, weight: &[T], bias: Option<&[T]>) -> Vec<T> {
        let groups = self.groups();
        let k = self.geom.k as usize;
        let group = |images: &Range<usize>| {
            let columns = self.columns(x(images.clone()), images.len());
            let width = images.len() * self.pixels();
            let mut y = vec![T::default(); k * width];
            if let Some(bias) = bias {
                y.chunks_mut(width).zip(bias).for_each(|(row, &b)| row.fill(b));
            }
            let weight = Matrix { of: Rows::dense(weight, k, self.depth()), transposed: false };
            T::multiply(weight, Rows::dense(&columns, self.depth(), width), &mut y);
            y
        };
        let parts: Vec<Vec<T>> = groups.par_iter().map(group).collect();
        gather(&groups, &parts, k, self.n)
    }

    /// What is wanted of the weight's gradient ([`Number::weight_gradient`]), and where `input` says so the gradient of x,
    /// given that of y.
    pub fn backward<T: Number>(
        &self,
        x: impl Images<T>,
        weight: &[T],
        dy: &[T],
        input: bool,
    ) -> (Vec<f64>, Option<Vec<T>>) {
        let groups = self.groups();
        let (k, pixels, depth) = (self.geom.k as usize, self.pixels(), self.depth());
        let group = |images: &Range<usize>, dw: &mut [f64]| {
            let width = images.len() * pixels;
            let columns = self.columns(x(images.clone()), images.len());
            let data = &dy[images.start * pixels..];
            let dy = Rows { data, rows: k, columns: width, distance: self.n * pixels };
            T::weight_gradient(dy, Rows::dense(&columns, depth, width), dw);
            drop(columns);
            if !input {
                return vec![];
            }
            let mut dcolumns = vec![T::default(); depth * width];
            let weight = Matrix { of: Rows::dense(weight, k, depth), transposed: true };
            T::multiply(weight, dy, &mut dcolumns);
            self.image_gradient(dcolumns, images.len())
        };
        let partials = self.partials();
        let partial = |i: usize| {
            let mut dw = vec![0.0; weight.len()];
            let mine = &groups[i * groups.len() / partials..(i + 1) * groups.len() / partials];
            let dx: Vec<Vec<T>> = mine.iter().map(|images| group(images, &mut dw)).collect();
            (dw, dx)
        };
        let (dws, dxs): (Vec<Vec<f64>>, Vec<Vec<Vec<T>>>) = (0..partials).into_par_iter().map(partial).unzip();
        let mut dws = dws.into_iter();
        let mut dw = dws.next().expect("at least one image");
        for partial in dws {
            dw.par_iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
        }
        let parts: Vec<Vec<T>> = dxs.into_iter().flatten().collect();
        (dw, input.then(|| gather(&groups, &parts, self.geom.c as usize, self.n)))
    }

    /// Bytes of [`Job::backward`] beside the tensors themselves: partial sums, and on each thread the matrices of a group.
    pub fn scratch<T>(&self, threads: usize) -> u64 {
        let group = self.groups().iter().map(Range::len).max().unwrap_or(0);
        let matrices = 2 * self.depth() * group * self.pixels() * size_of::<T>();
        let partials = self.partials() * self.geom.weights() * size_of::<f64>();
        (threads * matrices + partials) as u64
    }

    /// How many lists the weight's gradient is summed into.
    fn partials(&self) -> usize {
        (PARTIALS / self.geom.weights()).clamp(1, MOST_PARTIALS).min(self.groups().len())
    }

    /// Whether the matrix of inputs is the input itself.
    fn pointwise(&self) -> bool {
        let g = self.geom;
        (g.r, g.s, g.stride, g.pad) == (1, 1, 1, 0)
    }

    /// The input of each tap (rows: channel, tap) at each output pixel (columns: image, row, column), zero in the padding.
    fn columns<T: Number>(&self, x: Vec<T>, images: usize) -> Vec<T> {
        if self.pointwise() {
            return x;
        }
        let mut columns = vec![T::default(); self.depth() * images * self.pixels()];
        self.runs(images, |to, from, len| {
            let row = x[from..].iter().step_by(self.geom.stride as usize);
            columns[to..to + len].iter_mut().zip(row).for_each(|(to, &from)| *to = from);
        });
        columns
    }

    /// The transpose of [`Job::columns`].
    fn image_gradient<T: Number>(&self, dcolumns: Vec<T>, images: usize) -> Vec<T> {
        if self.pointwise() {
            return dcolumns;
        }
        let mut dx = vec![T::default(); (self.geom.c * self.geom.h * self.geom.w) as usize * images];
        self.runs(images, |from, to, len| {
            let row = dx[to..].iter_mut().step_by(self.geom.stride as usize);
            row.zip(&dcolumns[from..from + len]).for_each(|(to, &from)| *to += from);
        });
        dx
    }

    /// Calls `run(column, input, len)` for each run of `len` columns that read inputs `stride` apart.
    fn runs(&self, images: usize, mut run: impl FnMut(usize, usize, usize)) {
        let g = self.geom;
        let [h, w, r, s, p, q] = [g.h, g.w, g.r, g.s, g.p(), g.q()].map(|v| v as usize);
        let (stride, pad) = (g.stride as usize, g.pad as usize);
        for at in 0..self.depth() {
            let (c, dr, ds) = (at / (r * s), at / s % r, at % s);
            // Outputs whose input column q * stride + ds - pad is inside.
            let first = pad.saturating_sub(ds).div_ceil(stride);
            let end = (w + pad).saturating_sub(ds).div_ceil(stride).min(q);
            if first >= end {
                continue;
            }
            for image in 0..images {
                for row in 0..p {
                    let from = row * stride + dr;
                    if (pad..pad + h).contains(&from) {
                        let input = ((c * images + image) * h + from - pad) * w + first * stride + ds - pad;
                        run(((at * images + image) * p + row) * q + first, input, end - first);
                    }
                }
            }
        }
    }
}

/// One tensor of the parts that each hold `c` channels of a group of images.
fn gather<T: Number>(groups: &[Range<usize>], parts: &[Vec<T>], c: usize, n: usize) -> Vec<T> {
    let plane = parts[0].len() / (c * groups[0].len());
    let mut whole = vec![T::default(); c * n * plane];
    whole.par_chunks_mut(n * plane).enumerate().for_each(|(channel, row)| {
        for (images, part) in groups.iter().zip(parts) {
            let len = images.len() * plane;
            row[images.start * plane..images.end * plane].copy_from_slice(&part[channel * len..][..len]);
        }
    });
    whole
}
