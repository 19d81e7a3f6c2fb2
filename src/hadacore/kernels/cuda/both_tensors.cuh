// both_tensors.cuh: prologues of kernels that have rows in shared memory: two panels, first of what is read (gates and ups, or x and
// the residual), then of what that becomes.

#if PROLOGUE
// Sets where gates are, and how far from there the other tensor is.
#define BOTH_TENSORS_OF_PARAMETERS(rows)                                             \
  if (kGated && GATED_LAYOUT == UP_GATE) rows.x += ROW_ELEMENTS * kElementBytes;     \
  rows.second = kNormalises ? residual - x                                           \
                : GATED_LAYOUT == SEPARATE ? operand - x                             \
                                           : (GATED_LAYOUT == GATE_UP ? ROW_ELEMENTS : -ROW_ELEMENTS) * kElementBytes;

// Where a row of x starts, in elements: in tensors that hold gates and ups, every row before it has as many elements again.
__device__ __forceinline__ i64 start_of_both(i64 row) {
  return GATED_LAYOUT == SEPARATE ? row * kSize : row * kSize + row * kSize / ROW_ELEMENTS * ROW_ELEMENTS;
}
#endif
