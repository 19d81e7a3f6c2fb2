// warpgroup_panel.cuh: rows of size m * 2^k, k >= 6, in shared memory, for products by wgmma on both sides.
//
// A row is a panel of m rows i and 2^k columns j. In shared memory it is groups of 64 columns, a group 128 bytes for each i in the 128-byte
// swizzle, so that it is a B operand: N = i, K = column. Results take the place of what they were made of, in the same order.

#define BASE_PARAMETERS
constexpr bool kFloat16Panel = ELEMENT == FLOAT16;  // else bfloat16, or tf32 after a prologue
constexpr u32 kOnePair = kFloat16Panel ? 0x3c003c00u : 0x3f803f80u;  // 1, 1
constexpr int kColumns = 1 << LOG2_SIZE;
constexpr int kGroups = kColumns / 64;
constexpr int kRowTiles = (ORDER + 7) / 8;  // N tiles of 8 rows
constexpr int kPanelRows = 8 * kRowTiles;
constexpr int kThreads = 128 * WARPGROUPS;  // that multiply
constexpr int kProducers = 128 * PRODUCERS;  // that read and activate rows for them (warpgroup_producers.cuh)

// Which columns c' and rows i' a warpgroup computes. COLUMN_SPLITS and ORDER_SPLITS blocks, and the warpgroups of a block, share a row.
constexpr int kShares = WARPGROUPS * COLUMN_SPLITS;
constexpr int kSelectedShares = kShares / TENSOR_SHARES;
constexpr int kOwnGroups = kGroups / kShares;
constexpr int kOwnTiles = (kRowTiles + ORDER_SPLITS - 1) / ORDER_SPLITS;
constexpr int kOwnRows = 8 * kOwnTiles;
constexpr bool kRowsMayBeMissing = kOwnRows * ORDER_SPLITS > ORDER;
static_assert(kSixteenBit && LOG2_SIZE >= 6 && kOwnGroups >= 1 && kSelectedShares >= 1 && kPanelRows <= 256, "what this kernel takes");
static_assert(!PROLOGUE || (kGated && !STRIDED), "gated activations are the prologues it has");
static_assert(!REFILLED || (STAGES == 1 && ENCODING), "codes have a place of their own, results have not");
static_assert(!PRODUCERS || (STAGES == 1 && PROLOGUE), "producers activate rows, and have one stage");

// What shared memory holds: stages, the base as B operand, [64 columns][row][128 bytes], H64 as A, with TENSOR_SHARES its negative
// too, and codes where the next row takes the panel's place. A gated activation has two panels a stage (both_tensors.cuh).
constexpr int kPanels = PROLOGUE ? 2 : 1;
constexpr u32 kGroupBytes = 128 * kPanelRows;
constexpr u32 kPanelBytes = kGroups * kGroupBytes;
constexpr u32 kStageBytes = kPanels * kPanelBytes;
constexpr u32 kBase = STAGES * kStageBytes;
constexpr u32 kBaseBlockBytes = 128 * kOwnRows;
constexpr int kBaseColumns = kToTf32 ? kPanelRows : ORDER;
constexpr int kBaseVector = kToTf32 ? 4 : 8;  // elements of 16 bytes
constexpr u32 kColumnMatrix = kBase + kBaseBlockBytes * ((kBaseColumns + 8 * kBaseVector - 1) / (8 * kBaseVector));
constexpr u32 kColumnMatrixBytes = kPanels * 64 * 128;
constexpr int kColumnMatrices = TENSOR_SHARES > 1 ? 2 : 1;
constexpr u32 kCodes = kColumnMatrix + kColumnMatrices * kColumnMatrixBytes;

// A barrier of those that multiply.
__device__ __forceinline__ void bar_sync_multiplying() {
  if (PRODUCERS) bar_sync_of(1, kThreads);
  else bar_sync();
}

// A thread's vectors of a panel: 16 rows at a time, a vector for each thread of a warpgroup; those that read rows take groups in turn.
// Addresses advance by constants, as n is one.
constexpr int kReaders = PRODUCERS ? PRODUCERS : WARPGROUPS;
constexpr int kVectorsOfGroup = (ORDER + 15) / 16;
constexpr int kOwnVectors = (kGroups + kReaders - 1) / kReaders * kVectorsOfGroup;
struct OwnVectors {
  u32 first_address;  // in shared memory
  int first_offset;   // in the row
  int i, first_group;

  __device__ __forceinline__ explicit OwnVectors(u32 stage) {
    const int thread = threadIdx.x % 128, chunk = thread & 7;
    i = thread >> 3;
    first_group = kReaders == 1 ? 0 : threadIdx.x / 128 - (PRODUCERS ? WARPGROUPS : 0);
    first_address = stage + first_group * kGroupBytes + 128 * i + 16 * ((chunk ^ i) & 7);
    first_offset = i * kColumns + 64 * first_group + 8 * chunk;
  }

  __device__ __forceinline__ static constexpr int group(int n) { return n / kVectorsOfGroup * kReaders; }
  __device__ __forceinline__ static constexpr int row(int n) { return n % kVectorsOfGroup * 16; }
  __device__ __forceinline__ u32 address(int n) const { return first_address + group(n) * kGroupBytes + 128 * row(n); }
  __device__ __forceinline__ static constexpr int distance(int n) { return row(n) * kColumns + 64 * group(n); }  // from the first one
  __device__ __forceinline__ bool exists(int n) const {
    if (group(n) + kReaders > kGroups && first_group + group(n) >= kGroups) return false;
    return row(n) + 16 <= ORDER || i + row(n) < ORDER;
  }
};

__device__ __forceinline__ void start_row(const Rows& r, i64 row, u32 stage) {
#if PROLOGUE
  const char* first = r.x + start_of_both(row) * kElementBytes;
#else
  const char* first = r.x + row_start(r, row, r.x_outer, r.x_inner) * kElementBytes;
#endif
  const OwnVectors own(stage);
#pragma unroll
  for (int n = 0; n < kOwnVectors; ++n) {
    if (!own.exists(n)) continue;
    const char* source = first + own.first_offset * kElementBytes + own.distance(n) * kElementBytes;
    cp_async_cg_16(own.address(n), source);
    if (PROLOGUE) cp_async_cg_16(own.address(n) + kPanelBytes, source + r.second);
  }
  cp_async_commit_group();
}

__device__ __forceinline__ uint4 signs_at(const Rows& r, i64 row, int offset) {
  return ld_global_v4(r.signs + ((row % r.sign_rows) * kSize + offset) * kElementBytes);
}

#if PROLOGUE
// Elements 0 to 3 of an activated vector take the place of its gates, and 4 to 7 that of its ups.
__device__ __forceinline__ void put_words(u32 address, const VectorValues& values) {
#pragma unroll
  for (int panel = 0; panel < 2; ++panel) {
    const float* v = values.v + 4 * panel;
    st_shared_v4_b32(address + panel * kPanelBytes, make_uint4(to_tf32(v[0]), to_tf32(v[1]), to_tf32(v[2]), to_tf32(v[3])));
  }
}

// Several vectors are loaded before any is stored, so that their exponentials and reciprocals overlap.
__device__ __forceinline__ void activate_row(const Rows& r, const Prologue& prologue, i64 row, u32 stage) {
  constexpr int kAtOnce = 4;
  const OwnVectors own(stage);
#pragma unroll
  for (int first = 0; first < kOwnVectors; first += kAtOnce) {
    RawVector raw[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int n = first + k;
      if (n < kOwnVectors && own.exists(n)) raw[k] = {ld_shared_v4(own.address(n)), ld_shared_v4(own.address(n) + kPanelBytes)};
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int n = first + k;
      if (n >= kOwnVectors || !own.exists(n)) continue;
      float squares;
      VectorValues values = prologue.apply(raw[k], 0, squares);
      if (SIGNS == SIGNS_BEFORE) {
        SignBits<4> sign_bits;
        sign_bits.clear();
        sign_bits.insert_vector(0, signs_at(r, row, own.first_offset + own.distance(n)));
        apply_signs(values, sign_bits, 0);
      }
      put_words(own.address(n), values);
    }
  }
}
#endif

// This thread's copies have arrived, and it applies signs, where no activation does, to what it copied itself.
__device__ __forceinline__ void finish_row(const Rows& r, i64 row, u32 stage) {
  if (SIGNS == SIGNS_BEFORE && !PROLOGUE) {
    const OwnVectors own(stage);
#pragma unroll
    for (int n = 0; n < kOwnVectors; ++n) {
      if (own.exists(n))
        st_shared_v4_b32(own.address(n), flip_signs(ld_shared_v4(own.address(n)), signs_at(r, row, own.first_offset + own.distance(n))));
    }
  }
  fence_proxy_async();  // what threads wrote, for wgmma, which reads by another path
}

// The column c' that M has for row `row`: the same, or for codes the order that warpgroup_quantize.cuh wants, where a lane's two are
// neighbours: of w w h g2 g1 g0, w w g2 g1 g0 h, and for 4-bit codes w w g1 g0 g2 h.
__device__ __forceinline__ int column_of_row(int row) {
  if (!ENCODING) return row;
  return (row & 48) | (kStoredBits == 4 ? (row & 3) << 2 | (row >> 1 & 2) : (row & 7) << 1) | (row >> 3 & 1);
}

// H64 as the A operand of the first product, and its negative where shares differ: row c' is M, K = c is contiguous, 8 to a vector; or,
// of tf32, 4 of 8 to a vector, the others in a matrix for the second panel.
__device__ __forceinline__ void write_column_matrices(u32 matrix) {
#pragma unroll 1
  for (int index = threadIdx.x; index < kColumnMatrices * kPanels * 64 * 8; index += kThreads) {
    const int row = index >> 3 & 63, vector = index & 7, panel = kPanels == 1 ? 0 : index >> 9 & 1;
    const u32 of_shares = index >> (kPanels == 1 ? 9 : 10), negative = of_shares ? kNegatePair : 0u;
    const int column = column_of_row(row);
    u32 word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if (PROLOGUE) {
        word[w] = kOne ^ ((u32)__popc(column & (8 * vector + 4 * panel + w)) + of_shares) << 31;
      } else {
        const u32 sign = (u32)__popc(column & (8 * vector + 2 * w)) & 1;
        word[w] = kOnePair ^ negative ^ (sign << 15) ^ ((sign ^ (column & 1)) << 31);
      }
    }
    st_shared_v4_b32(matrix + 128 * (index >> 3) + 16 * ((vector ^ row) & 7), make_uint4(word[0], word[1], word[2], word[3]));
  }
}

// Rows first_row .. of the base as the B operand of the second product: row i' is N, K = i is contiguous, 8 to a vector; or, of tf32,
// even ones of 8 and then odd ones, as accumulators of the first product are fragments then.
__device__ __forceinline__ void write_base(u32 base, int first_row) {
  constexpr int kVectors = kToTf32 ? kPanelRows / 4 : 2 * ((ORDER + 15) / 16);  // of a row
  constexpr int kVectorsOfWord = 32 / kBaseVector;
  constexpr int kTimes = (kOwnRows * kVectors + kThreads - 1) / kThreads;
  u32 signs[kTimes];  // all loads first
#pragma unroll
  for (int n = 0; n < kTimes; ++n) {
    const int index = threadIdx.x + n * kThreads, row = first_row + index / kVectors;
    // Results of rows past the last are dropped.
    signs[n] = ld_global_u32(base_row_signs + (row < ORDER ? row : 0) * kWordsOfRow + index % kVectors / kVectorsOfWord);
  }
#pragma unroll
  for (int n = 0; n < kTimes; ++n) {
    const int index = threadIdx.x + n * kThreads, row = index / kVectors, vector = index % kVectors;
    if (kOwnRows * kVectors % kThreads != 0 && index >= kOwnRows * kVectors) continue;
    const u32 of_eight = signs[n] >> (8 * ((kToTf32 ? vector / 2 : vector) % 4));
    u32 word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if (kToTf32) word[w] = kOne ^ (of_eight >> (2 * w + vector % 2)) << 31;
      else word[w] = 0x3f803f80u ^ ((of_eight >> (2 * w)) << 15 & 0x8000u) ^ ((of_eight >> (2 * w + 1)) << 31);
    }
    st_shared_v4_b32(base + vector / 8 * kBaseBlockBytes + 128 * row + 16 * ((vector ^ row) & 7), make_uint4(word[0], word[1], word[2], word[3]));
  }
}
