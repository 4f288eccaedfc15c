//! The CUDA driver, through cudarc, which opens libcuda at run time: nothing of CUDA is needed to build or to run
//! elsewhere. One context (the device's primary one) and one stream; fatbins from this binary.
//!
//! No GPU has run this code yet; a counterfeit libcuda has (`tests/gpu_probe.rs`).

use super::driver::{Arg, Driver, Launch, check_copy};
use super::embedded::FATBINS;
use super::probe::{self, DeviceInfo};
use crate::error::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex};

/// Most arguments a launch may have here.
const MAX_ARGS: usize = 16;

/// A CUDA device with this binary's kernels loaded.
pub struct Cuda {
    session: Arc<Session>,
    info: DeviceInfo,
    functions: Mutex<HashMap<&'static str, Function>>,
}

/// Device memory of a [`Cuda`].
pub struct CudaBuf {
    address: sys::CUdeviceptr,
    bytes: usize,
    session: Arc<Session>,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a handle that any thread may use while its module is loaded, which the session guarantees.
unsafe impl Send for Function {}

/// What lives as long as the last buffer.
struct Session {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
}

// SAFETY: driver handles may be used from any thread; each call binds the context to its thread first.
unsafe impl Send for Session {}
// SAFETY: as above; nothing in it changes after `open`.
unsafe impl Sync for Session {}

impl Session {
    fn bind(&self) -> Result<()> {
        // SAFETY: retained in `open`, released in `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as the session.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: each was created once and is destroyed once, after all buffers. A failing device is left as it is.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            for module in &self.modules {
                let _ = result::module::unload(*module);
            }
            if !self.stream.is_null() {
                let _ = result::stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Drop for CudaBuf {
    fn drop(&mut self) {
        if self.session.bind().is_ok() {
            // SAFETY: allocated by `alloc`, freed once; the call waits for launches that use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| Error::Failed(format!("GPU: {call} fails with {:?}", e.0))
}

impl Cuda {
    /// Opens the device that [`super::probe()`] finds, with this binary's kernels. [`Error::NoGpu`] if that is
    /// impossible.
    pub fn open() -> Result<Self> {
        Self::open_with(probe::probe()?, FATBINS)
    }

    /// Opens `device` with other kernels: name (for messages) and fatbin, cubin or PTX ending in NUL.
    pub fn open_with(device: DeviceInfo, kernels: &[(&str, &[u8])]) -> Result<Self> {
        let refuse = |call: &'static str| {
            let name = device.name.clone();
            move |e: DriverError| {
                probe::no(format!("{name} refuses {call}: {:?}; is it in use, out of memory or failing?", e.0))
            }
        };
        let handle = result::device::get(device.ordinal).map_err(refuse("cuDeviceGet"))?;
        // SAFETY: the handle is the driver's.
        let context = unsafe { result::primary_ctx::retain(handle) }.map_err(refuse("cuDevicePrimaryCtxRetain"))?;
        // From here on, dropping it undoes what was done.
        let mut session = Session { device: handle, context, stream: std::ptr::null_mut(), modules: Vec::new() };
        session.bind()?;
        session.stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(refuse("cuStreamCreate"))?;
        for (name, code) in kernels {
            // Embedded bytes have no alignment; the driver reads headers of 8-byte numbers.
            let mut aligned = vec![0u64; code.len().div_ceil(8) + 1];
            bytemuck::cast_slice_mut(&mut aligned)[..code.len()].copy_from_slice(code);
            // SAFETY: a complete image, followed by at least one NUL.
            let module = unsafe { result::module::load_data(aligned.as_ptr().cast()) }.map_err(|e| {
                let (major, minor) = device.capability;
                probe::no(format!(
                    "{} (compute capability {major}.{minor}) cannot load kernels/{name}.cu: {:?}; \
                     build again with SPARSE_ENGINE_CUDA_ARCHS=sm_{major}{minor}",
                    device.name, e.0
                ))
            })?;
            session.modules.push(module);
        }
        Ok(Cuda { session: Arc::new(session), info: device, functions: Mutex::default() })
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Wants the context bound.
    fn function(&self, name: &'static str) -> Result<Function> {
        let mut known = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(f) = known.get(name) {
            return Ok(*f);
        }
        let symbol = CString::new(name).map_err(|_| Error::Failed(format!("kernel name {name:?} holds a NUL")))?;
        for module in &self.session.modules {
            // SAFETY: the module is loaded.
            if let Ok(f) = unsafe { result::module::get_function(*module, symbol.clone()) } {
                known.insert(name, Function(f));
                return Ok(Function(f));
            }
        }
        Err(Error::Failed(format!("GPU: no kernel {name} in this binary's fatbins")))
    }
}

impl Driver for Cuda {
    type Buf = CudaBuf;

    fn describe(&self) -> String {
        format!("cuda {}", self.info.name)
    }

    fn alloc(&self, bytes: usize) -> Result<CudaBuf> {
        self.session.bind()?;
        // SAFETY: the size is not zero, which the driver refuses.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| {
            let memory = self.info.memory_bytes;
            Error::Failed(format!("GPU: no memory for {bytes} bytes on {} ({memory} bytes): {:?}", self.info.name, e.0))
        })?;
        Ok(CudaBuf { address, bytes, session: self.session.clone() })
    }

    fn address(&self, buf: &CudaBuf) -> u64 {
        buf.address
    }

    fn upload(&self, dst: &mut CudaBuf, src: &[u8]) -> Result<()> {
        check_copy("upload", src.len(), dst.bytes)?;
        self.session.bind()?;
        // SAFETY: both sides hold that many bytes; `wait` keeps `src` borrowed until the copy is done.
        unsafe { result::memcpy_htod_async(dst.address, src, self.session.stream) }
            .map_err(failed("cuMemcpyHtoDAsync"))?;
        self.session.wait()
    }

    fn download(&self, src: &CudaBuf, dst: &mut [u8]) -> Result<()> {
        check_copy("download", dst.len(), src.bytes)?;
        self.session.bind()?;
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_async(dst, src.address, self.session.stream) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.session.wait()
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        launch.check(kernel)?;
        if args.len() > MAX_ARGS {
            return Err(Error::Failed(format!("launch of {kernel}: {} arguments, at most {MAX_ARGS}", args.len())));
        }
        self.session.bind()?;
        let function = self.function(kernel)?;
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = arg.at.cast_mut(); // the driver only reads
        }
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: the function's module is loaded, the geometry was checked; the rest is the caller's promise.
        unsafe {
            result::launch_kernel(
                function.0,
                (gx, gy, gz),
                (bx, by, bz),
                launch.shared_bytes,
                self.session.stream,
                &mut pointers[..args.len()],
            )
        }
        .map_err(|e| Error::Failed(format!("GPU: launch of {kernel} fails with {:?}", e.0)))
    }

    fn synchronise(&self) -> Result<()> {
        self.session.bind()?;
        self.session.wait()
    }
}
