//! The GPU backend: one implementation over two drivers, CUDA through cudarc ([`cuda`]) and, with feature `emu`, an
//! emulation on the host that runs the same kernel source.
//!
//! This is the beginning. The masked SGD step runs on the device, where values, gradients and momentum live; every
//! other op still runs on a host backend inside [`GpuBackend`], and moves over one by one: a kernel in `kernels/`, a
//! launcher of the same stem in [`ops`], a line in [`GpuBackend`].

mod backend;
mod capture;
pub mod cuda;
mod driver;
mod embedded;
#[cfg(feature = "emu")]
pub mod emu;
pub mod ops;
mod probe;

pub use backend::GpuBackend;
pub use driver::{Arg, Driver, Launch};
pub use embedded::{ARCHS, FATBINS, NVCC, RESOURCES, Resource};
pub use probe::{DeviceInfo, MIN_CAPABILITY, find_device, probe};
