//! Tensors and operands in device memory, and comparison with the errors that the arithmetic allows.

use super::number::{digits, encode};
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::operand::{Element, Operand, padded};
use sparse_engine::rng::{Purpose, Stream};

/// Multiples of 1/64 up to 2: exact in every type.
pub fn numbers(name: &str, n: usize) -> Vec<f32> {
    let stream = Stream::new(5, Purpose::Data, name);
    (0..n as u64).map(|i| ((stream.uniform(i) * 255.0) as i32 - 127) as f32 / 64.0).collect()
}

/// A buffer full of 0xFF, and its bytes back.
pub struct Device<'a, D: Driver>(pub &'a D, pub Vec<D::Buf>);

impl<D: Driver> Device<'_, D> {
    /// Index of a buffer with that content.
    pub fn put(&mut self, bytes: &[u8]) -> (usize, u64) {
        let mut buf = self.0.alloc(bytes.len().max(1)).unwrap();
        self.0.upload(&mut buf, bytes).unwrap();
        self.1.push(buf);
        (self.1.len() - 1, self.0.address(&self.1[self.1.len() - 1]))
    }
    pub fn at(&mut self, bytes: &[u8]) -> u64 {
        self.put(bytes).1
    }
    pub fn floats(&mut self, v: &[f32]) -> u64 {
        self.put(bytemuck::cast_slice(v)).1
    }
    pub fn poisoned(&mut self, bytes: usize) -> (usize, u64) {
        self.put(&vec![0xFF; bytes])
    }
    pub fn get(&self, index: usize, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.0.download(&self.1[index], &mut out).unwrap();
        out
    }
}

/// Rows of `c` numbers with zeros up to the padded number of channels.
pub fn pad(v: &[f32], c: u32) -> Vec<f32> {
    let (c, cp) = (c as usize, padded(c) as usize);
    v.chunks_exact(c).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, cp - c))).collect()
}

/// The rows again; what follows each must be zero.
pub fn unpad(v: &[f32], c: u32, what: &str) -> Vec<f64> {
    let mut out = vec![];
    for row in v.chunks_exact(padded(c) as usize) {
        assert!(row[c as usize..].iter().all(|&v| v == 0.0), "{what}: padding channels hold {:?}", &row[c as usize..]);
        out.extend(row[..c as usize].iter().map(|&v| f64::from(v)));
    }
    out
}

/// Uploads a random operand of that kind and gives its values in f32.
pub fn operand<D: Driver>(
    d: &mut Device<D>,
    e: Element,
    name: &str,
    rows: usize,
    c: u32,
    turn: usize,
) -> (Operand, Vec<f32>) {
    let (kind, relu) = ((turn % 3) as u32, turn / 3 % 2 == 1);
    let a = numbers(name, rows * c as usize);
    let b = numbers(&format!("{name} b"), a.len());
    let k: Vec<Vec<f32>> = (0..3).map(|i| numbers(&format!("{name} {i}"), c as usize)).collect();
    let mut o = Operand { a: d.at(&encode(e, &pad(&a, c))), kind, relu: relu.into(), ..Operand::default() };
    let coefs = |n: usize| -> Vec<f32> { k[..n].iter().flat_map(|k| pad(k, c)).collect() };
    match kind {
        Operand::AFFINE => o.coef = d.floats(&coefs(2)),
        Operand::THROUGH => {
            o.b = d.at(&encode(e, &pad(&b, c)));
            o.coef = d.floats(&coefs(3));
        }
        _ => {}
    }
    let value = |i: usize| {
        let [k0, k1, k2] = [0, 1, 2].map(|n| k[n][i % c as usize]);
        let v = match kind {
            Operand::AFFINE => a[i].mul_add(k0, k1),
            Operand::THROUGH => a[i].mul_add(k0, b[i].mul_add(k1, k2)),
            _ => a[i],
        };
        if relu { v.max(0.0) } else { v }
    };
    (o, (0..a.len()).map(value).collect())
}

/// Compares; the first number that is too far away is a failure, NaN always is.
pub fn compare(what: &str, got: &[f64], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((got - want).abs(), bound(i));
        assert!(error <= bound, "{what}: number {i}: {got} instead of {want}, off by {error:e}, allowed {bound:e}");
    }
}

/// Error of an f32 sum of `terms` products, in the order and with the truncation of a tensor core.
pub fn sum_error(terms: usize, size: f64) -> f64 {
    2f64.powi(-23) * ((terms as f64).sqrt() + 4.0) * size
}

/// Error of storing `v`.
pub fn store_error(e: Element, v: f64) -> f64 {
    2f64.powi(-digits(e)) * v.abs() + if e == Element::F16 { 2f64.powi(-25) } else { 0.0 }
}
