// exchange_rows.cu: rows larger than a warp holds, sizes 512 to 65536; one block, or one cluster, a row.
//
// Running example, size 32768 as 8 tiles, 16 warps, 1 block. Index bits of an element, and where they sit:
//   loaded, transformed   bits 14..11 = warp   bits 10..8 = tile     bits 7..3 = lane      bits 2..0 = position
//   contracted so far                          bits 10..8 registers  bits 7..0 Tensor Cores
//   after the exchange    bits 14..11 = part (register)   bits 10..2 = thread    bits 1..0 = position
//   contracted now        bits 14..11 registers
// Every index bit is contracted exactly once, tile bits first, then upwards, whichever of tiles, warps and blocks
// hold the upper bits: all configurations of a size give the same bits.
//
// PREFETCH = 1: a block works on rows blockIdx, blockIdx + gridDim, ... (see staging.cuh). Otherwise it has one row.

constexpr int kWordsPerRow = kTiles * kTileWords;

// The element, in its row, where output group (slot, part) of a thread starts in this pass.
__device__ __forceinline__ int group_element(int pass, int group, int part) {
  return part * kPartElements + pass * kPassElements + group * kGroup;
}

// Before a row is written to the exchange buffer, everyone must have read the last one. A block alone on its
// multiprocessor waits for that as late as it can, so that its warps do not all do the same thing at once (32768, 2^23
// elements, hot: 1.82 -> 1.74 times a copy). Where blocks share one, that happens by itself, and the wait at the end of
// a row is the better one (16384: 1.40 against 1.46).
constexpr bool kMeetBeforeWrite = MIN_BLOCKS == 1;

// Signs in the order in which the elements are loaded.
__device__ __forceinline__ void load_signs_before(SignBits<kWordsPerRow>& sign_bits, const char* base) {
  sign_bits.clear();
#pragma unroll
  for (int i = 0; i < kVectors; ++i) sign_bits.insert_vector(i, ld_global_v4(base + kVectorBytesApart * i));
}

// Signs in the order in which the results are stored. A block that goes on to other rows keeps those of all its slots;
// one that does not loads those of a slot when it gets there, and has the registers for something else until then.
constexpr int kSlotWords = kParts * kGroupWords;
using SignsAfter = SignBits<PREFETCH ? PASSES * kSlots * kSlotWords : kSlotWords>;

__device__ __forceinline__ constexpr int first_sign_word(int pass, int slot) {
  return PREFETCH ? (pass * kSlots + slot) * kSlotWords : 0;
}

__device__ __forceinline__ void load_signs_after(SignsAfter& sign_bits, const char* base, int first_group, int pass, int slot) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int w = 0; w < kGroupWords; ++w)
      sign_bits.insert(first_sign_word(pass, slot) + part * kGroupWords + w,
                       ld_global_u32(base + group_element(pass, first_group + slot * kThreads, part) * kOutputBytes + 4 * w));
  }
}

__device__ __forceinline__ void load_all_signs_after(SignsAfter& sign_bits, const char* base, int first_group) {
  sign_bits.clear();
#pragma unroll
  for (int pass = 0; pass < PASSES; ++pass) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) load_signs_after(sign_bits, base, first_group, pass, slot);
  }
}

#if PROLOGUE
// This warp's part of a row after the prologue; returns its sum of squares.
__device__ __forceinline__ float apply_prologue(TileValues (&tiles)[kTiles], const RawVector (&raw)[kVectors], const Prologue& prologue,
                                                u64 first, const SignBits<kWordsPerRow>& signs) {
  float squares[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    VectorValues values = prologue.apply(raw[i], first + i * (kVectorBytesApart / kElementBytes), squares[i]);
    if (SIGNS == SIGNS_BEFORE) apply_signs(values, signs, 4 * i);
#pragma unroll
    for (int e = 0; e < kVectorElements; ++e) tiles[i / kTileVectors].v[i % kTileVectors * kVectorElements + e] = values.v[e];
  }
  return kNormalises ? sum_of_squares(squares, 32) : 0.f;
}

// Every block gets the sums of all parts.
__device__ __forceinline__ void publish_squares(u32 shared, int block, int warp, float squares, int lane) {
  const u32 place = shared + kSquares + 16 * (block * WARPS + warp);
  if (lane == 0) st_shared_f32(place, squares);
#if CLUSTER > 1
  if (lane < CLUSTER && lane != block)
    st_async_v4_b32(mapa_shared_cluster(place, lane), mapa_shared_cluster(shared + kFullBarrier, lane), squares, squares, squares, squares);
#endif
}

// After the exchange.
__device__ __forceinline__ float factor_of_squares(u32 shared, float epsilon) {
  float squares[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) squares[part] = ld_shared_f32(shared + kSquares + 16 * part);
  return root_mean_square_factor(sum_of_squares(squares, 1), epsilon);
}
#endif

#if ENCODING
// The exchange of a row that is quantized. All values of a thread stay in registers until the scale of their block is known.
constexpr int kGroups = kSlots * kParts;  // of a thread
constexpr int kBlockLanes = QUANTIZED_BLOCK / kGroup;
constexpr bool kBlockIsRow = QUANTIZED_BLOCK == kSize;
static_assert(!kScalesOfHeads, "heads are small");
static_assert(PASSES == 1, "a thread must hold its whole share of the row");
static_assert(kBlockIsRow || kBlockLanes <= 32, "a block must be the row, or lie within a warp");

__device__ __forceinline__ void exchange_and_quantize(const float (&value)[kTiles][8], const u32 (&write_at)[2], u32 shared, int block,
                                                      const u32 (&read_at)[kQuadsOfGroup], const Quantizer& q, char* codes, u32 row,
                                                      float scale, SignsAfter& sign_bits, const char* signs_of_row, int first_group,
                                                      RowMaxima& maxima, [[maybe_unused]] float epsilon) {
  write_part<0>(write_at, shared, block, value);
  let_next_kernel_start(BEFORE_EXCHANGE);
  wait_until_full(shared);
#if PROLOGUE
  if (kNormalises) scale *= factor_of_squares(shared, epsilon);
#endif
  float y[kGroups][kGroup];
  u32 magnitude[kGroups], largest = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    float(&gathered)[kParts][kGroup] = reinterpret_cast<float(&)[kParts][kGroup]>(y[slot * kParts]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) read_group(gathered[part], slot * kSlotBytes + part * kRangeBytes, read_at);
    outer_butterflies(gathered);
    if (SIGNS == SIGNS_AFTER && !PREFETCH) {
      sign_bits.clear();
      load_signs_after(sign_bits, signs_of_row, first_group, 0, slot);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int i = slot * kParts + part;
      magnitude[i] = scale_and_measure(y[i], scale, sign_bits, first_sign_word(0, slot) + part * kGroupWords);
      largest = max_u32(largest, magnitude[i]);
    }
  }
  BlockScales<kGroups, NeighbouringLanes<kBlockIsRow || SCALE_TYPE == GIVEN_SCALE ? 1 : kBlockLanes>> scales;
  BlockScale of_all;
  if (SCALE_TYPE == GIVEN_SCALE) {
    of_all = q.scale_of(0);
  } else if (kBlockIsRow) {
    maxima.publish({largest}, 0, threadIdx.x / 32);
    maxima.meet();
    of_all = q.scale_of(maxima.largest(0, 0));
    if (threadIdx.x == 0 && block == 0) q.store_scale(row, of_all);
  } else {
    scales.make(q, magnitude, threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < scales.kOwn; ++i) {
      const int group = scales.first + i;
      const int element = group_element(0, first_group + group / kParts * kThreads, group % kParts);
      if (scales.stores(threadIdx.x % 32)) q.store_scale(row * (kSize / kBlock) + element / kBlock, scales.own[i]);
    }
  }
  char* const first_code = codes + stored_bytes((u64)row * kSize + first_group * kGroup);
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int distance = group_element(0, i / kParts * kThreads, i % kParts);
    const float reciprocal = kBlockIsRow || SCALE_TYPE == GIVEN_SCALE ? of_all.reciprocal : scales.reciprocal(i, threadIdx.x % 32);
    encode_and_store(first_code + stored_bytes(distance), y[i], reciprocal, q, (u64)row * kSize + first_group * kGroup + distance);
  }
}
#else
// One pass of the exchange: write this warp's part, read a share of every part, finish, store.
template <int PASS>
__device__ __forceinline__ void exchange_pass(const float (&value)[kTiles][8], const u32 (&write_at)[2], u32 shared, int block,
                                              const u32 (&read_at)[kQuadsOfGroup], char* target, float scale,
                                              SignsAfter& sign_bits, const char* signs_of_row, int first_group) {
  write_part<PASS>(write_at, shared, block, value);
  let_next_kernel_start(BEFORE_EXCHANGE);
  wait_until_full(shared);
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    float gathered[kParts][kGroup];
#pragma unroll
    for (int part = 0; part < kParts; ++part) read_group(gathered[part], slot * kSlotBytes + part * kRangeBytes, read_at);
    outer_butterflies(gathered);
    if (SIGNS == SIGNS_AFTER && !PREFETCH) {
      sign_bits.clear();
      load_signs_after(sign_bits, signs_of_row, first_group, PASS, slot);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      u32 word[kGroupWords];
      scale_and_round(word, gathered[part], scale, sign_bits, first_sign_word(PASS, slot) + part * kGroupWords);
      store_words(target + part * (kPartElements * kOutputBytes) + (PASS * kPassElements + slot * kThreads * kGroup) * kOutputBytes, word);
    }
  }
}
#endif

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#if CLUSTER > 1
  const int block = cluster_ctarank();
#else
  const int block = 0;
#endif
  const u32 step = gridDim.x / CLUSTER;
  Hadamard16 h;
  if (kTensorCores) h.init(lane, rows);

  // Where this warp's part of a row starts, and this thread's places in the exchange buffer and in the row it stores.
  const int warp_bytes = (block * WARPS + warp) * (kPartElements * kElementBytes);
  const int lane_bytes = warp_bytes + 16 * lane;
  const int first_group = block * kSlots * kThreads + threadIdx.x;
  const u32 shared = cvta_to_shared_dynamic();
  u32 write_at[2], read_at[kQuadsOfGroup];
#pragma unroll
  for (int half = 0; half < 2; ++half) write_at[half] = write_address(shared, block * WARPS + warp, half, lane);
#pragma unroll
  for (int q = 0; q < kQuadsOfGroup; ++q) read_at[q] = shared + read_offset(q, threadIdx.x);

  Staging staging;
  staging.init(shared + kExchangeBytes, warp, lane);
#if ENCODING
  RowMaxima maxima;
  if (kBlockIsRow && SCALE_TYPE != GIVEN_SCALE) maxima.init(shared, block);
#endif
  init_exchange(shared);

  begin_memory_accesses();
#if ENCODING
  QUANTIZER_OF_PARAMETERS(quantizer)
#endif

  u32 row = blockIdx.x / CLUSTER;  // 2^32 rows of these sizes are beyond any memory
  const auto source_of = [&](i64 r) { return problem.x + row_start(problem, r, problem.x_outer, problem.x_inner) * kElementBytes + warp_bytes; };
  if (PREFETCH) staging.start(source_of(row));

  // While the block's first row is on its way.
  const auto clear_padding = [&](u32 of_row) {
#if ENCODING
    if (SCALE_LAYOUT == SWIZZLED && of_row == blockIdx.x / CLUSTER)
      quantizer.clear_padding(blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads);
#endif
  };

  SignBits<kWordsPerRow> signs_before;
  SignsAfter signs_after;
  bool first = true;
#pragma unroll 1
  do {
    const bool load_signs = first || problem.sign_rows > 1;  // they stay in registers for the rows that follow
    const char* signs_of_row = problem.signs + (row % problem.sign_rows) * (i64)(kSize * kSignedBytes);
    first = false;
    if (SIGNS == SIGNS_BEFORE && load_signs) load_signs_before(signs_before, signs_of_row + lane_bytes);
    if (SIGNS == SIGNS_AFTER && PREFETCH && load_signs) load_all_signs_after(signs_after, signs_of_row, first_group);

    float value[kTiles][8];
#if PROLOGUE
    static_assert(!PREFETCH && !STRIDED, "a prologue reads rows that follow one another, when it needs them");
    PROLOGUE_OF_PARAMETERS(prologue)
    const u64 first_element = (u64)row * kSize + lane_bytes / kElementBytes;
    RawVector raw[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) raw[i] = prologue.load(first_element + i * (kVectorBytesApart / kElementBytes));
    let_next_kernel_start(AFTER_LOADS);
    clear_padding(row);
    TileValues tiles[kTiles];
    const float squares = apply_prologue(tiles, raw, prologue, first_element, signs_before);
    transform_tiles(value, tiles, h, lane);
    const float epsilon_of_row = prologue.epsilon;
#else
    [[maybe_unused]] const float epsilon_of_row = 0.f;
    PackedTile packed[kTiles];
    const char* source = problem.x + row_start(problem, row, problem.x_outer, problem.x_inner) * kElementBytes + lane_bytes;
    if (PREFETCH) staging.wait();
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      set_vector(packed[i / kTileVectors], i % kTileVectors, PREFETCH ? staging.vector(i) : ld_global_v4(source + kVectorBytesApart * i));
    if (PREFETCH && (i64)row + step < problem.rows) {
      staging.release();
      staging.start(source_of((i64)row + step));
    }
    let_next_kernel_start(AFTER_LOADS);
    clear_padding(row);
    if (SIGNS == SIGNS_BEFORE) apply_signs(packed, signs_before);
    transform_tiles(value, packed, h, lane);
#endif

    wait_for_cluster();
    if (PREFETCH && kMeetBeforeWrite) bar_sync();
#if PROLOGUE
    if (kNormalises) publish_squares(shared, block, warp, squares, lane);
#endif
#if ENCODING
    exchange_and_quantize(value, write_at, shared, block, read_at, quantizer, problem.y, row, (float)scale, signs_after, signs_of_row,
                          first_group, maxima, epsilon_of_row);
#else
    char* target = problem.y + row_start(problem, row, problem.y_outer, problem.y_inner) * kOutputBytes +
                   first_group * (kGroup * kOutputBytes);
    exchange_pass<0>(value, write_at, shared, block, read_at, target, (float)scale, signs_after, signs_of_row, first_group);
#endif
#if PASSES > 1
    bar_sync();  // the buffer may be written again once all have read
    exchange_pass<1>(value, write_at, shared, block, read_at, target, (float)scale, signs_after, signs_of_row, first_group);
#endif
    if (PREFETCH && !kMeetBeforeWrite) bar_sync();  // likewise, for the next row
  } while (PREFETCH && (row += step) < problem.rows);
}
