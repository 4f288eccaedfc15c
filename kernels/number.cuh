// Number types that tensors are stored in, f32, f16 and bf16, and groups of 8 channels of them. Arithmetic is f32.
// The same bits on both sides: conversions round to nearest even, overflow gives infinity, NaN stays NaN.
#pragma once
#include "common.cuh"

// IEEE half precision.
struct f16 {
    uint16_t bits;
};
// The upper half of an f32.
struct bf16 {
    uint16_t bits;
};

#ifdef __CUDACC__

__device__ __forceinline__ float to_float(f16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
}
__device__ __forceinline__ uint32_t pack2(f16, float low, float high) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ uint32_t pack2(bf16, float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ uint32_t float_bits(float v) { return __float_as_uint(v); }
__device__ __forceinline__ float bits_float(uint32_t v) { return __uint_as_float(v); }

#else

inline uint32_t float_bits(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}
inline float to_float(f16 v) {
    const uint32_t sign = uint32_t(v.bits & 0x8000) << 16, exponent = v.bits >> 10 & 31, rest = v.bits & 1023;
    if (exponent == 31) return bits_float(sign | 0x7F800000 | rest << 13);
    if (exponent == 0) return bits_float(sign | float_bits(float(rest) * 0x1p-24f));
    return bits_float(sign | (exponent + 112) << 23 | rest << 13);
}
inline uint16_t f16_bits(float v) {
    const uint32_t bits = float_bits(v), size = bits & 0x7FFFFFFF;
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if (size > 0x7F800000) return uint16_t(0x7FFF);                // NaN, as the GPU gives it
    if (size >= 0x477FF000) return uint16_t(sign | 0x7C00);        // 65520 and above round to infinity
    if (size < 0x38800000) {                                       // subnormal: a multiple of 2^-24
        const float rounded = bits_float(size) + 0.5f;             // whose last bit is 2^-24
        return uint16_t(sign | (float_bits(rounded) - float_bits(0.5f)));
    }
    return uint16_t(sign | (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13);
}
inline uint16_t bf16_bits(float v) {
    const uint32_t bits = float_bits(v);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline uint32_t pack2(f16, float low, float high) { return f16_bits(low) | uint32_t(f16_bits(high)) << 16; }
inline uint32_t pack2(bf16, float low, float high) { return bf16_bits(low) | uint32_t(bf16_bits(high)) << 16; }

#endif

__device__ __forceinline__ float to_float(bf16 v) { return bits_float(uint32_t(v.bits) << 16); }
__device__ __forceinline__ float to_float(float v) { return v; }

// To the nearest number of type T.
template <class T> __device__ __forceinline__ T from_float(float v) { return T{uint16_t(pack2(T{}, v, 0.0f))}; }
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }

// What a store to type T and a load give.
template <class T> __device__ __forceinline__ float rounded(float v) { return to_float(from_float<T>(v)); }

struct alignas(16) uint4x {
    uint32_t x, y, z, w;
};
// One 128-bit access; `p` must be 16-byte aligned.
__device__ __forceinline__ uint4x load16(const void* p) {
    CHECK_ALIGNED(p, 16);
    return *reinterpret_cast<const uint4x*>(p);
}
__device__ __forceinline__ void store16(void* p, uint4x v) {
    CHECK_ALIGNED(p, 16);
    *reinterpret_cast<uint4x*>(p) = v;
}

// Two numbers from one word.
__device__ __forceinline__ void unpack2(f16, uint32_t both, float& low, float& high) {
    low = to_float(f16{uint16_t(both)});
    high = to_float(f16{uint16_t(both >> 16)});
}
__device__ __forceinline__ void unpack2(bf16, uint32_t both, float& low, float& high) {
    low = bits_float(both << 16);
    high = bits_float(both & 0xFFFF0000u);
}

// Eight numbers, 16 bytes (f32: 32) at a 16-byte aligned address.
template <class T> __device__ __forceinline__ void load8(const T* p, float (&v)[8]) {
    const uint4x raw = load16(p);
    unpack2(T{}, raw.x, v[0], v[1]);
    unpack2(T{}, raw.y, v[2], v[3]);
    unpack2(T{}, raw.z, v[4], v[5]);
    unpack2(T{}, raw.w, v[6], v[7]);
}
template <> __device__ __forceinline__ void load8<float>(const float* p, float (&v)[8]) {
    const float4 a = load4(p), b = load4(p + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <class T> __device__ __forceinline__ void store8(T* p, const float (&v)[8]) {
    store16(p, {pack2(T{}, v[0], v[1]), pack2(T{}, v[2], v[3]), pack2(T{}, v[4], v[5]), pack2(T{}, v[6], v[7])});
}
template <> __device__ __forceinline__ void store8<float>(float* p, const float (&v)[8]) {
    store4(p, {v[0], v[1], v[2], v[3]});
    store4(p + 4, {v[4], v[5], v[6], v[7]});
}
