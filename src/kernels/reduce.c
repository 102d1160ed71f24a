/*
** Loops of the reductions: rows and columns of elements folded into accumulators.
** Float sums and extremes are written with vectors of one register; everything else is plain loops per element type.
*/
#include "kernels/reduce.h"
#include "kernels/bf16.h"
#include "kernels/isa.h"
#include <math.h>
#include <string.h>

enum {
  BLOCK = 4096,   /* elements of a row that are summed in the element type */
  ROWS  = 64,     /* rows of columns that are summed in the element type */
  LINE  = 64      /* columns that the variance and sums of bf16 take at a time */
};

/* ---- moments --------------------------------------------------------------------------------------------------------- */

typedef struct rsi_moments { double count, mean, squares; } rsi_moments;   /* squares: sum of squared deviations from mean */
_Static_assert(sizeof(rsi_moments) <= RSI_FOLD_MAX_ACC, "accumulator");

/* Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979). */
static inline void moments_merge(rsi_moments *a, double count, double mean, double squares) {
  if (count == 0) return;
  if (a->count == 0) {
    a->count = count, a->mean = mean, a->squares = squares;
    return;
  }
  const double total = a->count + count, shift = mean - a->mean;
  a->squares += squares + shift * shift * (a->count * count / total);
  a->mean += shift * (count / total);
  a->count = total;
}

/* Merges elements whose deviations from `mean` sum to `first` and whose squared ones sum to `second`. */
static inline void moments_about(rsi_moments *a, double count, double mean, double first, double second) {
  const double shift = first / count, squares = second - first * shift;
  moments_merge(a, count, mean + shift, squares < 0 ? 0 : squares);
}

static void var_init(void *acc, int64_t n) { memset(acc, 0, (size_t)n * sizeof(rsi_moments)); }

static void var_merge(void *acc, const void *other, int64_t n) {
  rsi_moments *const a = acc;
  const rsi_moments *const b = other;
  for (int64_t i = 0; i < n; i++) moments_merge(&a[i], b[i].count, b[i].mean, b[i].squares);
}

static void zero_double(void *acc, int64_t n) { memset(acc, 0, (size_t)n * sizeof(double)); }

static void add_double(void *acc, const void *other, int64_t n) {
  double *const a = acc;
  const double *const b = other;
  for (int64_t i = 0; i < n; i++) a[i] += b[i];
}

/* ---- floats ---------------------------------------------------------------------------------------------------------- */

#define REAL float
#define BITS int32_t
#define N(name) name##_f32
#include "kernels/reduce_loops.h"
#undef REAL
#undef BITS
#undef N
#define REAL double
#define BITS int64_t
#define N(name) name##_f64
#include "kernels/reduce_loops.h"
#undef REAL
#undef BITS
#undef N

/* ---- sums of integers ------------------------------------------------------------------------------------------------ */

#define INT_SUM(T, tag)                                                                                                     \
  static void sum_row_##tag(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {                             \
    const T *const x = p;                                                                                                   \
    uint64_t total = 0; /* wraps around, as the addition of tensors does */                                                 \
    (void)pos;                                                                                                              \
    if (stride == 1)                                                                                                        \
      for (int64_t i = 0; i < n; i++) total += (uint64_t)(int64_t)x[i];                                                     \
    else                                                                                                                    \
      for (int64_t i = 0; i < n; i++) total += (uint64_t)(int64_t)x[i * stride];                                            \
    *(uint64_t *)acc += total;                                                                                              \
  }                                                                                                                         \
  static void sum_cols_##tag(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {              \
    const T *x = p;                                                                                                         \
    uint64_t *const to = acc;                                                                                               \
    (void)pos;                                                                                                              \
    for (int64_t r = 0; r < rows; r++, x += stride)                                                                         \
      for (int64_t j = 0; j < n; j++) to[j] += (uint64_t)(int64_t)x[j];                                                     \
  }

INT_SUM(int64_t, i64)
INT_SUM(int32_t, i32)
INT_SUM(uint8_t, u8)

static void zero_int(void *acc, int64_t n) { memset(acc, 0, (size_t)n * sizeof(uint64_t)); }

static void add_int(void *acc, const void *other, int64_t n) {
  uint64_t *const a = acc;
  const uint64_t *const b = other;
  for (int64_t i = 0; i < n; i++) a[i] += b[i];
}

static void finish_int(void *out, void *second, const void *acc, int64_t n, double param) {
  (void)second, (void)param;
  memcpy(out, acc, (size_t)n * sizeof(int64_t));
}

/* ---- largest and smallest -------------------------------------------------------------------------------------------- */

/*
** BETTER(x, m): x takes the place of m. For floats a NaN takes the place of any number and keeps it; an equal value never
** does, so the first of equals stays. WORST is where a fold begins: every element is as good.
*/
#define GREATER(x, m) ((x) > (m))
#define LESS(x, m) ((x) < (m))
#define GREATER_NAN(x, m) ((x) > (m) || ((x) != (x) && (m) == (m)))
#define LESS_NAN(x, m) ((x) < (m) || ((x) != (x) && (m) == (m)))

#define EXTREME_COMMON(T, name, BETTER, WORST)                                                                              \
  static void name##_init(void *acc, int64_t n) {                                                                           \
    for (int64_t i = 0; i < n; i++) ((T *)acc)[i] = (WORST);                                                                \
  }                                                                                                                         \
  static void name##_cols(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {                 \
    const T *x = p;                                                                                                         \
    T *const m = acc;                                                                                                       \
    (void)pos;                                                                                                              \
    for (int64_t r = 0; r < rows; r++, x += stride)                                                                         \
      for (int64_t j = 0; j < n; j++) m[j] = BETTER(x[j], m[j]) ? x[j] : m[j];                                              \
  }                                                                                                                         \
  static void name##_merge(void *acc, const void *other, int64_t n) {                                                       \
    T *const m = acc;                                                                                                       \
    const T *const x = other;                                                                                               \
    for (int64_t i = 0; i < n; i++) m[i] = BETTER(x[i], m[i]) ? x[i] : m[i];                                                \
  }                                                                                                                         \
  static void name##_finish(void *out, void *second, const void *acc, int64_t n, double param) {                             \
    (void)second, (void)param;                                                                                               \
    memcpy(out, acc, (size_t)n * sizeof(T));                                                                                \
  }

#define EXTREME_ROW(T, name, BETTER)                                                                                        \
  static void name##_row(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {                                \
    const T *const x = p;                                                                                                   \
    T m = *(T *)acc;                                                                                                        \
    (void)pos;                                                                                                              \
    if (stride == 1)                                                                                                        \
      for (int64_t i = 0; i < n; i++) m = BETTER(x[i], m) ? x[i] : m;                                                       \
    else                                                                                                                    \
      for (int64_t i = 0; i < n; i++) m = BETTER(x[i * stride], m) ? x[i * stride] : m;                                     \
    *(T *)acc = m;                                                                                                          \
  }

/* A contiguous float row in four vector accumulators, the bits blended by a mask; NaN is looked for apart. */
#define EXTREME_FLOAT_ROW(T, name, BETTER, tag, OP)                                                                         \
  static inline vec_##tag name##_pick(vec_##tag x, vec_##tag m) {                                                           \
    const mask_##tag k = (mask_##tag)(x OP m);                                                                              \
    return (vec_##tag)(((mask_##tag)x & k) | ((mask_##tag)m & ~k));                                                         \
  }                                                                                                                         \
  static void name##_row(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {                                \
    const T *const x = p;                                                                                                   \
    T m = *(T *)acc;                                                                                                        \
    int64_t i = 0;                                                                                                          \
    (void)pos;                                                                                                              \
    if (stride == 1 && n >= 4 * L_##tag) {                                                                                  \
      vec_##tag a = load_##tag(x), b = a, c = a, d = a;                                                                     \
      mask_##tag nan = (mask_##tag)(a != a);                                                                                \
      T lane[L_##tag];                                                                                                      \
      for (; i + 4 * L_##tag <= n; i += 4 * L_##tag) {                                                                      \
        const vec_##tag p0 = load_##tag(x + i), p1 = load_##tag(x + i + L_##tag), p2 = load_##tag(x + i + 2 * L_##tag),     \
                        p3 = load_##tag(x + i + 3 * L_##tag);                                                               \
        a = name##_pick(p0, a), b = name##_pick(p1, b), c = name##_pick(p2, c), d = name##_pick(p3, d);                     \
        nan |= ((mask_##tag)(p0 != p0) | (mask_##tag)(p1 != p1)) | ((mask_##tag)(p2 != p2) | (mask_##tag)(p3 != p3));       \
      }                                                                                                                     \
      a = name##_pick(name##_pick(a, b), name##_pick(c, d));                                                                \
      a = (vec_##tag)((mask_##tag)a | nan); /* all bits set are a NaN */                                                    \
      memcpy(lane, &a, sizeof lane);                                                                                        \
      for (int l = 0; l < L_##tag; l++) m = BETTER(lane[l], m) ? lane[l] : m;                                               \
    }                                                                                                                       \
    for (; i < n; i++) m = BETTER(x[i * stride], m) ? x[i * stride] : m;                                                    \
    *(T *)acc = m;                                                                                                          \
  }

/* With position: `at` is -1 before the first element. A row finds its extreme first and looks for its place if that won. */
#define EXTREME_AT(T, name, BETTER, WORST)                                                                                  \
  typedef struct name##_acc { T m; int64_t at; } name##_acc;                                                                \
  static void name##_at_init(void *acc, int64_t n) {                                                                        \
    for (int64_t i = 0; i < n; i++) ((name##_acc *)acc)[i] = (name##_acc){(WORST), -1};                                     \
  }                                                                                                                         \
  static void name##_at_row(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {                             \
    const T *const x = p;                                                                                                   \
    name##_acc *const a = acc;                                                                                              \
    T m = (WORST);                                                                                                          \
    int64_t i = 0;                                                                                                          \
    if (n == 0) return;                                                                                                     \
    name##_row(&m, p, n, stride, 0);                                                                                        \
    if (a->at >= 0 && !BETTER(m, a->m)) return;                                                                             \
    if (m == m) while (i < n && x[i * stride] != m) i++;                                                                    \
    else while (i < n && x[i * stride] == x[i * stride]) i++;                                                               \
    a->m = m, a->at = pos + i;                                                                                              \
  }                                                                                                                         \
  static void name##_at_cols(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {              \
    const T *x = p;                                                                                                         \
    name##_acc *const a = acc;                                                                                              \
    for (int64_t r = 0; r < rows; r++, x += stride)                                                                         \
      for (int64_t j = 0; j < n; j++)                                                                                       \
        if (BETTER(x[j], a[j].m) || a[j].at < 0) a[j].m = x[j], a[j].at = pos + r;                                          \
  }                                                                                                                         \
  static void name##_at_merge(void *acc, const void *other, int64_t n) {                                                    \
    name##_acc *const a = acc;                                                                                              \
    const name##_acc *const b = other;                                                                                      \
    for (int64_t i = 0; i < n; i++)                                                                                         \
      if (b[i].at >= 0 && (a[i].at < 0 || BETTER(b[i].m, a[i].m))) a[i] = b[i];                                             \
  }                                                                                                                         \
  static void name##_at_finish(void *out, void *second, const void *acc, int64_t n, double param) {                          \
    const name##_acc *const a = acc;                                                                                        \
    if (out)                                                                                                                \
      for (int64_t i = 0; i < n; i++) ((T *)out)[i] = a[i].m;                                                               \
    if (second)                                                                                                              \
      for (int64_t i = 0; i < n; i++) ((int64_t *)second)[i] = a[i].at + (int64_t)param;                                     \
  }

#define EXTREME_INT(T, name, BETTER, WORST) \
  EXTREME_COMMON(T, name, BETTER, WORST) EXTREME_ROW(T, name, BETTER) EXTREME_AT(T, name, BETTER, WORST)
#define EXTREME_FLOAT(T, name, BETTER, WORST, tag, OP) \
  EXTREME_COMMON(T, name, BETTER, WORST) EXTREME_FLOAT_ROW(T, name, BETTER, tag, OP) EXTREME_AT(T, name, BETTER, WORST)

EXTREME_FLOAT(float, max_f32, GREATER_NAN, -INFINITY, f32, >)
EXTREME_FLOAT(float, min_f32, LESS_NAN, INFINITY, f32, <)
EXTREME_FLOAT(double, max_f64, GREATER_NAN, -(double)INFINITY, f64, >)
EXTREME_FLOAT(double, min_f64, LESS_NAN, (double)INFINITY, f64, <)
EXTREME_INT(int64_t, max_i64, GREATER, INT64_MIN)
EXTREME_INT(int64_t, min_i64, LESS, INT64_MAX)
EXTREME_INT(int32_t, max_i32, GREATER, INT32_MIN)
EXTREME_INT(int32_t, min_i32, LESS, INT32_MAX)
EXTREME_INT(uint8_t, max_u8, GREATER, 0)
EXTREME_INT(uint8_t, min_u8, LESS, UINT8_MAX)

/* ---- any and all ----------------------------------------------------------------------------------------------------- */

#define TRUTH(T, tag)                                                                                                       \
  static void any_row_##tag(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {                             \
    const T *const x = p;                                                                                                   \
    uint8_t found = 0;                                                                                                      \
    (void)pos;                                                                                                              \
    for (int64_t i = 0; i < n; i++) found |= (uint8_t)(x[i * stride] != 0);                                                 \
    *(uint8_t *)acc |= found;                                                                                               \
  }                                                                                                                         \
  static void any_cols_##tag(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {              \
    const T *x = p;                                                                                                         \
    uint8_t *const to = acc;                                                                                                \
    (void)pos;                                                                                                              \
    for (int64_t r = 0; r < rows; r++, x += stride)                                                                         \
      for (int64_t j = 0; j < n; j++) to[j] |= (uint8_t)(x[j] != 0);                                                        \
  }                                                                                                                         \
  static void all_row_##tag(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {                             \
    const T *const x = p;                                                                                                   \
    uint8_t held = 1;                                                                                                       \
    (void)pos;                                                                                                              \
    for (int64_t i = 0; i < n; i++) held &= (uint8_t)(x[i * stride] != 0);                                                  \
    *(uint8_t *)acc &= held;                                                                                                \
  }                                                                                                                         \
  static void all_cols_##tag(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {              \
    const T *x = p;                                                                                                         \
    uint8_t *const to = acc;                                                                                                \
    (void)pos;                                                                                                              \
    for (int64_t r = 0; r < rows; r++, x += stride)                                                                         \
      for (int64_t j = 0; j < n; j++) to[j] &= (uint8_t)(x[j] != 0);                                                        \
  }

TRUTH(float, f32)
TRUTH(double, f64)
TRUTH(int64_t, i64)
TRUTH(int32_t, i32)
TRUTH(uint8_t, u8)

static void any_init(void *acc, int64_t n) { memset(acc, 0, (size_t)n); }
static void all_init(void *acc, int64_t n) { memset(acc, 1, (size_t)n); }

static void any_merge(void *acc, const void *other, int64_t n) {
  for (int64_t i = 0; i < n; i++) ((uint8_t *)acc)[i] |= ((const uint8_t *)other)[i];
}

static void all_merge(void *acc, const void *other, int64_t n) {
  for (int64_t i = 0; i < n; i++) ((uint8_t *)acc)[i] &= ((const uint8_t *)other)[i];
}

static void truth_finish(void *out, void *second, const void *acc, int64_t n, double param) {
  (void)second, (void)param;
  memcpy(out, acc, (size_t)n);
}

/* ---- bf16: only sums, in f32; programs alone reduce it as it is -------------------------------------------------------- */

static void sum_row_bf16(void *acc, const void *p, int64_t n, int64_t stride, int64_t pos) {
  enum { SPAN = 256 };
  const uint16_t *x = p;
  float part[SPAN];
  for (; n > 0; n -= SPAN, x += SPAN * stride) {
    const int64_t count = n < SPAN ? n : SPAN;
    for (int64_t i = 0; i < count; i++) part[i] = rsi_from_bf16(x[i * stride]);
    sum_row_f32(acc, part, count, 1, pos);
  }
}

static void sum_cols_bf16(void *acc, const void *p, int64_t rows, int64_t n, int64_t stride, int64_t pos) {
  double *const to = acc;
  (void)pos;
  for (int64_t first = 0; first < rows; first += ROWS) {
    const uint16_t *const x = (const uint16_t *)p + first * stride;
    const int64_t count = rows - first < ROWS ? rows - first : ROWS;
    for (int64_t j = 0; j < n; j += LINE) {
      float sum[LINE] = {0};
      const int width = n - j < LINE ? (int)(n - j) : LINE;
      for (int64_t r = 0; r < count; r++) {
        const uint16_t *const y = x + r * stride + j;
        if (width == LINE)
          for (int l = 0; l < LINE; l++) sum[l] += rsi_from_bf16(y[l]);
        else
          for (int l = 0; l < width; l++) sum[l] += rsi_from_bf16(y[l]);
      }
      for (int l = 0; l < width; l++) to[j + l] += (double)sum[l];
    }
  }
}

/* ---- the table ------------------------------------------------------------------------------------------------------- */

#define FLOAT_SUM_FOLD(tag) {8, zero_double, sum_row_##tag, sum_cols_##tag, add_double, sum_finish_##tag}
#define INT_SUM_FOLD(tag) {8, zero_int, sum_row_##tag, sum_cols_##tag, add_int, finish_int}
#define VAR_FOLD(tag) {sizeof(rsi_moments), var_init, var_row_##tag, var_cols_##tag, var_merge, var_finish_##tag}
#define FOLD(T, name) {sizeof(T), name##_init, name##_row, name##_cols, name##_merge, name##_finish}
#define FOLD_AT(name) {sizeof(name##_acc), name##_at_init, name##_at_row, name##_at_cols, name##_at_merge, name##_at_finish}
#define ANY_FOLD(tag) {1, any_init, any_row_##tag, any_cols_##tag, any_merge, truth_finish}
#define ALL_FOLD(tag) {1, all_init, all_row_##tag, all_cols_##tag, all_merge, truth_finish}
#define EACH(F)                                                                                                             \
  {[RS_F32] = F(f32), [RS_F64] = F(f64), [RS_I64] = F(i64), [RS_I32] = F(i32), [RS_U8] = F(u8), [RS_BOOL] = F(u8)}
#define EACH_VALUE(op)                                                                                                      \
  {[RS_F32] = FOLD(float, op##_f32),   [RS_F64] = FOLD(double, op##_f64), [RS_I64] = FOLD(int64_t, op##_i64),              \
   [RS_I32] = FOLD(int32_t, op##_i32), [RS_U8] = FOLD(uint8_t, op##_u8),  [RS_BOOL] = FOLD(uint8_t, op##_u8)}
#define EACH_AT(op)                                                                                                         \
  {[RS_F32] = FOLD_AT(op##_f32), [RS_F64] = FOLD_AT(op##_f64), [RS_I64] = FOLD_AT(op##_i64),                               \
   [RS_I32] = FOLD_AT(op##_i32), [RS_U8] = FOLD_AT(op##_u8),   [RS_BOOL] = FOLD_AT(op##_u8)}

extern const rsi_k_reduce RSI_ISA(rsi_k_reduce);
const rsi_k_reduce RSI_ISA(rsi_k_reduce) = {
  .sum = {[RS_F32] = FLOAT_SUM_FOLD(f32), [RS_F64] = FLOAT_SUM_FOLD(f64), [RS_I64] = INT_SUM_FOLD(i64),
          [RS_I32] = INT_SUM_FOLD(i32), [RS_U8] = INT_SUM_FOLD(u8), [RS_BOOL] = INT_SUM_FOLD(u8),
          [RS_BF16] = {8, zero_double, sum_row_bf16, sum_cols_bf16, add_double, sum_finish_f32}},
  .max = EACH_VALUE(max),
  .min = EACH_VALUE(min),
  .max_at = EACH_AT(max),
  .min_at = EACH_AT(min),
  .any = EACH(ANY_FOLD),
  .all = EACH(ALL_FOLD),
  .var = {[RS_F32] = VAR_FOLD(f32), [RS_F64] = VAR_FOLD(f64)},
};
