// Vectors of LANES floats and of half as many doubles, by the compiler's own extension: AVX-512, AVX2, SSE2 or NEON.

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int64_t Longs __attribute__((vector_size(4 * LANES)));
constexpr int FLOATS = LANES, DOUBLES = LANES / 2;

// The same at any address.
typedef float AnyFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float HalfFloats __attribute__((vector_size(2 * LANES)));
typedef float AnyHalfFloats __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef double AnyDoubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

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

constexpr float LOG2_E = 1.44269504f;

// 2^x = 2^n 2^r with n whole and |r| <= 1/2. Adding 1.5 * 2^23 rounds to n and leaves n in the low bits, from where a
// shift brings it to the exponent. Below the clamp the result is of no weight, and no NaN is hidden.
// For x <= 1; relative error 2e-7.
INLINE Floats power_of_two(Floats x) {
    const float magic = 12582912.0f;
    x = x < -124.0f ? Floats{} - 124.0f : x;
    const Floats shifted = x + magic;
    const Floats r = x - (shifted - magic);
    Floats p = r * 0.00132029818f + 0.00967495237f;
    p = p * r + 0.0555104725f;
    p = p * r + 0.240221664f;
    p = p * r + 0.693146586f;
    p = p * r + 1.0f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}

// 1 / x for positive normal x, several times faster than a division: the bits of x from a constant are right to 12 %,
// and each step raises the error to its third power. Relative error 2e-7; NaN stays NaN.
INLINE Floats reciprocal(Floats x) {
    Floats guess = (Floats)(0x7EF311C7 - (Ints)x);
    for (int step = 0; step < 2; ++step) {
        const Floats error = 1.0f - x * guess;
        guess += guess * (error + error * error);
    }
    return guess;
}

// e^x to 1e-15 in the same way, by Taylor's series. For x <= 700.
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
