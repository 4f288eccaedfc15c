//! Which device computes, and how exactly.

use super::Options;
use super::plan::is_cpu_plan;
use crate::backend::gpu::{self, GpuPlan, LossScale, Precision};
use crate::error::{Error, Result};
use crate::report::RunDir;
use std::path::Path;

/// Which device a run uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU if there is one that can be used, else the CPU. A run that is gone on with: a GPU if it was ever on one, else the
    /// CPU. With a plan for the CPU: the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU; an error (exit code 69) without one.
    Cuda,
    /// The GPU's kernels on the emulated device.
    #[cfg(feature = "emu")]
    Emulated,
}

impl Device {
    /// The device itself, where [`Device::Auto`] leaves it open.
    pub fn found(self) -> Self {
        match self {
            Device::Auto if gpu::probe().is_ok() => Device::Cuda,
            Device::Auto => Device::Cpu,
            known => known,
        }
    }
}

/// A device, and how exactly it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OnDevice {
    /// Which.
    pub device: Device,
    /// Numbers on a GPU; `None`: fp16, or those of the run that is gone on with.
    pub precision: Option<Precision>,
    /// Factor of the loss's gradient on a GPU; `None`: what the precision needs, or that of the run that is gone on with.
    pub loss_scale: Option<LossScale>,
}

impl OnDevice {
    /// Precision and loss scale on a GPU: those asked for, if they are not at odds with the plan, else the plan's.
    ///
    /// # Errors
    /// Exit code 2: another precision or loss scale than that of the plan, which is named.
    pub fn numbers(&self, plan: Option<(&Path, &GpuPlan)>) -> Result<(Precision, LossScale)> {
        let odds = |flag: &str, asked: String, planned: String, path: &Path| {
            Err(Error::Usage(format!(
                "{flag} {asked}: the plan in {} is for {planned}; leave {flag} out, or give another --plan",
                path.display()
            )))
        };
        let planned = plan.map(|(path, plan)| (path, plan.precision));
        let precision = match (self.precision, planned) {
            (Some(asked), Some((path, planned))) if asked != planned => {
                return odds("--precision", asked.to_string(), planned.to_string(), path);
            }
            (asked, planned) => asked.or(planned.map(|(_, precision)| precision)).unwrap_or(Precision::F16),
        };
        let planned = plan.and_then(|(path, plan)| Some((path, plan.loss_scale?)));
        match (self.loss_scale, planned) {
            (Some(asked), Some((path, planned))) if asked != planned => {
                odds("--loss-scale", asked.to_string(), planned.to_string(), path)
            }
            (asked, planned) => {
                let scale = asked.or(planned.map(|(_, scale)| scale));
                Ok((precision, scale.unwrap_or(LossScale::default_for(precision))))
            }
        }
    }

    /// The device itself of what is neither a run nor its evaluation; an error if numbers for a GPU are asked for and it is
    /// the CPU.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn found(&self) -> Result<Device> {
        self.checked(self.device.found(), "there is no usable GPU here")
    }

    /// The device of a run.
    pub(super) fn of_run(&self, options: &Options) -> Result<Device> {
        match (self.device, &options.resume) {
            // A result never changes because another machine goes on.
            (Device::Auto, Some(run)) if RunDir::at(run).gpu_plan().exists() => {
                gpu::probe()
                    .map_err(|why| Error::NoGpu(format!("the run in {} was on a GPU; {why}", run.display())))?;
                Ok(Device::Cuda)
            }
            (Device::Auto, Some(_)) => self.checked(Device::Cpu, "the run was on the processor"),
            (Device::Auto, None) if options.plan.as_deref().is_some_and(is_cpu_plan) => {
                self.checked(Device::Cpu, "--plan is for the processor")
            }
            _ => self.found(),
        }
    }

    /// The device of an evaluation: with [`Device::Auto`] where the run was, if that can be, so that no figure depends on the
    /// machine without need.
    pub(super) fn of_evaluation(&self, checkpoint: &Path, plan: Option<&Path>) -> Result<Device> {
        let run = checkpoint.parent().map(RunDir::at).filter(|run| run.config().exists() && run.plan().exists());
        match (self.device, run) {
            (Device::Auto, _) if plan.is_some_and(is_cpu_plan) => {
                self.checked(Device::Cpu, "--plan is for the processor")
            }
            (Device::Auto, Some(run)) if plan.is_none() && self.precision.is_none() && !run.gpu_plan().exists() => {
                Ok(Device::Cpu)
            }
            _ => self.found(),
        }
    }

    fn checked(&self, found: Device, why: &str) -> Result<Device> {
        let asked = match (self.precision, self.loss_scale) {
            (Some(_), _) => "--precision",
            (None, Some(_)) => "--loss-scale",
            (None, None) => return Ok(found),
        };
        match (found, self.device) {
            (Device::Cpu, Device::Cpu) => Err(Error::Usage(format!(
                "{asked} is for GPUs: the processor computes in f32; leave it out, or add --device cuda"
            ))),
            (Device::Cpu, _) => Err(Error::Usage(format!(
                "{asked} is for GPUs, and {why}: the processor computes in f32; leave it out, or add --device cuda"
            ))),
            _ => Ok(found),
        }
    }
}
