// What the kernels of TTT-Linear share: the notation, the fast weight in registers, and sums over features.
//
// Notation, as in ../reference.py and ../prepared.py, for one mini-batch of 16 tokens of one head:
//   i, j   tokens            f  input feature            n  output feature
//   W [f x n], b [n]         fast weight at the start of the mini-batch
//   Z    = K W + b           inner prediction of the targets V - K
//   G    = dloss/dZ          through LayerNorm and the squared error;  Ghat_j = lr_j G_j
//   P_ij = tok_i (q_i . k_j + 1) for j <= i, else 0                    the + 1 is the bias
//   Zbar = Q W + b - P Ghat                       out = Q + LN(Zbar)
//   W'   = W - tok_last K^T Ghat                  b'  = b - tok_last sum_j Ghat_j
#pragma once
#include "ttt.cuh"

// ---------------------------------------------------------------------------------------------------- fast weight
// A warp's 16 columns n0 .. n0 + 15 of W and b, transposed: w[s] is W^T [16 n x 16 f]; b[2 r], b[2 r + 1] are b[n].
struct Weight { Acc w[STEPS]; float b[4]; };
constexpr int STATE = (DIM + 1) * DIM;   // floats of one head in global memory: [DIM + 1, DIM], the last row is b

// W += X^T A, b += sum over tokens of A;   at = A^T [16 n x 16 tokens], x [16 tokens x DIM f]
DEVICE void rank16_update(Weight& W, const Left& at, Tile<DIM> x, const Lane& l) {
  UNROLL for (int s = 0; s < STEPS; s++) mma_tile(W.w[s], at, x, 0, 16 * s, l);
  add_tokens(W.b, at);
}
DEVICE void read_weight(Weight& W, const float* w, int n0, const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++) {
    const float* column = w + n0 + l.row + 8 * r;
    W.b[2 * r] = W.b[2 * r + 1] = column[DIM * DIM];
    UNROLL for (int s = 0; s < STEPS; s++)
      UNROLL for (int k = 0; k < 4; k++) W.w[s].at(r, k) = column[(16 * s + l.column_of(k)) * DIM];
  }
}
DEVICE void write_weight(float* w, const Weight& W, int n0, const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++) {
    float* column = w + n0 + l.row + 8 * r;
    if (l.column == 0) column[DIM * DIM] = W.b[2 * r];
    UNROLL for (int s = 0; s < STEPS; s++)
      UNROLL for (int k = 0; k < 4; k++) column[(16 * s + l.column_of(k)) * DIM] = W.w[s].at(r, k);
  }
}
// A checkpoint holds W and b in the order of the registers, so that every access is 16 bytes a lane.
DEVICE F4* checkpoint_slot(float* checkpoints, const Problem& p, const Head& h, int t) {
  return (F4*)(checkpoints + ((i64)((h.first_mini_batch + t) / p.every - 1) * h.heads + h.head) * STATE);
}
DEVICE void write_checkpoint(F4* to, const Weight& W, int n0, const Lane& l) {
  UNROLL for (int s = 0; s < STEPS; s++) UNROLL for (int c = 0; c < 2; c++) {
    const float* v = W.w[s].v[c];
    to[((n0 >> 4) * 2 * STEPS + s * 2 + c) * 32 + l.id] = F4{v[0], v[1], v[2], v[3]};
  }
  UNROLL for (int r = 0; r < 2; r++)
    if (l.column == 0) ((float*)to)[DIM * DIM + n0 + l.row + 8 * r] = W.b[2 * r];
}
DEVICE void read_checkpoint(Weight& W, const F4* from, int n0, const Lane& l) {
  UNROLL for (int s = 0; s < STEPS; s++) UNROLL for (int c = 0; c < 2; c++) {
    const F4 v = from[((n0 >> 4) * 2 * STEPS + s * 2 + c) * 32 + l.id];
    W.w[s].v[c][0] = v.x; W.w[s].v[c][1] = v.y; W.w[s].v[c][2] = v.z; W.w[s].v[c][3] = v.w;
  }
  UNROLL for (int r = 0; r < 2; r++)
    W.b[2 * r] = W.b[2 * r + 1] = ((const float*)from)[DIM * DIM + n0 + l.row + 8 * r];
}
// The operand of the update, (-tok_last Ghat)^T [16 n x 16 tokens] in bf16, in the order of the registers.
DEVICE U4* update_slot(u32* updates, const Head& h, int t, int n0, const Lane& l) {
  return (U4*)updates + (h.mini_batch(t) * STEPS + (n0 >> 4)) * 32 + l.id;
}

// ----------------------------------------------------------------------------------------------------- sums over n
// In: part[q][k] = this lane's share of quantity q of token column_of(k). Out: sums[q][token][warp]. Q is even.
// The eight lanes that share a column exchange halves instead of everything: 3.5 Q shuffles instead of 12 Q.
template <int Q, int WARPS> DEVICE void sum_over_rows(float (&part)[Q][4], float* sums, const Lane& l) {
  const bool high_token = l.id & 16, odd_token = l.id & 8, high_quantity = l.id & 4;
  float a[Q][2], b[Q];
  UNROLL for (int q = 0; q < Q; q++) UNROLL for (int e = 0; e < 2; e++) {
    const float keep = high_token ? part[q][2 + e] : part[q][e], give = high_token ? part[q][e] : part[q][2 + e];
    a[q][e] = keep + shfl_xor(give, 16);
  }
  UNROLL for (int q = 0; q < Q; q++) {
    const float keep = odd_token ? a[q][1] : a[q][0], give = odd_token ? a[q][0] : a[q][1];
    b[q] = keep + shfl_xor(give, 8);
  }
  const int token = l.column + (odd_token ? 1 : 0) + (high_token ? 8 : 0);
  float* const mine = sums + ((high_quantity ? Q / 2 : 0) * TOKENS + token) * WARPS + l.warp;
  UNROLL for (int q = 0; q < Q / 2; q++) {
    const float keep = high_quantity ? b[q + Q / 2] : b[q], give = high_quantity ? b[q] : b[q + Q / 2];
    mine[q * TOKENS * WARPS] = keep + shfl_xor(give, 4);
  }
}
// The warps' sums of one token added up; after a barrier.
template <int WARPS> DEVICE float sum_of_warps(const float* sums, int quantity, int token) {
  const float* s = sums + (quantity * TOKENS + token) * WARPS;
  float total = 0;
  if (WARPS % 4 == 0) UNROLL for (int w = 0; w < WARPS / 4; w++) {
    const F4 x = ((const F4*)s)[w];
    total += (x.x + x.y) + (x.z + x.w);
  } else UNROLL for (int w = 0; w < WARPS; w++) total += s[w];
  return total;
}
