//! What `kernels/emu/runtime.cpp` and `kernels/emu/memory.cpp` offer; the meaning is said there.

use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    pub(super) fn sparse_engine_emu_open(shared_bytes: u32) -> *mut c_void;
    pub(super) fn sparse_engine_emu_close(device: *mut c_void);
    pub(super) fn sparse_engine_emu_products(device: *const c_void) -> u64;
    pub(super) fn sparse_engine_emu_find(
        name: *const c_char,
        arg_bytes: *mut *const u32,
        args: *mut u32,
    ) -> *const c_void;
    pub(super) fn sparse_engine_emu_launch(
        device: *mut c_void,
        kernel: *const c_void,
        grid: *const u32,
        block: *const u32,
        dynamic_bytes: u32,
        most_shared: u32,
        args: *mut *mut c_void,
        descending: c_int,
    ) -> *const c_char;
    pub(super) fn sparse_engine_emu_alloc(bytes: usize) -> *mut c_void;
    pub(super) fn sparse_engine_emu_free(memory: *mut c_void, bytes: usize);
    pub(super) fn sparse_engine_emu_intact(memory: *const c_void, bytes: usize) -> c_int;
}
