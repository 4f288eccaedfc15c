//! Which positions a layer keeps. A position's random number depends on seed, layer name and position alone, so neither
//! other layers, their order, thread counts nor the values a mask selects can change a mask.

use super::{Density, Draw, Form, Mask, Maskable, Pattern, Ratio, blocks, layer_densities, layer_shares};
use crate::error::{Error, Result};
use crate::memory;
use crate::rng::{Purpose, Stream};

/// Draws the masks of all maskable tensors, in their order, from the streams (seed, [`Purpose::Mask`], layer name).
///
/// # Nesting
/// Both draws rank the positions of a layer by the same random numbers, so with one seed two masks of a layer are always
/// nested: the one with fewer positions (exact) or the lower formula's density (Bernoulli) lies inside the other. A layer's
/// formula density never falls when the density rises, for every ratio but given counts. Whole networks therefore nest with
/// Bernoulli. With exact counts they nest layer by layer, but not always in one direction: largest remainder can take one
/// weight from a layer as the budget grows (the Alabama paradox), though only where the layer's own target rose by less
/// than one weight. ResNet-20 nests with ERK on any grid of densities 0.00025 or more apart, with uniform 0.0025 (tested).
pub fn draw_masks(layers: &[Maskable], ratio: &Ratio, density: Density, draw: Draw, seed: u64) -> Result<Vec<Mask>> {
    draw_patterns(layers, ratio, density, Pattern::Unstructured, draw, seed)
}

/// The same, of single weights or of blocks. Where [`layer_shares`] gives a layer single weights, it draws the very positions
/// that an unstructured mask of that count has. Blocks are random but for the balance of block rows and columns; blocks
/// of one seed at two densities do not nest. Bernoulli draws have no blocks: exact counts only.
pub fn draw_patterns(
    layers: &[Maskable],
    ratio: &Ratio,
    density: Density,
    pattern: Pattern,
    draw: Draw,
    seed: u64,
) -> Result<Vec<Mask>> {
    pattern.check(draw)?;
    let shares = match draw {
        Draw::Exact => layer_shares(layers, ratio, density, pattern)?,
        Draw::Bernoulli => Vec::new(),
    };
    let densities = layer_densities(layers, ratio, density)?;
    let mut masks = Vec::with_capacity(layers.len());
    let largest = layers.iter().map(Maskable::size).max().unwrap_or(0) as u64;
    let kept = layers.iter().zip(&densities).map(|(l, d)| (l.size() as f64 * d) as u64).sum::<u64>();
    memory::check(16 * largest + 8 * kept, "drawing masks", "make the largest layer smaller, or the density lower")?;
    for (l, (layer, &layer_density)) in layers.iter().zip(&densities).enumerate() {
        let (stream, size) = (Stream::new(seed, Purpose::Mask, &layer.name), layer.size());
        let kept = match (draw, shares.get(l)) {
            (Draw::Exact, Some(share)) => match share.form {
                Form::Dense => None,
                Form::Unstructured(_) => Some(exact(&stream, size, share.nnz)),
                Form::Blocks { block, kept, .. } => Some(blocks::draw(&stream, &layer.shape, block, kept)),
            },
            _ if layer_density == 1.0 => None,
            _ => Some(bernoulli(&stream, size, layer_density)).filter(|kept| kept.len() < size),
        };
        if kept.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Usage(format!(
                "layer {} {:?}: the Bernoulli draw of seed {seed} keeps none of its {size} weights at density \
                 {layer_density:.2e}; use a higher density, exact counts or another mask seed",
                layer.name, layer.shape
            )));
        }
        let block = pattern.block_of(&layer.shape, kept.as_deref());
        masks.push(Mask {
            name: layer.name.clone(),
            shape: layer.shape.clone(),
            density: layer_density,
            kept: kept.map(Into::into),
            block,
        });
    }
    Ok(masks)
}

/// The `count` positions of smallest random key, ties by position; `1 <= count < size`.
fn exact(stream: &Stream, size: usize, count: usize) -> Vec<u32> {
    let keys: Vec<u64> = (0..size as u64).map(|i| stream.bits(i)).collect();
    let mut ranked = keys.clone();
    let (below, &mut limit, _) = ranked.select_nth_unstable(count - 1);
    let mut ties = count - below.iter().filter(|&&key| key < limit).count();
    let mut kept = Vec::with_capacity(count);
    for (i, &key) in keys.iter().enumerate() {
        let tie = key == limit && ties > 0;
        ties -= usize::from(tie);
        if key < limit || tie {
            kept.push(i as u32);
        }
    }
    kept
}

/// Each position with probability `density`.
fn bernoulli(stream: &Stream, size: usize, density: f64) -> Vec<u32> {
    (0..size as u64).filter(|&i| stream.uniform(i) < density).map(|i| i as u32).collect()
}
