//! How layers share the density: the formula's densities, and exact counts by largest remainder.
//!
//! All ratios are one rule. Each layer has an integer weight w, its score times its size ([`Ratio`]). Some layers are
//! settled: those that the ratio pins, and those that are dense; the rest of the density x N weights is shared among the
//! others in proportion to w. A layer that would get its whole size or more is made dense and the others share anew.
//! Everything is a ratio of integers, so neither the dense set nor a tie between remainders hangs on rounding.
//!
//! For densities a pinned layer takes its density x size out of the rest as it is, for counts rounded (a half up): the
//! others then meet the budget to the weight, half a weight a pinned layer away from their densities at most.

use super::budget::mul_div;
use super::ratio::Formula;
use super::{Density, Maskable, Ratio, advice};
use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::collections::HashSet;

/// The formula's density of each layer, in (0, 1], in layer order. Their size-weighted mean is the density, to a rounding
/// where no layer is left to share the rest; `Dense` gives ones whatever the density.
///
/// # Errors
/// Layers that are none (no weights, a name twice, roles a ratio needs and no layer has); pinned layers that leave the
/// others nothing, or too much.
pub fn layer_densities(layers: &[Maskable], ratio: &Ratio, density: Density) -> Result<Vec<f64>> {
    let mut shares = Shares::new(layers, ratio, density)?;
    if shares.pins.iter().any(Option::is_some) && shares.pins.iter().any(Option::is_none) {
        shares = Shares::unsettled(layers, ratio, density)?;
        shares.pin(false);
        shares.saturate();
    }
    let rest = shares.whole as f64 + shares.part as f64 / shares.unit as f64;
    let epsilon = rest / shares.weight_sum as f64;
    let of = |l: usize| match (shares.pins[l], shares.settled[l]) {
        (Some(pin), _) => pin.value(),
        (None, Some(_)) => 1.0,
        _ if *ratio == Ratio::Uniform => density.value(),
        _ if shares.weights[l] == shares.sizes[l] => epsilon.min(1.0), // the same of all layers, to the bit
        _ => (epsilon * shares.weights[l] as f64 / shares.sizes[l] as f64).min(1.0),
    };
    Ok((0..layers.len()).map(of).collect())
}

/// Weights each layer keeps, in layer order: [`Density::budget`] of all weights, distributed over the layers' targets
/// (formula's density x size) by largest remainder, ties by layer order. The sum is the budget exactly, a layer the formula
/// makes dense keeps its size, a pinned one its density x size rounded half up, and each other layer its target rounded down
/// or up, so never more than its size.
///
/// # Errors
/// As [`layer_densities`]; a layer that would keep nothing, with its name and the density it takes.
pub fn layer_counts(layers: &[Maskable], ratio: &Ratio, density: Density) -> Result<Vec<usize>> {
    let shares = Shares::new(layers, ratio, density)?;
    let counts = shares.counts().unwrap_or_default(); // what only the formula settles always adds up
    match counts.iter().position(|&count| count == 0) {
        Some(l) => Err(advice::starved(layers, l, ratio, density)),
        None => Ok(counts.into_iter().map(|count| count as usize).collect()),
    }
}

/// Why layers cannot share a density.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// The density of this pinned layer keeps none of its weights.
    Empty(usize),
    /// Pinned layers take more than the budget, or leave others nothing.
    Over,
    /// All layers together take less.
    Under,
}

/// The shares of all layers: `whole + part / unit` weights for the layers that are not settled, in proportion to `weights`.
#[derive(Clone)]
pub(super) struct Shares {
    pub sizes: Vec<u64>,
    pub weights: Vec<u64>,
    /// The densities that the ratio gives by itself.
    pub pins: Vec<Option<Density>>,
    /// What a layer keeps whatever the others do: what is pinned, its size where the formula makes it dense.
    pub settled: Vec<Option<u64>>,
    /// Of all layers together, rounded.
    pub budget: u64,
    whole: u64,
    part: u128,
    unit: u128,
    weight_sum: u64,
}

/// A layer's target: `whole` weights and a remainder below one, comparable between layers: (a + b / unit) / weight_sum.
pub(super) struct Target {
    whole: u64,
    remainder: (u128, u128),
    unit: u128,
    weight_sum: u128,
}

impl Target {
    /// `n` targets, rounded down, and whether that is exact.
    fn times(&self, n: u64) -> (u64, bool) {
        let (carry, rest) = mul_div(self.remainder.1, n, self.unit);
        let sum = self.remainder.0 * u128::from(n) + carry;
        (self.whole * n + (sum / self.weight_sum) as u64, sum.is_multiple_of(self.weight_sum) && rest == 0)
    }

    /// Whether it is a weight or more.
    pub fn is_a_weight(&self) -> bool {
        self.whole > 0
    }

    /// Pieces of `weights` weights nearest to the target; a half rounds up.
    pub fn pieces(&self, weights: u64) -> u64 {
        (self.times(2).0 + weights) / (2 * weights)
    }

    /// Whether `count` is off the target by at most a tenth of it and `slack` weights.
    pub fn is_near(&self, count: u64, slack: u64) -> bool {
        let ((nine, exact), (eleven, _)) = (self.times(9), self.times(11));
        10 * count <= eleven + 10 * slack && 10 * (count + slack) >= nine + u64::from(!exact)
    }
}

impl Shares {
    /// What is pinned settled in whole weights, what is dense too.
    pub fn new(layers: &[Maskable], ratio: &Ratio, density: Density) -> Result<Self> {
        let mut shares = Shares::unsettled(layers, ratio, density)?;
        match shares.fit() {
            Ok(()) => Ok(shares),
            Err(Misfit::Empty(l)) => Err(advice::empty(&layers[l], shares.pins[l])),
            Err(Misfit::Over) => Err(advice::overspent(layers, ratio, density, &shares)),
            Err(Misfit::Under) => Err(advice::underspent(ratio, density, &shares)),
        }
    }

    pub fn unsettled(layers: &[Maskable], ratio: &Ratio, density: Density) -> Result<Self> {
        let density = if *ratio == Ratio::Dense { Density::ONE } else { density };
        let sizes = sizes(layers)?;
        let Formula { weights, pins } = ratio.formula(layers, &sizes, density)?;
        let all = sizes.iter().sum();
        let budget = density.budget(all);
        let unit = pins.iter().flatten().chain([&density]).map(Density::unit).max().unwrap_or(1);
        let (whole, part) = match ratio {
            Ratio::Counts(_) => (budget, 0), // what the counts sum to
            _ => density.times(all),
        };
        Ok(Shares {
            settled: vec![None; sizes.len()],
            budget,
            whole,
            part: part * (unit / density.unit()),
            unit,
            weight_sum: weights.iter().sum(),
            sizes,
            weights,
            pins,
        })
    }

    /// Settles what is pinned and what is dense.
    pub fn fit(&mut self) -> std::result::Result<(), Misfit> {
        if let Some(l) = (0..self.pins.len()).find(|&l| self.pinned(l) == Some(0)) {
            return Err(Misfit::Empty(l));
        }
        let pinned: u64 = (0..self.pins.len()).filter_map(|l| self.pinned(l)).sum();
        let mut exact = self.clone();
        let left = exact.pin(false) && (exact.whole, exact.part) > (0, 0);
        if pinned > self.budget || !left && self.pins.iter().any(Option::is_none) {
            return Err(Misfit::Over);
        }
        if pinned > self.whole {
            self.whole = pinned; // the rounded budget, nothing is left for others
            self.part = 0;
        }
        self.pin(true);
        self.saturate();
        let settled: u64 = self.settled.iter().flatten().sum();
        if self.open().next().is_none() && settled < self.budget { Err(Misfit::Under) } else { Ok(()) }
    }

    /// Weights that a pinned layer keeps.
    pub fn pinned(&self, l: usize) -> Option<u64> {
        self.pins[l].map(|pin| pin.budget(self.sizes[l]))
    }

    /// Takes what pinned layers keep out of the rest, in whole weights or as their densities have it. False if there is
    /// less than that.
    fn pin(&mut self, rounded: bool) -> bool {
        for (l, pin) in self.pins.clone().into_iter().enumerate() {
            let Some(pin) = pin else { continue };
            let count = pin.budget(self.sizes[l]);
            let (whole, part) = if rounded { (count, 0) } else { pin.times(self.sizes[l]) };
            let part = part * (self.unit / pin.unit());
            let borrow = u64::from(part > self.part);
            let Some(rest) = self.whole.checked_sub(whole + borrow) else { return false };
            self.whole = rest;
            self.part = self.part + u128::from(borrow) * self.unit - part;
            self.settled[l] = Some(count);
            self.weight_sum -= self.weights[l];
        }
        true
    }

    /// Settles layers of the highest score w / size as dense, all of one score together, while that score's share is its
    /// size or more. (The paper's test is "more"; a layer that gets its size exactly leaves the others' shares as
    /// they are, and so density 1 needs no case of its own.) `whole` never goes below zero: if the highest score's layers
    /// get their sizes, all others get the rest of it.
    pub fn saturate(&mut self) {
        loop {
            let Some(top) = self.open().max_by(|&a, &b| self.compare_scores(a, b)) else { return };
            if self.target(top).whole < self.sizes[top] {
                return;
            }
            let dense = self.open().filter(|&l| self.compare_scores(l, top) == Ordering::Equal);
            let dense: Vec<_> = dense.map(|l| (l, self.sizes[l])).collect();
            if !self.settle(&dense) {
                return;
            }
        }
    }

    /// The layers that are not settled.
    pub fn open(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.sizes.len()).filter(|&l| self.settled[l].is_none())
    }

    /// Settles what layers keep, those that are settled anew too; the rest is for those still open. False, and nothing
    /// done, if there is less than that.
    pub fn settle(&mut self, counts: &[(usize, u64)]) -> bool {
        let before: u64 = counts.iter().filter_map(|&(l, _)| self.settled[l]).sum();
        let after: u64 = counts.iter().map(|&(_, count)| count).sum();
        let Some(rest) = (self.whole + before).checked_sub(after) else { return false };
        self.whole = rest;
        for &(l, count) in counts {
            if self.settled[l].replace(count).is_none() {
                self.weight_sum -= self.weights[l];
            }
        }
        true
    }

    /// What is settled, and the rest by largest remainder, ties in layer order. `None` where what is settled leaves the open
    /// layers too much or too little; that never happens while only [`Shares::fit`] has settled any.
    pub fn counts(&self) -> Option<Vec<u64>> {
        let mut counts: Vec<u64> = self.settled.iter().map(|count| count.unwrap_or(0)).collect();
        let mut by_remainder = Vec::new();
        for l in self.open() {
            let target = self.target(l);
            counts[l] = target.whole;
            by_remainder.push((target.remainder, l));
        }
        by_remainder.sort_by_key(|(remainder, _)| std::cmp::Reverse(*remainder)); // stable: ties stay in layer order
        // At most one a layer with a remainder: the remainders sum to `left` or miss it by at most one half.
        let left = self.budget.checked_sub(counts.iter().sum())?;
        for &(_, l) in by_remainder.get(..left as usize)? {
            counts[l] += 1;
        }
        Some(counts)
    }

    fn compare_scores(&self, a: usize, b: usize) -> Ordering {
        let cross = |x: usize, y: usize| u128::from(self.weights[x]) * u128::from(self.sizes[y]);
        cross(a, b).cmp(&cross(b, a))
    }

    /// `(whole + part / unit) * weight / weight_sum` of an open layer, density x size of a pinned one.
    pub fn target(&self, l: usize) -> Target {
        if let Some(pin) = self.pins[l] {
            let (whole, part) = pin.times(self.sizes[l]);
            return Target { whole, remainder: (0, part), unit: pin.unit(), weight_sum: 1 };
        }
        let (carry, part) = mul_div(self.part, self.weights[l], self.unit);
        let product = u128::from(self.whole) * u128::from(self.weights[l]) + carry;
        let sum = u128::from(self.weight_sum);
        Target { whole: (product / sum) as u64, remainder: (product % sum, part), unit: self.unit, weight_sum: sum }
    }
}

/// Sizes of all layers; refuses what has no meaning as a layer.
fn sizes(layers: &[Maskable]) -> Result<Vec<u64>> {
    let mut names = HashSet::new();
    let mut sizes = Vec::with_capacity(layers.len());
    for Maskable { name, shape, .. } in layers {
        let size = shape.iter().try_fold(1u64, |size, &side| size.checked_mul(side as u64));
        match size {
            Some(size) if !shape.is_empty() && (1..=u64::from(u32::MAX)).contains(&size) => sizes.push(size),
            _ => {
                return Err(Error::Usage(format!(
                    "layer {name} {shape:?}: a maskable tensor needs 1 to {} weights, which 32-bit positions address",
                    u32::MAX
                )));
            }
        }
        if !names.insert(name) {
            return Err(Error::Usage(format!("layer {name} stands twice: masks are keyed by name, give each its own")));
        }
    }
    Ok(sizes)
}
