//! A vector of 16 floats, one image a lane: the only thing kernels know of the instruction set.
//!
//! Kernels are generic over [`V16`] and `#[inline(always)]`; [`entry_points!`] wraps each in a function with the
//! target features of the instruction set, so that everything is inlined into code compiled for it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

/// Instruction sets with kernels of their own. Results are the same bytes for any thread count on one of them. Forward
/// pass and data gradient are the same bytes on AVX2 and AVX-512; the portable one rounds otherwise (it does not fuse
/// multiply and add).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512F and VL.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Plain Rust, whatever the compiler's baseline vectorises it to.
    Portable,
}

impl Isa {
    /// All of them, best first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// The best one this machine can run.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().find(|i| i.available()).unwrap_or(Isa::Portable)
    }

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            // VL (all but the Xeon Phi have it) lets 256-bit operations use all 32 registers; without it LLVM keeps what
            // is summed up in one to 16 registers, and spills.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                // Compiled with AVX2 and FMA on, which a hypervisor may hide.
                let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
                avx512 && Isa::Avx2.available()
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => false,
            Isa::Portable => true,
        }
    }

    /// Name for people: "avx512", "avx2+fma" or "portable".
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2+fma",
            Isa::Portable => "portable",
        }
    }
}

/// 16 lanes of f32. Pointers must be valid for 16 floats; no alignment is asked for.
pub(super) trait V16: Copy {
    /// One register, of which dot products over lanes are made.
    type Reg: Reg;
    /// Pixels a register tile of `kernels::sparse` holds at most, 1..=14.
    const GATHER: usize;
    /// The same of `kernels::dots::sparse`, 1..=14.
    const DOTS: usize;
    /// Outputs and pixels of a register block of `kernels::dense`, at most 4 and 6.
    const BLOCK: (usize, usize);
    /// Taps of a register block of `kernels::dots::dense` (4 outputs), at most 6.
    const TAPS: usize;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The same around the caches; `p` must be aligned to 64 bytes, and nobody else may rely on it before [`fence`].
    unsafe fn store_around(self, p: *mut f32) {
        // SAFETY: as the caller's.
        unsafe { self.store(p) }
    }
    /// Asks for the line at `p`, which need not exist.
    unsafe fn prefetch(_p: *const f32) {}
    unsafe fn splat(v: f32) -> Self;
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
    /// Lanes `i` plus lanes `i + 8`.
    unsafe fn folded(self) -> <Self::Reg as Reg>::Eight;
    /// Sum of the lanes as a fixed tree.
    unsafe fn sum(self) -> f32;
}

/// One register of f32 lanes, 8 or 16 of them.
pub(super) trait Reg: Copy {
    const LANES: usize;
    type Eight: Eight;
    unsafe fn zero() -> Self;
    unsafe fn load(p: *const f32) -> Self;
    /// `self * b + c`, fused where the instruction set can.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// Bitwise and.
    unsafe fn masked(self, mask: Self) -> Self;
    /// 8 lanes: itself, or lanes `i` plus lanes `i + 8`.
    unsafe fn eight(self) -> Self::Eight;
}

/// 8 lanes of f32, to be summed: `((0 + 2) + (1 + 3)) + ((4 + 6) + (5 + 7))`.
pub(super) trait Eight: Copy {
    /// The sums of four vectors.
    unsafe fn sums(v: [Self; 4]) -> [f32; 4];
    /// Adds the sums of four vectors to the 4 floats at `p`.
    unsafe fn add_sums(v: [Self; 4], p: *mut f32);
    /// The sum of one, the same tree.
    unsafe fn sum(self) -> f32;
}

/// A window of 16 from `16 - n` on has all bits set in its first n lanes and none in the others.
static LANE_BITS: [u32; 32] = {
    let mut bits = [0; 32];
    let mut i = 0;
    while i < 16 {
        bits[i] = !0;
        i += 1;
    }
    bits
};

/// Where a mask lies that has all bits set in the first `valid` of 16 lanes and none in the others.
#[inline(always)]
pub(super) fn lane_bits(valid: usize) -> *const f32 {
    LANE_BITS[16 - valid.min(16)..].as_ptr().cast()
}

/// All bits set in the first `valid` lanes, none in the others.
#[inline(always)]
pub(super) unsafe fn lane_mask<V: V16>(valid: usize) -> V {
    // SAFETY: 16 floats; the caller vouches for the instruction set.
    unsafe { V::load(lane_bits(valid)) }
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

/// Makes what was stored around the caches visible to other threads.
pub(super) fn fence() {
    // SAFETY: SSE, which every x86-64 has.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

/// Sum of 8 floats as a fixed tree, the one [`V16::sum`] uses after folding.
#[inline(always)]
pub(super) fn sum8(a: [f32; 8]) -> f32 {
    let b = [a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]];
    (b[0] + b[2]) + (b[1] + b[3])
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
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                unsafe { $kernel::<$crate::backend::cpu::simd::Avx512>($($arg),*) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::simd::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => unsafe { $kernel::<$crate::backend::cpu::simd::Portable>($($arg),*) },
            }
        }
    };
}
pub(super) use entry_points;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation once, as numbers: lanes 0..16 hold a, 16..32 b, 32..48 c, 48..64 d.
    #[inline(always)]
    unsafe fn all<V: V16>(x: &[f32; 64], valid: usize) -> Vec<f32> {
        let mut out = vec![];
        let lanes = <V::Reg as Reg>::LANES;
        // SAFETY: pointers stay inside arrays of the sizes asked for.
        unsafe {
            let [a, b, c, d] = [0, 16, 32, 48].map(|i| V::load(x.as_ptr().add(i)));
            let m = lane_mask::<V>(valid);
            let masked = load_masked(x.as_ptr(), m);
            let vectors =
                [a.add(b), a.sub(b), a.mul(b), a.fma(b, c), a.relu(), a.where_positive(b), masked, V::splat(x[5])];
            let more = [a.larger(b), a.hits(b), a.hits(a).and_not(m), a.or(c)];
            for v in vectors.into_iter().chain(more) {
                let mut to = [f32::NAN; 16];
                v.store(to.as_mut_ptr());
                out.extend(to);
            }
            let mut sums = [0.25; 4];
            Eight::add_sums([b.folded(), c.folded(), d.folded(), c.folded()], sums.as_mut_ptr());
            out.extend(sums);
            out.extend([b.sum(), b.folded().sum(), d.folded().sum()]);
            for (i, bits) in [(16, !0u32), (32, 0)] {
                let mask = [f32::from_bits(bits); 16];
                let v = V::Reg::load(x.as_ptr().add(i)).fma(V::Reg::load(x.as_ptr().add(48)), V::Reg::zero());
                let v = v.masked(V::Reg::load(mask.as_ptr()));
                out.extend(if lanes == 16 { [v.eight().sum(), f32::NAN] } else { [f32::NAN, v.eight().sum()] });
            }
            out.extend(Eight::sums([b.folded(), d.folded(), c.folded(), b.folded()]));
        }
        out
    }

    entry_points!(all_ops = all(x: &[f32; 64], valid: usize) -> Vec<f32>);

    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        // Small whole numbers and halves: exact with and without fusing.
        let mut x: [f32; 64] = std::array::from_fn(|i| ((i * 37 + 11) % 29) as f32 * 0.5 - 7.0);
        [x[3], x[7], x[9], x[24]] = [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0];
        for valid in [0, 1, 8, 11, 16] {
            // SAFETY: portable code runs anywhere.
            let want = unsafe { all_ops(Isa::Portable, &x, valid) };
            for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                // SAFETY: available.
                let got = unsafe { all_ops(isa, &x, valid) };
                assert_eq!(got.len(), want.len());
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    let lanes_differ = (199..203).contains(&i) && isa == Isa::Avx512;
                    let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
                    assert!(same || lanes_differ, "{isa:?} valid {valid}: output {i} is {g}, portable {w}");
                }
            }
        }
    }

    #[test]
    fn relu_and_masks_treat_nan_as_promised() {
        let mut x = [0f32; 64];
        x[..4].copy_from_slice(&[f32::NAN, -1.0, 2.0, 3.0]);
        x[16..20].copy_from_slice(&[1.0, f32::NAN, -1.0, 1.0]);
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            // SAFETY: available.
            let got = unsafe { all_ops(isa, &x, 2) };
            let (relu, positive, masked) = (&got[64..80], &got[80..96], &got[96..112]);
            assert!(relu[0].is_nan() && relu[1..4] == [0.0, 2.0, 3.0], "{isa:?} relu {relu:?}");
            assert!(positive[0].is_nan() && positive[1..4] == [0.0, 0.0, 3.0], "{isa:?} where_positive {positive:?}");
            assert!(masked[0].is_nan() && masked[1..4] == [-1.0, 0.0, 0.0], "{isa:?} masked {masked:?}");
        }
    }
}
