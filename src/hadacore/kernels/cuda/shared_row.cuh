// shared_row.cuh: rows of several transforms that share a scale, of which a block has one (SHARED_ROW elements; 0: none).
//
// The units of a row go round the warps: warp w has units w, w + WARPS, ... All of a warp's results stay in registers until the warps
// have told each other their largest magnitudes.

// For row_maximum.cuh.
#define MAXIMA_WARPS WARPS
#define MAXIMA_ROWS 1
#define MAXIMA_SLOTS 1
#define MAXIMA_BLOCKS 1
constexpr u32 kEndOfOtherShared = 0;
constexpr int kRowUnits = SHARED_ROW / kUnitElements;
static_assert(SHARED_ROW % kUnitElements == 0 && kRowUnits <= WARPS * UNITS, "a block has all of a row, in whole units");

// Of a warp's first unit, up to the end of the row.
__device__ __forceinline__ Cursor cursor_of_shared_row(const Rows& r, i64 first_unit, int warp, int lane) {
  Cursor cursor = make_cursor(r, first_unit, lane);
  cursor.left = (kRowUnits - warp) * kUnitElements - vector_offset(0, lane);
  return cursor;
}
