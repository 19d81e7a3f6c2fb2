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

// The staging slot of a thread's vector: consecutive threads, consecutive 16 bytes.
__device__ __forceinline__ u32 stage_address(u32 shared, int vector) {
  return shared + kExchangeBytes + 16u * (vector * kThreads + threadIdx.x);
}

// The element, in its row, where output group (slot, part) of a thread starts in this pass.
__device__ __forceinline__ int group_element(int pass, int group, int part) {
  return part * kPartElements + pass * kPassElements + group * kGroup;
}

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#if CLUSTER > 1
  const int block = cluster_ctarank();
#else
  const int block = 0;
#endif
  const u32 shared = cvta_to_shared_dynamic();
  const int offset = (block * WARPS + warp) * kPartElements;
  const int first_group = block * kSlots * kThreads;
  const i64 step = gridDim.x / CLUSTER;
  Hadamard16 h;
  if (kTensorCores) h.init(lane);
  SignBits<kWordsPerRow> sign_bits;

  i64 row = blockIdx.x / CLUSTER;
  if (PREFETCH && row < problem.rows) {
    const char* source = problem.x + row_start(problem, row, problem.x_outer, problem.x_inner) * kElementBytes;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int element = offset + (i / kTileVectors) * kTileElements + vector_offset(i % kTileVectors, lane);
      cp_async_cg_16(stage_address(shared, i), source + (i64)element * kElementBytes);
    }
    cp_async_commit_group();
  }

  for (bool first = true; row < problem.rows; row += step, first = false) {
    if (SIGNS != NO_SIGNS && (first || problem.sign_rows > 1)) {
      sign_bits.clear();
      const char* base = problem.signs + (row % problem.sign_rows) * (i64)(kSize * kElementBytes);
      if (SIGNS == SIGNS_BEFORE) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const int element = offset + (i / kTileVectors) * kTileElements + vector_offset(i % kTileVectors, lane);
          const uint4 s = ld_global_v4(base + element * kElementBytes);
          sign_bits.insert(4 * i, s.x);
          sign_bits.insert(4 * i + 1, s.y);
          sign_bits.insert(4 * i + 2, s.z);
          sign_bits.insert(4 * i + 3, s.w);
        }
      } else {
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
#pragma unroll
          for (int slot = 0; slot < kSlots; ++slot) {
            const int group = first_group + slot * kThreads + threadIdx.x;
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
              for (int w = 0; w < kGroupWords; ++w)
                sign_bits.insert(((pass * kSlots + slot) * kParts + part) * kGroupWords + w,
                             ld_global_u32(base + group_element(pass, group, part) * kElementBytes + 4 * w));
            }
          }
        }
      }
    }

    PackedTile packed[kTiles];
    const char* source = problem.x + row_start(problem, row, problem.x_outer, problem.x_inner) * kElementBytes;
    if (PREFETCH) {
      cp_async_wait_all();
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int element = offset + (i / kTileVectors) * kTileElements + vector_offset(i % kTileVectors, lane);
        set_vector(packed[i / kTileVectors], i % kTileVectors, ld_global_v4(source + (i64)element * kElementBytes));
      }
    }

    const bool more = row + step < problem.rows;
    const char* next = PREFETCH && more
        ? problem.x + row_start(problem, row + step, problem.x_outer, problem.x_inner) * kElementBytes : nullptr;
    float value[kTiles][8];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (PREFETCH) {
#pragma unroll
        for (int v = 0; v < kTileVectors; ++v)
          set_vector(packed[tile], v, ld_shared_v4(stage_address(shared, tile * kTileVectors + v)));
      }
      if (SIGNS == SIGNS_BEFORE) {
#pragma unroll
        for (int w = 0; w < kTileWords; ++w)
          packed[tile].word[w] = sign_bits.apply(tile * kTileWords + w, packed[tile].word[w]);
      }
      transform_tile(value[tile], packed[tile], h, lane);
      if (PREFETCH && more) {  // this tile's slots are free again
#pragma unroll
        for (int v = 0; v < kTileVectors; ++v) {
          const int element = offset + tile * kTileElements + vector_offset(v, lane);
          cp_async_cg_16(stage_address(shared, tile * kTileVectors + v), next + (i64)element * kElementBytes);
        }
      }
    }
    if (PREFETCH) cp_async_commit_group();
    outer_butterflies(value);

    char* target = problem.y + row_start(problem, row, problem.y_outer, problem.y_inner) * kElementBytes;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      write_part(shared + warp * kPassBytes, value, pass, lane);
      exchange_barrier();
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int group = first_group + slot * kThreads + threadIdx.x;
        float gathered[kParts][kGroup];
#pragma unroll
        for (int part = 0; part < kParts; ++part) read_group(gathered[part], part_address(shared, part), group);
        outer_butterflies(gathered);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          u32 word[kGroupWords];
          scale_and_round(word, gathered[part], (float)scale, sign_bits,
                          ((pass * kSlots + slot) * kParts + part) * kGroupWords);
          store_group(target + (i64)group_element(pass, group, part) * kElementBytes, word);
        }
      }
      // The buffer may be written again, and, in a cluster, a block may leave, once all have read.
      if (CLUSTER > 1 || more || pass + 1 < PASSES) exchange_barrier();
    }
  }
}
