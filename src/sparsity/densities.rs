//! How layers share the density: the formula's densities, and exact counts by largest remainder.
//!
//! Uniform and ERK are one rule. Each layer has an integer weight w (uniform: its size; ERK: the sum of its shape, which is
//! the score p = sum / size times the size, paper section 1.4). Some layers are dense; the rest of the density x N weights
//! is shared among the others in proportion to w. A layer that would get its whole size or more is made dense and the
//! others share anew. Everything is a ratio of integers, so neither the dense set nor a tie between remainders hangs on
//! rounding.

use super::budget::mul_div;
use super::{Density, Maskable, Method};
use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::collections::HashSet;

/// The formula's density of each layer, in (0, 1], in layer order. Their size-weighted mean is the density; `Dense` gives
/// ones whatever the density.
pub fn layer_densities(layers: &[Maskable], method: Method, density: Density) -> Result<Vec<f64>> {
    let shares = Shares::new(layers, method, density)?;
    Ok((0..layers.len())
        .map(|l| match method {
            _ if shares.settled[l].is_some() => 1.0,
            Method::Uniform => density.value(),
            _ => {
                let rest = shares.whole as f64 + shares.part as f64 / shares.unit as f64;
                let epsilon = rest / shares.weight_sum as f64;
                (epsilon * shares.weights[l] as f64 / shares.sizes[l] as f64).min(1.0)
            }
        })
        .collect())
}

/// Weights each layer keeps, in layer order: [`Density::budget`] of all weights, distributed over the layers' targets
/// (formula's density x size) by largest remainder, ties by layer order. The sum is the budget exactly, a layer the formula
/// makes dense keeps its size, and each other layer its target rounded down or up, so never more than its size.
/// A layer that would keep nothing is an error that names it.
pub fn layer_counts(layers: &[Maskable], method: Method, density: Density) -> Result<Vec<usize>> {
    let shares = Shares::new(layers, method, density)?;
    let counts = shares.counts().unwrap_or_default(); // what only the formula settles always adds up
    match counts.iter().position(|&count| count == 0) {
        Some(l) => Err(shares.starved(&layers[l], l, density)),
        None => Ok(counts.into_iter().map(|count| count as usize).collect()),
    }
}

/// The shares of all layers: `whole + part / unit` weights for the layers that are not settled, in proportion to `weights`.
#[derive(Clone)]
pub(super) struct Shares {
    pub sizes: Vec<u64>,
    pub weights: Vec<u64>,
    /// What a layer keeps whatever the others do: its size where the formula makes it dense.
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
    pub fn new(layers: &[Maskable], method: Method, density: Density) -> Result<Self> {
        let density = if method == Method::Dense { Density::ONE } else { density };
        let sizes = sizes(layers)?;
        let weights: Vec<u64> = match method {
            Method::Dense | Method::Uniform => sizes.clone(),
            Method::Erk => layers.iter().map(|l| l.shape.iter().map(|&side| side as u64).sum()).collect(),
        };
        let all = sizes.iter().sum();
        let (whole, part) = density.times(all);
        let mut shares = Shares {
            settled: vec![None; sizes.len()],
            budget: density.budget(all),
            whole,
            part,
            unit: density.unit(),
            weight_sum: weights.iter().sum(),
            sizes,
            weights,
        };
        shares.saturate();
        Ok(shares)
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
            let dense: Vec<_> = self.open().filter(|&l| self.compare_scores(l, top) == Ordering::Equal).collect();
            for l in dense {
                self.settle(l, self.sizes[l]);
            }
        }
    }

    /// The layers that are not settled.
    pub fn open(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.sizes.len()).filter(|&l| self.settled[l].is_none())
    }

    /// Settles what a layer keeps; the rest is for those still open. False, and nothing done, if there is less than that.
    pub fn settle(&mut self, l: usize, count: u64) -> bool {
        let Some(rest) = self.whole.checked_sub(count) else { return false };
        self.settled[l] = Some(count);
        self.whole = rest;
        self.weight_sum -= self.weights[l];
        true
    }

    /// What is settled, and the rest by largest remainder, ties in layer order. `None` where what is settled leaves the open
    /// layers too much or too little; that never happens while only [`Shares::saturate`] has settled any.
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

    /// `(whole + part / unit) * weight / weight_sum` of an open layer.
    pub fn target(&self, l: usize) -> Target {
        let (carry, part) = mul_div(self.part, self.weights[l], self.unit);
        let product = u128::from(self.whole) * u128::from(self.weights[l]) + carry;
        let sum = u128::from(self.weight_sum);
        Target { whole: (product / sum) as u64, remainder: (product % sum, part), unit: self.unit, weight_sum: sum }
    }

    pub fn starved(&self, layer: &Maskable, l: usize, density: Density) -> Error {
        // A target is at least density * N * w / sum of w: layers made dense only raise the others' shares.
        let least = self.weights.iter().min().map_or(1, |&w| w) as f64;
        let (weights, sizes) = (self.weights.iter().sum::<u64>() as f64, self.sizes.iter().sum::<u64>() as f64);
        let millionths = (1e6 * weights / (sizes * least)).ceil().min(1e6);
        let size = self.sizes[l];
        let share = self.target(l).remainder.0 as f64 / self.weight_sum as f64 / size as f64;
        Error::Usage(format!(
            "layer {} {:?} would keep none of its {size} weights: its density is {share:.2e} at an overall density of \
             {density}; from density {} (sparsity {}) on every layer keeps one, or choose another method or a wider model",
            layer.name,
            layer.shape,
            millionths / 1e6,
            (1e6 - millionths) / 1e6,
        ))
    }
}

/// Sizes of all layers; refuses what has no meaning as a layer.
fn sizes(layers: &[Maskable]) -> Result<Vec<u64>> {
    let mut names = HashSet::new();
    let mut sizes = Vec::with_capacity(layers.len());
    for Maskable { name, shape } in layers {
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
