/*
** Tasks that need memory of their own while they run. Each lane has a piece of the scratch memory and takes tasks, in order,
** until none is left; so the memory grows with the threads and not with the tasks, and a thread that works alone uses one
** piece again and again while it is in its cache. Every second lane takes tasks from the end, as threads do chunks (pool.c). What a
** task computes must not depend on its lane.
*/
#ifndef RSI_LANES_H
#define RSI_LANES_H

#include "base/base.h"

typedef void (*rsi_lane_fn)(void *arg, int64_t task, void *scratch);

typedef struct rsi_lane_job {
  _Atomic uint64_t left;     /* tasks next..end - 1, as end << 32 | next */
  rsi_lane_fn fn;
  void       *arg;
  char       *scratch;
  size_t      each;          /* bytes of a lane, a multiple of RSI_LANE_ALIGN */
} rsi_lane_job;

enum { RSI_LANE_ALIGN = 64, RSI_MOST_LANES = 16 };

static inline size_t rsi_lane_round(size_t bytes) { return (bytes + RSI_LANE_ALIGN - 1) / RSI_LANE_ALIGN * RSI_LANE_ALIGN; }

/* Lanes for `tasks` tasks on `threads` threads. */
static inline int64_t rsi_lane_count(int threads, int64_t tasks) {
  const int64_t most = threads < RSI_MOST_LANES ? threads : RSI_MOST_LANES;
  return tasks < most ? (tasks > 0 ? tasks : 1) : most;
}

static inline void rsi_lane_chunk(void *arg, int64_t lane) {
  rsi_lane_job *const job = arg;
  char *const scratch = job->scratch + (size_t)lane * job->each;
  const bool from_end = lane % 2 != 0;
  uint64_t left = atomic_load_explicit(&job->left, memory_order_relaxed);
  while ((uint32_t)left != left >> 32) {
    const uint64_t task = from_end ? (left >> 32) - 1 : (uint32_t)left, rest = from_end ? left - ((uint64_t)1 << 32) : left + 1;
    if (!atomic_compare_exchange_weak_explicit(&job->left, &left, rest, memory_order_relaxed, memory_order_relaxed)) continue;
    job->fn(job->arg, (int64_t)task, scratch);
    left = atomic_load_explicit(&job->left, memory_order_relaxed);
  }
}

/* Runs fn(arg, task, scratch of its lane) for each task; scratch holds lanes * each bytes. */
static inline void rsi_lanes_run(rsi_pool *pool, int64_t lanes, int64_t tasks, rsi_lane_fn fn, void *arg, void *scratch,
                                 size_t each) {
  rsi_lane_job job = {.fn = fn, .arg = arg, .scratch = scratch, .each = each};
  atomic_init(&job.left, (uint64_t)tasks << 32);
  rsi_pool_run(pool, lanes, rsi_lane_chunk, &job);
}

#endif
