// A counterfeit libcuda.so.1 for tests/gpu_probe.rs: answers as the environment says, keeps "device" memory on the
// heap, and knows one kernel, sgd_step_f32. It is strict where the real one is: a context must be current on the calling
// thread, memory must be known, and on release everything must have been given back.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

int setting(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

bool started;
int contexts, streams, modules;
thread_local bool current;
std::mutex guard;
std::map<uint64_t, size_t> memory; // address and size

bool inside(uint64_t at, size_t bytes) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    const auto& [start, size] = *--next;
    return at + bytes <= start + size;
}

struct SgdArgs {
    uint64_t values, map, w, wt, n;
    uint64_t grads, momentum, state, vectors;
};
struct StepState {
    float lr, momentum, weight_decay;
    uint32_t nesterov;
    uint32_t rest[12];
};

} // namespace

#define NEED_CONTEXT                                \
    std::lock_guard<std::mutex> hold(guard);        \
    if (!current) return INVALID_CONTEXT

extern "C" {

int cuInit(unsigned) {
    const int code = setting("FAKE_CUDA_INIT", SUCCESS);
    started = code == SUCCESS;
    return code;
}
int cuDriverGetVersion(int* version) {
    *version = setting("FAKE_CUDA_VERSION", 13000);
    return SUCCESS;
}
int cuDeviceGetCount(int* count) {
    *count = setting("FAKE_CUDA_DEVICES", 1);
    return started ? SUCCESS : NOT_INITIALIZED;
}
int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return started ? SUCCESS : NOT_INITIALIZED;
}
int cuDeviceGetName(char* name, int bytes, int device) {
    snprintf(name, size_t(bytes), "Counterfeit %d", device);
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = size_t(80) << 30;
    return SUCCESS;
}
// FAKE_CUDA_CAPABILITY 75 is 7.5; device i has i * 15 more, so the second one of 75 is 9.0.
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    const int capability = setting("FAKE_CUDA_CAPABILITY", 90) + 15 * device;
    if (attribute != 75 && attribute != 76) return INVALID_VALUE;
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
    const int code = setting("FAKE_CUDA_RETAIN", SUCCESS);
    if (code) return code;
    ++contexts;
    *context = reinterpret_cast<void*>(intptr_t(1000 + device));
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    --contexts;
    printf("FAKE released: %d contexts, %d streams, %d modules, %zu buffers left\n", contexts, streams, modules,
           memory.size());
    fflush(stdout);
    return SUCCESS;
}
int cuCtxSetCurrent(void* context) {
    current = context != nullptr;
    return SUCCESS;
}
int cuStreamCreate(void** stream, unsigned) {
    NEED_CONTEXT;
    ++streams;
    *stream = reinterpret_cast<void*>(intptr_t(2000));
    return SUCCESS;
}
int cuStreamDestroy_v2(void*) {
    NEED_CONTEXT;
    --streams;
    return SUCCESS;
}
int cuStreamSynchronize(void* stream) {
    NEED_CONTEXT;
    return stream == reinterpret_cast<void*>(intptr_t(2000)) ? setting("FAKE_CUDA_SYNC", SUCCESS) : INVALID_VALUE;
}
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    NEED_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > size_t(1) << 30) return 2; // out of memory
    void* at = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(at, 0xFF, bytes);
    *address = reinterpret_cast<uint64_t>(at);
    memory[*address] = bytes;
    return SUCCESS;
}
int cuMemFree_v2(uint64_t address) {
    NEED_CONTEXT;
    if (memory.erase(address) == 0) return INVALID_VALUE;
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
    NEED_CONTEXT;
    if (!inside(to, bytes)) return INVALID_VALUE;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
    NEED_CONTEXT;
    if (!inside(from, bytes)) return INVALID_VALUE;
    memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return SUCCESS;
}
int cuModuleLoadData(void** module, const void* image) {
    NEED_CONTEXT;
    const int code = setting("FAKE_CUDA_LOAD", SUCCESS);
    if (code) return code;
    if (reinterpret_cast<uint64_t>(image) % 8) return INVALID_VALUE;
    *module = reinterpret_cast<void*>(intptr_t(3000 + modules++));
    return SUCCESS;
}
int cuModuleUnload(void*) {
    NEED_CONTEXT;
    --modules;
    return SUCCESS;
}
// Only the second module holds the kernel.
int cuModuleGetFunction(void** function, void* module, const char* name) {
    NEED_CONTEXT;
    if (module != reinterpret_cast<void*>(intptr_t(3001)) || strcmp(name, "sgd_step_f32") != 0) return NOT_FOUND;
    *function = reinterpret_cast<void*>(intptr_t(4000));
    return SUCCESS;
}
#ifndef FAKE_WITHOUT_LAUNCH
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** args, void** extra) {
    NEED_CONTEXT;
    SgdArgs a;
    memcpy(&a, args[0], sizeof a);
    if (function != reinterpret_cast<void*>(intptr_t(4000)) || stream != reinterpret_cast<void*>(intptr_t(2000)) || extra ||
        shared || gy * gz * by * bz != 1 || uint64_t(gx) * bx < a.n - 3 * a.vectors || bx > 256 || 4 * a.vectors > a.n ||
        a.map)
        return INVALID_VALUE;
    for (uint64_t at : {a.values, a.grads, a.momentum})
        if (!inside(at, 4 * a.n) || (a.vectors && at % 16)) return INVALID_VALUE;
    if (!inside(a.state, sizeof(StepState))) return INVALID_VALUE;
    const StepState s = *reinterpret_cast<const StepState*>(a.state);
    float *v = reinterpret_cast<float*>(a.values), *m = reinterpret_cast<float*>(a.momentum);
    const float* g = reinterpret_cast<const float*>(a.grads);
    for (uint64_t i = 0; i < a.n; ++i) {
        const float g1 = g[i] + s.weight_decay * v[i];
        m[i] = s.momentum * m[i] + g1;
        const float d = s.nesterov ? g1 + s.momentum * m[i] : m[i];
        v[i] = v[i] - s.lr * d;
    }
    return SUCCESS;
}
#endif

} // extern "C"
