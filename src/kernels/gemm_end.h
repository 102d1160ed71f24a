/*
** What is done with a block of a product while it lies in the cache: y = act(c + bias) + residual.
** The row and the column of the block's first element say where bias and residual are read.
*/
#ifndef RSI_K_GEMM_END_H
#define RSI_K_GEMM_END_H

#include "base/base.h"
#include "kernels/isa.h"

typedef enum rsi_act { RSI_ACT_NONE, RSI_ACT_RELU, RSI_ACT_GELU, RSI_ACT_GELU_TANH, RSI_ACT_TANH, RSI_ACT_SIGMOID, RSI_ACT_SILU } rsi_act;
#define RSI_ACT_CHOICES "none,relu,gelu,gelu_tanh,tanh,sigmoid,silu"
#define RSI_ACT_LAST    RSI_ACT_SILU

/* bias: [n], residual: [m, n] with rows `stride` elements apart, of the type of c; either may be NULL. */
typedef struct rsi_gemm_end {
  rsi_act     act;
  const void *bias, *residual;
  int64_t     stride;
} rsi_gemm_end;

#ifdef RSI_ISA_LEVEL
/* c: [m, n], rows ldc apart, is the part of the result that begins at (row, column). */
void RSI_ISA(rsi_gemm_end_f32)(const rsi_gemm_end *end, int64_t row, int64_t column, int64_t m, int64_t n, float *c, int64_t ldc);
void RSI_ISA(rsi_gemm_end_f64)(const rsi_gemm_end *end, int64_t row, int64_t column, int64_t m, int64_t n, double *c, int64_t ldc);
#endif

#endif
