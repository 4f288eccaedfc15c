// Operands that a kernel computes while it reads them, and what the last writer of a gradient does to it.
//
// Tensors are NHWC: row = (image * H + y) * W + x, then `cp` channels, a multiple of 8; channels beyond the layer's own
// hold zero, in tensors and in coefficients, and every writer of a tensor writes them. Threads work on 8 channels at once.
#pragma once
#include "number.cuh"

// PLAIN: a. AFFINE, a batch norm: a * scale + shift. THROUGH, the gradient of a batch norm's input: a * k0 + b * k1 + k2.
// Then, if asked, ReLU, which lets NaN through. By value; same layout as Operand in src/backend/gpu/ops/operand.rs.
enum : uint32_t { PLAIN = 0, AFFINE = 1, THROUGH = 2 };
struct Operand {
    uint64_t a;    // T [rows][cp]
    uint64_t b;    // THROUGH: T [rows][cp], the norm's input
    uint64_t coef; // AFFINE: float scale[cp], shift[cp]; THROUGH: float k0[cp], k1[cp], k2[cp]
    uint32_t kind;
    uint32_t relu; // 0 or 1
};
static_assert(sizeof(Operand) == 32, "the launchers pass 32 bytes");

// Coefficients of 8 channels, kept in registers while a thread walks over rows.
struct Coefs8 {
    float k[3][8];
};

__device__ __forceinline__ float rectify(float v) { return v < 0.0f ? 0.0f : v; }

__device__ __forceinline__ void load_coefs(const Operand& o, uint32_t channel, uint32_t cp, Coefs8& c) {
    const float* at = reinterpret_cast<const float*>(o.coef) + channel;
    if (o.kind != PLAIN) {
        load8(at, c.k[0]);
        load8(at + cp, c.k[1]);
    }
    if (o.kind == THROUGH) load8(at + 2 * cp, c.k[2]);
}

// The operand's value from what was loaded: `a`, and for THROUGH `b`.
__device__ __forceinline__ void evaluate8(const Operand& o, const Coefs8& c, const float (&a)[8], const float (&b)[8],
                                          float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float x = a[i];
        if (o.kind == AFFINE) x = __fmaf_rn(x, c.k[0][i], c.k[1][i]);
        if (o.kind == THROUGH) x = __fmaf_rn(x, c.k[0][i], __fmaf_rn(b[i], c.k[1][i], c.k[2][i]));
        v[i] = o.relu ? rectify(x) : x;
    }
}

// Eight channels of one row.
template <class T>
__device__ __forceinline__ void read8(const Operand& o, const Coefs8& c, uint64_t row, uint32_t channel, uint32_t cp,
                                      float (&v)[8]) {
    const uint64_t at = row * cp + channel;
    float a[8], b[8];
    load8(reinterpret_cast<const T*>(o.a) + at, a);
    if (o.kind == THROUGH) load8(reinterpret_cast<const T*>(o.b) + at, b);
    evaluate8(o, c, a, b, v);
}

// Sums that a batch norm's backward pass needs of the finished gradient g of its output.
struct Reduce {
    uint64_t x;        // T [rows][cp], the norm's input; 0: nothing to do
    uint64_t mean;     // float [cp], of the batch
    uint64_t partials; // float2 [row blocks][cp], overwritten: sum(g), sum(g * (x - mean)) over the block's rows
};

// Completes a gradient: add the old content, zero where the mask's operand is not positive, round, store, sum what was
// stored. By value; same layout as Finish in src/backend/gpu/ops/operand.rs.
struct Finish {
    uint64_t dx; // T [rows][cp]
    Operand mask;
    Reduce reduce[2];
    uint32_t accumulate; // 0: overwrite, the old content may be NaN
    uint32_t has_mask;
};
static_assert(sizeof(Finish) == 96, "the launchers pass 96 bytes");

// What a thread keeps for its 8 channels while it finishes rows.
struct Finisher {
    Coefs8 mask;
    float mean[2][8];
    float sum[2][2][8]; // [reduce][sum(g), sum(g * (x - mean))]
};

__device__ __forceinline__ void begin_finish(const Finish& f, uint32_t channel, uint32_t cp, Finisher& s) {
    if (f.has_mask) load_coefs(f.mask, channel, cp, s.mask);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (f.reduce[r].x) load8(reinterpret_cast<const float*>(f.reduce[r].mean) + channel, s.mean[r]);
#pragma unroll
        for (int i = 0; i < 8; ++i) s.sum[r][0][i] = s.sum[r][1][i] = 0.0f;
    }
}

// Finishes one row's 8 channels of the gradient `g`.
template <class T>
__device__ __forceinline__ void finish8(const Finish& f, Finisher& s, uint64_t row, uint32_t channel, uint32_t cp,
                                        float (&g)[8]) {
    const uint64_t at = row * cp + channel;
    T* dx = reinterpret_cast<T*>(f.dx) + at;
    if (f.accumulate) {
        float old[8];
        load8(dx, old);
#pragma unroll
        for (int i = 0; i < 8; ++i) g[i] += old[i];
    }
    if (f.has_mask) {
        float open[8];
        read8<T>(f.mask, s.mask, row, channel, cp, open);
#pragma unroll
        for (int i = 0; i < 8; ++i) g[i] = open[i] > 0.0f ? g[i] : 0.0f;
    }
    store8(dx, g);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (!f.reduce[r].x) continue;
        float x[8];
        load8(reinterpret_cast<const T*>(f.reduce[r].x) + at, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float stored = rounded<T>(g[i]);
            s.sum[r][0][i] += stored;
            s.sum[r][1][i] += stored * (x[i] - s.mean[r][i]);
        }
    }
}
