// row_maximum.cuh: the largest magnitudes of rows that several warps, or blocks of a cluster, hold.
//
// MAXIMA_WARPS warps share MAXIMA_ROWS rows; a block has MAXIMA_SLOTS such sets. Warps tell each other through shared
// memory and a barrier of the block. Blocks of a cluster of MAXIMA_BLOCKS write theirs into each other's shared memory
// (st.async), where an mbarrier counts the bytes, so that none waits for a barrier of the cluster.
//
// A block that goes on to other rows uses two sets of places for what other blocks write, in turn. A block two rounds
// ahead would need two; it cannot be, since it needs this block's maxima of the round between, which this block
// publishes only after all its threads have read those of the round before.

// The barrier of all warps that share rows: of the block, unless it is named.
#ifndef MAXIMA_BARRIER
#define MAXIMA_BARRIER bar_sync
#endif

constexpr u32 kWarpMaxima = (kEndOfOtherShared + 15) / 16 * 16;
constexpr u32 kBlockMaxima = (kWarpMaxima + 4 * MAXIMA_SLOTS * MAXIMA_ROWS * MAXIMA_WARPS + 15) / 16 * 16;
constexpr u32 kMaximaBarriers = kBlockMaxima + 2 * 16 * MAXIMA_BLOCKS;
static_assert(MAXIMA_BLOCKS == 1 || (MAXIMA_SLOTS == 1 && MAXIMA_ROWS <= 4), "a block sends one vector");

struct RowMaxima {
  u32 shared;  // where the block's shared memory starts
  int block;   // of the cluster
  u32 round;

  // Before the blocks of the cluster meet.
  __device__ __forceinline__ void init(u32 start_of_shared, int rank) {
    shared = start_of_shared;
    block = rank;
    round = 0;
#if MAXIMA_BLOCKS > 1
    if (threadIdx.x == 0) {
      mbarrier_init(shared + kMaximaBarriers, 1);
      mbarrier_init(shared + kMaximaBarriers + 8, 1);
      fence_mbarrier_init();
    }
#endif
  }

  // A barrier of the block must lie between two rounds.
  __device__ __forceinline__ void publish(const u32 (&magnitude)[MAXIMA_ROWS], int slot, int warp) const {
#pragma unroll
    for (int row = 0; row < MAXIMA_ROWS; ++row) {
      const u32 of_warp = redux_sync_max_u32(magnitude[row]);
      if (threadIdx.x % 32 == 0) st_shared_u32(shared + kWarpMaxima + 4 * ((slot * MAXIMA_ROWS + row) * MAXIMA_WARPS + warp), of_warp);
    }
  }

  __device__ __forceinline__ u32 largest_of_block(int slot, int row) const {
    const u32 first = shared + kWarpMaxima + 4 * (slot * MAXIMA_ROWS + row) * MAXIMA_WARPS;
    u32 largest = 0;
#pragma unroll
    for (int w = 0; w < MAXIMA_WARPS; w += MAXIMA_WARPS % 4 ? 1 : 4) {
      if (MAXIMA_WARPS % 4) {
        largest = max_u32(largest, ld_shared_u32(first + 4 * w));
      } else {
        const uint4 v = ld_shared_v4(first + 4 * w);
        largest = max_u32(max_u32(largest, max_u32(v.x, v.y)), max_u32(v.z, v.w));
      }
    }
    return largest;
  }

  // Everybody has published.
  __device__ __forceinline__ void meet() {
    MAXIMA_BARRIER();
#if MAXIMA_BLOCKS > 1
    const u32 turn = round & 1, barrier = shared + kMaximaBarriers + 8 * turn;
    if (threadIdx.x == 0) mbarrier_arrive_expect_tx(barrier, 16 * (MAXIMA_BLOCKS - 1));
    if (threadIdx.x < MAXIMA_BLOCKS && threadIdx.x != block) {
      float v[4];
#pragma unroll
      for (int row = 0; row < 4; ++row) v[row] = mov_f32_b32(row < MAXIMA_ROWS ? largest_of_block(0, row % MAXIMA_ROWS) : 0);
      const u32 place = shared + kBlockMaxima + 16 * (turn * MAXIMA_BLOCKS + block);
      st_async_v4_b32(mapa_shared_cluster(place, threadIdx.x), mapa_shared_cluster(barrier, threadIdx.x), v[0], v[1], v[2], v[3]);
    }
    while (!mbarrier_try_wait_parity(barrier, round >> 1 & 1)) {}
    ++round;
#endif
  }

  // After meet(), the same in every thread.
  __device__ __forceinline__ u32 largest(int slot, int row) const {
    u32 found = largest_of_block(slot, row);
#if MAXIMA_BLOCKS > 1
#pragma unroll
    for (int b = 0; b < MAXIMA_BLOCKS; ++b) {
      const u32 place = shared + kBlockMaxima + 16 * ((round + 1 & 1) * MAXIMA_BLOCKS + b);
      if (b != block) found = max_u32(found, ld_shared_u32(place + 4 * row));
    }
#endif
    return found;
  }
};
