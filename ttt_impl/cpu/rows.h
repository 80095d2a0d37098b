// Rows of numbers, a token each, in vectors; tokens in chunks over threads.
#pragma once

#include "vector.h"

constexpr int CHUNK = 32;  // tokens of a work item; sums over tokens are kept per chunk, so threads do not show

template <typename Each>
INLINE void vectors(int n, Each each) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) each(i, LANES);
    if (i < n) each(i, n - i);
}
INLINE vec take(const float *x, int count) { return count == LANES ? load(x) : load_some(x, count); }
INLINE void put(float *x, vec v, int count) { count == LANES ? store(x, v) : store_some(x, v, count); }

// Sum over i of term(i, count), n numbers.
template <typename Term>
INLINE float total(int n, Term term) {
    vec all[2] = {};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) all[0] += term(i, LANES), all[1] += term(i + LANES, LANES);
    vectors(n - i, [&](int j, int count) { all[0] += term(i + j, count); });
    return sum(all[0] + all[1]);
}

// Tokens in chunks over threads.
template <typename Each>
void tokens(int64_t count, int64_t threads, Each each) {
    parallel(threads, (count + CHUNK - 1) / CHUNK, [&](int chunk) {
        for (int64_t t = (int64_t)chunk * CHUNK; t < count && t < (chunk + 1L) * CHUNK; ++t) each(t, chunk);
    });
}
