/*
** Functions of one input and their backward ops. Where a derivative jumps the choice is PyTorch's: 0 for abs and relu at 0,
** the inside value at the bounds of clamp. Backward ops of tanh, sigmoid, relu and clamp use the result or the input, and have
** rules of their own, so second derivatives exist.
*/
#include "ops/pointwise.h"
#include <math.h>

#define SIGNED (RSI_FLOATS | RSI_I64 | RSI_I32)
#define ALL    (RSI_FLOATS | RSI_INTS)

static rs_status run_unary(const rsi_call *c, rsi_unary which, const void *arg, double work) {
  const int dtype = c->in[0]->dtype;
  return rsi_run_rows(c, c->x->k->elementwise->unary[which][dtype], arg, dtype == RS_F64 ? 4.0 * work : work);
}

/* Short names for rules: x the input, y the result, go the gradient that arrives. */
static rs_tensor *mul(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_mul, NULL, a, b); }
static rs_tensor *div_by(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_div, NULL, a, b); }
static rs_tensor *add(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_add, NULL, a, b); }
static rs_tensor *call(rsi_grad *g, int op, rs_tensor *a) { return rsi_emit1(g, op, NULL, a); }

#define RULE(NAME, gradient)                                                                                                \
  static void NAME##_grad(rsi_grad *g) {                                                                                    \
    rs_tensor *const x = rsi_in(g, 0), *const y = rsi_out(g, 0), *const go = rsi_gout(g, 0);                                \
    (void)x;                                                                                                                \
    (void)y;                                                                                                                \
    rsi_give(g, 0, gradient);                                                                                               \
  }

#define SAMPLES(RANGE)                                                                                                      \
  {{"f2x3" RANGE, NULL, 0, 0}, {"f" RANGE, NULL, 0, 0}, {"f0x3", NULL, 0, 0}, {"f7x33" RANGE, NULL, 0, 0},                  \
   {"f33" RANGE, NULL, 0, 0}, {0}}
#define SIDES                                                                                                               \
  {{"f2x3@0.2:1", NULL, 0, 0}, {"f33@-1:-0.2", NULL, 0, 0}, {"f@0.2:1", NULL, 0, 0}, {"f0x3", NULL, 0, 0},                  \
   {"f7x33", NULL, 0, 1}, {0}}

#define UNARY(NAME, WHICH, DTYPES, WORK, SAVES, DOC, ...)                                                                   \
  static rs_status NAME##_run(const rsi_call *c) { return run_unary(c, WHICH, NULL, WORK); }                                \
  static const rsi_kernel NAME##_kernels[] = {{"rows", RSI_PORTABLE, DTYPES, NULL, NULL, NAME##_run}, {0}};                 \
  static const rsi_sample NAME##_samples[] = __VA_ARGS__;                                                                   \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_ELEMENTWISE,           \
    .dtypes = DTYPES, .infer = rsi_infer_same, .grad = NAME##_grad, .saves = {SAVES}, .kernels = NAME##_kernels,            \
    .samples = NAME##_samples,                                                                                              \
  };

/* ---- arithmetic ------------------------------------------------------------------------------------------------------ */

RULE(neg, call(g, RS_OP_neg, go))
RULE(abs, mul(g, go, call(g, RS_OP_sign, x)))
RULE(sqrt, div_by(g, rsi_b_scale(g, go, 0.5), y))
RULE(rsqrt, rsi_b_scale(g, mul(g, go, rsi_b_pow(g, y, 3.0)), -0.5))
RULE(reciprocal, call(g, RS_OP_neg, mul(g, go, call(g, RS_OP_square, y))))
RULE(square, rsi_b_scale(g, mul(g, go, x), 2.0))

/* Steps: the derivative is 0 wherever there is one. */
static void flat_grad(rsi_grad *g) { rsi_give(g, 0, rsi_b_full(g, rsi_in_desc(g, 0), 0.0)); }
#define sign_grad  flat_grad
#define floor_grad flat_grad
#define ceil_grad  flat_grad
#define round_grad flat_grad

UNARY(neg, RSI_U_NEG, SIGNED, 0.08, 0, "-x.", SAMPLES(""))
UNARY(abs, RSI_U_ABS, SIGNED, 0.08, RSI_KEEP_IN(0), "|x|; its derivative at 0 is 0.", SIDES)
UNARY(sqrt, RSI_U_SQRT, RSI_FLOATS, 0.15, RSI_KEEP_OUT(0), "The square root.", SAMPLES("@0.1:2"))
UNARY(rsqrt, RSI_U_RSQRT, RSI_FLOATS, 0.2, RSI_KEEP_OUT(0), "1 / sqrt(x).", SAMPLES("@0.3:2"))
UNARY(reciprocal, RSI_U_RECIPROCAL, RSI_FLOATS, 0.1, RSI_KEEP_OUT(0), "1 / x.", SAMPLES("@0.3:2"))
UNARY(square, RSI_U_SQUARE, ALL, 0.08, RSI_KEEP_IN(0), "x x.", SAMPLES(""))
UNARY(sign, RSI_U_SIGN, ALL, 0.08, 0, "1, -1 or 0, as x is positive, negative or 0.", SIDES)
UNARY(floor, RSI_U_FLOOR, RSI_FLOATS, 0.08, 0, "The largest whole number not above x.", SAMPLES("@0.1:0.9"))
UNARY(ceil, RSI_U_CEIL, RSI_FLOATS, 0.08, 0, "The smallest whole number not below x.", SAMPLES("@0.1:0.9"))
UNARY(round, RSI_U_ROUND, RSI_FLOATS, 0.08, 0, "The nearest whole number, the even one at a tie.", SAMPLES("@0.6:1.4"))

/* ---- elementary functions -------------------------------------------------------------------------------------------- */

RULE(exp, mul(g, go, y))
RULE(expm1, add(g, mul(g, go, y), go))
RULE(log, div_by(g, go, x))
RULE(log1p, div_by(g, go, rsi_b_add_scalar(g, x, 1.0)))
RULE(sin, mul(g, go, call(g, RS_OP_cos, x)))
RULE(cos, call(g, RS_OP_neg, mul(g, go, call(g, RS_OP_sin, x))))
RULE(erf, rsi_b_scale(g, mul(g, go, call(g, RS_OP_exp, call(g, RS_OP_neg, call(g, RS_OP_square, x)))), 1.12837916709551257390))
RULE(tanh, rsi_emit2(g, RS_OP_tanh_backward, NULL, go, y))
RULE(sigmoid, rsi_emit2(g, RS_OP_sigmoid_backward, NULL, go, y))
RULE(relu, rsi_emit2(g, RS_OP_relu_backward, NULL, go, y))

UNARY(exp, RSI_U_EXP, RSI_FLOATS, 0.3, RSI_KEEP_OUT(0), "e to the power x.", SAMPLES(""))
UNARY(expm1, RSI_U_EXPM1, RSI_FLOATS, 0.3, RSI_KEEP_OUT(0), "exp(x) - 1, accurate near 0.", SAMPLES(""))
UNARY(log, RSI_U_LOG, RSI_FLOATS, 0.4, RSI_KEEP_IN(0), "The natural logarithm.", SAMPLES("@0.2:3"))
UNARY(log1p, RSI_U_LOG1P, RSI_FLOATS, 0.4, RSI_KEEP_IN(0), "log(1 + x), accurate near 0.", SAMPLES("@-0.7:2"))
UNARY(sin, RSI_U_SIN, RSI_FLOATS, 0.5, RSI_KEEP_IN(0), "The sine of x in radians.", SAMPLES("@-4:4"))
UNARY(cos, RSI_U_COS, RSI_FLOATS, 0.5, RSI_KEEP_IN(0), "The cosine of x in radians.", SAMPLES("@-4:4"))
UNARY(erf, RSI_U_ERF, RSI_FLOATS, 0.7, RSI_KEEP_IN(0),
      "The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.", SAMPLES("@-2:2"))
UNARY(tanh, RSI_U_TANH, RSI_FLOATS, 0.5, RSI_KEEP_OUT(0), "The hyperbolic tangent.", SAMPLES("@-2:2"))
UNARY(sigmoid, RSI_U_SIGMOID, RSI_FLOATS, 0.4, RSI_KEEP_OUT(0), "1 / (1 + exp(-x)).", SAMPLES("@-3:3"))
UNARY(relu, RSI_U_RELU, SIGNED, 0.08, RSI_KEEP_OUT(0), "max(x, 0); its derivative at 0 is 0.", SIDES)

/* ---- gelu ------------------------------------------------------------------------------------------------------------ */

#define GELU_ATTRS(F, T) \
  F(T, ENUM, approximate, 0, 0, 1, "none,tanh", "none: the normal distribution itself; tanh: the usual approximation of it")
RSI_ATTRS(gelu, GELU_ATTRS)

static rs_status gelu_run(const rsi_call *c) {
  return run_unary(c, RSI_ATTR(c, gelu)->approximate ? RSI_U_GELU_TANH : RSI_U_GELU, NULL, 0.7);
}

static void gelu_grad(rsi_grad *g) {
  rsi_give(g, 0, rsi_emit2(g, RS_OP_gelu_backward, rsi_attrs(g), rsi_gout(g, 0), rsi_in(g, 0)));
}

static const gelu_attrs by_tanh = {1};
static const rsi_kernel gelu_kernels[] = {{"rows", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, gelu_run}, {0}};
static const rsi_sample gelu_samples[] = {
  {"f2x3", NULL, 0, 0}, {"f", NULL, 0, 0}, {"f0x3", NULL, 0, 0}, {"f7x33@-4:4", NULL, 0, 0}, {"f33@-4:4", &by_tanh, 0, 0}, {0}};

const rs_op rsi_op_gelu = {
  .name = "gelu", .doc = "x P(X <= x) for a standard normal X (Hendrycks and Gimpel 2016).", .inputs = "x", .nin_min = 1,
  .nin_max = 1, .nout = 1, .traits = RSI_T_ELEMENTWISE, .dtypes = RSI_FLOATS, RSI_USES_ATTRS(gelu), .infer = rsi_infer_same,
  .grad = gelu_grad, .saves = {RSI_KEEP_IN(0)}, .kernels = gelu_kernels, .samples = gelu_samples,
};

/* ---- clamp ----------------------------------------------------------------------------------------------------------- */

#define CLAMP_ATTRS(F, T)                                                        \
  F(T, FLOAT, min, -INFINITY, -INFINITY, INFINITY, NULL, "the lowest result")     \
  F(T, FLOAT, max, INFINITY, -INFINITY, INFINITY, NULL, "the highest result")
RSI_ATTRS(clamp, CLAMP_ATTRS)

/* A bound as an integer inside the dtype's range: the lower one rounded up, the upper one down. */
static int64_t int_bound(double bound, int dtype) {
  const double low = dtype == RS_I64 ? -9223372036854775808.0 : dtype == RS_I32 ? INT32_MIN : 0.0;
  const double high = dtype == RS_I64 ? 9223372036854774784.0 : dtype == RS_I32 ? INT32_MAX : 255.0;
  if (dtype == RS_I64 && bound > high) return INT64_MAX;
  return bound <= low ? (int64_t)low : bound >= high ? (int64_t)high : bound == bound ? (int64_t)bound : 0;
}

static rs_status clamp_run(const rsi_call *c) {
  const clamp_attrs *const a = RSI_ATTR(c, clamp);
  const int dtype = c->in[0]->dtype;
  if (rsi_is_float(dtype)) return run_unary(c, RSI_U_CLAMP, &a->min, 0.08);   /* min and max lie side by side */
  const int64_t low = int_bound(ceil(a->min), dtype), high = int_bound(floor(a->max), dtype);
  const int64_t wide[2] = {low, high};
  const int32_t word[2] = {(int32_t)low, (int32_t)high};
  const uint8_t byte[2] = {(uint8_t)low, (uint8_t)high};
  return run_unary(c, RSI_U_CLAMP, dtype == RS_I64 ? (const void *)wide : dtype == RS_I32 ? (const void *)word : byte, 0.08);
}

static void clamp_grad(rsi_grad *g) {
  rsi_give(g, 0, rsi_emit2(g, RS_OP_clamp_backward, rsi_attrs(g), rsi_gout(g, 0), rsi_in(g, 0)));
}

static const clamp_attrs wide_range = {-0.5, 0.5}, above = {-0.25, (double)INFINITY}, outer = {-1.5, 1.5};
static const rsi_kernel clamp_kernels[] = {{"rows", RSI_PORTABLE, ALL, NULL, NULL, clamp_run}, {0}};
static const rsi_sample clamp_samples[] = {
  {"f2x3", NULL, 0, 0}, {"f33", &outer, 0, 0}, {"f7@-1:-0.6", &wide_range, 0, 0}, {"f7@0.6:1", &wide_range, 0, 0},
  {"f7@-0.2:1", &above, 0, 0}, {"f", &outer, 0, 0}, {"f0x3", &wide_range, 0, 0}, {"f7x33", &wide_range, 0, 1},
  {"i33@-3:3", &outer, 0, 1}, {0}};

const rs_op rsi_op_clamp = {
  .name = "clamp", .doc = "x held between min and max.", .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1,
  .traits = RSI_T_ELEMENTWISE, .dtypes = ALL, RSI_USES_ATTRS(clamp), .infer = rsi_infer_same, .grad = clamp_grad,
  .saves = {RSI_KEEP_IN(0)}, .kernels = clamp_kernels, .samples = clamp_samples,
};

/* ---- backward ops ---------------------------------------------------------------------------------------------------- */

static rs_status run_backward(const rsi_call *c, rsi_binary which, const void *arg, double work) {
  const int dtype = c->in[0]->dtype;
  return rsi_run_rows(c, c->x->k->elementwise->binary[which][dtype], arg, dtype == RS_F64 ? 4.0 * work : work);
}

/* The derivative with respect to g is the same op again, since it is linear in g. */
static void again(rsi_grad *g, int op) {
  if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_emit2(g, op, rsi_attrs(g), rsi_gout(g, 0), rsi_in(g, 1)));
}

/* g (1 - y^2): its slope along y is -2 g y */
static void tanh_backward_grad(rsi_grad *g) {
  again(g, RS_OP_tanh_backward);
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_scale(g, mul(g, rsi_gout(g, 0), mul(g, rsi_in(g, 0), rsi_in(g, 1))), -2.0));
}

/* g y (1 - y): g (1 - 2 y) */
static void sigmoid_backward_grad(rsi_grad *g) {
  again(g, RS_OP_sigmoid_backward);
  if (!rsi_needs(g, 1)) return;
  rs_tensor *const slope = rsi_b_add_scalar(g, rsi_b_scale(g, rsi_in(g, 1), -2.0), 1.0);
  rsi_give(g, 1, mul(g, rsi_gout(g, 0), mul(g, rsi_in(g, 0), slope)));
}

/* Steps in the second input. */
static void relu_backward_grad(rsi_grad *g) {
  again(g, RS_OP_relu_backward);
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_full(g, rsi_in_desc(g, 1), 0.0));
}

static void clamp_backward_grad(rsi_grad *g) {
  again(g, RS_OP_clamp_backward);
  if (rsi_needs(g, 1)) rsi_give(g, 1, rsi_b_full(g, rsi_in_desc(g, 1), 0.0));
}

/* gelu'' = exp(-x^2 / 2) (2 - x^2) / sqrt(2 pi) */
static rs_tensor *gelu_curvature(rsi_grad *g, rs_tensor *x) {
  rs_tensor *const square = call(g, RS_OP_square, x);
  rs_tensor *const density = rsi_b_scale(g, call(g, RS_OP_exp, rsi_b_scale(g, square, -0.5)), 0.39894228040143267794);
  return mul(g, density, rsi_b_add_scalar(g, call(g, RS_OP_neg, square), 2.0));
}

/*
** The tanh form is x (1 + t) / 2 with t = tanh(u), u = k (x + c x^3). Its second derivative is
** (1 - t^2) (u' + x (u'' / 2 - t u'^2)), u' = k (1 + 3 c x^2), u'' = 6 k c x.
*/
static rs_tensor *gelu_tanh_curvature(rsi_grad *g, rs_tensor *x) {
  const double k = 0.79788456080286535588, c = 0.044715;
  rs_tensor *const square = call(g, RS_OP_square, x);
  rs_tensor *const t = call(g, RS_OP_tanh, mul(g, x, rsi_b_add_scalar(g, rsi_b_scale(g, square, k * c), k)));
  rs_tensor *const slope = rsi_b_add_scalar(g, rsi_b_scale(g, square, 3.0 * k * c), k);
  rs_tensor *const bend = rsi_emit2(g, RS_OP_sub, NULL, rsi_b_scale(g, x, 3.0 * k * c), mul(g, t, call(g, RS_OP_square, slope)));
  rs_tensor *const rest = rsi_b_add_scalar(g, call(g, RS_OP_neg, call(g, RS_OP_square, t)), 1.0);
  return mul(g, rest, add(g, slope, mul(g, x, bend)));
}

static void gelu_backward_grad(rsi_grad *g) {
  again(g, RS_OP_gelu_backward);
  if (!rsi_needs(g, 1)) return;
  const bool tanh_form = ((const gelu_attrs *)rsi_attrs(g))->approximate != 0;
  rs_tensor *const x = rsi_in(g, 1), *const bend = tanh_form ? gelu_tanh_curvature(g, x) : gelu_curvature(g, x);
  rsi_give(g, 1, mul(g, rsi_gout(g, 0), mul(g, rsi_in(g, 0), bend)));
}

static rs_status tanh_backward_run(const rsi_call *c) { return run_backward(c, RSI_B_TANH_BACKWARD, NULL, 0.12); }
static rs_status sigmoid_backward_run(const rsi_call *c) { return run_backward(c, RSI_B_SIGMOID_BACKWARD, NULL, 0.12); }
static rs_status relu_backward_run(const rsi_call *c) { return run_backward(c, RSI_B_RELU_BACKWARD, NULL, 0.12); }
static rs_status clamp_backward_run(const rsi_call *c) {
  return run_backward(c, RSI_B_CLAMP_BACKWARD, &RSI_ATTR(c, clamp)->min, 0.12);
}
static rs_status gelu_backward_run(const rsi_call *c) {
  return run_backward(c, RSI_ATTR(c, gelu)->approximate ? RSI_B_GELU_TANH_BACKWARD : RSI_B_GELU_BACKWARD, NULL, 0.8);
}

static const rsi_sample smooth_samples[] = {{"f2x3,f2x3", NULL, 0, 0}, {"f,f", NULL, 0, 0}, {"f0x3,f0x3", NULL, 0, 0},
                                            {"f7x33,f7x33", NULL, 0, 0}, {0}};
static const rsi_sample relu_backward_samples[] = {
  {"f2x3,f2x3@0.2:1", NULL, 0, 0}, {"f33,f33@-1:-0.2", NULL, 0, 0}, {"f,f@0.2:1", NULL, 0, 0}, {"f0x3,f0x3", NULL, 0, 0}, {0}};
static const rsi_sample gelu_backward_samples[] = {{"f2x3,f2x3", NULL, 0, 0}, {"f,f", NULL, 0, 0}, {"f0x3,f0x3", NULL, 0, 0},
                                                   {"f7x33,f7x33@-4:4", NULL, 0, 0}, {"f33,f33@-4:4", &by_tanh, 0, 0}, {0}};
static const rsi_sample clamp_backward_samples[] = {
  {"f2x3,f2x3", NULL, 0, 0}, {"f33,f33", &outer, 0, 0}, {"f7,f7@0.6:1", &wide_range, 0, 0}, {"f7,f7@-0.2:1", &above, 0, 0},
  {"f,f", &outer, 0, 0}, {"f0x3,f0x3", &wide_range, 0, 0}, {0}};

#define BACKWARD(NAME, SECOND, SAMPLE_LIST, DOC, ...)                                                                       \
  static const rsi_kernel NAME##_kernels[] = {{"rows", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, NAME##_run}, {0}};             \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "g," SECOND, .nin_min = 2, .nin_max = 2, .nout = 1,                                \
    .traits = RSI_T_ELEMENTWISE | RSI_T_INTERNAL, .dtypes = RSI_FLOATS, .infer = rsi_infer_broadcast,                       \
    .grad = NAME##_grad, .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1)}, .kernels = NAME##_kernels,             \
    .samples = SAMPLE_LIST, __VA_ARGS__                                                                                     \
  }
BACKWARD(tanh_backward, "y", smooth_samples, "g (1 - y^2).", .attrs = NULL);
BACKWARD(sigmoid_backward, "y", smooth_samples, "g y (1 - y).", .attrs = NULL);
BACKWARD(relu_backward, "y", relu_backward_samples, "g where y > 0, else 0.", .attrs = NULL);
BACKWARD(gelu_backward, "x", gelu_backward_samples, "g times the derivative of gelu at x.", RSI_USES_ATTRS(gelu));
BACKWARD(clamp_backward, "x", clamp_backward_samples, "g where min <= x <= max, else 0.", RSI_USES_ATTRS(clamp));
