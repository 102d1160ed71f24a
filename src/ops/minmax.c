/*
** The largest and the smallest: amax and amin give values, max and min along one dimension values and positions, argmax and
** argmin positions. A NaN beats every number, in both directions, so that it is seen; of equal elements the first is taken.
** Positions are i64 and count from the caller's base, as every tensor of indices does.
*/
#include "ops/fold.h"

#define EXTREME_ATTRS(F, T)                                                                                                 \
  F(T, DIMS, dims, 0, 0, 0, NULL, "dimensions to reduce; none means all")                                                   \
  F(T, BOOL, keepdim, 0, 0, 1, NULL, "keep the reduced dimensions with size 1")
RSI_ATTRS(extreme, EXTREME_ATTRS)

#define ALONG_ATTRS(F, T)                                                                                                   \
  F(T, DIM, dim, RSI_NO_DIM, 0, 0, NULL, "the dimension to reduce")                                                         \
  F(T, BOOL, keepdim, 0, 0, 1, NULL, "keep the reduced dimension with size 1")
RSI_ATTRS(along, ALONG_ATTRS)

#define ARG_ATTRS(F, T)                                                                                                     \
  F(T, DIM, dim, RSI_NO_DIM, 0, 0, NULL, "the dimension to search; none means all elements, row by row")                    \
  F(T, BOOL, keepdim, 0, 0, 1, NULL, "keep the reduced dimensions with size 1")
RSI_ATTRS(arg, ARG_ATTRS)

/* ---- shared ---------------------------------------------------------------------------------------------------------- */

static rs_status check_not_empty(const rsi_call *c, uint32_t mask) {
  const rs_tensor *const x = c->in[0];
  for (int i = 0; i < x->ndim; i++)
    RSI_CHECK(!(mask >> i & 1u) || x->shape[i] > 0, RS_ERR_SHAPE,
              "input %s has no elements in dimension %d, so there is no extreme; test numel() first", rsi_text(x), i + rsi_base(c));
  return RS_OK;
}

static bool is_min(const rsi_call *c) { return c->op == &rsi_op_amin || c->op == &rsi_op_min || c->op == &rsi_op_argmin; }

/* The reduced dimension as a mask; a 0-d tensor may be searched along its dimension 0 or -1. */
static rs_status mask_along(const rsi_call *c, int64_t *dim, uint32_t *mask) {
  const int ndim = c->in[0]->ndim;
  RSI_TRY(rsi_dim(c->ctx, *dim, ndim > 0 ? ndim : 1, dim));
  *mask = ndim > 0 ? 1u << *dim : 0;
  return RS_OK;
}

static uint32_t along_mask(const rs_tensor *x, int64_t dim) {
  if (dim == RSI_NO_DIM) return (1u << x->ndim) - 1u;
  return x->ndim > 0 ? 1u << dim : 0;
}

/* ---- amax, amin ------------------------------------------------------------------------------------------------------ */

static rs_status extreme_infer(rsi_call *c) {
  extreme_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[0];
  RSI_TRY(rsi_fold_dims(c, &a->dims, x->ndim));
  const uint32_t mask = rsi_fold_mask(&a->dims, x->ndim);
  RSI_TRY(check_not_empty(c, mask));
  rsi_fold_shape(x, mask, a->keepdim != 0, &c->desc[0]);
  c->desc[0].dtype = x->dtype;
  return RS_OK;
}

static const rsi_fold *value_fold(const rsi_call *c) {
  const rsi_k_reduce *const k = c->x->k->reduce;
  return is_min(c) ? &k->min[c->in[0]->dtype] : &k->max[c->in[0]->dtype];
}

static void extreme_plan(const rsi_call *c, rsi_fold_plan *plan) {
  rsi_fold_plan_make(plan, c->in[0], rsi_fold_mask(&RSI_ATTR(c, extreme)->dims, c->in[0]->ndim), false);
}

static size_t extreme_scratch(const rsi_call *c) {
  rsi_fold_plan plan;
  if (c->in[0]->numel < 65536) return 0;
  extreme_plan(c, &plan);
  return rsi_fold_scratch(&plan, value_fold(c));
}

static rs_status extreme_run(const rsi_call *c) {
  rsi_fold_plan plan;
  extreme_plan(c, &plan);
  rsi_fold_run(c->x, &plan, value_fold(c), c->in[0], c->out[0]->data, rsi_item_size(c->out[0]), NULL, 0, 0, c->scratch);
  return RS_OK;
}

/* Every element that equals the extreme gets an equal share of the gradient. */
static void extreme_grad(rsi_grad *g) {
  const extreme_attrs *const a = rsi_attrs(g);
  const rsi_desc *const d = rsi_in_desc(g, 0);
  const uint32_t mask = rsi_fold_mask(&a->dims, d->ndim);
  rs_tensor *y = rsi_out(g, 0), *gy = rsi_gout(g, 0);
  rs_list dims = {.n = d->ndim};
  int64_t ones[RS_MAX_DIMS];
  for (int i = 0; i < d->ndim; i++) ones[i] = mask >> i & 1u ? 1 : d->shape[i];
  dims.n = 0;
  for (int i = 0; i < d->ndim; i++)
    if (mask >> i & 1u) dims.v[dims.n++] = i;
  if (!a->keepdim) y = rsi_b_reshape(g, y, d->ndim, ones), gy = rsi_b_reshape(g, gy, d->ndim, ones);
  rs_tensor *const hit = rsi_b_cast(g, rsi_emit2(g, RS_OP_eq, NULL, rsi_in(g, 0), y), d->dtype);
  rs_tensor *const share = rsi_emit2(g, RS_OP_div, NULL, gy, rsi_b_sum(g, hit, &dims, true));
  rsi_give(g, 0, rsi_emit2(g, RS_OP_mul, NULL, hit, share));
}

static const rsi_kernel extreme_kernels[] = {
  {"extreme", RSI_PORTABLE, RSI_FLOATS | RSI_INTS | RSI_BOOL, NULL, extreme_scratch, extreme_run},
  {0},
};

static const extreme_attrs extreme_0 = {.dims = {1, {0}}}, extreme_1_keep = {.dims = {1, {1}}, .keepdim = 1};
static const extreme_attrs extreme_planes = {.dims = {3, {0, -2, 3}}}, extreme_keep = {.keepdim = 1};

static const rsi_sample extreme_samples[] = {
  {"d7x33", NULL, 0, 0},
  {"d", NULL, 0, 0},
  {"f3x0", &extreme_0, 0, 0},
  {"d33x7", &extreme_0, 0, 0},
  {"d5x70", &extreme_1_keep, 0, 0},
  {"d2x3x4x5", &extreme_planes, 0, 0},
  {"d3x4", &extreme_keep, 0, 0},
  {"i5x70@-9:9", &extreme_0, 0, 1},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_amax = {
  .name = "amax",
  .doc = "The largest element over some or all dimensions; NaN if there is one. Equal largest elements share the gradient.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED, .dtypes = RSI_ANY, RSI_USES_ATTRS(extreme),
  .infer = extreme_infer, .grad = extreme_grad, .saves = {RSI_KEEP_IN(0) | RSI_KEEP_OUT(0)},
  .kernels = extreme_kernels, .samples = extreme_samples,
};

const rs_op rsi_op_amin = {
  .name = "amin",
  .doc = "The smallest element over some or all dimensions; NaN if there is one. Equal smallest elements share the gradient.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED, .dtypes = RSI_ANY, RSI_USES_ATTRS(extreme),
  .infer = extreme_infer, .grad = extreme_grad, .saves = {RSI_KEEP_IN(0) | RSI_KEEP_OUT(0)},
  .kernels = extreme_kernels, .samples = extreme_samples,
};

/* ---- max, min along a dimension --------------------------------------------------------------------------------------- */

static rs_status along_infer(rsi_call *c) {
  along_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[0];
  uint32_t mask;
  RSI_CHECK(a->dim != RSI_NO_DIM, RS_ERR_ARG, "it needs a dimension; amax and amin reduce over all of them, maximum and minimum "
            "compare two tensors");
  RSI_TRY(mask_along(c, &a->dim, &mask));
  RSI_TRY(check_not_empty(c, mask));
  rsi_fold_shape(x, mask, a->keepdim != 0, &c->desc[0]);
  c->desc[1] = c->desc[0];
  c->desc[0].dtype = x->dtype;
  c->desc[1].dtype = RS_I64;
  return RS_OK;
}

static const rsi_fold *place_fold(const rsi_call *c) {
  const rsi_k_reduce *const k = c->x->k->reduce;
  return is_min(c) ? &k->min_at[c->in[0]->dtype] : &k->max_at[c->in[0]->dtype];
}

/* along_attrs and arg_attrs both begin with dim. */
static void place_plan(const rsi_call *c, rsi_fold_plan *plan) {
  rsi_fold_plan_make(plan, c->in[0], along_mask(c->in[0], RSI_ATTR(c, along)->dim), true);
}

static size_t place_scratch(const rsi_call *c) {
  rsi_fold_plan plan;
  if (c->in[0]->numel < 65536) return 0;
  place_plan(c, &plan);
  return rsi_fold_scratch(&plan, place_fold(c));
}

static rs_status along_run(const rsi_call *c) {
  rsi_fold_plan plan;
  place_plan(c, &plan);
  rsi_fold_run(c->x, &plan, place_fold(c), c->in[0], c->out[0]->data, rsi_item_size(c->out[0]), c->out[1]->data, sizeof(int64_t),
               c->x->base, c->scratch);
  return RS_OK;
}

static rs_status arg_run(const rsi_call *c) {
  rsi_fold_plan plan;
  place_plan(c, &plan);
  rsi_fold_run(c->x, &plan, place_fold(c), c->in[0], NULL, 0, c->out[0]->data, sizeof(int64_t), c->x->base, c->scratch);
  return RS_OK;
}

static const rsi_kernel along_kernels[] = {
  {"extreme_along", RSI_PORTABLE, RSI_FLOATS | RSI_INTS | RSI_BOOL, NULL, place_scratch, along_run},
  {0},
};

static const along_attrs along_0 = {.dim = 0}, along_last_keep = {.dim = -1, .keepdim = 1}, along_1 = {.dim = 1};

static const rsi_sample along_samples[] = {
  {"d7x33", &along_1, 0, 0},
  {"d", &along_0, 0, 0},
  {"f3x0", &along_0, 0, 0},
  {"d33x7", &along_0, 0, 0},
  {"d5x70", &along_last_keep, 0, 0},
  {"d3x7x4", &along_1, 0, 0},
  {"i5x70@-9:9", &along_1, 0, 1},
  {NULL, NULL, 0, 0},
};

/* ---- argmax, argmin -------------------------------------------------------------------------------------------------- */

static rs_status arg_infer(rsi_call *c) {
  arg_attrs *const a = c->attrs;
  const rs_tensor *const x = c->in[0];
  uint32_t mask = along_mask(x, RSI_NO_DIM);
  if (a->dim != RSI_NO_DIM) RSI_TRY(mask_along(c, &a->dim, &mask));
  RSI_TRY(check_not_empty(c, mask));
  rsi_fold_shape(x, mask, a->keepdim != 0, &c->desc[0]);
  c->desc[0].dtype = RS_I64;
  return RS_OK;
}

static const rsi_kernel arg_kernels[] = {
  {"extreme_place", RSI_PORTABLE, RSI_FLOATS | RSI_INTS | RSI_BOOL, NULL, place_scratch, arg_run},
  {0},
};

static const arg_attrs arg_0 = {.dim = 0}, arg_last_keep = {.dim = -1, .keepdim = 1}, arg_1 = {.dim = 1};
static const arg_attrs arg_keep = {.dim = RSI_NO_DIM, .keepdim = 1};

static const rsi_sample arg_samples[] = {
  {"d7x33", NULL, 0, 1},
  {"d", NULL, 0, 1},
  {"f3x0", &arg_0, 0, 1},
  {"d33x7", &arg_0, 0, 1},
  {"d5x70", &arg_last_keep, 0, 1},
  {"d3x7x4", &arg_1, 0, 1},
  {"d3x4", &arg_keep, 0, 1},
  {"i5x70@-9:9", &arg_1, 0, 1},
  {NULL, NULL, 0, 0},
};

const rs_op rsi_op_argmax = {
  .name = "argmax",
  .doc = "Position (i64) of the first largest element along a dimension, or in the whole tensor read row by row; a NaN counts "
         "as largest.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED | RSI_T_NONDIFF | RSI_T_INDEXED, .dtypes = RSI_ANY, RSI_USES_ATTRS(arg),
  .infer = arg_infer, .kernels = arg_kernels, .samples = arg_samples,
};

const rs_op rsi_op_argmin = {
  .name = "argmin",
  .doc = "Position (i64) of the first smallest element along a dimension, or in the whole tensor read row by row; a NaN counts "
         "as smallest.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_STRIDED | RSI_T_NONDIFF | RSI_T_INDEXED, .dtypes = RSI_ANY, RSI_USES_ATTRS(arg),
  .infer = arg_infer, .kernels = arg_kernels, .samples = arg_samples,
};

/* ---- max, min: the ops ----------------------------------------------------------------------------------------------- */

/* The gradient goes to the picked element. */
static void along_grad(rsi_grad *g) {
  const along_attrs *const a = rsi_attrs(g);
  const rsi_desc *const d = rsi_in_desc(g, 0);
  struct { int64_t dim; rs_list shape; } back = {a->dim, {.n = d->ndim}};   /* the attributes of gather_backward */
  rs_tensor *gy = rsi_gout(g, 0), *at = rsi_out(g, 1);
  int64_t ones[RS_MAX_DIMS];
  if (back.dim < 0) back.dim += d->ndim > 0 ? d->ndim : 1;
  for (int i = 0; i < d->ndim; i++) {
    back.shape.v[i] = d->shape[i];
    ones[i] = i == back.dim ? 1 : d->shape[i];
  }
  if (!a->keepdim && d->ndim > 0) gy = rsi_b_reshape(g, gy, d->ndim, ones), at = rsi_b_reshape(g, at, d->ndim, ones);
  rsi_give(g, 0, rsi_emit2(g, RS_OP_gather_backward, &back, gy, at));
}

const rs_op rsi_op_max = {
  .name = "max",
  .doc = "The largest elements along a dimension, and their positions (i64, the first of equals); a NaN counts as largest.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 2,
  .traits = RSI_T_STRIDED | RSI_T_INDEXED, .dtypes = RSI_ANY, RSI_USES_ATTRS(along),
  .infer = along_infer, .grad = along_grad, .saves = {RSI_KEEP_OUT(1)}, .kernels = along_kernels, .samples = along_samples,
};

const rs_op rsi_op_min = {
  .name = "min",
  .doc = "The smallest elements along a dimension, and their positions (i64, the first of equals); a NaN counts as smallest.",
  .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 2,
  .traits = RSI_T_STRIDED | RSI_T_INDEXED, .dtypes = RSI_ANY, RSI_USES_ATTRS(along),
  .infer = along_infer, .grad = along_grad, .saves = {RSI_KEEP_OUT(1)}, .kernels = along_kernels, .samples = along_samples,
};
