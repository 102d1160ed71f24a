/*
** Convolutions of a plain image of few channels [n, C, h, w], the first of a network, to a block image [n, groups, oh, ow, L], by FMA.
** The sums of a tile, some pixels of a row of the result and two blocks, stay in registers while one pass is made over all taps.
*/
#ifndef RSI_K_CONV_FIRST_H
#define RSI_K_CONV_FIRST_H

#include "base/base.h"

enum { RSI_FIRST_ROWS = 64, RSI_FIRST_KW = 16 };   /* limits of channels * kh and of kw */

typedef struct rsi_conv_first {
  int64_t channels, h, w, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh;   /* sw: 1 or 2 */
  int64_t groups;                       /* blocks of y */
  const float *x, *u;                   /* u: [pairs of blocks][channels * kh * kw][2][L], a last one alone [..][L] */
  const float *bias, *residual;         /* bias: [groups, L]; residual as y, may be y; NULL: none */
  float *y;                             /* y = clamp(conv + bias + residual, low, high), but NaN stays NaN */
  float low, high;
} rsi_conv_first;

typedef struct rsi_k_conv_first {
  int64_t lanes, wide;                  /* L; pixels of a tile, ow is at least that */
  /* Rows first..last - 1 of y, counted through all images. strip: rsi_first_strip floats. */
  void (*rows)(const rsi_conv_first *s, int64_t first, int64_t last, float *strip);
} rsi_k_conv_first;

/* What a tile reads at an edge of the image, copied with the zeros around it, and as much of zeros. */
static inline int64_t rsi_first_width(const rsi_conv_first *s, int64_t wide) { return (wide - 1) * s->sw + s->kw; }
static inline int64_t rsi_first_strip(const rsi_conv_first *s, int64_t wide) {
  const int64_t width = rsi_first_width(s, wide);
  return s->channels * s->kh * width + (width > s->w ? width : s->w);
}

#endif
