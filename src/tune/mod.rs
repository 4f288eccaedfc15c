//! Measures how each convolution of a network runs fastest on this machine, and makes a plan of it.
//!
//! Each distinct layer is taken out of the network with the operands that it has there (`layer.rs`) and its plan is changed
//! step by step (`search.rs`); layers of one geometry and size share what was found. A candidate whose results are not those
//! of the default plan is an error, never a plan. [`costs`] measures where the dense kernels begin to be faster.

pub mod costs;
mod layer;
mod search;

use crate::backend::ConvId;
use crate::backend::cpu::Isa;
use crate::backend::cpu::plan::{LayerPlan, Plan};
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::lower::lower;
use crate::shape::ConvGeom;
use crate::sparsity::Mask;
use layer::Layer;
use std::time::{Duration, Instant};

/// What to measure on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Images a step.
    pub batch: usize,
    /// Worker threads, 0: one a core.
    pub threads: usize,
    /// Instruction set.
    pub isa: Isa,
    /// Time to spend in all; a layer's default is measured however small it is.
    pub budget: Duration,
}

/// What was found for the layers of one geometry and size.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// Names of these layers; the first one was measured.
    pub names: Vec<String>,
    /// Their geometry.
    pub geom: ConvGeom,
    /// Stored weights of the first.
    pub weights: usize,
    /// The default plan of the first.
    pub default: LayerPlan,
    /// The fastest plan found.
    pub plan: LayerPlan,
    /// Milliseconds of forward and backward pass with the default plan, the minimum of several.
    pub default_ms: [f64; 2],
    /// The same with the fastest plan.
    pub ms: [f64; 2],
    /// Plans that were measured, the default included.
    pub tried: usize,
    /// Whether no neighbouring plan was left untried when the time was over.
    pub complete: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Distinct layers, in the network's order.
    pub layers: Vec<Tuned>,
    /// The plan of all layers.
    pub plan: Plan,
}

/// Tunes `graph` with `masks`. Before each layer `progress` hears how many are done, of how many, and which one is next.
///
/// # Errors
/// Masks of another network; a batch no norm is defined for; a kernel whose result depends on the plan beyond rounding.
pub fn tune(
    graph: &Graph,
    masks: &[Mask],
    config: &Config,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<Report> {
    let program = lower(graph, masks, config.batch)?;
    program.check_batch(config.batch, |norm| &graph.norms()[norm].name)?;
    let mut plan = Plan::default_for(&program.spec, graph.convs().iter().map(|c| c.name.as_str()));
    let layers = graph.convs().iter().enumerate().map(|(i, c)| Layer::of(&program, ConvId(i as u32), &c.name));
    let groups = groups(layers.collect::<Result<Vec<_>>>()?);
    let end = Instant::now() + config.budget;
    let mut work: f64 = groups.iter().map(|(layer, _)| work_of(layer)).sum();
    let mut tuned = Vec::with_capacity(groups.len());
    for (i, (layer, members)) in groups.iter().enumerate() {
        progress(i, groups.len(), &layer.name);
        let share = work_of(layer) / work;
        work -= work_of(layer);
        let until = Instant::now() + end.saturating_duration_since(Instant::now()).mul_f64(share.clamp(0.0, 1.0));
        let found = search::search(layer, config, until)?;
        let changed = found.plan != found.default;
        members.iter().filter(|_| changed).for_each(|&m| plan.layers[m].plan = found.plan);
        let names = members.iter().map(|&m| plan.layers[m].layer.clone()).collect();
        tuned.push(Tuned { names, ..found });
    }
    Ok(Report { layers: tuned, plan })
}

/// Layers of one geometry whose weights differ by at most 1 %: the first, and the indices of all.
fn groups(layers: Vec<Layer>) -> Vec<(Layer, Vec<usize>)> {
    let mut groups: Vec<(Layer, Vec<usize>)> = vec![];
    for (i, layer) in layers.into_iter().enumerate() {
        let alike = |l: &Layer| {
            let same = (l.geom, l.has_data_gradient()) == (layer.geom, layer.has_data_gradient());
            same && 100 * l.weights().abs_diff(layer.weights()) <= l.weights()
        };
        match groups.iter_mut().find(|(l, _)| alike(l)) {
            Some((_, members)) => members.push(i),
            None => groups.push((layer, vec![i])),
        }
    }
    groups
}

/// What a layer takes, roughly: the budget is shared so that all are measured equally often. Reading and writing a pixel
/// counts as 30 multiply-accumulates.
fn work_of(layer: &Layer) -> f64 {
    let g = layer.geom;
    let (inputs, outputs) = (f64::from(g.c) * f64::from(g.h * g.w), f64::from(g.k) * f64::from(g.p() * g.q()));
    layer.weights() as f64 * f64::from(g.p() * g.q()) + 30.0 * (inputs + outputs)
}
