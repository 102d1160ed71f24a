/*
** Attention whose operands are bf16, by AMX. The same blocks as in attention.c: a block of rows of q meets one block of columns after
** the other. All products read bf16 and sum in f32: weights and gradients of scores are rounded to bf16 in between, and nothing else.
**
** Error, against exact attention over the operands as given (already bf16): a weight is off by 2^-9 of itself, so a result by
** at most 2^-8 max|v|, its own rounding included; what the products' f32 sums add is far less.
**
** A task is a head (forward: of few heads also a group of its rows). Its scratch memory, of a lane (base/lanes.h), holds k and v in the
** forms that tiles read (kernels/attention_amx.h), sides padded to SIDE with zeros, and one block of each thing between.
*/
#include "ops/attention_amx.h"
#include "ops/half.h"
#include "base/lanes.h"
#include "kernels/attention_amx.h"
#include <math.h>
#include <string.h>

#define BACK(name) RSI_ATTENTION_BACK_##name

enum {
  SIDE = RSI_TILE_SIDE, ROWS = 64, COLUMNS = 256,   /* most of a block of scores */
  FEW_HEADS = 4,                                    /* the gradient shares out by heads only */
  WORTH = 1 << 19, TASKS = 16                       /* least multiplications of a call; tasks that are aimed at */
};

typedef struct common_attrs { double dropout_p; int64_t is_causal; double scale; int64_t mask_grad; } common_attrs;

typedef struct operand {
  char   *data;
  bool    bf16;
  int64_t rs, cs, lead[RS_MAX_DIMS];
} operand;

typedef struct plan {
  const rsi_exec *x;
  const rsi_attention_tiles *t;
  const common_attrs *a;
  int64_t nlead, lead[RS_MAX_DIMS], heads, tq, tk, d, dv;
  int64_t rows, columns, tkp, dp, dvp;              /* of a block; padded sizes */
  int64_t groups;                                   /* of rows, for each head */
  operand q, k, v, g, o, lse, gq, gk, gv;
  size_t  bytes;                                    /* of a lane */
  char   *scratch;
} plan;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
static int64_t whole(int64_t n) { return parts(n, SIDE) * SIDE; }

/* How t is read for each head; `inner` last dimensions (2, or 1 for one value per row) are not leading ones. */
static void take(const plan *p, const rs_tensor *t, int inner, operand *out) {
  const int lead = t->ndim - inner;
  *out = (operand){.data = t->data, .bf16 = t->dtype == RS_BF16, .rs = t->strides[lead], .cs = inner == 2 ? t->strides[lead + 1] : 0};
  if (inner == 2 && t->shape[lead + 1] == 1) out->cs = 1;
  for (int i = 0; i < lead; i++) out->lead[p->nlead - lead + i] = t->shape[i] == 1 ? 0 : t->strides[i];
}

/* Row r of a head. */
static void *at(const plan *p, const operand *t, int64_t head, int64_t r) {
  int64_t offset = r * t->rs;
  for (int64_t i = p->nlead - 1; i >= 0; head /= p->lead[i--]) offset += head % p->lead[i] * t->lead[i];
  return t->data + offset * (t->bf16 ? 2 : 4);
}

/* ---- scratch memory of a lane ------------------------------------------------------------------------------------------ */

/* Pairs of k^T, v, and in the gradient v^T, k; and of a block: rows and pairs of q, g, scores, weights and their gradients. */
typedef struct room {
  uint16_t *copy, *kt, *v, *vt, *k, *q, *g, *o, *qp, *gp, *w, *d, *turned;
  float *s, *out, *dk, *dv, *max, *sum, *factor;
} room;

static void *give(char **from, int64_t items, size_t size) {
  char *const here = *from;
  *from += rsi_lane_round((size_t)items * size);
  return here;
}

/* Bytes, and the places when `base` is given. */
static size_t lay_out(const plan *p, bool backward, char *base, room *r) {
  char *const from = base;
  const int64_t wide = larger(p->dp, p->dvp), block = p->rows * p->columns;
#define HALF(n) give(&base, n, sizeof(uint16_t))
#define REAL(n) give(&base, n, sizeof(float))
  r->copy = HALF(p->tkp * wide);
  r->kt = HALF(p->tkp * p->dp);
  r->q = HALF(p->rows * p->dp);
  r->s = REAL(block);
  r->w = HALF(block);
  r->max = REAL(p->rows);
  r->sum = REAL(p->rows);
  r->out = REAL(p->rows * wide);
  if (!backward) {
    r->v = HALF(p->tkp * p->dvp);
    r->factor = REAL(p->rows);
  } else {
    r->vt = HALF(p->tkp * p->dvp);
    r->k = HALF(p->tkp * p->dp);
    r->g = HALF(p->rows * p->dvp);
    r->o = HALF(p->rows * p->dvp);
    r->qp = HALF(p->rows * p->dp);
    r->gp = HALF(p->rows * p->dvp);
    r->d = HALF(block);
    r->turned = HALF(block);
    r->dk = REAL(p->tkp * p->dp);
    r->dv = REAL(p->tkp * p->dvp);
  }
#undef HALF
#undef REAL
  return (size_t)(base - from);
}

/* ---- the plan ---------------------------------------------------------------------------------------------------------- */

/* From descriptors alone; o is the shape of the result. Without heads or rows there is nothing to group. */
static void make_plan(plan *p, const rsi_call *c, int first, const rsi_desc *o, bool backward) {
  const rs_tensor *const k = c->in[first + RSI_ATTENTION_K];
  *p = (plan){.x = c->x, .t = c->x->k->attention->tiles, .a = c->attrs, .nlead = o->ndim - 2, .heads = 1, .tq = o->shape[o->ndim - 2],
              .dv = o->shape[o->ndim - 1], .tk = k->shape[k->ndim - 2], .d = k->shape[k->ndim - 1]};
  for (int64_t i = 0; i < p->nlead; i++) p->lead[i] = o->shape[i], p->heads *= o->shape[i];
  p->tkp = whole(p->tk);
  p->dp = whole(p->d);
  p->dvp = whole(p->dv);
  p->rows = smaller(ROWS, whole(p->tq));
  p->columns = smaller(COLUMNS, p->tkp);
  p->groups = backward || p->heads >= TASKS || p->heads == 0 || p->tq == 0 ? 1 : smaller(parts(TASKS, p->heads), parts(p->tq, p->rows));
  room r;
  p->bytes = lay_out(p, backward, NULL, &r);
}

static bool accepts(const rsi_call *c, int first, const rsi_desc *o, bool backward) {
  const common_attrs *const a = c->attrs;
  for (int i = 0; i < 3; i++)
    if (c->in[first + i]->dtype != RS_BF16) return false;
  if (!rsi_half_native(c->x) || c->x->exact || a->dropout_p > 0 || !(a->scale > 0) || !(a->scale < 1e30)) return false;
  plan p;
  make_plan(&p, c, first, o, backward);
  if (p.d == 0 || p.dv == 0 || p.tq < SIDE / 2 || p.tk < SIDE / 2 || (backward && p.heads < FEW_HEADS)) return false;
  return (double)p.heads * (double)p.tq * (double)p.tk * (double)(p.d + p.dv) >= WORTH;
}

typedef void (*task_fn)(const plan *p, const room *r, int64_t head, int64_t first, int64_t last);
typedef struct job { const plan *p; task_fn fn; bool backward; } job;

static void run_task(void *arg, int64_t task, void *scratch) {
  const job *const j = arg;
  const plan *const p = j->p;
  const int64_t group = task % p->groups, blocks = parts(p->tq, p->rows);
  room r;
  lay_out(p, j->backward, scratch, &r);
  p->t->open();
  j->fn(p, &r, task / p->groups, blocks * group / p->groups * p->rows, smaller(blocks * (group + 1) / p->groups * p->rows, p->tq));
  p->t->close();
}

static int64_t lanes_of(const plan *p) { return rsi_lane_count(rsi_pool_threads(p->x->pool), p->heads * p->groups); }

static void run_plan(const plan *p, task_fn fn, bool backward) {
  job j = {p, fn, backward};
  rsi_lanes_run(p->x->pool, lanes_of(p), p->heads * p->groups, run_task, &j, p->scratch, p->bytes);
}

/* Rows r0.. of a matrix of `size` columns, in rows; `high` of them, the last ones zeros. */
static void read_rows(const plan *p, const operand *t, int64_t head, int64_t r0, int64_t rows, int64_t high, int64_t size, uint16_t *to) {
  p->t->read(rows, size, at(p, t, head, r0), t->bf16, t->rs, t->cs, high, whole(size), to, whole(size));
}

/* Products of rows r0.. of q with columns j0.. of k into s. */
static rsi_tile_block products(const plan *p, const room *r, int64_t r0, int64_t rows, int64_t j0, int64_t n) {
  const rsi_tile_block b = {.rows = rows, .n = n, .high = whole(rows), .wide = whole(n), .ld = p->columns, .scale = (float)p->a->scale,
                            .visible = p->a->is_causal ? r0 - j0 + 1 : INT64_MAX};
  p->t->product(b.high, b.wide, p->dp, r->q, p->dp, r->kt + j0 * p->dp, p->dp * SIDE, false, r->s, b.ld);
  return b;
}

/* Columns that rows below r1 see. */
static int64_t columns_for(const plan *p, int64_t r1) { return p->a->is_causal ? smaller(p->tk, r1) : p->tk; }

static rs_status check_tiles(const rsi_exec *x) {
  RSI_CHECK(rsi_half_native(x), RS_ERR_STATE, "attention was recorded in bf16 for the tiles of AMX, which the instruction set chosen since does "
            "not have; record it again");
  return RS_OK;
}

/* ---- forward ----------------------------------------------------------------------------------------------------------- */

static void forward(const plan *p, const room *r, int64_t head, int64_t first, int64_t last) {
  const rsi_attention_tiles *const t = p->t;
  const int64_t most = columns_for(p, last), high = whole(most);
  read_rows(p, &p->k, head, 0, most, high, p->d, r->copy);
  t->turned_pairs(high, p->dp, r->copy, p->dp, r->kt, p->dp * SIDE);
  read_rows(p, &p->v, head, 0, most, high, p->dv, r->copy);
  t->pairs(high, p->dvp, r->copy, p->dvp, r->v, p->tkp * SIDE);
  for (int64_t r0 = first; r0 < last; r0 += p->rows) {
    const int64_t rows = smaller(p->rows, last - r0), seen = columns_for(p, r0 + rows);
    read_rows(p, &p->q, head, r0, rows, whole(rows), p->d, r->q);
    for (int64_t i = 0; i < rows; i++) r->max[i] = -INFINITY, r->sum[i] = 0;
    for (int64_t j0 = 0; j0 < seen; j0 += p->columns) {
      const rsi_tile_block b = products(p, r, r0, rows, j0, smaller(p->columns, seen - j0));
      t->weights(&b, r->s, r->max, r->sum, r->factor, r->w);
      if (j0 > 0) p->x->k->attention->of[RS_F32]->scale_rows(rows, p->dvp, r->out, p->dvp, r->factor);
      t->product(b.high, p->dvp, b.wide, r->w, b.ld, r->v + j0 * SIDE, p->tkp * SIDE, j0 > 0, r->out, p->dvp);
    }
    p->x->k->attention->of[RS_F32]->finish(rows, r->max, r->sum, at(p, &p->lse, head, r0));
    t->write(rows, p->dv, r->out, p->dvp, 1.0f, r->sum, at(p, &p->o, head, r0), p->o.bf16);
  }
}

static void forward_plan(plan *p, const rsi_call *c) {
  rsi_desc o = c->desc[0];
  if (c->out && c->out[0]) rsi_desc_of(c->out[0], &o);   /* in a replay there are results only */
  make_plan(p, c, RSI_ATTENTION_Q, &o, false);
}

bool rsi_attention_amx_accepts(const rsi_call *c) {
  return !c->in[RSI_ATTENTION_MASK] && accepts(c, RSI_ATTENTION_Q, &c->desc[0], false);
}

size_t rsi_attention_amx_scratch(const rsi_call *c) {
  plan p;
  forward_plan(&p, c);
  return (size_t)lanes_of(&p) * p.bytes;
}

rs_status rsi_attention_amx_run(const rsi_call *c) {
  plan p;
  RSI_TRY(check_tiles(c->x));
  forward_plan(&p, c);
  int64_t *const state = c->out[2]->data;
  state[0] = (int64_t)c->x->rng->key, state[1] = (int64_t)rsi_rng_take(c->x->rng, 0);
  take(&p, c->in[RSI_ATTENTION_Q], 2, &p.q);
  take(&p, c->in[RSI_ATTENTION_K], 2, &p.k);
  take(&p, c->in[RSI_ATTENTION_V], 2, &p.v);
  take(&p, c->out[0], 2, &p.o);
  take(&p, c->out[1], 1, &p.lse);
  p.scratch = c->scratch;
  run_plan(&p, forward, false);
  return RS_OK;
}

/* ---- backward ---------------------------------------------------------------------------------------------------------- */

/* With P the weights and D = sum(g o) of a row: dv = P^T g, dP = g v^T, dS = P (dP - D), dq = scale dS k, dk = scale dS^T q. */
static void backward(const plan *p, const room *r, int64_t head, int64_t first, int64_t last) {
  const rsi_attention_tiles *const t = p->t;
  read_rows(p, &p->k, head, 0, p->tk, p->tkp, p->d, r->copy);
  t->turned_pairs(p->tkp, p->dp, r->copy, p->dp, r->kt, p->dp * SIDE);
  t->pairs(p->tkp, p->dp, r->copy, p->dp, r->k, p->tkp * SIDE);
  read_rows(p, &p->v, head, 0, p->tk, p->tkp, p->dv, r->copy);
  t->turned_pairs(p->tkp, p->dvp, r->copy, p->dvp, r->vt, p->dvp * SIDE);
  memset(r->dk, 0, (size_t)(p->tkp * p->dp) * sizeof *r->dk);
  memset(r->dv, 0, (size_t)(p->tkp * p->dvp) * sizeof *r->dv);
  for (int64_t r0 = first; r0 < last; r0 += p->rows) {
    const int64_t rows = smaller(p->rows, last - r0), high = whole(rows), seen = columns_for(p, r0 + rows);
    const float *const lse = at(p, &p->lse, head, r0);
    for (int64_t i = 0; i < rows; i++) r->max[i] = lse[i * p->lse.rs];
    read_rows(p, &p->q, head, r0, rows, high, p->d, r->q);
    read_rows(p, &p->g, head, r0, rows, high, p->dv, r->g);
    read_rows(p, &p->o, head, r0, rows, high, p->dv, r->o);
    t->pairs(high, p->dp, r->q, p->dp, r->qp, p->rows * SIDE);
    t->pairs(high, p->dvp, r->g, p->dvp, r->gp, p->rows * SIDE);
    t->dots(rows, p->dvp, r->g, p->dvp, r->o, p->dvp, r->sum);
    for (int64_t j0 = 0; j0 < seen; j0 += p->columns) {
      const rsi_tile_block b = products(p, r, r0, rows, j0, smaller(p->columns, seen - j0));
      t->probabilities(&b, r->s, r->max, r->w);
      t->turned(high, b.wide, r->w, b.ld, r->turned, p->rows);
      t->product(b.wide, p->dvp, high, r->turned, p->rows, r->gp, p->rows * SIDE, true, r->dv + j0 * p->dvp, p->dvp);
      t->product(high, b.wide, p->dvp, r->g, p->dvp, r->vt + j0 * p->dvp, p->dvp * SIDE, false, r->s, b.ld);
      t->grad(&b, r->w, r->s, r->sum, r->d);
      t->product(high, p->dp, b.wide, r->d, b.ld, r->k + j0 * SIDE, p->tkp * SIDE, j0 > 0, r->out, p->dp);
      t->turned(high, b.wide, r->d, b.ld, r->turned, p->rows);
      t->product(b.wide, p->dp, high, r->turned, p->rows, r->qp, p->rows * SIDE, true, r->dk + j0 * p->dp, p->dp);
    }
    t->write(rows, p->d, r->out, p->dp, (float)p->a->scale, NULL, at(p, &p->gq, head, r0), p->gq.bf16);
  }
  t->write(p->tk, p->d, r->dk, p->dp, (float)p->a->scale, NULL, at(p, &p->gk, head, 0), p->gk.bf16);
  t->write(p->tk, p->dv, r->dv, p->dvp, 1.0f, NULL, at(p, &p->gv, head, 0), p->gv.bf16);
}

static void backward_plan(plan *p, const rsi_call *c) {
  rsi_desc o;
  rsi_desc_of(c->in[BACK(O)], &o);
  make_plan(p, c, BACK(Q), &o, true);
}

bool rsi_attention_amx_back_accepts(const rsi_call *c) {
  const common_attrs *const a = c->attrs;
  rsi_desc o;
  rsi_desc_of(c->in[BACK(O)], &o);
  return !c->in[BACK(MASK)] && !a->mask_grad && accepts(c, BACK(Q), &o, true);
}

size_t rsi_attention_amx_back_scratch(const rsi_call *c) {
  plan p;
  backward_plan(&p, c);
  return (size_t)lanes_of(&p) * p.bytes;
}

rs_status rsi_attention_amx_back_run(const rsi_call *c) {
  plan p;
  RSI_TRY(check_tiles(c->x));
  backward_plan(&p, c);
  take(&p, c->in[BACK(G)], 2, &p.g);
  take(&p, c->in[BACK(Q)], 2, &p.q);
  take(&p, c->in[BACK(K)], 2, &p.k);
  take(&p, c->in[BACK(V)], 2, &p.v);
  take(&p, c->in[BACK(O)], 2, &p.o);
  take(&p, c->in[BACK(LSE)], 1, &p.lse);
  take(&p, c->out[0], 2, &p.gq);
  take(&p, c->out[1], 2, &p.gk);
  take(&p, c->out[2], 2, &p.gv);
  p.scratch = c->scratch;
  run_plan(&p, backward, true);
  return RS_OK;
}
