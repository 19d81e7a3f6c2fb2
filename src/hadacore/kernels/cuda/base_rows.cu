// base_rows.cu: rows of size m * 2^k, kron(base of order m, Sylvester(2^k)), in one launch.
//
// The row is a panel X of m rows i and 2^k columns j (panel.cuh), and the result is base X S. The base comes first, on the
// exact input: A = 16 rows of the base, B = the panel. A warp holds all columns of WARP_TILES times 16 result rows i', so
// everything that follows stays in its registers: no exchange between warps, whatever m.
//
// Running example: 14336 = 112 * 2^7, float16, two bits of 9 columns' merged into the base (112 = 28 * 4), one tile a warp.
// Bits of a column j, and where they sit (i' is M throughout: lane bits 2..4 and accumulator half):
//                          mma.sync                                      wgmma
//   in the panel           c2..c0 in a vector, c5..c3 chunk, c6 group    the same
//   after the base         c2..c0 product      c5 pair   c4 c3 lane      c5..c3 product   c0 pair   c2 c1 lane     c6 group
//   second product         contracts c5 c4 c3 c0                         contracts all six
//   after it               c0 pair   c4 c3 lane   c5 product             c0 pair   c4 c3 lane   c5 c2 c1 product
//   registers              contract c1, c2, then c6                      contract c6
//   stored                 c2..c0 in 16 bytes, 4 lanes side by side      the same
// The second product has the accumulators of the first as A, as bfloat16 high + low (tile.cuh). Its B is a Sylvester matrix with
// inputs and outputs named so that pair and lane bits come out in storing order: H16 in registers for mma.sync, whose K is
// accumulator pair, lane bits 1 0, and one bit that chooses between accumulators; H64 in shared memory for wgmma.
//
// wgmma (WGMMA = 1; compute capability 9.0, 16-bit) reads the panel from shared memory itself: no fragments of it in
// registers, and up to twice the rate. It knows the columns of a fragment only in their order in memory. With 16 or 32 columns
// its second product is mma.sync's with K = c0 c2 c1 c3, then c4 in registers, and lanes store 8 bytes.
//
// float32, and rows of too few columns for the second product: c bits are contracted by fp32 butterflies, in registers and,
// for the two in lane bits, by shuffles. Columns of other rows may be neighbours then; nothing is contracted over them.

static_assert(PROGRAMMATIC != BEFORE_EXCHANGE, "there is none");
constexpr int kResults = 4 * kVectorElements;  // accumulators of a lane for one M tile and one group
// The product's K may hold no column bit of another row.
constexpr bool kSecondProduct = WGMMA || (kSixteenBit && !kPackedUnits);
static_assert(!WGMMA || (kSixteenBit && kDataParts == 1 && LOG2_SIZE >= 4 && STAGES > 0 && ORDER_WARPS % 4 == 0), "wgmma's bounds");
// The words of the base stay in registers if they are few; the loop over steps is then unrolled as a whole.
constexpr bool kResident = kSixteenBit && kWordsOfTile * WARP_TILES <= 12 && kSteps * WARP_TILES * kGroups * kVectorElements * (kLastOrder + 1) <= 1024;
constexpr bool kHeld = STAGES == 0 && kSteps * kGroups <= 4;  // all vectors are loaded before the first is used

constexpr bool kWideProduct = WGMMA && !kPackedUnits;  // all column bits of a group by wgmma
constexpr u32 kColumnMatrix = STAGES * kStageBytes;    // where its B is, from the start of shared memory

// B fragments of H16 for the second product: b[output N3][input K3]. Bits of K: pair, lane bits (t) 0 and 1, register (K3);
// bits of N: lane bits (n) 0 1 2, which product (N3). Which of them are the same column bit:
//   mma.sync: pair = N3 (c5), t0 = n1 (c3), t1 = n2 (c4), K3 = n0 (c0)
//   wgmma:    pair = n0 (c0), t0 = N3 (c1), t1 = n1 (c2), K3 = n2 (c3)
struct ColumnMatrix {
  u32 b[2][2];

  __device__ __forceinline__ void init(int lane) {
    const u32 n = lane >> 2, t = lane & 3;
    const u32 lanes = WGMMA ? (t >> 1) & (n >> 1) & 1 : t & (n >> 1);
    const u32 pair = 0x3f803f80u ^ (__popc(lanes) & 1 ? kNegatePair : 0u) ^ (WGMMA && (n & 1) ? 0x80000000u : 0u);
    const u32 of_n3 = WGMMA ? (t & 1 ? kNegatePair : 0u) : 0x80000000u;
    const u32 of_k3 = (WGMMA ? n >> 2 : n & 1) ? kNegatePair : 0u;
#pragma unroll
    for (int n3 = 0; n3 < 2; ++n3) {
#pragma unroll
      for (int k3 = 0; k3 < 2; ++k3) b[n3][k3] = pair ^ (n3 ? of_n3 : 0u) ^ (k3 ? of_k3 : 0u);
    }
  }
};

// Steps of K whose fragments are made before they are multiplied with.
constexpr int kBatch = WGMMA && WARP_TILES * kGroups == 1 ? 8 : 4;
using BaseSteps = BaseFragment[kBatch][WARP_TILES][kBaseParts];
using Accumulators = float[kVectorElements][4];
// [half: i' + 8][upper column bit][the other bits that a lane holds]: c5 and c2 c1 c0; wgmma: c5 and c4 c1 c0; float32: c4 and c1 c0
using Results = float[2][2][kVectorElements];

// ---- the base matrix ------------------------------------------------------------------------------------

// Which i of a step a lane's vector r is.
__device__ __forceinline__ constexpr int step_row(int r) { return (r & 1) + 8 * (r >> 1); }

// Four vectors, of i = 2t + step_row(0..3) of a step, as B fragments of the products of one group.
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

// All products of parts that count. Small ones first: the sum loses less.
__device__ __forceinline__ void multiply_parts(float (&sum)[4], const BaseFragment (&h)[kBaseParts], const u32 (&b)[kDataParts][2]) {
#pragma unroll
  for (int order = kLastOrder; order >= 0; --order) {
#pragma unroll
    for (int p = 0; p < kBaseParts; ++p) {
      const int d = order - p;
      if (d >= 0 && d < kDataParts) mma_base(sum, h[p], b[d % kDataParts][0], b[d % kDataParts][1]);
    }
  }
}

// One step of K: 16 rows of the panel, all tiles and groups of the warp.
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
    for (int tile = 0; tile < WARP_TILES; ++tile) {
#pragma unroll
      for (int q = 0; q < kVectorElements; ++q) {
        float(&sum)[4] = value[tile][group][q];
        if (kSixteenBit) {
          multiply_parts(sum, h[tile], b[q]);
        } else {
          // Tensor Cores cut sums off where an addition rounds, always towards zero, and float32 shows it: the error of
          // 924 terms in one accumulator is 2e-6. So each step starts from 0, and is added to the sum as floats are.
          float step[4] = {0.f, 0.f, 0.f, 0.f};
          multiply_parts(step, h[tile], b[q]);
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] += step[i];
        }
      }
    }
  }
}

// The same by wgmma. Fragments live until the group of products that reads them has ended.
#if WGMMA
// Describes 16 rows of 64 elements at a shared address, in the 128-byte swizzle. Those n bytes on are n / 16 more.
__device__ __forceinline__ u64 describe_matrix(u32 address) {
  constexpr u64 kSwizzle128 = (u64)1 << 62, kBetweenEightRows = (u64)(1024 >> 4) << 32, kOneGroupWide = (u64)1 << 16;
  return kSwizzle128 | kBetweenEightRows | kOneGroupWide | (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ void wgmma_base(Accumulators& d, const BaseFragment& h, u64 b, u32 add) {
  if (kFloat16Products) wgmma_m64n64k16_f32_f16(d, h.a[0], h.a[1], h.a[2], h.a[3], b, add);
  else wgmma_m64n64k16_f32_bf16(d, h.a[0], h.a[1], h.a[2], h.a[3], b, add);
}

__device__ __forceinline__ void wgmma_steps(Accumulators (&value)[WARP_TILES][kGroups], const BaseSteps& h, u64 panel, int first, int count) {
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < kBatch; ++s) {
    if (s >= count) continue;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int tile = 0; tile < WARP_TILES; ++tile)
        wgmma_base(value[tile][group], h[s][tile][0], panel + (group * kGroupBytes + (first + s) * 2048) / 16, first + s);
    }
  }
  wgmma_commit_group();
}
#endif

// Hands the fragments of the warp's tiles to `multiply(first step, steps, fragments)`, a batch at a time. `steps` is a constant
// once all is inlined.
template <int WORDS, typename Multiply>
__device__ __forceinline__ void apply_base(const Base& base, const u32 (&resident)[WARP_TILES][WORDS], int first_tile, int lane, Multiply multiply) {
#if BASE == BASE_SIGNS
  constexpr int kWords = kBatch / 4, kWhole = kSteps / kBatch, kRest = kSteps % kBatch;
  u32 word[kWords][WARP_TILES], next[kWords][WARP_TILES];
  const auto load = [&](u32 (&to)[kWords][WARP_TILES], int batch) {
#pragma unroll
    for (int i = 0; i < kWords * WARP_TILES; ++i) {
      const int w = batch * kWords + i / WARP_TILES, tile = i % WARP_TILES;
      if (w < kWordsOfTile) to[i / WARP_TILES][tile] = kResident ? resident[tile][w % WORDS] : base.word(first_tile + tile, w, lane);
    }
  };
  load(word, 0);
#pragma unroll (kResident ? kWordsOfTile : 1)
  for (int batch = 0; batch < kWhole; ++batch) {
    load(next, batch + 1);
#pragma unroll
    for (int i = 0; i < kWords * WARP_TILES; ++i) order_after(word[i / WARP_TILES][i % WARP_TILES]);
    BaseSteps h;
    base.fragments(h, word, kBatch);
    multiply(batch * kBatch, kBatch, h);
#pragma unroll
    for (int i = 0; i < kWords * WARP_TILES; ++i) word[i / WARP_TILES][i % WARP_TILES] = next[i / WARP_TILES][i % WARP_TILES];
  }
  if (kRest > 0) {
#pragma unroll
    for (int i = 0; i < kWords * WARP_TILES; ++i) order_after(word[i / WARP_TILES][i % WARP_TILES]);
    BaseSteps h;
    base.fragments(h, word, kRest);
    multiply(kWhole * kBatch, kRest, h);
  }
#else
#pragma unroll (kHeld ? kSteps : 1)
  for (int s = 0; s < kSteps; ++s) {
    BaseSteps h;
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) base.fragment(h[0][tile], first_tile + tile, s, lane);
    multiply(s, 1, h);
  }
#endif
}

__device__ __forceinline__ void clear(Accumulators (&value)[WARP_TILES][kGroups]) {
#pragma unroll
  for (int i = 0; i < WARP_TILES * kGroups * kResults; ++i)
    value[i / (kGroups * kResults)][i / kResults % kGroups][i / 4 % kVectorElements][i % 4] = 0.f;
}

// ---- the columns ----------------------------------------------------------------------------------------

__device__ __forceinline__ void upper_butterfly(Results& result) {
#pragma unroll
  for (int half = 0; half < 2; ++half) outer_butterflies(result[half]);
}

__device__ __forceinline__ void contract_by_product(Results& result, const Accumulators& value, const ColumnMatrix& s) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int q = 0; q < kVectorElements; q += 2) {  // c2 c1; wgmma: c5 c4
    u32 high[4], low[4];                          // a0..a3: rows g and g + 8, K3 = 0 and 1
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      const float(&from)[4] = value[q + a / 2];
      split_pair(high[a], low[a], from[2 * (a % 2)], from[2 * (a % 2) + 1]);
    }
#pragma unroll
    for (int n3 = 0; n3 < 2; ++n3) {
      float part[4], sum[4];
      mma_m16n8k16_f32_bf16(part, low[0], low[1], low[2], low[3], s.b[n3][0], s.b[n3][1], zero);
      mma_m16n8k16_f32_bf16(sum, high[0], high[1], high[2], high[3], s.b[n3][0], s.b[n3][1], part);
      const int upper = WGMMA ? q / 4 : n3, at = WGMMA ? 2 * (q & 2) + 2 * n3 : q;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        result[half][upper][at] = sum[2 * half];
        result[half][upper][(at + 1) % kVectorElements] = sum[2 * half + 1];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!WGMMA) register_butterfly<2>(result[i / 2][i % 2]);
    if (!WGMMA || LOG2_SIZE > 4) register_butterfly<4 % kVectorElements>(result[i / 2][i % 2]);
  }
}

#if WGMMA
// B of the wide product: row c is column bits c5..c0 of the panel; column n = 8 (4 c5 + 2 c2 + c1) + 4 c4 + 2 c3 + c0 of the result.
__device__ __forceinline__ void write_column_matrix(u32 matrix) {
  for (int index = threadIdx.x; index < 64 * 8; index += kThreads) {
    const int c = index >> 3, vector = index & 7;
    const u32 of_vector = __popc(c & ((vector & 3) << 1 | (vector >> 2) << 5)) & 1 ? kNegatePair : 0u;
    const u32 pair = 0x3f803f80u ^ of_vector ^ (c & 1 ? 0x80000000u : 0u);
    u32 word[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) word[t] = pair ^ (__popc(t & (c >> 3)) & 1 ? kNegatePair : 0u);
    st_shared_v4_b32(matrix + 128 * c + 16 * (vector ^ (c & 7)), make_uint4(word[0], word[1], word[2], word[3]));
  }
}

__device__ __forceinline__ void contract_by_wgmma(Results& result, Accumulators& value, u64 matrix) {
#pragma unroll
  for (int i = 0; i < kResults; ++i) order_after(value[i / 4][i % 4]);
  u32 high[4][4], low[4][4];  // [16 columns][a0..a3]
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float(&from)[4] = value[i / 2];
    const int a = i % 2 + 2 * (i / 2 % 2);  // rows g and g + 8 of 8 columns, then of the next 8
    split_pair(high[i / 4][a], low[i / 4][a], from[2 * (i % 2)], from[2 * (i % 2) + 1]);
  }
  Accumulators sum;
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < 4; ++s) wgmma_m64n64k16_f32_bf16(sum, low[s][0], low[s][1], low[s][2], low[s][3], matrix + 2048 / 16 * s, s);
#pragma unroll
  for (int s = 0; s < 4; ++s) wgmma_m64n64k16_f32_bf16(sum, high[s][0], high[s][1], high[s][2], high[s][3], matrix + 2048 / 16 * s, 1);
  wgmma_commit_group();
  wgmma_wait_group<0>();
#pragma unroll
  for (int i = 0; i < 32; ++i) result[i / 2 % 2][i / 16][i / 4 % 4 * 2 + i % 2] = sum[i / 4][i % 4];
}
#endif

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
  if (LOG2_SIZE > kLog2Vector + 2) upper_butterfly(result);
}

// ---- storing --------------------------------------------------------------------------------------------

// Where an element of a unit is from its start, for rows that follow one another. Additive over columns without common bits.
__device__ __forceinline__ constexpr int distance(int i, int column) {
  return (column >> LOG2_SIZE) * kSize + i * kColumns + (column & (kColumns - 1));
}

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

  // COUNT elements that a lane has side by side, HALF rows and `upper` columns on.
  template <int COUNT>
  __device__ __forceinline__ void store(const Rows& r, i64 unit, int half, int upper, const float (&value)[COUNT], float scale) const {
    constexpr int kWords = COUNT * kElementBytes / 4;
    if (i + half >= ORDER || ((column + upper) >> LOG2_SIZE) >= rows_left) return;
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

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS BASE_PARAMETERS) {
  HADAMARD_ROWS(problem)
  BASE_OF_PARAMETERS(base_matrix)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int slot = UNITS == 1 ? 0 : warp / ORDER_WARPS;  // which unit of the block
  const int first_tile = ((int)(blockIdx.x % SPLITS) * ORDER_WARPS + warp % ORDER_WARPS) * WARP_TILES;
  const i64 units = (problem.rows + kUnitRows - 1) / kUnitRows;
  const i64 step = (i64)(gridDim.x / SPLITS) * UNITS;
  i64 first_unit = (i64)(blockIdx.x / SPLITS) * UNITS;

  // This lane's vectors of a panel: i = 2t + step_row(r), chunk as in panel.cuh.
  const int t = lane & 3, chunk_of_lane = 4 * ((lane >> 2) & 1) + (lane >> 3);
  u32 stage = cvta_to_shared_dynamic();
  const u32 both_stages = 2 * stage + kStageBytes;  // the sum of where they start: minus one it is the other
  const u32 lane_offset = slot * kUnitBytes + panel_offset({2 * t, chunk_of_lane});
  if (STAGES > 0) clear_padding(stage);
  ColumnMatrix columns;
  if (kSecondProduct && !kWideProduct) columns.init(lane);
#if WGMMA
  const u32 column_matrix = stage + kColumnMatrix;
  if (kWideProduct) write_column_matrix(column_matrix);
#endif

  begin_memory_accesses();
  if (STAGES > 0) start_stage(problem, first_unit, stage);

  u32 resident[WARP_TILES][kResident ? kWordsOfTile : 1];
#if BASE == BASE_SIGNS
#pragma unroll
  for (int tile = 0; tile < WARP_TILES; ++tile) {
#pragma unroll
    for (int w = 0; w < (kResident ? kWordsOfTile : 1); ++w) resident[tile][w] = base_matrix.word(first_tile + tile, w, lane);
  }
#endif

#pragma unroll 1
  do {
    const i64 unit = first_unit + slot;
    [[maybe_unused]] uint4 held[kHeld ? kSteps * kGroups : 1][4];
    if (kHeld) {
#pragma unroll
      for (int i = 0; i < kSteps * kGroups * 4; ++i)
        held[i / 4][i % 4] = load_place(problem, unit, {16 * (i / 4 / kGroups) + 2 * t + step_row(i % 4), 8 * (i / 4 % kGroups) + chunk_of_lane});
    }
    if (STAGES > 0) {
      finish_stage(problem, first_unit, stage);
      bar_sync();  // everyone's copies are there; and nobody reads the other stage any more
      if (STAGES == 2 && first_unit + step < units) start_stage(problem, first_unit + step, both_stages - stage);
    }
    let_next_kernel_start(AFTER_LOADS);

    Accumulators value[WARP_TILES][kGroups];
    if (!WGMMA) clear(value);
    // Multiplies with steps of the base from `first` on.
    const auto multiply = [&](int first, int steps, const BaseSteps& h) {
#if WGMMA
      wgmma_steps(value, h, describe_matrix(stage + slot * kUnitBytes), first, steps);
      // If fragments are written while others are still read, the compiler makes every product wait for the one before. So
      // batch after batch, and order_after() where fragments come from.
      wgmma_wait_group<0>();
#else
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        if (n >= steps) continue;
        const int s = first + n;
        multiply_step(value, h[n], [&](int group, int r) {
          if (kHeld) return held[kHeld ? s * kGroups + group : 0][r];
          if (STAGES == 0) return load_place(problem, unit, {16 * s + 2 * t + step_row(r), 8 * group + chunk_of_lane});
          return ld_shared_v4(stage + lane_offset + group * kGroupBytes + (16 * s + step_row(r)) * 128);
        });
      }
#endif
    };
    apply_base(base_matrix, resident, first_tile, lane, multiply);
    // In place, a lane's results go where other lanes of its warp have read. (Other warps' reads lie before the block's barrier.)
    if (STAGES == 0) bar_warp_sync();

#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) {
      Results result[kGroups];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
#if WGMMA
        if (kWideProduct) contract_by_wgmma(result[group], value[tile][group], describe_matrix(column_matrix));
        else contract_by_product(result[group], value[tile][group], columns);
        continue;
#endif
        if (kSecondProduct) contract_by_product(result[group], value[tile][group], columns);
        else contract_by_butterflies(result[group], value[tile][group], lane);
      }
      outer_butterflies(reinterpret_cast<float(&)[kGroups][kResults]>(result));
      constexpr bool kNarrow = WGMMA && !kWideProduct;  // a lane has runs of 4 elements only
      const Target target(problem, unit, 16 * (first_tile + tile) + (lane >> 2), (kNarrow ? 4 : kVectorElements) * t);
#pragma unroll
      for (int n = 0; n < 4 * kGroups; ++n) {
        const int half = n & 1, upper = (n >> 1) & 1, column = 8 * kVectorElements * (n >> 2) + 4 * kVectorElements * upper;
        const float(&of_lane)[kVectorElements] = result[n >> 2][half][upper];
        if (kNarrow) {
          target.store(problem, unit, 8 * half, column, reinterpret_cast<const float(&)[4]>(of_lane[0]), (float)scale);
          target.store(problem, unit, 8 * half, column + 16, reinterpret_cast<const float(&)[4]>(of_lane[4 % kVectorElements]), (float)scale);
        } else {
          target.store(problem, unit, 8 * half, column, of_lane, (float)scale);
        }
      }
    }
    if (STAGES == 2) stage = both_stages - stage;
  } while (STAGES == 2 && (first_unit += step) < units);
}
