// cp.async: 16 bytes from device to shared memory, past the registers, while the thread goes on.
//
// A thread's copies since its last commit are a group. cp_async_wait<N>() waits for all its groups but the newest N; then
// this thread sees its own copies, and the others see them after a barrier that follows. Until then the destination
// must be neither read nor written: the emulation poisons it, copies at the wait, and reports a copy that was never
// waited for, addresses that are not multiples of 16, a destination outside of shared memory, and a write to it.
#pragma once
#include "common.cuh"

#ifdef __CUDACC__

// `src` in device memory, `dst` in shared memory, both 16-byte aligned. Cached in L2 only.
__device__ __forceinline__ void cp_async16(void* dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(dst))),
                 "l"(__cvta_generic_to_global(src))
                 : "memory");
}
// The same, or zeros, for which `src` is not read; it must be aligned all the same.
__device__ __forceinline__ void cp_async16_zfill(void* dst, const void* src, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(dst))),
                 "l"(__cvta_generic_to_global(src)), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

inline void cp_async16(void* dst, const void* src, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    emu::copy_async(dst, src, true, file, line);
}
inline void cp_async16_zfill(void* dst, const void* src, bool valid, const char* file = __builtin_FILE(),
                             int line = __builtin_LINE()) {
    emu::copy_async(dst, src, valid, file, line);
}
inline void cp_async_commit() { emu::commit_copies(); }
template <int N> void cp_async_wait() {
    static_assert(N >= 0, "a number of groups");
    emu::wait_copies(N);
}

#endif
