// The parts of TTT-MLP's backward pass: the products with both layers, and the elementwise steps.
//
// Hidden view: m counts the warp's tiles of 16 units, r and k are the lane's rows and columns of a tile. Token view: i
// counts the lane's four features of its token.
#pragma once
#include "ttt_mlp_bwd_memory.cuh"

DEVICE Acc zero() { Acc d; fill(d, 0.f); return d; }
// Element by element.
template <class Function> DEVICE Acc each(Function function) {
  Acc d;
  UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++) d.at(r, k) = function(r, k);
  return d;
}
DEVICE Acc product(const Acc& a, const Left& b) { return each([&](int r, int k) { return a.at(r, k) * b.at(r, k); }); }
DEVICE Acc sum(const Acc& a, const Left& b) { return each([&](int r, int k) { return a.at(r, k) + b.at(r, k); }); }
DEVICE Acc times(float rate, const Acc& a) { return each([&](int r, int k) { return rate * a.at(r, k); }); }
DEVICE Left times(float rate, const Left& a) { return pack(each([&](int r, int k) { return rate * a.at(r, k); })); }
DEVICE float inner_product(const Acc& a, const Left& b) {
  float total = 0;
  UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++) total += a.at(r, k) * b.at(r, k);
  return total;
}
DEVICE void activate(Left& value, Left& slope, Left& bend, const Acc& z) {
  Acc y[3];
  UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++) {
    const Gelu g = gelu(z.at(r, k));
    y[0].at(r, k) = g.value; y[1].at(r, k) = g.slope; y[2].at(r, k) = g.bend;
  }
  value = pack(y[0]); slope = pack(y[1]); bend = pack(y[2]);
}

// ------------------------------------------------------------------------------------- products of the hidden view
// x [token x 16 s .. + 15] as left operand [feature x token]
DEVICE Left columns(Tile<DIM> x, int s, const Lane& l) {
  Left f;
  load_transposed(f, x, 0, 16 * s, l);
  return f;
}
// d [16 i x 16 j] += A B^T over the features
DEVICE void scores(Acc& d, Tile<DIM> a, Tile<DIM> b, const Lane& l) {
  UNROLL for (int s = 0; s < STEPS; s++) {
    Left x; Right yt;
    load(x, a, 0, 16 * s, l); load(yt, b, 0, 16 * s, l);
    mma(d, x, yt);
  }
}
// d [h x token] += M X^T, x [token x feature], with M [16 h x 16 features] = matrix(m, s)
template <class Matrix> DEVICE void through(Acc (&d)[PAIR], Matrix matrix, Tile<DIM> x, const Lane& l) {
  UNROLL for (int s = 0; s < STEPS; s++) {
    Right xt;
    load(xt, x, 0, 16 * s, l);
    UNROLL for (int m = 0; m < PAIR; m++) mma(d[m], matrix(m, s), xt);
  }
}
DEVICE void through_w1(Acc (&d)[PAIR], const Weights& W, Tile<DIM> x, const Lane& l) {
  through(d, [&](int m, int s) { return pack(W.w1[m][s]); }, x, l);
}
DEVICE void through_w1(Acc (&d)[PAIR], const Gradients& W, Tile<DIM> x, const Lane& l) {
  through(d, [&](int m, int s) { return pack(W.one(m, s)); }, x, l);
}
DEVICE void back_through_w2(Acc (&d)[PAIR], const Weights& W, Tile<DIM> x, const Lane& l) {
  UNROLL for (int m = 0; m < PAIR; m++) d[m] = zero();
  through(d, [&](int m, int s) { return transposed(pack(W.w2[s][m])); }, x, l);
}
DEVICE void back_through_w2(Acc (&d)[PAIR], const Gradients& W, Tile<DIM> x, const Lane& l) {
  UNROLL for (int m = 0; m < PAIR; m++) d[m] = zero();
  through(d, [&](int m, int s) { return transposed(pack(W.two(s, m))); }, x, l);
}

// ---------------------------------------------------------------------------------------------------------- scores
struct Rates { float of[2]; };                   // -tok of the lane's two rows
DEVICE Rates rates(const Problem& p, const Lane& l) { return Rates{{-p.tok[l.row], -p.tok[l.row + 8]}}; }
DEVICE void put_scores(float* to, const Acc& S, const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++)
    UNROLL for (int k = 0; k < 4; k++) to[(l.row + 8 * r) * TOKENS + l.column_of(k)] = S.at(r, k);
}
DEVICE Acc get_scores(const float* from, const Lane& l) {
  return each([&](int r, int k) { return from[(l.row + 8 * r) * TOKENS + l.column_of(k)]; });
}
// The sum of the warps' shares at one place, after a barrier.
DEVICE float sum_scores(const float* shares, int place) {
  float total = 0;
  UNROLL for (int w = 0; w < WARPS; w++) total += shares[w * SCORES + place];
  return total;
}

// ------------------------------------------------------------------------------------------------------- token view
DEVICE void unpack(float (&x)[4], const F4& v) { x[0] = v.x; x[1] = v.y; x[2] = v.z; x[3] = v.w; }
DEVICE float mean(const float (&x)[4]) { return owner_sum(x[0] + x[1] + x[2] + x[3]) * PER_DIM; }
DEVICE float mean(const float (&x)[4], const float (&y)[4]) {
  return owner_sum(x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]) * PER_DIM;
}
// z becomes (z - mean z) r; returns r
DEVICE float normalise(float (&z)[4]) {
  const float mu = mean(z);
  UNROLL for (int i = 0; i < 4; i++) z[i] -= mu;
  const float r = rsqrt_approx(mean(z, z) + EPSILON);
  UNROLL for (int i = 0; i < 4; i++) z[i] *= r;
  return r;
}
// d becomes r (d - mean d - x mean(d x)): the gradient through z -> x = (z - mean z) r
DEVICE void normalise_backward(float (&d)[4], const float (&x)[4], float r) {
  const float mean_d = mean(d), mean_dx = mean(d, x);
  UNROLL for (int i = 0; i < 4; i++) d[i] = r * (d[i] - mean_d - x[i] * mean_dx);
}
struct Norm {                                    // of the lane's features
  float gamma[4], beta[4];
  DEVICE Norm(const Problem& p, const Head& h, const Owner& o) {
    UNROLL for (int i = 0; i < 4; i++) {
      gamma[i] = p.gamma[h.head * DIM + o.n + i]; beta[i] = p.beta[h.head * DIM + o.n + i];
    }
  }
};
// G = r (gx - mean gx - x mean(gx x)),  gx = gamma (gamma x + err),  err = beta - target,  x = normalised Z2
struct Inner {
  float x[4], err[4], r, mean_gx, mean_gxx;
  DEVICE void read(Tile<DIM> k, Tile<DIM> v, const Norm& ln, const Owner& o) {
    float kk[4], vv[4];
    load_row(kk, k, o.token, o.n); load_row(vv, v, o.token, o.n);
    UNROLL for (int i = 0; i < 4; i++) err[i] = ln.beta[i] - vv[i] + kk[i];
  }
  DEVICE void pull(float (&gx)[4], const Norm& ln) const {
    UNROLL for (int i = 0; i < 4; i++) gx[i] = ln.gamma[i] * (ln.gamma[i] * x[i] + err[i]);
  }
};

// dS = -tok D and dtok -= sum over j of D S, both for j <= i
DEVICE Left scores_backward(Totals& total, const Acc& D, const Acc& S, const Rates& tok, const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++)
    UNROLL for (int k = 0; k < 4; k++) total.tok_rows[r] -= causal(r, k, l) ? D.at(r, k) * S.at(r, k) : 0.f;
  return minus_P(D, tok.of, l);
}
// y = dGhat2 becomes dZ2; dt is the gradient of the target; returns the gradient of the rate
DEVICE float inner_norm_backward(float (&y)[4], float (&dt)[4], Totals& total, const Inner& in, float lr,
                                 const Norm& ln) {
  float gx[4], G[4], dx[4];
  in.pull(gx, ln);
  UNROLL for (int i = 0; i < 4; i++) G[i] = in.r * (gx[i] - in.mean_gx - in.x[i] * in.mean_gxx);
  const float mean_yG = mean(y, G);
  UNROLL for (int i = 0; i < 4; i++) y[i] *= in.r * lr;                      // gradient of the bracket in G
  const float mean_y = mean(y), mean_yx = mean(y, in.x);
  UNROLL for (int i = 0; i < 4; i++) {
    const float gamma = ln.gamma[i], dgx = y[i] - mean_y - in.x[i] * mean_yx;
    dx[i] = gamma * gamma * dgx - in.mean_gxx * y[i] - gx[i] * mean_yx;
    dt[i] = -gamma * dgx;
    total.gamma[i] += (2.f * gamma * in.x[i] + in.err[i]) * dgx;
    total.beta[i] += gamma * dgx;
  }
  normalise_backward(dx, in.x, in.r);
  UNROLL for (int i = 0; i < 4; i++) y[i] = dx[i] - in.r * in.x[i] * lr * mean_yG;   // r depends on Z2 as well
  return mean_yG * DIM;
}
