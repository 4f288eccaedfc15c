//! Loops that do nothing but what they measure: the arithmetic and the memory of one core, with the vectors that the
//! kernels use. Safe to call; timing and threads are the caller's (`bench::peaks`).

use super::layout::LANES;
use super::simd::{Isa, V16, entry_points};

/// Rounds of a register-only loop between two looks at the clock.
const ROUNDS: usize = 4096;

/// Fused multiply-adds on registers alone, as many chains as a register tile has. Returns FLOPs done (2 an FMA).
pub(crate) fn fma_registers(isa: Isa) -> u64 {
    assert!(isa.available(), "{}", isa.name());
    let seed = std::hint::black_box(0.5);
    // SAFETY: the instruction set is there.
    let (flops, sum) = unsafe { registers(isa, seed) };
    std::hint::black_box(sum);
    flops
}

/// One vector load from `data` an FMA, `passes` times over all of it, as the sparse kernels read pixels. Returns FLOPs done.
pub(crate) fn fma_loads(isa: Isa, data: &[f32], passes: usize) -> u64 {
    assert!(isa.available(), "{}", isa.name());
    let seed = std::hint::black_box(0.5);
    // SAFETY: the instruction set is there; the kernel reads whole tiles inside the slice only.
    let (flops, sum) = unsafe { loads(isa, data, passes, seed) };
    std::hint::black_box(sum);
    flops
}

/// Copies `from` to `to` with plain vector stores, which read the destination's lines too. Returns bytes read and written.
pub(crate) fn copy(isa: Isa, from: &[f32], to: &mut [f32]) -> u64 {
    assert!(isa.available(), "{}", isa.name());
    let vectors = from.len().min(to.len()) / LANES;
    // SAFETY: the instruction set is there; both slices hold that many vectors.
    unsafe { copy_vectors(isa, from.as_ptr(), to.as_mut_ptr(), vectors) };
    std::hint::black_box(to);
    (2 * 4 * LANES * vectors) as u64
}

/// Tile sizes follow the vector's own.
macro_rules! with_tile {
    ($V:ident, $kernel:ident($($arg:expr),*)) => {
        if $V::GATHER >= 12 {
            unsafe { $kernel::<$V, 12>($($arg),*) }
        } else if $V::GATHER >= 7 {
            unsafe { $kernel::<$V, 7>($($arg),*) }
        } else {
            unsafe { $kernel::<$V, 3>($($arg),*) }
        }
    };
}

#[inline(always)]
unsafe fn registers_tile<V: V16, const T: usize>(seed: f32) -> (u64, f32) {
    unsafe {
        let v = V::splat(seed);
        let mut acc = [v; T];
        for _ in 0..ROUNDS {
            for a in &mut acc {
                *a = a.fma(v, v); // tends to 1: no overflow, no denormal
            }
        }
        ((2 * LANES * T * ROUNDS) as u64, total(acc))
    }
}

#[inline(always)]
unsafe fn loads_tile<V: V16, const T: usize>(data: &[f32], passes: usize, seed: f32) -> (u64, f32) {
    unsafe {
        let w = V::splat(seed);
        let mut acc = [w; T];
        let tiles = data.len() / (LANES * T);
        for _ in 0..passes {
            let mut p = data.as_ptr();
            for _ in 0..tiles {
                for (t, a) in acc.iter_mut().enumerate() {
                    *a = V::load(p.add(t * LANES)).fma(w, *a);
                }
                p = p.add(T * LANES);
            }
        }
        ((2 * LANES * T * tiles * passes) as u64, total(acc))
    }
}

#[inline(always)]
unsafe fn total<V: V16, const T: usize>(acc: [V; T]) -> f32 {
    unsafe {
        let mut sum = acc[0];
        for a in &acc[1..] {
            sum = sum.add(*a);
        }
        sum.sum()
    }
}

#[inline(always)]
unsafe fn registers_kernel<V: V16>(seed: f32) -> (u64, f32) {
    with_tile!(V, registers_tile(seed))
}

#[inline(always)]
unsafe fn loads_kernel<V: V16>(data: &[f32], passes: usize, seed: f32) -> (u64, f32) {
    with_tile!(V, loads_tile(data, passes, seed))
}

#[inline(always)]
unsafe fn copy_kernel<V: V16>(from: *const f32, to: *mut f32, vectors: usize) {
    unsafe {
        for i in 0..vectors {
            V::load(from.add(i * LANES)).store(to.add(i * LANES));
        }
    }
}

entry_points!(registers = registers_kernel(seed: f32) -> (u64, f32));
entry_points!(loads = loads_kernel(data: &[f32], passes: usize, seed: f32) -> (u64, f32));
entry_points!(copy_vectors = copy_kernel(from: *const f32, to: *mut f32, vectors: usize));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_done() {
        for isa in [Isa::detect(), Isa::Portable] {
            let tile = fma_registers(isa) / (2 * LANES * ROUNDS) as u64;
            assert!([3, 7, 12].contains(&tile), "{tile}");
            let data = vec![1.0; 1000 * LANES + 5];
            let flops = fma_loads(isa, &data, 3);
            let whole = 1000 / tile * tile;
            assert_eq!(flops, 3 * 2 * LANES as u64 * whole, "{isa:?}: whole tiles only");
            // SAFETY: as in `fma_loads`.
            let (_, sum) = unsafe { loads(isa, &data, 1, 0.5) };
            assert_eq!(sum, LANES as f32 * 0.5 * (whole + tile) as f32, "{isa:?}: each float is read once");

            let from: Vec<f32> = (0..53).map(|i| i as f32).collect();
            let mut to = vec![f32::NAN; 60];
            assert_eq!(copy(isa, &from, &mut to), 2 * 4 * 48);
            assert!(to[..48] == from[..48] && to[48..].iter().all(|v| v.is_nan()), "{isa:?}: whole vectors only");
        }
    }
}
