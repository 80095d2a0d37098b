// TTT-Linear, backward: a reversible scan. One CTA a head and segment, mini-batches from the last to the first.
//
// The forward kept only U_t = (-tok_last Ghat_t)^T in bf16, exactly the operand of its update W_(t+1) = W_t + K^T U^T,
// and W itself every now and then. Walking back, W_t = W_(t+1) - K^T U^T. With dW, db the gradients of W_(t+1) and
// b_(t+1):
//
//   recompute   Z = K W + b,  x, Ghat,  P,  Zbar = Q W + b - P Ghat
//   output      u = gamma dout;   dZbar = r (u - mean u - xo mean(u xo)),   xo = normalised Zbar
//   update      KdW = K dW + db;  dGhat = -P^T dZbar - tok_last KdW
//   scores      D = dZbar Ghat^T for j <= i;  dS = -tok D;  dtok_i -= sum_j D_ij S_ij;  dtok_last -= <Ghat, KdW>
//   rate        dlr_j = <dGhat_j, G_j>
//   inner       dGhat -> dZ, dt: the gradient of a gradient (ttt_linear_bwd.cuh)
//   tokens      dQ = dout + dZbar W^T + dS K
//               dK = dS^T Q - tok_last Ghat dW^T + dZ W^T - dt,      dV = dt
//   state       dW_t = dW + Q^T dZbar + K^T dZ,      db_t = db + sum dZbar + sum dZ
//
// A warp owns 16 features n for all that is elementwise in n (transposed, as in the forward), and the same 16 places as
// input features f for dQ and dK. Those contract over all n: their operands pass through shared memory once, as bf16.
#include "ttt_linear_bwd.cuh"

struct BackwardArgs {
  Problem p;
  const u16* dout;                           // [B, L, H, DIM]
  const float* end;                          // [S, H, DIM + 1, DIM]  the state that the forward returned
  const u32* updates;                        // what the forward saved
  float* checkpoints;                        // likewise; read only
  const float* d_end;                        // gradient of `end`; null: zero
  u16 *dq, *dk, *dv;                         // [B, L, H, DIM]
  float* dlr;                                // [B, H, L]
  float *dtok, *dgamma, *dbeta;              // [S, H, 16], [S, H, DIM] twice: a row a CTA, no atomics
  float* d_start;                            // [S, H, DIM + 1, DIM]
};

struct Backward {
  static constexpr int WARPS = STEPS, THREADS = 32 * WARPS, STAGES = 2;
  // shared memory, in bytes
  static constexpr int WT = STAGES * 4 * TOKEN_TILE;                     // Tile<DIM>  W^T [n x f]
  static constexpr int DWT = WT + WEIGHT_TILE;                           // Tile<DIM>  dW^T [n x f]
  static constexpr int DZBAR = DWT + WEIGHT_TILE;                        // Tile<16>   dZbar^T [n x token]
  static constexpr int GHAT = DZBAR + TOKEN_TILE;                        // Tile<16>   Ghat^T
  static constexpr int DZ = GHAT + TOKEN_TILE;                           // Tile<16>   dZ^T
  static constexpr int SUMS = DZ + TOKEN_TILE;                           // float[6 + 4 + 6][16 tokens][WARPS]
  static constexpr int STATS = SUMS + 16 * TOKENS * WARPS * 4;           // F4[WARPS][2][16 tokens]
  static constexpr int SHARED_BYTES = STATS + WARPS * 2 * TOKENS * 16;

  struct Stage { Tile<DIM> k, q, v, dout; };
  DEVICE static Stage stage(u32 shared, int t) {
    const u32 base = shared + t % STAGES * 4 * TOKEN_TILE;
    return Stage{{base}, {base + TOKEN_TILE}, {base + 2 * TOKEN_TILE}, {base + 3 * TOKEN_TILE}};
  }
  DEVICE static void fetch_stage(const BackwardArgs& a, const Head& h, u32 shared, int t) {
    if (t >= 0) {
      const Stage s = stage(shared, t);
      fetch<THREADS>(s.k, a.p.k, h, t); fetch<THREADS>(s.q, a.p.q, h, t);
      fetch<THREADS>(s.v, a.p.v, h, t); fetch<THREADS>(s.dout, a.dout, h, t);
    }
    copy_commit();
  }
  // d [token x 16 f] += A [token x n] M[f, n]^T; A^T [n x token] and M^T [n x f] in shared memory, f = f0 .. + 16
  DEVICE static void contract_n(Acc& d, Tile<16> at, Tile<DIM> mt, int f0, const Lane& l) {
    UNROLL for (int s = 0; s < STEPS; s++) {
      Left a;
      load_transposed(a, at, 16 * s, 0, l);
      mma_tile(d, a, mt, 16 * s, f0, l);
    }
  }
  template <int Q> DEVICE static void sums_of_token(float (&sum)[Q], const float* sums, int token) {
    UNROLL for (int q = 0; q < Q; q++) sum[q] = sum_of_warps<WARPS>(sums, q, token);
  }

  DEVICE static void run(const BackwardArgs& a, unsigned char* memory) {
    const Lane l;
    const Problem& p = a.p;
    const Head h(p);
    const u32 shared = shared_address(memory);
    const int n0 = l.warp * 16, token = l.id & 15;
    const Tile<DIM> w_tile{shared + WT}, dw_tile{shared + DWT};
    const Tile<16> dzbar_tile{shared + DZBAR}, ghat_tile{shared + GHAT}, dz_tile{shared + DZ};
    float* const inner_sums = (float*)(memory + SUMS);
    float* const outer_sums = inner_sums + 6 * TOKENS * WARPS;
    float* const second_sums = outer_sums + 4 * TOKENS * WARPS;
    F4* const stats = (F4*)(memory + STATS) + l.warp * 2 * TOKENS;

    float gamma[2], beta[2], sum_a = 0;
    UNROLL for (int r = 0; r < 2; r++) {
      const int n = h.head * DIM + n0 + l.row + 8 * r;
      gamma[r] = p.gamma[n]; beta[r] = p.beta[n];
    }
    for (int n = 0; n < DIM; n++) sum_a += p.gamma[h.head * DIM + n] * p.gamma[h.head * DIM + n];
    const float rates[2] = {-p.tok[l.row], -p.tok[l.row + 8]}, full_rate = p.tok[TOKENS - 1];

    Weight W, dW;
    read_weight(W, a.end + (i64)h.state * STATE, n0, l);
    if (a.d_end) read_weight(dW, a.d_end + (i64)h.state * STATE, n0, l); else clear(dW);
    Affine d_affine;
    float dtok[2] = {0, 0}, dtok_last = 0;

    for (int i = 0; i < STAGES - 1; i++) fetch_stage(a, h, shared, h.count - 1 - i);
    U4 next_update{0, 0, 0, 0};
    if (h.count) next_update = *update_slot((u32*)a.updates, h, h.count - 1, n0, l);
    copy_wait<STAGES - 2>();
    sync_cta();

    for (int t = h.count - 1; t >= 0; t--) {
      fetch_stage(a, h, shared, t + 1 - STAGES);                         // over tile t + 1, last read before barrier 4
      const Stage in = stage(shared, t);
      const float tok_last = h.open(t) ? 0.f : full_rate;                // a mini-batch left open did not update
      float lr[4];
      load_rates(lr, p, h, t, l);

      // ---- W_t, b_t
      const Left U{{next_update.x, next_update.y, next_update.z, next_update.w}};
      if (t > 0) next_update = *update_slot((u32*)a.updates, h, t - 1, n0, l);
      if (h.checkpoint(t, p.every)) read_checkpoint(W, checkpoint_slot(a.checkpoints, p, h, t), n0, l);
      else rank16_update(W, negated(U), in.k, l);

      // ---- Z^T, (Q W + b)^T, (K dW + db)^T [n x token];   S = Q K^T + 1 and -P [i x j]
      Acc z = bias_tile(W.b), zbar = z, kdw = bias_tile(dW.b), S;
      fill(S, 1.f);
      UNROLL for (int s = 0; s < STEPS; s++) {
        Left q; Right kt, qt;
        load(kt, in.k, 0, 16 * s, l); load(qt, in.q, 0, 16 * s, l); load(q, in.q, 0, 16 * s, l);
        const Left w = pack(W.w[s]), dw = pack(dW.w[s]);
        store(dw_tile, n0, 16 * s, dw, l);                               // last read before barrier 4 of t + 1
        mma(z, w, kt); mma(zbar, w, qt); mma(kdw, dw, kt); mma(S, q, kt);
      }
      const Left minus_p = minus_P(S, rates, l);
      Acc err;                                                           // beta - target [n x token]
      {
        Left v, k_own;
        load_transposed(v, in.v, 0, n0, l); load_transposed(k_own, in.k, 0, n0, l);
        UNROLL for (int r = 0; r < 2; r++)
          UNROLL for (int k = 0; k < 4; k++) err.at(r, k) = beta[r] - v.at(r, k) + k_own.at(r, k);
        float sum[6][4] = {};
        add_inner_sums(sum, z, err, gamma);
        sum_over_rows<6, WARPS>(sum, inner_sums, l);
      }
      sync_cta();                                                        // 1: inner sums; W^T of t + 1 is read
      UNROLL for (int s = 0; s < STEPS; s++) store(w_tile, n0, 16 * s, pack(W.w[s]), l);

      // ---- Ghat, Zbar
      float six[6];
      sums_of_token(six, inner_sums, token);
      const InnerStats inner = inner_stats(six, sum_a);
      if (l.id < TOKENS) stats[token] = F4{inner.r, inner.shift, inner.mean_gx, inner.mean_gxx};
      sync_warp();                                                         // inner statistics
      Acc x;                                                             // normalised z
      {
        Acc ghat;
        inner_gradient(x, ghat, z, err, stats, lr, gamma, l);
        if (!h.open(t)) UNROLL for (int i = 0; i < 8; i++) dtok_last -= ghat.v[i >> 2][i & 3] * kdw.v[i >> 2][i & 3];
        const Left g = pack(ghat);
        store(ghat_tile, n0, 0, g, l);
        mma(zbar, g, right(minus_p));
      }
      // ---- output LayerNorm
      Left dout;                                                         // dout^T [n x token]
      load_transposed(dout, in.dout, 0, n0, l);
      {
        float sum[4][4] = {};
        add_outer_sums(sum, zbar, dout, gamma);
        sum_over_rows<4, WARPS>(sum, outer_sums, l);
      }
      sync_cta();                                                        // 2: outer sums
      if (l.id < TOKENS) {
        float four[4];
        sums_of_token(four, outer_sums, token);
        const OuterStats o = outer_stats(four);
        stats[token] = F4{o.r, o.shift, o.mean_u, o.mean_ux};
      }
      sync_warp();                                                         // outer statistics
      Left dzbar_t;
      {
        Acc d;
        output_norm_backward(d, d_affine, zbar, dout, stats, gamma, l);
        dzbar_t = pack(d);
        store(dzbar_tile, n0, 0, dzbar_t, l);
      }
      // ---- y^T = dGhat^T = -tok_last KdW^T - dZbar^T P
      Acc y;
      UNROLL for (int i = 0; i < 8; i++) y.v[i >> 2][i & 3] = -tok_last * kdw.v[i >> 2][i & 3];
      mma(y, dzbar_t, right(transposed_lower(minus_p)));
      {
        float sum[6][4] = {};
        add_second_sums(sum, y, x, err, gamma);
        sum_over_rows<6, WARPS>(sum, second_sums, l);
      }
      sync_cta();                                                        // 3: second sums; W^T, dW^T, Ghat^T, dZbar^T
      {
        const bool holds = h.holds(t, token);
        const i64 rate = h.first_rate + h.token(t, token);
        float five[5];
        sums_of_token(five, second_sums, token);
        const SecondStats o = second_stats(inner, holds ? p.lr[rate] : 0.f, sum_a * PER_DIM, five);
        if (l.id < TOKENS) {
          stats[token] = F4{o.s, o.mean_dh, o.c2, o.mean_dx};
          stats[TOKENS + token] = F4{inner.r, inner.mean_gxx, o.slope, 0.f};
        }
        if (l.warp == 0 && l.id < TOKENS && holds) a.dlr[rate] = o.dlr;
      }
      sync_warp();                                                         // second statistics
      // ---- dZ, dV; dW, db
      Left dz_t, dv;
      {
        Acc dz, dt;
        inner_norm_backward(dz, dt, d_affine, y, x, err, stats, gamma, l);
        dz_t = pack(dz);
        store(dz_tile, n0, 0, dz_t, l);
        dv = transposed(pack(dt));                                       // [token x n]
        store_tokens(a.dv, h, t, n0, dv, l);
      }
      rank16_update(dW, dzbar_t, in.q, l);
      rank16_update(dW, dz_t, in.k, l);

      // ---- what contracts over all n; the warp makes columns f = n0 .. n0 + 15
      Acc dk;                                                            // [token x f]
      {
        Acc D, ds, dq;
        fill(D, 0.f);
        UNROLL for (int s = 0; s < STEPS; s++) {
          Left dzbar; Right ghat;                                        // [token x n]
          load_transposed(dzbar, dzbar_tile, 16 * s, 0, l); load_transposed(ghat, ghat_tile, 16 * s, 0, l);
          mma(D, dzbar, ghat);
        }
        scores_backward(ds, dtok, D, S, rates, l);
        const Left dS = pack(ds);
        Left residual;
        load(residual, in.dout, 0, n0, l);
        UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++) dq.at(r, k) = residual.at(r, k);
        contract_n(dq, dzbar_tile, w_tile, n0, l);
        mma_tile(dq, dS, in.k, 0, n0, l);
        store_tokens(a.dq, h, t, n0, pack(dq), l);

        fill(dk, 0.f);
        contract_n(dk, ghat_tile, dw_tile, n0, l);
        UNROLL for (int r = 0; r < 2; r++)
          UNROLL for (int k = 0; k < 4; k++) dk.at(r, k) = -tok_last * dk.at(r, k) - dv.at(r, k);
        mma_tile(dk, transposed_lower(dS), in.q, 0, n0, l);
      }
      copy_wait<STAGES - 2>();                                           // this thread's part of tile t - 1 is here
      sync_cta();                                                        // 4: everyone's part; dZ^T
      contract_n(dk, dz_tile, w_tile, n0, l);
      store_tokens(a.dk, h, t, n0, pack(dk), l);
    }
    finish(a, h, dW, d_affine, dtok, dtok_last, inner_sums, n0, l);
  }

  DEVICE static void clear(Weight& W) {
    UNROLL for (int s = 0; s < STEPS; s++) fill(W.w[s], 0.f);
    UNROLL for (int i = 0; i < 4; i++) W.b[i] = 0.f;
  }
  DEVICE static void finish(const BackwardArgs& a, const Head& h, const Weight& dW, const Affine& d,
                            const float (&dtok)[2], float dtok_last, float* partial, int n0, const Lane& l) {
    write_weight(a.d_start + (i64)h.state * STATE, dW, n0, l);
    UNROLL for (int r = 0; r < 2; r++) {
      const float dg = quad_sum(d.gamma[r]), db = quad_sum(d.beta[r]);
      const i64 n = (i64)h.state * DIM + n0 + l.row + 8 * r;
      if (l.column == 0) { a.dgamma[n] = dg; a.dbeta[n] = db; }
    }
    dtok_last = warp_sum(dtok_last);
    if (l.id == 0) partial[l.warp] = dtok_last;
    sync_cta();
    UNROLL for (int r = 0; r < 2; r++) {                                 // every warp has all of D: warp 0 writes
      const int i = l.row + 8 * r;
      float total = quad_sum(dtok[r]);
      if (i == TOKENS - 1) UNROLL for (int w = 0; w < WARPS; w++) total += partial[w];
      if (l.warp == 0 && l.column == 0) a.dtok[h.state * TOKENS + i] = total;
    }
  }
};

ENTRY(ttt_linear_bwd, Backward, BackwardArgs, (DIM == 64 ? 2 : 1))
