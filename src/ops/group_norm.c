/*
** Group norm and RMS norm. Each works on rows that lie side by side in memory: for group norm the channels of one group of one
** sample, [cpg, inner]; for RMS norm the last dimensions. Both keep what a row was divided by (rstd), group norm also the mean.
**
** Group norm uses the loops of layer norm for a row and those of batch norm for a channel of it. With sums over a row of
** M = cpg inner elements, xc = x - mean and u = g weight:
**   dx = rstd (u - sum(u) / M - xc rstd^2 sum(u xc) / M),   dweight = rstd sum(g xc),   dbias = sum(g)
*/
#include "ops/row_parts.h"
#include "ops/op.h"
#include <float.h>
#include <math.h>
#include <string.h>

static inline double real_at(const void *data, int dtype, int64_t i) {
  return dtype == RS_F32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

static inline void store_real(void *data, int dtype, int64_t i, double value) {
  if (dtype == RS_F32) ((float *)data)[i] = (float)value;
  else ((double *)data)[i] = value;
}

static rs_status check_dtype(const rs_tensor *t, const char *name, const rs_tensor *x) {
  RSI_CHECK(t->dtype == x->dtype, RS_ERR_DTYPE, "%s is %s but input is %s; cast one of them", name, rs_dtype_name(t->dtype),
            rs_dtype_name(x->dtype));
  return RS_OK;
}

static rs_status check_like(const rs_tensor *g, const rs_tensor *x) {
  RSI_CHECK(rsi_same_shape(g, x), RS_ERR_SHAPE, "gradient %s and input %s must have one shape", rsi_text(g), rsi_text(x));
  return check_dtype(g, "gradient", x);
}

/* ---- second derivatives ---------------------------------------------------------------------------------------------- */

/*
** dx = r P(u) with r = rstd, xhat the normalised row and P(z) = z - E(z) - xhat E(xhat z), where E is the mean over the row and
** RMS norm lacks E(z); dweight = sum(g xhat), dbias = sum(g). P is symmetric and d xhat = r P(dx), so with h, hw and hb the
** gradients of dx, dweight and dbias:
**   for g       weight r P(h) + hw xhat + hb
**   for weight  sum(g r P(h))
**   for x       r P(v) - xhat r^2 E(h P(u)),   v = hw g - r (h E(xhat u) + u E(xhat h))
** mean and rstd are made again from x here, because what was saved is not seen as a function of x.
*/
typedef struct second {
  rsi_grad  *g;
  bool       centred;          /* group norm */
  rs_list    dims;             /* of the row */
  rs_tensor *xhat, *r;
  rs_tensor *gy, *h;           /* in a shape in which the row is `dims` */
  rs_tensor *weight, *hw, *hb; /* in a shape that broadcasts to it, or NULL */
} second;

typedef struct second_result { rs_tensor *g, *x, *weight; } second_result;   /* weight: before its sum */

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
  rs_tensor *const along = mul(s, s->xhat, expect(s, mul(s, s->xhat, t)));
  return sub(s, s->centred ? sub(s, t, expect(s, t)) : t, along);
}

static second_result second_derivative(second *s, rs_tensor *x, double eps) {
  rs_tensor *const xc = s->centred ? sub(s, x, expect(s, x)) : x;
  s->r = rsi_emit1(s->g, RS_OP_rsqrt, NULL, rsi_b_add_scalar(s->g, expect(s, mul(s, xc, xc)), eps));
  s->xhat = mul(s, xc, s->r);
  rs_tensor *const gy = s->gy, *const h = s->h, *const u = s->weight ? mul(s, gy, s->weight) : gy;
  rs_tensor *const rph = mul(s, s->r, project(s, h));
  rs_tensor *const pair = add(s, mul(s, h, expect(s, mul(s, s->xhat, u))), mul(s, u, expect(s, mul(s, s->xhat, h))));
  rs_tensor *v = rsi_b_scale(s->g, mul(s, s->r, pair), -1.0);
  if (s->hw) v = add(s, v, mul(s, gy, s->hw));
  rs_tensor *const along = mul(s, mul(s, s->r, s->r), expect(s, mul(s, h, project(s, u))));
  return (second_result){
    .g = add(s, add(s, s->weight ? mul(s, rph, s->weight) : rph, s->hw ? mul(s, s->xhat, s->hw) : NULL), s->hb),
    .x = sub(s, mul(s, s->r, project(s, v)), mul(s, s->xhat, along)),
    .weight = s->weight ? mul(s, gy, rph) : NULL,
  };
}

/* ---- group norm: shapes ---------------------------------------------------------------------------------------------- */

#define GROUP_NORM_ATTRS(F, T)                                                                     \
  F(T, INT, groups, 1, 1, INT32_MAX, NULL, "the channels fall into this many groups")               \
  F(T, FLOAT, eps, 1e-5, 0, RSI_BIG, NULL, "added to the variance")
RSI_ATTRS(group_norm, GROUP_NORM_ATTRS)

/* x: [n, groups, cpg, inner] */
typedef struct layout { int64_t n, groups, cpg, inner; } layout;

static layout layout_of(const int64_t *shape, int ndim, int64_t groups) {
  layout l = {shape[0], groups, shape[1] / groups, 1};
  for (int i = 2; i < ndim; i++) l.inner *= shape[i];
  return l;
}

static rs_status check_channels(const rs_tensor *t, const char *name, const rs_tensor *x) {
  if (!t) return RS_OK;
  RSI_CHECK(t->ndim == 1 && t->shape[0] == x->shape[1], RS_ERR_SHAPE, "%s %s must have shape [%lld] for input %s", name, rsi_text(t),
            (long long)x->shape[1], rsi_text(x));
  return check_dtype(t, name, x);
}

static rs_status check_groups(const rs_tensor *x, int64_t groups) {
  RSI_CHECK(x->ndim >= 2, RS_ERR_SHAPE, "input %s has %d dimensions, but [N, C] or [N, C, ...] is needed", rsi_text(x), x->ndim);
  RSI_CHECK(groups >= 1 && x->shape[1] % groups == 0, RS_ERR_SHAPE, "the %lld channels of input %s cannot be divided into %lld groups",
            (long long)x->shape[1], rsi_text(x), (long long)groups);
  return RS_OK;
}

static rs_status group_norm_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[0];
  const int64_t groups = RSI_ATTR(c, group_norm)->groups;
  RSI_TRY(check_groups(x, groups));
  RSI_TRY(check_channels(c->in[1], "weight", x));
  RSI_TRY(check_channels(c->in[2], "bias", x));
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = x->dtype, .ndim = 2, .shape = {x->shape[0], groups}};
  c->desc[2] = c->desc[1];
  return RS_OK;
}

/* in: g, x, mean, rstd, weight? */
static rs_status group_norm_backward_infer(rsi_call *c) {
  const rs_tensor *const x = c->in[1];
  const int64_t groups = RSI_ATTR(c, group_norm)->groups;
  RSI_TRY(check_like(c->in[0], x));
  RSI_TRY(check_groups(x, groups));
  RSI_TRY(check_channels(c->in[4], "weight", x));
  for (int i = 2; i < 4; i++) {
    const rs_tensor *const t = c->in[i];
    RSI_CHECK(t->ndim == 2 && t->shape[0] == x->shape[0] && t->shape[1] == groups && t->dtype == x->dtype, RS_ERR_SHAPE,
              "%s %s does not belong to input %s", i == 2 ? "mean" : "rstd", rsi_text(t), rsi_text(x));
  }
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = (rsi_desc){.dtype = x->dtype, .ndim = 1, .shape = {x->shape[1]}};
  c->desc[2] = c->desc[1];
  return RS_OK;
}

/* ---- group norm: kernels --------------------------------------------------------------------------------------------- */

typedef struct grouped {
  layout l;
  const rsi_norm_loops *k;
  const char *x, *g, *weight, *bias;
  char       *out, *mean, *rstd;
  double     *sum_g, *sum_gx;      /* [n, C] */
  double      eps;
  size_t      item;
  int         dtype;
} grouped;

static grouped grouped_of(const rsi_call *c, const rs_tensor *x) {
  return (grouped){.l = layout_of(x->shape, x->ndim, RSI_ATTR(c, group_norm)->groups), .k = c->x->k->norm->of[x->dtype], .x = x->data,
                   .out = c->out[0]->data, .item = rsi_item_size(x), .dtype = x->dtype, .eps = RSI_ATTR(c, group_norm)->eps};
}

/* Rows [n, group]: the row is normalised as a whole, then each channel gets its weight and bias. */
static void group_rows(void *arg, int64_t first, int64_t last) {
  const grouped *const j = arg;
  const layout *const l = &j->l;
  for (int64_t i = first; i < last; i++) {
    const int64_t channel = i % l->groups * l->cpg, size = l->cpg * l->inner;
    const size_t at = (size_t)(i * size) * j->item, one = (size_t)i * j->item, from = (size_t)channel * j->item;
    const char *const w = j->weight ? j->weight + from : NULL, *const b = j->bias ? j->bias + from : NULL;
    const bool flat = l->inner == 1;
    j->k->layer_norm(j->out + at, j->x + at, flat ? w : NULL, flat ? b : NULL, size, j->eps, j->mean + one, j->rstd + one);
    if (flat || (!w && !b)) continue;
    const double mean = real_at(j->mean, j->dtype, i), rstd = real_at(j->rstd, j->dtype, i);
    for (int64_t c = 0; c < l->cpg; c++) {
      const size_t plane = at + (size_t)(c * l->inner) * j->item;
      j->k->channel(j->out + plane, j->x + plane, l->inner, mean, w ? rstd * real_at(w, j->dtype, c) : rstd,
                    b ? real_at(b, j->dtype, c) : 0);
    }
  }
}

/* x, y: [n, groups, cpg, inner]; mean, rstd: [n, groups] */
static rs_status group_norm_run(const rsi_call *c) {
  grouped j = grouped_of(c, c->in[0]);
  const layout *const l = &j.l;
  j.weight = c->in[1] ? c->in[1]->data : NULL;
  j.bias = c->in[2] ? c->in[2]->data : NULL;
  j.mean = c->out[1]->data, j.rstd = c->out[2]->data;
  if (l->cpg * l->inner == 0) {
    const size_t bytes = (size_t)(l->n * l->groups) * j.item;
    memset(j.mean, 0, bytes), memset(j.rstd, 0, bytes);
    return RS_OK;
  }
  rsi_parallel(c->x, l->n * l->groups, (j.item == 4 ? 0.5 : 1.0) * (double)(l->cpg * l->inner) + 20.0, group_rows, &j);
  return RS_OK;
}

static void group_grad_rows(void *arg, int64_t first, int64_t last) {
  const grouped *const j = arg;
  const layout *const l = &j->l;
  for (int64_t i = first; i < last; i++) {
    const int64_t channel = i % l->groups * l->cpg, size = l->cpg * l->inner;
    const size_t at = (size_t)(i * size) * j->item;
    const double mean = real_at(j->mean, j->dtype, i), rstd = real_at(j->rstd, j->dtype, i);
    double sum_u = 0, sum_ux = 0;
    for (int64_t c = 0; c < l->cpg; c++) {
      const size_t plane = at + (size_t)(c * l->inner) * j->item;
      const double w = j->weight ? real_at(j->weight, j->dtype, channel + c) : 1;
      double sums[2] = {0, 0};
      j->k->channel_sums(j->g + plane, j->x + plane, l->inner, mean, sums);
      j->sum_g[i * l->cpg + c] = sums[0];
      j->sum_gx[i * l->cpg + c] = sums[1] * rstd;
      sum_u += w * sums[0], sum_ux += w * sums[1];
    }
    for (int64_t c = 0; c < l->cpg; c++) {
      const size_t plane = at + (size_t)(c * l->inner) * j->item;
      const double w = j->weight ? real_at(j->weight, j->dtype, channel + c) : 1;
      j->k->channel_grad(j->out + plane, j->g + plane, j->x + plane, l->inner, mean, rstd * w,
                         -rstd * rstd * rstd * sum_ux / (double)size, -rstd * sum_u / (double)size);
    }
  }
}

static size_t group_norm_backward_scratch(const rsi_call *c) {
  const rs_tensor *const x = c->in[1];
  return 2 * sizeof(double) * (size_t)(x->shape[0] * x->shape[1]);
}

/* g, x, dx: [n, groups, cpg, inner]; dweight, dbias: [groups cpg] */
static rs_status group_norm_backward_run(const rsi_call *c) {
  grouped j = grouped_of(c, c->in[1]);
  const layout *const l = &j.l;
  const int64_t channels = l->groups * l->cpg;
  j.g = c->in[0]->data, j.mean = c->in[2]->data, j.rstd = c->in[3]->data;
  j.weight = c->in[4] ? c->in[4]->data : NULL;
  j.sum_g = c->scratch;
  j.sum_gx = j.sum_g + l->n * channels;
  const bool empty = l->n * channels * l->inner == 0;
  const double work = (j.item == 4 ? 0.7 : 1.4) * (double)(l->cpg * l->inner) + 40.0;
  if (!empty) rsi_parallel(c->x, l->n * l->groups, work, group_grad_rows, &j);
  for (int64_t i = 0; i < channels; i++) {
    double sum_g = 0, sum_gx = 0;
    for (int64_t n = 0; n < l->n && !empty; n++) sum_g += j.sum_g[n * channels + i], sum_gx += j.sum_gx[n * channels + i];
    store_real(c->out[1]->data, j.dtype, i, sum_gx);
    store_real(c->out[2]->data, j.dtype, i, sum_g);
  }
  return RS_OK;
}

/* ---- group norm: the ops --------------------------------------------------------------------------------------------- */

static void give_three(rsi_grad *g, rs_tensor *const *out, int n) {
  for (int i = 0; i < n; i++)
    if (rsi_has_in(g, i) && rsi_needs(g, i)) rsi_give(g, i, out[i]);
}

static void group_norm_grad(rsi_grad *g) {
  rs_tensor *const in[5] = {rsi_gout(g, 0), rsi_in(g, 0), rsi_out(g, 1), rsi_out(g, 2), rsi_in(g, 1)};
  rs_tensor *out[3] = {NULL};
  rsi_emit(g, RS_OP_group_norm_backward, rsi_attrs(g), 5, in, 3, out);
  give_three(g, out, 3);
}

static void group_norm_backward_grad(rsi_grad *g) {
  const group_norm_attrs *const a = rsi_attrs(g);
  const rsi_desc *const desc = rsi_in_desc(g, 1);
  const layout l = layout_of(desc->shape, desc->ndim, a->groups);
  const int64_t rows[4] = {l.n, l.groups, l.cpg, l.inner}, vector[4] = {1, l.groups, l.cpg, 1}, channels = l.groups * l.cpg;
  second s = {.g = g, .centred = true, .dims = {2, {2, 3}}};
  rs_tensor *const x = rsi_b_reshape(g, rsi_in(g, 1), 4, rows);
  s.gy = rsi_b_reshape(g, rsi_in(g, 0), 4, rows);
  s.h = rsi_b_reshape(g, rsi_gout(g, 0), 4, rows);
  s.weight = rsi_has_in(g, 4) ? rsi_b_reshape(g, rsi_in(g, 4), 4, vector) : NULL;
  s.hw = rsi_has_gout(g, 1) ? rsi_b_reshape(g, rsi_gout(g, 1), 4, vector) : NULL;
  s.hb = rsi_has_gout(g, 2) ? rsi_b_reshape(g, rsi_gout(g, 2), 4, vector) : NULL;
  const second_result t = second_derivative(&s, x, a->eps);
  const rs_list all_but_channels = {2, {0, 3}};
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_b_reshape(g, t.g, desc->ndim, desc->shape));
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_reshape(g, t.x, desc->ndim, desc->shape));
  if (s.weight && rsi_needs(g, 4)) rsi_give(g, 4, rsi_b_reshape(g, rsi_b_sum(g, t.weight, &all_but_channels, false), 1, &channels));
}

static const rsi_kernel group_norm_kernels[] = {{"group_norm", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, group_norm_run}, {0}};
static const rsi_kernel group_norm_backward_kernels[] = {
  {"group_norm_backward", RSI_PORTABLE, RSI_FLOATS, NULL, group_norm_backward_scratch, group_norm_backward_run}, {0}};

static const group_norm_attrs by_2 = {2, 1e-3}, by_3 = {3, 1e-5}, by_6 = {6, 1e-5};

static const rsi_sample group_norm_samples[] = {
  {"f2x6x4x5,f6,f6", &by_2, 0, 0}, {"f3x6x7,f6,f6", &by_3, 0, 0}, {"f2x6x33", &by_6, 0, 0}, {"f3x12,f12,f12", &by_3, 0, 0},
  {"f2x6x5,-,f6", &by_2, 0, 0},    {"f2x6x5,f6", &by_2, 0, 0},    {"f2x5x2x3x2", NULL, 0, 0}, {"f0x6x3,f6,f6", &by_2, 0, 0},
  {"f2x6x0", &by_2, 0, 0},         {NULL, NULL, 0, 0}};
/* mean and rstd stand for functions of x, so that their derivatives are not those of independent inputs. */
static const rsi_sample group_norm_backward_samples[] = {
  {"f2x6x4x5,f2x6x4x5,f2x2,f2x2@0.5:2,f6", &by_2, 0, 1}, {"f3x12,f3x12,f3x3,f3x3@0.5:2,f12", &by_3, 0, 1},
  {"f2x6x33,f2x6x33,f2x6,f2x6@0.5:2", &by_6, 0, 1},      {"f0x6x3,f0x6x3,f0x2,f0x2@0.5:2,f6", &by_2, 0, 1},
  {"f2x6x0,f2x6x0,f2x2,f2x2@0.5:2,f6", &by_2, 0, 1},     {NULL, NULL, 0, 0}};

#define SAVES (RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_OUT(1) | RSI_KEEP_OUT(2))
#define SAVES_BACK (RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_IN(4))

const rs_op rsi_op_group_norm = {
  .name = "group_norm",
  .doc = "(x - mean) / sqrt(var + eps) weight + bias for x: [N, C, ...], with mean and biased variance over each group of channels "
         "of each sample (Wu, He 2018); as many groups as channels make instance norm.",
  .inputs = "x,weight?,bias?", .nin_min = 1, .nin_max = 3, .nout = 3, .nout_public = 1,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(group_norm),
  .infer = group_norm_infer, .grad = group_norm_grad, .saves = {SAVES, SAVES, SAVES},
  .kernels = group_norm_kernels, .samples = group_norm_samples,
};

const rs_op rsi_op_group_norm_backward = {
  .name = "group_norm_backward",
  .doc = "Gradients of group_norm for x, weight and bias, from its gradient g, its input and the mean and rstd that it used.",
  .inputs = "g,x,mean,rstd,weight?", .nin_min = 4, .nin_max = 5, .nout = 3,
  .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(group_norm),
  .infer = group_norm_backward_infer, .grad = group_norm_backward_grad, .saves = {SAVES_BACK, SAVES_BACK, 0, 0, SAVES_BACK},
  .kernels = group_norm_backward_kernels, .samples = group_norm_backward_samples,
};

/* ---- rms norm -------------------------------------------------------------------------------------------------------- */

#define RMS_NORM_ATTRS(F, T)                                                                                                \
  F(T, SHAPE, normalized_shape, 0, 1, RSI_BIG, NULL, "the last dimensions of x, which are normalised together")            \
  F(T, FLOAT, eps, -1, -1, RSI_BIG, NULL, "added to the mean of the squares; negative: the distance from 1 to the next number")
RSI_ATTRS(rms_norm, RMS_NORM_ATTRS)

static double rms_eps(double eps, int dtype) { return eps >= 0 ? eps : dtype == RS_F64 ? DBL_EPSILON : (double)FLT_EPSILON; }

static rs_status check_normalized(const rs_list *shape, const rs_tensor *x, const rs_tensor *weight) {
  const int n = (int)shape->n, lead = x->ndim - n;
  RSI_CHECK(n > 0, RS_ERR_ARG, "normalized_shape is missing: the sizes of the last dimensions, {%lld} for input %s",
            (long long)(x->ndim > 0 ? x->shape[x->ndim - 1] : 1), rsi_text(x));
  RSI_CHECK(lead >= 0 && memcmp(x->shape + lead, shape->v, sizeof(int64_t) * (size_t)n) == 0, RS_ERR_SHAPE,
            "input %s must end with the normalized shape %s", rsi_text(x), rsi_shape_text(n, shape->v));
  if (!weight) return RS_OK;
  RSI_CHECK(weight->ndim == n && memcmp(weight->shape, shape->v, sizeof(int64_t) * (size_t)n) == 0, RS_ERR_SHAPE,
            "weight %s must have the normalized shape %s", rsi_text(weight), rsi_shape_text(n, shape->v));
  return check_dtype(weight, "weight", x);
}

static rs_status rms_norm_infer(rsi_call *c) {
  const rs_list *const shape = &RSI_ATTR(c, rms_norm)->normalized_shape;
  const rs_tensor *const x = c->in[0];
  RSI_TRY(check_normalized(shape, x, c->in[1]));
  rsi_desc_of(x, &c->desc[0]);
  c->desc[1] = c->desc[0];
  c->desc[1].ndim -= (int)shape->n;
  return RS_OK;
}

/* in: g, x, rstd, weight?; without a weight the second result has no elements */
static rs_status rms_norm_backward_infer(rsi_call *c) {
  const rs_list *const shape = &RSI_ATTR(c, rms_norm)->normalized_shape;
  const rs_tensor *const x = c->in[1], *const rstd = c->in[2], *const weight = c->in[3];
  RSI_TRY(check_like(c->in[0], x));
  RSI_TRY(check_normalized(shape, x, weight));
  const int lead = x->ndim - (int)shape->n;
  RSI_CHECK(rstd->ndim == lead && memcmp(rstd->shape, x->shape, sizeof(int64_t) * (size_t)lead) == 0 && rstd->dtype == x->dtype,
            RS_ERR_SHAPE, "rstd %s does not belong to input %s", rsi_text(rstd), rsi_text(x));
  rsi_desc_of(x, &c->desc[0]);
  if (weight) rsi_desc_of(weight, &c->desc[1]);
  else c->desc[1] = (rsi_desc){.dtype = x->dtype, .ndim = 1, .shape = {0}};
  return RS_OK;
}

typedef struct rms {
  const rsi_rms_loops *k;
  const char *x, *g, *weight;
  char       *out, *rstd, *scratch;
  int64_t     rows, n, parts;
  size_t      item;
  double      eps;
} rms;

static rms rms_of(const rsi_call *c, const rs_tensor *x, const rs_tensor *weight) {
  const rms_norm_attrs *const a = RSI_ATTR(c, rms_norm);
  rms j = {.k = c->x->k->rms->of[x->dtype], .x = x->data, .weight = weight ? weight->data : NULL, .rows = 1, .n = 1,
           .item = rsi_item_size(x), .eps = rms_eps(a->eps, x->dtype)};
  for (int i = 0; i < x->ndim - a->normalized_shape.n; i++) j.rows *= x->shape[i];
  for (int i = 0; i < a->normalized_shape.n; i++) j.n *= a->normalized_shape.v[i];
  return j;
}

static void rms_rows(void *arg, int64_t first, int64_t last) {
  const rms *const j = arg;
  for (int64_t i = first; i < last; i++) {
    const size_t at = (size_t)(i * j->n) * j->item;
    j->k->forward(j->out + at, j->x + at, j->weight, j->n, j->eps, j->rstd + (size_t)i * j->item);
  }
}

/* x, y: [rows, n]; rstd: [rows] */
static rs_status rms_norm_run(const rsi_call *c) {
  rms j = rms_of(c, c->in[0], c->in[1]);
  j.out = c->out[0]->data, j.rstd = c->out[1]->data;
  if (j.n == 0) {
    memset(j.rstd, 0, (size_t)j.rows * j.item);
    return RS_OK;
  }
  rsi_parallel(c->x, j.rows, (j.item == 4 ? 0.2 : 0.4) * (double)j.n + 20.0, rms_rows, &j);
  return RS_OK;
}

static size_t rms_norm_backward_scratch(const rsi_call *c) {
  const rms j = rms_of(c, c->in[1], c->in[3]);
  return c->in[3] ? rsi_row_part_bytes(j.n, 1, j.item) * (size_t)rsi_row_parts(j.rows, j.n) : 0;
}

static void rms_part(void *arg, int64_t first, int64_t last) {
  const rms *const j = arg;
  for (int64_t part = first; part < last; part++) {
    double *const sum = j->weight ? (void *)(j->scratch + (size_t)part * rsi_row_part_bytes(j->n, 1, j->item)) : NULL;
    char *const dw = j->weight ? (char *)(sum + j->n) : NULL;
    const int64_t begin = j->rows * part / j->parts, end = j->rows * (part + 1) / j->parts;
    if (sum) memset(sum, 0, sizeof(double) * (size_t)j->n);
    for (int64_t from = begin; from < end; from += RSI_FEW_ROWS) {
      const int64_t to = end - from < RSI_FEW_ROWS ? end : from + RSI_FEW_ROWS;
      if (dw) memset(dw, 0, (size_t)j->n * j->item);
      for (int64_t i = from; i < to; i++) {
        const size_t at = (size_t)(i * j->n) * j->item;
        j->k->backward(j->out + at, j->g + at, j->x + at, j->weight, j->rstd + (size_t)i * j->item, j->n, dw);
      }
      for (int64_t i = 0; dw && i < j->n; i++) sum[i] += real_at(dw, j->item == 4 ? RS_F32 : RS_F64, i);
    }
  }
}

/* g, x, dx: [rows, n]; dweight: [n] */
static rs_status rms_norm_backward_run(const rsi_call *c) {
  rms j = rms_of(c, c->in[1], c->in[3]);
  j.g = c->in[0]->data, j.rstd = c->in[2]->data, j.out = c->out[0]->data, j.scratch = c->scratch;
  j.parts = rsi_row_parts(j.rows, j.n);
  if (j.n == 0) return RS_OK;
  rsi_parallel(c->x, j.parts, ((j.item == 4 ? 0.5 : 1.0) * (double)j.n + 30.0) * (double)j.rows / (double)j.parts, rms_part, &j);
  for (int64_t i = 0; j.weight && i < j.n; i++) {
    double sum = 0;
    for (int64_t part = 0; part < j.parts; part++) {
      const double *const sums = (const void *)(j.scratch + (size_t)part * rsi_row_part_bytes(j.n, 1, j.item));
      sum += sums[i];
    }
    store_real(c->out[1]->data, c->out[1]->dtype, i, sum);
  }
  return RS_OK;
}

static void rms_norm_grad(rsi_grad *g) {
  rs_tensor *const in[4] = {rsi_gout(g, 0), rsi_in(g, 0), rsi_out(g, 1), rsi_in(g, 1)};
  rs_tensor *out[2] = {NULL};
  rsi_emit(g, RS_OP_rms_norm_backward, rsi_attrs(g), 4, in, 2, out);
  give_three(g, out, 2);
}

static void rms_norm_backward_grad(rsi_grad *g) {
  const rms_norm_attrs *const a = rsi_attrs(g);
  const rsi_desc *const desc = rsi_in_desc(g, 1);
  second s = {.g = g, .dims = {.n = a->normalized_shape.n}};
  for (int i = 0; i < s.dims.n; i++) s.dims.v[i] = desc->ndim - s.dims.n + i;
  s.gy = rsi_in(g, 0), s.h = rsi_gout(g, 0);
  s.weight = rsi_has_in(g, 3) ? rsi_in(g, 3) : NULL;
  s.hw = s.weight && rsi_has_gout(g, 1) ? rsi_gout(g, 1) : NULL;
  const second_result t = second_derivative(&s, rsi_in(g, 1), rms_eps(a->eps, desc->dtype));
  if (rsi_needs(g, 0)) rsi_give(g, 0, t.g);
  if (rsi_needs(g, 1)) rsi_give(g, 1, t.x);
  if (s.weight && rsi_needs(g, 3)) rsi_give(g, 3, t.weight);
}

static const rsi_kernel rms_norm_kernels[] = {{"rms_norm", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, rms_norm_run}, {0}};
static const rsi_kernel rms_norm_backward_kernels[] = {
  {"rms_norm_backward", RSI_PORTABLE, RSI_FLOATS, NULL, rms_norm_backward_scratch, rms_norm_backward_run}, {0}};

static const rms_norm_attrs rms_33 = {{1, {33}}, 1e-5}, rms_4_5 = {{2, {4, 5}}, 1e-3}, rms_7 = {{1, {7}}, -1},
                            rms_0 = {{1, {0}}, 1e-5};

static const rsi_sample rms_norm_samples[] = {
  {"f7x33,f33", &rms_33, 0, 0}, {"f2x3x4x5,f4x5", &rms_4_5, 0, 0}, {"f7", &rms_7, 0, 0}, {"f3x7", &rms_7, 0, 0},
  {"f0x7,f7", &rms_7, 0, 0},    {"f3x0", &rms_0, 0, 0},            {NULL, NULL, 0, 0}};
static const rsi_sample rms_norm_backward_samples[] = {
  {"f7x33,f7x33,f7@0.5:2,f33", &rms_33, 0, 1}, {"f2x3x4x5,f2x3x4x5,f2x3@0.5:2,f4x5", &rms_4_5, 0, 1},
  {"f7,f7,f@0.5:2", &rms_7, 0, 1},             {"f0x7,f0x7,f0@0.5:2,f7", &rms_7, 0, 1},
  {"f3x0,f3x0,f3@0.5:2", &rms_0, 0, 1},        {NULL, NULL, 0, 0}};

#define RMS_SAVES (RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_OUT(1))
#define RMS_SAVES_BACK (RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_IN(3))

const rs_op rsi_op_rms_norm = {
  .name = "rms_norm", .doc = "x / sqrt(mean(x^2) + eps) weight over the last dimensions (Zhang, Sennrich 2019).",
  .inputs = "x,weight?", .nin_min = 1, .nin_max = 2, .nout = 2, .nout_public = 1,
  .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(rms_norm),
  .infer = rms_norm_infer, .grad = rms_norm_grad, .saves = {RMS_SAVES, RMS_SAVES},
  .kernels = rms_norm_kernels, .samples = rms_norm_samples,
};

const rs_op rsi_op_rms_norm_backward = {
  .name = "rms_norm_backward",
  .doc = "Gradients of rms_norm for x and weight, from its gradient g, its input and the rstd that it used.",
  .inputs = "g,x,rstd,weight?", .nin_min = 3, .nin_max = 4, .nout = 2,
  .traits = RSI_T_INTERNAL, .dtypes = RSI_FLOATS | RSI_HALF, RSI_USES_ATTRS(rms_norm),
  .infer = rms_norm_backward_infer, .grad = rms_norm_backward_grad, .saves = {RMS_SAVES_BACK, RMS_SAVES_BACK, 0, RMS_SAVES_BACK},
  .kernels = rms_norm_backward_kernels, .samples = rms_norm_backward_samples,
};
