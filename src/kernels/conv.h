/* Convolution and pooling: the loops between plain images [C, H, W] and matrices, and those that need no matrix. */
#ifndef RSI_K_CONV_H
#define RSI_K_CONV_H

#include "base/base.h"

/* x: [n, c, h, w], weight: [o, c / groups, kh, kw], y: [n, o, oh, ow]; strides s, padding p, dilation d (vertical, horizontal). */
typedef struct rsi_conv_shape {
  int64_t n, c, h, w;
  int64_t o, kh, kw;
  int64_t oh, ow;
  int64_t groups;
  int64_t sh, sw, ph, pw, dh, dw;
} rsi_conv_shape;

/* One plane: x: [h, w], y: [oh, ow]. */
typedef struct rsi_pool_shape {
  int64_t h, w, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  bool    include_pad;        /* average: padding counts in the divisor */
} rsi_pool_shape;

/*
** Pointers are to f32 or f64, by table. `col` is a matrix with a row for each (channel, ki, kj) and a column for each output
** of the rows row..row+rows-1, that is [channels * kh * kw, rows * ow]; x points at the first of these channels.
*/
typedef struct rsi_conv_loops {
  void (*im2col)(const rsi_conv_shape *s, const void *x, int64_t channels, int64_t row, int64_t rows, void *col);
  /* The transposed map: adds every element of col to the place in x that it was read from. */
  void (*col2im)(const rsi_conv_shape *s, const void *col, int64_t channels, int64_t row, int64_t rows, void *x);
  /* out[i] (+)= bias, one row of n for each of `rows`, ld apart. bias NULL: zero. */
  void (*fill_rows)(int64_t rows, int64_t n, int64_t ld, const void *bias, void *out);
  void (*add_rows)(int64_t rows, int64_t n, int64_t ld, const void *bias, void *out);

  /* One plane with one filter w: [kh, kw]. forward: y = bias + x * w; data: x += …; weight: w += …. */
  void (*depthwise)(const rsi_conv_shape *s, const void *x, const void *w, const void *bias, void *y);
  void (*depthwise_data)(const rsi_conv_shape *s, const void *g, const void *w, void *x);
  void (*depthwise_weight)(const rsi_conv_shape *s, const void *x, const void *g, void *w);

  /* index: [oh, ow], the position in the plane (0 is the first) of the chosen element. NaN is chosen. */
  void (*max_pool)(const rsi_pool_shape *s, const void *x, void *y, int32_t *index);
  void (*max_scatter)(int64_t n, const void *g, const int32_t *index, void *x);    /* x[index[i]] += g[i] */
  void (*max_gather)(int64_t n, const void *x, const int32_t *index, void *y);     /* y[i] = x[index[i]] */
  void (*avg_pool)(const rsi_pool_shape *s, const void *x, void *y);
  void (*avg_pool_back)(const rsi_pool_shape *s, const void *g, void *x);          /* writes all of x */
  /* Output (i, j) is the mean of rows floor(i h / oh) .. ceil((i + 1) h / oh) - 1, columns likewise. */
  void (*adaptive)(const rsi_pool_shape *s, const void *x, void *y);
  void (*adaptive_back)(const rsi_pool_shape *s, const void *g, void *x);
} rsi_conv_loops;

typedef struct rsi_k_conv {
  rsi_conv_loops f32, f64;
} rsi_k_conv;

#endif
