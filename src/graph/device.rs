//! Whole steps of a network on a GPU: launches only, nothing that waits, so that they can be captured.

use super::Net;
use crate::backend::Backend;
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

/// A backend on a GPU, or one around it.
pub trait OnGpu: Backend {
    /// The device.
    type Driver: Driver;

    /// The backend itself.
    fn gpu(&self) -> &GpuBackend<Self::Driver>;
    /// The backend itself.
    fn gpu_mut(&mut self) -> &mut GpuBackend<Self::Driver>;
}

impl<D: Driver> OnGpu for GpuBackend<D> {
    type Driver = D;

    fn gpu(&self) -> &GpuBackend<D> {
        self
    }
    fn gpu_mut(&mut self) -> &mut GpuBackend<D> {
        self
    }
}

impl<B: OnGpu> Net<B> {
    /// Starts a training step on the next `n` images of the epoch that `feed` has entered.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start_training_step(
        &mut self,
        feed: &Feed<B::Driver>,
        images: &DeviceImages<B::Driver>,
        kind: StepKind,
        n: usize,
    ) -> Result<()> {
        let (x, logits, dlogits) = (self.program().input, self.program().logits, self.program().dlogits);
        self.backend_mut().gpu_mut().start_step(feed, images, kind.crops, x, n)?;
        self.forward(n, true);
        self.backend().gpu().step_loss(feed, logits, dlogits, kind.smoothing, n)?;
        self.backward(n);
        self.backend_mut().gpu_mut().end_step(kind.scale)
    }

    /// Starts the evaluation of the next `n` images, after [`GpuBackend::begin_evaluation`].
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start_evaluation_step(
        &mut self,
        feed: &Feed<B::Driver>,
        images: &DeviceImages<B::Driver>,
        n: usize,
    ) -> Result<()> {
        let (x, logits) = (self.program().input, self.program().logits);
        self.backend().gpu().start_evaluation(feed, images, x, n)?;
        self.forward(n, false);
        self.backend().gpu().end_evaluation(feed, logits, n)
    }
}
