// shadow.hpp: who touched a word of memory last, and whether that is ordered before the next access.
//
// Vector clocks. A thread's epoch counts its releases; its clock holds, for every thread of the cluster, the last
// epoch that is ordered before whatever it does next. A barrier joins the clocks of the threads that arrive, and
// hands the result to those that leave. Two accesses of which one is a write must be by one thread or ordered so;
// that is independent of the order in which the emulator happened to run the threads.
//
// Copies that an mbarrier counts are not ordered with the thread that starts them. They count as accesses by one more
// "thread" for each mbarrier, whose epochs are the mbarrier's phases: to wait for a phase is to see its epoch.

#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "host.hpp"

namespace emulator {

// Epochs by thread. Those beyond the end are 0, which no access has.
using Clock = std::vector<u32>;
// Most threads know the same, so clocks are shared, and recognised by address.
using SharedClock = std::shared_ptr<const Clock>;

constexpr u32 kInFlight = ~0u;  // the epoch of a copy that has not landed: in nobody's clock

inline void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  u32* target = into.data();
  const u32* source = from.data();
  for (std::size_t i = 0; i < from.size(); ++i) target[i] = std::max(target[i], source[i]);
}

inline void raise_epoch(Clock& clock, u32 thread, u32 epoch) {
  if (clock.size() <= thread) clock.resize(thread + 1);
  clock[thread] = std::max(clock[thread], epoch);
}

struct Stamp {
  u32 cluster;
  u32 thread;  // in the cluster; mbarriers follow the threads
  u32 epoch;
};

struct Accessor {
  Stamp now;
  const Clock* seen;
};

inline bool comes_before(const Stamp& earlier, const Accessor& accessor) {
  if (earlier.cluster != accessor.now.cluster) return false;
  if (earlier.thread == accessor.now.thread) return true;
  return earlier.thread < accessor.seen->size() && earlier.epoch <= (*accessor.seen)[earlier.thread];
}

// The earlier access of a race.
struct Conflict {
  Stamp stamp;
  bool write;
};

struct Cell {
  Stamp writer;
  Stamp reader;                    // since it was written last; of several ordered ones the last
  std::unique_ptr<Clock> readers;  // instead of `reader`, where they are not ordered
  u32 fences = 0;                  // of the writer, if it is a thread, when it wrote
  bool written = false;
  bool read = false;
  bool in_flight = false;    // a cp.async into it was started and not waited for
  bool of_mbarrier = false;

  std::optional<Conflict> read_by(const Accessor& accessor) {
    add_reader(accessor);
    if (written && !comes_before(writer, accessor)) return Conflict{writer, true};
    return std::nullopt;
  }

  std::optional<Conflict> written_by(const Accessor& accessor) {
    std::optional<Conflict> conflict = unordered_read(accessor);
    if (written && !comes_before(writer, accessor)) conflict = {writer, true};
    writer = accessor.now;
    written = true;
    read = false;
    readers.reset();
    return conflict;
  }

 private:
  void add_reader(const Accessor& accessor) {
    const Stamp& now = accessor.now;
    // Clusters run one after another: an earlier one's read is a race with every write to come, so it may stay.
    if (read && reader.cluster != now.cluster) return;
    if (read && !readers && !comes_before(reader, accessor)) {
      readers = std::make_unique<Clock>();
      raise_epoch(*readers, reader.thread, reader.epoch);
    }
    if (readers) {
      raise_epoch(*readers, now.thread, 0);
      (*readers)[now.thread] = now.epoch;  // which may be lower than that of a copy in flight
    }
    reader = now;
    read = true;
  }

  std::optional<Conflict> unordered_read(const Accessor& accessor) const {
    if (!read) return std::nullopt;
    if (!readers || reader.cluster != accessor.now.cluster) {
      if (comes_before(reader, accessor)) return std::nullopt;
      return Conflict{reader, false};
    }
    for (u32 thread = 0; thread < readers->size(); ++thread) {
      const Stamp stamp = {reader.cluster, thread, (*readers)[thread]};
      if (stamp.epoch != 0 && !comes_before(stamp, accessor)) return Conflict{stamp, false};
    }
    return std::nullopt;
  }
};

}  // namespace emulator
