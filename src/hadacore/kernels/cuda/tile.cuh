// tile.cuh: the transform of one tile by one warp, from packed elements to fp32 results in the same places.
//
// Which index bits a tile contracts, and how (bit numbers as in element.cuh; size = 2^LOG2_SIZE):
//
//   float32, and 16-bit up to size 16     every bit by an fp32 butterfly, in registers or between lanes
//   16-bit, sizes 32, 64, 128             bits 0 2 3 4 by one mma, bit 1 in registers, bits 5 6 between lanes
//   16-bit, size 256 and above            bits 0 1 3 4 by one mma, bits 2 5 6 7 by a second one
//
// No mma ever holds two rows in its K dimension. A block-diagonal H16 would multiply the other row by 0, and
// 0 x inf = NaN would leak from one row into another. Bits that belong to no row of this size stay in M or N.

constexpr int kTiles = 1 << LOG2_TILES;                // tiles of a row, or of packed rows, that a warp holds
constexpr int kTileBits = LOG2_SIZE < 8 ? LOG2_SIZE : 8;  // index bits contracted inside a tile
constexpr bool kTensorCores = kSixteenBit && LOG2_SIZE >= 5;
constexpr bool kTwoProducts = kSixteenBit && LOG2_SIZE >= 8;
constexpr u32 kNegatePair = 0x80008000u;
constexpr u32 kOne = 0x3f800000u;  // in fp32, and tf32

// H16 as the A fragment of an mma. Lane (g, t) holds the pair k = 2t, 2t+1 of row g; since H[m][k] =
// (-1)^popcount(m & k), the registers for m+8 or k+8 equal that one, and the register for both its negative.
struct Fragment {
  u32 a[4];

  // Four registers of its own, made different by a zero that the compiler cannot see through (the top bits of a row
  // count): of one register four times it makes copies in front of every mma, 5 moves a tile at size 32768.
  __device__ __forceinline__ void set(u32 pair, u32 zero) {
    a[0] = pair | zero;
    a[1] = pair ^ zero;
    a[2] = pair + zero;
    a[3] = pair ^ kNegatePair ^ zero;
  }
};

// The same as A fragments of two mma of tf32, for pair elements k = 2t, 2t+1 with bit 3 of k clear, and set.
struct TwoFragments {
  u32 a[2][4];

  __device__ __forceinline__ void set(u32 sign_low, u32 sign_high, u32 zero) {
    const u32 first = kOne ^ sign_low << 16, second = kOne ^ sign_high, minus = 0x80000000u;
    a[0][0] = first | zero;
    a[0][1] = first ^ zero;
    a[0][2] = second | zero;
    a[0][3] = second ^ zero;
    a[1][0] = first + zero;
    a[1][1] = first ^ minus ^ zero;
    a[1][2] = second + zero;
    a[1][3] = second ^ minus ^ zero;
  }
};

// Where codes follow, what one product gives goes to the next in 11 bits of significand.
constexpr bool kToTf32 = ENCODING && kSixteenBit;
static_assert(ENCODING || !PROLOGUE, "what a prologue gives is quantized, so it may have as few");

// An fp32 word of which the Tensor Cores take 11 bits of significand. They cut off, 0.72 of 2^-11 on average, which is made good here;
// what has no more bits stays as it is.
__device__ __forceinline__ u32 to_tf32(float v) { return mov_b32_f32(v * (1.f + 0.7213f * 0x1p-11f)); }

// Signs and strides need the registers more.
constexpr bool kOwnRegisters = SIGNS == 0 && !STRIDED;

struct Hadamard16 {
  u32 pair;        // in the element type; bfloat16 after a prologue
  Fragment exact;  // likewise, for the first product
  Fragment split;  // in bfloat16, for the second
  TwoFragments both;  // in tf32, for the second where codes follow

  __device__ __forceinline__ void init(int lane, i64 rows) {
    const u32 g = lane >> 2, k = 2 * (lane & 3);
    const u32 sign_low = (u32)(__popc(g & k) & 1) << 15;
    const u32 sign_high = (u32)(__popc(g & (k + 1)) & 1) << 31;
    pair = (ELEMENT == FLOAT16 && !PROLOGUE ? 0x3c003c00u : 0x3f803f80u) ^ sign_low ^ sign_high;
    if (!kTwoProducts) return;
    exact.set(pair, kOwnRegisters ? (u32)(rows >> 62) : 0);
    split.set(0x3f803f80u ^ sign_low ^ sign_high, kOwnRegisters ? (u32)(rows >> 61) : 0);
    if (kToTf32) both.set(sign_low, sign_high, kOwnRegisters ? (u32)(rows >> 60) : 0);
  }
};

__device__ __forceinline__ void mma_exact(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, const float (&c)[4]) {
  if (ELEMENT == FLOAT16) mma_m16n8k16_f32_f16(d, a0, a1, a2, a3, b0, b1, c);
  else mma_m16n8k16_f32_bf16(d, a0, a1, a2, a3, b0, b1, c);
}

__device__ __forceinline__ void mma_exact(float (&d)[4], const Fragment& h, u32 b0, u32 b1, const float (&c)[4]) {
  mma_exact(d, h.a[0], h.a[1], h.a[2], h.a[3], b0, b1, c);
}

__device__ __forceinline__ void mma_split(float (&d)[4], const Fragment& h, const u32 (&b)[2], const float (&c)[4]) {
  mma_m16n8k16_f32_bf16(d, h.a[0], h.a[1], h.a[2], h.a[3], b[0], b[1], c);
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const u32 (&a)[4], float b0, float b1, const float (&c)[4]) {
  mma_m16n8k8_f32_tf32(d, a[0], a[1], a[2], a[3], to_tf32(b0), to_tf32(b1), c);
}

// ---- butterflies ----------------------------------------------------------------------------------

// register_butterfly over a lane bit. The lane with the bit set holds b and keeps a - b: own * -1 + other, exact up to
// the one rounding of the sum, so the bits are those of register_butterfly.
template <int COUNT>
__device__ __forceinline__ void lane_butterfly(float (&value)[COUNT], int lane, int lane_bit) {
  const float sign = (lane >> lane_bit) & 1 ? -1.f : 1.f;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const float other = shfl_sync_bfly(value[i], 1u << lane_bit);
    value[i] = value[i] * sign + other;
  }
}

__device__ __forceinline__ void tile_by_butterflies(float (&value)[8], int lane) {
  constexpr int kFirstLaneBit = kSixteenBit ? 3 : 2;  // the index bit that lane bit 0 holds
  if (kTileBits > 0) register_butterfly<1>(value);
  if (kTileBits > 1) register_butterfly<2>(value);
  if (kSixteenBit && kTileBits > 2) register_butterfly<4>(value);
#pragma unroll
  for (int lane_bit = 0; lane_bit < 5; ++lane_bit) {
    if (lane_bit + kFirstLaneBit < kTileBits) lane_butterfly(value, lane, lane_bit);
  }
  if (!kSixteenBit && kTileBits > 7) register_butterfly<4>(value);
}

// ---- Tensor Cores ---------------------------------------------------------------------------------

// x = high + low, each bfloat16: 16 bits of significand, and the exponent range of fp32, so nothing overflows.
__device__ __forceinline__ void split_pair(u32& high, u32& low, float first, float second) {
  high = cvt_rn_bf16x2_f32(second, first);
  low = cvt_rn_bf16x2_f32(second - mov_f32_b32(high & 0xffff0000u), first - mov_f32_b32(high << 16));
}

__device__ __forceinline__ void multiply_columns(float (&d)[4], const PackedTile& x, u32 b0, u32 b1) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
  mma_exact(d, x.word[0], x.word[1], x.word[2], x.word[3], b0, b1, zero);
}

__device__ __forceinline__ void multiply_columns(float (&d)[4], const TileValues& x, u32 b0, u32 b1) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
  const u32 first[2] = {b0 << 16, b0 & 0xffff0000u}, second[2] = {b1 << 16, b1 & 0xffff0000u};  // pairs of bfloat16, in tf32
  float part[4];
  mma_m16n8k8_f32_tf32(part, to_tf32(x.v[0]), to_tf32(x.v[2]), to_tf32(x.v[1]), to_tf32(x.v[3]), first[0], first[1], zero);
  mma_m16n8k8_f32_tf32(d, to_tf32(x.v[4]), to_tf32(x.v[6]), to_tf32(x.v[5]), to_tf32(x.v[7]), second[0], second[1], part);
}

// Sizes 32, 64, 128: data as A, H16 as B, so the results keep the lanes and positions of the elements.
//   K before:  bit 0 = pair, bits 3 4 = lane bits 0 1, bit 2 = register (a0/a2)
//   N after:   bit 0 = pair, bits 3 4 = lane bits 0 1, bit 2 = which product (columns 0..7 or 8..15)
//   M:         bit 1 = register (a0/a1), bits 5 6 7 = lane bits 2 3 4, untouched
// With bit 2 rather than bit 1 in K, a fragment is the loaded vector as it is, and needs no moves. Then bit 1 in
// registers, and the row's bits above 4 (size 64: bit 5; size 128: bits 5 6) between lanes.
template <typename Tile>
__device__ __forceinline__ void tile_by_one_product(float (&value)[8], const Tile& x, const Hadamard16& h, int lane) {
  float columns[2][4];
  multiply_columns(columns[0], x, h.pair, h.pair);
  multiply_columns(columns[1], x, h.pair, h.pair ^ kNegatePair);
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] = columns[i / 4][i % 4];
  register_butterfly<2>(value);
  if (kTileBits > 5) lane_butterfly(value, lane, 2);
  if (kTileBits > 6) lane_butterfly(value, lane, 3);
}

__device__ __forceinline__ void multiply_rows(float (&d)[2][4], const PackedTile& x, const Hadamard16& h) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
  mma_exact(d[0], h.exact, x.word[0], x.word[1], zero);
  mma_exact(d[1], h.exact, x.word[2], x.word[3], zero);
}

__device__ __forceinline__ void multiply_rows(float (&d)[2][4], const TileValues& x, const Hadamard16& h) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int bit2 = 0; bit2 < 2; ++bit2) {
    const float* v = x.v + 4 * bit2;
    float part[4];
    mma_tf32(part, h.both.a[0], v[0], v[1], zero);
    mma_tf32(d[bit2], h.both.a[1], v[2], v[3], part);
  }
}

// Size 256 and above: H16 as A, data as B, twice. The accumulators of the first product, split and packed in
// pairs, are B fragments of the transposed matrix: no shuffle, no shared memory.
//   loaded:          bit 0 = pair,  bits 1 2 = word,  bits 3 4 = lane bits 0 1,  bits 5 6 7 = lane bits 2 3 4
//   first product contracts K = bits 0 3 4 1 (pair, lane bits 0 1, b0/b1); bit 2 selects which of two
//   after it:        bit 5 = pair,  bit 1 = accumulator half,  bit 2 = which product,
//                    bits 6 7 = lane bits 0 1,  bits 0 3 4 = lane bits 2 3 4
//   second product contracts K = bits 5 6 7 2 (pair, lane bits 0 1, b0/b1); bit 1 selects which of two
//   after it:        bit 0 = pair,  bit 2 = accumulator half,  bit 1 = which product,
//                    bits 3 4 = lane bits 0 1,  bits 5 6 7 = lane bits 2 3 4: as loaded
template <typename Tile>
__device__ __forceinline__ void tile_by_two_products(float (&value)[8], const Tile& x, const Hadamard16& h) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
  float first[2][4];  // [bit 2]
  multiply_rows(first, x, h);
#pragma unroll
  for (int bit1 = 0; bit1 < 2; ++bit1) {
    float part[4], second[4];
    if (kToTf32) {
      mma_tf32(part, h.both.a[0], first[0][2 * bit1], first[0][2 * bit1 + 1], zero);
      mma_tf32(second, h.both.a[1], first[1][2 * bit1], first[1][2 * bit1 + 1], part);
    } else {
      u32 high[2], low[2];  // [bit 2]
#pragma unroll
      for (int bit2 = 0; bit2 < 2; ++bit2) split_pair(high[bit2], low[bit2], first[bit2][2 * bit1], first[bit2][2 * bit1 + 1]);
      mma_split(part, h.split, low, zero);  // the small part first: the sum loses less
      mma_split(second, h.split, high, part);
    }
    value[2 * bit1] = second[0];
    value[2 * bit1 + 1] = second[1];
    value[4 + 2 * bit1] = second[2];
    value[4 + 2 * bit1 + 1] = second[3];
  }
}

// ---- all tiles of a warp ---------------------------------------------------------------------------

// Contracts the index bits inside a tile and those between the TILES tiles.
template <int TILES, typename Tile>
__device__ __forceinline__ void transform_tiles(float (&value)[TILES][8], const Tile (&x)[TILES], const Hadamard16& h, int lane) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    if (!ROTATES) {
      unpack(value[tile], x[tile]);
    } else if (kTwoProducts) {
      tile_by_two_products(value[tile], x[tile], h);
    } else if (kTensorCores) {
      tile_by_one_product(value[tile], x[tile], h, lane);
    } else {
      unpack(value[tile], x[tile]);
      tile_by_butterflies(value[tile], lane);
    }
  }
  if (ROTATES) outer_butterflies(value);
}
