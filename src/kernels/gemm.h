/* Matrix multiplication: packed, tiled; one thread. */
#ifndef RSI_K_GEMM_H
#define RSI_K_GEMM_H

#include "base/base.h"

/*
** c: [m, n] = (beta ? c : 0) + a: [m, k] x b: [k, n]. Element (i, j) of a lies at a[i * ars + j * acs], of b at
** b[i * brs + j * bcs]; c has row stride ldc and unit column stride, and overlaps neither a nor b. Strides may be anything,
** 0 and negative too; fast when one of each pair is 1. k == 0 gives zeros (or leaves c).
** `scratch` holds rsi_k_gemm.scratch(m, n, k, item size) bytes aligned to 64, and may be NULL when that is 0.
** What is computed depends on the sizes and strides only: the same call gives the same bits.
*/
typedef void (*rsi_sgemm_fn)(int64_t m, int64_t n, int64_t k, const float *a, int64_t ars, int64_t acs, const float *b,
                             int64_t brs, int64_t bcs, int beta, float *c, int64_t ldc, void *scratch);
typedef void (*rsi_dgemm_fn)(int64_t m, int64_t n, int64_t k, const double *a, int64_t ars, int64_t acs, const double *b,
                             int64_t brs, int64_t bcs, int beta, double *c, int64_t ldc, void *scratch);

typedef struct rsi_k_gemm {
  rsi_sgemm_fn sgemm;
  rsi_dgemm_fn dgemm;
  size_t     (*scratch)(int64_t m, int64_t n, int64_t k, size_t item);
} rsi_k_gemm;

#endif
