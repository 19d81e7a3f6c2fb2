// host.hpp: stands in for ptx.cuh and for what CUDA builds in, so that g++ compiles the kernel text.
//
// Arithmetic of one thread is ordinary C++. Everything that memory, other lanes or other blocks take part in is a
// call into runtime.cpp, which also does the checking. No standard header is included: a kernel compiles in a
// fraction of the time, and the kernel text sees no names that nvcc would not show it.

#pragma once

#ifndef __CUDA_ARCH__  // a constant of the kernel may choose another
#define __CUDA_ARCH__ 900
#endif
#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };

inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int __popc(u32 v) { return __builtin_popcount(v); }

namespace emulator {

struct Index {
  u32 x, y, z;
};
// Of the thread that runs now; the scheduler sets them at every switch.
extern Index thread_index, block_index, grid_dimensions;

// What a kernel's parameters are taken from.
struct Arguments {
  const char* x;
  char* y;
  double scale;
  i64 rows;
  const char* signs;
  i64 sign_rows;
  i64 inner_rows, x_outer, x_inner, y_outer, y_inner;
  const char* base;
  i64 base_row_stride, base_column_stride;
  i64 inner;
  const char *operand, *second_operand, *positions;
  char* residual;
  double epsilon;
  i64 tokens;
  char* scales;
  const char* given_scale;
  double scale_factor;
  i64 scale_rows, seed;
};

// Dynamic shared memory starts here in the .shared window. Not 0, so that an address without its base is caught.
constexpr u32 kSharedBase = 1024;

enum class Format { FLOAT16, BFLOAT16, TF32 };
// Which dimension of wgmma's B is contiguous in shared memory.
enum class Layout { K_CONTIGUOUS, N_CONTIGUOUS };

// `instruction` is the name that errors are reported under.
void load_global(void* value, const void* address, int bytes, const char* instruction);
void store_global(void* address, const void* value, int bytes, const char* instruction);
void reduce_global_max(void* address, u32 v, const char* instruction);
void load_shared(void* value, u32 address, int bytes, const char* instruction);
void store_shared(u32 address, const void* value, int bytes, const char* instruction);
void start_copy(u32 shared_address, const void* address, const char* instruction);
void wait_for_copies(const char* instruction);
void init_mbarrier(u32 barrier, u32 arrivals, const char* instruction);
void publish_mbarriers();
void arrive_at_mbarrier(u32 barrier, u32 expected_bytes, const char* instruction);
void arrive_after_copies(u32 barrier, const char* instruction);
bool wait_at_mbarrier(u32 barrier, u32 parity, const char* instruction);
void start_remote_store(u32 address, u32 barrier, const void* value, const char* instruction);
void start_bulk_copy(u32 shared_address, const void* address, u32 bytes, u32 barrier, const char* instruction);
void warp_barrier(const char* instruction);
void block_barrier(u32 number, u32 threads, const char* instruction);
void cluster_arrive(const char* instruction);
void cluster_wait(const char* instruction);
void let_dependents_start(const char* instruction);
void wait_for_previous_grid();
u32 cluster_rank();
u32 map_shared(u32 address, u32 rank, const char* instruction);
float exchange_lanes(float v, u32 mask, const char* instruction);
void multiply(float* d, const u32 (&a)[4], const u32 (&b)[2], const float* c, Format format, const char* instruction);
void fence_matrices();
void fence_products();
void start_product(float* d, int tiles, bool start, const u32* a, u64 a_matrix, u64 b_matrix, Layout layout, Format format,
                   const char* instruction);
void commit_products();
void wait_for_products(int pending, const char* instruction);
void store_matrices(u32 address, const u32* words, int count, const char* instruction);
u32 half_bits(float v);
u32 bfloat16_bits(float v);
u32 float8_bits(float v, int mantissa, int bias, double maximum);
float reciprocal(float v);
float flush_subnormal(float v);
float square_root(float v);
float power_of_two(float v);
float error_function(float v);
float half_value(u32 bits);

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define gridDim emulator::grid_dimensions

// ---- memory ---------------------------------------------------------------------------------------

__device__ __forceinline__ uint4 ld_global_v4(const void* address) {
  uint4 v;
  emulator::load_global(&v, address, 16, __func__);
  return v;
}

__device__ __forceinline__ uint2 ld_global_v2(const void* address) {
  uint2 v;
  emulator::load_global(&v, address, 8, __func__);
  return v;
}

__device__ __forceinline__ u32 ld_global_u32(const void* address) {
  u32 v;
  emulator::load_global(&v, address, 4, __func__);
  return v;
}

__device__ __forceinline__ u32 ld_global_u16(const void* address) {
  u16 v;
  emulator::load_global(&v, address, 2, __func__);
  return v;
}

__device__ __forceinline__ void st_global_v4(void* address, uint4 v) {
  emulator::store_global(address, &v, 16, __func__);
}

__device__ __forceinline__ void st_global_v2(void* address, uint2 v) {
  emulator::store_global(address, &v, 8, __func__);
}

__device__ __forceinline__ void st_global_u32(void* address, u32 v) {
  emulator::store_global(address, &v, 4, __func__);
}

__device__ __forceinline__ void st_global_u16(void* address, u32 v) {
  const u16 low = (u16)v;
  emulator::store_global(address, &low, 2, __func__);
}

__device__ __forceinline__ void st_global_u8(void* address, u32 v) {
  const unsigned char low = (unsigned char)v;
  emulator::store_global(address, &low, 1, __func__);
}

__device__ __forceinline__ void red_global_max_u32(void* address, u32 v) {
  emulator::reduce_global_max(address, v, __func__);
}

__device__ __forceinline__ u32 mov_u32_tid_x() { return threadIdx.x; }

__device__ __forceinline__ u32 cvta_to_shared_dynamic() {
  return emulator::kSharedBase;
}

__device__ __forceinline__ uint4 ld_shared_v4(u32 address) {
  uint4 v;
  emulator::load_shared(&v, address, 16, __func__);
  return v;
}

__device__ __forceinline__ void st_shared_v4_f32(u32 address, float a, float b, float c, float d) {
  const float4 v = {a, b, c, d};
  emulator::store_shared(address, &v, 16, __func__);
}

__device__ __forceinline__ void st_shared_v4_b32(u32 address, uint4 v) {
  emulator::store_shared(address, &v, 16, __func__);
}

__device__ __forceinline__ void st_shared_v2_f32(u32 address, float a, float b) {
  const float2 v = {a, b};
  emulator::store_shared(address, &v, 8, __func__);
}

__device__ __forceinline__ void st_shared_f32(u32 address, float v) {
  emulator::store_shared(address, &v, 4, __func__);
}

__device__ __forceinline__ void st_shared_u32(u32 address, u32 v) {
  emulator::store_shared(address, &v, 4, __func__);
}

__device__ __forceinline__ u32 ld_shared_u32(u32 address) {
  u32 v;
  emulator::load_shared(&v, address, 4, __func__);
  return v;
}

__device__ __forceinline__ uint2 ld_shared_v2(u32 address) {
  uint2 v;
  emulator::load_shared(&v, address, 8, __func__);
  return v;
}

__device__ __forceinline__ float4 ld_shared_v4_f32(u32 address) {
  float4 v;
  emulator::load_shared(&v, address, 16, __func__);
  return v;
}

__device__ __forceinline__ float2 ld_shared_v2_f32(u32 address) {
  float2 v;
  emulator::load_shared(&v, address, 8, __func__);
  return v;
}

__device__ __forceinline__ float ld_shared_f32(u32 address) {
  float v;
  emulator::load_shared(&v, address, 4, __func__);
  return v;
}

__device__ __forceinline__ void cp_async_cg_16(u32 shared_address, const void* address) {
  emulator::start_copy(shared_address, address, __func__);
}

__device__ __forceinline__ void cp_async_cg_16_or_zeros(u32 shared_address, const void* address, bool read) {
  if (read) emulator::start_copy(shared_address, address, __func__);
  else st_shared_v4_b32(shared_address, make_uint4(0, 0, 0, 0));
}

// Groups do not matter as long as the only wait is for all of them, committed or not.
__device__ __forceinline__ void cp_async_commit_group() {}

__device__ __forceinline__ void cp_async_wait_all() {
  emulator::wait_for_copies(__func__);
}

// ---- synchronisation and clusters -----------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  emulator::init_mbarrier(barrier, arrivals, __func__);
}

__device__ __forceinline__ void bar_warp_sync() {
  emulator::warp_barrier(__func__);
}

__device__ __forceinline__ void bar_sync() {
  emulator::block_barrier(0, 0, __func__);
}

__device__ __forceinline__ void bar_sync_of(u32 barrier, u32 threads) {
  emulator::block_barrier(barrier, threads, __func__);
}

__device__ __forceinline__ u32 cluster_ctarank() {
  return emulator::cluster_rank();
}

__device__ __forceinline__ u32 mapa_shared_cluster(u32 address, u32 rank) {
  return emulator::map_shared(address, rank, __func__);
}

__device__ __forceinline__ void st_async_v4_b32(u32 address, u32 barrier, float a, float b, float c, float d) {
  const float4 v = {a, b, c, d};
  emulator::start_remote_store(address, barrier, &v, __func__);
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(u32 barrier, u32 bytes) {
  emulator::arrive_at_mbarrier(barrier, bytes, __func__);
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  emulator::arrive_at_mbarrier(barrier, 0, __func__);
}

__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(u32 barrier) {
  emulator::arrive_after_copies(barrier, __func__);
}

__device__ __forceinline__ bool mbarrier_try_wait_parity(u32 barrier, u32 parity) {
  return emulator::wait_at_mbarrier(barrier, parity, __func__);
}

__device__ __forceinline__ void cp_async_bulk(u32 shared_address, const void* address, u32 bytes, u32 barrier) {
  emulator::start_bulk_copy(shared_address, address, bytes, barrier, __func__);
}

__device__ __forceinline__ void fence_mbarrier_init() {
  emulator::publish_mbarriers();
}

__device__ __forceinline__ void griddepcontrol_launch_dependents() {
  emulator::let_dependents_start(__func__);
}

__device__ __forceinline__ void griddepcontrol_wait() {
  emulator::wait_for_previous_grid();
}

__device__ __forceinline__ void barrier_cluster_arrive() {
  emulator::cluster_arrive(__func__);
}

__device__ __forceinline__ void barrier_cluster_wait() {
  emulator::cluster_wait(__func__);
}

// ---- conversion -----------------------------------------------------------------------------------

__device__ __forceinline__ u32 cvt_rn_f16x2_f32(float high, float low) {
  return emulator::half_bits(high) << 16 | emulator::half_bits(low);
}

__device__ __forceinline__ u32 cvt_rn_bf16x2_f32(float high, float low) {
  return emulator::bfloat16_bits(high) << 16 | emulator::bfloat16_bits(low);
}

__device__ __forceinline__ float cvt_f32_f16(u32 bits) {
  return emulator::half_value(bits);
}

__device__ __forceinline__ float mov_f32_b32(u32 bits) {
  float v;
  __builtin_memcpy(&v, &bits, 4);
  return v;
}

__device__ __forceinline__ u32 mov_b32_f32(float v) {
  u32 bits;
  __builtin_memcpy(&bits, &v, 4);
  return bits;
}

__device__ __forceinline__ u32 prmt_b32(u32 first, u32 second, u32 selector) {
  const u64 bytes = (u64)second << 32 | first;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) result |= (u32)(bytes >> (8 * ((selector >> (4 * i)) & 7)) & 0xff) << (8 * i);
  return result;
}

#if __CUDA_ARCH__ >= 890
__device__ __forceinline__ u32 cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
  return emulator::float8_bits(high, 3, 7, 448.) << 8 | emulator::float8_bits(low, 3, 7, 448.);
}

__device__ __forceinline__ u32 cvt_rn_satfinite_e5m2x2_f32(float high, float low) {
  return emulator::float8_bits(high, 2, 15, 57344.) << 8 | emulator::float8_bits(low, 2, 15, 57344.);
}
#endif

// ---- arithmetic -----------------------------------------------------------------------------------

__device__ __forceinline__ float mul_rn_f32(float a, float b) { return a * b; }
__device__ __forceinline__ float add_rn_f32(float a, float b) { return a + b; }
__device__ __forceinline__ float fma_rn_f32(float a, float b, float c) { return (float)__builtin_fma((double)a, (double)b, (double)c); }
__device__ __forceinline__ float sqrt_rn_f32(float v) { return emulator::square_root(v); }
__device__ __forceinline__ float ex2_approx_ftz_f32(float v) { return emulator::flush_subnormal(emulator::power_of_two(emulator::flush_subnormal(v))); }
__device__ __forceinline__ float rcp_approx_f32(float v) { return emulator::reciprocal(v); }
__device__ __forceinline__ float rcp_approx_ftz_f32(float v) { return emulator::flush_subnormal(emulator::reciprocal(emulator::flush_subnormal(v))); }
__device__ __forceinline__ float rcp_rn_f32(float v) { return emulator::reciprocal(v); }
__device__ __forceinline__ float min_f32(float a, float b) { return a != a ? b : b != b ? a : a < b ? a : b; }
__device__ __forceinline__ float max_f32(float a, float b) { return a != a ? b : b != b ? a : a > b ? a : b; }
__device__ __forceinline__ float max_NaN_f32(float a, float b) { return a != a ? a : b != b ? b : a > b ? a : b; }
__device__ __forceinline__ float abs_f32(float v) { return __builtin_fabsf(v); }
__device__ __forceinline__ u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }
__device__ __forceinline__ u32 mul_hi_u32(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }

// ---- warp-wide ------------------------------------------------------------------------------------

__device__ __forceinline__ float shfl_sync_bfly(float v, u32 mask) {
  return emulator::exchange_lanes(v, mask, __func__);
}

__device__ __forceinline__ u32 shfl_sync_bfly(u32 v, u32 mask) {
  return mov_b32_f32(emulator::exchange_lanes(mov_f32_b32(v), mask, __func__));
}

// As every lane of a warp makes the same sequence of exchanges, those of all distances make up any other.
__device__ __forceinline__ float shfl_sync_idx(float v, u32 lane) {
  float chosen = v;
  for (u32 mask = 1; mask < 32; ++mask) {
    const float other = emulator::exchange_lanes(v, mask, __func__);
    if ((threadIdx.x % 32 ^ mask) == lane) chosen = other;
  }
  return chosen;
}

__device__ __forceinline__ u32 shfl_sync_idx(u32 v, u32 lane) { return mov_b32_f32(shfl_sync_idx(mov_f32_b32(v), lane)); }

__device__ __forceinline__ u32 redux_sync_max_u32(u32 v) {
  for (u32 mask = 1; mask < 32; mask *= 2) v = max_u32(v, mov_b32_f32(emulator::exchange_lanes(mov_f32_b32(v), mask, __func__)));
  return v;
}

__device__ __forceinline__ void mma_m16n8k16_f32_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3,
                                                     u32 b0, u32 b1, const float (&c)[4]) {
  const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  emulator::multiply(d, a, b, c, emulator::Format::FLOAT16, __func__);
}

__device__ __forceinline__ void mma_m16n8k16_f32_bf16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3,
                                                      u32 b0, u32 b1, const float (&c)[4]) {
  const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  emulator::multiply(d, a, b, c, emulator::Format::BFLOAT16, __func__);
}

__device__ __forceinline__ void mma_m16n8k8_f32_tf32(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, const float (&c)[4]) {
  const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  emulator::multiply(d, a, b, c, emulator::Format::TF32, __func__);
}

__device__ __forceinline__ void order_after(float& value) { (void)value; }
__device__ __forceinline__ void order_after(u32& value) { (void)value; }

#include "host_warpgroup.hpp"
