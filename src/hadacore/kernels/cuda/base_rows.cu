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
// The second product has the accumulators of the first as A, as bfloat16 high + low or tf32 (tile.cuh). Its B is a Sylvester matrix with
// inputs and outputs named so that pair and lane bits come out in storing order: H16 in registers for mma.sync, whose K is
// accumulator pair, lane bits 1 0, and one bit that chooses between accumulators; H64 in shared memory for wgmma.
//
// wgmma (WGMMA = 1; compute capability 9.0, 16-bit) reads the panel from shared memory itself: no fragments of it in
// registers, and up to twice the rate. It knows the columns of a fragment only in their order in memory. With 16 or 32 columns, and
// where the table says so (WIDE = 0), its second product is mma.sync's with K = c0 c2 c1 c3, then c4 and c5 in registers, and
// lanes store 8 bytes. That takes half the time of the Tensor Cores and 8 registers instead of 32, but two additions more
// an element.
//
// float32, and rows of too few columns for the second product: c bits are contracted by fp32 butterflies, in registers and,
// for the two in lane bits, by shuffles. Columns of other rows may be neighbours then; nothing is contracted over them.

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
  BASE_OF_PARAMETERS(base_matrix)
#if PROLOGUE
  PROLOGUE_OF_PARAMETERS(prologue)
  BOTH_TENSORS_OF_PARAMETERS(problem)
#endif
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int slot = UNITS == 1 ? 0 : warp / ORDER_WARPS;  // which unit of the block
  const int first_tile = ((int)(blockIdx.x % SPLITS) * ORDER_WARPS + warp % ORDER_WARPS) * WARP_TILES;
  const i64 units = (problem.rows + kUnitRows - 1) / kUnitRows;
  const i64 step = (i64)(gridDim.x / SPLITS) * UNITS;
  i64 first_unit = (i64)(blockIdx.x / SPLITS) * UNITS;

  // This lane's vectors of a panel: i = 2t + step_row(r), chunk as in panel.cuh.
  const int t = lane & 3, chunk_of_lane = 4 * ((lane >> 2) & 1) + (lane >> 3);
  const u32 first_stage = cvta_to_shared_dynamic();
  u32 stage = first_stage;
  const u32 both_stages = 2 * stage + kStageBytes;  // the sum of where they start: minus one it is the other
  const u32 lane_offset = slot * kUnitBytes + panel_offset({2 * t, chunk_of_lane});
  if (STAGES > 0) clear_padding(stage);
  ColumnMatrix columns;
  if (kSecondProduct && !kWideProduct) columns.init(lane);
  [[maybe_unused]] const u32 column_matrix = stage + kColumnMatrix;
#if WGMMA
  if (kWideProduct) write_column_matrix(column_matrix);
#endif

#if ENCODING
  RowMaxima maxima;
  if (kBlockIsRow) maxima.init(stage, blockIdx.x % SPLITS);
#if CLUSTER > 1
  barrier_cluster_arrive();
#endif
#endif

  begin_memory_accesses();
#if ENCODING
  QUANTIZER_OF_PARAMETERS(quantizer)
#endif
  if (STAGES > 0) start_stage(problem, first_unit, stage);
#if ENCODING
  if (SCALE_LAYOUT == SWIZZLED) quantizer.clear_padding(blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads);
#endif
#if DRIFT
  Drift drift;
  drift.init(first_stage);
  drift.copies_started();
  drift.products_ended(problem, first_unit, stage, lane);
#endif

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
    [[maybe_unused]] const u32 squares_of_stage = first_stage + kSquares + (stage == first_stage ? 0 : kSquaresBytes);
    [[maybe_unused]] uint4 held[kHeld ? kSteps * kGroups : 1][4];
    if (kHeld) {
#pragma unroll
      for (int i = 0; i < kSteps * kGroups * 4; ++i)
        held[i / 4][i % 4] = load_place(problem, unit, {16 * (i / 4 / kGroups) + 2 * t + step_row(i % 4), 8 * (i / 4 % kGroups) + chunk_of_lane});
    }
    const bool last = first_unit + step >= units;
#if DRIFT
    drift.wait();
    if (!last) {
      start_stage(problem, first_unit + step, both_stages - stage);
      drift.copies_started();
    }
#else
    if (STAGES > 0) {
      cp_async_wait_all();
#if PROLOGUE
      apply_prologue(problem, prologue, first_unit, stage, squares_of_stage);
#endif
      finish_stage(problem, first_unit, stage);
      bar_sync();  // everyone's copies are there; and nobody reads the other stage any more
      if (STAGES == 2 && !last) start_stage(problem, first_unit + step, both_stages - stage);
    }
#endif
    let_next_kernel_start(AFTER_LOADS);

    Accumulators value[WARP_TILES][kGroups];
    if (!WGMMA) clear(value);
    const auto multiply = [&](int s, const BaseFragment(&h)[WARP_TILES][kBaseParts]) {
#if WGMMA
      wgmma_step(value, h, describe_matrix(stage + slot * kUnitBytes), s);
#else
      multiply_step(value, h, [&](int panel, int group, int r) {
        if (kHeld) return held[kHeld ? s * kGroups + group : 0][r];
        if (STAGES == 0) return load_place(problem, unit, {16 * s + 2 * t + step_row(r), 8 * group + chunk_of_lane});
        return ld_shared_v4(stage + lane_offset + panel * kPanelBytes + group * kGroupBytes + (16 * s + step_row(r)) * 128);
      });
#endif
    };
    apply_base(base_matrix, resident, first_tile, lane, multiply, [] {
#if WGMMA
      wgmma_commit_group();
      wgmma_wait_group<0>();
#endif
    });
#if WGMMA
#pragma unroll
    for (int i = 0; i < WARP_TILES * kGroups; ++i) order_after_wait(value[i / kGroups][i % kGroups]);
#endif
#if HALVES
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; ++tile) add_halves(value[tile], stage + slot * kUnitBytes, first_tile + tile);
#endif
#if DRIFT
    if (!last) drift.products_ended(problem, first_unit + step, both_stages - stage, lane);
#endif
    // In place, a lane's results go where other lanes of its warp have read. (Other warps' reads lie before the block's barrier.)
    if (STAGES == 0) bar_warp_sync();

    Results results[WARP_TILES][kGroups];
#if ENCODING
    contract_columns(results, value, columns, column_matrix, lane, [](int) {});
#if CLUSTER > 1
    if (maxima.round == 0) barrier_cluster_wait();
#endif
    float scale_of_unit = (float)scale;
#if PROLOGUE
    if (kNormalises) scale_of_unit *= factor_of_unit(squares_of_stage + 4 * slot * kSums, prologue.epsilon, lane);
#endif
    quantize_runs(problem, quantizer, unit, first_tile, slot, warp % ORDER_WARPS, reinterpret_cast<TileRuns(&)[WARP_TILES]>(results),
                  scale_of_unit, lane, maxima);
#else
    contract_columns(results, value, columns, column_matrix, lane, [&](int tile) {
      const Target target(problem, unit, 16 * (first_tile + tile) + (lane >> 2), (kNarrow ? 4 : kVectorElements) * t);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!PAIRED && !target.has_row(8 * half)) continue;
#pragma unroll
        for (int n = 0; n < 2 * kGroups; ++n) {
          const int group = n >> 1, upper = n & 1, column = 8 * kVectorElements * group + 4 * kVectorElements * upper;
          const float(&of_lane)[kVectorElements] = results[tile][group][half][upper];
#if PAIRED
          target.store_with_neighbour(8 * half, column, of_lane, (float)scale, lane);
#else
          if (kNarrow) {
            target.store(problem, unit, 8 * half, column, reinterpret_cast<const float(&)[4]>(of_lane[0]), (float)scale);
            target.store(problem, unit, 8 * half, column + 16, reinterpret_cast<const float(&)[4]>(of_lane[4 % kVectorElements]), (float)scale);
          } else {
            target.store(problem, unit, 8 * half, column, of_lane, (float)scale);
          }
#endif
        }
      }
    });
#endif
    if (STAGES == 2) stage = both_stages - stage;
  } while (STAGES == 2 && (first_unit += step) < units);
}
