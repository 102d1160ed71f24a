/*
** Convolutions by oneDNN, 2.x or 3.x.
**
** oneDNN is called with one thread, on slices of the work, by the threads of our own pool: it starts no threads, nothing
** spins between calls, and since the slices depend on the shape only, so does the result.
** A convolution has three operands, X (images), W (filters) and Y (results); its kind says which one is computed. It is cut
** along the batch, the filters, the channels or the groups; an operand without that dimension is shared by all slices, and if
** that one is the result (W, cut along the batch), every slice makes a partial sum, added in the order of the slices.
** The primitives ask for layouts of their own: a slice reorders what it reads and writes, while it is in the cache.
**
** All that has to be made for a shape is an entry of a bounded table. An entry is immutable, but for its list of idle argument
** sets (memory objects, one set for each thread at work), which the table's mutex guards. refs counts the calls that hold an
** entry; only one that nobody holds is dropped, the least recently used first.
** Nothing here depends on operands being plain at the ends: the slices could as well take and give the primitive's layouts.
*/
#include "backend/backend.h"

#ifdef RSI_WITH_ONEDNN

#include "base/lanes.h"
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* libgomp's; declared here since only gcc brings the header. Both concern the calling thread only. */
extern void omp_set_num_threads(int threads);
extern int omp_get_max_threads(void);

/* ---- one C API out of two -------------------------------------------------------------------------------------------- */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t md;                 /* owned */
typedef const_dnnl_memory_desc_t md_ref;
static md_ref ref(const md *d) { return *d; }
static dnnl_status_t md_copy(md *d, md_ref from) { return dnnl_memory_desc_clone(d, from); }
static void md_free(md *d) {
  if (*d != NULL) dnnl_memory_desc_destroy(*d);
  *d = NULL;
}
static dnnl_status_t md_any(md *d, int n, const dnnl_dims_t dims) {
  return dnnl_memory_desc_create_with_tag(d, n, dims, dnnl_f32, dnnl_format_tag_any);
}
static dnnl_status_t md_strided(md *d, int n, const dnnl_dims_t dims, const dnnl_dims_t strides) {
  return dnnl_memory_desc_create_with_strides(d, n, dims, dnnl_f32, strides);
}
#else
typedef dnnl_memory_desc_t md;
typedef const dnnl_memory_desc_t *md_ref;
static md_ref ref(const md *d) { return d; }
static dnnl_status_t md_copy(md *d, md_ref from) {
  *d = *from;
  return dnnl_success;
}
static void md_free(md *d) { (void)d; }
static dnnl_status_t md_any(md *d, int n, const dnnl_dims_t dims) {
  return dnnl_memory_desc_init_by_tag(d, n, dims, dnnl_f32, dnnl_format_tag_any);
}
static dnnl_status_t md_strided(md *d, int n, const dnnl_dims_t dims, const dnnl_dims_t strides) {
  return dnnl_memory_desc_init_by_strides(d, n, dims, dnnl_f32, strides);
}
#endif

#define DNNL_TRY(expr)                                                                                                      \
  do {                                                                                                                      \
    const dnnl_status_t status_ = (expr);                                                                                   \
    if (status_ != dnnl_success) return status_;                                                                            \
  } while (0)

enum { X, W, Y, OPERANDS };                    /* images, filters, results: or their gradients */

/* Which operand is computed. */
static int result_of(rsi_conv_kind kind) { return kind == RSI_CONV_FORWARD ? Y : kind == RSI_CONV_DATA ? X : W; }

typedef struct window { dnnl_dims_t stride, dilation, before, after; } window;

/* The primitive of `kind`; gradients need a forward one as a hint. bias NULL: none. */
static dnnl_status_t conv_desc(dnnl_engine_t engine, dnnl_primitive_attr_t attr, rsi_conv_kind kind, dnnl_alg_kind_t algorithm,
                               const md d[OPERANDS], const md *bias, const window *w, dnnl_primitive_desc_t hint,
                               dnnl_primitive_desc_t *out) {
  const md_ref x = ref(&d[X]), f = ref(&d[W]), y = ref(&d[Y]), b = bias != NULL ? ref(bias) : NULL;
#if DNNL_VERSION_MAJOR >= 3
  switch (kind) {
    case RSI_CONV_FORWARD:
      return dnnl_convolution_forward_primitive_desc_create(out, engine, dnnl_forward_training, algorithm, x, f, b, y, w->stride,
                                                            w->dilation, w->before, w->after, attr);
    case RSI_CONV_DATA:
      return dnnl_convolution_backward_data_primitive_desc_create(out, engine, algorithm, x, f, y, w->stride, w->dilation, w->before,
                                                                  w->after, hint, attr);
    case RSI_CONV_WEIGHT:
      return dnnl_convolution_backward_weights_primitive_desc_create(out, engine, algorithm, x, f, NULL, y, w->stride, w->dilation,
                                                                     w->before, w->after, hint, attr);
  }
  return dnnl_invalid_arguments;
#else
  dnnl_convolution_desc_t c;
  switch (kind) {
    case RSI_CONV_FORWARD:
      DNNL_TRY(dnnl_dilated_convolution_forward_desc_init(&c, dnnl_forward_training, algorithm, x, f, b, y, w->stride, w->dilation,
                                                          w->before, w->after));
      break;
    case RSI_CONV_DATA:
      DNNL_TRY(dnnl_dilated_convolution_backward_data_desc_init(&c, algorithm, x, f, y, w->stride, w->dilation, w->before, w->after));
      break;
    case RSI_CONV_WEIGHT:
      DNNL_TRY(dnnl_dilated_convolution_backward_weights_desc_init(&c, algorithm, x, f, NULL, y, w->stride, w->dilation, w->before,
                                                                   w->after));
      break;
  }
  return dnnl_primitive_desc_create(out, &c, attr, engine, hint);
#endif
}

/* ---- threads --------------------------------------------------------------------------------------------------------- */

/* While a thread makes or runs primitives, oneDNN finds that it may use this thread only. Returns what to give back after. */
static int alone(void) {
  const int former = omp_get_max_threads();
  if (former != 1) omp_set_num_threads(1);
  return former;
}

static void not_alone(int former) {
  if (former != 1) omp_set_num_threads(former);
}

/* ---- the parts of an entry ------------------------------------------------------------------------------------------- */

typedef enum split { BY_BATCH, BY_FILTER, BY_CHANNEL, BY_GROUP } split;

typedef struct operand {
  md     plain, used;            /* as part of the caller's tensor; as the primitive wants it */
  bool   same;                   /* no reorder */
  size_t bytes;                  /* of used */
  dnnl_primitive_t reorder;      /* plain to used, or used to plain for the result */
  size_t reorder_pad;            /* scratchpad bytes */
  md     reorder_pad_md;
} operand;

/* What a thread needs to run a piece: memory objects, whose addresses are set for each run. */
typedef struct arguments {
  struct arguments *next;
  dnnl_memory_t plain[OPERANDS], used[OPERANDS], bias, pad, reorder_pad[OPERANDS];
} arguments;

/* A slice of one size: all slices are equal, except perhaps the last. */
typedef struct piece {
  rsi_conv_shape s;
  operand op[OPERANDS];
  md      bias, pad;
  size_t  pad_bytes;
  dnnl_primitive_t conv;
  arguments *idle;               /* under the table's mutex */
} piece;

typedef struct key {             /* no padding: compared as bytes */
  int64_t kind, bias;
  rsi_conv_shape s;
} key;

typedef struct entry {
  struct entry *older, *newer, *chain;   /* by last use; of one bucket */
  key     key;
  int     refs;
  bool    usable;                /* false: oneDNN has nothing good for this shape */
  int     result, shared;        /* operands; shared -1: none */
  bool    partial;               /* the shared one is the result */
  split   cut;
  int64_t size, slices;          /* of a slice, along the cut */
  piece   piece[2];              /* the ordinary slice; the last one, when it is smaller */
  int     pieces;
  size_t  shared_bytes, lane_bytes;
} entry;

enum { MOST_ENTRIES = 256, BUCKETS = 512 };

struct rsi_onednn {
  pthread_mutex_t mutex;
  dnnl_engine_t   engine;
  dnnl_stream_t   stream;        /* a processor's stream has no state: any thread may use it */
  dnnl_primitive_attr_t attr;
  entry *buckets[BUCKETS];
  entry *newest, *oldest;
  int    entries;
};

static void arguments_free(arguments *a) {
  for (int i = 0; i < OPERANDS; i++) {
    if (a->plain[i]) dnnl_memory_destroy(a->plain[i]);
    if (a->used[i]) dnnl_memory_destroy(a->used[i]);
    if (a->reorder_pad[i]) dnnl_memory_destroy(a->reorder_pad[i]);
  }
  if (a->bias) dnnl_memory_destroy(a->bias);
  if (a->pad) dnnl_memory_destroy(a->pad);
  free(a);
}

static void piece_free(piece *p) {
  for (int i = 0; i < OPERANDS; i++) {
    operand *const o = &p->op[i];
    if (o->reorder) dnnl_primitive_destroy(o->reorder);
    md_free(&o->plain), md_free(&o->used), md_free(&o->reorder_pad_md);
  }
  if (p->conv) dnnl_primitive_destroy(p->conv);
  md_free(&p->bias), md_free(&p->pad);
  for (arguments *a = p->idle, *next; a != NULL; a = next) next = a->next, arguments_free(a);
  memset(p, 0, sizeof *p);
}

static void entry_free(entry *e) {
  piece_free(&e->piece[0]), piece_free(&e->piece[1]);
  free(e);
}

/* ---- how a shape is cut ---------------------------------------------------------------------------------------------- */

/* Measured with 2.6.3 on AVX-512: see the rules that use them. */
static const double WAKE_WORK = 8e6;       /* additions and multiplications that pay for a second thread */
static const double SLICE_WORK = 2e7;      /* of a slice, about 0.1 ms */
enum { MOST_SLICES = 32, MOST_SUMS = 8, SLICE_CHANNELS = 32, SUM_OUTPUTS = 1024 };
enum { WINOGRAD_SLICES = 4, WINOGRAD_TILES = 64, WINOGRAD_CHANNELS = 64 };

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static double work_of(const rsi_conv_shape *s) {
  return 2.0 * (double)(s->n * s->o * s->oh * s->ow) * (double)(s->c / s->groups * s->kh * s->kw);
}

/* oneDNN's Winograd form, F(4x4, 3x3), takes these; with fewer channels or tiles its transforms cost more than they save. */
static bool winograd_possible(const rsi_conv_shape *s) {
  return s->kh == 3 && s->kw == 3 && s->sh == 1 && s->sw == 1 && s->dh == 1 && s->dw == 1 && s->ph <= 1 && s->pw <= 1 &&
         s->groups == 1 && s->c >= WINOGRAD_CHANNELS && s->o >= WINOGRAD_CHANNELS && s->c % 16 == 0 && s->o % 16 == 0;
}

static int64_t tiles(const rsi_conv_shape *s) { return divide_up(s->oh, 4) * divide_up(s->ow, 4); }

static int64_t length_along(const rsi_conv_shape *s, split cut) {
  return cut == BY_BATCH ? s->n : cut == BY_FILTER ? s->o : cut == BY_CHANNEL ? s->c : s->groups;
}

/* The cut for direct convolutions, and for a single image: the smaller operand should be the shared one. */
static split choose_cut(const rsi_conv_shape *s, rsi_conv_kind kind) {
  const int64_t filters = s->c / s->groups * s->o * s->kh * s->kw, images = s->n * s->c * s->h * s->w;
  const int64_t channels = kind == RSI_CONV_DATA ? s->c : s->o;
  if (s->groups > 1) return s->n == 1 ? BY_GROUP : BY_BATCH;
  if ((s->n == 1 || filters > images) && channels >= 2 * SLICE_CHANNELS) return kind == RSI_CONV_DATA ? BY_CHANNEL : BY_FILTER;
  return BY_BATCH;
}

/* Slices along the cut, and which algorithm. */
static void choose(entry *e, dnnl_alg_kind_t *algorithm) {
  const rsi_conv_shape *const s = &e->key.s;
  const rsi_conv_kind kind = (rsi_conv_kind)e->key.kind;
  const double work = work_of(s);
  int64_t slices = (int64_t)(work / SLICE_WORK);
  if (slices < 2 && work >= WAKE_WORK) slices = 2;
  if (slices > MOST_SLICES) slices = MOST_SLICES;
  *algorithm = dnnl_convolution_direct;
  e->cut = slices > 1 ? choose_cut(s, kind) : BY_BATCH;
  if (winograd_possible(s)) {
    /* A slice transforms all filters that it uses, so it must have tiles enough to pay for that. */
    const int64_t parts = s->n * tiles(s) / WINOGRAD_TILES;
    if (s->n >= 2 && parts >= 2) e->cut = BY_BATCH, slices = least(slices, parts);
    if (e->cut == BY_BATCH ? parts >= 2 : s->n * tiles(s) >= (kind == RSI_CONV_WEIGHT ? WINOGRAD_TILES / 2 : WINOGRAD_TILES)) {
      *algorithm = dnnl_convolution_winograd;
      slices = least(slices, WINOGRAD_SLICES);
    }
  }
  /* Partial sums are worth it only if much goes into each. */
  if (kind == RSI_CONV_WEIGHT && e->cut == BY_BATCH) slices = least(slices, least(s->n * s->oh * s->ow / SUM_OUTPUTS, MOST_SUMS));
  const int64_t length = length_along(s, e->cut), unit = e->cut == BY_FILTER || e->cut == BY_CHANNEL ? SLICE_CHANNELS : 1;
  slices = least(slices, length / unit);
  if (slices < 1) slices = 1;
  while (slices < 8 && (slices & (slices - 1))) slices--;         /* so that two or four threads get equal shares */
  e->size = divide_up(divide_up(length, slices), unit) * unit;
  if (e->size > length) e->size = length;
  e->slices = divide_up(length, e->size);
}

static rsi_conv_shape piece_shape(const rsi_conv_shape *s, split cut, int64_t size) {
  rsi_conv_shape p = *s;
  switch (cut) {
    case BY_BATCH:   p.n = size; break;
    case BY_FILTER:  p.o = size; break;
    case BY_CHANNEL: p.c = size; break;
    case BY_GROUP:   p.groups = size, p.c = s->c / s->groups * size, p.o = s->o / s->groups * size; break;
  }
  return p;
}

/* Elements from the start of an operand of the whole to the slice that begins at `at`. */
static int64_t offset_of(const rsi_conv_shape *s, split cut, int op, int64_t at) {
  const int64_t taps = s->kh * s->kw, group_c = s->c / s->groups, group_o = s->o / s->groups;
  const int64_t x = s->h * s->w, y = s->oh * s->ow;
  switch (cut) {
    case BY_BATCH:   return op == X ? at * s->c * x : op == Y ? at * s->o * y : 0;
    case BY_FILTER:  return op == W ? at * group_c * taps : op == Y ? at * y : 0;
    case BY_CHANNEL: return op == X ? at * x : op == W ? at * taps : 0;
    case BY_GROUP:   return at * (op == X ? group_c * x : op == W ? group_o * group_c * taps : group_o * y);
  }
  return 0;
}

static int64_t bias_offset(const rsi_conv_shape *s, split cut, int64_t at) {
  return cut == BY_FILTER ? at : cut == BY_GROUP ? at * (s->o / s->groups) : 0;
}

/* ---- making an entry ------------------------------------------------------------------------------------------------- */

/* dims of an operand of piece p and its strides in the whole of shape s; returns how many. */
static int layout(const rsi_conv_shape *s, const rsi_conv_shape *p, int op, dnnl_dims_t dims, dnnl_dims_t strides) {
  if (op != W) {
    const int64_t channels = op == X ? s->c : s->o, h = op == X ? s->h : s->oh, w = op == X ? s->w : s->ow;
    const int64_t d[4] = {p->n, op == X ? p->c : p->o, h, w}, st[4] = {channels * h * w, h * w, w, 1};
    memcpy(dims, d, sizeof d), memcpy(strides, st, sizeof st);
    return 4;
  }
  const int64_t group_c = s->c / s->groups, group_o = s->o / s->groups, taps = s->kh * s->kw;
  const int64_t d[5] = {p->groups, p->o / p->groups, p->c / p->groups, s->kh, s->kw};
  const int64_t st[5] = {group_o * group_c * taps, group_c * taps, taps, s->kw, 1};
  const int skip = s->groups == 1;
  memcpy(dims, d + skip, (size_t)(5 - skip) * sizeof *d), memcpy(strides, st + skip, (size_t)(5 - skip) * sizeof *st);
  return 5 - skip;
}

static dnnl_status_t primitive_of(dnnl_primitive_desc_t desc, dnnl_primitive_t *out, md *pad, size_t *pad_bytes) {
  const md_ref need = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
  *pad_bytes = need != NULL ? dnnl_memory_desc_get_size(need) : 0;
  if (*pad_bytes > 0) DNNL_TRY(md_copy(pad, need));
  return dnnl_primitive_create(out, desc);
}

static dnnl_status_t make_reorder(rsi_onednn *t, operand *o, bool result) {
  dnnl_primitive_desc_t desc;
  const md *const from = result ? &o->used : &o->plain, *const to = result ? &o->plain : &o->used;
  DNNL_TRY(dnnl_reorder_primitive_desc_create(&desc, ref(from), t->engine, ref(to), t->engine, t->attr));
  const dnnl_status_t status = primitive_of(desc, &o->reorder, &o->reorder_pad_md, &o->reorder_pad);
  dnnl_primitive_desc_destroy(desc);
  return status;
}

/* oneDNN's reference loops, and its own unfolding: the portable kernels are better. */
static bool is_slow(dnnl_primitive_desc_t desc) {
  const char *name = "";
  dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, (void *)&name);
  return strstr(name, "ref") != NULL || strstr(name, "gemm") != NULL;
}

static dnnl_status_t adopt(rsi_onednn *t, piece *p, int result, dnnl_primitive_desc_t desc, const dnnl_query_t what[OPERANDS]) {
  if (is_slow(desc)) return dnnl_unimplemented;
  for (int i = 0; i < OPERANDS; i++) {
    operand *const o = &p->op[i];
    const md_ref used = dnnl_primitive_desc_query_md(desc, what[i], 0);
    if (used == NULL) return dnnl_runtime_error;
    DNNL_TRY(md_copy(&o->used, used));
    o->same = dnnl_memory_desc_equal(ref(&o->plain), ref(&o->used)) != 0;
    o->bytes = rsi_lane_round(dnnl_memory_desc_get_size(ref(&o->used)));
    if (!o->same) DNNL_TRY(make_reorder(t, o, i == result));
  }
  return primitive_of(desc, &p->conv, &p->pad, &p->pad_bytes);
}

/* The primitives of a piece. like: the layout that a shared operand must have, or NULL. */
static dnnl_status_t make_piece(rsi_onednn *t, const entry *e, dnnl_alg_kind_t algorithm, int64_t size, const md *like, piece *p) {
  static const dnnl_query_t forward[OPERANDS] = {dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md};
  static const dnnl_query_t data[OPERANDS] = {dnnl_query_diff_src_md, dnnl_query_weights_md, dnnl_query_diff_dst_md};
  static const dnnl_query_t weight[OPERANDS] = {dnnl_query_src_md, dnnl_query_diff_weights_md, dnnl_query_diff_dst_md};
  const rsi_conv_shape *const s = &e->key.s;
  const rsi_conv_kind kind = (rsi_conv_kind)e->key.kind;
  const window w = {.stride = {s->sh, s->sw}, .dilation = {s->dh - 1, s->dw - 1}, .before = {s->ph, s->pw},
                    .after = {(s->oh - 1) * s->sh + (s->kh - 1) * s->dh + 1 - s->h - s->ph,
                              (s->ow - 1) * s->sw + (s->kw - 1) * s->dw + 1 - s->w - s->pw}};
  const bool bias = e->key.bias != 0;
  md any[OPERANDS];
  memset(any, 0, sizeof any);
  dnnl_primitive_desc_t hint = NULL, desc = NULL;
  p->s = piece_shape(s, e->cut, size);
  dnnl_status_t status = dnnl_success;
  for (int i = 0; i < OPERANDS && status == dnnl_success; i++) {
    dnnl_dims_t dims, strides;
    const int n = layout(s, &p->s, i, dims, strides);
    status = md_strided(&p->op[i].plain, n, dims, strides);
    if (status == dnnl_success) status = like != NULL && i == e->shared ? md_copy(&any[i], ref(like)) : md_any(&any[i], n, dims);
  }
  if (status == dnnl_success && bias) {
    const dnnl_dims_t dims = {p->s.o}, strides = {1};
    status = md_strided(&p->bias, 1, dims, strides);
  }
  if (status == dnnl_success && kind != RSI_CONV_FORWARD)
    status = conv_desc(t->engine, t->attr, RSI_CONV_FORWARD, algorithm, any, NULL, &w, NULL, &hint);
  if (status == dnnl_success) status = conv_desc(t->engine, t->attr, kind, algorithm, any, bias ? &p->bias : NULL, &w, hint, &desc);
  if (status == dnnl_success)
    status = adopt(t, p, e->result, desc, kind == RSI_CONV_FORWARD ? forward : kind == RSI_CONV_DATA ? data : weight);
  if (desc) dnnl_primitive_desc_destroy(desc);
  if (hint) dnnl_primitive_desc_destroy(hint);
  for (int i = 0; i < OPERANDS; i++) md_free(&any[i]);
  return status;
}

static size_t lane_bytes(const entry *e, const piece *p) {
  size_t pad = p->pad_bytes, bytes = 0;
  for (int i = 0; i < OPERANDS; i++) {
    if (i != e->shared && !p->op[i].same) bytes += p->op[i].bytes;
    if (p->op[i].reorder_pad > pad) pad = p->op[i].reorder_pad;
  }
  return bytes + rsi_lane_round(pad);
}

static dnnl_status_t make_pieces(rsi_onednn *t, entry *e, dnnl_alg_kind_t algorithm) {
  const int64_t length = length_along(&e->key.s, e->cut), rest = length - (e->slices - 1) * e->size;
  e->shared = e->cut == BY_BATCH ? W : e->cut == BY_FILTER ? X : e->cut == BY_CHANNEL ? Y : -1;
  e->partial = e->shared == e->result && e->slices > 1;
  if (e->slices == 1) e->shared = -1;
  DNNL_TRY(make_piece(t, e, algorithm, e->size, NULL, &e->piece[0]));
  e->pieces = 1;
  if (rest != e->size) {
    const md *const like = e->shared >= 0 ? &e->piece[0].op[e->shared].used : NULL;
    DNNL_TRY(make_piece(t, e, algorithm, rest, like, &e->piece[1]));
    e->pieces = 2;
  }
  e->lane_bytes = 0, e->shared_bytes = 0;
  for (int i = 0; i < e->pieces; i++) {
    const size_t bytes = lane_bytes(e, &e->piece[i]);
    if (bytes > e->lane_bytes) e->lane_bytes = bytes;
  }
  if (e->shared >= 0) {
    const operand *const o = &e->piece[0].op[e->shared];
    if (e->partial) e->shared_bytes = (size_t)e->slices * o->bytes;
    else if (!o->same) e->shared_bytes = o->bytes;
    e->shared_bytes += rsi_lane_round(o->reorder_pad);
  }
  return dnnl_success;
}

/*
** Fills an entry for its key; usable only if all of it could be made. False when memory ran out, which says nothing about the
** shape: the layout of an entry, and with it the scratch it needs, must be a function of the shape alone.
*/
static bool make(rsi_onednn *t, entry *e) {
  dnnl_alg_kind_t algorithm;
  dnnl_status_t status;
  e->result = result_of((rsi_conv_kind)e->key.kind);
  choose(e, &algorithm);
  const int former = alone();
  for (;;) {
    status = make_pieces(t, e, algorithm);
    if (status == dnnl_success || status == dnnl_out_of_memory) break;
    piece_free(&e->piece[0]), piece_free(&e->piece[1]);
    if (algorithm == dnnl_convolution_winograd) algorithm = dnnl_convolution_direct;
    else if (e->slices > 1) e->cut = BY_BATCH, e->slices = 1, e->size = e->key.s.n;
    else break;
  }
  not_alone(former);
  e->usable = status == dnnl_success;
  return status != dnnl_out_of_memory;
}

/* ---- the table ------------------------------------------------------------------------------------------------------- */

static unsigned bucket_of(const key *k) {
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

static entry *find(rsi_onednn *t, const key *k, unsigned bucket) {
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

/* Takes a reference to the entry of a shape, made now if need be; NULL when there is no memory for it. */
static entry *take(rsi_onednn *t, rsi_conv_kind kind, const rsi_conv_shape *s, bool bias) {
  const key k = {kind, bias, *s};
  const unsigned bucket = bucket_of(&k);
  pthread_mutex_lock(&t->mutex);
  entry *e = find(t, &k, bucket);
  if (e == NULL) {
    pthread_mutex_unlock(&t->mutex);       /* making one takes long: others need not wait */
    entry *const fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL) return NULL;
    fresh->key = k;
    if (!make(t, fresh)) {
      entry_free(fresh);
      return NULL;
    }
    pthread_mutex_lock(&t->mutex);
    e = find(t, &k, bucket);
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

static void give(rsi_onednn *t, entry *e) {
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

/* ---- running --------------------------------------------------------------------------------------------------------- */

static dnnl_status_t memory_of(rsi_onednn *t, const md *d, dnnl_memory_t *out) {
  return dnnl_memory_create(out, ref(d), t->engine, DNNL_MEMORY_NONE);
}

static dnnl_status_t arguments_fill(rsi_onednn *t, const piece *p, bool bias, arguments *a) {
  for (int i = 0; i < OPERANDS; i++) {
    DNNL_TRY(memory_of(t, &p->op[i].plain, &a->plain[i]));
    if (p->op[i].same) continue;
    DNNL_TRY(memory_of(t, &p->op[i].used, &a->used[i]));
    if (p->op[i].reorder_pad > 0) DNNL_TRY(memory_of(t, &p->op[i].reorder_pad_md, &a->reorder_pad[i]));
  }
  if (bias) DNNL_TRY(memory_of(t, &p->bias, &a->bias));
  if (p->pad_bytes > 0) DNNL_TRY(memory_of(t, &p->pad, &a->pad));
  return dnnl_success;
}

/* An idle set of a piece, or a new one. */
static dnnl_status_t arguments_take(rsi_onednn *t, piece *p, bool bias, arguments **out) {
  pthread_mutex_lock(&t->mutex);
  arguments *a = p->idle;
  if (a != NULL) p->idle = a->next;
  pthread_mutex_unlock(&t->mutex);
  if (a == NULL) {
    a = calloc(1, sizeof *a);
    if (a == NULL) return dnnl_out_of_memory;
    const dnnl_status_t status = arguments_fill(t, p, bias, a);
    if (status != dnnl_success) {
      arguments_free(a);
      return status;
    }
  }
  *out = a;
  return dnnl_success;
}

static void arguments_give(rsi_onednn *t, piece *p, arguments *a) {
  pthread_mutex_lock(&t->mutex);
  a->next = p->idle, p->idle = a;
  pthread_mutex_unlock(&t->mutex);
}

/* One call of rsi_onednn_conv_run. */
typedef struct run {
  rsi_onednn *table;
  entry      *entry;
  float      *data[OPERANDS];
  const float *bias;
  char       *shared;            /* the shared operand in the primitive's layout, or the partial sums */
  _Atomic int status;            /* the first failure */
} run;

static dnnl_status_t reorder(run *r, const piece *p, arguments *a, int op, float *plain, void *used, void *pad) {
  const bool result = op == r->entry->result;
  DNNL_TRY(dnnl_memory_set_data_handle(a->plain[op], plain));
  DNNL_TRY(dnnl_memory_set_data_handle(a->used[op], used));
  dnnl_exec_arg_t args[3] = {{DNNL_ARG_FROM, result ? a->used[op] : a->plain[op]}, {DNNL_ARG_TO, result ? a->plain[op] : a->used[op]}};
  int n = 2;
  if (p->op[op].reorder_pad > 0) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->reorder_pad[op], pad));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, a->reorder_pad[op]};
  }
  return dnnl_primitive_execute(p->op[op].reorder, r->table->stream, n, args);
}

/* Slice number `task`: reorders what is its own, runs the primitive, reorders the result. */
static dnnl_status_t run_slice(run *r, piece *p, arguments *a, int64_t task, char *scratch) {
  static const int names[3][OPERANDS] = {[RSI_CONV_FORWARD] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
                                         [RSI_CONV_DATA] = {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST},
                                         [RSI_CONV_WEIGHT] = {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST}};
  const entry *const e = r->entry;
  const rsi_conv_shape *const s = &e->key.s;
  const int64_t at = task * e->size;
  dnnl_exec_arg_t args[OPERANDS + 2];
  float *plain[OPERANDS];
  char *used[OPERANDS], *next = scratch;
  int n = 0;
  for (int i = 0; i < OPERANDS; i++) {
    const operand *const o = &p->op[i];
    plain[i] = r->data[i] + offset_of(s, e->cut, i, at);
    if (i == e->shared && e->partial) used[i] = r->shared + (size_t)task * o->bytes;
    else if (o->same) used[i] = (char *)plain[i];
    else if (i == e->shared) used[i] = r->shared;
    else used[i] = next, next += o->bytes;
  }
  for (int i = 0; i < OPERANDS; i++) {
    const bool own = i != e->shared && i != e->result && !p->op[i].same;
    dnnl_memory_t const memory = p->op[i].same ? a->plain[i] : a->used[i];
    if (own) DNNL_TRY(reorder(r, p, a, i, plain[i], used[i], next));
    else DNNL_TRY(dnnl_memory_set_data_handle(memory, used[i]));
    args[n++] = (dnnl_exec_arg_t){names[e->key.kind][i], memory};
  }
  if (r->bias != NULL) {
    float *const bias = (float *)(uintptr_t)r->bias + bias_offset(s, e->cut, at);
    DNNL_TRY(dnnl_memory_set_data_handle(a->bias, bias));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, a->bias};
  }
  if (p->pad_bytes > 0) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->pad, next));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, a->pad};
  }
  DNNL_TRY(dnnl_primitive_execute(p->conv, r->table->stream, n, args));
  const int out = e->result;
  return p->op[out].same || e->partial ? dnnl_success : reorder(r, p, a, out, plain[out], used[out], next);
}

static void fail(run *r, dnnl_status_t status) {
  int none = dnnl_success;
  atomic_compare_exchange_strong(&r->status, &none, (int)status);
}

static void slice_task(void *arg, int64_t task, void *scratch) {
  run *const r = arg;
  const entry *const e = r->entry;
  if (atomic_load_explicit(&r->status, memory_order_relaxed) != dnnl_success) return;
  piece *const p = &r->entry->piece[e->pieces == 2 && task == e->slices - 1];
  arguments *a;
  const int former = alone();
  dnnl_status_t status = arguments_take(r->table, p, r->bias != NULL, &a);
  if (status == dnnl_success) {
    status = run_slice(r, p, a, task, scratch);
    arguments_give(r->table, p, a);
  }
  not_alone(former);
  if (status != dnnl_success) fail(r, status);
}

/* Reorders the shared operand before the slices run, or the sum of the partial results after them. */
static dnnl_status_t reorder_shared(run *r) {
  const entry *const e = r->entry;
  piece *const p = &r->entry->piece[0];
  const operand *const o = &p->op[e->shared];
  char *const pad = r->shared + e->shared_bytes - rsi_lane_round(o->reorder_pad);
  arguments *a;
  const int former = alone();
  dnnl_status_t status = arguments_take(r->table, p, r->bias != NULL, &a);
  if (status == dnnl_success) {
    status = reorder(r, p, a, e->shared, r->data[e->shared], r->shared, pad);
    arguments_give(r->table, p, a);
  }
  not_alone(former);
  return status;
}

/* Buffers are aligned and whole multiples of a group long. */
typedef float group __attribute__((vector_size(RSI_LANE_ALIGN), may_alias));
enum { SUM_GROUPS = 512 };

/* Adds the partial sums of some groups in the order of the slices, into the first or into the result. */
static void sum_chunk(void *arg, int64_t chunk) {
  const run *const r = arg;
  const entry *const e = r->entry;
  const size_t bytes = e->piece[0].op[e->shared].bytes, groups = bytes / sizeof(group);
  const size_t first = (size_t)chunk * SUM_GROUPS, last = first + SUM_GROUPS < groups ? first + SUM_GROUPS : groups;
  group *const sum = (group *)(void *)r->shared;
  for (int64_t i = 1; i < e->slices; i++) {
    const group *const part = (const group *)(const void *)(r->shared + (size_t)i * bytes);
    for (size_t k = first; k < last; k++) sum[k] += part[k];
  }
}

static void sum_partials(run *r, rsi_pool *pool) {
  const entry *const e = r->entry;
  const operand *const o = &e->piece[0].op[e->shared];
  const size_t groups = o->bytes / sizeof(group);
  rsi_pool_run(pool, (int64_t)((groups + SUM_GROUPS - 1) / SUM_GROUPS), sum_chunk, r);
  if (o->same) memcpy(r->data[e->shared], r->shared, dnnl_memory_desc_get_size(ref(&o->used)));
  else {
    const dnnl_status_t status = reorder_shared(r);
    if (status != dnnl_success) fail(r, status);
  }
}

bool rsi_onednn_available(void) { return true; }

bool rsi_onednn_conv_accepts(rsi_onednn *t, rsi_conv_kind kind, const rsi_conv_shape *s, bool bias) {
  if (s->n == 0 || s->o == 0 || s->c == 0) return false;
  entry *const e = take(t, kind, s, bias);
  if (e == NULL) return false;
  const bool usable = e->usable;
  give(t, e);
  return usable;
}

size_t rsi_onednn_conv_scratch(rsi_onednn *t, rsi_conv_kind kind, const rsi_conv_shape *s, bool bias, int threads) {
  entry *const e = take(t, kind, s, bias);
  if (e == NULL) return 0;       /* the run will not find it either */
  const size_t bytes = e->shared_bytes + (size_t)rsi_lane_count(threads, e->slices) * e->lane_bytes;
  give(t, e);
  return bytes;
}

rs_status rsi_onednn_conv_run(const rsi_exec *x, rsi_conv_kind kind, const rsi_conv_shape *s, const float *a, const float *b,
                              const float *bias, float *out, void *scratch) {
  RSI_CHECK(x->onednn != NULL, RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  entry *const e = take(x->onednn, kind, s, bias != NULL);
  RSI_CHECK(e != NULL, RS_ERR_NOMEM, "out of memory: no room for a oneDNN primitive");
  run r = {.table = x->onednn, .entry = e, .bias = bias, .shared = scratch};
  float *const in[2] = {(float *)(uintptr_t)a, (float *)(uintptr_t)b};
  r.data[kind == RSI_CONV_DATA ? Y : X] = in[0];
  r.data[kind == RSI_CONV_WEIGHT ? Y : W] = in[1];
  r.data[e->result] = out;
  dnnl_status_t status = e->usable ? dnnl_success : dnnl_unimplemented;
  if (scratch == NULL && e->shared_bytes + e->lane_bytes > 0) status = dnnl_out_of_memory;   /* there was none to find its size */
  if (status == dnnl_success && e->shared >= 0 && !e->partial && !e->piece[0].op[e->shared].same) status = reorder_shared(&r);
  if (status == dnnl_success) {
    rsi_lanes_run(x->pool, rsi_lane_count(rsi_pool_threads(x->pool), e->slices), e->slices, slice_task, &r,
                  (char *)scratch + e->shared_bytes, e->lane_bytes);
    if (e->partial && r.status == dnnl_success) sum_partials(&r, x->pool);
    status = (dnnl_status_t)r.status;
  }
  give(x->onednn, e);
  if (status == dnnl_success) return RS_OK;
  return rsi_fail(status == dnnl_out_of_memory ? RS_ERR_NOMEM : RS_ERR_UNSUPPORTED, "oneDNN failed with status %d", (int)status);
}

#else

bool rsi_onednn_available(void) { return false; }

rs_status rsi_onednn_create(rsi_onednn **out) {
  *out = NULL;
  return RS_OK;
}

void rsi_onednn_destroy(rsi_onednn *t) { (void)t; }

bool rsi_onednn_conv_accepts(rsi_onednn *t, rsi_conv_kind kind, const rsi_conv_shape *s, bool bias) {
  (void)t, (void)kind, (void)s, (void)bias;
  return false;
}

size_t rsi_onednn_conv_scratch(rsi_onednn *t, rsi_conv_kind kind, const rsi_conv_shape *s, bool bias, int threads) {
  (void)t, (void)kind, (void)s, (void)bias, (void)threads;
  return 0;
}

rs_status rsi_onednn_conv_run(const rsi_exec *x, rsi_conv_kind kind, const rsi_conv_shape *s, const float *a, const float *b,
                              const float *bias, float *out, void *scratch) {
  (void)x, (void)kind, (void)s, (void)a, (void)b, (void)bias, (void)out, (void)scratch;
  return rsi_fail(RS_ERR_UNSUPPORTED, "oneDNN is not built in");
}

#endif
