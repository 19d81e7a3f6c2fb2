// base_products.cuh: the product with the base matrix, by mma.sync or wgmma.

static_assert(PROGRAMMATIC != BEFORE_EXCHANGE, "there is none");
// The product's K may hold no column bit of another row.
constexpr bool kSecondProduct = WGMMA || (kSixteenBit && !kPackedUnits);
static_assert(!WGMMA || (kSixteenBit && (kDataParts == 1 || kPartsInPanels) && LOG2_SIZE >= 4 && STAGES > 0 && ORDER_WARPS % 4 == 0), "wgmma's bounds");
// The words of the base stay in registers if they are few; the loop over steps is then unrolled as a whole.
constexpr bool kResident = kSixteenBit && kWordsOfTile * WARP_TILES <= 12 && kSteps * WARP_TILES * kGroups * kVectorElements * (kLastOrder + 1) <= 1024;
constexpr bool kHeld = STAGES == 0 && kSteps * kGroups <= 4;  // all vectors are loaded before the first is used

// Steps of K whose products are under way at a time, by wgmma: their fragments take registers (9216 by three blocks: 1.27 with four
// steps, 1.21 with two).
constexpr int kInFlight = kSpareRegisters < 60 ? 1 : kSpareRegisters < 80 ? 2 : 4;
constexpr int kWordSteps = 4;  // that one word of base_signs has the signs of
using Accumulators = float[kVectorElements][4];

// Which i of a step a lane's vector r is.
__device__ __forceinline__ constexpr int step_row(int r) { return (r & 1) + 8 * (r >> 1); }

// Four vectors, of i = 2t + step_row(0..3) of a step, as B fragments of the products of one group: all parts, or, where those
// are in panels, one of them.
__device__ __forceinline__ void make_fragments(u32 (&b)[kVectorElements][kDataParts][2], const uint4 (&vector)[4], int panel) {
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
      } else if (kPartsInPanels) {
        b[q][panel % kDataParts][half] = prmt_b32(first, second, q % 2 ? 0x7632 : 0x5410);
        continue;
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
    u32 b[kVectorElements][kDataParts][2];
#pragma unroll
    for (int panel = 0; panel < (kPartsInPanels ? 2 : 1); ++panel) {
      uint4 vector[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) vector[r] = vectors(panel, group, r);
      make_fragments(b, vector, panel);
    }
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

// The same by wgmma. A fragment lives until the group of products that reads it has ended.
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

__device__ __forceinline__ void wgmma_step(Accumulators (&value)[WARP_TILES][kGroups], const BaseFragment (&h)[WARP_TILES][kBaseParts], u64 panel, int step) {
  wgmma_fence();
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) {
      const u64 b = panel + (group * kGroupBytes + step * 2048) / 16;
      if (kPartsInPanels) wgmma_base(value[tile][group], h[tile][0], b + kPanelBytes / 16, step);  // the low parts
      wgmma_base(value[tile][group], h[tile][0], b, step + kPartsInPanels);
    }
  }
}
#endif

// Sums are there only once their group of products was waited for, which the compiler does not know: without this it may
// add to them before (28672, whose groups are added right away: a quarter of the results was wrong).
__device__ __forceinline__ void order_after_wait(Accumulators& sum) {
#pragma unroll
  for (int i = 0; i < kResults; ++i) order_after(sum[i / 4][i % 4]);
}

// Calls `visit` with 0 to COUNT - 1, which are constants once it is inlined. A loop that is too long for the compiler stays one,
// `#pragma unroll` or not, and then chooses among registers by its number, for which they go to local memory. (A generic lambda
// would be a host function to NVRTC 13.0.)
template <int COUNT, typename Visit>
__device__ __forceinline__ void each_number(Visit visit) {
  if constexpr (COUNT > 0) {
    each_number<COUNT - 1>(visit);
    visit(COUNT - 1);
  }
}

// Hands the fragments of the warp's tiles to `multiply(step, fragments)`, and calls `finish()` where all products so far must end:
// if fragments are written while others of the same registers are read, the compiler makes every product wait for the one
// before (message C7513). Steps are constants once all is inlined, but for those of many words.
template <int WORDS, typename Multiply, typename Finish>
__device__ __forceinline__ void apply_base(const Base& base, const u32 (&resident)[WARP_TILES][WORDS], int first_tile, int lane, Multiply multiply, Finish finish) {
  BaseFragment h[WARP_TILES][kBaseParts];
#if BASE == BASE_SIGNS
  constexpr int kWhole = kSteps / kWordSteps, kRest = kSteps % kWordSteps;
  u32 word[WARP_TILES], next[WARP_TILES];
  const auto load = [&](u32 (&to)[WARP_TILES], int index) {
    if (index >= kWordsOfTile) return;
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) to[tile] = kResident ? resident[tile][index % WORDS] : base.word(first_tile + tile, index, lane);
  };
  const auto multiply_word = [&](int index, int steps) {
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) order_after(word[tile]);
#pragma unroll
    for (int s = 0; s < kWordSteps; ++s) {
      if (s >= steps) continue;
      base.fragments(h, word, s);
      multiply(kWordSteps * index + s, h);
      if ((s + 1) % kInFlight == 0 || s + 1 == steps) finish();
    }
  };
  const auto multiply_whole_word = [&](int index) {
    load(next, index + 1);
    multiply_word(index, kWordSteps);
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) word[tile] = next[tile];
  };
  load(word, 0);
  if constexpr (kResident) {
    each_number<kWhole>(multiply_whole_word);
  } else {
#pragma unroll 1
    for (int index = 0; index < kWhole; ++index) multiply_whole_word(index);
  }
  if (kRest > 0) multiply_word(kWhole, kRest);
#else
#pragma unroll (kHeld ? kSteps : 1)
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) base.fragment(h[tile], first_tile + tile, s, lane);
    multiply(s, h);
    finish();
  }
#endif
}

__device__ __forceinline__ void clear(Accumulators (&value)[WARP_TILES][kGroups]) {
#pragma unroll
  for (int i = 0; i < WARP_TILES * kGroups * kResults; ++i)
    value[i / (kGroups * kResults)][i / kResults % kGroups][i / 4 % kVectorElements][i % 4] = 0.f;
}
