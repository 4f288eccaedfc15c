//! The reference's gradients against central differences of its own forward passes, its forward passes against numbers
//! worked out by hand, and the calls that it refuses.
//!
//! A scalar L = sum(w * y) with random w: dL/dv is what the backward op gives for dy = w. In f64 with a step of 1e-5 the
//! truncation is about 1e-10 and the rounding 1e-11 of sums of a few hundred terms near 1; the tolerance is 1e-7 of the
//! largest gradient.

use super::common::rig::{Build, normal};
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{
    Backend, Finish, Grad, GradDst, Input, Mask, NormId, Normed, ParamId, Store, TensorId, Write,
};
use sparse_engine::shape::ConvGeom;

const H: f64 = 1e-5;

/// A place that a loss depends on.
#[derive(Clone, Copy, Debug)]
enum Var {
    Tensor(TensorId),
    Param(ParamId),
}

fn get(b: &RefBackend, v: Var, n: usize) -> Vec<f64> {
    match v {
        Var::Tensor(t) => b.read_tensor(t, n),
        Var::Param(p) => b.read_store(Store::Values)[b.spec().params[p.0 as usize].range.clone()].to_vec(),
    }
}

fn set(b: &mut RefBackend, v: Var, n: usize, data: &[f64]) {
    match v {
        Var::Tensor(t) => b.write_tensor(t, n, data),
        Var::Param(p) => {
            let mut values = b.read_store(Store::Values);
            values[b.spec().params[p.0 as usize].range.clone()].copy_from_slice(data);
            b.write_store(Store::Values, &values);
        }
    }
}

fn grad(b: &RefBackend, p: ParamId) -> Vec<f64> {
    b.read_store(Store::Grads)[b.spec().params[p.0 as usize].range.clone()].to_vec()
}

/// Compares `analytic` with central differences of `loss` over every number of `v`.
fn differences(
    what: &str,
    b: &mut RefBackend,
    v: Var,
    n: usize,
    analytic: &[f64],
    loss: &mut dyn FnMut(&mut RefBackend) -> f64,
) {
    let start = get(b, v, n);
    assert_eq!(start.len(), analytic.len(), "{what}");
    let largest = analytic.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
    assert!(largest > 1e-3, "{what}: a gradient of {largest} proves nothing");
    for (i, &g) in analytic.iter().enumerate() {
        let mut at = |delta: f64| {
            let mut moved = start.clone();
            moved[i] += delta;
            set(b, v, n, &moved);
            loss(b)
        };
        let numeric = (at(H) - at(-H)) / (2.0 * H);
        let err = (numeric - g).abs();
        assert!(err <= 1e-7 * largest, "{what} {v:?}: element {i}: analytic {g}, numeric {numeric}");
    }
    set(b, v, n, &start);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn random_values(b: &mut RefBackend) {
    let stored = b.spec().stored();
    b.write_store(Store::Values, &normal("values", stored));
}

fn over(t: TensorId, finish: Finish) -> GradDst {
    GradDst { t, write: Write::Overwrite, finish }
}

fn nothing() -> Finish {
    Finish::default()
}

fn sums(norm: NormId, x: TensorId) -> Finish {
    Finish { reduce: [Some(Normed { norm, x }), None], ..Finish::default() }
}

/// y = norm(conv(relu(norm(x)))), fused forward and backward: the gradients of all six parameters and of x.
#[test]
fn convolutions_between_norms() {
    for (c, h, w, k, r, stride, pad, kept, bias) in [
        (3, 5, 4, 4, 3, 1, 1, None, false),
        (2, 7, 5, 3, 3, 2, 1, Some((0..54).filter(|i| i % 3 != 1).collect::<Vec<u32>>()), false),
        (4, 5, 6, 3, 1, 2, 0, Some(vec![0, 1, 2, 6, 8, 9]), false),
        (1, 9, 8, 2, 7, 2, 3, None, false),
        (2, 6, 6, 2, 3, 1, 0, None, false),
        (6, 1, 1, 4, 1, 1, 0, Some(vec![1, 2, 7, 9, 11, 18, 23]), true),
    ] {
        let geom = ConvGeom { c, h, w, k, r, s: r, stride, pad };
        let what = format!("{geom:?}");
        let mut build = Build::new(4);
        let conv = build.conv(geom, kept, bias);
        let layer = build.0.convs[conv.0 as usize];
        let [norm_x, norm_y] = [c, k].map(|c| build.norm(c));
        let [x, dv, dx] = build.tensors([c, h, w]);
        let [y, z, dz, dz_finished] = build.tensors([k, geom.p(), geom.q()]);
        let specs = build.0.norms.clone();
        let mut b = RefBackend::new(build.0);
        random_values(&mut b);
        let n = 3;
        let weights = normal("dy", b.spec().tensors[y.0 as usize].plane.len() * n);
        b.write_tensor(x, n, &normal("x", n * (c * h * w) as usize));
        b.write_tensor(dz, n, &weights);
        let input = Input { t: x, norm: Some(norm_x), relu: true };
        // A linear layer has a bias, and no norm behind it, before which a bias would have no gradient.
        let through = (!bias).then_some(Normed { norm: norm_y, x: y });
        let mut loss = |b: &mut RefBackend| {
            b.norm_stats(norm_x, x, n);
            b.conv_forward(conv, input, y, through.map(|t| t.norm), n);
            b.join_forward(Input { t: y, norm: through.map(|t| t.norm), relu: false }, None, false, z, n);
            dot(&b.read_tensor(z, n), &weights)
        };
        loss(&mut b);
        b.join_forward(Input { relu: false, ..input }, None, false, dv, n);
        let margin = b.read_tensor(dv, n).iter().fold(f64::MAX, |m, v| m.min(v.abs()));
        assert!(margin > 10.0 * H, "{what}: a step of {H} must not cross the ReLU's kink, margin {margin}");

        let of_y = if bias { nothing() } else { sums(norm_y, y) };
        b.copy_backward(Grad::plain(dz), over(dz_finished, of_y), n);
        let dy = Grad { t: dz_finished, norm: through };
        let finish = Finish { mask: Mask::Positive(input), ..sums(norm_x, x) };
        b.conv_backward(conv, input, dy, Some(over(dv, finish)), n);
        b.copy_backward(Grad { t: dv, norm: Some(Normed { norm: norm_x, x }) }, over(dx, nothing()), n);

        let of_x = b.read_tensor(dx, n);
        differences(&what, &mut b, Var::Tensor(x), n, &of_x, &mut loss);
        let affine = specs.iter().flat_map(|s| [s.gamma, s.beta]).take(if bias { 2 } else { 4 });
        for p in [layer.weight].into_iter().chain(layer.bias).chain(affine) {
            let analytic = grad(&b, p);
            differences(&what, &mut b, Var::Param(p), n, &analytic, &mut loss);
        }
    }
}

/// relu(norm(a) + b), whose gradient is masked once and shared, and a + a.
#[test]
fn joins() {
    let mut build = Build::new(3);
    let [a, other, y, dy, finished, da] = build.tensors([2, 3, 3]);
    let norm = build.norm(2);
    let spec = build.0.norms[0];
    let mut b = RefBackend::new(build.0);
    random_values(&mut b);
    let (n, len) = (3, 3 * 18);
    let weights = normal("dy", len);
    b.write_tensor(a, n, &normal("a", len));
    b.write_tensor(other, n, &normal("b", len));
    b.write_tensor(dy, n, &weights);
    let normed = Input { t: a, norm: Some(norm), relu: false };
    let mut loss = |b: &mut RefBackend| {
        b.norm_stats(norm, a, n);
        b.join_forward(normed, Some(Input::plain(other)), true, y, n);
        dot(&b.read_tensor(y, n), &weights)
    };
    loss(&mut b);
    let finish = Finish { mask: Mask::Positive(Input::plain(y)), ..sums(norm, a) };
    b.copy_backward(Grad::plain(dy), over(finished, finish), n);
    b.copy_backward(Grad { t: finished, norm: Some(Normed { norm, x: a }) }, over(da, nothing()), n);
    let [of_a, of_b] = [da, finished].map(|t| b.read_tensor(t, n));
    let of_affine = [spec.gamma, spec.beta].map(|p| (p, grad(&b, p)));
    differences("join", &mut b, Var::Tensor(a), n, &of_a, &mut loss);
    differences("join", &mut b, Var::Tensor(other), n, &of_b, &mut loss);
    for (p, analytic) in of_affine {
        differences("join", &mut b, Var::Param(p), n, &analytic, &mut loss);
    }

    // a + a: the gradient is added twice.
    let mut loss = |b: &mut RefBackend| {
        b.join_forward(Input::plain(a), Some(Input::plain(a)), false, y, n);
        dot(&b.read_tensor(y, n), &weights)
    };
    b.copy_backward(Grad::plain(dy), over(da, nothing()), n);
    b.copy_backward(Grad::plain(dy), GradDst { write: Write::Accumulate, ..over(da, nothing()) }, n);
    let analytic = b.read_tensor(da, n);
    differences("a + a", &mut b, Var::Tensor(a), n, &analytic, &mut loss);
}

/// norm(a) with running statistics, which do not depend on a; the gradient of a needs no sums.
#[test]
fn frozen_norms() {
    let mut build = Build::new(3);
    let [a, y, dy, finished, da] = build.tensors([2, 3, 3]);
    let norm = build.norm(2);
    let (spec, mut b) = (build.0.norms[0], RefBackend::new(build.0));
    random_values(&mut b);
    b.write_store(Store::Running, &[0.3, -2.0, 0.5, 7.0]);
    let (n, weights) = (3, normal("dy", 54));
    b.write_tensor(a, n, &normal("a", 54));
    b.write_tensor(dy, n, &weights);
    let mut loss = |b: &mut RefBackend| {
        b.norm_running(norm);
        b.join_forward(Input { t: a, norm: Some(norm), relu: false }, None, false, y, n);
        dot(&b.read_tensor(y, n), &weights)
    };
    loss(&mut b);
    b.copy_backward(Grad { t: dy, norm: Some(Normed { norm, x: a }) }, over(da, nothing()), n);
    let of_a = b.read_tensor(da, n);
    b.copy_backward(Grad::plain(dy), over(finished, sums(norm, a)), n);
    let of_affine = [spec.gamma, spec.beta].map(|p| (p, grad(&b, p)));
    differences("frozen norm", &mut b, Var::Tensor(a), n, &of_a, &mut loss);
    for (p, analytic) in of_affine {
        differences("frozen norm", &mut b, Var::Param(p), n, &analytic, &mut loss);
    }
}

#[test]
fn pools() {
    let mut build = Build::new(3);
    let [x, dx] = build.tensors([2, 5, 4]);
    let [mean, dmean] = build.tensors([2, 1, 1]);
    let [max, dmax] = build.tensors([2, 3, 2]);
    let pool = build.pool([2, 5, 4], 3, 2, 1);
    let mut b = RefBackend::new(build.0);
    let n = 3;
    let (of_mean, of_max) = (normal("dmean", n * 2), normal("dmax", n * 12));
    b.write_tensor(x, n, &normal("x", n * 40));
    b.write_tensor(dmean, n, &of_mean);
    b.write_tensor(dmax, n, &of_max);
    b.pool_backward(Grad::plain(dmean), over(dx, nothing()), n);
    let analytic = b.read_tensor(dx, n);
    differences("pool", &mut b, Var::Tensor(x), n, &analytic, &mut |b| {
        b.pool_forward(Input::plain(x), mean, n);
        dot(&b.read_tensor(mean, n), &of_mean)
    });
    b.max_pool_backward(pool, Input::plain(x), Grad::plain(dmax), over(dx, nothing()), n);
    let analytic = b.read_tensor(dx, n);
    differences("max pool", &mut b, Var::Tensor(x), n, &analytic, &mut |b| {
        b.max_pool_forward(pool, Input::plain(x), max, n);
        dot(&b.read_tensor(max, n), &of_max)
    });
}

#[test]
fn cross_entropies() {
    for smoothing in [0.0, 0.1] {
        let mut build = Build::new(5);
        let [z, dz] = build.tensors([7, 1, 1]);
        let mut b = RefBackend::new(build.0);
        let (n, labels) = (5, [0, 6, 3, 3, 1]);
        b.write_tensor(z, n, &normal("z", 35));
        b.cross_entropy(z, &labels, smoothing, Some(dz), n);
        let analytic = b.read_tensor(dz, n);
        differences("cross-entropy", &mut b, Var::Tensor(z), n, &analytic, &mut |b| {
            b.cross_entropy(z, &labels, smoothing, None, n).loss_sum / n as f64
        });
    }
}

fn near(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    got.iter()
        .zip(want)
        .for_each(|(g, w)| assert!((g - w).abs() <= 1e-12 * w.abs().max(1.0), "{got:?}, wanted {want:?}"));
}

#[test]
fn forwards_by_hand() {
    // A 3x3 kernel with a one at row 0, column 2, and a two in the middle, on 1..=6 in two rows: neighbour above right.
    let geom = ConvGeom { c: 1, h: 2, w: 3, k: 1, r: 3, s: 3, stride: 1, pad: 1 };
    let mut build = Build::new(1);
    let conv = build.conv(geom, Some(vec![2, 4]), true);
    let wide = build.conv(ConvGeom { stride: 2, ..geom }, Some(vec![5, 8]), false);
    let [x, y] = build.tensors([1, 2, 3]);
    let half = build.tensor([1, 1, 2]);
    let mean = build.tensor([1, 1, 1]);
    let norm = build.norm(1);
    let mut b = RefBackend::new(build.0);
    // Nothing's three, the first kernel's two, bias, the second kernel's two, gamma, beta.
    b.write_store(Store::Values, &[0.0, 0.0, 0.0, 1.0, 2.0, 0.5, 1.0, 10.0, 3.0, -1.0]);
    b.write_tensor(x, 1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let plain = Input::plain(x);
    b.conv_forward(conv, plain, y, None, 1);
    near(&b.read_tensor(y, 1), &[2.5, 4.5, 6.5, 10.5, 13.5, 12.5]);
    // Stride 2: outputs at columns 0 and 2; right neighbour + 10 * the one below right.
    b.conv_forward(wide, plain, half, None, 1);
    near(&b.read_tensor(half, 1), &[2.0 + 50.0, 0.0]);
    b.pool_forward(plain, mean, 1);
    near(&b.read_tensor(mean, 1), &[3.5]);

    // Mean 3.5, variance 35/12 (17.5/5 = 3.5 unbiased); running 0.9 * old + 0.1 * new.
    b.write_store(Store::Running, &[1.0, 2.0]);
    b.norm_stats(norm, x, 1);
    let normed = Input { t: x, norm: Some(norm), relu: true };
    b.join_forward(normed, None, false, y, 1);
    let rstd = 1.0 / (35.0 / 12.0 + 1e-5_f64).sqrt();
    let v = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5].map(|d| (3.0 * d * rstd - 1.0_f64).max(0.0));
    near(&b.read_tensor(y, 1), &v);
    near(&b.read_store(Store::Running), &[0.9 + 0.35, 1.8 + 0.35]);
    // The padding around a computed operand is zero: neighbour above right + 2 * itself + 0.5.
    b.conv_forward(conv, normed, y, None, 1);
    near(
        &b.read_tensor(y, 1),
        &[0, 1, 2, 3, 4, 5].map(|i| 2.0 * v[i] + 0.5 + if i == 3 || i == 4 { v[i - 2] } else { 0.0 }),
    );
    b.norm_running(norm);
    b.join_forward(Input { relu: false, ..normed }, Some(plain), false, y, 1);
    let rstd = 1.0 / (2.15 + 1e-5_f64).sqrt();
    near(&b.read_tensor(y, 1), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(|v| 3.0 * (v - 1.25) * rstd - 1.0 + v));
}

#[test]
fn maxima_by_hand() {
    let mut build = Build::new(1);
    let pool = build.pool([1, 2, 3], 2, 2, 1);
    let [x, dx] = build.tensors([1, 2, 3]);
    let [y, dy] = build.tensors([1, 2, 2]);
    let mut b = RefBackend::new(build.0);
    // Windows: the first pixel; the two behind it in the first row; the same of the second row.
    for (data, max, gradient) in [
        ([-1.0, -3.0, -2.0, -4.0, -6.0, -5.0], [-1.0, -2.0, -4.0, -5.0], [1.0, 0.0, 10.0, 100.0, 0.0, 1000.0]),
        ([1.0, 2.0, 2.0, 4.0, 5.0, 5.0], [1.0, 2.0, 4.0, 5.0], [1.0, 10.0, 0.0, 100.0, 1000.0, 0.0]),
    ] {
        b.write_tensor(x, 1, &data);
        b.write_tensor(dy, 1, &[1.0, 10.0, 100.0, 1000.0]);
        b.max_pool_forward(pool, Input::plain(x), y, 1);
        near(&b.read_tensor(y, 1), &max);
        b.max_pool_backward(pool, Input::plain(x), Grad::plain(dy), over(dx, nothing()), 1);
        near(&b.read_tensor(dx, 1), &gradient);
    }
}

/// One call on two tensors with values, `a` and `c`, `twin` at the place of `a`, `empty` without a value, and two norms.
type Call = fn(&mut RefBackend, [TensorId; 4], [NormId; 2]);

#[test]
fn misuse_is_refused() {
    fn plain(t: TensorId) -> Input {
        Input::plain(t)
    }
    fn normed(t: TensorId, norm: NormId) -> Input {
        Input { t, norm: Some(norm), relu: false }
    }
    fn copy(b: &mut RefBackend, from: TensorId, norm: Option<Normed>, to: TensorId, finish: Finish) {
        b.copy_backward(Grad { t: from, norm }, over(to, finish), 1);
    }
    let calls: [(&str, Call); 11] = [
        ("overlaps", |b, [a, _, twin, _], _| b.join_forward(plain(a), None, true, twin, 1)),
        ("overlaps", |b, [a, c, ..], _| b.join_forward(plain(c), Some(plain(a)), true, a, 1)),
        ("overlaps", |b, [a, c, twin, _], _| {
            copy(b, c, None, twin, Finish { mask: Mask::Positive(plain(a)), ..nothing() });
        }),
        ("overlaps", |b, [a, c, twin, _], [norm, _]| {
            b.norm_stats(norm, a, 1);
            copy(b, c, None, twin, sums(norm, a));
        }),
        ("never written", |b, [_, c, _, empty], _| b.join_forward(plain(empty), None, true, c, 1)),
        ("has been overwritten", |b, [a, c, twin, empty], _| {
            b.join_forward(plain(c), None, true, twin, 1);
            b.join_forward(plain(a), None, true, empty, 1);
        }),
        ("before it has coefficients", |b, [a, c, ..], [norm, _]| b.join_forward(normed(a, norm), None, true, c, 1)),
        ("before it has coefficients", |b, [a, c, _, empty], [norm, _]| copy(b, c, None, empty, sums(norm, a))),
        ("before its sums", |b, [a, c, _, empty], [norm, other]| {
            b.norm_stats(norm, a, 1);
            b.norm_stats(other, a, 1);
            copy(b, c, None, empty, sums(other, a));
            copy(b, empty, Some(Normed { norm, x: a }), c, nothing());
        }),
        ("before its sums", |b, [a, c, _, empty], [norm, _]| {
            b.norm_running(norm);
            copy(b, c, Some(Normed { norm, x: a }), empty, nothing());
            b.norm_stats(norm, a, 1);
            copy(b, c, Some(Normed { norm, x: a }), empty, nothing());
        }),
        ("has the statistics of", |b, [a, c, _, empty], [norm, _]| {
            b.norm_stats(norm, a, 1);
            b.join_forward(normed(c, norm), None, true, empty, 1);
        }),
    ];
    for (i, (message, call)) in calls.into_iter().enumerate() {
        let mut build = Build::new(1);
        let [a, c, empty] = build.tensors([1, 2, 2]);
        let norms = [(); 2].map(|()| build.norm(1));
        build.0.tensors.push(build.0.tensors[a.0 as usize]);
        let twin = TensorId(build.0.tensors.len() as u32 - 1);
        let mut b = RefBackend::new(build.0);
        b.write_tensor(a, 1, &[1.0, 2.0, 3.0, 4.0]);
        b.write_tensor(c, 1, &[1.0, 2.0, 3.0, 4.0]);
        let run = std::panic::AssertUnwindSafe(|| call(&mut b, [a, c, twin, empty], norms));
        let panic = std::panic::catch_unwind(run).expect_err(&format!("call {i} passed"));
        let got = panic.downcast_ref::<String>().expect("a message");
        assert!(got.contains(message), "call {i}: {got}");
    }
}
