//! Operands that are computed while they are read: `relu?(norm?(x))` forward, the gradient through a batch norm backward.
//! Each is at most two tensors and three scalars a channel.

use super::layout::{LANES, View};
use super::simd::{Isa, V16, entry_points};
use std::ops::Range;

/// An operand.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) t: View,
    pub(super) kind: Kind<'a>,
}

/// What is computed of each pixel, coefficients a channel.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    Plain,
    Relu,
    /// `t * scale + shift`, ReLU behind it or not.
    Affine {
        coef: &'a [[f32; 2]],
        relu: bool,
    },
    /// `t * a + x * b + c`: a gradient through a batch norm of x.
    Back {
        x: View,
        coef: &'a [[f32; 3]],
    },
}

impl Source<'_> {
    /// Whether it is the tensor itself.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain)
    }

    /// All tensors have one shape.
    pub(super) fn check(&self) {
        let (c, same) = match self.kind {
            Kind::Plain | Kind::Relu => (self.t.channels(), true),
            Kind::Affine { coef, .. } => (coef.len(), true),
            Kind::Back { x, coef } => (coef.len(), x.plane == self.t.plane),
        };
        assert!(same && c == self.t.channels(), "norm of {c} channels: tensors of other or different shapes");
    }
}

/// Pixels `row..row + rows`, `col..col + cols` of an image; outside of it lie zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) row: isize,
    pub(super) col: isize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// A pixel's computation with a channel's coefficients, monomorphic so that loops hold nothing else.
pub(super) trait Eval<V: V16>: Copy {
    /// Whether there is a second tensor.
    const TWO: bool = false;
    /// The value from the pixels at `t` and, if there is a second tensor, `x`.
    unsafe fn at(self, t: *const f32, x: *const f32) -> V;
}

#[derive(Clone, Copy)]
pub(super) struct Plain;
#[derive(Clone, Copy)]
pub(super) struct Rectified;
#[derive(Clone, Copy)]
pub(super) struct Scaled<V>(V, V);
#[derive(Clone, Copy)]
pub(super) struct ScaledRectified<V>(V, V);
#[derive(Clone, Copy)]
pub(super) struct Back<V>(V, V, V);

// SAFETY of all bodies: pointers to 16 floats, instruction set as the caller's.
impl<V: V16> Eval<V> for Plain {
    #[inline(always)]
    unsafe fn at(self, t: *const f32, _: *const f32) -> V {
        unsafe { V::load(t) }
    }
}
impl<V: V16> Eval<V> for Rectified {
    #[inline(always)]
    unsafe fn at(self, t: *const f32, _: *const f32) -> V {
        unsafe { V::load(t).relu() }
    }
}
impl<V: V16> Eval<V> for Scaled<V> {
    #[inline(always)]
    unsafe fn at(self, t: *const f32, _: *const f32) -> V {
        unsafe { V::load(t).fma(self.0, self.1) }
    }
}
impl<V: V16> Eval<V> for ScaledRectified<V> {
    #[inline(always)]
    unsafe fn at(self, t: *const f32, _: *const f32) -> V {
        unsafe { V::load(t).fma(self.0, self.1).relu() }
    }
}
impl<V: V16> Eval<V> for Back<V> {
    const TWO: bool = true;
    #[inline(always)]
    unsafe fn at(self, t: *const f32, x: *const f32) -> V {
        unsafe { V::load(t).fma(self.0, V::load(x).fma(self.1, self.2)) }
    }
}

/// `with_eval!(V, source, nb, ch, |eval, t, x| body)`: `body` for the source's kind, with pointers to pixel (0, 0) of the
/// channel in its tensors. A macro, because a closure would not be inlined into code with the target features. A body is
/// compiled once a kind: `with_input!` and `with_grad!` are for operands that can only be inputs or gradients.
macro_rules! with_eval {
    ($v:ty, $source:expr, $nb:expr, $ch:expr, |$eval:ident, $t:ident, $x:ident| $body:expr) => {{
        use $crate::backend::cpu::source::Kind;
        match $source.kind {
            Kind::Back { .. } => with_grad!($v, $source, $nb, $ch, |$eval, $t, $x| $body),
            _ => with_input!($v, $source, $nb, $ch, |$eval, $t, $x| $body),
        }
    }};
}
/// See [`with_eval`].
macro_rules! with_input {
    ($v:ty, $source:expr, $nb:expr, $ch:expr, |$eval:ident, $t:ident, $x:ident| $body:expr) => {{
        use $crate::backend::cpu::source::{Kind, eval};
        let $t = $source.t.plane_at($nb, $ch).cast_const();
        let $x = $t;
        match $source.kind {
            Kind::Plain => {
                let $eval = eval::plain();
                $body
            }
            Kind::Relu => {
                let $eval = eval::rectified();
                $body
            }
            Kind::Affine { coef, relu: false } => {
                let $eval = eval::scaled::<$v>(coef[$ch]);
                $body
            }
            Kind::Affine { coef, relu: true } => {
                let $eval = eval::scaled_rectified::<$v>(coef[$ch]);
                $body
            }
            Kind::Back { .. } => unreachable!("a gradient as an input"),
        }
    }};
}
/// See [`with_eval`].
macro_rules! with_grad {
    ($v:ty, $source:expr, $nb:expr, $ch:expr, |$eval:ident, $t:ident, $x:ident| $body:expr) => {{
        use $crate::backend::cpu::source::{Kind, eval};
        let $t = $source.t.plane_at($nb, $ch).cast_const();
        match $source.kind {
            Kind::Back { x, coef } => {
                let ($eval, $x) = (eval::back::<$v>(coef[$ch]), x.plane_at($nb, $ch).cast_const());
                $body
            }
            Kind::Plain => {
                let ($eval, $x) = (eval::plain(), $t);
                $body
            }
            _ => unreachable!("an input as a gradient"),
        }
    }};
}
pub(super) use {with_grad, with_input};

/// Evaluators with splatted coefficients.
pub(super) mod eval {
    use super::{Back, Plain, Rectified, Scaled, ScaledRectified, V16};

    #[inline(always)]
    pub(in super::super) fn plain() -> Plain {
        Plain
    }
    #[inline(always)]
    pub(in super::super) fn rectified() -> Rectified {
        Rectified
    }
    // SAFETY of the three: instruction set as the caller's.
    #[inline(always)]
    pub(in super::super) unsafe fn scaled<V: V16>(c: [f32; 2]) -> Scaled<V> {
        unsafe { Scaled(V::splat(c[0]), V::splat(c[1])) }
    }
    #[inline(always)]
    pub(in super::super) unsafe fn scaled_rectified<V: V16>(c: [f32; 2]) -> ScaledRectified<V> {
        unsafe { ScaledRectified(V::splat(c[0]), V::splat(c[1])) }
    }
    #[inline(always)]
    pub(in super::super) unsafe fn back<V: V16>(c: [f32; 3]) -> Back<V> {
        unsafe { Back(V::splat(c[0]), V::splat(c[1]), V::splat(c[2])) }
    }
}

/// Copies a window of some channels of one block of images into a patch: strides in floats, channel 0 of the patch is
/// channel `channels.start`.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn fill(
    isa: Isa,
    source: Source,
    nb: usize,
    channels: Range<usize>,
    window: Window,
    patch: *mut f32,
    chan: usize,
    row: usize,
) {
    // SAFETY: as the caller's.
    unsafe { fill_entry(isa, source, nb, channels, window, patch, chan, row) }
}

entry_points!(fill_entry = fill_patch(
    source: Source, nb: usize, channels: Range<usize>, window: Window, patch: *mut f32, chan: usize, row: usize
));

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn fill_patch<V: V16>(
    source: Source,
    nb: usize,
    channels: Range<usize>,
    window: Window,
    patch: *mut f32,
    chan: usize,
    row: usize,
) {
    for (i, ch) in channels.enumerate() {
        // SAFETY: as the caller's.
        unsafe {
            let to = patch.add(i * chan);
            with_eval!(V, source, nb, ch, |eval, t, x| fill_channel::<V, _>(eval, &source.t, t, x, window, to, row));
        }
    }
}

/// Asks for the lines of a window of some channels, in order.
pub(super) unsafe fn fetch(isa: Isa, t: View, nb: usize, channels: Range<usize>, window: Window) {
    // SAFETY: as the caller's; the window lies inside the tensor.
    unsafe { fetch_entry(isa, t, nb, channels, window) }
}

entry_points!(fetch_entry = fetch_window(t: View, nb: usize, channels: Range<usize>, window: Window));

#[inline(always)]
unsafe fn fetch_window<V: V16>(t: View, nb: usize, channels: Range<usize>, w: Window) {
    let first = w.row.max(0) as usize * t.row + w.col.max(0) as usize * LANES;
    for ch in channels {
        for row in 0..w.rows {
            for col in 0..w.cols {
                // SAFETY: as the caller's.
                unsafe { V::prefetch(t.plane_at(nb, ch).add(first + row * t.row + col * LANES)) };
            }
        }
    }
}

/// How far ahead, to cover the latency of memory.
pub(super) const AHEAD_PIXELS: usize = 64;

#[inline(always)]
unsafe fn fill_channel<V: V16, E: Eval<V>>(
    eval: E,
    view: &View,
    t: *const f32,
    x: *const f32,
    w: Window,
    patch: *mut f32,
    row: usize,
) {
    let (h, width) = (view.rows() as isize, view.cols() as isize);
    let left = (-w.col).clamp(0, w.cols as isize) as usize;
    let inside = (width - w.col).clamp(left as isize, w.cols as isize) as usize;
    // Rows are too short for the hardware to see them coming: the same place some channels ahead is asked for.
    let ahead = AHEAD_PIXELS.div_ceil((w.rows * w.cols).max(1)) * view.chan;
    // SAFETY: inside the tensors and the patch.
    unsafe {
        let zero = V::splat(0.0);
        for i in 0..w.rows {
            let to = patch.add(i * row);
            let y = w.row + i as isize;
            if y < 0 || y >= h {
                for j in 0..w.cols {
                    zero.store(to.add(j * LANES));
                }
                continue;
            }
            for j in 0..left {
                zero.store(to.add(j * LANES));
            }
            let from = y as usize * view.row + (w.col + left as isize).max(0) as usize * LANES;
            for j in 0..inside - left {
                let at = from + j * LANES;
                V::prefetch(t.wrapping_add(at + ahead));
                if E::TWO {
                    V::prefetch(x.wrapping_add(at + ahead));
                }
                eval.at(t.add(at), x.add(at)).store(to.add((left + j) * LANES));
            }
            for j in inside..w.cols {
                zero.store(to.add(j * LANES));
            }
        }
    }
}
