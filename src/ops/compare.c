/*
** Comparison, logic and selection. A comparison with a number happens in the tensor's dtype, so that an f32 tensor made from
** 0.1 equals 0.1; an integer tensor and a number that its dtype cannot hold (0.5, 1e300) are compared in f64.
*/
#include "ops/pointwise.h"
#include <math.h>

#define COMPARE_ATTRS(F, T) \
  F(T, FLOAT, scalar, 0, -INFINITY, INFINITY, NULL, "the number that stands for the input left out")
RSI_ATTRS(compare, COMPARE_ATTRS)
#define WHERE_ATTRS(F, T)                                                                         \
  F(T, FLOAT, a_scalar, 0, -INFINITY, INFINITY, NULL, "the number that stands for a left out")     \
  F(T, FLOAT, b_scalar, 0, -INFINITY, INFINITY, NULL, "the number that stands for b left out")
RSI_ATTRS(where, WHERE_ATTRS)

rs_tensor *rsi_b_compare(rsi_grad *g, int op, rs_tensor *a, rs_tensor *b, double scalar) {
  return rsi_emit2(g, op, &(compare_attrs){scalar}, a, b);
}

rs_tensor *rsi_b_where(rsi_grad *g, rs_tensor *condition, rs_tensor *a, rs_tensor *b) {
  return rsi_emit3(g, RS_OP_where, NULL, condition, a, b);
}

/* ---- comparison and logic -------------------------------------------------------------------------------------------- */

static rs_status run_compare(const rsi_call *c, rsi_binary which) {
  if (rsi_unlikely(!(c->in[0] && c->in[1]))) {
    const rs_tensor *const t = c->in[0] ? c->in[0] : c->in[1];
    if (!rsi_holds(t->dtype, RSI_ATTR(c, compare)->scalar)) return rsi_run_binary_wide(c, which, RS_BOOL, 0.6);
  }
  return rsi_run_binary(c, which, NULL, 0.12);
}

static rs_status run_unary(const rsi_call *c, rsi_unary which) {
  return rsi_run_rows(c, c->x->k->elementwise->unary[which][c->in[0]->dtype], NULL, 0.1);
}

static const compare_attrs zero = {0.0}, fraction = {0.5};

static const rsi_sample compare_samples[] = {
  {"f2x3,f2x3", NULL, 0, 1}, {"f4x1,f1x5", NULL, 0, 1}, {"f,f", NULL, 0, 1}, {"f0x3,f3", NULL, 0, 1}, {"f7x33,f33", NULL, 0, 1},
  {"f33,-", &fraction, 0, 1}, {"-,f7", &zero, 0, 1}, {"i33@0:3,i33@0:3", NULL, 0, 1}, {"i7@-2:2,-", &fraction, 0, 1},
  {"-,i7@-2:2", &fraction, 0, 1}, {"b7,b7", NULL, 0, 1}, {0}};

#define TWO_INPUTS(NAME, WHICH, DOC)                                                                                        \
  static rs_status NAME##_run(const rsi_call *c) { return run_compare(c, WHICH); }                                          \
  static const rsi_kernel NAME##_kernels[] = {{"rows", RSI_PORTABLE, RSI_ANY, NULL, NULL, NAME##_run}, {0}};                \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "a?,b?", .nin_min = 0, .nin_max = 2, .nout = 1,                                    \
    .traits = RSI_T_ELEMENTWISE | RSI_T_PROMOTE | RSI_T_NONDIFF, .dtypes = RSI_ANY, RSI_USES_ATTRS(compare),                \
    .infer = rsi_infer_broadcast_bool, .kernels = NAME##_kernels, .samples = compare_samples,                               \
  }
TWO_INPUTS(eq, RSI_B_EQ, "True where a equals b.");
TWO_INPUTS(ne, RSI_B_NE, "True where a differs from b (NaN differs from everything).");
TWO_INPUTS(lt, RSI_B_LT, "True where a < b.");
TWO_INPUTS(le, RSI_B_LE, "True where a <= b.");
TWO_INPUTS(gt, RSI_B_GT, "True where a > b.");
TWO_INPUTS(ge, RSI_B_GE, "True where a >= b.");
TWO_INPUTS(logical_and, RSI_B_AND, "True where both are not 0.");
TWO_INPUTS(logical_or, RSI_B_OR, "True where either is not 0.");

static rs_status infer_bool(rsi_call *c) {
  rsi_desc_of(c->in[0], &c->desc[0]);
  c->desc[0].dtype = RS_BOOL;
  return RS_OK;
}

static const rsi_sample test_samples[] = {{"f2x3", NULL, 0, 1}, {"f", NULL, 0, 1}, {"f0x3", NULL, 0, 1}, {"f7x33", NULL, 0, 1},
                                          {"i33@0:2", NULL, 0, 1}, {"b7", NULL, 0, 1}, {0}};

#define ONE_INPUT(NAME, WHICH, DOC)                                                                                         \
  static rs_status NAME##_run(const rsi_call *c) { return run_unary(c, WHICH); }                                            \
  static const rsi_kernel NAME##_kernels[] = {{"rows", RSI_PORTABLE, RSI_ANY, NULL, NULL, NAME##_run}, {0}};                \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,                                        \
    .traits = RSI_T_ELEMENTWISE | RSI_T_NONDIFF, .dtypes = RSI_ANY, .infer = infer_bool, .kernels = NAME##_kernels,         \
    .samples = test_samples,                                                                                                \
  }
ONE_INPUT(logical_not, RSI_U_NOT, "True where x is 0.");
ONE_INPUT(isnan, RSI_U_ISNAN, "True where x is NaN.");
ONE_INPUT(isfinite, RSI_U_ISFINITE, "True where x is neither infinite nor NaN.");

/* ---- where ----------------------------------------------------------------------------------------------------------- */

static rs_status where_infer(rsi_call *c) {
  const rs_tensor *const a = c->in[1], *const b = c->in[2];
  const where_attrs *const at = RSI_ATTR(c, where);
  rsi_desc *const out = &c->desc[0];
  rsi_desc_of(c->in[0], out);
  if (a && b)
    RSI_CHECK(a->dtype == b->dtype, RS_ERR_DTYPE, "a is %s and b is %s; cast one of them", rs_dtype_name(a->dtype),
              rs_dtype_name(b->dtype));
  out->dtype = a ? a->dtype : b ? b->dtype : RS_F32;
  if (!a) RSI_TRY(rsi_check_element(at->a_scalar, out->dtype, "the number a"));
  if (!b) RSI_TRY(rsi_check_element(at->b_scalar, out->dtype, "the number b"));
  for (int i = 1; i < 3; i++) {
    const rs_tensor *const t = c->in[i];
    if (!t) continue;
    const rsi_desc so_far = *out;
    RSI_TRY(rsi_broadcast(so_far.ndim, so_far.shape, t->ndim, t->shape, &out->ndim, out->shape));
  }
  return RS_OK;
}

static rs_status where_run(const rsi_call *c) {
  const where_attrs *const at = RSI_ATTR(c, where);
  const int dtype = c->out[0]->dtype;
  const rsi_element a = rsi_element_of(c->x, at->a_scalar, dtype), b = rsi_element_of(c->x, at->b_scalar, dtype);
  const void *const missing[3] = {NULL, &a, &b};
  return rsi_run_rows_with(c, c->x->k->elementwise->where[rsi_size_index(dtype)], NULL, 0.15, missing);
}

static void where_grad(rsi_grad *g) {
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_where(g, rsi_in(g, 0), rsi_gout(g, 0), NULL));
  if (rsi_needs(g, 2)) rsi_give(g, 2, rsi_b_where(g, rsi_in(g, 0), NULL, rsi_gout(g, 0)));
}

static const where_attrs where_numbers = {0.5, -2.0};
static const rsi_kernel where_kernels[] = {{"rows", RSI_PORTABLE, RSI_BOOL, NULL, NULL, where_run}, {0}};
static const rsi_sample where_samples[] = {
  {"b2x3,f2x3,f2x3", NULL, 0, 0}, {"b4x1,f1x5,f4x5", NULL, 0, 0}, {"b,f,f", NULL, 0, 0}, {"b0x3,f3,f0x3", NULL, 0, 0},
  {"b33,f33,-", &where_numbers, 0, 0}, {"b33,-,f33", &where_numbers, 0, 0}, {"b7x33,f,f33", NULL, 0, 0},
  {"b7,-,-", &where_numbers, 0, 1}, {"b7,i7,i7", NULL, 0, 1}, {0}};

const rs_op rsi_op_where = {
  .name = "where", .doc = "a where the condition holds, b elsewhere.", .inputs = "condition,a?,b?", .nin_min = 1, .nin_max = 3,
  .nout = 1, .traits = RSI_T_ELEMENTWISE | RSI_T_HALF, .dtypes = RSI_BOOL, RSI_USES_ATTRS(where), .infer = where_infer,
  .grad = where_grad, .saves = {0, RSI_KEEP_IN(0), RSI_KEEP_IN(0)}, .kernels = where_kernels, .samples = where_samples,
};
