// heads.cu: queries, keys or values with one scale for each (batch, kv head), in two passes. The first, with MEASURES, finds
// the largest rotated magnitudes and stores nothing else; the second rotates again and quantizes with them, which moves 5 bytes
// an element where storing rotated values in between moves 7. Scales that are given need the second alone.
//
// Heads of 2^LOG2_SIZE elements, up to a tile. A token is a row of tiles. A warp keeps to WARP_TILES of them that lie side by side,
// and goes through a range of tokens, so that a lane's elements are always of the same heads: their maxima or scales stay in
// registers, and the angles of a rotary embedding serve all tiles of a token. The second pass goes through the same ranges
// backwards: what the first has read last is still in the L2 cache.
//
// A magnitude has 32 places, which warps take in turn: of 4096 warps that raise one place, each waits for the others (8192 tokens of
// 8 heads of 128: 17 us, and 8 us for the second pass). A lane of the second pass reads each.

constexpr int kTokenElements = HEADS * kSize;
constexpr int kWarpElements = WARP_TILES * kTileElements;
constexpr int kTokenWarps = kTokenElements / kWarpElements;
constexpr int kVectors = WARP_TILES * kTileVectors;         // of a lane, of one token
constexpr int kAccessElements = 32 * kVectorElements;       // from one of them to the next
constexpr int kScaleElements = kSize * (HEADS / KV_HEADS);  // neighbours in a token that share a scale
static_assert(kTokenElements % kWarpElements == 0, "a token is whole warps");

// Neighbouring lanes whose vectors share a scale, whatever their number.
__device__ constexpr int lanes_of_scale(int lanes) { return kScaleElements % (lanes * kVectorElements) == 0 ? lanes : lanes_of_scale(lanes / 2); }
constexpr int kScaleLanes = lanes_of_scale(32);
static_assert(PLACES == 32, "a place for each lane");

// The tokens of a sequence, and what a lane knows of its heads there.
struct Heads {
  u32 begin, end, batch;
  u32 first_element;        // of the lane's first vector in a token
  float largest[kVectors];  // MEASURES: magnitudes, not multiplied by the scale yet, which is monotonic
  float reciprocal[kVectors];

  __device__ __forceinline__ void enter(u32 token, u32 tokens_of_sequence) {
    batch = token / tokens_of_sequence;
    begin = batch * tokens_of_sequence;
    end = begin + tokens_of_sequence;
  }

  // The number, among all, of the scale of the vector that starts at an element of a token.
  __device__ __forceinline__ u32 scale_of(u32 element) const { return batch * KV_HEADS + element / kScaleElements; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) largest[v] = 0.f;
  }

  __device__ __forceinline__ void measure(int tile, const float (&value)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& found = largest[tile * kTileVectors + i / kVectorElements % kTileVectors];
      found = max_NaN_f32(found, abs_f32(value[i]));
    }
  }

  __device__ __forceinline__ void publish(char* magnitudes, float scale, u32 place, int lane) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      u32 magnitude = mov_b32_f32(abs_f32(mul_rn_f32(largest[v], scale)));
      if (kScaleLanes == 32) {
        magnitude = redux_sync_max_u32(magnitude);
      } else {
#pragma unroll
        for (int distance = 1; distance < kScaleLanes; distance *= 2) magnitude = max_u32(magnitude, shfl_sync_bfly(magnitude, distance));
      }
      const u32 number = scale_of(first_element + v * kAccessElements);
      if (lane % kScaleLanes == 0) red_global_max_u32(magnitudes + 4 * (number * PLACES + place), magnitude);
    }
  }

  // `stores`: this warp has the sequence's first token.
  __device__ __forceinline__ void load_scales(const Quantizer& q, bool stores, int lane) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const u32 element = first_element + v * kAccessElements;
      if (SCALE_TYPE == GIVEN_HEAD_SCALES) {
        reciprocal[v] = q.given_of_heads(scale_of(element));
        continue;
      }
#pragma unroll
      for (int lanes = 0; lanes < 32; lanes += kScaleLanes) {  // those that share a scale
        const u32 number = scale_of(element + (lanes - lane) * kVectorElements);
        const BlockScale scale = q.scale_of(redux_sync_max_u32(ld_global_u32(q.of_heads + 4 * (number * PLACES + lane))));
        if (lane / kScaleLanes * kScaleLanes != lanes) continue;
        reciprocal[v] = scale.reciprocal;
        if (stores && element % kScaleElements == 0) st_global_u32(q.scales + 4 * number, scale.code);
      }
    }
  }
};

#if PROLOGUE
// The rotary embedding of a lane's vectors of one token. Vectors lie at the same columns of their heads, all or every second one.
constexpr int kAngleSets = kAccessElements % kSize == 0 ? 1 : 2;
constexpr bool kAllTurn = 2 * ROTARY_PAIRS == kSize;

struct Turns {
  Angles angles[kAngleSets];

  __device__ __forceinline__ static int column(int v, int lane) { return (v * kAccessElements + lane * kVectorElements) & (kSize - 1); }
  __device__ __forceinline__ static bool turns(int v, int lane) { return kAllTurn || column(v, lane) < 2 * ROTARY_PAIRS; }

  __device__ __forceinline__ void load(const Prologue& prologue, u32 place, int lane) {
    const u64 position = prologue.position(place);
#pragma unroll
    for (int v = 0; v < kAngleSets; ++v) {
      if (turns(v, lane)) prologue.load_angles(angles[v], position, column(v, lane));
    }
  }

  // The partners of a vector's elements. Heads of 16-bit elements lie within one access of the warp: a lane has them.
  __device__ __forceinline__ static uint4 partner(const Prologue& prologue, const uint4& vector, int v, u64 index, int lane) {
    if (PROLOGUE != ROPE_HALF) return vector;
    const int distance = column(v, lane) < ROTARY_PAIRS ? ROTARY_PAIRS : -ROTARY_PAIRS;
    if (!kSixteenBit) return turns(v, lane) ? ld_global_v4(prologue.x + (index + distance) * kElementBytes) : vector;
    const u32 from = lane + distance / kVectorElements;
    return make_uint4(shfl_sync_idx(vector.x, from), shfl_sync_idx(vector.y, from), shfl_sync_idx(vector.z, from), shfl_sync_idx(vector.w, from));
  }

  __device__ __forceinline__ VectorValues apply(const uint4& vector, const uint4& partner, int v, int lane) const {
    VectorValues values = values_of(vector);
    if (turns(v, lane)) turn(values, values_of(partner), angles[v % kAngleSets]);
    return values;
  }
};
#endif

// `y`: codes, or with MEASURES the places of a u32 for each (batch, kv head), 0 before. `rows`: heads of all tokens.
// `scale_rows`: tokens of a sequence.
extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) hadamard_transform(HADAMARD_PARAMETERS) {
  const int lane = threadIdx.x % 32;
  const u32 worker = blockIdx.x * WARPS + shfl_sync_idx((u32)threadIdx.x / 32, 0);
  const u32 tokens_of_all = (u32)(rows / HEADS), tokens_of_sequence = (u32)scale_rows;
  const u32 ranges = gridDim.x * WARPS / kTokenWarps, range = worker / kTokenWarps;
  const u32 of_range = (tokens_of_all + ranges - 1) / ranges;
  const u32 first = range * of_range;
  if (range >= ranges || first >= tokens_of_all) return;
  const u32 count = first + of_range < tokens_of_all ? of_range : tokens_of_all - first;
  HADAMARD_ROWS(problem)
#if PROLOGUE
  PROLOGUE_OF_PARAMETERS(prologue)
#endif
  Hadamard16 h;
  if (kTensorCores) h.init(lane, rows);
  begin_memory_accesses();
  QUANTIZER_OF_PARAMETERS(quantizer)

  SignBits<kTileWords> sign_bits;
  sign_bits.clear();
#if SIGNS
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v)
    sign_bits.insert_vector(v, ld_global_v4(problem.signs + (vector_offset(v, lane) & (kSize - 1)) * kElementBytes));
#endif

  Heads heads;
  heads.first_element = worker % kTokenWarps * kWarpElements + lane * kVectorElements;
  const auto token_of = [&](u32 i) { return MEASURES ? first + i : first + count - 1 - i; };
  const auto load = [&](uint4(&vector)[kVectors], u32 token) {
    const char* source = problem.x + ((u64)token * kTokenElements + heads.first_element) * kElementBytes;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) vector[v] = ld_global_v4(source + v * kAccessElements * kElementBytes);
  };

  uint4 next[kVectors];
  load(next, token_of(0));
  u32 done = 0;
  while (done < count) {
    heads.enter(token_of(done), tokens_of_sequence);
    if (MEASURES) heads.clear();
    else heads.load_scales(quantizer, first <= heads.begin, lane);
    const u32 in_sequence = MEASURES ? heads.end - (first + done) : first + count - done - heads.begin;
    const u32 end = done + in_sequence < count ? done + in_sequence : count;
#if PROLOGUE
    const u32 first_place = heads.begin % prologue.tokens;  // positions are those of one sequence, or of all
#endif
#pragma unroll 1
    for (; done < end; ++done) {
      const u32 token = token_of(done);
      uint4 vector[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) vector[v] = next[v];
      // The next token is on its way while this one is rotated; the last one once more, where there is none.
      load(next, token_of(done + 1 < count ? done + 1 : done));
      const u64 index = (u64)token * kTokenElements + heads.first_element;
#if PROLOGUE
      Turns turns;
      turns.load(prologue, first_place + (token - heads.begin), lane);
#endif
#pragma unroll
      for (int tile = 0; tile < WARP_TILES; ++tile) {
        float value[1][8];
#if PROLOGUE
        TileValues tiles[1];
#pragma unroll
        for (int v = 0; v < kTileVectors; ++v) {
          const int w = tile * kTileVectors + v;
          VectorValues values = turns.apply(vector[w], Turns::partner(prologue, vector[w], w, index + w * kAccessElements, lane), w, lane);
          if (SIGNS) apply_signs(values, sign_bits, 4 * v);
#pragma unroll
          for (int e = 0; e < kVectorElements; ++e) tiles[0].v[v * kVectorElements + e] = values.v[e];
        }
#else
        PackedTile tiles[1];
#pragma unroll
        for (int v = 0; v < kTileVectors; ++v) set_vector(tiles[0], v, vector[tile * kTileVectors + v]);
        if (SIGNS) apply_signs(tiles, sign_bits);
#endif
        transform_tiles(value, tiles, h, lane);
        if (MEASURES) {
          heads.measure(tile, value[0]);
          continue;
        }
        float(&y)[kTileVectors][kVectorElements] = reinterpret_cast<float(&)[kTileVectors][kVectorElements]>(value[0]);
#pragma unroll
        for (int v = 0; v < kTileVectors; ++v) {
          const int w = tile * kTileVectors + v;
#pragma unroll
          for (int e = 0; e < kVectorElements; ++e) y[v][e] = mul_rn_f32(y[v][e], (float)scale);
          const u64 at = index + w * kAccessElements;
          encode_and_store(problem.y + stored_bytes(at), y[v], heads.reciprocal[w], quantizer, at);
        }
      }
    }
    if (MEASURES) heads.publish(problem.y, (float)scale, range % PLACES, lane);
  }
  let_next_kernel_start(AFTER_LOADS);
}
