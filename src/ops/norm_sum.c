/*
** Layer norm with the sums around it, for programs: s = x + before, y = norm(s) weight + bias + after; and its gradient with what
** follows: dx, 0 where x is not above 0 when relu is set (x was the result of a ReLU), plus residual.
** A few rows go through all of it while they are in the cache, by the loops of the ops that it stands for, so the bits are theirs.
*/
#include "ops/row_parts.h"
#include "ops/op.h"
#include <string.h>

#define LAYER_NORM_SUM_ATTRS(F, T)                                                                                          \
  F(T, SHAPE, normalized_shape, 0, 1, RSI_BIG, NULL, "the last dimensions of x, which are normalised together")            \
  F(T, FLOAT, eps, 1e-5, 0, RSI_BIG, NULL, "added to the variance")
RSI_ATTRS(layer_norm_sum, LAYER_NORM_SUM_ATTRS)
#define LAYER_NORM_BACKWARD_SUM_ATTRS(F, T)                                                                                 \
  F(T, SHAPE, normalized_shape, 0, 1, RSI_BIG, NULL, "the last dimensions of x, which are normalised together")            \
  F(T, BOOL, relu, 0, 0, 1, NULL, "x is the result of a ReLU, whose gradient is wanted")
RSI_ATTRS(layer_norm_backward_sum, LAYER_NORM_BACKWARD_SUM_ATTRS)

enum { X, BEFORE, WEIGHT, BIAS, AFTER, OPERANDS };
enum { G, BACK_X, MEAN, RSTD, BACK_WEIGHT, RESIDUAL };

/* Both attribute structs begin with it. */
static const rs_list *shape_of(const rsi_call *c) { return &RSI_ATTR(c, layer_norm_sum)->normalized_shape; }

static rs_status check_shape(const rsi_call *c, const rs_tensor *x) {
  const rs_list *const shape = shape_of(c);
  const int lead = x->ndim - (int)shape->n;
  RSI_CHECK(shape->n > 0 && lead >= 0 && memcmp(x->shape + lead, shape->v, sizeof(int64_t) * (size_t)shape->n) == 0, RS_ERR_SHAPE,
            "input %s must end with the normalized shape %s", rsi_text(x), rsi_shape_text((int)shape->n, shape->v));
  return RS_OK;
}

static rs_status check_like(const rs_tensor *t, const rs_tensor *x) {
  RSI_CHECK(!t || (rsi_same_shape(t, x) && t->dtype == x->dtype), RS_ERR_SHAPE, "%s %s must have the form of input %s",
            rs_dtype_name(t->dtype), rsi_text(t), rsi_text(x));
  return RS_OK;
}

static rs_status check_vector(const rsi_call *c, const rs_tensor *t, const rs_tensor *x) {
  const rs_list *const shape = shape_of(c);
  RSI_CHECK(!t || (t->dtype == x->dtype && t->ndim == shape->n && memcmp(t->shape, shape->v, sizeof(int64_t) * (size_t)shape->n) == 0),
            RS_ERR_SHAPE, "%s %s must have the normalized shape %s", rs_dtype_name(t->dtype), rsi_text(t),
            rsi_shape_text((int)shape->n, shape->v));
  return RS_OK;
}

/* x as [rows, n] */
static void sizes(const rsi_call *c, const rs_tensor *x, int64_t *rows, int64_t *n) {
  const rs_list *const shape = shape_of(c);
  *rows = *n = 1;
  for (int i = 0; i < x->ndim - shape->n; i++) *rows *= x->shape[i];
  for (int i = 0; i < shape->n; i++) *n *= shape->v[i];
}

typedef struct job {
  const rsi_norm_loops *k;
  rsi_row_fn  add, relu;
  const char *x, *before, *weight, *bias, *after, *g, *residual;
  char       *y, *sum, *mean, *rstd, *scratch;
  int64_t     rows, n, parts;
  size_t      item;
  double      eps;
} job;

static void *data_of(const rs_tensor *t) { return t ? t->data : NULL; }

static void start(const rsi_call *c, const rs_tensor *x, job *j) {
  *j = (job){.k = c->x->k->norm->of[x->dtype], .add = c->x->k->elementwise->binary[RSI_B_ADD][x->dtype],
             .relu = c->x->k->elementwise->binary[RSI_B_RELU_BACKWARD][x->dtype], .x = x->data, .item = rsi_item_size(x)};
  sizes(c, x, &j->rows, &j->n);
}

enum { NEAR = 2048 };                  /* elements that stay in the nearest cache */

static int64_t rows_near(const job *j) { return j->n < NEAR ? NEAR / j->n : 1; }

/* out: [n] = row(a, b); out may be a */
static void two(const job *j, rsi_row_fn row, int64_t n, char *out, const char *a, const char *b) {
  char *const data[3] = {out, (char *)(uintptr_t)a, (char *)(uintptr_t)b};
  const int64_t step = (int64_t)j->item, strides[3] = {step, step, step};
  row(n, data, strides, NULL);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------ */

static void forward_rows(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  const size_t row = (size_t)j->n * j->item;
  const char *const x = j->before ? j->sum : j->x;
  for (int64_t from = first, to; from < last; from = to) {
    to = last - from < rows_near(j) ? last : from + rows_near(j);
    const size_t at = (size_t)from * row;
    if (j->before) two(j, j->add, (to - from) * j->n, j->sum + at, j->x + at, j->before + at);
    for (int64_t i = from; i < to; i++)
      j->k->layer_norm(j->y + (size_t)i * row, x + (size_t)i * row, j->weight, j->bias, j->n, j->eps, j->mean + (size_t)i * j->item,
                       j->rstd + (size_t)i * j->item);
    if (j->after) two(j, j->add, (to - from) * j->n, j->y + at, j->y + at, j->after + at);
  }
}

static rs_status forward_run(const rsi_call *c) {
  job j;
  start(c, c->in[X], &j);
  j.before = data_of(c->in[BEFORE]), j.weight = data_of(c->in[WEIGHT]), j.bias = data_of(c->in[BIAS]), j.after = data_of(c->in[AFTER]);
  j.y = c->out[0]->data, j.mean = c->out[1]->data, j.rstd = c->out[2]->data, j.sum = c->out[3]->data;
  j.eps = RSI_ATTR(c, layer_norm_sum)->eps;
  if (j.n == 0) {
    memset(j.mean, 0, (size_t)j.rows * j.item), memset(j.rstd, 0, (size_t)j.rows * j.item);
    return RS_OK;
  }
  rsi_parallel(c->x, j.rows, (j.item == 4 ? 0.4 : 0.8) * (double)j.n + 30.0, forward_rows, &j);
  return RS_OK;
}

static rs_status forward_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[X];
  RSI_TRY(check_shape(c, x));
  RSI_TRY(check_like(c->in[BEFORE], x));
  RSI_TRY(check_like(c->in[AFTER], x));
  RSI_TRY(check_vector(c, c->in[WEIGHT], x));
  RSI_TRY(check_vector(c, c->in[BIAS], x));
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = c->desc[0];
  c->desc[1].ndim -= (int)shape_of(c)->n;
  c->desc[2] = c->desc[1];
  c->desc[3] = c->in[BEFORE] ? c->desc[0] : (rsi_desc){.dtype = x->dtype, .ndim = 1, .shape = {0}};
  return RS_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------------- */

static size_t backward_scratch(const rsi_call *c) {
  int64_t rows, n;
  sizes(c, c->in[BACK_X], &rows, &n);
  return rsi_row_part_bytes(n, 2, rsi_item_size(c->in[BACK_X])) * (size_t)rsi_row_parts(rows, n);
}

/* Rows from..to-1; adds to dw and db. */
static void backward_rows(const job *j, int64_t from, int64_t to, char *dw, char *db) {
  const size_t row = (size_t)j->n * j->item, at = (size_t)from * row;
  for (int64_t i = from; i < to; i++)
    j->k->layer_norm_grad(j->y + (size_t)i * row, j->g + (size_t)i * row, j->x + (size_t)i * row, j->weight,
                          j->mean + (size_t)i * j->item, j->rstd + (size_t)i * j->item, j->n, dw, db);
  if (j->relu) two(j, j->relu, (to - from) * j->n, j->y + at, j->y + at, j->x + at);
  if (j->residual) two(j, j->add, (to - from) * j->n, j->y + at, j->y + at, j->residual + at);
}

static void backward_parts(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t part = first; part < last; part++) {
    double *const sum = (void *)(j->scratch + (size_t)part * rsi_row_part_bytes(j->n, 2, j->item));
    char *const dw = (void *)(sum + 2 * j->n), *const db = dw + (size_t)j->n * j->item;
    const int64_t begin = j->rows * part / j->parts, end = j->rows * (part + 1) / j->parts;
    memset(sum, 0, sizeof(double) * (size_t)(2 * j->n));
    for (int64_t from = begin; from < end; from += RSI_FEW_ROWS) {
      const int64_t to = end - from < RSI_FEW_ROWS ? end : from + RSI_FEW_ROWS;
      memset(dw, 0, (size_t)(2 * j->n) * j->item);
      for (int64_t i = from, next; i < to; i = next) {
        next = to - i < rows_near(j) ? to : i + rows_near(j);
        backward_rows(j, i, next, dw, db);
      }
      j->k->add_to_double(sum, dw, 2 * j->n);
    }
  }
}

static rs_status backward_run(const rsi_call *c) {
  job j;
  start(c, c->in[BACK_X], &j);
  j.g = c->in[G]->data, j.mean = c->in[MEAN]->data, j.rstd = c->in[RSTD]->data;
  j.weight = data_of(c->in[BACK_WEIGHT]), j.residual = data_of(c->in[RESIDUAL]);
  if (!RSI_ATTR(c, layer_norm_backward_sum)->relu) j.relu = NULL;
  j.y = c->out[0]->data, j.scratch = c->scratch;
  j.parts = rsi_row_parts(j.rows, j.n);
  if (j.n == 0) return RS_OK;
  const double work = (j.item == 4 ? 0.9 : 1.8) * (double)j.n + 40.0;
  rsi_parallel(c->x, j.parts, work * (double)j.rows / (double)j.parts, backward_parts, &j);
  double *const sum = c->scratch;
  for (int64_t part = 1; part < j.parts; part++) {
    const double *const more = (const void *)(j.scratch + (size_t)part * rsi_row_part_bytes(j.n, 2, j.item));
    for (int64_t i = 0; i < 2 * j.n; i++) sum[i] += more[i];
  }
  j.k->from_double(c->out[1]->data, sum, j.n);
  j.k->from_double(c->out[2]->data, sum + j.n, j.n);
  return RS_OK;
}

static rs_status backward_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[BACK_X];
  RSI_TRY(check_shape(c, x));
  RSI_TRY(check_like(c->in[G], x));
  RSI_TRY(check_like(c->in[RESIDUAL], x));
  RSI_TRY(check_vector(c, c->in[BACK_WEIGHT], x));
  rsi_desc_of(x, &c->desc[0]);
  rsi_desc lead = c->desc[0];
  lead.ndim -= (int)shape_of(c)->n;
  for (int i = MEAN; i <= RSTD; i++) {
    const rs_tensor *const t = c->in[i];
    RSI_CHECK(t->dtype == x->dtype && t->ndim == lead.ndim && memcmp(t->shape, lead.shape, sizeof(int64_t) * (size_t)lead.ndim) == 0,
              RS_ERR_SHAPE, "%s %s does not belong to input %s", i == MEAN ? "mean" : "rstd", rsi_text(t), rsi_text(x));
  }
  c->desc[1] = (rsi_desc){.dtype = x->dtype, .ndim = (int)shape_of(c)->n};
  memcpy(c->desc[1].shape, shape_of(c)->v, sizeof(int64_t) * (size_t)c->desc[1].ndim);
  c->desc[2] = c->desc[1];
  return RS_OK;
}

/* ---- the ops ------------------------------------------------------------------------------------------------------------ */

static const layer_norm_sum_attrs of_33 = {{1, {33}}, 1e-5}, of_4_5 = {{2, {4, 5}}, 1e-3}, of_0 = {{1, {0}}, 1e-5};
static const layer_norm_backward_sum_attrs back_33 = {{1, {33}}, 0}, back_relu = {{1, {33}}, 1}, back_4_5 = {{2, {4, 5}}, 1},
                                           back_0 = {{1, {0}}, 0};

static const rsi_kernel forward_kernels[] = {{"layer_norm", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, forward_run}, {0}};
static const rsi_kernel backward_kernels[] = {
  {"layer_norm_backward", RSI_PORTABLE, RSI_FLOATS, NULL, backward_scratch, backward_run}, {0}};
static const rsi_sample forward_samples[] = {
  {"f7x33,f7x33,f33,f33,f7x33", &of_33, 0, 1}, {"f7x33,-,f33,f33,f7x33", &of_33, 0, 1}, {"f7x33,f7x33,f33", &of_33, 0, 1},
  {"f2x3x4x5,-,-,f4x5", &of_4_5, 0, 1}, {"f0x33,f0x33", &of_33, 0, 1}, {"f3x0,f3x0", &of_0, 0, 1}, {0}};
static const rsi_sample backward_samples[] = {
  {"f7x33,f7x33,f7,f7@0.5:2,f33,f7x33", &back_33, 0, 1}, {"f7x33,f7x33,f7,f7@0.5:2,f33", &back_relu, 0, 1},
  {"f2x3x4x5,f2x3x4x5,f2x3,f2x3@0.5:2,-,f2x3x4x5", &back_4_5, 0, 1}, {"f0x33,f0x33,f0,f0@0.5:2,f33", &back_33, 0, 1},
  {"f3x0,f3x0,f3,f3@0.5:2", &back_0, 0, 1}, {0}};

const rs_op rsi_op_layer_norm_sum = {
  .name = "layer_norm_sum", .doc = "s = x + before; layer_norm of s, plus after. Results: y, mean, rstd, s (empty without before).",
  .inputs = "x,before?,weight?,bias?,after?", .nin_min = 1, .nin_max = OPERANDS, .nout = 4, .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(layer_norm_sum), .infer = forward_infer, .kernels = forward_kernels, .samples = forward_samples,
};

const rs_op rsi_op_layer_norm_backward_sum = {
  .name = "layer_norm_backward_sum",
  .doc = "Gradients of layer_norm as layer_norm_backward; with relu also through the ReLU that made x; plus residual.",
  .inputs = "g,x,mean,rstd,weight?,residual?", .nin_min = 4, .nin_max = 6, .nout = 3, .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS,
  RSI_USES_ATTRS(layer_norm_backward_sum), .infer = backward_infer, .kernels = backward_kernels, .samples = backward_samples,
};
