//! Mirror of `kernels/state.cuh`.

use crate::backend::SgdStep;

/// What steers a training step, in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepState {
    /// Learning rate of this step.
    pub lr: f32,
    /// Momentum factor.
    pub momentum: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Whether momentum is Nesterov's.
    pub nesterov: u32,
    /// Factor of the loss's gradient, a power of two.
    pub loss_scale: f32,
    /// Its inverse, applied in the update.
    pub unscale: f32,
    /// Not 0: this step's update writes nothing.
    pub hold: u32,
    /// Steps in a row, the last ones, that no overflow held: what a dynamic loss scale grows by.
    pub good: u32,
    /// Number, from 1, of the first step whose loss was not finite; 0: none.
    pub broken: u64,
    /// Steps begun.
    pub step: u64,
    /// Steps begun before the one that has the first of the learning rates.
    pub first: u64,
    /// Index in its epoch of the batch that is read; the end of a step adds 1.
    pub batch: u64,
    /// Steps that `hold` left out so far.
    pub held: u64,
    /// Loss scale of the step that the gradients in the store are of: `loss_scale` at the end of a step is the next one's.
    pub grads_scale: f32,
    /// Fills the last 8 bytes.
    pub reserved: u32,
}

impl From<SgdStep> for StepState {
    /// A step with these factors, rounded to f32, and without a loss scale.
    fn from(step: SgdStep) -> Self {
        StepState {
            lr: step.lr as f32,
            momentum: step.momentum as f32,
            weight_decay: step.weight_decay as f32,
            nesterov: u32::from(step.nesterov),
            loss_scale: 1.0,
            unscale: 1.0,
            grads_scale: 1.0,
            ..StepState::default()
        }
    }
}

const _: () = assert!(size_of::<StepState>() == 80);
