// A counterfeit libcuda.so.1 for tests/gpu_probe.rs: answers as the environment says, keeps "device" memory on the
// heap, and knows one kernel, sgd_step_f32. It is strict where the real one is: a context must be current on the calling
// thread, memory must be known, and on release everything must have been given back.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201, NOT_FOUND = 500, IN_CAPTURE = 900 };

int setting(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

bool started;
int contexts, streams, modules, graphs;
bool capturing;
int shared_allowed; // of the one kernel
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
    uint64_t grads, momentum, exempt, state, vectors;
};
struct StepState {
    float lr, momentum, weight_decay;
    uint32_t nesterov;
    uint32_t rest[16];
};

// A launch of the one kernel.
struct Call {
    SgdArgs a;
    bool good() const {
        for (uint64_t address : {a.values, a.grads, a.momentum})
            if (!inside(address, 4 * a.n) || (a.vectors && address % 16)) return false;
        return inside(a.state, sizeof(StepState)) && !a.map && !a.exempt;
    }
    void run() const {
        float *v = reinterpret_cast<float*>(a.values), *m = reinterpret_cast<float*>(a.momentum);
        const float* g = reinterpret_cast<const float*>(a.grads);
        const StepState& s = *reinterpret_cast<const StepState*>(a.state);
        for (uint64_t i = 0; i < a.n; ++i) {
            const float g1 = g[i] + s.weight_decay * v[i];
            m[i] = s.momentum * m[i] + g1;
            const float d = s.nesterov ? g1 + s.momentum * m[i] : m[i];
            v[i] = v[i] - s.lr * d;
        }
    }
};
using Graph = std::vector<Call>; // also the executable one
Graph recording;

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
    switch (attribute) {
    case 16: *value = 132; return SUCCESS;    // multiprocessors
    case 75: *value = capability / 10; return SUCCESS;
    case 76: *value = capability % 10; return SUCCESS;
    case 97: *value = 232448; return SUCCESS; // shared memory a block, opting in
    default: return INVALID_VALUE;
    }
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
    printf("FAKE released: %d contexts, %d streams, %d modules, %zu buffers, %d graphs left\n", contexts, streams,
           modules, memory.size(), graphs);
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
    if (capturing) return IN_CAPTURE;
    return stream == reinterpret_cast<void*>(intptr_t(2000)) ? setting("FAKE_CUDA_SYNC", SUCCESS) : INVALID_VALUE;
}
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    NEED_CONTEXT;
    if (capturing) return IN_CAPTURE;
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
    if (capturing) return IN_CAPTURE;
    if (memory.erase(address) == 0) return INVALID_VALUE;
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
    NEED_CONTEXT;
    if (capturing) return IN_CAPTURE;
    if (!inside(to, bytes)) return INVALID_VALUE;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
    NEED_CONTEXT;
    if (capturing) return IN_CAPTURE;
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
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void*) {
    NEED_CONTEXT;
    if (capturing) return IN_CAPTURE;
    if (bytes == 0 || !inside(to, bytes)) return INVALID_VALUE;
    memset(reinterpret_cast<void*>(to), value, bytes);
    return SUCCESS;
}
// 8: most dynamic shared memory.
int cuFuncSetAttribute(void* function, int attribute, int value) {
    NEED_CONTEXT;
    if (function != reinterpret_cast<void*>(intptr_t(4000)) || attribute != 8 || value < 0 || value > 232448)
        return INVALID_VALUE;
    shared_allowed = value;
    return SUCCESS;
}
#ifndef FAKE_WITHOUT_LAUNCH
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** args, void** extra) {
    NEED_CONTEXT;
    Call call;
    memcpy(&call.a, args[0], sizeof call.a);
    const SgdArgs& a = call.a;
    if (function != reinterpret_cast<void*>(intptr_t(4000)) || stream != reinterpret_cast<void*>(intptr_t(2000)) || extra ||
        gy * gz * by * bz != 1 || uint64_t(gx) * bx < a.n - 3 * a.vectors || bx > 256 || 4 * a.vectors > a.n)
        return INVALID_VALUE;
    if (shared > 49152 && int(shared) > shared_allowed) return INVALID_VALUE;
    if (!call.good()) return INVALID_VALUE;
    if (capturing) recording.push_back(call);
    else call.run();
    return SUCCESS;
}
#endif
// 2: relaxed.
int cuStreamBeginCapture_v2(void* stream, int mode) {
    NEED_CONTEXT;
    if (capturing || stream != reinterpret_cast<void*>(intptr_t(2000)) || mode != 2) return INVALID_VALUE;
    const int code = setting("FAKE_CUDA_CAPTURE", SUCCESS);
    capturing = code == SUCCESS;
    return code;
}
int cuStreamEndCapture(void*, void** graph) {
    NEED_CONTEXT;
    if (!capturing) return INVALID_VALUE;
    capturing = false;
    ++graphs;
    *graph = new Graph(recording);
    recording.clear();
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
    NEED_CONTEXT;
    if (flags) return INVALID_VALUE;
    ++graphs;
    *exec = new Graph(*static_cast<Graph*>(graph));
    return SUCCESS;
}
int cuGraphLaunch(void* exec, void* stream) {
    NEED_CONTEXT;
    if (capturing || stream != reinterpret_cast<void*>(intptr_t(2000))) return INVALID_VALUE;
    for (const Call& call : *static_cast<Graph*>(exec)) {
        if (!call.good()) return INVALID_VALUE;
        call.run();
    }
    return SUCCESS;
}
int cuGraphDestroy(void* graph) {
    NEED_CONTEXT;
    --graphs;
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}
int cuGraphExecDestroy(void* exec) {
    NEED_CONTEXT;
    --graphs;
    delete static_cast<Graph*>(exec);
    return SUCCESS;
}

} // extern "C"
