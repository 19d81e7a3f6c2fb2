// quantize.cuh: the epilogue that quantizes.
//
//   in:  fp32 results of a lane, in groups of consecutive elements
//   out: codes and scales
// in three steps, between which a kernel finds the largest magnitude of a block among the lanes and warps that hold it:
// multiply by the transform's scale and measure; make the block's scale (block_scales.cuh); encode and store (codes.cuh).

constexpr int kStoredBits = kCodeBits;

// Multiplies by the scale, applies the signs of an inverse, and returns the largest magnitude, as bits.
template <int COUNT, int PACKED_WORDS>
__device__ __forceinline__ u32 scale_and_measure(float (&y)[COUNT], float scale, const SignBits<PACKED_WORDS>& signs, int first_word) {
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    y[i] = mul_rn_f32(y[i], scale);
    if (SIGNS == SIGNS_AFTER) {
      const u32 mask = signs.mask(first_word + i * kSignedBytes / 4);
      y[i] = mov_f32_b32(mov_b32_f32(y[i]) ^ (kSixteenBitSigned && i % 2 == 0 ? mask << 16 : mask) & 0x80000000u);
    }
    largest = max_u32(largest, mov_b32_f32(y[i]) & 0x7fffffffu);
  }
  return largest;
}

// The largest value of LANES neighbouring lanes.
template <int LANES>
__device__ __forceinline__ u32 largest_of_lanes(u32 v) {
  if (LANES == 32) return redux_sync_max_u32(v);
#pragma unroll
  for (int distance = 1; distance < LANES; distance *= 2) v = max_u32(v, shfl_sync_bfly(v, distance));
  return v;
}

// Encodes a group of one block and stores it; `index` is the number of its first element among all.
template <int COUNT>
__device__ __forceinline__ void encode_and_store(char* codes, const float (&y)[COUNT], const BlockScale& s, const Quantizer& q, u64 index) {
  u32 word[(COUNT + kWordCodes - 1) / kWordCodes];
  encode(word, y, s.reciprocal, s.exists, index, q.seed);
  store_codes<COUNT>(codes, word);
}
