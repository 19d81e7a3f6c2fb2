// machine.hpp: the state of the launch that runs, and its error reports.

#pragma once

#include <cstdarg>
#include <cstdio>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "banks.hpp"
#include "context.hpp"
#include "host.hpp"
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
  Buffer buffers[3];
  i64 written_bytes, extra_wavefronts, error_count;
  char errors[4096];
};

constexpr std::size_t kStackBytes = 256 << 10;  // only the pages that are used take memory
constexpr i64 kReportedErrors = 8;
constexpr i64 kMostErrors = 1000;  // then the launch ends
constexpr u32 kClusterWindow = 1u << 31;
constexpr u32 kRankShift = 24;
constexpr int kCellBytes = 2;    // of global memory; no access is smaller
constexpr int kWordBytes = 4;    // of shared memory
constexpr u32 kPoison = ~0u;     // a NaN in every element type

// When a cp.async moves its bytes. A correct kernel cannot tell.
enum class Landing { AT_WAIT, AT_ONCE, AT_ANY_SWITCH };

enum class State { READY, WAITING, FINISHED };

struct Copy {
  u32 destination;
  const char* source;
  bool landed;
};

struct Thread {
  Context context;
  State state = State::READY;
  const char* instruction = nullptr;  // that it waits at
  u32 index = 0, block = 0;
  bool previous_grid_runs = false;  // this one lets others start early, so it may have been started early itself
  Clock clock;
  std::vector<Copy> copies;  // started and not waited for
};

// The lanes that have arrived at a warp-wide instruction.
struct Warp {
  const char* instruction = nullptr;
  int arrived = 0;
  void* operands[32];
  BankCounter banks;
};

struct Block {
  std::vector<char> shared;
  std::vector<Cell> cells;
  std::vector<Warp> warps;
  int at_barrier = 0;
  u32 last_remote_read = 0;  // 1 + the reader's cluster arrives
};

struct Cluster {
  i64 number = 0;
  std::vector<Thread> threads;
  std::vector<Block> blocks;
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
  const Clock& clock = thread.clock;
  const Stamp now = {cluster.number, thread.block, thread.index, clock.block_barriers, clock.cluster_arrives};
  return {now, clock.cluster_waits};
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

inline std::string stamp_name(const Stamp& stamp) {
  if (stamp.cluster != cluster.number) return "another cluster";
  if (stamp.block == kSeveral) return "threads of several blocks";
  if (stamp.thread == kSeveral) return "several threads of " + block_name(stamp.block);
  return "thread " + std::to_string(stamp.thread) + " of " + block_name(stamp.block);
}

inline void report_race(const char* instruction, const std::string& where, const Cell& before, bool writes) {
  const bool with_write = before.written && !comes_before(before.writer, accessor(*current));
  report(instruction, "%s is a race: this %s and the %s by %s have no barrier in between", where.c_str(),
         writes ? "write" : "read", with_write ? "write" : "read",
         stamp_name(with_write ? before.writer : before.reader).c_str());
}

}  // namespace emulator
