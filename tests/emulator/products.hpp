// products.hpp: wgmma, which computes from shared memory while its threads go on.
//
// A warp at a time: its 16 rows need nothing of the other three's, each of which may be late. Operands are read, and sums written,
// at the last moment, when a group of products is waited for; until then the sums are NaN. What is in shared memory must be there
// when the product starts and stay until it has ended, so it counts as read at both times.

#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "collective.hpp"
#include "host.hpp"
#include "machine.hpp"
#include "memory.hpp"

namespace emulator {

// What a descriptor says, in the one layout that kernels use: rows of 128 bytes, swizzled, 8 of them side by side.
struct Matrix {
  u32 start, eight_rows;

  explicit Matrix(u64 bits) : start((u32)(bits & 0x3fff) << 4), eight_rows((u32)(bits >> 32 & 0x3fff) << 4) {}

  u32 address(u32 row, u32 byte) const {
    const u32 linear = start + row / 8 * eight_rows + row % 8 * 128 + byte;
    return linear ^ (linear >> 3 & 0x70);
  }
};

// The swizzle is one of absolute addresses, so the pattern of 1024 bytes must begin where they are multiples of it.
inline bool check_matrix(u64 bits, int row_bytes, const char* instruction) {
  const Matrix matrix(bits);
  const u32 swizzle = bits >> 62, offset = bits >> 49 & 7;
  const bool fits = matrix.start % 1024 < 128 && matrix.start % 128 + row_bytes <= 128 && matrix.eight_rows % 1024 == 0;
  if (swizzle == 1 && offset == 0 && fits) return true;
  report(instruction, "no matrix in the 128-byte swizzle from shared address %u, eight rows %u on, swizzle %u, offset %u",
         matrix.start, matrix.eight_rows, swizzle, offset);
  return false;
}

// What ordinary accesses wrote is there for wgmma once a fence has come in between: of the writer, or of the reader, who knew of it.
inline void check_fenced(const Cell& cell, const SharedPlace& place, const char* instruction) {
  if (!cell.written || (!is_of_mbarrier(cell.writer) && cluster.threads[cell.writer.thread].fences > cell.fences)) return;
  const Accessor fenced = {{(u32)cluster.number, current->id, 0}, current->seen_at_fence.get()};
  if (current->fences > 0 && cell.writer.thread != current->id && comes_before(cell.writer, fenced)) return;
  report(instruction, "%s: no fence_proxy_async between the write by %s and this", shared_name(place.rank, place.offset).c_str(),
         stamp_name(cell.writer).c_str());
}

// An operand's 16-bit elements, as far as this thread's fragment of it goes.
inline void read_operand(void* value, u32 address, int bytes, bool may_be_unwritten, const char* instruction) {
  SharedPlace place;
  std::memset(value, kPoison, bytes);
  if (!find_shared(place, address, bytes, instruction)) return;
  if (check_word(place, 0, false, accessor(*current), instruction, may_be_unwritten))
    check_fenced(cell_of(place, 0), place, instruction);
  std::memcpy(value, &place.block->shared[place.offset], bytes);
}

// Rows of B that nobody has written are NaN: their column of D is no error as long as the kernel drops it.
inline void read_b(u32 (&fragment)[2], const WarpgroupProduct& product, int tile) {
  const Matrix matrix(product.b_matrix);
  const u32 lane = current->index % 32, n = 8 * tile + lane / 4;
  for (u32 i = 0; i < 2; ++i) {
    const u32 k = 2 * (lane % 4) + 8 * i;
    if (product.layout == Layout::K_CONTIGUOUS) {
      read_operand(&fragment[i], matrix.address(n, 2 * k), 4, true, product.instruction);
      continue;
    }
    u16 element[2];
    for (u32 j = 0; j < 2; ++j) read_operand(&element[j], matrix.address(k + j, 2 * n), 2, false, product.instruction);
    fragment[i] = (u32)element[1] << 16 | element[0];
  }
}

inline void read_a(u32 (&fragment)[4], const WarpgroupProduct& product) {
  const Matrix matrix(product.a_matrix);
  const u32 lane = current->index % 32, row = current->index / 32 % 4 * 16 + lane / 4;
  for (u32 i = 0; i < 4; ++i)
    read_operand(&fragment[i], matrix.address(row + 8 * (i % 2), 4 * (lane % 4) + 16 * (i / 2)), 4, false, product.instruction);
}

inline void compute(const WarpgroupProduct& product) {
  const float zero[4] = {};
  u32 a[4];
  std::copy(product.a, product.a + 4, a);
  if (!product.has_fragments) read_a(a, product);
  for (int tile = 0; tile < product.tiles; ++tile) {
    u32 b[2];
    read_b(b, product, tile);
    float* d = product.d + 4 * tile;
    multiply(d, a, b, product.start ? zero : d, product.format, product.instruction);
  }
}

}  // namespace emulator
