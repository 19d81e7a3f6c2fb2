// exchange.cuh: the one trip through shared memory that contracts the index bits above a warp's part.
//
// A row is PARTS = WARPS * CLUSTER parts of kPartElements consecutive elements, one a warp. Each warp writes the
// fp32 values of its part; each thread then reads the same few elements of every part, finishes with a
// radix-PARTS butterfly, and stores.
//
// With CLUSTER > 1 each block finishes one range of every part. Warps write a range straight into the shared memory of
// the block that finishes it: a write to another block is not waited for, where a read is (size 32768, 2^19 elements,
// cold, 4 blocks a row: 2.3 times a copy when blocks read from one another, 1.5 when they write).
//
// PASSES = 2 moves each part in two halves through a buffer of half the size, for GPUs with little shared memory.

static_assert(PASSES == 1 || PASSES == 2, "one or two passes");
constexpr int kParts = WARPS * CLUSTER;
constexpr int kPartElements = kTiles * kTileElements;
constexpr int kPassTiles = kTiles / PASSES;
constexpr int kPassElements = kPassTiles * kTileElements;  // of one part, in one pass
constexpr int kRangeTiles = kPassTiles / CLUSTER;          // of one part, in one pass, that one block finishes
constexpr u32 kRangeBytes = 4u * kRangeTiles * kTileElements;
constexpr u32 kExchangeBytes = kParts * kRangeBytes;
static_assert(kRangeTiles * CLUSTER == kPassTiles, "every block must finish whole tiles of each part");

// When every part is written: a barrier of the block; in a cluster also an mbarrier that counts the bytes that other
// blocks write (st.async), so that no fence waits for them to arrive there.
constexpr u32 kFullBarrier = kExchangeBytes + kStagingBytes;

// For row_maximum.cuh.
#define MAXIMA_WARPS WARPS
#define MAXIMA_ROWS 1
#define MAXIMA_SLOTS 1
#define MAXIMA_BLOCKS CLUSTER
constexpr u32 kSquares = (kFullBarrier + (CLUSTER > 1 ? 8 : 0) + 15) / 16 * 16;  // 16 bytes for each part of a row that is normalised
constexpr u32 kEndOfOtherShared = kNormalises ? kSquares + 16 * kParts : kFullBarrier + (CLUSTER > 1 ? 8 : 0);
constexpr u32 kBytesOfOtherBlocks = kExchangeBytes - kExchangeBytes / CLUSTER + (kNormalises ? 16 * (kParts - WARPS) : 0);

// Elements a thread reads from each part at a time: a 16-byte store if its share of the row allows it.
constexpr int kShare = 8 * kPassTiles / kParts;
constexpr int kGroup = kShare < kOutputVectorElements ? kShare : kOutputVectorElements;
constexpr int kSlots = kShare / kGroup;
constexpr int kGroupWords = kGroup * kOutputBytes / 4;
static_assert(kGroup >= 2, "a thread must take at least half a quad of each part");
static_assert(kSlots * kGroup * kParts == 8 * kPassTiles, "the threads' shares must cover the row exactly once");

// Quads of 4 fp32 values are the unit of shared-memory access. 16-bit tiles: a lane holds quads 2 lane and
// 2 lane + 1 of its tile; even quads go to one plane of 32, odd quads to another with lanes rotated by 4, so that
// both the writes (32 lanes, one plane) and the reads (consecutive quads) touch every bank once.
// float32 tiles: a lane holds quads lane and 32 + lane, which is already free of conflicts.
__device__ __forceinline__ u32 quad_address(int quad) {
  if (!kSixteenBit) return 16u * quad;
  const int tile = quad >> 6, lane = (quad >> 1) & 31, odd = quad & 1;
  return 16u * ((tile * 2 + odd) * 32 + (lane ^ (4 * odd)));
}

// Where, in its own block, a lane writes quad `half` of tile 0 of a part. Further tiles lie 1024 bytes apart.
__device__ __forceinline__ u32 write_address(u32 shared, int part, int half, int lane) {
  return shared + part * kRangeBytes + quad_address(kSixteenBit ? 2 * lane + half : 32 * half + lane);
}

__device__ __forceinline__ void write_range(const u32 (&address)[2], const float (&value)[kRangeTiles][8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kRangeTiles; ++i) {
      const float* v = value[i] + 4 * half;
      st_shared_v4_f32(address[half] + 1024u * i, v[0], v[1], v[2], v[3]);
    }
  }
}

// To the same addresses in block `rank`, whose mbarrier counts the bytes.
__device__ __forceinline__ void write_range_of_other_block(const u32 (&address)[2], u32 shared, int rank, const float (&value)[kRangeTiles][8]) {
#if CLUSTER > 1
  const u32 barrier = mapa_shared_cluster(shared + kFullBarrier, rank);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const u32 target = mapa_shared_cluster(address[half], rank);
#pragma unroll
    for (int i = 0; i < kRangeTiles; ++i) {
      const float* v = value[i] + 4 * half;
      st_async_v4_b32(target + 1024u * i, barrier, v[0], v[1], v[2], v[3]);
    }
  }
#endif
}

// Writes a warp's part; `block` is this one's rank in the cluster.
template <int PASS>
__device__ __forceinline__ void write_part(const u32 (&address)[2], u32 shared, int block, const float (&value)[kTiles][8]) {
#pragma unroll
  for (int rank = 0; rank < CLUSTER; ++rank) {
    const float(&range)[kRangeTiles][8] = reinterpret_cast<const float(&)[kRangeTiles][8]>(value[PASS * kPassTiles + rank * kRangeTiles]);
    if (rank == block) write_range(address, range);
    else write_range_of_other_block(address, shared, rank, range);
  }
}

// Where a thread reads its elements of part 0, slot 0; slots lie kSlotBytes apart. A group of 8 is two quads.
constexpr int kQuadsOfGroup = kGroup / 4 > 0 ? kGroup / 4 : 1;
constexpr u32 kSlotBytes = 4u * kThreads * kGroup;
static_assert(kSlots == 1 || kSlotBytes % 1024 == 0, "slots must lie whole tiles apart, as quads are permuted within one");

__device__ __forceinline__ u32 read_offset(int quad_of_group, int group) {
  if (kGroup >= 4) return quad_address(group * kQuadsOfGroup + quad_of_group);
  return quad_address(group >> 1) + 8u * (group & 1);  // half a quad
}

// The kGroup consecutive elements of one part that start at `part` + `offset`.
__device__ __forceinline__ void read_group(float (&value)[kGroup], u32 part, const u32 (&offset)[kQuadsOfGroup]) {
  if (kGroup >= 4) {
#pragma unroll
    for (int q = 0; q < kQuadsOfGroup; ++q) {
      const float4 v = ld_shared_v4_f32(part + offset[q]);
      value[(4 * q) % kGroup] = v.x;
      value[(4 * q + 1) % kGroup] = v.y;
      value[(4 * q + 2) % kGroup] = v.z;
      value[(4 * q + 3) % kGroup] = v.w;
    }
  } else {
    const float2 v = ld_shared_v2_f32(part + offset[0]);
    value[0] = v.x;
    value[1] = v.y;
  }
}

__device__ __forceinline__ void init_exchange(u32 shared) {
#if CLUSTER > 1
  if (threadIdx.x == 0) {
    mbarrier_init(shared + kFullBarrier, 1);
    fence_mbarrier_init();
  }
  bar_warp_sync();
  if (threadIdx.x == 0) mbarrier_arrive_expect_tx(shared + kFullBarrier, kBytesOfOtherBlocks);
  barrier_cluster_arrive();
#endif
}

// The other blocks of the cluster have started and set up their mbarrier: they may be written to.
__device__ __forceinline__ void wait_for_cluster() {
#if CLUSTER > 1
  barrier_cluster_wait();
#endif
}

__device__ __forceinline__ void wait_until_full(u32 shared) {
  bar_sync();
#if CLUSTER > 1
  while (!mbarrier_try_wait_parity(shared + kFullBarrier, 0)) {}
#endif
}
