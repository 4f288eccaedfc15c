// Mean over the pixels of each image, x [n][pixels][cp] -> y [n][cp], and its gradient dx = or += dy / pixels.
//
// A pixel sum is added in f32 in an order that follows from the shape alone. Write rule: y is overwritten, dx and partials
// as Finish says; padding channels get the zero that the operand has there.
// Traffic: x once and y; backward dx, what Finish reads, and dy. Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/pool.rs, same arguments.
#include "rows.cuh"

// By value; same layout as PoolForward in src/backend/gpu/ops/pool.rs.
struct PoolForward {
    Operand x;  // [n * pixels][cp]
    uint64_t y; // T [n][cp]
    uint64_t pixels;
    uint32_t cp;
    uint32_t reserved;
};
static_assert(sizeof(PoolForward) == 56, "the launcher passes 56 bytes");

// Launch: see rows.cuh; gridDim.x = n.
template <class T> __device__ __forceinline__ void pool_forward(const PoolForward& a) {
    SHARED(float, part, [16][ROWS_THREADS]); // sums of 8 channels; the other 8 are not used
    const uint32_t channel = tile_channel(), thread = threadIdx.y * blockDim.x + threadIdx.x;
    const bool inside = channel < a.cp;
    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = 0.0f;
    if (inside) {
        Coefs8 coefs;
        load_coefs(a.x, channel, a.cp, coefs);
        const uint64_t first = blockIdx.x * a.pixels;
#pragma unroll 4
        for (uint64_t p = threadIdx.y; p < a.pixels; p += blockDim.y) {
            float v[8];
            read8<T>(a.x, coefs, first + p, channel, a.cp, v);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += v[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        part[i][thread] = sum[i];
        part[8 + i][thread] = 0.0f;
    }
    sum_lanes(part);
    if (threadIdx.y == 0 && inside) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] = __fdiv_rn(part[i][thread], float(a.pixels));
        store8(reinterpret_cast<T*>(a.y) + uint64_t(blockIdx.x) * a.cp + channel, sum);
    }
}

extern "C" __global__ void __launch_bounds__(256) pool_forward_f32(PoolForward a) { pool_forward<float>(a); }
EXPORT_KERNEL(pool_forward_f32)
extern "C" __global__ void __launch_bounds__(256) pool_forward_f16(PoolForward a) { pool_forward<f16>(a); }
EXPORT_KERNEL(pool_forward_f16)
extern "C" __global__ void __launch_bounds__(256) pool_forward_bf16(PoolForward a) { pool_forward<bf16>(a); }
EXPORT_KERNEL(pool_forward_bf16)

// By value; same layout as PoolBackward in src/backend/gpu/ops/pool.rs.
struct PoolBackward {
    Operand dy; // [n][cp]
    Finish finish;
    uint64_t rows; // n * pixels
    uint32_t pixels;
    uint32_t cp;
};
static_assert(sizeof(PoolBackward) == 144, "the launcher passes 144 bytes");

// Launch: see pass_on.
template <class T> __device__ __forceinline__ void pool_backward(const PoolBackward& a) {
    pass_on<T, true>(a.dy, a.finish, a.rows, a.cp, a.pixels);
}

extern "C" __global__ void __launch_bounds__(256) pool_backward_f32(PoolBackward a) { pool_backward<float>(a); }
EXPORT_KERNEL(pool_backward_f32)
extern "C" __global__ void __launch_bounds__(256) pool_backward_f16(PoolBackward a) { pool_backward<f16>(a); }
EXPORT_KERNEL(pool_backward_f16)
extern "C" __global__ void __launch_bounds__(256) pool_backward_bf16(PoolBackward a) { pool_backward<bf16>(a); }
EXPORT_KERNEL(pool_backward_bf16)
