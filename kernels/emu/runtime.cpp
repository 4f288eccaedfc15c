// The emulated device: memory with guard pages, and launches in which each thread is a fibre. See cuda.hpp.
#include "cuda.hpp"
#include "fibre.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_NORESERVE // not on every BSD
#define MAP_NORESERVE 0
#endif

namespace emu {

__thread View view;

namespace {

constexpr unsigned MAX_THREADS = 1024; // a block, as on every CUDA device
constexpr size_t STACK = 64 << 10;     // a fibre
constexpr size_t SHARED_BYTES = 48 << 10; // static and dynamic together, without opting in to more
constexpr unsigned MAX_STATICS = 64;

enum class State : uint8_t { ready, barrier, exchange, done };

struct Fibre {
    Context context;
    State state;
    int line;          // of the barrier or shuffle it waits in
    unsigned mask;     // of the shuffle
    unsigned source;   // lane it reads
    uint64_t value;    // what it gave, then what it gets
    Work work;         // of a collective; null: a shuffle
    void* slot;        // what it gave to the collective
};

struct Device {
    Context host;
    Fibre fibres[MAX_THREADS];
    unsigned char* stacks = nullptr; // MAX_THREADS times guard page and stack
    size_t page = 0;
    unsigned char* shared = nullptr; // SHARED_BYTES, then a guard page
    size_t dynamic_bytes = 0, static_bytes = 0;
    struct {
        const void* key;
        void* at;
    } statics[MAX_STATICS];
    unsigned static_count = 0;
    unsigned threads = 0, current = 0;
    const Kernel* kernel = nullptr;
    void** args = nullptr;
    bool failed = false;
    char message[512];
};

__thread Device* device;
const Kernel* kernels; // set by constructors before main, read-only afterwards

size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

unsigned char* reserve(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? nullptr : static_cast<unsigned char*>(at);
}

void say(const char* format, ...) {
    va_list list;
    va_start(list, format);
    const int used = snprintf(device->message, sizeof device->message, "kernel %s, block (%u, %u, %u): ",
                              device->kernel->name, view.block.x, view.block.y, view.block.z);
    if (used > 0 && size_t(used) < sizeof device->message)
        vsnprintf(device->message + used, sizeof device->message - size_t(used), format, list);
    va_end(list);
    device->failed = true;
}

void wait(State state, int line) {
    Fibre& me = device->fibres[device->current];
    me.state = state;
    me.line = line;
    me.context.go(device->host);
}

void entry() {
    device->kernel->call(device->args);
    wait(State::done, 0);
    abort(); // a finished fibre is never resumed
}

void resume(unsigned thread) {
    const uint3& b = view.block_dim;
    view.thread = {thread % b.x, thread / b.x % b.y, thread / b.x / b.y};
    device->current = thread;
    device->host.go(device->fibres[thread].context);
}

// Serves lane `thread`'s shuffle if every lane of its mask that still runs has arrived at the same one.
bool serve(unsigned thread) {
    Fibre* warp = device->fibres + thread / 32 * 32;
    const unsigned lanes = device->threads - thread / 32 * 32 < 32 ? device->threads - thread / 32 * 32 : 32;
    const Fibre asked = device->fibres[thread];
    for (unsigned l = 0; l < lanes; ++l) {
        if (!(asked.mask >> l & 1) || warp[l].state == State::done) continue;
        if (warp[l].state != State::exchange || warp[l].line != asked.line || warp[l].mask != asked.mask ||
            warp[l].work != asked.work)
            return false;
    }
    if (asked.work) {
        void* slots[32] = {};
        for (unsigned l = 0; l < lanes; ++l) {
            if (!(asked.mask >> l & 1) || warp[l].state != State::exchange) continue;
            slots[l] = warp[l].slot;
            warp[l].state = State::ready;
        }
        asked.work(slots);
        return true;
    }
    uint64_t given[32];
    memset(given, 0xFF, sizeof given);
    for (unsigned l = 0; l < lanes; ++l)
        if (asked.mask >> l & 1 && warp[l].state == State::exchange) given[l] = warp[l].value;
    for (unsigned l = 0; l < lanes; ++l) {
        if (!(asked.mask >> l & 1) || warp[l].state != State::exchange) continue;
        warp[l].value = given[warp[l].source % 32];
        warp[l].state = State::ready;
    }
    return true;
}

const char* describe(State s) {
    return s == State::barrier ? "waits at a barrier" : s == State::exchange ? "waits in a shuffle" : "has returned";
}

// No thread can run. True if a barrier or shuffle could be completed, or all are done; false after reporting why not.
bool unblock(bool& done) {
    Fibre* f = device->fibres;
    bool served = false, same = true;
    for (unsigned t = 0; t < device->threads; ++t) {
        if (f[t].state == State::exchange) served |= serve(t);
        same &= f[t].state == f[0].state && f[t].line == f[0].line;
    }
    if (served) return true;
    if (same && f[0].state == State::done) return done = true;
    if (same && f[0].state == State::barrier) {
        for (unsigned t = 0; t < device->threads; ++t) f[t].state = State::ready;
        return true;
    }
    unsigned a = 0; // a thread that waits, and one that keeps it waiting
    while (f[a].state == State::done) ++a;
    unsigned b = 0;
    while (f[b].state == f[a].state && f[b].line == f[a].line && b + 1 < device->threads) ++b;
    say("divergent %s: thread %u %s at line %d while thread %u %s at line %d",
        f[a].state == State::barrier ? "barrier" : "shuffle", a, describe(f[a].state), f[a].line, b,
        describe(f[b].state), f[b].line);
    return false;
}

void run_block(bool descending) {
    Device& d = *device;
    d.static_count = 0;
    d.static_bytes = 0;
    memset(d.shared, 0xFF, SHARED_BYTES);
    for (unsigned t = 0; t < d.threads; ++t) {
        d.fibres[t].state = State::ready;
        d.fibres[t].line = 0;
        d.fibres[t].context.prepare(d.stacks + t * (STACK + d.page) + d.page, STACK, entry);
    }
    for (bool done = false; !done;) {
        bool ran = false;
        for (unsigned i = 0; i < d.threads; ++i) {
            const unsigned t = descending ? d.threads - 1 - i : i;
            if (d.fibres[t].state != State::ready) continue;
            ran = true;
            resume(t);
            if (d.failed) return; // its fibres are abandoned: kernels own nothing that needs destroying
        }
        if (!ran && !unblock(done)) return;
    }
}

} // namespace

void fail(const char* format, ...) {
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    say("thread (%u, %u, %u): %s", view.thread.x, view.thread.y, view.thread.z, text);
    wait(State::done, 0);
    abort();
}

void barrier(int line) { wait(State::barrier, line); }

unsigned lane() { return device->current % 32; }

uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line) {
    Fibre& me = device->fibres[device->current];
    if (!(mask >> lane() & 1)) fail("lane %u calls a shuffle at line %d with mask %#x, which lacks it", lane(), line, mask);
    me.mask = mask;
    me.source = source;
    me.value = value;
    me.work = nullptr;
    me.state = State::exchange;
    me.line = line;
    if (!serve(device->current)) wait(State::exchange, line);
    return me.value;
}

void collective(void* slot, Work work, int line) {
    Fibre& me = device->fibres[device->current];
    me.mask = ~0u;
    me.slot = slot;
    me.work = work;
    me.state = State::exchange;
    me.line = line;
    if (!serve(device->current)) wait(State::exchange, line);
}

void* shared_static(const void* key, size_t bytes, size_t align) {
    Device& d = *device;
    for (unsigned i = 0; i < d.static_count; ++i)
        if (d.statics[i].key == key) return d.statics[i].at;
    const size_t at = (d.static_bytes + align - 1) / align * align;
    if (d.static_count == MAX_STATICS) fail("more than %u shared variables", MAX_STATICS);
    if (at + bytes + d.dynamic_bytes > SHARED_BYTES)
        fail("shared memory: %zu bytes static and %zu dynamic, at most %zu", at + bytes, d.dynamic_bytes, SHARED_BYTES);
    d.static_bytes = at + bytes;
    d.statics[d.static_count++] = {key, d.shared + at};
    return d.shared + at;
}

// Ends at the guard page, up to the 16 bytes of its alignment.
void* shared_dynamic() { return device->shared + SHARED_BYTES - (device->dynamic_bytes + 15) / 16 * 16; }

Kernel::Kernel(const char* name, void (*call)(void**), const uint32_t* arg_bytes, uint32_t args)
    : name(name), call(call), arg_bytes(arg_bytes), args(args), next(kernels) {
    kernels = this;
}

} // namespace emu

// The C interface of src/backend/gpu/emu.rs, which checks grid, block and shared memory against the limits first.
extern "C" {

// A device that runs one launch at a time; null if the system gives no memory.
void* sparse_engine_emu_open() {
    using namespace emu;
    const size_t page = page_bytes(), stacks = MAX_THREADS * (STACK + page);
    Device* d = new (std::nothrow) Device;
    if (!d) return nullptr;
    d->page = page;
    d->stacks = reserve(stacks);
    d->shared = reserve(SHARED_BYTES + page);
    bool good = d->stacks && d->shared && mprotect(d->shared, SHARED_BYTES, PROT_READ | PROT_WRITE) == 0;
    for (unsigned t = 0; good && t < MAX_THREADS; ++t)
        good = mprotect(d->stacks + t * (STACK + page) + page, STACK, PROT_READ | PROT_WRITE) == 0;
    if (good) return d;
    if (d->stacks) munmap(d->stacks, stacks);
    if (d->shared) munmap(d->shared, SHARED_BYTES + page);
    delete d;
    return nullptr;
}

void sparse_engine_emu_close(void* opened) {
    using namespace emu;
    Device* d = static_cast<Device*>(opened);
    munmap(d->stacks, MAX_THREADS * (STACK + d->page));
    munmap(d->shared, SHARED_BYTES + d->page);
    delete d;
}

// The kernel of that name, or null; the sizes of its arguments go to `arg_bytes` and their number to `args`.
const void* sparse_engine_emu_find(const char* name, const uint32_t** arg_bytes, uint32_t* args) {
    for (const emu::Kernel* k = emu::kernels; k; k = k->next) {
        if (strcmp(k->name, name) != 0) continue;
        *arg_bytes = k->arg_bytes;
        *args = k->args;
        return k;
    }
    return nullptr;
}

// Runs a kernel to its end; null, or what went wrong (valid until the device's next launch).
const char* sparse_engine_emu_launch(void* opened, const void* kernel, const uint32_t grid[3], const uint32_t block[3],
                                     uint32_t dynamic_bytes, void** args, int descending) {
    using namespace emu;
    Device& d = *static_cast<Device*>(opened);
    device = &d;
    d.kernel = static_cast<const Kernel*>(kernel);
    d.args = args;
    d.dynamic_bytes = dynamic_bytes;
    d.threads = block[0] * block[1] * block[2];
    d.failed = false;
    view.block_dim = {block[0], block[1], block[2]};
    view.grid_dim = {grid[0], grid[1], grid[2]};
    const uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    for (uint64_t i = 0; i < blocks && !d.failed; ++i) {
        const uint64_t b = descending ? blocks - 1 - i : i;
        view.block = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / grid[0] / grid[1])};
        run_block(descending != 0);
    }
    return d.failed ? d.message : nullptr;
}

// Device memory: it ends at a page without access, up to the 16 bytes of its alignment; another such page lies before
// it; filled with 0xFF. Null if the system gives none.
void* sparse_engine_emu_alloc(size_t bytes) {
    using namespace emu;
    const size_t page = page_bytes(), used = (bytes + 15) / 16 * 16, body = (used + page - 1) / page * page;
    unsigned char* at = reserve(body + 2 * page);
    if (!at || (body && mprotect(at + page, body, PROT_READ | PROT_WRITE) != 0)) return nullptr;
    memset(at + page, 0xFF, body);
    return at + page + body - used;
}

// Any later access faults: the addresses are never used again.
void sparse_engine_emu_free(void* memory, size_t bytes) {
    using namespace emu;
    const size_t page = page_bytes(), used = (bytes + 15) / 16 * 16, body = (used + page - 1) / page * page;
    if (body == 0) return;
    mmap(static_cast<unsigned char*>(memory) + used - body, body, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

// Whether the up to 15 bytes between the memory's end and the guard page still hold their 0xFF.
int sparse_engine_emu_intact(const void* memory, size_t bytes) {
    const unsigned char* end = static_cast<const unsigned char*>(memory) + bytes;
    for (size_t i = 0; i < (bytes + 15) / 16 * 16 - bytes; ++i)
        if (end[i] != 0xFF) return 0;
    return 1;
}

} // extern "C"
