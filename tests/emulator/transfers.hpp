// transfers.hpp: mbarriers in shared memory, and the copies that they count.

#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "machine.hpp"
#include "memory.hpp"

namespace emulator {

// ---- mbarriers ------------------------------------------------------------------------------------

// Whether the running thread knows that the mbarrier is there.
inline bool sees_initialisation(const Mbarrier& barrier) {
  return barrier.published_by <= current->cluster_waits || comes_before(barrier.initialised, accessor(*current));
}

inline bool check_started(u32 rank, const char* instruction) {
  if (rank == current->block || current->cluster_waits > 0) return true;
  report(instruction, "%s may not have started: no cluster barrier before", block_name(rank).c_str());
  return false;
}

// The mbarrier at an address, or reports why it cannot be used and returns null.
inline Mbarrier* find_mbarrier(u32 address, Window window, const char* instruction) {
  SharedPlace place;
  if (!find_shared(place, address, kMbarrierBytes, kMbarrierBytes, window, instruction)) return nullptr;
  if (!check_started(place.rank, instruction)) return nullptr;
  const auto found = place.block->mbarriers.find(place.offset);
  const std::string where = shared_name(place.rank, place.offset);
  if (found == place.block->mbarriers.end()) {
    report(instruction, "%s is not an mbarrier: nobody has initialised it", where.c_str());
    return nullptr;
  }
  if (!sees_initialisation(found->second)) {
    report(instruction, "%s is a race: this use and the mbarrier_init by %s have no barrier in between", where.c_str(),
           stamp_name(found->second.initialised).c_str());
  }
  return &found->second;
}

inline void add_mbarrier(const SharedPlace& place, u32 arrivals) {
  Mbarrier& barrier = place.block->mbarriers[place.offset];
  barrier.block = place.rank;
  barrier.offset = place.offset;
  barrier.id = cluster.threads.size() + cluster.mbarriers.size();
  barrier.initialised = accessor(*current).now;
  barrier.arrivals = barrier.pending_arrivals = arrivals;
  cluster.mbarriers.push_back(&barrier);
  for (int byte = 0; byte < kMbarrierBytes; byte += kWordBytes) cell_of(place, byte).of_mbarrier = true;
}

inline void complete_phase_if_done(Mbarrier& barrier) {
  if (!barrier.done()) return;
  barrier.complete_phase();
  for (Thread* thread : barrier.waiting) wake(*thread);
  barrier.waiting.clear();
}

// ---- copies ---------------------------------------------------------------------------------------

// What a copy reads and writes is an access by its mbarrier.
inline Accessor accessor_of_copies(const Transfer& transfer, u32 epoch) {
  return {{(u32)cluster.number, transfer.barrier->id, epoch}, transfer.seen.get()};
}

inline void mark_destination(const Transfer& transfer, u32 epoch) {
  const SharedPlace place = {&cluster.blocks[transfer.rank], transfer.rank, transfer.offset};
  for (u32 byte = 0; byte < transfer.bytes; byte += kWordBytes)
    cell_of(place, byte).writer = accessor_of_copies(transfer, epoch).now;
}

inline void land(const Transfer& transfer) {
  Mbarrier& barrier = *transfer.barrier;
  char* target = &cluster.blocks[transfer.rank].shared[transfer.offset];
  std::memcpy(target, transfer.source ? transfer.source : transfer.value, transfer.bytes);
  mark_destination(transfer, barrier.epoch());
  if (transfer.source) {
    record_global_read(transfer.source, transfer.bytes, accessor_of_copies(transfer, barrier.epoch()));
  } else {
    barrier.release(transfer.seen, transfer.started.thread, transfer.started.epoch);
    barrier.copied_by_other_block |= cluster.threads[transfer.started.thread].block != transfer.rank;
  }
  barrier.last_copy = barrier.epoch();
  barrier.pending_bytes -= transfer.bytes;
  complete_phase_if_done(barrier);
}

inline void land_transfer(std::size_t index) {
  std::swap(cluster.in_flight[index], cluster.in_flight.back());
  const Transfer transfer = std::move(cluster.in_flight.back());
  cluster.in_flight.pop_back();
  land(transfer);
}

// The destination must be the running thread's to write. It is garbage until the copy lands.
inline void start_transfer(Transfer transfer, const char* instruction) {
  const SharedPlace place = {&cluster.blocks[transfer.rank], transfer.rank, transfer.offset};
  check_shared(place, transfer.bytes, true, instruction);
  mark_destination(transfer, kInFlight);
  std::memset(&place.block->shared[place.offset], kPoison, transfer.bytes);
  if (landing == Landing::AT_ONCE) land(transfer);
  else cluster.in_flight.push_back(std::move(transfer));
}

// ---- arrivals after cp.async ----------------------------------------------------------------------

// The earliest of a thread, as each waits for all copies before it. What the copies did counts as done by the mbarrier: to wait for
// its phase is to see them. Returns whether there was one.
inline bool land_arrival_of(u32 thread) {
  const auto is_of_thread = [thread](const Arrival& arrival) { return arrival.thread == thread; };
  const auto found = std::find_if(cluster.arrivals.begin(), cluster.arrivals.end(), is_of_thread);
  if (found == cluster.arrivals.end()) return false;
  const Arrival arrival = std::move(*found);
  cluster.arrivals.erase(found);
  Mbarrier& barrier = *arrival.barrier;
  const Accessor by = {{(u32)cluster.number, barrier.id, barrier.epoch()}, cluster.threads[arrival.thread].seen.get()};
  Block& block = cluster.blocks[barrier.block];
  for (Copy copy : arrival.copies) {
    land(copy);
    record_global_read(copy.source, 16, by);
    const u32 first_word = (copy.destination & ((1u << kRankShift) - 1)) / kWordBytes;
    for (u32 word = first_word; word < first_word + 16 / kWordBytes; ++word) {
      block.cells[word].in_flight = false;
      block.cells[word].writer = by.now;
    }
  }
  if (!arrival.copies.empty()) barrier.last_copy = barrier.epoch();
  --barrier.arrivals_in_flight;
  --barrier.pending_arrivals;
  complete_phase_if_done(barrier);
  return true;
}

inline void start_arrival(Mbarrier& barrier) {
  const Accessor in_flight = {{(u32)cluster.number, barrier.id, kInFlight}, current->seen.get()};
  for (const Copy& copy : current->copies) record_global_read(copy.source, 16, in_flight);
  ++barrier.arrivals_in_flight;
  cluster.arrivals.push_back({&barrier, current->id, std::move(current->copies)});
  current->copies.clear();
  if (landing == Landing::AT_ONCE) land_arrival_of(current->id);
}

// ---- the end --------------------------------------------------------------------------------------

// Once all threads have finished.
inline void check_mbarrier_at_end(const Mbarrier& barrier) {
  const std::string where = shared_name(barrier.block, barrier.offset);
  bool waited = barrier.last_copy == 0;
  for (const Thread& thread : cluster.threads) {
    if (thread.block != barrier.block || waited) continue;
    waited = barrier.id < thread.seen->size() && (*thread.seen)[barrier.id] >= barrier.last_copy;
  }
  if (!waited && barrier.copied_by_other_block) {
    add_error(block_name(barrier.block) + " may exit while another block writes to its shared memory: nobody waits " +
              "at the mbarrier at " + where);
  } else if (!waited) {
    add_error("end of kernel: copies that the mbarrier at " + where + " counts were not waited for");
  }
  if (barrier.pending_bytes != 0) {
    add_error("end of kernel: the mbarrier at " + where + " expects " + std::to_string(barrier.pending_bytes) +
              " more bytes");
  }
}

}  // namespace emulator
