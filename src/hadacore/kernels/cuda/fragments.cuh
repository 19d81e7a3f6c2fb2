// fragments.cuh: a panel of m rows i and 16 or 32 columns in the registers of a warp, and the products with it by mma.sync.
//
// A warp unpacks all fragments of the base once. What it loads become fragments of B by one instruction a register, and what a
// product gives are fragments of A for the next where they are: no shared memory, no shuffle.
//
// Running example: 960 = 60 * 2^4, float16. 60 rows are four fragments of 16, the last four of them zeros. Bits of a column j,
// c3..c0, and of a row i, and where they sit:
//                                     lane bits 4..2    lane bits 1 0    register
//   loaded, 4 bytes                   c3 c2 c1          i1 i0            c0 pair   i3 i2 word   others step
//   B of the base: N = lane bits      c3 c2 c1          i1 i0            i2 pair   i3 b0/b1     c0 product
//   after it, M = i'                  i'2 i'1 i'0       c3 c2            c1 pair   i'3 half     c0 product
//   A of the second product           i'2 i'1 i'0       c3 c2            c1 pair   i'3 half     c0 a0/a2
//   after it                          i'2 i'1 i'0       c3 c2            c0 pair   i'3 half     c1 product
//   stored, 8 bytes                   the same: 8 rows i' of 32 bytes side by side
// So accumulators become operands where they are, as bfloat16 high + low (tile.cuh). With 32 columns, 8 bytes are loaded and 16
// stored; bit c1 is a register then, in which a butterfly follows the products of the others. Rows of fewer columns have no second
// product: columns of other rows would be in its K. What a lane holds of a row by then is all of its columns.

static_assert(kSixteenBit && !ENCODING && !PROLOGUE && BASE == BASE_SIGNS, "plain 16-bit transforms by this library's bases");
static_assert(LOG2_SIZE >= 2 && LOG2_SIZE <= 5, "columns that lanes hold without an exchange");
static_assert(ORDER % 4 == 0, "four rows are loaded at a time");

constexpr int kColumns = 1 << LOG2_SIZE;
constexpr int kUnitColumns = LOG2_SIZE % 2 == 0 ? 16 : 32;
constexpr int kUnitRows = kUnitColumns / kColumns;
constexpr int kRun = kUnitColumns / 8;  // columns side by side that a lane loads, and products of 8 columns
constexpr int kWords = kRun / 2;

// What a lane loads of a unit: i = 16 step + 4 r + t, columns kRun g and following (g = lane / 4, t = lane % 4).
struct Panel {
  u32 word[kSteps][4][kWords];
};

__device__ __forceinline__ void load_run(u32 (&word)[kWords], const char* source) {
  if (kWords == 1) {
    word[0] = ld_global_u32(source);
  } else {
    const uint2 v = ld_global_v2(source);
    word[0] = v.x;
    word[1 % kWords] = v.y;
  }
}

__device__ __forceinline__ void load_panel(Panel& panel, const Rows& r, i64 unit, int lane) {
  const int column = kRun * (lane >> 2);
  const i64 row = unit * kUnitRows + (column >> LOG2_SIZE);
  const int offset = (lane & 3) * kColumns + (column & (kColumns - 1));
  const bool exists = kUnitRows == 1 || row < r.rows;
  const char* source = r.x + (row_start(r, exists ? row : 0, r.x_outer, r.x_inner) + offset) * kElementBytes;
  const char* signs = SIGNS == SIGNS_BEFORE ? r.signs + ((row % r.sign_rows) * kSize + offset) * kElementBytes : nullptr;
#pragma unroll
  for (int i = 0; i < kPaddedOrder; i += 4) {
    u32(&word)[kWords] = panel.word[i / 16][i / 4 % 4];
#pragma unroll
    for (int w = 0; w < kWords; ++w) word[w] = 0;  // rows of the panel past the last, whatever the base has there
    if (i >= ORDER || !exists) continue;
    load_run(word, source + i * kColumns * kElementBytes);
    if (SIGNS == SIGNS_BEFORE) {
      u32 sign[kWords];
      load_run(sign, signs + i * kColumns * kElementBytes);
#pragma unroll
      for (int w = 0; w < kWords; ++w) word[w] ^= sign[w] & kSignMask;
    }
  }
}

// B fragments: of each step, for column `u` of every lane's run.
struct PanelFragments {
  u32 b[kSteps][kRun][2];

  __device__ __forceinline__ void make(const Panel& panel) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kRun * 2; ++i) {
        const int u = i / 2, w = u / 2, r = i % 2 * 2;
        b[s][u][i % 2] = prmt_b32(panel.word[s][r][w], panel.word[s][r + 1][w], u % 2 ? 0x7632 : 0x5410);
      }
    }
  }
};

// The base: fragment (tile, step) has rows i' = 16 tile + g, and its K slots are the i of PanelFragments (base_signs.py).
struct BaseFragments {
  BaseFragment h[kOrderTiles][kSteps];

  __device__ __forceinline__ void load(int lane) {
    const Base base = {kOnePair};
#pragma unroll
    for (int tile = 0; tile < kOrderTiles; ++tile) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        BaseFragment of_step[1][1];
        const u32 word[1] = {base.word(tile, s / 4, lane)};
        base.fragments(of_step, word, s % 4);
        h[tile][s] = of_step[0][0];
      }
    }
  }
};

// H16 of the second product as B: K = t (c of lane bits), pair (c1, or c2 of 32 columns), b0/b1 (c0); N = g (lane bits, then c0),
// product (what the pair was).
struct ColumnFragments {
  u32 b[2][2];  // [product][b0, b1]

  __device__ __forceinline__ void init(int lane) {
    const u32 g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 product = i / 2, k3 = i % 2;
      const u32 negative = (__popc(t & (g >> 1)) ^ (k3 & g)) & 1;
      b[product][k3] = 0x3f803f80u ^ (negative ? kNegatePair : 0u) ^ product << 31;
    }
  }
};

using Run = float[2][2 * kRun];  // [i' and i' + 8][columns side by side], of a tile

// accumulator[u][pair + 2 half] is column 2 kRun t + kRun pair + u. Where the second half has no rows it is not split.
__device__ __forceinline__ void contract_columns(Run& run, const float (&accumulator)[kRun][4], const ColumnFragments& columns, bool has_second_half) {
  if (LOG2_SIZE < 4) {
#pragma unroll
    for (int i = 0; i < 4 * kRun; ++i) run[i / 2 % 2][i % 2 * kRun + i / 4] = accumulator[i / 4][i % 4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      register_butterfly<1>(run[half]);
      register_butterfly<2>(run[half]);
      if (LOG2_SIZE == 3) register_butterfly<4 % (2 * kRun)>(run[half]);
    }
    return;
  }
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int c1 = 0; c1 < kRun / 2; ++c1) {  // of 32 columns; 0 of 16
    u32 high[4], low[4];
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      const float(&from)[4] = accumulator[2 * c1 + a / 2];
      high[a] = low[a] = 0;
      if (a % 2 == 0 || has_second_half) split_pair(high[a], low[a], from[2 * (a % 2)], from[2 * (a % 2) + 1]);
    }
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      float part[4], sum[4];  // the small part first
      mma_m16n8k16_f32_bf16(part, low[0], low[1], low[2], low[3], columns.b[product][0], columns.b[product][1], zero);
      mma_m16n8k16_f32_bf16(sum, high[0], high[1], high[2], high[3], columns.b[product][0], columns.b[product][1], part);
#pragma unroll
      for (int i = 0; i < 4; ++i) run[i / 2][kRun * product + 2 * c1 + i % 2] = sum[i];
    }
  }
  if (LOG2_SIZE == 5) {
#pragma unroll
    for (int half = 0; half < 2; ++half) register_butterfly<2>(run[half]);
  }
}
