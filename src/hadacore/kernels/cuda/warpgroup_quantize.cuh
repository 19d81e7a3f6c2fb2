// warpgroup_quantize.cuh: the quantizing epilogue of warpgroup_rows.cu: 8-bit codes, a scale for each row, or a given one.
//
// A lane has c' = 2 g and 2 g + 1 of its warp's 16 columns in the two halves of its accumulators, as H64's rows are in that order then
// (column_of_row()). So a pair of codes is 16 bits, stmatrix transposes pairs as it does elements, and the codes of 16 columns come to lie
// side by side. Rows i' of a block's columns, a byte each, follow one another where the panel was, 16-byte chunks permuted so that 8 rows
// touch every bank once.

// For row_maximum.cuh.
#define MAXIMA_WARPS (4 * WARPGROUPS)
#define MAXIMA_ROWS 1
#define MAXIMA_SLOTS 1
#define MAXIMA_BLOCKS CLUSTER
constexpr u32 kEndOfOtherShared = kColumnMatrix + kColumnMatrices * kColumnMatrixBytes;
constexpr bool kBlockIsRow = SCALE_TYPE != GIVEN_SCALE;
constexpr int kBlockColumns = kColumns / COLUMN_SPLITS;
static_assert(kCodeBits == 8 && ORDER_SPLITS == 1, "what this epilogue writes");
static_assert(!kBlockIsRow || (QUANTIZED_BLOCK == kSize && CLUSTER == COLUMN_SPLITS), "a row's scale is made by those who share the row");

__device__ __forceinline__ u32 chunk_of_codes(int i, int chunk) { return chunk ^ (kBlockColumns == 64 ? i >> 1 & 3 : i & 7); }

template <typename Maxima>
__device__ __forceinline__ void quantize_row(const Rows& r, const Quantizer& q, i64 row, Results (&y)[kOwnGroups], u32 stage, int share,
                                             int lane, float scale, Maxima& maxima) {
  const int first_group = share * kOwnGroups, group_of_block = threadIdx.x / 128 * kOwnGroups, block = share / WARPGROUPS;
  const int warp = threadIdx.x / 32 % 4, t = lane & 3, column = 16 * warp + 2 * (lane >> 2);
  u32 largest[1] = {0};
#pragma unroll
  for (int n = 0; n < 2 * kOwnGroups * kRowTiles; ++n) {
    const int own = n / (2 * kRowTiles), tile = n / 2 % kRowTiles, e = n % 2, i = 8 * tile + 2 * t + e;
    float pair[2] = {y[own][tile][e], y[own][tile][2 + e]};
    const bool exists = 8 * tile + 8 <= ORDER || i < ORDER;
    SignBits<1> signs;
    if (SIGNS == SIGNS_AFTER) {
      signs.clear();
      const i64 offset = (row % r.sign_rows) * kSize + i * kColumns + 64 * (first_group + own) + column;
      if (exists) signs.insert(0, ld_global_u32(r.signs + offset * kElementBytes));
    }
    const u32 magnitude = scale_and_measure(pair, scale, signs, 0);
    largest[0] = max_u32(largest[0], exists ? magnitude : 0);  // what lies beyond the matrix may be anything
    y[own][tile][e] = pair[0];
    y[own][tile][2 + e] = pair[1];
  }
  BlockScale s = {};
  if (kBlockIsRow) {
    maxima.publish(largest, 0, threadIdx.x / 32);
    maxima.meet();
    s = q.scale_of(maxima.largest(0, 0));
    if (threadIdx.x == 0 && block == 0) q.store_scale((u32)row, s);
  } else {
    s = q.scale_of(0);
  }
#pragma unroll
  for (int own = 0; own < kOwnGroups; ++own) {
#pragma unroll
    for (int first = 0; first < kRowTiles; first += 4) {
      u32 word[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float(&of_tile)[4] = y[own][(first + n) % kRowTiles];
        const float low[2] = {of_tile[0], of_tile[2]}, high[2] = {of_tile[1], of_tile[3]};
        u32 codes[2][1];
        encode(codes[0], low, s.reciprocal, 0, q.seed);
        encode(codes[1], high, s.reciprocal, 0, q.seed);
        word[n] = codes[0][0] | codes[1][0] << 16;
      }
      // Lane i gives the address of row i % 8 of tile i / 8.
      const int left = kRowTiles - first, chunk = 4 * (group_of_block + own) + warp;
      const auto target = [&](int tile) {
        const int i = 8 * tile + (lane & 7);
        return stage + kBlockColumns * i + 16 * chunk_of_codes(i, chunk);
      };
      if (left >= 4) {
        stmatrix_x4_trans(target(first + (lane >> 3)), word[0], word[1], word[2], word[3]);
      } else {
        if (left >= 2) stmatrix_x2_trans(target(first + (lane >> 3 & 1)), word[0], word[1]);
        if (left % 2) stmatrix_x1_trans(target(first + left - 1), word[(left - 1) % 4]);
      }
    }
  }
  bar_sync();
  char* codes = r.y + row * kSize + block * kBlockColumns;
  constexpr int kAcross = kBlockColumns / 16, kVectors = ORDER * kAcross;
#pragma unroll
  for (int n = 0; n < kVectors; n += kThreads) {
    const int vector = threadIdx.x + n, i = vector / kAcross, chunk = vector % kAcross;
    if (n + kThreads > kVectors && vector >= kVectors) continue;
    st_global_v4(codes + i * kColumns + 16 * chunk, ld_shared_v4(stage + kBlockColumns * i + 16 * chunk_of_codes(i, chunk)));
  }
}
