// The elementwise steps of TTT-Linear's backward pass and the per-token statistics that they need.
//
// In all of them r counts the lane's two features n, k its four tokens; statistics of a token are float4 in shared
// memory, read by the lanes that hold the token's column.
#pragma once
#include "ttt_linear.cuh"

// Output LayerNorm of Zbar, and u = gamma dout.   xo = Zbar r + shift
struct OuterStats { float r, shift, mean_u, mean_ux; };
DEVICE OuterStats outer_stats(const float (&sum)[4]) {
  const float mu = sum[0] * PER_DIM, r = rsqrt_approx(fmaxf(sum[1] * PER_DIM - mu * mu, 0.f) + EPSILON);
  return OuterStats{r, -mu * r, sum[2] * PER_DIM, r * (sum[3] - mu * sum[2]) * PER_DIM};
}
// The gradient of the gradient. From five sums over n of y = dGhat (y, x y, a y, a x y, c y) all means that the step
// below needs follow: with dh = s y, s = r lr, and dgx = dh - mean dh - x c2, everything is linear in dh.
struct SecondStats { float s, mean_dh, c2, mean_dx, slope, dlr; };         // slope = mean(dx x) + mean(dG G)
DEVICE SecondStats second_stats(const InnerStats& in, float lr, float mean_a, const float (&sum)[5]) {
  SecondStats o;
  o.s = in.r * lr;
  const float each = o.s * PER_DIM, gx_y = sum[3] + sum[4];                // sum of gx y
  o.mean_dh = each * sum[0];
  o.c2 = each * sum[1];
  const float mean_a_dgx = each * sum[2] - o.mean_dh * mean_a - o.c2 * in.mean_ax;
  const float mean_ax_dgx = each * sum[3] - o.mean_dh * in.mean_ax - o.c2 * in.mean_axx;
  const float mean_dG_G = each * gx_y - o.mean_dh * in.mean_gx - o.c2 * in.mean_gxx;
  o.mean_dx = mean_a_dgx - in.mean_gxx * o.mean_dh - in.mean_gx * o.c2;
  o.slope = mean_ax_dgx - 2.f * in.mean_gxx * o.c2 + mean_dG_G;
  o.dlr = in.r * (gx_y - sum[0] * in.mean_gx - sum[1] * in.mean_gxx);
  return o;
}

// ---- sums over n, per token
DEVICE void add_inner_sums(float (&sum)[6][4], const Acc& z, const Acc& err, const float (&gamma)[2]) {
  UNROLL for (int k = 0; k < 4; k++) UNROLL for (int r = 0; r < 2; r++) {
    const float a = gamma[r] * gamma[r], c = gamma[r] * err.at(r, k), zz = z.at(r, k);
    sum[0][k] += zz;         sum[1][k] += zz * zz; sum[2][k] += a * zz;
    sum[3][k] += a * zz * zz; sum[4][k] += c * zz; sum[5][k] += c;
  }
}
DEVICE void add_outer_sums(float (&sum)[4][4], const Acc& zbar, const Left& dout, const float (&gamma)[2]) {
  UNROLL for (int k = 0; k < 4; k++) UNROLL for (int r = 0; r < 2; r++) {
    const float u = gamma[r] * dout.at(r, k), zz = zbar.at(r, k);
    sum[0][k] += zz; sum[1][k] += zz * zz; sum[2][k] += u; sum[3][k] += u * zz;
  }
}
DEVICE void add_second_sums(float (&sum)[6][4], const Acc& y, const Acc& x, const Acc& err, const float (&gamma)[2]) {
  UNROLL for (int k = 0; k < 4; k++) UNROLL for (int r = 0; r < 2; r++) {
    const float a = gamma[r] * gamma[r], yy = y.at(r, k), xy = x.at(r, k) * yy;
    sum[0][k] += yy; sum[1][k] += xy; sum[2][k] += a * yy; sum[3][k] += a * xy;
    sum[4][k] += gamma[r] * err.at(r, k) * yy;                             // the sixth sum is padding
  }
}

// ---- what is made of the statistics
// x = normalised z;  Ghat = lr r (gx - mean gx - x mean(gx x)),  gx = gamma (gamma x + err),  err = beta - target
DEVICE void inner_gradient(Acc& x, Acc& ghat, const Acc& z, const Acc& err, const F4* stats, const float (&lr)[4],
                           const float (&gamma)[2], const Lane& l) {
  UNROLL for (int k = 0; k < 4; k++) {
    const F4 s = stats[l.column_of(k)];                                    // r, shift, mean gx, mean(gx x)
    UNROLL for (int r = 0; r < 2; r++) {
      x.at(r, k) = z.at(r, k) * s.x + s.y;
      const float gx = gamma[r] * (gamma[r] * x.at(r, k) + err.at(r, k));
      ghat.at(r, k) = lr[k] * s.x * (gx - s.z - x.at(r, k) * s.w);
    }
  }
}
struct Affine { float gamma[2] = {0, 0}, beta[2] = {0, 0}; };              // gradients of the lane's two features
// dZbar = r (u - mean u - xo mean(u xo))
DEVICE void output_norm_backward(Acc& dzbar, Affine& d, const Acc& zbar, const Left& dout, const F4* stats,
                                 const float (&gamma)[2], const Lane& l) {
  UNROLL for (int k = 0; k < 4; k++) {
    const F4 s = stats[l.column_of(k)];                                    // r, shift, mean u, mean(u xo)
    UNROLL for (int r = 0; r < 2; r++) {
      const float xo = zbar.at(r, k) * s.x + s.y, g = dout.at(r, k);
      dzbar.at(r, k) = s.x * (gamma[r] * g - s.z - xo * s.w);
      d.gamma[r] += g * xo;
      d.beta[r] += g;
    }
  }
}
// y = dGhat -> dZ and dt, the gradient of the target
DEVICE void inner_norm_backward(Acc& dz, Acc& dt, Affine& d, const Acc& y, const Acc& x, const Acc& err,
                                const F4* stats, const float (&gamma)[2], const Lane& l) {
  UNROLL for (int k = 0; k < 4; k++) {
    const F4 s = stats[l.column_of(k)], w = stats[TOKENS + l.column_of(k)];
    const float dh_rate = s.x, mean_dh = s.y, c2 = s.z, mean_dx = s.w, rstd = w.x, mean_gxx = w.y, slope = w.z;
    UNROLL for (int r = 0; r < 2; r++) {
      const float xx = x.at(r, k), gx = gamma[r] * (gamma[r] * xx + err.at(r, k));
      const float dh = dh_rate * y.at(r, k), dgx = dh - mean_dh - xx * c2;
      const float dx = gamma[r] * gamma[r] * dgx - mean_gxx * dh - gx * c2;
      dz.at(r, k) = rstd * (dx - mean_dx - xx * slope);
      dt.at(r, k) = -gamma[r] * dgx;
      d.gamma[r] += (2.f * gamma[r] * xx + err.at(r, k)) * dgx;
      d.beta[r] += gamma[r] * dgx;
    }
  }
}
// dS = -tok D and dtok -= sum over j of D S, both for j <= i;  D = dZbar Ghat^T
DEVICE void scores_backward(Acc& ds, float (&dtok)[2], const Acc& D, const Acc& S, const float (&rates)[2],
                            const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++) {
    const bool seen = causal(r, k, l);
    ds.at(r, k) = seen ? rates[r] * D.at(r, k) : 0.f;
    dtok[r] -= seen ? D.at(r, k) * S.at(r, k) : 0.f;
  }
}
