// What an operator is asked, and how one mini-batch of one head comes into cache and goes out again.
//
// A segment is a run of tokens of one row that share fast weights: a whole row, the tokens of a row behind its padding,
// or one of several documents packed in a row. Its first mini-batch may hold tokens from before (`taken`), its last may
// stay open. A work item is a head of a segment.
#pragma once

#include "tile.h"

struct View {  // of tensors [B, H, L, f], or [B, H, L] for one number a token
    float *x;
    int64_t batch, head, token;
    float *at(long row, int h, long t) const { return x + row * batch + h * head + t * token; }
};

struct Segment {
    int64_t row, first, tokens, taken, before;  // `before`: mini-batches of all earlier segments
};

struct Problem {  // mirrored by `arguments.py`
    View q, k, v, lr;
    const float *tok, *gamma, *beta;  // [K], [H, f], [H, f]
    const Segment *segments;
    int64_t count, heads, width, size, threads;

    int lanes() const { return padded(size); }
    int items() const { return count * heads; }
    const Segment &segment(int item) const { return segments[item / heads]; }
    int head(int item) const { return item % heads; }
};

// Fast weights and rows in the order of `../state.py`: W, or W1 and W2; keys and Ghat, or keys, Ghat1, Ghat2 and x2.
// N work items, M mini-batches of all segments together, P lanes. Any pointer but `start` may be null.
struct Forward {
    Problem p;
    View out;
    const float *start[2];  // [N, rows, columns]
    const float *rows[4];   // of the open mini-batch before, [N, K, columns]
    float *end[2], *end_rows[4];
    float *tiles[2], *checkpoints[2];  // for backward: Ghat [M, H, columns, P], weights [., H, rows, columns]
    int64_t keep_full;                 // write the rows of the last mini-batch even if it is full
};

struct Backward {
    Problem p;
    View dout, dq, dk, dv, dlr;
    const float *end[2], *tiles[2], *checkpoints[2];
    float *dstart[2], *dtok, *dgamma, *dbeta;  // [N, rows, columns], [N, K], [N, f], [N, f]
};

// Mini-batches between two checkpoints: undoing so many updates costs no visible accuracy.
constexpr int EVERY = 64;

// Mini-batch m of a segment: which of its slots the segment's tokens fill, and which token is the first of them.
struct MiniBatch {
    MiniBatch(const Segment &s, int m, int size) {
        const long begin = (long)m * size, end = s.taken + s.tokens;
        low = m == 0 ? s.taken : 0;
        high = end - begin < size ? end - begin : size;
        token = s.first + begin + low - s.taken;
        full = high == size;
        index = s.before + m;
    }
    static int count(const Segment &s, int size) { return (s.taken + s.tokens + size - 1) / size; }
    int low, high;
    long token, index;
    bool full;
};

// The places of saved rows and of weights in memory, of a mini-batch of one head.
inline long tile_of(const Problem &p, const MiniBatch &b, int head, int width) {
    return (b.index * p.heads + head) * width * p.lanes();
}

inline long checkpoint_of(const Problem &p, const MiniBatch &b, int head, int numbers) {
    return ((b.index / EVERY - 1) * p.heads + head) * numbers;
}

// Tokens of a view in the lanes of a tile [f, ld]; zeros in slots that are not theirs.
inline void read(float *tile, int ld, const View &x, const Segment &s, int head, const MiniBatch &b, const Problem &p) {
    turn(tile, ld, x.at(s.row, head, b.token), x.token, b.low, b.high, p.lanes(), p.width);
}

inline void write(const View &x, const float *tile, int ld, const Segment &s, int head, const MiniBatch &b, int width) {
    turn_back(x.at(s.row, head, b.token), x.token, tile, ld, b.low, b.high, width);
}

// One number a token.
inline void read_numbers(float *lanes, const View &x, const Segment &s, int head, const MiniBatch &b, const Problem &p) {
    for (int i = 0; i < p.lanes(); ++i)
        lanes[i] = i < b.low || i >= b.high ? 0 : *x.at(s.row, head, b.token + i - b.low);
}

inline void write_numbers(const View &x, const float *lanes, const Segment &s, int head, const MiniBatch &b) {
    for (int i = b.low; i < b.high; ++i) *x.at(s.row, head, b.token + i - b.low) = lanes[i];
}

// The column of ones that makes the bias the last row of its weight, here a row of the tile.
inline void read_ones(float *lanes, const MiniBatch &b, const Problem &p) {
    for (int i = 0; i < p.lanes(); ++i) lanes[i] = i >= b.low && i < b.high;
}

// k and q, each with its row of ones, side by side in [f + 1, 2 P]; t = v - k in [f, P].
inline void read_inputs(
    float *kq, float *target, float *lr, const Segment &s, int head, const MiniBatch &b, const Problem &p) {
    const int f = p.width, lanes = p.lanes(), ld = 2 * lanes;
    read(kq, ld, p.k, s, head, b, p);
    read(kq + lanes, ld, p.q, s, head, b, p);
    read_ones(kq + f * ld, b, p);
    read_ones(kq + f * ld + lanes, b, p);
    read(target, lanes, p.v, s, head, b, p);
    subtract(target, lanes, kq, ld, f, lanes, 1);
    read_numbers(lr, p.lr, s, head, b, p);
}

// Rows [K, width] that the open mini-batch already held join the tile, whose lanes are still empty there.
inline void join(float *tile, int ld, const float *rows, int width, const Segment &s, float *room, const Problem &p) {
    const int lanes = p.lanes();
    turn(room, lanes, rows, width, 0, s.taken, lanes, width);
    for (int r = 0; r < width; ++r)
        for (int i = 0; i < lanes; i += LANES) {
            float *to = tile + r * ld + i;
            store(to, load(to) + load(room + r * lanes + i));
        }
}

// scores^T [j, i] = tok[i] x[j, i] for j <= i < K, else 0.
inline void causal(float *scores, const Problem &p) {
    const int lanes = p.lanes();
    for (int j = 0; j < p.size; ++j)
        for (int i = 0; i < lanes; ++i) scores[j * lanes + i] = i < j || i >= p.size ? 0 : p.tok[i] * scores[j * lanes + i];
}

// Backward of `causal`: dscores^T before the rates, and what these gather, given the scores before them.
inline void causal_backward(float *dscores, const float *raw, float *dtok, const Problem &p) {
    const int lanes = p.lanes();
    for (int j = 0; j < p.size; ++j)
        for (int i = j; i < lanes; ++i) dtok[i] += dscores[j * lanes + i] * raw[j * lanes + i];
    causal(dscores, p);
}

// Fast weights between memory [rows, width] and scratch, where rows are whole vectors with zeros at the end.
inline void copy_in(float *to, const float *from, int rows, int width) {
    const int ld = padded(width);
    for (int r = 0; r < rows; ++r) {
        std::memcpy(to + r * ld, from + r * width, sizeof(float) * width);
        std::memset(to + r * ld + width, 0, sizeof(float) * (ld - width));
    }
}

inline void copy_out(float *to, const float *from, int rows, int width) {
    for (int r = 0; r < rows; ++r) std::memcpy(to + r * width, from + r * padded(width), sizeof(float) * width);
}
