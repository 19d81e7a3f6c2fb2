// context.hpp: stacks to run threads on, and the switch from one to another.
//
// On x86-64 the switch is 15 instructions: a call preserves six registers and the stack pointer, and nothing else
// of a thread is live. Other machines use the C library's swapcontext, which also makes a system call.

#pragma once

#include <cstddef>

#if defined(__x86_64__) && !defined(HADACORE_EMULATOR_UCONTEXT)

extern "C" __attribute__((visibility("hidden"))) void emulator_switch_stacks(void** save_to, void* load_from);

asm(R"(
  .text
  .hidden emulator_switch_stacks
  .globl emulator_switch_stacks
  .type emulator_switch_stacks, @function
emulator_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulator_switch_stacks, .-emulator_switch_stacks
)");

namespace emulator {

struct Context {
  void* stack_pointer;
};

inline void switch_context(Context& from, Context& to) {
  emulator_switch_stacks(&from.stack_pointer, to.stack_pointer);
}

// The first switch to `context` calls `entry`, which must never return.
inline void prepare_context(Context& context, char* stack, std::size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // where a return address would be: keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
}

}  // namespace emulator

#else

#include <ucontext.h>

namespace emulator {

struct Context {
  ucontext_t registers;
};

inline void switch_context(Context& from, Context& to) {
  swapcontext(&from.registers, &to.registers);
}

inline void prepare_context(Context& context, char* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

}  // namespace emulator

#endif
