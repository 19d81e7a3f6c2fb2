// memory.hpp: which accesses to global and shared memory are allowed.

#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "machine.hpp"

namespace emulator {

// Finds the buffer, or reports why the access is not allowed and returns -1.
inline int find_buffer(const char* address, int bytes, int alignment, bool writes, const char* instruction) {
  for (u32 i = 0; i < launch->buffer_count; ++i) {
    const Buffer& buffer = launch->buffers[i];
    if (address < buffer.begin || address + bytes > buffer.end) continue;
    const i64 offset = address - buffer.begin;
    if (reinterpret_cast<u64>(address) % alignment != 0) {
      report(instruction, "misaligned: %s + %lld bytes is not a multiple of %d", buffer.name, offset, alignment);
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
inline bool check_global(const char* address, int bytes, int alignment, bool writes, const Accessor& by,
                         const char* instruction) {
  if (current->previous_grid_runs) {
    report(instruction, "global memory is accessed before griddepcontrol_wait");
    return false;
  }
  const int index = find_buffer(address, bytes, alignment, writes, instruction);
  if (index < 0) return false;
  std::vector<Cell>& cells = global_cells[index];
  if (cells.empty()) return true;
  const Buffer& buffer = launch->buffers[index];
  for (int i = 0; i < bytes; i += kCellBytes) {
    const i64 offset = address - buffer.begin + i;
    Cell& cell = cells[offset / kCellBytes];
    const bool was_written = cell.written;
    const Stamp writer = cell.writer;
    const std::optional<Conflict> race = writes ? cell.written_by(by) : cell.read_by(by);
    if (was_written || race) {
      const std::string where = buffer.name + (" + " + std::to_string(offset)) + " bytes";
      const char* fault = writes ? "was already written" : "is no longer the input: written";
      if (!was_written) report_race(instruction, where, *race, writes);
      else report(instruction, "%s %s by %s", where.c_str(), fault, stamp_name(writer).c_str());
      return false;
    }
    if (writes) launch->written_bytes += kCellBytes;
  }
  return true;
}

inline bool check_global(const char* address, int bytes, bool writes, const char* instruction) {
  return check_global(address, bytes, bytes, writes, accessor(*current), instruction);
}

// As read by `by`, unchecked.
inline void record_global_read(const char* address, int bytes, const Accessor& by) {
  for (u32 i = 0; i < launch->buffer_count; ++i) {
    const Buffer& buffer = launch->buffers[i];
    if (address < buffer.begin || address >= buffer.end || global_cells[i].empty()) continue;
    const i64 first = (address - buffer.begin) / kCellBytes;
    for (int cell = 0; cell < bytes / kCellBytes; ++cell) global_cells[i][first + cell].read_by(by);
  }
}

// Of the block that runs, or, as mapa gives, of any block of the cluster.
enum class Window { OF_BLOCK, OF_CLUSTER };

struct SharedPlace {
  Block* block;
  u32 rank, offset;
};

inline Cell& cell_of(const SharedPlace& place, int byte) {
  return place.block->cells[(place.offset + byte) / kWordBytes];
}

// Where in which block an address is, or reports why that is nowhere.
inline bool find_shared(SharedPlace& place, u32 address, int bytes, int alignment, Window window,
                        const char* instruction) {
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
  if (in_window % alignment != 0) {
    report(instruction, "misaligned: shared byte %u is not a multiple of %d", place.offset, alignment);
    return false;
  }
  place.block = &cluster.blocks[place.rank];
  return true;
}

inline bool find_shared(SharedPlace& place, u32 address, int bytes, const char* instruction) {
  return find_shared(place, address, bytes, bytes, Window::OF_BLOCK, instruction);
}

// Records the access to a word and reports what is wrong with it. Returns whether nothing is.
inline bool check_word(const SharedPlace& place, int byte, bool writes, const Accessor& by, const char* instruction,
                       bool may_be_unwritten = false) {
  Cell& cell = cell_of(place, byte);
  const bool was_written = cell.written, was_in_flight = cell.in_flight;
  const Stamp writer = cell.writer;
  const std::optional<Conflict> race = writes ? cell.written_by(by) : cell.read_by(by);
  if (writes) cell.fences = current->fences;
  if (!race && !was_in_flight && !cell.of_mbarrier && (writes || was_written || may_be_unwritten)) return true;
  const std::string where = shared_name(place.rank, place.offset + byte);
  if (cell.of_mbarrier) {
    report(instruction, "%s is part of an mbarrier", where.c_str());
  } else if (was_in_flight) {
    report(instruction, "%s: the cp.async of %s into it was not waited for", where.c_str(), stamp_name(writer).c_str());
  } else if (race && race->write && is_of_mbarrier(race->stamp)) {
    report(instruction, "%s: %s was not waited for", where.c_str(), stamp_name(writer).c_str());
  } else if (race) {
    report_race(instruction, where, *race, writes);
  } else {
    report(instruction, "%s was never written", where.c_str());
  }
  return false;
}

// Records the access to every word and reports the first thing wrong with it.
inline void check_shared(const SharedPlace& place, int bytes, bool writes, const char* instruction) {
  const Accessor by = accessor(*current);
  int byte = 0;
  while (byte < bytes && check_word(place, byte, writes, by, instruction)) byte += kWordBytes;
  for (byte += kWordBytes; byte < bytes; byte += kWordBytes)
    writes ? cell_of(place, byte).written_by(by) : cell_of(place, byte).read_by(by);
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
