// fragment_rows.cu: rows of size m * 2^k whose base a warp keeps in registers, kron(base, Sylvester(2^k)), in one launch.
//
// The row is a panel X of m rows i and 2^k columns j, and the result is base X S. A warp unpacks all fragments of the base once
// and goes from row to row; there is no shared memory and no barrier of a block. The next row's loads are under way meanwhile.
// A unit is a row of 16 or 32 columns, or, of rows of fewer, those that stand side by side in as many.

constexpr int kThreads = 32 * WARPS;

// Rows 16 tile + g and 8 more of a unit's results.
__device__ __forceinline__ void store_run(const Rows& r, i64 unit, int tile, int lane, const Run& run, float scale) {
  const int g = lane >> 2, column = 2 * kRun * (lane & 3);
  const i64 row = unit * kUnitRows + (column >> LOG2_SIZE);
  if (kUnitRows > 1 && row >= r.rows) return;
  const int offset = g * kColumns + (column & (kColumns - 1));
  char* target = r.y + (row_start(r, row, r.y_outer, r.y_inner) + offset) * kElementBytes;
  const char* signs = SIGNS == SIGNS_AFTER ? r.signs + ((row % r.sign_rows) * kSize + offset) * kElementBytes : nullptr;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = 16 * tile + 8 * half;
    if (i + g >= ORDER) continue;
    SignBits<kRun> sign_bits;
    if (SIGNS == SIGNS_AFTER) {
      sign_bits.clear();
      u32 sign[kRun];
#pragma unroll
      for (int w = 0; w < kRun; w += kWords) load_run(reinterpret_cast<u32(&)[kWords]>(sign[w]), signs + (i * kColumns + 2 * w) * kElementBytes);
#pragma unroll
      for (int w = 0; w < kRun; ++w) sign_bits.insert(w, sign[w]);
    }
    u32 word[kRun];
    scale_and_round(word, run[half], scale, sign_bits, 0);
    store_words(target + i * kColumns * kElementBytes, word);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
  const int lane = threadIdx.x % 32;
  const i64 units = (problem.rows + kUnitRows - 1) / kUnitRows, step = (i64)gridDim.x * WARPS;
  i64 unit = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
  begin_memory_accesses();
  if (unit >= units) return;

  Panel panel;
  load_panel(panel, problem, unit, lane);
  BaseFragments base;
  base.load(lane);
  ColumnFragments columns;
  columns.init(lane);
#pragma unroll 1
  while (true) {
    PanelFragments x;
    x.make(panel);
    bar_warp_sync();  // in place, a lane's results go where other lanes of its warp have read
    const i64 next = unit + step;
    const bool last = next >= units;
    if (!last) load_panel(panel, problem, next, lane);
    let_next_kernel_start(AFTER_LOADS);
#pragma unroll
    for (int tile = 0; tile < kOrderTiles; ++tile) {
      float accumulator[kRun][4];
#pragma unroll
      for (int u = 0; u < kRun; ++u) {
#pragma unroll
        for (int i = 0; i < 4; ++i) accumulator[u][i] = 0.f;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) mma_base(accumulator[u], base.h[tile][s], x.b[s][u][0], x.b[s][u][1]);
      }
      Run run;
      contract_columns(run, accumulator, columns, 16 * tile + 8 < ORDER);
      store_run(problem, unit, tile, lane, run, (float)scale);
    }
    if (last) return;
    unit = next;
  }
}
