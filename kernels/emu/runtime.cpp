// Launches on the emulated device: each thread is a fibre, blocks run one after another. See cuda.hpp.
//
// A warp runs until each of its lanes waits at a barrier or has returned; then the next one. Lanes hand over to each
// other without a way through the scheduler. A block costs about as many stack switches as threads x (barriers + 1).
#include "device.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sys/mman.h>

namespace emu {

__thread View view;
__thread Device* device;

namespace {

constexpr int NOT_BEGUN = -1; // as a line
const Kernel* kernels; // set by constructors before main, read-only afterwards

void vsay(const char* format, va_list list) {
    Device& d = *device;
    const int used = snprintf(d.message, sizeof d.message, "kernel %s, block (%u, %u, %u): ", d.kernel->name, view.block.x,
                              view.block.y, view.block.z);
    if (used > 0 && size_t(used) < sizeof d.message)
        vsnprintf(d.message + used, sizeof d.message - size_t(used), format, list);
    d.failed = true;
}

Fibre& me() { return device->fibres[device->current]; }

// The next lane that is to run, of those in `ready` (not 0).
unsigned pick(unsigned ready, bool descending) {
    return unsigned(descending ? 31 - __builtin_clz(ready) : __builtin_ctz(ready));
}

// Stops the running fibre: on to the next lane of its warp that can run, in order, else to the scheduler.
void stop(State state, int line) {
    Device& d = *device;
    Fibre& from = me();
    Warp& warp = d.warps[d.current / 32];
    const unsigned lane = d.current % 32;
    from.state = state;
    from.line = line;
    warp.ready &= ~(1u << lane);
    const unsigned later = d.descending ? warp.ready & ((1u << lane) - 1) : warp.ready & ~((2u << lane) - 1);
    if (later && !d.failed) {
        d.current = d.current - lane + pick(later, d.descending);
        view.thread = me().index;
        Fibre& to = me();
        if (to.line != NOT_BEGUN) {
            from.context.go_alike(to.context);
        } else {
            from.context.go(to.context);
        }
    } else {
        d.running = false;
        from.context.go(d.host);
    }
}

void entry() {
    device->kernel->call(device->args);
    if (device->any_copies) check_copies_waited_for();
    device->warps[device->current / 32].alive &= ~(1u << device->current % 32);
    stop(State::done, 0);
    abort(); // a finished fibre is never resumed
}

// From the scheduler.
void resume(unsigned thread) {
    Device& d = *device;
    d.current = thread;
    view.thread = d.fibres[thread].index;
    d.running = true;
    d.host.go(d.fibres[thread].context);
}

// Whether every lane of `thread`'s mask that still runs waits in the same shuffle.
bool matched(unsigned thread) {
    const Fibre& asked = device->fibres[thread];
    const Fibre* lanes = device->fibres + thread / 32 * 32;
    const Warp& warp = device->warps[thread / 32];
    const unsigned wanted = asked.mask & warp.alive;
    if (wanted & ~warp.waiting) return false;
    for (unsigned left = wanted; left; left &= left - 1) {
        const Fibre& other = lanes[__builtin_ctz(left)];
        if (other.line != asked.line || other.mask != asked.mask || other.work != asked.work) return false;
    }
    return true;
}

// Does it, on behalf of all of them.
void complete(unsigned thread) {
    const Fibre& asked = device->fibres[thread];
    Fibre* lanes = device->fibres + thread / 32 * 32;
    Warp& warp = device->warps[thread / 32];
    const unsigned taking_part = asked.mask & warp.alive;
    if (asked.work) {
        void* slots[32] = {};
        for (unsigned left = taking_part; left; left &= left - 1)
            slots[__builtin_ctz(left)] = lanes[__builtin_ctz(left)].slot;
        asked.work(slots);
    } else {
        uint64_t given[32];
        memset(given, POISON, sizeof given);
        for (unsigned left = taking_part; left; left &= left - 1)
            given[__builtin_ctz(left)] = lanes[__builtin_ctz(left)].value;
        for (unsigned left = taking_part; left; left &= left - 1) {
            Fibre& lane = lanes[__builtin_ctz(left)];
            lane.value = given[lane.source % 32];
        }
    }
    for (unsigned left = taking_part; left; left &= left - 1) lanes[__builtin_ctz(left)].state = State::ready;
    warp.waiting &= ~taking_part;
    warp.ready |= taking_part;
}

// Waits for the shuffle that the running fibre has filled in.
void meet(int line) {
    Fibre& f = me();
    Warp& warp = device->warps[device->current / 32];
    if (!(f.mask >> lane() & 1))
        fail("lane %u calls a shuffle at line %d with mask %#x, which lacks it", lane(), line, f.mask);
    f.state = State::exchange;
    f.line = line;
    warp.waiting |= 1u << lane();
    if (!matched(device->current)) stop(State::exchange, line);
    // Still waiting: it is the last to come, or the scheduler found that nobody else will.
    if (f.state == State::exchange) complete(device->current);
}

// Runs a warp until none of its lanes can go on; false after a failure.
bool run_warp(unsigned index) {
    Device& d = *device;
    Warp& warp = d.warps[index];
    for (;;) {
        while (warp.ready) {
            resume(index * 32 + pick(warp.ready, d.descending));
            if (d.failed) return false; // its fibres are abandoned: kernels own nothing that needs destroying
        }
        // Lanes that returned meanwhile are not waited for.
        unsigned left = warp.waiting;
        while (left && !matched(index * 32 + unsigned(__builtin_ctz(left)))) left &= left - 1;
        if (!left) return true;
        warp.ready |= left & -left; // it completes the shuffle for all
    }
}

const char* describe(State s) {
    return s == State::barrier ? "waits at a barrier" : s == State::exchange ? "waits in a shuffle" : "has returned";
}

// No thread can run. True if a barrier could be completed; false if all are done or after reporting why not.
bool unblock() {
    Device& d = *device;
    Fibre* f = d.fibres;
    bool same = f[0].state != State::exchange;
    unsigned given = 0;
    for (unsigned t = 0; t < d.threads; ++t) {
        same &= f[t].state == f[0].state && f[t].line == f[0].line;
        given += unsigned(f[t].value);
    }
    if (same && f[0].state == State::done) return false;
    if (same) {
        for (unsigned t = 0; t < d.threads; ++t) {
            f[t].state = State::ready;
            f[t].value = given;
        }
        for (unsigned w = 0; w * 32 < d.threads; ++w) d.warps[w].ready = d.warps[w].alive;
        return true;
    }
    unsigned a = 0; // a thread that waits, and one that keeps it waiting
    while (f[a].state == State::done) ++a;
    unsigned b = 0;
    while (f[b].state == f[a].state && f[b].line == f[a].line && b + 1 < d.threads) ++b;
    say("divergent %s: thread %u %s at line %d while thread %u %s at line %d",
        f[a].state == State::barrier ? "barrier" : "shuffle", a, describe(f[a].state), f[a].line, b,
        describe(f[b].state), f[b].line);
    return false;
}

void run_block() {
    Device& d = *device;
    const unsigned warps = (d.threads + 31) / 32;
    begin_shared();
    for (unsigned t = 0; t < d.threads; ++t) {
        d.fibres[t].state = State::ready;
        d.fibres[t].line = NOT_BEGUN;
        // Not all at the same place of a page: their tops would share a few lines of the cache.
        const size_t used = STACK - t % 32 * 128;
        d.fibres[t].context.prepare(d.stacks + t * (STACK + d.page) + d.page, used, entry);
    }
    for (unsigned w = 0; w < warps; ++w) {
        const unsigned lanes = d.threads - w * 32;
        d.warps[w].ready = d.warps[w].alive = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        d.warps[w].waiting = 0;
    }
    do {
        for (unsigned w = 0; w < warps; ++w)
            if (!run_warp(d.descending ? warps - 1 - w : w)) return;
    } while (unblock());
    if (!d.failed) end_shared();
}

} // namespace

void say(const char* format, ...) {
    va_list list;
    va_start(list, format);
    vsay(format, list);
    va_end(list);
}

void fail(const char* format, ...) {
    char text[480];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (!device || !device->running) { // undefined behaviour in a constructor, say
        fprintf(stderr, "emulated GPU: outside of a kernel: %s\n", text);
        abort();
    }
    say("thread (%u, %u, %u): %s", view.thread.x, view.thread.y, view.thread.z, text);
    stop(State::done, 0);
    abort();
}

unsigned barrier(int line, int predicate) {
    Fibre& f = me();
    f.value = predicate != 0;
    stop(State::barrier, line);
    return unsigned(f.value);
}

unsigned lane() { return device->current % 32; }

uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line) {
    Fibre& f = me();
    f.mask = mask;
    f.source = source;
    f.value = value;
    f.work = nullptr;
    meet(line);
    return f.value;
}

void collective(void* slot, Work work, int line, unsigned mask) {
    Fibre& f = me();
    f.mask = mask;
    f.slot = slot;
    f.work = work;
    meet(line);
}

unsigned ballot(unsigned mask, int predicate, int line) {
    unsigned given = predicate != 0;
    collective(
        &given,
        [](void* slots[32]) {
            unsigned all = 0;
            for (unsigned l = 0; l < 32; ++l)
                if (slots[l]) all |= *static_cast<unsigned*>(slots[l]) << l;
            for (unsigned l = 0; l < 32; ++l)
                if (slots[l]) *static_cast<unsigned*>(slots[l]) = all;
        },
        line, mask);
    return given;
}

void count_products(unsigned products) { device->products += products; }

Kernel::Kernel(const char* name, void (*call)(void**), const uint32_t* arg_bytes, uint32_t args)
    : name(name), call(call), arg_bytes(arg_bytes), args(args), next(kernels) {
    kernels = this;
}

} // namespace emu

// The C interface of src/backend/gpu/emu.rs, which checks grid, block and dynamic shared memory against the limits first.
extern "C" {

// A device that runs one launch at a time; null if the system gives no memory.
void* sparse_engine_emu_open(uint32_t shared_bytes) {
    using namespace emu;
    const size_t page = page_bytes(), stacks = MAX_THREADS * (STACK + page);
    Device* d = new (std::nothrow) Device;
    if (!d) return nullptr;
    d->page = page;
    d->shared_room = (shared_bytes + 15 + page) / page * page; // the dynamic part is rounded up to 16 bytes
    d->stacks = reserve(stacks);
    d->shared = reserve(d->shared_room + page);
    if (d->stacks && d->shared && mprotect(d->shared, d->shared_room, PROT_READ | PROT_WRITE) == 0) {
        memset(d->shared, POISON, d->shared_room);
        return d;
    }
    if (d->stacks) munmap(d->stacks, stacks);
    if (d->shared) munmap(d->shared, d->shared_room + page);
    delete d;
    return nullptr;
}

void sparse_engine_emu_close(void* opened) {
    using namespace emu;
    Device* d = static_cast<Device*>(opened);
    munmap(d->stacks, MAX_THREADS * (STACK + d->page));
    munmap(d->shared, d->shared_room + d->page);
    delete d;
}

// Tensor-core products of all launches so far.
uint64_t sparse_engine_emu_products(const void* opened) { return static_cast<const emu::Device*>(opened)->products; }

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

// Runs a kernel to its end; null, or what went wrong (valid until the device's next launch). `most_shared`: static and
// dynamic shared memory together.
const char* sparse_engine_emu_launch(void* opened, const void* kernel, const uint32_t grid[3], const uint32_t block[3],
                                     uint32_t dynamic_bytes, uint32_t most_shared, void** args, int descending) {
    using namespace emu;
    Device& d = *static_cast<Device*>(opened);
    watch_faults();
    device = &d;
    d.kernel = static_cast<const Kernel*>(kernel);
    d.args = args;
    d.dynamic_bytes = dynamic_bytes;
    d.most_shared = most_shared;
    d.threads = block[0] * block[1] * block[2];
    d.descending = descending != 0;
    d.static_peak = 0;
    d.failed = false;
    view.block = {0, 0, 0};
    for (; d.stacks_open < d.threads; ++d.stacks_open) {
        unsigned char* stack = d.stacks + d.stacks_open * (STACK + d.page) + d.page;
        if (mprotect(stack, STACK, PROT_READ | PROT_WRITE) == 0) continue;
        say("no memory for the stacks of %u threads: are many devices open (vm.max_map_count)?", d.threads);
        device = nullptr;
        return d.message;
    }
    view.block_dim = {block[0], block[1], block[2]};
    view.grid_dim = {grid[0], grid[1], grid[2]};
    for (unsigned t = 0; t < d.threads; ++t)
        d.fibres[t].index = {t % block[0], t / block[0] % block[1], t / block[0] / block[1]};
    const uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    for (uint64_t i = 0; i < blocks && !d.failed; ++i) {
        const uint64_t b = descending ? blocks - 1 - i : i;
        view.block = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / grid[0] / grid[1])};
        run_block();
    }
    clear_shared();
    clear_copies();
    device = nullptr;
    return d.failed ? d.message : nullptr;
}

} // extern "C"
