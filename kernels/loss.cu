// Softmax cross-entropy with label smoothing s, its gradient, and the sum over the batch.
//
// For an image with logits z of K classes and label l, in f64 (a few thousand exponentials a step):
//     lse  = max(z) + log(sum(exp(z - max(z))))
//     loss = (1 - s) * (lse - z[l]) + s * mean(lse - z)
//     dz   = (exp(z - lse) - (1 - s) * [class is l] - s / K) / n * loss_scale, rounded once
// correct: z[l] is the largest, the first one among equals, and none is NaN.
//
// Write rule: dlogits, padding channels included, and the scratch are overwritten.
// Launcher: src/backend/gpu/ops/loss.rs, same arguments: two kernels, one after the other.
#include "number.cuh"
#include "state.cuh"

// What one image gives; same layout as RowLoss in src/backend/gpu/ops/loss.rs.
struct RowLoss {
    double loss;
    uint64_t correct; // 0 or 1
};

// By value; same layout as LossArgs in src/backend/gpu/ops/loss.rs.
struct LossArgs {
    uint64_t logits;  // float [n][cp]
    uint64_t labels;  // uint32_t [n]
    uint64_t dlogits; // T [n][cp]; 0: no gradient
    uint64_t rows;    // RowLoss [n]
    uint64_t state;   // StepState, for its loss scale; 0: scale 1
    double smoothing;
    uint32_t n;
    uint32_t classes;
    uint32_t cp;
    uint32_t reserved;
};
static_assert(sizeof(LossArgs) == 64, "the launcher passes 64 bytes");

// The same in all lanes: lanes add in pairs, which commutes.
__device__ __forceinline__ double warp_sum(double v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(~0u, v, lanes);
        v = other > v ? other : v;
    }
    return v;
}
__device__ __forceinline__ uint32_t warp_any(uint32_t v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v |= __shfl_xor_sync(~0u, v, lanes);
    return v;
}

// Launch: blocks of 32 x IMAGES threads, threadIdx.y an image; gridDim.x * blockDim.y at least n.
template <class T> __device__ __forceinline__ void cross_entropy(const LossArgs& a) {
    const uint32_t lane = threadIdx.x, image = blockIdx.x * blockDim.y + threadIdx.y;
    if (image >= a.n) return; // a whole warp, and there is no barrier
    const float* z = reinterpret_cast<const float*>(a.logits) + uint64_t(image) * a.cp;
    const uint32_t label = reinterpret_cast<const uint32_t*>(a.labels)[image];
    const bool known = label < a.classes; // the host sees to it; else the loss is NaN
    const float own = known ? z[label] : bits_float(0x7FC00000u);

    float top = -HUGE_VALF;
    uint32_t beaten = own == own ? 0 : 1;
    for (uint32_t c = lane; c < a.classes; c += 32) {
        const float v = z[c];
        top = v > top ? v : top;                           // passes over NaN; the sum does not
        beaten |= v != v || v > own || (v == own && c < label);
    }
    top = warp_max(top);
    beaten = warp_any(beaten);
    double sum = 0.0, gaps = 0.0;
    for (uint32_t c = lane; c < a.classes; c += 32) sum += exp(double(z[c]) - double(top));
    const double lse = double(top) + log(warp_sum(sum));
    double loss = (1.0 - a.smoothing) * (lse - double(own));
    if (a.smoothing > 0.0) {
        for (uint32_t c = lane; c < a.classes; c += 32) gaps += lse - double(z[c]);
        loss += a.smoothing * warp_sum(gaps) / double(a.classes);
    }
    if (lane == 0) reinterpret_cast<RowLoss*>(a.rows)[image] = {loss, beaten ? 0u : 1u};

    if (!a.dlogits) return;
    const double scale = a.state ? double(reinterpret_cast<const StepState*>(a.state)->loss_scale) : 1.0;
    const double even = a.smoothing / double(a.classes);
    T* dz = reinterpret_cast<T*>(a.dlogits) + uint64_t(image) * a.cp;
    for (uint32_t c = lane; c < a.cp; c += 32) {
        double g = 0.0;
        if (c < a.classes) {
            const double target = even + (c == label ? 1.0 - a.smoothing : 0.0);
            g = (exp(double(z[c]) - lse) - target) / double(a.n) * scale;
        }
        dz[c] = from_float<T>(float(g));
    }
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_f32(LossArgs a) { cross_entropy<float>(a); }
EXPORT_KERNEL(cross_entropy_f32)
extern "C" __global__ void __launch_bounds__(256) cross_entropy_f16(LossArgs a) { cross_entropy<f16>(a); }
EXPORT_KERNEL(cross_entropy_f16)
extern "C" __global__ void __launch_bounds__(256) cross_entropy_bf16(LossArgs a) { cross_entropy<bf16>(a); }
EXPORT_KERNEL(cross_entropy_bf16)

// Result of a batch, or of several; same layout as LossOut in src/backend/gpu/ops/loss.rs.
struct LossOut {
    double loss_sum;
    uint64_t correct;
};

// By value; same layout as LossSumArgs in src/backend/gpu/ops/loss.rs.
struct LossSumArgs {
    uint64_t rows;  // RowLoss [n]
    uint64_t out;   // LossOut [...], one of which is overwritten; 0: none
    uint64_t index; // uint64_t: which; 0: the first
    uint64_t state; // StepState, whose `broken` becomes the step's number if the sum is not finite; 0: none
    uint32_t n;
    uint32_t reserved;
};
static_assert(sizeof(LossSumArgs) == 40, "the launcher passes 40 bytes");

// cross_entropy_sum. Launch: one block, a power of two of threads up to 256. A thread adds the images that are its own
// modulo the block's size, then threads are added as a tree.
extern "C" __global__ void __launch_bounds__(256) cross_entropy_sum(LossSumArgs a) {
    SHARED(LossOut, part, [256]);
    const uint32_t t = threadIdx.x;
    LossOut mine = {0.0, 0};
#pragma unroll 4
    for (uint32_t i = t; i < a.n; i += blockDim.x) {
        const RowLoss row = reinterpret_cast<const RowLoss*>(a.rows)[i];
        mine.loss_sum += row.loss;
        mine.correct += row.correct;
    }
    part[t] = mine;
    for (uint32_t half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) {
            part[t].loss_sum += part[t + half].loss_sum;
            part[t].correct += part[t + half].correct;
        }
    }
    if (t != 0) return;
    const LossOut sum = part[0];
    if (a.out) reinterpret_cast<LossOut*>(a.out)[a.index ? *reinterpret_cast<const uint64_t*>(a.index) : 0] = sum;
    if (a.state) {
        StepState* state = reinterpret_cast<StepState*>(a.state);
        const bool finite = sum.loss_sum - sum.loss_sum == 0.0;
        if (!finite && state->broken == 0) state->broken = state->step;
    }
}
EXPORT_KERNEL(cross_entropy_sum)
