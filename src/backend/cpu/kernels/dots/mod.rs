//! Weight gradient: one dot product a weight, `dw = sum over images and pixels of dy * x`, over a patch of each.
//!
//! Both kernels add to partial sums, one float a weight: who calls them clears these and adds the sums of tasks in a fixed
//! order. Lanes from `lanes` on (images beyond the batch) never contribute, whatever they hold.

mod dense;
mod sparse;

pub(in crate::backend::cpu) use dense::dense;
pub(in crate::backend::cpu) use sparse::sparse;

#[cfg(test)]
pub(super) use {dense::Call as DenseCall, dense::blocks, sparse::Call as SparseCall, sparse::tiles};
