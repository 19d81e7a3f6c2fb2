// quantize.cuh: the epilogue that quantizes.
//
//   in:  fp32 results of a lane, in groups of consecutive elements
//   out: codes and scales
// in three steps, between which a kernel finds the largest magnitude of a block among the lanes and warps that hold it:
// multiply by the transform's scale and measure; make the block's scale (block_scales.cuh); encode and store (codes.cuh).

constexpr int kStoredBits = kCodeBits;
constexpr int kBlock = QUANTIZED_BLOCK > 0 ? QUANTIZED_BLOCK : 1;  // elements of a block; 1 where scales are given

// Multiplies by the scale, applies the signs of an inverse, and returns the largest magnitude, as bits.
template <int COUNT, int PACKED_WORDS>
__device__ __forceinline__ u32 scale_and_measure(float (&y)[COUNT], float scale, const SignBits<PACKED_WORDS>& signs, int first_word) {
  float largest = 0.f;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    y[i] = mul_rn_f32(y[i], scale);
    if (SIGNS == SIGNS_AFTER) {
      const u32 mask = signs.mask(first_word + i * kSignedBytes / 4);
      y[i] = mov_f32_b32(mov_b32_f32(y[i]) ^ (kSixteenBitSigned && i % 2 == 0 ? mask << 16 : mask) & 0x80000000u);
    }
    largest = max_NaN_f32(largest, abs_f32(y[i]));
  }
  return mov_b32_f32(largest);
}

// One level of an exchange of largest magnitudes between lanes that differ in the bits of `mask`: a lane hands half of those that it
// has left to its partner and keeps the larger ones of the other half, from the returned index of its present ones on.
template <int COUNT>
__device__ __forceinline__ int keep_larger_half(u32 (&magnitude)[COUNT], int level, u32 mask, u32 lane) {
  const int half = COUNT >> (level + 1);
  const bool upper = lane & mask;
#pragma unroll
  for (int i = 0; i < (COUNT + 1) / 2; ++i) {
    if (i >= half) continue;  // bounds that are no constants keep the compiler from unrolling
    const u32 low = magnitude[i], high = magnitude[(i + half) % COUNT];
    magnitude[i] = max_u32(upper ? high : low, shfl_sync_bfly(upper ? low : high, mask));
  }
  return upper ? half : 0;
}

// The scales of the blocks that a warp's lanes hold together: GROUPS of them a lane, each spread over the lanes that differ in
// the bits of `Lanes::mask(level)`, level = 0 .. Lanes::kLevels - 1.
//
// Magnitudes are exchanged by halves, as long as a lane has several. So half as many exchanges do, and a lane makes few scales, rather
// than every lane all of them: 16 groups of 32 lanes take 16 exchanges and one scale a lane, not 80 and 16. Once a lane has one group,
// lanes hold the same.
template <int GROUPS, typename Lanes>
struct BlockScales {
  __device__ static constexpr int log2(int v) { return v > 1 ? 1 + log2(v / 2) : 0; }
  static constexpr int kSplits = Lanes::kLevels < log2(GROUPS) ? Lanes::kLevels : log2(GROUPS);
  static constexpr int kOwn = GROUPS >> kSplits;
  BlockScale own[kOwn];
  int first;  // group of the first of them

  // `magnitude` is used up.
  __device__ __forceinline__ void make(const Quantizer& q, u32 (&magnitude)[GROUPS], u32 lane) {
    first = 0;
#pragma unroll
    for (int level = 0; level < Lanes::kLevels; ++level) {
      const u32 mask = Lanes::mask(level);
      if (level >= kSplits) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) magnitude[i] = max_u32(magnitude[i], shfl_sync_bfly(magnitude[i], mask));
        continue;
      }
      first += keep_larger_half(magnitude, level, mask, lane);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own[i] = q.scale_of(magnitude[i]);
  }

  // Whether this is the lane, of those that hold the same, that stores its scales.
  __device__ __forceinline__ static bool stores(u32 lane) {
    u32 same = 0;
#pragma unroll
    for (int level = kSplits; level < Lanes::kLevels; ++level) same |= Lanes::mask(level);
    return (lane & same) == 0;
  }

  // Of a group of this lane's; a constant, once loops are unrolled.
  __device__ __forceinline__ float reciprocal(int group, u32 lane) const {
    u32 owner = lane;
#pragma unroll
    for (int level = 0; level < kSplits; ++level)
      owner = (group & (GROUPS >> (level + 1))) ? owner | Lanes::mask(level) : owner & ~(u32)Lanes::mask(level);
    const float v = own[group % kOwn].reciprocal;
    return kSplits == 0 ? v : shfl_sync_idx(v, owner);
  }
};

// Neighbouring lanes.
template <int LANES>
struct NeighbouringLanes {
  static constexpr int kLevels = LANES > 16 ? 5 : LANES > 8 ? 4 : LANES > 4 ? 3 : LANES > 2 ? 2 : LANES > 1 ? 1 : 0;
  __device__ __forceinline__ static constexpr u32 mask(int level) { return 1u << level; }
};

// Encodes a group of one block and stores it; `index` is the number of its first element among all.
template <int COUNT>
__device__ __forceinline__ void encode_and_store(char* codes, const float (&y)[COUNT], float reciprocal, const Quantizer& q, u64 index) {
  u32 word[kCodeWords<COUNT>];
  encode(word, y, reciprocal, index, q.seed);
  store_codes<COUNT>(codes, word);
}
