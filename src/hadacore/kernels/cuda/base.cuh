// base.cuh: the base matrix of a size m * 2^k, as the A operand of the products that apply it.
//
// A Hadamard matrix has entries +1 and -1 only, so a lane needs 8 bits for its part of a 16 x 16 fragment. The
// matrix is part of the program (base_signs, written out by the host), 4 fragments a word, and costs 2 instructions a
// register to unpack. Bits of a word are placed as in signs.cuh: register r of step s is (word << (4 (s % 4) + r)) on the
// two sign bits of a pair.
//
// Another base (BASE != BASE_SIGNS) is read from memory where it is, entry by entry, through the L1 cache.
//
// A lane's K slots of a step are i = 16 step + 2t, 2t + 1 (registers a0 a1) and 2t + 8, 2t + 9 (a2 a3).

enum BaseIs { BASE_SIGNS = 0, BASE_OF_ELEMENTS = 1, BASE_OF_FLOAT32 = 2 };

constexpr int kSteps = (ORDER + 15) / 16;          // K steps of 16
constexpr int kOrderTiles = (ORDER + 15) / 16;     // M tiles of 16
constexpr int kWordsOfTile = (kSteps + 3) / 4;     // words of base_signs that a lane needs for one M tile
constexpr int kPaddedOrder = 16 * kSteps;

// Products are in float16 where both operands are, else in bfloat16, on parts that add up to the operand: high, middle
// and low for float32, two for a float16 next to what is not, one for everything exact already.
// A prologue's result is in two bfloat16 parts already, a panel each.
constexpr bool kFloat16Products = ELEMENT == FLOAT16 && BASE != BASE_OF_FLOAT32 && !PROLOGUE;
constexpr bool kPartsInPanels = PROLOGUE && kSixteenBit;
constexpr int kDataParts = ELEMENT == FLOAT32 ? 3 : kPartsInPanels || (ELEMENT == FLOAT16 && !kFloat16Products) ? 2 : 1;
constexpr int kBaseParts = BASE == BASE_OF_FLOAT32 ? 3 : BASE == BASE_OF_ELEMENTS && ELEMENT == FLOAT16 && !kFloat16Products ? 2 : 1;
// Products of part p of one and part q of the other that count: p + q up to this. Those left out are 2^-24 of the result.
constexpr int kLastOrder = kDataParts + kBaseParts == 2 ? 0 : 2;
// Where codes follow, what the base gives goes to the second product in tf32, unless it is more exact than that itself.
constexpr bool kColumnsToTf32 = kToTf32 && BASE != BASE_OF_FLOAT32;
constexpr u32 kOnePair = kFloat16Products ? 0x3c003c00u : 0x3f803f80u;

struct BaseFragment {
  u32 a[4];
};

__device__ __forceinline__ void mma_base(float (&d)[4], const BaseFragment& h, u32 b0, u32 b1) {
  if (kFloat16Products) mma_m16n8k16_f32_f16(d, h.a[0], h.a[1], h.a[2], h.a[3], b0, b1, d);
  else mma_m16n8k16_f32_bf16(d, h.a[0], h.a[1], h.a[2], h.a[3], b0, b1, d);
}

// Two float32 as bfloat16 pairs that add up to them. Parts but the last are cut off rather than rounded: what remains is
// exact, and the largest finite value does not become infinite.
template <int PARTS>
__device__ __forceinline__ void split_into_parts(u32 (&part)[PARTS], float first, float second) {
#pragma unroll
  for (int p = 0; p < PARTS - 1; ++p) {
    const u32 first_bits = mov_b32_f32(first), second_bits = mov_b32_f32(second);
    part[p] = prmt_b32(first_bits, second_bits, 0x7632);
    first -= mov_f32_b32(first_bits & 0xffff0000u);
    second -= mov_f32_b32(second_bits & 0xffff0000u);
  }
  part[PARTS - 1] = cvt_rn_bf16x2_f32(second, first);
}

#if BASE != BASE_SIGNS
#define BASE_PARAMETERS , const char *base, i64 base_row_stride, i64 base_column_stride

struct Base {
  const char* entries;
  i64 row_stride, column_stride;  // in entries; the transpose is the same memory with these exchanged

  // Entry (row, column) of kron(base, Sylvester(2^LOG2_MERGE)) as float, 0 outside.
  __device__ __forceinline__ float entry(int row, int column) const {
    if (row >= ORDER || column >= ORDER) return 0.f;
    const i64 offset = (row >> LOG2_MERGE) * row_stride + (column >> LOG2_MERGE) * column_stride;
    float value;
    if (BASE == BASE_OF_FLOAT32 || !kSixteenBit) value = mov_f32_b32(ld_global_u32(entries + 4 * offset));
    else value = low_to_float(ld_global_u16(entries + 2 * offset));
    return __popc(row & column & ((1 << LOG2_MERGE) - 1)) & 1 ? -value : value;
  }

  __device__ __forceinline__ void fragment(BaseFragment (&h)[kBaseParts], int tile, int step, int lane) const {
    const int row = 16 * tile + (lane >> 2), column = 16 * step + 2 * (lane & 3);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int i = column + 4 * (r & 2);
      const float first = entry(row + 8 * (r & 1), i), second = entry(row + 8 * (r & 1), i + 1);
      if (kBaseParts == 1) {  // of the base's own type
        h[0].a[r] = pack_pair(first, second);
      } else {
        u32 part[kBaseParts];
        split_into_parts(part, first, second);
#pragma unroll
        for (int p = 0; p < kBaseParts; ++p) h[p].a[r] = part[p];
      }
    }
  }
};
#define BASE_OF_PARAMETERS(name) const Base name = {base, base_row_stride, base_column_stride};
#else
#define BASE_PARAMETERS

struct Base {
  // 1, 1. As the compiler does not know that `rows` is never negative, this is in a register; as a constant it would be put there
  // again for every register of a fragment, 6 % of the instructions of 7168. Not where few registers are left: 10240 with codes spilled.
  u32 one_pair;

  // Word `index` of M tile `tile`; those past the last tile are never used.
  __device__ __forceinline__ u32 word(int tile, int index, int lane) const {
    return ld_global_u32(base_signs + ((tile < kOrderTiles ? tile : 0) * kWordsOfTile + index) * 32 + lane);
  }

  // Fragments of step `step` of those whose signs a word has, for each tile.
  template <int TILES>
  __device__ __forceinline__ void fragments(BaseFragment (&h)[TILES][1], const u32 (&word)[TILES], int step) const {
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
      for (int r = 0; r < 4; ++r) h[tile][0].a[r] = one_pair ^ ((word[tile] << (4 * step + r)) & kNegatePair);
    }
  }
};
#define BASE_OF_PARAMETERS(name) const Base name = {kOnePair ^ (kSpareRegisters < (WGMMA ? 64 : 80) ? 0u : (u32)(rows >> 63))};
#endif
