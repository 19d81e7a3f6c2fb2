// copy.cu: the denominator of every measurement. Moves the bytes of a transform and does nothing else.

extern "C" __global__ void __launch_bounds__(256) copy_vectors(const char* x, char* y, i64 vectors) {
  const i64 first = (i64)blockIdx.x * (256 * UNITS) + threadIdx.x;
  uint4 v[UNITS];
#pragma unroll
  for (int u = 0; u < UNITS; ++u)
    if (first + u * 256 < vectors) v[u] = ld_global_v4(x + (first + u * 256) * 16);
#pragma unroll
  for (int u = 0; u < UNITS; ++u)
    if (first + u * 256 < vectors) st_global_v4(y + (first + u * 256) * 16, v[u]);
}
