// Transforms along a strided dimension, another one being dense, as the columns of a matrix are: COLUMN_TILE neighbours
// are transformed at once, vector by vector across them, with the arithmetic of a row and so its bits.
#pragma once
#include "call.hpp"

namespace HADACORE_ISA {

constexpr int64_t COLUMN_TILE = 32;  // neighbours read together: a cache line of 16-bit elements

template <class E, bool SIGNED> struct ColumnSource {
    const typename E::Memory* memory;
    int64_t step;
    const typename E::Real* signs;
    MEMBER typename E::V load(int64_t i, int64_t c) const {
        auto v = E::load(memory + i * step + c);
        if constexpr (SIGNED) v *= signs[i];
        return v;
    }
};

template <class E, bool SIGNED> struct ColumnSink {
    typename E::Memory* memory;
    int64_t step;
    const typename E::Real* signs;
    typename E::Real scale;
    template <class V> MEMBER void store(int64_t i, int64_t c, V v) const {
        v *= scale;
        if constexpr (SIGNED) v *= signs[i];
        E::store(memory + i * step + c, v);
    }
};

// The tile between passes.
template <class R> struct ColumnScratch {
    R* memory;
    MEMBER typename Work<R>::Vector load(int64_t i, int64_t c) const {
        return load_bits<typename Work<R>::Vector>(memory + i * COLUMN_TILE + c);
    }
    template <class V> MEMBER void store(int64_t i, int64_t c, V v) const { store_bits(memory + i * COLUMN_TILE + c, v); }
};

// Contracts BITS index bits of `count` elements from `first` on, those that count `distance` and up.
template <int BITS, class R, class From, class To>
static __attribute__((noinline)) void column_pass(const From& given_from, const To& given_to, int64_t first, int64_t count, int64_t distance) {
    using V = typename Work<R>::Vector;
    constexpr int radix = 1 << BITS;
    From from = given_from;
    To to = given_to;
    for (int64_t high = first; high < first + count; high += radix * distance) {
        for (int64_t i = high; i < high + distance; i++) {
            for (int64_t c = 0; c < COLUMN_TILE; c += Work<R>::LANES) {
                V v[radix];
#pragma GCC unroll 32
                for (int r = 0; r < radix; r++) v[r] = from.load(i + r * distance, c);
                register_butterflies<radix, radix>(v);
#pragma GCC unroll 32
                for (int r = 0; r < radix; r++) to.store(i + r * distance, c, v[r]);
            }
        }
    }
}

template <int BITS, class R, class From, class To>
INLINE void column_passes(int64_t bits, const From& from, const To& to, int64_t first, int64_t count, int64_t distance) {
    if (bits == BITS) {
        column_pass<BITS, R>(from, to, first, count, distance);
    } else if constexpr (BITS > 0) {
        column_passes<BITS - 1, R>(bits, from, to, first, count, distance);
    }
}

// Transforms 2^log2 elements from `first` on: parts, and then one pass over them.
template <class R, class From, class To>
static void column_part(const From& from, const To& to, const ColumnScratch<R>& scratch, int64_t first, int64_t log2) {
    int64_t passes = (log2 + REGISTER_BITS - 1) / REGISTER_BITS, count = int64_t(1) << log2;
    if (passes <= 1) {
        column_passes<REGISTER_BITS, R>(log2, from, to, first, count, 1);
        return;
    }
    int64_t bits = (log2 + passes - 1) / passes, distance = count >> bits;
    for (int64_t i = first; i < first + count; i += distance) column_part<R>(from, scratch, scratch, i, log2 - bits);
    column_passes<REGISTER_BITS, R>(bits, scratch, to, first, count, distance);
}

// Counts tiles, those of one block of the strided dimension after each other.
template <class E> static void column_tiles(void* context, int64_t begin, int64_t end) {
    Call<E>& call = *static_cast<Call<E>*>(context);
    using R = typename E::Real;
    using Memory = typename E::Memory;
    const Problem& problem = *call.problem;
    int64_t log2 = problem.log2, tiles = (problem.columns + COLUMN_TILE - 1) / COLUMN_TILE, tile_elements = call.size * COLUMN_TILE;
    R* scratch = static_cast<R*>(thread_scratch(tile_elements * int64_t(sizeof(R) + sizeof(Memory))));
    if (scratch == nullptr) return call.fail();
    Memory* copy = reinterpret_cast<Memory*>(scratch + tile_elements);
    for (int64_t index = begin; index < end; index++) {
        int64_t column = index % tiles * COLUMN_TILE, block = index / tiles % call.blocks, outer = index / tiles / call.blocks;
        int64_t width = problem.columns - column < COLUMN_TILE ? problem.columns - column : COLUMN_TILE, start = block * call.size;
        const Memory* x = call.x + Call<E>::offset(problem, problem.x_strides, outer) + start * problem.x_step + column;
        Memory* out = call.out + Call<E>::offset(problem, problem.out_strides, outer) + start * problem.out_step + column;
        const R* signs = call.signs_at(start);
        auto run = [&](const Memory* from, int64_t from_step, Memory* to, int64_t to_step) {
            ColumnScratch<R> between = {scratch};
            ColumnSource<E, false> source = {from, from_step, nullptr};
            ColumnSink<E, false> sink = {to, to_step, nullptr, call.scale};
            if (signs == nullptr) {
                column_part<R>(source, sink, between, 0, log2);
            } else if (problem.signs_after) {
                column_part<R>(source, ColumnSink<E, true>{to, to_step, signs, call.scale}, between, 0, log2);
            } else {
                column_part<R>(ColumnSource<E, true>{from, from_step, signs}, sink, between, 0, log2);
            }
        };
        if (width == COLUMN_TILE) {
            run(x, problem.x_step, out, problem.out_step);
            continue;
        }
        // The last tile of a row is not whole: it goes through a copy, with zeros beside it.
        __builtin_memset(copy, 0, tile_elements * sizeof(Memory));
        for (int64_t i = 0; i < call.size; i++) __builtin_memcpy(copy + i * COLUMN_TILE, x + i * problem.x_step, width * sizeof(Memory));
        run(copy, COLUMN_TILE, copy, COLUMN_TILE);
        for (int64_t i = 0; i < call.size; i++) __builtin_memcpy(out + i * problem.out_step, copy + i * COLUMN_TILE, width * sizeof(Memory));
    }
}

}  // namespace HADACORE_ISA
