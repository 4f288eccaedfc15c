// What threads of a warp or block do together, and atomics.
#pragma once

#include "api.hpp"

inline void __syncthreads(int line = __builtin_LINE()) { emu::barrier(line); }
// How many threads of the block, whether any, whether all gave a non-zero predicate.
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) { return int(emu::barrier(line, predicate)); }
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) { return emu::barrier(line, predicate) != 0; }
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) { return emu::barrier(line, !predicate) == 0; }
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    emu::exchange(mask, 0, emu::lane(), line);
}
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, int line = __builtin_LINE()) {
    const unsigned base = emu::lane() & ~unsigned(width - 1);
    return emu::shuffle(mask, v, base + (unsigned(from) & unsigned(width - 1)), line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, int line = __builtin_LINE()) {
    const unsigned me = emu::lane(), last = me | unsigned(width - 1), from = me ^ unsigned(bits);
    return emu::shuffle(mask, v, from <= last ? from : me, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const unsigned me = emu::lane(), last = me | unsigned(width - 1);
    return emu::shuffle(mask, v, me + by <= last ? me + by : me, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const unsigned me = emu::lane(), base = me & ~unsigned(width - 1);
    return emu::shuffle(mask, v, me >= base + by ? me - by : me, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emu::ballot(mask, predicate, line);
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emu::ballot(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emu::ballot(mask, !predicate, line) == 0;
}

// One block runs after another and fibres switch at barriers and shuffles only: every write is seen at once.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// For the same reason a plain read and write is atomic. Integers only: a sum of floats would depend on the order.
#define EMU_ATOMIC(name, result)                                                                                      \
    template <class T> T name(T* at, std::decay_t<T> v) {                                                             \
        static_assert(std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "4- or 8-byte integers only"); \
        const T old = *at;                                                                                            \
        *at = T(result);                                                                                              \
        return old;                                                                                                   \
    }
// Unsigned arithmetic, which wraps.
EMU_ATOMIC(atomicAdd, std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(v))
EMU_ATOMIC(atomicSub, std::make_unsigned_t<T>(old) - std::make_unsigned_t<T>(v))
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicMax, v > old ? v : old)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef EMU_ATOMIC
template <class T> T atomicCAS(T* at, std::decay_t<T> expected, std::decay_t<T> v) {
    static_assert(std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "4- or 8-byte integers only");
    const T old = *at;
    if (old == expected) *at = v;
    return old;
}

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcg(T* p, std::decay_t<T> v) { *p = v; }
template <class T> void __stcs(T* p, std::decay_t<T> v) { *p = v; }
