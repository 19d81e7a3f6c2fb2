// One call: a Problem with its pointers typed, its rows addressed and its signs laid out for the kernels.
#pragma once
#include <stdlib.h>

#include "known_bases.hpp"

namespace HADACORE_ISA {

// Elements of one piece of work for parallel_for: enough to be worth a thread's waking, few enough to share out well.
constexpr int64_t PIECE = 1 << 15;
// From this many bytes of output on, stores go past the caches: the output would not stay in them anyway, and memory
// is not read before it is overwritten. Products with a base write to many places at once, where that costs twice
// (measured: 3072 in bfloat16 3.0 -> 2.0 ms for 8 MiB).
constexpr int64_t STREAM_BYTES = 1 << 22;
// Sizes from which on the next transform's input is fetched while this one's is read: longer rows have phases without
// reads, in which the hardware does not fetch ahead. Below, it costs more than it gives (measured: 2048 in float32 1.5
// -> 1.9 ms, 1536 with a base 1.4 -> 1.5, 3072 2.0 -> 1.8). Of powers of two only 16-bit rows: wider ones and their scratch fill
// the first level, and pass it by as fast as memory is (measured: float32 4096 1.45 -> 1.75 ms, 32768 1.67 -> 1.90, float64
// 16384 3.3 -> 3.8, but float16 16384 1.4 -> 0.8).
constexpr int64_t FETCHED_SIZE = 1 << 12;
constexpr int64_t FETCHED_PRODUCT_SIZE = 1 << 11;
// From this order on the table of sign_panel is worth building (measured: 12 is not, 20 is).
constexpr int64_t SMALLEST_TABLE_ORDER = 16;

// The value, and for a NaN one whose payload bfloat16 holds: others might be rounded to something else.
template <class R> static R plain_nan(R value) { return value == value ? value : R(__builtin_nan("")); }

template <class E> struct Call {
    using Memory = typename E::Memory;
    using Real = typename E::Real;

    const Problem* problem;
    const Memory* x;
    Memory* out;
    const Real* base;
    int64_t known;      // order of a base matrix that is one of known_bases.hpp, else 0
    Real* plain_base;   // `base` where it has NaNs, owned, else null
    int64_t* patterns;  // of another base matrix of +1 and -1, see product.hpp; null for others; owned
    Real* signs;        // periodic, a piece and a block longer than a row; null without signs; owned
    Real scale;
    int64_t size;    // elements of a transform
    int64_t blocks;  // transforms in a row
    int64_t rows;
    bool dense;     // rows follow each other without gaps
    bool streamed;  // whether to store past the caches
    bool fetched;   // whether to fetch the next transform's input
    int64_t status;
    bool owner;  // of what is allocated

    explicit Call(const Problem& problem)
        : problem(&problem),
          x(static_cast<const Memory*>(problem.x)),
          out(static_cast<Memory*>(problem.out)),
          base(static_cast<const Real*>(problem.base)),
          known(known_order(base, problem.order)),
          plain_base(nullptr),
          patterns(nullptr),
          signs(nullptr),
          scale(plain_nan(Real(problem.scale))),
          size(problem.order << problem.log2),
          blocks(problem.row_length / size),
          rows(1),
          dense(problem.dimensions <= 1),
          streamed(false),
          fetched(base != nullptr ? size >= FETCHED_PRODUCT_SIZE : size >= FETCHED_SIZE && sizeof(Memory) == 2),
          status(DONE),
          owner(true) {
        for (int64_t d = 0; d < problem.dimensions; d++) {
            rows *= problem.shape[d];
            dense = dense && problem.x_strides[d] == problem.row_length && problem.out_strides[d] == problem.row_length;
        }
        streamed = problem.x != problem.out && rows * problem.row_length * int64_t(sizeof(Memory)) >= STREAM_BYTES;
        lay_out_base();
        lay_out_signs();
    }
    // Of `rows` rows without gaps at `x`, to rows without gaps at `out`, what `whole` does with its own.
    Call(const Call& whole, const Memory* x, Memory* out, int64_t rows)
        : problem(whole.problem),
          x(x),
          out(out),
          base(whole.base),
          known(whole.known),
          plain_base(nullptr),
          patterns(whole.patterns),
          signs(whole.signs),
          scale(whole.scale),
          size(whole.size),
          blocks(whole.blocks),
          rows(rows),
          dense(true),
          streamed(false),
          fetched(false),
          status(DONE),
          owner(false) {}
    ~Call() {
        if (!owner) return;
        free(plain_base);
        free(patterns);
        free(signs);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    void fail() { __atomic_store_n(&status, int64_t(OUT_OF_MEMORY), __ATOMIC_RELAXED); }

    void lay_out_base() {
        int64_t entries = base == nullptr || known != 0 ? 0 : problem->order * problem->order, nans = 0;
        for (int64_t i = 0; i < entries; i++) nans += base[i] != base[i];
        if (nans > 0) {
            plain_base = static_cast<Real*>(malloc(size_t(entries) * sizeof(Real)));
            if (plain_base == nullptr) return fail();
            for (int64_t i = 0; i < entries; i++) plain_base[i] = plain_nan(base[i]);
            base = plain_base;
        }
        if (known != 0 || problem->order < SMALLEST_TABLE_ORDER || !has_only_signs(base, problem->order)) return;
        patterns = static_cast<int64_t*>(malloc(size_t(problem->order * groups(problem->order)) * sizeof(int64_t)));
        if (patterns == nullptr) return fail();
        find_patterns(base, problem->order, TABLE_LANES<Real>, patterns);
    }

    void lay_out_signs() {
        if (problem->signs == nullptr) return;
        int64_t length = problem->row_length, all = length + PIECE + BLOCK<Real>;
        signs = static_cast<Real*>(malloc(size_t(all) * sizeof(Real)));
        if (signs == nullptr) return fail();
        const Real* given = static_cast<const Real*>(problem->signs);
        for (int64_t i = 0; i < all; i++) signs[i] = i < length ? plain_nan(given[i]) : signs[i - length];
    }

    // What a transform reads and writes.
    struct Place {
        const Memory* x;
        Memory* out;
        const Real* signs;
        const Memory* next;  // the following transform, if it is worth fetching ahead, else null
    };

    static int64_t offset(const Problem& problem, const int64_t* strides, int64_t row) {
        int64_t sum = 0;
        for (int64_t d = problem.dimensions - 1; d >= 0; d--) {
            sum += row % problem.shape[d] * strides[d];
            row /= problem.shape[d];
        }
        return sum;
    }

    int64_t x_offset(int64_t row) const { return dense ? row * problem->row_length : offset(*problem, problem->x_strides, row); }

    Place row(int64_t index) const {
        if (dense) return {x + index * problem->row_length, out + index * problem->row_length, signs, nullptr};
        return {x + offset(*problem, problem->x_strides, index), out + offset(*problem, problem->out_strides, index), signs, nullptr};
    }

    Place transform(int64_t index) const {
        int64_t start = index % blocks * size;
        Place place = row(index / blocks);
        return {place.x + start, place.out + start, signs_at(start), fetched ? place.x + start + size : nullptr};
    }

    const Real* signs_at(int64_t element) const { return signs == nullptr ? nullptr : signs + element; }

    // Calls body(source), body(sink) or body(source, sink) with those of a place.
    template <class Body> void with_source(const Place& place, Body body) const {
        if (signs != nullptr && !problem->signs_after) {
            body(Source<E, true>{place.x, place.signs, place.next});
        } else {
            body(Source<E, false>{place.x, nullptr, place.next});
        }
    }
    template <class Body> void with_sink(const Place& place, Body body) const {
        if (signs != nullptr && problem->signs_after) {
            body(Sink<E, true, false>{place.out, place.signs, scale});
        } else if (streamed && reinterpret_cast<uintptr_t>(place.out) % VECTOR_BYTES == 0) {
            body(Sink<E, false, true>{place.out, nullptr, scale});
        } else {
            body(Sink<E, false, false>{place.out, nullptr, scale});
        }
    }
    template <class Body> void with_ends(const Place& place, Body body) const {
        if (signs != nullptr && !problem->signs_after) {
            body(Source<E, true>{place.x, place.signs, place.next}, Sink<E, false, false>{place.out, nullptr, scale});
        } else {
            with_sink(place, [&](const auto& to) { body(Source<E, false>{place.x, nullptr, place.next}, to); });
        }
    }

    // Transforms runs below a block. Signs are those of the first element and reach a block beyond the last.
    void short_rows(const Place& place, int64_t elements) const {
        int64_t done = elements / BLOCK<Real> * BLOCK<Real>;
        alignas(VECTOR_BYTES) Memory rest[BLOCK<Real>];
        with_ends(place, [&](const auto& from, const auto& to) { short_runs(from, elements, problem->log2, to, to.into(rest, done)); });
        if (elements > done) __builtin_memcpy(place.out + done, rest, (elements - done) * sizeof(Memory));
    }

    // The epilogue for elements that were computed in memory of their own, which must reach a vector beyond them.
    void finish(const Real* row, const Place& place, int64_t elements) const {
        constexpr int64_t lanes = Work<Real>::LANES;
        int64_t done = elements / lanes * lanes;
        alignas(VECTOR_BYTES) Memory rest[lanes];
        with_sink(place, [&](const auto& to) {
            for (int64_t i = 0; i < done; i += lanes) to.store(i, load_bits<typename E::V>(row + i));
            if (done < elements) to.into(rest, done).store(0, load_bits<typename E::V>(row + done));
        });
        if (done < elements) __builtin_memcpy(place.out + done, rest, (elements - done) * sizeof(Memory));
    }

    // Elements that multiply needs beside the panel.
    int64_t product_elements() const {
        return known != 0 ? known * COLUMNS<Real> : patterns != nullptr ? product_scratch<Real>(problem->order) : 0;
    }

    // Multiplies the COLUMNS columns of a panel without gaps; the results are in `table` or in `results`, whichever is returned.
    Real* multiply_panel(const Real* panel, Real* table, Real* results) const {
        if (known == 0) {
            multiply(panel, COLUMNS<Real>, table, Keep<Real>{results}, 0, COLUMNS<Real>);
            return results;
        }
        for (int64_t c = 0; c < COLUMNS<Real>; c += 2 * Work<Real>::LANES) known_pair(known, panel + c, COLUMNS<Real>, table + c);
        return table;
    }

    // Multiplies COLUMNS columns by the base matrix. `table` has room for product_elements.
    template <class To> void multiply(const Real* panel, int64_t pitch, Real* table, const To& to, int64_t o, int64_t to_pitch) const {
        if (known != 0) {
            known_panel(known, panel, pitch, table, to, o, to_pitch);
        } else if (patterns != nullptr) {
            sign_panel<Real>(patterns, problem->order, panel, pitch, table, to, o, to_pitch);
        } else {
            product_panel<Real>(base, problem->order, panel, pitch, to, o, to_pitch);
        }
    }
};

}  // namespace HADACORE_ISA
