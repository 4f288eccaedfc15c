//! An emulated device with a planted fault.

use sparse_engine::Result;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::vendor::Vendor;
use sparse_engine::backend::gpu::{Arg, Driver, Launch};
use std::sync::atomic::{AtomicBool, Ordering};

/// When a kernel is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skip {
    Never,
    Always(&'static str),
    /// Only from graphs.
    Recorded(&'static str),
}

/// An emulated device that leaves out the kernels whose names begin so.
pub struct Faulty {
    inner: Emulated,
    skip: Skip,
    recording: AtomicBool,
}

impl Faulty {
    pub fn open(skip: Skip) -> Result<Self> {
        Ok(Faulty { inner: Emulated::new(Order::Descending)?.with_vendor(), skip, recording: AtomicBool::new(false) })
    }
}

impl Driver for Faulty {
    type Buf = <Emulated as Driver>::Buf;
    type Graph = <Emulated as Driver>::Graph;

    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn capability(&self) -> (i32, i32) {
        self.inner.capability()
    }
    fn sm_count(&self) -> u32 {
        self.inner.sm_count()
    }
    fn max_shared_bytes(&self) -> u32 {
        self.inner.max_shared_bytes()
    }
    fn vendor(&self) -> Option<&dyn Vendor> {
        self.inner.vendor()
    }
    fn alloc(&self, bytes: usize) -> Result<Self::Buf> {
        self.inner.alloc(bytes)
    }
    fn address(&self, buf: &Self::Buf) -> u64 {
        self.inner.address(buf)
    }
    fn bytes(&self, buf: &Self::Buf) -> usize {
        self.inner.bytes(buf)
    }
    fn upload_at(&self, dst: &mut Self::Buf, at: usize, src: &[u8]) -> Result<()> {
        self.inner.upload_at(dst, at, src)
    }
    fn download_at(&self, src: &Self::Buf, at: usize, dst: &mut [u8]) -> Result<()> {
        self.inner.download_at(src, at, dst)
    }
    fn fill_at(&self, dst: &mut Self::Buf, at: usize, bytes: usize, value: u8) -> Result<()> {
        self.inner.fill_at(dst, at, bytes, value)
    }
    fn allow_shared(&self, kernel: &'static str, bytes: u32) -> Result<()> {
        self.inner.allow_shared(kernel, bytes)
    }
    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        let recording = self.recording.load(Ordering::Relaxed);
        match self.skip {
            Skip::Always(name) if kernel.starts_with(name) => Ok(()),
            Skip::Recorded(name) if recording && kernel.starts_with(name) => Ok(()),
            // SAFETY: the caller's promise.
            _ => unsafe { self.inner.launch(kernel, launch, args) },
        }
    }
    fn launches(&self) -> u64 {
        self.inner.launches()
    }
    fn synchronise(&self) -> Result<()> {
        self.inner.synchronise()
    }
    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph> {
        self.recording.store(true, Ordering::Relaxed);
        let graph = self.inner.capture(record);
        self.recording.store(false, Ordering::Relaxed);
        graph
    }
    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        self.inner.replay(graph)
    }
}
