//! Memory between pages that may not be touched: a read or write beside it ends the test with SIGSEGV. Prefetches do not
//! fault.

use memmap2::MmapMut;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Bytes of a guard, a multiple of every page size in use.
pub(in crate::backend::cpu) const GUARD: usize = 64 << 10;

/// The side on which data touch a guard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::backend::cpu) enum Flush {
    Start,
    End,
}

impl Flush {
    pub(in crate::backend::cpu) const BOTH: [Flush; 2] = [Flush::Start, Flush::End];
}

#[cfg(unix)]
unsafe extern "C" {
    fn mprotect(at: *mut std::ffi::c_void, bytes: usize, protection: i32) -> i32;
}

/// Makes [`GUARD`] bytes from `at` on inaccessible; elsewhere than on Unix there are no guards.
///
/// SAFETY: page-aligned, inside one mapping, and nobody uses the bytes.
pub(in crate::backend::cpu) unsafe fn forbid(at: *mut u8) {
    const PROT_NONE: i32 = 0;
    #[cfg(unix)]
    assert_eq!(unsafe { mprotect(at.cast(), GUARD, PROT_NONE) }, 0, "{}", std::io::Error::last_os_error());
    #[cfg(not(unix))]
    let _ = (at, PROT_NONE);
}

/// Numbers in a mapping of their own, flush against one of the guards around it.
pub(in crate::backend::cpu) struct Guarded<T> {
    map: MmapMut,
    at: usize,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Copy> Guarded<T> {
    pub(in crate::backend::cpu) fn new(flush: Flush, data: &[T]) -> Self {
        let bytes = size_of_val(data);
        let body = bytes.next_multiple_of(GUARD);
        let mut map = MmapMut::map_anon(body + 2 * GUARD).expect("memory");
        let at = GUARD + if flush == Flush::End { body - bytes } else { 0 };
        // SAFETY: between the guards; mappings begin at a page.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), map.as_mut_ptr().add(at).cast(), data.len());
            forbid(map.as_mut_ptr());
            forbid(map.as_mut_ptr().add(GUARD + body));
        }
        Guarded { map, at, len: data.len(), of: PhantomData }
    }
}

// SAFETY of both: `new` put `len` numbers there; they end at a page, so they are aligned.
impl<T> Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.at).cast(), self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.at).cast(), self.len) }
    }
}

/// Runs itself in processes that touch what they may not, and one that does not.
#[test]
#[cfg(target_os = "linux")]
fn guards_fault() {
    use std::os::unix::process::ExitStatusExt;
    const TOUCH: &str = "SPARSE_ENGINE_TEST_TOUCH";
    let places = [(Flush::End, 5), (Flush::Start, -1)];
    if let Ok(case) = std::env::var(TOUCH) {
        let case: usize = case.parse().unwrap();
        let (flush, at) = places[case / 2 % 2];
        let mut data = Guarded::new(flush, &[1.5f32; 5]);
        assert!(*data == [1.5; 5]);
        let p = data.as_mut_ptr().wrapping_offset(if case < 4 { at } else { 2 });
        // SAFETY: none; the faults are what is tested.
        unsafe {
            if case.is_multiple_of(2) {
                p.write_volatile(0.0)
            } else {
                std::hint::black_box(p.read_volatile());
            }
        }
        return;
    }
    for case in 0..6 {
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        let out = test.args(["--exact", "backend::cpu::tests::guard::guards_fault"]).env(TOUCH, case.to_string());
        let status = out.output().unwrap().status;
        let wanted = if case < 4 { (Some(11), false) } else { (None, true) }; // SIGSEGV
        assert_eq!((status.signal(), status.success()), wanted, "case {case}: {status}");
    }
}
