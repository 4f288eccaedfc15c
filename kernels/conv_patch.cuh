// 3x3 convolutions with stride 1 and padding 1, forward and data gradient, on planes narrow enough for shared memory.
//
// A block makes 128 rows, consecutive pixels of the tensor, x BN columns. The nine taps of these pixels all lie in the
// tensor's rows from the first one - W - 1 to the last one + W + 1: that patch is read once for each chunk of channels
// (64 bytes) and the operand is computed once for it, where conv_gather does both nine times. A tap outside the image
// reads a row of zeros. While the taps of one chunk are multiplied, the patch of the next is loaded, one group of 8
// channels a thread and tap.
#pragma once
#include "conv_gather.cuh"

template <class T, int BN> struct Patch {
    using G = Gather<T, BN>;
    static constexpr int WEIGHTS = BN * 64; // bytes of a buffer
    // Groups that all threads load in nine taps: what a patch may have.
    static constexpr int MOST = 9 * G::THREADS;
};

// Dynamic shared memory: two patches, a row of zeros, two buffers of weights; or what the epilogue needs.
// (W * 2 + 130) * 128 + 64 + BN * 128, at least EPILOGUE: see patch_bytes in src/backend/gpu/ops/conv_plan.rs.
template <class T, int BN> __device__ __forceinline__ void conv_patch(const ConvArgs& a) {
    using Shape = Patch<T, BN>;
    using G = typename Shape::G;
    constexpr int GROUPS = G::GROUPS, LANES = G::LANES, N = G::WARP_COLUMNS / 8, TAPS = 9;
    DYNAMIC_SHARED(unsigned char, shared);
    const unsigned t = threadIdx.x, lane = t % 32, group = t % GROUPS, lane_row = t / GROUPS;
    const uint32_t row_tile = blockIdx.x / a.col_tiles, column = blockIdx.x % a.col_tiles * BN;
    const RowTile tile = find_tile(a, row_tile);
    const uint32_t width = a.wd, patch_rows = TILE_ROWS + 2 * width + 2;
    unsigned char* const zeros = shared + 2 * patch_rows * 64;
    unsigned char* const weights = zeros + 64;
    const int64_t rows = int64_t(a.images) * a.hd * a.wd, first = int64_t(tile.first) - width - 1;

    // The pixels whose rows this lane addresses: a bit for each tap in the image.
    const uint32_t a_row = t / 32 % 4 * 32, b_row = t / 128 * 64;
    uint32_t inside[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const uint32_t pixel = (tile.first + a_row + m * 16 + lane % 16) % (a.hd * a.wd), i = pixel / width, j = pixel % width;
        uint32_t bits = 0x1FF; // bit (y + 1) * 3 + x + 1 of source (i + y, j + x)
        if (i == 0) bits &= 0x1F8;
        if (i + 1 == a.hd) bits &= 0x03F;
        if (j == 0) bits &= 0x1B6;
        if (j + 1 == width) bits &= 0x0DB;
        inside[m] = bits;
    }

    const uint64_t pitch = uint64_t(TAPS) * a.cps;
    const uint32_t chunks = (a.cps + G::STEP - 1) / G::STEP, steps = chunks * TAPS;
    Raw<T> rb[G::B];
    const auto load_weights = [&](uint32_t chunk, uint32_t tap) {
        const uint32_t channel = chunk * G::STEP + group * 8;
#pragma unroll
        for (int i = 0; i < G::B; ++i) {
            const uint32_t r = lane_row + i * LANES;
            const bool some = channel < a.cps && column + r < a.cols && (BN >= LANES || r < BN);
            const T* at = reinterpret_cast<const T*>(a.weights) + (column + r) * pitch + tap * a.cps + channel;
            rb[i] = some ? load_raw(at) : zero_raw<T>();
        }
    };
    const auto store_weights = [&](uint32_t buffer) {
#pragma unroll
        for (int i = 0; i < G::B; ++i) {
            const uint32_t r = lane_row + i * LANES;
            if (BN >= LANES || r < BN) store_group(weights + buffer * Shape::WEIGHTS, r, group, round_raw(rb[i]));
        }
    };
    Raw<T> ra[1], rx[1];
    uint32_t valid = 0;
    const auto load_patch = [&](uint32_t chunk, uint32_t slot) {
        const uint32_t r = lane_row + slot * LANES, channel = chunk * G::STEP + group * 8;
        const int64_t row = first + r;
        valid = row >= 0 && row < rows && channel < a.cps && r < patch_rows;
        const int64_t at = row * a.cps + channel;
        ra[0] = valid ? load_raw(reinterpret_cast<const T*>(a.in.a) + at) : zero_raw<T>();
        if (a.in.kind == THROUGH) rx[0] = valid ? load_raw(reinterpret_cast<const T*>(a.in.b) + at) : zero_raw<T>();
    };
    const auto store_patch = [&](uint32_t chunk, uint32_t slot) {
        const uint32_t r = lane_row + slot * LANES, channel = chunk * G::STEP + group * 8;
        if (r >= patch_rows) return;
        compute<T>(a.in, channel < a.cps ? channel : 0, a.cps, valid, ra, rx);
        store_group(shared + chunk % 2 * patch_rows * 64, r, group, ra[0]);
    };

    float acc[2][N][4];
#pragma unroll
    for (int i = 0; i < 8 * N; ++i) acc[i / (4 * N)][i / 4 % N][i % 4] = 0.0f;
    if (t < 4) store16(zeros + t * 16, {0, 0, 0, 0});
    for (uint32_t slot = 0; slot * LANES < patch_rows; ++slot) {
        load_patch(0, slot);
        store_patch(0, slot);
    }
    load_weights(0, 0);
    store_weights(0);
    __syncthreads();
    uint32_t chunk = 0, tap = 0;
    for (uint32_t step = 0; step < steps; ++step) {
        const bool last_tap = tap + 1 == TAPS, more = chunk + 1 < chunks;
        if (step + 1 < steps) load_weights(last_tap ? chunk + 1 : chunk, last_tap ? 0 : tap + 1);
        if (more) load_patch(chunk + 1, tap);
        // Source of kernel row and column (tap / 3, tap % 3).
        const uint32_t seen = a.backward ? TAPS - 1 - tap : tap;
        const uint32_t shift = seen / 3 * width + seen % 3; // from the first row that the tile's first pixel reads
        const unsigned char* row[2];
        uint32_t turn[2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const uint32_t r = a_row + m * 16 + lane % 16 + shift;
            const bool there = inside[m] >> seen & 1;
            row[m] = there ? shared + (chunk % 2 * patch_rows + r) * 64 : zeros;
            turn[m] = there ? r >> 1 & 3 : 0; // as in `swizzled`
        }
        const unsigned char* const b_rows = weights + step % 2 * Shape::WEIGHTS;
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            if (chunk * G::STEP + half * (G::STEP / 2) >= a.cps) continue; // zeros
            uint32_t fa[2][4], fb[N][2];
#pragma unroll
            for (int m = 0; m < 2; ++m) load_matrices(row[m] + ((half * 2 + lane / 16) ^ turn[m]) * 16, fa[m]);
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                uint32_t f[4];
                load_matrices(b_rows + swizzled<4>(b_row + n * 8 + lane % 8 + lane / 16 * 8, half * 2 + (lane >> 3 & 1)), f);
                fb[n][0] = f[0], fb[n][1] = f[1], fb[n + 1][0] = f[2], fb[n + 1][1] = f[3];
            }
            multiply<T, 2, N>(acc, fa, fb);
        }
        if (step + 1 < steps) store_weights((step + 1) % 2);
        if (more) store_patch(chunk + 1, tap);
        tap = last_tap ? 0 : tap + 1;
        chunk += last_tap;
        __syncthreads();
    }
    conv_epilogue<T, G::WARP_COLUMNS, G::STAGE>(a, tile, row_tile, column, acc, shared);
}
