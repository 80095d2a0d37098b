// What both decoding kernels share: the LayerNorms of one token, whose features n = lane + 32 e lie in the lanes of one
// warp. All is float32 but the tokens in global memory.
#pragma once
#include "ttt.cuh"

constexpr int EACH = DIM / 32;           // features a lane
struct Norm {
  float gamma[EACH], beta[EACH], sum_a;  // sum of gamma^2 over n
  DEVICE Norm(const Problem& p, const Head& h, const Lane& l) {
    sum_a = 0;
    UNROLL for (int e = 0; e < EACH; e++) {
      const int n = h.head * DIM + l.id + 32 * e;
      gamma[e] = p.gamma[n]; beta[e] = p.beta[n];
      sum_a += gamma[e] * gamma[e];
    }
    sum_a = warp_sum(sum_a);
  }
};
DEVICE void add(F4& d, float s, const F4& x) { d.x += s * x.x; d.y += s * x.y; d.z += s * x.z; d.w += s * x.w; }

// ghat = lr dloss/dz of a token with key k and value v
DEVICE void inner_gradient(float* ghat, const float (&z)[EACH], const float* k, const float* v, float lr,
                           const Norm& ln, const Lane& l) {
  float c[EACH], sum[6] = {};
  UNROLL for (int e = 0; e < EACH; e++) {
    const int n = l.id + 32 * e;
    const float a = ln.gamma[e] * ln.gamma[e];
    c[e] = ln.gamma[e] * (ln.beta[e] - v[n] + k[n]);
    sum[0] += z[e];        sum[1] += z[e] * z[e]; sum[2] += a * z[e]; sum[3] += a * z[e] * z[e];
    sum[4] += c[e] * z[e]; sum[5] += c[e];
  }
  UNROLL for (int q = 0; q < 6; q++) sum[q] = warp_sum(sum[q]);
  const InnerStats s = inner_stats(sum, ln.sum_a);
  UNROLL for (int e = 0; e < EACH; e++) {
    const float x = z[e] * s.r + s.shift, gx = ln.gamma[e] * ln.gamma[e] * x + c[e];
    ghat[l.id + 32 * e] = lr * s.r * (gx - s.mean_gx - x * s.mean_gxx);
  }
}
// out = q + gamma x + beta,  x = normalised z
DEVICE void write_output(u16* out, const float (&z)[EACH], const float* q, const Norm& ln, const Lane& l) {
  float mean = 0, square = 0;
  UNROLL for (int e = 0; e < EACH; e++) mean += z[e];
  mean = warp_sum(mean) * PER_DIM;
  UNROLL for (int e = 0; e < EACH; e++) square += (z[e] - mean) * (z[e] - mean);
  const float r = rsqrt_approx(warp_sum(square) * PER_DIM + EPSILON);
  UNROLL for (int e = 0; e < EACH; e++) {
    const int n = l.id + 32 * e;
    out[n] = (u16)pack_bf16(q[n] + ln.gamma[e] * (z[e] - mean) * r + ln.beta[e], 0.f);
  }
}
