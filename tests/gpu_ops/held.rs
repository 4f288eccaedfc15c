//! Device buffers, number types and closeness.

use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::operand::Element;
use sparse_engine::rng::{Purpose, Stream};

pub const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

/// A device buffer with its driver.
pub struct Held<'a, D: Driver> {
    driver: &'a D,
    buf: D::Buf,
    pub bytes: usize,
}

impl<'a, D: Driver> Held<'a, D> {
    pub fn of<T: bytemuck::Pod>(driver: &'a D, data: &[T]) -> Self {
        let bytes = size_of_val(data);
        let mut buf = driver.alloc(bytes).unwrap();
        driver.upload(&mut buf, bytemuck::cast_slice(data)).unwrap();
        Held { driver, buf, bytes }
    }

    /// All bits set: NaN in every number type.
    pub fn poisoned(driver: &'a D, bytes: usize) -> Self {
        Held::of(driver, &vec![0xFFu8; bytes])
    }

    /// Numbers stored as `element`.
    pub fn numbers(driver: &'a D, element: Element, data: &[f64]) -> Self {
        Held::of(driver, &encode(element, data))
    }

    /// Room for `n` numbers of type `element`, all NaN.
    pub fn room(driver: &'a D, element: Element, n: usize) -> Self {
        Held::poisoned(driver, n * element.bytes())
    }

    pub fn at(&self) -> u64 {
        self.driver.address(&self.buf)
    }

    pub fn put<T: bytemuck::Pod>(&mut self, data: &[T]) {
        self.driver.upload(&mut self.buf, bytemuck::cast_slice(data)).unwrap();
    }

    pub fn get<T: bytemuck::Pod>(&self) -> Vec<T> {
        self.driver.synchronise().unwrap();
        let mut data = vec![T::zeroed(); self.bytes / size_of::<T>()];
        self.driver.download(&self.buf, bytemuck::cast_slice_mut(&mut data)).unwrap();
        data
    }

    pub fn f64s(&self, element: Element) -> Vec<f64> {
        decode(element, &self.get::<u8>())
    }
}

/// Twice the largest relative error of rounding to it.
pub fn eps(element: Element) -> f64 {
    match element {
        Element::F32 => 2f64.powi(-23),
        Element::F16 => 2f64.powi(-10),
        Element::Bf16 => 2f64.powi(-7),
    }
}

pub const EPS: f64 = f32::EPSILON as f64;

/// Distance of its smallest numbers.
pub fn tiny(element: Element) -> f64 {
    match element {
        Element::F32 => 2f64.powi(-149),
        Element::F16 => 2f64.powi(-24),
        Element::Bf16 => 2f64.powi(-133),
    }
}

/// What a store of `v` (of f32 precision) may be away from it.
pub fn store_error(element: Element, v: f64) -> f64 {
    eps(element) / 2.0 * v.abs() + tiny(element)
}

pub fn decode(element: Element, bytes: &[u8]) -> Vec<f64> {
    let half = |b: &[u8]| u16::from_ne_bytes([b[0], b[1]]);
    let one = |b: &[u8]| match element {
        Element::F32 => f64::from(f32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
        Element::F16 => f16_to_f64(half(b)),
        Element::Bf16 => f64::from(f32::from_bits(u32::from(half(b)) << 16)),
    };
    bytes.chunks_exact(element.bytes()).map(one).collect()
}

fn f16_to_f64(b: u16) -> f64 {
    let sign = if b >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, rest) = (i32::from(b >> 10 & 31), f64::from(b & 1023));
    sign * match exponent {
        0 => rest * 2f64.powi(-24),
        31 if rest == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1024.0 + rest) * 2f64.powi(e - 25),
    }
}

pub fn encode(element: Element, data: &[f64]) -> Vec<u8> {
    let half = |v: f64| -> u16 {
        let (mantissa, least): (i32, i32) = if element == Element::F16 { (10, -14) } else { (7, -126) };
        let most = if element == Element::F16 { 15 } else { 127 };
        let sign = if v.is_sign_negative() { 0x8000 } else { 0 };
        let infinity = ((most - least + 2) as u16) << mantissa;
        if v.is_nan() {
            return 0x7FFF;
        }
        if v == 0.0 {
            return sign;
        }
        let exponent = (v.abs().log2().floor() as i32).clamp(least, most + 1);
        let unit = 2f64.powi(exponent - mantissa);
        let units = (v.abs() / unit).round_ties_even();
        // A carry into the exponent gives the right bits by itself.
        let bits = units as i64 + (i64::from(exponent - least) << mantissa);
        sign | bits.min(i64::from(infinity)) as u16
    };
    match element {
        Element::F32 => data.iter().flat_map(|&v| (v as f32).to_ne_bytes()).collect(),
        _ => data.iter().flat_map(|&v| half(v).to_ne_bytes()).collect(),
    }
}

/// The numbers as they are once stored.
pub fn stored(element: Element, data: &[f64]) -> Vec<f64> {
    decode(element, &encode(element, data))
}

pub fn padded(c: usize) -> usize {
    c.next_multiple_of(8)
}

/// `len` standard normal numbers, a function of `name` alone.
pub fn normal(name: &str, len: usize) -> Vec<f64> {
    let stream = Stream::new(11, Purpose::Data, name);
    (0..len as u64).map(|i| stream.normal(i)).collect()
}

/// Normal numbers `[rows][padded(c)]` as stored; zero in padding channels.
pub fn tensor(element: Element, name: &str, rows: usize, c: usize) -> Vec<f64> {
    pad(&stored(element, &normal(name, rows * c)), c)
}

/// `[rows][c]` to `[rows][padded(c)]`.
pub fn pad(data: &[f64], c: usize) -> Vec<f64> {
    let row = |r: &[f64]| r.iter().copied().chain(std::iter::repeat_n(0.0, padded(c) - c)).collect::<Vec<_>>();
    data.chunks(c).flat_map(row).collect()
}

/// Each number within its tolerance; NaN where NaN is wanted, infinity likewise.
#[track_caller]
pub fn close(what: &str, got: &[f64], want: &[f64], tolerance: &[f64]) {
    assert_eq!((got.len(), tolerance.len()), (want.len(), want.len()), "{what}: lengths");
    for (i, ((g, w), t)) in got.iter().zip(want).zip(tolerance).enumerate() {
        let good = (g - w).abs() <= *t || g == w || (g.is_nan() && w.is_nan());
        assert!(good, "{what}: element {i} of {}: got {g:e}, want {w:e} +- {t:e}, off by {:e}", got.len(), g - w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_by_hand() {
        let bits = |e, v: f64| u16::from_ne_bytes(encode(e, &[v]).try_into().unwrap());
        let (h, b) = (Element::F16, Element::Bf16);
        let cases = [(1.0, 0x3C00, 0x3F80), (-2.5, 0xC100, 0xC020), (65504.0, 0x7BFF, 0x4780), (0.0, 0, 0)];
        for (v, f, g) in cases {
            assert_eq!((bits(h, v), bits(b, v)), (f, g), "{v}");
        }
        assert_eq!([bits(h, 65520.0), bits(h, 1e9), bits(h, -1e9)], [0x7C00, 0x7C00, 0xFC00]);
        assert_eq!([bits(h, 2f64.powi(-24)), bits(h, 2f64.powi(-25)), bits(h, 3.0 * 2f64.powi(-25))], [1, 0, 2]);
        assert_eq!([bits(h, 2f64.powi(-14)), bits(b, 1.0 + 3.0 / 256.0)], [0x0400, 0x3F82]);
        for bits in (0..0x7C00u16).chain(0x8000..0xFC00) {
            let v = f16_to_f64(bits);
            assert_eq!(encode(h, &[v]), bits.to_ne_bytes(), "{v}");
        }
    }
}
