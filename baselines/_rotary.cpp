// Rotary positions (arXiv 2104.09864, equation 34): features i and i + f / 2 of a token, (a, b), become
// (a cos - b sin, b cos + a sin). Backward is the same with the other sign of the sine.
#include "_heads.h"
#include "rows.h"

namespace {

struct Problem {
    int rows, heads, length, width, threads;
    float sign;
    Heads x, y;
    const float *cosine, *sine;  // rows `row` apart (0: one for all), tokens `token`
    int64_t row, token;
};

}  // namespace

extern "C" void rotate(const Problem *p) {
    const int half = p->width / 2;
    tokens(int64_t(p->rows) * p->length, p->threads, [&](int64_t index, int) {
        const int64_t row = index / p->length, t = index % p->length, table = row * p->row + t * p->token;
        for (int h = 0; h < p->heads; ++h) {
            const float *x = p->x.at(row, t, h);
            float *y = p->y.at(row, t, h);
            vectors(half, [&](int i, int n) {
                const vec a = take(x + i, n), b = take(x + half + i, n);
                const vec cosine = take(p->cosine + table + i, n), sine = p->sign * take(p->sine + table + i, n);
                put(y + i, a * cosine - b * sine, n);
                put(y + half + i, b * cosine + a * sine, n);
            });
        }
    });
}
