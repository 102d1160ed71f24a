/*
** The heap: all memory of a context and of what was made through it.
**
** Sizes are rounded to classes: 16, 32, 48, 64, then multiples of 64 up to 256, then four per doubling. So a block and the
** size that it is freed with always name the same class, and every class from 64 bytes on keeps blocks aligned to 64.
**   - Small classes (up to 32 KiB) are carved from slabs. A slab is aligned to its own size and begins with a `chunk`, so the
**     slab of a block is found by masking. Of a class's slabs only the newest has a part that is not carved yet.
**   - A large block is a chunk of its own, whose header lies in the 64 bytes before the block. Blocks begin at different
**     multiples of 64 from their chunk's start (the colour), so that equal offsets in two tensors do not alias in the cache.
** Free blocks stay with the heap, last in first out, until rsi_heap_trim, or until the budget or the system refuses more.
**
** Invariants, whenever the lock is free: live_bytes counts the classes' bytes of all blocks handed out; cached_bytes those of
** all free blocks and of what is not carved yet; a free small block holds the link to the next in its first word. The system
** is never called under the lock. A closed heap with no live block is destroyed by whoever makes that true.
*/
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/base.h"
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
  SMALL_CLASSES = 35,                       /* the last holds 32 KiB */
  CLASSES       = 219,
  LARGE_CLASSES = CLASSES - SMALL_CLASSES,
  HEAD          = 64,                       /* room for a chunk header; keeps blocks aligned */
  COLOURS       = 16,
  HUGE_PAGE     = 2 << 20
};
#define LARGEST (SIZE_MAX >> 3)             /* what the last class holds where size_t has 64 bits */

typedef struct chunk {                      /* memory taken from the system in one call: a slab or a large block */
  struct chunk *next;
  void         *base;
  size_t        total;
  size_t        carved, idle;               /* slabs: blocks carved so far; those found free during a trim, else 0 */
} chunk;
_Static_assert(sizeof(chunk) <= HEAD, "a chunk header has to fit before a block");

typedef struct bin {                        /* a small class */
  void  *free;
  double bytes;
  char  *fresh, *fresh_end;                 /* the part of the newest slab that is not carved yet */
  chunk *slabs;
} bin;

struct rsi_heap {
  _Alignas(64) atomic_flag lock;
  bool         closed;
  int          sticky;
  double       limit;                       /* live_bytes may reach this on the fast path; -1 while a failure is armed */
  double       countdown;                   /* allocations until the armed failure; 0: none */
  rs_stats     stats;
  bin          bins[SMALL_CLASSES];
  chunk       *large[LARGE_CLASSES];        /* free large blocks */
  unsigned     colour;
  rs_allocator memory;
};

/* ---- AddressSanitizer: free blocks and the unused tail of live ones are poisoned, so that it sees through the cache ---- */

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif

#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#define poison(ptr, size)   ASAN_POISON_MEMORY_REGION(ptr, size)
#define unpoison(ptr, size) ASAN_UNPOISON_MEMORY_REGION(ptr, size)
/* A checked read, so that freeing a block twice is reported as the use of a free block. */
static void touch(const void *ptr, size_t size) {
  if (size > 0) (void)*(const volatile char *)ptr;
}
#else
#define poison(ptr, size)   ((void)(ptr), (void)(size))
#define unpoison(ptr, size) ((void)(ptr), (void)(size))
#define touch(ptr, size)    ((void)(ptr), (void)(size))
#endif

static inline void *link_of(void *block) {
  unpoison(block, sizeof(void *));
  void *const next = *(void **)block;
  poison(block, sizeof(void *));
  return next;
}

static inline void set_link(void *block, void *next) {
  unpoison(block, sizeof(void *));
  *(void **)block = next;
  poison(block, sizeof(void *));
}

/* ---- lock: held for a few nanoseconds, so spin; but the holder may have lost its core, so yield ----------------------- */

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static __attribute__((noinline, cold)) void lock_contended(rsi_heap *heap) {
  for (unsigned spins = 1; atomic_flag_test_and_set_explicit(&heap->lock, memory_order_acquire); spins++) {
    if (spins > 64) sched_yield();
    else for (unsigned i = 0; i < (spins < 16 ? spins : 16); i++) pause_cpu();   /* back off: each try takes the line away */
  }
}

static inline void lock(rsi_heap *heap) {
  if (rsi_alone()) return;   /* nor can a thread start before the unlock */
  if (rsi_unlikely(atomic_flag_test_and_set_explicit(&heap->lock, memory_order_acquire))) lock_contended(heap);
}

static inline void unlock(rsi_heap *heap) { atomic_flag_clear_explicit(&heap->lock, memory_order_release); }

/* ---- classes --------------------------------------------------------------------------------------------------------- */

static inline unsigned class_of(size_t size) {
  if (size <= 48) return size ? (unsigned)(size - 1) >> 4 : 0;
  if (size <= 256) return 3 + ((unsigned)(size - 1) >> 6);
  const unsigned long long s = size - 1;
  const unsigned log2 = 63u - (unsigned)__builtin_clzll(s);
  return 7 + (log2 - 8) * 4 + ((unsigned)(s >> (log2 - 2)) & 3u);
}

static size_t class_bytes(unsigned c) {
  if (c < 3) return 16 * (size_t)(c + 1);
  if (c < 7) return 64 * (size_t)(c - 2);
  return (size_t)(5 + (c - 7) % 4) << (6 + (c - 7) / 4);
}

/* At least seven blocks to a slab. */
static size_t slab_bytes(unsigned c) { return class_bytes(c) <= (8 << 10) ? 64 << 10 : 256 << 10; }

static size_t slab_blocks(unsigned c) { return (slab_bytes(c) - HEAD) / class_bytes(c); }

static chunk *slab_of(void *block, unsigned c) { return (chunk *)((uintptr_t)block & ~(uintptr_t)(slab_bytes(c) - 1)); }

static chunk *head_of(void *block) { return (chunk *)(void *)((char *)block - HEAD); }

static void *block_of(chunk *head) { return (char *)head + HEAD; }

/* Bytes asked of the system for one more chunk of a class. */
static size_t chunk_bytes(unsigned c) { return c < SMALL_CLASSES ? slab_bytes(c) : class_bytes(c) + HEAD * COLOURS; }

/* ---- system: the hooks that are used when the host gives none --------------------------------------------------------- */

static size_t round_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

/* What is mapped for a chunk: whole pages of any size that Linux uses. */
static size_t mapped_bytes(size_t size) { return round_up(size, 64 << 10); }

/* Maps one huge page more than needed and gives the ends back: mmap itself promises only small pages' alignment. */
static void *map_huge(size_t size) {
  const size_t length = mapped_bytes(size);
  char *const raw = mmap(NULL, length + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return NULL;
  const size_t before = (HUGE_PAGE - ((uintptr_t)raw & (HUGE_PAGE - 1))) & (HUGE_PAGE - 1);
  char *const base = raw + before;
  if (before > 0) munmap(raw, before);
  if (before < HUGE_PAGE) munmap(base + length, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
  madvise(base, length, MADV_HUGEPAGE);   /* a wish: it may be refused */
#endif
  return base;
}

static void *system_alloc(void *user, size_t size, size_t align) {
  (void)user;
  return size >= HUGE_PAGE ? map_huge(size) : aligned_alloc(align, round_up(size, align));
}

static void system_free(void *user, void *ptr, size_t size) {
  (void)user;
  if (size >= HUGE_PAGE) munmap(ptr, mapped_bytes(size));
  else free(ptr);
}

/* ---- chunks ---------------------------------------------------------------------------------------------------------- */

/* Memory from the host or the system, or NULL; a host that breaks the alignment it was asked for counts as refusing. */
static void *take_memory(const rs_allocator *memory, size_t size, size_t align) {
  void *const base = memory->alloc(memory->user, size, align);
  if (base == NULL || ((uintptr_t)base & (align - 1)) == 0) return base;
  memory->free(memory->user, base, size);
  return NULL;
}

static void give_back(rsi_heap *heap, chunk *list) {
  while (list != NULL) {
    chunk *const next = list->next;
    void *const base = list->base;
    const size_t total = list->total;
    unpoison(base, total);
    heap->memory.free(heap->memory.user, base, total);
    list = next;
  }
}

/* A new chunk for a class, or NULL. Called without the lock. */
static chunk *fetch(rsi_heap *heap, unsigned c) {
  lock(heap);
  heap->stats.system_calls += 1;
  const unsigned colour = heap->colour;
  if (c >= SMALL_CLASSES) heap->colour = (colour + 5) % COLOURS;   /* 5 is coprime to 16: neighbours lie 320 bytes apart */
  unlock(heap);
  const size_t total = chunk_bytes(c);
  char *const base = take_memory(&heap->memory, total, c < SMALL_CLASSES ? slab_bytes(c) : 64);
  if (base == NULL) return NULL;
  chunk *const head = (chunk *)(void *)(base + (c < SMALL_CLASSES ? 0 : colour * HEAD));
  *head = (chunk){.base = base, .total = total};
  poison(block_of(head), (size_t)(base + total - (char *)block_of(head)));
  return head;
}

/* Makes a new chunk's blocks ready to be handed out. Returns it when it is not needed any more. Under the lock. */
static chunk *add_chunk(rsi_heap *heap, unsigned c, chunk *head) {
  if (c >= SMALL_CLASSES) {
    head->next = heap->large[c - SMALL_CLASSES];
    heap->large[c - SMALL_CLASSES] = head;
    heap->stats.cached_bytes += (double)class_bytes(c);
    return NULL;
  }
  bin *const b = &heap->bins[c];
  if (b->fresh < b->fresh_end) return head;   /* another thread was faster; only one slab may be part carved */
  head->next = b->slabs;
  b->slabs = head;
  b->fresh = block_of(head);
  b->fresh_end = b->fresh + slab_blocks(c) * class_bytes(c);
  heap->stats.cached_bytes += (double)slab_blocks(c) * b->bytes;
  return NULL;
}

/* A free block of a class, or NULL. Under the lock. */
static void *pop(rsi_heap *heap, unsigned c) {
  if (c >= SMALL_CLASSES) {
    chunk *const head = heap->large[c - SMALL_CLASSES];
    if (head == NULL) return NULL;
    heap->large[c - SMALL_CLASSES] = head->next;
    return block_of(head);
  }
  bin *const b = &heap->bins[c];
  void *block = b->free;
  if (block != NULL) {
    b->free = link_of(block);
  } else if (b->fresh < b->fresh_end) {
    block = b->fresh;
    b->fresh += class_bytes(c);
    slab_of(block, c)->carved++;
  }
  return block;
}

/* ---- trim ------------------------------------------------------------------------------------------------------------ */

/* Takes the slabs whose carved blocks are all free out of a class and puts them before `list`. Under the lock. */
static chunk *trim_small(rsi_heap *heap, unsigned c, chunk *list) {
  bin *const b = &heap->bins[c];
  for (void *p = b->free; p != NULL; p = link_of(p)) slab_of(p, c)->idle++;
  void *kept = NULL, *last = NULL;
  for (void *p = b->free, *next; p != NULL; p = next) {
    next = link_of(p);
    const chunk *const slab = slab_of(p, c);
    if (slab->idle == slab->carved) continue;
    if (last == NULL) kept = p;
    else set_link(last, p);
    last = p;
  }
  if (last != NULL) set_link(last, NULL);
  b->free = kept;
  for (chunk **at = &b->slabs, *slab; (slab = *at) != NULL;) {
    if (slab->idle != slab->carved) {
      slab->idle = 0;
      at = &slab->next;
      continue;
    }
    if (b->fresh < b->fresh_end && slab_of(b->fresh, c) == slab) b->fresh = b->fresh_end = NULL;
    heap->stats.cached_bytes -= (double)slab_blocks(c) * b->bytes;
    *at = slab->next;
    slab->next = list;
    list = slab;
  }
  return list;
}

void rsi_heap_trim(rsi_heap *heap) {
  chunk *list = NULL;
  lock(heap);
  for (unsigned c = 0; c < SMALL_CLASSES; c++) list = trim_small(heap, c, list);
  for (unsigned c = SMALL_CLASSES; c < CLASSES; c++) {
    for (chunk *head; (head = heap->large[c - SMALL_CLASSES]) != NULL;) {
      heap->large[c - SMALL_CLASSES] = head->next;
      heap->stats.cached_bytes -= (double)class_bytes(c);
      head->next = list;
      list = head;
    }
  }
  unlock(heap);
  give_back(heap, list);
}

/* ---- failure --------------------------------------------------------------------------------------------------------- */

typedef struct bytes_text { char s[32]; } bytes_text;

static bytes_text text_of(double bytes) {
  static const char *const units[] = {"B", "KB", "MB", "GB", "TB", "PB", "EB"};
  bytes_text text;
  unsigned unit = 0;
  while (bytes >= 1024 && unit < 6) bytes /= 1024, unit++;
  snprintf(text.s, sizeof text.s, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
  return text;
}

static __attribute__((cold)) rs_status fail_budget(size_t size, double live, double budget) {
  return rsi_fail(RS_ERR_NOMEM, "out of memory: %s asked, %s in use, budget %s; free tensors or raise the budget",
                  text_of((double)size).s, text_of(live).s, text_of(budget).s);
}

static __attribute__((cold)) rs_status fail_system(const rsi_heap *heap, size_t size, double live) {
  return rsi_fail(RS_ERR_NOMEM, "out of memory: %s asked, %s in use; %s refused more", text_of((double)size).s,
                  text_of(live).s, heap->memory.alloc == system_alloc ? "the system" : "the host's allocator");
}

/* Under the lock. */
static void set_limit(rsi_heap *heap) {
  const double budget = heap->stats.budget_bytes;
  heap->limit = heap->countdown > 0 ? -1 : budget > 0 ? budget : (double)INFINITY;
}

/* Counts an allocation down; true when it is the one that has to fail. */
static bool injected(rsi_heap *heap) {
  lock(heap);
  bool fails = false;
  if (heap->countdown > 0) {
    fails = heap->countdown <= 1;
    if (!fails) heap->countdown -= 1;
    else if (!heap->sticky) heap->countdown = 0;
    set_limit(heap);
  }
  unlock(heap);
  return fails;
}

void rsi_heap_fail_at(rsi_heap *heap, double countdown, int sticky) {
  lock(heap);
  heap->countdown = countdown > 0 ? countdown : 0;
  heap->sticky = sticky;
  set_limit(heap);
  unlock(heap);
}

/* ---- blocks ---------------------------------------------------------------------------------------------------------- */

/* Under the lock. */
static inline void count_out(rs_stats *stats, double bytes) {
  const double live = stats->live_bytes + bytes;
  stats->live_bytes = live;
  stats->cached_bytes -= bytes;
  stats->allocations += 1;
  stats->live_blocks += 1;
  if (live > stats->peak_bytes) stats->peak_bytes = live;
}

/* Gets one more chunk; gives the cache back first when the budget has no room for both, and when it is refused. */
static bool grow(rsi_heap *heap, unsigned c, bool crowded) {
  if (crowded) rsi_heap_trim(heap);
  chunk *head = fetch(heap, c);
  if (head == NULL) {
    rsi_heap_trim(heap);
    head = fetch(heap, c);
    if (head == NULL) return false;
  }
  lock(heap);
  chunk *const surplus = add_chunk(heap, c, head);
  unlock(heap);
  give_back(heap, surplus);
  return true;
}

/* Everything but popping a small block: a new chunk becomes free blocks, then all is checked again, since the lock was free. */
static __attribute__((noinline)) rs_status alloc_slow(rsi_heap *heap, size_t size, unsigned c, void **out) {
  *out = NULL;
  RSI_CHECK(!injected(heap), RS_ERR_NOMEM, "out of memory: %s asked; rs_fail_allocation made this one fail",
            text_of((double)size).s);
  const bool possible = size <= LARGEST && c < CLASSES;
  const double bytes = possible ? (double)class_bytes(c) : (double)size;
  for (;;) {
    lock(heap);
    rs_stats *const stats = &heap->stats;
    const double live = stats->live_bytes, held = live + stats->cached_bytes, budget = stats->budget_bytes;
    const bool fits = !(budget > 0) || live + bytes <= budget;
    void *const block = fits && possible ? pop(heap, c) : NULL;
    if (block != NULL) count_out(stats, bytes);
    unlock(heap);
    if (!fits) return fail_budget(size, live, budget);
    if (block != NULL) {
      unpoison(block, size);
      *out = block;
      return RS_OK;
    }
    if (!possible || !grow(heap, c, budget > 0 && held + (double)chunk_bytes(c) > budget)) return fail_system(heap, size, live);
  }
}

rs_status rsi_alloc(rsi_heap *heap, size_t size, void **out) {
  const unsigned c = class_of(size);
  if (rsi_likely(c < SMALL_CLASSES)) {
    bin *const b = &heap->bins[c];
    lock(heap);
    void *const block = b->free;
    if (rsi_likely(block != NULL && heap->stats.live_bytes + b->bytes <= heap->limit)) {
      b->free = link_of(block);
      count_out(&heap->stats, b->bytes);
      unlock(heap);
      unpoison(block, size);
      *out = block;
      return RS_OK;
    }
    unlock(heap);
  }
  return alloc_slow(heap, size, c, out);
}

static void destroy(rsi_heap *heap);

void rsi_free(rsi_heap *heap, void *ptr, size_t size) {
  if (ptr == NULL) return;
  const unsigned c = class_of(size);
  double bytes;
  touch(ptr, size);
  lock(heap);
  if (rsi_likely(c < SMALL_CLASSES)) {
    bin *const b = &heap->bins[c];
    bytes = b->bytes;
    poison(ptr, class_bytes(c));
    set_link(ptr, b->free);
    b->free = ptr;
  } else {
    chunk *const head = head_of(ptr);
    bytes = (double)class_bytes(c);
    poison(ptr, class_bytes(c));
    head->next = heap->large[c - SMALL_CLASSES];
    heap->large[c - SMALL_CLASSES] = head;
  }
  rs_stats *const stats = &heap->stats;
  stats->live_bytes -= bytes;
  stats->cached_bytes += bytes;
  stats->live_blocks -= 1;
  const bool last = heap->closed && stats->live_blocks < 1;
  unlock(heap);
  if (rsi_unlikely(last)) destroy(heap);
}

/* ---- the heap itself ------------------------------------------------------------------------------------------------- */

rs_status rsi_heap_create(const rs_allocator *hooks, double budget, rsi_heap **out) {
  const rs_allocator memory = hooks != NULL ? *hooks : (rs_allocator){system_alloc, system_free, NULL};
  *out = NULL;
  RSI_CHECK(memory.alloc != NULL && memory.free != NULL, RS_ERR_ARG, "an allocator needs both alloc and free");
  rsi_heap *const heap = take_memory(&memory, sizeof *heap, _Alignof(rsi_heap));
  RSI_CHECK(heap != NULL, RS_ERR_NOMEM, "out of memory: no room for a heap");
  memset(heap, 0, sizeof *heap);
  atomic_flag_clear_explicit(&heap->lock, memory_order_relaxed);
  heap->memory = memory;
  heap->stats.system_calls = 1;
  for (unsigned c = 0; c < SMALL_CLASSES; c++) heap->bins[c].bytes = (double)class_bytes(c);
  heap->stats.budget_bytes = budget > 0 ? budget : 0;
  set_limit(heap);
  *out = heap;
  return RS_OK;
}

/* No block is live, so every chunk is free and no other thread can come. */
static void destroy(rsi_heap *heap) {
  const rs_allocator memory = heap->memory;
  rsi_heap_trim(heap);
  memory.free(memory.user, heap, sizeof *heap);
}

void rsi_heap_close(rsi_heap *heap) {
  if (heap == NULL) return;
  lock(heap);
  heap->closed = true;
  const bool last = heap->stats.live_blocks < 1;
  unlock(heap);
  if (last) destroy(heap);
}

const rs_stats *rsi_heap_stats(const rsi_heap *heap) { return &heap->stats; }

void rsi_heap_reset_peak(rsi_heap *heap) {
  lock(heap);
  heap->stats.peak_bytes = heap->stats.live_bytes;
  unlock(heap);
}

void rsi_heap_set_budget(rsi_heap *heap, double bytes) {
  lock(heap);
  heap->stats.budget_bytes = bytes > 0 ? bytes : 0;
  set_limit(heap);
  unlock(heap);
}
