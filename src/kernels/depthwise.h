/*
** Convolutions in which each channel has one filter of its own, 3x3 or 5x5, over block images [N, G, H, W, L], where L is the number
** of floats in a vector register. A channel is a lane, so a tap is one multiplication of a vector, and the sums of a tile of pixels
** stay in registers.
*/
#ifndef RSI_K_DEPTHWISE_H
#define RSI_K_DEPTHWISE_H

#include "base/base.h"

typedef struct rsi_depthwise {
  int64_t h, w, oh, ow;          /* of x and of y */
  int64_t size, stride;          /* 3 or 5, and 1 or 2, in both directions */
  int64_t ph, pw;
  int64_t groups;                /* blocks of channels: x is [n, groups, h, w, L], y is [n, groups, oh, ow, L] */
  const float *x, *u;            /* u: [groups, size, size, L] */
  const float *bias, *residual;  /* bias: [groups, L]; residual as y, may be y; NULL: none */
  float *y;                      /* y = clamp(conv + bias + residual, low, high), but NaN stays NaN */
  float low, high;
} rsi_depthwise;

/*
** The same of an image that a 1x1 convolution makes of `from` [n, groups_in, h, w, L]: x = clamp(w1 from + bias1, low1, high1), of which
** only a few rows of one block of channels exist at a time. w1: [groups, channels, L], bias1: [groups, L] or NULL.
*/
typedef struct rsi_expand {
  rsi_depthwise s;               /* its x is not used */
  int64_t channels, groups_in;   /* of `from` */
  const float *from, *w1, *bias1;
  float low1, high1;
} rsi_expand;

enum { RSI_DEPTHWISE_ROWS = 2, RSI_DEPTHWISE_TILE = 8 };   /* no tile is wider */

typedef struct rsi_k_depthwise {
  int64_t lanes;                 /* L */
  /* Bands first..last - 1 of y, RSI_DEPTHWISE_ROWS rows each (the last of a plane may have fewer), numbered over [n, group, band]. */
  void (*bands)(const rsi_depthwise *s, int64_t first, int64_t last);
  /* Bands first..last - 1 of plane `plane` (numbered over [n, group]); s.w >= narrowest. strip: rsi_expand_strip floats. */
  void (*expand)(const rsi_expand *e, int64_t plane, int64_t first, int64_t last, float *strip);
  int64_t narrowest;
} rsi_k_depthwise;

/* Rows of x that exist at a time; pixels of a row with its padding, and what the last tile reads. */
static inline int64_t rsi_expand_rows(const rsi_depthwise *s) { return (RSI_DEPTHWISE_ROWS - 1) * s->stride + s->size; }
static inline int64_t rsi_expand_width(const rsi_depthwise *s) {
  const int64_t read = (s->ow + RSI_DEPTHWISE_TILE - 2) * s->stride + s->size, padded = s->w + 2 * s->pw;
  return read > padded ? read : padded;
}
static inline int64_t rsi_expand_strip(const rsi_depthwise *s, int64_t lanes) { return rsi_expand_rows(s) * rsi_expand_width(s) * lanes; }

#endif
