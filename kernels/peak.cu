// What multiplies can do at most: products of numbers that stay in registers, in as many independent sums as hide their
// latency. Tensor cores by the same mma.sync as the convolutions'; f32: fused multiply-adds.
//
// Write rule: out, one f32 a thread, the total of its 32 sums. All factors are `one`, 1 for a known answer: the compiler
// must not know it. Traffic: none to speak of. Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/peak.rs, same argument order.
#include "mma.cuh"

template <class T> __device__ __forceinline__ uint32_t words_of(float v) { return pack2(T{}, v, v); }
template <> __device__ __forceinline__ uint32_t words_of<float>(float v) { return to_tf32(v); }

__device__ __forceinline__ void store_total(float* out, const float (&d)[2][4][4]) {
    float total = 0.0f;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) total += d[m][n][i];
    out[uint64_t(blockIdx.x) * blockDim.x + threadIdx.x] = total;
}

// Launch of all: any grid of blocks of 256 threads. A round: 8 multiplies a warp.
template <class T> __device__ __forceinline__ void peak(float* out, float one, uint32_t rounds) {
    float d[2][4][4] = {};
    uint32_t a[2][4], b[4][2];
    const uint32_t word = words_of<T>(one);
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = b[i / 2][i % 2] = word;
    for (uint32_t r = 0; r < rounds; ++r) multiply<T>(d, a, b);
    store_total(out, d);
}

extern "C" __global__ void __launch_bounds__(256) peak_f16(float* out, float one, uint32_t rounds) {
    peak<f16>(out, one, rounds);
}
EXPORT_KERNEL(peak_f16)
extern "C" __global__ void __launch_bounds__(256) peak_bf16(float* out, float one, uint32_t rounds) {
    peak<bf16>(out, one, rounds);
}
EXPORT_KERNEL(peak_bf16)
extern "C" __global__ void __launch_bounds__(256) peak_tf32(float* out, float one, uint32_t rounds) {
    peak<float>(out, one, rounds);
}
EXPORT_KERNEL(peak_tf32)

// A round: 32 multiply-adds a thread.
extern "C" __global__ void __launch_bounds__(256) peak_f32(float* out, float one, uint32_t rounds) {
    float d[2][4][4] = {};
#pragma unroll 4
    for (uint32_t r = 0; r < rounds; ++r)
#pragma unroll
        for (int i = 0; i < 32; ++i) d[i / 16][i / 4 % 4][i % 4] = __fmaf_rn(one, one, d[i / 16][i / 4 % 4][i % 4]);
    store_total(out, d);
}
EXPORT_KERNEL(peak_f32)
