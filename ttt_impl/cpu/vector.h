// Vectors of float as wide as the machine's, in the spelling that g++ and clang++ share, and what is computed with them.
// Arrays are processed in whole vectors: whoever owns a buffer pads its rows to a multiple of LANES.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#define INLINE inline __attribute__((always_inline))

// The next multiple of LANES.
constexpr int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

INLINE vec load(const float *x) {
    vec v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

INLINE void store(float *x, vec v) { std::memcpy(x, &v, sizeof v); }

INLINE vec splat(float x) { return x - vec{}; }

INLINE vec load_some(const float *x, int count) {
    vec v = {};
    std::memcpy(&v, x, sizeof(float) * count);
    return v;
}

INLINE void store_some(float *x, vec v, int count) { std::memcpy(x, &v, sizeof(float) * count); }

// Lanes I ... of a and b put together.
template <int... I>
INLINE vec pick(vec a, vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, ivec{I...});
#endif
}

// Sum over the lanes, in one fixed order: halves are added until one number is left.
template <int HALF = LANES / 2, int... I>
INLINE float sum(vec v, std::integer_sequence<int, I...> lanes) {
    v += pick(v, v, std::integer_sequence<int, (I + HALF) % LANES...>{});
    if constexpr (HALF > 1) return sum<HALF / 2>(v, lanes);
    else return v[0];
}
INLINE float sum(vec v) { return sum(v, std::make_integer_sequence<int, LANES>{}); }

// e^x within 2 units in the last place; NaN stays NaN, overflow is infinite, underflow zero.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its series, whose next term is below 2^-27.
INLINE vec exp(vec x) {
    const vec top = splat(88.722839f), bottom = splat(-87.336544f);
    vec bounded = x > top ? top : x;
    bounded = bounded < bottom ? bottom : bounded;
    const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vec shifted = bounded * 1.44269504f + magic;
    vec n = shifted - magic;
    vec r = bounded - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec series = splat(1.0f / 5040);
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = (series * r + 1.0f) * r + 1.0f;
    // 2^n in two factors, since 2^128 itself has no float.
    ivec whole = __builtin_convertvector(n, ivec), half = whole >> 1;
    ivec first = (half + 127) << 23, second = (whole - half + 127) << 23;
    vec a, b;
    std::memcpy(&a, &first, sizeof a);
    std::memcpy(&b, &second, sizeof b);
    vec y = series * a * b;
    y = x > top ? splat(__builtin_inff()) : y;
    y = x < bottom ? splat(0.0f) : y;
    return x == x ? y : x;
}

// 1 / sqrt x, lane by lane: correctly rounded roots, which compilers turn into one instruction.
INLINE vec reciprocal_root(vec x) {
    float root[LANES];
    store(root, x);
    for (int i = 0; i < LANES; ++i) root[i] = __builtin_sqrtf(root[i]);
    return 1.0f / load(root);
}

// e^x for x <= 0 (or NaN), within 2 units in the last place, underflow is zero: `exp` in half the instructions.
// x log2 e = n + r, |r| <= 1/2, the logarithm in two parts; 2^r by a polynomial, relative error 2e-9, then n is added to
// the exponent.
INLINE vec exp_of_negative(vec x) {
    const vec magic = splat(12582912.0f);  // as above; n is found in the lowest bits
    vec shifted = x * 1.44269502f + magic, r = x * 1.44269502f - (shifted - magic), scale;
    r = r + x * 1.92596299e-8f;
    vec series = splat(0.000153707048f);
    series = series * r + 0.00133998483f;
    series = series * r + 0.00961837325f;
    series = series * r + 0.0555032904f;
    series = series * r + 0.240226485f;
    series = series * r + 0.693147206f;
    series = series * r + 1.0f;
    ivec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000;
    std::memcpy(&scale, &bits, sizeof scale);
    return x < -87.336544f ? vec{} : series * scale;
}

INLINE vec sigmoid(vec x) {
    const vec e = exp_of_negative(x < 0.0f ? x : -x);
    return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

// Work items 0 .. count - 1 over threads; which thread takes which must not show in the results.
template <typename Work>
void parallel(int threads, int count, Work work) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count > 1)
#else
    (void)threads;
#endif
    for (int item = 0; item < count; ++item) work(item);
}
