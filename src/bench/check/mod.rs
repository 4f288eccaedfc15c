//! Is what will be timed right? Each operation of one step of the very network, batch and threads is checked against f64
//! arithmetic on its own operands, while the step runs.
//!
//! Before an operation its operands are copied from the backend and what it overwrites is poisoned with NaN; after it,
//! outputs are recomputed one by one from the copies, each to within the rounding that f32 may do to it:
//! `eps * (16 + 2 sqrt(terms)) * sum |terms|`, and where tensors and factors are rounded more than sums, by as much as that
//! may do. No error travels from one operation to the next, so the limits stay tight in
//! a network of any depth and at any size, where a comparison of whole steps in f64 would take minutes.
//!
//! Recomputed are: some hundred outputs and data gradients of each convolution, in every channel and in the corners of the
//! batch, and some of its weight gradients; as many values of each addition and pooling; all statistics and sums of the
//! batch norms, all of the loss and of SGD; and of every tensor written and every gradient stored, that it is finite.

mod conv;
mod operand;
mod ops;
mod pool;

use crate::backend::{
    Backend, ConvId, Grad, GradDst, Input, Mask, NormId, Plane, Real, Rounding, Store, TensorId, TensorSpec, Write,
};
use crate::graph::Graph;
use crate::rng::{Purpose, Stream};
use operand::{Channel, Gradient, Held, Num, Value, statistics, sums};
use std::ops::Range;
use std::sync::Arc;

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Verified {
    /// Operations.
    pub operations: u64,
    /// Numbers recomputed in f64.
    pub values: u64,
    /// The largest error, as a share of what rounding may do: at most 1.
    pub worst: f64,
}

/// Names of convolutions and batch norms, for messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) convs: Vec<String>,
    pub(super) norms: Vec<String>,
}

impl Names {
    pub(super) fn of(graph: &Graph) -> Self {
        let convs = graph.convs().iter().map(|c| c.name.clone()).collect();
        Names { convs, norms: graph.norms().iter().map(|n| n.name.clone()).collect() }
    }
}

/// Compares, counts, and keeps the first fault.
struct Tally {
    done: Verified,
    rounding: Rounding,
    fault: Option<String>,
}

impl Tally {
    fn compare(&mut self, got: f64, want: Num, terms: usize, what: impl FnOnce() -> String) {
        let mut limit = limit(want, terms);
        let Rounding { eps, tiny } = self.rounding;
        if eps > f64::from(f32::EPSILON) {
            limit += 1.5 * eps * want.size + tiny; // two factors and the stored result, each off by half of eps at most
        }
        let error = (got - want.v).abs();
        self.done.values += 1;
        if error <= limit {
            self.done.worst = self.done.worst.max(error / limit);
        } else {
            // NaN is no good either.
            self.fail(|| format!("{} is {got:e}, wanted {:e} to within {limit:.1e}", what(), want.v));
        }
    }

    fn fail(&mut self, what: impl FnOnce() -> String) {
        self.fault.get_or_insert_with(what);
    }
}

/// What rounding in f32 may do to a sum.
fn limit(n: Num, terms: usize) -> f64 {
    f64::from(f32::EPSILON) * (16.0 + 2.0 * (terms as f64).sqrt()) * n.size + f64::from(f32::MIN_POSITIVE)
}

/// A gradient that must be in the store once the backward pass is over: reading the store each time would take too long.
struct Later {
    at: usize,
    want: Num,
    terms: usize,
    what: &'static str,
    name: String,
}

/// Where a gradient goes, with what the finish needs as it was before.
struct Target<R> {
    dst: GradDst,
    old: Option<Held<R>>,
    mask: Option<Value<R>>,
    reduce: Vec<(NormId, Arc<Held<R>>)>,
}

/// Checks the operations of one step; see the module.
pub(super) struct Check<R> {
    names: Names,
    values: Vec<R>,
    running: Vec<R>,
    norms: Vec<Vec<Channel>>,
    later: Vec<Later>,
    /// Parts of the gradient store that were written.
    written: Vec<Range<usize>>,
    draws: u64,
    tally: Tally,
}

impl<R: Real> Check<R> {
    /// For one step of `b`, whose gradients it poisons.
    pub(super) fn new<B: Backend<Real = R>>(b: &mut B, names: Names) -> Self {
        b.write_store(Store::Grads, &vec![R::from_f64(f64::NAN); b.spec().stored()]);
        Check {
            names,
            values: b.read_store(Store::Values),
            running: b.read_store(Store::Running),
            norms: vec![vec![]; b.spec().norms.len()],
            later: vec![],
            written: vec![],
            draws: 0,
            tally: Tally { done: Verified::default(), rounding: b.rounding(), fault: None },
        }
    }

    /// What was found. Gradients that no `sgd` has used yet are checked now.
    ///
    /// # Errors
    /// The first fault.
    pub(super) fn finish<B: Backend<Real = R>>(mut self, b: &B) -> Result<Verified, String> {
        self.settle(b);
        self.tally.fault.map_or(Ok(self.tally.done), Err)
    }

    fn operation(&mut self) {
        self.tally.done.operations += 1;
    }

    /// Checks the gradients that must be in their store by now.
    pub(super) fn settle<B: Backend<Real = R>>(&mut self, b: &B) {
        let grads = b.read_store(Store::Grads);
        for l in self.later.drain(..) {
            self.tally.compare(grads[l.at].to_f64(), l.want, l.terms, || format!("{} of {}", l.what, l.name));
        }
        for range in self.written.drain(..) {
            if let Some(i) = range.clone().find(|&i| !grads[i].to_f64().is_finite()) {
                self.tally.fail(|| format!("gradient {i} of the store ({range:?}) is {:?}", grads[i]));
            }
        }
    }

    fn conv_name(&self, conv: ConvId) -> String {
        self.names.convs.get(conv.0 as usize).cloned().unwrap_or_else(|| format!("convolution {}", conv.0))
    }

    fn norm_name(&self, norm: NormId) -> String {
        self.names.norms.get(norm.0 as usize).cloned().unwrap_or_else(|| format!("batch norm {}", norm.0))
    }

    fn param(&self, range: &Range<usize>) -> &[R] {
        &self.values[range.clone()]
    }

    fn value<B: Backend<Real = R>>(&self, b: &B, x: Input, n: usize) -> Value<R> {
        let norm = x.norm.map(|norm| self.norms[norm.0 as usize].clone());
        Value { t: Arc::new(held(b, x.t, n)), norm, relu: x.relu }
    }

    fn gradient<B: Backend<Real = R>>(&self, b: &B, g: Grad, n: usize) -> Gradient<R> {
        let norm = g.norm.map(|m| (self.norms[m.norm.0 as usize].clone(), Arc::new(held(b, m.x, n))));
        Gradient { t: Arc::new(held(b, g.t, n)), norm }
    }

    /// Statistics of `x`, as a norm takes them, and what becomes of the running ones.
    fn take_statistics<B: Backend<Real = R>>(&mut self, b: &B, norm: NormId, x: &Held<R>) {
        let spec = b.spec().norms[norm.0 as usize];
        let [gamma, beta] = [spec.gamma, spec.beta].map(|p| b.spec().params[p.0 as usize].range.clone());
        let channels = statistics(&spec, x, self.param(&gamma), self.param(&beta));
        let (c, count, name) = (spec.c as usize, x.count(), self.norm_name(norm));
        let running = b.read_store(Store::Running);
        for (i, ch) in channels.iter().enumerate() {
            let mean = Num { v: ch.mean, size: ch.mean_size };
            let var = Num::exact(ch.var * count / (count - 1.0));
            for (what, at, new) in [("running mean", i, mean), ("running variance", c + i, var)] {
                let old = Num::exact(self.running[spec.running + at].to_f64());
                let want = old.scaled(1.0 - spec.momentum).plus(new.scaled(spec.momentum));
                let got = running[spec.running + at].to_f64();
                self.tally.compare(got, want, count as usize, || format!("{what} of {name}, channel {i}"));
            }
        }
        self.running = running;
        self.norms[norm.0 as usize] = channels;
    }

    /// Copies what the finish of `dst` reads, and poisons what it overwrites.
    fn target<B: Backend<Real = R>>(&self, b: &mut B, dst: GradDst, n: usize) -> Target<R> {
        let old = (dst.write == Write::Accumulate).then(|| held(b, dst.t, n));
        let mask = match dst.finish.mask {
            Mask::All => None,
            Mask::Positive(x) => Some(self.value(b, Input { relu: false, ..x }, n)),
        };
        let reduce: Vec<_> =
            dst.finish.reduce.into_iter().flatten().map(|m| (m.norm, m.x, Arc::new(held(b, m.x, n)))).collect();
        let mut reads = reduce.iter().map(|r| r.1).chain(match dst.finish.mask {
            Mask::Positive(x) => Some(x.t),
            Mask::All => None,
        });
        if old.is_none() && !reads.any(|t| overlap(b, t, dst.t)) {
            poison(b, dst.t, n);
        }
        Target { dst, old, mask, reduce: reduce.into_iter().map(|(norm, _, x)| (norm, x)).collect() }
    }

    /// Compares a gradient with `base` (value and terms at a place), which the target's old content, mask and sums follow.
    fn check_target<B: Backend<Real = R>>(
        &mut self,
        b: &B,
        to: Target<R>,
        n: usize,
        points: usize,
        what: &str,
        base: impl Fn([usize; 4]) -> Option<(Num, usize)>,
    ) {
        let new = held(b, to.dst.t, n);
        self.finite(&new, what);
        for at in self.points(new.plane, n, points) {
            let Some((mut want, terms)) = base(at) else { continue };
            if let Some(old) = &to.old {
                want = want.plus(Num::exact(old.at(at)));
            }
            if let Some(mask) = &to.mask {
                let m = mask.at(at);
                if mask.norm.is_some() && m.v.abs() <= limit(m, 0) {
                    continue; // rounding may open or close it
                }
                want = if m.v > 0.0 { want } else { Num::default() };
            }
            self.tally.compare(new.at(at), want, terms, || place(what, at));
        }
        for (norm, x) in to.reduce {
            sums(&mut self.norms[norm.0 as usize], &new, &x);
            let (spec, count) = (b.spec().norms[norm.0 as usize], new.count());
            let [gamma, beta] = [spec.gamma, spec.beta].map(|p| b.spec().params[p.0 as usize].range.clone());
            for (i, ch) in self.norms[norm.0 as usize].clone().into_iter().enumerate() {
                for (what, at, mean) in
                    [("scale's gradient", gamma.start, ch.gx), ("shift's gradient", beta.start, ch.g)]
                {
                    let (at, want, name) = (at + i, mean.scaled(count), self.norm_name(norm));
                    self.later.push(Later { at, want, terms: count as usize, what, name });
                }
            }
        }
    }

    /// Every number of a tensor that was written.
    fn finite(&mut self, t: &Held<R>, what: &str) {
        if let Some(i) = t.data.iter().position(|v| !v.to_f64().is_finite()) {
            let i = [t.plane.w, t.plane.h, t.plane.c].iter().fold((i, vec![]), |(i, mut at), &len| {
                at.insert(0, i % len as usize);
                (i / len as usize, at)
            });
            let at = [i.0, i.1[0], i.1[1], i.1[2]];
            self.tally.fail(|| format!("{} is {}", place(what, at), t.at(at)));
        }
    }

    /// Places to look at: the corners of batch and plane in the first and last channel, and `count` random ones that take
    /// the channels in turn.
    fn points(&mut self, plane: Plane, n: usize, count: usize) -> Vec<[usize; 4]> {
        let lengths = [n, plane.c as usize, plane.h as usize, plane.w as usize];
        let corner = |i: usize| std::array::from_fn(|d| if i >> d & 1 == 1 { lengths[d] - 1 } else { 0 });
        let mut points: Vec<[usize; 4]> = (0..16).map(corner).collect();
        let stream = Stream::new(0, Purpose::Data, "bench check");
        for i in 0..count {
            let mut at = lengths.map(|len| {
                self.draws += 1;
                stream.below(self.draws, len as u64) as usize
            });
            at[1] = i % lengths[1];
            points.push(at);
        }
        points
    }
}

fn place(what: &str, [n, c, h, w]: [usize; 4]) -> String {
    format!("{what}: image {n}, channel {c}, row {h}, column {w}")
}

/// A copy of a tensor.
fn held<B: Backend>(b: &B, t: TensorId, n: usize) -> Held<B::Real> {
    Held { plane: b.spec().tensors[t.0 as usize].plane, n, data: b.read_tensor(t, n) }
}

/// NaN in the whole tensor.
fn poison<B: Backend>(b: &mut B, t: TensorId, n: usize) {
    let len = n * b.spec().tensors[t.0 as usize].plane.len();
    b.write_tensor(t, n, &vec![B::Real::from_f64(f64::NAN); len]);
}

fn overlap<B: Backend>(b: &B, x: TensorId, y: TensorId) -> bool {
    let end = |t: TensorSpec| t.at + t.plane.room();
    let (x, y) = (b.spec().tensors[x.0 as usize], b.spec().tensors[y.0 as usize]);
    x.at < end(y) && y.at < end(x)
}
