// What steers a training step, in device memory, so that a captured graph can be replayed: the host writes it between
// launches, kernels read it. Same layout as StepState in src/backend/gpu/ops/state.rs.
#pragma once
#include "common.cuh"

struct StepState {
    float lr;           // learning rate of this step
    float momentum;     // mu
    float weight_decay; // wd
    uint32_t nesterov;  // 0 or 1
    float loss_scale;   // the gradient of the loss is multiplied by it, a power of two
    float unscale;      // 1 / loss_scale: gradients are multiplied by it in the update
    uint32_t hold;      // not 0: this step's update writes nothing (a scaled gradient overflowed)
    uint32_t good;      // steps in a row, the last ones, that were not held
    uint64_t broken; // number, from 1, of the first step whose loss was not finite, 0: none; from then on nothing is updated
    uint64_t step;   // steps begun
    uint64_t first;  // steps begun before the one that has the first of the learning rates
    uint64_t batch;  // index in its epoch of the batch that is read; the end of a step adds 1
    uint64_t held;   // steps that `hold` left out so far
    float grads_scale; // loss scale of the step that the gradients in the store are of
    uint32_t reserved;
};
static_assert(sizeof(StepState) == 80, "the host writes 80 bytes");
