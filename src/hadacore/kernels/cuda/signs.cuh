// signs.cuh: the +1/-1 of a randomized transform, applied to sign bits.
//
// Multiplying by +-1 flips a sign bit. The signs that belong to a lane's elements are kept as bits, 32 elements
// a register, placed so that one shift brings those of a packed word under the word's own sign bits:
// (word << j) & mask. Two instructions a packed word, no multiplication, and no reload for the next row.

// The last parameters of a kernel with signs: `sign_rows` rows of them, which repeat.
#if SIGNS != 0
#define SIGNS_PARAMETERS , const char *signs, i64 sign_rows
#else
#define SIGNS_PARAMETERS
#endif

enum SignsAre { NO_SIGNS = 0, SIGNS_BEFORE = 1, SIGNS_AFTER = 2 };

// Signs come in the type of what they are applied to.
constexpr bool kSixteenBitSigned = SIGNS == SIGNS_AFTER ? kSixteenBitOutput : kSixteenBit;
constexpr int kSignedBytes = kSixteenBitSigned ? 2 : 4;
// Sign bits of one 32-bit word of elements: two of a 16-bit pair, or the one of a float32.
constexpr u32 kSignMask = kSixteenBitSigned ? 0x80008000u : 0x80000000u;
constexpr int kWordsPerSignRegister = kSixteenBitSigned ? 16 : 32;

// A vector times a vector of signs in its own type.
__device__ __forceinline__ uint4 flip_signs(uint4 v, uint4 signs) {
  return make_uint4(v.x ^ (signs.x & kSignMask), v.y ^ (signs.y & kSignMask), v.z ^ (signs.z & kSignMask), v.w ^ (signs.w & kSignMask));
}

template <int PACKED_WORDS>
struct SignBits {
  static constexpr int kRegisters = (PACKED_WORDS + kWordsPerSignRegister - 1) / kWordsPerSignRegister;
  u32 bits[kRegisters];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) bits[i] = 0;
  }

  // Remember the sign bits of `word`, which belong to the lane's packed word number `index`.
  __device__ __forceinline__ void insert(int index, u32 word) {
    bits[index / kWordsPerSignRegister] |= (word & kSignMask) >> (index % kWordsPerSignRegister);
  }

  // The same for the four words of the lane's vector number `vector`.
  __device__ __forceinline__ void insert_vector(int vector, uint4 words) {
    insert(4 * vector, words.x);
    insert(4 * vector + 1, words.y);
    insert(4 * vector + 2, words.z);
    insert(4 * vector + 3, words.w);
  }

  // The sign bits of the lane's packed word number `index`, in their places.
  __device__ __forceinline__ u32 mask(int index) const {
    return (bits[index / kWordsPerSignRegister] << (index % kWordsPerSignRegister)) & kSignMask;
  }

  __device__ __forceinline__ u32 apply(int index, u32 word) const { return word ^ mask(index); }
};

// Signs of a warp's tiles of a row, before the transform.
template <int TILES, int PACKED_WORDS>
__device__ __forceinline__ void apply_signs(PackedTile (&tiles)[TILES], const SignBits<PACKED_WORDS>& signs) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int w = 0; w < kTileWords; ++w) tiles[tile].word[w] = signs.apply(tile * kTileWords + w, tiles[tile].word[w]);
  }
}
