/* The end of a matrix product, one loop for each activation, with and without a bias. */
#include "kernels/gemm_end.h"
#include "kernels/row.h"
#include "kernels/vmath.h"

/* Row by row: x is the element with its bias. */
#define ROWS(T, expression)                                                                                                 \
  for (int64_t i = 0; i < m; i++) {                                                                                         \
    T *const y = c + i * ldc;                                                                                               \
    if (bias != NULL) {                                                                                                     \
      RSI_LOOP for (int64_t j = 0; j < n; j++) {                                                                            \
        const T x = y[j] + bias[j];                                                                                         \
        y[j] = expression;                                                                                                  \
      }                                                                                                                     \
    } else {                                                                                                                \
      RSI_LOOP for (int64_t j = 0; j < n; j++) {                                                                            \
        const T x = y[j];                                                                                                   \
        y[j] = expression;                                                                                                  \
      }                                                                                                                     \
    }                                                                                                                       \
  }

#define END(T, S)                                                                                                           \
  void RSI_ISA(rsi_gemm_end_##S)(const rsi_gemm_end *end, int64_t row, int64_t column, int64_t m, int64_t n, T *c, int64_t ldc) { \
    const T *const bias = end->bias ? (const T *)end->bias + column : NULL;                                                 \
    switch (end->act) {                                                                                                     \
      case RSI_ACT_NONE: if (bias != NULL) ROWS(T, x) break;                                                                \
      case RSI_ACT_RELU: ROWS(T, x < 0 ? (T)0 : x) break;                                                      \
      case RSI_ACT_GELU: ROWS(T, rsi_gelu_##S(x)) break;                                                                    \
      case RSI_ACT_GELU_TANH: ROWS(T, rsi_gelu_tanh_##S(x)) break;                                                          \
      case RSI_ACT_TANH: ROWS(T, rsi_tanh_##S(x)) break;                                                                    \
      case RSI_ACT_SIGMOID: ROWS(T, rsi_sigmoid_##S(x)) break;                                                              \
      case RSI_ACT_SILU: ROWS(T, x * rsi_sigmoid_##S(x)) break;                                                             \
    }                                                                                                                       \
    if (end->residual == NULL) return;                                                                                      \
    const T *const residual = (const T *)end->residual + row * end->stride + column;                                        \
    for (int64_t i = 0; i < m; i++) {                                                                                       \
      T *const y = c + i * ldc;                                                                                             \
      const T *const r = residual + i * end->stride;                                                                        \
      RSI_LOOP for (int64_t j = 0; j < n; j++) y[j] += r[j];                                                                \
    }                                                                                                                       \
  }
END(float, f32)
END(double, f64)
