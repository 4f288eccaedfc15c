// Included first by every kernel file. Under nvcc it is a thin layer over CUDA; under a C++17 host compiler
// (feature `emu`) it brings in the emulation, so that one source runs on both.
//
// Rules for kernels here:
// - `extern "C" __global__`, then EXPORT_KERNEL(name): the name is a literal that grep finds in launcher and .cu.
// - Shared memory is declared with SHARED or DYNAMIC_SHARED: the emulation poisons and bounds it.
// - Where bytes must agree with the CPU, arithmetic uses __fmul_rn, __fadd_rn, ...: nvcc contracts a*b + c into an
//   FMA elsewhere, which rounds once instead of twice.
// - No early return above a barrier.
#pragma once

#ifdef __CUDACC__

#include <cstddef>
#include <cstdint>

// SHARED(float, tile, [32][33]) declares `tile`, private to the block, uninitialised.
#define SHARED(type, name, dims) __shared__ type name dims
// DYNAMIC_SHARED(float, buffer) declares `float* buffer`, 16-byte aligned, of the size given at launch.
#define DYNAMIC_SHARED(type, name)                                      \
    extern __shared__ __align__(16) unsigned char dynamic_shared_raw[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_raw)
#define EXPORT_KERNEL(name)
// What the instruction that follows wants of an address; the emulation reports it, a GPU faults.
#define CHECK_ALIGNED(pointer, bytes) ((void)(pointer))
#define CHECK_SHARED(pointer, bytes) ((void)(pointer))

#else

#include "emu/cuda.hpp"

#endif

// One 128-bit load; `p` must be 16-byte aligned (the emulation reports it, a GPU faults).
__device__ __forceinline__ float4 load4(const float* p) {
    CHECK_ALIGNED(p, 16);
    return *reinterpret_cast<const float4*>(p);
}

// One 128-bit store; `p` must be 16-byte aligned.
__device__ __forceinline__ void store4(float* p, float4 v) {
    CHECK_ALIGNED(p, 16);
    *reinterpret_cast<float4*>(p) = v;
}
