// The block's shared memory: static variables from the start on, the dynamic part up to the guard page, poison between.
#include "device.hpp"

#include <cstring>

namespace emu {

void begin_shared() {
    Device& d = *device;
    d.static_count = 0;
    d.static_bytes = 0;
    memset(d.dynamic(), POISON, size_t(d.shared + d.shared_room - d.dynamic()));
}

void end_shared() {
    Device& d = *device;
    if (d.static_bytes > d.static_peak) d.static_peak = d.static_bytes;
    const unsigned char *above = d.shared + d.static_bytes, *below = d.dynamic();
    const unsigned char *end = below + d.dynamic_bytes, *guard = d.shared + d.shared_room;
    const size_t gap = size_t(below - above) < GAP ? size_t(below - above) : GAP;
    const auto written = [](const unsigned char* at, size_t bytes) {
        for (size_t i = 0; i < bytes; ++i)
            if (at[i] != POISON) return true;
        return false;
    };
    if (written(above, gap)) say("a write past the end of its static shared memory (%zu bytes)", d.static_bytes);
    else if (written(below - gap, gap)) say("a write before the start of its dynamic shared memory");
    else if (written(end, size_t(guard - end)))
        say("a write past the end of its dynamic shared memory (%zu bytes)", d.dynamic_bytes);
}

void clear_shared() {
    Device& d = *device;
    if (d.static_bytes > d.static_peak) d.static_peak = d.static_bytes;
    const size_t start = size_t(d.dynamic() - d.shared), before = start < GAP ? start : GAP;
    memset(d.shared, POISON, d.static_peak + GAP < d.shared_room ? d.static_peak + GAP : d.shared_room);
    memset(d.dynamic() - before, POISON, d.shared_room - start + before);
}

void* shared_static(const void* key, size_t bytes, size_t align) {
    Device& d = *device;
    for (unsigned i = 0; i < d.static_count; ++i)
        if (d.statics[i].key == key) return d.statics[i].at;
    const size_t at = (d.static_bytes + align - 1) / align * align;
    if (d.static_count == MAX_STATICS) fail("more than %u shared variables", MAX_STATICS);
    if (at + bytes > STATIC_SHARED) fail("shared memory: %zu bytes static, at most %zu", at + bytes, STATIC_SHARED);
    if (at + bytes + d.dynamic_bytes > d.most_shared)
        fail("shared memory: %zu bytes static and %zu dynamic, at most %zu together", at + bytes, d.dynamic_bytes,
             d.most_shared);
    d.static_bytes = at + bytes;
    d.statics[d.static_count++] = {key, d.shared + at};
    memset(d.shared + at, POISON, bytes);
    return d.shared + at;
}

void* shared_dynamic() { return device->dynamic(); }

void check_shared(const void* pointer, size_t bytes, const char* file, int line) {
    const Device& d = *device;
    const unsigned char* at = static_cast<const unsigned char*>(pointer);
    const auto inside = [&](const unsigned char* start, size_t size) {
        return at >= start && bytes <= size && size_t(at - start) <= size - bytes;
    };
    if (!inside(d.shared, d.static_bytes) && !inside(d.dynamic(), d.dynamic_bytes))
        fail("%zu bytes at %p are not in the block's shared memory at %s:%d", bytes, pointer, file, line);
}

} // namespace emu
