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

// Launch: see pass_on.
template <class T> __device__ __forceinline__ void copy_backward(const CopyArgs& a) {
    pass_on<T, false>(a.dy, a.finish, a.rows, a.cp, 1);
}

extern "C" __global__ void __launch_bounds__(256) copy_backward_f32(CopyArgs a) { copy_backward<float>(a); }
EXPORT_KERNEL(copy_backward_f32)
extern "C" __global__ void __launch_bounds__(256) copy_backward_f16(CopyArgs a) { copy_backward<f16>(a); }
EXPORT_KERNEL(copy_backward_f16)
extern "C" __global__ void __launch_bounds__(256) copy_backward_bf16(CopyArgs a) { copy_backward<bf16>(a); }
EXPORT_KERNEL(copy_backward_bf16)
