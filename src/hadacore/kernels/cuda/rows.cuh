// rows.cuh: where rows are in memory, and how a lane's vectors of a row are loaded and stored.
//
// A unit is what one pass of the kernel works on: one row, or, below size 256, the 256 elements of several
// consecutive rows ("packed" rows), of which the last unit may be incomplete.

constexpr int kSize = 1 << LOG2_SIZE;
constexpr bool kPackedRows = LOG2_SIZE < 8;
constexpr bool kVectorSpansRows = kSize < kVectorElements;

// The kernel's parameters. Those that a configuration does not use are not passed at all.
#define HADAMARD_PARAMETERS \
  const char *x, char *y, double scale, i64 rows SIGNS_PARAMETERS STRIDED_PARAMETERS
#if SIGNS != 0
#define SIGNS_PARAMETERS , const char *signs, i64 sign_rows
#else
#define SIGNS_PARAMETERS
#endif
#if STRIDED
#define STRIDED_PARAMETERS , i64 inner_rows, i64 x_outer, i64 x_inner, i64 y_outer, i64 y_inner
#else
#define STRIDED_PARAMETERS
#endif

struct Rows {
  const char* x;
  char* y;
  i64 rows;
  const char* signs;  // sign_rows * kSize elements, which repeat
  i64 sign_rows;
  i64 inner_rows, x_outer, x_inner, y_outer, y_inner;  // in elements; row = outer * inner_rows + inner
};

#define HADAMARD_ROWS(name)                                                                \
  Rows name = {x, y, rows, nullptr, 1, 1, 0, 0, 0, 0};                                     \
  HADAMARD_ROWS_SIGNS(name)                                                                \
  HADAMARD_ROWS_STRIDED(name)
#if SIGNS != 0
#define HADAMARD_ROWS_SIGNS(name) name.signs = signs; name.sign_rows = sign_rows;
#else
#define HADAMARD_ROWS_SIGNS(name)
#endif
#if STRIDED
#define HADAMARD_ROWS_STRIDED(name)                                                        \
  name.inner_rows = inner_rows; name.x_outer = x_outer; name.x_inner = x_inner;            \
  name.y_outer = y_outer; name.y_inner = y_inner;
#else
#define HADAMARD_ROWS_STRIDED(name)
#endif

__device__ __forceinline__ i64 row_start(const Rows& r, i64 row, i64 outer_stride, i64 inner_stride) {
  if (!STRIDED) return row * kSize;
  const i64 outer = row / r.inner_rows;
  return outer * outer_stride + (row - outer * r.inner_rows) * inner_stride;
}

// The element offset in memory of a unit's element `offset`.
__device__ __forceinline__ i64 element_start(const Rows& r, i64 unit, int offset, i64 outer_stride, i64 inner_stride) {
  if (!kPackedRows) return row_start(r, unit, outer_stride, inner_stride) + offset;
  const i64 element = unit * kTileElements + offset;
  if (!STRIDED) return element;
  return row_start(r, element >> LOG2_SIZE, outer_stride, inner_stride) + (element & (kSize - 1));
}

// How many of the vector's elements exist: all, none, or, where a vector spans rows, some.
__device__ __forceinline__ int elements_present(const Rows& r, i64 unit, int offset) {
  if (!kPackedRows) return kVectorElements;
  const i64 left = r.rows * kSize - (unit * kTileElements + offset);
  if (kVectorSpansRows) return left >= kVectorElements ? kVectorElements : left < 0 ? 0 : (int)left;
  return left > 0 ? kVectorElements : 0;
}

__device__ __forceinline__ u32 load_element(const char* address) {
  return kSixteenBit ? ld_global_u16(address) : ld_global_u32(address);
}

// COUNT (1..kVectorElements) elements of `base` starting at element `start`, one by one; `period` > 0 wraps them.
__device__ __forceinline__ uint4 gather_elements(const char* base, i64 start, int count, i64 period) {
  u32 word[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    if (i < count) {
      const i64 element = period > 0 ? (start + i) % period : start + i;
      word[i * kElementBytes / 4] |= load_element(base + element * kElementBytes) << (kSixteenBit ? 16 * (i % 2) : 0);
    }
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// A vector of x; elements that do not exist are 0.
__device__ __forceinline__ uint4 load_vector(const Rows& r, i64 unit, int offset) {
  const int present = elements_present(r, unit, offset);
  if (present == 0) return make_uint4(0, 0, 0, 0);
  const i64 start = element_start(r, unit, offset, r.x_outer, r.x_inner);
  if (kVectorSpansRows && present < kVectorElements) return gather_elements(r.x, start, present, 0);
  return ld_global_v4(r.x + start * kElementBytes);
}

__device__ __forceinline__ void store_vector(const Rows& r, i64 unit, int offset, uint4 v) {
  const int present = elements_present(r, unit, offset);
  if (present == 0) return;
  char* target = r.y + element_start(r, unit, offset, r.y_outer, r.y_inner) * kElementBytes;
  if (kVectorSpansRows && present < kVectorElements) {
    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) {
      if (i < present) {
        if (kSixteenBit) st_global_u16(target + 2 * i, word[i / 2] >> (16 * (i % 2)));
        else st_global_u32(target + 4 * i, word[i % 4]);
      }
    }
    return;
  }
  st_global_v4(target, v);
}

// Where the signs of a unit's element `offset` start, in elements.
__device__ __forceinline__ i64 sign_start(const Rows& r, i64 unit, int offset) {
  if (!kPackedRows) return (unit % r.sign_rows) * kSize + offset;
  return (unit * kTileElements + offset) % (r.sign_rows * kSize);
}

__device__ __forceinline__ uint4 load_sign_vector(const Rows& r, i64 unit, int offset) {
  const i64 start = sign_start(r, unit, offset);
  if (kVectorSpansRows) return gather_elements(r.signs, start, kVectorElements, r.sign_rows * kSize);
  return ld_global_v4(r.signs + start * kElementBytes);
}
