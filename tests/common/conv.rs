//! Convolutions and linear layers: forward with statistics, and both gradients, over operands of every kind.

use super::COUNTS;
use super::rig::{Build, Rig, normal};
use sparse_engine::backend::{
    Backend, ConvId, Finish, Grad, GradDst, Input, Mask, NormId, Normed, Spec, Store, TensorId, Write,
};
use sparse_engine::graph::lower::{Backward, Forward};
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
    /// Nothing.
    Nothing,
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
        Kept::Nothing => Some(vec![]),
    }
}

/// What the operands of one turn are; the cases below go through all of them.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Batch norm and ReLU of the input.
    norm: bool,
    relu: bool,
    /// Statistics of the output, through which its gradient then goes.
    stats: bool,
    /// The data gradient, if any.
    dx: Option<(Write, Masked, usize)>,
}

/// Where a gradient passes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Masked {
    No,
    /// Where the convolution's own input is positive.
    Own,
    /// Where another stored tensor is.
    Stored,
    /// Where the batch norm of another tensor is.
    Computed,
}

/// The `i`-th of all turns, neighbours as different as can be: 35 has no factor in common with their number.
fn turn(i: usize) -> Turn {
    let mut i = i * 35 % TURNS;
    let mut pick = |n: usize| {
        let at = i % n;
        i /= n;
        at
    };
    let (norm, relu, stats) = (pick(2) == 1, pick(2) == 1, pick(2) == 1);
    let write = [Write::Overwrite, Write::Accumulate][pick(2)];
    let masked = [Masked::Own, Masked::No, Masked::Computed, Masked::Stored][pick(4)];
    Turn { norm, relu, stats, dx: Some((write, masked, pick(3))) }
}

const TURNS: usize = 2 * 2 * 2 * 2 * 4 * 3;

/// All geometries, masks, batch sizes, and on one geometry all turns.
pub fn check<B: Backend>(make: &dyn Fn(Spec) -> B) {
    use Kept::*;
    let mut turns = 0;
    // C, H, W, K, kernel, stride, padding, mask, bias
    for (c, h, w, k, r, stride, pad, mask, bias) in [
        (5, 8, 8, 7, 3, 1, 1, Dead(0.3), true),
        (4, 9, 7, 6, 3, 2, 1, Part(0.3), false),
        (4, 8, 6, 5, 3, 2, 1, Dense, false),
        (17, 3, 3, 18, 3, 1, 1, Dead(0.1), true),
        (3, 6, 5, 4, 3, 1, 0, Part(0.5), false),
        (3, 1, 1, 3, 3, 1, 1, Dense, false),
        (2, 4, 5, 3, 3, 1, 1, All, false),
        (3, 5, 4, 2, 3, 1, 1, One, false),
        (3, 5, 4, 2, 3, 1, 1, Nothing, true),
        (2, 3, 25, 3, 3, 1, 1, Part(0.6), false),
        (2, 19, 2, 3, 3, 2, 1, Part(0.6), false),
        (1, 13, 12, 1, 3, 1, 1, Dense, false),
        (6, 7, 7, 5, 1, 2, 0, Dead(0.4), false),
        (3, 8, 8, 4, 1, 2, 0, Dense, true),
        (9, 4, 4, 17, 1, 1, 0, Part(0.3), false),
        (4, 9, 15, 3, 1, 1, 0, Dead(0.5), false),
        (3, 16, 13, 4, 7, 2, 3, Part(0.2), false),
        (2, 5, 5, 3, 7, 1, 3, Dense, false),
        (2, 10, 9, 3, 5, 1, 2, Part(0.4), false),
        (2, 11, 11, 3, 5, 3, 2, Part(0.3), false),
        (20, 1, 1, 10, 1, 1, 0, Dead(0.3), true),
        (7, 1, 1, 3, 1, 1, 0, Dense, true),
        (3, 4, 3, 70, 3, 1, 1, Part(0.2), false), // more outputs than a plausible block of channels
    ] {
        let geom = ConvGeom { c, h, w, k, r, s: r, stride, pad };
        Case::new(make, geom, mask, bias, 33).run(&COUNTS, &mut turns);
    }
    let geom = ConvGeom { c: 3, h: 5, w: 5, k: 4, r: 3, s: 3, stride: 1, pad: 1 };
    for batch in [1, 16, 20] {
        Case::new(make, geom, Kept::Part(0.4), false, batch).run(&[batch, 1], &mut turns);
    }
    // More weights than the CPU backend's tasks that make both gradients take (32,768), in more than one patch (56 pixels).
    let large = ConvGeom { c: 64, h: 9, w: 7, k: 80, r: 3, s: 3, stride: 1, pad: 1 };
    Case::new(make, large, Kept::Dead(0.9), false, 18).run(&[18, 3], &mut turns);
    Case::new(make, ConvGeom { stride: 2, ..large }, Kept::All, false, 5).run(&[5, 2], &mut turns);

    let every = ConvGeom { c: 4, h: 5, w: 7, k: 3, r: 3, s: 3, stride: 1, pad: 1 };
    let mut case = Case::new(make, every, Kept::Part(0.6), true, 18);
    for i in 0..TURNS {
        case.turn(turn(i), if i % 2 == 0 { 18 } else { 5 });
    }
}

struct Case<B: Backend> {
    rig: Rig<B>,
    geom: ConvGeom,
    conv: ConvId,
    /// Norms of the input, of the output, of the mask, and of two tensors of the input's shape.
    norms: [NormId; 5],
    /// Of the input's shape: input, its gradient, mask, two inputs of norms.
    inner: [TensorId; 5],
    /// Of the output's shape: output, its gradient, what that is made of, what a norm makes of the output.
    outer: [TensorId; 4],
}

impl<B: Backend> Case<B> {
    fn new(make: &dyn Fn(Spec) -> B, geom: ConvGeom, mask: Kept, bias: bool, batch: usize) -> Self {
        let mut build = Build::new(batch);
        let other = ConvGeom { c: 1, h: 2, w: 2, k: 2, r: 1, s: 1, stride: 1, pad: 0 };
        build.conv(other, None, false); // its parameters must stay as they are
        let conv = build.conv(geom, kept(geom, mask), bias);
        build.conv(other, None, false);
        let norms = [geom.c, geom.k, geom.c, geom.c, geom.c].map(|c| build.norm(c));
        let inner = build.tensors([geom.c, geom.h, geom.w]);
        let outer = build.tensors([geom.k, geom.p(), geom.q()]);
        let rig = Rig::new(build, make, format!("{geom:?} {mask:?} bias {bias} batch {batch}"));
        Case { rig, geom, conv, norms, inner, outer }
    }

    fn run(mut self, counts: &[usize], turns: &mut usize) {
        for &n in counts {
            self.turn(turn(*turns), n);
            self.turn(Turn { dx: None, ..turn(*turns + 1) }, n);
            *turns += 1;
        }
    }

    fn turn(&mut self, mut turn: Turn, n: usize) {
        let Case { rig, geom, conv, norms, inner, outer } = self;
        let [norm_x, norm_y, norm_m, norm_a, norm_b] = *norms;
        let [x, dx, m, a, b] = *inner;
        let [y, dy, source, normed] = *outer;
        let has_statistics = |pixels: u32| n as u32 * pixels >= 2;
        if !has_statistics(geom.h * geom.w) {
            turn.norm = false;
            turn.dx =
                turn.dx.map(|(write, masked, _)| (write, if masked == Masked::No { masked } else { Masked::Own }, 0));
        }
        turn.stats &= has_statistics(geom.p() * geom.q());
        let stored = rig.exact.spec().stored();
        rig.set_store(Store::Values, &normal(&format!("values {n}"), stored));

        let input = Input { t: x, norm: turn.norm.then_some(norm_x), relu: turn.relu };
        match turn.norm {
            true => rig.set_normed(x, norm_x, n, &format!("x {n}"), false),
            false => rig.set_normal(x, n, &format!("x {n}")),
        }
        rig.poison(y);
        let stats = turn.stats.then_some(norm_y);
        let taps = |channels: u32| (channels * geom.r * geom.s) as usize + 1;
        let Turn { norm, relu, .. } = turn;
        let what = format!("conv_forward norm {norm} relu {relu}");
        rig.forward(&what, Forward::Conv { conv: *conv, x: input, y, stats }, n, taps(geom.c));
        if let Some(norm) = stats {
            rig.poison(normed);
            let a = Input { t: y, norm: Some(norm), relu: false };
            rig.forward("the norm after conv_forward", Forward::Join { a, b: None, relu: false, y: normed }, n, 1);
        }

        let grad = Grad { t: dy, norm: stats.map(|norm| Normed { norm, x: y }) };
        let dx = turn.dx.map(|(write, masked, sums)| {
            let mask = match masked {
                Masked::No => Mask::All,
                Masked::Own => Mask::Positive(input),
                Masked::Stored => {
                    rig.set_normal(m, n, &format!("mask {n}"));
                    Mask::Positive(Input::plain(m))
                }
                Masked::Computed => {
                    rig.set_normed(m, norm_m, n, &format!("mask {n}"), false);
                    Mask::Positive(Input { t: m, norm: Some(norm_m), relu: relu != norm })
                }
            };
            // As in a network, the gradient's own norm is that of the input, if it has one.
            let own = Normed { norm: norm_x, x };
            let others = [(norm_a, a), (norm_b, b)].map(|(norm, x)| Normed { norm, x });
            let reduce = match (sums, turn.norm) {
                (0, _) => [None, None],
                (1, true) => [Some(own), None],
                (1, false) => [Some(others[0]), None],
                (_, true) => [Some(others[0]), Some(own)],
                (_, false) => others.map(Some),
            };
            for other in reduce.iter().flatten().filter(|r| **r != own) {
                rig.set_normed(other.x, other.norm, n, &format!("{other:?} {n}"), false);
            }
            GradDst { t: dx, write, finish: Finish { mask, reduce } }
        });
        rig.set_grad(grad, source, n, &format!("dy {n}"));
        let what = match dx {
            None => "conv_backward of the weights".to_string(),
            Some(GradDst { write, finish, .. }) => {
                rig.prepare(dx.unwrap(), n);
                let sums = finish.reduce.iter().flatten().count();
                let (write, masked) = (format!("{write:?}").to_lowercase(), finish.mask != Mask::All);
                format!("conv_backward {write} mask {masked} sums {sums}")
            }
        };
        let layer = rig.exact.spec().convs[conv.0 as usize];
        let params: Vec<_> = std::iter::once(layer.weight).chain(layer.bias).collect();
        let what = format!("{what} norm {norm} relu {relu} through a norm {}", turn.stats);
        let op = Backward::Conv { conv: *conv, x: input, dy: grad, dx };
        let pixels = n * (geom.p() * geom.q()) as usize;
        rig.backward(&what, op, n, taps(geom.k), pixels, &params);

        // The data gradient alone, in every second turn with the norms that it meets as running statistics make them.
        let Some(dx) = dx else { return };
        if relu {
            for norm in grad.norm.into_iter().chain(dx.finish.reduce.into_iter().flatten()).map(|n| n.norm) {
                rig.use_running(norm, n);
            }
        }
        let mask = if relu { Mask::All } else { dx.finish.mask };
        let dx = GradDst { finish: Finish { mask, ..dx.finish }, ..dx };
        rig.prepare(dx, n);
        let what = format!("conv_data_backward, frozen norms {relu}, after {what}");
        rig.backward(&what, Backward::ConvData { conv: *conv, dy: grad, dx }, n, taps(geom.k), pixels, &[]);
    }
}
