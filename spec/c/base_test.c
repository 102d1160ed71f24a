/* The base layer: failure texts, the heap, the pool, cpu features, random numbers. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/base.h"
#include "test.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#endif

#define KB 1024.0
#define MB (1024.0 * 1024.0)

static void sleep_us(long us) {
  const struct timespec t = {0, us * 1000};
  nanosleep(&t, NULL);
}

/* ---- status ---------------------------------------------------------------------------------------------------------- */

static void status_text(void) {
  ENSURE_STATUS(rsi_fail(RS_ERR_SHAPE, "x is %d wide", 3), RS_ERR_SHAPE);
  ENSURE_TEXT(rs_last_error(), "x is 3 wide");
  ENSURE_STATUS(rsi_fail_prefix(RS_ERR_SHAPE, "matmul"), RS_ERR_SHAPE);
  ENSURE_TEXT(rs_last_error(), "matmul: x is 3 wide");
  rsi_fail(RS_ERR_ARG, "again: %s", rs_last_error());   /* an argument that is the old text */
  ENSURE_TEXT(rs_last_error(), "again: matmul: x is 3 wide");
}

static void status_truncation(void) {
  char text[5000];
  memset(text, 'a', sizeof text - 1);
  text[sizeof text - 1] = 0;
  rsi_fail(RS_ERR_ARG, "%s", text);
  const size_t length = strlen(rs_last_error());
  ENSURE(length >= 512 && length < 2000);
  ENSURE_TEXT(rs_last_error() + length - 3, "...");
  rsi_fail_prefix(RS_ERR_ARG, "conv2d");
  ENSURE(strncmp(rs_last_error(), "conv2d: aaa", 11) == 0);
  ENSURE(strlen(rs_last_error()) == length);
  for (size_t shift = 0; shift < 3; shift++) {   /* a cut never leaves part of a character of three bytes */
    for (size_t i = 0; i < sizeof text - 1; i++) text[i] = "\xE2\x86\x92"[(i + 3 - shift) % 3];
    memset(text, 'a', shift);
    rsi_fail(RS_ERR_ARG, "%s", text);
    const size_t cut = strlen(rs_last_error()) - 3;
    ENSURE((cut - shift) % 3 == 0);
  }
}

static void *other_thread_fails(void *arg) {
  (void)arg;
  rsi_fail(RS_ERR_IO, "other");
  return NULL;
}

static void status_per_thread(void) {
  pthread_t id;
  rsi_fail(RS_ERR_IO, "mine");
  ENSURE(pthread_create(&id, NULL, other_thread_fails, NULL) == 0);
  pthread_join(id, NULL);
  ENSURE_TEXT(rs_last_error(), "mine");
}

static void status_names(void) {
  ENSURE_TEXT(rs_status_name(RS_OK), "ok");
  ENSURE_TEXT(rs_status_name(RS_ERR_UNSUPPORTED), "unsupported");
  ENSURE_TEXT(rs_status_name((rs_status)99), "unknown");
  for (int a = 0; a <= RS_ERR_UNSUPPORTED; a++)
    for (int b = 0; b < a; b++) ENSURE(strcmp(rs_status_name((rs_status)a), rs_status_name((rs_status)b)) != 0);
  ENSURE_NUM(rs_abi_version(), RS_ABI_VERSION);
  ENSURE(rs_version()[0] >= '0' && rs_version()[0] <= '9');
}

/* ---- heap ------------------------------------------------------------------------------------------------------------ */

static void heap_reuse(void) {
  rsi_heap *heap;
  ENSURE_OK(rsi_heap_create(NULL, 0, &heap));
  const rs_stats *s = rsi_heap_stats(heap);
  const size_t sizes[] = {0, 1, 16, 100, 1000, 32768, 32769, 100000, 3000000, 20000000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    void *a, *b;
    ENSURE_OK(rsi_alloc(heap, sizes[i], &a));
    memset(a, 1, sizes[i]);
    rsi_free(heap, a, sizes[i]);
    const double calls = s->system_calls;
    ENSURE_OK(rsi_alloc(heap, sizes[i], &b));
    ENSURE(a == b);
    ENSURE_NUM(s->system_calls, calls);
    rsi_free(heap, b, sizes[i]);
  }
  ENSURE_NUM(s->live_bytes, 0);
  ENSURE_NUM(s->live_blocks, 0);
  ENSURE_NUM(s->allocations, 20);
  ENSURE(s->cached_bytes >= 23 * MB);
  rsi_heap_trim(heap);
  ENSURE_NUM(s->cached_bytes, 0);
  rsi_free(heap, NULL, 10);
  rsi_heap_close(heap);
  rsi_heap_close(NULL);
}

/* Every size near a class boundary: aligned, apart from the others, back to zero at the end. */
static void heap_classes(void) {
  enum { MANY = 600 };
  rsi_heap *heap;
  void *blocks[MANY];
  size_t sizes[MANY];
  int n = 0;
  ENSURE_OK(rsi_heap_create(NULL, 0, &heap));
  const rs_stats *s = rsi_heap_stats(heap);
  for (size_t base = 16; base <= (8u << 20); base *= 2)
    for (size_t quarter = 4; quarter < 8; quarter++)
      for (int delta = -1; delta <= 1; delta++) sizes[n++] = base * quarter / 4 + (size_t)delta;
  ENSURE(n <= MANY);
  for (int i = 0; i < n; i++) {
    const double live = s->live_bytes;
    ENSURE_OK(rsi_alloc(heap, sizes[i], &blocks[i]));
    ENSURE((uintptr_t)blocks[i] % (sizes[i] >= 64 ? 64 : 16) == 0);
    const double got = s->live_bytes - live, asked = (double)sizes[i];
    ENSURE(got >= asked && (got <= asked * 1.26 || got <= asked + 64));
    memset(blocks[i], i, sizes[i]);
  }
  for (int i = 0; i < n; i++) {
    const unsigned char *bytes = blocks[i];
    ENSURE(bytes[0] == (unsigned char)i && bytes[sizes[i] - 1] == (unsigned char)i);
    const double before = s->live_bytes;
    rsi_free(heap, blocks[i], sizes[i]);
    ENSURE(before - s->live_bytes >= (double)sizes[i]);
  }
  ENSURE_NUM(s->live_bytes, 0);
  rsi_heap_close(heap);
}

static void heap_colours(void) {
  rsi_heap *heap;
  void *p[4];
  ENSURE_OK(rsi_heap_create(NULL, 0, &heap));
  for (int i = 0; i < 4; i++) ENSURE_OK(rsi_alloc(heap, 4u << 20, &p[i]));
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < i; j++) ENSURE((uintptr_t)p[i] % 4096 != (uintptr_t)p[j] % 4096);
  for (int i = 0; i < 4; i++) {
    ENSURE((uintptr_t)p[i] % (2u << 20) <= 1024);   /* the chunk begins on a huge page */
    rsi_free(heap, p[i], 4u << 20);
  }
  rsi_heap_close(heap);
}

static void heap_trim_keeps_live(void) {
  enum { N = 3000 };
  static unsigned char *p[N];
  rsi_heap *heap;
  ENSURE_OK(rsi_heap_create(NULL, 0, &heap));
  const rs_stats *s = rsi_heap_stats(heap);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < N; i++) {
      ENSURE_OK(rsi_alloc(heap, 200, (void **)&p[i]));
      memset(p[i], i, 200);
    }
    for (int i = 0; i < N; i++)
      if (i % 1000 != 7) rsi_free(heap, p[i], 200);
    const double cached = s->cached_bytes;
    rsi_heap_trim(heap);
    ENSURE(s->cached_bytes < cached && s->cached_bytes <= 3 * 64 * KB);
    for (int i = 7; i < N; i += 1000) {
      ENSURE(p[i][0] == (unsigned char)i && p[i][199] == (unsigned char)i);
      if (round == 1) rsi_heap_trim(heap);
      rsi_free(heap, p[i], 200);
    }
  }
  rsi_heap_trim(heap);
  ENSURE_NUM(s->cached_bytes, 0);
  rsi_heap_close(heap);
}

static void heap_budget(void) {
  rsi_heap *heap;
  void *p[8], *q;
  ENSURE_OK(rsi_heap_create(NULL, 64 * MB, &heap));
  const rs_stats *s = rsi_heap_stats(heap);
  for (int i = 0; i < 3; i++) ENSURE_OK(rsi_alloc(heap, 20u << 20, &p[i]));
  ENSURE_NUM(s->live_bytes, 60 * MB);
  ENSURE_STATUS(rsi_alloc(heap, 8u << 20, &q), RS_ERR_NOMEM);
  ENSURE(q == NULL);
  ENSURE_TEXT(rs_last_error(), "out of memory: 8.0 MB asked, 60.0 MB in use, budget 64.0 MB; free tensors or raise the budget");
  ENSURE_OK(rsi_alloc(heap, 4u << 20, &p[3]));
  ENSURE_STATUS(rsi_alloc(heap, 100, &q), RS_ERR_NOMEM);
  ENSURE_TEXT(rs_last_error(), "out of memory: 100 B asked, 64.0 MB in use, budget 64.0 MB; free tensors or raise the budget");
  ENSURE_NUM(s->peak_bytes, 64 * MB);
  rsi_free(heap, p[0], 20u << 20);
  ENSURE_NUM(s->cached_bytes, 20 * MB);
  ENSURE_OK(rsi_alloc(heap, 16u << 20, &p[0]));   /* another class: the cached block has to go first */
  ENSURE_NUM(s->cached_bytes, 0);
  rsi_heap_set_budget(heap, 10 * MB);
  ENSURE_STATUS(rsi_alloc(heap, 16, &q), RS_ERR_NOMEM);
  rsi_heap_set_budget(heap, 0);
  ENSURE_OK(rsi_alloc(heap, 40u << 20, &p[4]));
  rsi_free(heap, p[4], 40u << 20);
  rsi_free(heap, p[0], 16u << 20);
  for (int i = 1; i < 3; i++) rsi_free(heap, p[i], 20u << 20);
  rsi_free(heap, p[3], 4u << 20);
  rsi_heap_reset_peak(heap);
  ENSURE_NUM(s->peak_bytes, 0);
  rsi_heap_close(heap);
}

static void heap_absurd_sizes(void) {
  rsi_heap *heap;
  void *q;
  ENSURE_OK(rsi_heap_create(NULL, 0, &heap));
  const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2, SIZE_MAX / 8, SIZE_MAX / 8 + 1, SIZE_MAX / 64};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    ENSURE_STATUS(rsi_alloc(heap, sizes[i], &q), RS_ERR_NOMEM);
    ENSURE_HAS(rs_last_error(), "the system refused more");
  }
  rsi_heap_set_budget(heap, MB);
  ENSURE_STATUS(rsi_alloc(heap, SIZE_MAX, &q), RS_ERR_NOMEM);
  ENSURE_HAS(rs_last_error(), "budget 1.0 MB");
  rsi_heap_close(heap);
}

static void heap_injection(void) {
  rsi_heap *heap;
  void *p[4], *q;
  ENSURE_OK(rsi_heap_create(NULL, 0, &heap));
  rsi_heap_fail_at(heap, 3, 0);
  for (int i = 0; i < 2; i++) ENSURE_OK(rsi_alloc(heap, 64, &p[i]));
  ENSURE_STATUS(rsi_alloc(heap, 64, &q), RS_ERR_NOMEM);
  ENSURE_HAS(rs_last_error(), "64 B asked; rs_fail_allocation");
  for (int i = 2; i < 4; i++) ENSURE_OK(rsi_alloc(heap, 64, &p[i]));
  rsi_heap_fail_at(heap, 1, 1);
  ENSURE_STATUS(rsi_alloc(heap, 64, &q), RS_ERR_NOMEM);
  ENSURE_STATUS(rsi_alloc(heap, 1u << 20, &q), RS_ERR_NOMEM);
  rsi_free(heap, p[3], 64);
  ENSURE_STATUS(rsi_alloc(heap, 64, &q), RS_ERR_NOMEM);
  rsi_heap_fail_at(heap, 0, 0);
  ENSURE_OK(rsi_alloc(heap, 64, &p[3]));
  for (int i = 0; i < 4; i++) rsi_free(heap, p[i], 64);
  ENSURE_NUM(rsi_heap_stats(heap)->live_bytes, 0);
  ENSURE_NUM(rsi_heap_stats(heap)->allocations, 5);
  rsi_heap_close(heap);
}

/* A host that counts what it gives, refuses past `limit`, and checks what comes back. */
typedef struct host { size_t bytes, limit; int blocks, calls, refused, wrong, askew; } host;

typedef struct host_note { void *base; size_t size; } host_note;   /* lies before each block */

static void *host_alloc(void *user, size_t size, size_t align) {
  host *const h = user;
  h->calls++;
  if (h->bytes + size > h->limit) return h->refused++, NULL;
  const size_t head = align > 64 ? align : 64;
  char *const base = aligned_alloc(head, (size + head + 8 + head - 1) / head * head);
  if (base == NULL) return NULL;
  const host_note note = {base, size};
  memcpy(base + head - sizeof note, &note, sizeof note);
  h->bytes += size;
  h->blocks++;
  return base + head + h->askew;
}

static void host_free(void *user, void *ptr, size_t size) {
  host *const h = user;
  host_note note;
  memcpy(&note, (char *)ptr - h->askew - sizeof note, sizeof note);
  h->wrong += note.size != size;
  h->bytes -= note.size;
  h->blocks--;
  free(note.base);
}

static void heap_hooks(void) {
  enum { N = 200 };
  host h = {.limit = SIZE_MAX / 2};
  const rs_allocator hooks = {host_alloc, host_free, &h};
  rsi_heap *heap;
  void *p[N];
  ENSURE_OK(rsi_heap_create(&hooks, 0, &heap));
  ENSURE_NUM(h.blocks, 1);
  const size_t sizes[] = {8, 100, 5000, 30000, 40000, 2500000};
  for (int i = 0; i < N; i++) {
    ENSURE_OK(rsi_alloc(heap, sizes[i % 6], &p[i]));
    memset(p[i], i, sizes[i % 6]);
  }
  ENSURE_NUM(rsi_heap_stats(heap)->system_calls, h.calls);
  for (int i = 0; i < N; i += 2) rsi_free(heap, p[i], sizes[i % 6]);
  rsi_heap_trim(heap);
  rsi_heap_close(heap);   /* the heap outlives its context */
  ENSURE(h.blocks > 1);
  for (int i = 1; i < N; i += 2) rsi_free(heap, p[i], sizes[i % 6]);
  ENSURE_NUM(h.blocks, 0);
  ENSURE_NUM(h.bytes, 0);
  ENSURE_NUM(h.wrong, 0);
}

static void heap_hooks_refuse(void) {
  host h = {.limit = 10};
  rs_allocator hooks = {host_alloc, host_free, &h};
  rsi_heap *heap;
  void *p, *q;
  ENSURE_STATUS(rsi_heap_create(&hooks, 0, &heap), RS_ERR_NOMEM);
  ENSURE(heap == NULL);
  h.limit = 6u << 20;
  ENSURE_OK(rsi_heap_create(&hooks, 0, &heap));
  ENSURE_OK(rsi_alloc(heap, 4u << 20, &p));
  ENSURE_STATUS(rsi_alloc(heap, 3u << 20, &q), RS_ERR_NOMEM);
  ENSURE_HAS(rs_last_error(), "3.0 MB asked, 4.0 MB in use; the host's allocator refused more");
  rsi_free(heap, p, 4u << 20);
  const int refused = h.refused;
  ENSURE_OK(rsi_alloc(heap, 3u << 20, &q));   /* refused once, then the cached block is given back */
  ENSURE_NUM(h.refused, refused + 1);
  rsi_free(heap, q, 3u << 20);
  rsi_heap_trim(heap);
  h.askew = 8;                                /* a host that breaks its promise is refused, not believed */
  ENSURE_STATUS(rsi_alloc(heap, 100, &q), RS_ERR_NOMEM);
  h.askew = 0;
  rsi_heap_close(heap);
  ENSURE_NUM(h.blocks, 0);
  ENSURE_NUM(h.bytes, 0);
  ENSURE_NUM(h.wrong, 0);
  hooks.free = NULL;
  ENSURE_STATUS(rsi_heap_create(&hooks, 0, &heap), RS_ERR_ARG);
}

/* Two threads pass blocks to each other through a mailbox; what one allocates the other frees. */
enum { TRADES = 20000, BOXES = 16 };
typedef struct exchange { rsi_heap *heap; _Atomic(void *) box[BOXES]; atomic_int failures; } exchange;

static size_t size_for(unsigned box) { return (size_t)1 << (4 + box); }   /* 16 B to 512 KB: a box's size tells the block's */

static void *trade(void *arg) {
  exchange *const x = arg;
  for (unsigned i = 0; i < TRADES; i++) {
    const unsigned box = (i * 7 + i / 16) % BOXES;
    const size_t size = size_for(box);
    unsigned char *mine = NULL, *theirs;
    if (rsi_alloc(x->heap, size, (void **)&mine) != RS_OK) {
      atomic_fetch_add(&x->failures, 1);
      continue;
    }
    mine[0] = mine[size - 1] = (unsigned char)box;
    theirs = atomic_exchange(&x->box[box], (void *)mine);
    if (theirs != NULL && (theirs[0] != box || theirs[size - 1] != box)) atomic_fetch_add(&x->failures, 1);
    rsi_free(x->heap, theirs, size);
    if (i % 4000 == 0) rsi_heap_trim(x->heap);
  }
  return NULL;
}

static void heap_threads(void) {
  exchange x = {0};
  pthread_t id[3];
  ENSURE_OK(rsi_heap_create(NULL, 0, &x.heap));
  for (int i = 0; i < 3; i++) ENSURE(pthread_create(&id[i], NULL, trade, &x) == 0);
  trade(&x);
  for (int i = 0; i < 3; i++) pthread_join(id[i], NULL);
  for (unsigned i = 0; i < BOXES; i++) rsi_free(x.heap, atomic_load(&x.box[i]), size_for(i));
  ENSURE_NUM(x.failures, 0);
  ENSURE_NUM(rsi_heap_stats(x.heap)->live_bytes, 0);
  ENSURE_NUM(rsi_heap_stats(x.heap)->live_blocks, 0);
  ENSURE_NUM(rsi_heap_stats(x.heap)->allocations, 4 * TRADES);
  rsi_heap_trim(x.heap);
  ENSURE_NUM(rsi_heap_stats(x.heap)->cached_bytes, 0);
  rsi_heap_close(x.heap);
}

typedef struct late_free { rsi_heap *heap; void *block; } late_free;

static void *free_last(void *arg) {
  late_free *const l = arg;
  sleep_us(2000);
  rsi_free(l->heap, l->block, 1000);
  return NULL;
}

static void heap_closed_by_last_block(void) {
  host h = {.limit = SIZE_MAX / 2};
  const rs_allocator hooks = {host_alloc, host_free, &h};
  late_free l;
  pthread_t id;
  ENSURE_OK(rsi_heap_create(&hooks, 0, &l.heap));
  ENSURE_OK(rsi_alloc(l.heap, 1000, &l.block));
  ENSURE(pthread_create(&id, NULL, free_last, &l) == 0);
  rsi_heap_close(l.heap);
  pthread_join(id, NULL);
  ENSURE_NUM(h.blocks, 0);
}

static void heap_poisons(void) {
#ifdef WITH_ASAN
  rsi_heap *heap;
  char *p;
  ENSURE_OK(rsi_heap_create(NULL, 0, &heap));
  const size_t sizes[] = {4, 100, 40000, 3000000};
  for (size_t i = 0; i < 4; i++) {
    ENSURE_OK(rsi_alloc(heap, sizes[i], (void **)&p));
    ENSURE(!__asan_region_is_poisoned(p, sizes[i]));
    ENSURE(__asan_address_is_poisoned(p + sizes[i]));
    rsi_free(heap, p, sizes[i]);
    ENSURE(__asan_address_is_poisoned(p) && __asan_address_is_poisoned(p + sizes[i] - 1));
  }
  rsi_heap_close(heap);
#endif
}

/* ---- pool ------------------------------------------------------------------------------------------------------------ */

enum { CHUNKS = 1000 };
typedef struct sum_job { rsi_pool *pool; atomic_int runs[CHUNKS]; int64_t result[CHUNKS]; long pause; } sum_job;

static void square_chunk(void *arg, int64_t i) {
  sum_job *const j = arg;
  if (j->pause) sleep_us(j->pause);
  atomic_fetch_add_explicit(&j->runs[i], 1, memory_order_relaxed);
  j->result[i] = i * i;   /* not atomic: the caller may read it only because the job is over */
}

/* Each of the first n chunks ran once, no other did. Resets. */
static bool exact(sum_job *j, int n) {
  bool good = true;
  for (int i = 0; i < CHUNKS; i++) {
    good = good && atomic_exchange_explicit(&j->runs[i], 0, memory_order_relaxed) == (i < n);
    if (i < n) good = good && j->result[i] == (int64_t)i * i;
    j->result[i] = -1;
  }
  return good;
}

static void pool_results(void) {
  static sum_job j;
  for (int threads = 1; threads <= 5; threads++) {
    rsi_pool *pool;
    ENSURE_OK(rsi_pool_create(threads, &pool));
    ENSURE_NUM(rsi_pool_threads(pool), threads);
    for (int n = 0; n < 40; n++) {
      rsi_pool_run(pool, n, square_chunk, &j);
      ENSURE(exact(&j, n));
    }
    rsi_pool_run(pool, CHUNKS, square_chunk, &j);
    ENSURE(exact(&j, CHUNKS));
    rsi_pool_destroy(pool);
  }
  rsi_pool_run(NULL, 10, square_chunk, &j);
  ENSURE(exact(&j, 10));
  rsi_pool_run(NULL, -1, square_chunk, &j);
  ENSURE(exact(&j, 0));
  ENSURE_NUM(rsi_pool_threads(NULL), 1);
  rsi_pool_destroy(NULL);
}

static void pool_arguments(void) {
  rsi_pool *pool;
  ENSURE_STATUS(rsi_pool_create(0, &pool), RS_ERR_ARG);
  ENSURE_HAS(rs_last_error(), "got 0");
  ENSURE_STATUS(rsi_pool_create(1 << 20, &pool), RS_ERR_ARG);
  ENSURE(pool == NULL);
  ENSURE_OK(rsi_pool_create(8, &pool));   /* never used: starts nothing */
  rsi_pool_destroy(pool);
}

/* Short jobs of changing length, back to back: workers keep arriving when a job is over. Then with gaps, so that they sleep. */
static void pool_late_workers(void) {
  static sum_job j;
  rsi_pool *pool;
  ENSURE_OK(rsi_pool_create(4, &pool));
  for (int k = 0; k < 5000; k++) {
    const int n = 2 + k % 7;
    rsi_pool_run(pool, n, square_chunk, &j);
    for (int i = 0; i < 10; i++) {
      ENSURE(atomic_exchange_explicit(&j.runs[i], 0, memory_order_relaxed) == (i < n));
      ENSURE(i >= n || j.result[i] == (int64_t)i * i);
      j.result[i] = -1;
    }
    if (k % 100 == 0) sleep_us(k % 300);
  }
  j.pause = 300;   /* chunks that outlast the caller's spinning: it has to sleep and be woken */
  for (int k = 0; k < 30; k++) {
    rsi_pool_run(pool, 5, square_chunk, &j);
    ENSURE(exact(&j, 5));
  }
  j.pause = 0;
  rsi_pool_destroy(pool);
}

static void nested_chunk(void *arg, int64_t i) {
  sum_job *const j = arg;
  static sum_job inner[4];
  rsi_pool_run(j->pool, 20, square_chunk, &inner[i]);
  if (exact(&inner[i], 20)) square_chunk(j, i);
}

static void pool_nesting(void) {
  static sum_job j;
  ENSURE_OK(rsi_pool_create(3, &j.pool));
  for (int k = 0; k < 50; k++) {
    rsi_pool_run(j.pool, 4, nested_chunk, &j);
    ENSURE(exact(&j, 4));
  }
  rsi_pool_destroy(j.pool);
}

static void *second_caller(void *arg) {
  sum_job *const j = arg;
  for (int k = 0; k < 500; k++) {
    rsi_pool_run(j->pool, 50, square_chunk, j);
    if (!exact(j, 50)) j->pause = -1;
  }
  return NULL;
}

static void pool_second_caller(void) {
  static sum_job a, b;
  pthread_t id;
  ENSURE_OK(rsi_pool_create(3, &a.pool));
  b.pool = a.pool;
  ENSURE(pthread_create(&id, NULL, second_caller, &b) == 0);
  second_caller(&a);
  pthread_join(id, NULL);
  ENSURE(a.pause == 0 && b.pause == 0);
  rsi_pool_destroy(a.pool);
}

static atomic_int signals_blocked;

static void look_at_signals(void *arg, int64_t i) {
  sigset_t now;
  (void)i;
  pthread_sigmask(SIG_SETMASK, NULL, &now);
  if (!pthread_equal(pthread_self(), *(pthread_t *)arg)) atomic_fetch_add(&signals_blocked, sigismember(&now, SIGINT) ? 1 : 1000);
  sleep_us(200);
}

static void pool_signals(void) {
  pthread_t self = pthread_self();
  rsi_pool *pool;
  ENSURE_OK(rsi_pool_create(3, &pool));
  for (int k = 0; k < 1000 && atomic_load(&signals_blocked) == 0; k++) rsi_pool_run(pool, 10, look_at_signals, &self);
  ENSURE(atomic_load(&signals_blocked) > 0 && atomic_load(&signals_blocked) < 1000);
  sigset_t now;
  pthread_sigmask(SIG_SETMASK, NULL, &now);
  ENSURE(!sigismember(&now, SIGINT));
  rsi_pool_destroy(pool);
}

/* A child of fork has no workers: its jobs and the end of its pool must not wait for them. */
static void pool_fork(void) {
#ifndef __SANITIZE_THREAD__
  static sum_job j;
  rsi_pool *pool;
  ENSURE_OK(rsi_pool_create(3, &pool));
  for (long gap = 0; gap <= 5000; gap += 5000) {   /* workers that spin, workers that sleep */
    rsi_pool_run(pool, 10, square_chunk, &j);
    ENSURE(exact(&j, 10));
    sleep_us(gap);
    const pid_t child = fork();
    ENSURE(child >= 0);
    if (child == 0) {
      alarm(20);
      bool good = true;
      for (int k = 0; k < 3; k++) {
        rsi_pool_run(pool, 10, square_chunk, &j);
        good = good && exact(&j, 10);
        sleep_us(100);
      }
      rsi_pool_destroy(pool);
      _exit(good ? 0 : 1);
    }
    int status = -1;
    ENSURE(waitpid(child, &status, 0) == child);
    ENSURE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    rsi_pool_run(pool, 10, square_chunk, &j);
    ENSURE(exact(&j, 10));
  }
  rsi_pool_destroy(pool);
#endif
}

/* ---- cpu, random numbers --------------------------------------------------------------------------------------------- */

static void cpu_levels(void) {
  const rsi_isa_level best = rsi_cpu_best();
  ENSURE(best < RSI_ISA_LEVELS);
  ENSURE_TEXT(rsi_isa_level_name(RSI_ISA_BASELINE), "baseline");
  ENSURE_TEXT(rsi_isa_level_name(RSI_ISA_AVX2), "avx2");
  ENSURE_TEXT(rsi_isa_level_name(RSI_ISA_AVX512), "avx512");
#if defined(__x86_64__)
  __builtin_cpu_init();
  ENSURE((best >= RSI_ISA_AVX2) == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  ENSURE((best == RSI_ISA_AVX512) == (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                                      && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")));
#endif
}

/* The published vectors need all 128 bits of the counter, so this takes the static function with the file. */
#define rsi_philox   known_answer_philox
#define rsi_rng_seed known_answer_seed
#include "base/philox.c"
#undef rsi_philox
#undef rsi_rng_seed

static void philox_known_answers(void) {
  static const uint32_t cases[3][10] = {   /* counter, key, result: Random123's */
    {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
    {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
    {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 3; i++) {
    uint32_t out[4];
    philox_4x32(cases[i], cases[i] + 4, out);
    ENSURE(memcmp(out, cases[i] + 6, sizeof out) == 0);
  }
}

static void philox_mapping(void) {
  static const uint32_t zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint32_t counter[4] = {0x89abcdef, 0x01234567, 0, 0}, key[2] = {0x76543210, 0xfedcba98};
  uint32_t out[4], want[4];
  rsi_philox(0, 0, out);
  ENSURE(memcmp(out, zero, sizeof out) == 0);
  rsi_philox(0xfedcba9876543210u, 0x0123456789abcdefu, out);
  philox_4x32(counter, key, want);
  ENSURE(memcmp(out, want, sizeof out) == 0);
}

static void rng_stream(void) {
  rsi_rng a, b;
  rsi_rng_seed(&a, 0);
  rsi_rng_seed(&b, 1);
  ENSURE(a.key == 0xe220a8397b1dcdafu);   /* splitmix64's first number from 0 */
  ENSURE(a.key != b.key && a.counter == 0 && b.counter == 0);
  ENSURE(rsi_rng_take(&a, 5) == 0);
  ENSURE(rsi_rng_take(&a, 1) == 5);
  ENSURE(a.counter == 6);
}

int main(void) {
  RUN(status_text);
  RUN(status_truncation);
  RUN(status_per_thread);
  RUN(status_names);
  RUN(heap_reuse);
  RUN(heap_classes);
  RUN(heap_colours);
  RUN(heap_trim_keeps_live);
  RUN(heap_budget);
  RUN(heap_absurd_sizes);
  RUN(heap_injection);
  RUN(heap_hooks);
  RUN(heap_hooks_refuse);
  RUN(heap_threads);
  RUN(heap_closed_by_last_block);
  RUN(heap_poisons);
  RUN(pool_results);
  RUN(pool_arguments);
  RUN(pool_late_workers);
  RUN(pool_nesting);
  RUN(pool_second_caller);
  RUN(pool_signals);
  RUN(pool_fork);
  RUN(cpu_levels);
  RUN(philox_known_answers);
  RUN(philox_mapping);
  RUN(rng_stream);
  return TEST_RESULT();
}
