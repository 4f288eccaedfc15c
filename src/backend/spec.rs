//! What a backend is built from: a network as tensors, parameters, convolutions and norms by index, and its memory plan.

use crate::shape::{BlockShape, ConvGeom};
use std::ops::Range;
use std::sync::Arc;

/// Index into [`Spec::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub u32);
/// Index into [`Spec::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub u32);
/// Index into [`Spec::convs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConvId(pub u32);
/// Index into [`Spec::norms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NormId(pub u32);

/// Index into [`Spec::pools`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u32);

/// Logical shape of one image's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plane {
    /// Channels.
    pub c: u32,
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
}

impl Plane {
    /// Numbers of one image.
    pub fn len(&self) -> usize {
        self.c as usize * self.h as usize * self.w as usize
    }

    /// Numbers of one image's place in the arena: room for one more pixel a channel where their number is even, because a
    /// power of two between channels puts them all into the same cache sets.
    pub fn room(&self) -> usize {
        self.c as usize * ((self.h as usize * self.w as usize) | 1)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A tensor: its logical plane and its place in the arena.
#[derive(Clone, Copy, Debug)]
pub struct TensorSpec {
    /// Shape of one image.
    pub plane: Plane,
    /// First number of its place, in numbers an image: a tensor owns `at .. at + plane.room()` of [`Spec::arena`], times
    /// the batch. Tensors that are never alive at once may overlap.
    pub at: usize,
    /// First write and last use, in operations: a backend whose numbers take other room makes a plan of its own from it.
    pub alive: (usize, usize),
    /// Whether it is kept in f32 where others are kept in less: the logits.
    pub exact: bool,
}

impl TensorSpec {
    /// A tensor that is alive all the time.
    pub fn lasting(plane: Plane, at: usize) -> Self {
        TensorSpec { plane, at, alive: (0, usize::MAX), exact: false }
    }
}

/// Gives places to tensors of `rooms[i]` numbers that are alive from `alive[i].0` to `alive[i].1`: those never alive at once
/// may share. Returns first numbers, and the length of the arena.
///
/// Places are given in order of birth, each the lowest gap that is large enough: what the forward pass saves lies in
/// the order in which it is made, so what the backward pass frees from the end grows together for its gradients.
pub fn place(rooms: &[usize], alive: &[(usize, usize)]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..rooms.len()).collect();
    order.sort_by_key(|&i| alive[i].0);
    let mut at = vec![0; rooms.len()];
    let mut placed: Vec<usize> = Vec::new(); // alive now, by place
    let mut end = 0;
    for i in order {
        placed.retain(|&j| alive[j].1 >= alive[i].0);
        let mut first = 0;
        let gap = placed.iter().position(|&j| {
            let fits = first + rooms[i] <= at[j];
            if !fits {
                first = at[j] + rooms[j];
            }
            fits
        });
        at[i] = first;
        placed.insert(gap.unwrap_or(placed.len()), i);
        end = end.max(first + rooms[i]);
    }
    (at, end)
}

/// A parameter tensor in the flat store.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Logical shape: K,C,R,S for a convolution, out,in for a linear layer, one length for a vector.
    pub shape: Vec<usize>,
    /// Kept positions in the flattened logical shape, strictly ascending; `None`: all of them (nothing is stored for them).
    pub kept: Option<Arc<[u32]>>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Whole blocks that the kept positions consist of (checked: they do), for kernels that skip pruned blocks.
    pub block: Option<BlockShape>,
    /// Its part of each flat store (values, gradients, momentum), in ascending order of position.
    pub range: Range<usize>,
}

/// A convolution, or a linear layer as a 1x1 convolution on a 1x1 plane.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// Geometry of one image.
    pub geom: ConvGeom,
    /// Weight, [K,C,R,S] or [K,C].
    pub weight: ParamId,
    /// Bias [K], if any.
    pub bias: Option<ParamId>,
}

/// A batch norm over N,H,W.
#[derive(Clone, Copy, Debug)]
pub struct NormSpec {
    /// Channels C.
    pub c: u32,
    /// Scale [C].
    pub gamma: ParamId,
    /// Shift [C].
    pub beta: ParamId,
    /// First element in the running store: C means, then C variances.
    pub running: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Weight of the new batch in the running statistics (PyTorch's `momentum`).
    pub momentum: f64,
}

/// Maximum over square windows; padding never wins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolSpec {
    /// Input of one image.
    pub plane: Plane,
    /// Rows and columns of a window.
    pub size: u32,
    /// Distance of windows.
    pub stride: u32,
    /// Cells around the image that belong to no pixel; less than `size`.
    pub pad: u32,
}

/// Everything a backend allocates for: nothing is allocated in a step.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Largest batch; every op takes the number of images actually present, `1..=batch`.
    pub batch: usize,
    /// All activations and activation gradients.
    pub tensors: Vec<TensorSpec>,
    /// Numbers an image that the arena holds.
    pub arena: usize,
    /// Parameters, in store order.
    pub params: Vec<ParamSpec>,
    /// Convolutions and linear layers.
    pub convs: Vec<ConvSpec>,
    /// Batch norms.
    pub norms: Vec<NormSpec>,
    /// Maximum poolings.
    pub pools: Vec<PoolSpec>,
}

impl Spec {
    /// Stored parameters: the length of values, gradients and momentum.
    pub fn stored(&self) -> usize {
        self.params.last().map_or(0, |p| p.range.end)
    }

    /// Where weight decay stops and sets in again, in the flat stores: element `i` has it if an even number of these are at
    /// most `i`. Empty: all have it.
    pub fn decay_flips(&self) -> Vec<usize> {
        let mut flips: Vec<usize> = Vec::new();
        for p in self.params.iter().filter(|p| !p.range.is_empty()) {
            if p.decay != flips.len().is_multiple_of(2) {
                flips.push(p.range.start);
            }
        }
        flips
    }

    /// Length of the running store: two numbers (mean, variance) per norm channel.
    pub fn running(&self) -> usize {
        self.norms.iter().map(|n| 2 * n.c as usize).sum()
    }
}
