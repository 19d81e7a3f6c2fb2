// Sylvester transforms of rows: index bits in increasing order, whatever the size and the instruction set, so that all
// of them, and the PyTorch path, give the same bits.
//
// A register block is REGISTERS vectors of consecutive elements, on which the lowest index bits are contracted without
// touching memory: first those within a vector, then those between vectors. Rows longer than a block go through a
// scratch row, block by block, and then by passes of radix 2^REGISTER_BITS at most over blocks at a distance.
#pragma once
#include "problem.hpp"
#include "vectors.hpp"

namespace HADACORE_ISA {

template <class R> constexpr int BLOCK_BITS = Work<R>::LANE_BITS + REGISTER_BITS;
template <class R> constexpr int64_t BLOCK = int64_t(1) << BLOCK_BITS<R>;
// Distance of blocks in a scratch row. One vector more than a block, so that blocks at a distance of a power of two do
// not compete for the same lines of a cache.
template <class R> constexpr int64_t PITCH = BLOCK<R> + Work<R>::LANES;

template <class R> INLINE int64_t scratch_elements(int64_t log2) {
    return log2 <= BLOCK_BITS<R> ? BLOCK<R> : (int64_t(1) << (log2 - BLOCK_BITS<R>)) * PITCH<R>;
}

constexpr int64_t LINE_BYTES = 64;

// Where elements come from: memory of element type E, times signs.
template <class E, bool SIGNED> struct Source {
    using Real = typename E::Real;
    const typename E::Memory* memory;
    const Real* signs;
    const typename E::Memory* next;  // what is read next and is fetched meanwhile, or null
    // Fetches what follows `count` elements from i on. Into the second level: in the first it drives out what is computed
    // with (measured: 5120 in float32 2.9 -> 1.7 ms). And here, not where results are stored: stores wait for memory, and
    // fetches beside them for the stores (measured: 32768 in float16 1.10 -> 0.83 ms).
    MEMBER void fetch(int64_t i, int64_t count) const {
        if (next == nullptr) return;
#pragma GCC unroll 32
        for (int64_t e = 0; e < count; e += LINE_BYTES / int64_t(sizeof(*next))) __builtin_prefetch(next + i + e, 0, 2);
    }
    MEMBER typename E::V load(int64_t i) const {
        auto v = E::load(memory + i);
        if constexpr (SIGNED) v *= load_bits<decltype(v)>(signs + i);
        return v;
    }
    MEMBER Source at(int64_t i) const { return {memory + i, SIGNED ? signs + i : nullptr, next == nullptr ? nullptr : next + i}; }
};

// The epilogue: where results go, times scale and signs, rounded once to element type E.
template <class E, bool SIGNED, bool STREAMED> struct Sink {
    using Real = typename E::Real;
    typename E::Memory* memory;
    const Real* signs;
    Real scale;
    template <class V> MEMBER void store(int64_t i, V v) const {
        v *= scale;
        if constexpr (SIGNED) v *= load_bits<V>(signs + i);
        if constexpr (STREAMED) {
            E::stream(memory + i, v);
        } else {
            E::store(memory + i, v);
        }
    }
    // Two neighbouring vectors. Half a line of 16-bit elements would cost as much as a whole one.
    template <class V> MEMBER void store_pair(int64_t i, V v, V w) const {
        if constexpr (E::HAS_PAIRS) {
            v *= scale;
            w *= scale;
            if constexpr (SIGNED) {
                v *= load_bits<V>(signs + i);
                w *= load_bits<V>(signs + i + Work<Real>::LANES);
            }
            E::template store_pair<STREAMED>(memory + i, v, w);
        } else {
            store(i, v);
            store(i + Work<Real>::LANES, w);
        }
    }
    // The sink of what lies `done` elements further on, but into other memory.
    MEMBER Sink into(typename E::Memory* other, int64_t done) const {
        return {other, SIGNED ? signs + done : nullptr, scale};
    }
};

// Results that go on being computed with: as they are.
template <class R> struct Keep {
    R* memory;
    template <class V> MEMBER void store(int64_t i, V v) const { store_bits(memory + i, v); }
    template <class V> MEMBER void store_pair(int64_t i, V v, V w) const {
        store(i, v);
        store(i + Work<R>::LANES, w);
    }
};

// Index bits within a vector: lane i of the swapped vector holds i's partner, and a - b is b times -1 plus a.
template <int BITS, int D = 1, class V> INLINE V lane_butterflies(V v) {
    if constexpr (D < (1 << BITS)) {
        return lane_butterflies<BITS, 2 * D>(multiply_add(v, lane_signs<D, V>(), swap_lanes<D>(v)));
    } else {
        return v;
    }
}

// Index bits between N vectors, in runs of COUNT.
template <int N, int COUNT, int D = 1, class V> INLINE void register_butterflies(V* v) {
    if constexpr (D < N) {
#pragma GCC unroll 32
        for (int i = 0; i < COUNT; i++) {
            if ((i & D) == 0) {
                V a = v[i], b = v[i + D];
                v[i] = a + b;
                v[i + D] = a - b;
            }
        }
        register_butterflies<N, COUNT, 2 * D>(v);
    }
}

// Contracts the lowest BITS index bits of a block of consecutive elements.
template <int BITS, class R, class From, class To> INLINE void register_block(const From& from, int64_t i, const To& to, int64_t o) {
    using V = typename Work<R>::Vector;
    constexpr int lane_bits = BITS < Work<R>::LANE_BITS ? BITS : Work<R>::LANE_BITS;
    V v[REGISTERS];
#pragma GCC unroll 32
    for (int r = 0; r < REGISTERS; r++) v[r] = lane_butterflies<lane_bits>(from.load(i + r * Work<R>::LANES));
    register_butterflies<1 << (BITS - lane_bits), REGISTERS>(v);
#pragma GCC unroll 32
    for (int r = 0; r < REGISTERS; r += 2) to.store_pair(o + r * Work<R>::LANES, v[r], v[r + 1]);
}

// register_block on `blocks` consecutive blocks. Not inlined, so that it is compiled once for all who call it.
template <int BITS, class R, class From, class To>
static __attribute__((noinline)) void block_run(int64_t blocks, const From& given_from, const To& given_to) {
    From from = given_from;  // copies, whose addresses nobody else knows, stay in registers
    To to = given_to;
    for (int64_t b = 0; b < blocks; b++) register_block<BITS, R>(from, b * BLOCK<R>, to, b * BLOCK<R>);
}

// The same for a number of bits known at run time.
template <int BITS, class R, class From, class To>
INLINE void register_blocks(int64_t bits, int64_t blocks, const From& from, const To& to) {
    if (bits == BITS) {
        block_run<BITS, R>(blocks, from, to);
    } else if constexpr (BITS > 0) {
        register_blocks<BITS - 1, R>(bits, blocks, from, to);
    }
}

// Contracts log2(RADIX) index bits of `blocks` blocks in a scratch row, those that count `distance` blocks and up. TOGETHER
// vectors of each of the RADIX blocks are finished at once: stores past the caches want whole lines.
template <int RADIX, int TOGETHER, class R, class To>
INLINE void radix_pass(const R* row, int64_t blocks, int64_t distance, const To& given_to, int64_t pitch) {
    To to = given_to;  // a copy, which stays in registers
    using V = typename Work<R>::Vector;
    constexpr int lanes = Work<R>::LANES;
    for (int64_t high = 0; high < blocks; high += RADIX * distance) {
        for (int64_t block = high; block < high + distance; block++) {
            for (int64_t i = 0; i < BLOCK<R>; i += TOGETHER * lanes) {
                V v[TOGETHER][RADIX];
#pragma GCC unroll 4
                for (int t = 0; t < TOGETHER; t++) {
#pragma GCC unroll 32
                    for (int r = 0; r < RADIX; r++) v[t][r] = load_bits<V>(row + (block + r * distance) * PITCH<R> + i + t * lanes);
                    register_butterflies<RADIX, RADIX>(v[t]);
                }
#pragma GCC unroll 32
                for (int r = 0; r < RADIX; r++) {
                    int64_t o = (block + r * distance) * pitch + i;
                    if constexpr (TOGETHER == 2) {
                        to.store_pair(o, v[0][r], v[1][r]);
                    } else {
                        to.store(o, v[0][r]);
                    }
                }
            }
        }
    }
}

// radix_pass for a number of bits known at run time, 1 to BITS.
template <int BITS, int TOGETHER, class R, class To>
INLINE void radix_passes(int64_t bits, const R* row, int64_t blocks, int64_t distance, const To& to, int64_t pitch) {
    if (bits == BITS) {
        radix_pass<1 << BITS, TOGETHER>(row, blocks, distance, to, pitch);
    } else if constexpr (BITS > 1) {
        radix_passes<BITS - 1, TOGETHER>(bits, row, blocks, distance, to, pitch);
    }
}

// Transforms 2^left blocks of `from` into a scratch row: parts first, each of them while it is in the first-level cache,
// then one pass over all of them.
template <class R, class From> static void sylvester_part(const From& from, int64_t i, int64_t left, R* part) {
    if (left == 0) {
        from.fetch(i, BLOCK<R>);
        register_block<BLOCK_BITS<R>, R>(from, i, Keep<R>{part}, 0);
        return;
    }
    int64_t passes = (left + REGISTER_BITS - 1) / REGISTER_BITS, bits = (left + passes - 1) / passes, blocks = int64_t(1) << left;
    int64_t distance = blocks >> bits;
    for (int64_t b = 0; b < blocks; b += distance) sylvester_part<R>(from, i + b * BLOCK<R>, left - bits, part + b * PITCH<R>);
    radix_passes<REGISTER_BITS, 1>(bits, part, blocks, distance, Keep<R>{part}, PITCH<R>);
}

// Transforms one row of 2^log2 elements, at least a block. `from` may be the memory of `to`.
template <class R, class From, class To> static void sylvester_row(const From& from, const To& to, int64_t log2, R* scratch) {
    if (log2 == BLOCK_BITS<R>) {
        from.fetch(0, BLOCK<R>);
        register_block<BLOCK_BITS<R>, R>(from, 0, to, 0);
        return;
    }
    int64_t left = log2 - BLOCK_BITS<R>, blocks = int64_t(1) << left;
    int64_t bits = left < REGISTER_BITS ? left : REGISTER_BITS - 1, distance = blocks >> bits;
    for (int64_t b = 0; b < blocks; b += distance) sylvester_part<R>(from, b * BLOCK<R>, left - bits, scratch + b * PITCH<R>);
    radix_passes<REGISTER_BITS - 1, 2>(bits, scratch, blocks, distance, to, BLOCK<R>);
}

// Transforms runs of 2^log2 < BLOCK consecutive elements, `elements` in all, a whole number of runs. What is left of
// the last block goes through a copy, so that nothing beyond the runs is touched and every run takes the same
// instructions. Signs must reach to the end of the last block.
template <class E, bool BEFORE, class To>
INLINE void short_runs(const Source<E, BEFORE>& from, int64_t elements, int64_t log2, const To& to, const To& rest_to) {
    using R = typename E::Real;
    int64_t blocks = elements / BLOCK<R>, done = blocks * BLOCK<R>, rest = elements - done;
    register_blocks<BLOCK_BITS<R> - 1, R>(log2, blocks, from, to);
    if (rest == 0) return;
    typename E::Memory copy[BLOCK<R>] = {};
    __builtin_memcpy(copy, from.memory + done, rest * sizeof(copy[0]));
    const R* signs = from.signs == nullptr ? nullptr : from.signs + done;
    register_blocks<BLOCK_BITS<R> - 1, R>(log2, 1, Source<E, BEFORE>{copy, signs, nullptr}, rest_to);
}

}  // namespace HADACORE_ISA
