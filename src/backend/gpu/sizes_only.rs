//! A device that has no memory and runs nothing: what a network would hold, without holding it.

use super::driver::{Arg, Driver, Launch, check_range};
use crate::error::{Error, Result};

/// Like another device in all that a backend asks before it allocates. Buffers have sizes and no content; nothing is launched.
pub struct SizesOnly {
    name: String,
    capability: (i32, i32),
    sm_count: u32,
    max_shared_bytes: u32,
}

impl SizesOnly {
    /// Like `device`.
    pub fn of<D: Driver>(device: &D) -> Self {
        SizesOnly {
            name: device.describe(),
            capability: device.capability(),
            sm_count: device.sm_count(),
            max_shared_bytes: device.max_shared_bytes(),
        }
    }

    fn nothing<T>(&self, call: &str) -> Result<T> {
        Err(Error::Failed(format!("{call} on a stand-in for {} that has sizes only", self.name)))
    }
}

impl Driver for SizesOnly {
    /// Its size.
    type Buf = usize;
    type Graph = ();

    fn describe(&self) -> String {
        self.name.clone()
    }
    fn capability(&self) -> (i32, i32) {
        self.capability
    }
    fn sm_count(&self) -> u32 {
        self.sm_count
    }
    fn max_shared_bytes(&self) -> u32 {
        self.max_shared_bytes
    }
    fn alloc(&self, bytes: usize) -> Result<usize> {
        Ok(bytes)
    }
    fn address(&self, _: &usize) -> u64 {
        0
    }
    fn bytes(&self, buf: &usize) -> usize {
        *buf
    }
    fn upload_at(&self, dst: &mut usize, at: usize, src: &[u8]) -> Result<()> {
        check_range("upload", at, src.len(), *dst)
    }
    fn download_at(&self, _: &usize, _: usize, _: &mut [u8]) -> Result<()> {
        self.nothing("download")
    }
    fn fill_at(&self, dst: &mut usize, at: usize, bytes: usize, _: u8) -> Result<()> {
        check_range("fill", at, bytes, *dst)
    }
    fn allow_shared(&self, _: &'static str, _: u32) -> Result<()> {
        Ok(())
    }
    unsafe fn launch(&self, kernel: &'static str, _: Launch, _: &[Arg]) -> Result<()> {
        self.nothing(kernel)
    }
    fn launches(&self) -> u64 {
        0
    }
    fn synchronise(&self) -> Result<()> {
        Ok(())
    }
    fn capture(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.nothing("capture")
    }
    fn replay(&self, (): &()) -> Result<()> {
        self.nothing("replay")
    }
}
