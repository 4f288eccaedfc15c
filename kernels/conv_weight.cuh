// Gradients of a convolution's weight, at the non-zeros, and of its bias.
//     dW[k][tap][c] = sum over pixels of dy[pixel][k] * x[source pixel of the tap][c]
// The columns of the product are tap * cpc + c, so a group of 8 columns is of one tap. A block makes BM output channels x
// BN columns over one part of the pixels, and stores what its list of non-zeros names (without a list: everything); tiles
// without a non-zero are not launched. With a mask of blocks, conv_weight_blocks* multiply the 16 x 16 of a tile that hold
// one, and no others: kernels of their own, because choosing takes registers. Parts are added by conv_sum_f32, in order.
#pragma once
#include "conv.cuh"

// By value; same layout as ConvWeightArgs in src/backend/gpu/ops/conv.rs.
struct ConvWeightArgs {
    Operand x;        // T [images * h * w][cpc]
    Operand dy;       // T [images * p * q][cpk]
    uint64_t out;     // float [splits][stored], overwritten
    uint64_t stored;  // non-zeros
    uint64_t tiles;   // uint32_t [gridDim.x] index of each tile, row tile * column_tiles + column tile; 0: dense
    uint64_t ptr;     // uint32_t [gridDim.x + 1] first entry of each
    uint64_t entries; // uint2x: position in the tile (row * BN + column), index of the non-zero; ascending in a tile
    uint64_t active;  // uint2x [gridDim.x]: 64 bits, one for each 16x16 of the tile that has an entry, by row; only of blocks
    uint32_t images, h, w, c, cpc, p, q, k, cpk, r, s, stride, pad;
    uint32_t column_tiles;
    uint32_t splits; // gridDim.y
    uint32_t reserved;
};
static_assert(sizeof(ConvWeightArgs) == 176, "the launchers pass 176 bytes");

// The tile of a block.
struct WeightPlace {
    uint32_t row, column; // first output channel, first column
};
template <int BM, int BN> __device__ __forceinline__ WeightPlace weight_place(const ConvWeightArgs& a) {
    const uint32_t tile = a.tiles ? reinterpret_cast<const uint32_t*>(a.tiles)[blockIdx.x] : blockIdx.x;
    return {tile / a.column_tiles * BM, tile % a.column_tiles * BN};
}

// A column's tap and channel.
struct WeightColumn {
    bool some;
    uint32_t channel, tap;
    int y, x; // source pixel of output pixel (0, 0)
};
__device__ __forceinline__ WeightColumn weight_column(const ConvWeightArgs& a, uint32_t column) {
    const uint32_t tap = column / a.cpc;
    return {tap < a.r * a.s, column % a.cpc, tap, int(tap / a.s) - int(a.pad), int(tap % a.s) - int(a.pad)};
}

// An output pixel that moves on by a fixed number of pixels: mixed-radix addition, no divisions.
struct Walk {
    uint32_t image, i, j;
};
__device__ __forceinline__ Walk walk_at(const ConvWeightArgs& a, uint64_t row) {
    const uint32_t at = uint32_t(row), plane = a.p * a.q;
    return {at / plane, at % plane / a.q, at % a.q};
}
__device__ __forceinline__ void walk_on(const ConvWeightArgs& a, Walk& w, const Walk& by) {
    w.j += by.j, w.i += by.i, w.image += by.image;
    if (w.j >= a.q) w.j -= a.q, ++w.i;
    if (w.i >= a.p) w.i -= a.p, ++w.image;
}

// Row of x that the pixel's tap reads; false: padding.
__device__ __forceinline__ bool weight_source(const ConvWeightArgs& a, const Walk& w, const WeightColumn& c, uint32_t& row) {
    const int y = int(w.i * a.stride) + c.y, x = int(w.j * a.stride) + c.x;
    row = (w.image * a.h + uint32_t(y)) * a.w + uint32_t(x);
    return uint32_t(y) < a.h && uint32_t(x) < a.w;
}

// The part of the pixels that this block sums: from `first` on, in steps of STEP.
template <int STEP> struct WeightPart {
    uint32_t first, end;
};
template <int STEP> __device__ __forceinline__ WeightPart<STEP> weight_part(const ConvWeightArgs& a) {
    const uint32_t rows = a.images * a.p * a.q, steps = (rows + STEP - 1) / STEP;
    const uint32_t first = uint32_t(uint64_t(steps) * blockIdx.y / a.splits) * STEP;
    const uint64_t end = uint64_t(steps) * (blockIdx.y + 1) / a.splits * STEP;
    return {first, end < rows ? uint32_t(end) : rows};
}

// Stores rows [from, from + ROWS) of the tile: `sum(position)` gives the value, position counted from row `from`.
template <int BN, int ROWS, int THREADS, class Sum>
__device__ __forceinline__ void store_weights(const ConvWeightArgs& a, const WeightPlace& place, uint32_t from, Sum sum) {
    float* out = reinterpret_cast<float*>(a.out) + blockIdx.y * a.stored;
    if (a.tiles) {
        const uint32_t* ptr = reinterpret_cast<const uint32_t*>(a.ptr) + blockIdx.x;
        const uint2x* entries = reinterpret_cast<const uint2x*>(a.entries);
        const uint32_t end = ptr[1];
        for (uint32_t e = ptr[0] + threadIdx.x; e < end; e += THREADS) {
            const uint2x entry = entries[e];
            const uint32_t position = entry.x - from * BN; // wraps below `from`
            if (position < ROWS * BN) out[entry.y] = sum(position);
        }
    } else {
        for (uint32_t position = threadIdx.x; position < ROWS * BN; position += THREADS) {
            const uint32_t k = place.row + from + position / BN;
            const WeightColumn c = weight_column(a, place.column + position % BN);
            if (k < a.k && c.some && c.channel < a.c)
                out[(uint64_t(k) * a.c + c.channel) * (a.r * a.s) + c.tap] = sum(position);
        }
    }
}

// Warps: WM x WN of them make the tile, WK such sets take different pixels of a step. With BLOCKS they share out the active
// 16x16 blocks of the tile, evenly, and nothing else is multiplied; else each has its own rectangle.
template <class T, int BM, int BN, int WM, int WN, int WK> struct Weight {
    static constexpr int THREADS = 32 * WM * WN * WK;
    static constexpr int M = BM / WM / 16, N = BN / WN / 8; // 16-row and 8-column tiles of a warp
    static constexpr int MULTIPLY = 32 / sizeof(T);         // pixels of one multiply
    static constexpr int STEP = (WK == 4 ? 4 : 2) * MULTIPLY;
    static constexpr int GM = BM / 8, GN = BN / 8; // groups of 8 channels of a pixel
    static constexpr int LM = THREADS / GM, LN = THREADS / GN; // pixels that the block loads at once
    static constexpr int A = STEP < LM ? 1 : STEP / LM, B = STEP < LN ? 1 : STEP / LN;
    // Pixels are rows: of 2-byte numbers swizzled; of f32 with 8 more, so that 4 pixels x 8 channels lie in all banks.
    static constexpr int PITCH_A = sizeof(T) == 2 ? 2 * BM : 4 * (BM + 8), PITCH_B = sizeof(T) == 2 ? 2 * BN : 4 * (BN + 8);
    static constexpr int BUFFER = STEP * (PITCH_A + PITCH_B);
    static constexpr int ROWS = BM < 64 ? BM : 64; // of the tile that are stored at once
    static constexpr int SETS = WK * ROWS * (BN + 4) * 4;
    static constexpr int BYTES = 2 * BUFFER > SETS ? 2 * BUFFER : SETS;
};

template <class T, int CHANNELS>
__device__ __forceinline__ void store_pixel(unsigned char* rows, uint32_t row, uint32_t group, const Raw<T>& raw) {
    if constexpr (sizeof(T) == 2) {
        store16(rows + swizzled<CHANNELS / 8>(row, group), raw.v[0]);
    } else {
        unsigned char* at = rows + (row * (CHANNELS + 8) + group * 8) * 4;
        store16(at, raw.v[0]);
        store16(at + 16, raw.v[1]);
    }
}

// Fragments of 16 channels (of a: one 16-row tile, of b: two 8-column tiles) from `channel` on, at MULTIPLY pixels from
// `row` on. `low`: words t of the first 8 channels' first half, `rows first`...
template <class T, int CHANNELS, bool IS_A>
__device__ __forceinline__ void load_fragments(const unsigned char* rows, uint32_t row, uint32_t channel, uint32_t (&f)[4]) {
    const unsigned lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
        // a: the second matrix is the other 8 channels; b: the other 8 pixels.
        const uint32_t other_row = IS_A ? lane / 16 : lane / 8 % 2, other_channel = IS_A ? lane / 8 % 2 : lane / 16;
        load_matrices_trans(rows + swizzled<CHANNELS / 8>(row + lane % 8 + other_row * 8, channel / 8 + other_channel), f);
    } else {
        const uint32_t* at = reinterpret_cast<const uint32_t*>(rows) + (row + lane % 4) * (CHANNELS + 8) + channel + lane / 4;
        constexpr uint32_t PIXELS = 4 * (CHANNELS + 8);
        f[0] = at[0];
        f[1] = at[IS_A ? 8 : PIXELS];
        f[2] = at[IS_A ? PIXELS : 8];
        f[3] = at[PIXELS + 8];
    }
}

template <class T, int BM, int BN, int WM, int WN, int WK, bool BLOCKS>
__device__ __forceinline__ void conv_weight(const ConvWeightArgs& a) {
    using Shape = Weight<T, BM, BN, WM, WN, WK>;
    constexpr int STEP = Shape::STEP, THREADS = Shape::THREADS;
    // What a warp sums: pieces of M x N tiles of 16 rows and 8 columns. A piece is an active block, or all there is.
    constexpr int PIECES = BLOCKS ? Shape::M * Shape::N / 2 : 1, M = BLOCKS ? 1 : Shape::M, N = BLOCKS ? 2 : Shape::N;
    SHARED(uint4x, space, [Shape::BYTES / 16]);
    unsigned char* const shared = reinterpret_cast<unsigned char*>(space);
    const unsigned t = threadIdx.x, warp = t / 32, lane = t % 32;
    const WeightPlace place = weight_place<BM, BN>(a);
    const WeightPart<STEP> part = weight_part<STEP>(a);

    // What this thread loads: one group of channels of dy, one of x at one tap.
    const uint32_t group_a = t % Shape::GM, row_a = t / Shape::GM, channel_a = place.row + group_a * 8;
    const uint32_t group_b = t % Shape::GN, row_b = t / Shape::GN;
    const WeightColumn column = weight_column(a, place.column + group_b * 8);
    bool some_a = channel_a < a.cpk, some_b = column.some;
    uint64_t active = 0;
    if constexpr (BLOCKS) { // channels of no active block are not read
        const uint2x both = reinterpret_cast<const uint2x*>(a.active)[blockIdx.x];
        active = both.x | uint64_t(both.y) << 32;
        uint64_t in_row = 0, in_column = 0;
#pragma unroll
        for (int i = 0; i < BN / 16; ++i) in_row |= active >> (group_a / 2 * (BN / 16) + i);
#pragma unroll
        for (int i = 0; i < BM / 16; ++i) in_column |= active >> (i * (BN / 16) + group_b / 2);
        some_a &= in_row & 1, some_b &= in_column & 1;
    }
    Walk walk[Shape::B];
#pragma unroll
    for (int i = 0; i < Shape::B; ++i) walk[i] = walk_at(a, part.first + row_b + i * Shape::LN);
    const Walk by = walk_at(a, STEP);

    Raw<T> ra[Shape::A], xa[Shape::A], rb[Shape::B], xb[Shape::B];
    uint32_t valid_a = 0, valid_b = 0, at_row = part.first;
    const auto load = [&] {
        valid_a = valid_b = 0;
#pragma unroll
        for (int i = 0; i < Shape::A; ++i) {
            const uint32_t row = at_row + row_a + i * Shape::LM;
            const bool inside = some_a && row < part.end && (STEP >= Shape::LM || row_a < STEP);
            const uint64_t at = uint64_t(row) * a.cpk + channel_a;
            ra[i] = inside ? load_raw(reinterpret_cast<const T*>(a.dy.a) + at) : zero_raw<T>();
            if (a.dy.kind == THROUGH) xa[i] = inside ? load_raw(reinterpret_cast<const T*>(a.dy.b) + at) : zero_raw<T>();
            valid_a |= uint32_t(inside) << i;
        }
#pragma unroll
        for (int i = 0; i < Shape::B; ++i) {
            uint32_t row;
            const bool inside = weight_source(a, walk[i], column, row) && some_b &&
                                at_row + row_b + i * Shape::LN < part.end && (STEP >= Shape::LN || row_b < STEP);
            const uint64_t at = uint64_t(row) * a.cpc + column.channel;
            rb[i] = inside ? load_raw(reinterpret_cast<const T*>(a.x.a) + at) : zero_raw<T>();
            if (a.x.kind == THROUGH) xb[i] = inside ? load_raw(reinterpret_cast<const T*>(a.x.b) + at) : zero_raw<T>();
            valid_b |= uint32_t(inside) << i;
            walk_on(a, walk[i], by);
        }
        at_row += STEP;
    };
    const auto store = [&](uint32_t buffer) {
        unsigned char* const rows = shared + buffer * Shape::BUFFER;
        compute<T>(a.dy, some_a ? channel_a : 0, a.cpk, valid_a, ra, xa);
        compute<T>(a.x, column.channel, a.cpc, valid_b, rb, xb);
#pragma unroll
        for (int i = 0; i < Shape::A; ++i)
            if (STEP >= Shape::LM || row_a < STEP) store_pixel<T, BM>(rows, row_a + i * Shape::LM, group_a, ra[i]);
#pragma unroll
        for (int i = 0; i < Shape::B; ++i)
            if (STEP >= Shape::LN || row_b < STEP)
                store_pixel<T, BN>(rows + STEP * Shape::PITCH_A, row_b + i * Shape::LN, group_b, rb[i]);
    };

    // The pieces of this warp: how many, and where in the tile. The same for all lanes, as multiplies and loads want it.
    const uint32_t set = warp / (WM * WN);
    uint32_t pieces = 1, piece_m[PIECES], piece_n[PIECES];
    if constexpr (BLOCKS) {
        const uint32_t all = __popcll(active), me = warp % (WM * WN), first = all * me / (WM * WN);
        pieces = all * (me + 1) / (WM * WN) - first;
        uint64_t rest = active;
        for (uint32_t i = 0; i < first; ++i) rest &= rest - 1;
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            const uint32_t block = rest ? __ffsll(rest) - 1 : 0;
            piece_m[p] = block / (BN / 16) * 16, piece_n[p] = block % (BN / 16) * 16;
            rest &= rest - 1;
        }
    } else {
        piece_m[0] = warp / WN % WM * (M * 16), piece_n[0] = warp % WN * (N * 8);
    }
    float acc[PIECES][M][N][4];
#pragma unroll
    for (int i = 0; i < 4 * PIECES * M * N; ++i) acc[i / (4 * M * N)][i / (4 * N) % M][i / 4 % N][i % 4] = 0.0f;
    const uint32_t steps = (part.end - (part.first < part.end ? part.first : part.end) + STEP - 1) / STEP;
    if (steps > 0) {
        load();
        store(0);
    }
    __syncthreads();
    for (uint32_t step = 0; step < steps; ++step) {
        const unsigned char* rows = shared + step % 2 * Shape::BUFFER;
        if (step + 1 < steps) load();
#pragma unroll
        for (int i = 0; i < STEP / Shape::MULTIPLY / WK; ++i) {
            const uint32_t row = (set * (STEP / Shape::MULTIPLY / WK) + i) * Shape::MULTIPLY;
            uint32_t fa[M][4], fb[N][2];
#pragma unroll
            for (int p = 0; p < PIECES; ++p) {
                if (uint32_t(p) >= pieces) break;
                if (p == 0 || piece_m[p] != piece_m[p - 1]) { // neighbours in a row have the same a
#pragma unroll
                    for (int m = 0; m < M; ++m) load_fragments<T, BM, true>(rows, row, piece_m[p] + m * 16, fa[m]);
                }
#pragma unroll
                for (int n = 0; n < N; n += 2) {
                    uint32_t f[4];
                    load_fragments<T, BN, false>(rows + STEP * Shape::PITCH_A, row, piece_n[p] + n * 8, f);
                    fb[n][0] = f[0], fb[n][1] = f[1], fb[n + 1][0] = f[2], fb[n + 1][1] = f[3];
                }
                multiply<T, M, N>(acc[p], fa, fb);
            }
        }
        if (step + 1 < steps) store((step + 1) % 2);
        __syncthreads();
    }

    // Through shared memory, at most 64 rows at a time, one copy for each set of warps.
    constexpr int PITCH = BN + 4, ROWS = Shape::ROWS;
    float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int from = 0; from < BM; from += ROWS) {
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            if (uint32_t(p) >= pieces || piece_m[p] < uint32_t(from) || piece_m[p] >= uint32_t(from + ROWS)) continue;
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    const uint32_t r = set * ROWS + piece_m[p] - from + m * 16 + lane / 4;
                    float* at = sums + r * PITCH + piece_n[p] + n * 8 + lane % 4 * 2;
                    const float(&d)[4] = acc[p][m][n];
                    *reinterpret_cast<float2*>(at) = {d[0], d[1]};
                    *reinterpret_cast<float2*>(at + 8 * PITCH) = {d[2], d[3]};
                }
        }
        __syncthreads();
        store_weights<BN, ROWS, THREADS>(a, place, from, [&](uint32_t position) {
            const float* at = sums + position / BN * PITCH + position % BN;
            float sum = *at;
#pragma unroll
            for (int i = 1; i < WK; ++i) sum += at[i * ROWS * PITCH];
            return sum;
        });
        __syncthreads();
    }
}

// By value; same layout as ConvBiasArgs in src/backend/gpu/ops/conv.rs.
struct ConvBiasArgs {
    Operand dy;    // T [rows][cpk]
    uint64_t out;  // float [parts][cpk], of one part [k]; overwritten
    uint64_t rows;
    uint32_t k, cpk;
    uint32_t part_rows; // rows of a part
    uint32_t parts;     // gridDim.x
};
static_assert(sizeof(ConvBiasArgs) == 64, "the launchers pass 64 bytes");

// Sums of dy over a part's rows: 128 threads take 64 channels, thread t channels 8 * (t % 8) and every 16th row.
template <class T> __device__ __forceinline__ void conv_bias(const ConvBiasArgs& a) {
    SHARED(float, sums, [16][64]);
    const unsigned t = threadIdx.x;
    const uint32_t first = blockIdx.y * 64, channel = first + t % 8 * 8;
    const uint64_t from = uint64_t(blockIdx.x) * a.part_rows;
    const uint64_t end = from + a.part_rows < a.rows ? from + a.part_rows : a.rows;
    float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (channel < a.cpk) {
        Coefs8 coefs;
        load_coefs(a.dy, channel, a.cpk, coefs);
        for (uint64_t row = from + t / 8; row < end; row += 16) {
            float v[8];
            read8<T>(a.dy, coefs, row, channel, a.cpk, v);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += v[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[t / 8][t % 8 * 8 + i] = sum[i];
    __syncthreads();
    const uint32_t mine = first + t, inside = a.parts == 1 ? a.k : a.cpk;
    if (t < 64 && mine < inside) {
        float all = 0.0f;
        for (int i = 0; i < 16; ++i) all += sums[i][t];
        reinterpret_cast<float*>(a.out)[uint64_t(blockIdx.x) * a.cpk + mine] = all;
    }
}
