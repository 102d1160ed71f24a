/*
** Scaled dot-product attention: softmax(scale q k^T + mask) v for each entry of the leading dimensions ("head").
**
** The matrix of scores never exists. A block of rows of q meets one block of columns after the other; each row keeps the largest
** score so far and the sum of the exponentials, and what was added up before is multiplied by the factor that a new largest score
** asks for (online softmax: Milakov, Gimelshein 2018; Dao and others 2022). With few columns there is one block, and that is the
** plain form. Kept for the gradient: the result and log(sum(exp(score))) of each row, from which the weights are made again.
**
** Dropout acts on the weights. Pair (i, j) of head h uses word j % 4 of Philox block counter + (h Tq + i) ceil(Tk / 4) + j / 4, so
** the gradient makes the same mask from output 2, {key, counter}.
**
** Work is shared out by heads; where these are few, also by groups of rows. In the gradient each group sums dk and dv on its own,
** and the sums are added in their order. Both follow from the shape alone.
*/
#include "ops/attention_amx.h"
#include <math.h>
#include <string.h>

RSI_ATTRS(scaled_dot_product_attention, RSI_ATTENTION_ATTRS)
typedef scaled_dot_product_attention_attrs attention_attrs;

#define BACKWARD_ATTRS(F, T)                                                                                                \
  RSI_ATTENTION_ATTRS(F, T)                                                                                                 \
  F(T, BOOL, mask_grad, 0, 0, 1, NULL, "the gradient of the mask is wanted too")                                            \
  F(T, DTYPE, dtype, -1, -1, RS_DTYPES - 1, NULL, "the dtype of the gradients; not given: that of q")
RSI_ATTRS(attention_backward, BACKWARD_ATTRS)

enum { Q = RSI_ATTENTION_Q, K = RSI_ATTENTION_K, V = RSI_ATTENTION_V, MASK = RSI_ATTENTION_MASK };

enum {
  ROWS = 64, CAUSAL_ROWS = 32,   /* of a block; causal: it computes the columns that its last row sees, so fewer rows waste less */
  WHOLE_COLUMNS = 512, COLUMNS = 256,   /* up to so many columns are one block; otherwise blocks of these (multiples of 4) */
  FEW_ROWS = 8,                  /* up to here k is read as it is, above it is turned around first */
  PAD = 16,                      /* elements between the rows of a turned matrix, so that they do not share cache sets */
  SLOTS = 16,                    /* parts of a call, each with scratch of its own */
  MANY_HEADS = 16, GROUP_NS = 60000
};

/* ---- the plan -------------------------------------------------------------------------------------------------------- */

typedef struct operand {
  char   *data;                  /* NULL: not given */
  int64_t rs, cs;                /* strides of rows and columns */
  int64_t lead[RS_MAX_DIMS];     /* of the leading dimensions; 0 where it is repeated */
} operand;

typedef struct plan {
  const rsi_exec            *x;
  const rsi_attention_loops *k;
  const attention_attrs     *a;
  int      dtype, nlead, mask_kind;
  size_t   item;
  int64_t  lead[RS_MAX_DIMS], heads, tq, tk, d, dv;
  operand  q, key, v, mask, o, lse, g, gq, gk, gv, gmask;
  int64_t  rows, columns;        /* of a block */
  int64_t  groups;               /* of rows, for each head */
  int64_t  slots;
  double   work;                 /* nanoseconds of a slot, about */
  bool     turned;               /* k (and v, in the gradient) is copied to [d, tk] with row stride tk + PAD */
  uint64_t key_word, counter;    /* of the generator */
  uint32_t keep;
  double   factor;               /* 1 / (1 - p) */
  /* scratch of a slot, in bytes; `partial` holds the sums of dk and dv of each head and group, when there are several */
  size_t   kt_bytes, vt_bytes, tile_bytes, room_bytes, row_bytes, word_bytes, slot_bytes;
  char    *scratch, *partial;
} plan;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
static size_t whole(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* How t is read for each head; `inner` last dimensions (2, or 1 for one value per row) are not leading ones. */
static void read_operand(const plan *p, const rs_tensor *t, int inner, operand *out) {
  const int lead = t->ndim - inner;
  *out = (operand){.data = t->data};
  out->rs = inner == 2 ? (t->shape[lead] == 1 ? 0 : t->strides[lead]) : t->strides[t->ndim - 1];
  out->cs = inner == 2 ? (t->shape[lead + 1] == 1 && p->tk != 1 ? 0 : t->strides[lead + 1]) : 0;
  for (int i = 0; i < lead; i++) out->lead[p->nlead - lead + i] = t->shape[i] == 1 ? 0 : t->strides[i];
}

/* A vector of one element may have any stride; products want 1. */
static void read_matrix(const plan *p, const rs_tensor *t, operand *out) {
  read_operand(p, t, 2, out);
  out->cs = t->shape[t->ndim - 1] == 1 ? 1 : t->strides[t->ndim - 1];
}

static char *at_head(const plan *p, const operand *t, int64_t head) {
  int64_t offset = 0;
  if (!t->data) return NULL;
  for (int i = p->nlead - 1; i >= 0; head /= p->lead[i--]) offset += head % p->lead[i] * t->lead[i];
  return t->data + offset * (int64_t)p->item;
}

static inline char *offset(const plan *p, const void *base, int64_t elements) {
  return (char *)(uintptr_t)base + elements * (int64_t)p->item;
}

/* Shapes and the cut, from descriptors alone: `o` is the shape of the result. */
static void make_plan(plan *p, const rsi_call *c, int first, const rsi_desc *o, const void *attrs, bool backward) {
  const rs_tensor *const q = c->in[first], *const k = c->in[first + 1];
  *p = (plan){.x = c->x, .k = c->x->k->attention->of[q->dtype], .a = attrs, .dtype = q->dtype, .item = rsi_item_size(q),
              .nlead = o->ndim - 2, .heads = 1, .tq = o->shape[o->ndim - 2], .dv = o->shape[o->ndim - 1],
              .tk = k->shape[k->ndim - 2], .d = k->shape[k->ndim - 1]};
  for (int i = 0; i < p->nlead; i++) p->lead[i] = o->shape[i], p->heads *= o->shape[i];
  const double mac = p->x->k->level == RSI_ISA_AVX512 ? 0.012 : p->x->k->level == RSI_ISA_AVX2 ? 0.02 : 0.05;
  const double pairs = (double)p->tq * (double)p->tk * (p->a->is_causal ? 0.5 : 1.0) * (p->dtype == RS_F64 ? 2.0 : 1.0);
  const double ns = pairs * (mac * (double)(p->d + p->dv) * (backward ? 2.5 : 1.0) + 1.0) + 200.0;   /* of a head */
  p->rows = larger(1, smaller(p->tq, p->a->is_causal ? CAUSAL_ROWS : ROWS));
  p->columns = p->tk <= (backward ? COLUMNS : WHOLE_COLUMNS) ? larger(p->tk, 1) : COLUMNS;
  p->groups = 1;
  if (p->heads > 0 && p->heads < MANY_HEADS && ns * (double)p->heads > 2.0 * GROUP_NS) {
    const int64_t most = smaller(parts(MANY_HEADS, p->heads), (int64_t)(ns * (double)p->heads / GROUP_NS));
    p->groups = larger(1, smaller(most, parts(p->tq, p->rows)));
  }
  p->slots = larger(1, smaller(p->heads * p->groups, SLOTS));
  p->work = ns * (double)p->heads / (double)p->slots;
  if (p->work * (double)p->slots < 2.0 * GROUP_NS) p->slots = 1, p->work = 0;
  p->turned = backward || p->tq > FEW_ROWS;
  const rsi_k_gemm *const gemm = p->x->k->gemm;
  p->kt_bytes = p->turned ? whole((size_t)(p->d * (p->tk + PAD)) * p->item) : 0;
  p->vt_bytes = backward ? whole((size_t)(p->dv * (p->tk + PAD)) * p->item) : 0;
  p->tile_bytes = whole((size_t)(p->rows * p->columns) * p->item);
  const int64_t products[][3] = {{p->rows, p->columns, p->d}, {p->rows, p->dv, p->columns}, {p->columns, p->dv, p->rows},
                                 {p->rows, p->columns, p->dv}, {p->rows, p->d, p->columns}, {p->columns, p->d, p->rows}};
  for (int i = 0; i < (backward ? 6 : 2); i++) {
    const size_t bytes = whole(gemm->scratch(products[i][0], products[i][1], products[i][2], p->item));
    if (bytes > p->room_bytes) p->room_bytes = bytes;
  }
  p->row_bytes = whole((size_t)p->rows * p->item);
  p->word_bytes = p->a->dropout_p > 0 ? whole((size_t)(p->columns + 3) * sizeof(uint32_t)) : 0;
  p->slot_bytes = p->kt_bytes + p->vt_bytes + p->tile_bytes * (!backward ? 1 : p->a->dropout_p > 0 ? 3 : 2) + p->room_bytes +
                  3 * p->row_bytes + p->word_bytes;
  const double limit = (1.0 - p->a->dropout_p) * 4294967296.0;
  p->keep = limit < 4294967295.0 ? (uint32_t)limit : UINT32_MAX;
  p->factor = p->a->dropout_p < 1 ? 1.0 / (1.0 - p->a->dropout_p) : 0;
}

static size_t partial_bytes(const plan *p) {
  return p->groups == 1 ? 0 : whole((size_t)(p->heads * p->groups * p->tk * (p->d + p->dv)) * p->item);
}

static void read_inputs(plan *p, const rsi_call *c, int first, const rs_tensor *mask) {
  read_matrix(p, c->in[first + Q], &p->q);
  read_matrix(p, c->in[first + K], &p->key);
  read_matrix(p, c->in[first + V], &p->v);
  if (!mask) return;
  read_operand(p, mask, 2, &p->mask);
  p->mask_kind = mask->dtype == RS_BOOL ? RSI_MASK_BOOL : RSI_MASK_FLOAT;
}

static void multiply(const plan *p, int64_t m, int64_t n, int64_t k, const void *a, int64_t ars, int64_t acs, const void *b, int64_t brs,
                     int64_t bcs, int beta, void *c, int64_t ldc, void *room) {
  if (p->dtype == RS_F32) p->x->k->gemm->sgemm(m, n, k, a, ars, acs, b, brs, bcs, beta, c, ldc, room);
  else p->x->k->gemm->dgemm(m, n, k, a, ars, acs, b, brs, bcs, beta, c, ldc, room);
}

/* The addresses of one slot and one head. */
typedef struct work {
  char *kt, *vt, *s, *ds, *dropped, *room, *max, *sum, *factor;
  uint32_t *words;
  char *q, *key, *v, *mask, *o, *lse, *g, *gq, *gk, *gv, *gmask;
  int64_t head;
} work;

static void open_slot(const plan *p, int64_t slot, bool backward, work *w) {
  char *at = p->scratch + (size_t)slot * p->slot_bytes;
  w->kt = at, at += p->kt_bytes;
  w->vt = at, at += p->vt_bytes;
  w->s = at, at += p->tile_bytes;
  w->ds = at, at += backward ? p->tile_bytes : 0;
  w->dropped = at, at += backward && p->a->dropout_p > 0 ? p->tile_bytes : 0;
  w->room = at, at += p->room_bytes;
  w->max = at, at += p->row_bytes;
  w->sum = at, at += p->row_bytes;
  w->factor = at, at += p->row_bytes;
  w->words = (void *)at;
}

static void open_head(const plan *p, int64_t head, work *w) {
  w->head = head;
  w->q = at_head(p, &p->q, head), w->key = at_head(p, &p->key, head), w->v = at_head(p, &p->v, head);
  w->o = at_head(p, &p->o, head), w->lse = at_head(p, &p->lse, head), w->g = at_head(p, &p->g, head);
  w->gq = at_head(p, &p->gq, head), w->gk = at_head(p, &p->gk, head), w->gv = at_head(p, &p->gv, head);
  w->gmask = at_head(p, &p->gmask, head);
  w->mask = NULL;
  if (p->mask.data) {
    int64_t element = 0;
    for (int i = p->nlead - 1; i >= 0; head /= p->lead[i--]) element += head % p->lead[i] * p->mask.lead[i];
    w->mask = p->mask.data + element * (p->mask_kind == RSI_MASK_BOOL ? 1 : (int64_t)p->item);
  }
  if (p->turned) p->k->transpose(p->tk, p->d, w->key, p->key.rs, p->key.cs, w->kt, p->tk + PAD);
  if (p->vt_bytes) p->k->transpose(p->tk, p->dv, w->v, p->v.rs, p->v.cs, w->vt, p->tk + PAD);
}

/* Products of a tile: rows r0..r0+rows-1 of q with columns j0..j0+n-1 of k. */
static void products(const plan *p, const work *w, int64_t r0, int64_t rows, int64_t j0, int64_t n, rsi_scores *t) {
  const char *const q = offset(p, w->q, r0 * p->q.rs);
  *t = (rsi_scores){.rows = rows, .n = n, .ld = p->columns, .s = w->s, .scale = p->a->scale, .kind = p->mask_kind,
                    .mrs = p->mask.rs, .mcs = p->mask.cs, .visible = p->a->is_causal ? r0 - j0 + 1 : INT64_MAX};
  if (w->mask)
    t->mask = w->mask + (r0 * p->mask.rs + j0 * p->mask.cs) * (p->mask_kind == RSI_MASK_BOOL ? 1 : (int64_t)p->item);
  if (p->turned)
    multiply(p, rows, n, p->d, q, p->q.rs, p->q.cs, offset(p, w->kt, j0), p->tk + PAD, 1, 0, w->s, t->ld, w->room);
  else
    multiply(p, rows, n, p->d, q, p->q.rs, p->q.cs, offset(p, w->key, j0 * p->key.rs), p->key.cs, p->key.rs, 0, w->s, t->ld, w->room);
}

/* to = from without the pairs that dropout takes, the others divided by 1 - p */
static void drop(const plan *p, const work *w, int64_t r0, int64_t rows, int64_t j0, int64_t n, const char *from, char *to) {
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = w->head * p->tq + r0 + i;
    const uint64_t block = p->counter + (uint64_t)(row * parts(p->tk, 4) + j0 / 4);
    p->x->k->elementwise->random->words(p->key_word, block, parts(n, 4), w->words);
    p->k->drop(offset(p, to, i * p->columns), offset(p, from, i * p->columns), w->words, n, p->keep, p->factor);
  }
}

/* Runs fn for the heads and groups of rows of each slot. */
typedef void (*rows_fn)(const plan *p, work *w, int64_t group, int64_t r0, int64_t r1);
typedef struct job { const plan *p; rows_fn fn; bool backward; } job;

static void run_slots(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  const plan *const p = j->p;
  const int64_t items = p->heads * p->groups, blocks = parts(p->tq, p->rows);
  work w;
  for (int64_t slot = first; slot < last; slot++) {
    open_slot(p, slot, j->backward, &w);
    w.head = -1;
    for (int64_t i = items * slot / p->slots; i < items * (slot + 1) / p->slots; i++) {
      const int64_t group = i % p->groups, r0 = blocks * group / p->groups * p->rows;
      if (i / p->groups != w.head) open_head(p, i / p->groups, &w);
      j->fn(p, &w, group, r0, smaller(blocks * (group + 1) / p->groups * p->rows, p->tq));
    }
  }
}

static void run_plan(const plan *p, rows_fn fn, bool backward) {
  job j = {p, fn, backward};
  if (p->slots == 1) run_slots(&j, 0, 1);
  else rsi_parallel(p->x, p->slots, p->work, run_slots, &j);
}

/* Columns that rows up to r1 see. */
static int64_t columns_for(const plan *p, int64_t r1) { return p->a->is_causal ? smaller(p->tk, r1) : p->tk; }

/* ---- forward --------------------------------------------------------------------------------------------------------- */

static void fill_f(int dtype, int64_t n, void *to, double value) {
  if (dtype == RS_F32)
    for (int64_t i = 0; i < n; i++) ((float *)to)[i] = (float)value;
  else
    for (int64_t i = 0; i < n; i++) ((double *)to)[i] = value;
}

static void forward_rows(const plan *p, work *w, int64_t group, int64_t first, int64_t last) {
  (void)group;
  for (int64_t r0 = first; r0 < last; r0 += p->rows) {
    const int64_t rows = smaller(p->rows, last - r0), seen = columns_for(p, r0 + rows);
    char *const o = offset(p, w->o, r0 * p->dv);
    fill_f(p->dtype, rows, w->max, -(double)INFINITY);
    memset(w->sum, 0, p->row_bytes);
    if (seen == 0) memset(o, 0, (size_t)(rows * p->dv) * p->item);
    for (int64_t j0 = 0; j0 < seen; j0 += p->columns) {
      const int64_t n = smaller(p->columns, seen - j0);
      rsi_scores t;
      products(p, w, r0, rows, j0, n, &t);
      p->k->weights(&t, w->max, w->sum, w->factor);
      if (p->a->dropout_p > 0) drop(p, w, r0, rows, j0, n, w->s, w->s);
      if (j0 > 0) p->k->scale_rows(rows, p->dv, o, p->dv, w->factor);
      multiply(p, rows, p->dv, n, w->s, p->columns, 1, offset(p, w->v, j0 * p->v.rs), p->v.rs, p->v.cs, j0 > 0, o, p->dv, w->room);
    }
    p->k->finish(rows, w->max, w->sum, offset(p, w->lse, r0));
    p->k->scale_rows(rows, p->dv, o, p->dv, w->sum);
  }
}

static void forward_plan(plan *p, const rsi_call *c) {
  rsi_desc o = c->desc[0];
  if (c->out && c->out[0]) rsi_desc_of(c->out[0], &o);   /* in a replay there are results only */
  make_plan(p, c, Q, &o, c->attrs, false);
}

static size_t forward_scratch(const rsi_call *c) {
  plan p;
  if (c->in[Q]->dtype == RS_BF16) return rsi_attention_amx_scratch(c);
  forward_plan(&p, c);
  return p.slot_bytes * (size_t)p.slots;
}

static int64_t forward_draws(const rsi_call *c) {
  plan p;
  forward_plan(&p, c);
  return p.a->dropout_p > 0 ? p.heads * p.tq * parts(p.tk, 4) : 0;
}

static rs_status forward_run(const rsi_call *c) {
  plan p;
  if (c->in[Q]->dtype == RS_BF16) return rsi_attention_amx_run(c);
  forward_plan(&p, c);
  int64_t *const state = c->out[2]->data;
  p.key_word = c->x->rng->key;
  p.counter = rsi_rng_take(c->x->rng, (uint64_t)forward_draws(c));
  state[0] = (int64_t)p.key_word, state[1] = (int64_t)p.counter;
  if (p.heads * p.tq == 0) return RS_OK;
  read_inputs(&p, c, Q, c->in[MASK]);
  read_matrix(&p, c->out[0], &p.o);
  read_operand(&p, c->out[1], 1, &p.lse);
  p.scratch = c->scratch;
  run_plan(&p, forward_rows, false);
  return RS_OK;
}

/* ---- backward -------------------------------------------------------------------------------------------------------- */

/*
** With P the weights and D = sum(g o) of a row: dv = P^T g, dP = g v^T, dS = P (dP - D), dq = scale dS k, dk = scale dS^T q. Dropout
** stands between P and v, so dv takes the dropped P and dP is dropped; D is the same, because o contains the dropout.
*/
enum {
  IN_G = RSI_ATTENTION_BACK_G, IN_Q = RSI_ATTENTION_BACK_Q, IN_K = RSI_ATTENTION_BACK_K, IN_V = RSI_ATTENTION_BACK_V,
  IN_O = RSI_ATTENTION_BACK_O, IN_LSE = RSI_ATTENTION_BACK_LSE, IN_STATE = RSI_ATTENTION_BACK_STATE, IN_MASK = RSI_ATTENTION_BACK_MASK
};

static void backward_rows(const plan *p, work *w, int64_t group, int64_t first, int64_t last) {
  char *dk = w->gk, *dv = w->gv;
  const int64_t ld = p->columns;
  if (p->groups > 1) {
    dk = offset(p, p->partial, (w->head * p->groups + group) * p->tk * (p->d + p->dv));
    dv = offset(p, dk, p->tk * p->d);
  }
  memset(dk, 0, (size_t)(p->tk * p->d) * p->item);
  memset(dv, 0, (size_t)(p->tk * p->dv) * p->item);
  for (int64_t r0 = first; r0 < last; r0 += p->rows) {
    const int64_t rows = smaller(p->rows, last - r0), seen = columns_for(p, r0 + rows);
    const char *const g = offset(p, w->g, r0 * p->g.rs), *const q = offset(p, w->q, r0 * p->q.rs);
    char *const dq = offset(p, w->gq, r0 * p->d), *const delta = w->sum;
    p->k->dots(rows, p->dv, g, p->g.rs, p->g.cs, offset(p, w->o, r0 * p->o.rs), p->o.rs, p->o.cs, delta);
    for (int64_t i = 0; i < rows; i++) memcpy(offset(p, w->max, i), offset(p, w->lse, (r0 + i) * p->lse.rs), p->item);
    if (seen == 0) memset(dq, 0, (size_t)(rows * p->d) * p->item);
    for (int64_t j0 = 0; j0 < seen; j0 += p->columns) {
      const int64_t n = smaller(p->columns, seen - j0);
      char *weights = w->s;
      rsi_scores t;
      products(p, w, r0, rows, j0, n, &t);
      p->k->probabilities(&t, w->max);
      if (p->a->dropout_p > 0) {
        weights = w->dropped;
        drop(p, w, r0, rows, j0, n, w->s, weights);
      }
      multiply(p, n, p->dv, rows, weights, 1, ld, g, p->g.rs, p->g.cs, 1, offset(p, dv, j0 * p->dv), p->dv, w->room);
      multiply(p, rows, n, p->dv, g, p->g.rs, p->g.cs, offset(p, w->vt, j0), p->tk + PAD, 1, 0, w->ds, ld, w->room);
      if (p->a->dropout_p > 0) drop(p, w, r0, rows, j0, n, w->ds, w->ds);
      p->k->grad(&t, w->ds, delta);
      for (int64_t i = 0; w->gmask && i < rows; i++)
        memcpy(offset(p, w->gmask, (r0 + i) * p->tk + j0), offset(p, w->ds, i * ld), (size_t)n * p->item);
      multiply(p, rows, p->d, n, w->ds, ld, 1, offset(p, w->key, j0 * p->key.rs), p->key.rs, p->key.cs, j0 > 0, dq, p->d, w->room);
      multiply(p, n, p->d, rows, w->ds, 1, ld, q, p->q.rs, p->q.cs, 1, offset(p, dk, j0 * p->d), p->d, w->room);
    }
    p->k->scale(rows * p->d, dq, p->a->scale);
    for (int64_t i = 0; w->gmask && i < rows; i++)
      memset(offset(p, w->gmask, (r0 + i) * p->tk + seen), 0, (size_t)(p->tk - seen) * p->item);
  }
  if (p->groups == 1) p->k->scale(p->tk * p->d, dk, p->a->scale);
}

#define ADD_PARTS(name, T)                                                                                                  \
  static void name(const plan *p, int64_t head, T *dk, T *dv) {                                                             \
    const int64_t nk = p->tk * p->d, nv = p->tk * p->dv;                                                                    \
    const T *part = (const T *)(const void *)p->partial + head * p->groups * (nk + nv), scale = (T)p->a->scale;             \
    memset(dk, 0, (size_t)nk * sizeof(T));                                                                                  \
    memset(dv, 0, (size_t)nv * sizeof(T));                                                                                  \
    for (int64_t g = 0; g < p->groups; g++, part += nk + nv) {                                                              \
      for (int64_t i = 0; i < nk; i++) dk[i] += scale * part[i];                                                            \
      for (int64_t i = 0; i < nv; i++) dv[i] += part[nk + i];                                                               \
    }                                                                                                                       \
  }
ADD_PARTS(add_parts_f32, float)
ADD_PARTS(add_parts_f64, double)

static void add_heads(void *arg, int64_t first, int64_t last) {
  const plan *const p = arg;
  for (int64_t head = first; head < last; head++) {
    void *const dk = at_head(p, &p->gk, head), *const dv = at_head(p, &p->gv, head);
    if (p->dtype == RS_F32) add_parts_f32(p, head, dk, dv);
    else add_parts_f64(p, head, dk, dv);
  }
}

static void backward_plan(plan *p, const rsi_call *c) {
  rsi_desc o;
  rsi_desc_of(c->in[IN_O], &o);
  make_plan(p, c, IN_Q, &o, c->attrs, true);
}

static size_t backward_scratch(const rsi_call *c) {
  plan p;
  if (c->in[IN_Q]->dtype == RS_BF16) return rsi_attention_amx_back_scratch(c);
  backward_plan(&p, c);
  return p.slot_bytes * (size_t)p.slots + partial_bytes(&p);
}

static rs_status backward_run(const rsi_call *c) {
  if (c->in[IN_Q]->dtype == RS_BF16) return rsi_attention_amx_back_run(c);
  const int64_t *const state = c->in[IN_STATE]->data;
  plan p;
  backward_plan(&p, c);
  p.key_word = (uint64_t)state[0], p.counter = (uint64_t)state[c->in[IN_STATE]->strides[0]];
  if (p.heads * p.tq * p.tk == 0) {
    for (int j = 0; j < c->nout; j++) memset(c->out[j]->data, 0, (size_t)c->out[j]->numel * p.item);
    return RS_OK;
  }
  read_inputs(&p, c, IN_Q, c->in[IN_MASK]);
  read_matrix(&p, c->in[IN_O], &p.o);
  read_operand(&p, c->in[IN_LSE], 1, &p.lse);
  read_matrix(&p, c->in[IN_G], &p.g);
  read_matrix(&p, c->out[0], &p.gq);
  read_matrix(&p, c->out[1], &p.gk);
  read_matrix(&p, c->out[2], &p.gv);
  if (RSI_ATTR(c, attention_backward)->mask_grad) read_matrix(&p, c->out[3], &p.gmask);
  p.scratch = c->scratch;
  p.partial = p.scratch + p.slot_bytes * (size_t)p.slots;
  run_plan(&p, backward_rows, true);
  if (p.groups > 1)
    rsi_parallel(p.x, p.heads, 0.5 * (double)(p.groups * p.tk * (p.d + p.dv)), add_heads, &p);
  return RS_OK;
}

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

/* The leading dimensions of all inputs together, into d; the last two follow. */
static rs_status check_inputs(const rs_tensor *q, const rs_tensor *k, const rs_tensor *v, const rs_tensor *mask, rsi_desc *d) {
  RSI_CHECK(q->ndim >= 2 && k->ndim >= 2 && v->ndim >= 2, RS_ERR_SHAPE, "q %s, k %s and v %s must be [..., length, size]", rsi_text(q),
            rsi_text(k), rsi_text(v));
  RSI_CHECK(q->dtype == k->dtype && q->dtype == v->dtype, RS_ERR_DTYPE, "q is %s, k %s and v %s; cast them to one dtype",
            rs_dtype_name(q->dtype), rs_dtype_name(k->dtype), rs_dtype_name(v->dtype));
  const int64_t tq = q->shape[q->ndim - 2], tk = k->shape[k->ndim - 2];
  RSI_CHECK(q->shape[q->ndim - 1] == k->shape[k->ndim - 1], RS_ERR_SHAPE, "q %s and k %s must have the same last size", rsi_text(q),
            rsi_text(k));
  RSI_CHECK(v->shape[v->ndim - 2] == tk, RS_ERR_SHAPE, "k %s and v %s must have the same length", rsi_text(k), rsi_text(v));
  int64_t pair[RS_MAX_DIMS];
  int n;
  if (rsi_broadcast(q->ndim - 2, q->shape, k->ndim - 2, k->shape, &n, pair) != RS_OK ||
      rsi_broadcast(n, pair, v->ndim - 2, v->shape, &d->ndim, d->shape) != RS_OK)
    return rsi_fail(RS_ERR_SHAPE, "the leading dimensions of q %s, k %s and v %s neither are equal nor can be repeated", rsi_text(q),
                    rsi_text(k), rsi_text(v));
  d->dtype = q->dtype;
  d->shape[d->ndim] = tq, d->shape[d->ndim + 1] = tk;
  if (mask) {
    RSI_CHECK(mask->dtype == RS_BOOL || mask->dtype == q->dtype, RS_ERR_DTYPE,
              "the mask is %s but must be bool (true: takes part) or %s (is added)", rs_dtype_name(mask->dtype), rs_dtype_name(q->dtype));
    int64_t both[RS_MAX_DIMS];
    const rs_status fits = mask->ndim < 2 ? RS_ERR_SHAPE : rsi_broadcast(d->ndim + 2, d->shape, mask->ndim, mask->shape, &n, both);
    RSI_CHECK(fits == RS_OK && n == d->ndim + 2 && memcmp(both, d->shape, sizeof(int64_t) * (size_t)n) == 0, RS_ERR_SHAPE,
              "mask %s must fit the scores %s", rsi_text(mask), rsi_shape_text(d->ndim + 2, d->shape));
  }
  d->ndim += 2;
  return RS_OK;
}

static rs_status forward_infer(rsi_call *c) {
  attention_attrs *const a = c->attrs;
  rsi_desc *const d = c->desc;
  RSI_TRY(check_inputs(c->in[Q], c->in[K], c->in[V], c->in[MASK], d));
  const int64_t size = c->in[Q]->shape[c->in[Q]->ndim - 1];
  if (a->scale == 0) a->scale = size > 0 ? 1.0 / sqrt((double)size) : 1.0;
  d[1] = d[0];
  d[1].ndim--;
  if (d[1].dtype == RS_BF16) d[1].dtype = RS_F32;
  d[0].shape[d[0].ndim - 1] = c->in[V]->shape[c->in[V]->ndim - 1];
  d[2] = (rsi_desc){.dtype = RS_I64, .ndim = 1, .shape = {2}};
  return RS_OK;
}

static rs_status backward_infer(rsi_call *c) {
  attention_backward_attrs *const a = c->attrs;
  const rs_tensor *const q = c->in[IN_Q], *const k = c->in[IN_K], *const v = c->in[IN_V], *const state = c->in[IN_STATE];
  rsi_desc d;
  RSI_TRY(check_inputs(q, k, v, c->in[IN_MASK], &d));
  const int n = d.ndim;
  const int64_t tk = d.shape[n - 1], size = q->shape[q->ndim - 1];
  if (a->scale == 0) a->scale = size > 0 ? 1.0 / sqrt((double)size) : 1.0;
  const rs_tensor *const lse = c->in[IN_LSE];
  c->desc[3] = a->mask_grad ? d : (rsi_desc){.dtype = lse->dtype, .ndim = 1};
  RSI_CHECK(lse->dtype == (d.dtype == RS_BF16 ? RS_F32 : d.dtype) && lse->ndim == n - 1 && memcmp(lse->shape, d.shape, sizeof(int64_t) * (size_t)(n - 1)) == 0,
            RS_ERR_SHAPE, "lse %s must be %s", rsi_text(lse), rsi_shape_text(n - 1, d.shape));
  d.shape[n - 1] = v->shape[v->ndim - 1];
  for (int i = 0; i < 2; i++) {
    const rs_tensor *const t = c->in[i == 0 ? IN_G : IN_O];
    RSI_CHECK(t->dtype == d.dtype && t->ndim == n && memcmp(t->shape, d.shape, sizeof(int64_t) * (size_t)n) == 0, RS_ERR_SHAPE,
              "%s %s must be %s %s", i == 0 ? "g" : "o", rsi_text(t), rs_dtype_name(d.dtype), rsi_shape_text(n, d.shape));
  }
  RSI_CHECK(state->dtype == RS_I64 && state->ndim == 1 && state->numel == 2, RS_ERR_ARG,
            "state is %s %s but must be the i64 [2] of the forward call", rs_dtype_name(state->dtype), rsi_text(state));
  if (a->dtype >= 0) {
    RSI_CHECK(a->dtype == d.dtype || (d.dtype == RS_BF16 && a->dtype == RS_F32), RS_ERR_DTYPE, "the gradients of %s inputs cannot be %s",
              rs_dtype_name(d.dtype), rs_dtype_name((int)a->dtype));
    d.dtype = (int)a->dtype;
  }
  c->desc[0] = c->desc[1] = c->desc[2] = d;
  c->desc[0].shape[n - 1] = size;
  c->desc[1].shape[n - 2] = c->desc[2].shape[n - 2] = tk;
  c->desc[1].shape[n - 1] = k->shape[k->ndim - 1];
  return RS_OK;
}

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

static void attention_grad(rsi_grad *g) {
  const attention_attrs *const a = rsi_attrs(g);
  const attention_backward_attrs back = {a->dropout_p, a->is_causal, a->scale, rsi_needs(g, MASK), -1};
  rs_tensor *const in[8] = {rsi_gout(g, 0), rsi_in(g, Q), rsi_in(g, K), rsi_in(g, V), rsi_out(g, 0), rsi_out(g, 1), rsi_out(g, 2),
                            rsi_in(g, MASK)};
  rs_tensor *out[4] = {NULL};
  rsi_emit(g, RS_OP_attention_backward, &back, 8, in, 4, out);
  for (int i = Q; i <= MASK; i++)
    if (rsi_needs(g, i)) rsi_give(g, i, out[i]);
}

/* bf16 comes from programs alone, where AMX takes the call; elsewhere it is converted. */
static bool forward_accepts(const rsi_call *c) { return c->in[Q]->dtype != RS_BF16 || rsi_attention_amx_accepts(c); }
static bool backward_accepts(const rsi_call *c) { return c->in[IN_Q]->dtype != RS_BF16 || rsi_attention_amx_back_accepts(c); }

static const rsi_kernel forward_kernels[] = {
  {"attention", RSI_PORTABLE, RSI_FLOATS | 1u << RS_BF16, forward_accepts, forward_scratch, forward_run}, {0}};
static const rsi_kernel backward_kernels[] = {
  {"attention_backward", RSI_PORTABLE, RSI_FLOATS | 1u << RS_BF16, backward_accepts, backward_scratch, backward_run}, {0}};

static const attention_attrs causal = {0, 1, 0}, scaled = {0, 0, 0.7}, dropping = {0.4, 0, 0}, all = {0.3, 1, 0.5}, dead = {1, 0, 0};
static const attention_backward_attrs back_causal = {0, 1, 0, 0, -1}, back_mask = {0.3, 1, 0.5, 1, -1};

static const rsi_sample forward_samples[] = {
  {"f2x3x5x4,f2x3x7x4,f2x3x7x6", NULL, 0, 0},
  {"f7x5,f7x5,f7x5", &causal, 0, 0},
  {"f2x9x5,f2x4x5,f2x4x3", &causal, 0, 0},
  {"f2x3x4,f2x7x4,f2x7x5,b3x7", &scaled, 0, 0},
  {"f2x3x4,f2x7x4,f2x7x5,f2x1x7", NULL, 0, 0},
  {"f2x3x4x2,f2x1x5x2,f1x3x5x3,f3x4x1", &causal, 0, 0},
  {"f2x3x4,f2x7x4,f2x7x5,f1x1", &dropping, 0, 0},
  {"f2x6x3,f2x6x3,f2x6x3,f6x6", &all, 0, 0},
  {"f2x3x4,f2x5x4,f2x5x4", &dead, 0, 0},
  {"f2x1x4,f2x7x4,f2x7x4", NULL, 0, 0},
  {"f0x4,f3x4,f3x5", NULL, 0, 0},
  {"f3x4,f0x4,f0x5", NULL, 0, 0},
  {"f0x3x4,f0x3x4,f0x3x4", NULL, 0, 0},
  {"f3x0,f5x0,f5x2", NULL, 0, 0},
  {"f90x33,f600x33,f600x17", NULL, 0, 1},
  {"f3x150x8,f3x150x8,f3x150x8", &causal, 0, 1},
  {NULL, NULL, 0, 0}};
/* No second derivative. */
static const rsi_sample backward_samples[] = {
  {"f2x5x6,f2x5x4,f2x7x4,f2x7x6,f2x5x6,f2x5@2:3,i2@0:1000", NULL, 0, 1},
  {"f2x5x6,f2x5x4,f2x7x4,f2x7x6,f2x5x6,f2x5@2:3,i2@0:1000,b5x7", &back_causal, 0, 1},
  {"f2x5x6,f2x5x4,f2x7x4,f2x7x6,f2x5x6,f2x5@2:3,i2@0:1000,f1x7", &back_mask, 0, 1},
  {"f5x0x6,f5x0x4,f5x7x4,f5x7x6,f5x0x6,f5x0,i2@0:1000", NULL, 0, 1},
  {"f140x16,f140x8,f300x8,f300x16,f140x16,f140@6:7,i2@0:1000", NULL, 0, 1},
  {NULL, NULL, 0, 0}};

#define KEEPS                                                                                                               \
  (RSI_KEEP_IN(Q) | RSI_KEEP_IN(K) | RSI_KEEP_IN(V) | RSI_KEEP_IN(MASK) | RSI_KEEP_OUT(0) | RSI_KEEP_OUT(1) | RSI_KEEP_OUT(2))

const rs_op rsi_op_scaled_dot_product_attention = {
  .name = "scaled_dot_product_attention",
  .doc = "softmax(scale q k^T + mask) v with q [..., Tq, D], k [..., Tk, D], v [..., Tk, Dv]; the leading dimensions broadcast. mask, "
         "broadcast to [..., Tq, Tk]: bool (true takes part) or floats that are added. A row that takes nothing gives zeros.",
  .inputs = "q,k,v,mask?", .nin_min = 3, .nin_max = 4, .nout = 3, .nout_public = 1,
  .traits = RSI_T_RANDOM | RSI_T_STRIDED | RSI_T_NOT_METHOD, .dtypes = RSI_FLOATS | RSI_HALF,
  RSI_USES_ATTRS(scaled_dot_product_attention), .infer = forward_infer, .grad = attention_grad,
  .saves = {KEEPS, KEEPS, KEEPS, KEEPS}, .kernels = forward_kernels, .samples = forward_samples};

const rs_op rsi_op_attention_backward = {
  .name = "attention_backward",
  .doc = "Gradients of scaled_dot_product_attention for q, k, v and, when it is wanted, the mask (before broadcasting is undone), with "
         "the weights made again from lse.",
  .inputs = "g,q,k,v,o,lse,state,mask?", .nin_min = 7, .nin_max = 8, .nout = 4, .traits = RSI_T_INTERNAL | RSI_T_STRIDED,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(attention_backward), .infer = backward_infer, .kernels = backward_kernels,
  .samples = backward_samples};
