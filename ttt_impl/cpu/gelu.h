// The tanh form of GELU by way of one sigmoid; formulas of `../gelu.py`.
#pragma once

#include "vector.h"

constexpr float GELU_A = 1.5957691216057308f, GELU_B = 0.07135481627260025f;

INLINE vec gelu_sigmoid(vec x) { return sigmoid(x * (GELU_A + GELU_B * x * x)); }

// y', given s.
INLINE vec gelu_slope(vec x, vec s) { return s + (s - s * s) * x * (GELU_A + 3 * GELU_B * x * x); }

// y'', given s.
INLINE vec gelu_curvature(vec x, vec s) {
    const vec w = GELU_A + 3 * GELU_B * x * x;
    return (s - s * s) * (w * (4.0f + (1.0f - 2.0f * s) * x * w) - 2 * GELU_A);
}
