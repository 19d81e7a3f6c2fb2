// warpgroup_quantize.cuh: the quantizing epilogue of warpgroup_rows.cu: codes, with a scale for each row, for parts of it, or a given one.
//
// A lane has two neighbouring columns c' of its warp's 16 in the two halves of its accumulators (column_of_row()), for rows i' = 2 t and
// 2 t + 1 of each tile. Neighbours become one unit of 16 bits, which stmatrix transposes as it does elements:
//   8-bit codes   the unit is the two codes, and the 8 units of an i' are 16 bytes, the codes of a warp's 16 columns
//   4-bit codes   two codes are a byte. Lanes g and g + 4 have neighbouring pairs; they exchange bytes of two groups of columns, so that
//                 lanes 0 to 3 have units of four codes of the first group, and lanes 4 to 7 of the second: 8 bytes each of an i'
// Rows i' of a block's columns follow one another where the panel was, or in a place of their own, 16-byte chunks permuted so that
// 8 rows touch every bank once. After them, where parts have scales, are the warps' maxima, and then reciprocals of scales.

// For row_maximum.cuh.
#define MAXIMA_WARPS (4 * WARPGROUPS)
#define MAXIMA_ROWS 1
#define MAXIMA_SLOTS 1
#define MAXIMA_BLOCKS CLUSTER
#define MAXIMA_BARRIER bar_sync_multiplying
constexpr bool kBlockIsRow = kMakesScales && QUANTIZED_BLOCK == kSize;
constexpr bool kHasParts = kMakesScales && !kBlockIsRow;
constexpr int kBlockColumns = kColumns / COLUMN_SPLITS;
constexpr int kRowBytes = kBlockColumns * kCodeBits / 8;  // codes of an i'
static_assert(ORDER_SPLITS == 1, "what this epilogue writes");
static_assert(!kBlockIsRow || CLUSTER == COLUMN_SPLITS, "a row's scale is made by those who share the row");
static_assert(kCodeBits == 8 || kOwnGroups % 2 == 0, "4-bit codes of two groups are put together");

// Parts of a row i' of the block's columns, and the groups of columns that one of them takes together.
constexpr int kPartColumns = kHasParts ? QUANTIZED_BLOCK : kBlockColumns;
constexpr int kParts = kBlockColumns / kPartColumns;
constexpr int kGroupsOfPart = kPartColumns > 64 ? kPartColumns / 64 : 1;
constexpr int kPartWarps = kPartColumns >= 64 ? 4 : kPartColumns / 16;  // of a warpgroup, that share a part
static_assert(!kHasParts || (kBlockColumns % kPartColumns == 0 && kPartColumns >= 16), "parts lie within the block's columns");
constexpr int kOwnSets = kOwnGroups >= kGroupsOfPart ? kOwnGroups / kGroupsOfPart : 1;  // of groups, of a warpgroup
static_assert(!kHasParts || kOwnGroups % kGroupsOfPart == 0, "a warpgroup has all groups of a part");
constexpr u32 kMaximaOfParts = kPanelRows * kRowBytes;  // from where codes are
constexpr u32 kReciprocals = kMaximaOfParts + WARPGROUPS * kOwnSets * 4 * kPanelRows * 4;
constexpr u32 kEndOfParts = kHasParts ? kReciprocals + kParts * kPanelRows * 4 : kMaximaOfParts;
static_assert(kEndOfParts <= kStageBytes, "codes and maxima of parts find room where the panel was");
constexpr u32 kHandover = kCodes + (REFILLED ? kEndOfParts : 0);
constexpr u32 kEndOfOtherShared = kHandover + (PRODUCERS ? 16 : 0);

__device__ __forceinline__ u32 chunk_of_codes(int i, int chunk) {
  return chunk ^ (kRowBytes == 64 ? i >> 1 & 3 : i & 7);
}

// Largest magnitudes of a lane's values, by set of groups, tile and pair element, to the reciprocals of their parts' scales, which
// are in shared memory then.
struct PartScales {
  static constexpr int kValues = 2 * kOwnSets * kRowTiles;
  static constexpr int kOwn = (kValues + 7) / 8;  // that a lane has when 8 have exchanged theirs
  u32 magnitude[8 * kOwn];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < 8 * kOwn; ++n) magnitude[n] = 0;
  }

  // What one tile's element adds.
  __device__ __forceinline__ void measure(int own, int tile, int e, u32 of_pair) {
    u32& largest = magnitude[(own / kGroupsOfPart * kRowTiles + tile) * 2 + e];
    largest = max_u32(largest, of_pair);
  }

  __device__ __forceinline__ static u32 place_of_maximum(u32 place, int set, int warp, int i) {
    return place + kMaximaOfParts + 4 * ((4 * set + warp) * kPanelRows + i);
  }

  __device__ __forceinline__ void make(const Quantizer& q, u32 place, u32 first_part_of_row, int lane) {
    int first = 0;
#pragma unroll
    for (int level = 0; level < 3; ++level) first += keep_larger_half(magnitude, level, 4 << level, lane);  // lanes that differ in g
    const int warp = threadIdx.x / 32 % 4, warpgroup = threadIdx.x / 128;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int value = first + n, set = value / (2 * kRowTiles), tile = value / 2 % kRowTiles;
      if (8 * kOwn > kValues && value >= kValues) continue;
      st_shared_u32(place_of_maximum(place, warpgroup * kOwnSets + set, warp, 8 * tile + 2 * (lane & 3) + value % 2), magnitude[n]);
    }
    bar_sync_multiplying();
    // One thread a part, the parts of an i' side by side, as scales lie in memory.
    constexpr int kAtOnce = kThreads / kParts;
    const int thread = mov_u32_tid_x(), part = thread % kParts, first_i = thread / kParts;
#pragma unroll
    for (int n = 0; n < kPanelRows; n += kAtOnce) {
      const int i = first_i + n;
      if (n + kAtOnce > kPanelRows && i >= kPanelRows) continue;
      u32 largest = 0;
#pragma unroll
      for (int w = 0; w < kPartWarps; ++w)
        largest = max_u32(largest, ld_shared_u32(place_of_maximum(place, part * kPartWarps / 4, part * kPartWarps % 4 + w, first_i) + 4 * n));
      const BlockScale s = q.scale_of(largest);
      st_shared_f32(place + kReciprocals + 4 * (part * kPanelRows + first_i) + 4 * n, s.reciprocal);
      if (n + kAtOnce <= ORDER || i < ORDER) q.store_scale(first_part_of_row + i * (kColumns / kPartColumns) + part, s);
    }
    bar_sync_multiplying();
  }

  // Of rows i' = 2 t and 2 t + 1 of a tile, for a group of the block's.
  __device__ __forceinline__ static void load(float (&reciprocal)[2], u32 place, int group, int tile, int lane) {
    const int part = kPartColumns >= 64 ? group / kGroupsOfPart : 4 / kPartWarps * group + threadIdx.x / 32 % 4 / kPartWarps;
    const float2 both = ld_shared_v2_f32(place + kReciprocals + 4 * (part * kPanelRows + 8 * tile + 2 * (lane & 3)));
    reciprocal[0] = both.x;
    reciprocal[1] = both.y;
  }
};

// Two bytes of i' = 2 t and 2 t + 1 for each of two groups, `of_groups`, to units of four codes: of the first group in lanes g < 4,
// of the second in the others.
__device__ __forceinline__ u32 join_pairs(u32 of_groups, int lane) {
  const bool second = lane & 16;
  const u32 of_partner = shfl_sync_bfly(of_groups, 16);
  const u32 low = second ? of_partner : of_groups, high = second ? of_groups : of_partner;
  return prmt_b32(low, high, second ? 0x7362 : 0x5140);
}

// The two codes of i' = 2 t of a tile, and from bit 16 on those of 2 t + 1.
__device__ __forceinline__ u32 codes_of_tile(const Quantizer& q, const float (&of_tile)[4], const float (&reciprocal)[2], u64 index) {
  const float low[2] = {of_tile[0], of_tile[2]}, high[2] = {of_tile[1], of_tile[3]};
  u32 codes[2][1];
  encode(codes[0], low, reciprocal[0], index, q.seed);
  encode(codes[1], high, reciprocal[1], index + kColumns, q.seed);
  return codes[0][0] | codes[1][0] << 16;
}

// Encodes a warp's results and puts their codes to where rows i' follow one another.
__device__ __forceinline__ void put_codes(const Quantizer& q, const Results (&y)[kOwnGroups], float of_row, i64 row, u32 place,
                                          int first_group, int group_of_block, int thread) {
  constexpr int kJoined = kCodeBits == 8 ? 1 : 2;  // groups whose codes are 16 bytes of an i'
  const int warp = thread / 32 % 4, lane = thread % 32, t = lane & 3, column = 16 * warp + (column_of_row(lane >> 2) & 15);
  const auto codes = [&](int own, int tile) {
    float reciprocal[2] = {of_row, of_row};
    if (kHasParts) PartScales::load(reciprocal, place, group_of_block + own, tile, lane);
    const u64 index = STOCHASTIC ? row * kSize + (8 * tile + 2 * t) * kColumns + 64 * (first_group + own) + column : 0;
    return codes_of_tile(q, y[own][tile], reciprocal, index);
  };
#pragma unroll
  for (int own = 0; own < kOwnGroups; own += kJoined) {
#pragma unroll
    for (int first = 0; first < kRowTiles; first += 4) {
      u32 word[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int tile = (first + n) % kRowTiles;
        word[n] = 0;
        if (first + n >= kRowTiles) continue;
        word[n] = codes(own, tile);
        if (kJoined == 2) word[n] = join_pairs(prmt_b32(word[n], codes((own + 1) % kOwnGroups, tile), 0x6420), lane);
      }
      // Lane i gives the address of row i % 8 of tile i / 8.
      const int left = kRowTiles - first, chunk = 4 * (group_of_block + own) / kJoined + warp;
      const auto target = [&](int tile) {
        const int i = 8 * tile + (lane & 7);
        return place + kRowBytes * i + 16 * chunk_of_codes(i, chunk);
      };
      if (left >= 4) {
        stmatrix_x4_trans(target(first + (lane >> 3)), word[0], word[1], word[2], word[3]);
      } else {
        if (left >= 2) stmatrix_x2_trans(target(first + (lane >> 3 & 1)), word[0], word[1]);
        if (left % 2) stmatrix_x1_trans(target(first + left - 1), word[(left - 1) % 4]);
      }
    }
  }
}

// A vector of what put_codes() has put: of row i', number `across`.
__device__ __forceinline__ uint4 vector_of_codes(u32 place, int i, int across) {
  const u32 of_row = place + kRowBytes * i;
  if (kCodeBits == 8) return ld_shared_v4(of_row + 16 * chunk_of_codes(i, across));
  // 32 columns: of two neighbouring warps, in the half of their chunks that the group has.
  const int group = across / 2, chunk = 4 * (group / 2) + 2 * (across % 2);
  const u32 half = of_row + 8 * (group % 2);
  const uint2 low = ld_shared_v2(half + 16 * chunk_of_codes(i, chunk)), high = ld_shared_v2(half + 16 * chunk_of_codes(i, chunk + 1));
  return make_uint4(low.x, low.y, high.x, high.y);
}

// The block's codes of a row, to global memory at `codes`.
__device__ __forceinline__ void copy_codes(char* codes, u32 place, int thread) {
  constexpr int kAcross = kRowBytes / 16, kAtOnce = kThreads / kAcross;  // rows i' at once
  constexpr bool kSameBanks = kAtOnce % 8 == 0;                         // chunks are then permuted alike each time
  const int first_i = thread / kAcross, across = thread % kAcross;
  char* target = codes + first_i * (kColumns * kCodeBits / 8) + 16 * across;
#pragma unroll
  for (int n = 0; n < ORDER; n += kAtOnce) {
    if (n + kAtOnce > ORDER && first_i + n >= ORDER) continue;
    const uint4 v = kSameBanks ? vector_of_codes(place + kRowBytes * n, first_i, across) : vector_of_codes(place, first_i + n, across);
    st_global_v4(target + n * (kColumns * kCodeBits / 8), v);
  }
}

// The largest magnitudes of what a lane has measured: of parts, or of the row.
struct Magnitudes {
  PartScales parts;
  u32 of_row;

  __device__ __forceinline__ void clear() {
    of_row = 0;
    if (kHasParts) parts.clear();
  }

  // Multiplies a group's results by the scale, and measures them.
  __device__ __forceinline__ void measure(const Rows& r, i64 row, Results& y, int own, int first_group, int lane, float scale) {
#pragma unroll
    for (int n = 0; n < 2 * kRowTiles; ++n) {
      const int tile = n / 2, e = n % 2, i = 8 * tile + 2 * (lane & 3) + e;
      float pair[2] = {y[tile][e], y[tile][2 + e]};
      const bool exists = 8 * tile + 8 <= ORDER || i < ORDER;
      SignBits<1> signs;
      if (SIGNS == SIGNS_AFTER) {
        signs.clear();
        const int column = 16 * (threadIdx.x / 32 % 4) + (column_of_row(lane >> 2) & 15);
        const i64 offset = (row % r.sign_rows) * kSize + i * kColumns + 64 * (first_group + own) + column;
        if (exists) signs.insert(0, ld_global_u32(r.signs + offset * kElementBytes));
      }
      const u32 magnitude = scale_and_measure(pair, scale, signs, 0);
      // What lies beyond the matrix may be anything.
      if (kHasParts) parts.measure(own, tile, e, exists ? magnitude : 0);
      else of_row = max_u32(of_row, exists ? magnitude : 0);
      y[tile][e] = pair[0];
      y[tile][2 + e] = pair[1];
    }
  }
};

template <typename Maxima>
__device__ __forceinline__ void quantize_row(const Rows& r, const Quantizer& q, i64 row, const Results (&y)[kOwnGroups], Magnitudes& magnitudes,
                                             u32 place, int share, int lane, Maxima& maxima) {
  const int first_group = share * kOwnGroups, group_of_block = threadIdx.x / 128 * kOwnGroups, block = share / WARPGROUPS;
  BlockScale s = {};
  if (kHasParts) {
    magnitudes.parts.make(q, place, (u32)(row * (kSize / kPartColumns)) + block * kParts, lane);
  } else if (kBlockIsRow) {
    const u32 largest[1] = {magnitudes.of_row};
    maxima.publish(largest, 0, threadIdx.x / 32);
    maxima.meet();
    s = q.scale_of(maxima.largest(0, 0));
    if (threadIdx.x == 0 && block == 0) q.store_scale((u32)row, s);
  } else {
    s = q.scale_of(0);
  }
  const int thread = mov_u32_tid_x();  // read again, so that no addresses are kept over the loop
  put_codes(q, y, s.reciprocal, row, place, first_group, group_of_block, thread);
  bar_sync_multiplying();
  copy_codes(r.y + (row * kSize + block * kBlockColumns) * kCodeBits / 8, place, thread);
}
