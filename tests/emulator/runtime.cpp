// runtime.cpp: runs the threads of a launch.
//
// Every CUDA thread has a stack of its own. It runs until it must wait for other threads, then the scheduler picks
// the next one that can go on. The blocks of a cluster run together, clusters one after another. Anything a real
// GPU would answer with a fault, a hang or garbage becomes an error string; the launch goes on where it can.

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "host.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "numbers.hpp"

namespace emulator {

Index thread_index, block_index, grid_dimensions;

namespace {

// ---- scheduling -----------------------------------------------------------------------------------

void leave_thread() {
  Thread* thread = current;
  switch_context(thread->context, scheduler);
}

void wait_at(const char* instruction) {
  current->state = State::WAITING;
  current->instruction = instruction;
  leave_thread();
}

void wake(Thread& thread) {
  if (thread.state != State::WAITING) return;  // the last to arrive never waited
  thread.state = State::READY;
  ready.push_back(&thread);
}

// The thread cannot go on, and neither can others without it.
void stop_launch() {
  stopped = true;
  leave_thread();
}

void run_thread() {
  launch->entry(*launch->arguments);
  if (!current->copies.empty()) report("end of kernel", "%zu cp.async not waited for", current->copies.size());
  current->state = State::FINISHED;
  leave_thread();
}

Thread* next_thread() {
  if (launch->seed != 0) std::swap(ready.front(), ready[random_bits() % ready.size()]);
  Thread* thread = ready.front();
  ready.pop_front();
  return thread;
}

void land_any_copy() {
  Thread& thread = cluster.threads[random_bits() % cluster.threads.size()];
  if (!thread.copies.empty()) land(thread.copies[random_bits() % thread.copies.size()]);
}

void run_ready_threads() {
  while (!ready.empty() && !stopped) {
    if (landing == Landing::AT_ANY_SWITCH) land_any_copy();
    current = next_thread();
    thread_index = {current->index, 0, 0};
    block_index = {(u32)(cluster.number * launch->cluster_blocks + current->block), 0, 0};
    switch_context(scheduler, current->context);
  }
}

// Nobody can go on although not all have finished: says who waits where.
void report_deadlock() {
  for (u32 rank = 0; rank < cluster.blocks.size(); ++rank) {
    std::vector<std::pair<std::string, std::vector<u32>>> groups;
    for (const Thread& thread : cluster.threads) {
      if (thread.block != rank) continue;
      const bool finished = thread.state == State::FINISHED;
      const std::string where = finished ? "finished" : std::string("wait at ") + thread.instruction;
      auto group = groups.begin();
      while (group != groups.end() && group->first != where) ++group;
      if (group == groups.end()) group = groups.insert(group, {where, {}});
      group->second.push_back(thread.index);
    }
    std::string text = block_name(rank) + ": deadlock:";
    for (const auto& [where, threads] : groups)
      text += " " + std::to_string(threads.size()) + " threads " + where + " (first: thread " +
              std::to_string(threads.front()) + ");";
    add_error(text);
  }
}

char* stack_of(std::size_t number) {
  static std::vector<char*> stacks;
  while (stacks.size() <= number) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, 4096, PROT_NONE);  // a stack that grows too far faults instead of running into the next
    stacks.push_back(static_cast<char*>(memory));
  }
  return stacks[number];
}

void start_cluster(i64 number) {
  const u32 words = launch->shared_bytes / kWordBytes;
  cluster = Cluster();
  cluster.number = number;
  cluster.blocks.resize(launch->cluster_blocks);
  for (Block& block : cluster.blocks) {
    block.shared.assign(launch->shared_bytes, (char)kPoison);
    block.cells.assign(words, Cell());
    block.warps.resize(launch->threads / 32);
  }
  cluster.threads.resize((std::size_t)launch->threads * launch->cluster_blocks);
  for (std::size_t i = 0; i < cluster.threads.size(); ++i) {
    Thread& thread = cluster.threads[i];
    thread.index = i % launch->threads;
    thread.block = i / launch->threads;
    prepare_context(thread.context, stack_of(i), kStackBytes, run_thread);
    ready.push_back(&thread);
  }
}

void finish_cluster() {
  bool all_finished = true;
  for (const Thread& thread : cluster.threads) all_finished &= thread.state == State::FINISHED;
  if (!all_finished && !stopped) report_deadlock();
  ready.clear();
  for (u32 rank = 0; rank < cluster.blocks.size(); ++rank) {
    Block& block = cluster.blocks[rank];
    for (Warp& warp : block.warps) launch->extra_wavefronts += warp.banks.extra_wavefronts();
    u32 waits = 0;
    for (const Thread& thread : cluster.threads)
      if (thread.block == rank) waits = std::max(waits, thread.clock.cluster_waits);
    if (all_finished && block.last_remote_read > waits)
      add_error(block_name(rank) + " may exit while another block reads its shared memory: no barrier after the read");
  }
}

// ---- warp-wide ------------------------------------------------------------------------------------

struct LaneValue {
  float v;
  u32 mask;
  float result;
};

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
  Thread* lane = &cluster.threads[(std::size_t)current->block * launch->threads + first];
  for (int i = 0; i < 32; ++i) wake(lane[i]);
}

}  // namespace

// ---- what the kernel calls ------------------------------------------------------------------------

void let_dependents_start() { current->previous_grid_runs = true; }

void wait_for_previous_grid() { current->previous_grid_runs = false; }

void load_global(void* value, const void* address, int bytes, const char* instruction) {
  if (check_global(static_cast<const char*>(address), bytes, false, instruction)) std::memcpy(value, address, bytes);
  else std::memset(value, kPoison, bytes);
}

void store_global(void* address, const void* value, int bytes, const char* instruction) {
  if (check_global(static_cast<const char*>(address), bytes, true, instruction)) std::memcpy(address, value, bytes);
}

void load_shared(void* value, u32 address, int bytes, Window window, const char* instruction) {
  SharedPlace place;
  std::memset(value, kPoison, bytes);
  if (!find_shared(place, address, bytes, window, instruction)) return;
  check_shared(place, bytes, false, instruction);
  count_banks(address, bytes);
  if (place.rank != current->block) {
    place.block->last_remote_read = std::max(place.block->last_remote_read, current->clock.cluster_arrives + 1);
  }
  std::memcpy(value, &place.block->shared[place.offset], bytes);
}

void store_shared(u32 address, const void* value, int bytes, const char* instruction) {
  SharedPlace place;
  if (!find_shared(place, address, bytes, Window::OF_BLOCK, instruction)) return;
  check_shared(place, bytes, true, instruction);
  count_banks(address, bytes);
  std::memcpy(&place.block->shared[place.offset], value, bytes);
}

void start_copy(u32 shared_address, const void* address, const char* instruction) {
  const char* source = static_cast<const char*>(address);
  SharedPlace place;
  if (!find_shared(place, shared_address, 16, Window::OF_BLOCK, instruction)) return;
  if (!check_global(source, 16, false, instruction)) return;
  check_shared(place, 16, true, instruction);
  for (u32 i = 0; i < 16; i += kWordBytes) place.block->cells[(place.offset + i) / kWordBytes].in_flight = true;
  std::memset(&place.block->shared[place.offset], kPoison, 16);
  current->copies.push_back({place.rank << kRankShift | place.offset, source, false});
  if (landing == Landing::AT_ONCE) land(current->copies.back());
}

void wait_for_copies(const char* instruction) {
  for (Copy& copy : current->copies) {
    land(copy);
    check_global(copy.source, 16, false, instruction);  // nobody may have written to it since the start
    const u32 first_word = (copy.destination & ((1u << kRankShift) - 1)) / kWordBytes;
    for (u32 word = first_word; word < first_word + 16 / kWordBytes; ++word) {
      Cell& cell = block_of(*current).cells[word];
      cell.in_flight = false;
      cell.writer = accessor(*current).now;  // from here on a barrier shows it to others
    }
  }
  current->copies.clear();
}

void block_barrier(const char* instruction) {
  Block& block = block_of(*current);
  if (++block.at_barrier < launch->threads) return wait_at(instruction);
  block.at_barrier = 0;
  Thread* thread = &cluster.threads[(std::size_t)current->block * launch->threads];
  for (int i = 0; i < launch->threads; ++i) {
    ++thread[i].clock.block_barriers;
    wake(thread[i]);
  }
}

void cluster_arrive(const char* instruction) {
  Clock& clock = current->clock;
  if (clock.cluster_arrives != clock.cluster_waits) {
    report(instruction, "arrives twice without a wait in between");
    stop_launch();
  }
  ++clock.cluster_arrives;
  if (++cluster.arrived < (int)cluster.threads.size()) return;
  cluster.arrived = 0;
  ++cluster.completed;
  for (Thread* thread : cluster.at_wait) wake(*thread);
  cluster.at_wait.clear();
}

void cluster_wait(const char* instruction) {
  Clock& clock = current->clock;
  if (clock.cluster_arrives == clock.cluster_waits) {
    report(instruction, "waits without having arrived");
    stop_launch();
  }
  if (cluster.completed < clock.cluster_arrives) {
    cluster.at_wait.push_back(current);
    wait_at(instruction);
  }
  ++clock.cluster_waits;
}

u32 cluster_rank() { return current->block; }

u32 map_shared(u32 address, u32 rank, const char* instruction) {
  if (rank >= (u32)launch->cluster_blocks || address & kClusterWindow) {
    report(instruction, "block %u of %d, address %#x", rank, launch->cluster_blocks, address);
    rank = current->block;
  }
  return kClusterWindow | rank << kRankShift | (address & ((1u << kRankShift) - 1));
}

float exchange_lanes(float v, u32 mask, const char* instruction) {
  LaneValue own = {v, mask, 0.f};
  collective(own, instruction, [](LaneValue* const (&lanes)[32]) {
    for (u32 i = 0; i < 32; ++i) lanes[i]->result = lanes[(i ^ lanes[i]->mask) % 32]->v;
  });
  return own.result;
}

void multiply(float* d, const u32 (&a)[4], const u32 (&b)[2], const float* c, Format format, const char* instruction) {
  Product own = {d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}, c};
  collective(own, instruction, [format](Product* const (&lanes)[32]) { multiply_fragments(lanes, format); });
}

u32 half_bits(float v) { return half_from_float(v); }
u32 bfloat16_bits(float v) { return bfloat16_from_float(v); }
float half_value(u32 bits) { return half_table()[bits & 0xffff]; }

}  // namespace emulator

extern "C" void emulator_launch(emulator::Launch* requested) {
  using namespace emulator;
  launch = requested;
  stopped = false;
  random_bits.seed(launch->seed);
  landing = static_cast<Landing>(launch->seed % 3);
  grid_dimensions = {(u32)(launch->clusters * launch->cluster_blocks), 1, 1};
  global_cells.assign(launch->buffer_count, {});
  for (u32 i = 0; i < launch->buffer_count; ++i) {
    const Buffer& buffer = launch->buffers[i];
    if (buffer.writable) global_cells[i].resize((buffer.end - buffer.begin + kCellBytes - 1) / kCellBytes);
  }
  std::vector<i64> order(launch->clusters);
  for (i64 i = 0; i < launch->clusters; ++i) order[i] = i;
  if (launch->seed != 0) std::shuffle(order.begin(), order.end(), random_bits);
  for (i64 number : order) {
    if (stopped) break;
    start_cluster(number);
    run_ready_threads();
    finish_cluster();
  }
}
