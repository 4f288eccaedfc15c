// Counterfeit libcudnn.so.9 (FAKE_CUDNN), libcublasLt.so.13 (FAKE_BLASLT) and empty parts of cuDNN, for
// tests/gpu_vendor_cuda.rs: they compute on the host, where the counterfeit libcuda keeps "device" memory, exactly what their
// descriptors say, and are strict where the real ones are. Sizes, layouts, types and math that the engine never asks for
// are errors.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

int setting(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

enum Type { F32, F16, BF16 };

float number(const void* at, uint64_t i, Type type) {
    if (type == F32) return static_cast<const float*>(at)[i];
    const uint16_t bits = static_cast<const uint16_t*>(at)[i];
    uint32_t wide = uint32_t(bits) << 16;
    if (type == F16) { // normal numbers and zero
        const uint32_t exponent = bits >> 10 & 31;
        wide = uint32_t(bits & 0x8000) << 16 | (exponent ? (exponent + 112) << 23 | uint32_t(bits & 1023) << 13 : 0);
    }
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

// To nearest, ties away: close enough for a comparison. Normal numbers and zero.
void store(void* at, uint64_t i, Type type, float value) {
    if (type == F32) {
        static_cast<float*>(at)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t half;
    if (type == BF16) {
        half = uint16_t((bits + 0x8000) >> 16);
    } else {
        const uint32_t size = (bits & 0x7FFFFFFF) + 0x1000;
        half = uint16_t(bits >> 16 & 0x8000);
        if (size >= 0x38800000) half |= uint16_t((size - 0x38000000) >> 13);
    }
    static_cast<uint16_t*>(at)[i] = half;
}

const size_t WORKSPACE = 256;
bool space_is_good(void* space, size_t bytes) {
    if (!space || bytes < WORKSPACE) return false;
    memset(space, 0xFF, bytes);
    return true;
}
void* const STREAM = reinterpret_cast<void*>(intptr_t(2000)); // of the counterfeit libcuda
int objects, handles;
void released(const char* name) {
    printf("FAKE %s released: %d descriptors, %d handles left\n", name, objects, handles);
    fflush(stdout);
}

} // namespace

extern "C" {

#ifdef FAKE_CUDNN
enum { OK = 0, BAD = 2000, UNSUPPORTED = 3000 };

struct Tensor { // or a filter: K,C,R,S
    int type, n, c, h, w;
    uint64_t len() const { return uint64_t(n) * c * h * w; }
    uint64_t at(int i, int y, int x, int channel) const { return ((uint64_t(i) * h + y) * w + x) * c + channel; }
    Type as() const { return type == 0 ? F32 : type == 2 ? F16 : BF16; }
};
struct Conv {
    int pad, stride, math;
};

size_t cudnnGetVersion() { return size_t(setting("FAKE_CUDNN_VERSION", 91002)); }
int cudnnCreate(void** handle) {
    const int code = setting("FAKE_CUDNN_CREATE", OK);
    if (code) return code;
    ++handles;
    *handle = calloc(1, sizeof(void*));
    return OK;
}
int cudnnDestroy(void* handle) {
    --handles;
    free(handle);
    released("cudnn");
    return OK;
}
int cudnnSetStream(void* handle, void* stream) {
    *static_cast<void**>(handle) = stream;
    return stream == STREAM ? OK : BAD;
}
int cudnnCreateTensorDescriptor(Tensor** t) {
    ++objects;
    *t = new Tensor{};
    return OK;
}
int cudnnDestroyTensorDescriptor(Tensor* t) {
    --objects;
    delete t;
    return OK;
}
int cudnnCreateFilterDescriptor(Tensor** t) { return cudnnCreateTensorDescriptor(t); }
int cudnnDestroyFilterDescriptor(Tensor* t) { return cudnnDestroyTensorDescriptor(t); }
int cudnnSetTensor4dDescriptor(Tensor* t, int format, int type, int n, int c, int h, int w) {
    if (format != 1 || n < 1 || c < 1 || c % 8 || h < 1 || w < 1 || (type != 0 && type != 2 && type != 9)) return BAD;
    *t = {type, n, c, h, w};
    return OK;
}
int cudnnSetFilter4dDescriptor(Tensor* t, int type, int format, int k, int c, int h, int w) {
    return cudnnSetTensor4dDescriptor(t, format, type, k, c, h, w);
}
int cudnnCreateConvolutionDescriptor(Conv** c) {
    ++objects;
    *c = new Conv{};
    return OK;
}
int cudnnDestroyConvolutionDescriptor(Conv* c) {
    --objects;
    delete c;
    return OK;
}
int cudnnSetConvolution2dDescriptor(Conv* c, int ph, int pw, int u, int v, int dh, int dw, int mode, int compute) {
    if (ph != pw || u != v || dh != 1 || dw != 1 || mode != 1 || compute != 0 || ph < 0 || u < 1) return BAD;
    *c = {ph, u, 0};
    return OK;
}
int cudnnSetConvolutionMathType(Conv* c, int math) {
    c->math = math;
    return OK;
}

static bool fits(const Tensor* x, const Tensor* w, const Conv* c, const Tensor* y) {
    auto size = [&](int in, int kernel) { return (in + 2 * c->pad - kernel) / c->stride + 1; };
    const bool math = x->type == 0 ? c->math == 0 || c->math == 3 : c->math == 1;
    return math && x->type == w->type && x->type == y->type && x->n == y->n && x->c == w->c && y->c == w->n &&
           y->h == size(x->h, w->h) && y->w == size(x->w, w->w);
}
static int space(bool good, bool has, size_t* bytes) {
    *bytes = WORKSPACE;
    return !good ? int(BAD) : has ? setting("FAKE_CUDNN_ALGORITHM", OK) : int(UNSUPPORTED);
}
int cudnnGetConvolutionForwardWorkspaceSize(void*, Tensor* x, Tensor* w, Conv* c, Tensor* y, int how, size_t* bytes) {
    const bool has = how == 0 || (how == 1 && !getenv("FAKE_CUDNN_NO_PRECOMP"));
    return space(fits(x, w, c, y), has, bytes);
}
int cudnnGetConvolutionBackwardDataWorkspaceSize(void*, Tensor* w, Tensor* y, Conv* c, Tensor* x, int how, size_t* bytes) {
    return space(fits(x, w, c, y), how == 1, bytes);
}
int cudnnGetConvolutionBackwardFilterWorkspaceSize(void*, Tensor* x, Tensor* y, Conv* c, Tensor* w, int how, size_t* bytes) {
    return space(fits(x, w, c, y), how == 1, bytes);
}

// Adds a[i] * b[j] to sums[o] for each pixel, tap and pair of channels; `pick` says which of x, w, y are i, j and o.
extern "C++" {
template <class Pick>
int run(void* handle, const Tensor* x, const Tensor* w, const Conv* c, const Tensor* y, const float* alpha,
               const float* beta, void* room, size_t bytes, const void* a, const void* b, void* out, const Tensor* result,
               Pick pick) {
    if (!fits(x, w, c, y) || *alpha != 1.0f || *beta != 0.0f || !space_is_good(room, bytes)) return BAD;
    if (*static_cast<void**>(handle) != STREAM) return BAD;
    if (const int code = setting("FAKE_CUDNN_RUN", OK)) return code;
    std::vector<double> sums(result->len());
    for (int i = 0; i < y->n; ++i)
        for (int p = 0; p < y->h; ++p)
            for (int q = 0; q < y->w; ++q)
                for (int r = 0; r < w->h; ++r)
                    for (int s = 0; s < w->w; ++s) {
                        const int h = p * c->stride + r - c->pad, v = q * c->stride + s - c->pad;
                        if (h < 0 || h >= x->h || v < 0 || v >= x->w) continue;
                        for (int k = 0; k < y->c; ++k)
                            for (int ch = 0; ch < x->c; ++ch) {
                                const uint64_t at[3] = {x->at(i, h, v, ch), w->at(k, r, s, ch), y->at(i, p, q, k)};
                                const auto [l, m, o] = pick(at[0], at[1], at[2]);
                                sums[o] += double(number(a, l, x->as())) * number(b, m, x->as());
                            }
                    }
    for (uint64_t i = 0; i < sums.size(); ++i) store(out, i, result->as(), float(sums[i]));
    return OK;
}
}
struct Three {
    uint64_t left, right, out;
};
int cudnnConvolutionForward(void* handle, const float* alpha, Tensor* x, const void* xs, Tensor* w, const void* ws, Conv* c,
                            int how, void* room, size_t bytes, const float* beta, Tensor* y, void* ys) {
    if (how != 0 && how != 1) return UNSUPPORTED;
    return run(handle, x, w, c, y, alpha, beta, room, bytes, xs, ws, ys, y,
               [](uint64_t x, uint64_t w, uint64_t y) { return Three{x, w, y}; });
}
#ifndef FAKE_WITHOUT_GRADIENTS
int cudnnConvolutionBackwardData(void* handle, const float* alpha, Tensor* w, const void* ws, Tensor* y, const void* ys,
                                 Conv* c, int how, void* room, size_t bytes, const float* beta, Tensor* x, void* xs) {
    if (how != 1) return UNSUPPORTED;
    return run(handle, x, w, c, y, alpha, beta, room, bytes, ys, ws, xs, x,
               [](uint64_t x, uint64_t w, uint64_t y) { return Three{y, w, x}; });
}
int cudnnConvolutionBackwardFilter(void* handle, const float* alpha, Tensor* x, const void* xs, Tensor* y, const void* ys,
                                   Conv* c, int how, void* room, size_t bytes, const float* beta, Tensor* w, void* ws) {
    if (how != 1) return UNSUPPORTED;
    return run(handle, x, w, c, y, alpha, beta, room, bytes, xs, ys, ws, w,
               [](uint64_t x, uint64_t w, uint64_t y) { return Three{x, y, w}; });
}
#endif
#endif

#ifdef FAKE_BLASLT
enum { OK = 0, BAD = 7, UNSUPPORTED = 15 };

struct Layout { // columns first
    int type;
    uint64_t rows, columns;
    int64_t pitch;
    Type as() const { return type == 0 ? F32 : type == 2 ? F16 : BF16; }
};
struct Product {
    int compute, transposed[2];
};
struct Wishes {
    uint64_t workspace;
    uint32_t schemes;
};
struct Found {
    uint64_t how[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

size_t cublasLtGetVersion() { return size_t(setting("FAKE_BLASLT_VERSION", 130002)); }
int cublasLtCreate(void** handle) {
    const int code = setting("FAKE_BLASLT_CREATE", OK);
    if (code) return code;
    ++handles;
    *handle = &handles;
    return OK;
}
int cublasLtDestroy(void*) {
    --handles;
    released("cublasLt");
    return OK;
}
int cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t pitch) {
    if ((type != 0 && type != 2 && type != 14) || !rows || !columns || pitch != int64_t(rows)) return BAD;
    ++objects;
    *l = new Layout{type, rows, columns, pitch};
    return OK;
}
int cublasLtMatrixLayoutDestroy(Layout* l) {
    --objects;
    delete l;
    return OK;
}
int cublasLtMatmulDescCreate(Product** p, int compute, int scale) {
    if ((compute != 68 && compute != 77) || scale != 0) return BAD; // f32, or TF32
    ++objects;
    *p = new Product{compute, {0, 0}};
    return OK;
}
int cublasLtMatmulDescSetAttribute(Product* p, int which, const int32_t* how, size_t bytes) {
    if (bytes != 4 || (which != 3 && which != 4) || (*how != 0 && *how != 1)) return BAD;
    p->transposed[which - 3] = *how;
    return OK;
}
int cublasLtMatmulDescDestroy(Product* p) {
    --objects;
    delete p;
    return OK;
}
int cublasLtMatmulPreferenceCreate(Wishes** w) {
    ++objects;
    *w = new Wishes{0, 7};
    return OK;
}
int cublasLtMatmulPreferenceSetAttribute(Wishes* w, int which, const void* value, size_t bytes) {
    if (which == 1 && bytes == 8) memcpy(&w->workspace, value, 8);
    else if (which == 3 && bytes == 4) memcpy(&w->schemes, value, 4);
    else return BAD;
    return OK;
}
int cublasLtMatmulPreferenceDestroy(Wishes* w) {
    --objects;
    delete w;
    return OK;
}

static bool fits(const Product* p, const Layout* a, const Layout* b, const Layout* d) {
    const auto rows = [](const Layout* l, int t) { return t ? l->columns : l->rows; };
    const auto columns = [](const Layout* l, int t) { return t ? l->rows : l->columns; };
    return a->type == b->type && (d->type == a->type || d->type == 0) && (p->compute != 77 || a->type == 0) &&
           rows(a, p->transposed[0]) == d->rows && columns(b, p->transposed[1]) == d->columns &&
           columns(a, p->transposed[0]) == rows(b, p->transposed[1]);
}
int cublasLtMatmulAlgoGetHeuristic(void*, Product* p, Layout* a, Layout* b, Layout* c, Layout* d, Wishes* w, int asked,
                                   Found* found, int* count) {
    // Partial sums in f32 only: 2.
    if (!fits(p, a, b, d) || c != d || asked != 1 || w->schemes != 2 || w->workspace < WORKSPACE) return BAD;
    if (const int code = setting("FAKE_BLASLT_ALGORITHM", OK)) return code;
    *found = {{42}, WORKSPACE, OK, 1.0f, {}};
    *count = getenv("FAKE_BLASLT_NONE") ? 0 : 1;
    return OK;
}
#ifndef FAKE_WITHOUT_GRADIENTS
int cublasLtMatmul(void*, Product* p, const float* alpha, const void* as, Layout* a, const void* bs, Layout* b,
                   const float* beta, const void* cs, Layout* c, void* ds, Layout* d, const uint64_t* how, void* room,
                   size_t bytes, void* stream) {
    if (!fits(p, a, b, d) || c != d || cs != ds || *alpha != 1.0f || *beta != 0.0f || *how != 42 || stream != STREAM ||
        !space_is_good(room, bytes))
        return BAD;
    if (const int code = setting("FAKE_BLASLT_RUN", OK)) return code;
    const uint64_t inner = p->transposed[0] ? a->rows : a->columns;
    const auto at = [](const Layout* l, int t, uint64_t row, uint64_t column) {
        return t ? row * l->rows + column : column * l->rows + row;
    };
    for (uint64_t row = 0; row < d->rows; ++row)
        for (uint64_t column = 0; column < d->columns; ++column) {
            double sum = 0;
            for (uint64_t i = 0; i < inner; ++i)
                sum += double(number(as, at(a, p->transposed[0], row, i), a->as())) *
                       number(bs, at(b, p->transposed[1], i, column), b->as());
            store(ds, column * d->rows + row, d->as(), float(sum));
        }
    return OK;
}
#endif
#endif

} // extern "C"
