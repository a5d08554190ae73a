// Vectors of 16 floats and of 8 doubles, by the compiler's own extension: it makes AVX-512, AVX2, SSE2 or NEON of them.
#pragma once

#include <cstdint>

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))

// One library for all x86-64 machines: the loader takes the clone for its processor. Needs glibc's ifunc.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(BIWKV_NO_CLONES)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
constexpr int FLOATS = 16, DOUBLES = 8;

// The same at any address.
typedef float AnyFloats __attribute__((vector_size(64), aligned(4), may_alias));
typedef float HalfFloats __attribute__((vector_size(32)));
typedef float AnyHalfFloats __attribute__((vector_size(32), aligned(4), may_alias));
typedef double AnyDoubles __attribute__((vector_size(64), aligned(8), may_alias));

INLINE Floats load(const float* p) { return *reinterpret_cast<const AnyFloats*>(p); }
INLINE void store(float* p, Floats x) { *reinterpret_cast<AnyFloats*>(p) = x; }

INLINE Doubles load(const double* p) { return *reinterpret_cast<const AnyDoubles*>(p); }
INLINE void store(double* p, Doubles x) { *reinterpret_cast<AnyDoubles*>(p) = x; }
INLINE Doubles widen(const float* p) {
    return __builtin_convertvector(HalfFloats(*reinterpret_cast<const AnyHalfFloats*>(p)), Doubles);
}
INLINE void narrow(float* p, Doubles x) {
    *reinterpret_cast<AnyHalfFloats*>(p) = __builtin_convertvector(x, HalfFloats);
}

template <class V>
INLINE V larger(V a, V b) {
    return a > b ? a : b;
}

// e^x = 2^n e^r with n whole and |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds to n and leaves n in the low bits, from
// where a shift brings it to the exponent. Below the clamp the result is of no weight, and no NaN is hidden.
// For x <= 1; relative error 2e-7.
INLINE Floats exponential(Floats x) {
    const float magic = 12582912.0f;
    x = x < -86.0f ? Floats{} - 86.0f : x;
    const Floats shifted = x * 1.44269504f + magic;
    const Floats r = x - (shifted - magic) * 0.693147182f;
    Floats p = r * 0.00137488230f + 0.00836962834f;
    p = p * r + 0.0416696444f;
    p = p * r + 0.166665122f;
    p = p * r + 0.499999881f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}

// The same to 1e-15, by Taylor's series. For x <= 700.
INLINE Doubles exponential(Doubles x) {
    const double magic = 6755399441055744.0;
    x = x < -700.0 ? Doubles{} - 700.0 : x;
    const Doubles shifted = x * 1.4426950408889634 + magic;
    const Doubles n = shifted - magic;
    const Doubles r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    Doubles p = r * (1.0 / 479001600) + 1.0 / 39916800;
    const double factors[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                              1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
    for (double factor : factors) p = p * r + factor;
    return (Doubles)((Longs)p + ((Longs)shifted << 52));
}
