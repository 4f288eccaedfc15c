// Convolutions as matrix products: what forward pass, data gradient and weight gradient share.
//
// Forward and data gradient are one operation, rows of pixels times weights:
//     out[destination pixel][column] = sum over taps and channels of in[source pixel of the tap][c] * w[column][tap][c]
// with the output's pixels as destination in the forward pass, and the input's pixels, the transposed weights and the
// taps backwards in the data gradient. The pixels of a data gradient with stride s fall into s * s classes by their
// residues; all pixels of a class have the same taps (none, if the kernel is small), so a tile of 128 rows is of one class.
// A linear layer is a 1x1 convolution of 1x1 planes.
#pragma once
#include "mma.cuh"
#include "operand.cuh"

// By value; same layout as ConvArgs in src/backend/gpu/ops/conv.rs.
struct ConvArgs {
    Operand in;          // T [images * hs * ws][cps]
    uint64_t weights;    // T [cols][r * s][cps]
    uint64_t bias;       // forward: float [cols], or 0
    uint64_t out;        // forward: T (float: out_f32) [images * hd * wd][cpd]
    uint64_t statistics; // forward: float2 [row tiles][cpd] mean and M2 of the tile's rows as stored, or 0
    Finish finish;       // data gradient: writes and sums; partial sums [row tiles][cpd]
    uint64_t blocks;     // uint2x of the active k16 groups of each column tile, or 0: see conv_gather.cuh
    uint64_t blocks_ptr; // uint32_t [classes * column tiles + 1]
    uint32_t backward;   // 1: data gradient
    uint32_t out_f32;
    uint32_t images;
    uint32_t hs, ws, cps;          // source: rows, columns, padded channels
    uint32_t hd, wd, cols, cpd;    // destination: rows, columns, channels, padded channels
    uint32_t r, s, stride, pad;    // kernel rows and columns
    uint32_t row_tiles, col_tiles; // blocks: row_tiles * col_tiles
};
static_assert(sizeof(ConvArgs) == 240, "the launchers pass 240 bytes");

constexpr uint32_t TILE_ROWS = 128;

struct alignas(8) uint2x {
    uint32_t x, y;
};

// Up to 128 rows: pixels (image, i, j) of one class, from row `first` of that class on.
struct RowTile {
    uint32_t di, dj; // residues
    uint32_t h, w;   // the class's pixels of an image
    uint32_t first, count;
};

__device__ __forceinline__ RowTile find_tile(const ConvArgs& a, uint32_t tile) {
    RowTile t{0, 0, a.hd, a.wd, 0, 0};
    if (a.backward && a.stride > 1) {
        // The first wide columns of classes have one pixel more than the others.
        const uint32_t wide = a.wd % a.stride, narrow_w = a.wd / a.stride;
        for (uint32_t di = 0; di < a.stride; ++di) {
            const uint32_t h = di < a.hd ? (a.hd - di + a.stride - 1) / a.stride : 0;
            const uint32_t each_wide = (a.images * h * (narrow_w + 1) + TILE_ROWS - 1) / TILE_ROWS;
            const uint32_t each = (a.images * h * narrow_w + TILE_ROWS - 1) / TILE_ROWS;
            const uint32_t all_wide = wide * each_wide, all = all_wide + (a.stride - wide) * each;
            if (tile >= all) {
                tile -= all;
                continue;
            }
            const bool in_wide = tile < all_wide;
            if (!in_wide) tile -= all_wide;
            const uint32_t size = in_wide ? each_wide : each;
            t.di = di;
            t.dj = tile / size + (in_wide ? 0 : wide);
            t.h = h;
            t.w = narrow_w + in_wide;
            tile %= size;
            break;
        }
    }
    t.first = tile * TILE_ROWS;
    const uint32_t rest = a.images * t.h * t.w - t.first;
    t.count = rest < TILE_ROWS ? rest : TILE_ROWS;
    return t;
}

// Row of the destination tensor that the tile's row `r` is.
__device__ __forceinline__ uint64_t destination_row(const ConvArgs& a, const RowTile& t, uint32_t r) {
    const uint32_t row = t.first + r;
    if (!a.backward || a.stride == 1) return row;
    const uint32_t pixel = row % (t.h * t.w), i = pixel / t.w * a.stride + t.di, j = pixel % t.w * a.stride + t.dj;
    return (row / (t.h * t.w) * a.hd + i) * a.wd + j;
}

// Taps of a tile: `rows` x `cols` of them. Tap (m, n) is kernel row r0 + m * step, column s0 + n * step; its source pixel
// lies at (y + m * turn, x + n * turn) from the row's (i, j) times `scale`.
struct Taps {
    int rows, cols, r0, s0, step, y, x, turn, scale;
};

__device__ __forceinline__ Taps find_taps(const ConvArgs& a, const RowTile& t) {
    const int r = a.r, s = a.s, stride = a.stride, pad = a.pad;
    if (!a.backward) return {r, s, 0, 0, 1, -pad, -pad, 1, stride};
    const int i = t.di + pad, j = t.dj + pad, r0 = i % stride, s0 = j % stride;
    return {r > r0 ? (r - r0 + stride - 1) / stride : 0,
            s > s0 ? (s - s0 + stride - 1) / stride : 0,
            r0,
            s0,
            stride,
            i / stride,
            j / stride,
            -1,
            1};
}

// Eight numbers as they lie in memory.
template <class T> struct Raw {
    uint4x v[sizeof(T) / 2];
};
template <class T> __device__ __forceinline__ Raw<T> load_raw(const T* p) {
    Raw<T> raw;
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) raw.v[i] = load16(reinterpret_cast<const uint4x*>(p) + i);
    return raw;
}
template <class T> __device__ __forceinline__ Raw<T> zero_raw() {
    Raw<T> raw;
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) raw.v[i] = {0, 0, 0, 0};
    return raw;
}
template <class T> __device__ __forceinline__ void unpack_raw(const Raw<T>& raw, float (&v)[8]) {
    unpack2(T{}, raw.v[0].x, v[0], v[1]);
    unpack2(T{}, raw.v[0].y, v[2], v[3]);
    unpack2(T{}, raw.v[0].z, v[4], v[5]);
    unpack2(T{}, raw.v[0].w, v[6], v[7]);
}
template <> __device__ __forceinline__ void unpack_raw<float>(const Raw<float>& raw, float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        v[4 * i] = bits_float(raw.v[i].x), v[4 * i + 1] = bits_float(raw.v[i].y);
        v[4 * i + 2] = bits_float(raw.v[i].z), v[4 * i + 3] = bits_float(raw.v[i].w);
    }
}
// To the multiply's type.
template <class T> __device__ __forceinline__ Raw<T> pack_raw(const float (&v)[8]) {
    return {{{pack2(T{}, v[0], v[1]), pack2(T{}, v[2], v[3]), pack2(T{}, v[4], v[5]), pack2(T{}, v[6], v[7])}}};
}
template <> __device__ __forceinline__ Raw<float> pack_raw<float>(const float (&v)[8]) {
    return {{{to_tf32(v[0]), to_tf32(v[1]), to_tf32(v[2]), to_tf32(v[3])},
             {to_tf32(v[4]), to_tf32(v[5]), to_tf32(v[6]), to_tf32(v[7])}}};
}
// Stored numbers for the multiply: only f32 changes.
template <class T> __device__ __forceinline__ Raw<T> round_raw(const Raw<T>& raw) {
    if constexpr (sizeof(T) == 2) {
        return raw;
    } else {
        float v[8];
        unpack_raw(raw, v);
        return pack_raw<T>(v);
    }
}
template <class T> __device__ __forceinline__ void raise_raw(Raw<T>& raw, uint32_t floor) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) {
        raw.v[i] = {raise(T{}, raw.v[i].x, floor), raise(T{}, raw.v[i].y, floor), raise(T{}, raw.v[i].z, floor),
                    raise(T{}, raw.v[i].w, floor)};
    }
}

// N groups of 8 numbers of one operand, at the same channels of different rows, to what the multiply takes. The ReLU
// comes after the rounding, which gives the same. Groups whose bit in `valid` is clear become zero: padding is zero of
// the computed value.
template <class T, int N>
__device__ __forceinline__ void compute(const Operand& o, uint32_t channel, uint32_t cp, uint32_t valid, Raw<T> (&a)[N],
                                        const Raw<T> (&b)[N]) {
    const uint32_t floor = floor_word(T{}, o.relu);
    if (o.kind == PLAIN) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            a[n] = round_raw(a[n]); // not loaded where not valid: zero already
            if (o.relu) raise_raw(a[n], floor);
        }
        return;
    }
    const float* coef = reinterpret_cast<const float*>(o.coef) + channel;
    float k0[8], k1[8];
    load8(coef, k0);
    load8(coef + cp, k1);
    if (o.kind == AFFINE) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            float v[8];
            unpack_raw(a[n], v);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = __fmaf_rn(v[i], k0[i], k1[i]);
            a[n] = valid >> n & 1 ? pack_raw<T>(v) : zero_raw<T>();
            raise_raw(a[n], floor);
        }
    } else {
        float k2[8];
        load8(coef + 2 * cp, k2);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            float v[8], x[8];
            unpack_raw(a[n], v);
            unpack_raw(b[n], x);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = __fmaf_rn(v[i], k0[i], __fmaf_rn(x[i], k1[i], k2[i]));
            a[n] = valid >> n & 1 ? pack_raw<T>(v) : zero_raw<T>();
            raise_raw(a[n], floor);
        }
    }
}
