/*
** Sum, mean, variance, any, all: reductions without a position. The work is done by fold.c.
*/
#include "ops/fold.h"
#include <math.h>

#define DIMS_ATTRS(F, T)                                                                                                    \
  F(T, DIMS, dims, 0, 0, 0, NULL, "dimensions to reduce; none means all")                                                   \
  F(T, BOOL, keepdim, 0, 0, 1, NULL, "keep the reduced dimensions with size 1")
RSI_ATTRS(reduce, DIMS_ATTRS)

#define VAR_ATTRS(F, T)                                                                                                     \
  DIMS_ATTRS(F, T)                                                                                                          \
  F(T, INT, correction, 1, -RSI_BIG, RSI_BIG, NULL, "the divisor is the number of elements less this (1: Bessel's)")
RSI_ATTRS(var, VAR_ATTRS)

static const reduce_attrs keepdim_attrs = {.keepdim = 1};

/* ---- shared by the ops ----------------------------------------------------------------------------------------------- */

/* All attribute structs here begin with {dims, keepdim}. */
static rs_status infer_as(rsi_call *c, int dtype) {
  reduce_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[0];
  RSI_TRY(rsi_fold_dims(c, &a->dims, x->ndim));
  rsi_fold_shape(x, rsi_fold_mask(&a->dims, x->ndim), a->keepdim != 0, &c->desc[0]);
  c->desc[0].dtype = dtype;
  return RS_OK;
}

static const rsi_fold *fold_of(const rsi_call *c);   /* below: which fold an op uses */

static size_t reduce_scratch(const rsi_call *c) {
  const reduce_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[0];
  rsi_fold_plan plan;
  if (x->numel < 65536) return 0;   /* too small for parts */
  rsi_fold_plan_make(&plan, x, rsi_fold_mask(&a->dims, x->ndim), false);
  return rsi_fold_scratch(&plan, fold_of(c));
}

static rs_status reduce(const rsi_call *c, double param, bool divide) {
  const reduce_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[0];
  rsi_fold_plan plan;
  rsi_fold_plan_make(&plan, x, rsi_fold_mask(&a->dims, x->ndim), false);
  rsi_fold_run(c->x, &plan, fold_of(c), x, c->out[0]->data, rsi_item_size(c->out[0]), NULL, 0,
               divide ? (double)plan.reduced : param, c->scratch);
  return RS_OK;
}

static rs_status sum_run(const rsi_call *c) { return reduce(c, 1, false); }
static rs_status mean_run(const rsi_call *c) { return reduce(c, 1, true); }
static rs_status var_run(const rsi_call *c) { return reduce(c, (double)RSI_ATTR(c, var)->correction, false); }
static rs_status truth_run(const rsi_call *c) { return reduce(c, 0, false); }

/* The gradient of a reduction, brought back to the shape of its input. */
static rs_tensor *spread(rsi_grad *g, rs_tensor *t) {
  const reduce_attrs *const a = rsi_attrs(g);
  const rsi_desc *const x = rsi_in_desc(g, 0);
  const uint32_t mask = rsi_fold_mask(&a->dims, x->ndim);
  int64_t ones[RS_MAX_DIMS];
  for (int i = 0; i < x->ndim; i++) ones[i] = mask >> i & 1u ? 1 : x->shape[i];
  if (!a->keepdim) t = rsi_b_reshape(g, t, x->ndim, ones);
  return rsi_b_expand(g, t, x->ndim, x->shape);
}

/* Elements that a result was made of. */
static double reduced_count(rsi_grad *g) {
  const reduce_attrs *const a = rsi_attrs(g);
  const rsi_desc *const x = rsi_in_desc(g, 0);
  const uint32_t mask = rsi_fold_mask(&a->dims, x->ndim);
  double n = 1;
  for (int i = 0; i < x->ndim; i++) n *= mask >> i & 1u ? (double)x->shape[i] : 1.0;
  return n;
}

/* ---- sum ------------------------------------------------------------------------------------------------------------- */

/* bf16 comes here in programs alone, which sum it in f32; the dispatcher converts it. */
static rs_status sum_infer(rsi_call *c) {
  const int dtype = c->in[0]->dtype;
  return infer_as(c, dtype == RS_BF16 ? RS_F32 : rsi_is_float(dtype) ? dtype : RS_I64);
}

static void sum_grad(rsi_grad *g) { rsi_give(g, 0, spread(g, rsi_gout(g, 0))); }

static const rsi_kernel sum_kernels[] = {
  {"sum", RSI_PORTABLE, RSI_FLOATS | RSI_INTS | RSI_BOOL | 1u << RS_BF16, NULL, reduce_scratch, sum_run},
  {0},
};

static const reduce_attrs over_0      = {.dims = {1, {0}}};
static const reduce_attrs over_1      = {.dims = {1, {1}}};
static const reduce_attrs over_1_keep = {.dims = {1, {1}}, .keepdim = 1};
static const reduce_attrs over_last   = {.dims = {1, {-1}}};
static const reduce_attrs over_0_2_3  = {.dims = {3, {0, 2, 3}}};
static const reduce_attrs over_2_0    = {.dims = {2, {2, 0}}, .keepdim = 1};

static const rsi_sample sum_samples[] = {
  {"f7x33", NULL, 0, 0},
  {"f", NULL, 0, 0},
  {"f0x3", NULL, 0, 0},
  {"f0x3", &over_0, 0, 0},
  {"f3x0", &over_0, 0, 0},
  {"f33x7", &over_0, 0, 0},
  {"f5x70", &over_1_keep, 0, 0},
  {"f2x3x4x5", &over_0_2_3, 0, 0},
  {"f3x5x7", &over_2_0, 0, 0},
  {"f3x4", &keepdim_attrs, 0, 0},
  {"i5x3@-9:9", &over_last, 0, 1},
  {"b5x7", &over_0, 0, 1},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_sum = {
  .name = "sum",
  .doc = "Sum over some or all dimensions; integers and bools sum to i64. Blocks are added in f64, so that the error of an f32 "
         "sum does not grow with its length.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED, .dtypes = RSI_ANY, RSI_USES_ATTRS(reduce),
  .infer = sum_infer, .grad = sum_grad, .kernels = sum_kernels, .samples = sum_samples,
};

/* ---- mean ------------------------------------------------------------------------------------------------------------ */

static rs_status mean_infer(rsi_call *c) {
  const int dtype = c->in[0]->dtype;
  RSI_CHECK(rsi_is_float(dtype), RS_ERR_DTYPE, "the mean of %s elements is not an integer; cast x to a float dtype first",
            rs_dtype_name(dtype));
  return infer_as(c, dtype);
}

static void mean_grad(rsi_grad *g) { rsi_give(g, 0, spread(g, rsi_b_scale(g, rsi_gout(g, 0), 1.0 / reduced_count(g)))); }

static const rsi_kernel mean_kernels[] = {
  {"mean", RSI_PORTABLE, RSI_FLOATS, NULL, reduce_scratch, mean_run},
  {0},
};

static const rsi_sample mean_samples[] = {
  {"f7x33", NULL, 0, 0},
  {"f", NULL, 0, 0},
  {"f3x0", &over_0, 0, 0},
  {"f33x7", &over_0, 0, 0},
  {"f5x70", &over_1_keep, 0, 0},
  {"f2x3x4x5", &over_0_2_3, 0, 0},
  {"f3x4", &keepdim_attrs, 0, 0},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_mean = {
  .name = "mean",
  .doc = "Mean over some or all dimensions, of floats only; the mean of no elements is NaN.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED, .dtypes = RSI_ANY, RSI_USES_ATTRS(reduce),
  .infer = mean_infer, .grad = mean_grad, .kernels = mean_kernels, .samples = mean_samples,
};

/* ---- var ------------------------------------------------------------------------------------------------------------- */

static rs_status var_infer(rsi_call *c) {
  const int dtype = c->in[0]->dtype;
  RSI_CHECK(rsi_is_float(dtype), RS_ERR_DTYPE, "the variance of %s elements is not an integer; cast x to a float dtype first",
            rs_dtype_name(dtype));
  return infer_as(c, dtype);
}

/* d var / dx = 2 (x - mean) / (n - correction) */
static void var_grad(rsi_grad *g) {
  const var_attrs *const a = rsi_attrs(g);
  const double freedom = reduced_count(g) - (double)a->correction;
  rs_tensor *const x = rsi_in(g, 0);
  const reduce_attrs mean = {.dims = a->dims, .keepdim = 1};
  rs_tensor *const centred = rsi_emit2(g, RS_OP_sub, NULL, x, rsi_emit1(g, RS_OP_mean, &mean, x));
  rs_tensor *const slope = rsi_b_scale(g, centred, 2.0 / (freedom > 0 ? freedom : 0));
  rsi_give(g, 0, rsi_emit2(g, RS_OP_mul, NULL, spread(g, rsi_gout(g, 0)), slope));
}

static const rsi_kernel var_kernels[] = {
  {"var", RSI_PORTABLE, RSI_FLOATS, NULL, reduce_scratch, var_run},
  {0},
};

static const var_attrs var_default    = {.correction = 1};
static const var_attrs var_over_0     = {.dims = {1, {0}}, .correction = 1};
static const var_attrs var_population = {.dims = {1, {1}}, .keepdim = 1, .correction = 0};
static const var_attrs var_planes     = {.dims = {3, {0, 2, 3}}, .correction = 2};

static const rsi_sample var_samples[] = {
  {"f7x33", &var_default, 0, 0},
  {"f3x0", &var_over_0, 0, 0},
  {"f33x7", &var_over_0, 0, 0},
  {"f9x70", &var_over_0, 0, 0},
  {"f5x70", &var_population, 0, 0},
  {"f2x3x4x5", &var_planes, 0, 0},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_var = {
  .name = "var",
  .doc = "Variance over some or all dimensions: sum((x - mean)^2) / (n - correction), blocks merged by the formula of Chan, "
         "Golub and LeVeque.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED, .dtypes = RSI_ANY, RSI_USES_ATTRS(var),
  .infer = var_infer, .grad = var_grad, .saves = {RSI_KEEP_IN(0)}, .kernels = var_kernels, .samples = var_samples,
};

/* ---- any, all -------------------------------------------------------------------------------------------------------- */

static rs_status truth_infer(rsi_call *c) { return infer_as(c, RS_BOOL); }

static const rsi_kernel truth_kernels[] = {
  {"truth", RSI_PORTABLE, RSI_FLOATS | RSI_INTS | RSI_BOOL, NULL, reduce_scratch, truth_run},
  {0},
};

static const rsi_sample truth_samples[] = {
  {"b7x33", NULL, 0, 1},
  {"b", NULL, 0, 1},
  {"b3x0", &over_1, 0, 1},
  {"b5x70", &over_1_keep, 0, 1},
  {"b33x7", &over_0, 0, 1},
  {"i3x4@0:1", &over_0, 0, 1},
  {"f3x4", &keepdim_attrs, 0, 1},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_any = {
  .name = "any",
  .doc = "Whether any element is not zero (a NaN is not), over some or all dimensions; false for none.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED | RSI_T_NONDIFF, .dtypes = RSI_ANY, RSI_USES_ATTRS(reduce),
  .infer = truth_infer, .kernels = truth_kernels, .samples = truth_samples,
};

const rs_op rsi_op_all = {
  .name = "all",
  .doc = "Whether every element is not zero (a NaN is not), over some or all dimensions; true for none.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED | RSI_T_NONDIFF, .dtypes = RSI_ANY, RSI_USES_ATTRS(reduce),
  .infer = truth_infer, .kernels = truth_kernels, .samples = truth_samples,
};

static const rsi_fold *fold_of(const rsi_call *c) {
  const rsi_k_reduce *const k = c->x->k->reduce;
  const int dtype = c->in[0]->dtype;
  if (c->op == &rsi_op_var) return &k->var[dtype];
  if (c->op == &rsi_op_any) return &k->any[dtype];
  if (c->op == &rsi_op_all) return &k->all[dtype];
  return &k->sum[dtype];
}

/* ---- emitters -------------------------------------------------------------------------------------------------------- */

rs_tensor *rsi_b_sum(rsi_grad *g, rs_tensor *t, const rs_list *dims, bool keepdim) {
  reduce_attrs a = {.keepdim = keepdim};
  if (dims) a.dims = *dims;
  return rsi_emit1(g, RS_OP_sum, &a, t);
}

/* Sums over the dimensions that broadcasting added or stretched. */
rs_tensor *rsi_b_sum_to(rsi_grad *g, rs_tensor *t, const rsi_desc *like) {
  rs_list dims = {0};
  if (!t) return NULL;
  const int extra = t->ndim - like->ndim;
  for (int i = 0; i < t->ndim; i++)
    if (i < extra || (like->shape[i - extra] == 1 && t->shape[i] != 1)) dims.v[dims.n++] = i;
  if (dims.n == 0) return t;
  return rsi_b_reshape(g, rsi_b_sum(g, t, &dims, false), like->ndim, like->shape);
}
