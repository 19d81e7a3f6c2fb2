// base_rows.cu: rows of size m * 2^k, kron(base of order m, Sylvester(2^k)), in one launch.
//
// The row is a panel X of m rows i and 2^k columns j (panel.cuh), and the result is base X S. The base comes first, on the
// exact input: A = 16 rows of the base, B = the panel. A warp holds all columns of WARP_TILES times 16 result rows i', so
// everything that follows stays in its registers: no exchange between warps, whatever m.
//
// Running example: 14336 = 112 * 2^7, float16, the lower two of 9 column bits' matrix merged into the base (112 = 28 * 4),
// one tile a warp. Bits of a column j, and where they sit (i' is M throughout: lane bits 2..4 and accumulator half):
//   loaded                 c2..c0 = word of the vector     c5 c4 c3 = chunk = lane bits 2 4 3      c6 = group
//   after the base         c2..c0 = which product          c5 = accumulator pair, c4 c3 = lane bits 1 0      c6 = group
//   second product         contracts c5 c4 c3 (pair, lane bits 1 0) and c0 (registers a0/a2), A = what the first gave
//   after it               c0 = pair     c4 c3 = lane bits 1 0     c5 = which product     c2 c1 c6 as before
//   registers              contract c1, c2, then c6
//   stored                 c2..c0 = a 16-byte vector, c4 c3 = four lanes side by side, 64 bytes in a run
// The second product takes its operand as bfloat16 high + low (tile.cuh); its B is H16 with inputs and outputs named so
// that pair and lane bits come out in storing order.
//
// float32, and rows of fewer columns than a group: c bits are contracted by fp32 butterflies, in registers and, for the two
// in lane bits, by shuffles. Columns of other rows may be neighbours then; nothing is contracted over them.

static_assert(PROGRAMMATIC != BEFORE_EXCHANGE, "there is none");
constexpr int kResults = 4 * kVectorElements;  // accumulators of a lane for one M tile and one group
constexpr bool kSecondProduct = kSixteenBit && !kPackedUnits;
// The words of the base stay in registers if they are few; the loop over steps is then unrolled as a whole.
constexpr bool kResident = kWordsOfTile * WARP_TILES <= 12 && kSteps * WARP_TILES * kGroups * kVectorElements * (kLastOrder + 1) <= 1024;
constexpr bool kHeld = STAGES == 0 && kSteps * kGroups <= 4;  // all vectors are loaded before the first is used

// B fragments of H16 for the second product: b[output c5][input c0]. Input bits (pair, t) are c5, c3 c4; output bits: lane
// bit 2 of n is c0, lane bits 3 4 are c3 c4.
struct ColumnMatrix {
  u32 b[2][2];

  __device__ __forceinline__ void init(int lane) {
    const u32 n = lane >> 2, t = lane & 3;
    const u32 pair = 0x3f803f80u ^ (__popc(t & (n >> 1)) & 1 ? kNegatePair : 0u);
    const u32 negate = n & 1 ? kNegatePair : 0u;
    b[0][0] = pair;
    b[0][1] = pair ^ negate;
    b[1][0] = pair ^ 0x80000000u;
    b[1][1] = pair ^ 0x80000000u ^ negate;
  }
};

using Accumulators = float[kVectorElements][4];
using Results = float[2][2][kVectorElements];  // [half: i' + 8][upper column bit][position in the vector]

// ---- the base matrix ------------------------------------------------------------------------------------

// Four vectors, of i = 4t..4t+3 of a step, as B fragments of the products of one group.
__device__ __forceinline__ void make_fragments(u32 (&b)[kVectorElements][kDataParts][2], const uint4 (&vector)[4]) {
  u32 word[4][4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    word[r][0] = vector[r].x;
    word[r][1] = vector[r].y;
    word[r][2] = vector[r].z;
    word[r][3] = vector[r].w;
  }
#pragma unroll
  for (int q = 0; q < kVectorElements; ++q) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int w = q * kElementBytes / 4;
      const u32 first = word[2 * half][w], second = word[2 * half + 1][w];
      u32 part[kDataParts];
      if (!kSixteenBit) {
        split_into_parts(part, mov_f32_b32(first), mov_f32_b32(second));
      } else if (kDataParts > 1) {
        if (q % 2) split_into_parts(part, high_to_float(first), high_to_float(second));
        else split_into_parts(part, low_to_float(first), low_to_float(second));
      } else {
        part[0] = prmt_b32(first, second, q % 2 ? 0x7632 : 0x5410);
      }
#pragma unroll
      for (int p = 0; p < kDataParts; ++p) b[q][p][half] = part[p];
    }
  }
}

// One step of K: 16 rows of the panel, all tiles and groups of the warp. Small parts first: the sum loses less.
template <typename Vectors>
__device__ __forceinline__ void multiply_step(Accumulators (&value)[WARP_TILES][kGroups], const BaseFragment (&h)[WARP_TILES][kBaseParts], Vectors vectors) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    uint4 vector[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) vector[r] = vectors(group, r);
    u32 b[kVectorElements][kDataParts][2];
    make_fragments(b, vector);
#pragma unroll
    for (int order = kLastOrder; order >= 0; --order) {
#pragma unroll
      for (int p = 0; p < kBaseParts; ++p) {
        const int d = order - p;
        if (d < 0 || d >= kDataParts) continue;
#pragma unroll
        for (int tile = 0; tile < WARP_TILES; ++tile) {
#pragma unroll
          for (int q = 0; q < kVectorElements; ++q) mma_base(value[tile][group][q], h[tile][p], b[q][d][0], b[q][d][1]);
        }
      }
    }
  }
}

// ---- the columns ----------------------------------------------------------------------------------------

__device__ __forceinline__ void contract_by_product(Results& result, const Accumulators& value, const ColumnMatrix& s) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int q = 0; q < kVectorElements; q += 2) {  // c2 c1
    u32 high[4], low[4];                          // a0..a3: rows g and g + 8, c0 = 0 and 1
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      const float(&from)[4] = value[q + a / 2];
      split_pair(high[a], low[a], from[2 * (a % 2)], from[2 * (a % 2) + 1]);
    }
#pragma unroll
    for (int c5 = 0; c5 < 2; ++c5) {
      float part[4], sum[4];
      mma_m16n8k16_f32_bf16(part, low[0], low[1], low[2], low[3], s.b[c5][0], s.b[c5][1], zero);
      mma_m16n8k16_f32_bf16(sum, high[0], high[1], high[2], high[3], s.b[c5][0], s.b[c5][1], part);
      result[0][c5][q] = sum[0];
      result[0][c5][q + 1] = sum[1];
      result[1][c5][q] = sum[2];
      result[1][c5][q + 1] = sum[3];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    register_butterfly<2>(result[i / 2][i % 2]);
    register_butterfly<4 % kVectorElements>(result[i / 2][i % 2]);
  }
}

__device__ __forceinline__ void contract_by_butterflies(Results& result, const Accumulators& value, int lane) {
#pragma unroll
  for (int q = 0; q < kVectorElements; ++q) {
#pragma unroll
    for (int i = 0; i < 4; ++i) result[i / 2][i % 2][q] = value[q][i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float(&of_vector)[kVectorElements] = result[i / 2][i % 2];
    if (LOG2_SIZE > 0) register_butterfly<1>(of_vector);
    if (LOG2_SIZE > 1) register_butterfly<2>(of_vector);
    if (kSixteenBit && LOG2_SIZE > 2) register_butterfly<4 % kVectorElements>(of_vector);
    if (LOG2_SIZE > kLog2Vector) lane_butterfly(of_vector, lane, 0);
    if (LOG2_SIZE > kLog2Vector + 1) lane_butterfly(of_vector, lane, 1);
  }
  if (LOG2_SIZE > kLog2Vector + 2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int q = 0; q < kVectorElements; ++q) {
        const float a = result[half][0][q], b = result[half][1][q];
        result[half][0][q] = a + b;
        result[half][1][q] = a - b;
      }
    }
  }
}

// ---- storing --------------------------------------------------------------------------------------------

__device__ __forceinline__ void store_results(const Rows& r, i64 unit, int i, int chunk, const float (&value)[kVectorElements], float scale) {
  const int column = chunk * kVectorElements;
  const i64 row = row_of(unit, column);
  if (i >= ORDER || row >= r.rows) return;
  u32 word[4];
  SignBits<4> sign_bits;
  if (SIGNS == SIGNS_AFTER) {
    sign_bits.clear();
    sign_bits.insert_vector(0, signs_of_place(r, unit, {i, chunk}));
  }
  scale_and_round(word, value, scale, sign_bits, 0);
  if (kGathered) {
#pragma unroll
    for (int e = 0; e < kVectorElements; ++e) {
      const i64 row_of_element = row_of(unit, column + e);
      if (row_of_element >= r.rows) continue;
      char* target = element_of_y(r, row_of_element, offset_in_row(i, column + e));
      if (kSixteenBit) st_global_u16(target, word[e / 2] >> (16 * (e % 2)));
      else st_global_u32(target, word[e % 4]);
    }
  } else {
    st_global_v4(element_of_y(r, row, offset_in_row(i, column)), make_uint4(word[0], word[1], word[2], word[3]));
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS BASE_PARAMETERS) {
  HADAMARD_ROWS(problem)
  BASE_OF_PARAMETERS(base_matrix)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int slot = warp / ORDER_WARPS;  // which unit of the block
  const int first_tile = ((int)(blockIdx.x % SPLITS) * ORDER_WARPS + warp % ORDER_WARPS) * WARP_TILES;
  const i64 units = (problem.rows + kUnitRows - 1) / kUnitRows;
  const i64 step = (i64)(gridDim.x / SPLITS) * UNITS;
  i64 first_unit = (i64)(blockIdx.x / SPLITS) * UNITS;

  // This lane's vectors of a panel: i = 4t + r, chunk as named above.
  const int t = lane & 3, chunk_of_lane = 4 * ((lane >> 2) & 1) + (lane >> 3);
  u32 stage = cvta_to_shared_dynamic();
  const u32 both_stages = 2 * stage + kStageBytes;  // the sum of where they start: minus one it is the other
  const u32 lane_offset = slot * kUnitBytes + panel_offset({4 * t, chunk_of_lane});
  if (STAGES > 0) clear_padding(stage);
  ColumnMatrix columns;
  if (kSecondProduct) columns.init(lane);

  begin_memory_accesses();
  if (STAGES > 0) start_stage(problem, first_unit, stage);

#if BASE == BASE_SIGNS
  u32 resident[WARP_TILES][kResident ? kWordsOfTile : 1];
#pragma unroll
  for (int tile = 0; tile < WARP_TILES; ++tile) {
#pragma unroll
    for (int w = 0; w < (kResident ? kWordsOfTile : 1); ++w) resident[tile][w] = base_matrix.word(first_tile + tile, w, lane);
  }
#endif

#pragma unroll 1
  do {
    const i64 unit = first_unit + slot;
    uint4 held[kHeld ? kSteps * kGroups : 1][4];
    if (kHeld) {
#pragma unroll
      for (int i = 0; i < kSteps * kGroups * 4; ++i)
        held[i / 4][i % 4] = load_place(problem, unit, {16 * (i / 4 / kGroups) + 4 * t + i % 4, 8 * (i / 4 % kGroups) + chunk_of_lane});
    }
    if (STAGES > 0) {
      finish_stage(problem, first_unit, stage);
      bar_sync();  // everyone's copies are there; and nobody reads the other stage any more
      if (STAGES == 2 && first_unit + step < units) start_stage(problem, first_unit + step, both_stages - stage);
    }
    let_next_kernel_start(AFTER_LOADS);

    Accumulators value[WARP_TILES][kGroups];
#pragma unroll
    for (int i = 0; i < WARP_TILES * kGroups * kResults; ++i) value[i / (kGroups * kResults)][i / kResults % kGroups][i / 4 % kVectorElements][i % 4] = 0.f;

    const auto multiply = [&](int s, const BaseFragment(&h)[WARP_TILES][kBaseParts]) {
      multiply_step(value, h, [&](int group, int r) {
        if (kHeld) return held[kHeld ? s * kGroups + group : 0][r];
        if (STAGES == 0) return load_place(problem, unit, {16 * s + 4 * t + r, 8 * group + chunk_of_lane});
        return ld_shared_v4(stage + lane_offset + group * kGroupBytes + (16 * s + r) * 128);
      });
    };
#if BASE == BASE_SIGNS
    u32 word[WARP_TILES];
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) word[tile] = resident[tile][0];
#pragma unroll (kResident ? kWordsOfTile : 1)
    for (int w = 0; w < kWordsOfTile; ++w) {
      u32 next[WARP_TILES];
#pragma unroll
      for (int tile = 0; tile < WARP_TILES; ++tile) {
        if (kResident) word[tile] = resident[tile][kResident ? w : 0];
        else if (w + 1 < kWordsOfTile) next[tile] = base_matrix.word(first_tile + tile, w + 1, lane);
      }
#pragma unroll
      for (int s = 4 * w; s < 4 * w + 4; ++s) {
        if (s >= kSteps) continue;
        BaseFragment h[WARP_TILES][kBaseParts];
#pragma unroll
        for (int tile = 0; tile < WARP_TILES; ++tile) base_matrix.fragment(h[tile], word[tile], s);
        multiply(s, h);
      }
      if (!kResident && w + 1 < kWordsOfTile) {
#pragma unroll
        for (int tile = 0; tile < WARP_TILES; ++tile) word[tile] = next[tile];
      }
    }
#else
#pragma unroll (kHeld ? kSteps : 1)
    for (int s = 0; s < kSteps; ++s) {
      BaseFragment h[WARP_TILES][kBaseParts];
#pragma unroll
      for (int tile = 0; tile < WARP_TILES; ++tile) base_matrix.fragment(h[tile], first_tile + tile, s, lane);
      multiply(s, h);
    }
#endif

#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) {
      Results result[kGroups];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (kSecondProduct) contract_by_product(result[group], value[tile][group], columns);
        else contract_by_butterflies(result[group], value[tile][group], lane);
      }
      outer_butterflies(reinterpret_cast<float(&)[kGroups][kResults]>(result));
      const int i = 16 * (first_tile + tile) + (lane >> 2);
#pragma unroll
      for (int n = 0; n < 4 * kGroups; ++n) {
        const int half = n & 1, upper = (n >> 1) & 1, group = n >> 2;
        store_results(problem, unit, i + 8 * half, 8 * group + 4 * upper + t, result[group][half][upper], (float)scale);
      }
    }
    if (STAGES == 2) stage = both_stages - stage;
  } while (STAGES == 2 && (first_unit += step) < units);
}
