// Convolutions in true f32, and the sums that all precisions share. What the kernels do: conv_direct.cuh, conv_weight.cuh.
// Launcher: src/backend/gpu/ops/conv.rs.
#include "conv_direct.cuh"

// Launch: row_tiles * col_tiles blocks of 128 threads, col_tiles of 32 columns; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(128) conv_direct_f32(ConvArgs a) { conv_direct(a); }
EXPORT_KERNEL(conv_direct_f32)
// Launch: (tiles of 16 x 16, splits) blocks of 256 threads.
extern "C" __global__ void __launch_bounds__(256) conv_weight_direct_f32(ConvWeightArgs a) { conv_weight_direct(a); }
EXPORT_KERNEL(conv_weight_direct_f32)
// Launch: (parts, ceil(cpk / 64)) blocks of 128 threads.
extern "C" __global__ void __launch_bounds__(128) conv_bias_f32(ConvBiasArgs a) { conv_bias<float>(a); }
EXPORT_KERNEL(conv_bias_f32)
// Launch: 1-D, at least `count` threads.
extern "C" __global__ void __launch_bounds__(256) conv_sum_f32(ConvSumArgs a) { conv_sum(a); }
EXPORT_KERNEL(conv_sum_f32)
