//! Whole steps of a network on a GPU: launches only, nothing that waits, so that they can be captured.

use super::Net;
use crate::backend::gpu::{Crops, DeviceImages, Driver, Feed, GpuBackend, LossScale};
use crate::error::Result;

/// What a training step does beside the network's own operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepKind {
    /// Random crop and flip.
    pub crops: Crops,
    /// Label smoothing.
    pub smoothing: f64,
    /// Factor of the loss's gradient.
    pub scale: LossScale,
}

impl<D: Driver> Net<GpuBackend<D>> {
    /// Starts a training step on the next `n` images of the epoch that `feed` has entered.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start_training_step(
        &mut self,
        feed: &Feed<D>,
        images: &DeviceImages<D>,
        kind: StepKind,
        n: usize,
    ) -> Result<()> {
        let (x, logits, dlogits) = (self.program().input, self.program().logits, self.program().dlogits);
        self.backend_mut().start_step(feed, images, kind.crops, x, n)?;
        self.forward(n, true);
        self.backend().step_loss(feed, logits, dlogits, kind.smoothing, n)?;
        self.backward(n);
        self.backend_mut().end_step(kind.scale)
    }

    /// Starts the evaluation of the next `n` images, after [`GpuBackend::begin_evaluation`].
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start_evaluation_step(&mut self, feed: &Feed<D>, images: &DeviceImages<D>, n: usize) -> Result<()> {
        let (x, logits) = (self.program().input, self.program().logits);
        self.backend().start_evaluation(feed, images, x, n)?;
        self.forward(n, false);
        self.backend().end_evaluation(feed, logits, n)
    }
}
