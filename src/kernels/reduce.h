/*
** Reductions, as a fold: an accumulator per result, rows of elements folded into it, accumulators of separate parts merged.
** The driver in ops/reduce.c walks shapes and threads; the loops here only see rows and columns.
*/
#ifndef RSI_K_REDUCE_H
#define RSI_K_REDUCE_H

#include "base/base.h"

/*
** out or second of finish may be NULL when that result is not wanted (of those folds that give two).
** `pos` is the number of the first element of a row (row-major over the reduced dimensions), for results that tell a position.
** Strides are in elements. `cols` folds x[r * stride + j], r < rows, into acc[j], j < n: one accumulator per column.
*/
typedef struct rsi_fold {
  size_t acc;                                                     /* bytes of an accumulator; NULL row: no such fold */
  void (*init)(void *acc, int64_t n);
  void (*row)(void *acc, const void *x, int64_t n, int64_t stride, int64_t pos);
  void (*cols)(void *acc, const void *x, int64_t rows, int64_t n, int64_t stride, int64_t pos);
  void (*merge)(void *acc, const void *other, int64_t n);         /* acc holds the earlier elements */
  void (*finish)(void *out, void *second, const void *acc, int64_t n, double param);
} rsi_fold;

enum { RSI_FOLD_MAX_ACC = 24 };   /* the largest accumulator */

/* Indexed by dtype; entries of bf16 and f16 are empty (those calls are made in f32), but for the sum of bf16, which programs use. */
typedef struct rsi_k_reduce {
  rsi_fold sum[RS_DTYPES];        /* f32, bf16 -> f32, f64 -> f64, others -> i64; param: what the sum is divided by (floats only) */
  rsi_fold max[RS_DTYPES], min[RS_DTYPES];                        /* NaN wins */
  rsi_fold max_at[RS_DTYPES], min_at[RS_DTYPES];                  /* second: the first position, i64; param: its base */
  rsi_fold any[RS_DTYPES], all[RS_DTYPES];                        /* -> bool */
  rsi_fold var[RS_DTYPES];                                        /* floats; second: the mean; param: the correction */
} rsi_k_reduce;

#endif
