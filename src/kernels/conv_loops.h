/*
** The loops of conv.c for one element type REAL; F(name) is the name of a function for it. Included by conv.c only, so it
** has no guard.
*/

/* ---- matrices -------------------------------------------------------------------------------------------------------- */

/* x: [channels, h, w], col: [channels * kh * kw, rows * ow] */
static void F(im2col)(const rsi_conv_shape *s, const void *xv, int64_t channels, int64_t row, int64_t rows, void *colv) {
  REAL *restrict col = colv;
  for (int64_t c = 0; c < channels; c++) {
    const REAL *const x = (const REAL *)xv + c * s->h * s->w;
    for (int64_t ki = 0; ki < s->kh; ki++) {
      for (int64_t kj = 0; kj < s->kw; kj++) {
        const int64_t at = kj * s->dw - s->pw;
        int64_t first, last;
        span(at, s->sw, s->w, s->ow, &first, &last);
        for (int64_t i = row; i < row + rows; i++, col += s->ow) {
          const int64_t ih = i * s->sh - s->ph + ki * s->dh;
          if (ih < 0 || ih >= s->h) {
            for (int64_t j = 0; j < s->ow; j++) col[j] = 0;
            continue;
          }
          const REAL *const in = x + ih * s->w + at;
          for (int64_t j = 0; j < first; j++) col[j] = 0;
          if (s->sw == 1) {
            for (int64_t j = first; j < last; j++) col[j] = in[j];
          } else if (s->sw == 2) {
            for (int64_t j = first; j < last; j++) col[j] = in[2 * j];
          } else {
            for (int64_t j = first; j < last; j++) col[j] = in[j * s->sw];
          }
          for (int64_t j = last; j < s->ow; j++) col[j] = 0;
        }
      }
    }
  }
}

static void F(col2im)(const rsi_conv_shape *s, const void *colv, int64_t channels, int64_t row, int64_t rows, void *xv) {
  const REAL *col = colv;
  for (int64_t c = 0; c < channels; c++) {
    REAL *const x = (REAL *)xv + c * s->h * s->w;
    for (int64_t ki = 0; ki < s->kh; ki++) {
      for (int64_t kj = 0; kj < s->kw; kj++) {
        const int64_t at = kj * s->dw - s->pw;
        int64_t first, last;
        span(at, s->sw, s->w, s->ow, &first, &last);
        for (int64_t i = row; i < row + rows; i++, col += s->ow) {
          const int64_t ih = i * s->sh - s->ph + ki * s->dh;
          if (ih < 0 || ih >= s->h) continue;
          REAL *restrict out = x + ih * s->w + at;
          const REAL *restrict in = col;
          if (s->sw == 1) {
            for (int64_t j = first; j < last; j++) out[j] += in[j];
          } else {
            for (int64_t j = first; j < last; j++) out[j * s->sw] += in[j];
          }
        }
      }
    }
  }
}

static void F(fill_rows)(int64_t rows, int64_t n, int64_t ld, const void *bias, void *out) {
  for (int64_t r = 0; r < rows; r++) {
    const REAL b = bias != NULL ? ((const REAL *)bias)[r] : 0;
    REAL *const y = (REAL *)out + r * ld;
    for (int64_t i = 0; i < n; i++) y[i] = b;
  }
}

static void F(add_rows)(int64_t rows, int64_t n, int64_t ld, const void *bias, void *out) {
  for (int64_t r = 0; r < rows; r++) {
    const REAL b = ((const REAL *)bias)[r];
    REAL *const y = (REAL *)out + r * ld;
    for (int64_t i = 0; i < n; i++) y[i] += b;
  }
}

/* ---- one filter on one plane ----------------------------------------------------------------------------------------- */

static void F(depthwise)(const rsi_conv_shape *s, const void *xv, const void *wv, const void *bias, void *yv) {
  const REAL *const w = wv;
  const REAL b = bias != NULL ? *(const REAL *)bias : 0;
  for (int64_t i = 0; i < s->oh * s->ow; i++) ((REAL *)yv)[i] = b;
  for (int64_t ki = 0; ki < s->kh; ki++) {
    for (int64_t kj = 0; kj < s->kw; kj++) {
      const int64_t down = ki * s->dh - s->ph, right = kj * s->dw - s->pw;
      const REAL f = w[ki * s->kw + kj];
      int64_t first, last, top, bottom;
      span(right, s->sw, s->w, s->ow, &first, &last);
      span(down, s->sh, s->h, s->oh, &top, &bottom);
      for (int64_t i = top; i < bottom; i++) {
        const REAL *restrict x = (const REAL *)xv + (i * s->sh + down) * s->w + right;
        REAL *restrict y = (REAL *)yv + i * s->ow;
        if (s->sw == 1) {
          for (int64_t j = first; j < last; j++) y[j] += f * x[j];
        } else if (s->sw == 2) {
          for (int64_t j = first; j < last; j++) y[j] += f * x[2 * j];
        } else {
          for (int64_t j = first; j < last; j++) y[j] += f * x[j * s->sw];
        }
      }
    }
  }
}

static void F(depthwise_data)(const rsi_conv_shape *s, const void *gv, const void *wv, void *xv) {
  const REAL *const w = wv;
  for (int64_t ki = 0; ki < s->kh; ki++) {
    for (int64_t kj = 0; kj < s->kw; kj++) {
      const int64_t down = ki * s->dh - s->ph, right = kj * s->dw - s->pw;
      const REAL f = w[ki * s->kw + kj];
      int64_t first, last, top, bottom;
      span(right, s->sw, s->w, s->ow, &first, &last);
      span(down, s->sh, s->h, s->oh, &top, &bottom);
      for (int64_t i = top; i < bottom; i++) {
        const REAL *restrict g = (const REAL *)gv + i * s->ow;
        REAL *restrict x = (REAL *)xv + (i * s->sh + down) * s->w + right;
        if (s->sw == 1) {
          for (int64_t j = first; j < last; j++) x[j] += f * g[j];
        } else {
          for (int64_t j = first; j < last; j++) x[j * s->sw] += f * g[j];
        }
      }
    }
  }
}

/* Sum of a[i] * b[i * stride]; as many partial sums as fill two registers. */
static inline REAL F(dot)(int64_t n, const REAL *a, const REAL *b, int64_t stride) {
  REAL sum[2 * RSI_LANES] = {0}, total = 0;
  int64_t i = 0;
  if (stride == 1) {
    for (; i + 2 * RSI_LANES <= n; i += 2 * RSI_LANES)
      for (int l = 0; l < 2 * RSI_LANES; l++) sum[l] += a[i + l] * b[i + l];
    for (int l = 0; l < 2 * RSI_LANES; l++) total += sum[l];
  }
  for (; i < n; i++) total += a[i] * b[i * stride];
  return total;
}

static void F(depthwise_weight)(const rsi_conv_shape *s, const void *xv, const void *gv, void *wv) {
  REAL *const w = wv;
  for (int64_t ki = 0; ki < s->kh; ki++) {
    for (int64_t kj = 0; kj < s->kw; kj++) {
      const int64_t at = kj * s->dw - s->pw;
      REAL sum = 0;
      int64_t first, last, top, bottom;
      span(at, s->sw, s->w, s->ow, &first, &last);
      span(ki * s->dh - s->ph, s->sh, s->h, s->oh, &top, &bottom);
      for (int64_t i = top; i < bottom && first < last; i++) {
        const REAL *const x = (const REAL *)xv + (i * s->sh - s->ph + ki * s->dh) * s->w;
        sum += F(dot)(last - first, (const REAL *)gv + i * s->ow + first, x + first * s->sw + at, s->sw);
      }
      w[ki * s->kw + kj] += sum;
    }
  }
}

/* ---- pooling --------------------------------------------------------------------------------------------------------- */

/* Explicit vectors: the compiler makes branches of these choices in what is left of a row, and they depend on random data. */
enum { F(BLOCK) = 8 };
typedef REAL F(vec) __attribute__((vector_size(8 * sizeof(REAL))));
typedef REAL F(vec_u) __attribute__((vector_size(8 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef __typeof__((F(vec)){0} < (F(vec)){0}) F(mask);

/*
** Eight values x[0], x[step], …, whose positions are at, at + step, …, against the best so far. Once the best is NaN, only
** another NaN replaces it. Nothing beyond the last value is read.
*/
static inline void F(max_block)(const REAL *x, int64_t step, int32_t at, REAL *y, int32_t *index) {
  static const ints eight = {0, 1, 2, 3, 4, 5, 6, 7};
  F(vec) value;
  if (step == 1) {
    value = *(const F(vec_u) *)x;
  } else if (step == 2) {
    const F(vec) a = *(const F(vec_u) *)x, b = *(const F(vec_u) *)(x + 7);
    value = __builtin_shufflevector(a, b, 0, 2, 4, 6, 9, 11, 13, 15);
  } else {
    for (int l = 0; l < F(BLOCK); l++) value[l] = x[l * step];
  }
  const F(vec) best = *(F(vec_u) *)y;
  const F(mask) better = (value > best) | (value != value);
  const ints chosen = __builtin_convertvector(better, ints), former = *(ints_u *)index;
  *(F(vec_u) *)y = (F(vec))(((F(mask))value & better) | ((F(mask))best & ~better));
  *(ints_u *)index = ((at + (int32_t)step * eight) & chosen) | (former & ~chosen);
}

/* n values x[j * step]. The last block overlaps the one before it: to take a value twice changes nothing. */
static void F(max_row)(int64_t n, const REAL *x, int64_t step, int32_t at, REAL *y, int32_t *index) {
  if (n >= F(BLOCK)) {
    for (int64_t j = 0; j < n; j += F(BLOCK)) {
      if (j > n - F(BLOCK)) j = n - F(BLOCK);
      F(max_block)(x + j * step, step, at + (int32_t)(j * step), y + j, index + j);
    }
    return;
  }
  REAL best[F(BLOCK)] = {0}, value[F(BLOCK)] = {0};
  int32_t chosen[F(BLOCK)] = {-1, -1, -1, -1, -1, -1, -1, -1};
  for (int64_t j = 0; j < n; j++) value[j] = x[j * step], best[j] = y[j];
  F(max_block)(value, 1, 0, best, chosen);
  /* The positions chosen here are those in the block; -1 where the best was kept. */
  for (int64_t j = 0; j < n; j++) y[j] = best[j], index[j] = chosen[j] < 0 ? index[j] : at + (int32_t)(step * chosen[j]);
}

static void F(max_pool)(const rsi_pool_shape *s, const void *xv, void *yv, int32_t *indices) {
  REAL *const out = yv;
  /* Where nothing is larger than -inf the first element inside the image is chosen. */
  for (int64_t i = 0; i < s->oh; i++) {
    int64_t top = i * s->sh - s->ph;
    while (top < 0) top += s->dh;
    for (int64_t j = 0; j < s->ow; j++) {
      int64_t left = j * s->sw - s->pw;
      if (rsi_unlikely(left < 0))
        while (left < 0) left += s->dw;
      out[i * s->ow + j] = -(REAL)__builtin_inf();
      indices[i * s->ow + j] = (int32_t)(top * s->w + left);
    }
  }
  for (int64_t ki = 0; ki < s->kh; ki++) {
    for (int64_t kj = 0; kj < s->kw; kj++) {
      const int64_t down = ki * s->dh - s->ph, right = kj * s->dw - s->pw;
      int64_t first, last, top, bottom;
      span(right, s->sw, s->w, s->ow, &first, &last);
      span(down, s->sh, s->h, s->oh, &top, &bottom);
      for (int64_t i = top; i < bottom; i++) {
        const int64_t at = (i * s->sh + down) * s->w + right + first * s->sw;
        F(max_row)(last - first, (const REAL *)xv + at, s->sw, (int32_t)at, out + i * s->ow + first, indices + i * s->ow + first);
      }
    }
  }
}

static void F(max_scatter)(int64_t n, const void *gv, const int32_t *index, void *xv) {
  const REAL *const g = gv;
  REAL *const x = xv;
  for (int64_t i = 0; i < n; i++) x[index[i]] += g[i];
}

static void F(max_gather)(int64_t n, const void *xv, const int32_t *index, void *yv) {
  const REAL *const x = xv;
  REAL *const y = yv;
  for (int64_t i = 0; i < n; i++) y[i] = x[index[i]];
}

/* The window's size in one direction, cut at the padded image, or at the image itself. */
static inline int64_t F(extent)(int64_t at, int64_t k, int64_t size, int64_t pad, bool include_pad) {
  const int64_t end = at + k < size + pad ? at + k : size + pad;
  if (include_pad) return end - at;
  return (end < size ? end : size) - (at > 0 ? at : 0);
}

static void F(avg_pool)(const rsi_pool_shape *s, const void *xv, void *yv) {
  memset(yv, 0, (size_t)(s->oh * s->ow) * sizeof(REAL));
  for (int64_t ki = 0; ki < s->kh; ki++) {
    for (int64_t kj = 0; kj < s->kw; kj++) {
      const int64_t down = ki - s->ph, right = kj - s->pw;
      int64_t first, last, top, bottom;
      span(right, s->sw, s->w, s->ow, &first, &last);
      span(down, s->sh, s->h, s->oh, &top, &bottom);
      for (int64_t i = top; i < bottom; i++) {
        const REAL *restrict x = (const REAL *)xv + (i * s->sh + down) * s->w + right;
        REAL *restrict y = (REAL *)yv + i * s->ow;
        if (s->sw == 1) {
          for (int64_t j = first; j < last; j++) y[j] += x[j];
        } else if (s->sw == 2) {
          for (int64_t j = first; j < last; j++) y[j] += x[2 * j];
        } else {
          for (int64_t j = first; j < last; j++) y[j] += x[j * s->sw];
        }
      }
    }
  }
  for (int64_t i = 0; i < s->oh; i++) {
    REAL *const y = (REAL *)yv + i * s->ow;
    const int64_t rows = F(extent)(i * s->sh - s->ph, s->kh, s->h, s->ph, s->include_pad);
    for (int64_t j = 0; j < s->ow; j++)
      y[j] /= (REAL)(rows * F(extent)(j * s->sw - s->pw, s->kw, s->w, s->pw, s->include_pad));
  }
}

static void F(avg_pool_back)(const rsi_pool_shape *s, const void *gv, void *xv) {
  REAL *const x = xv;
  memset(x, 0, (size_t)(s->h * s->w) * sizeof *x);
  for (int64_t i = 0; i < s->oh; i++) {
    const int64_t top = i * s->sh - s->ph, rows = F(extent)(top, s->kh, s->h, s->ph, s->include_pad);
    const int64_t r0 = top > 0 ? top : 0, r1 = top + s->kh < s->h ? top + s->kh : s->h;
    for (int64_t j = 0; j < s->ow; j++) {
      const int64_t left = j * s->sw - s->pw;
      const REAL g = ((const REAL *)gv)[i * s->ow + j] / (REAL)(rows * F(extent)(left, s->kw, s->w, s->pw, s->include_pad));
      const int64_t c0 = left > 0 ? left : 0, c1 = left + s->kw < s->w ? left + s->kw : s->w;
      for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) x[r * s->w + c] += g;
    }
  }
}

static inline REAL F(sum)(int64_t n, const REAL *x) {
  REAL sum[2 * RSI_LANES] = {0}, total = 0;
  int64_t i = 0;
  for (; i + 2 * RSI_LANES <= n; i += 2 * RSI_LANES)
    for (int l = 0; l < 2 * RSI_LANES; l++) sum[l] += x[i + l];
  if (i > 0)
    for (int l = 0; l < 2 * RSI_LANES; l++) total += sum[l];
  for (; i < n; i++) total += x[i];
  return total;
}

static void F(adaptive)(const rsi_pool_shape *s, const void *xv, void *yv) {
  const REAL *const x = xv;
  REAL *const y = yv;
  if (s->oh == 1 && s->ow == 1) {
    y[0] = F(sum)(s->h * s->w, x) / (REAL)(s->h * s->w);
    return;
  }
  for (int64_t i = 0; i < s->oh; i++) {
    const int64_t r0 = bin_start(i, s->h, s->oh), r1 = bin_end(i, s->h, s->oh);
    for (int64_t j = 0; j < s->ow; j++) {
      const int64_t c0 = bin_start(j, s->w, s->ow), c1 = bin_end(j, s->w, s->ow);
      REAL sum = 0;
      for (int64_t r = r0; r < r1; r++) sum += F(sum)(c1 - c0, x + r * s->w + c0);
      y[i * s->ow + j] = sum / (REAL)((r1 - r0) * (c1 - c0));
    }
  }
}

static void F(adaptive_back)(const rsi_pool_shape *s, const void *gv, void *xv) {
  REAL *const x = xv;
  memset(x, 0, (size_t)(s->h * s->w) * sizeof *x);
  for (int64_t i = 0; i < s->oh; i++) {
    const int64_t r0 = bin_start(i, s->h, s->oh), r1 = bin_end(i, s->h, s->oh);
    for (int64_t j = 0; j < s->ow; j++) {
      const int64_t c0 = bin_start(j, s->w, s->ow), c1 = bin_end(j, s->w, s->ow);
      const REAL g = ((const REAL *)gv)[i * s->ow + j] / (REAL)((r1 - r0) * (c1 - c0));
      for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) x[r * s->w + c] += g;
    }
  }
}
