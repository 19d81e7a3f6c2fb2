// collective.hpp: threads that wait for others, and what the lanes of a warp do together.

#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "machine.hpp"

namespace emulator {

inline void leave_thread() {
  Thread* thread = current;
  switch_context(thread->context, scheduler);
}

inline void wait_at(const char* instruction) {
  current->state = State::WAITING;
  current->instruction = instruction;
  leave_thread();
}

// The thread cannot go on, and neither can others without it.
inline void stop_launch() {
  stopped = true;
  leave_thread();
}

inline Thread* first_thread(const Thread& thread) { return &cluster.threads[(std::size_t)thread.block * launch->threads]; }

// All of these have arrived: what each did before is now ordered before what any does next.
template <typename Threads>
void synchronise(const Threads& threads) {
  Clock joined;
  SharedClock last;
  for (Thread* thread : threads) {
    if (thread->seen != last) join(joined, *thread->seen);
    last = thread->seen;
    raise_epoch(joined, thread->id, thread->epoch++);
  }
  const SharedClock seen = std::make_shared<const Clock>(std::move(joined));
  for (Thread* thread : threads) {
    thread->seen = seen;
    wake(*thread);
  }
}

// Waits until all lanes have arrived; the last runs compute(operands of all lanes).
template <typename Operands, typename Compute>
void collective(Operands& operands, const char* instruction, Compute compute) {
  Block& block = block_of(*current);
  const u32 first = current->index / 32 * 32;
  Warp& warp = block.warps[first / 32];
  if (warp.arrived > 0 && std::strcmp(warp.instruction, instruction) != 0) {
    report(instruction, "other lanes of the warp are at %s", warp.instruction);
    stop_launch();
  }
  warp.instruction = instruction;
  warp.operands[current->index - first] = &operands;
  if (++warp.arrived < 32) return wait_at(instruction);
  Operands* lanes[32];
  for (int lane = 0; lane < 32; ++lane) lanes[lane] = static_cast<Operands*>(warp.operands[lane]);
  compute(lanes);
  warp.arrived = 0;
  Thread* lane = first_thread(*current) + first;
  for (int i = 0; i < 32; ++i) wake(lane[i]);
}

}  // namespace emulator
