/*
** Batch norm and layer norm. Both give, besides y, the mean and 1 / sqrt(var + eps) that they used: their gradients need them.
**
** Batch norm sees x as [N, C, inner]: with inner > 1 a channel is N planes, otherwise a column. Its statistics come from the
** variance fold of the reductions. Layer norm sees x as [rows, n].
*/
#include "ops/row_parts.h"
#include "ops/fold.h"
#include <math.h>
#include <string.h>

static const rsi_norm_loops *loops(const rsi_call *c, const rs_tensor *x) { return c->x->k->norm->of[x->dtype]; }

static inline double real_at(const void *data, int dtype, int64_t i) {
  return dtype == RS_F32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

static inline void store_real(void *data, int dtype, int64_t i, double value) {
  if (dtype == RS_F32) ((float *)data)[i] = (float)value;
  else ((double *)data)[i] = value;
}

/* An optional vector with one value for each of n. */
static rs_status check_vector(const rs_tensor *t, const char *name, int64_t n, const rs_tensor *x) {
  if (!t) return RS_OK;
  RSI_CHECK(t->ndim == 1 && t->shape[0] == n, RS_ERR_SHAPE, "%s %s must have shape [%lld] for input %s", name, rsi_text(t),
            (long long)n, rsi_text(x));
  RSI_CHECK(t->dtype == x->dtype, RS_ERR_DTYPE, "%s is %s but input is %s; cast one of them", name, rs_dtype_name(t->dtype),
            rs_dtype_name(x->dtype));
  return RS_OK;
}

static rs_status check_like(const rs_tensor *g, const rs_tensor *x) {
  RSI_CHECK(rsi_same_shape(g, x), RS_ERR_SHAPE, "gradient %s and input %s must have one shape", rsi_text(g), rsi_text(x));
  RSI_CHECK(g->dtype == x->dtype, RS_ERR_DTYPE, "gradient is %s but input is %s", rs_dtype_name(g->dtype), rs_dtype_name(x->dtype));
  return RS_OK;
}

/* ---- second derivatives ---------------------------------------------------------------------------------------------- */

/*
** Both norms have dx = r P(u) with u = g weight, r = rstd, xhat = (x - mean) r and P(z) = z - E(z) - xhat E(xhat z), where E is
** the mean over the normalised elements; dweight = sum(g xhat), dbias = sum(g). P is symmetric and d xhat = r P(dx). With h, hw
** and hb the gradients of dx, dweight and dbias:
**   for g       weight r P(h) + hw xhat + hb
**   for weight  sum(g r P(h))
**   for x       r P(v) - xhat r^2 E(h P(u)),  v = hw g - r (h E(xhat u) + u E(xhat h))
** Mean and rstd are computed from x again here: what was saved is not seen as a function of x, and third derivatives need that.
*/
typedef struct second {
  rsi_grad  *g;
  rs_list    dims;             /* that are normalised together */
  rs_tensor *xhat, *r;
} second;

static rs_tensor *mul(const second *s, rs_tensor *a, rs_tensor *b) { return rsi_emit2(s->g, RS_OP_mul, NULL, a, b); }
static rs_tensor *sub(const second *s, rs_tensor *a, rs_tensor *b) { return rsi_emit2(s->g, RS_OP_sub, NULL, a, b); }
static rs_tensor *add(const second *s, rs_tensor *a, rs_tensor *b) {
  return !a ? b : !b ? a : rsi_emit2(s->g, RS_OP_add, NULL, a, b);
}

static rs_tensor *expect(const second *s, rs_tensor *t) {
  const struct { rs_list dims; int64_t keepdim; } mean = {s->dims, 1};   /* the attributes of mean */
  return rsi_emit1(s->g, RS_OP_mean, &mean, t);
}

static rs_tensor *project(const second *s, rs_tensor *t) {
  return sub(s, sub(s, t, expect(s, t)), mul(s, s->xhat, expect(s, mul(s, s->xhat, t))));
}

static void normalise_again(second *s, rs_tensor *x, double eps) {
  rs_tensor *const centred = sub(s, x, expect(s, x));
  rs_tensor *const var = expect(s, mul(s, centred, centred));
  s->r = rsi_emit1(s->g, RS_OP_rsqrt, NULL, rsi_b_add_scalar(s->g, var, eps));
  s->xhat = mul(s, centred, s->r);
}

/* Inputs of the op: g, x, mean, rstd, weight?; weight, hw and hb are given here in a shape that broadcasts to x, or NULL. */
static void second_derivative(const second *s, rs_tensor *weight, rs_tensor *hw, rs_tensor *hb, const rs_list *weight_dims) {
  rs_tensor *const gy = rsi_in(s->g, 0), *const h = rsi_gout(s->g, 0);
  rs_tensor *const u = weight ? mul(s, gy, weight) : gy, *const rph = mul(s, s->r, project(s, h));
  if (rsi_needs(s->g, 0))
    rsi_give(s->g, 0, add(s, add(s, weight ? mul(s, rph, weight) : rph, hw ? mul(s, s->xhat, hw) : NULL), hb));
  if (rsi_needs(s->g, 1)) {
    rs_tensor *const pair = add(s, mul(s, h, expect(s, mul(s, s->xhat, u))), mul(s, u, expect(s, mul(s, s->xhat, h))));
    rs_tensor *v = rsi_b_scale(s->g, mul(s, s->r, pair), -1.0);
    if (hw) v = add(s, v, mul(s, gy, hw));
    rs_tensor *const along = mul(s, mul(s, s->r, s->r), expect(s, mul(s, h, project(s, u))));
    rsi_give(s->g, 1, sub(s, mul(s, s->r, project(s, v)), mul(s, s->xhat, along)));
  }
  if (weight && rsi_needs(s->g, 4)) {
    rs_tensor *const t = mul(s, gy, rph);
    rsi_give(s->g, 4, weight_dims ? rsi_b_sum(s->g, t, weight_dims, false) : t);
  }
}

/* ---- batch norm: shapes ---------------------------------------------------------------------------------------------- */

#define BATCH_NORM_ATTRS(F, T)                                                                                              \
  F(T, BOOL, training, 1, 0, 1, NULL, "use the statistics of this batch and update the running ones")                      \
  F(T, FLOAT, momentum, 0.1, 0, 1, NULL, "share of the new statistics in the running ones")                                 \
  F(T, FLOAT, eps, 1e-5, 0, RSI_BIG, NULL, "added to the variance")
RSI_ATTRS(batch_norm, BATCH_NORM_ATTRS)

#define BATCH_NORM_BACKWARD_ATTRS(F, T)                                                                                     \
  F(T, BOOL, training, 1, 0, 1, NULL, "the statistics came from this batch")                                                \
  F(T, FLOAT, eps, 1e-5, 0, RSI_BIG, NULL, "what was added to the variance")
RSI_ATTRS(batch_norm_backward, BATCH_NORM_BACKWARD_ATTRS)

enum { X, WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR };

static rs_status batch_norm_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[X];
  RSI_CHECK(x->ndim >= 2, RS_ERR_SHAPE, "input %s has %d dimensions, but [N, C] or [N, C, ...] is needed", rsi_text(x), x->ndim);
  const int64_t channels = x->shape[1];
  for (int i = WEIGHT; i <= RUNNING_VAR; i++) {
    const rs_tensor *const t = c->in[i];
    RSI_CHECK(!t || t->ndim != 1 || t->shape[0] == channels, RS_ERR_SHAPE, "input %s has %lld channels, expected %lld (%s %s)",
              rsi_text(x), (long long)channels, (long long)t->shape[0],
              i == WEIGHT ? "weight" : i == BIAS ? "bias" : i == RUNNING_MEAN ? "running_mean" : "running_var", rsi_text(t));
  }
  RSI_TRY(check_vector(c->in[WEIGHT], "weight", channels, x));
  RSI_TRY(check_vector(c->in[BIAS], "bias", channels, x));
  RSI_TRY(check_vector(c->in[RUNNING_MEAN], "running_mean", channels, x));
  RSI_TRY(check_vector(c->in[RUNNING_VAR], "running_var", channels, x));
  RSI_CHECK(!c->in[RUNNING_MEAN] == !c->in[RUNNING_VAR], RS_ERR_ARG,
            "running_mean and running_var go together; give both or neither");
  if (!RSI_ATTR(c, batch_norm)->training)
    RSI_CHECK(c->in[RUNNING_MEAN], RS_ERR_ARG, "without training it needs running_mean and running_var");
  else
    RSI_CHECK(channels == 0 || x->numel / channels != 1, RS_ERR_SHAPE,
              "input %s has one value per channel, whose variance is unknown; train on more values, or set training to false",
              rsi_text(x));
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = x->dtype, .ndim = 1, .shape = {channels}};
  c->desc[2] = c->desc[1];
  return RS_OK;
}

static bool batch_norm_writes(const rsi_call *c, int i) {
  return RSI_ATTR(c, batch_norm)->training && (i == RUNNING_MEAN || i == RUNNING_VAR);
}

/* in: g, x, mean, rstd, weight? */
static rs_status batch_norm_backward_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[1];
  RSI_TRY(check_like(c->in[0], x));
  RSI_CHECK(x->ndim >= 2, RS_ERR_SHAPE, "input %s has %d dimensions, but [N, C] or [N, C, ...] is needed", rsi_text(x), x->ndim);
  RSI_TRY(check_vector(c->in[2], "mean", x->shape[1], x));
  RSI_TRY(check_vector(c->in[3], "rstd", x->shape[1], x));
  RSI_TRY(check_vector(c->in[4], "weight", x->shape[1], x));
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = x->dtype, .ndim = 1, .shape = {x->shape[1]}};
  c->desc[2] = c->desc[1];
  return RS_OK;
}

/* ---- batch norm: forward --------------------------------------------------------------------------------------------- */

typedef struct batch {
  const rsi_norm_loops *k;
  const char *x, *g;
  char       *out;
  int         dtype;
  int64_t     n, channels, inner;
  size_t      item;
  const char *mean;              /* [C] of the element type */
  const char *a, *b, *c;         /* [C]: factors of the sweep over x */
  const char *rstd, *weight;     /* backward */
  double     *sum_g, *sum_gx;    /* backward: [C] */
} batch;

static void batch_shape(const rs_tensor *x, batch *b) {
  b->x = x->data;
  b->dtype = x->dtype;
  b->item = rsi_item_size(x);
  b->n = x->shape[0];
  b->channels = x->shape[1];
  b->inner = 1;
  for (int i = 2; i < x->ndim; i++) b->inner *= x->shape[i];
}

static void forward_planes(void *arg, int64_t first, int64_t last) {
  const batch *const b = arg;
  for (int64_t i = first; i < last; i++) {
    const int64_t channel = i % b->channels;
    const size_t at = (size_t)(i * b->inner) * b->item;
    b->k->channel(b->out + at, b->x + at, b->inner, real_at(b->mean, b->dtype, channel), real_at(b->a, b->dtype, channel),
                  real_at(b->b, b->dtype, channel));
  }
}

static void forward_rows(void *arg, int64_t first, int64_t last) {
  const batch *const b = arg;
  for (int64_t i = first; i < last; i++) {
    const size_t at = (size_t)(i * b->channels) * b->item;
    b->k->channels(b->out + at, b->x + at, b->mean, b->a, b->b, b->channels);
  }
}

/* y: [N, C, inner] = (x - mean) a + b with a = rstd weight, b = bias */
static void forward(const rsi_exec *x, batch *b) {
  const double work = b->dtype == RS_F32 ? 0.25 : 0.5;
  if (b->n * b->channels * b->inner == 0) return;
  if (b->inner > 1) rsi_parallel(x, b->n * b->channels, work * (double)b->inner + 5.0, forward_planes, b);
  else rsi_parallel(x, b->n, work * (double)b->channels + 5.0, forward_rows, b);
}

static void fold_plan(const rs_tensor *x, rsi_fold_plan *plan) {
  rsi_fold_plan_make(plan, x, ((1u << x->ndim) - 1u) & ~2u, false);
}

/* scratch: variance [C], factors a [C] and b [C] of the element type, then that of the fold */
static size_t vectors(const rs_tensor *x, int count) {
  return ((size_t)(count * x->shape[1]) * rsi_item_size(x) + 63) & ~(size_t)63;
}

static size_t batch_norm_scratch(const rsi_call *c) {
  const rs_tensor *const x = c->in[X];
  rsi_fold_plan plan;
  size_t fold = 0;
  if (RSI_ATTR(c, batch_norm)->training) {
    fold_plan(x, &plan);
    fold = rsi_fold_scratch(&plan, &c->x->k->reduce->var[x->dtype]);
  }
  return vectors(x, 3) + fold;
}

/* Mean and variance (divided by the number of elements) of each channel. */
static void statistics(const rsi_call *c, const rs_tensor *x, void *mean, void *variance, void *scratch) {
  const size_t item = rsi_item_size(x);
  rsi_fold_plan plan;
  fold_plan(x, &plan);
  rsi_fold_run(c->x, &plan, &c->x->k->reduce->var[x->dtype], x, variance, item, mean, item, 0.0, scratch);
}

/* Moves the running statistics towards those of this batch; the variance there is the unbiased one. */
static void update_running(const rsi_call *c, int64_t channel, double count, double mean, double variance) {
  const double momentum = RSI_ATTR(c, batch_norm)->momentum;
  if (!c->in[RUNNING_MEAN]) return;
  const int dtype = c->in[X]->dtype;
  void *const rm = c->in[RUNNING_MEAN]->data, *const rv = c->in[RUNNING_VAR]->data;
  store_real(rm, dtype, channel, (1.0 - momentum) * real_at(rm, dtype, channel) + momentum * mean);
  store_real(rv, dtype, channel, (1.0 - momentum) * real_at(rv, dtype, channel) + momentum * variance * (count / (count - 1.0)));
}

static rs_status batch_norm_run(const rsi_call *c) {
  const batch_norm_attrs *const a = RSI_ATTR(c, batch_norm);
  const rs_tensor *const x = c->in[X], *const weight = c->in[WEIGHT], *const bias = c->in[BIAS];
  batch b = {.k = loops(c, x)};
  batch_shape(x, &b);
  const size_t vector = (size_t)b.channels * b.item;
  char *const variance = c->scratch, *const factor = variance + vector, *const shift = factor + vector;
  void *const mean = c->out[1]->data, *const rstd = c->out[2]->data;
  const double count = (double)(b.n * b.inner);
  if (a->training && count > 0) statistics(c, x, mean, variance, variance + vectors(x, 3));
  else if (a->training) memset(mean, 0, vector), memset(variance, 0, vector);   /* nothing to learn from */
  else memcpy(mean, c->in[RUNNING_MEAN]->data, vector), memcpy(variance, c->in[RUNNING_VAR]->data, vector);
  for (int64_t i = 0; i < b.channels; i++) {
    const double var = real_at(variance, b.dtype, i), r = 1.0 / sqrt(var + a->eps);
    store_real(rstd, b.dtype, i, r);
    store_real(factor, b.dtype, i, weight ? r * real_at(weight->data, b.dtype, i) : r);
    store_real(shift, b.dtype, i, bias ? real_at(bias->data, b.dtype, i) : 0);
    if (a->training && count > 0) update_running(c, i, count, real_at(mean, b.dtype, i), var);
  }
  b.out = c->out[0]->data;
  b.mean = mean, b.a = factor, b.b = shift;
  forward(c->x, &b);
  return RS_OK;
}

/* ---- batch norm: backward -------------------------------------------------------------------------------------------- */

/*
** With M elements in a channel, sums over them, and xc = x - mean:
**   dbias = sum(g),  dweight = rstd sum(g xc),
**   dx = rstd weight (g - sum(g) / M - xc rstd^2 sum(g xc) / M),  or rstd weight g when the statistics were given.
** The sums are taken by channel (or block of columns) and, when these are few, by ranges of the batch that are then added in
** their order.
*/
static int64_t units_of(const batch *b) {
  return b->inner > 1 ? b->channels : (b->channels + RSI_COLUMNS - 1) / RSI_COLUMNS;
}

static int64_t parts_of(const batch *b) {
  if (units_of(b) >= 16 || b->n * b->channels * b->inner < 131072) return 1;
  return b->n < 16 ? b->n : 16;
}

static void backward_sums(void *arg, int64_t first, int64_t last) {
  const batch *const b = arg;
  const int64_t units = units_of(b), parts = parts_of(b);
  for (int64_t t = first; t < last; t++) {
    const int64_t part = t / units, unit = t % units, begin = b->n * part / parts, end = b->n * (part + 1) / parts;
    double *const sum_g = b->sum_g + part * b->channels, *const sum_gx = b->sum_gx + part * b->channels;
    if (b->inner > 1) {
      double sums[2] = {0, 0};
      for (int64_t n = begin; n < end; n++) {
        const size_t at = (size_t)((n * b->channels + unit) * b->inner) * b->item;
        b->k->channel_sums(b->g + at, b->x + at, b->inner, real_at(b->mean, b->dtype, unit), sums);
      }
      sum_g[unit] = sums[0], sum_gx[unit] = sums[1];
    } else {
      const int64_t column = unit * RSI_COLUMNS;
      const int64_t width = b->channels - column < RSI_COLUMNS ? b->channels - column : RSI_COLUMNS;
      const size_t at = (size_t)(begin * b->channels + column) * b->item;
      memset(sum_g + column, 0, sizeof(double) * (size_t)width);
      memset(sum_gx + column, 0, sizeof(double) * (size_t)width);
      b->k->channels_sums(b->g + at, b->x + at, b->mean + (size_t)column * b->item, end - begin, width, b->channels, sum_g + column,
                          sum_gx + column);
    }
  }
}

static void backward_planes(void *arg, int64_t first, int64_t last) {
  const batch *const b = arg;
  for (int64_t i = first; i < last; i++) {
    const int64_t k = i % b->channels;
    const size_t at = (size_t)(i * b->inner) * b->item;
    b->k->channel_grad(b->out + at, b->g + at, b->x + at, b->inner, real_at(b->mean, b->dtype, k), real_at(b->a, b->dtype, k),
                       real_at(b->b, b->dtype, k), real_at(b->c, b->dtype, k));
  }
}

static void backward_rows(void *arg, int64_t first, int64_t last) {
  const batch *const b = arg;
  for (int64_t i = first; i < last; i++) {
    const size_t at = (size_t)(i * b->channels) * b->item;
    b->k->channels_grad(b->out + at, b->g + at, b->x + at, b->mean, b->a, b->b, b->c, b->channels);
  }
}

static size_t batch_norm_backward_scratch(const rsi_call *c) {
  const rs_tensor *const x = c->in[1];
  batch b;
  batch_shape(x, &b);
  return vectors(x, 3) + 2 * sizeof(double) * (size_t)(b.channels * parts_of(&b));
}

static void run_sums(const rsi_exec *x, batch *b) {
  const int64_t units = units_of(b), parts = parts_of(b);
  const double size = (double)(b->n * b->channels * b->inner);
  rsi_parallel(x, units * parts, 0.3 * size / (double)(units * parts) + 10.0, backward_sums, b);
  for (int64_t part = 1; part < parts; part++)
    for (int64_t i = 0; i < b->channels; i++) {
      b->sum_g[i] += b->sum_g[part * b->channels + i];
      b->sum_gx[i] += b->sum_gx[part * b->channels + i];
    }
}

/* g, x, dx: [N, C, inner]; the other results: [C] */
static rs_status batch_norm_backward_run(const rsi_call *c) {
  const rs_tensor *const x = c->in[1], *const weight = c->in[4];
  const bool training = RSI_ATTR(c, batch_norm_backward)->training != 0;
  batch b = {.k = loops(c, x)};
  batch_shape(x, &b);
  const size_t vector = (size_t)b.channels * b.item;
  char *const scratch = c->scratch;
  const double count = (double)(b.n * b.inner);
  b.g = c->in[0]->data, b.mean = c->in[2]->data, b.rstd = c->in[3]->data;
  b.a = scratch, b.b = scratch + vector, b.c = scratch + 2 * vector;
  b.sum_g = (void *)(scratch + vectors(x, 3));
  b.sum_gx = b.sum_g + b.channels * parts_of(&b);
  b.out = c->out[0]->data;
  if (b.channels == 0) return RS_OK;
  if (count > 0) run_sums(c->x, &b);
  else memset(b.sum_g, 0, 2 * sizeof(double) * (size_t)(b.channels * parts_of(&b)));
  for (int64_t i = 0; i < b.channels; i++) {
    const double r = real_at(b.rstd, b.dtype, i), a = weight ? r * real_at(weight->data, b.dtype, i) : r;
    store_real(scratch, b.dtype, i, a);
    store_real(scratch + vector, b.dtype, i, training ? -a * r * r * b.sum_gx[i] / count : 0);
    store_real(scratch + 2 * vector, b.dtype, i, training ? -a * b.sum_g[i] / count : 0);
    store_real(c->out[1]->data, b.dtype, i, b.sum_gx[i] * r);
    store_real(c->out[2]->data, b.dtype, i, b.sum_g[i]);
  }
  if (count == 0) return RS_OK;
  const double work = b.dtype == RS_F32 ? 0.35 : 0.7;
  if (b.inner > 1) rsi_parallel(c->x, b.n * b.channels, work * (double)b.inner + 5.0, backward_planes, &b);
  else rsi_parallel(c->x, b.n, work * (double)b.channels + 5.0, backward_rows, &b);
  return RS_OK;
}

/* ---- batch norm: the ops --------------------------------------------------------------------------------------------- */

static void batch_norm_grad(rsi_grad *g) {
  const batch_norm_attrs *const a = rsi_attrs(g);
  const batch_norm_backward_attrs back = {.training = a->training, .eps = a->eps};
  rs_tensor *const in[5] = {rsi_gout(g, 0), rsi_in(g, X), rsi_out(g, 1), rsi_out(g, 2), rsi_in(g, WEIGHT)};
  rs_tensor *out[3] = {NULL};
  rsi_emit(g, RS_OP_batch_norm_backward, &back, 5, in, 3, out);
  for (int i = 0; i < 3; i++)
    if (rsi_needs(g, i)) rsi_give(g, i, out[i]);
}

/* With given statistics dx = g weight r: no E, and mean and r do not move with x. */
static void batch_norm_backward_grad(rsi_grad *g) {
  const batch_norm_backward_attrs *const a = rsi_attrs(g);
  const rsi_desc *const x = rsi_in_desc(g, 1);
  const int ndim = x->ndim;
  int64_t shape[RS_MAX_DIMS];
  second s = {.g = g};
  for (int i = 0; i < ndim; i++) {
    shape[i] = i == 1 ? x->shape[1] : 1;
    if (i != 1) s.dims.v[s.dims.n++] = i;
  }
  rs_tensor *const weight = rsi_b_reshape(g, rsi_in(g, 4), ndim, shape);
  rs_tensor *const hw = rsi_has_gout(g, 1) ? rsi_b_reshape(g, rsi_gout(g, 1), ndim, shape) : NULL;
  rs_tensor *const hb = rsi_has_gout(g, 2) ? rsi_b_reshape(g, rsi_gout(g, 2), ndim, shape) : NULL;
  if (a->training) {
    normalise_again(&s, rsi_in(g, 1), a->eps);
    second_derivative(&s, weight, hw, hb, &s.dims);
    return;
  }
  s.r = rsi_b_reshape(g, rsi_in(g, 3), ndim, shape);
  s.xhat = mul(&s, sub(&s, rsi_in(g, 1), rsi_b_reshape(g, rsi_in(g, 2), ndim, shape)), s.r);
  rs_tensor *const rh = mul(&s, rsi_gout(g, 0), s.r);
  if (rsi_needs(g, 0)) rsi_give(g, 0, add(&s, add(&s, weight ? mul(&s, rh, weight) : rh, hw ? mul(&s, s.xhat, hw) : NULL), hb));
  if (rsi_needs(g, 1) && hw) rsi_give(g, 1, mul(&s, mul(&s, rsi_in(g, 0), hw), s.r));
  if (rsi_needs(g, 4)) rsi_give(g, 4, rsi_b_sum(g, mul(&s, rsi_in(g, 0), rh), &s.dims, false));
}

static const rsi_kernel batch_norm_kernels[] = {
  {"batch_norm", RSI_PORTABLE, RSI_FLOATS, NULL, batch_norm_scratch, batch_norm_run},
  {0},
};
static const rsi_kernel batch_norm_backward_kernels[] = {
  {"batch_norm_backward", RSI_PORTABLE, RSI_FLOATS, NULL, batch_norm_backward_scratch, batch_norm_backward_run},
  {0},
};

static const batch_norm_attrs bn_train = {1, 0.3, 1e-3}, bn_eval = {0, 0.1, 1e-5};
static const batch_norm_backward_attrs bn_back_eval = {0, 1e-5};

static const rsi_sample batch_norm_samples[] = {
  {"f7x33,f33,f33", NULL, 0, 0},
  {"f5x3x4x4,f3,f3,f3,f3@0.5:2", &bn_train, 0, 0},
  {"f5x3x4x4,f3,f3,f3,f3@0.5:2", &bn_eval, 0, 0},
  {"f7x33,f33,f33,f33,f33@0.5:2", &bn_eval, 0, 0},
  {"f2x3x7", NULL, 0, 0},
  {"f9x5,-,f5", NULL, 0, 0},
  {"f0x3,f3,f3,f3,f3@0.5:2", &bn_train, 0, 0},
  {"f2x0x4", NULL, 0, 0},
  {NULL, NULL, 0, 0},
};
/* Not differentiated by themselves: mean and rstd would have to move with x. */
static const rsi_sample batch_norm_backward_samples[] = {
  {"f7x33,f7x33,f33,f33@0.5:2,f33", NULL, 0, 1},
  {"f5x3x4x4,f5x3x4x4,f3,f3@0.5:2,f3", NULL, 0, 1},
  {"f5x3x4x4,f5x3x4x4,f3,f3@0.5:2", &bn_back_eval, 0, 1},
  {"f0x3,f0x3,f3,f3@0.5:2", NULL, 0, 1},
  {NULL, NULL, 0, 0},
};

#define BACKWARD_SAVES (RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_IN(2) | RSI_KEEP_IN(3) | RSI_KEEP_IN(4))
#define BATCH_SAVES (RSI_KEEP_IN(X) | RSI_KEEP_IN(WEIGHT) | RSI_KEEP_OUT(1) | RSI_KEEP_OUT(2))

const rs_op rsi_op_batch_norm = {
  .name = "batch_norm",
  .doc = "(x - mean) / sqrt(var + eps) weight + bias for each channel of x: [N, C] or [N, C, ...]; in training with the mean "
         "and the biased variance of the batch, moving running_mean and running_var (unbiased) in place (Ioffe, Szegedy 2015).",
  .inputs = "x,weight?,bias?,running_mean?,running_var?", .nin_min = 1, .nin_max = 5, .nout = 3, .nout_public = 1,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(batch_norm),
  .infer = batch_norm_infer, .writes = batch_norm_writes, .grad = batch_norm_grad, .saves = {BATCH_SAVES, BATCH_SAVES, BATCH_SAVES},
  .kernels = batch_norm_kernels, .samples = batch_norm_samples,
};

const rs_op rsi_op_batch_norm_backward = {
  .name = "batch_norm_backward",
  .doc = "Gradients of batch_norm for x, weight and bias, from its gradient g, its input and the mean and rstd that it used.",
  .inputs = "g,x,mean,rstd,weight?", .nin_min = 4, .nin_max = 5, .nout = 3,
  .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(batch_norm_backward),
  .infer = batch_norm_backward_infer, .grad = batch_norm_backward_grad,
  .saves = {BACKWARD_SAVES, BACKWARD_SAVES, 0, 0, BACKWARD_SAVES},
  .kernels = batch_norm_backward_kernels, .samples = batch_norm_backward_samples,
};

/* ---- layer norm ------------------------------------------------------------------------------------------------------ */

#define LAYER_NORM_ATTRS(F, T)                                                                                              \
  F(T, SHAPE, normalized_shape, 0, 1, RSI_BIG, NULL, "the last dimensions of x, which are normalised together")            \
  F(T, FLOAT, eps, 1e-5, 0, RSI_BIG, NULL, "added to the variance")
RSI_ATTRS(layer_norm, LAYER_NORM_ATTRS)

static rs_status check_shape(const rs_list *shape, const rs_tensor *t, const char *name, const rs_tensor *x) {
  if (!t) return RS_OK;
  RSI_CHECK(t->ndim == shape->n && memcmp(t->shape, shape->v, sizeof(int64_t) * (size_t)shape->n) == 0, RS_ERR_SHAPE,
            "%s %s must have the normalized shape %s", name, rsi_text(t), rsi_shape_text((int)shape->n, shape->v));
  RSI_CHECK(t->dtype == x->dtype, RS_ERR_DTYPE, "%s is %s but input is %s; cast one of them", name, rs_dtype_name(t->dtype),
            rs_dtype_name(x->dtype));
  return RS_OK;
}

static rs_status check_normalized(const rs_list *shape, const rs_tensor *x) {
  const int n = (int)shape->n, lead = x->ndim - n;
  RSI_CHECK(n > 0, RS_ERR_ARG, "normalized_shape is missing: the sizes of the last dimensions, {%lld} for input %s",
            (long long)(x->ndim > 0 ? x->shape[x->ndim - 1] : 1), rsi_text(x));
  RSI_CHECK(lead >= 0 && memcmp(x->shape + lead, shape->v, sizeof(int64_t) * (size_t)n) == 0, RS_ERR_SHAPE,
            "input %s must end with the normalized shape %s", rsi_text(x), rsi_shape_text(n, shape->v));
  return RS_OK;
}

/* The dimensions before the normalised ones. */
static void lead_desc(const rs_tensor *x, const rs_list *shape, rsi_desc *out) {
  rsi_desc_of(x, out);
  out->ndim = x->ndim - (int)shape->n;
}

static rs_status layer_norm_infer(rsi_call *c) {
  const layer_norm_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[0];
  RSI_TRY(check_normalized(&a->normalized_shape, x));
  RSI_TRY(check_shape(&a->normalized_shape, c->in[1], "weight", x));
  RSI_TRY(check_shape(&a->normalized_shape, c->in[2], "bias", x));
  rsi_desc_of(x, &c->desc[0]);
  lead_desc(x, &a->normalized_shape, &c->desc[1]);
  c->desc[2] = c->desc[1];
  return RS_OK;
}

/* in: g, x, mean, rstd, weight? */
static rs_status layer_norm_backward_infer(rsi_call *c) {
  const rs_list *const shape = &RSI_ATTR(c, layer_norm)->normalized_shape;
  const rs_tensor *const x = c->in[1];
  rsi_desc lead;
  RSI_TRY(check_like(c->in[0], x));
  RSI_TRY(check_normalized(shape, x));
  RSI_TRY(check_shape(shape, c->in[4], "weight", x));
  lead_desc(x, shape, &lead);
  for (int i = 2; i < 4; i++)
    RSI_CHECK(c->in[i]->ndim == lead.ndim && memcmp(c->in[i]->shape, lead.shape, sizeof(int64_t) * (size_t)lead.ndim) == 0 &&
                c->in[i]->dtype == x->dtype, RS_ERR_SHAPE, "%s %s does not belong to input %s", i == 2 ? "mean" : "rstd",
              rsi_text(c->in[i]), rsi_text(x));
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = x->dtype, .ndim = (int)shape->n};
  memcpy(c->desc[1].shape, shape->v, sizeof(int64_t) * (size_t)shape->n);
  c->desc[2] = c->desc[1];
  return RS_OK;
}

typedef struct layers {
  const rsi_norm_loops *k;
  const char *x, *g, *weight, *bias;
  char       *out, *mean, *rstd, *scratch;
  int64_t     rows, n, parts;
  size_t      item;
  double      eps;
} layers;

static void layers_shape(const rsi_call *c, const rs_tensor *x, layers *l) {
  const rs_list *const shape = &RSI_ATTR(c, layer_norm)->normalized_shape;
  *l = (layers){.k = loops(c, x), .x = x->data, .rows = 1, .n = 1, .item = rsi_item_size(x)};
  for (int i = 0; i < x->ndim - shape->n; i++) l->rows *= x->shape[i];
  for (int i = 0; i < shape->n; i++) l->n *= shape->v[i];
}

static void layer_norm_rows(void *arg, int64_t first, int64_t last) {
  const layers *const l = arg;
  for (int64_t i = first; i < last; i++) {
    const size_t at = (size_t)(i * l->n) * l->item, one = (size_t)i * l->item;
    l->k->layer_norm(l->out + at, l->x + at, l->weight, l->bias, l->n, l->eps, l->mean + one, l->rstd + one);
  }
}

/* x, y: [rows, n]; mean, rstd: [rows] */
static rs_status layer_norm_run(const rsi_call *c) {
  layers l;
  layers_shape(c, c->in[0], &l);
  l.weight = c->in[1] ? c->in[1]->data : NULL;
  l.bias = c->in[2] ? c->in[2]->data : NULL;
  l.out = c->out[0]->data, l.mean = c->out[1]->data, l.rstd = c->out[2]->data;
  l.eps = RSI_ATTR(c, layer_norm)->eps;
  if (l.n == 0) {
    memset(l.mean, 0, (size_t)l.rows * l.item), memset(l.rstd, 0, (size_t)l.rows * l.item);
    return RS_OK;
  }
  rsi_parallel(c->x, l.rows, (l.item == 4 ? 0.3 : 0.6) * (double)l.n + 20.0, layer_norm_rows, &l);
  return RS_OK;
}

/* ---- layer norm: backward -------------------------------------------------------------------------------------------- */

static size_t layer_norm_backward_scratch(const rsi_call *c) {
  layers l;
  layers_shape(c, c->in[1], &l);
  return rsi_row_part_bytes(l.n, 2, l.item) * (size_t)rsi_row_parts(l.rows, l.n);
}

static void layer_norm_part(void *arg, int64_t first, int64_t last) {
  const layers *const l = arg;
  for (int64_t part = first; part < last; part++) {
    double *const sum = (void *)(l->scratch + (size_t)part * rsi_row_part_bytes(l->n, 2, l->item));
    char *const dw = (void *)(sum + 2 * l->n), *const db = dw + (size_t)l->n * l->item;
    const int64_t begin = l->rows * part / l->parts, end = l->rows * (part + 1) / l->parts;
    memset(sum, 0, sizeof(double) * (size_t)(2 * l->n));
    for (int64_t from = begin; from < end; from += RSI_FEW_ROWS) {
      const int64_t to = end - from < RSI_FEW_ROWS ? end : from + RSI_FEW_ROWS;
      memset(dw, 0, (size_t)(2 * l->n) * l->item);
      for (int64_t i = from; i < to; i++) {
        const size_t at = (size_t)(i * l->n) * l->item, one = (size_t)i * l->item;
        l->k->layer_norm_grad(l->out + at, l->g + at, l->x + at, l->weight, l->mean + one, l->rstd + one, l->n, dw, db);
      }
      l->k->add_to_double(sum, dw, 2 * l->n);
    }
  }
}

/* g, x, dx: [rows, n]; dweight, dbias: [n] */
static rs_status layer_norm_backward_run(const rsi_call *c) {
  layers l;
  layers_shape(c, c->in[1], &l);
  l.g = c->in[0]->data, l.mean = c->in[2]->data, l.rstd = c->in[3]->data;
  l.weight = c->in[4] ? c->in[4]->data : NULL;
  l.out = c->out[0]->data, l.scratch = c->scratch;
  l.parts = rsi_row_parts(l.rows, l.n);
  if (l.n == 0) return RS_OK;
  const double work = (l.item == 4 ? 0.8 : 1.6) * (double)l.n + 40.0;
  rsi_parallel(c->x, l.parts, work * (double)l.rows / (double)l.parts, layer_norm_part, &l);
  double *const sum = c->scratch;
  for (int64_t part = 1; part < l.parts; part++) {
    const double *const more = (const void *)(l.scratch + (size_t)part * rsi_row_part_bytes(l.n, 2, l.item));
    for (int64_t i = 0; i < 2 * l.n; i++) sum[i] += more[i];
  }
  l.k->from_double(c->out[1]->data, sum, l.n);
  l.k->from_double(c->out[2]->data, sum + l.n, l.n);
  return RS_OK;
}

/* ---- layer norm: the ops --------------------------------------------------------------------------------------------- */

static void layer_norm_grad(rsi_grad *g) {
  rs_tensor *const in[5] = {rsi_gout(g, 0), rsi_in(g, 0), rsi_out(g, 1), rsi_out(g, 2), rsi_in(g, 1)};
  rs_tensor *out[3] = {NULL};
  rsi_emit(g, RS_OP_layer_norm_backward, rsi_attrs(g), 5, in, 3, out);
  for (int i = 0; i < 3; i++)
    if (rsi_needs(g, i)) rsi_give(g, i, out[i]);
}

static void layer_norm_backward_grad(rsi_grad *g) {
  const layer_norm_attrs *const a = rsi_attrs(g);
  const int ndim = rsi_in_desc(g, 1)->ndim;
  second s = {.g = g};
  for (int i = ndim - (int)a->normalized_shape.n; i < ndim; i++) s.dims.v[s.dims.n++] = i;
  normalise_again(&s, rsi_in(g, 1), a->eps);
  second_derivative(&s, rsi_in(g, 4), rsi_has_gout(g, 1) ? rsi_gout(g, 1) : NULL, rsi_has_gout(g, 2) ? rsi_gout(g, 2) : NULL, NULL);
}

static const rsi_kernel layer_norm_kernels[] = {{"layer_norm", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, layer_norm_run}, {0}};
static const rsi_kernel layer_norm_backward_kernels[] = {
  {"layer_norm_backward", RSI_PORTABLE, RSI_FLOATS, NULL, layer_norm_backward_scratch, layer_norm_backward_run},
  {0},
};

static const layer_norm_attrs ln_33 = {{1, {33}}, 1e-5}, ln_4_5 = {{2, {4, 5}}, 1e-3};
static const layer_norm_attrs ln_7 = {{1, {7}}, 1e-5}, ln_0 = {{1, {0}}, 1e-5};

static const rsi_sample layer_norm_samples[] = {
  {"f7x33,f33,f33", &ln_33, 0, 0},
  {"f2x3x4x5,f4x5,f4x5", &ln_4_5, 0, 0},
  {"f7", &ln_7, 0, 0},
  {"f3x7,-,f7", &ln_7, 0, 0},
  {"f3x7,f7", &ln_7, 0, 0},
  {"f0x7,f7,f7", &ln_7, 0, 0},
  {"f3x0", &ln_0, 0, 0},
  {NULL, NULL, 0, 0},
};
/* Not differentiated by themselves: mean and rstd would have to move with x. */
static const rsi_sample layer_norm_backward_samples[] = {
  {"f7x33,f7x33,f7,f7@0.5:2,f33", &ln_33, 0, 1},
  {"f2x3x4x5,f2x3x4x5,f2x3,f2x3@0.5:2,f4x5", &ln_4_5, 0, 1},
  {"f7,f7,f,f@0.5:2", &ln_7, 0, 1},
  {"f0x7,f0x7,f0,f0@0.5:2,f7", &ln_7, 0, 1},
  {"f3x0,f3x0,f3,f3@0.5:2", &ln_0, 0, 1},
  {NULL, NULL, 0, 0},
};

#define LAYER_SAVES (RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_OUT(1) | RSI_KEEP_OUT(2))

const rs_op rsi_op_layer_norm = {
  .name = "layer_norm",
  .doc = "(x - mean) / sqrt(var + eps) weight + bias, with mean and biased variance over the last dimensions (Ba, Kiros, Hinton "
         "2016).",
  .inputs = "x,weight?,bias?", .nin_min = 1, .nin_max = 3, .nout = 3, .nout_public = 1,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(layer_norm),
  .infer = layer_norm_infer, .grad = layer_norm_grad, .saves = {LAYER_SAVES, LAYER_SAVES, LAYER_SAVES},
  .kernels = layer_norm_kernels, .samples = layer_norm_samples,
};

const rs_op rsi_op_layer_norm_backward = {
  .name = "layer_norm_backward",
  .doc = "Gradients of layer_norm for x, weight and bias, from its gradient g, its input and the mean and rstd that it used.",
  .inputs = "g,x,mean,rstd,weight?", .nin_min = 4, .nin_max = 5, .nout = 3,
  .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(layer_norm),
  .infer = layer_norm_backward_infer, .grad = layer_norm_backward_grad,
  .saves = {BACKWARD_SAVES, BACKWARD_SAVES, 0, 0, BACKWARD_SAVES},
  .kernels = layer_norm_backward_kernels, .samples = layer_norm_backward_samples,
};
