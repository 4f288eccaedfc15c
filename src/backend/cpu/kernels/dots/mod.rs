//! Weight gradient: one dot product a weight, `dw = sum over images and pixels of dy * x`, over a patch of each.
//!
//! Both kernels add to partial sums, one float a weight: who calls them clears these and adds the sums of tasks in a fixed
//! order. Lanes from `lanes` on (images beyond the batch) never contribute, whatever they hold.

pub(crate) mod dense;
pub(crate) mod sparse;
