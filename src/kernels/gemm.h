/* Matrix multiplication: packed, tiled; one thread. */
#ifndef RSI_K_GEMM_H
#define RSI_K_GEMM_H

#include "kernels/gemm_end.h"

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

/* The same, with an end (or NULL) done to each block as soon as it is finished. */
typedef void (*rsi_sgemm_end_fn)(int64_t m, int64_t n, int64_t k, const float *a, int64_t ars, int64_t acs, const float *b,
                                 int64_t brs, int64_t bcs, int beta, float *c, int64_t ldc, const rsi_gemm_end *end, void *scratch);
typedef void (*rsi_dgemm_end_fn)(int64_t m, int64_t n, int64_t k, const double *a, int64_t ars, int64_t acs, const double *b,
                                 int64_t brs, int64_t bcs, int beta, double *c, int64_t ldc, const rsi_gemm_end *end, void *scratch);

/*
** Panels: a matrix b: [k, n] in the order in which the kernels of every instruction set read it, so that it is read from end to
** end. PANEL columns of b, padded with zeros, make a panel; a panel of f32 is [k, PANEL], of bf16 [k / 2, PANEL, 2]: two rows of b
** in turn, as AMX takes them, padded with zeros to a multiple of 32 rows.
*/
enum { RSI_PANEL = 32 };
static inline int64_t rsi_panels(int64_t n) { return (n + RSI_PANEL - 1) / RSI_PANEL; }
/* Elements of a panel. */
static inline int64_t rsi_panel_size(int64_t k, bool bf16) { return (bf16 ? (k + 31) / 32 * 32 : k) * RSI_PANEL; }

typedef struct rsi_k_gemm {
  rsi_sgemm_fn sgemm;
  rsi_dgemm_fn dgemm;
  rsi_sgemm_end_fn sgemm_end;
  rsi_dgemm_end_fn dgemm_end;
  void       (*f32_end)(const rsi_gemm_end *end, int64_t row, int64_t column, int64_t m, int64_t n, float *c, int64_t ldc);
  void       (*f64_end)(const rsi_gemm_end *end, int64_t row, int64_t column, int64_t m, int64_t n, double *c, int64_t ldc);
  size_t     (*scratch)(int64_t m, int64_t n, int64_t k, size_t item);
  /* c: [m, n] = a: [m, k] x the columns column.. of b, which are a multiple of PANEL; a has unit column stride, rows lda apart.
  ** c is the part of the result that begins at (row, column). */
  void (*panels)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, float *c, int64_t ldc,
                 const rsi_gemm_end *end, int64_t row, int64_t column);
  void (*panels_bf16)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const uint16_t *b, float *c, int64_t ldc,
                      const rsi_gemm_end *end, int64_t row, int64_t column);
  /* Panels first..last - 1 of b: [k, n] with any strides, as f32 or rounded to bf16. */
  void (*pack_panels)(int64_t first, int64_t last, int64_t n, int64_t k, const float *b, int64_t brs, int64_t bcs, bool bf16,
                      void *panels);
  const struct rsi_k_amx *amx;   /* kernels/gemm_amx.h */
} rsi_k_gemm;

#endif
