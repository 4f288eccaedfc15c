// Convolutions in true f32, without tensor cores: slow and simple, the reference of the others on a GPU. The arguments,
// tiles and epilogues are the same.
#pragma once
#include "conv_epilogue.cuh"
#include "conv_weight.cuh"

// Forward and data gradient: 128 threads make 128 rows x 32 columns, each 4 rows x 8 columns.
__device__ __forceinline__ void conv_direct(const ConvArgs& a) {
    SHARED(float, sums, [SUMS]);
    const unsigned t = threadIdx.x;
    const uint32_t row_tile = blockIdx.x / a.col_tiles, piece = blockIdx.x % a.col_tiles * 32, column = piece + t % 4 * 8;
    const RowTile tile = find_tile(a, row_tile);
    const Taps taps = find_taps(a, tile);
    uint32_t image[4];
    int y[4], x[4];
    for (int n = 0; n < 4; ++n) {
        const uint32_t r = t / 4 + n * 32, row = tile.first + r, pixel = row % (tile.h * tile.w);
        image[n] = row / (tile.h * tile.w);
        y[n] = r < tile.count ? int(pixel / tile.w) * taps.scale + taps.y : -0x10000;
        x[n] = int(pixel % tile.w) * taps.scale + taps.x;
    }
    float acc[4][8];
    for (int i = 0; i < 32; ++i) acc[i / 8][i % 8] = 0.0f;
    const float* weights = reinterpret_cast<const float*>(a.weights);
    const uint64_t pitch = uint64_t(a.r) * a.s * a.cps;
    for (int tap = 0; tap < taps.rows * taps.cols; ++tap) {
        const int m = tap / taps.cols, n = tap % taps.cols;
        const float* at = weights + uint64_t((taps.r0 + m * taps.step) * int(a.s) + taps.s0 + n * taps.step) * a.cps;
        for (uint32_t c = 0; c < a.cps; c += 8) {
            Coefs8 coefs;
            load_coefs(a.in, c, a.cps, coefs);
            float in[4][8];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int sy = y[i] + m * taps.turn, sx = x[i] + n * taps.turn;
                if (uint32_t(sy) < a.hs && uint32_t(sx) < a.ws) {
                    read8<float>(a.in, coefs, (uint64_t(image[i]) * a.hs + sy) * a.ws + sx, c, a.cps, in[i]);
                } else {
#pragma unroll
                    for (int e = 0; e < 8; ++e) in[i][e] = 0.0f;
                }
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                if (column + j >= a.cols) continue;
                float w[8];
                load8(at + (column + j) * pitch + c, w);
#pragma unroll
                for (int e = 0; e < 8; ++e)
#pragma unroll
                    for (int i = 0; i < 4; ++i) acc[i][j] = __fmaf_rn(in[i][e], w[e], acc[i][j]);
            }
        }
    }
    finish_piece<float, 4>(
        a, tile, row_tile, piece,
        [&](int n, float(&v)[8]) {
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = acc[n][j];
        },
        sums);
}

// One channel of one row.
__device__ __forceinline__ float read_one(const Operand& o, uint64_t row, uint32_t channel, uint32_t cp) {
    const uint64_t at = row * cp + channel;
    const float* coef = reinterpret_cast<const float*>(o.coef) + channel;
    float v = reinterpret_cast<const float*>(o.a)[at];
    if (o.kind == AFFINE) v = __fmaf_rn(v, coef[0], coef[cp]);
    if (o.kind == THROUGH)
        v = __fmaf_rn(v, coef[0], __fmaf_rn(reinterpret_cast<const float*>(o.b)[at], coef[cp], coef[2 * cp]));
    return o.relu ? rectify(v) : v;
}

// Weight gradient: 256 threads make 16 x 16 of it, a thread one number. Sums of 64 pixels are added to the sum of all, so
// that the error does not grow with the number of pixels in a part.
__device__ __forceinline__ void conv_weight_direct(const ConvWeightArgs& a) {
    constexpr uint32_t STEP = 64;
    SHARED(float, dy, [STEP][16]);
    SHARED(float, x, [STEP][16]);
    const unsigned t = threadIdx.x;
    const WeightPlace place = weight_place<16, 16>(a);
    const WeightPart<STEP> part = weight_part<STEP>(a);
    const WeightColumn column = weight_column(a, place.column + t % 16);
    const uint32_t k = place.row + t % 16;
    float sum = 0.0f;
    for (uint32_t row = part.first; row < part.end; row += STEP) {
        for (uint32_t r = t / 16; r < STEP; r += 16) {
            const bool inside = row + r < part.end;
            uint32_t source;
            const bool there = inside && column.some && weight_source(a, walk_at(a, row + r), column, source);
            dy[r][t % 16] = inside && k < a.cpk ? read_one(a.dy, row + r, k, a.cpk) : 0.0f;
            x[r][t % 16] = there ? read_one(a.x, source, column.channel, a.cpc) : 0.0f;
        }
        __syncthreads();
        float few = 0.0f;
        for (uint32_t r = 0; r < STEP; ++r) few = __fmaf_rn(dy[r][t / 16], x[r][t % 16], few);
        sum += few;
        __syncthreads();
    }
    dy[t / 16][t % 16] = sum;
    __syncthreads();
    store_weights<16, 16, 256>(a, place, 0, [&](uint32_t position) { return dy[position / 16][position % 16]; });
}

// By value; same layout as ConvSumArgs in src/backend/gpu/ops/conv.rs.
struct ConvSumArgs {
    uint64_t parts; // float [n][pitch]
    uint64_t out;   // float [count], overwritten
    uint64_t count, pitch, n;
};
static_assert(sizeof(ConvSumArgs) == 40, "the launchers pass 40 bytes");

__device__ __forceinline__ void conv_sum(const ConvSumArgs& a) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    const float* parts = reinterpret_cast<const float*>(a.parts) + i;
    float sum = parts[0];
    for (uint64_t p = 1; p < a.n; ++p) sum += parts[p * a.pitch];
    reinterpret_cast<float*>(a.out)[i] = sum;
}
