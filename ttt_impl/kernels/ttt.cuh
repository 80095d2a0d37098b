// What the kernels of both learners share: the walk of one head through its mini-batches, the inner LayerNorm from six
// sums, and the scores.
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
  constexpr int CHUNKS = 16 * DIM / 8;
  UNROLL for (int i = 0; i < (CHUNKS + THREADS - 1) / THREADS; i++) {
    const int id = tid() + i * THREADS, slot = id / (DIM / 8), c = id % (DIM / 8);
    if (CHUNKS % THREADS && id >= CHUNKS) break;
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
// Keys of a mini-batch that earlier calls have begun: rows 0 .. taken - 1 of [16, DIM + 1] float32.
template <int THREADS> DEVICE void restore_keys(Tile<DIM> k, const float* keys, int taken) {
  for (int i = tid(); i < taken * DIM / 2; i += THREADS) {
    const int slot = i / (DIM / 2), f = i % (DIM / 2) * 2;
    const float* pair = keys + slot * (DIM + 1) + f;
    store_shared(k.chunk(slot, f >> 3) + (f & 7) * 2, pack_bf16(pair[0], pair[1]));
  }
}

// ----------------------------------------------------------------------------------------------------------- biases
// b[r] and b[r + 1] are those of the lane's row (r = 0) or of the row 8 below it (r = 2).
DEVICE Acc bias_tile(const float (&b)[4]) {
  Acc d;
  UNROLL for (int i = 0; i < 8; i++) d.v[i >> 2][i & 3] = b[i & 3];
  return d;
}
// b += sum over the 16 tokens of A;   at = A^T [16 x token]
DEVICE void add_tokens(float (&b)[4], const Left& at) {
  const u32 ones = 0x3f803f80u;                                         // a token of ones: same rounding as the weights
  mma16816(b, at.x[0], at.x[1], at.x[2], at.x[3], ones, ones);
}

// ------------------------------------------------------------------------------------------------------------- sums
DEVICE float warp_sum(float x) {
  UNROLL for (int m = 16; m; m >>= 1) x += shfl_xor(x, m);
  return x;
}
DEVICE float quad_sum(float x) { x += shfl_xor(x, 1); return x + shfl_xor(x, 2); }      // over the lanes of a row

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
