// row_maximum.cuh: the largest magnitude of a row that several warps, or blocks of a cluster, hold.
//
// Warps tell each other through shared memory and a barrier of the block. Blocks write theirs into each other's shared
// memory (st.async), where an mbarrier counts the bytes, so that none waits for a barrier of the cluster, or reads from
// a block that may have ended.

constexpr u32 kWarpMaxima = (kEndOfExchange + 15) / 16 * 16;               // one u32 for each warp
constexpr u32 kBlockMaxima = (kWarpMaxima + 4 * WARPS + 15) / 16 * 16;     // 16 bytes for each block of the cluster
constexpr u32 kMaximaBarrier = kBlockMaxima + 16 * CLUSTER;

__device__ __forceinline__ void init_row_maximum(u32 shared) {
#if CLUSTER > 1
  if (threadIdx.x == 0) {
    mbarrier_init(shared + kMaximaBarrier, 1);
    fence_mbarrier_init();
  }
  bar_warp_sync();
  if (threadIdx.x == 0) mbarrier_arrive_expect_tx(shared + kMaximaBarrier, 16 * (CLUSTER - 1));
#endif
}

// The same in every thread. A barrier of the block must lie between two calls.
__device__ __forceinline__ u32 largest_of_row(u32 shared, u32 magnitude, [[maybe_unused]] int block) {
  const u32 of_warp = redux_sync_max_u32(magnitude);
  if (threadIdx.x % 32 == 0) st_shared_u32(shared + kWarpMaxima + threadIdx.x / 32 * 4, of_warp);
  bar_sync();
  u32 largest = 0;
  if (WARPS % 4 == 0) {
#pragma unroll
    for (int w = 0; w < WARPS; w += 4) {
      const uint4 v = ld_shared_v4(shared + kWarpMaxima + 4 * w);
      largest = max_u32(max_u32(largest, max_u32(v.x, v.y)), max_u32(v.z, v.w));
    }
  } else {
#pragma unroll
    for (int w = 0; w < WARPS; ++w) largest = max_u32(largest, ld_shared_u32(shared + kWarpMaxima + 4 * w));
  }
#if CLUSTER > 1
  const u32 own = shared + kBlockMaxima + 16 * block;
  if (threadIdx.x < CLUSTER && threadIdx.x != block) {
    const float v = mov_f32_b32(largest);
    st_async_v4_b32(mapa_shared_cluster(own, threadIdx.x), mapa_shared_cluster(shared + kMaximaBarrier, threadIdx.x), v, v, v, v);
  }
  while (!mbarrier_try_wait_parity(shared + kMaximaBarrier, 0)) {}
#pragma unroll
  for (int b = 0; b < CLUSTER; ++b) {
    if (b != block) largest = max_u32(largest, ld_shared_u32(shared + kBlockMaxima + 16 * b));
  }
#endif
  return largest;
}
