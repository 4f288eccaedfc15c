// CUDA's vector types.
#pragma once

struct uint3 {
    unsigned x, y, z;
};
struct float3 {
    float x, y, z;
};

#define EMU_VECTOR(type, scalar, align)                         \
    struct alignas(2 * align) type##2 {                         \
        scalar x, y;                                            \
    };                                                          \
    struct alignas(4 * align > 16 ? 16 : 4 * align) type##4 {   \
        scalar x, y, z, w;                                      \
    };                                                          \
    inline type##2 make_##type##2(scalar x, scalar y) { return {x, y}; } \
    inline type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

EMU_VECTOR(uchar, unsigned char, 1)
EMU_VECTOR(ushort, unsigned short, 2)
EMU_VECTOR(int, int, 4)
EMU_VECTOR(uint, unsigned, 4)
EMU_VECTOR(float, float, 4)
EMU_VECTOR(double, double, 8)
#undef EMU_VECTOR
