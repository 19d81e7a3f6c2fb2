// ptx.cuh: the only place with inline PTX. One instruction per function, named after the instruction.
//
// Names follow the PTX ISA manual with dots turned into underscores. Shared-memory addresses are 32-bit
// offsets in the .shared window throughout, global addresses are ordinary pointers.

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// ---- memory ---------------------------------------------------------------------------------------

__device__ __forceinline__ uint4 ld_global_v4(const void* address) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
  return v;
}

__device__ __forceinline__ uint2 ld_global_v2(const void* address) {
  uint2 v;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
  return v;
}

__device__ __forceinline__ u32 ld_global_u32(const void* address) {
  u32 v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}

__device__ __forceinline__ u32 ld_global_u16(const void* address) {
  u16 v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(address));
  return v;
}

__device__ __forceinline__ void st_global_v4(void* address, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :: "l"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ void st_global_v2(void* address, uint2 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" :: "l"(address), "r"(v.x), "r"(v.y) : "memory");
}

__device__ __forceinline__ void st_global_u32(void* address, u32 v) {
  asm volatile("st.global.u32 [%0], %1;" :: "l"(address), "r"(v) : "memory");
}

__device__ __forceinline__ void st_global_u16(void* address, u32 v) {
  asm volatile("st.global.u16 [%0], %1;" :: "l"(address), "h"((u16)v) : "memory");
}

__device__ __forceinline__ void st_global_u8(void* address, u32 v) {
  asm volatile("st.global.u8 [%0], %1;" :: "l"(address), "r"(v) : "memory");
}

// red.global.max.u32: the larger of what is there and v, which is not given back.
__device__ __forceinline__ void red_global_max_u32(void* address, u32 v) {
  asm volatile("red.global.max.u32 [%0], %1;" :: "l"(address), "r"(v) : "memory");
}

extern __shared__ __align__(1024) uint4 dynamic_shared_memory[];  // as wgmma's swizzle wants it

// mov of %tid.x, which the compiler does not know to be the same each time.
__device__ __forceinline__ u32 mov_u32_tid_x() {
  u32 thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// cvta.to.shared: where this block's dynamic shared memory starts in the .shared window.
__device__ __forceinline__ u32 cvta_to_shared_dynamic() {
  u64 address;
  asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(dynamic_shared_memory));
  return (u32)address;
}

__device__ __forceinline__ uint4 ld_shared_v4(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ void st_shared_v4_f32(u32 address, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
               :: "r"(address), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

__device__ __forceinline__ void st_shared_v4_b32(u32 address, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
               :: "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ void st_shared_v2_f32(u32 address, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" :: "r"(address), "f"(a), "f"(b) : "memory");
}

__device__ __forceinline__ void st_shared_f32(u32 address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" :: "r"(address), "f"(v) : "memory");
}

__device__ __forceinline__ void st_shared_u32(u32 address, u32 v) {
  asm volatile("st.shared.u32 [%0], %1;" :: "r"(address), "r"(v) : "memory");
}

__device__ __forceinline__ u32 ld_shared_u32(u32 address) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ uint2 ld_shared_v2(u32 address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ float4 ld_shared_v4_f32(u32 address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ float2 ld_shared_v2_f32(u32 address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ float ld_shared_f32(u32 address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}

// cp.async: 16 bytes from global to shared memory, bypassing registers and L1.
__device__ __forceinline__ void cp_async_cg_16(u32 shared_address, const void* address) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(shared_address), "l"(address) : "memory");
}

// The same, or 16 bytes of zeros and nothing read.
__device__ __forceinline__ void cp_async_cg_16_or_zeros(u32 shared_address, const void* address, bool read) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_address), "l"(address), "r"(read ? 16 : 0) : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// ---- synchronisation and clusters -----------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void bar_warp_sync() {
  asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
}

__device__ __forceinline__ void bar_sync() {
  asm volatile("bar.sync 0;" ::: "memory");
}

// bar.sync with a number of its own, for so many threads of the block.
__device__ __forceinline__ void bar_sync_of(u32 barrier, u32 threads) {
  asm volatile("bar.sync %0, %1;" :: "r"(barrier), "r"(threads) : "memory");
}

// ---- conversion -----------------------------------------------------------------------------------

// cvt.rn.f16x2.f32: `low` goes to bits 0..15, `high` to bits 16..31; overflow gives infinity.
__device__ __forceinline__ u32 cvt_rn_f16x2_f32(float high, float low) {
  u32 packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ u32 cvt_rn_bf16x2_f32(float high, float low) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float cvt_f32_f16(u32 bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"((u16)bits));
  return v;
}

// mov.b32 between a float and its bits.
__device__ __forceinline__ float mov_f32_b32(u32 bits) {
  float v;
  asm("mov.b32 %0, %1;" : "=f"(v) : "r"(bits));
  return v;
}

__device__ __forceinline__ u32 mov_b32_f32(float v) {
  u32 bits;
  asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

// prmt.b32: byte i of the result is byte (selector >> 4 i) & 7 of first (0..3) and second (4..7).
__device__ __forceinline__ u32 prmt_b32(u32 first, u32 second, u32 selector) {
  u32 bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(first), "r"(second), "r"(selector));
  return bytes;
}

#if __CUDA_ARCH__ >= 890
// cvt.rn.satfinite.e4m3x2.f32: `low` goes to bits 0..7, `high` to bits 8..15; NaN is 0x7f, the rest saturates to 448.
__device__ __forceinline__ u32 cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
  u16 packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ u32 cvt_rn_satfinite_e5m2x2_f32(float high, float low) {
  u16 packed;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}
#endif

// ---- arithmetic -----------------------------------------------------------------------------------

// mul.rn.f32 and add.rn.f32: each rounds by itself; without .rn the compiler may make one fma of both.
__device__ __forceinline__ float mul_rn_f32(float a, float b) {
  float product;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
  return product;
}

__device__ __forceinline__ float add_rn_f32(float a, float b) {
  float sum;
  asm("add.rn.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
  return sum;
}

__device__ __forceinline__ float fma_rn_f32(float a, float b, float c) {
  float sum;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(sum) : "f"(a), "f"(b), "f"(c));
  return sum;
}

__device__ __forceinline__ float sqrt_rn_f32(float v) {
  float root;
  asm("sqrt.rn.f32 %0, %1;" : "=f"(root) : "f"(v));
  return root;
}

// ex2.approx.ftz.f32: 2^v to two units in the last place; 0 below 2^-126.
__device__ __forceinline__ float ex2_approx_ftz_f32(float v) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
  return power;
}

// rcp.approx.f32: the reciprocal to one unit in the last place.
__device__ __forceinline__ float rcp_approx_f32(float v) {
  float reciprocal;
  asm("rcp.approx.f32 %0, %1;" : "=f"(reciprocal) : "f"(v));
  return reciprocal;
}

// rcp.approx.ftz.f32: the same, 0 below 2^-126. A third of the instructions.
__device__ __forceinline__ float rcp_approx_ftz_f32(float v) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(v));
  return reciprocal;
}

// rcp.rn.f32: the correctly rounded reciprocal.
__device__ __forceinline__ float rcp_rn_f32(float v) {
  float reciprocal;
  asm("rcp.rn.f32 %0, %1;" : "=f"(reciprocal) : "f"(v));
  return reciprocal;
}

// min.f32 and max.f32: of a number and NaN, the number.
__device__ __forceinline__ float min_f32(float a, float b) {
  float smaller;
  asm("min.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
  return smaller;
}

__device__ __forceinline__ float max_f32(float a, float b) {
  float larger;
  asm("max.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// max.NaN.f32: NaN if either is.
__device__ __forceinline__ float max_NaN_f32(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

__device__ __forceinline__ float abs_f32(float v) {
  float magnitude;
  asm("abs.f32 %0, %1;" : "=f"(magnitude) : "f"(v));
  return magnitude;
}

__device__ __forceinline__ u32 max_u32(u32 a, u32 b) {
  u32 larger;
  asm("max.u32 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// mul.hi.u32: the upper half of the 64-bit product.
__device__ __forceinline__ u32 mul_hi_u32(u32 a, u32 b) {
  u32 upper;
  asm("mul.hi.u32 %0, %1, %2;" : "=r"(upper) : "r"(a), "r"(b));
  return upper;
}

// ---- warp-wide ------------------------------------------------------------------------------------

// shfl.sync.bfly: the value of lane (this lane xor mask).
__device__ __forceinline__ float shfl_sync_bfly(float v, u32 mask) {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(other) : "f"(v), "r"(mask));
  return other;
}

__device__ __forceinline__ u32 shfl_sync_bfly(u32 v, u32 mask) {
  u32 other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(other) : "r"(v), "r"(mask));
  return other;
}

// shfl.sync.idx: the value of that lane.
__device__ __forceinline__ float shfl_sync_idx(float v, u32 lane) {
  float other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(other) : "f"(v), "r"(lane));
  return other;
}

__device__ __forceinline__ u32 shfl_sync_idx(u32 v, u32 lane) {
  u32 other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(other) : "r"(v), "r"(lane));
  return other;
}

// redux.sync.max.u32: the largest value of the warp.
__device__ __forceinline__ u32 redux_sync_max_u32(u32 v) {
  u32 largest;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(largest) : "r"(v));
  return largest;
}

// mma.m16n8k16, D = A B + C in fp32. Fragments (g = lane / 4, t = lane % 4, PTX ISA 9.7.14.5.8):
//   A: a0 (row g, k 2t..2t+1)  a1 (row g+8, k 2t..)  a2 (row g, k 2t+8..)  a3 (row g+8, k 2t+8..)
//   B: b0 (k 2t..2t+1, column g)  b1 (k 2t+8.., column g)
//   C: c0 c1 (row g, column 2t, 2t+1)  c2 c3 (row g+8, column 2t, 2t+1)
__device__ __forceinline__ void mma_m16n8k16_f32_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3,
                                                     u32 b0, u32 b1, const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

__device__ __forceinline__ void mma_m16n8k16_f32_bf16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3,
                                                      u32 b0, u32 b1, const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// mma.m16n8k8 of fp32 words of which 19 bits count, sign, exponent and 10 of the mantissa (tf32). Fragments:
//   A: a0 (row g, k t)  a1 (row g+8, k t)  a2 (row g, k t+4)  a3 (row g+8, k t+4)
//   B: b0 (k t, column g)  b1 (k t+4, column g)
__device__ __forceinline__ void mma_m16n8k8_f32_tf32(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// No instruction: what is computed from the value stays after the volatile instructions before this.
__device__ __forceinline__ void order_after(float& value) {
  asm volatile("" : "+f"(value) :: "memory");
}

__device__ __forceinline__ void order_after(u32& value) {
  asm volatile("" : "+r"(value) :: "memory");
}
