// programmatic.cuh: programmatic dependent launch.
//
// This kernel may be started before the previous one of its stream has ended, and lets the next one be. Nothing before
// begin_memory_accesses() may touch global memory.
//
// The next kernel is let go only after the wait: a kernel that reads, before its own wait, what an earlier kernel than
// its predecessor has written (weights, say) then still finds it complete. Where after the wait is a choice: early hides
// more of the next launch, late keeps the next kernel's blocks from taking room that blocks of this one still need (8192,
// 2^21 elements, cold: 1.23 times a copy at once, 1.10 before the exchange).
//
// A kernel may read what its predecessor has written, as the passes of a large transform do: its wait is for the whole
// predecessor and for its writes. And it may write what its predecessor's predecessor has read or written: that one has
// ended before the predecessor lets this kernel start, since it does so after a wait of its own.
enum NextKernelStarts { ALONE = 0, AFTER_WAIT = 1, AFTER_LOADS = 2, BEFORE_EXCHANGE = 3 };

__device__ __forceinline__ void let_next_kernel_start(NextKernelStarts here) {
#if PROGRAMMATIC
  if (PROGRAMMATIC == here) griddepcontrol_launch_dependents();
#endif
}

__device__ __forceinline__ void begin_memory_accesses() {
#if PROGRAMMATIC
  griddepcontrol_wait();
#endif
  let_next_kernel_start(AFTER_WAIT);
}
