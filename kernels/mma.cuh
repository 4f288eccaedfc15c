// Tensor-core instructions of one warp: 16-byte matrix rows from shared memory, and 16 x 8 products with f32 sums.
//
// Both types share one shape in bytes: a multiply takes 32 bytes of k, 16 numbers of 2 bytes or 8 of tf32. In terms of
// g = lane / 4 and t = lane % 4, with `low` and `high` the two 16-byte halves of k:
//     a[0] row g low, a[1] row g + 8 low, a[2] row g high, a[3] row g + 8 high; word t of each half
//     b[0] column g low, b[1] column g high; word t
//     d[0], d[1] row g, columns 2t and 2t + 1; d[2], d[3] row g + 8
// All 32 lanes must call. On the host a call is a collective of the emulation, and sums round once a multiply: a GPU
// adds the products in an order and with a truncation that are not documented.
#pragma once
#include "number.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Four 8 x 8 matrices of 2-byte numbers; lane 8j + i gives the address of row i of matrix j, 16-byte aligned. r[j]: word
// t of row g.
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, transposed: r[j] holds column g of rows 2t and 2t + 1.
__device__ __forceinline__ void load_matrices_trans(const void* row, uint32_t (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#define MMA(name)                                                                                                 \
    asm(name " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                   \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
__device__ __forceinline__ void mma(f16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");
}
__device__ __forceinline__ void mma(bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
}
__device__ __forceinline__ void mma(float, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef MMA

// d[m][n] += a[m] * b[n], tiles of 16 rows and 8 columns.
template <class T, int M, int N>
__device__ __forceinline__ void multiply(float (&d)[M][N][4], const uint32_t (&a)[M][4], const uint32_t (&b)[N][2]) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int m = 0; m < M; ++m) mma(T{}, d[m][n], a[m], b[n][0], b[n][1]);
}

// To the nearest tf32, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float v) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return bits;
}

// The larger of each number of a word; NaN if one is NaN.
__device__ __forceinline__ uint32_t raise(f16, uint32_t v, uint32_t floor) {
    uint32_t both;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(both) : "r"(v), "r"(floor));
    return both;
}
__device__ __forceinline__ uint32_t raise(bf16, uint32_t v, uint32_t floor) {
    uint32_t both;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(both) : "r"(v), "r"(floor));
    return both;
}
__device__ __forceinline__ uint32_t raise(float, uint32_t v, uint32_t floor) {
    uint32_t one;
    asm("max.NaN.f32 %0, %1, %2;" : "=r"(one) : "r"(v), "r"(floor));
    return one;
}

#else

namespace emu {

struct MatrixSlot {
    const unsigned char* row;
    uint32_t* r;
};
template <bool TRANS> void load_matrices(void* slots[32]) {
    MatrixSlot* lanes[32];
    for (int l = 0; l < 32; ++l) lanes[l] = static_cast<MatrixSlot*>(slots[l]);
    for (int l = 0; l < 32; ++l) {
        if (!lanes[l]) continue;
        for (int j = 0; j < 4; ++j) {
            uint32_t word = ~0u; // a lane that gives a row has returned: a GPU gives anything
            const int g = l / 4, t = l % 4;
            if (TRANS) {
                uint16_t half[2] = {0xFFFF, 0xFFFF};
                for (int i = 0; i < 2; ++i)
                    if (lanes[8 * j + 2 * t + i]) std::memcpy(&half[i], lanes[8 * j + 2 * t + i]->row + 2 * g, 2);
                word = half[0] | uint32_t(half[1]) << 16;
            } else if (lanes[8 * j + g]) {
                std::memcpy(&word, lanes[8 * j + g]->row + 4 * t, 4);
            }
            lanes[l]->r[j] = word;
        }
    }
}

template <int M, int N> struct MultiplySlot {
    float (*d)[N][4];
    const uint32_t (*a)[4];
    const uint32_t (*b)[2];
};
// The numbers of one word; tf32 reads the upper 19 bits of an f32.
inline int split(f16, uint32_t word, float* v) { return unpack2(f16{}, word, v[0], v[1]), 2; }
inline int split(bf16, uint32_t word, float* v) { return unpack2(bf16{}, word, v[0], v[1]), 2; }
inline int split(float, uint32_t word, float* v) { return v[0] = bits_float(word & ~0x1FFFu), 1; }

template <class T, int M, int N> void multiply(void* slots[32]) {
    using Slot = MultiplySlot<M, N>;
    constexpr int HALF = 16 / sizeof(T), K = 2 * HALF, WORD = HALF / 4; // numbers of k in 16 bytes, a multiply, a word
    Slot* lanes[32];
    for (int l = 0; l < 32; ++l) {
        lanes[l] = static_cast<Slot*>(slots[l]);
        if (!lanes[l]) return; // the others' sums stay as they are, which a test sees
    }
    count_products(M * N);
    float a[16][K], b[8][K];
    for (int n = 0; n < N; ++n) {
        for (int l = 0; l < 32; ++l)
            for (int h = 0; h < 2; ++h) split(T{}, lanes[l]->b[n][h], &b[l / 4][h * HALF + l % 4 * WORD]);
        for (int m = 0; m < M; ++m) {
            for (int l = 0; l < 32; ++l)
                for (int j = 0; j < 4; ++j)
                    split(T{}, lanes[l]->a[m][j], &a[l / 4 + j % 2 * 8][j / 2 * HALF + l % 4 * WORD]);
            for (int l = 0; l < 32; ++l)
                for (int j = 0; j < 4; ++j) {
                    float& d = lanes[l]->d[m][n][j];
                    double sum = d;
                    for (int k = 0; k < K; ++k) sum += double(a[l / 4 + j / 2 * 8][k]) * b[l % 4 * 2 + j % 2][k];
                    d = float(sum);
                }
        }
    }
}

} // namespace emu

inline void load_matrices(const void* row, uint32_t (&r)[4], int line = __builtin_LINE()) {
    CHECK_ALIGNED(row, 16);
    CHECK_SHARED(row, 16);
    emu::MatrixSlot slot{static_cast<const unsigned char*>(row), r};
    emu::collective(&slot, emu::load_matrices<false>, line);
}
inline void load_matrices_trans(const void* row, uint32_t (&r)[4], int line = __builtin_LINE()) {
    CHECK_ALIGNED(row, 16);
    CHECK_SHARED(row, 16);
    emu::MatrixSlot slot{static_cast<const unsigned char*>(row), r};
    emu::collective(&slot, emu::load_matrices<true>, line);
}
template <class T, int M, int N>
void multiply(float (&d)[M][N][4], const uint32_t (&a)[M][4], const uint32_t (&b)[N][2], int line = __builtin_LINE()) {
    emu::MultiplySlot<M, N> slot{d, a, b};
    emu::collective(&slot, emu::multiply<T, M, N>, line);
}

inline uint32_t to_tf32(float v) {
    const uint32_t bits = float_bits(v);
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? bits : (bits + 0x1000) & ~0x1FFFu;
}

inline float larger(float v, float floor) { return v < floor ? floor : v; } // NaN stays
inline uint32_t raise(float, uint32_t v, uint32_t floor) {
    return float_bits(larger(bits_float(v), bits_float(floor)));
}
template <class T> uint32_t raise(T, uint32_t v, uint32_t floor) {
    float a, b, c, d;
    unpack2(T{}, v, a, b);
    unpack2(T{}, floor, c, d);
    return pack2(T{}, larger(a, c), larger(b, d));
}

#endif

// The word that `raise` takes to rectify, or to leave all as it is.
__device__ __forceinline__ uint32_t floor_word(f16, bool relu) { return relu ? 0 : 0xFC00FC00u; }
__device__ __forceinline__ uint32_t floor_word(bf16, bool relu) { return relu ? 0 : 0xFF80FF80u; }
__device__ __forceinline__ uint32_t floor_word(float, bool relu) { return relu ? 0 : 0xFF800000u; }

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile with rows of CHUNKS chunks: eight rows' chunks of one
// column, and eight neighbouring chunks, lie in different banks.
template <int CHUNKS> __device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
    static_assert(CHUNKS == 2 || CHUNKS == 4 || CHUNKS == 8 || CHUNKS == 16, "rows of 32 to 256 bytes");
    const uint32_t turn = CHUNKS >= 8 ? row & 7 : CHUNKS == 4 ? row >> 1 & 3 : row >> 2 & 1;
    return (row * CHUNKS + (chunk ^ turn)) * 16;
}
