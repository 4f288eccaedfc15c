// A batch from a data set of uint8 images in device memory: gathered in the epoch's order, cropped and flipped at random,
// normalised by table, with labels. The same numbers as src/data/loader.rs gives (rounded to the type).
//
// Image k of the batch is i = order[batch * batch_size + k]; its crop and flip come from block (base + i) of the epoch's
// random stream, so they depend on neither batch size nor order. Batch index and stream lie in device memory: a captured
// graph is replayed for other batches and epochs.
//
// Write rule: x (padding channels: zero) and labels are overwritten for images that exist; slots beyond stay as they are.
// Traffic: one byte a channel and pixel, x once. Not yet timed on a GPU.
// Launcher: src/backend/gpu/ops/augment.rs, same arguments.
#include "number.cuh"

// By value; same layout as Augment in src/backend/gpu/ops/augment.rs.
struct Augment {
    uint64_t images;     // uint8_t [count][c * h * w]
    uint64_t all_labels; // uint32_t [count]
    uint64_t order;      // uint32_t [count]; 0: as they lie
    uint64_t batch;      // uint64_t: index of the batch; 0: the first one
    uint64_t stream;     // uint32_t [4]: key, upper half of the counter; 0: neither crop nor flip
    uint64_t tables;     // float [c][256]: normalised value of each pixel value
    uint64_t x;          // T [n][h * w][cp]
    uint64_t labels;     // uint32_t [n]
    uint64_t count;      // images of the data set
    uint64_t base;       // position of image 0 in the random stream
    uint32_t n;          // images of this batch
    uint32_t batch_size; // images of a full batch
    uint32_t c, cp, h, w;
    uint32_t pad;     // of the random crop, less than h and w
    uint32_t reflect; // padding mirrors (1) or is black (0)
    uint32_t flip;    // 1: flip every other image
    uint32_t hwc;     // order of an image's bytes: rows, columns, channels (1) or channels, rows, columns (0)
};
static_assert(sizeof(Augment) == 120, "the launcher passes 120 bytes");

struct Words {
    uint32_t v[4];
};

// Philox 4x32-10, as src/rng.rs.
__device__ __forceinline__ Words philox(Words ctr, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(ctr.v[0]) * 0xD2511F53u, b = uint64_t(ctr.v[2]) * 0xCD9E8D57u;
        ctr = {{uint32_t(b >> 32) ^ ctr.v[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ ctr.v[3] ^ key1, uint32_t(a)}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return ctr;
}

// Which image a slot gets, and from where.
struct Crop {
    uint64_t image;
    int32_t top, left;
    uint32_t flip;
    uint32_t exists;
};

__device__ __forceinline__ Crop draw(const Augment& a, uint32_t slot) {
    const uint64_t first = a.batch ? *reinterpret_cast<const uint64_t*>(a.batch) * a.batch_size : 0, at = first + slot;
    if (at >= a.count) return {0, 0, 0, 0, 0};
    const uint64_t image = a.order ? reinterpret_cast<const uint32_t*>(a.order)[at] : at;
    if (!a.stream) return {image, 0, 0, 0, 1};
    const uint32_t* s = reinterpret_cast<const uint32_t*>(a.stream);
    const uint64_t position = a.base + image;
    const Words w = philox({{uint32_t(position), uint32_t(position >> 32), s[2], s[3]}}, s[0], s[1]);
    const uint64_t choices = 2 * uint64_t(a.pad) + 1;
    return {image, int32_t(w.v[0] * choices >> 32) - int32_t(a.pad), int32_t(w.v[1] * choices >> 32) - int32_t(a.pad),
            a.flip & w.v[2] >> 31, 1};
}

// Row or column of the image that `at` shows, of `n`; -1: black.
__device__ __forceinline__ int32_t source(int32_t at, int32_t n, uint32_t reflect) {
    if (at >= 0 && at < n) return at;
    if (!reflect) return -1;
    return at < 0 ? -at : 2 * (n - 1) - at;
}

// Launch: 1-D blocks of at most 256 threads; gridDim.x = n * chunks, where a chunk is CHUNK groups of 8 channels of one
// image, the groups of a pixel side by side.
constexpr uint32_t CHUNK = 1024;
template <class T> __device__ __forceinline__ void augment(const Augment& a) {
    SHARED(Crop, shared, [1]);
    const uint32_t groups = a.cp / 8, items = a.h * a.w * groups, chunks = (items + CHUNK - 1) / CHUNK;
    const uint32_t slot = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
    if (threadIdx.x == 0) {
        const Crop crop = draw(a, slot);
        shared[0] = crop;
        if (chunk == 0 && crop.exists)
            reinterpret_cast<uint32_t*>(a.labels)[slot] = reinterpret_cast<const uint32_t*>(a.all_labels)[crop.image];
    }
    __syncthreads();
    const Crop crop = shared[0];
    if (!crop.exists) return;
    const uint64_t pixels = uint64_t(a.h) * a.w;
    const uint8_t* image = reinterpret_cast<const uint8_t*>(a.images) + crop.image * pixels * a.c;
    const uint64_t channel_step = a.hwc ? 1 : pixels, step = a.hwc ? a.c : 1;
    const float* tables = reinterpret_cast<const float*>(a.tables);
    const uint32_t end = items - chunk * CHUNK < CHUNK ? items : (chunk + 1) * CHUNK;
    for (uint32_t item = chunk * CHUNK + threadIdx.x; item < end; item += blockDim.x) {
        const uint32_t pixel = item / groups, channel = item % groups * 8, y = pixel / a.w, column = pixel % a.w;
        const uint32_t x = crop.flip ? a.w - 1 - column : column;
        const int32_t from_y = source(crop.top + int32_t(y), int32_t(a.h), a.reflect);
        const int32_t from_x = source(crop.left + int32_t(x), int32_t(a.w), a.reflect);
        const bool black = from_y < 0 || from_x < 0;
        const uint8_t* from = image + (black ? 0 : (uint64_t(from_y) * a.w + uint32_t(from_x)) * step);
        float v[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
            const uint32_t ch = channel + i;
            v[i] = ch < a.c ? tables[256 * ch + (black ? 0 : from[ch * channel_step])] : 0.0f;
        }
        store8(reinterpret_cast<T*>(a.x) + (slot * pixels + pixel) * a.cp + channel, v);
    }
}

extern "C" __global__ void __launch_bounds__(256) augment_f32(Augment a) { augment<float>(a); }
EXPORT_KERNEL(augment_f32)
extern "C" __global__ void __launch_bounds__(256) augment_f16(Augment a) { augment<f16>(a); }
EXPORT_KERNEL(augment_f16)
extern "C" __global__ void __launch_bounds__(256) augment_bf16(Augment a) { augment<bf16>(a); }
EXPORT_KERNEL(augment_bf16)
