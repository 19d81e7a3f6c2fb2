// both_tensors.cuh: prologues of kernels that have rows in shared memory: two panels, first of what is read (gates and ups, or x and
// the residual), then of what that becomes, as bfloat16 high + low, or, in warpgroup_rows.cu, as halves of vectors of tf32. float32 keeps its result in the first.

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

// A vector after the prologue takes the place of what it is made of.
__device__ __forceinline__ void put_values(u32 address, u32 to_second_panel, const VectorValues& v) {
  u32 first[4], second[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (kSixteenBit) split_pair(first[w], second[w], v.v[(2 * w) % kVectorElements], v.v[(2 * w + 1) % kVectorElements]);
    else first[w] = mov_b32_f32(v.v[w % kVectorElements]);
  }
  st_shared_v4_b32(address, make_uint4(first[0], first[1], first[2], first[3]));
  if (kSixteenBit) st_shared_v4_b32(address + to_second_panel, make_uint4(second[0], second[1], second[2], second[3]));
}
#endif
