//! Mean and maximum pooling.

use super::COUNTS;
use super::rig::{Build, Rig, f64s, normal, reals};
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{
    Backend, Finish, Grad, GradDst, Input, Mask, NormId, Normed, PoolId, Spec, TensorId, Write,
};
use sparse_engine::graph::lower::{Backward, Forward};

/// Tensors and norms of the two sides of a pooling.
struct Sides {
    x: TensorId,
    dx: TensorId,
    y: TensorId,
    dy: TensorId,
    source: TensorId,
    norm_x: NormId,
    norm_y: NormId,
}

impl Sides {
    fn new(build: &mut Build, x: [u32; 3], y: [u32; 3]) -> Sides {
        let [x_, dx] = build.tensors(x);
        let [y_, dy, source] = build.tensors(y);
        let [norm_x, norm_y] = [x, y].map(|chw| build.norm(chw[0]));
        Sides { x: x_, dx, y: y_, dy, source, norm_x, norm_y }
    }

    /// Operands of each kind forward; backward plain and through a norm, each with and without a finish.
    fn check<B: Backend>(&self, rig: &mut Rig<B>, pool: Option<PoolId>, n: usize, k: usize, terms: usize) {
        let Sides { x, dx, y, dy, source, norm_x, norm_y } = *self;
        let name = if pool.is_some() { "max_pool" } else { "pool" };
        rig.set_normed(x, norm_x, n, &format!("x {n}"), false);
        for (i, norm) in [None, None, Some(norm_x), Some(norm_x)].into_iter().enumerate() {
            let input = Input { t: x, norm, relu: i % 2 == 1 };
            rig.poison(y);
            let forward = match pool {
                None => Forward::Pool { x: input, y },
                Some(pool) => Forward::MaxPool { pool, x: input, y },
            };
            let kind = format!("norm {} relu {}", norm.is_some(), input.relu);
            rig.forward(&format!("{name}_forward {kind}"), forward, n, k);

            let plane = rig.plane(y);
            let through = i >= 2 && n as u32 * plane.h * plane.w >= 2;
            if through {
                rig.forward("norm_stats of a pooling", Forward::Stats { norm: norm_y, x: y }, n, 1);
            }
            let grad = Grad { t: dy, norm: through.then_some(Normed { norm: norm_y, x: y }) };
            rig.set_grad(grad, source, n, &format!("dy {n}"));
            let finish = Finish { mask: Mask::Positive(input), reduce: [Some(Normed { norm: norm_x, x }), None] };
            let [first, second] =
                if n % 2 == i % 2 { [finish, Finish::default()] } else { [Finish::default(), finish] };
            for (write, finish) in [(Write::Overwrite, first), (Write::Accumulate, second)] {
                let dx = GradDst { t: dx, write, finish };
                rig.prepare(dx, n);
                let backward = match pool {
                    None => Backward::Pool { dy: grad, dx },
                    Some(pool) => Backward::MaxPool { pool, x: input, dy: grad, dx },
                };
                let write = format!("{write:?}").to_lowercase();
                let masked = finish != Finish::default();
                let what = format!("{name}_backward {write} finish {masked} {kind} through a norm {through}");
                rig.backward(&what, backward, n, terms + 1, terms + 1, &[]);
            }
        }
    }
}

/// Mean over the plane, and back.
pub fn mean<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for chw in [[5, 7, 3], [17, 4, 4], [3, 1, 1]] {
        let mut build = Build::new(33);
        let sides = Sides::new(&mut build, chw, [chw[0], 1, 1]);
        let mut rig = Rig::new(build, make, format!("CHW {chw:?}"));
        for n in COUNTS.into_iter().filter(|&n| n as u32 * chw[1] * chw[2] >= 2) {
            sides.check(&mut rig, None, n, (chw[1] * chw[2]) as usize, 1);
        }
    }
}

/// Maximum over windows, and back. The data have many ties: numbers on a grid, and half of them zero behind a ReLU.
pub fn max<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for (chw, size, stride, pad) in [
        ([3, 8, 8], 3, 2, 1),
        ([17, 7, 5], 3, 2, 1),
        ([2, 5, 9], 3, 1, 1),
        ([3, 6, 7], 2, 2, 0),
        ([2, 7, 6], 2, 3, 1),
        ([2, 3, 3], 3, 1, 2),
        ([4, 1, 1], 1, 1, 0),
    ] {
        let mut build = Build::new(33);
        let pool = build.pool(chw, size, stride, pad);
        let side = |len: u32| (len + 2 * pad - size) / stride + 1;
        let sides = Sides::new(&mut build, chw, [chw[0], side(chw[1]), side(chw[2])]);
        let mut rig = Rig::new(build, make, format!("CHW {chw:?} {size}x{size} stride {stride} pad {pad}"));
        for n in COUNTS.into_iter().filter(|&n| n as u32 * chw[1] * chw[2] >= 2) {
            sides.check(&mut rig, Some(pool), n, 1, (size * size) as usize);
        }
    }
    nan_wins(make);
}

/// A NaN in a window is its maximum, and takes its gradient.
fn nan_wins<B: Backend>(make: &dyn Fn(Spec) -> B) {
    let mut build = Build::new(17);
    let pool = build.pool([2, 3, 4], 2, 1, 1);
    let [x, dx] = build.tensors([2, 3, 4]);
    let [y, dy] = build.tensors([2, 4, 5]);
    let (mut dev, mut exact) = (make(build.0.clone()), RefBackend::new(build.0));
    let dst = GradDst { t: dx, write: Write::Overwrite, finish: Finish::default() };
    for (n, at) in [(17, 24 * 16 + 12 + 5), (3, 0)] {
        let mut data = normal("x", n * 24);
        data[at] = f64::NAN;
        dev.write_tensor(x, n, &reals(&data));
        exact.write_tensor(x, n, &f64s(&dev.read_tensor(x, n)));
        let grad: Vec<f64> = (0..n * 40).map(|i| (i % 7) as f64 - 3.0).collect();
        dev.write_tensor(dy, n, &reals(&grad));
        exact.write_tensor(dy, n, &grad);
        for relu in [false, true] {
            let input = Input { relu, ..Input::plain(x) };
            dev.max_pool_forward(pool, input, y, n);
            exact.max_pool_forward(pool, input, y, n);
            dev.max_pool_backward(pool, input, Grad::plain(dy), dst, n);
            exact.max_pool_backward(pool, input, Grad::plain(dy), dst, n);
            let nans = exact.read_tensor(y, n).iter().filter(|v| v.is_nan()).count();
            assert_eq!(nans, 4, "each window with the NaN");
            for (op, t) in [("forward", y), ("backward", dx)] {
                let (got, want) = (f64s(&dev.read_tensor(t, n)), exact.read_tensor(t, n));
                for (i, (g, w)) in got.into_iter().zip(want).enumerate() {
                    let same = g == w || (g.is_nan() && w.is_nan());
                    assert!(
                        same,
                        "max_pool_{op} with NaN at {at}, relu {relu}, n = {n}: element {i}: wanted {w}, got {g}"
                    );
                }
            }
        }
    }
}
