// banks.hpp: how many wavefronts a warp's shared-memory accesses take beyond the least possible.
//
// 32 banks of 4 bytes. A warp's 16-byte accesses are served 8 lanes at a time, 8-byte ones 16 lanes at a time,
// each in one wavefront unless two lanes want different words of a bank.

#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "host.hpp"

namespace emulator {

class BankCounter {
 public:
  // A lane's next access. The n-th accesses of a warp's lanes since the last barrier make up one instruction.
  void add(int lane, u32 address, int bytes) {
    const auto found = instructions_.try_emplace(accesses_[lane]++).first;
    Instruction& instruction = found->second;
    instruction.bytes = bytes;
    instruction.address[lane] = address;
    instruction.lanes |= 1u << lane;
    if (instruction.lanes != ~0u) return;
    evaluate(instruction);
    instructions_.erase(found);
  }

  // At a barrier of the block lanes are counted anew: some may have made fewer accesses than others.
  void meet(int lane) { accesses_[lane] = (accesses_[lane] / kBetweenBarriers + 1) * kBetweenBarriers; }

  // Instructions that some lanes never reached included.
  i64 extra_wavefronts() {
    for (const auto& [number, instruction] : instructions_) evaluate(instruction);
    instructions_.clear();
    return extra_;
  }

 private:
  struct Instruction {
    u32 lanes = 0;
    int bytes = 0;
    u32 address[32];
  };

  static constexpr u64 kBetweenBarriers = 1ull << 24;

  void evaluate(const Instruction& instruction) {
    const int together = std::min(32, 128 / instruction.bytes);
    for (int first = 0; first < 32; first += together) {
      std::vector<u32> words;
      for (int lane = first; lane < first + together; ++lane) {
        if (!(instruction.lanes >> lane & 1)) continue;
        for (int byte = 0; byte < instruction.bytes; byte += 4) words.push_back((instruction.address[lane] + byte) / 4);
      }
      std::sort(words.begin(), words.end());
      words.erase(std::unique(words.begin(), words.end()), words.end());
      int wanted[32] = {};
      for (u32 word : words) ++wanted[word % 32];
      extra_ += std::max(0, *std::max_element(wanted, wanted + 32) - 1);
    }
  }

  std::map<u64, Instruction> instructions_;
  u64 accesses_[32] = {};
  i64 extra_ = 0;
};

}  // namespace emulator
