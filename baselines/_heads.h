// Values of several heads in memory, and vectors at their ends.
#pragma once

#include "vector.h"

// Values [rows][heads][tokens] of contiguous features; rows, heads and tokens may lie any way apart.
struct Heads {
    float *data;
    int64_t row, head, token;
    float *at(int64_t r, int64_t t, int64_t h) const { return data + r * row + h * head + t * token; }
};
