/* The loops of attention.c for one element type: REAL, BITS, N(name), EXP, LOG. */
#include "kernels/vector.h"

static inline N(vec) N(bigger)(N(vec) v, N(vec) m) {
  const N(mask) k = (N(mask))(v > m);
  return (N(vec))(((N(mask))v & k) | ((N(mask))m & ~k));
}

/* A NaN is ignored here and reaches the result through the exponentials. */
static REAL N(largest)(const REAL *x, int64_t n) {
  REAL m = -(REAL)INFINITY;
  int64_t i = 0;
  if (n >= 2 * N(L)) {
    N(vec) a = N(all)(m), b = a;
    REAL t[N(L)];
    for (; i + 2 * N(L) <= n; i += 2 * N(L)) {
      a = N(bigger)(N(load)(x + i), a);
      b = N(bigger)(N(load)(x + i + N(L)), b);
    }
    a = N(bigger)(a, b);
    __builtin_memcpy(t, &a, sizeof t);
    for (int l = 0; l < N(L); l++) m = t[l] > m ? t[l] : m;
  }
  for (; i < n; i++) m = x[i] > m ? x[i] : m;
  return m;
}

static REAL N(total)(const REAL *x, int64_t n) {
  REAL sum = 0;
  int64_t i = 0;
  if (n >= 2 * N(L)) {
    N(vec) a = {0}, b = {0};
    for (; i + 2 * N(L) <= n; i += 2 * N(L)) a += N(load)(x + i), b += N(load)(x + i + N(L));
    sum = N(lanes)(a + b);
  }
  for (; i < n; i++) sum += x[i];
  return sum;
}

/* Columns that row i sees. */
static inline int64_t N(columns)(const rsi_scores *t, int64_t i) {
  const int64_t n = t->visible >= t->n ? t->n : t->visible + i;
  return n < 0 ? 0 : n < t->n ? n : t->n;
}

/* s: [n] products become scores. */
static void N(score)(const rsi_scores *t, int64_t i, REAL *restrict s, int64_t n) {
  const REAL scale = (REAL)t->scale;
  if (t->kind == RSI_MASK_NONE) {
    for (int64_t j = 0; j < n; j++) s[j] *= scale;
  } else if (t->kind == RSI_MASK_BOOL) {
    const uint8_t *const m = (const uint8_t *)t->mask + i * t->mrs;
    if (t->mcs == 1)
      RSI_LOOP for (int64_t j = 0; j < n; j++) {
        const REAL v = s[j] * scale;
        s[j] = (BITS)m[j] != 0 ? v : -(REAL)INFINITY;
      }
    else
      for (int64_t j = 0; j < n; j++) s[j] = m[j * t->mcs] ? s[j] * scale : -(REAL)INFINITY;
  } else {
    const REAL *const m = (const REAL *)t->mask + i * t->mrs;
    if (t->mcs == 1)
      for (int64_t j = 0; j < n; j++) s[j] = s[j] * scale + m[j];
    else
      for (int64_t j = 0; j < n; j++) s[j] = s[j] * scale + m[j * t->mcs];
  }
}

static void N(weights)(const rsi_scores *t, void *pmax, void *psum, void *pfactor) {
  REAL *const max = pmax, *const sum = psum, *const factor = pfactor;
  for (int64_t i = 0; i < t->rows; i++) {
    REAL *const restrict s = (REAL *)t->s + i * t->ld;
    const int64_t n = N(columns)(t, i);
    N(score)(t, i, s, n);
    const REAL here = N(largest)(s, n), m = here > max[i] ? here : max[i];
    const REAL anchor = m > -(REAL)INFINITY ? m : 0;   /* nothing to see so far: all weights are exp(-inf) = 0 */
    for (int64_t j = 0; j < n; j++) s[j] = EXP(s[j] - anchor);
    for (int64_t j = n; j < t->n; j++) s[j] = 0;
    factor[i] = EXP(max[i] - anchor);
    max[i] = m;
    sum[i] = sum[i] * factor[i] + N(total)(s, n);
  }
}

static void N(probabilities)(const rsi_scores *t, const void *plse) {
  const REAL *const lse = plse;
  for (int64_t i = 0; i < t->rows; i++) {
    REAL *const restrict s = (REAL *)t->s + i * t->ld;
    const int64_t n = lse[i] == -(REAL)INFINITY ? 0 : N(columns)(t, i);
    const REAL l = lse[i];
    N(score)(t, i, s, n);
    for (int64_t j = 0; j < n; j++) s[j] = EXP(s[j] - l);
    for (int64_t j = n; j < t->n; j++) s[j] = 0;
  }
}

static void N(grad)(const rsi_scores *t, void *pd, const void *pdelta) {
  const REAL *const delta = pdelta;
  for (int64_t i = 0; i < t->rows; i++) {
    const REAL *const restrict p = (const REAL *)t->s + i * t->ld;
    REAL *const restrict d = (REAL *)pd + i * t->ld;
    const int64_t n = N(columns)(t, i);
    const REAL e = delta[i];
    for (int64_t j = 0; j < n; j++) d[j] = p[j] * (d[j] - e);
    for (int64_t j = n; j < t->n; j++) d[j] = 0;
  }
}

static void N(scale_rows)(int64_t rows, int64_t n, void *px, int64_t ld, const void *pfactor) {
  const REAL *const factor = pfactor;
  for (int64_t i = 0; i < rows; i++) {
    REAL *const restrict x = (REAL *)px + i * ld;
    const REAL f = factor[i];
    for (int64_t j = 0; j < n; j++) x[j] *= f;
  }
}

static void N(scale)(int64_t n, void *px, double factor) {
  REAL *const restrict x = px;
  const REAL f = (REAL)factor;
  for (int64_t j = 0; j < n; j++) x[j] *= f;
}

static void N(dots)(int64_t rows, int64_t n, const void *pa, int64_t lda, int64_t acs, const void *pb, int64_t ldb,
                    int64_t bcs, void *pout) {
  REAL *const out = pout;
  for (int64_t i = 0; i < rows; i++) {
    const REAL *const a = (const REAL *)pa + i * lda, *const b = (const REAL *)pb + i * ldb;
    N(vec) v = {0};
    int64_t j = 0;
    for (; acs == 1 && bcs == 1 && j + N(L) <= n; j += N(L)) v += N(load)(a + j) * N(load)(b + j);
    REAL sum = N(lanes)(v);
    for (; j < n; j++) sum += a[j * acs] * b[j * bcs];
    out[i] = sum;
  }
}

static void N(finish)(int64_t rows, const void *pmax, void *psum, void *plse) {
  const REAL *const max = pmax;
  REAL *const sum = psum, *const lse = plse;
  for (int64_t i = 0; i < rows; i++) {
    lse[i] = max[i] > -(REAL)INFINITY ? max[i] + LOG(sum[i]) : sum[i] != sum[i] ? sum[i] : -(REAL)INFINITY;
    sum[i] = sum[i] == 0 ? 0 : 1 / sum[i];
  }
}

static void N(drop)(void *py, const void *px, const uint32_t *words, int64_t n, uint32_t keep, double factor) {
  REAL *const y = py;
  const REAL *const x = px, f = (REAL)factor;
  RSI_LOOP for (int64_t i = 0; i < n; i++) y[i] = words[i] < keep ? x[i] * f : 0;
}

typedef REAL N(quad) __attribute__((vector_size(4 * sizeof(REAL))));
typedef REAL N(uquad) __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* Four by four, in bands of 16 rows, so that the lines on both sides are used up while they are near. */
static void N(transpose)(int64_t rows, int64_t columns, const void *pf, int64_t rs, int64_t cs, void *pt, int64_t ldt) {
  const REAL *const from = pf;
  REAL *const restrict to = pt;
  const int64_t whole_rows = cs == 1 ? rows / 4 * 4 : 0, whole_columns = columns / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 16)
    for (int64_t c = 0; c < whole_columns; c += 4)
      for (int64_t r = i; r < whole_rows && r < i + 16; r += 4) {
        const REAL *const f = from + r * rs + c;
        REAL *const t = to + c * ldt + r;
        const N(quad) w = *(const N(uquad) *)f, x = *(const N(uquad) *)(f + rs);
        const N(quad) y = *(const N(uquad) *)(f + 2 * rs), z = *(const N(uquad) *)(f + 3 * rs);
        const N(quad) wx = __builtin_shufflevector(w, x, 0, 4, 1, 5), xw = __builtin_shufflevector(w, x, 2, 6, 3, 7);
        const N(quad) yz = __builtin_shufflevector(y, z, 0, 4, 1, 5), zy = __builtin_shufflevector(y, z, 2, 6, 3, 7);
        *(N(uquad) *)t = __builtin_shufflevector(wx, yz, 0, 1, 4, 5);
        *(N(uquad) *)(t + ldt) = __builtin_shufflevector(wx, yz, 2, 3, 6, 7);
        *(N(uquad) *)(t + 2 * ldt) = __builtin_shufflevector(xw, zy, 0, 1, 4, 5);
        *(N(uquad) *)(t + 3 * ldt) = __builtin_shufflevector(xw, zy, 2, 3, 6, 7);
      }
  for (int64_t c = 0; c < columns; c++)
    for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++) to[c * ldt + r] = from[r * rs + c * cs];
}

static const rsi_attention_loops N(attention_loops) = {
  .weights = N(weights), .probabilities = N(probabilities), .grad = N(grad), .scale_rows = N(scale_rows), .scale = N(scale),
  .dots = N(dots), .finish = N(finish), .drop = N(drop), .transpose = N(transpose),
};
