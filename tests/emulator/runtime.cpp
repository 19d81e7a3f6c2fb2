// runtime.cpp: runs the threads of a launch.
//
// Every CUDA thread has a stack of its own. It runs until it must wait for other threads, then the scheduler picks
// the next one that can go on. The blocks of a cluster run together, clusters one after another. Anything a real
// GPU would answer with a fault, a hang or garbage becomes an error string; the launch goes on where it can.

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "collective.hpp"
#include "host.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "numbers.hpp"
#include "products.hpp"
#include "transfers.hpp"

namespace emulator {

Index thread_index, block_index, grid_dimensions;

namespace {

// ---- scheduling -----------------------------------------------------------------------------------

void run_thread() {
  launch->entry(*launch->arguments);
  if (!current->copies.empty()) report("end of kernel", "%zu cp.async not waited for", current->copies.size());
  if (!current->products.empty()) report("end of kernel", "%zu wgmma not waited for", current->products.size());
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
  if (!cluster.in_flight.empty()) land_transfer(random_bits() % cluster.in_flight.size());
  if (!cluster.arrivals.empty()) land_arrival_of(cluster.arrivals[random_bits() % cluster.arrivals.size()].thread);
  Thread& thread = cluster.threads[random_bits() % cluster.threads.size()];
  if (!thread.copies.empty()) land(thread.copies[random_bits() % thread.copies.size()]);
}

void run_ready_threads() {
  while (!stopped) {
    while (ready.empty() && !cluster.in_flight.empty()) land_transfer(cluster.in_flight.size() - 1);
    while (ready.empty() && !cluster.arrivals.empty()) land_arrival_of(cluster.arrivals.back().thread);
    if (ready.empty()) break;
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
    block.cells.resize(words);
    block.warps.resize(launch->threads / 32);
  }
  cluster.threads.resize((std::size_t)launch->threads * launch->cluster_blocks);
  const SharedClock nothing_seen = std::make_shared<const Clock>();
  for (std::size_t i = 0; i < cluster.threads.size(); ++i) {
    Thread& thread = cluster.threads[i];
    thread.index = i % launch->threads;
    thread.block = i / launch->threads;
    thread.id = i;
    thread.seen = nothing_seen;
    thread.previous_grid_runs = launch->programmatic;
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
    if (all_finished)
      for (const auto& [offset, barrier] : block.mbarriers) check_mbarrier_at_end(barrier);
  }
}

}  // namespace

// ---- what the kernel calls ------------------------------------------------------------------------

void let_dependents_start(const char* instruction) {
  if (current->previous_grid_runs) report(instruction, "the next grid is let go before griddepcontrol_wait");
}

void wait_for_previous_grid() { current->previous_grid_runs = false; }

void load_global(void* value, const void* address, int bytes, const char* instruction) {
  if (check_global(static_cast<const char*>(address), bytes, false, instruction)) std::memcpy(value, address, bytes);
  else std::memset(value, kPoison, bytes);
}

void store_global(void* address, const void* value, int bytes, const char* instruction) {
  if (check_global(static_cast<const char*>(address), bytes, true, instruction)) std::memcpy(address, value, bytes);
}

// Atomic, and so no race with others of its kind; a buffer that is reduced into is neither read nor stored to.
void reduce_global_max(void* address, u32 v, const char* instruction) {
  if (current->previous_grid_runs) return report(instruction, "global memory is accessed before griddepcontrol_wait");
  if (find_buffer(static_cast<const char*>(address), 4, 4, true, instruction) < 0) return;
  u32 held;
  std::memcpy(&held, address, 4);
  held = std::max(held, v);
  std::memcpy(address, &held, 4);
}

void load_shared(void* value, u32 address, int bytes, const char* instruction) {
  SharedPlace place;
  std::memset(value, kPoison, bytes);
  if (!find_shared(place, address, bytes, instruction)) return;
  check_shared(place, bytes, false, instruction);
  count_banks(address, bytes);
  std::memcpy(value, &place.block->shared[place.offset], bytes);
}

void store_shared(u32 address, const void* value, int bytes, const char* instruction) {
  SharedPlace place;
  if (!find_shared(place, address, bytes, instruction)) return;
  check_shared(place, bytes, true, instruction);
  count_banks(address, bytes);
  std::memcpy(&place.block->shared[place.offset], value, bytes);
}

void start_copy(u32 shared_address, const void* address, const char* instruction) {
  const char* source = static_cast<const char*>(address);
  SharedPlace place;
  if (!find_shared(place, shared_address, 16, instruction)) return;
  if (!check_global(source, 16, false, instruction)) return;
  check_shared(place, 16, true, instruction);
  for (int byte = 0; byte < 16; byte += kWordBytes) cell_of(place, byte).in_flight = true;
  std::memset(&place.block->shared[place.offset], kPoison, 16);
  current->copies.push_back({place.rank << kRankShift | place.offset, source, false});
  if (landing == Landing::AT_ONCE) land(current->copies.back());
}

void wait_for_copies(const char* instruction) {
  while (land_arrival_of(current->id)) {}  // and yet only their mbarrier shows those copies, also to this thread
  for (Copy& copy : current->copies) {
    land(copy);
    check_global(copy.source, 16, false, instruction);  // nobody may have written to it since the start
    const u32 first_word = (copy.destination & ((1u << kRankShift) - 1)) / kWordBytes;
    for (u32 word = first_word; word < first_word + 16 / kWordBytes; ++word) {
      Cell& cell = block_of(*current).cells[word];
      cell.in_flight = false;
      cell.writer = accessor(*current).now;  // from here on a barrier shows it to others
      cell.fences = current->fences;
    }
  }
  current->copies.clear();
}

void init_mbarrier(u32 address, u32 arrivals, const char* instruction) {
  SharedPlace place;
  if (!find_shared(place, address, kMbarrierBytes, instruction)) return;
  if (place.block->mbarriers.count(place.offset) != 0)
    return report(instruction, "%s is an mbarrier already", shared_name(place.rank, place.offset).c_str());
  if (arrivals == 0 || arrivals > kMostCounted) return report(instruction, "%u arrivals cannot be counted", arrivals);
  check_shared(place, kMbarrierBytes, true, instruction);
  add_mbarrier(place, arrivals);
}

// fence.mbarrier_init is a release, and other blocks' cluster waits acquire, but only of what was initialised.
void publish_mbarriers() {
  for (auto& [offset, barrier] : block_of(*current).mbarriers)
    if (barrier.initialised.thread == current->id && barrier.published_by == kNever)
      barrier.published_by = current->cluster_arrives + 1;
}

void arrive_at_mbarrier(u32 address, u32 expected_bytes, const char* instruction) {
  Mbarrier* barrier = find_mbarrier(address, Window::OF_BLOCK, instruction);
  if (!barrier) return;
  if (barrier->awaited_arrivals() <= 0)
    return report(instruction, "more arrivals than the %u of a phase", barrier->arrivals);
  barrier->pending_bytes += expected_bytes;
  if (barrier->pending_bytes > kMostCounted)
    report(instruction, "%lld bytes are more than an mbarrier counts", barrier->pending_bytes);
  --barrier->pending_arrivals;
  barrier->release(current->seen, current->id, current->epoch++);
  complete_phase_if_done(*barrier);
}

// The arrival comes once the thread's copies so far have landed, and shows them, but nothing else that the thread did.
void arrive_after_copies(u32 address, const char* instruction) {
  Mbarrier* barrier = find_mbarrier(address, Window::OF_BLOCK, instruction);
  if (!barrier) return;
  if (barrier->awaited_arrivals() <= 0)
    return report(instruction, "more arrivals than the %u of a phase", barrier->arrivals);
  start_arrival(*barrier);
}

// A first try that comes too early fails at once, to see whether the kernel tries again. The next one waits.
bool wait_at_mbarrier(u32 address, u32 parity, const char* instruction) {
  Mbarrier* barrier = find_mbarrier(address, Window::OF_BLOCK, instruction);
  if (!barrier) return true;  // or the thread would try for ever
  if (!barrier->has_completed(parity) && std::exchange(current->was_refused, true)) {
    barrier->waiting.push_back(current);
    wait_at(instruction);
  }
  if (!barrier->has_completed(parity)) return false;
  current->was_refused = false;
  current->seen = barrier->acquire(current->seen);
  return true;
}

void start_remote_store(u32 address, u32 barrier_address, const void* value, const char* instruction) {
  SharedPlace place;
  if (!find_shared(place, address, 16, 16, Window::OF_CLUSTER, instruction)) return;
  Mbarrier* barrier = find_mbarrier(barrier_address, Window::OF_CLUSTER, instruction);
  if (!barrier) return;
  if (barrier->block != place.rank)
    return report(instruction, "the mbarrier is in %s, the destination in %s", block_name(barrier->block).c_str(),
                  block_name(place.rank).c_str());
  Transfer transfer = {barrier, place.rank, place.offset, 16, nullptr, {}, current->seen, accessor(*current).now};
  std::memcpy(transfer.value, value, 16);
  ++current->epoch;  // the bytes, once counted, release what the thread did before
  start_transfer(std::move(transfer), instruction);
}

void start_bulk_copy(u32 shared_address, const void* address, u32 bytes, u32 barrier_address, const char* instruction) {
  const char* source = static_cast<const char*>(address);
  if (bytes == 0 || bytes % 16 != 0 || bytes > kMostCounted)
    return report(instruction, "%u bytes are not a multiple of 16 that an mbarrier counts", bytes);
  SharedPlace place;
  if (!find_shared(place, shared_address, bytes, 16, Window::OF_BLOCK, instruction)) return;
  Mbarrier* barrier = find_mbarrier(barrier_address, Window::OF_BLOCK, instruction);
  if (!barrier) return;
  if (barrier->published_by == kNever) report(instruction, "no fence_mbarrier_init shows the mbarrier to bulk copies");
  Transfer transfer = {barrier, place.rank, place.offset, bytes, source, {}, current->seen, accessor(*current).now};
  if (!check_global(source, bytes, 16, false, accessor_of_copies(transfer, kInFlight), instruction)) return;
  start_transfer(std::move(transfer), instruction);
}

void warp_barrier(const char* instruction) {
  Thread* own = current;
  collective(own, instruction, [](Thread** const (&lanes)[32]) {
    std::array<Thread*, 32> threads;
    for (int i = 0; i < 32; ++i) threads[i] = *lanes[i];
    synchronise(threads);
  });
}

void block_barrier(u32 number, u32 threads, const char* instruction) {
  Block& block = block_of(*current);
  if (number >= kBarriers) return report(instruction, "barrier %u of %u", number, kBarriers);
  if (threads == 0) threads = launch->threads;
  if (threads % 32 != 0 || threads > (u32)launch->threads)
    return report(instruction, "%u threads are not whole warps of the block", threads);
  block.warps[current->index / 32].banks.meet(current->index % 32);
  Barrier& barrier = block.barriers[number];
  if (!barrier.arrived.empty() && barrier.threads != threads) {
    report(instruction, "barrier %u is one of %u threads for others", number, barrier.threads);
    stop_launch();
  }
  barrier.threads = threads;
  barrier.arrived.push_back(current);
  if (barrier.arrived.size() < threads) return wait_at(instruction);
  synchronise(std::exchange(barrier.arrived, {}));
}

// Orders no memory, since the arrive is relaxed: it says that blocks have started, and shows mbarriers.
void cluster_arrive(const char* instruction) {
  if (current->cluster_arrives != current->cluster_waits) {
    report(instruction, "arrives twice without a wait in between");
    stop_launch();
  }
  ++current->cluster_arrives;
  if (++cluster.arrived < (int)cluster.threads.size()) return;
  cluster.arrived = 0;
  ++cluster.completed;
  for (Thread* thread : cluster.at_wait) wake(*thread);
  cluster.at_wait.clear();
}

void cluster_wait(const char* instruction) {
  if (current->cluster_arrives == current->cluster_waits) {
    report(instruction, "waits without having arrived");
    stop_launch();
  }
  if (cluster.completed < current->cluster_arrives) {
    cluster.at_wait.push_back(current);
    wait_at(instruction);
  }
  ++current->cluster_waits;
}

u32 cluster_rank() { return current->block; }

u32 map_shared(u32 address, u32 rank, const char* instruction) {
  if (rank >= (u32)launch->cluster_blocks || address & kClusterWindow) {
    report(instruction, "block %u of %d, address %#x", rank, launch->cluster_blocks, address);
    rank = current->block;
  }
  return kClusterWindow | rank << kRankShift | (address & ((1u << kRankShift) - 1));
}

struct LaneValue {
  float v;
  u32 mask;
  float result;
};

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

// ---- products of a warpgroup ----------------------------------------------------------------------

void fence_matrices() {
  ++current->fences;
  current->seen_at_fence = current->seen;
}

void fence_products() { current->registers_fenced = true; }

void start_product(float* d, int tiles, bool start, const u32* a, u64 a_matrix, u64 b_matrix, Layout layout, Format format,
                   const char* instruction) {
  WarpgroupProduct product = {d, tiles, start, a != nullptr, {}, a_matrix, b_matrix, layout, format, current->product_groups, instruction};
  if (a) std::copy(a, a + 4, product.a);
  if (!current->registers_fenced) report(instruction, "no wgmma_fence after registers may have been touched");
  const int row_bytes = layout == Layout::K_CONTIGUOUS ? 32 : 128;
  if (!check_matrix(b_matrix, row_bytes, instruction) || (!a && !check_matrix(a_matrix, 32, instruction))) return;
  u32 fragment[4], fragment_of_b[2];
  if (!a) read_a(fragment, product);
  for (int tile = 0; tile < tiles; ++tile) read_b(fragment_of_b, product, tile);
  if (start) std::fill(d, d + 4 * tiles, std::numeric_limits<float>::quiet_NaN());
  current->products.push_back(product);
}

void commit_products() { ++current->product_groups; }

void wait_for_products(int pending, const char*) {
  std::vector<WarpgroupProduct>& products = current->products;
  std::size_t ended = 0;
  while (ended < products.size() && products[ended].group + pending < current->product_groups) compute(products[ended++]);
  products.erase(products.begin(), products.begin() + ended);
  current->registers_fenced = false;
}

// Lane i has the address of column i % 8 of matrix i / 8. Elements come from lanes that hold them as an accumulator of mma.
void store_matrices(u32 address, const u32* words, int count, const char* instruction) {
  struct Matrices {
    const u32* words;
    u16 column[8];
  } own = {words, {}};
  collective(own, instruction, [count](Matrices* const (&lanes)[32]) {
    for (int i = 0; i < 8 * count; ++i)
      for (int row = 0; row < 8; ++row)
        lanes[i]->column[row] = (u16)(lanes[4 * row + i % 8 / 2]->words[i / 8] >> (16 * (i % 2)));
  });
  if ((int)current->index % 32 < 8 * count) store_shared(address, own.column, 16, instruction);
  else count_banks(address, 16);  // ignored, but the lanes are counted together
}

u32 half_bits(float v) { return half_from_float(v); }
u32 bfloat16_bits(float v) { return bfloat16_from_float(v); }
u32 float8_bits(float v, int mantissa, int bias, double maximum) { return float8_from_float(v, mantissa, bias, maximum); }
float reciprocal(float v) { return 1.f / v; }
float flush_subnormal(float v) { return __builtin_fabsf(v) < 0x1p-126f ? __builtin_copysignf(0.f, v) : v; }
float square_root(float v) { return std::sqrt(v); }
float power_of_two(float v) { return std::exp2(v); }
float error_function(float v) { return std::erf(v); }
float half_value(u32 bits) { return half_table()[bits & 0xffff]; }

}  // namespace emulator

extern "C" void emulator_launch(emulator::Launch* requested) {
  using namespace emulator;
  launch = requested;
  stopped = false;
  random_bits.seed(launch->seed);
  landing = static_cast<Landing>(launch->seed % 3);
  grid_dimensions = {(u32)(launch->clusters * launch->cluster_blocks), 1, 1};
  global_cells.clear();
  global_cells.resize(launch->buffer_count);
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
