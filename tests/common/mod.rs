//! One body a backend operation, for every backend: the tested backend against the f64 reference.
//!
//! Inputs are rounded to the tested type first, so only the arithmetic is judged. A tolerance is eps * sqrt(k) * sum|a*b|
//! of the very sum that is judged, plus what the error of a computed operand adds to it. Whatever an op may not read
//! holds NaN, whatever it may not write is compared. A ReLU mask and a maximum are decided alike in f32 and f64, because
//! the data keep away from where they turn.

pub mod check;
pub mod conv;
pub mod images;
pub mod norm;
pub mod operand;
pub mod pool;
pub mod rig;
pub mod small;
pub mod step;

use sparse_engine::backend::{Backend, Spec};

/// Batch sizes on one backend, in this order: a smaller batch follows a larger one, around the block of 16 images.
pub const COUNTS: [usize; 6] = [33, 5, 16, 1, 17, 3];

/// Every check. Panics at the first fault; the message names the op, the case and the element.
pub fn suite<B: Backend>(make: &dyn Fn(Spec) -> B) {
    norm::check(make);
    conv::check(make);
    small::join(make);
    pool::mean(make);
    pool::max(make);
    small::cross_entropy(make);
    small::sgd(make);
    step::nan_is_kept(make);
    step::tensors_share_places(make);
    step::earlier_batches_leave_no_trace(make);
    step::updates_reach_the_kernels(make);
    step::nets_agree_with_the_reference(make);
    images::gradients_agree_with_the_reference(make);
}
