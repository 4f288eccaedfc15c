//! A vector of 16 floats, one image a lane: the only thing kernels know of the instruction set.
//!
//! Kernels are generic over [`V16`] and `#[inline(always)]`; [`entry_points!`] wraps each in a function with the
//! target features of the instruction set, so that everything is inlined into code compiled for it.

/// Instruction sets with kernels of their own. Results are the same bytes for any thread count on one of them, and
/// differ between them in rounding (AVX2 fuses multiply and add).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Plain Rust, whatever the compiler's baseline vectorises it to.
    Portable,
}

impl Isa {
    /// The best one this machine can run.
    pub fn detect() -> Isa {
        if Isa::Avx2.available() { Isa::Avx2 } else { Isa::Portable }
    }

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 => false,
            Isa::Portable => true,
        }
    }

    /// Name for people: "avx2+fma" or "portable".
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx2 => "avx2+fma",
            Isa::Portable => "portable",
        }
    }
}

/// 16 lanes of f32. Pointers must be valid for 16 floats (8 for `add_folded`); no alignment is asked for.
pub(super) trait V16: Copy {
    /// Pixels a register tile of the convolution kernels holds at most, 1..=7.
    const TILE: usize;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn splat(v: f32) -> Self;
    /// Asks for the line at `p`, which need not exist, for writing.
    unsafe fn prefetch_write(_p: *mut f32) {}
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    /// `self * b + c`, fused where the instruction set can.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// 0 where negative; NaN stays NaN.
    unsafe fn relu(self) -> Self;
    /// The larger one; NaN where either is.
    unsafe fn larger(self, o: Self) -> Self;
    /// All bits set where it equals `o` or is NaN, none elsewhere.
    unsafe fn hits(self, o: Self) -> Self;
    /// Bits that are set here and not in `o`.
    unsafe fn and_not(self, o: Self) -> Self;
    /// Bits that are set in either.
    unsafe fn or(self, o: Self) -> Self;
    /// `self` where `y > 0`, else 0 (also where y is NaN).
    unsafe fn where_positive(self, y: Self) -> Self;
    /// Bitwise and, with a lane mask of [`lane_mask`].
    unsafe fn masked(self, mask: Self) -> Self;
    /// Adds lanes `i` and `i + 8` to the 8 floats at `p`.
    unsafe fn add_folded(self, p: *mut f32);
    /// Sum of the lanes as a fixed tree.
    unsafe fn sum(self) -> f32;
}

/// All bits set in the first `valid` lanes, none in the others.
#[inline(always)]
pub(super) unsafe fn lane_mask<V: V16>(valid: usize) -> V {
    let lanes: [f32; 16] = std::array::from_fn(|i| f32::from_bits(if i < valid { !0 } else { 0 }));
    // SAFETY: 16 floats; the caller vouches for the instruction set.
    unsafe { V::load(lanes.as_ptr()) }
}

/// The vector at `p`, masked. A function, not a closure, wherever vectors are handled: closures are not forced inline, and
/// code that is not inlined lacks the target features.
#[inline(always)]
pub(super) unsafe fn load_masked<V: V16>(p: *const f32, mask: V) -> V {
    // SAFETY: as `V16::load`.
    unsafe { V::load(p).masked(mask) }
}

/// Stores `v`, added to the old content if `accumulate`.
#[inline(always)]
pub(super) unsafe fn put<V: V16>(v: V, p: *mut f32, accumulate: bool) {
    // SAFETY: as `V16::load` and `V16::store`.
    unsafe { if accumulate { v.add(V::load(p)) } else { v }.store(p) }
}

/// Sum of 8 floats as a fixed tree, the one [`V16::sum`] uses after folding.
#[inline(always)]
pub(super) fn sum8(a: [f32; 8]) -> f32 {
    let b = [a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]];
    (b[0] + b[2]) + (b[1] + b[3])
}

/// The AVX2 + FMA vector: two 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(std::arch::x86_64::__m256, std::arch::x86_64::__m256);

// SAFETY of all bodies: reached only from functions with the target features avx2 and fma (`entry_points!`), which are
// entered only when `Isa::available`; pointers as the trait asks.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Avx2, V16};
    use std::arch::x86_64::*;

    impl V16 for Avx2 {
        // 14 accumulators and one broadcast of the 16 registers; widths 7, 14, 28, 56 split without a rest.
        const TILE: usize = 7;
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
        unsafe fn prefetch_write(p: *mut f32) {
            // The intrinsic compiles to a read prefetch, which leaves the line to be asked for again.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(p.cast()) }
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
        unsafe fn add_folded(self, p: *mut f32) {
            unsafe { _mm256_storeu_ps(p, _mm256_add_ps(_mm256_add_ps(self.0, self.1), _mm256_loadu_ps(p))) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            let mut a = [0.0; 8];
            unsafe { _mm256_storeu_ps(a.as_mut_ptr(), _mm256_add_ps(self.0, self.1)) };
            super::sum8(a)
        }
    }
}

/// The portable vector.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

// SAFETY of all bodies: pointers as the trait asks.
impl V16 for Portable {
    // 16 lanes are four registers of the SSE2 or NEON baseline.
    const TILE: usize = 3;
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
    unsafe fn add_folded(self, p: *mut f32) {
        for i in 0..8 {
            unsafe { *p.add(i) += self.0[i] + self.0[i + 8] }
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum8(std::array::from_fn(|i| self.0[i] + self.0[i + 8]))
    }
}

/// `entry_points!(name = kernel(args) -> R)`: an unsafe function `name(isa, args)` that runs `kernel::<V>(args)`
/// compiled for `isa`, which must be available on this machine.
macro_rules! entry_points {
    ($name:ident = $kernel:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        #[allow(clippy::too_many_arguments)]
        unsafe fn $name(isa: $crate::backend::cpu::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                unsafe { $kernel::<$crate::backend::cpu::simd::Avx2>($($arg),*) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => unsafe { $kernel::<$crate::backend::cpu::simd::Portable>($($arg),*) },
            }
        }
    };
}
pub(super) use entry_points;
