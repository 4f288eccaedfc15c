// Convolutions with f16 tensors and tensor cores; sums are f32. What the kernels do: conv_*.cuh.
// Launcher: src/backend/gpu/ops/conv.rs.
#include "conv_gather.cuh"

// conv_gather<columns>: launch with row_tiles * col_tiles blocks of 128 threads (128 columns: 256), no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(128, 3) conv_gather16_f16(ConvArgs a) { conv_gather<f16, 16, false>(a); }
EXPORT_KERNEL(conv_gather16_f16)
extern "C" __global__ void __launch_bounds__(128, 3) conv_gather32_f16(ConvArgs a) { conv_gather<f16, 32, false>(a); }
EXPORT_KERNEL(conv_gather32_f16)
extern "C" __global__ void __launch_bounds__(128, 3) conv_gather64_f16(ConvArgs a) { conv_gather<f16, 64, false>(a); }
EXPORT_KERNEL(conv_gather64_f16)
extern "C" __global__ void __launch_bounds__(256, 1) conv_gather128_f16(ConvArgs a) { conv_gather<f16, 128, false>(a); }
EXPORT_KERNEL(conv_gather128_f16)
