//! Operands on the device, and what they are worth in f64.

use super::held::{EPS, Held, encode, normal, pad, padded, tensor};
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::operand::{Element, Operand};

/// An operand over `[rows][padded(c)]` with its buffers, and host copies of what is in them.
pub struct Op<'a, D: Driver> {
    a: Vec<f64>,
    b: Vec<f64>,
    coef: Vec<f64>,
    cp: usize,
    kind: u32,
    relu: bool,
    buffers: [Held<'a, D>; 3],
}

/// All kinds, each with and without ReLU.
pub const KINDS: [(u32, bool); 6] = [
    (Operand::PLAIN, false),
    (Operand::PLAIN, true),
    (Operand::AFFINE, false),
    (Operand::AFFINE, true),
    (Operand::THROUGH, false),
    (Operand::THROUGH, true),
];

impl<'a, D: Driver> Op<'a, D> {
    /// Of random numbers that depend on `name`; buffers hold exactly what the kind needs.
    pub fn new(
        driver: &'a D,
        element: Element,
        name: &str,
        (rows, c): (usize, usize),
        (kind, relu): (u32, bool),
    ) -> Self {
        Self::with(driver, element, name, tensor(element, &format!("{name} a"), rows, c), c, (kind, relu))
    }

    /// Of the stored numbers `a`, `[rows][padded(c)]`.
    pub fn with(driver: &'a D, element: Element, name: &str, a: Vec<f64>, c: usize, (kind, relu): (u32, bool)) -> Self {
        let rows = if kind == Operand::THROUGH { a.len() / padded(c) } else { 0 };
        let b = tensor(element, &format!("{name} b"), rows, c);
        let coefs = [0, 2, 3][kind as usize];
        let coef = pad(&super::held::stored(Element::F32, &normal(&format!("{name} coef"), coefs * c)), c);
        let buffers =
            [(element, &a), (element, &b), (Element::F32, &coef)].map(|(e, v)| Held::of(driver, &encode(e, v)));
        Op { a, b, coef, cp: padded(c), kind, relu, buffers }
    }

    /// For a launcher.
    pub fn operand(&self) -> Operand {
        let [a, b, coef] = self.buffers.each_ref().map(|h| if h.bytes == 0 { 0 } else { h.at() });
        Operand { a, b, coef, kind: self.kind, relu: u32::from(self.relu) }
    }

    /// Value and bound of its error in f32.
    pub fn value(&self, row: usize, ch: usize) -> (f64, f64) {
        let (v, error) = self.before_relu(row, ch);
        (if self.relu && v < 0.0 { 0.0 } else { v }, error)
    }

    /// The same without the ReLU: where it is positive, a gradient passes.
    pub fn before_relu(&self, row: usize, ch: usize) -> (f64, f64) {
        let i = row * self.cp + ch;
        let k = |j: usize| self.coef[j * self.cp + ch];
        let terms: Vec<f64> = match self.kind {
            Operand::PLAIN => return (self.a[i], 0.0),
            Operand::AFFINE => vec![self.a[i] * k(0), k(1)],
            _ => vec![self.a[i] * k(0), self.b[i] * k(1), k(2)],
        };
        (terms.iter().sum(), 1.5 * EPS * terms.iter().map(|t| t.abs()).sum::<f64>())
    }

    /// All values and bounds, `[rows][cp]`.
    pub fn values(&self) -> (Vec<f64>, Vec<f64>) {
        (0..self.a.len()).map(|i| self.value(i / self.cp, i % self.cp)).unzip()
    }
}
