// exchange_rows.cu: rows larger than a warp holds, sizes 512 to 32768; one block, or one cluster, a row.
//
// Running example, size 32768 as 8 tiles, 16 warps, 1 block. Index bits of an element, and where they sit:
//   loaded, transformed   bits 14..11 = warp   bits 10..8 = tile     bits 7..3 = lane      bits 2..0 = position
//   contracted so far                          bits 10..8 registers  bits 7..0 Tensor Cores
//   after the exchange    bits 14..11 = part (register)   bits 10..2 = thread    bits 1..0 = position
//   contracted now        bits 14..11 registers
// Every index bit is contracted exactly once, tile bits first, then upwards, whichever of tiles, warps and blocks
// hold the upper bits: all configurations of a size give the same bits.
//
// PREFETCH = 1: a block works on rows blockIdx, blockIdx + gridDim, ... and cp.async brings the next row into
// shared memory while this one is transformed. A thread copies exactly the vectors it will read itself, so no
// barrier guards the staging buffer.

constexpr int kWordsPerRow = kTiles * kTileWords;
constexpr int kVectors = kTiles * kTileVectors;

// Distances in memory, so that every address is one of a thread's few base addresses plus a constant.
__device__ __forceinline__ constexpr int vector_bytes_apart(int i) {
  return ((i / kTileVectors) * kTileElements + (i % kTileVectors) * 128) * kElementBytes;
}
constexpr int kPartBytes = kPartElements * kElementBytes;

// The element, in its row, where output group (slot, part) of a thread starts in this pass.
__device__ __forceinline__ int group_element(int pass, int group, int part) {
  return part * kPartElements + pass * kPassElements + group * kGroup;
}

// Start to copy this thread's vectors of a row into its staging slots.
__device__ __forceinline__ void prefetch_row(u32 stage, const char* source) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) cp_async_cg_16(stage + 16u * kThreads * i, source + vector_bytes_apart(i));
  cp_async_commit_group();
}

// Signs in the order in which the elements are loaded.
__device__ __forceinline__ void load_signs_before(SignBits<kWordsPerRow>& sign_bits, const char* base) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) sign_bits.insert_vector(i, ld_global_v4(base + vector_bytes_apart(i)));
}

// Signs in the order in which the results are stored.
__device__ __forceinline__ void load_signs_after(SignBits<kWordsPerRow>& sign_bits, const char* base, int first_group) {
#pragma unroll
  for (int pass = 0; pass < PASSES; ++pass) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int w = 0; w < kGroupWords; ++w)
          sign_bits.insert(((pass * kSlots + slot) * kParts + part) * kGroupWords + w,
                           ld_global_u32(base + group_element(pass, first_group + slot * kThreads, part) * kElementBytes + 4 * w));
      }
    }
  }
}

// One pass of the exchange: write this warp's part, read a share of every part, finish, store.
template <int PASS>
__device__ __forceinline__ void exchange_pass(const float (&value)[kTiles][8], const u32 (&write_at)[2], u32 shared,
                                              const u32 (&read_at)[kQuadsOfGroup], char* target, float scale,
                                              const SignBits<kWordsPerRow>& sign_bits) {
  write_part<PASS>(write_at, value);
  exchange_barrier();
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    float gathered[kParts][kGroup];
#pragma unroll
    for (int rank = 0; rank < CLUSTER; ++rank) {
      const u32 parts = parts_of_block(shared, rank) + slot * kSlotBytes;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) read_group(gathered[rank * WARPS + w], parts + w * kPassBytes, read_at);
    }
    outer_butterflies(gathered);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      u32 word[kGroupWords];
      scale_and_round(word, gathered[part], scale, sign_bits, ((PASS * kSlots + slot) * kParts + part) * kGroupWords);
      store_group(target + part * kPartBytes + (PASS * kPassElements + slot * kThreads * kGroup) * kElementBytes, word);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#if CLUSTER > 1
  const int block = cluster_ctarank();
#else
  const int block = 0;
#endif
  const i64 step = gridDim.x / CLUSTER;
  Hadamard16 h;
  if (kTensorCores) h.init(lane);

  // This thread's places: in the row it loads, in the exchange buffer, and in the row it stores.
  const int load_bytes = ((block * WARPS + warp) * kPartElements + vector_offset(0, lane)) * kElementBytes;
  const int first_group = block * kSlots * kThreads + threadIdx.x;
  const u32 shared = cvta_to_shared_dynamic();
  const u32 stage = shared + kExchangeBytes + 16u * threadIdx.x;  // vector i at i * 16 * kThreads
  u32 write_at[2], read_at[kQuadsOfGroup];
#pragma unroll
  for (int half = 0; half < 2; ++half) write_at[half] = write_address(shared + warp * kPassBytes, half, lane);
#pragma unroll
  for (int q = 0; q < kQuadsOfGroup; ++q) read_at[q] = read_offset(q, first_group);

  begin_memory_accesses();

  i64 row = blockIdx.x / CLUSTER;
  if (PREFETCH && row < problem.rows) {
    const i64 start = row_start(problem, row, problem.x_outer, problem.x_inner);
    prefetch_row(stage, problem.x + start * kElementBytes + load_bytes);
  }

  SignBits<kWordsPerRow> sign_bits;
  bool first = true;
#pragma unroll 1
  for (; row < problem.rows; row += step) {
    if (SIGNS != NO_SIGNS && (first || problem.sign_rows > 1)) {
      first = false;
      sign_bits.clear();
      const char* base = problem.signs + (row % problem.sign_rows) * (i64)(kSize * kElementBytes);
      if (SIGNS == SIGNS_BEFORE) load_signs_before(sign_bits, base + load_bytes);
      else load_signs_after(sign_bits, base, first_group);
    }

    PackedTile packed[kTiles];
    const char* source = problem.x + row_start(problem, row, problem.x_outer, problem.x_inner) * kElementBytes + load_bytes;
    if (PREFETCH) cp_async_wait_all();
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const uint4 bits = PREFETCH ? ld_shared_v4(stage + 16u * kThreads * i) : ld_global_v4(source + vector_bytes_apart(i));
      set_vector(packed[i / kTileVectors], i % kTileVectors, bits);
    }
    if (PREFETCH && row + step < problem.rows) {  // the staging slots are free again
      const i64 next = row_start(problem, row + step, problem.x_outer, problem.x_inner);
      prefetch_row(stage, problem.x + next * kElementBytes + load_bytes);
    }

    float value[kTiles][8];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (SIGNS == SIGNS_BEFORE) {
#pragma unroll
        for (int w = 0; w < kTileWords; ++w)
          packed[tile].word[w] = sign_bits.apply(tile * kTileWords + w, packed[tile].word[w]);
      }
      transform_tile(value[tile], packed[tile], h, lane);
    }
    outer_butterflies(value);

    char* target = problem.y + row_start(problem, row, problem.y_outer, problem.y_inner) * kElementBytes +
                   first_group * kGroup * kElementBytes;
    exchange_pass<0>(value, write_at, shared, read_at, target, (float)scale, sign_bits);
#if PASSES > 1
    exchange_barrier();  // the buffer may be written again once all have read
    exchange_pass<1>(value, write_at, shared, read_at, target, (float)scale, sign_bits);
#endif
    // Likewise for the next row; and a block of a cluster may leave only once all have read from it. Always: a
    // condition here makes the compiler write the loop out twice.
    exchange_barrier();
  }
}
