//! The numbers that the network is run in: `f64`, or [`Dual`], which carries a derivative along.

use bytemuck::Pod;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// Arithmetic of the network.
pub(super) trait Number:
    Pod
    + Default
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    fn constant(v: f64) -> Self;
    /// The number without its derivative: what comparisons look at.
    fn value(self) -> f64;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    /// `c += a * b`, `c` without gaps.
    fn multiply(a: Matrix<Self>, b: Rows<Self>, c: &mut [Self]);
    /// What is wanted of a weight's gradient, `dw += dy * x` transposed: itself, or its derivative. All without gaps but dy.
    fn weight_gradient(dy: Rows<Self>, x: Rows<Self>, dw: &mut [f64]);
}

/// Rows of equal length in a slice, at equal distances.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub columns: usize,
    /// Numbers from one row to the next.
    pub distance: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Rows without gaps.
    pub fn dense(data: &'a [T], rows: usize, columns: usize) -> Self {
        Rows { data, rows, columns, distance: columns }
    }
}

/// Rows, or their transpose, without gaps.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub of: Rows<'a, T>,
    pub transposed: bool,
}

impl Matrix<'_, Dual> {
    /// One part of each number.
    fn part(&self, part: usize) -> ArrayView2<'_, f64> {
        let Rows { data, rows, columns, distance } = self.of;
        let flat: &[f64] = bytemuck::cast_slice(data);
        let view = real(&flat[part..], [rows, columns], [2 * distance, 2]);
        if self.transposed { view.reversed_axes() } else { view }
    }
}

fn real(data: &[f64], shape: [usize; 2], steps: [usize; 2]) -> ArrayView2<'_, f64> {
    ArrayView2::from_shape(shape.strides(steps), data).expect("a matrix lies inside its slice")
}

fn real_mut(data: &mut [f64], shape: [usize; 2], steps: [usize; 2]) -> ArrayViewMut2<'_, f64> {
    ArrayViewMut2::from_shape(shape.strides(steps), data).expect("a matrix lies inside its slice")
}

impl Number for f64 {
    fn constant(v: f64) -> Self {
        v
    }
    fn value(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn multiply(a: Matrix<Self>, b: Rows<Self>, c: &mut [Self]) {
        let view = real(a.of.data, [a.of.rows, a.of.columns], [a.of.distance, 1]);
        let a = if a.transposed { view.reversed_axes() } else { view };
        let b = real(b.data, [b.rows, b.columns], [b.distance, 1]);
        let (shape, steps) = ([a.nrows(), b.ncols()], [b.ncols(), 1]);
        general_mat_mul(1.0, &a, &b, 1.0, &mut real_mut(c, shape, steps));
    }
    fn weight_gradient(dy: Rows<Self>, x: Rows<Self>, dw: &mut [f64]) {
        let dy = real(dy.data, [dy.rows, dy.columns], [dy.distance, 1]);
        let x = real(x.data, [x.rows, x.columns], [x.distance, 1]);
        general_mat_mul(1.0, &dy, &x.t(), 1.0, &mut real_mut(dw, [dy.nrows(), x.nrows()], [x.nrows(), 1]));
    }
}

/// A value and its derivative in one direction of the weights. What is computed in these numbers carries its exact
/// derivative: of a gradient, the product of the Hessian and the direction (Pearlmutter 1994).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub(super) struct Dual {
    /// Value.
    pub v: f64,
    /// Derivative.
    pub d: f64,
}

impl Add for Dual {
    type Output = Self;
    fn add(self, b: Self) -> Self {
        Dual { v: self.v + b.v, d: self.d + b.d }
    }
}

impl AddAssign for Dual {
    fn add_assign(&mut self, b: Self) {
        *self = *self + b;
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, b: Self) -> Self {
        Dual { v: self.v - b.v, d: self.d - b.d }
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, b: Self) -> Self {
        Dual { v: self.v * b.v, d: self.d * b.v + self.v * b.d }
    }
}

impl Div for Dual {
    type Output = Self;
    fn div(self, b: Self) -> Self {
        let v = self.v / b.v;
        Dual { v, d: (self.d - v * b.d) / b.v }
    }
}

impl Number for Dual {
    fn constant(v: f64) -> Self {
        Dual { v, d: 0.0 }
    }
    fn value(self) -> f64 {
        self.v
    }
    fn exp(self) -> Self {
        let v = self.v.exp();
        Dual { v, d: v * self.d }
    }
    fn sqrt(self) -> Self {
        let v = self.v.sqrt();
        Dual { v, d: self.d / (2.0 * v) }
    }
    fn multiply(a: Matrix<Self>, b: Rows<Self>, c: &mut [Self]) {
        let (av, ad) = (a.part(0), a.part(1));
        let (rows, columns) = (av.nrows(), b.columns);
        let flat: &[f64] = bytemuck::cast_slice(b.data);
        let c: &mut [f64] = bytemuck::cast_slice_mut(c);
        // a's values times values and derivatives at once, which lie side by side: one product without gaps.
        let both = real(flat, [b.rows, 2 * columns], [2 * b.distance, 1]);
        general_mat_mul(1.0, &av, &both, 1.0, &mut real_mut(c, [rows, 2 * columns], [2 * columns, 1]));
        let bv = real(flat, [b.rows, columns], [2 * b.distance, 2]);
        general_mat_mul(1.0, &ad, &bv, 1.0, &mut real_mut(&mut c[1..], [rows, columns], [2 * columns, 2]));
    }
    fn weight_gradient(dy: Rows<Self>, x: Rows<Self>, dw: &mut [f64]) {
        // The sum over dy.v * x.d + dy.d * x.v: one product, of twice the depth.
        let row = |r: usize| &dy.data[r * dy.distance..][..dy.columns];
        let swapped: Vec<f64> = (0..dy.rows).flat_map(row).flat_map(|g| [g.d, g.v]).collect();
        let (data, columns, distance) = (bytemuck::cast_slice(x.data), 2 * x.columns, 2 * x.distance);
        let x = Rows { data, rows: x.rows, columns, distance };
        f64::weight_gradient(Rows::dense(&swapped, dy.rows, 2 * dy.columns), x, dw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 3 inside rows of 4, and 3 columns.
    fn numbers() -> (Vec<Dual>, Vec<Dual>) {
        let number = |v: f64| Dual { v, d: 10.0 * v + 1.0 };
        let gaps = [1.0, 2.0, 3.0, f64::NAN, 4.0, 5.0, 6.0, f64::NAN, 7.0, 8.0, 9.0].map(number);
        (gaps.to_vec(), [2.0, 3.0, 5.0, 7.0, 11.0, 13.0].map(number).to_vec())
    }

    #[test]
    fn products_with_gaps_and_transposed() {
        let (b, a) = numbers();
        for transposed in [false, true] {
            let of = if transposed { Rows::dense(&a, 3, 2) } else { Rows::dense(&a, 2, 3) };
            let at = |r: usize, c: usize| if transposed { a[2 * c + r] } else { a[3 * r + c] };
            let mut c = vec![Dual { v: 1.0, d: 1.0 }; 6];
            Dual::multiply(Matrix { of, transposed }, Rows { data: &b, rows: 3, columns: 3, distance: 4 }, &mut c);
            for (i, got) in c.iter().enumerate() {
                let want = (0..3).fold(Dual { v: 1.0, d: 1.0 }, |sum, k| sum + at(i / 3, k) * b[4 * k + i % 3]);
                assert_eq!(*got, want, "element {i}, transposed {transposed}");
            }
        }
    }

    #[test]
    fn weight_gradients_are_derivatives() {
        let (dy, x) = numbers();
        let mut dw = vec![1.0; 6];
        Dual::weight_gradient(Rows { data: &dy, rows: 3, columns: 3, distance: 4 }, Rows::dense(&x, 2, 3), &mut dw);
        for (i, got) in dw.iter().enumerate() {
            let sum = (0..3).fold(Dual::default(), |sum, k| sum + dy[4 * (i / 2) + k] * x[3 * (i % 2) + k]);
            assert_eq!(*got, 1.0 + sum.d, "element {i}");
        }
    }

    #[test]
    fn derivatives_of_the_functions() {
        let f = |x: Dual| (x.exp() / (x * x + Dual::constant(2.0))).sqrt() - x;
        let plain = |x: f64| (x.exp() / (x * x + 2.0)).sqrt() - x;
        for x in [-1.3, 0.0, 0.7] {
            let got = f(Dual { v: x, d: 1.0 });
            assert!((got.v - plain(x)).abs() < 1e-15);
            let slope = (plain(x + 1e-5) - plain(x - 1e-5)) / 2e-5;
            assert!((got.d - slope).abs() < 1e-9, "at {x}: {} against {slope}", got.d);
        }
    }
}
