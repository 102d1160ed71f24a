/*
** 1x1 convolutions of block images [n, G, P, L] by FMA, where L is the number of floats in a vector register and P all pixels of an
** image. A tile is some pixels and two blocks of the result; its sums stay in registers while one pass is made over the channels of x.
*/
#ifndef RSI_K_CONV_POINT_H
#define RSI_K_CONV_POINT_H

#include "base/base.h"

typedef struct rsi_conv_point {
  int64_t pixels;                /* of an image */
  int64_t channels, groups_in;   /* of x */
  int64_t groups;                /* blocks of y */
  const float *x, *w;            /* w: [pairs of blocks][channels][2][L], a last one alone [channels][L]; beyond y's channels: 0 */
  const float *bias, *residual;  /* bias: [groups, L]; residual as y, may be y; NULL: none */
  float *y;                      /* y = clamp(conv + bias + residual, low, high), but NaN stays NaN */
  float low, high;
} rsi_conv_point;

typedef struct rsi_k_conv_point {
  int64_t lanes, wide;           /* L; no tile has more pixels */
  /* Pixels first..last - 1 of image n, pairs of blocks of y pair..end - 1. */
  void (*task)(const rsi_conv_point *s, int64_t n, int64_t first, int64_t last, int64_t pair, int64_t end);
} rsi_k_conv_point;

#endif
