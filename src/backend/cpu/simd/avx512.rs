//! AVX-512F and VL.
//!
//! SAFETY of all bodies: as in `avx2.rs`, with the target features avx512f and avx512vl. Bitwise and of floats and their
//! upper half as floats would need avx512dq; the integer and double forms do not.

use super::avx2::M256;
use super::{Reg, V16, sum8};
use std::arch::x86_64::*;

/// The AVX-512 vector: one 512-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl V16 for Avx512 {
    type Reg = Avx512;
    // Widths 14, 28, 56 split without a rest; 14 accumulators hide the latency of two FMA units.
    const GATHER: usize = 14;
    const DOTS: usize = 14;
    // 24 accumulators of 32 registers: 10 loads for 24 FMAs.
    const BLOCK: (usize, usize) = (4, 6);
    const TAPS: usize = 6;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Avx512(_mm512_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        unsafe { Avx512(_mm512_set1_ps(v)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_add_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_sub_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_mul_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Avx512(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // max_ps returns its second operand when either is NaN.
        unsafe { Avx512(_mm512_max_ps(_mm512_setzero_ps(), self.0)) }
    }
    #[inline(always)]
    unsafe fn store_around(self, p: *mut f32) {
        unsafe { _mm512_stream_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn larger(self, o: Self) -> Self {
        // max_ps returns its second operand when either is NaN: a NaN in the first is put back.
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            Avx512(_mm512_mask_mov_ps(_mm512_max_ps(self.0, o.0), nan, self.0))
        }
    }
    #[inline(always)]
    unsafe fn hits(self, o: Self) -> Self {
        unsafe {
            let hit =
                _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, o.0) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            Avx512(_mm512_castsi512_ps(_mm512_maskz_set1_epi32(hit, -1)))
        }
    }
    #[inline(always)]
    unsafe fn and_not(self, o: Self) -> Self {
        unsafe {
            let bits = _mm512_andnot_si512(_mm512_castps_si512(o.0), _mm512_castps_si512(self.0));
            Avx512(_mm512_castsi512_ps(bits))
        }
    }
    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        unsafe {
            let bits = _mm512_or_si512(_mm512_castps_si512(self.0), _mm512_castps_si512(o.0));
            Avx512(_mm512_castsi512_ps(bits))
        }
    }
    #[inline(always)]
    unsafe fn where_positive(self, y: Self) -> Self {
        unsafe { Avx512(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(y.0, _mm512_setzero_ps()), self.0)) }
    }
    #[inline(always)]
    unsafe fn masked(self, mask: Self) -> Self {
        unsafe {
            let and = _mm512_and_si512(_mm512_castps_si512(self.0), _mm512_castps_si512(mask.0));
            Avx512(_mm512_castsi512_ps(and))
        }
    }
    #[inline(always)]
    unsafe fn folded(self) -> M256 {
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            M256(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut a = [0.0; 8];
        unsafe { _mm256_storeu_ps(a.as_mut_ptr(), self.folded().0) };
        sum8(a)
    }
}

impl Reg for Avx512 {
    const LANES: usize = 16;
    type Eight = M256;
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Avx512(_mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { <Self as V16>::load(p) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { V16::fma(self, b, c) }
    }
    #[inline(always)]
    unsafe fn masked(self, mask: Self) -> Self {
        unsafe { V16::masked(self, mask) }
    }
    #[inline(always)]
    unsafe fn eight(self) -> M256 {
        unsafe { self.folded() }
    }
}
