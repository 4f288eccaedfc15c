//! Join, cross-entropy, SGD.

use super::COUNTS;
use super::rig::{Build, Out, Place, Rig, compare, f64s, normal};
use sparse_engine::backend::{Backend, BatchLoss, Input, Real, SgdStep, Spec, Store};
use sparse_engine::graph::lower::Forward;

/// `y = relu?(a + b?)` of operands of each kind, also of one tensor twice.
pub fn join<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for chw in [[3, 5, 4], [17, 1, 1], [2, 1, 19]] {
        let mut build = Build::new(33);
        let [a, b, y] = build.tensors(chw);
        let [norm_a, norm_b] = [(); 2].map(|()| build.norm(chw[0]));
        let mut rig = Rig::new(build, make, format!("CHW {chw:?}"));
        for n in COUNTS.into_iter().filter(|&n| n as u32 * chw[1] * chw[2] >= 2) {
            rig.set_normed(a, norm_a, n, &format!("a {n}"), false);
            rig.set_normed(b, norm_b, n, &format!("b {n}"), false);
            let kinds = |t, norm| {
                [(None, false), (None, true), (Some(norm), false), (Some(norm), true)].map(|(norm, relu)| Input {
                    t,
                    norm,
                    relu,
                })
            };
            for x in kinds(a, norm_a) {
                let others = kinds(b, norm_b).into_iter().chain([x, Input::plain(a)]).map(Some);
                for (other, relu) in others.chain([None]).flat_map(|o| [(o, false), (o, true)]) {
                    rig.poison(y);
                    let what = format!("join_forward {x:?} and {other:?} relu {relu}");
                    rig.forward(&what, Forward::Join { a: x, b: other, relu, y }, n, 1);
                }
            }
        }
    }
}

/// Loss, accuracy and gradient; ties, large logits, NaN.
pub fn cross_entropy<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for classes in [2, 3, 10, 100] {
        let mut build = Build::new(33);
        let [z, dz] = build.tensors([classes, 1, 1]);
        build.0.tensors[z.0 as usize].exact = true;
        let mut rig = Rig::new(build, make, format!("{classes} classes"));
        let classes = classes as usize;
        for n in COUNTS {
            for smoothing in [0.0, 0.1] {
                let mut logits: Vec<f64> = normal(&format!("z {n}"), n * classes).iter().map(|v| 3.0 * v).collect();
                let labels: Vec<u32> = (0..n).map(|i| ((i * 7 + n) % classes) as u32).collect();
                if n > 3 {
                    logits[..classes].iter_mut().for_each(|v| *v *= 300.0); // exp of it is beyond any float
                    logits[classes..2 * classes].fill(1.5); // a tie of all: class 0
                }
                rig.set(z, n, &logits);
                rig.poison(dz);
                let got = rig.dev.cross_entropy(z, &labels, smoothing, Some(dz), n);
                let want = rig.exact.cross_entropy(z, &labels, smoothing, Some(dz), n);
                let (loss, grad) = loss_bounds(&rig.exact.read_tensor(z, n), &labels, classes, smoothing, B::Real::EPS);
                let want_dz = rig.exact.read_tensor(dz, n);
                let coarse = want_dz.iter().map(|v| v.abs()).collect();
                let out = Out { place: Place::Tensor(dz), want: want_dz, bound: grad, coarse };
                rig.check(&format!("cross_entropy smoothing {smoothing}"), n, &[out]);
                let what = format!("cross_entropy smoothing {smoothing}, {classes} classes, n = {n}");
                let tol = B::Real::EPS * loss;
                compare(&format!("{what}: loss"), &[got.loss_sum], &[want.loss_sum], &[tol]);
                assert_eq!(got.correct, want.correct, "{what}: correct");

                let plain = rig.dev.cross_entropy(z, &labels, smoothing, None, n);
                assert_eq!(plain, got, "{what}: the loss must not depend on whether a gradient is wanted");
                rig.check(&format!("cross_entropy smoothing {smoothing} without gradient"), n, &[]);
            }
        }
        ties_and_nan(&mut rig.dev, z, classes);
    }
}

fn ties_and_nan<B: Backend>(dev: &mut B, z: sparse_engine::backend::TensorId, classes: usize) {
    let mut loss = |rows: &[Vec<f64>], labels: &[u32]| -> BatchLoss {
        let flat: Vec<B::Real> = super::rig::reals(&rows.concat());
        dev.write_tensor(z, rows.len(), &flat);
        dev.cross_entropy(z, labels, 0.0, None, rows.len())
    };
    let last = classes as u32 - 1;
    let mut tie = vec![-1.0; classes];
    tie[last as usize] = 2.0;
    tie[last as usize - 1] = 2.0;
    assert_eq!(loss(&[tie.clone(), tie.clone()], &[last, last - 1]).correct, 1, "a tie goes to the lower class");
    for at in 0..classes {
        let mut nan = tie.clone();
        nan[at] = f64::NAN;
        for label in 0..=last {
            let l = loss(&[nan.clone()], &[label]);
            assert!(
                l.correct == 0 && l.loss_sum.is_nan(),
                "NaN at {at}, label {label}: {l:?}, wanted NaN, none correct"
            );
        }
    }
    let l = loss(&[vec![f64::NAN; classes], tie], &[0, last - 1]);
    assert!(l.correct == 1 && l.loss_sum.is_nan(), "a NaN row beside a good one: {l:?}");
}

/// Bounds of the loss and of dlogits. exp and log are taken to be good to some eps of their argument or result.
fn loss_bounds(z: &[f64], labels: &[u32], classes: usize, smoothing: f64, eps: f64) -> (f64, Vec<f64>) {
    let (mut loss, mut grad) = (0.0, vec![]);
    for (row, &label) in z.chunks(classes).zip(labels) {
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        let range = max - row.iter().copied().fold(f64::MAX, f64::min);
        let lse = max + row.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let mean = row.iter().map(|z| z.abs()).sum::<f64>() / classes as f64;
        loss += 4.0 * (lse.abs() + row[label as usize].abs() + smoothing * mean + 1.0 + range.min(10.0));
        for (class, z) in row.iter().enumerate() {
            let target = smoothing / classes as f64 + if class == label as usize { 1.0 - smoothing } else { 0.0 };
            // The last term: a probability below 1e-30 may be flushed to zero.
            let bound = 8.0 * ((z - lse).exp() * (2.0 + range) + target) + 1e-30 / eps;
            grad.push(bound / labels.len() as f64);
        }
    }
    (loss, grad)
}

/// Several steps with momentum, with and without Nesterov and weight decay, which some parameters are exempt from.
pub fn sgd<B: Backend>(make: &dyn Fn(Spec) -> B) {
    for (momentum, weight_decay, nesterov) in
        [(0.9, 5e-4, true), (0.9, 5e-4, false), (0.9, 0.0, true), (0.0, 5e-4, false), (0.5, 0.3, true)]
    {
        let mut build = Build::new(1);
        for len in [1, 40, 5, 1001, 17_000, 1] {
            build.param(&[len], None);
            build.param(&[len, 3], Some((0..len as u32).map(|i| 3 * i + i % 3).collect()));
            build.param(&[len], Some(vec![]));
        }
        let exempt = |i: usize| i % 5 == 2 || i % 7 == 3 || i > 14;
        build.0.params.iter_mut().enumerate().for_each(|(i, p)| p.decay = !exempt(i));
        let step = SgdStep { lr: 0.1, momentum, weight_decay, nesterov };
        let mut rig = Rig::new(build, make, format!("{step:?}"));
        let zero = vec![0.0; rig.exact.spec().stored()];
        rig.set_store(Store::Momentum, &zero);
        let decays: Vec<bool> = rig.exact.spec().params.iter().flat_map(|p| p.range.clone().map(|_| p.decay)).collect();
        let flips = rig.exact.spec().decay_flips();
        for (i, decays) in decays.iter().enumerate() {
            assert_eq!(flips.iter().filter(|&&f| f <= i).count() % 2 == 0, *decays, "element {i}");
        }
        for i in 0..5 {
            let before = [Store::Values, Store::Momentum].map(|s| rig.store(s).to_vec());
            rig.set_store(Store::Grads, &normal(&format!("gradient {i}"), zero.len()));
            rig.dev.sgd(step);
            rig.exact.sgd(step);
            rig.mag.sgd(SgdStep { lr: -step.lr, ..step }); // so that all terms add up
            let outs = [Place::Values, Place::Momentum].map(|p| rig.by_mag(p, 1, 4 * (i + 1)));
            rig.check("sgd", 1, &outs);
            let grads = rig.store(Store::Grads);
            let formula = |(i, &decays): (usize, &bool)| {
                let g = if decays { grads[i] + weight_decay * before[0][i] } else { grads[i] };
                let m = momentum * before[1][i] + g;
                let want = before[0][i] - 0.1 * if nesterov { g + momentum * m } else { m };
                (want, 1e-6 * (1.0 + before[0][i].abs() + before[1][i].abs() + grads[i].abs()))
            };
            let (want, tol): (Vec<f64>, Vec<f64>) = decays.iter().enumerate().map(formula).unzip();
            compare("sgd by its formula", rig.store(Store::Values), &want, &tol);
        }
        assert!(f64s(&rig.dev.read_store(Store::Values)).iter().all(|v| v.is_finite()));
    }
}
