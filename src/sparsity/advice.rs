//! Errors of densities that layers cannot share, each with the density that they can.

use super::densities::{Misfit, Shares};
use super::{Density, Maskable, Ratio, layer_densities};
use crate::error::Error;

/// Pinned layers that a message names.
const NAMED: usize = 4;

/// Layer `l` would keep nothing.
pub(super) fn starved(layers: &[Maskable], l: usize, ratio: &Ratio, density: Density) -> Error {
    let layer = &layers[l];
    let share = layer_densities(layers, ratio, density).map_or(0.0, |densities| densities[l]);
    Error::Usage(format!(
        "layer {} {:?} would keep none of its {} weights: its density is {share:.2e} at an overall density of {density}; {}, \
         or choose another method or a wider model",
        layer.name,
        layer.shape,
        layer.size(),
        least(layers, ratio),
    ))
}

/// A pinned layer's density is below half a weight.
pub(super) fn empty(layer: &Maskable, pin: Option<Density>) -> Error {
    let pin = pin.map(|pin| pin.to_string()).unwrap_or_default();
    Error::Usage(format!(
        "layer {} {:?} would keep none of its {} weights at the density {pin} given to it; give it more",
        layer.name,
        layer.shape,
        layer.size()
    ))
}

/// Pinned layers take more than there is.
pub(super) fn overspent(layers: &[Maskable], ratio: &Ratio, density: Density, shares: &Shares) -> Error {
    if shares.pins.iter().all(Option::is_some) {
        return unequal(ratio, density, shares);
    }
    let pinned = || (0..layers.len()).filter_map(|l| Some((&layers[l].name, shares.pinned(l)?, shares.sizes[l])));
    let mut named: Vec<_> = pinned().take(NAMED).map(|(name, kept, of)| format!("{name} {kept} of {of}")).collect();
    match pinned().count() {
        more if more > NAMED => named.push(format!("{} more", more - NAMED)),
        _ => {}
    }
    let taken: u64 = pinned().map(|(_, kept, _)| kept).sum();
    Error::Usage(format!(
        "{} gives layers {taken} weights by themselves ({}), the budget of density {density} is {}: nothing is left \
         for the others; {}",
        ratio.name(),
        named.join(", "),
        shares.budget,
        least(layers, ratio),
    ))
}

/// Layers take less than there is, all that are not pinned being dense.
pub(super) fn underspent(ratio: &Ratio, density: Density, shares: &Shares) -> Error {
    if shares.pins.iter().all(Option::is_some) {
        return unequal(ratio, density, shares);
    }
    let (most, all) = (shares.settled.iter().flatten().sum(), shares.sizes.iter().sum());
    Error::Usage(format!(
        "{}: with all layers dense that are given no density, {most} of {all} weights are kept, the budget of density \
         {density} is {}; {}, or give the layers more",
        ratio.name(),
        shares.budget,
        exactly("highest density", most, all),
    ))
}

/// Every layer is pinned, and they do not add up.
fn unequal(ratio: &Ratio, density: Density, shares: &Shares) -> Error {
    let (kept, all) = ((0..shares.pins.len()).filter_map(|l| shares.pinned(l)).sum(), shares.sizes.iter().sum());
    Error::Usage(format!(
        "{}: every layer is given a density, together {kept} of {all} weights, but the budget of density {density} is {}; \
         {}, or leave layers to the rest",
        ratio.name(),
        shares.budget,
        exactly("set density", kept, all),
    ))
}

fn exactly(what: &str, kept: u64, all: u64) -> String {
    Density::of_budget(kept, all).map_or(String::new(), |fits| format!("{what} {fits} (sparsity {})", fits.sparsity()))
}

/// The least density, in millionths, from which on each layer's target is a weight or more. Targets never fall when
/// the density rises, so it is found by halving.
fn least(layers: &[Maskable], ratio: &Ratio) -> String {
    let enough = |k: u32| {
        let Ok(mut shares) = Shares::unsettled(layers, ratio, Density::millionths(k)) else { return false };
        match shares.fit() {
            Ok(()) => shares.open().all(|l| shares.target(l).is_a_weight()),
            Err(misfit) => misfit == Misfit::Under,
        }
    };
    let (mut fails, mut holds) = (0, 1_000_000);
    while holds - fails > 1 {
        let middle = fails + (holds - fails) / 2;
        if enough(middle) { holds = middle } else { fails = middle }
    }
    let density = Density::millionths(holds);
    // Not `layer_counts`, whose error would ask here again.
    let counts =
        Shares::unsettled(layers, ratio, density).map(|mut shares| shares.fit().ok().and_then(|()| shares.counts()));
    match counts {
        Ok(Some(counts)) if !counts.contains(&0) => {
            format!("from density {density} (sparsity {}) on every layer keeps one", density.sparsity())
        }
        _ => "no density leaves every layer a weight and meets its budget".into(),
    }
}
