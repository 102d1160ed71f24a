/*
** Tasks that need memory of their own while they run. Each lane has a piece of the scratch memory and takes tasks, in order,
** until none is left; so the memory grows with the threads and not with the tasks, and a thread that works alone uses one
** piece again and again while it is in its cache. What a task computes must not depend on its lane.
*/
#ifndef RSI_LANES_H
#define RSI_LANES_H

#include "base/base.h"

typedef void (*rsi_lane_fn)(void *arg, int64_t task, void *scratch);

typedef struct rsi_lane_job {
  _Atomic int64_t next;
  int64_t     tasks;
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
  int64_t task;
  while ((task = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed)) < job->tasks) job->fn(job->arg, task, scratch);
}

/* Runs fn(arg, task, scratch of its lane) for each task; scratch holds lanes * each bytes. */
static inline void rsi_lanes_run(rsi_pool *pool, int64_t lanes, int64_t tasks, rsi_lane_fn fn, void *arg, void *scratch,
                                 size_t each) {
  rsi_lane_job job = {.tasks = tasks, .fn = fn, .arg = arg, .scratch = scratch, .each = each};
  atomic_init(&job.next, 0);
  rsi_pool_run(pool, lanes, rsi_lane_chunk, &job);
}

#endif
