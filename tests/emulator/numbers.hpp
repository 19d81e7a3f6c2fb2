// numbers.hpp: float16 and bfloat16, and the matrix product of a warp.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "host.hpp"

namespace emulator {

inline float value_of_bits(u32 bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline u32 bits_of_value(float v) {
  u32 bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

constexpr u32 kCanonicalNan16 = 0x7fff;  // what a GPU makes of any NaN, in either 16-bit format

inline u32 half_from_float(float v) {
  const u32 bits = bits_of_value(v), sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(v);
  if (std::isnan(v)) return kCanonicalNan16;
  if (magnitude >= 65520.f) return sign | 0x7c00;  // half a unit above the largest, ties to even: infinity
  if (magnitude < 0x1p-14f) return sign | (u32)std::nearbyint(magnitude * 0x1p24);  // subnormal or the first normal
  const u32 nearest = bits_of_value(magnitude) + 0xfff + (bits >> 13 & 1);
  return sign | ((nearest >> 13) - (112u << 10));
}

inline float half_to_float(u32 bits) {
  const u32 sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return value_of_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return std::copysign((float)fraction * 0x1p-24f, value_of_bits(sign));
  return value_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

inline u32 bfloat16_from_float(float v) {
  const u32 bits = bits_of_value(v);
  if (std::isnan(v)) return kCanonicalNan16;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// E4M3 and E5M2 with saturation: NaN is 0x7f, everything else above the maximum is the maximum.
inline u32 float8_from_float(float v, int mantissa, int bias, double maximum) {
  if (std::isnan(v)) return 0x7f;
  const double magnitude = std::fmin(std::fabs((double)v), maximum);
  const int exponent = magnitude == 0 ? 1 - bias : std::max(std::ilogb(magnitude), 1 - bias);
  const double steps = std::nearbyint(std::ldexp(magnitude, mantissa - exponent));  // ties to even; exact otherwise
  // A rounding up to the next power of two carries into the exponent by itself.
  return (std::signbit(v) ? 0x80u : 0u) | (u32)(steps + std::ldexp(exponent + bias - 1, mantissa));
}

// Conversion from float16 by table: a product decodes 768 values.
inline const float* half_table() {
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (u32 bits = 0; bits < values.size(); ++bits) values[bits] = half_to_float(bits);
    return values;
  }();
  return table.data();
}

// One lane's operands of mma.m16n8k16, or, in tf32, of mma.m16n8k8.
struct Product {
  float* d;
  u32 a[4];
  u32 b[2];
  const float* c;
};

// D = A B + C of a warp, with the fragments laid out as ptx.cuh says. Every product is exact in double and their
// sum nearly so, then rounded once: a GPU's own sum is a little less exact. Infinities and NaNs follow IEEE 754.
inline void multiply_fragments(Product* const (&lane)[32], Format format) {
  const float* half = half_table();
  const auto decode = [&](u32 bits) -> double {
    if (format == Format::TF32) return value_of_bits(bits & 0xffffe000u);
    return format == Format::FLOAT16 ? half[bits & 0xffff] : value_of_bits(bits << 16);
  };
  const int of_word = format == Format::TF32 ? 1 : 2, depth = 8 * of_word;  // elements
  double a[16][16], b[16][8], d[16][8];
  for (int i = 0; i < 32; ++i) {
    const int g = i / 4, t = i % 4;
    for (int e = 0; e < of_word; ++e) {
      for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][of_word * (t + 4 * (r / 2)) + e] = decode(lane[i]->a[r] >> 16 * e);
      for (int r = 0; r < 2; ++r) b[of_word * (t + 4 * r) + e][g] = decode(lane[i]->b[r] >> 16 * e);
    }
    for (int r = 0; r < 4; ++r) d[g + 8 * (r / 2)][2 * t + r % 2] = lane[i]->c[r];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int i = 0; i < 32; ++i)
    for (int r = 0; r < 4; ++r) lane[i]->d[r] = (float)d[i / 4 + 8 * (r / 2)][2 * (i % 4) + r % 2];
}

}  // namespace emulator
