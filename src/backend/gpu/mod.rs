//! The GPU backend: one implementation over two drivers, CUDA through cudarc ([`cuda`]) and, with feature `emu`, an
//! emulation on the host that runs the same kernel source.
//!
//! [`GpuBackend`] holds a network's memory (`backend.rs`) and turns each operation into a few launches on one stream
//! (`operations.rs`); [`ops`] has a launcher a kernel, of the same stem as the `.cu` file in `kernels/`.

mod as_backend;
mod backend;
mod capture;
mod convs;
pub mod cuda;
mod driver;
mod embedded;
#[cfg(feature = "emu")]
pub mod emu;
mod layout;
mod norms;
mod operations;
pub mod ops;
pub mod plan;
mod precision;
mod probe;
mod sizes_only;
mod steps;
pub mod vendor;

pub use backend::GpuBackend;
pub use driver::{Arg, Driver, Launch};
pub use embedded::{ARCHS, FATBINS, NVCC, RESOURCES, Resource};
pub use ops::operand::Precision;
pub use ops::state::StepState;
pub use plan::GpuPlan;
pub use precision::LossScale;
pub use probe::{DeviceInfo, MIN_CAPABILITY, find_device, probe};
pub use sizes_only::SizesOnly;
pub use steps::{Crops, DeviceImages, Feed};
