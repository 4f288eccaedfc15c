//! Joins: `relu?(a + b?)` of a plane and no other, with the same bytes near and around the caches.

use super::super::elementwise::Join;
use super::super::source::{Kind, Source};
use super::guard::Flush;
use super::*;

#[test]
fn joins_are_the_same_near_and_around_the_caches() {
    // One pixel, an odd and an even number of them.
    for (chw, flush) in [[2, 1, 1], [3, 3, 5], [2, 4, 3]].into_iter().flat_map(|s| Flush::BOTH.map(|f| (s, f))) {
        let [s, t] = [1, 2].map(|seed| Tensor::noise(seed, chw, flush));
        let coef: Vec<[f32; 2]> = noise(3, 2 * chw[0]).chunks(2).map(|c| [c[0], c[1]]).collect();
        let kinds = [
            Kind::Plain,
            Kind::Relu,
            Kind::Affine { coef: &coef, relu: false },
            Kind::Affine { coef: &coef, relu: true },
        ];
        let pixels = chw[1] * chw[2];
        let value = |kind: Kind, from: &Tensor, i: usize| {
            // SAFETY: inside the tensor.
            let v = f64::from(unsafe { *from.place(i) });
            let (v, relu) = match kind {
                Kind::Affine { coef, relu } => {
                    let [a, b] = coef[i / LANES / pixels].map(f64::from);
                    (v * a + b, relu)
                }
                _ => (v, matches!(kind, Kind::Relu)),
            };
            if relu { v.max(0.0) } else { v }
        };
        let others = [None].into_iter().chain(kinds.map(Some));
        for (kind, other) in others.flat_map(|other| kinds.map(|kind| (kind, other))) {
            for (isa, relu) in sets().flat_map(|isa| [false, true].map(|relu| (isa, relu))) {
                let [near, around] = [false, true].map(|around| {
                    let y = Tensor::new(chw, flush);
                    let b = other.map(|kind| Source { t: t.view, kind });
                    let join = Join { a: Source { t: s.view, kind }, b, relu, y: y.view, around };
                    // SAFETY: all tensors are as large, y is no operand; `isa` is available.
                    unsafe { join.plane(isa, 0, 1) };
                    y.read()
                });
                for (i, (got, around)) in near.into_iter().zip(around).enumerate() {
                    let what = format!("{isa:?} {chw:?} {flush:?} number {i}");
                    assert_eq!(got.to_bits(), around.to_bits(), "{what}: {got} near, {around} around the caches");
                    if i / LANES / pixels != 1 {
                        assert!(got.is_nan(), "{what}: {got} in another plane");
                        continue;
                    }
                    let sum = value(kind, &s, i) + other.map_or(0.0, |kind| value(kind, &t, i));
                    close(&what, f64::from(got), if relu { sum.max(0.0) } else { sum }, 6.0);
                }
            }
        }
    }
}
