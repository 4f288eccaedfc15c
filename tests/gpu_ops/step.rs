//! The kernels that begin and end a step: numbers, learning rates, loss scale.

use super::held::Held;
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::state::StepState;
use sparse_engine::backend::gpu::ops::step::{step_begin, step_end, step_next_batch};

on_every_device!(steps_and_rates, dynamic_loss_scale, batches);

/// Some bits in every field, so that a write to a wrong one shows.
fn some() -> StepState {
    StepState {
        lr: 7.0,
        momentum: 0.9,
        weight_decay: 5e-4,
        nesterov: 1,
        loss_scale: 1024.0,
        unscale: 1.0 / 1024.0,
        hold: 1,
        good: 2,
        broken: 0,
        step: 100,
        first: 98,
        batch: 5,
        held: 11,
        grads_scale: 3.0,
        reserved: 13,
    }
}

fn steps_and_rates<D: Driver>(driver: &D) {
    let rates = [0.5f32, 0.25, 0.125, 0.0625];
    let table = Held::of(driver, &rates);
    let state = Held::of(driver, &[some()]);
    for (step, lr) in [(101, 0.125), (102, 0.0625), (103, 0.0625)] {
        // SAFETY: buffers of these sizes.
        unsafe { step_begin(driver, state.at(), table.at(), 4) }.unwrap();
        assert_eq!(state.get::<StepState>()[0], StepState { step, lr, hold: 0, grads_scale: 1024.0, ..some() });
    }
    // Without rates the one in the state holds; a broken step stays where it was.
    let state = Held::of(driver, &[StepState { broken: 3, step: 0, first: 0, ..some() }]);
    // SAFETY: no rate is read.
    unsafe { step_begin(driver, state.at(), 0, 0) }.unwrap();
    assert_eq!(
        state.get::<StepState>()[0],
        StepState { broken: 3, step: 1, first: 0, hold: 0, grads_scale: 1024.0, ..some() }
    );
}

fn dynamic_loss_scale<D: Driver>(driver: &D) {
    let end = |state: StepState, growth: u32| {
        let held = Held::of(driver, &[state]);
        // SAFETY: one state.
        unsafe { step_end(driver, held.at(), growth) }.unwrap();
        held.get::<StepState>()[0]
    };
    let with =
        |scale: f32, good: u32, hold: u32| StepState { loss_scale: scale, unscale: 1.0 / scale, good, hold, ..some() };
    let next = |state: StepState| StepState { batch: state.batch + 1, ..state };
    let counted = |state: StepState| StepState { held: state.held + u64::from(state.hold), ..next(state) };
    for (before, growth, after) in [
        (with(1024.0, 2, 1), 4, with(512.0, 0, 1)),
        (with(1024.0, 2, 0), 4, with(1024.0, 3, 0)),
        (with(1024.0, 3, 0), 4, with(2048.0, 0, 0)),
        (with(1024.0, 0, 0), 1, with(2048.0, 0, 0)),
        (with(1.0, 9, 1), 4, with(1.0, 0, 1)),
        (with(2.0, 9, 1), 4, with(1.0, 0, 1)),
        (with(16777216.0, 3, 0), 4, with(16777216.0, 0, 0)),
        (with(8388608.0, 3, 0), 4, with(16777216.0, 0, 0)),
        // Static, or none: whatever was held.
        (with(1024.0, 2, 1), 0, with(1024.0, 2, 1)),
        (with(1.0, 2, 0), 0, with(1.0, 2, 0)),
    ] {
        assert_eq!(end(before, growth), counted(after), "{before:?} {growth}");
        let broken = StepState { broken: 3, ..before };
        assert_eq!(end(broken, growth), next(broken), "nothing but the batch moves after a broken step");
    }
}

fn batches<D: Driver>(driver: &D) {
    let word = Held::of(driver, &[u64::from(u32::MAX), 9]);
    // SAFETY: two words.
    unsafe { step_next_batch(driver, word.at()) }.unwrap();
    assert_eq!(word.get::<u64>(), [1 << 32, 9]);
}
