// The product with a base matrix: out[i][c] = sum over p of base[i][p] * rows[p][c], p upwards whatever the tile, so
// that an element's bits depend on its column alone.
#pragma once
#include "butterflies.hpp"

namespace HADACORE_ISA {

// Columns of a panel: what one tile of accumulators is wide.
template <class R> constexpr int64_t COLUMNS = PRODUCT_VECTORS * Work<R>::LANES;

template <int ROWS, class R, class To>
INLINE void product_tile(const R* base, int64_t order, const R* rows, int64_t pitch, const To& to, int64_t o, int64_t to_pitch) {
    using V = typename Work<R>::Vector;
    V sums[ROWS][PRODUCT_VECTORS] = {};
    for (int64_t p = 0; p < order; p++) {
        V values[PRODUCT_VECTORS];
#pragma GCC unroll 8
        for (int c = 0; c < PRODUCT_VECTORS; c++) values[c] = load_bits<V>(rows + p * pitch + c * Work<R>::LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            V entry = broadcast<V>(base[i * order + p]);
#pragma GCC unroll 8
            for (int c = 0; c < PRODUCT_VECTORS; c++) sums[i][c] = multiply_add(entry, values[c], sums[i][c]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 8
        for (int c = 0; c < PRODUCT_VECTORS; c++) to.store(o + i * to_pitch + c * Work<R>::LANES, sums[i][c]);
    }
}

// All rows of COLUMNS columns: `rows` points at the first of them, `o` is where they go in `to`.
template <class R, class To>
INLINE void product_panel(const R* base, int64_t order, const R* rows, int64_t pitch, const To& to, int64_t o, int64_t to_pitch) {
    int64_t i = 0;
    for (; i + PRODUCT_ROWS <= order; i += PRODUCT_ROWS) {
        product_tile<PRODUCT_ROWS, R>(base + i * order, order, rows, pitch, to, o + i * to_pitch, to_pitch);
    }
    for (; i < order; i++) product_tile<1, R>(base + i * order, order, rows, pitch, to, o + i * to_pitch, to_pitch);
}

// Single floats are exchanged by squares of 4 x 4, as many at a time as a vector has quads (measured: 12 in bfloat16 1.19 -> 0.92
// ms against one at a time).
typedef float Quad __attribute__((vector_size(16)));
typedef float TwoQuads __attribute__((vector_size(32)));
constexpr int QUADS = Work<float>::LANES / 4;

// Quads of elements that are four pitches apart.
template <class V = FloatVector> INLINE V gather_quads(const float* from, int64_t pitch) {
    if constexpr (sizeof(V) == sizeof(Quad)) {
        return load_bits<V>(from);
    } else {
        TwoQuads low = __builtin_shufflevector(load_bits<Quad>(from), load_bits<Quad>(from + 4 * pitch), 0, 1, 2, 3, 4, 5, 6, 7);
        if constexpr (sizeof(V) == sizeof(TwoQuads)) {
            return (V)low;
        } else {
            TwoQuads high = __builtin_shufflevector(load_bits<Quad>(from + 8 * pitch), load_bits<Quad>(from + 12 * pitch), 0, 1, 2, 3, 4, 5, 6, 7);
            return (V)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        }
    }
}

template <class E> INLINE FloatVector gather_quads_as(const typename E::Memory* from, int64_t pitch) {
    if constexpr (sizeof(*from) == sizeof(float)) {
        return gather_quads(from, pitch);
    } else {
        return E::exact(gather_runs(from, 4 * pitch));
    }
}

template <int Q = 0> INLINE void scatter_quads(FloatVector v, float* to, int64_t pitch) {
    if constexpr (Q < QUADS) {
        store_bits(to + 4 * Q * pitch, Quad(__builtin_shufflevector(v, v, 4 * Q, 4 * Q + 1, 4 * Q + 2, 4 * Q + 3)));
        scatter_quads<Q + 1>(v, to, pitch);
    }
}

// Each quad from the same quads of a, lanes 0 to 3, and b, 4 to 7.
template <int I, int J, int K, int L> INLINE FloatVector mix_quads(FloatVector a, FloatVector b) {
#define LANE(q, i) ((i) < 4 ? 4 * (q) + (i) : 4 * (QUADS + (q)) + (i)-4)
#define QUAD(q) LANE(q, I), LANE(q, J), LANE(q, K), LANE(q, L)
    if constexpr (QUADS == 4) {
        return __builtin_shufflevector(a, b, QUAD(0), QUAD(1), QUAD(2), QUAD(3));
    } else if constexpr (QUADS == 2) {
        return __builtin_shufflevector(a, b, QUAD(0), QUAD(1));
    } else {
        return __builtin_shufflevector(a, b, QUAD(0));
    }
#undef QUAD
#undef LANE
}

// Transposes the squares that four vectors hold, a row of each in each.
INLINE void transpose_quads(FloatVector (&v)[4]) {
    FloatVector low = mix_quads<0, 4, 1, 5>(v[0], v[1]), high = mix_quads<2, 6, 3, 7>(v[0], v[1]);
    FloatVector other_low = mix_quads<0, 4, 1, 5>(v[2], v[3]), other_high = mix_quads<2, 6, 3, 7>(v[2], v[3]);
    v[0] = mix_quads<0, 1, 4, 5>(low, other_low);
    v[1] = mix_quads<2, 3, 6, 7>(low, other_low);
    v[2] = mix_quads<0, 1, 4, 5>(high, other_high);
    v[3] = mix_quads<2, 3, 6, 7>(high, other_high);
}

// Elements of transforms one after the other, a multiple of LANES of them and of an order that is one of 4, to a panel.
template <class E> static void gather_elements(float* panel, const typename E::Memory* run, int64_t together, int64_t order) {
    for (int64_t g = 0; g < together; g += Work<float>::LANES) {
        for (int64_t i = 0; i < order; i += 4) {
            FloatVector v[4];
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) v[r] = gather_quads_as<E>(run + (g + r) * order + i, order);
            transpose_quads(v);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) store_bits(panel + (i + r) * COLUMNS<float> + g, v[r]);
        }
    }
}

// And back.
static void scatter_elements(const float* panel, float* run, int64_t together, int64_t order) {
    for (int64_t g = 0; g < together; g += Work<float>::LANES) {
        for (int64_t i = 0; i < order; i += 4) {
            FloatVector v[4];
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) v[r] = load_bits<FloatVector>(panel + (i + r) * COLUMNS<float> + g);
            transpose_quads(v);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) scatter_quads(v[r], run + (g + r) * order + i, order);
        }
    }
}

// Between transforms one after the other and a panel in which their sub-rows of LENGTH elements stand side by side.
template <bool BACK, int64_t LENGTH, class R> static void exchange_sub_rows_of(R* panel, R* run, int64_t together, int64_t order) {
    int64_t size = order * LENGTH, whole = 0;
    if constexpr (LENGTH == 1 && sizeof(R) == 4) {
        // Hadamard orders are multiples of 4, other bases need not be.
        whole = order % 4 == 0 ? together / Work<R>::LANES * Work<R>::LANES : 0;
        if constexpr (BACK) {
            scatter_elements(panel, run, whole, order);
        } else {
            gather_elements<Float32>(panel, run, whole, order);
        }
    }
    for (int64_t g = whole; g < together; g++) {
        for (int64_t i = 0; i < order; i++) {
            R *in_panel = panel + i * COLUMNS<R> + g * LENGTH, *in_run = run + g * size + i * LENGTH;
            __builtin_memcpy(BACK ? in_run : in_panel, BACK ? in_panel : in_run, LENGTH * sizeof(R));
        }
    }
}

// The same for a length known at run time, a power of two below COLUMNS.
template <bool BACK, class R, int64_t LENGTH = 1> static void exchange_sub_rows(R* panel, R* run, int64_t together, int64_t order, int64_t length) {
    if (length == LENGTH) {
        exchange_sub_rows_of<BACK, LENGTH>(panel, run, together, order);
    } else if constexpr (2 * LENGTH < COLUMNS<R>) {
        exchange_sub_rows<BACK, R, 2 * LENGTH>(panel, run, together, order, length);
    }
}

// A matrix of +1 and -1 needs no multiplications, and a third of the additions: the columns of `rows` are taken three
// rows at a time, all eight sums +-x0 +-x1 +-x2 are put into a table, and each result adds up one entry for each three.
// A pattern is the distance of the entry in the table.

constexpr int GROUP = 3, ENTRIES = 8, SIGN_ROWS = 4, SIGN_VECTORS = 2;
template <class R> constexpr int64_t TABLE_LANES = SIGN_VECTORS * Work<R>::LANES;
static_assert(PRODUCT_VECTORS % SIGN_VECTORS == 0, "a panel is a whole number of tables wide");

INLINE int64_t groups(int64_t order) { return (order + GROUP - 1) / GROUP; }
template <class R> INLINE int64_t product_scratch(int64_t order) { return groups(order) * ENTRIES * TABLE_LANES<R>; }

template <class R> static bool has_only_signs(const R* base, int64_t order) {
    if (base == nullptr) return false;
    for (int64_t i = 0; i < order * order; i++) {
        if (base[i] != 1 && base[i] != -1) return false;
    }
    return true;
}

// The entry of signs (+, s1, s2) is number 2 [s1 < 0] + [s2 < 0]; entry 4 + e is minus entry e.
template <class R> static void find_patterns(const R* base, int64_t order, int64_t lanes, int64_t* patterns) {
    for (int64_t i = 0; i < order; i++) {
        for (int64_t g = 0; g < groups(order); g++) {
            const R* entry = base + i * order + g * GROUP;
            int64_t left = order - g * GROUP;
            bool negative = entry[0] < 0;
            bool second = left > 1 && (entry[1] < 0) != negative, third = left > 2 && (entry[2] < 0) != negative;
            *patterns++ = (g * ENTRIES + 4 * negative + 2 * second + third) * lanes;
        }
    }
}

template <class R> INLINE void sign_table(const R* rows, int64_t order, int64_t pitch, R* table) {
    using V = typename Work<R>::Vector;
    for (int64_t p = 0; p < order; p += GROUP, table += ENTRIES * TABLE_LANES<R>) {
#pragma GCC unroll 8
        for (int c = 0; c < TABLE_LANES<R>; c += Work<R>::LANES) {
            V x0 = load_bits<V>(rows + p * pitch + c), x1 = {}, x2 = {};
            if (p + 1 < order) x1 = load_bits<V>(rows + (p + 1) * pitch + c);
            if (p + 2 < order) x2 = load_bits<V>(rows + (p + 2) * pitch + c);
            V sum = x0 + x1, difference = x0 - x1;
            V entries[4] = {sum + x2, sum - x2, difference + x2, difference - x2};
#pragma GCC unroll 8
            for (int e = 0; e < 4; e++) {
                store_bits(table + e * TABLE_LANES<R> + c, entries[e]);
                store_bits(table + (4 + e) * TABLE_LANES<R> + c, -entries[e]);
            }
        }
    }
}

template <int ROWS, class R, class To>
INLINE void sign_tile(const int64_t* patterns, int64_t count, const R* table, const To& to, int64_t o, int64_t to_pitch) {
    using V = typename Work<R>::Vector;
    V sums[ROWS][SIGN_VECTORS] = {};
    for (int64_t g = 0; g < count; g++) {
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            const R* entry = table + patterns[i * count + g];
#pragma GCC unroll 8
            for (int c = 0; c < SIGN_VECTORS; c++) sums[i][c] += load_bits<V>(entry + c * Work<R>::LANES);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 8
        for (int c = 0; c < SIGN_VECTORS; c++) to.store(o + i * to_pitch + c * Work<R>::LANES, sums[i][c]);
    }
}

// product_panel for a matrix of signs, with a table of product_scratch elements.
template <class R, class To>
INLINE void sign_panel(const int64_t* patterns, int64_t order, const R* rows, int64_t pitch, R* table, const To& to, int64_t o, int64_t to_pitch) {
    int64_t count = groups(order);
    for (int64_t c = 0; c < COLUMNS<R>; c += TABLE_LANES<R>) {
        sign_table(rows + c, order, pitch, table);
        int64_t i = 0;
        for (; i + SIGN_ROWS <= order; i += SIGN_ROWS) {
            sign_tile<SIGN_ROWS>(patterns + i * count, count, table, to, o + c + i * to_pitch, to_pitch);
        }
        for (; i < order; i++) sign_tile<1>(patterns + i * count, count, table, to, o + c + i * to_pitch, to_pitch);
    }
}

}  // namespace HADACORE_ISA
