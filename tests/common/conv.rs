//! Convolutions and linear layers: forward, data gradient, weight gradient.

use super::COUNTS;
use super::rig::{Build, Place, Rig, add, all, normal, over};
use sparse_engine::backend::{Backend, Spec, Store};
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::shape::ConvGeom;

#[derive(Clone, Copy, Debug)]
enum Kept {
    /// No mask.
    Dense,
    /// A mask that keeps everything.
    All,
    /// A mask with this density.
    Part(f64),
    /// The same, with one output and one input channel that keep nothing.
    Dead(f64),
    /// One weight, the last.
    One,
}

fn kept(g: ConvGeom, how: Kept) -> Option<Vec<u32>> {
    let stream = Stream::new(3, Purpose::Mask, "test");
    let all = 0..g.weights() as u32;
    let random = |density: f64| all.clone().filter(move |&i| stream.uniform(u64::from(i)) < density);
    match how {
        Kept::Dense => None,
        Kept::All => Some(all.collect()),
        Kept::Part(density) => Some(random(density).collect()),
        Kept::Dead(density) => {
            let alive = |i: &u32| i / (g.c * g.r * g.s) != g.k / 2 && i / (g.r * g.s) % g.c != g.c / 2;
            Some(random(density).filter(alive).collect())
        }
        Kept::One => Some(vec![g.weights() as u32 - 1]),
    }
}

/// All geometries, masks, halos and batch sizes.
pub fn check<B: Backend>(make: &dyn Fn(Spec) -> B) {
    use Kept::*;
    // C, H, W, K, kernel, stride, padding, mask, bias, halo beyond what is needed
    for (c, h, w, k, r, stride, pad, mask, bias, spare) in [
        (5, 8, 8, 7, 3, 1, 1, Dead(0.3), false, 0),
        (4, 9, 7, 6, 3, 2, 1, Part(0.3), false, 1),
        (4, 8, 6, 5, 3, 2, 1, Dense, false, 0),
        (17, 3, 3, 18, 3, 1, 1, Dead(0.1), true, 2),
        (3, 6, 5, 4, 3, 1, 0, Part(0.5), false, 0),
        (3, 1, 1, 3, 3, 1, 1, Dense, false, 0),
        (2, 4, 5, 3, 3, 1, 1, All, false, 1),
        (3, 5, 4, 2, 3, 1, 1, One, false, 0),
        (6, 7, 7, 5, 1, 2, 0, Dead(0.4), false, 0),
        (3, 8, 8, 4, 1, 2, 0, Dense, true, 1),
        (9, 4, 4, 17, 1, 1, 0, Part(0.3), false, 1),
        (3, 16, 13, 4, 7, 2, 3, Part(0.2), false, 0),
        (2, 5, 5, 3, 7, 1, 3, Dense, false, 0),
        (2, 11, 11, 3, 5, 3, 2, Part(0.3), false, 0),
        (20, 1, 1, 10, 1, 1, 0, Dead(0.3), true, 0),
        (7, 1, 1, 3, 1, 1, 0, Dense, true, 0),
    ] {
        let geom = ConvGeom { c, h, w, k, r, s: r, stride, pad };
        check_geom(make, geom, mask, bias, spare, 33, &COUNTS);
    }
    let geom = ConvGeom { c: 3, h: 5, w: 5, k: 4, r: 3, s: 3, stride: 1, pad: 1 };
    for batch in [1, 16, 20] {
        check_geom(make, geom, Kept::Part(0.4), false, 0, batch, &[batch, 1]);
    }
}

fn check_geom<B: Backend>(
    make: &dyn Fn(Spec) -> B,
    geom: ConvGeom,
    mask: Kept,
    bias: bool,
    spare: u32,
    batch: usize,
    counts: &[usize],
) {
    let mut build = Build::new(batch);
    let other = ConvGeom { c: 1, h: 2, w: 2, k: 2, r: 1, s: 1, stride: 1, pad: 0 };
    build.conv(other, None, false); // its parameters must stay as they are
    let conv = build.conv(geom, kept(geom, mask), bias);
    build.conv(other, None, false);
    let (input, output) = ([geom.c, geom.h, geom.w], [geom.k, geom.p(), geom.q()]);
    let x = build.tensor(input, geom.input_halo() + spare);
    let y = build.tensor(output, spare);
    // The first layer needs no data gradient, so its output gradient comes without a halo.
    let dy = build.tensor(output, geom.output_halo() + spare);
    let dy_first = build.tensor(output, 0);
    let dx = build.tensor(input, spare);
    let layer = build.0.convs[conv.0 as usize];
    let mut rig = Rig::new(build, make, format!("{geom:?} {mask:?} bias {bias} spare halo {spare} batch {batch}"));
    let stored = rig.exact.spec().stored();
    let taps = |channels: u32| (channels * geom.r * geom.s) as usize + 1;

    for &n in counts {
        rig.set_store(Store::Values, &normal(&format!("values {n}"), stored));
        rig.set_normal(x, n, &format!("x {n}"));
        rig.poison(y);
        all!(rig.conv_forward(conv, x, y, n));
        let out = rig.by_mag(Place::Tensor(y), n, taps(geom.c));
        rig.check("conv_forward", n, &[out]);

        rig.set_normal(dy, n, &format!("dy {n}"));
        rig.poison(dx);
        all!(rig.conv_backward_data(conv, dy, over(dx), n));
        let out = rig.by_mag(Place::Tensor(dx), n, taps(geom.k));
        rig.check("conv_backward_data overwrite", n, &[out]);

        rig.set_normal(dx, n, &format!("dx {n}"));
        all!(rig.conv_backward_data(conv, dy, add(dx), n));
        let out = rig.by_mag(Place::Tensor(dx), n, taps(geom.k));
        rig.check("conv_backward_data accumulate", n, &[out]);

        for dy in [dy, dy_first] {
            rig.set_normal(dy, n, &format!("dy {dy:?} {n}"));
            rig.set_store(Store::Grads, &vec![f64::NAN; stored]);
            all!(rig.conv_backward_weight(conv, x, dy, n));
            let terms = n * (geom.p() * geom.q()) as usize;
            let grads = std::iter::once(layer.weight).chain(layer.bias);
            let outs: Vec<_> = grads.map(|p| rig.by_mag(Place::Grad(p), n, terms)).collect();
            rig.check("conv_backward_weight", n, &outs);
        }
    }
}
