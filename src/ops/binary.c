/*
** Arithmetic on two inputs. Either may be left out: then the attribute `scalar` takes its place and does not change the dtype.
** Integers wrap; their quotient is f32.
*/
#include "ops/pointwise.h"
#include <math.h>

#define NUMBERS (RSI_FLOATS | RSI_INTS)

/* ---- numbers in the place of tensors ----------------------------------------------------------------------------------- */

bool rsi_holds(int dtype, double value) {
  if (rsi_is_float(dtype)) return true;
  if (value != floor(value)) return false;   /* NaN too */
  if (dtype == RS_I64) return value >= -9223372036854775808.0 && value < 9223372036854775808.0;
  if (dtype == RS_I32) return value >= INT32_MIN && value <= INT32_MAX;
  return value >= 0 && value <= (dtype == RS_U8 ? 255 : 1);
}

rs_status rsi_check_element(double value, int dtype, const char *what) {
  RSI_CHECK(rsi_holds(dtype, value), RS_ERR_ARG, "%s %g cannot be held by dtype %s", what, value, rs_dtype_name(dtype));
  return RS_OK;
}

rsi_element rsi_element_of(const rsi_exec *x, double value, int dtype) {
  rsi_element e;
  if (rsi_likely(dtype == RS_F32)) e.f32 = (float)value;
  else if (dtype == RS_F64) e.f64 = value;
  else {
    char *const data[2] = {e.bytes, (char *)&value};
    const int64_t strides[2] = {rsi_dtype_size[dtype], sizeof value};
    x->k->elementwise->cast->cast[RS_F64][dtype](1, data, strides, NULL);
  }
  return e;
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

rs_status rsi_run_binary(const rsi_call *c, rsi_binary which, const void *arg, double work) {
  const rs_tensor *const t = c->in[0] ? c->in[0] : c->in[1];
  const rsi_row_fn row = c->x->k->elementwise->binary[which][t->dtype];
  if (t->dtype == RS_F64) work *= 2;
  if (c->in[0] && c->in[1]) return rsi_run_rows(c, row, arg, work);
  const rsi_element e = rsi_element_of(c->x, *(const double *)c->attrs, t->dtype);
  const void *const missing[2] = {&e, &e};
  return rsi_run_rows_with(c, row, arg, work, missing);
}

enum { BLOCK = 256 };

typedef struct wide_row { rsi_row_fn widen, row, narrow; double scalar; int64_t made; bool first; } wide_row;

/* out, in: blocks of the input go to f64, meet the number, and the f64 or bool that results goes to the result's dtype */
static void run_wide(int64_t n, char *const *data, const int64_t *strides, const void *arg) {
  const wide_row *const w = arg;
  double values[BLOCK], results[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int64_t count = n - at < BLOCK ? n - at : BLOCK;
    char *const wide[2] = {(char *)values, data[1] + at * strides[1]};
    w->widen(count, wide, (const int64_t[]){8, strides[1]}, NULL);
    char *const operands[3] = {(char *)results, w->first ? (char *)(uintptr_t)&w->scalar : (char *)values,
                               w->first ? (char *)values : (char *)(uintptr_t)&w->scalar};
    w->row(count, operands, (const int64_t[]){w->made, w->first ? 0 : 8, w->first ? 8 : 0}, NULL);
    char *const out[2] = {data[0] + at * strides[0], (char *)results};
    w->narrow(count, out, (const int64_t[]){strides[0], w->made}, NULL);
  }
}

rs_status rsi_run_binary_wide(const rsi_call *c, rsi_binary which, int made, double work) {
  const rsi_k_elementwise *const k = c->x->k->elementwise;
  const rs_tensor *const t = c->in[0] ? c->in[0] : c->in[1];
  const wide_row w = {.widen = k->cast->cast[t->dtype][RS_F64], .row = k->binary[which][RS_F64],
                      .narrow = k->cast->cast[made][c->out[0]->dtype], .scalar = *(const double *)c->attrs,
                      .made = rsi_dtype_size[made], .first = c->in[0] == NULL};
  return rsi_run_rows(c, run_wide, &w, work);
}

/* ---- shapes ---------------------------------------------------------------------------------------------------------- */

static rs_status infer_arithmetic(rsi_call *c) {
  RSI_TRY(rsi_infer_broadcast(c));
  if (rsi_likely(rsi_is_float(c->desc[0].dtype)) || (c->in[0] && c->in[1])) return RS_OK;
  const double number = *(const double *)c->attrs;
  RSI_CHECK(rsi_holds(c->desc[0].dtype, number), RS_ERR_ARG,
            "the number %g cannot be held by a tensor of dtype %s; cast the tensor first (t:to(\"f32\"))", number,
            rs_dtype_name(c->desc[0].dtype));
  return RS_OK;
}

#define SCALAR_ATTRS(F, T) \
  F(T, FLOAT, scalar, 0, -INFINITY, INFINITY, NULL, "the number that stands for the input left out")
#define ADD_ATTRS(F, T) \
  SCALAR_ATTRS(F, T) F(T, FLOAT, alpha, 1, -INFINITY, INFINITY, NULL, "factor of the second input")
RSI_ATTRS(scalar, SCALAR_ATTRS)
RSI_ATTRS(add, ADD_ATTRS)

/* ---- emitters -------------------------------------------------------------------------------------------------------- */

rs_tensor *rsi_b_scale(rsi_grad *g, rs_tensor *t, double factor) {
  return rsi_emit1(g, RS_OP_mul, &(scalar_attrs){factor}, t);
}

rs_tensor *rsi_b_add_scalar(rsi_grad *g, rs_tensor *t, double value) {
  return rsi_emit1(g, RS_OP_add, &(add_attrs){value, 1.0}, t);
}

rs_tensor *rsi_b_pow(rsi_grad *g, rs_tensor *t, double exponent) {
  return rsi_emit1(g, RS_OP_pow, &(scalar_attrs){exponent}, t);
}

static double scalar_of(rsi_grad *g) { return ((const scalar_attrs *)rsi_attrs(g))->scalar; }

/* ---- add, sub, mul, div ---------------------------------------------------------------------------------------------- */

static rs_status add_infer(rsi_call *c) {
  RSI_TRY(infer_arithmetic(c));
  if (rsi_is_float(c->desc[0].dtype)) return RS_OK;
  return rsi_check_element(RSI_ATTR(c, add)->alpha, RS_I64, "alpha");
}

static rs_status add_run(const rsi_call *c) {
  const add_attrs *const a = RSI_ATTR(c, add);
  if (rsi_likely(a->alpha == 1.0)) return rsi_run_binary(c, RSI_B_ADD, NULL, 0.12);
  return rsi_run_binary(c, RSI_B_ADD_SCALED, &a->alpha, 0.12);
}

static void add_grad(rsi_grad *g) {
  const double alpha = ((const add_attrs *)rsi_attrs(g))->alpha;
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_gout(g, 0));
  if (rsi_needs(g, 1)) rsi_give(g, 1, alpha == 1.0 ? rsi_gout(g, 0) : rsi_b_scale(g, rsi_gout(g, 0), alpha));
}

static rs_status sub_run(const rsi_call *c) { return rsi_run_binary(c, RSI_B_SUB, NULL, 0.12); }

static void sub_grad(rsi_grad *g) {
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_gout(g, 0));
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_emit1(g, RS_OP_neg, NULL, rsi_gout(g, 0)));
}

static rs_status mul_run(const rsi_call *c) { return rsi_run_binary(c, RSI_B_MUL, NULL, 0.12); }

static void mul_grad(rsi_grad *g) {
  for (int i = 0; i < 2; i++) {
    if (!rsi_needs(g, i)) continue;
    rsi_give(g, i, rsi_has_in(g, 1 - i) ? rsi_emit2(g, RS_OP_mul, NULL, rsi_gout(g, 0), rsi_in(g, 1 - i))
                                        : rsi_b_scale(g, rsi_gout(g, 0), scalar_of(g)));
  }
}

static rs_status div_infer(rsi_call *c) {
  RSI_TRY(rsi_infer_broadcast(c));
  if (!rsi_is_float(c->desc[0].dtype)) c->desc[0].dtype = RS_F32;
  return RS_OK;
}

static rs_status div_run(const rsi_call *c) {
  const rs_tensor *const t = c->in[0] ? c->in[0] : c->in[1];
  if (rsi_unlikely(!rsi_is_float(t->dtype)) && !(c->in[0] && c->in[1]))
    return rsi_run_binary_wide(c, RSI_B_DIV, RS_F64, 0.6);
  return rsi_run_binary(c, RSI_B_DIV, NULL, 0.15);
}

/* y = a / b: dy/da = 1 / b, dy/db = -y / b */
static void div_grad(rsi_grad *g) {
  if (rsi_needs(g, 0)) {
    const scalar_attrs by = {scalar_of(g)};
    rsi_give(g, 0, rsi_has_in(g, 1) ? rsi_emit2(g, RS_OP_div, NULL, rsi_gout(g, 0), rsi_in(g, 1))
                                    : rsi_emit1(g, RS_OP_div, &by, rsi_gout(g, 0)));
  }
  if (rsi_needs(g, 1)) {
    rs_tensor *const slope = rsi_emit2(g, RS_OP_div, NULL, rsi_out(g, 0), rsi_in(g, 1));
    rsi_give(g, 1, rsi_emit1(g, RS_OP_neg, NULL, rsi_emit2(g, RS_OP_mul, NULL, rsi_gout(g, 0), slope)));
  }
}

/* ---- pow ------------------------------------------------------------------------------------------------------------- */

/* Exponents that have a row of their own; -1 when there is none. */
static int quick_power(double exponent) {
  return exponent == 2.0 ? RSI_U_SQUARE : exponent == 0.5 ? RSI_U_SQRT : exponent == -0.5 ? RSI_U_RSQRT
         : exponent == -1.0 ? RSI_U_RECIPROCAL : -1;
}

static rs_status pow_run(const rsi_call *c) {
  if (c->in[0] && !c->in[1] && rsi_is_float(c->in[0]->dtype)) {
    const int quick = quick_power(RSI_ATTR(c, scalar)->scalar);
    if (quick >= 0) return rsi_run_rows(c, c->x->k->elementwise->unary[quick][c->in[0]->dtype], NULL, 0.15);
  }
  return rsi_run_binary(c, RSI_B_POW, NULL, 4.0);
}

/* d(a^b)/da = b a^(b - 1), and 0 where b is 0 */
static void pow_grad_base(rsi_grad *g) {
  rs_tensor *const a = rsi_in(g, 0), *const b = rsi_in(g, 1), *const gout = rsi_gout(g, 0);
  if (!rsi_has_in(g, 1)) {
    const double e = scalar_of(g);
    rs_tensor *const power = e == 2.0 ? a : e == 0.0 || e == 1.0 ? NULL : rsi_b_pow(g, a, e - 1.0);
    rs_tensor *const slope = power ? rsi_emit2(g, RS_OP_mul, NULL, gout, power) : gout;
    rsi_give(g, 0, e == 1.0 ? slope : rsi_b_scale(g, slope, e));
    return;
  }
  rs_tensor *const power = rsi_emit2(g, RS_OP_pow, NULL, a, rsi_b_add_scalar(g, b, -1.0));
  rs_tensor *const slope = rsi_emit2(g, RS_OP_mul, NULL, b, power);
  rsi_give(g, 0, rsi_b_where(g, rsi_b_compare(g, RS_OP_eq, b, NULL, 0.0), NULL, rsi_emit2(g, RS_OP_mul, NULL, gout, slope)));
}

/* d(a^b)/db = a^b log a, and 0 where a is 0 and b is not negative */
static void pow_grad_exponent(rsi_grad *g) {
  rs_tensor *const a = rsi_in(g, 0), *const b = rsi_in(g, 1);
  rs_tensor *const flow = rsi_emit2(g, RS_OP_mul, NULL, rsi_gout(g, 0), rsi_out(g, 0));
  if (!rsi_has_in(g, 0)) {
    const double base = scalar_of(g);
    rs_tensor *const t = rsi_b_scale(g, flow, base == 0.0 ? 0.0 : log(base));
    rsi_give(g, 1, base == 0.0 ? rsi_b_where(g, rsi_b_compare(g, RS_OP_ge, b, NULL, 0.0), NULL, t) : t);
    return;
  }
  rs_tensor *const zero = rsi_emit2(g, RS_OP_logical_and, NULL, rsi_b_compare(g, RS_OP_eq, a, NULL, 0.0),
                                    rsi_b_compare(g, RS_OP_ge, b, NULL, 0.0));
  rsi_give(g, 1, rsi_b_where(g, zero, NULL, rsi_emit2(g, RS_OP_mul, NULL, flow, rsi_emit1(g, RS_OP_log, NULL, a))));
}

static void pow_grad(rsi_grad *g) {
  if (rsi_needs(g, 0)) pow_grad_base(g);
  if (rsi_needs(g, 1)) pow_grad_exponent(g);
}

/* ---- maximum, minimum ------------------------------------------------------------------------------------------------ */

static rs_status maximum_run(const rsi_call *c) { return rsi_run_binary(c, RSI_B_MAXIMUM, NULL, 0.12); }
static rs_status minimum_run(const rsi_call *c) { return rsi_run_binary(c, RSI_B_MINIMUM, NULL, 0.12); }

/* The gradient goes to the side that won, half to each at a tie. `wins`: the comparison that input 0 wins or ties with. */
static void extreme_grad(rsi_grad *g, int wins, int loses) {
  const double s = scalar_of(g);
  rs_tensor *a = rsi_in(g, 0), *b = rsi_in(g, 1);
  if (!rsi_has_in(g, 0)) a = b, b = NULL;   /* the sides may be swapped: now a is the tensor */
  rs_tensor *const gout = rsi_gout(g, 0);
  rs_tensor *const share = rsi_emit3(g, RS_OP_where, NULL, rsi_b_compare(g, RS_OP_eq, a, b, s), rsi_b_scale(g, gout, 0.5), gout);
  const int tensor = rsi_has_in(g, 0) ? 0 : 1;
  if (rsi_needs(g, tensor)) rsi_give(g, tensor, rsi_b_where(g, rsi_b_compare(g, wins, a, b, s), share, NULL));
  if (tensor == 0 && rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_where(g, rsi_b_compare(g, loses, a, b, s), share, NULL));
}

static void maximum_grad(rsi_grad *g) { extreme_grad(g, RS_OP_ge, RS_OP_le); }
static void minimum_grad(rsi_grad *g) { extreme_grad(g, RS_OP_le, RS_OP_ge); }

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

static const add_attrs add_scaled = {0.0, -0.5}, add_number = {0.75, 1.0}, add_number_scaled = {0.75, 2.0};
static const scalar_attrs number = {0.75}, two = {2.0}, three = {3.0}, half = {0.5}, minus_half = {-0.5}, minus_one = {-1.0};

#define PAIRS                                                                                                               \
  {"f2x3,f2x3", NULL, 0, 0}, {"f2x3,f3", NULL, 0, 0}, {"f4x1,f1x5", NULL, 0, 0}, {"f,f", NULL, 0, 0}, {"f33,f", NULL, 0, 0}, \
  {"f0x3,f3", NULL, 0, 0}, {"f7x33,f7x33", NULL, 0, 0}, {"f3x5x7,f5x1", NULL, 0, 0}, {"i7,i7", NULL, 0, 1}

static const rsi_sample add_samples[] = {PAIRS, {"f7,f7", &add_scaled, 0, 0}, {"f7,-", &add_number, 0, 0},
                                         {"-,f7", &add_number_scaled, 0, 0}, {0}};
static const rsi_sample sub_samples[] = {PAIRS, {"f7,-", &number, 0, 0}, {"-,f2x3", &number, 0, 0}, {0}};
static const rsi_sample mul_samples[] = {PAIRS, {"f7,-", &number, 0, 0}, {"-,f2x3", &number, 0, 0}, {0}};
static const rsi_sample div_samples[] = {
  {"f2x3,f2x3@0.5:2", NULL, 0, 0}, {"f2x3,f3@-2:-0.5", NULL, 0, 0}, {"f4x1,f1x5@0.5:2", NULL, 0, 0}, {"f,f@0.5:2", NULL, 0, 0},
  {"f0x3,f3", NULL, 0, 0}, {"f7x33,f@0.5:2", NULL, 0, 0}, {"f33,-", &number, 0, 0}, {"-,f33@0.5:2", &number, 0, 0},
  {"i7,i7@1:9", NULL, 0, 1}, {"i7,-", &number, 0, 1}, {0}};
static const rsi_sample pow_samples[] = {
  {"f2x3@0.5:2,f2x3", NULL, 0, 0}, {"f4x1@0.5:2,f1x5", NULL, 0, 0}, {"f@0.5:2,f", NULL, 0, 0}, {"f0x3,f3", NULL, 0, 0},
  {"f33@0.5:2,f", NULL, 0, 0}, {"f7@0.5:2,-", &number, 0, 0}, {"-,f7", &number, 0, 0}, {"f7,-", &two, 0, 0},
  {"f7@0.5:2,-", &three, 0, 0}, {"f7@0.5:2,-", &half, 0, 0}, {"f7@0.5:2,-", &minus_half, 0, 0},
  {"f7@0.5:2,-", &minus_one, 0, 0}, {"i7@0:5,i7@0:5", NULL, 0, 1}, {0}};
/* Apart from ties and far enough from them: first one side is larger, then the other. */
static const rsi_sample extreme_samples[] = {
  {"f2x3@0.6:1,f2x3@0:0.5", NULL, 0, 0}, {"f4x1@-1:0,f1x5@0.1:1", NULL, 0, 0}, {"f,f@1.5:2", NULL, 0, 0}, {"f0x3,f3", NULL, 0, 0},
  {"f7x33,f7x33", NULL, 0, 1}, {"f33@1:2,-", &number, 0, 0}, {"-,f33@-1:0.5", &number, 0, 0}, {"i7,i7", NULL, 0, 1}, {0}};

/* name, struct of attributes, documentation, shape rule, what the gradients of both inputs need */
#define ARITHMETIC(NAME, ATTRS, DOC, INFER, SAVES0, SAVES1, SAMPLES)                                                        \
  static const rsi_kernel NAME##_kernels[] = {{"rows", RSI_PORTABLE, NUMBERS, NULL, NULL, NAME##_run}, {0}};                \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "a?,b?", .nin_min = 0, .nin_max = 2, .nout = 1,                                    \
    .traits = RSI_T_ELEMENTWISE | RSI_T_PROMOTE, .dtypes = NUMBERS, RSI_USES_ATTRS(ATTRS), .infer = INFER,                  \
    .grad = NAME##_grad, .saves = {SAVES0, SAVES1}, .kernels = NAME##_kernels, .samples = SAMPLES,                          \
  }

ARITHMETIC(add, add, "a + alpha b.", add_infer, 0, 0, add_samples);
ARITHMETIC(sub, scalar, "a - b.", infer_arithmetic, 0, 0, sub_samples);
ARITHMETIC(mul, scalar, "a b, element by element.", infer_arithmetic, RSI_KEEP_IN(1), RSI_KEEP_IN(0), mul_samples);
ARITHMETIC(div, scalar, "a / b; of integers too the quotient is a float (f32).", div_infer, RSI_KEEP_IN(1),
           RSI_KEEP_IN(1) | RSI_KEEP_OUT(0), div_samples);
ARITHMETIC(pow, scalar, "a to the power b; an integer to a negative power is cut off to a whole number.", infer_arithmetic,
           RSI_KEEP_IN(0) | RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1) | RSI_KEEP_OUT(0), pow_samples);
ARITHMETIC(maximum, scalar, "The larger of a and b; NaN if either is NaN. At a tie each side gets half of the gradient.",
           infer_arithmetic, RSI_KEEP_IN(0) | RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1), extreme_samples);
ARITHMETIC(minimum, scalar, "The smaller of a and b; NaN if either is NaN. At a tie each side gets half of the gradient.",
           infer_arithmetic, RSI_KEEP_IN(0) | RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1), extreme_samples);
