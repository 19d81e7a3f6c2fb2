// rows.cuh: where rows are in memory, and how a lane's vectors of a row are loaded and stored.
//
// A unit is what one pass of the kernel works on: one row, or, below size 256, the 256 elements of several
// consecutive rows ("packed" rows), of which the last unit may be incomplete.

#ifndef ORDER  // of the base matrix, which the kernels of powers of two do not have
#define ORDER 1
#define BASE_PARAMETERS
#endif
constexpr int kSize = ORDER << LOG2_SIZE;
constexpr bool kPackedRows = LOG2_SIZE < 8;
constexpr bool kVectorSpansRows = kSize < kVectorElements;  // such rows are never strided
static_assert(!(STRIDED && kVectorSpansRows), "a row at a stride must be whole vectors");

// The kernel's parameters. Those that a configuration does not use are not passed at all.
#define HADAMARD_PARAMETERS \
  const char *x, char *y, double scale, i64 rows SIGNS_PARAMETERS STRIDED_PARAMETERS BASE_PARAMETERS PROLOGUE_PARAMETERS QUANTIZE_PARAMETERS
#if STRIDED
#define STRIDED_PARAMETERS , i64 inner_rows, i64 x_outer, i64 x_inner, i64 y_outer, i64 y_inner
#else
#define STRIDED_PARAMETERS
#endif

// Where an element of a result that is one flat array is, in bytes.
__device__ __forceinline__ constexpr i64 stored_bytes(i64 elements) { return elements * kStoredBits / 8; }

struct Rows {
  const char* x;
  char* y;
  i64 rows;
  const char* signs;  // sign_rows * kSize elements, which repeat
  i64 sign_rows;
  i64 inner_rows, x_outer, x_inner, y_outer, y_inner;  // in elements; row = outer * inner_rows + inner
  i64 second;  // bytes from a gate to its up, of kernels of sizes m * 2^k
};

#define HADAMARD_ROWS(name)                                                                \
  Rows name = {x, y, rows, nullptr, 1, 1, 0, 0, 0, 0, 0};                                  \
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

// Elements of a unit.
constexpr int kUnitElements = kPackedRows ? kTileElements : kSize;

// Where the vectors of one thread lie. A vector is named by its unit and its offset there, and by its distance in
// elements from the thread's first vector, a constant once loops are unrolled. Rows that follow one another are one
// flat array: an address is then a base plus that constant, and a vector exists if the constant is less than `left`.
struct Cursor {
  const char* x;
  char* y;
  int left;  // elements from the thread's first vector to the end, at most 2^30
};

__device__ __forceinline__ Cursor make_cursor(const Rows& r, i64 first_unit, int lane) {
  const i64 start = first_unit * kUnitElements + vector_offset(0, lane);
  const i64 left = r.rows * kSize - start;
  return {r.x + start * kElementBytes, r.y + stored_bytes(start), (int)(left < (1 << 30) ? left : 1 << 30)};
}

// How many of the vector's elements exist: all, none, or, where a vector spans rows, some.
__device__ __forceinline__ int elements_present(const Cursor& cursor, int distance) {
  // A whole row exists or does not: one comparison for all its vectors.
  if (!kPackedRows) return cursor.left > distance / kUnitElements * kUnitElements ? kVectorElements : 0;
  if (cursor.left <= distance) return 0;
  if (kVectorSpansRows && cursor.left < distance + kVectorElements) return cursor.left - distance;
  return kVectorElements;
}

// The element offset in memory of a unit's element `offset`, for rows at strides.
__device__ __forceinline__ i64 strided_start(const Rows& r, i64 unit, int offset, i64 outer_stride, i64 inner_stride) {
  if (!kPackedRows) return row_start(r, unit, outer_stride, inner_stride) + offset;
  const i64 element = unit * kTileElements + offset;
  return row_start(r, element >> LOG2_SIZE, outer_stride, inner_stride) + (element & (kSize - 1));
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
__device__ __forceinline__ uint4 load_vector(const Rows& r, const Cursor& cursor, int distance, i64 unit, int offset) {
  const int present = elements_present(cursor, distance);
  if (present == 0) return make_uint4(0, 0, 0, 0);
  if (STRIDED) return ld_global_v4(r.x + strided_start(r, unit, offset, r.x_outer, r.x_inner) * kElementBytes);
  const char* source = cursor.x + distance * kElementBytes;
  if (kVectorSpansRows && present < kVectorElements) return gather_elements(source, 0, present, 0);
  return ld_global_v4(source);
}

__device__ __forceinline__ void store_vector(const Rows& r, const Cursor& cursor, int distance, i64 unit, int offset, uint4 v) {
  const int present = elements_present(cursor, distance);
  if (present == 0) return;
  if (STRIDED) {
    st_global_v4(r.y + strided_start(r, unit, offset, r.y_outer, r.y_inner) * kElementBytes, v);
    return;
  }
  char* target = cursor.y + distance * kElementBytes;
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
