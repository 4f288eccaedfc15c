// CUDA as a host compiler sees it: enough of the language for the kernels in this folder's parent.
// One fibre a thread, one block after another, on the calling thread (runtime.cpp). What it finds and what it can't:
// - finds: a divergent barrier or shuffle, shared memory read before written (0xFF poison) or past its end, a missing
//   barrier (it shows in one of the two fibre orders), accesses past a device buffer (guard pages), misaligned
//   128-bit accesses;
// - can't: races between blocks, effects of the memory model, speed. Those need a GPU and compute-sanitizer.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emu {

// What the running fibre sees.
struct View {
    uint3 thread, block, block_dim, grid_dim;
};
extern __thread View view;

// Ends the launch with a message; never returns to the kernel.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Waits until all threads of the block wait on the same line.
void barrier(int line);
// Waits until all lanes of `mask` that still run got here, then returns the value of lane `source`
// (all bits set if that lane gave none).
uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line);
// Waits until all 32 lanes that still run got here with the same `work`; the last one calls it with all their slots (null: a
// lane that has returned), which lie on the fibres' stacks and may be read and written.
using Work = void (*)(void* slots[32]);
void collective(void* slot, Work work, int line);
// Index of the running thread in its warp.
unsigned lane();
// The block's copy of the static shared variable identified by `key`.
void* shared_static(const void* key, size_t bytes, size_t align);
// The block's dynamic shared memory.
void* shared_dynamic();

// A kernel that a launch can find by name.
struct Kernel {
    const char* name;
    void (*call)(void** args);
    const uint32_t* arg_bytes;
    uint32_t args;
    const Kernel* next;
    Kernel(const char* name, void (*call)(void**), const uint32_t* arg_bytes, uint32_t args);
};

// Turns a kernel's signature into a call through `void**`, as cuLaunchKernel makes it.
template <class F, F* function> struct Thunk;
template <class... A, void (*function)(A...)> struct Thunk<void(A...), function> {
    static constexpr uint32_t bytes[] = {sizeof(A)..., 0};
    template <size_t... I> static void spread(void** args, std::index_sequence<I...>) {
        (void)args;
        function(*static_cast<std::remove_reference_t<A>*>(args[I])...);
    }
    static void call(void** args) { spread(args, std::index_sequence_for<A...>{}); }
    static Kernel make(const char* name) { return Kernel(name, call, bytes, sizeof...(A)); }
};

template <class T> T shuffle(unsigned mask, T value, unsigned source, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(mask, bits, source, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

} // namespace emu

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
#define CHECK_ALIGNED(pointer, bytes)                                            \
    (reinterpret_cast<uintptr_t>(pointer) % (bytes) == 0                         \
         ? (void)0                                                               \
         : emu::fail("misaligned %d-byte access at line %d", int(bytes), __builtin_LINE()))

inline void __syncthreads(int line = __builtin_LINE()) { emu::barrier(line); }
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

// Fibres switch at barriers and shuffles only, so a plain read and write is atomic.
template <class T> T atomicAdd(T* at, std::decay_t<T> v) {
    const T old = *at;
    *at = old + v;
    return old;
}

// Compiled with -ffp-contract=off: each rounds once, to nearest even, as on the GPU.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
