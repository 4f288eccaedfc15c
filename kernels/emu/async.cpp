// cp.async: what a thread has asked for and not yet waited for.
#include "device.hpp"

#include <cstring>

namespace emu {

namespace {

constexpr size_t BYTES = 16;

bool poisoned(const unsigned char* at) {
    for (size_t i = 0; i < BYTES; ++i)
        if (at[i] != POISON) return false;
    return true;
}

} // namespace

void copy_async(void* dst, const void* src, bool valid, const char* file, int line) {
    if (reinterpret_cast<uintptr_t>(dst) % BYTES) fail("cp.async to a misaligned address at %s:%d", file, line);
    if (reinterpret_cast<uintptr_t>(src) % BYTES) fail("cp.async from a misaligned address at %s:%d", file, line);
    check_shared(dst, BYTES, file, line);
    const unsigned char* from = valid ? static_cast<const unsigned char*>(src) : nullptr;
    if (from) (void)*static_cast<const volatile unsigned char*>(from); // a bad address faults here, not at the wait
    memset(dst, POISON, BYTES);
    Copies& mine = device->copies[device->current];
    mine.pending.push_back({static_cast<unsigned char*>(dst), from, mine.committed, line});
    device->any_copies = true;
}

void commit_copies() { ++device->copies[device->current].committed; }

void wait_copies(unsigned pending) {
    Copies& mine = device->copies[device->current];
    size_t done = 0;
    for (; done < mine.pending.size() && mine.pending[done].group + pending < mine.committed; ++done) {
        const Copy& copy = mine.pending[done];
        if (!poisoned(copy.dst)) fail("shared memory is written while the cp.async of line %d to it is pending", copy.line);
        if (copy.src) memcpy(copy.dst, copy.src, BYTES);
        else memset(copy.dst, 0, BYTES);
    }
    mine.pending.erase(mine.pending.begin(), mine.pending.begin() + ptrdiff_t(done));
}

void check_copies_waited_for() {
    const Copies& mine = device->copies[device->current];
    if (!mine.pending.empty())
        fail("returns with %zu cp.async pending, the first of line %d%s", mine.pending.size(), mine.pending[0].line,
             mine.pending[0].group < mine.committed ? "" : ", never committed");
}

void clear_copies() {
    if (!device->any_copies) return;
    for (Copies& c : device->copies) {
        c.pending.clear();
        c.committed = 0;
    }
    device->any_copies = false;
}

} // namespace emu
