//! Where tensors lie on the device, and how the host sees them: NHWC rows of padded channels there, N,C,H,W here.

use super::ops::operand::{Element, padded};
use crate::backend::{Plane, Spec, TensorId, place};
use crate::error::{Error, Result};
use half::{bf16, f16};

/// Places begin at multiples of this many bytes: no kernel's 16-byte access straddles two, and rows start sectors.
const ALIGN: usize = 256;

/// A tensor on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    /// First byte in the arena.
    pub at: usize,
    pub plane: Plane,
    /// Channels with padding.
    pub cp: u32,
    pub element: Element,
}

impl Tensor {
    /// Rows of `n` images.
    pub fn rows(&self, n: usize) -> u64 {
        n as u64 * u64::from(self.plane.h) * u64::from(self.plane.w)
    }

    /// Bytes of `n` images.
    pub fn bytes(&self, n: usize) -> usize {
        self.rows(n) as usize * self.cp as usize * self.element.bytes()
    }
}

/// The arena's plan.
pub(super) struct Layout {
    pub tensors: Vec<Tensor>,
    /// Length of the arena.
    pub bytes: usize,
}

impl Layout {
    /// # Errors
    /// A tensor too large for 64 bits, or for the kernels' 31-bit pixel counts.
    pub fn new(spec: &Spec, element: Element) -> Result<Self> {
        let mut tensors = Vec::with_capacity(spec.tensors.len());
        let mut rooms = Vec::with_capacity(spec.tensors.len());
        for t in &spec.tensors {
            let element = if t.exact { Element::F32 } else { element };
            let tensor = Tensor { at: 0, plane: t.plane, cp: padded(t.plane.c), element };
            let rows = (spec.batch as u64).checked_mul(u64::from(t.plane.h) * u64::from(t.plane.w));
            if rows.is_none_or(|rows| rows >= 1 << 31) {
                let Plane { c, h, w } = t.plane;
                let what = format!("GPU: a tensor of {} x {c}x{h}x{w} has 2^31 pixels or more", spec.batch);
                return Err(Error::Failed(format!("{what}; use a smaller batch_size")));
            }
            rooms.push(tensor.bytes(spec.batch).next_multiple_of(ALIGN));
            tensors.push(tensor);
        }
        let alive: Vec<_> = spec.tensors.iter().map(|t| t.alive).collect();
        let (at, bytes) = place(&rooms, &alive);
        tensors.iter_mut().zip(at).for_each(|(t, at)| t.at = at);
        Ok(Layout { tensors, bytes })
    }

    pub fn get(&self, t: TensorId) -> Tensor {
        self.tensors[t.0 as usize]
    }
}

/// N,C,H,W numbers as the device holds them, padding channels zero.
pub(super) fn to_device(t: Tensor, n: usize, nchw: &[f32]) -> Vec<u8> {
    let (c, pixels, cp) = (t.plane.c as usize, (t.plane.h * t.plane.w) as usize, t.cp as usize);
    let mut out = vec![0u8; t.bytes(n)];
    let size = t.element.bytes();
    for (row, out) in out.chunks_exact_mut(cp * size).enumerate() {
        let image = &nchw[row / pixels * c * pixels..][row % pixels..];
        for (channel, out) in out.chunks_exact_mut(size).take(c).enumerate() {
            let v = image[channel * pixels];
            match t.element {
                Element::F32 => out.copy_from_slice(&v.to_le_bytes()),
                Element::F16 => out.copy_from_slice(&f16::from_f32(v).to_le_bytes()),
                Element::Bf16 => out.copy_from_slice(&bf16::from_f32(v).to_le_bytes()),
            }
        }
    }
    out
}

/// Device numbers as N,C,H,W.
pub(super) fn to_host(t: Tensor, n: usize, bytes: &[u8]) -> Vec<f32> {
    let (c, pixels, cp) = (t.plane.c as usize, (t.plane.h * t.plane.w) as usize, t.cp as usize);
    let size = t.element.bytes();
    let mut out = vec![0.0; n * c * pixels];
    for (row, bytes) in bytes.chunks_exact(cp * size).enumerate() {
        for (channel, v) in bytes.chunks_exact(size).take(c).enumerate() {
            out[(row / pixels * c + channel) * pixels + row % pixels] = match *v {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                [a, b] if t.element == Element::F16 => f16::from_le_bytes([a, b]).to_f32(),
                [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
                _ => unreachable!("numbers of 2 or 4 bytes"),
            };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let t = Tensor { at: 0, plane: Plane { c: 3, h: 2, w: 5 }, cp: 8, element };
            let numbers: Vec<f32> = (0..60).map(|i| i as f32 - 30.0).collect(); // exact in all
            let bytes = to_device(t, 2, &numbers);
            assert_eq!(bytes.len(), 2 * 10 * 8 * element.bytes());
            assert_eq!(to_host(t, 2, &bytes), numbers);
            let zeros = bytes.chunks(element.bytes()).enumerate().filter(|(i, _)| i % 8 >= 3);
            assert!(zeros.flat_map(|(_, v)| v).all(|&b| b == 0), "padding");
        }
    }
}
