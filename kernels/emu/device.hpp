// The emulated device, for the emulation's own files; kernels see api.hpp.
#pragma once

#include "api.hpp"
#include "fibre.hpp"

#include <vector>

#ifndef MAP_NORESERVE // not on every BSD
#define MAP_NORESERVE 0
#endif

namespace emu {

constexpr unsigned MAX_THREADS = 1024;        // a block, as on every CUDA device
constexpr unsigned MAX_WARPS = MAX_THREADS / 32;
constexpr size_t STACK = 128 << 10;           // a fibre; a GPU's thread has 255 registers, kernels here have no more locals
constexpr size_t STATIC_SHARED = 48 << 10;    // most that nvcc accepts
constexpr unsigned MAX_STATICS = 64;
constexpr unsigned GAP = 64;                  // bytes checked beside shared variables
constexpr unsigned char POISON = 0xFF;

enum class State : uint8_t { ready, barrier, exchange, done };

struct Fibre {
    Context context;
    uint3 index;       // threadIdx
    State state;
    int line;          // of the barrier or shuffle it waits in
    unsigned mask;     // of the shuffle
    unsigned source;   // lane it reads
    uint64_t value;    // what it gave, then what it gets
    Work work;         // of a collective; null: a shuffle
    void* slot;        // what it gave to the collective
};

// One bit a lane.
struct Warp {
    unsigned ready;   // can run
    unsigned waiting; // in a shuffle
    unsigned alive;   // not returned
};

// A cp.async that was not waited for.
struct Copy {
    unsigned char* dst;
    const unsigned char* src; // null: zeros
    unsigned group;
    int line;
};
struct Copies {
    std::vector<Copy> pending;
    unsigned committed = 0; // groups
};

struct Device {
    Context host;
    Fibre fibres[MAX_THREADS];
    Warp warps[MAX_WARPS];
    unsigned char* stacks = nullptr; // MAX_THREADS times guard page and stack
    unsigned stacks_open = 0;        // made accessible: as many as a launch has had threads
    size_t page = 0;
    unsigned char* shared = nullptr; // room for shared_bytes, up to a whole page, then a guard page
    size_t shared_room = 0;
    size_t dynamic_bytes = 0, static_bytes = 0, static_peak = 0;
    size_t most_shared = 0; // of this launch, static and dynamic together
    struct {
        const void* key;
        void* at;
    } statics[MAX_STATICS];
    unsigned static_count = 0;
    unsigned threads = 0, current = 0;
    bool descending = false;
    bool running = false; // a fibre, not the host
    const Kernel* kernel = nullptr;
    void** args = nullptr;
    Copies copies[MAX_THREADS];
    bool any_copies = false;
    uint64_t products = 0; // since it was opened
    bool failed = false;
    char message[640];

    // Ends at the guard page, up to the 16 bytes of its alignment.
    unsigned char* dynamic() const { return shared + shared_room - (dynamic_bytes + 15) / 16 * 16; }
};

// Of the launch that runs on this thread.
extern __thread Device* device;

// Reports what goes wrong outside of a fibre.
void say(const char* format, ...) __attribute__((format(printf, 1, 2)));

// shared.cpp: poisons what a block may use; checks what lies beside it; leaves all poisoned after a launch.
void begin_shared();
void end_shared();
void clear_shared();

// async.cpp: none may be left when a thread returns; forgets those of a failed launch.
void check_copies_waited_for();
void clear_copies();

// memory.cpp
size_t page_bytes();
unsigned char* reserve(size_t bytes); // without access
// The device buffer nearest to an address, for a fault's message; false if there is none or the list is being changed.
bool nearest_buffer(const void* address, uintptr_t& at, size_t& bytes, bool& freed);

// fault.cpp: from now on, a fault in a kernel says in which one. Needed once a thread.
void watch_faults();

} // namespace emu
