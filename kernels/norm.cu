// Batch norm but for its application, which operands do while they are read (operand.cuh).
//
// Forward: norm_stats leaves (mean, M2) a channel of each 128 rows, M2 = sum((x - mean)^2); norm_coefs merges them into
//     scale = gamma * rstd, shift = beta - mean * scale, rstd = 1 / sqrt(M2 / count + eps).
// Backward, with S1 = sum(g), S2 = sum(g * (x - mean)) of the finished gradient g of the norm's output, norm_sums:
//     dbeta = S1, dgamma = S2 * rstd, dx = k0 * g + k1 * x + k2,
//     k0 = gamma * rstd, k1 = -k0 * rstd^2 * S2 / count, k2 = -k0 * S1 / count - mean * k1.
//     With running statistics, which do not depend on x, k1 = k2 = 0: norm_running sets them, and norm_sums lets them be.
//
// Statistics are taken of differences from one of the values, so that a mean far from zero costs no digits; blocks are
// merged in double in an order that follows from their number alone. A norm's state is 8 rows of `cp` f32: scale, shift,
// mean, rstd, unbiased variance (-1: the statistics are the running ones), k0, k1, k2; zero in padding channels.
//
// Write rule: everything is overwritten, but for the running statistics, which are updated in place.
// Launcher: src/backend/gpu/ops/norm.rs, same arguments.
#include "rows.cuh"
#include "state.cuh"

// By value; same layout as NormStats in src/backend/gpu/ops/norm.rs.
struct NormStats {
    uint64_t x;        // T [rows][cp]
    uint64_t partials; // float2 [ceil(rows / 128)][cp]: mean and M2
    uint64_t rows;
    uint32_t cp;
    uint32_t reserved;
};
static_assert(sizeof(NormStats) == 32, "the launcher passes 32 bytes");

// Rows of the block that are `at` modulo `step`.
__device__ __forceinline__ uint32_t rows_at(uint32_t count, uint32_t at, uint32_t step) {
    return count > at ? (count - at - 1) / step + 1 : 0;
}

// Launch: see rows.cuh; gridDim.x = ceil(rows / 128).
// A thread runs over its rows by Welford's method on x - (the block's first row); lanes are merged by Chan's formula.
template <class T> __device__ __forceinline__ void norm_stats(const NormStats& a) {
    SHARED(float, part, [16][ROWS_THREADS]); // mean, then M2, of 8 channels
    const uint32_t channel = tile_channel(), width = blockDim.x, thread = threadIdx.y * width + threadIdx.x;
    const bool inside = channel < a.cp;
    const uint64_t first = uint64_t(blockIdx.x) * BLOCK_ROWS;
    const uint32_t count = block_rows(blockIdx.x, BLOCK_ROWS, a.rows);
    float origin[8], mean[8], m2[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) origin[i] = mean[i] = m2[i] = 0.0f;
    if (inside) {
        const T* x = reinterpret_cast<const T*>(a.x) + first * a.cp + channel;
        load8(x, origin);
        float seen = 0.0f;
#pragma unroll 4
        for (uint32_t r = threadIdx.y; r < count; r += blockDim.y) {
            float v[8];
            load8(x + uint64_t(r) * a.cp, v);
            seen += 1.0f;
            const float share = __fdiv_rn(1.0f, seen);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float d = v[i] - origin[i], before = d - mean[i];
                mean[i] = __fmaf_rn(before, share, mean[i]);
                m2[i] = __fmaf_rn(before, d - mean[i], m2[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        part[i][thread] = mean[i];
        part[8 + i][thread] = m2[i];
    }
    for (uint32_t half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        // Lane l stands for the rows that are l modulo 2 * half, once it has taken those of lane l + half.
        const uint32_t na = rows_at(count, threadIdx.y, 2 * half), nb = rows_at(count, threadIdx.y + half, 2 * half);
        if (threadIdx.y < half && nb > 0) {
            const float share = __fdiv_rn(float(nb), float(na + nb)), weight = float(na) * share;
            const uint32_t other = thread + half * width;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float d = part[i][other] - part[i][thread];
                part[i][thread] = __fmaf_rn(d, share, part[i][thread]);
                part[8 + i][thread] += __fmaf_rn(d * d, weight, part[8 + i][other]);
            }
        }
    }
    if (threadIdx.y == 0 && inside) {
        float2* out = reinterpret_cast<float2*>(a.partials) + blockIdx.x * uint64_t(a.cp) + channel;
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] = {origin[i] + part[i][thread], part[8 + i][thread]};
    }
}

extern "C" __global__ void __launch_bounds__(256) norm_stats_f32(NormStats a) { norm_stats<float>(a); }
EXPORT_KERNEL(norm_stats_f32)
extern "C" __global__ void __launch_bounds__(256) norm_stats_f16(NormStats a) { norm_stats<f16>(a); }
EXPORT_KERNEL(norm_stats_f16)
extern "C" __global__ void __launch_bounds__(256) norm_stats_bf16(NormStats a) { norm_stats<bf16>(a); }
EXPORT_KERNEL(norm_stats_bf16)

// Merges: threadIdx.x is one of MERGE_CHANNELS neighbouring channels (a 32-byte sector of partials), threadIdx.y a lane
// over the row blocks; many lanes, so that thousands of blocks are loads in flight and not a chain.
constexpr uint32_t MERGE_CHANNELS = 4, MERGE_THREADS = 1024;

struct Sums {
    double first, second;
};

// Adds over the lanes of each channel, as a tree whose shape follows from blockDim.y (a power of two) alone; the result is
// lane 0's. All threads must call it.
__device__ __forceinline__ Sums merge_lanes(Sums mine) {
    SHARED(Sums, part, [MERGE_THREADS]);
    const uint32_t thread = threadIdx.y * MERGE_CHANNELS + threadIdx.x;
    part[thread] = mine;
    for (uint32_t half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
            const Sums other = part[thread + half * MERGE_CHANNELS];
            part[thread].first += other.first;
            part[thread].second += other.second;
        }
    }
    return part[thread];
}

// By value; same layout as NormCoefs in src/backend/gpu/ops/norm.rs.
struct NormCoefs {
    uint64_t partials; // float2 [ceil(rows / 128)][cp]: mean and M2 of 128 rows, fewer in the last block
    uint64_t rows;
    uint64_t gamma; // float [c]
    uint64_t beta;  // float [c]
    uint64_t state; // float [8][cp]: rows 0 to 4 are written
    double eps;
    uint32_t c;
    uint32_t cp;
};
static_assert(sizeof(NormCoefs) == 56, "the launcher passes 56 bytes");

// norm_coefs. Launch: blocks of 4 x lanes threads, lanes a power of two up to 256; gridDim.x = cp / 4.
extern "C" __global__ void __launch_bounds__(MERGE_THREADS, 1) norm_coefs(NormCoefs a) {
    const uint32_t channel = blockIdx.x * MERGE_CHANNELS + threadIdx.x;
    const float2* partials = reinterpret_cast<const float2*>(a.partials) + channel;
    const uint32_t blocks = uint32_t((a.rows + BLOCK_ROWS - 1) / BLOCK_ROWS);
    // Of differences from the first block's mean: at most sqrt(blocks) deviations away, which double does not notice.
    const double origin = partials[0].x;
    Sums sums = {0.0, 0.0};
#pragma unroll 8
    for (uint32_t b = threadIdx.y; b < blocks; b += blockDim.y) {
        const float2 p = partials[uint64_t(b) * a.cp];
        const double n = double(block_rows(b, BLOCK_ROWS, a.rows)), d = double(p.x) - origin;
        sums.first += n * d;
        sums.second += double(p.y) + n * d * d;
    }
    sums = merge_lanes(sums);
    if (threadIdx.y != 0) return;
    float* state = reinterpret_cast<float*>(a.state) + channel;
    if (channel >= a.c) {
        for (uint32_t row = 0; row < 5; ++row) state[row * a.cp] = 0.0f;
        return;
    }
    const double count = double(a.rows), shift = sums.first / count;
    double m2 = sums.second - sums.first * shift;
    m2 = m2 < 0.0 ? 0.0 : m2; // NaN stays
    const double mean = origin + shift, rstd = 1.0 / sqrt(m2 / count + a.eps);
    const float scale = float(double(reinterpret_cast<const float*>(a.gamma)[channel]) * rstd);
    state[0] = scale;
    state[a.cp] = float(double(reinterpret_cast<const float*>(a.beta)[channel]) - mean * double(scale));
    state[2 * a.cp] = float(mean);
    state[3 * a.cp] = float(rstd);
    state[4 * a.cp] = float(m2 / (a.rows > 1 ? count - 1.0 : 1.0));
}
EXPORT_KERNEL(norm_coefs)

// By value; same layout as NormSums in src/backend/gpu/ops/norm.rs.
struct NormSums {
    uint64_t partials; // float2 [blocks][cp]: sum(g), sum(g * (x - mean)) of some rows
    uint64_t blocks;
    uint64_t rows;   // of the tensor
    uint64_t gamma;  // float [c]
    uint64_t dgamma; // float [c], overwritten
    uint64_t dbeta;  // float [c], overwritten
    uint64_t state;  // float [8][cp]: rows 2 to 4 are read, 5 to 7 written
    uint32_t c;
    uint32_t cp;
};
static_assert(sizeof(NormSums) == 64, "the launcher passes 64 bytes");

// norm_sums. Launch: as norm_coefs.
extern "C" __global__ void __launch_bounds__(MERGE_THREADS, 1) norm_sums(NormSums a) {
    const uint32_t channel = blockIdx.x * MERGE_CHANNELS + threadIdx.x;
    const float2* partials = reinterpret_cast<const float2*>(a.partials) + channel;
    Sums sums = {0.0, 0.0};
#pragma unroll 8
    for (uint64_t b = threadIdx.y; b < a.blocks; b += blockDim.y) {
        const float2 p = partials[b * a.cp];
        sums.first += double(p.x);
        sums.second += double(p.y);
    }
    sums = merge_lanes(sums);
    if (threadIdx.y != 0) return;
    float* state = reinterpret_cast<float*>(a.state) + channel;
    if (channel >= a.c) {
        for (uint32_t row = 5; row < 8; ++row) state[row * a.cp] = 0.0f;
        return;
    }
    const double mean = double(state[2 * a.cp]), rstd = double(state[3 * a.cp]), count = double(a.rows);
    reinterpret_cast<float*>(a.dbeta)[channel] = float(sums.first);
    reinterpret_cast<float*>(a.dgamma)[channel] = float(sums.second * rstd);
    if (state[4 * a.cp] < 0.0f) return;
    const double k0 = double(reinterpret_cast<const float*>(a.gamma)[channel]) * rstd;
    const float k1 = float(-k0 * rstd * rstd * sums.second / count);
    state[5 * a.cp] = float(k0);
    state[6 * a.cp] = k1;
    state[7 * a.cp] = float(-k0 * sums.first / count - mean * double(k1));
}
EXPORT_KERNEL(norm_sums)

// What the kernels over all norms need of one; in device memory, same layout as NormEntry in src/backend/gpu/ops/norm.rs.
struct NormEntry {
    uint64_t state;   // float [8][cp]
    uint64_t running; // float [2][c]: means, then variances
    uint64_t gamma;   // float [c]
    uint64_t beta;    // float [c]
    double eps;
    double momentum; // weight of the batch
    uint32_t c;
    uint32_t cp;
};
static_assert(sizeof(NormEntry) == 56, "the host writes 56 bytes");

// running = running + momentum * (batch - running), from state rows 2 and 4. `steps`: address of a StepState, after whose
// first broken step nothing is written; 0: always write.
// Launch: gridDim.y norms, gridDim.x * blockDim.x at least the channels of the widest.
extern "C" __global__ void __launch_bounds__(256) norm_running_update(const NormEntry* table, uint64_t steps) {
    const NormEntry a = table[blockIdx.y];
    const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= a.c || (steps && reinterpret_cast<const StepState*>(steps)->broken)) return;
    const float* state = reinterpret_cast<const float*>(a.state) + channel;
    float* running = reinterpret_cast<float*>(a.running) + channel;
    const double mean = running[0], variance = running[a.c];
    running[0] = float(mean + a.momentum * (double(state[2 * a.cp]) - mean));
    running[a.c] = float(variance + a.momentum * (double(state[4 * a.cp]) - variance));
}
EXPORT_KERNEL(norm_running_update)

// The whole state from the running statistics. Launch: as norm_running_update, but for padding too.
extern "C" __global__ void __launch_bounds__(256) norm_running(const NormEntry* table) {
    const NormEntry a = table[blockIdx.y];
    const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= a.cp) return;
    float scale = 0.0f, shift = 0.0f, mean = 0.0f, rstd_stored = 0.0f, variance = 0.0f;
    if (channel < a.c) {
        const float* running = reinterpret_cast<const float*>(a.running) + channel;
        const double rstd = 1.0 / sqrt(double(running[a.c]) + a.eps);
        scale = float(double(reinterpret_cast<const float*>(a.gamma)[channel]) * rstd);
        shift = float(double(reinterpret_cast<const float*>(a.beta)[channel]) - double(running[0]) * double(scale));
        mean = running[0];
        rstd_stored = float(rstd);
        variance = -1.0f;
    }
    float* state = reinterpret_cast<float*>(a.state) + channel;
    const float rows[8] = {scale, shift, mean, rstd_stored, variance, scale, 0.0f, 0.0f};
#pragma unroll
    for (uint32_t row = 0; row < 8; ++row) state[row * a.cp] = rows[row];
}
EXPORT_KERNEL(norm_running)
