/*
** Softmax and its logarithm along one dimension, and their gradients. A contiguous tensor is seen as [outer, n, inner]: with
** inner = 1 the loops take rows, otherwise blocks of neighbouring columns.
*/
#include "ops/op.h"

#define SOFTMAX_ATTRS(F, T) F(T, DIM, dim, -1, 0, 0, NULL, "the dimension that sums to 1")
RSI_ATTRS(softmax, SOFTMAX_ATTRS)

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

static rs_status softmax_infer(rsi_call *c) {
  softmax_attrs *const a = c->attrs;
  const int ndim = c->in[0]->ndim;
  RSI_TRY(rsi_dim(c->ctx, a->dim, ndim > 0 ? ndim : 1, &a->dim));   /* a 0-d tensor has dimension 0 here, of size 1 */
  rsi_desc_of(c->in[0], &c->desc[0]);
  return RS_OK;
}

static rs_status backward_infer(rsi_call *c) {
  RSI_CHECK(rsi_same_shape(c->in[0], c->in[1]), RS_ERR_SHAPE, "gradient %s and result %s must have one shape", rsi_text(c->in[0]),
            rsi_text(c->in[1]));
  RSI_CHECK(c->in[0]->dtype == c->in[1]->dtype, RS_ERR_DTYPE, "gradient %s and result %s must have one dtype",
            rs_dtype_name(c->in[0]->dtype), rs_dtype_name(c->in[1]->dtype));
  return softmax_infer(c);
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

typedef void (*row_fn)(void *y, const void *x, int64_t n);
typedef void (*cols_fn)(void *y, const void *x, int64_t n, int64_t width, int64_t stride);
typedef void (*row_grad_fn)(void *dx, const void *g, const void *y, int64_t n);
typedef void (*cols_grad_fn)(void *dx, const void *g, const void *y, int64_t n, int64_t width, int64_t stride);

/* x is the only input, or the gradient when y is given. */
typedef struct job {
  char        *out;
  const char  *x, *y;
  int64_t      n, inner, blocks;     /* blocks of columns in `inner` */
  size_t       item;
  row_fn       row;
  cols_fn      cols;
  row_grad_fn  row_grad;
  cols_grad_fn cols_grad;
} job;

static void run_rows(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) {
    const size_t at = (size_t)(i * j->n) * j->item;
    if (j->y) j->row_grad(j->out + at, j->x + at, j->y + at, j->n);
    else j->row(j->out + at, j->x + at, j->n);
  }
}

static void run_columns(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t i = first; i < last; i++) {
    const int64_t column = i % j->blocks * RSI_COLUMNS;
    const int64_t width = j->inner - column < RSI_COLUMNS ? j->inner - column : RSI_COLUMNS;
    const size_t at = (size_t)(i / j->blocks * j->n * j->inner + column) * j->item;
    if (j->y) j->cols_grad(j->out + at, j->x + at, j->y + at, j->n, width, j->inner);
    else j->cols(j->out + at, j->x + at, j->n, width, j->inner);
  }
}

static rs_status run(const rsi_call *c, job *j) {
  const rs_tensor *const x = c->in[0];
  const int64_t dim = RSI_ATTR(c, softmax)->dim;
  const double work = x->dtype == RS_F32 ? 0.5 : 6.0;
  int64_t outer = 1;
  if (x->numel == 0) return RS_OK;
  j->out = c->out[0]->data;
  j->x = x->data;
  j->y = c->nin > 1 ? c->in[1]->data : NULL;
  j->item = rsi_item_size(x);
  j->n = j->inner = 1;
  for (int i = 0; i < x->ndim; i++)
    if (i < dim) outer *= x->shape[i];
    else if (i > dim) j->inner *= x->shape[i];
    else j->n = x->shape[i];
  j->blocks = (j->inner + RSI_COLUMNS - 1) / RSI_COLUMNS;
  const int64_t width = j->inner < RSI_COLUMNS ? j->inner : RSI_COLUMNS;
  if (j->inner == 1) rsi_parallel(c->x, outer, work * (double)j->n + 20.0, run_rows, j);
  else rsi_parallel(c->x, outer * j->blocks, work * (double)(j->n * width), run_columns, j);
  return RS_OK;
}

static const rsi_norm_loops *loops(const rsi_call *c) { return c->x->k->norm->of[c->in[0]->dtype]; }

static rs_status softmax_run(const rsi_call *c) {
  job j = {.row = loops(c)->softmax, .cols = loops(c)->softmax_cols};
  return run(c, &j);
}

static rs_status log_softmax_run(const rsi_call *c) {
  job j = {.row = loops(c)->log_softmax, .cols = loops(c)->log_softmax_cols};
  return run(c, &j);
}

static rs_status softmax_backward_run(const rsi_call *c) {
  job j = {.row_grad = loops(c)->softmax_grad, .cols_grad = loops(c)->softmax_grad_cols};
  return run(c, &j);
}

static rs_status log_softmax_backward_run(const rsi_call *c) {
  job j = {.row_grad = loops(c)->log_softmax_grad, .cols_grad = loops(c)->log_softmax_grad_cols};
  return run(c, &j);
}

/* ---- gradients ------------------------------------------------------------------------------------------------------- */

static rs_tensor *sum_along(rsi_grad *g, rs_tensor *t) {
  const softmax_attrs *const a = rsi_attrs(g);
  const rs_list dims = {1, {a->dim}};
  if (rsi_in_desc(g, 0)->ndim == 0) return t;
  return rsi_b_sum(g, t, &dims, true);
}

static rs_tensor *mul(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_mul, NULL, a, b); }
static rs_tensor *sub(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_sub, NULL, a, b); }

static void softmax_grad(rsi_grad *g) {
  rsi_give(g, 0, rsi_emit2(g, RS_OP_softmax_backward, rsi_attrs(g), rsi_gout(g, 0), rsi_out(g, 0)));
}

static void log_softmax_grad(rsi_grad *g) {
  rsi_give(g, 0, rsi_emit2(g, RS_OP_log_softmax_backward, rsi_attrs(g), rsi_gout(g, 0), rsi_out(g, 0)));
}

/* dx = y (g - s), s = sum(g y). With h the gradient of dx: y (h - sum(h y)) for g, h (g - s) - g sum(h y) for y. */
static void softmax_backward_grad(rsi_grad *g) {
  rs_tensor *const h = rsi_gout(g, 0), *const y = rsi_in(g, 1);
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_emit2(g, RS_OP_softmax_backward, rsi_attrs(g), h, y));
  if (!rsi_needs(g, 1)) return;
  rs_tensor *const gy = rsi_in(g, 0), *const s = sum_along(g, mul(g, gy, y)), *const t = sum_along(g, mul(g, h, y));
  rsi_give(g, 1, sub(g, mul(g, h, sub(g, gy, s)), mul(g, gy, t)));
}

/* dx = g - exp(y) sum(g). With h the gradient of dx: h - sum(h exp(y)) for g, -h exp(y) sum(g) for y. */
static void log_softmax_backward_grad(rsi_grad *g) {
  rs_tensor *const h = rsi_gout(g, 0), *const weighted = mul(g, h, rsi_emit1(g, RS_OP_exp, NULL, rsi_in(g, 1)));
  if (rsi_needs(g, 0)) rsi_give(g, 0, sub(g, h, sum_along(g, weighted)));
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_scale(g, mul(g, weighted, sum_along(g, rsi_in(g, 0))), -1.0));
}

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

static const softmax_attrs along_0 = {0}, along_1 = {1};

static const rsi_sample samples[] = {
  {"f7x33", NULL, 0, 0},
  {"f", NULL, 0, 0},
  {"f3x0", NULL, 0, 0},
  {"f0x3", NULL, 0, 0},
  {"f5x7@-20:20", NULL, 0, 0},
  {"f9x5", &along_0, 0, 0},
  {"f2x7x70", &along_1, 0, 0},
  {"f3x4x5", &along_0, 0, 0},
  {NULL, NULL, 0, 0},
};

static const rsi_sample backward_samples[] = {
  {"f7x33,f7x33@0:0.2", NULL, 0, 0},
  {"f,f", NULL, 0, 0},
  {"f3x0,f3x0", NULL, 0, 0},
  {"f9x5,f9x5@-2:0", &along_0, 0, 0},
  {"f2x7x70,f2x7x70@-2:0", &along_1, 0, 0},
  {NULL, NULL, 0, 0},
};

#define KERNELS(name) static const rsi_kernel name##_kernels[] = {{#name, RSI_PORTABLE, RSI_FLOATS, NULL, NULL, name##_run}, {0}};
KERNELS(softmax)
KERNELS(log_softmax)
KERNELS(softmax_backward)
KERNELS(log_softmax_backward)

const rs_op rsi_op_softmax = {
  .name = "softmax",
  .doc = "exp(x) / sum(exp(x)) along a dimension, computed from x - max(x).",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(softmax),
  .infer = softmax_infer, .grad = softmax_grad, .saves = {RSI_KEEP_OUT(0)}, .kernels = softmax_kernels, .samples = samples,
};

const rs_op rsi_op_log_softmax = {
  .name = "log_softmax",
  .doc = "x - log(sum(exp(x))) along a dimension, computed from x - max(x).",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(softmax),
  .infer = softmax_infer, .grad = log_softmax_grad, .saves = {RSI_KEEP_OUT(0)}, .kernels = log_softmax_kernels, .samples = samples,
};

const rs_op rsi_op_softmax_backward = {
  .name = "softmax_backward",
  .doc = "Gradient of softmax from the gradient g and the result y: y (g - sum(g y)).",
  .inputs = "g,y", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF,
  RSI_USES_ATTRS(softmax), .infer = backward_infer, .grad = softmax_backward_grad,
  .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1)}, .kernels = softmax_backward_kernels, .samples = backward_samples,
};

const rs_op rsi_op_log_softmax_backward = {
  .name = "log_softmax_backward",
  .doc = "Gradient of log_softmax from the gradient g and the result y: g - exp(y) sum(g).",
  .inputs = "g,y", .nin_min = 2, .nin_max = 2, .nout = 1, .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF,
  RSI_USES_ATTRS(softmax), .infer = backward_infer, .grad = log_softmax_backward_grad,
  .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1)}, .kernels = log_softmax_backward_kernels,
  .samples = backward_samples,
};
