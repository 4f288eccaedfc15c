// What becomes of a tile's sums: bias, rounding, stores of whole 16-byte groups, statistics or a gradient's finish.
// 128 threads take a piece of 128 rows and 8 * G channels at a time: thread t rows t / G + i * 128 / G, channels
// 8 * (t % G) of the piece and the seven after it.
#pragma once
#include "conv.cuh"

// Shared floats that 128 threads need for column sums.
constexpr int SUMS = 4 * 4 * 32; // [sum][warp][channel]

// Adds up `v`, a value for each of the thread's 8 channels, over the warp's lanes that have the same channels, in a fixed
// order, and puts the sums into warp_sums [4 warps][8 * G].
template <int G> __device__ __forceinline__ void sum_lanes(float (&v)[8], float* warp_sums) {
    static_assert(G == 2 || G == 4, "16 or 32 channels a piece");
    const unsigned t = threadIdx.x % 128, lane = t % 32;
    // Each exchange halves the channels that a lane still adds up.
#pragma unroll
    for (int half = 4, bit = 16; half > 0; half /= 2, bit /= 2) {
        const bool upper = lane & bit;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i >= half) continue;
            const float given = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
            v[i] = kept + __shfl_xor_sync(~0u, given, bit);
        }
    }
    if (G == 2) v[0] += __shfl_xor_sync(~0u, v[0], 2);
    const unsigned channel = lane % G * 8 + (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
    if (G == 4 || !(lane & 2)) warp_sums[t / 32 * 8 * G + channel] = v[0];
}

template <int G> __device__ __forceinline__ float sum_warps(const float* warp_sums, unsigned channel) {
    float sum = warp_sums[channel];
#pragma unroll
    for (int w = 1; w < 4; ++w) sum += warp_sums[w * 8 * G + channel];
    return sum;
}

template <class T, int G>
__device__ __forceinline__ void forward_epilogue(const ConvArgs& a, const RowTile& tile, uint32_t row_tile, uint32_t piece,
                                                 float (&v)[G][8], float* sums) {
    const unsigned t = threadIdx.x % 128;
    const uint32_t channel = piece + t % G * 8;
    const bool inside = channel < a.cpd;
    if (a.bias) {
        const float* bias = reinterpret_cast<const float*>(a.bias) + channel;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float b = channel + i < a.cols ? bias[i] : 0.0f;
#pragma unroll
            for (int n = 0; n < G; ++n) v[n][i] += b;
        }
    }
#pragma unroll
    for (int n = 0; n < G; ++n) {
        const uint32_t r = t / G + n * (128 / G);
        if (!inside || r >= tile.count) continue;
        const uint64_t at = uint64_t(tile.first + r) * a.cpd + channel;
        if (a.out_f32) {
            store8(reinterpret_cast<float*>(a.out) + at, v[n]);
        } else {
            store8(reinterpret_cast<T*>(a.out) + at, v[n]);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[n][i] = rounded<T>(v[n][i]);
        }
    }
    if (!a.statistics) return; // the same for all threads
    // Two passes over registers: exact enough where the mean is far from zero.
    float part[8], mean[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) part[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < G; ++n)
#pragma unroll
        for (int i = 0; i < 8; ++i) part[i] += t / G + n * (128 / G) < tile.count ? v[n][i] : 0.0f;
    sum_lanes<G>(part, sums);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        mean[i] = __fdiv_rn(sum_warps<G>(sums, t % G * 8 + i), float(tile.count));
        part[i] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < G; ++n)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float d = v[n][i] - mean[i];
            part[i] += t / G + n * (128 / G) < tile.count ? d * d : 0.0f;
        }
    sum_lanes<G>(part, sums + 128);
    __syncthreads();
    if (t < 8 * G && piece + t < a.cpd) {
        float2* out = reinterpret_cast<float2*>(a.statistics) + uint64_t(row_tile) * a.cpd + piece;
        out[t] = {__fdiv_rn(sum_warps<G>(sums, t), float(tile.count)), sum_warps<G>(sums + 128, t)};
    }
}

// `row(n, v)` gives the thread's row n: one at a time, because a finish needs many registers of its own.
template <class T, int G, class Row>
__device__ __forceinline__ void data_epilogue(const ConvArgs& a, const RowTile& tile, uint32_t row_tile, uint32_t piece,
                                              Row row, float* sums) {
    const unsigned t = threadIdx.x % 128;
    const uint32_t channel = piece + t % G * 8;
    const bool inside = channel < a.cpd;
    const Finish& f = a.finish;
    Finisher s;
    begin_finish(f, inside ? channel : 0, a.cpd, s);
#pragma unroll
    for (int n = 0; n < G; ++n) {
        const uint32_t r = t / G + n * (128 / G);
        if (!inside || r >= tile.count) continue;
        float v[8];
        row(n, v);
        finish8<T>(f, s, destination_row(a, tile, r), channel, a.cpd, v);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        if (!f.reduce[n].x) continue;
        sum_lanes<G>(s.sum[n][0], sums + 256 * n);
        sum_lanes<G>(s.sum[n][1], sums + 256 * n + 128);
    }
    if (!f.reduce[0].x && !f.reduce[1].x) return; // the same for all threads
    __syncthreads();
    if (t < 8 * G && piece + t < a.cpd) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            if (!f.reduce[n].x) continue;
            float2* out = reinterpret_cast<float2*>(f.reduce[n].partials) + uint64_t(row_tile) * a.cpd + piece;
            out[t] = {sum_warps<G>(sums + 256 * n, t), sum_warps<G>(sums + 256 * n + 128, t)};
        }
    }
}

// The piece of 8 * G channels from `piece` on; `row(n, v)` gives the thread's row n. All threads of the block call, each
// 128 of them with `sums` of their own; a barrier must follow before `sums` is used again.
template <class T, int G, class Row>
__device__ __forceinline__ void finish_piece(const ConvArgs& a, const RowTile& tile, uint32_t row_tile, uint32_t piece,
                                             Row row, float* sums) {
    if (a.backward) {
        data_epilogue<T, G>(a, tile, row_tile, piece, row, sums);
    } else {
        float v[G][8];
#pragma unroll
        for (int n = 0; n < G; ++n) row(n, v[n]);
        forward_epilogue<T, G>(a, tile, row_tile, piece, v, sums);
    }
}

// The sums of a block of warps that each hold 32 rows x COLUMNS columns as `multiply` leaves them, 4 warps a column group:
// through shared memory, STAGE columns at a time, so that no registers hold sums while a piece is finished (where 48 KB are
// enough for that). `space` has EPILOGUE_BYTES for each column group.
template <int COLUMNS> constexpr int PIECE = COLUMNS < 32 ? COLUMNS : 32;
template <int STAGE> constexpr int EPILOGUE_BYTES = (128 * (STAGE + 4) + SUMS) * 4;

template <class T, int COLUMNS, int STAGE>
__device__ __forceinline__ void conv_epilogue(const ConvArgs& a, const RowTile& tile, uint32_t row_tile, uint32_t column,
                                              const float (&acc)[2][COLUMNS / 8][4], unsigned char* space) {
    constexpr int PITCH = STAGE + 4, G = PIECE<COLUMNS> / 8;
    const unsigned t = threadIdx.x % 128, lane = t % 32, group = threadIdx.x / 128;
    float* stage = reinterpret_cast<float*>(space + group * EPILOGUE_BYTES<STAGE>);
    float* sums = stage + 128 * PITCH;
#pragma unroll
    for (int from = 0; from < COLUMNS; from += STAGE) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < STAGE / 8; ++n) {
                const float(&d)[4] = acc[m][from / 8 + n];
                float* at = stage + (t / 32 * 32 + m * 16 + lane / 4) * PITCH + n * 8 + lane % 4 * 2;
                *reinterpret_cast<float2*>(at) = {d[0], d[1]};
                *reinterpret_cast<float2*>(at + 8 * PITCH) = {d[2], d[3]};
            }
        __syncthreads();
#pragma unroll 1
        for (int p = 0; p < STAGE; p += PIECE<COLUMNS>) {
            finish_piece<T, G>(
                a, tile, row_tile, column + group * COLUMNS + from + p,
                [&](int n, float(&v)[8]) { load8(stage + (t / G + n * (128 / G)) * PITCH + p + t % G * 8, v); }, sums);
            __syncthreads();
        }
    }
}
