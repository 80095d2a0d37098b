// What the operators share: two functions, series of tokens in memory, blocks of LANES channels, sums of parts.
#pragma once

#include "vector.h"

#include <algorithm>

constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

// 2^x for x <= 0 (or NaN), within 2 units in the last place, zero below 2^-115: all smaller ones forget as zero does,
// and zero makes no subnormal numbers, which are slow. x = n + r, |r| <= 1/2; 2^r by the polynomial of least relative
// error, 9e-8, then n is added to the exponent.
INLINE vec exp2_of_negative(vec x) {
    const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, found in the lowest bits
    vec shifted = x + magic, r = x - (shifted - magic), scale;
    vec series = splat(0.001326472731f);
    series = series * r + 0.00967151299f;
    series = series * r + 0.0555073358f;
    series = series * r + 0.240222424f;
    series = series * r + 0.693147004f;
    series = series * r + 1.0f;
    ivec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000;
    std::memcpy(&scale, &bits, sizeof scale);
    return x < -115.0f ? vec{} : series * scale;
}

// log(1 + e^x) = max(x, 0) + 2 artanh(e / (2 + e)) with e = e^-|x|, the series to s^15 / 15, s <= 1/3. Its slope is
// sigmoid(x).
INLINE vec softplus(vec x, vec &slope) {
    vec e = exp_of_negative(x < 0.0f ? x : -x), s = e / (e + 2.0f), square = s * s;
    vec series = splat(1.0f / 15);
    series = series * square + 1.0f / 13;
    series = series * square + 1.0f / 11;
    series = series * square + 1.0f / 9;
    series = series * square + 1.0f / 7;
    series = series * square + 1.0f / 5;
    series = series * square + 1.0f / 3;
    series = series * square + 1.0f;
    slope = (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
    return (x < 0.0f ? vec{} : x) + 2.0f * s * series;
}

INLINE vec softplus(vec x) {
    vec slope;
    return softplus(x, slope);
}

// Values [rows][tokens] of contiguous channels or states; rows and tokens may lie any way apart.
struct Series {
    float *data;
    int64_t row, token;
    float *at(int64_t r, int64_t t) const { return data + r * row + t * token; }
};

// LANES channels from `first` on, or fewer at the end.
struct Lanes {
    const int first, count;
    Lanes(int first, int channels) : first(first), count(std::min(LANES, channels - first)) {}

    INLINE vec read(const float *x) const { return count == LANES ? load(x + first) : load_some(x + first, count); }
    INLINE void write(float *x, vec v) const {
        if (count == LANES) store(x + first, v);
        else store_some(x + first, v, count);
    }
};

// Vectors of zeros.
struct Buffer {
    vec *const at;
    explicit Buffer(int64_t size) : at(new vec[size]()) {}
    Buffer(const Buffer &) = delete;
    ~Buffer() { delete[] at; }
};

// total [size] = the sum of `count` parts, which lie `stride` apart.
inline void add_up(const float *parts, int64_t count, int64_t stride, int64_t size, float *total) {
    std::copy_n(parts, size, total);
    for (int64_t part = 1; part < count; ++part)
        for (int64_t i = 0; i < size; ++i) total[i] += parts[part * stride + i];
}
