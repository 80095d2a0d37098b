// Where TTT-MLP's backward pass keeps everything: the gradients of the weights, the layout of shared memory, what comes
// in from global memory and what goes out.
#pragma once
#include "ttt_mlp.cuh"

struct BackwardArgs {
  Problem p;
  const u16* dout;                           // [B, L, H, DIM]
  const float *end1, *end2;                  // [S, H, DIM + 1, HIDDEN], [S, H, HIDDEN + 1, DIM]  the final state
  const u32* updates;                        // what the forward saved
  const u16* saved_ghat2;                    // likewise
  float* checkpoints;                        // likewise; read only
  const float *d_end1, *d_end2;              // gradients of end1, end2; null: zero
  u16 *dq, *dk, *dv;                         // [B, L, H, DIM]
  float* dlr;                                // [B, H, L]
  float *dtok, *dgamma, *dbeta;              // [S, H, 16], [S, H, DIM] twice: a row a CTA, no atomics
  float *d_start1, *d_start2;                // as end1, end2
  float* scratch;                            // [S, H, GRADIENTS] for ttt_mlp_bwd_small
};

// -------------------------------------------------------------------------------------- gradients of the weights
DEVICE F4 vector(const float (&x)[4]) { return F4{x[0], x[1], x[2], x[3]}; }
// dW1^T and dW2^T of the warp, float32 tiles in the order of a checkpoint: 16 bytes a lane that no other lane touches.
struct Gradients {
  F4* mine;
  DEVICE Acc get(int tile) const {
    Acc d;
    UNROLL for (int c = 0; c < 2; c++) set_half_tile(d, c, mine[(2 * tile + c) * 32 * WARPS]);
    return d;
  }
  DEVICE void set(int tile, const Acc& d) const {
    UNROLL for (int c = 0; c < 2; c++) mine[(2 * tile + c) * 32 * WARPS] = half_tile(d, c);
  }
  DEVICE Acc one(int m, int s) const { return get(m * STEPS + s); }
  DEVICE Acc two(int s, int m) const { return get(PAIR * STEPS + s * PAIR + m); }
  DEVICE void set_one(int m, int s, const Acc& d) const { set(m * STEPS + s, d); }
  DEVICE void set_two(int s, int m, const Acc& d) const { set(PAIR * STEPS + s * PAIR + m, d); }
  DEVICE void get(Weights& W) const {
    UNROLL for (int i = 0; i < PAIR * STEPS; i++) {
      W.w1[i / STEPS][i % STEPS] = get(i); W.w2[i / PAIR][i % PAIR] = get(PAIR * STEPS + i);
    }
  }
  DEVICE void set(const Weights& W) const {
    UNROLL for (int i = 0; i < PAIR * STEPS; i++) {
      set(i, W.w1[i / STEPS][i % STEPS]); set(PAIR * STEPS + i, W.w2[i / PAIR][i % PAIR]);
    }
  }
};
constexpr int GRADIENTS = 2 * DIM * HIDDEN;      // floats
DEVICE void read_biases(Weights& W, const float* one, const float* two, const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++) {
    UNROLL for (int m = 0; m < PAIR; m++) W.b1[m][2 * r] = W.b1[m][2 * r + 1] = one ? one[bias1_place(m, r, l)] : 0.f;
    W.b2[2 * r] = W.b2[2 * r + 1] = two ? two[bias2_place(r, l)] : 0.f;
  }
}
// As read_weights; zero where there is nothing to read.
DEVICE void read_gradients(Weights& W, const float* one, const float* two, const Lane& l) {
  each_weight1(W.w1, l, [&](float& w, int place) { w = one ? one[place] : 0.f; });
  each_weight2(W.w2, l, [&](float& w, int place) { w = two ? two[place] : 0.f; });
  read_biases(W, one ? one + DIM * HIDDEN : 0, two ? two + HIDDEN * DIM : 0, l);
}
DEVICE void read_checkpoint(Weights& W, const float* from, const Lane& l) {
  Gradients{(F4*)from + tid()}.get(W);
  read_biases(W, from + 2 * DIM * HIDDEN, from + 2 * DIM * HIDDEN + HIDDEN, l);
}
// Biases live in shared memory; of 16 of them in a row, those of the lane's rows.
DEVICE Acc bias_tile(const float* bias, const Lane& l) {
  const float b[4] = {bias[l.row], bias[l.row], bias[l.row + 8], bias[l.row + 8]};
  return bias_tile(b);
}
// bias += rate times the sum over the tokens of A; at = A^T [16 x token]
DEVICE void add_tokens(float* bias, const Left& at, float rate, const Lane& l) {
  float sum[4] = {};
  add_tokens(sum, at);
  if (l.column == 0) { bias[l.row] += rate * sum[0]; bias[l.row + 8] += rate * sum[2]; }
  sync_warp();                                                             // a bias
}

// ----------------------------------------------------------------------- gradients that sum over the whole sequence
struct Totals {
  float gamma[4] = {0, 0, 0, 0}, beta[4] = {0, 0, 0, 0};      // of the lane's features
  float tok = 0, tok_rows[2] = {0, 0}, tok_last = 0;          // of its token, by D1; of its rows, by D2; by the updates
  // After a barrier; before another one and the functions below.
  DEVICE void share(float* sums, float* shares, const Lane& l, const Owner& o) const {
    *(F4*)(sums + o.token * DIM + o.n) = vector(gamma);
    *(F4*)(sums + PARTIAL + o.token * DIM + o.n) = vector(beta);
    const float own = owner_sum(tok), last = warp_sum(tok_last);
    const float rows[2] = {quad_sum(tok_rows[0]), quad_sum(tok_rows[1])};
    if (o.n == 0) shares[o.token] = own;
    if (l.id == 0) shares[2 * TOKENS + l.warp] = last;
    if (l.warp == 0 && l.column == 0)                         // every warp has all of D2
      UNROLL for (int r = 0; r < 2; r++) shares[TOKENS + l.row + 8 * r] = rows[r];
  }
  DEVICE static float of_feature(const float* sums, int n) {
    float total = 0;
    for (int token = 0; token < TOKENS; token++) total += sums[token * DIM + n];
    return total;
  }
  DEVICE static float of_token(const float* shares, int token) {
    float total = shares[token] + shares[TOKENS + token];
    if (token == TOKENS - 1) for (int w = 0; w < WARPS; w++) total += shares[2 * TOKENS + w];
    return total;
  }
};

// Start to copy Ghat2 of a mini-batch, by the half of the threads that `fetch` leaves idle.
DEVICE void fetch_rows(Tile<DIM> to, const u16* from) {
  const int id = tid() - TOKENS * DIM / 8, slot = id / (DIM / 8), c = id % (DIM / 8);
  if (id >= 0) copy_async(to.chunk(slot, c), from + id * 8, true);
}

// --------------------------------------------------------------------------------------------------------- one CTA
constexpr int SCORES = TOKENS * TOKENS;          // float[16 i x 16 j]
struct Place {
  static constexpr int THREADS = 32 * WARPS;
  // shared memory, in bytes
  static constexpr int LATE = 2 * 3 * TOKEN_TILE;                        // v, dout, behind two stages of k, q, Ghat2
  static constexpr int DZ2BAR = LATE + 2 * TOKEN_TILE;                   // Tile<DIM> [16 tokens x n]
  static constexpr int DZ2 = DZ2BAR + TOKEN_TILE;                        // likewise
  static constexpr int SUMS = DZ2 + TOKEN_TILE;                          // two sets of partial sums
  static constexpr int SHARES = SUMS + 2 * WARPS * PARTIAL * 4;          // float[WARPS][16 i x 16 j] of S2, then of D1
  static constexpr int S1 = SHARES + WARPS * SCORES * 4;                 // float[16 i x 16 j]: S1, then dS1
  static constexpr int S2 = S1 + SCORES * 4;                             // float[16 i x 16 j]
  static constexpr int BIASES = S2 + SCORES * 4;                         // b1, b2, db1, db2
  static constexpr int HEAD = BIASES + 2 * (HIDDEN + DIM) * 4;           // Head: registers are too dear
  static constexpr int DW = HEAD + 64;                                   // Gradients, or the end
  static_assert(sizeof(Head) <= DW - HEAD, "no room");

  struct Stage { Tile<DIM> k, q, ghat2, v, dout; };
  DEVICE Stage stage(int t) const {
    const u32 early = shared + t % 2 * 3 * TOKEN_TILE, late = shared + LATE;
    return Stage{{early}, {early + TOKEN_TILE}, {early + 2 * TOKEN_TILE}, {late}, {late + TOKEN_TILE}};
  }
  DEVICE void fetch_early(int t) const {                                 // a mini-batch ahead
    if (t >= 0) {
      const Stage s = stage(t);
      fetch<THREADS>(s.k, p.k, h, t); fetch<THREADS>(s.q, p.q, h, t);
      fetch_rows(s.ghat2, ghat2_slot((u16*)a.saved_ghat2, h, t));
    }
    copy_commit();
  }
  DEVICE void fetch_late(const Stage& in, int t) const {                 // not read before barrier 1
    fetch<THREADS>(in.v, p.v, h, t); fetch<THREADS>(in.dout, a.dout, h, t);
    copy_commit();
  }

  const BackwardArgs& a;
  const Problem& p;
  const u32 shared;
  const Lane l;
  const Owner o;
  const Head& h;
  float *const sums, *const more_sums, *const shares, *const s1, *const s2;
  float *const biases, *const b1, *const db1, *const b2, *const db2;     // b1, db1: of the warp's units
  const Tile<DIM> dz2bar_tile, dz2_tile;
  const Gradients dW;
  Weights W;                                                             // its biases live in shared memory
  Totals total;

  DEVICE Place(const BackwardArgs& a, unsigned char* memory, F4* gradients)
      : a(a), p(a.p), shared(shared_address(memory)), o(l), h(*(const Head*)(memory + HEAD)),
        sums((float*)(memory + SUMS)), more_sums(sums + WARPS * PARTIAL), shares((float*)(memory + SHARES)),
        s1((float*)(memory + S1)), s2((float*)(memory + S2)), biases((float*)(memory + BIASES)),
        b1(biases + UNITS * l.warp), db1(b1 + HIDDEN + DIM), b2(biases + HIDDEN), db2(b2 + HIDDEN + DIM),
        dz2bar_tile{shared + DZ2BAR}, dz2_tile{shared + DZ2}, dW{gradients + tid()} {}

  DEVICE Left update(int t, int m) const {
    const U4 x = *update_slot((u32*)a.updates, h, t, m, l);
    return Left{{x.x, x.y, x.z, x.w}};
  }
  DEVICE void reload(int t) {
    read_checkpoint(W, checkpoint_slot(a.checkpoints, p, h, t), l);
    write_biases(biases, biases + HIDDEN, W, l);
    sync_warp();                                                         // the biases of a checkpoint
  }

  // The state and its gradient come in; the gradients of all that is shared by the tokens go out.
  DEVICE void begin() {
    const i64 at1 = (i64)h.state * STATE1, at2 = (i64)h.state * STATE2;
    read_gradients(W, a.d_end1 ? a.d_end1 + at1 : 0, a.d_end2 ? a.d_end2 + at2 : 0, l);
    dW.set(W);
    write_biases(biases + HIDDEN + DIM, db2, W, l);
    read_weights(W, a.end1 + at1, a.end2 + at2, l);
    write_biases(biases, b2, W, l);
  }
  DEVICE void finish() {
    dW.get(W);
    read_biases(W, biases + HIDDEN + DIM, db2, l);
    write_weights(a.d_start1 + (i64)h.state * STATE1, a.d_start2 + (i64)h.state * STATE2, W, l);
    sync_cta();                                                          // sums and shares are used up
    total.share(sums, shares, l, o);
    sync_cta();                                                          // everyone's totals
    const int n = tid() % DIM;
    if (tid() < DIM) a.dgamma[(i64)h.state * DIM + n] = Totals::of_feature(sums, n);
    else if (tid() < 2 * DIM) a.dbeta[(i64)h.state * DIM + n] = Totals::of_feature(sums + PARTIAL, n);
    else if (n < TOKENS && tid() < 3 * DIM) a.dtok[(i64)h.state * TOKENS + n] = Totals::of_token(shares, n);
  }
};
