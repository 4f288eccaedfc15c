//! Inner kernels of the convolutions: pure functions over pointers, strides and lists. Who calls them cuts the work into
//! tasks, fills the patches they read and finishes what they write.
//!
//! `sparse.rs` and `dense.rs` are forward pass and data gradient, `dots/` is the weight gradient, `patch.rs` has the
//! places and shapes they share, `pack.rs` the weights in the dense kernel's order.
//!
//! Forward pass and data gradient sum in one order, ascending input channel, then kernel row, then kernel column, one
//! fused multiply-add each: dense and sparse kernels, all tile shapes, all channel blocks, AVX2 and AVX-512 give the same
//! bytes.

pub(super) mod dense;
pub(super) mod dots;
pub(super) mod pack;
pub(super) mod patch;
pub(super) mod sparse;
#[cfg(test)]
mod tests;
