// The causal convolution of each channel with itself over time, if asked for with the SiLU after it:
//
//   p_t = bias + sum_j w_j x_{t - (taps - 1) + j}      y_t = p_t, or p_t sigmoid(p_t)
//
// A work item is a chunk of tokens of one row. Its backward computes p again, also of the taps - 1 tokens behind it,
// whose gradients reach into it, and keeps its own sums for w and bias, so threads do not show.
#include "rows.h"

#include <algorithm>
#include <type_traits>
#include <vector>

struct Convolution {      // mirrored by `convolve.py`
    const float *x, *past, *w, *bias;  // [B, L, C], [B, taps - 1, C] or null, [taps, C], [C]
    const int64_t *age;                // [B, L] or null: tokens of the same document before this one
    float *y, *dx, *dw, *dbias;        // [B, L, C] twice, [items, taps, C], [items, C]
    const float *dy;
    int64_t batch, length, width, taps, silu, threads;
};

namespace {

constexpr std::integral_constant<int64_t, 0> NONE;
constexpr std::integral_constant<int64_t, 4> USUAL;  // taps of all published models, known to the compiler

// One row, seen from a chunk that begins at token `start`.
struct Row : Convolution {
    const int64_t row, start;
    std::vector<const float *> inputs;  // of token start - (taps - 1) on, zeros where nothing is
    std::vector<float> zeros;

    Row(const Convolution &c, int64_t row, int64_t start) : Convolution(c), row(row), start(start), zeros(c.width) {
        for (int64_t t = start - (taps - 1); t < std::min(length, start + CHUNK + taps - 1); ++t)
            inputs.push_back(t >= 0 ? x + at(t) : past ? past + ((row + 1) * (taps - 1) + t) * width : zeros.data());
    }
    int64_t at(int64_t t) const { return (row * length + t) * width; }

    // The first tap of token t that may read: `age` hides what lies before it.
    int64_t first_tap(int64_t t) const { return age ? std::max<int64_t>(0, taps - 1 - age[row * length + t]) : 0; }

    // each(first, end, i, n): the taps of token t, and n of its channels from i on.
    template <typename Each>
    INLINE void channels(int64_t t, Each each) const {
        const int64_t first = first_tap(t);
        if (first == 0 && taps == USUAL) vectors(width, [&](int i, int n) { each(NONE, USUAL, i, n); });
        else vectors(width, [&](int i, int n) { each(first, taps, i, n); });
    }
    template <typename First, typename End>
    INLINE vec sum(int64_t t, First first, End end, int i, int n) const {
        const float *const *from = inputs.data() + (t - start);
        vec p = take(bias + i, n);
        for (int64_t j = first; j < end; ++j) p += take(w + j * width + i, n) * take(from[j] + i, n);
        return p;
    }
};

// Gradients of p of tokens [from, to), one row after the other: dy itself where there is no SiLU.
const float *behind_silu(const Row &c, int64_t from, int64_t to, std::vector<float> &room) {
    const float *dy = c.dy + c.at(from);
    if (!c.silu) return dy;
    room.resize((to - from) * c.width);
    for (int64_t t = from; t < to; ++t)
        c.channels(t, [&](auto first, auto end, int i, int n) {
            const vec p = c.sum(t, first, end, i, n), s = sigmoid(p);
            const int64_t at = (t - from) * c.width + i;
            put(room.data() + at, take(dy + at, n) * s * (1.0f + p * (1.0f - s)), n);
        });
    return room.data();
}

// dw [taps, C] and dbias [C], zeros at first, are this chunk's own.
void sums(const Row &c, int64_t from, int64_t to, const float *dp, float *dw, float *dbias) {
    for (int64_t t = from; t < to; ++t) {
        const float *const *inputs = c.inputs.data() + (t - from);
        c.channels(t, [&](auto first, auto end, int i, int n) {
            const vec d = take(dp + (t - from) * c.width + i, n);
            put(dbias + i, take(dbias + i, n) + d, n);
            for (int64_t j = first; j < end; ++j) {
                float *to = dw + j * c.width + i;
                put(to, take(to, n) + d * take(inputs[j] + i, n), n);
            }
        });
    }
}

// dx of tokens [from, to), which the tokens up to `reach` read: token t + k by tap `taps - 1 - k`.
void inputs_backward(const Row &c, int64_t from, int64_t to, int64_t reach, const float *dp) {
    const int64_t width = c.width;
    for (int64_t t = from; t < to; ++t) {
        const int64_t readers = std::min(c.taps, reach - t);
        const auto gather = [&](auto count, auto hidden) {
            vectors(width, [&](int i, int n) {
                vec dx = {};
                for (int64_t k = 0; k < count; ++k)
                    if (!hidden || c.taps - 1 - k >= c.first_tap(t + k))
                        dx += take(c.w + (c.taps - 1 - k) * width + i, n) * take(dp + (t + k - from) * width + i, n);
                put(c.dx + c.at(t) + i, dx, n);
            });
        };
        if (c.age) gather(readers, std::true_type());
        else if (readers == USUAL) gather(USUAL, std::false_type());
        else gather(readers, std::false_type());
    }
}

template <typename Each>
void chunks(const Convolution &c, Each each) {
    const int64_t count = (c.length + CHUNK - 1) / CHUNK;
    parallel(c.threads, c.batch * count, [&](int item) {
        const int64_t from = item % count * CHUNK;
        each(Row(c, item / count, from), item, from, std::min(c.length, from + CHUNK));
    });
}

}  // namespace

extern "C" void convolve(const Convolution *c) {
    chunks(*c, [](const Row &row, int, int64_t from, int64_t to) {
        for (int64_t t = from; t < to; ++t)
            row.channels(t, [&](auto first, auto end, int i, int n) {
                const vec p = row.sum(t, first, end, i, n);
                put(row.y + row.at(t) + i, row.silu ? p * sigmoid(p) : p, n);
            });
    });
}

extern "C" void convolve_backward(const Convolution *c) {
    chunks(*c, [](const Row &row, int item, int64_t from, int64_t to) {
        const int64_t reach = std::min(row.length, to + row.taps - 1);
        std::vector<float> room;
        const float *dp = behind_silu(row, from, reach, room);
        sums(row, from, to, dp, row.dw + item * row.taps * row.width, row.dbias + item * row.width);
        inputs_backward(row, from, to, reach, dp);
    });
}
