// panel.cuh: rows as panels, the B operand of the products with the base matrix.
//
// A row of size m * 2^k is a matrix of m rows i and 2^k columns j. A group is 64 columns of it (32 for float32): 8 chunks
// of one 16-byte vector for each i. A unit is what one set of warps works on: a row with all its groups, or, below one
// group's columns, the consecutive rows that fill one group side by side. Column bits of a group, c = 5..0 for 16-bit
// elements (4..0 for float32):
//   chunk = the upper three,   position in the vector = the others
// Column n of a B fragment is lane >> 2; that lane holds chunk 4 (n & 1) + (n >> 1), so that a lane's results come out as
// whole vectors, four of them next to one another (base_rows.cu).
//
// STAGES = 0: every warp loads its fragments from global memory. 1: the block copies its units to shared memory first.
// 2: it goes on to other units, and copies the next ones while it works.
// In shared memory vector (i, chunk) of a group lies in one of the 8 slots of i. For mma.sync the slot is
// chunk ^ (i / 2 % 4): the lanes of a quarter warp read four i, 2 apart, of two chunks, 4 apart, and so touch every bank
// once. For wgmma it is chunk ^ (i % 8), the 128-byte swizzle that the instruction knows.

constexpr int kColumns = 1 << LOG2_SIZE;
constexpr int kLog2Vector = kSixteenBit ? 3 : 2;
constexpr int kLog2Group = 3 + kLog2Vector;
constexpr bool kPackedUnits = LOG2_SIZE < kLog2Group;
constexpr int kGroups = kPackedUnits ? 1 : kColumns >> kLog2Group;
constexpr int kUnitRows = kPackedUnits ? (1 << kLog2Group) / kColumns : 1;
constexpr bool kGathered = LOG2_SIZE < kLog2Vector;  // a vector holds elements of several rows, and is no vector in memory
constexpr int kPiece = kGathered ? kColumns : kVectorElements;  // elements of a vector that are side by side in memory
constexpr int kPieceBytes = kPiece * kElementBytes;             // 2, 4 or 8 where vectors are gathered
constexpr int kThreads = 32 * ORDER_WARPS * UNITS;
constexpr int kResults = 4 * kVectorElements;  // accumulators of a lane for one M tile and one group
// Registers of a thread beside the accumulators of its products.
constexpr int kMostRegisters = 65536 / (kThreads * MIN_BLOCKS) < 255 ? 65536 / (kThreads * MIN_BLOCKS) : 255;
constexpr int kSpareRegisters = kMostRegisters - kResults * WARP_TILES * kGroups;
constexpr int kChunks = 8 * kGroups;  // of a unit
constexpr u32 kGroupBytes = 128 * kPaddedOrder;
constexpr int kPanels = PROLOGUE ? 2 : 1;
constexpr bool kHasSecond = kGated || PROLOGUE == RMS_NORM_RESIDUAL;
constexpr u32 kPanelBytes = kGroups * kGroupBytes;
constexpr u32 kUnitBytes = kPanels * kPanelBytes;
static_assert(!PROLOGUE || (!kRotary && !STRIDED && !kGathered && STAGES > 0), "prologues that panels can have");
#if PROLOGUE
static_assert(!kNormalises || (kUnitRows == 1 && ROW_ELEMENTS == kSize), "squares are summed over a unit");
#endif
constexpr u32 kStageBytes = UNITS * kUnitBytes;
constexpr bool kWideProduct = WGMMA && WIDE;  // all column bits of a group by wgmma
constexpr bool kNarrow = WGMMA && !WIDE;      // a lane's results are runs of 4 elements only
static_assert(!kWideProduct || !kPackedUnits, "all columns of a group are of one row");
// What shared memory holds after the stages, from its start: the B matrix of a wide product, then sums of squares.
constexpr u32 kColumnMatrix = STAGES * kStageBytes;
constexpr u32 kSquares = kColumnMatrix + (kWideProduct ? 64 * 64 * (kColumnsToTf32 ? 4 : 2) : 0);

// A vector of a unit: its chunk among all of the unit's, and its i.
struct Place {
  int i, chunk;
};

__device__ __forceinline__ u32 panel_offset(const Place& place) {
  const u32 slot = (place.chunk & 7) ^ (WGMMA ? place.i & 7 : (place.i >> 1) & 3);
  return (place.chunk >> 3) * kGroupBytes + place.i * 128 + slot * 16;
}

// Which row an element of a unit is in, and where in it.
__device__ __forceinline__ i64 row_of(i64 unit, int column) { return unit * kUnitRows + (column >> LOG2_SIZE); }
__device__ __forceinline__ int offset_in_row(int i, int column) { return i * kColumns + (column & (kColumns - 1)); }

__device__ __forceinline__ const char* element_of_x(const Rows& r, i64 row, int offset) {
#if PROLOGUE
  return r.x + (start_of_both(row) + offset) * kElementBytes;
#else
  return r.x + (row_start(r, row, r.x_outer, r.x_inner) + offset) * kElementBytes;
#endif
}

__device__ __forceinline__ char* element_of_y(const Rows& r, i64 row, int offset) {
  return r.y + (row_start(r, row, r.y_outer, r.y_inner) + offset) * kElementBytes;
}

__device__ __forceinline__ const char* sign_of(const Rows& r, i64 row, int offset) {
  return r.signs + ((row % r.sign_rows) * kSize + offset) * kElementBytes;
}

// The elements of a place, piece by piece, each at the address that `address(row, offset)` gives; those of rows that do not
// exist are 0.
template <typename Address>
__device__ __forceinline__ uint4 gather(const Rows& r, i64 unit, const Place& place, Address address) {
  u32 word[4] = {0, 0, 0, 0};
#pragma unroll
  for (int e = 0; e < kVectorElements; e += kPiece) {
    const int column = place.chunk * kVectorElements + e, w = e * kElementBytes / 4;
    const i64 row = row_of(unit, column);
    if (row >= r.rows) continue;
    const char* source = address(row, offset_in_row(place.i, column));
    if (kPieceBytes == 8) {
      const uint2 piece = ld_global_v2(source);
      word[w] = piece.x;
      word[(w + 1) % 4] = piece.y;
    } else if (kPieceBytes == 4) {
      word[w] = ld_global_u32(source);
    } else {
      word[w] |= ld_global_u16(source) << (16 * (e % 2));
    }
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

__device__ __forceinline__ uint4 signs_of_place(const Rows& r, i64 unit, const Place& place) {
  if (kGathered) return gather(r, unit, place, [&](i64 row, int offset) { return sign_of(r, row, offset); });
  const int column = place.chunk * kVectorElements;
  return ld_global_v4(sign_of(r, row_of(unit, column), offset_in_row(place.i, column)));
}

// The vector of a place in global memory, signs applied; 0 where there is none.
__device__ __forceinline__ uint4 load_place(const Rows& r, i64 unit, const Place& place) {
  const int column = place.chunk * kVectorElements;
  const i64 row = row_of(unit, column);
  if (place.i >= ORDER || row >= r.rows) return make_uint4(0, 0, 0, 0);
  uint4 v;
  if (kGathered) v = gather(r, unit, place, [&](i64 row_of_element, int offset) { return element_of_x(r, row_of_element, offset); });
  else v = ld_global_v4(element_of_x(r, row, offset_in_row(place.i, column)));
  return SIGNS == SIGNS_BEFORE ? flip_signs(v, signs_of_place(r, unit, place)) : v;
}

// For RMSNorm, the sums of squares of a unit, for two stages in turn. A sum is of those chunks of an i that the lanes of one warp
// hold, all of them but where float32 has 256 columns.
constexpr int kChunksOfSum = kChunks < 32 ? kChunks : 32;
constexpr int kSums = ORDER * (kChunks / kChunksOfSum);
constexpr u32 kSquaresBytes = kNormalises ? UNITS * kSums * 4 : 0;  // of a stage

// A block has work for its first unit, so a unit of one row that is alone in its block is always there.
constexpr bool kRowsExist = UNITS == 1 && kUnitRows == 1;

// Calls `visit(unit, place, address, source, exists)` for the vectors of a stage that this thread copies; there is no row where
// `exists` is false, and no vector in memory where they are gathered. A thread keeps its chunk, so that both addresses advance
// by constants. TOGETHER: all threads visit as often, some of them places past the last i, which do not exist.
template <bool TOGETHER, typename Visit>
__device__ __forceinline__ void each_own_vector(const Rows& r, i64 first_unit, u32 stage, Visit visit) {
  constexpr int kAcross = kChunks < kThreads ? kChunks : kThreads;
  constexpr int kAtOnce = kThreads / kAcross;  // i that the block copies at a time
  constexpr int kTimes = (ORDER + kAtOnce - 1) / kAtOnce;
  // Where registers are few the thread's number is read for every stage, so that what follows from it is not kept over the rest of
  // the loop: 36864 spilled 8 bytes, 29568 with signs 96.
  const u32 thread = !ENCODING && kSpareRegisters < (HALVES ? 66 : 50) ? mov_u32_tid_x() : threadIdx.x;
  const int first_i = thread / kAcross;
  if (kThreads % kAcross != 0 && first_i >= kAtOnce) return;
#pragma unroll 1
  for (int slot = 0; slot < UNITS; ++slot) {
#pragma unroll
    for (int chunk = thread % kAcross; chunk < kChunks; chunk += kAcross) {
      const i64 unit = first_unit + slot;
      const int column = chunk * kVectorElements;
      const i64 row = row_of(unit, column);
      const bool exists = kRowsExist || row < r.rows;
      const char* source = kGathered ? r.x : element_of_x(r, exists ? row : 0, offset_in_row(first_i, column));
#pragma unroll (kTimes <= 16 ? kTimes : 8)
      for (int n = 0; n < kTimes; ++n) {
        const Place place = {first_i + n * kAtOnce, chunk};
        const bool in_panel = (n + 1) * kAtOnce <= ORDER || place.i < ORDER;
        if (TOGETHER || in_panel)
          visit(unit, place, stage + slot * kUnitBytes + panel_offset(place), source + n * (kAtOnce * kColumns * kElementBytes), exists && in_panel);
      }
    }
  }
}

// Starts to copy a vector; zeros if there is none.
__device__ __forceinline__ void copy_vector(u32 address, const char* source, bool exists) {
  if (kRowsExist) cp_async_cg_16(address, source);
  else cp_async_cg_16_or_zeros(address, source, exists);
}

// Start to copy the units of a stage.
__device__ __forceinline__ void start_stage(const Rows& r, i64 first_unit, u32 stage) {
  each_own_vector<false>(r, first_unit, stage, [&](i64 unit, const Place& place, u32 address, const char* source, bool exists) {
    if (kGathered) {
      st_shared_v4_b32(address, load_place(r, unit, place));
      return;
    }
    copy_vector(address, source, exists);
    if (kHasSecond) copy_vector(address + kPanelBytes, source + r.second, exists);
  });
  cp_async_commit_group();
}

#if PROLOGUE
// A vector after the prologue, `v`, takes the place of what it is made of: as bfloat16 high + low, a panel each; float32 in the first.
__device__ __forceinline__ void put_values(u32 address, const VectorValues& v) {
  u32 first[4], second[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (kSixteenBit) split_pair(first[w], second[w], v.v[(2 * w) % kVectorElements], v.v[(2 * w + 1) % kVectorElements]);
    else first[w] = mov_b32_f32(v.v[w % kVectorElements]);
  }
  st_shared_v4_b32(address, make_uint4(first[0], first[1], first[2], first[3]));
  if (kSixteenBit) st_shared_v4_b32(address + kPanelBytes, make_uint4(second[0], second[1], second[2], second[3]));
}

// The prologue of this thread's vectors. Lanes that hold the chunks of one sum add them in increasing order of column bit: it does
// not depend on how many threads there are.
__device__ __forceinline__ void apply_prologue(const Rows& r, const Prologue& prologue, i64 first_unit, u32 stage, u32 squares_of_stage) {
  each_own_vector<kNormalises>(r, first_unit, stage, [&](i64 unit, const Place& place, u32 address, const char* source, bool exists) {
    float squares = 0.f;
    if (exists) {
      const RawVector raw = {ld_shared_v4(address), kHasSecond ? ld_shared_v4(address + kPanelBytes) : make_uint4(0, 0, 0, 0)};
      const int column = place.chunk * kVectorElements;
      const u64 index = row_of(unit, column) * kSize + offset_in_row(place.i, column);
      VectorValues values = prologue.apply(raw, index, squares);
      if (SIGNS == SIGNS_BEFORE) {
        SignBits<4> sign_bits;
        sign_bits.clear();
        sign_bits.insert_vector(0, signs_of_place(r, unit, place));
        apply_signs(values, sign_bits, 0);
      }
      put_values(address, values);
    } else if (!kHasSecond && !kRowsExist && place.i < ORDER) {
      st_shared_v4_b32(address + kPanelBytes, make_uint4(0, 0, 0, 0));  // the first panel has them already
    }
    if (!kNormalises) return;
    squares = sum_of_squares(reinterpret_cast<float(&)[1]>(squares), kChunksOfSum);
    const int sum = (int)(unit - first_unit) * kSums + place.i * (kChunks / kChunksOfSum) + place.chunk / kChunksOfSum;
    if (place.chunk % kChunksOfSum == 0 && place.i < ORDER) st_shared_f32(squares_of_stage + 4 * sum, squares);
  });
}

// What the scale of a unit is multiplied by, once all its sums are there: every 32nd is added, then those.
__device__ __forceinline__ float factor_of_unit(u32 squares_of_unit, float epsilon, int lane) {
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kSums; i += 32) squares = add_rn_f32(squares, i + lane < kSums ? ld_shared_f32(squares_of_unit + 4 * (i + lane)) : 0.f);
  return root_mean_square_factor(sum_of_squares(reinterpret_cast<float(&)[1]>(squares), 32), epsilon);
}
#endif

// This thread's copies have arrived; it applies signs, where no prologue does, to what it copied itself.
__device__ __forceinline__ void finish_stage(const Rows& r, i64 first_unit, u32 stage) {
  if (!PROLOGUE && SIGNS == SIGNS_BEFORE && !kGathered) {
    each_own_vector<false>(r, first_unit, stage, [&](i64 unit, const Place& place, u32 address, const char* source, bool exists) {
      if (exists) st_shared_v4_b32(address, flip_signs(ld_shared_v4(address), signs_of_place(r, unit, place)));
    });
  }
#if WGMMA
  fence_proxy_async();  // what threads wrote, for wgmma, which reads by another path
#endif
}

// Rows of the panel past the last are 0, for good: whatever the base has there, nothing is added.
__device__ __forceinline__ void clear_padding(u32 stages) {
  constexpr int kPadding = 8 * (kPaddedOrder - ORDER);
#pragma unroll 1
  for (int index = threadIdx.x; index < STAGES * UNITS * kPanels * kGroups * kPadding; index += kThreads) {
    const int panel = index / (kPadding > 0 ? kPadding : 1), vector = index - panel * kPadding;
    st_shared_v4_b32(stages + panel * kGroupBytes + ORDER * 128 + vector * 16, make_uint4(0, 0, 0, 0));
  }
}
