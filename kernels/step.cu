// What begins and ends a training step on the device, so that a captured graph needs nothing from the host: step number,
// learning rate, dynamic loss scale, batch index.
//
// Write rule: each kernel changes only the fields of StepState that it names. Launch of all: one thread.
// Launcher: src/backend/gpu/ops/step.rs, same argument order.
#include "state.cuh"

// step, lr, hold and grads_scale. rates: float [count], the first one for step `first` + 1; beyond the last one, the last one.
extern "C" __global__ void step_begin(StepState* state, const float* rates, uint64_t count) {
    const uint64_t step = state->step + 1, at = step - 1 - state->first;
    state->step = step;
    state->hold = 0;
    state->grads_scale = state->loss_scale;
    if (count) state->lr = rates[at < count ? at : count - 1];
}
EXPORT_KERNEL(step_begin)

// batch and held; and with growth > 0 loss_scale, unscale and good: a held step halves the scale (not below 1), `growth`
// good steps in a row double it (not above 2^24). After a broken step the scale stays.
extern "C" __global__ void step_end(StepState* state, uint32_t growth) {
    state->batch += 1;
    if (state->broken) return;
    state->held += state->hold != 0;
    if (growth == 0) return;
    float scale = state->loss_scale;
    uint32_t good = state->hold ? 0 : state->good + 1;
    if (state->hold) scale = scale > 2.0f ? scale * 0.5f : 1.0f;
    if (good >= growth) {
        scale = scale < 8388608.0f ? scale * 2.0f : 16777216.0f;
        good = 0;
    }
    state->good = good;
    state->loss_scale = scale;
    state->unscale = 1.0f / scale; // exact: a power of two
}
EXPORT_KERNEL(step_end)

// Adds 1 to a word: the batch index of an evaluation, which has no step.
extern "C" __global__ void step_next_batch(uint64_t* batch) { *batch += 1; }
EXPORT_KERNEL(step_next_batch)
