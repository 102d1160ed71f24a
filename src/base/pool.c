/*
** The pool: a caller and its workers share the chunks of one job.
**
** `left` are the chunks that nobody has claimed, a range. A claim is a compare-and-swap that takes one off its end, and only then
** does the claimer read the job. The caller may not go on before `unfinished` is 0, which includes the claimed chunk; so the
** job that a claimer reads is the one it claimed from, however late it came. This is the invariant: a range that is not empty implies
** that the job's fields are valid, and they do not change while any claimed chunk is unfinished. A worker that slept through a
** job finds an empty range, or a chunk of the next job; either is right, so jobs need no number.
**
** The caller and every second worker claim from the beginning, the others from the end: so of job after job on the same data, a core
** gets about the same part, which still lies in its own cache (a fifth less time for the depthwise convolutions of a network).
**
** The caller claims too, and waits only for chunks that a worker has claimed. A worker without work spins for SPIN_NS after
** a job, then sleeps on its own condition. To sleep it sets `asleep`, counts itself in `sleepers`, then looks at `left` once
** more; the caller publishes `left`, then looks at `sleepers`: both in one total order, so one sees the other. The caller
** clears `asleep` of each worker that it wakes, under that worker's mutex; so nobody is woken twice, or for nothing.
**
** After fork() the child has no workers. Nothing waits for them: the child's jobs find no other claimer. Only a mutex could have
** been held by a lost thread, and only joining would wait; so waking and joining look at the process id first (they are slow
** paths, where a system call does not count) and from then on the child runs alone. To fork from inside a job is not supported.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/base.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, SPIN_NS = 20000, PAUSES = 16 };   /* longer spinning costs more beside a busy core than it saves */

typedef struct worker {
  rsi_pool       *pool;
  pthread_t       id;
  pthread_mutex_t mutex;
  pthread_cond_t  wake;
  atomic_bool     asleep;                     /* changed under the mutex */
  bool            steered;                    /* under the mutex: `home` is to be restored on waking */
#ifdef __linux__
  cpu_set_t       home;
#endif
} worker;

struct rsi_pool {
  _Alignas(64) _Atomic uint64_t left;         /* shared by all: each on a line of its own */
  _Alignas(64) _Atomic uint32_t unfinished;
  _Alignas(64) atomic_flag busy;              /* held by the caller whose job this is */
  atomic_int  sleepers;                       /* workers whose `asleep` is set */
  atomic_bool waiting;                        /* the caller sleeps on `done` */
  atomic_bool stop;

  rsi_job  job;                               /* the job: written by the caller, read after a claim */
  void    *arg;
  int64_t  chunks, grain;                     /* a claim is worth `grain` chunks, the last one perhaps fewer */
  uint32_t claims;

  int      threads;                           /* asked for, the caller's included */
  int      running;                           /* workers; written once, by the first job */
  bool     started, alone;                    /* alone: this process is a child of the one that owns the workers */
  pid_t    owner;
  pthread_mutex_t mutex;                      /* of `done` */
  pthread_cond_t  done;
  worker   workers[];                         /* threads - 1 */
};

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- claiming -------------------------------------------------------------------------------------------------------- */

/* The claims that are left: next..end - 1. */
static inline uint64_t span_of(uint32_t next, uint32_t end) { return (uint64_t)end << 32 | next; }
static inline bool is_empty(uint64_t left) { return (uint32_t)left == left >> 32; }

/* Claims and runs chunks until none is left, from the end or from the beginning; returns how many claims it got. */
static uint32_t work(rsi_pool *pool, bool from_end) {
  uint32_t got = 0;
  uint64_t left = atomic_load_explicit(&pool->left, memory_order_relaxed);
  while (!is_empty(left)) {
    const uint32_t next = (uint32_t)left, end = (uint32_t)(left >> 32), claim = from_end ? end - 1 : next;
    const uint64_t rest = from_end ? span_of(next, end - 1) : span_of(next + 1, end);
    if (!atomic_compare_exchange_weak_explicit(&pool->left, &left, rest, memory_order_acquire, memory_order_relaxed)) continue;
    const int64_t first = (int64_t)claim * pool->grain;
    const int64_t last = pool->chunks - first < pool->grain ? pool->chunks : first + pool->grain;
    for (int64_t i = first; i < last; i++) pool->job(pool->arg, i);
    got++;
    left = atomic_load_explicit(&pool->left, memory_order_relaxed);
  }
  return got;
}

/* ---- workers --------------------------------------------------------------------------------------------------------- */

/* Finishes `got` claims; wakes the caller if that was all and it sleeps. */
static void finish(rsi_pool *pool, uint32_t got) {
  if (got == 0 || atomic_fetch_sub(&pool->unfinished, got) != got || !atomic_load(&pool->waiting)) return;
  pthread_mutex_lock(&pool->mutex);
  pthread_cond_signal(&pool->done);
  pthread_mutex_unlock(&pool->mutex);
}

/* True when there is something to claim; false when SPIN_NS passed without. */
static bool spin_for_work(rsi_pool *pool) {
  const int64_t end = now_ns() + SPIN_NS;
  do {
    for (int i = 0; i < PAUSES; i++) {
      if (!is_empty(atomic_load_explicit(&pool->left, memory_order_relaxed))) return true;
      pause_cpu();
    }
  } while (now_ns() < end && !atomic_load_explicit(&pool->stop, memory_order_relaxed));
  return false;
}

#ifdef __linux__
/*
** Keeps a worker that is about to be woken off the caller's core, until it runs. Linux likes to wake a thread where its waker
** is, the more so in a virtual machine, whose halted cores do not pass for idle. There it would wait for the caller to be
** preempted, milliseconds later, while another core has nothing to do. Under the worker's mutex.
*/
static void steer(worker *w) {
  cpu_set_t away;
  const int here = sched_getcpu();
  if (here < 0 || here >= CPU_SETSIZE || pthread_getaffinity_np(w->id, sizeof w->home, &w->home) != 0) return;
  if (!CPU_ISSET((size_t)here, &w->home) || CPU_COUNT(&w->home) < 2) return;
  away = w->home;
  CPU_CLR((size_t)here, &away);
  w->steered = pthread_setaffinity_np(w->id, sizeof away, &away) == 0;
}

static void unsteer(worker *w) {
  if (w->steered) pthread_setaffinity_np(w->id, sizeof w->home, &w->home);
  w->steered = false;
}
#else
static void steer(worker *w) { (void)w; }
static void unsteer(worker *w) { (void)w; }
#endif

static void sleep_for_work(worker *w) {
  rsi_pool *const pool = w->pool;
  pthread_mutex_lock(&w->mutex);
  atomic_store(&w->asleep, true);
  atomic_fetch_add(&pool->sleepers, 1);
  if (!is_empty(atomic_load(&pool->left)) || atomic_load(&pool->stop)) {
    atomic_fetch_sub(&pool->sleepers, 1);
    atomic_store(&w->asleep, false);
  }
  while (atomic_load(&w->asleep)) pthread_cond_wait(&w->wake, &w->mutex);
  unsteer(w);
  pthread_mutex_unlock(&w->mutex);
}

/* True if the worker slept. */
static bool wake(worker *w, bool elsewhere) {
  pthread_mutex_lock(&w->mutex);
  const bool slept = atomic_load(&w->asleep);
  if (slept) {
    atomic_fetch_sub(&w->pool->sleepers, 1);
    atomic_store(&w->asleep, false);
    if (elsewhere) steer(w);
  }
  pthread_mutex_unlock(&w->mutex);
  if (slept) pthread_cond_signal(&w->wake);
  return slept;
}

static void *serve(void *arg) {
  worker *const w = arg;
  rsi_pool *const pool = w->pool;
  while (!atomic_load_explicit(&pool->stop, memory_order_relaxed)) {
    finish(pool, work(pool, (w - pool->workers) % 2 == 0));
    if (!spin_for_work(pool)) sleep_for_work(w);
  }
  return NULL;
}

static bool start_worker(worker *w, rsi_pool *pool) {
  w->pool = pool;
  if (pthread_mutex_init(&w->mutex, NULL) != 0) return false;
  if (pthread_cond_init(&w->wake, NULL) == 0) {
    if (pthread_create(&w->id, NULL, serve, w) == 0) return true;
    pthread_cond_destroy(&w->wake);
  }
  pthread_mutex_destroy(&w->mutex);
  return false;
}

/* Starts the workers, once. Signals stay with the host's threads. Whoever cannot be started is done without. */
static void start(rsi_pool *pool) {
  sigset_t all, former;
  pool->started = true;
  pool->owner = getpid();
  sigfillset(&all);
  if (pthread_sigmask(SIG_SETMASK, &all, &former) != 0) return;
  while (pool->running < pool->threads - 1 && start_worker(&pool->workers[pool->running], pool)) pool->running++;
  pthread_sigmask(SIG_SETMASK, &former, NULL);
}

/* ---- the caller ------------------------------------------------------------------------------------------------------ */

/* Wakes as many sleepers as there may be chunks for. */
static void wake_sleepers(rsi_pool *pool, uint32_t most) {
  if (getpid() != pool->owner) {
    pool->alone = true;
    return;
  }
  for (int i = 0; i < pool->running && most > 0; i++)
    if (atomic_load(&pool->workers[i].asleep) && wake(&pool->workers[i], true)) most--;
}

/* Waits for the chunks that workers have claimed: a short while on the spot, then asleep. */
static void wait_for_claimed(rsi_pool *pool) {
  if (atomic_load_explicit(&pool->unfinished, memory_order_acquire) == 0) return;
  const int64_t end = now_ns() + SPIN_NS;
  do {
    for (int i = 0; i < PAUSES; i++) {
      if (atomic_load_explicit(&pool->unfinished, memory_order_acquire) == 0) return;
      pause_cpu();
    }
  } while (now_ns() < end);
  pthread_mutex_lock(&pool->mutex);
  atomic_store(&pool->waiting, true);
  while (atomic_load(&pool->unfinished) > 0) pthread_cond_wait(&pool->done, &pool->mutex);
  atomic_store(&pool->waiting, false);
  pthread_mutex_unlock(&pool->mutex);
}

static void run_alone(int64_t chunks, rsi_job job, void *arg) {
  for (int64_t i = 0; i < chunks; i++) job(arg, i);
}

/* The caller holds `busy`. */
static void run_shared(rsi_pool *pool, int64_t chunks, rsi_job job, void *arg, bool waking) {
  const int64_t grain = chunks / ((int64_t)1 << 31) + 1;   /* so that the number of claims fits in 32 bits */
  const uint32_t claims = (uint32_t)((chunks - 1) / grain + 1);
  pool->job = job, pool->arg = arg;
  pool->chunks = chunks, pool->grain = grain, pool->claims = claims;
  atomic_store_explicit(&pool->unfinished, claims, memory_order_relaxed);
  atomic_store(&pool->left, span_of(0, claims));
  if (waking && atomic_load(&pool->sleepers) > 0) wake_sleepers(pool, claims - 1);
  const uint32_t got = work(pool, false);
  atomic_fetch_sub_explicit(&pool->unfinished, got, memory_order_acquire);
  wait_for_claimed(pool);
}

static void share(rsi_pool *pool, int64_t chunks, rsi_job job, void *arg, bool waking) {
  if (chunks < 2 || pool == NULL || pool->threads < 2
      || atomic_flag_test_and_set_explicit(&pool->busy, memory_order_acquire)) {
    run_alone(chunks, job, arg);
    return;
  }
  if (rsi_unlikely(!pool->started) && waking) start(pool);
  const bool nobody = !waking && atomic_load_explicit(&pool->sleepers, memory_order_relaxed) >= pool->running;
  if (pool->running == 0 || pool->alone || nobody) run_alone(chunks, job, arg);
  else run_shared(pool, chunks, job, arg, waking);
  atomic_flag_clear_explicit(&pool->busy, memory_order_release);
}

void rsi_pool_run(rsi_pool *pool, int64_t chunks, rsi_job job, void *arg) { share(pool, chunks, job, arg, true); }

void rsi_pool_offer(rsi_pool *pool, int64_t chunks, rsi_job job, void *arg) { share(pool, chunks, job, arg, false); }

/* ---- the pool itself ------------------------------------------------------------------------------------------------- */

rs_status rsi_pool_create(int threads, rsi_pool **out) {
  *out = NULL;
  RSI_CHECK(threads >= 1 && threads <= MAX_THREADS, RS_ERR_ARG, "the number of threads must be from 1 to %d, got %d",
            (int)MAX_THREADS, threads);
  const size_t size = (sizeof(rsi_pool) + (size_t)(threads - 1) * sizeof(worker) + 63) / 64 * 64;
  rsi_pool *const pool = aligned_alloc(64, size);
  RSI_CHECK(pool != NULL, RS_ERR_NOMEM, "out of memory: no room for a pool of %d threads", threads);
  memset(pool, 0, size);
  atomic_flag_clear(&pool->busy);
  pool->threads = threads;
  const bool mutex = pthread_mutex_init(&pool->mutex, NULL) == 0;
  if (!mutex || pthread_cond_init(&pool->done, NULL) != 0) {
    if (mutex) pthread_mutex_destroy(&pool->mutex);
    free(pool);
    return rsi_fail(RS_ERR_NOMEM, "out of memory: the system has no mutex for a pool of threads");
  }
  *out = pool;
  return RS_OK;
}

void rsi_pool_destroy(rsi_pool *pool) {
  if (pool == NULL) return;
  if (pool->running == 0 || getpid() == pool->owner) {
    atomic_store(&pool->stop, true);
    for (int i = 0; i < pool->running; i++) {
      worker *const w = &pool->workers[i];
      wake(w, false);
      pthread_join(w->id, NULL);
      pthread_cond_destroy(&w->wake);
      pthread_mutex_destroy(&w->mutex);
    }
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->mutex);
  }
  free(pool);
}

int rsi_pool_threads(const rsi_pool *pool) { return pool != NULL ? pool->threads : 1; }
