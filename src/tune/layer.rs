//! One convolution of a network on its own, with the operands that it has there: an input through a batch norm and ReLU, an
//! output with statistics, a gradient through a batch norm, a data gradient that is masked, added and summed. So it costs
//! what it costs in a training step.

use super::Config;
use crate::backend::cpu::CpuBackend;
use crate::backend::cpu::plan::{LayerPlan, PLAN_VERSION, Plan, PlannedLayer};
use crate::backend::{
    Backend, ConvId, ConvSpec, Finish, Grad, GradDst, Input, Mask, NormId, NormSpec, Normed, ParamId, ParamSpec, Spec,
    Store, TensorId, TensorSpec, Write,
};
use crate::error::{Error, Result};
use crate::graph::lower::{Backward, Forward, Program};
use crate::rng::{Purpose, Stream};
use crate::shape::ConvGeom;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A convolution with its operands.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) geom: ConvGeom,
    spec: Spec,
    x: Input,
    y: TensorId,
    stats: Option<NormId>,
    dy: Grad,
    dx: Option<GradDst>,
    /// What the gradient that is read was before its batch norm's sums were taken.
    raw: TensorId,
    /// Batch norms whose statistics the layer's own forward pass does not take, with their inputs.
    others: Vec<(NormId, TensorId)>,
}

impl Layer {
    /// Convolution `conv` of `program`.
    ///
    /// # Errors
    /// A convolution that the program does not run forward and backward.
    pub(super) fn of(program: &Program, conv: ConvId, name: &str) -> Result<Self> {
        let forward = program.forward.iter().find_map(|op| match *op {
            Forward::Conv { conv: c, x, y, stats } if c == conv => Some((x, y, stats)),
            _ => None,
        });
        let backward = program.backward.iter().find_map(|op| match *op {
            Backward::Conv { conv: c, dy, dx, .. } if c == conv => Some((dy, dx)),
            _ => None,
        });
        let (Some((x, y, stats)), Some((dy, dx))) = (forward, backward) else {
            return Err(Error::Failed(format!("layer {name}: not run forward and backward: nothing to tune")));
        };
        let from = &program.spec;
        let mut part =
            Part { from, to: Spec { batch: from.batch, ..Spec::default() }, tensors: HashMap::new(), norms: vec![] };
        let ConvSpec { geom, weight, bias } = from.convs[conv.0 as usize];
        let (weight, bias) = (part.param(weight), bias.map(|b| part.param(b)));
        part.to.convs.push(ConvSpec { geom, weight, bias });
        let (x, y) = (part.input(x), part.tensor(y));
        let stats = stats.map(|norm| part.norm(norm, y));
        let dy = Grad { t: part.tensor(dy.t), norm: dy.norm.map(|n| part.normed(n)) };
        let dx = dx.map(|dx| part.dst(dx));
        let raw = part.fresh(part.to.tensors[dy.t.0 as usize]);
        let others = part.norms.iter().map(|&(_, norm, x)| (norm, x)).filter(|&(norm, _)| Some(norm) != stats);
        Ok(Layer { name: name.into(), geom, others: others.collect(), spec: part.to, x, y, stats, dy, dx, raw })
    }

    /// The same layer with another mask.
    pub(super) fn with_kept(&self, kept: Option<Arc<[u32]>>) -> Self {
        let mut layer = self.clone();
        (layer.spec.params[0].kept, layer.spec.params[0].block) = (kept, None);
        let mut start = 0;
        for p in &mut layer.spec.params {
            let len = p.kept.as_ref().map_or(p.shape.iter().product(), |kept| kept.len());
            p.range = start..start + len;
            start += len;
        }
        layer
    }

    /// Stored weights.
    pub(super) fn weights(&self) -> usize {
        self.spec.params[0].range.len()
    }

    /// Whether it hands a gradient on.
    pub(super) fn has_data_gradient(&self) -> bool {
        self.dx.is_some()
    }
}

/// A part of a network's spec in the making. The convolution's weight is its first parameter.
struct Part<'a> {
    from: &'a Spec,
    to: Spec,
    tensors: HashMap<TensorId, TensorId>,
    /// Index there, index here, input here.
    norms: Vec<(NormId, NormId, TensorId)>,
}

impl Part<'_> {
    fn param(&mut self, id: ParamId) -> ParamId {
        let p = &self.from.params[id.0 as usize];
        let start = self.to.stored();
        self.to.params.push(ParamSpec { range: start..start + p.range.len(), ..p.clone() });
        ParamId(self.to.params.len() as u32 - 1)
    }

    /// A tensor with a place of its own.
    fn fresh(&mut self, like: TensorSpec) -> TensorId {
        self.to.tensors.push(TensorSpec::lasting(like.plane, self.to.arena));
        self.to.arena += like.plane.room();
        TensorId(self.to.tensors.len() as u32 - 1)
    }

    fn tensor(&mut self, id: TensorId) -> TensorId {
        if let Some(&known) = self.tensors.get(&id) {
            return known;
        }
        let new = self.fresh(self.from.tensors[id.0 as usize]);
        self.tensors.insert(id, new);
        new
    }

    /// A norm of tensor `x`, which is one of the part.
    fn norm(&mut self, id: NormId, x: TensorId) -> NormId {
        if let Some(&(_, known, _)) = self.norms.iter().find(|(from, ..)| *from == id) {
            return known;
        }
        let n = self.from.norms[id.0 as usize];
        let (gamma, beta, running) = (self.param(n.gamma), self.param(n.beta), self.to.running());
        self.to.norms.push(NormSpec { gamma, beta, running, ..n });
        let new = NormId(self.to.norms.len() as u32 - 1);
        self.norms.push((id, new, x));
        new
    }

    fn input(&mut self, x: Input) -> Input {
        let t = self.tensor(x.t);
        Input { t, norm: x.norm.map(|norm| self.norm(norm, t)), relu: x.relu }
    }

    fn normed(&mut self, n: Normed) -> Normed {
        let x = self.tensor(n.x);
        Normed { norm: self.norm(n.norm, x), x }
    }

    fn dst(&mut self, dx: GradDst) -> GradDst {
        let mask = match dx.finish.mask {
            Mask::All => Mask::All,
            Mask::Positive(x) => Mask::Positive(self.input(x)),
        };
        let reduce = dx.finish.reduce.map(|n| n.map(|n| self.normed(n)));
        GradDst { t: self.tensor(dx.t), write: dx.write, finish: Finish { mask, reduce } }
    }
}

/// A layer on the CPU with one plan.
pub(super) struct Rig<'a> {
    layer: &'a Layer,
    backend: CpuBackend,
    values: Vec<f32>,
}

impl<'a> Rig<'a> {
    /// Runs the layer once forward and backward on random numbers, the same for every plan.
    ///
    /// # Errors
    /// A plan that the layer cannot run with.
    pub(super) fn new(layer: &'a Layer, plan: LayerPlan, config: &Config) -> Result<Self> {
        let ConvGeom { c, h, w, k, r, s, stride, pad } = layer.geom;
        let geometry = [c, h, w, k, r, s, stride, pad];
        let layers = vec![PlannedLayer { layer: layer.name.clone(), geometry, weights: layer.weights(), plan }];
        let plan = Plan { version: PLAN_VERSION, tuned: None, layers };
        let backend = CpuBackend::with_plan(layer.spec.clone(), config.threads, config.isa, Some(&plan))?;
        let values = noise("values", layer.spec.stored());
        let mut rig = Rig { layer, backend, values };
        rig.prepare();
        rig.backward();
        Ok(rig)
    }

    fn prepare(&mut self) {
        let (layer, n) = (self.layer, self.layer.spec.batch);
        let (x, b) = (layer.y, &mut self.backend);
        b.write_store(Store::Values, &self.values);
        b.write_store(Store::Grads, &vec![f32::NAN; self.values.len()]);
        for (i, t) in layer.spec.tensors.iter().enumerate() {
            b.write_tensor(TensorId(i as u32), n, &noise(&format!("tensor {i}"), n * t.plane.len()));
        }
        let (after, before): (Vec<_>, Vec<_>) = layer.others.iter().partition(|(_, t)| *t == x);
        before.into_iter().for_each(|&(norm, t)| b.norm_stats(norm, t, n));
        b.conv_forward(ConvId(0), layer.x, layer.y, layer.stats, n);
        after.into_iter().for_each(|&(norm, t)| b.norm_stats(norm, t, n));
        if layer.dy.norm.is_some() {
            let finish = Finish { mask: Mask::All, reduce: [layer.dy.norm, None] };
            b.copy_backward(Grad::plain(layer.raw), GradDst { t: layer.dy.t, write: Write::Overwrite, finish }, n);
        }
    }

    fn backward(&mut self) {
        let l = self.layer;
        self.backend.conv_backward(ConvId(0), l.x, l.dy, l.dx, l.spec.batch);
    }

    /// Milliseconds of the forward and of the backward pass. As in a step the weights have just changed.
    pub(super) fn time_ms(&mut self) -> [f64; 2] {
        let l = self.layer;
        self.backend.write_store(Store::Values, &self.values);
        let start = Instant::now();
        self.backend.conv_forward(ConvId(0), l.x, l.y, l.stats, l.spec.batch);
        let middle = Instant::now();
        self.backward();
        [middle - start, middle.elapsed()].map(|t| 1e3 * t.as_secs_f64())
    }

    /// What the first run made; before anything is timed.
    pub(super) fn results(&self) -> Results {
        let (l, b, n) = (self.layer, &self.backend, self.layer.spec.batch);
        let grads = b.read_store(Store::Grads);
        let dx = l.dx.map_or(vec![], |dx| b.read_tensor(dx.t, n));
        // Sums over a channel may cancel: what they are exact to is their terms' size.
        let sums = largest(&dx) * (n as f64 * f64::from(l.geom.h) * f64::from(l.geom.w)).sqrt();
        let weights = l.weights();
        let reduced = l.dx.iter().flat_map(|dx| dx.finish.reduce.iter().flatten());
        let params = reduced.flat_map(|r| {
            let n = l.spec.norms[r.norm.0 as usize];
            [n.gamma, n.beta]
        });
        let norm_grads = params.flat_map(|p| &grads[l.spec.params[p.0 as usize].range.clone()]).copied().collect();
        let bias = l.spec.convs[0].bias.map_or(vec![], |p| grads[l.spec.params[p.0 as usize].range.clone()].to_vec());
        let all = [
            (OUTPUT, b.read_tensor(l.y, n), 0.0),
            ("running statistics", b.read_store(Store::Running), 0.0),
            ("data gradient", dx, 0.0),
            (WEIGHTS, grads[..weights].to_vec(), 0.0),
            ("bias gradient", bias, 0.0),
            ("gradients of batch norms", norm_grads, sums),
        ];
        Results(all.into_iter().map(|(what, data, size)| (what, size.max(largest(&data)), data)).collect())
    }
}

/// Fewest and most repetitions of a timing.
const REPEATS: [usize; 2] = [3, 15];

/// Milliseconds of each rig, forward and backward: minima over repetitions in turn, so that whatever else the machine does
/// hits all alike, and other programs only ever add time. `enough` ends it once the fewest are done.
pub(super) fn interleave<const N: usize>(
    rigs: &mut [Rig; N],
    mut enough: impl FnMut(&[[f64; 2]; N]) -> bool,
) -> [[f64; 2]; N] {
    let mut least = [[f64::INFINITY; 2]; N];
    for done in 1..=REPEATS[1] {
        for (rig, least) in rigs.iter_mut().zip(&mut least) {
            let ms = rig.time_ms();
            *least = [0, 1].map(|i| least[i].min(ms[i]));
        }
        if done >= REPEATS[0] && enough(&least) {
            break;
        }
    }
    least
}

const OUTPUT: &str = "output";
const WEIGHTS: &str = "weight gradient";
/// Rounding of sums in another order, as a share of the largest number: a term left out is far more.
const TOLERANCE: f64 = 1e-4;

/// What of two plans' results must be the same bytes; the output always, the rest to rounding. Forward pass and data
/// gradient have one order of summation whatever the kernel, tile and channel blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Equal {
    /// All but the weight gradient: the patches are the same, and so are statistics and sums.
    pub(super) patches: bool,
    /// The weight gradient.
    pub(super) weights: bool,
}

/// Results with the size that errors are measured by.
pub(super) struct Results(Vec<(&'static str, f64, Vec<f32>)>);

impl Results {
    /// The first number in `got` that is not what it is here.
    pub(super) fn fault(&self, got: &Results, equal: Equal) -> Option<String> {
        self.0.iter().zip(&got.0).find_map(|((what, size, want), (_, _, got))| {
            let exact = match *what {
                OUTPUT => true,
                WEIGHTS => equal.weights,
                _ => equal.patches,
            };
            let close = TOLERANCE * size;
            let same = |(a, b): (&f32, &f32)| {
                if exact { a.to_bits() == b.to_bits() } else { f64::from((a - b).abs()) <= close }
            };
            let at = (0..want.len().max(got.len())).find(|&i| !want.get(i).zip(got.get(i)).is_some_and(same))?;
            let rule = if exact { "the same bytes".into() } else { format!("to within {close:.1e}") };
            Some(format!("{what} {at}: wanted {:?}, {rule}, got {:?}", want.get(at), got.get(at)))
        })
    }
}

#[cfg(test)]
impl Results {
    pub(super) fn parts(&self) -> usize {
        self.0.len()
    }

    /// Moves the last number of a part by `by` of its size; whether there is one.
    pub(super) fn spoil(&mut self, part: usize, by: f32) -> bool {
        let (_, size, data) = &mut self.0[part];
        data.last_mut().map(|v| *v += 1e-3 * by * *size as f32).is_some()
    }
}

fn largest(data: &[f32]) -> f64 {
    data.iter().fold(0.0, |m, v| v.abs().max(m)).into()
}

/// Normal numbers, repeated with a prime period: no plane of an image equals the next.
fn noise(name: &str, len: usize) -> Vec<f32> {
    const PERIOD: usize = 65_521;
    let stream = Stream::new(0, Purpose::Data, name);
    let period: Vec<f32> = (0..len.min(PERIOD) as u64).map(|i| stream.normal(i) as f32).collect();
    period.iter().copied().cycle().take(len).collect()
}
