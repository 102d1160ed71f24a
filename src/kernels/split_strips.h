/*
** Split products (kernels/split_tiles.h) of operands that are packed once and used more than once. Where rsi_k_split has no functions,
** this has none.
**
** 16 rows of a, or 16 columns of b, are a strip: [runs][RSI_SPLIT_RUN]. Strips of an operand lie one after the other. What is missing of
** the last run, and of the rows of a strip of a or the columns of a strip of b, is zero.
*/
#ifndef RSI_K_SPLIT_STRIPS_H
#define RSI_K_SPLIT_STRIPS_H

#include "kernels/split_gemm.h"

typedef struct rsi_k_split_strips {
  /* One run of the strips of x: [m, n], n <= 32, rows ld apart. It goes to `to` in the first strip, `step` elements on in the next. */
  void (*rows)(int64_t m, int64_t n, const float *x, int64_t ld, uint16_t *to, int64_t step);
  /* One strip: n <= 16 columns of k; (p, i) is at b[p * deep + i * side]. */
  void (*columns)(int64_t n, int64_t k, const float *b, int64_t deep, int64_t side, uint16_t *to);
  /*
  ** c: [m, n] = a x b, strips of `runs` runs; asks for the `count` parts of `soon`. False if tiles may have got a sum wrong, since a number
  ** was not finite or very small: then the caller computes c by FMA.
  */
  bool (*product)(int64_t m, int64_t n, int64_t runs, const uint16_t *a, const uint16_t *b, float *c, int64_t ldc,
                  const rsi_soon *soon, int count);
} rsi_k_split_strips;

#ifdef RSI_ISA_LEVEL
extern const rsi_k_split_strips RSI_ISA(rsi_k_split_strips);
#endif

#endif
