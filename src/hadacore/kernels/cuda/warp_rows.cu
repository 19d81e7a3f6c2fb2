// warp_rows.cu: rows that one warp holds entirely, sizes 1 to 2048.
//
// Each warp loads UNITS units of TILES tiles at once, all loads before the first use, transforms them in
// registers and stores them where they came from. No shared memory, no barrier, but where a scale is that of a row of several
// transforms, whose warps meet once (shared_row.cuh).

static_assert(PROGRAMMATIC != BEFORE_EXCHANGE, "there is none");
#if ENCODING
static_assert(SCALE_TYPE != HEAD_SCALES, "measured scales of heads are for heads.cu");
#endif
static_assert(OUTPUT == ELEMENT, "a lane stores its vectors where it loaded them");
constexpr int kWordsPerUnit = kTiles * kTileWords;

#if ENCODING
// A block of the quantizer is the lanes of one access of the warp, or some of them, or all of a row.
constexpr int kBlockLanes = QUANTIZED_BLOCK / kVectorElements;
constexpr bool kBlockIsRow = kBlockLanes > 32 && kMakesScales && !SHARED_ROW;
static_assert(QUANTIZED_BLOCK == 0 || kBlockLanes > 0, "a lane's vector holds several blocks");
static_assert(!kBlockIsRow || QUANTIZED_BLOCK == kUnitElements, "a block must be the row");
static_assert(!SHARED_ROW || (QUANTIZED_BLOCK == SHARED_ROW && kMakesScales), "warps share a row for its scale");
constexpr int kUnitVectors = kTiles * kTileVectors;

#if PROLOGUE
// The vectors of a unit after the prologue; the scale becomes that of each vector's row.
__device__ __forceinline__ void apply_prologue(TileValues (&tiles)[kTiles], const RawVector (&raw)[kUnitVectors], const Prologue& prologue,
                                               const Cursor& cursor, int first_distance, i64 unit, const SignBits<kWordsPerUnit>& sign_bits,
                                               float (&scale)[kUnitVectors], int lane) {
  float squares[kUnitVectors];
#pragma unroll
  for (int i = 0; i < kUnitVectors; ++i) {
    const u64 index = unit * kUnitElements + i * 32 * kVectorElements + lane * kVectorElements;
    VectorValues values = {};
    squares[i] = 0.f;
    if (elements_present(cursor, first_distance + i * 32 * kVectorElements) > 0) values = prologue.apply(raw[i], index, squares[i]);
    if (SIGNS == SIGNS_BEFORE) apply_signs(values, sign_bits, 4 * i);
#pragma unroll
    for (int e = 0; e < kVectorElements; ++e) tiles[i / kTileVectors].v[i % kTileVectors * kVectorElements + e] = values.v[e];
  }
  if (!kNormalises) return;
  constexpr int kRowLanes = ROW_ELEMENTS / kVectorElements;
  if (kRowLanes >= 32) {
    static_assert(!kNormalises || kRowLanes < 32 || kRowLanes % 32 == 0, "a row is whole accesses of the warp");
    constexpr int kRowVectors = kRowLanes / 32 < 1 ? 1 : kRowLanes / 32 > kUnitVectors ? kUnitVectors : kRowLanes / 32;
#pragma unroll
    for (int i = 0; i < kUnitVectors; i += kRowVectors) {
      const float factor = root_mean_square_factor(sum_of_squares(reinterpret_cast<float(&)[kRowVectors]>(squares[i]), 32), prologue.epsilon);
#pragma unroll
      for (int j = 0; j < kRowVectors; ++j) scale[i + j] *= factor;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kUnitVectors; ++i)
      scale[i] *= root_mean_square_factor(sum_of_squares(reinterpret_cast<float(&)[1]>(squares[i]), kRowLanes), prologue.epsilon);
  }
}
#endif

__device__ __forceinline__ void quantize_tiles(const Quantizer& q, const Cursor& cursor, int first_distance, i64 unit, float (&value)[kTiles][8],
                                               const float (&scale)[kUnitVectors], const SignBits<kWordsPerUnit>& sign_bits, int lane) {
  float(&y)[kUnitVectors][kVectorElements] = reinterpret_cast<float(&)[kUnitVectors][kVectorElements]>(value);
  u32 magnitude[kUnitVectors], largest = 0;
#pragma unroll
  for (int i = 0; i < kUnitVectors; ++i) {
    magnitude[i] = scale_and_measure(y[i], scale[i], sign_bits, 4 * i);
    largest = max_u32(largest, magnitude[i]);
  }
  BlockScales<kUnitVectors, NeighbouringLanes<kBlockIsRow || !kMakesScales ? 1 : kBlockLanes>> scales;
  BlockScale of_all;
  if (SCALE_TYPE == GIVEN_SCALE) {
    of_all = q.scale_of(0);
  } else if (kScalesOfHeads) {
    // A row is a head; below.
  } else if (kBlockIsRow) {
    of_all = q.scale_of(redux_sync_max_u32(largest));
    if (lane == 0 && elements_present(cursor, first_distance) > 0) q.store_scale((u32)unit, of_all);
  } else {
    scales.make(q, magnitude, lane);
#pragma unroll
    for (int i = 0; i < scales.kOwn; ++i) {
      const int vector = scales.first + i;
      const bool present = elements_present(cursor, first_distance + vector * 32 * kVectorElements) > 0;
      const u64 index = unit * kUnitElements + vector * 32 * kVectorElements + lane * kVectorElements;
      if (present && scales.stores(lane)) q.store_scale((u32)(index / kBlock), scales.own[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kUnitVectors; ++i) {
    float reciprocal = kBlockIsRow || !kMakesScales ? of_all.reciprocal : scales.reciprocal(i, lane);
    const int distance = first_distance + i * 32 * kVectorElements;
    if (elements_present(cursor, distance) == 0) continue;
    const u64 index = unit * kUnitElements + i * 32 * kVectorElements + lane * kVectorElements;
    if (kScalesOfHeads) reciprocal = q.given_of_head((u32)(index >> LOG2_SIZE));
    encode_and_store(cursor.y + stored_bytes(distance), y[i], reciprocal, q, index);
  }
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#if SHARED_ROW
  const i64 first = (i64)blockIdx.x * kRowUnits + warp;
  const Cursor cursor = cursor_of_shared_row(problem, first, warp, lane);
#else
  const i64 first = (i64)blockIdx.x * (WARPS * UNITS) + warp;
  // A warp past the end leaves as a whole. Within a warp, units past the end are computed on zeros and not stored:
  // a condition around shuffles and products would cost a convergence barrier for each of them.
  if (first * kUnitElements >= problem.rows * kSize) return;
  const Cursor cursor = make_cursor(problem, first, lane);
#endif
  Hadamard16 h;
  if (kTensorCores) h.init(lane, rows);
  begin_memory_accesses();
#if ENCODING
  QUANTIZER_OF_PARAMETERS(quantizer)
#endif

#if PROLOGUE
  PROLOGUE_OF_PARAMETERS(prologue)
  RawVector raw[UNITS][kUnitVectors];
#pragma unroll
  for (int i = 0; i < UNITS * kUnitVectors; ++i) {
    const int u = i / kUnitVectors, vector = i % kUnitVectors;
    const u64 index = (first + u * WARPS) * kUnitElements + vector * 32 * kVectorElements + lane * kVectorElements;
    const bool present = elements_present(cursor, u * WARPS * kUnitElements + vector * 32 * kVectorElements) > 0;
    raw[u][vector] = present ? prologue.load(index) : RawVector{};
  }
#else
  PackedTile packed[UNITS][kTiles];
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) {
        const int distance = u * WARPS * kUnitElements + tile * kTileElements + v * 128;
        const int offset = tile * kTileElements + vector_offset(v, lane);
        set_vector(packed[u][tile], v, load_vector(problem, cursor, distance, first + u * WARPS, offset));
      }
    }
  }
#endif

  let_next_kernel_start(AFTER_LOADS);
#if ENCODING
  // By the warps that every block has.
  if (SCALE_LAYOUT == SWIZZLED && warp == 0) quantizer.clear_padding(blockIdx.x * 32 + lane, gridDim.x * 32);
#endif

#if SHARED_ROW
  float results[UNITS][kUnitVectors][kVectorElements];
  u32 largest[1] = {0};
#endif
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
    const i64 unit = first + u * WARPS;
    SignBits<kWordsPerUnit> sign_bits;
    if (SIGNS != NO_SIGNS) {
      sign_bits.clear();
#pragma unroll
      for (int i = 0; i < kTiles * kTileVectors; ++i) {
        const int offset = (i / kTileVectors) * kTileElements + vector_offset(i % kTileVectors, lane);
        sign_bits.insert_vector(i, load_sign_vector(problem, unit, offset));
      }
    }

    float value[kTiles][8];
#if ENCODING
    float scales[kUnitVectors];
#pragma unroll
    for (int i = 0; i < kUnitVectors; ++i) scales[i] = (float)scale;
#endif
#if PROLOGUE
    TileValues tiles[kTiles];
    apply_prologue(tiles, raw[u], prologue, cursor, u * WARPS * kUnitElements, unit, sign_bits, scales, lane);
    transform_tiles(value, tiles, h, lane);
#else
    if (SIGNS == SIGNS_BEFORE) apply_signs(packed[u], sign_bits);
    transform_tiles(value, packed[u], h, lane);
#endif

#if SHARED_ROW
    const float(&y)[kUnitVectors][kVectorElements] = reinterpret_cast<const float(&)[kUnitVectors][kVectorElements]>(value);
#pragma unroll
    for (int i = 0; i < kUnitVectors; ++i) {
#pragma unroll
      for (int e = 0; e < kVectorElements; ++e) results[u][i][e] = y[i][e];
      largest[0] = max_u32(largest[0], scale_and_measure(results[u][i], scales[i], sign_bits, 4 * i));
    }
#elif ENCODING
    quantize_tiles(quantizer, cursor, u * WARPS * kUnitElements, unit, value, scales, sign_bits, lane);
    continue;
#else
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      PackedTile result;
      scale_and_round(result.word, value[tile], (float)scale, sign_bits, tile * kTileWords);
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) {
        const int distance = u * WARPS * kUnitElements + tile * kTileElements + v * 128;
        const int offset = tile * kTileElements + vector_offset(v, lane);
        store_vector(problem, cursor, distance, unit, offset, get_vector(result, v));
      }
    }
#endif
  }

#if SHARED_ROW
  RowMaxima maxima;
  maxima.init(cvta_to_shared_dynamic(), 0);
  maxima.publish(largest, 0, warp);
  maxima.meet();
  const BlockScale of_row = quantizer.scale_of(maxima.largest(0, 0));
  if (threadIdx.x == 0) quantizer.store_scale(blockIdx.x, of_row);
#pragma unroll
  for (int i = 0; i < UNITS * kUnitVectors; ++i) {
    const int u = i / kUnitVectors, vector = i % kUnitVectors;
    const int distance = u * WARPS * kUnitElements + vector * 32 * kVectorElements;
    const u64 index = (first + u * WARPS) * kUnitElements + vector * 32 * kVectorElements + lane * kVectorElements;
    if (elements_present(cursor, distance) > 0)
      encode_and_store(cursor.y + stored_bytes(distance), results[u][vector], of_row.reciprocal, quantizer, index);
  }
#endif
}
