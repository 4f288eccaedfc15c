//! Three backends side by side: the one under test, the reference, and the reference on absolute values, whose results
//! are the sums of |a*b| that rounding errors scale with.

use super::operand::Channel;
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::backend::{
    Backend, ConvId, ConvSpec, NormId, NormSpec, ParamId, ParamSpec, Plane, PoolId, PoolSpec, Real, Rounding, Spec,
    Store, TensorId, TensorSpec,
};
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::shape::ConvGeom;

/// `len` standard normal numbers that depend on `name` only.
pub fn normal(name: &str, len: usize) -> Vec<f64> {
    let stream = Stream::new(7, Purpose::Data, name);
    (0..len as u64).map(|i| stream.normal(i)).collect()
}

/// Builds a [`Spec`]; every tensor has a place of its own, with a guard tensor behind it that no op touches.
pub struct Build(pub Spec);

impl Build {
    pub fn new(batch: usize) -> Build {
        let mut b = Build(Spec { batch, ..Spec::default() });
        b.param(&[3], None); // belongs to no layer: nothing but sgd may touch it
        b.place([1, 1, 1]);
        b
    }

    fn place(&mut self, [c, h, w]: [u32; 3]) -> TensorId {
        let plane = Plane { c, h, w };
        self.0.tensors.push(TensorSpec::lasting(plane, self.0.arena));
        self.0.arena += plane.room();
        TensorId(self.0.tensors.len() as u32 - 1)
    }

    pub fn tensor(&mut self, chw: [u32; 3]) -> TensorId {
        let t = self.place(chw);
        self.place([1, 1, 1]);
        t
    }

    pub fn tensors<const N: usize>(&mut self, chw: [u32; 3]) -> [TensorId; N] {
        [(); N].map(|()| self.tensor(chw))
    }

    pub fn param(&mut self, shape: &[usize], kept: Option<Vec<u32>>) -> ParamId {
        let start = self.0.stored();
        let len = kept.as_ref().map_or(shape.iter().product(), Vec::len);
        let kept = kept.map(Into::into);
        self.0.params.push(ParamSpec {
            shape: shape.to_vec(),
            kept,
            decay: true,
            block: None,
            range: start..start + len,
        });
        ParamId(self.0.params.len() as u32 - 1)
    }

    pub fn conv(&mut self, geom: ConvGeom, kept: Option<Vec<u32>>, bias: bool) -> ConvId {
        let shape = [geom.k, geom.c, geom.r, geom.s].map(|v| v as usize);
        let linear = (geom.h, geom.w) == (1, 1) && bias;
        let weight = self.param(if linear { &shape[..2] } else { &shape }, kept);
        let bias = bias.then(|| self.param(&shape[..1], None));
        self.0.convs.push(ConvSpec { geom, weight, bias });
        ConvId(self.0.convs.len() as u32 - 1)
    }

    pub fn norm(&mut self, c: u32) -> NormId {
        let (gamma, beta) = (self.param(&[c as usize], None), self.param(&[c as usize], None));
        let running = self.0.running();
        self.0.norms.push(NormSpec { c, gamma, beta, running, eps: 1e-5, momentum: 0.1 });
        NormId(self.0.norms.len() as u32 - 1)
    }

    pub fn pool(&mut self, [c, h, w]: [u32; 3], size: u32, stride: u32, pad: u32) -> PoolId {
        self.0.pools.push(PoolSpec { plane: Plane { c, h, w }, size, stride, pad });
        PoolId(self.0.pools.len() as u32 - 1)
    }
}

/// Something an op writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Tensor(TensorId),
    Grad(ParamId),
    Running(NormId),
    Values,
    Momentum,
}

/// A written place, what is wanted there, and what its error may be in units of eps, an element: of the arithmetic's own
/// eps, and of that of stored numbers and factors where that is larger (empty: not at all).
pub struct Out {
    pub place: Place,
    pub want: Vec<f64>,
    pub bound: Vec<f64>,
    pub coarse: Vec<f64>,
}

const STORES: [Store; 4] = [Store::Values, Store::Grads, Store::Momentum, Store::Running];

/// The three backends, and what the host last wrote to or saw in the one under test.
pub struct Rig<B: Backend> {
    pub dev: B,
    pub exact: RefBackend,
    pub mag: RefBackend,
    /// What is known of each norm's coefficients.
    pub channels: Vec<Vec<Channel>>,
    what: String,
    /// An op that only prepares another one's operands: what else it changes, the other one's check finds.
    pub preparing: bool,
    tensors: Vec<(usize, Vec<f64>)>,
    stores: Vec<Vec<f64>>,
}

impl<B: Backend> Rig<B> {
    /// Tensors and gradients get NaN, values, momentum and running statistics random numbers (variances positive).
    pub fn new(build: Build, make: &dyn Fn(Spec) -> B, what: String) -> Rig<B> {
        let spec = build.0;
        let (stored, running) = (spec.stored(), spec.running());
        let mut rig = Rig {
            dev: make(spec.clone()),
            exact: RefBackend::new(spec.clone()),
            mag: RefBackend::new(spec.clone()),
            channels: vec![vec![]; spec.norms.len()],
            what,
            preparing: false,
            tensors: vec![(0, vec![]); spec.tensors.len()],
            stores: vec![vec![]; 4],
        };
        (0..spec.tensors.len() as u32).for_each(|t| rig.poison(TensorId(t)));
        rig.set_store(Store::Values, &normal("values", stored));
        rig.set_store(Store::Momentum, &normal("momentum", stored));
        rig.set_store(Store::Grads, &vec![f64::NAN; stored]);
        let mut stats = normal("running", running);
        for n in &spec.norms {
            stats[n.running + n.c as usize..][..n.c as usize].iter_mut().for_each(|v| *v = 0.1 + v.abs());
        }
        rig.set_store(Store::Running, &stats);
        rig
    }

    pub fn plane(&self, t: TensorId) -> Plane {
        self.exact.spec().tensors[t.0 as usize].plane
    }

    /// Numbers in `n` images of `t`.
    pub fn len(&self, t: TensorId, n: usize) -> usize {
        n * self.plane(t).len()
    }

    /// Writes `n` images, rounded to the type under test, and NaN behind them.
    pub fn set(&mut self, t: TensorId, n: usize, data: &[f64]) {
        let batch = self.exact.spec().batch;
        let nan = vec![f64::NAN; self.len(t, batch)];
        let (all, part): (Vec<_>, Vec<_>) = (reals(&nan), reals(data));
        self.dev.write_tensor(t, batch, &all);
        self.dev.write_tensor(t, n, &part);
        let mut part = f64s(&part);
        if self.coarse() {
            let held = f64s(&self.dev.read_tensor(t, n));
            let Rounding { eps, tiny } = self.dev.rounding();
            let tol: Vec<f64> = part.iter().map(|v| 0.5 * (eps * v.abs() + tiny)).collect();
            if !part.iter().all(|v| v.is_nan()) {
                compare(&format!("write_tensor {t:?}, {}", self.what), &held, &part, &tol);
            }
            part = held;
        }
        for (b, data) in [(&mut self.exact, part.clone()), (&mut self.mag, magnitudes(&part))] {
            b.write_tensor(t, batch, &nan);
            b.write_tensor(t, n, &data);
        }
        self.tensors[t.0 as usize] = (n, part);
    }

    pub fn set_normal(&mut self, t: TensorId, n: usize, name: &str) {
        let data = normal(name, self.len(t, n));
        self.set(t, n, &data);
    }

    /// NaN in all images.
    pub fn poison(&mut self, t: TensorId) {
        let batch = self.exact.spec().batch;
        let nan = vec![f64::NAN; self.len(t, batch)];
        self.set(t, batch, &nan);
    }

    pub fn set_store(&mut self, store: Store, data: &[f64]) {
        let data: Vec<B::Real> = reals(data);
        self.dev.write_store(store, &data);
        let data = f64s(&data);
        self.exact.write_store(store, &data);
        self.mag.write_store(store, &magnitudes(&data));
        self.stores[place_of(store)] = data;
    }

    /// Sets some parameters' part of a store.
    pub fn set_params(&mut self, store: Store, parts: &[(ParamId, Vec<f64>)]) {
        let mut all = self.stores[place_of(store)].clone();
        for (param, data) in parts {
            all[self.exact.spec().params[param.0 as usize].range.clone()].copy_from_slice(data);
        }
        self.set_store(store, &all);
    }

    /// A store of the backend under test.
    pub fn store(&self, store: Store) -> &[f64] {
        &self.stores[place_of(store)]
    }

    /// What the reference has, with the bound of a sum of `k` products: 2 * sqrt(k) * sum |a*b|.
    pub fn by_mag(&self, place: Place, n: usize, k: usize) -> Out {
        let scale = 2.0 * (k as f64).sqrt();
        let mag = read(&self.mag, place, n);
        let bound = mag.iter().map(|m| scale * m).collect();
        let coarse = if matches!(place, Place::Tensor(_) | Place::Grad(_)) { mag } else { vec![] };
        Out { place, want: read(&self.exact, place, n), bound, coarse }
    }

    /// Whether tensors and factors are rounded more than sums.
    pub fn coarse(&self) -> bool {
        self.dev.rounding().eps > B::Real::EPS
    }

    /// What the errors of `out` may be.
    fn tolerance(&self, out: &Out) -> Vec<f64> {
        let mut tol: Vec<f64> = out.bound.iter().map(|b| B::Real::EPS * b).collect();
        if self.coarse() {
            let Rounding { eps, tiny } = self.dev.rounding();
            // Each of two factors is off by eps / 2, and so is the result where it is stored.
            tol.iter_mut().zip(&out.coarse).for_each(|(t, c)| *t += 1.5 * eps * c + tiny);
        }
        tol
    }

    /// After `op` on `n` images: `outs` are right and nothing else has changed.
    pub fn check(&mut self, op: &str, n: usize, outs: &[Out]) {
        let what = format!("{op}, {}, n = {n}", self.what);
        for out in outs {
            let got = read(&self.dev, out.place, n);
            compare(&format!("{what}: {:?}", out.place), &got, &out.want, &self.tolerance(out));
            if let Place::Tensor(t) = out.place {
                self.tensors[t.0 as usize] = (n, got);
            } else {
                let (store, range) = in_store(self.exact.spec(), out.place);
                self.stores[place_of(store)][range].copy_from_slice(&got);
            }
        }
        if self.preparing {
            return;
        }
        for (t, (held_n, data)) in self.tensors.iter().enumerate() {
            let got = f64s(&self.dev.read_tensor(TensorId(t as u32), *held_n));
            unchanged(&format!("{what}: tensor {t}"), &got, data);
        }
        for store in STORES {
            let got = f64s(&self.dev.read_store(store));
            unchanged(&format!("{what}: {store:?}"), &got, self.store(store));
        }
    }
}

fn place_of(store: Store) -> usize {
    STORES.iter().position(|s| *s == store).unwrap()
}

fn in_store(spec: &Spec, place: Place) -> (Store, std::ops::Range<usize>) {
    match place {
        Place::Tensor(_) => unreachable!(),
        Place::Grad(p) => (Store::Grads, spec.params[p.0 as usize].range.clone()),
        Place::Running(n) => {
            let n = spec.norms[n.0 as usize];
            (Store::Running, n.running..n.running + 2 * n.c as usize)
        }
        Place::Values => (Store::Values, 0..spec.stored()),
        Place::Momentum => (Store::Momentum, 0..spec.stored()),
    }
}

fn read<B: Backend>(b: &B, place: Place, n: usize) -> Vec<f64> {
    if let Place::Tensor(t) = place {
        return f64s(&b.read_tensor(t, n));
    }
    let (store, range) = in_store(b.spec(), place);
    f64s(&b.read_store(store)[range])
}

pub fn reals<R: Real>(data: &[f64]) -> Vec<R> {
    data.iter().map(|&v| R::from_f64(v)).collect()
}

pub fn f64s<R: Real>(data: &[R]) -> Vec<f64> {
    data.iter().map(|v| v.to_f64()).collect()
}

fn magnitudes(data: &[f64]) -> Vec<f64> {
    data.iter().map(|v| v.abs()).collect()
}

/// Panics with the worst element unless `|got - want| <= tol` everywhere; NaN never passes.
#[allow(clippy::neg_cmp_op_on_partial_ord)] // the negation is what makes NaN fail
pub fn compare(what: &str, got: &[f64], want: &[f64], tol: &[f64]) {
    assert!(got.len() == want.len() && want.len() == tol.len(), "{what}: lengths");
    let excess = |i: usize| (got[i] - want[i]).abs() - tol[i];
    let bad: Vec<usize> = (0..got.len()).filter(|&i| !(excess(i) <= 0.0)).collect();
    let worst = bad.iter().copied().max_by(|&a, &b| excess(a).total_cmp(&excess(b)));
    if let Some(i) = worst {
        let (count, len, tol) = (bad.len(), got.len(), tol[i]);
        panic!("{what}: {count} of {len} wrong; element {i}: wanted {} +- {tol:.3e}, got {}", want[i], got[i]);
    }
}

fn unchanged(what: &str, got: &[f64], held: &[f64]) {
    let same = |(a, b): (&f64, &f64)| a == b || (a.is_nan() && b.is_nan());
    if let Some(i) = got.iter().zip(held).position(|p| !same(p)) {
        panic!("{what} was not to change: element {i} held {}, now {}", held[i], got[i]);
    }
}
