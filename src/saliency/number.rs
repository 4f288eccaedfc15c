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
    /// `c += a * b`; `c` holds a.rows x b.columns numbers, row by row.
    fn multiply(a: Matrix<Self>, b: Matrix<Self>, c: &mut [Self]);
}

/// Rows of equal length in a slice, at equal distances.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    data: &'a [T],
    shape: [usize; 2],
    /// Numbers from one row to the next, and from one column to the next.
    steps: [usize; 2],
}

impl<'a, T> Matrix<'a, T> {
    /// `columns` numbers each `distance`.
    pub fn new(data: &'a [T], rows: usize, columns: usize, distance: usize) -> Self {
        Matrix { data, shape: [rows, columns], steps: [distance, 1] }
    }

    /// `columns` numbers one after the other.
    pub fn dense(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::new(data, rows, columns, columns)
    }

    pub fn transposed(self) -> Self {
        let reversed = |[a, b]: [usize; 2]| [b, a];
        Matrix { data: self.data, shape: reversed(self.shape), steps: reversed(self.steps) }
    }

    /// Of numbers that consist of `parts` f64: the `part`-th of each.
    fn part(self, part: usize, parts: usize) -> ArrayView2<'a, f64>
    where
        T: Pod,
    {
        let flat: &[f64] = bytemuck::cast_slice(self.data);
        let steps = self.steps.map(|step| parts * step);
        ArrayView2::from_shape(self.shape.strides(steps), &flat[part..]).expect("a matrix lies inside its slice")
    }
}

/// The same part of a result of `a.rows` x `b.columns`.
fn part_mut<T: Pod>(c: &mut [T], shape: [usize; 2], part: usize, parts: usize) -> ArrayViewMut2<'_, f64> {
    assert_eq!(c.len(), shape[0] * shape[1], "a result of {shape:?}");
    let flat: &mut [f64] = bytemuck::cast_slice_mut(c);
    let steps = [parts * shape[1], parts];
    ArrayViewMut2::from_shape(shape.strides(steps), &mut flat[part..]).expect("checked")
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
    fn multiply(a: Matrix<Self>, b: Matrix<Self>, c: &mut [Self]) {
        let mut c = part_mut(c, [a.shape[0], b.shape[1]], 0, 1);
        general_mat_mul(1.0, &a.part(0, 1), &b.part(0, 1), 1.0, &mut c);
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
    fn multiply(a: Matrix<Self>, b: Matrix<Self>, c: &mut [Self]) {
        let shape = [a.shape[0], b.shape[1]];
        let (av, ad, bv, bd) = (a.part(0, 2), a.part(1, 2), b.part(0, 2), b.part(1, 2));
        general_mat_mul(1.0, &av, &bv, 1.0, &mut part_mut(c, shape, 0, 2));
        let mut d = part_mut(c, shape, 1, 2);
        general_mat_mul(1.0, &av, &bd, 1.0, &mut d);
        general_mat_mul(1.0, &ad, &bv, 1.0, &mut d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_and_transposed_products() {
        // 2x3 inside rows of 4, times the transpose of 2x3, onto ones.
        let number = |v: f64| Dual { v, d: 10.0 * v + 1.0 };
        let a: Vec<Dual> = [1.0, 2.0, 3.0, f64::NAN, 4.0, 5.0, 6.0].map(number).to_vec();
        let b: Vec<Dual> = [7.0, 8.0, 9.0, 1.0, 2.0, 3.0].map(number).to_vec();
        let mut c = vec![Dual { v: 1.0, d: 1.0 }; 4];
        Dual::multiply(Matrix::new(&a, 2, 3, 4), Matrix::dense(&b, 2, 3).transposed(), &mut c);
        let (rows, columns) = ([[0, 1, 2], [4, 5, 6]], [[0, 1, 2], [3, 4, 5]]);
        for (at, got) in c.iter().enumerate() {
            let pairs = rows[at / 2].iter().zip(columns[at % 2]);
            let want = pairs.fold(Dual { v: 1.0, d: 1.0 }, |sum, (&i, j)| sum + a[i] * b[j]);
            assert_eq!(*got, want, "element {at}");
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
