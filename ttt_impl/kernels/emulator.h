// Host back end of warp.cuh: one CTA at a time, its threads as fibers of one OS thread.
//
// A correct kernel gives the same bits under every schedule; a race gives a wrong number under some. Three knobs
// (`emulator_configure`) make the schedules adversarial:
//
//   order     0: round robin; 1, 2: the lowest, highest numbered warp runs from barrier to barrier before any other
//   eager     0: an asynchronous copy lands as late as copy_wait allows; 1: at once
//   truncate  1: matrix products round towards zero when they are added, as tensor cores may; 0: to nearest
//
// Shared memory starts out poisoned; addresses are checked for bounds and alignment, barriers for divergence.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <vector>
#define DEVICE inline
using std::fmaxf;

namespace emulator {
struct Copy { unsigned char* to; const void* from; bool valid; int group; };
struct Fiber {
  ucontext_t start;
  jmp_buf place;
  std::vector<char> stack;
  bool started, done;
  int group, barrier;           // copy groups committed so far; generation of the CTA barrier it waits for, -1: none
  std::vector<Copy> pending;
};
struct Exchange { u32 words[32][4]; int arrived, generation; };   // one a warp: what the lanes show each other

inline std::vector<Fiber> fibers;
inline std::vector<Exchange> exchange;
inline std::vector<unsigned char> memory;
inline ucontext_t outside;
inline void (*body)(const void*, unsigned char*);
inline const void* arguments;
inline int current, threads, block, shared_bytes, arrived, generation;
inline int order = 0, eager = 0, truncate = 0;

inline void fail(const char* what) { fprintf(stderr, "emulator: %s\n", what); abort(); }

// ---------------------------------------------------------------------------------------------------- scheduling
inline bool runnable(int i) { return !fibers[i].done && fibers[i].barrier != generation; }
inline int next_fiber() {
  if (order == 0) {
    for (int k = 1; k <= threads; k++) if (runnable((current + k) % threads)) return (current + k) % threads;
    return -1;
  }
  const int warps = threads / 32, mine = current / 32;
  for (int k = 1; k <= 32; k++) if (runnable(mine * 32 + (current + k) % 32)) return mine * 32 + (current + k) % 32;
  for (int j = 0; j < warps; j++)
    for (int k = 0, w = order == 1 ? j : warps - 1 - j; k < 32; k++) if (runnable(w * 32 + k)) return w * 32 + k;
  return -1;
}
inline void enter(int i) {
  current = i;
  if (fibers[i].started) _longjmp(fibers[i].place, 1);
  fibers[i].started = true;
  setcontext(&fibers[i].start);
}
inline void yield() {
  const int next = next_fiber();
  if (next < 0) fail("deadlock: a barrier that not all threads reach");
  if (next != current && !_setjmp(fibers[current].place)) enter(next);
}
inline unsigned char* shared() { return (unsigned char*)(((uintptr_t)memory.data() + 127) & ~(uintptr_t)127); }
inline void fiber_main() {
  body(arguments, shared());
  fibers[current].done = true;
  const int next = next_fiber();
  if (next >= 0) enter(next);
  for (const Fiber& f : fibers) if (!f.done) fail("deadlock: a thread left before a barrier");
  setcontext(&outside);
}
inline void run_cta(int count, int index, int bytes, void (*kernel)(const void*, unsigned char*), const void* p) {
  threads = count; block = index; shared_bytes = bytes; body = kernel; arguments = p;
  arrived = generation = 0;
  memory.assign(bytes + 128, 0xCD);
  exchange.assign(threads / 32, Exchange{});
  fibers.resize(threads);
  for (Fiber& f : fibers) {
    f.stack.resize(1 << 16);
    f.started = f.done = false; f.group = 0; f.barrier = -1; f.pending.clear();
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.data(); f.start.uc_stack.ss_size = f.stack.size(); f.start.uc_link = nullptr;
    makecontext(&f.start, fiber_main, 0);
  }
  volatile bool finished = false;
  getcontext(&outside);
  if (finished) return;
  finished = true;
  enter(order == 2 ? threads - 32 : 0);
}

// ------------------------------------------------------------------------------------------------ warp collectives
inline void meet(Exchange& x) {
  const int now = x.generation;
  if (++x.arrived == 32) { x.arrived = 0; x.generation++; } else while (x.generation == now) yield();
}
// Every lane shows `count` words, all meet, each reads what it needs through `read`, all meet again.
template <class Read> inline void collective(const u32* words, int count, Read read) {
  Exchange& x = exchange[current / 32];
  memcpy(x.words[current % 32], words, 4 * count);
  meet(x);
  read(x);
  meet(x);
}
inline unsigned char* at(u32 address, int bytes) {
  if ((i64)address + bytes > shared_bytes || address % bytes) fail("shared address out of bounds or misaligned");
  return shared() + address;
}
inline void land(const Copy& c) { if (c.valid) memcpy(c.to, c.from, 16); else memset(c.to, 0, 16); }
inline float as_float(u32 x) { float f; memcpy(&f, &x, 4); return f; }
inline u32 as_word(float f) { u32 x; memcpy(&x, &f, 4); return x; }
inline float half_of(u32 pair, int i) { return as_float(i & 1 ? pair & 0xffff0000u : pair << 16); }
inline u32 bf16(float f) {                                                     // to nearest, ties to even
  const u32 x = as_word(f);
  return (x & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (x + 0x7fff + ((x >> 16) & 1)) >> 16;
}
inline float rounded(double x) {
  const float f = (float)x;
  return truncate && std::fabs((double)f) > std::fabs(x) ? std::nextafterf(f, 0.f) : f;
}
inline void ldmatrix(u32 (&r)[4], u32 address, bool transposed) {
  u32 from[32];
  collective(&address, 1, [&](Exchange& x) { for (int l = 0; l < 32; l++) from[l] = x.words[l][0]; });
  const int g = current % 32 / 4, q = current % 4;
  for (int m = 0; m < 4; m++) {
    u16 e[2];
    for (int j = 0; j < 2; j++) {
      const int row = transposed ? q * 2 + j : g, column = transposed ? g : q * 2 + j;
      memcpy(&e[j], at(from[m * 8 + row], 16) + column * 2, 2);
    }
    r[m] = e[0] | (u32)e[1] << 16;
  }
}
}  // namespace emulator

// --------------------------------------------------------------------------------------- the names of warp.cuh
DEVICE int tid() { return emulator::current; }
DEVICE int bid() { return emulator::block; }
DEVICE int opaque(int x) { return x; }
DEVICE void sync_warp() { u32 nothing = 0; emulator::collective(&nothing, 1, [](emulator::Exchange&) {}); }
DEVICE void sync_cta() {
  using namespace emulator;
  if (++arrived == threads) { arrived = 0; generation++; return; }
  Fiber& me = fibers[current];
  const int now = me.barrier = generation;
  while (generation == now) yield();
  me.barrier = -1;
}
DEVICE float shfl_xor(float x, int mask) {
  u32 word = emulator::as_word(x);
  float y = 0;
  const int from = (emulator::current % 32) ^ mask;
  emulator::collective(&word, 1, [&](emulator::Exchange& e) { y = emulator::as_float(e.words[from][0]); });
  return y;
}
DEVICE u32 pack_bf16(float lo, float hi) { return emulator::bf16(lo) | emulator::bf16(hi) << 16; }
DEVICE float bf16_lo(u32 x) { return emulator::half_of(x, 0); }
DEVICE float bf16_hi(u32 x) { return emulator::half_of(x, 1); }
DEVICE float rsqrt_approx(float x) { return 1.0f / std::sqrt(x); }
DEVICE float tanh_approx(float x) {                                             // as wrong as the hardware may be: 2^-11
  return emulator::as_float(emulator::as_word(std::tanh(x)) & ~0xfffu);
}
DEVICE void mma16816(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  using namespace emulator;
  const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  u32 A[32][4], B[32][2];
  collective(a, 4, [&](Exchange& x) { memcpy(A, x.words, sizeof A); });
  collective(b, 2, [&](Exchange& x) { for (int l = 0; l < 32; l++) memcpy(B[l], x.words[l], 8); });
  const int g = current % 32 / 4, q = current % 4;
  for (int i = 0; i < 4; i++) {
    const int row = g + i / 2 * 8, column = q * 2 + (i & 1);
    double sum = 0;
    for (int k = 0; k < 16; k++)
      sum += (double)half_of(A[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], k) *
             half_of(B[column * 4 + k % 8 / 2][k / 8], k);
    d[i] = rounded(d[i] + sum);
  }
}
DEVICE void ldmatrix4(u32 (&r)[4], u32 address) { emulator::ldmatrix(r, address, false); }
DEVICE void ldmatrix4_transposed(u32 (&r)[4], u32 address) { emulator::ldmatrix(r, address, true); }
DEVICE u32 movmatrix(u32 x) {
  const int g = emulator::current % 32 / 4, q = emulator::current % 4;
  u32 y = 0;
  emulator::collective(&x, 1, [&](emulator::Exchange& e) {
    for (int j = 0; j < 2; j++) {
      const u32 pair = e.words[(q * 2 + j) * 4 + g / 2][0];
      y |= (g & 1 ? pair >> 16 : pair & 0xffff) << 16 * j;
    }
  });
  return y;
}
DEVICE u32 shared_address(const void* p) { return (u32)((const unsigned char*)p - emulator::shared()); }
DEVICE void store_shared(u32 address, u32 x) { memcpy(emulator::at(address, 4), &x, 4); }
DEVICE void store_shared(u32 address, U2 x) { memcpy(emulator::at(address, 8), &x, 8); }
DEVICE U2 load_shared(u32 address) { U2 x; memcpy(&x, emulator::at(address, 8), 8); return x; }
DEVICE void copy_async(u32 to, const void* from, bool valid) {
  emulator::Fiber& me = emulator::fibers[emulator::current];
  const emulator::Copy copy{emulator::at(to, 16), from, valid, me.group};
  if (valid && (uintptr_t)from % 16) emulator::fail("global address of an asynchronous copy misaligned");
  if (emulator::eager) emulator::land(copy); else me.pending.push_back(copy);
}
DEVICE void copy_commit() { emulator::fibers[emulator::current].group++; }
template <int N> DEVICE void copy_wait() {
  emulator::Fiber& me = emulator::fibers[emulator::current];
  std::vector<emulator::Copy> rest;
  for (const emulator::Copy& c : me.pending) if (c.group < me.group - N) emulator::land(c); else rest.push_back(c);
  me.pending.swap(rest);
}

extern "C" void emulator_configure(int order, int eager, int truncate) {
  emulator::order = order; emulator::eager = eager; emulator::truncate = truncate;
}
#define ENTRY(name, Kernel, Arguments, ctas_per_sm)                                                              \
  extern "C" {                                                                                                   \
  int name##_threads = Kernel::THREADS, name##_shared = Kernel::SHARED_BYTES;                                    \
  void name(int ctas, const Arguments* arguments) {                                                              \
    for (int i = 0; i < ctas; i++)                                                                               \
      emulator::run_cta(Kernel::THREADS, i, Kernel::SHARED_BYTES, [](const void* p, unsigned char* memory) {     \
        Kernel::run(*(const Arguments*)p, memory);                                                               \
      }, arguments);                                                                                             \
  }                                                                                                              \
  }
