/* Convolutions by oneDNN: the slices of an entry (onednn.h) run by our pool, and weights packed for them. */
#include "backend/onednn.h"
#include <string.h>

#ifdef RSI_WITH_ONEDNN

#include "base/lanes.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include <math.h>
#include <stdlib.h>

/* One call. */
typedef struct run {
  const rsi_exec *x;
  rsi_onednn *table;
  entry      *entry;
  char       *data[OPERANDS];
  const char *bias, *residual;
  int64_t     act;
  char       *shared;            /* the shared operand in the primitive's layout, or the partial sums */
  _Atomic int status;            /* the first failure */
} run;

static void fail(run *r, dnnl_status_t status) {
  int none = dnnl_success;
  atomic_compare_exchange_strong(&r->status, &none, (int)status);
}

static piece *piece_of(entry *e, int64_t task) {
  return &e->piece[task == 0 ? 0 : task == e->slices - 1 ? e->last : e->middle];
}

/* ---- where slices lie ------------------------------------------------------------------------------------------------ */

/* Elements from the first of an image of blocks of `block` to channel c, which begins a block or lies in the only one. */
static int64_t channel_offset(int64_t c, int64_t channels, int64_t block, int64_t pixels) {
  return block >= channels ? c : c * pixels;
}

/* Bytes from the start of an operand of the whole to the slice that begins at `at`. */
static size_t offset_of(const entry *e, int op, int64_t at) {
  const rsi_conv_call *const k = &e->key;
  const rsi_conv_shape *const s = &k->s;
  const int64_t taps = s->kh * s->kw, group_c = s->c / s->groups, group_o = s->o / s->groups;
  if (op == W) {
    const int64_t n = e->cut == BY_FILTER ? at * group_c * taps : e->cut == BY_CHANNEL ? at * taps
                      : e->cut == BY_GROUP ? at * group_o * group_c * taps : 0;
    return (size_t)n * sizeof(float);
  }
  const bool x = op == X;
  const int64_t channels = x ? s->c : s->o, block = x ? k->x_block : k->y_block, width = x ? s->w : s->ow;
  const int64_t pixels = width * (x ? s->h : s->oh), blocks = (channels + block - 1) / block;
  int64_t n = 0;
  switch (e->cut) {
    case BY_BATCH:   n = at * blocks * block * pixels; break;
    case BY_FILTER:  n = x ? 0 : channel_offset(at, channels, block, pixels); break;
    case BY_CHANNEL: n = x ? channel_offset(at, channels, block, pixels) : 0; break;
    case BY_GROUP:   n = channel_offset(at * (x ? group_c : group_o), channels, block, pixels); break;
    case BY_ROWS: {
      const int64_t first = at * s->sh - s->ph;
      n = (x ? (first > 0 ? first : 0) : at) * width * block;
    }
  }
  return (size_t)n * ((x ? k->x_dtype : k->y_dtype) == RS_BF16 ? 2u : 4u);
}

static size_t bias_offset(const entry *e, int64_t at) {
  const rsi_conv_shape *const s = &e->key.s;
  return (size_t)(e->cut == BY_FILTER ? at : e->cut == BY_GROUP ? at * (s->o / s->groups) : 0) * sizeof(float);
}

/* ---- running a slice ------------------------------------------------------------------------------------------------- */

/* Between the two layouts of an operand: `given` to `used`, or back for a result. */
static dnnl_status_t reorder(const run *r, const piece *p, arguments *a, int op, bool result, void *given, void *used, void *pad) {
  DNNL_TRY(dnnl_memory_set_data_handle(a->given[op], given));
  DNNL_TRY(dnnl_memory_set_data_handle(a->used[op], used));
  dnnl_exec_arg_t args[3] = {{DNNL_ARG_FROM, result ? a->used[op] : a->given[op]}, {DNNL_ARG_TO, result ? a->given[op] : a->used[op]}};
  int n = 2;
  if (p->op[op].reorder_pad > 0) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->reorder_pad[op], pad));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, a->reorder_pad[op]};
  }
  return dnnl_primitive_execute(p->op[op].reorder, r->table->stream, n, args);
}

/* Puts the residual where the convolution adds its sums. */
static dnnl_status_t lay_residual(const run *r, const piece *p, arguments *a, int64_t at, char *given, char *used, void *pad) {
  const char *const residual = r->residual + offset_of(r->entry, Y, at);
  if (!p->op[Y].same) return reorder(r, p, a, R, false, (char *)(uintptr_t)residual, used, pad);
  if (residual != given) memcpy(given, residual, dnnl_memory_desc_get_size(ref(&p->op[Y].used)));
  return dnnl_success;
}

/* Eight bf16: what is below 0 becomes 0, what is above 6 becomes 6 (act RELU6), a NaN stays. */
typedef int16_t halves __attribute__((vector_size(16), aligned(2), may_alias));
enum { HALVES = 8, HALF_INFINITY = 0x7f80, HALF_SIX = 0x40c0 };

static inline halves activated(halves v, int16_t most) {
  const halves number = (v & 0x7fff) <= (int16_t)HALF_INFINITY, over = number & (v > most);
  v = (v & ~over) | (most & over);
  return v & ~(number & (v < 0));
}

static void activate_bf16(int64_t n, char *at, int64_t act) {
  const int16_t most = act == RSI_CONV_RELU6 ? HALF_SIX : HALF_INFINITY;
  int64_t i = 0;
  for (; i + HALVES <= n; i += HALVES) {
    halves *const v = (halves *)(void *)at + i / HALVES;
    *v = activated(*v, most);
  }
  halves rest = {0};
  memcpy(&rest, at + 2 * i, (size_t)(2 * (n - i)));
  rest = activated(rest, most);
  memcpy(at + 2 * i, &rest, (size_t)(2 * (n - i)));
}

/*
** ReLU or ReLU6 of a slice of y, from `at` on, while it is in the cache. oneDNN's own make a number of a NaN. y: [n, blocks, oh, ow, block];
** a slice has some images, blocks or rows of it, or in NHWC some channels.
*/
static void activate(const run *r, const piece *p, char *at) {
  const rsi_conv_call *const k = &r->entry->key;
  const int64_t block = k->y_block, plane = k->s.oh * k->s.ow * block, part = p->s.oh * k->s.ow * block, blocks = (k->s.o + block - 1) / block;
  const int64_t mine = (p->s.o + block - 1) / block;
  int64_t outer = p->s.n, outer_step = blocks * plane, inner = mine, inner_step = plane, n = part;
  if (block >= k->s.o && p->s.o < k->s.o) inner = p->s.oh * k->s.ow, inner_step = block, n = p->s.o;
  else if (part == plane) n *= inner, inner = 1;
  if (inner == 1 && n == outer_step) n *= outer, outer = 1;
  const rsi_row_fn clamp = r->x->k->elementwise->unary[RSI_U_CLAMP][RS_F32];
  const double range[2] = {0, r->act == RSI_CONV_RELU6 ? 6 : (double)INFINITY};
  for (int64_t i = 0; i < outer; i++)
    for (int64_t j = 0; j < inner; j++) {
      char *const y = at + (i * outer_step + j * inner_step) * (k->y_dtype == RS_BF16 ? 2 : 4);
      if (k->y_dtype == RS_BF16) activate_bf16(n, y, r->act);
      else clamp(n, (char *const[]){y, y}, (const int64_t[]){sizeof(float), sizeof(float)}, range);
    }
}

/* Slice number `task`: reorders what is its own, runs the primitive, reorders the result. */
static dnnl_status_t run_slice(run *r, piece *p, arguments *a, int64_t task, char *scratch) {
  static const int names[3][OPERANDS] = {[RSI_CONV_FORWARD] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
                                         [RSI_CONV_DATA] = {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST},
                                         [RSI_CONV_WEIGHT] = {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST}};
  const entry *const e = r->entry;
  const int64_t at = task * e->size;
  const int out = e->result;
  const bool packed = e->key.packed != 0;
  dnnl_exec_arg_t args[OPERANDS + 3];
  char *given[OPERANDS], *used[OPERANDS], *next = scratch;
  int n = 0;
  for (int i = 0; i < OPERANDS; i++) {
    const operand *const o = &p->op[i];
    given[i] = r->data[i] + (i == W && packed ? 0 : offset_of(e, i, at));
    if (i == W && packed) used[i] = given[i] + (e->shared == W ? 0 : (size_t)task * e->piece[0].op[W].bytes);
    else if (i == e->shared && e->partial) used[i] = r->shared + (size_t)task * o->bytes;
    else if (o->same) used[i] = given[i];
    else if (i == e->shared) used[i] = r->shared;
    else used[i] = next, next += o->bytes;
  }
  for (int i = 0; i < OPERANDS; i++) {
    const bool own = i != e->shared && i != out && !p->op[i].same && !(i == W && packed);
    if (own) DNNL_TRY(reorder(r, p, a, i, false, given[i], used[i], next));
    else DNNL_TRY(dnnl_memory_set_data_handle(a->used[i], used[i]));
    args[n++] = (dnnl_exec_arg_t){names[e->key.kind][i], a->used[i]};
  }
  if (e->apart) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->used[R], (char *)(uintptr_t)r->residual + offset_of(e, Y, at)));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, a->used[R]};
  } else if (r->residual != NULL) {
    DNNL_TRY(lay_residual(r, p, a, at, given[Y], used[Y], next));
    DNNL_TRY(dnnl_memory_set_data_handle(a->used[Y], used[Y]));
  }
  if (r->bias != NULL) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->bias, (char *)(uintptr_t)r->bias + bias_offset(e, at)));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, a->bias};
  }
  if (p->pad_bytes > 0) {
    DNNL_TRY(dnnl_memory_set_data_handle(a->pad, next));
    args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, a->pad};
  }
  DNNL_TRY(dnnl_primitive_execute(p->conv, r->table->stream, n, args));
  if (!p->op[out].same && !e->partial) DNNL_TRY(reorder(r, p, a, out, true, given[out], used[out], next));
  if (r->act != RSI_CONV_NO_ACT) activate(r, p, given[out]);
  return dnnl_success;
}

static void slice_task(void *arg, int64_t task, void *scratch) {
  run *const r = arg;
  if (atomic_load_explicit(&r->status, memory_order_relaxed) != dnnl_success) return;
  piece *const p = piece_of(r->entry, task);
  arguments *a;
  dnnl_status_t status;
  const int former = rsi_onednn_alone();
  if (r->entry->unfolded) status = rsi_onednn_unfold_slice(r->table, r->entry, task, r->data[X], r->data[W], r->data[Y], scratch);
  else if ((status = rsi_onednn_arguments(r->table, p, &a)) == dnnl_success) {
    status = run_slice(r, p, a, task, scratch);
    rsi_onednn_arguments_back(r->table, p, a);
  }
  rsi_onednn_not_alone(former);
  if (status != dnnl_success) fail(r, status);
}

/* ---- the shared operand ---------------------------------------------------------------------------------------------- */

/* Reorders all of it, or part `i` of it: before the slices run, or the sum of the partial results after them. */
static void reorder_shared(run *r, piece *p, int64_t i) {
  const entry *const e = r->entry;
  const bool part = p == &e->part;
  char *const given = r->data[e->shared] + (part ? (size_t)i * e->part_given : 0);
  char *const used = r->shared + (part ? (size_t)i * e->part_used : 0);
  char *const pad = r->shared + e->shared_bytes - rsi_lane_round(p->op[e->shared].reorder_pad);
  arguments *a;
  const int former = rsi_onednn_alone();
  dnnl_status_t status = rsi_onednn_arguments(r->table, p, &a);
  if (status == dnnl_success) {
    status = reorder(r, p, a, e->shared, e->partial, given, used, pad);
    rsi_onednn_arguments_back(r->table, p, a);
  }
  rsi_onednn_not_alone(former);
  if (status != dnnl_success) fail(r, status);
}

static void shared_task(void *arg, int64_t i) {
  run *const r = arg;
  reorder_shared(r, &r->entry->part, i);
}

static void prepare_shared(run *r, rsi_pool *pool) {
  entry *const e = r->entry;
  if (e->parts > 1) rsi_pool_run(pool, e->parts, shared_task, r);
  else reorder_shared(r, &e->piece[0], 0);
}

/* Buffers are aligned and whole multiples of a group long. */
typedef float group __attribute__((vector_size(RSI_LANE_ALIGN), may_alias));
enum { SUM_GROUPS = 512 };

/* Adds `bytes` of the partial sums from `from` on in the order of the slices, into the first. */
static void sum_range(const run *r, size_t from, size_t bytes) {
  const entry *const e = r->entry;
  const size_t each = e->piece[0].op[e->shared].bytes, groups = bytes / sizeof(group);
  group *const sum = (group *)(void *)(r->shared + from);
  for (int64_t i = 1; i < e->slices; i++) {
    const group *const part = (const group *)(const void *)(r->shared + from + (size_t)i * each);
    for (size_t k = 0; k < groups; k++) sum[k] += part[k];
  }
}

static void sum_chunk(void *arg, int64_t chunk) {
  const run *const r = arg;
  const size_t bytes = r->entry->piece[0].op[r->entry->shared].bytes, each = SUM_GROUPS * sizeof(group), from = (size_t)chunk * each;
  sum_range(r, from, from + each <= bytes ? each : bytes - from);
}

/* A part is summed and given back while it is in the cache. */
static void sum_part(void *arg, int64_t i) {
  run *const r = arg;
  sum_range(r, (size_t)i * r->entry->part_used, r->entry->part_used);
  reorder_shared(r, &r->entry->part, i);
}

static void sum_partials(run *r, rsi_pool *pool) {
  const entry *const e = r->entry;
  const operand *const o = &e->piece[0].op[e->shared];
  if (e->parts > 1 && e->part_used % sizeof(group) == 0) {
    rsi_pool_run(pool, e->parts, sum_part, r);
    return;
  }
  const size_t each = SUM_GROUPS * sizeof(group);
  rsi_pool_run(pool, (int64_t)((o->bytes + each - 1) / each), sum_chunk, r);
  if (o->same) memcpy(r->data[e->shared], r->shared, dnnl_memory_desc_get_size(ref(&o->used)));
  else reorder_shared(r, &r->entry->piece[0], 0);
}

/* ---- calls ----------------------------------------------------------------------------------------------------------- */

static bool is_known(int64_t dtype) { return dtype == RS_F32 || dtype == RS_BF16; }

static bool is_usable(rsi_onednn *t, const rsi_conv_call *k) {
  if (k->s.n == 0 || k->s.o == 0 || k->s.c == 0 || !is_known(k->x_dtype) || !is_known(k->y_dtype)) return false;
  entry *const e = rsi_onednn_take(t, k);
  if (e == NULL) return false;
  const bool usable = e->usable;
  rsi_onednn_give(t, e);
  return usable;
}

/* oneDNN 2.6's gradient of a weight in bf16 is garbage when filters are dilated and the channels do not fill blocks of 16. */
static bool is_broken(const rsi_conv_call *k) {
  return k->kind == RSI_CONV_WEIGHT && k->x_dtype == RS_BF16 && (k->s.dh > 1 || k->s.dw > 1) && k->s.c % 16 != 0;
}

bool rsi_onednn_conv_accepts(rsi_onednn *t, const rsi_conv_call *k) { return !is_broken(k) && is_usable(t, k); }

static size_t scratch_of(rsi_onednn *t, const rsi_conv_call *k, int threads) {
  entry *const e = rsi_onednn_take(t, k);
  if (e == NULL) return 0;       /* the run will not find it either */
  const size_t bytes = e->shared_bytes + (size_t)rsi_lane_count(threads, e->slices) * e->lane_bytes;
  rsi_onednn_give(t, e);
  return bytes;
}

/* Enough wherever the residual will lie: a program is planned before anyone knows. */
size_t rsi_onednn_conv_scratch(rsi_onednn *t, const rsi_conv_call *k, int threads) {
  const size_t bytes = scratch_of(t, k, threads);
  if (!k->residual) return bytes;
  rsi_conv_call other = *k;
  other.residual = k->residual == RSI_CONV_APART ? RSI_CONV_IN_PLACE : RSI_CONV_APART;
  const size_t more = scratch_of(t, &other, threads);
  return bytes > more ? bytes : more;
}

static rs_status finish(rsi_onednn *t, entry *e, dnnl_status_t status) {
  rsi_onednn_give(t, e);
  if (status == dnnl_success) return RS_OK;
  return rsi_fail(status == dnnl_out_of_memory ? RS_ERR_NOMEM : RS_ERR_UNSUPPORTED, "oneDNN failed with status %d", (int)status);
}

/* Copies of the filters: one for all slices, or one for each. Behind them are zeros, the bias of a call without one: oneDNN chooses
   another form, with another layout, where there is no bias. */
static int64_t copies(const entry *e) { return e->shared == W ? 1 : e->slices; }
static size_t packed_bytes(const entry *e) { return (size_t)copies(e) * e->piece[0].op[W].bytes; }

rs_status rsi_onednn_conv_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  RSI_CHECK(x->onednn != NULL, RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  entry *const e = rsi_onednn_take(x->onednn, k);
  RSI_CHECK(e != NULL, RS_ERR_NOMEM, "out of memory: no room for a oneDNN primitive");
  if (!e->usable) return finish(x->onednn, e, dnnl_unimplemented);
  if (scratch == NULL && e->shared_bytes + e->lane_bytes > 0)
    return finish(x->onednn, e, dnnl_out_of_memory);                   /* there was none to find its size */
  run r = {.x = x, .table = x->onednn, .entry = e, .data = {data->x, data->w, data->y}, .bias = data->bias,
           .residual = data->residual, .act = k->act, .shared = scratch};
  if (k->packed && r.bias == NULL) r.bias = (const char *)data->w + packed_bytes(e);
  const bool packed_shared = e->shared == W && k->packed;
  if (e->shared >= 0 && !e->partial && !packed_shared && !e->piece[0].op[e->shared].same) prepare_shared(&r, x->pool);
  if (r.status == dnnl_success)
    rsi_lanes_run(x->pool, rsi_lane_count(rsi_pool_threads(x->pool), e->slices), e->slices, slice_task, &r,
                  (char *)scratch + e->shared_bytes, e->lane_bytes);
  if (e->partial && r.status == dnnl_success) sum_partials(&r, x->pool);
  return finish(x->onednn, e, (dnnl_status_t)r.status);
}

/* ---- packed weights -------------------------------------------------------------------------------------------------- */

size_t rsi_onednn_pack_bytes(rsi_onednn *t, const rsi_conv_call *k, uint64_t *layout) {
  if (!is_usable(t, k)) return 0;
  entry *const e = rsi_onednn_take(t, k);
  if (e == NULL) return 0;
  const piece *const p = &e->piece[0];
  const rsi_conv_shape *const s = &k->s;
  const uint64_t parts[] = {p->name, (uint64_t)e->cut, (uint64_t)e->size, (uint64_t)e->slices, p->op[W].bytes, (uint64_t)s->o,
                            (uint64_t)s->c, (uint64_t)s->groups, (uint64_t)s->kh, (uint64_t)s->kw};
  uint64_t h = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) h = (h ^ parts[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
  *layout = h;
  const size_t bytes = packed_bytes(e) + sizeof(float) * (size_t)s->o;
  rsi_onednn_give(t, e);
  return bytes;
}

rs_status rsi_onednn_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed) {
  RSI_CHECK(x->onednn != NULL, RS_ERR_UNSUPPORTED, "this was prepared for oneDNN, which is not there");
  entry *const e = rsi_onednn_take(x->onednn, k);
  RSI_CHECK(e != NULL, RS_ERR_NOMEM, "out of memory: no room for a oneDNN primitive");
  if (!e->usable) return finish(x->onednn, e, dnnl_unimplemented);
  const run r = {.table = x->onednn, .entry = e};
  dnnl_status_t status = dnnl_success;
  const int former = rsi_onednn_alone();
  memset((char *)packed + packed_bytes(e), 0, sizeof(float) * (size_t)k->s.o);
  for (int64_t i = 0; i < copies(e) && status == dnnl_success; i++) {
    piece *const p = piece_of(e, i);
    const operand *const o = &p->op[W];
    char *const given = (char *)(uintptr_t)weight + offset_of(e, W, i * e->size);
    char *const used = (char *)packed + (size_t)i * e->piece[0].op[W].bytes;
    arguments *a;
    if (o->same) {
      memcpy(used, given, dnnl_memory_desc_get_size(ref(&o->used)));
      continue;
    }
    void *const pad = o->reorder_pad > 0 ? malloc(o->reorder_pad) : NULL;      /* packing is rare */
    status = o->reorder_pad > 0 && pad == NULL ? dnnl_out_of_memory : rsi_onednn_arguments(x->onednn, p, &a);
    if (status == dnnl_success) {
      status = reorder(&r, p, a, W, false, given, used, pad);
      rsi_onednn_arguments_back(x->onednn, p, a);
    }
    free(pad);
  }
  rsi_onednn_not_alone(former);
  return finish(x->onednn, e, status);
}

int64_t rsi_onednn_block(int dtype, int64_t channels) {
  const rsi_isa_level isa = rsi_cpu_best();
  if (dtype == RS_BF16) {
    const dnnl_cpu_isa_t best = dnnl_get_effective_cpu_isa();
    return best == dnnl_cpu_isa_avx512_core_amx ? channels : 0;
  }
  return isa == RSI_ISA_AVX512 ? 16 : isa == RSI_ISA_AVX2 ? 8 : 0;
}

#else

bool rsi_onednn_conv_accepts(rsi_onednn *t, const rsi_conv_call *k) {
  (void)t, (void)k;
  return false;
}

size_t rsi_onednn_conv_scratch(rsi_onednn *t, const rsi_conv_call *k, int threads) {
  (void)t, (void)k, (void)threads;
  return 0;
}

rs_status rsi_onednn_conv_run(const rsi_exec *x, const rsi_conv_call *k, const rsi_conv_data *data, void *scratch) {
  (void)x, (void)k, (void)data, (void)scratch;
  return rsi_fail(RS_ERR_UNSUPPORTED, "oneDNN is not built in");
}

size_t rsi_onednn_pack_bytes(rsi_onednn *t, const rsi_conv_call *k, uint64_t *layout) {
  (void)t, (void)k, (void)layout;
  return 0;
}

rs_status rsi_onednn_pack_run(const rsi_exec *x, const rsi_conv_call *k, const float *weight, void *packed) {
  (void)x, (void)k, (void)weight, (void)packed;
  return rsi_fail(RS_ERR_UNSUPPORTED, "oneDNN is not built in");
}

int64_t rsi_onednn_block(int dtype, int64_t channels) {
  (void)dtype, (void)channels;
  return 0;
}

#endif
