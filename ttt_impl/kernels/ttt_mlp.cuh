// What the kernels of TTT-MLP share: the notation, both layers in registers, one gelu, and the two views of a token.
//
// Notation, as in ../reference.py and ../scan_mlp.py, for one mini-batch of 16 tokens of one head:
//   i, j   tokens            f, n  input and output feature (DIM)        h  hidden unit (HIDDEN = 4 DIM)
//   W1 [f x h], b1, W2 [h x n], b2      fast weights at the start of the mini-batch
//   Z1 = K W1 + b1           X2 = gelu(Z1)             Z2 = X2 W2 + b2      inner prediction of the targets V - K
//   Ghat2_j = lr_j dloss/dZ2_j                         Ghat1 = (Ghat2 W2^T) gelu'(Z1)
//   P1_ij = tok_i (q_i . k_j + 1) for j <= i, else 0                        the + 1 is the bias
//   Z1bar = Q W1 + b1 - P1 Ghat1                       X2bar = gelu(Z1bar)
//   P2_ij = tok_i (x2bar_i . x2_j + 1) for j <= i, else 0
//   Z2bar = X2bar W2 + b2 - P2 Ghat2                   out = Q + LN(Z2bar)
//   W1' = W1 - tok_last K^T Ghat1,   b1' = b1 - tok_last sum_j Ghat1_j;      W2', b2' likewise from X2 and Ghat2
//
// Two views of a mini-batch. Hidden view: a warp owns UNITS = 32 hidden units; what is indexed by h never leaves it.
// Token view: a warp owns two tokens, half a warp each, four features n a lane; both LayerNorms live here. From hidden
// to token view go the sums over h, as one partial sum a warp in shared memory; back goes Ghat2, a bf16 tile.
#pragma once
#include "ttt.cuh"
static_assert(DIM == 64, "TTT-MLP's weights fill the registers of eight warps at head dimension 64");

constexpr int HIDDEN = 4 * DIM, WARPS = 8, UNITS = HIDDEN / WARPS, PAIR = UNITS / 16;
constexpr int STATE1 = (DIM + 1) * HIDDEN, STATE2 = (HIDDEN + 1) * DIM;   // floats of W1, W2 with b as the last row

// ------------------------------------------------------------------------------------------------------------- gelu
// The tanh form, by way of a sigmoid as in ../gelu.py: with u = x (A + B x^2), s = sigmoid(u) = (1 + tanh(u / 2)) / 2,
//   y = x s,     y' = s + t x w,     y'' = t (w (4 + (1 - 2 s) x w) - 2 A),     t = s (1 - s),  w = du/dx = A + 3 B x^2
struct Gelu { float value, slope, bend; };
DEVICE Gelu gelu(float x) {
  constexpr float A = 1.5957691216f, B = A * 0.044715f;                   // A = 2 sqrt(2 / pi)
  const float xx = x * x, s = 0.5f + 0.5f * tanh_approx(0.5f * x * (A + B * xx));
  const float t = s * (1.f - s), w = A + 3.f * B * xx;
  return Gelu{x * s, s + t * x * w, t * (w * (4.f + (1.f - 2.f * s) * x * w) - 2.f * A)};
}

// ----------------------------------------------------------------------------------------------------- fast weights
// A warp's share, hidden units h0 = UNITS warp .. + 31, transposed. m counts tiles of 16 units, s tiles of 16 features.
struct Weights {
  Acc w1[PAIR][STEPS];      // W1^T [16 h x 16 f]
  Acc w2[STEPS][PAIR];      // W2^T [16 n x 16 h]
  float b1[PAIR][4];        // of the lane's rows of w1[m]
  float b2[4];              // of the lane's rows of w2[warp % STEPS]: eight warps hold four tiles twice
};
// Call visit(register, place in W1 or W2 of one head) for every weight of the lane, layer by layer.
template <class Visit> DEVICE void each_weight1(Acc (&w1)[PAIR][STEPS], const Lane& l, Visit visit) {
  UNROLL for (int m = 0; m < PAIR; m++) UNROLL for (int s = 0; s < STEPS; s++)
    UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++)
      visit(w1[m][s].at(r, k), (16 * s + l.column_of(k)) * HIDDEN + UNITS * l.warp + 16 * m + l.row + 8 * r);
}
template <class Visit> DEVICE void each_weight2(Acc (&w2)[STEPS][PAIR], const Lane& l, Visit visit) {
  UNROLL for (int s = 0; s < STEPS; s++) UNROLL for (int m = 0; m < PAIR; m++)
    UNROLL for (int r = 0; r < 2; r++) UNROLL for (int k = 0; k < 4; k++)
      visit(w2[s][m].at(r, k), (UNITS * l.warp + 16 * m + l.column_of(k)) * DIM + 16 * s + l.row + 8 * r);
}
// Places of the biases of the lane's rows r = 0, 1.
DEVICE int bias1_place(int m, int r, const Lane& l) { return UNITS * l.warp + 16 * m + l.row + 8 * r; }
DEVICE int bias2_place(int r, const Lane& l) { return 16 * (l.warp % STEPS) + l.row + 8 * r; }

DEVICE void read_weights(Weights& W, const float* one, const float* two, const Lane& l) {
  each_weight1(W.w1, l, [&](float& w, int place) { w = one[place]; });
  each_weight2(W.w2, l, [&](float& w, int place) { w = two[place]; });
  UNROLL for (int r = 0; r < 2; r++) {
    const float* const b1 = one + DIM * HIDDEN;
    UNROLL for (int m = 0; m < PAIR; m++) W.b1[m][2 * r] = W.b1[m][2 * r + 1] = b1[bias1_place(m, r, l)];
    W.b2[2 * r] = W.b2[2 * r + 1] = two[HIDDEN * DIM + bias2_place(r, l)];
  }
}
DEVICE void write_biases(float* one, float* two, const Weights& W, const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++) if (l.column == 0) {
    UNROLL for (int m = 0; m < PAIR; m++) one[bias1_place(m, r, l)] = W.b1[m][2 * r];
    if (l.warp < STEPS) two[bias2_place(r, l)] = W.b2[2 * r];
  }
}
DEVICE void write_weights(float* one, float* two, Weights& W, const Lane& l) {
  each_weight1(W.w1, l, [&](float& w, int place) { one[place] = w; });
  each_weight2(W.w2, l, [&](float& w, int place) { two[place] = w; });
  write_biases(one + DIM * HIDDEN, two + HIDDEN * DIM, W, l);
}
// A checkpoint holds the tiles in the order of the registers, so that every access is 16 bytes a lane:
// F4[32 half tiles][threads] (those of w1 by m, s, half; then those of w2 by s, m, half), then b1 and b2.
constexpr int CHECKPOINT = STATE1 + STATE2;
DEVICE float* checkpoint_slot(float* checkpoints, const Problem& p, const Head& h, int t) {
  return checkpoints + ((i64)((h.first_mini_batch + t) / p.every - 1) * h.heads + h.head) * CHECKPOINT;
}
DEVICE F4 half_tile(const Acc& d, int c) { return F4{d.v[c][0], d.v[c][1], d.v[c][2], d.v[c][3]}; }
DEVICE void set_half_tile(Acc& d, int c, const F4& x) {
  d.v[c][0] = x.x; d.v[c][1] = x.y; d.v[c][2] = x.z; d.v[c][3] = x.w;
}
DEVICE void write_checkpoint(float* to, const Weights& W, const Lane& l) {
  F4* const tiles = (F4*)to + tid();
  UNROLL for (int i = 0; i < PAIR * STEPS; i++) UNROLL for (int c = 0; c < 2; c++) {
    tiles[(2 * i + c) * 32 * WARPS] = half_tile(W.w1[i / STEPS][i % STEPS], c);
    tiles[(2 * (PAIR * STEPS + i) + c) * 32 * WARPS] = half_tile(W.w2[i / PAIR][i % PAIR], c);
  }
  float* const biases = to + 2 * DIM * HIDDEN;
  write_biases(biases, biases + HIDDEN, W, l);
}
// The operand of W1's update, (-tok_last Ghat1)^T [16 h x 16 tokens] in bf16, in the order of the registers.
DEVICE U4* update_slot(u32* updates, const Head& h, int t, int m, const Lane& l) {
  return (U4*)updates + ((h.mini_batch(t) * WARPS + l.warp) * PAIR + m) * 32 + l.id;
}
// What else is saved of a mini-batch: Ghat2 [16 tokens x DIM] bf16, as W2's update, Z2bar and Ghat1 read it.
DEVICE u16* ghat2_slot(u16* ghat2, const Head& h, int t) { return ghat2 + h.mini_batch(t) * TOKENS * DIM; }

// ------------------------------------------------------------------------------------------------------- token view
struct Owner {
  int token, n;               // the lane's token of the mini-batch, the first of its four features
  DEVICE explicit Owner(const Lane& l) : token(2 * l.warp + (l.id >> 4)), n((l.id & 15) * 4) {}
};
DEVICE void read_four(float (&x)[4], const float* from) {
  const F4 v = *(const F4*)from;
  x[0] = v.x; x[1] = v.y; x[2] = v.z; x[3] = v.w;
}
DEVICE float owner_sum(float x) {                                         // over the 16 lanes of a token
  UNROLL for (int m = 8; m; m >>= 1) x += shfl_xor(x, m);
  return x;
}
DEVICE float square_sum(const float* x) {                                 // of DIM numbers
  float sum = 0;
  for (int n = 0; n < DIM; n++) sum += x[n] * x[n];
  return sum;
}
// Partial sums, float[WARPS][16 tokens][DIM]; groups of eight features change places so that neither the writes (hidden
// view) nor the reads (token view) meet a bank conflict.
constexpr int PARTIAL = TOKENS * DIM;
DEVICE int partial_place(int token, int n) { return token * DIM + (((n >> 3) ^ ((token >> 1) & 3)) << 3) + (n & 7); }
// z [16 n x 16 tokens], features n0 .. + 15: this warp's share
DEVICE void put_partial(float* partial, int n0, const Acc& z, const Lane& l) {
  float* const mine = partial + l.warp * PARTIAL;
  UNROLL for (int r = 0; r < 2; r++)
    UNROLL for (int k = 0; k < 4; k++) mine[partial_place(l.column_of(k), n0 + 8 * r + l.row)] = z.at(r, k);
}
DEVICE void gather(float (&z)[4], const float* partial, const Owner& o) {  // after a barrier
  const F4* const mine = (const F4*)(partial + partial_place(o.token, o.n));
  UNROLL for (int w = 0; w < WARPS; w++) {
    const F4 x = mine[w * PARTIAL / 4];
    z[0] += x.x; z[1] += x.y; z[2] += x.z; z[3] += x.w;
  }
}
// Four features of a token in global memory.
DEVICE void store_token(u16* to, const Head& h, int t, const Owner& o, const float (&x)[4]) {
  *(U2*)(to + h.at(t, o.token) + o.n) = U2{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])};
}
