// More kernels that break the rules on purpose, or show that keeping them works; see selftest.cu.
#include "../async.cuh"
#include "../mma.cuh"

// x[t] = x[block - 1 - t] of the stage's 16-byte groups, through cp.async and dynamic shared memory.
// fault 0: right. 1: no wait. 2: no barrier after the wait. 3: returns with the copy pending. 4: the same, uncommitted.
// 5: waits for all groups but the last, which is the one needed. 6: writes to the destination before the wait.
// x, out [4 * block], 16 bytes of dynamic shared memory a thread.
extern "C" __global__ void selftest_async(const float* x, float* out, int fault) {
    DYNAMIC_SHARED(float, stage);
    const unsigned t = threadIdx.x, n = blockDim.x;
    cp_async16(stage + 4 * t, x + 4 * t);
    if (fault != 4) cp_async_commit();
    if (fault == 6) stage[4 * t + 1] = 1.0f;
    if (fault == 5) cp_async_wait<1>();
    if (fault == 0 || fault == 2 || fault == 6) cp_async_wait<0>();
    if (fault != 2) __syncthreads();
    const float4 v = load4(stage + 4 * (n - 1 - t));
    if (fault == 1 || fault == 5) {
        __syncthreads(); // all have read
        cp_async_wait<0>();
    }
    store4(out + 4 * t, v);
}
EXPORT_KERNEL(selftest_async)

// A ring of three stages over `steps` groups of 16 bytes a thread, two copies in flight; groups from `valid` on are zero
// and may lie past the end of x. out[t] = sum over the groups of group's four numbers times (group + 1).
// x [steps][4 * block], out [block], 48 bytes of dynamic shared memory a thread.
extern "C" __global__ void selftest_pipeline(const float* x, float* out, int steps, int valid) {
    DYNAMIC_SHARED(float, ring);
    const unsigned t = threadIdx.x, n = blockDim.x, other = (t + 1) % n;
    const auto fetch = [&](int step) {
        if (step < steps)
            cp_async16_zfill(ring + 4 * (unsigned(step % 3) * n + t), x + 4 * (size_t(step) * n + t), step < valid);
        cp_async_commit();
    };
    fetch(0);
    fetch(1);
    float sum = 0;
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<1>();
        __syncthreads();
        fetch(step + 2);
        const float4 v = load4(ring + 4 * (unsigned(step % 3) * n + other)); // fetched by another thread
        sum += float(step + 1) * (v.x + v.y + v.z + v.w);
    }
    out[t] = sum;
}
EXPORT_KERNEL(selftest_pipeline)

// A cp.async between addresses that are off by so many bytes; kind 1: the destination is no shared memory.
// x [8], 32 bytes of dynamic shared memory.
extern "C" __global__ void selftest_async_address(float* x, int dst_off, int src_off, int kind) {
    DYNAMIC_SHARED(unsigned char, stage);
    unsigned char* device = reinterpret_cast<unsigned char*>(x);
    cp_async16(kind == 1 ? device + 16 : stage + dst_off, device + src_off);
    cp_async_commit();
    cp_async_wait<0>();
}
EXPORT_KERNEL(selftest_async_address)

// The rows of 16 bytes that a warp gives to ldmatrix, aligned and in shared memory; lane 19's is off by so many bytes, or
// lies in device memory. x [4], out [4 * 32] the words of each lane, 512 bytes of dynamic shared memory.
extern "C" __global__ void selftest_row_address(const float* x, uint32_t* out, int trans, int off, int in_device) {
    DYNAMIC_SHARED(unsigned char, stage);
    const unsigned t = threadIdx.x;
    for (unsigned i = 0; i < 8; ++i) reinterpret_cast<uint16_t*>(stage)[8 * t + i] = uint16_t(8 * t + i);
    __syncwarp();
    const unsigned char* row = stage + 16 * t;
    if (t == 19) row = in_device ? reinterpret_cast<const unsigned char*>(x) : row + off;
    uint32_t words[4];
    if (trans) load_matrices_trans(row, words);
    else load_matrices(row, words);
    for (unsigned i = 0; i < 4; ++i) out[4 * t + i] = words[i];
}
EXPORT_KERNEL(selftest_row_address)

// Undefined behaviour of one kind each; `v` is chosen by the test. x [4].
extern "C" __global__ void selftest_undefined(float* x, int kind, int v) {
    int table[4] = {1, 2, 3, 4};
    volatile int got = 0;
    if (kind == 0) got = table[v];
    if (kind == 1) got = 1 << v;
    if (kind == 2) got = 0x7FFFFFFF + v;
    if (kind == 3) got = 7 / v;
    if (kind == 4) got = int(x[0] * float(v));
    if (kind == 5) got = int(*reinterpret_cast<const double*>(reinterpret_cast<const char*>(x) + v) == 0.0);
    if (kind == 6) got = *reinterpret_cast<const int*>(uintptr_t(v));
    if (kind == 7) got = *reinterpret_cast<const bool*>(x + v);
    x[1] = float(got);
}
EXPORT_KERNEL(selftest_undefined)

// Barriers that count, votes and integer atomics. x [block] ints; out [6 * block]; counters [8], the first element of
// each as the test set it.
extern "C" __global__ void selftest_votes(const int* x, int* out, unsigned* counters) {
    const unsigned t = threadIdx.x, n = blockDim.x;
    out[t] = __syncthreads_count(x[t] > 0);
    out[n + t] = __syncthreads_or(x[t] > 5) + 2 * __syncthreads_and(x[t] > -9);
    out[2 * n + t] = int(__ballot_sync(~0u, x[t] > 0));
    out[3 * n + t] = __any_sync(~0u, x[t] > 5) + 2 * __all_sync(~0u, x[t] > -9);
    const unsigned half = t % 32 < 16 ? 0xFFFFu : 0xFFFF0000u; // each half a warp on its own
    if (t % 32 < 16) out[4 * n + t] = int(__ballot_sync(half, x[t] % 2 != 0));
    else out[4 * n + t] = int(__ballot_sync(half, x[t] % 2 == 0));
    atomicMax(&counters[0], unsigned(x[t]));
    atomicMin(reinterpret_cast<int*>(&counters[1]), x[t]);
    atomicOr(&counters[2], 1u << t % 32);
    atomicAnd(&counters[3], ~(1u << t % 32));
    atomicXor(&counters[4], t);
    atomicSub(&counters[5], 1u);
    out[5 * n + t] = int(atomicExch(&counters[6], t));
    unsigned seen = __ldg(&counters[7]);
    for (unsigned old; (old = atomicCAS(&counters[7], seen, seen + t)) != seen; seen = old) {
    }
    __threadfence();
}
EXPORT_KERNEL(selftest_votes)

// Conversions and bits. in [n] floats, out [8 * n].
extern "C" __global__ void selftest_conversions(const float* in, int* out, int n) {
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
        const float v = in[i];
        out[8 * i] = __float2int_rn(v);
        out[8 * i + 1] = __float2int_rz(v);
        out[8 * i + 2] = int(__float2uint_rn(v));
        out[8 * i + 3] = __popc(__float_as_uint(v));
        out[8 * i + 4] = __clz(__float_as_int(v));
        out[8 * i + 5] = int(__brev(__float_as_uint(v)));
        out[8 * i + 6] = __float_as_int(__saturatef(v));
        out[8 * i + 7] = __float_as_int(max(min(v, 2.0f), -2.0f));
    }
}
EXPORT_KERNEL(selftest_conversions)

// Ends the stack: recursion that the compiler cannot unroll into a loop, or one frame of 256 KB. x [1].
__device__ __noinline__ float selftest_deep(volatile float* x, int depth) {
    volatile float local[64];
    for (int i = 0; i < 64; ++i) local[i] = x[0];
    return depth == 0 ? local[0] : selftest_deep(x, depth - 1) + local[depth % 64];
}
__device__ __noinline__ float selftest_wide(volatile float* x, int at) {
    volatile float local[65536];
    local[at] = x[0];
    return local[at];
}
extern "C" __global__ void selftest_stack(float* x, int depth, int wide) {
    x[0] = wide ? selftest_wide(x, depth) : selftest_deep(x, depth);
}
EXPORT_KERNEL(selftest_stack)

// Writes one byte beside shared memory: past the static array [kind 0], before the dynamic one [1], into its last 16
// bytes past its end [2]. 20 bytes of dynamic shared memory.
extern "C" __global__ void selftest_shared_gap(int kind) {
    SHARED(unsigned char, low, [100]);
    DYNAMIC_SHARED(unsigned char, high);
    low[0] = high[0] = 1;
    volatile unsigned char* at = kind == 1 ? high : low;
    if (kind == 0) at[100 + 3] = 0;
    if (kind == 1) at[-2] = 0;
    if (kind == 2) high[20 + 5] = 0;
}
EXPORT_KERNEL(selftest_shared_gap)

// The largest argument there is. out[i] = values[i].
struct SelftestLarge {
    uint64_t out;
    uint32_t values[1022];
};
static_assert(sizeof(SelftestLarge) == 4096, "the launcher passes 4096 bytes");
extern "C" __global__ void selftest_large_argument(SelftestLarge a) {
    for (unsigned i = threadIdx.x; i < 1022; i += blockDim.x) reinterpret_cast<uint32_t*>(a.out)[i] = a.values[i];
}
EXPORT_KERNEL(selftest_large_argument)

// x[0] = x[0] * by + 1, by one thread.
extern "C" __global__ void selftest_step(float* x, float by) {
    if (blockIdx.x + threadIdx.x == 0) x[0] = x[0] * by + 1.0f;
}
EXPORT_KERNEL(selftest_step)
