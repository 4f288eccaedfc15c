// Maximum over square windows, x [n][h][w][cp] -> y [n][p][q][cp], and its gradient: dx = or += dy at each window's winner,
// which is the first NaN in row order, or else the first of the largest. Padding never wins.
//
// Backward gathers: a block finds the winners of all windows that touch its tile of the image, from the operand that the
// forward pass read, and keeps them in shared memory; then each pixel adds the windows it has won, in row order. No index is
// stored between the passes, nothing is atomic.
//
// Write rule: y is overwritten, dx and partials as Finish says; padding channels: see there.
// Traffic: forward x once (windows overlap in the caches) and y; backward x and dy once and a rim, dx, what Finish reads.
// Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/maxpool.rs, same arguments.
#include "rows.cuh"

// By value; same layout as MaxPool in src/backend/gpu/ops/maxpool.rs.
struct MaxPool {
    uint32_t n, h, w, p, q; // images, input and output planes
    uint32_t size, stride, pad;
    uint32_t cp;
    uint32_t reserved;
};
static_assert(sizeof(MaxPool) == 40, "the launcher passes 40 bytes");

// Cells of a window that lie in the image, along one direction: [from, to) of 0..size.
struct Cells {
    uint32_t from, to;
};
__device__ __forceinline__ Cells cells_inside(uint32_t at, const MaxPool& g, uint32_t length) {
    const uint32_t start = at * g.stride; // in the padded image
    const uint32_t end = length + g.pad;
    return {start < g.pad ? g.pad - start : 0, start + g.size > end ? end - start : g.size};
}

// The largest values of a window, and which cells (row * size + column) they are in.
template <class T>
__device__ __forceinline__ void window8(const MaxPool& g, const Operand& x, const Coefs8& coefs, uint64_t image, uint32_t p,
                                        uint32_t q, uint32_t channel, float (&best)[8], uint32_t (&cell)[8]) {
    const Cells rows = cells_inside(p, g, g.h), cols = cells_inside(q, g, g.w);
    bool first = true;
    for (uint32_t r = rows.from; r < rows.to; ++r) {
        for (uint32_t c = cols.from; c < cols.to; ++c) {
            const uint64_t row = (image * g.h + p * g.stride + r - g.pad) * g.w + q * g.stride + c - g.pad;
            float v[8];
            read8<T>(x, coefs, row, channel, g.cp, v);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const bool wins = first || v[i] > best[i] || (v[i] != v[i] && best[i] == best[i]);
                best[i] = wins ? v[i] : best[i];
                cell[i] = wins ? r * g.size + c : cell[i];
            }
            first = false;
        }
    }
}

// By value; same layout as MaxPoolForward in src/backend/gpu/ops/maxpool.rs.
struct MaxPoolForward {
    Operand x;
    uint64_t y; // T
    MaxPool geom;
};
static_assert(sizeof(MaxPoolForward) == 80, "the launcher passes 80 bytes");

// Launch: see rows.cuh; a lane takes MAX_POOL_ROWS rows of y.
constexpr uint32_t MAX_POOL_ROWS = 2;
template <class T> __device__ __forceinline__ void max_pool_forward(const MaxPoolForward& a) {
    const MaxPool& g = a.geom;
    const uint32_t channel = tile_channel();
    if (channel >= g.cp) return;
    Coefs8 coefs;
    load_coefs(a.x, channel, g.cp, coefs);
    const uint64_t rows = uint64_t(g.n) * g.p * g.q;
    uint64_t row = uint64_t(blockIdx.x) * blockDim.y * MAX_POOL_ROWS + threadIdx.y;
    for (uint32_t i = 0; i < MAX_POOL_ROWS && row < rows; ++i, row += blockDim.y) {
        const uint64_t line = row / g.q;
        float best[8];
        uint32_t cell[8];
        window8<T>(g, a.x, coefs, line / g.p, uint32_t(line % g.p), uint32_t(row % g.q), channel, best, cell);
        store8(reinterpret_cast<T*>(a.y) + row * g.cp + channel, best);
    }
}

extern "C" __global__ void __launch_bounds__(256) max_pool_forward_f32(MaxPoolForward a) { max_pool_forward<float>(a); }
EXPORT_KERNEL(max_pool_forward_f32)
extern "C" __global__ void __launch_bounds__(256) max_pool_forward_f16(MaxPoolForward a) { max_pool_forward<f16>(a); }
EXPORT_KERNEL(max_pool_forward_f16)
extern "C" __global__ void __launch_bounds__(256) max_pool_forward_bf16(MaxPoolForward a) { max_pool_forward<bf16>(a); }
EXPORT_KERNEL(max_pool_forward_bf16)

// By value; same layout as MaxPoolBackward in src/backend/gpu/ops/maxpool.rs.
struct MaxPoolBackward {
    Operand x;
    Operand dy;
    Finish finish;
    MaxPool geom;
};
static_assert(sizeof(MaxPoolBackward) == 200, "the launcher passes 200 bytes");

// Pixels of a block's tile: TILE_H x TILE_W, its row of the partials is blockIdx.x.
constexpr uint32_t TILE_H = 8, TILE_W = 16;

// Windows that contain a pixel of [from, from + count), along one direction: [first, first + count).
struct Span {
    uint32_t first, count;
};
__device__ __forceinline__ Span windows_of(uint32_t from, uint32_t count, const MaxPool& g, uint32_t length) {
    const uint32_t low = from + g.pad, high = low + count - 1; // in the padded image
    const uint32_t first = low < g.size ? 0 : (low - g.size) / g.stride + 1;
    uint32_t end = high / g.stride + 1;
    end = end < length ? end : length;
    return {first, end > first ? end - first : 0};
}

struct alignas(16) Cells8 {
    uint16_t cell[8];
};

// Launch: see rows.cuh; gridDim.x = n * ceil(h / TILE_H) * ceil(w / TILE_W); dynamic shared memory: a Cells8 for each of the
// most windows that a tile touches and each group of the channel tile. size <= 255.
template <class T> __device__ __forceinline__ void max_pool_backward(const MaxPoolBackward& a) {
    const MaxPool& g = a.geom;
    DYNAMIC_SHARED(Cells8, winners); // [windows][blockDim.x]
    const uint32_t channel = tile_channel();
    const bool inside = channel < g.cp;
    const uint32_t across = (g.w + TILE_W - 1) / TILE_W, down = (g.h + TILE_H - 1) / TILE_H;
    const uint64_t image = blockIdx.x / across / down;
    const uint32_t y0 = blockIdx.x / across % down * TILE_H, x0 = blockIdx.x % across * TILE_W;
    const uint32_t height = g.h - y0 < TILE_H ? g.h - y0 : TILE_H, width = g.w - x0 < TILE_W ? g.w - x0 : TILE_W;
    const Span rows = windows_of(y0, height, g, g.p), cols = windows_of(x0, width, g, g.q);
    if (inside) {
        Coefs8 coefs;
        load_coefs(a.x, channel, g.cp, coefs);
        for (uint32_t i = threadIdx.y; i < rows.count * cols.count; i += blockDim.y) {
            float best[8];
            uint32_t cell[8];
            window8<T>(g, a.x, coefs, image, rows.first + i / cols.count, cols.first + i % cols.count, channel, best, cell);
            Cells8 won;
#pragma unroll
            for (int k = 0; k < 8; ++k) won.cell[k] = uint16_t(cell[k]);
            winners[i * blockDim.x + threadIdx.x] = won;
        }
    }
    __syncthreads();
    Finisher s;
    if (inside) {
        Coefs8 coefs;
        load_coefs(a.dy, channel, g.cp, coefs);
        begin_finish(a.finish, channel, g.cp, s);
        for (uint32_t i = threadIdx.y; i < height * width; i += blockDim.y) {
            const uint32_t y = y0 + i / width, x = x0 + i % width;
            const Span above = windows_of(y, 1, g, g.p), left = windows_of(x, 1, g, g.q);
            float sum[8];
#pragma unroll
            for (int k = 0; k < 8; ++k) sum[k] = 0.0f;
            for (uint32_t p = above.first; p < above.first + above.count; ++p) {
                for (uint32_t q = left.first; q < left.first + left.count; ++q) {
                    const uint32_t cell = (y + g.pad - p * g.stride) * g.size + x + g.pad - q * g.stride;
                    const Cells8 won = winners[((p - rows.first) * cols.count + q - cols.first) * blockDim.x + threadIdx.x];
                    float v[8];
                    read8<T>(a.dy, coefs, (image * g.p + p) * g.q + q, channel, g.cp, v);
#pragma unroll
                    for (int k = 0; k < 8; ++k) sum[k] += won.cell[k] == cell ? v[k] : 0.0f;
                }
            }
            finish8<T>(a.finish, s, (image * g.h + y) * g.w + x, channel, g.cp, sum);
        }
    }
    store_sums(a.finish, s, inside, channel, g.cp, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(256) max_pool_backward_f32(MaxPoolBackward a) { max_pool_backward<float>(a); }
EXPORT_KERNEL(max_pool_backward_f32)
extern "C" __global__ void __launch_bounds__(256) max_pool_backward_f16(MaxPoolBackward a) { max_pool_backward<f16>(a); }
EXPORT_KERNEL(max_pool_backward_f16)
extern "C" __global__ void __launch_bounds__(256) max_pool_backward_bf16(MaxPoolBackward a) { max_pool_backward<bf16>(a); }
EXPORT_KERNEL(max_pool_backward_bf16)
