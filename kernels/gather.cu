// What surrounds a dense product of a vendor's library: the non-zeros' gradients taken out of a dense one, the bias that a
// product has not, and zeros where a batch is not full.
//
// Write rule: conv_gather_grads and zero_fill overwrite; conv_add_bias rewrites in place.
// Traffic: conv_gather_grads 8 bytes of the map, one scattered load and 4 bytes written a non-zero; conv_add_bias reads and
// writes the tensor once. Not yet timed on a GPU.
// Launchers: src/backend/gpu/ops/gather.rs, same arguments.
#include "rows.cuh"

// By value; same layout as GatherArgs in src/backend/gpu/ops/gather.rs.
struct GatherArgs {
    uint64_t places; // two words a non-zero: the first is its index in the operand copies of all layers (Place.w, sgd.cu)
    uint64_t dense;  // T: the layer's dense gradient, in the order of its operand copy
    uint64_t grads;  // float [n]
    uint64_t n;
    uint32_t first; // index of the layer's first element in the operand copies
    uint32_t reserved;
};
static_assert(sizeof(GatherArgs) == 40, "the launcher passes 40 bytes");

// Launch: 1-D, at least n threads.
template <class T> __device__ __forceinline__ void conv_gather_grads(const GatherArgs& a) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= a.n) return;
    const uint32_t at = reinterpret_cast<const uint32_t*>(a.places)[2 * i] - a.first;
    reinterpret_cast<float*>(a.grads)[i] = to_float(reinterpret_cast<const T*>(a.dense)[at]);
}

extern "C" __global__ void __launch_bounds__(256) conv_gather_grads_f32(GatherArgs a) { conv_gather_grads<float>(a); }
EXPORT_KERNEL(conv_gather_grads_f32)
extern "C" __global__ void __launch_bounds__(256) conv_gather_grads_f16(GatherArgs a) { conv_gather_grads<f16>(a); }
EXPORT_KERNEL(conv_gather_grads_f16)
extern "C" __global__ void __launch_bounds__(256) conv_gather_grads_bf16(GatherArgs a) { conv_gather_grads<bf16>(a); }
EXPORT_KERNEL(conv_gather_grads_bf16)

// By value; same layout as BiasArgs in src/backend/gpu/ops/gather.rs.
struct BiasArgs {
    uint64_t y;    // T [rows][cp]
    uint64_t bias; // float [k]
    uint64_t rows;
    uint32_t k;
    uint32_t cp;
};
static_assert(sizeof(BiasArgs) == 32, "the launcher passes 32 bytes");

// y += bias; padding channels keep what they hold. Launch: see rows.cuh, gridDim.x * blockDim.y * BIAS_ROWS at least `rows`.
constexpr uint32_t BIAS_ROWS = 4;
template <class T> __device__ __forceinline__ void conv_add_bias(const BiasArgs& a) {
    const uint32_t channel = tile_channel();
    if (channel >= a.cp) return;
    float bias[8];
#pragma unroll
    for (int k = 0; k < 8; ++k)
        bias[k] = channel + k < a.k ? reinterpret_cast<const float*>(a.bias)[channel + k] : 0.0f;
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.y * BIAS_ROWS + threadIdx.y;
#pragma unroll
    for (uint32_t i = 0; i < BIAS_ROWS; ++i) {
        const uint64_t row = first + i * blockDim.y;
        if (row >= a.rows) break;
        T* y = reinterpret_cast<T*>(a.y) + row * a.cp + channel;
        float v[8];
        load8(y, v);
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] += bias[k];
        store8(y, v);
    }
}

extern "C" __global__ void __launch_bounds__(256) conv_add_bias_f32(BiasArgs a) { conv_add_bias<float>(a); }
EXPORT_KERNEL(conv_add_bias_f32)
extern "C" __global__ void __launch_bounds__(256) conv_add_bias_f16(BiasArgs a) { conv_add_bias<f16>(a); }
EXPORT_KERNEL(conv_add_bias_f16)
extern "C" __global__ void __launch_bounds__(256) conv_add_bias_bf16(BiasArgs a) { conv_add_bias<bf16>(a); }
EXPORT_KERNEL(conv_add_bias_bf16)

// Zeros, from a 16-byte aligned address on. Launch: 1-D, any number of threads; each takes every (number of threads)-th word.
extern "C" __global__ void __launch_bounds__(256) zero_fill(uint64_t at, uint64_t words) {
    const uint64_t threads = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < words; i += threads)
        store16(reinterpret_cast<uint4x*>(at) + i, {0, 0, 0, 0});
}
EXPORT_KERNEL(zero_fill)
