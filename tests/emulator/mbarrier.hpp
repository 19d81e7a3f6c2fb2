// mbarrier.hpp: the state of one mbarrier.

#pragma once

#include <vector>

#include "shadow.hpp"

namespace emulator {

struct Thread;

constexpr u32 kNever = ~0u;
constexpr int kMbarrierBytes = 8;
constexpr i64 kMostCounted = (1 << 20) - 1;  // arrivals, or bytes either way

struct Mbarrier {
  u32 block, offset;  // where it is
  u32 id;             // as a thread in clocks
  Stamp initialised;
  u32 published_by = kNever;  // the cluster barrier that shows it to other blocks, counted from 1
  u32 arrivals;               // of a phase
  u32 pending_arrivals;
  u32 arrivals_in_flight = 0;  // of copies that have not landed
  i64 pending_bytes = 0;       // below 0 if bytes arrive before they are expected
  u32 phase = 0;          // that is not complete yet
  u32 last_copy = 0;      // the epoch of the copy that landed last
  bool copied_by_other_block = false;
  std::vector<Thread*> waiting;

  u32 epoch() const { return phase + 1; }  // of the copies that land in this phase
  bool has_completed(u32 parity) const { return (phase & 1) != (parity & 1); }
  // Of this phase, which nobody has started.
  i64 awaited_arrivals() const { return (i64)pending_arrivals - arrivals_in_flight; }
  bool done() const { return pending_arrivals == 0 && pending_bytes == 0; }

  void release(const SharedClock& seen, u32 thread, u32 epoch) {
    if (seen != released_last_) join(released_, *seen);
    released_last_ = seen;
    raise_epoch(released_, thread, epoch);
  }

  // Earlier phases' releases stay: arrivals are read-modify-writes, which carry them on.
  void complete_phase() {
    raise_epoch(released_, id, epoch());
    completed_ = std::make_shared<const Clock>(released_);
    acquired_from_ = acquired_ = nullptr;
    pending_arrivals = arrivals;
    ++phase;
  }

  // The clock of a thread that knew `seen` and has waited for the last complete phase.
  SharedClock acquire(const SharedClock& seen) {
    if (!completed_ || seen == acquired_) return seen;
    if (seen != acquired_from_) {
      Clock joined = *completed_;
      join(joined, *seen);
      acquired_ = std::make_shared<const Clock>(std::move(joined));
      acquired_from_ = seen;
    }
    return acquired_;
  }

 private:
  Clock released_;
  SharedClock released_last_;              // joined into it
  SharedClock completed_;                  // what was released up to the last complete phase
  SharedClock acquired_from_, acquired_;   // threads that wait tend to know the same
};

}  // namespace emulator
