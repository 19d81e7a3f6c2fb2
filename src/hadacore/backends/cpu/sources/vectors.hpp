// Vectors of the instruction set this file is compiled for: lanes, lane permutations, and elements in memory.
//
// Compiled with -ffp-contract=off, so that a + b * c is two roundings unless multiply_add says otherwise.
#pragma once
#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MEMBER __attribute__((always_inline))

namespace HADACORE_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTER_BITS = 4, PRODUCT_ROWS = 4, PRODUCT_VECTORS = 4;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, REGISTER_BITS = 3, PRODUCT_ROWS = 4, PRODUCT_VECTORS = 2;
#elif defined(__ARM_NEON)
constexpr int VECTOR_BYTES = 16, REGISTER_BITS = 4, PRODUCT_ROWS = 4, PRODUCT_VECTORS = 4;
#else
constexpr int VECTOR_BYTES = 16, REGISTER_BITS = 3, PRODUCT_ROWS = 4, PRODUCT_VECTORS = 2;
#endif
// Vectors of a register block; with those for temporaries and constants they fill the registers.
constexpr int REGISTERS = 1 << REGISTER_BITS;

typedef float FloatVector __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Bits32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Bits16 __attribute__((vector_size(VECTOR_BYTES / 2)));

// What a transform computes in.
template <class Real> struct Work;
template <> struct Work<float> {
    using Vector = FloatVector;
    static constexpr int LANES = VECTOR_BYTES / 4;
    static constexpr int LANE_BITS = LANES == 16 ? 4 : LANES == 8 ? 3 : 2;
};
template <> struct Work<double> {
    using Vector = DoubleVector;
    static constexpr int LANES = VECTOR_BYTES / 8;
    static constexpr int LANE_BITS = LANES == 8 ? 3 : LANES == 4 ? 2 : 1;
};

template <class V> struct LaneOf;
template <> struct LaneOf<FloatVector> { using Type = float; };
template <> struct LaneOf<DoubleVector> { using Type = double; };

template <class V, class T> INLINE V load_bits(const T* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof(V));
    return v;
}
template <class V, class T> INLINE void store_bits(T* to, V v) { __builtin_memcpy(to, &v, sizeof(V)); }

// a * b + c. One rounding where there is an instruction for it; the products that decide bits across instruction sets
// are by +1 or -1, hence exact, and then it makes no difference.
INLINE FloatVector multiply_add(FloatVector a, FloatVector b, FloatVector c) {
#if defined(__AVX512F__)
    return (FloatVector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (FloatVector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (FloatVector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
INLINE DoubleVector multiply_add(DoubleVector a, DoubleVector b, DoubleVector c) {
#if defined(__AVX512F__)
    return (DoubleVector)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (DoubleVector)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_NEON)
    return (DoubleVector)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

template <class V, class R> INLINE V broadcast(R value) {
#if defined(__AVX512F__)
    if constexpr (sizeof(R) == 4) return (V)_mm512_set1_ps(value);
    else return (V)_mm512_set1_pd(value);
#elif defined(__AVX2__)
    if constexpr (sizeof(R) == 4) return (V)_mm256_set1_ps(value);
    else return (V)_mm256_set1_pd(value);
#else
    if constexpr (sizeof(R) == 4) return V{value, value, value, value};
    else return V{value, value};
#endif
}

// Lane i of the result is lane i ^ D.
template <int D, class V> INLINE V swap_lanes(V v) {
    constexpr int lanes = sizeof(V) / sizeof(v[0]);
    if constexpr (lanes == 16) {
        return __builtin_shufflevector(v, v, 0 ^ D, 1 ^ D, 2 ^ D, 3 ^ D, 4 ^ D, 5 ^ D, 6 ^ D, 7 ^ D, 8 ^ D, 9 ^ D,
                                       10 ^ D, 11 ^ D, 12 ^ D, 13 ^ D, 14 ^ D, 15 ^ D);
    } else if constexpr (lanes == 8) {
        return __builtin_shufflevector(v, v, 0 ^ D, 1 ^ D, 2 ^ D, 3 ^ D, 4 ^ D, 5 ^ D, 6 ^ D, 7 ^ D);
    } else if constexpr (lanes == 4) {
        return __builtin_shufflevector(v, v, 0 ^ D, 1 ^ D, 2 ^ D, 3 ^ D);
    } else {
        return __builtin_shufflevector(v, v, 0 ^ D, 1 ^ D);
    }
}

// -1 in the lanes whose bit D is set, else +1.
template <int D, class V> INLINE V lane_signs() {
    constexpr int lanes = sizeof(V) / sizeof(V{}[0]);
#define SIGN(i) ((i) & D ? -1 : 1)
    if constexpr (lanes == 16) {
        return V{SIGN(0), SIGN(1), SIGN(2),  SIGN(3),  SIGN(4),  SIGN(5),  SIGN(6),  SIGN(7),
                 SIGN(8), SIGN(9), SIGN(10), SIGN(11), SIGN(12), SIGN(13), SIGN(14), SIGN(15)};
    } else if constexpr (lanes == 8) {
        return V{SIGN(0), SIGN(1), SIGN(2), SIGN(3), SIGN(4), SIGN(5), SIGN(6), SIGN(7)};
    } else if constexpr (lanes == 4) {
        return V{SIGN(0), SIGN(1), SIGN(2), SIGN(3)};
    } else {
        return V{SIGN(0), SIGN(1)};
    }
#undef SIGN
}

// Elements in memory: how many lanes' worth become a vector to compute with, and back, rounded to nearest even.

template <class R> struct Plain {
    using Memory = R;
    using Real = R;
    using V = typename Work<R>::Vector;
    static constexpr bool HAS_PAIRS = false;  // whether there is a faster way to store two vectors
    MEMBER static V load(const R* from) { return load_bits<V>(from); }
    MEMBER static void store(R* to, V v) { store_bits(to, v); }
    // Past the caches, which neither reads what it overwrites nor evicts anything; `to` is aligned to a vector.
    MEMBER static void stream(R* to, V v) {
#if defined(__AVX512F__)
        _mm512_stream_si512((__m512i*)to, (__m512i)v);
#elif defined(__AVX2__)
        _mm256_stream_si256((__m256i*)to, (__m256i)v);
#elif defined(__SSE2__)
        _mm_stream_si128((__m128i*)to, (__m128i)v);
#else
        store(to, v);
#endif
    }
};
using Float32 = Plain<float>;
using Float64 = Plain<double>;

INLINE void stream_half(uint16_t* to, Bits16 bits) {
#if defined(__AVX512F__)
    _mm256_stream_si256((__m256i*)to, (__m256i)bits);
#elif defined(__AVX2__)
    _mm_stream_si128((__m128i*)to, (__m128i)bits);
#else
    store_bits(to, bits);
#endif
}

#if defined(__AVX512F__)
constexpr bool PAIRS_OF_HALVES = true;
template <bool STREAMED> INLINE void store_halves(uint16_t* to, __m512i bits) {
    if constexpr (STREAMED) {
        _mm512_stream_si512((__m512i*)to, bits);
    } else {
        _mm512_storeu_si512(to, bits);
    }
}
#else
constexpr bool PAIRS_OF_HALVES = false;
#endif

// GCC takes five instructions for __builtin_convertvector here.
INLINE Bits32 widen(Bits16 bits) {
#if defined(__AVX512F__)
    return (Bits32)_mm512_cvtepu16_epi32((__m256i)bits);
#elif defined(__AVX2__)
    return (Bits32)_mm256_cvtepu16_epi32((__m128i)bits);
#else
    return __builtin_convertvector(bits, Bits32);
#endif
}

INLINE Bits16 narrow(Bits32 bits) {
#if defined(__AVX512F__)
    return (Bits16)_mm512_cvtepi32_epi16((__m512i)bits);
#elif defined(__AVX2__)
    __m256i packed = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
    return (Bits16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(bits, Bits16);
#endif
}

// Runs of four elements that begin `step` apart, as many as a vector has.
INLINE Bits16 gather_runs(const uint16_t* from, int64_t step) {
    typedef uint64_t Runs __attribute__((vector_size(VECTOR_BYTES / 2)));
    uint64_t run[VECTOR_BYTES / 16];
#pragma GCC unroll 4
    for (int r = 0; r < VECTOR_BYTES / 16; r++) __builtin_memcpy(&run[r], from + r * step, sizeof(run[r]));
#if defined(__AVX512F__)
    return (Bits16)Runs{run[0], run[1], run[2], run[3]};
#elif defined(__AVX2__)
    return (Bits16)Runs{run[0], run[1]};
#else
    return (Bits16)Runs{run[0]};
#endif
}

struct BFloat16 {
    using Memory = uint16_t;
    using Real = float;
    using V = FloatVector;
    static constexpr bool HAS_PAIRS = PAIRS_OF_HALVES;
    MEMBER static FloatVector exact(Bits16 bits) { return (FloatVector)(widen(bits) << 16); }
    MEMBER static FloatVector load(const uint16_t* from) { return exact(load_bits<Bits16>(from)); }
    // A NaN is cut off, not rounded, lest it become something else; it is quiet, being the result of a product, so its
    // upper half says that it is one. The instruction vcvtneps2bf16 is no use: it treats subnormals as zero.
    MEMBER static Bits16 round(FloatVector v) {
        Bits32 bits = (Bits32)v, half = 0x7fff + ((bits >> 16) & 1);
#if defined(__AVX512F__)
        __mmask16 ordered = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q);
        bits = (Bits32)_mm512_mask_add_epi32((__m512i)bits, ordered, (__m512i)bits, (__m512i)half);
        const __m512i upper = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x1f001d, 0x1b0019, 0x170015, 0x130011, 0xf000d,
                                               0xb0009, 0x70005, 0x30001);
        return (Bits16)_mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, (__m512i)bits));
#else
        bits += half & (Bits32)(v == v);
        return narrow(bits >> 16);
#endif
    }
#if defined(__AVX512F__)
    // Rounds up where the lower half is above 0x8000, or is that and the upper one odd, in 16 bits and so both vectors at once
    // (measured: 2.4 -> 1.2 clocks a vector). Rounding leaves a NaN alone whose lower half is zero, and every NaN here is
    // such a one: one of the input, of an operation, or of call.hpp's plain_nan.
    template <bool STREAMED> MEMBER static void store_pair(uint16_t* to, FloatVector v, FloatVector w) {
        const __m512i lower = _mm512_set_epi32(0x3e003c, 0x3a0038, 0x360034, 0x320030, 0x2e002c, 0x2a0028, 0x260024, 0x220020,
                                               0x1e001c, 0x1a0018, 0x160014, 0x120010, 0xe000c, 0xa0008, 0x60004, 0x20000);
        const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(1));
        __m512i kept = _mm512_permutex2var_epi16((__m512i)v, upper, (__m512i)w);
        __m512i rest = _mm512_permutex2var_epi16((__m512i)v, lower, (__m512i)w);
        rest = _mm512_subs_epu16(rest, _mm512_andnot_si512(kept, _mm512_set1_epi16(1)));
        store_halves<STREAMED>(to, _mm512_add_epi16(kept, _mm512_srli_epi16(rest, 15)));
    }
#endif
    MEMBER static void store(uint16_t* to, FloatVector v) { store_bits(to, round(v)); }
    MEMBER static void stream(uint16_t* to, FloatVector v) { stream_half(to, round(v)); }
};

struct Float16 {
    using Memory = uint16_t;
    using Real = float;
    using V = FloatVector;
    static constexpr bool HAS_PAIRS = PAIRS_OF_HALVES;
#if defined(__AVX512F__)
    template <bool STREAMED> MEMBER static void store_pair(uint16_t* to, FloatVector v, FloatVector w) {
        store_halves<STREAMED>(to, _mm512_inserti64x4(_mm512_castsi256_si512((__m256i)round(v)), (__m256i)round(w), 1));
    }
    MEMBER static FloatVector exact(Bits16 bits) { return (FloatVector)_mm512_cvtph_ps((__m256i)bits); }
    MEMBER static Bits16 round(FloatVector v) {
        return (Bits16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
#elif defined(__AVX2__)
    MEMBER static FloatVector exact(Bits16 bits) { return (FloatVector)_mm256_cvtph_ps((__m128i)bits); }
    MEMBER static Bits16 round(FloatVector v) {
        return (Bits16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
#elif defined(__ARM_NEON)
    MEMBER static FloatVector exact(Bits16 bits) { return (FloatVector)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)bits)); }
    MEMBER static Bits16 round(FloatVector v) {
        return (Bits16)vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v));
    }
#else
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
    MEMBER static FloatVector exact(Bits16 bits) {
        Bits32 half = widen(bits);
        Bits32 sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
        Bits32 normal = (magnitude << 13) + (112u << 23);
        Bits32 special = (magnitude << 13) | (255u << 23);
        Bits32 subnormal = (Bits32)(__builtin_convertvector((Integers)magnitude, FloatVector) * 0x1p-24f);
        Bits32 value = magnitude >= 0x7c00 ? special : magnitude < 0x400 ? subnormal : normal;
        return (FloatVector)(value | sign);
    }
    MEMBER static Bits16 round(FloatVector v) {
        Bits32 bits = (Bits32)v;
        Bits32 sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
        // The unit of 0.5f is 2^-24, that of float16's subnormals, so this addition rounds to it.
        Bits32 subnormal = (Bits32)((FloatVector)magnitude + 0.5f) - 0x3f000000;
        Bits32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        Bits32 infinity = magnitude - magnitude + 0x7c00;
        Bits32 nan = ((magnitude >> 13) & 0x3ff) | 0x7e00;
        Bits32 value = magnitude < (113u << 23) ? subnormal
                       : magnitude < 0x477ff000 ? normal  // 65520, halfway from the largest to the next
                       : magnitude <= 0x7f800000 ? infinity
                                                 : nan;
        return narrow(value | sign);
    }
#endif
    MEMBER static FloatVector load(const uint16_t* from) { return exact(load_bits<Bits16>(from)); }
    MEMBER static void store(uint16_t* to, FloatVector v) { store_bits(to, round(v)); }
    MEMBER static void stream(uint16_t* to, FloatVector v) { stream_half(to, round(v)); }
};

// Makes streamed stores visible to other threads.
INLINE void finish_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace HADACORE_ISA
