//! The emulated device (feature `emu`): the same kernel source, compiled by a host compiler against `kernels/emu/`.
//! What it finds and what it can't is said in `kernels/emu/cuda.hpp`. Launches have finished when they return.

mod limits;
mod runtime;

pub use limits::{Limits, Order};

use super::capture::Gate;
use super::driver::{Arg, Driver, Launch, check_args, check_range, check_shared};
use super::embedded::{RESOURCES, Resource};
use super::vendor::{Vendor, host::HostVendor};
use crate::error::{Error, Result};
use runtime::*;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a device, its buffers and its products share.
#[derive(Default)]
pub(super) struct Shared {
    /// Address and length of each live buffer.
    live: Mutex<Vec<(usize, usize)>>,
    gate: Gate,
    recorded: Mutex<Vec<Step>>,
}

/// A host function that stands for a library's launches.
pub(super) type HostCall = Box<dyn Fn() -> Result<()> + Send>;

/// What a graph holds.
enum Step {
    Launch(Call),
    Host(HostCall),
}

impl Shared {
    pub(super) fn run_or_record(&self, call: HostCall) -> Result<()> {
        if self.gate.is_recording() {
            lock(&self.recorded).push(Step::Host(call));
            return Ok(());
        }
        call()
    }

    /// Whether that many bytes lie in one live buffer.
    pub(super) fn holds(&self, at: u64, bytes: usize) -> bool {
        let from = |start: usize| (at as usize).checked_sub(start);
        lock(&self.live).iter().any(|&(start, held)| from(start).is_some_and(|f| f <= held && bytes <= held - f))
    }
}

/// The emulated device.
pub struct Emulated {
    device: Mutex<NonNull<c_void>>,
    order: Order,
    limits: Limits,
    resources: &'static [Resource],
    /// Dynamic shared memory that kernels were allowed.
    allowed: Mutex<HashMap<&'static str, u32>>,
    vendor: Option<HostVendor>,
    launches: AtomicU64,
    shared: Arc<Shared>,
}

// SAFETY: the device is a heap object of its own, used by one thread at a time through the mutex.
unsafe impl Send for Emulated {}
// SAFETY: whatever changes lies behind a mutex.
unsafe impl Sync for Emulated {}

/// Memory of the emulated device: filled with 0xFF, a page without access before and behind it, and none but faults
/// after it is dropped.
pub struct EmulatedBuf {
    at: NonNull<c_void>,
    bytes: usize,
    shared: Arc<Shared>,
}

// SAFETY: it owns its memory.
unsafe impl Send for EmulatedBuf {}

/// Launches recorded on an [`Emulated`], with copies of their arguments.
pub struct EmulatedGraph {
    steps: Vec<Step>,
    shared: Arc<Shared>,
}

/// A launch that passed every check.
struct Call {
    name: &'static str,
    kernel: Kernel,
    launch: Launch,
    /// Static and dynamic shared memory together.
    most_shared: u32,
    /// Each argument from its offset on.
    bytes: Vec<Sixteen>,
    offsets: Vec<usize>,
}

/// As aligned as any type that a kernel takes.
type Sixteen = u128;
const _: () = assert!(align_of::<Sixteen>() == 16);

#[derive(Clone, Copy)]
struct Kernel(*const c_void);

// SAFETY: points at a static object that nobody changes.
unsafe impl Send for Kernel {}

impl Emulated {
    /// An A100 whose threads run in `order`.
    pub fn new(order: Order) -> Result<Self> {
        Self::with_limits(order, Limits::SM_80)
    }

    /// A device of this kind.
    pub fn with_limits(order: Order, limits: Limits) -> Result<Self> {
        // SAFETY: no preconditions.
        let device = NonNull::new(unsafe { sparse_engine_emu_open(limits.max_shared_bytes) });
        let device = device.ok_or_else(|| Error::Failed("emulated GPU: no memory for its threads' stacks".into()))?;
        Ok(Emulated {
            device: Mutex::new(device),
            order,
            limits,
            resources: RESOURCES,
            allowed: Mutex::default(),
            vendor: None,
            launches: AtomicU64::new(0),
            shared: Arc::default(),
        })
    }

    /// Takes registers from another table than the build's.
    pub fn with_resources(mut self, resources: &'static [Resource]) -> Self {
        self.resources = resources;
        self
    }

    /// With a vendor's library, played by the host.
    pub fn with_vendor(mut self) -> Self {
        self.vendor = Some(HostVendor::new(self.shared.clone()));
        self
    }

    /// Products of 16 x 8 sums over 32 bytes of k that tensor cores would have made so far, as `multiply` in
    /// `kernels/mma.cuh` counts them: what a mask of blocks saves.
    pub fn products(&self) -> u64 {
        // SAFETY: an open device; no launch runs while the lock is held.
        unsafe { sparse_engine_emu_products(lock(&self.device).as_ptr()) }
    }

    /// The kernel of that name and the sizes of its arguments.
    fn find(name: &str) -> Result<(Kernel, &'static [u32])> {
        let text = CString::new(name).map_err(|_| Error::Failed(format!("kernel name {name:?} holds a NUL")))?;
        let (mut arg_bytes, mut count) = (std::ptr::null(), 0);
        // SAFETY: a C string and two places for answers.
        let found = unsafe { sparse_engine_emu_find(text.as_ptr(), &mut arg_bytes, &mut count) };
        if found.is_null() {
            return Err(Error::Failed(format!("no kernel {name}: is EXPORT_KERNEL({name}) in kernels/*.cu?")));
        }
        // SAFETY: a found kernel has `count` sizes (and one more, so that the list is never empty), which are static.
        Ok((Kernel(found), unsafe { std::slice::from_raw_parts(arg_bytes, count as usize) }))
    }

    fn check_registers(&self, kernel: &str, launch: Launch) -> Result<()> {
        let (major, minor) = self.limits.capability;
        let target = format!("sm_{major}{minor}");
        let mine = |r: &&Resource| r.kernel == kernel && r.target.trim_end_matches(char::is_alphabetic) == target;
        let Some(found) = self.resources.iter().find(mine) else { return Ok(()) };
        let threads: u32 = launch.block.iter().product();
        // Registers are handed out in units: 8 to a thread, and to four warps at once.
        let needed = found.registers.next_multiple_of(8) * threads.div_ceil(32).next_multiple_of(4) * 32;
        if needed <= Limits::REGISTERS {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "launch of {kernel}: {threads} threads of {} registers take {needed} on {}, at most {}",
            found.registers,
            found.target,
            Limits::REGISTERS
        )))
    }

    /// Checks a launch and copies its arguments.
    fn prepare(&self, name: &'static str, launch: Launch, args: &[Arg]) -> Result<Call> {
        check_args(name, args)?;
        let allowed = lock(&self.allowed).get(name).copied();
        launch.check(name, allowed.unwrap_or(0))?;
        let (kernel, wanted) = Self::find(name)?;
        if !args.iter().map(|a| a.bytes as u32).eq(wanted.iter().copied()) {
            let got: Vec<_> = args.iter().map(|a| a.bytes).collect();
            return Err(Error::Failed(format!("kernel {name} takes arguments of {wanted:?} bytes, got {got:?}")));
        }
        self.check_registers(name, launch)?;
        let most_shared = if allowed.is_some() { self.limits.max_shared_bytes } else { Launch::MAX_SHARED_BYTES };
        let mut call = Call { name, kernel, launch, most_shared, bytes: Vec::new(), offsets: Vec::new() };
        for arg in args {
            let start = call.bytes.len();
            call.offsets.push(start * 16);
            call.bytes.resize(start + arg.bytes.div_ceil(16), 0);
            // SAFETY: an Arg points at that many bytes, and as many were just added.
            unsafe { arg.at.copy_to_nonoverlapping(call.bytes[start..].as_mut_ptr().cast(), arg.bytes) }
        }
        Ok(call)
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(&self, call: &Call) -> Result<()> {
        let base = call.bytes.as_ptr().cast::<c_void>().cast_mut(); // only read
        let mut pointers: Vec<*mut c_void> = call.offsets.iter().map(|&at| base.wrapping_byte_add(at)).collect();
        let said = {
            let device = lock(&self.device);
            // SAFETY: limits and argument sizes were checked; the rest is the caller's promise. The message is copied
            // while the lock is held.
            unsafe {
                let said = sparse_engine_emu_launch(
                    device.as_ptr(),
                    call.kernel.0,
                    call.launch.grid.as_ptr(),
                    call.launch.block.as_ptr(),
                    call.launch.shared_bytes,
                    call.most_shared,
                    pointers.as_mut_ptr(),
                    c_int::from(self.order == Order::Descending),
                );
                (!said.is_null()).then(|| CStr::from_ptr(said).to_string_lossy().into_owned())
            }
        };
        if let Some(said) = said {
            return Err(Error::Failed(format!("emulated GPU: {said}")));
        }
        for &(at, bytes) in lock(&self.shared.live).iter() {
            // SAFETY: a live buffer of that size.
            if unsafe { sparse_engine_emu_intact(at as *const c_void, bytes) } == 0 {
                return Err(Error::Failed(format!(
                    "emulated GPU: kernel {} wrote past the end of a buffer of {bytes} bytes",
                    call.name
                )));
            }
        }
        Ok(())
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        // SAFETY: opened by `with_limits`, and no launch runs: they borrow the device.
        unsafe { sparse_engine_emu_close(lock(&self.device).as_ptr()) }
    }
}

impl Drop for EmulatedBuf {
    fn drop(&mut self) {
        let _ = self.shared.gate.refuse("freeing device memory"); // a capture that goes on fails by it
        lock(&self.shared.live).retain(|&(at, _)| at != self.at.as_ptr() as usize);
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
    type Graph = EmulatedGraph;

    fn describe(&self) -> String {
        "emulated gpu".into()
    }

    fn capability(&self) -> (i32, i32) {
        self.limits.capability
    }

    fn sm_count(&self) -> u32 {
        self.limits.sm_count
    }

    fn max_shared_bytes(&self) -> u32 {
        self.limits.max_shared_bytes
    }

    fn alloc(&self, bytes: usize) -> Result<EmulatedBuf> {
        self.shared.gate.refuse("allocation")?;
        // SAFETY: any size is allowed.
        let at = NonNull::new(unsafe { sparse_engine_emu_alloc(bytes) })
            .ok_or_else(|| Error::Failed(format!("emulated GPU: no memory for a buffer of {bytes} bytes")))?;
        lock(&self.shared.live).push((at.as_ptr() as usize, bytes));
        Ok(EmulatedBuf { at, bytes, shared: self.shared.clone() })
    }

    fn address(&self, buf: &EmulatedBuf) -> u64 {
        buf.at.as_ptr() as u64
    }

    fn bytes(&self, buf: &EmulatedBuf) -> usize {
        buf.bytes
    }

    fn upload_at(&self, dst: &mut EmulatedBuf, at: usize, src: &[u8]) -> Result<()> {
        check_range("upload", at, src.len(), dst.bytes)?;
        self.shared.gate.refuse("upload")?;
        // SAFETY: both sides hold that many bytes, and device memory is no Rust object.
        unsafe { dst.at.as_ptr().byte_add(at).cast::<u8>().copy_from_nonoverlapping(src.as_ptr(), src.len()) }
        Ok(())
    }

    fn download_at(&self, src: &EmulatedBuf, at: usize, dst: &mut [u8]) -> Result<()> {
        check_range("download", at, dst.len(), src.bytes)?;
        self.shared.gate.refuse("download")?;
        // SAFETY: as in `upload_at`.
        unsafe { src.at.as_ptr().byte_add(at).cast::<u8>().copy_to_nonoverlapping(dst.as_mut_ptr(), dst.len()) }
        Ok(())
    }

    fn fill_at(&self, dst: &mut EmulatedBuf, at: usize, bytes: usize, value: u8) -> Result<()> {
        check_range("fill", at, bytes, dst.bytes)?;
        self.shared.gate.refuse("fill")?;
        // SAFETY: the range lies in the buffer.
        unsafe { dst.at.as_ptr().byte_add(at).cast::<u8>().write_bytes(value, bytes) }
        Ok(())
    }

    fn allow_shared(&self, kernel: &'static str, bytes: u32) -> Result<()> {
        check_shared(kernel, bytes, self.limits.max_shared_bytes)?;
        Self::find(kernel)?;
        let mut allowed = lock(&self.allowed);
        let known = allowed.entry(kernel).or_default();
        *known = bytes.max(*known);
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        let call = self.prepare(kernel, launch, args)?;
        self.launches.fetch_add(1, Ordering::Relaxed);
        if self.shared.gate.is_recording() {
            lock(&self.shared.recorded).push(Step::Launch(call));
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.run(&call) }
    }

    fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    fn synchronise(&self) -> Result<()> {
        self.shared.gate.refuse("synchronisation")
    }

    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<EmulatedGraph> {
        let recording = self.shared.gate.begin()?;
        lock(&self.shared.recorded).clear(); // what a failed capture left
        recording.finish(record())?;
        let steps = std::mem::take(&mut *lock(&self.shared.recorded));
        Ok(EmulatedGraph { steps, shared: self.shared.clone() })
    }

    fn replay(&self, graph: &EmulatedGraph) -> Result<()> {
        self.shared.gate.refuse("replay")?;
        if !Arc::ptr_eq(&self.shared, &graph.shared) {
            return Err(Error::Failed("emulated GPU: replay of a graph that another device recorded".into()));
        }
        graph.steps.iter().try_for_each(|step| match step {
            // SAFETY: promised when it was recorded.
            Step::Launch(call) => unsafe { self.run(call) },
            Step::Host(call) => call(),
        })
    }

    fn vendor(&self) -> Option<&dyn Vendor> {
        self.vendor.as_ref().map(|v| v as &dyn Vendor)
    }
}
