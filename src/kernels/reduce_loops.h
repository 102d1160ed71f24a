/*
** Float reductions, included once with REAL float and once with REAL double. N(name) is the name for this type.
**
** Accuracy: a block of at most BLOCK elements is added in several vector accumulators (so each sees BLOCK / (4 * lanes)
** additions), blocks are added in double. The error of an f32 sum therefore does not grow with its length.
*/
#include "kernels/vector.h"

static inline REAL N(sum_block)(const REAL *x, int64_t n) {
  int64_t i = 0;
  REAL tail = 0;
  if (n >= N(L)) {
    N(vec) a = {0}, b = {0}, c = {0}, d = {0};
    for (; i + 4 * N(L) <= n; i += 4 * N(L)) {
      a += N(load)(x + i);
      b += N(load)(x + i + N(L));
      c += N(load)(x + i + 2 * N(L));
      d += N(load)(x + i + 3 * N(L));
    }
    for (; i + N(L) <= n; i += N(L)) a += N(load)(x + i);
    tail = N(lanes)((a + b) + (c + d));
  }
  for (; i < n; i++) tail += x[i];
  return tail;
}

static double N(sum_strided)(const REAL *x, int64_t n, int64_t stride) {
  double t[4] = {0};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int l = 0; l < 4; l++) t[l] += (double)x[(i + l) * stride];
  for (; i < n; i++) t[0] += (double)x[i * stride];
  return (t[0] + t[1]) + (t[2] + t[3]);
}

static void N(sum_row)(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {
  const REAL *x = p;
  double total = *(double *)acc;
  (void)pos;
  if (stride != 1) total += N(sum_strided)(x, n, stride);
  else
    for (; n > 0; n -= BLOCK, x += BLOCK) total += (double)N(sum_block)(x, n < BLOCK ? n : BLOCK);
  *(double *)acc = total;
}

/* Columns j < n of up to ROWS rows, each summed in REAL, then added to acc in double. */
static void N(sum_cols)(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {
  double *const to = acc;
  (void)pos;
  for (int64_t first = 0; first < rows; first += ROWS) {
    const REAL *const x = (const REAL *)p + first * stride;
    const int64_t count = rows - first < ROWS ? rows - first : ROWS;
    int64_t j = 0;
    for (; j + 4 * N(L) <= n; j += 4 * N(L)) {
      N(vec) a = {0}, b = {0}, c = {0}, d = {0};
      REAL t[4 * N(L)];
      for (int64_t r = 0; r < count; r++) {
        const REAL *const y = x + r * stride + j;
        a += N(load)(y);
        b += N(load)(y + N(L));
        c += N(load)(y + 2 * N(L));
        d += N(load)(y + 3 * N(L));
      }
      __builtin_memcpy(t, &a, sizeof a);
      __builtin_memcpy(t + N(L), &b, sizeof b);
      __builtin_memcpy(t + 2 * N(L), &c, sizeof c);
      __builtin_memcpy(t + 3 * N(L), &d, sizeof d);
      for (int l = 0; l < 4 * N(L); l++) to[j + l] += (double)t[l];
    }
    for (; j + N(L) <= n; j += N(L)) {
      N(vec) a = {0};
      REAL t[N(L)];
      for (int64_t r = 0; r < count; r++) a += N(load)(x + r * stride + j);
      __builtin_memcpy(t, &a, sizeof a);
      for (int l = 0; l < N(L); l++) to[j + l] += (double)t[l];
    }
    for (; j < n; j++) {
      REAL t[2] = {0};
      int64_t r = 0;
      for (; r + 2 <= count; r += 2) t[0] += x[r * stride + j], t[1] += x[(r + 1) * stride + j];
      if (r < count) t[0] += x[r * stride + j];
      to[j] += (double)(t[0] + t[1]);
    }
  }
}

static void N(sum_finish)(void *out, void *second, const void *acc, int64_t n, double param) {
  REAL *const y = out;
  const double *const a = acc;
  (void)second;
  if (param == 1) {
    for (int64_t i = 0; i < n; i++) y[i] = (REAL)a[i];
  } else {
    for (int64_t i = 0; i < n; i++) y[i] = (REAL)(a[i] / param);
  }
}

/* ---- variance: {count, mean, sum of squared deviations}, blocks merged by the formula of Chan, Golub and LeVeque -------- */

/* out: {sum of (x - mean), sum of (x - mean)^2}. */
static void N(deviations)(const REAL *x, int64_t n, REAL mean, double out[2]) {
  int64_t i = 0;
  REAL first = 0, second = 0;
  if (n >= N(L)) {
    const N(vec) m = N(all)(mean);
    N(vec) a = {0}, b = {0}, c = {0}, d = {0};
    for (; i + 2 * N(L) <= n; i += 2 * N(L)) {
      const N(vec) p = N(load)(x + i) - m, q = N(load)(x + i + N(L)) - m;
      a += p, b += q;
      c += p * p, d += q * q;
    }
    for (; i + N(L) <= n; i += N(L)) {
      const N(vec) p = N(load)(x + i) - m;
      a += p, c += p * p;
    }
    first = N(lanes)(a + b), second = N(lanes)(c + d);
  }
  for (; i < n; i++) {
    const REAL d = x[i] - mean;
    first += d, second += d * d;
  }
  out[0] = (double)first, out[1] = (double)second;
}

/* The mean of a block is rounded to REAL; the first moment about it puts mean and squares right again. */
static void N(var_row)(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {
  const REAL *x = p;
  (void)pos;
  for (; n > 0; n -= BLOCK, x += BLOCK * stride) {
    const int64_t count = n < BLOCK ? n : BLOCK;
    if (stride == 1) {
      const REAL mean = (REAL)((double)N(sum_block)(x, count) / (double)count);
      double d[2];
      N(deviations)(x, count, mean, d);
      moments_about(acc, (double)count, (double)mean, d[0], d[1]);
    } else {
      const double mean = N(sum_strided)(x, count, stride) / (double)count;
      double squares = 0;
      for (int64_t i = 0; i < count; i++) squares += ((double)x[i * stride] - mean) * ((double)x[i * stride] - mean);
      moments_merge(acc, (double)count, mean, squares);
    }
  }
}

static void N(var_cols)(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {
  rsi_moments *const to = acc;
  (void)pos;
  for (int64_t first = 0; first < rows; first += ROWS) {
    const int64_t count = rows - first < ROWS ? rows - first : ROWS;
    for (int64_t j = 0; j < n; j += LINE) {
      const REAL *const x = (const REAL *)p + first * stride + j;
      const int width = (int)(n - j < LINE ? n - j : LINE);
      double sum[LINE] = {0};
      REAL mean[LINE], squares[LINE] = {0}, rest[LINE] = {0};
      N(sum_cols)(sum, x, count, width, stride, 0);
      for (int l = 0; l < width; l++) mean[l] = (REAL)(sum[l] / (double)count);
      for (int64_t r = 0; r < count; r++) {
        const REAL *const y = x + r * stride;
        if (width == LINE) {
          for (int l = 0; l < LINE; l++) {
            const REAL d = y[l] - mean[l];
            squares[l] += d * d, rest[l] += d;
          }
        } else {
          for (int l = 0; l < width; l++) {
            const REAL d = y[l] - mean[l];
            squares[l] += d * d, rest[l] += d;
          }
        }
      }
      for (int l = 0; l < width; l++)
        moments_about(&to[j + l], (double)count, (double)mean[l], (double)rest[l], (double)squares[l]);
    }
  }
}

static void N(var_finish)(void *out, void *second, const void *acc, int64_t n, double param) {
  REAL *const y = out;
  const rsi_moments *const a = acc;
  for (int64_t i = 0; i < n; i++) {
    const double freedom = a[i].count - param;
    y[i] = (REAL)(a[i].squares / (freedom > 0 ? freedom : 0));
  }
  if (second)
    for (int64_t i = 0; i < n; i++) ((REAL *)second)[i] = (REAL)a[i].mean;
}
