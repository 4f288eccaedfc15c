//! A vendor's library for the emulated device: plain loops on the host under the same contract, so that all that surrounds a
//! product is tested without a GPU. Sums are f64, results are rounded once.

use super::super::emu::Shared;
use super::super::ops::operand::{Element, Precision, padded};
use super::{Pass, Prepared, Product, Vendor};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::sync::Arc;

/// Makes products on the host.
pub struct HostVendor {
    shared: Arc<Shared>,
}

struct HostProduct {
    product: Product,
    shared: Arc<Shared>,
}

/// Junk that a run leaves in its workspace, so that a workspace which overlaps anything shows.
const WORKSPACE: usize = 4096;

impl HostVendor {
    pub(in super::super) fn new(shared: Arc<Shared>) -> Self {
        HostVendor { shared }
    }
}

impl Vendor for HostVendor {
    fn describe(&self) -> String {
        "host loops".into()
    }

    fn prepare(&self, product: &Product) -> Result<Box<dyn Prepared>> {
        product.check()?;
        Ok(Box::new(HostProduct { product: *product, shared: self.shared.clone() }))
    }
}

impl Prepared for HostProduct {
    fn workspace_bytes(&self) -> usize {
        WORKSPACE
    }

    fn output(&self) -> Element {
        output(&self.product)
    }

    unsafe fn run(&self, a: u64, b: u64, out: u64, workspace: u64) -> Result<()> {
        if let Some(odd) = [a, b, out, workspace].into_iter().find(|at| !at.is_multiple_of(16)) {
            return Err(Error::Failed(format!("host loops: address {odd:#x} is no multiple of 16")));
        }
        let (product, shared) = (self.product, self.shared.clone());
        self.shared.run_or_record(Box::new(move || compute(&product, &shared, [a, b, out, workspace])))
    }
}

/// Device memory, copied.
fn read(shared: &Shared, at: u64, bytes: usize) -> Result<Vec<u8>> {
    check(shared, at, bytes)?;
    // SAFETY: inside a live buffer, which is no Rust object.
    Ok(unsafe { std::slice::from_raw_parts(at as usize as *const u8, bytes) }.to_vec())
}

fn write(shared: &Shared, at: u64, data: &[u8]) -> Result<()> {
    check(shared, at, data.len())?;
    // SAFETY: as in `read`.
    unsafe { (at as usize as *mut u8).copy_from_nonoverlapping(data.as_ptr(), data.len()) }
    Ok(())
}

fn check(shared: &Shared, at: u64, bytes: usize) -> Result<()> {
    if shared.holds(at, bytes) {
        return Ok(());
    }
    Err(Error::Failed(format!("host loops: {bytes} bytes at {at:#x} lie in no buffer")))
}

/// As real libraries: matrix products give the weight gradient in f32, convolutions in the tensors' type.
fn output(product: &Product) -> Element {
    match product.pass {
        Pass::Weight if product.is_matrix() => Element::F32,
        _ => product.precision.element(),
    }
}

fn compute(product: &Product, shared: &Shared, [a, b, out, workspace]: [u64; 4]) -> Result<()> {
    let [x, y, w] = product.sizes().map(|n| n as usize);
    let (in_a, in_b, len) = match product.pass {
        Pass::Forward => (x, w, y),
        Pass::Data => (y, w, x),
        Pass::Weight => (x, y, w),
    };
    let element = product.precision.element();
    let numbers = |at: u64, n: usize| -> Result<Vec<f64>> {
        let bytes = read(shared, at, n * element.bytes())?;
        Ok(bytes.chunks_exact(element.bytes()).map(|v| decode(v, element, product.precision)).collect())
    };
    let (a, b) = (numbers(a, in_a)?, numbers(b, in_b)?);
    write(shared, workspace, &[0xFF; WORKSPACE])?;
    let mut sums = vec![0.0; len];
    multiply(product, &a, &b, &mut sums);
    let output = output(product);
    let bytes: Vec<u8> = sums.into_iter().flat_map(|v| encode(v as f32, output)).collect();
    write(shared, out, &bytes)
}

/// Adds each product of a source number and a weight (or gradient) to its sum.
fn multiply(product: &Product, a: &[f64], b: &[f64], sums: &mut [f64]) {
    let g = product.geom;
    let (c, k) = (padded(g.c) as usize, padded(g.k) as usize);
    for (pixel, tap, source) in pairs(product) {
        let (ys, xs) = (pixel * k..(pixel + 1) * k, source * c..(source + 1) * c);
        let row = |out: usize| (out * (g.r * g.s) as usize + tap) * c;
        for (out, y) in ys.enumerate() {
            let weights = row(out)..row(out) + c;
            match product.pass {
                Pass::Forward => sums[y] += a[xs.clone()].iter().zip(&b[weights]).map(|(x, w)| x * w).sum::<f64>(),
                Pass::Data => sums[xs.clone()].iter_mut().zip(&b[weights]).for_each(|(s, w)| *s += a[y] * w),
                Pass::Weight => sums[weights].iter_mut().zip(&a[xs.clone()]).for_each(|(s, x)| *s += b[y] * x),
            }
        }
    }
}

/// Each output pixel with each tap that has a source pixel, and that pixel.
fn pairs(product: &Product) -> impl Iterator<Item = (usize, usize, usize)> {
    let (g, images) = (product.geom, product.images);
    let taps = (0..g.r * g.s).map(move |t| (t, (t / g.s, t % g.s)));
    (0..images * g.p() * g.q()).flat_map(move |pixel| {
        let (image, p, q) = (pixel / (g.p() * g.q()), pixel / g.q() % g.p(), pixel % g.q());
        taps.clone().filter_map(move |(tap, (r, s))| {
            let (h, w) = ((p * g.stride + r).checked_sub(g.pad)?, (q * g.stride + s).checked_sub(g.pad)?);
            (h < g.h && w < g.w).then_some((pixel as usize, tap as usize, ((image * g.h + h) * g.w + w) as usize))
        })
    })
}

fn decode(v: &[u8], element: Element, precision: Precision) -> f64 {
    let wide = match *v {
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [a, b] if element == Element::F16 => f16::from_le_bytes([a, b]).to_f32(),
        [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
        _ => f32::NAN,
    };
    // Ten bits of mantissa, to nearest even.
    let tf32 = |v: f32| f32::from_bits((v.to_bits() + 0xFFF + (v.to_bits() >> 13 & 1)) & !0x1FFF);
    f64::from(if precision == Precision::Tf32 && wide.is_finite() { tf32(wide) } else { wide })
}

fn encode(v: f32, element: Element) -> Vec<u8> {
    match element {
        Element::F32 => v.to_le_bytes().to_vec(),
        Element::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
        Element::Bf16 => bf16::from_f32(v).to_le_bytes().to_vec(),
    }
}
