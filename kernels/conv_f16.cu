// Convolutions with f16 tensors and tensor cores; sums are f32. What the kernels do: conv_*.cuh.
// Launcher: src/backend/gpu/ops/conv.rs.
#include "conv_gather.cuh"
#include "conv_patch.cuh"
#include "conv_weight.cuh"

// Launch: row_tiles * col_tiles blocks of 128 threads (128 columns: 256), no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(128, 3) conv_gather16_f16(ConvArgs a) { conv_gather<f16, 16, false>(a); }
EXPORT_KERNEL(conv_gather16_f16)
extern "C" __global__ void __launch_bounds__(128, 3) conv_gather32_f16(ConvArgs a) { conv_gather<f16, 32, false>(a); }
EXPORT_KERNEL(conv_gather32_f16)
extern "C" __global__ void __launch_bounds__(128, 3) conv_gather64_f16(ConvArgs a) { conv_gather<f16, 64, false>(a); }
EXPORT_KERNEL(conv_gather64_f16)
extern "C" __global__ void __launch_bounds__(256) conv_gather128_f16(ConvArgs a) { conv_gather<f16, 128, false>(a); }
EXPORT_KERNEL(conv_gather128_f16)
// The same with the block lists of a mask.
extern "C" __global__ void __launch_bounds__(128, 3) conv_blocks32_f16(ConvArgs a) { conv_gather<f16, 32, true>(a); }
EXPORT_KERNEL(conv_blocks32_f16)
extern "C" __global__ void __launch_bounds__(128, 3) conv_blocks64_f16(ConvArgs a) { conv_gather<f16, 64, true>(a); }
EXPORT_KERNEL(conv_blocks64_f16)
extern "C" __global__ void __launch_bounds__(256) conv_blocks128_f16(ConvArgs a) { conv_gather<f16, 128, true>(a); }
EXPORT_KERNEL(conv_blocks128_f16)

// The same, with the dynamic shared memory that conv_patch.cuh says.
extern "C" __global__ void __launch_bounds__(128, 4) conv_patch16_f16(ConvArgs a) { conv_patch<f16, 16>(a); }
EXPORT_KERNEL(conv_patch16_f16)
extern "C" __global__ void __launch_bounds__(128, 4) conv_patch32_f16(ConvArgs a) { conv_patch<f16, 32>(a); }
EXPORT_KERNEL(conv_patch32_f16)
extern "C" __global__ void __launch_bounds__(128, 4) conv_patch64_f16(ConvArgs a) { conv_patch<f16, 64>(a); }
EXPORT_KERNEL(conv_patch64_f16)
extern "C" __global__ void __launch_bounds__(256) conv_patch128_f16(ConvArgs a) { conv_patch<f16, 128>(a); }
EXPORT_KERNEL(conv_patch128_f16)

// Launch: (tiles, splits) blocks of 128 threads (tile 128: 256), no dynamic shared memory. Tiles are 16 x 64, 32 x 64,
// 64 x 64 and 128 x 128.
extern "C" __global__ void __launch_bounds__(128) conv_weight16_f16(ConvWeightArgs a) { conv_weight<f16, 16, 64, 1, 1, 4, false>(a); }
EXPORT_KERNEL(conv_weight16_f16)
extern "C" __global__ void __launch_bounds__(128) conv_weight32_f16(ConvWeightArgs a) { conv_weight<f16, 32, 64, 1, 2, 2, false>(a); }
EXPORT_KERNEL(conv_weight32_f16)
extern "C" __global__ void __launch_bounds__(128) conv_weight64_f16(ConvWeightArgs a) { conv_weight<f16, 64, 64, 2, 2, 1, false>(a); }
EXPORT_KERNEL(conv_weight64_f16)
extern "C" __global__ void __launch_bounds__(256) conv_weight128_f16(ConvWeightArgs a) { conv_weight<f16, 128, 128, 4, 2, 1, false>(a); }
EXPORT_KERNEL(conv_weight128_f16)
// The same with the active blocks of a mask.
extern "C" __global__ void __launch_bounds__(128) conv_weight_blocks16_f16(ConvWeightArgs a) {
    conv_weight<f16, 16, 64, 1, 1, 4, true>(a);
}
EXPORT_KERNEL(conv_weight_blocks16_f16)
extern "C" __global__ void __launch_bounds__(128) conv_weight_blocks32_f16(ConvWeightArgs a) {
    conv_weight<f16, 32, 64, 1, 2, 2, true>(a);
}
EXPORT_KERNEL(conv_weight_blocks32_f16)
extern "C" __global__ void __launch_bounds__(128) conv_weight_blocks64_f16(ConvWeightArgs a) {
    conv_weight<f16, 64, 64, 2, 2, 1, true>(a);
}
EXPORT_KERNEL(conv_weight_blocks64_f16)
extern "C" __global__ void __launch_bounds__(256) conv_weight_blocks128_f16(ConvWeightArgs a) {
    conv_weight<f16, 128, 128, 4, 2, 1, true>(a);
}
EXPORT_KERNEL(conv_weight_blocks128_f16)

// Launch: (parts, ceil(cpk / 64)) blocks of 128 threads.
extern "C" __global__ void __launch_bounds__(128) conv_bias_f16(ConvBiasArgs a) { conv_bias<f16>(a); }
EXPORT_KERNEL(conv_bias_f16)
