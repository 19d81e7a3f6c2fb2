// butterflies.cuh: fp32 butterflies between the registers of a thread.

// (a, b) -> (a + b, a - b) over the bit of `distance` of a register array's index.
template <int DISTANCE, int COUNT>
__device__ __forceinline__ void register_butterfly(float (&value)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if ((i & DISTANCE) == 0) {
      const float a = value[i], b = value[i + DISTANCE];
      value[i] = a + b;
      value[i + DISTANCE] = a - b;
    }
  }
}

// (a, b) -> (a + b, a - b) over every bit of the outer index, lowest first: index bits 8, 9, 10 between a lane's
// tiles, and, after an exchange, the bits above between the parts of a row. Exact up to fp32 rounding.
template <int OUTER, int INNER>
__device__ __forceinline__ void outer_butterflies(float (&value)[OUTER][INNER]) {
#pragma unroll
  for (int distance = 1; distance < OUTER; distance *= 2) {
#pragma unroll
    for (int outer = 0; outer < OUTER; ++outer) {
      if ((outer & distance) == 0) {
#pragma unroll
        for (int i = 0; i < INNER; ++i) {
          const float a = value[outer][i], b = value[outer + distance][i];
          value[outer][i] = a + b;
          value[outer + distance][i] = a - b;
        }
      }
    }
  }
}
