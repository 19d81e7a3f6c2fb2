// prologue.cuh: what happens to a row before it is transformed, in fp32 from the input on.
//
//   gated activation   activation(gate) * up, both of x's type; separate tensors, or one whose rows hold both
//   RMSNorm            z * weight with z = x, or x + residual, which is written back. The row's factor 1 / sqrt(mean z^2 + epsilon)
//                      commutes with the transform: it joins the scale, once the sum of squares is known.
//   RoPE               rotary embedding of each head; the partner of an element is read from memory too, where another lane's
//                      read has just brought it into the L1 cache
//
// 16-bit kernels hand the fp32 result to the Tensor Cores as tf32, 11 bits of significand (tile.cuh), base_rows.cu as bfloat16 high + low.

// The last parameters but those of the quantizer. `operand`: up; weight; cos. `second_operand`: sin.
#define PROLOGUE_PARAMETERS                                                                                 \
  , const char *operand, const char *second_operand, const char *positions, char *residual, double epsilon, \
      i64 tokens

#define PROLOGUE_OF_PARAMETERS(name) \
  const Prologue name = {x, operand, second_operand, positions, residual, (float)epsilon, (u32)tokens};

// kVectorElements values of a row in index order.
struct VectorValues {
  float v[kVectorElements];
};

__device__ __forceinline__ VectorValues values_of(uint4 vector) {
  const u32 word[4] = {vector.x, vector.y, vector.z, vector.w};
  VectorValues values;
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    const u32 w = word[i * kElementBytes / 4];
    values.v[i] = !kSixteenBit ? mov_f32_b32(w) : i % 2 == 0 ? low_to_float(w) : high_to_float(w);
  }
  return values;
}

// g / (1 + exp(-u)). The hardware's exponential and reciprocal are good to 2^-22, but the argument of the former is rounded:
// an error of |u| 2^-24, which float32 input gets rid of. The power may be 0 below 2^-126, where 1 is added to it; the
// reciprocal may for 16-bit input, whose u then is -87.3 or less and the result below 2^-119.
__device__ __forceinline__ float times_sigmoid(float g, float u) {
  constexpr float kLog2E = 1.4426950408889634f;
  const float exponent = -u * kLog2E;
  float power = ex2_approx_ftz_f32(exponent);
  if (!kSixteenBit && power < 0x1p126f) power += power * 0.69314718f * fma_rn_f32(-u, kLog2E, -exponent);
  return g * (kSixteenBit ? rcp_approx_ftz_f32(1.f + power) : rcp_approx_f32(1.f + power));
}

__device__ __forceinline__ float activation(float g) {
  if (PROLOGUE == SILU_MUL) return times_sigmoid(g, g);
  // g/2 (1 + tanh(u)) = g / (1 + exp(-2u))
  if (PROLOGUE == GELU_TANH_MUL) return times_sigmoid(g, 1.5957691216057308f * (g + 0.044715f * g * g * g));
  return 0.5f * g * (1.f + erff(g * 0.70710678118654752f));
}

// What is read for a vector before anything is computed, so that all loads are under way.
struct RawVector {
  uint4 first, second;
};

// RoPE: cosines and sines of a vector's pairs; sines are negative where the partner is subtracted.
constexpr int kVectorAngles = PROLOGUE == ROPE_INTERLEAVED ? kVectorElements / 2 : kVectorElements;
struct Angles {
  float cosine[kVectorAngles], sine[kVectorAngles];
};

// `partner`: with halves, the elements that those of `values` are paired with.
__device__ __forceinline__ void turn(VectorValues& values, const VectorValues& partner, const Angles& angles) {
  if (PROLOGUE == ROPE_HALF) {
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i)
      values.v[i] = add_rn_f32(mul_rn_f32(values.v[i], angles.cosine[i % kVectorAngles]), mul_rn_f32(partner.v[i], angles.sine[i % kVectorAngles]));
    return;
  }
#pragma unroll
  for (int i = 0; i < kVectorElements; i += 2) {
    const float a = values.v[i], b = values.v[i + 1], cosine = angles.cosine[i / 2], sine = angles.sine[i / 2];
    values.v[i] = add_rn_f32(mul_rn_f32(a, cosine), -mul_rn_f32(b, sine));
    values.v[i + 1] = add_rn_f32(mul_rn_f32(b, cosine), mul_rn_f32(a, sine));
  }
}

struct Prologue {
  const char* x;
  const char* operand;
  const char* second_operand;
  const char* positions;
  char* residual;
  float epsilon;
  u32 tokens;  // RoPE: entries of `positions`, or tokens of a sequence where there are none

  // The vector that starts at element `index` of the rotated tensor.
  __device__ __forceinline__ RawVector load(u64 index) const {
    if (kGated && GATED_LAYOUT != SEPARATE) {
      const char* row = x + (index + index / ROW_ELEMENTS * ROW_ELEMENTS) * kElementBytes;
      const uint4 first = ld_global_v4(row), second = ld_global_v4(row + ROW_ELEMENTS * kElementBytes);
      return GATED_LAYOUT == GATE_UP ? RawVector{first, second} : RawVector{second, first};
    }
    RawVector raw = {ld_global_v4(x + index * kElementBytes), make_uint4(0, 0, 0, 0)};
    if (kGated) raw.second = ld_global_v4(operand + index * kElementBytes);
    if (PROLOGUE == RMS_NORM_RESIDUAL) raw.second = ld_global_v4(residual + index * kElementBytes);
    if (PROLOGUE == ROPE_HALF) {
      const i64 column = index % ROW_ELEMENTS;
      const i64 partner = column < ROTARY_PAIRS ? ROTARY_PAIRS : -ROTARY_PAIRS;
      if (column < 2 * ROTARY_PAIRS) raw.second = ld_global_v4(x + (index + partner) * kElementBytes);
    }
    return raw;
  }

  // RoPE: the position of token `place`, counted from where positions begin to repeat.
  __device__ __forceinline__ u64 position(u32 place) const {
    if (positions == nullptr) return place;
    return ld_global_u32(positions + (u64)place * POSITION_BYTES);  // little-endian, not negative
  }

  // RoPE: of a vector that starts at `column` of its head.
  __device__ __forceinline__ void load_angles(Angles& angles, u64 position, int column) const {
    const bool upper = PROLOGUE == ROPE_HALF && column >= ROTARY_PAIRS;
    const int pair = PROLOGUE == ROPE_HALF ? column - (upper ? ROTARY_PAIRS : 0) : column / 2;
    load_entries(angles.cosine, operand, position * ROTARY_PAIRS + pair);
    load_entries(angles.sine, second_operand, position * ROTARY_PAIRS + pair);
#pragma unroll
    for (int i = 0; i < kVectorAngles; ++i) angles.sine[i] = PROLOGUE == ROPE_HALF && !upper ? -angles.sine[i] : angles.sine[i];
  }

  // `squares`: the sum of squares of the vector's elements, as a tree.
  __device__ __forceinline__ VectorValues apply(const RawVector& raw, u64 index, float& squares) const {
    VectorValues values = values_of(raw.first);
    if (kGated) {
      const VectorValues up = values_of(raw.second);
#pragma unroll
      for (int i = 0; i < kVectorElements; ++i) values.v[i] = activation(values.v[i]) * up.v[i];
    }
    if (kNormalises) normalise(values, raw, index, squares);
    if (kRotary) rotate(values, raw, index);
    return values;
  }

 private:
  __device__ __forceinline__ void normalise(VectorValues& z, const RawVector& raw, u64 index, float& squares) const {
    if (PROLOGUE == RMS_NORM_RESIDUAL) {
      const VectorValues old = values_of(raw.second);
      u32 word[4];
#pragma unroll
      for (int i = 0; i < kVectorElements; ++i) z.v[i] = add_rn_f32(z.v[i], old.v[i]);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if (kSixteenBit) word[w] = pack_pair(z.v[(2 * w) % kVectorElements], z.v[(2 * w + 1) % kVectorElements]);
        else word[w] = mov_b32_f32(z.v[w % kVectorElements]);
      }
      st_global_v4(residual + index * kElementBytes, make_uint4(word[0], word[1], word[2], word[3]));
    }
    float sum[kVectorElements];
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) sum[i] = mul_rn_f32(z.v[i], z.v[i]);
#pragma unroll
    for (int distance = 1; distance < kVectorElements; distance *= 2) {
#pragma unroll
      for (int i = 0; i < kVectorElements; i += 2 * distance) sum[i] = add_rn_f32(sum[i], sum[i + distance]);
    }
    squares = sum[0];
    const VectorValues weight = values_of(ld_global_v4(operand + index % ROW_ELEMENTS * kElementBytes));
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) z.v[i] = mul_rn_f32(z.v[i], weight.v[i]);
  }

  __device__ __forceinline__ float angle(const char* table, u64 entry) const {
    if (TABLE_FLOAT32) return mov_f32_b32(ld_global_u32(table + 4 * entry));
    return low_to_float(ld_global_u16(table + 2 * entry));
  }

  // The COUNT entries of a table that start at `entry`, a multiple of COUNT.
  template <int COUNT>
  __device__ __forceinline__ void load_entries(float (&angles)[COUNT], const char* table, u64 entry) const {
    if (COUNT * (TABLE_FLOAT32 ? 4 : 2) % 16 != 0) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) angles[i] = angle(table, entry + i);
      return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; i += TABLE_FLOAT32 ? 4 : 8) {
      const uint4 four = ld_global_v4(table + (entry + i) * (TABLE_FLOAT32 ? 4 : 2));
      const u32 word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < (TABLE_FLOAT32 ? 4 : 8) && j < COUNT; ++j)
        angles[(i + j) % COUNT] = TABLE_FLOAT32 ? mov_f32_b32(word[j % 4]) : j % 2 ? high_to_float(word[j / 2]) : low_to_float(word[j / 2]);
    }
  }

  __device__ __forceinline__ void rotate(VectorValues& values, const RawVector& raw, u64 index) const {
    const int column = (int)(index % ROW_ELEMENTS);
    if (column >= 2 * ROTARY_PAIRS) return;
    Angles angles;
    load_angles(angles, position((u32)(index / ROW_ELEMENTS) / HEADS % tokens), column);
    turn(values, values_of(raw.second), angles);
  }
};

// Multiplies by the signs of a randomized transform.
template <int PACKED_WORDS>
__device__ __forceinline__ void apply_signs(VectorValues& values, const SignBits<PACKED_WORDS>& signs, int first_word) {
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    const u32 mask = signs.mask(first_word + i * kElementBytes / 4);
    values.v[i] = mov_f32_b32(mov_b32_f32(values.v[i]) ^ (kSixteenBit && i % 2 == 0 ? mask << 16 : mask) & 0x80000000u);
  }
}

// The sum of squares of a unit of packed rows, or of a warp's tiles, from those of a lane's vectors, which are index bits
// above the lanes': added in increasing order of index bit, so that the sum is the same however a row is divided.
template <int VECTORS>
__device__ __forceinline__ float sum_of_squares(float (&squares)[VECTORS], int lanes) {
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    for (int distance = 1; distance < lanes; distance *= 2) squares[i] = add_rn_f32(squares[i], shfl_sync_bfly(squares[i], distance));
  }
#pragma unroll
  for (int distance = 1; distance < VECTORS; distance *= 2) {
#pragma unroll
    for (int i = 0; i < VECTORS; i += 2 * distance) squares[i] = add_rn_f32(squares[i], squares[(i + distance) % VECTORS]);
  }
  return squares[0];
}

// What the scale is multiplied by.
__device__ __forceinline__ float root_mean_square_factor(float squares, float epsilon) {
  return rcp_rn_f32(sqrt_rn_f32(add_rn_f32(mul_rn_f32(squares, 1.f / ROW_ELEMENTS), epsilon)));
}
