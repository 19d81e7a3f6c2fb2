// host_warpgroup.hpp: the part of host.hpp for wgmma and stmatrix. Those of wgmma that kernels/wgmma.py writes out for each width are
// templates here.

#pragma once

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void stmatrix_x4_trans(u32 address, u32 a, u32 b, u32 c, u32 d) {
  const u32 words[4] = {a, b, c, d};
  emulator::store_matrices(address, words, 4, __func__);
}

__device__ __forceinline__ void stmatrix_x1_trans(u32 address, u32 a) {
  const u32 words[1] = {a};
  emulator::store_matrices(address, words, 1, __func__);
}

__device__ __forceinline__ void stmatrix_x2_trans(u32 address, u32 a, u32 b) {
  const u32 words[2] = {a, b};
  emulator::store_matrices(address, words, 2, __func__);
}
#endif

#if WGMMA
__device__ __forceinline__ void wgmma_m64n64k16_f32_f16(float (&d)[8][4], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, u32 add) {
  const u32 a[4] = {a0, a1, a2, a3};
  emulator::start_product(d[0], 8, !add, a, 0, b, emulator::Layout::N_CONTIGUOUS, emulator::Format::FLOAT16, __func__);
}

__device__ __forceinline__ void wgmma_m64n64k16_f32_bf16(float (&d)[8][4], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, u32 add) {
  const u32 a[4] = {a0, a1, a2, a3};
  emulator::start_product(d[0], 8, !add, a, 0, b, emulator::Layout::N_CONTIGUOUS, emulator::Format::BFLOAT16, __func__);
}

template <bool START, int TILES>
__device__ __forceinline__ void wgmma_m64k16_f32_f16(float (&d)[TILES][4], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
  const u32 a[4] = {a0, a1, a2, a3};
  emulator::start_product(d[0], TILES, START, a, 0, b, emulator::Layout::K_CONTIGUOUS, emulator::Format::FLOAT16, __func__);
}

template <bool START, int TILES>
__device__ __forceinline__ void wgmma_m64k16_f32_f16(float (&d)[TILES][4], u64 a, u64 b) {
  emulator::start_product(d[0], TILES, START, nullptr, a, b, emulator::Layout::K_CONTIGUOUS, emulator::Format::FLOAT16, __func__);
}

template <bool START, int TILES>
__device__ __forceinline__ void wgmma_m64k16_f32_bf16(float (&d)[TILES][4], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
  const u32 a[4] = {a0, a1, a2, a3};
  emulator::start_product(d[0], TILES, START, a, 0, b, emulator::Layout::K_CONTIGUOUS, emulator::Format::BFLOAT16, __func__);
}

template <bool START, int TILES>
__device__ __forceinline__ void wgmma_m64k16_f32_bf16(float (&d)[TILES][4], u64 a, u64 b) {
  emulator::start_product(d[0], TILES, START, nullptr, a, b, emulator::Layout::K_CONTIGUOUS, emulator::Format::BFLOAT16, __func__);
}

template <int COUNT>
__device__ __forceinline__ void setmaxnreg_dec() {}

template <int COUNT>
__device__ __forceinline__ void setmaxnreg_inc() {}

template <bool START, int TILES>
__device__ __forceinline__ void wgmma_m64k8_f32_tf32(float (&d)[TILES][4], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
  const u32 a[4] = {a0, a1, a2, a3};
  emulator::start_product(d[0], TILES, START, a, 0, b, emulator::Layout::K_CONTIGUOUS, emulator::Format::TF32, __func__);
}

template <bool START, int TILES>
__device__ __forceinline__ void wgmma_m64k8_f32_tf32(float (&d)[TILES][4], u64 a, u64 b) {
  emulator::start_product(d[0], TILES, START, nullptr, a, b, emulator::Layout::K_CONTIGUOUS, emulator::Format::TF32, __func__);
}

__device__ __forceinline__ void wgmma_fence() { emulator::fence_products(); }
__device__ __forceinline__ void wgmma_commit_group() { emulator::commit_products(); }

template <int PENDING>
__device__ __forceinline__ void wgmma_wait_group() {
  emulator::wait_for_products(PENDING, __func__);
}

__device__ __forceinline__ void fence_proxy_async() { emulator::fence_matrices(); }
#endif
