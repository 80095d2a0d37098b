// One token through all blocks of a TTT model, the caches changed in place; parameters are read where the model has them.
//
// At batch 1 a token is a few thousand multiplications an operator: calling operators would take most of the time.
// Vectors lie along features here, the formulas are those of `../backbone.py`, `../layer.py` and `../step.py`.
#include <cmath>

#include "gelu.h"
#include "rows.h"
#include "tile.h"

constexpr float EPSILON = 1e-6f;

struct Block {  // pointers that a backbone does without are null
    const float *pre_norm, *pre_conv, *pre_bias, *seq_norm, *ffn_norm, *gate, *up, *down;
    const float *q, *k, *v, *o, *g, *conv_q, *bias_q, *conv_k, *bias_k;
    const float *lr_weight, *lr_bias, *token, *gamma, *beta, *post_weight, *post_bias;
    float *pre_past, *qk_past, *weights[2], *rows[4];
    double lr_scale;
};

struct Model {
    const Block *blocks;
    const float *norm, *rotations;  // [C]; cos and sin [K, f / 2, 2]
    const int64_t *fill;            // slots of the open mini-batch taken, per row
    float *h;                       // [B, C], embeddings in, normed output out
    int64_t count, batch, width, heads, inner, taps, size, mlp, threads;
    double eps;
};

static float dot(const float *a, const float *b, int n) {
    vec total[2] = {};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int j = 0; j < 2; ++j) total[j] += load(a + i + j * LANES) * load(b + i + j * LANES);
    vectors(n - i, [&](int j, int count) { total[0] += take(a + i + j, count) * take(b + i + j, count); });
    return sum(total[0] + total[1]);
}

static float total(const float *a, int n) {
    vec all = {};
    vectors(n, [&](int i, int count) { all += take(a + i, count); });
    return sum(all);
}

// y += scale x
static void add(float *y, const float *x, float scale, int n) {
    vectors(n, [&](int i, int count) { put(y + i, take(y + i, count) + scale * take(x + i, count), count); });
}

// y [B, out] = x [B, in] W^T, W [out, in]
static void linear(float *y, const float *x, const float *w, int batch, int in, int out, int threads) {
    constexpr int TOGETHER = 4, CHUNK = 64;
    auto some = [&](int chunk) {
        const int end = (chunk + 1) * CHUNK < out ? (chunk + 1) * CHUNK : out;
        for (int o = chunk * CHUNK; o < end; o += TOGETHER)
            for (int b = 0; b < batch; ++b) {
                if (o + TOGETHER > end) {
                    for (int i = o; i < end; ++i) y[b * out + i] = dot(w + (long)i * in, x + b * in, in);
                    continue;
                }
                vec all[TOGETHER] = {};
                vectors(in, [&](int i, int count) {
                    const vec part = take(x + b * in + i, count);
                    for (int j = 0; j < TOGETHER; ++j) all[j] += part * take(w + (long)(o + j) * in + i, count);
                });
                for (int j = 0; j < TOGETHER; ++j) y[b * out + o + j] = sum(all[j]);
            }
    };
    parallel((long)in * out > 1 << 17 ? threads : 1, (out + CHUNK - 1) / CHUNK, some);
}

// V whole vectors of columns (V = 0: the last columns, fewer than a vector) of two products x W with one W [rows, cols].
template <int V>
static void columns(float *y0, float *y1, const float *x0, const float *x1, const float *w, int rows, int cols, int some) {
    constexpr int N = V ? V : 1;
    vec all[2][N] = {};
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < N; ++j) {
            const vec row = take(w + (long)r * cols + j * LANES, V ? LANES : some);
            all[0][j] += x0[r] * row, all[1][j] += x1[r] * row;
        }
    for (int j = 0; j < N; ++j) {
        put(y0 + j * LANES, all[0][j], V ? LANES : some);
        put(y1 + j * LANES, all[1][j], V ? LANES : some);
    }
}

// y [cols] = x [rows] W, two such products at once (or twice the same); W [rows, cols]
static void products(float *y0, float *y1, const float *x0, const float *x1, const float *w, int rows, int cols) {
    int c = 0;
    for (; c + 4 * LANES <= cols; c += 4 * LANES) columns<4>(y0 + c, y1 + c, x0, x1, w + c, rows, cols, 0);
    for (; c + LANES <= cols; c += LANES) columns<1>(y0 + c, y1 + c, x0, x1, w + c, rows, cols, 0);
    if (c < cols) columns<0>(y0 + c, y1 + c, x0, x1, w + c, rows, cols, cols - c);
}

static void rms_norm(float *y, const float *x, const float *weight, int n, float eps) {
    const float scale = 1.0f / std::sqrt(dot(x, x, n) / n + eps);
    for (int i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * scale);
}

// x standardised in place; returns 1 / s.
static float standardise(float *x, int n) {
    const float mean = total(x, n) / n;
    for (int i = 0; i < n; ++i) x[i] -= mean;
    const float rstd = 1.0f / std::sqrt(dot(x, x, n) / n + EPSILON);
    for (int i = 0; i < n; ++i) x[i] *= rstd;
    return rstd;
}

// One channel-wise convolution at the newest of `taps` inputs.
static void convolve(float *y, const float *past, const float *x, const float *w, const float *bias, int taps, int n) {
    for (int c = 0; c < n; ++c) {
        float all = bias[c];
        for (int j = 0; j + 1 < taps; ++j) all += w[c * taps + j] * past[j * n + c];
        y[c] = all + w[c * taps + taps - 1] * x[c];
    }
}

static void remember(float *past, const float *x, int taps, int n) {
    if (taps < 2) return;
    std::memmove(past, past + n, sizeof(float) * (taps - 2) * n);
    std::memcpy(past + (taps - 2) * n, x, sizeof(float) * n);
}

static void rotate(float *x, const float *rotation, int width) {
    for (int i = 0; i < width; i += 2) {
        const float a = x[i], b = x[i + 1], c = rotation[i], s = rotation[i + 1];
        x[i] = a * c - b * s, x[i + 1] = a * s + b * c;
    }
}

static void gelu(float *y, float *slope, const float *x, int n) {
    vectors(n, [&](int i, int count) {
        const vec z = take(x + i, count), s = gelu_sigmoid(z);
        put(y + i, z * s, count);
        if (slope) put(slope + i, gelu_slope(z, s), count);
    });
}

// One head at one token: its rows in the state, its place in the mini-batch, its LN and rates.
struct Head {
    int f, h, place, size;
    float *weights[2], *rows[4];
    const float *gamma, *beta, *token;
    float lr, *room;

    float rate(int i) const { return std::fmax(1.0f / (i + 1) + token[i], 0.0f); }

    // Ghat of the newest row from z, which becomes x.
    void gradient(float *ghat, float *z, const float *k, const float *v) {
        const float rstd = standardise(z, f);
        for (int g = 0; g < f; ++g) ghat[g] = lr * gamma[g] * (gamma[g] * z[g] + beta[g] - (v[g] - k[g]));
        const float mean = total(ghat, f) / f, mean_x = dot(ghat, z, f) / f;
        for (int g = 0; g < f; ++g) ghat[g] = (ghat[g] - mean - z[g] * mean_x) * rstd;
    }

    // z -= rate sum_j (x . x_j) Ghat_j over the rows so far
    void read(float *z, const float *x, const float *keys, const float *ghat, int wide, int width) {
        for (int j = 0; j <= place; ++j) add(z, ghat + j * width, -rate(place) * dot(x, keys + j * wide, wide), width);
    }

    void answer(float *z, const float *q) {
        standardise(z, f);
        for (int g = 0; g < f; ++g) z[g] = q[g] + gamma[g] * z[g] + beta[g];
    }

    // W -= rate sum_j x_j^T Ghat_j, and empty rows
    void close(float *w, const float *x, const float *ghat, int rows, int columns) {
        for (int r = 0; r < rows; ++r)
            for (int j = 0; j < size; ++j) add(w + r * columns, ghat + j * columns, -rate(size - 1) * x[j * rows + r], columns);
    }

    // k and q are [f + 1] and end with 1; the answer is left in z.
    void linear(float *z, const float *k, const float *q, const float *v) {
        const int f1 = f + 1;
        float *x = room, *ghat = rows[1] + place * f;
        std::memcpy(rows[0] + place * f1, k, sizeof(float) * f1);
        products(x, z, k, q, weights[0], f1, f);
        gradient(ghat, x, k, v);
        read(z, q, rows[0], rows[1], f1, f);
        answer(z, q);
        if (place < size - 1) return;
        close(weights[0], rows[0], rows[1], f1, f);
        std::memset(rows[0], 0, sizeof(float) * size * f1), std::memset(rows[1], 0, sizeof(float) * size * f);
    }

    void mlp(float *z, const float *k, const float *q, const float *v) {
        const int f1 = f + 1, h1 = h + 1;
        float *x = room, *z1 = x + f, *z1_bar = z1 + h, *slope = z1_bar + h, *y2 = slope + h;
        float *ghat1 = rows[1] + place * h, *ghat2 = rows[2] + place * f, *x2 = rows[3] + place * h1;
        std::memcpy(rows[0] + place * f1, k, sizeof(float) * f1);
        products(z1, z1_bar, k, q, weights[0], f1, h);
        gelu(x2, slope, z1, h);
        x2[h] = y2[h] = 1;
        products(x, x, x2, x2, weights[1], h1, f);
        gradient(ghat2, x, k, v);
        for (int r = 0; r < h; ++r) ghat1[r] = slope[r] * dot(weights[1] + r * f, ghat2, f);
        read(z1_bar, q, rows[0], rows[1], f1, h);
        gelu(y2, nullptr, z1_bar, h);
        products(z, z, y2, y2, weights[1], h1, f);
        read(z, y2, rows[3], rows[2], h1, f);
        answer(z, q);
        if (place < size - 1) return;
        close(weights[0], rows[0], rows[1], f1, h);
        close(weights[1], rows[3], rows[2], h1, f);
        const int widths[] = {f1, h, f, h1};
        for (int i = 0; i < 4; ++i) std::memset(rows[i], 0, sizeof(float) * size * widths[i]);
    }
};

// All heads of one row: y [C] from q, k, v [C] and the layer's input u.
static void heads(float *y, float *q, float *k, const float *v, const float *u, const Block &x, const Model &m, int row, float *room) {
    const int f = m.width / m.heads, h = 4 * f, size = m.size, place = m.fill[row];
    float *wide_q = room, *wide_k = room + f + 1;
    wide_q[f] = wide_k[f] = 1;
    for (int head = 0; head < m.heads; ++head) {
        const int n = row * m.heads + head, at = head * f;
        const long wide[] = {f + 1, m.mlp ? h : f, f, h + 1};
        Head one = {f, h, place, size, {}, {}, x.gamma + at, x.beta + at, x.token, 0, wide_k + f + 1};
        const float gate = dot(u, x.lr_weight + head * m.width, m.width) + x.lr_bias[head];
        one.lr = x.lr_scale / (1.0f + std::exp(-gate));
        one.weights[0] = x.weights[0] + n * (f + 1) * wide[1];
        if (m.mlp) one.weights[1] = x.weights[1] + n * (h + 1) * (long)f;
        for (int i = 0; i < (m.mlp ? 4 : 2); ++i) one.rows[i] = x.rows[i] + n * size * wide[i];
        std::memcpy(wide_q, q + at, sizeof(float) * f), std::memcpy(wide_k, k + at, sizeof(float) * f);
        for (float *turned : {wide_q, wide_k}) rotate(turned, m.rotations + place * f, f);
        m.mlp ? one.mlp(y + at, wide_k, wide_q, v + at) : one.linear(y + at, wide_k, wide_q, v + at);
    }
}

// The layer's output [C] of one row before o_proj: LayerNorm, and the gate.
static void finish(float *y, const float *gate, const Block &x, int width) {
    standardise(y, width);
    for (int c = 0; c < width; ++c) y[c] = x.post_weight[c] * y[c] + x.post_bias[c];
    if (gate)
        vectors(width, [&](int i, int count) {
            const vec g = take(gate + i, count);
            put(y + i, take(y + i, count) * g * gelu_sigmoid(g), count);
        });
}

static void block(const Block &x, const Model &m, Scratch room) {
    const int batch = m.batch, width = m.width, inner = m.inner, taps = m.taps, all = batch * width, past = (taps - 1) * width;
    float *u = room.take(all), *q = room.take(all), *k = room.take(all), *v = room.take(all), *g = room.take(all);
    float *y = room.take(all), *gate = room.take(batch * inner), *up = room.take(batch * inner);
    float *shared = room.take(width), *head = room.take(24 * (width / m.heads) + 64);
    auto norm = [&](const float *weight) {
        for (int b = 0; b < batch; ++b) rms_norm(u + b * width, m.h + b * width, weight, width, m.eps);
    };
    auto apply = [&](float *to, const float *from, const float *w, int in, int out) {
        linear(to, from, w, batch, in, out, m.threads);
    };
    if (x.pre_norm) {
        norm(x.pre_norm);
        for (int b = 0; b < batch; ++b) {
            convolve(shared, x.pre_past + b * past, u + b * width, x.pre_conv, x.pre_bias, taps, width);
            remember(x.pre_past + b * past, u + b * width, taps, width);
            add(m.h + b * width, shared, 1, width);
        }
    }
    norm(x.seq_norm);
    apply(q, u, x.q, width, width);
    apply(v, u, x.v, width, width);
    if (x.k) apply(k, u, x.k, width, width);
    if (x.g) apply(g, u, x.g, width, width);
    for (int b = 0; b < batch; ++b) {
        float *row = q + b * width;
        if (x.conv_q) {
            std::memcpy(shared, row, sizeof(float) * width);
            convolve(row, x.qk_past + b * past, shared, x.conv_q, x.bias_q, taps, width);
            convolve(k + b * width, x.qk_past + b * past, shared, x.conv_k, x.bias_k, taps, width);
            remember(x.qk_past + b * past, shared, taps, width);
        }
        heads(y + b * width, row, k + b * width, v + b * width, u + b * width, x, m, b, head);
        finish(y + b * width, x.g ? g + b * width : nullptr, x, width);
    }
    apply(u, y, x.o, width, width);
    add(m.h, u, 1, all);
    norm(x.ffn_norm);
    apply(gate, u, x.gate, width, inner);
    apply(up, u, x.up, width, inner);
    vectors(batch * inner, [&](int i, int count) {
        const vec s = take(gate + i, count);
        put(gate + i, s * sigmoid(s) * take(up + i, count), count);
    });
    apply(y, gate, x.down, inner, width);
    add(m.h, y, 1, all);
}

extern "C" void ttt_decode(const Model *m) {
    const long all = m->batch * m->width;
    Scratch room(7 * all + 2 * m->batch * m->inner + m->width + 24 * m->width / m->heads + 512);
    for (int i = 0; i < m->count; ++i) block(m->blocks[i], *m, room);
    for (int b = 0; b < m->batch; ++b) {
        float *row = m->h + b * m->width;
        rms_norm(row, row, m->norm, m->width, m->eps);
    }
}
