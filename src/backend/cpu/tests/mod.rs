//! Every op against f64 loops, on every instruction set of this machine and 1, 2, 3 threads (same bytes), with NaN in all
//! that must not matter: outputs, images beyond `n`.

mod ops;

use super::*;
use std::sync::Arc;

const BATCH: usize = 33;
const COUNTS: [usize; 5] = [1, 15, 16, 17, 33];

/// Repeatable numbers in [-1, 1).
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 40) as f32 - 8388608.0) / 8388608.0
    };
    (0..len).map(|_| next()).collect()
}

/// A spec under construction; each tensor has a slot of its own.
#[derive(Clone, Default)]
struct Net(Spec);

impl Net {
    fn new() -> Self {
        Net(Spec { batch: BATCH, ..Spec::default() })
    }

    fn tensor(&mut self, [c, h, w, halo]: [u32; 4]) -> TensorId {
        let plane = Plane { c, h, w, halo };
        self.0.tensors.push(TensorSpec { plane, slot: self.0.slots.len() as u32 });
        self.0.slots.push(plane);
        TensorId(self.0.tensors.len() as u32 - 1)
    }

    fn param(&mut self, shape: &[usize], kept: Option<Vec<u32>>) -> ParamId {
        let (start, len) = (self.0.stored(), kept.as_ref().map_or(shape.iter().product(), Vec::len));
        let kept = kept.map(Arc::from);
        self.0.params.push(ParamSpec { shape: shape.to_vec(), kept, range: start..start + len });
        ParamId(self.0.params.len() as u32 - 1)
    }

    fn norm(&mut self, c: u32) -> NormId {
        let (gamma, beta) = (self.param(&[c as usize], None), self.param(&[c as usize], None));
        let running = self.0.running();
        self.0.norms.push(NormSpec { c, gamma, beta, running, eps: 1e-5, momentum: 0.1 });
        NormId(self.0.norms.len() as u32 - 1)
    }

    /// Runs `f` on a fresh backend of each instruction set and thread count: (set, output) with equal bytes for all
    /// thread counts. Afterwards every halo must still be zero.
    fn run(&self, f: impl Fn(&mut CpuBackend) -> Vec<f32>) -> Vec<(Isa, Vec<f32>)> {
        let mut out = vec![];
        for isa in [Isa::Avx2, Isa::Portable].into_iter().filter(|i| i.available()) {
            let mut first: Option<Vec<f32>> = None;
            for threads in [1, 2, 3] {
                let mut b = CpuBackend::with_isa(self.0.clone(), threads, isa).unwrap();
                let got = f(&mut b);
                halos_are_zero(&b);
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                match &first {
                    Some(want) => assert!(bits(want) == bits(&got), "{isa:?}: {threads} threads changed bytes"),
                    None => first = Some(got),
                }
            }
            out.push((isa, first.unwrap()));
        }
        out
    }
}

fn halos_are_zero(b: &CpuBackend) {
    for t in &b.spec.tensors {
        let v = b.arena.view_ref(t);
        let halo = t.plane.halo as usize;
        for i in 0..blocks(BATCH) * v.channels() * (v.chan / v.row) * (v.row / 16) {
            let (col, row) = (i % (v.row / 16), i / (v.row / 16) % (v.chan / v.row));
            if col < halo || row < halo || col >= halo + v.cols() || row >= halo + v.rows() {
                // SAFETY: inside the tensor's slot.
                let px = unsafe { std::slice::from_raw_parts(v.padded().add(i * 16), 16) };
                assert!(px.iter().all(|x| x.to_bits() == 0), "halo of {:?} written at {row}, {col}", t.plane);
            }
        }
    }
}

/// Writes `n` images and NaN into all others.
fn put(b: &mut CpuBackend, t: TensorId, n: usize, data: &[f32]) {
    let p = b.spec.tensors[t.0 as usize].plane;
    let mut all = vec![f32::NAN; BATCH * (p.c * p.h * p.w) as usize];
    all[..data.len()].copy_from_slice(data);
    assert_eq!(data.len() * BATCH, all.len() * n);
    b.write_tensor(t, BATCH, &all);
}

/// NaN everywhere.
fn poison(b: &mut CpuBackend, t: TensorId) {
    put(b, t, 0, &[]);
}

/// `want` holds (value, sum of magnitudes of its terms).
fn assert_close(what: &str, got: &[f32], want: &[(f64, f64)]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, (w, mag))) in got.iter().zip(want).enumerate() {
        let err = (f64::from(*g) - w).abs();
        assert!(err <= 1e-6 * mag + 1e-30, "{what}[{i}]: got {g}, want {w}, sum of magnitudes {mag}");
    }
}

struct Conv {
    net: Net,
    g: ConvGeom,
    kept: Vec<u32>,
    conv: ConvId,
    x: TensorId,
    y: TensorId,
    bias: bool,
}

/// `keep` of 100 positions kept (101: stored dense), the second output channel left empty.
fn conv(g: ConvGeom, keep: u32, extra_halo: u32, bias: bool) -> Conv {
    let mut net = Net::new();
    net.param(&[5], None); // ranges do not begin at 0
    let row = g.c * g.r * g.s;
    let pick = |i: &u32| (i.wrapping_mul(2654435761) >> 8) % 100 < keep && (keep >= 100 || i / row != 1);
    let kept: Vec<u32> = (0..g.weights() as u32).filter(pick).collect();
    let stored = (keep < 101).then(|| kept.clone());
    let weight = net.param(&[g.k as usize, g.c as usize, g.r as usize, g.s as usize], stored);
    let bias_id = bias.then(|| net.param(&[g.k as usize], None));
    net.0.convs.push(ConvSpec { geom: g, weight, bias: bias_id });
    // A decoy of the same plane with another halo comes first, so the planned offsets must be refitted.
    net.tensor([g.c, g.h, g.w, g.input_halo() + extra_halo + 1]);
    let x = net.tensor([g.c, g.h, g.w, g.input_halo() + extra_halo]);
    let y = net.tensor([g.k, g.p(), g.q(), g.output_halo() + 2 * extra_halo]);
    Conv { net, g, kept, conv: ConvId(0), x, y, bias }
}

impl Conv {
    /// Calls `f(x index, weight entry, y index)` for every product of the convolution over `n` images.
    fn products(&self, n: usize, mut f: impl FnMut(usize, usize, usize)) {
        let g = self.g;
        let [c, h, w, k, r, s, st, pad] = [g.c, g.h, g.w, g.k, g.r, g.s, g.stride, g.pad].map(|v| v as i64);
        let (p, q) = (i64::from(g.p()), i64::from(g.q()));
        for (e, &pos) in self.kept.iter().enumerate() {
            let pos = i64::from(pos);
            let (kk, cc, rr, ss) = (pos / (c * r * s), pos / (r * s) % c, pos / s % r, pos % s);
            for i in 0..n as i64 {
                for pp in 0..p {
                    for qq in 0..q {
                        let (row, col) = (pp * st + rr - pad, qq * st + ss - pad);
                        if (0..h).contains(&row) && (0..w).contains(&col) {
                            let x = ((i * c + cc) * h + row) * w + col;
                            let y = ((i * k + kk) * p + pp) * q + qq;
                            f(x as usize, e, y as usize);
                        }
                    }
                }
            }
        }
    }

    fn check(&self, n: usize) {
        let (xs, ys) = ((self.g.c * self.g.h * self.g.w) as usize, (self.g.k * self.g.p() * self.g.q()) as usize);
        let (x, dy, old) = (noise(1, n * xs), noise(2, n * ys), noise(3, n * xs));
        let values = noise(4, self.net.0.stored());
        let (at, k) = (5, self.g.k as usize);
        let entries = self.kept.len();
        let what = format!("{:?} kept {entries} n {n}", self.g);
        let outs = self.net.run(|b| {
            b.write_store(Store::Values, &values);
            b.write_store(Store::Grads, &vec![f32::NAN; values.len()]);
            put(b, self.x, n, &x);
            poison(b, self.y);
            b.conv_forward(self.conv, self.x, self.y, n);
            let mut out = b.read_tensor(self.y, n);
            put(b, self.y, n, &dy);
            b.conv_backward_weight(self.conv, self.x, self.y, n);
            out.extend(&b.read_store(Store::Grads)[at..]);
            poison(b, self.x);
            b.conv_backward_data(self.conv, self.y, Dst { t: self.x, write: Write::Overwrite }, n);
            out.extend(b.read_tensor(self.x, n));
            put(b, self.x, n, &old);
            b.conv_backward_data(self.conv, self.y, Dst { t: self.x, write: Write::Accumulate }, n);
            out.extend(b.read_tensor(self.x, n));
            out
        });
        let d = |v: &[f32], i: usize| f64::from(v[i]);
        let add = |acc: &mut (f64, f64), v: f64| *acc = (acc.0 + v, acc.1 + v.abs());
        let per = (self.g.p() * self.g.q()) as usize;
        let mut y = vec![(0.0, 0.0); n * ys];
        let mut db = vec![(0.0, 0.0); if self.bias { k } else { 0 }];
        if self.bias {
            (0..n * ys).for_each(|i| add(&mut y[i], d(&values, at + entries + i / per % k)));
            (0..n * ys).for_each(|i| add(&mut db[i / per % k], d(&dy, i)));
        }
        let (mut dw, mut dx) = (vec![(0.0, 0.0); entries], vec![(0.0, 0.0); n * xs]);
        self.products(n, |xi, e, yi| {
            add(&mut y[yi], d(&x, xi) * d(&values, at + e));
            add(&mut dw[e], d(&x, xi) * d(&dy, yi));
            add(&mut dx[xi], d(&values, at + e) * d(&dy, yi));
        });
        let mut sum = dx.clone();
        sum.iter_mut().zip(&old).for_each(|(s, o)| add(s, f64::from(*o)));
        for (isa, got) in outs {
            let mut rest = &got[..];
            for (name, want) in [("y", &y), ("dw", &dw), ("db", &db), ("dx", &dx), ("dx accumulated", &sum)] {
                let (head, tail) = rest.split_at(want.len());
                assert_close(&format!("{isa:?} {what} {name}"), head, want);
                rest = tail;
            }
            assert!(rest.is_empty());
        }
    }
}

#[test]
fn convolutions() {
    let g = |c, h, w, k, r, stride, pad| ConvGeom { c, h, w, k, r, s: r, stride, pad };
    for (geom, keep, halo, bias) in [
        (g(3, 7, 7, 4, 3, 2, 1), 30, 0, false),   // 7x7 -> 4x4
        (g(40, 5, 5, 6, 3, 1, 1), 90, 1, true),   // several channel blocks each way
        (g(6, 5, 5, 40, 3, 2, 1), 90, 1, true),   //
        (g(2, 9, 16, 3, 3, 1, 1), 101, 0, true),  // stored dense, tiles of unequal width
        (g(4, 8, 8, 5, 1, 2, 0), 60, 1, false),   // classes without a tap
        (g(4, 7, 6, 5, 1, 1, 0), 100, 0, true),   // masked with everything kept
        (g(2, 12, 11, 3, 7, 2, 3), 40, 0, false), //
        (g(3, 8, 8, 3, 3, 3, 1), 50, 0, false),   // a step without constant
        (g(3, 4, 4, 3, 3, 1, 0), 50, 2, false),   // no padding, dy has a halo
        (g(2, 1, 1, 3, 3, 2, 1), 80, 0, false),   // image smaller than the stride
        (g(37, 1, 1, 10, 1, 1, 0), 101, 0, true), // linear
        (g(5, 3, 3, 4, 3, 1, 1), 0, 0, true),     // nothing kept
    ] {
        let case = conv(geom, keep, halo, bias);
        COUNTS.into_iter().for_each(|n| case.check(n));
    }
    let rect = ConvGeom { c: 2, h: 5, w: 8, k: 3, r: 1, s: 5, stride: 1, pad: 2 };
    conv(rect, 50, 0, false).check(17);
}

#[test]
fn transposed_values_follow_every_change_of_the_weights() {
    let g = ConvGeom { c: 2, h: 4, w: 4, k: 2, r: 3, s: 3, stride: 1, pad: 1 };
    let c = conv(g, 101, 0, false);
    let mut b = CpuBackend::new(c.net.0.clone(), 1).unwrap();
    let stored = c.net.0.stored();
    put(&mut b, c.y, 2, &noise(1, 2 * 32));
    let mut dx = || {
        b.conv_backward_data(c.conv, c.y, Dst { t: c.x, write: Write::Overwrite }, 2);
        b.read_tensor(c.x, 2)
    };
    assert!(dx().iter().all(|v| *v == 0.0));
    let mut seen = vec![];
    for step in 0..3 {
        let sgd = SgdStep { lr: 0.5, momentum: 0.9, weight_decay: 0.1, nesterov: false };
        match step {
            0 => b.write_store(Store::Values, &noise(2, stored)),
            1 => b.sgd(sgd), // zero gradients: the decay alone moves the weights
            _ => b.write_store(Store::Values, &noise(5, stored)),
        }
        b.conv_backward_data(c.conv, c.y, Dst { t: c.x, write: Write::Overwrite }, 2);
        let now = b.read_tensor(c.x, 2);
        assert!(!seen.contains(&now));
        seen.push(now);
    }
    let ratio = seen[1][5] / seen[0][5];
    assert!((ratio - 0.95).abs() < 1e-5, "{ratio}");
}

#[test]
fn bytes_are_counted_once() {
    let g = ConvGeom { c: 4, h: 8, w: 8, k: 4, r: 3, s: 3, stride: 1, pad: 1 };
    let c = conv(g, 20, 0, false);
    let b = CpuBackend::new(c.net.0.clone(), 2).unwrap();
    let (bytes, stored, nnz) = (b.bytes(), 4 * (5 + c.kept.len() as u64), 4 * c.kept.len() as u64);
    assert_eq!((bytes.values, bytes.gradients, bytes.momentum), (stored, stored, stored));
    assert_eq!(bytes.operand_copies, nnz);
    assert!(bytes.indices >= 4 * nnz && bytes.indices <= 4 * nnz + 200, "{} for {nnz}", bytes.indices);
    assert!(bytes.activations >= 4 * 48 * (4 * 100 * 2) as u64);
    assert!(b.describe().ends_with(", 2 threads") && b.describe().starts_with("cpu "));
}
