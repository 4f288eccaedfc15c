// Masked SGD with momentum, Nesterov and weight decay, over the stored parameters of all layers in one launch.
//
// Masked without a mask: pruned weights have no element in the store, so nothing is read or written for them.
//
// For each stored parameter, every operation rounded to f32 on its own, in this order:
//     g1 = g + wd * v
//     m  = mu * m + g1
//     d  = nesterov ? g1 + mu * m : m        (with the new m)
//     v  = v - lr * d
// which makes CPU, emulation and GPU agree byte for byte (NaN payloads aside).
//
// Write rule: values and momentum are updated in place, each element by exactly one thread; gradients are read only.
// Traffic: 20 bytes a parameter (3 reads, 2 writes). Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/sgd.rs, same argument order.
#include "common.cuh"

// By value; same layout as SgdArgs in src/backend/gpu/ops/sgd.rs.
struct SgdArgs {
    uint64_t n;         // elements of each store
    uint64_t vectors;   // leading groups of four elements done with 128-bit accesses
    float lr;           // learning rate
    float momentum;     // mu
    float weight_decay; // wd
    uint32_t nesterov;  // 0 or 1
};
static_assert(sizeof(SgdArgs) == 32, "the launcher passes 32 bytes");

__device__ __forceinline__ void sgd_update(float& v, float g, float& m, const SgdArgs& a) {
    const float g1 = __fadd_rn(g, __fmul_rn(a.weight_decay, v));
    m = __fadd_rn(__fmul_rn(a.momentum, m), g1);
    const float d = a.nesterov ? __fadd_rn(g1, __fmul_rn(a.momentum, m)) : m;
    v = __fsub_rn(v, __fmul_rn(a.lr, d));
}

// sgd_step: values [n], grads [n], momentum [n], f32, not overlapping.
// Launch: 1-D, at least vectors + (n - 4 * vectors) threads in all, no shared memory, any block size up to 256.
// 4 * vectors <= n; if vectors > 0 all three pointers are 16-byte aligned.
extern "C" __global__ void __launch_bounds__(256)
    sgd_step(float* __restrict__ values, const float* __restrict__ grads, float* __restrict__ momentum, SgdArgs a) {
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread < a.vectors) {
        const uint64_t i = 4 * thread;
        float4 v = load4(values + i), m = load4(momentum + i);
        const float4 g = load4(grads + i);
        sgd_update(v.x, g.x, m.x, a);
        sgd_update(v.y, g.y, m.y, a);
        sgd_update(v.z, g.z, m.z, a);
        sgd_update(v.w, g.w, m.w, a);
        store4(values + i, v);
        store4(momentum + i, m);
    } else {
        const uint64_t i = 3 * a.vectors + thread; // 4 * vectors + (thread - vectors)
        if (i < a.n) {
            float v = values[i], m = momentum[i];
            sgd_update(v, grads[i], m, a);
            values[i] = v;
            momentum[i] = m;
        }
    }
}
EXPORT_KERNEL(sgd_step)
