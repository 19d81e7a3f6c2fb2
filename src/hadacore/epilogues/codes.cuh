// codes.cuh: from scaled fp32 values to codes, bit for bit as quantization/rounding.py does it.
//
// A code is made of v = y * r, rounded once as a product: y is the rotated value, r the reciprocal of its scale. All
// encodings round to nearest even and saturate. NaN is 0x7f in E4M3 and E5M2; the others have no NaN, and a block that
// holds one is stored as zeros (block_scales.cuh makes r NaN for it).

enum Encoding { E4M3 = 1, E5M2 = 2, INT8 = 3, INT4 = 4, E2M1 = 5 };
constexpr int kCodeBits = ENCODING == INT4 || ENCODING == E2M1 ? 4 : 8;
constexpr bool kIntegerCodes = ENCODING == INT8 || ENCODING == INT4;

// Elements of a 32-bit word of codes.
constexpr int kWordCodes = 32 / kCodeBits;

// Magnitude bits (with the mantissa's last bit at 0) to a floating-point code of MANTISSA bits, the exponent's bias BIAS.
// The magnitude must not be above the largest code. Subnormal codes by adding the number whose last place is the smallest code.
template <int MANTISSA, int BIAS>
__device__ __forceinline__ u32 round_to_code(float magnitude) {
  constexpr int kShift = 23 - MANTISSA;
  constexpr u32 kSmallestNormal = (u32)(128 - BIAS) << 23;
  constexpr u32 kAligner = (u32)(127 + 1 - BIAS - MANTISSA + 23) << 23;
  const u32 bits = mov_b32_f32(magnitude);
  const u32 normal = ((bits + (1u << (kShift - 1)) - 1 + ((bits >> kShift) & 1)) >> kShift) - ((u32)(127 - BIAS) << MANTISSA);
  const u32 subnormal = mov_b32_f32(add_rn_f32(magnitude, mov_f32_b32(kAligner))) - kAligner;
  return bits < kSmallestNormal ? subnormal : normal;
}

template <int MANTISSA, int BIAS>
__device__ __forceinline__ u32 eight_bit_code(float v, float maximum) {
  if (v != v) return 0x7f;
  const u32 sign = mov_b32_f32(v) >> 31 << 7;
  return sign | round_to_code<MANTISSA, BIAS>(min_f32(abs_f32(v), maximum));
}

// E4M3 of one value, also where it is a block's scale.
__device__ __forceinline__ u32 e4m3_code(float v) {
#if __CUDA_ARCH__ >= 890
  return cvt_rn_satfinite_e4m3x2_f32(0.f, v);
#else
  return eight_bit_code<3, 7>(v, 448.f);
#endif
}

// The value of an E4M3 code without sign, NaN aside: its bits are those of an fp32 number 2^120 times smaller.
__device__ __forceinline__ float e4m3_value(u32 code) { return mul_rn_f32(mov_f32_b32(code << 20), 0x1p120f); }

__device__ __forceinline__ u32 eight_bit_pair(float low, float high) {
#if __CUDA_ARCH__ >= 890
  return ENCODING == E4M3 ? cvt_rn_satfinite_e4m3x2_f32(high, low) : cvt_rn_satfinite_e5m2x2_f32(high, low);
#else
  if (ENCODING == E4M3) return eight_bit_code<3, 7>(low, 448.f) | eight_bit_code<3, 7>(high, 448.f) << 8;
  return eight_bit_code<2, 15>(low, 57344.f) | eight_bit_code<2, 15>(high, 57344.f) << 8;
#endif
}

// An integer in the low bits: adding 1.5 * 2^23 rounds to nearest even, as the last place is then 1. A scale made of the
// whole magnitude (CLIPPED = 0) keeps products to 127 * (1 + 2^-22), so that nothing needs to saturate.
__device__ __forceinline__ u32 integer_code(float v) {
  constexpr float kMaximum = ENCODING == INT8 ? 127.f : 7.f;
  if (CLIPPED) v = max_f32(min_f32(v, kMaximum), -kMaximum);
  return mov_b32_f32(add_rn_f32(v, 12582912.f));
}

// The lowest bytes of four words.
__device__ __forceinline__ u32 pack_bytes(u32 a, u32 b, u32 c, u32 d) {
  return prmt_b32(prmt_b32(a, b, 0x0040), prmt_b32(c, d, 0x0040), 0x5410);
}

// E2M1 to nearest even. Steps are 0.5 below 2, 1 below 4, 2 above: adding a number whose last place is the step rounds, and
// leaves the multiple in the low bits; 2 or 4 more in that number's low bits make it the code (2^22, 2^23 + 2, 2^24 + 8).
__device__ __forceinline__ u32 e2m1_nearest(float v) {
  const float magnitude = min_f32(abs_f32(v), 6.f);
  const u32 exponent = max_u32(mov_b32_f32(magnitude) >> 23, 127) - 127;
  const u32 rounded = mov_b32_f32(add_rn_f32(magnitude, mov_f32_b32((149u << 23) + exponent * ((1u << 23) + 2))));
  return (rounded & 7) | (mov_b32_f32(v) >> 28 & 8);
}

// Stochastically: up where the distance to the code below, in steps, is larger than `uniform` in [0, 1).
__device__ __forceinline__ u32 e2m1_stochastic(float v, float uniform) {
  const float magnitude = min_f32(abs_f32(v), 6.f);
  const u32 above = (magnitude >= 2.f) + (magnitude >= 4.f);  // the steps are 0.5, 1, 2
  const float steps = magnitude * mov_f32_b32((128 - above) << 23);
  const u32 below = (u32)steps;
  return (below + (steps - (float)below > uniform) + 2 * above) | (mov_b32_f32(v) >> 28 & 8);
}

// Philox4x32-10 of (counter, 0, 0) with the seed as the key (Salmon et al., SC 2011).
__device__ __forceinline__ uint4 philox(u64 counter, u64 seed) {
  uint4 c = make_uint4((u32)counter, (u32)(counter >> 32), 0, 0);
  u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u32 a_high = mul_hi_u32(c.x, 0xD2511F53u), a_low = c.x * 0xD2511F53u;
    const u32 b_high = mul_hi_u32(c.z, 0xCD9E8D57u), b_low = c.z * 0xCD9E8D57u;
    c = make_uint4(b_high ^ c.y ^ k0, b_low, a_high ^ c.w ^ k1, a_low);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

template <int COUNT>
constexpr int kCodeWords = (COUNT + kWordCodes - 1) / kWordCodes;

// COUNT consecutive values, scaled, as codes: the first in the lowest bits. `index` is that of the first among all elements.
// The reciprocal is NaN where the block has no scale; encodings without NaN then give zeros.
template <int COUNT>
__device__ __forceinline__ void encode(u32 (&word)[kCodeWords<COUNT>], const float (&y)[COUNT], float reciprocal,
                                       [[maybe_unused]] u64 index, [[maybe_unused]] u64 seed) {
  float v[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) v[i] = mul_rn_f32(y[i], reciprocal);
#pragma unroll
  for (int w = 0; w < kCodeWords<COUNT>; ++w) word[w] = 0;
  if (kCodeBits == 8 && !kIntegerCodes) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) word[i / 4] |= eight_bit_pair(v[i], v[(i + 1) % COUNT]) << (8 * (i % 4));
    return;
  }
  u32 code[COUNT];
  uint4 random = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (kIntegerCodes) {
      code[i] = integer_code(v[i]);
      continue;
    }
    if (STOCHASTIC && i % 4 == 0) random = philox((index + i) >> 2, seed);
    // A group of two may begin in the middle of Philox's four words.
    if (STOCHASTIC && COUNT == 2 && i == 0 && (index & 2)) random = make_uint4(random.z, random.w, 0, 0);
    const u32 bits = i % 4 == 0 ? random.x : i % 4 == 1 ? random.y : i % 4 == 2 ? random.z : random.w;
    code[i] = STOCHASTIC ? e2m1_stochastic(v[i], (float)(bits >> 8) * 0x1p-24f) : e2m1_nearest(v[i]);
  }
  if (kCodeBits == 8 && COUNT % 4 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) word[i / 4] = pack_bytes(code[i], code[(i + 1) % COUNT], code[(i + 2) % COUNT], code[(i + 3) % COUNT]);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const u32 bits = ENCODING == E2M1 ? code[i] : code[i] & ((1u << kCodeBits) - 1);
      word[i / kWordCodes] += bits << (kCodeBits * (i % kWordCodes));
    }
  }
  if (SCALE_TYPE == 0) return;  // a given scale: the value is a number, as far as integers go
#pragma unroll
  for (int w = 0; w < kCodeWords<COUNT>; ++w) word[w] = reciprocal == reciprocal ? word[w] : 0;
}

// COUNT codes at `address`.
template <int COUNT>
__device__ __forceinline__ void store_codes(char* address, const u32 (&word)[kCodeWords<COUNT>]) {
  constexpr int kBytes = COUNT * kCodeBits / 8;
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8, "one instruction");
  constexpr int kLast = kCodeWords<COUNT> - 1;
  if (kBytes == 8) st_global_v2(address, make_uint2(word[0], word[kLast]));
  else if (kBytes == 4) st_global_u32(address, word[0]);
  else if (kBytes == 2) st_global_u16(address, word[0]);
  else st_global_u8(address, word[0]);
}
