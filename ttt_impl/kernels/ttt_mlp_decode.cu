// TTT-MLP, decoding: a few tokens a call, one CTA a head and sequence, everything remembered updated in place.
//
// The state is W1, W2 at the start of the open mini-batch and the rows K, X2, Ghat1, Ghat2 of its tokens so far. Token
// n of the mini-batch:
//
//   predict    z1 = k W1 + b1,  x2_n = gelu(z1),  z2 = x2_n W2 + b2
//   target     Ghat2_n = lr G(z2)
//   hidden     Ghat1_n = (Ghat2_n W2^T) gelu'(z1)
//              z1bar = q W1 + b1 - tok_n sum_(j <= n) (q . k_j + 1) Ghat1_j,            x2bar = gelu(z1bar)
//   read       z2bar = x2bar W2 + b2 - tok_n sum_(j <= n) (x2bar . x2_j + 1) Ghat2_j,   out = q + LN(z2bar)
//   fold       after the 16th token both layers take the rows in, and no rows are left
//
// Thread h is hidden unit h: it alone reads and writes column h of W1 and Ghat1. W2 is read once, into registers, so
// that its products sum over hidden units inside a thread first; W1 is read at every token of the call. How many rows
// are taken is counted on the device, as in TTT-Linear's kernel. All is float32 but the tokens.
#include "decode.cuh"
#include "ttt_mlp.cuh"

struct DecodeArgs {
  Problem p;                     // tokens [B, m, H, DIM], lr [B, H, m]
  float *weights1, *weights2;    // [B, H, DIM + 1, HIDDEN], [B, H, HIDDEN + 1, DIM]  in place
  float *keys, *ghat1, *ghat2, *x2;        // [B, H, 16, DIM + 1 | HIDDEN | DIM | HIDDEN + 1]  in place; not taken: zero
  int* count;                    // [B, H] rows taken, 0..15  in place
  const int* lengths;            // [B] tokens of this call that count; null: all m. `out` is untouched beyond
  u16* out;                      // [B, m, H, DIM]
};

struct Decode {
  static constexpr int THREADS = HIDDEN;
  static_assert(THREADS == 32 * WARPS, "a thread is a hidden unit");
  enum { K, Q, V };
  struct Shared {
    float token[2][3][DIM];      // k, q, v of this token; two buffers
    float keys[TOKENS][DIM], ghat2[TOKENS][DIM], x2[TOKENS][HIDDEN], ghat1[TOKENS][HIDDEN];
    float x2bar[HIDDEN];
    float part[WARPS][DIM];      // x2 W2 or x2bar W2, summed over a warp's hidden units
    float part_score[WARPS][TOKENS];       // x2bar . x2_j, likewise
    float score[TOKENS];         // q . k_j + 1
  };
  static constexpr int SHARED_BYTES = sizeof(Shared);

  // A thread's share of W2: the hidden units 16 group .. + 15 of its half warp, features 4 c .. 4 c + 3.
  struct Slice { F4 w[16]; int group, c; };
  // Each lane of a half warp has 16 numbers; lane i gets the sum of all numbers i.
  DEVICE static float scattered_sum(float (&x)[16], const Lane& l) {
    UNROLL for (int m = 8; m; m >>= 1) {
      const bool high = l.id & m;
      UNROLL for (int i = 0; i < m; i++) {
        const float keep = high ? x[i + m] : x[i], give = high ? x[i] : x[i + m];
        x[i] = keep + shfl_xor(give, m);
      }
    }
    return x[0];
  }
  DEVICE static void multiply(Shared& sh, const float* x, const Slice& W2, const Lane& l) {     // part = x W2
    F4 sum{0, 0, 0, 0};
    UNROLL for (int i = 0; i < 4; i++) {
      const F4 four = ((const F4*)x)[4 * W2.group + i];
      add(sum, four.x, W2.w[4 * i]);     add(sum, four.y, W2.w[4 * i + 1]);
      add(sum, four.z, W2.w[4 * i + 2]); add(sum, four.w, W2.w[4 * i + 3]);
    }
    sum.x += shfl_xor(sum.x, 16); sum.y += shfl_xor(sum.y, 16);
    sum.z += shfl_xor(sum.z, 16); sum.w += shfl_xor(sum.w, 16);
    if (l.id < 16) ((F4*)sh.part[l.warp])[W2.c] = sum;
  }
  DEVICE static float multiply_transposed(const float* x, const Slice& W2, const Lane& l) {     // (x W2^T) of the unit
    const F4 g = ((const F4*)x)[W2.c];
    float d[16];
    UNROLL for (int r = 0; r < 16; r++) d[r] = g.x * W2.w[r].x + g.y * W2.w[r].y + g.z * W2.w[r].z + g.w * W2.w[r].w;
    return scattered_sum(d, l);
  }
  // z and zbar += k W1 and q W1 of the unit; w1 is its column
  DEVICE static void first_layer(float& z, float& zbar, const float (&x)[3][DIM], const float* w1) {
    for (int f = 0; f < DIM; f += 16) UNROLL for (int i = 0; i < 16; i++) {
      const float w = w1[(f + i) * HIDDEN];
      z += x[K][f + i] * w; zbar += x[Q][f + i] * w;
    }
  }
  DEVICE static void score(Shared& sh, const float (&x)[3][DIM], int row, const Lane& l) {
    for (int j = l.warp; j <= row; j += WARPS) {
      float sum = 0;
      UNROLL for (int e = 0; e < EACH; e++) sum += x[Q][l.id + 32 * e] * sh.keys[j][l.id + 32 * e];
      sum = warp_sum(sum);
      if (l.id == 0) sh.score[j] = sum + 1.f;
    }
  }
  DEVICE static void hidden_score(Shared& sh, float x2bar, int row, const Lane& l) {
    float d[16];
    UNROLL for (int j = 0; j < 16; j++) d[j] = j <= row ? x2bar * sh.x2[j][tid()] : 0.f;
    float sum = scattered_sum(d, l);
    sum += shfl_xor(sum, 16);
    if (l.id < 16) sh.part_score[l.warp][l.id] = sum;
  }
  // One warp: z2 or, without its rows, z2bar.
  DEVICE static void collect(float (&z)[EACH], const Shared& sh, const float (&b2)[EACH], const Lane& l) {
    UNROLL for (int e = 0; e < EACH; e++) {
      z[e] = b2[e];
      UNROLL for (int w = 0; w < WARPS; w++) z[e] += sh.part[w][l.id + 32 * e];
    }
  }
  DEVICE static void read_rows(float (&z)[EACH], const Shared& sh, float rate, int row, const Lane& l) {
    ROLLED for (int j = 0; j <= row; j++) {
      float s = 1.f;
      UNROLL for (int w = 0; w < WARPS; w++) s += sh.part_score[w][j];
      UNROLL for (int e = 0; e < EACH; e++) z[e] -= rate * s * sh.ghat2[j][l.id + 32 * e];
    }
  }
  DEVICE static void fold(const Shared& sh, float* w1, float& b1, Slice& W2, float rate) {
    float g[TOKENS];
    UNROLL for (int j = 0; j < TOKENS; j++) { g[j] = rate * sh.ghat1[j][tid()]; b1 -= g[j]; }
    ROLLED for (int f = 0; f < DIM; f++) {
      float sum = 0;
      UNROLL for (int j = 0; j < TOKENS; j++) sum += g[j] * sh.keys[j][f];
      w1[f * HIDDEN] -= sum;
    }
    for (int j = 0; j < TOKENS; j++) {
      const F4 row = ((const F4*)sh.ghat2[j])[W2.c];
      UNROLL for (int r = 0; r < 16; r++) add(W2.w[r], -rate * sh.x2[j][16 * W2.group + r], row);
    }
  }

  DEVICE static void run(const DecodeArgs& a, unsigned char* memory) {
    Shared& sh = *(Shared*)memory;
    const Lane l;
    const Problem& p = a.p;
    const Head h(p);
    const int unit = tid(), m = a.lengths ? a.lengths[bid() / p.heads] : p.length;
    if (m <= 0) return;

    // All loads are under way together: W2, the open rows, the first token (threads 0..63: k, 64..127: q, 128..191: v).
    float *const w1 = a.weights1 + (i64)h.state * STATE1 + unit, *const w2 = a.weights2 + (i64)h.state * STATE2;
    Slice W2;
    W2.group = unit / 16; W2.c = unit % 16;
    F4* const mine = (F4*)w2 + 16 * W2.group * (DIM / 4) + W2.c;
    UNROLL for (int r = 0; r < 16; r++) W2.w[r] = mine[r * (DIM / 4)];
    const int which = unit / DIM, f = unit % DIM;
    const u16* const tokens = (which == K ? p.k : which == Q ? p.q : p.v) + h.first + f;
    u16 next = tokens[0];
    float* const keys = a.keys + (i64)h.state * TOKENS * (DIM + 1);
    float* const ghat1 = a.ghat1 + (i64)h.state * TOKENS * HIDDEN + unit;
    float* const ghat2 = a.ghat2 + (i64)h.state * TOKENS * DIM;
    float* const x2 = a.x2 + (i64)h.state * TOKENS * (HIDDEN + 1) + unit;
    const int first = a.count[h.state];
    UNROLL for (int j = 0; j < TOKENS; j++) if (j < first) sh.ghat1[j][unit] = ghat1[j * HIDDEN];
    UNROLL for (int j = 0; j < TOKENS; j++) if (j < first) sh.x2[j][unit] = x2[j * (HIDDEN + 1)];
    for (int i = unit; i < first * DIM; i += THREADS) {
      sh.keys[i / DIM][i % DIM] = keys[i / DIM * (DIM + 1) + i % DIM];
      sh.ghat2[i / DIM][i % DIM] = ghat2[i];
    }
    const Norm ln(p, h, l);
    float b1 = w1[DIM * HIDDEN], b2[EACH];
    UNROLL for (int e = 0; e < EACH; e++) b2[e] = w2[HIDDEN * DIM + l.id + 32 * e];

    int row = first;
    bool folded = false;
    for (int u = 0; u < m; u++) {
      float (&x)[3][DIM] = sh.token[u & 1];
      if (which <= V) {
        x[which][f] = bf16_lo(next);
        if (which == K) sh.keys[row][f] = bf16_lo(next);
        if (u + 1 < m) next = tokens[(u + 1) * h.stride];
      }
      sync_cta();                                                        // the token is here
      float z1 = b1, z1bar = b1;
      first_layer(z1, z1bar, x, w1);
      const Gelu hidden = gelu(z1);
      sh.x2[row][unit] = hidden.value;
      score(sh, x, row, l);
      sync_warp();                                                       // the warp's x2
      multiply(sh, sh.x2[row], W2, l);
      sync_cta();                                                        // partial sums of z2; scores
      if (l.warp == 0) {
        float z2[EACH];
        collect(z2, sh, b2, l);
        inner_gradient(sh.ghat2[row], z2, x[K], x[V], p.lr[h.first_rate + u], ln, l);
      }
      sync_cta();                                                        // Ghat2
      sh.ghat1[row][unit] = multiply_transposed(sh.ghat2[row], W2, l) * hidden.slope;
      for (int j = 0; j <= row; j++) z1bar -= p.tok[row] * sh.score[j] * sh.ghat1[j][unit];
      const float x2bar = gelu(z1bar).value;
      sh.x2bar[unit] = x2bar;
      sync_warp();                                                       // the warp's x2bar
      multiply(sh, sh.x2bar, W2, l);
      hidden_score(sh, x2bar, row, l);
      sync_cta();                                                        // partial sums of z2bar and of its scores
      if (l.warp == 0) {
        float z2bar[EACH];
        collect(z2bar, sh, b2, l);
        read_rows(z2bar, sh, p.tok[row], row, l);
        write_output(a.out + h.first + u * h.stride, z2bar, x[Q], ln, l);
      }
      if (++row == TOKENS) {
        const float rate = p.tok[TOKENS - 1];
        fold(sh, w1, b1, W2, rate);
        UNROLL for (int e = 0; e < EACH; e++)
          for (int j = 0; j < TOKENS; j++) b2[e] -= rate * sh.ghat2[j][l.id + 32 * e];
        sync_cta();                                                      // rows are read
        for (int j = 0; j < TOKENS; j++) {                               // and emptied, by the threads that write them
          sh.ghat1[j][unit] = sh.x2[j][unit] = 0.f;
          if (which == K) sh.keys[j][f] = 0.f;
          if (l.warp == 0) UNROLL for (int e = 0; e < EACH; e++) sh.ghat2[j][l.id + 32 * e] = 0.f;
        }
        row = 0;
        folded = true;
      }
    }
    ROLLED for (int j = folded ? 0 : first; j < (folded ? TOKENS : row); j++) {
      ghat1[j * HIDDEN] = sh.ghat1[j][unit];
      x2[j * (HIDDEN + 1)] = sh.x2[j][unit];
      if (which == K) keys[j * (DIM + 1) + f] = sh.keys[j][f];
      if (l.warp == 0) UNROLL for (int n = l.id; n < DIM; n += 32) ghat2[j * DIM + n] = sh.ghat2[j][n];
      if (unit == 0) keys[j * (DIM + 1) + DIM] = x2[j * (HIDDEN + 1) + HIDDEN] = j < row ? 1.f : 0.f;     // the biases'
    }
    if (folded) {
      UNROLL for (int r = 0; r < 16; r++) mine[r * (DIM / 4)] = W2.w[r];
      w1[DIM * HIDDEN] = b1;
      if (l.warp == 0) UNROLL for (int e = 0; e < EACH; e++) w2[HIDDEN * DIM + l.id + 32 * e] = b2[e];
    }
    if (unit == 0) a.count[h.state] = row;                               // every thread read it before the barriers
  }
};

ENTRY(ttt_mlp_decode, Decode, DecodeArgs, 2)
