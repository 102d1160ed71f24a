/* The table of oneDNN's entries (onednn.h): found by key, bounded, the least recently used go first. */
#include "backend/onednn.h"

#ifdef RSI_WITH_ONEDNN

#include <stdlib.h>
#include <string.h>

enum { MOST_ENTRIES = 512 };

/* libgomp's; declared here since only gcc brings the header. Both concern the calling thread only. */
extern void omp_set_num_threads(int threads);
extern int omp_get_max_threads(void);

int rsi_onednn_alone(void) {
  const int former = omp_get_max_threads();
  if (former != 1) omp_set_num_threads(1);
  return former;
}

void rsi_onednn_not_alone(int former) {
  if (former != 1) omp_set_num_threads(former);
}

/* ---- argument sets --------------------------------------------------------------------------------------------------- */

static void arguments_free(arguments *a) {
  for (int i = 0; i < MEMORIES; i++) {
    if (a->given[i]) dnnl_memory_destroy(a->given[i]);
    if (a->used[i]) dnnl_memory_destroy(a->used[i]);
    if (a->reorder_pad[i]) dnnl_memory_destroy(a->reorder_pad[i]);
  }
  if (a->bias) dnnl_memory_destroy(a->bias);
  if (a->pad) dnnl_memory_destroy(a->pad);
  free(a);
}

static dnnl_status_t memory_of(rsi_onednn *t, const md *d, dnnl_memory_t *out) {
  return dnnl_memory_create(out, ref(d), t->engine, DNNL_MEMORY_NONE);
}

static dnnl_status_t arguments_fill(rsi_onednn *t, const piece *p, arguments *a) {
  for (int i = 0; i < MEMORIES; i++) {
    const operand *const o = &p->op[i];
    if (!o->present) continue;
    if (!o->same) DNNL_TRY(memory_of(t, &o->given, &a->given[i]));
    DNNL_TRY(memory_of(t, &o->used, &a->used[i]));
    if (o->reorder_pad > 0) DNNL_TRY(memory_of(t, &o->reorder_pad_md, &a->reorder_pad[i]));
  }
  if (p->with_bias) DNNL_TRY(memory_of(t, &p->bias, &a->bias));
  if (p->pad_bytes > 0) DNNL_TRY(memory_of(t, &p->pad, &a->pad));
  return dnnl_success;
}

dnnl_status_t rsi_onednn_arguments(rsi_onednn *t, piece *p, arguments **out) {
  pthread_mutex_lock(&t->mutex);
  arguments *a = p->idle;
  if (a != NULL) p->idle = a->next;
  pthread_mutex_unlock(&t->mutex);
  if (a == NULL) {
    a = calloc(1, sizeof *a);
    if (a == NULL) return dnnl_out_of_memory;
    const dnnl_status_t status = arguments_fill(t, p, a);
    if (status != dnnl_success) {
      arguments_free(a);
      return status;
    }
  }
  *out = a;
  return dnnl_success;
}

void rsi_onednn_arguments_back(rsi_onednn *t, piece *p, arguments *a) {
  pthread_mutex_lock(&t->mutex);
  a->next = p->idle, p->idle = a;
  pthread_mutex_unlock(&t->mutex);
}

void rsi_onednn_piece_free(piece *p) {
  for (int i = 0; i < MEMORIES; i++) {
    operand *const o = &p->op[i];
    if (o->reorder) dnnl_primitive_destroy(o->reorder);
    md_free(&o->given), md_free(&o->used), md_free(&o->reorder_pad_md);
  }
  if (p->conv) dnnl_primitive_destroy(p->conv);
  md_free(&p->bias), md_free(&p->pad);
  for (arguments *a = p->idle, *next; a != NULL; a = next) next = a->next, arguments_free(a);
  memset(p, 0, sizeof *p);
}

static void entry_free(entry *e) {
  for (int i = 0; i < MOST_PIECES; i++) rsi_onednn_piece_free(&e->piece[i]);
  rsi_onednn_piece_free(&e->part);
  free(e);
}

/* ---- the table ------------------------------------------------------------------------------------------------------- */

static unsigned bucket_of(const rsi_conv_call *k) {
  const uint64_t *const words = (const uint64_t *)(const void *)k;
  uint64_t h = 0;
  for (size_t i = 0; i < sizeof *k / sizeof *words; i++) h = (h ^ words[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
  return (unsigned)(h % BUCKETS);
}

static void unlink_use(rsi_onednn *t, entry *e) {
  if (e->newer) e->newer->older = e->older;
  else t->newest = e->older;
  if (e->older) e->older->newer = e->newer;
  else t->oldest = e->newer;
}

static void link_newest(rsi_onednn *t, entry *e) {
  e->older = t->newest, e->newer = NULL;
  if (t->newest) t->newest->newer = e;
  else t->oldest = e;
  t->newest = e;
}

static entry *find(rsi_onednn *t, const rsi_conv_call *k, unsigned bucket) {
  for (entry *e = t->buckets[bucket]; e != NULL; e = e->chain)
    if (memcmp(&e->key, k, sizeof *k) == 0) return e;
  return NULL;
}

static void drop(rsi_onednn *t, entry *e) {
  entry **at = &t->buckets[bucket_of(&e->key)];
  while (*at != e) at = &(*at)->chain;
  *at = e->chain;
  unlink_use(t, e);
  t->entries--;
  entry_free(e);
}

entry *rsi_onednn_take(rsi_onednn *t, const rsi_conv_call *asked) {
  rsi_conv_call call = *asked;
  call.act = RSI_CONV_NO_ACT;                /* it follows the primitive: activate in onednn_conv.c */
  if (call.residual == RSI_CONV_COPIED) call.residual = RSI_CONV_IN_PLACE;   /* the run copies it */
  const unsigned bucket = bucket_of(&call);
  pthread_mutex_lock(&t->mutex);
  entry *e = find(t, &call, bucket);
  if (e == NULL) {
    pthread_mutex_unlock(&t->mutex);       /* making one takes long: others need not wait */
    entry *const fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL) return NULL;
    fresh->key = call;
    if (!rsi_onednn_make(t, fresh)) {
      entry_free(fresh);
      return NULL;
    }
    pthread_mutex_lock(&t->mutex);
    e = find(t, &call, bucket);
    if (e != NULL) {
      entry_free(fresh);
    } else {
      e = fresh;
      for (entry *old = t->oldest, *next; old != NULL && t->entries >= MOST_ENTRIES; old = next) {
        next = old->newer;
        if (old->refs == 0) drop(t, old);
      }
      e->chain = t->buckets[bucket], t->buckets[bucket] = e;
      link_newest(t, e);
      t->entries++;
    }
  }
  if (e != t->newest) unlink_use(t, e), link_newest(t, e);
  e->refs++;
  pthread_mutex_unlock(&t->mutex);
  return e;
}

void rsi_onednn_give(rsi_onednn *t, entry *e) {
  pthread_mutex_lock(&t->mutex);
  e->refs--;
  pthread_mutex_unlock(&t->mutex);
}

rs_status rsi_onednn_create(rsi_onednn **out) {
  rsi_onednn *const t = calloc(1, sizeof *t);
  *out = NULL;
  RSI_CHECK(t != NULL, RS_ERR_NOMEM, "out of memory: no room for the table of oneDNN's primitives");
  if (pthread_mutex_init(&t->mutex, NULL) != 0) {
    free(t);
    return rsi_fail(RS_ERR_NOMEM, "out of memory: the system has no mutex for oneDNN's primitives");
  }
  if (dnnl_engine_create(&t->engine, dnnl_cpu, 0) != dnnl_success ||
      dnnl_stream_create(&t->stream, t->engine, dnnl_stream_default_flags) != dnnl_success ||
      dnnl_primitive_attr_create(&t->attr) != dnnl_success ||
      dnnl_primitive_attr_set_scratchpad_mode(t->attr, dnnl_scratchpad_mode_user) != dnnl_success) {
    rsi_onednn_destroy(t);
    return rsi_fail(RS_ERR_NOMEM, "oneDNN could not be started");
  }
  *out = t;
  return RS_OK;
}

void rsi_onednn_destroy(rsi_onednn *t) {
  if (t == NULL) return;
  while (t->oldest != NULL) drop(t, t->oldest);
  if (t->attr) dnnl_primitive_attr_destroy(t->attr);
  if (t->stream) dnnl_stream_destroy(t->stream);
  if (t->engine) dnnl_engine_destroy(t->engine);
  pthread_mutex_destroy(&t->mutex);
  free(t);
}

bool rsi_onednn_available(void) { return true; }

#else

bool rsi_onednn_available(void) { return false; }

rs_status rsi_onednn_create(rsi_onednn **out) {
  *out = NULL;
  return RS_OK;
}

void rsi_onednn_destroy(rsi_onednn *t) { (void)t; }

#endif
