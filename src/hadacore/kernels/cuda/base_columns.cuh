// base_columns.cuh: the column bits, contracted in the registers of one warp after the base.

// [half: i' + 8][upper column bit][the other bits that a lane holds]: c5 and c2 c1 c0; wgmma: c5 and c4 c1 c0; float32: c4 and c1 c0
using Results = float[2][2][kVectorElements];

// B fragments of H16 for the second product: b[output N3][input K3]. Bits of K: pair, lane bits (t) 0 and 1, register (K3);
// bits of N: lane bits (n) 0 1 2, which product (N3). Which of them are the same column bit:
//   mma.sync: pair = N3 (c5), t0 = n1 (c3), t1 = n2 (c4), K3 = n0 (c0)
//   wgmma:    pair = n0 (c0), t0 = N3 (c1), t1 = n1 (c2), K3 = n2 (c3); c4 and c5, if they are columns, are left to registers
struct ColumnMatrix {
  u32 b[2][2];
  u32 element[2][2][2];  // of tf32: [output N3][input K3][of the pair]

  __device__ __forceinline__ void init(int lane) {
    const u32 n = lane >> 2, t = lane & 3;
    const u32 lanes = WGMMA ? (t >> 1) & (n >> 1) & 1 : t & (n >> 1);
    const u32 pair = 0x3f803f80u ^ (__popc(lanes) & 1 ? kNegatePair : 0u) ^ (WGMMA && (n & 1) ? 0x80000000u : 0u);
    const u32 of_n3 = WGMMA ? (t & 1 ? kNegatePair : 0u) : 0x80000000u;
    const u32 of_k3 = (WGMMA ? n >> 2 : n & 1) ? kNegatePair : 0u;
#pragma unroll
    for (int n3 = 0; n3 < 2; ++n3) {
#pragma unroll
      for (int k3 = 0; k3 < 2; ++k3) {
        b[n3][k3] = pair ^ (n3 ? of_n3 : 0u) ^ (k3 ? of_k3 : 0u);
        element[n3][k3][0] = b[n3][k3] << 16;
        element[n3][k3][1] = b[n3][k3] & 0xffff0000u;
      }
    }
  }
};

__device__ __forceinline__ void upper_butterfly(Results& result) {
#pragma unroll
  for (int half = 0; half < 2; ++half) outer_butterflies(result[half]);
}

__device__ __forceinline__ void contract_by_product(Results& result, const Accumulators& value, const ColumnMatrix& s) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int q = 0; q < kVectorElements; q += 2) {  // c2 c1; wgmma: c5 c4
    u32 first[4], second[4];                      // a0..a3: rows g and g + 8, K3 = 0 and 1, in two parts; or, of tf32, for each K3
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      if (kColumnsToTf32) {
        first[a] = to_tf32(value[q][a % 2 * 2 + a / 2]);
        second[a] = to_tf32(value[q + 1][a % 2 * 2 + a / 2]);
      } else {
        const float(&from)[4] = value[q + a / 2];
        split_pair(second[a], first[a], from[2 * (a % 2)], from[2 * (a % 2) + 1]);
      }
    }
#pragma unroll
    for (int n3 = 0; n3 < 2; ++n3) {
      float part[4], sum[4];
      if (kColumnsToTf32) {
        const u32(&e)[2][2] = s.element[n3];
        mma_m16n8k8_f32_tf32(part, first[0], first[1], first[2], first[3], e[0][0], e[0][1], zero);
        mma_m16n8k8_f32_tf32(sum, second[0], second[1], second[2], second[3], e[1][0], e[1][1], part);
      } else {  // the small part first
        mma_m16n8k16_f32_bf16(part, first[0], first[1], first[2], first[3], s.b[n3][0], s.b[n3][1], zero);
        mma_m16n8k16_f32_bf16(sum, second[0], second[1], second[2], second[3], s.b[n3][0], s.b[n3][1], part);
      }
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
  if (WGMMA && LOG2_SIZE > 5) upper_butterfly(result);
}

#if WGMMA
#if ENCODING
// B of the wide product in tf32: K, which is contiguous, is column bits c5..c0 of the panel, for each 8 the even ones and then the odd
// ones, as accumulators are fragments of A then; column n = 8 (4 c5 + 2 c2 + c1) + 4 c4 + 2 c3 + c0 of the result.
__device__ __forceinline__ void write_column_matrix(u32 matrix) {
  for (int index = threadIdx.x; index < 64 * 16; index += kThreads) {
    const int n = index >> 4, vector = index & 15;
    const int of_result = (n & 1) | (n >> 2 & 6) | (n << 2 & 24) | (n & 32);
    u32 word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = kOne ^ (u32)__popc(of_result & ((vector >> 1) * 8 + 2 * w + (vector & 1))) << 31;
    st_shared_v4_b32(matrix + vector / 8 * 8192 + 128 * n + 16 * ((vector ^ n) & 7), make_uint4(word[0], word[1], word[2], word[3]));
  }
}

// A wide product under way. Its sums take the registers of the values that it multiplies.
struct WideProduct {
  u32 word[8][4];  // [8 columns][a0..a3]

  __device__ __forceinline__ void start(Accumulators& value, u64 matrix) {
#pragma unroll
    for (int i = 0; i < 32; ++i) word[i / 4][i % 4] = to_tf32(value[i / 4][i % 2 * 2 + i / 2 % 2]);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 8; ++s) {
      const u64 b = matrix + s / 4 * (8192 / 16) + s % 4 * 2;
      if (s == 0) wgmma_m64k8_f32_tf32<true>(value, word[s][0], word[s][1], word[s][2], word[s][3], b);
      else wgmma_m64k8_f32_tf32<false>(value, word[s][0], word[s][1], word[s][2], word[s][3], b);
    }
    wgmma_commit_group();
  }
};
#else
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

// A wide product under way. Its sums take the registers of the values that it multiplies, which are in two parts by then: other
// registers would have to be zeros, and 128 a thread are then so few that the compiler waits for every wgmma (message C7512;
// 14336: 1.17 -> 1.14 of a copy).
struct WideProduct {
  u32 high[4][4], low[4][4];  // [16 columns][a0..a3]

  __device__ __forceinline__ void start(Accumulators& value, u64 matrix) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float(&from)[4] = value[i / 2];
      const int a = i % 2 + 2 * (i / 2 % 2);  // rows g and g + 8 of 8 columns, then of the next 8
      split_pair(high[i / 4][a], low[i / 4][a], from[2 * (i % 2)], from[2 * (i % 2) + 1]);
    }
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s) wgmma_m64n64k16_f32_bf16(value, low[s][0], low[s][1], low[s][2], low[s][3], matrix + 2048 / 16 * s, s);
#pragma unroll
    for (int s = 0; s < 4; ++s) wgmma_m64n64k16_f32_bf16(value, high[s][0], high[s][1], high[s][2], high[s][3], matrix + 2048 / 16 * s, 1);
    wgmma_commit_group();
  }
};
#endif

// All products but the newest PENDING have ended.
template <int PENDING>
__device__ __forceinline__ void finish_wide_product(Results& result, Accumulators& sum) {
  wgmma_wait_group<PENDING>();
  order_after_wait(sum);
#pragma unroll
  for (int i = 0; i < 32; ++i) result[i / 2 % 2][i / 16][i / 4 % 4 * 2 + i % 2] = sum[i / 4][i % 4];
}

// Wide products of all tiles and groups; `visit(tile, group)` after each. Where registers allow, a product's operands are made
// while the one before is under way (12288 with FP8 codes: 1.70 -> 1.66; with fewer registers it is slower, 1.12 -> 1.18).
template <typename Visit>
__device__ __forceinline__ void contract_by_wgmma(Results (&result)[WARP_TILES][kGroups], Accumulators (&value)[WARP_TILES][kGroups], u64 matrix,
                                                  Visit visit) {
  constexpr bool kOverlap = kSpareRegisters >= 100;
  constexpr int kProducts = WARP_TILES * kGroups;
  WideProduct product[2];
  if (kOverlap) product[0].start(value[0][0], matrix);
#pragma unroll
  for (int i = 0; i < kProducts; ++i) {
    const int tile = i / kGroups, group = i % kGroups, next = (i + 1) % kProducts;
    if (!kOverlap) product[0].start(value[tile][group], matrix);
    if (kOverlap && i + 1 < kProducts) {
      product[(i + 1) % 2].start(value[next / kGroups][next % kGroups], matrix);
      finish_wide_product<1>(result[tile][group], value[tile][group]);
    } else {
      finish_wide_product<0>(result[tile][group], value[tile][group]);
    }
    visit(tile, group);
  }
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

// Contracts the columns of all tiles, and calls `visit(tile)` once a tile's results are there.
template <typename Visit>
__device__ __forceinline__ void contract_columns(Results (&result)[WARP_TILES][kGroups], Accumulators (&value)[WARP_TILES][kGroups],
                                                 const ColumnMatrix& columns, u32 column_matrix, int lane, Visit visit) {
  const auto finish = [&](int tile, int group) {
    if (group < kGroups - 1) return;
    outer_butterflies(reinterpret_cast<float(&)[kGroups][kResults]>(result[tile]));
    visit(tile);
  };
#if WGMMA
  if (kWideProduct) {
    contract_by_wgmma(result, value, describe_matrix(column_matrix), finish);
    return;
  }
#endif
#pragma unroll
  for (int tile = 0; tile < WARP_TILES; ++tile) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (kSecondProduct) contract_by_product(result[tile][group], value[tile][group], columns);
      else contract_by_butterflies(result[tile][group], value[tile][group], lane);
      finish(tile, group);
    }
  }
}
