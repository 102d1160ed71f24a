/*
** The loops of norm.c for one element type: REAL, BITS, N(name), EXP, LOG.
** Sums of a row are taken in several lanes and, above BLOCK elements, in double, so that long rows keep their accuracy.
*/
#include "kernels/vector.h"

/*
** Sums over a row. TERM(V, i) is what element i adds: V is N(load) for a vector of elements or AT for one.
** SUMS takes two sums in one sweep.
*/
#define SUMS(name, PARAMS, SETUP, TERM1, TERM2)                                                                             \
  static void N(name) PARAMS {                                                                                              \
    SETUP                                                                                                                   \
    sums[0] = sums[1] = 0;                                                                                                  \
    for (int64_t first = 0; first < n; first += BLOCK) {                                                                    \
      const int64_t end = n - first < BLOCK ? n : first + BLOCK;                                                            \
      int64_t i = first;                                                                                                    \
      REAL tail1 = 0, tail2 = 0;                                                                                            \
      if (end - first >= N(L)) {                                                                                            \
        N(vec) a = {0}, b = {0}, c = {0}, d = {0};                                                                          \
        for (; i + 2 * N(L) <= end; i += 2 * N(L)) {                                                                        \
          a += TERM1(N(load), i), b += TERM1(N(load), i + N(L));                                                            \
          c += TERM2(N(load), i), d += TERM2(N(load), i + N(L));                                                            \
        }                                                                                                                   \
        for (; i + N(L) <= end; i += N(L)) a += TERM1(N(load), i), c += TERM2(N(load), i);                                  \
        tail1 = N(lanes)(a + b), tail2 = N(lanes)(c + d);                                                                   \
      }                                                                                                                     \
      for (; i < end; i++) tail1 += TERM1(AT, i), tail2 += TERM2(AT, i);                                                    \
      sums[0] += (double)tail1, sums[1] += (double)tail2;                                                                   \
    }                                                                                                                       \
  }
#define SUM(name, PARAMS, SETUP, TERM)                                                                                      \
  static double N(name) PARAMS {                                                                                            \
    double total = 0;                                                                                                       \
    SETUP                                                                                                                   \
    for (int64_t first = 0; first < n; first += BLOCK) {                                                                    \
      const int64_t end = n - first < BLOCK ? n : first + BLOCK;                                                            \
      int64_t i = first;                                                                                                    \
      REAL tail = 0;                                                                                                        \
      if (end - first >= N(L)) {                                                                                            \
        N(vec) a = {0}, b = {0}, c = {0}, d = {0};                                                                          \
        for (; i + 4 * N(L) <= end; i += 4 * N(L)) {                                                                        \
          a += TERM(N(load), i), b += TERM(N(load), i + N(L));                                                              \
          c += TERM(N(load), i + 2 * N(L)), d += TERM(N(load), i + 3 * N(L));                                               \
        }                                                                                                                   \
        for (; i + N(L) <= end; i += N(L)) a += TERM(N(load), i);                                                           \
        tail = N(lanes)((a + b) + (c + d));                                                                                 \
      }                                                                                                                     \
      for (; i < end; i++) tail += TERM(AT, i);                                                                             \
      total += (double)tail;                                                                                                \
    }                                                                                                                       \
    return total;                                                                                                           \
  }

#define AT(p) (*(p))
#define TERM_X(V, i) V(x + (i))
#define TERM_XY(V, i) (V(x + (i)) * V(y + (i)))
#define TERM_DIFF(V, i) ((V(x + (i)) - V(y + (i))) * (V(x + (i)) - V(y + (i))))
#define TERM_XM(V, i) (V(x + (i)) - m)
#define TERM_XMM(V, i) ((V(x + (i)) - m) * (V(x + (i)) - m))
#define TERM_G(V, i) V(g + (i))
#define TERM_GXM(V, i) (V(g + (i)) * (V(x + (i)) - m))
#define TERM_GW(V, i) (V(g + (i)) * V(w + (i)))
#define TERM_GWXM(V, i) (V(g + (i)) * V(w + (i)) * (V(x + (i)) - m))

SUM(sum, (const REAL *x, int64_t n), , TERM_X)
SUM(dot, (const REAL *x, const REAL *y, int64_t n), , TERM_XY)
SUM(squared_distance, (const void *px, const void *py, int64_t n), const REAL *const x = px; const REAL *const y = py;, TERM_DIFF)
SUMS(moments, (const REAL *x, REAL m, int64_t n, double sums[2]), , TERM_XM, TERM_XMM)
SUMS(centred, (const REAL *g, const REAL *x, REAL m, int64_t n, double sums[2]), , TERM_G, TERM_GXM)
SUMS(weighted, (const REAL *g, const REAL *w, const REAL *x, REAL m, int64_t n, double sums[2]), , TERM_GW, TERM_GWXM)

static inline N(vec) N(greater)(N(vec) v, N(vec) m) {
  const N(mask) k = (N(mask))(v > m);
  return (N(vec))(((N(mask))v & k) | ((N(mask))m & ~k));
}

/* The largest element; a NaN is ignored here and reaches the result through the exponentials. */
static REAL N(largest)(const REAL *x, int64_t n) {
  REAL m = -(REAL)INFINITY;
  int64_t i = 0;
  if (n >= 4 * N(L)) {
    N(vec) a = N(all)(m), b = a, c = a, d = a;
    REAL t[N(L)];
    for (; i + 4 * N(L) <= n; i += 4 * N(L)) {
      a = N(greater)(N(load)(x + i), a);
      b = N(greater)(N(load)(x + i + N(L)), b);
      c = N(greater)(N(load)(x + i + 2 * N(L)), c);
      d = N(greater)(N(load)(x + i + 3 * N(L)), d);
    }
    a = N(greater)(N(greater)(a, b), N(greater)(c, d));
    __builtin_memcpy(t, &a, sizeof t);
    for (int w = N(L) / 2; w > 0; w /= 2)
      for (int l = 0; l < w; l++) t[l] = t[l] > t[l + w] ? t[l] : t[l + w];
    m = t[0];
  }
  for (; i < n; i++) m = x[i] > m ? x[i] : m;
  return m;
}

/* What is subtracted before exp: the largest, unless that is infinite (then exp gives 0, 1, inf or NaN by itself). */
static inline REAL N(anchor)(REAL m) { return m > -(REAL)INFINITY && m < (REAL)INFINITY ? m : 0; }

/* exp(x - lse) is taken as exp((x - high) - low), high + low = lse: for large values the rounding of lse would show. */

/* ---- softmax, rows --------------------------------------------------------------------------------------------------- */

static void N(softmax)(void *py, const void *px, int64_t n) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px;
  const REAL m = N(largest)(x, n);
  for (int64_t i = 0; i < n; i++) y[i] = EXP(x[i] - m);
  const REAL scale = (REAL)(1.0 / N(sum)(y, n));
  for (int64_t i = 0; i < n; i++) y[i] *= scale;
}

/* Sum of exp(x - m), a stretch at a time so that nothing is written but a buffer. */
static double N(sum_exp)(const REAL *x, REAL m, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += STRETCH) {
    REAL e[STRETCH];
    const int64_t count = n - i < STRETCH ? n - i : STRETCH;
    for (int64_t j = 0; j < count; j++) e[j] = EXP(x[i + j] - m);
    total += N(sum)(e, count);
  }
  return total;
}

static double N(logsumexp)(const void *px, int64_t n) {
  const REAL *const x = px;
  const REAL m = N(anchor)(N(largest)(x, n));
  return (double)m + log(N(sum_exp)(x, m, n));
}

static void N(log_softmax)(void *py, const void *px, int64_t n) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px;
  const REAL m = N(largest)(x, n), rest = (REAL)log(N(sum_exp)(x, m, n));
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - m) - rest;
}

static void N(softmax_grad)(void *pdx, const void *pg, const void *py, int64_t n) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict g = pg, *const restrict y = py;
  const REAL s = (REAL)N(dot)(g, y, n);
  for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (g[i] - s);
}

static void N(log_softmax_grad)(void *pdx, const void *pg, const void *py, int64_t n) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict g = pg, *const restrict y = py;
  const REAL s = (REAL)N(sum)(g, n);
  for (int64_t i = 0; i < n; i++) dx[i] = g[i] - EXP(y[i]) * s;
}

static void N(softmax_scaled)(void *pdx, const void *px, double lse, double a, int64_t n) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict x = px;
  const REAL high = (REAL)lse, low = (REAL)(lse - (double)high), s = (REAL)a;
  for (int64_t i = 0; i < n; i++) dx[i] = s * EXP((x[i] - high) - low);
}

/* ---- softmax, columns: width <= RSI_COLUMNS -------------------------------------------------------------------------- */

static void N(largest_cols)(REAL *restrict m, const REAL *restrict x, int64_t n, int64_t width, int64_t stride) {
  for (int64_t j = 0; j < width; j++) m[j] = -(REAL)INFINITY;
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) m[j] = x[r * stride + j] > m[j] ? x[r * stride + j] : m[j];
}

static void N(softmax_cols)(void *py, const void *px, int64_t n, int64_t width, int64_t stride) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px;
  REAL m[RSI_COLUMNS], sum[RSI_COLUMNS] = {0};
  N(largest_cols)(m, x, n, width, stride);
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) {
      const REAL e = EXP(x[r * stride + j] - m[j]);
      y[r * stride + j] = e;
      sum[j] += e;
    }
  for (int64_t j = 0; j < width; j++) sum[j] = 1 / sum[j];
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) y[r * stride + j] *= sum[j];
}

/* Leaves the largest (or 0 when it is infinite and `anchored`) in m and log(sum(exp(x - m))) in rest. */
static void N(logs_cols)(REAL *restrict m, REAL *restrict rest, const REAL *restrict x, int64_t n, int64_t width, int64_t stride,
                         bool anchored) {
  REAL sum[RSI_COLUMNS] = {0};
  N(largest_cols)(m, x, n, width, stride);
  if (anchored)
    for (int64_t j = 0; j < width; j++) m[j] = N(anchor)(m[j]);
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) sum[j] += EXP(x[r * stride + j] - m[j]);
  for (int64_t j = 0; j < width; j++) rest[j] = LOG(sum[j]);
}

static void N(log_softmax_cols)(void *py, const void *px, int64_t n, int64_t width, int64_t stride) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px;
  REAL m[RSI_COLUMNS], rest[RSI_COLUMNS];
  N(logs_cols)(m, rest, x, n, width, stride, false);
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) y[r * stride + j] = (x[r * stride + j] - m[j]) - rest[j];
}

static void N(logsumexp_cols)(double *lse, const void *x, int64_t n, int64_t width, int64_t stride) {
  REAL m[RSI_COLUMNS], rest[RSI_COLUMNS];
  N(logs_cols)(m, rest, x, n, width, stride, true);
  for (int64_t j = 0; j < width; j++) lse[j] = (double)m[j] + (double)rest[j];
}

static void N(softmax_grad_cols)(void *pdx, const void *pg, const void *py, int64_t n, int64_t width, int64_t stride) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict g = pg, *const restrict y = py;
  REAL s[RSI_COLUMNS] = {0};
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) s[j] += g[r * stride + j] * y[r * stride + j];
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) dx[r * stride + j] = y[r * stride + j] * (g[r * stride + j] - s[j]);
}

static void N(log_softmax_grad_cols)(void *pdx, const void *pg, const void *py, int64_t n, int64_t width, int64_t stride) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict g = pg, *const restrict y = py;
  REAL s[RSI_COLUMNS] = {0};
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) s[j] += g[r * stride + j];
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) dx[r * stride + j] = g[r * stride + j] - EXP(y[r * stride + j]) * s[j];
}

static void N(softmax_scaled_cols)(void *pdx, const void *px, const double *lse, const double *a, int64_t n, int64_t width,
                                   int64_t stride) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict x = px;
  REAL high[RSI_COLUMNS], low[RSI_COLUMNS], s[RSI_COLUMNS];
  for (int64_t j = 0; j < width; j++) {
    high[j] = (REAL)lse[j];
    low[j] = (REAL)(lse[j] - (double)high[j]);
    s[j] = (REAL)a[j];
  }
  for (int64_t r = 0; r < n; r++)
    for (int64_t j = 0; j < width; j++) dx[r * stride + j] = s[j] * EXP((x[r * stride + j] - high[j]) - low[j]);
}

/* ---- layer norm ------------------------------------------------------------------------------------------------------ */

/*
** The sum of a row in REAL leaves the mean some ulp off. Its differences from x are small, so the first moment about it is nearly
** exact: it corrects mean and variance, and a constant row gives 0 before the bias.
*/
static void N(layer_norm)(void *py, const void *px, const void *weight, const void *bias, int64_t n, double eps, void *pmean,
                          void *prstd) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px, *const restrict w = weight, *const restrict b = bias;
  const REAL first = (REAL)(N(sum)(x, n) / (double)n);
  double d[2];
  N(moments)(x, first, n, d);
  const double shift = d[0] / (double)n, var = d[1] / (double)n - shift * shift;
  const REAL m = (REAL)((double)first + shift);
  const REAL rstd = (REAL)(1.0 / sqrt((var < 0 ? 0 : var) + eps));
  *(REAL *)pmean = m, *(REAL *)prstd = rstd;
  if (w && b)
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - m) * rstd * w[i] + b[i];
  else if (w)
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - m) * rstd * w[i];
  else if (b)
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - m) * rstd + b[i];
  else
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - m) * rstd;
}

/* dx = rstd (g w - mean(g w) - xhat mean(g w xhat)), xhat = (x - mean) rstd */
static void N(layer_norm_grad)(void *pdx, const void *pg, const void *px, const void *weight, const void *pmean,
                               const void *prstd, int64_t n, void *dweight, void *dbias) {
  REAL *const restrict dx = pdx, *const restrict dw = dweight, *const restrict db = dbias;
  const REAL *const restrict g = pg, *const restrict x = px, *const restrict w = weight;
  const REAL m = *(const REAL *)pmean, r = *(const REAL *)prstd;
  double sums[2];
  if (w) N(weighted)(g, w, x, m, n, sums);
  else N(centred)(g, x, m, n, sums);
  const REAL c = (REAL)(-(double)r * sums[0] / (double)n);
  const REAL b = (REAL)(-(double)r * (double)r * (double)r * sums[1] / (double)n);
  for (int64_t i = 0; i < n; i++) {
    dw[i] += g[i] * ((x[i] - m) * r);
    db[i] += g[i];
  }
  if (w)
    for (int64_t i = 0; i < n; i++) dx[i] = g[i] * w[i] * r + ((x[i] - m) * b + c);
  else
    for (int64_t i = 0; i < n; i++) dx[i] = g[i] * r + ((x[i] - m) * b + c);
}

static void N(add_to_double)(double *restrict to, const void *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] += (double)((const REAL *)x)[i];
}

static void N(from_double)(void *restrict to, const double *restrict x, int64_t n) {
  for (int64_t i = 0; i < n; i++) ((REAL *)to)[i] = (REAL)x[i];
}

/* ---- batch norm ------------------------------------------------------------------------------------------------------ */

static void N(channel)(void *py, const void *px, int64_t n, double mean, double scale, double shift) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px;
  const REAL m = (REAL)mean, a = (REAL)scale, b = (REAL)shift;
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - m) * a + b;
}

static void N(channels)(void *py, const void *px, const void *mean, const void *scale, const void *shift, int64_t n) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px, *const restrict m = mean, *const restrict a = scale, *const restrict b = shift;
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - m[i]) * a[i] + b[i];
}

static void N(channel_sums)(const void *pg, const void *px, int64_t n, double mean, double sums[2]) {
  const REAL *const g = pg, *const x = px;
  double more[2];
  N(centred)(g, x, (REAL)mean, n, more);
  sums[0] += more[0], sums[1] += more[1];
}

static void N(channels_sums)(const void *pg, const void *px, const void *mean, int64_t rows, int64_t width, int64_t stride,
                             double *restrict sum_g, double *restrict sum_gx) {
  const REAL *const restrict m = mean;
  for (int64_t first = 0; first < rows; first += ROWS) {
    const int64_t last = rows - first < ROWS ? rows : first + ROWS;
    REAL a[RSI_COLUMNS] = {0}, b[RSI_COLUMNS] = {0};
    for (int64_t r = first; r < last; r++) {
      const REAL *const restrict g = (const REAL *)pg + r * stride, *const restrict x = (const REAL *)px + r * stride;
      for (int64_t j = 0; j < width; j++) {
        a[j] += g[j];
        b[j] += g[j] * (x[j] - m[j]);
      }
    }
    for (int64_t j = 0; j < width; j++) sum_g[j] += (double)a[j], sum_gx[j] += (double)b[j];
  }
}

static void N(channel_grad)(void *pdx, const void *pg, const void *px, int64_t n, double mean, double a, double b, double c) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict g = pg, *const restrict x = px;
  const REAL m = (REAL)mean, ra = (REAL)a, rb = (REAL)b, rc = (REAL)c;
  for (int64_t i = 0; i < n; i++) dx[i] = ra * g[i] + (rb * (x[i] - m) + rc);
}

static void N(channels_grad)(void *pdx, const void *pg, const void *px, const void *mean, const void *pa, const void *pb,
                             const void *pc, int64_t n) {
  REAL *const restrict dx = pdx;
  const REAL *const restrict g = pg, *const restrict x = px, *const restrict m = mean;
  const REAL *const restrict a = pa, *const restrict b = pb, *const restrict c = pc;
  for (int64_t i = 0; i < n; i++) dx[i] = a[i] * g[i] + (b[i] * (x[i] - m[i]) + c[i]);
}

/* ---- dropout --------------------------------------------------------------------------------------------------------- */

static void N(dropout)(void *py, const void *px, const uint32_t *restrict words, int64_t n, uint32_t keep, double scale) {
  REAL *const restrict y = py;
  const REAL *const restrict x = px;
  const REAL s = (REAL)scale;
  for (int64_t i = 0; i < n; i++) y[i] = words[i] < keep ? x[i] * s : 0;
}

static const rsi_norm_loops N(loops) = {
  N(softmax), N(log_softmax), N(softmax_cols), N(log_softmax_cols), N(softmax_grad), N(log_softmax_grad), N(softmax_grad_cols),
  N(log_softmax_grad_cols), N(logsumexp), N(logsumexp_cols), N(softmax_scaled), N(softmax_scaled_cols), N(layer_norm),
  N(layer_norm_grad), N(add_to_double), N(from_double), N(channel), N(channels), N(channel_sums), N(channels_sums),
  N(channel_grad), N(channels_grad), N(dropout), N(squared_distance),
};
