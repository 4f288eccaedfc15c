//! The reference's gradients against central differences of its own forward passes, and its forward passes against
//! numbers worked out by hand.
//!
//! A scalar L = sum(w * y) with random w: dL/dv is what the backward op gives for dy = w. In f64 with a step of 1e-5 the
//! truncation is about 1e-10 and the rounding 1e-11 of sums of a few hundred terms near 1; the tolerance is 1e-7 of the
//! largest gradient.

use crate::common::rig::{Build, add, normal, over};
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{Backend, ParamId, Store, TensorId};
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

#[test]
fn convolutions() {
    for (c, h, w, k, r, stride, pad, kept, bias) in [
        (3, 5, 4, 4, 3, 1, 1, None, true),
        (2, 7, 5, 3, 3, 2, 1, Some((0..54).filter(|i| i % 3 != 1).collect::<Vec<u32>>()), false),
        (4, 5, 6, 3, 1, 2, 0, Some(vec![0, 1, 2, 6, 8, 9]), true),
        (1, 9, 8, 2, 7, 2, 3, None, false),
        (6, 1, 1, 4, 1, 1, 0, Some(vec![1, 2, 7, 9, 11, 18, 23]), true),
        (2, 6, 6, 2, 3, 1, 0, None, false),
    ] {
        let geom = ConvGeom { c, h, w, k, r, s: r, stride, pad };
        let what = format!("{geom:?}");
        let mut build = Build::new(3);
        let conv = build.conv(geom, kept, bias);
        let layer = build.0.convs[conv.0 as usize];
        let (input, output) = ([c, h, w], [k, geom.p(), geom.q()]);
        let [x, dx] = [0; 2].map(|halo| build.tensor(input, halo));
        let [y, dy] = [0; 2].map(|halo| build.tensor(output, halo));
        let mut b = RefBackend::new(build.0);
        random_values(&mut b);
        let n = 2;
        let weights = normal("dy", n * (k * geom.p() * geom.q()) as usize);
        b.write_tensor(x, n, &normal("x", n * (c * h * w) as usize));
        b.write_tensor(dy, n, &weights);
        b.conv_backward_data(conv, dy, over(dx), n);
        b.conv_backward_weight(conv, x, dy, n);
        let mut loss = |b: &mut RefBackend| {
            b.conv_forward(conv, x, y, n);
            dot(&b.read_tensor(y, n), &weights)
        };
        let analytic = b.read_tensor(dx, n);
        differences(&what, &mut b, Var::Tensor(x), n, &analytic, &mut loss);
        for p in std::iter::once(layer.weight).chain(layer.bias) {
            let analytic = grad(&b, p);
            differences(&what, &mut b, Var::Param(p), n, &analytic, &mut loss);
        }
    }
}

#[test]
fn norms() {
    for (relu, residual) in [(false, false), (true, false), (false, true), (true, true)] {
        let what = format!("norm relu {relu} residual {residual}");
        let mut build = Build::new(4);
        let norm = build.norm(3);
        let spec = build.0.norms[0];
        let [x, y, res, dy, dx, dres] = [0; 6].map(|halo| build.tensor([3, 3, 2], halo));
        let mut b = RefBackend::new(build.0);
        random_values(&mut b);
        let (n, len) = (4, 4 * 18);
        let weights = normal("dy", len);
        b.write_tensor(x, n, &normal("x", len));
        b.write_tensor(res, n, &normal("res", len));
        b.write_tensor(dy, n, &weights);
        let res_in = residual.then_some(res);
        b.norm_forward(norm, x, res_in, false, y, n);
        let margin = b.read_tensor(y, n).iter().fold(f64::MAX, |m, v| m.min(v.abs()));
        assert!(margin > 10.0 * H, "{what}: a step of {H} must not cross the ReLU's kink, margin {margin}");
        b.norm_forward(norm, x, res_in, relu, y, n);
        b.norm_backward(norm, x, y, relu, dy, over(dx), residual.then_some(over(dres)), n);
        let mut loss = |b: &mut RefBackend| {
            b.norm_forward(norm, x, res_in, relu, y, n);
            dot(&b.read_tensor(y, n), &weights)
        };
        let [of_x, of_res] = [dx, dres].map(|t| b.read_tensor(t, n));
        differences(&what, &mut b, Var::Tensor(x), n, &of_x, &mut loss);
        if residual {
            differences(&what, &mut b, Var::Tensor(res), n, &of_res, &mut loss);
        }
        for p in [spec.gamma, spec.beta] {
            let analytic = grad(&b, p);
            differences(&what, &mut b, Var::Param(p), n, &analytic, &mut loss);
        }
    }
}

#[test]
fn joins_and_pools() {
    let mut build = Build::new(3);
    let [a, other, y, dy, da, db] = [0; 6].map(|halo| build.tensor([2, 3, 3], halo));
    let [mean, dmean] = [0; 2].map(|halo| build.tensor([2, 1, 1], halo));
    let mut b = RefBackend::new(build.0);
    let (n, len) = (3, 3 * 18);
    let (weights, mean_weights) = (normal("dy", len), normal("dmean", 6));
    b.write_tensor(a, n, &normal("a", len));
    b.write_tensor(other, n, &normal("b", len));
    b.write_tensor(dy, n, &weights);
    for relu in [false, true] {
        for two in [false, true] {
            let what = format!("join relu {relu} two {two}");
            let mut loss = |b: &mut RefBackend| {
                b.join_forward(a, two.then_some(other), relu, y, n);
                dot(&b.read_tensor(y, n), &weights)
            };
            loss(&mut b);
            b.join_backward(y, relu, dy, over(da), two.then_some(over(db)), n);
            let [of_a, of_b] = [da, db].map(|t| b.read_tensor(t, n));
            differences(&what, &mut b, Var::Tensor(a), n, &of_a, &mut loss);
            if two {
                differences(&what, &mut b, Var::Tensor(other), n, &of_b, &mut loss);
            }
        }
    }
    // a + a: both gradients meet in one tensor.
    let mut loss = |b: &mut RefBackend| {
        b.join_forward(a, Some(a), true, y, n);
        dot(&b.read_tensor(y, n), &weights)
    };
    loss(&mut b);
    b.write_tensor(da, n, &vec![0.0; len]);
    b.join_backward(y, true, dy, add(da), Some(add(da)), n);
    let analytic = b.read_tensor(da, n);
    differences("a + a", &mut b, Var::Tensor(a), n, &analytic, &mut loss);

    b.write_tensor(dmean, n, &mean_weights);
    b.pool_backward(dmean, over(da), n);
    let analytic = b.read_tensor(da, n);
    differences("pool", &mut b, Var::Tensor(a), n, &analytic, &mut |b| {
        b.pool_forward(a, mean, n);
        dot(&b.read_tensor(mean, n), &mean_weights)
    });
}

#[test]
fn cross_entropies() {
    for smoothing in [0.0, 0.1] {
        let mut build = Build::new(5);
        let [z, dz] = [0; 2].map(|halo| build.tensor([7, 1, 1], halo));
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
    let [x, y] = [0; 2].map(|halo| build.tensor([1, 2, 3], halo));
    let half = build.tensor([1, 1, 2], 0);
    let mean = build.tensor([1, 1, 1], 0);
    let norm = build.norm(1);
    let mut b = RefBackend::new(build.0);
    // Nothing's three, the first kernel's two, bias, the second kernel's two, gamma, beta.
    b.write_store(Store::Values, &[0.0, 0.0, 0.0, 1.0, 2.0, 0.5, 1.0, 10.0, 3.0, -1.0]);
    b.write_tensor(x, 1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    b.conv_forward(conv, x, y, 1);
    near(&b.read_tensor(y, 1), &[2.5, 4.5, 6.5, 10.5, 13.5, 12.5]);
    // Stride 2: outputs at columns 0 and 2; right neighbour + 10 * the one below right.
    b.conv_forward(wide, x, half, 1);
    near(&b.read_tensor(half, 1), &[2.0 + 50.0, 0.0]);
    b.pool_forward(x, mean, 1);
    near(&b.read_tensor(mean, 1), &[3.5]);

    // Mean 3.5, variance 35/12 (17.5/5 = 3.5 unbiased); running 0.9 * old + 0.1 * new.
    b.write_store(Store::Running, &[1.0, 2.0]);
    b.norm_forward(norm, x, None, true, y, 1);
    let rstd = 1.0 / (35.0 / 12.0 + 1e-5_f64).sqrt();
    near(&b.read_tensor(y, 1), &[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5].map(|d| (3.0 * d * rstd - 1.0_f64).max(0.0)));
    near(&b.read_store(Store::Running), &[0.9 + 0.35, 1.8 + 0.35]);
    b.norm_infer(norm, x, Some(x), false, y, 1);
    let rstd = 1.0 / (2.15 + 1e-5_f64).sqrt();
    near(&b.read_tensor(y, 1), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(|v| 3.0 * (v - 1.25) * rstd - 1.0 + v));
}

#[test]
#[should_panic(expected = "share slot")]
fn overlap_is_refused() {
    let mut build = Build::new(1);
    let a = build.tensor([1, 2, 2], 0);
    let twin = build.0.tensors[a.0 as usize];
    build.0.tensors.push(twin);
    RefBackend::new(build.0).join_forward(a, None, true, TensorId(a.0 + 1), 1);
}
