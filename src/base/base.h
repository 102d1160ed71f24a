/*
** What every layer may use: failure, memory, threads, cpu features, random numbers.
*/
#ifndef RSI_BASE_H
#define RSI_BASE_H

#include "resin.h"
#include <stdatomic.h>

#define rsi_likely(x)   __builtin_expect(!!(x), 1)
#define rsi_unlikely(x) __builtin_expect(!!(x), 0)
#define rsi_printf(f, a) __attribute__((format(printf, f, a)))

/* ---- failure: the only place that makes a message; returns `status` so that it can be returned at once --------------- */

rs_status rsi_fail(rs_status status, const char *format, ...) rsi_printf(2, 3) __attribute__((cold));
/* Puts "prefix: " before the text of the last failure (an op names itself this way). */
rs_status rsi_fail_prefix(rs_status status, const char *prefix) __attribute__((cold));

#define RSI_TRY(expr)                                                                                                       \
  do {                                                                                                                      \
    const rs_status rsi_status_ = (expr);                                                                                   \
    if (rsi_unlikely(rsi_status_ != RS_OK)) return rsi_status_;                                                             \
  } while (0)
#define RSI_CHECK(cond, status, ...)                                                                                        \
  do {                                                                                                                      \
    if (rsi_unlikely(!(cond))) return rsi_fail(status, __VA_ARGS__);                                                        \
  } while (0)

/* ---- reference counts -------------------------------------------------------------------------------------------------- */

/*
** While the process has one thread a locked instruction protects nothing, and a small op would spend a third of its time in
** them. The C library knows; where it does not say, the counts are always atomic.
*/
#if defined(__has_include)
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#define rsi_alone() (__libc_single_threaded != 0)
#endif
#endif
#ifndef rsi_alone
#define rsi_alone() false
#endif

static inline void rsi_ref_take(_Atomic int32_t *refs) {
  if (rsi_alone()) atomic_store_explicit(refs, atomic_load_explicit(refs, memory_order_relaxed) + 1, memory_order_relaxed);
  else atomic_fetch_add_explicit(refs, 1, memory_order_relaxed);
}

/* Gives a reference back; true when it was the last. */
static inline bool rsi_ref_drop(_Atomic int32_t *refs) {
  const int32_t now = atomic_load_explicit(refs, memory_order_acquire);
  if (now == 1) return true;
  if (!rsi_alone()) return atomic_fetch_sub_explicit(refs, 1, memory_order_acq_rel) == 1;
  atomic_store_explicit(refs, now - 1, memory_order_relaxed);
  return false;
}

/* ---- memory ---------------------------------------------------------------------------------------------------------- */

/*
** A heap serves one context and everything made through it, from any thread. Small blocks come from size-class slabs, large
** ones from cached bins; both are reused most recently freed first. It outlives its context until its last block is freed.
** Every block is aligned to 64 bytes (16 for blocks under 64 bytes). The caller gives the size back when it frees.
*/
typedef struct rsi_heap rsi_heap;

rs_status       rsi_heap_create(const rs_allocator *hooks, double budget, rsi_heap **out);
void            rsi_heap_close(rsi_heap *heap);                       /* the context lets go of it */
rs_status       rsi_alloc(rsi_heap *heap, size_t size, void **out);   /* RS_ERR_NOMEM with a text that tells the size and the budget */
void            rsi_free(rsi_heap *heap, void *ptr, size_t size);     /* NULL is allowed */
void            rsi_heap_trim(rsi_heap *heap);
const rs_stats *rsi_heap_stats(const rsi_heap *heap);
void            rsi_heap_reset_peak(rsi_heap *heap);
void            rsi_heap_set_budget(rsi_heap *heap, double bytes);
void            rsi_heap_fail_at(rsi_heap *heap, double countdown, int sticky);

/* ---- threads --------------------------------------------------------------------------------------------------------- */

/*
** A pool runs a job of n chunks on the calling thread and its workers; chunks are claimed by an atomic counter, so a worker
** that the system has taken away delays nobody, and what a chunk computes does not depend on who runs it. Workers start at
** the first job, sleep between jobs, and never run Lua. One job at a time: a second caller runs its own job alone.
*/
typedef struct rsi_pool rsi_pool;
typedef void (*rsi_job)(void *arg, int64_t chunk);

rs_status rsi_pool_create(int threads, rsi_pool **out);
void      rsi_pool_destroy(rsi_pool *pool);
int       rsi_pool_threads(const rsi_pool *pool);
void      rsi_pool_run(rsi_pool *pool, int64_t chunks, rsi_job job, void *arg);  /* pool NULL: runs alone */
void      rsi_pool_offer(rsi_pool *pool, int64_t chunks, rsi_job job, void *arg);   /* wakes nobody: for small jobs */

/* ---- cpu ------------------------------------------------------------------------------------------------------------- */

typedef enum rsi_isa_level { RSI_ISA_BASELINE = 0, RSI_ISA_AVX2, RSI_ISA_AVX512, RSI_ISA_LEVELS } rsi_isa_level;
rsi_isa_level rsi_cpu_best(void);              /* what this machine and its system support */
const char   *rsi_isa_level_name(rsi_isa_level level);
bool          rsi_cpu_amx(void);               /* bf16 products by tiles; asks the system for them at the first call */
bool          rsi_cpu_split(void);             /* and f32 products by them: an f32 is split by an instruction of AVX512-BF16 */

/* ---- random numbers: Philox 4x32-10, a pure function of (key, counter) ------------------------------------------------ */

typedef struct rsi_rng { uint64_t key, counter; } rsi_rng;   /* counter: the next unused block of four words */

void     rsi_philox(uint64_t key, uint64_t counter, uint32_t out[4]);
void     rsi_rng_seed(rsi_rng *rng, uint64_t seed);
/* Takes `blocks` blocks of four words and returns the number of the first. */
static inline uint64_t rsi_rng_take(rsi_rng *rng, uint64_t blocks) {
  const uint64_t first = rng->counter;
  rng->counter += blocks;
  return first;
}

#endif
