// How kernels over the rows of NHWC tensors divide their work. A block of at most 256 threads takes some rows of one tile
// of channels: threadIdx.x is a group of 8 channels in the tile (neighbours in memory), threadIdx.y a lane over the rows;
// blockDim.y is a power of two. blockIdx.x counts row blocks, blockIdx.y channel tiles; the last tile may reach past the
// channels. Launch geometry: src/backend/gpu/ops/rows.rs.
#pragma once
#include "operand.cuh"

constexpr uint32_t BLOCK_ROWS = 128;    // rows of a block that leaves partial sums or statistics
constexpr uint32_t ROWS_THREADS = 256;  // most threads of such a block

// First of the thread's 8 channels; may lie past the last one.
__device__ __forceinline__ uint32_t tile_channel() { return 8 * (blockIdx.y * blockDim.x + threadIdx.x); }

// Rows that block `block` of `size` rows has.
__device__ __forceinline__ uint32_t block_rows(uint64_t block, uint32_t size, uint64_t rows) {
    const uint64_t left = rows - block * size;
    return left < size ? uint32_t(left) : size;
}

// Adds 16 numbers a thread over the lanes of each group, as a tree over shared memory whose shape follows from blockDim.y
// alone; lane 0 then holds the sums. All threads must call it; `part` may be reused after the next barrier.
__device__ __forceinline__ void sum_lanes(float (&part)[16][ROWS_THREADS]) {
    const uint32_t thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (uint32_t half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
#pragma unroll
            for (int k = 0; k < 16; ++k) part[k][thread] += part[k][thread + half * blockDim.x];
        }
    }
}

// The end of a kernel that finishes a gradient: leaves the block's sums as row `block` of each reduction's partials. All
// threads must call it; `inside`: whether the thread's channels exist.
__device__ __forceinline__ void store_sums(const Finish& f, const Finisher& s, bool inside, uint32_t channel, uint32_t cp,
                                           uint64_t block) {
    SHARED(float, part, [16][ROWS_THREADS]);
    const uint32_t thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (!f.reduce[r].x) continue; // the same for all threads
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            part[i][thread] = s.sum[r][0][i];
            part[8 + i][thread] = s.sum[r][1][i];
        }
        sum_lanes(part);
        if (threadIdx.y == 0 && inside) {
            float2* out = reinterpret_cast<float2*>(f.reduce[r].partials) + block * cp + channel;
#pragma unroll
            for (int i = 0; i < 8; ++i) out[i] = {part[i][thread], part[8 + i][thread]};
        }
        __syncthreads();
    }
}

// dx = or += dy, then the finish; pooled: dy has one row for every `pixels` rows of dx, which share it.
// Launch: gridDim.x = ceil(rows / 128). All threads must call it.
template <class T, bool POOLED>
__device__ __forceinline__ void pass_on(const Operand& dy, const Finish& f, uint64_t rows, uint32_t cp, uint32_t pixels) {
    const uint32_t channel = tile_channel();
    const bool inside = channel < cp;
    Finisher s;
    if (inside) {
        Coefs8 coefs;
        load_coefs(dy, channel, cp, coefs);
        begin_finish(f, channel, cp, s);
        const uint64_t first = uint64_t(blockIdx.x) * BLOCK_ROWS;
        const uint32_t count = block_rows(blockIdx.x, BLOCK_ROWS, rows);
        const float share = POOLED ? __fdiv_rn(1.0f, float(pixels)) : 1.0f;
        for (uint32_t r = threadIdx.y; r < count; r += blockDim.y) {
            float g[8];
            read8<T>(dy, coefs, POOLED ? (first + r) / pixels : first + r, channel, cp, g);
            if (POOLED) {
#pragma unroll
                for (int i = 0; i < 8; ++i) g[i] *= share;
            }
            finish8<T>(f, s, first + r, channel, cp, g);
        }
    }
    store_sums(f, s, inside, channel, cp, blockIdx.x);
}
