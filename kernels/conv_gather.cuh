// The general convolution kernel: any kernel size, stride, padding and plane, forward and data gradient.
//
// A block makes 128 rows (pixels) x BN columns (channels); each warp 32 rows x up to 64 columns. k runs over tap * cps +
// channel in steps of 64 bytes (32 numbers of 2 bytes, 16 of f32). A thread loads groups of 8 channels of some rows to
// registers while the previous step is multiplied, computes the operand and stores it to the other of two buffers.
#pragma once
#include "conv_epilogue.cuh"

// Steps of a block mask: for a column tile the k16 groups (16 neighbouring channels of one tap) in which it has a block.
// x: the group's index (tap * cps / 16 + channel / 16) * 256 + one bit for each 16 of the tile's columns that has a block
// there; y: the tap's source offset, low half rows, high half columns, as int16. In the data gradient the lists are by
// class, then column tile.

template <class T, int BN> struct Gather {
    static constexpr int THREADS = BN == 128 ? 256 : 128;
    static constexpr int WARP_COLUMNS = BN < 64 ? BN : 64;
    static constexpr int STEP = 64 / sizeof(T);       // numbers of k
    static constexpr int GROUPS = STEP / 8;           // that a row loads
    static constexpr int LANES = THREADS / GROUPS;    // rows that the block loads at once
    static constexpr int A = TILE_ROWS / LANES;       // groups of a thread
    static constexpr int B = BN < LANES ? 1 : BN / LANES;
    static constexpr int BUFFER = (TILE_ROWS + BN) * 64; // bytes
    static constexpr int STAGE = BN == 128 ? 32 : BN; // columns of a warp that the epilogue takes at once
    static constexpr int EPILOGUE = EPILOGUE_BYTES<STAGE> * (BN / WARP_COLUMNS);
    static constexpr int BYTES = 2 * BUFFER > EPILOGUE ? 2 * BUFFER : EPILOGUE;
};

// Stores a group of 8 numbers of a row of 64 bytes.
template <class T>
__device__ __forceinline__ void store_group(unsigned char* rows, uint32_t row, uint32_t group, const Raw<T>& raw) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i)
        store16(rows + swizzled<4>(row, group * (sizeof(T) / 2) + i), raw.v[i]);
}

// acc += 32 rows x 32 bytes of k of `a_row`, times N * 8 columns of `b_row`; `half` of the 64 bytes. Groups of 16 columns
// whose bit in `active` is clear are left out.
template <class T, int N, bool MASKED>
__device__ __forceinline__ void multiply_half(float (&acc)[2][N][4], const unsigned char* a_rows, uint32_t a_row,
                                              const unsigned char* b_rows, uint32_t b_row, uint32_t half, uint32_t active) {
    const unsigned lane = threadIdx.x % 32;
    uint32_t fa[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
        load_matrices(a_rows + swizzled<4>(a_row + m * 16 + lane % 16, half * 2 + lane / 16), fa[m]);
    if constexpr (MASKED) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            if (!(active >> n / 2 & 1)) continue;
            uint32_t r[4];
            load_matrices(b_rows + swizzled<4>(b_row + n * 8 + lane % 8 + lane / 16 * 8, half * 2 + (lane >> 3 & 1)), r);
            const uint32_t fb[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
            float d[2][2][4];
#pragma unroll
            for (int i = 0; i < 16; ++i) d[i / 8][i / 4 % 2][i % 4] = acc[i / 8][n + i / 4 % 2][i % 4];
            multiply<T, 2, 2>(d, fa, fb);
#pragma unroll
            for (int i = 0; i < 16; ++i) acc[i / 8][n + i / 4 % 2][i % 4] = d[i / 8][i / 4 % 2][i % 4];
        }
    } else {
        uint32_t fb[N][2];
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t r[4];
            load_matrices(b_rows + swizzled<4>(b_row + n * 8 + lane % 8 + lane / 16 * 8, half * 2 + (lane >> 3 & 1)), r);
            fb[n][0] = r[0], fb[n][1] = r[1], fb[n + 1][0] = r[2], fb[n + 1][1] = r[3];
        }
        multiply<T, 2, N>(acc, fa, fb);
    }
}

template <class T, int BN, bool BLOCKS> __device__ __forceinline__ void conv_gather(const ConvArgs& a) {
    using Shape = Gather<T, BN>;
    constexpr int GROUPS = Shape::GROUPS, LANES = Shape::LANES, N = Shape::WARP_COLUMNS / 8;
    SHARED(uint4x, space, [Shape::BYTES / 16]);
    unsigned char* const shared = reinterpret_cast<unsigned char*>(space);
    const unsigned t = threadIdx.x, group = t % GROUPS, lane_row = t / GROUPS;
    const uint32_t row_tile = blockIdx.x / a.col_tiles, col_tile = blockIdx.x % a.col_tiles, column = col_tile * BN;
    const RowTile tile = find_tile(a, row_tile);
    const Taps taps = find_taps(a, tile);

    // The rows that this thread loads: source row of the pixel that tap offsets count from, and that pixel's place.
    int32_t base[Shape::A];
    uint32_t place[Shape::A];
#pragma unroll
    for (int i = 0; i < Shape::A; ++i) {
        const uint32_t r = lane_row + i * LANES, row = tile.first + r, pixel = row % (tile.h * tile.w);
        const uint32_t y = pixel / tile.w * taps.scale, x = pixel % tile.w * taps.scale;
        base[i] = r < tile.count ? int32_t((row / (tile.h * tile.w) * a.hs + y) * a.ws + x) : 0;
        place[i] = r < tile.count ? y | x << 16 : 0x8000; // no tap leads from there into the plane
    }

    // The group of k that this thread loads next.
    const uint64_t pitch = uint64_t(a.r) * a.s * a.cps;
    uint32_t channel = group * 8, next = 0, end = 0; // `next`, `end`: entries of the block list
    int m = 0, n = 0;
    const auto carry = [&] {
        while (channel >= a.cps) {
            channel -= a.cps;
            if (++n == taps.cols) n = 0, ++m;
        }
    };
    uint32_t steps;
    const uint2x* blocks = nullptr;
    if constexpr (BLOCKS) {
        const uint32_t* ptr = reinterpret_cast<const uint32_t*>(a.blocks_ptr);
        const uint32_t list = (a.backward ? tile.di * a.stride + tile.dj : 0) * a.col_tiles + col_tile;
        blocks = reinterpret_cast<const uint2x*>(a.blocks);
        next = ptr[list], end = ptr[list + 1];
        steps = (end - next + Shape::STEP / 16 - 1) / (Shape::STEP / 16);
    } else {
        steps = (uint32_t(taps.rows) * taps.cols * a.cps + Shape::STEP - 1) / Shape::STEP;
        if (taps.cols > 0) carry();
    }

    Raw<T> ra[Shape::A], rx[Shape::A], rb[Shape::B];
    uint32_t valid = 0, ready = 0; // `ready`: the channel of what the registers hold
    const auto load = [&] {
        int y, x;
        uint64_t k;
        bool some;
        uint32_t groups = ~0u; // of 16 columns, in which there is a block: others' weights are not read
        if constexpr (BLOCKS) {
            const uint32_t at = next + group / 2;
            some = at < end;
            const uint2x entry = some ? blocks[at] : uint2x{0, 0};
            groups = entry.x;
            k = uint64_t(entry.x >> 8) * 16 + group % 2 * 8;
            y = int16_t(entry.y), x = int16_t(entry.y >> 16);
            ready = (entry.x >> 8) % (a.cps / 16) * 16 + group % 2 * 8;
            next += Shape::STEP / 16;
        } else {
            some = m < taps.rows;
            y = taps.y + m * taps.turn, x = taps.x + n * taps.turn;
            ready = channel;
            k = uint64_t((taps.r0 + m * taps.step) * int(a.s) + taps.s0 + n * taps.step) * a.cps + channel;
            channel += Shape::STEP;
            carry();
        }
        const int shift = y * int(a.ws) + x;
        valid = 0;
#pragma unroll
        for (int i = 0; i < Shape::A; ++i) {
            const bool inside = some && uint32_t(int16_t(place[i]) + y) < a.hs && uint32_t(int16_t(place[i] >> 16) + x) < a.ws;
            const uint64_t at = uint64_t(uint32_t(base[i] + shift)) * a.cps + ready;
            ra[i] = inside ? load_raw(reinterpret_cast<const T*>(a.in.a) + at) : zero_raw<T>();
            if (a.in.kind == THROUGH)
                rx[i] = inside ? load_raw(reinterpret_cast<const T*>(a.in.b) + at) : zero_raw<T>();
            valid |= uint32_t(inside) << i;
        }
#pragma unroll
        for (int i = 0; i < Shape::B; ++i) {
            const uint32_t r = lane_row + i * LANES;
            const bool kept = some && (!BLOCKS || groups >> r / 16 & 1);
            const bool inside = kept && column + r < a.cols && (BN >= LANES || r < BN);
            const T* at = reinterpret_cast<const T*>(a.weights) + (column + r) * pitch + k;
            rb[i] = inside ? load_raw(at) : zero_raw<T>();
        }
    };
    const auto store = [&](uint32_t buffer) {
        unsigned char* const rows = shared + buffer * Shape::BUFFER;
        compute<T>(a.in, ready, a.cps, valid, ra, rx);
#pragma unroll
        for (int i = 0; i < Shape::A; ++i) store_group(rows, lane_row + i * LANES, group, ra[i]);
#pragma unroll
        for (int i = 0; i < Shape::B; ++i) {
            const uint32_t r = lane_row + i * LANES;
            if (BN >= LANES || r < BN) store_group(rows + TILE_ROWS * 64, r, group, round_raw(rb[i]));
        }
    };

    float acc[2][N][4];
#pragma unroll
    for (int i = 0; i < 8 * N; ++i) acc[i / (4 * N)][i / 4 % N][i % 4] = 0.0f;
    uint32_t entry = next;
    if (steps > 0) {
        load();
        store(0);
    }
    __syncthreads();
    const uint32_t a_row = t / 32 % 4 * 32, b_row = t / 128 * 64;
    for (uint32_t step = 0; step < steps; ++step) {
        const unsigned char* rows = shared + step % 2 * Shape::BUFFER;
        if (step + 1 < steps) load();
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            uint32_t active = ~0u;
            if constexpr (BLOCKS) {
                const uint32_t at = entry + half * Shape::STEP / 32;
                active = at < end ? blocks[at].x >> b_row / 16 & ((1u << N / 2) - 1) : 0;
                if (!active) continue;
            }
            multiply_half<T, N, BLOCKS>(acc, rows, a_row, rows + TILE_ROWS * 64, b_row, half, active);
        }
        entry += Shape::STEP / 16;
        if (step + 1 < steps) store((step + 1) % 2);
        __syncthreads();
    }
    conv_epilogue<T, Shape::WARP_COLUMNS, Shape::STAGE>(a, tile, row_tile, column, acc, shared);
}
