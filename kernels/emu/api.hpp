// What the headers need of the emulation; the rest is in device.hpp.
#pragma once

#include "types.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace emu {

// What the running fibre sees.
struct View {
    uint3 thread, block, block_dim, grid_dim;
};
extern __thread View view;

// Ends the launch with a message; never returns to the kernel.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Waits until all threads of the block wait on the same line; how many of them gave a non-zero predicate.
unsigned barrier(int line, int predicate = 0);
// Waits until all lanes of `mask` that still run got here, then returns the value of lane `source`
// (all bits set if that lane gave none).
uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line);
// Waits until all lanes of `mask` that still run got here with the same `work`; the last one calls it with all their
// slots (null: a lane that has returned or is not in the mask), which lie on the fibres' stacks and may be read and
// written. `work` may call `fail`, but must not wait.
using Work = void (*)(void* slots[32]);
void collective(void* slot, Work work, int line, unsigned mask = ~0u);
// The lanes of `mask` that gave a non-zero predicate.
unsigned ballot(unsigned mask, int predicate, int line);
// Index of the running thread in its warp.
unsigned lane();
// The block's copy of the static shared variable identified by `key`.
void* shared_static(const void* key, size_t bytes, size_t align);
// The block's dynamic shared memory.
void* shared_dynamic();
// Fails unless the bytes lie in the block's shared memory.
void check_shared(const void* at, size_t bytes, const char* file, int line);
// cp.async: `dst` is poisoned now and gets the 16 bytes at `src`, or zeros, when its group is waited for.
void copy_async(void* dst, const void* src, bool valid, const char* file, int line);
void commit_copies();
// Completes this thread's groups but for the newest `pending`.
void wait_copies(unsigned pending);

// Tensor-core products of 16 x 8 sums that a warp makes, each of 32 bytes of k: a test compares their number with the work
// that there is.
void count_products(unsigned products);

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
