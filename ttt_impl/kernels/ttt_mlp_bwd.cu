// TTT-MLP, backward: a reversible scan. One CTA of eight warps a head and segment, mini-batches from last to first.
//
// The forward kept U = (-tok_last Ghat1)^T and Ghat2 in bf16, exactly the operands of its updates, and the weights
// themselves every now and then. Walking back, W1 is undone first, X2 follows from it, W2 from X2: nothing feeds back
// from W2 to W1, so rounding adds up but cannot grow. With dW1, db1, dW2, db2 the gradients of the weights after the
// mini-batch, S1 = Q K^T + 1, S2 = X2bar X2^T + 1 and back = Ghat2 W2^T:
//
//   undo        W1 += tok_last K^T Ghat1;   X2 = gelu(K W1 + b1);   W2 += tok_last X2^T Ghat2;   b1, b2 likewise
//   recompute   Z2;   Ghat1 = back gelu'(Z1);   P1, Z1bar, X2bar, P2, Z2bar
//   output      dZ2bar from gamma dout through the output LayerNorm
//   scores      D2 = dZ2bar Ghat2^T for j <= i;   dS2 = -tok D2;   dtok_i -= sum_j D2_ij S2_ij
//               D1, dS1 likewise from dZ1bar, Ghat1 and S1
//   queries     dX2bar = dZ2bar W2^T + dS2 X2;    dZ1bar = dX2bar gelu'(Z1bar)
//   Ghat1       KdW = K dW1 + db1;   dGhat1 = -P1^T dZ1bar - tok_last KdW;   dback = dGhat1 gelu'(Z1)
//   Ghat2       dGhat2 = -P2^T dZ2bar - tok_last (X2 dW2 + db2) + dback W2;  dlr_j = <dGhat2_j, G2_j>
//   inner       dGhat2 -> dZ2, dt: the gradient of a gradient
//   keys        GdW = Ghat2 dW2^T;   dX2 = dS2^T X2bar - tok_last GdW + dZ2 W2^T
//               dZ1 = dX2 gelu'(Z1) + dGhat1 back gelu''(Z1)
//               dtok_last -= <Ghat1, KdW> + <X2, GdW> + <Ghat2, db2>
//   tokens      dQ = dout + dZ1bar W1^T + dS1 K
//               dK = dZ1 W1^T - tok_last Ghat1 dW1^T + dS1^T Q - dt,      dV = dt
//   state       dW1 += Q^T dZ1bar + K^T dZ1;      dW2 += X2bar^T dZ2bar + X2^T dZ2 + dback^T Ghat2;  biases likewise
//
// W1 and W2 fill half of the registers, as in the forward. dW1 and dW2 are as large: they live in shared memory where
// a CTA can have 227 KB (ttt_mlp_bwd), else in a scratch buffer that stays in L2 (ttt_mlp_bwd_small): the same digits.
// Every register counts here. At its usual level the assembler trades them for speed and spills ten times as much:
// ptxas: -O1
#include "ttt_mlp_bwd.cuh"

struct Backward : Place {
  using Place::Place;
  // ---- 1. hidden view: the weights before the mini-batch, and its forward pass up to the sums over h
  struct Known {                                                         // [h x token]
    Left x2[PAIR], slope[PAIR], x2bar[PAIR], slope_bar[PAIR];            // gelu'(Z1), gelu'(Z1bar)
    Left ghat1[PAIR], bend[PAIR];                                        // bend = back gelu''(Z1)
    Left minus_p1;                                                       // [token x token]
  };
  DEVICE void undo1(int t, const Stage& in) {
    UNROLL for (int m = 0; m < PAIR; m++) {
      const Left u = negated(update(t, m));
      UNROLL for (int s = 0; s < STEPS; s++) mma_tile(W.w1[m][s], u, in.k, 0, 16 * s, l);
      add_tokens(b1 + 16 * m, u, 1.f, l);
    }
  }
  DEVICE void undo2(const Known& now, const Stage& in, float tok_last) {
    Left x[PAIR];
    UNROLL for (int m = 0; m < PAIR; m++) x[m] = times(tok_last, now.x2[m]);
    UNROLL for (int s = 0; s < STEPS; s++) {
      const Left g = columns(in.ghat2, s, l);
      UNROLL for (int m = 0; m < PAIR; m++) mma(W.w2[s][m], g, right(x[m]));
      if (l.warp == s) add_tokens(b2 + 16 * s, g, tok_last, l);
    }
  }
  DEVICE void recompute(Known& now, int t, const Stage& in, float tok_last) {
    const bool known = h.checkpoint(t, p.every);
    if (known) reload(t); else undo1(t, in);
    Acc z[PAIR], S;                                                      // Z1^T, back^T, Z1bar^T
    UNROLL for (int m = 0; m < PAIR; m++) z[m] = bias_tile(b1 + 16 * m, l);
    through_w1(z, W, in.k, l);
    fill(S, 1.f);
    scores(S, in.q, in.k, l);
    now.minus_p1 = minus_P(S, rates(p, l).of, l);
    if (l.warp == 0) put_scores(s1, S, l);
    UNROLL for (int m = 0; m < PAIR; m++) activate(now.x2[m], now.slope[m], now.bend[m], z[m]);
    if (!known) undo2(now, in, tok_last);
    back_through_w2(z, W, in.ghat2, l);
    UNROLL for (int m = 0; m < PAIR; m++) {
      now.ghat1[m] = pack(product(z[m], now.slope[m])); now.bend[m] = pack(product(z[m], now.bend[m]));
      z[m] = bias_tile(b1 + 16 * m, l);
    }
    through_w1(z, W, in.q, l);
    UNROLL for (int m = 0; m < PAIR; m++) {
      Left unused;
      mma(z[m], now.ghat1[m], right(now.minus_p1));
      activate(now.x2bar[m], now.slope_bar[m], unused, z[m]);
    }
  }
  // This warp's share of S2, Z2 and Z2bar. P2 Ghat2 is linear in P2: a warp applies its own share.
  DEVICE void share_outputs(const Known& now, const Stage& in) {
    Left x[PAIR], xbar[PAIR];                                            // [token x h]
    Acc S;
    fill(S, l.warp == 0 ? 1.f : 0.f);
    UNROLL for (int m = 0; m < PAIR; m++) {
      x[m] = transposed(now.x2[m]); xbar[m] = transposed(now.x2bar[m]);
      mma(S, xbar[m], right(x[m]));
    }
    put_scores(shares + l.warp * SCORES, S, l);
    const Left minus_p2 = minus_P(S, rates(p, l).of, l);
    UNROLL for (int s = 0; s < STEPS; s++) {
      Acc z = zero(), zbar;                                              // [n x token]
      if (l.warp == s) z = bias_tile(b2 + 16 * s, l);
      zbar = z;
      UNROLL for (int m = 0; m < PAIR; m++) {
        const Left w = pack(W.w2[s][m]);
        mma(z, w, right(x[m])); mma(zbar, w, right(xbar[m]));
      }
      mma(zbar, columns(in.ghat2, s, l), right(minus_p2));
      put_partial(sums, 16 * s, z, l); put_partial(more_sums, 16 * s, zbar, l);
    }
  }

  // ---- 2. token view: both LayerNorms, dZ2bar. What step 4 needs waits where only this lane reads more_sums.
  DEVICE F4& kept(int i) const { return *(F4*)(more_sums + i * PARTIAL + partial_place(o.token, o.n)); }
  DEVICE void norms(const Stage& in) {
    const Norm ln(p, h, o);
    const int place = o.token * TOKENS + (l.id & 15);
    s2[place] = sum_scores(shares, place);
    Inner inner{};
    float zbar[4] = {}, u[4], gx[4];
    gather(inner.x, sums, o); gather(zbar, more_sums, o);
    inner.r = normalise(inner.x);
    const float r = normalise(zbar);
    inner.read(in.k, in.v, ln, o);
    load_row(u, in.dout, o.token, o.n);
    UNROLL for (int i = 0; i < 4; i++) {
      total.gamma[i] += u[i] * zbar[i]; total.beta[i] += u[i];
      u[i] *= ln.gamma[i];
    }
    inner.pull(gx, ln);
    inner.mean_gx = mean(gx); inner.mean_gxx = mean(gx, inner.x);
    normalise_backward(u, zbar, r);
    store_row(dz2bar_tile, o.token, o.n, u);
    kept(0) = vector(inner.x); kept(1) = F4{inner.r, inner.mean_gx, inner.mean_gxx, 0.f};
    kept(2) = vector(total.gamma); kept(3) = vector(total.beta);
  }

  // ---- 3. hidden view: back through both layers of the outputs and through Ghat1, up to the sums of dGhat2
  struct Found { Left dz1bar[PAIR], dz1[PAIR], dback[PAIR]; };           // [h x token]; dz1: dZ2 W2^T still to come
  DEVICE void through_outputs(Found& d, const Known& now, int t, const Stage& in, float tok_last) {
    const float closed = h.open(t) ? 0.f : 1.f;                          // whether tok_last was used
    Acc D = zero(), y[PAIR];
    scores(D, dz2bar_tile, in.ghat2, l);
    const Acc S = get_scores(s2, l);
    const Rates tok = rates(p, l);
    const Left ds2 = scores_backward(total, D, S, tok, l), minus_p2 = minus_P(S, tok.of, l);
    back_through_w2(y, W, dz2bar_tile, l);
    UNROLL for (int m = 0; m < PAIR; m++) {
      mma(y[m], now.x2[m], right(ds2));
      d.dz1bar[m] = pack(product(y[m], now.slope_bar[m]));
    }
    back_through_w2(y, dW, in.ghat2, l);
    UNROLL for (int m = 0; m < PAIR; m++) {
      total.tok_last -= closed * inner_product(y[m], now.x2[m]);
      y[m] = times(-tok_last, y[m]);
      mma(y[m], now.x2bar[m], right(transposed_lower(ds2)));
      d.dz1[m] = pack(product(y[m], now.slope[m]));
      y[m] = bias_tile(db1 + 16 * m, l);
    }
    through_w1(y, dW, in.k, l);
    D = zero();
    UNROLL for (int m = 0; m < PAIR; m++) {
      total.tok_last -= closed * inner_product(y[m], now.ghat1[m]);
      y[m] = times(-tok_last, y[m]);
      mma(y[m], d.dz1bar[m], right(transposed_lower(now.minus_p1)));     // dGhat1^T
      d.dz1[m] = pack(sum(product(y[m], now.bend[m]), d.dz1[m]));
      d.dback[m] = pack(product(y[m], now.slope[m]));
      mma(D, transposed(d.dz1bar[m]), right(transposed(now.ghat1[m])));
    }
    put_scores(shares + l.warp * SCORES, D, l);
    share_dghat2(d, now, in, minus_p2, tok_last, closed);
  }
  DEVICE void share_dghat2(const Found& d, const Known& now, const Stage& in, const Left& minus_p2, float tok_last,
                           float closed) {
    Left x[PAIR], back[PAIR];                                            // -tok_last X2, dback [token x h]
    UNROLL for (int m = 0; m < PAIR; m++) {
      x[m] = transposed(times(-tok_last, now.x2[m])); back[m] = transposed(d.dback[m]);
    }
    UNROLL for (int s = 0; s < STEPS; s++) {
      Acc y = zero();                                                    // [n x token]
      if (l.warp == s) {
        y = bias_tile(db2 + 16 * s, l);
        total.tok_last -= closed * inner_product(y, columns(in.ghat2, s, l));
        y = times(-tok_last, y);
      }
      if (l.warp == s + STEPS) mma(y, columns(dz2bar_tile, s, l), right(transposed_lower(minus_p2)));
      UNROLL for (int m = 0; m < PAIR; m++) {
        mma(y, pack(W.w2[s][m]), right(back[m]));
        mma(y, pack(dW.two(s, m)), right(x[m]));
      }
      put_partial(sums, 16 * s, y, l);
    }
  }

  // ---- 4. token view: dlr, dZ2, dV, dS1
  DEVICE void second_order(int t, const Stage& in) {
    const Norm ln(p, h, o);
    Inner inner{};
    const F4 stats = kept(1);
    unpack(inner.x, kept(0)); unpack(total.gamma, kept(2)); unpack(total.beta, kept(3));
    inner.r = stats.x; inner.mean_gx = stats.y; inner.mean_gxx = stats.z;
    inner.read(in.k, in.v, ln, o);
    float y[4] = {}, dt[4];
    gather(y, sums, o);
    const bool holds = h.holds(t, o.token);
    const i64 rate = h.first_rate + h.token(t, o.token);
    const float dlr = inner_norm_backward(y, dt, total, inner, holds ? p.lr[rate] : 0.f, ln);
    store_row(dz2_tile, o.token, o.n, y);
    store_row(in.v, o.token, o.n, dt);                                   // v is used up; this lane needs dt in step 6
    if (holds && o.n == 0) a.dlr[rate] = dlr;
    if (holds) store_token(a.dv, h, t, o, dt);
    const int j = l.id & 15, place = o.token * TOKENS + j;
    const float D = j <= o.token ? sum_scores(shares, place) : 0.f;
    total.tok -= D * s1[place];
    s1[place] = -p.tok[o.token] * D;
  }

  // ---- 5. hidden view: dZ1, the gradients of the weights, the sums of dQ and dK
  DEVICE void weight_gradients(Found& d, const Known& now, int t, const Stage& in) {
    Acc y[PAIR];
    back_through_w2(y, W, dz2_tile, l);
    UNROLL for (int m = 0; m < PAIR; m++) d.dz1[m] = pack(sum(product(y[m], now.slope[m]), d.dz1[m]));
    UNROLL for (int s = 0; s < STEPS; s++) {
      const Left zbar = columns(dz2bar_tile, s, l), z = columns(dz2_tile, s, l), g = columns(in.ghat2, s, l);
      if (l.warp == s) { add_tokens(db2 + 16 * s, zbar, 1.f, l); add_tokens(db2 + 16 * s, z, 1.f, l); }
      UNROLL for (int m = 0; m < PAIR; m++) {
        Acc w = dW.two(s, m);
        mma(w, zbar, right(now.x2bar[m])); mma(w, z, right(now.x2[m])); mma(w, g, right(d.dback[m]));
        dW.set_two(s, m, w);
      }
    }
    Left zbar[PAIR], z[PAIR], u[PAIR];                                   // [token x h]; u = -tok_last Ghat1
    UNROLL for (int m = 0; m < PAIR; m++) {
      u[m] = transposed(update(t, m)); zbar[m] = transposed(d.dz1bar[m]); z[m] = transposed(d.dz1[m]);
      add_tokens(db1 + 16 * m, d.dz1bar[m], 1.f, l); add_tokens(db1 + 16 * m, d.dz1[m], 1.f, l);
    }
    const Left ds1 = pack(get_scores(s1, l));
    UNROLL for (int s = 0; s < STEPS; s++) {
      Acc dq = zero(), dk = zero();                                      // [f x token]
      Right k, q;
      load_transposed(k, in.k, 0, 16 * s, l); load_transposed(q, in.q, 0, 16 * s, l);
      UNROLL for (int m = 0; m < PAIR; m++) {
        const Left w = transposed(pack(W.w1[m][s]));
        Acc dw = dW.one(m, s);
        mma(dq, w, right(zbar[m])); mma(dk, w, right(z[m])); mma(dk, transposed(pack(dw)), right(u[m]));
        mma(dw, d.dz1bar[m], q); mma(dw, d.dz1[m], k);
        dW.set_one(m, s, dw);
      }
      if (l.warp == s) mma(dq, columns(in.k, s, l), right(ds1));
      if (l.warp == s + STEPS) mma(dk, columns(in.q, s, l), right(transposed_lower(ds1)));
      put_partial(sums, 16 * s, dq, l); put_partial(more_sums, 16 * s, dk, l);
    }
  }

  // ---- 6. token view: dQ, dK
  DEVICE void input_gradients(int t, const Stage& in) {
    float dq[4], dk[4];
    load_row(dq, in.dout, o.token, o.n); load_row(dk, in.v, o.token, o.n);
    UNROLL for (int i = 0; i < 4; i++) dk[i] = -dk[i];                   // dt
    gather(dq, sums, o); gather(dk, more_sums, o);
    if (h.holds(t, o.token)) { store_token(a.dq, h, t, o, dq); store_token(a.dk, h, t, o, dk); }
  }

  // `always` is true, but the compiler does not know: what is computed inside a branch cannot be reused behind it.
  // Otherwise W1 and W2, packed to bf16 in step 1, would stay for steps 3 and 5 and take 64 more registers.
  DEVICE void walk() {
    const bool always = p.heads > 0;
    fetch_early(h.count - 1);
    begin();
    for (int t = h.count - 1; t >= 0; t--) {
      const Stage in = stage(t);
      const float tok_last = h.open(t) ? 0.f : p.tok[TOKENS - 1];        // a mini-batch left open did not update
      Known now{};
      Found d{};
      copy_wait<0>();                                                    // this thread's part of k, q, Ghat2 is here
      sync_cta();                                                        // 0: everyone's; sums, v and dout are used up
      fetch_late(in, t); fetch_early(t - 1);
      if (always) { recompute(now, t, in, tok_last); share_outputs(now, in); }
      copy_wait<1>();                                                    // this thread's part of v, dout
      sync_cta();                                                        // 1: everyone's; sums of Z2, Z2bar
      norms(in);
      sync_cta();                                                        // 2: dZ2bar, S2
      if (always) through_outputs(d, now, t, in, tok_last);
      sync_cta();                                                        // 3: sums of dGhat2, D1
      second_order(t, in);
      sync_cta();                                                        // 4: dZ2, dS1
      weight_gradients(d, now, t, in);
      sync_cta();                                                        // 5: sums of dQ, dK
      input_gradients(t, in);
    }
    finish();
  }
};

template <bool DW_SHARED> struct Variant {
  static constexpr int THREADS = 32 * WARPS, SHARED_BYTES = Place::DW + (DW_SHARED ? GRADIENTS * 4 : 0);
  static_assert(SHARED_BYTES <= (DW_SHARED ? 227 : 99) * 1024, "what a CTA may have: on Hopper; everywhere");
  DEVICE static void run(const BackwardArgs& a, unsigned char* memory) {
    if (tid() == 0) *(Head*)(memory + Place::HEAD) = Head(a.p);
    sync_cta();                                                          // the place of this CTA
    F4* const scratch = (F4*)(a.scratch + (i64)((const Head*)(memory + Place::HEAD))->state * GRADIENTS);
    Backward(a, memory, DW_SHARED ? (F4*)(memory + Place::DW) : scratch).walk();
  }
};
ENTRY(ttt_mlp_bwd, Variant<true>, BackwardArgs, 1)
ENTRY(ttt_mlp_bwd_small, Variant<false>, BackwardArgs, 1)
