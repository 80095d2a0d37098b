// What a warp can do, under one set of names with two back ends:
//
//   device   nvcc or NVRTC: inline PTX for sm_80 and later; no CUDA header is needed
//   host     g++ -DTTT_EMULATE: every CUDA thread is a fiber (emulator.h), so that collectives, barriers and
//            asynchronous copies keep their meaning and a race shows as a wrong number
//
// A kernel is a struct with THREADS, SHARED_BYTES and run(arguments, shared memory); ENTRY gives it a C name.
#pragma once
typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
struct alignas(16) F4 { float x, y, z, w; };
struct alignas(16) U4 { u32 x, y, z, w; };
struct alignas(8) U2 { u32 x, y; };
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")      // where the compiler would unroll and run out of registers

#ifdef TTT_EMULATE
#include "emulator.h"
#else
#define DEVICE __device__ __forceinline__
DEVICE int tid() { return threadIdx.x; }
DEVICE int bid() { return blockIdx.x; }
DEVICE int opaque(int x) { asm volatile("" : "+r"(x)); return x; }       // its origin is hidden from the compiler
DEVICE void sync_cta() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shfl_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// Two bf16 live in one 32-bit register, the lower index in the lower half.
DEVICE u32 pack_bf16(float lo, float hi) {
  u32 d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}
DEVICE float bf16_lo(u32 x) { return __uint_as_float(x << 16); }
DEVICE float bf16_hi(u32 x) { return __uint_as_float(x & 0xffff0000u); }
DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float tanh_approx(float x) {                                     // relative error 2^-11
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d[16 x 8] += a[16 x 16] b[16 x 8], float32 += bf16 bf16
DEVICE void mma16816(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Four 8 x 8 matrices of 16-bit numbers from shared memory; lane 8 m + i gives the address of row i of matrix m.
DEVICE void ldmatrix4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
DEVICE void ldmatrix4_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// An 8 x 8 matrix, spread over the warp, transposed.
DEVICE u32 movmatrix(u32 x) {
  u32 y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void store_shared(u32 address, u32 x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
DEVICE void store_shared(u32 address, U2 x) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(address), "r"(x.x), "r"(x.y) : "memory");
}
DEVICE U2 load_shared(u32 address) {
  U2 x;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(address) : "memory");
  return x;
}
// 16 bytes from global to shared memory in the background; zeros, and nothing read, when not valid.
DEVICE void copy_async(u32 to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most N of this thread's groups are still under way.
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#define ENTRY(name, Kernel, Arguments, ctas_per_sm)                                        \
  extern "C" __global__ void __launch_bounds__(Kernel::THREADS, ctas_per_sm)               \
      name(const __grid_constant__ Arguments arguments) {                                  \
    extern __shared__ __align__(128) unsigned char shared[];                               \
    Kernel::run(arguments, shared);                                                        \
  }
#endif
