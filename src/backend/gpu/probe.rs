//! Is there a GPU that can run the kernels of this binary? Each "no" says why and what to do, and none is a panic:
//! cudarc panics on a missing library or symbol, so both are looked for first.

use super::embedded::{FATBINS, NVCC};
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{DriverError, result};

/// Oldest compute capability the kernels are written for (Ampere).
pub const MIN_CAPABILITY: (i32, i32) = (8, 0);

/// Every function of libcuda that this backend calls.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuMemsetD8Async",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// A usable GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As the driver names it, such as "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Index among the visible devices (see CUDA_VISIBLE_DEVICES).
    pub ordinal: i32,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Device memory.
    pub memory_bytes: u64,
    /// Multiprocessors.
    pub sm_count: u32,
    /// Most shared memory a block may have after opting in.
    pub max_shared_bytes: u32,
    /// Newest CUDA version the driver supports, major and minor.
    pub driver: (i32, i32),
}

/// The first GPU that can run the kernels of this binary, else [`Error::NoGpu`]. Creates no context, so it costs what
/// the driver's initialisation costs.
pub fn probe() -> Result<DeviceInfo> {
    let info = find_device()?;
    if FATBINS.is_empty() {
        return Err(no(format!(
            "{} is there, but this binary holds no GPU kernels: it was built without nvcc; install the CUDA toolkit \
             (12.0 or newer) or run scripts/install_nvcc.sh, set NVCC and build again",
            info.name
        )));
    }
    Ok(info)
}

/// The first GPU that is new enough, whether or not this binary holds kernels; else [`Error::NoGpu`].
pub fn find_device() -> Result<DeviceInfo> {
    // SAFETY: loads the system's libcuda, if any, and runs its initialisers, as every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(no("no NVIDIA driver: libcuda.so.1 cannot be loaded; install the driver, or add its folder to \
                       LD_LIBRARY_PATH"
            .into()));
    }
    for name in SYMBOLS {
        // SAFETY: only looked up, never called through this type.
        if unsafe { sys::culib().get::<*const ()>(name.as_bytes()) }.is_err() {
            return Err(no(format!(
                "libcuda.so.1 has no {name}: it is too old or no NVIDIA driver; update the driver"
            )));
        }
    }
    result::init().map_err(init_failed)?;
    let call = |name: &'static str| {
        move |e: DriverError| no(format!("the NVIDIA driver fails in {name}: {:?}; update or restart it", e.0))
    };

    let mut version = 0;
    // SAFETY: a place for the answer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(call("cuDriverGetVersion"))?;
    let driver = (version / 1000, version % 1000 / 10);
    // Code of a toolkit runs on every driver of its major version or a newer one.
    let wanted = NVCC.map_or(12, |(major, _)| major.max(12) as i32);
    if driver.0 < wanted {
        let release = if wanted >= 13 { 580 } else { 525 };
        return Err(no(format!(
            "the NVIDIA driver is too old: it supports CUDA {}.{}, the kernels want {wanted}.0; update the driver to \
             release {release} or newer",
            driver.0, driver.1
        )));
    }

    let count = result::device::get_count().map_err(call("cuDeviceGetCount"))?;
    if count <= 0 {
        return Err(no_device());
    }
    let mut rejected = Vec::new();
    for ordinal in 0..count {
        let device = result::device::get(ordinal).map_err(call("cuDeviceGet"))?;
        let name = result::device::get_name(device).map_err(call("cuDeviceGetName"))?;
        let attribute = |which| {
            // SAFETY: `device` was just returned by the driver.
            unsafe { result::device::get_attribute(device, which) }.map_err(call("cuDeviceGetAttribute"))
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability >= MIN_CAPABILITY {
            // SAFETY: as above.
            let memory = unsafe { result::device::total_mem(device) }.map_err(call("cuDeviceTotalMem"))?;
            let positive = |which| attribute(which).map(|value| value.max(0) as u32);
            return Ok(DeviceInfo {
                name,
                ordinal,
                capability,
                memory_bytes: memory as u64,
                sm_count: positive(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                max_shared_bytes: positive(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
                driver,
            });
        }
        rejected.push(format!("{name} has {}.{}", capability.0, capability.1));
    }
    Err(no(format!(
        "no GPU with compute capability {}.{} or higher: {}",
        MIN_CAPABILITY.0,
        MIN_CAPABILITY.1,
        rejected.join(", ")
    )))
}

/// A refusal: why, what would help, and what always works.
pub(super) fn no(why: String) -> Error {
    Error::NoGpu(format!("no usable GPU: {why}; or use --device cpu"))
}

fn no_device() -> Error {
    let visible = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => format!("CUDA_VISIBLE_DEVICES is {list:?}: check it"),
        Err(_) => "check nvidia-smi".into(),
    };
    no(format!("the NVIDIA driver finds no device; {visible}"))
}

fn init_failed(error: DriverError) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => no_device(),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            no("the libcuda found is the CUDA toolkit's stub, not a driver; take the \
                                                 stubs folder out of LD_LIBRARY_PATH or install the NVIDIA driver"
                .into())
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => no(
            "libcuda and the kernel's NVIDIA driver are of different releases; restart the machine or reinstall the \
                driver"
                .into(),
        ),
        other => no(format!("the NVIDIA driver does not start: {other:?}; check nvidia-smi")),
    }
}
