// What the kernels of TTT-Linear share: the walk of one head through its mini-batches, the fast weight in registers,
// sums over features, and the inner LayerNorm from six sums.
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
#include "tiles.cuh"

constexpr float EPSILON = 1e-6f;

// ---------------------------------------------------------------------------------------- one head's mini-batches
// Tokens q, k, v, out [B, L, H, DIM] bf16; lr [B, H, L]. A segment is what one CTA (for one head) reads in order: a
// sequence, or a document packed with others in a row, or a chunk that continues an open mini-batch.
struct Segment {
  int row, begin, tokens;      // of the batch, first token in it, count
  int taken;                   // slots of the first mini-batch that tokens of an earlier call hold
  int first_mini_batch;        // mini-batches of the segments before this one
};
struct Problem {
  const u16 *q, *k, *v;
  const float *lr, *tok, *gamma, *beta;        // [B, H, L], [16], [H, DIM], [H, DIM]
  const Segment* segments;                     // [S]; null: S = B, each row from its first to its last token
  int length, heads, every;                    // L, H; mini-batches between two checkpoints
};

struct Head {
  int state, head, tokens, taken, count, first_mini_batch, heads;      // state: index into [S * H]; count: mini-batches
  i64 first, first_rate, stride;                                        // element of token 0, of its lr; between tokens
  DEVICE explicit Head(const Problem& p) : state(bid()), head(bid() % p.heads), heads(p.heads) {
    Segment s{bid() / p.heads, 0, p.length, 0, bid() / p.heads * ((p.length + TOKENS - 1) / TOKENS)};
    if (p.segments) s = p.segments[bid() / p.heads];
    tokens = s.tokens; taken = s.taken; first_mini_batch = s.first_mini_batch;
    count = (taken + tokens + TOKENS - 1) / TOKENS;
    stride = (i64)heads * DIM;
    first = ((i64)s.row * p.length + s.begin) * stride + head * DIM;
    first_rate = ((i64)s.row * heads + head) * p.length + s.begin;
  }
  DEVICE int token(int t, int slot) const { return t * TOKENS + slot - taken; }             // of the segment
  DEVICE bool holds(int t, int slot) const { return (unsigned)token(t, slot) < (unsigned)tokens; }
  DEVICE bool open(int t) const { return taken + tokens - t * TOKENS < TOKENS; }            // not full: no update yet
  DEVICE i64 at(int t, int slot) const { return first + token(t, slot) * stride; }
  DEVICE i64 mini_batch(int t) const { return (i64)(first_mini_batch + t) * heads + head; } // of all heads and segments
  DEVICE bool checkpoint(int t, int every) const { return t > 0 && (first_mini_batch + t) % every == 0; }
};
DEVICE void load_rates(float (&lr)[4], const Problem& p, const Head& h, int t, const Lane& l) {
  UNROLL for (int k = 0; k < 4; k++)
    lr[k] = h.holds(t, l.column_of(k)) ? p.lr[h.first_rate + h.token(t, l.column_of(k))] : 0.f;
}
// Start to copy the tokens of mini-batch t as a tile [16 x DIM], zeros in empty slots.
template <int THREADS> DEVICE void fetch(Tile<DIM> to, const u16* from, const Head& h, int t) {
  UNROLL for (int i = 0; i < 16 * DIM / 8 / THREADS; i++) {
    const int id = tid() + i * THREADS, slot = id / (DIM / 8), c = id % (DIM / 8);
    const bool valid = h.holds(t, slot);
    copy_async(to.chunk(slot, c), from + (valid ? h.at(t, slot) + c * 8 : 0), valid);
  }
}
// Features feature0 .. + 16 of the tokens of mini-batch t to global memory; f is [token x feature].
DEVICE void store_tokens(u16* to, const Head& h, int t, int feature0, const Left& f, const Lane& l) {
  UNROLL for (int r = 0; r < 2; r++) if (h.holds(t, l.row + 8 * r)) {
    u32* const pair = (u32*)(to + h.at(t, l.row + 8 * r) + feature0 + l.column);
    pair[0] = f.x[r]; pair[4] = f.x[r + 2];
  }
}

// ---------------------------------------------------------------------------------------------------- fast weight
// A warp's 16 columns n0 .. n0 + 15 of W and b, transposed: w[s] is W^T [16 n x 16 f]; b[2 r], b[2 r + 1] are b[n].
struct Weight { Acc w[STEPS]; float b[4]; };
constexpr int STATE = (DIM + 1) * DIM;   // floats of one head in global memory: [DIM + 1, DIM], the last row is b

DEVICE Acc bias_tile(const Weight& W) {
  Acc d;
  UNROLL for (int i = 0; i < 8; i++) d.v[i >> 2][i & 3] = W.b[i & 3];
  return d;
}
// W += X^T A, b += sum over tokens of A;   at = A^T [16 n x 16 tokens], x [16 tokens x DIM f]
DEVICE void rank16_update(Weight& W, const Left& at, Tile<DIM> x, const Lane& l) {
  UNROLL for (int s = 0; s < STEPS; s++) mma_tile(W.w[s], at, x, 0, 16 * s, l);
  const u32 ones = 0x3f803f80u;                                         // a token of ones: same rounding as W
  mma16816(W.b, at.x[0], at.x[1], at.x[2], at.x[3], ones, ones);
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
DEVICE float warp_sum(float x) {
  UNROLL for (int m = 16; m; m >>= 1) x += shfl_xor(x, m);
  return x;
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

// ------------------------------------------------------------------------------------------------- inner LayerNorm
// x = (z - mean z) r;  the loss pulls at x with gx = gamma (gamma x + beta - target) = a x + c,  where a = gamma^2 and
// c = gamma (beta - v + k);  G = r (gx - mean gx - x mean(gx x)). All means follow from six sums over n:
// z, z^2, a z, a z^2, c z, c - one reduction instead of two.
struct InnerStats { float r, shift, mean_gx, mean_gxx, mean_ax, mean_axx; };      // x = z r + shift
DEVICE InnerStats inner_stats(const float (&sum)[6], float sum_a) {
  const float mu = sum[0] * PER_DIM, r = rsqrt_approx(fmaxf(sum[1] * PER_DIM - mu * mu, 0.f) + EPSILON);
  InnerStats s;
  s.r = r; s.shift = -mu * r;
  s.mean_ax = r * (sum[2] - mu * sum_a) * PER_DIM;
  s.mean_axx = r * r * (sum[3] - 2.f * mu * sum[2] + mu * mu * sum_a) * PER_DIM;
  s.mean_gx = s.mean_ax + sum[5] * PER_DIM;
  s.mean_gxx = s.mean_axx + r * (sum[4] - mu * sum[5]) * PER_DIM;
  return s;
}

// --------------------------------------------------------------------------------------------------------- scores
DEVICE bool causal(int r, int k, const Lane& l) { return l.column_of(k) <= l.row + 8 * r; }
// -P [i x j] from S = Q K^T + 1; rates[r] = -tok of the lane's two rows. Rows 0..7 never see columns 8..15.
DEVICE Left minus_P(const Acc& S, const float (&rates)[2], const Lane& l) {
  Acc p;
  UNROLL for (int r = 0; r < 2; r++)
    UNROLL for (int k = 0; k < 4; k++) p.at(r, k) = causal(r, k, l) ? rates[r] * S.at(r, k) : 0.f;
  Left f = pack(p);
  f.x[2] = 0u;
  return f;
}
