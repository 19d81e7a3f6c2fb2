// shadow.hpp: who touched a word of memory last, and whether a barrier lies between that and the next access.
//
// A barrier orders what its threads did before it ahead of what they do after it. bar_sync orders the threads of a
// block. barrier_cluster orders what came before a thread's n-th arrive ahead of what comes after any thread's
// n-th wait. Two accesses of which one is a write must be by one thread or ordered so; that is independent of the
// order in which the emulator happened to run the threads.

#pragma once

#include "host.hpp"

namespace emulator {

constexpr u32 kSeveral = ~0u;

// How many barriers a thread has passed.
struct Clock {
  u32 block_barriers = 0;
  u32 cluster_arrives = 0;
  u32 cluster_waits = 0;
};

// One access, or several unordered reads merged: then `thread`, and if they differ `block`, is kSeveral.
struct Stamp {
  i64 cluster;
  u32 block;   // in the cluster
  u32 thread;  // in the block
  u32 block_barriers;
  u32 cluster_arrives;
};

struct Accessor {
  Stamp now;
  u32 cluster_waits;
};

inline bool comes_before(const Stamp& earlier, const Accessor& accessor) {
  const Stamp& now = accessor.now;
  if (earlier.cluster != now.cluster) return false;
  if (earlier.block == now.block && earlier.thread == now.thread) return true;
  if (earlier.block == now.block && earlier.block_barriers < now.block_barriers) return true;
  return earlier.cluster_arrives < accessor.cluster_waits;
}

struct Cell {
  bool written = false;
  bool read = false;      // since it was written last
  bool in_flight = false; // a cp.async into it was started and not waited for
  Stamp writer;
  Stamp reader;

  // Each returns whether the access is a race.
  bool read_by(const Accessor& accessor) {
    if (read && !comes_before(reader, accessor)) {
      const Stamp& now = accessor.now;
      if (reader.block != now.block || reader.cluster != now.cluster) reader.block = kSeveral;
      if (reader.cluster != now.cluster) reader.cluster = -1;
      reader.thread = kSeveral;
      if (now.block_barriers > reader.block_barriers) reader.block_barriers = now.block_barriers;
      if (now.cluster_arrives > reader.cluster_arrives) reader.cluster_arrives = now.cluster_arrives;
    } else {
      reader = accessor.now;
    }
    read = true;
    return written && !comes_before(writer, accessor);
  }

  bool written_by(const Accessor& accessor) {
    const bool race = (written && !comes_before(writer, accessor)) || (read && !comes_before(reader, accessor));
    writer = accessor.now;
    written = true;
    read = false;
    return race;
  }
};

}  // namespace emulator
