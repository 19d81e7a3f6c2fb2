// block_scales.cuh: from the largest magnitude of a block to its scale, and where the scale goes.
//
// The rules are those of docs/quantization.md, one rounded fp32 operation each. Magnitudes are compared as bit patterns
// without sign, which is the order of the numbers, NaN above infinity above everything finite.

// HEAD_SCALES: fp32, of magnitudes that heads.cu has left for each (batch, kv head); GIVEN_HEAD_SCALES: given for each.
enum ScaleType { GIVEN_SCALE = 0, FP32_SCALES = 1, E8M0_SCALES = 2, E4M3_SCALES = 3, HEAD_SCALES = 4, GIVEN_HEAD_SCALES = 5 };
constexpr bool kScalesOfHeads = SCALE_TYPE == HEAD_SCALES || SCALE_TYPE == GIVEN_HEAD_SCALES;
constexpr bool kMakesScales = SCALE_TYPE >= FP32_SCALES && SCALE_TYPE <= E4M3_SCALES;
enum ScaleLayout { ROW_MAJOR = 0, BLOCK_MAJOR = 1, SWIZZLED = 2 };
constexpr u32 kInfinityBits = 0x7f800000u;
constexpr u32 kNaNBits = 0x7fc00000u;
constexpr float kSmallestScale = 0x1p-126f;

// The correctly rounded reciprocal of a scale that is made here, between 2^-126 and 2^126 (the largest float over 6) or NaN: the
// estimate and a step of Newton's method, which is what rcp.rn.f32 does there. For the rest that has a call.
__device__ __forceinline__ float reciprocal_of_scale(float scale) {
  const float estimate = rcp_approx_ftz_f32(scale);
  return fma_rn_f32(estimate, fma_rn_f32(-estimate, scale, 1.f), estimate);
}

struct BlockScale {
  float reciprocal;  // NaN, if the block holds NaN or infinity
  u32 code;          // fp32 bits, or one byte
};

struct Quantizer {
  char* scales;
  float factor;             // of the magnitude: clip ratio, over the largest code but for E8M0
  float given;              // scale of the whole tensor, or NVFP4's global scale
  float given_reciprocal;
  u32 scale_rows;           // of the matrix of scales, whose columns are the constant SCALE_COLUMNS; of heads: tokens of a sequence
  u64 seed;
  const char* of_heads;     // magnitudes or scales

  __device__ __forceinline__ BlockScale scale_of(u32 magnitude) const {
    BlockScale s;
    const bool exists = magnitude < kInfinityBits;
    const float largest = mov_f32_b32(magnitude);
    if (SCALE_TYPE == GIVEN_SCALE) {
      s = {given_reciprocal, 0};
    } else if (SCALE_TYPE == FP32_SCALES || SCALE_TYPE == HEAD_SCALES) {
      const float scale = exists ? max_f32(mul_rn_f32(largest, factor), kSmallestScale) : mov_f32_b32(kNaNBits);
      s.reciprocal = reciprocal_of_scale(scale);
      s.code = mov_b32_f32(scale);
    } else if (SCALE_TYPE == E8M0_SCALES) {
      constexpr u32 kLargestExponent = ENCODING == E4M3 ? 8 : 2;
      const u32 exponent = mov_b32_f32(mul_rn_f32(largest, factor)) >> 23;
      const u32 byte = exponent > kLargestExponent ? exponent - kLargestExponent : 0;
      s.code = exists ? byte : 255;
      s.reciprocal = mov_f32_b32(exists ? (254 - byte) << 23 : kNaNBits);
    } else {
      float wanted = mul_rn_f32(largest, factor);
      if (GLOBAL_SCALE) wanted = mul_rn_f32(wanted, given_reciprocal);
      const u32 byte = max_u32(e4m3_code(wanted), 1);
      float decoded = e4m3_value(byte);
      if (GLOBAL_SCALE) decoded = max_f32(mul_rn_f32(decoded, given), kSmallestScale);
      s.code = exists ? byte : 0x7f;
      s.reciprocal = !exists ? mov_f32_b32(kNaNBits) : GLOBAL_SCALE ? rcp_rn_f32(decoded) : reciprocal_of_scale(decoded);
    }
    return s;
  }

  // The reciprocal of given scale `number`, counting (batch, kv head).
  __device__ __forceinline__ float given_of_heads(u32 number) const { return rcp_rn_f32(mov_f32_b32(ld_global_u32(of_heads + 4 * number))); }

  // Of a head, `row` counting heads of all tokens.
  __device__ __forceinline__ float given_of_head(u32 row) const {
    return given_of_heads(row / HEADS / scale_rows * KV_HEADS + row % HEADS / (HEADS / KV_HEADS));
  }

  // Zeros to the padding of swizzled scales, which is up to 128 rows and 4 columns; shared among `threads` threads of the grid. A launch
  // of its own would take longer than few rows do (1 row of 4096: MXFP8 4.0 -> 1.9 us, NVFP4 4.1 -> 2.4).
  __device__ __forceinline__ void clear_padding(u32 thread, u32 threads) const {
    constexpr u32 kTiles = (SCALE_COLUMNS + 3) / 4;
    const u32 present = scale_rows & 127;  // of the last 128 rows
    if (present != 0) {
      char* const last = scales + (u64)(scale_rows >> 7) * (kTiles * 512);
#pragma unroll 1
      for (u32 i = thread; i < 32 * kTiles; i += threads) {  // 16 bytes: 4 columns of rows r, r + 32, r + 64, r + 96
        if ((i & 31) >= present) {
          st_global_v4(last + 16 * i, make_uint4(0, 0, 0, 0));
          continue;
        }
#pragma unroll
        for (u32 quarter = 1; quarter < 4; ++quarter) {
          if ((i & 31) + 32 * quarter >= present) st_global_u32(last + 16 * i + 4 * quarter, 0);
        }
      }
    }
    if (SCALE_COLUMNS % 4 != 0) {
#pragma unroll 1
      for (u32 row = thread; row < scale_rows; row += threads) {
#pragma unroll
        for (u32 column = SCALE_COLUMNS; column < 4 * kTiles; ++column) st_global_u8(scales + place_of_swizzled(row, column), 0);
      }
    }
  }

  __device__ __forceinline__ static u64 place_of_swizzled(u32 row, u32 column) {  // tiles of 128 rows by 4 columns
    const u32 tile = (row >> 7) * ((SCALE_COLUMNS + 3) >> 2) + (column >> 2);
    return (u64)tile * 512 + ((row & 31) * 16 + ((row >> 5) & 3) * 4 + (column & 3));
  }

  // Block number `block`, counting along the rows of scales: less than 2^32 in any memory, as blocks have 16 elements or more.
  __device__ __forceinline__ void store_scale(u32 block, const BlockScale& s) const {
    u64 place = block;
    if (SCALE_LAYOUT != ROW_MAJOR) {
      const u32 row = block / SCALE_COLUMNS, column = block % SCALE_COLUMNS;
      place = SCALE_LAYOUT == BLOCK_MAJOR ? (u64)column * scale_rows + row : place_of_swizzled(row, column);
    }
    if (SCALE_TYPE == FP32_SCALES) st_global_u32(scales + 4 * place, s.code);
    else st_global_u8(scales + place, s.code);
  }
};

// The last parameters of a kernel that quantizes.
#define QUANTIZE_PARAMETERS \
  , char *scales, const char *given_scale, double scale_factor, i64 scale_rows, i64 seed

// After begin_memory_accesses(): it reads the given scale.
#define QUANTIZER_OF_PARAMETERS(name)                                                                              \
  Quantizer name = {scales, (float)scale_factor, 1.f, 1.f, (u32)scale_rows, (u64)seed, given_scale};               \
  if (SCALE_TYPE == GIVEN_SCALE || GLOBAL_SCALE) {                                                                 \
    name.given = mov_f32_b32(ld_global_u32(given_scale));                                                          \
    name.given_reciprocal = rcp_rn_f32(name.given);                                                                \
  }
