//! Masks whose positions somebody else chose.

use super::{Mask, Maskable, Pattern};
use std::collections::HashMap;

/// Kept positions of one tensor, as a file has them.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenMask {
    /// Parameter name.
    pub name: String,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Kept positions of the flattened tensor, strictly ascending.
    pub kept: Vec<u32>,
}

/// The masks of all layers, in their order; layers that are not given are dense. A mask's density is kept / size, its block
/// that of `pattern` where the positions consist of such.
///
/// # Errors
/// What is wrong, the caller knows the file: a name that no layer has, or twice; another shape; positions out of range or
/// order, or none.
pub fn given_masks(layers: &[Maskable], given: &[GivenMask], pattern: Pattern) -> Result<Vec<Mask>, String> {
    let mut by_name = HashMap::new();
    for mask in given {
        let name = &mask.name;
        let Some(layer) = layers.iter().find(|l| l.name == *name) else {
            let near = crate::error::nearest(name, layers.iter().map(|l| l.name.as_str()));
            let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            let shown: String = name.chars().take(80).collect();
            return Err(format!("mask {shown:?}: the network has no such maskable tensor{hint}"));
        };
        if mask.shape != layer.shape {
            return Err(format!(
                "mask {name}: wanted shape {:?}, got {:?}; is it of another network?",
                layer.shape, mask.shape
            ));
        }
        if by_name.insert(name, &mask.kept).is_some() {
            return Err(format!("mask {name} stands twice; give each tensor one"));
        }
    }
    let mask = |layer: &Maskable| match by_name.get(&layer.name) {
        Some(kept) => self::mask(layer, kept, pattern),
        None => Ok(dense(layer)),
    };
    layers.iter().map(mask).collect()
}

/// The mask of a layer that keeps these positions.
pub(super) fn mask(layer: &Maskable, kept: &[u32], pattern: Pattern) -> Result<Mask, String> {
    let (name, shape, size) = (&layer.name, &layer.shape, layer.size());
    if kept.is_empty() {
        return Err(format!(
            "layer {name} {shape:?} would keep none of its {size} weights; a mask needs one at least in each layer"
        ));
    }
    if let Some(pair) = kept.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(format!("layer {name}: kept positions must ascend, got {} before {}", pair[0], pair[1]));
    }
    if let Some(&last) = kept.last().filter(|&&last| last as usize >= size) {
        return Err(format!("layer {name} {shape:?}: kept position {last} is outside its {size} weights"));
    }
    if kept.len() == size {
        return Ok(dense(layer));
    }
    let block = pattern.block_of(shape, Some(kept));
    let density = kept.len() as f64 / size as f64;
    Ok(Mask { name: name.clone(), shape: shape.clone(), density, kept: Some(kept.into()), block })
}

fn dense(layer: &Maskable) -> Mask {
    Mask { name: layer.name.clone(), shape: layer.shape.clone(), density: 1.0, kept: None, block: None }
}
