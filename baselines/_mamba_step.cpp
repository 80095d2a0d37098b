// One token through the middle of Mamba's layer, between its two large projections: convolution, selection, scan, gate.
// For each row, with states [D][N] and the last K inputs [D][K] moved on in place:
//
//   x = silu(bias + sum_k weight_k window_k)      (r, B, C) = W_x x      s = softplus(W_dt r + bias_dt)
//   h = exp(s A) h + s x B                        y = (C . h + D x) silu(z)
//
// A vector holds neighbouring channels, and in the scan neighbouring states of one channel. Rows are the threads' work.
#include "_series.h"

struct Step {
    int rows, channels, states, width, rank, threads;
    const float *xz;                                // [R][2 D]
    float *window, *state;                          // [R][D][K], [R][D][N]
    const float *weight, *bias;                     // of the convolution, [D][K] and [D]
    const float *select, *project, *project_bias;   // W_x [rank + 2 N][D], W_dt [D][rank] and its bias [D]
    const float *A_log, *D;                         // [D][N], [D]
    float *y;                                       // [R][D]
};

namespace {

// sum_i a_i b_i
INLINE float dot(const float *a, const float *b, int size) {
    vec total = {};
    for (int i = 0; i < size; i += LANES) {
        const Lanes lanes(i, size);
        total += lanes.read(a) * lanes.read(b);
    }
    return sum(total);
}

void convolve(const Step &s, const float *input, float *window, float *x) {
    const int K = s.width;
    for (int d = 0; d < s.channels; ++d) {
        float *last = window + d * K, p = s.bias[d];
        for (int k = 0; k + 1 < K; ++k) {
            last[k] = last[k + 1];
            p += s.weight[d * K + k] * last[k];
        }
        last[K - 1] = input[d];
        x[d] = p + s.weight[d * K + K - 1] * input[d];
    }
    for (int d = 0; d < s.channels; d += LANES) {
        const Lanes lanes(d, s.channels);
        const vec p = lanes.read(x);
        lanes.write(x, p * sigmoid(p));
    }
}

// The steps s [D] of the low rank r.
void time_steps(const Step &s, const float *r, float *steps) {
    for (int d = 0; d < s.channels; ++d) {
        steps[d] = s.project_bias[d];
        for (int i = 0; i < s.rank; ++i) steps[d] += s.project[d * s.rank + i] * r[i];
    }
    for (int d = 0; d < s.channels; d += LANES) {
        const Lanes lanes(d, s.channels);
        lanes.write(steps, softplus(lanes.read(steps)));
    }
}

// One channel: its states [N] move on; C . h.
INLINE float move(const Step &s, const float *A_log, const float *B, const float *C, float step, float u, float *h) {
    vec y = {};
    for (int n = 0; n < s.states; n += LANES) {
        const Lanes lanes(n, s.states);
        const vec decay = exp2_of_negative(-LOG2E * step * exp(lanes.read(A_log)));
        const vec moved = decay * lanes.read(h) + u * lanes.read(B);
        lanes.write(h, moved);
        y += moved * lanes.read(C);
    }
    return sum(y);
}

void step(const Step &s, int row) {
    const int D = s.channels, N = s.states, selected = s.rank + 2 * N;
    const float *input = s.xz + int64_t(row) * 2 * D, *z = input + D;
    float *h = s.state + int64_t(row) * D * N, *y = s.y + int64_t(row) * D;
    Buffer memory((2 * padded(D) + padded(selected)) / LANES);
    float *x = reinterpret_cast<float *>(memory.at), *steps = x + padded(D), *r = steps + padded(D), *B = r + s.rank;
    convolve(s, input, s.window + int64_t(row) * D * s.width, x);
    for (int i = 0; i < selected; ++i) r[i] = dot(s.select + i * D, x, D);
    time_steps(s, r, steps);
    for (int d = 0; d < D; ++d) y[d] = move(s, s.A_log + d * N, B, B + N, steps[d], steps[d] * x[d], h + d * N);
    for (int d = 0; d < D; d += LANES) {
        const Lanes lanes(d, D);
        const vec gate = lanes.read(z);
        lanes.write(y, (lanes.read(y) + lanes.read(s.D) * lanes.read(x)) * gate * sigmoid(gate));
    }
}

}  // namespace

extern "C" void mamba_step(const Step *s) {
    parallel(s->threads, s->rows, [&](int row) { step(*s, row); });
}
