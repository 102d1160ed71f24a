/*
** Loops over images in block form [N, G, H, W, b]: sums by channel, batch norm and its gradient. One set per element type.
**
** A plane [H, W, b] is seen as a matrix of `width` columns, where width is b or a multiple of it: then column j holds channel
** j % b, and whatever b is, a row fills vector registers. The last row of a plane may be shorter. Numbers for each channel
** (factors, sums) come one for each column. Sums are taken in f32 within one call, which gets a few thousand elements, and added
** to doubles; they do not depend on the instruction set but for fused multiplications.
*/
#ifndef RSI_K_BLOCK_NORM_H
#define RSI_K_BLOCK_NORM_H

#include "base/base.h"

enum { RSI_BLOCK_COLUMNS = 512 };   /* most columns of a call that sums */

/* Pieces of an image. */
typedef struct rsi_columns {
  int64_t pieces, step;      /* how many, elements from one to the next */
  int64_t rows, stride;      /* full rows of a piece, elements from one to the next */
  int64_t width, rest;       /* columns that are looked at; elements of a piece's last, shorter row */
} rsi_columns;

typedef enum rsi_block_mask { RSI_BY_NONE, RSI_BY_Y, RSI_BY_X } rsi_block_mask;

/* One number for each column; a NaN among them is as rsi_plain_nan leaves it. What a loop does not need may be NULL. */
typedef struct rsi_block_factors {
  const float *mean, *scale, *shift;     /* y = (x - mean) scale + shift */
  const float *a, *b, *c;                /* dx = a g + b (x - mean) + c */
  float        low, high;                /* bounds of the activation */
  int          mask;                     /* backward: what g is masked by. Y: low < y < high; X: the same for y computed from x */
} rsi_block_factors;

typedef struct rsi_block_norm_loops {
  /* to[j] += sum(x) */
  void (*sums)(const void *x, const rsi_columns *s, double *to);
  /*
  ** to[j] += sum(x - origin[j]), to[width + j] += sum((x - origin[j])^2), nearly as exact as if taken in double. mean: a guess, better
  ** a good one; receives the mean of these elements, the guess for their neighbours.
  */
  void (*moments)(const void *x, const rsi_columns *s, const float *origin, float *mean, double *to);
  /* to[j] += sum(m), to[width + j] += sum(m (x - mean)), where m is g (+ more) masked, which is written when `masked` is given;
     more may be NULL, and needs `masked` and a mask other than X */
  void (*grad_sums)(const void *g, const void *more, const void *x, const void *y, void *masked, const rsi_columns *s,
                    const rsi_block_factors *f, double *to);
  /* n elements from the first column on: y = clamp((x - mean) scale + shift + residual, low, high); residual may be NULL */
  void (*apply)(void *y, const void *x, const void *residual, int64_t n, int64_t width, const rsi_block_factors *f);
  /* dx = a m + b (x - mean) + c */
  void (*grad)(void *dx, const void *g, const void *x, const void *y, int64_t n, int64_t width, const rsi_block_factors *f);
} rsi_block_norm_loops;

typedef struct rsi_k_block_norm { rsi_block_norm_loops f32, bf16; } rsi_k_block_norm;

#endif
