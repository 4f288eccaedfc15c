// Kernels that show each rule of the emulation firing; tests/gpu_emu/ launches them. No part of the engine:
// built with feature `emu` only. The faulty ones are faulty on purpose.
#include "../common.cuh"

// out[block] = sum of x over the block's threads, by halving in static shared memory.
// x [grid * block], out [grid]; block a power of two up to 256.
extern "C" __global__ void selftest_block_sum(const float* x, float* out) {
    SHARED(float, part, [256]);
    const unsigned t = threadIdx.x;
    part[t] = x[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = part[0];
}
EXPORT_KERNEL(selftest_block_sum)

// The same, once with shuffles: out[thread] = sum of x over the thread's warp (xor), and down[thread] = sum over the
// lanes from this one on in its group of `width`. x, out, down [block].
extern "C" __global__ void selftest_warp_sum(const float* x, float* out, float* down, int width) {
    const unsigned t = threadIdx.x;
    float s = x[t];
    for (int bits = 16; bits > 0; bits /= 2) s += __shfl_xor_sync(~0u, s, bits);
    out[t] = s;
    float d = x[t];
    for (int by = 1; by < width; by *= 2) {
        const float other = __shfl_down_sync(~0u, d, by, width);
        if (int(t % unsigned(width)) + by < width) d += other;
    }
    down[t] = d;
}
EXPORT_KERNEL(selftest_warp_sum)

// out[t] = (shfl(x, t's group start + 1), shfl_up(x, 1)) in groups of `width`. x [block], out [2 * block].
extern "C" __global__ void selftest_shuffles(const double* x, double* out, int width) {
    const unsigned t = threadIdx.x;
    out[2 * t] = __shfl_sync(~0u, x[t], 1, width);
    out[2 * t + 1] = __shfl_up_sync(~0u, x[t], 1, width);
}
EXPORT_KERNEL(selftest_shuffles)

// Reverses x within the block through dynamic shared memory, with the barrier that this needs or without it.
// x [block], `block * 4` bytes of dynamic shared memory.
extern "C" __global__ void selftest_reverse(float* x, int with_barrier) {
    DYNAMIC_SHARED(float, buffer);
    const unsigned t = threadIdx.x;
    buffer[t] = x[t];
    if (with_barrier) __syncthreads();
    x[t] = buffer[blockDim.x - 1 - t];
}
EXPORT_KERNEL(selftest_reverse)

// Threads below `split` wait at one barrier; the others at another (kind 0), at none (1), or in a shuffle (2).
extern "C" __global__ void selftest_diverge(unsigned split, int kind) {
    if (threadIdx.x < split) {
        __syncthreads();
    } else if (kind == 0) {
        __syncthreads();
    } else if (kind == 2) {
        __syncwarp();
    }
}
EXPORT_KERNEL(selftest_diverge)

// Writes x[at] from one thread.
extern "C" __global__ void selftest_write(float* x, long long at, float v) { x[at] = v; }
EXPORT_KERNEL(selftest_write)

// What uninitialised shared memory holds: out[0] static, out[1] dynamic. out [2], 4 bytes of dynamic shared memory.
extern "C" __global__ void selftest_uninitialised(uint32_t* out) {
    SHARED(uint32_t, one, );
    DYNAMIC_SHARED(uint32_t, two);
    out[0] = one;
    out[1] = *two;
    one = 1; // must not be seen by the next block
    *two = 2;
}
EXPORT_KERNEL(selftest_uninitialised)

// 40 KB of static shared memory.
extern "C" __global__ void selftest_large_static(float* out) {
    SHARED(float, large, [10240]);
    large[threadIdx.x] = 1;
    out[0] = large[0];
}
EXPORT_KERNEL(selftest_large_static)

// A 128-bit load from x + offset elements, stored to out [4].
extern "C" __global__ void selftest_load4(const float* x, unsigned offset, float* out) {
    const float4 v = load4(x + offset);
    out[0] = v.x;
    out[1] = v.y;
    out[2] = v.z;
    out[3] = v.w;
}
EXPORT_KERNEL(selftest_load4)

// counts[0] += threads; counts[1] += linear index of thread and block; seen[linear index] = order of arrival.
// Any grid and block. counts [2], seen [threads in all].
extern "C" __global__ void selftest_indices(unsigned long long* counts, uint32_t* seen) {
    const unsigned in_block = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned i = block * (blockDim.x * blockDim.y * blockDim.z) + in_block;
    seen[i] = uint32_t(atomicAdd(&counts[0], 1));
    atomicAdd(&counts[1], i);
}
EXPORT_KERNEL(selftest_indices)

// a * b + c, rounded twice and once. out [2].
extern "C" __global__ void selftest_rounding(float a, float b, float c, float* out) {
    out[0] = __fadd_rn(__fmul_rn(a, b), c);
    out[1] = __fmaf_rn(a, b, c);
}
EXPORT_KERNEL(selftest_rounding)
