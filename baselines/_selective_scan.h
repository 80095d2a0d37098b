// What the selective scan is asked, and how it is cut: into rows, groups of blocks of channels, chunks of tokens.
#pragma once

#include "_series.h"

constexpr int STEPS = 32;         // tokens in a chunk
constexpr int GROUP_BLOCKS = 12;  // most blocks in a group

struct Problem {
    int rows, length, channels, states, threads;
    Series x, dt, z, B, C;           // x, dt, z [R][L][D]; B, C [R][L][N]
    const float *A, *D, *bias;       // [D][N], [D], [D]
    const float *state;              // [R][D][N]: before the first token
    float *starts;                   // [R][chunks][blocks][N][LANES], kept for the backward, or null
    Series y;                        // [R][L][D]
    float *last;                     // [R][D][N]: after the last token
};

struct Gradients {
    Series y;                        // of y, given
    const float *last;               // of the last state, given
    Series x, dt, z;                 // to be filled, as are all below
    float *B, *C;                    // [R][L][N]
    float *A, *D, *bias, *state;
};

inline int chunks_of(const Problem &p) { return (p.length + STEPS - 1) / STEPS; }
inline int blocks_of(const Problem &p) { return (p.channels + LANES - 1) / LANES; }
inline int groups_of(const Problem &p) { return (blocks_of(p) + GROUP_BLOCKS - 1) / GROUP_BLOCKS; }

// The channels of one block of one row.
struct Block : Lanes {
    const Problem &p;
    const int row;

    Block(const Problem &p, int row, int index) : Lanes(index * LANES, p.channels), p(p), row(row) {}

    using Lanes::read, Lanes::write;
    INLINE vec read(const Series &series, int t) const { return read(series.at(row, t)); }
    INLINE void write(const Series &series, int t, vec v) const { write(series.at(row, t), v); }
    // Fetches what the next block will read or write at token t: tokens lie too far apart for the machine to guess it.
    INLINE void fetch_next(const Series &series, int t) const { __builtin_prefetch(series.at(row, t) + first + LANES); }

    // [D][N] <-> [N][LANES]
    void gather(const float *x, vec *to) const {
        for (int n = 0; n < p.states; ++n) {
            float lanes[LANES] = {};
            for (int i = 0; i < count; ++i) lanes[i] = x[int64_t(first + i) * p.states + n];
            to[n] = load(lanes);
        }
    }
    void scatter(const vec *from, float *x) const {
        for (int n = 0; n < p.states; ++n) {
            float lanes[LANES];
            store(lanes, from[n]);
            for (int i = 0; i < count; ++i) x[int64_t(first + i) * p.states + n] = lanes[i];
        }
    }
    int64_t state_offset() const { return int64_t(row) * p.channels * p.states; }
};

// One row and one group of blocks.
struct Item {
    int row, first, end;
    Item(const Problem &p, int item) {
        const int groups = groups_of(p), group = item % groups, blocks = blocks_of(p);
        row = item / groups, first = blocks * group / groups, end = blocks * (group + 1) / groups;
    }
};

inline float *start_of(const Problem &p, const Block &block, int chunk) {
    return p.starts + ((int64_t(block.row) * chunks_of(p) + chunk) * blocks_of(p) * LANES + block.first) * p.states;
}
