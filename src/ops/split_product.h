/*
** f32 products of matrices by split tiles (kernels/split_gemm.h) on as many threads as they pay for. Elements are summed in an order
** that follows from the sizes alone.
*/
#ifndef RSI_SPLIT_PRODUCT_H
#define RSI_SPLIT_PRODUCT_H

#include "ops/op.h"

/* May split products be used at all? Not under precision "highest", where each product is one f32 operation. */
static inline bool rsi_splits(const rsi_exec *x) {
  return !x->exact && x->k->split->block != NULL && rsi_cpu_split();
}

/* Whether a product of this size is faster so. */
bool   rsi_split_pays(const rsi_exec *x, int64_t m, int64_t n, int64_t k);
/* Products of one size in one job. Product i begins where its index in `shape` says, in steps of elements; a step is 0 where an operand
   is shared. In c, and in the end's residual, they follow each other by m rows. */
typedef struct rsi_split_batch { int64_t count; int ndim; const int64_t *shape, *a_steps, *b_steps; } rsi_split_batch;
size_t rsi_split_scratch(const rsi_exec *x, int64_t count, int64_t m, int64_t n, int64_t k);   /* bytes, aligned to 64 */
/* p: m, n, k, a, b, c, ldc, beta and end are set, as for the first product. */
void   rsi_split_run(const rsi_exec *x, const rsi_split_product *p, const rsi_split_batch *batch, void *scratch);

#endif
