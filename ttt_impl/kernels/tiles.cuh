// Tiles of 16 x 16: how a warp holds a matrix, and the one product that it knows.
//
// The fragment layout of the tensor core decides everything. Lane l of a warp holds, of every 16 x 16 tile, the rows
// {row, row + 8} and the columns {column, column + 1, column + 8, column + 9}. This is how an accumulator comes out AND
// how a left operand goes in, so a product becomes the operand of the next product by packing inside the lane: no
// shared memory, no shuffle. To use that, everything indexed by an output feature n is computed TRANSPOSED: features
// are rows, the 16 tokens of a mini-batch are columns.
#pragma once
#include "warp.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
constexpr int TOKENS = 16;               // of a mini-batch
constexpr int DIM = HEAD_DIM;            // of a head: 64, 96 or 128
constexpr int STEPS = DIM / 16;          // tiles along a row of DIM
constexpr float PER_DIM = 1.f / DIM;

struct Lane {
  int id, warp, row, column;
  DEVICE explicit Lane(int t = tid()) : id(t & 31), warp(t >> 5), row((t & 31) >> 2), column((t & 3) * 2) {}
  DEVICE int column_of(int k) const { return column + (k & 1) + (k >> 1) * 8; }   // k = 0..3: the lane's columns
};

// Accumulator, float32: at(r, k) is row lane.row + 8 r, column lane.column_of(k).
struct Acc {
  float v[2][4];
  DEVICE float& at(int r, int k) { return v[k >> 1][r * 2 + (k & 1)]; }
  DEVICE float at(int r, int k) const { return v[k >> 1][r * 2 + (k & 1)]; }
};
// Left operand, bf16: x[r + 2 c] is the lane's pair in row half r, column half c.
struct Left {
  u32 x[4];
  DEVICE float at(int r, int k) const { return k & 1 ? bf16_hi(x[r + (k & 2)]) : bf16_lo(x[r + (k & 2)]); }
};
// The same matrix as right operand: x[2 r + c]. Only the order of the registers differs: the tensor core wants the two
// words of a row half in an aligned pair, and a fragment in the wrong order costs a move for every word.
struct Right { u32 x[4]; };
DEVICE Right right(const Left& f) { return Right{{f.x[0], f.x[2], f.x[1], f.x[3]}}; }

DEVICE void fill(Acc& d, float value) { UNROLL for (int i = 0; i < 8; i++) d.v[i >> 2][i & 3] = value; }
DEVICE Left pack(const Acc& d) {
  Left f;
  UNROLL for (int c = 0; c < 2; c++)
    UNROLL for (int r = 0; r < 2; r++) f.x[r + 2 * c] = pack_bf16(d.v[c][2 * r], d.v[c][2 * r + 1]);
  return f;
}
DEVICE Left negated(Left f) { UNROLL for (int i = 0; i < 4; i++) f.x[i] ^= 0x80008000u; return f; }   // exact
DEVICE Left scaled(Left f, float rate) {
  UNROLL for (int i = 0; i < 4; i++) f.x[i] = pack_bf16(rate * bf16_lo(f.x[i]), rate * bf16_hi(f.x[i]));
  return f;
}
DEVICE Left transposed(const Left& f) {
  return Left{{movmatrix(f.x[0]), movmatrix(f.x[2]), movmatrix(f.x[1]), movmatrix(f.x[3])}};
}
// of a lower triangular tile
DEVICE Left transposed_lower(const Left& f) {
  return Left{{movmatrix(f.x[0]), 0u, movmatrix(f.x[1]), movmatrix(f.x[3])}};
}

// d += a bt^T: both operands are stored as 16 rows x 16 of the contracted index.
DEVICE void mma(Acc& d, const Left& a, const Right& bt) {
  mma16816(d.v[0], a.x[0], a.x[1], a.x[2], a.x[3], bt.x[0], bt.x[1]);
  mma16816(d.v[1], a.x[0], a.x[1], a.x[2], a.x[3], bt.x[2], bt.x[3]);
}

// ----------------------------------------------------------------------------------------------- shared memory
// A bf16 matrix of COLUMNS columns, 16-byte chunks swizzled so that ldmatrix and stores meet no bank conflict.
//   Tile<DIM>: 16 tokens or DIM features n, each a row of DIM features f          Tile<16>: DIM features n x 16 tokens
template <int COLUMNS> struct Tile {
  u32 base;
  DEVICE u32 chunk(int row, int c) const {                        // address of columns 8 c .. 8 c + 7
    const int turn = COLUMNS == 16 ? (row >> 2) & 1 : COLUMNS % 64 == 0 ? row & 7 : (row >> 1) & 3;
    return base + row * COLUMNS * 2 + ((c ^ turn) << 4);
  }
};
constexpr int TOKEN_TILE = TOKENS * DIM * 2;    // bytes of 16 x DIM, or of DIM x 16
constexpr int WEIGHT_TILE = DIM * DIM * 2;      // bytes of DIM x DIM

// X[row0 .. + 16, column0 .. + 16], or its transpose, as an operand
template <int C> DEVICE void load(Left& f, Tile<C> x, int row0, int column0, const Lane& l) {
  ldmatrix4(f.x, x.chunk(row0 + (l.id & 15), (column0 >> 3) + (l.id >> 4)));
}
template <int C> DEVICE void load(Right& f, Tile<C> x, int row0, int column0, const Lane& l) {
  ldmatrix4(f.x, x.chunk(row0 + (l.id & 7) + ((l.id >> 4) << 3), (column0 >> 3) + ((l.id >> 3) & 1)));
}
template <int C> DEVICE void load_transposed(Left& f, Tile<C> x, int row0, int column0, const Lane& l) {
  ldmatrix4_transposed(f.x, x.chunk(row0 + (l.id & 7) + ((l.id >> 4) << 3), (column0 >> 3) + ((l.id >> 3) & 1)));
}
template <int C> DEVICE void load_transposed(Right& f, Tile<C> x, int row0, int column0, const Lane& l) {
  ldmatrix4_transposed(f.x, x.chunk(row0 + (l.id & 15), (column0 >> 3) + (l.id >> 4)));
}
// d += a X[row0 .. + 16, column0 .. + 16]
template <int C> DEVICE void mma_tile(Acc& d, const Left& a, Tile<C> x, int row0, int column0, const Lane& l) {
  Right xt;
  load_transposed(xt, x, row0, column0, l);
  mma(d, a, xt);
}
template <int C> DEVICE void store(Tile<C> x, int row0, int column0, const Left& f, const Lane& l) {
  UNROLL for (int c = 0; c < 2; c++)
    UNROLL for (int r = 0; r < 2; r++)
      store_shared(x.chunk(row0 + l.row + 8 * r, (column0 >> 3) + c) + l.column * 2, f.x[r + 2 * c]);
}
// Four neighbouring columns of a row, column a multiple of four.
template <int C> DEVICE void load_row(float (&f)[4], Tile<C> x, int row, int column) {
  const U2 w = load_shared(x.chunk(row, column >> 3) + (column & 7) * 2);
  f[0] = bf16_lo(w.x); f[1] = bf16_hi(w.x); f[2] = bf16_lo(w.y); f[3] = bf16_hi(w.y);
}
template <int C> DEVICE U2 store_row(Tile<C> x, int row, int column, const float (&f)[4]) {
  const U2 w{pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3])};
  store_shared(x.chunk(row, column >> 3) + (column & 7) * 2, w);
  return w;
}
