//! Maximum pooling: where each window's maximum comes from.

use super::number::Number;
use crate::backend::PoolSpec;

/// Of one channel of some images, `x` in N,H,W order: the position of each window's maximum, the first one in row order
/// among equals, or the first NaN.
pub(super) fn winners<T: Number>(pool: PoolSpec, x: &[T]) -> impl Iterator<Item = usize> {
    let [h, w, size, stride, pad] = [pool.plane.h, pool.plane.w, pool.size, pool.stride, pool.pad].map(|v| v as usize);
    let side = move |len: usize| (len + 2 * pad - size) / stride + 1;
    let inside = move |i: usize, len: usize| (i * stride).saturating_sub(pad)..(i * stride + size - pad).min(len);
    let winner = move |x: &[T], plane: usize, row: usize, column: usize| {
        let mut best: Option<usize> = None;
        for r in inside(row, h) {
            for at in inside(column, w).map(|c| plane + r * w + c) {
                let v = x[at].value();
                if best.is_none_or(|b| v > x[b].value() || (v.is_nan() && !x[b].value().is_nan())) {
                    best = Some(at);
                }
            }
        }
        best.expect("padding is less than a window")
    };
    let windows = move |plane| (0..side(h)).flat_map(move |r| (0..side(w)).map(move |c| (plane, r, c)));
    (0..x.len()).step_by(h * w).flat_map(windows).map(move |(plane, row, column)| winner(x, plane, row, column))
}
