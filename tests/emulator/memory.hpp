// memory.hpp: which accesses to global and shared memory are allowed.

#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "machine.hpp"

namespace emulator {

// Finds the buffer, or reports why the access is not allowed and returns -1.
inline int find_buffer(const char* address, int bytes, bool writes, const char* instruction) {
  for (u32 i = 0; i < launch->buffer_count; ++i) {
    const Buffer& buffer = launch->buffers[i];
    if (address < buffer.begin || address + bytes > buffer.end) continue;
    const i64 offset = address - buffer.begin;
    if (reinterpret_cast<u64>(address) % bytes != 0) {
      report(instruction, "misaligned: %s + %lld bytes is not a multiple of %d", buffer.name, offset, bytes);
    } else if (writes && !buffer.writable) {
      report(instruction, "writes to the input: %s + %lld bytes", buffer.name, offset);
    } else if (!writes && !buffer.readable) {
      report(instruction, "reads from the output: %s + %lld bytes", buffer.name, offset);
    } else {
      return (int)i;
    }
    return -1;
  }
  const Buffer* nearest = launch->buffers;
  const auto distance = [&](const Buffer& b) { return address < b.begin ? b.begin - address : address - b.end; };
  for (u32 i = 1; i < launch->buffer_count; ++i)
    if (distance(launch->buffers[i]) < distance(*nearest)) nearest = &launch->buffers[i];
  report(instruction, "out of bounds: %s + %lld bytes, which has %lld bytes", nearest->name,
         (i64)(address - nearest->begin), (i64)(nearest->end - nearest->begin));
  return -1;
}

// Whether the access may go ahead. At most one error an access.
inline bool check_global(const char* address, int bytes, bool writes, const char* instruction) {
  if (current->previous_grid_runs) {
    report(instruction, "global memory is accessed before griddepcontrol_wait");
    return false;
  }
  const int index = find_buffer(address, bytes, writes, instruction);
  if (index < 0) return false;
  std::vector<Cell>& cells = global_cells[index];
  if (cells.empty()) return true;
  const Buffer& buffer = launch->buffers[index];
  const Accessor by = accessor(*current);
  for (int i = 0; i < bytes; i += kCellBytes) {
    const i64 offset = address - buffer.begin + i;
    Cell& cell = cells[offset / kCellBytes];
    const Cell before = cell;
    const bool race = writes ? cell.written_by(by) : cell.read_by(by);
    if (before.written || race) {
      const std::string where = buffer.name + (" + " + std::to_string(offset)) + " bytes";
      const char* fault = writes ? "was already written" : "is no longer the input: written";
      if (!before.written) report_race(instruction, where, before, writes);
      else report(instruction, "%s %s by %s", where.c_str(), fault, stamp_name(before.writer).c_str());
      return false;
    }
    if (writes) launch->written_bytes += kCellBytes;
  }
  return true;
}

struct SharedPlace {
  Block* block;
  u32 rank, offset;
};

// Where in which block an address is, or reports why that is nowhere.
inline bool find_shared(SharedPlace& place, u32 address, int bytes, Window window, const char* instruction) {
  place.rank = current->block;
  u32 in_window = address;
  if (address & kClusterWindow) {
    if (window == Window::OF_BLOCK) {
      report(instruction, "a .shared::cluster address where a .shared address is needed");
      return false;
    }
    place.rank = address >> kRankShift & 0x7f;
    in_window = address & ((1u << kRankShift) - 1);
  }
  place.offset = in_window - kSharedBase;
  if (in_window < kSharedBase || (u64)place.offset + bytes > launch->shared_bytes) {
    report(instruction, "out of bounds: shared byte %lld of %u", (i64)in_window - kSharedBase, launch->shared_bytes);
    return false;
  }
  if (in_window % bytes != 0) {
    report(instruction, "misaligned: shared byte %u is not a multiple of %d", place.offset, bytes);
    return false;
  }
  place.block = &cluster.blocks[place.rank];
  return true;
}

inline std::string shared_name(const SharedPlace& place, int byte) {
  return "shared byte " + std::to_string(place.offset + byte) + " of " + block_name(place.rank);
}

// Records the access to every word and reports the first thing wrong with it.
inline void check_shared(const SharedPlace& place, int bytes, bool writes, const char* instruction) {
  const Accessor by = accessor(*current);
  bool fine = true;
  for (int i = 0; i < bytes; i += kWordBytes) {
    Cell& cell = place.block->cells[(place.offset + i) / kWordBytes];
    const Cell before = cell;
    const bool race = writes ? cell.written_by(by) : cell.read_by(by);
    if (!fine) continue;
    fine = !race && !before.in_flight && (writes || before.written);
    if (before.in_flight) {
      report(instruction, "%s: the cp.async of %s into it was not waited for", shared_name(place, i).c_str(),
             stamp_name(before.writer).c_str());
    } else if (race) {
      report_race(instruction, shared_name(place, i), before, writes);
    } else if (!fine) {
      report(instruction, "%s was never written", shared_name(place, i).c_str());
    }
  }
}

inline void count_banks(u32 address, int bytes) {
  block_of(*current).warps[current->index / 32].banks.add(current->index % 32, address, bytes);
}

inline void land(Copy& copy) {
  if (copy.landed) return;
  // The destination was checked when the copy started, on behalf of the thread that started it.
  const u32 rank = copy.destination >> kRankShift, offset = copy.destination & ((1u << kRankShift) - 1);
  std::memcpy(&cluster.blocks[rank].shared[offset], copy.source, 16);
  copy.landed = true;
}

}  // namespace emulator
