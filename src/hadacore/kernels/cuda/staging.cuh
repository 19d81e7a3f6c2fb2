// staging.cuh: the next row on its way into shared memory while this one is transformed (PREFETCH = 1).
//
// Each warp has a piece of the staging buffer, one row's part, which it alone fills and reads, so no barrier of the
// block guards it. A lane's vectors lie 512 bytes apart in it, as they do in memory.
//
// sm_90 and above: one lane asks for the warp's piece with one bulk copy, and an mbarrier of the warp counts its bytes.
// Against cp.async, which every lane issues for every vector, and which fills the load-store unit's queue: 1.25 -> 1.21
// times a copy at 32768, 1.09 -> 1.04 at 16384 (2^23 elements, cold). Below sm_90: cp.async, each lane for the vectors
// that it reads itself.

constexpr int kThreads = 32 * WARPS;
constexpr int kVectors = kTiles * kTileVectors;  // 16-byte vectors of a row that a lane holds
constexpr u32 kVectorBytesApart = 512;           // a tile, or half of one
constexpr u32 kPieceBytes = kVectors * kVectorBytesApart;
constexpr u32 kStagingBytes = PREFETCH ? WARPS * (kPieceBytes + 8) : 0;  // pieces, then an mbarrier for each

struct Staging {
  u32 piece;    // this warp's
  u32 barrier;  // likewise
  u32 parity;   // of the phase in which the current row arrives
  int lane;

  __device__ __forceinline__ void init(u32 buffer, int warp, int lane_of_thread) {
    if (!PREFETCH) return;
    piece = buffer + warp * kPieceBytes;
    barrier = buffer + WARPS * kPieceBytes + 8 * warp;
    parity = 0;
    lane = lane_of_thread;
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      mbarrier_init(barrier, 1);
      fence_mbarrier_init();  // also ahead of the bulk copies' view of it
    }
    bar_warp_sync();
#endif
  }

  // Ask for this warp's part of a row, which starts at `source`.
  __device__ __forceinline__ void start(const char* source) {
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      mbarrier_arrive_expect_tx(barrier, kPieceBytes);
      cp_async_bulk(piece, source, kPieceBytes, barrier);
    }
#else
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      cp_async_cg_16(piece + kVectorBytesApart * i + 16u * lane, source + kVectorBytesApart * i + 16 * lane);
    cp_async_commit_group();
#endif
  }

  __device__ __forceinline__ void wait() {
#if __CUDA_ARCH__ >= 900
    while (!mbarrier_try_wait_parity(barrier, parity)) {}
    parity ^= 1;
#else
    cp_async_wait_all();
#endif
  }

  __device__ __forceinline__ uint4 vector(int i) const { return ld_shared_v4(piece + kVectorBytesApart * i + 16u * lane); }

  // All lanes have read; the piece may be filled again.
  __device__ __forceinline__ void release() {
#if __CUDA_ARCH__ >= 900
    bar_warp_sync();
#endif
  }
};
