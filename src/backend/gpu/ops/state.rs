//! Mirror of `kernels/state.cuh`.

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
    /// Zero.
    pub reserved: u32,
    /// Number, from 1, of the first step whose loss was not finite; 0: none.
    pub broken: u64,
    /// Steps begun.
    pub step: u64,
    /// Zero.
    pub reserved2: [u64; 2],
}

const _: () = assert!(size_of::<StepState>() == 64);
