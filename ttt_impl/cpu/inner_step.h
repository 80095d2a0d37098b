// The inner gradient and the learner's output, forward and backward, in tiles with tokens in lanes.
//
// Formulas and names are those of `../inner_step.py` and `../learner.py`; x is the standardised z, P the projection
//
//     P(a) = (a - mean a - x mean(a x)) / s          Ghat = P(a),  a = lr gamma (gamma x + beta - t)
#pragma once

#include "tile.h"

constexpr float EPSILON = 1e-6f;

struct Affine {  // weight and bias of one head's LN, [f]
    const float *gamma, *beta;
};

// x (in place of z) and 1 / s of LANES tokens.
INLINE vec standardise(float *z, int ld, int width) {
    const vec mean = sum_over(width, [&](int g) { return load(z + g * ld); }) / splat(width);
    const vec variance = sum_over(width, [&](int g) {
        const vec d = load(z + g * ld) - mean;
        return d * d;
    });
    const vec rstd = reciprocal_root(variance / splat(width) + EPSILON);
    for (int g = 0; g < width; ++g) store(z + g * ld, (load(z + g * ld) - mean) * rstd);
    return rstd;
}

inline void standardise_tile(float *z, float *rstd, int ld, int width, int lanes) {
    for (int i = 0; i < lanes; i += LANES) store(rstd + i, standardise(z + i, ld, width));
}

// P(a) of LANES tokens, a given by row; `put` gets row and value.
template <typename Row, typename Put>
INLINE void project(const float *x, int ld, int width, vec rstd, Row a, Put put) {
    const vec mean = sum_over(width, a) / splat(width);
    const vec mean_x = sum_over(width, [&](int g) { return a(g) * load(x + g * ld); }) / splat(width);
    for (int g = 0; g < width; ++g) put(g, (a(g) - mean - load(x + g * ld) * mean_x) * rstd);
}

// Ghat [f, lanes] from z [f, ld], which becomes x; rstd [lanes].
inline void inner_gradient(
    float *ghat, float *rstd, float *z, int ld, const float *target, const float *lr, Affine ln, int width, int lanes) {
    for (int i = 0; i < lanes; i += LANES) {
        const vec scale = standardise(z + i, ld, width), rate = load(lr + i);
        store(rstd + i, scale);
        auto a = [&](int g) {
            const vec miss = ln.gamma[g] * load(z + i + g * ld) + ln.beta[g] - load(target + i + g * lanes);
            return rate * ln.gamma[g] * miss;
        };
        project(z + i, ld, width, scale, a, [&](int g, vec y) { store(ghat + i + g * lanes, y); });
    }
}

// q + gamma x + beta in place of z_bar [f, ld]; q [f, ld].
inline void answer(float *z, const float *q, int ld, Affine ln, int width, int lanes) {
    for (int i = 0; i < lanes; i += LANES) {
        standardise(z + i, ld, width);
        for (int g = 0; g < width; ++g) {
            float *to = z + i + g * ld;
            store(to, load(q + i + g * ld) + ln.gamma[g] * load(to) + ln.beta[g]);
        }
    }
}

// Sums over all tokens, kept apart for each of LANES tokens until the end: [f, LANES].
struct AffineSums {
    float *gamma, *beta;
};

INLINE void add_to(float *sums, int g, vec x) { store(sums + g * LANES, load(sums + g * LANES) + x); }

// dz_bar (in place of z_bar [f, ld]) from dy [f, lanes], and what gamma and beta gather.
inline void answer_backward(float *z, int ld, const float *dy, Affine ln, AffineSums sums, int width, int lanes) {
    for (int i = 0; i < lanes; i += LANES) {
        const vec rstd = standardise(z + i, ld, width);
        for (int g = 0; g < width; ++g) {
            const vec d = load(dy + i + g * lanes);
            add_to(sums.gamma, g, d * load(z + i + g * ld));
            add_to(sums.beta, g, d);
        }
        auto dx = [&](int g) { return ln.gamma[g] * load(dy + i + g * lanes); };
        project(z + i, ld, width, rstd, dx, [&](int g, vec y) { store(z + i + g * ld, y); });
    }
}

// Backward of `inner_gradient`: dGhat [f, lanes] becomes the gradient of t, x [f, ld] that of z; dlr [lanes] is set.
inline void inner_gradient_backward(
    float *dghat, float *x, int ld, float *dlr, const float *rstd, const float *ghat, const float *target,
    const float *lr, Affine ln, AffineSums sums, float *room, int width, int lanes) {
    for (int i = 0; i < lanes; i += LANES) {
        const vec scale = load(rstd + i), rate = load(lr + i), count = splat(width);
        auto at = [&](const float *tile, int g) { return load(tile + i + g * lanes); };
        auto xs = [&](int g) { return load(x + i + g * ld); };
        auto miss = [&](int g) { return ln.gamma[g] * xs(g) + ln.beta[g] - at(target, g); };
        // da = P(dGhat)
        float *da = room;
        project(x + i, ld, width, scale, [&](int g) { return at(dghat, g); }, [&](int g, vec y) { store(da + g * LANES, y); });
        const vec ax = sum_over(width, [&](int g) { return rate * ln.gamma[g] * miss(g) * xs(g); }) / count;
        const vec dx = sum_over(width, [&](int g) { return at(dghat, g) * xs(g); }) / count;
        const vec dg = sum_over(width, [&](int g) { return at(dghat, g) * at(ghat, g); }) / count;
        store(dlr + i, sum_over(width, [&](int g) { return load(da + g * LANES) * ln.gamma[g] * miss(g); }));
        // dz = P(slope da) - (mean(a x) da + mean(dGhat x) Ghat + mean(dGhat Ghat) x) / s, slope = lr gamma^2
        auto sloped = [&](int g) { return rate * ln.gamma[g] * ln.gamma[g] * load(da + g * LANES); };
        const vec mean = sum_over(width, sloped) / count;
        const vec mean_x = sum_over(width, [&](int g) { return sloped(g) * xs(g); }) / count;
        for (int g = 0; g < width; ++g) {
            const vec d = load(da + g * LANES), old = xs(g), weighted = rate * d;
            add_to(sums.gamma, g, weighted * (miss(g) + ln.gamma[g] * old));
            add_to(sums.beta, g, weighted * ln.gamma[g]);
            const vec dz = sloped(g) - mean - old * mean_x - ax * d - dx * at(ghat, g) - dg * old;
            store(x + i + g * ld, dz * scale);
            store(dghat + i + g * lanes, -weighted * ln.gamma[g]);
        }
    }
}

// The sums of AffineSums at the end.
inline void total(float *to, const float *sums, int width) {
    for (int g = 0; g < width; ++g) to[g] = sum(load(sums + g * LANES));
}
