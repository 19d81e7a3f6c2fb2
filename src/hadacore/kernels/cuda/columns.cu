// columns.cu: contracts index bits that lie above others: x is (outer, 2^LOG2_POINTS, inner), and the middle index is
// transformed. Rows too large for one pass over memory are contracted from below by the row kernels, and then by this.
//
// A block takes a tile: all 2^LOG2_POINTS points of COLUMNS neighbouring columns, COLUMNS being large enough that a row
// of the tile is at least one 32-byte sector of memory. A thread holds the points of the lower bits, contracts them in
// registers, and after one trip through shared memory those of the upper bits.
//
// Running example, 256 points, 32 columns, 256 threads, 4 lower bits, float32. Index bits p of the point and c of the
// column, and where they sit:
//   loaded, contracted first   p 3..0 registers   p 7..4 = thread 7..4   c 4..1 = thread 3..0   c 0 = position
//   after the exchange         p 7..4 registers   p 3..0 = thread 7..4   c 4..1 = thread 3..0   c 0 = position
// All bits are contracted upwards, so all configurations give the same bits, as do all ways to divide a row into passes.
//
// In place is safe: a block stores exactly what it has loaded, all of it after all loads.

constexpr int kPoints = 1 << LOG2_POINTS;
constexpr int kLower = 1 << LOWER_BITS;    // points of a thread before the exchange
constexpr int kUpper = kPoints / kLower;   // and after it
constexpr int kThreads = 32 * WARPS;
constexpr int kValues = kPoints * COLUMNS / kThreads;
constexpr int kLoadColumns = kValues / kLower;    // neighbouring columns of a thread, one access
constexpr int kStoreColumns = kValues / kUpper;
constexpr int kLoadLanes = COLUMNS / kLoadColumns;  // threads that share a row of the tile
constexpr int kStoreLanes = COLUMNS / kStoreColumns;
constexpr int kStoreWords = kStoreColumns * kOutputBytes / 4;
static_assert(kLoadColumns * kLower == kValues && kLoadColumns <= 4, "one shared-memory access must hold a thread's columns");
static_assert(kStoreColumns * kUpper == kValues && kStoreColumns <= 4 && kStoreWords >= 1, "likewise, and whole words of output");

// fp32 values lie in the exchange buffer as in the tile. Threads that write at once have rows kLower apart; where a row
// is shorter than the 32 banks, a gap after each kLower rows keeps those rows in different banks.
constexpr u32 kRowBytes = 4 * COLUMNS;
constexpr u32 kGap = COLUMNS < 32 ? kRowBytes : 0;
constexpr u32 kLowerRowsBytes = kLower * kRowBytes + kGap;

// Signs after the transform are loaded for so many rows at once: of all rows they would take as many registers as the
// values, of one each load would be waited for alone, since the compiler does not move loads across stores.
constexpr int kSignRows = 512 / kValues / kStoreWords;
constexpr int kRowsAtOnce = SIGNS == SIGNS_AFTER && kSignRows < kUpper ? kSignRows : kUpper;

// The elements of one access, as they are in memory; 16-bit columns that are alone fill half a word.
constexpr int kLoadWords = (kLoadColumns * kElementBytes + 3) / 4;

__device__ __forceinline__ void load_words(u32 (&word)[kLoadWords], const char* address) {
  if (kLoadWords == 4) {
    const uint4 v = ld_global_v4(address);
    word[0] = v.x;
    word[1 % kLoadWords] = v.y;
    word[2 % kLoadWords] = v.z;
    word[3 % kLoadWords] = v.w;
  } else if (kLoadWords == 2) {
    const uint2 v = ld_global_v2(address);
    word[0] = v.x;
    word[1 % kLoadWords] = v.y;
  } else {
    word[0] = kLoadColumns * kElementBytes == 2 ? ld_global_u16(address) : ld_global_u32(address);
  }
}

__device__ __forceinline__ void unpack_words(float (&value)[kLoadColumns], const u32 (&word)[kLoadWords]) {
#pragma unroll
  for (int i = 0; i < kLoadColumns; ++i) {
    if (!kSixteenBit) value[i] = mov_f32_b32(word[i % kLoadWords]);
    else value[i] = i % 2 == 0 ? low_to_float(word[i / 2]) : high_to_float(word[i / 2]);
  }
}

__device__ __forceinline__ void write_columns(u32 address, const float (&v)[kLoadColumns]) {
  if (kLoadColumns == 4) st_shared_v4_f32(address, v[0], v[1 % kLoadColumns], v[2 % kLoadColumns], v[3 % kLoadColumns]);
  else if (kLoadColumns == 2) st_shared_v2_f32(address, v[0], v[1 % kLoadColumns]);
  else st_shared_f32(address, v[0]);
}

__device__ __forceinline__ void read_columns(float (&value)[kStoreColumns], u32 address) {
  if (kStoreColumns == 4) {
    const float4 v = ld_shared_v4_f32(address);
    value[0] = v.x;
    value[1 % kStoreColumns] = v.y;
    value[2 % kStoreColumns] = v.z;
    value[3 % kStoreColumns] = v.w;
  } else if (kStoreColumns == 2) {
    const float2 v = ld_shared_v2_f32(address);
    value[0] = v.x;
    value[1 % kStoreColumns] = v.y;
  } else {
    value[0] = ld_shared_f32(address);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, MIN_BLOCKS)
hadamard_transform(const char* x, char* y, double scale, i64 inner SIGNS_PARAMETERS) {
  const u32 tiles = (u32)(inner / COLUMNS);  // of one outer index; 2^32 tiles are beyond any memory
  const u32 outer = blockIdx.x / tiles;
  const i64 first_column = (i64)(blockIdx.x - outer * tiles) * COLUMNS;
  const i64 start = (i64)outer * kPoints * inner + first_column;
#if SIGNS != 0
  const i64 sign_start = (i64)(outer % (u32)sign_rows) * kPoints * inner + first_column;
#endif

  // This thread's first element before the exchange, from the tile's, and after it; the others lie rows apart.
  const int load_group = threadIdx.x / kLoadLanes, load_column = threadIdx.x % kLoadLanes * kLoadColumns;
  const int store_row = threadIdx.x / kStoreLanes, store_column = threadIdx.x % kStoreLanes * kStoreColumns;
  const i64 load_first = load_group * kLower * inner + load_column;
  const i64 store_first = store_row * inner + store_column;
  const u32 shared = cvta_to_shared_dynamic();

  begin_memory_accesses();

  u32 word[kLower][kLoadWords];
  const char* source = x + (start + load_first) * kElementBytes;
#pragma unroll
  for (int i = 0; i < kLower; ++i) load_words(word[i], source + i * inner * kElementBytes);
  let_next_kernel_start(AFTER_LOADS);

#if SIGNS == 1
  const char* signs_source = signs + (sign_start + load_first) * kElementBytes;
#pragma unroll
  for (int i = 0; i < kLower; ++i) {
    u32 sign_word[kLoadWords];
    load_words(sign_word, signs_source + i * inner * kElementBytes);
#pragma unroll
    for (int w = 0; w < kLoadWords; ++w) word[i][w] ^= sign_word[w] & kSignMask;
  }
#endif

  float lower[kLower][kLoadColumns];
#pragma unroll
  for (int i = 0; i < kLower; ++i) unpack_words(lower[i], word[i]);
  outer_butterflies(lower);

  const u32 write_at = shared + load_group * kLowerRowsBytes + 4 * load_column;
#pragma unroll
  for (int i = 0; i < kLower; ++i) write_columns(write_at + i * kRowBytes, lower[i]);
  let_next_kernel_start(BEFORE_EXCHANGE);
  bar_sync();

  float upper[kUpper][kStoreColumns];
  const u32 read_at = shared + store_row * kRowBytes + 4 * store_column;
#pragma unroll
  for (int i = 0; i < kUpper; ++i) read_columns(upper[i], read_at + i * kLowerRowsBytes);
  outer_butterflies(upper);

  char* target = y + (start + store_first) * kOutputBytes;
#pragma unroll
  for (int first = 0; first < kUpper; first += kRowsAtOnce) {
    SignBits<kRowsAtOnce * kStoreWords> sign_bits;
#if SIGNS == 2
    sign_bits.clear();
    const char* signs_source = signs + (sign_start + store_first) * kOutputBytes;
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
#pragma unroll
      for (int w = 0; w < kStoreWords; ++w)
        sign_bits.insert(i * kStoreWords + w, ld_global_u32(signs_source + (first + i) * kLower * inner * kOutputBytes + 4 * w));
    }
#endif
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      u32 result[kStoreWords];
      scale_and_round(result, upper[first + i], (float)scale, sign_bits, i * kStoreWords);
      store_words(target + (first + i) * kLower * inner * kOutputBytes, result);
    }
  }
}
