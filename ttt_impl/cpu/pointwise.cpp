// What lies between the products of a block, each in one pass over memory and each with its backward:
// RMSNorm, rotation, LayerNorm with its gate, SwiGLU. The convolutions are `convolve.cpp`'s.
#include "gelu.h"
#include "rows.h"

constexpr float EPSILON = 1e-6f;

// (x - mean)^2 in the first n lanes.
INLINE vec squared(const float *x, float mean, int n) {
    vec d = take(x, n) - mean;
    for (int j = n; j < LANES; ++j) d[j] = 0;
    return d * d;
}

extern "C" void silu_product(float *y, const float *gate, const float *up, int64_t rows, int64_t width, int64_t threads) {
    tokens(rows, threads, [&](int64_t t, int) {
        vectors(width, [&](int i, int n) {
            const vec x = take(gate + t * width + i, n);
            put(y + t * width + i, x * sigmoid(x) * take(up + t * width + i, n), n);
        });
    });
}

extern "C" void silu_product_backward(
    float *dgate, float *dup, const float *dy, const float *gate, const float *up, int64_t rows, int64_t width, int64_t threads) {
    tokens(rows, threads, [&](int64_t t, int) {
        vectors(width, [&](int i, int n) {
            const int64_t at = t * width + i;
            const vec x = take(gate + at, n), s = sigmoid(x), d = take(dy + at, n);
            put(dup + at, d * x * s, n);
            put(dgate + at, d * take(up + at, n) * s * (1.0f + x * (1.0f - s)), n);
        });
    });
}

// y = gelu(gate) * (weight * standardised x + bias); gate may be null.
extern "C" void gated_norm(
    float *y, const float *x, const float *gate, const float *weight, const float *bias, int64_t rows, int64_t width, int64_t threads) {
    tokens(rows, threads, [&](int64_t t, int) {
        const float *from = x + t * width;
        const float mean = total(width, [&](int i, int n) { return take(from + i, n); }) / width;
        const float square = total(width, [&](int i, int n) { return squared(from + i, mean, n); });
        const float rstd = 1.0f / __builtin_sqrtf(square / width + EPSILON);
        vectors(width, [&](int i, int n) {
            vec v = take(weight + i, n) * ((take(from + i, n) - mean) * rstd) + take(bias + i, n);
            if (gate) {
                const vec g = take(gate + t * width + i, n);
                v = v * g * gelu_sigmoid(g);
            }
            put(y + t * width + i, v, n);
        });
    });
}

// Sums of weight and bias come as [chunks, width] each.
extern "C" void gated_norm_backward(
    float *dx, float *dgate, float *dweight, float *dbias, const float *dy, const float *x, const float *gate,
    const float *weight, const float *bias, int64_t rows, int64_t width, int64_t threads) {
    tokens(rows, threads, [&](int64_t t, int chunk) {
        const float *from = x + t * width;
        float *to = dx + t * width, *dw = dweight + chunk * width, *db = dbias + chunk * width;
        const float mean = total(width, [&](int i, int n) { return take(from + i, n); }) / width;
        const float square = total(width, [&](int i, int n) { return squared(from + i, mean, n); });
        const float rstd = 1.0f / __builtin_sqrtf(square / width + EPSILON);
        vectors(width, [&](int i, int n) {
            const vec z = (take(from + i, n) - mean) * rstd, w = take(weight + i, n);
            vec d = take(dy + t * width + i, n);
            if (gate) {
                const vec g = take(gate + t * width + i, n), s = gelu_sigmoid(g);
                put(dgate + t * width + i, d * (w * z + take(bias + i, n)) * gelu_slope(g, s), n);
                d = d * g * s;
            }
            put(dw + i, take(dw + i, n) + d * z, n);
            put(db + i, take(db + i, n) + d, n);
            put(to + i, d * w, n);
        });
        const float first = total(width, [&](int i, int n) { return take(to + i, n); }) / width;
        const float second = total(width, [&](int i, int n) {
            return take(to + i, n) * (take(from + i, n) - mean) * rstd;
        }) / width;
        vectors(width, [&](int i, int n) {
            put(to + i, (take(to + i, n) - first - (take(from + i, n) - mean) * rstd * second) * rstd, n);
        });
    });
}

extern "C" void rms_norm(float *y, const float *x, const float *weight, int64_t rows, int64_t width, double eps, int64_t threads) {
    tokens(rows, threads, [&](int64_t t, int) {
        const float *from = x + t * width;
        const float square = total(width, [&](int i, int n) { return take(from + i, n) * take(from + i, n); });
        const float scale = 1.0f / __builtin_sqrtf(square / width + (float)eps);
        vectors(width, [&](int i, int n) { put(y + t * width + i, take(weight + i, n) * (take(from + i, n) * scale), n); });
    });
}

extern "C" void rms_norm_backward(
    float *dx, float *dweight, const float *dy, const float *x, const float *weight, int64_t rows, int64_t width, double eps,
    int64_t threads) {
    tokens(rows, threads, [&](int64_t t, int chunk) {
        const float *from = x + t * width, *d = dy + t * width;
        float *dw = dweight + chunk * width;
        const float square = total(width, [&](int i, int n) { return take(from + i, n) * take(from + i, n); });
        const float scale = 1.0f / __builtin_sqrtf(square / width + (float)eps);
        const float along = total(width, [&](int i, int n) { return take(weight + i, n) * take(d + i, n) * take(from + i, n); });
        const float back = along * scale * scale / width;
        vectors(width, [&](int i, int n) {
            const vec z = take(from + i, n), g = take(d + i, n);
            put(dw + i, take(dw + i, n) + g * z * scale, n);
            put(dx + t * width + i, (take(weight + i, n) * g - z * back) * scale, n);
        });
    });
}

// Pairs (a, b) of x, side by side, turned by angle (cos, sin): (a cos - b sin, b cos + a sin) where sign is -1, 1, -1 ...
template <int... I>
INLINE vec turned(vec x, vec angle, vec sign, std::integer_sequence<int, I...>) {
    const vec cosine = pick(angle, angle, std::integer_sequence<int, (I & ~1)...>{});
    const vec sine = pick(angle, angle, std::integer_sequence<int, (I | 1)...>{});
    return x * cosine + pick(x, x, std::integer_sequence<int, (I ^ 1)...>{}) * sine * sign;
}

// Pairs of x [rows, heads * f] turned by table [tokens of a row, f / 2] (cos and sin side by side), backward the other way.
extern "C" void rotate_pairs(
    float *y, const float *x, const float *table, int64_t rows, int64_t period, int64_t heads, int64_t width, int64_t back,
    int64_t threads) {
    vec sign;
    for (int i = 0; i < LANES; ++i) sign[i] = (i & 1) == back ? -1 : 1;
    tokens(rows, threads, [&](int64_t t, int) {
        const float *turn = table + t % period * width;
        for (int64_t h = 0; h < heads; ++h) {
            const int64_t at = (t * heads + h) * width;
            vectors(width, [&](int i, int n) {
                const vec pairs = take(x + at + i, n), angle = take(turn + i, n);
                put(y + at + i, turned(pairs, angle, sign, std::make_integer_sequence<int, LANES>{}), n);
            });
        }
    });
}
