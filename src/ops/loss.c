/*
** Losses. cross_entropy is one fused op: a logsumexp per position is all that its gradient needs besides the inputs.
**
** x is seen as [batch, C, inner]; a position is a pair (batch, inner) and has one label. With w the class weights (1 when there
** are none), W their sum, e the label smoothing and t the label, the loss of a position that is not ignored is
**     (1 - e) w[t] (lse - x[t]) + e / C sum_c w[c] (lse - x[c]),
** and `mean` divides the sum of the losses by the sum of w[t] over the positions that are not ignored.
*/
#include "ops/op.h"
#include <string.h>

#define REDUCTION_ATTR(F, T) F(T, ENUM, reduction, 0, 0, 2, "mean,sum,none", "what becomes of the single losses")
enum { MEAN, SUM, NONE };

#define CROSS_ENTROPY_ATTRS(F, T)                                                                                           \
  REDUCTION_ATTR(F, T)                                                                                                      \
  F(T, FLOAT, label_smoothing, 0, 0, 1, NULL, "share of the target that is spread over all classes")                        \
  F(T, INT, ignore_index, -100, -RSI_BIG, RSI_BIG, NULL, "positions with this label, as it stands in target, do not count")
RSI_ATTRS(cross_entropy, CROSS_ENTROPY_ATTRS)

#define MSE_ATTRS(F, T) REDUCTION_ATTR(F, T)
RSI_ATTRS(mse_loss, MSE_ATTRS)

/* ---- shapes of cross_entropy ----------------------------------------------------------------------------------------- */

/* The shape of x without its class dimension. */
static void position_shape(const rs_tensor *x, int *ndim, int64_t *shape) {
  *ndim = 0;
  for (int i = 0; i < x->ndim; i++)
    if (i != (x->ndim > 1)) shape[(*ndim)++] = x->shape[i];
}

static rs_status check_inputs(const rsi_call *c, const rs_tensor *x, const rs_tensor *target, const rs_tensor *weight) {
  int ndim;
  int64_t shape[RS_MAX_DIMS];
  RSI_CHECK(x->ndim > 0, RS_ERR_SHAPE, "input is 0-d, but it needs a dimension of classes: [N, C], [N, C, ...] or [C]");
  RSI_CHECK(rsi_is_float(x->dtype), RS_ERR_DTYPE, "input is %s but must hold scores of a float dtype", rs_dtype_name(x->dtype));
  RSI_CHECK(rsi_is_integer(target->dtype), RS_ERR_DTYPE, "target is %s but must hold class ids: i64, i32 or u8",
            rs_dtype_name(target->dtype));
  position_shape(x, &ndim, shape);
  const int64_t classes = x->shape[x->ndim > 1];
  RSI_CHECK(target->ndim == ndim && memcmp(target->shape, shape, sizeof(int64_t) * (size_t)ndim) == 0, RS_ERR_SHAPE,
            "input %s has %lld classes in dimension %d, so target must have shape %s, but it has %s", rsi_text(x),
            (long long)classes, (x->ndim > 1) + rsi_base(c), rsi_shape_text(ndim, shape), rsi_text(target));
  RSI_CHECK(classes > 0 || target->numel == 0, RS_ERR_SHAPE, "input %s has no classes", rsi_text(x));
  if (!weight) return RS_OK;
  RSI_CHECK(weight->ndim == 1 && weight->shape[0] == classes, RS_ERR_SHAPE,
            "weight must have shape [%lld], one for each class, but has %s", (long long)classes, rsi_text(weight));
  RSI_CHECK(weight->dtype == x->dtype, RS_ERR_DTYPE, "weight is %s but input is %s; cast one of them", rs_dtype_name(weight->dtype),
            rs_dtype_name(x->dtype));
  return RS_OK;
}

static rs_status cross_entropy_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  RSI_TRY(check_inputs(c, x, c->in[1], c->in[2]));
  rsi_desc *const loss = &c->desc[0], *const lse = &c->desc[1];
  position_shape(x, &lse->ndim, lse->shape);
  lse->dtype = RS_F64;
  *loss = *lse;
  loss->dtype = x->dtype;
  if (RSI_ATTR(c, cross_entropy)->reduction != NONE) loss->ndim = 0;
  return RS_OK;
}

static rs_status backward_infer(rsi_call *c) {
  const rs_tensor *const g = c->in[0], *const x = c->in[1], *const lse = c->in[3];
  RSI_TRY(check_inputs(c, x, c->in[2], c->in[4]));
  RSI_CHECK(rsi_same_shape(lse, c->in[2]), RS_ERR_SHAPE, "lse %s must have the shape of target %s", rsi_text(lse),
            rsi_text(c->in[2]));
  RSI_CHECK(RSI_ATTR(c, cross_entropy)->reduction != NONE ? g->ndim == 0 : rsi_same_shape(g, c->in[2]), RS_ERR_SHAPE,
            "gradient %s does not fit target %s under this reduction", rsi_text(g), rsi_text(c->in[2]));
  RSI_CHECK(g->dtype == x->dtype, RS_ERR_DTYPE, "gradient is %s but input is %s", rs_dtype_name(g->dtype), rs_dtype_name(x->dtype));
  RSI_CHECK(lse->dtype == x->dtype || lse->dtype == RS_F64, RS_ERR_DTYPE, "lse is %s but must be f64 or %s",
            rs_dtype_name(lse->dtype), rs_dtype_name(x->dtype));
  rsi_desc_of(x, &c->desc[0]);
  rsi_desc_of(c->in[2], &c->desc[1]);
  c->desc[1].dtype = RS_F64;
  return RS_OK;
}

/* ---- labels ---------------------------------------------------------------------------------------------------------- */

static inline double real_at(const void *data, int dtype, int64_t i) {
  return dtype == RS_F32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

typedef struct job {
  const rsi_norm_loops *k;
  const char *x, *target;
  const void *weight;              /* NULL: all 1 */
  int         dtype, target_dtype, lse_dtype;
  int64_t     batch, classes, inner, blocks;   /* blocks of positions in `inner` */
  size_t      item;
  int64_t     base, ignore;
  double      smoothing, all;      /* all: W */
  double      count;               /* sum of w[t] over the positions that are not ignored */
  double     *loss;                /* forward: of each position */
  double     *lse_out;             /* forward */
  const void *lse, *g;             /* backward */
  char       *dx;
  double     *coefficient;         /* backward: of the softmax in dx */
  int64_t     reduction;
} job;

static inline int64_t raw_at(const job *j, int64_t p) {
  if (j->target_dtype == RS_I64) return ((const int64_t *)(const void *)j->target)[p];
  if (j->target_dtype == RS_I32) return ((const int32_t *)(const void *)j->target)[p];
  return ((const uint8_t *)j->target)[p];
}

/* The class of position p, counting from 0; -1 when it is ignored. Labels have been checked. */
static inline int64_t class_at(const job *j, int64_t p) {
  const int64_t raw = raw_at(j, p);
  return raw == j->ignore ? -1 : raw - j->base;
}

static inline double weight_of(const job *j, int64_t class) { return j->weight ? real_at(j->weight, j->dtype, class) : 1.0; }

static rs_status bad_label(const job *j, const rs_tensor *target, int64_t p) {
  int64_t at[RS_MAX_DIMS], rest = p;
  for (int d = target->ndim - 1; d >= 0; d--) {
    at[d] = rest % target->shape[d] + j->base;
    rest /= target->shape[d];
  }
  const long long label = (long long)raw_at(j, p), first = j->base, last = (long long)(j->classes - 1 + j->base);
  /* The mistake that is made most: labels that count from 0 where they count from 1. */
  const char *const hint = j->base == 1 && label == 0 ? "; labels count from 1: add 1 to labels that count from 0" : "";
  if (target->ndim == 0) return rsi_fail(RS_ERR_INDEX, "label %lld is outside %lld..%lld%s", label, first, last, hint);
  if (target->ndim == 1)
    return rsi_fail(RS_ERR_INDEX, "label %lld at position %lld is outside %lld..%lld%s", label, (long long)at[0], first, last, hint);
  return rsi_fail(RS_ERR_INDEX, "label %lld at position %s is outside %lld..%lld%s", label, rsi_shape_text(target->ndim, at),
                  first, last, hint);
}

/* Sets all but the outputs; checks every label. */
static rs_status prepare(const rsi_call *c, const rs_tensor *x, const rs_tensor *target, const rs_tensor *weight, job *j) {
  const cross_entropy_attrs *const a = RSI_ATTR(c, cross_entropy);
  *j = (job){.k = c->x->k->norm->of[x->dtype], .x = x->data, .target = target->data, .weight = weight ? weight->data : NULL,
             .dtype = x->dtype, .target_dtype = target->dtype, .item = rsi_item_size(x), .base = c->x->base,
             .ignore = a->ignore_index, .smoothing = a->label_smoothing, .reduction = a->reduction};
  j->batch = x->ndim > 1 ? x->shape[0] : 1;
  j->classes = x->shape[x->ndim > 1];
  j->inner = 1;
  for (int i = 2; i < x->ndim; i++) j->inner *= x->shape[i];
  j->blocks = (j->inner + RSI_COLUMNS - 1) / RSI_COLUMNS;
  j->all = (double)j->classes;
  if (weight) j->all = 0;
  for (int64_t i = 0; weight && i < j->classes; i++) j->all += weight_of(j, i);
  for (int64_t p = 0; p < target->numel; p++) {
    const int64_t raw = raw_at(j, p);
    if (raw == j->ignore) continue;
    if (rsi_unlikely(raw < j->base || raw - j->base >= j->classes)) return bad_label(j, target, p);
    j->count += weight_of(j, raw - j->base);
  }
  return RS_OK;
}

/* ---- forward --------------------------------------------------------------------------------------------------------- */

/* The loss of position p, whose scores begin at x with a step of `inner` elements. */
static double loss_of(const job *j, int64_t p, const char *x, double lse) {
  const int64_t class = class_at(j, p);
  if (class < 0) return 0;
  double loss = (1.0 - j->smoothing) * weight_of(j, class) * (lse - real_at(x, j->dtype, class * j->inner));
  if (j->smoothing > 0) {
    double spread = 0;
    for (int64_t i = 0; i < j->classes; i++) spread += weight_of(j, i) * (lse - real_at(x, j->dtype, i * j->inner));
    loss += j->smoothing / (double)j->classes * spread;
  }
  return loss;
}

static void forward_rows(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t p = first; p < last; p++) {
    const char *const x = j->x + (size_t)(p * j->classes) * j->item;
    const double lse = class_at(j, p) < 0 ? 0 : j->k->logsumexp(x, j->classes);
    j->lse_out[p] = lse;
    j->loss[p] = loss_of(j, p, x, lse);
  }
}

/* An item is a block of neighbouring positions. */
static void forward_columns(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t t = first; t < last; t++) {
    const int64_t column = t % j->blocks * RSI_COLUMNS, batch = t / j->blocks;
    const int64_t width = j->inner - column < RSI_COLUMNS ? j->inner - column : RSI_COLUMNS, p = batch * j->inner + column;
    const char *const x = j->x + (size_t)(batch * j->classes * j->inner + column) * j->item;
    j->k->logsumexp_cols(j->lse_out + p, x, j->classes, width, j->inner);
    for (int64_t i = 0; i < width; i++) j->loss[p + i] = loss_of(j, p + i, x + (size_t)i * j->item, j->lse_out[p + i]);
  }
}

static void run_positions(const rsi_exec *x, job *j, rsi_range_fn rows, rsi_range_fn columns) {
  const double work = (j->dtype == RS_F32 ? 0.5 : 6.0) * (double)j->classes;
  if (j->classes == 0 || j->inner == 0) return;
  if (j->inner == 1) rsi_parallel(x, j->batch, work + 20.0, rows, j);
  else rsi_parallel(x, j->batch * j->blocks, work * (double)(j->inner < RSI_COLUMNS ? j->inner : RSI_COLUMNS), columns, j);
}

static void store_real(rs_tensor *t, int64_t i, double value) {
  if (t->dtype == RS_F32) ((float *)t->data)[i] = (float)value;
  else ((double *)t->data)[i] = value;
}

static size_t cross_entropy_scratch(const rsi_call *c) { return sizeof(double) * (size_t)c->in[1]->numel; }

/* x: [batch, C, inner], target: [batch, inner], out 0: the loss, out 1: lse: [batch, inner] */
static rs_status cross_entropy_run(const rsi_call *c) {
  rs_tensor *const out = c->out[0];
  const int64_t n = c->in[1]->numel;
  double total = 0;
  job j;
  RSI_TRY(prepare(c, c->in[0], c->in[1], c->in[2], &j));
  j.loss = c->scratch;
  j.lse_out = c->out[1]->data;
  run_positions(c->x, &j, forward_rows, forward_columns);
  if (j.reduction == NONE) {
    for (int64_t p = 0; p < n; p++) store_real(out, p, j.loss[p]);
    return RS_OK;
  }
  for (int64_t p = 0; p < n; p++) total += j.loss[p];
  store_real(out, 0, j.reduction == MEAN ? total / j.count : total);
  return RS_OK;
}

/* ---- backward -------------------------------------------------------------------------------------------------------- */

/*
** dx[c] = s ((1 - e) w[t] + e W / C) softmax(x)[c] - s (1 - e) w[t] [c == t] - s e / C w[c], where s is what flows into the loss
** of the position. The factor of the softmax is kept as output 1 for the second derivative.
*/
static double scale_of(const job *j, int64_t p) {
  if (j->reduction == NONE) return real_at(j->g, j->dtype, p);
  return real_at(j->g, j->dtype, 0) / (j->reduction == MEAN ? j->count : 1.0);
}

static double coefficient_of(const job *j, int64_t class, double scale) {
  return scale * ((1.0 - j->smoothing) * weight_of(j, class) + j->smoothing * j->all / (double)j->classes);
}

static inline void subtract(const job *j, char *data, int64_t i, double value) {
  if (j->dtype == RS_F32) ((float *)(void *)data)[i] -= (float)value;
  else ((double *)(void *)data)[i] -= value;
}

/* What is not a multiple of the softmax. */
static void subtract_target(const job *j, char *dx, int64_t class, double scale) {
  subtract(j, dx, class * j->inner, scale * (1.0 - j->smoothing) * weight_of(j, class));
  if (j->smoothing > 0)
    for (int64_t i = 0; i < j->classes; i++)
      subtract(j, dx, i * j->inner, scale * j->smoothing / (double)j->classes * weight_of(j, i));
}

static void backward_rows(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t p = first; p < last; p++) {
    const size_t at = (size_t)(p * j->classes) * j->item;
    const int64_t class = class_at(j, p);
    if (class < 0) {
      memset(j->dx + at, 0, (size_t)j->classes * j->item);
      j->coefficient[p] = 0;
      continue;
    }
    const double scale = scale_of(j, p), a = coefficient_of(j, class, scale);
    j->coefficient[p] = a;
    j->k->softmax_scaled(j->dx + at, j->x + at, real_at(j->lse, j->lse_dtype, p), a, j->classes);
    subtract_target(j, j->dx + at, class, scale);
  }
}

static void zero_column(const job *j, char *dx) {
  for (int64_t i = 0; i < j->classes; i++) memset(dx + (size_t)(i * j->inner) * j->item, 0, j->item);
}

static void backward_columns(void *arg, int64_t first, int64_t last) {
  const job *const j = arg;
  for (int64_t t = first; t < last; t++) {
    const int64_t column = t % j->blocks * RSI_COLUMNS, batch = t / j->blocks;
    const int64_t width = j->inner - column < RSI_COLUMNS ? j->inner - column : RSI_COLUMNS, p = batch * j->inner + column;
    const size_t at = (size_t)(batch * j->classes * j->inner + column) * j->item;
    double lse[RSI_COLUMNS], *const a = j->coefficient + p;
    for (int64_t i = 0; i < width; i++) {
      const int64_t class = class_at(j, p + i);
      lse[i] = real_at(j->lse, j->lse_dtype, p + i);
      a[i] = class < 0 ? 0 : coefficient_of(j, class, scale_of(j, p + i));
    }
    j->k->softmax_scaled_cols(j->dx + at, j->x + at, lse, a, j->classes, width, j->inner);
    for (int64_t i = 0; i < width; i++) {
      char *const dx = j->dx + at + (size_t)i * j->item;
      const int64_t class = class_at(j, p + i);
      if (class < 0) zero_column(j, dx);
      else subtract_target(j, dx, class, scale_of(j, p + i));
    }
  }
}

static rs_status cross_entropy_backward_run(const rsi_call *c) {
  job j;
  RSI_TRY(prepare(c, c->in[1], c->in[2], c->in[4], &j));
  j.g = c->in[0]->data;
  j.lse = c->in[3]->data;
  j.lse_dtype = c->in[3]->dtype;
  j.dx = c->out[0]->data;
  j.coefficient = c->out[1]->data;
  run_positions(c->x, &j, backward_rows, backward_columns);
  return RS_OK;
}

/* ---- gradients ------------------------------------------------------------------------------------------------------- */

static void refuse_weight(rsi_grad *g, int i) {
  if (rsi_needs(g, i))
    rsi_grad_fail(g, rsi_fail(RS_ERR_GRAD, "cross_entropy has no gradient for its class weights; detach them"));
}

static void cross_entropy_grad(rsi_grad *g) {
  rs_tensor *const in[5] = {rsi_gout(g, 0), rsi_in(g, 0), rsi_in(g, 1), rsi_out(g, 1), rsi_in(g, 2)};
  rs_tensor *out[2];
  refuse_weight(g, 2);
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_emit(g, RS_OP_cross_entropy_backward, rsi_attrs(g), 5, in, 2, out));
}

/* lse stands for a function of x, so the whole second derivative goes to x and none to lse. */
static void cross_entropy_backward_grad(rsi_grad *g) {
  const cross_entropy_attrs *const a = rsi_attrs(g);
  const rsi_desc *const x = rsi_in_desc(g, 1), *const upstream = rsi_in_desc(g, 0);
  const int class_dim = x->ndim > 1;
  const struct { int64_t dim; } along = {class_dim};   /* the attributes of softmax */
  const rs_list classes = {1, {class_dim}};
  rs_tensor *const h = rsi_gout(g, 0);
  refuse_weight(g, 4);
  if (rsi_needs(g, 0)) {   /* dx and the factors are linear in g */
    rs_tensor *const in[5] = {rsi_b_full(g, upstream, 1.0), rsi_in(g, 1), rsi_in(g, 2), rsi_in(g, 3), rsi_in(g, 4)};
    rs_tensor *unit[2] = {NULL, NULL};
    rsi_emit(g, RS_OP_cross_entropy_backward, a, 5, in, 2, unit);
    rs_tensor *t = rsi_emit2(g, RS_OP_mul, NULL, h, unit[0]);
    t = a->reduction == NONE ? rsi_b_sum(g, t, &classes, false) : rsi_b_sum(g, t, NULL, false);
    if (rsi_has_gout(g, 1)) {
      rs_tensor *u = rsi_emit2(g, RS_OP_mul, NULL, rsi_gout(g, 1), unit[1]);
      if (a->reduction != NONE) u = rsi_b_sum(g, u, NULL, false);
      t = rsi_emit2(g, RS_OP_add, NULL, t, rsi_b_cast(g, u, upstream->dtype));
    }
    rsi_give(g, 0, t);
  }
  if (!rsi_needs(g, 1)) return;
  int64_t shape[RS_MAX_DIMS];
  for (int i = 0; i < x->ndim; i++) shape[i] = i == class_dim ? 1 : x->shape[i];
  rs_tensor *const factor = rsi_b_reshape(g, rsi_b_cast(g, rsi_out(g, 1), x->dtype), x->ndim, shape);
  rs_tensor *const p = rsi_emit1(g, RS_OP_softmax, &along, rsi_in(g, 1));
  rsi_give(g, 1, rsi_emit2(g, RS_OP_softmax_backward, &along, rsi_emit2(g, RS_OP_mul, NULL, h, factor), p));
}

/* ---- cross_entropy: the ops ------------------------------------------------------------------------------------------ */

static const rsi_kernel cross_entropy_kernels[] = {
  {"cross_entropy", RSI_PORTABLE, RSI_FLOATS, NULL, cross_entropy_scratch, cross_entropy_run},
  {0},
};
static const rsi_kernel cross_entropy_backward_kernels[] = {
  {"cross_entropy_backward", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, cross_entropy_backward_run},
  {0},
};

static const cross_entropy_attrs ce_default = {.ignore_index = -100};
static const cross_entropy_attrs ce_smooth  = {.ignore_index = -100, .label_smoothing = 0.1};
static const cross_entropy_attrs ce_sum     = {.ignore_index = -100, .label_smoothing = 0.2, .reduction = SUM};
static const cross_entropy_attrs ce_none    = {.ignore_index = -100, .label_smoothing = 0.3, .reduction = NONE};
static const cross_entropy_attrs ce_ignore  = {.ignore_index = 2, .label_smoothing = 0.1};

static const rsi_sample cross_entropy_samples[] = {
  {"f7x33,i7@0:32", NULL, 0, 0},
  {"f8x10@-9:9,i8@0:9", &ce_default, 0, 0},
  {"f8x10,i8@0:9,f10@0.1:2", &ce_smooth, 0, 0},
  {"f8x5,i8@0:4,f5@0.1:2", &ce_ignore, 0, 0},
  {"f8x5,i8@0:4", &ce_sum, 0, 0},
  {"f3x5x70,i3x70@0:4,f5@0.1:2", &ce_none, 0, 0},
  {"f2x4x3x3,i2x3x3@0:3", &ce_smooth, 0, 0},
  {"f7,i@0:6", &ce_smooth, 0, 0},
  {"f0x5,i0@0:4", &ce_sum, 0, 0},
  {NULL, NULL, 0, 0},
};

/* Not differentiated by themselves: lse would have to move with x. */
static const rsi_sample cross_entropy_backward_samples[] = {
  {"f,f7x33,i7@0:32,f7@3:4,-", NULL, 0, 1},
  {"f,f8x10,i8@0:9,f8@3:4,f10@0.1:2", &ce_smooth, 0, 1},
  {"f,f8x5,i8@0:4,f8@3:4,f5@0.1:2", &ce_ignore, 0, 1},
  {"f,f8x5,i8@0:4,f8@3:4,-", &ce_sum, 0, 1},
  {"f3x70,f3x5x70,i3x70@0:4,f3x70@3:4,f5@0.1:2", &ce_none, 0, 1},
  {"f,f7,i@0:6,f@3:4", &ce_smooth, 0, 1},
  {"f,f0x5,i0@0:4,f0@3:4", &ce_sum, 0, 1},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_cross_entropy = {
  .name = "cross_entropy",
  .doc = "Cross entropy of scores x: [N, C], [N, C, ...] or [C] and class ids, with optional class weights: -w[t] log "
         "softmax(x)[t]; mean divides by the sum of the weights of the labels that count. Output 1, the logsumexp, is for "
         "the gradient.",
  .inputs = "x,target,weight?", .nin_min = 2, .nin_max = 3, .nout = 2, .nout_public = 1,
  .traits = RSI_T_INDEXED, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(cross_entropy),
  .infer = cross_entropy_infer, .grad = cross_entropy_grad,
  .saves = {RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_IN(2) | RSI_KEEP_OUT(1)},
  .kernels = cross_entropy_kernels, .samples = cross_entropy_samples,
};

const rs_op rsi_op_cross_entropy_backward = {
  .name = "cross_entropy_backward",
  .doc = "Gradient of cross_entropy; output 1 holds the factor of softmax(x) at each position, for the second derivative.",
  .inputs = "g,x,target,lse,weight?", .nin_min = 4, .nin_max = 5, .nout = 2,
  .traits = RSI_T_INTERNAL | RSI_T_INDEXED, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(cross_entropy),
  .infer = backward_infer, .grad = cross_entropy_backward_grad,
  .saves = {RSI_KEEP_IN(1) | RSI_KEEP_IN(2) | RSI_KEEP_IN(3) | RSI_KEEP_IN(4), RSI_KEEP_IN(1) | RSI_KEEP_OUT(1)},
  .kernels = cross_entropy_backward_kernels, .samples = cross_entropy_backward_samples,
};

/* ---- mse_loss -------------------------------------------------------------------------------------------------------- */

enum { MSE_PART = 32768 };   /* elements whose squares are summed together */

static rs_status mse_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0], *const y = c->in[1];
  RSI_CHECK(rsi_same_shape(x, y), RS_ERR_SHAPE,
            "input %s and target %s differ in shape; reshape one of them (broadcasting here is nearly always a mistake)",
            rsi_text(x), rsi_text(y));
  rsi_desc_of(x, &c->desc[0]);
  if (RSI_ATTR(c, mse_loss)->reduction != NONE) c->desc[0].ndim = 0;
  return RS_OK;
}

typedef struct mse_job {
  const rsi_norm_loops *k;
  const char *x, *y;
  void       *out;
  double     *part;
  int64_t     n;
  size_t      item;
} mse_job;

static void mse_parts(void *arg, int64_t first, int64_t last) {
  const mse_job *const j = arg;
  for (int64_t i = first; i < last; i++) {
    const int64_t at = i * MSE_PART, n = j->n - at < MSE_PART ? j->n - at : MSE_PART;
    j->part[i] = j->k->squared_distance(j->x + (size_t)at * j->item, j->y + (size_t)at * j->item, n);
  }
}

static void mse_each(void *arg, int64_t first, int64_t last) {
  const mse_job *const j = arg;
  if (j->item == sizeof(float)) {
    const float *const x = (const void *)j->x, *const y = (const void *)j->y;
    for (int64_t i = first; i < last; i++) ((float *)j->out)[i] = (x[i] - y[i]) * (x[i] - y[i]);
  } else {
    const double *const x = (const void *)j->x, *const y = (const void *)j->y;
    for (int64_t i = first; i < last; i++) ((double *)j->out)[i] = (x[i] - y[i]) * (x[i] - y[i]);
  }
}

static int64_t mse_part_count(const rsi_call *c) { return (c->in[0]->numel + MSE_PART - 1) / MSE_PART; }

static size_t mse_scratch(const rsi_call *c) {
  const int64_t parts = mse_part_count(c);
  return parts > 1 ? sizeof(double) * (size_t)parts : 0;
}

static rs_status mse_run(const rsi_call *c) {
  const int64_t reduction = RSI_ATTR(c, mse_loss)->reduction, parts = mse_part_count(c);
  const rs_tensor *const x = c->in[0];
  double one = 0, total = 0;
  mse_job j = {c->x->k->norm->of[x->dtype], x->data, c->in[1]->data, c->out[0]->data, parts > 1 ? c->scratch : &one, x->numel,
               rsi_item_size(x)};
  if (reduction == NONE) {
    rsi_parallel(c->x, x->numel, 0.4, mse_each, &j);
    return RS_OK;
  }
  rsi_parallel(c->x, parts, 0.2 * MSE_PART, mse_parts, &j);
  for (int64_t i = 0; i < parts; i++) total += j.part[i];
  store_real(c->out[0], 0, reduction == MEAN ? total / (double)x->numel : total);
  return RS_OK;
}

/* dx = 2 (x - y) g, divided by the number of elements for the mean; dy = -dx */
static void mse_grad(rsi_grad *g) {
  const mse_loss_attrs *const a = rsi_attrs(g);
  const rsi_desc *const d = rsi_in_desc(g, 0);
  double n = 1;
  for (int i = 0; i < d->ndim; i++) n *= (double)d->shape[i];
  rs_tensor *const scaled = rsi_b_scale(g, rsi_gout(g, 0), a->reduction == MEAN ? 2.0 / n : 2.0);
  rs_tensor *const dx = rsi_emit2(g, RS_OP_mul, NULL, rsi_emit2(g, RS_OP_sub, NULL, rsi_in(g, 0), rsi_in(g, 1)), scaled);
  if (rsi_needs(g, 0)) rsi_give(g, 0, dx);
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_scale(g, dx, -1.0));
}

static const rsi_kernel mse_kernels[] = {{"mse_loss", RSI_PORTABLE, RSI_FLOATS, NULL, mse_scratch, mse_run}, {0}};

static const mse_loss_attrs mse_sum = {SUM}, mse_none = {NONE};

static const rsi_sample mse_samples[] = {
  {"f7x33,f7x33", NULL, 0, 0},
  {"f,f", NULL, 0, 0},
  {"f0x3,f0x3", &mse_sum, 0, 0},
  {"f5x70,f5x70", &mse_sum, 0, 0},
  {"f3x7,f3x7", &mse_none, 0, 0},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_mse_loss = {
  .name = "mse_loss",
  .doc = "Mean (or sum, or each) of (x - target)^2; both must have the same shape.",
  .inputs = "x,target", .nin_min = 2, .nin_max = 2, .nout = 1,
  .traits = RSI_T_PROMOTE, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(mse_loss),
  .infer = mse_infer, .grad = mse_grad, .saves = {RSI_KEEP_IN(0) | RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1)},
  .kernels = mse_kernels, .samples = mse_samples,
};
