//! The memory plan: tensors that are never alive at once share places.

use crate::backend::TensorSpec;
use std::ops::RangeInclusive;

/// Gives every tensor its place. `alive[i]` is the time from tensor i's first write to its last use. Returns the length
/// of the arena.
///
/// Places are given in order of birth, each the lowest gap that is large enough: what the forward pass saves lies in
/// the order in which it is made, so what the backward pass frees from the end grows together for its gradients.
pub(super) fn place(tensors: &mut [TensorSpec], alive: &[RangeInclusive<usize>]) -> usize {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| *alive[i].start());
    let mut placed: Vec<usize> = Vec::new(); // alive now, by place
    let mut end = 0;
    for i in order {
        placed.retain(|&j| alive[j].end() >= alive[i].start());
        let len = tensors[i].plane.room();
        let mut at = 0;
        let gap = placed.iter().position(|&j| {
            let fits = at + len <= tensors[j].at;
            if !fits {
                at = tensors[j].at + tensors[j].plane.room();
            }
            fits
        });
        tensors[i].at = at;
        placed.insert(gap.unwrap_or(placed.len()), i);
        end = end.max(at + len);
    }
    end
}
