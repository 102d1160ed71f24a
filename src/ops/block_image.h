/*
** Images in block form and the sums that are taken over them by channel.
**
** Block form b of a logical image [N, C, H, W]: a contiguous tensor [N, G, H, W, b], G = ceil(C / b), channel c = g b + j. Channels
** from C on hold zeros. b = 1 may have four dimensions, [N, C, H, W].
*/
#ifndef RSI_BLOCK_IMAGE_H
#define RSI_BLOCK_IMAGE_H

#include "ops/op.h"

static inline int64_t rsi_block_of(const rs_tensor *t) { return t->ndim == 5 ? t->shape[4] : 1; }

/* t must be f32 or bf16 in block form; `channels` 0: any number of them. */
rs_status rsi_block_check(const rs_tensor *t, const char *name, int64_t channels);
/* The same in shape and dtype. */
rs_status rsi_block_check_like(const rs_tensor *t, const char *name, const rs_tensor *x);
/* t, unless it is left out, must be f32 with one value for each channel. */
rs_status rsi_block_check_vector(const rs_tensor *t, const char *name, int64_t channels);

/*
** How the elements are gone through. Each plane [H, W, b] is a matrix of `width` columns (see kernels/block_norm.h); a piece is some
** rows of a plane. Sums are taken over chunks: one piece, or several planes when these are small. Some chunks make a task, whose
** sums have a place of their own; the places are added in their order. All this depends on the shape alone.
*/
typedef struct rsi_block_plan {
  int64_t n, groups, plane, block;    /* plane: its elements; with one group all planes are one */
  int64_t width;                      /* a multiple of block */
  int64_t pieces, piece;              /* of a plane: how many, elements of each but perhaps the last */
  int64_t gather;                     /* planes of a chunk; 1 when pieces > 1 */
  int64_t chunks, parts;              /* for each group */
  int64_t strips;                     /* of RSI_BLOCK_COLUMNS columns; more than one only with width == block */
} rsi_block_plan;

void rsi_block_plan_make(const rs_tensor *x, rsi_block_plan *plan);

/*
** Adds up the columns of a chunk: sums[slots][columns->width]. `at`: its first element; it begins in column `column` of `group`.
** memory: [columns->width], kept from one chunk of a task to the next; `first`: it holds nothing yet.
*/
typedef void (*rsi_block_sum_fn)(const void *arg, int64_t group, int64_t at, int64_t column, const rsi_columns *columns, double *sums,
                                 float *memory, bool first);

size_t rsi_block_sums_bytes(const rsi_block_plan *plan, int slots);
/* work: nanoseconds for an element. to: [groups][slots][block], the first part of rsi_block_sums_bytes. */
void rsi_block_sums(const rsi_exec *x, const rsi_block_plan *plan, int slots, double work, rsi_block_sum_fn fn, const void *arg,
                    double *to);

/* Calls fn for each piece, the last first: what a sweep before this one read last may still be in the cache. */
typedef void (*rsi_block_piece_fn)(const void *arg, int64_t group, int64_t at, int64_t n);
void rsi_block_sweep(const rsi_exec *x, const rsi_block_plan *plan, double work, rsi_block_piece_fn fn, const void *arg);

#endif
