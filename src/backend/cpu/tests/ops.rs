//! Norm, join, pooling, loss and SGD.

use super::*;

type Terms = Vec<(f64, f64)>;

fn f64s(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

/// Values with a tolerance scale.
fn scaled(v: Vec<f64>, scale: f64) -> Terms {
    v.into_iter().map(|v| (v, scale)).collect()
}

fn dst(t: TensorId, accumulate: bool) -> Dst {
    Dst { t, write: if accumulate { Write::Accumulate } else { Write::Overwrite } }
}

/// One norm case: inputs, and what the ops return, in one order.
struct Norm {
    net: Net,
    c: usize,
    px: usize,
    t: [TensorId; 6], // x, residual, y, dy, dx, dres
    norm: NormId,
    relu: bool,
    residual: bool,
    accumulate: bool,
}

fn norm_case(c: u32, h: u32, w: u32, relu: bool, residual: bool, accumulate: bool) -> Norm {
    let mut net = Net::new();
    net.norm(2);
    let norm = net.norm(c);
    let mut halo = 0;
    let t = [(); 6].map(|()| {
        halo = (halo + 1) % 3;
        net.tensor([c, h, w, halo])
    });
    Norm { net, c: c as usize, px: (h * w) as usize, t, norm, relu, residual, accumulate }
}

impl Norm {
    fn check(&self, n: usize, offset: f32) {
        let (c, len) = (self.c, n * self.c * self.px);
        let count = (n * self.px) as f64;
        if count < 2.0 {
            return;
        }
        let [x, res, dy, old_dx, old_dres] = [1, 2, 3, 4, 5].map(|s| noise(s, len));
        let x: Vec<f32> = x.iter().map(|v| v + offset).collect();
        let values = noise(6, self.net.0.stored());
        let running: Vec<f32> = noise(7, self.net.0.running()).iter().map(|v| v.abs() + 0.5).collect();
        let [tx, tres, ty, tdy, tdx, tdres] = self.t;
        let residual = self.residual.then_some(tres);
        let outs = self.net.run(|b| {
            b.write_store(Store::Values, &values);
            b.write_store(Store::Grads, &vec![f32::NAN; values.len()]);
            b.write_store(Store::Running, &running);
            for (t, v) in [(tx, &x), (tres, &res), (tdy, &dy), (tdx, &old_dx), (tdres, &old_dres)] {
                put(b, t, n, v);
            }
            if !self.accumulate {
                poison(b, tdx);
                poison(b, tdres);
            }
            poison(b, ty);
            b.norm_infer(self.norm, tx, residual, self.relu, ty, n);
            let mut out = b.read_tensor(ty, n);
            assert_eq!(b.read_store(Store::Running), running);
            poison(b, ty);
            b.norm_forward(self.norm, tx, residual, self.relu, ty, n);
            out.extend(b.read_tensor(ty, n));
            out.extend(&b.read_store(Store::Running)[4..]);
            let dres = self.residual.then_some(dst(tdres, self.accumulate));
            b.norm_backward(self.norm, tx, ty, self.relu, tdy, dst(tdx, self.accumulate), dres, n);
            out.extend(&b.read_store(Store::Grads)[4..]);
            out.extend(b.read_tensor(tdx, n));
            out.extend(if self.residual { b.read_tensor(tdres, n) } else { vec![] });
            out
        });
        let ch = |i: usize| i / self.px % c;
        let (x, res, dy) = (f64s(&x), f64s(&res), f64s(&dy));
        let (gamma, beta) = (f64s(&values[4..4 + c]), f64s(&values[4 + c..]));
        let (old_mean, old_var) = (f64s(&running[4..4 + c]), f64s(&running[4 + c..]));
        let sums = |f: &dyn Fn(usize) -> f64| {
            let mut s = vec![0.0; c];
            (0..len).for_each(|i| s[ch(i)] += f(i));
            s
        };
        let mean: Vec<f64> = sums(&|i| x[i]).iter().map(|s| s / count).collect();
        let m2 = sums(&|i| (x[i] - mean[ch(i)]).powi(2));
        let y_of = |mean: &[f64], var: &[f64], i: usize| {
            let (k, r) = (ch(i), if self.residual { res[i] } else { 0.0 });
            let y = (x[i] - mean[k]) / (var[k] + 1e-5).sqrt() * gamma[k] + beta[k] + r;
            if self.relu { y.max(0.0) } else { y }
        };
        let var: Vec<f64> = m2.iter().map(|m| m / count).collect();
        let blend = |old: &[f64], new: &[f64]| (0..c).map(|k| 0.9 * old[k] + 0.1 * new[k]).collect::<Vec<_>>();
        let unbiased: Vec<f64> = m2.iter().map(|m| m / (count - 1.0)).collect();
        let running_want = [blend(&old_mean, &mean), blend(&old_var, &unbiased)].concat();
        let infer: Vec<f64> = (0..len).map(|i| y_of(&old_mean, &old_var, i)).collect();
        let big = 4.0 + f64::from(offset.abs()); // f32 holds x to 6e-8 of this
        for (isa, got) in outs {
            let what = format!("{isa:?} c {c} px {} n {n} offset {offset}", self.px);
            let mut rest = &got[..];
            let mut next = |name: &str, want: Terms| {
                let (head, tail) = rest.split_at(want.len());
                rest = tail;
                assert_close(&format!("{what} {name}"), head, &want);
                head.to_vec()
            };
            next("infer", scaled(infer.clone(), 2.0 * big));
            let small: f64 = var.iter().fold(1.0f64, |a, v| a.min(v + 1e-5)).sqrt();
            let y = next("y", scaled((0..len).map(|i| y_of(&mean, &var, i)).collect(), big / small));
            next("running", scaled(running_want.clone(), big));
            // From here on with the backend's own y, so that its sign decides in both.
            let dz: Vec<f64> = (0..len).map(|i| if self.relu && y[i] <= 0.0 { 0.0 } else { dy[i] }).collect();
            let xhat = |i: usize| (x[i] - mean[ch(i)]) / (var[ch(i)] + 1e-5).sqrt();
            let (sum_dz, sum_dz_xhat) = (sums(&|i| dz[i]), sums(&|i| dz[i] * xhat(i)));
            let tol = count * big / small;
            next("dgamma", scaled(sum_dz_xhat.clone(), tol));
            next("dbeta", scaled(sum_dz.clone(), tol));
            let keep = |old: &[f32], i: usize| if self.accumulate { f64::from(old[i]) } else { 0.0 };
            let dx = (0..len).map(|i| {
                let k = ch(i);
                let centred = dz[i] - sum_dz[k] / count - xhat(i) * sum_dz_xhat[k] / count;
                gamma[k] / (var[k] + 1e-5).sqrt() * centred + keep(&old_dx, i)
            });
            next("dx", scaled(dx.collect(), 2.0 * big / (small * small)));
            if self.residual {
                next("dres", scaled((0..len).map(|i| dz[i] + keep(&old_dres, i)).collect(), 1.0));
            }
            assert!(rest.is_empty());
        }
    }
}

#[test]
fn norms() {
    for (c, h, w, relu, residual, accumulate) in [
        (3, 5, 7, true, true, true),
        (17, 2, 3, true, false, false),
        (1, 24, 23, false, true, false),
        (8, 1, 1, true, true, false),
    ] {
        let case = norm_case(c, h, w, relu, residual, accumulate);
        COUNTS.into_iter().for_each(|n| case.check(n, 0.0));
        case.check(17, 300.0); // a mean far from 0: the variance must not cancel
    }
}

#[test]
fn norm_of_equal_values_is_beta_and_nan_stays_visible() {
    let case = norm_case(2, 3, 3, true, false, false);
    let [x, _, y, ..] = case.t;
    let mut b = CpuBackend::new(case.net.0.clone(), 1).unwrap();
    b.write_store(Store::Values, &[1.0, 1.0, 0.0, 0.0, 2.0, 2.0, 0.25, 0.5]);
    let mut data = vec![1234.567f32; 4 * 18];
    put(&mut b, x, 4, &data);
    b.norm_forward(case.norm, x, None, true, y, 4);
    assert!(b.read_tensor(y, 4).iter().enumerate().all(|(i, v)| *v == if i / 9 % 2 == 0 { 0.25 } else { 0.5 }));
    data[0] = f32::NAN;
    put(&mut b, x, 4, &data);
    b.norm_forward(case.norm, x, None, true, y, 4);
    assert!(b.read_tensor(y, 4).iter().enumerate().all(|(i, v)| if i / 9 % 2 == 0 { v.is_nan() } else { *v == 0.5 }));
}

#[test]
fn joins_and_pools() {
    let mut net = Net::new();
    let [a, b_in, y, dy, da, db] = [0, 1, 2, 0, 1, 2].map(|halo| net.tensor([3, 4, 5, halo]));
    let (pooled, dpooled) = (net.tensor([3, 1, 1, 0]), net.tensor([3, 1, 1, 1]));
    for n in COUNTS {
        let len = n * 60;
        let [va, vb, vdy, olda, oldb] = [1, 2, 3, 4, 5].map(|s| noise(s, len));
        let vp = noise(6, n * 3);
        let outs = net.run(|b| {
            for (t, v) in [(a, &va), (b_in, &vb), (dy, &vdy), (da, &olda), (db, &oldb)] {
                put(b, t, n, v);
            }
            put(b, dpooled, n, &vp);
            let mut out = vec![];
            poison(b, y);
            b.join_forward(a, Some(b_in), false, y, n);
            out.extend(b.read_tensor(y, n));
            b.join_forward(a, None, true, y, n);
            out.extend(b.read_tensor(y, n));
            b.join_backward(y, true, dy, dst(da, true), Some(dst(db, true)), n);
            out.extend(b.read_tensor(da, n));
            out.extend(b.read_tensor(db, n));
            poison(b, da);
            b.join_backward(y, false, dy, dst(da, false), None, n);
            out.extend(b.read_tensor(da, n));
            b.join_backward(y, true, dy, dst(da, true), Some(dst(da, true)), n);
            out.extend(b.read_tensor(da, n));
            poison(b, pooled);
            b.pool_forward(a, pooled, n);
            out.extend(b.read_tensor(pooled, n));
            b.pool_backward(dpooled, dst(db, true), n);
            out.extend(b.read_tensor(db, n));
            poison(b, db);
            b.pool_backward(dpooled, dst(db, false), n);
            out.extend(b.read_tensor(db, n));
            out
        });
        let (va, vb, vdy, olda, oldb, vp) = (f64s(&va), f64s(&vb), f64s(&vdy), f64s(&olda), f64s(&oldb), f64s(&vp));
        let dz: Vec<f64> = va.iter().zip(&vdy).map(|(y, d)| if *y > 0.0 { *d } else { 0.0 }).collect();
        let mut want = vec![];
        want.extend((0..len).map(|i| va[i] + vb[i]));
        want.extend((0..len).map(|i| va[i].max(0.0)));
        want.extend((0..len).map(|i| olda[i] + dz[i]));
        want.extend((0..len).map(|i| oldb[i] + dz[i]));
        want.extend_from_slice(&vdy);
        want.extend((0..len).map(|i| vdy[i] + 2.0 * dz[i]));
        want.extend((0..n * 3).map(|i| va[i * 20..(i + 1) * 20].iter().sum::<f64>() / 20.0));
        want.extend((0..len).map(|i| oldb[i] + dz[i] + vp[i / 20] / 20.0));
        want.extend((0..len).map(|i| vp[i / 20] / 20.0));
        for (isa, got) in outs {
            assert_close(&format!("{isa:?} n {n}"), &got, &scaled(want.clone(), 1.0));
        }
    }
}

#[test]
fn cross_entropy() {
    let (mut net, classes) = (Net::new(), 7);
    let (logits, dlogits) = (net.tensor([7, 1, 1, 0]), net.tensor([7, 1, 1, 1]));
    for (n, smoothing) in [(1, 0.0), (16, 0.1), (17, 0.0), (33, 0.1)] {
        let z: Vec<f32> = noise(1, n * classes).iter().map(|v| v * 60.0).collect();
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 5 % 7).collect();
        let outs = net.run(|b| {
            put(b, logits, n, &z);
            poison(b, dlogits);
            let loss = b.cross_entropy(logits, &labels, smoothing, Some(dlogits), n);
            assert_eq!(b.cross_entropy(logits, &labels, smoothing, None, n), loss);
            let mut out = b.read_tensor(dlogits, n);
            let beyond = b.read_tensor(dlogits, BATCH.min(n.div_ceil(16) * 16));
            assert!(beyond[n * classes..].iter().all(|v| *v == 0.0));
            out.extend([loss.loss_sum as f32, loss.correct as f32]);
            out
        });
        let (mut want, mut total, mut correct) = (vec![], 0.0, 0.0);
        for i in 0..n {
            let z = f64s(&z[i * classes..(i + 1) * classes]);
            let sum: f64 = z.iter().map(|v| v.exp()).sum();
            let target = |c: usize| smoothing / 7.0 + if c == labels[i] as usize { 1.0 - smoothing } else { 0.0 };
            (0..classes).for_each(|c| want.push((z[c].exp() / sum - target(c)) / n as f64));
            total -= (0..classes).map(|c| target(c) * (z[c] - sum.ln())).sum::<f64>();
            correct += f64::from(u8::from(z.iter().all(|v| *v <= z[labels[i] as usize])));
        }
        want.extend([total, correct]);
        for (isa, got) in outs {
            let scale = |v: &f64| (*v, v.abs().max(0.1));
            assert_close(&format!("{isa:?} n {n}"), &got, &want.iter().map(scale).collect::<Terms>());
        }
    }
}

#[test]
fn ties_go_to_the_lowest_class_and_nan_is_never_correct() {
    let mut net = Net::new();
    let t = net.tensor([3, 1, 1, 0]);
    let mut b = CpuBackend::new(net.0.clone(), 1).unwrap();
    let mut loss = |z: [f32; 3], label: u32| {
        put(&mut b, t, 1, &z);
        b.cross_entropy(t, &[label], 0.0, None, 1)
    };
    assert_eq!([0, 1, 2].map(|l| loss([0.0, 2.0, 2.0], l).correct), [0, 1, 0]);
    for z in [[f32::NAN, 1.0, 2.0], [1.0, f32::NAN, 2.0], [f32::NAN; 3]] {
        for label in 0..3 {
            let got = loss(z, label);
            assert!(got.loss_sum.is_nan() && got.correct == 0, "{z:?} {label}: {got:?}");
        }
    }
    assert!(loss([f32::INFINITY, 0.0, 0.0], 0).loss_sum.is_nan());
    assert_eq!(loss([300.0, -300.0, 0.0], 1).loss_sum, 600.0);
}

#[test]
fn sgd_rounds_each_operation_by_itself() {
    let mut net = Net::new();
    net.param(&[40_000], None);
    let [v0, g0, m0] = [1, 2, 3].map(|s| noise(s, 40_000));
    for nesterov in [false, true] {
        let step = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov };
        for (_, got) in net.run(|b| {
            b.write_store(Store::Values, &v0);
            b.write_store(Store::Grads, &g0);
            b.write_store(Store::Momentum, &m0);
            b.sgd(step);
            [b.read_store(Store::Values), b.read_store(Store::Momentum), b.read_store(Store::Grads)].concat()
        }) {
            for i in 0..40_000 {
                let g = g0[i] + 5e-4f32 * v0[i];
                let m = 0.9f32 * m0[i] + g;
                let d = if nesterov { g + 0.9f32 * m } else { m };
                let want = [v0[i] - 0.1f32 * d, m, g0[i]];
                assert_eq!([0, 1, 2].map(|s| got[s * 40_000 + i].to_bits()), want.map(f32::to_bits), "{i}");
            }
        }
    }
}

#[test]
fn faulty_specs_are_errors() {
    let good = norm_case(2, 3, 3, true, false, false).net.0;
    let fails = |change: &dyn Fn(&mut Spec)| {
        let mut spec = good.clone();
        change(&mut spec);
        let message = CpuBackend::new(spec, 1).err().expect("an error").to_string();
        assert!(message.starts_with("cpu backend: ") && !message.contains('\n'), "{message}");
    };
    fails(&|s| s.batch = 0);
    fails(&|s| s.batch = usize::MAX / 4);
    fails(&|s| s.tensors[0].plane.halo += 1);
    fails(&|s| s.params[1].range.end += 1);
    fails(&|s| s.norms[0].c = 5);
    fails(&|s| s.slots[0].c = u32::MAX);
    let geom = ConvGeom { c: 1, h: 2, w: 2, k: 2, r: 2, s: 1, stride: 1, pad: 0 };
    let conv = |geom: ConvGeom, weight: u32| {
        move |s: &mut Spec| {
            s.params[2].shape = vec![2, 1, 2, 1];
            s.params[2].kept = Some(Arc::from(vec![1, 3]));
            s.convs.push(ConvSpec { geom, weight: ParamId(weight), bias: None });
        }
    };
    let mut fine = good.clone();
    conv(geom, 2)(&mut fine);
    assert!(CpuBackend::new(fine, 1).is_ok());
    fails(&conv(ConvGeom { r: 5, ..geom }, 2));
    fails(&conv(ConvGeom { stride: 0, ..geom }, 2));
    fails(&conv(geom, 9));
    fails(&|s| {
        conv(geom, 2)(s);
        s.params[2].kept = Some(Arc::from(vec![3, 1]));
    });
    fails(&|s| {
        conv(geom, 2)(s);
        s.params[2].kept = Some(Arc::from(vec![1, 4]));
    });
}
