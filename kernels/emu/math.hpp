// CUDA's arithmetic functions. Those of <math.h> (expf, logf, fmaxf, rintf, ...) are the host's: correct to an ulp or so,
// not the GPU's bits. The GPU's approximations (__expf, __fdividef, ...) are left out: what they give differs.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <math.h> // isnan and the like without std::

// Compiled with -ffp-contract=off: each rounds once, to nearest even, as on the GPU.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __double2float_rn(double a) { return float(a); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; } // NaN gives 0

namespace emu {

// As the GPU converts: out of range to the nearest number there is, NaN to 0.
template <class I, class F> I saturate(F v) {
    constexpr I most = std::numeric_limits<I>::max(), least = std::numeric_limits<I>::min();
    if (!(v == v)) return 0;
    if (v >= F(most)) return most; // F(most) may round up to the first number that is too large
    if (v <= F(least)) return least;
    return I(v);
}
template <class To, class From> To bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &v, sizeof to);
    return to;
}

} // namespace emu

inline int __float2int_rn(float v) { return emu::saturate<int>(rintf(v)); }
inline int __float2int_rz(float v) { return emu::saturate<int>(truncf(v)); }
inline int __float2int_rd(float v) { return emu::saturate<int>(floorf(v)); }
inline int __float2int_ru(float v) { return emu::saturate<int>(ceilf(v)); }
inline unsigned __float2uint_rn(float v) { return emu::saturate<unsigned>(rintf(v)); }
inline unsigned __float2uint_rz(float v) { return emu::saturate<unsigned>(truncf(v)); }
inline long long __float2ll_rn(float v) { return emu::saturate<long long>(rintf(v)); }
inline int __double2int_rn(double v) { return emu::saturate<int>(rint(v)); }
inline long long __double2ll_rn(double v) { return emu::saturate<long long>(rint(v)); }
inline float __int2float_rn(int v) { return float(v); }
inline float __uint2float_rn(unsigned v) { return float(v); }
inline float __ll2float_rn(long long v) { return float(v); }
inline float __ull2float_rn(unsigned long long v) { return float(v); }
inline double __int2double_rn(int v) { return v; }
inline double __uint2double_rn(unsigned v) { return v; }
inline double __ll2double_rn(long long v) { return double(v); }

inline unsigned __float_as_uint(float v) { return emu::bits<unsigned>(v); }
inline int __float_as_int(float v) { return emu::bits<int>(v); }
inline float __uint_as_float(unsigned v) { return emu::bits<float>(v); }
inline float __int_as_float(int v) { return emu::bits<float>(v); }
inline long long __double_as_longlong(double v) { return emu::bits<long long>(v); }
inline double __longlong_as_double(long long v) { return emu::bits<double>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)(v)) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
    return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}

// Both arguments of one type: CUDA's mixed overloads convert a negative int to unsigned.
#define EMU_MIN_MAX(type)                                        \
    inline type min(type a, type b) { return b < a ? b : a; }    \
    inline type max(type a, type b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); } // NaN only if both are
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
