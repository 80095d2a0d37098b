// Causal softmax attention, forward and backward; query i of L sees keys 0 ... K - L + i of K:
//
//   s_ij = scale q_i . k_j     p_ij = e^(s_ij - m_i) / l_i     y_i = sum_j p_ij v_j     m_i = max_j s_ij, l_i = sum_j e^(s_ij - m_i)
//
// No score goes through memory: TILE queries walk over the keys by TILE, and what was summed is scaled anew whenever a
// greater m_i turns up (Milakov & Gimelshein, arXiv 1805.02867). The backward has m and 1 / l, computes e^(s - m) again
// (Dao, arXiv 2205.14135, algorithm 4) and needs only dy / l in place of dy, never p itself:
//
//   D_i = sum_c dy_ic y_ic / l_i     ds_ij = e^(s_ij - m_i) (dy_i . v_j / l_i - D_i)
//   dv_j = sum_i e^(s_ij - m_i) dy_i / l_i     dq_i = scale sum_j ds_ij k_j     dk_j = scale sum_i ds_ij q_i
//
// Queries lie in lanes, so that m, l and D are vectors and no sum runs across one; keys and values are read number by
// number and need no transposition. Below the diagonal tiles are whole; on it STRIP keys at a time meet the lanes that
// see one of them, and only STRIP x STRIP scores of each strip know a mask. Exponents are of two, not of e. Rows, heads
// of keys and, in the forward, stretches of queries are the work items of the threads; every sum has one order, so the
// bits do not depend on the number of threads.
#include "_heads.h"
#include "_series.h"
#include "rows.h"
#include "tile.h"

namespace {

constexpr int TILE = 64, STRIP = 16;  // both whole vectors
constexpr int STRETCH = 512;          // queries of a work item of the forward

struct Problem {
    int rows, heads, groups, queries, keys, width, threads;  // each group of heads shares keys and values
    float scale;
    Heads q, k, v, y;
    float *norms;  // [rows][heads][2][queries]: m, in powers of two, and 1 / l; or null
};

struct Gradients {
    Heads y, q, k, v;
};

// Work for one row and one head of keys: both matrices without gaps, [keys][wide], zeros at the end of each row.
struct Shared {
    const Problem &p;
    const int row, group, wide, per_group;
    float *k, *v;

    Shared(const Problem &p, int item, int keys, Scratch &scratch)
        : p(p), row(item / p.groups), group(item % p.groups), wide(padded(p.width)), per_group(p.heads / p.groups) {
        k = scratch.take(int64_t(keys) * wide), v = scratch.take(int64_t(keys) * wide);
        copy(p.k, k, keys), copy(p.v, v, keys);
    }
    void copy(const Heads &from, float *to, int keys) const {
        for (int t = 0; t < keys; ++t) copy_row(from.at(row, t, group), to + int64_t(t) * wide, 1.0f);
    }
    void copy_row(const float *from, float *to, float scale) const {
        for (int c = 0; c < wide; c += LANES) store(to + c, scale * take(from + c, std::min(LANES, p.width - c)));
    }
};

// Up to TILE queries of one head: `count` from `first` on, in `lanes` lanes.
struct Queries {
    const Shared &shared;
    const Problem &p;
    const int head, first, count, lanes;
    float *const q;  // [width][TILE]

    Queries(const Shared &shared, int head, int first, float *q)
        : shared(shared), p(shared.p), head(head), first(first), count(std::min(TILE, p.queries - first)),
          lanes(padded(count)), q(q) {
        into_lanes(p.q, q);
    }
    void into_lanes(const Heads &from, float *to) const {
        turn(to, TILE, from.at(shared.row, first, head), from.token, 0, count, lanes, p.width);
    }
    void from_lanes(const float *from, const Heads &to) const {
        turn_back(to.at(shared.row, first, head), to.token, from, TILE, 0, count, p.width);
    }
    float *norms(int which) const {
        return p.norms + ((int64_t(shared.row) * p.heads + head) * 2 + which) * p.queries + first;
    }
    // each(key, keys, lane): `keys` keys from `key` on, of which the lanes from `lane` on see at least one.
    template <typename Each>
    void over_keys(Each each) const {
        const int before = p.keys - p.queries + first;
        for (int key = 0; key < before; key += TILE) each(key, std::min(TILE, before - key), 0, false);
        for (int lane = 0; lane < count; lane += STRIP) each(before + lane, std::min(STRIP, count - lane), lane, true);
    }
    // Scores s [keys][TILE] in powers of two, of the lanes from `lane` on.
    void scores(float *s, int key, int keys, int lane, bool diagonal) const {
        const Left k = {shared.k + int64_t(key) * shared.wide, shared.wide, 1};
        product<2>(s + lane, TILE, k, q + lane, TILE, keys, p.width, lanes - lane, p.scale * LOG2E, false);
        if (!diagonal) return;
        ivec number;
        for (int i = 0; i < LANES; ++i) number[i] = i;
        for (int j = 0; j < keys; ++j)
            for (int i = 0; i < STRIP && lane + i < lanes; i += LANES) {
                float *at = s + j * TILE + lane + i;
                store(at, number + i < j ? splat(-__builtin_inff()) : load(at));
            }
    }
};

// What a tile of queries has summed so far: y [width][TILE] and l, as if m were the maximum.
struct Running {
    float *y;
    vec m[TILE / LANES], l[TILE / LANES];
};

INLINE vec greater(vec a, vec b) { return a > b ? a : b; }

// One vector of scores [keys][TILE] becomes e^(s - m), with a new m; l is summed, the factor of old sums is returned.
INLINE vec soften(float *s, int keys, vec &m, vec &l) {
    vec top[4] = {m, m, m, m};
    int j = 0;
    for (; j + 4 <= keys; j += 4)
        for (int i = 0; i < 4; ++i) top[i] = greater(load(s + (j + i) * TILE), top[i]);
    for (; j < keys; ++j) top[0] = greater(load(s + j * TILE), top[0]);
    const vec most = greater(greater(top[0], top[1]), greater(top[2], top[3])), factor = exp2_of_negative(m - most);
    vec total = l * factor;
    for (j = 0; j < keys; ++j) {
        const vec e = exp2_of_negative(load(s + j * TILE) - most);
        store(s + j * TILE, e);
        total += e;
    }
    m = most, l = total;
    return factor;
}

void rescale(float *y, int width, vec factor) {
    const ivec changed = factor != splat(1.0f);
    int any = 0;
    for (int i = 0; i < LANES; ++i) any |= changed[i];
    if (!any) return;
    for (int c = 0; c < width; ++c) store(y + c * TILE, load(y + c * TILE) * factor);
}

void forward(const Queries &queries, float *s, Running &now) {
    const Problem &p = queries.p;
    const int wide = queries.shared.wide;
    std::fill_n(now.y, p.width * TILE, 0.0f);
    for (int i = 0; i < TILE / LANES; ++i) now.m[i] = splat(-__builtin_inff()), now.l[i] = vec{};
    queries.over_keys([&](int key, int keys, int lane, bool diagonal) {
        queries.scores(s, key, keys, lane, diagonal);
        for (int i = lane; i < queries.lanes; i += LANES)
            rescale(now.y + i, p.width, soften(s + i, keys, now.m[i / LANES], now.l[i / LANES]));
        const Left v = {queries.shared.v + int64_t(key) * wide, 1, wide};
        product<2>(now.y + lane, TILE, v, s + lane, TILE, p.width, keys, queries.lanes - lane, 1.0f, true);
    });
    for (int i = 0; i < queries.lanes; i += LANES) {
        const vec inverse = 1.0f / now.l[i / LANES];
        for (int c = 0; c < p.width; ++c) store(now.y + c * TILE + i, load(now.y + c * TILE + i) * inverse);
        if (!p.norms) continue;
        put(queries.norms(0) + i, now.m[i / LANES], std::min(LANES, queries.count - i));
        put(queries.norms(1) + i, inverse, std::min(LANES, queries.count - i));
    }
    queries.from_lanes(now.y, p.y);
}

// Working memory of the backward: of a tile of queries in lanes [width][TILE] and in rows [TILE][wide]; of a tile of
// scores [TILE][TILE]; of the keys [keys][wide].
struct Parts {
    float *q, *dy, *dq, *q_rows, *dy_rows, *e, *ds, *dk, *dv;
    vec m[TILE / LANES], D[TILE / LANES];

    Parts(int width, int wide, int keys, Scratch &scratch) {
        for (float **part : {&q, &dy, &dq}) *part = scratch.take(width * TILE);
        for (float **part : {&q_rows, &dy_rows}) *part = scratch.take(wide * TILE);
        for (float **part : {&e, &ds}) *part = scratch.take(TILE * TILE);
        for (float **part : {&dk, &dv}) *part = scratch.zeros(int64_t(keys) * wide);
    }
};

// dy / l in lanes and in rows, m, D, and the queries in rows.
void prepare(const Queries &queries, const Gradients &d, Parts &parts) {
    const Problem &p = queries.p;
    const Shared &shared = queries.shared;
    queries.into_lanes(d.y, parts.dy);
    queries.into_lanes(p.y, parts.dq);  // y for now
    for (int i = 0; i < queries.lanes; i += LANES) {
        const int count = std::min(LANES, queries.count - i);
        const vec inverse = take(queries.norms(1) + i, count);
        for (int c = 0; c < p.width; ++c) store(parts.dy + c * TILE + i, load(parts.dy + c * TILE + i) * inverse);
        parts.m[i / LANES] = take(queries.norms(0) + i, count);
        parts.D[i / LANES] = inner_product(parts.dy + i, TILE, parts.dq + i, TILE, p.width, LANES);
    }
    std::fill_n(parts.dq, p.width * TILE, 0.0f);
    std::fill_n(parts.q_rows, shared.wide * TILE, 0.0f);
    std::fill_n(parts.dy_rows, shared.wide * TILE, 0.0f);
    for (int i = 0; i < queries.count; ++i) {
        const int t = queries.first + i;
        shared.copy_row(p.q.at(shared.row, t, queries.head), parts.q_rows + i * shared.wide, 1.0f);
        shared.copy_row(d.y.at(shared.row, t, queries.head), parts.dy_rows + i * shared.wide, queries.norms(1)[i]);
    }
}

void backward(const Queries &queries, const Gradients &d, Parts &parts) {
    const Problem &p = queries.p;
    const int wide = queries.shared.wide;
    prepare(queries, d, parts);
    queries.over_keys([&](int key, int keys, int lane, bool diagonal) {
        const int64_t at = int64_t(key) * wide;
        const int seen = queries.lanes - lane;
        float *e = parts.e + lane, *ds = parts.ds + lane;
        queries.scores(parts.e, key, keys, lane, diagonal);
        product<2>(ds, TILE, {queries.shared.v + at, wide, 1}, parts.dy + lane, TILE, keys, p.width, seen, 1.0f, false);
        for (int j = 0; j < keys; ++j)
            for (int i = 0; i < seen; i += LANES) {
                const vec weight = exp2_of_negative(load(e + j * TILE + i) - parts.m[(lane + i) / LANES]);
                store(e + j * TILE + i, weight);
                store(ds + j * TILE + i, weight * (load(ds + j * TILE + i) - parts.D[(lane + i) / LANES]));
            }
        const float *dy_rows = parts.dy_rows + lane * wide, *q_rows = parts.q_rows + lane * wide;
        product<2>(parts.dv + at, wide, {e, TILE, 1}, dy_rows, wide, keys, seen, wide, 1.0f, true);
        product<2>(parts.dk + at, wide, {ds, TILE, 1}, q_rows, wide, keys, seen, wide, p.scale, true);
        product<2>(parts.dq + lane, TILE, {queries.shared.k + at, 1, wide}, ds, TILE, p.width, keys, seen, p.scale, true);
    });
    queries.from_lanes(parts.dq, d.q);
}

}  // namespace

extern "C" void attention_forward(const Problem *p) {
    const int stretches = (p->queries + STRETCH - 1) / STRETCH, wide = padded(p->width);
    parallel(p->threads, p->rows * p->groups * stretches, [&](int item) {
        const int first = item % stretches * STRETCH, last = std::min(p->queries, first + STRETCH);
        const int keys = p->keys - p->queries + last;
        Scratch scratch(2 * int64_t(keys) * wide + 2 * wide * TILE + TILE * TILE);
        const Shared shared(*p, item / stretches, keys, scratch);
        float *q = scratch.take(wide * TILE), *s = scratch.take(TILE * TILE);
        Running now{scratch.take(wide * TILE), {}, {}};
        for (int h = 0; h < shared.per_group; ++h)
            for (int t = first; t < last; t += TILE)
                forward(Queries(shared, shared.group * shared.per_group + h, t, q), s, now);
    });
}

extern "C" void attention_backward(const Problem *p, const Gradients *d) {
    const int wide = padded(p->width);
    parallel(p->threads, p->rows * p->groups, [&](int item) {
        Scratch scratch(4 * int64_t(p->keys) * wide + 5 * wide * TILE + 2 * TILE * TILE);
        const Shared shared(*p, item, p->keys, scratch);
        Parts parts(wide, wide, p->keys, scratch);
        for (int h = 0; h < shared.per_group; ++h)
            for (int t = 0; t < p->queries; t += TILE)
                backward(Queries(shared, shared.group * shared.per_group + h, t, parts.q), *d, parts);
        for (int t = 0; t < p->keys; ++t)
            for (int c = 0; c < p->width; c += LANES) {
                const int64_t at = int64_t(t) * wide + c;
                put(d->k.at(shared.row, t, shared.group) + c, load(parts.dk + at), std::min(LANES, p->width - c));
                put(d->v.at(shared.row, t, shared.group) + c, load(parts.dv + at), std::min(LANES, p->width - c));
            }
    });
}
