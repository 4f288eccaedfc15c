//! AVX2 and FMA.
//!
//! SAFETY of all bodies: reached only from functions with the target features avx2 and fma (`entry_points!`), which are
//! entered only when `Isa::available`; pointers as the traits ask.

use super::{Eight, Reg, V16, sum8};
use std::arch::x86_64::*;

/// The AVX2 + FMA vector: two 256-bit registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

impl V16 for Avx2 {
    type Reg = M256;
    // 14 accumulators and one broadcast of the 16 registers; widths 7, 14, 28, 56 split without a rest.
    const GATHER: usize = 7;
    // The four dots in flight take 8 registers beside the tile's 10; from 6 pixels on spills cost more than they gain.
    const DOTS: usize = 5;
    // 12 accumulators, 2 weights and one pixel: 8 loads for 12 FMAs.
    const BLOCK: (usize, usize) = (2, 3);
    // 12 accumulators, 3 taps, one output gradient: 7 loads for 12 FMAs.
    const TAPS: usize = 3;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        let v = unsafe { _mm256_set1_ps(v) };
        Avx2(v, v)
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_add_ps(self.0, o.0), _mm256_add_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_sub_ps(self.0, o.0), _mm256_sub_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_mul_ps(self.0, o.0), _mm256_mul_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // max_ps returns its second operand when either is NaN.
        unsafe {
            let zero = _mm256_setzero_ps();
            Avx2(_mm256_max_ps(zero, self.0), _mm256_max_ps(zero, self.1))
        }
    }
    #[inline(always)]
    unsafe fn store_around(self, p: *mut f32) {
        unsafe {
            _mm256_stream_ps(p, self.0);
            _mm256_stream_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn larger(self, o: Self) -> Self {
        // max_ps returns its second operand when either is NaN: a NaN in the first is put back.
        unsafe {
            let pick = |a, b| _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            Avx2(pick(self.0, o.0), pick(self.1, o.1))
        }
    }
    #[inline(always)]
    unsafe fn hits(self, o: Self) -> Self {
        unsafe {
            let hit = |a, b| _mm256_or_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b), _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            Avx2(hit(self.0, o.0), hit(self.1, o.1))
        }
    }
    #[inline(always)]
    unsafe fn and_not(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_andnot_ps(o.0, self.0), _mm256_andnot_ps(o.1, self.1)) }
    }
    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_or_ps(self.0, o.0), _mm256_or_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn where_positive(self, y: Self) -> Self {
        unsafe {
            let zero = _mm256_setzero_ps();
            Avx2(
                _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_GT_OQ>(y.0, zero)),
                _mm256_and_ps(self.1, _mm256_cmp_ps::<_CMP_GT_OQ>(y.1, zero)),
            )
        }
    }
    #[inline(always)]
    unsafe fn masked(self, mask: Self) -> Self {
        unsafe { Avx2(_mm256_and_ps(self.0, mask.0), _mm256_and_ps(self.1, mask.1)) }
    }
    #[inline(always)]
    unsafe fn folded(self) -> M256 {
        unsafe { M256(_mm256_add_ps(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut a = [0.0; 8];
        unsafe { _mm256_storeu_ps(a.as_mut_ptr(), _mm256_add_ps(self.0, self.1)) };
        sum8(a)
    }
}

/// One 256-bit register.
#[derive(Clone, Copy)]
pub(crate) struct M256(pub(super) __m256);

impl Reg for M256 {
    const LANES: usize = 8;
    type Eight = M256;
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { M256(_mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { M256(_mm256_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { M256(_mm256_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn masked(self, mask: Self) -> Self {
        unsafe { M256(_mm256_and_ps(self.0, mask.0)) }
    }
    #[inline(always)]
    unsafe fn eight(self) -> Self {
        self
    }
}

impl Eight for M256 {
    #[inline(always)]
    unsafe fn sums(v: [Self; 4]) -> [f32; 4] {
        unsafe {
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), four(v));
            sums
        }
    }
    #[inline(always)]
    unsafe fn add_sums(v: [Self; 4], p: *mut f32) {
        unsafe { _mm_storeu_ps(p, _mm_add_ps(four(v), _mm_loadu_ps(p))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let v = self.0;
            let (low, high) = (_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let (low, high) = (_mm_add_ps(low, _mm_movehl_ps(low, low)), _mm_add_ps(high, _mm_movehl_ps(high, high)));
            let (low, high) = (_mm_add_ss(low, _mm_movehdup_ps(low)), _mm_add_ss(high, _mm_movehdup_ps(high)));
            _mm_cvtss_f32(_mm_add_ss(low, high))
        }
    }
}

#[inline(always)]
unsafe fn four([a, b, c, d]: [M256; 4]) -> __m128 {
    unsafe {
        // Lanes of u, twice: a, b, c, d, each the sum of four lanes of a half.
        let (ab, cd) = (_mm256_castps_pd(pair(a.0, b.0)), _mm256_castps_pd(pair(c.0, d.0)));
        let (even, odd) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
        let u = _mm256_add_ps(_mm256_castpd_ps(even), _mm256_castpd_ps(odd));
        _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps::<1>(u))
    }
}

/// Per half: a0 + a2, b0 + b2, a1 + a3, b1 + b3.
#[inline(always)]
unsafe fn pair(a: __m256, b: __m256) -> __m256 {
    unsafe { _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)) }
}
