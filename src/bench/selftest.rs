//! `selftest`: small networks that together use every operation, dense and sparse, one training step each, every operation
//! checked in f64 (`check/mod.rs`). Quick on a device, and small enough for the emulated one.

use super::check::{Names, Verified};
use super::phases::Watched;
use super::step::UPDATE;
use crate::backend::{Backend, Real, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Net};
use crate::models;
use crate::rng::{Purpose, Stream};
use crate::shape::BlockShape;
use crate::sparsity::{Density, Draw, Mask, Pattern, Ratio, draw_patterns};

/// A network, its masks and a batch.
pub struct Case {
    /// What it is, for people.
    pub name: &'static str,
    graph: Graph,
    masks: Vec<Mask>,
    batch: usize,
}

impl Case {
    fn new(
        name: &'static str,
        graph: Result<Graph>,
        ratio: Ratio,
        sparsity: f64,
        pattern: Pattern,
        batch: usize,
    ) -> Result<Self> {
        let graph = graph?;
        let density = Density::from_sparsity(sparsity)?;
        let masks = draw_patterns(&graph.maskable(), &ratio, density, pattern, Draw::Exact, 0)?;
        Ok(Case { name, graph, masks, batch })
    }

    /// Layers whose mask consists of blocks.
    pub fn layers_in_blocks(&self) -> usize {
        self.masks.iter().filter(|mask| mask.block.is_some()).count()
    }
}

/// All cases, the quickest first.
///
/// # Errors
/// None, unless a model changes its limits.
pub fn cases() -> Result<Vec<Case>> {
    const ERK: Ratio = Ratio::ERK;
    use Ratio::{Dense, Uniform};
    let (single, blocks) = (Pattern::Unstructured, Pattern::Block(BlockShape { r: 16, c: 16 }));
    let residual = |width, channels| models::resnet(8, width, channels, 10, 8);
    Ok(vec![
        Case::new("residual blocks, dense", residual(8, 3), Dense, 0.0, single, 3)?,
        Case::new("residual blocks, ERK 90 %", residual(16, 1), ERK, 0.9, single, 5)?,
        // One block of nine: what every layer but the first can keep exactly.
        Case::new("residual blocks, block:16x16 89 %", residual(16, 3), Uniform, 8.0 / 9.0, blocks, 3)?,
        Case::new("wide plain stack, uniform 95 %", stack(), Uniform, 0.95, single, 4)?,
        Case::new("7x7 stem, maximum, bottleneck, 1000 classes", bottleneck(), Uniform, 0.8, single, 2)?,
    ])
}

/// Convolutions without residuals, channels of no round number.
fn stack() -> Result<Graph> {
    let mut g = Graph::new(3, 9, 7);
    let mut x = g.input();
    for (i, (k, stride)) in [(20, 1), (70, 2), (33, 1)].into_iter().enumerate() {
        x = g.conv(&format!("conv{i}"), x, k, 3, stride, 1)?;
        x = g.norm(&format!("bn{i}"), x);
        x = g.relu(x);
    }
    x = g.max_pool(x, 2, 2, 0)?;
    x = g.pool(x);
    g.linear("fc", x, 5)?;
    Ok(g)
}

/// What ResNets for ImageNet have.
fn bottleneck() -> Result<Graph> {
    let mut g = Graph::new(3, 22, 22);
    let x = g.conv("stem", g.input(), 16, 7, 2, 3)?;
    let x = g.norm("stem.bn", x);
    let x = g.relu(x);
    let x = g.max_pool(x, 3, 2, 1)?;
    let mut y = x;
    for (name, k, r, stride) in [("conv1", 8, 1, 1), ("conv2", 8, 3, 2), ("conv3", 32, 1, 1)] {
        y = g.conv(name, y, k, r, stride, r / 2)?;
        y = g.norm(&format!("{name}.bn"), y);
        if name != "conv3" {
            y = g.relu(y);
        }
    }
    let down = g.conv("down", x, 32, 1, 2, 0)?;
    let down = g.norm("down.bn", down);
    let x = g.add(y, down)?;
    let x = g.relu(x);
    let x = g.pool(x);
    g.linear("fc", x, 1000)?;
    Ok(g)
}

/// One step to warm up, one that is checked, on the backend that `make` builds.
///
/// # Errors
/// The first number that is wrong, with its operation; a backend that cannot be built.
pub fn check<B: Backend>(case: &Case, make: impl FnOnce(Spec) -> Result<B>) -> Result<Verified> {
    let Case { name, graph, masks, batch } = case;
    let mut net = Net::new(graph, masks, *batch, |spec| Ok(Watched::new(make(spec)?)))?;
    net.init(graph, 0);
    let (c, h, w) = graph.nodes()[0].chw;
    let classes = net.program().spec.tensors[net.program().logits.0 as usize].plane.c;
    let stream = Stream::new(0, Purpose::Data, "selftest");
    // A batch smaller than what there is room for follows a full one.
    for n in [*batch, *batch - 1] {
        let numbers = n as u64 * u64::from(c * h * w);
        let images: Vec<B::Real> = (0..numbers).map(|i| B::Real::from_f64(stream.normal(i))).collect();
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 7 % classes).collect();
        if n < *batch {
            net.backend_mut().begin_check(Names::of(graph));
        }
        net.forward_backward(&images, &labels, 0.1);
        net.sgd(UPDATE);
    }
    net.backend_mut().end_check().map_err(|what| Error::Failed(format!("selftest, {name}: {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::backend::reference::RefBackend;

    #[test]
    fn every_case_passes_on_the_cpu_and_on_the_reference() {
        for case in cases().unwrap() {
            let cpu = check(&case, |spec| CpuBackend::new(spec, 2)).unwrap();
            let reference = check(&case, |spec| Ok(RefBackend::new(spec))).unwrap();
            assert!(cpu.operations > 10 && cpu.values == reference.values, "{}: {cpu:?} {reference:?}", case.name);
            let blocks = case.name.contains("block:");
            assert_eq!(case.layers_in_blocks() >= 5, blocks, "{}: {}", case.name, case.layers_in_blocks());
        }
    }
}
