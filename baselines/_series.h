// What the scans and the convolution share: series of tokens in memory, blocks of LANES channels, sums of parts.
#pragma once

#include "vector.h"

#include <algorithm>

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
