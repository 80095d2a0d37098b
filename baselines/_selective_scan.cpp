// Mamba's selective scan (arXiv 2312.00752, algorithm 2) with all that surrounds it, forward, backward and one step:
//
//   s_t = softplus(dt_t + bias)      h_t = exp(s_t A) h_{t-1} + s_t x_t B_t      y_t = (C_t . h_t + D x_t) silu(z_t)
//
// A vector holds one state number of LANES channels, so sums over states stay inside a lane. A block of LANES channels
// walks through a chunk of STEPS tokens with its N states in cache. The forward keeps h at each chunk's start only; the
// backward goes through the chunks from the last to the first, computes one again, then walks back through it with
//
//   g_t = C_t dy_t + exp(s_{t+1} A) g_{t+1}
//
// the gradient of h_t. The gradients of B and C sum over channels: lane by lane over the blocks of a group, then over
// lanes, then over groups. Rows and groups are the work items of the threads. How channels are grouped depends on their
// number alone, and every sum has one order, so the bits do not depend on the number of threads.
#include "_series.h"

namespace {

constexpr int STEPS = 32;         // tokens in a chunk: its four buffers of N x STEPS vectors fit a core's L2 cache
constexpr int GROUP_BLOCKS = 8;   // most blocks in a group

}  // namespace

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

namespace {

int chunks_of(const Problem &p) { return (p.length + STEPS - 1) / STEPS; }
int blocks_of(const Problem &p) { return (p.channels + LANES - 1) / LANES; }
int groups_of(const Problem &p) { return (blocks_of(p) + GROUP_BLOCKS - 1) / GROUP_BLOCKS; }

// The channels of one block of one row.
struct Block : Lanes {
    const Problem &p;
    const int row;

    Block(const Problem &p, int row, int index) : Lanes(index * LANES, p.channels), p(p), row(row) {}

    using Lanes::read, Lanes::write;
    INLINE vec read(const Series &series, int t) const { return read(series.at(row, t)); }
    INLINE void write(const Series &series, int t, vec v) const { write(series.at(row, t), v); }

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

float *start_of(const Problem &p, const Block &block, int chunk) {
    return p.starts + ((int64_t(block.row) * chunks_of(p) + chunk) * blocks_of(p) * LANES + block.first) * p.states;
}

// A block through tokens [from, to): h [N] moves on.
void walk(const Block &block, int from, int to, const vec *A, vec *h) {
    const Problem &p = block.p;
    const int N = p.states;
    const vec D = block.read(p.D), bias = block.read(p.bias);
    for (int t = from; t < to; ++t) {
        const float *B = p.B.at(block.row, t), *C = p.C.at(block.row, t);
        const vec x = block.read(p.x, t), z = block.read(p.z, t), step = softplus(block.read(p.dt, t) + bias);
        const vec u = step * x;
        vec y = D * x;
        for (int n = 0; n < N; ++n) {
            h[n] = exp2_of_negative(step * A[n]) * h[n] + u * B[n];
            y += h[n] * C[n];
        }
        block.write(p.y, t, y * z * sigmoid(z));
    }
}

// A chunk that the backward has computed again: for each token decay [N], h [N] before it, step, and y without gate.
struct Chunk {
    Buffer decay, h, step, y, dB, dC;
    explicit Chunk(int N) : decay(STEPS * N), h((STEPS + 1) * N), step(STEPS), y(STEPS), dB(STEPS * N), dC(STEPS * N) {}
};

void walk_again(const Block &block, int from, int to, const vec *A, Chunk &chunk) {
    const Problem &p = block.p;
    const int N = p.states;
    const vec D = block.read(p.D), bias = block.read(p.bias);
    for (int t = from; t < to; ++t) {
        const float *B = p.B.at(block.row, t), *C = p.C.at(block.row, t);
        const vec x = block.read(p.x, t), step = softplus(block.read(p.dt, t) + bias), u = step * x;
        vec *decay = chunk.decay.at + (t - from) * N, *h = chunk.h.at + (t - from) * N, y = D * x;
        for (int n = 0; n < N; ++n) {
            decay[n] = exp2_of_negative(step * A[n]);
            h[N + n] = decay[n] * h[n] + u * B[n];
            y += h[N + n] * C[n];
        }
        chunk.step.at[t - from] = step, chunk.y.at[t - from] = y;
    }
}

// What a block sums over time: the gradients of A [N], D and bias.
struct Sums {
    vec *A, *D, *bias;
};

// The gradient g [N] of the state goes back from token `to` to token `from`.
void walk_back(const Block &block, int from, int to, const vec *A, Chunk &chunk, vec *g, Sums sums, const Gradients &d) {
    const Problem &p = block.p;
    const int N = p.states;
    const vec D = block.read(p.D), bias = block.read(p.bias);
    vec dD = {}, dbias = {};
    for (int t = to - 1; t >= from; --t) {
        const int i = t - from;
        const float *B = p.B.at(block.row, t), *C = p.C.at(block.row, t);
        const vec *decay = chunk.decay.at + i * N, *before = chunk.h.at + i * N, *h = before + N;
        vec *dB = chunk.dB.at + i * N, *dC = chunk.dC.at + i * N;
        const vec x = block.read(p.x, t), z = block.read(p.z, t), step = chunk.step.at[i], u = step * x;
        const vec out = block.read(d.y, t), gate = sigmoid(z), dy = out * z * gate;
        vec du = {}, dexponent = {};
        for (int n = 0; n < N; ++n) {
            const vec gradient = g[n] + dy * C[n];
            dB[n] += gradient * u;
            dC[n] += dy * h[n];
            du += gradient * B[n];
            g[n] = gradient * decay[n];
            const vec q = g[n] * before[n];
            dexponent += q * A[n];
            sums.A[n] += q * step;
        }
        const vec dstep = LN2 * dexponent + du * x, raw = block.read(p.dt, t) + bias, ddt = dstep * sigmoid(raw);
        block.write(d.x, t, dy * D + du * step);
        block.write(d.dt, t, ddt);
        block.write(d.z, t, out * chunk.y.at[i] * gate * (1.0f + z * (1.0f - gate)));
        dD += dy * x, dbias += ddt;
    }
    *sums.D += dD, *sums.bias += dbias;
}

void load_A(const Block &block, vec *A) {
    block.gather(block.p.A, A);
    for (int n = 0; n < block.p.states; ++n) A[n] *= LOG2E;
}

void forward(const Problem &p, const Item &item) {
    const int N = p.states;
    Buffer A((item.end - item.first) * N), h((item.end - item.first) * N);
    for (int b = item.first; b < item.end; ++b) {
        const Block block(p, item.row, b);
        load_A(block, A.at + (b - item.first) * N);
        block.gather(p.state + block.state_offset(), h.at + (b - item.first) * N);
    }
    for (int chunk = 0; chunk < chunks_of(p); ++chunk)
        for (int b = item.first; b < item.end; ++b) {
            const Block block(p, item.row, b);
            vec *state = h.at + (b - item.first) * N;
            if (p.starts) std::memcpy(start_of(p, block, chunk), state, sizeof(vec) * N);
            walk(block, chunk * STEPS, std::min(p.length, (chunk + 1) * STEPS), A.at + (b - item.first) * N, state);
        }
    for (int b = item.first; b < item.end; ++b) {
        const Block block(p, item.row, b);
        block.scatter(h.at + (b - item.first) * N, p.last + block.state_offset());
    }
}

// The parts of sums that one item owns: B and C [tokens][N] of its channels; A [D][N], D and bias [D] of its row.
struct Parts {
    float *B, *C, *A, *D, *bias;
};

void backward(const Problem &p, const Item &item, const Gradients &d, Parts parts) {
    const int N = p.states, blocks = item.end - item.first;
    Buffer A(blocks * N), g(blocks * N), dA(blocks * N), dD(blocks), dbias(blocks), dA_here(N);
    Chunk chunk(N);
    for (int b = 0; b < blocks; ++b) {
        const Block block(p, item.row, item.first + b);
        load_A(block, A.at + b * N);
        block.gather(d.last + block.state_offset(), g.at + b * N);
    }
    for (int c = chunks_of(p) - 1; c >= 0; --c) {
        const int from = c * STEPS, to = std::min(p.length, from + STEPS);
        std::fill_n(chunk.dB.at, STEPS * N, vec{});
        std::fill_n(chunk.dC.at, STEPS * N, vec{});
        for (int b = 0; b < blocks; ++b) {
            const Block block(p, item.row, item.first + b);
            std::memcpy(chunk.h.at, start_of(p, block, c), sizeof(vec) * N);
            std::fill_n(dA_here.at, N, vec{});
            walk_again(block, from, to, A.at + b * N, chunk);
            walk_back(block, from, to, A.at + b * N, chunk, g.at + b * N, {dA_here.at, dD.at + b, dbias.at + b}, d);
            for (int n = 0; n < N; ++n) dA.at[b * N + n] += dA_here.at[n];
        }
        for (int i = 0; i < (to - from) * N; ++i) {
            parts.B[from * N + i] = sum(chunk.dB.at[i]);
            parts.C[from * N + i] = sum(chunk.dC.at[i]);
        }
    }
    for (int b = 0; b < blocks; ++b) {
        const Block block(p, item.row, item.first + b);
        block.scatter(g.at + b * N, d.state + block.state_offset());
        block.scatter(dA.at + b * N, parts.A);
        block.write(parts.D, dD.at[b]);
        block.write(parts.bias, dbias.at[b]);
    }
}

}  // namespace

extern "C" int64_t starts_size(const Problem *p) {
    return int64_t(p->rows) * chunks_of(*p) * blocks_of(*p) * LANES * p->states;
}

extern "C" void scan_forward(const Problem *p) {
    parallel(p->threads, p->rows * groups_of(*p), [&](int item) { forward(*p, Item(*p, item)); });
}

extern "C" void scan_backward(const Problem *p, const Gradients *d) {
    const int groups = groups_of(*p);
    const int64_t tokens = int64_t(p->length) * p->states, matrix = int64_t(p->channels) * p->states;
    float *B = new float[p->rows * groups * tokens], *C = new float[p->rows * groups * tokens];
    float *A = new float[p->rows * matrix], *D = new float[p->rows * p->channels], *bias = new float[p->rows * p->channels];
    parallel(p->threads, p->rows * groups, [&](int index) {
        const Item item(*p, index);
        const int64_t row = int64_t(item.row) * p->channels;
        backward(*p, item, *d, {B + index * tokens, C + index * tokens, A + row * p->states, D + row, bias + row});
    });
    for (int r = 0; r < p->rows; ++r) {
        add_up(B + r * groups * tokens, groups, tokens, tokens, d->B + r * tokens);
        add_up(C + r * groups * tokens, groups, tokens, tokens, d->C + r * tokens);
    }
    add_up(A, p->rows, matrix, matrix, d->A);
    add_up(D, p->rows, p->channels, p->channels, d->D);
    add_up(bias, p->rows, p->channels, p->channels, d->bias);
    for (float *part : {B, C, A, D, bias}) delete[] part;
}
