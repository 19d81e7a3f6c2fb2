// base_store.cuh: where the results of sizes m * 2^k go, and the plain epilogue's way there.

// Where an element of a unit is from its start, for rows that follow one another. Additive over columns without common bits.
__device__ __forceinline__ constexpr int distance(int i, int column) {
  return (column >> LOG2_SIZE) * kSize + i * kColumns + (column & (kColumns - 1));
}

static_assert(!PAIRED || (kNarrow && !kPackedUnits && !SIGNS && !STRIDED && !ENCODING), "neighbours exchange runs of 4, of rows that follow one another");

#if !ENCODING
// The results of a lane for one M tile: where they go, and which of them exist.
struct Target {
  char* first;    // of row i, at the lane's column, for rows that follow one another
  int i, column;  // likewise
  int rows_left;  // from the unit's first row to the last

  __device__ __forceinline__ Target(const Rows& r, i64 unit, int first_i, int lane_column) {
    const i64 left = r.rows - unit * kUnitRows;
    rows_left = left < kUnitRows ? (int)left : kUnitRows;
    i = first_i;
    column = lane_column;
    first = r.y + (unit * kUnitRows * kSize + distance(i, column)) * kElementBytes;
  }

  __device__ __forceinline__ bool has_row(int half) const { return i + half < ORDER; }

#if PAIRED
  // Two runs of 4 elements, 16 columns apart, of a lane and its neighbour (lane bit 0) become one of 8 of each, so that four lanes store 64
  // bytes side by side: the even lane gets the lower columns. All lanes must be here, whether they have the row or not.
  __device__ __forceinline__ void store_with_neighbour(int half, int upper, const float (&value)[kVectorElements], float scale, int lane) const {
    const SignBits<2> none = {};
    u32 lower[2], higher[2], other[2];
    scale_and_round(lower, reinterpret_cast<const float(&)[4]>(value[0]), scale, none, 0);
    scale_and_round(higher, reinterpret_cast<const float(&)[4]>(value[4]), scale, none, 0);
    const bool even = lane % 2 == 0;
#pragma unroll
    for (int w = 0; w < 2; ++w) other[w] = shfl_sync_bfly(even ? higher[w] : lower[w], 1u);
    if (!has_row(half)) return;
    char* const target = first + distance(half, upper) * kElementBytes + (even ? 0 : 24);  // 16 columns on, and 4 back
    st_global_v4(target, even ? make_uint4(lower[0], lower[1], other[0], other[1]) : make_uint4(other[0], other[1], higher[0], higher[1]));
  }
#endif

  // COUNT elements that a lane has side by side, `half` rows, which has_row(), and `upper` columns on.
  template <int COUNT>
  __device__ __forceinline__ void store(const Rows& r, i64 unit, int half, int upper, const float (&value)[COUNT], float scale) const {
    constexpr int kWords = COUNT * kElementBytes / 4;
    if (!kRowsExist && ((column + upper) >> LOG2_SIZE) >= rows_left) return;
    const i64 row = row_of(unit, column + upper);
    u32 word[kWords];
    SignBits<kWords> sign_bits;
    if (SIGNS == SIGNS_AFTER) {
      sign_bits.clear();
      if (kWords == 4) {
        sign_bits.insert_vector(0, signs_of_place(r, unit, {i + half, (column + upper) / kVectorElements}));
      } else {
        const uint2 signs = ld_global_v2(sign_of(r, row, offset_in_row(i + half, column + upper)));
        sign_bits.insert(0, signs.x);
        sign_bits.insert(1, signs.y);
      }
    }
    scale_and_round(word, value, scale, sign_bits, 0);
    char* target = STRIDED ? element_of_y(r, row, offset_in_row(i + half, column + upper)) : first + distance(half, upper) * kElementBytes;
    if (kGathered) {
#pragma unroll
      for (int e = 0; e < COUNT; e += kPiece) {
        const i64 row_of_piece = row_of(unit, column + upper + e);
        if (row_of_piece >= r.rows) continue;
        target = element_of_y(r, row_of_piece, offset_in_row(i + half, column + upper + e));
        const int w = e * kElementBytes / 4;
        if (kPieceBytes == 8) st_global_v2(target, make_uint2(word[w], word[(w + 1) % kWords]));
        else if (kPieceBytes == 4) st_global_u32(target, word[w]);
        else st_global_u16(target, word[w] >> (16 * (e % 2)));
      }
    } else if (kWords == 4) {
      st_global_v4(target, make_uint4(word[0], word[1], word[2 % kWords], word[3 % kWords]));
    } else {
      st_global_v2(target, make_uint2(word[0], word[1]));
    }
  }
};
#endif
