/*
** Loops of the activations. In a backward loop `x` is the gradient that arrives and `y` the input of the activation.
** mish needs tanh(log(1 + e)) with e = exp(x): that is n / (n + 2) with n = e (e + 2), 1 from x = 20 on in both types.
*/
#include "kernels/activation.h"
#include "kernels/isa.h"
#include "kernels/row.h"
#include "kernels/vmath.h"

extern const rsi_k_activation RSI_ISA(rsi_k_activation);

#define NUMBER(T, name, i) const T name = (T)((const double *)arg)[i]

/* Slopes that take more than an expression. */
#define SLOPES(T, S)                                                                                                        \
  static inline T silu_slope_##S(T x) {                                                                                     \
    const T s = rsi_sigmoid_##S(x);                                                                                         \
    return s * ((T)1 + x * ((T)1 - s));                                                                                     \
  }                                                                                                                         \
  static inline T mish_factor_##S(T x) {                                                                                    \
    const T e = rsi_exp_##S(x < (T)20 ? x : (T)20), n = e * (e + (T)2);                                                     \
    return n / (n + (T)2);                                                                                                  \
  }                                                                                                                         \
  static inline T mish_slope_##S(T x) {                                                                                     \
    const T t = mish_factor_##S(x);                                                                                         \
    return t + x * rsi_sigmoid_##S(x) * ((T)1 - t * t);                                                                     \
  }                                                                                                                         \
  static inline T softplus_##S(T x, T beta, T threshold) {                                                                  \
    const T z = x * beta, a = z < 0 ? z : -z;                                                                               \
    return z > threshold ? x : (rsi_log1p_##S(rsi_exp_##S(a)) + (z < 0 ? (T)0 : z)) / beta;                                 \
  }

#define LOOPS(T, S)                                                                                                         \
  SLOPES(T, S)                                                                                                              \
  RSI_ROW_UNARY(silu_##S, T, T, x * rsi_sigmoid_##S(x))                                                                     \
  RSI_ROW_BINARY(silu_back_##S, T, T, x * silu_slope_##S(y))                                                                \
  RSI_ROW_UNARY_WITH(elu_##S, T, T, NUMBER(T, alpha, 0); NUMBER(T, scale, 1); NUMBER(T, input_scale, 2),                    \
                     scale * (x > 0 ? x : alpha * rsi_expm1_##S(x * input_scale)))                                          \
  RSI_ROW_BINARY_WITH(elu_back_##S, T, T, NUMBER(T, alpha, 0); NUMBER(T, scale, 1); NUMBER(T, input_scale, 2),              \
                      x * (scale * (y > 0 ? (T)1 : alpha * input_scale * rsi_exp_##S(y * input_scale))))                    \
  RSI_ROW_UNARY_WITH(leaky_##S, T, T, NUMBER(T, slope, 0), x > 0 ? x : x * slope)                                           \
  RSI_ROW_BINARY_WITH(leaky_back_##S, T, T, NUMBER(T, slope, 0), y > 0 ? x : x * slope)                                     \
  RSI_ROW_UNARY_WITH(hardtanh_##S, T, T, NUMBER(T, low, 0); NUMBER(T, high, 1),                                             \
                     (x < low ? low : x) > high ? high : (x < low ? low : x))                                               \
  RSI_ROW_BINARY_WITH(hardtanh_back_##S, T, T, NUMBER(T, low, 0); NUMBER(T, high, 1), ((y > low) & (y < high)) != 0 ? x : (T)0) \
  RSI_ROW_UNARY_WITH(softplus_row_##S, T, T, NUMBER(T, beta, 0); NUMBER(T, threshold, 1), softplus_##S(x, beta, threshold)) \
  RSI_ROW_BINARY_WITH(softplus_back_##S, T, T, NUMBER(T, beta, 0); NUMBER(T, threshold, 1),                                 \
                      y * beta > threshold ? x : x * rsi_sigmoid_##S(y * beta))                                             \
  RSI_ROW_UNARY(hardsigmoid_##S, T, T, x <= (T)-3 ? (T)0 : x >= (T)3 ? (T)1 : x / (T)6 + (T)0.5)                            \
  RSI_ROW_BINARY(hardsigmoid_back_##S, T, T, ((y > (T)-3) & (y < (T)3)) != 0 ? x / (T)6 : (T)0)                             \
  RSI_ROW_UNARY(hardswish_##S, T, T, x <= (T)-3 ? (T)0 : x >= (T)3 ? x : x * (x + (T)3) / (T)6)                             \
  RSI_ROW_BINARY(hardswish_back_##S, T, T, y <= (T)-3 ? (T)0 : y >= (T)3 ? x : x * (y / (T)3 + (T)0.5))                     \
  RSI_ROW_UNARY(mish_##S, T, T, x * mish_factor_##S(x))                                                                     \
  RSI_ROW_BINARY(mish_back_##S, T, T, x * mish_slope_##S(y))
LOOPS(float, f32)
LOOPS(double, f64)

#define BOTH(NAME) {[RS_F32] = NAME##_f32, [RS_F64] = NAME##_f64}
const rsi_k_activation RSI_ISA(rsi_k_activation) = {
  .forward = {
    [RSI_A_SILU] = BOTH(silu), [RSI_A_ELU] = BOTH(elu), [RSI_A_LEAKY_RELU] = BOTH(leaky), [RSI_A_HARDTANH] = BOTH(hardtanh),
    [RSI_A_SOFTPLUS] = BOTH(softplus_row), [RSI_A_HARDSIGMOID] = BOTH(hardsigmoid), [RSI_A_HARDSWISH] = BOTH(hardswish),
    [RSI_A_MISH] = BOTH(mish),
  },
  .backward = {
    [RSI_A_SILU] = BOTH(silu_back), [RSI_A_ELU] = BOTH(elu_back), [RSI_A_LEAKY_RELU] = BOTH(leaky_back),
    [RSI_A_HARDTANH] = BOTH(hardtanh_back), [RSI_A_SOFTPLUS] = BOTH(softplus_back), [RSI_A_HARDSIGMOID] = BOTH(hardsigmoid_back),
    [RSI_A_HARDSWISH] = BOTH(hardswish_back), [RSI_A_MISH] = BOTH(mish_back),
  },
};
