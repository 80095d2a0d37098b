// Small matrices that stay in cache: their products, and the turn between tokens in rows and tokens in lanes.
//
// A tile of a mini-batch has tokens in its lanes: [f, P], P the mini-batch size in whole vectors. What is one number a
// token (a mean, a learning rate) is then a vector, sums over features are sums of vectors, and the width f is free.
#pragma once

#include <cstdlib>

#include "vector.h"

// A matrix that is read number by number, at any strides: its transpose costs nothing.
struct Left {
    const float *x;
    long row, column;
    Left transposed() const { return {x, column, row}; }
};

// R rows and V vectors of C = [C +] scale A B: R V running sums in registers.
template <int R, int V>
INLINE void block(float *c, long ldc, Left a, const float *b, long ldb, int inner, float scale, bool add) {
    vec total[R][V] = {};
    for (int k = 0; k < inner; ++k) {
        vec row[V];
        for (int v = 0; v < V; ++v) row[v] = load(b + k * ldb + v * LANES);
        for (int r = 0; r < R; ++r) {
            vec x = splat(a.x[r * a.row + k * a.column]);
            for (int v = 0; v < V; ++v) total[r][v] += x * row[v];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
            float *to = c + r * ldc + v * LANES;
            store(to, add ? load(to) + scale * total[r][v] : scale * total[r][v]);
        }
}

template <int R, int V>
INLINE void rows_of_blocks(
    float *c, long ldc, Left a, const float *b, long ldb, int rows, int inner, float scale, bool add) {
    int r = 0;
    for (; r + R <= rows; r += R, a.x += R * a.row) block<R, V>(c + r * ldc, ldc, a, b, ldb, inner, scale, add);
    for (; r < rows; ++r, a.x += a.row) block<1, V>(c + r * ldc, ldc, a, b, ldb, inner, scale, add);
}

// C [rows, width] = [C +] scale A [rows, inner] B [inner, width]; width in whole vectors. Blocks of WIDEST vectors and as
// many rows as the registers hold: 4 x 4 suits the products of TTT (by 15 % of a TTT-MLP), 8 x 2 those of attention
// (by 20 %). Every sum has the same order in all of them.
template <int WIDEST = 4>
__attribute__((noinline)) void product(
    float *c, long ldc, Left a, const float *b, long ldb, int rows, int inner, int width, float scale, bool add) {
    int v = 0;
    if constexpr (WIDEST == 4)
        for (; v + 4 * LANES <= width; v += 4 * LANES)
            rows_of_blocks<4, 4>(c + v, ldc, a, b + v, ldb, rows, inner, scale, add);
    for (; v + 2 * LANES <= width; v += 2 * LANES)
        rows_of_blocks<8, 2>(c + v, ldc, a, b + v, ldb, rows, inner, scale, add);
    for (; v < width; v += LANES) rows_of_blocks<8, 1>(c + v, ldc, a, b + v, ldb, rows, inner, scale, add);
}

// Lanes of a and b in turn, of their first or of their second halves.
template <int FROM, int... I>
INLINE vec zip(vec a, vec b, std::integer_sequence<int, I...>) {
    return pick(a, b, std::integer_sequence<int, (FROM + I / 2 + I % 2 * LANES)...>{});
}

// Transpose a LANES x LANES block in registers: zipping first half and second half log2(LANES) times.
INLINE void transpose(vec (&x)[LANES]) {
    constexpr std::make_integer_sequence<int, LANES> lanes{};
    for (int round = 1; round < LANES; round *= 2) {
        vec y[LANES];
        for (int i = 0; i < LANES / 2; ++i) {
            y[2 * i] = zip<0>(x[i], x[i + LANES / 2], lanes);
            y[2 * i + 1] = zip<LANES / 2>(x[i], x[i + LANES / 2], lanes);
        }
        for (int i = 0; i < LANES; ++i) x[i] = y[i];
    }
}

// Rows into lanes: lanes low ... high - 1 of the tile to [columns, lanes] get the rows of from [high - low, columns],
// which lie `ldf` apart; the other lanes get zeros.
__attribute__((noinline)) inline void turn(float *to, long ldt, const float *from, long ldf, int low, int high, int lanes, int columns) {
    for (int lane = 0; lane < lanes; lane += LANES)
        for (int c = 0; c < columns; c += LANES) {
            const int wide = columns - c < LANES ? columns - c : LANES;
            vec x[LANES];
            for (int i = 0; i < LANES; ++i) {
                const float *row = from + (lane + i - low) * ldf + c;
                x[i] = lane + i < low || lane + i >= high ? vec{} : wide == LANES ? load(row) : load_some(row, wide);
            }
            transpose(x);
            for (int i = 0; i < wide; ++i) store(to + (c + i) * ldt + lane, x[i]);
        }
}

// Lanes into rows: the inverse, writing rows 0 ... high - low - 1 of `to` and nothing else.
__attribute__((noinline)) inline void turn_back(float *to, long ldt, const float *from, long ldf, int low, int high, int columns) {
    for (int lane = low / LANES * LANES; lane < high; lane += LANES)
        for (int c = 0; c < columns; c += LANES) {
            const int wide = columns - c < LANES ? columns - c : LANES;
            vec x[LANES] = {};
            for (int i = 0; i < wide; ++i) x[i] = load(from + (c + i) * ldf + lane);
            transpose(x);
            for (int i = 0; i < LANES; ++i) {
                float *row = to + (lane + i - low) * ldt + c;
                if (lane + i < low || lane + i >= high) continue;
                if (wide == LANES) store(row, x[i]);
                else store_some(row, x[i], wide);
            }
        }
}

// Sum of term(0) ... term(rows - 1), in four strands that the processor can run side by side.
template <typename Term>
INLINE vec sum_over(int rows, Term term) {
    vec total[4] = {};
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        for (int j = 0; j < 4; ++j) total[j] += term(r + j);
    for (; r < rows; ++r) total[0] += term(r);
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// to -= scale tile, both [rows, lanes].
inline void subtract(float *to, int ldt, const float *tile, int ld, int rows, int lanes, float scale) {
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < lanes; i += LANES)
            store(to + r * ldt + i, load(to + r * ldt + i) - scale * load(tile + r * ld + i));
}

// Sum of all products of entries of two tiles, up to the sum over lanes.
inline vec inner_product(const float *a, int lda, const float *b, int ldb, int rows, int lanes) {
    vec total = {};
    for (int i = 0; i < lanes; i += LANES)
        total += sum_over(rows, [&](int r) { return load(a + r * lda + i) * load(b + r * ldb + i); });
    return total;
}

// Working memory of one thread, kept from call to call and handed out in pieces that begin on cache lines.
class Scratch {
  public:
    explicit Scratch(long floats) {
        static thread_local float *memory = nullptr;
        static thread_local long size = 0;
        if (floats > size) {
            std::free(memory);
            size = (floats + 15) / 16 * 16;
            memory = static_cast<float *>(std::aligned_alloc(64, size * sizeof(float)));
        }
        next = memory;
    }
    float *take(long floats) {
        float *piece = next;
        next += (floats + 15) / 16 * 16;
        return piece;
    }
    float *zeros(long floats) { return static_cast<float *>(std::memset(take(floats), 0, floats * sizeof(float))); }

  private:
    float *next;
};
