// Root mean square norm (arXiv 1910.07467, equation 4) and its gradient:
//
//   y = w x r      r = 1 / sqrt(mean(x^2) + eps)      dx = r (w dy - x r^2 mean(w dy x))      dw = sum dy x r
//
// Rows are cut into chunks, the threads' work items; dw is summed in each, then over chunks in one order: the bits do
// not depend on the number of threads.
#include "_series.h"

#include <cmath>

namespace {

constexpr int ROWS = 64;  // in a chunk

}  // namespace

struct Norm {
    int64_t rows;
    int width, threads;
    float eps;
    const float *x, *weight;    // [R][H], [H]
    float *y;                   // [R][H]
    const float *dy;            // the gradients: dy is given
    float *dx, *dweight;
};

namespace {

INLINE float scale(const Norm &n, const float *x) {
    vec squares = {};
    for (int i = 0; i < n.width; i += LANES) {
        const vec v = Lanes(i, n.width).read(x);
        squares += v * v;
    }
    return 1.0f / std::sqrt(sum(squares) / n.width + n.eps);
}

void forward(const Norm &n, int64_t row) {
    const float *x = n.x + row * n.width;
    const float r = scale(n, x);
    for (int i = 0; i < n.width; i += LANES) {
        const Lanes lanes(i, n.width);
        lanes.write(n.y + row * n.width, lanes.read(n.weight) * (lanes.read(x) * r));
    }
}

// dw [padded H] goes on.
void backward(const Norm &n, int64_t row, float *dw) {
    const float *x = n.x + row * n.width, *dy = n.dy + row * n.width;
    const float r = scale(n, x);
    vec products = {};
    for (int i = 0; i < n.width; i += LANES) {
        const Lanes lanes(i, n.width);
        products += lanes.read(n.weight) * lanes.read(dy) * lanes.read(x);
    }
    const float pull = sum(products) / n.width * r * r;
    for (int i = 0; i < n.width; i += LANES) {
        const Lanes lanes(i, n.width);
        const vec v = lanes.read(x), d = lanes.read(dy);
        lanes.write(n.dx + row * n.width, r * (lanes.read(n.weight) * d - v * pull));
        store(dw + i, load(dw + i) + d * (v * r));
    }
}

template <typename Work>
void over_chunks(const Norm &n, Work work) {
    parallel(n.threads, int((n.rows + ROWS - 1) / ROWS), [&](int chunk) {
        const int64_t from = int64_t(chunk) * ROWS, to = std::min(n.rows, from + ROWS);
        for (int64_t row = from; row < to; ++row) work(chunk, row);
    });
}

}  // namespace

extern "C" void norm_forward(const Norm *n) {
    over_chunks(*n, [&](int, int64_t row) { forward(*n, row); });
}

extern "C" void norm_backward(const Norm *n) {
    const int64_t chunks = (n->rows + ROWS - 1) / ROWS, width = padded(n->width);
    Buffer parts(chunks * width / LANES);
    float *dw = reinterpret_cast<float *>(parts.at);
    over_chunks(*n, [&](int chunk, int64_t row) { backward(*n, row, dw + chunk * width); });
    add_up(dw, chunks, width, n->width, n->dweight);
}
