// TTT-Linear, forward: one CTA a head and segment walks its mini-batches; W and b stay in registers, float32.
//
// Each warp owns SLICES x 16 features n. The chain from W to the next W holds ONE barrier: the sums of the inner
// LayerNorm of mini-batch t and those of the output LayerNorm of t - 1 are exchanged together, so the output of a
// mini-batch is written one iteration later. Tokens arrive by asynchronous copies, STAGES - 1 mini-batches ahead.
#include "ttt_linear.cuh"

struct ForwardArgs {
  Problem p;
  const float* start;                      // [S, H, DIM + 1, DIM]  W and b to begin with
  const float *keys, *ghat;                // [S, H, 16, DIM + 1], [S, H, 16, DIM]  rows of a mini-batch already open
  u16* out;                                // [B, L, H, DIM]
  float* end;                              // [S, H, DIM + 1, DIM]  after the last full mini-batch
  float *end_keys, *end_ghat;              // rows of the mini-batch left open; untouched if none is
  u32* updates;                            // [mini-batches, H, 8 DIM]  for the backward pass; null: not wanted
  float* checkpoints;                      // [(mini-batches - 1) / every, H, DIM + 1, DIM]  likewise
};

template <int SLICES> struct Forward {
  static constexpr int WARPS = STEPS / SLICES, THREADS = 32 * WARPS, STAGES = 4;
  static constexpr int SUMS = STAGES * 3 * TOKEN_TILE;                  // float[2][8 quantities][16 tokens][WARPS]
  static constexpr int STATS = SUMS + 2 * 8 * TOKENS * WARPS * 4;       // F4[WARPS][32]
  static constexpr int SHARED_BYTES = STATS + WARPS * 32 * 16;

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

  // ---- a mini-batch that earlier calls have begun, and one that this call leaves open
  DEVICE static void restore_ghat(Acc& ghat, const float* rows, int taken, int n0, const Lane& l) {
    UNROLL for (int k = 0; k < 4; k++) if (l.column_of(k) < taken)
      UNROLL for (int r = 0; r < 2; r++) ghat.at(r, k) = rows[l.column_of(k) * DIM + n0 + l.row + 8 * r];
  }
  DEVICE static void keep_rows(const ForwardArgs& a, const Head& h, const Left& key, const Acc& ghat, int n0,
                               const Lane& l) {
    float* const keys = a.end_keys + (i64)h.state * TOKENS * (DIM + 1);
    float* const rows = a.end_ghat + (i64)h.state * TOKENS * DIM;
    UNROLL for (int k = 0; k < 4; k++) UNROLL for (int r = 0; r < 2; r++) {
      const int slot = l.column_of(k), n = n0 + l.row + 8 * r;
      keys[slot * (DIM + 1) + n] = key.at(r, k);
      rows[slot * DIM + n] = ghat.at(r, k);
      if (n == 0) keys[slot * (DIM + 1) + DIM] = h.token(h.count - 1, slot) < h.tokens ? 1.f : 0.f;   // the bias' key
    }
  }

  // ---- elementwise steps; r = the lane's two features, k = its four tokens
  DEVICE static void pull(Acc& c, const Left& v, const Left& k_own, const float (&gamma)[2], const float (&beta)[2]) {
    UNROLL for (int r = 0; r < 2; r++)                                  // c = gamma (beta - target), target = v - k
      UNROLL for (int k = 0; k < 4; k++) c.at(r, k) = gamma[r] * (beta[r] - v.at(r, k) + k_own.at(r, k));
  }
  DEVICE static void add_sums(float (&sum)[8][4], const Acc& z, const Acc& c, const Acc& zbar,
                              const float (&gamma)[2]) {
    UNROLL for (int k = 0; k < 4; k++) UNROLL for (int r = 0; r < 2; r++) {
      const float a = gamma[r] * gamma[r], zz = z.at(r, k), cc = c.at(r, k), y = zbar.at(r, k);
      sum[0][k] += zz;      sum[1][k] += zz * zz; sum[2][k] += a * zz; sum[3][k] += a * zz * zz;
      sum[4][k] += cc * zz; sum[5][k] += cc;      sum[6][k] += y;      sum[7][k] += y * y;
    }
  }
  // Lanes 0..15 finish the inner statistics of token `lane`, lanes 16..31 (mean and r only) those of the output.
  DEVICE static void finish_stats(F4* stats, const float* sums, float sum_a, const Lane& l) {
    const int token = l.id & 15, first = l.id < 16 ? 0 : 6;
    float sum[6];
    UNROLL for (int q = 0; q < 6; q++) sum[q] = sum_of_warps<WARPS>(sums, q < 2 ? first + q : q, token);
    const InnerStats s = inner_stats(sum, sum_a);
    stats[l.id] = F4{s.r, s.shift, s.mean_gx, s.mean_gxx};
    sync_warp();
  }
  // Ghat = lr r (gx - mean gx - x mean(gx x)) and the operand of the update
  DEVICE static void inner_gradient(Acc& ghat, const Acc& z, const Acc& c, const F4* stats, const float (&lr)[4],
                                    const float (&gamma)[2], const Lane& l) {
    UNROLL for (int k = 0; k < 4; k++) {
      const F4 s = stats[l.column_of(k)];
      UNROLL for (int r = 0; r < 2; r++) {
        const float x = z.at(r, k) * s.x + s.y, gx = gamma[r] * gamma[r] * x + c.at(r, k);
        ghat.at(r, k) = lr[k] * s.x * (gx - s.z - x * s.w);
      }
    }
  }
  // out = q + gamma x + beta
  DEVICE static Left output(const Acc& zbar, const Left& q, const F4* stats, const float (&gamma)[2],
                            const float (&beta)[2], const Lane& l) {
    Acc y;
    UNROLL for (int k = 0; k < 4; k++) {
      const F4 s = stats[16 + l.column_of(k)];
      UNROLL for (int r = 0; r < 2; r++)
        y.at(r, k) = q.at(r, k) + gamma[r] * (zbar.at(r, k) * s.x + s.y) + beta[r];
    }
    return transposed(pack(y));
  }

  DEVICE static void run(const ForwardArgs& a, unsigned char* memory) {
    const Lane l;
    const Problem& p = a.p;
    const Head h(p);
    const u32 shared = shared_address(memory);
    const int n0 = l.warp * SLICES * 16;
    Weight W[SLICES];
    float gamma[SLICES][2], beta[SLICES][2], sum_a = 0;
    UNROLL for (int m = 0; m < SLICES; m++) {
      read_weight(W[m], a.start + (i64)h.state * STATE, n0 + 16 * m, l);
      UNROLL for (int r = 0; r < 2; r++) {
        const int n = h.head * DIM + n0 + 16 * m + l.row + 8 * r;
        gamma[m][r] = p.gamma[n]; beta[m][r] = p.beta[n];
      }
    }
    for (int n = 0; n < DIM; n++) sum_a += p.gamma[h.head * DIM + n] * p.gamma[h.head * DIM + n];
    const float rates[2] = {-p.tok[l.row], -p.tok[l.row + 8]}, tok_last = p.tok[TOKENS - 1];

    for (int t = 0; t < STAGES - 1; t++) fetch_stage(p, h, shared, t);
    copy_wait<STAGES - 2>();
    sync_cta();
    if (h.taken) {
      restore_keys<THREADS>(stage(shared, 0).k, a.keys + (i64)h.state * TOKENS * (DIM + 1), h.taken);
      sync_cta();
    }
    Acc zbar[SLICES];                                                   // Zbar^T and Q^T [n x token] of t - 1
    Left q_before[SLICES];
    UNROLL for (int m = 0; m < SLICES; m++) { fill(zbar[m], 0.f); q_before[m] = Left{{0, 0, 0, 0}}; }

    for (int t = 0; t <= h.count; t++) {                                // the last iteration only writes an output
      const Stage in = stage(shared, t);
      Acc z[SLICES], zq[SLICES], c[SLICES];                             // [n x token]
      Left minus_p, q_own[SLICES], k_own[SLICES];
      float lr[4];
      if (t < h.count) {
        if (a.updates && h.checkpoint(t, p.every))
          UNROLL for (int m = 0; m < SLICES; m++)
            write_checkpoint(checkpoint_slot(a.checkpoints, p, h, t), W[m], n0 + 16 * m, l);
        load_rates(lr, p, h, t, l);
        // Z^T = W^T K^T + b;   (Q W + b)^T;   S = Q K^T + 1
        Acc S;
        fill(S, 1.f);
        UNROLL for (int m = 0; m < SLICES; m++) z[m] = zq[m] = bias_tile(W[m].b);
        UNROLL for (int s = 0; s < STEPS; s++) {
          Left q; Right kt, qt;                                         // tokens x 16 features f
          load(kt, in.k, 0, 16 * s, l); load(qt, in.q, 0, 16 * s, l); load(q, in.q, 0, 16 * s, l);
          UNROLL for (int m = 0; m < SLICES; m++) {
            const Left w = pack(W[m].w[s]);
            mma(z[m], w, kt); mma(zq[m], w, qt);
          }
          mma(S, q, kt);
        }
        minus_p = minus_P(S, rates, l);
        UNROLL for (int m = 0; m < SLICES; m++) {
          Left v;
          load_transposed(v, in.v, 0, n0 + 16 * m, l);
          load_transposed(k_own[m], in.k, 0, n0 + 16 * m, l);
          load_transposed(q_own[m], in.q, 0, n0 + 16 * m, l);
          pull(c[m], v, k_own[m], gamma[m], beta[m]);
        }
      } else UNROLL for (int m = 0; m < SLICES; m++) { fill(z[m], 0.f); fill(c[m], 0.f); }

      float sum[8][4] = {};
      UNROLL for (int m = 0; m < SLICES; m++) add_sums(sum, z[m], c[m], zbar[m], gamma[m]);
      float* const sums = (float*)(memory + SUMS) + (t & 1) * 8 * TOKENS * WARPS;
      sum_over_rows<8, WARPS>(sum, sums, l);
      copy_wait<STAGES - 3>();                                          // this thread's part of tile t + 1 is here
      sync_cta();                                                       // everyone's part; sums; stage t - 1 is free
      fetch_stage(p, h, shared, t + STAGES - 1);
      F4* const stats = (F4*)(memory + STATS) + l.warp * 32;
      finish_stats(stats, sums, sum_a, l);

      if (t > 0) UNROLL for (int m = 0; m < SLICES; m++)
        store_tokens(a.out, h, t - 1, n0 + 16 * m, output(zbar[m], q_before[m], stats, gamma[m], beta[m], l), l);
      if (t < h.count) UNROLL for (int m = 0; m < SLICES; m++) {
        const float rate = h.open(t) ? 0.f : -tok_last;                 // a mini-batch left open does not update
        Acc ghat, update;                                               // [n x token]
        inner_gradient(ghat, z[m], c[m], stats, lr, gamma[m], l);
        if (t == 0 && h.taken) restore_ghat(ghat, a.ghat + (i64)h.state * TOKENS * DIM, h.taken, n0 + 16 * m, l);
        UNROLL for (int i = 0; i < 8; i++) update.v[i >> 2][i & 3] = rate * ghat.v[i >> 2][i & 3];
        const Left u = pack(update);
        mma(zq[m], pack(ghat), right(minus_p));                         // Zbar^T = (Q W + b)^T - Ghat^T P^T
        rank16_update(W[m], u, in.k, l);
        if (a.updates) *update_slot(a.updates, h, t, n0 + 16 * m, l) = U4{u.x[0], u.x[1], u.x[2], u.x[3]};
        if (h.open(t)) keep_rows(a, h, k_own[m], ghat, n0 + 16 * m, l);
        zbar[m] = zq[m]; q_before[m] = q_own[m];
      }
    }
    UNROLL for (int m = 0; m < SLICES; m++) write_weight(a.end + (i64)h.state * STATE, W[m], n0 + 16 * m, l);
  }
};

ENTRY(ttt_linear_fwd, Forward<1>, ForwardArgs, (DIM == 64 ? 3 : DIM == 96 ? 2 : 1))   // shortest chain: few heads
#if HEAD_DIM == 64
ENTRY(ttt_linear_fwd_wide, Forward<2>, ForwardArgs, 4)                                // fewest instructions: many
#endif
