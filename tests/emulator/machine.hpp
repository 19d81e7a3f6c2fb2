// machine.hpp: the state of the launch that runs, and its error reports.

#pragma once

#include <cstdarg>
#include <cstdio>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "banks.hpp"
#include "context.hpp"
#include "host.hpp"
#include "mbarrier.hpp"
#include "shadow.hpp"

namespace emulator {

// A range of global memory that the kernel may touch. Laid out as `_Buffer` in emulator.py, as is Launch.
struct Buffer {
  const char* name;
  char* begin;
  char* end;
  int readable, writable;
};

struct Launch {
  void (*entry)(const Arguments&);
  const Arguments* arguments;
  i64 clusters;
  int cluster_blocks, threads;
  u32 shared_bytes, buffer_count;
  u64 seed;
  i64 programmatic;  // started before the previous grid has ended
  Buffer buffers[8];
  i64 written_bytes, extra_wavefronts, error_count;
  char errors[4096];
};

constexpr std::size_t kStackBytes = 256 << 10;  // only the pages that are used take memory
constexpr i64 kReportedErrors = 8;
constexpr i64 kMostErrors = 1000;  // then the launch ends
constexpr u32 kClusterWindow = 1u << 31;
constexpr u32 kRankShift = 24;
constexpr int kCellBytes = 1;    // of global memory; no access is smaller
constexpr int kWordBytes = 4;    // of shared memory
constexpr u32 kPoison = ~0u;     // a NaN in every element type

// When an asynchronous copy moves its bytes. A correct kernel cannot tell. AT_WAIT is the latest moment: a cp.async
// lands as its thread waits, a copy that an mbarrier counts when no thread can go on without it.
enum class Landing { AT_WAIT, AT_ONCE, AT_ANY_SWITCH };

enum class State { READY, WAITING, FINISHED };

struct Copy {
  u32 destination;
  const char* source;
  bool landed;
};

// A copy that an mbarrier counts: an st.async, or, with a source, a bulk copy.
struct Transfer {
  Mbarrier* barrier;
  u32 rank, offset, bytes;  // where it goes
  const char* source;
  char value[16];
  SharedClock seen;  // by the thread that started it
  Stamp started;
};

// An arrival at an mbarrier that comes once these copies have landed.
struct Arrival {
  Mbarrier* barrier;
  u32 thread;
  std::vector<Copy> copies;
};

// A wgmma that a thread has started: its part of the operands and sums.
struct WarpgroupProduct {
  float* d;
  int tiles;  // of 8 columns
  bool start, has_fragments;
  u32 a[4];
  u64 a_matrix, b_matrix;
  Layout layout;  // of B
  Format format;
  u32 group;
  const char* instruction;
};

struct Thread {
  Context context;
  State state = State::READY;
  const char* instruction = nullptr;  // that it waits at
  u32 index = 0, block = 0;
  bool previous_grid_runs = false;  // for all this thread knows
  u32 id = 0;     // in the cluster
  u32 epoch = 1;  // its releases so far, and 1
  SharedClock seen;
  u32 cluster_arrives = 0, cluster_waits = 0;
  bool was_refused = false;    // by the last try_wait
  std::vector<Copy> copies;  // started and not waited for
  std::vector<WarpgroupProduct> products;
  u32 product_groups = 0;        // committed
  bool registers_fenced = false;  // since products were waited for
  u32 fences = 0;                 // between this thread's writes to shared memory and wgmma
  SharedClock seen_at_fence;
};

// The lanes that have arrived at a warp-wide instruction.
struct Warp {
  const char* instruction = nullptr;
  int arrived = 0;
  void* operands[32];
  BankCounter banks;
};

constexpr u32 kBarriers = 16;  // of a block

struct Barrier {
  u32 threads = 0;  // it waits for so many
  std::vector<Thread*> arrived;
};

struct Block {
  std::vector<char> shared;
  std::vector<Cell> cells;
  std::vector<Warp> warps;
  std::map<u32, Mbarrier> mbarriers;  // by offset
  Barrier barriers[kBarriers];
};

struct Cluster {
  i64 number = 0;
  std::vector<Thread> threads;
  std::vector<Block> blocks;
  std::vector<const Mbarrier*> mbarriers;  // by id; that of the first is the number of threads
  std::vector<Transfer> in_flight;
  std::vector<Arrival> arrivals;  // that wait for copies
  int arrived = 0;
  u32 completed = 0;  // cluster barriers
  std::vector<Thread*> at_wait;
};

inline Launch* launch;
inline Cluster cluster;
inline Thread* current;
inline Context scheduler;
inline std::deque<Thread*> ready;
inline std::mt19937_64 random_bits;
inline Landing landing;
inline bool stopped;
inline std::vector<std::vector<Cell>> global_cells;  // by buffer; empty unless it is written

inline Block& block_of(const Thread& thread) { return cluster.blocks[thread.block]; }

inline Accessor accessor(const Thread& thread) {
  return {{(u32)cluster.number, thread.id, thread.epoch}, thread.seen.get()};
}

inline void wake(Thread& thread) {
  if (thread.state != State::WAITING) return;  // the last to arrive never waited
  thread.state = State::READY;
  ready.push_back(&thread);
}

// ---- errors ---------------------------------------------------------------------------------------

inline std::string block_name(u32 rank) {
  return "block " + std::to_string(cluster.number * launch->cluster_blocks + rank);
}

inline void add_error(const std::string& text) {
  if (launch->error_count++ < kReportedErrors) {
    const std::size_t used = std::char_traits<char>::length(launch->errors);
    std::snprintf(launch->errors + used, sizeof launch->errors - used, "%s\n", text.c_str());
  }
  if (launch->error_count >= kMostErrors) stopped = true;
}

// An error of the running thread at `instruction`.
__attribute__((format(printf, 2, 3))) inline void report(const char* instruction, const char* format, ...) {
  char what[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  add_error("thread " + std::to_string(current->index) + " of " + block_name(current->block) + ": " + instruction +
            ": " + what);
}

inline std::string shared_name(u32 rank, u32 offset) {
  return "shared byte " + std::to_string(offset) + " of " + block_name(rank);
}

inline bool is_of_mbarrier(const Stamp& stamp) {
  return stamp.cluster == (u32)cluster.number && stamp.thread >= cluster.threads.size();
}

inline std::string stamp_name(const Stamp& stamp) {
  if (stamp.cluster != (u32)cluster.number) return "another cluster";
  if (is_of_mbarrier(stamp)) {
    const Mbarrier& barrier = *cluster.mbarriers[stamp.thread - cluster.threads.size()];
    return "a copy that the mbarrier at " + shared_name(barrier.block, barrier.offset) + " counts";
  }
  const Thread& thread = cluster.threads[stamp.thread];
  return "thread " + std::to_string(thread.index) + " of " + block_name(thread.block);
}

inline void report_race(const char* instruction, const std::string& where, const Conflict& before, bool writes) {
  report(instruction, "%s is a race: this %s and the %s by %s have no barrier in between", where.c_str(),
         writes ? "write" : "read", before.write ? "write" : "read", stamp_name(before.stamp).c_str());
}

}  // namespace emulator
