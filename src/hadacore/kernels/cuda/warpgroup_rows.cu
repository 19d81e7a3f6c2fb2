// warpgroup_rows.cu: rows of size m * 2^k, k >= 6, by wgmma alone: the columns first, then the base.
//
// The row is a panel X of m rows i and 2^k columns j (warpgroup_panel.cuh), and the result is base X S. A warpgroup computes its transpose,
// for 64 columns c' at a time:
//   first product    D[c', i] = H64 X^T         A = H64, 64 x 64; B = groups of X, as they lie in shared memory
//   registers        contract the columns above c5, between groups, highest bit first
//   second product   Y[c', i'] = D base^T       A = D as bfloat16 high + low, or, where codes follow, as tf32, in the registers where it
//                                               is; B = the base
// So columns are M and rows of the panel N, both times. N may be any multiple of 8, so that a base of order 36 or 44 is hardly
// padded, where M is 64; both B operands are shared memory as it is, so that no lane builds fragments; and one warpgroup has a
// row to itself, while others on the multiprocessor are at other steps. The base multiplies two parts, though, or words of twice the
// size, which is twice the work of the Tensor Cores: it is for orders up to about 100.
//
// Running example: 14336 = 56 * 2^8, float16, one of 9 column bits merged into the base (56 = 28 * 2). One warpgroup holds all four groups.
// Bits of a column j and row i, and where they sit:
//   in the panel           c2..c0 in a vector   c5..c3 chunk   c7 c6 group                          i: 128 bytes apart
//   first product          contracts c5..c0
//   after it               c5 c4 warp   c3 accumulator half   c2..c0 lane bits 4..2   c7 c6, i5..i3 accumulator   i0 pair, i2 i1 lane bits 1 0
//   registers              contract c7, then c6
//   second product         contracts i, which is K as accumulators are fragments of A
//   after it               as before, with i' for i
//   stmatrix, transposed   c2..c0 in a vector again, in the panel's place; copied to memory from there
//
// Bits that tell TENSOR_SHARES warpgroups apart are contracted by the first product, which takes all groups with signs; those that
// tell more blocks apart (few rows) as if all groups were there, of which one is kept. So the number of TENSOR_SHARES decides the
// order of sums, and is the same for all configurations of a size: a result has the same bits however many rows there are.

extern "C" __global__ void __launch_bounds__(kThreads + kProducers, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
#if PROLOGUE
  PROLOGUE_OF_PARAMETERS(prologue)
  BOTH_TENSORS_OF_PARAMETERS(problem)
#endif
  const int lane = threadIdx.x % 32;
  constexpr int kSplits = COLUMN_SPLITS * ORDER_SPLITS;
  const int split = blockIdx.x % kSplits;
  const int share = kShares == 1 ? 0 : split / ORDER_SPLITS * WARPGROUPS + threadIdx.x / 128;
  const int first_row = split % ORDER_SPLITS * kOwnRows;  // i'
  const i64 step = gridDim.x / kSplits;
  i64 row = blockIdx.x / kSplits;

  const u32 first_stage = cvta_to_shared_dynamic();
  const u32 both_stages = 2 * first_stage + kStageBytes;  // the sum of where they start: minus one it is the other
  u32 stage = first_stage;
#if PRODUCERS
  Handover handover;
  handover.init(first_stage);
#else
  write_column_matrices(first_stage + kColumnMatrix);
#endif
  const u64 column_matrix = describe_rows(first_stage + kColumnMatrix), base = describe_rows(first_stage + kBase);

#if ENCODING
  RowMaxima maxima;
  if (kBlockIsRow) maxima.init(first_stage, split);
#if CLUSTER > 1
  barrier_cluster_arrive();
#endif
#endif

#if PRODUCERS
  bar_sync();
  if (threadIdx.x >= kThreads) {
    if (PRODUCER_REGISTERS) setmaxnreg_dec<PRODUCER_REGISTERS>();
    begin_memory_accesses();
    produce_rows(problem, prologue, row, step, stage, handover);
#if CLUSTER > 1
    barrier_cluster_wait();
#endif
    return;
  }
  if (PRODUCER_REGISTERS) setmaxnreg_inc<REGISTERS>();
  write_column_matrices(first_stage + kColumnMatrix);
#endif

  begin_memory_accesses();
#if ENCODING
  QUANTIZER_OF_PARAMETERS(quantizer)
#endif
  if (!PRODUCERS) start_row(problem, row, stage);
#if ENCODING
  if (SCALE_LAYOUT == SWIZZLED) quantizer.clear_padding(blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads);
#endif
  write_base(first_stage + kBase, first_row);  // while the first row is on its way
#if PRODUCERS
  fence_proxy_async();
  bar_sync_multiplying();
#endif
#pragma unroll 1
  do {
#if PRODUCERS
    handover.wait_for_row();
#else
    cp_async_wait_all();
#if PROLOGUE
    activate_row(problem, prologue, row, stage);
#endif
    finish_row(problem, row, stage);
    bar_sync();  // everyone's copies are there; and nobody reads the other stage any more
#endif
    Sums d;
    wgmma_fence();
    if constexpr (kSelectedShares == 1) {
      start_columns(d, column_matrix, describe_rows(stage), 0, share);
      wgmma_commit_group();
      if (STAGES == 2 && row + step < problem.rows) start_row(problem, row + step, both_stages - stage);
      let_next_kernel_start(AFTER_LOADS);
      wgmma_wait_group<0>();
      order_after_wait(d);
    } else {
      Sums part[kSelectedShares];
#pragma unroll
      for (int p = 0; p < kSelectedShares; ++p) start_columns(part[p], column_matrix, describe_rows(stage), p * kOwnGroups, share / kSelectedShares);
      wgmma_commit_group();
      if (STAGES == 2 && row + step < problem.rows) start_row(problem, row + step, both_stages - stage);
      let_next_kernel_start(AFTER_LOADS);
      wgmma_wait_group<0>();
#pragma unroll
      for (int p = 0; p < kSelectedShares; ++p) order_after_wait(part[p]);
      contract_shares<kSelectedShares / 2>(part, share);
#pragma unroll
      for (int i = 0; i < 4 * kOwnGroups * kRowTiles; ++i) d[i / 4][i % 4] = part[0][i / 4][i % 4];
    }
    bar_sync_multiplying();  // the panel has been read, and results, or the next row, may take its place
#if PRODUCERS
    if (threadIdx.x == 0 && row + step < problem.rows) handover.tell_it_was_read();
#else
    if (REFILLED && row + step < problem.rows) start_row(problem, row + step, stage);
#endif
    contract_groups(d);
#if ENCODING
    Results y[kOwnGroups];  // take the registers of the sums, group by group
    Magnitudes magnitudes;
    magnitudes.clear();
#pragma unroll
    for (int own = 0; own < kOwnGroups; ++own) {
      Operand a;
      order_after_wait(reinterpret_cast<Results&>(d[own * kRowTiles]));  // so that it is not split any earlier
      a.take(d, own, lane);
      start_base(y[own], a, base);
      wgmma_wait_group<0>();
      order_after_wait(y[own]);
      magnitudes.measure(problem, row, y[own], own, share * kOwnGroups, lane, (float)scale);
    }
#if CLUSTER > 1
    if (maxima.round == 0) barrier_cluster_wait();  // nobody's shared memory is written before it has begun
#endif
    quantize_row(problem, quantizer, row, y, magnitudes, REFILLED ? first_stage + kCodes : stage, share, lane, maxima);
#else
    Operand a[kOwnGroups];
#pragma unroll
    for (int own = 0; own < kOwnGroups; ++own) a[own].split(d, own, lane);
    // Where registers allow, a group's products run while the results of the one before are rounded and put away.
    constexpr bool kOverlap = OVERLAP && kOwnGroups > 1;
    const int first_group = share * kOwnGroups;
    Results y[kOverlap ? 2 : 1];
    if (kOverlap) start_base(y[0], a[0], base);
#pragma unroll
    for (int own = 0; own < kOwnGroups; ++own) {
      Results& mine = y[kOverlap ? own % 2 : 0];
      if (!kOverlap) start_base(mine, a[own], base);
      wgmma_wait_group<0>();
      order_after_wait(mine);
      if (kOverlap && own + 1 < kOwnGroups) start_base(y[(own + 1) % 2], a[(own + 1) % kOwnGroups], base);
      put_results(mine, stage + (first_group + own) * kGroupBytes, first_row, lane, (float)scale);
    }
    if (WARPGROUPS == 1) bar_sync();
    else bar_sync_of(1 + threadIdx.x / 128, 128);
    store_results(problem, row, stage, first_group, first_row);
#endif
    if (STAGES == 2) stage = both_stages - stage;
  } while ((STAGES == 2 || REFILLED) && (row += step) < problem.rows);
}
