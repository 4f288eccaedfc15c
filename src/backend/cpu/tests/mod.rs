//! What the suite of all backends (`tests/ops.rs`) cannot see: which memory is touched, what lies in scratch, faulty specs.

mod epilogue;
mod faulty;
mod fill;
pub(super) mod guard;
mod join;
mod poison;

use super::layout::{Arena, LANES, View};
use super::simd::Isa;
use crate::backend::{Plane, Spec, TensorSpec};
use guard::{Flush, GUARD, forbid};

/// Repeatable numbers in [-1, 1).
pub(super) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 40) as f32 - 8388608.0) / 8388608.0
    };
    (0..len).map(|_| next()).collect()
}

/// Instruction sets of this machine.
fn sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|i| i.available())
}

/// Numbers an image of an arena for 16 of them that fill a guard.
const GUARD_ROOM: usize = GUARD / (4 * LANES);

/// A tensor of up to 16 images between guards, NaN at first. Where it ends at one, so does its last pixel: the room behind
/// that is nobody's.
struct Tensor {
    _arena: Arena,
    view: View,
}

impl Tensor {
    fn new([c, h, w]: [usize; 3], flush: Flush) -> Self {
        let plane = Plane { c: c as u32, h: h as u32, w: w as u32 };
        let touched = plane.room() - usize::from(h * w % 2 == 0);
        let body = touched.next_multiple_of(GUARD_ROOM);
        let arena = Arena::new(&Spec { batch: LANES, arena: body + 2 * GUARD_ROOM, ..Spec::default() }).unwrap();
        let at = GUARD_ROOM + if flush == Flush::End { body - touched } else { 0 };
        let base = arena.view(&TensorSpec::lasting(Plane { c: 1, h: 1, w: 1 }, 0));
        let view = arena.view(&TensorSpec::lasting(plane, at));
        // SAFETY: inside the arena, which begins at a page; nobody uses the guards.
        unsafe {
            let base = base.plane_at(0, 0).cast::<u8>();
            forbid(base);
            forbid(base.add(GUARD + body * 4 * LANES));
        }
        let mut t = Tensor { _arena: arena, view };
        t.fill(|_, _| f32::NAN);
        t
    }

    fn noise(seed: u64, chw: [usize; 3], flush: Flush) -> Self {
        let mut t = Tensor::new(chw, flush);
        let numbers = noise(seed, chw[0] * chw[1] * chw[2] * LANES);
        t.fill(|i, _| numbers[i]);
        t
    }

    /// Number `i` of `[channels][rows][cols][16]`.
    fn place(&self, i: usize) -> *mut f32 {
        let (v, px) = (&self.view, i / LANES);
        let (row, col) = (px / v.cols() % v.rows(), px % v.cols());
        // SAFETY: inside the tensor.
        unsafe { v.plane_at(0, px / v.pixels()).add(row * v.row + col * LANES + i % LANES) }
    }

    fn len(&self) -> usize {
        self.view.channels() * self.view.pixels() * LANES
    }

    /// `f(i, old)`.
    fn fill(&mut self, f: impl Fn(usize, f32) -> f32) {
        // SAFETY: inside the tensor.
        (0..self.len()).for_each(|i| unsafe { *self.place(i) = f(i, *self.place(i)) });
    }

    fn read(&self) -> Vec<f32> {
        // SAFETY: inside the tensor.
        (0..self.len()).map(|i| unsafe { *self.place(i) }).collect()
    }
}

/// Within rounding of a value whose terms add up to `mag` in magnitude.
fn close(what: &str, got: f64, want: f64, mag: f64) {
    let err = (got - want).abs();
    assert!(err <= 1e-6 * mag + 1e-30, "{what}: got {got}, want {want}, sum of magnitudes {mag}");
}
