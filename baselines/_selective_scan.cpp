// Mamba's selective scan (arXiv 2312.00752, algorithm 2) with all that surrounds it, forward, backward and one step:
//
//   s_t = softplus(dt_t + bias)      h_t = exp(s_t A) h_{t-1} + s_t x_t B_t      y_t = (C_t . h_t + D x_t) silu(z_t)
//
// A vector holds one state number of LANES channels, so sums over states stay inside a lane. A block of LANES channels
// walks through a chunk of STEPS tokens, SOME of its N states at a time. The forward keeps h at each chunk's start only;
// the backward goes through the chunks from the last to the first, computes one again, then walks back through it with
//
//   g_t = C_t dy_t + exp(s_{t+1} A) g_{t+1}
//
// the gradient of h_t. The gradients of B and C sum over channels: lane by lane over the blocks of a group, then over
// lanes, then over groups. Rows and groups are the work items of the threads. How channels are grouped depends on their
// number alone, and every sum has one order, so the bits do not depend on the number of threads.
#include "_selective_scan.h"

namespace {

constexpr int SOME = 4;  // states that walk through a chunk together: what they leave there fits the L1 cache

// What the tokens of a chunk have for one block of channels: step and its slope, the softplus' derivative, u = step x,
// y before the gate sigmoid(z) z; the gradients of that y, of u, and of step by way of the exponents.
struct Tokens {
    vec step[STEPS], slope[STEPS], u[STEPS], y[STEPS], gate[STEPS], dy[STEPS], du[STEPS], dstep[STEPS];
};

void read_tokens(const Block &block, int from, int to, Tokens &tokens) {
    const vec D = block.read(block.p.D), bias = block.read(block.p.bias);
    for (int t = from; t < to; ++t) {
        const int i = t - from;
        for (const Series *input : {&block.p.x, &block.p.dt, &block.p.z}) block.fetch_next(*input, t);
        const vec x = block.read(block.p.x, t), step = softplus(block.read(block.p.dt, t) + bias, tokens.slope[i]);
        tokens.step[i] = step, tokens.u[i] = step * x, tokens.y[i] = D * x;
        tokens.gate[i] = sigmoid(block.read(block.p.z, t));
    }
}

// States n, n + 1 ... go through each(n) by SOME, whose h fit the registers, then one by one.
template <typename Each>
INLINE void states(int N, Each each) {
    int n = 0;
    for (; n + SOME <= N; n += SOME) each(std::integral_constant<int, SOME>{}, n);
    for (; n < N; ++n) each(std::integral_constant<int, 1>{}, n);
}

// A block through tokens [from, to): h [N] moves on.
void walk(const Block &block, int from, int to, const vec *A, vec *h, Tokens &tokens) {
    const Problem &p = block.p;
    read_tokens(block, from, to, tokens);
    states(p.states, [&](auto size, int n) {
        constexpr int S = decltype(size)::value;
        vec a[S], state[S];
        for (int s = 0; s < S; ++s) a[s] = A[n + s], state[s] = h[n + s];
        for (int i = 0; i < to - from; ++i) {
            const float *B = p.B.at(block.row, from + i) + n, *C = p.C.at(block.row, from + i) + n;
            const vec step = tokens.step[i], u = tokens.u[i];
            vec y = tokens.y[i];
            for (int s = 0; s < S; ++s) {
                state[s] = exp2_of_negative(step * a[s]) * state[s] + u * B[s];
                y += state[s] * C[s];
            }
            tokens.y[i] = y;
        }
        for (int s = 0; s < S; ++s) h[n + s] = state[s];
    });
    for (int t = from; t < to; ++t) {
        block.fetch_next(p.y, t);
        block.write(p.y, t, tokens.y[t - from] * block.read(p.z, t) * tokens.gate[t - from]);
    }
}

// States n ... of a block through a chunk of `count` tokens again and back: their h, before the chunk, are given; their
// g moves on, dA, and dB and dC [count][S], grow.
template <int S>
void there_and_back(
    const Block &block, int from, int count, int n, const vec *A, const vec *start, vec *g, vec *dA, vec *dB, vec *dC,
    Tokens &tokens) {
    const Problem &p = block.p;
    vec decay[STEPS][S], h[STEPS + 1][S], a[S], gradient[S], sum[S] = {};
    for (int s = 0; s < S; ++s) a[s] = A[n + s], h[0][s] = start[n + s], gradient[s] = g[n + s];
    for (int i = 0; i < count; ++i) {
        const float *B = p.B.at(block.row, from + i) + n, *C = p.C.at(block.row, from + i) + n;
        const vec step = tokens.step[i], u = tokens.u[i];
        vec y = tokens.y[i];
        for (int s = 0; s < S; ++s) {
            decay[i][s] = exp2_of_negative(step * a[s]);
            h[i + 1][s] = decay[i][s] * h[i][s] + u * B[s];
            y += h[i + 1][s] * C[s];
        }
        tokens.y[i] = y;
    }
    for (int i = count - 1; i >= 0; --i) {
        const float *B = p.B.at(block.row, from + i) + n, *C = p.C.at(block.row, from + i) + n;
        const vec step = tokens.step[i], u = tokens.u[i], dy = tokens.dy[i];
        vec du = tokens.du[i], dstep = tokens.dstep[i];
        for (int s = 0; s < S; ++s) {
            const vec total = gradient[s] + dy * C[s];
            dB[i * S + s] += total * u;
            dC[i * S + s] += dy * h[i + 1][s];
            du += total * B[s];
            gradient[s] = total * decay[i][s];
            const vec q = gradient[s] * h[i][s];
            dstep += q * a[s];
            sum[s] += q * step;
        }
        tokens.du[i] = du, tokens.dstep[i] = dstep;
    }
    for (int s = 0; s < S; ++s) g[n + s] = gradient[s], dA[n + s] += sum[s];
}

// What a block sums over time: the gradients of A [N], D and bias.
struct Sums {
    vec *A, *D, *bias;
};

// The gradient g [N] of the state goes back from token `to` to token `from`; dB and dC lie group by group of states.
void walk_back(
    const Block &block, int from, int to, const vec *A, const vec *start, vec *g, Sums sums, vec *dB, vec *dC,
    Tokens &tokens, const Gradients &d) {
    const Problem &p = block.p;
    const vec D = block.read(p.D);
    read_tokens(block, from, to, tokens);
    for (int t = from; t < to; ++t) {
        block.fetch_next(d.y, t);
        tokens.dy[t - from] = block.read(d.y, t) * block.read(p.z, t) * tokens.gate[t - from];
        tokens.du[t - from] = tokens.dstep[t - from] = vec{};
    }
    states(p.states, [&](auto size, int n) {
        there_and_back<decltype(size)::value>(
            block, from, to - from, n, A, start, g, sums.A, dB + n * STEPS, dC + n * STEPS, tokens);
    });
    vec dD = {}, dbias = {};
    for (int t = from; t < to; ++t) {
        const int i = t - from;
        const vec x = block.read(p.x, t), z = block.read(p.z, t), gate = tokens.gate[i];
        const vec ddt = (LN2 * tokens.dstep[i] + tokens.du[i] * x) * tokens.slope[i];
        for (const Series *output : {&d.x, &d.dt, &d.z}) block.fetch_next(*output, t);
        block.write(d.x, t, tokens.dy[i] * D + tokens.du[i] * tokens.step[i]);
        block.write(d.dt, t, ddt);
        block.write(d.z, t, block.read(d.y, t) * tokens.y[i] * gate * (1.0f + z * (1.0f - gate)));
        dD += tokens.dy[i] * x, dbias += ddt;
    }
    *sums.D += dD, *sums.bias += dbias;
}

// Sums over lanes of dB or dC, token by token: [count][N].
void write_sums(const vec *from, int count, int N, float *to) {
    states(N, [&](auto size, int n) {
        constexpr int S = decltype(size)::value;
        for (int i = 0; i < count; ++i)
            for (int s = 0; s < S; ++s) to[i * N + n + s] = sum(from[n * STEPS + i * S + s]);
    });
}

void load_A(const Block &block, vec *A) {
    block.gather(block.p.A, A);
    for (int n = 0; n < block.p.states; ++n) A[n] *= LOG2E;
}

void forward(const Problem &p, const Item &item) {
    const int N = p.states;
    Buffer A((item.end - item.first) * N), h((item.end - item.first) * N);
    Tokens tokens;
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
            walk(block, chunk * STEPS, std::min(p.length, (chunk + 1) * STEPS), A.at + (b - item.first) * N, state, tokens);
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
    Buffer A(blocks * N), g(blocks * N), dA(blocks * N), dD(blocks), dbias(blocks), dB(STEPS * N), dC(STEPS * N);
    Tokens tokens;
    for (int b = 0; b < blocks; ++b) {
        const Block block(p, item.row, item.first + b);
        load_A(block, A.at + b * N);
        block.gather(d.last + block.state_offset(), g.at + b * N);
    }
    for (int c = chunks_of(p) - 1; c >= 0; --c) {
        const int from = c * STEPS, to = std::min(p.length, from + STEPS);
        std::fill_n(dB.at, STEPS * N, vec{});
        std::fill_n(dC.at, STEPS * N, vec{});
        for (int b = 0; b < blocks; ++b) {
            const Block block(p, item.row, item.first + b);
            const vec *start = reinterpret_cast<const vec *>(start_of(p, block, c));
            const Sums sums = {dA.at + b * N, dD.at + b, dbias.at + b};
            walk_back(block, from, to, A.at + b * N, start, g.at + b * N, sums, dB.at, dC.at, tokens, d);
        }
        write_sums(dB.at, to - from, N, parts.B + from * N);
        write_sums(dC.at, to - from, N, parts.C + from * N);
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
