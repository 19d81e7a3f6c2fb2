// warpgroup_store.cuh: the plain epilogue of warpgroup_rows.cu: results are rounded, transposed by stmatrix, and stored by rows.

#if !ENCODING
// Results of 64 columns, rounded, to where the panel had them.
__device__ __forceinline__ void put_results(const Results& y, u32 group, int first_row, int lane, float scale) {
  const int matrix = lane >> 3, row = lane & 7, chunk = 2 * (threadIdx.x / 32 % 4) + (matrix & 1);
  const u32 address = group + 128 * (first_row + 8 * (matrix >> 1) + row) + 16 * (chunk ^ row);
  // Of the last blocks that share a row, some have tiles past the panel.
  const int tiles = kOwnRows * ORDER_SPLITS > kPanelRows ? kRowTiles - first_row / 8 : kOwnTiles;
#pragma unroll
  for (int tile = 0; tile < kOwnTiles; tile += 2) {
    u32 word[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&from)[4] = y[(tile + i / 2) % kOwnTiles];
      word[i / 2][i % 2] = pack_pair(from[2 * (i % 2)] * scale, from[2 * (i % 2) + 1] * scale);
    }
    if (tile + 1 < kOwnTiles && tile + 1 < tiles) stmatrix_x4_trans(address + 1024 * tile, word[0][0], word[0][1], word[1][0], word[1][1]);
    else if (tile < tiles) stmatrix_x2_trans(address + 1024 * tile, word[0][0], word[0][1]);
  }
}

// What put_results() has put for a warpgroup's columns, to global memory: 128 bytes of a row i', of 16 rows at a time.
__device__ __forceinline__ void store_results(const Rows& r, i64 row, u32 stage, int first_group, int first_row) {
  const int thread = threadIdx.x % 128, chunk = thread & 7, first_i = first_row + (thread >> 3);
  const u32 source = stage + first_group * kGroupBytes + 128 * first_i + 16 * ((chunk ^ first_i) & 7);
  const int offset = first_i * kColumns + 64 * first_group + 8 * chunk;
  char* target = r.y + (row_start(r, row, r.y_outer, r.y_inner) + offset) * kElementBytes;
#pragma unroll
  for (int own = 0; own < kOwnGroups; ++own) {
#pragma unroll
    for (int n = 0; n < kOwnRows; n += 16) {
      if (n + 16 > kOwnRows && (thread >> 3) + n >= kOwnRows) continue;
      if (kRowsMayBeMissing && kOwnRows * (ORDER_SPLITS - 1) + n + 16 > ORDER && first_i + n >= ORDER) continue;
      uint4 v = ld_shared_v4(source + own * kGroupBytes + 128 * n);
      if (SIGNS == SIGNS_AFTER) v = flip_signs(v, signs_at(r, row, offset + n * kColumns + 64 * own));
      st_global_v4(target + (n * kColumns + 64 * own) * kElementBytes, v);
    }
  }
}
#endif
