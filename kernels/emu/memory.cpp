// Device memory with guard pages.
#include "device.hpp"

#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace emu {

namespace {

struct Buffer {
    size_t bytes;
    bool freed;
};
// Every buffer there was, by address: addresses are never used again, and a fault's message names the nearest.
std::mutex guard;
std::map<uintptr_t, Buffer>& buffers() {
    static auto* all = new std::map<uintptr_t, Buffer>; // never destroyed: other static objects may own buffers
    return *all;
}

} // namespace

size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

unsigned char* reserve(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? nullptr : static_cast<unsigned char*>(at);
}

bool nearest_buffer(const void* address, uintptr_t& at, size_t& bytes, bool& freed) {
    std::unique_lock<std::mutex> hold(guard, std::try_to_lock);
    if (!hold || buffers().empty()) return false;
    const uintptr_t sought = reinterpret_cast<uintptr_t>(address);
    auto found = buffers().upper_bound(sought);
    if (found == buffers().end()) --found;
    if (found != buffers().begin() && found->first > sought) {
        const auto below = std::prev(found);
        const uintptr_t end = below->first + below->second.bytes;
        if (sought < end || sought - end < found->first - sought) found = below;
    }
    at = found->first;
    bytes = found->second.bytes;
    freed = found->second.freed;
    return true;
}

} // namespace emu

// The C interface of src/backend/gpu/emu.rs.
extern "C" {

// Device memory: it ends at a page without access, up to the 16 bytes of its alignment; another such page lies before
// it; filled with 0xFF. Null if the system gives none.
void* sparse_engine_emu_alloc(size_t bytes) {
    using namespace emu;
    const size_t page = page_bytes(), used = (bytes + 15) / 16 * 16, body = (used + page - 1) / page * page;
    unsigned char* at = reserve(body + 2 * page);
    if (!at) return nullptr;
    if (body && mprotect(at + page, body, PROT_READ | PROT_WRITE) != 0) {
        munmap(at, body + 2 * page);
        return nullptr;
    }
    memset(at + page, POISON, body);
    unsigned char* memory = at + page + body - used;
    std::lock_guard<std::mutex> hold(guard);
    buffers()[reinterpret_cast<uintptr_t>(memory)] = {bytes, false};
    return memory;
}

// Any later access faults.
void sparse_engine_emu_free(void* memory, size_t bytes) {
    using namespace emu;
    const size_t page = page_bytes(), used = (bytes + 15) / 16 * 16, body = (used + page - 1) / page * page;
    {
        std::lock_guard<std::mutex> hold(guard);
        buffers()[reinterpret_cast<uintptr_t>(memory)].freed = true;
    }
    if (body == 0) return;
    mmap(static_cast<unsigned char*>(memory) + used - body, body, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

// Whether the up to 15 bytes between the memory's end and the guard page still hold their 0xFF.
int sparse_engine_emu_intact(const void* memory, size_t bytes) {
    const unsigned char* end = static_cast<const unsigned char*>(memory) + bytes;
    for (size_t i = 0; i < (bytes + 15) / 16 * 16 - bytes; ++i)
        if (end[i] != emu::POISON) return 0;
    return 1;
}

} // extern "C"
