// What lies between the products of a TTT block, each in one pass over memory and each with its backward:
// RMSNorm, the causal convolutions with the rotation behind them, LayerNorm with its gate, SwiGLU.
#include "gelu.h"
#include "tile.h"

constexpr float EPSILON = 1e-6f;
constexpr int CHUNK = 32;  // tokens of a work item; sums over tokens are kept per chunk, so threads do not show

template <typename Each>
INLINE void vectors(int n, Each each) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) each(i, LANES);
    if (i < n) each(i, n - i);
}
INLINE vec take(const float *x, int count) { return count == LANES ? load(x) : load_some(x, count); }
INLINE void put(float *x, vec v, int count) { count == LANES ? store(x, v) : store_some(x, v, count); }

// Sum over i of term(i, count), n numbers.
template <typename Term>
INLINE float total(int n, Term term) {
    vec all[2] = {};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) all[0] += term(i, LANES), all[1] += term(i + LANES, LANES);
    vectors(n - i, [&](int j, int count) { all[0] += term(i + j, count); });
    return sum(all[0] + all[1]);
}

// (x - mean)^2 in the first n lanes.
INLINE vec squared(const float *x, float mean, int n) {
    vec d = take(x, n) - mean;
    for (int j = n; j < LANES; ++j) d[j] = 0;
    return d * d;
}

// Tokens in chunks over threads.
template <typename Each>
static void tokens(int64_t count, int64_t threads, Each each) {
    parallel(threads, (count + CHUNK - 1) / CHUNK, [&](int chunk) {
        for (int64_t t = (int64_t)chunk * CHUNK; t < count && t < (chunk + 1L) * CHUNK; ++t) each(t, chunk);
    });
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

// Pairs of x [rows, heads * f] turned by table [tokens of a row, f / 2] (cos and sin side by side), backward the other way.
extern "C" void rotate_pairs(
    float *y, const float *x, const float *table, int64_t rows, int64_t period, int64_t heads, int64_t width, int64_t back,
    int64_t threads) {
    tokens(rows, threads, [&](int64_t t, int) {
        const float *turn = table + t % period * width, sign = back ? -1 : 1;
        for (int64_t h = 0; h < heads; ++h) {
            const float *from = x + (t * heads + h) * width;
            float *to = y + (t * heads + h) * width;
            for (int64_t i = 0; i < width; i += 2) {
                const float a = from[i], b = from[i + 1], c = turn[i], s = sign * turn[i + 1];
                to[i] = a * c - b * s, to[i + 1] = a * s + b * c;
            }
        }
    });
}

// The convolution over time of `../convolution.py`: x, y [B, L, C], past [B, taps - 1, C] or null, w [taps, C], bias [C],
// age [B, L] or null. Sums of w and bias come a row apart: [B, taps, C] and [B, C].
struct Convolution {
    const float *x, *past, *w, *bias;
    const int64_t *age;
    float *y, *dx, *dw, *dbias;
    const float *dy;
    int64_t batch, length, width, taps, threads;
};

// Each work item is a row and a block of channels.
template <typename Each>
static void channels(const Convolution &a, Each each) {
    constexpr int BLOCK = 4 * LANES;
    const int blocks = (a.width + BLOCK - 1) / BLOCK;
    parallel(a.threads, a.batch * blocks, [&](int item) {
        const int first = item % blocks * BLOCK;
        vectors(a.width - first < BLOCK ? a.width - first : BLOCK, [&](int i, int n) { each(item / blocks, first + i, n); });
    });
}

extern "C" void convolve(const Convolution *c) {
    const Convolution a = *c;
    const int64_t before = a.taps - 1;
    channels(a, [&](int64_t row, int channel, int n) {
        const float *x = a.x + row * a.length * a.width + channel;
        const float *past = a.past ? a.past + row * before * a.width + channel : nullptr;
        float *y = a.y + row * a.length * a.width + channel;
        const vec bias = take(a.bias + channel, n);
        for (int64_t t = 0; t < a.length; ++t) {
            vec sum = bias;
            for (int64_t j = 0; j < a.taps; ++j) {
                const int64_t from = t - before + j;
                if (a.age && a.age[row * a.length + t] < before - j) continue;
                if (from < 0 && !past) continue;
                const float *at = from < 0 ? past + (from + before) * a.width : x + from * a.width;
                sum += take(a.w + j * a.width + channel, n) * take(at, n);
            }
            put(y + t * a.width, sum, n);
        }
    });
}

extern "C" void convolve_backward(const Convolution *c) {
    const Convolution a = *c;
    const int64_t before = a.taps - 1;
    channels(a, [&](int64_t row, int channel, int n) {
        const int64_t at = row * a.length * a.width + channel;
        const float *past = a.past ? a.past + row * before * a.width + channel : nullptr;
        vec dbias = {};
        for (int64_t t = 0; t < a.length; ++t) dbias += take(a.dy + at + t * a.width, n);
        put(a.dbias + row * a.width + channel, dbias, n);
        for (int64_t j = 0; j < a.taps; ++j) {
            vec dw = {};
            for (int64_t t = 0; t < a.length; ++t) {
                const int64_t from = t - before + j;
                if ((a.age && a.age[row * a.length + t] < before - j) || (from < 0 && !past)) continue;
                const float *x = from < 0 ? past + (from + before) * a.width : a.x + at + from * a.width;
                dw += take(x, n) * take(a.dy + at + t * a.width, n);
            }
            put(a.dw + (row * a.taps + j) * a.width + channel, dw, n);
        }
        for (int64_t t = 0; t < a.length; ++t) {
            vec dx = {};
            for (int64_t j = 0; j < a.taps; ++j) {
                const int64_t to = t + before - j;
                if (to >= a.length || (a.age && a.age[row * a.length + to] < before - j)) continue;
                dx += take(a.w + j * a.width + channel, n) * take(a.dy + at + to * a.width, n);
            }
            put(a.dx + at + t * a.width, dx, n);
        }
    });
}
