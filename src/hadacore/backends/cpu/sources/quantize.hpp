// The quantizing epilogue: codes and scales of fp32 rows, operation by operation as docs/quantization.md states them, so
// that they have the bits of hadacore/quantization/reference.py.
//
// Groups, the elements that share a scale, follow each other in memory. All largest magnitudes come first, then all scales,
// a vector of groups at a time, then all codes.
#pragma once
#include "problem.hpp"
#include "vectors.hpp"

namespace HADACORE_ISA {

typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));  // SSE2 compares signed integers only

constexpr int QUANTIZED_LANES = Work<float>::LANES;
constexpr int32_t INFINITY_BITS = 0x7f800000, NAN_BITS = 0x7fc00000, SMALLEST_SCALE_BITS = 0x00800000;  // the last 2^-126

INLINE Integers minimum(Integers a, Integers b) { return a < b ? a : b; }
INLINE Integers maximum(Integers a, Integers b) { return a > b ? a : b; }
INLINE Integers all(int32_t value) { return (Integers)broadcast<FloatVector>(0.0f) + value; }
INLINE FloatVector larger(FloatVector a, FloatVector b) { return a > b ? a : b; }

// Codes of floating-point encodings: round to nearest even, beyond the maximum to it, the sign of zero kept.
//
// The power of two below the magnitude, or the smallest normal one, times 2^(23 - MANTISSA) has the distance of codes as
// its unit in the last place, so adding it rounds to codes, and what it then exceeds is a number of steps.
template <int MANTISSA, int SMALLEST_EXPONENT, int32_t MAXIMUM_BITS, int CODE_BITS> struct FloatingCode {
    static constexpr int BITS = CODE_BITS;
    static constexpr uint8_t OUTSIDE = CODE_BITS == 8 ? 0x7f : 0;  // NaN, where there is one
    MEMBER static Bits32 encode(FloatVector v) {
        constexpr int32_t smallest = SMALLEST_EXPONENT + 127;
        Integers bits = (Integers)v;
        Bits32 sign = ((Bits32)bits >> (32 - CODE_BITS)) & (1u << (CODE_BITS - 1));
        Integers magnitude = minimum(bits & 0x7fffffff, all(MAXIMUM_BITS));
        Integers power = maximum(magnitude & INFINITY_BITS, all(smallest << 23));
        Integers unit = power + ((23 - MANTISSA) << 23);
        Integers steps = (Integers)((FloatVector)magnitude + (FloatVector)unit) - unit;
        return (Bits32)(steps + (power >> (23 - MANTISSA)) - (smallest << MANTISSA)) | sign;
    }
    // The same for values that may be NaN.
    MEMBER static Bits32 encode_any(FloatVector v) {
        return (Bits32)(((Integers)v & 0x7fffffff) > INFINITY_BITS ? all(OUTSIDE) : (Integers)encode(v));
    }
};
using CodeE4M3 = FloatingCode<3, -6, 0x43e00000, 8>;   // 448
using CodeE5M2 = FloatingCode<2, -14, 0x47600000, 8>;  // 57344
using CodeE2M1 = FloatingCode<1, 0, 0x40c00000, 4>;    // 6

// Codes of integers: to nearest even, then clamped. The unit in the last place of 1.5 2^23 is 1, its lowest bits are zero,
// and scaled values are below 2^22, being at most 127 over the smallest clip ratio, 2^-10. The low bits are the code.
template <int MAXIMUM, int CODE_BITS> struct IntegerCode {
    static constexpr int BITS = CODE_BITS;
    static constexpr uint8_t OUTSIDE = 0;
    MEMBER static Bits32 encode(FloatVector v) {
        constexpr int32_t zero = 0x4b400000;
        Integers bits = (Integers)(v + 12582912.0f);
        return (Bits32)maximum(minimum(bits, all(zero + MAXIMUM)), all(zero - MAXIMUM));
    }
};
using CodeInt8 = IntegerCode<127, 8>;
using CodeInt4 = IntegerCode<7, 4>;

// The low byte of each lane.
INLINE void store_bytes(uint8_t* to, Bits32 codes) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)codes));
#elif defined(__AVX2__)
    const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i gathered = _mm256_shuffle_epi8((__m256i)codes, low);
    _mm_storel_epi64((__m128i*)to, _mm_unpacklo_epi32(_mm256_castsi256_si128(gathered), _mm256_extracti128_si256(gathered, 1)));
#else
    typedef uint8_t Bytes __attribute__((vector_size(QUANTIZED_LANES)));
    store_bits(to, __builtin_convertvector(codes, Bytes));
#endif
}

// The low nibbles of each two lanes as a byte, the even lane's in its low half.
INLINE void store_nibbles(uint8_t* to, Bits32 codes) {
    typedef uint64_t Bits64 __attribute__((vector_size(VECTOR_BYTES)));
    Bits64 pairs = (Bits64)codes;
    pairs = (pairs & 0x0f) | ((pairs >> 28) & 0xf0);
#if defined(__AVX512F__)
    _mm_storel_epi64((__m128i*)to, _mm512_cvtepi64_epi8((__m512i)pairs));
#else
    for (int i = 0; i < QUANTIZED_LANES / 2; i++) to[i] = uint8_t(pairs[i]);
#endif
}

template <class Code> INLINE void store_codes(uint8_t* to, Bits32 codes) {
    if constexpr (Code::BITS == 8) {
        store_bytes(to, codes);
    } else {
        store_nibbles(to, codes);
    }
}

// The last elements of a group, fewer than a vector, with zeros behind them.
INLINE FloatVector load_rest(const float* from, int64_t count) {
    alignas(VECTOR_BYTES) float rest[QUANTIZED_LANES] = {};
    __builtin_memcpy(rest, from, size_t(count) * sizeof(float));
    return load_bits<FloatVector>(rest);
}

// The largest bit pattern without its sign of each group: the largest magnitude, or beyond infinity if there is a NaN.
// Meanwhile the 16-bit elements at `next`, which are converted next, come into the second-level cache, or it is null.
static void largest_magnitudes(const float* values, int64_t groups, int64_t block, int32_t* largest, const uint16_t* next) {
    constexpr int64_t lanes = QUANTIZED_LANES, together = 4;
    for (int64_t g = 0; g < groups; g++, values += block) {
        Integers most[together] = {};
        int64_t i = 0;
        for (; i + together * lanes <= block; i += together * lanes) {
#pragma GCC unroll 4
            for (int64_t t = 0; t < together; t++) {
                if (t % 2 == 0 && next != nullptr) __builtin_prefetch(next + g * block + i + t * lanes, 0, 2);
                most[t] = maximum(most[t], load_bits<Integers>(values + i + t * lanes) & 0x7fffffff);
            }
        }
        for (; i + lanes <= block; i += lanes) most[0] = maximum(most[0], load_bits<Integers>(values + i) & 0x7fffffff);
        if (i < block) most[1] = maximum(most[1], (Integers)load_rest(values + i, block - i) & 0x7fffffff);
        Integers all_of = maximum(maximum(most[0], most[1]), maximum(most[2], most[3]));
        if constexpr (lanes > 8) all_of = maximum(all_of, swap_lanes<8>(all_of));
        if constexpr (lanes > 4) all_of = maximum(all_of, swap_lanes<4>(all_of));
        all_of = maximum(all_of, swap_lanes<2>(all_of));
        all_of = maximum(all_of, swap_lanes<1>(all_of));
        largest[g] = all_of[0];
    }
}

// Factors of LANES groups, NaN for a group that holds NaN or an infinity, and their scales as they are stored.
INLINE FloatVector scale_float(Integers largest, const Quantization& q, Integers* stored) {
    FloatVector scale = larger((FloatVector)largest * q.amax_factor, (FloatVector)all(SMALLEST_SCALE_BITS));
    scale = largest < INFINITY_BITS ? scale : (FloatVector)all(NAN_BITS);
    *stored = (Integers)scale;
    return 1.0f / scale;
}

INLINE FloatVector scale_e8m0(Integers largest, const Quantization& q, Integers* stored) {
    Integers exponent = (Integers)((FloatVector)largest * q.amax_factor) >> 23;
    Integers byte = maximum(exponent - int32_t(q.largest_exponent), all(0));
    *stored = largest < INFINITY_BITS ? byte : all(255);
    return (FloatVector)(largest < INFINITY_BITS ? (254 - byte) << 23 : all(NAN_BITS));
}

INLINE FloatVector scale_e4m3(Integers largest, const Quantization& q, Integers* stored) {
    FloatVector wanted = (FloatVector)largest * q.amax_factor * (1.0f / q.given);
    Integers byte = maximum((Integers)CodeE4M3::encode(wanted), all(1));
    // Codes below 8 are subnormal, in steps of 2^-9; from there on exponent and mantissa are those of fp32, moved.
    FloatVector value = byte < 8 ? __builtin_convertvector(byte, FloatVector) * 0x1p-9f : (FloatVector)((byte << 20) + (120 << 23));
    FloatVector factor = 1.0f / larger(value * q.given, (FloatVector)all(SMALLEST_SCALE_BITS));
    *stored = largest < INFINITY_BITS ? byte : all(0x7f);
    return largest < INFINITY_BITS ? factor : (FloatVector)all(NAN_BITS);
}

// Factors of groups; the bits of their scales take the place of the largest magnitudes, which a vector follows.
static void scales_of_groups(int32_t* largest, int64_t groups, const Quantization& q, float* factors) {
    for (int64_t g = 0; g < groups; g += QUANTIZED_LANES) {
        Integers magnitudes = load_bits<Integers>(largest + g), stored;
        FloatVector factor = q.scale_type == SCALE_FLOAT  ? scale_float(magnitudes, q, &stored)
                             : q.scale_type == SCALE_E8M0 ? scale_e8m0(magnitudes, q, &stored)
                                                          : scale_e4m3(magnitudes, q, &stored);
        store_bits(factors + g, factor);
        store_bits(largest + g, stored);
    }
}

// Puts the scales of rows where they belong. Stored is int32_t for fp32's bits, or uint8_t.
template <class Stored> static void write_scales(const int32_t* bits, int64_t row, int64_t rows, const Quantization& q) {
    Stored* scales = static_cast<Stored*>(q.scales);
    for (int64_t end = row + rows; row < end; row++, bits += q.blocks) {
        if (q.swizzled) {
            Stored* of_row = scales + row / 128 * ((q.blocks + 3) / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4;
            for (int64_t block = 0; block < q.blocks; block++) of_row[block / 4 * 512 + block % 4] = Stored(bits[block]);
        } else {
            Stored* of_row = scales + row * q.scale_row_stride;
            for (int64_t block = 0; block < q.blocks; block++) of_row[block * q.scale_block_stride] = Stored(bits[block]);
        }
    }
}

template <class Code> static void codes_of_groups(const float* values, int64_t groups, int64_t block, const float* factors, uint8_t* codes) {
    constexpr int64_t lanes = QUANTIZED_LANES, vector_bytes = lanes * Code::BITS / 8;
    int64_t bytes = block * Code::BITS / 8;
    for (int64_t g = 0; g < groups; g++, values += block, codes += bytes) {
        float factor = factors[g];
        if (factor != factor) {
            __builtin_memset(codes, Code::OUTSIDE, size_t(bytes));
            continue;
        }
        FloatVector by = broadcast<FloatVector>(factor);
        uint8_t* to = codes;
        int64_t i = 0;
        for (; i + lanes <= block; i += lanes, to += vector_bytes) store_codes<Code>(to, Code::encode(load_bits<FloatVector>(values + i) * by));
        if (i < block) {
            uint8_t rest[vector_bytes];
            store_codes<Code>(rest, Code::encode(load_rest(values + i, block - i) * by));
            __builtin_memcpy(to, rest, size_t((block - i) * Code::BITS / 8));
        }
    }
}

// With one scale that is given, values may be anything.
template <class Code> static void codes_by_given_scale(const float* values, int64_t elements, float factor, uint8_t* codes) {
    constexpr int64_t lanes = QUANTIZED_LANES;
    FloatVector by = broadcast<FloatVector>(factor);
    int64_t i = 0;
    for (; i + lanes <= elements; i += lanes) store_codes<Code>(codes + i, Code::encode_any(load_bits<FloatVector>(values + i) * by));
    if (i < elements) {
        uint8_t rest[lanes];
        store_codes<Code>(rest, Code::encode_any(load_rest(values + i, elements - i) * by));
        __builtin_memcpy(codes + i, rest, size_t(elements - i));
    }
}

// Elements that quantize_rows needs beside the values.
INLINE int64_t quantize_scratch(int64_t elements, const Quantization& q) {
    return q.scale_type == SCALE_GIVEN ? 0 : 2 * (elements / q.block + QUANTIZED_LANES);
}

// Quantizes `rows` rows of fp32 values that follow each other, the first of which is row `row` of the tensor. `next` is as above.
static void quantize_rows(const float* values, int64_t row, int64_t rows, int64_t row_length, const Quantization& q, float* scratch,
                          const uint16_t* next) {
    int64_t elements = rows * row_length;
    bool packed = q.encoding == CODE_E2M1 || q.encoding == CODE_INT4;
    uint8_t* codes = static_cast<uint8_t*>(q.codes) + row * row_length / (packed ? 2 : 1);
    if (q.scale_type == SCALE_GIVEN) {
        float factor = 1.0f / q.given;
        if (q.encoding == CODE_E4M3) return codes_by_given_scale<CodeE4M3>(values, elements, factor, codes);
        return codes_by_given_scale<CodeE5M2>(values, elements, factor, codes);
    }
    int64_t groups = elements / q.block;
    int32_t* largest = reinterpret_cast<int32_t*>(scratch);
    float* factors = scratch + groups + QUANTIZED_LANES;
    largest_magnitudes(values, groups, q.block, largest, next);
    __builtin_memset(largest + groups, 0, QUANTIZED_LANES * sizeof(int32_t));
    scales_of_groups(largest, groups, q, factors);
    if (q.scale_type == SCALE_FLOAT) {
        write_scales<int32_t>(largest, row, rows, q);
    } else {
        write_scales<uint8_t>(largest, row, rows, q);
    }
    switch (q.encoding) {
        case CODE_E4M3: return codes_of_groups<CodeE4M3>(values, groups, q.block, factors, codes);
        case CODE_E5M2: return codes_of_groups<CodeE5M2>(values, groups, q.block, factors, codes);
        case CODE_E2M1: return codes_of_groups<CodeE2M1>(values, groups, q.block, factors, codes);
        case CODE_INT8: return codes_of_groups<CodeInt8>(values, groups, q.block, factors, codes);
        case CODE_INT4: return codes_of_groups<CodeInt4>(values, groups, q.block, factors, codes);
    }
}

}  // namespace HADACORE_ISA
