/* Reductions of strided tensors over any dimensions: what the ops of reduce.c, minmax.c and norm.c share. */
#ifndef RSI_FOLD_H
#define RSI_FOLD_H

#include "ops/op.h"

/*
** Dimensions of x, parted into kept and reduced ones, each list coalesced; strides in elements. Work is cut into units (some
** results next to each other) times parts (ranges of the reduced elements), by the shape alone.
*/
typedef struct rsi_fold_plan {
  int     nkept, nreduced;
  int64_t kept_shape[RS_MAX_DIMS], kept_stride[RS_MAX_DIMS];
  int64_t shape[RS_MAX_DIMS], stride[RS_MAX_DIMS];        /* reduced */
  int64_t kept, reduced;                                  /* how many results, elements of each */
  int64_t width, line, units;                             /* results of a unit; results in a line of units; units */
  int64_t parts, length;                                  /* parts, and reduced elements of each */
  bool    columns;                                        /* results of a unit lie side by side in x */
} rsi_fold_plan;

/* Bit per dimension of a list attribute; no list means all. The dimensions must have been checked by rsi_fold_dims. */
uint32_t  rsi_fold_mask(const rs_list *dims, int ndim);
/* Checks a list of dimensions and makes them non-negative. */
rs_status rsi_fold_dims(const rsi_call *c, rs_list *dims, int ndim);
/* The shape of a reduction over `mask`. */
void      rsi_fold_shape(const rs_tensor *x, uint32_t mask, bool keepdim, rsi_desc *out);

/* ordered: positions count (row-major over the reduced dimensions), so these are not reordered for speed. */
void      rsi_fold_plan_make(rsi_fold_plan *plan, const rs_tensor *x, uint32_t mask, bool ordered);
size_t    rsi_fold_scratch(const rsi_fold_plan *plan, const rsi_fold *fold);
/* Writes the results to the contiguous `out` and `second` (items of `item` and `item2` bytes); either may be NULL. */
void      rsi_fold_run(const rsi_exec *x, const rsi_fold_plan *plan, const rsi_fold *fold, const rs_tensor *in, void *out,
                       size_t item, void *second, size_t item2, double param, void *scratch);

#endif
