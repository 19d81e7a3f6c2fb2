// warpgroup_producers.cuh: warpgroups of a block that read rows and activate them, for those that multiply (PRODUCERS > 0).
//
// By warps of their own an activation runs while others add, multiply by the base and encode the row before, since the panel is free as
// soon as the first product has read it; and where a block has one row, more warps have it done sooner. Two mbarriers hand a row over.
// Producers need few registers, and leave theirs to the others (setmaxnreg).
//
// It gains least where a multiprocessor has two blocks anyway: 14336 with silu_mul 1.46 of a copy without, 1.53 with producers; 28672,
// of which one block fits, 1.97 and 1.86. What waits there is not the exponentials but the latency of each step, which few warps
// share (a warp issues in 44 % of the clocks; asking for the next row's lines in advance changes nothing).

#if PRODUCERS
struct Handover {
  u32 is_there, was_read;  // mbarriers
  u32 parity;

  // Followed by a barrier of the block.
  __device__ __forceinline__ void init(u32 shared) {
    is_there = shared + kHandover;
    was_read = is_there + 8;
    parity = 0;
    if (threadIdx.x == 0) {
      mbarrier_init(is_there, kProducers / 32);
      mbarrier_init(was_read, 1);
    }
  }

  // By who multiplies: the panel has the next row.
  __device__ __forceinline__ void wait_for_row() {
    while (!mbarrier_try_wait_parity(is_there, parity)) {}
    parity ^= 1;
  }

  // By one thread, for all.
  __device__ __forceinline__ void tell_it_was_read() const { mbarrier_arrive(was_read); }

  // By who reads rows: the panel may be filled again.
  __device__ __forceinline__ void wait_until_read() {
    while (!mbarrier_try_wait_parity(was_read, parity)) {}
    parity ^= 1;
  }

  // By a warp that has written its part of a row.
  __device__ __forceinline__ void tell_it_is_there(int lane) const {
    bar_warp_sync();
    if (lane == 0) mbarrier_arrive(is_there);
  }
};

__device__ __forceinline__ void produce_rows(const Rows& r, const Prologue& prologue, i64 row, i64 step, u32 stage, Handover& handover) {
  const int lane = threadIdx.x % 32;
  while (true) {
    start_row(r, row, stage);
    const i64 next = row + step;
    const bool more = REFILLED && next < r.rows;
    cp_async_wait_all();
    activate_row(r, prologue, row, stage);
    finish_row(r, row, stage);
    handover.tell_it_is_there(lane);
    if (!more) return;
    handover.wait_until_read();
    row = next;
  }
}
#endif
