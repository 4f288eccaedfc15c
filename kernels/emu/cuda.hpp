// CUDA as a host compiler sees it: enough of the language for the kernels in this folder's parent.
// One fibre a thread, one block after another, on the calling thread (runtime.cpp). What it finds and what it can't:
// - finds: a divergent barrier or shuffle, shared memory read before written (0xFF poison) or past its end, a missing
//   barrier (it shows in one of the two fibre orders), accesses past a device buffer (guard pages), misaligned
//   accesses and what else -fsanitize=undefined sees (sanitize.cpp), cp.async read before its wait, cp.async and
//   ldmatrix on anything but shared memory, stacks that overflow, launches that a device would refuse;
// - can't: races between blocks, effects of the memory model, speed. Those need a GPU and compute-sanitizer.
// Each rule is broken once by a kernel of selftest.cu or selftest_rules.cu: tests/gpu_emu/.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

#include "api.hpp"
#include "math.hpp"
#include "warp.hpp"

#define threadIdx (emu::view.thread)
#define blockIdx (emu::view.block)
#define blockDim (emu::view.block_dim)
#define gridDim (emu::view.grid_dim)
constexpr int warpSize = 32;

#define SHARED(type, name, dims)   \
    static char name##_key;        \
    using name##_type = type dims; \
    auto& name = *static_cast<name##_type*>(emu::shared_static(&name##_key, sizeof(name##_type), alignof(name##_type)))
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emu::shared_dynamic())
#define EXPORT_KERNEL(name) static const emu::Kernel name##_kernel = emu::Thunk<decltype(name), name>::make(#name);
#define CHECK_ALIGNED(pointer, bytes)                                                                         \
    (reinterpret_cast<uintptr_t>(pointer) % (bytes) == 0                                                      \
         ? (void)0                                                                                            \
         : emu::fail("misaligned %d-byte access at %s:%d", int(bytes), __builtin_FILE(), __builtin_LINE()))
#define CHECK_SHARED(pointer, bytes) emu::check_shared(pointer, bytes, __builtin_FILE(), __builtin_LINE())
