//! Where to compute, as the subcommands have it in common.

use crate::backend::gpu::{LossScale, Precision};
use crate::error::Result;
use crate::train::{Device, OnDevice};

/// Where to compute, and with which numbers.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// Numbers on the GPU: fp16, bf16, tf32 or f32; sums, statistics and parameters are f32 always [default: fp16, or as in
    /// the run that is gone on with]
    #[arg(long, value_name = "KIND")]
    pub precision: Option<String>,
    /// Factor of the loss's gradient on the GPU: a power of two, or "dynamic": halved when a gradient overflows, doubled after
    /// 2000 good steps [default: dynamic with fp16, else 1; or as in the run that is gone on with]
    #[arg(long, value_name = "N|dynamic")]
    pub loss_scale: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum DeviceArg {
    /// A GPU if there is one, else the processor
    Auto,
    /// This machine's processor
    Cpu,
    /// An NVIDIA GPU; exit code 69 without one
    Cuda,
    /// The GPU's kernels, emulated on the processor: slow, for tests
    #[cfg(feature = "emu")]
    Emulated,
}

impl DeviceArgs {
    /// # Errors
    /// A word that names nothing, with those there are.
    pub fn resolve(&self) -> Result<OnDevice> {
        let device = match self.device {
            DeviceArg::Auto => Device::Auto,
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Cuda => Device::Cuda,
            #[cfg(feature = "emu")]
            DeviceArg::Emulated => Device::Emulated,
        };
        let precision = self.precision.as_deref().map(str::parse::<Precision>).transpose()?;
        let loss_scale = self.loss_scale.as_deref().map(str::parse::<LossScale>).transpose()?;
        Ok(OnDevice { device, precision, loss_scale })
    }
}
