// element.cuh: the element types of input and output, and what a lane holds of a tile.
//
// A tile is 256 consecutive elements of a row (or, below size 256, of several consecutive rows), held by one
// warp, 8 elements a lane. Index bits 7..0 of an element inside its tile sit as
//
//   16-bit elements, one 16-byte vector a lane:   bits 7..3 = lane 4..0,   bits 2..0 = position in the vector
//   float32, two 16-byte vectors a lane:          bit 7 = vector,   bits 6..2 = lane 4..0,   bits 1..0 = position
//
// so that every load and store of a warp is one contiguous run of 512 bytes.

#ifndef ENCODING  // of a quantizing epilogue (codes.cuh)
#define ENCODING 0
#define QUANTIZE_PARAMETERS
#endif

#ifndef ROTATES  // 0: values are quantized as they are, as attention does with those that it need not rotate
#define ROTATES 1
#endif
#ifndef PROLOGUE  // prologue.cuh
#define PROLOGUE 0
#define GATED_LAYOUT 0
#define PROLOGUE_PARAMETERS
#endif

// What comes before the transform: a gated activation, a normalisation, or a rotary embedding.
enum PrologueIs {
  NO_PROLOGUE = 0, SILU_MUL = 1, GELU_TANH_MUL = 2, GELU_ERF_MUL = 3, RMS_NORM = 4, RMS_NORM_RESIDUAL = 5, ROPE_HALF = 6, ROPE_INTERLEAVED = 7
};
enum GatedLayout { SEPARATE = 0, GATE_UP = 1, UP_GATE = 2 };

constexpr bool kGated = PROLOGUE >= SILU_MUL && PROLOGUE <= GELU_ERF_MUL;
constexpr bool kNormalises = PROLOGUE == RMS_NORM || PROLOGUE == RMS_NORM_RESIDUAL;
constexpr bool kRotary = PROLOGUE == ROPE_HALF || PROLOGUE == ROPE_INTERLEAVED;

enum Element { FLOAT16 = 0, BFLOAT16 = 1, FLOAT32 = 2 };

constexpr bool kSixteenBit = ELEMENT != FLOAT32;
constexpr int kElementBytes = kSixteenBit ? 2 : 4;
constexpr int kVectorElements = 16 / kElementBytes;     // elements of one 16-byte access
constexpr int kTileVectors = kSixteenBit ? 1 : 2;       // 16-byte accesses a lane makes for one tile
constexpr int kTileWords = 4 * kTileVectors;            // 32-bit registers that hold a lane's part of a tile
constexpr int kTileElements = 256;

// Results have a type of their own: a transform in several passes keeps fp32 between them.
constexpr bool kSixteenBitOutput = OUTPUT != FLOAT32;
constexpr int kOutputBytes = kSixteenBitOutput ? 2 : 4;
constexpr int kOutputVectorElements = 16 / kOutputBytes;

// A lane's part of one tile, as it is in memory.
struct PackedTile {
  u32 word[kTileWords];
};

// The same in fp32, after a prologue, in index order of each vector.
struct TileValues {
  float v[8];
};

// Where vector v of this lane starts, in elements from the start of the tile.
__device__ __forceinline__ int vector_offset(int v, int lane) {
  return v * 128 + lane * kVectorElements;
}

__device__ __forceinline__ void set_vector(PackedTile& tile, int v, uint4 bits) {
  tile.word[4 * v] = bits.x;
  tile.word[4 * v + 1] = bits.y;
  tile.word[4 * v + 2] = bits.z;
  tile.word[4 * v + 3] = bits.w;
}

__device__ __forceinline__ uint4 get_vector(const PackedTile& tile, int v) {
  return make_uint4(tile.word[4 * v], tile.word[4 * v + 1], tile.word[4 * v + 2], tile.word[4 * v + 3]);
}

__device__ __forceinline__ float low_to_float(u32 word) {
  return ELEMENT == FLOAT16 ? cvt_f32_f16(word & 0xffffu) : mov_f32_b32(word << 16);
}

__device__ __forceinline__ float high_to_float(u32 word) {
  return ELEMENT == FLOAT16 ? cvt_f32_f16(word >> 16) : mov_f32_b32(word & 0xffff0000u);
}

// The 8 values of a lane in index order.
__device__ __forceinline__ void unpack(float (&value)[8], const PackedTile& tile) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (!kSixteenBit) value[i] = mov_f32_b32(tile.word[i % kTileWords]);
    else value[i] = i % 2 == 0 ? low_to_float(tile.word[i / 2]) : high_to_float(tile.word[i / 2]);
  }
}

__device__ __forceinline__ void unpack(float (&value)[8], const TileValues& tile) {
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] = tile.v[i];
}

// Two values rounded once to the output type and packed (16-bit output).
__device__ __forceinline__ u32 pack_pair(float low, float high) {
  return OUTPUT == FLOAT16 ? cvt_rn_f16x2_f32(high, low) : cvt_rn_bf16x2_f32(high, low);
}

// WORDS consecutive 32-bit words.
template <int WORDS>
__device__ __forceinline__ void store_words(char* address, const u32 (&word)[WORDS]) {
  static_assert(WORDS == 1 || WORDS == 2 || WORDS == 4, "one instruction");
  if (WORDS == 4) st_global_v4(address, make_uint4(word[0], word[1 % WORDS], word[2 % WORDS], word[3 % WORDS]));
  else if (WORDS == 2) st_global_v2(address, make_uint2(word[0], word[1 % WORDS]));
  else st_global_u32(address, word[0]);
}
