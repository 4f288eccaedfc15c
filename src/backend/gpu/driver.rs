//! What a device driver must do: memory, copies, launches. Kernels are found by name.

use super::vendor::Vendor;
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::marker::PhantomData;

/// A device that runs the kernels of `kernels/*.cu`. Copies, fills and launches happen in the order of the calls; copies
/// have finished when the call returns, fills and launches possibly not. Errors are [`Error::Failed`] and name the call.
pub trait Driver: Send + Sync {
    /// Device memory; freed when dropped.
    type Buf: Send;
    /// Launches recorded by [`Driver::capture`], arguments included.
    type Graph: Send;

    /// Name for people, such as "cuda NVIDIA H100 80GB HBM3".
    fn describe(&self) -> String;
    /// Compute capability, major and minor.
    fn capability(&self) -> (i32, i32);
    /// Multiprocessors: about how many large blocks run at once.
    fn sm_count(&self) -> u32;
    /// Most dynamic shared memory that [`Driver::allow_shared`] grants a kernel without static shared memory.
    fn max_shared_bytes(&self) -> u32;

    /// Allocates; the content is undefined. The address is aligned to 16 bytes at least.
    fn alloc(&self, bytes: usize) -> Result<Self::Buf>;
    /// Device address, for [`Arg`]s; valid while `buf` lives.
    fn address(&self, buf: &Self::Buf) -> u64;
    /// The size it was allocated with.
    fn bytes(&self, buf: &Self::Buf) -> usize;
    /// Host to device, from byte `at` of `dst` on; an error if it does not fit.
    fn upload_at(&self, dst: &mut Self::Buf, at: usize, src: &[u8]) -> Result<()>;
    /// Device to host, from byte `at` of `src` on; an error if there is not so much.
    fn download_at(&self, src: &Self::Buf, at: usize, dst: &mut [u8]) -> Result<()>;
    /// Sets `bytes` bytes from byte `at` of `dst` on; an error if it holds fewer.
    fn fill_at(&self, dst: &mut Self::Buf, at: usize, bytes: usize, value: u8) -> Result<()>;
    /// Host to device, to the start of `dst`; an error if `src` is longer than `dst`.
    fn upload(&self, dst: &mut Self::Buf, src: &[u8]) -> Result<()> {
        self.upload_at(dst, 0, src)
    }
    /// Device to host, from the start of `src`; an error if `dst` is longer than `src`.
    fn download(&self, src: &Self::Buf, dst: &mut [u8]) -> Result<()> {
        self.download_at(src, 0, dst)
    }
    /// Sets every byte of `dst`.
    fn fill(&self, dst: &mut Self::Buf, value: u8) -> Result<()> {
        self.fill_at(dst, 0, self.bytes(dst), value)
    }

    /// Lets `kernel` have up to `bytes` of dynamic shared memory in later launches; without it, static and dynamic
    /// shared memory together are at most [`Launch::MAX_SHARED_BYTES`]. Never lowers what was allowed. An error if the
    /// device has not so much. No launcher here calls it: plans choose patches that fit without, so that several
    /// blocks share a multiprocessor. It is for kernels with more stages; tests hold both drivers to it.
    fn allow_shared(&self, kernel: &'static str, bytes: u32) -> Result<()>;
    /// Starts a kernel. The arguments are copied before it returns.
    ///
    /// # Safety
    /// The kernel's launch contract (above it in its .cu file) must hold: argument types and order, and every address
    /// it reaches inside a live buffer that nothing else uses until [`Driver::synchronise`]. For a launch that
    /// [`Driver::capture`] records, this must hold whenever the graph is replayed.
    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()>;
    /// Kernels that [`Driver::launch`] has started or recorded so far. A replay adds none.
    fn launches(&self) -> u64;
    /// Waits for all launches; reports what went wrong in them.
    fn synchronise(&self) -> Result<()>;

    /// Runs `record`, whose launches are recorded and not run. In it, allocating or freeing device memory, copies,
    /// fills, [`Driver::synchronise`], [`Driver::replay`] and another capture are errors, also if `record` ignores
    /// them. After an error nothing is left of the capture, and the device goes on as before.
    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph>;
    /// Starts all launches of a graph in the order they were recorded in; an error if another device recorded it.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Dense products from a library, for plans that ask for them; whether it can be had shows when one is asked for.
    fn vendor(&self) -> Option<&dyn Vendor> {
        None
    }
}

/// A kernel argument, by value: a plain number, a device address, or a `#[repr(C)]` struct.
#[derive(Clone, Copy)]
pub struct Arg<'a> {
    /// The host copy that the driver reads during the launch call.
    pub(super) at: *const c_void,
    /// Its size. The emulation compares it with the kernel's signature; CUDA trusts it.
    pub(super) bytes: usize,
    lives: PhantomData<&'a ()>,
}

impl<'a> Arg<'a> {
    /// Points at `value`, whose layout must be that of the kernel's parameter.
    pub fn new<T: Copy>(value: &'a T) -> Self {
        Arg { at: std::ptr::from_ref(value).cast(), bytes: size_of::<T>(), lives: PhantomData }
    }
}

/// Launch geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory a block.
    pub shared_bytes: u32,
}

impl Launch {
    /// Most threads of a block, on every device.
    pub const MAX_THREADS: u64 = 1024;
    /// Most shared memory a block may have without opting in to more.
    pub const MAX_SHARED_BYTES: u32 = 48 << 10;
    /// Most blocks in x, y, z.
    pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
    /// Most threads of a block in x, y, z.
    pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
    /// Most bytes of arguments: what every CUDA version takes.
    pub const MAX_ARG_BYTES: usize = 4096;

    /// At least `threads` threads in one dimension, in blocks of `block`; one block if there is nothing to do.
    /// An error if that needs more blocks than a grid has.
    pub fn linear(threads: u64, block: u32) -> Result<Self> {
        let blocks = threads.div_ceil(u64::from(block.max(1))).max(1);
        let blocks = u32::try_from(blocks).ok().filter(|b| *b <= Self::MAX_GRID[0]).ok_or_else(|| {
            Error::Failed(format!("{threads} threads in blocks of {block} are more than a grid of {}", i32::MAX))
        })?;
        Ok(Launch { grid: [blocks, 1, 1], block: [block, 1, 1], shared_bytes: 0 })
    }

    /// Compares with the limits that hold on every device, so that a kernel that works here works there, and with the
    /// dynamic shared memory that the kernel was allowed.
    pub fn check(&self, kernel: &str, allowed_shared: u32) -> Result<()> {
        let fault = |what: &str, got: String, most: String| {
            Err(Error::Failed(format!("launch of {kernel}: {what} is {got}, allowed: 1 to {most}")))
        };
        let outside = |got: [u32; 3], most: [u32; 3]| got.iter().zip(most).any(|(&g, m)| g == 0 || g > m);
        if outside(self.grid, Self::MAX_GRID) {
            return fault("grid", format!("{:?}", self.grid), format!("{:?}", Self::MAX_GRID));
        }
        if outside(self.block, Self::MAX_BLOCK) {
            return fault("block", format!("{:?}", self.block), format!("{:?}", Self::MAX_BLOCK));
        }
        let threads: u64 = self.block.iter().map(|&b| u64::from(b)).product();
        if threads > Self::MAX_THREADS {
            return fault("threads a block", threads.to_string(), Self::MAX_THREADS.to_string());
        }
        let allowed = allowed_shared.max(Self::MAX_SHARED_BYTES);
        if self.shared_bytes > allowed {
            return Err(Error::Failed(format!(
                "launch of {kernel}: {} bytes of dynamic shared memory, at most {allowed} allowed: see \
                 Driver::allow_shared",
                self.shared_bytes
            )));
        }
        Ok(())
    }
}

/// The sum of the arguments' sizes must be one that a launch can carry.
pub(super) fn check_args(kernel: &str, args: &[Arg]) -> Result<()> {
    let bytes: usize = args.iter().map(|arg| arg.bytes).sum();
    if bytes <= Launch::MAX_ARG_BYTES {
        return Ok(());
    }
    Err(Error::Failed(format!("launch of {kernel}: {bytes} bytes of arguments, at most {}", Launch::MAX_ARG_BYTES)))
}

/// The answer to [`Driver::allow_shared`] where the device has `most`.
pub(super) fn check_shared(kernel: &str, bytes: u32, most: u32) -> Result<()> {
    if bytes <= most {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "{kernel} wants {bytes} bytes of dynamic shared memory a block; this device has at most {most}"
    )))
}

/// The error of a copy or fill that does not fit.
pub(super) fn check_range(what: &str, at: usize, bytes: usize, held: usize) -> Result<()> {
    if at <= held && bytes <= held - at {
        return Ok(());
    }
    Err(Error::Failed(format!("{what}: {bytes} bytes at byte {at} of a device buffer of {held} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_covers_all_threads_and_no_block_more() {
        for (threads, block, want) in [(0, 256, 1), (1, 256, 1), (256, 256, 1), (257, 256, 2), (1 << 32, 256, 1 << 24)]
        {
            let launch = Launch::linear(threads, block).unwrap();
            assert_eq!(launch.grid, [want, 1, 1], "{threads} / {block}");
            launch.check("k", 0).unwrap();
        }
        assert!(Launch::linear(1 << 40, 256).is_err());
    }

    #[test]
    fn limits_are_those_of_every_device() {
        let good = Launch { grid: [1, 65_535, 65_535], block: [16, 1, 64], shared_bytes: 48 << 10 };
        good.check("k", 0).unwrap();
        for bad in [
            Launch { grid: [0, 1, 1], ..good },
            Launch { grid: [1, 65_536, 1], ..good },
            Launch { grid: [1, 1, 65_536], ..good },
            Launch { grid: [1 << 31, 1, 1], ..good },
            Launch { block: [1025, 1, 1], ..good },
            Launch { block: [32, 33, 1], ..good },
            Launch { block: [1, 1, 65], ..good },
            Launch { block: [1, 0, 1], ..good },
            Launch { shared_bytes: (48 << 10) + 1, ..good },
        ] {
            let said = bad.check("the_kernel", 0).unwrap_err().to_string();
            assert!(said.contains("the_kernel") && !said.contains('\n') && !said.contains("  "), "{said}");
        }
        let large = Launch { shared_bytes: 100 << 10, ..good };
        large.check("k", 100 << 10).unwrap();
        assert!(large.check("k", (100 << 10) - 1).is_err());
    }
}
