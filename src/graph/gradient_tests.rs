//! Whether the operations that a graph is lowered to compute its loss and its gradients: on the reference backend, which
//! refuses stale reads, against central differences of an interpreter that knows no fusion.

use super::check_storage;
use super::graphs::{odd, random_graph};
use super::naive::Naive;
use crate::backend::reference::RefBackend;
use crate::backend::{Backend, ParamSpec, Store};
use crate::graph::{Graph, Net};
use crate::rng::{Purpose, Stream};
use crate::sparsity::Mask;

pub(super) const BATCH: usize = 5;
pub(super) const IMAGES: usize = 4;
const SMOOTHING: f64 = 0.1;

/// Masks for every second maskable parameter.
pub(super) fn masks(g: &Graph, seed: u64) -> Vec<Mask> {
    let masked = g.maskable().into_iter().step_by(2).map(|m| {
        let stream = Stream::new(seed, Purpose::Mask, &m.name);
        let size = m.shape.iter().product::<usize>() as u32;
        let kept: Vec<u32> = (0..size).filter(|&i| i == 0 || stream.uniform(u64::from(i)) < 0.7).collect();
        Mask { name: m.name, shape: m.shape, density: 0.7, kept: Some(kept.into()), block: None }
    });
    masked.collect()
}

pub(super) fn normal(seed: u64, name: &str, len: usize) -> Vec<f64> {
    let stream = Stream::new(seed, Purpose::Data, name);
    (0..len as u64).map(|i| stream.normal(i)).collect()
}

/// Directions tried, and those left out because a kink is too near.
#[derive(Default)]
pub(super) struct Tally {
    tried: usize,
    kinks: usize,
}

impl Tally {
    /// `grad` against the slope of `loss` at `start` along `direction`.
    pub(super) fn slope(
        &mut self,
        what: &str,
        grad: &[f64],
        start: &[f64],
        direction: Vec<f64>,
        loss: impl Fn(&[f64]) -> f64,
    ) {
        assert_eq!((grad.len(), direction.len()), (start.len(), start.len()), "{what}");
        let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
        let slope = |step: f64| {
            let at =
                |step: f64| loss(&start.iter().zip(&direction).map(|(v, d)| v + step * d / length).collect::<Vec<_>>());
            (at(step) - at(-step)) / (2.0 * step)
        };
        let analytic: f64 = grad.iter().zip(&direction).map(|(g, d)| g * d / length).sum();
        // Where the loss is smooth, halving the step changes its slope little.
        let (wide, narrow) = (slope(2e-5), slope(1e-5));
        self.tried += 1;
        if (wide - narrow).abs() > 1e-7 * narrow.abs().max(1.0) {
            self.kinks += 1;
            return;
        }
        near(what, analytic, narrow, narrow.abs(), 1e-6);
    }

    pub(super) fn few_kinks(&self) {
        assert!(20 * self.kinks < self.tried, "{} of {} directions have a kink", self.kinks, self.tried);
    }
}

pub(super) fn near(what: &str, got: f64, want: f64, scale: f64, tol: f64) {
    assert!((got - want).abs() <= tol * scale.max(1.0), "{what}: wanted {want}, got {got}");
}

/// A network in f64 on the reference backend with masks, and shifts and scales away from 0 and 1, so that a dead channel does
/// not lie on a kink; its stored values, and images.
pub(super) fn network(g: &Graph, seed: u64, images: bool) -> (Net<RefBackend>, Vec<f64>, Vec<f64>) {
    let new = if images { Net::with_input_gradient } else { Net::new };
    let mut net = new(g, &masks(g, seed), BATCH, |spec| Ok(RefBackend::new(spec))).unwrap();
    check_storage(net.program());
    net.init(g, seed);
    let noise = normal(seed, "noise", net.backend().spec().stored());
    let start: Vec<f64> = net.backend().read_store(Store::Values).iter().zip(noise).map(|(v, z)| v + 0.3 * z).collect();
    net.backend_mut().write_store(Store::Values, &start);
    let (c, h, w) = g.nodes()[0].chw;
    (net, start, normal(seed, "images", IMAGES * (c * h * w) as usize))
}

/// The interpreter with these stored values.
pub(super) fn naive<'g>(g: &'g Graph, specs: &[ParamSpec], values: &[f64]) -> Naive<'g> {
    let dense = specs.iter().map(|p| {
        let mut dense = vec![0.0; p.shape.iter().product()];
        for (i, v) in values[p.range.clone()].iter().enumerate() {
            dense[p.kept.as_ref().map_or(i, |k| k[i] as usize)] = *v;
        }
        dense
    });
    Naive { graph: g, params: dense.collect() }
}

/// Loss, logits, running statistics and evaluation against the interpreter, and every gradient along random directions.
fn check(what: &str, g: &Graph, seed: u64, tally: &mut Tally) {
    let (mut net, start, images) = network(g, seed, false);
    let labels: Vec<u32> = (0..IMAGES as u32).map(|i| i % 3).collect();
    let specs = net.backend().spec().params.clone();
    let naive = |values: &[f64]| naive(g, &specs, values);
    let (logits, used) = naive(&start).forward(&images, IMAGES, None);
    let loss = |values: &[f64]| {
        let (logits, _) = naive(values).forward(&images, IMAGES, None);
        Naive::loss(&logits, &labels, SMOOTHING) / IMAGES as f64
    };
    let got = net.forward_backward(&images, &labels, SMOOTHING).loss_sum;
    near(&format!("{what}: loss"), got / IMAGES as f64, loss(&start), 1.0, 1e-9);
    let largest = logits.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    for (i, (got, want)) in net.logits(IMAGES).iter().zip(&logits).enumerate() {
        near(&format!("{what}: logit {i}"), *got, *want, largest, 1e-9);
    }
    let grads = net.backend().read_store(Store::Grads);
    for (p, (spec, param)) in specs.iter().zip(g.params()).enumerate() {
        let direction = normal(seed, &format!("direction {p}"), spec.range.len());
        let what = format!("{what}: gradient of {}", param.name);
        tally.slope(&what, &grads[spec.range.clone()], &start[spec.range.clone()], direction, |moved| {
            let mut all = start.clone();
            all[spec.range.clone()].copy_from_slice(moved);
            loss(&all)
        });
    }
    net.forward_backward(&images, &labels, SMOOTHING);
    assert!(net.backend().read_store(Store::Grads) == grads, "{what}: a second pass gives other gradients");

    let running = net.backend().read_store(Store::Running);
    let given: Vec<Vec<(f64, f64)>> = (net.backend().spec().norms.iter().zip(&used))
        .map(|(norm, used)| {
            let (mean, var) = running[norm.running..][..2 * norm.c as usize].split_at(norm.c as usize);
            for (i, (batch, _)) in used.iter().enumerate() {
                // Two passes from 0: 0.1 * (1 + 0.9) of the batch's mean.
                near(&format!("{what}: running mean"), mean[i], 0.19 * batch, batch.abs(), 1e-9);
            }
            mean.iter().copied().zip(var.iter().copied()).collect()
        })
        .collect();
    let (logits, _) = naive(&start).forward(&images, IMAGES, Some(&given));
    let want = Naive::loss(&logits, &labels, 0.0);
    near(&format!("{what}: evaluation"), net.infer(&images, &labels).loss_sum, want, want.abs(), 1e-9);
    assert!(net.backend().read_store(Store::Running) == running, "{what}: evaluation moves statistics");
}

/// `check` on every odd graph, by number, few of its parameters near a kink.
pub(super) fn on_odd(check: impl Fn(&str, &Graph, u64, &mut Tally)) {
    let mut tally = Tally::default();
    odd().iter().enumerate().for_each(|(i, (what, g))| check(what, g, i as u64, &mut tally));
    tally.few_kinks();
}

/// The same on random ones.
pub(super) fn on_random(check: impl Fn(&str, &Graph, u64, &mut Tally)) {
    let mut tally = Tally::default();
    for seed in 0..100 {
        let g = random_graph(seed);
        check(&format!("seed {seed}: {:#?}", g.nodes()), &g, seed, &mut tally);
    }
    tally.few_kinks();
}

#[test]
fn odd_graphs_have_the_right_gradients() {
    on_odd(check);
}

#[test]
fn random_graphs_have_the_right_gradients() {
    on_random(check);
}

#[test]
fn a_resnet_has_the_right_gradients() {
    let g = crate::models::resnet(8, 3, 2, 4, 8).unwrap();
    check("resnet8", &g, 1, &mut Tally::default());
}
