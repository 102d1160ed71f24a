/*
** Activations with a backward op each: NAME(x) and NAME_backward(g, x) = g NAME'(x). Constants, and the side taken where a
** derivative jumps, are PyTorch's: elu and leaky_relu have the left slope at 0, hardtanh has slope 0 at its bounds. A backward op
** is linear in g; along x its rule multiplies by the second derivative, which is made of other ops, so that all orders exist.
*/
#include "ops/pointwise.h"
#include <math.h>

#define ELU_ATTRS(F, T)                                                                                        \
  F(T, FLOAT, alpha, 1, -RSI_BIG, RSI_BIG, NULL, "minus the limit on the left")                                 \
  F(T, FLOAT, scale, 1, -RSI_BIG, RSI_BIG, NULL, "factor of the result")                                        \
  F(T, FLOAT, input_scale, 1, -RSI_BIG, RSI_BIG, NULL, "factor of x on the left")
#define LEAKY_RELU_ATTRS(F, T) F(T, FLOAT, negative_slope, 0.01, -RSI_BIG, RSI_BIG, NULL, "the slope on the left")
#define HARDTANH_ATTRS(F, T)                                                                                   \
  F(T, FLOAT, min_val, -1, -INFINITY, INFINITY, NULL, "the lowest result")                                      \
  F(T, FLOAT, max_val, 1, -INFINITY, INFINITY, NULL, "the highest result")
#define SOFTPLUS_ATTRS(F, T)                                                                                   \
  F(T, FLOAT, beta, 1, -RSI_BIG, RSI_BIG, NULL, "sharpness of the bend")                                        \
  F(T, FLOAT, threshold, 20, -RSI_BIG, RSI_BIG, NULL, "the result is x where beta x is above this")
RSI_ATTRS(elu, ELU_ATTRS)
RSI_ATTRS(leaky_relu, LEAKY_RELU_ATTRS)
RSI_ATTRS(hardtanh, HARDTANH_ATTRS)
RSI_ATTRS(softplus, SOFTPLUS_ATTRS)

static rs_status run(const rsi_call *c, rsi_activation which, bool back, double work) {
  const rsi_k_activation *const k = c->x->k->activation;
  const int dtype = c->in[0]->dtype;
  return rsi_run_rows(c, (back ? k->backward : k->forward)[which][dtype], c->attrs, dtype == RS_F64 ? 4.0 * work : work);
}

/* ---- second derivatives ---------------------------------------------------------------------------------------------- */

static rs_tensor *mul(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_mul, NULL, a, b); }
static rs_tensor *sub(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_sub, NULL, a, b); }
static rs_tensor *add(rsi_grad *g, rs_tensor *a, rs_tensor *b) { return rsi_emit2(g, RS_OP_add, NULL, a, b); }
static rs_tensor *call(rsi_grad *g, int op, rs_tensor *a) { return rsi_emit1(g, op, NULL, a); }
static rs_tensor *rest(rsi_grad *g, rs_tensor *a) { return rsi_b_add_scalar(g, call(g, RS_OP_neg, a), 1.0); }   /* 1 - a */

/* In each, `both` is the product of the two gradients that arrive: the result is both NAME''(x). */

/* s (1 - s) (2 + x (1 - 2 s)), s = sigmoid(x) */
static rs_tensor *silu_bend(rsi_grad *g, rs_tensor *both, rs_tensor *x) {
  rs_tensor *const s = call(g, RS_OP_sigmoid, x);
  rs_tensor *const inner = rsi_b_add_scalar(g, mul(g, x, rsi_b_add_scalar(g, rsi_b_scale(g, s, -2.0), 1.0)), 2.0);
  return rsi_emit2(g, RS_OP_sigmoid_backward, NULL, mul(g, both, inner), s);
}

/* input_scale times the first derivative on the left, 0 on the right */
static rs_tensor *elu_bend(rsi_grad *g, rs_tensor *both, rs_tensor *x) {
  const elu_attrs *const a = rsi_attrs(g);
  rs_tensor *const left = rsi_b_where(g, rsi_b_compare(g, RS_OP_le, x, NULL, 0.0), both, NULL);
  return rsi_emit2(g, RS_OP_elu_backward, a, rsi_b_scale(g, left, a->input_scale), x);
}

static rs_tensor *flat(rsi_grad *g, rs_tensor *both, rs_tensor *x) {
  (void)both, (void)x;
  return rsi_b_full(g, rsi_in_desc(g, 1), 0.0);
}
#define leaky_relu_bend  flat
#define hardtanh_bend    flat
#define hardsigmoid_bend flat

/* beta s (1 - s), s = sigmoid(beta x); 0 above the threshold */
static rs_tensor *softplus_bend(rsi_grad *g, rs_tensor *both, rs_tensor *x) {
  const softplus_attrs *const a = rsi_attrs(g);
  rs_tensor *const z = rsi_b_scale(g, x, a->beta);
  rs_tensor *const below = rsi_b_where(g, rsi_b_compare(g, RS_OP_le, z, NULL, a->threshold), both, NULL);
  return rsi_emit2(g, RS_OP_sigmoid_backward, NULL, rsi_b_scale(g, below, a->beta), call(g, RS_OP_sigmoid, z));
}

/* 1 / 3 between -3 and 3, where hardsigmoid has the slope 1 / 6 */
static rs_tensor *hardswish_bend(rsi_grad *g, rs_tensor *both, rs_tensor *x) {
  return rsi_emit2(g, RS_OP_hardsigmoid_backward, NULL, rsi_b_scale(g, both, 2.0), x);
}

/* (1 - t^2) (2 s + x (s (1 - s) - 2 t s^2)), s = sigmoid(x), t = tanh(softplus(x)) */
static rs_tensor *mish_bend(rsi_grad *g, rs_tensor *both, rs_tensor *x) {
  rs_tensor *const s = call(g, RS_OP_sigmoid, x), *const t = call(g, RS_OP_tanh, call(g, RS_OP_softplus, x));
  rs_tensor *const curve = sub(g, mul(g, s, rest(g, s)), rsi_b_scale(g, mul(g, t, call(g, RS_OP_square, s)), 2.0));
  rs_tensor *const sum = add(g, rsi_b_scale(g, s, 2.0), mul(g, x, curve));
  return mul(g, both, mul(g, rest(g, call(g, RS_OP_square, t)), sum));
}

/* ---- the ops --------------------------------------------------------------------------------------------------------- */

/* Gradients have the shape of x in both ops, so the samples of one make those of the other. */
#define SAMPLES(RANGE, ATTRS, EDGE)                                                                                         \
  {{"f2x3" RANGE, ATTRS, 0, 0}, {"f" RANGE, NULL, 0, 0}, {"f0x3", ATTRS, 0, 0}, {"f7x33" RANGE, NULL, 0, 0},                \
   {"f33@-5:5", ATTRS, 0, EDGE}, {"f9@-2.5:-0.2", ATTRS, 0, 0}, {0}}
#define SAMPLES_BACK(RANGE, ATTRS, EDGE)                                                                                    \
  {{"f2x3,f2x3" RANGE, ATTRS, 0, 0}, {"f,f" RANGE, NULL, 0, 0}, {"f0x3,f0x3", ATTRS, 0, 0}, {"f7x33,f7x33" RANGE, NULL, 0, 0}, \
   {"f33,f33@-5:5", ATTRS, 0, EDGE}, {"f9,f9@-2.5:-0.2", ATTRS, 0, 0}, {0}}

#define ACTIVATION(NAME, WHICH, WORK, RANGE, ATTRS, EDGE, DOC, ...)                                                         \
  static rs_status NAME##_run(const rsi_call *c) { return run(c, WHICH, false, WORK); }                                     \
  static rs_status NAME##_backward_run(const rsi_call *c) { return run(c, WHICH, true, WORK); }                             \
  static void NAME##_grad(rsi_grad *g) {                                                                                    \
    rsi_give(g, 0, rsi_emit2(g, RS_OP_##NAME##_backward, rsi_attrs(g), rsi_gout(g, 0), rsi_in(g, 0)));                      \
  }                                                                                                                         \
  static void NAME##_backward_grad(rsi_grad *g) {                                                                           \
    rs_tensor *const go = rsi_gout(g, 0), *const x = rsi_in(g, 1);                                                          \
    if (rsi_needs(g, 0)) rsi_give(g, 0, rsi_emit2(g, RS_OP_##NAME##_backward, rsi_attrs(g), go, x));                        \
    if (rsi_needs(g, 1)) rsi_give(g, 1, NAME##_bend(g, mul(g, go, rsi_in(g, 0)), x));                                       \
  }                                                                                                                         \
  static const rsi_kernel NAME##_kernels[] = {{"rows", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, NAME##_run}, {0}};             \
  static const rsi_kernel NAME##_backward_kernels[] = {{"rows", RSI_PORTABLE, RSI_FLOATS, NULL, NULL, NAME##_backward_run}, {0}}; \
  static const rsi_sample NAME##_samples[] = SAMPLES(RANGE, ATTRS, EDGE);                                                   \
  static const rsi_sample NAME##_backward_samples[] = SAMPLES_BACK(RANGE, ATTRS, EDGE);                                     \
  const rs_op rsi_op_##NAME = {                                                                                             \
    .name = #NAME, .doc = DOC, .inputs = "x", .nin_min = 1, .nin_max = 1, .nout = 1, .traits = RSI_T_ELEMENTWISE,           \
    .dtypes = RSI_FLOATS, .infer = rsi_infer_same, .grad = NAME##_grad, .saves = {RSI_KEEP_IN(0)},                          \
    .kernels = NAME##_kernels, .samples = NAME##_samples, __VA_ARGS__                                                       \
  };                                                                                                                        \
  const rs_op rsi_op_##NAME##_backward = {                                                                                  \
    .name = #NAME "_backward", .doc = "g times the derivative of " #NAME " at x.", .inputs = "g,x", .nin_min = 2,           \
    .nin_max = 2, .nout = 1, .traits = RSI_T_ELEMENTWISE | RSI_T_INTERNAL, .dtypes = RSI_FLOATS,                            \
    .infer = rsi_infer_broadcast, .grad = NAME##_backward_grad, .saves = {RSI_KEEP_IN(1), RSI_KEEP_IN(0) | RSI_KEEP_IN(1)}, \
    .kernels = NAME##_backward_kernels, .samples = NAME##_backward_samples, __VA_ARGS__                                     \
  };

static const elu_attrs elu_other = {1.5, 1.2, 0.7};
static const leaky_relu_attrs leaky_other = {0.3};
static const hardtanh_attrs hardtanh_other = {-4.0, 3.0};
static const softplus_attrs softplus_other = {2.0, 7.0};

ACTIVATION(silu, RSI_A_SILU, 0.4, "@-4:4", NULL, 0, "x / (1 + exp(-x)) (Elfwing, Uchibe, Doya 2017).", .attrs = NULL)
ACTIVATION(elu, RSI_A_ELU, 0.4, "@0.2:2", &elu_other, 1,
           "scale x where x > 0, else scale alpha (exp(input_scale x) - 1) (Clevert, Unterthiner, Hochreiter 2015).",
           RSI_USES_ATTRS(elu))
ACTIVATION(leaky_relu, RSI_A_LEAKY_RELU, 0.08, "@-2:-0.2", &leaky_other, 1, "x where x > 0, else negative_slope x.",
           RSI_USES_ATTRS(leaky_relu))
ACTIVATION(hardtanh, RSI_A_HARDTANH, 0.08, "@-0.9:0.9", &hardtanh_other, 1,
           "x held between min_val and max_val; the derivative at these bounds is 0.", RSI_USES_ATTRS(hardtanh))
ACTIVATION(softplus, RSI_A_SOFTPLUS, 0.8, "@-4:4", &softplus_other, 1,
           "log(1 + exp(beta x)) / beta, and x where beta x is above threshold.", RSI_USES_ATTRS(softplus))
ACTIVATION(hardsigmoid, RSI_A_HARDSIGMOID, 0.1, "@-2.8:2.8", NULL, 1, "x / 6 + 1 / 2 held between 0 and 1.", .attrs = NULL)
ACTIVATION(hardswish, RSI_A_HARDSWISH, 0.1, "@-2.8:2.8", NULL, 1, "x hardsigmoid(x) (Howard and others 2019).", .attrs = NULL)
ACTIVATION(mish, RSI_A_MISH, 0.5, "@-4:4", NULL, 0, "x tanh(log(1 + exp(x))) (Misra 2019).", .attrs = NULL)
