// warpgroup_products.cuh: both products of a row, and what lies between them (warpgroup_rows.cu).

static_assert(ORDER % 2 == 0, "rows come in pairs");
constexpr int kSteps = (ORDER + 15) / 16;  // K steps of the second product
using Sums = float[kOwnGroups * kRowTiles][4];
using Results = float[kOwnTiles][4];

// Groups that one wgmma multiplies, side by side in N. Its sums must fit the registers that a thread starts with, which are few beside
// producers.
constexpr int kWidest = PRODUCERS ? 128 : 256;
__device__ constexpr int joint_groups() {
  int groups = 1;
  while (2 * groups <= kOwnGroups && 2 * groups * kPanelRows <= kWidest) groups *= 2;
  return groups;
}
constexpr int kJoint = joint_groups();
using JointSums = float[kJoint * kRowTiles][4];

// Describes rows of 64 elements, K, at a shared address, in the 128-byte swizzle; 16 elements of K on are 2 more.
__device__ __forceinline__ u64 describe_rows(u32 address) {
  constexpr u64 kSwizzle128 = (u64)1 << 62, kBetweenEightRows = (u64)(1024 >> 4) << 32, kNotUsed = (u64)1 << 16;
  return kSwizzle128 | kBetweenEightRows | kNotUsed | (address & 0x3ffff) >> 4;
}

template <bool START>
__device__ __forceinline__ void multiply_columns(JointSums& d, u64 matrix, u64 groups) {
  if (PROLOGUE) wgmma_m64k8_f32_tf32<START>(d, matrix, groups);
  else if (kFloat16Panel) wgmma_m64k16_f32_f16<START>(d, matrix, groups);
  else wgmma_m64k16_f32_bf16<START>(d, matrix, groups);
}

// Starts the products of input groups own + first_group: D = H64 X^T, over the bits of TENSOR_SHARES too, and over both panels.
__device__ __forceinline__ void start_columns(Sums& d, u64 matrix, u64 panel, int first_group, int tensor_share) {
#pragma unroll
  for (int own = 0; own < kOwnGroups; own += kJoint) {
    JointSums& sums = reinterpret_cast<JointSums&>(d[own * kRowTiles]);
#pragma unroll
    for (int n = 0; n < TENSOR_SHARES * kPanels; ++n) {
      const int of_panel = n / TENSOR_SHARES, p = n % TENSOR_SHARES;
      const u64 signed_matrix = matrix + (__popc(p & tensor_share) & 1 ? kColumnMatrixBytes / 16 : 0) + of_panel * (64 * 128 / 16);
      const u64 groups = panel + of_panel * (kPanelBytes / 16) + (p * (kGroups / TENSOR_SHARES) + first_group + own) * (kGroupBytes / 16);
      if (n == 0) multiply_columns<true>(sums, signed_matrix, groups);
      else multiply_columns<false>(sums, signed_matrix, groups);
#pragma unroll
      for (int s = 1; s < 4; ++s) multiply_columns<false>(sums, signed_matrix + 2 * s, groups + 2 * s);
    }
  }
}

template <int COUNT>
__device__ __forceinline__ void order_after_wait(float (&sum)[COUNT][4]) {
#pragma unroll
  for (int i = 0; i < 4 * COUNT; ++i) order_after(sum[i / 4][i % 4]);
}

// The bits between groups of one warpgroup, highest first.
__device__ __forceinline__ void contract_groups(Sums& d) {
  constexpr int kOfGroup = 4 * kRowTiles;
#pragma unroll
  for (int distance = kOwnGroups / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int own = 0; own < kOwnGroups; ++own) {
      if (own & distance) continue;
#pragma unroll
      for (int i = 0; i < kOfGroup; ++i) {
        const int first = own * kOfGroup + i, second = first + distance * kOfGroup;
        const float a = d[first / 4][first % 4], b = d[second / 4][second % 4];
        d[first / 4][first % 4] = a + b;
        d[second / 4][second % 4] = a - b;
      }
    }
  }
}

// The bits between selected shares, highest first: sums or differences as this share has them, which are in part[0] then.
template <int DISTANCE>
__device__ __forceinline__ void contract_shares(Sums (&part)[kSelectedShares], int share) {
  if constexpr (DISTANCE > 0) {
    const float sign = share & DISTANCE ? -1.f : 1.f;
#pragma unroll
    for (int p = 0; p < DISTANCE; ++p) {
#pragma unroll
      for (int i = 0; i < 4 * kOwnGroups * kRowTiles; ++i)
        part[p][i / 4][i % 4] = part[p + DISTANCE][i / 4][i % 4] * sign + part[p][i / 4][i % 4];
    }
    contract_shares<DISTANCE / 2>(part, share);
  }
}

#if ENCODING
// A group of D as fragments of A in tf32; 0 where i is past the last.
struct Operand {
  u32 word[kRowTiles][4];

  __device__ __forceinline__ void take(const Sums& d, int own, int lane) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const float(&from)[4] = d[own * kRowTiles + tile];
#pragma unroll
      for (int i = 0; i < 4; ++i) word[tile][i] = to_tf32(from[i % 2 * 2 + i / 2]);
      if (8 * tile + 8 > ORDER && 8 * tile + 2 * (lane & 3) >= ORDER) word[tile][0] = word[tile][1] = word[tile][2] = word[tile][3] = 0;
    }
  }
};

__device__ __forceinline__ void start_base(Results& y, const Operand& a, u64 base) {
  wgmma_fence();
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
    const u32(&of_tile)[4] = a.word[tile];
    const u64 b = base + tile / 4 * (kBaseBlockBytes / 16) + tile % 4 * 2;
    if (tile == 0) wgmma_m64k8_f32_tf32<true>(y, of_tile[0], of_tile[1], of_tile[2], of_tile[3], b);
    else wgmma_m64k8_f32_tf32<false>(y, of_tile[0], of_tile[1], of_tile[2], of_tile[3], b);
  }
  wgmma_commit_group();
}
#else
// A group of D as fragments of A, in two parts; 0 where i is past the last.
struct Operand {
  u32 high[kSteps][4], low[kSteps][4];

  __device__ __forceinline__ void split(const Sums& d, int own, int lane) {
#pragma unroll
    for (int i = 0; i < 4 * kSteps; ++i) {
      const int tile = i / 2;  // of rows c' and c' + 8 of 8 rows i, then of the next 8
      u32 &of_high = high[i / 4][i % 4], &of_low = low[i / 4][i % 4];
      of_high = of_low = 0;
      if (tile >= kRowTiles) continue;
      const float(&from)[4] = d[own * kRowTiles + tile];
      split_pair(of_high, of_low, from[2 * (i % 2)], from[2 * (i % 2) + 1]);
      if (8 * tile + 8 > ORDER && 8 * tile + 2 * (lane & 3) >= ORDER) of_high = of_low = 0;
    }
  }
};
template <bool START>
__device__ __forceinline__ void multiply_base(Results& y, const u32 (&a)[4], u64 base, int step) {
  wgmma_m64k16_f32_bf16<START>(y, a[0], a[1], a[2], a[3], base + step / 4 * (kBaseBlockBytes / 16) + step % 4 * 2);
}

__device__ __forceinline__ void start_base(Results& y, const Operand& a, u64 base) {
  wgmma_fence();
  multiply_base<true>(y, a.low[0], base, 0);  // the small part first: the sum loses less
#pragma unroll
  for (int s = 1; s < kSteps; ++s) multiply_base<false>(y, a.low[s], base, s);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) multiply_base<false>(y, a.high[s], base, s);
  wgmma_commit_group();
}
#endif
