// Mamba's short causal convolution of each channel with itself, and the SiLU after it:
//
//   p_t = bias + sum_k weight_k x_{t - K + 1 + k}      y_t = p_t sigmoid(p_t)
//
// Tokens are cut into chunks, and rows and chunks are the threads' work items. The backward computes p again, also of
// the K - 1 tokens after a chunk, whose gradients reach into it. Each chunk has its own sums for weight and bias, which
// are then added in one order: the bits do not depend on the number of threads.
#include "_series.h"

namespace {

constexpr int STEPS = 64;  // tokens in a chunk

}  // namespace

struct Convolution {
    int rows, length, channels, width, threads;
    Series x, past;             // [R][L][D]; what came before, [R][K - 1][D]
    const float *weight, *bias; // [K][D], [D]
    Series y;                   // [R][L][D]; in the backward its gradient
    Series dx;                  // [R][L][D]
    float *dweight, *dbias;     // [K][D], [D]
};

namespace {

int chunks_of(const Convolution &c) { return (c.length + STEPS - 1) / STEPS; }

INLINE const float *input(const Convolution &c, int row, int t) {
    return t < 0 ? c.past.at(row, t + c.width - 1) : c.x.at(row, t);
}

// p_t of one block.
INLINE vec convolved(const Convolution &c, const Lanes &lanes, int row, int t) {
    vec p = lanes.read(c.bias);
    for (int k = 0; k < c.width; ++k)
        p += lanes.read(c.weight + k * c.channels) * lanes.read(input(c, row, t - c.width + 1 + k));
    return p;
}

void forward(const Convolution &c, int row, int from, int to) {
    for (int t = from; t < to; ++t)
        for (int channel = 0; channel < c.channels; channel += LANES) {
            const Lanes lanes(channel, c.channels);
            const vec p = convolved(c, lanes, row, t);
            lanes.write(c.y.at(row, t), p * sigmoid(p));
        }
}

// dweight and dbias, one after the other, are this chunk's own.
void backward(const Convolution &c, int row, int from, int to, float *dweight) {
    const int K = c.width, reach = std::min(c.length, to + K - 1);
    Buffer dp(STEPS + K - 1), sums(K + 1);
    for (int channel = 0; channel < c.channels; channel += LANES) {
        const Lanes lanes(channel, c.channels);
        std::fill_n(sums.at, K + 1, vec{});
        for (int t = from; t < reach; ++t) {
            const vec p = convolved(c, lanes, row, t), s = sigmoid(p);
            dp.at[t - from] = lanes.read(c.y.at(row, t)) * s * (1.0f + p * (1.0f - s));
        }
        for (int t = from; t < to; ++t) {
            vec dx = {};
            for (int k = 0; k < K && t + k < reach; ++k)
                dx += dp.at[t + k - from] * lanes.read(c.weight + (K - 1 - k) * c.channels);
            lanes.write(c.dx.at(row, t), dx);
            for (int k = 0; k < K; ++k) sums.at[k] += dp.at[t - from] * lanes.read(input(c, row, t - K + 1 + k));
            sums.at[K] += dp.at[t - from];
        }
        for (int k = 0; k <= K; ++k) lanes.write(dweight + k * c.channels, sums.at[k]);
    }
}

template <typename Work>
void over_chunks(const Convolution &c, Work work) {
    const int chunks = chunks_of(c);
    parallel(c.threads, c.rows * chunks, [&](int item) {
        const int from = item % chunks * STEPS;
        work(item, item / chunks, from, std::min(c.length, from + STEPS));
    });
}

}  // namespace

extern "C" void conv_forward(const Convolution *c) {
    over_chunks(*c, [&](int, int row, int from, int to) { forward(*c, row, from, to); });
}

extern "C" void conv_backward(const Convolution *c) {
    const int64_t size = int64_t(c->width + 1) * c->channels, items = c->rows * chunks_of(*c);
    float *parts = new float[items * size];
    over_chunks(*c, [&](int item, int row, int from, int to) { backward(*c, row, from, to, parts + item * size); });
    add_up(parts, items, size, c->width * c->channels, c->dweight);
    add_up(parts + c->width * c->channels, items, size, c->channels, c->dbias);
    delete[] parts;
}
