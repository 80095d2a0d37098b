// TTT-Linear, decoding: a few tokens a call, one CTA a head and sequence, everything remembered updated in place.
//
// The state is W, b at the start of the open mini-batch and the K and Ghat rows of its tokens so far: exact, and small
// (at most 15 rows) where a dense sum of gradients would be as large as W. Token n of the mini-batch:
//
//   predict    z = k W + b,  Ghat_n = lr G(z)                       row n of the state
//   read       zbar = q W + b - tok_n sum_(j <= n) (q . k_j + 1) Ghat_j,   out = q + LN(zbar)
//   fold       after the 16th token:  W -= tok_last K^T Ghat,  b -= tok_last sum_j Ghat_j,  and no rows are left
//
// So a token usually reads 16 KB of W and its rows, and writes one row. How many rows are taken is counted on the
// device, one counter a CTA: a captured graph is right at every position. All is float32 but the tokens.
#include "decode.cuh"
#include "ttt_linear.cuh"

struct DecodeArgs {
  Problem p;                     // tokens [B, m, H, DIM], lr [B, H, m]
  float* weights;                // [B, H, DIM + 1, DIM]      in place
  float *keys, *ghat;            // [B, H, 16, DIM + 1], [B, H, 16, DIM]   in place; rows not taken are zero
  int* count;                    // [B, H] rows taken, 0..15  in place
  const int* lengths;            // [B] tokens of this call that count; null: all m. `out` is untouched beyond
  u16* out;                      // [B, m, H, DIM]
};

struct Decode {
  static constexpr int THREADS = 2 * DIM, WARPS = THREADS / 32, GROUPS = 8, ROWS = DIM / GROUPS;
  enum { K, Q, V };
  struct Shared {
    float token[2][3][DIM];      // k, q, v of this token; two buffers
    float keys[TOKENS][DIM], ghat[TOKENS][DIM];
    float part[2][GROUPS][DIM];  // k W and q W, each summed over a group's rows f of W
    float score[TOKENS];         // q . k_j + 1
  };
  static constexpr int SHARED_BYTES = sizeof(Shared);

  // A thread's share of W: rows f = group + GROUPS i, columns n = 4 c .. 4 c + 3.
  struct Slice { F4 w[ROWS]; int group, c; };
  DEVICE static float bf16(u16 x) { return bf16_lo(x); }

  DEVICE static void multiply(Shared& sh, const float (&x)[3][DIM], const Slice& W) {
    UNROLL for (int which = K; which <= Q; which++) {
      F4 sum{0, 0, 0, 0};
      UNROLL for (int i = 0; i < ROWS; i++) add(sum, x[which][W.group + GROUPS * i], W.w[i]);
      ((F4*)sh.part[which][W.group])[W.c] = sum;
    }
  }
  DEVICE static void score(Shared& sh, const float (&x)[3][DIM], int n, const Lane& l) {
    for (int j = l.warp; j <= n; j += WARPS) {
      float sum = 0;
      UNROLL for (int e = 0; e < EACH; e++) sum += x[Q][l.id + 32 * e] * sh.keys[j][l.id + 32 * e];
      sum = warp_sum(sum);
      if (l.id == 0) sh.score[j] = sum + 1.f;
    }
  }
  // One warp: Ghat of the token as row `row`, then its output.
  DEVICE static void predict(Shared& sh, const float (&x)[3][DIM], const Norm& ln, const float (&b)[EACH], float lr,
                             int row, const Lane& l) {
    float z[EACH];
    UNROLL for (int e = 0; e < EACH; e++) {
      z[e] = b[e];
      UNROLL for (int g = 0; g < GROUPS; g++) z[e] += sh.part[K][g][l.id + 32 * e];
    }
    inner_gradient(sh.ghat[row], z, x[K], x[V], lr, ln, l);
  }
  DEVICE static void read(u16* out, Shared& sh, const float (&x)[3][DIM], const Norm& ln, const float (&b)[EACH],
                          float rate, int row, const Lane& l) {
    float zbar[EACH];
    UNROLL for (int e = 0; e < EACH; e++) {
      const int n = l.id + 32 * e;
      zbar[e] = b[e];
      UNROLL for (int g = 0; g < GROUPS; g++) zbar[e] += sh.part[Q][g][n];
      for (int j = 0; j <= row; j++) zbar[e] -= rate * sh.score[j] * sh.ghat[j][n];
    }
    write_output(out, zbar, x[Q], ln, l);
  }
  DEVICE static void fold(const Shared& sh, Slice& W, float rate) {
    for (int j = 0; j < TOKENS; j++) {
      const F4 row = ((const F4*)sh.ghat[j])[W.c];
      UNROLL for (int i = 0; i < ROWS; i++) add(W.w[i], -rate * sh.keys[j][W.group + GROUPS * i], row);
    }
  }

  DEVICE static void run(const DecodeArgs& a, unsigned char* memory) {
    Shared& sh = *(Shared*)memory;
    const Lane l;
    const Problem& p = a.p;
    const Head h(p);
    const int m = a.lengths ? a.lengths[bid() / p.heads] : p.length;
    if (m <= 0) return;

    // All loads are under way together: W, the open rows, the first token (warp 0: k, warp 1: q, warp 2: v).
    Slice W;
    W.group = tid() / (DIM / 4); W.c = tid() % (DIM / 4);
    float* const weights = a.weights + (i64)h.state * STATE;
    F4* const mine = (F4*)weights + W.c;
    UNROLL for (int i = 0; i < ROWS; i++) W.w[i] = mine[(W.group + GROUPS * i) * (DIM / 4)];
    const u16* const tokens = (l.warp == 0 ? p.k : l.warp == 1 ? p.q : p.v) + h.first + l.id;
    u16 next[EACH] = {};
    if (l.warp < 3) UNROLL for (int e = 0; e < EACH; e++) next[e] = tokens[32 * e];
    float* const keys = a.keys + (i64)h.state * TOKENS * (DIM + 1);
    float* const ghat = a.ghat + (i64)h.state * TOKENS * DIM;
    const int first = a.count[h.state];
    for (int i = tid(); i < first * DIM; i += THREADS) {
      sh.keys[i / DIM][i % DIM] = keys[i / DIM * (DIM + 1) + i % DIM];
      sh.ghat[i / DIM][i % DIM] = ghat[i];
    }
    const Norm ln(p, h, l);
    float b[EACH];
    UNROLL for (int e = 0; e < EACH; e++) b[e] = weights[DIM * DIM + l.id + 32 * e];

    int row = first;
    bool folded = false;
    for (int u = 0; u < m; u++) {
      float (&x)[3][DIM] = sh.token[u & 1];
      if (l.warp < 3) UNROLL for (int e = 0; e < EACH; e++) {
        x[l.warp][l.id + 32 * e] = bf16(next[e]);
        if (l.warp == K) sh.keys[row][l.id + 32 * e] = bf16(next[e]);
        if (u + 1 < m) next[e] = tokens[(u + 1) * h.stride + 32 * e];
      }
      sync_cta();                                                        // the token is here
      multiply(sh, x, W);
      score(sh, x, row, l);
      sync_cta();                                                        // partial products and scores
      if (l.warp == 0) {
        predict(sh, x, ln, b, p.lr[h.first_rate + u], row, l);
        read(a.out + h.first + u * h.stride, sh, x, ln, b, p.tok[row], row, l);
      }
      if (++row == TOKENS) {
        const float rate = p.tok[TOKENS - 1];
        sync_cta();                                                      // the last row of Ghat
        fold(sh, W, rate);
        if (l.warp == 0) UNROLL for (int e = 0; e < EACH; e++)
          for (int j = 0; j < TOKENS; j++) b[e] -= rate * sh.ghat[j][l.id + 32 * e];
        sync_cta();                                                      // rows are read
        for (int i = tid(); i < TOKENS * DIM; i += THREADS) sh.keys[i / DIM][i % DIM] = sh.ghat[i / DIM][i % DIM] = 0.f;
        sync_cta();                                                      // and empty
        row = 0;
        folded = true;
      }
    }
    sync_cta();                                                          // the rows are final
    for (int i = (folded ? 0 : first * DIM) + tid(); i < (folded ? TOKENS : row) * DIM; i += THREADS) {
      keys[i / DIM * (DIM + 1) + i % DIM] = sh.keys[i / DIM][i % DIM];
      ghat[i] = sh.ghat[i / DIM][i % DIM];
    }
    if (tid() < TOKENS) keys[tid() * (DIM + 1) + DIM] = tid() < row ? 1.f : 0.f;      // the bias' key
    if (folded) {
      UNROLL for (int i = 0; i < ROWS; i++) mine[(W.group + GROUPS * i) * (DIM / 4)] = W.w[i];
      if (l.warp == 0) UNROLL for (int e = 0; e < EACH; e++) weights[DIM * DIM + l.id + 32 * e] = b[e];
    }
    if (tid() == 0) a.count[h.state] = row;                              // every thread read it before the barriers
  }
};

ENTRY(ttt_linear_decode, Decode, DecodeArgs, (DIM == 64 ? 4 : 1))
