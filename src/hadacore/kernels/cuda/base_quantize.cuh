// base_quantize.cuh: the quantizing epilogue of sizes m * 2^k.
//
// A run is what a lane holds side by side: a vector, or 4 elements where a fragment gives no more (base_rows.cu). The bits
// of an element's offset in its row, and where they sit, are then
//   in the run   lane bits 0 1   which half of a narrow fragment   upper column bit   group      (column bits, LOG2_SIZE of them)
//   lane bits 2 3 4   half: i' + 8                                                               (bits of the row i' of the panel)
// and with fewer columns than a group, those above LOG2_SIZE tell rows apart. A block of the quantizer takes the lowest bits.

constexpr int kRunParts = kNarrow ? 2 : 1;
constexpr int kRun = kVectorElements / kRunParts;
constexpr int kLog2Run = kLog2Vector - (kNarrow ? 1 : 0);
constexpr int kRuns = 4 * kGroups * kRunParts;  // of an M tile: [group][half][upper][part]
constexpr bool kBlockIsRow = SCALE_TYPE != GIVEN_SCALE && QUANTIZED_BLOCK == kSize;
constexpr bool kBlockInLanes = SCALE_TYPE != GIVEN_SCALE && !kBlockIsRow;
static_assert(!kGathered, "a vector must lie in one row");

// For row_maximum.cuh.
#define MAXIMA_WARPS ORDER_WARPS
#define MAXIMA_ROWS kUnitRows
#define MAXIMA_SLOTS UNITS
#define MAXIMA_BLOCKS CLUSTER
constexpr u32 kEndOfOtherShared = kSquares + 2 * kSquaresBytes;

__device__ __forceinline__ constexpr int run_half(int run) { return run / (2 * kRunParts) & 1; }
__device__ __forceinline__ constexpr int run_column(int run) {
  return run / (4 * kRunParts) * 8 * kVectorElements + (run / kRunParts & 1) * 4 * kVectorElements + run % kRunParts * 16;
}

// Who holds a bit of the offset: a mask of lanes, or, negative, a distance between runs.
__device__ __forceinline__ constexpr int holder(int bit) {
  if (bit >= LOG2_SIZE) return bit - LOG2_SIZE < 3 ? 4 << (bit - LOG2_SIZE) : -2 * kRunParts;
  const int c = bit - kLog2Run;
  if (c < 2) return 1 << c;
  const int above_lanes = c - 2 - (kNarrow ? 1 : 0);
  return above_lanes < 0 ? -1 : above_lanes == 0 ? -kRunParts : -(4 * kRunParts << (above_lanes - 1));
}

// The bits of a run's number that tell runs of one block apart, and the lanes that hold the rest of it.
__device__ __forceinline__ constexpr int runs_of_block() {
  int bits = 0;
  for (int bit = kLog2Run; (1 << bit) < QUANTIZED_BLOCK; ++bit) bits |= holder(bit) < 0 ? -holder(bit) : 0;
  return bits;
}

__device__ constexpr int count_bits(int bits) { return bits == 0 ? 0 : (bits & 1) + count_bits(bits >> 1); }
__device__ constexpr int lane_bits_of_block(int bit) { return (1 << bit) >= QUANTIZED_BLOCK ? 0 : (holder(bit) > 0) + lane_bits_of_block(bit + 1); }

struct LanesOfBlock {
  static constexpr int kLevels = kBlockInLanes ? lane_bits_of_block(kLog2Run) : 0;
  __device__ __forceinline__ static constexpr u32 mask(int level) {
    int bit = kLog2Run;
    for (; holder(bit) < 0 || level > 0; ++bit) level -= holder(bit) > 0;
    return (u32)holder(bit);
  }
};

// Blocks of an M tile that a lane has a part of, and the number of a run's: the bits above and below those of
// runs_of_block() count them.
constexpr int kBlocksOfTile = kBlockInLanes ? kRuns >> count_bits(runs_of_block()) : 1;
__device__ __forceinline__ constexpr int block_of_run(int run) {
  int number = 0, place = 0;
  for (int bit = 1; bit < kRuns; bit *= 2) {
    if (runs_of_block() & bit) continue;
    number |= run & bit ? 1 << place : 0;
    ++place;
  }
  return number;
}
__device__ __forceinline__ constexpr int first_run_of_block(int block) {
  int run = 0;
  for (int bit = 1; bit < kRuns; bit *= 2) {
    if (runs_of_block() & bit) continue;
    run |= block & 1 ? bit : 0;
    block >>= 1;
  }
  return run;
}

// The runs of a warp, of one unit.
struct Runs {
  i64 first_row;    // of the unit
  int rows_left;    // from there
  int first_i, lane_column;
  u64 first;        // element number of the lane's first

  __device__ __forceinline__ Runs(const Rows& r, i64 unit, int first_tile, int lane) {
    first_row = unit * kUnitRows;
    rows_left = r.rows - first_row < kUnitRows ? (int)(r.rows - first_row) : kUnitRows;
    first_i = 16 * first_tile + (lane >> 2);
    lane_column = kRun * (lane & 3);
    first = first_row * kSize + distance(first_i, lane_column);
  }

  __device__ __forceinline__ int row(int run) const { return (lane_column >> LOG2_SIZE) + (run_column(run) >> LOG2_SIZE); }
  __device__ __forceinline__ bool in_matrix(int tile, int run) const { return first_i + 16 * tile + 8 * run_half(run) < ORDER; }
  __device__ __forceinline__ u64 index(int tile, int run) const { return first + distance(16 * tile + 8 * run_half(run), run_column(run)); }
  __device__ __forceinline__ int offset(int tile, int run) const {
    return offset_in_row(first_i + 16 * tile + 8 * run_half(run), lane_column + run_column(run));
  }
};

using TileRuns = float[kRuns][kRun];

// Neighbouring lanes change codes of narrow runs: 4 t .. 4 t + 3 and 16 + 4 t .. of two lanes become 8 codes side by side in each,
// and the 32 elements of four lanes are stored by one instruction rather than in two halves. 18944: 2.37 -> 2.12; but 6656, of one
// group of columns: 1.48 -> 1.66.
constexpr bool kPairedRuns = kNarrow && kGroups > 1;

__device__ __forceinline__ void pair_codes(u32 (&word)[kCodeWords<8>], u32 first, u32 second, int lane) {
  const bool odd = lane & 1;
  const u32 received = shfl_sync_bfly(odd ? first : second, 1);
  if (odd) first = received;
  else second = received;
  word[0] = kCodeBits == 8 ? first : first | second << 16;
  word[kCodeWords<8> - 1] = kCodeBits == 8 ? second : word[0];
}

template <typename Maxima>
__device__ __forceinline__ void quantize_runs(const Rows& r, const Quantizer& q, i64 unit, int first_tile, int slot, int warp_of_slot,
                                              TileRuns (&y)[WARP_TILES], float scale, int lane, Maxima& maxima) {
  const Runs runs(r, unit, first_tile, lane);
  BlockScales<kBlocksOfTile, LanesOfBlock> scales[WARP_TILES];
  u32 of_row[kUnitRows];
#pragma unroll
  for (int row = 0; row < kUnitRows; ++row) of_row[row] = 0;
#pragma unroll
  for (int tile = 0; tile < WARP_TILES; ++tile) {
    u32 magnitude[kRuns];
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const bool exists = runs.in_matrix(tile, run) && runs.row(run) < runs.rows_left;
      constexpr int kWords = kRun * kElementBytes / 4;
      SignBits<kWords> sign_bits;
      if (SIGNS == SIGNS_AFTER) {
        sign_bits.clear();
        const char* signs = sign_of(r, runs.first_row + runs.row(run), runs.offset(tile, run));
        if (exists && kWords == 4) {
          sign_bits.insert_vector(0, ld_global_v4(signs));
        } else if (exists) {
          const uint2 two = ld_global_v2(signs);
          sign_bits.insert(0, two.x);
          sign_bits.insert(1, two.y);
        }
      }
      const u32 measured = scale_and_measure(y[tile][run], scale, sign_bits, 0);
      magnitude[run] = exists ? measured : 0;  // what lies beyond the matrix may be anything
#pragma unroll
      for (int row = 0; row < kUnitRows; ++row)
        of_row[row] = max_u32(of_row[row], kUnitRows == 1 || runs.row(run) == row ? magnitude[run] : 0);
    }
    if (!kBlockInLanes) continue;
    u32 of_block[kBlocksOfTile];
#pragma unroll
    for (int block = 0; block < kBlocksOfTile; ++block) of_block[block] = 0;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) of_block[block_of_run(run)] = max_u32(of_block[block_of_run(run)], magnitude[run]);
    scales[tile].make(q, of_block, lane);
#pragma unroll
    for (int i = 0; i < scales[tile].kOwn; ++i) {
      const int run = first_run_of_block(scales[tile].first + i);
      const bool exists = runs.in_matrix(tile, run) && runs.row(run) < runs.rows_left;
      if (exists && scales[tile].stores(lane)) q.store_scale((u32)(runs.index(tile, run) / kBlock), scales[tile].own[i]);
    }
  }
  if (kBlockIsRow) {
    maxima.publish(of_row, slot, warp_of_slot);
    maxima.meet();
  }
  BlockScale s = {};
  if (SCALE_TYPE == GIVEN_SCALE) s = q.scale_of(0);
  // Runs whose row differs by the same, one after another: their scale is made once.
#pragma unroll
  for (int row_of_run = 0; row_of_run < kUnitRows; ++row_of_run) {
    bool some = false;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) some |= run_column(run) >> LOG2_SIZE == row_of_run;
    if (!some) continue;
    if (kBlockIsRow) {
      const int row = (runs.lane_column >> LOG2_SIZE) + row_of_run;
      s = q.scale_of(maxima.largest(slot, row));
      const bool has_first_element = runs.first_i == 0 && (runs.lane_column & (kColumns - 1)) == 0;
      if (has_first_element && row < runs.rows_left) q.store_scale((u32)(runs.first_row + row), s);
    }
#pragma unroll
    for (int i = 0; i < WARP_TILES * kRuns; ++i) {
      const int tile = i / kRuns, run = i % kRuns;
      if (run_column(run) >> LOG2_SIZE != row_of_run) continue;
      const auto reciprocal_of = [&](int of_run) { return kBlockInLanes ? scales[tile].reciprocal(block_of_run(of_run), lane) : s.reciprocal; };
      const bool exists = runs.in_matrix(tile, run) && runs.row(run) < runs.rows_left;
      const u64 index = runs.index(tile, run);
      if (kPairedRuns) {
        if (run % 2) continue;
        u32 first[kCodeWords<kRun>], second[kCodeWords<kRun>], both[kCodeWords<8>];
        encode(first, y[tile][run], reciprocal_of(run), index, q.seed);
        encode(second, y[tile][(run + 1) % kRuns], reciprocal_of((run + 1) % kRuns), index + 16, q.seed);
        pair_codes(both, first[0], second[0], lane);
        if (exists) store_codes<8>(r.y + stored_bytes(index + (lane & 1 ? 12 : 0)), both);
        continue;
      }
      const float reciprocal = reciprocal_of(run);
      if (exists) encode_and_store(r.y + stored_bytes(index), y[tile][run], reciprocal, q, index);
    }
  }
}
