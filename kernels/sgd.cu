// Masked SGD with momentum, Nesterov and weight decay, over the stored parameters of all layers in one launch.
//
// Masked without a mask: pruned weights have no element in the store, so nothing is read or written for them. The dense
// operand copies that convolutions read are zero there from allocation on; this step writes only the updated elements.
//
// For each stored parameter, every operation rounded to f32 on its own, in this order:
//     g1 = g * unscale + wd * v               (unscale is a power of two: exact but for overflow and subnormals;
//                                              wd is 0 where `exempt` has a bit)
//     m  = mu * m + g1
//     d  = nesterov ? g1 + mu * m : m        (with the new m)
//     v  = v - lr * d
// which makes CPU, emulation and GPU agree byte for byte (NaN payloads aside).
//
// Write rule: values and momentum are updated in place, each element by exactly one thread, and the copies' elements that
// the map names are overwritten; gradients are read only. Nothing is written in a step that is held or after a broken one.
// Traffic: 20 bytes a parameter (3 reads, 2 writes), with copies 8 of the map and two scattered stores more, with exempt
// parameters an eighth of a byte. Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/sgd.rs, same arguments.
#include "number.cuh"
#include "state.cuh"

// The master values with what mirrors them; same layout as SgdStore in src/backend/gpu/ops/sgd.rs.
struct SgdStore {
    uint64_t values; // float [n]
    uint64_t map;    // Place [n]; 0: no copies
    uint64_t w;      // T: first operand copy, of all layers
    uint64_t wt;     // T: second one
    uint64_t n;
};
static_assert(sizeof(SgdStore) == 40, "the launcher passes 40 bytes");

// Index of a parameter's element in the two copies; NOWHERE: it has none there.
constexpr uint32_t NOWHERE = 0xFFFFFFFFu;
struct alignas(8) Place {
    uint32_t w, wt;
};

template <class T> __device__ __forceinline__ void write_copies(const SgdStore& s, uint64_t i, float v) {
    if (!s.map) return;
    const Place at = reinterpret_cast<const Place*>(s.map)[i];
    const T stored = from_float<T>(v);
    if (at.w != NOWHERE) reinterpret_cast<T*>(s.w)[at.w] = stored;
    if (at.wt != NOWHERE) reinterpret_cast<T*>(s.wt)[at.wt] = stored;
}

// By value; same layout as SgdArgs in src/backend/gpu/ops/sgd.rs.
struct SgdArgs {
    SgdStore store;
    uint64_t grads;    // float [n]
    uint64_t momentum; // float [n]
    uint64_t exempt;   // uint32_t [ceil(n / 32)]: bit i % 32 of word i / 32 set: no weight decay; 0: all have it
    uint64_t state;    // StepState
    uint64_t vectors;  // leading groups of four elements done with 128-bit accesses
};
static_assert(sizeof(SgdArgs) == 80, "the launcher passes 80 bytes");

// Bits from element i on, of the word that holds it.
__device__ __forceinline__ uint32_t exempt_from(const SgdArgs& a, uint64_t i) {
    return a.exempt ? reinterpret_cast<const uint32_t*>(a.exempt)[i / 32] >> (i % 32) : 0;
}

__device__ __forceinline__ void sgd_update(float& v, float g, float& m, uint32_t exempt, const StepState& s) {
    const float wd = exempt & 1 ? 0.0f : s.weight_decay;
    const float g1 = __fadd_rn(__fmul_rn(g, s.unscale), __fmul_rn(wd, v));
    m = __fadd_rn(__fmul_rn(s.momentum, m), g1);
    const float d = s.nesterov ? __fadd_rn(g1, __fmul_rn(s.momentum, m)) : m;
    v = __fsub_rn(v, __fmul_rn(s.lr, d));
}

// Launch: 1-D, at least vectors + (n - 4 * vectors) threads in all, no shared memory, any block size up to 256.
// 4 * vectors <= n; if vectors > 0 values, grads and momentum are 16-byte aligned. Stores do not overlap.
template <class T> __device__ __forceinline__ void sgd_step(const SgdArgs& a) {
    const StepState s = *reinterpret_cast<const StepState*>(a.state);
    if (s.hold || s.broken) return;
    float* __restrict__ values = reinterpret_cast<float*>(a.store.values);
    float* __restrict__ momentum = reinterpret_cast<float*>(a.momentum);
    const float* __restrict__ grads = reinterpret_cast<const float*>(a.grads);
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread < a.vectors) {
        const uint64_t i = 4 * thread;
        float4 v = load4(values + i), m = load4(momentum + i);
        const float4 g = load4(grads + i);
        const uint32_t exempt = exempt_from(a, i); // of all four: i is a multiple of 4
        sgd_update(v.x, g.x, m.x, exempt, s);
        sgd_update(v.y, g.y, m.y, exempt >> 1, s);
        sgd_update(v.z, g.z, m.z, exempt >> 2, s);
        sgd_update(v.w, g.w, m.w, exempt >> 3, s);
        store4(values + i, v);
        store4(momentum + i, m);
        write_copies<T>(a.store, i, v.x);
        write_copies<T>(a.store, i + 1, v.y);
        write_copies<T>(a.store, i + 2, v.z);
        write_copies<T>(a.store, i + 3, v.w);
    } else {
        const uint64_t i = 3 * a.vectors + thread; // 4 * vectors + (thread - vectors)
        if (i < a.store.n) {
            float v = values[i], m = momentum[i];
            sgd_update(v, grads[i], m, exempt_from(a, i), s);
            values[i] = v;
            momentum[i] = m;
            write_copies<T>(a.store, i, v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) sgd_step_f32(SgdArgs a) { sgd_step<float>(a); }
EXPORT_KERNEL(sgd_step_f32)
extern "C" __global__ void __launch_bounds__(256) sgd_step_f16(SgdArgs a) { sgd_step<f16>(a); }
EXPORT_KERNEL(sgd_step_f16)
extern "C" __global__ void __launch_bounds__(256) sgd_step_bf16(SgdArgs a) { sgd_step<bf16>(a); }
EXPORT_KERNEL(sgd_step_bf16)

// All copies from the values, after the host has replaced these. Launch: 1-D, a thread an element, blocks up to 256.
template <class T> __device__ __forceinline__ void copy_values(const SgdStore& s) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < s.n) write_copies<T>(s, i, reinterpret_cast<const float*>(s.values)[i]);
}

extern "C" __global__ void __launch_bounds__(256) copy_values_f32(SgdStore s) { copy_values<float>(s); }
EXPORT_KERNEL(copy_values_f32)
extern "C" __global__ void __launch_bounds__(256) copy_values_f16(SgdStore s) { copy_values<f16>(s); }
EXPORT_KERNEL(copy_values_f16)
extern "C" __global__ void __launch_bounds__(256) copy_values_bf16(SgdStore s) { copy_values<bf16>(s); }
EXPORT_KERNEL(copy_values_bf16)

// Sets StepState.hold if a gradient is infinite or NaN; threads that find one all write the same word. grads: float [n].
// Launch: 1-D, any number of threads; each takes every (number of threads)-th element.
extern "C" __global__ void __launch_bounds__(256) grads_check(const float* grads, uint64_t n, StepState* state) {
    bool bad = false;
    const uint64_t threads = uint64_t(gridDim.x) * blockDim.x;
#pragma unroll 4
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += threads)
        bad |= !(fabsf(grads[i]) <= 3.402823466e38f); // the largest finite f32
    if (bad) state->hold = 1;
}
EXPORT_KERNEL(grads_check)
