// The residual join, y = relu?(a + b?), and any other operand written out; logits in f32 whatever they are made of.
//
// Write rule: y is overwritten, padding channels with the zero that the operands have there.
// Traffic: each operand once, y once. Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/join.rs, same arguments.
#include "rows.cuh"

// By value; same layout as Join in src/backend/gpu/ops/join.rs.
struct Join {
    Operand a;
    Operand b;  // a.a == 0: none
    uint64_t y; // Y [rows][cp]
    uint64_t rows;
    uint32_t cp;
    uint32_t relu; // 0 or 1: of the sum
};
static_assert(sizeof(Join) == 88, "the launcher passes 88 bytes");

// Launch: see rows.cuh, gridDim.x * blockDim.y * JOIN_ROWS at least `rows`. A thread keeps its coefficients for JOIN_ROWS
// rows.
constexpr uint32_t JOIN_ROWS = 4;
template <class T, class Y> __device__ __forceinline__ void join_forward(const Join& a) {
    const uint32_t channel = tile_channel();
    if (channel >= a.cp) return;
    Coefs8 ca, cb;
    load_coefs(a.a, channel, a.cp, ca);
    if (a.b.a) load_coefs(a.b, channel, a.cp, cb);
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.y * JOIN_ROWS + threadIdx.y;
#pragma unroll
    for (uint32_t i = 0; i < JOIN_ROWS; ++i) {
        const uint64_t row = first + i * blockDim.y;
        if (row >= a.rows) break;
        float v[8];
        read8<T>(a.a, ca, row, channel, a.cp, v);
        if (a.b.a) {
            float w[8];
            read8<T>(a.b, cb, row, channel, a.cp, w);
#pragma unroll
            for (int k = 0; k < 8; ++k) v[k] += w[k];
        }
        if (a.relu) {
#pragma unroll
            for (int k = 0; k < 8; ++k) v[k] = rectify(v[k]);
        }
        store8(reinterpret_cast<Y*>(a.y) + row * a.cp + channel, v);
    }
}

extern "C" __global__ void __launch_bounds__(256) join_forward_f32(Join a) { join_forward<float, float>(a); }
EXPORT_KERNEL(join_forward_f32)
extern "C" __global__ void __launch_bounds__(256) join_forward_f16(Join a) { join_forward<f16, f16>(a); }
EXPORT_KERNEL(join_forward_f16)
extern "C" __global__ void __launch_bounds__(256) join_forward_bf16(Join a) { join_forward<bf16, bf16>(a); }
EXPORT_KERNEL(join_forward_bf16)
extern "C" __global__ void __launch_bounds__(256) join_widen_f16(Join a) { join_forward<f16, float>(a); }
EXPORT_KERNEL(join_widen_f16)
extern "C" __global__ void __launch_bounds__(256) join_widen_bf16(Join a) { join_forward<bf16, float>(a); }
EXPORT_KERNEL(join_widen_bf16)
