// The product with the matrices that sizes of today's models use most, orders 12, 20 and 28: their signs are constants, so
// that sums stay in registers and nothing is looked up.
//
// Rows of the panel are taken four at a time: the eight sums x0 +-x1 +-x2 +-x3 take 12 additions, and each result adds or
// subtracts one of them: 5, 7 and 9 additions an element, instead of as many products as the order.
#pragma once
#include "product.hpp"

namespace HADACORE_ISA {

// Bit p of a row's word is set where its entry p is -1. Those of hadacore.hadamard_matrix (Paley I for 11, 19 and 27), all
// symmetric, so that they serve the inverse too; tests/test_cpu_native.py compares them.
template <int ORDER> struct KnownBase;
template <> struct KnownBase<12> {
    static constexpr uint32_t ROWS[] = {0x000, 0xb8a, 0xdc4, 0x6e2, 0xb70, 0x5b8, 0x2dc, 0x16e, 0x8b6, 0xc5a, 0xe2c, 0x716};
};
template <> struct KnownBase<20> {
    static constexpr uint32_t ROWS[] = {0x00000, 0x9ea1a, 0xcf50c, 0x67a86, 0xb3d42, 0xd9ea0, 0x6cf50, 0x367a8, 0x1b3d4, 0x0d9ea,
                                        0x86cf4, 0x4367a, 0xa1b3c, 0x50d9e, 0xa86ce, 0xd4366, 0xea1b2, 0xf50d8, 0x7a86c, 0x3d436};
};
template <> struct KnownBase<28> {
    static constexpr uint32_t ROWS[] = {
        0x0000000, 0xb5c887a, 0xdaa447c, 0x6f13076, 0x76a928e, 0xbb14b0e, 0xcdc258e, 0xaec53d0, 0xd722be0, 0x79987b0,
        0x1edae44, 0x1f6d522, 0x1db7898, 0xa3bb548, 0xc3dd8a4, 0x63e6e12, 0xf457628, 0xf86b914, 0xec3ccc2, 0x910f6d6,
        0x488fb6a, 0x260edbc, 0x5251dda, 0x2961eec, 0x84b1f36, 0x8a7a2ba, 0x457c35c, 0x30f61e6};
};

template <int ORDER, class R> static bool is_known_base(const R* base) {
    for (int i = 0; i < ORDER; i++) {
        for (int p = 0; p < ORDER; p++) {
            if (base[i * ORDER + p] != ((KnownBase<ORDER>::ROWS[i] >> p) & 1 ? -1 : 1)) return false;
        }
    }
    return true;
}

// The order, if a base matrix is one of them, else 0.
template <class R> static int64_t known_order(const R* base, int64_t order) {
    if (base == nullptr) return 0;
    bool known = order == 12   ? is_known_base<12>(base)
                 : order == 20 ? is_known_base<20>(base)
                 : order == 28 ? is_known_base<28>(base)
                               : false;
    return known ? order : 0;
}

// Adds one of the eight sums of four rows of the panel, the GROUP-th four, to the results that it is part of.
template <int ORDER, int GROUP, int ENTRY, int I = 0, class V> INLINE void add_entry(V entry, V* sums) {
    if constexpr (I < ORDER) {
        constexpr uint32_t signs = (KnownBase<ORDER>::ROWS[I] >> (4 * GROUP)) & 15;
        constexpr bool negative = signs & 1;
        if constexpr ((negative ? ~signs & 15 : signs) >> 1 == ENTRY) {
            V& sum = sums[I];
            if constexpr (GROUP == 0) {
                sum = negative ? -entry : entry;
            } else if constexpr (I % 2 == 0) {
                sum = negative ? sum - entry : sum + entry;
            } else {
                // The same as a multiply-add, one rounding: CPUs that add and multiply in different units use both (Zen 4).
                sum = multiply_add(entry, broadcast<V>(typename LaneOf<V>::Type(negative ? -1 : 1)), sum);
            }
        }
        add_entry<ORDER, GROUP, ENTRY, I + 1>(entry, sums);
    }
}

// One entry at a time: eight at once beside the sums of order 28 have no registers.
template <int ORDER, int GROUP = 0, class R, class V> INLINE void known_sums(const R* rows, int64_t pitch, V* sums) {
    if constexpr (4 * GROUP < ORDER) {
        V x[4];
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) x[p] = load_bits<V>(rows + (4 * GROUP + p) * pitch);
        V p = x[0] + x[1], q = x[0] - x[1], r = x[2] + x[3], s = x[2] - x[3];
        // Bits 0 to 2 of an entry's number: whether x1, x2, x3 are subtracted.
        add_entry<ORDER, GROUP, 0>(p + r, sums);
        add_entry<ORDER, GROUP, 6>(p - r, sums);
        add_entry<ORDER, GROUP, 2>(p - s, sums);
        add_entry<ORDER, GROUP, 4>(p + s, sums);
        add_entry<ORDER, GROUP, 1>(q + r, sums);
        add_entry<ORDER, GROUP, 7>(q - r, sums);
        add_entry<ORDER, GROUP, 3>(q - s, sums);
        add_entry<ORDER, GROUP, 5>(q + s, sums);
        known_sums<ORDER, GROUP + 1>(rows, pitch, sums);
    }
}

// All results of one vector of columns. Of order 28 some sums have no register: two halves, which have, would make the
// entries twice (measured: 14336 in bfloat16 2.02 against 2.09 ms).
template <int ORDER, class R> static __attribute__((noinline)) void known_results(const R* rows, int64_t pitch, R* results) {
    typename Work<R>::Vector sums[ORDER];
    known_sums<ORDER>(rows, pitch, sums);
#pragma GCC unroll 32
    for (int i = 0; i < ORDER; i++) store_bits(results + i * COLUMNS<R>, sums[i]);
}

// Results of two neighbouring vectors of columns.
template <class R> INLINE void known_pair(int64_t order, const R* rows, int64_t pitch, R* results) {
    for (int64_t v = 0; v < 2 * Work<R>::LANES; v += Work<R>::LANES) {
        if (order == 12) {
            known_results<12>(rows + v, pitch, results + v);
        } else if (order == 20) {
            known_results<20>(rows + v, pitch, results + v);
        } else {
            known_results<28>(rows + v, pitch, results + v);
        }
    }
}

// product_panel for a matrix of known_order, through order * COLUMNS elements of `results`. A line or two of columns are
// stored before the next are computed: stores of a whole panel in a row would wait for memory (measured: 14336 in float32
// 2.4 -> 3.2 ms).
template <class R, class To>
INLINE void known_panel(int64_t order, const R* rows, int64_t pitch, R* results, const To& given_to, int64_t o, int64_t to_pitch) {
    To to = given_to;  // a copy, which stays in registers
    using V = typename Work<R>::Vector;
    constexpr int64_t lanes = Work<R>::LANES;
    for (int64_t c = 0; c < COLUMNS<R>; c += 2 * lanes) {
        known_pair(order, rows + c, pitch, results + c);
        for (int64_t i = 0; i < order; i++) {
            const R* result = results + i * COLUMNS<R> + c;
            to.store_pair(o + i * to_pitch + c, load_bits<V>(result), load_bits<V>(result + lanes));
        }
    }
}

}  // namespace HADACORE_ISA
