/*
** Winograd's convolution F(4x4, 3x3): 3x3 filters, stride 1, over block images [N, G, H, W, L], where L is the number of floats in a
** vector register. A tile is 4x4 outputs, computed from 6x6 pixels with a quarter of the multiplications of the direct form.
**
** Each tile and filter is transformed to 36 points; there a convolution is 36 independent products of matrices, [tiles, channels] x
** [channels, filters]; and the result is transformed back. Points 0, 5/8, -5/8, 3/2, -3/2 and infinity: of the small exact ones those
** with the least error: for normal data against f64, root mean square, 5e-7 of the result for 16 channels, 8e-7 for 64, 1.4e-6 for 256
** (the direct form: 2.2e-7); at most 3.2e-6 of the largest result. An infinity in the image becomes NaN in the tiles that see it.
*/
#ifndef RSI_K_WINOGRAD_H
#define RSI_K_WINOGRAD_H

#include "base/base.h"

enum { RSI_WINOGRAD_POINTS = 36 };

/* Tiles are numbered over [image, row of tiles, column of tiles]; those of one call may belong to several rows and images. */
typedef struct rsi_winograd {
  int64_t h, w, oh, ow;          /* of x and of y */
  int64_t before_h, before_w;    /* padding above and left; below and right there is what is missing */
  int64_t down, across;          /* rows and columns of tiles: oh / 4 and ow / 4, rounded up */
  int64_t groups_in, groups_out; /* blocks of channels: x is [n, groups_in, h, w, L], y is [n, groups_out, oh, ow, L] */
  int64_t most;                  /* tiles at a time, a multiple of `rows` of the loops and no more than RSI_WINOGRAD_TILES */
  const float *x, *u;            /* u: transformed weights */
  const float *bias, *residual;  /* bias: groups_out * L; residual as y, may be y; NULL: none */
  float *y;                      /* y = clamp(conv + bias + residual, low, high), but NaN stays NaN */
  float low, high;
} rsi_winograd;

/* Weight (o, i, tap), in the sense of the convolution at hand, is w[o * out_step + i * in_step + (flipped ? 8 - tap : tap)]. */
typedef struct rsi_winograd_filters {
  const float *w;
  int64_t in, out, in_step, out_step;
  bool    flipped;
} rsi_winograd_filters;

enum { RSI_WINOGRAD_TILES = 56 };

typedef struct rsi_k_winograd {
  int64_t lanes, rows;           /* L; tiles that are multiplied at once */
  /* Transforms the weights of input block `group` (L channels) to their place in u, which has RSI_WINOGRAD_POINTS *
     rsi_winograd_step(groups_in * L, groups_out, L) floats. Channels and filters that fill up a block become zeros. */
  void (*filters)(const rsi_winograd_filters *f, int64_t group, float *u);
  /* Tiles first..first + count - 1, s->most at a time. scratch: rsi_winograd_scratch floats, aligned to 64 bytes. */
  void (*tiles)(const rsi_winograd *s, int64_t first, int64_t count, float *scratch);
} rsi_k_winograd;

/* Floats between the matrices [rows, groups * L] of two points: a little more, so that they do not all fall into one set of the cache. */
static inline int64_t rsi_winograd_step(int64_t rows, int64_t groups, int64_t lanes) { return rows * groups * lanes + 16; }

static inline int64_t rsi_winograd_scratch(int64_t groups_in, int64_t groups_out, int64_t most, int64_t lanes) {
  return RSI_WINOGRAD_POINTS * (rsi_winograd_step(most, groups_in, lanes) + rsi_winograd_step(most, groups_out, lanes)) +
         36 * most * lanes + (6 * groups_in + 8 * groups_out) * most * (int64_t)(sizeof(void *) / sizeof(float));
}

#endif
