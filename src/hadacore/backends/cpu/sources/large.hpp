// Rows too long for a scratch row of one thread: one row after the other, each shared out among the threads. Chunks are
// transformed first, then passes over the whole row contract the index bits above, and a base matrix comes last.
#pragma once
#include "call.hpp"

namespace HADACORE_ISA {

// Longest Sylvester factor that goes through a thread's scratch row: 256 KiB of fp32, which a second-level cache holds.
constexpr int64_t LARGEST_ROW_BITS = 16;
constexpr int64_t CHUNK_BITS = 15;
constexpr int64_t PASS_COLUMNS = 1024;  // consecutive elements of one piece of a pass

template <class E> struct LargeRow {
    using R = typename E::Real;
    Call<E>* call;
    typename Call<E>::Place place;
    R* work;           // the row while it is computed: the output itself where that is of the same type
    int64_t distance;  // of a pass, in elements
    int64_t bits;      // that it contracts
    bool last;         // whether it writes the result
};

// Counts chunks.
template <class E> static void large_chunks(void* context, int64_t begin, int64_t end) {
    const LargeRow<E>& row = *static_cast<LargeRow<E>*>(context);
    using R = typename E::Real;
    R* scratch = static_cast<R*>(thread_scratch(scratch_elements<R>(CHUNK_BITS) * int64_t(sizeof(R))));
    if (scratch == nullptr) return row.call->fail();
    row.call->with_source(row.place, [&](const auto& from) {
        for (int64_t i = begin << CHUNK_BITS; i < end << CHUNK_BITS; i += int64_t(1) << CHUNK_BITS) {
            sylvester_row<R>(from.at(i), Keep<R>{row.work + i}, CHUNK_BITS, scratch);
        }
    });
}

template <int BITS, class R, class To> INLINE void large_pass(int64_t bits, const R* work, int64_t start, int64_t distance, const To& to) {
    using V = typename Work<R>::Vector;
    if (bits == BITS) {
        for (int64_t i = start; i < start + PASS_COLUMNS; i += Work<R>::LANES) {
            V v[1 << BITS];
#pragma GCC unroll 32
            for (int r = 0; r < 1 << BITS; r++) v[r] = load_bits<V>(work + i + r * distance);
            register_butterflies<1 << BITS, 1 << BITS>(v);
#pragma GCC unroll 32
            for (int r = 0; r < 1 << BITS; r++) to.store(i + r * distance, v[r]);
        }
    } else if constexpr (BITS > 1) {
        large_pass<BITS - 1>(bits, work, start, distance, to);
    }
}

// Counts runs of PASS_COLUMNS elements whose index bits of the pass are zero.
template <class E> static void large_columns(void* context, int64_t begin, int64_t end) {
    const LargeRow<E>& row = *static_cast<LargeRow<E>*>(context);
    using R = typename E::Real;
    int64_t runs = row.distance / PASS_COLUMNS;
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t start = (piece / runs * row.distance << row.bits) + piece % runs * PASS_COLUMNS;
        if (!row.last) {
            large_pass<REGISTER_BITS>(row.bits, row.work, start, row.distance, Keep<R>{row.work});
        } else {
            row.call->with_sink(row.place, [&](const auto& to) { large_pass<REGISTER_BITS>(row.bits, row.work, start, row.distance, to); });
        }
    }
    finish_streams();
}

// Counts panels.
template <class E> static void large_panels(void* context, int64_t begin, int64_t end) {
    const LargeRow<E>& row = *static_cast<LargeRow<E>*>(context);
    using R = typename E::Real;
    const Problem& problem = *row.call->problem;
    int64_t length = int64_t(1) << problem.log2;
    R* table = static_cast<R*>(thread_scratch(row.call->product_elements() * int64_t(sizeof(R))));
    if (table == nullptr) return row.call->fail();
    row.call->with_sink(row.place, [&](const auto& to) {
        for (int64_t c = begin * COLUMNS<R>; c < end * COLUMNS<R>; c += COLUMNS<R>) {
            row.call->multiply(row.work + c, length, table, to, c, length);
        }
    });
    finish_streams();
}

template <class E> static void large_rows(Call<E>& call, int64_t transforms) {
    using R = typename E::Real;
    const Problem& problem = *call.problem;
    bool with_base = problem.base != nullptr;
    // The output can hold the row meanwhile unless its elements are narrower, or the product reads what it overwrites.
    bool needs_memory = with_base || sizeof(R) != sizeof(typename E::Memory);
    R* memory = nullptr;
    if (needs_memory) {
        memory = static_cast<R*>(malloc(size_t(call.size) * sizeof(R)));
        if (memory == nullptr) return call.fail();
    }
    for (int64_t index = 0; index < transforms && call.status == DONE; index++) {
        LargeRow<E> row = {&call, call.transform(index), memory, int64_t(1) << CHUNK_BITS, 0, false};
        row.place.next = row.place.x + (int64_t(1) << CHUNK_BITS);  // not the next row, which would not stay in a cache for so long
        if (!needs_memory) row.work = reinterpret_cast<R*>(row.place.out);
        parallel_for(call.size >> CHUNK_BITS, 1, problem.threads, large_chunks<E>, &row);
        int64_t left = problem.log2 - CHUNK_BITS;
        for (int64_t passes = (left + REGISTER_BITS - 1) / REGISTER_BITS; passes > 0; passes--) {
            row.bits = left / passes;
            row.last = passes == 1 && !with_base;
            parallel_for(call.size / PASS_COLUMNS >> row.bits, PIECE / PASS_COLUMNS, problem.threads, large_columns<E>, &row);
            row.distance <<= row.bits;
            left -= row.bits;
        }
        if (with_base) {
            int64_t grain = PIECE / (COLUMNS<R> * problem.order) > 0 ? PIECE / (COLUMNS<R> * problem.order) : 1;
            parallel_for((int64_t(1) << problem.log2) / COLUMNS<R>, grain, problem.threads, large_panels<E>, &row);
        }
    }
    free(memory);
}

}  // namespace HADACORE_ISA
