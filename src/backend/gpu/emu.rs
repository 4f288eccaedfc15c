//! The emulated device (feature `emu`): the same kernel source, compiled by a host compiler against `kernels/emu/`.
//! What it finds and what it can't is said in `kernels/emu/cuda.hpp`. Launches have finished when they return.

use super::driver::{Arg, Driver, Launch, check_copy};
use crate::error::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

// kernels/emu/runtime.cpp
unsafe extern "C" {
    fn sparse_engine_emu_open() -> *mut c_void;
    fn sparse_engine_emu_close(device: *mut c_void);
    fn sparse_engine_emu_find(name: *const c_char, arg_bytes: *mut *const u32, args: *mut u32) -> *const c_void;
    fn sparse_engine_emu_launch(
        device: *mut c_void,
        kernel: *const c_void,
        grid: *const u32,
        block: *const u32,
        dynamic_bytes: u32,
        args: *mut *mut c_void,
        descending: c_int,
    ) -> *const c_char;
    fn sparse_engine_emu_alloc(bytes: usize) -> *mut c_void;
    fn sparse_engine_emu_free(memory: *mut c_void, bytes: usize);
    fn sparse_engine_emu_intact(memory: *const c_void, bytes: usize) -> c_int;
}

/// In which order threads and blocks run: a kernel that needs a barrier it lacks goes wrong in one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Lowest index first.
    Ascending,
    /// Highest index first.
    Descending,
}

impl Order {
    /// Both: a test runs in each.
    pub const BOTH: [Order; 2] = [Order::Ascending, Order::Descending];
}

/// Address and length of each live buffer.
type Live = Arc<Mutex<Vec<(usize, usize)>>>;

/// The emulated device.
pub struct Emulated {
    device: Mutex<NonNull<c_void>>,
    order: Order,
    live: Live,
}

// SAFETY: the device is a heap object of its own, used by one thread at a time through the mutex.
unsafe impl Send for Emulated {}

/// Memory of the emulated device: filled with 0xFF, a page without access before and behind it, and none but faults
/// after it is dropped.
pub struct EmulatedBuf {
    at: NonNull<c_void>,
    bytes: usize,
    live: Live,
}

// SAFETY: it owns its memory.
unsafe impl Send for EmulatedBuf {}

impl Emulated {
    /// A device whose threads run in `order`.
    pub fn new(order: Order) -> Result<Self> {
        // SAFETY: no preconditions.
        let device = NonNull::new(unsafe { sparse_engine_emu_open() });
        let device = device.ok_or_else(|| Error::Failed("emulated GPU: no memory for its threads' stacks".into()))?;
        Ok(Emulated { device: Mutex::new(device), order, live: Live::default() })
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        // SAFETY: opened by `new`, and no launch runs: they borrow the device.
        unsafe { sparse_engine_emu_close(lock(&self.device).as_ptr()) }
    }
}

impl Drop for EmulatedBuf {
    fn drop(&mut self) {
        lock(&self.live).retain(|&(at, _)| at != self.at.as_ptr() as usize);
        // SAFETY: allocated with this size by `alloc`, freed once.
        unsafe { sparse_engine_emu_free(self.at.as_ptr(), self.bytes) }
    }
}

/// A poisoned lock guards nothing that a panic elsewhere could have left half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Driver for Emulated {
    type Buf = EmulatedBuf;

    fn describe(&self) -> String {
        "emulated gpu".into()
    }

    fn alloc(&self, bytes: usize) -> Result<EmulatedBuf> {
        // SAFETY: any size is allowed.
        let at = NonNull::new(unsafe { sparse_engine_emu_alloc(bytes) })
            .ok_or_else(|| Error::Failed(format!("emulated GPU: no memory for a buffer of {bytes} bytes")))?;
        lock(&self.live).push((at.as_ptr() as usize, bytes));
        Ok(EmulatedBuf { at, bytes, live: self.live.clone() })
    }

    fn address(&self, buf: &EmulatedBuf) -> u64 {
        buf.at.as_ptr() as u64
    }

    fn upload(&self, dst: &mut EmulatedBuf, src: &[u8]) -> Result<()> {
        check_copy("upload", src.len(), dst.bytes)?;
        // SAFETY: both sides hold that many bytes, and device memory is no Rust object.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst.at.as_ptr().cast(), src.len()) }
        Ok(())
    }

    fn download(&self, src: &EmulatedBuf, dst: &mut [u8]) -> Result<()> {
        check_copy("download", dst.len(), src.bytes)?;
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(src.at.as_ptr().cast(), dst.as_mut_ptr(), dst.len()) }
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        launch.check(kernel)?;
        let name = CString::new(kernel).map_err(|_| Error::Failed(format!("kernel name {kernel:?} holds a NUL")))?;
        let (mut arg_bytes, mut count) = (std::ptr::null(), 0);
        // SAFETY: a C string and two places for answers.
        let found = unsafe { sparse_engine_emu_find(name.as_ptr(), &mut arg_bytes, &mut count) };
        if found.is_null() {
            return Err(Error::Failed(format!("no kernel {kernel}: is EXPORT_KERNEL({kernel}) in kernels/*.cu?")));
        }
        // SAFETY: a found kernel has `count` sizes (and one more, so that the list is never empty).
        let wanted = unsafe { std::slice::from_raw_parts(arg_bytes, count as usize) };
        if !args.iter().map(|a| a.bytes as u32).eq(wanted.iter().copied()) {
            let got: Vec<_> = args.iter().map(|a| a.bytes).collect();
            return Err(Error::Failed(format!("kernel {kernel} takes arguments of {wanted:?} bytes, got {got:?}")));
        }
        let mut pointers: Vec<*mut c_void> = args.iter().map(|a| a.at.cast_mut()).collect();
        let said = {
            let device = lock(&self.device);
            // SAFETY: limits and argument sizes were checked; the rest is the caller's promise. The message is copied
            // while the lock is held.
            unsafe {
                let said = sparse_engine_emu_launch(
                    device.as_ptr(),
                    found,
                    launch.grid.as_ptr(),
                    launch.block.as_ptr(),
                    launch.shared_bytes,
                    pointers.as_mut_ptr(),
                    c_int::from(self.order == Order::Descending),
                );
                (!said.is_null()).then(|| CStr::from_ptr(said).to_string_lossy().into_owned())
            }
        };
        if let Some(said) = said {
            return Err(Error::Failed(format!("emulated GPU: {said}")));
        }
        for &(at, bytes) in lock(&self.live).iter() {
            // SAFETY: a live buffer of that size.
            if unsafe { sparse_engine_emu_intact(at as *const c_void, bytes) } == 0 {
                return Err(Error::Failed(format!(
                    "emulated GPU: kernel {kernel} wrote past the end of a buffer of {bytes} bytes"
                )));
            }
        }
        Ok(())
    }

    fn synchronise(&self) -> Result<()> {
        Ok(())
    }
}
