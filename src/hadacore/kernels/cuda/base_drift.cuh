// base_drift.cuh: warps of a block that may be at different units (DRIFT = 1).
//
// With one barrier of the block for each unit all warps multiply at the same time, and then all add and store, when the Tensor Cores have
// nothing to do. An mbarrier in its place lets a warp go ahead: it is told that a warp has read its unit's stage as soon as the
// products have ended, and that a thread's copies of the next unit are there. Once it knows both of everybody, the next unit may be
// multiplied, and the stage that was read filled again; who adds and stores is not waited for. A warp is one unit ahead of others at
// most. Where a block is alone on its multiprocessor: 13696 2.15 -> 2.02 of a copy, 18944 1.36 -> 1.28. (Warpgroups that take turns at
// multiplying, by named barriers, were slower: 28672 1.21, where they drift freely 1.18.)
//
// A thread waits for its copies when its products have ended, or lets them arrive by themselves, which is an arrival for each thread
// instead of each warp. Either is better for one kind of second product: 36864, a narrow one, 1.37 and 1.41; 18944, a wide one, 1.32 and 1.28.

#if DRIFT
constexpr u32 kArrivals = kSquares;  // in shared memory, an mbarrier
static_assert(WGMMA && STAGES == 2 && !ENCODING && !kGathered, "what drifts");

constexpr bool kAwaitsCopies = SIGNS == SIGNS_BEFORE || !kWideProduct;  // signs are applied by who has copied

struct Drift {
  u32 arrivals, parity;

  __device__ __forceinline__ void init(u32 shared) {
    arrivals = shared + kArrivals;
    parity = 0;
    if (threadIdx.x == 0) mbarrier_init(arrivals, (kAwaitsCopies ? 0 : kThreads) + kThreads / 32);
    bar_sync();
  }

  // This thread's copies of a unit have been started.
  __device__ __forceinline__ void copies_started() const {
    if (!kAwaitsCopies) cp_async_mbarrier_arrive_noinc(arrivals);
  }

  // This warp has read its stage, if there was one; the next unit's is `stage`.
  __device__ __forceinline__ void products_ended(const Rows& r, i64 first_unit, u32 stage, int lane) const {
    if (kAwaitsCopies) {
      cp_async_wait_all();
      finish_stage(r, first_unit, stage);
    }
    bar_warp_sync();
    if (lane == 0) mbarrier_arrive(arrivals);
  }

  __device__ __forceinline__ void wait() {
    while (!mbarrier_try_wait_parity(arrivals, parity)) {}
    parity ^= 1;
    if (!kAwaitsCopies) fence_proxy_async();  // what threads have copied, for wgmma
  }
};
#endif
