// exchange.cuh: the one trip through shared memory that contracts the index bits above a warp's part.
//
// A row is PARTS = WARPS * CLUSTER parts of kPartElements consecutive elements, one a warp. Each warp writes the
// fp32 values of its part; each thread then reads the same few elements of every part, finishes with a
// radix-PARTS butterfly, and stores. With CLUSTER > 1 the parts lie in the shared memory of several blocks.
//
// PASSES = 2 moves each part in two halves through a buffer of half the size, for GPUs with little shared memory.

static_assert(PASSES == 1 || PASSES == 2, "one or two passes");
constexpr int kTiles = 1 << LOG2_TILES;
constexpr int kParts = WARPS * CLUSTER;
constexpr int kThreads = 32 * WARPS;
constexpr int kPartElements = kTiles * kTileElements;
constexpr int kPassTiles = kTiles / PASSES;
constexpr int kPassElements = kPassTiles * kTileElements;  // of one part, in one pass
constexpr u32 kPassBytes = 4u * kPassElements;
constexpr u32 kExchangeBytes = WARPS * kPassBytes;

// Elements a thread reads from each part at a time: a 16-byte store if its share of the row allows it.
constexpr int kShare = 8 * kPassTiles / kParts;
constexpr int kGroup = kShare < kVectorElements ? kShare : kVectorElements;
constexpr int kSlots = kShare / kGroup;
constexpr int kGroupWords = kGroup * kElementBytes / 4;
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

// Where a lane writes quad `half` of its part of tile 0. Further tiles lie 1024 bytes apart.
__device__ __forceinline__ u32 write_address(u32 part_start, int half, int lane) {
  return part_start + quad_address(kSixteenBit ? 2 * lane + half : 32 * half + lane);
}

template <int PASS>
__device__ __forceinline__ void write_part(const u32 (&address)[2], const float (&value)[kTiles][8]) {
#pragma unroll
  for (int i = 0; i < kPassTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float(&v)[8] = value[PASS * kPassTiles + i];
      st_shared_v4_f32(address[half] + 1024u * i, v[4 * half], v[4 * half + 1], v[4 * half + 2], v[4 * half + 3]);
    }
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

__device__ __forceinline__ float4 read_quad(u32 address) {
#if CLUSTER > 1
  return ld_shared_cluster_v4_f32(address);
#else
  return ld_shared_v4_f32(address);
#endif
}

__device__ __forceinline__ float2 read_half_quad(u32 address) {
#if CLUSTER > 1
  return ld_shared_cluster_v2_f32(address);
#else
  return ld_shared_v2_f32(address);
#endif
}

// The kGroup consecutive elements of one part that start at `part` + `offset`.
__device__ __forceinline__ void read_group(float (&value)[kGroup], u32 part, const u32 (&offset)[kQuadsOfGroup]) {
  if (kGroup >= 4) {
#pragma unroll
    for (int q = 0; q < kQuadsOfGroup; ++q) {
      const float4 v = read_quad(part + offset[q]);
      value[(4 * q) % kGroup] = v.x;
      value[(4 * q + 1) % kGroup] = v.y;
      value[(4 * q + 2) % kGroup] = v.z;
      value[(4 * q + 3) % kGroup] = v.w;
    }
  } else {
    const float2 v = read_half_quad(part + offset[0]);
    value[0] = v.x;
    value[1] = v.y;
  }
}

// Every part's values are written and may be read (or: were read and may be overwritten), cluster-wide.
__device__ __forceinline__ void exchange_barrier() {
#if CLUSTER > 1
  barrier_cluster_arrive();
  barrier_cluster_wait();
#else
  bar_sync();
#endif
}

// Where the parts of block `rank` of the cluster start, as this block reads them.
__device__ __forceinline__ u32 parts_of_block(u32 shared, int rank) {
#if CLUSTER > 1
  return mapa_shared_cluster(shared, rank);
#else
  return shared;
#endif
}

__device__ __forceinline__ void store_group(char* address, const u32 (&word)[kGroupWords]) {
  if (kGroupWords == 4) st_global_v4(address, make_uint4(word[0], word[1 % kGroupWords], word[2 % kGroupWords], word[3 % kGroupWords]));
  else if (kGroupWords == 2) st_global_v2(address, make_uint2(word[0], word[1 % kGroupWords]));
  else st_global_u32(address, word[0]);
}
