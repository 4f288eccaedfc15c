//! Dense products from a vendor's library: a fallback for a layer, and the rival in benches. Never the default: a plan asks
//! for it ([`Kind::Vendor`](super::ops::conv::Kind), [`GpuPlan::vendor`](super::GpuPlan::vendor)).
//!
//! A library reads and writes plain tensors. So operands that our kernels compute while reading are written out first, and
//! what our kernels do to a result while it is at hand (bias, statistics, finish, picking the non-zeros) follows in kernels
//! of its own (`layers.rs`).

#[cfg(feature = "emu")]
pub mod host;
pub(super) mod layers;

mod cublaslt;
pub(super) mod cuda;
mod cudnn;
mod libraries;

pub use cuda::CudaVendor;

use super::ops::operand::{Element, Precision, padded};
use crate::error::{Error, Result};
use crate::shape::ConvGeom;
use std::fmt;

/// The three products of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// y from x and w.
    Forward,
    /// dx from dy and w.
    Data,
    /// dw from x and dy.
    Weight,
}

impl Pass {
    /// In the order in which a step has them.
    pub const ALL: [Pass; 3] = [Pass::Forward, Pass::Data, Pass::Weight];
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Pass::Forward => "forward pass",
            Pass::Data => "data gradient",
            Pass::Weight => "weight gradient",
        })
    }
}

/// What a library is asked for. Padding channels count as channels: tensors are [images*H*W][padded(C)] and
/// [images*P*Q][padded(K)], weights [padded(K)][R*S][padded(C)], without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Which of the three.
    pub pass: Pass,
    /// Geometry of one image, channels without padding.
    pub geom: ConvGeom,
    /// Images; all of them, always: of a smaller batch the rest is computed and not used.
    pub images: u32,
    /// What tensors are stored as and factors rounded to; sums are f32.
    pub precision: Precision,
}

impl Product {
    /// Numbers in x, y and w.
    pub fn sizes(&self) -> [u64; 3] {
        let (g, n) = (&self.geom, u64::from(self.images));
        let (c, k) = (u64::from(padded(g.c)), u64::from(padded(g.k)));
        let plane = |h: u32, w: u32| u64::from(h) * u64::from(w);
        [n * plane(g.h, g.w) * c, n * plane(g.p(), g.q()) * k, k * plane(g.r, g.s) * c]
    }

    /// Whether it is one matrix product.
    pub fn is_matrix(&self) -> bool {
        let g = &self.geom;
        (g.r, g.s, g.stride, g.pad) == (1, 1, 1, 0)
    }

    /// Libraries count numbers of a tensor in 31 bits.
    pub(super) fn check(&self) -> Result<()> {
        match self.sizes().into_iter().find(|&n| n == 0 || n >= 1 << 31) {
            None => Ok(()),
            Some(n) => Err(Error::Failed(format!("a tensor of {n} numbers: libraries take 1 to 2^31 - 1"))),
        }
    }
}

/// A source of dense products on one device.
pub trait Vendor: Send + Sync {
    /// Libraries that are open, with versions, for people; empty before the first product.
    fn describe(&self) -> String;

    /// Makes a product ready to run. Chooses among ways that give the same bytes each time.
    ///
    /// # Errors
    /// One line: a library that is missing, too old or incomplete, or a product that it has no such way for.
    fn prepare(&self, product: &Product) -> Result<Box<dyn Prepared>>;
}

/// A product that may run any number of times, also while a graph is recorded. Nothing is allocated on the device then.
pub trait Prepared: Send + Sync {
    /// Bytes of device memory that it needs beside operands and result.
    fn workspace_bytes(&self) -> usize;

    /// What the result is stored as.
    fn output(&self) -> Element;

    /// Starts it on the device's stream. Forward: x, w, y. Data gradient: dy, w, dx. Weight gradient: x, dy, dw. The result
    /// is overwritten; whatever it held.
    ///
    /// # Safety
    /// Addresses, multiples of 16, of live buffers of the device, of the sizes that the product says (`workspace`:
    /// [`Prepared::workspace_bytes`]), which nothing else uses until [`Driver::synchronise`](super::Driver::synchronise);
    /// while a graph is recorded: whenever it is replayed. Results and workspace overlap nothing else.
    unsafe fn run(&self, a: u64, b: u64, out: u64, workspace: u64) -> Result<()>;
}
