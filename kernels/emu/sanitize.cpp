// What kernels compiled with -fsanitize=undefined call when they meet undefined behaviour: libubsan is not linked, and
// this names the kernel, block and thread, and ends the launch. Names and layouts are the ABI that g++ and clang share.
#include "device.hpp"

#include <cstdio>

namespace {

struct Source {
    const char* file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind; // 0: integer
    uint16_t info; // of an integer: bit 0 signed, then log2 of the bits
    char name[1];  // quoted
};
using Value = uintptr_t; // the number itself, or if it is too wide its address

struct Mismatch {
    Source at;
    const Type* type;
    uint8_t log_alignment, kind;
};
struct OfType {
    Source at;
    const Type* type;
};
struct OfTypes {
    Source at;
    const Type *first, *second;
};

struct Number {
    char text[24];
    Number(const Type* type, Value v) {
        const unsigned bits = 1u << (type->info >> 1);
        if (type->kind != 0 || bits > 8 * sizeof v) {
            snprintf(text, sizeof text, "?");
        } else if (type->info & 1) {
            const unsigned spare = 64 - bits;
            snprintf(text, sizeof text, "%lld", (long long)(uint64_t(v) << spare) >> spare);
        } else {
            snprintf(text, sizeof text, "%llu", (unsigned long long)v);
        }
    }
};

[[noreturn]] void report(const Source& at, const char* what) {
    emu::fail("undefined behaviour: %s at %s:%u", what, at.file ? at.file : "?", at.line);
}

[[noreturn]] void overflow(const OfType* data, const char* sign, Value a, Value b) {
    char text[160];
    snprintf(text, sizeof text, "overflow: %s %s %s in %s", Number(data->type, a).text, sign, Number(data->type, b).text,
             data->type->name);
    report(data->at, text);
}

} // namespace

// Some compilers call the `_abort` twin, if errors may not be recovered from.
#define HANDLER(name, parameters, ...)                              \
    extern "C" void __ubsan_handle_##name parameters __VA_ARGS__       \
    extern "C" void __ubsan_handle_##name##_abort parameters __VA_ARGS__

HANDLER(type_mismatch_v1, (const Mismatch* data, Value address), {
    static const char* const kinds[] = {"load of", "store to", "reference to", "member access in", "member call on",
                                        "constructor call on"};
    const char* kind = data->kind < 6 ? kinds[data->kind] : "use of";
    const Value alignment = Value(1) << data->log_alignment;
    char text[200];
    if (address == 0) snprintf(text, sizeof text, "%s a null pointer of type %s", kind, data->type->name);
    else if (address & (alignment - 1))
        snprintf(text, sizeof text, "misaligned %s type %s: address %#zx is no multiple of %zu", kind, data->type->name,
                 size_t(address), size_t(alignment));
    else snprintf(text, sizeof text, "%s type %s: the object is too small for it", kind, data->type->name);
    report(data->at, text);
})
HANDLER(add_overflow, (const OfType* data, Value a, Value b), { overflow(data, "+", a, b); })
HANDLER(sub_overflow, (const OfType* data, Value a, Value b), { overflow(data, "-", a, b); })
HANDLER(mul_overflow, (const OfType* data, Value a, Value b), { overflow(data, "*", a, b); })
HANDLER(divrem_overflow, (const OfType* data, Value a, Value b), { overflow(data, "/", a, b); })
HANDLER(negate_overflow, (const OfType* data, Value a), { overflow(data, "-", 0, a); })
HANDLER(shift_out_of_bounds, (const OfTypes* data, Value a, Value b), {
    char text[160];
    snprintf(text, sizeof text, "shift of %s (%s) by %s", Number(data->first, a).text, data->first->name,
             Number(data->second, b).text);
    report(data->at, text);
})
HANDLER(out_of_bounds, (const OfTypes* data, Value index), {
    char text[160];
    snprintf(text, sizeof text, "index %s out of bounds of %s", Number(data->second, index).text, data->first->name);
    report(data->at, text);
})
HANDLER(float_cast_overflow, (const OfTypes* data, Value), {
    char text[160];
    snprintf(text, sizeof text, "a number of %s that %s cannot hold", data->first->name, data->second->name);
    report(data->at, text);
})
HANDLER(load_invalid_value, (const OfType* data, Value v), {
    char text[160];
    snprintf(text, sizeof text, "load of %s, no value of type %s", Number(data->type, v).text, data->type->name);
    report(data->at, text);
})
HANDLER(pointer_overflow, (const Source* at, Value, Value), { report(*at, "pointer arithmetic that wraps or starts at null"); })
HANDLER(vla_bound_not_positive, (const OfType* data, Value), { report(data->at, "array of no positive size"); })
HANDLER(nonnull_arg, (const Source* at), { report(*at, "null passed where it must not be"); })
HANDLER(nonnull_return_v1, (const void*, const Source* at), { report(*at, "null returned where it must not be"); })
HANDLER(invalid_builtin, (const Source* at), { report(*at, "zero passed to a function of leading or trailing zeros"); })
HANDLER(function_type_mismatch, (const OfType* data, Value), { report(data->at, "call through a pointer of another type"); })
HANDLER(function_type_mismatch_v1, (const OfType* data, Value), { report(data->at, "call through a pointer of another type"); })
HANDLER(implicit_conversion, (const Source* at), { report(*at, "conversion that changes the value"); })
HANDLER(alignment_assumption, (const Source* at), { report(*at, "misaligned pointer where alignment is assumed"); })
extern "C" [[noreturn]] void __ubsan_handle_builtin_unreachable(const Source* at) { report(*at, "unreachable code reached"); }
extern "C" [[noreturn]] void __ubsan_handle_missing_return(const Source* at) { report(*at, "function without a return value"); }
