//! The compiled kernels that build.rs put into this binary, if it found an nvcc.

/// What ptxas says of one kernel's machine code for one target. build.rs writes all of them to `kernel-resources.txt` in
/// cargo's target directory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Name, as a launch gives it.
    pub kernel: &'static str,
    /// Such as "sm_90a".
    pub target: &'static str,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared memory a block, in bytes.
    pub shared_bytes: u32,
    /// Local memory a thread, in bytes: arrays and spills.
    pub stack_bytes: u32,
    /// Bytes of code-generated stores of spilled registers.
    pub spill_store_bytes: u32,
    /// Bytes of code-generated loads of spilled registers.
    pub spill_load_bytes: u32,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
