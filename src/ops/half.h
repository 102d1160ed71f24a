/*
** One product of bf16 matrices with sums in f32, on as many threads as it pays for. By AMX; where that is missing, operands are
** converted and the product is rsi_product's. Elements are summed in an order that follows from the sizes alone.
*/
#ifndef RSI_HALF_H
#define RSI_HALF_H

#include "ops/op.h"

typedef struct rsi_half {
  int64_t m, n, k;
  const uint16_t *a, *b;             /* bf16: [m, k] and [k, n] with strides in elements; b in panels when packed */
  int64_t ars, acs, brs, bcs;
  bool    packed;
  void   *c;                         /* [m, n], rows ldc apart */
  int64_t ldc;
  bool    c_bf16, beta;              /* beta: c is f32, and the product is added to it */
  rsi_gemm_end end;                  /* bias is f32 */
  bool    residual_bf16;
} rsi_half;

bool   rsi_half_native(const rsi_exec *x);          /* by AMX? */
size_t rsi_half_scratch(const rsi_exec *x, const rsi_half *h);   /* bytes, aligned to 64; reads no matrix */
void   rsi_half_product(const rsi_exec *x, const rsi_half *h, void *scratch);

#endif
