// base_halves.cuh: bases of Paley's second construction, as a product of half their order (HALVES = 1).
//
// Such a base is C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]], C symmetric with 0 on the diagonal and +1 or -1 elsewhere. So
// the lowest bit of its index is the highest column bit of a panel of half as many rows, as a row lies in memory already. With u
// and v, the columns where that bit is 0 and 1, the result is
//   base X S = ([C u, C v] + [-v, u]) S,    S = Sylvester of all columns, that bit included.
// The Tensor Cores multiply by C - I, which has entries +1 and -1 only. What is missing, u - v and v + u, is added here, in fp32: half
// the multiply-adds, and a quarter of the signs, for two additions an element.

#if HALVES
static_assert(WGMMA && BASE == BASE_SIGNS && LOG2_MERGE == 0, "where accumulators lie, and the bit that the matrix leaves to columns");

constexpr int kToOtherHalf = 1 << (LOG2_SIZE - 4);  // products of 8 columns from one of u to that of v

// Two neighbouring elements of the panel as the products have read them.
struct PanelPair {
  float value[2];

  __device__ __forceinline__ explicit PanelPair(u32 address) {
    const u32 word = ld_shared_u32(address);
    if (kPartsInPanels) {
      const u32 low = ld_shared_u32(address + kPanelBytes);
      value[0] = mov_f32_b32(word << 16) + mov_f32_b32(low << 16);
      value[1] = mov_f32_b32(word & 0xffff0000u) + mov_f32_b32(low & 0xffff0000u);
    } else {
      value[0] = low_to_float(word);
      value[1] = high_to_float(word);
    }
  }
};

// Adds u - v to the sums of u, and v + u to those of v, for the 16 rows of one tile. The words that a warp reads at a time are of eight
// rows, and the swizzle puts each into other banks. The lane is read again, so that no address is kept over the loop: with four tiles
// in each of 8 warps one spilled.
__device__ __forceinline__ void add_halves(Accumulators (&value)[kGroups], u32 panel, int tile) {
  const int lane = mov_u32_tid_x() % 32;
  // Tiles past the last have results that nobody stores.
  const int row = 16 * (tile < kOrderTiles ? tile : kOrderTiles - 1) + (lane >> 2);
#pragma unroll
  for (int n = 0; n < 8 * kGroups; ++n) {
    if (n & kToOtherHalf) continue;
    const int other = (n + kToOtherHalf) % (8 * kGroups);
    const u32 of_lane = panel + 4 * (lane & 3);
    const u32 of_u = of_lane + panel_offset({row, n}), of_v = of_lane + panel_offset({row, other});
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const PanelPair u(of_u + 1024 * half), v(of_v + 1024 * half);  // 8 rows on, which have the same swizzle
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& of_first = value[n / 8][n % 8][2 * half + i];
        float& of_second = value[other / 8][other % 8][2 * half + i];
        of_first = of_first + u.value[i] - v.value[i];
        of_second = of_second + v.value[i] + u.value[i];
      }
    }
  }
}
#endif
