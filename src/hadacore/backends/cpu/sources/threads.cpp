// Threads: those of torch's OpenMP library where Python has found it, else a pool of threads that sleep between calls.
//
// OpenMP's threads spin for some milliseconds after each operation of torch, and on as many processors as there are
// threads others would wait for them to stop: a transform between torch's operations had one thread instead of two.
//
// One call uses it at a time: a call that finds it busy, because another
// Python thread is in a transform, does all its work itself, so calls never wait for each other.
#include <fenv.h>
#include <pthread.h>
#include <stdlib.h>

#include "problem.hpp"

namespace {

constexpr int64_t MAXIMUM_WORKERS = 255;

struct Job {
    Range range;
    void* context;
    int64_t count;
    int64_t grain;
    int64_t next;    // first piece that nobody has taken; atomic
    fenv_t numbers;  // the caller's rounding and subnormal modes: results must not depend on who computes them
};

struct Pool {
    pthread_mutex_t user;  // held by the call that uses the pool
    pthread_mutex_t lock;  // guards what follows
    pthread_cond_t posted;
    pthread_cond_t finished;
    Job* job;
    uint64_t generation;  // counts jobs, so that a worker takes each at most once
    int64_t wanted;       // workers that may still join the job
    int64_t active;       // workers in the job
    int64_t workers;      // threads that exist
};

Pool pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER,
             nullptr, 0, 0, 0, 0};
// GOMP_parallel(body, data, threads, flags), the entry of a parallel region in compiled code, or null.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
Team team = nullptr;

pthread_once_t once = PTHREAD_ONCE_INIT;
pthread_key_t scratch_key;

struct Scratch {
    void* memory;
    int64_t bytes;
};

void free_scratch(void* value) {
    Scratch* scratch = static_cast<Scratch*>(value);
    for (int use = 0; use < SCRATCH_USES; use++) free(scratch[use].memory);
    free(scratch);
}

// A forked child has none of the threads, and locks may have been held by them.
void start_over_in_child() {
    team = nullptr;  // OpenMP does not start over
    pthread_mutex_init(&pool.user, nullptr);
    pthread_mutex_init(&pool.lock, nullptr);
    pthread_cond_init(&pool.posted, nullptr);
    pthread_cond_init(&pool.finished, nullptr);
    pool.job = nullptr;
    pool.generation = 0;
    pool.wanted = pool.active = pool.workers = 0;
}

void initialize() {
    pthread_key_create(&scratch_key, free_scratch);
    pthread_atfork(nullptr, nullptr, start_over_in_child);
}

void take_pieces(Job* job) {
    for (;;) {
        int64_t begin = __atomic_fetch_add(&job->next, job->grain, __ATOMIC_RELAXED);
        if (begin >= job->count) return;
        int64_t end = begin + job->grain < job->count ? begin + job->grain : job->count;
        job->range(job->context, begin, end);
    }
}

void work_in_team(void* data) {
    Job* job = static_cast<Job*>(data);
    fenv_t own;
    fegetenv(&own);
    fesetenv(&job->numbers);
    take_pieces(job);
    fesetenv(&own);
}

void* work(void*) {
    uint64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.job == nullptr || pool.wanted == 0 || pool.generation == seen) {
            pthread_cond_wait(&pool.posted, &pool.lock);
        }
        Job* job = pool.job;
        seen = pool.generation;
        pool.wanted--;
        pool.active++;
        pthread_mutex_unlock(&pool.lock);
        fesetenv(&job->numbers);
        take_pieces(job);
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0) pthread_cond_signal(&pool.finished);
    }
    return nullptr;
}

// Makes sure that `wanted` workers exist, as far as the system gives threads. Called with the lock.
void grow(int64_t wanted) {
    while (pool.workers < wanted && pool.workers < MAXIMUM_WORKERS) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, work, nullptr) != 0) return;
        pthread_detach(thread);
        pool.workers++;
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void hadacore_use_openmp(void* gomp_parallel) {
    pthread_once(&once, initialize);
    team = reinterpret_cast<Team>(gomp_parallel);
}

void parallel_for(int64_t count, int64_t grain, int64_t threads, Range range, void* context) {
    int64_t pieces = (count + grain - 1) / grain;
    int64_t helpers = (threads < pieces ? threads : pieces) - 1;
    pthread_once(&once, initialize);
    Job job = {range, context, count, grain, 0, {}};
    fegetenv(&job.numbers);
    if (helpers > 0 && team != nullptr) {
        team(work_in_team, &job, unsigned(helpers) + 1, 0);
        return;
    }
    if (helpers <= 0 || pthread_mutex_trylock(&pool.user) != 0) {
        if (count > 0) range(context, 0, count);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    grow(helpers);
    pool.job = &job;
    pool.generation++;
    pool.wanted = helpers;
    pthread_cond_broadcast(&pool.posted);
    pthread_mutex_unlock(&pool.lock);
    take_pieces(&job);
    pthread_mutex_lock(&pool.lock);
    pool.job = nullptr;
    pool.wanted = 0;
    while (pool.active != 0) pthread_cond_wait(&pool.finished, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.user);
}

void* thread_scratch(int64_t bytes, ScratchUse use) {
    pthread_once(&once, initialize);
    Scratch* scratch = static_cast<Scratch*>(pthread_getspecific(scratch_key));
    if (scratch == nullptr) {
        scratch = static_cast<Scratch*>(calloc(SCRATCH_USES, sizeof(Scratch)));
        if (scratch == nullptr || pthread_setspecific(scratch_key, scratch) != 0) {
            free(scratch);
            return nullptr;
        }
    }
    scratch += use;
    if (scratch->bytes < bytes) {
        free(scratch->memory);
        scratch->bytes = 0;
        if (posix_memalign(&scratch->memory, 64, static_cast<size_t>(bytes)) != 0) {
            scratch->memory = nullptr;
            return nullptr;
        }
        scratch->bytes = bytes;
    }
    return scratch->memory;
}
