/*
** The loops of rms.c for one element type: REAL, BITS, N(name). Sums are taken in the lanes of a vector and, above BLOCK
** elements, in double.
*/
#include "kernels/vector.h"

/* The sum of x y, or of x y w. */
#define PRODUCT(name, PARAMS, TERM_VECTOR, TERM)                                                                            \
  static double N(name) PARAMS {                                                                                            \
    double total = 0;                                                                                                       \
    for (int64_t first = 0; first < n; first += BLOCK) {                                                                    \
      const int64_t end = n - first < BLOCK ? n : first + BLOCK;                                                            \
      int64_t i = first;                                                                                                    \
      REAL tail = 0;                                                                                                        \
      if (end - first >= N(L)) {                                                                                            \
        N(vec) a = {0};                                                                                                     \
        for (; i + N(L) <= end; i += N(L)) a += TERM_VECTOR;                                                                \
        tail = N(lanes)(a);                                                                                                 \
      }                                                                                                                     \
      for (; i < end; i++) tail += TERM;                                                                                    \
      total += (double)tail;                                                                                                \
    }                                                                                                                       \
    return total;                                                                                                           \
  }
PRODUCT(product2, (const REAL *x, const REAL *y, int64_t n), N(load)(x + i) * N(load)(y + i), x[i] * y[i])
PRODUCT(product3, (const REAL *x, const REAL *y, const REAL *w, int64_t n), N(load)(x + i) * N(load)(y + i) * N(load)(w + i),
        x[i] * y[i] * w[i])
#undef PRODUCT

static void N(rms_forward)(void *py, const void *px, const void *weight, int64_t n, double eps, void *rstd) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px, *const restrict w = weight;
  const REAL r = (REAL)(1.0 / sqrt(N(product2)(x, x, n) / (double)n + eps));
  *(REAL *)rstd = r;
  if (w)
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * r * w[i];
  else
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * r;
}

static void N(rms_backward)(void *pdx, const void *pg, const void *px, const void *weight, const void *prstd, int64_t n,
                            void *dweight) {
  REAL *const restrict dx = pdx, *const restrict dw = dweight;
  const REAL *const restrict g = pg, *const restrict x = px, *const restrict w = weight;
  const REAL r = *(const REAL *)prstd;
  const double sum = w ? N(product3)(g, x, w, n) : N(product2)(g, x, n);
  const REAL b = (REAL)((double)r * (double)r * (double)r * sum / (double)n);
  if (dw)
    for (int64_t i = 0; i < n; i++) dw[i] += g[i] * (x[i] * r);
  if (w)
    for (int64_t i = 0; i < n; i++) dx[i] = g[i] * w[i] * r - x[i] * b;
  else
    for (int64_t i = 0; i < n; i++) dx[i] = g[i] * r - x[i] * b;
}

static const rsi_rms_loops N(rms_loops) = {N(rms_forward), N(rms_backward)};
