//! Convolutions and poolings in an arena with guards around every tensor, on a backend whose scratch is full of NaN from
//! another layer: the same bytes as on a clean one without guards, and no NaN.

use super::*;
use crate::backend::cpu::CpuBackend;
use crate::backend::cpu::plan::{Kernel, Plan};
use crate::backend::{
    Backend, ConvId, ConvSpec, Finish, Grad, GradDst, Input, Mask, NormId, NormSpec, Normed, ParamId, ParamSpec,
    PoolId, PoolSpec, Store, TensorId, Write,
};
use crate::shape::ConvGeom;
use std::ops::Range;

const BATCH: usize = 33;

const fn square(c: u32, [h, w]: [u32; 2], k: u32, r: u32, stride: u32, pad: u32) -> ConvGeom {
    ConvGeom { c, h, w, k, r, s: r, stride, pad }
}

/// Geometries, and how many of 100 weights are kept.
const LAYERS: [(ConvGeom, u32); 9] = [
    (square(3, [7, 7], 4, 3, 1, 1), 30),
    (square(5, [9, 5], 6, 1, 1, 0), 50), // the backward pass reads both operands where they lie
    (square(4, [7, 9], 3, 1, 2, 0), 70),
    (square(1, [9, 7], 2, 7, 2, 3), 60),
    (square(2, [5, 5], 3, 3, 2, 1), 0),
    (square(3, [5, 7], 4, 3, 1, 0), 100), // the input alone
    (square(37, [1, 1], 10, 1, 1, 0), 100),
    (square(3, [9, 3], 7, 3, 3, 2), 40),
    (square(64, [3, 5], 64, 3, 1, 1), 100), // patches that all tasks share
];

/// One layer's tensors, in this order: x, dx, y, dy, the source of dy, two pooled and their gradients.
struct Ids {
    first: u32,
    weight: Range<usize>,
}

impl Ids {
    fn t(&self, i: u32) -> TensorId {
        TensorId(self.first + i)
    }
}

/// All layers, each with norms of its input and its output, tensors flush against guards if asked for.
fn spec(flush: Option<Flush>) -> (Spec, Vec<Ids>) {
    let mut spec = Spec { batch: BATCH, arena: GUARD_ROOM, ..Spec::default() };
    spec.pools.push(PoolSpec { plane: Plane { c: 1, h: 1, w: 1 }, size: 3, stride: 2, pad: 1 });
    let mut ids = vec![];
    for (g, keep) in LAYERS {
        let first = spec.tensors.len() as u32;
        let pooled = |len: u32| (len - 1) / 2 + 1;
        let (one, max) = ([g.c, 1, 1], [g.c, pooled(g.h), pooled(g.w)]);
        let (input, output) = ([g.c, g.h, g.w], [g.k, g.p(), g.q()]);
        for [c, h, w] in [input, input, output, output, output, one, one, max, max] {
            let plane = Plane { c, h, w };
            let at = match flush {
                None => spec.arena,
                Some(Flush::Start) => spec.arena.next_multiple_of(GUARD_ROOM) + GUARD_ROOM,
                Some(Flush::End) => (spec.arena + plane.room()).next_multiple_of(GUARD_ROOM) - plane.room(),
            };
            spec.tensors.push(TensorSpec::lasting(plane, at));
            spec.arena = at + plane.room() + if flush == Some(Flush::End) { GUARD_ROOM } else { 0 };
        }
        let mut param = |shape: Vec<usize>, kept: Option<Vec<u32>>| {
            let (start, all) = (spec.params.last().map_or(0, |p| p.range.end), shape.iter().product());
            let range = start..start + kept.as_ref().map_or(all, Vec::len);
            spec.params.push(ParamSpec {
                shape,
                kept: kept.map(Into::into),
                decay: true,
                block: None,
                range: range.clone(),
            });
            (ParamId(spec.params.len() as u32 - 1), range)
        };
        let kept = (0..g.weights() as u32).filter(|i| (i.wrapping_mul(2654435761) >> 8) % 100 < keep).collect();
        let shape = [g.k, g.c, g.r, g.s].map(|v| v as usize);
        let (weight, range) = param(shape.into(), (keep < 100).then_some(kept));
        let bias = param(vec![shape[0]], None).0;
        let norms = [g.c, g.k].map(|c| [param(vec![c as usize], None).0, param(vec![c as usize], None).0]);
        ids.push(Ids { first, weight: range });
        spec.convs.push(ConvSpec { geom: g, weight, bias: Some(bias) });
        for (c, [gamma, beta]) in [g.c, g.k].into_iter().zip(norms) {
            let running = spec.running();
            spec.norms.push(NormSpec { c, gamma, beta, running, eps: 1e-5, momentum: 0.1 });
        }
    }
    (spec, ids)
}

fn backend(isa: Isa, kernel: Kernel, threads: usize, flush: Option<Flush>) -> (CpuBackend, Vec<Ids>) {
    let (spec, ids) = spec(flush);
    let mut plan = Plan::default_for(&spec, LAYERS.map(|_| "layer"));
    for l in &mut plan.layers {
        (l.plan.forward, l.plan.data, l.plan.weight) = (kernel, kernel, kernel);
        if l.geom().c == 64 {
            l.plan.cut = [3, 2]; // windows into the shared patches
        }
    }
    let b = CpuBackend::with_plan(spec, threads, isa, Some(&plan)).unwrap();
    let at = |i: usize| {
        // SAFETY: inside the arena.
        let base = unsafe { b.arena.view(&TensorSpec::lasting(Plane { c: 1, h: 1, w: 1 }, 0)).plane_at(0, 0) };
        base.wrapping_add(i * BATCH.div_ceil(LANES) * LANES).cast::<u8>()
    };
    for t in flush.into_iter().flat_map(|f| b.spec.tensors.iter().map(move |t| (f, t))) {
        // SAFETY: GUARD_ROOM on that side is nobody's, and begins or ends where the tensor does, at a page.
        match t {
            (Flush::Start, t) => unsafe { forbid(at(t.at).wrapping_sub(GUARD)) },
            (Flush::End, t) => unsafe { forbid(at(t.at + t.plane.room())) },
        }
    }
    (b, ids)
}

/// Numbers in the first `n` images, NaN in the others.
fn put(b: &mut CpuBackend, t: TensorId, n: usize, seed: u64) {
    let len = b.spec.tensors[t.0 as usize].plane.len();
    b.write_tensor(t, BATCH, &vec![f32::NAN; BATCH * len]);
    if n > 0 {
        b.write_tensor(t, n, &noise(seed, n * len));
    }
}

/// Every op on layer `i` with `n` images of numbers (`clean`) or NaN; everything written, in one order.
fn run(b: &mut CpuBackend, ids: &[Ids], i: usize, n: usize, fused: bool, clean: bool) -> Vec<f32> {
    let (l, g) = (&ids[i], LAYERS[i].0);
    let [x, dx, y, dy, source] = [0, 1, 2, 3, 4].map(|j| l.t(j));
    let norms = [2 * i, 2 * i + 1].map(|n| NormId(n as u32));
    let numbers = if clean { n } else { 0 };
    let stored = b.spec.stored();
    b.write_store(Store::Values, &noise(1, stored));
    b.write_store(Store::Grads, &vec![f32::NAN; stored]);
    let running: Vec<f32> = noise(2, b.spec.running()).iter().map(|v| v.abs() + 0.1).collect();
    b.write_store(Store::Running, &running);
    put(b, x, numbers, 3);
    put(b, source, numbers, 4);
    [y, dy, dx].into_iter().for_each(|t| put(b, t, 0, 0));
    b.norm_running(norms[0]);
    // A norm needs two numbers a channel.
    let through = fused && n as u32 * g.p() * g.q() > 1;
    let input = if fused { Input { t: x, norm: Some(norms[0]), relu: true } } else { Input::plain(x) };
    let mut out = vec![];
    b.conv_forward(ConvId(i as u32), input, y, through.then_some(norms[1]), n);
    out.extend(b.read_tensor(y, n));
    let normed = through.then_some(Normed { norm: norms[1], x: y });
    let finish = Finish { mask: Mask::All, reduce: [normed, None] };
    b.copy_backward(Grad::plain(source), GradDst { t: dy, write: Write::Overwrite, finish }, n);
    let grad = Grad { t: dy, norm: normed };
    let last = Finish { mask: Mask::Positive(input), reduce: [fused.then_some(Normed { norm: norms[0], x }), None] };
    for (write, finish) in [(Write::Overwrite, Finish::default()), (Write::Accumulate, last)] {
        b.conv_backward(ConvId(i as u32), input, grad, Some(GradDst { t: dx, write, finish }), n);
        out.extend(b.read_tensor(dx, n));
    }
    out.extend(&b.read_store(Store::Grads)[l.weight.clone()]);
    out.extend(&b.read_store(Store::Running)[b.spec.norms[2 * i].running..][..2 * (g.c + g.k) as usize]);
    for (j, pool) in [(5, None), (7, Some(PoolId(0)))] {
        let (y, dy) = (l.t(j), l.t(j + 1));
        put(b, y, 0, 0);
        put(b, dy, numbers, 5);
        let to = GradDst { t: dx, write: Write::Overwrite, finish: last };
        match pool {
            None => b.pool_forward(input, y, n),
            Some(pool) => b.max_pool_forward(pool, input, y, n),
        }
        match pool {
            None => b.pool_backward(Grad::plain(dy), to, n),
            Some(pool) => b.max_pool_backward(pool, input, Grad::plain(dy), to, n),
        }
        out.extend(b.read_tensor(y, n));
        out.extend(b.read_tensor(dx, n));
    }
    b.join_forward(input, Some(Input::plain(x)), fused, dx, n);
    out.extend(b.read_tensor(dx, n));
    out
}

#[test]
fn poisoned_scratch_and_guarded_tensors_change_no_byte() {
    for (isa, kernel) in sets().flat_map(|isa| [Kernel::Sparse, Kernel::Dense].map(|k| (isa, k))) {
        let (mut clean, ids) = backend(isa, kernel, 1, None);
        let mut used = Flush::BOTH.map(|f| backend(isa, kernel, 2, Some(f)).0);
        for (i, (round, n)) in (0..LAYERS.len()).flat_map(|i| [1, 15, 16, 17].map(|n| (i, n))).enumerate() {
            let (layer, fused) = (round, i % 2 == 0);
            let what = format!("{isa:?} {kernel:?} {:?}, {n} images, fused {fused}", LAYERS[layer].0);
            let want = run(&mut clean, &ids, layer, n, fused, true);
            assert!(want.iter().all(|v| v.is_finite()), "{what}: {:?}", want.iter().position(|v| !v.is_finite()));
            for (side, b) in used.iter_mut().enumerate() {
                // The shared patches are filled by the last layer alone.
                let other = if layer == LAYERS.len() - 1 { layer } else { (layer + 1 + n % 8) % LAYERS.len() };
                let poisoned = run(b, &ids, other, BATCH, !fused, false);
                assert!(poisoned.iter().any(|v| v.is_nan()), "{what}: no poison");
                let got = run(b, &ids, layer, n, fused, true);
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                let differs = got.iter().zip(&want).position(|p| !same(p));
                assert!(differs.is_none(), "{what} on side {side}: number {differs:?} of {}", want.len());
            }
        }
    }
}
