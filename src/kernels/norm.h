/*
** Loops that normalise: softmax, layer norm, batch norm; and the mask of dropout, the distance of mse_loss. One set per element
** type: of[RS_F32], of[RS_F64]. Pointers are to that type unless they say double. A row has n elements side by side; a block
** of columns is x[r * stride + j] with r < n rows and j < width <= RSI_COLUMNS columns, and one value per column in the arrays.
*/
#ifndef RSI_K_NORM_H
#define RSI_K_NORM_H

#include "base/base.h"

enum { RSI_COLUMNS = 64 };

typedef struct rsi_norm_loops {
  /* y: [n] = softmax(x), or its logarithm */
  void   (*softmax)(void *y, const void *x, int64_t n);
  void   (*log_softmax)(void *y, const void *x, int64_t n);
  void   (*softmax_cols)(void *y, const void *x, int64_t n, int64_t width, int64_t stride);
  void   (*log_softmax_cols)(void *y, const void *x, int64_t n, int64_t width, int64_t stride);
  /* dx = y (g - sum(g y)), and for the logarithm dx = g - exp(y) sum(g) */
  void   (*softmax_grad)(void *dx, const void *g, const void *y, int64_t n);
  void   (*log_softmax_grad)(void *dx, const void *g, const void *y, int64_t n);
  void   (*softmax_grad_cols)(void *dx, const void *g, const void *y, int64_t n, int64_t width, int64_t stride);
  void   (*log_softmax_grad_cols)(void *dx, const void *g, const void *y, int64_t n, int64_t width, int64_t stride);
  /* log(sum(exp(x))) */
  double (*logsumexp)(const void *x, int64_t n);
  void   (*logsumexp_cols)(double *lse, const void *x, int64_t n, int64_t width, int64_t stride);
  /* dx = a exp(x - lse), with one a and lse per row or per column */
  void   (*softmax_scaled)(void *dx, const void *x, double lse, double a, int64_t n);
  void   (*softmax_scaled_cols)(void *dx, const void *x, const double *lse, const double *a, int64_t n, int64_t width,
                                int64_t stride);

  /* y = (x - mean) rstd weight + bias; weight and bias may be NULL. Writes mean and rstd. */
  void   (*layer_norm)(void *y, const void *x, const void *weight, const void *bias, int64_t n, double eps, void *mean,
                       void *rstd);
  /* dx, and adds to dweight: [n] and dbias: [n]; weight may be NULL */
  void   (*layer_norm_grad)(void *dx, const void *g, const void *x, const void *weight, const void *mean, const void *rstd,
                            int64_t n, void *dweight, void *dbias);
  void   (*add_to_double)(double *to, const void *x, int64_t n);   /* to += x */
  void   (*from_double)(void *to, const double *x, int64_t n);

  /* y = (x - mean) scale + shift: one channel, or a row of channels */
  void   (*channel)(void *y, const void *x, int64_t n, double mean, double scale, double shift);
  void   (*channels)(void *y, const void *x, const void *mean, const void *scale, const void *shift, int64_t n);
  /* adds {sum(g), sum(g (x - mean))} */
  void   (*channel_sums)(const void *g, const void *x, int64_t n, double mean, double sums[2]);
  void   (*channels_sums)(const void *g, const void *x, const void *mean, int64_t rows, int64_t width, int64_t stride,
                          double *sum_g, double *sum_gx);
  /* dx = a g + b (x - mean) + c */
  void   (*channel_grad)(void *dx, const void *g, const void *x, int64_t n, double mean, double a, double b, double c);
  void   (*channels_grad)(void *dx, const void *g, const void *x, const void *mean, const void *a, const void *b, const void *c,
                          int64_t n);

  /* y[i] = words[i] < keep ? x[i] scale : 0 */
  void   (*dropout)(void *y, const void *x, const uint32_t *words, int64_t n, uint32_t keep, double scale);
  /* sum((x - y)^2) */
  double (*squared_distance)(const void *x, const void *y, int64_t n);
} rsi_norm_loops;

typedef struct rsi_k_norm { const rsi_norm_loops *of[2]; } rsi_k_norm;

#endif
