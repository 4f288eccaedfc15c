//! Plain Rust, for any machine.

use super::{Eight, Reg, V16, sum8};

/// The portable vector. `WIDE` gives it the tiles of AVX-512, which tests use where there is no AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const WIDE: bool = false>([f32; 16]);

impl<const WIDE: bool> Portable<WIDE> {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

// SAFETY of all bodies: pointers as the trait asks.
impl<const WIDE: bool> V16 for Portable<WIDE> {
    type Reg = P8;
    // 16 lanes are four registers of the SSE2 or NEON baseline.
    const GATHER: usize = if WIDE { 14 } else { 3 };
    const DOTS: usize = if WIDE { 14 } else { 3 };
    const BLOCK: (usize, usize) = if WIDE { (4, 6) } else { (2, 3) };
    const TAPS: usize = if WIDE { 6 } else { 3 };
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Portable(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { p.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Portable([v; 16])
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        self.zip(self, |a, _| if a < 0.0 { 0.0 } else { a })
    }
    #[inline(always)]
    unsafe fn larger(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b || a.is_nan() { a } else { b })
    }
    #[inline(always)]
    unsafe fn hits(self, o: Self) -> Self {
        self.zip(o, |a, b| f32::from_bits(if a == b || a.is_nan() { !0 } else { 0 }))
    }
    #[inline(always)]
    unsafe fn and_not(self, o: Self) -> Self {
        self.zip(o, |a, b| f32::from_bits(a.to_bits() & !b.to_bits()))
    }
    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        self.zip(o, |a, b| f32::from_bits(a.to_bits() | b.to_bits()))
    }
    #[inline(always)]
    unsafe fn where_positive(self, y: Self) -> Self {
        self.zip(y, |a, y| if y > 0.0 { a } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn masked(self, mask: Self) -> Self {
        self.zip(mask, |a, m| f32::from_bits(a.to_bits() & m.to_bits()))
    }
    #[inline(always)]
    unsafe fn folded(self) -> P8 {
        P8(std::array::from_fn(|i| self.0[i] + self.0[i + 8]))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum8(std::array::from_fn(|i| self.0[i] + self.0[i + 8]))
    }
}

/// 8 lanes.
#[derive(Clone, Copy)]
pub(crate) struct P8([f32; 8]);

// SAFETY of all bodies: pointers as the trait asks.
impl Reg for P8 {
    const LANES: usize = 8;
    type Eight = P8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        P8([0.0; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        P8(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        P8(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn masked(self, mask: Self) -> Self {
        P8(std::array::from_fn(|i| f32::from_bits(self.0[i].to_bits() & mask.0[i].to_bits())))
    }
    #[inline(always)]
    unsafe fn eight(self) -> Self {
        self
    }
}

impl Eight for P8 {
    #[inline(always)]
    unsafe fn sums(v: [Self; 4]) -> [f32; 4] {
        std::array::from_fn(|i| unsafe { v[i].sum() })
    }
    #[inline(always)]
    unsafe fn add_sums(v: [Self; 4], p: *mut f32) {
        for (i, v) in v.into_iter().enumerate() {
            unsafe { *p.add(i) += v.sum() }
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let a = self.0;
        ((a[0] + a[2]) + (a[1] + a[3])) + ((a[4] + a[6]) + (a[5] + a[7]))
    }
}
