// TTT-MLP, forward: one CTA of eight warps a head and segment walks its mini-batches; both layers stay in registers,
// float32, a warp's 32 hidden units each.
//
//   predict    hidden view   Z1, X2, gelu'(Z1), the parts of P1 and Z1bar that need no gradient; partial sums of Z2
//   barrier 1
//   output     token view    LN(Z2bar) and out of mini-batch t - 1
//   target     token view    Z2 -> Ghat2
//   barrier 2
//   learn      hidden view   Ghat1, Z1bar, X2bar, P2; partial sums of Z2bar; both updates
//
// The sums of Z2bar are read behind barrier 1 of the next mini-batch, so two barriers a mini-batch are enough. Nothing
// has to be summed over the warps for P2 Ghat2: it is linear in P2, and a warp applies its own 32 hidden units' share.
// Of a mini-batch that earlier calls have begun, keys and Ghat2 are enough: X2 and Ghat1 follow, bit by bit.
// Tokens arrive by asynchronous copies, STAGES - 1 mini-batches ahead.
#include "ttt_mlp.cuh"

struct ForwardArgs {
  Problem p;
  const float *start1, *start2;               // [S, H, DIM + 1, HIDDEN], [S, H, HIDDEN + 1, DIM]  to begin with
  const float *keys, *ghat2;                  // [S, H, 16, DIM + 1], [.., DIM]  rows of a mini-batch already open
  u16* out;                                   // [B, L, H, DIM]
  float *end1, *end2;                         // as start1, start2: after the last full mini-batch
  float *end_keys, *end_ghat1, *end_ghat2;    // those left open, Ghat1 [S, H, 16, HIDDEN] too; untouched if none are
  u32* updates;                               // [mini-batches, H, 8 HIDDEN]  for the backward pass; null: not wanted
  u16* saved_ghat2;                           // [mini-batches, H, 16, DIM]  likewise
  float* checkpoints;                         // [(mini-batches - 1) / every, H, CHECKPOINT]  likewise
};

struct Forward {
  static constexpr int THREADS = 32 * WARPS, STAGES = 4;
  static constexpr int GHAT2 = STAGES * 3 * TOKEN_TILE;                   // Tile<DIM>  Ghat2 [16 tokens x n]
  static constexpr int Z2 = GHAT2 + TOKEN_TILE;                           // partial sums of Z2
  static constexpr int Z2BAR = Z2 + WARPS * PARTIAL * 4;                  // and of Z2bar
  static constexpr int SHARED_BYTES = Z2BAR + WARPS * PARTIAL * 4;

  struct Stage { Tile<DIM> k, q, v; };
  DEVICE static Stage stage(u32 shared, int t) {
    const u32 base = shared + t % STAGES * 3 * TOKEN_TILE;
    return Stage{{base}, {base + TOKEN_TILE}, {base + 2 * TOKEN_TILE}};
  }
  DEVICE static void fetch_stage(const Problem& p, const Head& h, u32 shared, int t) {
    if (t < h.count) {
      const Stage s = stage(shared, t);
      fetch<THREADS>(s.k, p.k, h, t); fetch<THREADS>(s.q, p.q, h, t); fetch<THREADS>(s.v, p.v, h, t);
    }
    copy_commit();
  }

  // ---- hidden view; what `predict` leaves for `learn`
  struct Step {
    Acc z1bar[PAIR], slope[PAIR];             // [h x token]; gelu'(Z1)
    Left x2[PAIR];                            // [h x token]
    Left minus_p1;                            // [token x token]
  };
  // This warp's share of (X2 W2 + b2)^T, features 16 s .. + 15; xt is X2 [token x h]
  DEVICE static Acc second_layer(const Weights& W, int s, const Left (&xt)[PAIR], const Lane& l) {
    Acc z;
    fill(z, 0.f);
    if (l.warp == s) z = bias_tile(W.b2);
    UNROLL for (int m = 0; m < PAIR; m++) mma(z, pack(W.w2[s][m]), right(xt[m]));
    return z;
  }
  DEVICE static void predict(Step& now, const Weights& W, const Stage& in, const float (&rates)[2], float* sums,
                             const Lane& l) {
    Acc z1[PAIR], S;                                                      // Z1^T = (K W1 + b1)^T;  S = Q K^T + 1
    fill(S, 1.f);
    UNROLL for (int m = 0; m < PAIR; m++) z1[m] = now.z1bar[m] = bias_tile(W.b1[m]);
    UNROLL for (int s = 0; s < STEPS; s++) {
      Left q; Right kt, qt;                                               // tokens x 16 features f
      load(kt, in.k, 0, 16 * s, l); load(qt, in.q, 0, 16 * s, l); load(q, in.q, 0, 16 * s, l);
      UNROLL for (int m = 0; m < PAIR; m++) {
        const Left w = pack(W.w1[m][s]);
        mma(z1[m], w, kt); mma(now.z1bar[m], w, qt);
      }
      mma(S, q, kt);
    }
    now.minus_p1 = minus_P(S, rates, l);
    Left xt[PAIR];
    UNROLL for (int m = 0; m < PAIR; m++) {
      UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++) {
        const Gelu g = gelu(z1[m].at(r, k));
        z1[m].at(r, k) = g.value; now.slope[m].at(r, k) = g.slope;
      }
      now.x2[m] = pack(z1[m]);
      xt[m] = transposed(now.x2[m]);
    }
    UNROLL for (int s = 0; s < STEPS; s++) put_partial(sums, 16 * s, second_layer(W, s, xt, l), l);
  }

  // ---- token view
  struct Norm { const float *gamma, *beta; float sum_a; };                // of the head; sum of gamma^2 over n
  // out = q + gamma x + beta,  x = normalised Z2bar
  DEVICE static void output(u16* out, const Head& h, int t, Tile<DIM> q, const float* sums, const Norm& ln,
                            const Owner& o) {
    float z[4] = {}, y[4], gamma[4], beta[4], sum[2] = {};
    gather(z, sums, o);
    load_row(y, q, o.token, o.n);
    read_four(gamma, ln.gamma + o.n); read_four(beta, ln.beta + o.n);
    UNROLL for (int i = 0; i < 4; i++) { sum[0] += z[i]; sum[1] += z[i] * z[i]; }
    UNROLL for (int i = 0; i < 2; i++) sum[i] = owner_sum(sum[i]) * PER_DIM;
    const float r = rsqrt_approx(fmaxf(sum[1] - sum[0] * sum[0], 0.f) + EPSILON);
    UNROLL for (int i = 0; i < 4; i++) y[i] += gamma[i] * (z[i] - sum[0]) * r + beta[i];
    if (h.holds(t, o.token)) store_token(out, h, t, o, y);
  }
  // Ghat2 = lr r (gx - mean gx - x mean(gx x)), rounded to bf16 for all that reads it
  DEVICE static void target(const ForwardArgs& a, const Head& h, int t, const Stage& in, Tile<DIM> ghat2,
                            const float* sums, float lr, const Norm& ln, const Owner& o) {
    float z[4] = {}, k[4], v[4], gamma[4], beta[4], c[4], sum[6] = {};
    gather(z, sums, o);
    load_row(k, in.k, o.token, o.n); load_row(v, in.v, o.token, o.n);
    read_four(gamma, ln.gamma + o.n); read_four(beta, ln.beta + o.n);
    UNROLL for (int i = 0; i < 4; i++) {
      const float a = gamma[i] * gamma[i], zz = z[i];
      c[i] = gamma[i] * (beta[i] - v[i] + k[i]);                          // target: v - k
      sum[0] += zz;          sum[1] += zz * zz;   sum[2] += a * zz;
      sum[3] += a * zz * zz; sum[4] += c[i] * zz; sum[5] += c[i];
    }
    UNROLL for (int q = 0; q < 6; q++) sum[q] = owner_sum(sum[q]);
    const InnerStats s = inner_stats(sum, ln.sum_a);
    const i64 row = (i64)h.state * TOKENS + o.token;
    float ghat[4];
    UNROLL for (int i = 0; i < 4; i++) {
      const float x = z[i] * s.r + s.shift, gx = gamma[i] * gamma[i] * x + c[i];
      ghat[i] = lr * s.r * (gx - s.mean_gx - x * s.mean_gxx);
      if (t == 0 && o.token < h.taken) ghat[i] = a.ghat2[row * DIM + o.n + i];
      if (h.open(t)) { a.end_ghat2[row * DIM + o.n + i] = ghat[i]; a.end_keys[row * (DIM + 1) + o.n + i] = k[i]; }
    }
    if (h.open(t) && o.n == 0) a.end_keys[row * (DIM + 1) + DIM] = h.token(t, o.token) < h.tokens ? 1.f : 0.f;
    const U2 pairs = store_row(ghat2, o.token, o.n, ghat);
    if (a.updates) *(U2*)(ghat2_slot(a.saved_ghat2, h, t) + o.token * DIM + o.n) = pairs;
  }

  // ---- hidden view
  // Ghat1^T [h x token]
  DEVICE static void inner_gradient(Acc (&ghat1)[PAIR], const ForwardArgs& a, const Head& h, int t, const Step& now,
                                    const Weights& W, Tile<DIM> ghat2, const Lane& l) {
    UNROLL for (int m = 0; m < PAIR; m++) fill(ghat1[m], 0.f);
    UNROLL for (int s = 0; s < STEPS; s++) {
      Right g;                                                            // [token x n]
      load(g, ghat2, 0, 16 * s, l);
      UNROLL for (int m = 0; m < PAIR; m++) mma(ghat1[m], transposed(pack(W.w2[s][m])), g);
    }
    float* const rows = a.end_ghat1 + (i64)h.state * TOKENS * HIDDEN;
    UNROLL for (int m = 0; m < PAIR; m++) UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++) {
      float& g = ghat1[m].at(r, k);
      g *= now.slope[m].at(r, k);
      if (h.open(t)) rows[l.column_of(k) * HIDDEN + bias1_place(m, r, l)] = g;
    }
  }
  DEVICE static void learn(const ForwardArgs& a, const Head& h, int t, Step& now, Weights& W, const Stage& in,
                           Tile<DIM> ghat2, const float (&rates)[2], float* sums, const Lane& l) {
    const float tok_last = a.p.tok[TOKENS - 1];
    const float rate = h.open(t) ? 0.f : -tok_last;                       // a mini-batch left open does not update
    Acc ghat1[PAIR], S2;
    Left xbar[PAIR];                                                      // X2bar [token x h]
    inner_gradient(ghat1, a, h, t, now, W, ghat2, l);
    fill(S2, l.warp == 0 ? 1.f : 0.f);                                    // this warp's share of X2bar X2^T + 1
    UNROLL for (int m = 0; m < PAIR; m++) {
      mma(now.z1bar[m], pack(ghat1[m]), right(now.minus_p1));             // Z1bar^T = (Q W1 + b1)^T - Ghat1^T P1^T
      UNROLL for (int r = 0; r < 2; r++)
        UNROLL for (int k = 0; k < 4; k++) now.z1bar[m].at(r, k) = gelu(now.z1bar[m].at(r, k)).value;
      xbar[m] = transposed(pack(now.z1bar[m]));
      mma(S2, xbar[m], right(transposed(now.x2[m])));
    }
    const Left minus_p2 = minus_P(S2, rates, l);
    Left x2[PAIR];
    UNROLL for (int m = 0; m < PAIR; m++) x2[m] = scaled(now.x2[m], rate);
    UNROLL for (int s = 0; s < STEPS; s++) {
      Left g;                                                             // Ghat2^T [16 n x token]
      load_transposed(g, ghat2, 0, 16 * s, l);
      Acc z = second_layer(W, s, xbar, l);
      mma(z, g, right(minus_p2));                                         // Z2bar^T = (X2bar W2 + b2)^T - Ghat2^T P2^T
      put_partial(sums, 16 * s, z, l);
      UNROLL for (int m = 0; m < PAIR; m++) mma(W.w2[s][m], g, right(x2[m]));
      if (l.warp % STEPS == s) {
        float sum[4] = {};
        add_tokens(sum, g);
        UNROLL for (int i = 0; i < 4; i++) W.b2[i] += rate * sum[i];
      }
    }
    UNROLL for (int m = 0; m < PAIR; m++) {
      UNROLL for (int i = 0; i < 8; i++) ghat1[m].v[i >> 2][i & 3] *= rate;
      const Left u = pack(ghat1[m]);
      UNROLL for (int s = 0; s < STEPS; s++) mma_tile(W.w1[m][s], u, in.k, 0, 16 * s, l);
      add_tokens(W.b1[m], u);
      if (a.updates) *update_slot(a.updates, h, t, m, l) = U4{u.x[0], u.x[1], u.x[2], u.x[3]};
    }
  }

  DEVICE static void run(const ForwardArgs& a, unsigned char* memory) {
    const Problem& p = a.p;
    const Head h(p);
    const u32 shared = shared_address(memory);
    const Tile<DIM> ghat2{shared + GHAT2};
    float *const z2 = (float*)(memory + Z2), *const z2bar = (float*)(memory + Z2BAR);
    Weights W;
    read_weights(W, a.start1 + (i64)h.state * STATE1, a.start2 + (i64)h.state * STATE2, Lane());
    const Norm ln{p.gamma + h.head * DIM, p.beta + h.head * DIM, square_sum(p.gamma + h.head * DIM)};

    const float rates[2] = {-p.tok[Lane().row], -p.tok[Lane().row + 8]};
    for (int t = 0; t < STAGES - 1; t++) fetch_stage(p, h, shared, t);
    copy_wait<STAGES - 2>();
    sync_cta();
    if (h.taken) {
      restore_keys<THREADS>(stage(shared, 0).k, a.keys + (i64)h.state * TOKENS * (DIM + 1), h.taken);
      sync_cta();
    }
    for (int t = 0; t <= h.count; t++) {                                  // the last iteration only writes an output
      const Lane l(opaque(tid()));                                        // anew: addresses kept would fill registers
      const Owner o(l);
      const Stage in = stage(shared, t);
      Step now;
      float lr = 0.f;
      if (t < h.count) {
        if (a.updates && h.checkpoint(t, p.every)) write_checkpoint(checkpoint_slot(a.checkpoints, p, h, t), W, l);
        if (h.holds(t, o.token)) lr = p.lr[h.first_rate + h.token(t, o.token)];
        predict(now, W, in, rates, z2, l);
      }
      sync_cta();                                                         // 1: sums of Z2, and of Z2bar of t - 1
      if (t > 0) output(a.out, h, t - 1, stage(shared, t - 1).q, z2bar, ln, o);
      if (t == h.count) break;
      target(a, h, t, in, ghat2, z2, lr, ln, o);
      copy_wait<STAGES - 3>();                                            // this thread's part of tile t + 1 is here
      sync_cta();                                                         // 2: everyone's; Ghat2; stage t - 1 is free
      fetch_stage(p, h, shared, t + STAGES - 1);
      learn(a, h, t, now, W, in, ghat2, rates, z2bar, l);
    }
    write_weights(a.end1 + (i64)h.state * STATE1, a.end2 + (i64)h.state * STATE2, W, Lane());
  }
};

ENTRY(ttt_mlp_fwd, Forward, ForwardArgs, 1)
