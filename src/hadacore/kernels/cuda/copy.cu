// copy.cu: the denominator of every measurement. Moves the bytes of a transform and does nothing else.

#ifndef READS
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
#endif

// For kernels that write fewer bytes than they read: one vector for each READS that are read, of all of which it is made.
// The last vectors of a thread may lie beyond the end: `vectors` of the output is rounded up to whole ones.
#ifdef READS
extern "C" __global__ void __launch_bounds__(256) copy_narrower(const char* x, char* y, i64 vectors) {
  const i64 first = (i64)blockIdx.x * (256 * READS) + threadIdx.x;
  uint4 v[READS];
#pragma unroll
  for (int u = 0; u < READS; ++u)
    if (first + u * 256 < vectors) v[u] = ld_global_v4(x + (first + u * 256) * 16);
  uint4 sum = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int u = 0; u < READS; ++u) {
    if (first + u * 256 >= vectors) continue;
    sum = make_uint4(sum.x ^ v[u].x, sum.y ^ v[u].y, sum.z ^ v[u].z, sum.w ^ v[u].w);
  }
  if (first < vectors) st_global_v4(y + ((i64)blockIdx.x * 256 + threadIdx.x) * 16, sum);
}
#endif
