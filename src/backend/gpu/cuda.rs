//! The CUDA driver, through cudarc, which opens libcuda at run time: nothing of CUDA is needed to build or to run
//! elsewhere. One context (the device's primary one) and one stream; fatbins from this binary.
//!
//! No GPU has run this code yet; a counterfeit libcuda has (`tests/gpu_probe.rs`).

use super::capture::Gate;
use super::driver::{Arg, Driver, Launch, check_args, check_range, check_shared};
use super::embedded::FATBINS;
use super::probe::{self, DeviceInfo};
use super::vendor::{CudaVendor, Vendor};
use crate::error::{Error, Result};
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_DYNAMIC_SHARED;
use cudarc::driver::sys::CUstreamCaptureMode as CaptureMode;
use cudarc::driver::{DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Most arguments a launch may have here.
const MAX_ARGS: usize = 16;

/// A CUDA device with this binary's kernels loaded.
pub struct Cuda {
    session: Arc<Session>,
    vendor: CudaVendor,
    info: DeviceInfo,
    functions: Mutex<HashMap<&'static str, Function>>,
    launches: AtomicU64,
}

/// Device memory of a [`Cuda`].
pub struct CudaBuf {
    address: sys::CUdeviceptr,
    bytes: usize,
    session: Arc<Session>,
}

/// Launches recorded on a [`Cuda`].
pub struct CudaGraph {
    exec: sys::CUgraphExec,
    session: Arc<Session>,
}

// SAFETY: a handle that any thread may use, one at a time.
unsafe impl Send for CudaGraph {}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory it was allowed.
    shared: u32,
}

// SAFETY: a handle that any thread may use while its module is loaded, which the session guarantees.
unsafe impl Send for Function {}

/// What lives as long as the last buffer.
pub(super) struct Session {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    gate: Gate,
    /// Memory dropped during a capture, freed after it.
    orphans: Mutex<Vec<sys::CUdeviceptr>>,
}

// SAFETY: driver handles may be used from any thread; each call binds the context to its thread first.
unsafe impl Send for Session {}
// SAFETY: as above; what changes after `open` lies behind locks.
unsafe impl Sync for Session {}

impl Session {
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context that of this thread.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: retained in `open`, released in `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as the session.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }

    fn orphans(&self) -> MutexGuard<'_, Vec<sys::CUdeviceptr>> {
        self.orphans.lock().unwrap_or_else(|e| e.into_inner())
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
        if self.session.gate.refuse("freeing device memory").is_err() {
            self.session.orphans().push(self.address);
        } else if self.session.bind().is_ok() {
            // SAFETY: allocated by `alloc`, freed once; the call waits for launches that use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.session.bind().is_ok() {
            // SAFETY: instantiated by `capture`, destroyed once; a replay that still runs is not disturbed.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// A stream that records, until it is told to stop or dropped (an error or a panic in the recording).
struct Recorder<'a>(Option<&'a Session>);

impl Recorder<'_> {
    fn stop(&mut self) -> Result<sys::CUgraph> {
        let session = self.0.take().expect("stopped once");
        // SAFETY: the stream is alive and this thread began the capture.
        let ended = unsafe { result::stream::end_capture(session.stream) }.map_err(failed("cuStreamEndCapture"));
        for address in session.orphans().drain(..) {
            // SAFETY: its owner was dropped during the capture and left the freeing to this place.
            let _ = unsafe { result::free_sync(address) };
        }
        ended
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        if self.0.is_none() {
            return;
        }
        if let Ok(graph) = self.stop()
            && !graph.is_null()
        {
            // SAFETY: just made by the driver, used by nothing.
            let _ = unsafe { result::graph::destroy(graph) };
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
        let mut session = Session {
            device: handle,
            context,
            stream: std::ptr::null_mut(),
            modules: Vec::new(),
            gate: Gate::default(),
            orphans: Mutex::default(),
        };
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
        let session = Arc::new(session);
        let vendor = CudaVendor::new(session.clone());
        Ok(Cuda { session, vendor, info: device, functions: Mutex::default(), launches: AtomicU64::new(0) })
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
            if let Ok(handle) = unsafe { result::module::get_function(*module, symbol.clone()) } {
                let found = Function { handle, shared: 0 };
                known.insert(name, found);
                return Ok(found);
            }
        }
        Err(Error::Failed(format!("GPU: no kernel {name} in this binary's fatbins")))
    }
}

impl Driver for Cuda {
    type Buf = CudaBuf;
    type Graph = CudaGraph;

    fn describe(&self) -> String {
        format!("cuda {}", self.info.name)
    }

    fn capability(&self) -> (i32, i32) {
        self.info.capability
    }

    fn sm_count(&self) -> u32 {
        self.info.sm_count
    }

    fn max_shared_bytes(&self) -> u32 {
        self.info.max_shared_bytes
    }

    fn alloc(&self, bytes: usize) -> Result<CudaBuf> {
        self.session.gate.refuse("allocation")?;
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

    fn bytes(&self, buf: &CudaBuf) -> usize {
        buf.bytes
    }

    fn upload_at(&self, dst: &mut CudaBuf, at: usize, src: &[u8]) -> Result<()> {
        check_range("upload", at, src.len(), dst.bytes)?;
        self.session.gate.refuse("upload")?;
        self.session.bind()?;
        // SAFETY: both sides hold that many bytes; `wait` keeps `src` borrowed until the copy is done.
        unsafe { result::memcpy_htod_async(dst.address + at as u64, src, self.session.stream) }
            .map_err(failed("cuMemcpyHtoDAsync"))?;
        self.session.wait()
    }

    fn download_at(&self, src: &CudaBuf, at: usize, dst: &mut [u8]) -> Result<()> {
        check_range("download", at, dst.len(), src.bytes)?;
        self.session.gate.refuse("download")?;
        self.session.bind()?;
        // SAFETY: as in `upload_at`.
        unsafe { result::memcpy_dtoh_async(dst, src.address + at as u64, self.session.stream) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.session.wait()
    }

    fn fill_at(&self, dst: &mut CudaBuf, at: usize, bytes: usize, value: u8) -> Result<()> {
        check_range("fill", at, bytes, dst.bytes)?;
        self.session.gate.refuse("fill")?;
        if bytes == 0 {
            return Ok(());
        }
        self.session.bind()?;
        // SAFETY: the range lies in the buffer, whose stream this is.
        unsafe { result::memset_d8_async(dst.address + at as u64, value, bytes, self.session.stream) }
            .map_err(failed("cuMemsetD8Async"))
    }

    fn allow_shared(&self, kernel: &'static str, bytes: u32) -> Result<()> {
        check_shared(kernel, bytes, self.info.max_shared_bytes)?;
        self.session.bind()?;
        if bytes <= self.function(kernel)?.shared {
            return Ok(());
        }
        let mut known = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(function) = known.get_mut(kernel) {
            // SAFETY: the function's module is loaded.
            unsafe { result::function::set_function_attribute(function.handle, MAX_DYNAMIC_SHARED, bytes as i32) }
                .map_err(|e| {
                    Error::Failed(format!("GPU: {kernel} cannot have {bytes} bytes of shared memory: {:?}", e.0))
                })?;
            function.shared = bytes;
        }
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        check_args(kernel, args)?;
        if args.len() > MAX_ARGS {
            return Err(Error::Failed(format!("launch of {kernel}: {} arguments, at most {MAX_ARGS}", args.len())));
        }
        self.session.bind()?;
        let function = self.function(kernel)?;
        launch.check(kernel, function.shared)?;
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = arg.at.cast_mut(); // the driver only reads
        }
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        self.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the function's module is loaded, the geometry was checked; the rest is the caller's promise.
        unsafe {
            result::launch_kernel(
                function.handle,
                (gx, gy, gz),
                (bx, by, bz),
                launch.shared_bytes,
                self.session.stream,
                &mut pointers[..args.len()],
            )
        }
        .map_err(|e| Error::Failed(format!("GPU: launch of {kernel} fails with {:?}", e.0)))
    }

    fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    fn synchronise(&self) -> Result<()> {
        self.session.gate.refuse("synchronisation")?;
        self.session.bind()?;
        self.session.wait()
    }

    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<CudaGraph> {
        self.session.bind()?;
        let recording = self.session.gate.begin()?;
        // Relaxed: a kernel's first use may load its code, which the stricter modes forbid; what must not happen in a
        // capture, the gate refuses.
        // SAFETY: the stream lives as long as the session and is not recording.
        unsafe { result::stream::begin_capture(self.session.stream, CaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED) }
            .map_err(failed("cuStreamBeginCapture"))?;
        let mut recorder = Recorder(Some(&self.session));
        recording.finish(record())?;
        self.session.bind()?;
        let graph = recorder.stop()?;
        // SAFETY: the driver's graph, used by nothing else; the executable one does not need it any more.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec
        };
        Ok(CudaGraph { exec: exec.map_err(failed("cuGraphInstantiate"))?, session: self.session.clone() })
    }

    fn replay(&self, graph: &CudaGraph) -> Result<()> {
        self.session.gate.refuse("replay")?;
        if !Arc::ptr_eq(&self.session, &graph.session) {
            return Err(Error::Failed("GPU: replay of a graph that another device recorded".into()));
        }
        self.session.bind()?;
        // SAFETY: graph and stream are of this session; what the launches reach was promised when they were recorded.
        unsafe { result::graph::launch(graph.exec, self.session.stream) }.map_err(failed("cuGraphLaunch"))
    }

    fn vendor(&self) -> Option<&dyn Vendor> {
        Some(&self.vendor)
    }
}
