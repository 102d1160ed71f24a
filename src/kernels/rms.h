/*
** Loops of rms_norm over one row of n elements, by element type: of[RS_F32], of[RS_F64]. Pointers are to that type.
** weight and dweight may be NULL.
*/
#ifndef RSI_K_RMS_H
#define RSI_K_RMS_H

#include "base/base.h"

typedef struct rsi_rms_loops {
  /* y = x weight / sqrt(mean(x^2) + eps); writes the factor rstd */
  void (*forward)(void *y, const void *x, const void *weight, int64_t n, double eps, void *rstd);
  /* dx = rstd (h - x rstd^2 mean(h x)) with h = g weight, and adds g x rstd to dweight: [n] */
  void (*backward)(void *dx, const void *g, const void *x, const void *weight, const void *rstd, int64_t n, void *dweight);
} rsi_rms_loops;

typedef struct rsi_k_rms { const rsi_rms_loops *of[2]; } rsi_k_rms;

#endif
