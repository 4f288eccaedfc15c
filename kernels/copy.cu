// A gradient passed on: dx = or += dy, then what completes a gradient (Finish).
//
// Write rule: dx and partials as Finish says; padding channels get the zero that dy has there.
// Traffic: dy (and the norm's input behind it), dx, the mask's tensor, the reductions' tensors, each once.
// Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/copy.rs, same arguments.
#include "rows.cuh"

// By value; same layout as CopyArgs in src/backend/gpu/ops/copy.rs.
struct CopyArgs {
    Operand dy;
    Finish finish;
    uint64_t rows;
    uint32_t cp;
    uint32_t reserved;
};
static_assert(sizeof(CopyArgs) == 144, "the launcher passes 144 bytes");

// Launch: see rows.cuh; gridDim.x = ceil(rows / 128).
template <class T> __device__ __forceinline__ void copy_backward(const CopyArgs& a) {
    const uint32_t channel = tile_channel();
    const bool inside = channel < a.cp;
    Finisher s;
    if (inside) {
        Coefs8 coefs;
        load_coefs(a.dy, channel, a.cp, coefs);
        begin_finish(a.finish, channel, a.cp, s);
        const uint64_t first = uint64_t(blockIdx.x) * BLOCK_ROWS;
        const uint32_t count = block_rows(blockIdx.x, BLOCK_ROWS, a.rows);
        for (uint32_t r = threadIdx.y; r < count; r += blockDim.y) {
            float g[8];
            read8<T>(a.dy, coefs, first + r, channel, a.cp, g);
            finish8<T>(a.finish, s, first + r, channel, a.cp, g);
        }
    }
    store_sums(a.finish, s, inside, channel, a.cp, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(256) copy_backward_f32(CopyArgs a) { copy_backward<float>(a); }
EXPORT_KERNEL(copy_backward_f32)
extern "C" __global__ void __launch_bounds__(256) copy_backward_f16(CopyArgs a) { copy_backward<f16>(a); }
EXPORT_KERNEL(copy_backward_f16)
extern "C" __global__ void __launch_bounds__(256) copy_backward_bf16(CopyArgs a) { copy_backward<bf16>(a); }
EXPORT_KERNEL(copy_backward_bf16)
