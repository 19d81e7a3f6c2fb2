// warp_rows.cu: rows that one warp holds entirely, sizes 1 to 2048.
//
// Each warp loads UNITS units of TILES tiles at once, all loads before the first use, transforms them in
// registers and stores them where they came from. No shared memory, no barrier.

static_assert(PROGRAMMATIC != BEFORE_EXCHANGE, "there is none");
static_assert(OUTPUT == ELEMENT, "a lane stores its vectors where it loaded them");
constexpr int kWordsPerUnit = kTiles * kTileWords;

#if ENCODING
// A block of the quantizer is the lanes of one access of the warp, or some of them, or all of a row.
constexpr int kBlockLanes = QUANTIZED_BLOCK / kVectorElements;
constexpr bool kBlockIsRow = kBlockLanes > 32;
static_assert(QUANTIZED_BLOCK == 0 || kBlockLanes > 0, "a lane's vector holds several blocks");
static_assert(!kBlockIsRow || QUANTIZED_BLOCK == kUnitElements, "a block must be the row");
constexpr int kUnitVectors = kTiles * kTileVectors;

__device__ __forceinline__ void quantize_tiles(const Quantizer& q, const Cursor& cursor, int first_distance, i64 unit, float (&value)[kTiles][8],
                                               float scale, const SignBits<kWordsPerUnit>& sign_bits, int lane) {
  float(&y)[kUnitVectors][kVectorElements] = reinterpret_cast<float(&)[kUnitVectors][kVectorElements]>(value);
  u32 magnitude[kUnitVectors], largest = 0;
#pragma unroll
  for (int i = 0; i < kUnitVectors; ++i) {
    magnitude[i] = scale_and_measure(y[i], scale, sign_bits, 4 * i);
    largest = max_u32(largest, magnitude[i]);
  }
  BlockScales<kUnitVectors, NeighbouringLanes<kBlockIsRow || SCALE_TYPE == GIVEN_SCALE ? 1 : kBlockLanes>> scales;
  BlockScale of_all;
  if (SCALE_TYPE == GIVEN_SCALE) {
    of_all = q.scale_of(0);
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
      if (present && scales.stores(lane)) q.store_scale((u32)(index / (QUANTIZED_BLOCK > 0 ? QUANTIZED_BLOCK : 1)), scales.own[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kUnitVectors; ++i) {
    const float reciprocal = kBlockIsRow || SCALE_TYPE == GIVEN_SCALE ? of_all.reciprocal : scales.reciprocal(i, lane);
    const int distance = first_distance + i * 32 * kVectorElements;
    if (elements_present(cursor, distance) == 0) continue;
    const u64 index = unit * kUnitElements + i * 32 * kVectorElements + lane * kVectorElements;
    encode_and_store(cursor.y + stored_bytes(distance), y[i], reciprocal, q, index);
  }
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  HADAMARD_ROWS(problem)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64 first = (i64)blockIdx.x * (WARPS * UNITS) + warp;
  // A warp past the end leaves as a whole. Within a warp, units past the end are computed on zeros and not stored:
  // a condition around shuffles and products would cost a convergence barrier for each of them.
  if (first * kUnitElements >= problem.rows * kSize) return;
  const Cursor cursor = make_cursor(problem, first, lane);
  Hadamard16 h;
  if (kTensorCores) h.init(lane, rows);
  begin_memory_accesses();
#if ENCODING
  QUANTIZER_OF_PARAMETERS(quantizer)
#endif

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

  let_next_kernel_start(AFTER_LOADS);

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

    if (SIGNS == SIGNS_BEFORE) apply_signs(packed[u], sign_bits);
    float value[kTiles][8];
    transform_tiles(value, packed[u], h, lane);

#if ENCODING
    quantize_tiles(quantizer, cursor, u * WARPS * kUnitElements, unit, value, (float)scale, sign_bits, lane);
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
}
