// head_maxima.cu: the largest magnitude of the rotated queries, or keys, of each (batch, kv head), and nothing else.
//
// The first pass of two: the second rotates again and quantizes with these (warp_rows.cu), which moves 5 bytes an element where
// storing rotated values in between moves 7. Heads of 2^LOG2_SIZE elements, up to a tile.
//
// A token is a row of tiles. A warp keeps to one of them, for CHUNK tokens of a sequence, so that a lane's elements are always
// of the same head: its maximum stays in a register, and is told to the others once.

constexpr int kTokenElements = HEADS * kSize;
constexpr int kTokenTiles = kTokenElements / kTileElements;
static_assert(kTokenElements % kTileElements == 0, "a token is whole tiles");
static_assert(CHUNK % TOKENS_AT_ONCE == 0, "a chunk is whole steps");

// The largest value of LANES neighbouring lanes.
template <int LANES>
__device__ __forceinline__ u32 largest_of_lanes(u32 v) {
#pragma unroll
  for (int distance = 1; distance < LANES; distance *= 2) v = max_u32(v, shfl_sync_bfly(v, distance));
  return v;
}

// `y`: one u32 for each (batch, kv head), 0 before. `rows`: heads of all tokens. `scale_rows`: tokens of a sequence.
extern "C" __global__ void __launch_bounds__(32 * WARPS) hadamard_transform(HADAMARD_PARAMETERS) {
  const int lane = threadIdx.x % 32;
  const u32 worker = blockIdx.x * WARPS + threadIdx.x / 32;
  const u32 tile = worker % kTokenTiles, chunk = worker / kTokenTiles;
  const u32 tokens_of_sequence = (u32)scale_rows, chunks = (tokens_of_sequence + CHUNK - 1) / CHUNK;
  const u32 batch = chunk / chunks, first = chunk % chunks * CHUNK;
  if ((u64)batch * tokens_of_sequence >= (u64)rows / HEADS) return;
  const u32 last = first + CHUNK < tokens_of_sequence ? first + CHUNK : tokens_of_sequence;
  HADAMARD_ROWS(problem)
#if PROLOGUE
  PROLOGUE_OF_PARAMETERS(prologue)
#endif
  Hadamard16 h;
  if (kTensorCores) h.init(lane, rows);
  begin_memory_accesses();

  SignBits<kTileWords> sign_bits;
  sign_bits.clear();
#if SIGNS
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v)
    sign_bits.insert_vector(v, ld_global_v4(problem.signs + (vector_offset(v, lane) & (kSize - 1)) * kElementBytes));
#endif

  float largest[kTileVectors];
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) largest[v] = 0.f;
#pragma unroll 1
  for (u32 token = first; token < last; token += TOKENS_AT_ONCE) {
#if PROLOGUE
    RawVector raw[TOKENS_AT_ONCE][kTileVectors];
#else
    PackedTile packed[TOKENS_AT_ONCE];
#endif
#pragma unroll
    for (int i = 0; i < TOKENS_AT_ONCE * kTileVectors; ++i) {
      const int n = i / kTileVectors, v = i % kTileVectors;
      // The last token again where there is no other: it changes no maximum.
      const u32 at = token + n < last ? token + n : last - 1;
      const u64 index = ((u64)batch * tokens_of_sequence + at) * kTokenElements + tile * kTileElements + vector_offset(v, lane);
#if PROLOGUE
      raw[n][v] = prologue.load(index);
#else
      set_vector(packed[n], v, ld_global_v4(problem.x + index * kElementBytes));
#endif
    }
#pragma unroll
    for (int n = 0; n < TOKENS_AT_ONCE; ++n) {
      float value[1][8];
#if PROLOGUE
      TileValues tiles[1];
      const u32 at = token + n < last ? token + n : last - 1;
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) {
        const u64 index = ((u64)batch * tokens_of_sequence + at) * kTokenElements + tile * kTileElements + vector_offset(v, lane);
        float squares;
        VectorValues values = prologue.apply(raw[n][v], index, squares);
        if (SIGNS) apply_signs(values, sign_bits, 4 * v);
#pragma unroll
        for (int e = 0; e < kVectorElements; ++e) tiles[0].v[v * kVectorElements + e] = values.v[e];
      }
#else
      PackedTile tiles[1] = {packed[n]};
      if (SIGNS) apply_signs(tiles, sign_bits);
#endif
      transform_tiles(value, tiles, h, lane);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& found = largest[i / kVectorElements % kTileVectors];
        found = max_NaN_f32(found, abs_f32(mul_rn_f32(value[0][i], (float)scale)));
      }
    }
  }
  let_next_kernel_start(AFTER_LOADS);

  constexpr int kHeadLanes = kSize / kVectorElements < 32 ? kSize / kVectorElements : 32;
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    const u32 of_head = largest_of_lanes<kHeadLanes>(mov_b32_f32(largest[v]));
    const u32 head = (tile * kTileElements + vector_offset(v, lane)) / kSize;
    if (lane % kHeadLanes == 0) red_global_max_u32(problem.y + 4 * (batch * KV_HEADS + head / (HEADS / KV_HEADS)), of_head);
  }
}
