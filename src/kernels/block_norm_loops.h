/*
** The loops of block_norm.c for one element type T: N(name), LOAD (a vector of floats from T), STORE_EXACT (of floats that T holds),
** FROM and TO (one element to and from float).
*/

/* ---- sums ------------------------------------------------------------------------------------------------------------ */

enum { N(SUM), N(MOMENTS), N(GRAD) };

/* Where the operands of a row begin. x is always there; g and y are with GRAD; masked may be written. */
typedef struct N(row) { const T *x, *g, *y; T *masked; } N(row);

/* What one vector adds to the two sums. m, scale and shift are those of its columns. */
INLINE void N(terms)(int what, int by, bool write, const N(row) *r, int64_t at, vec m, vec scale, vec shift, vec low, vec high, vec *u,
                     vec *v) {
  if (what == N(SUM)) {
    *u += LOAD(r->x + at);
  } else if (what == N(MOMENTS)) {
    const vec d = LOAD(r->x + at) - m;
    *u += d, *v += d * d;
  } else {
    const vec d = LOAD(r->x + at) - m;
    vec g = LOAD(r->g + at);
    if (by != RSI_BY_NONE) {
      const vec y = by == RSI_BY_Y ? LOAD(r->y + at) : d * scale + shift;
      g = (vec)((mask)g & (mask)(y > low) & (mask)(y < high));
    }
    if (write) STORE_EXACT(r->masked + at, g);
    *u += g, *v += g * d;
  }
}

/* The same for one element, in columns that fill no vector: few, so it asks what to do each time. */
static void N(term)(int what, int by, const N(row) *r, int64_t at, int64_t j, const rsi_block_factors *f, float *u, float *v) {
  const float x = FROM(r->x[at]), d = what == N(SUM) ? x : x - f->mean[j];
  if (what != N(GRAD)) {
    *u += d, *v += d * d;
    return;
  }
  const float y = by == RSI_BY_Y ? FROM(r->y[at]) : by == RSI_BY_X ? d * f->scale[j] + f->shift[j] : 0.0f;
  const float g = by == RSI_BY_NONE || (y > f->low && y < f->high) ? FROM(r->g[at]) : 0.0f;
  if (r->masked) r->masked[at] = TO(g);
  *u += g, *v += g * d;
}

/* Columns j..j + many L - 1, but for vectors that a last row fills in part. */
INLINE void N(strip)(int what, int by, bool write, int many, const N(row) *from, const rsi_columns *s, int64_t j,
                     const rsi_block_factors *f, float *first, float *second) {
  vec u[WIDE] = {{0}}, v[WIDE] = {{0}}, m[WIDE] = {{0}}, scale[WIDE] = {{0}}, shift[WIDE] = {{0}};
  const vec low = all_lanes(f->low), high = all_lanes(f->high);
  for (int k = 0; k < many; k++) {
    if (what != N(SUM)) m[k] = same(f->mean + j + k * L);
    if (by == RSI_BY_X) scale[k] = same(f->scale + j + k * L), shift[k] = same(f->shift + j + k * L);
  }
  for (int64_t piece = 0; piece < s->pieces; piece++) {
    int64_t at = piece * s->step + j;
    for (int64_t r = 0; r < s->rows; r++, at += s->stride)
      for (int k = 0; k < many; k++) N(terms)(what, by, write, from, at + k * L, m[k], scale[k], shift[k], low, high, &u[k], &v[k]);
    for (int k = 0; k < many && j + k * L + L <= s->rest; k++)
      N(terms)(what, by, write, from, at + k * L, m[k], scale[k], shift[k], low, high, &u[k], &v[k]);
  }
  for (int k = 0; k < many; k++) {
    store_same(first + j + k * L, u[k]);
    if (what != N(SUM)) store_same(second + j + k * L, v[k]);
  }
}

/* What fills no vector: columns from j on, and the end of last rows. */
static __attribute__((noinline)) void N(leftover)(int what, int by, const N(row) *from, const rsi_columns *s, int64_t j,
                                                  const rsi_block_factors *f, float *first, float *second) {
  for (; j < s->width; j++) {
    first[j] = second[j] = 0;
    for (int64_t piece = 0; piece < s->pieces; piece++)
      for (int64_t r = 0; r < s->rows; r++)
        N(term)(what, by, from, piece * s->step + r * s->stride + j, j, f, &first[j], &second[j]);
  }
  for (int64_t piece = 0; piece < s->pieces; piece++)
    for (j = s->rest / L * L; j < s->rest; j++)
      N(term)(what, by, from, piece * s->step + s->rows * s->stride + j, j, f, &first[j], &second[j]);
}

/* first: [width] and second: [width] = the two sums of each column */
INLINE void N(fold)(int what, int by, bool write, const N(row) *from, const rsi_columns *s, const rsi_block_factors *f,
                    float *first, float *second) {
  int64_t j = 0;
  for (; j + WIDE * L <= s->width; j += WIDE * L) N(strip)(what, by, write, WIDE, from, s, j, f, first, second);
  for (; j + L <= s->width; j += L) N(strip)(what, by, write, 1, from, s, j, f, first, second);
  if (j < s->width || s->rest % L != 0) N(leftover)(what, by, from, s, j, f, first, second);
}

static const rsi_block_factors N(nothing) = {0};

static void N(sums)(const void *x, const rsi_columns *s, double *to) {
  float sum[RSI_BLOCK_COLUMNS], unused[RSI_BLOCK_COLUMNS] = {0};
  N(fold)(N(SUM), RSI_BY_NONE, false, &(N(row)){.x = x}, s, &N(nothing), sum, unused);
  for (int64_t j = 0; j < s->width; j++) to[j] += (double)sum[j];
}

/*
** Two sweeps over elements that are in the cache by the second: the mean, then moments about it, which f32 holds well. In double
** they are moved to the origin: sum(x - o) = sum(d) + n e, sum((x - o)^2) = sum(d^2) + 2 e sum(d) + n e^2 with e = mean - o.
*/
static void N(moments)(const void *x, const rsi_columns *s, const float *origin, double *restrict to) {
  float mean[RSI_BLOCK_COLUMNS], first[RSI_BLOCK_COLUMNS], second[RSI_BLOCK_COLUMNS] = {0};
  const rsi_block_factors about = {.mean = mean};
  const int64_t width = s->width, ends[3] = {0, s->rest, width};
  N(fold)(N(SUM), RSI_BY_NONE, false, &(N(row)){.x = x}, s, &N(nothing), mean, second);
  for (int part = 0; part < 2; part++) {
    const int64_t count = s->pieces * (s->rows + (part == 0));
    const float share = count > 0 ? 1.0f / (float)count : 0.0f;
    for (int64_t j = ends[part]; j < ends[part + 1]; j++) mean[j] *= share;
  }
  N(fold)(N(MOMENTS), RSI_BY_NONE, false, &(N(row)){.x = x}, s, &about, first, second);
  for (int part = 0; part < 2; part++) {
    const double count = (double)(s->pieces * (s->rows + (part == 0)));
    for (int64_t j = ends[part]; j < ends[part + 1] && count > 0; j++) {
      const double e = (double)mean[j] - (double)origin[j], d = (double)first[j], ne = count * e;
      to[j] += d + ne;
      to[width + j] += (double)second[j] + e * (d + d + ne);
    }
  }
}

static void N(grad_sums)(const void *g, const void *x, const void *y, void *masked, const rsi_columns *s,
                         const rsi_block_factors *f, double *restrict to) {
  float first[RSI_BLOCK_COLUMNS], second[RSI_BLOCK_COLUMNS];
  const N(row) from = {x, g, y, masked};
  if (f->mask == RSI_BY_X) N(fold)(N(GRAD), RSI_BY_X, false, &from, s, f, first, second);
  else if (f->mask == RSI_BY_Y && masked) N(fold)(N(GRAD), RSI_BY_Y, true, &from, s, f, first, second);
  else if (f->mask == RSI_BY_Y) N(fold)(N(GRAD), RSI_BY_Y, false, &from, s, f, first, second);
  else if (masked) N(fold)(N(GRAD), RSI_BY_NONE, true, &from, s, f, first, second);
  else N(fold)(N(GRAD), RSI_BY_NONE, false, &from, s, f, first, second);
  for (int64_t j = 0; j < s->width; j++) {
    to[j] += (double)first[j];
    to[s->width + j] += (double)second[j];
  }
}

/* ---- sweeps ---------------------------------------------------------------------------------------------------------- */

/*
** Calls ROW(at, j, STRIP) for n elements from the first column on, in stretches of one row, and REST(at, j, count) for those that
** are shorter. Few columns are never a hot case.
*/
#define RSI_SWEEP(ROW, REST)                                                                                                \
  for (int64_t first = 0; first < n; first += width) {                                                                      \
    const int64_t end = n - first < width ? n - first : width;                                                              \
    int64_t j = 0;                                                                                                          \
    for (; j + STRIP <= end; j += STRIP) ROW(first + j, j, STRIP);                                                          \
    if (j < end) REST(first + j, j, end - j);                                                                               \
  }

INLINE void N(apply_row)(T *restrict y, const T *restrict x, const T *restrict r, int64_t n, const float *restrict mean,
                         const float *restrict scale, const float *restrict shift, float low, float high) {
  RSI_LOOP for (int64_t i = 0; i < n; i++) {
    float v = (FROM(x[i]) - mean[i]) * scale[i] + shift[i];
    if (r) v += FROM(r[i]);
    v = low > v ? low : v;          /* a NaN stays */
    v = high < v ? high : v;
    y[i] = TO(v);
  }
}

static __attribute__((noinline)) void N(apply_rest)(T *y, const T *x, const T *r, int64_t n, const float *mean, const float *scale,
                                                    const float *shift, float low, float high) {
  N(apply_row)(y, x, r, n, mean, scale, shift, low, high);
}

static void N(apply)(void *py, const void *px, const void *pr, int64_t n, int64_t width, const rsi_block_factors *f) {
  T *const y = py;
  const T *const x = px, *const r = pr;
  const float *const mean = f->mean, *const scale = f->scale, *const shift = f->shift, low = f->low, high = f->high;
#define RSI_ROW(at, j, count) N(apply_row)(y + (at), x + (at), r + (at), count, mean + (j), scale + (j), shift + (j), low, high)
#define RSI_ALONE(at, j, count) N(apply_row)(y + (at), x + (at), NULL, count, mean + (j), scale + (j), shift + (j), low, high)
#define RSI_REST(at, j, count) \
  N(apply_rest)(y + (at), x + (at), r ? r + (at) : NULL, count, mean + (j), scale + (j), shift + (j), low, high)
  if (r) RSI_SWEEP(RSI_ROW, RSI_REST)
  else RSI_SWEEP(RSI_ALONE, RSI_REST)
#undef RSI_ROW
#undef RSI_ALONE
#undef RSI_REST
}

INLINE void N(grad_row)(int by, T *restrict dx, const T *restrict pg, const T *restrict px, const T *restrict py, int64_t n,
                        int64_t j, const rsi_block_factors *f) {
  const float *restrict mean = f->mean + j, *restrict a = f->a + j, *restrict b = f->b + j, *restrict c = f->c + j;
  const float *restrict scale = by == RSI_BY_X ? f->scale + j : NULL, *restrict shift = by == RSI_BY_X ? f->shift + j : NULL;
  const float low = f->low, high = f->high;
  RSI_LOOP for (int64_t i = 0; i < n; i++) {
    const float d = FROM(px[i]) - mean[i];
    float g = FROM(pg[i]);
    if (by != RSI_BY_NONE) {
      const float y = by == RSI_BY_Y ? FROM(py[i]) : d * scale[i] + shift[i];
      g = (y > low) & (y < high) ? g : 0.0f;
    }
    dx[i] = TO(a[i] * g + (b[i] * d + c[i]));
  }
}

static __attribute__((noinline)) void N(grad_rest)(T *dx, const T *g, const T *x, const T *y, int64_t n, int64_t j,
                                                   const rsi_block_factors *f) {
  if (f->mask == RSI_BY_X) N(grad_row)(RSI_BY_X, dx, g, x, y, n, j, f);
  else if (f->mask == RSI_BY_Y) N(grad_row)(RSI_BY_Y, dx, g, x, y, n, j, f);
  else N(grad_row)(RSI_BY_NONE, dx, g, x, y, n, j, f);
}

static void N(grad)(void *pdx, const void *pg, const void *px, const void *py, int64_t n, int64_t width, const rsi_block_factors *f) {
  T *const dx = pdx;
  const T *const g = pg, *const x = px, *const y = f->mask == RSI_BY_Y ? py : px;
#define RSI_REST(at, j, count) N(grad_rest)(dx + (at), g + (at), x + (at), y + (at), count, j, f)
#define RSI_ROW_X(at, j, count) N(grad_row)(RSI_BY_X, dx + (at), g + (at), x + (at), y + (at), count, j, f)
#define RSI_ROW_Y(at, j, count) N(grad_row)(RSI_BY_Y, dx + (at), g + (at), x + (at), y + (at), count, j, f)
#define RSI_ROW_NONE(at, j, count) N(grad_row)(RSI_BY_NONE, dx + (at), g + (at), x + (at), y + (at), count, j, f)
  if (f->mask == RSI_BY_X) RSI_SWEEP(RSI_ROW_X, RSI_REST)
  else if (f->mask == RSI_BY_Y) RSI_SWEEP(RSI_ROW_Y, RSI_REST)
  else RSI_SWEEP(RSI_ROW_NONE, RSI_REST)
#undef RSI_REST
#undef RSI_ROW_X
#undef RSI_ROW_Y
#undef RSI_ROW_NONE
}
#undef RSI_SWEEP
